"""Runs the cases of a Python driver and prints a line for each: name, seconds, outcome."""

import inspect
import os
import time

APP = os.environ["PGAPPNAME"]
# Of a token: its organization, a second token, and that one's organization. Empty without tenancy.
TENANT, TOKEN, OTHER = (os.environ.get(f"CASES_{name}", "") for name in ("TENANT", "TOKEN", "OTHER"))
ROWS = 1000
ISSUER = os.environ.get("CASES_ISSUER", "")
# The certificate that a server shows, which is its own root; and whether the server is the proxy.
ROOT, PROXY = os.environ["CASES_ROOT"], bool(os.environ.get("CASES_PROXY"))


def sqlstate(error):
    """What PostgreSQL called the error, wherever the library keeps it."""
    while error is not None:
        for holder in (error, getattr(error, "orig", None)):
            state = getattr(holder, "sqlstate", None)
            if state:
                return state
        error = error.__cause__
    return None


def failure(error):
    text = " ".join(str(error).split())
    return f"{sqlstate(error) or type(error).__name__}: {text[:160]}"


async def run_async(version, cases):
    print("version", 0, version, sep="\t", flush=True)
    until = float(os.environ.get("CASES_UNTIL") or 0)
    while True:
        for case in cases:
            start = time.monotonic()
            try:
                outcome = case()
                outcome = await outcome if inspect.isawaitable(outcome) else outcome
            except Exception as error:  # every failure is an outcome: the runner compares it
                outcome = failure(error)
            if outcome is not None:
                print(case.__name__, f"{time.monotonic() - start:.3f}", outcome, sep="\t", flush=True)
        if time.time() >= until:
            return


def run(version, cases):
    coroutine = run_async(version, cases)
    try:
        coroutine.send(None)
    except StopIteration:
        pass
