"""Measure shmqueue inside a Python process. Each function checks all values before it returns a figure."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import shmqueue
from benchmarks.harness import CORES, busy_core, terminal
from benchmarks.jobs import (
    JOBS,
    SHAPES,
    WrongError,
    check,
    durations,
    list_schedule,
    median_microseconds,
    numbered,
    payloads,
    seconds_of_map,
    uneven,
    until_it_begins,
)

clock = time.perf_counter
GROW = [b""] * 20_000  # no-ops that run first where batches have to be large when the measurement starts
PAIR = 2  # workers of a row about what one worker does while the other is busy


def _warm(supervisor: shmqueue.Supervisor) -> None:
    """Wait until every worker has answered."""
    workers = len(supervisor.stats()["workers"])
    deadline = clock() + 30
    seen: set[Any] = set()
    while len(seen) < workers:
        seen |= {result.value for result in supervisor.run([("whoami", b"")] * (4 * workers))}
        if clock() > deadline:
            raise WrongError(f"{workers} workers, and {len(seen)} answered in 30 s")


def ours_map(job: str, tasks: int, size: int = 100, **options: Any) -> float:
    """Return tasks a second, values in input order. Workers start and end in the time."""
    items = payloads(tasks, size)
    start = clock()
    values = shmqueue.parallel_map(JOBS[job], items, **options)
    seconds = clock() - start
    check(job, items, values)
    return tasks / seconds


def ours_run(job: str, tasks: int, size: int = 100, **options: Any) -> float:
    """Return tasks a second, TaskResults as they finish. Workers start and end in the time."""
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


def ours_steady(
    job: str, tasks: int, size: int = 100, workers: int = CORES, neighbour: bool = False
) -> Iterator[float]:
    """Yield tasks a second of one run after the other, values in input order. All workers have started before.

    neighbour: keep a core busy.
    """
    with shmqueue.Supervisor([JOBS[job], JOBS["whoami"]], workers=workers) as supervisor:
        _warm(supervisor)
        items = payloads(tasks, size)
        while True:
            with busy_core(neighbour):
                start = clock()
                values = list(supervisor.map(JOBS[job], items))
                seconds = clock() - start
            check(job, items, values)
            yield tasks / seconds


def ours_first(tasks: int, workers: int) -> float:
    """Return no-op tasks a second of the first run. All workers have started before."""
    with contextlib.closing(ours_steady("noop", tasks, workers=workers)) as runs:
        return next(runs)


def ours_records(tasks: int, size: int, method: str) -> Iterator[float]:
    """Yield echo tasks a second: "run" makes TaskResults, "map" gives the values alone."""
    items = payloads(tasks, size)
    with shmqueue.Supervisor([JOBS["echo"]], workers=CORES) as supervisor:
        while True:
            start = clock()
            if method == "run":
                values = [result.value for result in supervisor.run(items)]
            else:
                values = list(supervisor.map("echo", items))
            seconds = clock() - start
            check("echo", items, values, ordered=method == "map")
            yield tasks / seconds


def ours_stream(tasks: int) -> float:
    """Return no-op tasks a second out of an iterator without a list. Results are counted as they come."""
    start = clock()
    with shmqueue.Supervisor([JOBS["noop"]]) as supervisor:
        done = sum(result.status == "ok" for result in supervisor.run(itertools.repeat(bytes(100), tasks)))
    seconds = clock() - start
    if done != tasks:
        raise WrongError(f"{tasks:,} tasks, {done:,} ok")
    return tasks / seconds


def ours_uneven() -> float:
    """Return the makespan of the uneven tasks over the ideal one. All workers have started before."""
    items = uneven()
    with shmqueue.Supervisor([JOBS["spin"], JOBS["whoami"]], workers=CORES) as supervisor:
        _warm(supervisor)
        start = clock()
        values = list(supervisor.map(JOBS["spin"], items))
        seconds = clock() - start
    check("spin", items, values)
    return seconds / (sum(map(int, items)) / 1e6 / CORES)


def ours_scheduled(shape: str) -> dict[str, float]:
    """Return the makespan of tasks of a shape, and that of a list schedule of the times that they took in this run.

    No-ops run first, so that batches have grown to the size that suits the shortest tasks.
    """
    microseconds = SHAPES[shape]
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
    """Run no-ops, one task of 2 seconds and no-ops. Return how many results come later than 1 s after the start."""
    items = [("noop", b"")] * before + [("spend", b"0 2000000")] + [("noop", b"")] * after
    results = []
    late = 0
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


def ours_wake(times: int) -> Iterator[float]:
    """Yield the median microseconds from submit to the function's first line in an idle worker."""
    with shmqueue.Supervisor([JOBS["monotonic"], JOBS["whoami"]], workers=CORES) as supervisor:
        _warm(supervisor)

        def once() -> bytes:
            supervisor.submit("monotonic", b"")
            (result,) = supervisor.results()
            return result.value

        while True:
            yield until_it_begins(once, times)


def ours_there_and_back(times: int, pause: float) -> Iterator[float]:
    """Yield the median microseconds of submit() and results() for one task, with so many seconds between two."""
    with shmqueue.Supervisor([JOBS["echo"], JOBS["whoami"]], workers=CORES) as supervisor:
        _warm(supervisor)

        def once() -> Any:
            supervisor.submit("echo", b"there")
            (result,) = supervisor.results()
            return result.value

        while True:
            yield median_microseconds(once, times, pause)


def ours_future(times: int, pause: float) -> Iterator[float]:
    """Yield the median microseconds of Executor.submit(...).result()."""
    with shmqueue.Executor(CORES) as executor:
        while True:
            yield median_microseconds(lambda: executor.submit(JOBS["echo"], b"there").result(), times, pause)


def ours_calls(calls: int, chunk: int) -> Iterator[float]:
    """Yield the seconds of Executor.map for so many trivial calls."""
    with shmqueue.Executor(CORES) as executor:
        yield from seconds_of_map(executor, calls, chunk)


def ours_open(tasks: int) -> float:
    """Return the seconds to open and close a Supervisor while a list of so many payloads is in memory."""
    payloads(tasks, 93)
    start = clock()
    with shmqueue.Supervisor([JOBS["noop"]], workers=CORES):
        pass
    return clock() - start


def ours_faults(tasks: int, size: int) -> dict[str, float]:
    """Return the nanoseconds a task, and the page faults, of a loop that slices a list of payloads after a fork.

    The loop writes to each payload, since that counts its references. So the first touch of a page copies it.
    """
    items = payloads(tasks, size)
    for _ in range(2):  # an earlier fork costs faults, too, but only once
        alone = _seconds_of_slices(items)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        forked = _seconds_of_slices(items)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"ns": (forked - alone) / tasks * 1e9, "faults": faults}


def _seconds_of_slices(items: list[bytes]) -> float:
    start = clock()
    for at in range(0, len(items), 64):
        items[at : at + 64]
    return clock() - start


def ours_small(tasks: int) -> float:
    """Return the seconds of parallel_map for a few no-ops, the start and the end of the workers included."""
    items = payloads(tasks)
    start = clock()
    values = shmqueue.parallel_map(JOBS["noop"], items)
    seconds = clock() - start
    check("noop", items, values)
    return seconds


def ours_many_workers(workers: int) -> dict[str, float]:
    """Return the seconds until that many workers have started, and until they have also run a task each and ended."""
    start = clock()
    with shmqueue.Supervisor([JOBS["noop"]], workers=workers, start_method="fork") as supervisor:
        started = clock() - start
        done = sum(result.status == "ok" for result in supervisor.run([b""] * workers))
    seconds = clock() - start
    if done != workers:
        raise WrongError(f"{workers} tasks, {done} ok")
    return {"start": started, "whole": seconds}


def ours_drawing(tasks: int) -> float:
    """Return the processor time that the supervisor spends on drawing, in percent of the time of the runs.

    The error stream of this process is a terminal meanwhile.
    """
    screen = TimedScreen("drawing", lambda: tasks)
    items = payloads(tasks, 100)
    seconds = 0.0
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
    """A screen that measures the processor time it costs this thread, from the snapshot to the last byte."""

    spent = 0.0
    frames = 0

    def update(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        before = time.thread_time()
        super().update(snapshot)
        self.spent += time.thread_time() - before

    def show(self, shot: dict[str, Any]) -> None:
        self.frames += 1
        super().show(shot)


def ours_messages(producers: int, consumers: int, messages: int) -> float:
    """Return the seconds that a scenario of a queue benchmark takes.

    There are as many tasks, of 40 bytes, as all its producers send, and as many workers as it has consumers.
    """
    tasks = producers * messages
    return tasks / ours_map("noop", tasks, size=40, workers=consumers)
