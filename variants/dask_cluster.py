# SPDX-License-Identifier: MIT
"""dask_cluster: more than one machine; the same command line, its tasks dealt to the nodes of a Dask cluster.

    python -m variants.dask_cluster tasks.txt --handlers jobs.py --scheduler tcp://HOST:8786 --results out.jsonl

Idea
    Two levels: the network sees chunks, the ring sees tasks. This process reads the input and deals chunks of about a
    second's work, two for a node; Dask carries them. On each node (a Dask worker) one process, kept for the whole run,
    puts the tasks of all its chunks through one Supervisor. That has as many workers as the Dask worker has threads,
    or --workers. A slow chunk gives back what it has not begun. Tasks to be tried again come back with their chunk and
    go out with a later one, to any node. Client.upload_file sends shmqueue.py, this file, and the files of --handlers,
    --call and --upload. Nodes must have the other modules, and paths mean their own files. Without --scheduler:
    a LocalCluster on this machine.

Extra state
    Here: the chunks on the cluster with their tasks, until their outcomes are back; these bound the memory. Also the
    attempts of tasks that go round again, since no single node could count them. On a node: its chunks, the outcomes
    of unfinished ones, and a journal for each chunk (see Journal) in the Dask worker's own folder, which Dask removes.
    Dask keeps uploaded files for nodes that come later.

    Why a journal: only the worker knows when a task begins. The Supervisor knows what is in its ring, most of which
    has not begun, and learns of outcomes later than they happen. So a worker gets each payload with a mark before it
    that names the task. It notes the begin (one store to mapped memory) and the outcome (the same for None, else a
    write of a microsecond or two). The journal outlives worker and supervisor, and needs nothing of the segment.

Lock order
    None. Here one thread reads, sends and settles. On a node, Dask's event loop and the process talk through two
    pipes. A worker holds a shared lock on the journal that it writes. Node locks it alone, once the process is dead.

If the holder dies
    A node: Dask gives its chunks to another. Every task still gets exactly one outcome, since this process takes one
    reply for each chunk. But tasks of those chunks may have been done or be under way (a node that is cut off works on
    until it notices). They are started AGAIN, also with --retries 0, which holds within a node only, and `attempts`
    does not count that. No network can promise more: tasks that must not run twice need a mark of their own, or one
    machine. A chunk whose nodes died four times (distributed.scheduler.allowed-failures) is `crashed`.
    The process on a node: Node waits until its workers have ended, or kills them, and reads the journals. Tasks that
    ended keep their outcome. Those in hand are charged an attempt: they are tried again, or are `crashed`. The others
    have not begun, and go to any node. The next chunk has a new process, which also removes the old segment. After
    three deaths in a row without a finished task (or if workers cannot start) the node is left out. The run ends if no
    other is left.
    The scheduler: the run ends. What is on the cluster is `crashed`, since it may have run; the rest is `cancelled`.
    Written results are kept: start a scheduler, and run again with --resume. Nodes stop what they do.
    This process, by Ctrl-C: once, nodes finish what is in hand; twice, they stop. By SIGKILL: Dask tells the nodes,
    which stop. Whatever ends the Dask worker, the process on its node sees the end of its pipe, and leaves nothing.

When to use it
    When one machine is not enough, and tasks bear to be started again. A chunk comes back with its longest task. Who
    reaches the scheduler's port can run code on every node (Dask unpickles): use its TLS, or a network of your own.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import glob
import hashlib
import importlib
import logging
import math
import mmap
import os
import pickle
import secrets
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import shmqueue

CHUNK_SECONDS = 1.0  # of work in a chunk: long against the network's 10 ms, short against what a lost node costs
GROWTH = 8  # times the size of the chunks before, at most
CHUNK_BYTES = 4 << 20  # of payloads in a chunk, unless it is one task
LIMIT_SECONDS = 4.0  # after which a chunk gives back what it has not begun, and no longer counts as on its way
AHEAD_SECONDS = 0.1  # of work that is in a node's ring, and cannot be given back
IDLE_SECONDS = 30.0  # a node without chunks for so long ends its process until the next one
STOP_SECONDS = 10.0  # how long nodes may take to be reached, and to stop
CENSUS_SECONDS = 1.0  # how often the nodes are counted
MOST_UNANSWERED = 60  # censuses in a row, after which the run ends
BEGUN, RETURNED_NONE = 1, 2  # the state of a task in the file of its chunk, 0 before
DEATHS = 3  # of a node's process, in a row, without a task finished: the node gets no more chunks


# ---------------------------------------------------------------------------------------------------------------------
# On a node, in the Dask worker. This part is sent by value: nothing is imported there, and no two versions meet.
# ---------------------------------------------------------------------------------------------------------------------


async def run_chunk(name: str, key: str, spec: bytes, count: int, data: bytes) -> bytes:
    """What Dask calls on a node: pass a chunk of `count` tasks to the run's process there, and its reply back."""
    import distributed

    class Plugin(Node, distributed.WorkerPlugin):  # type: ignore[misc]
        """A Node that Dask tells what becomes of its chunks and of the Dask worker."""

    worker = distributed.get_worker()
    if name not in worker.plugins:
        await worker.plugin_add(plugin=Plugin(name, spec, worker), name=name)
    node: Node = worker.plugins[name]
    return await node.work(key, count, data)


async def tell(name: str, order: str, dask_worker: Any) -> None:
    """What Dask calls on every node: `cancel` begins no more tasks, `forget` ends the run's process."""
    if name in dask_worker.plugins:
        if order == "cancel":
            await dask_worker.plugins[name].cancel()
        else:
            await dask_worker.plugin_remove(name=name)


def pack(message: Any) -> bytes:
    """A pickle with its length before it, as multiprocessing.connection reads it."""
    data = pickle.dumps(message)
    return len(data).to_bytes(4, "big") + data


@dataclasses.dataclass(eq=False)
class Waiting:
    """A chunk whose reply is awaited: how many tasks it has, and the file of its journal."""

    count: int
    journal: str
    reply: asyncio.Future[bytes]


class Node:
    """A node's part of one run. It starts the process that works (see `serve`), and outlives it.

    When that process dies, it finds out from the journals what became of the chunks. The next chunk has a new process.
    """

    def __init__(self, name: str, spec: bytes, worker: Any) -> None:
        self._name, self._spec, self._worker = name, spec, worker
        self._workers = pickle.loads(spec)["options"]["workers"] or worker.state.nthreads  # noqa: S301
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._leave_idle)
        self._waiting: dict[str, Waiting] = {}  # by Dask's key of the chunk
        self._process: asyncio.Future[Any] | None = None
        self._deaths = 0  # of processes, in a row, that finished no task
        self._problem = ""  # how the last of them ended
        self._leaving: asyncio.Future[Any] | None = None

    async def work(self, key: str, count: int, data: bytes) -> bytes:
        if self._deaths >= DEATHS:
            await asyncio.sleep(CENSUS_SECONDS)  # or chunks would come and go without end
            return self._reply()
        loop = asyncio.get_running_loop()
        chunk = Waiting(count, os.path.join(self._worker.local_directory, key), loop.create_future())
        with open(chunk.journal, "wb") as file:
            file.write(bytes(count))
        self._waiting[key] = chunk
        try:
            if self._process is None:
                self._process = asyncio.ensure_future(self._start())
            (await self._process).stdin.write(pack((key, data)))
            return await chunk.reply
        finally:
            self._waiting.pop(key, None)
            remove_journal(chunk.journal)
            self._idle.cancel()
            self._idle = loop.call_later(IDLE_SECONDS, self._leave_idle)

    async def cancel(self) -> None:
        if self._process is not None:
            (await self._process).stdin.write(pack(("", b"")))

    async def teardown(self, worker: Any) -> None:
        """This run is over here, or this Dask worker is: the process sees the end of its input, and leaves."""
        if self._process is None:
            return
        process = await self._process
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except asyncio.TimeoutError:
            process.kill()

    def transition(self, key: str, start: str, finish: str, **more: Any) -> None:
        if finish == "released" and key in self._waiting:  # nobody wants it any more: the client has stopped, or died
            self._leave()

    def _leave_idle(self) -> None:
        if not self._waiting:
            self._leave()

    def _leave(self) -> None:
        if self._leaving is None and self._worker.plugins.get(self._name) is self:
            self._leaving = asyncio.ensure_future(self._worker.plugin_remove(name=self._name))

    async def _start(self) -> Any:
        folder = self._worker.local_directory  # there is what was uploaded
        code = f"import sys; sys.path[:] = {[folder, *sys.path]!r}; import dask_cluster; dask_cluster.serve()"
        command, pipe = (sys.executable, "-B", "-c", code), asyncio.subprocess.PIPE
        process: Any = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        process.stdin.write(pack((self._spec, os.path.join(folder, self._name), self._workers)))
        self._listening = asyncio.ensure_future(self._listen(process))
        return process

    async def _listen(self, process: Any) -> None:
        """Hand out the process's replies until it ends; then see to the chunks that it had."""
        problem = ""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                size = int.from_bytes(await process.stdout.readexactly(4), "big")
                key, done, *reply = pickle.loads(await process.stdout.readexactly(size))  # noqa: S301
                if key:
                    if done:
                        self._deaths = 0
                    chunk = self._waiting.get(key)
                    if chunk is not None and not chunk.reply.done():  # else the client has stopped meanwhile
                        chunk.reply.set_result(self._reply(*reply))
                else:
                    (problem,) = reply
        lost, self._waiting, self._process = self._waiting, {}, None
        self._problem = problem or f"its process ended with code {await process.wait()}"
        self._deaths += 1
        waiting = [chunk for chunk in lost.values() if not chunk.reply.done()]
        left = await asyncio.gather(*map(self._salvage, waiting), return_exceptions=True)
        for chunk, outcomes in zip(waiting, left):
            if chunk.reply.done():  # the client has stopped meanwhile
                continue
            if isinstance(outcomes, BaseException):  # the journal is gone, or cannot be read
                chunk.reply.set_exception(outcomes)
            else:
                chunk.reply.set_result(self._reply(pickle.dumps(outcomes)))

    def _reply(self, outcomes: bytes = b"", seconds: float = 0.0, respawned: int = 0) -> bytes:
        """What the client reads: which node, its workers, the outcomes, and why it takes no more, if it does not."""
        node = (self._worker.address, os.getpid(), self._workers, respawned)
        return pickle.dumps((node, outcomes, seconds, self._problem if self._deaths >= DEATHS else ""))

    async def _salvage(self, chunk: Waiting) -> list[tuple[Any, ...]]:
        """The outcomes of a chunk whose process died. Tasks without one have not begun, and will not."""
        with open(chunk.journal, "r+b") as file:
            ended = await self._fence(file)
            states = file.read()
            paths = glob.glob(glob.escape(chunk.journal) + ".*")
            records = [outcome for path in paths for outcome in read_records(path)]
            remove_journal(chunk.journal)  # before the lock goes: who opened it meanwhile sees that (see Journal)
        outcomes = {outcome[0]: outcome for outcome in records}
        for at in range(chunk.count):
            if states[at] == RETURNED_NONE:
                outcomes.setdefault(at, (at, "ok", None, None, 1, None, 0.0))
        if outcomes:
            self._deaths = 0
        text = f"supervisor lost: {self._worker.address}: {self._problem} while the task ran"
        begun = [at for at in range(chunk.count) if (states[at] or not ended) and at not in outcomes]
        return [*outcomes.values(), *((at, "crashed", None, text, 1, None, 0.0) for at in begun)]

    async def _fence(self, file: Any) -> bool:
        """Lock a journal, so that no worker begins a task of it. Return False if a worker still holds it.

        Workers end by themselves when their supervisor does. One that cannot, since a function keeps the interpreter,
        is killed with its group.
        """
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, PermissionError):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if time.monotonic() > deadline - STOP_SECONDS / 2:
                flock = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
                kind, *_, holder = struct.unpack("hhqqi4x", flock)
                if kind != fcntl.F_UNLCK and holder > 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(holder, signal.SIGKILL)
            await asyncio.sleep(0.01)
        return False


def read_records(path: str) -> Iterator[tuple[Any, ...]]:
    """The outcomes in a file of `pack`ed ones, up to one that is torn because there was no room for it."""
    with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError), open(path, "rb") as file:
        while size := int.from_bytes(file.read(4), "big"):
            yield pickle.loads(file.read(size))  # noqa: S301


def remove_journal(path: str) -> None:
    for name in [path, *glob.glob(glob.escape(path) + ".*")]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


# ---------------------------------------------------------------------------------------------------------------------
# On a node, in the process that Node starts.
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Load:
    """A chunk on a node. first: the tsk_id of its first task there; taken: how many are in the ring or done."""

    key: str
    items: Sequence[Any]
    came: float
    began: float = 0.0
    first: int = 0
    taken: int = 0
    whole: bool = False  # no more of it is taken
    outcomes: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)

    @property
    def number(self) -> int:
        return int(self.key.rpartition("-")[2])

    def mark(self, at: int) -> Any:
        """A task as it goes to the Supervisor: its payload with a MARK before it."""
        item, mark = self.items[at], MARK.pack(self.number, at)
        if isinstance(item, shmqueue.Rejected):
            return item
        return mark + item if isinstance(item, bytes) else (item[0], mark + item[1])


class Journal:
    """A worker's notes on the chunk it works on, from which Node learns what a dead process left.

    The chunk's file has a byte for each task, mapped into the worker: 0, BEGUN, or RETURNED_NONE. Other outcomes are
    records of `pack` in a file of the worker's own beside it. While a worker lives and has the chunk's file open, it
    holds a shared lock on it. A lock of this kind ends with its process, and a child does not inherit it. Node locks
    the file for itself before it reads: no worker can begin a task of it afterwards, as it gets no lock, or one on a
    file that has no name any more.
    """

    def __init__(self, base: str) -> None:
        self._base, self._files = base, list[int]()
        self._libc: Any = None
        self.number = 0
        self.states: Any = None

    def open(self, number: int) -> None:
        """Turn to another chunk. Raises OSError where none of its tasks may begin."""
        if self._libc is None:
            os.register_at_fork(after_in_child=self._disown)
            self._libc = libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype, number_types = ctypes.c_void_p, [ctypes.c_int] * 3
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *number_types, ctypes.c_long]
        self.number, path = 0, f"{self._base}-{number}"
        while self._files:
            os.close(self._files.pop())
        chunk = self._descriptor(path, os.O_RDWR)
        fcntl.lockf(chunk, fcntl.LOCK_SH | fcntl.LOCK_NB)
        info = os.fstat(chunk)
        if not info.st_nlink:
            raise FileNotFoundError(f"{path}: this chunk was taken back")
        # Appended to: a worker comes back to a chunk whose tasks a halt took back.
        self._descriptor(f"{path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._map(chunk, info.st_size)
        self.number = number

    def end(self, *outcome: Any) -> None:
        """Note the outcome of a task. If there is no room, the task counts as in hand when the process dies."""
        data = pack(outcome)
        with contextlib.suppress(OSError):
            if os.write(self._files[1], data) < len(data):
                os.close(self._files.pop())
                self._descriptor(os.devnull, os.O_WRONLY)  # nothing can be read after what is torn

    def note(self, number: int, outcome: tuple[Any, ...]) -> None:
        """As `end`, by the supervisor, of a task whose worker has died."""
        with contextlib.suppress(OSError), open(f"{self._base}-{number}.{os.getpid()}", "ab", buffering=0) as file:
            file.write(pack(outcome))

    def _map(self, file: int, size: int) -> None:
        """Map a file without the duplicate that Python's mmap keeps: closing that would give up the lock."""
        libc, old = self._libc, self.states
        if old is not None:
            libc.munmap(ctypes.c_void_p(ctypes.addressof(old)), ctypes.c_size_t(len(old)))
        self.states = None
        address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"a file of {size:,} bytes cannot be mapped")
        self.states = (ctypes.c_ubyte * size).from_address(address)

    def _descriptor(self, path: str, flags: int) -> int:
        """Open a file under a high number, where a function that closes descriptors does not find it."""
        low = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            self._files.append(fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, min(512, os.sysconf("SC_OPEN_MAX") // 2)))
        finally:
            os.close(low)
        return self._files[-1]

    def _disown(self) -> None:
        """In a child that a function forked: it must not write as if it was the worker."""
        self.states, self._files = None, []


shmqueue.OWN_MODULES.add(__name__)
MARK = struct.Struct("=II")  # before each payload on a node: the number of its chunk, and which task there it is


class Noted:
    """A function, as a node's workers call it: with a payload that has a MARK, and with notes in the journal."""

    def __init__(self, function: Any, journal: Journal, structures: Sequence[type[ctypes.Structure]]) -> None:
        self.__name__ = shmqueue.function_name(function)
        self._function, self._journal, self._structures = function, journal, structures

    @functools.cached_property
    def _call(self) -> Any:  # made in the worker, as it cannot be pickled
        return shmqueue.adapt(self._function, None)[shmqueue.BYTES]

    def __call__(self, payload: bytes) -> Any:
        number, at = MARK.unpack_from(payload)
        journal = self._journal
        if number != journal.number:
            journal.open(number)
        journal.states[at] = BEGUN
        began = time.perf_counter()
        try:
            value = self._call(payload[MARK.size :])
        except BaseException as error:
            failure = shmqueue.Failure.of(error)
            journal.end(at, "failed", None, failure.error, 1, None, time.perf_counter() - began, failure.traceback)
            raise
        if value is None:
            journal.states[at] = RETURNED_NONE
            return None
        if type(value) in self._structures:
            value = bytes(value)
        with contextlib.suppress(TypeError, ValueError):  # it fails, and the supervisor says why
            sent = shmqueue.decode(*shmqueue.encode(value, None, ()), None)
            status, text = "ok", None
            if isinstance(sent, shmqueue.Failure):  # of a command, which has a value all the same
                status, text = "failed", sent.error
                sent = sent.value
            if isinstance(sent, shmqueue.Output):  # where journals are read, nothing of shmqueue is imported
                sent = bytes(sent)
            journal.end(at, status, sent, text, 1, None, time.perf_counter() - began)
        return value


class Feed(shmqueue.Source):
    """The chunks that come on standard input, as the source of one Supervisor's run. Raises EOFError at its end."""

    def __init__(self) -> None:
        self._input = Connection(os.dup(0), writable=False)
        self._output = Connection(os.dup(1), readable=False)
        os.dup2(2, 1)  # what a module prints when it is imported
        os.register_at_fork(after_in_child=self._close_pipes)
        spec, base, self._workers = self._input.recv()
        self.spec, self.journal = pickle.loads(spec), Journal(base)  # noqa: S301
        self.spec["options"]["workers"] = self._workers
        self.supervisor: Any = None
        self._cancelled = False
        self._loads: list[Load] = []
        self._last = Load("", (), 0.0)  # of the last outcome
        self._next = 1  # tsk_id
        self._ahead = 2 * self._workers  # tasks that may be in the ring
        self._ring = self._finished = self._respawned = 0
        self._ended = self._looked = time.monotonic()

    def _close_pipes(self) -> None:
        """In a worker: with a copy of the pipes it would keep Node from seeing that this process has died."""
        self._input.close()
        self._output.close()

    def receive(self) -> None:
        """Read a message: a chunk, or the order to begin no more tasks."""
        key, data = self._input.recv()
        if key:
            self._loads.append(Load(key, pickle.loads(data), time.monotonic()))  # noqa: S301
        self._cancelled = self._cancelled or not key

    def take(self, room: int) -> Sequence[Any]:
        self.look()
        load = next((load for load in self._loads if not load.whole), None)
        room = min(room, shmqueue.BLOCK, self._ahead - self._ring)
        if load is None or room <= 0 or self.supervisor.cancelled:  # by what has just come
            return ()
        if not load.taken:
            load.first, load.began = self._next, time.monotonic()
        items = [load.mark(at) for at in range(load.taken, min(load.taken + room, len(load.items)))]
        load.taken += len(items)
        self._next += len(items)
        self._ring += len(items)
        self._close(load, load.taken == len(load.items))
        return items

    def look(self) -> None:
        """Several times a second: see what has come, and which chunk is slow."""
        while self._input.poll():
            self.receive()
        if self._cancelled and not self.supervisor.cancelled:
            self.supervisor.cancel()
        now = time.monotonic()
        if now - self._looked > AHEAD_SECONDS:
            self._looked, self._ahead, self._finished = now, max(2 * self._workers, self._finished), 0
        for load in list(self._loads):
            self._close(load, now - load.came > LIMIT_SECONDS)

    def settle(self, result: shmqueue.TaskResult) -> None:
        tsk_id, _, _, status, value, *more = result
        if not self._last.first <= tsk_id < self._last.first + self._last.taken:
            self._last = next(load for load in self._loads if load.first <= tsk_id < load.first + load.taken)
        outcome = (tsk_id - self._last.first, status, value, *more)
        self._last.outcomes.append(outcome)
        if status in ("timeout", "crashed"):
            self.journal.note(self._last.number, outcome)
        self._ring -= 1
        self._finished += 1
        self._close(self._last, False)

    def _close(self, load: Load, whole: bool) -> None:
        """If nothing more of this chunk is taken, and all that was is done, it goes back."""
        load.whole = load.whole or whole
        if load.whole and len(load.outcomes) == load.taken:
            self._send_back(load)

    def _send_back(self, load: Load) -> None:
        """Reply to a chunk: its outcomes, how long it took, and how many workers were replaced since the last one."""
        now, respawned = time.monotonic(), self.supervisor.stats()["respawned"]
        seconds, outcomes = now - max(load.began, self._ended), pickle.dumps(load.outcomes)
        self._output.send((load.key, len(load.outcomes), outcomes, seconds, respawned - self._respawned))
        self._loads.remove(load)
        self._ended, self._respawned = now, respawned

    def run(self) -> None:
        """Put the chunks through, until standard input ends."""
        for name, digest in self.spec["files"].items():
            if digest_of(os.path.join(sys.path[0], name)) != digest:
                raise RuntimeError(f"{name} here is that of another run: wait for its end, or rename the file")
        places = self.spec["functions"].items()
        functions = {fn_id: getattr(importlib.import_module(module), name) for fn_id, (module, name) in places}
        structures = shmqueue.structures_of(functions.values())
        noted = {fn_id: Noted(function, self.journal, structures) for fn_id, function in functions.items()}
        with shmqueue.Supervisor(noted, **self.spec["options"]) as self.supervisor:
            self.supervisor.on_check = self.look
            for result in self.supervisor.run(self):
                self.settle(result)

    def report(self, problem: str) -> None:
        """Tell Node why this process ends."""
        self._output.send(("", 0, problem))


def serve() -> None:
    """What a node's process does, until its standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the Dask worker, which closes the pipe
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):
        feed = Feed()
        try:
            feed.run()
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # whatever it is, the client is told
            feed.report(shmqueue.describe(error))


# ---------------------------------------------------------------------------------------------------------------------
# On the machine that reads the tasks.
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Chunk:
    """Tasks on their way, each a tsk_id and an item; when they were sent, and Dask's future of them."""

    tasks: Sequence[tuple[int, Any]]
    sent: float = 0.0
    future: Any = None


class Tally(shmqueue.Tally):
    """The counts of a run; its workers are those of all nodes, in the order in which nodes reply first."""

    def __init__(self, functions: Mapping[int, shmqueue.Function]) -> None:
        super().__init__(0)
        self.workers: list[tuple[str, int]] = []  # of each: the node, and the pid of its Dask worker
        self.respawned = 0
        self._first_name = shmqueue.function_name(functions[min(functions)])

    def task(self, item: Any) -> tuple[str, Any]:
        """The function's name and the payload of an item."""
        return (self._first_name, item) if isinstance(item, bytes) else (item[0], item[1])

    def first_worker(self, node: str, pid: int, workers: int, respawned: int) -> int:
        """The number of a node's first worker; its workers are made room for."""
        self.respawned += respawned
        if (node, pid) not in self.workers:
            self.workers += [(node, pid)] * workers
            for column in (self.completed, self.failed, self.busy):
                column.extend([0] * workers)
        return self.workers.index((node, pid))

    def note(self, result: shmqueue.TaskResult) -> shmqueue.TaskResult:
        """Count an outcome, and give it back."""
        self.retried += max(0, result.attempts - 1)
        if result.status != "ok":
            self.add_bad(result)
            return result
        if result.worker is None:  # from a journal, which does not say
            self.counts["ok"] += 1
        else:
            self.add_ok(result.worker, 1, result.seconds)
        return result


class Cluster:
    """What CommandLine needs of a Supervisor, over a cluster; its public names are those of Supervisor."""

    def __init__(
        self, functions: Any, client: Any, spec: bytes, where: str, wait: float, retries: int, screen: Any
    ) -> None:
        self._client = client
        self._spec = spec
        self._where = where
        self._wait_seconds = wait
        self._progress = screen
        self._tally = Tally(functions)
        self._retries = retries
        self.name = f"shmqueue-{secrets.token_hex(4)}"
        self.paused = False
        self.cancelled = False
        self.on_check: Any = lambda: None
        self._began, self._next_check, self._next_census = time.monotonic(), 0.0, 0.0
        self._nodes: dict[str, int] = client.nthreads()  # those that are there, and their threads
        self._nodes_at = self._empty_at = self._began  # when the last census saw one, or none
        self._unanswered = 0  # censuses since then
        self._failure, self._stopped = "", False
        self._flying: dict[Chunk, None] = {}
        self._back: collections.deque[tuple[int, Any]] = collections.deque()  # tasks to be sent again
        self._spent: dict[int, int] = {}  # tsk_id: how often it was started, for those that go round again
        self.refused: dict[str, str] = {}  # nodes that get no more chunks, and why
        self._arrived: collections.deque[tuple[Chunk, bytes, BaseException | None]] = collections.deque()
        self._size = 64
        self._pace = (0.0, 0.0)  # tasks, seconds
        self._next_id = 1
        self._sent = 0
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._bell, False)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        """Have the nodes forget this run, and leave."""
        client = self._client
        with contextlib.suppress(Exception):  # the scheduler is gone
            if client.status == "running":
                client.sync(client.run, tell, self.name, "forget", on_error="ignore", callback_timeout=STOP_SECONDS)
        with contextlib.suppress(Exception):
            client.close(timeout=STOP_SECONDS)
        self._progress.close()

    def run(self, source: Any) -> Iterator[shmqueue.TaskResult]:
        """The TaskResults of `source` as chunks come back; never raises for a task."""
        while not self._stopped:
            self._send(source)
            if not self._flying and (self.cancelled or (source.exhausted and not self._back)):
                break
            self._wait(source)
            while self._arrived:
                yield from self._settle(*self._arrived.popleft())
            self._look()
        text = f"{self._failure or 'stopped while it was on the cluster'}: it may have run"
        for chunk in self._flying:
            yield from self._end(chunk.tasks, "crashed" if self._failure else "cancelled", text)
        self._flying.clear()
        yield from self._end(self._back, "cancelled", shmqueue.CANCELLED)
        while source.finite and not source.exhausted:
            yield from self._end(self._number(source.take(shmqueue.BLOCK)), "cancelled", shmqueue.CANCELLED)
        if self._failure:
            raise shmqueue.WorkersFailedError(self._failure)

    def cancel(self) -> None:
        """Send no more, and have the nodes finish what is in hand."""
        self.cancelled, self._next_census = True, 0.0

    def abort(self) -> None:
        """Have the nodes stop now, by taking the chunks from Dask."""
        self.cancelled = self._stopped = True
        self._client.loop.add_callback(self._client.cancel, [chunk.future for chunk in self._flying])

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def wake(self) -> None:
        """Have on_check called soon; for signal handlers and Dask's thread."""
        self._next_check = 0.0
        with contextlib.suppress(BlockingIOError):  # full: it will wake
            os.write(self._bell, b"!")

    def suspend(self) -> None:
        """Stop this process, as Ctrl-Z does; the nodes finish the chunks they have."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def stats(self) -> dict[str, Any]:
        """As Supervisor.stats(); pid is that of the node's Dask worker."""
        tally = self._tally
        columns = zip(tally.workers, tally.completed, tally.failed)
        workers = [{"node": node, "pid": pid, "completed": done, "failed": bad} for (node, pid), done, bad in columns]
        outstanding = self._in_flight() + len(self._back)
        more = {"retried": tally.retried, "respawned": tally.respawned, "outstanding": outstanding, "held_up": ""}
        return {**tally.counts, **more, "seconds": time.monotonic() - self._began, "workers": workers}

    def summary(self) -> dict[str, Any]:
        """As Supervisor.summary(); the time that nodes took to start counts as waiting."""
        stats = self.stats()
        return {**stats, **self._tally.summary(stats["seconds"], 0.0)}

    def snapshot(self) -> dict[str, Any]:
        """What the screen shows: in place of the ring, the tasks that are on the cluster."""
        flying = self._in_flight()
        most = max(1, flying, 2 * len(self._nodes) * self._size)
        about = {"name": self._where, "strategy": "dask", "ring": flying, "num_slots": most}
        shot: dict[str, Any] = self._progress.complete(self.stats() | about, self._tally.latest)
        for row in shot["workers"]:
            row["state"] = "run" if row["node"] in self._nodes else "dead"
        return shot

    # Out.

    def _send(self, source: Any) -> None:
        while self._has_room():
            tasks = self._read(source)
            if not tasks:
                return
            self._sent += 1
            chunk, key = Chunk(tasks, time.monotonic()), f"{self.name}-{self._sent}"
            self._flying[chunk] = None
            arguments = (self.name, key, self._spec, len(tasks), pickle.dumps([item for _, item in tasks]))
            where = {"workers": list(self._nodes), "allow_other_workers": True} if self.refused else {}
            chunk.future = self._client.submit(run_chunk, *arguments, key=key, pure=False, **where)
            self._client.loop.add_callback(self._follow, chunk)

    def _in_flight(self) -> int:
        return sum(len(chunk.tasks) for chunk in self._flying)

    def _has_room(self) -> bool:
        """Return True below two chunks a node, or a task a thread. Slow chunks do not count, up to a bound."""
        now, nodes, threads = time.monotonic(), len(self._nodes), sum(self._nodes.values())
        fresh = [len(chunk.tasks) for chunk in self._flying if now - chunk.sent < 2 * LIMIT_SECONDS]
        few = (len(fresh) < 2 * nodes or sum(fresh) < threads) and len(self._flying) < threads + 2 * nodes
        return few and not (self.cancelled or self.paused)

    def _read(self, source: Any) -> list[tuple[int, Any]]:
        """The tasks of a chunk of the right size, first those that go round again.

        At the end of the input a chunk is a fair share of what is left. Of a stream it is what is there.
        """
        total, nodes, back = source.total(), max(1, len(self._nodes)), self._back
        left = math.inf if total is None else max(0, total - self._next_id) + len(back)
        least = max(1, sum(self._nodes.values()) // nodes)
        size = int(max(least, min(self._size, left / (2 * nodes))))
        tasks = [back.popleft() for _ in range(min(size, len(back)))]
        length = sum(self._length(item) for _, item in tasks)
        while len(tasks) < size and length < CHUNK_BYTES and not source.exhausted:
            more = source.take(size - len(tasks))
            if not more and source.fileno() >= 0:
                break
            tasks += self._number(more)
            length += sum(map(self._length, more))
        return tasks

    def _length(self, item: Any) -> int:
        return len(self._tally.task(item)[1])

    def _number(self, items: Sequence[Any]) -> list[tuple[int, Any]]:
        self._next_id += len(items)
        return list(enumerate(items, self._next_id - len(items)))

    async def _follow(self, chunk: Chunk) -> None:
        """Wait for a chunk's reply, in the event loop of Dask's client."""
        try:
            self._arrived.append((chunk, await chunk.future, None))
        except BaseException as error:  # asyncio's and Dask's CancelledError among them
            self._arrived.append((chunk, b"", error))
        self.wake()

    # Back.

    def _settle(self, chunk: Chunk, data: bytes, error: BaseException | None) -> Iterator[shmqueue.TaskResult]:
        if error is not None:
            yield from self._lost(chunk, error)
            return
        del self._flying[chunk]
        chunk.future = None  # Dask forgets it
        node, outcomes, seconds, problem = pickle.loads(data)  # noqa: S301
        done = pickle.loads(outcomes) if outcomes else []  # noqa: S301
        first, rest = self._tally.first_worker(*node), dict(enumerate(chunk.tasks))
        for at, status, value, text, attempts, worker, *more in done:
            tsk_id, item = task = rest.pop(at)
            attempts += self._spent.pop(tsk_id, 0)
            if status not in ("ok", "cancelled") and 0 < attempts <= self._retries and not self.cancelled:
                self._spent[tsk_id] = attempts
                self._back.append(task)
                continue
            number = None if worker is None else first + worker
            about = (tsk_id, *self._tally.task(item))
            yield self._tally.note(shmqueue.TaskResult(*about, status, value, text, attempts, number, *more))
        self._back.extend(rest.values())
        if problem:
            self._refuse(node[0], problem)
        if done and seconds:
            tasks, spent = self._pace = self._pace[0] / 2 + len(done), self._pace[1] / 2 + seconds
            self._size = min(GROWTH * self._size, max(1, int(CHUNK_SECONDS * tasks / max(spent, 1e-9))))

    def _refuse(self, node: str, problem: str) -> None:
        """Send this node no more; without any other, the run ends."""
        self.refused[node] = problem
        self._nodes.pop(node, None)
        if not self._nodes:  # what is on its way comes back, as from this one
            self._failure = self._failure or f"{node}: {problem}"
            self.cancel()

    def _lost(self, chunk: Chunk, error: BaseException) -> Iterator[shmqueue.TaskResult]:
        """A chunk that has no reply, and will not have one."""
        if type(error).__name__ == "KilledWorker":
            del self._flying[chunk]
            yield from self._end(chunk.tasks, "crashed", "KilledWorker: every node that had it died")
        elif "Cancelled" in type(error).__name__:
            self._give_up(f"the scheduler at {self._where} was lost")
        else:
            self._give_up(shmqueue.describe(error))

    def _end(self, tasks: Iterable[tuple[int, Any]], status: str, text: str) -> Iterator[shmqueue.TaskResult]:
        for tsk_id, item in tasks:
            about, attempts = (tsk_id, *self._tally.task(item)), self._spent.pop(tsk_id, 0)
            yield self._tally.note(shmqueue.TaskResult(*about, status, None, text, attempts, None, 0.0))

    # Waiting, and what is seen to several times a second.

    def _wait(self, source: Any) -> None:
        """Sleep until a chunk is back, input comes, or it is time to look."""
        poll, stream = select.poll(), source.fileno()
        poll.register(self._ear, select.POLLIN)
        if stream >= 0 and not source.exhausted and self._has_room():
            poll.register(stream, select.POLLIN)
        events = poll.poll(max(0.0, self._next_check - time.monotonic()) * 1000)
        if self._ear in dict(events):
            os.read(self._ear, 4096)

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + shmqueue.CHECK_SECONDS
        self.on_check()
        self._progress.draw(self.snapshot)
        if self._client.status != "running":
            self._give_up(f"the scheduler at {self._where} was lost")
        elif self._empty_at - self._nodes_at > self._wait_seconds:
            self._give_up(f"no node at {self._where} for {self._wait_seconds:g} s: start one, `dask worker ADDRESS`")
        elif self._unanswered > MOST_UNANSWERED:  # not a time: this process may have been stopped
            self._give_up(f"the scheduler at {self._where} does not answer")
        elif now > self._next_census:
            self._next_census = now + CENSUS_SECONDS
            self._unanswered += 1
            self._client.loop.add_callback(self._census)

    async def _census(self) -> None:
        """See which nodes there are; all of them, also those that have come since, hear of a cancellation."""
        with contextlib.suppress(Exception):  # then it stays unanswered, and `_look` sees that
            there = await self._client.nthreads()
            self._unanswered = 0
            self._nodes = {node: threads for node, threads in there.items() if node not in self.refused}
            if self._nodes:
                self._nodes_at = time.monotonic()
            else:
                self._empty_at = time.monotonic()
            if self.cancelled:
                await self._client.run(tell, self.name, "cancel", on_error="ignore")

    def _give_up(self, problem: str) -> None:
        self._failure = self._failure or problem
        self.abort()


def connect(address: str | None, threads: int) -> Any:
    """A client of the cluster at this address, or of one of its own. Raises UsageError."""
    import distributed

    logging.disable()  # what Dask logs would go through the screen; what matters is said here
    warnings.filterwarnings("ignore", module="distributed")
    common = {"set_as_default": False, "name": "shmqueue", "timeout": STOP_SECONDS}
    try:
        if address:
            return distributed.Client(address, **common)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited there: Ctrl-C is for this process
        try:
            return distributed.Client(n_workers=1, threads_per_worker=threads, dashboard_address=None, **common)
        finally:
            signal.signal(signal.SIGINT, handler)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        where = f"--scheduler {address}: cannot be reached" if address else "a LocalCluster cannot be started"
        raise shmqueue.UsageError(f"{where}: {shmqueue.describe(error)}") from None


def digest_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class ClusterLine(shmqueue.CommandLine):
    """The command line, run on a cluster."""

    def make_supervisor(self, functions: Mapping[int, shmqueue.Function], **arguments: Any) -> Any:
        options, screen = self.options, arguments.pop("screen")
        del arguments["queue"]
        source = options.handlers or (options.call or "").rpartition(":")[0]
        files = [shmqueue.__file__, __file__, *([source] if source.endswith(".py") else []), *options.upload]
        for function in functions.values():
            if not hasattr(function, "__qualname__"):
                raise shmqueue.UsageError(f"{function!r}: on a cluster it must be a function that a module defines")
        places = {fn_id: (function.__module__, function.__qualname__) for fn_id, function in functions.items()}
        digests = {os.path.basename(path): digest_of(path) for path in files if path.endswith(".py")}
        retries, where = arguments["retries"], options.scheduler or "LocalCluster"
        arguments["retries"] = 0  # this process counts the attempts, since the next may be on another node
        arguments["slot_size"] = min(arguments["slot_size"] + MARK.size, shmqueue.LIMITS["slot_size"][1])
        spec = pickle.dumps({"functions": places, "files": digests, "options": arguments})
        client = connect(options.scheduler, arguments["workers"] or shmqueue.available_processors())
        try:
            for path in files:
                client.upload_file(path, load=not path.endswith(".py"))  # archives must be, to be found
            return Cluster(functions, client, spec, where, options.wait, retries, screen)
        except BaseException:
            client.close(timeout=STOP_SECONDS)
            raise

    def report(self, problem: str) -> int:
        for node, why in self.supervisor.refused.items():
            shmqueue.say(f"shmqueue: {node} had to be left out: {why}", sys.stderr)
        if problem and self.results is not None and self.results.path != "-":
            problem += f"; {self.results.path} has what was finished: run again with --resume"
        return super().report(problem)


def make_parser() -> argparse.ArgumentParser:
    """The options of shmqueue.py and those of the cluster."""
    parser = shmqueue.make_parser()
    parser.prog = "python -m variants.dask_cluster"
    add = parser.add_argument_group("cluster").add_argument
    add("--scheduler", metavar="ADDRESS", help="of a Dask scheduler, as tcp://HOST:8786 (default: a LocalCluster)")
    add("--upload", metavar="FILE", action="append", default=[], help="send this .py, .zip or .egg to the nodes, too")
    add("--wait", metavar="S", type=float, default=60.0, help="seconds to go on without a node (default: %(default)g)")
    return parser


def check_options(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options, if they are good. Raises UsageError."""
    for name in ("watch", "clean"):
        if getattr(options, name) not in (None, False):
            raise shmqueue.UsageError(f"--{name}: is for one machine's runs; use `python shmqueue.py --{name}` there")
    if options.retry_delay or set(options.retry_on) != set(shmqueue.RETRY_ON):
        raise shmqueue.UsageError("--retry-delay, --retry-on: are for one machine; on a cluster, use --retries alone")
    for path in options.upload:
        if not path.endswith((".py", ".zip", ".egg")) or not os.path.isfile(path):
            raise shmqueue.UsageError(f"--upload {path}: must be a file that ends with .py, .zip or .egg")
    if not options.wait >= 0:
        raise shmqueue.UsageError(f"--wait {options.wait:g}: must be 0 or more seconds")
    shmqueue.check_options(options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    try:
        import cloudpickle
        import distributed  # noqa: F401
    except ImportError:
        print("shmqueue: a cluster needs Dask, which is not installed: pip install distributed", file=sys.stderr)
        return 2
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    parser = make_parser()

    def run() -> int:
        return ClusterLine(check_options(parser.parse_args(argv)), None, shmqueue.SharedTaskQueue).run()

    return shmqueue.exit_code(parser, run)


if __name__ == "__main__":
    raise SystemExit(main())
