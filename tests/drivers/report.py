"""What differs, and the results as text."""

import platform
import re
from collections import Counter
from dataclasses import dataclass, field

OK, NOT_BUILT, NONE = "ok", "not built", "–"


@dataclass
class Verdict:
    """A cell says ok, or the number of the reason; what has none is a failure."""

    cells: dict = field(default_factory=dict)
    reasons: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    passed: int = 0

    def number(self, reason):
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"[{self.reasons.index(reason) + 1}]"

    def note(self, key, outcome, expected, reason):
        if outcome == expected:
            self.cells[key] = OK
            self.passed += 1
        elif reason:
            self.cells[key] = self.number(reason)
            self.passed += 1
        else:
            self.cells[key] = "**differs**"
            self.failures.append(f"{', '.join(key)}: {outcome!r} instead of {expected!r}")


def judge(results, own, known, fixed, reason_for):
    verdict = Verdict()
    for driver, columns in results.items():
        direct = columns["direct"].cases
        if not direct or "(end)" in direct:
            verdict.failures.append(f"{driver}, direct: {direct.get('(end)', (0, 'printed nothing'))[1]}")
        for column, outcomes in columns.items():
            for case in [*direct, *(case for case in outcomes.cases if case not in direct)]:
                if column == "direct":
                    continue
                outcome = outcomes.cases.get(case, (0, "no answer"))[1]
                expected = fixed.get(case, direct.get(case, (0, "nothing"))[1])
                reason = None if outcome == expected else reason_for(known, driver, column, case, outcome)
                verdict.note((driver, column, case), outcome, expected, reason)
    for suite, columns in own.items():
        direct = columns["direct"].tests
        if "passed" not in direct.values():
            verdict.failures.append(f"{suite}'s suite, direct: no test passed")
        for column, outcomes in columns.items():
            if column == "direct":
                continue
            verdict.passed += sum(outcomes.tests.get(test) == "passed" == outcome for test, outcome in direct.items())
            for test in {**direct, **outcomes.tests}:
                outcome, expected = outcomes.tests.get(test, "no answer"), direct.get(test, "not run")
                # A test that PostgreSQL itself fails here says nothing about the proxy.
                if expected == outcome or expected != "passed":
                    continue
                detail = f"{outcome} {outcomes.details.get(test, '')}"
                reason = reason_for(known, f"{suite}, suite", column, test, detail)
                verdict.note((f"{suite}, suite", column, test), detail.strip(), expected, reason)
    return verdict


def cell(verdict, columns, driver, column, case):
    outcomes = columns.get(column)
    if outcomes is None:
        return NOT_BUILT
    if case not in outcomes.cases and (driver, column, case) not in verdict.cells:
        return NONE
    took = outcomes.cases.get(case, (0, ""))[0]
    word = OK if column == "direct" else verdict.cells[driver, column, case]
    return f"{word} {took:.2f}"


def write(results, own, verdict, absent, missing, postgres, modes, sign_ins):
    columns = ["direct", *(f"{mode} {sign_in}" for mode in modes for sign_in in sign_ins)]
    version = postgres.sql("postgres", "SHOW server_version").split()[0]
    lines = [
        "# Drivers", "",
        "Written by `make drivers`; [README.md](README.md) says what the cases are and how they are compared.", "",
        f"PostgreSQL {version}, {platform.system()} {platform.machine()}.",
    ]
    lines += [f"- `pool_mode = \"{mode}\"` is not built yet." for mode in missing]
    lines += [f"- {name} is absent: {reason}" for name, reason in absent.items()]
    if results:
        lines += ["", "## Summary", "", row(["driver", "version", *columns]), row(["---"] * (2 + len(columns)))]
        for driver, runs in results.items():
            lines.append(row([driver, runs["direct"].version, *(summary(verdict, runs, driver, c) for c in columns)]))
        lines += ["", "A number in brackets is the reason of a known difference, below; seconds follow.", ""]
    for driver, runs in results.items():
        cases = list(dict.fromkeys(case for run in runs.values() for case in run.cases))
        lines += [f"## {driver}", "", row(["case", *columns]), row(["---"] * (1 + len(columns)))]
        for case in cases:
            cells = [cell(verdict, runs, driver, column, case) for column in columns]
            lines.append(row([case, *cells]))
        lines.append("")
    lines += suites_text(own, verdict)
    lines += ["## Known differences", ""]
    lines += [f"{n}. {reason}" for n, reason in enumerate(verdict.reasons, 1)]
    if verdict.failures:
        lines += ["", "## Unexplained differences", "", *(f"- {line}" for line in verdict.failures)]
    # Of a path in somebody's traceback the last part says enough, on every machine.
    return re.sub(r"(?<![\w.})$-])/(?:[\w.@+-]+/)+", "…/", "\n".join(lines).rstrip()) + "\n"


def suites_text(own, verdict):
    if not own:
        return []
    lines = ["## The drivers' own test suites", "",
             "As the service account. A test that fails directly too is not compared.", "",
             row(["suite", "column", "tests", "pass directly", "also through the proxy", "known differences", "differ"]),
             row(["---"] * 7)]
    listed = []
    for suite, columns in own.items():
        direct = columns["direct"].tests
        good = [test for test, outcome in direct.items() if outcome == "passed"]
        for column, outcomes in columns.items():
            if column == "direct":
                continue
            same = sum(outcomes.tests.get(test) == "passed" for test in good)
            cells = {key[2]: word for key, word in verdict.cells.items() if key[:2] == (f"{suite}, suite", column)}
            bad = sum("differs" in word for word in cells.values())
            lines.append(row([f"{suite} {columns['direct'].version}", column, len(direct), len(good), same,
                              len(cells) - bad, bad]))
            by_word = {}
            for test, word in sorted(cells.items()):
                by_word.setdefault(word, []).append(test)
            if cells or outcomes.repeated:
                listed += ["", f"{suite}, {column}:", ""]
            if outcomes.repeated:
                names = ", ".join(f"`{test}`" for test in outcomes.repeated)
                listed.append(f"- differed once without a reason, and counts as in a second run: {names}")
            for word, tests in by_word.items():
                # Without parameters, of which some have hundreds.
                counts = Counter(re.sub(r"\[.*\]$|/.*", "", test) for test in tests)
                names = (f"`{test}`" + (f" × {count}" if count > 1 else "") for test, count in counts.items())
                listed += [f"- {word}: " + ", ".join(names)]
    return [*lines, *listed, ""]


def summary(verdict, runs, driver, column):
    if column not in runs:
        return NOT_BUILT
    if column == "direct":
        return f"{len(runs[column].cases)} cases"
    words = [word for key, word in verdict.cells.items() if key[:2] == (driver, column)]
    known = sum(word.startswith("[") for word in words)
    bad = sum("differs" in word for word in words)
    parts = [f"{words.count(OK)} ok"]
    parts += [f"{known} known"] * (known > 0) + [f"**{bad} differ**"] * (bad > 0)
    return ", ".join(parts)


def row(cells):
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"
