"""Measure one strategy: its rate, how its locks are held, and how long a kill inside the lock holds up the others."""

from __future__ import annotations

import json
import mmap
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import shmqueue
from benchmarks.jobs import JOBS, WrongError, check, payloads
from variants import strategies

clock = time.monotonic_ns  # all processes share it
moments = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # shared with the workers, which are forked
KILLED, WENT_ON = range(2)  # in `moments`: when the worker was killed, and when another one had its next batch
CLAIMS_BEFORE = 5  # batches of the worker before it is killed


def _run(strategy: type[shmqueue.SharedTaskQueue], tasks: int, workers: int, batch: int | None = None) -> float:
    """Run no-ops and return the seconds, the start of the workers included. Every value is checked."""
    items = payloads(tasks)
    since = time.perf_counter()
    values = shmqueue.parallel_map(
        JOBS["noop"], items, workers=workers, batch=batch, queue=strategy, start_method="fork"
    )
    seconds = time.perf_counter() - since
    check("noop", items, values)
    return seconds


def ours_rate(strategy: str, workers: int, tasks: int) -> float:
    """Return millions of no-op tasks a second."""
    return tasks / _run(strategies[strategy], tasks, workers) / 1e6


class MeteredLock:
    """A lock that notes how often it was not free, and for how many nanoseconds it was held each time."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._since = 0
        self.contended = 0
        self.held: list[int] = []

    def acquire(self, timeout: float | None = None) -> bool:
        if not self._lock.acquire(0.0):
            self.contended += 1
            if not self._lock.acquire(timeout):
                return False
        self._since = clock()
        return True

    def release(self) -> None:
        self.held.append(clock() - self._since)
        self._lock.release()


def metered(strategy: type[shmqueue.SharedTaskQueue], path: str) -> type[shmqueue.SharedTaskQueue]:
    """Return the strategy with metered locks. Each process appends what it saw to a file when it closes the queue."""

    class Metered(strategy):  # type: ignore[misc, valid-type]
        def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
            super().__init__(segment, primitives)
            self.meters: list[MeteredLock] = []
            if isinstance(self._lock, list):
                self._lock = self.meters = [MeteredLock(lock) for lock in self._lock]
            elif isinstance(self._lock, shmqueue.KernelLock):  # the lock of slot_state is none: nobody else knows it
                self._lock = MeteredLock(self._lock)
                self.meters = [self._lock]

        def close(self) -> None:
            seen = [(meter.contended, meter.held) for meter in self.meters]
            self.meters = []
            with open(path, "a", encoding="ascii") as file:
                file.write(json.dumps(seen) + "\n")
            super().close()

    return Metered


def ours_locking(strategy: str, workers: int, tasks: int) -> dict[str, float]:
    """Return tasks an acquisition, the share of acquisitions that wait, and microseconds of a hold. Empty: no lock."""
    with tempfile.NamedTemporaryFile("r", encoding="ascii") as file:
        _run(metered(strategies[strategy], file.name), tasks, workers)
        seen = [meter for line in file for meter in json.loads(line)]
    held = sorted(nanoseconds / 1000 for _, each in seen for nanoseconds in each)
    if not held:
        return {}
    return {
        "tasks": tasks / len(held),
        "contended": sum(contended for contended, _ in seen) / len(held),
        "median": statistics.median(held),
        "p99": held[len(held) * 99 // 100],
    }


def deadly(strategy: type[shmqueue.SharedTaskQueue]) -> type[shmqueue.SharedTaskQueue]:
    """Return the strategy with a worker 0 that is killed inside a claim, once. In it, it holds the lock if any."""

    class Deadly(strategy):  # type: ignore[misc, valid-type]
        def _fill_half(self, worker: int, span: shmqueue.Span, places: Iterable[shmqueue.Span]) -> None:
            claims = self.words[self.status[worker] + shmqueue.CLAIMS]
            if worker == 0 and claims >= CLAIMS_BEFORE and not moments[KILLED]:
                moments[KILLED] = clock()
                os.kill(os.getpid(), signal.SIGKILL)
            super()._fill_half(worker, span, places)

        def claim(self, worker: int, limit: int) -> shmqueue.Span | None:
            span: shmqueue.Span | None = super().claim(worker, limit)
            if span and moments[KILLED] and not moments[WENT_ON]:
                moments[WENT_ON] = clock()
            return span

    return Deadly


def ours_pause(strategy: str, workers: int = 4, tasks: int = 4000) -> float:
    """Return the milliseconds from a kill inside the lock to the next batch that another worker gets."""
    moments[KILLED] = moments[WENT_ON] = 0
    _run(deadly(strategies[strategy]), tasks, workers, batch=1)
    if not moments[KILLED] < moments[WENT_ON]:
        raise WrongError(f"{strategy}: no worker was killed, or none went on")
    return (moments[WENT_ON] - moments[KILLED]) / 1e6
