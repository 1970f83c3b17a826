"""Rows: tasks a second, and how each cost grows."""

from __future__ import annotations

import itertools
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

SIZE = 93  # bytes of a payload, where a row does not vary it
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
POWERS_OF_TWO = [1 << power for power in range(4, 21)]  # 16 B to 1 MiB
MANY_WORKERS = (1, 2, 4, 8, 16, 32, 64)
FEWER_COUNTS = (1, 2, 8, 64)  # of workers, for a quick run
PAYLOAD_SIZES = (8, 32, 100, 119, 120, 1024, 16_384, 131_072, 1_048_576)
# Queues and other pools: name, function, the option that is varied, and the values to try.
SETTINGS: tuple[tuple[str, Callable[..., float], str, tuple[Any, ...]], ...] = (
    ("faster-fifo put_many, get_many", peers.fifo_many, "many", (100, 500, 2_000)),
    ("multiprocessing.Queue", peers.queue_one, "", ()),
    ("mpire", peers.mpire_map, "chunk", (None, 500, 2_000, 10_000)),
    ("joblib", peers.joblib_map, "batch", ("auto", 500, 2_000, 10_000)),
    ("loky", peers.loky_map, "chunk", (500, 2_000, 10_000)),
    ("Pebble", peers.pebble_map, "chunk", (500, 2_000, 10_000)),
    ("ProcessPoolExecutor", peers.executor_map, "chunk", (500, 2_000, 10_000)),
)


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
    shared = {"job": job, "tasks": tasks, "size": SIZE}
    cases = [case("shmqueue", ours.ours_map, **shared)]
    cases += _pool_cases(peers.pool_map, chunks, shared)
    rates = samples(cases, plan.repetitions, found.notes)
    found.lines.append(_versus(rates, [each.name for each in cases[1:]], at_least(1.2)))
    series: dict[str, list[Sample | None]] = {
        "shmqueue": [rates["shmqueue"]] * len(chunks),
        "Pool.map": [rates.get(each.name) for each in cases[1:]],
    }
    title = f"{tasks:,} tasks of {SIZE} bytes, function {job}: rate against chunk size"
    found.curves.append(Curve(title, "chunk size", chunks, series, plot=plot))
    return found


@row(
    "1,000,000 no-op tasks of 93 bytes, processes started in the time",
    "the Python code around a task costs more than pickle, which is C; the tables of processor time say where",
)
def noop(plan: Plan) -> Findings:
    return _against_pool(plan, "noop", "chunks-noop")


@row("the same, value returned, in order", "the worker writes one outcome a task, and the supervisor reads it again")
def returned(plan: Plan) -> Findings:
    return _against_pool(plan, "echo", "chunks-echo")


@row(
    "no-op, and value returned, 93 bytes, processes running already", "Pool's own rate moves by a third from run to run"
)
def warm(plan: Plan) -> Findings:
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    for job in ("noop", "echo"):
        shared = {"job": job, "tasks": tasks, "size": SIZE}
        found.lines.append(_warm_line(plan, found.notes, shared, chunks=_chunks(tasks), goal=1.2, what=job))
    return found


@row(
    "echo by bytes of the payload, processes running already",
    "a payload of 120 bytes lies in the heap; that costs the supervisor a reference, and the worker a look",
)
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
    "value returned, as TaskResults as they finish, processes started in the time",
    "to make a TaskResult takes 160 ns, half as much as all the rest of a task; Pool gives the value alone",
)
def finish(plan: Plan) -> Findings:
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    name = "Pool.imap_unordered"
    shared = {"job": "echo", "tasks": tasks, "size": SIZE}
    cases = [case("shmqueue", ours.ours_run, **shared)]
    cases += [case(f"{name}, chunks of {n:,}", peers.pool_imap_unordered, **shared, chunk=n) for n in _chunks(tasks)]
    default = case(f"{name}, default", peers.pool_imap_unordered, **{**shared, "tasks": tasks // 20})
    rates = samples([*cases, default], plan.repetitions, found.notes)
    found.lines.append(_versus(rates, [each.name for each in cases[1:]], at_least(1.2)))
    found.lines.append(_versus(rates, [default.name], None))
    found.notes.append(f"{name} at its default was given {tasks // 20:,} tasks")
    return found


@row(
    "value returned: run() against map(), time of a task, processes running already",
    "a tuple of eleven fields takes 160 ns to make, in C, and map() takes 320 ns in all, so 1.5 is the floor",
)
def records(plan: Plan) -> Findings:
    """A TaskResult for each task against its value alone."""
    shared = {"tasks": plan.size(1_000_000, 150_000), "size": SIZE}
    found = Findings()
    cases = [case(f"{method}()", ours.ours_records, **shared, method=method) for method in ("run", "map")]
    rates = samples(cases, plan.repetitions + 2, found.notes)
    run, values = rates["run()"], rates["map()"]
    line = Line("map()", ours=run, unit="tasks/s", theirs=values, figure=values.over(run), goal=at_most(1.3))
    found.lines.append(line)
    return found


@row(
    "no-op, 93 bytes, processes running already, a busy loop on one of the cores",
    "a worker that wakes on the busy core waits there for its turn",
)
def neighbour(plan: Plan) -> Findings:
    """Compare what a busy neighbour costs us with what it costs Pool."""
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    cases = []
    for busy in (False, True):
        shared = {"job": "noop", "tasks": tasks, "size": SIZE, **WARM, "neighbour": busy}
        beside = ", beside a busy loop" if busy else ""
        cases.append(case(f"shmqueue{beside}", ours.ours_steady, **shared))
        cases.append(case(f"Pool.map, chunks of 10,000{beside}", peers.pool_steady, chunk=10_000, **shared))
    us, them, us_beside, them_beside = samples(cases, plan.repetitions, found.notes).values()
    found.lines.append(ratio(cases[3].name, us_beside, them_beside, unit="tasks/s", goal=at_least(1)))
    for each, name, alone in ((us_beside, "shmqueue", us), (them_beside, "Pool.map", them)):
        found.lines.append(Line(f"{name}, alone", each, unit="tasks/s", theirs=alone, figure=each.over(alone)))
    return found


@row("value returned, as they finish, against queues and other pools at their best")
def queues(plan: Plan) -> Findings:
    """Compare with each system at its best setting. Each setting is tried once, with fewer tasks."""
    tasks = plan.size(400_000, 60_000)
    found = Findings()
    shared = {"job": "echo", "tasks": tasks, "size": SIZE}
    fewer = {**shared, "tasks": tasks // 4}
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
            found.lines.append(_versus(rates, [each.name], None))
    return found


@row("floor: packing loop plus dispatch loop, no synchronization, over the cores")
def floor(plan: Plan) -> Findings:
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    cases = [case("shmqueue", ours.ours_map, job="noop", tasks=tasks), case("the loops alone", floor_rate, tasks=tasks)]
    rates = samples(cases, plan.repetitions, found.notes)
    us = rates["shmqueue"]
    them = rates["the loops alone"]
    line = Line("the loops alone", ours=us, unit="tasks/s", theirs=them, figure=them.over(us))
    found.lines.append(line)
    return found


@row("64 workers on these cores, against as many as there are cores", "the batches of each worker begin with one task")
def workers(plan: Plan) -> Findings:
    tasks = plan.size(500_000, 150_000)
    found = Findings()
    for times, when in ((1, "the first tasks"), (2, "once batches have grown")):
        shared = {"job": "noop", "tasks": tasks, "times": times}
        cases = [case(f"{n} workers, {when}", ours.ours_steady, **shared, workers=n) for n in (64, CORES)]
        many, few = samples(cases, plan.repetitions, found.notes).values()
        found.lines.append(ratio(cases[1].name, many, few, unit="tasks/s", goal=at_least(0.8)))
    found.notes.append("all workers have started before")
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


# How each cost grows.


def _grow(plan: Plan, points: Sequence[tuple[object, list[Case]]], *, title: str, label: str, plot: str) -> Findings:
    """Measure a curve. Every point has the same cases."""
    found = Findings()
    series: dict[str, list[Sample | None]] = {}
    for _, cases in points:
        rates = samples(cases, plan.repetitions, found.notes)
        for each in cases:
            series.setdefault(each.name, []).append(rates.get(each.name))
    found.curves.append(Curve(title, label, [x for x, _ in points], series, plot=plot))
    return found


@row("how it grows with tasks")
def by_tasks(plan: Plan) -> Findings:
    counts = [10**4, 10**5, 10**6, 10**7][: plan.size(4, 2)]
    points = [(n, [case("shmqueue", ours.ours_stream, tasks=n)]) for n in counts]
    title = "No-op tasks out of an iterator, results as they finish"
    return _grow(plan, points, title=title, label="tasks", plot="tasks")


@row("how it grows with workers")
def by_workers(plan: Plan) -> Findings:
    tasks = plan.size(300_000, 60_000)
    counts = FEWER_COUNTS if plan.quick else MANY_WORKERS
    points = []
    for count in counts:
        chunk = -(-tasks // (4 * max(count, CORES)))
        shared = {"job": "noop", "tasks": tasks, "workers": count}
        cases = [case("shmqueue", ours.ours_map, **shared), case("Pool.map", peers.pool_map, chunk=chunk, **shared)]
        points.append((count, cases))
    title = f"{tasks:,} no-op tasks of 100 bytes: rate against workers, their start and end included"
    return _grow(plan, points, title=title, label="workers", plot="workers")


@row("how it grows with the payload")
def by_payload(plan: Plan) -> Findings:
    most = plan.size(200_000, 30_000)
    room = plan.size(1 << 28, 1 << 26)
    points = []
    for size in PAYLOAD_SIZES:
        shared = {"job": "length", "tasks": min(most, room // size), "size": size}
        points.append((size, [case("shmqueue", ours.ours_map, **shared), case("Pool.map", peers.pool_map, **shared)]))
    title = f"Rate against bytes of a payload (at most {most:,} tasks, Pool.map at its default chunk size)"
    return _grow(plan, points, title=title, label="bytes", plot="payload")


@row(
    "echo by powers of two of bytes, 16 B to 1 MiB, processes running already: the largest step",
    "the code has no step there; what the processor's caches do was not measured",
)
def doubling(plan: Plan) -> Findings:
    """No payload size is a cliff: twice the bytes take at most twice the time."""
    most = plan.size(400_000, 60_000)
    room = plan.size(1 << 28, 1 << 26)
    points = []
    for size in POWERS_OF_TWO:
        shared = {"job": "echo", "tasks": min(most, room // size), "size": size, "times": 2}
        points.append((size, [case("shmqueue", ours.ours_steady, **shared)]))
    title = f"Values returned by powers of two of bytes, processes running already (at most {most:,} tasks)"
    found = _grow(plan, points, title=title, label="bytes", plot="")
    found.lines.append(_largest_step(POWERS_OF_TWO, found.curves[0].series["shmqueue"]))
    return found


def _largest_step(x: Sequence[int], curve: Sequence[Sample | None]) -> Line:
    """Return the step of a curve at which the rate falls most."""
    rates = [sample for sample in curve if sample is not None]
    steps = [before.over(after) for before, after in itertools.pairwise(rates)]
    at = max(range(len(steps)), key=lambda step: steps[step].median)
    return Line(
        against=f"{x[at + 1]:,} bytes against {x[at]:,} bytes",
        ours=rates[at + 1],
        unit="tasks/s",
        theirs=rates[at],
        figure=steps[at],
        goal=at_most(2),
    )


@row("how it grows with the batch")
def by_batch(plan: Plan) -> Findings:
    tasks = plan.size(100_000, 20_000)
    points = []
    for batch in (1, 4, 16, 64, 256, 1024, None):
        cases = [case("shmqueue", ours.ours_map, job="noop", tasks=tasks, batch=batch)]
        points.append((batch or "by itself", cases))
    return _grow(plan, points, title=f"{tasks:,} no-op tasks: rate against the batch", label="batch", plot="")
