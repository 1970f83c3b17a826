"""`python -m benchmarks`: measure, print, and write BENCHMARKS.md."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import growth, rates, report, shapes
from benchmarks.harness import ROOT, ROWS, Findings, Plan
from benchmarks.jobs import WrongError

# The rows of the table: those with goals first, in the order of the design, then what has none.
ORDER = (
    *("noop", "returned", "again", "warm", "sizes", "doubling", "finish", "queues", "floor"),
    *("uneven", "tail", "head", "heavy", "waves", "late", "latency", "memory", "shell", "workers", "idle", "screen"),
    *("start", "by_tasks", "by_workers", "by_payload", "by_batch", "variants", "scenarios", "task_costs"),
)  # fmt: skip
assert set(ORDER) == {*ROWS} and growth and rates and shapes  # noqa: S101, PT018


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure shmqueue against other systems.")
    parser.add_argument("--quick", action="store_true", help="fewer tasks: about two minutes instead of twelve")
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=ORDER, default=ORDER, help=", ".join(ORDER))
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: BENCHMARKS.md for a whole run, else none")
    options = parser.parse_args()
    plan, began = Plan(options.quick), time.monotonic()
    done: dict[str, Findings] = {}
    failed: dict[str, str] = {}
    for name in ORDER:
        if name in options.rows:
            since = time.monotonic()
            try:
                done[name] = ROWS[name].run(plan)
                print(report.text(name, done[name]), flush=True)
            except WrongError as error:
                failed[name] = str(error)
                print(f"{name}: {ROWS[name].title}\n  WRONG: {error}", flush=True)
            print(f"  [{time.monotonic() - since:.0f} s]", flush=True)
    whole = not options.quick and options.rows is ORDER
    if out := options.out or (ROOT / "BENCHMARKS.md" if whole else None):
        report.write(out.resolve(), plan, done, failed, time.monotonic() - began)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
