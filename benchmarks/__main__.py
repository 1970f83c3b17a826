"""Measure, print, and write BENCHMARKS.md: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks import growth, rates, report, shapes
from benchmarks.harness import ROOT, ROWS, Findings, Plan
from benchmarks.jobs import WrongError

# The order of the rows in the table: first those with a goal, then those without.
ORDER = (
    *("noop", "returned", "again", "warm", "sizes", "doubling", "finish", "queues", "floor"),
    *("uneven", "tail", "head", "heavy", "waves", "late", "latency", "memory", "shell", "workers", "idle", "screen"),
    *("start", "by_tasks", "by_workers", "by_payload", "by_batch", "variants", "scenarios", "task_costs"),
)  # fmt: skip
# growth, rates and shapes are imported because importing them fills ROWS.
assert set(ORDER) == {*ROWS} and growth and rates and shapes  # noqa: S101, PT018


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure shmqueue against other systems.")
    parser.add_argument("--quick", action="store_true", help="fewer tasks: about two minutes instead of twelve")
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=ORDER, default=ORDER, help=", ".join(ORDER))
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: BENCHMARKS.md for a whole run, else none")
    return parser.parse_args()


def main() -> int:
    options = _options()
    plan = Plan(options.quick)
    began = time.monotonic()
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
    out = options.out
    if out is None and options.rows is ORDER and not options.quick:
        out = ROOT / "BENCHMARKS.md"
    if out is not None:
        report.write(out.resolve(), plan, done=done, failed=failed, seconds=time.monotonic() - began)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
