"""The soak: kill and stop workers at random instants for a long time, and check that nothing is lost.

    python -m tests.tools.soak [--kills N] [--seed S] [--runs N] [--queue MODULE:CLASS]

Each run is a process of its own, in a session of its own. It has tens of thousands of tasks. They return nothing,
bytes, text, or more than fits a slot. Before anything else, a task writes a line into a ledger: its number and its
process. Meanwhile this process sends SIGKILL and SIGSTOP (and later SIGCONT) to random workers, as fast as new workers
start. Afterwards it compares the ledger, the outcomes and the machine:

- each task has exactly one outcome, and no value is wrong;
- no task was started more than retries + 1 times;
- a kill charges at most one task, and only killed workers have tasks charged;
- nothing is left: no process, no segment, no temporary file, nothing on standard error.

The seed of a run decides what the run does. The exit code is 1 if one of these is violated.
"""

import argparse
import collections
import faulthandler
import importlib
import itertools
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import shmqueue
from tests.helpers import ROOT, is_running, segments_of, session_of, stat_of, wait_until

HANG = 90.0  # seconds without an outcome after which a run counts as stuck
MANY = 1 << 20


class Plan(NamedTuple):
    """What one run does. brisk: tasks take microseconds, so batches are large. ordered: tasks go through `map`."""

    kills: int  # SIGKILLs and SIGSTOPs
    method: str = "fork"
    retries: int = 0
    workers: int = 4
    brisk: bool = False
    ordered: bool = False
    num_slots: int = 16384
    batch: int | None = None
    tasks: int = 20_000  # at least


PLANS = (
    Plan(400, retries=0),
    Plan(400, retries=3),
    Plan(100, retries=0, brisk=True),
    Plan(60, method="forkserver", retries=3),
    Plan(400, retries=0, num_slots=64, batch=16),
    Plan(100, retries=MANY, brisk=True, ordered=True),
    Plan(40, method="spawn", retries=0),
    Plan(400, retries=MANY, ordered=True, workers=3),
)


# The tasks. The payload and the value of a task follow from its number.


def mixed(number: int) -> int:
    return number * 2654435761 % 2**32 >> 4


def payload_of(number: int) -> bytes:
    short = b"%d" % number
    return short + b" payload" * (20 + number % 300) if mixed(number) % 17 == 0 else short


def value_of(number: int) -> bytes | str | None:
    kind = mixed(number) % 10
    if kind < 4:
        return None
    if kind == 9:
        return b"%d value " % number * (20 + number % 1000)
    return f"text {number}" if kind == 8 else b"value %d" % number


ledger = -1
resting = True


def open_ledger(path: str, brisk: bool) -> None:
    """Open the ledger. This is the initializer of every worker."""
    global ledger, resting
    ledger, resting = os.open(path, os.O_WRONLY | os.O_APPEND), not brisk


def work(payload: bytes) -> bytes | str | None:
    number = int(payload.partition(b" ")[0])
    os.write(ledger, b"%d %d\n" % (number, os.getpid()))  # O_APPEND keeps one write whole.
    if payload != payload_of(number):
        raise ValueError(f"a wrong payload: {payload[:50]!r}")
    chance = mixed(number) // 1000 % 400
    if resting and chance < 130:
        time.sleep(0.02 if chance == 0 else 0.001)
    return value_of(number)


# The run: a process of its own.


def run(plan: Plan, folder: pathlib.Path, queue: str) -> None:
    """Run tasks until the file `stop` exists, and write their outcomes."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    module, _, name = queue.partition(":")
    stop = folder / "stop"

    def payloads():
        for number in itertools.count():
            if number % 64 == 0 and number >= plan.tasks and stop.exists():
                return
            yield payload_of(number)

    supervisor = shmqueue.Supervisor(
        [work], workers=plan.workers, num_slots=plan.num_slots, batch=plan.batch, retries=plan.retries,
        start_method=plan.method, queue=getattr(importlib.import_module(module), name),
        initializer=Opener(str(folder / "ledger"), plan.brisk),
    )  # fmt: skip
    with supervisor, open(folder / "outcomes", "w", buffering=1 << 12) as file:
        if plan.ordered:
            for number, value in enumerate(supervisor.map(work, payloads())):
                file.write(f"{number} ok 0 {value == value_of(number):d} \n")
            return
        for result in supervisor.run(payloads()):
            number = int(result.payload.partition(b" ")[0])
            right = result.value == (value_of(number) if result.status == "ok" else None)
            error = " ".join((result.error or "").split())
            file.write(f"{number} {result.status} {result.attempts} {right:d} {error}\n")


class Opener:
    """A call of open_ledger, with its arguments, that can be pickled."""

    def __init__(self, path: str, brisk: bool) -> None:
        self.path, self.brisk = path, brisk

    def __call__(self) -> None:
        open_ledger(self.path, self.brisk)


# The weather: which worker is killed, and when.


class Worker:
    """A worker of the run, seen from outside. Its words in the segment are only read."""

    def __init__(self, words: memoryview, index: int) -> None:
        self.words = words
        self.at = (
            shmqueue.ctypes.sizeof(shmqueue.QueueHeader) + index * shmqueue.ctypes.sizeof(shmqueue.WorkerStatus)
        ) // 8
        self.pid, self.fd, self.hit = 0, -1, False  # hit: we have killed it
        self.known = 0  # the number of batches claimed when this process was first seen
        self.hit_at = self.stopped_until = 0.0
        self.early = False  # True: it may be killed before it works

    def look(self, session: int, chance: random.Random) -> bool:
        """Take note of a new process. Return True if there is a process that we have not killed."""
        pid = self.words[self.at + shmqueue.PID]
        if pid != self.pid:
            self.close()
            stat = stat_of(pid)
            if stat and int(stat[3]) == session:
                try:
                    self.fd = os.pidfd_open(pid)
                except ProcessLookupError:
                    return False
                self.pid, self.hit, self.stopped_until = pid, False, 0.0
                self.known = self.words[self.at + shmqueue.CLAIMS]
                self.early = chance.random() < 0.1
        return self.fd >= 0 and not self.hit

    def works(self) -> bool:
        """Return True if the worker has claimed tasks, or found none and sleeps."""
        return self.words[self.at + shmqueue.CLAIMS] != self.known or self.words[self.at + shmqueue.ASLEEP] > 0

    def send(self, number: int) -> bool:
        try:
            signal.pidfd_send_signal(self.fd, number)
        except (ProcessLookupError, OSError):
            return False
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.pid = -1, 0


class Soak:
    """One run: what is done to it, and what is found afterwards."""

    def __init__(self, seed: int, plan: Plan | None = None, queue: str = "shmqueue:SharedTaskQueue") -> None:
        self.seed, self.plan, self.queue = seed, plan or PLANS[seed % len(PLANS)], queue
        self.random = random.Random(seed)  # noqa: S311
        self.killed: set[int] = set()
        self.stops = self.tasks = self.charged = self.crashed = 0
        self.violations: list[str] = []
        self.seconds = 0.0
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="shmqueue-soak-"))

    def go(self) -> "Soak":
        """Start the run, disturb it, end it and judge it. Remove its folder if nothing was violated."""
        began = time.monotonic()
        (self.folder / "tmp").mkdir()
        for name in ("ledger", "outcomes"):
            (self.folder / name).touch()
        arguments = json.dumps([self.plan, str(self.folder), self.queue])
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.folder / "tmp")}
        with open(self.folder / "errors", "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-W", "default", __file__, "--run", arguments],
                env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
            )  # fmt: skip
        try:
            self.disturb(process)
            (self.folder / "stop").touch()
            self.wait(process, lambda: process.poll() is not None)
        finally:
            self.end(process)
        self.judge(process)
        self.seconds = time.monotonic() - began
        if not self.violations:
            shutil.rmtree(self.folder)
        return self

    def wait(self, process: Any, condition: Any) -> bool:
        """Wait for `condition()`. Return False if the run ends or is stuck before it is true."""
        size, since = -1, time.monotonic()
        while not condition():
            if process.poll() is not None:
                return False
            now_size = (self.folder / "outcomes").stat().st_size
            if now_size != size:
                size, since = now_size, time.monotonic()
            if time.monotonic() - since > HANG:
                process.send_signal(signal.SIGUSR1)
                time.sleep(1)
                self.violations.append(f"no outcome for {HANG:.0f} s, after {len(self.killed):,} kills")
                return False
            time.sleep(0.01)
        return True

    def disturb(self, process: Any) -> None:
        """Kill and stop workers until there were enough kills, or the run ends."""
        if not self.wait(process, lambda: segments_of([process.pid])):
            return
        path = pathlib.Path("/dev/shm", segments_of([process.pid])[0])
        magic = shmqueue.MAGIC.to_bytes(8, sys.byteorder)
        if not self.wait(process, lambda: path.read_bytes()[:8] == magic):  # it is made by then
            return
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with mapped, memoryview(mapped) as view, view[: len(view) // 8 * 8].cast("Q") as words:
            workers = [Worker(words, index) for index in range(self.plan.workers)]
            self.disturb_workers(process, workers)
            for worker in workers:
                worker.send(signal.SIGCONT)
                worker.close()

    def disturb_workers(self, process: Any, workers: list[Worker]) -> None:
        chance = self.random
        back = 0.02  # seconds from the kill of a worker until its successor works, on average
        size, since, looked, due = -1, time.monotonic(), 0.0, 0.0
        while len(self.killed) + self.stops < self.plan.kills:
            time.sleep(0.001)
            now = time.monotonic()
            if now - looked > 1:
                looked, now_size = now, (self.folder / "outcomes").stat().st_size
                if now_size != size:
                    size, since = now_size, now
                if process.poll() is not None or now - since > HANG:
                    return
            ready = []
            for worker in workers:
                if worker.stopped_until and now >= worker.stopped_until:
                    worker.stopped_until = 0.0
                    worker.send(signal.SIGCONT)
                if worker.look(process.pid, chance):
                    ready.append(worker)
                    if worker.hit_at and worker.works():
                        back, worker.hit_at = 0.9 * back + 0.1 * min(1.0, now - worker.hit_at), 0.0
            if now < due or not ready:
                continue
            due = now + chance.expovariate(1.0) * 1.5 * back / len(workers)
            worker = chance.choice(ready)
            if not worker.works() and not worker.early:
                continue
            if chance.random() < 0.25:
                if not worker.stopped_until and worker.send(signal.SIGSTOP):
                    self.stops += 1
                    worker.stopped_until = now + (1.5 if chance.random() < 0.01 else chance.expovariate(50.0))
            elif is_running(worker.pid) and worker.send(signal.SIGKILL):
                self.killed.add(worker.pid)
                worker.hit, worker.hit_at, worker.stopped_until = True, now, 0.0

    def end(self, process: Any) -> None:
        """Kill the run if it has not ended by itself. If it has, note what it left behind."""
        if process.poll() is None:
            for pid in session_of(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()
            for name in segments_of([process.pid]):
                os.unlink(f"/dev/shm/{name}")
            self.violations = self.violations or ["stuck, and ended"]
            return
        if not wait_until(lambda: not session_of(process.pid)):
            left = session_of(process.pid)
            self.violations.append(f"processes left: {left}")
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        if names := segments_of([process.pid]):
            self.violations.append(f"left in /dev/shm: {names}")
        if files := os.listdir(self.folder / "tmp"):
            self.violations.append(f"temporary files left: {files}")

    # What is found.

    def judge(self, process: Any) -> None:
        errors = (self.folder / "errors").read_text("utf-8", "replace").strip()
        if errors or process.returncode:
            self.violations.append(f"exit code {process.returncode}, standard error: {errors[-2000:]!r}")
        starts: dict[int, list[int]] = collections.defaultdict(list)
        with open(self.folder / "ledger", "rb") as file:
            for line in file:
                number, pid = line.split()
                starts[int(number)].append(int(pid))
        outcomes: dict[int, str] = {}
        with open(self.folder / "outcomes") as file:
            for line in file:
                self.judge_outcome(line, starts, outcomes)
        if process.returncode == 0:
            missing = [number for number in range(len(outcomes)) if number not in outcomes]
            self.blame("tasks without an outcome", missing)
            self.blame("tasks that began and have no outcome", [n for n in starts if n not in outcomes])
        self.judge_charges(starts, outcomes)
        self.tasks = len(outcomes)

    def judge_outcome(self, line: str, starts: dict[int, list[int]], outcomes: dict[int, str]) -> None:
        word, status, attempts, right, error = line.rstrip("\n").split(" ", 4)
        number, began = int(word), len(starts.get(int(word), ()))
        most = self.plan.retries + 1
        wrong = [
            ("a second outcome", number in outcomes),
            ("a wrong value", right != "1"),
            (f"status {status} ({error})", status not in ("ok", "crashed")),
            (f"started {began} times, at most {most} are allowed", began > most),
            (f"started {began} times, {attempts} attempts are told", not self.plan.ordered and began > int(attempts)),
            (f"{attempts} attempts", not self.plan.ordered and not 1 <= int(attempts) <= most),
            (f"crashed after {attempts} of {most} attempts", status == "crashed" and int(attempts) != most),
            ("ok, and never started", status == "ok" and not began),
        ]
        self.blame(f"task {number}", [text for text, is_so in wrong if is_so])
        outcomes[number] = status
        self.crashed += status == "crashed"
        self.charged += int(attempts) - (status == "ok") if not self.plan.ordered else 0

    def judge_charges(self, starts: dict[int, list[int]], outcomes: dict[int, str]) -> None:
        """Check that every lost start belongs to a killed worker, and that no worker has two of them.

        A start is lost unless it is the last one of a task that is ok.
        """
        lost: dict[int, list[int]] = collections.defaultdict(list)
        for number, pids in starts.items():
            for pid in pids[:-1] if outcomes.get(number) == "ok" else pids:
                lost[pid].append(number)
        self.blame(
            "tasks charged to workers that nobody killed", [n for p in lost if p not in self.killed for n in lost[p]]
        )
        self.blame("tasks charged to one kill", [tasks for tasks in lost.values() if len(tasks) > 1])
        if self.charged > len(self.killed):
            self.violations.append(f"{self.charged:,} tasks charged for {len(self.killed):,} kills")

    def blame(self, what: str, items: list[Any]) -> None:
        if items and len(self.violations) < 20:
            self.violations.append(f"{what}: {items[:10]}{' ...' if len(items) > 10 else ''}")

    def __str__(self) -> str:
        plan = self.plan._replace(retries=min(self.plan.retries, 99))
        how = f"{plan.method}, retries {plan.retries}" + ", brisk" * plan.brisk + ", ordered" * plan.ordered
        told = f"{self.tasks:,} tasks, {len(self.killed):,} kills, {self.stops:,} stops, {self.crashed:,} crashed"
        text = f"seed {self.seed}: {how}: {told}, {self.charged:,} attempts charged, {self.seconds:.1f} s"
        return "\n".join([text, *(f"  VIOLATED: {each}" for each in self.violations)]) + (
            f"\n  kept in {self.folder}" if self.violations else ""
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill and stop workers for a long time, and see that nothing is lost.")
    parser.add_argument("--kills", type=int, default=10_000, help="SIGKILLs and SIGSTOPs in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the first run; the next has the next (default: by the clock)")
    parser.add_argument("--runs", type=int, help="no more runs than these")
    parser.add_argument("--queue", default="shmqueue:SharedTaskQueue", help="MODULE:CLASS (default: %(default)s)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        plan, folder, queue = json.loads(options.run)
        run(Plan(*plan), pathlib.Path(folder), queue)
        return 0
    seed = options.seed if options.seed is not None else int(time.time()) % 1_000_000 * 8
    soaks: list[Soak] = []
    while sum(len(soak.killed) + soak.stops for soak in soaks) < options.kills and len(soaks) != options.runs:
        soaks.append(Soak(seed + len(soaks), queue=options.queue).go())
        print(soaks[-1], flush=True)
    kills, stops = sum(len(soak.killed) for soak in soaks), sum(soak.stops for soak in soaks)
    tasks, bad = sum(soak.tasks for soak in soaks), sum(len(soak.violations) for soak in soaks)
    charged = sum(soak.charged for soak in soaks)
    print(
        f"seeds {seed} to {seed + len(soaks) - 1}: {tasks:,} tasks, {kills:,} SIGKILLs, {stops:,} SIGSTOPs, "
        f"{charged:,} attempts charged, {bad:,} violations, {sum(soak.seconds for soak in soaks):.0f} s"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
