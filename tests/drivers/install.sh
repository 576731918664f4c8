#!/usr/bin/env bash
# Installs drivers in the versions that are committed here, outside the clone. What cannot be had is told as a line
# `absent<TAB>driver<TAB>reason` on standard output, and the rest goes on.
# Usage: tests/drivers/install.sh CACHE DRIVER...
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$1
shift
wanted=("$@")
mkdir -p "$cache"
log=$cache/install.log
: >"$log"
export PATH="$PATH:$HOME/.cargo/bin"

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Also from inside what is logged.
exec 3>&2
say() { echo "drivers: $*" >&3; }

is_wanted() {
    local name one
    for name in "$@"; do
        for one in "${wanted[@]}"; do [ "$name" != "$one" ] || return 0; done
    done
    return 1
}

# absent REASON DRIVER...: the reason, and the last that was said about it.
absent() {
    local reason=$1 name
    shift
    reason="$reason ($(tail -n 1 "$log" | tr '\t' ' ' | cut -c1-120))"
    for name in "$@"; do
        if is_wanted "$name"; then printf 'absent\t%s\t%s\n' "$name" "$reason"; fi
    done
}

# Debian's packages; elsewhere what is there is used.
packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "installing ${missing[*]}"
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
} >>"$log" 2>&1

# once NAME FILE...: runs the function NAME unless it succeeded with these very files.
once() {
    local name=$1 mark
    shift
    mark="$cache/$name.done"
    if [ "$(cat "$@" | cksum)" = "$(cat "$mark" 2>/dev/null)" ]; then return 0; fi
    say "installing for $name"
    if "$name" >>"$log" 2>&1; then cat "$@" | cksum >"$mark"; else return 1; fi
}

python() {
    command -v python3 >/dev/null || return 1
    # Debian's Python comes without venv.
    [ -x "$cache/venv/bin/pip" ] || python3 -m venv "$cache/venv" || { packages python3-venv && python3 -m venv "$cache/venv"; } || return 1
    "$cache/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/python/requirements.txt"
}

node_modules() {
    mkdir -p "$cache/node" &&
        cp "$here"/node/*.mjs "$here"/node/package*.json "$cache/node/" &&
        (cd "$cache/node" && npm ci --silent --no-audit --no-fund --ignore-scripts)
}

rust() {
    CARGO_TARGET_DIR="$cache/rust-target" cargo build --quiet --locked --release --manifest-path "$here/rust/Cargo.toml"
}

java_class() {
    mkdir -p "$cache/java" && javac -cp /usr/share/java/postgresql.jar -d "$cache/java" "$here/java/Cases.java"
}

# Debian's pgx is a GOPATH of its own.
go_program() {
    local version
    version=$(dpkg-query -W -f '${Version}' golang-github-jackc-pgx-v4-dev) || return 1
    mkdir -p "$cache/go" &&
        GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE="$cache/go/cache" go build -o "$cache/go/cases" \
            -ldflags "-X main.version=${version%-*}" "$here/go/main.go"
}

if is_wanted "psycopg 3" "psycopg 3, system libpq" asyncpg SQLAlchemy Django; then
    once python "$here/python/requirements.txt" ||
        absent "no virtual environment with its packages" "psycopg 3" "psycopg 3, system libpq" asyncpg SQLAlchemy Django
    packages libpq5 || true
fi
if is_wanted node-postgres postgres.js Drizzle; then
    command -v npm >/dev/null || packages nodejs npm || true
    once node_modules "$here"/node/* || absent "no node, or npm cannot install" node-postgres postgres.js Drizzle
fi
if is_wanted tokio-postgres sqlx diesel-async; then
    once rust "$here"/rust/Cargo.* "$here"/rust/src/*.rs "$here"/rust/src/bin/*.rs ||
        absent "cargo cannot build it" tokio-postgres sqlx diesel-async
fi
if is_wanted pgjdbc; then
    packages libpostgresql-jdbc-java || true
    command -v javac >/dev/null || packages default-jdk-headless || true
    once java_class "$here/java/Cases.java" || absent "no JDK, or no driver" pgjdbc
fi
if is_wanted pgx; then
    packages golang-go golang-github-jackc-pgx-v4-dev || true
    once go_program "$here/go/main.go" || absent "no Go, or no pgx" pgx
fi
