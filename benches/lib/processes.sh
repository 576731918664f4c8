# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables are shared with benches/side_by_side.sh
# Servers on loopback, in a temporary folder, as an unprivileged user, and gone afterwards.

work=$(mktemp -d "${TMPDIR:-/tmp}/side_by_side.XXXXXX")
pids=()      # servers, in the order they were started
stop_patience=50 start_patience=150 # tenths of a second
bench_pid='' # the load that runs now
trace_pid='' # the strace that runs now

stop() {
  local pid=$1 signal=$2 left=$stop_patience
  kill "-$signal" "$pid" 2>/dev/null || return 0
  while ((left-- > 0)) && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
}

cleanup() {
  local status=$? i log
  trap - EXIT INT TERM HUP
  set +e
  if ((status)); then
    for log in "$work"/*/log "$work"/err; do
      [[ -s $log ]] || continue
      say "--- the end of ${log#"$work"/}"
      tail -n 15 "$log" >&2
    done
  fi
  [[ -z $bench_pid ]] || stop "$bench_pid" TERM
  [[ -z $trace_pid ]] || stop "$trace_pid" INT
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
reachable() { # path name
  if ((EUID == 0)); then
    [[ -x $work/$2.bin ]] || { cp "$1" "$work/$2.bin" && chmod 755 "$work/$2.bin"; }
    printf '%s' "$work/$2.bin"
  else
    printf '%s' "$1"
  fi
}

# Starts a server, under a program that watches it if one is named; setpriv replaces itself, so the pid is the server's own.
under=()
start() {
  local name=$1
  shift
  : >"$work/$name/log"
  (cd "$work/$name" && exec "${as_server[@]}" "${under[@]}" "$@") >>"$work/$name/log" 2>&1 </dev/null &
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
  local left=$start_patience answer
  while ((left-- > 0)); do
    kill -0 "$2" 2>/dev/null || die "$1 ended while it started"
    if answer=$(sql "$3" "$4" "$5" "$6" <<<'select 1' 2>"$work/err") && [[ $answer == 1 ]]; then
      : >"$work/err"
      return
    fi
    sleep 0.1
  done
  die "$1 does not answer"
}

secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# The pgtenant that was started last, in this room.
await_listening() { # room, port
  local left=$start_patience
  until grep -qF "listening for clients on 127.0.0.1:$2" "$work/$1/log"; do
    kill -0 "$started_pid" 2>/dev/null || die "pgtenant ended while it started"
    ((left-- > 0)) || die "pgtenant does not say that it listens"
    sleep 0.1
  done
}
