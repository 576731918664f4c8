#!/usr/bin/env bash
# Schemas of real applications, as Debian's packages carry them: planned, applied, verified, rolled back to what they were.
# shellcheck disable=SC2016 # Markdown has backquotes
set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'END'
usage: tests/migrate-schemas.sh [--only NAMES] [--pgtenant PATH] [--pg-bin DIR] [--out FILE]

  --only NAMES     of these applications alone: 'kea powerdns' (all)
  --pgtenant PATH  pgtenant (target/release/pgtenant, built if it is missing)
  --pg-bin DIR     PostgreSQL's programs (PGTENANT_PG_BIN, PATH, /usr/lib/postgresql/*/bin)
  --out FILE       where the results go (tests/it/migrate/RESULTS.md)

Needs apt-get and dpkg, which fetch the packages and unpack them into a temporary folder; nothing is installed.
Exit status: 0 all went there and back, 1 one did not, 2 bad usage, 3 a package cannot be fetched.
END
}

die() {
  printf 'migrate-schemas: %s\n' "$1" >&2
  exit "${2:-1}"
}
say() { printf '%s\n' "$*" >&2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
only='' pgtenant='' out=$root/tests/it/migrate/RESULTS.md pg_bin=${PGTENANT_PG_BIN:-}
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --only | --pgtenant | --pg-bin | --out) (($# > 1)) || die "$1 needs a value" 2 ;;
    *) die "what is $1?" 2 ;;
  esac
  case $1 in
    --only) only=$2 ;;
    --pgtenant) pgtenant=$2 ;;
    --pg-bin) pg_bin=$2 ;;
    --out) out=$2 ;;
  esac
  shift 2
done
export LC_ALL=C
for name in "${!PG@}"; do [[ $name == PGTENANT* ]] || unset "$name"; done
# shellcheck source=benches/lib/cluster.sh
. "$root/benches/lib/cluster.sh"
find_postgres
[[ -n $pgtenant ]] || pgtenant=$(built pgtenant bin pgtenant)

# application, package, files of its schema and first data, in order
applications=(
  "zabbix|zabbix-server-pgsql|usr/share/zabbix-server-pgsql/schema.sql.gz usr/share/zabbix-server-pgsql/images.sql.gz usr/share/zabbix-server-pgsql/data.sql.gz"
  "kea|kea-admin|usr/share/kea/scripts/pgsql/dhcpdb_create.pgsql"
  "roundcube|roundcube-core|usr/share/roundcube/SQL/postgres.initial.sql"
  "powerdns|pdns-backend-pgsql|usr/share/pdns-backend-pgsql/schema/schema.pgsql.sql"
  "icingadb|icingadb|usr/share/icingadb/schema/pgsql/schema.sql"
)

for name in $only; do
  [[ " $(printf '%s ' "${applications[@]%%|*}")" == *" $name "* ]] || die "--only $name: there are ${applications[*]%%|*}" 2
done

start_cluster -c fsync=off -c max_locks_per_transaction=512

dump() { # database
  PGPASSWORD=$password "$pg_bin/pg_dump" --no-owner -h 127.0.0.1 -p "$port" -U admin -d "$1" | grep -v '^\\\(un\)\?restrict'
}
fetch() { # package
  mkdir -p "$work/packages/$1"
  download() { (cd "$work/packages" && apt-get download -q "$1" && dpkg -x "$1"_*.deb "$1") >"$work/err" 2>&1; }
  # Its lists may be of before the newest version.
  download "$1" || { ((EUID == 0)) && apt-get update -q >"$work/err" 2>&1 && download "$1"; } || die "cannot fetch $1" 3
}

failed=0
rows=()
try() { # application package files
  local application=$1 package=$2 file begun url folder=$work/plan-$1 filled versions planned outcome=yes took
  fetch "$package"
  versions=$(dpkg-deb -f "$work/packages/$package"_*.deb Version)
  sql "$port" admin "$password" postgres <<<"create database $application"
  for file in $3; do
    case $file in
      *.gz) gzip -dc "$work/packages/$package/$file" ;;
      *) cat "$work/packages/$package/$file" ;;
    esac
  done | sql "$port" admin "$password" "$application" >"$work/err" 2>&1 || die "cannot load $application"
  filled=$(sql "$port" admin "$password" "$application" <"$root/tests/migrate-rows.sql" 2>"$work/err" | tail -n 1) || die "cannot fill $application"
  # Somebody who goes on until the cut-over.
  sql "$port" admin "$password" "$application" >"$work/err" 2>&1 <<SQL || die "cannot give rights on $application"
create role works_with_$application login;
do \$\$ declare s name; begin
  for s in select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema' loop
    execute format('grant usage on schema %I to works_with_$application', s);
    execute format('grant select, insert, update, delete on all tables in schema %I to works_with_$application', s);
  end loop;
end \$\$;
SQL
  url="postgres://admin:$password@127.0.0.1:$port/$application"
  mkdir "$folder"
  dump "$application" >"$work/before.$application"
  run() { "$pgtenant" migrate "$1" --database "$url" --tenancy "$folder/tenancy.toml" "${@:2}" >>"$work/err" 2>&1; }
  : >"$work/err"
  begun=$SECONDS
  if ! run plan; then
    outcome="plan: $(grep -m1 . < <(tail -n 1 "$work/err") | cut -c1-200)"
  elif ! { run apply && run verify && run apply --cut-over && run verify && run rollback; }; then
    outcome="$(tail -n 1 "$work/err" | cut -c1-300)"
  else
    dump "$application" >"$work/after.$application"
    diff <(sort "$work/before.$application") <(sort "$work/after.$application") >"$work/diff" || outcome="$(wc -l <"$work/diff") lines of the dump differ"
  fi
  took=$((SECONDS - begun))
  planned=$(grep -o '[0-9]* steps for [0-9]* tables' "$work/err" | sed -n 1p || true)
  [[ $outcome == yes ]] || failed=1
  rows+=("| $application | $package $versions | $filled | ${planned:--} | $took | $outcome |")
  say "$application, $filled: $outcome"
}
for entry in "${applications[@]}"; do
  IFS='|' read -r application package files <<<"$entry"
  [[ -z $only || " $only " == *" $application "* ]] || continue
  try "$application" "$package" "$files"
done
{
  printf '# Schemas of real applications\n\nWritten by `tests/migrate-schemas.sh`: each schema with the first data that its package brings,\n'
  printf 'and about forty rows for each table that `migrate-rows.sql` could make some for; `plan` with nothing edited,\n`apply` (with its backup), `verify`, '
  printf '`apply --cut-over` (a role goes on until then), `verify`, `rollback`, and the dump of before, line by line.\n\n%s; %s.\n\n' \
    "$(date +%F)" "$("$pg_bin/postgres" --version)"
  printf '| application | package | tables that have rows | plan | seconds | there and back |\n|---|---|---|---|---:|---|\n'
  printf '%s\n' "${rows[@]}"
} >"$out"
cat "$out"
exit "$failed"
