#!/usr/bin/env bash
# pgtenant beside PostgreSQL, PgBouncer and pg_doorman in turn, on a throwaway cluster; prints throughput, latency, the
# pooler's own CPU time, memory and system calls, and which goals were reached, as Markdown. Parts: benches/lib, benches/load.
set -euo pipefail
shopt -s inherit_errexit

usage() {
  cat <<'END'
usage: benches/side_by_side.sh [options]

  --cases "A B ..."     what to measure, of:
                          prepared simple extended   one row, pgbench's protocols, tenancy = "none"
                          rows_1000                  1,000 rows, 8 clients
                          rls_plain rls_sealed       RLS, 100 organizations, without and with the seal's check
                          seal                       the seal's check in PostgreSQL itself
                          hands                      what it costs that a server goes to another organization
                          tls                        TLS between client and pooler
                          idle                       memory of 10,000 idle clients
                          calls                      system calls, wake-ups and allocations per transaction
                                                     (needs strace, and valgrind for the last)
                        (all but extended)
  --rounds N            rounds of every measurement; medians are printed (5)
  --seconds S           length of one measurement (3)
  --clients "A B ..."   numbers of clients of prepared, simple and extended ("1 16 64", prepared also 200)
  --servers N           server connections each pooler may open (20)
  --scale N             pgbench's scale factor (10)
  --pgbouncer PATH      PgBouncer (from PATH or /usr/sbin)
  --pgtenant PATH       pgtenant (target/release/pgtenant, built if it is missing)
  --pg-doorman PATH     pg_doorman, in the cases without tenants; left out if it is not named
  --pg-bin DIR          PostgreSQL's programs (PGTENANT_PG_BIN, PATH, /usr/lib/postgresql/*/bin)
  --without-pgbouncer   leave PgBouncer out
  --without-pgtenant    leave pgtenant out
  --out FILE            also write the report to FILE

examples: benches/side_by_side.sh --rounds 3 --seconds 4          # all of it, about 15 minutes
          benches/side_by_side.sh --cases "prepared tls" --clients 16 --rounds 3

Needs Linux (CPU time is read from /proc) and pgbench 14 or newer. As root, all servers
run as the user postgres (or nobody). Exit status: 0 done, 1 a run failed, 2 bad usage;
a goal that is not reached is told and is no failure.
END
}

die() {
  printf 'side_by_side: %s\n' "$1" >&2
  exit "${2:-1}"
}

say() { printf '%s\n' "$*" >&2; }

left_out=()
leave_out() { # what why
  say "$1 is left out: $2"
  left_out+=("$1 ($2)")
}

# ---------------------------------------------------------------- options

rounds=5 seconds=3 servers=20 scale=10
clients_list='' cases_list=''
pgbouncer='' pgtenant='' pg_doorman='' out=''
pg_bin=${PGTENANT_PG_BIN:-}
with_pgbouncer=1 with_pgtenant=1 with_pg_doorman=0

while (($#)); do
  case $1 in
    --cases | --rounds | --seconds | --clients | --servers | --scale | --pgbouncer | --pgtenant | --pg-doorman | --pg-bin | --out)
      (($# > 1)) || die "$1 needs a value" 2
      ;;
  esac
  case $1 in
    --cases) cases_list=$2 ;;
    --rounds) rounds=$2 ;;
    --seconds) seconds=$2 ;;
    --clients) clients_list=$2 ;;
    --servers) servers=$2 ;;
    --scale) scale=$2 ;;
    --pgbouncer) pgbouncer=$2 ;;
    --pgtenant) pgtenant=$2 ;;
    --pg-doorman) pg_doorman=$2 with_pg_doorman=1 ;;
    --pg-bin) pg_bin=$2 ;;
    --out) out=$2 ;;
    --without-pgbouncer) with_pgbouncer=0 && shift && continue ;;
    --without-pgtenant) with_pgtenant=0 && shift && continue ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && die "unknown option $1" 2 ;;
  esac
  shift 2
done

read -ra clients_each <<<"$clients_list"
for number in "$rounds" "$seconds" "$servers" "$scale" "${clients_each[@]}"; do
  [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || die "not a positive whole number: $number" 2
done
[[ -r /proc/self/stat ]] || die "needs Linux's /proc" 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lib=$root/benches/lib
export LC_ALL=C
# Nothing of the caller's libpq environment may reach pgbench or the servers.
for name in "${!PG@}"; do unset "$name"; done
export PGSSLMODE=disable PGGSSENCMODE=disable PGREQUIREAUTH=scram-sha-256 PGCONNECT_TIMEOUT=10
# A socket for each client.
ulimit -Sn hard

# shellcheck source=benches/lib/processes.sh
. "$lib/processes.sh"
# shellcheck source=benches/lib/programs.sh
. "$lib/programs.sh"
# shellcheck source=benches/lib/targets.sh
. "$lib/targets.sh"
# shellcheck source=benches/lib/cases.sh
. "$lib/cases.sh"
# shellcheck source=benches/lib/measure.sh
. "$lib/measure.sh"
# shellcheck source=benches/lib/report.sh
. "$lib/report.sh"

# ---------------------------------------------------------------- what is there

find_postgres
((!with_pgbouncer)) || find_pgbouncer
((!with_pgtenant)) || find_pgtenant
((!with_pg_doorman)) || find_pg_doorman
((with_pgbouncer)) || left_out+=("PgBouncer, and so the ratios to it")
((with_pg_doorman)) || leave_out pg_doorman "not named by --pg-doorman"

read -ra wanted <<<"${cases_list:-${usual_cases[*]}}"
((${#wanted[@]})) || die "--cases is empty" 2
cases=() with_tls=0 max_clients=0
for name in "${wanted[@]}"; do
  [[ " ${every_case[*]} " == *" $name "* ]] || die "unknown case $name; there are: ${every_case[*]}" 2
  why=$(obstacle "$name")
  if [[ -n $why ]]; then leave_out "$name" "$why" && continue; fi
  cases+=("$name")
  case $name in
    tls) with_tls=1 ;;
    idle) max_clients=$idle_clients ;;
  esac
  case $name in idle | rls_plain | rls_sealed | hands) find_load ;; esac
done
((${#cases[@]})) || die "none of the cases can be measured here" 1

# All clients at once, and some to look after them.
most_clients=200
for number in "${clients_each[@]}"; do ((number <= most_clients)) || most_clients=$number; done
((max_clients > most_clients)) || max_clients=$most_clients
((max_clients += 100))

# ---------------------------------------------------------------- the whole

[[ -z $out ]] || : >>"$out" || die "cannot write $out" 2
read -r load_before _ </proc/loadavg
mkfifo "$work/progress"
poolers=()
start_postgres
if ((with_pgbouncer)); then start_pgbouncer pgbouncer && poolers+=(pgbouncer); fi
if ((with_pg_doorman)); then start_pg_doorman && poolers+=(pg_doorman); fi
if ((with_pgtenant)); then prepare_pgtenant && fill_tenants && poolers+=(pgtenant); fi
write_organizations
if ((with_tls && with_pgbouncer)); then start_pgbouncer pgbouncer_tls; fi
if ((with_tls && with_pgtenant)); then start_pgtenant pgtenant_tls; fi

begin_case() { # sets what is known of $case_name
  case_clients=() case_targets=() case_notes=() case_base=''
  "case_$case_name"
}
for case_name in "${cases[@]}"; do
  begin_case
  if declare -F "run_$case_name" >/dev/null; then "run_$case_name"; else run_rounds; fi
  judge_ratios "$case_name"
done
report >"$work/report"
cat "$work/report"
[[ -z $out ]] || cat "$work/report" >"$out"
