"""The functions that tasks call, and their payloads. It imports nothing of this package: --call loads it as a file."""

from __future__ import annotations

import heapq
import os
import random
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

NANOSECONDS = struct.Struct("=Q")
LONGEST_SPIN = 10_000  # microseconds; `spend` sleeps through what is longer


def noop(payload: bytes) -> None:
    """Nothing."""


def echo(payload: bytes) -> bytes:
    """The payload."""
    return payload


def length(payload: bytes) -> bytes:
    """How long the payload is."""
    return b"%d" % len(payload)


def spin(payload: bytes) -> bytes:
    """Keep a core busy for so many microseconds of wall time; the payload."""
    until = time.perf_counter() + int(payload) / 1e6
    while time.perf_counter() < until:
        pass
    return payload


def spend(payload: bytes) -> bytes:
    """Take some time: the payload is a number and the microseconds. Return the number and the nanoseconds it took.

    Up to LONGEST_SPIN it keeps a core busy. Above that it sleeps, so that a long task does not take the core which the
    short ones of the other worker need.
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
    """When it was called, in ns of the clock that all processes of a machine share."""
    return NANOSECONDS.pack(time.monotonic_ns())


def wall(payload: bytes) -> bytes:
    """When it was called, in seconds since 1970, as `date +%s.%N` prints it."""
    return b"%.9f" % time.time()


def whoami(payload: bytes) -> bytes:
    """The process that called it; it stays long enough for the other workers to take a task each."""
    time.sleep(0.005)
    return b"%d" % os.getpid()


JOBS: dict[str, Callable[[bytes], Any]] = {
    function.__name__: function for function in (noop, echo, length, spin, spend, monotonic, wall, whoami)
}


class WrongError(Exception):
    """A task is missing, or a value is not what it must be: there is no rate."""


def payloads(count: int, size: int = 100) -> list[bytes]:
    """`count` payloads of `size` bytes, all different where the size allows it."""
    return [b"%0*d" % (size, number) for number in range(count)] if size >= 8 else [bytes(size)] * count


def uneven() -> list[bytes]:
    """4,000 tasks of 50 microseconds, then 40 of 20 milliseconds."""
    return [b"50"] * 4000 + [b"20000"] * 40


def _random_times(count: int, draw: Callable[[random.Random], float]) -> list[int]:
    """So many draws, the same ones in every run; half a second at most."""
    chance = random.Random(9)  # noqa: S311
    return [min(int(draw(chance)), 500_000) for _ in range(count)]


# What tasks take, in microseconds and in input order: for each row the shapes that it measures.
SHAPES: dict[str, dict[str, list[int]]] = {
    "tail": {
        "4,000 of 50 µs, then 2 of 1 s": [50] * 4000 + [1_000_000] * 2,
        "1,000 of 50 µs, then 3 of 1 s": [50] * 1000 + [1_000_000] * 3,
    },
    "head": {"1 of 1 s, then 1,500 of 1 ms": [1_000_000] + [1000] * 1500},
    "heavy": {
        "2,000 by Pareto": _random_times(2000, lambda chance: 150 * chance.paretovariate(1.05)),
        "1,700 by a lognormal law": _random_times(1700, lambda chance: 200 * chance.lognormvariate(0, 2)),
    },
    "waves": {"5 waves of 2,000 of 50 µs and 3 of 100 ms": ([50] * 2000 + [100_000] * 3) * 5},
}


def numbered(shape: Sequence[int]) -> list[bytes]:
    """The payloads with which `spend` takes these microseconds."""
    return [b"%d %d" % pair for pair in enumerate(shape)]


def durations(shape: Sequence[int], values: Sequence[bytes]) -> list[float]:
    """The seconds that the tasks took, in input order, from the values that `spend` returned in any order.

    Raises WrongError unless each task is there once, and took the time that it had to.
    """
    took = sorted(tuple(map(int, value.split())) for value in values)
    if [number for number, _ in took] != list(range(len(shape))):
        raise WrongError(f"{len(shape):,} tasks, {len(took):,} values, or not one of each task")
    for (number, nanoseconds), microseconds in zip(took, shape):
        if nanoseconds < 1000 * microseconds:
            raise WrongError(f"task {number:,} took {nanoseconds / 1000:g} µs, not {microseconds:,}")
    return [nanoseconds / 1e9 for _, nanoseconds in took]


def list_schedule(seconds: Sequence[float], workers: int) -> float:
    """When the last task ends, if each task in input order goes to the first worker that is free."""
    free = [0.0] * workers  # a heap: when each worker is free
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def expected(job: str, items: Sequence[bytes]) -> list[Any]:
    """What `job` returns for `items`."""
    if job == "noop":
        return [None] * len(items)
    return [b"%d" % len(item) for item in items] if job == "length" else list(items)


def check(job: str, items: Sequence[bytes], values: Sequence[Any], ordered: bool = True) -> None:
    """Raises WrongError unless `values` are those of `job` for `items`."""
    if len(values) != len(items):
        raise WrongError(f"{len(items):,} tasks, {len(values):,} values")
    wanted = expected(job, items)
    if not ordered and job != "noop":
        values, wanted = sorted(values), sorted(wanted)
    if list(values) != wanted:
        at = next(index for index, (a, b) in enumerate(zip(values, wanted)) if a != b)
        raise WrongError(f"value {at:,} is {values[at]!r:.60}, not {wanted[at]!r:.60}")
