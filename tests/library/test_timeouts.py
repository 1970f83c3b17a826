"""Limits by function and by task, and results that are not waited for."""

import threading
import time

import pytest

import shmqueue
from shmqueue import Supervisor
from tests import jobs
from tests.helpers import HANG, wait_until

LIMIT = 0.5


def rest(payload: str) -> str:
    time.sleep(float(payload))
    return payload


def also_rest(payload: str) -> str:
    time.sleep(float(payload))
    return payload


def statuses(tasks, functions=(rest, also_rest), **options):
    with Supervisor(list(functions), workers=2, **options) as supervisor:
        return {result.tsk_id: (result.status, result.error) for result in supervisor.run(tasks)}


@pytest.mark.parametrize("key", [rest, "rest"])
def test_each_function_has_its_own_limit(key):
    told = statuses([("rest", "30"), ("also_rest", "1.0"), (rest, "0")], timeout={key: LIMIT, "also_rest": None})
    assert told == {1: ("timeout", "ran longer than 0.5 s"), 2: ("ok", None), 3: ("ok", None)}


def test_a_task_has_a_limit_of_its_own_in_each_attempt_and_wherever_its_payload_lies():
    with Supervisor([rest], workers=1, retries=1, timeout=HANG) as supervisor:
        for payload in ("30", "30" + " " * 500):
            supervisor.submit(rest, payload, timeout=LIMIT)
        supervisor.submit(rest, "0")
        found = {result.tsk_id: (result.status, result.attempts) for result in supervisor.results()}
    assert found == {1: ("timeout", 2), 2: ("timeout", 2), 3: ("ok", 1)}


@pytest.mark.parametrize(
    ("timeout", "says"),
    [
        ({"rset": 1}, "rset.*nearest: rest"),
        ({"rest": 0}, "timeout=0: must be from"),
        ({jobs.echo: 1}, "no function 'echo'"),
    ],
)
def test_a_mapping_that_cannot_be_right_is_an_error(timeout, says):
    with pytest.raises(ValueError, match=says):
        Supervisor([rest, also_rest], workers=1, timeout=timeout)


def test_a_name_stands_for_the_first_function_that_has_it():
    def other(payload):
        pass

    other.__name__ = "rest"
    told = statuses([(rest, "30"), ("rest", "0")], [rest, other], timeout={"rest": LIMIT}, start_method="fork")
    assert told == {1: ("timeout", "ran longer than 0.5 s"), 2: ("ok", None)}
    with Supervisor([rest, other], workers=1, timeout={other: 1}, start_method="fork") as supervisor:
        assert [result.status for result in supervisor.run([(rest, "0")])] == ["ok"]


def test_limits_need_a_worker():
    with Supervisor([rest], workers=0) as supervisor, pytest.raises(ValueError, match="needs a worker process"):
        supervisor.submit(rest, "0", timeout=1)
    with pytest.raises(TypeError, match="must be a number"):
        shmqueue.Executor(max_workers=1, timeout={"rest": 1})


# results(timeout=S)


def test_results_that_are_not_there_are_not_waited_for(tmp_path):
    gate = tmp_path / "gate"
    with Supervisor([jobs.wait_for_file, jobs.echo], workers=2) as supervisor:
        assert list(supervisor.results(timeout=0)) == []
        supervisor.submit(jobs.wait_for_file, str(gate))
        tsk_id = supervisor.submit(jobs.echo, b"x")
        found = []
        assert wait_until(lambda: found.extend(supervisor.results(timeout=0)) or found)
        assert [result.tsk_id for result in found] == [tsk_id]
        began = time.monotonic()
        assert list(supervisor.results(timeout=0.3)) == []
        assert time.monotonic() - began >= 0.3
        gate.touch()
        assert [result.status for result in supervisor.results(timeout=HANG)] == ["ok"]


def test_a_slow_producer_gets_its_results_between_two_tasks():
    found = []
    with Supervisor([jobs.echo], workers=1) as supervisor:
        for number in range(200):
            supervisor.submit(jobs.echo, b"%d" % number)
            found += supervisor.results(timeout=0)
        found += supervisor.results()
    assert sorted(int(result.value) for result in found) == list(range(200))


def test_results_timeout_counts_from_the_first_next(tmp_path):
    with Supervisor([jobs.wait_for_file], workers=1) as supervisor:
        supervisor.submit(jobs.wait_for_file, str(tmp_path / "gate"))
        results = supervisor.results(timeout=2.0)
        time.sleep(2.1)
        threading.Timer(0.1, (tmp_path / "gate").touch).start()
        assert [result.status for result in results] == ["ok"]
    with Supervisor([jobs.echo], workers=1) as supervisor, pytest.raises(ValueError, match="timeout=-1"):
        supervisor.results(timeout=-1)


def test_threads_take_turns_for_results_and_none_is_lost():
    """What one takes while another does raises in the later one."""
    found, refused, stop = [], [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                found.extend(supervisor.results(timeout=0.01))
            except RuntimeError as error:
                refused.append(str(error))
                time.sleep(0.002)

    with Supervisor([rest], workers=2) as supervisor:
        tsk_ids = {supervisor.submit(rest, "0.003") for _ in range(300)}
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(found) == 300)
        stop.set()
        for thread in threads:
            thread.join()
        found.extend(supervisor.results())
    assert len(found) == 300
    assert {result.tsk_id for result in found} == tsk_ids
    assert refused
    assert all("shmqueue.Executor" in text for text in refused)
