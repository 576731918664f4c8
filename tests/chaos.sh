#!/usr/bin/env bash
# The chaos suite at full size, part by part in release mode; each writes its section of tests/chaos/RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'END'
usage: tests/chaos.sh [--only 'PART...'] [--seed N] [--pgbouncer PATH] [--size NAME=N]...

  --only 'PART...'   of: faults sigterm reloads neighbours connections soak (all of them, about an hour); the other
                     sections of RESULTS.md stay
  --seed N           as a run before it printed
  --pgbouncer PATH   its figures beside ours, at a fifth of the faults and SIGTERMs and a sixth of the soak; 1.21 or later, which keeps
                     prepared statements
  --size NAME=N      another size than the full one: FAULTS=500 ORGANIZATIONS=50 SIGTERMS=100 RELOADS=1000 NEIGHBOUR_SECONDS=20 NOISY=300
                     QUIET=50 CONNECTIONS=50000 AT_ONCE=2000 SOAK_SECONDS=1800

example: make chaos ARGS="--only 'faults sigterm' --size FAULTS=60"
END
}

mistake() {
    echo "chaos: $1" >&2
    usage >&2
    exit 2
}

declare -A tests=(
    [faults]=chaos::outages::no_transfer
    [sigterm]=chaos::shutdown
    [reloads]=chaos::reloads
    [neighbours]=chaos::neighbours
    [connections]=chaos::storm
    [soak]=chaos::outages::soak
)
only='faults sigterm reloads neighbours connections soak'
export CHAOS_FULL=1
while (($#)); do
    case $1 in
    --only | --seed | --pgbouncer | --size) (($# > 1)) || mistake "$1 wants a value" ;;
    -h | --help) usage && exit 0 ;;
    *) mistake "what is $1?" ;;
    esac
    case $1 in
    --only) only=$2 ;;
    --seed) export CHAOS_SEED=$2 ;;
    --pgbouncer)
        [[ -x $2 ]] || mistake "there is no program $2"
        version=$("$2" --version | sed -n 's/^PgBouncer \([0-9]*\.[0-9]*\).*/\1/p')
        printf '1.21\n%s\n' "${version:-0}" | sort -VC || mistake "PgBouncer 1.21 or later is wanted; $2 is ${version:-something else}"
        export CHAOS_PGBOUNCER=$2
        ;;
    --size)
        [[ $2 =~ ^[A-Z_]+=[0-9]+$ ]] || mistake "$2 is no size"
        export "CHAOS_$2"
        ;;
    esac
    shift 2
done

# Two ends of each connection, here and in the proxy.
[[ $(ulimit -n) == unlimited ]] || (($(ulimit -n) >= 8192)) || ulimit -n 8192 || {
    echo "chaos: 8192 descriptors are wanted, and there are $(ulimit -n): fewer at once with --size AT_ONCE=N" >&2
}
failed=()
for part in $only; do
    [[ -v tests[$part] ]] || mistake "there is no part $part"
    cargo test --locked --release --test it -- "${tests[$part]}" --nocapture --test-threads 1 || failed+=("$part")
done
((${#failed[@]} == 0)) || {
    echo "chaos: failed: ${failed[*]}" >&2
    exit 1
}
