"""Rows: tasks a second, and how each cost grows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import costs, ours, peers
from benchmarks.harness import (
    CORES,
    Case,
    Curve,
    Findings,
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
    take_turns,
)

SIZE = 93  # bytes of a payload, where a row does not vary it
COLD = 1_000_000  # tasks of a row in whose time workers start and end
WARM = 300_000  # tasks of a turn where processes run already
CHUNKS = (500, 10_000, 50_000)  # of Pool, always
CHOICE_TURNS = 3  # in which the best chunk size of another system is chosen
MORE_CHUNKS = (100, 2_000, 500_000)  # in a whole run, for the curve
SIZES = (  # bytes of a payload, number of tasks (about a tenth of a second), goal, chunk sizes of Pool.map
    (8, 150_000, 0.6, (500, 2_000, 10_000, 50_000)),
    (93, 150_000, 1.2, (500, 2_000, 10_000, 50_000)),
    (120, 100_000, 1.0, (500, 2_000, 10_000)),
    (1024, 40_000, 1.3, (50, 500, 2_000)),
    (16_384, 4_000, 1.3, (5, 50, 200)),
    (262_144, 300, 1.5, (1, 4, 20)),
    (2_097_152, 40, 1.5, (1, 2, 5)),
)
POWERS_OF_TWO = [1 << power for power in range(4, 21)]  # 16 B to 1 MiB
MANY_WORKERS = (1, 2, 4, 8, 16, 32, 64)
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


def _versus_best(plan: Plan, name: str, cases: Sequence[Case]) -> tuple[Line, dict[str, Sample]]:
    """Compare the first case, shmqueue, with the best setting of another system. Return what the choice saw, too.

    The best is chosen in turns of its own. The best of several in the same turns would be the luckiest as well.
    """
    seen = samples(take_turns(cases, CHOICE_TURNS))
    best = fastest(seen, [each.name for each in cases[1:]])
    found = samples(take_turns([each for each in cases if each.name in (cases[0].name, best)], plan.turns))
    return ratio(name, found[cases[0].name], found[best], unit="tasks/s", setting=best), seen


def _chunks(plan: Plan) -> list[int]:
    return list(CHUNKS) if plan.quick else sorted(CHUNKS + MORE_CHUNKS)


def _by_chunk(function: Callable[..., Any], chunks: Sequence[int], shared: Mapping[str, Any]) -> list[Case]:
    """Return a case of another system for each chunk size."""
    return [Case(f"chunks of {n:,}", function, {**shared, "chunk": n}) for n in chunks]


def _against_pool(plan: Plan, job: str, plot: str) -> Findings:
    """Compare values in input order with Pool.map at each chunk size."""
    found = Findings()
    chunks = _chunks(plan)
    shared = {"job": job, "tasks": COLD, "size": SIZE}
    cases = [case("shmqueue", ours.ours_map, **shared), *_by_chunk(peers.pool_map, chunks, shared)]
    line, seen = _versus_best(plan, "Pool.map", cases)
    found.lines.append(line)
    series: dict[str, list[Sample | None]] = {
        "shmqueue": [seen["shmqueue"]] * len(chunks),
        "Pool.map": [seen[each.name] for each in cases[1:]],
    }
    title = f"{COLD:,} tasks of {SIZE} bytes, function {job}: rate against chunk size"
    found.curves.append(Curve(title, "chunk size", chunks, series, plot=plot))
    return found


@row(
    "1,000,000 no-op tasks of 93 bytes, processes started in the time",
    {"Pool.map": at_least(1.2)},
    "the Python code around a task costs more than pickle, which is C",
)
def noop(plan: Plan) -> Findings:
    return _against_pool(plan, "noop", "chunks-noop")


@row(
    "the same, value returned, in order",
    {"Pool.map": at_least(1.2)},
    "the worker writes one outcome a task, and the supervisor reads it again",
)
def returned(plan: Plan) -> Findings:
    return _against_pool(plan, "echo", "")


@row(
    "value returned, as TaskResults as they finish, processes started in the time",
    {"Pool.imap_unordered": at_least(1.1)},
    "to make a TaskResult takes half as long as all the rest of a task; Pool gives the value alone",
)
def finish(plan: Plan) -> Findings:
    found = Findings()
    name = "Pool.imap_unordered"
    shared = {"job": "echo", "tasks": COLD, "size": SIZE}
    cases = [case("shmqueue", ours.ours_run, **shared), *_by_chunk(peers.pool_imap_unordered, CHUNKS, shared)]
    default = case("default", peers.pool_imap_unordered, **{**shared, "tasks": COLD // 50})
    found.lines.append(_versus_best(plan, name, cases)[0])
    rates = samples(take_turns([cases[0], default], CHOICE_TURNS))
    found.lines.append(ratio(f"{name}, default", rates["shmqueue"], rates["default"], unit="tasks/s"))
    found.notes.append(f"{name} at its default was given {COLD // 50:,} tasks")
    return found


@row(
    "no-op, and value returned, 93 bytes, processes running already",
    {"no-op": at_least(1.2), "echo": at_least(1.2)},
    "the Python code around a task costs more than pickle, which is C",
)
def warm(plan: Plan) -> Findings:
    found = Findings()
    for name, job in (("no-op", "noop"), ("echo", "echo")):
        shared = {"job": job, "tasks": WARM, "size": SIZE}
        found.lines.append(_warm_line(plan, name, shared, _chunks(plan)[:-1]))
    return found


@row(
    "echo by bytes of the payload, processes running already",
    {f"{size:,} bytes": at_least(goal) for size, _, goal, _ in SIZES},
    "to pickle 8 bytes costs next to nothing; from 120 bytes on a payload lies in the heap, which is a copy more",
)
def sizes(plan: Plan) -> Findings:
    found = Findings()
    for size, tasks, _, chunks in SIZES:
        shared = {"job": "echo", "tasks": tasks, "size": size}
        found.lines.append(_warm_line(plan, f"{size:,} bytes", shared, chunks))
    return found


def _warm_line(plan: Plan, name: str, shared: Mapping[str, Any], chunks: Sequence[int]) -> Line:
    """Compare shmqueue with Pool.map at its best chunk size, both with processes that run already."""
    cases = [case("shmqueue", ours.ours_steady, **shared), *_by_chunk(peers.pool_steady, chunks, shared)]
    return _versus_best(plan, name, cases)[0]


@row(
    "value returned: run() against map(), time of a task, processes running already",
    {"map()": at_most(1.5)},
    "to make a TaskResult takes half as long as all the rest of a task",
)
def records(plan: Plan) -> Findings:
    """A TaskResult for each task against its value alone."""
    shared = {"tasks": WARM, "size": SIZE}
    cases = [case(method, ours.ours_records, **shared, method=method) for method in ("run", "map")]
    run, values = samples(take_turns(cases, plan.turns)).values()
    return Findings([Line("map()", run, "tasks/s", values, figure=values.over(run))])


@row(
    "no-op, 93 bytes, processes running already, a busy loop on one of the cores",
    {"Pool.map there": at_least(0.9)},
    "a worker that wakes on the busy core waits there for its turn",
)
def neighbour(plan: Plan) -> Findings:
    """Compare what a busy neighbour costs us with what it costs Pool."""
    shared = {"job": "noop", "tasks": WARM, "size": SIZE}
    pool = {**shared, "chunk": 10_000}
    cases = [
        case("shmqueue", ours.ours_steady, **shared),
        case("shmqueue there", ours.ours_steady, **shared, neighbour=True),
        case("Pool.map", peers.pool_steady, **pool),
        case("Pool.map there", peers.pool_steady, **pool, neighbour=True),
    ]
    us, us_beside, them, them_beside = samples(take_turns(cases, plan.turns)).values()
    lines = [ratio("Pool.map there", us_beside, them_beside, unit="tasks/s", setting="chunks of 10,000")]
    lines.append(ratio("shmqueue there against alone", us_beside, us, unit="tasks/s"))
    lines.append(ratio("Pool.map there against alone", them_beside, them, unit="tasks/s"))
    return Findings(lines)


@row("value returned, as they finish, against queues and other pools at their best")
def queues(plan: Plan) -> Findings:
    """Compare with each system at its best setting. Each setting is tried once, with fewer tasks."""
    found = Findings()
    shared = {"job": "echo", "tasks": WARM, "size": SIZE}
    fewer = {**shared, "tasks": WARM // 4}
    cases = [case("shmqueue", ours.ours_run, **shared)]
    settings = {}
    for name, function, option, values in SETTINGS:
        tries = [Case(f"{option}={value}", function, {**fewer, option: value}) for value in values]
        for best in best_setting(tries or [Case("", function, fewer)], found.notes):
            settings[name] = best.name
            cases.append(Case(name, function, {**best.arguments, **shared}))
    rates = samples(alternate(cases, plan.repetitions, found.notes))
    us = rates.pop("shmqueue")
    found.lines += [ratio(name, us, them, unit="tasks/s", setting=settings[name]) for name, them in rates.items()]
    return found


@row("the floor: page faults of a cold run, as part of its time")
def floor(plan: Plan) -> Findings:
    """A list of payloads that was made before a fork is copied page by page as it is touched."""
    shared = {"tasks": COLD, "size": SIZE}
    cases = [case("faults", ours.ours_faults, **shared)]
    cases += [case(job, ours.ours_map, **shared, job=job) for job in ("noop", "echo")]
    cases.append(case("forkserver", ours.ours_map, **shared, job="noop", start_method="forkserver"))
    runs = take_turns(cases, plan.turns)
    faults = Sample([run["ns"] for run in runs["faults"]])
    cold = {name: Sample([1e9 / rate for rate in runs[name]]) for name in ("noop", "echo", "forkserver")}
    found = Findings()
    for name, each in (("of a cold no-op", cold["noop"]), ("of a cold echo", cold["echo"])):
        found.lines.append(Line(name, each, "ns", faults, figure=faults.over(each).scaled(100), figure_unit="%"))
    found.lines.append(ratio("cold no-op, forkserver against fork: time", cold["forkserver"], cold["noop"], unit="ns"))
    pages = Sample([run["faults"] for run in runs["faults"]]).text("pages")
    found.notes.append(f"a loop that only slices a list of {COLD:,} payloads after a fork copies {pages}")
    return found


@row(
    "64 workers on these cores, against as many as there are cores",
    {"the first tasks": at_least(0.8), "once batches have grown": at_least(0.8)},
    "the batches of each worker begin with one task",
)
def workers(plan: Plan) -> Findings:
    found = Findings()
    for name, shared in (
        ("the first tasks", {"function": ours.ours_first}),
        ("once batches have grown", {"function": ours.ours_steady, "job": "noop"}),
    ):
        cases = [case(f"{n} workers", **shared, tasks=500_000, workers=n) for n in (64, CORES)]
        many, few = samples(take_turns(cases, plan.turns)).values()
        found.lines.append(ratio(name, many, few, unit="tasks/s"))
    found.notes.append("all workers have started before")
    return found


@row("where the processor time of a task goes")
def task_costs(plan: Plan) -> Findings:
    tasks = 500_000
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


def _grow(plan: Plan, points: Sequence[tuple[Any, list[Case]]], *, title: str, label: str, plot: str = "") -> Findings:
    """Measure a curve. Every point has the same cases."""
    series: dict[str, list[Sample | None]] = {}
    for _, cases in points:
        for name, rates in samples(take_turns(cases, plan.repetitions)).items():
            series.setdefault(name, []).append(rates)
    return Findings(curves=[Curve(title, label, [x for x, _ in points], series, plot=plot)])


@row("how it grows with tasks")
def by_tasks(plan: Plan) -> Findings:
    points = [(n, [case("shmqueue", ours.ours_stream, tasks=n)]) for n in (10**4, 10**5, 10**6, 10**7)]
    return _grow(plan, points, title="No-op tasks out of an iterator, results as they finish", label="tasks")


@row("how it grows with workers")
def by_workers(plan: Plan) -> Findings:
    points = []
    for count in MANY_WORKERS:
        chunk = -(-WARM // (4 * max(count, CORES)))
        shared = {"job": "noop", "tasks": WARM, "workers": count}
        cases = [case("shmqueue", ours.ours_map, **shared), case("Pool.map", peers.pool_map, chunk=chunk, **shared)]
        points.append((count, cases))
    title = f"{WARM:,} no-op tasks of 100 bytes: rate against workers, their start and end included"
    return _grow(plan, points, title=title, label="workers", plot="workers")


@row("how it grows with the payload")
def by_payload(plan: Plan) -> Findings:
    most = 200_000
    points = []
    for size in PAYLOAD_SIZES:
        shared = {"job": "length", "tasks": min(most, (1 << 27) // size), "size": size}
        points.append((size, [case("shmqueue", ours.ours_map, **shared), case("Pool.map", peers.pool_map, **shared)]))
    title = f"Rate against bytes of a payload (at most {most:,} tasks, Pool.map at its default chunk size)"
    return _grow(plan, points, title=title, label="bytes", plot="payload")


@row(
    "echo by powers of two of bytes, 16 B to 1 MiB, processes running already",
    {"the largest step": at_most(2)},
    "the code has no step there; what the processor's caches do was not measured",
)
def doubling(plan: Plan) -> Findings:
    """No payload size is a cliff: twice the bytes take at most twice the time."""
    cases = []
    for size in POWERS_OF_TWO:
        shared = {"job": "echo", "tasks": min(100_000, (1 << 25) // size), "size": size}
        cases.append(case(f"{size:,}", ours.ours_steady, **shared))
    rates = list(samples(take_turns(cases, plan.turns)).values())
    series: dict[str, list[Sample | None]] = {"shmqueue": [*rates]}
    title = "Values returned by powers of two of bytes, processes running already (at most 100,000 tasks)"
    return Findings([_largest_step(POWERS_OF_TWO, rates)], [Curve(title, "bytes", POWERS_OF_TWO, series)])


def _largest_step(x: Sequence[int], rates: Sequence[Sample]) -> Line:
    """Return the step of a curve at which the rate falls most."""
    steps = [before.over(after) for before, after in itertools.pairwise(rates)]
    at = max(range(len(steps)), key=lambda step: steps[step].median)
    setting = f"{x[at + 1]:,} bytes against {x[at]:,} bytes"
    return Line("the largest step", rates[at + 1], "tasks/s", rates[at], figure=steps[at], setting=setting)


@row("how it grows with the batch")
def by_batch(plan: Plan) -> Findings:
    tasks = 40_000
    points = []
    for batch in (1, 4, 16, 64, 256, 1024, None):
        cases = [case("shmqueue", ours.ours_map, job="noop", tasks=tasks, batch=batch)]
        points.append((batch or "by itself", cases))
    return _grow(plan, points, title=f"{tasks:,} no-op tasks: rate against the batch", label="batch")
