"""workers=0: the functions run in this process, with the same results and without a segment."""

import bdb
import os
import threading
import time
import traceback

import pytest

import shmqueue
from shmqueue import Supervisor, TaskError, parallel_map
from tests import jobs
from tests.helpers import segments_of


def where(payload: bytes) -> bytes:
    return b"%d %d" % (os.getpid(), threading.get_ident())


def interrupts(payload: bytes) -> None:
    raise KeyboardInterrupt


def leaves(payload: bytes) -> None:
    raise SystemExit(3)


def quits(payload: bytes) -> None:
    raise bdb.BdbQuit


def divides(payload: int) -> float:
    return 1 / payload


FUNCTIONS = [jobs.echo, jobs.raise_error, where, interrupts, leaves]


def test_functions_run_in_this_process_and_nothing_is_made():
    with Supervisor([where], workers=0) as supervisor:
        assert supervisor.name == ""
        assert supervisor.stats()["workers"] == []
        assert list(supervisor.map(where, [b""] * 3)) == [where(b"")] * 3
        assert segments_of([os.getpid()]) == []
    assert supervisor.stats()["ok"] == 3


def results_with(workers, tasks):
    with Supervisor(FUNCTIONS, workers=workers, retries=1) as supervisor:
        results = sorted(supervisor.run(tasks))
        return [result._replace(seconds=0.0, started=0.0) for result in results], supervisor.stats()["retried"]


def test_results_are_the_same_as_with_a_worker():
    tasks = [("echo", b"a"), ("raise_error", b"b"), ("leaves", b""), ("echo", "text"), ("nobody", b""), ("echo", b"")]
    results, retried = results_with(0, tasks)
    assert (results, retried) == results_with(1, tasks)
    assert [result.status for result in results] == ["ok", "failed", "failed", "ok", "failed", "ok"]
    assert retried == 2


@pytest.mark.parametrize("function", [jobs.return_bytearray, jobs.return_path, jobs.undeclared_point])
def test_values_travel_as_from_a_worker(function):
    found = []
    for workers in (0, 1):
        with Supervisor([function], workers=workers) as supervisor:
            (result,) = supervisor.run([b"x"])
            found.append((result.status, result.error, result.value, type(result.value)))
    assert found[0] == found[1]


def test_the_first_task_that_is_not_ok_raises():
    with pytest.raises(TaskError):
        parallel_map(jobs.raise_error, [b"x"], workers=0)


def test_a_task_error_has_the_exception_itself_as_its_cause():
    with Supervisor([divides], workers=0, retries=1) as supervisor:
        values = supervisor.map(divides, [4, 0])
        assert next(values) == 0.25
        with pytest.raises(TaskError) as caught:
            next(values)
    cause = caught.value.__cause__
    assert type(cause) is ZeroDivisionError
    frames = [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
    assert frames == ["divides"]  # where a debugger after the fact begins
    with pytest.raises(TaskError) as caught:
        parallel_map(divides, [0], workers=1)
    assert caught.value.__cause__ is None


def test_only_the_task_that_raised_has_a_cause():
    """Not one that was cancelled after another one had raised."""
    with Supervisor([divides], workers=0, retries=1, retry_delay=60) as supervisor:
        values = supervisor.map(divides, [0, 1])
        supervisor.on_check = supervisor.cancel
        with pytest.raises(TaskError, match="ZeroDivisionError") as caught:
            next(values)
        assert caught.value.__cause__ is None


def test_the_debuggers_q_goes_through_to_the_caller():
    with pytest.raises(bdb.BdbQuit), Supervisor([quits], workers=0) as supervisor:
        list(supervisor.run([b""]))


def test_input_is_read_task_by_task():
    read = []

    def payloads():
        for number in range(5):
            read.append(number)
            yield b"%d" % number

    with Supervisor([jobs.echo], workers=0) as supervisor:
        results = supervisor.run(payloads())
        next(results)
        assert len(read) <= 2


def test_ctrl_c_in_a_function_goes_through_to_the_caller():
    with pytest.raises(KeyboardInterrupt), Supervisor([interrupts], workers=0) as supervisor:
        list(supervisor.run([b""]))


@pytest.mark.promise("L13")
@pytest.mark.parametrize("options", [{"timeout": 1.0}, {"max_rss": 1 << 30}, {"log": "x.log"}])
def test_what_needs_a_process_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "max_rss" in options:
        pytest.importorskip("psutil")
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name}=.*: needs a worker process, and workers=0 starts none$"):
        Supervisor([jobs.echo], workers=0, **options)


def test_the_initializer_runs_once_and_its_error_is_raised():
    calls = []
    with Supervisor([jobs.echo], workers=0, initializer=lambda: calls.append(1)) as supervisor:
        assert list(supervisor.map(jobs.echo, [b"a", b"b"])) == [b"a", b"b"]
    assert calls == [1]
    with pytest.raises(ZeroDivisionError):
        Supervisor([jobs.echo], workers=0, initializer=lambda: 1 // 0)


def test_no_task_is_in_hand_in_an_initializer():
    told = []
    with Supervisor([jobs.echo], workers=0, initializer=lambda: told.append(shmqueue.tsk_id_in_hand())):
        assert told == [0]


def test_submit_cancel_pause_and_close():
    with Supervisor([jobs.echo], workers=0) as supervisor:
        supervisor.pause(True)
        tsk_ids = [supervisor.submit(jobs.echo, b"%d" % number) for number in range(3)]
        assert supervisor.cancel(tsk_ids[1])
        supervisor.pause(False)
        assert {r.tsk_id: r.status for r in supervisor.results()} == {1: "ok", 2: "cancelled", 3: "ok"}
        supervisor.submit(jobs.echo, b"")
    assert supervisor.stats()["ok"] == 3


def test_a_run_closed_early_goes_no_further():
    with Supervisor([jobs.echo], workers=0) as supervisor:
        results = supervisor.run(b"%d" % number for number in range(100))
        next(results)
        results.close()
        assert supervisor.stats()["ok"] <= 2


def test_retries_wait_without_holding_up_others():
    with Supervisor(FUNCTIONS, workers=0, retries=1, retry_delay=0.2) as supervisor:
        began = time.monotonic()
        results = [r.function for r in supervisor.run([("raise_error", b""), ("echo", b"")])]
        assert results == ["echo", "raise_error"]
        assert time.monotonic() - began >= 0.2


def own_index(payload):
    return os.environ["SHMQUEUE_WORKER"]


@pytest.mark.parametrize("outside", [None, "7"])
def test_functions_find_the_index_of_a_worker(monkeypatch, outside):
    """And the program finds what it had itself, which may be a worker."""
    monkeypatch.delenv("SHMQUEUE_WORKER", raising=False)
    if outside is not None:
        monkeypatch.setenv("SHMQUEUE_WORKER", outside)
    found = []
    with Supervisor([own_index], workers=0, initializer=lambda: found.append(own_index(b""))) as supervisor:
        assert list(supervisor.map(own_index, [b""])) == found == ["0"]
        assert os.environ.get("SHMQUEUE_WORKER") == outside


@pytest.mark.promise("L14")
def test_a_run_in_another_thread_removes_the_index_at_the_same_moment(monkeypatch):
    def read(value):
        os.environ._data.pop(b"SHMQUEUE_WORKER", None)
        return decode(value)

    monkeypatch.delenv("SHMQUEUE_WORKER", raising=False)
    decode = os.environ.decodevalue
    monkeypatch.setattr(os.environ, "decodevalue", read)
    assert parallel_map(jobs.echo, [b"a", b"b"], workers=0) == [b"a", b"b"]


def test_an_abort_leaves_nothing_that_runs_later():
    calls = []
    with Supervisor([calls.append], workers=0) as supervisor:
        supervisor.submit(calls.append, b"x")
        supervisor.abort()
        assert [result.status for result in supervisor.results()] == ["cancelled"]
        assert [result.status for result in supervisor.run([b"y"])] == ["cancelled"]
    assert calls == []


def test_many_requests_in_one_step_are_served():
    def act(payload: bytes) -> None:
        for _ in range(2000):
            supervisor.cancel()

    with Supervisor([act], workers=0) as supervisor:
        assert [result.status for result in supervisor.run([b"x"])] == ["ok"]
