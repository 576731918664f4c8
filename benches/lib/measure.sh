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
  # Hundreds of clients take seconds to sign in, which count as the load's.
  set -- "$1" "$2" "$(($3 + $2 / 50))"
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
  transactions_done=$transactions
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

# Sets `each` to what a way of counting finds for a transaction: a long run less a short one, so that neither starting, nor
# signing in, nor attaching is in it. A way of counting sets `counted` to one number or more.
per_transaction() { # how target
  local transactions few=()
  for transactions in 1 501; do
    "$1" "$2" "$transactions" || return 1
    [[ $transactions == 1 ]] && few=("${counted[@]}")
  done
  each=$(awk -v few="${few[*]}" -v many="${counted[*]}" 'BEGIN {
    n = split(few, a, " ")
    split(many, b, " ")
    for (i = 1; i <= n; i++) printf("%s%.2f", i == 1 ? "" : " ", (b[i] - a[i]) / (16 * 500))
  }')
}

run_of_16() { # target, transactions of each client
  pgbench_words "$1" 16 -t "$2"
  "${command[@]}" >"$work/out" 2>"$work/err" </dev/null || die "pgbench failed against $1"
}

# How often a thread of the pooler went to sleep until something came.
wakeups() { awk '/^voluntary_ctxt_switches/ { n += $2 } END { print n }' "/proc/$1/task/"*/status; }
count_wakeups() { # target, transactions of each of 16 clients
  local pid=${pid_of[$1]} before
  before=$(wakeups "$pid")
  run_of_16 "$@"
  counted=($(($(wakeups "$pid") - before)))
}

# Allocations and bytes of them, by Valgrind's DHAT: a process of its own for each run.
count_allocations() { # target, transactions of each of 16 clients
  local name=$1
  under=(valgrind --tool=dhat --dhat-out-file=/dev/null --trace-children=no)
  start_patience=900
  start_anew "$name"
  under=()
  run_of_16 "$@"
  stop_patience=600
  end_target "$name"
  stop_patience=50 start_patience=150
  read -ra counted < <(awk '
    $2 == "Total:" { gsub(/,/, ""); bytes = $3; blocks = $6 }
    END { print blocks, bytes }' "$work/$name/log")
}

count_calls() { # target, transactions of each of 16 clients
  local pid=${pid_of[$1]} left=50
  strace -c -f -o "$work/strace" -p "$pid" 2>"$work/err" &
  trace_pid=$!
  until ! grep -qs '^TracerPid:[[:space:]]*0$' "/proc/$pid"/task/*/status; do
    { ((left-- > 0)) && kill -0 "$trace_pid" 2>/dev/null; } || return 1
    sleep 0.1
  done
  run_of_16 "$@"
  kill -INT "$trace_pid"
  wait "$trace_pid" || true
  trace_pid=''
  counted=("$(awk '$NF == "total" { print $4 }' "$work/strace")")
  [[ -n ${counted[0]} ]]
}
