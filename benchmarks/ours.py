"""What is measured of shmqueue inside a Python process. Each function checks all values before it returns a figure."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import shmqueue
from benchmarks.harness import CORES, terminal
from benchmarks.jobs import (
    JOBS,
    NANOSECONDS,
    SHAPES,
    WrongError,
    check,
    durations,
    list_schedule,
    numbered,
    payloads,
    uneven,
)

clock = time.perf_counter
GROW = [b""] * 20_000  # no-ops that come first, where batches are to grow to the size which suits them
PAIR = 2  # workers, where a row says what one does while the other is busy


def strategies() -> Mapping[str, type[shmqueue.SharedTaskQueue]]:
    """The ways to synchronize by name: those of variants/, the built-in one first; that one alone without variants/."""
    with contextlib.suppress(ModuleNotFoundError):
        import variants

        return variants.strategies
    return {shmqueue.SharedTaskQueue.strategy: shmqueue.SharedTaskQueue}


def _queue(strategy: str | None) -> dict[str, Any]:
    return {"queue": strategies()[strategy]} if strategy else {}


def _warm(supervisor: shmqueue.Supervisor) -> None:
    """Wait until every worker has answered."""
    workers = len(supervisor.stats()["workers"])
    deadline = clock() + 30
    seen: set[Any] = set()
    while len(seen) < workers:
        seen |= {result.value for result in supervisor.run([("whoami", b"")] * (4 * workers))}
        if clock() > deadline:
            raise WrongError(f"{workers} workers, and {len(seen)} answered in 30 s")


def ours_map(
    job: str, tasks: int, size: int = 100, strategy: str | None = None, times: int = 1, **options: Any
) -> float:
    """Tasks a second, values in input order, from before the workers start until they have left; of the last time."""
    items, seconds = payloads(tasks, size), 0.0
    for _ in range(times):
        start = clock()
        values = shmqueue.parallel_map(JOBS[job], items, **_queue(strategy), **options)
        seconds = clock() - start
        check(job, items, values)
    return tasks / seconds


def ours_run(job: str, tasks: int, size: int = 100, **options: Any) -> float:
    """Tasks a second, TaskResults as they finish, from before the workers start until they have left."""
    items = payloads(tasks, size)
    start = clock()
    with shmqueue.Supervisor([JOBS[job]], **options) as supervisor:
        values = [result.value for result in supervisor.run(items)]
        counts = supervisor.stats()
    seconds = clock() - start
    check(job, items, values, ordered=False)
    if counts["ok"] != tasks:
        raise WrongError(f"{tasks:,} tasks, {counts['ok']:,} ok")
    return tasks / seconds


def ours_steady(job: str, tasks: int, size: int = 100, workers: int = CORES, times: int = 1) -> float:
    """Tasks a second, values in input order, once all workers have started; of the last time."""
    seconds = 0.0
    with shmqueue.Supervisor([JOBS[job], JOBS["whoami"]], workers=workers) as supervisor:
        _warm(supervisor)
        items = payloads(tasks, size)
        for _ in range(times):
            start = clock()
            values = list(supervisor.map(JOBS[job], items))
            seconds = clock() - start
            check(job, items, values)
    return tasks / seconds


def ours_stream(tasks: int) -> float:
    """No-op tasks a second out of an iterator that holds no list, results counted as they come."""
    start = clock()
    with shmqueue.Supervisor([JOBS["noop"]]) as supervisor:
        done = sum(result.status == "ok" for result in supervisor.run(itertools.repeat(bytes(100), tasks)))
    seconds = clock() - start
    if done != tasks:
        raise WrongError(f"{tasks:,} tasks, {done:,} ok")
    return tasks / seconds


def ours_uneven() -> float:
    """The makespan of the uneven tasks over the ideal one, once all workers have started."""
    items = uneven()
    with shmqueue.Supervisor([JOBS["spin"], JOBS["whoami"]], workers=CORES) as supervisor:
        _warm(supervisor)
        start = clock()
        values = list(supervisor.map(JOBS["spin"], items))
        seconds = clock() - start
    check("spin", items, values)
    return seconds / (sum(map(int, items)) / 1e6 / CORES)


def ours_scheduled(row: str, shape: str) -> dict[str, float]:
    """The makespan of tasks of a shape, and that of a list schedule of the times which they took in this run.

    No-ops come before, so that batches have grown to the size which suits the shortest tasks.
    """
    microseconds = SHAPES[row][shape]
    items = [("spend", payload) for payload in numbered(microseconds)]
    with shmqueue.Supervisor([JOBS["spend"], JOBS["noop"], JOBS["whoami"]], workers=PAIR) as supervisor:
        _warm(supervisor)
        check("noop", GROW, list(supervisor.map("noop", GROW)))
        start = clock()
        values = [result.value for result in supervisor.run(items)]
        seconds = clock() - start
    took = durations(microseconds, values)
    return {"makespan": seconds, "schedule": list_schedule(took, PAIR)}


def ours_late(before: int, after: int) -> int:
    """How many results come later than a second after the start: no-ops, one task of 2 seconds, no-ops."""
    items = [("noop", b"")] * before + [("spend", b"0 2000000")] + [("noop", b"")] * after
    results, late = [], 0
    with shmqueue.Supervisor([JOBS["noop"], JOBS["spend"], JOBS["whoami"]], workers=PAIR) as supervisor:
        _warm(supervisor)
        start = clock()
        for result in supervisor.run(items):
            late += clock() - start > 1
            results.append(result)
    if len(results) != len(items) or any(result.status != "ok" for result in results):
        raise WrongError(f"{len(items):,} tasks, {len(results):,} results, or not all of them ok")
    durations([2_000_000], [result.value for result in results if result.function == "spend"])
    return late


def ours_wake(times: int, strategy: str | None = None) -> float:
    """Microseconds from submit to the function's first line in an idle worker: the median."""
    waits = []
    with shmqueue.Supervisor([JOBS["monotonic"], JOBS["whoami"]], **_queue(strategy)) as supervisor:
        _warm(supervisor)
        for _ in range(times):
            time.sleep(0.002)
            before = time.monotonic_ns()
            supervisor.submit("monotonic", b"")
            (result,) = supervisor.results()
            waits.append((NANOSECONDS.unpack(result.value)[0] - before) / 1000)
    if min(waits) < 0:
        raise WrongError("a task began before it was submitted")
    return float(statistics.median(waits))


def ours_drawing(tasks: int) -> float:
    """How much of the time the supervisor spends on drawing, in percent: processor time over all the time of a run.

    The error stream of this process is a terminal meanwhile."""
    screen, seconds, items = TimedScreen("drawing", lambda: tasks), 0.0, payloads(tasks, 100)
    error_stream = os.dup(2)
    with terminal([]) as stream:
        os.dup2(stream, 2)
        try:
            with shmqueue.Supervisor([JOBS["noop"]], screen=screen, start_method="fork") as supervisor:
                for _ in range(5):
                    start = clock()
                    values = list(supervisor.map("noop", items))
                    seconds += clock() - start
                    check("noop", items, values)
        finally:
            os.dup2(error_stream, 2)
    if screen.frames < 5:
        raise WrongError(f"{screen.frames} frames were drawn in {seconds:.1f} s")
    return 100 * screen.spent / seconds


class TimedScreen(shmqueue.Screen):
    """A screen that knows what it costs: the processor time of this thread, from the snapshot to the last byte."""

    spent, frames = 0.0, 0

    def draw(self, snapshot: Callable[[], shmqueue.Snapshot]) -> None:
        before = time.thread_time()
        super().draw(snapshot)
        self.spent += time.thread_time() - before

    def show(self, shot: shmqueue.Snapshot) -> None:
        self.frames += 1
        super().show(shot)


def ours_messages(producers: int, consumers: int, messages: int) -> float:
    """Seconds for a queue benchmark's scenario: as many tasks as all its producers send, of 40 bytes, through as
    many workers as it has consumers."""
    tasks = producers * messages
    return tasks / ours_map("noop", tasks, size=40, workers=consumers)
