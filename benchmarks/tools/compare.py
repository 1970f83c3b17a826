"""Compare the strategies: which hooks each overrides, its contract suite, and what it costs on this machine.

python -m benchmarks.tools.compare [--tasks N] [--no-suite] [--hooks] [NAME ...]

Without names it compares all of them, and writes the two tables into variants/README.md, between the marks there. The
exit code is 1 if a suite failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

import shmqueue
from benchmarks.harness import CORES, ROOT, Case, Sample, alternate, number
from benchmarks.report import machine, table
from benchmarks.tools.locking import ours_locking, ours_pause, ours_rate
from variants import strategies
from variants.strategy import Lock, Strategy

README = ROOT / "variants" / "README.md"
SUITE = ROOT / "tests" / "strategies" / "test_contract.py"
FEW, MANY = 2, 16  # workers of the rates
PROCESSES = "auto"  # that run the suite
SUITE_SECONDS = 900
RUNS = 3
BUILT_IN = shmqueue.SharedTaskQueue.strategy
BAR = 40  # characters of the longest bar
OWN, SHARED = "●", "○"


@dataclasses.dataclass
class Figures:
    """What was measured of one strategy. locking: empty if it has no lock. pause: milliseconds after a kill."""

    few: Sample
    many: Sample
    locking: Mapping[str, Sample]
    pause: Sample


@dataclasses.dataclass
class Suite:
    """How the contract suite ended: what is said of it, and the tests that failed."""

    text: str
    failed: Sequence[str] = ()


def contract(name: str) -> Suite:
    """Run the contract suite for one strategy."""
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "-p", "no:randomly", "-n", PROCESSES]
    command = [sys.executable, "-m", "pytest", *options, str(SUITE), "-k", name]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SUITE_SECONDS)
    except subprocess.TimeoutExpired:
        return Suite("–", [f"the suite is not done after {SUITE_SECONDS} s"])
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.MULTILINE)
    if done.returncode and not failed:
        last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
        failed = [f"the suite did not run: {last}"]
    return Suite(f"{counts.get('passed', 0)} of {sum(counts.values())}", failed)


def measured(names: Sequence[str], tasks: int) -> dict[str, Figures]:
    """Measure each strategy RUNS times. They take turns."""

    def turns(function: object, **arguments: int) -> dict[str, list]:
        cases = [Case(name, function, {"strategy": name, **arguments}) for name in names]
        return alternate(cases, RUNS, [])

    few = turns(ours_rate, workers=FEW, tasks=tasks)
    many = turns(ours_rate, workers=MANY, tasks=tasks)
    locking = turns(ours_locking, workers=MANY, tasks=tasks)
    pause = turns(ours_pause)
    return {
        name: Figures(
            few=Sample(few[name]),
            many=Sample(many[name]),
            locking={key: Sample([run[key] for run in locking[name]]) for key in locking[name][0]},
            pause=Sample(pause[name]),
        )
        for name in names
    }


def cells(name: str, figures: Figures, suite: Suite) -> list[str]:
    """Return a row of the table."""
    if figures.locking:
        found = {key: sample.median for key, sample in figures.locking.items()}
        locking = [
            f"{found['tasks']:.0f}",
            f"{100 * found['contended']:.1f} %",
            f"{number(found['median'])} µs",
            f"{number(found['p99'])} µs",
        ]
    else:
        locking = ["no lock"] * 4
    text = suite.text + "".join(f", **failed: {test}**" for test in suite.failed)
    return [f"`{name}`", text, figures.few.text(""), figures.many.text(""), *locking, figures.pause.text("ms")]


def beats(ours: Sample, theirs: Sample) -> bool:
    """Return True if each run of ours was faster than each of theirs."""
    return min(ours.values) > max(theirs.values)


def advice(found: Mapping[str, Figures]) -> str:
    """Return one sentence on what to take on this machine: the built-in one, unless another is faster in each run."""
    base = found[BUILT_IN]
    faster = []
    for name, figures in found.items():
        for workers, ours, theirs in ((FEW, figures.few, base.few), (MANY, figures.many, base.many)):
            if beats(ours, theirs):
                gain = 100 * (ours.median / theirs.median - 1)
                pause = f"after a kill the others stand for {figures.pause.text('ms')}"
                faster.append(f"`{name}` is {gain:.0f} % faster with {workers} workers ({pause})")
    if not faster:
        return f"Take `{BUILT_IN}` on this machine: no other one was faster in each of its {RUNS} runs."
    return f"Take `{BUILT_IN}` on this machine, unless tasks are as short as these: {'; '.join(faster)}."


def chart(found: Mapping[str, Figures]) -> str:
    """Return the rates as bars."""
    longest = max(max(figures.few.median, figures.many.median) for figures in found.values())
    width = max(map(len, found))
    lines = []
    for workers, which in ((FEW, "few"), (MANY, "many")):
        lines.append(f"{workers} workers, millions of no-op tasks a second")
        for name, figures in found.items():
            rate = getattr(figures, which).median
            lines.append(f"  {name:{width}}  {'█' * round(BAR * rate / longest)} {rate:.2f}")
    return "\n".join(["```text", *lines, "```"])


def report(
    found: Mapping[str, Figures], suites: Mapping[str, Suite], refusals: Mapping[str, str], tasks: int, load: float
) -> str:
    """Return the table, the chart and the sentence."""
    facts = machine()
    heads = ["", "contract", f"{FEW} workers, M/s", f"{MANY} workers, M/s", "tasks an acquisition", "contended"]
    heads += ["held, median", "held, 99 %", "others go on after a kill"]
    rows = [cells(name, figures, suites[name]) for name, figures in found.items()]
    rows += [[f"`{name}`", f"refuses: {reason}", *[""] * 7] for name, reason in refusals.items()]
    sound = {name: figures for name, figures in found.items() if name == BUILT_IN or not suites[name].failed}
    where = f"{facts['processor']}; {facts['Python']}; workers are forked."
    if load > CORES / 2:
        where += f" The machine was busy (load {load:.0f}): compare rows, not machines."
    what = f"{tasks:,} no-op tasks a run; medians of {RUNS} runs, with the range; locks with {MANY} workers."
    return "\n\n".join([f"{where}\n{what}", table(heads, rows), chart(found), f"**{advice(sound)}**"])


# Which hooks a strategy overrides.


def overridden(kind: type, base: type) -> dict[str, str]:
    """Return which names of `base` a class has anew: in its own file, or in one that it shares."""
    found = {}
    for name in (name for each in base.__mro__[:-1] for name in vars(each) if not name.startswith("__")):
        owner = next(each for each in kind.__mro__ if name in vars(each))
        if owner in base.__mro__:
            continue
        found[name] = OWN if owner.__module__ == kind.__module__ else SHARED
    return found


def matrix() -> str:
    """Return a table of hooks and strategies."""
    kinds = {name: kind for name, kind in strategies.items() if name != BUILT_IN}
    rows = []
    for base, what in ((shmqueue.SharedTaskQueue, ""), (Strategy, ""), (Lock, "lock: ")):
        has = {
            name: overridden(kind.lock_type if what else kind, base)  # type: ignore[attr-defined]
            for name, kind in kinds.items()
        }
        known = {row[0] for row in rows}
        for hook in dict.fromkeys(hook for each in base.__mro__[:-1] for hook in vars(each)):
            row = [f"`{what}{hook}`", *(has[name].get(hook, "") for name in kinds)]
            if any(row[1:]) and row[0] not in known and hook != "strategy":  # which each has
                rows.append(row)
    return table(["", *(f"`{name}`" for name in kinds)], rows)


def write(name: str, new: str) -> None:
    """Write `new` into README, between the two marks of this name."""
    first, last = (f"<!-- {word} of {name}, written by tox -e compare -->" for word in ("begin", "end"))
    before, _, rest = README.read_text().partition(first)
    _, closed, after = rest.partition(last)
    if not closed:
        raise SystemExit(f"{README}: no marks of {name}")
    README.write_text(f"{before}{first}\n{new}\n{last}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tools.compare", description="Compare the strategies.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all, {', '.join(strategies)}")
    parser.add_argument("--tasks", type=int, default=200_000, help="no-op tasks of a rate (default: %(default)s)")
    parser.add_argument("--no-suite", action="store_true", help="leave out the contract suite")
    parser.add_argument("--hooks", action="store_true", help="measure nothing, write the table of hooks alone")
    options = parser.parse_args(arguments)
    if options.hooks:
        write("hooks", matrix())
        return 0
    names = options.names or list(strategies)
    if wrong := set(names) - set(strategies):
        parser.error(f"{', '.join(sorted(wrong))}: none of {', '.join(strategies)}")
    reasons = {name: getattr(strategies[name], "refusal", str)() for name in names}
    able = [name for name in dict.fromkeys([BUILT_IN, *names]) if not reasons.get(name)]
    suites = {}
    for name in able:
        suites[name] = Suite("–") if options.no_suite else contract(name)
        print(f"{name}: {suites[name].text}", *suites[name].failed, file=sys.stderr, flush=True)
    found = measured(able, options.tasks)
    load = os.getloadavg()[1]  # of the last five minutes: that of the run
    refusals = {name: reason for name, reason in reasons.items() if reason}
    text = report(found, suites, refusals, options.tasks, load)
    print(text)
    if not options.names:
        write("hooks", matrix())
        write("figures", text)
    return int(any(suite.failed for suite in suites.values()))


if __name__ == "__main__":
    raise SystemExit(main())
