#!/usr/bin/env python3
"""Measures pgtenant beside PgBouncer and a direct connection, on one throwaway PostgreSQL, and prints a table.

    benches/table.py                                  # everything, about 25 minutes
    benches/table.py --cases "prepared-16 sealed" --rounds 3 --seconds 2
    benches/table.py --pgbouncer ./pgbouncer --out benches/RESULTS.txt

Every round runs all targets of a case in turn, each round beginning with another one; figures are medians over the
rounds, and ratios medians of the ratios within each round. CPU is the pooler's own, user and system, per transaction.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import ground

CASES = {}


class Case:
    """What is run, against whom, and what is to be reached."""

    def __init__(self, name, title, targets, goals, load):
        self.name, self.title, self.targets, self.goals, self.load = name, title, targets, goals, load
        CASES[name] = self


def pgbench(mode, clients, script, tls=False):
    """A load by pgbench, which signs in by SCRAM as the service account."""
    def run(bench, target):
        (bench.ground.folder / "script.sql").write_text(script.replace("SCALE", str(bench.options.scale)))
        port = bench.port(target, tls)
        command = [bench.ground.pgbench, "-n", "-M", mode, "-c", clients, "-j", min(clients, 2), "-T",
                   bench.options.seconds, "-P", 1, "-f", bench.ground.folder / "script.sql", "-h", "127.0.0.1",
                   "-p", port, "-U", "service", "cases"]
        environment = {"PGPASSWORD": bench.ground.password, "PGSSLMODE": "require" if tls else "disable",
                       "PATH": os.environ["PATH"], "LC_ALL": "C"}
        samples, transactions = [], 0.0
        process = subprocess.Popen(list(map(str, command)), env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        server = bench.server(target, tls)
        last = None
        for line in process.stderr:
            if line.startswith("progress: ") and server:
                now = time.monotonic()
                if last is not None:
                    transactions += float(line.split()[3]) * (now - last)
                last = now
                samples.append(server.cpu())
        out = process.stdout.read()
        if process.wait() != 0:
            sys.exit(f"bench: pgbench failed against {target}")
        words = {line.split(" = ")[0]: line.split(" = ")[1].split()[0] for line in out.splitlines() if " = " in line}
        cpu = (samples[-1] - samples[0]) / transactions * 1e6 if transactions else None
        return Figure(float(words["tps"]), float(words["latency average"]), cpu)
    return run


def load(mode, clients, table, user="service", passwords="passwords"):
    """A load of clients with a password each: a token of one of a hundred organizations."""
    def run(bench, target):
        command = [bench.load, mode(target) if callable(mode) else mode, bench.port(target, False),
                   user(target) if callable(user) else user, "cases",
                   bench.ground.folder / (passwords(target) if callable(passwords) else passwords), clients,
                   bench.options.seconds, table(target) if callable(table) else table]
        process = subprocess.Popen(list(map(str, command)), text=True, stdout=subprocess.PIPE)
        server = bench.server(target, False)
        if process.stdout.readline() != "started\n":
            sys.exit(f"bench: the clients could not sign in to {target}")
        before = server.cpu() if server else 0
        tps, mean, _ = map(float, process.stdout.readline().split())
        cpu = (server.cpu() - before) / (tps * bench.options.seconds) * 1e6 if server else None
        process.wait()
        return Figure(tps, mean, cpu)
    return run


class Figure:
    def __init__(self, tps, latency, cpu):
        self.tps, self.latency, self.cpu = tps, latency, cpu


ONE_ROW = "\\set aid random(1, 100000 * SCALE)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
ROWS = ("\\set aid random(1, 100000 * SCALE - 1000)\n"
        "SELECT aid, bid, abalance, filler FROM pgbench_accounts WHERE aid BETWEEN :aid AND :aid + 999;\n")
ALL = ["direct", "pgbouncer", "pgtenant"]

# A goal: what it is called, which figure of pgtenant, compared with whose, and the limit.
TPS, CPU, LATENCY = "tps", "cpu", "latency"


def at_least(factor, of="pgbouncer", figure=TPS):
    return (f"{factor} x {of}'s {figure}", of, figure, lambda ratio: ratio >= factor)


def at_most(factor, of="pgbouncer", figure=CPU):
    return (f"at most {factor} x {of}'s {figure}", of, figure, lambda ratio: ratio <= factor)


Case("prepared-1", "one row by primary key, prepared, 1 client", ALL, [], pgbench("prepared", 1, ONE_ROW))
Case("prepared-16", "one row by primary key, prepared, 16 clients", ALL, [at_least(1.15), at_most(0.9)],
     pgbench("prepared", 16, ONE_ROW))
Case("prepared-64", "one row by primary key, prepared, 64 clients", ALL, [], pgbench("prepared", 64, ONE_ROW))
Case("prepared-200", "one row by primary key, prepared, 200 clients", ["pgbouncer", "pgtenant"], [at_least(1.2)],
     pgbench("prepared", 200, ONE_ROW))
Case("simple-1", "one row by primary key, simple protocol, 1 client", ALL, [at_most(1.0, figure=LATENCY)],
     pgbench("simple", 1, ONE_ROW))
Case("simple-16", "one row by primary key, simple protocol, 16 clients", ALL, [], pgbench("simple", 16, ONE_ROW))
Case("simple-64", "one row by primary key, simple protocol, 64 clients", ALL, [], pgbench("simple", 64, ONE_ROW))
Case("rows", "1,000 rows of 100 bytes, prepared, 8 clients", ALL, [at_least(1.1)], pgbench("prepared", 8, ROWS))
Case("tls", "one row by primary key, prepared, 16 clients, TLS between client and pooler", ["pgbouncer", "pgtenant"],
     [at_least(1.15)], pgbench("prepared", 16, ONE_ROW, tls=True))


def tenancy(name, title, clients, goals):
    """pgtenant without tenancy, under plain and sealed policies; the application on PgBouncer sets its own."""
    tables = {"plain pooling": "plain", "plain setting": "setting", "sealed": "sealed", "application on pgbouncer": "application"}
    Case(name, title, list(tables), goals, load(
        lambda target: "application" if target.startswith("application") else "select", clients,
        lambda target: "bench." + tables[target],
        lambda target: "app" if target in ("plain setting", "sealed") else "service",
        lambda target: "tokens" if target in ("plain setting", "sealed") else "passwords"))


def tenancy_goals():
    setting = "plain setting"
    return [
        ("plain setting: 0.9 x plain pooling's tps", "plain pooling", TPS, lambda ratio: ratio >= 0.9, setting),
        ("plain setting: 2.5 x the application's tps", "application on pgbouncer", TPS, lambda ratio: ratio >= 2.5, setting),
        ("sealed: 2 x the application's tps", "application on pgbouncer", TPS, lambda ratio: ratio >= 2.0, "sealed"),
    ]


tenancy("tenancy-16", "one row under row level security, 16 clients of 16 organizations", 16, tenancy_goals())
tenancy("tenancy-100", "one row under row level security, 100 clients of 100 organizations: five to a server", 100,
        tenancy_goals())


class Bench:
    def __init__(self, options, programs):
        self.options, self.programs = options, programs
        self.ground = ground.Ground(programs["pgtenant"], options.scale)
        self.load = programs["load"]
        self.running = {}

    def server(self, target, tls):
        name = "pgbouncer" if "pgbouncer" in target else "direct" if target == "direct" else "pgtenant"
        if name == "direct":
            return None
        if (name, tls) not in self.running:
            self.running[name, tls] = getattr(ground, name)(self.ground, self.programs[name], tls)
        return self.running[name, tls]

    def port(self, target, tls):
        server = self.server(target, tls)
        return server.port if server else self.ground.postgres.port

    def run(self, case):
        targets = [t for t in case.targets if "pgbouncer" not in t or self.programs["pgbouncer"]]
        seconds, self.options.seconds = self.options.seconds, 1
        for target in targets:  # opens servers and fills caches; not counted
            case.load(self, target)
        self.options.seconds = seconds
        rounds = []
        for number in range(self.options.rounds):
            turn = targets[number % len(targets):] + targets[:number % len(targets)]
            rounds.append({target: case.load(self, target) for target in turn})
            print(f"{case.name}, round {number + 1} of {self.options.rounds}: " + ", ".join(
                f"{t} {f.tps:.0f}" for t, f in rounds[-1].items()), file=sys.stderr)
        return targets, rounds

    def idle(self, target, clients):
        """Resident memory of a pooler before and while many clients are signed in."""
        server = self.server(target, False)
        before = server.resident_mib()
        command = [self.load, "idle", server.port, "service", "cases", self.ground.folder / "passwords", clients, 0, "-"]
        process = subprocess.Popen(list(map(str, command)), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if process.stdout.readline() != "started\n":
            sys.exit(f"bench: {clients} clients could not sign in to {target}")
        time.sleep(2)
        during = server.resident_mib()
        process.stdin.close()
        process.wait()
        return before, during

    def seal_cost(self):
        """Microseconds of a seal's check in PostgreSQL, beyond reading a setting; the median of five."""
        token = self.ground.tokens.read_text().splitlines()[0].split()[1]
        def ask(what):
            url = f"postgres://app@127.0.0.1:{self.port('pgtenant', False)}/cases"
            command = [ground.drivers.PSQL, "-XAtq", url, "-c", f"SELECT bench.cost('{what}', 20000)"]
            environment = {**os.environ, "PGPASSWORD": token}
            return float(subprocess.run(command, env=environment, text=True, check=True, capture_output=True).stdout)
        return statistics.median(ask("seal") - ask("setting") for _ in range(5))

    def stop(self):
        for server in self.running.values():
            server.stop()
        self.ground.stop()


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def report(case, targets, rounds):
    base = next((t for t in targets if "pgbouncer" in t), None)
    lines = [f"\n## {case.title}\n", "| target | tps | x PgBouncer | latency ms | CPU us/transaction | tps min..max |",
             "|---|---:|---:|---:|---:|---:|"]
    for target in targets:
        figures = [r[target] for r in rounds]
        ratio = f"{median([r[target].tps / r[base].tps for r in rounds]):.2f}" if base else "-"
        cpu = median([f.cpu for f in figures])
        low, high = min(f.tps for f in figures), max(f.tps for f in figures)
        lines.append(f"| {target} | {median([f.tps for f in figures]):.0f} | {ratio} | "
                     f"{median([f.latency for f in figures]):.3f} | {f'{cpu:.1f}' if cpu else '-'} | {low:.0f}..{high:.0f} |")
    verdicts = []
    for words, of, figure, is_reached, *who in case.goals:
        who = who[0] if who else "pgtenant"
        if of in targets:
            pairs = [(getattr(r[who], figure), getattr(r[of], figure)) for r in rounds]
            ratio = median([ours / theirs for ours, theirs in pairs if ours and theirs])
            if ratio is None:
                continue  # runs shorter than three seconds have no CPU time
            verdicts.append((words, f"{ratio:.2f}", is_reached(ratio)))
            lines.append(f"\nGoal: {words}. Measured: {ratio:.2f}, {'reached' if is_reached(ratio) else 'NOT reached'}.")
    return lines, verdicts


def header(options, bench, programs):
    def said(*command):
        return subprocess.run(list(map(str, command)), capture_output=True, text=True).stdout.splitlines()[0]
    model = next((line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "unknown")
    peer = said(programs["pgbouncer"], "--version") if programs["pgbouncer"] else "no PgBouncer"
    return [
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"- Machine: {model}, {os.cpu_count()} cores; load before the runs: {os.getloadavg()[0]:.2f}",
        f"- {said(f'{bench.ground.postgres.bin}/postgres', '--version')}; {peer}; {said(programs['pgtenant'], '--version')}",
        f"- {options.rounds} rounds of {options.seconds} s, targets in turn; transaction mode, {ground.SERVERS} servers; "
        "everything on one machine over loopback, SCRAM or tokens, no TLS but where it says so",
    ]


def programs(options):
    pgtenant = options.pgtenant
    if not pgtenant:
        target = Path(os.environ.get("CARGO_TARGET_DIR", ground.ROOT / "target"))
        subprocess.run(["cargo", "build", "--locked", "--release", "--bin", "pgtenant"], cwd=ground.ROOT, check=True)
        pgtenant = target / "release/pgtenant"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pgtenant-load"
    subprocess.run(["cargo", "build", "--locked", "--release", "-q", "--target-dir", cache],
                   cwd=ground.ROOT / "benches/load", check=True)
    pgbouncer = options.pgbouncer or shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if not pgbouncer:
        print("bench: PgBouncer is not installed: running without it", file=sys.stderr)
    return {"pgtenant": Path(pgtenant), "load": cache / "release/load", "pgbouncer": pgbouncer}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=" ".join([*CASES, "idle", "seal"]), help="names, with spaces between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--scale", type=int, default=10, help="pgbench's scale factor")
    parser.add_argument("--idle-clients", type=int, default=10_000)
    parser.add_argument("--pgbouncer", help="a program; otherwise from PATH")
    parser.add_argument("--pgtenant", help="a program; otherwise it is built")
    parser.add_argument("--out", type=Path, help="also write the report there")
    options = parser.parse_args()
    names = options.cases.split()
    if unknown := [name for name in names if name not in (*CASES, "idle", "seal")]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}, idle, seal")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    found = programs(options)
    bench = Bench(options, found)
    try:
        lines, verdicts = header(options, bench, found), []
        for name in names:
            if name in CASES:
                more, judged = report(CASES[name], *bench.run(CASES[name]))
                lines += more
                verdicts += [(name, *verdict) for verdict in judged]
        if "seal" in names:
            cost = bench.seal_cost()
            lines += ["\n## The seal's check in PostgreSQL\n", f"{cost:.1f} us beyond reading a setting, at each call."]
            verdicts.append(("seal", "at most 15 us per query", f"{cost:.1f} us", cost <= 15))
        if "idle" in names:
            lines += [f"\n## {options.idle_clients:,} idle signed-in clients\n", "| target | MiB before | MiB with them |", "|---|---:|---:|"]
            for target in ["pgbouncer", "pgtenant"] if found["pgbouncer"] else ["pgtenant"]:
                before, during = bench.idle(target, options.idle_clients)
                lines.append(f"| {target} | {before:.1f} | {during:.1f} |")
            verdicts.append(("idle", "at most 60 MiB", f"{during:.1f} MiB", during <= 60))
        lines += ["\n## Goals\n", "| case | goal | measured | |", "|---|---|---:|---|"]
        lines += [f"| {case} | {goal} | {value} | {'reached' if ok else '**not reached**'} |" for case, goal, value, ok in verdicts]
    finally:
        bench.stop()
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
