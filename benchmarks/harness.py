"""Run measurements and keep what they found.

A measurement is a function of this package. Systems that are compared take turns, and the order of the turns rotates,
because a machine's speed may move by half from one second to the next. A command, and a system that may hang, has a
process of its own for each turn. All others share one process, so that their turns can be short.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import importlib
import inspect
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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import WrongError

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WRONG = 3  # exit code of a child that found a wrong value
MISSING = 4  # exit code of a child that could not import a system
TIMES = "\u00d7"  # the unit of a ratio
RESULT = "result: "  # begins the line on which a child prints its result


class AbsentError(Exception):
    """This system cannot be measured: it is not installed, or it did not finish."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    function: a function of this package. It returns one number, or several by name.
    arguments: its arguments, which JSON can hold.
    seconds: the time after which the measurement is given up.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    seconds: float = 300.0

    @property
    def is_ours(self) -> bool:
        """True if it measures shmqueue. Such a case must not fail."""
        return self.function.__name__.startswith("ours")


def case(name: str, function: Callable[..., Any], **arguments: Any) -> Case:
    return Case(name, function, arguments)


def place(function: Callable[..., Any]) -> str:
    """Return what another process finds the function by."""
    return f"{function.__module__}:{function.__name__}"


def measure(what: Case) -> Any:
    """Run a case in a new process and return its result.

    Raise WrongError if a value is wrong or shmqueue fails. Raise AbsentError if another system fails.
    """
    command = [sys.executable, "-m", "benchmarks.harness", place(what.function), json.dumps(what.arguments)]
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = child.communicate(timeout=what.seconds)
    except subprocess.TimeoutExpired:
        output = ""
        errors = f"not finished after {what.seconds:g} s"
    finally:
        _end_group(child)
    if child.returncode == 0:
        return json.loads(output.rpartition(RESULT)[2])
    why = errors.strip().rpartition("\n")[2] or f"exit code {child.returncode}"
    if child.returncode == WRONG or (what.is_ours and child.returncode != MISSING):
        raise WrongError(f"{what.name}: {why}")
    raise AbsentError(f"{what.name}: {why}")


def _end_group(child: subprocess.Popen[str]) -> None:
    """Kill a measurement and everything that it started. The measurement leads its own process group."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        child.wait()


@dataclasses.dataclass
class Sample:
    """The repetitions of one measurement."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: Sample) -> Sample:
        """Return the ratio, repetition by repetition. What slowed both down cancels out."""
        return Sample([a / b for a, b in zip(self.values, other.values)])

    def scaled(self, factor: float) -> Sample:
        return Sample([value * factor for value in self.values])

    def text(self, unit: str) -> str:
        """Return the median, with the range if there is one."""
        if len(self.values) == 1:
            return f"{number(self.median, unit)} {unit}".rstrip()
        low = number(min(self.values), unit)
        high = number(max(self.values), unit)
        return f"{number(self.median, unit)} ({low}–{high}) {unit}".rstrip()


def number(value: float, unit: str = "") -> str:
    """Return a number with three digits that count. Counts have no decimals."""
    if unit in ("tasks/s", "results") or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


@dataclasses.dataclass(frozen=True)
class Goal:
    """The limit that a figure has to keep."""

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
    """One comparison: our sample, theirs if there is one, and the figure that a goal may limit.

    name: what it is called among the lines of its row. It is the same in every run.
    setting: the one of the other system that was the best this time.
    """

    name: str
    ours: Sample
    unit: str
    theirs: Sample | None
    figure: Sample
    figure_unit: str = TIMES
    setting: str = ""


def ratio(name: str, ours: Sample, theirs: Sample, *, unit: str, setting: str = "") -> Line:
    """Return a line whose figure is our sample over theirs."""
    return Line(name, ours, unit, theirs, figure=ours.over(theirs), setting=setting)


def absolute(name: str, ours: Sample, theirs: Sample | None, *, unit: str) -> Line:
    """Return a line whose figure is our sample itself."""
    return Line(name, ours, unit, theirs, figure=ours, figure_unit=unit)


@dataclasses.dataclass
class Curve:
    """How something grows. series: for each name, a sample at each x, or None if there is none."""

    title: str
    label: str
    x: list[Any]
    series: dict[str, list[Sample | None]]
    unit: str = "tasks/s"
    plot: str = ""  # the plot's file name without its suffix; no plot if empty


@dataclasses.dataclass
class Findings:
    """What a row found. notes: what else a reader must know, such as which system is missing."""

    lines: list[Line] = dataclasses.field(default_factory=list)
    curves: list[Curve] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure. turns: of systems whose turns are short."""

    quick: bool
    turns: int

    @property
    def few(self) -> int:
        """The turns of systems that take a second each."""
        return min(self.turns, 5)

    @property
    def repetitions(self) -> int:
        """The turns of what takes long, or has no goal near its figure."""
        return min(self.turns, 3)


QUICK = Plan(quick=True, turns=5)
FULL = Plan(quick=False, turns=7)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is measured together.

    goals: by the names of lines. reason: why it misses a goal; printed only if it does.
    """

    name: str
    title: str
    run: Callable[[Plan], Findings]
    goals: Mapping[str, Goal]
    reason: str


ROWS: dict[str, Row] = {}


def row(
    title: str, goals: Mapping[str, Goal] | None = None, reason: str = ""
) -> Callable[[Callable[[Plan], Findings]], Callable[[Plan], Findings]]:
    """Register a function as a row under its own name."""

    def register(function: Callable[[Plan], Findings]) -> Callable[[Plan], Findings]:
        ROWS[function.__name__] = Row(function.__name__, title, function, goals or {}, reason)
        return function

    return register


def alternate(cases: Sequence[Case], repetitions: int, notes: list[str]) -> dict[str, list[Any]]:
    """Run every case once in each repetition, in rotating order, and return the results by name.

    A system that is absent is left out, and a note says so.
    """
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


def samples(found: Mapping[str, list[Any]]) -> dict[str, Sample]:
    """Make samples of results that are numbers."""
    return {name: Sample(values) for name, values in found.items()}


def take_turns(cases: Sequence[Case], turns: int) -> dict[str, list[Any]]:
    """Run every case once in each turn, in rotating order, in one process. Return the results by name.

    Cases of shmqueue that start workers once come before those of other systems: a process with threads is not forked.
    """
    told = [(each.name, place(each.function), each.arguments) for each in cases]
    found: dict[str, list[Any]] = measure(Case(cases[0].name, ours_in_turns, {"cases": told, "turns": turns}, 900))
    return found


def ours_in_turns(cases: Sequence[tuple[str, str, Mapping[str, Any]]], turns: int) -> dict[str, list[Any]]:
    """Do what take_turns() says in this process."""
    with contextlib.ExitStack() as stack:
        calls = {name: _turn_of(resolve(where), arguments, stack) for name, where, arguments in cases}
        names = list(calls)
        results: dict[str, list[Any]] = {name: [] for name in names}
        for turn in range(turns):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                results[name].append(calls[name]())
    return results


def _turn_of(function: Callable[..., Any], arguments: Mapping[str, Any], stack: contextlib.ExitStack) -> Any:
    """Return what makes a turn of a case: a call, or one step of a generator, whose first step does not count."""
    if not inspect.isgeneratorfunction(function):
        return functools.partial(function, **arguments)
    steps = stack.enter_context(contextlib.closing(function(**arguments)))
    next(steps)
    return functools.partial(next, steps)


@contextlib.contextmanager
def terminal(drawn: list[bytes]) -> Iterator[int]:
    """Open a terminal of 100 by 30 characters for a child to write to.

    What is written to it is appended to `drawn`. `drawn` is complete when the block has ended.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def read() -> None:
        with contextlib.suppress(OSError):  # read() raises it once the other end is closed.
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


@contextlib.contextmanager
def busy_core(busy: bool) -> Iterator[None]:
    """Keep one of the cores busy with a loop, if `busy`."""
    if not busy:
        yield
        return
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
        time.sleep(0.05)  # until it has started
        yield
    finally:
        child.kill()
        child.wait()


def best_setting(cases: Iterable[Case], notes: list[str]) -> list[Case]:
    """Try each setting of one system once. Return the fastest, or an empty list if the system is absent."""
    tried: list[tuple[float, int, Case]] = []
    for order, each in enumerate(cases):
        try:
            tried.append((measure(each), -order, each))
        except AbsentError as error:
            notes.append(f"left out: {error}")
            break
    if not tried:
        return []
    return [max(tried)[2]]


def fastest(found: Mapping[str, Sample], names: Iterable[str]) -> str:
    """Return the one of `names` that has the highest median."""
    return max((name for name in names if name in found), key=lambda name: found[name].median)


def resolve(where: str) -> Any:
    """Return the function of which place() says where it is."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def run_here(where: str, arguments: str) -> int:
    """Run one measurement in this process: `python -m benchmarks.harness MODULE:FUNCTION ARGUMENTS_AS_JSON`."""
    try:
        result = resolve(where)(**json.loads(arguments))
    except WrongError as error:
        print(error, file=sys.stderr)
        return WRONG
    except ImportError as error:
        print(f"not installed ({error.name})", file=sys.stderr)
        return MISSING
    print(RESULT + json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_here(*sys.argv[1:]))
