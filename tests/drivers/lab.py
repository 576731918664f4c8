"""A throwaway PostgreSQL and the proxy before it, on loopback and free ports; both are gone when this process is."""

import base64
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEEPER = ROOT / "src/cli/demo/throwaway.sh"
ISSUER = "https://login.drivers.pgtenant"

# Runs $@ until standard input ends: also when whoever holds the other end was killed.
LEASH = 'exec 3<&0; "$@" </dev/null 3<&- & pid=$!; trap "kill $pid" TERM; read -r _ <&3; kill $pid 2>/dev/null; wait $pid'

def find_bin():
    places = [os.environ.get("PGTENANT_PG_BIN") or "", *os.environ["PATH"].split(":")]
    places += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), key=lambda p: -int(p.split("/")[4]))
    for place in filter(None, places):
        if all(os.access(f"{place}/{name}", os.X_OK) for name in ("initdb", "postgres")):
            return os.path.dirname(os.path.realpath(f"{place}/postgres"))
    raise SystemExit("drivers: PostgreSQL's initdb and postgres are nowhere; set PGTENANT_PG_BIN")


PSQL = shutil.which("psql") or f"{find_bin()}/psql"

SETTINGS = """
listen_addresses = '127.0.0.1'
fsync = off
full_page_writes = off
synchronous_commit = off
max_connections = 200
lc_messages = 'C'
password_encryption = 'scram-sha-256'
"""

# Rows belong to the organization of the token; without tenancy to the application_name, which the proxy lets follow a
# client: a row, or a name, that reached someone else would show in the first case that counts rows.
SCHEMA = """
CREATE FUNCTION owner() RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
    IF current_user = 'app' THEN RETURN pgtenant.organization_id()::text; END IF;
    RETURN current_setting('application_name');
END $$;
CREATE TABLE items (owner text NOT NULL DEFAULT owner(), id int, body text, PRIMARY KEY (owner, id));
ALTER TABLE items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON items USING (owner = (SELECT owner())) WITH CHECK (owner = (SELECT owner()));
-- PostgreSQL's COPY FROM takes no table with row level security.
CREATE TABLE loads (owner text NOT NULL DEFAULT owner(), id int, body text);
CREATE VIEW own_loads AS SELECT * FROM loads WHERE owner = owner();
GRANT SELECT, INSERT, UPDATE, DELETE ON items, loads, own_loads TO app, service;
"""


def make_certificate(folder):
    """One that its own root is, for the loopback address: tls.crt and tls.key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", folder / "tls.key", "-out", folder / "tls.crt"], check=True, capture_output=True)
    (folder / "tls.key").chmod(0o600)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def organization(number):
    return f"018f6f3e-0000-7000-8000-{number:012}"


class Postgres:
    """A cluster whose keeper removes it when our end of its standard input closes."""

    def __init__(self):
        self.bin = find_bin()
        self.password = secrets.token_hex(16)
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix="pgtenant-drivers-pg-"))
        files = {"password": self.password + "\n", "log": "",
                 "settings": SETTINGS + f"unix_socket_directories = '{self.home}'\nssl = on\n"
                 f"ssl_cert_file = '{self.home}/tls.crt'\nssl_key_file = '{self.home}/tls.key'\n"}
        for name, text in files.items():
            (self.home / name).write_text(text)
        make_certificate(self.home)
        account = {}
        if os.getuid() == 0:
            users = {user.pw_name: user for user in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            for path in (self.home, *self.home.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}
        self.keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER.read_text(), "pgtenant-postgres", self.bin, self.home],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.home,
            env=environment, start_new_session=True, **account)
        self.keeper.stdin.write(f"start {self.port}\n".encode())
        self.keeper.stdin.flush()
        wait_until("PostgreSQL", self.is_ready, 60)

    def is_ready(self):
        log = (self.home / "log").read_text(errors="replace")
        if "FATAL:" in log:
            raise SystemExit(f"drivers: PostgreSQL did not start:\n{log}")
        return "ready to accept connections" in log

    def url(self, dbname):
        return f"postgres://postgres:{self.password}@127.0.0.1:{self.port}/{dbname}"

    def sql(self, dbname, text):
        command = [PSQL, "-XAtq", "-v", "ON_ERROR_STOP=1", self.url(dbname)]
        return subprocess.run(command, input=text, text=True, check=True, capture_output=True).stdout.strip()

    def stop(self):
        self.keeper.stdin.close()
        self.keeper.wait(60)
        shutil.rmtree(self.home, ignore_errors=True)


class Proxy:
    """`pgtenant serve` with one database for the cases and one for the drivers' own suites."""

    def __init__(self, program, postgres, pool_mode):
        self.program, self.postgres = program, postgres
        self.folder = Path(tempfile.mkdtemp(prefix="pgtenant-drivers-"))
        self.port, self.http = free_port(), free_port()
        self.config = self.folder / "pgtenant.toml"
        self.passwords = {"service": secrets.token_hex(16), "app": secrets.token_hex(16), "suite": "suite"}
        seal_key = base64.b64encode(secrets.token_bytes(32)).decode()
        for name, text in {**self.passwords, "seal": seal_key}.items():
            (self.folder / name).write_text(text)
        make_certificate(self.folder)
        self.run("token", "keygen", "--algorithm", "ES256", "--out", self.folder / "issuer")
        self.write(pool_mode)
        self.process = None

    def write(self, pool_mode):
        databases = "\n".join(
            f'[databases.{name}]\nserver = "main"\npool_mode = "{pool_mode}"\npool.size = 20' for name in SERVED)
        self.config.write_text(f"""
[listen]
tcp = ["127.0.0.1:{self.port}"]
[listen.tls]
certificate = "tls.crt"
key = "tls.key"
require = false
[admin]
http = "127.0.0.1:{self.http}"
[servers.main]
host = "127.0.0.1"
port = {self.postgres.port}
{databases}
[roles.app]
sign_in = ["jwt", "oauth"]
tenancy = "required"
server_password = {{ file = "app" }}
[roles.service]
sign_in = ["scram"]
password = {{ file = "service" }}
tenancy = "none"
server_password = {{ file = "service" }}
[roles.suite]
sign_in = ["scram"]
password = {{ file = "suite" }}
tenancy = "none"
server_password = {{ file = "suite" }}
[[jwt.issuers]]
issuer = "{ISSUER}"
audience = ["pgtenant"]
algorithms = ["ES256"]
jwks_file = "issuer.jwks.json"
[context]
seal_key = {{ file = "seal" }}
""")

    def run(self, *arguments):
        return subprocess.run([self.program, *arguments], text=True, check=True, capture_output=True).stdout.strip()

    def refuses(self, pool_mode):
        """Why `pgtenant check` refuses a pool mode; empty when it does not."""
        self.write(pool_mode)
        command = [self.program, "check", "--config", self.config]
        done = subprocess.run(command, text=True, capture_output=True)
        return "" if done.returncode == 0 else (done.stderr or done.stdout).strip().splitlines()[0]

    def prepare(self):
        """Roles, databases, the SQL interface and the table, once for each cluster."""
        for role, password in self.passwords.items():
            # The drivers' own suites make roles, extensions and types.
            kind = "SUPERUSER" if role == "suite" else "NOSUPERUSER"
            self.postgres.sql("postgres", f"CREATE ROLE {role} LOGIN {kind} PASSWORD '{password}'")
        for name in DATABASES:
            self.postgres.sql("postgres", f"CREATE DATABASE {name} OWNER suite")
        self.run("install", "--config", self.config, "--database", self.postgres.url("cases"), "--role", "app")
        self.postgres.sql("cases", SCHEMA)

    def start(self):
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", LEASH, "pgtenant-proxy", self.program, "serve", "--config", self.config],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        wait_until("the proxy", self.is_ready, 20)

    def is_ready(self):
        if self.process.poll() is not None:
            raise SystemExit(f"drivers: the proxy did not start:\n{(self.folder / 'log').read_text()}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/livez", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def pid(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def resident_kib(self):
        status = Path(f"/proc/{self.pid()}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def metric(self, name):
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(map(float, values))

    def token(self, number, seconds=7200):
        return self.run("token", "mint", "--key", self.folder / "issuer.pem", "--issuer", ISSUER, "--audience",
                        "pgtenant", "--subject", f"driver-{number}", "--organization", organization(number),
                        "--expires-in", f"{seconds}s")

    def stop(self):
        if self.process:
            self.process.stdin.close()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process = None

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


DATABASES = ("cases", "suite", "suite_other")
# Served as well: suites make databases and roles by way of it.
SERVED = (*DATABASES, "postgres")


def wait_until(what, is_so, seconds):
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"drivers: {what} was not ready within {seconds} s")
        time.sleep(0.05)
