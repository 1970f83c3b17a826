"""The product's code under every interleaving, with kills, halts and foreign signals at every step; and deliberate
mistakes, which are found.
"""

import collections
import inspect
import textwrap

import pytest

import shmqueue
from shmqueue import (
    CLAIMS,
    DIRTY,
    PUBLISHED,
    PUSHED,
    SUPERVISOR_ASLEEP,
    Heap,
    LaneReader,
    Ledger,
    SharedTaskQueue,
    Worker,
    WorkerEngine,
    WorkerPool,
    WorkerProcess,
)
from tests.tools.explorer import SCENARIOS, Bounds, explore, first_failure
from variants import strategies

pytestmark = pytest.mark.timeout(900)  # these tests do nothing but compute
ONE_KILL, TWO_KILLS, ONE_PREEMPTION = Bounds(kills=1), Bounds(kills=2), Bounds(preemptions=1)
ONE_HALT, TWO_HALTS, ONE_CONT = Bounds(halts=1), Bounds(halts=2), Bounds(halts=1, conts=1)
ONE_EACH, KILLED_IN_A_HALT = Bounds(preemptions=1, kills=1), Bounds(kills=1, halts=1)
SMALL = [ONE_KILL, ONE_PREEMPTION, ONE_HALT]
LARGE = [
    ("one task", ONE_EACH),
    ("one task", TWO_KILLS),
    ("one worker", ONE_EACH),
    ("one worker", TWO_KILLS),
    ("one worker, cancelled", ONE_EACH),
    ("one worker, cancelled", TWO_KILLS),
    ("one worker, files", TWO_KILLS),
    ("two batches", KILLED_IN_A_HALT),
    ("two batches", TWO_HALTS),
    ("one batch", TWO_HALTS),
    ("two in a batch", ONE_CONT),
    ("two in a batch", Bounds(kills=1, halts=1, slows=1)),
]
LARGEST = [  # by `tox -e explorer`
    pytest.param(name, bounds, marks=pytest.mark.large)
    for name, bounds in [
        ("two tasks cancelled", ONE_EACH),
        ("two tasks", ONE_EACH),
        ("two tasks", TWO_KILLS),
        ("two tasks retried", ONE_EACH),
    ]
]


@pytest.mark.parametrize("bounds", SMALL, ids=str)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_goes_wrong(name, bounds):
    check(name, bounds)


@pytest.mark.parametrize(("name", "bounds"), LARGE + LARGEST, ids=str)
def test_no_schedule_goes_wrong_within_larger_bounds(name, bounds):
    check(name, bounds)


def check(name, bounds):
    report = explore(SCENARIOS[name], bounds)
    print(f"{name}, {bounds}: {report.schedules:,} schedules, {report.states:,} states")
    assert report.failure is None, str(report.failure)
    assert report.complete
    assert report.schedules > 20


def test_workers_are_killed_and_halted_before_every_kind_of_step():
    kinds, kills, halts = set(), collections.Counter(), collections.Counter()
    for name in ("mixed", "one worker, files", "few tasks each"):
        report = explore(SCENARIOS[name], ONE_KILL, kill_anywhere=True)
        assert report.failure is None, str(report.failure)
        kinds |= report.kinds
        kills += report.kills
        halts += explore(SCENARIOS[name], ONE_HALT).halts
    assert set(kills) == kinds | {"start"}
    words = ("DIRTY", "FIRST", "END", "CLAIMS", "CLAIMED", "PUBLISHED", "ASLEEP", "LEAVING", "SPECIAL", "BEGAN")
    steps = {f"store {what}" for what in (*words, "ends", "stamps", "the log", "all ends")}
    steps |= {"lock", "unlock", "call", "copy to the lane", "read the clock", "sleep", "ring the bell", "write a file"}
    assert steps < set(kills)
    unmoved = {"store all ends", "store PUBLISHED", "copy to the lane", "sleep", "ring the bell"}  # as one step before
    assert steps - unmoved < set(halts)


def test_a_schedule_that_goes_wrong_is_told_step_by_step():
    failure = first_failure([SCENARIOS["mixed"]], parts=[WithoutRepair])
    assert "KILLED" in str(failure)
    assert "nobody goes on" in str(failure) or "no task is" in str(failure)


# Mistakes. Each is the product's own code with something left out, or in another order.


def changed(function, *changes):
    """The product's function with pieces of its text exchanged: (old, new, ...); it has each old one once."""
    text = inspect.getsource(function)
    for old, new in zip(changes[0::2], changes[1::2], strict=True):
        assert text.count(old) == 1, f"{function.__qualname__} has {text.count(old)} times: {old}"
        text = text.replace(old, new)
    made = {}
    exec(compile(textwrap.dedent(text), __file__, "exec"), vars(shmqueue), made)  # noqa: S102
    return made[function.__name__]


class CommitsFirst(SharedTaskQueue):
    """Stores `claimed` before the batch: a death in between loses the tasks."""

    claim = changed(
        SharedTaskQueue.claim,
        "            self._fill_half(worker, span, ring_spans(first, count, self.num_slots))\n",
        "            words[CLAIMED] = span.end\n"
        "            self._fill_half(worker, span, ring_spans(first, count, self.num_slots))\n",
    )


class ClaimsLast(SharedTaskQueue):
    """Counts the batch after the commit point: a death in between loses the tasks."""

    _fill_half = changed(SharedTaskQueue._fill_half, "words[claims] = number", "pass")
    claim = changed(
        SharedTaskQueue.claim,
        "            words[status + ASLEEP] = 0\n",
        "            words[status + CLAIMS] = claims + 1\n            words[status + ASLEEP] = 0\n",
    )


class KeepsOldEnds(SharedTaskQueue):
    """Does not zero the `ends` of the batch before the last."""

    _fill_half = changed(SharedTaskQueue._fill_half, "half.clear(span.count)", "pass")


class ReleasesEarly(SharedTaskQueue):
    """Lets go of the lock before the claim is committed."""

    claim = changed(
        SharedTaskQueue.claim,
        "            words[CLAIMED] = span.end ",
        "            self._leave()\n            words[CLAIMED] = span.end ",
        "        self._leave()\n        return span",
        "        count or self._leave()\n        return span",
    )


class CopiesLate(SharedTaskQueue):
    """Copies the tasks out of the ring after letting go of the lock."""

    _fill_half = changed(SharedTaskQueue._fill_half, "self._copy_to_lane(half, places)", "pass")

    def claim(self, worker, limit):
        claim = super().claim(worker, limit)
        if claim is not None:
            half = self.half(worker, self.words[self.status[worker] + CLAIMS])
            self._copy_to_lane(half, shmqueue.ring_spans(*claim, self.num_slots))
        return claim


class ClaimsAThirdBatch(SharedTaskQueue):
    """Claims where two batches have not been harvested: writes over outcomes that were not read."""

    claim = changed(SharedTaskQueue.claim, "< 2 and not", "< 3 and not")


class NeverSaysAsleep(SharedTaskQueue):
    claim = changed(SharedTaskQueue.claim, "words[status + ASLEEP] = self._sleeps", "pass")


class PublishesUnlocked(SharedTaskQueue):
    def claim(self, worker, limit):
        self.words[self.status[worker] + PUBLISHED] = self.words[self.status[worker] + CLAIMS]
        return super().claim(worker, limit)


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
        return [self.words[status + CLAIMS] for status in self.status]


class NeverTellsHarvested(SharedTaskQueue):
    harvest = changed(SharedTaskQueue.harvest, "words[status + HARVESTED] = count", "pass")


class PushesUnlocked(SharedTaskQueue):
    push = changed(SharedTaskQueue.push, "self._enter(None)", "pass", "self._leave()", "pass")


class WritesTheRingLate(SharedTaskQueue):
    """Moves `pushed` before the slots are written."""

    def push(self, tasks):
        first, count = self._pushed, len(tasks.data)
        self._enter(None)
        self.words[PUSHED] = self._pushed = first + count
        self._leave()
        self._write(shmqueue.ring_spans(first, count, self.num_slots), tasks)
        return [(first, count)]


class NeverSaysTheSupervisorSleeps(SharedTaskQueue):
    def harvest(self, harvested):
        published = super().harvest(harvested)
        self.words[SUPERVISOR_ASLEEP] = 0
        return published


class DrainsWhatStays(SharedTaskQueue):
    """Takes back what is in the ring and leaves it there."""

    drain = changed(SharedTaskQueue.drain, "words[CLAIMED] = self._claimed = words[PUSHED]", "pass")


class RecoversUnlocked(SharedTaskQueue):
    """Reads a dead worker's batches without having had the lock."""

    def recover(self, worker):
        pass


class KeepsPublished(SharedTaskQueue):
    """Leaves `published` of a dead worker."""

    reset = changed(SharedTaskQueue.reset, "words[status + PUBLISHED] = ", "")


class KeepsAsleep(SharedTaskQueue):
    """Leaves the asleep word of a dead worker."""

    reset = changed(SharedTaskQueue.reset, "words[status + ASLEEP] = 0", "pass")


class KeepsLeaving(SharedTaskQueue):
    """Leaves `leaving` of a dead worker: nothing of its successor's would ever be charged."""

    reset = changed(SharedTaskQueue.reset, "words[status + LEAVING] = NEVER", "pass")


class HaltsInsideTheLock(SharedTaskQueue):
    """Halts a worker in the midst of a claim."""

    def is_claiming(self, worker):
        return False


class EndBeforeClock(Worker):
    """Looks at `end` before the first look at the clock: a stop in between goes unseen."""

    run = changed(
        Worker.run,
        "    last = began = half.began[0] = clock()\n        stop = words[end] - first\n",
        "    stop = words[end] - first\n        last = began = half.began[0] = clock()\n",
    )


class CommitsAfterClock(Worker):
    """Commits a task after the look at the clock: after a stop in between it begins the next one."""

    run = changed(
        Worker.run,
        "                before, last = last, clock()\n",
        "",
        "                if value is None:\n",
        "                before, last = last, clock()\n                if value is None:\n",
    )


class NeverLooksAtEnd(Worker):
    run = changed(Worker.run, "if words[end] - first < stop:", "if False:")


class KeepsItsOldBound(Worker):
    """Sees that `end` was drawn back, and goes on all the same."""

    run = changed(
        Worker.run,
        "            done = task + 1\n            stop = words[end] - first\n",
        "            done = task + 1\n",
    )


class CommitsBeforeTheValue(Worker):
    """Stores `ends` before the value is in the log."""

    run = changed(
        Worker.run,
        "                    log[at:after] = value\n                    ends[task] = at = after\n",
        "                    ends[task] = after\n"
        "                    log[at:after] = value\n                    at = after\n",
    )


class CountsRecordsLate(Worker):
    """Counts a record after it is committed."""

    _put_record = changed(Worker._put_record, "self._words[half.special] += 1", "pass")
    run = changed(
        Worker.run,
        "                    ends[task] = at | RECORD\n",
        "                    ends[task] = at | RECORD\n                    words[half.special] += 1\n",
    )


class LeavesUnsaid(Worker):
    """Leaves after TERMINATE without having said that nothing behind it begins."""

    _leave_before = changed(Worker._leave_before, "self._words[self._status + LEAVING] = self._first + task", "pass")


class NeverRings(Worker):
    def serve(self):
        self._ring = lambda: None
        super().serve()


class RingsBeforeItPublishes(Worker):
    """Looks whether the supervisor sleeps before it claims, and so publishes."""

    serve = changed(
        Worker.serve,
        "            claim = queue.claim(self._index, limit)\n",
        "",
        "            if claim is not None:\n",
        "            claim = queue.claim(self._index, limit)\n            if claim is not None:\n",
    )


class SaysAsleepLast(Worker):
    """Stores its asleep word after it has rung the supervisor."""

    serve = changed(
        Worker.serve,
        "            if words[SUPERVISOR_ASLEEP]:\n                self._ring()\n",
        "            asleep = self._status + ASLEEP\n"
        "            number, words[asleep] = words[asleep], 0\n"
        "            if words[SUPERVISOR_ASLEEP]:\n                self._ring()\n"
        "            words[asleep] = number\n",
    )


class TakesTheOneInHand(LaneReader):
    """A halt takes back the task in hand as well."""

    _draw_back = changed(
        LaneReader._draw_back,
        "words[half.end] = min(words[half.end], in_hand + 1)",
        "words[half.end] = min(words[half.end], in_hand)",
        "    self.bound = in_hand + 1\n        self._ledger.give_back(in_hand + 1, bound - in_hand - 1)\n",
        "    self.bound = in_hand\n        self._ledger.give_back(in_hand, bound - in_hand)\n",
    )


class NeverMovesTaken(LaneReader):
    _settle = changed(LaneReader._settle, "            self.settled_below = start + done\n", "            pass\n")


class IgnoresTaken(LaneReader):
    """Takes in again what a halt has taken in."""

    _read = changed(LaneReader._read, "start = max(first, self.settled_below)", "start = first")


class StopsShortly(LaneReader):
    """Stops a worker for less than QUIET_SECONDS."""

    _draw_back = changed(LaneReader._draw_back, "stand_for(2 * QUIET_SECONDS)", "stand_for(QUIET_SECONDS / 2)")


class NeverWaits(LaneReader):
    _draw_back = changed(LaneReader._draw_back, "process.stand_for(2 * QUIET_SECONDS)", "pass")


class GivesAwayEarly(LaneReader):
    """Gives the rest to others before the last look."""

    _draw_back = changed(
        LaneReader._draw_back,
        "self._ledger.give_back(in_hand + 1, bound - in_hand - 1)",
        "pass",
        "    process.stand_for(2 * QUIET_SECONDS)\n",
        "    self._ledger.give_back(in_hand + 1, bound - in_hand - 1)\n        process.stand_for(2 * QUIET_SECONDS)\n",
    )


class LooksOnlyAtEnds(LaneReader):
    """The last look does not see whether the worker stands still."""

    _draw_back = changed(LaneReader._draw_back, "not process.stands_still() or ", "")


class TrustsEnd(LaneReader):
    """Reads a batch up to its `end`, also where a halt has drawn that back."""

    _limits = changed(
        LaneReader._limits, "self.bound if self.halted_batch == number else words[half.end]", "words[half.end]"
    )


class UsesWhatItRead(LaneReader):
    """Does not look again whether the worker has stood still while it was read."""

    _take_back = changed(
        LaneReader._take_back,
        "if claiming or not process.stands_still():",
        "if claiming:",
        "        if not process.stands_still():  # while it runs, an entry of `ends` may be visible before its value\n"
        "            return False\n",
        "",
    )


class LooksTooEarly(LaneReader):
    """Looks whether the worker stands still before its outcomes are read, and not after it."""

    _take_back = changed(
        LaneReader._take_back,
        "        if not process.stands_still():  # while it runs, an entry of `ends` may be visible before its value\n"
        "            return False\n",
        "",
    )


class RecoversTheLastBatchOnly(LaneReader):
    recover = changed(LaneReader.recover, "            self.take_in_left(number - 1)\n", "")


class ChargesNobody(LaneReader):
    """Takes the task in hand for one that never began."""

    recover = changed(LaneReader.recover, "if done < min(bound, words[process.status + LEAVING])", "if False")


class ChargesTheNext(LaneReader):
    """Takes the task after the one in hand for it."""

    recover = changed(
        LaneReader.recover,
        "self._charge_in_hand(done, note or exit_text(code))",
        "self._charge_in_hand(min(done + 1, bound - 1), note or exit_text(code))",
    )


class KeepsFiles(LaneReader):
    """Does not remove the file of a value that a worker had in hand."""

    _charge_in_hand = changed(
        LaneReader._charge_in_hand, '        os.unlink(self._queue.segment.beside(f"v{position}"))\n', "        pass\n"
    )


class KillsTheNext(LaneReader):
    """Kills a worker for a task that it has finished meanwhile."""

    _take_back = changed(LaneReader._take_back, "in_hand == doomed.position and ", "")


class NeverContinues(WorkerProcess):
    def go_on(self):
        pass


class SeesNoSwitches(WorkerProcess):
    """Takes a worker that stands still for one that has not run meanwhile."""

    def stands_still(self):
        return shmqueue.state_and_switches(self.pid)[0] in shmqueue.STOPPED


class ChargesWrong(Ledger):
    """Charges the task before the one in hand where there is one."""

    def charge(self, worker, position, status, *about, **more):
        super().charge(worker, max(self._placed[0].first, position - 1), status, *about, **more)


class FreesPagesEarly(Heap):
    """Frees the pages of a block when the first of its tasks is settled."""

    put = changed(Heap.put, "Block(users, ", "Block(1, ")


class RingsOnce(WorkerProcess):
    """Does not ring a new process for a sleep of the number for which the old one was rung."""

    begin = changed(WorkerProcess.begin, "        self.rung = 0\n", "")


class RingsForTheFirstSleep(WorkerPool):
    """Rings a worker for its first sleep only."""

    ring = changed(WorkerPool.ring, "if process.rung != number:", "if not process.rung:")


class NeverSleeps(WorkerEngine):
    """Takes one turn after the other, even if it has found nothing to do."""

    def _wait(self, job):
        pass


MISTAKES = [
    (CommitsFirst, "nothing returned", ONE_KILL),
    (ClaimsLast, "nothing returned", ONE_KILL),
    (KeepsOldEnds, "one worker, one at a time", ONE_KILL),
    (ReleasesEarly, "nothing returned", ONE_KILL),
    (CopiesLate, "small ring", ONE_PREEMPTION),
    (ClaimsAThirdBatch, "one at a time", Bounds()),
    (NeverSaysAsleep, "nothing returned", Bounds()),
    (SaysAsleepLast, "one worker", ONE_PREEMPTION),
    (PublishesUnlocked, "nothing returned", Bounds()),
    (WithoutRepair, "nothing returned", ONE_KILL),
    (WithoutDirty, "nothing returned", ONE_KILL),
    (CleanBeforeRepair, "nothing returned", TWO_KILLS),
    (SignsLate, "nothing returned", ONE_PREEMPTION),
    (HarvestsUnlocked, "nothing returned", Bounds()),
    (HarvestsTooFar, "nothing returned", Bounds()),
    (NeverTellsHarvested, "one worker, one at a time", Bounds()),
    (PushesUnlocked, "nothing returned", ONE_PREEMPTION),
    (WritesTheRingLate, "nothing returned", ONE_PREEMPTION),
    (NeverSaysTheSupervisorSleeps, "nothing returned", Bounds()),
    (DrainsWhatStays, "cancelled", Bounds()),
    (RecoversUnlocked, "one task", ONE_EACH),
    (KeepsPublished, "nothing returned", ONE_KILL),
    (KeepsAsleep, "nothing returned", ONE_KILL),
    (KeepsLeaving, "few tasks each", Bounds()),
    (HaltsInsideTheLock, "two batches", KILLED_IN_A_HALT),
    (EndBeforeClock, "one batch", ONE_HALT),
    (CommitsAfterClock, "one batch", ONE_HALT),
    (NeverLooksAtEnd, "one batch", ONE_HALT),
    (KeepsItsOldBound, "one batch", ONE_HALT),
    (CommitsBeforeTheValue, "values", ONE_KILL),
    (CountsRecordsLate, "records", ONE_KILL),
    (LeavesUnsaid, "left", Bounds()),
    (NeverRings, "nothing returned", Bounds()),
    (RingsBeforeItPublishes, "one worker", ONE_PREEMPTION),
    (TakesTheOneInHand, "one batch", ONE_HALT),
    (NeverMovesTaken, "one batch", ONE_HALT),
    (IgnoresTaken, "one batch", ONE_HALT),
    (StopsShortly, "one batch", ONE_HALT),
    (NeverWaits, "one batch", ONE_HALT),
    (GivesAwayEarly, "two in a batch", ONE_CONT),
    (LooksOnlyAtEnds, "two in a batch", ONE_CONT),
    (TrustsEnd, "two in a batch", ONE_CONT),
    (UsesWhatItRead, "two in a batch", ONE_CONT),
    (LooksTooEarly, "two in a batch", ONE_CONT),
    (SeesNoSwitches, "two in a batch", ONE_CONT),
    (RecoversTheLastBatchOnly, "two batches", ONE_EACH),
    (ChargesNobody, "nothing returned", ONE_KILL),
    (ChargesTheNext, "mixed", ONE_KILL),
    (KeepsFiles, "files", ONE_KILL),
    (KillsTheNext, "two too slow", Bounds(preemptions=1, conts=1, slows=1)),
    (NeverContinues, "one batch", ONE_HALT),
    (ChargesWrong, "one batch", ONE_KILL),
    (FreesPagesEarly, "heap", ONE_PREEMPTION),
    (RingsOnce, "one after the other", ONE_KILL),
    (RingsForTheFirstSleep, "small ring", ONE_PREEMPTION),
    (NeverSleeps, "nothing returned", Bounds()),
]


@pytest.mark.parametrize("name", ["two tasks", "one worker", "one worker, cancelled"])
@pytest.mark.parametrize("strategy", [name for name in strategies if name != "lockf"])
def test_every_strategy_bears_a_kill_a_preemption_or_a_halt_anywhere(strategy, name):
    """Where a strategy keeps words of its own, any access may matter. A lock goes with its holder here: what happens
    where the kernel does not see to that is for the contract suite.
    """
    for bounds in SMALL:
        options = {"ordered": strategy not in DEALT, "one_ring": False, "every": True}
        report = explore(SCENARIOS[name], bounds, parts=[strategies[strategy]], **options)
        assert report.failure is None, str(report.failure)
        assert report.complete


DEALT = ("slot_state", "worker_lanes")  # they read words of the lanes unlocked; slot_state has no lock at all


@pytest.mark.parametrize(
    ("mistake", "scenario", "bounds"), MISTAKES, ids=[mistake.__name__ for mistake, _, _ in MISTAKES]
)
def test_a_mistake_is_found(mistake, scenario, bounds):
    failure = explore(SCENARIOS[scenario], bounds, parts=[mistake]).failure
    assert failure is not None
    print(failure)
