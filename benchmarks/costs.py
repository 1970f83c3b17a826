"""Measure where the processor time of a task goes in a real run.

Functions of shmqueue are wrapped with a clock that counts the thread's processor time. The wrapped functions are called
once for each block or batch, so the clock itself costs little.
"""

from __future__ import annotations

import collections
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shmqueue
from benchmarks.jobs import JOBS, check, payloads

clock = time.thread_time_ns
SUPERVISOR = {  # the name in the table: the function that is measured
    "take": "IterableSource.take",
    "admit": "Ledger.admit",
    "feed": "Run.push",
    "pack": "TaskSlots.pack",
    "lock, push": "SharedTaskQueue.push",
    "place": "Ledger.placed",
    "harvest": "SharedTaskQueue.harvest",
    "read outcomes": "Lane._read",
    "cut values": "Lane._settle_done",
    "settle": "Ledger.complete",
    "wake": "WorkerPool.ring",
    "check workers": "WorkerPool.check",
    "wait": "Run._wait",
    "start workers": "WorkerPool._start",
    "other turns": "Run.step",
}
WORKER = {
    "claim": "SharedTaskQueue.claim",
    "unpack": "TaskSlots.payloads",
    "run": "Worker.run",
    "wait, ring": "Worker.serve",
}


class Meter:
    """Counts processor time by part. The time of a part leaves out the parts called inside it."""

    def __init__(self) -> None:
        self.spent: collections.Counter[str] = collections.Counter()
        self._inner = [0]
        self._before: list[tuple[Any, str, Any]] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start = clock()
            self._inner.append(0)
            try:
                return function(*arguments, **options)
            finally:
                whole = clock() - start
                self.spent[name] += whole - self._inner.pop()
                self._inner[-1] += whole

        return timed

    def install(self, parts: dict[str, str]) -> None:
        for name, where in parts.items():
            owner, _, attribute = where.partition(".")
            owning_class = getattr(shmqueue, owner)
            function = vars(owning_class)[attribute]
            self._before.append((owning_class, attribute, function))
            setattr(owning_class, attribute, self.wrap(name, function))

    def remove(self) -> None:
        while self._before:
            owning_class, attribute, function = self._before.pop()
            setattr(owning_class, attribute, function)


def ours_costs(job: str, tasks: int) -> dict[str, dict[str, float]]:
    """Return nanoseconds of processor time a task, by part: of the supervisor, and of all workers together."""
    items = payloads(tasks)
    meter = Meter()
    original = shmqueue.Worker.serve
    with tempfile.TemporaryDirectory() as folder:

        def serve(worker: Any) -> None:
            """Serve with a meter of this worker's own. The worker was forked with the supervisor's meter."""
            mine = Meter()
            meter.remove()
            shmqueue.Worker.serve = original  # type: ignore[method-assign]
            mine.install(WORKER)
            worker.serve()
            Path(folder, str(time.monotonic_ns())).write_text(json.dumps(mine.spent))

        meter.install(SUPERVISOR)
        shmqueue.Worker.serve = serve  # type: ignore[method-assign, assignment]
        start = clock()
        values = shmqueue.parallel_map(JOBS[job], items, start_method="fork")
        whole = clock() - start
        workers: collections.Counter[str] = collections.Counter()
        for file in Path(folder).iterdir():
            workers.update(json.loads(file.read_text()))
    check(job, items, values)
    meter.spent["yield, collect"] = whole - sum(meter.spent.values())
    return {
        side: {name: nanoseconds / tasks for name, nanoseconds in spent.most_common()}
        for side, spent in (("supervisor", meter.spent), ("workers", workers))
    }
