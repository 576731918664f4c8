#!/usr/bin/env bash
# psql: cases. Each prints a line: name, seconds, outcome.
set -uo pipefail

psql=${PSQL:-psql}

# What psql says to the script on standard input: SQLSTATEs for errors, everything on one line.
run() {
    "$psql" -XAtq -v VERBOSITY=sqlstate "$@" 2>&1 | tr '\n' ' '
}

connect() {
    run <<<"SELECT 1, current_setting('application_name') = '$PGAPPNAME', current_setting('server_version_num');"
}

# SQL's own PREPARE belongs to the session, so here it stays inside a transaction.
prepared() {
    run <<'SQL'
BEGIN;
PREPARE plus AS SELECT $1::int + 1;
EXECUTE plus(1);
EXECUTE plus(2);
DEALLOCATE plus;
COMMIT;
SQL
}

transaction() {
    run <<'SQL'
BEGIN;
INSERT INTO items (id) VALUES (1);
SAVEPOINT s;
INSERT INTO items (id) VALUES (2);
ROLLBACK TO s;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SHOW transaction_isolation;
INSERT INTO items (id) VALUES (3);
SELECT 'skipped';
ROLLBACK;
BEGIN;
INSERT INTO items (id) VALUES (4);
COMMIT AND CHAIN;
INSERT INTO items (id) VALUES (5);
ROLLBACK;
SELECT array_agg(id ORDER BY id) FROM items;
SQL
}

error() {
    run <<'SQL'
INSERT INTO items (id) VALUES (1);
INSERT INTO items (id) VALUES (1);
SELECT 1/0;
SELECT nowhere;
SELEC;
SELECT 1;
SQL
}

# Several statements in one Query are one transaction, unless they say otherwise.
batch() {
    run -c "INSERT INTO items (id) VALUES (1); SELECT 1/0; INSERT INTO items (id) VALUES (2)" \
        -c "INSERT INTO items (id) VALUES (3); COMMIT; INSERT INTO items (id) VALUES (4); SELECT 1/0" \
        -c "SELECT array_agg(id ORDER BY id) FROM items"
}

copy() {
    run <<'SQL'
DELETE FROM own_loads;
COPY loads (id, body) FROM STDIN (DELIMITER ',');
1,one
2,two
\.
COPY loads (id, body) FROM STDIN (DELIMITER ',');
rubbish
\.
COPY (SELECT id, body FROM own_loads ORDER BY id) TO STDOUT;
\copy (SELECT repeat('x', 1000) FROM generate_series(1, 10000)) TO PROGRAM 'wc -c'
SQL
}

# FETCH_COUNT makes psql declare a cursor in a transaction of its own.
cursor() {
    run -v FETCH_COUNT=50 -c 'SELECT generate_series(1, 1000)' | tail -c 30
    run <<'SQL'
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT generate_series(1, 1000);
MOVE 100 IN c;
FETCH 2 FROM c;
FETCH BACKWARD 1 FROM c;
COMMIT;
SQL
}

# SIGINT once the server is at work.
cancel() {
    local text="SELECT pg_sleep(20) /* $PGAPPNAME */" said tries=0
    said=$(mktemp)
    "$psql" -XAtq -v VERBOSITY=sqlstate -c "$text" >"$said" 2>&1 &
    until [ "$(run -c "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '$text'")" = "1 " ] ||
        [ $((tries += 1)) -gt 100 ]; do sleep 0.1; done
    kill -INT $!
    wait $!
    tr '\n' ' ' <"$said"
    rm -f "$said"
    run -c 'SELECT 1'
}

setting() {
    PGOPTIONS='-c work_mem=5MB' run <<'SQL'
SHOW work_mem;
SET work_mem = '7MB';
SHOW work_mem;
BEGIN;
SET LOCAL work_mem = '9MB';
SHOW work_mem;
COMMIT;
SHOW work_mem;
RESET work_mem;
SHOW work_mem;
SET client_encoding = 'LATIN1';
\encoding
SET statement_timeout = 200;
SELECT pg_sleep(20);
SQL
}

notice() {
    run -v VERBOSITY=default <<'SQL'
DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$;
SQL
}

large() {
    run -c "SELECT repeat('x', 20000000)" | wc -c
    run -c "SELECT n, md5(n::text) FROM generate_series(1, 100000) n" | wc -c
}

catalogue() {
    run -c '\d items' -c '\dt' -c '\l cases' | sed 's/=[^|]*//g'
}

concurrent() {
    local n k pids=()
    for n in 0 1 2 3 4 5 6 7; do
        for k in 0 1 2 3 4; do echo "INSERT INTO items (id) VALUES ($((n * 100 + k)));"; done | run &
        pids+=($!)
    done
    wait "${pids[@]}"
    run -c 'SELECT count(*), sum(id) FROM items'
}

session_state() {
    run <<'SQL'
CREATE TEMP TABLE kept (n int);
INSERT INTO kept VALUES (1);
SELECT * FROM kept;
SQL
}

listen() {
    run <<'SQL' | sed 's/ PID [0-9]*//'
LISTEN cases;
NOTIFY cases, 'hello';
SELECT 1;
SQL
}

tenant() {
    local owners
    owners=$(run -c 'INSERT INTO items (id) VALUES (1)' -c 'SELECT owner FROM items')
    if [ "$owners" = "$CASES_TENANT " ]; then echo own; else echo "$owners"; fi
}

token() {
    run <<SQL | sed "s/$CASES_TENANT/own/g; s/$CASES_OTHER/other/g; s/ $//"
SELECT owner();
SET pgtenant.token = '$CASES_TOKEN';
SELECT owner();
RESET pgtenant.token;
SELECT owner();
SQL
}

# TLS, with the server's certificate looked at; a password also bound to it.
encrypted() {
    local binding=require
    [ -z "${CASES_TENANT:-}" ] || binding=prefer
    PGSSLMODE=verify-full PGSSLROOTCERT=$CASES_ROOT PGCHANNELBINDING=$binding run -c '\conninfo' -c 'SELECT 1' |
        sed -n 's/^.*SSL connection (protocol: \([^,]*\).*) \(.*\)$/\1 \2/p'
}

cases=(connect encrypted prepared transaction error batch copy cursor cancel setting notice large catalogue concurrent session_state
    listen)
[ -z "${CASES_TENANT:-}" ] || cases+=(tenant)
[ -z "${CASES_TOKEN:-}" ] || cases+=(token)

printf 'version\t0\t%s\n' "$("$psql" --version)"
until=${CASES_UNTIL:-0}
while :; do
    for name in "${cases[@]}"; do
        run -c 'DELETE FROM items' >/dev/null
        start=$EPOCHREALTIME
        outcome=$("$name" | tr '\n\t' '  ')
        took=$(((${EPOCHREALTIME/./} - ${start/./}) / 1000))
        printf '%s\t%d.%03d\t%s\n' "$name" $((took / 1000)) $((took % 1000)) "${outcome% }"
    done
    [ "$EPOCHSECONDS" -lt "${until%.*}" ] || break
done
