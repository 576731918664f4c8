# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables are shared with benches/side_by_side.sh
# One run of a load against one target, and rounds of them.

ticks_per_second=$(getconf CLK_TCK)

cpu_ticks() { # user and system time of a whole process, all threads
  local line=
  read -r line 2>/dev/null <"/proc/$1/stat" || die "the pooler ended during a run"
  # shellcheck disable=SC2086 # the fields after the name, which may hold spaces
  set -- ${line##*) }
  cpu=$((${12} + ${13}))
}

in_session_mode() { # target mode
  [[ $1 == pgbouncer* && $2 != simple ]] && ((!prepared_in_transactions))
}

# Runs the load once and sets tps, latency (ms) and cpu_us. A pooler's CPU time is taken between the load's first progress
# line and its last, so that signing in (SCRAM is dear) is not in it.
measure() { # target clients seconds
  local what="$case_name against $1, $2 clients" pid line status=0 before=0 transactions
  "$case_command" "$@"
  pid=${pid_of[$served]:-}
  : >"$work/samples"
  : >"$work/err"
  if [[ -n $pid ]]; then cpu_ticks "$pid" && before=$cpu; fi
  "${command[@]}" >"$work/out" 2>"$work/progress" </dev/null &
  bench_pid=$!
  while IFS= read -r line; do
    if [[ $line =~ ^progress:\ [0-9.]+\ s,\ ([0-9.]+)\ tps ]]; then
      if [[ -n $pid ]]; then
        cpu_ticks "$pid"
        printf '%s %s %s\n' "$EPOCHREALTIME" "$cpu" "${BASH_REMATCH[1]}" >>"$work/samples"
      fi
    else
      printf '%s\n' "$line" >>"$work/err"
    fi
  done <"$work/progress"
  wait "$bench_pid" || status=$?
  bench_pid=''
  ((status == 0)) || die "the load failed: $what"

  tps=$(sed -n 's/^tps = \([0-9.]*\) (.*without initial connection time.*/\1/p' "$work/out")
  latency=$(sed -n 's/^latency average = \([0-9.]*\) ms$/\1/p' "$work/out")
  transactions=$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' "$work/out")
  [[ -n $tps && -n $latency && -n $transactions && $transactions != 0 ]] || die "cannot read the load's answer: $what"
  ! grep -q '^number of failed transactions: [1-9]' "$work/out" || die "transactions failed: $what"

  cpu_us='-'
  if [[ -n $pid ]]; then
    cpu_ticks "$pid"
    cpu_us=$(awk -v hz="$ticks_per_second" -v whole=$((cpu - before)) -v n="$transactions" '
      NR == 1 { first_t = $1; first_c = $2 }
      NR > 1 { done += $3 * ($1 - t); c = $2 }
      { t = $1 }
      END {
        if (NR > 1 && done > 0) print (c - first_c) / hz * 1e6 / done
        else print whole / hz * 1e6 / n
      }' "$work/samples")
  fi
}

# The targets of a case in turn, beginning with another one in every round.
run_rounds() {
  local clients round i n=${#case_targets[@]} target name
  # The first run opens the servers' connections and fills the caches; it is not counted.
  round=1
  for target in "${case_targets[@]}"; do measure "$target" "${case_clients[-1]}" 1; done
  for clients in "${case_clients[@]}"; do
    for ((round = 1; round <= rounds; round++)); do
      for ((i = 0; i < n; i++)); do
        target=${case_targets[(i + round - 1) % n]}
        measure "$target" "$clients" "$seconds"
        name=$target
        ! in_session_mode "$target" "$case_mode" || name+='(session)'
        printf '%s %s %s %s %s %s %s\n' "$case_name" "$clients" "$round" "$name" "$tps" "$latency" "$cpu_us" >>"$work/results"
        say "$(printf '%-10s %6s clients, round %s/%s  %-20s %9.0f tps  %7.3f ms  %s us CPU' \
          "$case_name" "$clients" "$round" "$rounds" "$name" "$tps" "$latency" "$(
            [[ $cpu_us == - ]] && printf -- - || printf '%.1f' "$cpu_us"
          )")"
      done
    done
  done
}

# Sets calls: those of a long run less those of a short one, so that neither signing in nor attaching is in it.
calls_per_transaction() { # target
  local counted=() each
  for each in 1 501; do
    traced_run "$1" "$each" || return 1
    counted+=("$traced")
  done
  calls=$(awk -v few="${counted[0]}" -v many="${counted[1]}" 'BEGIN { print (many - few) / (16 * 500) }')
}

traced_run() { # target, transactions of each of 16 clients
  local pid=${pid_of[$1]} left=50
  pgbench_words "$1" 16 -t "$2"
  strace -c -f -o "$work/strace" -p "$pid" 2>"$work/err" &
  trace_pid=$!
  until ! grep -qs '^TracerPid:[[:space:]]*0$' "/proc/$pid"/task/*/status; do
    { ((left-- > 0)) && kill -0 "$trace_pid" 2>/dev/null; } || return 1
    sleep 0.1
  done
  "${command[@]}" >"$work/out" 2>"$work/err" </dev/null || die "pgbench failed under strace against $1"
  kill -INT "$trace_pid"
  wait "$trace_pid" || true
  trace_pid=''
  traced=$(awk '$NF == "total" { print $4 }' "$work/strace")
  [[ -n $traced ]]
}
