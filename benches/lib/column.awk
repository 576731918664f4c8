# The median of a column (-v column=N).
{ list = list " " $column }
END { print median(list) }
