"""Kill random workers of shmqueue and of other systems, and count what becomes of the tasks.

    python -m benchmarks.tools.storm [--tasks N] [--workers N] [--every SECONDS] [--only NAME ...]

It compares with pebble, loky and mpire (pip install pebble loky mpire). It names what is not installed, and leaves it
out.

Each contender runs in a process of its own. A task writes the id of its worker into a file, once for each worker, and
sleeps for a millisecond. This process sends SIGKILL to a random live worker at random intervals. A contender that shows
no new outcome for --patience seconds hangs, and is ended.
"""

import argparse
import glob
import importlib
import importlib.util
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
NOTE = "STORM_WORKERS"  # the environment variable that names the file of workers
TASK_SECONDS = 0.001
noted = 0


def work(number: int) -> int:
    global noted
    if noted != os.getpid():
        noted = os.getpid()
        with open(os.environ[NOTE], "ab", buffering=0) as file:
            file.write(b"%d\n" % noted)
    time.sleep(TASK_SECONDS)
    return number + 1


def work_bytes(payload: bytes) -> bytes:
    return b"%d" % work(int(payload))


class Tally:
    """The outcomes of a contender so far. It reports them to the outside a few times a second."""

    def __init__(self) -> None:
        self.values = 0
        self.errors = 0
        self.seen = set()
        self.reported = 0.0

    def value(self, number: int, value: int) -> None:
        assert value == number + 1, (number, value)  # noqa: S101
        self.values += number not in self.seen
        self.seen.add(number)
        self.report()

    def error(self, number: int) -> None:
        self.errors += number not in self.seen
        self.seen.add(number)
        self.report()

    def report(self, end: str = "") -> None:
        if end or time.monotonic() - self.reported > 0.1:
            self.reported = time.monotonic()
            print(json.dumps([self.values, self.errors, end]), flush=True)


# The contenders. If the executor as a whole fails, they leave the exception to their caller.


def with_shmqueue(tasks: int, workers: int, tally: Tally, retries: int = 0) -> None:
    import shmqueue

    with shmqueue.Supervisor([work_bytes], workers=workers, retries=retries, start_method="fork") as supervisor:
        for result in supervisor.run(b"%d" % number for number in range(tasks)):
            if result.status == "ok":
                tally.value(int(result.payload), int(result.value))
            else:
                tally.error(int(result.payload))


def with_shmqueue_retries(tasks: int, workers: int, tally: Tally) -> None:
    with_shmqueue(tasks, workers, tally, retries=3)


def with_pool(tasks: int, workers: int, tally: Tally) -> None:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for value in pool.imap_unordered(work, range(tasks)):
            tally.value(value - 1, value)


def from_futures(futures: dict, tally: Tally, broken: tuple) -> None:
    """Count the futures of single tasks. `broken` are the errors that end the executor as a whole."""
    import concurrent.futures

    end = None
    for future in concurrent.futures.as_completed(futures):
        error = future.exception()
        if isinstance(error, broken):
            end = error
        elif error is not None:
            tally.error(futures[future])
        else:
            tally.value(futures[future], future.result())
    if end is not None:
        raise end


def with_executor(tasks: int, workers: int, tally: Tally) -> None:
    import concurrent.futures.process
    import multiprocessing

    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as executor:
        futures = {executor.submit(work, number): number for number in range(tasks)}
        from_futures(futures, tally, (concurrent.futures.process.BrokenProcessPool,))


def with_loky(tasks: int, workers: int, tally: Tally) -> None:
    from concurrent.futures.process import BrokenProcessPool

    import loky

    executor = loky.get_reusable_executor(max_workers=workers)
    futures = {executor.submit(work, number): number for number in range(tasks)}
    from_futures(futures, tally, (BrokenProcessPool,))


def with_pebble(tasks: int, workers: int, tally: Tally) -> None:
    import pebble

    with pebble.ProcessPool(max_workers=workers) as pool:
        futures = {pool.schedule(work, args=[number]): number for number in range(tasks)}
        from_futures(futures, tally, ())


def with_mpire(tasks: int, workers: int, tally: Tally) -> None:
    import mpire

    with mpire.WorkerPool(n_jobs=workers, start_method="fork") as pool:
        for value in pool.imap_unordered(work, range(tasks), chunk_size=1):
            tally.value(value - 1, value)


CONTENDERS = {  # label: the module that it needs, its function
    "shmqueue": ("shmqueue", with_shmqueue),
    "shmqueue, retries=3": ("shmqueue", with_shmqueue_retries),
    "multiprocessing.Pool": ("multiprocessing", with_pool),
    "ProcessPoolExecutor": ("concurrent.futures", with_executor),
    "Pebble": ("pebble", with_pebble),
    "loky": ("loky", with_loky),
    "mpire": ("mpire", with_mpire),
}


def compete(label: str, tasks: int, workers: int) -> None:
    """Run one contender in this process, and end the process."""
    tally = Tally()
    end = "finished"
    try:
        CONTENDERS[label][1](tasks, workers, tally)
    except BaseException as error:
        end = f"gave up: {type(error).__name__}"
    tally.report(end)
    os._exit(0)  # An ordinary exit could wait for something that hangs.


# From outside.


def stat_of(pid: int) -> tuple[int, str]:
    """Return the session and the state of a process, or (0, "") if it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[3]), fields[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return 0, ""


def session_members(session: int) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if stat_of(pid)[0] == session]


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a contender, and remove what nobody else removes."""
    for pid in session_members(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    # loky's resource tracker would remove these, but it was killed too.
    for path in glob.glob(f"/dev/shm/sem.loky-{process.pid}-*"):
        os.unlink(path)


class Contest:
    """The process of one contender, and what is seen of it from outside."""

    def __init__(self, label: str, options: argparse.Namespace, note: pathlib.Path) -> None:
        self._options = options
        self._note = note
        self._random = random.Random(options.seed)  # noqa: S311
        self.kills = 0
        self.kills_at_last_outcome = 0
        self.reports = [[0, 0, ""]]
        command = [sys.executable, __file__, "--contender", label, "--tasks", str(options.tasks)]
        self.process = subprocess.Popen(
            [*command, "--workers", str(options.workers)], env={**os.environ, NOTE: str(note)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_reports, daemon=True)
        self._reader.start()

    def _read_reports(self) -> None:
        self.reports.extend(map(json.loads, self.process.stdout))

    def kill_workers(self) -> None:
        """Kill random workers until the contender has ended, or shows no new outcome for --patience seconds."""
        last_outcome = time.monotonic()
        next_kill = last_outcome + self._options.every
        outcomes = -1
        while self.process.poll() is None and time.monotonic() - last_outcome < self._options.patience:
            time.sleep(0.01)
            now = time.monotonic()
            values, errors, end = self.reports[-1]
            if values + errors != outcomes:
                outcomes = values + errors
                last_outcome = now
                self.kills_at_last_outcome = self.kills
            if now >= next_kill and outcomes >= 1:
                next_kill = now + self._options.every * self._random.uniform(0.5, 1.5)
                workers = self._live_workers()
                if workers and not end:
                    os.kill(self._random.choice(workers), signal.SIGKILL)
                    self.kills += 1

    def _live_workers(self) -> list[int]:
        """Return the noted processes that are in the contender's session and neither dead nor zombies."""
        pids = map(int, self._note.read_text().split())
        states = [(pid, *stat_of(pid)) for pid in pids]
        return [pid for pid, session, state in states if session == self.process.pid and state not in ("Z", "X")]

    def close(self) -> None:
        end_session(self.process)
        self._reader.join(5)
        self.process.stdout.close()


def storm(label: str, options: argparse.Namespace) -> list[str]:
    """Run one contender and return its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        note = pathlib.Path(folder) / "workers"
        note.touch()
        contest = Contest(label, options, note)
        began = time.monotonic()
        contest.kill_workers()
        seconds = time.monotonic() - began
        hung = contest.process.poll() is None
        contest.close()
    values, errors, end = contest.reports[-1]
    if hung:
        seconds -= options.patience
        survived = contest.kills_at_last_outcome
        told_end = f"hung after {contest.kills} kills"
    else:
        survived = contest.kills if end == "finished" else max(0, contest.kills_at_last_outcome - 1)
        told_end = end or "died"
    numbers = [f"{number:,}" for number in (values, errors, options.tasks - values - errors, survived)]
    return [label, *numbers, told_end, f"{seconds:.0f} s"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill workers of shmqueue and of its peers, and count what is lost.")
    parser.add_argument("--tasks", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--every", type=float, default=0.25, help="seconds between kills, on average")
    parser.add_argument("--patience", type=float, default=15.0, help="seconds without an outcome that mean it hangs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        compete(options.contender, options.tasks, options.workers)
    print(f"{options.tasks:,} tasks of 1 ms, {options.workers} workers, a kill every {options.every:g} s on average\n")
    head = ["", "values", "tasks with an error", "tasks without an outcome", "kills survived", "end", "time"]
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * 4 + "---|---:|", flush=True)
    missing = []
    for label in options.only or CONTENDERS:
        if importlib.util.find_spec(CONTENDERS[label][0]) is None:
            missing.append(CONTENDERS[label][0])
        else:
            print("| " + " | ".join(storm(label, options)) + " |", flush=True)
    if missing:
        print(f"\nnot installed, and left out: {', '.join(missing)} (pip install {' '.join(missing)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
