"""retry_delay, retry_on, grace, and the cancelling of one task."""

import math
import os
import pathlib
import signal
import time

import pytest

import shmqueue
from shmqueue import NO_SOURCE, Job, Ledger, Retries, SpoiledSegmentError, Supervisor
from tests import jobs
from tests.helpers import segments_of, wait_until

WORKERS = [0, 1]


def fail(payload: bytes) -> None:
    raise ValueError("no")


def die(payload: bytes) -> None:
    os._exit(1)


def rest(payload: str) -> None:
    time.sleep(float(payload))


def ignore_sigterm(payload: str) -> bytes:
    """Note SIGTERM in a file, and return after so many seconds all the same."""
    path, _, seconds = payload.rpartition("|")
    signal.signal(signal.SIGTERM, lambda number, frame: pathlib.Path(path).touch())
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        time.sleep(0.01)
    return b"x" * 1000


def echo_after_sigterm(payload: bytes) -> bytes:
    """Return the payload once SIGTERM has come."""
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    while not came:
        time.sleep(0.005)
    return payload


def tidy_up(path: str) -> None:
    """After SIGTERM, take as long as some checks of the workers take, and then note the end."""
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    while not came:
        time.sleep(0.005)
    time.sleep(0.5)
    pathlib.Path(path).touch()


def worker_number(payload: bytes) -> str:
    return os.environ["SHMQUEUE_WORKER"]


def statuses(results):
    return {result.tsk_id: result.status for result in results}


# The pause before a retry.


def test_pauses_double_up_to_a_minute():
    retries = Retries(100, 0.5)
    assert [retries.pause(attempts) for attempts in (1, 2, 3, 8, 1000)] == [0.5, 1.0, 2.0, 60.0, 60.0]
    assert Retries(3).pause(5) == 0.0


@pytest.mark.parametrize("workers", WORKERS)
def test_tasks_that_wait_for_a_retry_hold_up_nothing(workers):
    with Supervisor([fail, jobs.echo], workers=workers, retries=2, retry_delay=0.1) as supervisor:
        began = time.monotonic()
        results = list(supervisor.run([(fail, b"")] + [(jobs.echo, b"")] * 50))
        assert time.monotonic() - began >= 0.3
    assert [result.status for result in results] == ["ok"] * 50 + ["failed"]
    assert results[-1].attempts == 3


def test_results_in_order_wait_for_a_retry():
    with Supervisor([flaky], workers=2, retries=2, retry_delay=0.1) as supervisor:
        assert list(supervisor.map(flaky, [str(number) for number in range(20)])) == [str(n) for n in range(20)]


def flaky(payload: str) -> str:
    """Fails the first time that it is called in each worker."""
    if not hasattr(flaky, "called"):
        flaky.called = True
        raise ValueError
    return payload


def test_what_is_cancelled_does_not_wait_for_its_retry():
    with Supervisor([fail], workers=1, retries=1, retry_delay=60) as supervisor:
        for _ in range(3):
            supervisor.submit(fail, b"")
        while supervisor.stats()["retried"] < 3:
            supervisor._engine.step(supervisor._submitted, lambda: None)
        supervisor.cancel()
        assert [r.status for r in supervisor.results()] == ["failed"] * 3


def wait_for_retry(supervisor):
    """Take turns until a task waits for its retry."""
    while not supervisor.stats()["retried"]:
        supervisor._engine.step(supervisor._submitted, lambda: None)


def test_an_abort_gives_tasks_that_wait_for_their_retry_their_last_status():
    with Supervisor([fail], workers=1, retries=1, retry_delay=60) as supervisor:
        supervisor.submit(fail, b"")
        wait_for_retry(supervisor)
        supervisor.abort()
        assert supervisor.stats()["outstanding"] == 0
        assert supervisor.stats()["failed"] == 1


def fail_at_a_gate(payload: str) -> None:
    jobs.wait_for_file(payload)
    raise ValueError("no")


@pytest.mark.parametrize("retry_delay", [0.0, 60.0])
def test_a_task_that_fails_after_a_cancel_is_not_tried_again(tmp_path, retry_delay):
    with Supervisor([fail_at_a_gate], workers=1, retries=5, retry_delay=retry_delay) as supervisor:
        supervisor.submit(fail_at_a_gate, str(tmp_path / "gate"))
        assert wait_until(lambda: supervisor._queue.glance(0).in_hand is not None)
        supervisor.cancel()
        (tmp_path / "gate").touch()
        while not supervisor.stats()["failed"] + supervisor.stats()["retried"]:
            supervisor._engine.step(supervisor._submitted, lambda: None)
        assert supervisor.stats()["retried"] == 0
        assert [(result.status, result.attempts) for result in supervisor.results()] == [("failed", 1)]


# Which statuses are tried again.


@pytest.mark.parametrize(
    ("retry_on", "attempts"),
    [(("failed",), {"fail": 2, "die": 1}), (("crashed",), {"fail": 1, "die": 2}), ((), {"fail": 1, "die": 1})],
)
def test_only_these_statuses_are_tried_again(retry_on, attempts):
    with Supervisor([fail, die], workers=1, retries=1, retry_on=retry_on) as supervisor:
        results = list(supervisor.run([(fail, b""), (die, b"")]))
    assert {result.function: result.attempts for result in results} == attempts


@pytest.mark.parametrize("retry_on", ["failed", ("ok",), ("nonsense",)])
def test_other_statuses_are_refused(retry_on):
    with pytest.raises(ValueError, match=r"retry_on=.*: must name some of failed, timeout, crashed"):
        Supervisor([fail], workers=1, retry_on=retry_on)


# One task is cancelled.


@pytest.mark.parametrize("workers", WORKERS)
def test_one_task_is_cancelled_wherever_it_is(workers):
    with Supervisor([rest], workers=workers, num_slots=4, batch=4) as supervisor:
        supervisor.pause(True)
        tsk_ids = [supervisor.submit(rest, "0.05") for _ in range(8)]
        assert supervisor.cancel(tsk_ids[7]), "it is not in the ring yet"
        supervisor.pause(False)
        supervisor._engine.push()
        if workers:
            assert wait_until(lambda: supervisor._queue.glance(0).in_hand is not None)
        assert supervisor.cancel(tsk_ids[2]), "it is in a lane or in the ring"
        assert not supervisor.cancel(tsk_ids[2]), "it has its outcome"
        assert not supervisor.cancel(1000), "there is none"
        ended = statuses(supervisor.results())
    assert ended == {tsk_id: "cancelled" if tsk_id in (tsk_ids[7], tsk_ids[2]) else "ok" for tsk_id in tsk_ids}


def test_a_task_in_hand_is_not_cancelled():
    with Supervisor([rest], workers=1) as supervisor:
        tsk_id = supervisor.submit(rest, "0.2")
        assert wait_until(lambda: supervisor._queue.glance(0).in_hand is not None)
        assert not supervisor.cancel(tsk_id)
        assert statuses(supervisor.results()) == {tsk_id: "ok"}


def test_a_task_that_waits_for_its_retry_ends_with_its_last_status():
    with Supervisor([fail, jobs.echo], workers=1, retries=1, retry_delay=60) as supervisor:
        tsk_id = supervisor.submit(fail, b"")
        wait_for_retry(supervisor)
        assert not supervisor.cancel(tsk_id)
        (result,) = supervisor.results()
    assert (result.status, result.attempts, result.error) == ("failed", 1, "ValueError: no")


def note_and_fail(payload: str) -> None:
    jobs.note(payload)
    raise ValueError("no")


def test_a_cancelled_retry_leaves_the_six_others_in_their_order(monkeypatch, tmp_path):
    """It is the next one due, as the others have had two attempts: their pauses are twice as long."""
    now = 1000.0  # the clock moves only when this test says so
    monkeypatch.setattr(shmqueue.system, "monotonic", lambda: now)
    notes = tmp_path / "notes"
    with Supervisor([note_and_fail, jobs.quiet], workers=0, retries=2, retry_delay=1) as supervisor:

        def wait_for_retries(count):
            while supervisor.stats()["retried"] < count:
                list(supervisor.run([(jobs.quiet, b"")]))  # so that the engine goes on

        for text in "abcdef":
            supervisor.submit(note_and_fail, f"{notes}|{text}")
        wait_for_retries(6)
        now += 1
        wait_for_retries(12)
        tsk_id = supervisor.submit(note_and_fail, f"{notes}|x")
        wait_for_retries(13)
        supervisor.cancel(tsk_id)
        now += 2
        attempts = [result.attempts for result in sorted(supervisor.results())]
    assert attempts == [3] * 6 + [1]
    assert notes.read_text().split() == [*"abcdefabcdef", "x", *"abcdef"]


def test_a_task_whose_pause_is_over_is_not_one_that_never_began():
    with Supervisor([fail], workers=1, retries=1, retry_delay=0.2) as supervisor:
        tsk_id = supervisor.submit(fail, b"")
        wait_for_retry(supervisor)
        supervisor.pause(True)
        while supervisor._ledger.delayed:
            supervisor._engine.step(supervisor._submitted, lambda: None)
        assert not supervisor.cancel(tsk_id)
        assert [(result.status, result.attempts) for result in supervisor.results()] == [("failed", 1)]


def test_one_of_the_tasks_that_were_taken_back_is_cancelled():
    with Supervisor([rest], workers=1, num_slots=16, batch=1) as supervisor:
        results = supervisor.run(["0.01"] * 10)
        first = next(results)
        supervisor.pause(True)
        before = supervisor.stats()["outstanding"]
        assert supervisor.cancel(7)
        assert supervisor.stats()["outstanding"] == before - 1
        supervisor.pause(False)
        ended = statuses([first, *results])
    assert ended == {number: "cancelled" if number == 7 else "ok" for number in range(1, 11)}


def test_many_tasks_are_cancelled_one_by_one():
    with Supervisor([rest], workers=2, num_slots=64) as supervisor:
        tsk_ids = [supervisor.submit(rest, "0.01") for _ in range(60)]
        cancelled = {tsk_id for tsk_id in reversed(tsk_ids[::2]) if supervisor.cancel(tsk_id)}
        assert cancelled
        ended = statuses(supervisor.results())
    assert ended == {tsk_id: "cancelled" if tsk_id in cancelled else "ok" for tsk_id in tsk_ids}


# The grace of a task that ran too long.


def test_a_task_that_ends_in_its_grace_is_a_timeout(tmp_path):
    note = tmp_path / "sigterm"
    with Supervisor([ignore_sigterm, jobs.echo], workers=1, timeout=0.5, grace=60) as supervisor:
        tasks = [(ignore_sigterm, f"{note}|1.0")] + [(jobs.echo, b"")] * 20
        results = statuses(supervisor.run(tasks))
        assert supervisor.stats()["respawned"] == 1
    assert results == {1: "timeout"} | dict.fromkeys(range(2, 22), "ok")
    assert note.exists()


def test_a_task_has_its_whole_grace_to_tidy_up(tmp_path):
    with Supervisor([tidy_up], workers=1, timeout=0.5, grace=60) as supervisor:
        (result,) = supervisor.run([str(tmp_path / "tidy")])
    assert result.status == "timeout"
    assert (tmp_path / "tidy").exists()


@pytest.mark.parametrize("size", [3 << 20, 17 << 20])
@pytest.mark.parametrize("retries", [0, 1])
def test_nothing_is_left_of_a_large_value_that_comes_in_the_grace(size, retries):
    """Its file goes, and the file of a payload that does not fit the heap: as long as the run lasts it would stay."""
    options = {"workers": 1, "timeout": 0.5, "grace": 60, "retries": retries, "num_slots": 64}
    with Supervisor([echo_after_sigterm, jobs.echo], **options) as supervisor:
        late, *others = sorted(supervisor.run([(echo_after_sigterm, bytes(size))] + [(jobs.echo, b"x")] * 20))
        left = [name for name in segments_of([os.getpid()]) if name.startswith(supervisor.name)]
        assert {*left} <= {supervisor.name, f"{supervisor.name}.watch"}
    assert (late.status, late.value, late.attempts) == ("timeout", None, retries + 1)
    assert {(result.status, result.value) for result in others} == {("ok", b"x")}


def test_a_task_that_ignores_sigterm_is_killed_after_its_grace(tmp_path):
    note = tmp_path / "sigterm"
    with Supervisor([ignore_sigterm], workers=1, timeout=0.5, grace=0.2) as supervisor:
        (result,) = supervisor.run([f"{note}|600"])
    assert (result.status, result.error) == ("timeout", "ran longer than 0.5 s")
    assert note.exists()


def test_without_a_grace_there_is_no_sigterm(tmp_path):
    note = tmp_path / "sigterm"
    with Supervisor([ignore_sigterm], workers=1, timeout=0.1) as supervisor:
        assert [r.status for r in supervisor.run([f"{note}|20"])] == ["timeout"]
    assert not note.exists()


@pytest.mark.long
def test_the_rest_of_its_lane_does_not_wait_for_the_grace(tmp_path):
    tasks = [(ignore_sigterm, f"{tmp_path / 'note'}|4")] + [(jobs.echo, b"")] * 20
    with Supervisor([ignore_sigterm, jobs.echo], workers=2, timeout=0.5, grace=60, batch=21) as supervisor:
        results = [result.tsk_id for result in supervisor.run(tasks)]
    assert results[-1] == 1
    assert sorted(results) == list(range(1, 22))


# What a function can ask.


def test_a_function_knows_its_worker():
    with Supervisor([worker_number], workers=2) as supervisor:
        for result in supervisor.run([b""] * 200):
            assert result.value == str(result.worker)


def test_a_task_has_one_outcome():
    ledger = Ledger({1: jobs.echo}, Retries(0), 1, None)
    job = Job(NO_SOURCE)
    ledger.admit(job, [("echo", b"a"), ("echo", b"b")])
    ledger.placed(ledger.fresh.popleft(), [(7, 2)])
    ledger.complete(0, 7, 1, None, 0.0, 0.0)
    for again in (
        lambda: ledger.complete(0, 7, 1, None, 0.0, 0.0),
        lambda: ledger.give_back(7, 2),
        lambda: ledger.give_back(9, 1),
    ):
        with pytest.raises(SpoiledSegmentError):
            again()
    assert job.outstanding == 1


def test_the_ledger_finds_a_task_by_its_id():
    ledger = Ledger({1: jobs.echo}, Retries(0), 1, None)
    assert ledger.position(1) is None
    assert not ledger.cancel(1)


@pytest.mark.parametrize("how", ["cancel", "abort"])
def test_a_signal_handler_ends_a_run_at_the_moment_when_a_task_is_to_be_tried_again(monkeypatch, how):
    take_due = Ledger.take_due

    def interrupted(ledger, now):
        if len(ledger.delayed) == 3:  # their pauses are over now
            monkeypatch.undo()
            take_due(ledger, math.inf)
            signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(Ledger, "take_due", interrupted)
    before = signal.signal(signal.SIGALRM, lambda *_: getattr(supervisor, how)())
    try:
        with Supervisor([jobs.raise_error], workers=1, retries=3, retry_delay=60) as supervisor:
            results = list(supervisor.run([b""] * 3))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [(result.status, result.attempts) for result in results] == [("failed", 1)] * 3
