"""The functions that tasks call, and their payloads. It imports nothing of this package: --call loads it as a file."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

NANOSECONDS = struct.Struct("=Q")


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
    function.__name__: function for function in (noop, echo, length, spin, monotonic, wall, whoami)
}


class WrongError(Exception):
    """A task is missing, or a value is not what it must be: there is no rate."""


def payloads(count: int, size: int = 100) -> list[bytes]:
    """`count` payloads of `size` bytes, all different where the size allows it."""
    return [b"%0*d" % (size, number) for number in range(count)] if size >= 8 else [bytes(size)] * count


def uneven() -> list[bytes]:
    """4,000 tasks of 50 microseconds, then 40 of 20 milliseconds."""
    return [b"50"] * 4000 + [b"20000"] * 40


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
