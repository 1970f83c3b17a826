"""Compare the strategies: the contract suite and a short benchmark of each, as one table.

python -m benchmarks.compare [--tasks N] [--no-suite]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import shmqueue
from variants import strategies

WORKERS = (1, 2, 4, 16, 64)
COUNTS = "SHMQUEUE_LOCK_COUNTS"  # the environment variable that names the file of lock counts


def noop(payload: bytes) -> None:
    """Do nothing."""


def now(payload: bytes) -> str:
    """Return the time of the call, on the clock that all processes share."""
    return str(time.monotonic_ns())


class CountingLock:
    """A lock that counts how often it was acquired."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.count = 0

    def acquire(self, *timeout: float) -> bool:
        self.count += 1
        return bool(self._lock.acquire(*timeout))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def counting(strategy: type[shmqueue.SharedTaskQueue]) -> type[shmqueue.SharedTaskQueue]:
    """Return the strategy with locks that count. Each process appends its count to a file when it closes the queue."""

    class Counting(strategy):  # type: ignore[misc, valid-type]
        def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
            super().__init__(segment, primitives)
            if isinstance(self._lock, list):
                self.counted = [CountingLock(lock) for lock in self._lock]
                self._lock = self.counted
            else:
                self.counted = [CountingLock(self._lock)]
                self._lock = self.counted[0]

        def close(self) -> None:
            with open(os.environ[COUNTS], "a", encoding="ascii") as file:
                file.write(f"{sum(lock.count for lock in self.counted)}\n")
            super().close()

    return Counting


def rate(strategy: type[shmqueue.SharedTaskQueue], workers: int, tasks: int) -> float:
    """Return no-op tasks a second, the start of the workers included. Every value is checked."""
    payloads = [b"%0100d" % i for i in range(tasks)]
    began = time.perf_counter()
    values = shmqueue.parallel_map(noop, payloads, workers=workers, queue=strategy)
    seconds = time.perf_counter() - began
    if values != [None] * tasks:
        raise SystemExit(f"{strategy.strategy}: {tasks:,} tasks, and the values are wrong")
    return tasks / seconds


def latency(strategy: type[shmqueue.SharedTaskQueue], tasks: int = 300) -> float:
    """Return the median microseconds from submit to the start of one task, with two idle workers."""
    delays = []
    with shmqueue.Supervisor([now], workers=2, queue=strategy) as supervisor:
        for _ in range(tasks):
            time.sleep(0.002)
            began = time.monotonic_ns()
            supervisor.submit(now, b"")
            (result,) = supervisor.results()
            delays.append(int(result.value) - began)
    return statistics.median(delays) / 1000


def lock_operations(strategy: type[shmqueue.SharedTaskQueue], tasks: int) -> float:
    """Return how often all processes together acquire a lock, per task, with two workers."""
    with tempfile.NamedTemporaryFile("r", encoding="ascii") as file:
        os.environ[COUNTS] = file.name
        rate(counting(strategy), 2, tasks)
        return sum(map(int, file)) / tasks


def contract(name: str) -> str:
    """Return how many tests of the contract suite the strategy passes."""
    suite = "tests/strategies/test_contract.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite, "-k", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    return f"{counts.get('passed', 0)} of {sum(counts.values())}"


def median_of(measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(3))


def row(name: str, tasks: int, suite: bool) -> list[str]:
    strategy = strategies[name]
    if reason := strategy.refusal():
        return [name, f"refuses: {reason}"]
    rates = [f"{median_of(lambda w=w: rate(strategy, w, tasks)) / 1e6:.2f}" for w in WORKERS]
    microseconds = f"{latency(strategy):.0f}"
    locks = f"{lock_operations(strategy, tasks):.4f}"
    passed = contract(name) if suite else "–"
    return [name, passed, *rates, microseconds, locks, strategy.if_killed]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the strategies in one table.")
    parser.add_argument("--tasks", type=int, default=200_000, help="no-op tasks of a rate (default: %(default)s)")
    parser.add_argument("--no-suite", action="store_true", help="leave out the contract suite")
    options = parser.parse_args()
    heads = [f"M/s, {workers} worker{'s' * (workers > 1)}" for workers in WORKERS]
    columns = ["strategy", "contract", *heads, "µs to start", "locks and fences a task", "if its holder is killed"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)
    for name in strategies:
        print("| " + " | ".join(row(name, options.tasks, not options.no_suite)) + " |", flush=True)


if __name__ == "__main__":
    main()
