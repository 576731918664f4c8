# shellcheck shell=sh
# Keeps a throwaway PostgreSQL for the process that holds the other end of standard input, and clears up after it,
# however it ends. $1: PostgreSQL's programs, $2: the directory.
bin=$1
dir=$2
pid=

start() {
    "$bin/postgres" -D "$dir/data" -p "$1" </dev/null >>"$dir/log" 2>&1 &
    pid=$!
}

# A fast shutdown; when it takes too long, an immediate one; then none of its choosing.
stop() {
    [ -n "$pid" ] || return 0
    for signal in INT QUIT KILL; do
        kill -s "$signal" "$pid" 2>/dev/null || break
        tries=0
        while [ "$tries" -lt 100 ] && kill -s 0 "$pid" 2>/dev/null; do
            sleep 0.05
            tries=$((tries + 1))
        done
    done
    wait "$pid" 2>/dev/null
    rm -f "$dir/data/postmaster.pid"
    pid=
}

if "$bin/initdb" -D "$dir/data" -N --auth=scram-sha-256 --pwfile="$dir/password" --encoding=UTF8 --locale=C \
    -U postgres </dev/null >>"$dir/log" 2>&1; then
    cat "$dir/settings" >>"$dir/data/postgresql.conf"
else
    echo 'FATAL:  initdb failed' >>"$dir/log"
fi
rm -f "$dir/password"

# Standard input ends when its owner lets go of it, or is no more.
while read -r word port; do
    case $word in
    start) stop && start "$port" ;;
    stop) stop ;;
    esac
done
stop
cd /
rm -rf "$dir" || { sleep 1 && rm -rf "$dir"; }
