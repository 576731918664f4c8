# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables are shared with benches/side_by_side.sh
# The report, as Markdown: what was run and where, the goals, and a table for each case.

with_median() { awk -f "$lib/median.awk" "$@"; }

column_median() { # column file
  with_median -f "$lib/column.awk" -v column="$1" "$2"
}

# ---------------------------------------------------------------- goals: case, clients, goal, measured, whether reached

goal_at_most() { # case clients who figure limit unit
  local reached=no
  if awk -v x="$4" -v y="$5" 'BEGIN { exit !(x <= y) }'; then reached=yes; fi
  printf '%s\t%s\t%s: at most %s %s\t%.1f %s\t%s\n' "$1" "$2" "$3" "$5" "$6" "$4" "$6" "$reached" >>"$work/goals"
}

judge_ratios() { # case
  local each case clients target base figure side limit
  for each in "${ratio_goals[@]}"; do
    read -r case clients target base figure side limit <<<"$each"
    [[ $case == "$1" ]] || continue
    with_median -f "$lib/rounds.awk" -v only="$case" -v target="$target" -v base="$base" -v figure="$figure" \
      "$work/results" |
      awk -F '\t' -v name="$case" -v only="$clients" -v what="$target: at $side $limit x $base, $figure" -v side="$side" \
        -v limit="$limit" -v OFS='\t' '
        only != "-" && $1 != only { next }
        { print name, $1, what, sprintf("%.2f x", $2), (side == "least" ? $2 >= limit : $2 <= limit) ? "yes" : "no" }' \
        >>"$work/goals"
  done
}

report_goals() {
  [[ -s $work/goals ]] || return 0
  printf '\n## Goals\n\n| case | clients | goal | measured | reached |\n|---|---:|---|---:|---|\n'
  awk -F '\t' '{ printf "| %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5 }' "$work/goals"
}

# ---------------------------------------------------------------- head and cases

cpu_model() {
  local model
  model=$(sed -n 's/^model name[[:space:]]*: *//p' /proc/cpuinfo | sed -n 1p)
  printf '%s' "${model:-$(uname -m)}"
}

report_header() {
  printf '# Side by side\n\n'
  printf -- '- Date: %s\n' "$(date -u '+%Y-%m-%d %H:%M UTC')"
  printf -- '- Machine: %s, %s cores, %s; load before the runs: %s\n' "$(cpu_model)" "$(nproc)" "$(uname -sr)" "$load_before"
  printf -- '- Server: %s, shared_buffers 256MB, fsync off, scale %s; client: %s; all on one machine over loopback, SCRAM\n' \
    "$("$pg_bin/postgres" --version)" "$scale" "$("$pg_bin/pgbench" --version)"
  printf -- '- Poolers: %s; transaction mode, %s server connections each\n' "$(pooler_versions)" "$servers"
  printf -- '- Runs: %s rounds of %s s each, targets in turn and rotated every round; two threads of clients (one for one client)\n' \
    "$rounds" "$seconds"
  printf -- '- Figures: medians over the rounds; "x ..." is the median of the ratios within each round; CPU is the\n'
  printf '  user and system time of the pooler alone, all its threads'
  if ((seconds > 2)); then printf ', from the first second of a run to its last\n'; else printf ', signing in included\n'; fi
  if ((with_pgbouncer && !prepared_in_transactions)); then
    printf -- '- This PgBouncer has no prepared statements in transaction mode (1.21 is the first): its prepared and extended rows\n'
    printf '  are in session mode with a server for every client, which is less work; compare with care\n'
  fi
  ((${#left_out[@]} == 0)) || printf -- '- Left out: %s\n' "${left_out[@]}"
}

pooler_versions() {
  local all=()
  ((!with_pgbouncer)) || all+=("${pgbouncer_version/PgBouncer /PgBouncer }")
  ((!with_pgtenant)) || all+=("$pgtenant_version")
  ((!with_pg_doorman)) || all+=("$pg_doorman_version")
  printf '%s' "${all[0]:-none}"
  ((${#all[@]} < 2)) || printf '; %s' "${all[@]:1}"
}

report_rounds() {
  with_median -f "$lib/rounds.awk" -v table=1 -v only="$case_name" -v base="$case_base" -v order="${case_targets[*]}" "$work/results"
  ((${#case_notes[@]} == 0)) || { printf '\n' && printf -- '- %s\n' "${case_notes[@]}"; }
}

report() {
  report_header
  report_goals
  for case_name in "${cases[@]}"; do
    begin_case
    printf '\n## %s\n\n' "$case_title"
    if declare -F "report_$case_name" >/dev/null; then "report_$case_name"; else report_rounds; fi
  done
}
