# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables are shared with benches/side_by_side.sh
# What is measured, and the goals.
#
# case_NAME says what a case is: its title, numbers of clients, targets, to which of them the others are compared, and its
# goals. run_NAME measures it, and report_NAME prints it; for most that is `run_rounds` and `report_rounds`, with a function
# that sets `command` and `served` (the process whose CPU time counts) for one run.

every_case=(idle prepared simple extended rows_1000 rls_plain rls_sealed seal hands tls calls)
usual_cases=(idle prepared simple rows_1000 rls_plain rls_sealed seal hands tls calls)

# So many times the figure of another, or at most so many: the case, for how many clients (- for all), who, of whom,
# which figure, least or most, how many.
ratio_goals=(
  'prepared 16 pgtenant pgbouncer tps least 1.15'
  'prepared 16 pgtenant pgbouncer cpu most 0.9'
  'prepared 200 pgtenant pgbouncer tps least 1.2'
  'simple 1 pgtenant pgbouncer latency most 1.0'
  'rows_1000 - pgtenant pgbouncer tps least 1.1'
  'rls_plain - pgtenant_rls pgtenant_pooling tps least 0.9'
  'rls_plain - pgtenant_rls pgbouncer_set_local tps least 2.5'
  'rls_sealed - pgtenant_sealed pgbouncer_set_local tps least 2.0'
  'tls - pgtenant_tls pgbouncer_tls tps least 1.15'
)
seal_goal_us=15
idle_goal_mib=60

idle_clients=10000
seal_calls=20000 # of the check in one EXPLAIN

# Why a case cannot be measured here; nothing if it can.
obstacle() {
  case $1 in
    rls_plain | rls_sealed | seal | hands) ((with_pgtenant)) || printf 'needs pgtenant' ;;
    tls) command -v openssl >/dev/null || printf 'needs openssl' ;;
    calls) command -v strace >/dev/null || printf 'needs strace' ;;
    idle)
      # Sockets of the clients on both sides, each in a process of its own, and some hundred for all else.
      (($(ulimit -n | sed s/unlimited/1000000/) >= idle_clients + 300)) ||
        printf 'needs %s open files in a process, the limit is %s' $((idle_clients + 300)) "$(ulimit -Hn)"
      ;;
  esac
}

# ---------------------------------------------------------------- pgbench

pgbench_command() { pgbench_words "$1" "$2" -T "$3" -P 1; } # target clients seconds

pgbench_words() { # target clients, then how long
  local target=$1 clients=$2 database=bench jobs=2
  shift 2
  ! in_session_mode "$target" "$case_mode" || database=bench_session
  ((clients > 1)) || jobs=1
  served=$target
  command=(env PGPASSWORD="$password" PGSSLMODE="$case_sslmode" "$pg_bin/pgbench" -n -M "$case_mode" -c "$clients" -j "$jobs"
    "$@" -f "$case_script" -h 127.0.0.1 -p "${port_of[$target]}" -U "$role" "$database")
}

one_row() { # mode, numbers of clients
  case_mode=$1 case_sslmode=disable
  read -ra case_clients <<<"${clients_list:-$2}"
  case_targets=(direct "${poolers[@]}") case_base=pgbouncer
  case_command=pgbench_command case_script=$work/one_row.sql
  cat >"$case_script" <<SQL
\\set aid random(1, 100000 * $scale)
select abalance from pgbench_accounts where aid = :aid;
SQL
}

case_prepared() {
  case_title="One row by primary key, prepared statement, tenancy = \"none\""
  one_row prepared '1 16 64 200'
}
case_simple() {
  case_title="One row by primary key, simple protocol, tenancy = \"none\""
  one_row simple '1 16 64'
}
case_extended() {
  case_title="One row by primary key, parsed anew each time, tenancy = \"none\""
  one_row extended '1 16 64'
}

case_rows_1000() {
  one_row prepared ''
  case_title="1,000 rows of about 100 bytes, prepared statement, tenancy = \"none\""
  case_clients=(8) case_script=$work/rows_1000.sql
  cat >"$case_script" <<SQL
\\set first random(1, 100000 * $scale - 999)
\\set last :first + 999
select aid, bid, abalance, filler from pgbench_accounts where aid between :first and :last;
SQL
}

case_tls() {
  one_row prepared ''
  case_title="One row by primary key, prepared statement, TLS between client and pooler"
  case_clients=(16) case_sslmode=require case_base=pgbouncer_tls case_targets=(direct)
  ((!with_pgbouncer)) || case_targets+=(pgbouncer_tls)
  ((!with_pgtenant)) || case_targets+=(pgtenant_tls)
}

# ---------------------------------------------------------------- organizations
#
# By benches/load, all targets alike: pgbench has one password for all its clients. "100/16": a client for each of the 100
# organizations, of which 16 at a time have a transaction, so that servers change hands; "16": as many organizations,
# others in every round.

load_command() { # target clients seconds
  local database=bench user=$tenant table clients=${2%/*} how=(--isolated) file=passwords
  case $1 in
    pgbouncer_set_local) served=pgbouncer table=items_set_local how+=(--set-local app.org) ;;
    pgtenant_pooling) served=pgtenant table=items_open how=() user=$role ;;
    pgtenant_rls) served=pgtenant table=items_plain file=tokens ;;
    pgtenant_sealed) served=pgtenant table=items_sealed file=tokens ;;
  esac
  ! in_session_mode "$served" prepared || database=bench_session
  command=("$load" run --address "127.0.0.1:${port_of[$served]}" --user "$user" --database "$database"
    --organizations "$work/$file" --table "$table" --clients "$clients" --at-once "${2#*/}"
    --first $(((round - 1) * clients)) --seconds "$3" "${how[@]}")
}

tenants() { # targets of pgtenant
  case_clients=(16 100/16) case_base=pgbouncer_set_local case_command=load_command case_mode=prepared
  case_targets=()
  ((!with_pgbouncer)) || case_targets+=(pgbouncer_set_local)
  case_targets+=("$@")
}
case_rls_plain() {
  case_title="One row by primary key under RLS, $organizations organizations, a policy on a plain setting"
  tenants pgtenant_pooling pgtenant_rls
  case_notes=(
    'pgbouncer_set_local: the application sends BEGIN; SET LOCAL app.org; SELECT; COMMIT, policy on current_setting(app.org)'
    'pgtenant_pooling: the same SELECT on a table without RLS, tenancy = "none"'
    'pgtenant_rls: tokens; the policy takes the organization out of the seal without checking it'
  )
}
case_rls_sealed() {
  case_title="One row by primary key under RLS, $organizations organizations, the seal checked in every query"
  tenants pgtenant_pooling pgtenant_sealed
  case_notes=(
    'pgbouncer_set_local, pgtenant_pooling: as above'
    'pgtenant_sealed: tokens; the policy is on (SELECT pgtenant.organization_id())'
  )
}

# ---------------------------------------------------------------- the seal's check, in the server itself

case_seal() { case_title="What the seal's check costs in PostgreSQL"; }

# Milliseconds that PostgreSQL needs for so many calls of an expression.
execution_time() {
  PGOPTIONS='' sql "${port_of[pgtenant]}" "$tenant" "$(sed -n '1s/^[^ ]* \([^ ]*\) .*/\1/p' "$work/tokens")" bench <<SQL |
explain (analyze, timing off) select count($1) from generate_series(1, $seal_calls);
SQL
    sed -n 's/^Execution Time: \([0-9.]*\) ms$/\1/p'
}

run_seal() {
  local round checked plain
  for ((round = 1; round <= rounds; round++)); do
    checked=$(execution_time 'pgtenant.organization_id()')
    plain=$(execution_time "current_setting('pgtenant.seal')")
    [[ -n $checked && -n $plain ]] || die "cannot read PostgreSQL's execution time"
    printf '%s %s\n' "$checked" "$plain" >>"$work/seal.times"
    say "$(printf 'seal      %s calls, round %s/%s: %s ms, a plain setting %s ms' "$seal_calls" "$round" "$rounds" "$checked" "$plain")"
  done
  awk -v n="$seal_calls" '{ print ($1 - $2) * 1000 / n, $1 * 1000 / n, $2 * 1000 / n }' "$work/seal.times" >"$work/seal.us"
  goal_at_most seal - 'a check of the seal' "$(column_median 1 "$work/seal.us")" "$seal_goal_us" us
}

report_seal() {
  printf '| SELECT | us/call |\n|---|---:|\n'
  printf '| pgtenant.organization_id() | %.2f |\n' "$(column_median 2 "$work/seal.us")"
  printf "| current_setting('pgtenant.seal') | %.2f |\n" "$(column_median 3 "$work/seal.us")"
  printf '| difference | %.2f |\n\n' "$(column_median 1 "$work/seal.us")"
  printf 'EXPLAIN (ANALYZE, TIMING OFF) of %s calls in one query, medians of the rounds. A query of one policy has one such call.\n' \
    "$seal_calls"
}

# ---------------------------------------------------------------- a server changes hands, in each way that there is

case_hands() {
  case_title="What a change of hands costs, by what its last client sent"
  tenants inert simple block loud left
  case_command=hands_command case_base=inert
  case_targets=(inert simple block loud left)
}

# What else the query asks for decides how its server goes to the next organization.
hands_command() { # way clients seconds
  load_command pgtenant_sealed "$2" "$3"
  case $1 in
    inert) command+=(--also 'length(body)') ;;
    simple | block) command+=(--also 'length(body)' --way "$1") ;;
    # A name that is not on the list of those that bend no plan.
    loud) command+=(--also 'pg_column_size(body)') ;;
    # What random() gives from then on is left behind.
    left) command+=(--also 'setseed(0.5)') ;;
  esac
}

# User and system time of all servers' processes.
postgres_ticks() {
  local postmaster pid sum=0 children=()
  postmaster=$(sed -n 1p "$work/postgres/data/postmaster.pid")
  # One line without an end.
  read -ra children <"/proc/$postmaster/task/$postmaster/children" || true
  for pid in "${children[@]}"; do
    # One that has just ended counts no more.
    if [[ -r /proc/$pid/stat ]]; then cpu_ticks "$pid" && sum=$((sum + cpu)); fi
  done
  ticks=$sum
}

run_hands() {
  local clients round=1 target before
  for target in "${case_targets[@]}"; do measure "$target" 100/16 1; done
  for clients in "${case_clients[@]}"; do
    for ((round = 1; round <= rounds; round++)); do
      for target in "${case_targets[@]}"; do
        postgres_ticks
        before=$ticks
        measure "$target" "$clients" "$seconds"
        postgres_ticks
        each=$(awk -v t=$((ticks - before)) -v hz="$ticks_per_second" -v n="$transactions_done" 'BEGIN { print t / hz * 1e6 / n }')
        printf '%s %s %s %s %s\n' "$target" "$clients" "$tps" "$cpu_us" "$each" >>"$work/hands"
        say "$(printf 'hands     %6s clients, round %s/%s  %-6s %9.0f tps, %.1f us CPU of the pooler, %.1f of PostgreSQL' \
          "$clients" "$round" "$rounds" "$target" "$tps" "$cpu_us" "$each")"
      done
    done
  done
}

report_hands() {
  local target clients label
  printf '| its last query | clients | tps | us of the pooler | us of PostgreSQL |\n|---|---:|---:|---:|---:|\n'
  for target in "${case_targets[@]}"; do
    for clients in "${case_clients[@]}"; do
      awk -v t="$target" -v c="$clients" '$1 == t && $2 == c { print $3, $4, $5 }' "$work/hands" >"$work/hands.one"
      label=${clients/\//, }
      [[ $clients != */* ]] || label+=' at once'
      printf '| %s | %s | %.0f | %.1f | %.1f |\n' "$target" "$label" "$(column_median 1 "$work/hands.one")" \
        "$(column_median 2 "$work/hands.one")" "$(column_median 3 "$work/hands.one")"
    done
  done
  cat <<'TEXT'

One row under a sealed policy. With 16 clients of 16 organizations a server seldom changes hands, with 100 of whom 16 at a time
have a transaction nearly always: the difference between the two rows is what that costs. "inert": statements and plans are kept
(a light switch), and so with "simple", which asks by a simple query, and "block", which has BEGIN before its prepared statement and COMMIT
behind; "loud": they are dropped (a switch); "left": something was left, and the server is cleaned in a round trip of
its own behind every transaction, in the background, whoever is next. CPU time per transaction.
TEXT
}

# ---------------------------------------------------------------- idle clients

case_idle() { case_title="$idle_clients idle clients, signed in by SCRAM"; }

run_idle() {
  local target memory
  for target in "${poolers[@]}"; do
    say "idle      $idle_clients clients sign in to $target"
    start_anew "$target"
    "$load" idle --address "127.0.0.1:${port_of[$target]}" --user "$role" --database bench --organizations "$work/passwords" \
      --clients "$idle_clients" --pid "${pid_of[$target]}" >"$work/idle.out" 2>"$work/err" &
    bench_pid=$!
    wait "$bench_pid" || die "not all clients could sign in to $target"
    bench_pid=''
    memory=$(sed -n 's/^VmRSS [a-z]*: \([0-9]*\) kB$/\1/p' "$work/idle.out")
    # shellcheck disable=SC2086 # before and after
    printf '%s %s %s\n' "$target" $memory >>"$work/idle"
    if [[ $target == pgtenant ]]; then
      goal_at_most idle "$idle_clients" pgtenant "$(awk '$1 == "pgtenant" { print $3 / 1024 }' "$work/idle")" "$idle_goal_mib" MiB
    fi
    # What so many clients left in memory is no matter of the other cases.
    start_anew "$target"
  done
}

report_idle() {
  printf '| target | before, MiB | with the clients, MiB | KiB/client |\n|---|---:|---:|---:|\n'
  awk -v n="$idle_clients" '{ printf "| %s | %.1f | %.1f | %.2f |\n", $1, $2 / 1024, $3 / 1024, ($3 - $2) / n }' "$work/idle"
  printf '\nVmRSS of a new process, and 3 s after the last client signed in; all are still signed in then.\n'
}

# ---------------------------------------------------------------- what a transaction takes

case_calls() { case_title="What a transaction takes of the pooler, 16 clients"; }

run_calls() {
  local mode target figures
  command -v valgrind >/dev/null || leave_out "allocations" "need valgrind"
  for mode in prepared simple; do
    "case_$mode"
    for target in "${poolers[@]}"; do
      ! in_session_mode "$target" "$mode" || continue
      per_transaction count_calls "$target" || { leave_out "calls" "strace may not attach here" && return; }
      figures=$each
      per_transaction count_wakeups "$target"
      figures+=" $each"
      if command -v valgrind >/dev/null; then
        per_transaction count_allocations "$target"
        figures+=" $each"
        start_anew "$target"
      else
        figures+=' - -'
      fi
      printf '%s %s %s\n' "$mode" "$target" "$figures" >>"$work/calls"
      # shellcheck disable=SC2086 # four figures
      say "$(printf '%-9s 16 clients, %s, per transaction: %s system calls, %s wake-ups, %s allocations of %s bytes' \
        "$mode" "$target" $figures)"
    done
  done
}

report_calls() {
  [[ -s $work/calls ]] || return 0
  printf '| mode | target | system calls | wake-ups | allocations | bytes allocated |\n'
  printf '|---|---|---:|---:|---:|---:|\n'
  awk '{ printf "| %s | %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5, $6 }' "$work/calls"
  printf '\nEach is a run of %s transactions less one of 16, none of them timed. System calls by strace -c -f, wake-ups from\n' $((16 * 501))
  printf 'voluntary_ctxt_switches of all threads, the others by Valgrind (DHAT). Being traced slows the pooler down, so more has\n'
  printf 'come in at each of its reads than in the timed runs, or less.\n'
}
