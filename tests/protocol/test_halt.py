"""A halt takes back what a worker has not begun, whatever happens meanwhile; and nothing waits that could run."""

import collections
import contextlib
import itertools
import os
import pathlib
import signal
import time

import pytest

import shmqueue
from tests import jobs
from tests.helpers import state_of, wait_until

REST = 30  # tasks behind the one in hand


class Held:
    """A worker with one task done, one in hand that waits for a file, and the rest of its batch not begun."""

    def __init__(self, folder, **options):
        self.gate, self.notes = folder / "gate", folder / "notes"
        functions = [jobs.note, jobs.wait_for_file]
        self.supervisor = shmqueue.Supervisor(functions, workers=1, batch=REST + 2, start_method="fork", **options)
        self.queue = self.supervisor._queue
        (self.worker,) = self.supervisor._pool.lanes
        self.handle = self.worker.process
        assert wait_until(self.sleeps)  # stopped earlier, it might have the lock, and would be continued for that
        with self.stopped():  # so that all come in one batch
            self.submit_all()
        assert wait_until(lambda: self.lane().done == 1)

    def sleeps(self):
        """Return True if the worker waits to be rung. It says so before it lets go of the lock."""
        return self.queue.sleepers() and state_of(self.handle.pid) == "S"

    @contextlib.contextmanager
    def stopped(self):
        os.kill(self.handle.pid, signal.SIGSTOP)
        yield
        os.kill(self.handle.pid, signal.SIGCONT)

    def submit_all(self):
        self.supervisor.submit(jobs.note, f"{self.notes}|first")
        self.supervisor.submit(jobs.wait_for_file, str(self.gate))
        for number in range(REST):
            self.supervisor.submit(jobs.note, f"{self.notes}|{number}")

    def lane(self):
        return self.queue.glance(0)

    def halt(self, doomed=None):
        """Halt the worker. On a busy machine it may not stand still in time: then try again."""
        return wait_until(lambda: self.worker.halt(doomed))

    def given_back(self):
        return sum(len(tasks.payloads) for tasks in self.supervisor._ledger.again)

    def empty_ring(self):
        """Leave the worker no other batch than the one that it has."""
        for first, count in self.queue.drain():
            self.supervisor._ledger.give_back(first, count)

    def finish(self):
        """Let the task in hand end, and return how many tasks ended how."""
        self.gate.touch()
        statuses = collections.Counter(result.status for result in self.supervisor.results())
        noted = self.notes.read_text().split()
        assert len(noted) == len(set(noted)), "a task began twice"
        assert sum(statuses.values()) == REST + 2
        self.supervisor.close()
        return statuses


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """On a busy machine it takes long until a process that was stopped stands still."""
    monkeypatch.setattr(shmqueue, "STILL_SECONDS", 20.0)


@pytest.fixture
def held(tmp_path):
    made = Held(tmp_path)
    yield made
    made.gate.touch()
    made.supervisor.__exit__(KeyError, None, None)


ALL_OK = {"ok": REST + 2}


@pytest.mark.promise("L18")
def test_a_halt_takes_back_what_has_not_begun(held):
    waiting = held.lane().not_begun
    assert held.halt()
    assert (held.given_back(), held.lane().not_begun) == (waiting, 0)
    assert waiting > 0
    assert held.lane().in_hand == held.lane().first + 1
    assert held.finish() == ALL_OK


def test_a_second_halt_takes_nothing_more(held):
    waiting = held.lane().not_begun
    assert held.halt()
    assert held.halt()
    assert held.given_back() == waiting
    assert held.finish() == ALL_OK


def test_a_halt_brings_what_is_finished(held):
    held.worker.halt()
    results = held.supervisor.results()
    assert next(results).payload == f"{held.notes}|first"
    held.gate.touch()
    assert len(list(results)) == REST + 1


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def go_on(pid):
    os.kill(pid, signal.SIGCONT)


def go_on_and_stop(pid):
    """As if it had never run: only its context switches show that it has."""
    os.kill(pid, signal.SIGCONT)
    assert wait_until(lambda: shmqueue.process_state(pid)[0] not in shmqueue.STOPPED)
    os.kill(pid, signal.SIGSTOP)
    assert wait_until(lambda: shmqueue.process_state(pid)[0] in shmqueue.STOPPED)


MOMENTS = ["it stands still", "before look 1", "before the wait", "before look 2", "before it goes on"]


class Disturbed(shmqueue.System):
    """The machine, on which somebody does `what` to a worker at one moment of its halt."""

    def __init__(self, pid, moment, what):
        self._pid, self._moment, self._what = pid, moment, what
        self._looks = 0  # at its state, since it stands still

    def _now(self, moment):
        if moment == self._moment:
            self._moment = None
            self._what(self._pid)

    def state_and_switches(self, pid):
        self._now(f"before look {self._looks}")
        found = super().state_and_switches(pid)
        if self._looks or found[0] in shmqueue.STOPPED:
            if not self._looks:
                self._now("it stands still")
            self._looks += 1
        return found

    def spin_until(self, when):
        self._now("before the wait")
        super().spin_until(when)

    def pidfd_send_signal(self, pidfd, number):
        if number == signal.SIGCONT:
            self._now("before it goes on")
        super().pidfd_send_signal(pidfd, number)


def disturb(monkeypatch, held, moment, what):
    monkeypatch.setattr(shmqueue, "system", Disturbed(held.handle.pid, moment, what))


@pytest.mark.parametrize("what", [go_on, go_on_and_stop, kill])
@pytest.mark.parametrize("moment", MOMENTS)
def test_somebody_else_interferes_with_a_halt(held, monkeypatch, moment, what):
    with monkeypatch.context() as patch:
        disturb(patch, held, moment, what)
        done = held.worker.halt()
    if moment != "before it goes on":
        assert not done, "what may have run is not trusted"
        assert held.given_back() == 0
    if what is kill:
        assert wait_until(held.handle.is_dead)
    statuses = held.finish()
    assert statuses == (ALL_OK if what is not kill else {"ok": REST + 1, "crashed": 1})


@pytest.mark.parametrize("switches", ["seen", "unseen"])
def test_a_task_that_ended_during_the_halt_is_seen_at_the_last_look(held, monkeypatch, switches):
    """Somebody continues the worker, and it finishes the task in hand: what is behind it may have begun. It shows in
    `ends`, also where nobody counts context switches.
    """
    if switches == "unseen":
        uncounted = staticmethod(lambda pid: (shmqueue.process_state(pid)[0], 0))
        monkeypatch.setattr(shmqueue.System, "state_and_switches", uncounted)

    def open_and_go_on(pid):
        held.gate.touch()
        os.kill(pid, signal.SIGCONT)
        assert wait_until(lambda: held.queue.half(0, 1).done(REST + 2) > 1)
        os.kill(pid, signal.SIGSTOP)
        assert wait_until(lambda: shmqueue.process_state(pid)[0] in shmqueue.STOPPED)

    with monkeypatch.context() as patch:
        disturb(patch, held, "before the wait", open_and_go_on)
        assert not held.worker.halt()
    assert held.given_back() == 0
    assert held.finish() == ALL_OK


def half_a_halt(held, monkeypatch):
    """A halt that draws `end` back, and then gives nothing away, since the worker may have run."""
    before = held.given_back()
    with monkeypatch.context() as patch:
        disturb(patch, held, "before the wait", go_on_and_stop)
        assert not held.worker.halt()
    assert held.given_back() == before
    lane = held.lane()
    assert lane.end == lane.in_hand + 1, "the worker will go no further"


def test_a_second_halt_knows_where_the_batch_ends(held, monkeypatch):
    waiting = held.lane().not_begun
    half_a_halt(held, monkeypatch)
    assert held.halt()
    assert held.given_back() == waiting
    assert held.finish() == ALL_OK


def test_what_lies_behind_a_lowered_end_goes_round_once_the_worker_has_left_the_batch(held, monkeypatch):
    half_a_halt(held, monkeypatch)
    assert held.finish() == ALL_OK


def die_behind_a_published_batch(held, monkeypatch):
    """Have the worker stop at the lowered `end`, publish the batch, and die with nothing in its hand."""
    held.empty_ring()
    half_a_halt(held, monkeypatch)
    before = held.worker.word(shmqueue.PUBLISHED)
    held.gate.touch()
    assert wait_until(lambda: held.worker.word(shmqueue.PUBLISHED) > before)
    kill(held.handle.pid)
    assert wait_until(held.handle.is_dead)
    held.supervisor._pool.check(time.monotonic())  # before anybody has harvested that batch


@pytest.mark.promise("G2b")
def test_nobody_is_charged_in_a_batch_that_its_worker_has_left(held, monkeypatch):
    die_behind_a_published_batch(held, monkeypatch)
    assert held.finish() == ALL_OK


def forgets_the_bound(lane, number):
    half = lane._queue.half(lane.index, number)
    return lane._queue.words[half.first], lane._queue.words[half.end]


@pytest.mark.parametrize("again", [True, False])
def test_a_halt_that_forgets_the_bound_is_found(held, monkeypatch, again):
    """The tests above, with this mistake: what lies behind the lowered `end` is lost."""
    monkeypatch.setattr(shmqueue.Lane, "_limits", forgets_the_bound)
    half_a_halt(held, monkeypatch)
    if again:
        held.worker.halt()
    held.gate.touch()
    assert wait_until(held.queue.sleepers)
    held.supervisor._pool.collect()
    assert held.given_back() == 0
    assert held.supervisor._ledger.in_queue() > 0


def test_a_recovery_that_charges_in_a_published_batch_is_found(held, monkeypatch):
    words = held.queue.words
    recover = shmqueue.Lane.recover

    def charges(lane, code):
        words[lane._status + shmqueue.PUBLISHED] = lane.harvested
        return recover(lane, code)

    monkeypatch.setattr(shmqueue.Lane, "recover", charges)
    die_behind_a_published_batch(held, monkeypatch)
    assert held.finish() == {"ok": REST + 1, "crashed": 1}


def test_a_worker_that_somebody_stopped_is_read_and_stays_stopped(held):
    waiting = held.lane().not_begun
    os.kill(held.handle.pid, signal.SIGSTOP)
    assert wait_until(held.handle.is_stopped)
    assert held.halt()
    assert held.given_back() == waiting
    assert held.handle.is_stopped()
    os.kill(held.handle.pid, signal.SIGCONT)
    assert held.finish() == ALL_OK


def test_a_worker_that_does_not_stand_still_is_continued(held, monkeypatch):
    """As in an uninterruptible wait."""
    with monkeypatch.context() as patch:
        patch.setattr(shmqueue, "STILL_SECONDS", 0.01)
        patch.setattr(shmqueue.system, "state_and_switches", lambda pid: ("D", 0))
        assert not held.worker.halt()
    assert held.worker.halt_again
    assert wait_until(lambda: not held.handle.is_stopped())
    assert held.halt(), "and another time it is halted"
    assert held.finish() == ALL_OK


def test_a_worker_that_does_not_stand_still_is_killed_for_a_task_that_runs_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(shmqueue, "STILL_SECONDS", 0.001)
    monkeypatch.setattr(shmqueue, "OVERDUE_SECONDS", 0.1)
    monkeypatch.setattr(shmqueue.system, "state_and_switches", lambda pid: ("D", 0))
    with shmqueue.Supervisor([jobs.wait_for_file], workers=1, timeout=0.1, start_method="fork") as supervisor:
        results = list(supervisor.run([str(tmp_path / "gate"), str(tmp_path)]))
    assert sorted(result.status for result in results) == ["ok", "timeout"]


def test_a_dead_worker_is_not_halted(held):
    kill(held.handle.pid)
    assert wait_until(held.handle.is_dead)
    assert not held.worker.halt()
    assert held.finish() == {"ok": REST + 1, "crashed": 1}


def test_a_worker_inside_the_lock_is_left_alone(held, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(held.queue, "is_claiming", lambda worker: True)
        assert not held.worker.halt()
    assert (held.given_back(), held.handle.is_stopped()) == (0, False)
    assert held.finish() == ALL_OK


def test_a_worker_that_sleeps_has_nothing_to_take(held):
    held.gate.touch()
    results = held.supervisor.results()
    assert len(list(results)) == REST + 2
    assert wait_until(held.queue.sleepers)
    assert held.halt()
    assert held.given_back() == 0


@pytest.mark.promise("G2b")
def test_a_worker_killed_after_a_halt_is_charged_for_the_task_in_hand_alone(held):
    assert held.halt()
    kill(held.handle.pid)
    assert held.finish() == {"ok": REST + 1, "crashed": 1}


def test_a_timeout_kills_only_the_task_that_timed_out(held):
    """The worker has gone on to another task by the time that it stands still."""
    doomed = shmqueue.Doom(held.lane().in_hand - 1, "timeout", "too long")
    assert held.halt(doomed)
    assert not held.handle.is_dead()
    assert held.finish() == ALL_OK


@pytest.mark.parametrize(
    ("what", "says"), [("claims", "says 9 batches"), ("end", "has a batch of positions"), ("ends", "values end at")]
)
def test_words_of_a_worker_that_cannot_be_right_are_an_error(held, what, says):
    half, words = held.queue.half(0, held.lane().number), held.queue.words
    if what == "claims":
        words[held.queue.status[0] + shmqueue.CLAIMS] = 9
    elif what == "end":
        words[half.end] = words[half.first] + REST + 3
    else:
        half.ends[0] = 1 << 40
    with pytest.raises(shmqueue.SpoiledSegmentError, match=says):
        held.halt()


def test_a_worker_killed_for_a_task_that_has_ended_is_a_crash_of_the_next(held):
    """It was doomed for its first task, which had ended when the kill came."""
    held.worker.doom(shmqueue.Doom(held.lane().first, "timeout", "ran too long"))
    assert held.finish() == {"ok": REST + 1, "crashed": 1}


def test_a_child_that_a_function_forked_cannot_touch_the_lane(tmp_path):
    """Every view is released in it, also those of the log and of `ends`."""
    with shmqueue.Supervisor([jobs.fork_and_return, jobs.echo], workers=1, batch=3, start_method="fork") as supervisor:
        results = sorted(supervisor.run([(jobs.fork_and_return, b""), (jobs.echo, b"a"), (jobs.echo, b"b")]))
    assert [result.value for result in results] == [b"one of two", b"a", b"b"]


# Nothing waits that could run. By counts: the long tasks end only once the others have.


class Gates:
    """Tasks that note that they have begun, and wait for a file."""

    def __init__(self, folder):
        self.notes, self.gate = folder / "begun", folder / "gate"
        self.notes.touch()

    def task(self, number):
        return jobs.note_and_wait, f"{self.notes}|{number}|{self.gate}"

    def begun(self):
        return len(self.notes.read_text().split())

    def open(self):
        self.gate.touch()


QUICK = (jobs.quiet, b"")
FUNCTIONS = [jobs.quiet, jobs.note_and_wait]


def all_begin(tasks, gates, workers, **options):
    """Run the tasks; the gate opens once all the long ones wait for it, side by side.

    With a worker more than long tasks, one is always free: then all that is quick ends before the gate opens.
    """
    with shmqueue.Supervisor(FUNCTIONS, workers=workers, **options) as supervisor:
        quick = sum(task is QUICK for task in tasks)
        results, early = supervisor.run(tasks), []
        if workers > len(tasks) - quick:
            early = list(itertools.islice(results, quick))
            assert {result.function for result in early} == {"quiet"}
        supervisor.on_check = lambda: gates.begun() >= len(tasks) - quick and gates.open()
        rest = list(results)
    assert {result.status for result in [*early, *rest]} == {"ok"}
    assert len(early) + len(rest) == len(tasks)


@pytest.mark.promise("G7a")
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("batch", [None, 64])
def test_long_tasks_behind_short_ones_are_begun_side_by_side(tmp_path, workers, batch):
    gates = Gates(tmp_path)
    tasks = [QUICK] * 3000 + [gates.task(number) for number in range(workers)]
    all_begin(tasks, gates, workers, batch=batch)


@pytest.mark.promise("G7a")
@pytest.mark.parametrize("batch", [None, 64])
def test_one_long_task_first_keeps_nothing_back(tmp_path, batch):
    gates = Gates(tmp_path)
    all_begin([gates.task(0)] + [QUICK] * 3000 + [gates.task(1)], gates, 3, batch=batch)


@pytest.mark.promise("G7a")
def test_long_tasks_anywhere_keep_nothing_back(tmp_path):
    gates = Gates(tmp_path)
    tasks = [QUICK] * 3000
    for number, place in enumerate((2000, 1000, 990)):
        tasks.insert(place, gates.task(number))
    all_begin([*tasks, gates.task(3)], gates, 5)


def test_waves_of_short_and_long_tasks(tmp_path):
    for wave in range(4):
        folder = tmp_path / str(wave)
        folder.mkdir()
        gates = Gates(folder)
        all_begin([QUICK] * 500 + [gates.task(0)] + [QUICK] * 500 + [gates.task(1)], gates, 3)


@pytest.mark.promise("G7b")
@pytest.mark.parametrize("batch", [None, 500])
def test_results_do_not_wait_for_a_long_task_of_the_same_worker(tmp_path, batch):
    gates = Gates(tmp_path)
    tasks = [QUICK] * 400 + [gates.task(0)]
    with shmqueue.Supervisor(FUNCTIONS, workers=1, batch=batch) as supervisor:
        results = supervisor.run(tasks)
        assert {result.function for result in itertools.islice(results, 400)} == {"quiet"}
        gates.open()
        assert [result.function for result in results] == ["note_and_wait"]


TRIES = 20  # a machine that does something else keeps everybody waiting, but not each time


@pytest.mark.promise("G7a")
def test_what_is_claimed_behind_a_slow_task_ends_before_that():
    """Nothing waits for 20 ms there, and the slow task takes much longer."""
    with shmqueue.Supervisor([jobs.rest], workers=2, batch=8) as supervisor:
        runs = ([result.payload for result in supervisor.run(["0.4"] + ["0"] * 15)] for _ in range(TRIES))
        assert any(payloads[-1] == "0.4" for payloads in runs)


@pytest.mark.promise("G7a")
def test_a_worker_that_sleeps_since_before_the_tasks_came_gets_some():
    """After many short tasks one worker claims all of the next ones, and one bell seems enough."""

    def slow_task_ends_last(supervisor):
        list(supervisor.map(jobs.quiet, [b""] * 20_000))
        time.sleep(0.002)  # until both sleep, and not for long
        for _ in range(2):
            supervisor.wake()
            assert list(supervisor.run([])) == []  # this checks the workers: nothing is to be done for a while
        results = supervisor.run([(jobs.rest, "0.2")] + [(jobs.rest, "0")] * 15)
        return [result.payload for result in results][-1] == "0.2"

    with shmqueue.Supervisor([jobs.rest, jobs.quiet], workers=2) as supervisor:
        assert sum(slow_task_ends_last(supervisor) for _ in range(10)) > 5  # else one by chance, or two


@pytest.mark.promise("G7a")
def test_workers_that_knew_short_tasks_begin_long_ones_side_by_side():
    """After many short tasks each worker that is woken would take all long ones, and the next one wait for its halt."""

    def all_workers_begin_before_one_ends_a_task(supervisor):
        list(supervisor.map(jobs.quiet, [b""] * 60_000))
        results = sorted(supervisor.run([(jobs.rest, "0.025")] * 320), key=lambda result: result.started)
        first = {}
        for result in results:
            first.setdefault(result.worker, result)
        return len(first) == 32 and max(result.started for result in first.values()) < min(map(end, results))

    def end(result):
        return result.started + result.seconds

    with shmqueue.Supervisor([jobs.rest, jobs.quiet], workers=32) as supervisor:
        assert any(all_workers_begin_before_one_ends_a_task(supervisor) for _ in range(TRIES))


@pytest.mark.promise("G7b")
def test_results_before_a_slow_task_arrive_while_it_runs():
    """No result waits for 100 ms, and the slow task of the same batch takes much longer."""

    def arrive_early(supervisor):
        results = supervisor.run(["0"] * 7 + ["0.4"])
        arrived = [time.time() for _ in zip(range(7), results)][-1]
        (slow,) = results
        return arrived < slow.started + slow.seconds

    with shmqueue.Supervisor([jobs.rest], workers=1, batch=64) as supervisor:
        assert any(arrive_early(supervisor) for _ in range(TRIES))


def test_halts_are_few_where_there_is_nothing_to_take(tmp_path, monkeypatch):
    """Long tasks alone, each worker with one: nobody is stopped."""
    halts, halt = [], shmqueue.Lane.halt
    monkeypatch.setattr(shmqueue.Lane, "halt", lambda *arguments: halts.append(1) or halt(*arguments))
    with shmqueue.Supervisor([jobs.rest], workers=2) as supervisor:
        assert len(list(supervisor.run(["0.3"] * 3))) == 3
    assert len(halts) <= 3


# Sizes: there is no cliff between a slot and a file, and memory that is full is waited for.


def test_values_and_payloads_of_sizes_between_a_slot_and_a_file():
    payloads = [bytes([number % 251]) * size for number, size in enumerate((119, 120, 200, 5000, 300_000) * 40)]
    with shmqueue.Supervisor([jobs.echo], workers=2) as supervisor:
        segment = pathlib.Path(supervisor._queue.segment.path)
        values = supervisor.map(jobs.echo, payloads)
        assert [next(values) for _ in range(100)] == payloads[:100]
        assert not list(segment.parent.glob(f"{segment.name}.p*")), "payloads lie in the heap"
        assert list(values) == payloads[100:]
        assert supervisor._engine._packer.heap.used == 0


# Batches size themselves.


def count_batches(supervisor):
    return sum(supervisor._queue.glance(lane.index).number for lane in supervisor._pool.lanes)


def test_batches_are_large_while_tasks_are_short_and_small_while_they_are_long():
    short, long = 20_000, 40

    def are_of_both_sizes(supervisor):
        before = count_batches(supervisor)
        list(supervisor.map(jobs.quiet, [b""] * short))
        for_short = count_batches(supervisor) - before
        list(supervisor.map(jobs.sleep_a_little, [b""] * long))
        for_long = count_batches(supervisor) - before - for_short
        return for_short < short / 50 and for_long > long / 3

    with shmqueue.Supervisor([jobs.quiet, jobs.sleep_a_little], workers=2) as supervisor:
        assert any(are_of_both_sizes(supervisor) for _ in range(TRIES))
