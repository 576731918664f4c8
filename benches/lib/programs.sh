# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables are shared with benches/side_by_side.sh
# Finds PostgreSQL's programs and the poolers, and says what is left out.

pg_programs=(initdb postgres psql pgbench)
has_postgres() {
  local program
  for program in "${pg_programs[@]}"; do [[ -x $1/$program ]] || return 1; done
}

find_postgres() {
  local place places
  if [[ -z $pg_bin ]]; then
    mapfile -t places < <(tr ':' '\n' <<<"$PATH" && printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV)
    for place in "${places[@]}"; do
      if has_postgres "$place"; then pg_bin=$place && break; fi
    done
  fi
  has_postgres "$pg_bin" || die "needs ${pg_programs[*]} in one directory: name it with --pg-bin" 2
}

pgbouncer_version='none'
prepared_in_transactions=1
find_pgbouncer() {
  if [[ -z $pgbouncer ]]; then
    pgbouncer=$(PATH=$PATH:/usr/sbin command -v pgbouncer) || with_pgbouncer=0
  fi
  if ((!with_pgbouncer)); then
    say "PgBouncer is not installed: running without it"
    return
  fi
  pgbouncer_version=$("$pgbouncer" --version | sed -n 1p) || die "cannot run $pgbouncer" 2
  [[ $pgbouncer_version =~ ([0-9]+)\.([0-9]+) ]] || die "not PgBouncer: $pgbouncer" 2
  # 1.21 was the first to keep prepared statements in transaction mode.
  ((BASH_REMATCH[1] > 1 || BASH_REMATCH[2] >= 21)) || prepared_in_transactions=0
}

pg_doorman_version='none'
find_pg_doorman() { pg_doorman_version=$("$pg_doorman" --version | sed -n 1p) || die "cannot run $pg_doorman" 2; }

# A program of this repository, built if it is not there: its name, cargo's word for it, its place.
built() {
  local target=${CARGO_TARGET_DIR:-target} program
  [[ $target == /* ]] || target=$root/$target
  program=$target/release/$3
  if [[ ! -x $program ]]; then
    (cd "$root" && cargo build --locked --release "--$2" "$1") >&2 || die "cannot build $1"
  fi
  printf '%s' "$program"
}

warn_if_older() { # program, then its sources
  local program=$1
  shift
  [[ -z $(find "$@" -newer "$program" -print -quit) ]] || say "warning: the sources are newer than $program"
}

pgtenant_version='none'
find_pgtenant() {
  if [[ -z $pgtenant ]]; then
    pgtenant=$(built pgtenant bin pgtenant)
    warn_if_older "$pgtenant" "$root/src" "$root/Cargo.lock"
  fi
  pgtenant_version=$("$pgtenant" --version | sed -n 1p) || die "cannot run $pgtenant" 2
}

load=''
find_load() {
  [[ -z $load ]] || return 0
  load=$(built load example examples/load)
  warn_if_older "$load" "$root/benches/load"
}
