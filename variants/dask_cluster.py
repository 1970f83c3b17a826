# SPDX-License-Identifier: MIT
"""dask_cluster: more than one machine; the same command line, its tasks dealt to the nodes of a Dask cluster.

    python -m variants.dask_cluster tasks.txt --handlers jobs.py --scheduler tcp://HOST:8786 --results out.jsonl

Idea
    This process reads the input, and keeps two chunks of about a second's work on each node, a Dask worker; these bound
    the memory. There a WorkerPlugin holds one Supervisor while there is work, and puts one chunk after the other
    through it. It also brings shmqueue.py and the user's files, into the Dask worker's own folder.

If the holder dies
    A node, and its Supervisor with it: Dask gives its chunks to another node. A chunk is lost if its nodes died four
    times (Dask's allowed-failures), or if its Supervisor failed; that node gets no more while there are others. The
    tasks of a lost chunk are sent again one by one, with nothing else on the cluster, and one that is lost alone is
    `crashed`. So each task gets exactly one outcome. But those of a dead node or a lost chunk may be started AGAIN,
    also with --retries 0, and `attempts` does not count that.
    The scheduler: the run ends. What is on the cluster is `crashed`, since it may have run; the rest is `cancelled`.
    This process: Dask takes the chunks from the nodes, and they stop.

When to use it
    When one machine is not enough, and tasks bear to be started again. Who reaches the scheduler's port can run code on
    every node (Dask unpickles): use its TLS, or a network of your own.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import multiprocessing
import os
import pathlib
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import shmqueue

with contextlib.suppress(ImportError):  # main() says what to install
    import cloudpickle
    import distributed
    from tornado.ioloop import PeriodicCallback

CHUNK_SECONDS = 1.0  # of work in a chunk: long against the network's 10 ms, short against what a lost node costs
MOST_SECONDS = 10.0  # where tasks are uneven: four times the longest, since workers without work wait for it
CHUNK_TASKS = 16384  # at most: if the chunk is lost, they go one by one
GROWTH = 8  # times the size of the chunks before, at most
IDLE_SECONDS = 30.0  # a node without chunks for so long closes its Supervisor until the next one
STOP_SECONDS = 10.0  # how long the cluster may take to be reached, and to forget the run
CENSUS_SECONDS = 1.0  # how often the nodes are counted
PAUSE_SECONDS = 0.01  # how often chunks that are back, signals, keys and the screen are seen to

# On a node, in the Dask worker. This part is sent by value.


def run_chunk(name: str, items: bytes) -> Any:
    """What Dask calls on a node: put a chunk through the Supervisor there."""
    worker = distributed.get_worker()
    return worker.plugins[name].run(worker.get_current_task(), items)


def cancel_node(name: str, dask_worker: Any) -> None:
    """What Dask calls on every node: begin no more tasks."""
    dask_worker.plugins[name].cancelled = True


class Node:
    """A node's part of one run. A subclass of it and of WorkerPlugin has this run's files and spec."""

    files: Mapping[str, bytes]  # by name
    spec: bytes  # the functions and the Supervisor's options, as a pickle
    cancelled = False
    over = False  # the run is, or this Dask worker
    supervisor: Any = None
    key = ""  # of the chunk that the Supervisor works on

    def setup(self, worker: Any) -> None:
        """Bring the files. Dask workers may share a process and its modules: this is called for one at a time."""
        self.worker = worker
        self.lock = threading.Lock()  # guards `supervisor` and `key`
        process = vars(multiprocessing.current_process())
        process["_config"]["daemon"] = False  # under a nanny; else it starts no workers
        known = process.setdefault("shmqueue_files", {})
        new = {name for name, data in self.files.items() if known.get(name) != data}
        known.update(self.files)
        for name, data in self.files.items():
            path = pathlib.Path(worker.local_directory, name)
            path.with_suffix(".new").write_bytes(data)
            path.with_suffix(".new").replace(path)  # another run may be reading it
            if path.suffix != ".py":
                sys.path.insert(0, str(path))
            if name in new or (new and name != "shmqueue.py"):  # that one imports none of them; other runs use it
                sys.modules.pop(path.stem, None)
        importlib.invalidate_caches()

    def run(self, key: str, items: bytes) -> tuple[Any, ...]:
        """Put a chunk through. Return this node, what went wrong with it, its workers, those replaced, and outcomes."""
        node = (self.worker.address, os.getpid())
        with self.lock:
            self.key = key
            try:
                self.look()
                supervisor = self.supervisor = self.supervisor or self.start()
                source = importlib.import_module("shmqueue").IterableSource(pickle.loads(items))  # noqa: S301
                source.pairs = True
                before = supervisor.stats()["respawned"]
                results = sorted(supervisor.run(source))
                stats = supervisor.stats()
            except BaseException as error:  # also what a module raises that was sent
                self.end(kill=True)
                return node, f"{type(error).__name__}: {error}"
            self.worker.loop.add_callback(self.worker.loop.call_later, IDLE_SECONDS, self.leave, key)
        outcomes = pickle.dumps([result[3:] for result in results])
        return node, "", len(stats["workers"]), stats["respawned"] - before, outcomes

    def start(self) -> Any:
        functions, options = pickle.loads(self.spec)  # noqa: S301
        options["workers"] = options["workers"] or self.worker.state.nthreads
        supervisor = importlib.import_module("shmqueue").Supervisor(functions, **options)
        supervisor.on_check = self.look
        return supervisor

    def look(self) -> None:
        """Raise if the client has stopped or died, and cancel what is asked for. Called several times a second."""
        task = self.worker.state.tasks.get(self.key)
        if self.over or task is None or task.state != "executing":
            raise InterruptedError("nobody wants this chunk any more")
        if self.cancelled and self.supervisor and not self.supervisor.cancelled:
            self.supervisor.cancel()

    def end(self, kill: bool = False) -> None:
        supervisor, self.supervisor = self.supervisor, None
        if supervisor is not None:
            supervisor.on_check = lambda: None
            if kill:
                supervisor.abort()
            supervisor.close()

    def leave(self, last: str, wait: bool = False) -> None:
        """Some time after this chunk: close the Supervisor if no other has come."""
        if self.key == last and self.lock.acquire(blocking=wait):
            self.end()
            self.lock.release()

    def teardown(self, worker: Any) -> None:
        self.over = True  # for the chunk in hand: that nobody wants it is not heard while this waits for it
        self.leave(self.key, wait=True)


# On the machine that reads the tasks.


class Cluster(contextlib.AbstractContextManager[Any]):
    """What CommandLine needs of a Supervisor, over a cluster; its public names are those of Supervisor."""

    paused = cancelled = stopped = False
    alone = False  # what is on the cluster is one task of a lost chunk
    failure = ""
    size = 64  # of the next chunk
    taken = respawned = 0  # tasks; workers
    empty = 0  # censuses in a row without a node

    def __init__(self, client: Any, plugin: Any, line: ClusterLine) -> None:
        self.on_check: Any = lambda: None
        self.client = client
        self.line = line
        self.name = f"shmqueue-{client.id}"
        self.where = line.options.scheduler or "LocalCluster"
        self.tally = shmqueue.Tally(0)
        self.workers: list[tuple[str, int]] = []  # of each, the node, and the pid of its Dask worker
        self.flying: dict[Any, list[tuple[Any, int]]] = {}  # the tasks of each of Dask's futures
        self.lost: list[tuple[Any, int]] = []  # the tasks of lost chunks
        self.left_out: set[str] = set()  # nodes whose Supervisor failed: they get no more while there are others
        client.register_plugin(plugin, name=self.name)
        self.nodes: dict[str, int] = client.nthreads()  # those that are there, and their threads
        client.loop.add_callback(PeriodicCallback(self.census, 1000 * CENSUS_SECONDS).start)

    def __exit__(self, *error: object) -> None:
        """Have the nodes forget this run, and leave."""
        with contextlib.suppress(Exception):  # the scheduler is gone, or a node
            if self.client.status == "running":
                self.client.sync(self.client.unregister_worker_plugin, self.name, callback_timeout=STOP_SECONDS)
            self.client.close(timeout=STOP_SECONDS)
        self.line.progress.close()

    def run(self, source: Any) -> Iterator[shmqueue.TaskResult]:
        """The TaskResults of `source` as chunks come back; never raises for a task."""
        while not self.stopped:
            self.send(source)
            if not self.flying and (self.cancelled or (source.exhausted and not self.lost)):
                break
            back = [future for future in self.flying if future.done()]
            for future in back:
                yield from self.settle(future)
            if not back:
                time.sleep(PAUSE_SECONDS)
            self.look()
        text = f"{self.failure or 'stopped while it was on the cluster'}: it may have run"
        for tasks in (*self.flying.values(), self.lost):
            yield from self.end(tasks, "crashed" if self.failure else "cancelled", text)
        yield from self.end(zip(source.rest(), itertools.count(self.taken + 1)), "cancelled", shmqueue.CANCELLED)
        if self.failure:
            raise shmqueue.WorkersFailedError(self.failure)

    def cancel(self) -> None:
        """Send no more, and have the nodes finish what is in hand."""
        self.cancelled = True
        self.client.loop.add_callback(self.census)

    def abort(self, failure: str = "") -> None:
        """Have the nodes stop now, by taking the chunks from Dask."""
        self.failure = self.failure or failure
        self.cancelled = self.stopped = True
        self.client.loop.add_callback(self.client.cancel, list(self.flying))

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def wake(self) -> None:
        """Have on_check called soon: it is, in any case."""

    def suspend(self) -> None:
        """Stop this process, as Ctrl-Z does; the nodes finish the chunks they have."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def summary(self) -> dict[str, Any]:
        """As Supervisor.summary(); pid is that of the node's Dask worker."""
        tally = self.tally
        columns = zip(self.workers, tally.completed, tally.failed)
        workers = [{"node": node, "pid": pid, "completed": done, "failed": bad} for (node, pid), done, bad in columns]
        outstanding = len(self.lost) + sum(map(len, self.flying.values()))
        about = {"retried": tally.retried, "respawned": self.respawned, "outstanding": outstanding, "held_up": ""}
        return {**tally.counts, **about, "seconds": tally.seconds(), "workers": workers, **tally.summary()}

    def snapshot(self) -> dict[str, Any]:
        """What the screen shows: in place of the ring, the tasks that are on the cluster."""
        about = self.summary()
        most = max(1, about["outstanding"], 2 * len(self.nodes) * self.size)
        about |= {"name": self.where, "strategy": "dask", "ring": about["outstanding"], "num_slots": most}
        for row in about["workers"]:
            row["state"] = "run" if row["node"] in self.nodes else "dead"
        return self.line.progress.complete(about, self.tally.latest)

    def look(self) -> None:
        """Several times a second: do what is asked for, draw, and see whether the cluster is there."""
        self.on_check()
        self.line.progress.update(self.snapshot)
        if self.client.status != "running":
            self.abort(f"the scheduler at {self.where} was lost: start one, and run again with --resume")
        elif self.empty * CENSUS_SECONDS > self.line.options.wait:
            self.abort(f"no node at {self.where} for {self.line.options.wait:g} s: start one, `dask worker ADDRESS`")

    async def census(self) -> None:
        """See which nodes there are. All of them, also those that have come since, hear of a cancellation."""
        with contextlib.suppress(Exception):  # the scheduler is lost
            self.nodes = await self.client.nthreads()
            self.empty = 0 if self.nodes else self.empty + 1
            if self.cancelled:
                await self.client.run(cancel_node, self.name, on_error="ignore")

    def send(self, source: Any) -> None:
        """Send what there is room for: two chunks a node, or one task of a lost chunk with nothing else out."""
        while self.nodes and not (self.cancelled or self.paused):
            good = [node for node in self.nodes if node not in self.left_out] or list(self.nodes)
            if self.flying and (self.lost or self.alone or len(self.flying) >= 2 * len(good)):
                return
            tasks = self.lost[:1] or self.read(source)
            if not tasks:
                return
            self.alone = bool(self.lost)
            del self.lost[:1]
            data = pickle.dumps([item for item, _ in tasks])
            where = {"workers": good, "allow_other_workers": True} if len(good) < len(self.nodes) else {}
            self.flying[self.client.submit(run_chunk, self.name, data, pure=False, **where)] = tasks

    def read(self, source: Any) -> list[tuple[Any, int]]:
        """The tasks of a chunk. At the end of the input it is a fair share of the rest; of a stream, what is there."""
        total, nodes = source.total(), len(self.nodes)
        share = CHUNK_TASKS if total is None else (total - self.taken) // (2 * nodes - 1)
        size = max(1, sum(self.nodes.values()) // nodes, min(self.size, share))
        tasks: list[tuple[Any, int]] = []
        for _ in range(4 * CHUNK_TASKS // shmqueue.BLOCK):  # so that long lines do not make a chunk large
            if len(tasks) < size:
                items = source.take(size - len(tasks))
                tasks += zip(items, itertools.count(self.taken + 1))
                self.taken += len(items)
        return tasks

    def settle(self, future: Any) -> Iterator[shmqueue.TaskResult]:
        """The TaskResults of a chunk that is back. The tasks of one that is lost are to go one by one."""
        tasks = self.flying.pop(future)
        alone, self.alone = self.alone, False
        try:
            node, problem, *answer = future.result(STOP_SECONDS)
        except Exception as error:
            node, problem = None, shmqueue.describe(error)
        if not problem:
            self.left_out.discard(node[0])
            yield from self.results(tasks, node, *answer)
        elif alone:
            yield from self.end(tasks, "crashed", problem)
        else:
            self.lost += tasks
        if problem and node and node[0] not in self.left_out:
            self.left_out.add(node[0])
            shmqueue.complain(f"{node[0]} gets no more while there are others: {problem}")
        elif problem and node and alone and self.left_out.issuperset(self.nodes):
            self.abort(f"{node[0]}: {problem}")

    def results(self, tasks: Any, node: Any, workers: int, respawned: int, data: bytes) -> Iterator[Any]:
        """The TaskResults of a chunk. Workers have numbers in the order in which nodes reply first."""
        tally = self.tally
        self.respawned += respawned
        if node not in self.workers:
            self.workers += [node] * workers
            for column in (tally.completed, tally.failed, tally.busy):
                column.extend([0] * workers)
        outcomes = pickle.loads(data)  # noqa: S301
        seconds = [outcome[5] for outcome in outcomes]
        wanted = min(MOST_SECONDS, max(CHUNK_SECONDS, 4 * max(seconds)))
        fitting = wanted * workers * len(tasks) / max(sum(seconds), 1e-9)
        self.size = int(max(1, min(GROWTH * self.size, CHUNK_TASKS, fitting)))
        yield from self.finish(tasks, outcomes, self.workers.index(node))

    def end(self, tasks: Any, status: str, text: str) -> Iterator[shmqueue.TaskResult]:
        """Give tasks this outcome, for want of one from a node."""
        return self.finish(tasks, itertools.repeat((status, None, text, int(status == "crashed"), None, 0.0)), 0)

    def finish(self, tasks: Any, outcomes: Iterable[Any], first: int) -> Iterator[shmqueue.TaskResult]:
        """Count and yield the TaskResults of these outcomes. The node's first worker has the number `first`."""
        tally = self.tally
        for (item, tsk_id), outcome in zip(tasks, outcomes):
            result = shmqueue.TaskResult(tsk_id, *self.line.parse.task(item), *outcome)
            tally.retried += max(0, result.attempts - 1)
            if result.worker is not None:
                result = result._replace(worker=first + result.worker)
            if result.status == "ok":
                tally.add_ok(result.worker or 0, 1, result.seconds)
            else:
                tally.add_bad(result)
            yield result


class ClusterLine(shmqueue.CommandLine):
    """The command line, run on a cluster."""

    def make_supervisor(self, functions: Mapping[int, shmqueue.Function], **arguments: Any) -> Any:
        options = self.options
        source = options.handlers or (options.call or "").rpartition(":")[0]
        paths = map(pathlib.Path, [shmqueue.__file__, *options.upload, *[source] * source.endswith(".py")])
        files = {path.name: path.read_bytes() for path in paths}
        del arguments["queue"], arguments["screen"]
        with shmqueue.usage_error(f"{source}: a function cannot be sent: ", Exception):
            spec = pickle.dumps((functions, arguments))
        plugin = type("Plugin", (Node, distributed.WorkerPlugin), {"files": files, "spec": spec})()
        threads = arguments["workers"] or shmqueue.available_processors()
        return Cluster(connect(options.scheduler, threads), plugin, self)


def connect(address: str | None, threads: int) -> Any:
    """A client of the cluster at this address, or of one of its own. Raises UsageError."""
    logging.disable()  # what Dask logs would go through the screen; what matters is said here
    here = {} if address else {"n_workers": 1, "threads_per_worker": threads, "dashboard_address": None}
    where = f"--scheduler {address}: cannot be reached: " if address else "a LocalCluster cannot be started: "
    spared = [] if address else [signal.SIGINT]  # what is ignored is inherited there: Ctrl-C is for this process
    with shmqueue.usage_error(where), shmqueue.handled_by(signal.SIG_IGN, spared):
        return distributed.Client(address, set_as_default=False, name="shmqueue", timeout=STOP_SECONDS, **here)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = shmqueue.make_parser()
    parser.prog = "python -m variants.dask_cluster"
    add = parser.add_argument_group("cluster").add_argument
    add("--scheduler", metavar="ADDRESS", help="of a Dask scheduler, as tcp://HOST:8786 (default: a LocalCluster)")
    add("--upload", metavar="FILE", action="append", default=[], help="send this .py, .zip or .egg to the nodes, too")
    add("--wait", metavar="S", type=float, default=60.0, help="seconds to go on without a node (default: %(default)g)")

    def run() -> int:
        options = parser.parse_args(argv)
        kinds = {pathlib.Path(path).suffix for path in options.upload}
        rules = {
            "a cluster needs Dask, which is not installed: pip install distributed": "distributed" not in globals(),
            "--watch: is for one machine's runs; use `python shmqueue.py --watch` there": options.watch is not None,
            "--clean: is for one machine's runs; use `python shmqueue.py --clean` there": options.clean,
            "--command: its tasks and workers have no numbers on a cluster; use --shell": options.command,
            "--workers 0: on a cluster, functions run in worker processes": options.workers == 0,
            "--upload: its files must end with .py, .zip or .egg": kinds - {".py", ".zip", ".egg"},
            f"--wait {options.wait:g}: must be 0 or more seconds": not options.wait >= 0,
        }
        for rule, is_broken in rules.items():
            if is_broken:
                raise shmqueue.UsageError(rule)
        shmqueue.check_options(options)
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        return ClusterLine(options, None, shmqueue.SharedTaskQueue).run()

    return shmqueue.exit_code(parser, run)


if __name__ == "__main__":
    raise SystemExit(main())
