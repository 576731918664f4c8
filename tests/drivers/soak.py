"""All drivers at once for long: what the proxy's errors, memory and servers look like."""

import os
import signal
import sys
import threading
import time
from collections import Counter

SIGN_INS = ("scram", "jwt")
# Resident memory at the end may exceed that of the middle by this much: allocators keep what was used at a peak.
GROWTH = 0.10
# How long a server may take to be seen as free once its client has left, in seconds.
SETTLING = 10


def run(proxy, names, length, start, outcomes, fields, expected, explain):
    """Drivers run their cases over and over; each outcome must be the one that a direct connection gave."""
    direct = {name: outcomes(start(name, "direct", 1)) for name in names}
    proxy.start()
    until = time.time() + length
    # Odd numbers: a token is changed to that of the next one.
    columns = [(name, f"transaction {sign_in}") for name in names for sign_in in SIGN_INS]
    running = [(name, column, start(name, column, 2 * n + 1, until)) for n, (name, column) in enumerate(columns)]
    counts, wrong = Counter(), Counter()
    readers = [threading.Thread(target=read, args=(*one, fields, direct, expected, explain, counts, wrong)) for one in running]
    for reader in readers:
        reader.start()
    samples = []
    try:
        warm = min(length / 6, 60)
        marks = [time.time() + warm, time.time() + (length + warm) / 2, until]
        for mark in marks:
            time.sleep(max(0.0, mark - time.time()))
            samples.append(sample(proxy, "start middle end".split()[len(samples)]))
        for reader in readers:
            reader.join(120)
    finally:
        for _, _, process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    time.sleep(SETTLING)
    samples.append(sample(proxy, "after"))
    return judge(proxy, samples, counts, wrong, running)


def read(name, column, process, fields, direct, expected, explain, counts, wrong):
    last = ""
    for line in process.stdout:
        case, _, outcome = fields(line)
        if case is None:
            last = outcome or last
        if case in (None, "version"):
            continue
        counts[name] += 1
        should = expected.get(case) or direct[name].get(case, (0, ""))[1]
        if outcome != should and not explain(name, column, case, outcome):
            wrong[f"{name}, {column}, {case}: {outcome[:200]!r} instead of {should[:200]!r}"] += 1
    if process.wait():
        wrong[f"{name}, {column}: exit status {process.returncode}: {last[-300:]}"] += 1


def sample(proxy, when):
    servers = proxy.postgres.sql("postgres", """
        SELECT count(*) FILTER (WHERE usename IN ('app', 'service')),
            count(*) FILTER (WHERE usename IN ('app', 'service') AND state <> 'idle') FROM pg_stat_activity""").split("|")
    seen = {
        "when": when,
        "resident KiB": proxy.resident_kib(),
        "clients": int(proxy.metric("pgtenant_clients")),
        "pgtenant_servers": int(proxy.metric("pgtenant_servers")),
        "in pg_stat_activity": int(servers[0]),
        "not idle": int(servers[1]),
    }
    print(", ".join(f"{key} {value}" for key, value in seen.items()), file=sys.stderr)
    return seen


def judge(proxy, samples, counts, wrong, running):
    keys = list(samples[0])
    print("| " + " | ".join(keys) + " |\n" + "|---" * len(keys) + "|")
    for seen in samples:
        print("| " + " | ".join(str(seen[key]) for key in keys) + " |")
    print(f"\n{len(running)} programs, {sum(counts.values())} cases:",
          ", ".join(f"{name} {count}" for name, count in counts.items()))
    _, middle, end, after = samples
    checks = {
        "every outcome is PostgreSQL's own": not wrong,
        "every program ran cases": len(counts) == len({name for name, _, _ in running}),
        "memory does not grow": end["resident KiB"] <= middle["resident KiB"] * (1 + GROWTH),
        "no client is left": after["clients"] == 0,
        "no server is busy without a client": after["not idle"] == 0,
        "the proxy's servers are PostgreSQL's": after["pgtenant_servers"] == after["in pg_stat_activity"],
        "the proxy runs": proxy.process.poll() is None,
    }
    for what, is_so in checks.items():
        print(f"{'ok  ' if is_so else 'FAIL'} {what}")
    for line, count in wrong.most_common(40):
        print(f"  {count} x {line}")
    return 0 if all(checks.values()) else 1
