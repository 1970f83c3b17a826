"""The product's code under every interleaving, with kills at every step; and deliberate mistakes, which are found."""

import collections
import functools

import pytest
from explorer import SCENARIOS, Bounds, explore, first_failure

import shmqueue
from shmqueue import (
    ASLEEP,
    CLAIMED,
    DIRTY,
    END,
    FIRST,
    HARVESTED,
    PROGRESS,
    PUBLISHED,
    PUSHED,
    RECORDS,
    Engine,
    Ledger,
    SharedTaskQueue,
    Worker,
)
from variants import strategies

SMALL = [Bounds(0, 1), Bounds(1, 0)]
LARGE = [
    ("mixed", Bounds(1, 1)),
    ("mixed", Bounds(0, 2)),
    ("nothing returned", Bounds(2, 0)),
    ("two tasks retried", Bounds(0, 2)),
]


@pytest.mark.parametrize("bounds", SMALL, ids=str)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_goes_wrong(name, bounds):
    check(name, bounds)


@pytest.mark.parametrize(("name", "bounds"), LARGE, ids=str)
def test_no_schedule_goes_wrong_within_larger_bounds(name, bounds):
    check(name, bounds)


def check(name, bounds):
    report = explore(SCENARIOS[name], bounds)
    print(f"{name}, {bounds}: {report.schedules:,} schedules, {report.states:,} states")
    assert report.failure is None, str(report.failure)
    assert report.complete
    assert report.schedules > 20


def test_workers_are_killed_before_every_kind_of_step():
    kinds, kills = set(), collections.Counter()
    for name, bounds in (("mixed", Bounds(0, 1)), ("paused", Bounds(0, 1)), ("one task", Bounds(0, 2))):
        report = explore(SCENARIOS[name], bounds, kill_anywhere=True)
        assert report.failure is None, str(report.failure)
        kinds |= report.kinds
        kills += report.kills
    assert set(kills) == kinds | {"start"}
    words = ("DIRTY", "FIRST", "END", "PROGRESS", "CLAIMED", "RECORDS", "PUBLISHED", "ASLEEP")
    assert {f"store {word}" for word in words} < set(kills)
    assert {"lock", "unlock", "call", "copy to the lane", "write an outcome", "sleep", "ring the bell"} < set(kills)
    assert kills["read END"] > 0  # inside a repair, which is the only place where workers read it


def test_a_schedule_that_goes_wrong_is_told_step_by_step():
    failure = first_failure([SCENARIOS["mixed"]], queue=WithoutRepair)
    assert "KILLED" in str(failure)
    assert "nobody goes on" in str(failure) or "no task is" in str(failure)


# Mistakes. Each is the product's own code with something left out, or in another order.


class CommitsFirst(SharedTaskQueue):
    """Stores `claimed` before `end`: a death in between loses the tasks."""

    def claim(self, worker, limit):
        return claim(self, worker, limit, order=(FIRST, PROGRESS, CLAIMED, END))


class ForgetsProgress(SharedTaskQueue):
    """Leaves `progress` where the last batch ended."""

    def claim(self, worker, limit):
        return claim(self, worker, limit, order=(FIRST, END, CLAIMED))


class ProgressAfterCommit(SharedTaskQueue):
    """Says what is in hand only once the claim is committed."""

    def claim(self, worker, limit):
        return claim(self, worker, limit, order=(END, CLAIMED, FIRST, PROGRESS))


class ReleasesEarly(SharedTaskQueue):
    """Lets go of the lock before the claim is committed."""

    def claim(self, worker, limit):
        return claim(self, worker, limit, order=(FIRST, PROGRESS, END, "release", CLAIMED))


class CopiesLate(SharedTaskQueue):
    """Copies the tasks out of the ring after letting go of the lock."""

    def claim(self, worker, limit):
        return claim(self, worker, limit, order=(FIRST, PROGRESS, END, CLAIMED, "release", "copy"))


class NeverSaysAsleep(SharedTaskQueue):
    def claim(self, worker, limit):
        return claim(self, worker, limit, asleep="never")


class CountsNoFreeSlots(SharedTaskQueue):
    """Writes over outcomes that were not read."""

    def claim(self, worker, limit):
        return claim(self, worker, limit, free=1000)


class PublishesLater(SharedTaskQueue):
    """Stores `published` without the lock."""

    def claim(self, worker, limit):
        self.words[self.status[worker] + PUBLISHED] = self.words[self.status[worker] + RECORDS]
        return claim(self, worker, limit)


def claim(queue, worker, limit, order=(FIRST, PROGRESS, END, CLAIMED), asleep="", free=None):
    """SharedTaskQueue.claim, with its stores in this order."""
    words, status = queue.words, queue.status[worker]
    queue._enter(worker)
    records = words[status + PUBLISHED] = words[status + RECORDS]
    first = words[CLAIMED]
    available = words[PUSHED] - first
    free = free or 2 * queue.batch - (records - words[status + HARVESTED])
    count = min(queue.batch, free, queue.share(available, limit))
    if count > 0:
        if "copy" not in order:
            queue._copy_to_lane(worker, shmqueue.pieces(first, count, queue.num_slots))
        for step in order:
            if step == "release":
                words[status + ASLEEP] = 0
                queue._leave()
            elif step == "copy":
                queue._copy_to_lane(worker, shmqueue.pieces(first, count, queue.num_slots))
            else:
                words[step if step == CLAIMED else status + step] = first + count * (step in (END, CLAIMED))
        if "release" in order:
            return first, count
        words[status + ASLEEP] = 0
        queue._leave()
        return first, count
    queue._sleeps += 1
    if not asleep:
        words[status + ASLEEP] = queue._sleeps
    queue._leave()
    if asleep == "late":
        words[status + ASLEEP] = queue._sleeps
    return None


class WithoutRepair(SharedTaskQueue):
    def _repair_locked(self):
        pass


class WithoutDirty(SharedTaskQueue):
    """Does not sign that it is inside, so that nobody knows that there is something to repair."""

    def _enter(self, worker):
        self._lock.acquire()


class CleanBeforeRepair(SharedTaskQueue):
    """Clears `dirty` before the repair: a death inside it leaves half of it."""

    def _repair_locked(self):
        self.words[DIRTY] = 0
        super()._repair_locked()


class SignsLate(SharedTaskQueue):
    """Clears `dirty` after letting go of the lock, when another may have signed."""

    def _leave(self):
        self._lock.release()
        self.words[DIRTY] = 0


class HarvestsUnlocked(SharedTaskQueue):
    """Reads `published` without the lock."""

    def harvest(self, harvested):
        super().harvest(harvested)
        return [self.words[status + PUBLISHED] for status in self.status]


class HarvestsTooFar(SharedTaskQueue):
    """Reads what is not published yet."""

    def harvest(self, harvested):
        super().harvest(harvested)
        return [self.words[status + RECORDS] for status in self.status]


class PushesUnlocked(SharedTaskQueue):
    def push(self, tasks):
        first, count = self._pushed, len(tasks.data)
        self._write(shmqueue.pieces(first, count, self.num_slots), tasks)
        self.words[PUSHED] = self._pushed = first + count
        return [(first, count)]


class WritesTheRingLate(SharedTaskQueue):
    """Moves `pushed` before the slots are written."""

    def push(self, tasks):
        first, count = self._pushed, len(tasks.data)
        self._enter(None)
        self.words[PUSHED] = self._pushed = first + count
        self._leave()
        self._write(shmqueue.pieces(first, count, self.num_slots), tasks)
        return [(first, count)]


class NeverSaysTheSupervisorSleeps(SharedTaskQueue):
    def harvest(self, harvested):
        published = super().harvest(harvested)
        self.words[shmqueue.SUPERVISOR_ASLEEP] = 0
        return published


class RecoversUnlocked(SharedTaskQueue):
    """Reads a dead worker's lane without having had the lock."""

    def recover(self, worker):
        return self._clear(worker)


class KeepsTheLane(SharedTaskQueue):
    """Does not empty a dead worker's lane: its successor's death counts it again."""

    def _clear(self, worker):
        remains = self.remains(worker)
        self.words[self.status[worker] + PUBLISHED] = remains.records
        self.words[self.status[worker] + ASLEEP] = 0
        return remains


class KeepsFirst(SharedTaskQueue):
    """Leaves `first` of a dead worker's lane."""

    def _clear(self, worker):
        first = self.words[self.status[worker] + FIRST]
        remains = super()._clear(worker)
        self.words[self.status[worker] + FIRST] = first
        return remains


class ChargesNobody(SharedTaskQueue):
    """Takes the task in hand for one that never began."""

    def remains(self, worker):
        remains = super().remains(worker)
        return remains._replace(begun=remains.done)


class ChargesTheNext(SharedTaskQueue):
    """Takes the task after the one in hand for it."""

    def remains(self, worker):
        remains = super().remains(worker)
        later = remains.done < remains.begun < remains.end
        return remains._replace(done=remains.done + later, begun=remains.begun + later)


class TrustsProgressAlone(SharedTaskQueue):
    """Does not ask the last outcome slot, which may be ahead of progress."""

    def remains(self, worker):
        status, remains = self.status[worker], super().remains(worker)
        done = min(remains.end, self.words[status + PROGRESS])
        return remains._replace(done=done, begun=min(remains.end, done + 1))


class CountsOutcomesFirst(Worker):
    """Stores `records` before the outcome slot is written."""

    def __init__(self, queue, index, *arguments):
        outcomes, words, records = queue.outcomes[index], queue.words, queue.status[index] + RECORDS
        outcomes.pack = functools.partial(self._early, outcomes.pack, words, records)
        super().__init__(queue, index, *arguments)

    def _early(self, pack, words, records, *outcome):
        words[records] += 1
        pack(*outcome)


class ProgressFirst(Worker):
    """Moves `progress` before the outcome is written."""

    def __init__(self, queue, index, *arguments):
        outcomes, words, progress = queue.outcomes[index], queue.words, queue.status[index] + PROGRESS
        outcomes.pack = functools.partial(self._late, outcomes.pack, words, progress)
        super().__init__(queue, index, *arguments)

    def _late(self, pack, words, progress, buffer, at, position, count, *outcome):
        words[progress] = max(words[progress], position + count)
        pack(buffer, at, position, count, *outcome)


class NeverRings(Worker):
    def serve(self):
        self._ring = lambda: None
        super().serve()


class SaysAsleepLast(Worker):
    """Stores its asleep word after it has rung the supervisor."""

    def serve(self):
        queue, words, asleep, poll = self._queue, self._words, self._status + ASLEEP, shmqueue.select.poll()
        while not self._leaving:
            claim = queue.claim(self._index, self._claimable())
            number, words[asleep] = words[asleep], 0
            if words[shmqueue.SUPERVISOR_ASLEEP]:
                self._ring()
            words[asleep] = number
            if claim is None:
                poll.poll(1000)
            else:
                self.run(*claim)


class RunsWhatIsReturned(Worker):
    """Gives a batch back and runs it all the same."""

    def _give_back(self, position, count):
        super()._give_back(position, count)
        if self._payloads == []:
            self.run(position, count)


class ForgetsToGiveBack(Worker):
    def _give_back(self, position, count):
        self._words[self._status + PROGRESS] = position + count


class ChargesWrong(Ledger):
    """Charges the task before the one in hand where there is one."""

    def charge(self, worker, position, status, error, seconds):
        super().charge(worker, max(self._placed[0].first, position - 1), status, error, seconds)


class ForgetsWhatWasQuiet(Engine):
    """Does not remember what it took in without outcomes while the worker was stopped."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        take_in = self._harvester.take_in

        def forgetful(handle, remains):
            take_in(handle, remains)
            handle.quiet = 0

        self._harvester.take_in = forgetful


class RingsOnce(Engine):
    """Rings a worker for its first sleep only."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        wakeable = self._queue.wakeable
        self._queue.wakeable = lambda: [(worker, 1) for worker, _ in wakeable()]


NO_KILL, ONE_KILL, TWO_KILLS, ONE_PREEMPTION = Bounds(0, 0), Bounds(0, 1), Bounds(0, 2), Bounds(1, 0)
NOTHING, VALUES, PAUSED, SMALL_RING = (
    SCENARIOS[name] for name in ("nothing returned", "values", "paused", "small ring")
)
MISTAKES = [
    ("queue", CommitsFirst, NOTHING, ONE_KILL),
    ("queue", ForgetsProgress, SCENARIOS["one at a time"], ONE_KILL),
    ("queue", ProgressAfterCommit, SCENARIOS["one at a time"], ONE_KILL),
    ("queue", ReleasesEarly, NOTHING, ONE_KILL),
    ("queue", CopiesLate, SMALL_RING, ONE_PREEMPTION),
    ("queue", NeverSaysAsleep, NOTHING, NO_KILL),
    ("queue", CountsNoFreeSlots, SCENARIOS["one at a time"], NO_KILL),
    ("queue", PublishesLater, NOTHING, NO_KILL),
    ("queue", WithoutRepair, NOTHING, ONE_KILL),
    ("queue", WithoutDirty, NOTHING, ONE_KILL),
    ("queue", CleanBeforeRepair, NOTHING, TWO_KILLS),
    ("queue", SignsLate, NOTHING, NO_KILL),
    ("queue", HarvestsUnlocked, NOTHING, NO_KILL),
    ("queue", HarvestsTooFar, NOTHING, NO_KILL),
    ("queue", PushesUnlocked, NOTHING, ONE_PREEMPTION),
    ("queue", WritesTheRingLate, NOTHING, ONE_PREEMPTION),
    ("queue", NeverSaysTheSupervisorSleeps, NOTHING, NO_KILL),
    ("queue", RecoversUnlocked, SCENARIOS["one task"], Bounds(1, 1)),
    ("queue", KeepsTheLane, NOTHING, TWO_KILLS),
    ("queue", KeepsFirst, NOTHING, TWO_KILLS),
    ("queue", ChargesNobody, NOTHING, ONE_KILL),
    ("queue", ChargesTheNext, NOTHING, ONE_KILL),
    ("queue", TrustsProgressAlone, VALUES, ONE_KILL),
    ("worker", CountsOutcomesFirst, VALUES, ONE_KILL),
    ("worker", ProgressFirst, VALUES, ONE_KILL),
    ("worker", NeverRings, NOTHING, NO_KILL),
    ("worker", SaysAsleepLast, SCENARIOS["one worker"], ONE_PREEMPTION),
    ("worker", RunsWhatIsReturned, PAUSED, ONE_KILL),
    ("worker", ForgetsToGiveBack, PAUSED, ONE_KILL),
    ("ledger", ChargesWrong, NOTHING, ONE_KILL),
    ("engine", ForgetsWhatWasQuiet, SCENARIOS["one worker looked behind"], Bounds(1, 1)),
    ("engine", RingsOnce, SMALL_RING, ONE_PREEMPTION),
]


@pytest.mark.parametrize("name", [name for name in SCENARIOS if "looked behind" not in name and name != "paused"])
@pytest.mark.parametrize("strategy", strategies)
def test_every_strategy_bears_a_kill_or_a_preemption_anywhere(strategy, name):
    """Where a strategy keeps words of its own, any access may matter. A lock goes with its holder here: what happens
    where the kernel does not see to that is for the contract suite."""
    for bounds in (ONE_KILL, ONE_PREEMPTION):
        options = {"ordered": False, "one_ring": False, "every": True}
        report = explore(SCENARIOS[name], bounds, queue=strategies[strategy], **options)
        assert report.failure is None, report.failure
        assert report.complete


@pytest.mark.parametrize(
    ("part", "mistake", "scenario", "bounds"), MISTAKES, ids=[mistake.__name__ for _, mistake, _, _ in MISTAKES]
)
def test_a_mistake_is_found(part, mistake, scenario, bounds):
    failure = explore(scenario, bounds, **{part: mistake}).failure
    assert failure is not None
    print(failure)
