"""The ledger against a model: every task has one outcome, whatever is cut, halted, tried again, cancelled or dies.

The model is a dict that says of each task where it is: it waits, it pauses before another attempt, it is at a position
in the queue, or it has ended. No process and no shared memory takes part; the test plays the queue.
"""

import collections
import itertools
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmqueue import (
    NO_SOURCE,
    Block,
    Failure,
    Job,
    Ledger,
    OrderedJob,
    Retries,
    SpoiledSegmentError,
    TaskError,
    take_tasks,
)
from tests import jobs

WAITS, PAUSES = "waits", "pauses"
ITEMS = st.lists(st.sampled_from([b"payload", "text", (1, 2), object()]), max_size=6)
STATUSES = st.sampled_from(["failed", "timeout", "crashed"])
SIZES = st.integers(1, 5)


class LedgerModel(RuleBasedStateMachine):
    """Does with a ledger what an engine does, and keeps its own account.

    where: of each task without an outcome: WAITS, PAUSES, or its position.
    tries: its attempts that were not ok, and the status of the last one.
    ended: the status and the attempts of each task that has its outcome.
    """

    @initialize(most=st.sampled_from([2, 1, 0]), delay=st.sampled_from([1000.0, 0.0]))
    def begin(self, most, delay):
        self.most = most
        self.delay = delay
        self.ledger = Ledger({1: jobs.echo, 2: jobs.quiet}, Retries(most, delay, ["failed", "crashed"]), 2, None)
        self.jobs = [Job(NO_SOURCE), OrderedJob(NO_SOURCE, fn_id=1), Job(NO_SOURCE, fn_id=2)]
        self.payloads = {}
        self.owner = {}  # by tsk_id, also of those that have ended
        self.where = {}
        self.tries = collections.defaultdict(list)
        self.ended = {}
        self.delivered = [[] for _ in self.jobs]
        self.blocks = []  # (tsk_ids, how often it was freed)
        self.next_position = 0
        for number in range(3):  # so that there is something to do from the start
            self.admit(number, [b"first", "second", b"third"])
            self.push(3, cut=number, gap=0)

    # The model.

    def end(self, tsk_id, status, attempts):
        del self.where[tsk_id]
        self.ended[tsk_id] = (status, attempts)

    def end_early(self, tsk_id):
        """A task that nobody starts any more ends as cancelled, or as it was after its last attempt."""
        tries = self.tries.get(tsk_id, ())
        self.end(tsk_id, tries[-1] if tries else "cancelled", len(tries))

    def wait(self, tsk_id):
        self.where[tsk_id] = WAITS
        if self.is_over(tsk_id):
            self.end_early(tsk_id)

    def is_over(self, tsk_id):
        return self.ledger.stopping or self.owner[tsk_id].cancelled

    def places(self):
        return {place: tsk_id for tsk_id, place in self.where.items() if isinstance(place, int)}

    # Into the queue.

    @rule(number=st.integers(0, 2), items=ITEMS)
    def admit(self, number, items):
        job = self.jobs[number]
        first = self.ledger.next_id
        self.ledger.admit(job, items if job.fn_id else [(jobs.echo, item) for item in items])
        for tsk_id, item in enumerate(items, first):
            self.owner[tsk_id] = job
            self.payloads[tsk_id] = item
            self.where[tsk_id] = WAITS
            if type(item) is object:
                self.end(tsk_id, "failed", 0)
            else:
                self.wait(tsk_id)

    @rule(count=SIZES, cut=st.integers(0, 5), gap=st.integers(0, 1))
    def push(self, count, cut, gap):
        """As Engine.feed. A cut: the ring has wrapped, or a strategy has found free slots in two places."""
        waiting = self.ledger.again or self.ledger.fresh
        if not waiting:
            return
        fresh = waiting is self.ledger.fresh
        tasks = take_tasks(waiting, count)
        if fresh:
            self.add_block(tasks)
        self.place(tasks, min(cut, len(tasks)), gap)

    def place(self, tasks, cut, gap):
        size = len(tasks)
        spans = [(self.next_position, cut), (self.next_position + cut + gap, size - cut)]
        spans = [span for span in spans if span[1]]
        self.next_position += size + gap
        self.ledger.placed(tasks, spans)
        positions = [first + i for first, length in spans for i in range(length)]
        self.where.update(zip(tasks.tsk_ids, positions))

    def add_block(self, tasks):
        """As the packer does for payloads that do not fit their slots."""
        unused = collections.deque()
        tasks.block = Block(lambda: None, unused)
        self.blocks.append((list(tasks.tsk_ids), unused))

    # Out of the queue.

    def choose(self, data, most=6):
        """A run of positions that hold tasks without an outcome."""
        places = sorted(self.places())
        first = data.draw(st.sampled_from(places))
        count = 1
        while count < most and first + count in places:
            count += 1
        return first, data.draw(st.integers(1, count))

    @precondition(lambda self: self.places())
    @rule(data=st.data(), silent=st.booleans())
    def complete(self, data, silent):
        first, count = self.choose(data)
        places = self.places()
        tsk_ids = [places[first + i] for i in range(count)]
        self.ledger.complete(0, first, count, None if silent else tsk_ids, [0.0] * count, 0.0)
        for tsk_id in tsk_ids:
            self.end(tsk_id, "ok", len(self.tries.get(tsk_id, ())) + 1)

    @precondition(lambda self: self.places())
    @rule(data=st.data(), status=STATUSES)
    def charge(self, data, status):
        """A task fails, runs too long, or its worker dies."""
        position, _ = self.choose(data, most=1)
        tsk_id = self.places()[position]
        tries = self.tries[tsk_id]
        tries.append(status)
        again = len(tries) <= self.most and status != "timeout" and not self.is_over(tsk_id)
        self.ledger.charge(1, position, Failure("on purpose", status=status), 0.0, 0.0)
        if again:
            self.where[tsk_id] = PAUSES if self.delay else WAITS
        else:
            self.end(tsk_id, status, len(tries))

    @precondition(lambda self: self.places())
    @rule(data=st.data(), status=STATUSES)
    def charge_and_push(self, data, status):
        """The same, and the next attempt begins soon."""
        self.charge(data, status)
        self.pauses_end()
        self.push(5, cut=0, gap=0)

    @precondition(lambda self: self.places())
    @rule(data=st.data())
    def give_back(self, data):
        """A halt, a drain or a death: these have not begun."""
        first, count = self.choose(data)
        places = self.places()
        self.ledger.give_back(first, count)
        for position in range(first, first + count):
            self.wait(places[position])

    @rule()
    def pauses_end(self):
        self.ledger.take_due(math.inf)
        for tsk_id in [tsk_id for tsk_id, place in self.where.items() if place == PAUSES]:
            self.where[tsk_id] = WAITS

    # Cancelled.

    @rule(data=st.data())
    def cancel_any(self, data):
        self.cancel(data.draw(st.sampled_from(sorted(self.owner))))

    @precondition(lambda self: self.tries.keys() & self.where.keys())
    @rule(data=st.data())
    def cancel_one_that_was_tried(self, data):
        self.cancel(data.draw(st.sampled_from(sorted(self.tries.keys() & self.where.keys()))))

    def cancel(self, tsk_id):
        waits = self.where.get(tsk_id) in (WAITS, PAUSES)
        assert self.ledger.cancel(tsk_id) == (waits and tsk_id not in self.tries)
        if waits:
            self.end_early(tsk_id)

    @rule(number=st.integers(0, 2), rarely=st.sampled_from([True, False, False, False]))
    def close(self, number, rarely):
        """Nobody reads the results of this job any more, or nothing begins any more in any job."""
        self.read()
        if rarely:
            self.ledger.stopping = True
        else:
            self.jobs[number].cancelled = True
        self.ledger.drop_cancelled()
        for tsk_id, place in list(self.where.items()):
            if place in (WAITS, PAUSES) and self.is_over(tsk_id):
                self.end_early(tsk_id)

    @rule(position=st.integers(0, 30))
    def spoil(self, position):
        """An outcome for a position without a task, or a second one, is refused and changes nothing."""
        if position not in self.places():
            for outcome in (self.ledger.give_back, lambda *at: self.ledger.complete(0, *at, None, 0.0, 0.0)):
                with pytest.raises(SpoiledSegmentError):
                    outcome(position, 1)

    # What holds at any time.

    def read(self):
        for job, delivered in zip(self.jobs, self.delivered):
            while job.results:
                results = job.results.popleft()
                delivered.extend([results] if isinstance(results, TaskError) else results)

    @invariant()
    def accounts_agree(self):
        ledger = self.ledger
        assert ledger.in_queue() == len(self.places())
        assert ledger.unfinished() == len(self.where)
        for job in self.jobs:
            assert job.outstanding == sum(self.owner[tsk_id] is job for tsk_id in self.where)
        for tsk_id in self.owner:
            place = self.where.get(tsk_id)
            assert ledger.position(tsk_id) == (place if isinstance(place, int) else None)
        statuses = collections.Counter(status for status, _ in self.ended.values())
        assert +collections.Counter(ledger.tally.counts) == statuses
        assert all(attempts <= self.most + 1 for _, attempts in self.ended.values())

    @invariant()
    def a_block_is_unused_with_the_end_of_its_last_task(self):
        for tsk_ids, unused in self.blocks:
            assert len(unused) == self.where.keys().isdisjoint(tsk_ids)

    @invariant()
    def each_outcome_is_delivered_once(self):
        self.read()
        for job, delivered in zip(self.jobs, self.delivered):
            own = [tsk_id for tsk_id in self.owner if self.owner[tsk_id] is job]
            if job.cancelled:
                continue
            if isinstance(job, OrderedJob):
                ready = itertools.takewhile(self.ended.__contains__, own)
                self.check_ordered(list(ready), delivered)
            else:
                told = {result.tsk_id: (result.status, result.attempts) for result in delivered}
                assert len(told) == len(delivered)
                assert told == {tsk_id: self.ended[tsk_id] for tsk_id in own if tsk_id in self.ended}
                assert all(result.payload is self.payloads[result.tsk_id] for result in delivered)

    def check_ordered(self, ready, delivered):
        """Each value is the tsk_id of its task, or None."""
        assert len(delivered) == len(ready)
        for tsk_id, value in zip(ready, delivered):
            if isinstance(value, TaskError):
                assert (value.result.tsk_id, value.result.status) == (tsk_id, self.ended[tsk_id][0])
            else:
                assert self.ended[tsk_id][0] == "ok"
                assert value in (None, tsk_id)

    def teardown(self):
        """The run ends early: whatever has no outcome gets one."""
        if hasattr(self, "ledger"):
            self.ledger.end_all("cancelled", "the run has ended")
            for tsk_id in list(self.where):
                self.end_early(tsk_id)
            assert self.ended.keys() == self.owner.keys()
            self.accounts_agree()
            self.a_block_is_unused_with_the_end_of_its_last_task()
            self.each_outcome_is_delivered_once()


TestLedger = pytest.mark.promise("G1", "G2b")(LedgerModel.TestCase)
TestLedger.settings = settings(settings.default, max_examples=200, stateful_step_count=30)
