"""A strategy made of nothing but what the docstrings of SharedTaskQueue and KernelLock say, and locks and topologies in
other combinations than those of variants/.
"""

import fcntl
import itertools
import os
import re
import time

import pytest

import shmqueue
from shmqueue import ring_spans
from tests import jobs
from tests.helpers import docstring_of
from tests.strategies import test_contract as contract
from tests.strategies import test_races as races
from variants import strategies
from variants.strategy import Lock, Strategy


class FileLock:
    """flock on a file beside the segment. Its word in the segment counts how often it was acquired."""

    size = 8

    def __init__(self, segment, number, offset, shared):
        self._path, self._words, self._word = segment.beside(f"lock{number}"), segment.words, offset // 8
        self.shared = shared

    @classmethod
    def refusal(cls):
        return ""

    def prepare(self, context):
        self.shared = "given to the workers"

    def acquire(self, timeout=None):
        assert self.shared == "given to the workers"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        since = time.monotonic()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if timeout is not None and time.monotonic() - since > timeout:
                    os.close(self._file)
                    return False
                time.sleep(0)
            else:
                self._words[self._word] += 1
                return True

    def release(self):
        os.close(self._file)

    def close(self):
        pass

    def holder_died(self, queue, living):
        pass


class OwnRing(Strategy):
    """A ring with positions in its own state, from which each claim takes three tasks at most."""

    strategy = "own_ring"
    lock_type = FileLock

    @classmethod
    def state_bytes(cls, num_slots, num_workers):
        return 16  # the words: pushed, claimed

    def prepare(self):
        pushed = self.state_offset // 8
        self.words[pushed] = self.words[pushed + 1] = 1000

    def room(self):
        return self.num_slots - self.backlog()

    def push(self, tasks):
        pushed = self.state_offset // 8
        span = (self.words[pushed], len(tasks))
        self._write(ring_spans(*span, self.num_slots), tasks)
        self._enter(None)
        self.words[pushed] = sum(span)
        self._leave()
        return [span]

    def claim(self, worker, limit):
        words, status, pushed = self.words, self.status[worker], self.state_offset // 8
        self._enter(worker)
        words[status + shmqueue.PUBLISHED] = words[status + shmqueue.CLAIMS]
        span = None
        if words[status + shmqueue.CLAIMS] - words[status + shmqueue.HARVESTED] < 2:
            span = (words[pushed + 1], min(3, limit, self.batch, words[pushed] - words[pushed + 1]))
        if span is None or span[1] <= 0 or words[status + shmqueue.LEAVE]:
            words[status + shmqueue.ASLEEP] = time.monotonic_ns()
            self._leave()
            return None
        self._fill_half(worker, span, ring_spans(*span, self.num_slots))
        words[pushed + 1] = sum(span)
        words[status + shmqueue.ASLEEP] = 0
        self._leave()
        return span

    def _repair_locked(self):
        claimed = self.words[self.state_offset // 8 + 1]
        for half in itertools.chain(*map(self.halves, range(self.num_workers))):
            self.words[half.end] = min(self.words[half.end], claimed)

    def harvest(self, harvested):
        self._enter(None)
        for status, count in zip(self.status, harvested, strict=True):
            self.words[status + shmqueue.HARVESTED] = count
        published = [self.words[status + shmqueue.PUBLISHED] for status in self.status]
        self.words[shmqueue.SUPERVISOR_ASLEEP] = 2 * (published == list(harvested))
        self._leave()
        return published

    def drain(self, worker=None):
        if worker is not None:
            return []
        self._enter(None)
        pushed, claimed = (self.words[self.state_offset // 8 + i] for i in range(2))
        self.words[self.state_offset // 8 + 1] = pushed
        self._leave()
        return [(claimed, pushed - claimed)] if claimed < pushed else []

    def backlog(self):
        return self.words[self.state_offset // 8] - self.words[self.state_offset // 8 + 1]


def documented(thing):
    return set(re.findall(r"\w+", docstring_of(thing)))


def test_the_docstring_names_every_hook_that_a_strategy_overrides():
    there = set(dir(shmqueue.SharedTaskQueue))
    names = documented(shmqueue.SharedTaskQueue) | set(vars(Strategy))
    for strategy in [OwnRing, *strategies.values()]:
        for base in {*strategy.__mro__[: strategy.__mro__.index(shmqueue.SharedTaskQueue)]} - {Strategy}:
            overridden = {name for name in vars(base) if name in there and not name.startswith("__")}
            assert overridden <= names, base
    own = {name for name in vars(FileLock) if not name.startswith("__")}
    assert own <= documented(Lock) | set(vars(Lock)) | set(vars(shmqueue.KernelLock))


def test_positions_and_locks_are_in_the_bytes_that_the_strategy_asked_for():
    queue = OwnRing.create(16, 128, 2, 4)
    before = queue.words[queue.state_offset // 8 + shmqueue.LINE // 8]
    queue.harvest([0, 0])
    assert queue.words[queue.state_offset // 8 + shmqueue.LINE // 8] == before + 1
    queue.close()
    shmqueue.remove_segment(queue.segment.path)


def test_of_several_locks_that_one_is_freed_whose_holder_died():
    freed = []

    class Numbered(Lock):
        def __init__(self, segment, number, offset, shared):
            super().__init__(segment, number, offset, shared)
            self.number = number

        def holder_died(self, queue, living):
            freed.append(self.number)

    class Three(Strategy):
        strategy = "three"
        lock_type = Numbered

        @classmethod
        def num_locks(cls, num_workers):
            return 3

    queue = Three.create(16, 128, 2, 8)
    queue.ask_why(0, 0.0, 1)
    queue.ask_why(0, 0.0)
    queue.close()
    shmqueue.remove_segment(queue.segment.path)
    assert freed == [1, 0]


@pytest.fixture(params=["own", ("worker_lanes", "single_lock"), ("semaphore", "robust_mutex")], ids=str)
def queue(request):
    """Each topology and each lock of variants/ in another combination. Neither knows which one it has."""
    if request.param == "own":
        return OwnRing
    topology, lock = (strategies[name] for name in request.param)
    combined = type("Combined", (topology,), {"lock_type": lock.lock_type})
    if reason := combined.refusal():
        pytest.skip(reason)
    return combined


def test_all_tasks_have_their_outcomes(queue, tmp_path, monkeypatch):
    contract.test_values_come_in_order_and_results_once(queue, 3, 64, None)
    contract.test_a_full_ring_takes_more_as_there_is_room(queue, tmp_path)
    contract.test_who_sleeps_is_woken(queue, monkeypatch)


@pytest.mark.parametrize("what", ["in the lock", "in the copy"])
def test_a_worker_is_killed_while_it_claims(queue, tmp_path, what):
    contract.check_death(queue, tmp_path / "flag", what, jobs.echo)


@pytest.mark.parametrize(
    "test",
    [
        contract.test_workers_killed_at_random,
        contract.test_workers_killed_stopped_and_halted_at_random,
        contract.test_cancelled_tasks_never_run,
        contract.test_pauses_in_a_stream_of_tasks_lose_and_repeat_nothing,
        contract.test_max_tasks_replaces_workers_and_repeats_nothing,
        contract.test_a_timeout_ends_one_task_and_no_other,
        contract.test_a_worker_told_to_leave_gives_back_its_lane,
    ],
)
def test_tasks_are_taken_back_and_workers_die(queue, tmp_path, test):
    test(queue, tmp_path)


@pytest.mark.parametrize("scene", races.SCENES)
@pytest.mark.parametrize("what", races.COMING)
def test_the_supervisor_comes_at_any_line_of_a_claim(what, scene, monkeypatch):
    monkeypatch.setattr(shmqueue, "LOCK_PATIENCE", -1.0)
    races.test_the_supervisor_comes_at_any_line_of_a_claim(OwnRing, what, scene)


@pytest.mark.parametrize("scene", races.SCENES)
def test_a_worker_dies_at_any_line_of_a_claim(scene, monkeypatch):
    monkeypatch.setattr(shmqueue, "LOCK_PATIENCE", -1.0)
    races.test_a_worker_dies_at_any_line_of_a_claim(OwnRing, scene)
