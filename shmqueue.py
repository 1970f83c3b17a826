#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the shmqueue authors.
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
  workers and draws the screen. Workers touch only the segment and their own pipes. Nothing is unpickled after the
  start, except by an Executor and by codec=pickle. So a process that writes into the segment can spoil data, but
  cannot run code.


The segment, in bytes
---------------------
  QueueHeader          magic, sizes, owner | pushed | claimed | dirty | asleep         a line of 128 bytes each
  WorkerStatus x W     a line that the worker writes, and one that the supervisor writes; see the table above them
  (a strategy's own)   its state and its locks; empty for the ring, see variants/
  LocalTaskQueue x W   two halves, each with room for a batch: first end | a lane of `batch` task slots | ends[batch] |
                       stamps[batch + 1] | a log for the values, of which more is reserved as it is used
  TaskSlot128 x N      the ring
  heap                 pages for payloads that do not fit a slot; reserved as they are used

  Positions and counters are 64 bits, absolute, and only grow; slot `position % num_slots` holds a position. Each
  word has one writer (or is written under the lock, or while its worker stands still or is dead), is aligned, and is
  stored through memoryview.cast("Q"), which is one machine store; on 32-bit processors it is two, and the upper half
  stays 0. struct.pack_into writes zeros first, so it is for slots only.


The life of a task
------------------
  push      The supervisor writes the task into free slots of the ring, which nobody reads. Then it takes the lock and
            moves `pushed`.
  claim     A worker takes the lock, says that its last batch is finished (`published`), copies a batch from the ring
            to the lane of its other half, and moves `claimed`: the commit point. From here on the batch is its own.
  run       The worker calls the function, appends the value to the log, and stores `ends[i]`. That one store makes
            the task finished. A worker killed before this store has not finished the task. A worker killed after it has
            finished it.
  harvest   The supervisor takes the lock and reads how many batches each worker has finished. Then it reads their
            logs, without the lock.
  halt      A worker is slow while others are idle or results wait, or tasks are to be taken back for another reason.
            The supervisor stops it for a moment (SIGSTOP), reads what it has finished, lowers the `end` of its batch
            to the position after the task in hand, and lets it continue. The later tasks go back to the ring.


The lock
--------
  fcntl.lockf on one byte of the segment's file. It guards the words for which the table above QueueHeader says so, and
  a claim's stores to its half. The kernel releases it when its holder dies. The next holder finds `dirty` set if the
  last one died inside, and repairs: a batch whose `end` lies beyond `claimed` was not committed, so it becomes empty.
  Then it writes its own number into `dirty`, and clears it before it releases the lock. Nothing slow runs there.
  A process reads another's stores only after both have held this lock, or after the kernel has reaped or stopped the
  writer. So it does not matter in which order a processor's stores become visible.


If a worker is killed, on any line
----------------------------------
  in claim, before the commit      repaired by the next holder: the tasks are still in the ring
  in a batch                       the tasks with their `ends` are finished. The next one was in hand. It is charged:
                                   this counts as one of its attempts. The later ones never began; they are pushed again
  after its last task              nothing is in hand, and no task is charged
If the supervisor is killed, its workers see their pipe close. The first one kills the others and what functions have
started, and removes the segment. If all are killed at once, the next start removes it.

MIT License: permission is granted, free of charge, to any person obtaining a copy of this software, to deal in it
without restriction, including to use, copy, modify, merge, publish, distribute, sublicense and sell copies, provided
that this notice is included in all copies or substantial portions. The software is provided "as is", without warranty
of any kind; in no event shall the authors be liable for any claim or damages arising from it or its use.
"""

from __future__ import annotations

import array
import bisect
import collections
import contextlib
import ctypes
import errno
import functools
import importlib
import io
import itertools
import marshal
import math
import mmap
import operator
import os
import reprlib
import resource
import select
import signal
import stat
import struct
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence

TYPE_CHECKING = False  # as in typing, whose import takes a tenth of this one's
if TYPE_CHECKING:
    import argparse
    from typing import Any, ClassVar, NoReturn

    Function = Callable[..., Any]
    WorkerOptions = types.SimpleNamespace  # what the pool and its workers are told: see Supervisor.__init__

try:
    import fcntl
except ImportError as missing:  # Windows has no lock that a path reaches and that the kernel releases
    raise ImportError("shmqueue needs a POSIX system (Linux, macOS): it locks with fcntl.lockf") from missing

__version__ = "0.3.0"
__all__ = ["Executor", "Supervisor", "TaskError", "TaskResult", "parallel_map"]


def __getattr__(name: str) -> Any:
    """Import what takes long, and make Executor, when they are first used.

    Without psutil, which is None then, the screen's columns cpu and rss stay blank, and max_rss is refused.
    """
    made: Any = None
    if name == "Executor":
        made = make_executor()
    elif name == "multiprocessing":
        importlib.import_module("multiprocessing.util")
        made = sys.modules[name]
    elif name == "futures":
        made = importlib.import_module("concurrent.futures.process")
    elif name == "psutil":
        with contextlib.suppress(ImportError):
            made = importlib.import_module(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, made)  # another thread may have been first


def late(name: str) -> Any:
    """Return what __getattr__() does, for our own use."""
    return globals()[name] if name in globals() else __getattr__(name)  # sys.modules may not have this module


# ---------------------------------------------------------------------------------------------------------------------
# What a user calls: results, errors, parallel_map and Supervisor.

# What the status of a task may be, and how the summary calls it.
STATUSES = {"ok": "ok", "failed": "failed", "timeout": "timed out", "crashed": "crashed", "cancelled": "cancelled"}
RETRY_ON = ("failed", "timeout", "crashed")


class TaskResult(
    collections.namedtuple(
        "TaskResult",
        "tsk_id function payload status value error attempts worker seconds traceback started",
        defaults=(None, 0.0),
    )
):
    """The one outcome of a task.

    tsk_id: the Supervisor counts its tasks from 1.
    function: its name.
    payload: as it was given.
    status: ok, failed, timeout, crashed or cancelled.
    value: what the function returned; None unless ok. Of a shell command: its standard output, whether ok or failed.
    error: what went wrong; None if ok.
    attempts: how often it was started.
    worker: the index of the last worker that ran it, or None.
    seconds: the time that the function took; for tasks of less than 20 microseconds, the mean of several.
    traceback: of the exception that the function raised, as the interpreter would print it, or None.
    started: when the function was called last, in seconds since 1970; 0.0 if it never was.
    """

    __slots__ = ()
    tsk_id: int
    function: str
    payload: Any
    status: str
    value: Any
    error: str | None
    attempts: int
    worker: int | None
    seconds: float
    traceback: str | None
    started: float


_new_result = types.MethodType(tuple.__new__, TaskResult)  # from a tuple, in half the time of TaskResult()


class TaskError(Exception):
    """A task was not ok; `result` is its TaskResult. Its text has the payload in brief, and the traceback, if any."""

    def __init__(self, result: TaskResult) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        tsk_id, function, payload, status, _, error, *_, trace, _ = self.result
        text = f"task {tsk_id} ({function}) {status}: {error}"
        if payload is not None:
            text += f"\npayload: {briefly(payload, 200)}"
        if trace:
            text += f"\n\n{trace.rstrip()}"
        return text


class WorkersFailedError(RuntimeError):
    """Workers die before they take a task, again and again."""


class SpoiledSegmentError(RuntimeError):
    """A word in the segment has a value that no process of this run wrote."""


def parallel_map(
    function: Function, payloads: Iterable[Any], *, workers: int | None = None, **options: Any
) -> list[Any]:
    """Return the values of `function` for `payloads`, in their order. Raises TaskError at the first task not ok.

    `options` are those of Supervisor. A short list gets fewer num_slots, which makes the start faster.
    """
    if type(payloads) is list or type(payloads) is tuple:  # others may raise anything if they are asked
        fitting = 1 << len(payloads).bit_length()
        options.setdefault("num_slots", min(max(1024, fitting), DEFAULTS["num_slots"]))
    with Supervisor([function], workers=workers, **options) as supervisor:
        return list(supervisor.map(function, payloads))


class Reading(itertools.chain["Any"]):
    """What run, map and results return: three times as fast as a generator. close() ends it early."""

    close: Callable[[], None]


class Supervisor:
    """Puts tasks through worker processes. Used from one thread; several threads may each have their own.

    functions: a sequence of callables, or a mapping {fn_id: callable}; no function has fn_id 0, TERMINATE.
    workers: the number of processes; None: one for each processor that this process may use; 0: the functions run in
        this process, where a debugger stops in them.
    num_slots: the number of tasks that the ring holds.
    slot_size: bytes of a slot, a multiple of 8. A payload of up to slot_size - 9 bytes lies in its slot;
        in one of more than 264 bytes, up to slot_size - 10.
    batch: the most tasks that a worker claims at once; None: as many as take 5 ms.
    timeout: seconds that a task may run; or a mapping from a function, or its name, to the seconds of its tasks.
    grace: seconds between SIGTERM and SIGKILL for a task that ran too long.
    retries: how often a task that is not ok is started again.
    retry_delay: seconds before the second attempt, doubled for each further one, 60 at most.
    retry_on: the statuses that are tried again.
    max_rss: a worker that uses more bytes of memory is replaced after its current task. If it stays above for a
        second, it is killed with the task. Needs psutil.
    max_tasks: a worker is replaced after so many tasks.
    initializer: called first in every worker.
    codec: an object with dumps and loads, such as the module pickle. Payloads and values that are not bytes or str go
        through it. None: they must be plain data, and nothing is pickled.
    screen: draw on the error stream, if that is a terminal.
    log: a file for what functions print; without it that is dropped.
    start_method: fork, spawn or forkserver; None: fork if this process has one thread, else forkserver.
    queue: the class that synchronizes the processes; None: SharedTaskQueue. See variants/.

    Raises ValueError and TypeError for arguments out of range, OSError (ENOSPC) if shared memory is too small.
    """

    choose_display: ClassVar[Any] = None  # returns what draws; the second part of this file sets it

    def __init__(
        self,
        functions: Any,
        *,
        workers: int | None = None,
        num_slots: int = 16384,
        slot_size: int = 128,
        batch: int | None = None,
        timeout: float | Mapping[Any, float | None] | None = None,
        grace: float = 0.0,
        retries: int = 0,
        retry_delay: float = 0.0,
        retry_on: Sequence[str] = RETRY_ON,
        max_rss: int | None = None,
        max_tasks: int | None = None,
        initializer: Callable[[], object] | None = None,
        codec: Any = None,
        screen: Any = False,
        log: str | None = None,
        start_method: str | None = None,
        queue: type[SharedTaskQueue] | None = None,
    ) -> None:
        numbered = number_functions(functions)
        check_limits(locals())
        if codec is not None:
            codec = Codec(codec)
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer={initializer!r}: must be callable")
        if screen and self.choose_display is None:
            raise ValueError(f"screen={screen!r}: it was cut off this copy of shmqueue.py; take the whole file")
        if workers is None:
            workers = available_processors()
        options = types.SimpleNamespace(
            functions=numbered,
            initializer=initializer,
            batch=batch,
            max_tasks=max_tasks,
            max_rss=max_rss,
            grace=grace,
            log=log and os.path.abspath(log),
            codec=codec,
        )
        self.on_check: Callable[[], None] = lambda: None  # called after each check of the workers
        self._ledger = Ledger(numbered, Retries(retries, retry_delay, retry_on), workers, codec)
        self._submitted = Job(NO_SOURCE)
        self._display: Any = None
        self._shows = self.choose_display is not None  # False once the display has failed
        self._release: list[Callable[[], object]] = []
        # When Python exits, multiprocessing waits for its children. This runs before that.
        self._at_exit = late("multiprocessing").util.Finalize(self, release_all, [self._release], exitpriority=10)
        try:
            if workers == 0:
                self._queue: Any = InlineQueue()
                self._pool: WorkerPool = InlinePool(self._queue, self._ledger, options, late("multiprocessing"))
            else:
                if log and not is_pipe(log):
                    open(log, "ab").close()  # now: an error in a worker would reach nobody
                sweep()
                most = min(num_slots, batch or max(16, min(LANE_BYTES // slot_size, 4 * num_slots // workers)))
                name = new_name()
                context = choose_context(start_method, [*numbered.values(), initializer])
                self._release.append(functools.partial(remove_segment, path_of(name)))  # it may be made only in part
                self._queue = (queue or SharedTaskQueue).create(num_slots, slot_size, workers, most, context, name)
                self._release.append(self._queue.close)
                self._ledger.set_timeouts(timeout)
                self._pool = WorkerPool(self._queue, self._ledger, options, context)
                self._release.append(functools.partial(end_strays, name))
            self._release.append(self._pool.close)
            if self._shows:
                self._display = self.choose_display(screen)
                self._release.append(self._display.close)
            self._engine = Run(self._queue, self._pool, self._ledger)
            self._release.append(self._engine.close)
            self._pool.start_all()
        except BaseException as error:
            self._dispose()
            clear = limit_error(error)
            if clear is error:
                raise
            raise clear from None

    def _dispose(self) -> None:
        release_all(self._release)
        self._at_exit.cancel()  # only now: if this was interrupted, it is done again when Python exits

    # What a user calls.

    @property
    def name(self) -> str:
        """The name of the segment; empty without workers."""
        return str(self._queue.name)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self._stop()

    def run(self, tasks: Iterable[Any] | Source) -> Iterator[TaskResult]:
        """Yield the TaskResults of `tasks` as they finish. Never raises for a task.

        An item is (function, payload), with a function or its name. If there is one function, an item is a payload,
        or such a pair if its first element is that function itself. `tasks` is read in the caller's thread when there
        is room. While it blocks, no result is yielded. Do not change what `tasks` has yielded. Closing the iterator
        early cancels what has not begun.
        """
        return self._read(Job(self._open(tasks)))

    def map(self, function: Any, payloads: Iterable[Any]) -> Iterator[Any]:
        """Yield the values of `function` for `payloads`, in their order.

        Reads about 4 * num_slots payloads ahead of the oldest unfinished task, not more. Raises TaskError at the first
        task that is not ok, and cancels the rest.
        """
        fn_ids = self._ledger.intake.fn_ids
        if function not in fn_ids:
            raise ValueError(no_such_function(function_name(function), self._ledger.names.values()))
        return self._read(OrderedJob(self._open(payloads), fn_ids[function]))

    def submit(self, function: Any, payload: Any, *, timeout: float | None = None) -> int:
        """Add one task and return its tsk_id. results() yields its outcome. Blocks while the ring is full.

        timeout: seconds that this task may run, in each attempt; None: as its function may.
        """
        if timeout is not None:
            check_limits({"timeout": timeout, "workers": len(self._pool.lanes)})
        return self._engine.submit(self._submitted, (function, payload), timeout, self._report)

    def results(self, timeout: float | None = None) -> Iterator[TaskResult]:
        """Yield the TaskResults of submitted tasks as they finish, until none is outstanding.

        timeout: seconds, from the first next() on, after which it takes a last look and ends; 0 does not wait.
        """
        if timeout is not None:
            check_number("timeout", timeout, (0.0, LIMITS["timeout"][1]))
        self._engine.check_open()
        return self._read(self._submitted, math.inf if timeout is None else timeout)

    def cancel(self, tsk_id: int | None = None) -> bool:
        """Cancel every task that has not begun, in all runs. This cannot be undone.

        Tasks that have begun finish, and the iterators yield every outcome.

        With a tsk_id, cancel this one task. Return True if it had not begun, and never will. If it waits for another
        attempt, it ends with the status of its last one, and that is False.
        """
        if tsk_id is not None:
            return self._engine.cancel(tsk_id)
        self._engine.cancel_all()
        return True

    def pause(self, paused: bool) -> None:
        """Begin no more tasks if `paused`. Otherwise continue."""
        self._engine.pause(paused)

    def abort(self) -> None:
        """Kill the workers, and cancel all unfinished tasks."""
        self._engine.abort()

    def close(self) -> None:
        """Finish what is outstanding, let the workers leave, and remove the segment. May be called again.

        Workers that are still starting, or call the initializer, are killed. In a child that was forked, do nothing.
        """
        if self._engine.use.in_child:
            return
        self._engine.use.check()
        try:
            if not self._engine.over:
                self._engine.finish(self._submitted, self._report)
        finally:
            self._stop()

    def wake(self) -> None:
        """Make on_check be called soon. For signal handlers."""
        self._pool.next_check = 0.0
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
        held_up: what keeps workers from running, such as "worker 1 is stopped", while tasks are outstanding; else "".
        """
        tally = self._ledger.tally
        pool = self._pool
        counts = tally.counts.copy()  # first: another thread may admit and finish tasks meanwhile
        outstanding = self._ledger.next_id - 1 - sum(counts.values())
        return {
            **counts,
            "retried": tally.retried,
            "respawned": pool.respawned,
            "outstanding": outstanding,
            "held_up": pool.held_up(outstanding),
            "seconds": tally.seconds(),
            "workers": [
                {"pid": lane.process.pid, "completed": completed, "failed": failed}
                for lane, completed, failed in zip(pool.lanes, tally.completed, tally.failed)
            ],
        }

    def snapshot(self) -> dict[str, Any]:
        """Return stats(), and what the screen shows besides."""
        self._engine.check_over()
        return self._snapshot()

    def _snapshot(self) -> dict[str, Any]:
        shot: dict[str, Any] = self._display.take(self.stats(), self._queue, self._pool, self._ledger)
        return shot

    def summary(self) -> dict[str, Any]:
        """Return stats() and more.

        busy: the fraction of the workers' time in which they ran functions.
        failures: the first five tasks that were not ok, one of each status among them, with payloads in brief.
        kinds: how many tasks were not ok, by function, status and name of the error.
        printed: after the end, True if functions printed what nobody keeps.
        """
        return {**self.stats(), "printed": self._queue.printed, **self._ledger.tally.summary()}

    def suspend(self) -> None:
        """Stop the workers and this process, as Ctrl-Z does. They go on together."""
        self._pool.suspend()

    def _open(self, tasks: Iterable[Any] | Source) -> Source:
        self._engine.check_open()
        return tasks if isinstance(tasks, Source) else IterableSource(tasks)

    def _read(self, job: Job, timeout: float = math.inf) -> Iterator[Any]:
        parts = self._engine.parts(job, self._report, timeout)
        reading: Reading = Reading.from_iterable(parts)  # type: ignore[assignment]
        reading.close = parts.close
        return reading

    def _report(self) -> None:
        self.on_check()
        if self._shows:
            try:
                self._display.update(self._snapshot)
            except Exception as error:  # the run goes on without it
                if is_interruption(error):
                    raise
                self._shows = False
                self._display.close()
                warnings.warn(f"the run is not shown any more: {describe(error)}", RuntimeWarning, stacklevel=2)

    def _stop(self) -> None:
        """Kill the remaining workers, and remove the segment."""
        if self._engine.use.in_child:
            return
        with contextlib.ExitStack() as ending:
            others = self._engine.use.lock
            if others.acquire(timeout=STOP_SECONDS):  # not longer: the iterable of another thread's step may block
                ending.callback(others.release)
            ending.callback(self._dispose)
            if self._display is not None:
                self._display.end(self._snapshot)


def release_all(release: list[Callable[[], object]]) -> None:
    """Call all of these, the last first. After an interrupt or an error, call all of them once more: each allows it."""
    try:
        for each in reversed(release):
            each()
    except BaseException:
        with contextlib.ExitStack() as stack:  # it goes on with the others if one fails
            for each in release:
                stack.callback(each)
        raise
    release.clear()  # a __del__ that calls close() when Python exits finds nothing to do


# ---------------------------------------------------------------------------------------------------------------------
# Executor: the same workers for those who want futures.

NOT_REDIRECTED = ""  # in place of a log: what functions print goes where this process prints


class ExecutorMethods:
    """Runs calls in worker processes: an Executor of concurrent.futures, used like ProcessPoolExecutor.

    Functions, arguments and values are anything that pickles. What a function raises arrives as itself, with the text
    of its traceback as the cause. If a worker dies, only the call in its hand fails, with TaskError. A Supervisor does
    the work in a thread of its own, so every method may be called from any thread.

    max_workers: processes; None: one for each processor that this process may use.
    mp_context: of multiprocessing; only its start method counts. None: what Supervisor takes, or spawn with
        max_tasks_per_child.
    initializer, initargs: a call that is made first in every worker.
    max_tasks_per_child: a worker is replaced after so many calls; not with fork.
    timeout: seconds that a call may run; then it raises TimeoutError, with the TaskError as its cause.
    retries: how often a call that raises, runs too long or crashes is made again.

    The workers start at once, and print where this process prints.
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
        check_number("max_workers", self._max_workers, (1, MOST_WORKERS))
        if timeout is not None:
            check_number("timeout", timeout, LIMITS["timeout"])
        method = "spawn" if max_tasks_per_child is not None else None
        if mp_context is not None:
            method = mp_context.get_start_method()
        if max_tasks_per_child is not None and method == "fork":
            raise ValueError("max_tasks_per_child is incompatible with the fork start method: give another mp_context")
        try:
            supervisor = Supervisor(
                [_make_calls],
                workers=self._max_workers,
                num_slots=1024,
                timeout=timeout,
                retries=retries,
                max_tasks=max_tasks_per_child,
                initializer=functools.partial(initializer, *initargs) if callable(initializer) else initializer,
                log=NOT_REDIRECTED,
                start_method=method,
            )
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise type(error)(*map(in_executor_words, error.args)) from None
        self._calls = Calls(supervisor)
        weakref.finalize(self, self._calls.end)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Have fn(*args, **kwargs) called in a worker. Return the Future of that call."""
        return self._calls.add(late("futures")._base.Future(), (fn, args, kwargs))

    def map(self, fn: Callable[..., Any], *iterables: Any, chunksize: int = 1, **options: Any) -> Iterator[Any]:
        """Yield the values of `fn` for the items of `iterables`, in order.

        The iterables are read now. If the iterator was advanced and is closed, the calls that wait in this process are
        cancelled: all but one more than there are workers, and some milliseconds of short ones.

        timeout: seconds from now on after which a value that is not there raises TimeoutError.
        chunksize: so many calls are one task, which is faster if they are short. The task is what a dead worker costs,
            what may take the Executor's timeout and what is tried again. It has no values if one of its calls raises.
        Other options are those of this Python's Executor.map.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        items = zip(*iterables)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        values = late("futures")._base.Executor.map(self._calls, fn, chunks, **options)
        return iter(late("futures")._chain_from_iterable_of_lists(values))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. When all are made, the workers leave; `wait` for that.

        cancel_futures: cancel the calls that have not begun.
        """
        self._calls.end(cancel=cancel_futures, wait=wait)

    def kill_workers(self) -> None:
        """Kill the workers, and take no more calls. Those that are not finished raise BrokenProcessPool."""
        self._calls.end(abort=True)

    terminate_workers = kill_workers

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._calls.end(abort=kind is KeyboardInterrupt, wait=True)


_executors: set[Calls] = set()  # those whose threads run; Python waits for these threads when it exits
Executor: Any  # a subclass of ExecutorMethods and concurrent.futures.Executor


def make_executor() -> type:
    base = late("futures")._base.Executor
    threading._register_atexit(end_executors)  # type: ignore[attr-defined]  # as ProcessPoolExecutor does it
    names = {"__module__": __name__, "__doc__": ExecutorMethods.__doc__}
    return type("Executor", (ExecutorMethods, base), names)


def end_executors() -> None:
    """Finish all calls when the main thread has ended; but if a Ctrl-C ended it, or comes now, give them up."""
    executors = list(_executors)
    try:
        for calls in executors:
            calls.end("interpreter shutdown", abort=getattr(sys, "last_type", None) is KeyboardInterrupt, wait=True)
    except BaseException:
        for calls in executors:
            calls.end(abort=True, wait=True)
        raise


def in_executor_words(text: Any) -> Any:
    """Return what a Supervisor says, with the names of Executor's arguments."""
    if isinstance(text, str):  # else it is the number of an OSError
        text = text.replace("workers=", "max_workers=").replace("num_slots=", "max_workers=")
        text = text.replace("max_tasks=", "max_tasks_per_child=")
        text = text.replace("start_method='fork'", "mp_context=multiprocessing.get_context('fork')")
    return text


def _make_calls(payload: bytes) -> bytes | Failure:
    """Make the call or the chunk of calls of a task (worker). Return the value or the list of values, pickled."""
    try:
        function, args, kwargs = fast_pickler().loads(payload)
        if kwargs is None:
            return pickled([function(*each) for each in args])
        return pickled(function(*args, **kwargs))
    except BaseException as error:
        return Failure(describe(error), None, Output(pickled_error(error)))
    finally:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, full, closed
            sys.stdout.flush()
            sys.stderr.flush()


@functools.cache
def fast_pickler() -> Any:
    """Make a class that pickles what ForkingPickler of multiprocessing does, and does not make its table each time."""
    reduction = late("multiprocessing").reduction
    table = reduction.ForkingPickler(io.BytesIO()).dispatch_table
    return type("Pickler", (reduction.pickle.Pickler,), {"dispatch_table": table, "loads": reduction.pickle.loads})


def pickled(value: Any) -> bytes:
    """Pickle a value as multiprocessing does, which can send more than pickle alone: a socket, for example."""
    buffer = io.BytesIO()
    fast_pickler()(buffer).dump(value)
    return buffer.getvalue()


def pickled_error(error: BaseException) -> bytes:
    """Pickle an error, with its traceback as text, or the error with which that fails."""
    with_text = late("futures")._ExceptionWithTraceback
    trace = without_own_frames(error.__traceback__)
    try:
        data = pickled(with_text(error, trace))
        fast_pickler().loads(data)
    except BaseException as second:
        error.__traceback__ = trace  # with_text has taken it away, and this error is the context of the second one
        return pickled(with_text(second, without_own_frames(second.__traceback__)))
    return data


def value_of(result: TaskResult, name: str) -> Any:
    """Return the value of a call, or raise what the function has raised, or what stands for another end."""
    if result.value is not None:
        value = fast_pickler().loads(result.value)
        if result.status == "ok":
            return value
        raise value
    if result.status == "cancelled":  # no worker can start
        raise late("futures").BrokenProcessPool(result.error)
    error = TaskError(result._replace(function=name, payload=None))
    if result.status == "timeout":
        raise TimeoutError(result.error) from error
    raise error


class MapFuture:
    """What a map has for each task: of a Future, only what concurrent.futures.Executor.map and Calls need."""

    __slots__ = ("_error", "_settled", "_value")

    def __init__(self) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._settled = threading.Lock()
        self._settled.acquire()  # until there is a value or an error

    def result(self, timeout: float | None = None) -> Any:
        if not self._settled.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise late("futures")._base.TimeoutError
        try:
            if self._error is not None:
                raise self._error
        finally:
            self._error = None  # its traceback holds this frame
        return self._value

    def cancel(self) -> None:
        self._error = late("futures")._base.CancelledError()

    def cancelled(self) -> bool:
        return self._error is not None

    def set_running_or_notify_cancel(self) -> bool:
        if self.cancelled():
            self._settled.release()
        return not self.cancelled()

    def set_result(self, value: Any) -> None:
        self._value = value
        self._settled.release()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._settled.release()


# ---------------------------------------------------------------------------------------------------------------------
# Limits: what a Supervisor's arguments may be, and what stands for those that are left out.


MOST_WORKERS = 4096
COUNTS = (1, 1 << 50)
LIMITS: Mapping[str, tuple[float, float]] = {
    "workers": (0, MOST_WORKERS),
    "timeout": (0.001, 1e9),
    "grace": (0.0, 1e9),
    "retries": (0, 1 << 30),
    "retry_delay": (0.0, 1e9),
    "max_rss": (1 << 20, 1 << 50),
    "max_tasks": COUNTS,
    "halt": COUNTS,
    "num_slots": (2, 1 << 26),
    "slot_size": (64, 65536),
    "batch": (1, 1 << 26),
}
DEFAULTS: Mapping[str, Any] = Supervisor.__init__.__kwdefaults__ or {}  # what may be None is None here


def check_limits(values: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for an argument that is out of its limits, or useless."""
    for name in filter(values.__contains__, LIMITS):
        value = values[name]
        for each in value.values() if isinstance(value, Mapping) else [value]:
            if each is not None or DEFAULTS.get(name) is not None:
                check_number(name, each, LIMITS[name])
    if values.get("slot_size", 0) % 8:
        raise ValueError(f"slot_size={values['slot_size']}: must be a multiple of 8")
    if values.get("max_rss") is not None and late("psutil") is None:
        raise ValueError(f"max_rss={values['max_rss']}: needs psutil, which is not installed (pip install psutil)")
    statuses = values.get("retry_on", RETRY_ON)
    if isinstance(statuses, str) or not set(statuses) <= set(RETRY_ON):
        raise ValueError(f"retry_on={statuses!r}: must name some of {', '.join(RETRY_ON)}")
    for name in ("timeout", "max_rss", "log"):
        if values.get("workers") == 0 and values.get(name) is not None:
            raise ValueError(f"{name}={values[name]!r}: needs a worker process, and workers=0 starts none")


def check_number(name: str, value: Any, limits: tuple[float, float]) -> None:
    """Raise TypeError or ValueError for a value that is out of these limits, or not whole where they are."""
    low, high = limits
    if isinstance(value, bool) or not isinstance(value, (int, type(low))):
        raise TypeError(f"{name}={value!r}: must be a {'whole ' * isinstance(low, int)}number")
    if not low <= value <= high:
        raise ValueError(f"{name}={value!r}: must be from {low:,} to {high:,}")


def number_functions(functions: Any) -> dict[int, Function]:
    """Return functions by fn_id: a mapping as it is, a sequence numbered from 1 on."""
    if callable(functions):
        raise TypeError(f"functions={functions!r}: must be a sequence, such as [{function_name(functions)}]")
    numbered = dict(functions if isinstance(functions, Mapping) else enumerate(functions, 1))
    if not numbered:
        raise ValueError("functions is empty: at least one is needed")
    for fn_id, function in numbered.items():
        check_number("fn_id", fn_id, (TERMINATE + 1, (1 << 31) - 1))
        if not callable(function):
            raise TypeError(f"functions: {function!r} is not callable")
    return numbered if max(numbered) <= FN_ID else dict(enumerate(numbered.values(), 1))  # the bits above are ours


def available_processors() -> int:
    """Return how many processors this process may use: by its affinity, and by the quota of its control group."""
    count = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # not every system has it
        count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
        quota, period = file.read().split()  # "max" for the quota is a ValueError
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def count_threads() -> int:
    """Return how many threads this process has, if possible with those of C libraries."""
    for _ in range(10):
        count = max(threading.active_count(), len(listed("/proc/self/task")))
        if count == threading.active_count():
            break
        system.sleep(0.001)  # a thread that was joined is there for a moment longer
    return count


UNGUARDED = 113  # a worker's exit code: its program would have started workers while it was imported
GUARD_REMEDY = (
    "the main module starts workers while it is imported, which every new worker does: "
    'put what starts them under `if __name__ == "__main__":`'
)


def choose_context(start_method: str | None, functions: Sequence[Any]) -> Any:
    """Return the multiprocessing context. Raises RuntimeError if workers need the main module, and it is lost."""
    process = late("multiprocessing").current_process()
    if getattr(process, "_inheriting", False):  # a new process imports the main module, and that has come here
        if process.name.startswith(WORKER_NAME):
            os._exit(UNGUARDED)
        raise RuntimeError(GUARD_REMEDY)
    method = start_method or ("fork" if count_threads() == 1 else "forkserver")
    main = sys.modules.get("__main__")
    by_path = getattr(main, "__spec__", None) is None and hasattr(main, "__file__")  # then it is imported anyway
    if method != "fork" and main_is_lost() and (by_path or any(map(is_of_main, functions))):
        raise RuntimeError(f"start_method={method!r}: {LOST_MAIN}, or name start_method='fork'")
    return system.get_context(method)


LOST_MAIN = (
    "every worker imports the main module, and this one (a notebook, __main__ of a package, python -c or standard "
    "input) cannot be imported again: put the functions into a file and import it"
)


def main_is_lost() -> bool:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m
        return bool(spec.name.rpartition(".")[2] == "__main__")  # multiprocessing does not import that of a package
    return not os.path.isfile(getattr(main, "__file__", None) or "")


def is_of_main(function: Any) -> bool:
    plain = getattr(function, "func", function)  # func: of a functools.partial
    return getattr(plain, "__module__", None) == "__main__"


# ---------------------------------------------------------------------------------------------------------------------
# Sources: where tasks come from.


class Rejected(tuple[str, object, str]):
    """In place of an item: (function's name, payload, error) of a task that cannot be sent, and fails with that."""


class Source:
    """Where a job's tasks come from.

    exhausted: there are no more.
    finite: all of them can be read at once.
    problem: why it ended early, if it did.
    pairs: a pair is of a function and a payload, never a payload.
    held: how many finished tasks wait for the end of earlier ones, since their results are wanted in order.
    error: what the job raises after its last result, or None.
    """

    exhausted = False
    pairs = True
    finite = False
    problem = ""
    held = 0
    error: Exception | None = None

    def take(self, room: int) -> Sequence[Any]:
        """Return up to `room` items, those that are there: payloads, (function, payload) pairs or Rejected."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Return the descriptor to wait for when `take` gave nothing.

        -1: `take` itself waits for items. -2: whoever adds an item rings the Supervisor's bell.
        """
        return -1

    def rest(self) -> Iterator[Any]:
        """Yield the items that were not taken. Of a stream, these are only the ones that were read."""
        while self.finite and not self.exhausted:
            yield from self.take(BLOCK)


NO_SOURCE = Source()  # of what is submitted: there is nothing to read, and nothing to wait for
NO_SOURCE.exhausted = True

CLOCK_SHARE = 8  # items of an iterable are read for each reading of the clock, which takes as long as a short one


class IterableSource(Source):
    """Tasks from any iterable, as they come."""

    pairs = False

    def __init__(self, tasks: Iterable[Any]) -> None:
        # A subclass may iterate in its own way.
        self._sequence = tasks if type(tasks) is list or type(tasks) is tuple else None
        self._iterator = iter(tasks)
        self._taken = 0
        self.finite = self._sequence is not None

    def take(self, room: int) -> Sequence[Any]:
        """Return up to `room` items: those of about a millisecond. A few may wait for the next one, see CLOCK_SHARE."""
        room = min(room, BLOCK)
        if self._sequence is not None:
            items = self._sequence[self._taken : self._taken + room]
            self._taken += len(items)
            self.exhausted = self._taken >= len(self._sequence)
            return items
        clock = system.perf_counter
        taken: list[Any] = []
        until = clock() + 0.001
        wanted = 1
        try:
            while True:
                taken += itertools.islice(self._iterator, wanted - len(taken))
                if len(taken) < wanted:
                    break
                if wanted == room or clock() > until:
                    return taken
                wanted = min(room, 2 * wanted, wanted + CLOCK_SHARE)
        except Exception as error:
            if is_interruption(error):
                raise
            self.error = error  # raised once the tasks before it have their outcomes
        self.exhausted = True
        return taken


# ---------------------------------------------------------------------------------------------------------------------
# The calls of an Executor: a source of tasks, and the thread that settles futures.


class Calls(Source):
    """The calls that an Executor was asked for, and the thread in which its Supervisor makes them.

    Once the Supervisor has a call, its future cannot be cancelled. So the Supervisor gets one call more than there are
    workers, and further ones only while calls are short. Futures are settled between two steps of the Supervisor, so
    callbacks may do what they like. The lock guards `_over`, and the use of the Supervisor's bell. It is reentrant,
    since the garbage collector can call end() anywhere.
    """

    pairs = False

    def __init__(self, supervisor: Supervisor) -> None:
        pool = supervisor._pool
        self._wake = pool.wake_supervisor
        self._workers = len(pool.lanes)
        self._owner = os.getpid()
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._over: Exception | None = None  # why no calls are taken any more
        self._rung = False  # True: the bell need not be rung, or is closed
        self._cancel = self._abort = False
        self._waiting: collections.deque[tuple[Any, Any]] = collections.deque()  # (future, call)
        self._given: dict[int, tuple[Any, str]] = {}  # what the Supervisor has, by tsk_id: (future, name)
        self._tsk_ids = itertools.count(1)
        self._seconds = 1.0  # how long a call takes, on average over the last ones
        supervisor.on_check = self._check
        self._lost_main = pool.context.get_start_method() != "fork" and main_is_lost()
        self._thread = threading.Thread(target=self._serve, args=(supervisor,), name="shmqueue-executor")
        # A child of multiprocessing closes its Supervisors before it waits for threads. This runs before that.
        self._at_exit = late("multiprocessing").util.Finalize(None, self.end, kwargs={"wait": True}, exitpriority=20)
        _executors.add(self)
        try:
            self._thread.start()
        except BaseException:
            self._forget()
            supervisor._stop()
            raise

    # In any thread.

    def submit(self, function: Callable[..., Any], chunk: Sequence[Any]) -> Any:
        """Take a chunk of calls. concurrent.futures.Executor.map calls this."""
        return self.add(MapFuture(), (function, chunk, None))

    def add(self, future: Any, call: Any) -> Any:
        if os.getpid() != self._owner:
            raise RuntimeError("cannot schedule new futures in a forked child: make an Executor of its own")
        with self._lock:
            if self._over is not None:
                raise self._over.with_traceback(None)
            self._waiting.append((future, call))
            self._ring()
        return future

    def end(self, after: str = "shutdown", *, cancel: bool = False, abort: bool = False, wait: bool = False) -> None:
        """Take no more calls. cancel: those that have not begun. abort: kill the workers, and let all futures fail."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._over = self._over or RuntimeError(f"cannot schedule new futures after {after}")
            self._cancel |= cancel
            self._abort |= abort
            self._ring()
        if wait:
            if threading.current_thread() is self._thread:
                raise RuntimeError("an Executor cannot wait for its own end in a callback: use shutdown(wait=False)")
            self._ended.wait()  # until Python 3.12, a join() that a signal interrupts takes the thread for ended
            self._thread.join()

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._wake()

    # In the thread.

    def _serve(self, supervisor: Supervisor) -> None:
        try:
            with supervisor:
                try:
                    for result in supervisor.run(self):
                        self._settle(result)
                        del result  # it may be large, and the next one far away
                finally:
                    with self._lock:
                        self._rung = True
        except BaseException as error:
            self._fail(error)
        finally:
            self._forget()

    def _forget(self) -> None:
        self._at_exit.cancel()
        _executors.discard(self)
        self._ended.set()

    def _check(self) -> None:
        if self._abort:
            raise InterruptedError("this Executor was interrupted")

    def fileno(self) -> int:
        return -2

    def take(self, room: int) -> Sequence[bytes]:
        self._rung = False
        # In advance: 5 ms of work for each worker, and an eighth of the calls that wait, at most.
        ahead = min(len(self._waiting) // 8, int(0.005 * self._workers / max(self._seconds, 1e-9)))
        most = min(room + len(self._given), 1 + self._workers + ahead)
        payloads: list[bytes] = []
        while self._waiting:
            future, call = self._waiting[0]
            if len(self._given) >= most:
                if self._cancel:
                    future.cancel()
                elif not future.cancelled():
                    break
            self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if self._lost_main and is_of_main(call[0]):
                    raise RuntimeError(f"{LOST_MAIN}, or give mp_context=multiprocessing.get_context('fork')")
                payloads.append(pickled(call))
            except BaseException as error:
                future.set_exception(error.with_traceback(None))
            else:
                self._given[next(self._tsk_ids)] = (future, function_name(call[0]))
        self.exhausted = self._over is not None and not self._waiting
        return payloads

    def _settle(self, result: TaskResult) -> None:
        future, name = self._given.pop(result.tsk_id)
        self._seconds += (result.seconds - self._seconds) / 8
        try:
            value = value_of(result, name)
        except BaseException as error:
            future.set_exception(error.with_traceback(None))
        else:
            future.set_result(value)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._over = late("futures").BrokenProcessPool(in_executor_words(describe(error)))
        futures = [future for future, _ in self._given.values()]
        futures += [future for future, _ in self._waiting if future.set_running_or_notify_cancel()]
        for future in futures:
            with contextlib.suppress(BaseException):  # a callback may leave by sys.exit
                future.set_exception(self._over)
        self._given.clear()
        self._waiting.clear()


# ---------------------------------------------------------------------------------------------------------------------
# The engine: moves tasks from their source into the queue, and outcomes out of it.

READ_AHEAD = 4  # a job in order reads at most this times num_slots tasks beyond its oldest unfinished one
CANCELLED = "cancelled before it began"

# Seconds between two checks of the workers:
CHECK_SECONDS = 0.05  # while tasks are outstanding; a result waits for two, at most
IDLE_SECONDS = 0.35  # while no tasks are outstanding
HUNGRY_SECONDS = 0.005  # while some workers sleep and others hold tasks that have not begun

HALT_TRIES = 20  # how often to halt a worker in order to cancel one task in its lane
OVERDUE_SECONDS = 1.0  # a worker that cannot be halted is killed this long after its task has timed out


IN_THE_MIDDLE = "this Supervisor is in the middle of a step, which a signal handler cannot wait for"


class Use:
    """The right to use a run: for one thread at a time, in the process that made it. `with` raises RuntimeError if not.

    A signal handler may use it in the middle of its own thread's use.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self.lock = threading.RLock()

    @property
    def in_child(self) -> bool:
        """True in a child that the user forked: nothing here is the child's."""
        return os.getpid() != self._owner

    def check_process(self) -> None:
        if self.in_child:
            raise RuntimeError("this Supervisor belongs to the process that made it: make another one in this process")

    def __enter__(self) -> None:
        self.check_process()
        if not self.lock.acquire(blocking=False):
            raise RuntimeError(
                "this Supervisor is in use by another thread: give each thread a Supervisor of its own, or use "
                "shmqueue.Executor, which many threads can share"
            )

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def check(self) -> None:
        with self:
            return


class Run:
    """Moves tasks from their source into the queue, and outcomes out of it, step by step, in its user's thread.

    paused: nothing new begins.
    failure: the error that ended the run early, or None.
    over: why no more steps are possible, or "".

    In the middle of a step, tasks may be in no list. What signal handlers, other threads and the garbage collector want
    then is a request: it is noted, and done after the step. For the same reason an exception in a step ends the run.
    What the user's own code raises is outside: its iterable is read, and `report` is called, between two steps.
    """

    def __init__(self, queue: Any, pool: WorkerPool, ledger: Ledger) -> None:
        self._queue = queue
        self._pool = pool
        self._ledger = ledger
        self._packer = Packer(queue, ledger)
        self.paused = False
        self.over = ""
        self.failure: Exception | None = None
        self.use = Use()
        self._middle = threading.RLock()  # held in the middle of a step
        self._stepping = False  # the same, for a signal handler in the thread that holds it
        self._waiting = False  # this thread sleeps; or a signal handler of it runs meanwhile
        self._requests: collections.deque[Callable[[], object]] = collections.deque()

    def check_over(self) -> None:
        if self.over:
            raise RuntimeError(self.over)

    def check_open(self) -> None:
        self.check_over()
        self.use.check()

    def close(self) -> None:
        self.over = "this Supervisor is closed"

    # Steps.

    def step(self, job: Job, report: Callable[[], None], until: float = math.inf) -> None:
        """Move what can be moved, or else wait for news, until then at most. Call `report` after each check."""
        self.check_over()
        with self.use:
            unread = len(job.results)
            more = self._advance(job, report)
            if not (more or len(job.results) > unread or self.failure):
                self._wait(job, until)

    def _advance(self, job: Job, report: Callable[[], None]) -> bool:
        """Do what a step does, but do not wait. Return True if there may be more to do."""
        if self._ledger.delayed:
            self._do(lambda: self._ledger.take_due(system.monotonic()))
        more = self._take(job)
        checked = system.monotonic() >= self._pool.next_check
        more = bool(self._do(lambda: self._move(job, checked))) or more
        if checked:
            report()
        return more

    def _do(self, action: Callable[[], Any]) -> Any:
        """Do a part of a step, and then what was requested meanwhile. Return None if it has ended the run."""
        with self._middle:
            if self._stepping:
                raise RuntimeError(IN_THE_MIDDLE)
            result = self._act(action)
            if self._requests:
                self._serve()
        return result

    def _act(self, action: Callable[[], Any]) -> Any:
        result = None
        try:
            self._stepping = True
            try:
                result = action()
                self._packer.free_unused()
            except Exception as error:
                if is_interruption(error):
                    raise
                self._give_up(error)
        except BaseException:
            self.over = "this Supervisor was interrupted: close it"
            raise
        finally:
            self._stepping = False
        return result

    def _move(self, job: Job, check: bool) -> bool:
        ledger, pool = self._ledger, self._pool
        if self.failure is not None:  # all have their outcomes, and no lock or word is to be trusted
            return False
        fed = self.push()
        room = self._queue.room()
        readable = not job.source.exhausted and (room == 0 or job.source.fileno() == -1)
        waits = bool(ledger.again or ledger.fresh or readable)
        self._queue.waits_for_room = waits
        more = pool.collect() or (waits and self._queue.room() > room)
        pool.hurry()
        if check:
            more = pool.check(system.monotonic()) or more
        return more or (fed and bool(ledger.again or ledger.fresh))

    def _take(self, job: Job) -> bool:
        """Read tasks if there is room. Return True if the source can be read again without waiting."""
        source = job.source
        room = self._source_room(job)
        if self._ledger.stopping and not source.finite:
            source.exhausted = True
        elif room > 0:
            items = source.take(room)
            if items:
                self._do(lambda: self._ledger.admit(job, items))
            return source.exhausted or source.fileno() == -1  # if exhausted, its job may be finished
        return False

    def _source_room(self, job: Job) -> int:
        ledger = self._ledger
        if job.source.exhausted or ledger.again or ledger.fresh:
            return 0
        if ledger.stopping:
            return BLOCK
        if self.paused or job.must_wait(READ_AHEAD * self._queue.num_slots):
            return 0
        return int(self._queue.room())

    def push(self) -> bool:
        """Push tasks if there is room. Return True if any were pushed."""
        ledger = self._ledger
        room = self._queue.room()
        waiting = ledger.again or ledger.fresh  # in this order: payloads may lie in the heap, where others need room
        if self.paused or room <= 0 or not waiting:
            return False
        tasks = self._packer.take(waiting, room)
        if tasks is None:
            return False
        places = self._queue.push(tasks)
        if tasks.block is None:
            tasks.slots = b""  # the next ones get this memory, which the processor still has in its cache
        ledger.placed(tasks, places)
        self._pool.pushed(0 if waiting is ledger.again else len(tasks))
        return True

    def _wait(self, job: Job, until: float) -> None:
        if self._waiting:
            raise RuntimeError(IN_THE_MIDDLE)
        stream = job.source.fileno() if self._source_room(job) > 0 else -1
        try:
            self._waiting = True
            self._pool.wait(min(self._pool.next_check, self._ledger.next_due(), until), stream)
        finally:
            self._waiting = False

    def submit(self, job: Job, item: Any, timeout: float | None, report: Callable[[], None]) -> int:
        """Number an item as a task of the job, and push it. Return its tsk_id.

        Somebody may submit for long before results are read. So take in what is finished, or workers would wait.
        """

        def admit_and_push() -> None:
            self._ledger.admit(job, [item], timeout)
            self.push()

        self.check_over()
        with self.use:
            tsk_id = self._ledger.next_id
            self._do(admit_and_push)
            if self._pool.needs_step():
                self._advance(job, report)
            while (self._ledger.again or self._ledger.fresh) and not self.paused:
                self.step(job, report)
        return tsk_id

    def parts(self, job: Job, report: Callable[[], None], timeout: float) -> Generator[Iterator[Any], None, None]:
        """Yield iterators, each over some results of the job, as they come, and end after so many seconds.

        Closed early, this cancels the rest.
        """
        until = system.monotonic() + timeout
        last = False
        try:
            while not job.finished:
                try:
                    part = job.results.popleft()
                except IndexError:  # asking first would not do: another thread may take the last one
                    part = None
                if isinstance(part, TaskError):
                    raise self.failure or part
                if part is not None:
                    try:
                        yield part
                    except GeneratorExit:  # its reader stopped inside this part; results() yields the rest later
                        job.results.appendleft(iter(list(part)))
                        raise
                elif last:
                    return
                elif self.failure is not None and job.source.exhausted:
                    break
                else:
                    last = system.monotonic() >= until
                    self.step(job, report, until)
            if self.failure is not None:
                raise self.failure
            if job.source.error is not None:
                part, job.source.error = job.source.error, None
                raise part
        finally:
            part = None  # the traceback of an error holds this frame, and so the Supervisor
            if job.source is not NO_SOURCE and not job.finished:
                job.cancelled = True
                job.results.clear()
                if not self.use.in_child:
                    self.request(self._withdraw)

    def finish(self, job: Job, report: Callable[[], None]) -> None:
        self.paused = False
        while self._ledger.unfinished() and not self.over:
            self.step(job, report)
        self._pool.closing = True
        for lane in self._pool.living():
            if lane.is_ready():
                lane.retire()
            else:
                lane.process.kill()
        deadline = system.monotonic() + STOP_SECONDS
        while self._pool.living() and system.monotonic() < deadline and not self.over:
            self.step(job, report)

    # Requests, and the end of tasks and of the run.

    def request(self, action: Callable[[], object]) -> None:
        """Have something done between two steps: now, or by the thread that is in the middle of one."""
        if self.over:  # a signal handler may come while close() ends the workers
            return
        self._requests.append(action)
        self._pool.wake_supervisor()  # a poll goes on after a signal handler
        self._serve()

    def _serve(self, timeout: float = 0.0) -> None:
        """Do what was requested, unless a step takes longer than this."""
        if self._middle.acquire(timeout=timeout):
            try:
                with contextlib.suppress(IndexError):  # a signal handler may take the last one first
                    while self._requests and not self._stepping:
                        self._act(self._requests.popleft())
            finally:
                self._middle.release()

    def pause(self, paused: bool) -> None:
        self.check_open()
        self.paused = paused
        if paused:
            self.request(self._withdraw)

    def cancel_all(self) -> None:
        with self.use:
            self._ledger.stopping = True
            self.request(self._withdraw)

    def cancel(self, tsk_id: int) -> bool:
        """End a task that has not begun. Return True if it was never started, and never will be.

        Any thread may call this, and waits for the end of the step that another one takes.
        """
        self.use.check_process()
        self.check_over()
        answers: list[bool] = []

        def request() -> None:
            position = self._ledger.position(tsk_id)
            if position is not None:
                self._pool.take_back(position)
            answers.append(self._ledger.cancel(tsk_id))

        if self._middle.acquire(blocking=False):
            try:
                self._do(request)
            finally:
                self._middle.release()
        else:
            self._requests.append(request)
        while not (answers or self.over or self.failure):
            self._serve(CHECK_SECONDS)
        return answers == [True]

    def _withdraw(self) -> None:
        """Take back all tasks that have not begun. Those of cancelled jobs end here; the others wait."""
        self._ledger.drop_cancelled()
        if self._ledger.in_queue():
            self._pool.take_back()
            self._pool.next_check = 0.0

    def abort(self) -> None:
        with self.use:
            self.request(lambda: self._end(Doom(None, "cancelled", "stopped while it ran"), CANCELLED, sound=True))

    def _end(self, why: Doom, error: str, *, sound: bool) -> None:
        """Kill the workers. Tasks in hand get the outcome `why`, and the others end with this error.

        sound: what is in the segment, and what was noted of it, is right. Otherwise nobody knows what was in hand.
        """
        self._ledger.stopping = self._pool.closing = True
        self._pool.end_all(why, settle=sound)
        self._ledger.end_all("cancelled" if sound else "crashed", error)

    def _give_up(self, error: Exception) -> None:
        """End the run: every task gets an outcome, and then the iterators raise the error."""
        self.failure = error
        if not isinstance(error, (WorkersFailedError, SpoiledSegmentError)):
            self.failure = RuntimeError(f"this run has ended early: {describe(error)}")
            self.failure.__cause__ = error
        text = describe(error)
        self._end(Doom(None, "crashed", text), text, sound=type(error) is WorkersFailedError)


# ---------------------------------------------------------------------------------------------------------------------
# The lanes: a worker as the supervisor sees it, and what is read of its batches.


class Outcomes(
    collections.namedtuple(
        "Outcomes", "start bound ends seconds started begin log kind", defaults=((), 0.0, 0.0, 1, b"", 0)
    )
):
    """What was read of a batch.

    start: the position of the first task.
    bound: where the batch ends.
    ends: for each task that is finished, where its value ends in the log.
    seconds: one number for each of them, or their mean.
    started: when the first task began, in seconds since 1970.
    begin: where the first value begins in the log.
    log: the bytes of all values.
    kind: of those values that are no records (a head and bytes).
    """


class Doom(collections.namedtuple("Doom", "position status error grace", defaults=(0.0,))):
    """Why the supervisor ends a worker, and the outcome of its task.

    position: the task's; None for any task in hand.
    grace: seconds between SIGTERM and SIGKILL; without one there is no SIGTERM.
    """


class Lane:
    """A worker, as the supervisor sees it: its process, its state, and the batches that it has claimed.

             begin()            1st claim              asleep
      DEAD ─────────▶ STARTING ─────────▶ RUNNING ◀────────────▶ IDLE      by the worker, in its words
       ▲                 │                 │  ▲                   │
       │                 └──────┬──────────┤  │ halt()            │
       │ recover()     doom()   │   halt() ▼  │ ends              │
       │                        │         HALTED                  │
       │                        ▼          │ doom()               │
       └───────────────────── DOOMED ◀─────┴──────────────────────┘
    Any process may also die by itself: from each state an edge leads to DEAD. No word holds the state: it is DEAD
    without a `process.child`, DOOMED with a `doomed`, STARTING until is_ready(), IDLE while it is asleep. halt() stops
    it for a moment, in any of these.

    A batch ends at its bound. At first that is its `end`. After a halt it is the position after the task in hand.
    `end` is not used then: if somebody continued the worker during the halt, the worker may have stopped at the
    lowered `end`, or run past it.

    Always harvested <= published <= claims <= harvested + 2, where `published` and `claims` are words of the worker.

    wake: our end of the pipe by which it is woken.
    harvested: the number of the last batch that was read to its bound.
    settled_below: outcomes below this position are in the ledger.
    halted_batch: the number of the batch that was halted last. bound: the bound of that batch.
    halted_at: when it was last halted. halt_again: halt it at the next check: the last halt failed, or it is to leave.
    seen: at the last check, the number of its batch, and how many tasks of it were done.
    progress_since: when `seen` last changed.
    rung: the number of the last sleep that we woke it from.
    told: when it was told to leave; 0.0 if it was not. too_large_since: for the memory it uses; 0.0 if it is not.
    doomed: why the supervisor ends it, or None.
    """

    def __init__(self, index: int, queue: Any, ledger: Ledger, grace: float) -> None:
        self.index = index
        self._queue = queue
        self._ledger = ledger
        self._grace = grace
        self._words = queue.words
        self._status = queue.status[index]
        self.harvested = 0
        self.settled_below = 0
        self.halted_batch = 0
        self.bound = 0
        self.seen = (0, 0)
        self.begin(Process(None), None)

    def begin(self, process: Process, wake: Any) -> None:
        self.process = process
        self.process.command = functools.partial(self._queue.command, self.index)
        self.wake = wake
        self.progress_since = system.monotonic()
        self.halted_at = 0.0
        self.halt_again = False
        self.rung = 0
        self.told = self.too_large_since = 0.0
        self.doomed: Doom | None = None
        self._words[self._status + BORN] = process.born
        self._words[self._status + PID] = process.pid

    def word(self, word: int) -> int:
        return int(self._words[self._status + word])

    # Its process.

    def is_ready(self) -> bool:
        """Return True if this process has called the initializer, and has claimed or slept."""
        return self.word(LIMIT) > 0

    def retire(self) -> None:
        """Make the worker leave after its current task."""
        self.told = system.monotonic()
        self.halt_again = True
        self._queue.tell_to_leave(self.index)
        ring(self.wake)

    def doom(self, why: Doom) -> None:
        """End the worker and what its functions started: at once, or with SIGTERM and a grace if it has one."""
        self.doomed = self.doomed or why
        if why.grace:
            self.retire()
            self.process.signal_group(signal.SIGTERM)
        else:
            self.process.kill()

    def check_memory(self, now: float, most: int | None) -> None:
        """Replace the worker if it uses more than `most` bytes of memory."""
        rss = self.process.measure()
        if most is None or rss <= most:
            self.too_large_since = 0.0
        elif not self.too_large_since:
            self.too_large_since = now
            self.retire()
        elif now - self.too_large_since >= MEMORY_SECONDS:
            self.doom(Doom(None, "crashed", f"its worker held more than max_rss={most:,}: {rss:,} bytes of memory"))

    def attend(self, now: float, hungry: bool) -> tuple[bool, bool]:
        """Halt the worker if it is slow while others are idle or its results wait, or if its task runs too long.

        hungry: some worker has nothing to do.
        Return (moved, check_soon): tasks were moved; this worker must be checked again soon.
        """
        glance = self._queue.glance(self.index)
        if self.doomed is not None:  # it is about to end
            if now >= self.told + self.doomed.grace:
                self.process.kill()
            return False, False
        if self.seen != (glance.number, glance.done):
            self.seen = (glance.number, glance.done)
            self.progress_since = now
        if glance.in_hand is not None:
            timeout = self._ledger.timeout(glance.in_hand)
            if now - self.progress_since >= timeout:
                return self._end_overdue(glance.in_hand, now, timeout), False
        waited = system.perf_counter() - max(glance.began, self.halted_at)
        slow = waited >= HUNGRY_SECONDS
        moved = False
        # For idle workers: first take back what only this worker could claim. Then halt it, and take what it claimed.
        if hungry and (slow or not (self._ledger.again or self._ledger.fresh)):
            moved = self.take_unclaimed()
        unsettled = glance.first + glance.done > max(glance.first, self.settled_below)
        results_wait = unsettled and glance.number > self.harvested and waited >= CHECK_SECONDS
        if results_wait or (glance.not_begun and (self.halt_again or (hungry and slow))):
            moved = self.halt() or moved
        elif not glance.not_begun:
            self.halt_again = False
        return moved, self.halt_again or (hungry and glance.not_begun > 0)

    def _end_overdue(self, position: int, now: float, timeout: float) -> bool:
        """End the worker, whose task runs too long, and take back its other tasks. Return True if that was possible."""
        text = f"ran longer than {timeout:g} s"
        halted = self.halt(Doom(position, "timeout", text, self._grace))
        if not halted and now - self.progress_since >= timeout + OVERDUE_SECONDS:
            self.doom(Doom(position, "timeout", text))
        return halted

    # Its batches.

    def has_batches(self) -> bool:
        return self.word(CLAIMS) != self.harvested

    def read_to(self, number: int) -> list[Outcomes]:
        """Read all batches up to this number, which are finished or were cut by a halt. Their halves are free then."""
        self._check_claims(number)
        batches = []
        while self.harvested < number:
            self.harvested += 1
            batches.append(self._read(self.harvested))
        return batches

    def settle(self, batches: Iterable[Outcomes]) -> None:
        """Tell the ledger what was read. Tasks that are not done there are given back."""
        for outcomes in batches:
            done = self._settle_done(outcomes)
            if done < outcomes.bound:
                self._ledger.give_back(done, outcomes.bound - done)

    def _check_claims(self, number: int) -> None:
        if not 0 <= number - self.harvested <= 2:
            raise SpoiledSegmentError(f"worker {self.index} says {number:,} batches; {self.harvested:,} were read")

    def _limits(self, number: int) -> tuple[int, int]:
        """Return the positions [first, bound) of a batch."""
        words, half = self._words, self._queue.half(self.index, number)
        first = words[half.first]
        bound = self.bound if self.halted_batch == number else words[half.end]
        if not 0 <= bound - first <= self._queue.batch:
            raise SpoiledSegmentError(f"worker {self.index} has a batch of positions {first:,} to {bound:,}")
        return first, bound

    def _read(self, number: int) -> Outcomes:
        """Read what is finished in a batch and not in the ledger."""
        half = self._queue.half(self.index, number)
        first, bound = self._limits(number)
        start = min(bound, max(first, self.settled_below))
        skip = start - first
        ends = array.array("Q", half.ends[skip : half.done(bound - first)].tobytes())
        if not ends:
            return Outcomes(start, bound)
        began = half.stamps[skip] or half.stamps[0]  # or when the batch began
        begin = half.ends[skip - 1] & ~RECORD if skip else 1
        return Outcomes(
            start=start,
            bound=bound,
            ends=ends,
            seconds=half.seconds(skip, skip + len(ends)),
            started=began + system.wall_clock() - system.perf_counter(),
            begin=begin,
            log=bytes(half.log[begin : ends[-1] & ~RECORD]),
            kind=half.log[0],
        )

    def _settle_done(self, outcomes: Outcomes) -> int:
        """Tell the ledger what is finished. Return the position after it."""
        start: int = outcomes.start
        done = len(outcomes.ends)
        doomed = self.doomed
        if done:
            self.settled_below = start + done
        if done and doomed is not None and doomed.grace and doomed.position == start:
            self._charge_in_hand(start)  # it ended during its grace, and is the last of its batch
        elif done and outcomes.ends == NO_VALUE * done:
            self._ledger.complete(self.index, start, done, None, outcomes.seconds, outcomes.started)
        elif done:
            self._settle_values(outcomes)
        return start + done

    def _values(self, outcomes: Outcomes, records: bool) -> Sequence[Any]:
        log, ends = outcomes.log, outcomes.ends
        begin, kind = outcomes.begin, outcomes.kind
        end = ends[-1] & ~RECORD
        try:
            if kind > CODED or end - begin != len(log):
                raise ValueError(f"of kind {kind}, values end at {end:,} of the log")
            if not records:
                return decode_log(kind, self._ledger.codec, log, begin, ends)
            pieces = cut(log, begin, array.array("Q", [end & ~RECORD for end in ends]))
            return [
                self._read_value(piece, end, position, kind)
                for position, end, piece in zip(itertools.count(outcomes.start), ends, pieces)
            ]
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise SpoiledSegmentError(f"an outcome's value cannot be read: {describe(error)}") from None

    def _read_value(self, data: bytes, end: int, position: int, kind: int) -> Any:
        """Return the value of a task in a batch that has records. That of a record may lie in a file."""
        if not end & RECORD:
            return decode(kind, data, self._ledger.codec) if data else None
        head, data = data[0], data[1:]
        if head & IN_FILE:
            size, error = REFERENCE.unpack(data)
            if error:
                text = describe(OSError(error, os.strerror(error)))
                return Failure(f"{text}: no room for a value of {size:,} bytes in {shared_directory()}")
            path = self._queue.segment.beside(f"v{position}")
            data = system.read_file(path, size)
            system.unlink(path)
        return decode(head & ~IN_FILE, data, self._ledger.codec, self._ledger.structures)

    def _settle_values(self, outcomes: Outcomes) -> None:
        records = outcomes.ends.tobytes()[RECORD_BYTE::8] != bytes(len(outcomes.ends))  # some are
        values = self._values(outcomes, records)
        position, seconds, started = outcomes.start, outcomes.seconds, outcomes.started
        if (outcomes.kind == BYTES and not records) or Failure not in set(map(type, values)):
            self._ledger.complete(self.index, position, len(values), values, seconds, started)
            return
        times = itertools.repeat(seconds) if isinstance(seconds, float) else seconds
        for failed, group in itertools.groupby(zip(values, times), key=lambda outcome: type(outcome[0]) is Failure):
            part, took = zip(*group)
            if failed:
                for each in zip(itertools.count(position), part, took, itertools.accumulate(took, initial=started)):
                    self._ledger.charge(self.index, *each)
            else:
                self._ledger.complete(self.index, position, len(part), part, took, started)
            position += len(part)
            started += sum(took)

    def halt(self, doomed: Doom | None = None) -> bool:
        """Stop the worker for a moment. Read what it has finished, and take back what it has not begun.

        Only this takes back tasks that a living worker has claimed. If the worker has the task of `doomed` in hand,
        it is ended. Return True if the lane could be read; if not, try again later.
        """
        try:
            done = self.process.stop() and self._take_back(doomed)
        finally:
            self.process.go_on()
        self.halt_again = not done
        self.halted_at = system.perf_counter()
        return done

    def _take_back(self, doomed: Doom | None) -> bool:
        """Do what a halt does while the worker stands still.

        Somebody else may continue or kill the worker meanwhile. So after each read, check that the worker has not run,
        and use what was read only then.
        """
        process = self.process
        claiming = self._queue.is_claiming(self.index)
        number = self.word(CLAIMS)
        if claiming or not process.stands_still():
            return False
        self._check_claims(number)
        if number == self.harvested:
            return True
        self.settle(self.read_to(number - 1))
        outcomes = self._read(number)
        bound = outcomes.bound
        if not process.stands_still():  # while it runs, an entry of `ends` may be visible before its value
            return False
        in_hand = self._settle_done(outcomes)
        if in_hand + 1 < bound and not self._draw_back(number, in_hand, bound):
            return False
        if doomed is not None and in_hand < bound and in_hand == doomed.position and process.stands_still():
            self.doom(doomed)
        return True

    def _draw_back(self, number: int, in_hand: int, bound: int) -> bool:
        """Make a batch end after the task in hand, and give back the rest.

        Return False if the worker has run meanwhile. Then nothing was taken back.
        """
        words = self._words
        half = self._queue.half(self.index, number)
        self.halted_batch = number
        self.bound = bound
        words[half.end] = min(words[half.end], in_hand + 1)  # never higher: an earlier halt may have lowered it
        # Longer than QUIET_SECONDS, so that the worker reads `end` when it continues.
        system.spin_until(system.perf_counter() + 2 * QUIET_SECONDS)
        task = in_hand - words[half.first]
        if not self.process.stands_still() or half.ends[task]:
            return False
        # Only now are the later tasks ours.
        self.bound = in_hand + 1
        self._ledger.give_back(in_hand + 1, bound - in_hand - 1)
        return True

    def recover(self, why: str) -> None:
        """Account for the tasks of the worker, which was reaped, and died for this reason."""
        self._queue.recover(self.index)
        number = self.word(CLAIMS)
        if number != self.harvested:
            *earlier, last = self.read_to(number)
            self.settle(earlier)
            done, bound = self._settle_done(last), last.bound
            if done < bound and number > self.word(PUBLISHED):
                self._charge_in_hand(done, why)
                done += 1
            self._ledger.give_back(done, bound - done)
        self._queue.reset(self.index)
        self.take_unclaimed()

    def _charge_in_hand(self, position: int, error: str = "") -> None:
        """Charge the task that has been in hand until now: its worker has died, or was doomed for it."""
        with contextlib.suppress(FileNotFoundError):  # its value may have a file, which may not be whole
            system.unlink(self._queue.segment.beside(f"v{position}"))
        failure = Failure(error, status="crashed")
        if self.doomed is not None and self.doomed.position in (None, position):
            failure = Failure(self.doomed.error, status=self.doomed.status)
        seconds = system.monotonic() - self.progress_since
        self._ledger.charge(self.index, position, failure, seconds, started=system.wall_clock() - seconds)

    def take_unclaimed(self) -> bool:
        """Give back tasks that only this worker could claim; in variants there may be some. Return True if so."""
        spans = self._queue.drain(self.index)
        for span in spans:
            self._ledger.give_back(*span)
        return bool(spans)


# ---------------------------------------------------------------------------------------------------------------------
# Packing: payloads go into their slots, or into the heap or a file.

BLOCK_BYTES = 512 << 10  # payloads that do not fit their slots are kept in blocks of this size, and read at once
# While the heap holds more than this, payloads are put there only if the ring is empty. So the part of the heap that is
# in use fits the processors' caches.
HEAP_AHEAD = 4 << 20
FILE_BYTES = 64 << 20  # payloads in files that may be in the queue at a time; a single one may be larger


class Packer:
    """Packs tasks into slots, and says there where payloads are that do not fit."""

    def __init__(self, queue: SharedTaskQueue, ledger: Ledger) -> None:
        self._queue = queue
        self._ledger = ledger
        self.heap = Heap(queue)
        self._file_bytes = 0
        self._block_bytes = BLOCK_BYTES  # fewer while shared memory is full
        self._unused: collections.deque[Callable[[], None]] = collections.deque()  # what frees blocks without tasks

    def free_unused(self) -> None:
        while self._unused:
            self._unused.popleft()()

    def take(self, waiting: collections.deque[Tasks], room: int) -> Tasks | None:
        """Return up to `room` of these tasks in slots, or None if their payloads have to wait."""
        if waiting[0].block is not None:  # they were in the queue before
            return take_tasks(waiting, room)
        if len(waiting[0].data[0]) <= self._queue.ring.capacity:
            tasks = take_tasks(waiting, room)
            if self._queue.ring.pack(tasks):
                return tasks
            waiting.appendleft(tasks)  # another payload is longer
        if self.heap.used > HEAP_AHEAD and self._queue.backlog():
            return None
        data = waiting[0].data
        few = 1 + 2 * BLOCK_BYTES // (1 + len(data[0]))  # more than fit a block if all are like the first
        lengths = list(map(len, data[: min(room, few)]))
        count = len(lengths)
        most = min(self._block_bytes, self.heap.size // 2)
        if sum(lengths) > most:
            count = max(1, bisect.bisect(list(itertools.accumulate(lengths)), most))
        return self._pack(take_tasks(waiting, count), lengths[:count])

    def _pack(self, tasks: Tasks, lengths: Sequence[int]) -> Tasks | None:
        """Put payloads of these lengths outside their slots. Return None if they have to wait, or can never fit."""
        size = sum(lengths)
        try:
            if self._place(tasks, lengths, size):
                self._block_bytes = BLOCK_BYTES
                return tasks
        except OSError as error:  # there is no memory
            if len(lengths) > 1:
                self._block_bytes = max(1, size // 2)  # try fewer at a time
            elif not (self._file_bytes or self.heap.used):  # else there may be room when others are done
                text = f"{describe(error)}: no room in {shared_directory()} for a payload of {size:,} bytes"
                self._ledger.end(tasks, "failed", text)
                return None
        self._ledger.fresh.appendleft(tasks)
        return None

    def _place(self, tasks: Tasks, lengths: Sequence[int], size: int) -> bool:
        """Put payloads into the heap, or a single one that is too large for it into a file beside the segment.

        Return False if there is no room now.
        """
        if size <= self.heap.size // 2:
            pages = self.heap.put(tasks.data, size)
            if pages is None:
                return False
            edges = [*itertools.accumulate(lengths, initial=pages.start * mmap.PAGESIZE)]
            free = functools.partial(self.heap.free, pages)
        elif self._file_bytes and self._file_bytes + size > FILE_BYTES:
            return False
        else:
            number = tasks.tsk_ids[0]
            path = self._queue.segment.beside(f"p{number}")
            system.write_file(path, tasks.data[0])
            self._file_bytes += size
            edges = [PAYLOAD_FILE | number, size]
            free = functools.partial(self._remove_file, path, size)
        tasks.block = Block(free, self._unused)
        self._queue.ring.refer(tasks, array.array("Q", edges))
        return True

    def _remove_file(self, path: str, size: int) -> None:
        self._file_bytes -= size
        system.unlink(path)


class Heap:
    """The pages of the segment for payloads that do not fit their slots (supervisor)."""

    def __init__(self, queue: SharedTaskQueue) -> None:
        self._segment = queue.segment
        self._bytes = queue.heap
        self.size: int = len(queue.heap)
        pages = self.size // mmap.PAGESIZE
        self._in_use = bytearray(pages)  # a byte a page, so that `find` looks for free ones
        self._reserved = bytearray(pages)
        self.used = 0  # bytes of the pages in use

    def put(self, payloads: Sequence[bytes], size: int) -> slice | None:
        """Copy payloads of `size` bytes in all. Return their pages, or None if there is none free.

        Raises OSError (ENOSPC) if the memory cannot be reserved.
        """
        count = -(-size // mmap.PAGESIZE)
        first = self._in_use.find(bytes(count))
        if first < 0:
            return None
        pages = slice(first, first + count)
        offset = first * mmap.PAGESIZE
        if not all(self._reserved[pages]):
            self._segment.reserve(self._segment.size - self.size + offset, count * mmap.PAGESIZE)
            self._reserved[pages] = b"\1" * count
        self._in_use[pages] = b"\1" * count
        self.used += count * mmap.PAGESIZE
        self._bytes[offset : offset + size] = b"".join(payloads)
        return pages

    def free(self, pages: slice) -> None:
        count = pages.stop - pages.start
        self._in_use[pages] = bytes(count)
        self.used -= count * mmap.PAGESIZE


# ---------------------------------------------------------------------------------------------------------------------
# The ledger: which task is where, and what became of it.


class Ledger:
    """Gives each task its tsk_id, knows which positions hold it, and gives it exactly one outcome.

      admit()          placed()            claim           the worker
      WAITING ───────▶ IN THE RING ──────▶ IN A LANE ────▶ calls its function: IN HAND
       ▲  │ ▲              │                │                 │
       │  │ └ give_back() ─┴────────────────┘                 ├── complete() ─────────▶ SETTLED
       │  │                                                   │                           ▲
       │  └ end() ────────────────────────────────────────────┼───────────────────────────┤
       │                                                      └── charge() ──┬────────────┤
       └────── take_due() ─────── WAITING FOR A RETRY ◀─────────────────────┘            │
                                           └─────────── end() ────────────────────────────┘
    `complete` and `charge` come from a lane, `give_back` from the ring (a drain) and from lanes (a halt, a death), and
    `end` from a cancellation, from the end of the run and for a payload that can never fit. A retry without a pause
    waits at once. The position of a task that was given back is never used again.

    fresh: tasks that were read and not pushed yet.
    again: tasks that were in the queue; they are pushed before fresh ones.
    delayed: tasks that wait for another attempt, each alone: (when it is due, tsk_id, the task), sorted.
    stopping: nothing more begins, in any job.
    """

    def __init__(self, functions: Mapping[int, Function], retries: Retries, workers: int, codec: Codec | None) -> None:
        self.intake = Intake(functions, codec)
        self.names = self.intake.names
        self.structures = structures_of(functions.values())
        self.codec = codec
        self.tally = Tally(max(1, workers))  # without workers, this process is number 0
        self.fresh: collections.deque[Tasks] = collections.deque()
        self.again: collections.deque[Tasks] = collections.deque()
        self.delayed: list[tuple[float, int, Tasks]] = []
        self.stopping = False
        self.next_id = 1
        self._retries = retries
        self._timeouts: dict[int, float] = {}  # seconds by fn_id
        self._placed: list[Tasks] = []  # what is in the queue, by position

    def set_timeouts(self, timeout: Any) -> None:
        """Note how long tasks may run, as Supervisor is told. Raises ValueError for a name that no function has."""
        if not isinstance(timeout, Mapping):
            self._timeouts = dict.fromkeys(self.names, timeout or math.inf)
            return
        for key, seconds in timeout.items():
            if key not in self.intake.fn_ids:
                raise ValueError(f"timeout: {no_such_function(function_name(key), self.names.values())}")
            self._timeouts[self.intake.fn_ids[key]] = math.inf if seconds is None else seconds

    def timeout(self, position: int) -> float:
        """Return the seconds that the task at this position may run; math.inf if it has no limit, or is not there."""
        tasks = self.tasks_at(position)
        if tasks is None:
            return math.inf
        return tasks.timeout or self._timeouts.get(tasks.fn_ids[position - tasks.first], math.inf)

    def tasks_at(self, position: int) -> Tasks | None:
        at = bisect.bisect(self._placed, position, key=operator.attrgetter("first")) - 1
        tasks = self._placed[at] if at >= 0 else None
        return tasks if tasks and position < tasks.first + len(tasks.payloads) else None

    # Into the queue.

    def admit(self, job: Job, items: Sequence[Any], timeout: float | None = None) -> None:
        """Give each item its tsk_id and put it with the fresh tasks. An item that cannot be sent is a failed task."""
        if len(items) == 0:
            return
        try:
            columns = self.intake.encode(job, items)
        except Exception as error:  # whatever a codec raises
            if is_interruption(error):
                raise
            if len(items) == 1:
                name, payload, text = self.intake.explain(job, items[0], error)
                (tsk_id,) = self._number(job, 1)
                self._finish(job, TaskResult(tsk_id, name, payload, "failed", None, text, 0, None, 0.0))
            else:  # some of them can be sent
                half = len(items) // 2
                self.admit(job, items[:half], timeout)
                self.admit(job, items[half:], timeout)
        else:
            tasks = Tasks(job, self._number(job, len(items)), *columns)
            tasks.timeout = timeout
            self._put(tasks, self.fresh)

    def _number(self, job: Job, count: int) -> range:
        tsk_ids = range(self.next_id, self.next_id + count)
        self.next_id = tsk_ids.stop
        job.admit(tsk_ids)
        return tsk_ids

    def placed(self, tasks: Tasks, places: Sequence[Span]) -> None:
        """Note that `tasks` are in the queue, at these positions."""
        start = 0
        for first, count in places:
            part = tasks if len(places) == 1 else tasks.part(start, start + count)
            part.first = first
            part.settled = bytearray(count)
            bisect.insort(self._placed, part, key=operator.attrgetter("first"))
            start += count

    # Out of the queue.

    def _take(self, position: int, count: int) -> Iterator[tuple[Tasks, int, int]]:
        """Remove tasks from the account of the queue. Yield (tasks, start, stop). Raises SpoiledSegmentError."""
        until = position + count
        while position < until:
            tasks = self.tasks_at(position)
            if tasks is None:
                raise SpoiledSegmentError(f"an outcome for position {position:,}, where no task is")
            start, stop = position - tasks.first, min(until - tasks.first, len(tasks.payloads))
            if tasks.settled.find(1, start, stop) >= 0:
                raise SpoiledSegmentError(f"a second outcome for a task at positions {position:,} to {until:,}")
            tasks.settled[start:stop] = b"\1" * (stop - start)
            if 0 not in tasks.settled:
                self._placed.remove(tasks)
            yield tasks, start, stop
            position = tasks.first + stop

    def complete(self, worker: int, position: int, count: int, values: Any, seconds: Any, started: float) -> None:
        """Note that the tasks from `position` on are ok.

        values: a sequence; None if every task returned None. seconds, started: see Outcomes.
        """
        same = itertools.repeat
        done = 0
        for tasks, start, stop in self._take(position, count):
            part = slice(done, done + stop - start)
            done += stop - start
            if isinstance(seconds, float):
                spent = seconds * (stop - start)
                times: Any = same(seconds, stop - start)
                begun: Iterable[float] = same(started)  # that of each is not worth its cost
            else:
                times = seconds[part]
                spent = sum(times)
                begun = itertools.accumulate(times, initial=started)
            self.tally.add_ok(worker, stop - start, spent)
            each = same(None, stop - start) if values is None else iter(values[part])
            tasks.job.outstanding -= stop - start
            tasks.job.add(self.names, tasks, slice(start, stop), each, times, worker, begun)
            started += spent

    def charge(self, worker: int, position: int, failure: Failure, seconds: float, started: float) -> None:
        """Count an attempt for a task that was started and is not ok. Try it again, or make this its outcome."""
        tasks, at, _ = next(self._take(position, 1))
        self.tally.busy[worker] += seconds
        result = TaskResult(
            tsk_id=tasks.tsk_ids[at],
            function=self.names[tasks.fn_ids[at]],
            payload=tasks.payloads[at],
            status=failure.status,
            value=failure.value,
            error=failure.error,
            attempts=tasks.attempts,
            worker=worker,
            seconds=seconds,
            traceback=failure.traceback,
            started=started,
        )
        if not self._retries.wanted(result) or self._is_cancelled(tasks.job):
            self._finish(tasks.job, result, failure.cause)
            return
        self.tally.retried += 1
        task = tasks.part(at, at + 1)
        task.last = result
        pause = self._retries.pause(result.attempts)
        if pause:
            bisect.insort(self.delayed, (system.monotonic() + pause, result.tsk_id, task))
        else:
            self.again.append(task)

    def next_due(self) -> float:
        return self.delayed[0][0] if self.delayed else math.inf

    def take_due(self, now: float) -> None:
        count = bisect.bisect(self.delayed, now, key=operator.itemgetter(0))
        self.again.extend(task for _, _, task in self.delayed[:count])
        del self.delayed[:count]

    def give_back(self, position: int, count: int) -> None:
        """Take back tasks that never began. They are pushed again, or end if their job is cancelled."""
        for tasks, start, stop in self._take(position, count):
            self._put(tasks.part(start, stop), self.again)

    def position(self, tsk_id: int) -> int | None:
        """Return the position of a task that is in the queue and has no outcome yet."""
        for tasks in self._placed:
            if tsk_id in tasks.tsk_ids:
                at = tasks.tsk_ids.index(tsk_id)
                if not tasks.settled[at]:  # else it was taken back, and may have been pushed again
                    return tasks.first + at
        return None

    def cancel(self, tsk_id: int) -> bool:
        """End a task that is not in the queue. Return True if it was never started."""
        for waiting in (self.again, self.fresh):
            for index, tasks in enumerate(waiting):
                if tsk_id in tasks.tsk_ids:
                    at = tasks.tsk_ids.index(tsk_id)
                    del waiting[index]
                    for part in (tasks.part(at + 1, len(tasks)), tasks.part(0, at)):
                        if len(part):
                            waiting.insert(index, part)
                    self.end(tasks.part(at, at + 1))
                    return tasks.last is None
        self._end_delayed(lambda task: task.tsk_ids[0] == tsk_id)
        return False

    def _end_delayed(self, wanted: Callable[[Tasks], bool]) -> None:
        ending = [task for _, _, task in self.delayed if wanted(task)]
        self.delayed = [entry for entry in self.delayed if not wanted(entry[2])]
        for task in ending:
            self.end(task)

    def drop_cancelled(self) -> None:
        self._end_delayed(lambda task: self._is_cancelled(task.job))
        for waiting in (self.again, self.fresh):
            for _ in range(len(waiting)):
                self._put(waiting.popleft(), waiting)

    def _put(self, tasks: Tasks, waiting: collections.deque[Tasks]) -> None:
        if self._is_cancelled(tasks.job):
            self.end(tasks)
        else:
            waiting.append(tasks)

    def _is_cancelled(self, job: Job) -> bool:
        return job.cancelled or self.stopping

    def end(self, tasks: Tasks, status: str = "cancelled", error: str = CANCELLED) -> None:
        """Give this outcome to tasks that are not in the queue. One that was tried before keeps its last result."""
        for tsk_id, fn_id, payload in zip(tasks.tsk_ids, tasks.fn_ids, tasks.payloads):
            result = TaskResult(tsk_id, self.names[fn_id], payload, status, None, error, 0, None, 0.0)
            self._finish(tasks.job, tasks.last or result)

    def end_all(self, status: str, error: str) -> None:
        """Give all remaining tasks this outcome. No worker lives."""
        for tasks in self._placed:
            self.again.extend(tasks.part(at, at + 1) for at in range(len(tasks)) if not tasks.settled[at])
        self._placed.clear()
        self.take_due(math.inf)
        for waiting in (self.again, self.fresh):
            while waiting:
                self.end(waiting.popleft(), status, error)

    def _finish(self, job: Job, result: TaskResult, cause: BaseException | None = None) -> None:
        job.outstanding -= 1
        job.add_one(result, cause)
        self.tally.add_bad(result)

    def in_queue(self) -> int:
        return sum(tasks.settled.count(0) for tasks in self._placed)

    def unfinished(self) -> int:
        """Return how many tasks are on their way. A failure may leave some without an outcome: they are not."""
        return self.in_queue() + sum(map(len, (*self.again, *self.fresh))) + len(self.delayed)


class Intake:
    """Makes of items what travels: which function, and the bytes of the payload. Says why an item cannot be sent.

    names: of the functions, by fn_id. fn_ids: by function and by name.
    """

    def __init__(self, functions: Mapping[int, Function], codec: Codec | None) -> None:
        self.names = {fn_id: function_name(function) for fn_id, function in functions.items()}
        self.fn_ids: dict[Any, int] = {name: fn_id for fn_id, name in reversed(self.names.items())}
        self.fn_ids.update((function, fn_id) for fn_id, function in functions.items())
        self._codec = codec
        self._untyped = {fn_id for fn_id, function in functions.items() if not annotated(function)[0]}
        plain_checker()  # made here, so that forked workers have it
        self._only = next(iter(functions)) if len(functions) == 1 else 0  # the fn_id, if there is only one
        self._function = functions.get(self._only)

    def encode(self, job: Job, items: Sequence[Any]) -> tuple[Any, ...]:
        """Return the columns of `items`, as Tasks has them. Raises if one of them cannot be sent."""
        types = set(map(type, items))
        payloads = items
        fn_id = job.fn_id or self._only
        if not job.fn_id and (job.source.pairs or not fn_id) and all(issubclass(each, tuple) for each in types):
            functions = [function for function, _ in items]
            payloads = [payload for _, payload in items]
            types = set(map(type, payloads))
            fn_ids = map_alike(self.fn_ids.__getitem__, functions)
        elif not fn_id or Rejected in types:
            raise TypeError  # explain() says more
        else:
            fn_ids = array.array("I", [fn_id]) * len(items)
            if tuple in types and not job.fn_id:
                payloads = [item[1] if self._is_pair(job, item) else item for item in items]
                types = set(map(type, payloads))
        if types <= {bytes}:
            return fn_ids, payloads, payloads, fn_ids
        as_they_are = self._codec is None and self._untyped.issuperset(fn_ids)
        kinds, data = encode_payloads(payloads, self._codec, types, as_they_are)
        if isinstance(kinds, int):
            return fn_ids, payloads, data, map_alike((kinds << KIND_BIT).__or__, fn_ids)
        marked = array.array("I", [fn_id | kind << KIND_BIT for fn_id, kind in zip(fn_ids, kinds)])
        return fn_ids, payloads, data, marked

    def _is_pair(self, job: Job, item: Any) -> bool:
        if job.fn_id or not isinstance(item, tuple) or len(item) != 2:
            return False
        return job.source.pairs or not self._only or (callable(item[0]) and item[0] == self._function)

    def explain(self, job: Job, item: Any, error: Exception) -> tuple[str, object, str]:
        if isinstance(item, Rejected):
            return item
        fn_id = job.fn_id or self._only
        pair = self._is_pair(job, item)
        function, payload = item if pair else (self.names.get(fn_id, ""), item)
        name = function_name(function)
        text = describe(error)
        if pair and isinstance(error, KeyError) and function not in self.fn_ids:
            text = no_such_function(name, self.names.values())
        elif not pair and not fn_id:
            text = f"TypeError: an item is (function, payload), not {briefly(item, 60)}"
        return name, payload, text


class Retries(collections.namedtuple("Retries", "most delay statuses", defaults=(0.0, RETRY_ON))):
    """Which tasks are tried again: so often, after a pause of 60 s at most, if they have one of these statuses."""

    def wanted(self, result: TaskResult) -> bool:
        return bool(result.attempts <= self.most and result.status in self.statuses)

    def pause(self, attempts: int) -> float:
        return float(min(60.0, self.delay * 2 ** min(attempts - 1, 60)))


class Tasks:
    """Tasks of one job in equal columns. They wait to be pushed, or are in the queue.

    payloads: as they were given.
    data: as they travel; nothing if they lie outside the slots. marked: the fn_ids with the payloads' kinds.
    slots: the tasks as they lie in the ring, while they are pushed; and for ever if the payloads lie outside.
    block: keeps the payloads outside the slots; None if they are in the slots, or not packed yet.
    first: the position of the first task in the queue.
    settled: a byte for each task; 1 if it has left the queue.
    last: the result of the last attempt, if this is one task that is tried again.
    timeout: seconds that each may run; None: as its function may.
    """

    def __init__(
        self,
        job: Job,
        tsk_ids: range,
        fn_ids: array.array[int],
        payloads: Sequence[Any],
        data: Sequence[Any],
        marked: array.array[int],
    ) -> None:
        self.job = job
        self.tsk_ids = tsk_ids
        self.fn_ids = fn_ids
        self.payloads = payloads
        self.data = data
        self.marked = marked
        self.slots: bytes | bytearray = b""
        self.block: Block | None = None
        self.last: TaskResult | None = None
        self.timeout: float | None = None
        self.first = 0
        self.settled = bytearray()

    def __len__(self) -> int:
        return len(self.payloads)

    def part(self, start: int, stop: int) -> Tasks:
        part = slice(start, stop)
        columns = (self.tsk_ids[part], self.fn_ids[part], self.payloads[part], self.data[part])
        tasks = Tasks(self.job, *columns, self.marked[part])
        size = len(self.slots) // len(self)
        tasks.slots = self.slots[start * size : stop * size]
        tasks.block = self.block
        tasks.last = self.last
        tasks.timeout = self.timeout
        return tasks

    @property
    def attempts(self) -> int:
        return 1 if self.last is None else self.last.attempts + 1


def take_tasks(waiting: collections.deque[Tasks], count: int) -> Tasks:
    tasks = waiting.popleft()
    if count < len(tasks):
        waiting.appendleft(tasks.part(count, len(tasks)))
        tasks = tasks.part(0, count)
    return tasks


def map_alike(call: Callable[[Any], int], values: Sequence[Any]) -> array.array[int]:
    """Call it for each value. Most often all are the same, and one call is enough."""
    if values.count(values[0]) == len(values):
        return array.array("I", [call(values[0])]) * len(values)
    return array.array("I", map(call, values))


class Block(collections.namedtuple("Block", "free unused")):
    """Payloads that lie together outside the slots: in pages of the heap, or in a file.

    Each of its tasks refers to it. With the last one it goes. Python may notice that anywhere, inside the lock too, so
    `free`, which frees the place, is only noted.
    """

    def __del__(self) -> None:
        self.unused.append(self.free)


class Job:
    """One call of run, or all calls of submit: where tasks come from, and where their results go as they finish.

    results: iterators of TaskResults.
    fn_id: the function of every item, or 0.
    outstanding: the number of tasks that have a tsk_id and no outcome yet.
    cancelled: nobody reads the results, and nothing more of this job begins.
    """

    def __init__(self, source: Source, fn_id: int = 0) -> None:
        self.source = source
        self.fn_id = fn_id
        self.outstanding = 0
        self.cancelled = False
        self.results: collections.deque[Any] = collections.deque()

    @property
    def finished(self) -> bool:
        return not self.outstanding and not self.results and self.source.exhausted

    def must_wait(self, limit: int) -> bool:
        """Return True if results wait for a task, and more than `limit` tasks were read since that one."""
        held = self.source.held
        return held > 0 and self.outstanding + held > limit

    def admit(self, tsk_ids: range) -> None:
        self.outstanding += len(tsk_ids)

    def add(self, names: Any, tasks: Tasks, part: slice, values: Any, seconds: Any, worker: int, started: Any) -> None:
        """Note that this part of `tasks` is ok. values, seconds and started are iterables.

        The TaskResults are made when they are read.
        """
        same = itertools.repeat
        name = same(*names.values()) if len(names) == 1 else map(names.__getitem__, tasks.fn_ids[part])
        columns = (tasks.tsk_ids[part], name, tasks.payloads[part], same("ok"), values, same(None))
        self._deliver(map(_new_result, zip(*columns, same(tasks.attempts), same(worker), seconds, same(None), started)))

    def add_one(self, result: TaskResult, cause: BaseException | None) -> None:
        self._deliver(iter([result]))

    def _deliver(self, results: Any) -> None:
        if not self.cancelled:
            self.results.append(results)


class OrderedJob(Job):
    """One call of map. `results` holds iterators of values, and TaskErrors, in the order of the input."""

    def __init__(self, source: Source, fn_id: int = 0) -> None:
        super().__init__(source, fn_id)
        self._early: dict[int, tuple[int, Any]] = {}  # by first tsk_id: (count, results) that wait for earlier tasks
        self._due: collections.deque[list[int]] = collections.deque()  # tsk_ids [next, stop) that were not delivered

    def must_wait(self, limit: int) -> bool:
        """Return True if more than `limit` tasks lie between the oldest unfinished one and the newest."""
        return sum(stop - start for start, stop in self._due) > limit

    def admit(self, tsk_ids: range) -> None:
        super().admit(tsk_ids)
        if self._due and self._due[-1][1] == tsk_ids.start:
            self._due[-1][1] = tsk_ids.stop
        else:
            self._due.append([tsk_ids.start, tsk_ids.stop])

    def add(self, names: Any, tasks: Tasks, part: slice, values: Any, seconds: Any, worker: int, started: Any) -> None:
        tsk_ids = tasks.tsk_ids[part]
        self._order(tsk_ids[0], len(tsk_ids), values)

    def add_one(self, result: TaskResult, cause: BaseException | None) -> None:
        error = TaskError(result)
        error.__cause__ = cause
        self._order(result.tsk_id, 1, error)

    def _order(self, tsk_id: int, count: int, results: Any) -> None:
        """Deliver the results of tasks from `tsk_id` on, once those of all earlier tasks have been delivered."""
        self._early[tsk_id] = (count, results)
        while self._due and self._due[0][0] in self._early:
            due = self._due[0]
            count, results = self._early.pop(due[0])
            due[0] += count
            self._deliver(results)
            if due[0] == due[1]:
                self._due.popleft()


class Tally:
    """Counts outcomes, and keeps the first and the last failures.

    errors, failures: see Supervisor.summary(). latest: the last five failures. They have no values.
    completed, failed, busy: for each worker, its tasks that were ok and not ok, and the seconds that functions ran.
    """

    def __init__(self, workers: int) -> None:
        self._began = system.monotonic()
        self.counts = dict.fromkeys(STATUSES, 0)
        self.retried = 0
        self.completed = [0] * workers
        self.failed = [0] * workers
        self.busy = [0.0] * workers
        self.errors: collections.Counter[str] = collections.Counter()
        self.failures: list[TaskResult] = []
        self.latest: collections.deque[TaskResult] = collections.deque(maxlen=5)

    def seconds(self) -> float:
        return system.monotonic() - self._began

    def add_ok(self, worker: int, count: int, seconds: float) -> None:
        self.counts["ok"] += count
        self.completed[worker] += count
        self.busy[worker] += seconds

    def add_bad(self, result: TaskResult) -> None:
        self.counts[result.status] += 1
        if result.worker is not None:
            self.failed[result.worker] += 1
        if result.status == "cancelled":
            return
        where, _, rest = (result.error or "").partition(": ")
        error = (rest if where.startswith("line ") else where).partition(":")[0]
        what = result.status
        if result.attempts:  # a task that was never started can name anything, and would make the table large
            what = f"{result.function} {what}"
        self.errors[f"{what}: {error}"[:100]] += 1
        kept = result._replace(payload=briefly(result.payload, 60), value=None)
        seen = [each.status for each in self.failures]
        if len(seen) == 5 and result.status not in seen:
            del self.failures[max(at for at in range(5) if seen[at] in seen[:at])]
        if len(self.failures) < 5:
            self.failures.append(kept)
        self.latest.append(kept)

    def summary(self) -> dict[str, Any]:
        return {
            "busy": min(1.0, sum(self.busy) / max(1e-9, self.seconds() * len(self.busy))),
            "failures": [result._asdict() for result in self.failures],
            "kinds": dict(self.errors),
        }


def no_such_function(name: str, names: Collection[str]) -> str:
    """Return the error for a name that no function has, with the nearest names."""
    import difflib

    known = f"there are: {', '.join(names)}"
    if near := difflib.get_close_matches(name, names, 3, 0.5):
        known = f"nearest: {', '.join(near)}"
    return f"LookupError: no function {reprlib.repr(name)}; {known}"


def function_name(function: Any) -> str:
    if isinstance(function, str):
        return function
    return str(getattr(function, "__name__", None) or type(function).__name__)


# ---------------------------------------------------------------------------------------------------------------------
# The worker pool: starts, wakes, stops and reaps the worker processes.

STILL_SECONDS = 0.05  # a worker that is stopped stands still after this time, or the halt has failed
STOP_SECONDS = 5.0  # workers that are told to leave may take this long
MEMORY_SECONDS = 1.0  # between two readings of memory and processor time; a worker may stay above max_rss so long
# The run ends when FAILED_STARTS starts have failed since a ready worker last ended, none is ready now, and either an
# initializer raised or no worker had a task for FAILED_SECONDS.
FAILED_STARTS = 8
FAILED_SECONDS = 3.0
WORKER_NAME = "shmqueue-"  # of a worker's process, with its index
_supervisor_ends: weakref.WeakSet[Any] = weakref.WeakSet()  # pipe ends that a forked worker must not keep open


class WorkerPool:
    """All workers: starts, wakes and replaces them, and collects what they finish.

    closing: start no more.
    respawned: how many have died and were to be replaced.
    next_check: when to check the workers again.
    """

    def __init__(self, queue: Any, ledger: Ledger, options: WorkerOptions, context: Any) -> None:
        self._queue = queue
        self._ledger = ledger
        self._options = options
        self.context = context
        self.lanes = [Lane(index, queue, ledger, options.grace) for index in range(len(queue.status))]
        self.closing = False
        self.respawned = 0
        self.next_check = 0.0
        self._sleepers: list[tuple[int, int]] = []  # at the last check
        self._news = 0  # tasks that were pushed since then, for the first time
        self._lost = False  # at the last check, tasks were nowhere
        self._failed_starts = 0  # since a ready worker last ended
        self._last_failure = ""  # why the last of them failed
        self._start_due = 0.0  # start no worker before
        self._worked_at = system.monotonic()
        self._next_memory = system.monotonic() + MEMORY_SECONDS  # so a short run need not import psutil
        self._bell, self._bell_end = self._pipe()
        self._poll = system.poll()
        self._poll.register(self._bell, select.POLLIN)

    def _pipe(self) -> tuple[Any, Any]:
        """Return a pipe (reader, writer). Writing never blocks, and forked workers close both ends."""
        reader, writer = self.context.Pipe(duplex=False)
        system.set_blocking(writer.fileno(), False)
        _supervisor_ends.update((reader, writer))
        return reader, writer

    def living(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.process.child is not None]

    # Starting and ending processes.

    def start_all(self) -> None:
        self._queue.stuck = self.free_lock
        for lane in self.lanes:
            self._start(lane)

    def _start(self, lane: Lane) -> None:
        """Start a process as this worker. Raises OSError if that is not possible, and leaves nothing open."""
        # Fail now (EMFILE) if few descriptors are left: multiprocessing leaves some open if it fails half-way.
        spare = [system.dup(self._bell.fileno()) for _ in range(SPARE_DESCRIPTORS)]
        del spare  # this closes them
        wake, ours = self._pipe()
        try:
            self._launch(lane, wake, ours)
        except (OSError, EOFError) as error:
            close_launch_pipes(error)
            if isinstance(error, (ConnectionError, EOFError)):
                text = "the fork server could not start a process: it has ended, and what it printed says why"
                raise OSError(errno.EAGAIN, text) from None
            raise
        finally:
            wake.close()
            if lane.wake is not ours:
                ours.close()

    def _launch(self, lane: Lane, wake: Any, ours: Any) -> None:
        queue = self._queue
        mine = (wake, self._bell_end)
        arguments = (type(queue), queue.name, queue.primitives, lane.index, self._options, mine)
        child = self.context.Process(target=worker_main, args=arguments, name=f"{WORKER_NAME}{lane.index}")
        helper = {"spawn": "resource_tracker", "forkserver": "forkserver"}.get(self.context.get_start_method())
        if helper is not None:  # start it now: later it would keep the mask that is set here
            importlib.import_module(f"multiprocessing.{helper}").ensure_running()
        with contextlib.ExitStack() as after:
            # What is handled in Python waits. An exception between the start of a process and the note of it would
            # leave a process that nobody knows. And a forked worker must not run its parent's handlers.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            after.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            signal.pthread_sigmask(signal.SIG_BLOCK, handled_signals())
            if helper is None:  # fork was chosen before this program had threads, or it was named
                after.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            _supervisor_ends.difference_update(mine)
            try:
                child.start()
            finally:
                _supervisor_ends.add(self._bell_end)
            # Only we ask how it ends: of two threads that do so at once, one would get a wrong answer.
            late("multiprocessing").process._children.discard(child)
            lane.begin(Process(child), ours)
            self._poll.register(lane.process.end_sign(), select.POLLIN)

    def _start_failed(self, why: str, sure: bool) -> None:
        """Try again after a pause of 0.1 to 5 s, which is doubled after twice as many failures as there are workers.

        Raises WorkersFailedError if that is hopeless. sure: the initializer raised.
        """
        now = system.monotonic()
        self._failed_starts += 1
        self._start_due = now + min(5.0, 0.1 * 2 ** min(self._failed_starts // (2 * len(self.lanes)), 6))
        self._last_failure = why
        hopeless = sure or now - self._worked_at > FAILED_SECONDS
        if self._failed_starts >= FAILED_STARTS and hopeless and not any(lane.is_ready() for lane in self.living()):
            raise WorkersFailedError(why)

    def _bury(self, lane: Lane) -> None:
        """Reap a dead worker, and account for its tasks. Raises WorkersFailedError if it is not to be replaced."""
        code = self._reap(lane)
        note = self._queue.take_note(lane.index)
        why = note or exit_text(code)
        ready = lane.is_ready()
        if not (ready or system.exists(self._queue.segment.path)):
            why = f"{self._queue.segment.path} was removed, as systemd does when its user logs out (RemoveIPC=)"
        lane.recover(why)
        if self.closing:
            return
        self.respawned += 1
        if code == UNGUARDED and not ready:  # a task may exit with this code, too
            raise WorkersFailedError(GUARD_REMEDY)
        if ready:
            self._worked_at = system.monotonic()
            self._failed_starts = 0
            self._start_due = 0.0
        else:
            count = self._failed_starts + 1
            self._start_failed(f"{count} workers in a row died before they took a task: {why}", sure=bool(note))

    def _reap(self, lane: Lane) -> int | None:
        """Kill what a dead worker's functions started, and reap it. Return what Process.reap() does."""
        lane.process.signal_group(signal.SIGKILL)
        with contextlib.suppress(KeyError):  # an interrupted close() has done it
            self._poll.unregister(lane.process.end_sign())
        code = lane.process.reap()
        lane.wake.close()
        return code

    def end_all(self, why: Doom, settle: bool) -> None:
        """Kill the workers. Account for their tasks if `settle`."""
        end = self._bury if settle else self._reap
        for lane in self.living():
            lane.doom(why)
        for lane in self.living():
            end(lane)

    def close(self) -> None:
        """Kill and reap the remaining workers, and close the pipes. If this is interrupted, they end by themselves."""
        try:
            self.end_all(Doom(None, "crashed", "closed"), settle=False)
        finally:
            for end in filter(None, (*(lane.wake for lane in self.lanes), self._bell, self._bell_end)):
                end.close()

    # Waking and waiting.

    def ring(self, everyone: bool = False) -> None:
        """Wake the sleepers for which there is enough work, once for each sleep.

        everyone: wake all that could take a task, again too. One of them may be stopped, or get no processor.
        """
        for index, number in self._queue.wakeable(everyone):
            lane = self.lanes[index]
            if everyone or lane.rung != number:
                lane.rung = number
                ring(lane.wake)

    def wake_supervisor(self) -> None:
        ring(self._bell_end)

    def wait(self, until: float, stream: int) -> None:
        """Sleep until that time, or until a worker rings or dies, or this descriptor has input (-1 for none)."""
        if stream >= 0:
            self._poll.register(stream, select.POLLIN)
        try:
            events = self._poll.poll(max(0.0, until - system.monotonic()) * 1000)
        finally:
            if stream >= 0:
                self._poll.unregister(stream)
        bell = self._bell.fileno()
        for descriptor, _ in events:
            if descriptor == bell:
                system.read(bell, 4096)
            elif descriptor != stream:  # a worker has died
                self.next_check = 0.0

    # Collecting and looking after them.

    def needs_step(self) -> bool:
        waits = not all(map(self._queue.has_free_half, range(len(self.lanes))))
        return waits or system.monotonic() >= self.next_check

    def collect(self) -> bool:
        """Bring what workers have finished to the ledger. Return True if there was any."""
        queue = self._queue
        published = queue.harvest([lane.harvested for lane in self.lanes])
        news = []
        waits = False
        for lane, number in zip(self.lanes, published):
            if number != lane.harvested:
                waits = waits or not queue.has_free_half(lane.index)
                news.append((lane, lane.read_to(number)))
        if waits:  # a worker needs the half that was just read: let it go on before values are made of the bytes
            queue.harvest([lane.harvested for lane in self.lanes])
            self.ring()
        for lane, batches in news:
            lane.settle(batches)
        if news:
            self._worked_at = system.monotonic()
        return bool(news)

    def pushed(self, new: int) -> None:
        """Wake workers for tasks that were pushed, some of them for the first time."""
        self._news += new
        self.ring()

    def hurry(self) -> None:
        """Wake workers that sleep. If others have tasks, or may take all that were pushed, check them soon."""
        self.ring()
        sleepers = self._queue.sleepers()
        if (sleepers != self._sleepers or (sleepers and self._news)) and self._ledger.in_queue():
            self.next_check = min(self.next_check, system.monotonic() + HUNGRY_SECONDS)

    def check(self, now: float) -> bool:
        """Bury and replace the dead, halt the slow, end those whose task runs too long. Return True if tasks moved."""
        before, self._sleepers = self._sleepers, self._queue.sleepers()
        news, self._news = self._news, 0
        waiting = self._ledger.in_queue()
        self._check_for_lost(waiting)
        old = self._queue.backlog() > news  # some tasks in the ring were there before
        self.ring(everyone=old or self._sleepers == before)  # else the bells of the last check have done something
        hungry = any(self._queue.has_free_half(worker) for worker, _ in self._sleepers)
        moved = False
        soon = news > 0 and hungry  # one that was woken may just be taking all of them
        for lane in self.lanes:
            if lane.process.child is not None and lane.process.is_dead():
                self._bury(lane)
                moved = True
            if lane.process.child is None:
                if now >= self._start_due and not self.closing:
                    try:
                        self._start(lane)
                    except OSError as error:
                        self._start_failed(f"no worker can be started: {limit_text(error)}", sure=False)
                moved = lane.take_unclaimed() or moved
            elif waiting:
                took, restless = lane.attend(now, hungry)
                moved = moved or took
                soon = soon or restless
        if now >= self._next_memory and late("psutil") is not None:
            self._next_memory = now + MEMORY_SECONDS
            for lane in self.living():
                lane.check_memory(now, self._options.max_rss)
        if soon:
            self.next_check = now + HUNGRY_SECONDS
        else:
            self.next_check = now + (CHECK_SECONDS if waiting or self._ledger.unfinished() else IDLE_SECONDS)
        return moved

    def _check_for_lost(self, waiting: int) -> None:
        """Raise SpoiledSegmentError if tasks are nowhere: the ring is empty, and every claimed batch was read.

        This must hold at two checks in a row, with a turn of the lock between them: a claim writes several words.
        """
        lost = waiting > 0 and not self._queue.backlog() and not any(lane.has_batches() for lane in self.lanes)
        if lost and self._lost:
            raise SpoiledSegmentError(f"{waiting:,} tasks are in the queue, but neither in the ring nor in a lane")
        self._lost = lost

    def take_back(self, position: int | None = None) -> None:
        """Take back what is in the ring, and what workers have not begun: of all, or of the one with this position."""
        for span in self._queue.drain():
            self._ledger.give_back(*span)
        for lane in self.living():
            glance = self._queue.glance(lane.index)
            if position is None:
                lane.halt()
            elif glance.first <= position < glance.end:
                for _ in range(HALT_TRIES):
                    if lane.halt():
                        break

    def free_lock(self, holder: int, seconds: float) -> list[Lane]:
        """Free a lock for which the supervisor has waited for so many seconds. Return the workers that live.

        holder: the worker that has signed, or -1 if none has. If it was stopped, continue it. If it is dead, the lock
        frees itself.
        """
        living = [lane for lane in self.living() if not lane.process.is_dead()]
        for lane in living:
            if seconds >= 1 and holder in (lane.index, -1):
                lane.process.signal_group(signal.SIGCONT)
        return living

    def suspend(self) -> None:
        since = system.monotonic()
        living = self.living()
        try:
            for lane in living:
                lane.process.signal_group(signal.SIGSTOP)
            # Not SIGSTOP: nobody could continue an orphaned group. The kernel ignores SIGTSTP in such a group.
            system.kill(os.getpid(), signal.SIGTSTP)
        finally:
            for lane in living:
                lane.process.signal_group(signal.SIGCONT)
                lane.progress_since += system.monotonic() - since

    def held_up(self, outstanding: int) -> str:
        """Say what keeps workers from running: somebody has stopped them, or none could be started.

        Return "" if nothing does, or if no tasks are outstanding.
        """
        if not outstanding:
            return ""
        living = self.living()
        stopped = [f"worker {lane.index}" for lane in living if lane.process.is_stopped()]
        if stopped:
            return f"{' and '.join(stopped)} {'is' if len(stopped) == 1 else 'are'} stopped"
        return "" if living else self._last_failure


def ring(pipe: Any) -> None:
    """Wake the process that waits at the other end of a pipe."""
    try:
        system.write(pipe.fileno(), b"!")
    except OSError:  # full: enough is written; broken, or closed here: nobody waits any more
        return


class InlineQueue:
    """In place of a queue if there are no workers: holds the one task that runs next in this process."""

    name = ""
    strategy = "in this process"
    num_slots = 1
    printed = False
    status: Sequence[int] = ()
    segment: Any = None
    heap = b""
    ring = types.SimpleNamespace(capacity=math.inf, pack=lambda tasks: True)  # payloads stay where they are
    sleepers = wakeable = staticmethod(lambda *_: [])
    backlog = staticmethod(int)

    def __init__(self) -> None:
        self._positions = itertools.count()
        self.tasks: list[Tasks] = []

    def room(self) -> int:
        return 1 - len(self.tasks)

    def push(self, tasks: Tasks) -> list[Span]:
        self.tasks.append(tasks)
        return [(next(self._positions), 1)]

    def drain(self) -> list[Span]:
        return [(self.tasks.pop().first, 1)] if self.tasks else []


class InlinePool(WorkerPool):
    """No workers: runs the functions in this process, one task in each step, with the same results as in a worker."""

    def start_all(self) -> None:
        self._calls = calls_of(self._options.functions, self._options.codec)
        if self._options.initializer is not None:
            with self._as_worker(0):
                self._options.initializer()

    def needs_step(self) -> bool:
        return False  # a step would call the function

    def end_all(self, why: Doom, settle: bool) -> None:
        self._queue.tasks.clear()

    def collect(self) -> bool:
        if not self._queue.tasks:
            return False
        tasks = self._queue.tasks.pop()
        started, began = system.wall_clock(), system.perf_counter()
        value = self._call(tasks)
        seconds = system.perf_counter() - began
        if isinstance(value, Failure):
            self._ledger.charge(0, tasks.first, value, seconds, started)
        else:
            self._ledger.complete(0, tasks.first, 1, [value], seconds, started)
        return True

    def _call(self, tasks: Tasks) -> Any:
        """Return the value of a single task as it would arrive from a worker, or a Failure."""
        structures, codec = self._ledger.structures, self._ledger.codec
        try:
            with self._as_worker(tasks.tsk_ids[0]):
                value = self._calls[tasks.marked[0]](tasks.data[0])
            if value is not None:
                value = decode(*encode(value, codec, structures), codec, structures)
        except BaseException as error:
            if is_interruption(error):
                raise
            trace = without_own_frames(error.__traceback__)
            value = Failure.of(error)._replace(cause=error.with_traceback(trace))
        return value

    @contextlib.contextmanager
    def _as_worker(self, tsk_id: int) -> Iterator[None]:
        """Have the environment that functions find in worker 0. This process may be a worker itself."""
        global tsk_id_in_hand
        outside = os.environ.get(WORKER_VARIABLE)
        outer = tsk_id_in_hand
        os.environ[WORKER_VARIABLE] = "0"
        tsk_id_in_hand = lambda: tsk_id  # noqa: E731
        try:
            yield
        finally:
            tsk_id_in_hand = outer
            with contextlib.suppress(KeyError):  # the function has removed it, or a run in another thread
                del os.environ[WORKER_VARIABLE]
            if outside is not None:
                os.environ[WORKER_VARIABLE] = outside


# ---------------------------------------------------------------------------------------------------------------------
# Processes: one worker's, and what the system tells of any.


class Process:
    """A worker's process: who it is, and how to stop, continue and end it. Why is up to its Lane.

    child: multiprocessing's object; None before the start and after the process was reaped.
    pidfd: a descriptor that stands for this process, whoever gets its pid later; None if there is none.
    born: when the process started, as system.process_state() tells it; 0 if that is not known.
    rss, cpu: bytes and percent, as last measured.
    """

    rss = 0
    cpu = 0.0
    command: Callable[[], int] = int  # tells the process group of the command that it runs, or 0
    _monitor: Any = None  # its psutil.Process
    _stopped_before = False  # somebody else had stopped it when the halt began
    _switches = 0  # its context switches when it stood still
    pid = 0
    born = 0
    pidfd: Any = None

    def __init__(self, child: Any) -> None:
        self.child = child
        if child is None:
            return
        self.pid = child.pid
        self.born = system.process_state(self.pid)[1]
        with contextlib.suppress(OSError, AttributeError):  # the process is gone; or there are no pidfds
            self.pidfd = system.pidfd_open(self.pid)
            _supervisor_ends.add(self.pidfd)

    def end_sign(self) -> int:
        """Return the descriptor that becomes readable when the process ends."""
        return int(self.pidfd.fileno() if self.pidfd is not None else self.child.sentinel)

    def is_dead(self) -> bool:
        """Return True if the process has ended. With a pidfd it is not reaped here: its pid still names its group."""
        if self.pidfd is not None:
            return is_readable(self.pidfd.fileno())
        # The sentinel is for what this program has reaped. Children of the process may hold its other end open.
        return not self.child.is_alive() or is_readable(self.child.sentinel)

    def reap(self) -> int | None:
        """Wait until the process has ended, and release what is kept of it.

        Return its exit code, -n for signal n; None if this program has reaped it, or ignores SIGCHLD.
        """
        child = self.child
        if self.pidfd is not None:
            is_readable(self.pidfd.fileno(), wait=True)
        else:
            child.join()
        if child.exitcode is None:
            child.join(1.0)  # the fork server tells it a moment later
        self.pidfd = None  # which closes it
        self.child = None
        return child.exitcode  # type: ignore[no-any-return]

    def kill(self) -> None:
        """Kill it and what its functions started."""
        self.signal_group(signal.SIGKILL)
        self.signal(signal.SIGKILL)  # if it has no group yet

    def measure(self) -> int:
        """Read its memory and processor time. Return the bytes of memory as last told; 0 if they never were."""
        psutil = late("psutil")
        with contextlib.suppress(psutil.Error, OSError):  # OSError: this program has no descriptor left
            self._monitor = self._monitor or psutil.Process(self.pid)
            self.rss = self._monitor.memory_info().rss
            self.cpu = self._monitor.cpu_percent()
        return self.rss

    def stop(self) -> bool:
        """Stop it, and wait until it stands still. Return False if it has ended, or runs on for STILL_SECONDS."""
        self._stopped_before = self.is_stopped()
        if not self._stopped_before:
            self.signal(signal.SIGSTOP)
        for _ in pauses(STILL_SECONDS):
            state, self._switches = system.state_and_switches(self.pid)
            if state in STOPPED:
                return True
            if state in ENDED:
                break
        return False

    def stands_still(self) -> bool:
        """Return True if it has not run since stop(). This notices if somebody continued it and stopped it again."""
        state, switches = system.state_and_switches(self.pid)
        return state in STOPPED and switches == self._switches

    def go_on(self) -> None:
        """Continue it, unless somebody else had stopped it."""
        if not self._stopped_before:
            self.signal(signal.SIGCONT)

    def is_stopped(self) -> bool:
        return system.state_and_switches(self.pid)[0] in STOPPED

    def signal(self, number: int) -> None:
        """Send a signal to the process, and never to another that got its pid."""
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd is not None:
                system.pidfd_send_signal(self.pidfd.fileno(), number)
            elif self._keeps_pid():
                system.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and what its functions started.

        The system does not reuse the number of a group while a process of it lives. The process is first: if it lived
        longer than its command, it would report how that ended.
        """
        if self._keeps_pid():
            for group in filter(None, (self.pid, self.command())):
                with contextlib.suppress(OSError):  # it has ended, or a sandbox refuses it
                    system.killpg(group, number)

    def _keeps_pid(self) -> bool:
        """Return False if another process has its pid now, which started at another time."""
        found = system.process_state(self.pid)[1]
        return found in (0, self.born) or self.born == 0


SPARE_DESCRIPTORS = 16  # the start of a worker needs fewer, with any start method
REMEDIES: dict[int | str, str] = {
    errno.EMFILE: "; take a smaller workers=, or raise `ulimit -n`",
    errno.EFBIG: "; take a smaller num_slots=, or raise `ulimit -f`",
    errno.EAGAIN: "; take a smaller workers=, or raise `ulimit -u`",
    # Python raises this without a number.
    "AF_UNIX path too long": "; set TMPDIR to a shorter path, for the fork server's socket, or name start_method=",
}


def limit_error(error: BaseException) -> BaseException:
    """Return the error; or one with a remedy, if it tells of a limit of the system, or what cannot be sent."""
    import traceback

    if isinstance(error, OSError) and (error.errno or str(error)) in REMEDIES:
        return OSError(error.errno or errno.ENAMETOOLONG, limit_text(error), error.filename)
    modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
    if not isinstance(error, Exception) or "multiprocessing.reduction" not in modules:
        return error
    remedy = "workers that are not forked find functions by name: define them with def at the top level of a module"
    if isinstance(error, RuntimeError):
        remedy = "make locks and queues with the context of the workers"
    return TypeError(f"{error}: {remedy}, or name start_method='fork'")


def limit_text(error: OSError) -> str:
    text = error.strerror or str(error)
    remedy = REMEDIES.get(error.errno or text, "")
    return text.removesuffix(remedy) + remedy


def close_launch_pipes(error: BaseException) -> None:
    """Close the pipes that multiprocessing leaves open if it cannot start a process.

    They are local variables in the frames of the error's traceback. With fork nothing else knows them.
    """
    import traceback

    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_launch" and str(frame.f_globals["__name__"]).startswith("multiprocessing.popen_"):
            popen = frame.f_locals["self"]
            popen.close()
            if popen.method == "fork":
                for name in {"parent_r", "child_w", "child_r", "parent_w"}.intersection(frame.f_locals):
                    os.close(frame.f_locals[name])


def is_pipe(path: str) -> bool:
    """Return True for a named pipe. To open and close it would end its reader's input."""
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def is_readable(descriptor: int, wait: bool = False) -> bool:
    """Return True if a descriptor is readable, or wait until it is."""
    poll = system.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if wait else 0))


def exit_text(code: int | None) -> str:
    if code is None:
        return "the worker process ended; its exit status was taken by this program"
    if code >= 0:
        return f"the worker process exited with code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"the worker process was killed by {names.get(-code, f'signal {-code}')}"


STOPPED = ("T", "t")  # states of a process
ENDED = ("", "Z", "X")


def told_of(pid: int | str, what: str) -> bytes:
    """Return what Linux tells of a process in this file of /proc."""
    with open(f"/proc/{pid}/{what}", "rb", 0) as file:
        return file.read()


def process_state(pid: int) -> tuple[str, int]:
    """Return a process's state, as the letter that ps shows, and when it started, in a unit of the system.

    Return ("", 0) if the process is gone.
    """
    try:
        if os.path.isdir("/proc/self"):
            fields = told_of(pid, "stat").rpartition(b")")[2].split()
            return fields[0].decode(), int(fields[19])
        import subprocess

        command = ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
        told = subprocess.run(command, capture_output=True, env={"LC_ALL": "C", "TZ": "UTC"}, text=True, check=False)
        state, started = told.stdout.split(None, 1)
        return state[0], int("".join(filter(str.isdigit, started)))  # the day, the time, the year: enough
    except (OSError, IndexError, ValueError):
        return "", 0


def state_and_switches(pid: int) -> tuple[str, int]:
    """Return a process's state, and its context switches (0 if the system has no count), both of the same moment.

    If a process is stopped and the number is the same as before, it has not run in between.
    """
    try:
        text = told_of(pid, "status")
        state = text[text.index(b"State:") + 6 :].split(None, 1)[0].decode()
        return state, sum(int(part.split(None, 1)[0]) for part in text.split(b"ctxt_switches:")[1:])
    except (OSError, ValueError, IndexError):
        return process_state(pid)[0], 0


# ---------------------------------------------------------------------------------------------------------------------
# Signals: the library sets no handler in its host, and blocks signals only while it starts a worker.


valid_signals = functools.cache(signal.valid_signals)  # it takes a tenth of a millisecond


def handled_signals() -> list[int]:
    """Return the signals for which this process has a handler in Python."""
    return [number for number in valid_signals() if callable(signal.getsignal(number))]


def _forget_workers() -> None:
    """In a forked child: close what reaches the workers."""
    for end in list(_supervisor_ends):
        with contextlib.suppress(OSError):  # another thread was just closing it
            end.close()


os.register_at_fork(after_in_child=_forget_workers)


# ---------------------------------------------------------------------------------------------------------------------
# The worker process: claims batches, runs them, and leaves outcomes.

BATCH_SECONDS = 0.005  # a batch should take this long: much longer than a claim, and too short to notice
QUIET_SECONDS = 20e-6  # after a task that took longer, the worker notes the time and reads `end`
SPILL_BYTES = 32 << 20  # so many bytes of one worker's values may wait in files
SPILL_TRIES = 100  # for a value that finds no room while this worker has no file whose end could make some,
SPILL_SECONDS = 0.02  # and between two of them
FEW = 16  # tasks that a worker claims first after a sleep: an eighth of it is less than its share, see share()
MANY = 64  # tasks in a batch; see Worker._schedule
SCHED_OTHER, SCHED_BATCH = (getattr(os, name, 0) for name in ("SCHED_OTHER", "SCHED_BATCH"))  # on Linux


def worker_main(
    strategy: type[SharedTaskQueue], name: str, primitives: Any, index: int, options: WorkerOptions, pipes: Any
) -> None:
    """Live the whole life of a worker process. pipes: `wake` and `bell`, see Worker."""
    wake, bell = map(_out_of_reach, pipes)  # first: _redirect() replaces 0 to 2, which may be pipes now
    _isolate(name, index)
    _redirect(options.log)
    try:
        queue = strategy.attach(name, primitives)
    except FileNotFoundError:  # the run has ended, or somebody has removed the file
        os._exit(1)
    worker = Worker(queue, index, options, wake, bell)
    queue.segment.fd = _out_of_reach(queue.segment.fd)
    try:
        worker.start()
        worker.serve()
        # multiprocessing's queues send what functions have put into them. It may be that nobody reads it.
        ending = threading.Thread(target=late("multiprocessing").util._run_finalizers, daemon=True)
        ending.start()
        ending.join(STOP_SECONDS)
    except BaseException as error:
        if worker.disowned is None:
            queue.leave_note(index, describe(error))
        os._exit(1)
    os._exit(0)  # at once: multiprocessing would wait for what the functions started


def _isolate(run: str, worker: int) -> None:
    """Separate this process from its parent and the terminal. What functions start is ended with its group."""
    os.environ[RUN_VARIABLE] = run
    os.environ[WORKER_VARIABLE] = str(worker)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    # Have Linux send SIGCONT when the parent ends. If this process is stopped then, it would stay for ever. It comes as
    # well when only the thread that started this process ends. A halt notices that.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGCONT)  # 1 is PR_SET_PDEATHSIG in <sys/prctl.h>
    signal.set_wakeup_fd(-1)
    for number in {*handled_signals(), signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):  # for the supervisor; a command gets the default again
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # see WorkerPool._launch
    # A controlling terminal would stop this background group for ever if it writes or asks there. Without /dev/tty,
    # getpass, ssh and sudo say so instead of waiting.
    with contextlib.suppress(OSError):  # there is none
        terminal = os.open("/dev/tty", os.O_RDWR)
        import termios

        fcntl.ioctl(terminal, termios.TIOCNOTTY)
        os.close(terminal)
    # The program's fork server would wait for a worker that is stopped, its child, and never end: close our end of the
    # pipe that keeps it alive. A function that wants a fork server starts one of its own.
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None and server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = server._forkserver_pid = None


def _redirect(log: Any) -> None:
    """Put /dev/null in the place of standard input, and the log in that of the output."""
    null = os.open(os.devnull, os.O_RDWR)
    # To open one of these streams would give it a place of its own in a file.
    output = {"": null, "/dev/stdout": 1, "/dev/stderr": 2}.get(log or "")
    if output is None:
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(null, 0)
    if log != NOT_REDIRECTED:
        os.dup2(output, 1)
        os.dup2(output, 2)
    for descriptor in {null, output} - {0, 1, 2}:
        os.close(descriptor)


def _out_of_reach(end: Any) -> int:
    """Move a descriptor to a high number: one that a function closes may soon be the number of another file."""
    new = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, min(512, os.sysconf("SC_OPEN_MAX") // 2))
    if isinstance(end, int):
        os.close(end)
    else:
        end.close()
    return new


# A worker puts its own functions here.
tsk_id_in_hand: Callable[[], int] = int  # a command is told what this returns
note_command: Callable[[int], Any] = int  # is told the `command` word


class Worker:
    """The loop of a worker process, and what it needs.

    The supervisor wakes the worker by the pipe `wake`, and the worker the supervisor by `bell`.
    """

    def __init__(self, queue: SharedTaskQueue, index: int, options: WorkerOptions, wake: int, bell: int) -> None:
        self._queue = queue
        self.index = index
        self.options = options
        self._wake = wake
        self._bell = bell
        self._words = queue.words
        self._status = queue.status[index]
        self._structures = structures_of(options.functions.values())
        self._calls = calls_of(options.functions, options.codec)
        self._quick_dumps = QUICK_DUMPS if options.codec is None else {**QUICK_DUMPS, CODED: {}}
        self._kind = BYTES  # of a batch's values; a batch begins with the kind of the one before
        self._half = queue.half(index, 0)  # of the batch that runs
        self._count = 0  # of its tasks
        self._left: float = math.inf if options.max_tasks is None else options.max_tasks  # tasks until it leaves
        self._limit = options.batch or 1  # tasks to claim next
        self._policy = SCHED_OTHER
        self._recent = 0  # tasks that did not wait, in the largest batch of late; each later batch halves it
        self._waits = 0  # how often this process has waited so far
        self._files = ValueFiles(queue.segment)
        self._output: Any = PrintedOutput(self)
        self.disowned: int | None = None  # in a process that a function forked: the task

    def start(self) -> None:
        global tsk_id_in_hand, note_command
        tsk_id_in_hand = self.tsk_id_in_hand
        note_command = functools.partial(self._words.__setitem__, self._status + COMMAND)
        os.register_at_fork(after_in_child=self._disown)
        watched = (self._queue, self.index, self._wake)
        threading.Thread(target=end_with_supervisor, args=watched, name="shmqueue-watch", daemon=True).start()
        if self.options.log != NOT_REDIRECTED:
            text = io.TextIOWrapper(self._output, "utf-8", "surrogateescape", write_through=True)
            sys.stdout = sys.stderr = text
        else:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if stream is not None and stream is getattr(sys, f"__{name}__"):
                    # Not the same one: a fork copies what is not written yet, and the lock of a thread that writes.
                    with contextlib.suppress(OSError, ValueError):  # the program has closed it
                        about = {"encoding": stream.encoding, "errors": stream.errors, "closefd": False}
                        setattr(sys, name, open(stream.fileno(), "w", **about))
        if sys.breakpointhook is sys.__breakpointhook__ and not os.environ.get("PYTHONBREAKPOINT"):
            sys.breakpointhook = refuse_breakpoint
        if self.options.initializer is not None:
            self.options.initializer()

    def serve(self) -> None:
        queue, words, poll = self._queue, self._words, system.poll()
        poll.register(self._wake, select.POLLIN)
        claim = None
        slept = False  # for long, and has not claimed since
        while self._left > 0:
            before = claim
            limit = int(min(self._limit, self._left, FEW if slept else math.inf))
            claim = queue.claim(self.index, limit)
            words[self._status + LIMIT] = limit
            only_room = before is None and claim is not None  # nothing else is new for the supervisor
            if words[SUPERVISOR_ASLEEP] > only_room:
                with contextlib.suppress(BlockingIOError, BrokenPipeError):  # full: it will wake; broken: it is gone
                    system.write(self._bell, b"!")
            if claim is not None:
                slept = False
                self.run(*claim)
            elif words[self._status + LEAVE]:
                break
            else:
                if not poll.poll(1000 * BATCH_SECONDS):
                    slept = True  # the next tasks may take longer than the last ones
                    poll.poll()
                system.read(self._wake, 4096)
        self._output.end_line()

    def run(self, first: int, count: int) -> None:
        """Run the batch that was just claimed, task by task, up to where its `end` is now.

        This loop is the cost of a short task. Its store to `ends` makes a task finished.

        The supervisor may stop this process anywhere, lower `end`, and continue it. The stop lasts longer than
        QUIET_SECONDS.
        1. Between two readings of the clock there is exactly one call.
        2. So a stop makes that call look slow, and `end` is read before another task begins.
        3. At most one task can begin between the stop and that reading: the first one without its `ends`. The
           supervisor never takes that one back.
        4. So the clock must be read before the first read of `end`, and after each store to `ends`.
        """
        half = self._begin_batch(count)
        calls, payloads = self._read_lane()
        words, end = self._words, half.end
        ends, stamps, log = half.ends, half.stamps, half.log
        plain, dumps, room = self._ways_of_values()
        clock = system.perf_counter
        last = began = stamps[0] = clock()
        stop = words[end] - first
        done, at = 0, 1
        value: Any = None
        while done < stop:
            for task, call, payload in zip(range(done, stop), calls, payloads):
                try:
                    value = call(payload)
                except BaseException as error:
                    value = Failure.of(error)
                if value is None:
                    ends[task] = at
                elif type(value) is plain and value and (after := at + len(value)) <= room:
                    log[at:after] = value
                    ends[task] = at = after
                elif (dump := dumps.get(type(value))) and at < (after := at + len(data := dump(value))) <= room:
                    log[at:after] = data
                    ends[task] = at = after
                else:
                    ends[task] = at = self._put(task, at, value)
                    at &= ~RECORD
                    plain, dumps, room = self._ways_of_values()
                before, last = last, clock()
                if last - before > QUIET_SECONDS:
                    stamps[task] = before
                    stamps[task + 1] = last
                    if words[end] - first < stop:
                        break
            done = task + 1
            stop = words[end] - first
        self._end_batch(done, at, began, last)
        self._kind = {type(None): self._kind, bytes: BYTES, str: TEXT}.get(type(value), CODED)
        if type(value) in (bytes, str) and not value and self.options.codec is None:
            self._kind = CODED  # marshal makes bytes even of nothing, so that it needs no record

    def _begin_batch(self, count: int) -> Half:
        self._count = count
        self._schedule(SCHED_BATCH if self._recent >= MANY else SCHED_OTHER)
        self._half = self._queue.half(self.index, self._words[self._status + CLAIMS])
        self._half.log[0] = self._kind
        return self._half

    def _schedule(self, policy: int) -> None:
        """Take this policy of the system, unless the program has chosen one.

        With SCHED_BATCH a worker that is woken does not take the processor from the supervisor. While tasks are short
        and many, the other workers would run out of them. For a few tasks it is the other way round: they are begun at
        once. A task that waits for a moment would lose the processor to any process that runs, for milliseconds.
        """
        if policy != self._policy:
            with contextlib.suppress(OSError):  # it is not allowed here
                if os.sched_getscheduler(0) == self._policy:
                    os.sched_setscheduler(0, policy, os.sched_param(0))
                    self._policy = policy

    def _ways_of_values(self) -> tuple[Any, Mapping[type, Callable[[Any], bytes]], int]:
        """Return the type of values that are appended as they are, and how others of the batch's kind become bytes.

        The last number is where they must end in the log. Behind it, each task can leave a REFERENCE.
        """
        plain = bytes if self._kind == BYTES else None
        return plain, self._quick_dumps[self._kind], self._half.room - REFERRING * self._count

    def _read_lane(self) -> tuple[Iterator[Callable[[bytes], Any]], Iterator[Any]]:
        """Return the calls and the payloads of the batch, one for each task. What is spoiled ends this worker."""
        lane = self._half.lane
        each = lane.column("I", 1, 0, self._count)
        if each == each[:1] * self._count:
            each = each[:1]  # it stands for all
        payloads: Iterable[Any]
        if max(each) & OUT_OF_LINE:
            payloads = self._fetch(each)
            each = array.array("I", [fn_id & ~OUT_OF_LINE for fn_id in each])
        else:
            payloads = lane.payloads(0, self._count)
        if len(each) > 1:
            return map(self._calls.__getitem__, each), iter(payloads)
        call = self._calls[each[0]]
        if isinstance(call, Call) and isinstance(payloads, list):
            with contextlib.suppress(Exception):  # one cannot be read: then each is read at its call, and one fails
                payloads = call.read_all(payloads)
                call = call.function
        return itertools.repeat(call), iter(payloads)

    def _fetch(self, fn_ids: Sequence[int]) -> Iterable[bytes]:
        """Return the payloads of the batch, of which some are out of line: a list, or piece by piece if it is large."""
        lane = self._half.lane
        begins, ends = (lane.column("Q", word, 0, self._count) for word in (1, 2))
        if not min(fn_ids) & OUT_OF_LINE:  # some are in their slots
            slots = zip(fn_ids, lane.payloads(0, self._count), begins, ends)
            return (self._fetch_one(*place) if fn_id & OUT_OF_LINE else payload for fn_id, payload, *place in slots)
        edges = [0, self._count]
        if begins[1:] != ends[:-1]:  # they lie in several places
            edges[1:1] = itertools.compress(itertools.count(1), map(operator.ne, begins[1:], ends[:-1]))
        parts = list(itertools.pairwise(edges))
        size = sum(ends[stop - 1] - begins[start] for start, stop in parts)
        pieces = (self._fetch_piece(begins[start:stop], ends[start:stop]) for start, stop in parts)
        payloads = itertools.chain.from_iterable(pieces)
        return list(payloads) if 0 <= size <= BLOCK_BYTES else payloads

    def _fetch_piece(self, begins: array.array[int], ends: array.array[int]) -> Iterable[bytes]:
        """Return payloads that lie together, read at once if they are small."""
        if 0 <= ends[-1] - begins[0] <= BLOCK_BYTES:
            return cut(self._fetch_one(begins[0], ends[-1]), begins[0], ends)
        return map(self._fetch_one, begins, ends)

    def _fetch_one(self, begin: int, end: int) -> bytes:
        """Return what lies there in the heap, or in a file."""
        if begin & PAYLOAD_FILE:
            return system.read_file(self._queue.segment.beside(f"p{begin & ~PAYLOAD_FILE}"), end)
        fetched = bytes(self._queue.heap[begin:end])
        if len(fetched) != end - begin:
            raise SpoiledSegmentError(f"bytes {begin:,} to {end:,} are not in the heap")
        return fetched

    def _end_batch(self, done: int, at: int, began: float, last: float) -> None:
        """Note the end of a batch, and choose the size of the next one: at most 8 times as many tasks as before.

        It should take BATCH_SECONDS, and fill at most three quarters of what its log has then.
        """
        if done:
            self._half.stamps[done] = last
        self._left -= done
        waits = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        self._recent = max(done - (waits - self._waits), self._recent // 2)
        self._waits = waits
        if self.options.batch is None and done:
            by_time = int(BATCH_SECONDS * done / max(last - began, 1e-9))
            self._limit = max(1, min(8 * self._limit, by_time))  # not only what a claim may have: see share()
            most = self._queue.batch
            each = REFERRING + at / done  # bytes of a task in the log
            half = self._queue.half(self.index, self._words[self._status + CLAIMS] + 1)
            half.make_room(min(len(half.log), int(min(self._limit, most) * each * 4 / 3)))
            fitting = int(half.room * 3 / 4 / each)
            if fitting < most:
                self._limit = max(1, min(self._limit, fitting))

    # Values that the loop does not put into the log itself.

    def _put(self, task: int, at: int, value: Any) -> int:
        """Append a value to the log. Return its `ends` word. If the log is empty, the batch gets the kind of the value.

        A value of another kind, or of no bytes, or too large for the log, is a record: a head, and bytes.
        """
        try:
            kind, data = encode(value, self.options.codec, self._structures)
        except Exception as unsent:  # such as what is not plain data
            kind, data = encode(Failure.of(unsent), None, ())
        half = self._half
        if kind == CODED and self.options.codec is not None:  # others of this type need not come here
            self._quick_dumps[CODED][type(value)] = self.options.codec.dump_quickly
        if at == 1 and kind <= CODED:
            self._kind = half.log[0] = kind
        half.make_room(at + 1 + len(data) + REFERRING * self._count)
        fits = at + 1 + len(data) <= self._ways_of_values()[-1]
        if fits and data and kind == self._kind:
            end = at + len(data)
            half.log[at:end] = data
            return end
        if not fits:
            kind |= IN_FILE
            data = REFERENCE.pack(len(data), self._files.write(self._words[half.first] + task, data))
        end = at + 1 + len(data)
        half.log[at] = kind
        half.log[at + 1 : end] = data
        return end | RECORD

    # Other processes.

    def note_print(self) -> None:
        if self.disowned is None:
            self._words[self._status + PRINTED] = 1

    def _disown(self) -> None:
        """In a child that a function forked: make it an error to go on as a second copy of this worker."""
        self.disowned = self.tsk_id_in_hand()
        self._output.lock = threading.RLock()  # a thread that is not here may hold the old one
        self._queue.segment.release_views()

    def tsk_id_in_hand(self) -> int:
        if self.disowned is not None:
            return self.disowned
        return self._count and self._half.lane.tsk_id(min(self._half.done(self._count), self._count - 1))


def refuse_breakpoint(*_: object, **__: object) -> None:
    raise RuntimeError("breakpoint(): a worker has no terminal: use workers=0 (-w 0), and the debugger stops here")


class ValueFiles:
    """Writes values that do not fit the log to files beside the segment. The supervisor removes what it has read."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._left: collections.deque[tuple[str, int]] = collections.deque()  # paths and bytes of files, oldest first

    def write(self, position: int, data: bytes) -> int:
        """Write the value of the task at this position. Return 0, or the number of the error if there is no room.

        First wait for room: this worker is halted like any slow one, and the supervisor reads and removes files.
        """
        path = self._segment.beside(f"v{position}")
        alone = 0  # tries while none of this worker's files is left
        while True:
            while self._left and not system.exists(self._left[0][0]):  # the supervisor has read it
                self._left.popleft()
            if sum(size for _, size in self._left) <= SPILL_BYTES:
                try:
                    system.write_file(path, data)
                    break
                except OSError as error:
                    if error.errno != errno.ENOSPC or alone > SPILL_TRIES:
                        return error.errno or errno.EIO
                alone += not self._left
            system.sleep(SPILL_SECONDS)
        self._left.append((path, len(data)))
        if not system.exists(self._segment.path):  # the run is over, and nobody else would remove the file
            system.unlink(path)
        return 0


def end_with_supervisor(queue: Any, worker: int, wake: int) -> None:
    """In a thread: end the run, and kill this process group, when the supervisor is gone.

    Its end of the pipe `wake` is closed then, unless something else holds a copy. So its pidfd is watched as well.
    """
    # A signal that this thread takes would not interrupt what a function waits for in the main thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, valid_signals())
    poll = system.poll()
    poll.register(wake, 0)  # hear only that it is closed
    with contextlib.suppress(OSError, AttributeError):  # there are no pidfds
        poll.register(_out_of_reach(os.pidfd_open(queue.owner_pid)), select.POLLIN)
    while all(event & select.POLLNVAL for _, event in poll.poll()):  # a function has closed these
        system.sleep(CHECK_SECONDS)
    # Begin no other task: nobody would kill what it starts.
    queue.claim = lambda *_: threading.Event().wait()
    for half in queue.halves(worker):
        queue.words[half.end] = 0
    with contextlib.suppress(OSError):  # another worker does it; or a function has closed the segment
        fcntl.lockf(queue.segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, END_BYTE)
        end_run(queue)
    with contextlib.suppress(OSError):  # a sandbox has refused it a group
        os.killpg(os.getpid(), signal.SIGKILL)  # itself, too
    os._exit(1)


def end_run(queue: SharedTaskQueue) -> None:
    """Kill the other workers, all commands and what functions have started, and remove the segment (worker).

    So a worker that stands still, or is inside a C call that holds the interpreter's lock, ends too.
    """
    for worker, status in enumerate(queue.status):
        pid, born = int(queue.words[status + PID]), queue.words[status + BORN]
        if pid not in (0, os.getpid()) and system.process_state(pid)[1] == born:
            for kill in (system.killpg, system.kill):
                with contextlib.suppress(OSError):
                    kill(pid, signal.SIGKILL)
        if command := queue.command(worker):
            with contextlib.suppress(OSError):
                system.killpg(command, signal.SIGKILL)
    end_strays(queue.name)
    remove_segment(queue.segment.path)


class PrintedOutput(io.RawIOBase):
    """What functions print: each line goes to the log with its worker and task, in one write, so that lines do not mix.

    Without a log it is lost, and noted.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._line = bytearray()  # has no end yet
        self._owner = 0  # the task that printed it
        self.lock = threading.RLock()  # guards these two: a function may have threads

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, data: Any) -> int:
        if not self._worker.options.log:
            self._worker.note_print()
            return len(data)
        with self.lock:
            task = self._worker.tsk_id_in_hand()
            if task != self._owner:
                self.end_line()
                self._owner = task
            begun, *lines = bytes(data).split(b"\n")
            self._line += begun
            for line in lines:
                self._put()
                self._line += line
        return len(data)

    def end_line(self) -> None:
        if self._line:
            self._put()

    def _put(self) -> None:
        text = b"[worker %d task %d] %s\n" % (self._worker.index, self._owner, self._line)
        self._line.clear()
        try:
            while text:  # a halt may cut a write into a pipe that is full
                text = text[os.write(1, text) :]
        except OSError as error:  # the task that prints fails, and says why
            raise OSError(error.errno, error.strerror, self._worker.options.log) from None


# ---------------------------------------------------------------------------------------------------------------------
# The queue: every access to a shared word that more than one process may write or wait for.

WAKE_SHARE = 5  # a sleeper is woken for each fifth of a batch in the ring: about a millisecond of work
LOCK_PATIENCE = 0.1  # seconds after which the supervisor asks why it does not get a lock


Span = tuple[int, int]  # positions that follow each other, or slots: the first, and how many


class Glance(collections.namedtuple("Glance", "number first done end began in_hand not_begun")):
    """What a worker's current batch, of this number, seems to hold: a hint, since the worker goes on meanwhile.

    The `done` tasks from position `first` on are finished. The next one is in hand if it lies below `end`.
    in_hand: its position, or None. not_begun: how many come after it.
    began: when the batch began, in seconds of system.perf_counter().
    """


class KernelLock:
    """A lock that the kernel releases when its holder dies: lockf on one byte of the segment's file.

    It belongs to the process, not to the descriptor. So a forked child does not hold it, a second acquire in the same
    process succeeds, and closing any descriptor of the file releases it. Each process opens the segment once.
    """

    def __init__(self, segment: Segment, number: int = 0) -> None:
        self._segment = segment
        self._byte = LOCK_BYTE + number

    def acquire(self, timeout: float | None = None) -> bool:
        """Acquire the lock. Return False if somebody else still holds it after `timeout` seconds.

        Without a timeout the kernel queues the caller. With one the lock is polled, since only a signal can interrupt
        a blocked lockf.
        """
        if timeout is None:
            fcntl.lockf(self._segment.fd, fcntl.LOCK_EX, 1, self._byte)
            return True
        for _ in pauses(timeout):
            try:
                fcntl.lockf(self._segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte)
                return True
            except BlockingIOError:
                continue
        return False

    def release(self) -> None:
        fcntl.lockf(self._segment.fd, fcntl.LOCK_UN, 1, self._byte)


class SharedTaskQueue:
    """The ring and the workers' lanes, in a segment and guarded by one lock.

    Each process has its own object: the supervisor by `create`, a worker by `attach`. A method's docstring says who
    calls it. A strategy is a subclass with another lock, another topology, or both (see variants/strategy.py). It
    overrides some of these hooks: strategy, extra_bytes, primitives, ask_why, room, push, drain, claim, harvest,
    recover, tell_to_leave, is_claiming, backlog, wakeable, _fill_half.

    Hooks use `words`, `status`, their own state from byte `state_offset` on, `_write`, `ring_spans`, `halves`,
    `has_free_half`, `sleepers`, `share`, `_sleeps`, and the lock by `_enter` and `_leave`. If its last holder died
    inside, `_enter` calls `_repair_locked`. Hooks keep these promises:

    - A position names one push of one task. The positions of a claim follow each other; those of a worker grow.
    - Each claim belongs to exactly one worker or to none, whichever process is killed, at any point. After a death
      before the commit, the tasks can be claimed again, and the `end` of their half does not go beyond its `first`.
    - `claim` first stores `published`. It takes nothing while `claims - harvested` is 2 or `leave` is set. It stores
      0 in `asleep`, or a new number if it takes nothing. The next push and harvest see that.
    - `harvest` stores 2 in SUPERVISOR_ASLEEP if no worker has finished anything new, else 0. It may store 1 where
      nothing `waits_for_room`.

    words: the whole segment as 64-bit words. status: the index of each worker's first word.
    heap: a view of the payloads that do not fit a slot: the last part of the segment.
    """

    strategy: ClassVar[str] = "lockf"
    printed = False  # after close(): a function printed what nobody keeps

    @classmethod
    def create(
        cls, num_slots: int, slot_size: int, num_workers: int, batch: int, context: Any = None, name: str = ""
    ) -> SharedTaskQueue:
        """Make the segment (supervisor). batch: the most tasks that a worker claims at once.

        context: of multiprocessing, for a strategy's locks.
        """
        first = first_log_bytes(batch * slot_size)
        sizes = [num_slots, slot_size, num_workers, batch, cls.extra_bytes(num_slots, num_workers), first, 0]
        left = max(0, free_bytes() - ctypes.sizeof(segment_layout(*sizes)))
        log = min(LOG_BYTES, left // (16 * num_workers))  # all logs may take an eighth
        heap = min(HEAP_BYTES, left // 2)
        log, heap = (1 << share.bit_length() >> 1 for share in (log, heap))  # powers of two: few layouts are kept
        sizes[-2:] = max(first, log), heap
        layout = segment_layout(*sizes)
        half = batch_half(slot_size, batch, sizes[-2])
        halves = range(layout.local.offset, layout.ring.offset, ctypes.sizeof(half))
        reserved = [(0, layout.local.offset), (layout.ring.offset, layout.ring.size)]
        reserved += [(start, half.log.offset + first) for start in halves]
        segment = Segment(name or new_name(), ctypes.sizeof(layout), reserved)
        header = QueueHeader(version=LAYOUT_VERSION, owner_pid=os.getpid(), **dict(zip(SIZES, sizes)))
        header.owner_start = system.process_state(os.getpid())[1]
        header.sum = sum(sizes) + segment.size
        segment.window(0, ctypes.sizeof(header))[:] = bytes(header)
        queue = cls(segment, None)
        segment.words[0] = MAGIC
        return queue

    @classmethod
    def attach(cls, name: str, primitives: Any) -> SharedTaskQueue:
        """Open the segment `name` (worker). Raises SpoiledSegmentError if it is not one, OSError if it is gone."""
        return cls(Segment(name), primitives)

    def __init__(self, segment: Segment, primitives: Any) -> None:
        header = QueueHeader.from_buffer_copy(segment.words)
        sizes: list[int] = [getattr(header, name) for name in SIZES]
        if header.version != LAYOUT_VERSION or header.sum != sum(sizes) + segment.size:
            raise SpoiledSegmentError(f"segment {segment.name}: not of layout version {LAYOUT_VERSION}, or cut off")
        layout = segment_layout(*sizes)
        self.num_slots, self.slot_size, self.num_workers, self.batch, _, self.log_bytes, heap_bytes = sizes
        self.owner_pid = header.owner_pid
        self.segment = segment
        self.name = segment.name
        self.words = segment.words
        self.ring = TaskSlots(segment, layout.ring.offset, self.num_slots, self.slot_size)
        self.heap = segment.window(layout.heap.offset, heap_bytes)
        self.state_offset = layout.extra.offset
        step = ctypes.sizeof(WorkerStatus) // 8
        self.status = [int(layout.status.offset) // 8 + i * step for i in range(self.num_workers)]
        note = WorkerStatus.note
        self._notes = [segment.window(8 * status + note.offset, note.size) for status in self.status]
        self._local = layout.local.offset
        self._halves: dict[int, tuple[Half, Half]] = {}
        self._lock: Any = KernelLock(segment)
        self.stuck: Callable[[int, float], Sequence[Lane]] = lambda *_: ()  # see WorkerPool.free_lock
        self._pushed, self._claimed = self.words[PUSHED], self.words[CLAIMED]  # as the supervisor last saw them
        self._sleeps = 0
        self.waits_for_room = True  # the supervisor has more to push, or may have

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        """Return the bytes of a strategy's own state and locks, in whole lines."""
        return 0

    @property
    def primitives(self) -> Any:
        """What every worker is given at its start (supervisor)."""
        return None

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # it was closed before
            self.printed = any(self.words[status + PRINTED] for status in self.status)
        self.segment.close()

    # The parts of the segment, which every strategy uses in the same way.

    def _write(self, places: Iterable[Span], tasks: Tasks) -> None:
        """Copy packed tasks into these slots of the ring."""
        slots = memoryview(tasks.slots)
        for there, here in byte_ranges(places, self.slot_size):
            self.ring.bytes[there] = slots[here]

    def halves(self, worker: int) -> tuple[Half, Half]:
        """Return a worker's two halves. They are made at the first look: a worker looks at its own only."""
        if worker not in self._halves:
            layout = batch_half(self.slot_size, self.batch, self.log_bytes)
            size = ctypes.sizeof(layout)
            first = self._local + 2 * worker * size
            self._halves[worker] = Half(self.segment, first, layout), Half(self.segment, first + size, layout)
        return self._halves[worker]

    def half(self, worker: int, number: int) -> Half:
        return self.halves(worker)[number & 1]

    def _fill_half(self, worker: int, span: Span, places: Iterable[Span]) -> None:
        """Make the tasks of a span, which lie in these slots, the next batch (worker). This commits nothing.

        `claims` grows last: a worker that is killed before that has no new batch.
        """
        words, claims = self.words, self.status[worker] + CLAIMS
        first, count = span
        number = words[claims] + 1
        half = self.half(worker, number)
        half.lane.copy_from(self.ring, places)
        half.clear(count)
        words[half.first] = first
        words[half.end] = first + count
        words[claims] = number

    def glance(self, worker: int) -> Glance:
        """Look at a worker's current batch while the worker goes on (supervisor)."""
        words = self.words
        number = words[self.status[worker] + CLAIMS]
        half = self.half(worker, number)
        first, end = words[half.first], words[half.end]
        count = min(max(0, end - first), self.batch)
        done = half.done(count)
        in_hand = first + done if done < count else None
        not_begun = max(0, count - done - 1)
        return Glance(number, first, done, first + count, half.stamps[0], in_hand, not_begun)

    def reset(self, worker: int) -> None:
        """Prepare a dead worker's words for its successor, once its batches have been read (supervisor)."""
        words, status = self.words, self.status[worker]
        for half in self.halves(worker):
            words[half.end] = words[half.first]
        words[status + PUBLISHED] = words[status + HARVESTED] = words[status + CLAIMS]
        for word in (LEAVE, COMMAND, ASLEEP, LIMIT):
            words[status + word] = 0

    def sleepers(self) -> list[tuple[int, int]]:
        """Return the workers that sleep, each with the number of its sleep (supervisor).

        One that falls asleep later has seen the last push and harvest.
        """
        words = self.words
        return [(worker, number) for worker, status in enumerate(self.status) if (number := words[status + ASLEEP])]

    def has_free_half(self, worker: int) -> bool:
        """Return True if a worker could claim another batch: a hint, unless it sleeps (supervisor)."""
        status = self.status[worker]
        return self.words[status + CLAIMS] - self.words[status + HARVESTED] < 2

    def command(self, worker: int) -> int:
        """Return the process group of the command that a worker runs; 0 for none, or if the word is spoiled."""
        group, again = divmod(self.words[self.status[worker] + COMMAND], 1 << 32)
        return group if group == again else 0

    def leave_note(self, worker: int, text: str) -> None:
        """Say why this process ends (worker)."""
        note = self._notes[worker]
        note[:] = struct.pack(f"{len(note)}s", text.encode())

    def take_note(self, worker: int) -> str:
        text = bytes(self._notes[worker]).rstrip(b"\0").decode("utf-8", "replace")
        self.leave_note(worker, "")
        return text

    # The lock. Between _enter and _leave there is no `with` and no `finally`: an exception there ends a worker, and
    # then the kernel releases the lock and the next holder repairs.

    def _enter(self, worker: int | None) -> None:
        """Acquire the lock, repair what a dead holder left, and sign `dirty`. None is the supervisor.

        A worker waits without a deadline: the supervisor frees the lock from a holder that was stopped.
        """
        if worker is None:
            since = system.monotonic()
            while not self._lock.acquire(LOCK_PATIENCE):
                self.ask_why(self.words[DIRTY] - 1, system.monotonic() - since)
        else:
            self._lock.acquire()
        if self.words[DIRTY]:
            self._repair_locked()
        self.words[DIRTY] = (self.num_workers if worker is None else worker) + 1

    def ask_why(self, holder: int, seconds: float) -> Sequence[Lane]:
        """Ask why a lock is not free after so many seconds (supervisor); see WorkerPool.free_lock."""
        return self.stuck(holder, seconds)

    def _leave(self) -> None:
        self.words[DIRTY] = 0
        self._lock.release()

    def _repair_locked(self) -> None:
        """Make a batch empty that was not committed. The process may be killed in here; then this runs again."""
        words = self.words
        claimed = words[CLAIMED]
        for half in itertools.chain(*map(self.halves, range(self.num_workers))):
            if words[half.end] > claimed:
                words[half.end] = claimed

    # The hooks.

    def room(self) -> int:
        """Return how many tasks can be pushed now, at the least (supervisor)."""
        return self.num_slots - (self._pushed - self._claimed)

    def push(self, tasks: Tasks) -> list[Span]:
        """Put `tasks`, at most `room()`, into the ring. Return their positions (supervisor)."""
        first, count = self._pushed, len(tasks)
        self._write(ring_spans(first, count, self.num_slots), tasks)  # beyond `pushed`: nobody reads there
        self._enter(None)
        self.words[PUSHED] = self._pushed = first + count
        self._leave()
        return [(first, count)]

    def claim(self, worker: int, limit: int) -> Span | None:
        """Publish the current batch, which is finished. Return up to `limit` tasks, or go to sleep (worker)."""
        words, status = self.words, self.status[worker]
        self._enter(worker)
        claims = words[status + PUBLISHED] = words[status + CLAIMS]
        first = words[CLAIMED]
        count = 0
        if claims - words[status + HARVESTED] < 2 and not words[status + LEAVE]:
            count = min(self.batch, self.share(words[PUSHED] - first, limit))
        span = (first, count) if count > 0 else None
        if span:
            self._fill_half(worker, span, ring_spans(first, count, self.num_slots))
            words[CLAIMED] = first + count  # committed: from here on these tasks are the worker's
            words[status + ASLEEP] = 0
        else:
            self._sleeps += 1
            words[status + ASLEEP] = self._sleeps
        self._leave()
        return span

    def harvest(self, harvested: Sequence[int]) -> list[int]:
        """Tell each worker how many of its batches have been read. Return how many each has finished (supervisor)."""
        words = self.words
        self._enter(None)
        for status, count in zip(self.status, harvested):
            words[status + HARVESTED] = count
        published = [words[status + PUBLISHED] for status in self.status]
        pushed, claimed = words[PUSHED], words[CLAIMED]
        words[SUPERVISOR_ASLEEP] = all(map(operator.le, published, harvested)) and 1 + self.waits_for_room
        self._leave()
        if pushed != self._pushed or not self._claimed <= claimed <= pushed:
            raise SpoiledSegmentError(f"the counters say pushed {pushed:,}, claimed {claimed:,}, which cannot be")
        self._claimed = claimed
        return published

    def drain(self, worker: int | None = None) -> list[Span]:
        """Take back what no worker has claimed; with a worker, what only that worker could claim (supervisor)."""
        if worker is not None:  # every worker can claim from the one ring
            return []
        words = self.words
        self._enter(None)
        first = words[CLAIMED]
        count = self._pushed - first
        words[CLAIMED] = self._claimed = words[PUSHED]
        self._leave()
        return [(first, count)] if count > 0 else []

    def recover(self, worker: int) -> None:
        """Undo what a dead worker has not committed, once it has been reaped (supervisor)."""
        self._enter(None)  # this repairs
        self._leave()

    def tell_to_leave(self, worker: int) -> None:
        """Have a worker leave at its next claim (supervisor)."""
        self._enter(None)
        self.words[self.status[worker] + LEAVE] = 1
        self._leave()

    def is_claiming(self, worker: int) -> bool:
        """Return True if this worker, which stands still, is inside a claim (supervisor)."""
        return self.words[DIRTY] == worker + 1

    def backlog(self) -> int:
        """Return how many tasks are in the ring, as far as is known (supervisor)."""
        return max(0, self.words[PUSHED] - self.words[CLAIMED])

    def wakeable(self, everyone: bool = False) -> list[tuple[int, int]]:
        """Return the sleepers to wake: one for each millisecond of work in the ring, or all (supervisor)."""
        tasks = self.backlog()
        worth = []
        for worker, number in self.sleepers() if tasks else ():
            if self.has_free_half(worker):
                worth.append((worker, number))
                tasks -= max(1, self.words[self.status[worker] + LIMIT] // WAKE_SHARE)
                if tasks <= 0 and not everyone:
                    break
        return worth

    def share(self, available: int, limit: int) -> int:
        """Return how many of the available tasks a worker takes that wants `limit` (worker).

        Half of its equal share, so that others find some; but an eighth of `limit` if that is more, since short tasks
        are not worth a claim each.
        """
        return min(limit, available, max(-(-available // (2 * self.num_workers)), limit // 8))


# ---------------------------------------------------------------------------------------------------------------------
# The segment: a file in shared memory, the files beside it, and what removes them.

PREFIX = "shmq-"
# Bytes of the file to lock: the supervisor has the first while it lives, and the worker that ends its run the second.
# From the third on come the locks.
OWNER_BYTE, END_BYTE, LOCK_BYTE = range(3)


@functools.cache
def shared_directory() -> str:
    """Return where segments live: a folder that is memory, if the system has one, else the one for temporary files."""
    if os.access("/dev/shm", os.W_OK | os.X_OK):
        return "/dev/shm"
    import tempfile

    return tempfile.gettempdir()


def free_bytes() -> int:
    """Return how many bytes shared memory has left, or how many a file may have if these are fewer."""
    space = os.statvfs(shared_directory())
    free = space.f_bavail * space.f_frsize
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def new_name() -> str:
    return f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}"


def path_of(name: str) -> str:
    return os.path.join(shared_directory(), name)


class Segment:
    """A file in shared memory, mapped, with every view of it. What does not fit lies in files beside it.

    multiprocessing.shared_memory cannot carry the lock, and its resource tracker unlinks live segments when a stranger
    exits (cpython#82300).
    """

    fd = -1

    def __init__(self, name: str, size: int = 0, reserved: Sequence[Span] = ()) -> None:
        """Attach to the segment `name`, or create it with `size` bytes, and memory for the spans `reserved`.

        Raises OSError: ENOSPC if there is not so much memory, ENOENT if there is no such segment.
        """
        self.name = name
        self.path = path_of(name)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if size else 0)
        self.fd = os.open(self.path, flags, 0o600)
        self._views: list[memoryview] = []
        try:
            if size:
                fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, OWNER_BYTE)  # waits, since a sweep() may try this byte
                self._allocate(size, reserved)
            self._map = mmap.mmap(self.fd, 0)
        except BaseException:
            self.close()
            raise
        self.size = len(self._map)
        self.words = self.window(0, self.size // 8 * 8, "Q")

    def _allocate(self, size: int, spans: Sequence[Span]) -> None:
        os.ftruncate(self.fd, size)
        try:
            for span in spans:
                self.reserve(*span)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            os.ftruncate(self.fd, 0)  # what was reserved is free again
            needed = sum(count for _, count in spans)
            message = (
                f"{shared_directory()} is too small: {needed:,} bytes needed, {free_bytes():,} free; take a smaller"
                " num_slots=, or enlarge it (such as docker run --shm-size=1g; mount -o remount,size=1g)"
            )
            raise OSError(errno.ENOSPC, message) from None

    def reserve(self, offset: int, size: int) -> None:
        """Reserve memory before it is touched: a page that the system cannot supply is a SIGBUS (cpython#114390)."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, offset, size)

    def window(self, offset: int, size: int, unit: Any = "B") -> memoryview:
        """Return a view of part of the segment, as items of a struct format. It lives until close()."""
        # In one step: a view that an interrupt kept from the list would keep the segment from being closed.
        self._views.append(memoryview(self._map)[offset : offset + size].cast(unit))
        return self._views[-1]

    def release_views(self) -> None:
        """Make every later access through a view an error."""
        while self._views:
            self._views.pop().release()

    def beside(self, label: str) -> str:
        """Return the path of a file that belongs to the segment and goes with it."""
        return f"{self.path}.{label}"

    def close(self) -> None:
        """Release every view, and unmap: mmap refuses while a view lives."""
        self.release_views()
        with contextlib.suppress(AttributeError, BufferError):  # there is no map; a traceback has a view of it
            self._map.close()
        self._close_file()

    def _close_file(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # this was interrupted before
                os.close(self.fd)
            self.fd = -1

    __del__ = _close_file


def remove_segment(path: str) -> None:
    """Remove the files beside a segment, and then its own, so that a sweep finds what a kill leaves in between.

    Do it twice, since an orphaned worker may have made another file meanwhile (see ValueFiles).
    """
    folder, name = os.path.split(path)
    for _ in range(2):
        beside = [os.path.join(folder, file) for file in listed(folder) if file.startswith(name + ".")]
        for file in [*beside, path]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)


WORKER_VARIABLE = "SHMQUEUE_WORKER"  # in the environment of functions: the worker's index
RUN_VARIABLE = "SHMQUEUE_RUN"  # in the environment of what functions start: the name of the segment


def end_strays(name: str) -> None:
    """Kill what the functions of a run have started and left behind in sessions of their own.

    Their environment names the run. This needs /proc, and misses a process that was forked and has executed nothing.
    A worker of another run has somebody else's segment open: it ends when its supervisor does, and removes that.
    """
    mark = f"\0{RUN_VARIABLE}={name}\0".encode()
    looks = 50  # at environments that are empty: that of a program is, for a moment, when it begins
    pids = listed("/proc")
    for pid in filter(str.isdigit, pids):
        with contextlib.suppress(OSError):
            told = told_of(pid, "environ")
            # While a program begins, its arguments are not there either. Zombies and threads of the kernel have no exe.
            if looks and not (told or told_of(pid, "cmdline")) and os.path.exists(f"/proc/{pid}/exe"):
                looks -= 1
                system.sleep(0.001)
                pids.append(pid)
            if mark in b"\0" + told and {0, int(pid)}.issuperset(map(owner_of, open_files(pid))):
                os.kill(int(pid), signal.SIGKILL)


def sweep() -> list[str]:
    """Remove the segments of this user's dead supervisors, and what their functions left. Return their names.

    A supervisor is dead if nobody holds the lock on its owner byte (this also works across pid namespaces), and no
    process has its pid and start time. Of those with this process's own pid, the ones that it has open stay: to open
    and close one more time would drop its locks. It has made the others before os.exec().
    """
    removed = []
    for path in own_segments():
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, OWNER_BYTE)
            if not _owner_lives(owner_of(path), file):
                name = os.path.basename(path)
                end_strays(name)
                remove_segment(path)
                removed.append(name)
    return removed


def owner_of(path: str) -> int:
    """Return the pid in the name of a segment; 0 if the file is not one."""
    kind, _, rest = os.path.basename(path).partition("-")
    pid, _, label = rest.partition("-")
    return int(pid) if f"{kind}-" == PREFIX and pid.isdecimal() and label.isalnum() else 0


def own_segments() -> list[str]:
    """Return the paths of this user's segments, but for those that this process has made and has open.

    Another copy of this module may have made them. If it is not known what is open, all that were made here are.
    """
    found = []
    files_of = functools.cache(open_files)  # there may be many files, and many segments
    folder = os.path.realpath(shared_directory())
    for path in (os.path.join(folder, name) for name in sorted(listed(folder))):
        with contextlib.suppress(OSError):
            owner = owner_of(path)
            elsewhere = owner != os.getpid() or path not in (files_of("self") or [path])
            if owner and elsewhere and os.lstat(path).st_uid == os.geteuid():
                found.append(path)
    return found


def listed(folder: str) -> list[str]:
    """Return the names in a folder; none if it is gone, or cannot be read."""
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def open_files(pid: str) -> list[str]:
    """Return what a process, or "self", has open, as far as it is known; files by their paths."""
    folder = f"/proc/{pid}/fd"
    return [os.path.realpath(f"{folder}/{descriptor}") for descriptor in listed(folder)]


def _owner_lives(pid: int, file: Any) -> bool:
    """Return True if process `pid` lives, and made the segment in this file or is about to make it."""
    state, start = system.process_state(pid)
    header = QueueHeader()
    file.readinto(header)
    made = header.owner_start == start and pid != os.getpid()  # this process asks only for what it has left
    return state not in ENDED and (header.magic != MAGIC or made)


def write_file(path: str, data: bytes) -> None:
    """Make a file of our own. Raises OSError, and leaves no file then."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(file, "wb") as stream:
            stream.write(data)
    except BaseException:
        os.unlink(path)
        raise


def read_file(path: str, length: int) -> bytes:
    """Return the `length` bytes of a file. Raises SpoiledSegmentError if it has another length."""
    with open(path, "rb") as file:
        data = file.read()
    if len(data) != length:
        raise SpoiledSegmentError(f"{path} has {len(data):,} bytes instead of {length:,}")
    return data


# ---------------------------------------------------------------------------------------------------------------------
# The system: what is asked of the machine, as one object that tests replace.


class System:
    """Clocks, descriptors, processes and files beside the segment. The library reaches them by `system` only.

    Only a forked worker inherits what a test has put in its place.
    """

    monotonic = staticmethod(time.monotonic)
    perf_counter = staticmethod(time.perf_counter)
    wall_clock = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    poll: Any = staticmethod(select.poll)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    set_blocking = staticmethod(os.set_blocking)

    kill = staticmethod(os.kill)
    killpg = staticmethod(os.killpg)
    process_state = staticmethod(process_state)
    state_and_switches = staticmethod(state_and_switches)

    exists = staticmethod(os.path.exists)
    unlink = staticmethod(os.unlink)
    read_file = staticmethod(read_file)
    write_file = staticmethod(write_file)

    def spin_until(self, when: float) -> None:
        """Wait until perf_counter() has come to `when`. A sleep would take longer."""
        while self.perf_counter() < when:
            pass

    def get_context(self, method: str) -> Any:
        return late("multiprocessing").get_context(method)

    def dup(self, descriptor: int) -> Any:
        """Return a copy of a descriptor, which closes itself when it is dropped."""
        return late("multiprocessing").connection.Connection(os.dup(descriptor), writable=False)

    def pidfd_open(self, pid: int) -> Any:
        """Return what stands for a process. Raises OSError if it is gone, AttributeError without pidfds."""
        pidfd = late("multiprocessing").connection.Connection(os.pidfd_open(pid), writable=False)
        signal.pidfd_send_signal(pidfd.fileno(), 0)  # a sandbox may refuse only this
        return pidfd

    def pidfd_send_signal(self, pidfd: int, number: int) -> None:
        signal.pidfd_send_signal(pidfd, number)


system = System()


def pauses(seconds: float) -> Iterator[None]:
    """Yield at once, and after each of many short pauses, until so many seconds have passed."""
    yield  # most often, this one is enough
    deadline = system.monotonic() + seconds
    for tries in itertools.count():
        if tries < 20:
            os.sched_yield()
        else:
            system.sleep(0.0003)
        yield
        if system.monotonic() > deadline:
            return


# ---------------------------------------------------------------------------------------------------------------------
# The layout: the ctypes structures are the one definition; the fast paths take their offsets from them.

MAGIC = int.from_bytes(b"shmqueue", "little")
LAYOUT_VERSION = 3
TERMINATE = 0  # the fn_id of no function
OUT_OF_LINE = 1 << 28  # set in a fn_id: the slot says where the payload is
PAYLOAD_FILE = 1 << 63  # set in where a payload begins: it is in a file with the number of its task
RECORD = 1 << 31  # set in an `ends` word: the log has a record with a head, not only the value's bytes
RECORD_BYTE = 3 if sys.byteorder == "little" else 4  # the byte of a word that has this bit
LINE = 128  # two cache lines, since processors fetch them in pairs; different writers keep to different lines
LOG_BYTES = 2 << 20
HEAP_BYTES = 32 << 20


def padded(fields: Sequence[tuple[str, Any]], multiple: int = LINE) -> list[tuple[str, Any]]:
    """Return the fields of a structure, and unused bytes up to a multiple of so many."""
    size = sum(ctypes.sizeof(kind) for _, kind in fields)
    return [*fields, (f"_unused{len(fields)}", ctypes.c_uint8 * (-size % multiple))]


# The words: what each means, who writes it, who else reads it, and what protects it.
# S: the supervisor. W: the worker whose word it is. lock: of the queue. batch: S reads it once W has published the
# batch, was reaped, or stands still. hint: S reads it at any time, and asks again later. start: it does not change
# after the first worker has attached.
#
# magic        MAGIC. S writes this word last, when the segment is ready            S    sweep  start
# version … heap_bytes   the layout's version, the owner's process, and the sizes   S    all    start
# sum          of the sizes and the segment's bytes: shows that these are right     S    W      start
# pushed       the position behind the last task in the ring                        S    W      lock
# claimed      the position of the first task in the ring                           all  all    lock
# dirty        who is inside the lock: worker + 1, num_workers + 1 for S, or 0      all  all    lock
# asleep       what to wake S for, if it found nothing to do: 1 news, 2 any claim   S    W      W reads it after a claim
#
# claims       how many batches W has claimed; number n (1, 2, …) is in half n % 2  W    S      lock, batch, hint
# published    how many of them are finished                                        W, S S      lock
# asleep       0, or the number of this sleep                                       W, S S      lock, hint
# limit        how many tasks W wanted at its last claim; 0 before the first one    W    S      hint
# printed      1 once a function has printed what nobody keeps                      W    S      hint
# command      the process group of W's command, in both halves of the word; or 0   W, S all    hint
# harvested    how many batches S has taken in                                      S    W      lock
# leave        1 once W is to leave at its next claim                               S    W      lock
# pid, born    of W's process (see process_state); 0 if there is none               S    all    read once S ended
# note         W's last words                                                       W, S S      W was reaped
#
# first, end   the positions of a batch are [first, end); a halt lowers `end`       W, S all    lock, batch
# lane         its tasks                                                            W    S      batch
# ends[i]      0 until task i is finished, then where its value ends in the log     W    S      batch, hint
# stamps[0]    when the first task began, in seconds of W's perf_counter()          W    S      batch, hint
# stamps[i+1]  when task i was finished, or 0                                       W    S      batch
# log[0]       the kind of values that are no records; fixed once one is finished   W    S      batch
# log          the values, one after the other, from index 1 on                     W    S      batch


Word = ctypes.c_uint64 * (LINE // 8)  # a 64-bit word that has its line to itself
SHARED_WORDS = ("pushed", "claimed", "dirty", "asleep")
WORKER_WORDS = ("claims", "published", "asleep", "limit", "printed", "command")
SUPERVISOR_WORDS = ("harvested", "leave", "pid", "born")
SIZES = ("num_slots", "slot_size", "num_workers", "batch", "extra_bytes", "log_bytes", "heap_bytes")  # segment_layout
CONSTANTS = ("magic", "version", "owner_pid", "sum", "owner_start", *SIZES)


class QueueHeader(ctypes.Structure):
    """What the segment is, and the words that everybody shares."""

    _fields_ = [*padded([(name, ctypes.c_uint64) for name in CONSTANTS]), *((name, Word) for name in SHARED_WORDS)]


class WorkerStatus(ctypes.Structure):
    """One worker's words: its own line, the supervisor's line, and a note."""

    _fields_ = [
        *padded([(name, ctypes.c_uint64) for name in WORKER_WORDS]),
        *padded([(name, ctypes.c_uint64) for name in SUPERVISOR_WORDS]),
        ("note", ctypes.c_char * (2 * LINE)),
    ]


def task_slot(size: int) -> type[ctypes.Structure]:
    """A task slot of `size` bytes: which task, which function, and the payload.

    The first byte of `payload` is the length (two bytes in the machine's order, if the field has more than 256). The
    payload follows, and the rest is zero. If the payload is out of line, its first two words say where it begins and
    ends in the heap: or PAYLOAD_FILE with the number of a file, and the length.
    """
    fields = [("tsk_id", ctypes.c_uint32), ("fn_id", ctypes.c_uint32), ("payload", ctypes.c_uint8 * (size - 8))]
    return type(f"TaskSlot{size}", (ctypes.Structure,), {"_fields_": fields, "__doc__": task_slot.__doc__})


TaskSlot128 = task_slot(128)


@functools.cache
def batch_half(slot_size: int, batch: int, log_bytes: int) -> Any:
    """Return the type of a half: the tasks of one batch, and what became of them."""
    word = ctypes.c_uint64
    fields = [
        *padded([("first", word), ("end", word)]),
        ("lane", task_slot(slot_size) * batch),
        ("ends", word * batch),
        ("stamps", ctypes.c_double * (batch + 1)),
        ("log", ctypes.c_uint8 * log_bytes),
    ]
    return type("BatchHalf", (ctypes.Structure,), {"_fields_": padded(fields)})


def first_log_bytes(lane_bytes: int) -> int:
    """Return how much of a log is reserved from the start. Each task of a batch can leave a record there."""
    return min(max(16 << 10, lane_bytes // 4), 1 << 30)  # less than RECORD


class LocalTaskQueue(ctypes.Structure):
    """One worker's part of the segment: two halves, so that it can run a batch while the last one is harvested."""


@functools.cache
def segment_layout(
    num_slots: int, slot_size: int, num_workers: int, batch: int, extra_bytes: int, log_bytes: int, heap_bytes: int
) -> Any:
    """Return the whole segment as one type. extra: a strategy's state and its locks, in whole lines."""
    halves = [("halves", batch_half(slot_size, batch, log_bytes) * 2)]
    local: Any = type("LocalTaskQueue", (LocalTaskQueue,), {"_fields_": halves})
    fields = [
        ("header", QueueHeader),
        ("status", WorkerStatus * num_workers),
        ("extra", ctypes.c_uint8 * extra_bytes),
        ("local", local * num_workers),
        ("ring", task_slot(slot_size) * num_slots),
    ]
    fields = [*padded(fields, mmap.PAGESIZE), ("heap", ctypes.c_uint8 * heap_bytes)]
    return type("SegmentLayout", (ctypes.Structure,), {"_fields_": fields})


def _indices(structure: Any, names: Iterable[str]) -> Iterator[int]:
    return (int(getattr(structure, name).offset) // 8 for name in names)


# Indices of 64-bit words: from the start of the segment, and of a worker's status.
PUSHED, CLAIMED, DIRTY, SUPERVISOR_ASLEEP = _indices(QueueHeader, SHARED_WORDS)
CLAIMS, PUBLISHED, ASLEEP, LIMIT, PRINTED, COMMAND = _indices(WorkerStatus, WORKER_WORDS)
HARVESTED, LEAVE, PID, BORN = _indices(WorkerStatus, SUPERVISOR_WORDS)


def ring_spans(first: int, count: int, size: int) -> list[Span]:
    """Return the slots of `count` positions in a ring of `size` slots: one span, or two if they wrap."""
    index = first % size
    head = size - index
    if count <= head:
        return [(index, count)]
    return [(index, head), (0, count - head)]


def byte_ranges(places: Iterable[Span], size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the bytes of these slots, and those that they have where they follow each other."""
    start = 0
    for index, length in places:
        stop = start + length * size
        yield slice(index * size, (index + length) * size), slice(start, stop)
        start = stop


ROWS = 128


@functools.cache
def _rows(row: str, count: int) -> struct.Struct:
    """Return `count` equal rows as one struct: one call packs them all. At most ROWS, so that few are kept."""
    return struct.Struct("=" + row * count)


class TaskSlots:
    """An array of task slots in the segment: the ring, or a lane.

    A struct's `p` field is a length byte and up to 255 others, which C trims at a third of the cost of slicing in
    Python. Longer slots have an `s` field.
    """

    def __init__(self, segment: Segment, offset: int, count: int, size: int) -> None:
        self.size = size
        self.bytes = segment.window(offset, count * size)
        area = size - 8
        self._short = area <= 256
        self.capacity = area - (1 if self._short else 2)
        self._row = f"8x{area}p" if self._short else f"8xH{area - 2}s"

    def pack(self, tasks: Tasks) -> bool:
        """Pack tasks into slots of their own. Return False if a payload does not fit its slot."""
        data: Any = tasks.data
        if not self._short and max(map(len, data)) > self.capacity:
            return False
        slots = bytearray(len(data) * self.size)
        for start in range(0, len(data), ROWS):
            rows = data[start : start + ROWS]
            values = rows if self._short else [part for item in rows for part in (len(item), item)]
            _rows(self._row, len(rows)).pack_into(slots, start * self.size, *values)
        # A `p` field cuts off what is too long. To look at the lengths that were written is quicker than to ask first.
        if self._short and self.capacity in slots[8 :: self.size] and max(map(len, data)) > self.capacity:
            return False
        self._identify(tasks, slots, tasks.marked)
        return True

    def refer(self, tasks: Tasks, edges: array.array[int]) -> None:
        """Pack tasks whose payloads are out of line, each from one of these edges to the next."""
        slots = bytearray(len(tasks) * self.size)
        words = memoryview(slots).cast("Q")
        words[1 :: self.size // 8] = edges[:-1]
        words[2 :: self.size // 8] = edges[1:]
        self._identify(tasks, slots, map_alike(OUT_OF_LINE.__or__, tasks.marked))
        tasks.data = ()

    def _identify(self, tasks: Tasks, slots: bytearray, fn_ids: array.array[int]) -> None:
        """Write into the slots which tasks these are, and give them to the tasks."""
        words = memoryview(slots).cast("I")
        words[0 :: self.size // 4] = as_u32(tasks.tsk_ids)
        words[1 :: self.size // 4] = fn_ids
        tasks.slots = slots

    def payloads(self, index: int, count: int) -> list[bytes]:
        payloads: list[Any] = []
        for start in range(0, count, ROWS):
            rows = _rows(self._row, min(ROWS, count - start))
            payloads += rows.unpack_from(self.bytes, (index + start) * self.size)
        if not self._short:
            payloads = [text[:length] for length, text in zip(payloads[0::2], payloads[1::2])]
        return payloads

    def column(self, unit: Any, word: int, index: int, count: int) -> array.array[int]:
        """Return this word of consecutive slots. It is an "I" or a "Q"."""
        column = self.bytes[index * self.size : (index + count) * self.size].cast(unit)
        return array.array(unit, column[word :: self.size // column.itemsize].tobytes())

    def copy_from(self, ring: TaskSlots, places: Iterable[Span]) -> None:
        """Copy what lies in these slots of the ring to the first slots here."""
        for there, here in byte_ranges(places, self.size):
            self.bytes[here] = ring.bytes[there]

    def tsk_id(self, index: int) -> int:
        return self.column("I", 0, index, 1)[0]


NO_VALUE = array.array("Q", [1])  # the `ends` word of the first task, if it returned None


class Half:
    """One half of a worker's part of the segment.

    first, end: the indices of these words. room: how many bytes of the log are reserved, as this process knows.
    """

    def __init__(self, segment: Segment, offset: int, layout: Any) -> None:
        def window(name: str, unit: str) -> Any:
            field = getattr(layout, name)
            return segment.window(offset + field.offset, field.size, unit)

        self.first, self.end = (offset // 8 + index for index in _indices(layout, ("first", "end")))
        self.ends: memoryview = window("ends", "Q")
        self.stamps = window("stamps", "d")
        self.log: memoryview = window("log", "B")
        batch = len(self.ends)
        self.lane = TaskSlots(segment, offset + layout.lane.offset, batch, layout.lane.size // batch)
        self.room = first_log_bytes(layout.lane.size)
        self._log_offset = offset + layout.log.offset
        self._segment = segment

    def make_room(self, size: int) -> None:
        """Reserve `size` bytes of the log at least, if it may be so large and there is memory (worker)."""
        if self.room < size <= len(self.log):
            size = min(len(self.log), max(size, 2 * self.room))
            with contextlib.suppress(OSError):  # there is none
                self._segment.reserve(self._log_offset + self.room, size - self.room)
                self.room = size

    def clear(self, count: int) -> None:
        """Forget what became of an earlier batch, before one of `count` tasks comes here (worker)."""
        zeros = memoryview(bytes(8 * count))
        self.ends[:count] = zeros.cast("Q")
        self.stamps[1 : count + 1] = zeros.cast("d")

    def done(self, count: int) -> int:
        """Return how many of the first `count` tasks are finished: a hint."""
        if count and self.ends[count - 1]:
            return count
        return bisect.bisect_left(range(count), True, key=lambda task: self.ends[task] == 0)

    def seconds(self, start: int, stop: int) -> float | list[float]:
        """Return how long each of the finished tasks [start, stop) took: a list, or the mean of all of them.

        The tasks between two stamps share the time between them.
        """
        since = self.stamps[start]
        if bytes(self.stamps[start + 1 : stop]) == bytes(8 * (stop - start - 1)):
            last = self.stamps[stop]
            return max(0.0, (last - since) / (stop - start)) if last and since else 0.0
        seconds: list[float] = []
        stamps = self.stamps[start + 1 : stop + 1]
        for task in itertools.compress(range(stop - start), stamps):
            waiting = task + 1 - len(seconds)
            seconds += [max(0.0, (stamps[task] - since) / waiting) if since else 0.0] * waiting
            since = stamps[task]
        return seconds + [0.0] * (stop - start - len(seconds))


BLOCK = 2048  # tasks that are read, and pushed, at once
LANE_BYTES = 512 << 10  # of the tasks in a batch that sizes itself
RAMP = int.from_bytes(array.array("I", range(BLOCK)), sys.byteorder)  # the words 0, 1, 2, … as one big integer
ONES = int.from_bytes(array.array("I", [1]) * BLOCK, sys.byteorder)


def as_u32(numbers: Sequence[int]) -> array.array[int]:
    """Return the lower 32 bits of numbers. A long range is one addition of big integers, at a fifth of the cost."""
    if isinstance(numbers, range) and BLOCK // 8 <= len(numbers) <= BLOCK and numbers.start + BLOCK < 1 << 32:
        return array.array("I", (RAMP + numbers.start * ONES).to_bytes(4 * BLOCK, sys.byteorder))[: len(numbers)]
    return array.array("I", [number & 0xFFFFFFFF for number in numbers])


# ---------------------------------------------------------------------------------------------------------------------
# Functions, payloads and values: how they travel.

ERROR_LENGTH = 4000  # characters of an error's text that are kept
TRACEBACK_BYTES = 16 << 10  # of a traceback, as UTF-8

# What the bytes of a payload or a value are. CODED: what the codec made of it, or marshal. Only values are failures,
# the output of commands, and Structures: STRUCTURE + i is the i-th Structure that the functions' annotations name.
BYTES, TEXT, CODED, FAILURE, OUTPUT, STRUCTURE = range(6)
KIND_BIT = 26  # a payload's kind stands here in its fn_id; Python is slower with ints of more than 30 bits
FN_ID = (1 << KIND_BIT) - 1  # the bits of a fn_id without kind and OUT_OF_LINE
IN_FILE = 0x80  # added to a record's kind: a REFERENCE to a file beside the segment, or to the error if there is none

REMEDY = "give Supervisor a codec, such as codec=pickle"
ATOMS = frozenset({type(None), bool, int, float, complex, bytes, str})
CONTAINERS = frozenset({tuple, list, dict, set, frozenset})


class Codec:
    """How objects travel that are neither bytes nor str: the functions of a user's codec.

    An object such as the module pickle cannot be sent to workers itself.
    """

    def __init__(self, codec: Any) -> None:
        self._dumps: Any = getattr(codec, "dumps", None)
        self.loads: Any = getattr(codec, "loads", None)
        if not (callable(self._dumps) and callable(self.loads)):
            raise TypeError(f"codec={codec!r}: must have dumps and loads, as the modules pickle and json have")

    def dumps(self, value: Any) -> bytes:
        """Return a value as bytes. Raises TypeError or ValueError if `dumps` has made nothing that can be bytes."""
        coded = self._dumps(value)
        if type(coded) is bytes:
            return coded
        return coded.encode() if isinstance(coded, str) else bytes(memoryview(coded))

    def dump_quickly(self, value: Any) -> bytes:
        """Return the same; nothing if it fails."""
        try:
            return self.dumps(value)
        except Exception:  # raised again where it can be told
            return b""


def encode_text(text: str) -> bytes:
    """Return text as UTF-8. What decode_text() has made of other bytes becomes these bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def decode_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# Any str is text that can travel, with half a surrogate pair as well. Where there is none, str.encode and bytes.decode
# do the same in half the time.
dump_text = operator.methodcaller("encode", "utf-8", "surrogatepass")
load_text = operator.methodcaller("decode", "utf-8", "surrogatepass")


# Plain data travels as marshal makes it. Without a container inside, it has no references in version 2, so many such
# values, one after the other, are the content of a list. Nested data may have references. It begins with this byte,
# with which marshal begins nothing.
NESTED = b"\0"
NO_CODE: dict[str, Any] = {"allow_code": False} if sys.version_info >= (3, 13) else {}


def load_flat(data: bytes, count: int) -> list[Any]:
    """Return `count` plain data, none of which is nested. Raises ValueError or EOFError if `data` is not that."""
    return marshal.loads(b"[" + struct.pack("<I", count) + data, **NO_CODE)  # type: ignore[no-any-return]


def load_plain(data: bytes) -> Any:
    return marshal.loads(data.removeprefix(NESTED), **NO_CODE)


@functools.cache
def plain_checker() -> Any:
    """Return a function that makes a Pickler, which raises TypeError for what is not plain data, at any depth.

    It keeps no bytes, and looks at each object once. It asks `reducer_override` about types that it does not know.
    """
    import pickle

    class PlainChecker(pickle.Pickler):
        def reducer_override(self, part: Any) -> Any:
            if part is complex or type(part) is complex:
                return NotImplemented
            kind = part if part is bytearray else type(part)  # for a bytearray, it asks about the class
            name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
            raise TypeError(f"{name} is not plain data, and cannot travel: convert it, or {REMEDY}")

    nowhere = types.SimpleNamespace(write=len)
    return functools.partial(PlainChecker, nowhere, 4)  # protocol 5 knows bytearray


def dump_nested(values: Sequence[Any]) -> list[bytes]:
    """Return plain data as bytes. Raises TypeError for what is not plain, and ValueError for what is nested too deeply.

    Types are compared exactly: marshal would turn a numpy.float64 in a list into bytes.
    """
    try:
        plain_checker()().dump(values)
        return [NESTED + marshal.dumps(value) for value in values]
    except (RecursionError, ValueError) as error:
        raise ValueError(f"what is nested so deeply, or a class, cannot travel ({error}): {REMEDY}") from None


def dump_container(value: Any) -> bytes:
    """Return a container of plain data as bytes; no bytes if it is not plain, or changes meanwhile."""
    try:
        if type(value) is dict:
            for key in value:
                if type(value[key]) not in ATOMS or type(key) not in ATOMS:
                    return dump_nested([value])[0]
        else:
            for part in value:
                if type(part) not in ATOMS:
                    return dump_nested([value])[0]
        return marshal.dumps(value, 2)
    except Exception:  # raised again where it can be told
        return b""


def dump_block(values: Sequence[Any], kinds: set[type]) -> list[bytes]:
    """Return plain data of these types as bytes. Raises an exception as dump_nested() does."""
    containers: Sequence[Any] = ()
    if kinds <= CONTAINERS:
        containers = values
    elif not kinds <= ATOMS:
        containers = [value for value in values if type(value) in CONTAINERS]
    dicts = [value for value in containers if type(value) is dict] if dict in kinds else ()
    if ATOMS.issuperset(map(type, itertools.chain(*containers, *map(dict.values, dicts)))):
        return list(map(marshal.dumps, values, itertools.repeat(2)))
    return dump_nested(values)


# How a worker's loop makes bytes of values, in batches of each kind; if it gets none, see Worker._put. In batches that
# marshal makes CODED, bytes and text are, too.
QUICK_DUMPS: dict[int, dict[type, Callable[[Any], bytes]]] = {
    BYTES: {},
    TEXT: {str: dump_text},
    CODED: {**dict.fromkeys(CONTAINERS, dump_container), **dict.fromkeys(ATOMS, marshal.dumps)},
}


def encode(value: Any, codec: Codec | None, structures: Sequence[Any] | None = None) -> tuple[int, bytes]:
    """Return the kind and the bytes of a payload or a value. Raises TypeError or ValueError if it cannot travel.

    structures: those that a value can be; None for a payload.
    """
    kind = type(value)
    if kind is bytes:
        return BYTES, value
    if kind is str:
        return TEXT, dump_text(value)
    if structures is not None:
        if kind is Failure:
            output = None if value.value is None else (value.value, value.value.errors)
            return FAILURE, marshal.dumps((value.error, value.traceback, output, value.status))
        if kind is Output:
            return OUTPUT, marshal.dumps((value, value.errors))
        if kind in structures:
            return STRUCTURE + structures.index(kind), bytes(value)
    if codec is not None:
        return CODED, codec.dumps(value)
    as_bytes = (ctypes.Array,) if structures is not None else (ctypes.Array, ctypes.Structure)
    if kind in (bytearray, memoryview, array.array) or isinstance(value, as_bytes):
        return BYTES, bytes(value)
    dump = QUICK_DUMPS[CODED].get(kind)
    return CODED, (dump and dump(value)) or dump_nested([value])[0]


def encode_payloads(
    payloads: Sequence[Any], codec: Codec | None, types: set[type], as_they_are: bool
) -> tuple[int | Sequence[int], Sequence[bytes]]:
    """Return the kind of all payloads or the kind of each, and their bytes. `types` are all their types.

    as_they_are: bytes and text among others may be CODED by marshal like these, since no annotation asks for them.
    Raises an exception if one of them cannot be sent.
    """
    if types == {str}:
        with contextlib.suppress(UnicodeEncodeError):
            return TEXT, list(map(str.encode, payloads))
        return TEXT, list(map(dump_text, payloads))
    if as_they_are or types.isdisjoint({bytes, str}):
        if codec is not None:
            return CODED, [codec.dumps(payload) for payload in payloads]  # map() would take a StopIteration as the end
        if types <= ATOMS | CONTAINERS:
            return CODED, dump_block(payloads, types)
    kinds, data = zip(*[encode(payload, codec) for payload in payloads])
    return kinds, data


def decode(kind: int, data: bytes, codec: Codec | None, structures: Sequence[type[ctypes.Structure]] = ()) -> Any:
    """Return the value that `encode` encoded; a Failure if it cannot be loaded here.

    Raises IndexError or ValueError if these are not the bytes of such a value.
    """
    if kind == BYTES:
        return data
    if kind >= STRUCTURE:
        return structures[kind - STRUCTURE].from_buffer_copy(data)
    try:
        if kind == TEXT:
            return load_text(data)
        if kind == CODED:
            return load_plain(data) if codec is None else codec.loads(data)
        if kind == OUTPUT:
            return Output(*load_plain(data))
        error, trace, output, status = load_plain(data)
        return Failure(error, trace, output and Output(*output), RETRY_ON[RETRY_ON.index(status)])
    except Exception as error:
        if is_interruption(error):
            raise
        return Failure.of(error)


def decode_log(kind: int, codec: Codec | None, log: bytes, begin: int, ends: array.array[int]) -> Sequence[Any]:
    """Return the values of a batch without records, all of one kind. The first begins at `begin`; None has no bytes."""
    if kind == CODED and codec is None:
        with contextlib.suppress(ValueError, EOFError, TypeError):  # some are None, or nested
            return load_flat(log, len(ends))
    pieces = cut(log, begin, ends)
    if all(pieces):
        try:
            if kind == BYTES:
                return pieces
            if kind == TEXT:
                return list(map(bytes.decode, pieces))
            load = load_plain if codec is None else codec.loads
            return [load(piece) for piece in pieces]
        except Exception as error:  # one cannot be loaded, and is a failure; or it has half a surrogate pair
            if is_interruption(error):
                raise
    return [decode(kind, piece, codec) if piece else None for piece in pieces]


class Output(bytes):
    """What a shell command wrote to its standard output, with `errors`: what it wrote to its standard error."""

    errors: bytes

    def __new__(cls, output: bytes, errors: bytes = b"") -> Output:
        new = super().__new__(cls, output)
        new.errors = errors
        return new


class Failure(
    collections.namedtuple("Failure", "error traceback value status cause", defaults=(None, None, "failed", None))
):
    """In place of a value: the task is not ok, with this error and this traceback. A command has a value all the same.

    value: an Output, or None. cause: the exception itself, if it was raised in this process.
    """

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the failure of the exception that is being handled."""
        return cls(describe(error), describe_traceback(error))


def is_interruption(error: BaseException) -> bool:
    """Return True for Ctrl-C, for the q of a debugger, and for what a signal handler of the program has raised."""
    if isinstance(error, KeyboardInterrupt) or type(error).__module__ == "bdb":
        return True
    trace = without_own_frames(error.__traceback__)
    if trace is None:  # handlers take long to find
        return False
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in valid_signals()}
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code in handlers or frame.f_globals.get("__name__") == "bdb":
            return True
        trace = trace.tb_next
    return False


def describe(error: BaseException) -> str:
    """Return the text of an error, whatever its own __str__ does, of bounded length, and with surrogates escaped."""
    try:
        text = str(error)
    except BaseException as second:
        text = f"(its text raised {type(second).__name__})"
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:ERROR_LENGTH].encode(errors="backslashreplace").decode()


def without_own_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Return the part of a traceback that begins after our own frames; None if there are no others."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") == __name__:
        trace = trace.tb_next
    return trace


def describe_traceback(error: BaseException) -> str | None:
    """Return the traceback of the exception that is being handled, as the interpreter would print it.

    Our own frames are left out. None if there are no others. If it is too long, its middle is left out.
    """
    frames = without_own_frames(sys.exc_info()[2])
    if frames is None:
        return None
    try:
        import traceback

        text = "".join(traceback.TracebackException(type(error), error, frames).format())
    except BaseException as second:  # whatever its notes, its cause and others do
        text = f"(its traceback raised {type(second).__name__})"
    data = text.encode("utf-8", "backslashreplace")
    rest = len(data) - TRACEBACK_BYTES
    if rest > 0:
        half = TRACEBACK_BYTES // 2 - 32
        data = data[:half] + b"\n[%d bytes are left out here]\n" % (rest + 64) + data[-half:]
    return data.decode(errors="ignore")


# How a payload of bytes is read for a parameter of these types; `bytes` is called for text only.
READERS: dict[Any, Callable[[bytes], Any]] = {
    bytes: bytes,
    str: decode_text,
    int: lambda data: int(decode_text(data)),
    float: lambda data: float(decode_text(data)),
}


class Call:
    """A user's function that is called with bytes. Reading its argument runs no code of the user's, as a codec may."""

    def __init__(self, function: Function, read: Callable[[bytes], Any]) -> None:
        self.function = function
        self.read = read

    def __call__(self, data: bytes) -> Any:
        return self.function(self.read(data))

    def read_all(self, pieces: Sequence[bytes]) -> list[Any]:
        """Read the arguments of many calls at once. Raises an exception if one cannot be read."""
        with contextlib.suppress(ValueError, EOFError, TypeError):  # some are nested, or have half a surrogate pair
            if self.read is load_plain:
                return load_flat(b"".join(pieces), len(pieces))
            if self.read is load_text:
                return list(map(bytes.decode, pieces))
        return list(map(self.read, pieces))


def calls_of(functions: Mapping[int, Function], codec: Codec | None) -> dict[int, Callable[[bytes], Any]]:
    """Return what to call for a slot's fn_id, which holds the payload's kind."""
    return {
        fn_id | kind << KIND_BIT: call
        for fn_id, function in functions.items()
        for kind, call in enumerate(adapt(function, codec))
    }


def adapt(function: Function, codec: Codec | None) -> list[Callable[[bytes], Any]]:
    """Return `function` as functions of bytes: one for payloads that are BYTES, TEXT and CODED.

    Bytes and text are read as the annotation of the first parameter says; all else arrives as it is.
    """
    calls: list[Any] = [function, Call(function, load_text), Call(function, load_plain)]
    if codec is not None:
        loads = codec.loads
        calls[CODED] = lambda data: function(loads(data))
    named, _ = annotated(function)
    if named:
        read = READERS.get(named[0]) or named[0].from_buffer_copy
        if bytes not in named:
            calls[BYTES] = Call(function, read)
        if str not in named:  # with half a surrogate pair, it may stand for a byte
            calls[TEXT] = Call(function, lambda data: read(encode_text(load_text(data)) if b"\xed" in data else data))
    return calls


# How to look at annotations: first with those that are text evaluated, and if one cannot be, then as they are.
_looks: list[dict[str, Any]] = [{"eval_str": True}, {}]
if sys.version_info >= (3, 14):  # otherwise one name that cannot be evaluated is a NameError there
    _looks[1]["annotation_format"] = importlib.import_module("annotationlib").Format.FORWARDREF


def annotated(function: Function) -> tuple[list[Any], list[Any]]:
    """Return the types that matter in the annotations of a function's first parameter and its return value."""
    import inspect

    for look in _looks:
        with contextlib.suppress(Exception):
            signature = inspect.signature(function, **look)
            given = [p.annotation for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
            return _members(*given[:1]), _members(signature.return_annotation)
    return [], []  # some built-ins have no signature


def _members(hint: Any = None) -> list[Any]:
    """Return those of READERS and the Structures in an annotation: a str, if it could not be evaluated."""
    if isinstance(hint, str):
        hint = {kind.__name__: kind for kind in READERS}.get(hint)
    kinds = (hint,)
    if not isinstance(hint, (type, type(None))):
        import typing

        if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Annotated):
            kinds = typing.get_args(hint)
    return [kind for kind in kinds if isinstance(kind, type) and (kind in READERS or ctypes.Structure in kind.__mro__)]


def structures_of(functions: Iterable[Function]) -> list[type[ctypes.Structure]]:
    """Return the Structures that the functions' annotations name, in order: only these can travel back as values."""
    named = [kind for function in functions for kinds in annotated(function) for kind in kinds]
    return [kind for kind in dict.fromkeys(named) if kind not in READERS][: IN_FILE - STRUCTURE]


def briefly(payload: Any, most: int) -> str:
    """Return a payload in `most` characters at most, to show it: text in quotes, of which the middle is left out."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = most
    if isinstance(payload, bytes):
        if len(payload) > 8 * most:  # do not look at all of it; a character has up to four bytes
            payload = payload[: 4 * most] + payload[-4 * most :]
        payload = decode_text(payload)
    try:
        return brief.repr(payload)[:most]
    except Exception as error:  # an int of too many digits, or what an object's own repr() does
        return f"<{type(payload).__name__}: {describe(error)}>"[:most]


REFERENCE = struct.Struct("=QI")  # a record of a value in a file: its length, and 0 or the number of an error
REFERRING = 1 + REFERENCE.size  # bytes of such a record


def cut(data: bytes, begin: int, ends: array.array[int]) -> list[bytes]:
    """Return pieces of `data`. The first begins at `begin`, as `data` does, and each ends there.

    One subtraction of big integers tells all lengths. A stream reads the pieces in half the time of slices. Raises
    OverflowError if one ends before the one before it.
    """
    begins = array.array("Q", [begin]) + ends[:-1]
    lengths = int.from_bytes(ends.tobytes(), sys.byteorder) - int.from_bytes(begins.tobytes(), sys.byteorder)
    return list(map(io.BytesIO(data).read, array.array("Q", lengths.to_bytes(8 * len(ends), sys.byteorder))))


# =====================================================================================================================
# The command line begins here. If your program only calls the library, delete everything below.
# =====================================================================================================================

__all__ += ["main"]

# ---------------------------------------------------------------------------------------------------------------------
# Files and queries: where the command line's tasks come from.


class LineParser:
    """Makes tasks of lines: FUNCTION PAYLOAD or, if a line is `whole`, a payload for the first function.

    Empty lines are skipped, and lines that start with # if those are comments. A line may be a pair already.
    """

    def __init__(self, names: Sequence[str], comments: bool, whole: bool = False) -> None:
        self.whole = whole
        self.done: collections.Counter[bytes] = collections.Counter()  # by task_digest: how often to leave it out
        self.left_out = 0
        self.tasks = 0  # returned
        self._comments = comments
        self._names = names
        self._known = {name.encode(): name for name in names}
        self._skipped = array.array("Q")  # for each line that is no task: the number of tasks before it

    def __call__(self, lines: Iterable[Any]) -> list[Any]:
        tasks: list[Any] = []
        for item in map(self._read, lines, itertools.count(self.tasks + len(self._skipped) + 1)):
            if item is not None and self.done:
                digest = task_digest(*self.task(item))
                if self.done[digest]:
                    self.done[digest] -= 1
                    self.left_out += 1
                    item = None
            if item is None:
                self._skipped.append(self.tasks + len(tasks))
            else:
                tasks.append(item)
        self.tasks += len(tasks)
        return tasks

    def line_of(self, task: int) -> int:
        """Return the line of a task. Both are counted from 1."""
        return task + bisect.bisect_left(self._skipped, task)

    def _read(self, line: Any, number: int) -> Any:
        if self.whole:
            return line if line and not (self._comments and line.startswith(b"#")) else None
        if isinstance(line, bytes):
            word, _, payload = line.partition(b" ")
            if word not in self._known:
                line = line.lstrip()
                if not line or line.startswith(b"#"):
                    return None
                word = line.split(None, 1)[0]
                payload = line[len(word) + 1 :]
        else:
            word, payload = line
        if word in self._known:
            return self._known[word], payload
        text = decode_text(word)
        return Rejected((text, payload, f"line {number:,}: {no_such_function(text, self._names)}"))

    def task(self, item: Any) -> tuple[str, bytes]:
        if isinstance(item, bytes):
            return self._names[0], item
        function, payload = item[:2]
        return function, payload

    def input_line(self, function: str, payload: bytes) -> bytes:
        """Return a line, with its end, that is read as this task."""
        line = payload
        if not self.whole:
            line = b" ".join(filter(None, (encode_text(function), payload)))
        if line.endswith(b"\r"):
            line += b"\r"  # reading drops one
        return line + b"\n"


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineSource(Source):
    """Tasks from a file of lines, as they come. A line ends at a newline and nowhere else.

    A carriage return before the newline and a byte order mark at the start of the file are dropped.
    """

    def __init__(self, path: str, parse: LineParser) -> None:
        self._parse = parse
        with usage_error(f"cannot read {path!r}: "):
            self._file = open(0 if path == "-" else path, "rb", 0, closefd=path != "-")
        weakref.finalize(self, self._file.close)
        self.finite = os.path.isfile(self._file.fileno())
        self._mark = BYTE_ORDER_MARK  # which the first line may begin with
        self._line = bytearray()  # that is not yet whole
        self._items: list[Any] = []  # read and not taken

    def fileno(self) -> int:
        return -1 if self.finite or self._file.closed else self._file.fileno()

    def total(self) -> int | None:
        """Return how many tasks there are, or an estimate by bytes; None for a stream that has not ended."""
        if self._file.closed:
            return self._parse.tasks
        if not self.finite or not self._file.tell():
            return None
        left_out = self._parse.left_out
        return int((self._parse.tasks + left_out) * os.path.getsize(self._file.fileno()) / self._file.tell()) - left_out

    def take(self, room: int) -> Sequence[Any]:
        if not self._items and not self._file.closed and is_readable(self._file.fileno()):
            self._read()
        items = self._items[: min(room, BLOCK)]
        del self._items[: len(items)]
        self.exhausted = self._file.closed and not self._items
        return items

    def rest(self) -> Iterator[Any]:
        while self._items or (self.finite and not self.exhausted):
            yield from self.take(BLOCK)

    def _read(self) -> None:
        block = b""
        try:
            block = self._file.read(1 << 16) or b""
        except OSError as error:
            self.problem = f"reading the tasks stopped: {error.strerror}"
            self._line.clear()  # only a part of it may be there
        self._line += block
        if not block:
            self._file.close()
        if b"\n" in block or not block:  # the last line may end with the file
            lines = bytes(self._line).replace(b"\r\n", b"\n").split(b"\n")
            self._line[:] = lines.pop() if block else b""
            lines[0] = lines[0].removeprefix(self._mark)
            self._mark = b""
            self._items = self._parse(lines)


class QuerySource(IterableSource):
    """Tasks from the rows of a SQLite query: one column is a line, two are a function and its payload."""

    pairs = True

    def __init__(self, path: str, query: str, parse: LineParser) -> None:
        import pathlib
        import sqlite3

        if not os.path.isfile(path):
            raise UsageError(f"{path!r} is not a file; with --query, TASKS is a SQLite file")
        address = f"{pathlib.Path(path).absolute().as_uri()}?mode=ro"

        def execute() -> Any:
            base = sqlite3.connect(address, uri=True, check_same_thread=False)
            weakref.finalize(self, base.close)  # any thread may drop this object
            base.text_factory = bytes
            return base.execute(query)

        with usage_error(f"{path!r}: --query {query!r}: ", Exception):
            cursor = execute()
            columns = len(cursor.description or ())
            cursor.connection.close()  # in a worker that is forked while it is open, SQLite finds the file locked
        if not 1 <= columns <= 2 - parse.whole:
            rule = "give a line or, without --call, --shell and --command, two columns: function, payload"
            raise UsageError(f"--query {query!r}: {columns} columns: {rule}")
        super().__init__(self._read(execute))
        self._parse = parse

    def _read(self, execute: Callable[[], Any]) -> Iterator[Any]:
        try:
            cursor = execute()  # once the workers have started
            for row in cursor:
                values = [b"" if value is None else encode_text(as_text(value)) for value in row]
                yield values if len(values) == 2 else values[0]
            cursor.connection.close()
        except Exception as error:
            self.problem = f"reading the tasks stopped: {describe(error)}"

    def take(self, room: int) -> Sequence[Any]:
        return self._parse(super().take(room))

    def total(self) -> int | None:
        """Return how many tasks there are, once all rows are read: to count them first would read them twice."""
        return self._parse.tasks if self.exhausted else None


# ---------------------------------------------------------------------------------------------------------------------
# Results: where the command line keeps outcomes, and what --resume finds there.


def as_json(value: Any) -> Any:
    """Return a payload or a value for JSON.

    Bytes become text by surrogateescape. What JSON does not know becomes its repr.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, ctypes.Structure)):
        return decode_text(bytes(value))
    try:
        import json

        json.dumps([[value]], allow_nan=False)  # deeper than it is in a record
        return value
    except (TypeError, ValueError, RecursionError):
        with contextlib.suppress(Exception):  # nested too deeply
            return repr(value)
        return object.__repr__(value)


def as_text(value: Any) -> str:
    """Return the same as text: JSON, if it is not text already."""
    form = as_json(value)
    if isinstance(form, str):
        return form
    import json

    return json.dumps(form)


def as_row(result: TaskResult, form: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the fields of a result, with its payload as text, and with its value in this form."""
    row = result._asdict()
    row["payload"] = as_text(result.payload)
    if result.value is not None:
        row["value"] = form(result.value)
    return row


FIELDS = TaskResult._fields
RECORDED = ("status", "function", "payload")  # the fields by which a task is known again


class Sink:
    """Where results go: a file, or standard output. After a failure nothing more is written."""

    write: Callable[[TaskResult], None]
    name: str
    loss = ""  # what a failure leads to
    error: Exception | None = None  # why nothing more is written
    _file: Any

    def save(self) -> None:
        """Bring what was written to its place. Called several times a second."""
        self._file.flush()

    def end(self) -> None:
        self.save()
        self._file.close()

    def close(self) -> None:
        """Remove what was not brought to its place."""

    def attempt(self, action: Callable[..., object], *arguments: Any) -> None:
        if self.error is None:
            try:
                action(*arguments)
            except Exception as error:
                self.error = error
                with contextlib.suppress(Exception):  # else Python writes what is in its buffer, and complains as well
                    self._file.close()

    def complaint(self) -> str:
        """Say what went wrong, and what that leads to."""
        if self.error is None:
            return ""
        return f"{self.name}: {getattr(self.error, 'strerror', None) or self.error}{self.loss}"


class Results(Sink):
    """A file to which results are written as they come, each as a line of JSON. A subclass has another form.

    It is flushed often, so a killed run keeps what was finished. A last record that is not whole is cut off: its task
    is done again. Making one reads what is to be resumed, and changes nothing. `begin` opens the file.

    out: standard output, for the path -.
    """

    HEADER = b""
    START = b'{"tsk_id": '  # what a file begins with
    _kept = 0  # bytes of the file that stay

    def __init__(self, path: str, resume: bool, out: Outlet | None = None) -> None:
        self.path = path
        self.name = f"--results {path}"
        self.loss = "; the last results were not written" + ": run again with --resume" * (path != "-")
        self.done: collections.Counter[bytes] = collections.Counter()  # by task_digest: what the file holds as ok
        self._resume = resume
        self._out = out
        with usage_error(f"{self.name}: cannot be used: ", Exception):  # whatever a foreign file leads to
            if os.path.exists(path):
                self.read()

    def note(self, place: str, record: Any) -> None:
        """Count a record that was read, if it is ok. Raise ValueError if it is no record."""
        try:
            status, function, payload = (record[name] for name in RECORDED)
            if status not in STATUSES or not {type(function), type(payload)} <= {str, bytes}:
                raise ValueError(record)
        except Exception:
            raise ValueError(f"{place} is not a record of results; mend it, or give another file") from None
        if status == "ok":
            self.done[task_digest(as_text(function), encode_text(as_text(payload)))] += 1

    def read(self) -> None:
        if not self._resume:
            return
        lines: list[bytes] = []  # of one record

        def noted(line: bytes) -> bytes:
            lines.append(line)
            return line

        number = 1
        with open(self.path, "rb") as file:
            records = self.decode(map(noted, file))
            while file.peek():
                record = None
                with contextlib.suppress(Exception):  # whatever a foreign file leads to
                    record = next(records)
                data = b"".join(lines)
                is_ours = self._kept or self.START.startswith(data[: len(self.START)])
                if is_ours and not file.peek() and (record is None or not data.endswith(b"\n")):
                    return
                if data != self.HEADER:
                    self.note(f"what begins in line {number:,}", record)
                self._kept += len(data)
                number += len(lines)
                lines.clear()

    def decode(self, lines: Iterable[bytes]) -> Iterator[Any]:
        import json

        return map(json.loads, lines)

    def begin(self) -> None:
        """Empty the file, or cut off what is not whole."""
        if self.path == "-":
            self._file = self._out
            return
        self._file = open(self.path, "ab", 1 << 20)
        if self._file.tell() > self._kept:
            self._file.truncate(self._kept)
        if not self._kept:
            self._file.write(self.HEADER)

    def write(self, result: TaskResult) -> None:
        import json

        row = as_row(result, as_json)
        self._file.write(json.dumps(row).encode() + b"\n")


NUL = "\ud800"  # in its place, since the csv module of Python 3.10 takes none; text of bytes never has it


class Csv(Results):
    """Comma-separated values with a header; bytes as they are."""

    HEADER = START = (",".join(FIELDS) + "\r\n").encode()

    def decode(self, lines: Iterable[bytes]) -> Iterator[Any]:
        import csv

        csv.field_size_limit(sys.maxsize)
        for row in csv.reader((decode_text(line).replace("\0", NUL) for line in lines), strict=True):
            yield dict(zip(FIELDS, (field.replace(NUL, "\0") for field in row), strict=True))

    def write(self, result: TaskResult) -> None:
        import re

        fields = [b"" if field is None else encode_text(str(field)) for field in as_row(result, as_text).values()]
        quoted = [b'"%s"' % field.replace(b'"', b'""') if re.search(rb'[",\r\n]', field) else field for field in fields]
        self._file.write(b",".join(quoted) + b"\r\n")


class Sqlite(Results):
    """The table `results` of a SQLite file; what is not UTF-8 is a blob."""

    def read(self) -> None:
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.path)) as base:
            columns = tuple(name for _, name, *_ in base.execute("PRAGMA table_info(results)"))
            if columns[:1] not in ((), FIELDS[:1]) or (self._resume and columns not in ((), FIELDS)):
                raise ValueError(f"its table results has the columns {', '.join(columns)}; give another file")
            base.execute("BEGIN IMMEDIATE")  # raises if somebody else writes
            if self._resume and columns:
                for number, *row in base.execute(f"SELECT rowid, {', '.join(RECORDED)} FROM results"):
                    self.note(f"row {number:,} of its table results", dict(zip(RECORDED, row)))

    def begin(self) -> None:
        import sqlite3

        self._file = sqlite3.connect(self.path)
        self._file.execute("PRAGMA journal_mode = WAL")  # others can read it meanwhile
        self._file.execute("PRAGMA synchronous = OFF")  # a killed process loses nothing by it
        if not self._resume:
            self._file.execute("DROP TABLE IF EXISTS results")
        self._file.execute(f"CREATE TABLE IF NOT EXISTS results ({', '.join(FIELDS)})")

    def write(self, result: TaskResult) -> None:
        import re

        row = as_row(result, as_text).values()
        marks = ", ".join("?" * len(row))
        fields = [encode_text(x) if isinstance(x, str) and re.search("[\ud800-\udfff]", x) else x for x in row]
        self._file.execute(f"INSERT INTO results VALUES ({marks})", fields)

    def save(self) -> None:
        self._file.commit()


class FailedLines(Sink):
    """Tasks that were not ok, as lines that replace a file at the end. Until then the file may be the input."""

    loss = "; the file stays as it was"

    def __init__(self, path: str, parse: LineParser, source: Source) -> None:
        self.name = f"--failed {path}"
        self._parse = parse
        self._source = source
        self._target = os.path.realpath(path)
        self._beside = f"{self._target}.{os.getpid()}.part"
        with usage_error(f"{self.name}: "):
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError("is not a regular file; give another one")
            self._file = open(self._beside, "xb")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._beside)
            self._file.close()

    def write(self, result: TaskResult) -> None:
        if result.status != "ok":
            self._add(result.function, result.payload)

    def _add(self, function: str, payload: bytes) -> None:
        line = self._parse.input_line(function, payload)
        if line.startswith(BYTE_ORDER_MARK) and not self._file.tell():
            line = BYTE_ORDER_MARK + line  # reading drops one
        self._file.write(line)

    def end(self) -> None:
        """Add what was never begun, and put the lines in the place of the file, which keeps its permissions."""
        import shutil

        for item in self._source.rest():
            self._add(*self._parse.task(item))
        if self._source.problem:
            raise RuntimeError(self._source.problem)
        self._file.close()
        if os.path.exists(self._target):
            shutil.copymode(self._target, self._beside)
        os.replace(self._beside, self._target)


FORMATS: dict[str, type[Results]] = {"-": Results, ".jsonl": Results, ".csv": Csv, ".sqlite": Sqlite}


def results_format(path: str) -> type[Results]:
    found = FORMATS.get(path if path == "-" else os.path.splitext(path)[1])
    if found is None:
        raise UsageError(f"--results {path}: must end with .jsonl, .csv or .sqlite, or be - for standard output")
    if path != "-" and is_pipe(path):
        raise UsageError(f"--results {path}: is a pipe; give a file, or - for standard output")
    return found


def task_digest(function: str, payload: bytes) -> bytes:
    import hashlib

    return hashlib.blake2b(encode_text(function) + b"\0" + payload, digest_size=16).digest()


# ---------------------------------------------------------------------------------------------------------------------
# Printing: values on standard output, in one piece each.

PRINT_BYTES = 1 << 16  # more is printed at once; less waits for the next check of the workers


class Outlet:
    """Writes to standard output or standard error. A reader that takes nothing does not keep signals from being heard.

    wait: called several times a second meanwhile. When it returns False, flush() raises BlockingIOError.
    screen: is closed before a terminal is written to.
    """

    def __init__(self, descriptor: int, wait: Callable[[], bool], screen: Progress) -> None:
        self.descriptor = descriptor
        self.waiting = bytearray()
        self._wait = wait
        self._screen = screen

    def write(self, data: bytes) -> None:
        self.waiting += data
        if len(self.waiting) > PRINT_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.waiting and os.isatty(self.descriptor):
            self._screen.close()
        while self.waiting:
            if select.select([], [self.descriptor], [], 0.1)[1]:
                with contextlib.suppress(BlockingIOError):  # it is no pipe, has O_NONBLOCK, and takes less
                    del self.waiting[: os.write(self.descriptor, self.waiting[: select.PIPE_BUF])]
            elif not self._wait():
                raise BlockingIOError(errno.EAGAIN, "its reader takes nothing")

    close = flush


def in_order(deliver: Callable[[TaskResult], None], source: Source) -> Callable[[TaskResult], None]:
    """Return a function that delivers in the order of the input. `source` is not read far ahead of what waits."""
    early: dict[int, TaskResult] = {}  # by tsk_id
    due = 1

    def put(result: TaskResult) -> None:
        nonlocal due
        early[result.tsk_id] = result
        while due in early:
            deliver(early.pop(due))
            due += 1
        source.held = len(early)

    return put


class Printer(Sink):
    """Writes values to standard output, and right behind each, to standard error, what its command wrote to that.

    exact: values are printed as commands wrote them, those of failed tasks, too. Otherwise each gets a line end, and
        None and failures are not printed.
    line: returns a task's line, which --tag puts before each line that is printed.
    """

    name = "standard output"

    def __init__(self, exact: bool, line: Callable[[str, bytes], bytes] | None, out: Outlet, errors: Outlet) -> None:
        self._exact = exact
        self._line = line
        self._file = out
        self._errors = errors

    def write(self, result: TaskResult) -> None:
        tag = b""
        if self._line is not None:
            tag = self._line(result.function, result.payload).rstrip(b"\r\n") + b"\t"
        text = b""
        if self._exact:
            text = result.value or b""
        elif result.status == "ok" and result.value is not None:
            text = encode_text(as_text(result.value)).removesuffix(b"\n") + b"\n"
        self._file.write(tagged(text, tag))
        errors = result.value.errors if isinstance(result.value, Output) else b""
        if errors:
            self._file.flush()
            with contextlib.suppress(OSError):  # nobody reads it
                self._errors.write(tagged(errors, tag))
                self._errors.flush()

    def complaint(self) -> str:
        if isinstance(self.error, (BrokenPipeError, BlockingIOError)):  # a reader that takes no more is no problem
            return ""
        return super().complaint()


def tagged(text: bytes, tag: bytes) -> bytes:
    return tag + text[:-1].replace(b"\n", b"\n" + tag) + text[-1:] if tag and text else text


# ---------------------------------------------------------------------------------------------------------------------
# The screen: what a run shows, here or in another terminal.


# All that a frame shows: stats() and title, name, strategy, total (None if it is not known), rate (tasks a second) and
# rates (the last ones), ring, num_slots, failures, state, keys. A worker has number, rate and state (run, sleep, dead),
# too; and where they are known cpu, rss (MB), and function, payload and in_hand (a tsk_id), held for so many seconds.
if TYPE_CHECKING:
    Snapshot = dict[str, Any]

# The columns of the table: side, width, text of a row. They get room in the order of IMPORTANCE.
COLUMNS = {
    "worker": (">", 6, "{number}"),
    "pid": (">", 7, "{pid}"),
    "state": ("<", 5, "{state}"),
    "function": ("<", 12, "{function}"),
    "done": (">", 11, "{completed:,}"),
    "failed": (">", 6, "{failed:,}"),
    "tasks/s": (">", 9, "{rate:,.0f}"),
    "cpu": (">", 5, "{cpu:.0f} %"),
    "rss": (">", 7, "{rss:,.0f} MB"),
    "in hand": ("<", 20, "#{in_hand:,}  {held:.2f} s"),
    "payload": ("<", 30, "{payload}"),
}
IMPORTANCE = ("worker", "state", "done", "tasks/s", "failed", "in hand", "function", "cpu", "rss", "pid", "payload")


def printable(text: str) -> str:
    """Return `text` with "�" for what could command a terminal: controls, C1, direction marks and the like."""
    text = text.replace("\t", " ").replace("\n", " ")
    return "".join(c if c.isprintable() else "�" for c in text)


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def as_hours(elapsed: float) -> str:
    whole = int(max(0.0, min(elapsed, 1e9)))  # at a low rate, the end may be later
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def bar(fraction: float, width: int) -> str:
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(width, "░")


def sparkline(rates: Sequence[float]) -> str:
    top = max(rates, default=0.0) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(rate / top * 8))] for rate in rates)


def spread(left: str, right: str, width: int) -> str:
    """Put `left` and `right` at the ends of a line, or `left` alone if they do not both fit."""
    gap = width - len(left) - len(right)
    if gap < 2:
        return left[:width]
    return left + " " * gap + right


def render(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """Return a frame of at most `height` lines of at most `width` characters. Pure, so that it can be tested."""
    lines = [*_render_head(snapshot, width - 2), ""]
    foot = bool(snapshot["keys"]) and height >= len(lines) + 5
    free = height - len(lines) - foot
    most = min(5, max(0, (free - 2) // 3))
    failures: list[str] = []
    if most and snapshot["failures"]:
        failures = ["", *snapshot["failures"][-most:]]
    lines += _render_table(snapshot["workers"], width - 2, free - len(failures)) + failures
    if foot:
        lines += [""] * (height - 1 - len(lines)) + [snapshot["keys"]]
    return [(" " + printable(line))[:width].rstrip() for line in lines[:height]]


def _render_head(shot: Snapshot, width: int) -> list[str]:
    title = shot["title"][: max(8, width // 2)]
    if shot["state"]:
        title += f"  [{shot['state']}]"
    about = f"{counted(len(shot['workers']), 'worker')} · {shot['strategy']} · {shot['name']}"
    first = spread(f"shmqueue  {title}", f"{about}      {as_hours(shot['seconds'])}", width)
    second = _render_progress(shot, width)
    speed = f"{shot['rate']:,.0f} tasks/s  {sparkline(shot['rates'])}"
    used = f"ring {bar(shot['ring'] / shot['num_slots'], 10)} {shot['ring']:,} / {shot['num_slots']:,}"
    names = [name for name in (*STATUSES, "retried") if shot[name] or name in ("ok", "failed")]
    outcomes = "  ".join(f"{name} {shot[name]:,}" for name in names)
    third = "   ".join((speed, used, outcomes))
    if len(third) <= width:
        return [first, second, third]
    return [first, second, spread(speed, used, width), outcomes]


def _render_progress(shot: Snapshot, width: int) -> str:
    done = finished(shot)
    total = shot["total"]
    if not total:
        return f"{done:,} tasks done"
    left = "–"
    if shot["rate"] > 0:
        left = as_hours((total - done) / shot["rate"])
    parts = [f"  {done / total:6.1%}", f"{done:,} / {total:,}", f"eta {left}"]
    while len("   ".join(parts)) > width - 8 and len(parts) > 1:
        parts.pop()
    tail = "   ".join(parts)
    return bar(done / total, max(4, width - len(tail))) + tail


def finished(stats: Mapping[str, Any]) -> int:
    return sum(stats[name] for name in STATUSES)


def how_far(shot: Snapshot) -> str:
    return f"{finished(shot):,}" + (f" of {shot['total']:,}" if shot["total"] else "")


def _render_table(rows: Sequence[Snapshot], width: int, height: int) -> list[str]:
    """Return as many columns and rows as fit. A last line sums up the workers that do not fit."""
    names: list[str] = []
    for name in IMPORTANCE:
        known = name != "payload" or all(name in row for row in rows)
        if known and sum(COLUMNS[each][1] + 2 for each in [*names, name]) <= width + 2:
            names.append(name)
    columns = {name: column for name, column in COLUMNS.items() if name in names}

    def cell(row: Snapshot, side: str, text: str) -> str:
        with contextlib.suppress(KeyError):  # it is not known
            return text.format_map(row)
        return "–" if side == "<" else ""

    def line(texts: Iterable[str]) -> str:
        return "  ".join(f"{text:{side}{most}.{most}}" for text, (side, most, _) in zip(texts, columns.values()))

    fit = len(rows)
    if fit > height - 1:
        fit = max(0, height - 2)
    table = [line(columns)]
    table += [line(cell(row, side, text) for side, _, text in columns.values()) for row in rows[:fit]]
    if rest := rows[fit:]:
        busy = sum(row["state"] == "run" for row in rest)
        done = sum(row["completed"] for row in rest)
        rate = sum(row["rate"] for row in rest)
        table.append(f"and {len(rest):,} more: {busy} run, {done:,} done, {rate:,.0f} tasks/s")
    return table


# Groups 1 to 3 are red, green and yellow: colours 31 to 33 of a terminal.
COLOURED = (
    r"(^ #.*|\b(?:failed|timeout|crashed) [1-9][\d,]*|(?<=\d  )dead\b)"
    r"|(^ [█▏▎▍▌▋▊▉]+|\bok [1-9][\d,]*|(?<=\d  )run\b)"
    r"|((?<=  )\[.*?\](?=  |$)|\b(?:cancelled|retried) [1-9][\d,]*)"
)


def paint(line: str) -> str:
    import re

    return re.sub(COLOURED, lambda found: f"\x1b[3{found.lastindex}m{found[0]}\x1b[m", line)


class Progress:
    """Leaves snapshots for --watch, but draws nothing; base of what does."""

    show: Callable[[Snapshot], None]
    SECONDS = math.inf  # from one drawing to the next
    SHARE_SECONDS = 1.0  # from one snapshot for --watch to the next
    state = ""  # what the run does in place of its work
    keys = ""  # which keys do what
    ended = ""  # how the run has ended, if not by itself
    folder = ""

    def __init__(self, title: str = "", total: Callable[[], int | None] = lambda: None) -> None:
        self.title = title
        self.total = total
        with contextlib.suppress(OSError):  # it has been removed
            self.folder = os.getcwd()
        self._rates: collections.deque[list[float]] = collections.deque(maxlen=12)  # of the workers
        self._sample: tuple[float, Iterable[int]] = (time.monotonic(), itertools.repeat(0))
        self._drawn = self._shared = time.monotonic()

    def take(self, stats: dict[str, Any], queue: SharedTaskQueue, pool: WorkerPool, ledger: Ledger) -> Snapshot:
        """Return a snapshot of a Supervisor that has these parts."""
        about = {"name": queue.name, "strategy": queue.strategy, "ring": queue.backlog(), "num_slots": queue.num_slots}
        for row, lane in zip(stats["workers"], pool.lanes):
            in_hand = queue.glance(lane.index).in_hand
            tasks = ledger.tasks_at(-1 if in_hand is None else in_hand)
            row |= {"state": "sleep" if lane.process.child else "dead", "payload": ""}
            if lane.process.rss:
                row |= {"cpu": lane.process.cpu, "rss": lane.process.rss / 2**20}
            if lane.process.child and tasks is not None:
                at = in_hand - tasks.first
                row["state"] = "run"
                row["function"] = ledger.names.get(tasks.fn_ids[at], "")
                row["in_hand"] = tasks.tsk_ids[at]
                row["payload"] = briefly(tasks.payloads[at], 30)
                row["held"] = time.monotonic() - lane.progress_since
        return self.complete(stats | about, ledger.tally.latest)

    def complete(self, shot: Snapshot, failures: Iterable[TaskResult]) -> Snapshot:
        """Add rates, and what this object knows, to a snapshot."""
        now = time.monotonic()
        before, done_before = self._sample
        done = [row["completed"] + row["failed"] for row in shot["workers"]]
        if now - before >= 1.0 or not self._rates:
            self._rates.append([(a - b) / max(now - before, 0.1) for a, b in zip(done, done_before)])
            self._sample = (now, done)
        for number, (row, rate) in enumerate(zip(shot["workers"], [*self._rates[-1], *[0.0] * len(done)])):
            row |= {"number": number, "rate": rate}
        return shot | {
            "title": self.title,
            "folder": self.folder,
            "total": self.total(),
            "rates": list(map(sum, self._rates)),
            "rate": sum(self._rates[-1]),
            "failures": [f"#{r.tsk_id:,} {r.function} {r.status}: {r.error}" for r in failures],
            "state": self.state or (shot["held_up"] and f"waiting: {shot['held_up']}"),
            "keys": self.keys,
        }

    def update(self, snapshot: Callable[[], Snapshot]) -> None:
        """Draw a snapshot, and leave one, each if it is time to."""
        now = time.monotonic()
        if now - self._drawn >= self.SECONDS:
            self._drawn = now
            self.show(snapshot())
        if now - self._shared >= self.SHARE_SECONDS:
            self._shared = now
            self.share(snapshot())

    def share(self, shot: Snapshot) -> None:
        """Leave a snapshot for --watch beside the segment, always in one file: watchers have it open."""
        import json

        with contextlib.suppress(OSError):  # there is no room
            if os.path.isfile(path_of(shot["name"])):
                write_file(watch_path(shot["name"]), json.dumps(shot).encode())

    def end(self, snapshot: Callable[[], Snapshot]) -> None:
        """Leave a last snapshot, which says how the run has ended, if there were others."""
        with contextlib.suppress(Exception):  # it has ended before
            shot = snapshot()
            if os.path.exists(watch_path(shot["name"])):
                early = shot["outstanding"] or shot["cancelled"]
                self.share({**shot, "ended": self.ended or ("ended early" if early else "done")})

    def read_keys(self) -> str:
        return ""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainLines(Progress):
    """Says where the run is by a line every few seconds, and once what holds it up."""

    SECONDS = 5.0
    _held_up = ""

    def share(self, shot: Snapshot) -> None:
        super().share(shot)
        if shot["held_up"] not in ("", self._held_up):
            complain(f"waiting: {shot['held_up']}")
        self._held_up = shot["held_up"]

    def show(self, shot: Snapshot) -> None:
        complain(f"{how_far(shot)} tasks done, {finished(shot) - shot['ok']:,} not ok, {shot['rate']:,.0f} tasks/s")


class Screen(Progress):
    """Draws frames on the alternate screen of the error stream's terminal.

    If it has `keys`, they are read from the terminal on standard input while that is in the foreground.
    """

    SECONDS = 0.1
    ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
    LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
    _entered = False
    _modes: Any = None  # of the terminal on standard input, before keys were read

    def show(self, shot: Snapshot) -> None:
        if not in_foreground(2):
            return
        width, height = self.window()
        lines = render(shot, width, height)
        if has_colours():
            lines = list(map(paint, lines))
        # Each line is cleared first: how wide characters are is up to the terminal.
        text = "\x1b[H" + "\r\n".join(f"\x1b[K{line}" for line in lines) + "\r\n\x1b[J" * (len(lines) < height)
        if not self._entered:
            self._entered = True
            text = self.ENTER + text
        self.write(text)

    @staticmethod
    def window() -> tuple[int, int]:
        with contextlib.suppress(OSError):
            if all(found := os.get_terminal_size(2)):
                return found
        return 80, 24

    def write(self, text: str) -> None:
        """Write in one piece. If the error stream is closed, write no more."""
        data = text.encode()
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(2, data) :]

    def read_keys(self) -> str:
        if not self.keys or not in_foreground(0):
            return ""
        import termios
        import tty

        with contextlib.suppress(OSError, termios.error):  # the terminal is gone
            if self._modes is None:
                self._modes = termios.tcgetattr(0)
                tty.setcbreak(0)
            if is_readable(0):
                return os.read(0, 64).decode("latin-1")
        return ""

    def close(self) -> None:
        if self._entered:
            self._entered = False  # a later frame enters again
            self.write(self.LEAVE)
        if self._modes is not None:
            import termios

            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._modes)
            self._modes = None  # a later look for keys sets them again


def choose_display(screen: bool | Progress) -> Progress:
    if isinstance(screen, Progress):
        return screen
    return Screen() if screen and can_draw() else Progress()


Supervisor.choose_display = staticmethod(choose_display)


def can_draw() -> bool:
    """Return True if the error stream is a terminal that knows commands."""
    return os.isatty(2) and os.environ.get("TERM", "") not in ("", "dumb")


def has_colours() -> bool:
    """Return True if the terminal is one of those with colours, and NO_COLOR is not set (https://no-color.org)."""
    import re

    known = "color|xterm|screen|tmux|linux|rxvt|ansi|kitty|alacritty|foot|cygwin|konsole"
    return can_draw() and not os.environ.get("NO_COLOR") and bool(re.search(known, os.environ["TERM"]))


def in_foreground(descriptor: int) -> bool:
    """Return True if this process may write to the terminal, or if it is not its controlling terminal."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return True


def watch_path(name: str) -> str:
    return f"{path_of(name)}.watch"


def runs() -> list[str]:
    """Return the names of this user's segments whose supervisors are alive."""
    names = []
    for path in own_segments():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if _owner_lives(owner_of(path), file):
                names.append(os.path.basename(path))
    return names


def describe_run(name: str) -> str:
    import json

    about = "nothing is known yet"
    with contextlib.suppress(Exception), open(watch_path(name), encoding="utf-8") as file:  # whatever is in that file
        shot = json.load(file)
        tasks = f"{shot['title'] or 'a program'} in {shot['folder']}"
        about = f"{tasks}, {as_hours(shot['seconds'])}, {how_far(shot)} done"
    return f"{name} ({about})"


def choose_run(name: str) -> str:
    """Return the name of the live run of this name, or of the only one if it is empty."""
    alive = runs()
    found = [each for each in alive if name in ("", each)]
    if len(found) == 1 and can_draw():
        return found[0]
    remedy = "no run is alive"
    if name in alive:
        remedy = "the error stream is no terminal that can be drawn on"
    elif alive:
        remedy = f"give one of {'; '.join(map(describe_run, alive))}"
    asked = f"--watch {name}".rstrip()
    raise UsageError(f"{asked}: {remedy}")


def watch_run(name: str) -> None:
    """Show another supervisor's run, by its snapshots, until Ctrl-C or until it ends: then the last frame stays."""
    import json

    screen = Screen()
    shot: Snapshot = {}
    alive = True
    kept = os.open(os.devnull, os.O_RDONLY)  # then the file of snapshots, which can be read after its removal

    def act(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            raise SystemExit(0)
        if number != signal.SIGTSTP:
            raise SystemExit(128 + number)
        screen.close()
        os.kill(os.getpid(), signal.SIGSTOP)

    spoiled = f"--watch {name}: its snapshot cannot be shown: "
    with contextlib.closing(screen), usage_error(spoiled, Exception), handled_by(act):
        while alive:
            alive = name in runs()
            # It is not there if the run has just begun or just ended.
            with contextlib.suppress(FileNotFoundError), open(watch_path(name), "rb") as file:
                os.dup2(file.fileno(), kept)
            with contextlib.suppress(ValueError):  # it is being written
                shot = json.loads(os.pread(kept, os.fstat(kept).st_size, 0))
            if alive and shot != {}:
                screen.show({**shot, "keys": "Ctrl-C leaves"})
            time.sleep(Screen.SECONDS)
        screen.close()
        if shot:
            width, height = screen.window()
            lines = render({**shot, "state": shot.get("ended", "killed"), "keys": ""}, width, height - 1)
            screen.write("\n".join(lines) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# What lines run: built-in functions, and commands.

LINGER_SECONDS = 0.1  # for what commands in the background still write after their shell has ended
POLL_COMMAND_MS = 20  # the end of a command that leaves its pipes open is noticed within this time
PIPE_BYTES = 1 << 20  # what a pipe holds at most


def echo(payload: bytes) -> bytes:
    return payload


def sleep(payload: float) -> None:
    time.sleep(payload)


def sha256(payload: bytes) -> str:
    """Return the SHA-256 of the file at this path, in hex."""
    import hashlib

    digest = hashlib.sha256()
    with open(payload, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def noop(payload: bytes) -> None:
    """Do nothing."""


def shell(payload: bytes, timeout: float = math.inf, grace: float = 0.0) -> bytes | Failure:
    """Return what a shell command writes. What it writes to its standard error goes to the worker's.

    The task fails if the exit code is not 0. Then its error ends with what the command complained of. In a worker the
    command has a process group of its own.
    """
    import subprocess

    os.environ["SHMQUEUE_TASK"] = str(tsk_id_in_hand())
    command = [b"/bin/sh", b"-c", payload]
    streams: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, 0, **streams, start_new_session=note_command is not int) as process:
        note_command(process.pid << 32 | process.pid)
        try:
            output, errors, overdue = attend(process, timeout, grace)
        finally:
            note_command(0)
    if errors and sys.stderr is not sys.__stderr__:  # else this is no worker
        sys.stderr.write(decode_text(errors))
    if overdue:
        text = f"ran longer than {timeout:g} s"
    elif process.returncode:
        text = describe_exit(process.returncode)
    else:
        return Output(output, errors) if errors else output
    complaint = errors[-1000:].decode("utf-8", "backslashreplace").strip()
    text = f"{text}: {complaint}".removesuffix(": ")
    return Failure(text, None, Output(output, errors), "timeout" if overdue else "failed")


def attend(process: Any, timeout: float, grace: float) -> tuple[bytes, bytes, bool]:
    """Read what a command writes until it has ended. Return that, and True if its process group was sent a signal.

    What a process that it leaves behind still writes after LINGER_SECONDS is dropped.
    """
    written: dict[int, list[bytes]] = {end.fileno(): [] for end in (process.stdout, process.stderr)}
    left = set(written)
    poll = select.poll()
    for end in left:
        poll.register(end, select.POLLIN)
    sent = 0
    spent = 0.0
    seen = time.monotonic()
    until = math.inf
    while seen < until:
        for end, _ in poll.poll(POLL_COMMAND_MS if left else 1):
            written[end].append(os.read(end, PIPE_BYTES))
            if not written[end][-1]:
                poll.unregister(end)
                left.remove(end)
        if not left and timeout == math.inf:
            process.wait()
        runs = process.poll() is None
        spent += min(time.monotonic() - seen, 0.5)  # time that this process stands still hardly counts
        seen = time.monotonic()
        if spent >= timeout and (runs or sent):
            due = signal.SIGTERM if spent < timeout + grace else signal.SIGKILL
            with contextlib.suppress(OSError):  # nobody is left who would need the grace
                os.killpg(process.pid, due if due != sent else 0)
                runs = runs or due == signal.SIGTERM
            sent = due
        if not (runs or left):
            break
        if not runs:
            until = min(until, seen + LINGER_SECONDS)
    output, errors = map(b"".join, written.values())
    return output, errors, sent > 0


def describe_exit(code: int) -> str:
    """Say how a command ended. Shells have codes above 128 for what a signal killed."""
    number = -code if code < 0 else code - 128
    name = ""
    with contextlib.suppress(ValueError):
        name = f" ({signal.Signals(number).name})"
    return (f"killed by signal {number}" if code < 0 else f"exit code {code}") + name


class Command:
    """The function of --command: fills a template of a shell command with a line, and runs it.

    A replacement string behind `$` belongs to the shell. If there is none, the line is appended. Within quotes, what
    comes from the line would end these, and could be run as a command.
    """

    __name__ = "command"
    STRING = rb"(?<!\$)\{([-+]?[0-9]*[./#%]*)\}"
    QUOTED = rb"""(?s)\\.|'[^']*'|"(?:\\.|[^"\\])*["]"""
    OURS = rb"|[1-9][0-9]*|\.|/|//|/\.|#|%"  # others of GNU parallel's are refused

    def __init__(self, template: str, delimiter: str | None, run: Callable[[bytes], bytes | Failure] = shell) -> None:
        import re

        self._run = run
        self._delimiter = None if delimiter is None else encode_text(delimiter.replace("\\t", "\t"))
        text = encode_text(template)
        if not re.search(self.STRING, text):
            text += b" {}"
        self._template = text
        for string in re.findall(self.STRING, text):
            if not re.fullmatch(self.OURS, string):
                known = "{} {1} {2} … {.} {/} {//} {/.} {#} {%}"
                raise UsageError(f"--command: {{{decode_text(string)}}} is none of {known}")
        for quoted in re.findall(self.QUOTED, text):
            inside = [string for string in re.findall(self.STRING, quoted) if string not in (b"#", b"%")]
            if inside and not re.match(rb'(?s)".*(\$\(|`)', quoted):  # in a command of its own there are no quotes
                string = decode_text(inside[0])
                raise UsageError(f"--command: {{{string}}} is in quotes: write none, since what comes there is quoted")

    def fill(self, line: bytes, task: int, worker: str = "{%}") -> bytes:
        """What comes from the line is quoted."""
        import re
        import shlex

        stem = re.sub(rb"\.[^./]*\Z", b"", line)
        fields = line.split(self._delimiter)
        parts = {b"%d" % number: field for number, field in enumerate(fields, 1)}
        parts |= {b"": line, b".": stem, b"/": line.rpartition(b"/")[2], b"/.": stem.rpartition(b"/")[2]}
        parts[b"//"] = os.path.dirname(line.rstrip(b"/") or b"/") or b"."
        texts = {string: encode_text(shlex.quote(decode_text(part))) for string, part in parts.items()}
        texts |= {b"#": b"%d" % task, b"%": worker.encode()}
        try:
            return re.sub(self.STRING, lambda found: texts[found[1]], self._template)
        except KeyError as missing:
            have = counted(len(fields), "field")
            raise LookupError(f"no {{{missing.args[0].decode()}}}: the line has {have}; see --delimiter") from None

    def __call__(self, payload: bytes) -> bytes | Failure:
        return self._run(self.fill(payload, tsk_id_in_hand(), os.environ.get(WORKER_VARIABLE, "0")))


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


class UsageError(Exception):
    """Bad usage or input: exit code 2."""


@contextlib.contextmanager
def usage_error(what: str = "", kinds: Any = (OSError, ValueError, TypeError, RuntimeError)) -> Iterator[None]:
    """Turn what Supervisor and open raise for bad arguments into a UsageError."""
    try:
        yield
    except kinds as error:
        text = str(error)
        if isinstance(error, OSError):
            text = limit_text(error)
            if error.filename and not what:
                text = f"{error.filename}: {text}"
        raise UsageError(what + in_options(text)) from None


def in_options(text: str) -> str:
    """Return what a Supervisor says, with options in place of its arguments."""
    import re

    names = "|".join({*LIMITS, *DEFAULTS})
    return re.sub(rf"\b({names})=(?=([^\s,;]?))", lambda found: flag(found[1]) + " " * bool(found[2]), text)


def import_all() -> None:
    """Import what is imported late, before a folder is searched in which a user's files may have the same names."""
    names = "csv difflib hashlib inspect json multiprocessing.util pathlib shlex tempfile traceback tty typing"
    for name in names.split():
        importlib.import_module(name)
    late("psutil")


def load_module(where: str) -> Any:
    """Import a module, or a file that ends with .py: by its name, as workers do that are not forked."""
    import_all()
    try:
        path = os.path.abspath(where)  # the module may change the working directory
        folder, name = os.path.split(path.removesuffix(".py"))
        sys.path.insert(0, folder)
        __import__(name)  # import_module would leave frames of its own in a traceback
        module = sys.modules[name]
    except (Exception, SystemExit) as error:
        place = last_frame(describe_traceback(error))
        raise UsageError(f"{where!r} cannot be imported: {describe(error)}{place}") from None
    if where.endswith(".py") and os.path.realpath(str(getattr(module, "__file__", ""))) != os.path.realpath(path):
        raise UsageError(f"{where!r}: another module has the name {name}; rename the file")
    return module


def public_functions(module: Any) -> list[Function]:
    """Return the public functions that a module defines itself, under their own names: others cannot be sent."""
    return [
        value
        for name, value in vars(module).items()
        if not isinstance(value, type)
        and not name.startswith("_")
        and (getattr(value, "__module__", None), getattr(value, "__qualname__", None)) == (module.__name__, name)
    ]


def choose_functions(options: argparse.Namespace, functions: Any) -> dict[int, Function]:
    if options.runs_commands:
        run = functools.partial(shell, timeout=options.timeout or math.inf, grace=options.grace)
        if options.command:
            return {1: Command(options.command, options.delimiter, run)}
        return {1: functools.update_wrapper(run, shell)}
    if options.call:
        where, _, name = options.call.rpartition(":")
        if not where:
            raise UsageError(f"--call {options.call}: give MODULE_OR_FILE.py:FUNCTION")
        module = load_module(where)
        function = getattr(module, name, None)
        if not callable(function):
            names = list(map(function_name, public_functions(module)))
            raise UsageError(f"--call {options.call}: {no_such_function(name, names)}")
        return {1: function}
    if options.handlers:
        functions = public_functions(load_module(options.handlers))
        if not functions:
            raise UsageError(f"--handlers {options.handlers}: it has no public functions")
    elif functions is None:
        functions = [echo, sleep, sha256, noop]
    return number_functions(functions)


def flag(name: str) -> str:
    return "--" + name.removeprefix("num_").replace("_", "-")


def size(text: str) -> int:
    """Return a number of bytes. K, M, G or T behind it stand for powers of 1024."""
    unit = "KMGT".find(text[-1:].upper()) + 1
    number = float(text[: -1 if unit else None]) * 1024**unit
    if math.isinf(number):
        raise ValueError
    return int(number)


def seconds(text: str) -> float | dict[str, float]:
    """Return what --timeout says: seconds, or seconds by the names of functions."""
    if "=" not in text:
        return float(text)
    return {name: float(value) for name, value in (part.split("=", 1) for part in text.split(","))}


# CONTRIBUTING.md says how to add an option. Tests compare these with Supervisor's arguments, LIMITS and docs/.
def make_parser(functions: Any = None) -> argparse.ArgumentParser:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(message)  # argparse would print the usage, too

        def _print_message(self, message: str, file: Any = None) -> None:
            say(message[:-1], file)

    names = "echo TEXT, sha256 PATH, sleep SECONDS, noop"
    if functions is not None:
        names = ", ".join(map(function_name, number_functions(functions).values()))
    parser = Parser(
        usage="%(prog)s TASKS [options]",
        description="Put many small tasks through several processes, and lose none.",
        epilog="exit code: 0 all ok; 1 some were not; 2 bad usage; 128+n stopped by signal n",
        allow_abbrev=False,
    )
    parser.add_argument("tasks", metavar="TASKS", nargs="?", help="a file with one task a line; - for standard input")
    parser.add_argument("--version", action="version", version=f"shmqueue {__version__}")
    group = parser.add_argument_group("tasks", f"without these options, a line is a function and its payload: {names}")
    add = group.add_mutually_exclusive_group().add_argument
    add("--handlers", metavar="MODULE_OR_FILE.py", help="the functions that lines may name")
    add("--call", metavar="MODULE_OR_FILE.py:FUNCTION", help="each line is a payload of this function")
    add("--shell", action="store_true", help="each line is a shell command; its output is the value")
    add("--command", metavar="TEMPLATE", help="a line fills this: {} {1} {.} {/} {//} {/.} {#} {%%}")
    add = group.add_argument
    add("--delimiter", metavar="TEXT", help="between the fields {1} {2} of a line (white space)")
    add("--query", metavar="SQL", help="of the SQLite file TASKS: line, or function, payload")
    add = parser.add_argument_group("how they run").add_argument
    count = functools.partial(add, metavar="N", type=int)
    count("-w", "--workers", help="worker processes (the processors); 0: none, to debug")
    add("--timeout", metavar="S", type=seconds, help="seconds a task may run; or NAME=S,NAME=S by function")
    add("--grace", metavar="S", type=float, help="seconds from SIGTERM to SIGKILL after --timeout")
    count("--retries", help="start a task that is not ok again, so often")
    add("--retry-delay", metavar="S", type=float, help="seconds before the second attempt; then doubled")
    add("--retry-on", metavar="STATUSES", type=lambda text: tuple(text.split(",")), help="failed,timeout,crashed (all)")
    add("--max-rss", metavar="SIZE", type=size, help="replace workers that hold more, as 500M; needs psutil")
    count("--max-tasks", help="replace a worker after so many tasks")
    count("--halt", help="stop after so many tasks were not ok")
    count("--slots", dest="num_slots", help="tasks the ring holds (%(default)s)")
    add("--slot-size", metavar="BYTES", type=int, help="bytes of a slot (%(default)s)")
    count("--batch", help="tasks a worker claims at once (default: by itself)")
    add("--start-method", metavar="M", choices=("fork", "spawn", "forkserver"), help="fork, spawn or forkserver")
    group = parser.add_argument_group("what is printed and kept")
    add = group.add_mutually_exclusive_group().add_argument
    add("--print", action="store_true", help="write values to stdout; the default for commands")
    add("--no-print", action="store_true", help="do not, so that the summary is there")
    add = group.add_argument
    switch = functools.partial(add, action="store_true")
    switch("-k", "--keep-order", help="print in the order of the input")
    switch("--tag", help="print each line after its task and a tab")
    add("--results", metavar="FILE", help=".jsonl, .csv, .sqlite; or - for JSON lines on stdout")
    switch("--resume", help="leave out the tasks that FILE already holds as ok")
    add("--failed", metavar="FILE", help="write the tasks that were not ok, as TASKS again")
    switch("--dry-run", help="write what would run, and start nothing")
    add("--summary", metavar="FILE", help="write the summary as JSON, too")
    add("--log", metavar="FILE", help="write what functions print, else it is dropped")
    add("--screen", choices=("auto", "on", "off"), help="auto: if the error stream is a terminal")
    add("--watch", metavar="NAME", nargs="?", const="", help="show the screen of a run in another terminal, and exit")
    switch("--clean", help="remove what dead runs left behind, and exit")
    parser.set_defaults(**{**DEFAULTS, "screen": "auto"})
    return parser


# What an option has no use without.
NEEDS = {"delimiter": "command", "grace": "timeout", "retry_delay": "retries", "retry_on": "retries", "tag": "print"}


def check_options(options: argparse.Namespace) -> None:
    """Raise UsageError for what argparse does not check, before anything is opened. Set what depends on other options.

    `runs_commands` tells that lines are commands. Their values are printed if nothing else goes to standard output.
    """
    given = vars(options)
    to_stdout = options.results == "-"
    options.runs_commands = bool(options.shell or options.command)
    if options.runs_commands and not (options.print or options.no_print or to_stdout):
        options.print = sys.stdout is not None
    options.fills_stdout = options.print or to_stdout
    rules = {
        "TASKS is missing (--help lists the options)": not options.tasks,
        "-: standard input is closed": options.tasks == "-" and sys.stdin is None,
        "standard output is closed": options.fills_stdout and sys.stdout is None,
        "--print: --results - writes to standard output, too": options.print and to_stdout,
        "--keep-order: needs --print": options.keep_order and not options.fills_stdout,
        "--resume: needs --results FILE": options.resume and options.results in (None, "-"),
        "--timeout NAME=S: needs functions with names (--handlers)": isinstance(options.timeout, dict)
        and options.runs_commands,
        "--failed: cannot be used with --query, since rows are not lines; use --results FILE --resume": options.failed
        and options.query,
    }
    for rule, is_broken in rules.items():
        if is_broken:
            raise UsageError(rule)
    with usage_error():
        check_limits(given)
    if options.query and options.start_method is None and __name__ == "__main__":  # workers can import it again
        options.start_method = "forkserver"  # a fork beside an open connection to SQLite can spoil the database
    for name, value in given.items():
        if value == "":
            raise UsageError(f"{flag(name)}: the value is empty")
        if value == "-" and name in ("failed", "log", "summary"):
            raise UsageError(f"{flag(name)} -: must be a file")
        if value not in (None, False, DEFAULTS.get(name)) and name in NEEDS and not given[NEEDS[name]]:
            raise UsageError(f"{flag(name)}: needs {flag(NEEDS[name])}")


HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)  # the last: with workers only


@contextlib.contextmanager
def handled_by(handler: Any, numbers: Sequence[int] = HEARD) -> Iterator[None]:
    """Handle signals by `handler` in this block. Not those that are ignored, as under nohup, nor in another thread."""
    before: dict[int, Any] = {}
    try:
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                with contextlib.suppress(ValueError):  # in another thread
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class CommandLine:
    """One run from the command line. A subclass may run it elsewhere, by `make_supervisor`."""

    supervisor: Any = None
    results: Results | None = None
    stopped_by = 0
    problem = ""  # that ended the run
    patient = True  # signals are heard, and a reader of the output that takes nothing is waited for

    def __init__(self, options: argparse.Namespace, functions: Any, queue: type[SharedTaskQueue]) -> None:
        self.options = options
        self.queue = queue
        self.functions = choose_functions(options, functions)
        names = list(map(function_name, self.functions.values()))
        whole = bool(options.call or options.runs_commands)
        self.parse = LineParser(names, comments=not (options.call or options.command), whole=whole)
        self.source: LineSource | QuerySource
        if options.query:
            self.source = QuerySource(options.tasks, options.query, self.parse)
        else:
            self.source = LineSource(options.tasks, self.parse)
        self.progress = self._choose_progress()
        self.signals: list[int] = []  # that came, and were not acted on
        self.sinks: list[Sink] = []  # that were opened
        if options.results:
            self.results = results_format(options.results)(options.results, options.resume, self._outlet(1))
            self.parse.done = self.results.done
        if not options.dry_run:
            self._check_files()

    def _check_files(self) -> None:
        """Check that files can be written, and that no two are the same. Only --failed may be TASKS. Devices may be."""
        files: dict[str, Any] = {"TASKS": 0 if self.options.tasks == "-" else self.options.tasks}
        for name in ("results", "log", "summary", "failed"):
            path = getattr(self.options, name)
            if path in (None, "-") or is_pipe(path):
                continue
            if name != "failed":
                with usage_error(f"{flag(name)} {path}: "), open(path, "ab"):
                    pass
            for other, file in files.items():
                if (name, other) != ("failed", "TASKS") and os.path.isfile(path) and os.path.samefile(path, file):
                    raise UsageError(f"{flag(name)} {path}: is the file of {other}, too; give another one")
            files[flag(name)] = path

    def _choose_progress(self) -> Progress:
        how = self.options.screen
        if self.options.workers == 0 and how == "auto":
            how = "off"  # the functions print, and a debugger may ask
        if how == "auto" and can_draw() and not (self.options.fills_stdout and os.isatty(1)):
            how = "on"
        title = "standard input" if self.options.tasks == "-" else os.path.basename(self.options.tasks)
        progress = (Screen if how == "on" else PlainLines)(title, self.source.total)
        if how == "off":
            progress.SECONDS = math.inf
        if how == "on" and os.isatty(0) and not os.isatty(self.source.fileno()):
            progress.keys = "p pause or go on   q finish what is begun and quit"
        return progress

    def _outlet(self, descriptor: int) -> Outlet:
        return Outlet(descriptor, self.listen, self.progress)

    def make_supervisor(self, functions: Mapping[int, Function], **arguments: Any) -> Any:
        return Supervisor(functions, **arguments)

    def run(self) -> int:
        if self.options.dry_run:
            with contextlib.suppress(OSError):  # the reader has left
                return self._show_tasks()
            return 1
        try:
            with handled_by(self.note_signal, HEARD[:-1] if self.options.workers == 0 else HEARD):
                self._supervise()
                self.patient = False
            for sink in self.sinks:
                sink.attempt(sink.end)
            return self.report()
        finally:
            for sink in self.sinks:
                sink.close()

    def _show_tasks(self) -> int:
        """Write the tasks that would run, a line each. Return the exit code."""
        out = Outlet(1, lambda: True, self.progress)
        command: Any = self.functions.get(1)
        numbers = itertools.count(1)
        code = 0
        while not self.source.exhausted:
            items = self.source.take(BLOCK)
            for item, number in zip(items, numbers):
                line = self.parse.input_line(*self.parse.task(item))[:-1]
                error = item[2] if isinstance(item, Rejected) else ""
                if isinstance(command, Command):
                    try:
                        line = command.fill(item, number)
                    except LookupError as missing:
                        error = f"#{number:,}: {missing}"
                if error:
                    code = 1
                    complain(error)
                out.write(line.replace(b"\n", b"\\n") + b"\n")  # a row may have line ends
            out.flush()
            if not items and self.source.fileno() >= 0:
                select.select([self.source], [], [])
        if self.source.problem:
            code = 1
            complain(self.source.problem)
        return code

    def _supervise(self) -> None:
        arguments = {name: getattr(self.options, name) for name in DEFAULTS}
        arguments |= {"screen": self.progress, "queue": self.queue}
        if self.options.failed is not None:
            self.sinks.append(FailedLines(self.options.failed, self.parse, self.source))
        if self.options.timeout and self.options.runs_commands:
            # If a worker cannot end its command. To hand over a gigabyte that one has written takes some seconds.
            arguments["timeout"] = min(1e9, self.options.timeout + self.options.grace + 20)
        with usage_error():
            self.supervisor = self.make_supervisor(self.functions, **arguments)
        try:
            with self.supervisor:
                self._put_through()
        except RuntimeError as error:
            self.problem = in_options(str(error))
        except BaseException as error:
            if not is_interruption(error):
                raise
            self.stopped_by = self.stopped_by or signal.SIGINT
            self.source.problem = "the run was interrupted before every task had an outcome"

    def _put_through(self) -> None:
        """Write each result to a file as it finishes, and to standard output maybe in the order of the input."""
        if self.results is not None:
            self.results.attempt(self.results.begin)  # not before, since it empties a file that was there
            self.sinks.append(self.results)
        if self.options.print:
            line = self.parse.input_line if self.options.tag else None
            self.sinks.append(Printer(self.options.runs_commands, line, self._outlet(1), self._outlet(2)))
        receivers: list[Any] = [functools.partial(sink.attempt, sink.write) for sink in self.sinks]
        if self.options.keep_order:
            receivers[-1] = in_order(receivers[-1], self.source)
        self.supervisor.on_check = self.on_check
        bad = 0
        try:
            for result in self.supervisor.run(self.source):
                for put in receivers:
                    put(result)
                if result.status not in ("ok", "cancelled"):
                    bad += 1
                    if bad == self.options.halt:
                        self.supervisor.cancel()
        finally:
            self._flush()

    def _flush(self) -> None:
        for sink in self.sinks:
            sink.attempt(sink.save)

    def note_signal(self, number: int, frame: object) -> None:
        if self.options.workers == 0:
            self.stopped_by = number
            raise KeyboardInterrupt  # in the function that runs
        self.signals.append(number)
        if self.supervisor is not None:  # else on_check comes to it at the start
            self.supervisor.wake()
        if self.signals.count(signal.SIGINT) > 2:  # something keeps on_check from being called
            raise KeyboardInterrupt

    def on_check(self) -> None:
        """Several times a second: bring results to their file, and do what signals and keys ask for."""
        self._flush()
        if self.results is not None and self.results.error and self.options.results != "-":
            self.supervisor.cancel()  # what cannot be kept need not be done
        self.listen()

    def listen(self) -> bool:
        """Do what signals and keys ask for. Return False if a reader that takes nothing is to be given up."""
        supervisor = self.supervisor
        if self.patient:
            for key in self.progress.read_keys():
                if key == "p" and not supervisor.cancelled:
                    supervisor.pause(not supervisor.paused)
                elif key == "q":
                    supervisor.cancel()
            while self.signals:
                self._act_on(self.signals.pop(0))
            self.progress.state = "paused" * supervisor.paused
            if supervisor.cancelled:
                self.progress.state = "ending: what is begun is finished"
        return self.patient

    def _act_on(self, number: int) -> None:
        """Do what a signal asks for: the first Ctrl-C ends the run gently, anything after it at once."""
        if number == signal.SIGTSTP:  # give the terminal back, and stop
            self.progress.close()
            with handled_by(signal.SIG_DFL, [signal.SIGTSTP]):
                self.supervisor.suspend()
            return
        if number == signal.SIGINT and not self.stopped_by:
            self.supervisor.cancel()
            if isinstance(self.progress, PlainLines) and os.isatty(2):
                complain("what is begun is finished; Ctrl-C again stops it")
        else:
            self.patient = False
            self.supervisor.abort()
        self.stopped_by = self.stopped_by or number
        self.progress.ended = f"stopped by {signal.Signals(self.stopped_by).name}"

    def report(self) -> int:
        """Say how it went, on standard error if standard output has values or results. Return the exit code."""
        problems = [self.problem or self.source.problem, *(sink.complaint() for sink in self.sinks)]
        summary = self.supervisor.summary()
        summary |= {"problem": "; ".join(filter(None, problems)), "left_out": self.parse.left_out}
        if self.options.print and self.options.runs_commands:
            summary["printed"] = False  # nothing was lost
        good = not summary["problem"] and not any(sink.error for sink in self.sinks)
        path = self.options.summary
        if path is not None:
            import json

            try:
                with open(path, "w", encoding="utf-8") as file:
                    json.dump(summary, file, indent=1)
            except OSError as error:
                complain(f"--summary {path}: {error.strerror}")
                good = False
        lines = summary_lines(summary, None if self.options.query else self.parse.line_of)
        stream = sys.stderr if self.options.fills_stdout else sys.stdout
        said = say("\n".join(map(printable, lines)), stream)
        if self.stopped_by:
            return 128 + self.stopped_by
        return int(not (said and good) or summary["ok"] < finished(summary))


def last_frame(trace: str | None) -> str:
    """Return where in the user's code an error was raised, such as " (words.py:8 in shout)", if a traceback says it."""
    import re

    frames = re.findall(r'^[ |]*File "(.*)", line (\d+), in (.*)$', trace or "", re.MULTILINE)
    own = [frame for frame in frames if not frame[0].startswith((os.path.dirname(os.__file__), "<frozen "))]
    return "".join(f" ({os.path.basename(path)}:{number} in {name})" for path, number, name in (own or frames)[-1:])


def summary_lines(summary: Mapping[str, Any], line_of: Callable[[int], int] | None = None) -> list[str]:
    """Return what went wrong, and last the totals. line_of: returns the line of a task, if tasks are lines."""
    lines = []
    for r in summary["failures"]:
        where = f"line {line_of(r['tsk_id']):,}: " if line_of else ""
        what = f"{r['function'][:200]} {r['payload']} {r['status']}"
        error = r["error"].removeprefix(where)  # that of a name that no function has begins so
        lines.append(f"#{r['tsk_id']:,} {where}{what}: {error}{last_frame(r['traceback'])}")
    kinds = collections.Counter(summary["kinds"])
    elapsed = summary["seconds"]
    if sum(kinds.values()) > len(lines):
        lines.append("in all: " + "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5)))
    if elapsed >= 1:
        lines.append(f"workers: busy {summary['busy']:.0%} of the time")
    if summary["left_out"]:
        lines.append(f"{counted(summary['left_out'], 'task')} left out: the results file holds them as ok")
    if summary.get("printed"):
        lines.append("functions printed; --log FILE keeps it")
    if summary["problem"]:
        lines.append(f"shmqueue: {summary['problem']}")
    total = finished(summary)
    tasks = "no tasks"
    if total:
        outcomes = ", ".join(f"{summary[name]:,} {word}" for name, word in STATUSES.items())
        tasks = f"{counted(total, 'task')}: {outcomes}"
    rate = (total - summary["cancelled"]) / elapsed
    return [*lines, f"{tasks}; {elapsed:.2f} s, {rate:,.0f} tasks/s, {counted(len(summary['workers']), 'worker')}"]


def main(
    functions: Any = None, argv: Sequence[str] | None = None, *, queue: type[SharedTaskQueue] = SharedTaskQueue
) -> int:
    """Run the command line over `functions`, or over the built-in ones. Return the exit code.

    argv: without the program's name; None for sys.argv. queue: the strategy.
    """
    parser = make_parser(functions)

    def run() -> int:
        options = parser.parse_args(argv)
        if options.clean:
            removed = "\n".join(f"removed {name}" for name in sweep())
            return int(not say(removed or "nothing to remove", sys.stdout))
        if options.watch is not None:
            watch_run(choose_run(options.watch))
            return 0
        check_options(options)
        return CommandLine(options, functions, queue).run()

    return exit_code(parser, run)


def exit_code(parser: argparse.ArgumentParser, run: Callable[[], int]) -> int:
    """Return what `run` returns, or 2 after a line about a UsageError."""
    # Open closed standard streams. Otherwise the next file opened would take the number of one and its output.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # a value may be a large number, and is written as such
    try:
        return run()
    except UsageError as error:
        complain(f"error: {error}", parser.prog)
        return 2
    except KeyboardInterrupt:  # before the run had begun
        return 128 + signal.SIGINT


def complain(problem: object, who: str = "shmqueue") -> None:
    say(printable(f"{who}: {problem}"), sys.stderr)


def say(text: str, stream: Any) -> bool:
    """Print text as a line on a stream. What its encoding does not have is escaped. Return False if that failed."""
    if stream is None:  # it was closed from the start; `print` would take this for standard output
        return True
    try:
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (OSError, ValueError):  # closed: point it elsewhere, or Python complains at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


if __name__ == "__main__":
    sys.modules.setdefault("shmqueue", sys.modules["__main__"])  # for functions that import it
    raise SystemExit(main())
