# Reads lines of: case, clients, round, target, tps, latency, CPU. Prints the table of one case (-v table=1), or how far one
# of its targets is ahead of another (-v target=... -v base=...), for each number of clients: clients, ratio.
# -v only=CASE -v base=TARGET -v order="TARGET ..."

$1 != only { next }
{
  clients = $2
  # A PgBouncer in session mode stands in for one in transaction mode; the table says so.
  name = $4
  sub(/\(session\)/, "", name)
  key = clients " " name
  shown[name] = $4
  sub(/\(/, " (", shown[name])
  if (!(clients in seen)) { seen[clients] = 1; groups[++g] = clients }
  if (!(key in tps)) low[key] = high[key] = $5
  tps[key] = tps[key] " " $5
  latency[key] = latency[key] " " $6
  if ($7 != "-") cpu[key] = cpu[key] " " $7
  if ($5 + 0 < low[key] + 0) low[key] = $5
  if ($5 + 0 > high[key] + 0) high[key] = $5
  # What is compared: throughput, unless -v figure says latency or cpu.
  at[key, $3] = figure == "cpu" ? $7 : figure == "latency" ? $6 : $5
  if ($3 > last) last = $3
}

# The median of the ratios within each round.
function ratio(key, peer,   r, ratios) {
  for (r = 1; r <= last; r++) if (at[peer, r] + 0 > 0) ratios = ratios " " at[key, r] / at[peer, r]
  return median(ratios)
}

function several(clients,   part) {
  return split(clients, part, "/") == 2 ? part[1] ", " part[2] " at once" : clients
}

END {
  if (table) {
    printf "| clients | target | tps | x %s | latency ms | CPU us/transaction | tps min..max |\n", base
    print "|---:|---|---:|---:|---:|---:|---:|"
    n = split(order, names, " ")
  } else {
    n = split(target, names, " ")
  }
  for (i = 1; i <= g; i++) {
    peer = groups[i] " " base
    for (m = 1; m <= n; m++) {
      key = groups[i] " " names[m]
      if (!(key in tps)) continue
      if (!table) {
        if (peer in tps) printf "%s\t%.4f\n", several(groups[i]), ratio(key, peer)
        continue
      }
      printf "| %s | %s | %.0f | %s | %.3f | %s | %.0f..%.0f |\n", several(groups[i]), shown[names[m]], median(tps[key]),
        (peer in tps) ? sprintf("%.2f", ratio(key, peer)) : "-", median(latency[key]),
        (key in cpu) ? sprintf("%.1f", median(cpu[key])) : "-", low[key], high[key]
    }
  }
}
