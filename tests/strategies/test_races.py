"""The hooks of every strategy, met at every line by another process, and killed at every line of a claim.

The supervisor's queue and a worker's are two objects on one segment, in one process. The traced one runs line by line;
at the n-th line the other does something whole, in a thread of its own, and waits where it has to wait for the first.
At the end, mistakes that only such a moment shows.
"""

from __future__ import annotations

import array
import itertools
import os
import sys
import threading
import time
import types

import pytest

import shmqueue
from tests.tools.mistakes import branch, call, drop, last, mistaken_strategy, more, never, part, put, store, without
from variants import slot_state, strategies
from variants.semaphore import SemaphoreQueue
from variants.slot_state import SlotState
from variants.worker_lanes import WorkerLanes

SLOTS, BATCH = 16, 4


@pytest.fixture(params=list(strategies))
def queue(request):
    strategy = strategies[request.param]
    if reason := getattr(strategy, "refusal", str)():
        pytest.skip(reason)
    return strategy


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    """A supervisor that waits says so at once, by `stuck`."""
    monkeypatch.setattr(shmqueue, "LOCK_PATIENCE", -1.0)


class Killed(BaseException):
    """What is traced dies here."""


class Other:
    """Does something in a thread of its own. It runs only while `go_on` waits for it."""

    current = None

    def __init__(self, work):
        self.done, self.error, self.result = False, None, None
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work):
        self._mine.acquire()
        try:
            self.result = work()
        except BaseException as error:
            self.error = error
        self.done = True
        self._theirs.release()

    def go_on(self):
        if not self.done:
            Other.current = self
            self._mine.release()
            self._theirs.acquire()
            Other.current = None
            if self.error is not None:
                raise self.error

    def wait(self):
        """Called by what it does: let the first go on."""
        self._theirs.release()
        self._mine.acquire()


def wait_for_the_first(*arguments):
    assert Other.current is not None, "the first waits for what waits for it"
    Other.current.wait()


class Lock:
    """One that the two share, since those of the kernel do not exclude within a process."""

    def __init__(self):
        self.taken = False

    def acquire(self, timeout=None):
        while self.taken:
            wait_for_the_first()
        self.taken = True
        return True

    def release(self):
        self.taken = False


class Pair:
    """A queue with two lanes, as its supervisor has it and as worker 0 does."""

    def __init__(self, strategy):
        self.strategy = strategy
        self.supervisor = strategy.create(SLOTS, 128, 2, BATCH)
        self.locks = None
        if strategy.strategy != "slot_state":
            several = isinstance(self.supervisor._lock, list)
            self.locks = [Lock(), Lock()] if several else Lock()
            self.supervisor._lock = self.locks
        self.supervisor.ask_why = wait_for_the_first
        self.begin()
        self.words, self.status = self.supervisor.words, self.supervisor.status[0]
        self.harvested, self.pushed, self.gone = 0, {}, []  # gone: the positions that are claimed or taken back

    def begin(self):
        """Start the worker's process."""
        self.worker = self.strategy.attach(self.supervisor.name, self.supervisor.primitives)
        if self.locks is not None:
            self.worker._lock = self.locks
        for queue in (self.supervisor, self.worker):
            list(map(queue.halves, range(queue.num_workers)))  # make them here: the lines that do it are of no interest
        for status in self.supervisor.status:
            self.supervisor.words[status + shmqueue.PID] = os.getpid()

    def push(self, count=2):
        ids = range(len(self.pushed) + 1, len(self.pushed) + count + 1)
        data = [b"%d" % number for number in ids]
        fn_ids = array.array("I", [1] * count)
        tasks = shmqueue.Tasks(None, list(ids), fn_ids, data, data, fn_ids)
        assert self.supervisor.ring.pack(tasks)
        places = self.supervisor.push(tasks)
        positions = [first + i for first, length in places for i in range(length)]
        self.pushed.update(zip(positions, ids, strict=True))
        assert len(self.pushed) == ids[-1], "a position was given twice"

    def claim(self):
        """What the worker claims, once it has been looked at; not counted as gone."""
        claim = self.worker.claim(0, BATCH)
        if claim is not None:
            first, count = claim
            half = self.worker.half(0, self.words[self.status + shmqueue.CLAIMS])
            ids = [half.lane.tsk_id(task) for task in range(count)]
            assert ids == [self.pushed[first + task] for task in range(count)], "other tasks than were pushed"
        return claim

    def take(self, *claims):
        self.gone += [first + i for first, count in filter(None, claims) for i in range(count)]

    def drain(self, worker=None):
        self.take(*self.supervisor.drain(worker))

    def harvest(self):
        """Take in all that is published, and tell it."""
        for _ in range(3):
            self.harvested = self.supervisor.harvest([self.harvested, 0])[0]

    def leave(self):
        self.supervisor.tell_to_leave(0)

    def sleep(self):
        """The worker's sleep, as the supervisor knows it once it has done something."""
        return [number for worker, number in self.supervisor.wakeable() if worker == 0]

    def settle(self):
        """Everything that was pushed has been claimed or taken back, once, and there is room for as much again."""
        self.drain()
        self.take_in_batches()
        assert sorted(self.gone) == sorted(self.pushed), "a task is lost, or there twice"
        self.worker.claim(0, BATCH)  # which publishes
        self.harvest()
        assert self.supervisor.room() == SLOTS, "slots are lost"
        self.push(SLOTS // 2)
        assert self.supervisor.backlog() == SLOTS // 2
        claim = self.claim()
        assert claim is not None, "nothing can be claimed any more"
        self.take(claim)
        self.drain()
        assert sorted(self.gone) == sorted(self.pushed)

    def take_in_batches(self):
        self.harvested = self.words[self.status + shmqueue.CLAIMS]

    def close(self):
        self.worker.close()
        self.supervisor.close()
        shmqueue.remove_segment(self.supervisor.segment.path)


def traced(work, at_line):
    """Run `work`, and call `at_line` before each line of the strategy's files; what it returns."""
    files = {
        shmqueue.__file__,
        *(sys.modules[kind.__module__].__file__ for kind in type(work.__self__.worker).__mro__[:-1]),
    }
    files |= {f"<{name}>" for name in ("variants.slot_state", "variants.worker_lanes", "variants.semaphore")}

    def line(frame, event, argument):
        if event == "line":
            at_line()
        return line

    def call(frame, event, argument):
        return line if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        return work()
    finally:
        sys.settrace(before)


SCENES = {
    "nothing there": lambda pair: None,
    "tasks": lambda pair: pair.push(10),
    "two batches unharvested": lambda pair: (pair.push(12), pair.take(pair.claim(), pair.claim())),
    "once around": lambda pair: [(pair.push(6), pair.take(pair.claim()), pair.claim_rest()) for _ in range(3)],
}


def claim_rest(pair):
    pair.drain()
    pair.take_in_batches()
    pair.worker.claim(0, 0)
    pair.harvest()


Pair.claim_rest = claim_rest


def meetings(strategy, scene, first, second):
    """Have `second` come at each line of `first`; yield the pair and what both returned."""
    for n in itertools.count(1):
        pair, lines = Pair(strategy), itertools.count(1)
        try:
            SCENES[scene](pair)
            other = Other(lambda pair=pair: second(pair))

            def at_line(other=other, lines=lines, n=n):
                if next(lines) >= n:
                    other.go_on()

            result = traced(getattr(pair, first), at_line)
            reached = other.done
            while not other.done:
                other.go_on()
            yield pair, result, other.result
            pair.settle()
        finally:
            pair.close()
        if not reached and next(lines) <= n:
            return
        assert n < 500


def then_sleep(what):
    """Do it as the supervisor does: afterwards it looks who sleeps."""

    def do(pair):
        what(pair)
        return pair.sleep()

    return do


def check_wake(pair, claim, sleep):
    """Who claimed nothing, although there is something by now, was seen to sleep."""
    if claim is None:
        number = pair.words[pair.status + shmqueue.ASLEEP]
        again = pair.claim()
        pair.take(again)
        assert again is None or number in sleep, "a wake-up is missed"


def harvest(pair):
    """Take in all that was claimed."""
    supervisor = pair.supervisor
    supervisor.harvest([pair.words[pair.status + shmqueue.CLAIMS], 0])
    assert supervisor.room() + supervisor.backlog() <= SLOTS, "a slot is free, and its task can still be claimed"


COMING = {
    "push": Pair.push,
    "push all there is room for": lambda pair: (pair.harvest(), pair.push(pair.supervisor.room())),
    "harvest": harvest,
    "drain": Pair.drain,
    "drain one": lambda pair: pair.drain(0),
    "leave": Pair.leave,
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("what", COMING)
def test_the_supervisor_comes_at_any_line_of_a_claim(queue, what, scene):
    for pair, claim, sleep in meetings(queue, scene, "claim", then_sleep(COMING[what])):
        pair.take(claim)
        check_wake(pair, claim, sleep)
        if what == "leave":
            assert pair.claim() is None
            pair.words[pair.status + shmqueue.LEAVE] = 0


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("what", ["push", "drain", "leave", "harvest"])
def test_a_worker_claims_at_any_line_of_what_the_supervisor_does(queue, what, scene):
    def claim(pair):
        there = pair.supervisor.backlog() > 0 and pair.supervisor.has_free_half(0)
        return there, pair.worker.claim(0, BATCH)

    for pair, _, (there, claimed) in meetings(queue, scene, what, claim):
        pair.take(claimed)
        check_wake(pair, claimed, pair.sleep())
        if what == "push" and there:
            assert claimed is not None, "tasks that are there cannot be claimed"
        if what == "leave":
            pair.words[pair.status + shmqueue.LEAVE] = 0


def extents(pair):
    """What a halt reads of a worker's batches."""
    words, halves = pair.words, pair.supervisor.halves(0)
    return words[pair.status + shmqueue.CLAIMS], [(words[half.first], words[half.end]) for half in halves]


@pytest.mark.parametrize("scene", SCENES)
def test_a_worker_is_known_to_be_claiming_wherever_its_batch_is_half_made(queue, scene):
    def look(pair):
        return pair.supervisor.is_claiming(0), extents(pair), pair.supervisor.backlog()

    pair = Pair(queue)
    SCENES[scene](pair)
    before = (extents(pair), pair.supervisor.backlog())
    pair.claim()
    after = (extents(pair), pair.supervisor.backlog())
    pair.close()
    seen = set()
    for pair, claim, (claiming, extent, backlog) in meetings(queue, scene, "claim", look):
        pair.take(claim)
        seen.add(claiming)
        assert claiming or (extent, backlog) in (before, after)
    assert seen == {False, True}


@pytest.mark.parametrize("scene", SCENES)
def test_a_worker_dies_at_any_line_of_a_claim(queue, scene):
    for n in itertools.count(1):
        pair, lines = Pair(queue), itertools.count(1)
        try:
            SCENES[scene](pair)

            def at_line(lines=lines, n=n):
                if next(lines) == n:
                    raise Killed

            claims, died = pair.words[pair.status + shmqueue.CLAIMS], False
            try:
                pair.take(traced(pair.claim, at_line))
            except Killed:
                died = True
            if died:
                reap(pair, claims)
            pair.settle()
        finally:
            pair.close()
        if not died:
            break
    assert n > 10


def reap(pair, claims):
    """What the supervisor does about a dead worker; before it knows, it harvests and pushes."""
    words, supervisor, held = pair.words, pair.supervisor, pair.locks
    for lock in held if isinstance(held, list) else [held] if held else []:
        lock.taken = False  # as the kernel does, or another lock
    supervisor.harvest([pair.harvested, 0])
    if supervisor.room():
        pair.push(1)
    supervisor.recover(0)
    assert not supervisor.is_claiming(0)
    for number in range(claims + 1, words[pair.status + shmqueue.CLAIMS] + 1):
        half = supervisor.half(0, number)
        pair.take((words[half.first], words[half.end] - words[half.first]))
    pair.take_in_batches()
    supervisor.reset(0)
    pair.drain(0)
    pair.worker.close()
    pair.begin()


def test_what_a_halt_takes_back_cannot_be_claimed_again(queue):
    pair = Pair(queue)
    try:
        pair.push(10)
        first, count = pair.claim()
        half = pair.supervisor.half(0, pair.words[pair.status + shmqueue.CLAIMS])
        assert count > 1
        pair.words[half.end] = first + 1  # a halt: the task in hand stays, the others go to the ledger
        pair.take((first, count), pair.claim())
        pair.settle()
    finally:
        pair.close()


@pytest.mark.parametrize("fate", [lambda pair: pair.supervisor.recover(0), Pair.leave], ids=["died", "is to leave"])
@pytest.mark.parametrize("name", ["slot_state", "worker_lanes"])
def test_nothing_is_dealt_to_a_worker_that(fate, name):
    """However much there is. Its lane has the positions below those of the other."""
    pair = Pair(strategies[name])
    try:
        pair.push(4)
        before = len(pair.pushed)
        fate(pair)
        pair.push(pair.supervisor.room())
        dealt = list(pair.pushed)[before:]
        assert len(dealt) == SLOTS // 2 - 2
        assert min(dealt) >= 1 << 48
    finally:
        pair.close()


@pytest.mark.timeout(60)
def test_a_self_test_of_slot_state_that_a_signal_handler_leaves_does_not_hang(monkeypatch):
    monkeypatch.setattr(slot_state, "time", types.SimpleNamespace(sleep=time.sleep, monotonic=sys.exit))
    with pytest.raises(SystemExit):
        slot_state.out_of_order.__wrapped__()


# Mistakes.


def found_by(test, *arguments):
    """The test that finds a mistake, called with the mistaken strategy."""
    return lambda queue: test(queue, *arguments)


# The head of a lane, read off the end of the last batch: a halt lowers that.
READ_OFF_END = """half = self.half(worker, self.words[self.status[worker] + shmqueue.CLAIMS])
return int(max(self.words[half.end], self.words[lane + START]))"""
AT_A_CLAIM, AT_THE_SUPERVISOR, A_DEATH = (
    test_the_supervisor_comes_at_any_line_of_a_claim,
    test_a_worker_claims_at_any_line_of_what_the_supervisor_does,
    test_a_worker_dies_at_any_line_of_a_claim,
)
FOUND = {
    "slot_state, done before the commit": (
        (SlotState._fill_half, put("self._set(worker, *span, DONE)", after=call("_fill_half"))),
        found_by(AT_A_CLAIM, "harvest", "tasks"),
    ),
    "slot_state, done before the copy": (
        (SlotState._fill_half, put("self._set(worker, *span, DONE)", before=call("_fill_half"))),
        found_by(AT_A_CLAIM, "push all there is room for", "tasks"),
    ),
    "slot_state, recovery without done": ((SlotState.recover, drop(call("_set", "DONE"))), found_by(A_DEATH, "tasks")),
    "slot_state, no second look": (
        (SlotState.claim, drop(last(call("_try_to_claim")))),
        found_by(AT_A_CLAIM, "push", "nothing there"),
    ),
    "slot_state, drain ignores claiming": (
        (SlotState._shut, never(branch("CLAIMING"))),
        found_by(AT_A_CLAIM, "drain", "tasks"),
    ),
    "slot_state, claim ignores shut": (
        (SlotState._ready, never(branch("SHUT"))),
        found_by(AT_THE_SUPERVISOR, "drain", "tasks"),
    ),
    "slot_state, half-made batch kept": ((WorkerLanes.recover, drop(store("end"))), found_by(A_DEATH, "tasks")),
    "slot_state, claiming not said": (
        (SlotState._try_to_claim, drop(store("claiming", 1))),
        found_by(test_a_worker_is_known_to_be_claiming_wherever_its_batch_is_half_made, "tasks"),
    ),
    "worker_lanes, harvest unlocked": (
        (WorkerLanes.harvest, drop(call("_shut"))),
        found_by(AT_A_CLAIM, "harvest", "two batches unharvested"),
    ),
    "worker_lanes, half-made batch kept": ((WorkerLanes.recover, drop(store("end"))), found_by(A_DEATH, "tasks")),
    "worker_lanes, leave not looked at": (
        (WorkerLanes._claim_head, without(part("LEAVE"))),
        found_by(AT_A_CLAIM, "leave", "tasks"),
    ),
    "worker_lanes, a third batch": (
        (WorkerLanes._claim_head, more(part("HARVESTED"))),
        lambda queue: test_no_third_batch_before_the_first_is_harvested(queue),
    ),
    "slot_state, claims read off the end": (
        (WorkerLanes._head, put(READ_OFF_END, after=store("lane"))),
        found_by(test_what_a_halt_takes_back_cannot_be_claimed_again),
    ),
    "worker_lanes, claims read off the end": (
        (WorkerLanes._head, put(READ_OFF_END, after=store("lane"))),
        found_by(test_what_a_halt_takes_back_cannot_be_claimed_again),
    ),
    "semaphore, tokens after the push": (
        (
            SemaphoreQueue.push,
            put("places = super().push(tasks)", before=call("post")),
            put("return places", after=call("post")),
        ),
        found_by(AT_THE_SUPERVISOR, "push", "nothing there"),
    ),
    "semaphore, not counted anew": ((SemaphoreQueue._count_anew, drop(call("post"))), found_by(A_DEATH, "tasks")),
    "semaphore, a drain keeps the tokens": (
        (SemaphoreQueue.drain, drop(call("post"))),
        found_by(AT_A_CLAIM, "drain", "tasks"),
    ),
}


def test_no_third_batch_before_the_first_is_harvested(queue):
    pair = Pair(queue)
    try:
        SCENES["two batches unharvested"](pair)
        assert pair.claim() is None
        pair.supervisor.harvest([1, 0])
        claim = pair.claim()
        assert claim is not None
        pair.take(claim)
        pair.settle()
    finally:
        pair.close()


@pytest.mark.mistake
@pytest.mark.parametrize("name", FOUND)
def test_a_mistake_is_found(name):
    strategy = name.partition(",")[0]
    if reason := strategies[strategy].refusal():
        pytest.skip(reason)
    (function, *changes), test = FOUND[name]
    with pytest.raises(AssertionError):
        test(mistaken_strategy(strategies[strategy], function, *changes))
