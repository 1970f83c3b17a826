"""Row: what people really send, beside bytes. Both sides are in one process and take short turns."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import pickle
import time
from collections.abc import Callable
from typing import Any

import shmqueue
from benchmarks.harness import CORES, Findings, Goal, Line, Plan, Sample, at_least, at_most, case, measure, ratio, row
from benchmarks.jobs import WrongError

clock = time.perf_counter
CHUNKS = (500, 2_000, 10_000)
MIXED = ("bytes", "str", "int", "float", "tuple", "dict")
OBJECT = "object, with codec=pickle"
# By kind: nanoseconds that a no-op and an echo may take beyond those of bytes, and the least share of Pool.map's rate.
GOALS: dict[str, tuple[int, int, float | None]] = {
    "str": (250, 400, None),
    "int": (250, 400, None),
    "float": (250, 400, None),
    "tuple": (500, 900, 0.35),
    "dict": (1000, 1400, 0.5),
}
RUN = 300  # nanoseconds more that run() may take
TIMES_ALONE = 2  # mixed kinds may take this many times what they take alone
OBJECT_SHARE = 0.67  # of Pool's rate, of an echo: 1.5 times its time


def _goals() -> dict[str, Goal]:
    """Return the goals by what a comparison is called."""
    goals = {f"echo, {OBJECT}": at_least(OBJECT_SHARE)}
    for at, job in enumerate(("no-op", "echo")):
        goals[f"{job}, mixed against its kinds alone"] = at_most(TIMES_ALONE)
        for kind, limits in GOALS.items():
            goals[f"{job}, {kind}: map() beyond bytes"] = at_most(limits[at], "ns")
            goals[f"{job}, {kind}: run() beyond bytes"] = at_most(limits[at] + RUN, "ns")
            if share := limits[2]:
                goals[f"{job}, {kind}"] = at_least(share)
    return goals


@dataclasses.dataclass
class Point:
    """An object that needs a codec."""

    number: int
    name: str


MAKERS: dict[str, Callable[[int], Any]] = {
    "bytes": lambda i: b"%093d" % i,
    "str": lambda i: f"/data/images/2026/11/img_{i:035d}.jpeg",
    "int": lambda i: i,
    "float": lambda i: i * 0.5,
    "tuple": lambda i: (i, "a", i * 0.5),
    "dict": lambda i: {"id": i, "name": f"n{i}", "w": 1.5},
    "mixed": lambda i: MAKERS[MIXED[i % len(MIXED)]](i),
    OBJECT: lambda i: Point(i, "a"),
}


def nothing(payload: object) -> None:
    """Do nothing."""


def same(payload: object) -> object:
    """Return the payload."""
    return payload


FUNCTIONS: dict[str, Callable[[object], object]] = {"no-op": nothing, "echo": same}


class Turn:
    """What is called in each turn: a method with this kind, the same with bytes, and Pool.map."""

    def __init__(self, supervisor: shmqueue.Supervisor, pool: Any, job: str, kind: str, tasks: int) -> None:
        self._supervisor = supervisor
        self._function = FUNCTIONS[job]
        self._job = job
        items = [MAKERS[kind](number) for number in range(tasks)]
        payloads = [MAKERS["bytes"](number) for number in range(tasks)]
        self.calls: dict[str, Callable[[], None]] = {
            "map()": functools.partial(self._map, items),
            "map() of bytes": functools.partial(self._map, payloads),
            "run()": functools.partial(self._run, items),
            "run() of bytes": functools.partial(self._run, payloads),
        }
        if kind == "mixed":
            parts = [items[number :: len(MIXED)] for number in range(len(MIXED))]
            self.calls["alone"] = functools.partial(self._one_after_the_other, parts)
        for chunk in CHUNKS:
            self.calls[f"chunks of {chunk:,}"] = functools.partial(self._pool, pool, items, chunk)

    def _map(self, items: list[Any]) -> None:
        self._check(items, list(self._supervisor.map(self._function, items)))

    def _one_after_the_other(self, parts: list[list[Any]]) -> None:
        for items in parts:
            self._map(items)

    def _run(self, items: list[Any]) -> None:
        results = list(self._supervisor.run((self._function, item) for item in items))
        results.sort(key=lambda result: result.tsk_id)
        self._check(items, [result.value for result in results])

    def _pool(self, pool: Any, items: list[Any], chunk: int) -> None:
        self._check(items, pool.map(self._function, items, chunk))

    def _check(self, items: list[Any], values: list[Any]) -> None:
        if values != (items if self._job == "echo" else [None] * len(items)):
            raise WrongError(f"{self._job}: a value is missing, or wrong")


def ours_kinds(tasks: int, turns: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each call, by job and kind, then by what was called. The first turn does not count."""
    found = {}
    functions = list(FUNCTIONS.values())
    with (
        shmqueue.Supervisor(functions, workers=CORES) as plain,
        shmqueue.Supervisor(functions, workers=CORES, codec=pickle) as coded,
        multiprocessing.Pool(CORES) as pool,
    ):
        for kind in MAKERS:
            for job in FUNCTIONS:
                turn = Turn(coded if kind == OBJECT else plain, pool, job, kind, tasks)
                taken: dict[str, list[float]] = {name: [] for name in turn.calls}
                for number in range(turns + 1):
                    for name, call in turn.calls.items():
                        since = clock()
                        call()
                        if number:
                            taken[name].append(clock() - since)
                found[f"{job} {kind}"] = taken
    return found


@row(
    "no-op and echo by kind of payload, processes running already",
    _goals(),
    "Pool pickles a whole chunk in one call of C; here each task and each value is encoded, and committed, by itself; "
    "dumps and loads of single objects alone take 1.6 times as long as Pool's whole echo of them",
)
def kinds(plan: Plan) -> Findings:
    """Compare each kind with bytes, and with Pool.map at its best chunk size; mixed kinds with what they take alone."""
    found = Findings()
    tasks = 20_000
    measured = measure(case("kinds", ours_kinds, tasks=tasks, turns=plan.turns))
    for job in FUNCTIONS:
        for kind in MAKERS:
            taken = {name: Sample(each).scaled(1e9 / tasks) for name, each in measured[f"{job} {kind}"].items()}
            found.lines.append(_against_pool(f"{job}, {kind}", taken))
            if kind in GOALS:
                found.lines += [_beyond_bytes(f"{job}, {kind}", method, taken) for method in ("map()", "run()")]
            if kind == "mixed":
                found.lines.append(
                    ratio(f"{job}, mixed against its kinds alone", taken["map()"], taken["alone"], unit="ns")
                )
    return found


def _against_pool(name: str, taken: dict[str, Sample]) -> Line:
    """Compare rates, as the other rows do. The samples are nanoseconds a task."""
    best = min((name for name in taken if name.startswith("chunks")), key=lambda name: taken[name].median)
    ours = taken["map()"]
    return Line(name, ours, "ns", taken[best], figure=taken[best].over(ours), setting=best)


def _beyond_bytes(name: str, method: str, taken: dict[str, Sample]) -> Line:
    ours, base = taken[method], taken[f"{method} of bytes"]
    beyond = Sample([a - b for a, b in zip(ours.values, base.values)])
    return Line(f"{name}: {method} beyond bytes", ours, "ns", base, figure=beyond, figure_unit="ns")
