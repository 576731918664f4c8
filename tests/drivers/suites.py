"""The drivers' own published test suites, as their packages carry them: directly, then through the proxy."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

# One run of one suite takes at most this long, and one of its tests this long where its runner can tell, in seconds.
PATIENCE = 600
PATIENCE_FOR_ONE = 30

TOKIO_POSTGRES = "0.7.18"


@dataclass
class Results:
    """What a run found: `passed`, `failed` or `skipped` for each test, and what was said about it."""

    version: str
    tests: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    repeated: list = field(default_factory=list)

    def add(self, test, outcome, detail=""):
        self.tests[test] = outcome
        self.details[test] = " ".join(detail.split())[:600]


@dataclass
class Suite:
    """Where it comes from, what its program is, and how its report is read."""

    version: str
    prepare: callable
    command: callable
    read: callable


def run(proxy, mode, cache, own, only):
    """Adds what the suites find to `own`: suite, then column."""
    column = f"{mode} scram"
    for name, suite in SUITES.items():
        if only and name not in only:
            continue
        try:
            home = prepared(cache / "suites" / name.replace(" ", "-"), suite, cache)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"{name}'s suite cannot be had: {error}", file=sys.stderr)
            continue
        columns = own.setdefault(name, {})
        for one, port in (("direct", proxy.postgres.port), (column, proxy.port)):
            if one not in columns:
                columns[one] = once(suite, home, cache, proxy, port)
                counts = {word: list(columns[one].tests.values()).count(word) for word in ("passed", "failed", "skipped")}
                print(f"{name}'s suite, {one}: {counts}", file=sys.stderr)


def prepared(home, suite, cache):
    mark = home / "version"
    if not mark.exists() or mark.read_text() != suite.version:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        suite.prepare(home, cache)
        mark.write_text(suite.version)
    return home


def once(suite, home, cache, proxy, port):
    for name in ("suite", "suite_other"):
        proxy.postgres.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")
        proxy.postgres.sql("postgres", f"CREATE DATABASE {name} OWNER suite")
    # SQLAlchemy's README.unittests asks for these.
    proxy.postgres.sql("suite", "CREATE SCHEMA test_schema; CREATE SCHEMA test_schema_2; CREATE EXTENSION hstore")
    report = home / "report"
    report.unlink(missing_ok=True)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {
        "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "suite", "PGPASSWORD": "suite", "PGDATABASE": "suite",
        "PSYCOPG2_TESTDB": "suite", "PSYCOPG2_TESTDB_HOST": "127.0.0.1", "PSYCOPG2_TESTDB_PORT": str(port),
        "PSYCOPG2_TESTDB_USER": "suite", "PSYCOPG2_TESTDB_PASSWORD": "suite",
        "PGX_TEST_DATABASE": f"host=127.0.0.1 port={port} user=suite password=suite dbname=suite",
        "GO111MODULE": "off", "GOPATH": str(home / "gopath"), "GOCACHE": str(cache / "go/cache"),
        "DJANGO_SETTINGS_MODULE": "pooled", "PYTHONPATH": str(home),
    }
    # Its words into a file: a pipe that nobody reads fills up.
    with (home / "log").open("w") as log:
        process = subprocess.Popen(suite.command(home, cache, report, port), cwd=home, env=variables, text=True,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(PATIENCE)
        except BaseException as reason:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(reason, subprocess.TimeoutExpired):
                raise
    # What a suite leaves running would be in the way of the next.
    time.sleep(1)
    results = Results(suite.version)
    suite.read(report, (home / "log").read_text(errors="replace"), results)
    return results


def sdist(package, version, *folders):
    """Unpacks folders of a package's source distribution."""
    def prepare(home, cache):
        pip = [cache / "venv/bin/pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--no-build-isolation", "--no-binary", ":all:", "-d", home, f"{package}=={version}"]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        archive = next(home.glob("*.tar.gz"))
        with tarfile.open(archive) as source:
            source.extractall(home, filter="data")
        unpacked = next(path for path in home.iterdir() if path.is_dir())
        for folder in folders:
            (unpacked / folder).rename(home / Path(folder).name)
        archive.unlink()
        shutil.rmtree(unpacked)
    return prepare


def pytest(*arguments):
    def command(home, cache, report, port):
        return [cache / "venv/bin/python", "-m", "pytest", "-q", "--tb=native", "--timeout", str(PATIENCE_FOR_ONE),
                "-p", "no:cacheprovider", "--junitxml", report, *(a.format(port=port) for a in arguments)]
    return command


def read_junit(report, log, results):
    if not report.exists():
        return
    for case in ET.parse(report).iter("testcase"):
        test = f"{case.get('classname') or ''}.{case.get('name') or ''}".removeprefix("tests.").removeprefix("test.")
        bad = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        if bad is not None:
            # A subtest that fails makes its test fail.
            results.add(test, "skipped" if bad.tag == "skipped" else "failed", bad.get("message") or "")
        elif results.tests.get(test) != "failed":
            results.add(test, "passed")


DJANGO_SETTINGS = """
import os
one = lambda name: {"ENGINE": "django.db.backends.postgresql", "NAME": name, "TEST": {"NAME": name}, "USER": "suite",
    "PASSWORD": "suite", "HOST": "127.0.0.1", "PORT": os.environ["PGPORT"], "DISABLE_SERVER_SIDE_CURSORS": True}
DATABASES = {"default": one("suite"), "other": one("suite_other")}
SECRET_KEY = "of a test"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
"""

DJANGO_LABELS = """backends transactions transaction_hooks bulk_create update select_for_update lookup queries aggregation
    annotations get_or_create postgres_tests schema migrations introspection force_insert_update basic""".split()


def prepare_django(home, cache):
    sdist("Django", "5.2.19", "tests")(home, cache)
    (home / "pooled.py").write_text(DJANGO_SETTINGS)


def django(home, cache, report, port):
    return [cache / "venv/bin/python", home / "tests/runtests.py", "--settings", "pooled", "--parallel", "1", "--noinput",
            "--keepdb", "-v", "2", *DJANGO_LABELS]


def read_unittest(report, log, results):
    words = {"ok": "passed", "FAIL": "failed", "ERROR": "failed"}
    # What a test prints may stand between its name and its outcome.
    pattern = r"^(\w+) \(([\w.]+)\)(?:(?!^\w+ \([\w.]+\)).)*?\.\.\. (?:(?!^\w+ \([\w.]+\)).)*?(ok|FAIL|ERROR|skipped .*?)$"
    for name, place, word in re.findall(pattern, log, re.M | re.S):
        test = place if place.endswith(f".{name}") else f"{place}.{name}"
        results.add(test, words.get(word, "skipped"))
    for kind, name, place, text in re.findall(r"^(ERROR|FAIL): (\w+) \(([\w.]+)\).*?\n-+\n(.*?)\n\n(?:=|-)", log, re.M | re.S):
        test = place if place.endswith(f".{name}") else f"{place}.{name}"
        results.add(test, "failed", text.strip().splitlines()[-1] if text.strip() else kind)


def prepare_tokio_postgres(home, cache):
    """From cargo's own copy of the crate. Its tests name the server of its own CI: that is replaced by ours."""
    registry = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "registry/src"
    source = next(registry.glob(f"*/tokio-postgres-{TOKIO_POSTGRES}"))
    shutil.copytree(source, home / "crate")
    manifest = home / "crate/Cargo.toml"
    manifest.write_text(manifest.read_text() + "\n[workspace]\n")
    for path in (home / "crate/tests/test").rglob("*.rs"):
        text = path.read_text()
        text = text.replace('TcpStream::connect("127.0.0.1:5433")',
                            'TcpStream::connect(format!("127.0.0.1:{}", std::env::var("PGPORT").unwrap()))')
        text = text.replace("user=postgres", "user=suite password=suite dbname=suite")
        path.write_text(text)
    build(home, cache)


def build(home, cache):
    subprocess.run(tokio_postgres(home, cache, None, None, "--no-run"), cwd=home, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def tokio_postgres(home, cache, report, port, *arguments):
    # `runtime` is about addresses, ports and kinds of passwords of that other server.
    rest = arguments or ("--", "--test-threads", "4", "--skip", "runtime::", "--skip", "parse::")
    return ["cargo", "test", "--manifest-path", home / "crate/Cargo.toml", "--target-dir", cache / "rust-target", "--test",
            "test", "--all-features", *rest]


def read_cargo(report, log, results):
    for test, word in re.findall(r"^test (\S+) \.\.\. (ok|FAILED|ignored)", log, re.M):
        results.add(test, {"ok": "passed", "FAILED": "failed"}.get(word, "skipped"))
    for test, text in re.findall(r"^---- (\S+) stdout ----\n(.*?)(?=^---- |^failures:)", log, re.M | re.S):
        results.add(test, "failed", text)


def prepare_pgx(home, cache):
    """Debian's copy is among everything else that is packaged for Go: a GOPATH with links to it."""
    (home / "gopath").symlink_to("/usr/share/gocode")
    if not Path("/usr/share/gocode/src/github.com/jackc/pgx/v4/conn_test.go").exists():
        raise FileNotFoundError("golang-github-jackc-pgx-v4-dev without its tests")


def pgx(home, cache, report, port):
    return ["go", "test", "-json", "-timeout", "60s", "-count=1", "github.com/jackc/pgx/v4",
            "github.com/jackc/pgx/v4/pgxpool", "github.com/jackc/pgx/v4/stdlib"]


def read_go(report, log, results):
    words = {"pass": "passed", "fail": "failed", "skip": "skipped"}
    said = {}
    for line in log.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if "Test" not in event:
            continue
        test = f"{event['Package'].split('/')[-1]}.{event['Test']}"
        if event["Action"] == "output":
            if not event["Output"].lstrip().startswith(("===", "Error Trace", "/")):
                said[test] = said.get(test, "") + event["Output"]
        elif event["Action"] in words:
            results.add(test, words[event["Action"]], "" if event["Action"] == "pass" else said.get(test, ""))
    # A test with subtests fails with them.
    for test in {test.rsplit("/", 1)[0] for test in results.tests if "/" in test}:
        results.tests.pop(test, None)


SQLALCHEMY = ("test/dialect/test_suite.py", "test/dialect/postgresql", "test/engine/test_transaction.py")

SUITES = {
    "asyncpg": Suite("0.32.0", sdist("asyncpg", "0.32.0", "tests"), pytest("tests"), read_junit),
    "psycopg2": Suite("2.9.13", sdist("psycopg2", "2.9.13", "tests"), pytest("tests", "-o", "python_files=test_*.py"),
                      read_junit),
    "Django": Suite("5.2.19", prepare_django, django, read_unittest),
    "SQLAlchemy": Suite("2.1.9", sdist("sqlalchemy", "2.1.9", "test", "lib", "setup.cfg", "pyproject.toml"), pytest(
        "-p", "no:warnings", "--dburi", "postgresql+psycopg://suite:suite@127.0.0.1:{port}/suite", *SQLALCHEMY), read_junit),
    "tokio-postgres": Suite(TOKIO_POSTGRES, prepare_tokio_postgres, tokio_postgres, read_cargo),
    "pgx": Suite("4", prepare_pgx, pgx, read_go),
}
