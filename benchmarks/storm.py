"""The same storm on shmqueue and on its peers: a random worker is killed every so often, and what becomes of the tasks?

    python benchmarks/storm.py [--tasks N] [--workers N] [--every SECONDS] [--only NAME ...]

Requirements: pebble, loky, mpire from PyPI (pip install pebble loky mpire). What is not installed is named and left
out. Each contender is a process of its own. Its function notes its process where it has not done so, then sleeps for a
millisecond. From outside, one of those that live is sent SIGKILL at random intervals. A contender that shows no new
outcome for --patience seconds hangs, and is ended.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
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
    """What a contender has got so far; told to the outside a few times a second."""

    def __init__(self) -> None:
        self.values, self.errors, self.seen, self.told = 0, 0, set(), 0.0

    def value(self, number: int, value: int) -> None:
        assert value == number + 1, (number, value)  # noqa: S101
        self.values += number not in self.seen
        self.seen.add(number)
        self.tell()

    def error(self, number: int) -> None:
        self.errors += number not in self.seen
        self.seen.add(number)
        self.tell()

    def tell(self, end: str = "") -> None:
        if end or time.monotonic() - self.told > 0.1:
            self.told = time.monotonic()
            print(json.dumps([self.values, self.errors, end]), flush=True)


# The contenders. Each leaves an exception of the executor as a whole to its caller.


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
    """Futures of single tasks; `broken` are the errors that mean the end of the executor."""
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


CONTENDERS = {  # label: the module that it needs, and the function
    "shmqueue": ("shmqueue", with_shmqueue),
    "shmqueue, retries=3": ("shmqueue", with_shmqueue_retries),
    "multiprocessing.Pool": ("multiprocessing", with_pool),
    "ProcessPoolExecutor": ("concurrent.futures", with_executor),
    "Pebble": ("pebble", with_pebble),
    "loky": ("loky", with_loky),
    "mpire": ("mpire", with_mpire),
}


def compete(label: str, tasks: int, workers: int) -> None:
    """In the contender's process."""
    tally, end = Tally(), "finished"
    try:
        CONTENDERS[label][1](tasks, workers, tally)
    except BaseException as error:
        end = f"gave up: {type(error).__name__}"
    tally.tell(end)
    os._exit(0)  # not waiting for what may hang


# From outside.


def stat_of(pid: int) -> tuple[int, str]:
    """The session and the state of a process; (0, "") where it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[3]), fields[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return 0, ""


def session_members(session: int) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if stat_of(pid)[0] == session]


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a contender, and remove what only it would have removed."""
    for pid in session_members(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    for path in glob.glob(f"/dev/shm/sem.loky-{process.pid}-*"):  # its tracker, killed with it, would have
        os.unlink(path)


def storm(label: str, options: argparse.Namespace) -> list[str]:
    """One contender; its row."""
    chance, kills, last_kills = random.Random(options.seed), 0, 0  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        note = pathlib.Path(folder) / "workers"
        note.touch()
        command = [sys.executable, __file__, "--contender", label, "--tasks", str(options.tasks)]
        process = subprocess.Popen(
            [*command, "--workers", str(options.workers)], env={**os.environ, NOTE: str(note)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        told = [[0, 0, ""]]
        reader = threading.Thread(target=lambda: told.extend(map(json.loads, process.stdout)), daemon=True)
        reader.start()
        began = moved = time.monotonic()
        due, done = began + options.every, -1
        while process.poll() is None and time.monotonic() - moved < options.patience:
            time.sleep(0.01)
            now, (values, errors, _) = time.monotonic(), told[-1]
            if values + errors != done:
                done, moved, last_kills = values + errors, now, kills
            if now < due or done < 1:
                continue
            due = now + options.every * chance.uniform(0.5, 1.5)
            alive = [pid for pid in map(int, note.read_text().split()) if stat_of(pid)[0] == process.pid]
            alive = [pid for pid in alive if stat_of(pid)[1] not in ("Z", "X")]
            if alive and not told[-1][2]:
                os.kill(chance.choice(alive), signal.SIGKILL)
                kills += 1
        seconds = time.monotonic() - began
        hung = process.poll() is None
        end_session(process)
        reader.join(5)
        process.stdout.close()
    values, errors, end = told[-1]
    end = f"hung after {kills} kills" if hung else end or "died"
    survived = kills if end == "finished" else max(0, last_kills - (not hung))
    numbers = [f"{number:,}" for number in (values, errors, options.tasks - values - errors, survived)]
    return [label, *numbers, end, f"{seconds - (options.patience if hung else 0):.0f} s"]


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
