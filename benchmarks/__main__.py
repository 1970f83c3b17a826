"""Measure, print, and write BENCHMARKS.md: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import dataclasses
import time

from benchmarks import document, kept, report
from benchmarks.harness import FULL, QUICK, ROWS, Findings
from benchmarks.jobs import WrongError

# What has a goal, and takes no long time.
QUICK_ROWS = (
    *("noop", "returned", "finish", "warm", "kinds", "sizes", "doubling", "records", "neighbour", "workers"),
    *("uneven", "latency", "executor_map", "shell", "start", "opening"),
)


def _options() -> argparse.Namespace:
    about = "Measure shmqueue against other systems, on a quiet machine. A whole run takes a quarter of an hour, keeps "
    about += "its figures by processor, and writes BENCHMARKS.md, benchmarks/internals.md and README's table."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=about)
    quick = "two to three minutes: rows with a goal, in fewer turns, beside the figures that were kept; writes no file"
    parser.add_argument("quick", nargs="?", choices=["quick"], help=quick)
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=ROWS, help=f"only these: {', '.join(ROWS)}")
    parser.add_argument(
        "--turns", type=int, metavar="N", help="how often what is short is measured (default: 7, quick: 5)"
    )
    parser.add_argument("--write", action="store_true", help="measure nothing, write the kept figures out again")
    return parser.parse_args()


def main() -> int:
    options = _options()
    machines = kept.read()
    if options.write:
        document.write(machines)
        return 0
    plan = QUICK if options.quick else FULL
    if options.turns:
        plan = dataclasses.replace(plan, turns=options.turns)
    began = time.monotonic()
    done: dict[str, Findings] = {}
    failed: dict[str, str] = {}
    for name in options.rows or (QUICK_ROWS if options.quick else ROWS):
        since = time.monotonic()
        try:
            done[name] = ROWS[name].run(plan)
            print(report.text(name, done[name]), flush=True)
        except WrongError as error:
            failed[name] = str(error)
            print(f"{name}: {ROWS[name].title}\n  WRONG: {error}", flush=True)
        print(f"  [{time.monotonic() - since:.0f} s]", flush=True)
    facts = report.machine()
    print(report.compared(done, machines, facts["processor"]))
    if not options.rows and not options.quick:
        facts["took"] = f"{plan.turns} turns, {(time.monotonic() - began) / 60:.1f} minutes"
        report.INTERNALS.write_text(report.internals(facts, done, failed, notes=report.draw(done)))
        machines = kept.with_new(machines, facts, done)
        kept.write(machines)
        document.write(machines)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
