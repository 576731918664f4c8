#!/usr/bin/env bash
# Runs the fuzz targets, as many at a time as there are processors, and says what became of each in a line.
# Usage: fuzz/run.sh [--seconds N] [target]...    (all of them, a minute each)
# With FUZZ_SEED=N, every machine runs the same inputs in the same order: a million of them, or as many as it has time for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The product has no unsafe code in which a sanitizer would find something, and without one the stable toolchain will do.
readonly SANITIZER=(--sanitizer none)
host=$(rustc -vV | sed -n 's/^host: //p')
readonly built="${CARGO_TARGET_DIR:-fuzz/target}/$host/release"
# What is found on the way: kept for the next run, and out of git; but where a run is to be repeated, each begins alike.
if [ -n "${FUZZ_SEED:-}" ]; then
    found=${FUZZ_FOUND:-$(mktemp -d)}
    [ -n "${FUZZ_FOUND:-}" ] || trap 'rm -rf "$found"' EXIT
    export FUZZ_FOUND=$found
else
    found="${CARGO_TARGET_DIR:-fuzz/target}/corpus"
fi
readonly found
readonly REPEATED_RUNS=1000000

# The last number behind this word in a log.
last() { # word, log
    grep -oE "$1 *[0-9]+" "$2" | tail -n 1 | grep -oE '[0-9]+$' || echo 0
}

run_one() { # seconds, target
    local seconds=$1 target=$2 log options=() status=0
    log=$(mktemp)
    mkdir -p "$found/$target" "fuzz/artifacts/$target"
    if [ -n "${FUZZ_SEED:-}" ]; then
        # In what order a folder lists its files, and when it is read again, depends on the machine.
        options+=("-seed=$FUZZ_SEED" "-runs=$REPEATED_RUNS" -reload=0
            "-seed_inputs=$(find "fuzz/corpus/$target" -type f | LC_ALL=C sort | paste -s -d ,)")
    else
        options+=("fuzz/corpus/$target")
    fi
    [ ! -e "fuzz/dictionaries/$target.dict" ] || options+=("-dict=fuzz/dictionaries/$target.dict")
    "$built/$target" "$found/$target" "-artifact_prefix=fuzz/artifacts/$target/" \
        "-max_total_time=$seconds" -timeout=20 -print_final_stats=1 "${options[@]}" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        cat "$log"
        printf '%-14s FAILED; once more: cargo fuzz run %s %s %s\n' "$target" "${SANITIZER[*]}" "$target" \
            "$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)"
    else
        printf '%-14s %9d executions in %3d s, coverage %5d, %4d new inputs\n' "$target" \
            "$(last 'number_of_executed_units:' "$log")" "$(last 'runs in' "$log")" "$(last 'cov:' "$log")" \
            "$(last 'new_units_added:' "$log")"
    fi
    rm -f "$log"
    return "$status"
}

if [ "${1:-}" = --one ]; then
    run_one "$2" "$3"
    exit
fi
seconds=60
if [ "${1:-}" = --seconds ]; then
    seconds=$2
    shift 2
fi
if [ $# -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
    set -- "${targets[@]}"
fi
cargo fuzz build --release "${SANITIZER[@]}"
# xargs fails if one of them does.
printf '%s\n' "$@" | xargs -P "$(getconf _NPROCESSORS_ONLN)" -I '{}' fuzz/run.sh --one "$seconds" '{}'
