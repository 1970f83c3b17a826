"""Rows: how each cost grows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks import ours, peers
from benchmarks.harness import CORES, Case, Curve, Findings, Line, Plan, Sample, at_most, case, row, samples

POWERS_OF_TWO = [1 << power for power in range(4, 21)]  # 16 B to 1 MiB
MANY_WORKERS = (1, 2, 4, 8, 16, 32, 64)
FEWER_COUNTS = (1, 2, 8, 64)  # of workers, for a quick run
PAYLOAD_SIZES = (8, 32, 100, 119, 120, 1024, 16_384, 131_072, 1_048_576)


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
