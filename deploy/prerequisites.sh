#!/usr/bin/env bash
# Installs what building and running need and this machine lacks: Rust, a C compiler, PostgreSQL; and what is asked for.
# Usage: deploy/prerequisites.sh [psql | pgbench | pgbouncer | openssl | strace | libclang]...
set -euo pipefail

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

has_postgres() { # programs
    local dir program dirs=("${PGTENANT_PG_BIN:-}")
    local IFS=:
    # shellcheck disable=SC2206 # split at colons is what PATH is for
    dirs+=($PATH)
    dirs+=(/usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin)
    for dir in "${dirs[@]}"; do
        [ -n "$dir" ] || continue
        for program in "$@"; do [ -x "$dir/$program" ] || continue 2; done
        return 0
    done
    return 1
}

# Where bindgen looks for it.
has_libclang() {
    local place
    for place in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"/libclang*} /usr/lib/llvm*/lib/libclang.* \
        /usr/lib/*/libclang* /usr/lib64/libclang.so* /usr/lib/libclang.so* /opt/homebrew/opt/llvm*/lib/libclang.dylib \
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        [ ! -e "$place" ] || [[ $place == *libclang-cpp* ]] || return 0
    done
    return 1
}

# What is missing, in our own words.
missing=()
command -v cc >/dev/null || missing+=(compiler)
has_postgres initdb postgres || missing+=(postgres)
for wanted in "$@"; do
    case $wanted in
    pgbench) has_postgres initdb postgres psql pgbench || missing+=(pgbench) ;;
    # Linux alone has it.
    strace) command -v strace >/dev/null || [ "$(uname)" != Linux ] || missing+=(strace) ;;
    libclang) has_libclang || missing+=(libclang) ;;
    # Debian has pgbouncer where only root looks.
    psql | pgbouncer | openssl) PATH=$PATH:/usr/sbin command -v "$wanted" >/dev/null || missing+=("$wanted") ;;
    *) echo "$0: $wanted is not known" >&2 && exit 2 ;;
    esac
done
command -v cargo >/dev/null || command -v curl >/dev/null || missing+=(curl)

# The package of each manager: manager, then what is missing.
package() {
    case $1-$2 in
    apt-compiler) echo build-essential ;;
    apt-postgres) echo postgresql ;;
    apt-psql) echo postgresql-client ;;
    dnf-compiler) echo gcc ;;
    dnf-postgres) echo postgresql-server ;;
    dnf-psql) echo postgresql ;;
    apk-compiler) echo build-base ;;
    apk-postgres) echo postgresql ;;
    apk-psql) echo postgresql-client ;;
    brew-compiler) echo gcc ;;
    brew-postgres) echo postgresql@17 ;;
    brew-psql) echo libpq ;;
    apt-libclang) echo libclang-dev ;;
    dnf-libclang) echo clang-devel ;;
    apk-libclang) echo clang-dev ;;
    brew-libclang) echo llvm ;;
    apt-pgbench) echo postgresql ;;
    dnf-pgbench) echo postgresql-contrib ;;
    apk-pgbench) echo postgresql-client ;;
    brew-pgbench) echo postgresql@17 ;;
    *) echo "$2" ;;
    esac
}

install() {
    local manager=$1 what packages=()
    shift
    for what in "$@"; do packages+=("$(package "$manager" "$what")"); done
    echo "installing ${packages[*]}"
    case $manager in
    apt)
        as_root apt-get update -qq
        # Our servers are throwaways: the package need not make a cluster of its own and start it.
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            as_root mkdir -p /etc/postgresql-common
            echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
        fi
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
        # Its package starts it, on the port of our demo.
        case " ${packages[*]} " in
        *" pgbouncer "*) [ ! -d /run/systemd/system ] || as_root systemctl disable -q --now pgbouncer ;;
        esac
        ;;
    dnf) as_root dnf install -y -q "${packages[@]}" ;;
    apk) as_root apk add -q "${packages[@]}" ;;
    brew)
        brew install -q "${packages[@]}"
        case " ${packages[*]} " in *" libpq "*) brew link --force -q libpq ;; esac
        ;;
    esac
}

if [ "${#missing[@]}" -gt 0 ]; then
    if command -v apt-get >/dev/null; then
        install apt "${missing[@]}"
    elif command -v dnf >/dev/null; then
        install dnf "${missing[@]}"
    elif command -v apk >/dev/null; then
        install apk "${missing[@]}"
    elif command -v brew >/dev/null; then
        install brew "${missing[@]}"
    else
        echo "please install by hand: ${missing[*]} (no apt-get, dnf, apk or brew here)" >&2
        exit 1
    fi
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "installing Rust with rustup, for this user"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --component rustfmt,clippy
fi
