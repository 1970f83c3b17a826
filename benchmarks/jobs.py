"""The functions that tasks call, and their payloads.

This file imports nothing of its package, because --call loads it as a single file.
"""

from __future__ import annotations

import functools
import heapq
import os
import random
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

NANOSECONDS = struct.Struct("=Q")
LONGEST_SPIN = 10_000  # microseconds; `spend` sleeps through what is longer


def noop(payload: bytes) -> None:
    """Do nothing."""


def echo(payload: bytes) -> bytes:
    """Return the payload."""
    return payload


def length(payload: bytes) -> bytes:
    """Return the length of the payload."""
    return b"%d" % len(payload)


def spin(payload: bytes) -> bytes:
    """Keep a core busy for as many microseconds as the payload says, then return the payload."""
    until = time.perf_counter() + int(payload) / 1e6
    while time.perf_counter() < until:
        pass
    return payload


def spend(payload: bytes) -> bytes:
    """Take some time, then return the task's number and the nanoseconds that it took.

    The payload is the task's number and the microseconds to take. Up to LONGEST_SPIN the function keeps a core busy.
    Above that it sleeps, so that the other worker has a core for its short tasks.
    """
    start = time.perf_counter_ns()
    number, microseconds = map(int, payload.split())
    until = start + 1000 * microseconds
    if microseconds > LONGEST_SPIN:
        time.sleep(microseconds / 1e6)
    while time.perf_counter_ns() < until:
        pass
    return b"%d %d" % (number, time.perf_counter_ns() - start)


def monotonic(payload: bytes) -> bytes:
    """Return the time of the call, in nanoseconds of the clock that all processes of a machine share."""
    return NANOSECONDS.pack(time.monotonic_ns())


def wall(payload: bytes) -> bytes:
    """Return the time of the call, in seconds since 1970, as `date +%s.%N` prints it."""
    return b"%.9f" % time.time()


def whoami(payload: bytes) -> bytes:
    """Return the worker's process id. The call lasts long enough for every other worker to take a task."""
    time.sleep(0.005)
    return b"%d" % os.getpid()


JOBS: dict[str, Callable[[bytes], Any]] = {
    function.__name__: function for function in (noop, echo, length, spin, spend, monotonic, wall, whoami)
}


class WrongError(Exception):
    """A task is missing, or a value is wrong. Then there is no rate."""


@functools.lru_cache(maxsize=2)
def payloads(count: int, size: int = 100) -> list[bytes]:
    """Return `count` payloads of `size` bytes. From 8 bytes on they all differ. Asked again, it is the same list."""
    if size < 8:
        return [bytes(size)] * count
    return [b"%0*d" % (size, number) for number in range(count)]


def uneven() -> list[bytes]:
    """Return the payloads for 4,000 tasks of 50 microseconds, then 40 of 20 milliseconds."""
    return [b"50"] * 4000 + [b"20000"] * 40


def _random_times(count: int, draw: Callable[[random.Random], float]) -> list[int]:
    """Return `count` random times, in microseconds, at most half a second each. They are the same in every run."""
    chance = random.Random(9)  # noqa: S311
    return [min(int(draw(chance)), 500_000) for _ in range(count)]


# The microseconds that tasks take, in input order, by what this is called.
SHAPES: dict[str, list[int]] = {
    "4,000 of 50 µs, then 2 of 1 s": [50] * 4000 + [1_000_000] * 2,
    "1,000 of 50 µs, then 3 of 1 s": [50] * 1000 + [1_000_000] * 3,
    "1 of 1 s, then 1,500 of 1 ms": [1_000_000] + [1000] * 1500,
    "2,000 by Pareto": _random_times(2000, lambda chance: 150 * chance.paretovariate(1.05)),
    "1,700 by a lognormal law": _random_times(1700, lambda chance: 200 * chance.lognormvariate(0, 2)),
    "5 waves of 2,000 of 50 µs and 3 of 100 ms": ([50] * 2000 + [100_000] * 3) * 5,
}


def numbered(shape: Sequence[int]) -> list[bytes]:
    """Return the payloads with which `spend` takes these microseconds."""
    return [b"%d %d" % pair for pair in enumerate(shape)]


def durations(shape: Sequence[int], values: Sequence[bytes]) -> list[float]:
    """Return the seconds that the tasks took, in input order. `values` are those of `spend`, in any order.

    Raise WrongError unless each task is there once and took its time.
    """
    took = sorted(tuple(map(int, value.split())) for value in values)
    if [number for number, _ in took] != list(range(len(shape))):
        raise WrongError(f"{len(shape):,} tasks, {len(took):,} values, or not one of each task")
    for (number, nanoseconds), microseconds in zip(took, shape):
        if nanoseconds < 1000 * microseconds:
            raise WrongError(f"task {number:,} took {nanoseconds / 1000:g} µs, not {microseconds:,}")
    return [nanoseconds / 1e9 for _, nanoseconds in took]


def list_schedule(seconds: Sequence[float], workers: int) -> float:
    """Return when the last task ends if each task, in input order, goes to the first free worker."""
    free = [0.0] * workers  # a heap of the times at which the workers are free
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def median_microseconds(once: Callable[[], Any], times: int, pause: float) -> float:
    """Return the median microseconds of a call that must return b"there". pause: seconds between two calls."""
    waits = []
    for _ in range(times):
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        value = once()
        waits.append(time.perf_counter() - start)
        if value != b"there":
            raise WrongError(f"a value is {value!r:.60}")
    return 1e6 * statistics.median(waits)


def until_it_begins(once: Callable[[], bytes], times: int) -> float:
    """Return the median microseconds from a call to the moment that it returns, one of `monotonic`."""
    waits = []
    for _ in range(times):
        time.sleep(0.002)
        before = time.monotonic_ns()
        waits.append((NANOSECONDS.unpack(once())[0] - before) / 1000)
    if min(waits) < 0:
        raise WrongError("a task began before it was submitted")
    return statistics.median(waits)


def seconds_of_map(executor: Any, calls: int, chunk: int) -> Iterator[float]:
    """Yield the seconds of one map() of an Executor after the other."""
    while True:
        start = time.perf_counter()
        values = list(executor.map(abs, range(calls), chunksize=chunk))
        seconds = time.perf_counter() - start
        if values != list(range(calls)):
            raise WrongError(f"{calls:,} calls, {len(values):,} values, or not those of the calls")
        yield seconds


def expected(job: str, items: Sequence[bytes]) -> list[Any]:
    """Return the values of `job` for `items`."""
    if job == "noop":
        return [None] * len(items)
    if job == "length":
        return [b"%d" % len(item) for item in items]
    return list(items)


def check(job: str, items: Sequence[bytes], values: Sequence[Any], ordered: bool = True) -> None:
    """Raise WrongError unless `values` are those of `job` for `items`."""
    if len(values) != len(items):
        raise WrongError(f"{len(items):,} tasks, {len(values):,} values")
    wanted = expected(job, items)
    if not ordered and job != "noop":
        values = sorted(values)
        wanted = sorted(wanted)
    if list(values) != wanted:
        at = next(index for index, (a, b) in enumerate(zip(values, wanted)) if a != b)
        raise WrongError(f"value {at:,} is {values[at]!r:.60}, not {wanted[at]!r:.60}")
