# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables are shared with who sources it
# A throwaway cluster with a superuser `admin`, on a free port of loopback; processes.sh ends it.

# shellcheck source=benches/lib/programs.sh
. "$root/benches/lib/programs.sh"
# shellcheck source=benches/lib/processes.sh
. "$root/benches/lib/processes.sh"

start_cluster() { # options of postgres; sets port and password
  password=$(secret)
  room postgres
  printf '%s\n' "$password" >"$work/postgres/admin"
  hand_over postgres
  say "creating a cluster"
  (cd "$work/postgres" && "${as_server[@]}" "$pg_bin/initdb" -D "$work/postgres/data" -U admin \
    --pwfile="$work/postgres/admin" --auth=scram-sha-256 --encoding=UTF8 --no-locale --no-sync) >"$work/err" 2>&1
  free_port
  port=$chosen_port
  start postgres "$pg_bin/postgres" -D "$work/postgres/data" -p "$port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= "$@"
  await PostgreSQL "$started_pid" "$port" admin "$password" postgres
}
