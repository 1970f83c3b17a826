"""Rows: tasks a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import costs, model, ours, peers
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
# Queues and other pools: name, function, the option that is varied, and the values to try.
SETTINGS: tuple[tuple[str, Callable[..., float], str, tuple[Any, ...]], ...] = (
    ("faster-fifo put_many, get_many", peers.fifo_many, "many", (100, 500, 2_000)),
    ("multiprocessing.Queue", peers.queue_one, "", ()),
    ("mpire", peers.mpire_map, "chunk", (None, 500, 2_000, 10_000)),
    ("joblib", peers.joblib_map, "batch", ("auto", 500, 2_000, 10_000)),
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


@row("page faults, context switches and wake-ups of 1,000,000 tasks, processes running already")
def usage(plan: Plan) -> Findings:
    """What the system counts for both, supervisor and workers together, and the processor time."""
    tasks = plan.size(1_000_000, 150_000)
    found = Findings()
    for job in ("noop", "echo"):
        shared = {"job": job, "tasks": tasks, "size": SIZE}
        cases = [
            case("shmqueue", costs.ours_usage, **shared),
            case("Pool.map, chunks of 10,000", costs.pool_usage, chunk=10_000, **shared),
        ]
        runs = alternate(cases, plan.repetitions, found.notes)
        names = list(runs["shmqueue"][0])
        scale = 1_000_000 / tasks
        series: dict[str, list[Sample | None]] = {
            each: [Sample([run[name] * scale for run in of_system]) for name in names]
            for each, of_system in runs.items()
        }
        title = f"What the system counts for 1,000,000 tasks, function {job}"
        found.curves.append(Curve(title, "count", names, series, unit=""))
    return found


@row("on paper: where the supervisor is the bottleneck, from today's costs of a task")
def paper(plan: Plan) -> Findings:
    """Compare a formula with a simulation, for counts of workers and times of a task that were not measured."""
    found = Findings()
    runs = alternate(
        [case("shmqueue", costs.ours_costs, job="echo", tasks=plan.size(500_000, 150_000))], 1, found.notes
    )
    sides = runs["shmqueue"][0]
    supervisor, worker = (sum(sides[side].values()) / 1e9 for side in ("supervisor", "workers"))
    points = [(workers, task) for task in (1, 10, 100) for workers in (8, 32, 128)]
    formula = [model.rate(supervisor, worker, task / 1e6, workers) for workers, task in points]
    simulated = [model.simulate(supervisor, worker, task / 1e6, workers) for workers, task in points]
    series: dict[str, list[Sample | None]] = {
        "formula": [Sample([rate]) for rate in formula],
        "simulation": [Sample([rate]) for rate in simulated],
        "supervisor busy, %": [Sample([100 * supervisor * rate]) for rate in simulated],
    }
    labels = [f"{workers} workers, {task} µs a task" for workers, task in points]
    costs_of_task = f"{1e9 * supervisor:,.0f} ns in the supervisor and {1e9 * worker:,.0f} ns in a worker"
    title = f"Tasks a second on paper, a core for each process: {costs_of_task} for each task"
    found.curves.append(Curve(title, "shape", labels, series, unit=""))
    found.notes.append("on paper: the supervisor saturates where its share is 100 %; more workers gain nothing there")
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
