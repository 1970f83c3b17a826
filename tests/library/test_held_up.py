"""Workers that do not run are waited for and named. They hold up no others, and end no run."""

import os
import signal
import time

import pytest

import shmqueue
from shmqueue import Supervisor
from tests import jobs
from tests.helpers import state_of, wait_until


def start(functions, **options):
    return Supervisor(functions, **{"start_method": "fork", **options})


def pids(supervisor):
    return [worker["pid"] for worker in supervisor.stats()["workers"]]


def counting_checks(supervisor, checks, then):
    """Call `then` at the check of this number."""
    count = 0

    def on_check():
        nonlocal count
        count += 1
        if count == checks:
            then()

    supervisor.on_check = on_check


@pytest.mark.long
@pytest.mark.promise("G9")
def test_stopped_workers_are_waited_for_and_named():
    """For longer than three seconds, in checks of 50 ms."""
    with start([jobs.echo], workers=2) as supervisor:
        assert len(list(supervisor.run([b"x"] * 10))) == 10
        stopped = pids(supervisor)
        assert wait_until(lambda: len(supervisor._queue.sleepers()) == 2)
        assert wait_until(lambda: {state_of(pid) for pid in stopped} == {"S"})  # none lets go of the lock any more
        said = []

        def go_on():
            said.append(supervisor.stats()["held_up"])
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        counting_checks(supervisor, 80, go_on)
        assert [result.status for result in supervisor.run([b"x"] * 10)] == ["ok"] * 10
        assert said == ["worker 0 and worker 1 are stopped"]
        assert supervisor.stats()["held_up"] == ""


@pytest.mark.promise("G7a", "G9")
def test_a_stopped_sleeper_holds_up_no_other_that_sleeps(tmp_path):
    gate = tmp_path / "gate"
    with start([jobs.echo, jobs.wait_for_file], workers=3) as supervisor:
        list(supervisor.run([(jobs.echo, b"x")] * 3000))  # so that sleepers want many tasks
        assert wait_until(lambda: len(supervisor._queue.sleepers()) == 3)
        supervisor.submit(jobs.wait_for_file, str(gate))
        assert wait_until(lambda: len(supervisor._queue.sleepers()) == 2)
        asleep = supervisor._queue.sleepers()[0][0]
        os.kill(pids(supervisor)[asleep], signal.SIGSTOP)
        counting_checks(supervisor, 200, gate.touch)
        for _ in range(20):
            supervisor.submit(jobs.echo, b"y")
        names = []
        for result in supervisor.results():
            names.append(result.function)
            if len(names) == 20:
                gate.touch()
        os.kill(pids(supervisor)[asleep], signal.SIGCONT)
        assert names == ["echo"] * 20 + ["wait_for_file"]


@pytest.mark.promise("G9")
def test_workers_that_cannot_start_do_not_end_the_run_of_one_that_works(tmp_path, monkeypatch):
    monkeypatch.setattr(shmqueue, "FAILED_STARTS", 3)
    gate, only_one = tmp_path / "gate", str(tmp_path / "only one")

    def take_lock_file():
        os.close(os.open(only_one, os.O_CREAT | os.O_EXCL))

    with start([jobs.wait_for_file], workers=2, initializer=take_lock_file) as supervisor:

        def open_gate():
            if supervisor.stats()["respawned"] > 4:
                gate.touch()

        supervisor.on_check = open_gate
        assert [result.status for result in supervisor.run([str(gate)] * 3)] == ["ok"] * 3


def test_a_full_ring_is_waited_for_while_results_are_unread(tmp_path):
    gate = tmp_path / "gate"
    with start([jobs.wait_for_file], workers=1, num_slots=2, batch=1) as supervisor:
        gate.touch()
        supervisor.submit(jobs.wait_for_file, str(gate))
        assert wait_until(lambda: supervisor._queue.sleepers())
        gate.unlink()
        counting_checks(supervisor, 40, gate.touch)
        wall, spent = time.monotonic(), time.process_time()
        for _ in range(8):
            supervisor.submit(jobs.wait_for_file, str(gate))
        wall, spent = time.monotonic() - wall, time.process_time() - spent
        assert spent < wall / 4
        assert [result.status for result in supervisor.results()] == ["ok"] * 9


def test_a_stream_that_has_more_is_left_alone_while_results_in_order_wait(tmp_path):
    gate = tmp_path / "gate"
    more, writer = os.pipe()
    os.write(writer, b"always readable")
    taken = []

    class Stream(shmqueue.Source):
        pairs = False

        def fileno(self):
            return more

        def take(self, room):
            self.exhausted = gate.exists()
            taken.append(str(tmp_path if taken else gate))
            return taken[-1:]

    with start([jobs.wait_for_file], workers=2, num_slots=2) as supervisor:
        counting_checks(supervisor, 40, gate.touch)
        wall, spent = time.monotonic(), time.process_time()
        values = list(supervisor.map(jobs.wait_for_file, Stream()))
        wall, spent = time.monotonic() - wall, time.process_time() - spent
        assert spent < wall / 4
        assert values == ["there"] * len(taken)
    os.close(more)
    os.close(writer)
