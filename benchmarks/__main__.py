"""Measure, print, and write BENCHMARKS.md: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import kept, kinds, rates, report, shapes
from benchmarks.harness import ROOT, ROWS, Findings, Plan
from benchmarks.jobs import WrongError

# The order of the rows in the table: first those with a goal, then those without.
ORDER = (
    *("noop", "returned", "finish", "warm", "kinds", "sizes", "doubling", "records", "neighbour"),
    *("uneven", "tail", "head", "heavy", "waves", "late", "latency", "memory", "shell", "workers", "many_workers"),
    *("idle", "imports", "screen", "start", "queues", "floor", "by_tasks", "by_workers", "by_payload", "by_batch"),
    *("scenarios", "task_costs"),
)  # fmt: skip
QUICK = (
    "noop",
    "returned",
    "finish",
    "warm",
    "kinds",
    "sizes",
    "records",
    "uneven",
    "tail",
    "latency",
    "shell",
    "workers",
    "idle",
)
# kinds, rates and shapes are imported because importing them fills ROWS.
assert set(ORDER) == {*ROWS} and kinds and rates and shapes  # noqa: S101, PT018


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure shmqueue against other systems.")
    quick = "fewer rows and fewer tasks; compare with the figures that were kept. Before a release, on a quiet machine"
    parser.add_argument("quick", nargs="?", choices=["quick"], help=quick)
    parser.add_argument("--keep", action="store_true", help="with quick: keep these figures for later comparisons")
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=ORDER, help=", ".join(ORDER))
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: BENCHMARKS.md for a whole run, else none")
    options = parser.parse_args()
    if options.keep and not options.quick:
        parser.error("--keep: only with quick")
    return options


def main() -> int:
    options = _options()
    plan = Plan(bool(options.quick))
    rows = options.rows or (QUICK if plan.quick else ORDER)
    began = time.monotonic()
    done: dict[str, Findings] = {}
    failed: dict[str, str] = {}
    for name in ORDER:
        if name in rows:
            since = time.monotonic()
            try:
                done[name] = ROWS[name].run(plan)
                print(report.text(name, done[name]), flush=True)
            except WrongError as error:
                failed[name] = str(error)
                print(f"{name}: {ROWS[name].title}\n  WRONG: {error}", flush=True)
            print(f"  [{time.monotonic() - since:.0f} s]", flush=True)
    if plan.quick:
        print(report.compared(done, kept.read()))
        if options.keep and not failed:
            kept.write(done)
    out = options.out
    if out is None and rows is ORDER:
        out = ROOT / "BENCHMARKS.md"
    if out is not None:
        report.write(out.resolve(), plan, done=done, failed=failed, seconds=time.monotonic() - began)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
