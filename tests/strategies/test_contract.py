"""What every strategy keeps, whichever it is: one suite over the registry of variants/. At the end, mistakes in the
strategies' own files, each of which a test finds; test_races.py has those that only an unlucky moment shows.
"""

from __future__ import annotations

import collections
import contextlib
import glob
import importlib
import itertools
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import shmqueue
from tests import jobs
from tests.helpers import HANG, docstring_of, wait_until
from tests.tools.mistakes import drop, mistaken_strategy, put, store
from variants import strategies, worker_lanes
from variants.strategy import Lock, Strategy

ROOT = Path(shmqueue.__file__).parent


@pytest.fixture(params=list(strategies))
def queue(request):
    strategy = strategies[request.param]
    if reason := getattr(strategy, "refusal", str)():
        pytest.skip(reason)
    return strategy


def start(functions, queue, **options):
    options = {"workers": 3, "start_method": "fork", **options}
    return shmqueue.Supervisor(functions, queue=queue, **options)


def numbers(count):
    return [b"%d" % number for number in range(count)]


def slow_echo(payload: bytes) -> bytes:
    time.sleep(0.001)
    return payload


class TooLong(BaseException):
    """Not an Exception: a run that has one in a step waits for the lock again, to give each task an outcome."""


@contextlib.contextmanager
def limit(seconds):
    """TooLong in here after so long, and again."""

    def give_up(number, frame):
        raise TooLong(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def asleep(supervisor):
    return len(supervisor._queue.sleepers()) == len(supervisor._pool.lanes)


# Every task has one outcome, in order where that is asked for.


@pytest.mark.parametrize(("workers", "num_slots", "batch"), [(1, 2, None), (3, 4, 1), (3, 64, 7), (16, 16384, None)])
def test_values_come_in_order_and_results_once(queue, workers, num_slots, batch):
    payloads = numbers(min(1500, 100 * num_slots))  # a small ring takes many turns
    with start([jobs.echo], queue, workers=workers, num_slots=num_slots, batch=batch) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads)) == payloads
        results = list(supervisor.run(payloads))
    assert sorted(result.payload for result in results) == sorted(payloads)
    assert {(result.status, result.attempts, result.value == result.payload) for result in results} == {("ok", 1, True)}


@pytest.mark.parametrize("first", [2**32 - 100, 2**63 - 100])
def test_positions_go_on_past_large_numbers(queue, first, monkeypatch):
    class Late(shmqueue.QueueHeader):
        def __init__(self, **fields):
            super().__init__(**fields)
            self.pushed[0] = self.claimed[0] = first

    monkeypatch.setattr(shmqueue, "QueueHeader", Late)
    with start([jobs.echo, jobs.quiet], queue, num_slots=16) as supervisor:
        assert supervisor._queue.words[shmqueue.PUSHED] >= first
        assert list(supervisor.map(jobs.echo, numbers(400))) == numbers(400)
        for handle in [lane.process for lane in supervisor._pool.lanes]:
            handle.kill()
        assert list(supervisor.map(jobs.quiet, numbers(400))) == [None] * 400


def test_a_full_ring_takes_more_as_there_is_room(queue, tmp_path):
    door = str(tmp_path / "door")
    with start([jobs.wait_for_file], queue, num_slots=8) as supervisor:
        for _ in range(8):
            supervisor.submit(jobs.wait_for_file, door)
        threading.Timer(0.1, Path(door).touch).start()
        for _ in range(100):  # more than there is room for while nobody finishes
            supervisor.submit(jobs.wait_for_file, door)
        assert [result.status for result in supervisor.results()] == ["ok"] * 108


def test_who_sleeps_is_woken(queue, monkeypatch):
    """A worker sleeps until it is rung. The supervisor looks by itself several times a second, which would hide that
    nobody has woken it; here it does so when the test is about to fail.
    """
    for name in ("CHECK_SECONDS", "IDLE_SECONDS", "HUNGRY_SECONDS"):
        monkeypatch.setattr(shmqueue, name, HANG / 2)
    with start([jobs.echo, slow_echo], queue) as supervisor:
        for number in range(200):
            if number % 10 == 0:
                assert wait_until(lambda: asleep(supervisor))
            began = time.monotonic()
            supervisor.submit(slow_echo if number % 20 > 10 else jobs.echo, b"%d" % number)
            assert [result.value for result in supervisor.results()] == [b"%d" % number]
            assert time.monotonic() - began < HANG / 4, "nobody was woken"
        assert wait_until(lambda: asleep(supervisor))


@pytest.mark.parametrize("workers", [2, 3])
def test_a_slow_task_keeps_no_other_from_its_outcome(queue, tmp_path, workers):
    door = tmp_path / "door"
    tasks = [(jobs.wait_for_file, str(door)), *((jobs.echo, payload) for payload in numbers(2000))]
    with start([jobs.wait_for_file, jobs.echo], queue, workers=workers) as supervisor:
        results = supervisor.run(tasks)
        assert {result.status for result in itertools.islice(results, 2000)} == {"ok"}  # while one is held up
        door.touch()
        assert [result.value for result in results] == ["there"]


@pytest.mark.promise("G7a")
@pytest.mark.parametrize("batch", [1, 50, None])
def test_nothing_waits_behind_slow_tasks_while_a_worker_is_idle(queue, tmp_path, batch):
    """All workers but one get a task that does not end, in the midst of others and again behind them."""
    doors = [str(tmp_path / f"door {number}") for number in range(2)]
    tasks = [(jobs.echo, payload) for payload in numbers(600)]
    for place, door in zip((350, 20), doors):
        tasks.insert(place, (jobs.wait_for_file, door))
    with start([jobs.wait_for_file, jobs.echo], queue, batch=batch) as supervisor:
        results = supervisor.run(tasks)
        assert {result.function for result in itertools.islice(results, 600)} == {"echo"}
        assert supervisor.stats()["outstanding"] == 2
        for door in doors:
            Path(door).touch()
        assert [result.value for result in results] == ["there", "there"]


@pytest.mark.promise("G7b")
def test_results_before_a_slow_task_are_delivered_while_it_runs(queue, tmp_path):
    door = tmp_path / "door"
    tasks = [*((jobs.echo, payload) for payload in numbers(40)), (jobs.wait_for_file, str(door))]
    with start([jobs.wait_for_file, jobs.echo], queue, workers=1, batch=64) as supervisor:
        results = supervisor.run(tasks)
        assert [result.value for result in itertools.islice(results, 40)] == numbers(40)
        door.touch()
        assert [result.value for result in results] == ["there"]


# What takes tasks back.


def held_up(supervisor, tmp_path, workers=3):
    """Submit a task that does not end for each worker, with notes in the lanes behind them; their texts."""
    texts = [f"n{number}" for number in range(200)]
    for number in range(workers):
        supervisor.submit(jobs.wait_for_file, str(tmp_path / "door"))
        assert wait_until(lambda number=number: in_hand(supervisor) > number)
    for text in texts:
        supervisor.submit(jobs.note, f"{tmp_path / 'notes'}|{text}")
    return texts


def in_hand(supervisor):
    """How many workers have a task in hand, after a turn of the supervisor."""
    pool, queue = supervisor._pool, supervisor._queue
    pool.collect()
    pool.check(time.monotonic())
    supervisor._engine.push()
    return sum(queue.glance(worker).in_hand is not None for worker in range(queue.num_workers))


def noted(tmp_path):
    path = tmp_path / "notes"
    return path.read_text().split() if path.exists() else []


def test_cancelled_tasks_never_run(queue, tmp_path):
    with start([jobs.wait_for_file, jobs.note], queue) as supervisor:
        held_up(supervisor, tmp_path)
        supervisor.cancel()
        (tmp_path / "door").touch()
        results = collections.Counter((r.function, r.status) for r in supervisor.results())
    assert results == {("wait_for_file", "ok"): 3, ("note", "cancelled"): 200}
    assert noted(tmp_path) == []


def test_checks_after_an_abort_find_nothing_to_take_back(queue, tmp_path):
    """Tasks that only a dead worker could have claimed have had their outcomes then."""
    with start([jobs.wait_for_file, jobs.note], queue) as supervisor:
        held_up(supervisor, tmp_path)
        supervisor.abort()
        supervisor._pool.next_check = 0.0
        assert {result.status for result in supervisor.results()} == {"cancelled"}
        supervisor.submit(jobs.note, b"")
        supervisor._pool.next_check = 0.0
        assert [result.status for result in supervisor.results()] == ["cancelled"]
    assert noted(tmp_path) == []


def test_a_pause_takes_back_what_has_not_begun(queue, tmp_path):
    with start([jobs.wait_for_file, jobs.note], queue) as supervisor:
        texts = held_up(supervisor, tmp_path)
        supervisor.pause(True)
        assert supervisor._queue.backlog() == 0
        (tmp_path / "door").touch()
        results = supervisor.results()
        assert {next(results).function for _ in range(3)} == {"wait_for_file"}
        assert wait_until(lambda: asleep(supervisor))
        assert noted(tmp_path) == []
        supervisor.pause(False)
        assert collections.Counter(result.status for result in results) == {"ok": 200}
    assert sorted(noted(tmp_path)) == sorted(texts)


def test_pauses_in_a_stream_of_tasks_lose_and_repeat_nothing(queue, tmp_path):
    texts = [f"n{number}" for number in range(3000)]
    with start([jobs.note], queue, num_slots=64) as supervisor:
        results = []
        for result in supervisor.run(f"{tmp_path / 'notes'}|{text}" for text in texts):
            results.append(result.status)
            if len(results) % 100 == 0:
                supervisor.pause(True)
                supervisor.pause(False)
    assert results == ["ok"] * 3000
    assert sorted(noted(tmp_path)) == sorted(texts)


def test_max_tasks_replaces_workers_and_repeats_nothing(queue, tmp_path):
    texts = [f"n{number}" for number in range(300)]
    with start([jobs.note], queue, max_tasks=10) as supervisor:
        results = list(supervisor.run(f"{tmp_path / 'notes'}|{text}" for text in texts))
        assert supervisor.stats()["respawned"] >= 20
    assert {(result.status, result.attempts) for result in results} == {("ok", 1)}
    assert sorted(noted(tmp_path)) == sorted(texts)


def test_a_timeout_ends_one_task_and_no_other(queue, tmp_path):
    texts = [f"n{number}" for number in range(300)]
    tasks = [(jobs.note, f"{tmp_path / 'notes'}|{text}") for text in texts]
    for place in (0, 100, 200):
        tasks.insert(place, (jobs.hang, b""))
    with start([jobs.note, jobs.hang], queue, timeout=0.5) as supervisor:
        results = collections.Counter((r.function, r.status, r.attempts) for r in supervisor.run(tasks))
    assert results == {("note", "ok", 1): 300, ("hang", "timeout", 1): 3}
    assert sorted(noted(tmp_path)) == sorted(texts)


def test_a_worker_told_to_leave_gives_back_its_lane(queue, tmp_path):
    with start([jobs.wait_for_file, jobs.note], queue) as supervisor:
        texts = held_up(supervisor, tmp_path)
        before = {handle.pid for handle in [lane.process for lane in supervisor._pool.lanes]}
        for lane in supervisor._pool.lanes:
            lane.retire()
        (tmp_path / "door").touch()
        results = collections.Counter((r.status, r.attempts) for r in supervisor.results())
        assert wait_until(lambda: in_hand(supervisor) == 0 and supervisor.stats()["respawned"] == 3)
        assert before.isdisjoint(handle.pid for handle in [lane.process for lane in supervisor._pool.lanes])
    assert results == {("ok", 1): 203}
    assert sorted(noted(tmp_path)) == sorted(texts)


def test_a_drain_returns_everything_once(queue, tmp_path):
    with start([jobs.wait_for_file, jobs.note], queue, num_slots=64) as supervisor:
        for number in range(3):
            supervisor.submit(jobs.wait_for_file, str(tmp_path / "door"))
            assert wait_until(lambda number=number: in_hand(supervisor) > number)
        own = supervisor._queue
        for _ in range(40):
            supervisor.submit(jobs.note, f"{tmp_path / 'notes'}|x")
        for worker in (None, 0, 1, 2) * 2:  # first all, and then lane by lane
            assert own.backlog() == 40
            drained = own.drain(worker)
            for first, count in drained:  # raises for a position that holds no task, or was given back before
                supervisor._ledger.give_back(first, count)
            assert own.drain(worker) == []
            if worker is None:
                assert own.backlog() == 0
                assert sum(count for _, count in drained) == 40
            while supervisor._ledger.again:
                supervisor._pool.collect()
                supervisor._engine.push()
        (tmp_path / "door").touch()
        assert len(list(supervisor.results())) == 43
    assert len(noted(tmp_path)) == 40


def test_payloads_and_values_of_all_sizes(queue):
    payloads = [jobs.pattern(size) for size in (0, 1, 8, 109, 110, 119, 120, 255, 256, 5000, 1 << 20) for _ in range(3)]
    with start([jobs.echo], queue, num_slots=8) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads)) == payloads


def test_a_run_after_one_that_was_closed_early(queue):
    with start([jobs.echo], queue, num_slots=64) as supervisor:
        for _ in range(5):
            results = supervisor.run(numbers(500))
            assert len(list(itertools.islice(results, 10))) == 10
            results.close()
            assert list(supervisor.map(jobs.echo, numbers(200))) == numbers(200)


def test_two_queues_in_two_threads(queue):
    values = {}

    def use(name):
        with start([jobs.echo], queue, workers=2, num_slots=64, start_method="forkserver") as supervisor:
            values[name] = list(supervisor.map(jobs.echo, numbers(2000)))

    threads = [threading.Thread(target=use, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == {"a": numbers(2000), "b": numbers(2000)}


@pytest.mark.promise("G2b")
def test_retries(queue, tmp_path):
    with start([jobs.fail_twice, jobs.note_and_die], queue, retries=2) as supervisor:
        tasks = [(jobs.fail_twice, f"{tmp_path / str(number)}|") for number in range(5)]
        tasks.append((jobs.note_and_die, f"{tmp_path / 'dead'}|"))
        results = collections.Counter((r.function, r.status, r.attempts) for r in supervisor.run(tasks))
    assert results == {("fail_twice", "ok", 3): 5, ("note_and_die", "crashed", 3): 1}
    assert (tmp_path / "dead").read_bytes().count(b"\n") == 3


# Deaths.


def check_outcomes(results, payloads, kills):
    """Each task once; no more crashes than kills, since a death is charged to the task in hand alone."""
    assert sorted(result.payload for result in results) == sorted(payloads)
    statuses = collections.Counter(result.status for result in results)
    assert set(statuses) <= {"ok", "crashed"}
    assert statuses["crashed"] <= kills


@pytest.mark.promise("G1", "G2a")
def test_workers_killed_at_random(queue, tmp_path):
    chance, kills, path = random.Random(4), 0, tmp_path / "notes"  # noqa: S311
    with start([jobs.note], queue, num_slots=128) as supervisor:
        results, due = [], time.monotonic()
        source = (  # as long as workers are killed
            f"{path}|{number}" for number in itertools.takewhile(lambda _: kills < 60, itertools.count())
        )
        for result in supervisor.run(source):
            results.append(result)
            if time.monotonic() > due:
                due = time.monotonic() + chance.uniform(0, 0.02)
                if living := supervisor._pool.living():
                    chance.choice(living).process.kill()
                    kills += 1
    check_outcomes(results, [f"{path}|{number}" for number in range(len(results))], kills)
    notes = path.read_text().split()
    assert len(notes) == len(set(notes)), "a task was started twice"


def uneven(payload: str) -> None:
    """Notes its number; one in thirty is slow."""
    jobs.note(payload)
    number = int(payload.rpartition("|")[2])
    time.sleep(0.02 if number % 30 == 0 else 0.0002 * (number % 3))


@pytest.mark.promise("G1")
def test_workers_killed_stopped_and_halted_at_random(queue, tmp_path):
    """Somebody else stops and continues workers and kills some, while the supervisor halts those that are slow."""
    chance, kills, path = random.Random(5), 0, tmp_path / "notes"  # noqa: S311
    halts = []
    with start([uneven], queue, num_slots=128, batch=32) as supervisor:
        for lane in supervisor._pool.lanes:
            lane.halt = lambda *arguments, halt=lane.halt: (halts.append(1), halt(*arguments))[1]
        results, due, stopped = [], time.monotonic(), []
        source = (f"{path}|{number}" for number in itertools.takewhile(lambda _: kills < 20, itertools.count()))
        for result in supervisor.run(source):
            results.append(result)
            if len(results) % 200 == 0:
                supervisor.pause(True)
                supervisor.pause(False)
            if time.monotonic() > due:
                due = time.monotonic() + chance.uniform(0, 0.02)
                for pid in stopped:
                    signal_process(pid, signal.SIGCONT)
                stopped = []
                if living := supervisor._pool.living():
                    victim = chance.choice(living).process
                    if chance.random() < 0.3:
                        victim.kill()
                        kills += 1
                    else:
                        signal_process(victim.pid, signal.SIGSTOP)
                        stopped.append(victim.pid)
                if kills == 20:
                    for lane in supervisor._pool.living():
                        signal_process(lane.process.pid, signal.SIGCONT)
                    due = float("inf")
    check_outcomes(results, [f"{path}|{number}" for number in range(len(results))], kills)
    notes = path.read_text().split()
    assert len(notes) == len(set(notes)), "a task was started twice"
    assert {result.payload for result in results if result.status == "ok"} <= {f"{path}|{text}" for text in notes}
    assert halts


def signal_process(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def die(flag):
    Path(f"{flag}.died").touch()
    os.kill(os.getpid(), signal.SIGKILL)


class DeadlyWords:
    """The words of a segment, of which the n-th store kills its process."""

    def __init__(self, words, left, flag):
        self._words, self._left, self._flag = words, left, flag

    def __getitem__(self, index):
        return self._words[index]

    def __setitem__(self, index, value):
        self._words[index] = value
        self._left -= 1
        if not self._left:
            die(self._flag)


class DeadlyBefore:
    """The words of a process that dies before it stores one of these."""

    def __init__(self, words, indices, flag):
        self._words, self._indices, self._flag = words, indices, flag

    def __getitem__(self, index):
        return self._words[index]

    def __setitem__(self, index, value):
        if index in self._indices:
            die(self._flag)
        self._words[index] = value

    def release(self):
        self._words.release()


def commit_words(queue):
    """The words whose store commits a claim."""
    if isinstance(queue, worker_lanes.WorkerLanes):
        return [lane + worker_lanes.LANE_CLAIMED for lane in queue.lanes]
    return [shmqueue.CLAIMED]


class DeadlyLock:
    """A lock whose first holder is killed."""

    def __init__(self, lock, flag):
        self._lock, self._flag = lock, flag

    def acquire(self, *timeout):
        self._lock.acquire(*timeout)
        die(self._flag)


def before_each_copy(queue, action):
    """Have a worker do this inside each claim, before it copies tasks out of the ring."""

    def first(copy):
        return lambda *arguments: (action(), copy(*arguments))

    for worker in range(queue.num_workers):
        for half in queue.halves(worker):
            half.lane.copy_from = first(half.lane.copy_from)


def inside_a_claim(queue, action):
    """`queue`, whose workers do this inside each claim."""

    def attach(cls, name, primitives):
        made = super(strategy, cls).attach(name, primitives)
        before_each_copy(made, action)
        return made

    strategy = type("Inside", (queue,), {"attach": classmethod(attach)})
    return strategy


def deadly(queue, flag, what):
    """`queue`, for which one worker, whoever is first, dies: at its n-th store, or where `what` says."""

    def attach(cls, name, primitives):
        made = super(strategy, cls).attach(name, primitives)
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return made
        if isinstance(what, int):
            made.words = DeadlyWords(made.words, what, flag)
        elif what == "before the commit":
            made.words = DeadlyBefore(made.words, commit_words(made), flag)
        elif what == "in the copy":
            before_each_copy(made, lambda: die(flag))
        else:
            several = isinstance(made._lock, list)
            made._lock = [DeadlyLock(lock, flag) for lock in made._lock] if several else DeadlyLock(made._lock, flag)
        return made

    strategy = type("Deadly", (queue,), {"attach": classmethod(attach)})
    return strategy


def check_death(queue, flag, what, function=jobs.echo):
    died, payloads = Path(f"{flag}.died"), []

    def source():  # 300 tasks, and more until the worker has died
        while len(payloads) < 300 or not died.exists():
            payloads.append(b"%d" % len(payloads))
            yield payloads[-1]

    with start([function], deadly(queue, flag, what), num_slots=64) as supervisor:
        results = list(supervisor.run(source()))
        supervisor.close()
    assert died.exists()
    check_outcomes(results, payloads, 1)


@pytest.mark.promise("G3")
@pytest.mark.parametrize("what", ["in the lock", "in the copy", "before the commit"])
def test_a_worker_is_killed_in_the_critical_section(queue, tmp_path, what):
    check_death(queue, tmp_path / "flag", what, slow_echo)


@pytest.mark.long
@pytest.mark.promise("G3")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "queue", [name for name in strategies if name != "lockf"], indirect=True
)  # protocol/test_kill_at_store.py has that
def test_a_worker_is_killed_at_each_store(queue, tmp_path):
    for number in range(1, 17):
        check_death(queue, tmp_path / str(number), number)


@pytest.mark.promise("G3")
def test_workers_are_killed_and_replaced_without_a_pause(queue, tmp_path):
    """The successor of a worker that died in the critical section dies there, too."""

    def dying():
        if sum(1 for _ in tmp_path.iterdir()) < 5:
            (tmp_path / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    with start([jobs.echo], inside_a_claim(queue, dying)) as supervisor:
        results = list(supervisor.run(numbers(300)))
    check_outcomes(results, numbers(300), 0)
    assert sum(1 for _ in tmp_path.iterdir()) >= 5


@pytest.mark.promise("G9")
def test_a_worker_that_is_stopped_inside_a_claim_is_continued(queue, tmp_path, monkeypatch):
    """Others may wait for what it holds. It is not killed, however long it takes."""
    monkeypatch.setattr(shmqueue, "STOP_SECONDS", 0.5)

    def stopping():
        with contextlib.suppress(FileExistsError):
            os.close(os.open(tmp_path / "stopped", os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGSTOP)

    with start([jobs.echo], inside_a_claim(queue, stopping)) as supervisor:
        results = list(supervisor.run(numbers(300)))
        assert supervisor.stats()["respawned"] == 0
    check_outcomes(results, numbers(300), 0)
    assert (tmp_path / "stopped").exists()


# Ends.


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_leave_by_themselves_and_nothing_is_left(queue, method, capfd, monkeypatch):
    kills, kill = [], shmqueue.Process.kill
    monkeypatch.setattr(shmqueue, "STOP_SECONDS", HANG / 2)
    monkeypatch.setattr(shmqueue.Process, "kill", lambda handle, *why: (kills.append(why), kill(handle, *why)))
    with start([jobs.echo], queue, start_method=method) as supervisor:
        assert len(list(supervisor.run(numbers(100)))) == 100
        assert wait_until(lambda: asleep(supervisor))
        path = supervisor._queue.segment.path
        has_semaphore = queue.strategy == "single_lock" and method != "fork"  # one that has a name
        names = [supervisor._queue._lock.shared[0]._semlock.name] if has_semaphore else []
        named = [f"/dev/shm/sem.{name[1:]}" for name in names]
        assert [file for file in named if os.path.exists(file)] == named
    assert kills == []
    assert glob.glob(path + "*") == []
    assert [file for file in named if os.path.exists(file)] == []
    assert capfd.readouterr().err == ""


def wait_for_ever_in_worker_1():
    if os.environ["SHMQUEUE_WORKER"] == "1":
        time.sleep(10 * HANG)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_worker_that_is_still_starting_is_not_waited_for(queue, method, monkeypatch):
    monkeypatch.setattr(shmqueue, "STOP_SECONDS", 10 * HANG)
    options = {"workers": 2, "initializer": wait_for_ever_in_worker_1, "start_method": method}
    with start([jobs.echo], queue, **options) as supervisor:
        assert wait_until(lambda: supervisor._pool.lanes[0].is_ready())


def run_module(module, folder, *arguments):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=50)


@pytest.mark.command_line
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_command_line_of_each(queue, tmp_path, method):
    (tmp_path / "tasks").write_text("".join(f"echo {number}\n" for number in range(500)))
    arguments = (tmp_path / "tasks", "--screen", "off", "-w", 2, "--start-method", method)
    done = run_module(queue.__module__, ROOT, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "500 tasks: 500 ok" in done.stdout


@pytest.mark.command_line
def test_a_copy_in_another_package_works(queue, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    for module in {sys.modules[kind.__module__] for kind in queue.__mro__[:-1]}:
        shutil.copy(module.__file__, package)
    (tmp_path / "tasks").write_text("noop\n" * 50)
    done = run_module(f"package.{queue.__module__.rpartition('.')[2]}", tmp_path, "tasks", "-w", 2, "--screen", "off")
    assert (done.returncode, done.stderr) == (0, "")
    assert "50 tasks: 50 ok" in done.stdout


@pytest.mark.command_line
def test_a_refusal_is_a_clear_error(queue, capsys):
    base = queue if issubclass(queue, Strategy) else Strategy
    strategy = type("Refused", (base,), {"refusal": classmethod(lambda cls: "not on a Tuesday")})
    assert shmqueue.main(argv=["-"], queue=strategy) == 2
    assert f"{base.strategy}: not on a Tuesday" in capsys.readouterr().err


def test_none_is_refused_on_a_usual_machine():
    """Else the tests of one that cannot be used any more would all be skipped."""
    if platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc":
        own = [strategy for name, strategy in strategies.items() if name != "lockf"]
        assert [strategy.refusal() for strategy in own] == [""] * 5


def headings_of(module):
    """Return the headings in the docstring of a module: what stands under each of them is indented."""
    return re.findall(r"^(\S.*)\n    ", docstring_of(sys.modules[module]), re.MULTILINE)


def test_each_says_what_it_is():
    for name, strategy in strategies.items():
        assert strategy.strategy == name
    headings = [headings_of(strategy.__module__) for strategy in strategies.values()]
    assert len(set(map(tuple, headings[1:]))) == 1, "all but the built-in one have the same"
    assert len(headings[1]) == 5


# Mistakes.


def lockf_without_repair():
    return type("Mistaken", (strategies["lockf"],), {"_repair_locked": lambda self: None})


def single_lock_kept():
    strategy = strategies["single_lock"]
    kept = type("Kept", (strategy.lock_type,), {"holder_died": Lock.holder_died})
    return type("Mistaken", (strategy,), {"lock_type": kept})


def robust_mutex_never_made_consistent(monkeypatch):
    module = importlib.import_module("variants.robust_mutex")
    monkeypatch.setattr(module.RobustMutex, "_revive", lambda self: 0)
    return type("Mistaken", (strategies["robust_mutex"],), {"refusal": classmethod(lambda cls: "")})


def semaphore_not_counted_anew():
    count = shmqueue.SharedTaskQueue.recover
    return type("Mistaken", (strategies["semaphore"],), {"_count_anew": lambda self: count(self, 0)})


def slot_state_that_forgets_what_was_taken_back():
    change = put("return int(self.words[lane + LANE_CLAIMED])", after=store("lane"))
    return mistaken_strategy(strategies["slot_state"], worker_lanes.WorkerLanes._head, change)


def worker_lanes_taken_back_and_left_there():
    return mistaken_strategy(strategies["worker_lanes"], worker_lanes.WorkerLanes._take_back, drop(store("START")))


MISTAKES = {
    "lockf": lockf_without_repair,
    "single_lock": single_lock_kept,
    "robust_mutex": robust_mutex_never_made_consistent,
    "semaphore": semaphore_not_counted_anew,
    "slot_state": slot_state_that_forgets_what_was_taken_back,
    "worker_lanes": worker_lanes_taken_back_and_left_there,
}


def suite(mistaken, folder):
    """Those tests that are likely to find a mistake."""
    for what in ("in the lock", "in the copy", "before the commit"):
        check_death(mistaken, folder / what, what, slow_echo)
    for number in range(1, 17):  # two claims, if the first finds nothing
        check_death(mistaken, folder / str(number), number)
    (folder / "door").mkdir()
    test_a_slow_task_keeps_no_other_from_its_outcome(mistaken, folder / "door", 3)


CLOSED_INSIDE = """
import sys
import shmqueue
from tests import jobs
from variants import strategies
for _ in range(5):
    supervisor = shmqueue.Supervisor([jobs.echo], workers=1, queue=strategies[sys.argv[1]], start_method="fork")
    assert len(list(supervisor.run([b"x"] * 10))) == 10
    if sys.argv[1] != "slot_state":  # it has no lock
        supervisor._queue._shut(0) if hasattr(supervisor._queue, "_shut") else supervisor._queue._enter(None)
    supervisor._stop()
print("done")
"""


def test_a_supervisor_may_end_while_it_has_the_lock(queue, tmp_path):
    """As after an interrupt there. What it leaves must not disturb the next one in this process."""
    name = next(name for name, strategy in strategies.items() if strategy is queue)
    (tmp_path / "ends.py").write_text(CLOSED_INSIDE)
    command = [sys.executable, str(tmp_path / "ends.py"), name]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.long
@pytest.mark.mistake
@pytest.mark.parametrize("name", MISTAKES)
def test_the_suite_finds_a_mistake(name, tmp_path, monkeypatch):
    if reason := getattr(strategies[name], "refusal", str)():
        pytest.skip(reason)
    mistake = MISTAKES[name]
    wrong = mistake(monkeypatch) if "monkeypatch" in mistake.__code__.co_varnames else mistake()
    with pytest.raises((AssertionError, TooLong, OSError, RuntimeError, shmqueue.SpoiledSegmentError)), limit(4):
        suite(wrong, tmp_path)
