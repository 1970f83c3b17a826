"""The product's code under every interleaving, with kills, halts and foreign signals at every step; and deliberate
mistakes, which are found.
"""

import collections

import pytest

import shmqueue
from shmqueue import (
    ASLEEP,
    CLAIMS,
    DIRTY,
    PUBLISHED,
    PUSHED,
    SUPERVISOR_ASLEEP,
    Lane,
    Ledger,
    Packer,
    Process,
    Run,
    SharedTaskQueue,
    Worker,
    WorkerPool,
)
from tests.tools.explorer import SCENARIOS, Bounds, explore, first_failure
from tests.tools.mistakes import (
    branch,
    call,
    drop,
    first,
    last,
    less,
    made,
    mistaken,
    more,
    move,
    never,
    part,
    put,
    store,
    without,
)
from variants import strategies

pytestmark = pytest.mark.timeout(900)  # these tests do nothing but compute
ONE_KILL, TWO_KILLS, ONE_PREEMPTION = Bounds(kills=1), Bounds(kills=2), Bounds(preemptions=1)
ONE_HALT, TWO_HALTS, ONE_CONT = Bounds(halts=1), Bounds(halts=2), Bounds(halts=1, conts=1)
ONE_EACH, KILLED_IN_A_HALT = Bounds(preemptions=1, kills=1), Bounds(kills=1, halts=1)
CONT_OF_A_SLOW_ONE = Bounds(preemptions=1, conts=1, slows=1)
SMALL = [ONE_KILL, ONE_PREEMPTION, ONE_HALT]
LARGE = [
    ("one task", TWO_KILLS),
    ("one worker", ONE_EACH),
    ("one worker", TWO_KILLS),
    ("one worker, cancelled", ONE_EACH),
    ("one worker, cancelled", TWO_KILLS),
    ("one worker, files", TWO_KILLS),
    ("two batches", KILLED_IN_A_HALT),
    ("two batches", TWO_HALTS),
    ("one batch", TWO_HALTS),
    ("two too slow", CONT_OF_A_SLOW_ONE),
    ("two in a batch", Bounds(kills=1, halts=1, slows=1)),
]
LARGEST = [  # by `tox -e explorer`
    pytest.param(name, bounds, marks=pytest.mark.large)
    for name, bounds in [
        ("one task", ONE_EACH),
        ("two in a batch", ONE_CONT),
        ("two tasks cancelled", ONE_EACH),
        ("two tasks", ONE_EACH),
        ("two tasks", TWO_KILLS),
        ("two tasks retried", ONE_EACH),
    ]
]


@pytest.mark.promise("G1", "G2a", "G3")
@pytest.mark.parametrize("bounds", SMALL, ids=str)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_goes_wrong(name, bounds):
    check(name, bounds)


@pytest.mark.long
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
    for name in ("mixed", "one worker, files", "one worker, kinds"):
        report = explore(SCENARIOS[name], ONE_KILL, kill_anywhere=True)
        assert report.failure is None, str(report.failure)
        kinds |= report.kinds
        kills += report.kills
        halts += explore(SCENARIOS[name], ONE_HALT).halts
    assert set(kills) == kinds | {"start"}
    words = ("DIRTY", "FIRST", "END", "CLAIMS", "CLAIMED", "PUBLISHED", "ASLEEP")
    steps = {f"store {what}" for what in (*words, "ends", "stamps", "the log")}
    steps |= {"lock", "unlock", "call", "copy to the lane", "read the clock", "sleep", "ring the bell", "write a file"}
    assert steps < set(kills)
    unmoved = {"store PUBLISHED", "copy to the lane", "sleep", "ring the bell"}  # as one step before
    assert steps - unmoved < set(halts)


def test_a_schedule_that_goes_wrong_is_told_step_by_step():
    failure = first_failure([SCENARIOS["mixed"]], parts=[WithoutRepair])
    assert "KILLED" in str(failure)
    assert "nobody goes on" in str(failure) or "no task is" in str(failure)


# Mistakes. Each is the product's own code with something left out, or in another order.


class CommitsFirst(SharedTaskQueue):
    """Stores `claimed` before the batch: a death in between loses the tasks."""

    claim = mistaken(SharedTaskQueue.claim, move(store("CLAIMED"), before=call("_fill_half")))


class ClaimsLast(SharedTaskQueue):
    """Counts the batch after the commit point: a death in between loses the tasks."""

    claim = mistaken(
        SharedTaskQueue.claim,
        put("words[status + CLAIMS] -= 1", after=call("_fill_half")),
        put("words[status + CLAIMS] += 1", before=store("ASLEEP", 0)),
    )


class KeepsOldEnds(SharedTaskQueue):
    """Does not zero the `ends` of the batch before the last."""

    _fill_half = mistaken(SharedTaskQueue._fill_half, drop(call("clear")))


class ReleasesEarly(SharedTaskQueue):
    """Lets go of the lock before the claim is committed."""

    claim = mistaken(
        SharedTaskQueue.claim,
        drop(call("_leave")),
        put("self._leave()", before=store("CLAIMED")),
        put("self._leave()", after=store("ASLEEP", "_sleeps")),
    )


class CopiesLate(SharedTaskQueue):
    """Copies the tasks out of the ring after letting go of the lock."""

    _fill_half = mistaken(SharedTaskQueue._fill_half, drop(call("copy_from")))

    def claim(self, worker, limit):
        claim = super().claim(worker, limit)
        if claim is not None:
            half = self.half(worker, self.words[self.status[worker] + CLAIMS])
            half.lane.copy_from(self.ring, shmqueue.ring_spans(*claim, self.num_slots))
        return claim


class ClaimsAThirdBatch(SharedTaskQueue):
    """Claims where two batches have not been harvested: writes over outcomes that were not read."""

    claim = mistaken(SharedTaskQueue.claim, more(part("HARVESTED")))


class NeverSaysAsleep(SharedTaskQueue):
    claim = mistaken(SharedTaskQueue.claim, drop(store("ASLEEP", "_sleeps")))


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


class NeverTellsToLeave(SharedTaskQueue):
    def tell_to_leave(self, worker):
        pass


class NeverTellsHarvested(SharedTaskQueue):
    harvest = mistaken(SharedTaskQueue.harvest, drop(store("HARVESTED")))


class PushesUnlocked(SharedTaskQueue):
    push = mistaken(SharedTaskQueue.push, drop(call("_enter")), drop(call("_leave")))


class WritesTheRingLate(SharedTaskQueue):
    """Moves `pushed` before the slots are written."""

    def push(self, tasks):
        first, count = self._pushed, len(tasks)
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

    drain = mistaken(SharedTaskQueue.drain, drop(store("CLAIMED")))


class RecoversUnlocked(SharedTaskQueue):
    """Reads a dead worker's batches without having had the lock."""

    def recover(self, worker):
        pass


class KeepsPublished(SharedTaskQueue):
    """Leaves `published` of a dead worker."""

    def reset(self, worker):
        kept = self.words[self.status[worker] + PUBLISHED]
        super().reset(worker)
        self.words[self.status[worker] + PUBLISHED] = kept


class KeepsAsleep(SharedTaskQueue):
    """Leaves the asleep word of a dead worker."""

    def reset(self, worker):
        kept = self.words[self.status[worker] + ASLEEP]
        super().reset(worker)
        self.words[self.status[worker] + ASLEEP] = kept


class HaltsInsideTheLock(SharedTaskQueue):
    """Halts a worker in the midst of a claim."""

    def is_claiming(self, worker):
        return False


class EndBeforeClock(Worker):
    """Looks at `end` before the first look at the clock: a stop in between goes unseen."""

    run = mistaken(Worker.run, move(first(store("stop", "end")), before=store("began")))


class CommitsAfterClock(Worker):
    """Commits a task after the look at the clock: after a stop in between it begins the next one."""

    run = mistaken(Worker.run, move(store("before"), before=branch("value", but=("type",))))


class NeverLooksAtEnd(Worker):
    run = mistaken(Worker.run, never(branch("end", "stop")))


class KeepsItsOldBound(Worker):
    """Sees that `end` was drawn back, and goes on all the same."""

    run = mistaken(Worker.run, drop(last(store("stop", "end"))))


class CommitsBeforeTheValue(Worker):
    """Stores `ends` before the value is in the log."""

    run = mistaken(Worker.run, put("ends[task] = after", before=store("log", "value")))


class SaysItsKindLate(Worker):
    """Stores the kind of a batch's values after they are committed."""

    _begin_batch = mistaken(Worker._begin_batch, drop(store("log")))
    run = mistaken(Worker.run, put("log[0] = self._kind", before=call("_end_batch")))


class ChangesItsKind(Worker):
    """Gives a batch that has values of one kind another kind."""

    _put = mistaken(Worker._put, without(part("at")))


class NeverRings(Worker):
    serve = mistaken(Worker.serve, never(branch("only_room")))


class RingsBeforeItPublishes(Worker):
    """Looks whether the supervisor sleeps before it claims, and so publishes."""

    serve = mistaken(Worker.serve, move(call("claim"), after=branch("SUPERVISOR_ASLEEP")))


class SaysAsleepLast(Worker):
    """Stores its asleep word after it has rung the supervisor."""

    serve = mistaken(
        Worker.serve,
        put("asleep = self._status + ASLEEP\nnumber, words[asleep] = words[asleep], 0", after=call("claim")),
        put("words[asleep] = number", after=branch("SUPERVISOR_ASLEEP")),
    )


class TakesTheOneInHand(Lane):
    """A halt takes back the task in hand as well."""

    _draw_back = mistaken(Lane._draw_back, less(store("end")), less(store("bound", "in_hand")), less(call("give_back")))


class NeverMovesTaken(Lane):
    _settle_done = mistaken(Lane._settle_done, drop(store("settled_below")))


class IgnoresTaken(Lane):
    """Takes in again what a halt has taken in."""

    _read = mistaken(Lane._read, put("start = first", after=store("start")))


class StopsShortly(Lane):
    """Stops a worker for less than QUIET_SECONDS."""

    _draw_back = mistaken(Lane._draw_back, less(call("spin_until")))


class NeverWaits(Lane):
    _draw_back = mistaken(Lane._draw_back, drop(call("spin_until")))


class GivesAwayEarly(Lane):
    """Gives the rest to others before the last look."""

    _draw_back = mistaken(Lane._draw_back, move(call("give_back"), before=call("spin_until")))


class LooksOnlyAtEnds(Lane):
    """The last look does not see whether the worker stands still."""

    _draw_back = mistaken(Lane._draw_back, without(part("stands_still")))


class TrustsEnd(Lane):
    """Reads a batch up to its `end`, also where a halt has drawn that back."""

    _limits = mistaken(Lane._limits, never(branch("halted_batch")))


class UsesWhatItRead(Lane):
    """Does not look again whether the worker has stood still while it was read."""

    _take_back = mistaken(
        Lane._take_back,
        without(part("stands_still", beside="claiming")),
        drop(branch("stands_still", but=("claiming", "doomed"))),
    )


class LooksTooEarly(Lane):
    """Looks whether the worker stands still before its outcomes are read, and not after it."""

    _take_back = mistaken(Lane._take_back, drop(branch("stands_still", but=("claiming", "doomed"))))


class RecoversTheLastBatchOnly(Lane):
    recover = mistaken(Lane.recover, drop(call("settle")))


class ReadsLate(Lane):
    """Says that its batches were read, and reads them when their values are made: the worker may have others there."""

    def read_to(self, number):
        before, self.harvested = self.harvested, number
        return [before, number]

    def settle(self, batches):
        self.harvested, number = batches
        super().settle(super().read_to(number))


class ChargesNobody(Lane):
    """Takes the task in hand for one that never began."""

    recover = mistaken(Lane.recover, never(branch("PUBLISHED")))


class ChargesTheNext(Lane):
    """Takes the task after the one in hand for it."""

    recover = mistaken(Lane.recover, put("done = min(done + 1, bound - 1)", before=call("_charge_in_hand")))


class KeepsFiles(Lane):
    """Does not remove the file of a value that a worker had in hand."""

    _charge_in_hand = mistaken(Lane._charge_in_hand, drop(call("unlink")))


class KillsTheNext(Lane):
    """Kills a worker for a task that it has finished meanwhile."""

    _take_back = mistaken(Lane._take_back, without(part("position", beside="doomed")))


class NeverContinues(Process):
    def go_on(self):
        pass


class SeesNoSwitches(Process):
    """Takes a worker that stands still for one that has not run meanwhile."""

    def stands_still(self):
        return shmqueue.system.state_and_switches(self.pid)[0] in shmqueue.STOPPED


class ChargesWrong(Ledger):
    """Charges the task before the one in hand where there is one."""

    def charge(self, worker, position, *about, **more):
        super().charge(worker, max(self._placed[0].first, position - 1), *about, **more)


class FreesPagesEarly(Packer):
    """Frees the pages of a block once its tasks are pushed."""

    def take(self, room):
        tasks = super().take(room)
        if tasks is not None:
            tasks.block = None
        return tasks


class RingsOnce(Lane):
    """Does not ring a new process for a sleep of the number for which the old one was rung."""

    def begin(self, *process):
        rung = getattr(self, "rung", 0)
        super().begin(*process)
        self.rung = rung


class RingsForTheFirstSleep(WorkerPool):
    """Rings a worker for its first sleep only."""

    ring = mistaken(WorkerPool.ring, put("number = lane.rung or number", before=branch("rung")))


class NeverSleeps(Run):
    """Takes one turn after the other, even if it has found nothing to do."""

    def _wait(self, job, until):
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
    (NeverTellsToLeave, "left", Bounds()),
    (PushesUnlocked, "nothing returned", ONE_PREEMPTION),
    (WritesTheRingLate, "nothing returned", ONE_PREEMPTION),
    (NeverSaysTheSupervisorSleeps, "nothing returned", Bounds()),
    (DrainsWhatStays, "cancelled", Bounds()),
    (RecoversUnlocked, "one worker", ONE_EACH),
    (KeepsPublished, "nothing returned", ONE_KILL),
    (KeepsAsleep, "nothing returned", ONE_KILL),
    (HaltsInsideTheLock, "two batches", KILLED_IN_A_HALT),
    (EndBeforeClock, "one batch", ONE_HALT),
    (CommitsAfterClock, "one batch", ONE_HALT),
    (NeverLooksAtEnd, "one batch", ONE_HALT),
    (KeepsItsOldBound, "one batch", ONE_HALT),
    (CommitsBeforeTheValue, "values", ONE_KILL),
    (SaysItsKindLate, "one worker, text", ONE_KILL),
    (ChangesItsKind, "one worker, kinds", Bounds()),
    (NeverRings, "nothing returned", Bounds()),
    (RingsBeforeItPublishes, "one worker", ONE_PREEMPTION),
    (TakesTheOneInHand, "one batch", ONE_HALT),
    (NeverMovesTaken, "one batch", ONE_HALT),
    (IgnoresTaken, "one batch", ONE_HALT),
    (StopsShortly, "one batch", ONE_HALT),
    (NeverWaits, "one batch", ONE_HALT),
    (GivesAwayEarly, "two too slow", CONT_OF_A_SLOW_ONE),
    (LooksOnlyAtEnds, "two too slow", CONT_OF_A_SLOW_ONE),
    (TrustsEnd, "two too slow", CONT_OF_A_SLOW_ONE),
    (UsesWhatItRead, "two too slow", CONT_OF_A_SLOW_ONE),
    (LooksTooEarly, "two too slow", CONT_OF_A_SLOW_ONE),
    (SeesNoSwitches, "two too slow", CONT_OF_A_SLOW_ONE),
    (RecoversTheLastBatchOnly, "two batches", ONE_EACH),
    (ReadsLate, "one worker, one at a time", ONE_PREEMPTION),
    (ChargesNobody, "nothing returned", ONE_KILL),
    (ChargesTheNext, "mixed", ONE_KILL),
    (KeepsFiles, "files", ONE_KILL),
    (KillsTheNext, "two too slow", CONT_OF_A_SLOW_ONE),
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


@pytest.mark.mistake
@pytest.mark.parametrize(
    ("mistake", "scenario", "bounds"), MISTAKES, ids=[mistake.__name__ for mistake, _, _ in MISTAKES]
)
def test_a_mistake_is_found(mistake, scenario, bounds):
    failure = explore(SCENARIOS[scenario], bounds, parts=[made(mistake)]).failure
    assert failure is not None
    print(failure)
