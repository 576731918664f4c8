#!/usr/bin/env bash
# pgbench against PostgreSQL, PgBouncer and pgtenant in turn, on a throwaway cluster;
# prints throughput, latency and the pooler's own CPU time per transaction as Markdown.
set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'END'
usage: benches/side_by_side.sh [options]

  --rounds N            rounds of every measurement; medians are printed (5)
  --seconds S           length of one measurement (5)
  --clients "A B ..."   numbers of clients ("1 16 64")
  --modes "A B ..."     pgbench's protocols: prepared, extended, simple ("prepared simple")
  --servers N           server connections each pooler may open (20)
  --scale N             pgbench's scale factor (10)
  --pgbouncer PATH      PgBouncer (from PATH or /usr/sbin)
  --pgtenant PATH       pgtenant (target/release/pgtenant, built if it is missing)
  --pg-bin DIR          PostgreSQL's programs (PGTENANT_PG_BIN, PATH, /usr/lib/postgresql/*/bin)
  --without-pgbouncer   leave PgBouncer out
  --without-pgtenant    leave pgtenant out
  --out FILE            also write the report to FILE

example: benches/side_by_side.sh --clients 16 --modes prepared --rounds 3

Needs Linux (CPU time is read from /proc) and pgbench 14 or newer. As root, all servers
run as the user postgres (or nobody). Exit status: 0 done, 1 a run failed, 2 bad usage.
END
}

die() {
  printf 'side_by_side: %s\n' "$1" >&2
  exit "${2:-1}"
}

say() { printf '%s\n' "$*" >&2; }

# ---------------------------------------------------------------- options

rounds=5 seconds=5 servers=20 scale=10
clients_list="1 16 64" modes="prepared simple"
pgbouncer='' pgtenant='' out=''
pg_bin=${PGTENANT_PG_BIN:-}
with_pgbouncer=1 with_pgtenant=1

while (($#)); do
  case $1 in
    --rounds | --seconds | --clients | --modes | --servers | --scale | --pgbouncer | --pgtenant | --pg-bin | --out)
      (($# > 1)) || die "$1 needs a value" 2
      ;;
  esac
  case $1 in
    --rounds) rounds=$2 ;;
    --seconds) seconds=$2 ;;
    --clients) clients_list=$2 ;;
    --modes) modes=$2 ;;
    --servers) servers=$2 ;;
    --scale) scale=$2 ;;
    --pgbouncer) pgbouncer=$2 ;;
    --pgtenant) pgtenant=$2 ;;
    --pg-bin) pg_bin=$2 ;;
    --out) out=$2 ;;
    --without-pgbouncer) with_pgbouncer=0 && shift && continue ;;
    --without-pgtenant) with_pgtenant=0 && shift && continue ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && die "unknown option $1" 2 ;;
  esac
  shift 2
done

read -ra clients_each <<<"$clients_list"
read -ra modes_each <<<"$modes"
((${#clients_each[@]})) || die "--clients is empty" 2
((${#modes_each[@]})) || die "--modes is empty" 2
for number in "$rounds" "$seconds" "$servers" "$scale" "${clients_each[@]}"; do
  [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || die "not a positive whole number: $number" 2
done
for mode in "${modes_each[@]}"; do
  [[ $mode =~ ^(prepared|extended|simple)$ ]] || die "unknown mode $mode" 2
done
most_clients=0
for number in "${clients_each[@]}"; do
  ((number <= most_clients)) || most_clients=$number
done

[[ -r /proc/self/stat ]] || die "needs Linux's /proc" 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ticks_per_second=$(getconf CLK_TCK)
export LC_ALL=C

# ---------------------------------------------------------------- programs

pg_programs=(initdb postgres psql pgbench)
has_postgres() {
  local program
  for program in "${pg_programs[@]}"; do [[ -x $1/$program ]] || return 1; done
}
if [[ -z $pg_bin ]]; then
  mapfile -t places < <(tr ':' '\n' <<<"$PATH" && printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV)
  for place in "${places[@]}"; do
    if has_postgres "$place"; then pg_bin=$place && break; fi
  done
fi
has_postgres "$pg_bin" || die "needs ${pg_programs[*]} in one directory: name it with --pg-bin" 2

pgbouncer_version='none'
prepared_in_transactions=1
if ((with_pgbouncer)); then
  if [[ -z $pgbouncer ]]; then
    pgbouncer=$(PATH=$PATH:/usr/sbin command -v pgbouncer) || with_pgbouncer=0
  fi
  if ((with_pgbouncer)); then
    pgbouncer_version=$("$pgbouncer" --version | sed -n 1p) || die "cannot run $pgbouncer" 2
    [[ $pgbouncer_version =~ ([0-9]+)\.([0-9]+) ]] || die "not PgBouncer: $pgbouncer" 2
    # 1.21 was the first to keep prepared statements in transaction mode.
    ((BASH_REMATCH[1] > 1 || BASH_REMATCH[2] >= 21)) || prepared_in_transactions=0
  else
    say "PgBouncer is not installed: running without it"
  fi
fi

pgtenant_version='none'
if ((with_pgtenant)); then
  if [[ -z $pgtenant ]]; then
    target=${CARGO_TARGET_DIR:-target}
    [[ $target == /* ]] || target=$root/$target
    pgtenant=$target/release/pgtenant
    if [[ ! -x $pgtenant ]]; then
      (cd "$root" && cargo build --release --bin pgtenant) >&2
    elif [[ -n $(find "$root/src" "$root/Cargo.lock" -newer "$pgtenant" -print -quit) ]]; then
      say "warning: the sources are newer than $pgtenant"
    fi
  fi
  pgtenant_version=$("$pgtenant" --version | sed -n 1p) || die "cannot run $pgtenant" 2
fi

# Nothing of the caller's libpq environment may reach pgbench or the servers.
for name in "${!PG@}"; do unset "$name"; done
export PGSSLMODE=disable PGGSSENCMODE=disable PGREQUIREAUTH=scram-sha-256 PGCONNECT_TIMEOUT=10

# ---------------------------------------------------------------- processes

work=$(mktemp -d "${TMPDIR:-/tmp}/side_by_side.XXXXXX")
pids=()      # servers, in the order they were started
bench_pid='' # the pgbench that runs now

stop() {
  local pid=$1 signal=$2 left=50
  kill "-$signal" "$pid" 2>/dev/null || return 0
  while ((left-- > 0)) && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
}

cleanup() {
  local status=$? i log
  trap - EXIT INT TERM HUP
  set +e
  if ((status)); then
    for log in "$work"/*/log "$work"/pgbench.err; do
      [[ -s $log ]] || continue
      say "--- the end of ${log#"$work"/}"
      tail -n 15 "$log" >&2
    done
  fi
  [[ -z $bench_pid ]] || stop "$bench_pid" TERM
  for ((i = ${#pids[@]} - 1; i > 0; i--)); do stop "${pids[i]}" TERM; done
  # PostgreSQL is the first of them; INT is its fast shutdown.
  ((${#pids[@]} == 0)) || stop "${pids[0]}" INT
  wait
  rm -rf "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

as_server=()
owner=$(id -un)
if ((EUID == 0)); then
  owner=postgres
  id "$owner" >/dev/null 2>&1 || owner=nobody
  as_server=(setpriv --reuid "$owner" --regid "$(id -g "$owner")" --clear-groups --)
  chmod 711 "$work"
  "${as_server[@]}" test -x "$work" || die "$owner cannot enter $work: set TMPDIR" 2
fi

# A directory of its own for a server; what is written into it is handed over by `hand_over`.
room() { mkdir -m 700 "$work/$1"; }
hand_over() {
  chmod -R go-rwx "$work/$1"
  ((EUID != 0)) || chown -R "$owner" "$work/$1"
}

# As root a program may lie where the servers' user cannot reach it.
reachable() {
  if ((EUID == 0)); then
    cp "$1" "$work/$2" && chmod 755 "$work/$2" && printf '%s' "$work/$2"
  else
    printf '%s' "$1"
  fi
}

# Starts a server; setpriv replaces itself, so the pid is the server's own.
start() {
  local name=$1
  shift
  : >"$work/$name/log"
  (cd "$work/$name" && exec "${as_server[@]}" "$@") >>"$work/$name/log" 2>&1 </dev/null &
  pids+=("$!")
  started_pid=$!
}

# A free loopback port below the range the kernel hands out to clients.
used_ports=' '
free_port() {
  local port tries=100
  while ((tries-- > 0)); do
    port=$((20000 + RANDOM % 10000))
    [[ $used_ports != *" $port "* ]] || continue
    if ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      used_ports+="$port "
      chosen_port=$port
      return
    fi
  done
  die "found no free port"
}

sql() { # port user password database, SQL on standard input
  PGPASSWORD=$3 "$pg_bin/psql" -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$1" -U "$2" -d "$4" -f -
}

await() { # name pid port user password database
  local left=150 answer
  while ((left-- > 0)); do
    kill -0 "$2" 2>/dev/null || die "$1 ended while it started"
    if answer=$(sql "$3" "$4" "$5" "$6" <<<'select 1' 2>"$work/pgbench.err") && [[ $answer == 1 ]]; then
      : >"$work/pgbench.err"
      return
    fi
    sleep 0.1
  done
  die "$1 does not answer"
}

secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# ---------------------------------------------------------------- the three targets

admin_password=$(secret)
role=bench
password=$(secret)
declare -A port_of=() pid_of=()
targets=()

start_postgres() {
  local connections=$((2 * most_clients + 2 * servers + 20))
  ((connections >= 100)) || connections=100
  room postgres
  printf '%s\n' "$admin_password" >"$work/postgres/admin"
  hand_over postgres
  say "creating a cluster"
  (cd "$work/postgres" && "${as_server[@]}" "$pg_bin/initdb" -D "$work/postgres/data" -U admin \
    --pwfile="$work/postgres/admin" --auth=scram-sha-256 --encoding=UTF8 --no-locale --no-sync) >"$work/pgbench.err" 2>&1
  free_port
  port_of[direct]=$chosen_port
  start postgres "$pg_bin/postgres" -D "$work/postgres/data" -p "$chosen_port" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c "max_connections=$connections" \
    -c shared_buffers=256MB -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off
  await PostgreSQL "$started_pid" "$chosen_port" admin "$admin_password" postgres
  sql "$chosen_port" admin "$admin_password" postgres <<SQL
create role $role login password '$password';
create database bench owner $role;
SQL
  say "filling it (scale $scale)"
  PGPASSWORD=$password "$pg_bin/pgbench" -iq -s "$scale" -h 127.0.0.1 -p "$chosen_port" -U "$role" bench \
    >"$work/pgbench.err" 2>&1
  targets+=(direct)
}

start_pgbouncer() {
  local program session_size=$servers
  program=$(reachable "$pgbouncer" pgbouncer.bin)
  free_port
  port_of[pgbouncer]=$chosen_port
  # In session mode every client holds a server: with fewer of them pgbench would wait for ever.
  ((session_size >= most_clients)) || session_size=$most_clients
  room pgbouncer
  printf '"%s" "%s"\n' "$role" "$password" >"$work/pgbouncer/users"
  cat >"$work/pgbouncer/ini" <<INI
[databases]
bench = host=127.0.0.1 port=${port_of[direct]} dbname=bench
bench_session = host=127.0.0.1 port=${port_of[direct]} dbname=bench pool_mode=session pool_size=$session_size
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $chosen_port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $work/pgbouncer/users
client_tls_sslmode = disable
server_tls_sslmode = disable
pool_mode = transaction
default_pool_size = $servers
max_client_conn = $((most_clients + 100))
log_connections = 0
log_disconnections = 0
log_stats = 0
INI
  if ((prepared_in_transactions)); then
    printf 'max_prepared_statements = 200\n' >>"$work/pgbouncer/ini"
  fi
  hand_over pgbouncer
  start pgbouncer "$program" "$work/pgbouncer/ini"
  pid_of[pgbouncer]=$started_pid
  await PgBouncer "$started_pid" "$chosen_port" "$role" "$password" bench
  targets+=(pgbouncer)
}

write_pgtenant_config() {
  printf '%s\n' "$password" >"$work/pgtenant/bench.password"
  cat >"$work/pgtenant/pgtenant.toml" <<TOML
[listen]
tcp = ["127.0.0.1:${port_of[pgtenant]}"]
max_clients = $((most_clients + 100))

[servers.main]
host = "127.0.0.1"
port = ${port_of[direct]}
tls = "disable"

[databases.bench]
server = "main"
dbname = "bench"
pool_mode = "transaction"
[databases.bench.pool]
size = $servers
wait_timeout = "120s"

[roles.$role]
sign_in = ["scram"]
password = { file = "bench.password" }
server_password = { file = "bench.password" }
tenancy = "none"
TOML
}

start_pgtenant() {
  local program left=150
  program=$(reachable "$pgtenant" pgtenant.bin)
  free_port
  port_of[pgtenant]=$chosen_port
  room pgtenant
  write_pgtenant_config
  hand_over pgtenant
  start pgtenant "$program" serve --config "$work/pgtenant/pgtenant.toml"
  pid_of[pgtenant]=$started_pid
  until grep -qF "listening for clients on 127.0.0.1:$chosen_port" "$work/pgtenant/log"; do
    kill -0 "$started_pid" 2>/dev/null || die "pgtenant ended while it started"
    ((left-- > 0)) || die "pgtenant does not say that it listens"
    sleep 0.1
  done
  await pgtenant "$started_pid" "$chosen_port" "$role" "$password" bench
  targets+=(pgtenant)
}

# ---------------------------------------------------------------- cases
#
# A case is a function that says what is run and how a client signs in. One in which every
# client brings a token is another such function, its name added to `cases`, its role to
# `write_pgtenant_config`, and its targets cut down to those that can run it.

cases=(plain)

case_plain() {
  case_title="one row by primary key, tenancy = \"none\""
  case_role=$role
  case_environment=(PGPASSWORD="$password") # may hold PGOPTIONS too
  case_targets=("${targets[@]}")
  case_script=$work/plain.sql
  cat >"$case_script" <<SQL
\\set aid random(1, 100000 * $scale)
select abalance from pgbench_accounts where aid = :aid;
SQL
}

# ---------------------------------------------------------------- measuring

cpu_ticks() { # user and system time of a whole process, all threads
  local line=
  read -r line 2>/dev/null <"/proc/$1/stat" || die "the pooler ended during a run"
  # shellcheck disable=SC2086 # the fields after the name, which may hold spaces
  set -- ${line##*) }
  cpu=$((${12} + ${13}))
}

in_session_mode() { # target mode
  [[ $1 == pgbouncer && $2 != simple ]] && ((!prepared_in_transactions))
}

# Runs pgbench once and sets tps, latency (ms) and cpu_us. A pooler's CPU time is taken between
# pgbench's first progress line and its last, so that signing in (SCRAM is dear) is not in it.
measure() { # target mode clients seconds
  local target=$1 mode=$2 clients=$3 duration=$4
  local database=bench pid=${pid_of[$1]:-} line status=0 jobs=2 before=0 transactions
  ! in_session_mode "$target" "$mode" || database=bench_session
  ((clients > 1)) || jobs=1
  : >"$work/samples"
  : >"$work/pgbench.err"
  if [[ -n $pid ]]; then cpu_ticks "$pid" && before=$cpu; fi
  env "${case_environment[@]}" "$pg_bin/pgbench" -n -M "$mode" -c "$clients" -j "$jobs" -T "$duration" -P 1 \
    -f "$case_script" -h 127.0.0.1 -p "${port_of[$target]}" -U "$case_role" "$database" \
    >"$work/pgbench.out" 2>"$work/progress" </dev/null &
  bench_pid=$!
  while IFS= read -r line; do
    if [[ $line =~ ^progress:\ [0-9.]+\ s,\ ([0-9.]+)\ tps ]]; then
      if [[ -n $pid ]]; then
        cpu_ticks "$pid"
        printf '%s %s %s\n' "$EPOCHREALTIME" "$cpu" "${BASH_REMATCH[1]}" >>"$work/samples"
      fi
    else
      printf '%s\n' "$line" >>"$work/pgbench.err"
    fi
  done <"$work/progress"
  wait "$bench_pid" || status=$?
  bench_pid=''
  ((status == 0)) || die "pgbench failed against $target ($mode, $clients clients)"

  tps=$(sed -n 's/^tps = \([0-9.]*\) (.*without initial connection time.*/\1/p' "$work/pgbench.out")
  latency=$(sed -n 's/^latency average = \([0-9.]*\) ms$/\1/p' "$work/pgbench.out")
  transactions=$(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' "$work/pgbench.out")
  [[ -n $tps && -n $latency && -n $transactions && $transactions != 0 ]] ||
    die "cannot read pgbench's answer from $target ($mode, $clients clients)"
  if grep -q '^number of failed transactions: [1-9]' "$work/pgbench.out"; then
    die "transactions failed against $target ($mode, $clients clients)"
  fi

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

run_case() {
  local case=$1 mode clients round i n target name
  "case_$case"
  n=${#case_targets[@]}
  for mode in "${modes_each[@]}"; do
    # The first run opens the servers' connections and fills the caches; it is not counted.
    for target in "${case_targets[@]}"; do measure "$target" "$mode" "$most_clients" 1; done
    for clients in "${clients_each[@]}"; do
      for ((round = 1; round <= rounds; round++)); do
        for ((i = 0; i < n; i++)); do
          target=${case_targets[(i + round - 1) % n]}
          measure "$target" "$mode" "$clients" "$seconds"
          name=$target
          ! in_session_mode "$target" "$mode" || name='pgbouncer(session)'
          printf '%s %s %s %s %s %s %s %s\n' \
            "$case" "$mode" "$clients" "$round" "$name" "$tps" "$latency" "$cpu_us" >>"$work/results"
          say "$(printf '%-8s %3s clients, round %s/%s  %-18s %9.0f tps  %7.3f ms  %s us CPU' \
            "$mode" "$clients" "$round" "$rounds" "$name" "$tps" "$latency" "$(
              [[ $cpu_us == - ]] && printf -- - || printf '%.1f' "$cpu_us"
            )")"
        done
      done
    done
  done
}

# ---------------------------------------------------------------- the report

cpu_model() {
  local model
  model=$(sed -n 's/^model name[[:space:]]*: *//p' /proc/cpuinfo | sed -n 1p)
  printf '%s' "${model:-$(uname -m)}"
}

report_header() {
  printf '# pgbench side by side\n\n'
  printf -- '- Date: %s\n' "$(date -u '+%Y-%m-%d %H:%M UTC')"
  printf -- '- Machine: %s, %s cores, %s; load before the runs: %s\n' "$(cpu_model)" "$(nproc)" "$(uname -sr)" "$load_before"
  printf -- '- Server: %s, shared_buffers 256MB, fsync off, scale %s; client: %s; all on one machine over loopback, SCRAM, no TLS\n' \
    "$("$pg_bin/postgres" --version)" "$scale" "$("$pg_bin/pgbench" --version)"
  printf -- '- Poolers: %s; %s; transaction mode, %s server connections each\n' \
    "PgBouncer: ${pgbouncer_version#PgBouncer }" "pgtenant: ${pgtenant_version#pgtenant }" "$servers"
  printf -- '- Runs: %s rounds of %s s each, targets in turn and rotated every round; -j 2 (-j 1 for one client)\n' "$rounds" "$seconds"
  printf -- '- Figures: medians over the rounds; "x PgBouncer" is the median of the ratios within each round; CPU is the\n'
  printf '  user and system time of the pooler alone, all its threads'
  if ((seconds > 2)); then printf ', from the first second of a run to its last\n'; else printf ', signing in included\n'; fi
  if ((with_pgbouncer && !prepared_in_transactions)); then
    printf -- '- This PgBouncer has no prepared statements in transaction mode (1.21 is the first): its prepared and extended rows\n'
    printf '  are in session mode with a server for every client, which is less work; compare with care\n'
  fi
  ((with_pgbouncer)) || printf -- '- No PgBouncer: run without it, no ratios\n'
}

report_case() { # reads $work/results
  printf '\n## %s\n\n' "$case_title"
  printf '| mode | clients | target | tps | x PgBouncer | latency ms | CPU us/transaction | tps min..max |\n'
  printf '|---|---:|---|---:|---:|---:|---:|---:|\n'
  awk -v only="$1" '
    function median(list,   a, n, i, j, x) {
      n = split(list, a, " ")
      for (i = 2; i <= n; i++) {
        x = a[i] + 0
        for (j = i - 1; j > 0 && a[j] + 0 > x; j--) a[j + 1] = a[j]
        a[j + 1] = x
      }
      return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
    }
    $1 != only { next }
    {
      group = $2 " " $3; key = group " " $5
      if (!(group in seen)) { seen[group] = 1; groups[++g] = group }
      if (!(key in low)) { members[group] = members[group] " " $5; low[key] = high[key] = $6 }
      tps[key] = tps[key] " " $6
      latency[key] = latency[key] " " $7
      if ($8 != "-") cpu[key] = cpu[key] " " $8
      if ($6 + 0 < low[key] + 0) low[key] = $6
      if ($6 + 0 > high[key] + 0) high[key] = $6
      at[key, $4] = $6
      if ($5 ~ /^pgbouncer/) peer[group] = key
      if ($4 > last) last = $4
    }
    END {
      for (i = 1; i <= g; i++) {
        group = groups[i]
        split(group, part, " ")
        # In one order, whichever target came first in the first round.
        n = split("direct pgbouncer pgbouncer(session) pgtenant", order, " ")
        for (m = 1; m <= n; m++) {
          key = group " " order[m]
          if (!(key in tps)) continue
          ratio = "-"
          if (group in peer) {
            ratios = ""
            for (r = 1; r <= last; r++) ratios = ratios " " at[key, r] / at[peer[group], r]
            ratio = sprintf("%.2f", median(ratios))
          }
          name = order[m]
          sub(/\(/, " (", name)
          printf "| %s | %s | %s | %.0f | %s | %.3f | %s | %.0f..%.0f |\n", part[1], part[2], name,
            median(tps[key]), ratio, median(latency[key]),
            (key in cpu) ? sprintf("%.1f", median(cpu[key])) : "-", low[key], high[key]
        }
      }
    }' "$work/results"
}

# ---------------------------------------------------------------- the whole

[[ -z $out ]] || : >>"$out" || die "cannot write $out" 2
read -r load_before _ </proc/loadavg
mkfifo "$work/progress"
start_postgres
((!with_pgbouncer)) || start_pgbouncer
((!with_pgtenant)) || start_pgtenant
for case in "${cases[@]}"; do run_case "$case"; done
{
  report_header
  for case in "${cases[@]}"; do
    "case_$case"
    report_case "$case"
  done
} >"$work/report"
cat "$work/report"
[[ -z $out ]] || cat "$work/report" >"$out"
