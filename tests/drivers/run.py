#!/usr/bin/env python3
"""Real drivers, directly and through the proxy: every case must have the outcome that PostgreSQL itself gives."""

import argparse
import fnmatch
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import report
import soak
import suites
from lab import ISSUER, PSQL, ROOT, Postgres, Proxy, organization

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgtenant-drivers"
POOL_MODES = ("transaction", "session")
SIGN_INS = ("scram", "jwt")
# What a case's outcome must be where PostgreSQL itself has no such thing.
EXPECTED = {"tenant": "own", "token": "own other own", "direct_tls": "True", "oauth": "discovery own", "protocol": "30002 57014"}
# One driver's cases take at most this long, in seconds.
PATIENCE = 180

PYTHON = [str(CACHE / "venv/bin/python")]
RUST = CACHE / "rust-target/release"
JDBC = "/usr/share/java/postgresql.jar"
COMMANDS = {
    "psql": ["bash", HERE / "psql/cases.sh"],
    "psycopg 3": [*PYTHON, HERE / "python/psycopg3.py"],
    # The implementation that uses the distribution's libpq, which may be older.
    "psycopg 3, system libpq": ["env", "PSYCOPG_IMPL=python", *PYTHON, HERE / "python/psycopg3.py"],
    "asyncpg": [*PYTHON, HERE / "python/asyncpg_cases.py"],
    "SQLAlchemy": [*PYTHON, HERE / "python/sqlalchemy_cases.py"],
    "Django": [*PYTHON, HERE / "python/django_cases.py"],
    "node-postgres": ["node", CACHE / "node/pg.mjs"],
    "postgres.js": ["node", CACHE / "node/postgres.mjs"],
    "Drizzle": ["node", CACHE / "node/drizzle.mjs"],
    "tokio-postgres": [RUST / "tokio_postgres_cases"],
    "sqlx": [RUST / "sqlx_cases"],
    "diesel-async": [RUST / "diesel_async_cases"],
    "pgjdbc": ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{CACHE / 'java'}:{JDBC}", "Cases"],
    "pgx": [CACHE / "go/cases"],
}


@dataclass
class Outcomes:
    """What one driver's run printed: seconds and outcome of each case, in order."""

    version: str = ""
    cases: dict = field(default_factory=dict)


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = [n for n in COMMANDS if not options.only or n in options.only.split(";")]
    absent = install(names, options.offline)
    present = [n for n in names if n not in absent]
    program = build(options.program)
    postgres = proxy = None
    try:
        postgres = Postgres()
        proxy = Proxy(program, postgres, "transaction")
        proxy.prepare()
        if options.soak:
            known = known_differences()
            return soak.run(
                proxy, present, options.soak,
                start=lambda *a: start(proxy, *a),
                outcomes=lambda process: parse(*read(process)).cases,
                fields=fields,
                expected=EXPECTED,
                explain=lambda *a: reason_for(known, *a))
        return matrix(options, proxy, present, absent)
    finally:
        if proxy:
            proxy.remove()
        if postgres:
            postgres.stop()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="drivers, separated by semicolons: " + ", ".join(COMMANDS))
    parser.add_argument("--soak", type=seconds, metavar="10m", help="instead, all drivers at once for so long")
    parser.add_argument("--no-suites", action="store_true", help="without the drivers' own test suites")
    parser.add_argument("--suite", action="append", help="only this suite (and no cases)")
    parser.add_argument("--offline", action="store_true", help="install nothing")
    parser.add_argument("--program", type=Path, help="pgtenant (built if not given)")
    parser.add_argument("--out", type=Path, help="where the results go (tests/drivers/RESULTS.md after a full run)")
    parser.add_argument("--verbose", action="store_true", help="show every outcome")
    return parser.parse_args()


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)([smh])", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def install(names, offline):
    """Runs install.sh; what it says is absent, with the reason."""
    absent = {}
    if offline:
        return absent
    command = ["bash", HERE / "install.sh", CACHE, *names]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("absent\t"):
            _, name, reason = line.rstrip("\n").split("\t", 2)
            absent[name] = reason
        else:
            print(line, end="", file=sys.stderr)
    if process.wait():
        raise SystemExit("drivers: install.sh failed")
    return absent


def build(program):
    if program:
        return program.resolve()
    subprocess.run(["cargo", "build", "--locked", "--release", "--quiet"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve() / "release/pgtenant"


def environment(proxy, column, number, name):
    """libpq's variables for one column, and what the cases know of the tenant. `number` is that of the organization."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    is_direct, is_tenant = column == "direct", column.endswith("jwt")
    variables |= {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(proxy.postgres.port if is_direct else proxy.port),
        "PGUSER": "app" if is_tenant else "service",
        "PGPASSWORD": proxy.token(number) if is_tenant else proxy.passwords["service"],
        "PGDATABASE": "cases",
        "PGSSLMODE": "disable",
        "PGAPPNAME": f"{name.replace(' ', '-')}-{number}",
        "PSQL": PSQL,
        "CASES_ROOT": str((proxy.postgres.home if is_direct else proxy.folder) / "tls.crt"),
    }
    if not is_direct:
        variables["CASES_PROXY"] = "1"
    if is_tenant:
        variables["CASES_TENANT"] = organization(number)
        variables["CASES_ISSUER"] = ISSUER
        variables |= {"CASES_TOKEN": proxy.token(number + 1), "CASES_OTHER": organization(number + 1)}
    return variables


def start(proxy, name, column, number, until=None):
    variables = environment(proxy, column, number, name)
    if until:
        variables["CASES_UNTIL"] = str(until)
    return subprocess.Popen(COMMANDS[name], env=variables, cwd=proxy.folder, stdin=subprocess.DEVNULL, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def read(process, patience=PATIENCE):
    """All that a driver's process prints, and how it ended if not well."""
    try:
        out, _ = process.communicate(timeout=patience)
        end = f"exit status {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        end = f"hung for {patience} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return out, end


def parse(out, end):
    outcomes, rest = Outcomes(), []
    for line in out.splitlines():
        case, took, outcome = fields(line)
        if case is None:
            rest.append(line)
        elif case == "version":
            outcomes.version = outcome
        else:
            outcomes.cases[case] = (took, outcome)
    if end:
        outcomes.cases["(end)"] = (0.0, " ".join([end, *" ".join(rest[-5:]).split()])[:400])
    return outcomes


def fields(line):
    """Name, seconds and outcome of a line that a case printed; of another (warnings, a trace) only its text."""
    parts = line.rstrip("\n").split("\t", 2)
    if len(parts) < 3 or not re.fullmatch(r"[\d.]+", parts[1]):
        return None, 0.0, line.strip()
    return parts[0], float(parts[1]), parts[2]


def known_differences():
    return tomllib.loads((HERE / "known.toml").read_text())["known"]


def reason_for(known, driver, column, case, outcome):
    """The first listed difference that fits."""
    for entry in known:
        fits = [(entry.get("driver", "*"), driver), (entry.get("column", "*"), column), (entry["case"], case)]
        if all(fnmatch.fnmatchcase(what, pattern) for pattern, what in fits):
            if re.search(entry.get("outcome", ""), outcome):
                entry["used"] = True
                return entry["reason"]
    return None


def matrix(options, proxy, present, absent):
    known = known_differences()
    results, missing = {}, {}
    if not options.suite:
        results = {name: {"direct": run_once(options, proxy, name, "direct", 1)} for name in present}
    own = {}
    for mode in POOL_MODES:
        why = proxy.refuses(mode)
        if why:
            missing[mode] = why
            print(f"pool_mode {mode}: not built ({why})", file=sys.stderr)
            continue
        proxy.start()
        for name, columns in results.items():
            for sign_in in SIGN_INS:
                columns[f"{mode} {sign_in}"] = run_once(options, proxy, name, f"{mode} {sign_in}", 1)
        if not options.no_suites:
            suites.run(proxy, mode, CACHE, own, options.suite)
            once_more(proxy, mode, own, known)
        proxy.stop()
    verdict = report.judge(results, own, known, EXPECTED, reason_for)
    text = report.write(results, own, verdict, absent, missing, proxy.postgres, POOL_MODES, SIGN_INS)
    is_full = not (options.only or options.suite or options.no_suites)
    out = options.out or (HERE / "RESULTS.md" if is_full else None)
    if out:
        out.write_text(text)
    print(text if not out else f"written: {out}")
    for line in verdict.failures:
        print(f"DIFFERS  {line}")
    print(f"{verdict.passed} passed, {len(verdict.failures)} failed")
    return 1 if verdict.failures else 0


def once_more(proxy, mode, own, known):
    """Suites race with the machine that they run on. One with a test that differs and has no reason runs again, and what such a
    test then says is taken; that it was, is told."""
    column = f"{mode} scram"
    for suite, columns in own.items():
        direct, tests = columns["direct"].tests, columns[column].tests
        odd = [
            test for test, outcome in direct.items()
            if outcome == "passed" and tests.get(test) != "passed" and not reason_for(
                known, f"{suite}, suite", column, test,
                f"{tests.get(test, 'no answer')} {columns[column].details.get(test, '')}")
        ]
        if not odd:
            continue
        print(f"{suite}'s suite, {column}, again for {', '.join(odd)}", file=sys.stderr)
        second = {suite: {"direct": columns["direct"]}}
        suites.run(proxy, mode, CACHE, second, suite)
        for test in odd:
            tests[test] = second[suite][column].tests.get(test, "no answer")
            columns[column].details[test] = second[suite][column].details.get(test, "")
        columns[column].repeated = odd


def run_once(options, proxy, name, column, number):
    began = time.monotonic()
    outcomes = parse(*read(start(proxy, name, column, number)))
    print(f"{name}, {column}: {len(outcomes.cases)} cases in {time.monotonic() - began:.1f} s", file=sys.stderr)
    if options.verbose:
        for case, (took, outcome) in outcomes.cases.items():
            print(f"    {case} {took:.2f} {outcome}", file=sys.stderr)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
