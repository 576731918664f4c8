# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # variables are shared with benches/side_by_side.sh
# What is measured: PostgreSQL itself and the poolers before it, each with or without TLS towards clients.
#
# A target has a name (`pgbouncer`, `pgbouncer_tls`), under which its port and its process are kept.

admin_password=$(secret)
role=bench     # signs in by password, and has no context
tenant=tenant  # pgtenant: by token. Elsewhere by password, and the application sets the context
password=$(secret)
organizations=100
rows_each=1000 # per organization
declare -A port_of=() pid_of=()

# ---------------------------------------------------------------- PostgreSQL

start_postgres() {
  # A PgBouncer in session mode holds a server for each client, for each of two roles.
  local connections=$((3 * most_clients + 10 * servers + 20)) tls=()
  room postgres
  printf '%s\n' "$admin_password" >"$work/postgres/admin"
  if ((with_tls)); then
    make_certificate
    cp "$work/tls.crt" "$work/tls.key" "$work/postgres/"
    tls=(-c ssl=on -c "ssl_cert_file=$work/postgres/tls.crt" -c "ssl_key_file=$work/postgres/tls.key")
  fi
  hand_over postgres
  say "creating a cluster"
  (cd "$work/postgres" && "${as_server[@]}" "$pg_bin/initdb" -D "$work/postgres/data" -U admin \
    --pwfile="$work/postgres/admin" --auth=scram-sha-256 --encoding=UTF8 --no-locale --no-sync) >"$work/err" 2>&1
  free_port
  port_of[direct]=$chosen_port
  start postgres "$pg_bin/postgres" -D "$work/postgres/data" -p "$chosen_port" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c "max_connections=$connections" \
    -c shared_buffers=256MB -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off \
    "${tls[@]}"
  await PostgreSQL "$started_pid" "$chosen_port" admin "$admin_password" postgres
  sql "$chosen_port" admin "$admin_password" postgres <<SQL
create role $role login password '$password';
create role $tenant login password '$password';
create database bench owner $role;
SQL
  say "filling it (scale $scale)"
  PGPASSWORD=$password "$pg_bin/pgbench" -iq -s "$scale" -h 127.0.0.1 -p "$chosen_port" -U "$role" bench >"$work/err" 2>&1
}

organization_id() { printf '018f6f3e-0000-7000-8000-%012d' "$1"; }

# The same rows in four tables: without policies, and with the three that are compared. The shape of the policies is one:
# the context is asked for once per query. Line 6 of a seal names the organization.
fill_tenants() {
  local table
  {
    for table in items_open items_set_local items_plain items_sealed; do
      cat <<SQL
create table $table (id bigint primary key, organization_id uuid not null, body text not null);
insert into $table
  select i, ('018f6f3e-0000-7000-8000-' || lpad(((i - 1) / $rows_each)::text, 12, '0'))::uuid, repeat('x', 80)
  from generate_series(1, $organizations * $rows_each) as i;
grant select on $table to $role, $tenant;
SQL
      [[ $table == items_open ]] || printf 'alter table %s enable row level security;\n' "$table"
    done
    cat <<'SQL'
create policy tenant on items_set_local using (organization_id = (select current_setting('app.org')::uuid));
create policy tenant on items_plain
  using (organization_id = (select split_part(current_setting('pgtenant.seal'), E'\n', 6)::uuid));
create policy tenant on items_sealed using (organization_id = (select pgtenant.organization_id()));
vacuum analyze items_open, items_set_local, items_plain, items_sealed;
SQL
  } | sql "${port_of[direct]}" admin "$admin_password" bench
}

# How the clients of each organization sign in: a token each, or the role's password.
write_organizations() {
  local number id rows token
  for ((number = 0; number < organizations; number++)); do
    id=$(organization_id "$number")
    rows="$((number * rows_each + 1)) $(((number + 1) * rows_each))"
    printf '%s %s %s\n' "$id" "$password" "$rows" >>"$work/passwords"
    if ((with_pgtenant)); then
      token=$("$pgtenant" token mint --key "$work/dev.pem" --issuer https://bench.example/ --audience pgtenant \
        --subject bench --organization "$id" --expires-in 12h)
      printf '%s %s %s\n' "$id" "$token" "$rows" >>"$work/tokens"
    fi
  done
}

# A certificate for this run, as PostgreSQL and the poolers show it to clients.
make_certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=IP:127.0.0.1,DNS:localhost -keyout "$work/tls.key" -out "$work/tls.crt" 2>"$work/err" ||
    die "openssl cannot make a certificate"
}

# ---------------------------------------------------------------- PgBouncer

start_pgbouncer() { # pgbouncer or pgbouncer_tls
  local name=$1 program session_size=$servers
  program=$(reachable "$pgbouncer" pgbouncer)
  free_port
  port_of[$name]=$chosen_port
  # In session mode every client holds a server: with fewer of them pgbench would wait for ever.
  ((session_size >= most_clients)) || session_size=$most_clients
  room "$name"
  printf '"%s" "%s"\n' "$role" "$password" "$tenant" "$password" >"$work/$name/users"
  cat >"$work/$name/ini" <<INI
[databases]
bench = host=127.0.0.1 port=${port_of[direct]} dbname=bench
bench_session = host=127.0.0.1 port=${port_of[direct]} dbname=bench pool_mode=session pool_size=$session_size
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $chosen_port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $work/$name/users
server_tls_sslmode = disable
pool_mode = transaction
default_pool_size = $servers
max_client_conn = $max_clients
log_connections = 0
log_disconnections = 0
log_stats = 0
INI
  if [[ $name == *_tls ]]; then
    cp "$work/tls.crt" "$work/tls.key" "$work/$name/"
    printf 'client_tls_sslmode = require\nclient_tls_cert_file = %s\nclient_tls_key_file = %s\n' \
      "$work/$name/tls.crt" "$work/$name/tls.key" >>"$work/$name/ini"
  else
    printf 'client_tls_sslmode = disable\n' >>"$work/$name/ini"
  fi
  if ((prepared_in_transactions)); then printf 'max_prepared_statements = 200\n' >>"$work/$name/ini"; fi
  hand_over "$name"
  start "$name" "$program" "$work/$name/ini"
  pid_of[$name]=$started_pid
  PGSSLMODE=$(sslmode "$name") await PgBouncer "$started_pid" "$chosen_port" "$role" "$password" bench
}

sslmode() { if [[ $1 == *_tls ]]; then printf require; else printf disable; fi; }

# ---------------------------------------------------------------- pgtenant

write_pgtenant_config() { # name
  local home=$work/$1
  printf '%s\n' "$password" >"$home/password"
  cp "$work/dev.jwks.json" "$work/seal.key" "$home/"
  cat >"$home/pgtenant.toml" <<TOML
[listen]
tcp = ["127.0.0.1:${port_of[$1]}"]
max_clients = $max_clients

[servers.main]
host = "127.0.0.1"
port = ${port_of[direct]}
tls = "disable"

[databases.bench]
server = "main"
dbname = "bench"
pool_mode = "transaction"
[databases.bench.pool]
size = $servers
wait_timeout = "120s"

[roles.$role]
sign_in = ["scram"]
password = { file = "password" }
server_password = { file = "password" }
tenancy = "none"

[roles.$tenant]
sign_in = ["jwt"]
server_password = { file = "password" }
tenancy = "required"

[[jwt.issuers]]
issuer = "https://bench.example/"
audience = ["pgtenant"]
algorithms = ["ES256"]
jwks_file = "dev.jwks.json"

[context]
id_type = "uuid"
seal_key = { file = "seal.key" }
TOML
  [[ $1 == *_tls ]] || return 0
  cp "$work/tls.crt" "$work/tls.key" "$home/"
  cat >>"$home/pgtenant.toml" <<TOML

[listen.tls]
certificate = "tls.crt"
key = "tls.key"
require = true
TOML
}

start_pgtenant() { # pgtenant or pgtenant_tls
  local name=$1 program
  program=$(reachable "$pgtenant" pgtenant)
  free_port
  port_of[$name]=$chosen_port
  room "$name"
  write_pgtenant_config "$name"
  hand_over "$name"
  start "$name" "$program" serve --config "$work/$name/pgtenant.toml"
  pid_of[$name]=$started_pid
  await_listening "$name" "$chosen_port"
  PGSSLMODE=$(sslmode "$name") await pgtenant "$started_pid" "$chosen_port" "$role" "$password" bench
}

# Keys for tokens and seals, and the SQL interface that checks the latter.
prepare_pgtenant() {
  "$pgtenant" token keygen --algorithm ES256 --out "$work/dev" >"$work/err" 2>&1
  head -c 32 /dev/urandom | base64 >"$work/seal.key"
  start_pgtenant pgtenant
  "$pgtenant" install --config "$work/pgtenant/pgtenant.toml" --role "$tenant" \
    --database "postgres://admin:$admin_password@127.0.0.1:${port_of[direct]}/bench?sslmode=disable" >"$work/err" 2>&1 ||
    die "cannot install the SQL interface"
}

# ---------------------------------------------------------------- pg_doorman

start_pg_doorman() {
  local program verifier
  program=$(reachable "$pg_doorman" pg_doorman)
  # Its clients' proof is used towards PostgreSQL, so it must have PostgreSQL's verifier.
  verifier=$(sql "${port_of[direct]}" admin "$admin_password" bench <<<"select rolpassword from pg_authid where rolname = '$role'")
  free_port
  port_of[pg_doorman]=$chosen_port
  room pg_doorman
  cat >"$work/pg_doorman/pg_doorman.toml" <<TOML
[general]
host = "127.0.0.1"
port = $chosen_port
worker_threads = $(nproc)
max_connections = $max_clients
query_wait_timeout = 120000
prepared_statements = true
log_client_connections = false
log_client_disconnections = false
admin_username = "admin"
admin_password = "$admin_password"
server_tls_mode = "disable"

[pools.bench]
server_host = "127.0.0.1"
server_port = ${port_of[direct]}
pool_mode = "transaction"

[pools.bench.users.0]
username = "$role"
password = "$verifier"
pool_size = $servers
TOML
  hand_over pg_doorman
  start pg_doorman "$program" --log-level warn "$work/pg_doorman/pg_doorman.toml"
  pid_of[pg_doorman]=$started_pid
  await pg_doorman "$started_pid" "$chosen_port" "$role" "$password" bench
}

# ---------------------------------------------------------------- all of them

start_target() {
  case $1 in
    pgbouncer | pgbouncer_tls) start_pgbouncer "$1" ;;
    pgtenant | pgtenant_tls) start_pgtenant "$1" ;;
    pg_doorman) start_pg_doorman ;;
  esac
}

# A new process of the same: what the last one kept in memory is gone.
start_anew() {
  end_target "$1"
  rm -rf "${work:?}/$1"
  start_target "$1"
}

end_target() {
  local pid=${pid_of[$1]} i
  stop "$pid" TERM
  wait "$pid" 2>/dev/null || true
  # Another process may be given its number.
  for i in "${!pids[@]}"; do [[ ${pids[i]} != "$pid" ]] || unset "pids[$i]"; done
  pids=("${pids[@]}")
}
