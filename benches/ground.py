"""What the table is measured on: one PostgreSQL, and each pooler before it in the forms that the cases need."""

import os
import pathlib
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/drivers"))
import lab as drivers  # noqa: E402  (the cluster and the proxy of the driver matrix)

ORGANIZATIONS = 100
ROWS = 100_000
SERVERS = 20

SETTINGS = "shared_buffers = 256MB\nautovacuum = off\nmax_connections = 400\n"

SCHEMA = f"""
CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO PUBLIC;
CREATE TABLE bench.plain AS SELECT id, ('018f6f3e-0000-7000-8000-' || lpad((id % {ORGANIZATIONS})::text, 12, '0'))::uuid AS org,
    id * 2 AS v FROM generate_series(0, {ROWS - 1}) AS id;
CREATE TABLE bench.setting AS TABLE bench.plain;
CREATE TABLE bench.sealed AS TABLE bench.plain;
CREATE TABLE bench.application AS TABLE bench.plain;
CREATE POLICY own ON bench.setting USING (org = (SELECT split_part(current_setting('pgtenant.seal'), E'\\n', 6)::uuid));
CREATE POLICY own ON bench.sealed USING (org = (SELECT pgtenant.organization_id()));
CREATE POLICY own ON bench.application USING (org = (SELECT current_setting('app.org')::uuid));
CREATE FUNCTION bench.cost(what text, times int) RETURNS float LANGUAGE plpgsql AS $$
DECLARE begun timestamptz := clock_timestamp();
BEGIN
    FOR i IN 1..times LOOP
        IF what = 'seal' THEN PERFORM pgtenant.organization_id(); ELSE PERFORM current_setting('pgtenant.seal'); END IF;
    END LOOP;
    RETURN extract(epoch FROM clock_timestamp() - begun) * 1e6 / times;
END $$;
""" + "".join(
    f"ALTER TABLE bench.{name} ADD PRIMARY KEY (id); GRANT SELECT ON bench.{name} TO PUBLIC; ANALYZE bench.{name};\n"
    for name in ("plain", "setting", "sealed", "application")
) + "".join(
    f"ALTER TABLE bench.{name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;\n"
    for name in ("setting", "sealed", "application")
)


class Ground:
    """PostgreSQL with pgbench's tables and those of the tenancy cases."""

    def __init__(self, program, scale):
        drivers.SETTINGS = drivers.SETTINGS.replace("max_connections = 200\n", "") + SETTINGS
        self.postgres = drivers.Postgres()
        self.folder = Path(tempfile.mkdtemp(prefix="pgtenant-bench-"))
        self.pgbench = f"{self.postgres.bin}/pgbench"
        self.proxy = drivers.Proxy(program, self.postgres, "transaction")
        self.proxy.prepare()
        self.postgres.sql("cases", SCHEMA)
        self.password = self.proxy.passwords["service"]
        subprocess.run([self.pgbench, "-iq", "-s", str(scale), self.postgres.url("cases")],
                       check=True, capture_output=True)
        self.postgres.sql("cases", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO service")
        self.tokens = self.folder / "tokens"
        self.tokens.write_text("".join(
            f"{drivers.organization(n)} {self.proxy.token(n)}\n" for n in range(ORGANIZATIONS)))
        self.passwords = self.folder / "passwords"
        self.passwords.write_text("".join(
            f"{drivers.organization(n)} {self.password}\n" for n in range(ORGANIZATIONS)))
        certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                       "-days", "2", "-subj", "/CN=localhost", "-keyout", self.folder / "key", "-out", self.folder / "crt"]
        subprocess.run(certificate, check=True, capture_output=True)

    def stop(self):
        self.proxy.remove()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Server:
    """A process that is gone when this one is."""

    def __init__(self, name, command, port, folder, account=None):
        self.name, self.port = name, port
        log = (folder / f"{name}.log").open("a")
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", drivers.LEASH, name, *map(str, command)], stdin=subprocess.PIPE, stdout=log, stderr=log,
            start_new_session=True, cwd=folder, **(account or {}))
        drivers.wait_until(name, self.answers, 20)

    def answers(self):
        if self.process.poll() is not None:
            raise SystemExit(f"bench: {self.name} ended while it started")
        import socket
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def pid(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def cpu(self):
        """User and system seconds so far, all threads."""
        fields = Path(f"/proc/{self.pid()}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self):
        status = Path(f"/proc/{self.pid()}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()


def pgtenant(ground, program, tls):
    """The proxy, as the driver matrix configures it, with room for many clients."""
    proxy = ground.proxy
    proxy.port, proxy.http = drivers.free_port(), drivers.free_port()
    proxy.write("transaction")
    config = ground.folder / f"pgtenant{'-tls' if tls else ''}.toml"
    text = proxy.config.read_text().replace("[admin]", "max_clients = 20000\n[admin]", 1)
    text = text.replace('{ file = "', f'{{ file = "{proxy.folder}/').replace('jwks_file = "', f'jwks_file = "{proxy.folder}/')
    text = text.replace(f"port = {ground.postgres.port}", f'port = {ground.postgres.port}\ntls = "disable"')
    text = text.replace("pool.size = 20", f'pool.size = {SERVERS}\npool.wait_timeout = "60s"')
    if tls:
        text += f'[listen.tls]\ncertificate = "{ground.folder}/crt"\nkey = "{ground.folder}/key"\nrequire = false\n'
    config.write_text(text)
    return Server("pgtenant", [program, "serve", "--config", config], proxy.port, ground.folder)


def pgbouncer(ground, program, tls):
    """PgBouncer in transaction mode with as many servers."""
    port = drivers.free_port()
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=ground.folder))
    (folder / "users").write_text(f'"service" "{ground.password}"\n')
    text = f"""[databases]
cases = host=127.0.0.1 port={ground.postgres.port} dbname=cases
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {SERVERS}
max_client_conn = 20000
max_prepared_statements = 200
server_tls_sslmode = disable
log_connections = 0
log_disconnections = 0
log_stats = 0
"""
    if tls:
        for name in ("crt", "key"):
            shutil.copy(ground.folder / name, folder / name)
        text += f"client_tls_sslmode = require\nclient_tls_cert_file = {folder}/crt\nclient_tls_key_file = {folder}/key\n"
    (folder / "ini").write_text(text)
    account = {}
    if os.getuid() == 0:
        user = pwd.getpwnam("nobody")
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chmod(ground.folder, 0o711)
        for path in (folder, *folder.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
        copy = folder / "pgbouncer"
        shutil.copy(program, copy)
        os.chmod(copy, 0o755)
        program = copy
    return Server("pgbouncer", [program, folder / "ini"], port, folder, account)
