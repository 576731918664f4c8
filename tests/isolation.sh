#!/usr/bin/env bash
# The sequences of tests/it/isolation/ against another pooler; writes RESULTS.md beside them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'END'
usage: tests/isolation.sh [--target TARGET]

  --target TARGET   pgbouncer (the distribution's, the default), a PgBouncer's path, or postgres://127.0.0.1:PORT/ of a pooler
                    that runs, with one server connection, before the database that the tests make

example: make isolation ARGS='--target /usr/local/bin/pgbouncer'
END
}

target=pgbouncer
while (($#)); do
    case $1 in
    --target)
        (($# > 1)) || { usage >&2 && exit 2; }
        target=$2
        shift 2
        ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
    esac
done
[[ $target != */* || $target == postgres://* || -x $target ]] || {
    echo "isolation: there is no program $target" >&2
    exit 2
}
PGTENANT_ISOLATION_TARGET=$target cargo test --locked --test it -- isolation::report --nocapture
