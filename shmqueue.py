#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the shmqueue authors. Licence: MIT, see the end of this docstring.
"""shmqueue: put many small tasks through several processes, and lose none.

One file, standard library only (psutil is used where it is installed). Copy it into your repository.

    import shmqueue

    def thumbnail(payload: bytes) -> bytes | None: ...      # an ordinary top-level function

    values = shmqueue.parallel_map(thumbnail, paths)        # a list, in input order
    with shmqueue.Supervisor([thumbnail, resize]) as supervisor:
        for result in supervisor.run((resize, path) for path in paths):
            print(result.status, result.value)              # as they finish

or run it on a file of tasks, one a line: `python shmqueue.py tasks.txt` (`--help` tells the rest).


The processes, and what goes between them
-----------------------------------------
                             one shared-memory segment, in /dev/shm
                  +-----------------------------------------------------------+
                  |  ring of task slots                     one worker's half  |
    tasks         |  +----+----+----+----+----+    claim   +----------------+ |
      |      push |  | .. | 17 | 18 | 19 | .. | ---------> | lane  17 18 19 | |   worker process
      v     +-------->----+----+----+----+----+   (copy)   |                | |   for each task of the lane:
  supervisor      |     ^ claimed       ^ pushed           | ends   x  x  0 <-----    value = function(payload)
    ^  |          |                                        | log    value.. <-----    append to the log, store ends
    |  +---------------- harvest ------------------------- |                | |
  results         |                                        +----------------+ |
                  +-----------------------------------------------------------+

  The supervisor is the caller's process. It owns the segment, fills the ring, collects outcomes, replaces dead
  workers and draws the screen. Workers only ever touch the segment and their own pipes; nothing is pickled after
  the start, so whoever writes into the segment can spoil data but never run code.


The segment, in bytes
---------------------
  QueueHeader          what and whose it is | pushed | claimed | dirty | asleep         a line of 128 bytes each
  WorkerStatus x W     the worker's line: claims published asleep ready limit leaving
                       the supervisor's line: harvested leave pid completed failed started
  (a strategy's own)   nothing here; see variants/
  LocalTaskQueue x W   two halves, each with room for a batch: first end began special | a lane of `batch` task slots |
                       ends[batch] | stamps[batch] | a log for the values
  TaskSlot128 x N      the ring
  heap                 pages for payloads that do not fit a slot; reserved as they are used

  Positions and counters are 64 bits, absolute, and only grow; slot `position % num_slots` holds a position. Each
  word has one writer (or is written under the lock), is aligned, and is stored through memoryview.cast("Q"), which
  is one machine store. struct.pack_into would zero it first: that is for slots, never for words.


The life of a task
------------------
  push      The supervisor writes the task into free slots of the ring, which nobody reads. Then it takes the lock and
            moves `pushed`.
  claim     A worker takes the lock, says that its last batch is finished (`published`), copies a batch from the ring
            to the lane of its other half, and moves `claimed`: the commit point. From here on the batch is its own.
  run       The worker calls the function, appends the value to the log, and stores `ends[i]`. That one store makes
            the task finished. Whoever is killed before it has not finished the task; whoever is killed after it has.
  harvest   The supervisor takes the lock and reads how many batches each worker has finished. Then it reads their
            logs, without the lock.
  halt      A worker is slow while others are idle or results wait, or tasks are to be taken back for another reason.
            The supervisor stops it for a moment (SIGSTOP), reads what it has finished, draws the `end` of its batch
            back to the task in hand, and lets it continue. What lay behind goes back to the ring.


The lock
--------
  fcntl.lockf on one byte of the segment's file. It guards pushed, claimed, dirty, published, harvested, leave, the
  asleep words, and a claim's stores to its half. The kernel releases it when its holder dies. The next holder finds
  `dirty` set if the last one died inside, and repairs: a batch whose `end` lies beyond `claimed` was not committed,
  so its `end` becomes `claimed`, and the batch is empty. Then it sets `dirty` to itself, and clears it before it lets
  go. Nothing slow happens inside.
  What one process wrote, another reads only after both held this lock, or after the kernel reaped the writer or
  stopped it. So no assumption is made about the order in which a processor's stores become visible.


If a worker is killed, on any line
----------------------------------
  in claim, before the commit      repaired by the next holder: the tasks are still in the ring
  in a batch                       the tasks with their `ends` are finished. The next one was in hand: it is charged
                                   one attempt. Those behind it never began, and go round again
  after its last task              nothing is in hand, and nobody is charged
  while it stands still            the same: only tasks behind the one in hand were taken back
If the supervisor is killed, workers see their pipe close and leave; the next start removes the segment.

MIT License: permission is granted, free of charge, to any person obtaining a copy of this software, to deal in it
without restriction, including to use, copy, modify, merge, publish, distribute, sublicense and sell copies, provided
that this notice is included in all copies or substantial portions. The software is provided "as is", without warranty
of any kind; in no event shall the authors be liable for any claim or damages arising from it or its use.
"""

from __future__ import annotations

import argparse
import array
import bisect
import collections
import contextlib
import csv
import ctypes
import dataclasses
import errno
import functools
import glob
import hashlib
import importlib
import inspect
import io
import itertools
import json
import math
import mmap
import multiprocessing.util
import operator
import os
import pickle
import re
import reprlib
import resource
import secrets
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
import tty
import typing
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

try:
    import fcntl
except ImportError as missing:  # Windows: no lock there is released by the kernel and reachable by path
    raise ImportError("shmqueue needs a POSIX system (Linux, macOS): it locks with fcntl.lockf") from missing

psutil: Any = None  # without it the screen's cpu and rss columns stay blank, and max_rss is refused
with contextlib.suppress(ImportError):
    psutil = importlib.import_module("psutil")

__version__ = "0.1.0"
__all__ = ["Executor", "Supervisor", "TaskError", "TaskResult", "main", "parallel_map"]


# ---------------------------------------------------------------------------------------------------------------------
# What a user calls: results, errors, parallel_map and Supervisor.
# ---------------------------------------------------------------------------------------------------------------------

# What the status of a task may be, and how the summary calls it.
OUTCOMES = {"ok": "ok", "failed": "failed", "timeout": "timed out", "crashed": "crashed", "cancelled": "cancelled"}


class TaskResult(NamedTuple):
    """The one outcome of a task.

    tsk_id: 1 for the first task of a Supervisor, and so on. function: its name. payload: as it was given. status:
    ok, failed, timeout, crashed or cancelled. value: what the function returned, None unless ok. error: the text of
    what went wrong, None if ok. attempts: how often it was started. worker: the index of the last one that had it,
    or None. seconds: the time the function took; the mean of several where they took less than 20 microseconds.
    """

    tsk_id: int
    function: str
    payload: Any
    status: str
    value: Any
    error: str | None
    attempts: int
    worker: int | None
    seconds: float


_new_result = functools.partial(tuple.__new__, TaskResult)  # of a tuple, in C: TaskResult() takes twice as long


class TaskError(Exception):
    """A task was not ok; `result` is its TaskResult."""

    def __init__(self, result: TaskResult) -> None:
        super().__init__(f"task {result.tsk_id} ({result.function}) {result.status}: {result.error}")
        self.result = result


class WorkersFailedError(RuntimeError):
    """Workers die before they take a task, again and again."""


class SpoiledSegmentError(RuntimeError):
    """A word in the segment has a value that no process of this run wrote."""


def parallel_map(
    function: Function, payloads: Iterable[Any], *, workers: int | None = None, **options: Any
) -> list[Any]:
    """Return the values of `function` for `payloads`, in their order. Raises TaskError at the first task not ok.

    `options` are those of Supervisor.
    """
    with Supervisor([function], workers=workers, **options) as supervisor:
        values: list[Any] = []
        for part in supervisor._parts(supervisor._ordered(payloads, 1)):
            values += part
        return values


SHARE_SECONDS = 0.5  # how often a snapshot is left for --watch


class Supervisor:
    """Puts tasks through worker processes. Used from one thread; several threads may each have their own.

    functions: a sequence of callables, or a mapping {fn_id: callable}; fn_id 0 is TERMINATE. workers: processes;
    None for as many as this process may use processors. num_slots: tasks the ring holds. slot_size: bytes of a
    slot, a multiple of 8; a payload of slot_size - 9 bytes or fewer travels in its slot, a longer one beside it.
    batch: tasks a worker claims at once; None sizes batches by itself. timeout: seconds a task may run. retries:
    how often a task that is not ok is started again. max_rss: bytes of memory above which a worker is replaced,
    after the task in its hand, or with it if it stays above for a second; needs psutil. max_tasks: tasks after
    which a worker is replaced. initializer: called first in every worker. screen: draw on the error stream. log: a
    file for what functions print, which is dropped without it. start_method: fork, spawn or forkserver; None for
    fork in a process that has one thread, else forkserver. queue: the strategy.

    Raises ValueError and TypeError for arguments out of range, OSError (ENOSPC) where shared memory is too small.
    """

    def __init__(
        self,
        functions: Any,
        *,
        workers: int | None = None,
        num_slots: int = 16384,
        slot_size: int = 128,
        batch: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        max_rss: int | None = None,
        max_tasks: int | None = None,
        initializer: Callable[[], object] | None = None,
        screen: bool | Progress = False,
        log: str | None = None,
        start_method: str | None = None,
        queue: type[SharedTaskQueue] | None = None,
    ) -> None:
        numbered = number_functions(functions)
        workers = available_processors() if workers is None else workers
        check_numbers(workers=workers, num_slots=num_slots, slot_size=slot_size, batch=batch, timeout=timeout)
        check_numbers(retries=retries, max_rss=max_rss, max_tasks=max_tasks)
        self.on_check: Callable[[], None] = lambda: None  # called several times a second while tasks are outstanding
        self._ledger = Ledger(numbered, retries, workers)
        self._submitted = Job(None, self._ledger.names)
        self._began = time.monotonic()
        self._next_share = 0.0
        if log:
            log = os.path.abspath(log)  # a worker may be started in another folder
            with open(log, "ab"):  # raises here, since nobody would hear a worker's error
                pass
        sweep()
        self._progress = screen if isinstance(screen, Progress) else Screen() if screen else Progress()
        method = start_method or ("fork" if count_threads() == 1 else "forkserver")
        context = multiprocessing.get_context(method)
        most = min(num_slots, batch or max(16, min(1024, num_slots // (2 * workers))))
        resources = self._prepare_end()
        try:
            with handlers.held():  # an interrupt here would leave the segment behind
                self._queue = (queue or SharedTaskQueue).create(num_slots, slot_size, workers, most, context)
                resources.callback(self._queue.remove)
                worker_options = WorkerOptions(numbered, initializer, batch, max_tasks, log)
                self._pool = WorkerPool(self._queue, worker_options, context, max_rss)
                self._pool.chosen_fork = method == "fork" and start_method is None
                resources.callback(end_strays, self._queue.name)
                resources.callback(self._pool.close)
            self._queue.stuck = self._pool.free_lock
            self._engine = Engine(self._queue, self._pool, self._ledger, timeout)
            for process in self._pool.processes:
                self._pool.start(process)
        except BaseException as error:
            self._end()
            if isinstance(error, LIMIT_ERRORS):
                raise limit_error(error) from None
            raise

    def _prepare_end(self) -> contextlib.ExitStack:
        """What is put on the stack that this returns is released at the end, whichever way this process ends."""
        resources = contextlib.ExitStack()
        self._dispose = weakref.finalize(self, handlers.dispose, os.getpid(), resources)
        # multiprocessing waits for its children when Python exits, so this has to come before.
        self._at_exit = multiprocessing.util.Finalize(None, self._dispose, exitpriority=10)
        handlers.open(resources)
        return resources

    # What a user calls.

    @property
    def name(self) -> str:
        """The name of the segment."""
        return self._queue.name

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self._stop()

    def run(self, tasks: Iterable[Any] | Source) -> Iterator[TaskResult]:
        """Yield the TaskResults of `tasks` as they finish. Never raises for a task.

        An item is a payload if there is one function, or (function, payload), with a function or its name. `tasks` is
        read in the caller's thread when there is room; while it blocks, nothing is yielded. A Structure that it has
        yielded must not be changed. Closing the iterator early cancels what has not begun.
        """
        return self._read(Job(self._open(tasks), self._ledger.names))

    def map(self, function: Any, payloads: Iterable[Any]) -> Iterator[Any]:
        """Yield the values of `function` for `payloads`, in their order. Reads ahead a few rings at most.

        Raises TaskError at the first task that is not ok, and cancels the rest.
        """
        if function not in self._ledger.fn_ids:
            raise ValueError(no_such_function(function_name(function), self._ledger.names.values()))
        return self._read(self._ordered(payloads, self._ledger.fn_ids[function]))

    def submit(self, function: Any, payload: Any) -> int:
        """Add one task and return its tsk_id. results() yields its outcome. Blocks while the ring is full."""
        self._engine.check_open()
        tsk_id = self._ledger.next_id
        self._ledger.admit(self._submitted, [(function, payload)])
        self._engine.push()
        while (self._ledger.again or self._ledger.fresh) and not self._engine.paused:
            self._engine.turn(self._submitted, self._report)
        return tsk_id

    def results(self) -> Iterator[TaskResult]:
        """Yield the TaskResults of submitted tasks as they finish, until none is outstanding."""
        self._engine.check_open()
        return self._read(self._submitted)

    def cancel(self) -> None:
        """Let what has begun finish, and cancel the rest, in all runs, for good. Their iterators go on to the end."""
        self._ledger.stopping = True
        self._engine.withdraw()

    def pause(self, paused: bool) -> None:
        """Begin no more tasks if `paused`, or go on."""
        self._engine.check_open()
        self._engine.paused = paused
        if paused:
            self._engine.withdraw()

    def abort(self) -> None:
        """Kill the workers, and cancel what they have in hand and the rest."""
        self._engine.abort("cancelled", "stopped while it ran")

    def close(self) -> None:
        """Finish what is outstanding, let the workers leave, and remove the segment. May be called again."""
        try:
            if not self._engine.over:
                self._engine.finish(self._submitted, self._report)
        finally:
            self._stop()

    def wake(self) -> None:
        """Make on_check be called soon. For signal handlers."""
        self._engine.next_check = 0.0
        self._pool.wake_supervisor()

    @property
    def paused(self) -> bool:
        """True after pause(True)."""
        return self._engine.paused

    @property
    def cancelled(self) -> bool:
        """True after cancel() or abort()."""
        return self._ledger.stopping

    def stats(self) -> dict[str, Any]:
        """Count outcomes (ok, failed, timeout, crashed, cancelled), retried and outstanding tasks, respawned workers.

        seconds: since the start. workers: a dict for each, with its pid and its completed and failed tasks.
        """
        tally, pool = self._ledger.tally, self._pool
        return {
            **tally.counts,
            "retried": tally.retried,
            "respawned": pool.respawned,
            "outstanding": self._ledger.unfinished(),
            "seconds": time.monotonic() - self._began,
            "workers": [
                {"pid": process.pid, "completed": completed, "failed": failed}
                for process, completed, failed in zip(pool.processes, tally.completed, tally.failed)
            ],
        }

    def snapshot(self) -> Snapshot:
        """What the screen shows."""
        tally, queue, progress = self._ledger.tally, self._queue, self._progress
        rates, worker_rates = progress.rates([a + b for a, b in zip(tally.completed, tally.failed)])
        workers = zip(self._pool.processes, worker_rates or itertools.repeat(0.0))
        return Snapshot(
            title=progress.title,
            name=queue.name,
            strategy=queue.strategy,
            seconds=time.monotonic() - self._began,
            counts=tally.counts,
            retried=tally.retried,
            total=progress.total(),
            rates=rates,
            ring=queue.backlog(),
            num_slots=queue.num_slots,
            workers=[_worker_row(process, queue, self._ledger, rate) for process, rate in workers],
            failures=[f"#{r.tsk_id:,} {r.function} {r.status}: {r.error}" for r in tally.failures[-5:]],
            state=progress.state,
            keys=progress.keys,
        )

    def summary(self) -> dict[str, Any]:
        """stats(), and what one wants to know at the end.

        shares: of the workers' time, in which they ran functions, started and waited. slowest: five tasks. failures:
        the first five tasks that were not ok. kinds: how many failed in which way.
        """
        stats = self.stats()
        return {**stats, **self._ledger.tally.summary(stats["seconds"], self._pool.starting_seconds())}

    def suspend(self) -> None:
        """Stop the workers and this process, as Ctrl-Z does. They go on together."""
        self._pool.suspend()

    def _open(self, tasks: Iterable[Any] | Source) -> Source:
        self._engine.check_open()
        return tasks if isinstance(tasks, Source) else IterableSource(tasks)

    def _ordered(self, payloads: Iterable[Any], fn_id: int) -> Job:
        return OrderedJob(self._open(payloads), self._ledger.names, fn_id)

    def _read(self, job: Job) -> Iterator[Any]:
        with contextlib.closing(self._parts(job)) as parts:
            for part in parts:
                yield from part

    def _parts(self, job: Job) -> Generator[Iterator[Any], None, None]:
        """Yield the results of a job as they come, as iterators of several. Closed early, it cancels the rest."""
        try:
            while not job.finished:
                if not job.results:
                    self._engine.turn(job, self._report)
                elif isinstance(job.results[0], TaskError):
                    raise self._engine.failure or job.results[0]
                else:
                    part = job.results.popleft()
                    try:
                        yield part
                    except GeneratorExit:  # the reader stopped within this part; another reader gets the rest of it
                        job.results.appendleft(part)
                        raise
            if self._engine.failure is not None:
                raise self._engine.failure
        finally:
            if job is not self._submitted and not job.finished:
                job.cancelled = True
                job.results.clear()
                if self._dispose.alive and not self._engine.over:
                    self._engine.withdraw()

    def _report(self) -> None:
        """After each check of the workers: draw, and from time to time leave a snapshot beside the segment."""
        self.on_check()
        self._progress.draw(self.snapshot)
        if time.monotonic() >= self._next_share:
            self._next_share = time.monotonic() + SHARE_SECONDS
            self._share()

    def _share(self) -> None:
        """Leave a snapshot beside the segment, for --watch."""
        path = self._queue.segment.beside("watch")
        with contextlib.suppress(OSError):  # if there is no room, nobody can watch, and the run goes on
            write_file(path + ".new", json.dumps(self.snapshot()).encode())
            os.replace(path + ".new", path)

    def _stop(self) -> None:
        """Kill whoever is left, and remove everything."""
        self._engine.over = "this Supervisor is closed"
        self._end()
        self._progress.close()

    def _end(self) -> None:
        with handlers.held():
            self._dispose()
            self._at_exit.cancel()
        handlers.exit_on_signals()  # once more, since other handlers were set within the block


def _worker_row(process: WorkerProcess, queue: SharedTaskQueue, ledger: Ledger, rate: float) -> WorkerRow:
    """What the screen shows of a worker."""
    index, glance = process.index, queue.glance(process.index)
    row = WorkerRow(
        number=index,
        pid=process.pid,
        state="sleep",
        function="",
        done=ledger.tally.completed[index],
        failed=ledger.tally.failed[index],
        rate=rate,
        cpu=process.cpu if process.rss else None,
        rss=process.rss or None,
        in_hand=None,
        held=0.0,
    )
    if process.child is None:
        return row._replace(state="dead")
    if glance.in_hand is None:
        return row
    lane = queue.half(index, glance.number).lane
    return row._replace(
        state="run",
        function=ledger.names.get(lane.fn_id(glance.done) & ~OUT_OF_LINE, ""),
        in_hand=lane.tsk_id(glance.done),
        held=time.monotonic() - process.progress_since,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Executor: the same workers for those who want futures.
# ---------------------------------------------------------------------------------------------------------------------

NOT_REDIRECTED = ""  # in place of a log: what functions print goes where this process prints


class ExecutorMethods:
    """Runs calls in worker processes: an Executor of concurrent.futures, used like ProcessPoolExecutor.

    Functions, arguments and values are anything that pickles. What a function raises arrives as itself, with the text
    of its traceback as the cause. If a worker dies, only the call in its hand fails, with TaskError. A Supervisor does
    the work in a thread of its own, so every method may be called from any thread.

    max_workers: processes; None for as many as this process may use processors. mp_context: of multiprocessing; only
    its start method counts. None for what Supervisor takes, or for spawn with max_tasks_per_child. initializer,
    initargs: a call that is made first in every worker. max_tasks_per_child: calls after which a worker is replaced;
    not with fork. timeout: seconds a call may run. retries: how often a call that raises, runs too long or crashes is
    made again. The workers start at once, and print where this process prints.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None:
        self._max_workers = available_processors() if max_workers is None else max_workers
        if self._max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        check_numbers(retries=retries)
        method = "spawn" if max_tasks_per_child is not None else None
        if mp_context is not None:
            method = mp_context.get_start_method()
        if max_tasks_per_child is not None and method == "fork":
            raise ValueError("max_tasks_per_child is incompatible with the fork start method: give another mp_context")
        supervisor = Supervisor(
            [_make_call],
            workers=self._max_workers,
            num_slots=1024,
            timeout=timeout,
            max_tasks=max_tasks_per_child,
            initializer=functools.partial(initializer, *initargs) if initializer else None,
            log=NOT_REDIRECTED,
            start_method=method,
        )
        self._calls = Calls(supervisor, self._max_workers, retries)
        weakref.finalize(self, self._calls.end)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Have fn(*args, **kwargs) called in a worker. Return the Future of that call."""
        return self._calls.add(fn, args, kwargs)

    def map(self, fn: Callable[..., Any], *iterables: Any, chunksize: int = 1, **options: Any) -> Iterator[Any]:
        """Yield the values of `fn` for the items of `iterables`, in order.

        timeout: seconds from now on after which a value that is not there raises TimeoutError. chunksize: changes
        nothing, since batches size themselves. Other options are those of this Python's Executor.map.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        values: Iterator[Any] = super().map(fn, *iterables, **options)  # type: ignore[misc]
        return values

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. When all are made, the workers leave; `wait` for that.

        cancel_futures: cancel the calls that have not begun.
        """
        self._calls.end(cancel=cancel_futures, wait=wait)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._calls.end(abort=kind is KeyboardInterrupt, wait=True)


Executor: Any  # a subclass of ExecutorMethods and concurrent.futures.Executor


def __getattr__(name: str) -> Any:
    """Make the class Executor when somebody asks for it, since concurrent.futures takes long to import."""
    if name != "Executor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import concurrent.futures.process

    threading._register_atexit(end_executors)  # type: ignore[attr-defined]  # as ProcessPoolExecutor does it
    names = {"__module__": __name__, "__doc__": ExecutorMethods.__doc__}
    globals()[name] = type(name, (ExecutorMethods, concurrent.futures.Executor), names)
    return globals()[name]


def end_executors() -> None:
    """Finish all calls when the main thread has ended; but if a signal ended it, or comes now, give them up."""
    executors = list(handlers.executors)
    try:
        for calls in executors:
            calls.end("interpreter shutdown", abort=getattr(sys, "last_type", None) is KeyboardInterrupt, wait=True)
    except BaseException as interrupt:
        for calls in executors:
            calls.end(abort=True, wait=True)
        if isinstance(interrupt, SystemExit):  # Python would only print it, and exit with 0
            os._exit(int(interrupt.code or 0))
        raise


def _make_call(payload: bytes) -> bytes:
    """Make a call for an Executor (worker). Return (True, value) or (False, exception), pickled."""
    try:
        function, args, kwargs = unpickled(payload)
        return pickled((True, function(*args, **kwargs)))
    except BaseException as error:
        return pickled_error(error)
    finally:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, full, closed
            sys.stdout.flush()
            sys.stderr.flush()


unpickled = pickle.loads  # only of what a process of this Executor has pickled


def pickled(value: Any) -> bytes:
    """Pickle a value as multiprocessing does, which can send more than pickle alone: a socket, for example."""
    return bytes(multiprocessing.reduction.ForkingPickler.dumps(value))


def pickled_error(error: BaseException) -> bytes:
    """Pickle (False, error), with its traceback as text. If that fails, pickle the error with which it fails."""
    with_text: Any = importlib.import_module("concurrent.futures.process")._ExceptionWithTraceback
    try:
        data = pickled((False, with_text(error, error.__traceback__)))
        unpickled(data)
    except BaseException as second:
        return pickled((False, with_text(second, second.__traceback__)))
    return data


# ---------------------------------------------------------------------------------------------------------------------
# The arguments of a Supervisor: their limits, and what is taken where none is given.
# ---------------------------------------------------------------------------------------------------------------------

LIMITS: dict[str, tuple[float, float]] = {
    "fn_id": (1, (1 << 31) - 1),  # the highest bit is OUT_OF_LINE
    "workers": (1, 4096),
    "num_slots": (2, 1 << 26),
    "slot_size": (64, 65536),
    "batch": (1, 1 << 26),
    "timeout": (0.001, 1e9),
    "retries": (0, 1 << 30),
    "max_rss": (1 << 20, 1 << 50),
    "max_tasks": (1, 1 << 50),
}
OPTIONAL = {"batch", "timeout", "max_rss", "max_tasks"}


def check_numbers(**values: Any) -> None:
    """Raise TypeError or ValueError, with value and limit, for an argument out of LIMITS; OPTIONAL ones may be None."""
    for name, value in values.items():
        low, high = LIMITS[name]
        whole = isinstance(low, int)
        if value is None and name in OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise TypeError(f"{name}={value!r}: must be a {'whole ' if whole else ''}number")
        if not low <= value <= high:
            raise ValueError(f"{name}={value!r}: must be from {low:,} to {high:,}")
    if values.get("slot_size", 0) % 8:
        raise ValueError(f"slot_size={values['slot_size']}: must be a multiple of 8")
    if values.get("max_rss") is not None and psutil is None:
        raise ValueError(f"max_rss={values['max_rss']}: needs psutil, which is not installed (pip install psutil)")


def number_functions(functions: Any) -> dict[int, Function]:
    """Functions by fn_id: a mapping as it is, a sequence numbered from 1 on."""
    numbered = dict(functions) if isinstance(functions, Mapping) else dict(enumerate(functions, 1))
    if not numbered:
        raise ValueError("functions is empty: at least one is needed")
    for fn_id, function in numbered.items():
        check_numbers(fn_id=fn_id)
        if not callable(function) or not isinstance(function, collections.abc.Hashable):
            raise TypeError(f"functions: {function!r} is not a callable with a hash")
    return numbered


def available_processors() -> int:
    """The processors that this process may use: its affinity, and the quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
        quota, period = file.read().split()  # "max" for the quota is a ValueError
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def count_threads() -> int:
    """How many threads this process has, with those of C libraries where the system tells."""
    for _ in range(10):
        count = threading.active_count()
        with contextlib.suppress(OSError):
            count = max(count, len(os.listdir("/proc/self/task")))
        if count == threading.active_count():
            break
        time.sleep(0.001)  # a thread that was joined is there for a moment longer
    return count


# ---------------------------------------------------------------------------------------------------------------------
# The engine: moves tasks from their source into the queue, and outcomes out of it.
# ---------------------------------------------------------------------------------------------------------------------

STALL_SECONDS = 3.0  # if every worker sleeps for this long while tasks are in the queue, the segment is spoiled
READ_AHEAD = 4  # rings; a job in order reads no further beyond its oldest unfinished task
CANCELLED = "cancelled before it began"  # the error of such a task

CHECK_SECONDS = 0.05  # how often workers are checked while tasks are outstanding; no result waits longer
IDLE_SECONDS = 0.25  # how often while none are outstanding
HUNGRY_SECONDS = 0.005  # how often while some workers sleep and others hold tasks that have not begun
OVERDUE_SECONDS = 1.0  # a worker that cannot be halted is killed this long after its task has timed out


class Engine:
    """Moves tasks from their source into the queue, and outcomes out of it. It runs turn by turn in its user's thread.

    paused: nothing new begins. failure: the error that ended the run early, or None. over: why no more turns are
    possible, or "". next_check: when to check the workers again.
    """

    def __init__(self, queue: SharedTaskQueue, pool: WorkerPool, ledger: Ledger, timeout: float | None) -> None:
        self._queue = queue
        self._pool = pool
        self._ledger = ledger
        self._timeout = timeout
        self._packer = Packer(queue, ledger)
        self._lanes = [LaneReader(queue, process, ledger) for process in pool.processes]
        self.paused = False
        self.over = ""
        self.failure: Exception | None = None
        self.next_check = 0.0
        self._sleepers: list[tuple[int, int]] = []  # at the last check
        self._moved_at = self._turned_at = time.monotonic()

    def check_open(self) -> None:
        if self.over:
            raise RuntimeError(self.over)

    def turn(self, job: Job, report: Callable[[], None]) -> None:
        """Move what can be moved, or else wait for news. Call `report` after each check of the workers."""
        self.check_open()
        more = self._take(job)  # this runs the user's iterable, which may raise; so it comes before `_whole`
        moved = False
        with self._whole():
            moved = self.feed() or more
            moved = self.harvest() or moved
            now = time.monotonic()
            if moved or now - self._turned_at > 1.0:  # or the caller was away
                self._moved_at = now
            self._turned_at = now
            self._pool.ring()
            if self._ledger.in_queue() and self._queue.sleepers() != self._sleepers:
                self.next_check = min(self.next_check, now + HUNGRY_SECONDS)
            if now >= self.next_check:
                moved = self.check_workers(now) or moved
                report()
        if not (moved or job.results or self.failure):
            self._wait(job)

    def push(self) -> None:
        """Push as many tasks as there is room for, and wake workers for them."""
        with self._whole():
            self.feed()
            self._pool.ring()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """If this block is interrupted, the run cannot continue."""
        try:
            yield
        except (WorkersFailedError, SpoiledSegmentError) as error:
            self._give_up(error)
        except BaseException:
            self.over = "this Supervisor was interrupted: close it"
            raise

    def _take(self, job: Job) -> bool:
        """Read tasks from the source if there is room. Return True if it may have more at once, even if it had none."""
        source, ledger = job.source, self._ledger
        if source is None or source.exhausted or ledger.again or ledger.fresh:
            return False
        if ledger.stopping:
            room = BLOCK
        elif self.paused or job.is_ahead(READ_AHEAD * self._queue.num_slots):
            room = 0
        else:
            room = self._queue.room()
        if ledger.stopping and not source.finite:
            source.exhausted = True
        elif room > 0:
            ledger.admit(job, source.take(room))
            return source.exhausted or source.fileno() == -1  # if exhausted, its job may be finished
        return False

    def feed(self) -> bool:
        """Push tasks if there is room for them. Return True if any were pushed."""
        ledger, room = self._ledger, self._queue.room()
        tasks = None
        if self.paused or room <= 0:
            return False
        if ledger.again:  # these come first: their payloads lie in the heap, where others may wait for room
            tasks = take_tasks(ledger.again, room)
        elif ledger.fresh:
            tasks = self._packer.take(room)
        if tasks is None:
            return False
        ledger.placed(tasks, self._queue.push(tasks))
        return True

    def harvest(self) -> bool:
        """Take in the batches that workers have published. Return True if there were any, or if there is more room."""
        room = self._queue.room()
        published = self._queue.harvest([lane.harvested for lane in self._lanes])
        news = False
        for lane, number in zip(self._lanes, published):
            if number != lane.harvested:
                lane.take_in_left(number)
                news = True
        if news:
            self._queue.harvest([lane.harvested for lane in self._lanes])  # a worker may wait for a free half
            self._pool.worked()
        return news or self._queue.room() > room

    def _wait(self, job: Job) -> None:
        """Sleep until a worker rings or dies, input comes, or the next check is due."""
        poll, source, bell = self._pool.poll, job.source, self._pool.bell.fileno()
        stream = -1
        if source is not None and not source.exhausted and not self.paused and self._queue.room() > 0:
            stream = source.fileno()
        if stream >= 0:
            poll.register(stream, select.POLLIN)
        events = poll.poll(max(0.0, self.next_check - time.monotonic()) * 1000)
        if stream >= 0:
            poll.unregister(stream)
        for descriptor, _ in events:
            if descriptor == bell:
                os.read(bell, 4096)
            elif descriptor != stream:  # a worker has died
                self.next_check = 0.0

    # Checks of the workers.

    def check_workers(self, now: float) -> bool:
        """Reap dead workers, halt slow ones, end those whose task runs too long. Return True if tasks were moved."""
        self._sleepers = self._queue.sleepers()
        self._check_for_stall(now)
        hungry = not self.paused and any(self._queue.has_free_half(worker) for worker, _ in self._sleepers)
        moved = soon = False
        for process in self._pool.find_dead(now):
            self._reap(process)
            moved = True
        for lane in self._lanes:
            if lane.process.child is None:
                moved = lane.take_unclaimed() or moved
            elif self._ledger.in_queue():
                more, again = self._attend(lane, now, hungry)
                moved = moved or more
                soon = soon or again
        if soon:
            self.next_check = now + HUNGRY_SECONDS
        elif self._ledger.unfinished():
            self.next_check = now + CHECK_SECONDS
        else:
            self.next_check = now + IDLE_SECONDS
        return moved

    def _check_for_stall(self, now: float) -> None:
        """Raise SpoiledSegmentError if all workers sleep although the queue has tasks, and none had been stopped."""
        waiting = self._ledger.in_queue()
        all_sleep = len(self._sleepers) == len(self._pool.processes) and not self.paused
        stalled = waiting and all_sleep and now - self._moved_at > STALL_SECONDS
        if stalled and not self._pool.continue_stopped():
            raise SpoiledSegmentError(f"{waiting:,} tasks are in the queue, and every worker sleeps")

    def _attend(self, lane: LaneReader, now: float, hungry: bool) -> tuple[bool, bool]:
        """Halt a worker if others are idle or results wait while it is slow, or if its task runs too long.

        `hungry`: some worker has nothing to do. Return two truths: tasks were moved; check this worker again soon.
        """
        process, glance = lane.process, self._queue.glance(lane.process.index)
        if process.seen != (glance.number, glance.done):
            process.seen = (glance.number, glance.done)
            process.progress_since = now
        if self._timeout and glance.in_hand is not None and now - process.progress_since >= self._timeout:
            return self._end_overdue(lane, glance.in_hand, now), False
        waited = time.perf_counter() - max(glance.began, process.halted)
        slow = waited >= HUNGRY_SECONDS
        moved = False
        if hungry and (slow or not (self._ledger.again or self._ledger.fresh)):
            moved = lane.take_unclaimed()
        take_back = glance.not_begun > 0 and (process.halt_again or (hungry and slow))
        results_wait = lane.has_outcomes(glance) and waited >= CHECK_SECONDS
        if take_back or results_wait:
            return self.halt(process) or moved, process.halt_again
        if not glance.not_begun:
            process.halt_again = False
        return moved, process.halt_again or (hungry and glance.not_begun > 0)

    def _end_overdue(self, lane: LaneReader, position: int, now: float) -> bool:
        """Kill a worker whose task in hand runs too long. If it cannot be halted, kill it after OVERDUE_SECONDS."""
        process, timeout = lane.process, self._timeout or 0.0
        doomed = Doomed(position, "timeout", f"ran longer than {timeout:g} s")
        halted = self.halt(process, doomed)
        if not halted and now - process.progress_since >= timeout + OVERDUE_SECONDS:
            process.kill(doomed)
        return halted

    def halt(self, process: WorkerProcess, doomed: Doomed | None = None) -> bool:
        """Take back what a worker has not begun. Return True if its lane could be read."""
        process.halt_again = not self._lanes[process.index].halt(doomed)
        process.halted = time.perf_counter()
        return not process.halt_again

    def _reap(self, process: WorkerProcess) -> None:
        """Reap a dead worker, see to its tasks, and start its successor."""
        code = self._pool.reap(process)
        if isinstance(self.failure, SpoiledSegmentError):  # no word in the segment can be trusted
            return
        claimed, note = self._lanes[process.index].recover(code)
        if not self._pool.closing:
            self._pool.replace(process, code, claimed, note)

    # The end of jobs, and of the run.

    def withdraw(self) -> None:
        """Take back what has not begun. If its job is cancelled, it ends here."""
        ledger = self._ledger
        with self._whole():
            ledger.drop_cancelled()
            if ledger.in_queue():
                for first, count in self._queue.drain():
                    ledger.give_back(first, count)
                for process in self._pool.living():
                    self.halt(process)
                self.next_check = 0.0

    def abort(self, status: str, error: str, rest: str = CANCELLED) -> None:
        """Kill the workers. Tasks in their hands get this outcome; the others are cancelled with the error `rest`."""
        self._ledger.stopping = self._pool.closing = True
        for process in self._pool.living():
            process.kill(Doomed(None, status, error))
        for process in self._pool.living():
            self._reap(process)
        self._ledger.end_all(rest)

    def _give_up(self, error: Exception) -> None:
        """Kill the workers. Every task still gets its outcome, and the iterators raise `error` at their end."""
        self.failure, text = error, describe(error)
        self.abort("crashed", text, text)

    def finish(self, job: Job, report: Callable[[], None]) -> None:
        """Finish what is outstanding, send TERMINATE to every worker, and wait until they have left."""
        self.paused = False
        while self._ledger.unfinished() and not self.over:
            self.turn(job, report)
        self._pool.closing = True
        count = len(self._pool.living())
        if count:
            self._ledger.again.append(terminate_tasks(count))
        deadline = time.monotonic() + STOP_SECONDS
        while self._pool.living() and time.monotonic() < deadline and not self.over:
            self.turn(job, report)


class Outcomes(NamedTuple):
    """What was read of a batch: `done` finished tasks, the first of them at the position `start`.

    seconds: one number for each task, or their mean. ends: where the values end in the log; empty if every task
    returned None. before: where the first value begins. log: the bytes of the log up to the last value. special: some
    values are records.
    """

    start: int
    done: int
    seconds: float | list[float] = 0.0
    ends: Sequence[int] = ()
    before: int = 1
    log: bytes = b""
    special: bool = False


class LaneReader:
    """Reads one worker's batches: brings outcomes to the ledger, and takes back what the worker has not begun.

    harvested: batches that were read. taken: outcomes below this position were taken in.

    A batch ends at its bound. At first that is its `end`. After a halt it is the task behind the one in hand, whatever
    `end` says: if somebody continued the worker during the halt, the worker may have stopped at the lower `end`, or
    run past it. `bounded` is the number of the batch that a halt has bounded, and `bound` is its bound.
    """

    def __init__(self, queue: SharedTaskQueue, process: WorkerProcess, ledger: Ledger) -> None:
        self.process = process
        self._queue = queue
        self._ledger = ledger
        self.harvested = 0
        self.taken = 0
        self.bounded = 0
        self.bound = 0

    def has_outcomes(self, glance: Glance) -> bool:
        """Return True if the worker's current batch has outcomes that were not taken in."""
        return glance.done > 0 and glance.first + glance.done > self.taken and glance.number > self.harvested

    def take_in_left(self, number: int) -> None:
        """Take in the batches that the worker has left, up to this number. What is not done there goes to others."""
        self._check_claims(number)
        while self.harvested < number:
            self.harvested += 1
            first, bound = self._limits(self.harvested)
            done = self._settle(self._read(self.harvested, first, bound))
            self._ledger.give_back(done, bound - done)

    def _check_claims(self, number: int) -> None:
        if not 0 <= number - self.harvested <= 2:
            text = f"worker {self.process.index} says {number:,} batches; {self.harvested:,} were read"
            raise SpoiledSegmentError(text)

    def _limits(self, number: int) -> tuple[int, int]:
        """The positions [first, bound) of a batch."""
        words, half = self._queue.words, self._queue.half(self.process.index, number)
        first = words[half.first]
        bound = self.bound if self.bounded == number else words[half.end]
        if not 0 <= bound - first <= self._queue.batch:
            text = f"worker {self.process.index} has a batch of positions {first:,} to {bound:,}"
            raise SpoiledSegmentError(text)
        return first, bound

    def _read(self, number: int, first: int, bound: int) -> Outcomes:
        """Read the finished tasks of a batch that were not taken in before."""
        half = self._queue.half(self.process.index, number)
        start = max(first, self.taken)
        if start >= bound:
            return Outcomes(bound, 0)
        if half.all_returned_none(start - first, bound - first):
            return Outcomes(start, bound - start, half.seconds(start - first, bound - first))
        ends = half.read_ends(start - first, bound - first)
        if 0 in ends:
            del ends[ends.index(0) :]
        if not ends:
            return Outcomes(start, 0)
        before = half.ends[start - first - 1] & ~RECORD if start > first else 1
        return Outcomes(
            start=start,
            done=len(ends),
            seconds=half.seconds(start - first, start - first + len(ends)),
            ends=ends,
            before=before,
            log=half.read_log(ends[-1] & ~RECORD),
            special=bool(self._queue.words[half.special]),
        )

    def _settle(self, outcomes: Outcomes) -> int:
        """Tell the ledger what was read. Return the position behind it."""
        start, done, seconds, ends, before, log, special = outcomes
        worker = self.process.index
        if done:
            self.taken = start + done
        if special:
            self._settle_records(outcomes)
        elif ends:
            if not 1 <= before <= ends[-1] <= len(log):
                raise SpoiledSegmentError(f"worker {worker} says that values end at {ends[-1]:,} of its log")
            values = [log[begin:end] or None for begin, end in zip([before, *ends], ends)]
            self._ledger.complete(worker, start, done, values, seconds)
        elif done:
            self._ledger.complete(worker, start, done, None, seconds)
        return start + done

    def _settle_records(self, outcomes: Outcomes) -> None:
        """The same for outcomes that have records. Some may be failures."""
        position, seconds = outcomes.start, outcomes.seconds
        values = self._decode(outcomes)
        each = itertools.repeat(seconds) if isinstance(seconds, float) else iter(seconds)
        for failed, group in itertools.groupby(values, key=lambda value: type(value) is _Failure):
            part = list(group)
            times = list(itertools.islice(each, len(part)))
            if not failed:
                self._ledger.complete(self.process.index, position, len(part), part, times)
                position += len(part)
                continue
            for value, took in zip(part, times):
                self._ledger.charge(self.process.index, position, "failed", value, took)
                position += 1

    def _decode(self, outcomes: Outcomes) -> list[Any]:
        """The values of outcomes that have records. There is a faster way if all of them are text."""
        log, ends = outcomes.log, outcomes.ends
        stops = [end & ~RECORD for end in ends]
        spans = list(zip([outcomes.before, *stops], stops))
        try:
            if min(ends) & RECORD and {log[begin] for begin, _ in spans} == {STR}:
                return [decode_text(log[begin + 1 : end]) for begin, end in spans]
            return [
                self._read_record(log[begin:stop], position) if end & RECORD else log[begin:stop] or None
                for position, end, (begin, stop) in zip(itertools.count(outcomes.start), ends, spans)
            ]
        except (struct.error, IndexError, ValueError) as error:
            raise SpoiledSegmentError(f"an outcome's value cannot be read: {describe(error)}") from None

    def _read_record(self, record: bytes, position: int) -> Any:
        """The value of a record, which may have a file of its own."""
        head, data = record[0], record[1:]
        if head & IN_FILE:
            path = self._queue.segment.beside(f"v{position}")
            data = read_file(path, *SIZE.unpack(data))
            os.unlink(path)
        return decode_value(head & ~IN_FILE, data, self._ledger.structures)

    def halt(self, doomed: Doomed | None = None) -> bool:
        """Stop the worker for a moment. Take in what it has finished, and take back what it has not begun.

        This is the one way to take tasks back. If the worker has the task of `doomed` in hand, it is killed. Return
        True if the lane could be read; if not, try again later.
        """
        if not self.process.stop():
            return False
        try:
            return self._take_back(doomed)
        finally:
            self.process.go_on()

    def _take_back(self, doomed: Doomed | None) -> bool:
        """Do what a halt does while the worker stands still.

        Somebody else may continue or kill the worker meanwhile. So nothing that was read is used before another look
        has shown that the worker still stands still.
        """
        process = self.process
        claiming = self._queue.is_claiming(process.index)
        number = process.word(CLAIMS)
        if claiming or not process.stands_still():
            return False
        self._check_claims(number)
        if number == self.harvested:
            return True
        self.take_in_left(number - 1)
        first, bound = self._limits(number)
        outcomes = self._read(number, first, bound)
        if not process.stands_still():  # while it runs, `ends` may be seen before earlier stores
            return False
        in_hand = self._settle(outcomes)
        if in_hand + 1 < bound and not self._draw_back(number, in_hand, bound):
            return False
        if doomed is not None and in_hand < bound and in_hand == doomed.position and process.stands_still():
            process.kill(doomed)
        return True

    def _draw_back(self, number: int, in_hand: int, bound: int) -> bool:
        """Make a batch end behind the task in hand, and give the rest to others. Return False if the worker has run.

        The worker looks at `end` when more than QUIET_SECONDS have passed between two tasks. So it has to stand still
        for longer than that. A halt never raises `end`. Tasks are given away only after the last look, and until then
        the batch keeps its bound.
        """
        process, words = self.process, self._queue.words
        half = self._queue.half(process.index, number)
        self.bounded = number
        self.bound = bound
        words[half.end] = min(words[half.end], in_hand + 1)
        process.stand_for(2 * QUIET_SECONDS)
        task = in_hand - words[half.first]
        if not process.stands_still() or half.read_ends(task, task + 1)[0]:
            return False
        self.bound = in_hand + 1
        self._ledger.give_back(in_hand + 1, bound - in_hand - 1)
        return True

    def recover(self, code: int) -> tuple[bool, str]:
        """See to the tasks of the worker, which has ended with this exit code and was reaped.

        What it has finished is taken in. The task in its hand is charged one attempt. The others go round again.
        Return True if the process had asked for tasks, and its last words.
        """
        process, words = self.process, self._queue.words
        self._queue.recover(process.index)
        note = self._queue.take_note(process.index)
        number = process.word(CLAIMS)
        self._check_claims(number)
        asked = number != process.first_claims or process.word(ASLEEP) > 0
        if number > self.harvested:
            self.take_in_left(number - 1)
            first, bound = self._limits(number)
            done = self._settle(self._read(number, first, bound))
            if done < min(bound, words[process.status + LEAVING]) and number > words[process.status + PUBLISHED]:
                self._charge_in_hand(done, note or exit_text(code))
                done += 1
            self._ledger.give_back(done, bound - done)
            self.harvested = number
        self._queue.reset(process.index)
        self.take_unclaimed()
        return asked, note

    def _charge_in_hand(self, position: int, error: str) -> None:
        """The task at this position was in the hand of a worker that died."""
        process = self.process
        with contextlib.suppress(FileNotFoundError):  # the worker may have died while it wrote its value
            os.unlink(self._queue.segment.beside(f"v{position}"))
        status = "crashed"
        doomed = process.killed_for
        if doomed is not None and doomed.position in (None, position):
            status, error = doomed.status, doomed.error
        self._ledger.charge(process.index, position, status, error, time.monotonic() - process.progress_since)

    def take_unclaimed(self) -> bool:
        """Give to others what only this worker could claim, and has not. Return True if there was anything."""
        drained = self._queue.drain(self.process.index)
        for first, count in drained:
            self._ledger.give_back(first, count)
        return bool(drained)


BLOCK_BYTES = 256 << 10  # payloads that do not fit their slots are kept in blocks of this size
HEAP_AHEAD = 4 << 20  # while the heap holds more than this, payloads are put there only if the ring is empty
JOIN_BYTES = 2048  # payloads smaller than this are joined before they are copied
FILE_BYTES = 64 << 20  # payloads in files that may be in the queue at a time; a single one may be larger


class Packer:
    """Puts payloads that do not fit their slots into the heap or into files, and references into the slots."""

    def __init__(self, queue: SharedTaskQueue, ledger: Ledger) -> None:
        self._queue = queue
        self._ledger = ledger
        self.heap = Heap(queue)
        self._files = itertools.count(1)
        self._file_bytes = 0
        self._block_bytes = BLOCK_BYTES  # fewer while shared memory is full

    def take(self, room: int) -> Tasks | None:
        """Take up to `room` fresh tasks, as they go into slots. Return None if their payloads have to wait."""
        fresh, capacity = self._ledger.fresh, self._queue.ring.capacity
        lengths = list(map(len, fresh[0].data[:room]))
        if max(lengths) <= capacity:
            return take_tasks(fresh, len(lengths))
        if self.heap.used > HEAP_AHEAD and self._queue.backlog():
            return None  # the ring has work enough, and the processors' caches hold its payloads
        large = [length if length > capacity else 0 for length in lengths]
        count = max(1, bisect.bisect(list(itertools.accumulate(large)), self._block_bytes))
        return self._pack(take_tasks(fresh, count))

    def _pack(self, tasks: Tasks) -> Tasks | None:
        """Put the large payloads of `tasks` elsewhere. Return None if there is no room now, or never will be."""
        capacity = self._queue.ring.capacity
        large = [item for item in tasks.data if len(item) > capacity]
        if not large:
            return tasks
        lengths = list(map(len, large))
        size = sum(lengths)
        try:
            if size > self.heap.size // 2 and len(tasks.data) == 1:
                placed = self._put_in_file(large[0])
            else:
                placed = self.heap.put(large, size, users=len(tasks.data))
        except OSError as error:
            self._no_room(tasks, size, error)
            return None
        if placed is None:
            self._ledger.fresh.appendleft(tasks)
            return None
        self._block_bytes = BLOCK_BYTES
        number, offset, block = placed
        offsets = itertools.accumulate(lengths, initial=offset)
        return self._refer(tasks, list(map(REFERENCE.pack, itertools.repeat(number), offsets, lengths)), block)

    def _refer(self, tasks: Tasks, references: Sequence[bytes], block: Block) -> Tasks:
        """The tasks with references in place of the large payloads, which lie in this block."""
        fn_ids, count, capacity = tasks.fn_ids, len(tasks.data), self._queue.ring.capacity
        marked = array.array("I", map(OUT_OF_LINE.__or__, fn_ids))
        if len(references) < count:
            following = iter(references)
            references = [next(following) if len(item) > capacity else item for item in tasks.data]
            for at, item in enumerate(tasks.data):
                if len(item) <= capacity:
                    marked[at] = fn_ids[at]
        return dataclasses.replace(tasks, data=references, block=block, marked=marked)

    def _put_in_file(self, payload: bytes) -> tuple[int, int, Block] | None:
        """Write a payload that is too large for the heap to a file beside the segment."""
        size = len(payload)
        if self._file_bytes and self._file_bytes + size > FILE_BYTES:
            return None
        number = next(self._files)
        path = self._queue.segment.beside(f"p{number}")
        write_file(path, payload)
        self._file_bytes += size
        return number, 0, Block(1, functools.partial(self._remove_file, path, size))

    def _remove_file(self, path: str, size: int) -> None:
        self._file_bytes -= size
        os.unlink(path)

    def _no_room(self, tasks: Tasks, size: int, error: OSError) -> None:
        """There is no memory for these payloads. Try fewer at a time. A task that does not fit alone fails."""
        if len(tasks.data) > 1:
            self._block_bytes = max(1, size // 2)
            self._ledger.fresh.appendleft(tasks)
        elif self._file_bytes or self.heap.used:  # there may be room when others are done
            self._ledger.fresh.appendleft(tasks)
        else:
            where = shared_directory()
            self._ledger.end(tasks, "failed", f"{describe(error)}: no room in {where} for a payload of {size:,} bytes")


class Heap:
    """The pages of the segment for payloads that do not fit their slots (supervisor)."""

    def __init__(self, queue: SharedTaskQueue) -> None:
        self._segment = queue.segment
        self._bytes = queue.heap
        self._offset = queue.heap_offset
        self.size = len(queue.heap)
        pages = self.size // mmap.PAGESIZE
        self._in_use = bytearray(pages)  # a byte a page, so that `find` looks for free ones
        self._reserved = bytearray(pages)
        self.used = 0  # bytes of the pages in use

    def put(self, payloads: Sequence[bytes], size: int, users: int) -> tuple[int, int, Block] | None:
        """Copy payloads, `size` bytes in all, next to each other, for the tasks of so many `users`.

        Return 0, the offset of the first payload, and their block; None if there is no room for them. Raises OSError
        (ENOSPC) if the memory cannot be reserved.
        """
        count = -(-size // mmap.PAGESIZE)
        first = self._in_use.find(bytes(count))
        if first < 0:
            return None
        pages = slice(first, first + count)
        offset = first * mmap.PAGESIZE
        if not all(self._reserved[pages]):
            self._segment.reserve(self._offset + offset, count * mmap.PAGESIZE)
            self._reserved[pages] = b"\1" * count
        self._in_use[pages] = b"\1" * count
        self.used += count * mmap.PAGESIZE
        self._copy(offset, payloads, size)
        return 0, offset, Block(users, functools.partial(self._free, pages, count))

    def _copy(self, offset: int, payloads: Sequence[bytes], size: int) -> None:
        if size < JOIN_BYTES * len(payloads):
            self._bytes[offset : offset + size] = b"".join(payloads)
            return
        for payload in payloads:
            self._bytes[offset : offset + len(payload)] = payload
            offset += len(payload)

    def _free(self, pages: slice, count: int) -> None:
        self._in_use[pages] = bytes(count)
        self.used -= count * mmap.PAGESIZE


# ---------------------------------------------------------------------------------------------------------------------
# The ledger: which task is where, and what became of it.
# ---------------------------------------------------------------------------------------------------------------------


class Ledger:
    """Keeps the books: gives each task its tsk_id, knows which positions hold it, and sees to its one outcome.

    fresh: tasks that were read and not pushed yet. again: tasks that were in the queue; they are pushed before fresh
    ones. stopping: nothing more begins, in any job.
    """

    def __init__(self, functions: Mapping[int, Function], retries: int, workers: int) -> None:
        self.names = {fn_id: function_name(function) for fn_id, function in functions.items()}
        self.fn_ids: dict[Any, int] = {name: fn_id for fn_id, name in reversed(self.names.items())}
        self.fn_ids.update((function, fn_id) for fn_id, function in functions.items())
        self.structures = structures_of(functions.values())
        self.tally = Tally(workers)
        self.fresh: collections.deque[Tasks] = collections.deque()
        self.again: collections.deque[Tasks] = collections.deque()
        self.stopping = False
        self.next_id = 1
        self._only = next(iter(functions)) if len(functions) == 1 else 0  # the fn_id, if there is only one
        self._retries = retries
        self._attempts: dict[int, int] = {}  # tsk_id: how often it was started; only for tasks that go round again
        self._placed: list[Tasks] = []  # what is in the queue, by position

    # Into the queue.

    def admit(self, job: Job, items: Sequence[Any]) -> None:
        """Give each item its tsk_id and put it with the fresh tasks. An item that cannot be sent is a failed task.

        Such an item is found by halving.
        """
        if len(items) == 0:
            return
        try:
            fn_ids, payloads, data = self._encode(job, items)
        except (KeyError, TypeError, ValueError) as error:
            if len(items) == 1:
                self._reject(job, self._explain(job, items[0], error))
            else:
                self.admit(job, items[: len(items) // 2])
                self.admit(job, items[len(items) // 2 :])
        else:
            self._put(Tasks(job, self._number(job, len(items)), fn_ids, payloads, data), self.fresh)

    def _number(self, job: Job, count: int) -> range:
        """The tsk_ids of this job's next tasks."""
        tsk_ids = range(self.next_id, self.next_id + count)
        self.next_id = tsk_ids.stop
        job.admit(tsk_ids.start, count)
        return tsk_ids

    def _encode(self, job: Job, items: Sequence[Any]) -> tuple[array.array[int], Sequence[Any], Sequence[bytes]]:
        """The columns of `items`. Raises KeyError, TypeError or ValueError if one of them cannot be sent."""
        types, payloads, fn_id = set(map(type, items)), items, job.fn_id
        if fn_id == 0 and all(issubclass(each, tuple) for each in types):
            functions, payloads = zip(*items, strict=True)
            types = set(map(type, payloads))
            fn_ids = array.array("I", map(self.fn_ids.__getitem__, functions))
        elif fn_id == 0 and (tuple in types or not self._only):
            raise TypeError("with several functions, an item is (function, payload)")
        else:
            fn_ids = array.array("I", [fn_id or self._only]) * len(items)
        return fn_ids, payloads, payloads if types <= {bytes} else list(map(to_bytes, payloads))

    def _explain(self, job: Job, item: Any, error: Exception) -> Rejected:
        """Say why an item cannot be sent."""
        if isinstance(item, Rejected):
            return item
        fn_id = job.fn_id or self._only
        pair = not job.fn_id and isinstance(item, tuple) and len(item) == 2
        function, payload = item if pair else (self.names.get(fn_id, ""), item)
        name = function_name(function)
        text = describe(error)
        if isinstance(error, KeyError):
            text = no_such_function(name, self.names.values())
        elif not pair and (isinstance(item, tuple) or not fn_id):
            text = f"TypeError: an item is (function, payload), not {reprlib.repr(item)}"
        return Rejected(name, payload, text)

    def _reject(self, job: Job, rejected: Rejected) -> None:
        (tsk_id,) = self._number(job, 1)
        name, payload, error = rejected
        self._finish(job, TaskResult(tsk_id, name, payload, "failed", None, error, 0, None, 0.0))

    def placed(self, tasks: Tasks, places: Sequence[tuple[int, int]]) -> None:
        """Note that `tasks` are in the queue now, at these positions, (first, count) each."""
        start = 0
        for first, count in places:
            part = tasks if len(places) == 1 else tasks.part(start, start + count)
            part.first, part.left, part.settled = first, count, bytearray(count)
            bisect.insort(self._placed, part, key=operator.attrgetter("first"))
            start += count

    # Out of the queue.

    def _take(self, position: int, count: int) -> Iterator[tuple[Tasks, int, int]]:
        """Take the tasks at [position, position + count) out of the books, as (tasks, start, stop).

        Each can be taken once. Raises SpoiledSegmentError if a position holds no task, or if it was taken before.
        """
        until = position + count
        while position < until:
            at = bisect.bisect(self._placed, position, key=operator.attrgetter("first")) - 1
            tasks = self._placed[at] if at >= 0 else None
            if tasks is None or position >= tasks.first + len(tasks.payloads):
                raise SpoiledSegmentError(f"an outcome for position {position:,}, where no task is")
            start, stop = position - tasks.first, min(until - tasks.first, len(tasks.payloads))
            if tasks.settled.find(1, start, stop) >= 0:
                raise SpoiledSegmentError(f"a second outcome for a task at positions {position:,} to {until:,}")
            tasks.settled[start:stop] = b"\1" * (stop - start)
            tasks.left -= stop - start
            if not tasks.left:
                del self._placed[at]
            yield tasks, start, stop
            position = tasks.first + stop

    def complete(self, worker: int, position: int, count: int, values: Sequence[Any] | None, seconds: Any) -> None:
        """Note that the tasks from `position` on are ok.

        values: None if every task returned None. seconds: one number for each task, or a float that holds for all.
        """
        done, same = 0, itertools.repeat
        for tasks, start, stop in self._take(position, count):
            part = slice(done, done + stop - start)
            done += stop - start
            tasks.release(stop - start)
            if tasks.job is None:
                continue
            attempts: Iterable[int] = same(1)
            if self._attempts:
                attempts = [self._attempts.pop(tsk_id, 0) + 1 for tsk_id in tasks.tsk_ids[start:stop]]
            if isinstance(seconds, float):
                longest = seconds
                times: Any = same(seconds, stop - start)
                self.tally.add_ok(worker, stop - start, seconds * (stop - start))
            else:
                times = seconds[part]
                longest = max(times)
                self.tally.add_ok(worker, stop - start, sum(times))
            if longest > self.tally.slow:
                times = list(times)
                self._note_slow(worker, tasks, start, times)
            each = same(None, stop - start) if values is None else iter(values[part])
            tasks.job.add(tasks, slice(start, stop), each, times, attempts, worker)

    def _note_slow(self, worker: int, tasks: Tasks, start: int, times: Sequence[float]) -> None:
        """Keep the tasks that took longest."""
        for at, seconds in enumerate(times, start):
            if seconds > self.tally.slow:
                tsk_id, name, payload = tasks.tsk_ids[at], self.names[tasks.fn_ids[at]], to_bytes(tasks.payloads[at])
                self.tally.add_slow(TaskResult(tsk_id, name, payload[:200], "ok", None, None, 1, worker, seconds))

    def charge(self, worker: int, position: int, status: str, error: str, seconds: float) -> None:
        """The task at `position` was started and is not ok. It goes round again, or this is its outcome."""
        for tasks, at, _ in self._take(position, 1):
            if tasks.job is None:
                return
            tsk_id = tasks.tsk_ids[at]
            attempts = self._attempts.pop(tsk_id, 0) + 1
            if attempts <= self._retries and not self._is_cancelled(tasks.job):
                self._attempts[tsk_id] = attempts
                self.tally.retried += 1
                self.again.append(tasks.part(at, at + 1))
                return
            tasks.release(1)
            name, payload = self.names[tasks.fn_ids[at]], tasks.payloads[at]
            result = TaskResult(tsk_id, name, payload, status, None, error, attempts, worker, seconds)
            self._finish(tasks.job, result)

    def give_back(self, position: int, count: int) -> None:
        """Take back tasks that never began. They are pushed again; if their job is cancelled, they end."""
        for tasks, start, stop in self._take(position, count):
            self._put(tasks.part(start, stop), self.again)

    def drop_cancelled(self) -> None:
        """End the tasks that wait to be pushed and whose job is cancelled."""
        for waiting in (self.again, self.fresh):
            for _ in range(len(waiting)):
                self._put(waiting.popleft(), waiting)

    def _put(self, tasks: Tasks, waiting: collections.deque[Tasks]) -> None:
        if self._is_cancelled(tasks.job):
            self.end(tasks)
        else:
            waiting.append(tasks)

    def _is_cancelled(self, job: Job | None) -> bool:
        return job is not None and (job.cancelled or self.stopping)

    def end(self, tasks: Tasks, status: str = "cancelled", error: str = CANCELLED) -> None:
        """Give this outcome to tasks that do not begin, or do not begin again."""
        tasks.release(len(tasks.payloads))
        if tasks.job is not None:
            for tsk_id, fn_id, payload in zip(tasks.tsk_ids, tasks.fn_ids, tasks.payloads):
                attempts, name = self._attempts.pop(tsk_id, 0), self.names[fn_id]
                self._finish(tasks.job, TaskResult(tsk_id, name, payload, status, None, error, attempts, None, 0.0))

    def end_all(self, error: str) -> None:
        """End all tasks in the queue and on their way there, once no worker is left."""
        for tasks in list(self._placed):
            for at in [at for at, settled in enumerate(tasks.settled) if not settled]:
                self.again.extend(part.part(start, stop) for part, start, stop in self._take(tasks.first + at, 1))
        for waiting in (self.again, self.fresh):
            while waiting:
                self.end(waiting.popleft(), error=error)

    def _finish(self, job: Job, result: TaskResult) -> None:
        self.tally.add_bad(result)
        job.add_one(result)

    def in_queue(self) -> int:
        return sum(tasks.left for tasks in self._placed)

    def unfinished(self) -> int:
        return self.in_queue() + sum(len(tasks.payloads) for tasks in (*self.again, *self.fresh))


@dataclasses.dataclass(slots=True)
class Tasks:
    """Tasks of one job in equal columns: on their way into the queue, or in it at the positions from `first` on.

    job: None for TERMINATE, which has no result. payloads: as they were given. data: as they travel. They are encoded
    once, since a Structure may change before its task goes round again. settled: in the queue, one byte a task, 1
    once the task has its outcome. left: how many have none. block: where the payloads are that do not fit their
    slots; None if all fit, or if they have not been packed yet. marked: the fn_ids as they travel then, with
    OUT_OF_LINE.
    """

    job: Job | None
    tsk_ids: Sequence[int]
    fn_ids: array.array[int]
    payloads: Sequence[Any]
    data: Sequence[bytes]
    block: Block | None = None
    marked: array.array[int] | None = None
    first: int = 0
    left: int = 0
    settled: bytearray = dataclasses.field(default_factory=bytearray)

    def part(self, start: int, stop: int) -> Tasks:
        """The tasks [start, stop), to be pushed."""
        part = slice(start, stop)
        columns = (self.tsk_ids[part], self.fn_ids[part], self.payloads[part], self.data[part])
        return Tasks(self.job, *columns, self.block, self.marked and self.marked[part])

    def release(self, count: int) -> None:
        """Note that so many of them are settled for good."""
        if self.block is not None:
            self.block.release(count)


def take_tasks(waiting: collections.deque[Tasks], count: int) -> Tasks:
    """Take the first `count` tasks, or fewer, from what waits."""
    tasks = waiting.popleft()
    if count < len(tasks.data):
        waiting.appendleft(tasks.part(count, len(tasks.data)))
        tasks = tasks.part(0, count)
    return tasks


def terminate_tasks(count: int) -> Tasks:
    """So many TERMINATE tasks. Each makes the worker that takes it leave."""
    empty = [b""] * count
    return Tasks(None, [0] * count, array.array("I", [TERMINATE] * count), empty, empty)


class Block:
    """Payloads that lie together outside the slots: in pages of the heap, or in a file.

    users: how many tasks have not been settled. `free` is called when none is left.
    """

    def __init__(self, users: int, free: Callable[[], None]) -> None:
        self._users = users
        self._free = free

    def release(self, count: int) -> None:
        """Note that so many of its tasks are settled."""
        self._users -= count
        if self._users == 0:
            self._free()


class Job:
    """One call of run, or all calls of submit: where tasks come from, and where their results go as they finish.

    results: iterators of TaskResults. fn_id: the function of every item, or 0. outstanding: tasks that have a tsk_id
    and no outcome yet. cancelled: nobody reads the results, and nothing more of this job begins.
    """

    def __init__(self, source: Source | None, names: Mapping[int, str], fn_id: int = 0) -> None:
        self.source = source
        self.fn_id = fn_id
        self.outstanding = 0
        self.cancelled = False
        self.results: collections.deque[Any] = collections.deque()
        self._names = names

    @property
    def finished(self) -> bool:
        return not self.outstanding and not self.results and (self.source is None or self.source.exhausted)

    def is_ahead(self, limit: int) -> bool:
        """Return True if no more input may be read for now."""
        return False

    def admit(self, tsk_id: int, count: int) -> None:
        """Note that `count` tasks from `tsk_id` on belong to this job."""
        self.outstanding += count

    def add(self, tasks: Tasks, part: slice, values: Any, seconds: Any, attempts: Any, worker: int) -> None:
        """Note that this part of `tasks` is ok. values, seconds and attempts are iterables.

        The TaskResults are made when they are read.
        """
        tsk_ids, same = tasks.tsk_ids[part], itertools.repeat
        self.outstanding -= len(tsk_ids)
        if len(self._names) == 1:
            names: Any = same(*self._names.values())
        else:
            names = map(self._names.__getitem__, tasks.fn_ids[part])
        columns = (tsk_ids, names, tasks.payloads[part], same("ok"), values, same(None), attempts, same(worker))
        self._deliver(map(_new_result, zip(*columns, seconds)))

    def add_one(self, result: TaskResult) -> None:
        self.outstanding -= 1
        self._deliver(iter([result]))

    def _deliver(self, results: Any) -> None:
        if not self.cancelled:
            self.results.append(results)


class OrderedJob(Job):
    """One call of map. `results` holds iterators of values, and TaskErrors, in the order of the input."""

    def __init__(self, source: Source | None, names: Mapping[int, str], fn_id: int = 0) -> None:
        super().__init__(source, names, fn_id)
        self._early: dict[int, tuple[int, Any]] = {}  # tsk_id: count, results that wait for those of earlier tasks
        self._waiting = 0  # how many those are
        self._due: collections.deque[list[int]] = collections.deque()  # [next, stop) of tsk_ids, in order

    def is_ahead(self, limit: int) -> bool:
        """Return True if more than `limit` tasks lie between the oldest unfinished one and the newest."""
        return self.outstanding + self._waiting > limit

    def admit(self, tsk_id: int, count: int) -> None:
        super().admit(tsk_id, count)
        if self._due and self._due[-1][1] == tsk_id:
            self._due[-1][1] += count
        else:
            self._due.append([tsk_id, tsk_id + count])

    def add(self, tasks: Tasks, part: slice, values: Any, seconds: Any, attempts: Any, worker: int) -> None:
        tsk_ids = tasks.tsk_ids[part]
        self.outstanding -= len(tsk_ids)
        if isinstance(tsk_ids, range):
            self._order(tsk_ids[0], len(tsk_ids), values)
        else:
            for tsk_id, value in zip(tsk_ids, values):
                self._order(tsk_id, 1, iter([value]))

    def add_one(self, result: TaskResult) -> None:
        self.outstanding -= 1
        self._order(result.tsk_id, 1, TaskError(result))

    def _order(self, tsk_id: int, count: int, results: Any) -> None:
        """Deliver the results of tasks from `tsk_id` on, once those of all earlier tasks have been delivered."""
        self._early[tsk_id] = (count, results)
        self._waiting += count
        while self._due and self._due[0][0] in self._early:
            due = self._due[0]
            count, results = self._early.pop(due[0])
            due[0] += count
            self._waiting -= count
            self._deliver(results)
            if due[0] == due[1]:
                self._due.popleft()


class Tally:
    """Counts outcomes, and keeps the most remarkable ones.

    errors: how many tasks were not ok, by function (if they were started), status and name of the error. failures:
    the first five and the last five of them, without payloads. slowest: the five that took longest. slow: the seconds
    that a task must take to be one of them. For each worker: completed and failed tasks, and busy, the seconds that
    functions ran.
    """

    def __init__(self, workers: int) -> None:
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.retried = 0
        self.completed = [0] * workers
        self.failed = [0] * workers
        self.busy = [0.0] * workers
        self.errors: collections.Counter[str] = collections.Counter()
        self.failures: list[TaskResult] = []
        self.slowest: list[TaskResult] = []
        self.slow = 0.0

    def add_ok(self, worker: int, count: int, seconds: float) -> None:
        """`count` tasks of a worker are ok, and took so many seconds together."""
        self.counts["ok"] += count
        self.completed[worker] += count
        self.busy[worker] += seconds

    def add_slow(self, result: TaskResult) -> None:
        """A task that is ok took longer than `slow`."""
        self.slowest = sorted([*self.slowest, result], key=lambda result: -result.seconds)[:5]
        self.slow = self.slowest[-1].seconds if len(self.slowest) == 5 else 0.0

    def add_bad(self, result: TaskResult) -> None:
        """A task is not ok."""
        self.counts[result.status] += 1
        if result.worker is not None:
            self.failed[result.worker] += 1
            self.busy[result.worker] += result.seconds
        if result.status == "cancelled":
            return
        where, _, rest = (result.error or "").partition(": ")
        error = (rest if where.startswith("line ") else where).partition(":")[0]
        what = result.status
        if result.attempts:  # else its function may have any name, and there would be too many of them
            what = f"{result.function} {what}"
        self.errors[f"{what}: {error}"[:100]] += 1
        self.failures.append(result._replace(payload=None))
        del self.failures[5:-5]

    def summary(self, seconds: float, starting: float) -> dict[str, Any]:
        """The part of Supervisor.summary that is kept here.

        seconds: since the start. starting: how many of them the workers, all together, took to start.
        """
        whole = max(1e-9, seconds * len(self.busy))
        run = sum(self.busy) / whole
        start = starting / whole
        return {
            "shares": {"run": min(1.0, run), "start": min(1.0, start), "wait": max(0.0, 1 - run - start)},
            "slowest": [result._asdict() for result in self.slowest],
            "failures": [result._asdict() for result in self.failures[:5]],
            "kinds": dict(self.errors),
        }


def no_such_function(name: str, names: Iterable[str]) -> str:
    """The error for a name that no function has."""
    import difflib

    near = difflib.get_close_matches(name, list(names), 3, 0.5)
    known = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(names)}"
    return f"LookupError: no function {name!r}; {known}"


def function_name(function: Any) -> str:
    if isinstance(function, str):
        return function
    return str(getattr(function, "__name__", None) or type(function).__name__)


# ---------------------------------------------------------------------------------------------------------------------
# The worker pool: starts, wakes, stops and reaps the worker processes.
# ---------------------------------------------------------------------------------------------------------------------

STILL_SECONDS = 0.05  # how long a worker may take to stand still once it is stopped
STOP_SECONDS = 5.0  # how long workers may take to leave once they are told to
MEMORY_SECONDS = 1.0  # how often their memory and processor time are read, and how long one may stay above max_rss
REAP_SECONDS = 1.0  # how long the fork server may take to say how a worker has ended
TAKEN = 1 << 16  # in place of an exit code: this program has waited for the worker, or ignores SIGCHLD
FAILED_STARTS = 8  # deaths in a row before a task is claimed that end the run, after
FAILED_SECONDS = 3.0  # this time without one; at once where the initializer raised


_supervisor_ends: weakref.WeakSet[Any] = weakref.WeakSet()  # pipe ends that a forked worker must not keep open


class WorkerPool:
    """Starts, wakes, stops, kills and reaps worker processes."""

    def __init__(self, queue: SharedTaskQueue, options: WorkerOptions, context: Any, max_rss: int | None) -> None:
        self._queue, self._options, self._context, self._max_rss = queue, options, context, max_rss
        self.closing = False  # start no more
        self.chosen_fork = False  # the start method is fork, and nobody has named it
        self._refused_since = 0.0  # since when none lives and none can be started; 0 while some do
        self.respawned = self._failed_starts = 0
        self.starting = 0.0  # seconds that workers, now dead, took to start
        self._worked_at, self._next_memory = time.monotonic(), 0.0
        self.processes: list[WorkerProcess] = [
            WorkerProcess(index, queue.words, status) for index, status in enumerate(queue.status)
        ]
        self.bell, self._bell_end = self._pipe()
        self.poll = select.poll()
        self.poll.register(self.bell, select.POLLIN)

    def _pipe(self) -> tuple[Any, Any]:
        """A pipe (reader, writer) that never blocks its writer, and whose ends forked workers close."""
        reader, writer = self._context.Pipe(duplex=False)
        os.set_blocking(writer.fileno(), False)
        _supervisor_ends.update((reader, writer))
        return reader, writer

    def start(self, process: WorkerProcess) -> None:
        """Start a process as this worker. Raises LIMIT_ERRORS where it cannot be started; nothing is left open then."""
        self._check_descriptors()
        try:
            self._launch(process)
        except LIMIT_ERRORS as error:
            close_launch_pipes(error)
            raise
        finally:
            if process.child is None and process.wake is not None:
                process.wake.close()

    def _check_descriptors(self) -> None:
        """Raise OSError (EMFILE) now if there are too few: multiprocessing leaves some open if it fails half-way."""
        spare: list[int] = []
        try:
            while len(spare) < SPARE_DESCRIPTORS:
                spare.append(os.dup(self.bell.fileno()))
        finally:
            for descriptor in spare:
                os.close(descriptor)

    def try_to_start(self, process: WorkerProcess) -> None:
        """Start a process as this worker while a run goes on. If a limit of the system forbids it, the others go on,
        and it is tried again later.

        Raises WorkersFailedError if no worker has lived for FAILED_SECONDS because of that."""
        now = time.monotonic()
        try:
            self.start(process)
        except LIMIT_ERRORS as error:
            process.deaths += 1
            process.due = now + min(1.0, 0.02 * 2 ** min(process.deaths, 6))
            if self.living():
                self._refused_since = 0.0
                return
            self._refused_since = self._refused_since or now
            if now - self._refused_since > FAILED_SECONDS:
                raise WorkersFailedError(f"no worker can be started: {limit_text(error)}") from None
        else:
            self._refused_since = 0.0

    def _launch(self, process: WorkerProcess) -> None:
        wake, process.wake = self._pipe()
        queue, mine = self._queue, Pipes(wake, self._bell_end)
        arguments = (type(queue), queue.name, queue.primitives, process.index, self._options, mine)
        child = self._context.Process(target=worker_main, args=arguments, name=f"shmqueue-{process.index}")
        child.daemon = False  # or its functions could not start processes
        _supervisor_ends.difference_update(mine)
        process.first_claims = process.word(CLAIMS)  # before the new one can have claimed
        with handlers.held():  # until it is in the books; and a forked child would run our caller's handlers
            try:
                with handlers.start_of_worker(self.chosen_fork):
                    child.start()
            finally:
                _supervisor_ends.add(self._bell_end)
                wake.close()
            process.child, process.pid, process.started = child, int(child.pid or 0), time.monotonic()
            process.identify()
            self.poll.register(process.end_sign(), select.POLLIN)
        with contextlib.suppress(OSError):  # as the child does: whoever comes first
            os.setpgid(process.pid, process.pid)
        process.rung, process.killed_for, process.monitor, process.retiring, process.told = 0, None, None, 0.0, False
        process.progress_since = process.started
        queue.words[process.status + PID] = process.pid
        queue.words[process.status + STARTED] += 1

    def ring(self) -> None:
        """Wake those sleepers that it pays to wake, each once a sleep."""
        for index, number in self._queue.wakeable():
            process = self.processes[index]
            if process.rung != number:
                process.rung = number
                if process.child is not None:
                    self._write(process.wake, b"!")

    def retire(self, process: WorkerProcess) -> None:
        """Have a worker leave after the task in its hand."""
        process.told = process.halt_again = True
        self._queue.tell_to_leave(process.index)
        self._write(process.wake, b"!")

    def wake_supervisor(self) -> None:
        self._write(self._bell_end, b"!")

    def _write(self, pipe: Any, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # full: enough is written; broken: it is dead
            os.write(pipe.fileno(), data)

    def find_dead(self, now: float) -> list[WorkerProcess]:
        """See to large and missing workers. Return those that died."""
        dead = []
        for process in self.processes:
            if process.child is None:
                if now >= process.due and not self.closing:
                    self.try_to_start(process)
            elif process.is_dead():
                dead.append(process)
        if now >= self._next_memory and psutil is not None:
            self._next_memory = now + MEMORY_SECONDS
            for process in self.living():
                self._weigh(process, now)
        return dead

    def _weigh(self, process: WorkerProcess, now: float) -> None:
        """Read a worker's memory and processor time; replace it if it is too large."""
        with contextlib.suppress(psutil.Error, OSError):  # OSError: this program has no descriptor left
            process.monitor = process.monitor or psutil.Process(process.pid)
            process.rss, process.cpu = process.monitor.memory_info().rss, process.monitor.cpu_percent()
        if self._max_rss is None or process.rss <= self._max_rss:
            return
        if not process.retiring:
            process.retiring = now
            self.retire(process)
        elif now - process.retiring >= MEMORY_SECONDS:
            why = f"its worker held {process.rss:,} bytes of memory, more than max_rss={self._max_rss:,}"
            process.kill(Doomed(None, "crashed", why))

    def reap(self, process: WorkerProcess) -> int:
        """End what a dead worker's functions started, and reap it; its exit code, -n for signal n."""
        with handlers.held():
            process.signal_group(signal.SIGKILL)
            self.poll.unregister(process.end_sign())
            self.starting += self._start_time(process)
            code = process.reap()
            process.wake.close()
        return code

    def starting_seconds(self) -> float:
        """How long all the worker processes together took to start."""
        return self.starting + sum(map(self._start_time, self.living()))

    def _start_time(self, process: WorkerProcess) -> float:
        """Seconds until this process was ready, or until now."""
        ready = process.word(READY) / 1e9
        return (ready if ready > process.started else time.monotonic()) - process.started

    def replace(self, process: WorkerProcess, code: int, claimed: bool, note: str) -> None:
        """Start the successor of a buried worker: at once, or after a pause if it died before it claimed a task.

        Raises WorkersFailedError where one after the other does, and nothing else happens."""
        self.respawned += 1
        if claimed or (process.told and code == 0):
            self.worked()
            process.deaths = 0
            self.try_to_start(process)
            return
        process.deaths += 1
        self._failed_starts += 1
        process.due = time.monotonic() + min(1.0, 0.02 * 2 ** min(process.deaths, 6))
        if self._failed_starts >= FAILED_STARTS and (note or time.monotonic() - self._worked_at > FAILED_SECONDS):
            why = note or exit_text(code)
            raise WorkersFailedError(f"{self._failed_starts} workers in a row died before they took a task: {why}")

    def worked(self) -> None:
        """Some worker has had tasks."""
        self._worked_at, self._failed_starts = time.monotonic(), 0

    def suspend(self) -> None:
        """Stop the workers and then this process; go on with them when it is continued."""
        since = time.monotonic()
        living = self.living()
        for process in living:
            process.signal_group(signal.SIGSTOP)
        for process in living:
            process.wait_until_stopped(CHECK_SECONDS)  # then the kernel ends them if this process is killed
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)  # not SIGSTOP: nobody could continue an orphaned group
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        for process in living:
            process.signal_group(signal.SIGCONT)
            process.progress_since += time.monotonic() - since

    def continue_stopped(self) -> bool:
        """Continue workers that somebody has stopped, in their sleep. Whether there were any."""
        stopped = [process for process in self.living() if process.is_stopped()]
        for process in stopped:
            process.signal_group(signal.SIGCONT)
        return bool(stopped)

    def free_lock(self, holder: int, seconds: float) -> None:
        """The lock has not been had for so long: its holder, or somebody if none has signed, was stopped or killed."""
        living = [process for process in self.living() if not process.is_dead()]
        for process in living:
            if seconds >= 1 and holder in (process.index, -1):
                process.signal_group(signal.SIGCONT)
                if holder >= 0 and seconds >= STOP_SECONDS:
                    process.kill(Doomed(None, "crashed", "its worker held the lock and did not go on"))
        lost = seconds >= 1 if holder < 0 else all(process.index != holder for process in living)
        if lost and not self._queue.kernel_unlocks:
            self._replace_lock(living)

    def _replace_lock(self, living: Sequence[WorkerProcess]) -> None:
        """The lock went with its holder. A worker that asks for it leaves; one that may be inside is waited for."""
        self._queue.renew_lock(self._context)
        for process in living:
            self._write(process.wake, b"!")  # those that sleep ask for it
        deadline = time.monotonic() + 1
        while inside := [process for process in living if not process.is_dead() and self._may_hold_lock(process)]:
            if time.monotonic() > deadline:
                for process in inside:
                    process.kill()
            time.sleep(0.001)

    def _may_hold_lock(self, process: WorkerProcess) -> bool:
        """Return True if a worker that lives may be inside the lock: not while it has a task in hand."""
        return self._queue.is_claiming(process.index) or self._queue.glance(process.index).in_hand is None

    def living(self) -> list[WorkerProcess]:
        return [process for process in self.processes if process.child is not None]

    def close(self) -> None:
        """Kill and reap whoever is left, and close the pipes."""
        for process in self.living():
            process.kill()
        for process in self.living():
            self.reap(process)
        self.bell.close()
        self._bell_end.close()


class Doomed(NamedTuple):
    """Why the supervisor kills a worker: what becomes of the task at this position; None for whichever is in hand."""

    position: int | None
    status: str
    error: str


@dataclasses.dataclass
class WorkerProcess:
    """What the supervisor keeps of one worker, and does to its process."""

    index: int
    words: Any  # of the segment
    status: int  # the first of this worker's
    child: Any = None  # of multiprocessing; None while it is dead
    pid: int = 0
    pidfd: Any = None  # a file that names the process, also when its pid has gone to another one; None without pidfds
    born: int = 0  # when the process started, as process_state() has it
    started: float = 0.0
    wake: Any = None  # our end of its pipe
    due: float = 0.0  # when to start it again
    deaths: int = 0  # in a row, before it claimed a task
    first_claims: int = 0  # its `claims` word when it was started
    rung: int = 0  # the last sleep that was rung for
    halted: float = 0.0  # when it was last halted,
    halt_again: bool = False  # and whether that has to be done once more
    seen: tuple[int, int] = (0, 0)  # its batch and how many of its tasks were done when last looked at,
    progress_since: float = 0.0  # and since when
    killed_for: Doomed | None = None
    monitor: Any = None  # its psutil.Process
    rss: int = 0
    cpu: float = 0.0
    told: bool = False  # to leave
    retiring: float = 0.0  # since when, for its memory
    _stopped_before: bool = False  # it stood still when a halt began
    _still_since: float = 0.0
    _switches: int = 0  # its context switches at that time

    def word(self, word: int) -> int:
        return int(self.words[self.status + word])

    def identify(self) -> None:
        """Note who the new process is, so that later no other with its pid is taken for it."""
        self.born = process_state(self.pid)[1]
        self.pidfd = None
        with contextlib.suppress(OSError, AttributeError):  # gone; no pidfds here, or none left
            self.pidfd = io.FileIO(os.pidfd_open(self.pid))
            _supervisor_ends.add(self.pidfd)
        if is_readable(self.child.sentinel):  # it has ended, so all this may be of another process
            self.close_pidfd()
            self.born = -1

    def close_pidfd(self) -> None:
        if self.pidfd is not None:
            self.pidfd.close()
            self.pidfd = None

    def end_sign(self) -> int:
        """The descriptor that becomes readable when the process ends."""
        return int(self.pidfd.fileno() if self.pidfd is not None else self.child.sentinel)

    def is_dead(self) -> bool:
        """Return True if the process has ended. It is not reaped here, so that its pid still names its group."""
        if self.pidfd is not None:
            return is_readable(self.pidfd.fileno())
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except (ChildProcessError, AttributeError):
            # the fork server's child, or reaped by this program already; macOS before Python 3.13
            return not self.child.is_alive() or is_readable(self.child.sentinel)

    def reap(self) -> int:
        """Wait until the process has ended, and release what multiprocessing keeps of it. Its exit code, -n for
        signal n, or TAKEN."""
        if self.pidfd is not None:
            is_readable(self.pidfd.fileno(), None)
            self.close_pidfd()
        else:
            self.child.join()
        if self.child.exitcode is None:
            self.child.join(REAP_SECONDS)  # the fork server tells it a moment later
        code = self.child.exitcode
        if code is None:  # multiprocessing would take the process for alive, and refuse to close it
            code = self.child._popen.returncode = TAKEN
        self.child.close()
        self.child = None
        return int(code)

    def kill(self, why: Doomed | None = None) -> None:
        """Kill it and what its functions started."""
        self.killed_for = self.killed_for or why
        self.signal_group(signal.SIGKILL)
        self.signal(signal.SIGKILL)  # where it has no group yet

    def stop(self) -> bool:
        """Stop it, and wait until it stands still. Return True if it does; if not in time, it goes on."""
        self._stopped_before = self.is_stopped()
        if not self._stopped_before:
            self.signal(signal.SIGSTOP)
        if self.wait_until_stopped(STILL_SECONDS):
            return True
        self.go_on()
        return False

    def wait_until_stopped(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        tries = 0
        while True:
            state, self._switches = state_and_switches(self.pid)
            if state in STOPPED:
                self._still_since = time.perf_counter()
                return True
            if state in ENDED or time.monotonic() > deadline:
                return False
            tries += 1
            if tries < 20:
                os.sched_yield()
            else:
                time.sleep(0.0002)

    def stands_still(self) -> bool:
        """Return True if it has not run since stop(), although somebody may have continued and stopped it."""
        state, switches = state_and_switches(self.pid)
        return state in STOPPED and switches == self._switches

    def stand_for(self, seconds: float) -> None:
        """Wait until it has stood still for so long."""
        while time.perf_counter() - self._still_since < seconds:
            pass

    def go_on(self) -> None:
        """Continue it, unless somebody else had stopped it."""
        if not self._stopped_before:
            self.signal(signal.SIGCONT)

    def is_stopped(self) -> bool:
        return process_state(self.pid)[0] in STOPPED

    def signal(self, number: int) -> None:
        """Send a signal to the process, and to no other that has got its pid since."""
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd.fileno(), number)
            elif self._keeps_pid():
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and what its functions started, and to no other group.

        While any of them lives, the system gives the number of the group to nobody else."""
        if self._keeps_pid():
            signal_group(self.pid, number)

    def _keeps_pid(self) -> bool:
        """Return False if another process is seen to have this one's pid. Start times tell them apart."""
        found = process_state(self.pid)[1]
        return found in (0, self.born) or self.born == 0


SPARE_DESCRIPTORS = 16  # more than the start of a worker needs, by any start method
LIMIT_ERRORS = (OSError, EOFError)  # from the start of a process; EOFError: the fork server could not fork
REMEDIES = {
    errno.EMFILE: "; take fewer workers with -w, or raise `ulimit -n`",
    errno.EFBIG: "; take fewer --slots, or raise `ulimit -f`",
    errno.EAGAIN: "; take fewer workers with -w, or raise `ulimit -u`",
}


def limit_error(error: OSError | EOFError) -> OSError:
    """The same error, with what can be done about it in its text."""
    if isinstance(error, EOFError):
        return OSError(errno.EAGAIN, limit_text(error))
    if error.errno not in REMEDIES:
        return error
    return OSError(error.errno, limit_text(error), error.filename)


def limit_text(error: OSError | EOFError) -> str:
    if isinstance(error, EOFError):
        return "the fork server could not start a process" + REMEDIES[errno.EAGAIN]
    text, remedy = error.strerror or str(error), REMEDIES.get(error.errno or 0, "")
    return text if text.endswith(remedy) else text + remedy


def close_launch_pipes(error: BaseException) -> None:
    """Close the pipes that multiprocessing leaves open where it cannot start a process.

    The error holds them in its traceback; those of fork are known to local names only, and would stay open for good."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_launch" and str(frame.f_globals["__name__"]).startswith("multiprocessing.popen_"):
            names = frame.f_locals
            names["self"].close()
            if names["self"].method == "fork":
                for end in [names[name] for name in ("parent_r", "child_w", "child_r", "parent_w") if name in names]:
                    os.close(end)


def is_readable(descriptor: int, timeout: float | None = 0.0) -> bool:
    """Return True if a descriptor becomes readable within so many seconds; None waits without end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def exit_text(code: int) -> str:
    """How a process ended, in words."""
    if code == TAKEN:
        return "the worker process ended; its exit status was taken by this program"
    if code >= 0:
        return f"the worker process exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"the worker process was killed by {signal.Signals(-code).name}"
    return f"the worker process was killed by signal {-code}"


STOPPED, ENDED = ("T", "t"), ("", "Z", "X")  # states of a process: a zombie has ended, too


def process_state(pid: int) -> tuple[str, int]:
    """A process's state, as the letter that ps shows, and when it started, in units of the system's own; ("", 0)
    where it is gone."""
    try:
        if os.path.isdir("/proc/self"):
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            return fields[0].decode(), int(fields[19])
        command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
        state, started = subprocess.check_output(command, env={"LC_ALL": "C", "TZ": "UTC"}, text=True).split(None, 1)
        return state[0], int("".join(filter(str.isdigit, started)))  # the day, the time, the year: enough
    except (OSError, IndexError, ValueError, subprocess.CalledProcessError):
        return "", 0


def state_and_switches(pid: int) -> tuple[str, int]:
    """A process's state, as `process_state` has it, and how often it has been switched; 0 where nobody counts.

    Read at once: if the state is "stopped", the process has not run since as long as the number stays the same."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read()
        state = text[text.index(b"State:") + 6 :].split(None, 1)[0].decode()
        return state, sum(int(part.split(None, 1)[0]) for part in text.split(b"ctxt_switches:")[1:])
    except (OSError, ValueError, IndexError):
        return process_state(pid)[0], 0


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Signals: which handlers are ours, for how long, and what forked children get of them.
# ---------------------------------------------------------------------------------------------------------------------


class Handlers:
    """Owns every signal handler that this module sets, and the end of each open Supervisor. There is one object.

    While Supervisors are open, SIGTERM and SIGHUP raise SystemExit where they would kill this process without its
    clean-up. That is done in the main thread only, since others run no handlers, and only if nobody else handles them.
    """

    HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    HEARD = (*HELD, signal.SIGQUIT, signal.SIGTSTP)  # by a run from the command line, and by --watch
    # Python 3.12 and later warn when a process with several threads forks. This is one entry of warnings.filters.
    FORK_WARNING = ("ignore", re.compile(".*multi-threaded, use of fork"), DeprecationWarning, None, 0)

    def __init__(self) -> None:
        self._open: set[contextlib.ExitStack] = set()  # what each open Supervisor has to release
        self.executors: set[Calls] = set()  # whose threads run; Python would wait for them at its end
        self._exchanged: list[tuple[int, Any, Any]] = []  # a signal, our handler, the one before; oldest first
        self._masks: dict[int, Any] = {}  # the signals that a thread blocked before it began to fork
        self._starting: set[int] = set()  # threads that start a worker at this moment
        os.register_at_fork(
            before=self._block_for_fork, after_in_parent=self._unblock_after_fork, after_in_child=self._forget_in_child
        )

    # The end of Supervisors.

    def open(self, resources: contextlib.ExitStack) -> None:
        """Note an open Supervisor, and what it has to release."""
        self._open.add(resources)
        self.exit_on_signals()

    def dispose(self, owner: int, resources: contextlib.ExitStack) -> None:
        """Kill the workers, remove the segment, restore the signal handlers. Called at the latest when Python exits."""
        if os.getpid() != owner:  # a child that the user forked
            return
        try:
            with self.held():
                resources.close()
        finally:
            self._open.discard(resources)
            self.exit_on_signals()

    def exit_on_signals(self) -> None:
        """Set or remove the handlers that raise SystemExit, as it is needed now."""
        if threading.current_thread() is not threading.main_thread():
            return
        old: Any = signal.SIG_DFL
        new: Any = self._exit_cleanly
        if not self._open:
            old, new = new, old
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == old:
                signal.signal(number, new)

    def _exit_cleanly(self, number: int, frame: object) -> None:
        if not self._open:  # somebody has kept this handler, and set it again after our time
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self._is_forking(frame):  # Python drops an exception that is raised there, so come back a moment later
            threading.Timer(0.001, os.kill, (os.getpid(), number)).start()
        else:
            for calls in list(self.executors):
                calls.end(abort=True)
            self.exit(number, frame)

    @staticmethod
    def exit(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    # Handlers for a time.

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Delay signals that would raise or kill until the block has ended.

        Their handlers are exchanged. A mask would hold for one thread only, and children would inherit it for ever,
        the fork server among them.
        """
        # Two stacks: each signal that came is raised, whatever another one raises.
        with contextlib.ExitStack() as came, contextlib.ExitStack() as held:

            def hold(number: int, frame: object) -> None:
                came.callback(signal.raise_signal, number)

            if threading.current_thread() is threading.main_thread():
                for number in self.HELD:
                    if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: it is not Python's
                        held.callback(self.put_back, number, hold)
                        self.exchange(number, hold)
            yield

    @contextlib.contextmanager
    def kept(self) -> Iterator[Iterable[int]]:
        """After the block, and in children that others fork, signals are handled as before it.

        Yields the signals that can be handled in the block, by exchange(): none outside the main thread.
        """
        numbers = self.HEARD if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.getsignal(number) for number in numbers}
        exchanged = list(self._exchanged)
        try:
            yield numbers
        finally:
            for number, handler in before.items():
                if handler is not None:  # None: it is not Python's
                    signal.signal(number, handler)
            if numbers:
                self._exchanged[:] = exchanged

    def exchange(self, number: int, ours: Any) -> None:
        """Handle a signal by `ours`, until put_back(number, ours)."""
        self._exchanged.append((number, ours, signal.getsignal(number)))  # first: another thread may fork at any moment
        signal.signal(number, ours)

    def put_back(self, number: int, ours: Any) -> None:
        """Handle a signal as before `ours`, unless somebody has set another handler since."""
        for entry in [entry for entry in self._exchanged if entry[0] == number and entry[1] is ours]:
            if signal.getsignal(number) is ours:
                signal.signal(number, entry[2])
            self._exchanged.remove(entry)

    # Forks.

    @contextlib.contextmanager
    def start_of_worker(self, silent: bool) -> Iterator[None]:
        """Mark a fork in this block as that of a worker. `silent`: without Python's warning about threads.

        A Supervisor that chose fork by itself keeps it, so the warning says nothing that its user could change.
        warnings.catch_warnings() would exchange the whole list of filters, and so undo what another thread sets
        meanwhile. Here one entry goes into the list and out again.
        """
        filters: Any = warnings.filters if silent else []
        filters.insert(0, self.FORK_WARNING)
        self._starting.add(threading.get_ident())
        try:
            yield
        finally:
            self._starting.discard(threading.get_ident())
            with contextlib.suppress(ValueError):  # somebody has emptied the list
                filters.remove(self.FORK_WARNING)

    def _block_for_fork(self) -> None:
        """Before a fork, in the thread that forks: block SIGTERM and SIGHUP if we handle them.

        If a signal has a Python handler, a forked child drops the signal when it comes before the child's first line.
        The host may end its child just then, and rely on the default, which kills at once. So the child gets the
        signal after _forget_in_child() has put the default back.
        """
        ours = [self._exit_cleanly, *(entry[1] for entry in self._exchanged)]
        numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) in ours]
        if numbers:
            self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def _unblock_after_fork(self) -> None:
        before = self._masks.pop(threading.get_ident(), None)
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _forget_in_child(self) -> None:
        """In a forked child: no Supervisor is open here, and signals are handled as before we came.

        A worker is left alone: it must not run the handlers of our caller, and _isolate() sets its own.
        """
        self._open.clear()
        if threading.get_ident() not in self._starting:
            for number, ours, _ in list(reversed(self._exchanged)):
                self.put_back(number, ours)
            self.exit_on_signals()
        while self.FORK_WARNING in warnings.filters:
            typing.cast(list[Any], warnings.filters).remove(self.FORK_WARNING)
        self._exchanged.clear()
        self._starting.clear()
        self._unblock_after_fork()
        self._masks.clear()

    def _is_forking(self, frame: Any) -> bool:
        """Return True if the code at `frame` is one of the hooks around a fork."""
        hooks = (self._block_for_fork.__code__, self._unblock_after_fork.__code__)
        while frame is not None and frame.f_code not in hooks:
            frame = frame.f_back
        return frame is not None


handlers = Handlers()


# ---------------------------------------------------------------------------------------------------------------------
# The worker process: claims batches, runs them, and leaves outcomes.
# ---------------------------------------------------------------------------------------------------------------------

BATCH_SECONDS = 0.005  # what a batch should take: long against a lock's microsecond, short against a user's patience
QUIET_SECONDS = 20e-6  # a task that took longer has a time of its own, and the worker looks at `end` after it
FETCH_BYTES = 256 << 10  # payloads out of line that are read at once, if they lie together
SPILL_BYTES = 32 << 20  # values of one worker in files that may wait to be taken in
SPILL_TRIES = 100  # to write one when none of this worker's waits and there is no room all the same
SPILL_SECONDS = 0.02  # from one such try to the next
ORPHAN_SECONDS = 0.5  # how often a worker looks whether its supervisor lives, besides watching its pipe


class WorkerOptions(NamedTuple):
    """What a worker is told at its start."""

    functions: Mapping[int, Function]
    initializer: Callable[[], object] | None
    batch: int | None
    max_tasks: int | None
    log: str | None


class Pipes(NamedTuple):
    """A worker's ends: `wake` is read, and closed by the supervisor's end; `bell` is written to wake the supervisor."""

    wake: Any
    bell: Any


def worker_main(
    strategy: type[SharedTaskQueue], name: str, primitives: Any, index: int, options: WorkerOptions, pipes: Pipes
) -> None:
    """The whole life of a worker process."""
    for end in list(_supervisor_ends):
        end.close()
    ends = Pipes(*(_out_of_reach(end) for end in pipes))  # first: they may have the numbers of the standard streams
    _isolate(name, options.log)
    release_fork_server()
    queue = strategy.attach(name, primitives)
    worker = Worker(queue, index, options, ends)
    queue.segment.fd = _out_of_reach(queue.segment.fd)
    try:
        worker.start()
        worker.serve()
    except LockLostError:
        os._exit(0)
    except BaseException as error:
        if not worker.disowned:
            queue.leave_note(index, describe(error))
        os._exit(1)
    queue.close()
    os._exit(0)  # not by way of multiprocessing, which would wait for what the functions started


def _isolate(run: str, log: str | None) -> None:
    """Take the process out of the terminal's reach: a group of its own (so that what a function starts can be ended
    with it), no signal handlers of the parent, no standard input, and output to the log or nowhere."""
    os.environ[RUN_VARIABLE] = run
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is the supervisor's, and at no moment the end of a worker
    for caught in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH):
        signal.signal(caught, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the host's would take the status of what functions start
    null = os.open(os.devnull, os.O_RDWR)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666) if log else null
    os.dup2(null, 0)
    if log != NOT_REDIRECTED:
        os.dup2(output, 1)
        os.dup2(output, 2)
    for number in {null, output} - {0, 1, 2}:
        os.close(number)


def release_fork_server() -> None:
    """Close this worker's end of the pipe that keeps the fork server alive, so that the server ends with the program.

    Else a worker that is stopped when its supervisor is killed would stay for ever: the server lives as long as the
    worker, and the kernel ends a stopped group only when it has become an orphan, by the end of its parent."""
    module: Any = sys.modules.get("multiprocessing.forkserver")
    if module is None or module.get_inherited_fds() is None:
        return  # the fork server has not started this process
    end = module._forkserver._forkserver_alive_fd
    if end is not None:
        module._forkserver._forkserver_alive_fd = None  # a function that wants a fork server starts one of its own
        os.close(end)


def _out_of_reach(end: Any) -> int:
    """A descriptor's duplicate with a high number: a function that closes descriptors and opens files of its own
    must not find itself, or us, with the wrong file."""
    old = end if isinstance(end, int) else end.fileno()
    new = fcntl.fcntl(old, fcntl.F_DUPFD_CLOEXEC, min(512, os.sysconf("SC_OPEN_MAX") // 2))
    os.close(old) if isinstance(end, int) else end.close()
    return new


class Worker:
    """Claims batches, runs them, and leaves outcomes."""

    def __init__(self, queue: SharedTaskQueue, index: int, options: WorkerOptions, pipes: Pipes) -> None:
        self._queue, self._index, self._options, self._pipes = queue, index, options, pipes
        self._words, self._status = queue.words, queue.status[index]
        self._structures = structures_of(options.functions.values())
        self._calls: dict[int, Callable[[bytes], Any]] = {TERMINATE: self._terminate}
        for fn_id, function in options.functions.items():
            self._calls[fn_id] = call = adapt(function)
            self._calls[fn_id | OUT_OF_LINE] = functools.partial(self._call_out_of_line, call)
        self._half = queue.half(index, 0)  # of the batch that runs
        self._first = self._count = 0  # its positions are [first, first + count)
        self._payloads: list[bytes] = []  # of that batch; whoever empties it ends the batch after this task
        self._leaving = False
        self._left = options.max_tasks if options.max_tasks is not None else math.inf
        self._limit = options.batch or 1  # tasks to claim next
        self._spilled: collections.deque[tuple[str, int]] = collections.deque()  # files of values: path and bytes
        self._batch_spilled = 0  # bytes that this batch put into such files
        self._log: TaskLog | None = None
        self.disowned = False  # true in a process that a function forked

    def start(self) -> None:
        """Make ready in the new process: watch for orphanhood, run the initializer."""
        os.register_at_fork(after_in_child=self._disown)
        threading.Thread(target=self._watch, name="shmqueue-watch", daemon=True).start()
        if self._options.log:
            self._log = TaskLog(self._options.log, self._index, self._tsk_id_in_hand)
            text = io.TextIOWrapper(self._log, "utf-8", "surrogateescape", write_through=True)  # type: ignore[type-var]
            sys.stdout = sys.stderr = text
        elif self._options.log != NOT_REDIRECTED:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        if self._options.initializer is not None:
            self._options.initializer()
        self._words[self._status + READY] = time.monotonic_ns()

    def serve(self) -> None:
        """Claim and run until told to leave."""
        queue, words, poll = self._queue, self._words, select.poll()
        poll.register(self._pipes.wake, select.POLLIN)
        while not self._leaving:
            limit = words[self._status + LIMIT] = int(min(self._limit, self._left))
            claim = queue.claim(self._index, limit)
            if words[SUPERVISOR_ASLEEP]:
                self._ring()
            if claim is not None:
                self.run(*claim)
            elif words[self._status + LEAVE]:
                break
            elif poll.poll(1000):
                os.read(self._pipes.wake, 4096)
        if self._log is not None:
            self._log.end_line()

    def run(self, first: int, count: int) -> None:
        """Run the batch that was just claimed, task by task, up to where its `end` is now.

        This loop is the cost of a short task. The store to `ends` makes a task finished: whoever is killed before it
        has not finished the task, and whoever is killed after it has.

        The supervisor may stop this process anywhere, draw `end` back, and let it go on; the stop lasts longer than
        QUIET_SECONDS. Between two looks at the clock lies exactly one call. So a stop between them is seen as a slow
        task, and `end` is read before anything else begins. At most one task can begin between the stop and that
        look: the first without its `ends`, which the supervisor never takes. This needs the order of the lines below:
        the clock before the first look at `end`, and each commit before the clock.
        """
        half = self._begin_batch(first, count)
        calls, payloads = self._read_lane()
        words, end, ends, stamps, log = self._words, half.end, half.ends, half.stamps, half.log
        room = len(log) - REFERRING * count  # so that each task can leave a record
        clock = time.perf_counter
        last = began = half.began[0] = clock()
        stop = words[end] - first
        done, at = 0, 1
        while done < stop and not self._leaving:
            for task, call, payload in zip(range(done, stop), calls, payloads):
                try:
                    value = call(payload)
                except BaseException as error:
                    value = _Failure(describe(error))
                if value is None:
                    ends[task] = at
                elif type(value) is bytes and at < (after := at + len(value)) <= room:
                    log[at:after] = value
                    ends[task] = at = after
                else:
                    at = self._put_record(task, at, value)
                    ends[task] = at | RECORD
                before, last = last, clock()
                if last - before > QUIET_SECONDS:
                    if task:
                        stamps[task - 1] = before
                    stamps[task] = last
                    if words[end] - first < stop:
                        break
            done = task + 1
            stop = words[end] - first
        self._end_batch(done, at, began, last)

    def _begin_batch(self, first: int, count: int) -> Half:
        self._first, self._count, self._batch_spilled = first, count, 0
        self._half = self._queue.half(self._index, self._words[self._status + CLAIMS])
        return self._half

    def _read_lane(self) -> tuple[Iterator[Callable[[bytes], Any]], Iterator[bytes]]:
        """What to call, and with what, for each task of the batch."""
        fn_ids, self._payloads = self._half.lane.get(0, self._count)
        if fn_ids.count(fn_ids[0]) < len(fn_ids):
            return map(self._call, fn_ids), iter(self._payloads)
        if fn_ids[0] & OUT_OF_LINE and self._fetch_payloads():
            fn_ids[0] &= ~OUT_OF_LINE
        return itertools.repeat(self._call(fn_ids[0])), iter(self._payloads)

    def _call(self, fn_id: int) -> Callable[[bytes], Any]:
        return self._calls.get(fn_id) or functools.partial(self._unknown, fn_id)

    def _unknown(self, fn_id: int, payload: bytes) -> None:
        raise SpoiledSegmentError(f"no function has fn_id {fn_id}")

    def _fetch_payloads(self) -> bool:
        """Put the payloads of a batch in the place of their references, if they lie together in the heap.

        This takes a third of the time that fetching each of them takes.
        """
        references = b"".join(self._payloads)
        if len(references) != REFERENCE.size * self._count:
            return False
        flat = memoryview(references).cast("Q").tolist()
        begin, end = flat[1], flat[-2] + flat[-1]
        stops = list(itertools.accumulate(flat[2::3]))
        together = end - begin == stops[-1] <= FETCH_BYTES and end <= len(self._queue.heap)
        if any(flat[0::3]) or not together:
            return False
        data = bytes(self._queue.heap[begin:end])
        starts = itertools.chain([0], stops)
        self._payloads = list(map(data.__getitem__, map(slice, starts, stops)))
        return True

    def _call_out_of_line(self, call: Callable[[bytes], Any], reference: bytes) -> Any:
        """Call with a payload that did not fit its slot."""
        number, offset, length = REFERENCE.unpack(reference)
        if number:
            return call(read_file(self._queue.segment.beside(f"p{number}"), length))
        payload = bytes(self._queue.heap[offset : offset + length])
        if len(payload) < length:
            raise SpoiledSegmentError(f"{length:,} bytes at {offset:,} are not in the heap")
        return call(payload)

    def _terminate(self, payload: bytes) -> None:
        """Begin no more: said before this task is finished, so that its death does not charge the next one."""
        self._leave_before(self._half.done(self._count) + 1)
        self._payloads.clear()

    def _leave_before(self, task: int) -> None:
        self._leaving = True
        self._words[self._status + LEAVING] = self._first + task

    def _end_batch(self, done: int, at: int, began: float, last: float) -> None:
        """After a batch: see how many tasks make the next one, growing no faster than twofold.

        It should take BATCH_SECONDS, and its values should fill three quarters of a log, or a quarter of SPILL_BYTES
        in files.
        """
        if done:
            self._half.stamps[done - 1] = last
        self._left -= done
        if self._left <= 0:
            self._leave_before(done)
        if self._options.batch is None and done:
            by_time = int(BATCH_SECONDS * done / max(last - began, 1e-9))
            by_room = len(self._half.log) * 3 // 4 * done // at
            by_files = SPILL_BYTES // 4 * done // max(1, self._batch_spilled)
            self._limit = max(1, min(2 * self._limit, by_time, by_room, by_files))

    # Values that are neither plain bytes nor None.

    def _put_record(self, task: int, at: int, value: Any) -> int:
        """Append a value to the log as a record: a head, and its bytes. Return where it ends."""
        try:
            head, data = encode_value(value, self._structures)
        except Exception as error:  # such as text that is not Unicode
            head, data = encode_value(_Failure(describe(error)), self._structures)
        half = self._half
        room = len(half.log) - at - 1 - REFERRING * (self._count - task - 1)  # the tasks behind need some
        if len(data) > room:
            head, data = self._spill(self._first + task, head, data, room)
        end = at + 1 + len(data)
        half.log[at] = head
        half.log[at + 1 : end] = data
        self._words[half.special] += 1
        return end

    def _spill(self, position: int, head: int, data: bytes, room: int) -> tuple[int, bytes]:
        """Put a value that does not fit the log into a file of its own; return the head and the bytes of its record.

        Where there is no room, wait: this worker is halted meanwhile like any slow one, and the supervisor takes in
        what it has finished, which removes those files. The file is opened anew each time: a function could close a
        descriptor that is kept, and reuse its number.
        """
        path, alone = self._queue.segment.beside(f"v{position}"), 0
        while True:
            while self._spilled and not os.path.exists(self._spilled[0][0]):
                self._spilled.popleft()
            if sum(size for _, size in self._spilled) <= SPILL_BYTES:
                try:
                    write_file(path, data)
                    break
                except OSError as error:
                    if error.errno != errno.ENOSPC or alone > SPILL_TRIES:
                        text = f"{describe(error)}: no room for a value of {len(data):,} bytes in {shared_directory()}"
                        return FAILURE, encode_text(text)[:room]
                alone += not self._spilled
            time.sleep(SPILL_SECONDS)
        self._spilled.append((path, len(data)))
        self._batch_spilled += len(data)
        if not os.path.exists(self._queue.segment.path):  # the run is over and swept; nobody would remove the file
            os.unlink(path)
        return head | IN_FILE, SIZE.pack(len(data))

    # What others want of this process.

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # full: it will wake; broken: it is gone
            os.write(self._pipes.bell, b"!")

    def _watch(self) -> None:
        """In a thread: end the group when the supervisor is gone.

        Gone is: its end of a pipe is closed, or (where something else holds a copy of that end) its pid is."""
        poll = select.poll()
        poll.register(self._pipes.wake, 0)  # only that it is closed
        gone = False
        while not gone and process_exists(self._queue.owner_pid):
            for _, event in poll.poll(ORPHAN_SECONDS * 1000):
                if event & select.POLLNVAL:  # a function closed it
                    poll.unregister(self._pipes.wake)
                else:
                    gone = True
        end_strays(self._queue.name)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def _disown(self) -> None:
        """In a child that a function forked: make every later access to the queue an error, so that it can do what
        it was forked for, but not act as a second copy of this worker when the function returns."""
        self.disowned = True
        self._queue.segment.release_views()

    def _tsk_id_in_hand(self) -> int:
        return self._half.lane.tsk_id(min(self._half.done(self._count), self._half.lane.count - 1))


class TaskLog(io.RawIOBase):
    """What functions print, line by line, each with its worker and task; a line is one write, so none are mixed."""

    def __init__(self, path: str, worker: int, task: Callable[[], int]) -> None:
        self._path, self._worker, self._task, self._line, self._owner = path, worker, task, b"", 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, data: Any) -> int:
        task = self._task()
        if self._line and task != self._owner:
            self.end_line()
        *lines, self._line = (self._line + bytes(data)).split(b"\n")
        self._owner = task
        for line in lines:
            self._put(line)
        return len(data)

    def end_line(self) -> None:
        """Write the line that has no end yet."""
        if self._line:
            line, self._line = self._line, b""
            self._put(line)

    def _put(self, line: bytes) -> None:
        try:
            os.write(1, b"[worker %d task %d] %s\n" % (self._worker, self._owner, line))
        except OSError as error:  # the task that prints fails, and says why
            raise OSError(error.errno, error.strerror, self._path) from None


# ---------------------------------------------------------------------------------------------------------------------
# The queue: every access to a shared word that more than one process may write or wait for.
# ---------------------------------------------------------------------------------------------------------------------

WAKE_SHARE = 5  # into so many parts a batch is divided; one of them is worth waking a worker for
LOCK_PATIENCE = 0.1  # seconds after which the supervisor asks why it does not get the lock


class LockLostError(Exception):
    """The lock's holder died, and the lock with it: a worker that waits for it leaves, with nothing in hand."""


class Glance(NamedTuple):
    """What a worker's current batch seems to hold: a hint, since the worker goes on meanwhile.

    number: of the batch. The tasks at [first, first + done) are finished, the next one is in hand if it lies below
    `end`, and the rest has not begun. began: when the batch began, in seconds of time.perf_counter().
    """

    number: int
    first: int
    done: int
    end: int
    began: float

    @property
    def in_hand(self) -> int | None:
        """The position of the task in hand."""
        position = self.first + self.done
        return position if position < self.end else None

    @property
    def not_begun(self) -> int:
        """How many tasks lie behind the one in hand."""
        return max(0, self.end - self.first - self.done - 1)


class QueueMemory:
    """The parts of a queue's segment, and what every strategy does with them in the same way.

    num_slots, slot_size, num_workers, batch, owner_pid: from the header. words: the whole as 64-bit words. status: the
    index of each worker's first word. ring: the slots. halves: two for each worker. heap: the window for payloads that
    do not fit a slot. extra_offset: where the strategy's own bytes are.
    """

    def __init__(self, segment: Segment, extra: Callable[[int, int], int]) -> None:
        header = QueueHeader.from_buffer_copy(segment.window(0, ctypes.sizeof(QueueHeader)))
        self.num_slots, self.slot_size = header.num_slots, header.slot_size
        self.num_workers, self.batch, self.owner_pid = header.num_workers, header.batch, header.owner_pid
        extra_bytes = extra(self.num_slots, self.num_workers)
        sizes = (self.num_slots, self.slot_size, self.num_workers, self.batch, extra_bytes, header.heap_bytes)
        wrong = SpoiledSegmentError(f"segment {segment.name}: not of layout version {LAYOUT_VERSION}, or cut off")
        if header.version != LAYOUT_VERSION or max(sizes) > segment.size:
            raise wrong
        layout = segment_layout(*sizes)
        if (ctypes.sizeof(layout), layout.ring.offset + layout.ring.size) != (segment.size, header.ring_end):
            raise wrong
        self.segment, self.name, self.words = segment, segment.name, segment.words
        self.ring = TaskSlots(segment, layout.ring.offset, self.num_slots, self.slot_size)
        self.heap = segment.window(layout.heap.offset, header.heap_bytes)
        self.heap_offset, self.extra_offset = layout.heap.offset, layout.extra.offset
        half = ctypes.sizeof(batch_half(self.slot_size, self.batch))
        starts = [layout.local.offset + 2 * worker * half for worker in range(self.num_workers)]
        self.halves = [
            [Half(segment, start + number * half, self.batch, self.slot_size) for number in range(2)]
            for start in starts
        ]
        step = ctypes.sizeof(WorkerStatus) // 8
        self.status = [layout.status.offset // 8 + i * step for i in range(self.num_workers)]
        note = WorkerStatus.note
        self._notes = [segment.window(8 * status + note.offset, note.size) for status in self.status]

    def _write(self, places: Iterable[tuple[int, int]], tasks: Tasks) -> None:
        """Write tasks into the ring, at these (index, count)."""
        done = 0
        for index, length in places:
            self.ring.write(index, tasks if length == len(tasks.data) else tasks.part(done, done + length))
            done += length

    def half(self, worker: int, number: int) -> Half:
        """Where the batch of this number lies."""
        return self.halves[worker][number & 1]

    def _fill_half(self, worker: int, first: int, count: int, places: Iterable[tuple[int, int]]) -> None:
        """Make the tasks at these places of the ring the worker's next batch (worker). Nothing is committed yet.

        `claims` grows last: a death before leaves nothing, and a death after it leaves a batch that `end` bounds.
        """
        words, claims = self.words, self.status[worker] + CLAIMS
        number = words[claims] + 1
        half = self.half(worker, number)
        self._copy_to_lane(half, places)
        half.clear(count)
        words[half.special] = 0
        words[half.first] = first
        words[half.end] = first + count
        words[claims] = number

    def _copy_to_lane(self, half: Half, places: Iterable[tuple[int, int]]) -> None:
        size, done = self.slot_size, 0
        for index, length in places:
            part = self.ring.bytes[index * size : (index + length) * size]
            half.lane.bytes[done * size : (done + length) * size] = part
            done += length

    def glance(self, worker: int) -> Glance:
        """Look at a worker's current batch while the worker goes on (supervisor, watcher)."""
        words = self.words
        number = words[self.status[worker] + CLAIMS]
        half = self.half(worker, number)
        first, end = words[half.first], words[half.end]
        count = min(max(0, end - first), self.batch)
        return Glance(number, first, half.done(count), first + count, half.began[0])

    def reset(self, worker: int) -> None:
        """Make the words of a dead worker ready for its successor, once its batches have been read (supervisor)."""
        words, status = self.words, self.status[worker]
        for half in self.halves[worker]:
            words[half.end] = words[half.first]
        words[status + PUBLISHED] = words[status + HARVESTED] = words[status + CLAIMS]
        words[status + LEAVING] = NEVER
        words[status + LEAVE] = 0
        words[status + ASLEEP] = 0

    def sleepers(self) -> list[tuple[int, int]]:
        """The workers that sleep, with the number of the sleep (supervisor). Asked after push or harvest, it sees
        every sleep that began before them; one that began later saw what they did."""
        sleeps = [self.words[status + ASLEEP] for status in self.status]
        return [(worker, number) for worker, number in enumerate(sleeps) if number]

    def leave_note(self, worker: int, text: str) -> None:
        """Say why this process ends (worker); read by the supervisor once it is reaped."""
        note = WorkerStatus.note.size
        self._notes[worker][:] = text.encode("utf-8", "replace")[: note - 1].ljust(note, b"\0")

    def take_note(self, worker: int) -> str:
        text = bytes(self._notes[worker]).partition(b"\0")[0].decode("utf-8", "replace")
        self.leave_note(worker, "")
        return text

    def close(self) -> None:
        self.segment.close()

    def remove(self) -> None:
        """Close it, and remove its files (supervisor)."""
        self.close()
        self.segment.unlink()


def heap_size(rest: int) -> int:
    """Bytes of heap for a segment whose other parts have `rest` bytes.

    Fewer than HEAP_BYTES where a file may not be that large, and half of what is free, since large values need room.
    """
    space = os.statvfs(shared_directory())
    size = min(HEAP_BYTES, (space.f_bavail * space.f_frsize - rest) // 2)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        size = min(size, limit - rest)
    return max(0, size) // mmap.PAGESIZE * mmap.PAGESIZE


class SharedTaskQueue(QueueMemory):
    """The ring and the workers' lanes, guarded by one lock that the kernel releases.

    Each process makes its own object: the supervisor by `create`, a worker by `attach`. Methods are marked with
    who calls them. A strategy overrides `prepare`, `make_primitives`, `make_lock`, or the hooks push, room, claim,
    harvest, recover, drain, is_claiming, and keeps what they promise:

    - a position names one push of one task; those of a claim follow each other, those of one worker grow;
    - each claim belongs to exactly one worker or to none, whichever process is killed, at any point;
    - a worker with nothing to do stores its asleep word in a way that whoever makes work afterwards will see it.
    """

    strategy: ClassVar[str] = "lockf"
    if_killed: ClassVar[str] = "the kernel releases the lock, the next holder repairs"
    kernel_unlocks: ClassVar[bool] = True  # else the supervisor calls renew_lock when a holder has died
    first_position: ClassVar[int] = 0  # tests start near 2**32 and 2**63

    @classmethod
    def create(
        cls, num_slots: int, slot_size: int, num_workers: int, batch: int, context: Any = multiprocessing
    ) -> SharedTaskQueue:
        """Make the segment and its primitives (supervisor). Sizes in slots, bytes, processes and slots.

        Raises OSError: ENOSPC where shared memory is too small, ENOTSUP where the strategy is not right here."""
        if reason := cls.refusal():
            raise OSError(errno.ENOTSUP, f"{cls.strategy}: {reason}")
        sizes = (num_slots, slot_size, num_workers, batch, cls.extra_bytes(num_slots, num_workers))
        layout = segment_layout(*sizes)
        rest = ctypes.sizeof(layout)
        heap_bytes = heap_size(rest)
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(3)}"
        segment = Segment(name, rest + heap_bytes, rest)
        try:
            header = QueueHeader(
                version=LAYOUT_VERSION, num_slots=num_slots, slot_size=slot_size, num_workers=num_workers, batch=batch
            )
            header.owner_pid, header.owner_start = os.getpid(), process_state(os.getpid())[1]
            header.ring_end, header.heap_bytes = layout.ring.offset + layout.ring.size, heap_bytes
            segment.window(0, ctypes.sizeof(header))[:] = bytes(header)
            segment.words[PUSHED] = segment.words[CLAIMED] = cls.first_position
            queue = cls(segment, cls.make_primitives(context, num_slots, num_workers))
            queue.prepare()
            for worker in range(num_workers):
                queue.reset(worker)
            segment.words[0] = MAGIC
        except BaseException:
            segment.close()
            segment.unlink()
            raise
        return queue

    @classmethod
    def attach(cls, name: str, primitives: Any) -> SharedTaskQueue:
        """Open the segment `name` (worker). Raises SpoiledSegmentError if it is not one, OSError if it is gone."""
        return cls(Segment(name), primitives)

    def __init__(self, segment: Segment, primitives: Any) -> None:
        super().__init__(segment, self.extra_bytes)
        self.primitives = primitives
        self.stuck: Callable[[int, float], None] = lambda holder, seconds: None  # called while the lock is not had
        self._pushed, self._claimed = self.words[PUSHED], self.words[CLAIMED]  # as the supervisor last saw them
        self._sleeps = 0
        self._lock = self.make_lock()

    # What a strategy is made of; overridden by variants.

    @classmethod
    def refusal(cls) -> str:
        """Why this strategy is not right on this machine, after a test of its own; empty where it is."""
        return ""

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        """Bytes of state of its own at the end of the segment."""
        return 0

    @classmethod
    def make_primitives(cls, context: Any, num_slots: int, num_workers: int) -> Any:
        """What the supervisor makes and every worker is given at its start (supervisor)."""
        return None

    def prepare(self) -> None:
        """Give what the strategy keeps in the segment its first value (supervisor)."""

    def make_lock(self) -> Any:
        """An object with acquire(timeout) -> bool and release()."""
        return KernelLock(self.segment)

    def renew_lock(self, context: Any) -> None:
        """Put another lock in the place of one whose holder died (supervisor), unless the kernel unlocks.

        From here on, whoever waits for the old one gets LockLostError, and so does whoever asks for it later."""

    # The lock. Between _enter and _leave there is no `with` and no `finally`: an exception there ends a worker, and
    # then the kernel releases the lock and the next holder repairs.

    def _enter(self, worker: int | None) -> None:
        """Take the lock, repair what a dead holder left, and sign `dirty`. None is the supervisor.

        A worker waits without a deadline: a dead holder is the kernel's business, a stopped one the supervisor's,
        which asks for the lock several times a second.
        """
        if worker is None:
            since = time.monotonic()
            while not self._lock.acquire(LOCK_PATIENCE):
                self.stuck(self.words[DIRTY] - 1, time.monotonic() - since)
        else:
            self._lock.acquire()
        if self.words[DIRTY]:
            self._repair_locked()
        self.words[DIRTY] = (self.num_workers if worker is None else worker) + 1

    def _leave(self) -> None:
        self.words[DIRTY] = 0
        self._lock.release()

    def _repair_locked(self) -> None:
        """Take back a claim that was not committed. May be killed and run again."""
        words = self.words
        claimed = words[CLAIMED]
        for half in itertools.chain.from_iterable(self.halves):
            if words[half.end] > claimed:
                words[half.end] = claimed

    # The hooks.

    def room(self) -> int:
        """How many tasks can be pushed now, at the least (supervisor)."""
        return int(self.num_slots - (self._pushed - self._claimed))

    def push(self, tasks: Tasks) -> list[tuple[int, int]]:
        """Put `tasks`, no more than `room()`, into the ring (supervisor); their positions as (first, count)."""
        words, count = self.words, len(tasks.data)
        first = self._pushed
        self._write(ring_spans(first, count, self.num_slots), tasks)  # beyond `pushed`: nobody reads there
        self._enter(None)
        words[PUSHED] = self._pushed = first + count
        self._leave()
        return [(first, count)]

    def claim(self, worker: int, limit: int) -> tuple[int, int] | None:
        """Take up to `limit` tasks into the lane, or go to sleep (worker). Return their positions as (first, count).

        The current batch must be finished: a claim publishes it. A worker does not get more than its share of what is
        there, and nothing while two of its batches wait to be harvested, or once it is told to leave.
        """
        words, status = self.words, self.status[worker]
        self._enter(worker)
        claims = words[status + PUBLISHED] = words[status + CLAIMS]
        first = words[CLAIMED]
        count = 0
        if claims - words[status + HARVESTED] < 2 and not words[status + LEAVE]:
            count = min(self.batch, self.share(words[PUSHED] - first, limit))
        if count > 0:
            self._fill_half(worker, first, count, ring_spans(first, count, self.num_slots))
            words[CLAIMED] = first + count  # committed: from here on these tasks are the worker's
            words[status + ASLEEP] = 0
        else:
            self._sleeps += 1
            words[status + ASLEEP] = self._sleeps
        self._leave()
        return (first, count) if count > 0 else None

    def harvest(self, harvested: Sequence[int]) -> list[int]:
        """Tell each worker how many of its batches have been read, learn how many it has finished (supervisor).

        Where there is nothing new the supervisor is noted as asleep: the next worker to publish rings.
        Raises SpoiledSegmentError where a counter cannot be."""
        words = self.words
        self._enter(None)
        for status, count in zip(self.status, harvested):
            words[status + HARVESTED] = count
        published = [words[status + PUBLISHED] for status in self.status]
        pushed, claimed = words[PUSHED], words[CLAIMED]
        words[SUPERVISOR_ASLEEP] = all(map(operator.le, published, harvested))
        self._leave()
        if pushed != self._pushed or not self._claimed <= claimed <= pushed:
            was = f"pushed {self._pushed:,}, claimed at least {self._claimed:,}"
            raise SpoiledSegmentError(f"the counters say pushed {pushed:,}, claimed {claimed:,}, and were {was}")
        self._claimed = claimed
        return published

    def drain(self, worker: int | None = None) -> list[tuple[int, int]]:
        """Take back what no worker has claimed, as (first, count); with a worker, what only that one could claim.

        Called by the supervisor. From one ring everybody can claim, so there is nothing that only one could.
        """
        if worker is not None:
            return []
        words = self.words
        self._enter(None)
        first = words[CLAIMED]
        words[CLAIMED] = self._claimed = words[PUSHED]
        self._leave()
        return [(first, self._pushed - first)] if first < self._pushed else []

    def recover(self, worker: int) -> None:
        """Bring in order what a worker left that died, once it has been reaped (supervisor)."""
        self._enter(None)  # a claim that was not committed is taken back here
        self._leave()

    def tell_to_leave(self, worker: int) -> None:
        """Have a worker leave at its next claim (supervisor)."""
        self._enter(None)
        self.words[self.status[worker] + LEAVE] = 1
        self._leave()

    def is_claiming(self, worker: int) -> bool:
        """Return True if this worker, which stands still, is inside a claim (supervisor)."""
        return bool(self.words[DIRTY] == worker + 1)

    def share(self, available: int, limit: int) -> int:
        """How many of the available tasks a worker takes that wants `limit` (worker): ceil(available / 2W), so that
        the others find some, but not less than an eighth of what it wants: short tasks are not worth a claim each."""
        return int(min(limit, available, max(-(-available // (2 * self.num_workers)), limit // 8)))

    def wakeable(self) -> list[tuple[int, int]]:
        """The sleepers that it pays to wake (supervisor): one for each millisecond of work in the ring."""
        tasks, worth = self.backlog(), []
        for worker, number in self.sleepers() if tasks else ():
            if self.has_free_half(worker):
                worth.append((worker, number))
                tasks -= max(1, self.words[self.status[worker] + LIMIT] // WAKE_SHARE)
                if tasks <= 0:
                    break
        return worth

    def has_free_half(self, worker: int) -> bool:
        """Return True if a worker that sleeps could claim a batch (supervisor)."""
        status = self.status[worker]
        return bool(self.words[status + CLAIMS] - self.words[status + HARVESTED] < 2)

    def backlog(self) -> int:
        """How many tasks are in the ring, as far as is known (supervisor, watcher)."""
        return max(0, int(self.words[PUSHED] - self.words[CLAIMED]))


# ---------------------------------------------------------------------------------------------------------------------
# The segment: a file in shared memory, its lock, the files beside it, and what removes them.
# ---------------------------------------------------------------------------------------------------------------------

PREFIX = "shmq-"
OWNER_BYTE, LOCK_BYTE = range(2)  # of the segment's file: locked as long as the supervisor lives; the queue's lock


@functools.cache
def shared_directory() -> str:
    """Where segments live: memory where the system shows it as a folder, else the folder for temporary files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()


class Segment:
    """A file in shared memory, mapped, with every view of it, and values that do not fit in files beside it.

    A plain file is the same memory that multiprocessing.shared_memory maps, without its resource tracker, which
    unlinks live segments when a stranger exits and warns about what a killed process left (cpython#82300); and the
    file can carry the lock. The supervisor creates it, the workers attach by name, both close it, the supervisor
    unlinks it.
    """

    def __init__(self, name: str, size: int = 0, reserved: int = 0) -> None:
        """Attach to the segment `name`, or create it with `size` bytes, the first `reserved` of which are there.

        The rest is address space, to be reserved as it is needed. Raises OSError: ENOSPC where the memory cannot be
        reserved, ENOENT where there is no such segment.
        """
        self.name, self.path = name, os.path.join(shared_directory(), name)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if size else 0)
        self.fd = os.open(self.path, flags, 0o600)
        self._views: list[memoryview] = []
        try:
            if size:
                fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, OWNER_BYTE)  # it waits: a sweep() may try this byte
                self._allocate(size, reserved)
            self._map = mmap.mmap(self.fd, 0)
        except BaseException:
            self.close()
            if size:
                self.unlink()
            raise
        self.size = len(self._map)
        self.words = self.window(0, self.size // 8 * 8, "Q")

    def _allocate(self, size: int, reserved: int) -> None:
        """Give the file its size, and reserve what is needed at once."""
        os.ftruncate(self.fd, size)
        try:
            self.reserve(0, reserved)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            where = shared_directory()
            free = os.statvfs(where).f_bavail * os.statvfs(where).f_frsize
            remedy = (
                "take fewer slots (--slots), or enlarge it (docker run --shm-size=256m; mount -o remount,size=256m)"
            )
            message = f"{where} is too small: {reserved:,} bytes needed, {free:,} free; {remedy}"
            raise OSError(errno.ENOSPC, message) from None

    def reserve(self, offset: int, size: int) -> None:
        """Reserve memory before it is touched: a page that cannot be had is a SIGBUS (cpython#114390)."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, offset, size)

    def window(self, offset: int, size: int, unit: Any = "B") -> memoryview:
        """A view of part of the segment in units of a struct format; it lives as long as the segment is open."""
        whole = self.keep(memoryview(self._map))
        part = self.keep(whole[offset : offset + size])
        return self.keep(part.cast(unit)) if unit != "B" else part

    def keep(self, view: memoryview) -> memoryview:
        self._views.append(view)
        return view

    def release_views(self) -> None:
        """Make every later access through a view an error; the latest first, since others stand on the earlier."""
        while self._views:
            self._views.pop().release()

    def beside(self, label: str) -> str:
        """The path of a file that belongs to the segment and goes with it."""
        return f"{self.path}.{label}"

    def close(self) -> None:
        """Release every view, and unmap: mmap refuses while a view lives."""
        self.release_views()
        if hasattr(self, "_map"):
            self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unlink(self) -> None:
        remove_segment(self.path)


class KernelLock:
    """A lock on one byte of a file (fcntl.lockf). The kernel releases it when its holder dies, however it dies.

    It belongs to the process, not to the descriptor: forked children do not have it, and taking it again in the
    same process succeeds. Closing any descriptor of the file in the holder would drop it, so each process opens the
    segment once.
    """

    def __init__(self, segment: Segment, byte: int = LOCK_BYTE) -> None:
        self._segment, self._byte = segment, byte

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock, for `timeout` seconds at most; whether it was had.

        Without a timeout the kernel puts the caller in a queue and wakes it; with one it is asked again and again,
        because a blocked lockf can only be cut short by a signal.
        """
        if timeout is None:
            fcntl.lockf(self._segment.fd, fcntl.LOCK_EX, 1, self._byte)
            return True
        deadline, tries = time.monotonic() + timeout, 0
        while True:
            try:
                fcntl.lockf(self._segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte)
                return True
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() > deadline:
                return False
            tries += 1
            os.sched_yield() if tries <= 20 else time.sleep(0.0005)

    def release(self) -> None:
        fcntl.lockf(self._segment.fd, fcntl.LOCK_UN, 1, self._byte)


def remove_segment(path: str) -> None:
    """Remove a segment's file after those beside it, so that what a kill leaves in between is found again.

    Look once more after it: an orphaned worker may have made another one (see `Worker._spill`)."""
    beside = glob.escape(path) + ".*"
    for file in [*glob.glob(beside), path]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
    for file in glob.glob(beside):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)


RUN_VARIABLE = "SHMQUEUE_RUN"  # in the environment of what functions start: the name of the segment


def end_strays(name: str) -> None:
    """Kill what the functions of a run have started and left behind in sessions of their own.

    Their environment names the run; this needs /proc, and does not find a process that was forked and not executed."""
    mark, me = f"{RUN_VARIABLE}={name}".encode(), os.geteuid()
    for path in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == me:
                with open(path + "/environ", "rb") as file:
                    if mark in file.read().split(b"\0"):
                        os.kill(int(path[6:]), signal.SIGKILL)


def sweep() -> list[str]:
    """Remove the segments of dead supervisors of this user, and what their functions left; the names of those removed.

    Dead is: nobody holds the owner's byte (which also speaks for other pid namespaces), and no process has the
    owner's pid and start time. Segments with this process's own pid are left: to open and close one of them would
    drop the locks that this process holds on it.
    """
    removed = []
    for name, path, pid in _own_segments():
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, OWNER_BYTE)
            if not _owner_lives(pid, file):
                end_strays(name)
                for link in glob.glob(glob.escape(path) + ".sem.*"):  # another name of a semaphore, which goes too
                    named = os.path.join(shared_directory(), link[len(path) + 1 :])
                    with contextlib.suppress(FileNotFoundError):
                        if os.path.samefile(link, named):
                            os.unlink(named)
                remove_segment(path)
                removed.append(name)
    return removed


def runs() -> list[str]:
    """The names of the segments of this user's supervisors that are alive."""
    names = []
    for name, path, pid in _own_segments():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            names += [name] if _owner_lives(pid, file) else []
    return names


def _own_segments() -> list[tuple[str, str, int]]:
    """This user's segments: name, path, and the owner's pid."""
    owned, found = os.geteuid(), []
    for path in sorted(glob.glob(os.path.join(shared_directory(), PREFIX + "*-*"))):
        name = os.path.basename(path)
        pid = name.split("-")[1]
        with contextlib.suppress(OSError):
            if "." not in name and pid.isdigit() and os.lstat(path).st_uid == owned:
                found.append((name, path, int(pid)))
    return found


def _owner_lives(pid: int, file: Any) -> bool:
    """Whether the process `pid` made the segment in this file, or is about to make it."""
    head, (state, start) = file.read(ctypes.sizeof(QueueHeader)), process_state(pid)
    header = QueueHeader.from_buffer_copy(head) if len(head) == ctypes.sizeof(QueueHeader) else QueueHeader()
    return state not in ENDED and (header.magic != MAGIC or header.owner_start == start)


def write_file(path: str, data: bytes) -> None:
    """Make a file of our own. Raises OSError, and leaves none."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(file)


def read_file(path: str, length: int) -> bytes:
    """The `length` bytes of a file. Raises SpoiledSegmentError where they are not there."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(length) if length == size else b""
    except OSError as error:
        raise SpoiledSegmentError(f"bytes out of line are gone: {describe(error)}") from None
    if len(data) < length:
        raise SpoiledSegmentError(f"bytes out of line are missing: {length:,} of {path}, which has {size:,}")
    return data


# ---------------------------------------------------------------------------------------------------------------------
# The layout: the ctypes structures are the one definition; the fast paths take their offsets from them.
# ---------------------------------------------------------------------------------------------------------------------

MAGIC = int.from_bytes(b"shmqueue", "little")
LAYOUT_VERSION = 2
TERMINATE = 0  # the fn_id that makes the worker which takes it leave
OUT_OF_LINE = 1 << 31  # set in a fn_id: the slot holds a REFERENCE to the payload
RECORD = 1 << 63  # set in an `ends` word: the log has a record with a head, not plain bytes
NEVER = (1 << 64) - 1  # the `leaving` word of a worker that goes on
LINE = 128  # two cache lines, because processors fetch them in pairs; different writers keep to different lines
LOG_BYTES = 16 << 10  # the smallest log
HEAP_BYTES = 32 << 20


class Word(ctypes.Structure):
    """A 64-bit word that has its line to itself."""

    _fields_ = [("value", ctypes.c_uint64), ("_unused", ctypes.c_uint8 * (LINE - 8))]


SHARED_WORDS = ("pushed", "claimed", "dirty", "asleep")
WORKER_WORDS = ("claims", "published", "asleep", "ready", "limit", "leaving")
SUPERVISOR_WORDS = ("harvested", "leave", "pid", "completed", "failed", "started")


class QueueHeader(ctypes.Structure):
    """What the segment is, and the words that everybody shares.

    pushed, claimed: positions; the ring holds the tasks in [claimed, pushed). dirty: who is inside the lock
    (worker index + 1; num_workers + 1 is the supervisor), 0 for nobody. asleep: 1 while the supervisor has found
    nothing to do.
    """

    _fields_ = [
        ("magic", ctypes.c_uint64),  # written last: a segment without it is not ready
        ("version", ctypes.c_uint32),
        ("num_slots", ctypes.c_uint32),
        ("slot_size", ctypes.c_uint32),
        ("num_workers", ctypes.c_uint32),
        ("batch", ctypes.c_uint32),
        ("owner_pid", ctypes.c_uint32),
        ("owner_start", ctypes.c_uint64),  # see process_state: tells a pid from a later process with the same pid
        ("ring_end", ctypes.c_uint64),  # follows from the sizes above, and shows that they are right
        ("heap_bytes", ctypes.c_uint64),
        ("_unused", ctypes.c_uint8 * (LINE - 56)),
        *((name, Word) for name in SHARED_WORDS),
    ]


class WorkerStatus(ctypes.Structure):
    """One worker's words. Its own line first, then the supervisor's line, then the last words of a dying worker.

    claims: batches claimed so far; published: how many of them are finished, as the supervisor may know. asleep: 0,
    or the number of this sleep. ready: when it was about to claim for the first time, in ns of the monotonic clock.
    limit: how many tasks make a batch of BATCH_SECONDS. leaving: the position from which it will begin nothing, or
    NEVER. harvested: batches that the supervisor has taken in. leave: 1 once the worker is to leave at its next
    claim. started: how many processes have been this worker.
    """

    _fields_ = [
        *((name, ctypes.c_uint64) for name in WORKER_WORDS),
        ("_unused", ctypes.c_uint8 * (LINE - 8 * len(WORKER_WORDS))),
        *((name, ctypes.c_uint64) for name in SUPERVISOR_WORDS),
        ("_unused2", ctypes.c_uint8 * (LINE - 8 * len(SUPERVISOR_WORDS))),
        ("note", ctypes.c_char * (2 * LINE)),
    ]


def task_slot(size: int) -> type[ctypes.Structure]:
    """The task slot of `size` bytes: which task, which function, and the payload.

    payload[0] is the payload's length (0 to size - 9); its bytes follow, and the rest is zero. Where the payload
    field is longer than 256 bytes, the length takes its first two bytes, in the machine's order.
    """
    fields = [("tsk_id", ctypes.c_uint32), ("fn_id", ctypes.c_uint32), ("payload", ctypes.c_uint8 * (size - 8))]
    return type(f"TaskSlot{size}", (ctypes.Structure,), {"_fields_": fields, "__doc__": task_slot.__doc__})


TaskSlot128 = task_slot(128)


def batch_half(slot_size: int, batch: int) -> type[ctypes.Structure]:
    """One half of a worker's part of the segment: the tasks of one batch, and what became of them.

    first, end: the batch has the positions [first, end). began: when its first task began, in seconds of the worker's
    clock. special: how many records the log has. lane: the tasks. ends[i]: 0 until task i is finished, then the index
    in `log` where its value ends; RECORD is set if that is a record. stamps[i]: when task i was finished, in seconds
    of the worker's clock, or 0. log: the values, one after the other, from index 1 on.
    """
    fields: list[tuple[str, Any]] = [
        ("first", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("began", ctypes.c_double),
        ("special", ctypes.c_uint64),
        ("_unused", ctypes.c_uint8 * (LINE - 32)),
        ("lane", task_slot(slot_size) * batch),
        ("ends", ctypes.c_uint64 * batch),
        ("stamps", ctypes.c_double * batch),
        ("log", ctypes.c_uint8 * max(LOG_BYTES, batch * slot_size)),
    ]
    size = sum(ctypes.sizeof(field) for _, field in fields)
    fields.append(("_unused2", ctypes.c_uint8 * (-size % LINE)))
    return type("BatchHalf", (ctypes.Structure,), {"_fields_": fields, "__doc__": batch_half.__doc__})


class LocalTaskQueue(ctypes.Structure):
    """One worker's part of the segment: two halves, so that it can run one batch while the last is being harvested.

    Batch number n (1, 2, …) lies in half n % 2.
    """

    @classmethod
    def sized(cls, slot_size: int, batch: int) -> type[LocalTaskQueue]:
        return type("LocalTaskQueue", (cls,), {"_fields_": [("halves", batch_half(slot_size, batch) * 2)]})


@functools.cache
def segment_layout(
    num_slots: int, slot_size: int, num_workers: int, batch: int, extra: int, heap_bytes: int = 0
) -> Any:
    """The whole segment as one ctypes type; `extra` bytes, on lines of their own, are for a strategy's own state."""
    before = ctypes.sizeof(QueueHeader) + num_workers * ctypes.sizeof(WorkerStatus) + -(-extra // LINE) * LINE
    before += num_workers * ctypes.sizeof(LocalTaskQueue.sized(slot_size, batch)) + num_slots * slot_size
    fields = [
        ("header", QueueHeader),
        ("status", WorkerStatus * num_workers),
        ("extra", ctypes.c_uint8 * (-(-extra // LINE) * LINE)),
        ("local", LocalTaskQueue.sized(slot_size, batch) * num_workers),
        ("ring", task_slot(slot_size) * num_slots),
        ("_unused", ctypes.c_uint8 * (-before % mmap.PAGESIZE)),
        ("heap", ctypes.c_uint8 * heap_bytes),
    ]
    return type("SegmentLayout", (ctypes.Structure,), {"_fields_": fields})


def _indices(structure: Any, names: Iterable[str]) -> Iterator[int]:
    return (int(getattr(structure, name).offset) // 8 for name in names)


# Indices of 64-bit words: these from the start of the segment, and the others from the start of a worker's status.
PUSHED, CLAIMED, DIRTY, SUPERVISOR_ASLEEP = _indices(QueueHeader, SHARED_WORDS)
CLAIMS, PUBLISHED, ASLEEP, READY, LIMIT, LEAVING = _indices(WorkerStatus, WORKER_WORDS)
HARVESTED, LEAVE, PID, COMPLETED, FAILURES, STARTED = _indices(WorkerStatus, SUPERVISOR_WORDS)


def ring_spans(first: int, count: int, size: int) -> list[tuple[int, int]]:
    """The positions [first, first + count) in a ring of `size` slots, as (index, count) that do not wrap."""
    index = first % size
    head = min(count, size - index)
    return [(index, head), (0, count - head)] if head < count else [(index, count)]


ROWS = 64


@functools.cache
def _rows(row: str, count: int) -> struct.Struct:
    """`count` equal rows as one struct, so that one call packs them all; count is ROWS at most, so few are kept."""
    return struct.Struct("=" + row * count)


class TaskSlots:
    """An array of task slots in the segment: the ring, or a lane.

    A struct's `p` field (a length byte first) is trimmed in C, at a third of the cost of slicing in Python; it ends
    at 255 bytes. In longer slots the length takes two bytes and an `s` field follows.
    """

    def __init__(self, segment: Segment, offset: int, count: int, size: int) -> None:
        self.count, self.size, self.bytes = count, size, segment.window(offset, count * size)
        area = size - 8
        self._short = area <= 256
        self.capacity = area - (1 if self._short else 2)
        tail = f"{area}p" if self._short else f"H{area - 2}s"
        self._row = "4xI" + tail
        self._tail_row = "8x" + tail
        stride = size // 4
        words = segment.window(offset, count * size, "I")
        self._tsk_ids, self._fn_ids = segment.keep(words[0::stride]), segment.keep(words[1::stride])

    def write(self, index: int, tasks: Tasks) -> None:
        """Write tasks into consecutive slots, by column: a third of the cost of packing slot by slot."""
        data = tasks.data
        for start in range(0, len(data), ROWS):
            block = data[start : start + ROWS]
            values = block if self._short else [part for item in block for part in (len(item), item)]
            _rows(self._tail_row, len(block)).pack_into(self.bytes, (index + start) * self.size, *values)
        self._tsk_ids[index : index + len(data)] = as_u32(tasks.tsk_ids)
        self._fn_ids[index : index + len(data)] = tasks.marked or tasks.fn_ids

    def get(self, index: int, count: int) -> tuple[list[int], list[bytes]]:
        """The fn_ids and the payloads of consecutive slots."""
        flat: list[Any] = []
        for start in range(0, count, ROWS):
            rows = _rows(self._row, min(ROWS, count - start))
            flat += rows.unpack_from(self.bytes, (index + start) * self.size)
        if self._short:
            return flat[0::2], flat[1::2]
        return flat[0::3], [text[:length] for length, text in zip(flat[1::3], flat[2::3])]

    def tsk_id(self, index: int) -> int:
        return int(self._tsk_ids[index])

    def fn_id(self, index: int) -> int:
        return int(self._fn_ids[index])


class Half:
    """One half of a worker's part of the segment, as `batch_half` lays it out.

    first, end, special: the indices of these words. The worker writes here while it runs the batch. The supervisor
    reads it when the worker has left the batch, has died, or stands still; what `glance` reads is a hint.
    """

    def __init__(self, segment: Segment, offset: int, batch: int, slot_size: int) -> None:
        layout: Any = batch_half(slot_size, batch)
        self.first = (offset + layout.first.offset) // 8
        self.end = (offset + layout.end.offset) // 8
        self.special = (offset + layout.special.offset) // 8
        self.began: Any = segment.window(offset + layout.began.offset, 8, "d")
        self.lane = TaskSlots(segment, offset + layout.lane.offset, batch, slot_size)
        self.ends = segment.window(offset + layout.ends.offset, 8 * batch, "Q")
        self.stamps: Any = segment.window(offset + layout.stamps.offset, 8 * batch, "d")
        self.log = segment.window(offset + layout.log.offset, layout.log.size)
        self._end_bytes = segment.window(offset + layout.ends.offset, 8 * batch)
        self._stamp_bytes = segment.window(offset + layout.stamps.offset, 8 * batch)
        self._zeros = bytes(8 * batch)
        self._ones = array.array("Q", [1]).tobytes() * batch

    def clear(self, count: int) -> None:
        """Forget what became of the tasks of an earlier batch, before one of `count` comes here (worker)."""
        size = 8 * count
        self._end_bytes[:size] = self._zeros[:size]
        self._stamp_bytes[:size] = self._zeros[:size]

    def read_ends(self, start: int, stop: int) -> list[int]:
        """The `ends` of the tasks [start, stop) of the batch."""
        return self.ends[start:stop].tolist()

    def read_log(self, stop: int) -> bytes:
        return bytes(self.log[:stop])

    def all_returned_none(self, start: int, stop: int) -> bool:
        """Return True if the tasks [start, stop) are finished, and the log is empty."""
        part = slice(8 * start, 8 * stop)
        return bytes(self._end_bytes[part]) == self._ones[part]

    def done(self, count: int) -> int:
        """How many of the first `count` tasks are finished, as far as can be seen now: a hint."""
        return bisect.bisect_left(range(count), True, key=lambda task: self.ends[task] == 0)

    def seconds(self, start: int, stop: int) -> float | list[float]:
        """How long each of the finished tasks [start, stop) took: one figure for each, or the mean of all of them."""
        since = self.stamps[start - 1] if start else self.began[0]
        quick = slice(8 * start, 8 * (stop - 1))
        if bytes(self._stamp_bytes[quick]) == self._zeros[quick]:
            last = self.stamps[stop - 1]
            return max(0.0, (last - since) / (stop - start)) if last and since else 0.0
        return _shares(since, self.stamps[start:stop].tolist())


def _shares(since: float, stamps: Sequence[float]) -> list[float]:
    """The seconds of each task: those between two stamps share the time between them."""
    seconds: list[float] = []
    waiting = 0
    for stamp in stamps:
        waiting += 1
        if stamp:
            each = max(0.0, (stamp - since) / waiting) if since else 0.0
            seconds += [each] * waiting
            since = stamp
            waiting = 0
    return seconds + [0.0] * waiting


BLOCK = 2048  # tasks that are read, and pushed, at once
RAMP, ONES = (  # the words 0, 1, 2, … and 1, 1, 1, … as one big integer each
    int.from_bytes(array.array("I", words).tobytes(), sys.byteorder)
    for words in (range(BLOCK), itertools.repeat(1, BLOCK))
)


def as_u32(numbers: Sequence[int]) -> array.array[int]:
    """The lower 32 bits of numbers. A long range is one addition of big integers, at a fifth of the cost."""
    if isinstance(numbers, range) and BLOCK // 8 <= len(numbers) <= BLOCK and numbers.start + BLOCK < 1 << 32:
        return array.array("I", (RAMP + numbers.start * ONES).to_bytes(4 * BLOCK, sys.byteorder))[: len(numbers)]
    return array.array("I", [number & 0xFFFFFFFF for number in numbers])


# ---------------------------------------------------------------------------------------------------------------------
# Functions, payloads and values: how they travel.
# ---------------------------------------------------------------------------------------------------------------------

Function = Callable[..., Any]
ERROR_LENGTH = 4000  # characters of an error's text that are kept


def encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def decode_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def to_bytes(payload: Any) -> bytes:
    """A payload as it travels. Raises TypeError for what is neither bytes, str nor a ctypes.Structure."""
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        return encode_text(payload)
    if isinstance(payload, ctypes.Structure):
        return bytes(payload)
    raise TypeError(f"a payload is bytes, str or a ctypes.Structure, not {type(payload).__name__}")


def describe(error: BaseException) -> str:
    """The text of an error, whatever its own __str__ does, and of bounded length."""
    try:
        text = str(error)
    except BaseException as second:
        text = f"(its text raised {type(second).__name__})"
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:ERROR_LENGTH]


def _annotations(function: Function) -> tuple[list[Any], list[Any]]:
    """The types that a function's first parameter and its return value name, unions taken apart; [] for none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in
        return [], []
    parameters = [p for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    given = parameters[0].annotation if parameters else None
    return _members(given, function), _members(signature.return_annotation, function)


def _members(hint: Any, function: Any) -> list[Any]:
    """The types of an annotation. Text is evaluated, as inspect would, which gives up all for one that cannot be."""
    if isinstance(hint, str):
        function = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
        names = getattr(function, "__globals__", None) or getattr(type(function).__call__, "__globals__", {})
        try:
            hint = eval(hint, names)  # noqa: S307
        except Exception:  # whatever is not there at run time
            return []
    return list(typing.get_args(hint)) or [hint]


def _is_structure(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, ctypes.Structure)


def structures_of(functions: Iterable[Function]) -> list[type[ctypes.Structure]]:
    """The Structures that the functions' annotations name, in order: only these can travel back as values."""
    named = [kind for function in functions for kinds in _annotations(function) for kind in kinds]
    return list(dict.fromkeys(kind for kind in named if _is_structure(kind)))[: IN_FILE - STRUCTURE]


def adapt(function: Function) -> Callable[[bytes], Any]:
    """`function` as a function of bytes: its first parameter's annotation says what it is given."""
    for kind in _annotations(function)[0]:
        if kind is str:
            return lambda payload: function(decode_text(payload))
        if _is_structure(kind):
            return lambda payload: function(kind.from_buffer_copy(payload))
    return function


class _Failure(str):
    """In place of a value: the task failed, with this text."""


# What a record in the log begins with: what its bytes are. STRUCTURE + i: of the i-th Structure that functions name.
BYTES, STR, FAILURE, STRUCTURE = range(4)
IN_FILE = 0x80  # added to it: they are in a file beside the segment, and the record has their number


def encode_value(value: Any, structures: Sequence[type[ctypes.Structure]]) -> tuple[int, bytes]:
    """A value as the head and the bytes of a record. A value that cannot travel becomes a failure that says so."""
    if isinstance(value, bytes):
        return BYTES, value
    if isinstance(value, _Failure):
        return FAILURE, value.encode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return STR, encode_text(value)
    if type(value) in structures:
        return STRUCTURE + structures.index(type(value)), bytes(value)
    name = type(value).__name__
    if isinstance(value, ctypes.Structure):
        text = f"TypeError: returned the Structure {name}, which no annotation names: annotate the function's return"
    else:
        text = f"TypeError: returned {name}: a function returns bytes, str, a ctypes.Structure or None"
    return FAILURE, encode_text(text)


def decode_value(head: int, data: bytes, structures: Sequence[type[ctypes.Structure]]) -> Any:
    """The value that `encode_value` encoded. Raises IndexError or ValueError where it is not one."""
    if head == BYTES:
        return data
    if head == STR:
        return decode_text(data)
    if head == FAILURE:
        return _Failure(decode_text(data))
    return structures[head - STRUCTURE].from_buffer_copy(data)


REFERENCE = struct.Struct("=QQQ")  # what a slot holds of a payload out of line: the file's number, or 0 for the heap,
# and the payload's offset and length there
SIZE = struct.Struct("=Q")  # what a record holds of a value in a file: its length
REFERRING = 1 + SIZE.size  # bytes of such a record


# ---------------------------------------------------------------------------------------------------------------------
# Sources: where tasks come from.
# ---------------------------------------------------------------------------------------------------------------------


class Rejected(NamedTuple):
    """In place of an item: a task that cannot be sent, and becomes a failed result with this error."""

    function: str
    payload: Any
    error: str


class Source:
    """Where a job's tasks come from.

    exhausted: there are no more. finite: all of them can be read at once. problem: why it ended early, if it did."""

    exhausted = False
    finite = False
    problem = ""

    def take(self, room: int) -> Sequence[Any]:
        """Up to `room` items, those that are there; they are payloads, (function, payload) pairs or Rejected."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor to wait for when `take` gave nothing; -1 where it waits itself, -2 where somebody rings."""
        return -1


class IterableSource(Source):
    """Tasks from any iterable, taken as they come: what it has yielded is passed on before it is waited for again."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self._sequence = tasks if isinstance(tasks, (list, tuple)) else None
        self._iterator = iter(tasks)
        self._taken = 0
        self.finite = self._sequence is not None

    def take(self, room: int) -> Sequence[Any]:
        """Up to `room` items. Where the iterable pauses for more than a millisecond, those before the pause."""
        room = min(room, BLOCK)
        if self._sequence is not None:
            items = self._sequence[self._taken : self._taken + room]
            self._taken += len(items)
            self.exhausted = self._taken >= len(self._sequence)
            return items
        clock, taken = time.perf_counter, []
        until = clock() + 0.001
        for item in self._iterator:
            taken.append(item)
            if len(taken) >= room or clock() > until:
                return taken
        self.exhausted = True
        return taken


class LineParser:
    """Makes tasks of lines: of FUNCTION PAYLOAD, or, if a line is `whole`, of a payload for the first function. Empty
    lines are skipped, and lines that start with #, if those are comments; and tasks that are done, as often as that."""

    def __init__(self, names: Sequence[str], comments: bool, whole: bool = False) -> None:
        self.whole, self._comments, self._only, self._line = whole, comments, names[0], 0
        self._known = {name.encode(): name for name in names}
        self.done: collections.Counter[bytes] = collections.Counter()  # by task_digest
        self.left_out = 0

    def __call__(self, lines: Sequence[bytes]) -> list[Any]:
        if self.whole:
            return self.rest([line for line in lines if line and not (self._comments and line.startswith(b"#"))])
        items: list[Any] = []
        for number, line in enumerate(lines, self._line + 1):
            word, _, payload = line.partition(b" ")
            if word in self._known:
                items.append((self._known[word], payload))
            elif (line := line.lstrip()) and not line.startswith(b"#"):
                word = line.split(None, 1)[0]
                items.append(self.pair(word, line[len(word) + 1 :], f"line {number:,}: "))
        self._line += len(lines)
        return self.rest(items)

    def rest(self, items: list[Any]) -> list[Any]:
        """Those of these tasks that are not done."""
        return [item for item in items if not self._is_done(item)] if self.done else items

    def _is_done(self, item: Any) -> bool:
        digest = task_digest(*((self._only, item) if self.whole else item[:2]))
        known = self.done[digest] > 0
        if known:
            self.done[digest] -= 1
            self.left_out += 1
        return known

    def pair(self, word: bytes, payload: bytes, where: str = "") -> Any:
        """A task of a function's name and its payload."""
        if word in self._known:
            return self._known[word], payload
        text = decode_text(word)
        return Rejected(text, payload, where + no_such_function(text, self._known.values()))


class LineSource(Source):
    """Tasks from a file of lines, as they come. A line ends at a newline and nowhere else; a carriage return before
    it, and a byte order mark at the start of the file, are dropped."""

    def __init__(self, path: str, parse: LineParser) -> None:
        self._parse, self.tasks = parse, 0
        try:
            self._file = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            info = os.fstat(self._file)
            if stat.S_ISDIR(info.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except OSError as error:
            why = f"cannot read {path!r}: {error.strerror}"
            raise UsageError(f"{why}; give a file of tasks, or - for standard input") from None
        self.finite, self._size = stat.S_ISREG(info.st_mode), info.st_size
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLIN)
        self._mark = b"\xef\xbb\xbf"  # a byte order mark, which the first line may begin with
        self._parts: list[bytes] = []  # of the line that is not yet whole
        self._items: list[Any] = []  # read, the next one last
        self._bytes = 0

    def fileno(self) -> int:
        return -1 if self.finite else self._file

    def total(self) -> int | None:
        """How many tasks there are, or an estimate by bytes; None for a stream that has not ended."""
        known, left_out = self.tasks + len(self._items), self._parse.left_out
        if self._file < 0:
            return known
        return int((known + left_out) * self._size / self._bytes) - left_out if self.finite and self._bytes else None

    def take(self, room: int) -> Sequence[Any]:
        if not self._items and self._file >= 0 and self._poll.poll(0):
            self._read()
        room = min(room, BLOCK)
        items = self._items[-room:][::-1]
        del self._items[-room:]
        self.exhausted = self._file < 0 and not self._items
        self.tasks += len(items)
        return items

    def _read(self) -> None:
        """Read a block, and make tasks of the lines that are whole now."""
        try:
            block = os.read(self._file, 1 << 18)
        except OSError as error:
            block, self.problem = b"", f"reading the tasks stopped: {error.strerror}"
        self._bytes += len(block)
        if not block:
            os.close(self._file)
            self._file = -1
        self._parts.append(block)
        if b"\n" in block or not block:  # the last line may end with the file
            lines = b"".join(self._parts).replace(b"\r\n", b"\n").split(b"\n")
            self._parts = [lines.pop()] if block else []
            lines[0] = lines[0].removeprefix(self._mark)
            self._mark = b""
            self._items = self._parse(lines)[::-1]


class QuerySource(Source):
    """Tasks from the rows of a SQLite query: one column is a line, two are a function and its payload."""

    def __init__(self, path: str, query: str, parse: LineParser) -> None:
        import sqlite3  # here, since few runs need it
        import urllib.parse

        self._parse, self.tasks, self._rows, self._error = parse, 0, None, sqlite3.Error
        if not os.path.isfile(path):
            raise UsageError(f"{path!r} is not a file; with --query, TASKS is a SQLite file")
        try:
            base = sqlite3.connect(f"file:{urllib.parse.quote(os.path.abspath(path))}?mode=ro", uri=True)
            weakref.finalize(self, base.close)
            base.text_factory = bytes
            deny, attach, allow = sqlite3.SQLITE_DENY, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_OK
            base.set_authorizer(lambda action, *_: deny if action == attach else allow)  # that would make a file
            deadline = time.monotonic() + 0.2
            base.set_progress_handler(lambda: time.monotonic() > deadline, 10000)
            with contextlib.suppress(sqlite3.OperationalError):  # it takes too long to count; a wrong query fails below
                self._rows = base.execute(f"SELECT count(*) FROM ({query.strip().rstrip(';')})").fetchone()[0]  # noqa: S608
            base.set_progress_handler(None, 0)
            self._cursor = base.execute(query)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise UsageError(f"{path!r}: --query {query!r}: {describe(error)}") from None
        self._columns = columns = len(self._cursor.description or ())
        if columns not in (1, 2):
            raise UsageError(f"--query {query!r}: {columns} columns; one is a line, two are a function and its payload")
        if columns == 2 and parse.whole:
            raise UsageError(f"--query {query!r}: two columns name functions; --call and --shell take one")

    def total(self) -> int | None:
        return self.tasks if self.exhausted else self._rows and self._rows - self._parse.left_out

    def take(self, room: int) -> Sequence[Any]:
        rows: list[tuple[bytes, ...]] = []
        try:
            for row in itertools.islice(self._cursor, min(room, BLOCK)):
                rows.append(tuple(map(_as_bytes, row)))
        except self._error as error:
            self.problem = f"reading the tasks stopped: {describe(error)}"
        self.exhausted = not rows or bool(self.problem)
        if self._columns == 1:
            items = self._parse([line for (line,) in rows])
        else:
            items = self._parse.rest([self._parse.pair(name, payload) for name, payload in rows])
        self.tasks += len(items)
        return items


AHEAD_SECONDS = 0.001  # for how long an Executor gives its workers work in advance,
AHEAD_CALLS = 4  # and how many calls for each of them at most


@dataclasses.dataclass(slots=True)
class Call:
    """A call that an Executor was asked for. `what`: (function, args, kwargs), or that pickled, once it has begun."""

    future: Any
    what: Any
    function: str  # its name
    attempts: int = 0

    def begin(self) -> bool:
        """Pickle what to call. Return False if there is nothing to call: it is cancelled, or cannot be pickled."""
        if self.attempts:
            return True
        if not self.future.set_running_or_notify_cancel():
            return False
        try:
            self.what = pickled(self.what)
        except BaseException as error:
            self.future.set_exception(unpickled(pickled_error(error))[1])
            return False
        return True


class Calls(Source):
    """The calls that an Executor was asked for, and the thread in which its Supervisor makes them.

    A future cannot be cancelled any more once the Supervisor has its call. So the Supervisor gets one call more than
    there are workers, and further ones only while calls are short. The lock guards `_over` and the use of the
    Supervisor's bell. It may be acquired again, since a collection of garbage can call end().
    """

    def __init__(self, supervisor: Supervisor, workers: int, retries: int) -> None:
        self._futures: Any = importlib.import_module("concurrent.futures")
        self._supervisor: Supervisor | None = supervisor  # None once it has ended
        self._workers = workers
        self._retries = retries
        self._owner = os.getpid()
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._over = ""  # what came, after which no calls are taken
        self._rung = self._cancel = self._abort = False
        self._waiting: collections.deque[Call] = collections.deque()
        self._given: dict[int, Call] = {}  # those that the Supervisor has, by tsk_id
        self._tsk_id = 0  # the last one
        self._seconds = 1.0  # that a call takes, on average over the last ones
        supervisor._pool.chosen_fork = True  # the thread is ours, so a warning about it says nothing to the user
        self._thread = threading.Thread(target=self._serve, args=(supervisor,), name="shmqueue-executor")
        with contextlib.ExitStack() as undo:
            undo.push(supervisor)
            self._thread.start()
            undo.pop_all()
        # Python ends a child of multiprocessing in another order, and would close the Supervisor first.
        self._at_exit = multiprocessing.util.Finalize(None, self.end, kwargs={"wait": True}, exitpriority=20)
        handlers.executors.add(self)

    # In any thread.

    def add(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Take a call, and return its future."""
        call = Call(self._futures.Future(), (function, args, kwargs), function_name(function))
        if os.getpid() != self._owner:
            raise RuntimeError("cannot schedule new futures in a forked child: make an Executor of its own")
        with self._lock:
            if self.problem:
                raise self._futures.process.BrokenProcessPool(self.problem)
            if self._over:
                raise RuntimeError(f"cannot schedule new futures after {self._over}")
            self._waiting.append(call)
            self._ring_locked()
        return call.future

    def end(self, after: str = "shutdown", *, cancel: bool = False, abort: bool = False, wait: bool = False) -> None:
        """Take no more calls. cancel: those that have not begun. abort: kill the workers, and let all futures fail."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._over = self._over or after
            self._cancel |= cancel
            self._abort |= abort
            self._ring_locked()
        if wait:
            self._ended.wait()  # first: until Python 3.12 a join() that a signal interrupts takes the thread for ended
            self._thread.join()
            handlers.exit_on_signals()  # the thread could not remove them

    def _ring_locked(self) -> None:
        if self._supervisor is not None and not self._rung:
            self._rung = True
            self._supervisor._pool.wake_supervisor()

    # In the thread.

    def _serve(self, supervisor: Supervisor) -> None:
        """Make the calls, until there are no more."""
        try:
            with supervisor:
                try:
                    for result in supervisor.run(self):
                        self._settle(result)
                    supervisor.abort()  # there is nothing left to do: do not wait for workers that are still starting
                finally:
                    with self._lock:
                        self._supervisor = None
        except BaseException as error:
            self._fail(error)
        self._at_exit.cancel()
        handlers.executors.discard(self)
        self._ended.set()

    def fileno(self) -> int:
        return -2

    def take(self, room: int) -> Sequence[bytes]:
        self._rung = False
        if self._abort:
            raise InterruptedError("this Executor was interrupted")
        ahead = min(AHEAD_CALLS, int(AHEAD_SECONDS / max(self._seconds, 1e-9)))
        room = min(room, 1 + self._workers * (1 + ahead) - len(self._given))
        payloads: list[bytes] = []
        while self._waiting and (len(payloads) < room or self._cancel):
            call = self._waiting.popleft()
            if len(payloads) >= room:
                call.future.cancel()
            if call.begin():
                self._tsk_id += 1
                self._given[self._tsk_id] = call
                payloads.append(call.what)
        self.exhausted = bool(self._over) and not (self._waiting or self._given)
        return payloads

    def _settle(self, result: TaskResult) -> None:
        """Give a future its outcome, or have its call made again."""
        if result.status == "cancelled":
            return  # the Supervisor gives up, and raises the reason at the end
        call = self._given.pop(result.tsk_id)
        call.attempts += 1
        self._seconds += (result.seconds - self._seconds) / 8
        try:
            succeeded, value = unpickled(result.value) if result.status == "ok" else (False, None)
        except BaseException as error:
            succeeded, value = False, error.with_traceback(None)
        if succeeded:
            call.future.set_result(value)
        elif call.attempts <= self._retries:
            self._waiting.appendleft(call)
        elif value is not None:
            call.future.set_exception(value)
        else:
            result = result._replace(function=call.function, payload=None, attempts=call.attempts)
            call.future.set_exception(TaskError(result))

    def _fail(self, error: BaseException) -> None:
        """The Supervisor has ended early: so do all calls."""
        with self._lock:
            self.problem = self._over = describe(error)
        for call in (*self._given.values(), *self._waiting):
            if call.future.running() or call.future.set_running_or_notify_cancel():
                call.future.set_exception(self._futures.process.BrokenProcessPool(self.problem))
        self._given.clear()
        self._waiting.clear()


def _as_bytes(value: Any) -> bytes:
    return b"" if value is None else value if isinstance(value, bytes) else str(value).encode()


# ---------------------------------------------------------------------------------------------------------------------
# Results: where the command line keeps outcomes, and what --resume finds there.
# ---------------------------------------------------------------------------------------------------------------------


class Results:
    """Where results are written as they come; flushed often, so that a killed run keeps what was finished.

    Made, it has read what the file holds, if that is to be resumed, and changed nothing; it is written from `begin` on.
    A subclass knows a format: `read` returns (status, function, payload) of each record; `open` empties the file, or
    cuts off what a kill has left of a last record.
    """

    FIELDS = TaskResult._fields
    broken: tuple[type[Exception], ...] = (OSError,)  # what a file that cannot be written raises
    _file: Any = None

    def __init__(self, path: str, resume: bool) -> None:
        self.path, self.problem = path, ""
        self._records = self._safe = 0  # all there are, and those that the file holds for certain
        self.done: collections.Counter[bytes] = collections.Counter()  # of the tasks that the file holds as ok
        self._resume = resume and os.path.getsize(path) > 0
        with self._usable():
            for status, function, payload in self.read():
                self._records += 1
                if status == "ok":
                    self.done[task_digest(function, encode_text(payload))] += 1
        self._safe = self._records

    def begin(self) -> None:
        with self._usable():
            self.open()

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a foreign file leads to
            text = str(error) if isinstance(error, ValueError) else describe(error)
            raise UsageError(f"--results {self.path}: cannot be used: {text}") from None

    def read(self) -> Iterable[Sequence[str]]:
        raise NotImplementedError

    def open(self) -> None:
        raise NotImplementedError

    def put(self, row: list[Any]) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @property
    def lost(self) -> int:
        return self._records - self._safe

    def write(self, result: TaskResult) -> None:
        row = list(result)
        row[2], row[4] = _as_text(result.payload), _as_text(result.value)
        self._records += 1
        self._attempt(self.put, row)
        if self.lost >= 256:
            self.save()

    def save(self) -> bool:
        """Bring what was written to the file; whether all is well."""
        if self._attempt(self.flush):
            self._safe = self._records
        return not self.problem

    def finish(self) -> None:
        """Save and close; if that failed, find out what the file holds."""
        if self._file is None:  # interrupted before it began
            return
        self.save()
        if not self._attempt(self.close) and self.path != "-":
            with contextlib.suppress(UsageError):  # it cannot be read: what was flushed counts
                self._safe = type(self)(self.path, True)._records

    def _attempt(self, action: Callable[..., object], *arguments: Any) -> bool:
        """Do something with the file, unless that has failed before; after a failure the run goes on without it."""
        if not self.problem:
            try:
                action(*arguments)
                return True
            except self.broken as error:
                self.problem = describe(error)
                with contextlib.suppress(*self.broken):
                    self.close()
        return False


class JsonLines(Results):
    """A JSON object a line; bytes are text by surrogateescape."""

    HEADER, END, CLOSE = b"", b"\n", b"}"  # CLOSE: what shows that a record is whole, if its END is not there
    START = b'{"tsk_id": '  # of a record

    def read(self) -> Iterator[Sequence[str]]:
        self._end, self._lead = 0, self.HEADER  # what is kept of the file, and what the next record needs before it
        if not self._resume:
            return
        with open(self.path, "rb") as file:
            head = file.read(len(self.HEADER))
            if not self.HEADER.startswith(head):
                raise ValueError(f"it begins with {head!r}, not with the header of results")
            if head == self.HEADER:
                self._end, self._lead = len(head), b""
                yield from self._read_records(file)

    def _read_records(self, file: Iterable[bytes]) -> Iterator[Sequence[str]]:
        number, lines = 1 + self.HEADER.count(b"\n"), []
        for line in file:
            lines.append(line)
            if self.is_end(line):
                yield self.parse(b"".join(lines)) or self.refuse(number)
                self._end += sum(map(len, lines))
                number, lines = number + len(lines), []
        last = b"".join(lines).rstrip(b"\r\n")
        if last.endswith(self.CLOSE) and (record := self.parse(last)):  # an editor may have taken its end
            yield record
            self._end, self._lead = self._end + len(last), self.END
        elif lines and not self.is_torn(lines):
            self.refuse(number)

    def open(self) -> None:
        where = os.dup(1) if self.path == "-" else self.path
        self._file = open(where, "r+b" if self._end else "wb", 1 << 20)  # noqa: SIM115
        if self._end:
            self._file.seek(self._end)
            self._file.truncate()
        self._file.write(self._lead)

    def is_end(self, line: bytes) -> bool:
        """Whether a record ends with the next line of the file."""
        return line.endswith(b"\n")

    def is_torn(self, lines: Sequence[bytes]) -> bool:
        """Whether these last lines, which do not end as a record does, are the beginning of one."""
        return self.START.startswith(lines[0][: len(self.START)])

    def parse(self, record: bytes) -> Sequence[str] | None:
        """Its status, function and payload; None for what is not a record."""
        try:
            fields = self.fields(record)
            found = [fields[name] for name in ("status", "function", "payload")]
        except (ValueError, TypeError, LookupError, RecursionError, csv.Error):
            return None
        return found if all(isinstance(text, str) for text in found) and found[0] in OUTCOMES else None

    def refuse(self, number: int) -> typing.NoReturn:
        raise ValueError(f"what begins in line {number:,} is not a record of results; mend it, or give another file")

    def fields(self, record: bytes) -> Any:
        return json.loads(record)

    def put(self, row: list[Any]) -> None:
        self._file.write(json.dumps(dict(zip(self.FIELDS, row))).encode() + b"\n")


NUL = "\U0010ffff"  # in its place, for the csv module of Python 3.10, which takes none: not a character


class Csv(JsonLines):
    """Comma-separated values with a header; bytes as they are."""

    HEADER, END, CLOSE = (",".join(Results.FIELDS) + "\r\n").encode(), b"\r\n", b"\r\n"
    _quotes = 0

    def is_end(self, line: bytes) -> bool:
        self._quotes += line.count(b'"')
        return line.endswith(b"\r\n") and self._quotes % 2 == 0

    def is_torn(self, lines: Sequence[bytes]) -> bool:
        """A kill tears the last record only: if whole ones follow its first line, a quote there is wrong."""
        return not any(self.parse(line) for line in lines[1:] if line.endswith(self.END))

    def fields(self, record: bytes) -> Any:
        csv.field_size_limit(sys.maxsize)
        (row,) = csv.reader([decode_text(record).replace("\0", NUL)], strict=True)
        return dict(zip(self.FIELDS, (field.replace(NUL, "\0") for field in row), strict=True))

    def put(self, row: list[Any]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerow([x.replace("\0", NUL) if isinstance(x, str) else x for x in row])
        self._file.write(encode_text(text.getvalue().replace(NUL, "\0")))


class Sqlite(Results):
    """The table `results` of a SQLite file; what is not UTF-8 is a blob."""

    def read(self) -> Iterator[Sequence[str]]:
        import sqlite3

        self.broken = (OSError, sqlite3.Error)
        self._connect = functools.partial(sqlite3.connect, self.path)
        with contextlib.closing(self._connect()) as base:
            columns = tuple(name for _, name, *_ in base.execute("PRAGMA table_info(results)"))
            if self._resume and columns not in ((), self.FIELDS):
                raise ValueError(f"its table results has the columns {', '.join(columns)}")
            base.execute("BEGIN IMMEDIATE")  # raises if somebody else writes
            query = "SELECT rowid, status, function, payload FROM results"
            for number, *row in base.execute(query) if self._resume and columns else ():
                if not all(isinstance(text, (str, bytes)) for text in row):
                    raise ValueError(f"row {number:,} of its table results is not a record of results")
                yield [decode_text(text) if isinstance(text, bytes) else text for text in row]

    def open(self) -> None:
        self._file = self._connect()
        try:
            self._file.execute("PRAGMA journal_mode = WAL")  # others can read it meanwhile
            self._file.execute("PRAGMA synchronous = OFF")  # a killed process loses nothing by it
            with self._file:
                self._file.execute("BEGIN IMMEDIATE")
                if not self._resume:
                    self._file.execute("DROP TABLE IF EXISTS results")
                self._file.execute(f"CREATE TABLE IF NOT EXISTS results ({', '.join(self.FIELDS)})")
        except BaseException:
            self._file.close()
            raise

    def put(self, row: list[Any]) -> None:
        for at, value in enumerate(row):
            if isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError:
                    row[at] = encode_text(value)
        self._file.execute(f"INSERT INTO results VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608

    def flush(self) -> None:
        self._file.commit()

    def close(self) -> None:
        with contextlib.closing(self._file):
            self._file.commit()


FORMATS: dict[str, type[Results]] = {"-": JsonLines, ".jsonl": JsonLines, ".csv": Csv, ".sqlite": Sqlite}


def results_format(path: str) -> type[Results]:
    """The class that writes results to a file of this name."""
    kind = FORMATS.get(path if path == "-" else os.path.splitext(path)[1])
    if kind is None:
        raise UsageError(f"--results {path}: must end with .jsonl, .csv or .sqlite, or be - for standard output")
    return kind


def task_digest(function: str, payload: bytes) -> bytes:
    """Sixteen bytes by which a recorded task is known again."""
    return hashlib.blake2b(encode_text(function) + b"\0" + payload, digest_size=16).digest()


def _as_text(value: Any) -> str | None:
    return None if value is None else decode_text(to_bytes(value))


# ---------------------------------------------------------------------------------------------------------------------
# The screen: what a run shows while it goes on.
# ---------------------------------------------------------------------------------------------------------------------


class WorkerRow(NamedTuple):
    """A worker on the screen. state: run, sleep or dead. in_hand: tsk_id, None for nothing; for `held` seconds."""

    number: int
    pid: int
    state: str
    function: str
    done: int
    failed: int
    rate: float
    cpu: float | None
    rss: int | None
    in_hand: int | None
    held: float


class Snapshot(NamedTuple):
    """All that a frame shows. total: tasks in all, None where it is not known; rates: tasks a second, oldest first."""

    title: str
    name: str
    strategy: str
    seconds: float
    counts: Mapping[str, int]
    retried: int
    total: int | None
    rates: Sequence[float]
    ring: int
    num_slots: int
    workers: Sequence[WorkerRow]
    failures: Sequence[str]
    state: str = ""
    keys: str = ""

    @property
    def done(self) -> int:
        return sum(self.counts.values())

    @property
    def rate(self) -> float:
        return self.rates[-1] if self.rates else 0.0


# The columns of the table: side, width, text of a row; and their order of importance, the first to go last.
COLUMNS: dict[str, tuple[str, int, Callable[[WorkerRow], str]]] = {
    "worker": (">", 6, lambda row: str(row.number)),
    "pid": (">", 7, lambda row: str(row.pid)),
    "state": ("<", 5, lambda row: row.state),
    "function": ("<", 12, lambda row: row.function or "–"),
    "done": (">", 11, lambda row: f"{row.done:,}"),
    "failed": (">", 6, lambda row: f"{row.failed:,}"),
    "tasks/s": (">", 9, lambda row: f"{row.rate:,.0f}"),
    "cpu": (">", 5, lambda row: "" if row.cpu is None else f"{row.cpu:.0f} %"),
    "rss": (">", 7, lambda row: "" if row.rss is None else f"{row.rss / 2**20:,.0f} MB"),
    "in hand": ("<", 20, lambda row: "–" if row.in_hand is None else f"#{row.in_hand:,}  {row.held:.2f} s"),
}
IMPORTANCE = ("worker", "state", "done", "tasks/s", "failed", "in hand", "function", "cpu", "rss", "pid")


def printable(text: str) -> str:
    """`text` without what could command a terminal: controls, C1, direction marks and the like become "�"."""
    return "".join(c if c.isprintable() else " " if c in "\t\n" else "�" for c in text)


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def bar(fraction: float, width: int) -> str:
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(width, "░")


def sparkline(rates: Sequence[float]) -> str:
    top = max(rates, default=0.0) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(rate / top * 8))] for rate in rates)


def spread(left: str, right: str, width: int) -> str:
    """`left` and `right` at the ends of a line; left alone where both do not fit."""
    gap = width - len(left) - len(right)
    return left + " " * gap + right if gap >= 2 else left[:width]


def render(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """A frame of at most `height` lines of at most `width` characters; pure, so that it can be tested line by line."""
    head = _render_head(snapshot, width - 2)
    foot = [snapshot.keys] if snapshot.keys and height >= len(head) + 6 else []
    free = height - len(head) - 1 - len(foot)
    most = min(5, max(0, (free - 2) // 3))
    failures = ["", *snapshot.failures[-most:]] if most and snapshot.failures else []
    lines = [*head, "", *_render_table(snapshot.workers, width - 2, free - len(failures)), *failures]
    lines += [""] * (height - 1 - len(lines)) + foot if foot else []
    return [(" " + printable(line))[:width].rstrip() for line in lines[:height]]


def _render_head(snapshot: Snapshot, width: int) -> list[str]:
    counts, done, total, rate = snapshot.counts, snapshot.done, snapshot.total, snapshot.rate
    title = snapshot.title[: max(8, width // 2)] + (f"  [{snapshot.state}]" if snapshot.state else "")
    about = f"{counted(len(snapshot.workers), 'worker')} · {snapshot.strategy} · {snapshot.name}"
    first = spread(f"shmqueue  {title}", f"{about}      {clock(snapshot.seconds)}", width)
    second = f"{done:,} tasks done"
    if total:
        left = f"eta {clock((total - done) / rate)}" if rate > 0 else "eta –"
        parts = [f"  {done / total:6.1%}", f"{done:,} / {total:,}", left]
        while len("   ".join(parts)) > width - 8 and len(parts) > 1:
            parts.pop()
        tail = "   ".join(parts)
        second = bar(done / total, max(4, width - len(tail))) + tail
    bad = [f"{name} {count:,}" for name, count in counts.items() if name != "ok" and count] or ["failed 0"]
    retried = [f"retried {snapshot.retried:,}"] if snapshot.retried else []
    outcomes = "  ".join([f"ok {counts['ok']:,}", *bad, *retried])
    speed = f"{rate:,.0f} tasks/s  {sparkline(snapshot.rates[-12:])}"
    used = f"ring {bar(snapshot.ring / snapshot.num_slots, 10)} {snapshot.ring:,} / {snapshot.num_slots:,}"
    third = "   ".join((speed, used, outcomes))
    return [first, second, third] if len(third) <= width else [first, second, spread(speed, used, width), outcomes]


def _render_table(rows: Sequence[WorkerRow], width: int, height: int) -> list[str]:
    """As many columns and rows as fit; workers that do not are summed up in a line."""
    names: list[str] = []
    for name in IMPORTANCE:
        if sum(COLUMNS[each][1] + 2 for each in [*names, name]) <= width + 2:
            names.append(name)
    columns = {name: column for name, column in COLUMNS.items() if name in names}

    def line(texts: Iterable[str]) -> str:
        return "  ".join(f"{text:{side}{size}.{size}}" for text, (side, size, _) in zip(texts, columns.values()))

    fit = len(rows) if len(rows) <= height - 1 else max(0, height - 2)
    table = [line(columns)] + [line(text(row) for _, _, text in columns.values()) for row in rows[:fit]]
    if rest := rows[fit:]:
        busy, done, rate = sum(r.state == "run" for r in rest), sum(r.done for r in rest), sum(r.rate for r in rest)
        table.append(f"and {len(rest):,} more: {busy} run, {done:,} done, {rate:,.0f} tasks/s")
    return table[: max(0, height)]


class Progress:
    """Keeps the rates, and draws nothing; base of what does."""

    SECONDS = math.inf  # from one drawing to the next

    def __init__(self, title: str = "", total: Callable[[], int | None] = lambda: None) -> None:
        self.title, self.total = title, total
        self.state = self.keys = ""  # what the run is doing, if not its work; the keys it listens to
        self._rates: collections.deque[float] = collections.deque(maxlen=64)
        self._worker_rates: list[float] = []
        self._sample: tuple[float, Iterable[int]] = (time.monotonic(), itertools.repeat(0))
        self._next = time.monotonic() + self.SECONDS

    def rates(self, done: Sequence[int]) -> tuple[Sequence[float], Sequence[float]]:
        """Note what each worker has done until now; tasks a second, of all over time and of each just now."""
        now, (before, done_before) = time.monotonic(), self._sample
        if now - before >= 1.0 or not self._rates:
            self._worker_rates = [(a - b) / max(now - before, 0.1) for a, b in zip(done, done_before)]
            self._rates.append(sum(self._worker_rates))
            self._sample = (now, list(done))
        return list(self._rates), self._worker_rates

    def draw(self, snapshot: Callable[[], Snapshot]) -> None:
        """Show a snapshot, if it is time to; called several times a second."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.SECONDS
            self.show(snapshot())

    def show(self, shot: Snapshot) -> None:
        raise NotImplementedError

    def write(self, text: str) -> None:
        """Write to the error stream in one piece; if it is closed, no more."""
        data = text.encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            while data and sys.__stderr__ is not None:
                data = data[os.write(2, data) :]

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainLines(Progress):
    """Says where the run is by a line every few seconds."""

    SECONDS = 5.0

    def show(self, shot: Snapshot) -> None:
        of, bad = f" of {shot.total:,}" if shot.total else "", shot.done - shot.counts["ok"]
        self.write(f"shmqueue: {shot.done:,}{of} tasks done, {bad:,} not ok, {shot.rate:,.0f} tasks/s\n")


class Screen(Progress):
    """Draws frames on the alternate screen of the error stream's terminal, which is as it was afterwards."""

    SECONDS = 0.1
    ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", "\x1b[?7h\x1b[?25h\x1b[?1049l"
    _entered = False

    def show(self, shot: Snapshot) -> None:
        if in_foreground(2):
            width, height = self.size()
            lines = [line if len(line) == width else line + "\x1b[K" for line in render(shot, width, height)]
            enter, self._entered = "" if self._entered else self.ENTER, True
            self.write(enter + "\x1b[H" + "\r\n".join(lines) + ("\x1b[J" if len(lines) < height else ""))

    @staticmethod
    def size() -> tuple[int, int]:
        with contextlib.suppress(OSError):
            if all(size := os.get_terminal_size(2)):
                return size
        return shutil.get_terminal_size()

    def close(self) -> None:
        if self._entered:
            self._entered = False  # a later frame enters again
            self.write(self.LEAVE)


def can_draw() -> bool:
    """Whether the error stream is a terminal that knows commands."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def in_foreground(descriptor: int) -> bool:
    """Whether this process may write to the terminal; yes where it is not its controlling terminal."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return True


def choose_run(name: str) -> str:
    """The run of this name that is alive; without a name, the only one."""
    alive = runs()
    found = [each for each in alive if name in ("", each)]
    if len(found) != 1:
        raise UsageError(f"--watch {name}: " + (f"give one of {', '.join(alive)}" if alive else "no run is alive"))
    if not can_draw():
        raise UsageError("--watch: draws on the error stream, which is not a terminal that can be drawn on")
    return found[0]


def watch(name: str, signals: Iterable[int]) -> None:
    """Show the screen of another supervisor's run until it ends or Ctrl-C; reads its file, and nothing else.

    signals: those that this thread can process."""
    screen = Screen()

    def pause(number: int, frame: object) -> None:
        screen.close()
        os.kill(os.getpid(), signal.SIGSTOP)

    for number in signals:
        if number != signal.SIGINT:
            handlers.exchange(number, pause if number == signal.SIGTSTP else handlers.exit)
    try:
        while name in runs():
            with contextlib.suppress(FileNotFoundError):  # it has just begun, or just ended
                with open(os.path.join(shared_directory(), f"{name}.watch"), encoding="utf-8") as file:
                    shot = Snapshot(*json.load(file))
                screen.show(shot._replace(workers=[WorkerRow(*row) for row in shot.workers], keys="Ctrl-C leaves"))
            time.sleep(Screen.SECONDS)
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise UsageError(f"--watch {name}: its snapshot cannot be shown: {describe(error)}") from None
    finally:
        screen.close()


# ---------------------------------------------------------------------------------------------------------------------
# The command line.
# ---------------------------------------------------------------------------------------------------------------------


class UsageError(Exception):
    """Bad usage or input: what is printed before exit code 2."""


def echo(payload: bytes) -> bytes:
    """The payload."""
    return payload


def sleep(payload: str) -> None:
    """Wait so many seconds."""
    time.sleep(float(payload))


def sha256(payload: bytes) -> str:
    """The SHA-256 of the file at this path, in hex."""
    digest = hashlib.sha256()
    with open(payload, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def noop(payload: bytes) -> None:
    """Nothing."""


def shell(payload: bytes) -> bytes:
    """What a shell command prints; it fails with what it printed on its error stream if its exit code is not 0."""
    done = subprocess.run([b"/bin/sh", b"-c", payload], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        errors = decode_text(done.stderr[-1000:]).strip()
        raise RuntimeError(f"exit code {done.returncode}" + (f": {errors}" if errors else ""))
    return done.stdout


def load_module(where: str) -> Any:
    """Import a module by its name, or a file that ends with .py; workers that are not forked import it by name, too."""
    with _usage_error(f"{where!r}: the working directory cannot be found: "):
        path = os.path.abspath(where) if where.endswith(".py") else ""
        folder = os.path.dirname(path) if path else os.getcwd()
    if path and not os.path.isfile(path):
        raise UsageError(f"{where!r}: no such file")
    name = os.path.basename(path)[:-3] if path else where
    if path and "." in name:
        raise UsageError(f"{where!r}: is imported by its name, which must hold no dot but that of .py; rename the file")
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        raise UsageError(f"{where!r} cannot be imported: {describe(error)}") from None
    if path and os.path.realpath(str(getattr(module, "__file__", ""))) != os.path.realpath(path):
        raise UsageError(f"{where!r}: another module has the name {module.__name__}; rename the file")
    return module


def choose_functions(options: argparse.Namespace, functions: Any) -> tuple[dict[int, Function], bool]:
    """The functions by fn_id, and whether a line is a payload, rather than FUNCTION PAYLOAD."""
    if options.shell:
        return {1: shell}, True
    if options.call:
        where, _, name = options.call.rpartition(":")
        if not where:
            raise UsageError(f"--call {options.call}: give MODULE_OR_FILE.py:FUNCTION")
        loaded = {key: value for key, value in vars(load_module(where)).items() if callable(value)}
        if name not in loaded:
            raise UsageError(f"--call {options.call}: {no_such_function(name, [n for n in loaded if n[0] != '_'])}")
        return {1: loaded[name]}, True
    if options.handlers:
        own = vars(module := load_module(options.handlers)).items()
        public = [value for name, value in own if inspect.isfunction(value) and not name.startswith("_")]
        functions = [function for function in public if function.__module__ == module.__name__]
        if not functions:
            raise UsageError(f"--handlers {options.handlers}: it has no public functions")
    return number_functions([echo, sleep, sha256, noop] if functions is None else functions), False


def parse_size(text: str) -> int:
    """A number of bytes, with K, M, G or T for powers of 1024."""
    unit = "KMGT".find(text[-1:].upper()) + 1
    try:
        return int(float(text[:-1] if unit else text) * 1024**unit)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r}: give bytes, or a number with K, M, G or T") from None


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message} (--help lists the options)")


def make_parser() -> Parser:
    parser = Parser(
        prog="shmqueue",
        allow_abbrev=False,
        description="Put many small tasks through several processes, and lose none.",
        epilog="A line of TASKS is FUNCTION PAYLOAD. Functions, unless --handlers gives others: echo TEXT, "
        "sleep SECONDS, sha256 PATH, noop. Exit code: 0 all ok; 1 some task was not; 2 bad usage or input; 128+n "
        "stopped by signal n.",
    )
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    add("tasks", metavar="TASKS", nargs="?", help="a file of tasks, one a line; - for standard input")
    what.add_argument("--handlers", metavar="MODULE_OR_FILE.py", help="the functions that lines may name")
    what.add_argument("--call", metavar="MODULE_OR_FILE.py:FUNCTION", help="each line is a payload of this function")
    what.add_argument("--shell", action="store_true", help="each line is a shell command; its output is the value")
    add("--query", metavar="SQL", help="TASKS is a SQLite file: one column is a line, two are function and payload")
    add("-w", "--workers", type=int, metavar="N", help="worker processes (default: the processors there are)")
    add("--timeout", type=float, metavar="S", help="seconds a task may run")
    add("--retries", type=int, default=0, metavar="N", help="start a task that is not ok again, so often")
    add("--max-rss", type=parse_size, metavar="SIZE", help="replace workers that hold more, as 500M; needs psutil")
    add("--max-tasks", type=int, metavar="N", help="replace a worker after so many tasks")
    add("--halt", type=int, metavar="N", help="stop after so many tasks were not ok")
    add("--slots", type=int, dest="num_slots", default=16384, metavar="N", help="tasks the ring holds (%(default)s)")
    add("--slot-size", type=int, default=128, metavar="BYTES", help="bytes of a slot (%(default)s)")
    add("--batch", type=int, metavar="N", help="tasks a worker claims at once (default: sized by itself)")
    add("--start-method", choices=multiprocessing.get_all_start_methods(), help="how workers are started")
    add("--results", metavar="FILE", help="write results as they come: .jsonl, .csv, .sqlite; -: JSON lines on stdout")
    add("--resume", action="store_true", help="leave out the tasks that the results file already holds as ok")
    add("--summary", metavar="FILE", help="write the summary as JSON, too")
    add("--log", metavar="FILE", help="write what the functions print, which is dropped otherwise")
    add("--screen", choices=("auto", "on", "off"), default="auto", help="auto: where the error stream is a terminal")
    add("--watch", metavar="NAME", nargs="?", const="", help="show the screen of a run in another terminal, and exit")
    add("--clean", action="store_true", help="remove what dead runs left behind, and exit")
    add("--version", action="version", version=f"shmqueue {__version__}")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """What argparse does not check, before anything is opened."""
    if options.tasks is None:
        raise UsageError("TASKS is missing: give a file of tasks, or - for standard input (--help lists the options)")
    for name, value in vars(options).items():
        if value == "" and name != "tasks":
            raise UsageError(f"--{name}: the value is empty")
        with _usage_error():
            check_numbers(**{name: value} if name in LIMITS and value is not None else {})
    if options.halt is not None and options.halt < 1:
        raise UsageError(f"--halt {options.halt}: must be 1 or more")
    if options.results is not None:
        results_format(options.results)
    if options.results == "-" and sys.stdout is None:
        raise UsageError("--results -: standard output is closed")
    if options.tasks == "-" and sys.stdin is None:
        raise UsageError("cannot read '-': standard input is closed; give a file of tasks")
    if options.resume and options.results in (None, "-"):
        raise UsageError("--resume: needs --results FILE, the file of the run to go on with")
    if options.query is not None and options.tasks == "-":
        raise UsageError("--query: TASKS must be a SQLite file, not standard input")


@contextlib.contextmanager
def _usage_error(what: str = "") -> Iterator[None]:
    """What Supervisor and open raise for bad arguments, as a UsageError."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename and str(error.filename) not in what else ""
            text = where + limit_text(error)
        name, found, rest = text.partition("=")
        if found and name.isidentifier():  # an argument of Supervisor: say the option
            text = f"--{name.replace('num_', '').replace('_', '-')} {rest}"
        raise UsageError(what + text) from None


class Keys:
    """Single keys from the terminal on standard input: p pauses and resumes, q finishes what is begun and quits.

    They are read only where standard input is a terminal in the foreground and not the source of tasks."""

    TEXT = "p pause or go on   q finish what is begun and quit"

    def __init__(self, wanted: bool) -> None:
        self._before: Any = None
        self.active = wanted and os.isatty(0) and in_foreground(0)

    def enter(self) -> None:
        if self.active and self._before is None and in_foreground(0):
            with contextlib.suppress(termios.error):
                self._before = termios.tcgetattr(0)
                tty.setcbreak(0)

    def leave(self) -> None:
        if self._before is not None:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)
            self._before = None

    def read(self) -> str:
        """The keys that were pressed."""
        self.enter()  # again, after the run was in the background
        with contextlib.suppress(OSError):  # the terminal is gone
            if self._before is not None and in_foreground(0) and select.select([0], [], [], 0)[0]:
                return os.read(0, 64).decode("ascii", "replace")
        return ""


class CommandLine:
    """One run from the command line. A subclass may run it elsewhere, by `make_supervisor`."""

    def __init__(self, options: argparse.Namespace, functions: Any, queue: type[SharedTaskQueue]) -> None:
        self.options, self.queue = options, queue
        self.functions, whole = choose_functions(options, functions)
        names = [function_name(function) for function in self.functions.values()]
        self.parse = parse = LineParser(names, comments=not options.call, whole=whole)
        self.source = (
            QuerySource(options.tasks, options.query, parse) if options.query else LineSource(options.tasks, parse)
        )
        self._check_files()
        self.results: Results | None = None
        if options.results:
            self.results = results_format(options.results)(options.results, options.resume)
            parse.done = self.results.done
        self.progress, self.keys = self._choose_screen()
        self.signals: list[int] = []
        self.stopped_by = 0
        self.supervisor: Any = None

    def _check_files(self) -> None:
        """Files can be written, and no two are the same; devices may be."""
        options = self.options
        uses: dict[tuple[int, int], str] = {}
        if os.path.isfile(options.tasks):
            info = os.stat(options.tasks)
            uses[info.st_dev, info.st_ino] = "TASKS"
        for option in ("results", "log", "summary"):
            path = getattr(options, option)
            if path not in (None, "-"):
                with _usage_error(f"--{option} {path}: "), open(path, "ab") as file:
                    info = os.fstat(file.fileno())
                    other = uses.setdefault((info.st_dev, info.st_ino), f"--{option}")
                    if other != f"--{option}" and stat.S_ISREG(info.st_mode):
                        raise ValueError(f"is the file of {other}, too; give another one")

    def _choose_screen(self) -> tuple[Progress, Keys]:
        options = self.options
        results_shown = options.results == "-" and sys.stdout is not None and sys.stdout.isatty()
        drawn = options.screen == "on" or (options.screen == "auto" and can_draw() and not results_shown)
        kind = Screen if drawn else PlainLines if options.screen == "auto" else Progress
        title = "standard input" if options.tasks == "-" else os.path.basename(options.tasks)
        progress, keys = kind(title, self.source.total), Keys(drawn and options.tasks != "-")
        progress.keys = Keys.TEXT if keys.active else ""
        return progress, keys

    def make_supervisor(self, functions: Mapping[int, Function], **arguments: Any) -> Any:
        """A Supervisor, or what has its public names."""
        return Supervisor(functions, **arguments)

    def run(self) -> int:
        """Put the tasks through, and say how it went; the exit code."""
        problem = ""
        with handlers.kept() as numbers:
            for number in numbers:
                # First, because a Supervisor leaves signals alone that are handled. SIGHUP stays ignored under nohup.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    handlers.exchange(number, self.note_signal)
            wanted = {*LIMITS, "log", "start_method"}
            arguments: dict[str, Any] = {name: value for name, value in vars(self.options).items() if name in wanted}
            with _usage_error():
                self.supervisor = self.make_supervisor(
                    self.functions, screen=self.progress, queue=self.queue, **arguments
                )
            try:
                with self.supervisor:
                    self._put_through()
            except (WorkersFailedError, SpoiledSegmentError) as error:
                problem = str(error)
            except KeyboardInterrupt:
                self.stopped_by = signal.SIGINT
            finally:
                self.keys.leave()
        if self.results is not None:
            self.results.finish()
        return self.report(problem or self.source.problem)

    def _put_through(self) -> None:
        results, bad = self.results, 0
        if results is not None:
            results.begin()  # not before, since it empties a file that was there
        self.supervisor.on_check = self.look
        self.keys.enter()
        for result in self.supervisor.run(self.source):
            if results is not None:
                results.write(result)
            if result.status not in ("ok", "cancelled"):
                bad += 1
                if bad == self.options.halt:
                    self.supervisor.cancel()

    def note_signal(self, number: int, frame: object) -> None:
        self.signals.append(number)
        if self.supervisor is not None:  # else it is done at the first look
            self.supervisor.wake()
        if self.signals.count(signal.SIGINT) > 2:  # whatever it is that does not come back to look()
            raise KeyboardInterrupt

    def look(self) -> None:
        """Several times a second: do what signals and keys asked for, and bring results to their file."""
        results, supervisor = self.results, self.supervisor
        if results is not None and not results.save() and results.path != "-":
            supervisor.cancel()  # what cannot be kept need not be done
        for key in self.keys.read():
            if key == "p" and not supervisor.cancelled:
                supervisor.pause(not supervisor.paused)
            elif key == "q":
                supervisor.cancel()
        while self.signals:
            number = self.signals.pop(0)
            if number == signal.SIGTSTP:
                self.suspend()
            elif number == signal.SIGINT and not self.stopped_by:
                self.stopped_by = number
                supervisor.cancel()
            else:
                self.stopped_by = self.stopped_by or number
                supervisor.abort()
        ending = "ending: what is begun is finished" if supervisor.cancelled else ""
        self.progress.state = ending or ("paused" if supervisor.paused else "")

    def suspend(self) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again."""
        self.keys.leave()
        self.progress.close()
        self.supervisor.suspend()
        self.keys.enter()

    def report(self, problem: str) -> int:
        """Say how it went, on the standard output, unless results go there; the exit code."""
        results, path, summary = self.results, self.options.summary, self.supervisor.summary()
        problems, left_out = [problem] if problem else [], self.parse.left_out
        if results is not None and results.problem:
            remedy = ": run again with --resume" if results.path != "-" else ""
            lost = f"{results.lost:,} results were not written{remedy}"
            problems.append(f"--results {results.path}: {results.problem}; {lost}")
        if path is not None:
            whole = {**summary, "problem": "; ".join(problems), "left_out": left_out}
            try:
                with open(path, "w", encoding="utf-8") as file:
                    json.dump(whole, file, default=_as_text, indent=1)
            except OSError as error:
                problems.append(f"--summary {path}: {error.strerror}")
        lines = summary_lines(summary, "; ".join(problems), left_out)
        stream = sys.stderr if self.options.results == "-" else sys.stdout
        if failure := say("\n".join(map(printable, lines)), stream):
            problems.append(failure)
        if self.stopped_by:
            return 128 + self.stopped_by
        return int(bool(problems) or summary["ok"] < sum(summary[name] for name in OUTCOMES))


def summary_lines(summary: Mapping[str, Any], problem: str, left_out: int) -> list[str]:
    """What one wants to know at the end: what went wrong first, which tasks took long, and the totals last."""
    lines = [f"#{r['tsk_id']:,} {r['function']} {r['status']}: {r['error']}" for r in summary["failures"]]
    kinds, slowest, seconds = collections.Counter(summary["kinds"]), summary["slowest"], summary["seconds"]
    if sum(kinds.values()) > len(lines):
        lines.append("in all: " + "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5)))
    if slowest and slowest[0]["seconds"] >= 0.01:
        each = (
            f"{r['seconds']:.3f} s #{r['tsk_id']:,} {r['function']} {decode_text(r['payload'])[:30]}" for r in slowest
        )
        lines.append("slowest: " + "; ".join(each))
    if seconds >= 1:
        spent = ", ".join(f"{what} {summary['shares'][what]:.0%}" for what in ("run", "wait", "start"))
        lines.append(f"workers: {spent} of the time")
    lines += [f"{left_out:,} tasks left out: the results file holds them as ok"] if left_out else []
    lines += [f"shmqueue: {problem}"] if problem else []
    total = sum(summary[name] for name in OUTCOMES)
    each = (f"{summary[name]:,} {word}" for name, word in OUTCOMES.items())
    tasks = f"{counted(total, 'task')}: {', '.join(each)}" if total else "no tasks"
    workers, rate = counted(len(summary["workers"]), "worker"), (total - summary["cancelled"]) / seconds
    return [*lines, f"{tasks}; {seconds:.2f} s, {rate:,.0f} tasks/s, {workers}"]


def main(
    functions: Any = None, argv: Sequence[str] | None = None, *, queue: type[SharedTaskQueue] = SharedTaskQueue
) -> int:
    """The command line, over `functions` instead of the built-in ones; the exit code.

    argv: without the program's name; None for sys.argv. queue: the strategy."""

    def run() -> int:
        options = make_parser().parse_args(argv)
        if options.clean:
            print("\n".join(f"removed {name}" for name in sweep()) or "nothing to remove")
        elif options.watch is not None:
            with handlers.kept() as numbers:
                watch(choose_run(options.watch), numbers)
        else:
            check_options(options)
            return CommandLine(options, functions, queue).run()
        return 0

    return exit_code(run)


def exit_code(run: Callable[[], int]) -> int:
    """What `run` returns, or 2 after a line that says what is wrong with its arguments."""
    fill_streams()
    try:
        return run()
    except UsageError as error:
        say(printable(f"shmqueue: {error}"), sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the run had begun
        return 128 + signal.SIGINT


def fill_streams() -> None:
    """Open standard streams that are closed, on nothing: or a file or pipe gets the number of one, and its output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free


def say(text: str, stream: Any) -> str:
    """Print on a stream, unless it is None, closed from the start: `print` takes that for standard output. What went
    wrong, if anything did."""
    try:
        if stream is not None:
            print(text, file=stream, flush=True)
    except (OSError, ValueError) as error:  # closed: point it elsewhere, or Python complains at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return describe(error)
    return ""


if __name__ == "__main__":
    sys.modules.setdefault("shmqueue", sys.modules["__main__"])  # for functions that import it
    raise SystemExit(main())
