"""A measurement is a function of this package, run in a process of its own, so that no thread, pool or heap of one
is there for the next. Systems that are compared take turns, and the order of the turns rotates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import signal
import statistics
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import WrongError

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WRONG, MISSING = 3, 4  # exit codes of a child
TIMES = "\u00d7"  # the unit of a ratio
RESULT = "result: "  # before the line that says what was measured


class AbsentError(Exception):
    """There is no measurement of this system: it is not installed, or did not finish."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure. function: of this package, with arguments that JSON can hold; it returns a number, or
    several by name. seconds: when to give it up."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    seconds: float = 300.0

    @property
    def is_ours(self) -> bool:
        """Whether it measures shmqueue: then it must not fail."""
        return self.function.__name__.startswith("ours")


def case(name: str, function: Callable[..., Any], **arguments: Any) -> Case:
    return Case(name, function, arguments)


def measure(what: Case) -> Any:
    """What the function of a case returns in a new process.

    Raises WrongError where a value was wrong or shmqueue failed, AbsentError where another system did."""
    where = f"{what.function.__module__}:{what.function.__name__}"
    command = [sys.executable, "-m", "benchmarks.child", where, json.dumps(what.arguments)]
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = child.communicate(timeout=what.seconds)
    except subprocess.TimeoutExpired:
        output, errors = "", f"not finished after {what.seconds:g} s"
    finally:
        _end_group(child)
    if child.returncode == 0:
        return json.loads(output.rpartition(RESULT)[2])
    why = errors.strip().rpartition("\n")[2] or f"exit code {child.returncode}"
    if child.returncode == WRONG or (what.is_ours and child.returncode != MISSING):
        raise WrongError(f"{what.name}: {why}")
    raise AbsentError(f"{what.name}: {why}")


def _end_group(child: subprocess.Popen[str]) -> None:
    """End what a measurement has started; it is the leader of a session."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        child.wait()


@dataclasses.dataclass
class Sample:
    """Repetitions of one measurement."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: Sample) -> Sample:
        """The ratio, repetition by repetition, so that what slowed both down cancels out."""
        return Sample([a / b for a, b in zip(self.values, other.values)])

    def scaled(self, factor: float) -> Sample:
        return Sample([value * factor for value in self.values])

    def text(self, unit: str) -> str:
        """The median, with the range."""
        low, middle, high = (number(value, unit) for value in (min(self.values), self.median, max(self.values)))
        return f"{middle} ({low}–{high})" + (f" {unit}" if unit else "")


def number(value: float, unit: str = "") -> str:
    if unit in ("tasks/s", "results"):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a figure must be: at least or at most so much."""

    sign: str  # "≥", "≤" or "<"
    value: float
    unit: str

    def met(self, figure: float) -> bool:
        return {"≥": figure >= self.value, "≤": figure <= self.value, "<": figure < self.value}[self.sign]

    def text(self) -> str:
        return f"{self.sign} {self.value:g} {self.unit}"


def at_least(value: float) -> Goal:
    return Goal("≥", value, TIMES)


def at_most(value: float, unit: str = TIMES) -> Goal:
    return Goal("≤", value, unit)


@dataclasses.dataclass
class Line:
    """One comparison: our sample, theirs where there is one, and the figure that the goal speaks of."""

    against: str
    ours: Sample
    unit: str
    theirs: Sample | None
    figure: Sample
    figure_unit: str = TIMES
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """None where no goal is set."""
        return None if self.goal is None else self.goal.met(self.figure.median)


@dataclasses.dataclass
class Curve:
    """How something grows. series: for each name, a sample at each x (None where there is none)."""

    title: str
    label: str
    x: list[Any]
    series: dict[str, list[Sample | None]]
    unit: str = "tasks/s"
    plot: str = ""  # the drawing's file name, without its ending


@dataclasses.dataclass
class Findings:
    """What a row found. notes: what a reader must know besides, such as which system is missing."""

    lines: list[Line] = dataclasses.field(default_factory=list)
    curves: list[Curve] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured."""

    quick: bool
    repetitions: int = 3

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table. reason: why it misses its goal, where it does; said only then."""

    name: str
    title: str
    run: Callable[[Plan], Findings]
    reason: str = ""


ROWS: dict[str, Row] = {}


def row(title: str, reason: str = "") -> Callable[[Callable[[Plan], Findings]], Callable[[Plan], Findings]]:
    """Make a function a row, known by its name."""

    def register(function: Callable[[Plan], Findings]) -> Callable[[Plan], Findings]:
        ROWS[function.__name__] = Row(function.__name__, title, function, reason)
        return function

    return register


def alternate(cases: Sequence[Case], repetitions: int, notes: list[str]) -> dict[str, list[Any]]:
    """What each case returned, by name, once a repetition, in rotating order. A system that is absent is left out,
    and noted."""
    found: dict[str, list[Any]] = {each.name: [] for each in cases}
    absent: set[str] = set()
    for turn in range(repetitions):
        for each in [*cases[turn % len(cases) :], *cases[: turn % len(cases)]]:
            if each.name not in absent:
                try:
                    found[each.name].append(measure(each))
                except AbsentError as error:
                    absent.add(each.name)
                    notes.append(f"left out: {error}")
    return {name: values for name, values in found.items() if name not in absent}


def samples(cases: Sequence[Case], repetitions: int, notes: list[str]) -> dict[str, Sample]:
    """`alternate`, for cases that return one number."""
    return {name: Sample(values) for name, values in alternate(cases, repetitions, notes).items()}


@contextlib.contextmanager
def terminal(drawn: list[bytes]) -> Iterator[int]:
    """A terminal of 100 by 30 for a child to write to; what is written to it goes into `drawn`, whole after it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(master, 65536):
                drawn.append(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield slave
    finally:
        os.close(slave)
        reader.join(10)
        os.close(master)


def best_setting(cases: Iterable[Case], notes: list[str]) -> list[Case]:
    """Of several settings of one system the one that was fastest when each was tried once; none if it is absent."""
    tried: list[tuple[float, int, Case]] = []
    for order, each in enumerate(cases):
        try:
            tried.append((measure(each), -order, each))
        except AbsentError as error:
            notes.append(f"left out: {error}")
            break
    return [max(tried)[2]] if tried else []


def fastest(found: Mapping[str, Sample], names: Iterable[str]) -> str:
    """Which of `names` has the highest median."""
    return max((name for name in names if name in found), key=lambda name: found[name].median)
