"""Rows: tasks a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import costs, ours, peers
from benchmarks.floor import floor as floor_rate
from benchmarks.harness import (
    CORES,
    Case,
    Curve,
    Findings,
    Goal,
    Line,
    Plan,
    Sample,
    alternate,
    at_least,
    at_most,
    best_setting,
    case,
    fastest,
    ratio,
    row,
    samples,
)

CHUNKS = (100, 500, 2_000, 10_000, 50_000, 0)  # 0: one chunk a worker
WARM = {"times": 2}  # The second time is measured: the processes run already and have done these tasks once.
SIZES = (  # bytes of a payload, number of tasks (about half a second), goal, chunk sizes of Pool.map
    (8, 800_000, 0.5, (500, 2_000, 10_000, 50_000)),
    (93, 400_000, 1.2, (500, 2_000, 10_000, 50_000)),
    (120, 400_000, 1.1, (500, 2_000, 10_000, 50_000)),
    (1024, 120_000, 1.0, (50, 500, 2_000, 10_000)),
    (16_384, 12_000, 1.3, (5, 50, 200, 1_000)),
    (262_144, 800, 1.5, (1, 4, 20, 100)),
    (2_097_152, 80, 1.5, (1, 2, 5, 20)),
)
# Queues and other pools: name, function, the option that is varied, and the values to try.
SETTINGS: tuple[tuple[str, Callable[..., float], str, tuple[Any, ...]], ...] = (
    ("faster-fifo put_many, get_many", peers.fifo_many, "many", (100, 1000)),
    ("multiprocessing.Queue", peers.queue_one, "", ()),
    ("mpire", peers.mpire_map, "chunk", (None, 1000, 10_000)),
    ("joblib", peers.joblib_map, "batch", ("auto", 1000, 10_000)),
    ("Pebble", peers.pebble_map, "chunk", (1000, 10_000)),
    ("ProcessPoolExecutor", peers.executor_map, "chunk", (1000, 10_000)),
)
WITHOUT_GOAL = (peers.pebble_map, peers.executor_map)


def _versus(found: dict[str, Sample], names: Sequence[str], goal: Goal | None, what: str = "") -> Line:
    """Compare shmqueue with the fastest of `names`."""
    best = fastest(found, names)
    return ratio(what or best, found["shmqueue"], found[best], unit="tasks/s", goal=goal)


def _chunks(tasks: int) -> list[int]:
    return [chunk or -(-tasks // CORES) for chunk in CHUNKS]


def _pool_cases(function: Callable[..., float], chunks: Sequence[int], shared: Mapping[str, Any]) -> list[Case]:
    """Return one case of Pool.map for each chunk size."""
    return [Case(f"Pool.map, chunks of {n:,}", function, {**shared, "chunk": n}) for n in chunks]


def _against_pool(plan: Plan, job: str, plot: str) -> Findings:
    """Compare values in input order with Pool.map at each chunk size."""
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    chunks = _chunks(tasks)
    cases = [case("shmqueue", ours.ours_map, job=job, tasks=tasks)]
    cases += _pool_cases(peers.pool_map, chunks, {"job": job, "tasks": tasks})
    rates = samples(cases, plan.repetitions, found.notes)
    found.lines.append(_versus(rates, [each.name for each in cases[1:]], at_least(1.3)))
    series: dict[str, list[Sample | None]] = {
        "shmqueue": [rates["shmqueue"]] * len(chunks),
        "Pool.map": [rates.get(each.name) for each in cases[1:]],
    }
    title = f"{tasks:,} tasks of 100 bytes, function {job}: rate against chunk size"
    found.curves.append(Curve(title, "chunk size", chunks, series, plot=plot))
    return found


@row(
    "1,000,000 no-op tasks of 100 bytes",
    "the Python code around a task costs more than pickle, which is C; the tables of processor time say where",
)
def noop(plan: Plan) -> Findings:
    return _against_pool(plan, "noop", "chunks-noop")


@row("the same, value returned, in order", "the worker writes one outcome a task, and the supervisor reads it again")
def returned(plan: Plan) -> Findings:
    return _against_pool(plan, "echo", "chunks-echo")


@row("both again, the third time in one process")
def again(plan: Plan) -> Findings:
    """Measure runs that find memory mapped by an earlier run. Pool gains more from it than shmqueue."""
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    for job in ("noop", "echo"):
        shared = {"job": job, "tasks": tasks, "times": 3}
        cases = [case("shmqueue", ours.ours_map, **shared)]
        cases += _pool_cases(peers.pool_map, (500, 4_000, 10_000), shared)
        rates = samples(cases, plan.repetitions, found.notes)
        them = fastest(rates, [each.name for each in cases[1:]])
        found.lines.append(_versus(rates, [them], None, f"{job}: {them}"))
    return found


@row("no-op, and value returned, 93 bytes, processes running already")
def warm(plan: Plan) -> Findings:
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    for job in ("noop", "echo"):
        shared = {"job": job, "tasks": tasks, "size": 93}
        found.lines.append(_warm_line(plan, found.notes, shared, chunks=_chunks(tasks), goal=1.2, what=job))
    return found


@row("echo by bytes of the payload, processes running already")
def sizes(plan: Plan) -> Findings:
    found = Findings()
    for size, tasks, goal, chunks in SIZES:
        shared = {"job": "echo", "tasks": plan.size(tasks, tasks // 5), "size": size}
        found.lines.append(_warm_line(plan, found.notes, shared, chunks=chunks, goal=goal, what=f"{size:,} bytes"))
    return found


def _warm_line(
    plan: Plan, notes: list[str], shared: Mapping[str, Any], *, chunks: Sequence[int], goal: float, what: str
) -> Line:
    """Compare shmqueue with Pool.map at its best chunk size, both with processes that run already."""
    cases = [case("shmqueue", ours.ours_steady, **shared, **WARM)]
    cases += _pool_cases(peers.pool_steady, chunks, {**shared, **WARM})
    rates = samples(cases, plan.repetitions, notes)
    them = fastest(rates, [each.name for each in cases[1:]])
    return _versus(rates, [them], at_least(goal), f"{what}: {them}")


@row(
    "value returned, as they finish",
    "shmqueue makes a TaskResult with nine fields for every task; Pool gives the value alone",
)
def finish(plan: Plan) -> Findings:
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    name = "Pool.imap_unordered"
    shared = {"job": "echo", "tasks": tasks}
    cases = [case("shmqueue", ours.ours_run, **shared)]
    cases += [case(f"{name}, chunks of {n:,}", peers.pool_imap_unordered, **shared, chunk=n) for n in _chunks(tasks)]
    default = case(f"{name}, default", peers.pool_imap_unordered, job="echo", tasks=tasks // 20)
    rates = samples([*cases, default], plan.repetitions, found.notes)
    found.lines.append(_versus(rates, [each.name for each in cases[1:]], at_least(2)))
    found.lines.append(_versus(rates, [default.name], at_least(40)))
    found.notes.append(f"{name} at its default was given {tasks // 20:,} tasks")
    return found


@row(
    "value returned, against queues and other pools",
    "each result is a record with nine fields; and the others are faster here than the goal supposed",
)
def queues(plan: Plan) -> Findings:
    """Compare with each system at its best setting. Each setting is tried once, with fewer tasks."""
    tasks = plan.size(400_000, 60_000)
    found = Findings()
    shared = {"job": "echo", "tasks": tasks}
    fewer = {"job": "echo", "tasks": tasks // 4}
    chosen = [case("shmqueue", ours.ours_run, **shared)]
    for name, function, option, values in SETTINGS:
        if option:
            tries = [Case(f"{name}, {option}={value}", function, {**fewer, option: value}) for value in values]
            best = best_setting(tries, found.notes)
        else:
            best = [Case(name, function, shared)]
        chosen += [Case(each.name, each.function, {**each.arguments, **shared}) for each in best]
    rates = samples(chosen, plan.repetitions, found.notes)
    for each in chosen[1:]:
        if each.name in rates:
            goal = None if each.function in WITHOUT_GOAL else at_least(8)
            found.lines.append(_versus(rates, [each.name], goal))
    return found


@row(
    "floor: packing loop plus dispatch loop, no synchronization, over the cores",
    "the floor has no clock, no outcomes and no account of tasks; the tables of processor time say what each costs",
)
def floor(plan: Plan) -> Findings:
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    cases = [case("shmqueue", ours.ours_map, job="noop", tasks=tasks), case("the loops alone", floor_rate, tasks=tasks)]
    rates = samples(cases, plan.repetitions, found.notes)
    us = rates["shmqueue"]
    them = rates["the loops alone"]
    line = Line("the loops alone", ours=us, unit="tasks/s", theirs=them, figure=them.over(us), goal=at_most(1.3))
    found.lines.append(line)
    return found


@row(
    "64 workers on these cores, against as many as there are cores",
    "each worker's share of the ring is smaller, so claims are smaller; and the kernel switches between more processes",
)
def workers(plan: Plan) -> Findings:
    tasks = plan.size(500_000, 150_000)
    found = Findings()
    cases = [
        case("shmqueue", ours.ours_steady, job="noop", tasks=tasks, workers=64),
        case(f"shmqueue, {CORES} workers", ours.ours_steady, job="noop", tasks=tasks, workers=CORES),
    ]
    rates = samples(cases, plan.repetitions, found.notes)
    found.lines.append(_versus(rates, [cases[1].name], at_least(0.8)))
    found.notes.append("all workers have started before")
    return found


@row("each way to synchronize")
def variants(plan: Plan) -> Findings:
    """Measure no-op tasks, values returned, and one task to idle workers, for every strategy."""
    tasks = plan.size(300_000, 60_000)
    times = plan.size(300, 100)
    found = Findings()
    names = list(ours.strategies())
    series: dict[str, list[Sample | None]] = {}
    for title, function, arguments in (
        ("no-op, tasks/s", ours.ours_map, {"job": "noop", "tasks": tasks}),
        ("value returned, tasks/s", ours.ours_map, {"job": "echo", "tasks": tasks}),
        ("submit to start, µs", ours.ours_wake, {"times": times}),
    ):
        cases = [Case(name, function, {**arguments, "strategy": name}) for name in names]
        measured = samples(cases, plan.repetitions, found.notes)
        series[title] = [measured.get(name) for name in names]
    found.curves.append(Curve("Each way to synchronize", "strategy", names, series, unit=""))
    if len(names) == 1:
        found.notes.append("no variants are registered: only the built-in way was measured")
    return found


@row("where the processor time of a task goes")
def task_costs(plan: Plan) -> Findings:
    tasks = plan.size(500_000, 150_000)
    found = Findings()
    for job in ("noop", "echo"):
        runs = alternate([case("shmqueue", costs.ours_costs, job=job, tasks=tasks)], plan.repetitions, found.notes)
        for side in ("supervisor", "workers"):
            parts = [run[side] for run in runs["shmqueue"]]
            names = sorted(parts[0], key=lambda name: -parts[0][name])
            spent: list[Sample | None] = [Sample([part.get(name, 0.0) for part in parts]) for name in names]
            whole = Sample([sum(part.values()) for part in parts])
            title = f"Processor time a task, function {job}: {side}, ns"
            found.curves.append(Curve(title, "part", [*names, "in all"], {"ns": [*spent, whole]}, unit="ns"))
    return found
