"""More than one machine: the same command line, its tasks dealt to the nodes of a Dask cluster.

    python -m variants.dask_cluster tasks.txt --handlers jobs.py --scheduler tcp://HOST:8786 --results out.jsonl

Idea
    Two levels: the network sees chunks, the ring sees tasks. This process reads the input and deals chunks of about a
    second's work, two for a node; Dask carries them. On each node (a Dask worker process) one Supervisor, kept for the
    whole run, puts the tasks of all chunks that are there through as many processes as that Dask worker has threads
    (or --workers). A chunk that turns out slow gives back what it has not begun. shmqueue.py, this file, the file of
    --handlers or --call and those of --upload travel by Client.upload_file; other modules must be importable there.
    Without --scheduler, a LocalCluster on this machine.

Extra state
    Here: the chunks that are on the cluster, with their tasks, until their outcomes are back. Memory is bounded by
    them. On a node: its chunks, and the outcomes of those that are not finished. Nothing on the scheduler outlives the
    run but the uploaded files, which Dask keeps for nodes that come later.

Lock order
    One lock a node, for its list of chunks; held for no call. Dask's threads add chunks and wait; the node's own
    thread, which alone touches the Supervisor, takes them. Between machines there is no lock.

If the holder dies
    A node: Dask gives its chunks to another. Every task still gets exactly one outcome, since this process takes one
    reply for each chunk. But tasks of those chunks may have been done, or be under way (a node that is cut off works
    on until it notices): they are started AGAIN, also with --retries 0, which holds within a node only. `attempts`
    counts on the last node. No network can promise more; tasks that must not run twice need a mark of their own, or
    one machine. A chunk whose nodes died four times (distributed.scheduler.allowed-failures) is `crashed`.
    The scheduler: the run ends; what is on the cluster is `crashed`, since it may have run, the rest `cancelled`.
    Results written are kept: start a scheduler, and run again with --resume. Nodes stop what they do.
    This process, by Ctrl-C: once, nodes finish what is in hand; twice, they stop. By SIGKILL: Dask tells the nodes,
    which stop. On a node nothing is left but the forkserver of the Dask worker's Python, which ends with it.

When to use it
    When one machine is not enough, and tasks bear to be started again. A chunk comes back with its longest task. Who
    reaches the scheduler's port can run code on every node (Dask unpickles): use its TLS, or a network of your own.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import hashlib
import importlib
import logging
import math
import multiprocessing
import os
import pickle
import secrets
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import shmqueue

distributed: Any = None
with contextlib.suppress(ImportError):
    distributed = importlib.import_module("distributed")

CHUNK_SECONDS = 1.0  # of work in a chunk: long against the network's 10 ms, short against what a lost node costs
GROWTH = 8  # times the size of the chunks before, at most
CHUNK_BYTES = 4 << 20  # of payloads in a chunk, unless it is one task
LIMIT_SECONDS = 4.0  # after which a chunk gives back what it has not begun, and no longer counts as on its way
AHEAD_SECONDS = 0.1  # of work that is in a node's ring, and cannot be given back
IDLE_SECONDS = 30.0  # a node without chunks for so long ends its worker processes until the next one
STOP_SECONDS = 10.0  # how long nodes may take to stop and to say so


class Reply(NamedTuple):
    """What comes back of a chunk: from which node (address, pid, processes, how many were replaced), how many of its
    tasks were taken, their outcomes (index, status, value, error, attempts, worker, seconds), how long that took,
    and what ended the node, if something did."""

    address: str
    pid: int
    workers: int
    respawned: int
    taken: int
    outcomes: list[tuple[Any, ...]]
    seconds: float
    problem: str


class Spec(NamedTuple):
    """What a node must know of a run: (module, name) of its functions by fn_id, the digests of the modules that were
    sent, and the arguments of its Supervisor."""

    functions: Mapping[int, tuple[str, str]]
    digests: Mapping[str, str]
    options: Mapping[str, Any]


# On a node.


class Load:
    """A chunk on a node. first: the node's tsk_id of its first task; taken: how many are in the ring or done."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items, self.first, self.taken, self.whole = items, 0, 0, False  # whole: no more of it is taken
        self.outcomes: list[tuple[Any, ...]] = []
        self.came, self.began, self.seconds, self.done = time.monotonic(), 0.0, 0.0, threading.Event()


class Node(shmqueue.Source, distributed.WorkerPlugin if distributed else object):  # type: ignore[misc]
    """A node's part of one run: a Supervisor in a thread of its own, and the chunks that it works on.

    It is made by the first chunk that comes, and then hears from Dask what becomes of this worker and its chunks. (A
    plugin that the client registers would reach a node that joins before the uploaded files do.)"""

    def __init__(self, spec: Spec, worker: Any) -> None:
        self.spec, self._address, self._workers = spec, worker.address, spec.options["workers"] or worker.state.nthreads
        self._order = self._obeyed = self._problem = ""
        self._lock, self._respawned = threading.Lock(), 0
        self._supervisor: Any = None
        self._loads: dict[str, Load] = {}  # by Dask's key; changed under the lock
        self._untaken: collections.deque[Load] = collections.deque()  # those of which more is to be taken
        self._thread: threading.Thread | None = None

    # Called by Dask in its event loop.

    async def teardown(self, worker: Any) -> None:
        self.stop("abort")
        deadline = time.monotonic() + STOP_SECONDS
        while self._thread is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def transition(self, key: str, start: str, finish: str, **more: Any) -> None:
        if finish == "released" and key in self._loads:  # it is still here, and nobody wants it: the client is gone
            self.stop("abort")

    def stop(self, order: str) -> None:
        """Obey an order, the name of a method of Supervisor; abort is the last one."""
        self._order = order if self._order != "abort" else "abort"
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # it has left, or is not there yet: then it looks anyway
            self._supervisor.wake()

    # Called in one of Dask's threads, which waits here.

    def work(self, key: str, items: Sequence[Any]) -> Reply:
        load = Load(items)
        with self._lock:
            if not self._order:
                self._loads[key] = load
                self._untaken.append(load)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name="shmqueue", daemon=True)
                    self._thread.start()
        self._wake()
        if not self._order or key in self._loads:
            load.done.wait()  # the thread ends no otherwise than by setting it
        about = (self._address, os.getpid(), self._workers, self._respawned)
        return Reply(*about, load.taken, load.outcomes, load.seconds, self._problem)

    # The node's own thread.

    def _serve(self) -> None:
        self.exhausted, self._ring, self._rate, self._finished, self._next = False, 0, 0.0, 0, 1
        self._ended = self._looked = self._busy = time.monotonic()
        self._load = Load(())
        try:
            functions = {i: getattr(importlib.import_module(m), n) for i, (m, n) in self.spec.functions.items()}
            options = {**self.spec.options, "workers": self._workers}
            with shmqueue.Supervisor(functions, **options) as self._supervisor:
                self._supervisor.on_look = self._look
                for result in self._supervisor.run(self):
                    self._settle(result)
        except BaseException as error:  # whatever it is, the client is told
            self._problem = shmqueue.describe(error)
        finally:
            with self._lock:
                self._untaken.clear()
                for key in list(self._loads):
                    self._loads.pop(key).done.set()
                self._thread = None

    def take(self, room: int) -> Sequence[Any]:
        ahead = max(2 * self._workers, int(self._rate * AHEAD_SECONDS))
        room = min(room, self.BLOCK, ahead - self._ring)
        if room <= 0 or not self._untaken:
            return ()
        load = self._untaken[0]
        if not load.taken:
            load.first, load.began = self._next, time.monotonic()
        items = load.items[load.taken : load.taken + room]
        load.taken += len(items)
        self._next += len(items)
        self._ring += len(items)
        if load.taken == len(load.items):
            self._close(self._untaken.popleft())
        return items

    def _settle(self, result: shmqueue.TaskResult) -> None:
        tsk_id, _, _, status, value, error, attempts, worker, seconds = result
        load = self._load
        if not load.first <= tsk_id < load.first + load.taken:
            load = self._load = next(x for x in self._loads.values() if x.first <= tsk_id < x.first + x.taken)
        value = bytes(value) if isinstance(value, ctypes.Structure) else value
        load.outcomes.append((tsk_id - load.first, status, value, error, attempts, worker, seconds))
        self._ring -= 1
        self._finished += 1
        if load.whole and len(load.outcomes) == load.taken:
            self._close(load)

    def _close(self, load: Load) -> None:
        """Nothing more of this chunk is taken; if all that was is done, it goes back."""
        load.whole = True
        if len(load.outcomes) == load.taken:
            now = time.monotonic()
            load.seconds, self._ended = now - max(load.began, self._ended), now
            self._respawned = self._supervisor.stats()["respawned"]
            with self._lock:
                self._loads = {key: each for key, each in self._loads.items() if each is not load}
            load.done.set()

    def _look(self) -> None:
        now = time.monotonic()
        if self._order != self._obeyed:
            self._obeyed = self._order
            getattr(self._supervisor, self._order)()
        if now - self._looked > AHEAD_SECONDS:
            self._rate = (self._rate + self._finished / (now - self._looked)) / 2
            self._looked, self._finished = now, 0
        while self._untaken and now - self._untaken[0].came > LIMIT_SECONDS:
            self._close(self._untaken.popleft())
        with self._lock:
            self._busy = now if self._loads else self._busy
            self.exhausted = self.exhausted or now - self._busy > IDLE_SECONDS or bool(self._order and not self._loads)


_loaded: dict[str, str] = {}  # on a node: the digests of the modules that runs have brought
_making = threading.Lock()  # of Nodes, and of what is in _loaded


def run_chunk(name: str, spec: bytes, data: bytes) -> Reply:
    """What Dask calls on a node."""
    worker = distributed.get_worker()
    with _making:
        if name not in worker.plugins:
            multiprocessing.current_process().daemon = False  # Dask's workers are daemons, which may have no children
            node = Node(pickle.loads(spec), worker)  # noqa: S301
            bring_up_to_date(node.spec.digests)
            distributed.utils.sync(worker.loop, worker.plugin_add, plugin=node, name=name)
    reply: Reply = worker.plugins[name].work(worker.get_current_task(), pickle.loads(data))  # noqa: S301
    return reply


def bring_up_to_date(digests: Mapping[str, str]) -> None:
    """Forget modules that an earlier run has brought and that have changed since."""
    importlib.invalidate_caches()
    for module, digest in digests.items():
        if _loaded.setdefault(module, digest) != digest:
            if module in (shmqueue.__name__, __name__):
                raise RuntimeError(f"another version of {module}.py is loaded from an earlier run: restart this node")
            sys.modules.pop(module, None)
            _loaded[module] = digest


def give_order(name: str, order: str, dask_worker: Any) -> None:
    if name in dask_worker.plugins:
        dask_worker.plugins[name].stop(order)


async def forget(name: str, dask_worker: Any) -> None:
    if name in dask_worker.plugins:
        await dask_worker.plugin_remove(name=name)


# On the machine that reads the tasks.


class Chunk:
    """Tasks on their way: the tsk_id of the first, and the items; when they were sent."""

    def __init__(self, first: int, items: Sequence[Any]) -> None:
        self.first, self.items, self.sent = first, items, 0.0
        self.future: Any = None


class Cluster:
    """What CommandLine needs of a Supervisor, over a cluster; its public names are those of Supervisor."""

    def __init__(
        self,
        functions: Mapping[int, shmqueue.Function],
        address: str | None,
        files: Iterable[str],
        wait: float,
        workers: int | None,
        screen: shmqueue.Progress,
        **options: Any,
    ) -> None:
        self._progress, self._patience, self._address = screen, wait, address or "LocalCluster"
        self._ledger = shmqueue.Ledger(functions, 0, 0)  # keeps the counts
        self._only = self._ledger.names[min(functions)]
        self.name, self.paused, self.cancelled = f"shmqueue-{secrets.token_hex(4)}", False, False
        self.on_look: Callable[[], None] = lambda: None
        self._began, self._next_look, self._next_census, self._deadline = time.monotonic(), 0.0, 0.0, math.inf
        self._nodes: dict[str, int] = {}  # the nodes that are there, and their threads
        self._known: dict[str, tuple[int, Reply]] = {}  # those that replied: the number of their first worker
        self._nodes_at, self._failure, self._order = self._began, "", ""
        self._back: collections.deque[Chunk] = collections.deque()
        self._flying: dict[Chunk, None] = {}
        self._arrived: collections.deque[tuple[Chunk, Reply | None, BaseException | None]] = collections.deque()
        self._size, self._pace, self._next_id, self._count = 64, (0.0, 0.0), 1, 0  # pace: tasks, seconds
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        paths = [shmqueue.__file__, __file__, *files]
        digests = {os.path.basename(path)[:-3]: _digest(path) for path in paths if path.endswith(".py")}
        functions_at = {fn_id: (function.__module__, function.__qualname__) for fn_id, function in functions.items()}
        self._spec = pickle.dumps(Spec(functions_at, digests, {"workers": workers, **options}))
        self._client = connect(address, workers)
        try:
            for path in paths:
                self._client.upload_file(path, load=not path.endswith(".py"))  # archives must be, to be found
            self._nodes = self._client.nthreads()
            self._began = self._nodes_at = time.monotonic()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, source: Any) -> Iterator[shmqueue.TaskResult]:
        """The TaskResults of `source` as chunks come back; never raises for a task."""
        while True:
            while self._arrived:
                yield from self._settle(*self._arrived.popleft())
            self._send(source)
            if not self._flying and (self.cancelled or (source.exhausted and not self._back)):
                break
            self._wait(source)
            self._look()
        for chunk in self._back:
            yield from self._end(chunk, "cancelled", "cancelled before it began")
        while source.finite and not source.exhausted:
            chunk = Chunk(self._next_id, source.take(source.BLOCK))
            self._next_id += len(chunk.items)
            yield from self._end(chunk, "cancelled", "cancelled before it began")
        if self._failure:
            raise shmqueue.WorkersFailedError(self._failure)

    def cancel(self) -> None:
        """Send no more, and have the nodes finish what is in hand."""
        self.cancelled = True
        self._command("cancel")

    def abort(self) -> None:
        """Have the nodes stop now; what they do not report in time is cancelled."""
        self.cancelled, self._deadline = True, min(self._deadline, time.monotonic() + STOP_SECONDS)
        self._command("abort")

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def wake(self) -> None:
        self._next_look = 0.0
        with contextlib.suppress(BlockingIOError):
            os.write(self._bell, b"!")

    def suspend(self) -> None:
        """Stop this process, as Ctrl-Z does; the nodes finish the chunks they have."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def close(self) -> None:
        """Have the nodes forget this run, and leave."""
        client = self._client
        with contextlib.suppress(Exception):
            if client.status == "running":
                client.sync(client.run, forget, self.name, on_error="ignore", callback_timeout=STOP_SECONDS)
        with contextlib.suppress(Exception):
            client.close(timeout=STOP_SECONDS)
        self._progress.close()

    def stats(self) -> dict[str, Any]:
        """As Supervisor.stats(); pid is that of the node's Dask worker."""
        ledger = self._ledger
        workers = [
            {"node": reply.address, "pid": reply.pid, "completed": ledger.completed[i], "failed": ledger.failed[i]}
            for first, reply in self._known.values()
            for i in range(first, first + reply.workers)
        ]
        more = {"retried": ledger.retried, "respawned": sum(r.respawned for _, r in self._known.values())}
        outstanding = sum(len(chunk.items) for chunk in [*self._flying, *self._back])
        seconds = time.monotonic() - self._began
        return {**ledger.counts, **more, "outstanding": outstanding, "seconds": seconds, "workers": workers}

    def summary(self) -> dict[str, Any]:
        """As Supervisor.summary(); the time that nodes took to start counts as waiting."""
        return self._ledger.summary(self.stats(), 0.0)

    def snapshot(self) -> shmqueue.Snapshot:
        """What the screen shows: in place of the ring, the tasks that are on the cluster."""
        ledger, progress, now = self._ledger, self._progress, time.monotonic()
        rates, each = progress.rates([a + b for a, b in zip(ledger.completed, ledger.failed)])
        rows = [
            shmqueue.WorkerRow(
                i, reply.pid, "run" if reply.address in self._nodes else "dead", "", ledger.completed[i],
                ledger.failed[i], each[i] if i < len(each) else 0.0, None, None, None, 0.0,
            )
            for first, reply in self._known.values()
            for i in range(first, first + reply.workers)
        ]  # fmt: skip
        failures = [f"#{r.tsk_id:,} {r.function} {r.status}: {r.error}" for r in ledger.failures[-5:]]
        about = (progress.title, self._address, "dask", now - self._began, ledger.counts, ledger.retried)
        flying = sum(len(chunk.items) for chunk in self._flying)
        most = max(1, flying, 2 * len(self._nodes) * self._size)
        return shmqueue.Snapshot(
            *about, progress.total(), rates, flying, most, rows, failures, progress.state, progress.keys
        )

    # Out.

    def _send(self, source: Any) -> None:
        while not (self.cancelled or self.paused) and self._has_room():
            chunk = self._back.popleft() if self._back else self._read(source)
            if not chunk.items:
                return
            self._count += 1
            chunk.sent = time.monotonic()
            self._flying[chunk] = None
            key, data = f"{self.name}-{self._count}", pickle.dumps(chunk.items)
            chunk.future = self._client.submit(run_chunk, self.name, self._spec, data, key=key, pure=False)
            self._client.loop.add_callback(self._follow, chunk)

    def _has_room(self) -> bool:
        """Two chunks for each node, or a task for each thread; those that take long do not count, up to a bound."""
        now, threads = time.monotonic(), sum(self._nodes.values())
        fresh = [len(chunk.items) for chunk in self._flying if now - chunk.sent < 2 * LIMIT_SECONDS]
        few = len(fresh) < 2 * len(self._nodes) or sum(fresh) < threads
        return few and len(self._flying) < threads + 2 * len(self._nodes)

    def _read(self, source: Any) -> Chunk:
        """A chunk of the right size; in the end, a fair share of what is left; of a stream, what is there."""
        total, nodes = source.total(), max(1, len(self._nodes))
        left = math.inf if total is None else max(0, total - self._next_id)
        least = max(1, sum(self._nodes.values()) // nodes)
        size = int(max(least, min(self._size, left / (2 * nodes))))
        items: list[Any] = []
        length = 0
        while len(items) < size and length < CHUNK_BYTES and not source.exhausted:
            more = source.take(size - len(items))
            if not more and source.fileno() >= 0:
                break
            items += more
            length += sum(len(item if isinstance(item, bytes) else item[1]) for item in more)
        self._next_id += len(items)
        return Chunk(self._next_id - len(items), items)

    async def _follow(self, chunk: Chunk) -> None:
        """Wait for a chunk's reply, in the loop of Dask's client."""
        try:
            arrived: Any = (chunk, await chunk.future, None)
        except BaseException as error:  # asyncio's and Dask's CancelledError among them
            arrived = (chunk, None, error)
        self._arrived.append(arrived)
        with contextlib.suppress(BlockingIOError):
            os.write(self._bell, b"!")

    # Back.

    def _settle(self, chunk: Chunk, reply: Reply | None, error: BaseException | None) -> Iterator[shmqueue.TaskResult]:
        if chunk not in self._flying:  # it was given up before
            return
        del self._flying[chunk]
        chunk.future = None  # Dask forgets it
        if reply is None:
            yield from self._lost(chunk, error)
            return
        first = self._number(reply)
        for at, status, value, text, attempts, worker, seconds in reply.outcomes:
            name, payload = self._task(chunk.items[at])
            number = None if worker is None else first + worker
            result = shmqueue.TaskResult(
                chunk.first + at, name, payload, status, value, text, attempts, number, seconds
            )
            self._note(result)
            yield result
        if len(reply.outcomes) < reply.taken:  # the node's Supervisor broke
            for at in set(range(reply.taken)) - {outcome[0] for outcome in reply.outcomes}:
                yield from self._end(Chunk(chunk.first + at, chunk.items[at : at + 1]), "crashed", reply.problem)
        if reply.taken < len(chunk.items):
            self._back.append(Chunk(chunk.first + reply.taken, chunk.items[reply.taken :]))
        if reply.problem:
            self._give_up(f"{reply.address}: {reply.problem}")
        elif reply.taken:
            tasks, spent = self._pace[0] / 2 + reply.taken, self._pace[1] / 2 + reply.seconds
            self._pace = tasks, spent
            self._size = min(GROWTH * self._size, max(1, int(CHUNK_SECONDS * tasks / max(spent, 1e-9))))

    def _lost(self, chunk: Chunk, error: BaseException | None) -> Iterator[shmqueue.TaskResult]:
        """A chunk that has no reply, and will not have one."""
        if time.monotonic() > self._deadline:
            status, text = "cancelled", "stopped while it was on the cluster: it may have run"
        elif isinstance(error, distributed.scheduler.KilledWorker):
            status, text = "crashed", f"KilledWorker: the last {error.allowed_failures + 1} nodes that had it died"
        elif self._client.status != "running" or "Cancelled" in type(error).__name__:
            status, text = "crashed", "the scheduler was lost while this was on the cluster: it may have run"
            self._give_up(f"the scheduler at {self._address} was lost")
        else:
            status, text = "crashed", shmqueue.describe(error) if error else ""
            self._give_up(text)
        yield from self._end(chunk, status, text)

    def _end(self, chunk: Chunk, status: str, text: str) -> Iterator[shmqueue.TaskResult]:
        for tsk_id, item in enumerate(chunk.items, chunk.first):
            name, payload = self._task(item)
            result = shmqueue.TaskResult(tsk_id, name, payload, status, None, text, 0, None, 0.0)
            self._ledger.count_bad(result)
            yield result

    def _task(self, item: Any) -> Sequence[Any]:
        """The function's name and the payload of an item."""
        return (self._only, item) if isinstance(item, bytes) else item[:2]

    def _note(self, result: shmqueue.TaskResult) -> None:
        """Count an outcome."""
        ledger, worker = self._ledger, result.worker
        ledger.retried += max(0, result.attempts - 1)
        if worker is not None:
            (ledger.completed if result.status == "ok" else ledger.failed)[worker] += 1
            ledger.busy[worker] += result.seconds
        if result.status != "ok":
            ledger.count_bad(result)
            return
        ledger.counts["ok"] += 1
        if len(ledger.slowest) < 5 or result.seconds > ledger.slowest[-1].seconds:
            payload = shmqueue.to_bytes(result.payload)[:200]
            kept = [*ledger.slowest, result._replace(payload=payload, value=None)]
            ledger.slowest = sorted(kept, key=lambda each: -each.seconds)[:5]

    def _number(self, reply: Reply) -> int:
        """The number of the first worker of a node, over all nodes."""
        ledger = self._ledger
        first = self._known[reply.address][0] if reply.address in self._known else len(ledger.busy)
        if first == len(ledger.busy):
            for column in (ledger.completed, ledger.failed, ledger.busy):
                column.extend([0] * reply.workers)
        self._known[reply.address] = first, reply._replace(outcomes=[])
        return first

    # Waiting, and what is seen to several times a second.

    def _wait(self, source: Any) -> None:
        """Sleep until a chunk is back, input comes, or it is time to look."""
        poll, stream = select.poll(), source.fileno()
        poll.register(self._ear, select.POLLIN)
        if stream >= 0 and not (self.cancelled or self.paused) and self._has_room():
            poll.register(stream, select.POLLIN)
        events = poll.poll(max(0.0, self._next_look - time.monotonic()) * 1000)
        if self._ear in dict(events):
            os.read(self._ear, 4096)

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + shmqueue.LOOK_SECONDS
        self.on_look()
        self._progress.draw(self.snapshot)
        if self._client.status != "running":
            self._give_up(f"the scheduler at {self._address} was lost")
        elif now - self._nodes_at > self._patience and not self.cancelled:
            self._give_up(f"no node at {self._address} for {self._patience:g} s: start one, `dask worker ADDRESS`")
        if now > self._deadline:
            late = TimeoutError()
            self._arrived.extend((chunk, None, late) for chunk in self._flying)
            self._client.loop.add_callback(self._client.cancel, [chunk.future for chunk in self._flying])
        elif now > self._next_census:
            self._next_census = now + 1.0
            self._client.loop.add_callback(self._census)
            self._command(self._order)

    async def _census(self) -> None:
        with contextlib.suppress(Exception):  # then it is old, and `_look` sees that
            self._nodes = await self._client.nthreads()
            self._nodes_at = time.monotonic() if self._nodes else self._nodes_at

    def _command(self, order: str) -> None:
        """Tell all nodes, and again those that come while there are chunks out."""
        self._order = order
        if order and self._client.status == "running":
            self._client.loop.add_callback(self._client.run, give_order, self.name, order, on_error="ignore")

    def _give_up(self, problem: str) -> None:
        if not self._failure:
            self._failure = problem
            self.abort()


def connect(address: str | None, workers: int | None) -> Any:
    """A client of the cluster at this address, or of one of its own. Raises UsageError."""
    logging.disable()  # what Dask logs would go through the screen; what matters is said here
    warnings.filterwarnings("ignore", module="distributed")
    common = {"set_as_default": False, "name": "shmqueue", "timeout": STOP_SECONDS}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a LocalCluster inherits it: Ctrl-C is for this process
    try:
        if address:
            return distributed.Client(address, **common)
        threads = workers or shmqueue.available_processors()
        return distributed.Client(n_workers=1, threads_per_worker=threads, dashboard_address=None, **common)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        where = f"--scheduler {address}: cannot be reached" if address else "a LocalCluster cannot be started"
        raise shmqueue.UsageError(f"{where}: {shmqueue.describe(error)}") from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def make_parser() -> shmqueue.Parser:
    parser = shmqueue.make_parser()
    parser.prog = "python -m variants.dask_cluster"
    add = parser.add_argument_group("cluster").add_argument
    add("--scheduler", metavar="ADDRESS", help="of a Dask scheduler, as tcp://HOST:8786 (default: a LocalCluster)")
    add("--upload", metavar="FILE", action="append", default=[], help="send this .py, .zip or .egg to the nodes, too")
    add("--wait", metavar="S", type=float, default=60.0, help="seconds to go on without a node (default: %(default)g)")
    return parser


class ClusterLine(shmqueue.CommandLine):
    """The command line, run on a cluster."""

    parser = staticmethod(make_parser)

    def make_supervisor(self, functions: Mapping[int, shmqueue.Function], **arguments: Any) -> Cluster:
        options, numbers = self.options, ("workers", "num_slots", "slot_size", "batch", "timeout", "retries")
        checked = [*numbers, "max_rss", "max_tasks"]
        shmqueue.check_numbers(**{name: arguments[name] for name in checked})
        del arguments["queue"]
        source = options.handlers or (options.call or "").rpartition(":")[0]
        files = [path for path in [source] if path.endswith(".py")] + options.upload
        return Cluster(functions, options.scheduler, files, options.wait, **arguments)

    def report(self, problem: str) -> int:
        if problem and self.results is not None and self.results.path != "-":
            problem += f"; {self.results.path} has what was finished: run again with --resume"
        return super().report(problem)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    if distributed is None:
        print("shmqueue: a cluster needs Dask, which is not installed: pip install distributed", file=sys.stderr)
        return 2
    name = os.path.basename(__file__)[:-3]
    if __name__ != name:  # go on under the name that this file has on the nodes, so that they know what is sent
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        return int(importlib.import_module(name).main(argv))
    return shmqueue.main(None, argv, kind=ClusterLine)


if __name__ == "__main__":
    raise SystemExit(main())
