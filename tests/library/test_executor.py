"""Executor: the standard library's tests of ProcessPoolExecutor, what those do not ask, and real users of one."""

import concurrent.futures
import contextlib
import gc
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import weakref

import pytest

import shmqueue
from tests.helpers import (
    HANG,
    METHODS,
    ROOT,
    descriptors,
    in_child,
    run_script,
    segments_of,
    session_of,
    unreaped_children,
    wait_until,
)
from tests.library import executor_jobs

ONCE = pytest.mark.once  # enough on one Python

# The standard library's own tests.

LIMIT = 300.0  # seconds for one process of them; a quiet machine takes 20
GROUPS = (
    ["WaitTests"],
    ["ProcessPoolExecutorTest"],
    ["AsCompletedTests", "ProcessPoolShutdownTest", "InitializerMixin"],
)
STARTS = GROUPS[-1:]  # workers that are spawned differ from those of a fork server in their start and end only


def start_standard_tests(method, classes):
    script = ROOT / "tests" / "library" / "stdlib_executor.py"
    command = [sys.executable, "-W", "error::ResourceWarning", str(script), method, *classes]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True)


def report_of(process):
    """What a process of the standard tests reports at its end, once nothing is left of it."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"the standard tests hung: {process.communicate()[1]}")
    assert process.returncode == 0, err
    assert wait_until(lambda: not session_of(process.pid)), session_of(process.pid)
    for warning in ("Warning", "Traceback", "leaked", "reap_children", "dangling"):
        assert warning not in err
    return json.loads(out.splitlines()[-1])


def has_standard_tests():
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec("test.test_concurrent_futures") is not None
    return False


@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT)
@pytest.mark.parametrize("method", [pytest.param(name, marks=() if name == "fork" else ONCE) for name in METHODS])
def test_the_standard_librarys_tests(own_pids, method):
    """All groups at once, since most of these tests sleep."""
    if not has_standard_tests():
        pytest.skip(f"Python {sys.version.split()[0]} came without test.test_concurrent_futures; another one has it")
    if sys.version_info >= (3, 14):
        pytest.skip(
            "since Python 3.14, most new tests look at processes and threads of the pool: older ones have the rest"
        )
    groups = STARTS if method == "spawn" else GROUPS
    processes = [start_standard_tests(method, classes) for classes in groups]
    own_pids.update(process.pid for process in processes)
    try:
        parts = [report_of(process) for process in processes]
    finally:
        for process in processes:
            process.kill()  # those that are still running, after a failure
    assert [bad for part in parts for bad in part["bad"]] == []
    left_out = [why for part in parts for why in part["skipped"]]
    # Python 3.10 has 31 of them; later ones have tests of max_tasks_per_child, one of which runs with fork only.
    since = (sys.version_info >= (3, 13, 4)) + (sys.version_info >= (3, 13, 15))  # one each has come with these
    whole = 31 + since + (sys.version_info >= (3, 11)) * (1 + (method == "fork"))
    assert sum(part["run"] for part in parts) == (10 if groups is STARTS else whole)
    for why in left_out:
        assert "Windows" in why or ("fork start method" in why and method == "fork"), why


@pytest.fixture
def executor():
    with shmqueue.Executor(2) as made:
        yield made
    assert not [thread for thread in threading.enumerate() if thread.name == "shmqueue-executor"]


# The class.


def test_the_class_is_made_when_it_is_asked_for(tmp_path):
    """Importing the file alone must not cost what concurrent.futures and logging cost."""
    text = """
import sys, shmqueue
assert not {"concurrent.futures", "logging"} & set(sys.modules)
from shmqueue import *
import concurrent.futures, pickle
assert issubclass(Executor, concurrent.futures.Executor) and Executor is shmqueue.Executor
assert pickle.loads(pickle.dumps(Executor)) is Executor
assert Executor.__doc__ and Executor.__name__ == "Executor" and Executor.__module__ == "shmqueue"
"""
    run_script(tmp_path, text)


def test_another_name_is_not_made():
    with pytest.raises(AttributeError, match="module 'shmqueue' has no attribute 'executor'"):
        shmqueue.executor  # noqa: B018


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"initializer": 1}, TypeError, "initializer=1: must be callable"),
        ({"retries": -1}, ValueError, "retries=-1"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"timeout": {"sleep": 1}}, TypeError, "timeout={'sleep': 1}: must be a number"),
        ({"max_workers": 1 << 20}, ValueError, "max_workers=1048576: must be from 1 to 4,096"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child=0"),
        ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child=1.5"),
    ],
)
def test_bad_arguments(options, error, text):
    with pytest.raises(error, match=text):
        shmqueue.Executor(**options)


def test_max_tasks_per_child_is_refused_with_fork():
    with pytest.raises(ValueError, match="fork"):
        shmqueue.Executor(1, multiprocessing.get_context("fork"), max_tasks_per_child=1)


def test_without_max_workers_there_are_as_many_as_processors():
    with shmqueue.Executor() as executor:
        assert executor._max_workers == shmqueue.available_processors()


# Calls and their outcomes.


@pytest.mark.parametrize("method", METHODS)
def test_any_callable_with_any_arguments(method):
    with shmqueue.Executor(2, multiprocessing.get_context(method)) as executor:
        assert executor.submit(math.gcd, 12, 18).result() == 6
        assert executor.submit(sorted, [3, 1, 2], reverse=True).result() == [3, 2, 1]
        assert list(executor.map(max, range(300), [7] * 300)) == [max(n, 7) for n in range(300)]
        assert executor.submit(executor_jobs.Payload().method).result() != os.getpid()


def test_what_was_pickled_before_is_forgotten(executor):
    """A pickler is used again: neither after an error nor after a large object does it know what it has sent."""
    shared = [1, 2]
    for first in (shared, bytes(1 << 20), threading.Lock(), shared):
        with contextlib.suppress(TypeError):
            executor.submit(id, first).result()
        assert executor.submit(list, shared).result() == [1, 2]
        assert executor.submit(executor_jobs.raise_it, ValueError(shared)).exception().args == (shared,)


def test_large_arguments_and_values(executor):
    data = os.urandom(3 << 20)
    assert executor.submit(bytes.upper, data).result() == data.upper()
    assert [len(value) for value in executor.map(bytes, [1 << 20] * 40)] == [1 << 20] * 40


def test_an_exception_arrives_as_itself_with_the_text_of_its_traceback(executor):
    error = executor.submit(executor_jobs.raise_chained).exception()
    assert (type(error), error.args) == (ValueError, ("second",))
    text = str(error.__cause__)
    assert 'raise KeyError("first")' in text
    assert "in raise_chained" in text
    assert "the direct cause" in text


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ((executor_jobs.raise_chained,), ValueError),
        ((executor_jobs.make_lock,), TypeError),
        ((len, executor_jobs.Unreadable()), OSError),
        ((executor_jobs.raise_unreadable,), TypeError),
        ((executor_jobs.die,), shmqueue.TaskError),
    ],
    ids=lambda value: getattr(value[0], "__name__", None) if type(value) is tuple else value.__name__,
)
def test_a_traceback_has_no_frame_of_ours(executor, call, kind):
    """Neither that of the worker, which is the text of the cause, nor that of the caller."""
    with pytest.raises(kind) as raised:
        executor.submit(*call).result()
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert shmqueue.__file__ not in [frame.filename for frame in frames]
    assert f'File "{shmqueue.__file__}"' not in str(raised.value.__cause__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_exception_that_would_end_a_program_is_the_calls_alone(error):
    with shmqueue.Executor(1) as executor:
        worker = executor.submit(os.getpid).result()
        assert type(executor.submit(executor_jobs.raise_it, error).exception()) is type(error)
        assert executor.submit(os.getpid).result() == worker


def test_what_cannot_be_pickled_or_read_fails_one_future(executor):
    fails = {
        executor.submit(lambda: 1): "<lambda>",
        executor.submit(len, threading.Lock()): "cannot pickle",
        executor.submit(executor_jobs.make_lock): "cannot pickle",
        executor.submit(len, executor_jobs.Unreadable()): "no such file",
        executor.submit(executor_jobs.make_unreadable): "no such file",
        executor.submit(executor_jobs.raise_unreadable): "second",
    }
    for future, text in fails.items():
        assert text in str(future.exception())
    trace = str(executor.submit(executor_jobs.raise_unreadable).exception().__cause__)
    assert ", in raise_unreadable\n" in trace
    assert "TwoArguments: 1 2" in trace
    assert executor.submit(abs, -1).result() == 1


def test_a_killed_worker_fails_only_the_call_in_its_hand(executor):
    futures = [executor.submit(executor_jobs.nap, 0.05) for _ in range(10)]
    doomed = executor.submit(executor_jobs.die)
    more = [executor.submit(executor_jobs.nap, 0.05) for _ in range(10)]
    error = doomed.exception()
    assert isinstance(error, shmqueue.TaskError)
    assert (error.result.status, error.result.function, error.result.attempts) == ("crashed", "die", 1)
    assert "SIGKILL" in str(error)
    assert all(future.result() for future in (*futures, *more))


def test_a_call_that_takes_too_long_fails_alone():
    with shmqueue.Executor(2, multiprocessing.get_context("fork"), timeout=1.0) as executor:
        slow, quick = executor.submit(time.sleep, 60), [executor.submit(executor_jobs.nap, 0.02) for _ in range(20)]
        with pytest.raises(TimeoutError, match="ran longer than 1 s") as raised:
            slow.result()
        cause = raised.value.__cause__
        assert isinstance(cause, shmqueue.TaskError)
        assert (cause.result.status, cause.result.function) == ("timeout", "sleep")
        assert all(future.result() for future in quick)


@pytest.mark.long
@pytest.mark.parametrize("how", ["failed", "crashed", "timeout"])
def test_retries(tmp_path, how):
    for folder in ("enough", "few"):
        (tmp_path / folder).mkdir()
    with shmqueue.Executor(2, multiprocessing.get_context("fork"), timeout=1.0, retries=2) as executor:
        assert executor.submit(executor_jobs.fail_until, str(tmp_path / "enough"), 2, how).result() == 3
        error = executor.submit(executor_jobs.fail_until, str(tmp_path / "few"), 9, how).exception()
    if how == "failed":
        assert str(error) == "call 2"
    else:
        result = (error.__cause__ if how == "timeout" else error).result
        assert (result.status, result.attempts) == (how, 3)
    assert len(list((tmp_path / "few").iterdir())) == 3


@pytest.fixture
def gate(tmp_path):
    """A file for executor_jobs.wait_for(), which is there at the end of the test."""
    yield tmp_path / "gate"
    (tmp_path / "gate").touch()


def begun(gate):
    """How many calls of wait_for() have begun."""
    calls = gate.with_name(gate.name + ".calls")
    return calls.stat().st_size if calls.exists() else 0


def test_a_call_that_has_not_begun_can_be_cancelled(executor, gate):
    futures = [executor.submit(executor_jobs.wait_for, str(gate)) for _ in range(30)]
    assert wait_until(lambda: begun(gate) == 2)
    cancelled = [future for future in futures if future.cancel()]
    assert len(cancelled) >= 30 - 2 * 3
    assert futures[-1] in cancelled
    gate.touch()
    concurrent.futures.wait(futures)
    assert begun(gate) == 30 - len(cancelled)


@pytest.mark.parametrize("name", ["kill_workers", "terminate_workers"])
def test_the_workers_can_be_killed(name):
    """As those of ProcessPoolExecutor can, from Python 3.14 on."""
    executor = shmqueue.Executor(max_workers=1)
    futures = [executor.submit(time.sleep, 600) for _ in range(5)]
    assert wait_until(lambda: futures[0].running())
    getattr(executor, name)()
    for future in futures:
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            future.result(HANG)
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    executor.shutdown()


def test_whoever_waits_for_futures_is_told_that_shutdown_has_cancelled_them(executor, gate):
    futures = [executor.submit(executor_jobs.wait_for, str(gate)) for _ in range(30)]
    assert wait_until(lambda: begun(gate) == 2)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.touch()
    assert concurrent.futures.wait(futures, HANG / 2).not_done == set()
    assert {*concurrent.futures.as_completed(futures, HANG / 2)} == {*futures}
    cancelled = [future for future in futures if future.cancelled()]
    assert begun(gate) == 30 - len(cancelled)
    assert len(cancelled) >= 30 - 2 * 3


def test_short_calls_do_not_carry_away_those_that_follow(executor, gate):
    """Short calls are handed over in advance, in a number that stays small beside what waits."""
    list(executor.map(abs, range(2000)))
    futures = [executor.submit(executor_jobs.wait_for, str(gate)) for _ in range(200)]
    assert sum(future.cancel() for future in futures) > 200 - 40


def refuse_futures(monkeypatch):
    def refuse(future):
        raise AssertionError("a map needs no futures")

    monkeypatch.setattr(concurrent.futures.Future, "__init__", refuse)


@pytest.mark.parametrize("chunksize", [1, 7])
def test_map_makes_no_futures(executor, monkeypatch, chunksize):
    refuse_futures(monkeypatch)
    assert list(executor.map(pow, range(5000), [2] * 5000, chunksize=chunksize)) == [n * n for n in range(5000)]


def test_map_reads_and_begins_before_it_is_asked(executor, gate):
    numbers = iter(range(10))
    values = executor.map(abs, numbers)
    assert list(numbers) == []
    executor.map(executor_jobs.wait_for, [str(gate)] * 3)
    assert wait_until(lambda: begun(gate) == 2)
    assert list(values) == [*range(10)]


def test_an_iterator_that_was_never_advanced_cancels_nothing(executor, gate):
    executor.map(executor_jobs.wait_for, [str(gate)] * 30).close()
    assert wait_until(lambda: begun(gate) == 2)
    gate.touch()
    executor.shutdown()
    assert begun(gate) == 30


def outstanding(executor):
    return len(executor._calls._given) + len(executor._calls._waiting)


@pytest.mark.parametrize("way", ["close", "forget", "error"])
def test_an_iterator_that_was_advanced_and_ends_cancels_what_has_not_begun(executor, gate, way):
    """Other calls are made."""
    numbers = [0, -1 if way == "error" else 1, *range(2, 3000)]
    values = executor.map(executor_jobs.wait_if_positive, [str(gate)] * 3000, numbers)
    after = executor.submit(abs, -1)
    assert next(values) == 0
    if way == "error":
        with pytest.raises(ValueError, match="negative"):
            next(values)
    elif way == "close":
        values.close()
    del values
    assert wait_until(lambda: outstanding(executor) <= 4)  # those that were handed over, and `after`
    gate.touch()
    assert after.result() == 1
    assert begun(gate) <= 2 * 3


def test_values_before_a_call_that_cannot_be_sent_arrive(executor):
    values = executor.map(len, ["abc", "", threading.Lock(), "abcd"])
    assert [next(values), next(values)] == [3, 0]
    with pytest.raises(TypeError, match="cannot pickle"):
        next(values)
    assert list(values) == []


def test_a_chunk_is_one_task():
    with shmqueue.Executor(1, max_tasks_per_child=2) as executor:
        pids = list(executor.map(executor_jobs.get_pid, range(10), chunksize=3))
    assert [len(set(pids[at : at + 6])) for at in (0, 6)] == [1, 1]
    assert pids[5] != pids[6]


def test_a_death_costs_a_chunk(executor):
    values = executor.map(executor_jobs.die_if_zero, [3, 2, 1, 0, 1, 2, 3, 4, 5], chunksize=3)
    other = executor.submit(abs, -1)
    assert [next(values) for _ in range(3)] == [3, 2, 1]
    with pytest.raises(shmqueue.TaskError, match="SIGKILL") as raised:
        next(values)
    assert raised.value.result.function == "die_if_zero"
    assert other.result() == 1


@pytest.mark.parametrize("chunksize", [1, 2])
def test_calls_of_a_map_are_tried_again(tmp_path, chunksize):
    with shmqueue.Executor(1, retries=2) as executor:
        calls = executor.map(
            executor_jobs.fail_until, [str(tmp_path)] * 2, [2] * 2, ["crashed"] * 2, chunksize=chunksize
        )
        assert list(calls) == [3, 4]


def test_chunks_are_at_least_of_one_call(executor):
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(abs, [1], chunksize=0)


def test_shutdown_cancels_calls_of_maps(executor, gate):
    """Values before the first call that was cancelled arrive."""
    values = executor.map(executor_jobs.wait_if_positive, [str(gate)] * 3000, range(3000))
    assert next(values) == 0
    assert wait_until(lambda: begun(gate) == 2)
    executor.shutdown(wait=False, cancel_futures=True)
    assert wait_until(lambda: outstanding(executor) <= 3)  # those that were handed over
    gate.touch()
    got = []
    with pytest.raises(concurrent.futures.CancelledError):
        got.extend(values)
    assert 1 <= len(got) <= begun(gate) <= 2 * 3  # a worker may have begun a later one than the next
    assert got == [*range(1, len(got) + 1)]


class Counted:
    """Counts how often something of its size was pickled."""

    def __init__(self, counts, size):
        self.counts, self.size = counts, size

    def __reduce__(self):
        self.counts.append(self.size)
        return bytes, (bytes(self.size),)


def test_large_arguments_of_a_map_are_not_pickled_far_ahead(executor, gate):
    counts = []
    executor.map(executor_jobs.wait_for, [str(gate)] * 2)
    values = executor.map(len, [Counted(counts, 1 << 20)] * 200)
    assert wait_until(lambda: begun(gate) == 2)
    time.sleep(0.2)
    assert len(counts) <= 2 * 3
    gate.touch()
    assert list(values) == [1 << 20] * 200
    assert len(counts) == 200


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Executor.map has no buffersize before Python 3.14")
def test_buffersize(executor):
    numbers = iter(range(100))
    values = executor.map(abs, numbers, chunksize=2, buffersize=3)
    assert next(numbers) == 6
    assert list(values) == [n for n in range(100) if n != 6]


def test_map_gives_up_after_its_timeout_and_cancels(executor, gate):
    values = executor.map(executor_jobs.wait_for, [str(gate)] * 50, timeout=0.5)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(values)
    gate.touch()
    executor.shutdown()
    assert begun(gate) <= 2 * 3


def test_initializer_with_arguments():
    with shmqueue.Executor(2, initializer=executor_jobs.set_state, initargs=(1, "two")) as executor:
        assert list(executor.map(executor_jobs.get_state, range(4))) == [[1, "two"]] * 4


@pytest.mark.parametrize("method", METHODS)
def test_a_failing_initializer_breaks_the_executor(method):
    with shmqueue.Executor(2, multiprocessing.get_context(method), executor_jobs.fail_at_start) as executor:
        futures = [executor.submit(abs, number) for number in range(20)]
        values = executor.map(abs, range(2000))
        for result in (*(future.result for future in futures), values.__next__):
            with pytest.raises(concurrent.futures.process.BrokenProcessPool, match="no licence"):
                result()
        with pytest.raises(concurrent.futures.BrokenExecutor, match="no licence"):
            executor.submit(abs, 1)


def test_max_tasks_per_child():
    with shmqueue.Executor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(6)]
    assert [len({*pids[at : at + 2]}) for at in (0, 2, 4)] == [1, 1, 1]
    assert len(set(pids)) == 3


def test_references_are_dropped(executor):
    """Arguments once they are pickled, values and exceptions once they are handed over."""
    payload = executor_jobs.Payload()
    seen = weakref.ref(payload)
    future = executor.submit(isinstance, payload, executor_jobs.Payload)
    del payload
    assert future.result()
    gc.disable()
    try:
        assert seen() is None
        value = executor.submit(executor_jobs.Payload).result()
        seen = weakref.ref(value)
        del value
        assert seen() is None
    finally:
        gc.enable()


def test_an_idle_executor_does_not_hold_the_last_value(executor):
    size = 16 << 20
    tracemalloc.start()
    try:
        assert executor.submit(bytes, size).result() == bytes(size)
        assert wait_until(lambda: tracemalloc.get_traced_memory()[0] < size)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", METHODS)
def test_calls_within_calls(method):
    """Also after the program has started a fork server, which is not the child of a forked worker."""
    with shmqueue.Executor(1, multiprocessing.get_context("forkserver")) as before:
        assert before.submit(abs, -1).result() == 1
    with shmqueue.Executor(1, multiprocessing.get_context(method)) as executor:
        assert executor.submit(executor_jobs.inner, -5).result() == 5


def test_a_callback_may_submit_and_shut_down(executor):
    later = []
    executor.submit(abs, -1).add_done_callback(lambda future: later.append(executor.submit(abs, future.result() - 3)))
    assert wait_until(lambda: later)
    assert later[0].result() == 2
    later[0].add_done_callback(lambda future: executor.shutdown(wait=False))
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, 1)


@pytest.mark.promise("G8a")
def test_what_the_program_has_not_written_yet_is_written_once(tmp_path):
    """A worker that is forked in place of a dead one has a copy of it."""
    script = """
import multiprocessing, os, shmqueue, sys
forks = []
def write():
    forks.append(1)
    sys.stdout.write("once ")
if __name__ == "__main__":
    with shmqueue.Executor(1, multiprocessing.get_context("fork")) as executor:
        os.register_at_fork(before=write)
        assert type(executor.submit(os._exit, 1).exception()) is shmqueue.TaskError
        assert executor.submit(print, "by a worker").result() is None
    print(len(forks))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    *words, forks = run_script(tmp_path, script, env=environment)
    assert words.count("once") == int(forks) > 0
    assert words.count("worker") == 1


def test_a_callback_cannot_wait_for_the_end_of_its_own_executor(caplog):
    executor = shmqueue.Executor(1)
    executor.submit(abs, -1).add_done_callback(lambda _: executor.shutdown())
    executor.shutdown()
    assert "an Executor cannot wait for its own end in a callback" in caplog.text


def test_callbacks_that_leave_by_sys_exit_do_not_hang_the_program(tmp_path):
    text = """
import shmqueue, sys, time

def leave(future):
    if future.exception():
        sys.exit(1)

if __name__ == "__main__":
    executor = shmqueue.Executor(1)
    futures = [executor.submit(int, "x"), *(executor.submit(time.sleep, 0.01) for _ in range(10))]
    for future in futures:
        future.add_done_callback(leave)
    print(sum(future.exception() is not None for future in futures))
    executor.shutdown()
"""
    assert run_script(tmp_path, text) == ["11"]


class RefusedError(Exception):
    """It cannot be pickled."""

    def __reduce__(self):
        raise RefusedError("this cannot be pickled either")


class Unwilling:
    def __reduce__(self):
        raise RefusedError("not this")


def test_an_argument_whose_error_cannot_be_pickled_fails_its_call_alone(executor):
    with pytest.raises(RefusedError, match="not this"):
        executor.submit(abs, Unwilling()).result()
    assert executor.submit(abs, -2).result() == 2


def test_an_idle_executor_answers_and_ends_before_anybody_in_it_looks_by_himself(monkeypatch):
    for name in ("CHECK_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(shmqueue, name, HANG / 2)
    with shmqueue.Executor(2) as executor:
        executor.submit(abs, 1).result()
        time.sleep(0.4)
        started = time.monotonic()
        assert executor.submit(abs, -2).result() == 2
    assert time.monotonic() - started < HANG / 4


# Real users.


@pytest.mark.long
def test_asyncio(tmp_path):
    """3000 naps would take longer than a script may."""
    text = """
import asyncio, shmqueue

def square(number):
    return number * number

def fail():
    raise LookupError("nothing there")

async def main():
    loop = asyncio.get_running_loop()
    with shmqueue.Executor(2) as executor:
        values = await asyncio.gather(*(loop.run_in_executor(executor, square, n) for n in range(200)))
        assert values == [n * n for n in range(200)]
        try:
            await loop.run_in_executor(executor, fail)
        except LookupError as error:
            print(*error.args[0].split())
        waiting = [loop.run_in_executor(executor, __import__("time").sleep, 0.1) for _ in range(3000)]
        await asyncio.sleep(0.05)
        for future in waiting:
            future.cancel()
        await asyncio.sleep(0)  # in which asyncio hands this on

if __name__ == "__main__":
    asyncio.run(main())
"""
    assert run_script(tmp_path, text) == ["nothing", "there"]


@pytest.mark.promise("L14")
def test_two_threads_that_first_use_an_executor_get_the_same_class(monkeypatch):
    monkeypatch.delattr(shmqueue, "Executor")
    both = threading.Barrier(2)
    make, found = shmqueue.make_executor, []

    def make_at_once():
        both.wait(HANG)
        return make()

    monkeypatch.setattr(shmqueue, "make_executor", make_at_once)
    threads = [threading.Thread(target=lambda: found.append(shmqueue.Executor)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [shmqueue.Executor] * 2


@pytest.mark.promise("L14")
def test_as_completed_in_two_threads(executor):
    found = {}

    def work(base):
        futures = {executor.submit(pow, base, n): n for n in range(300)}
        found[base] = {futures[future]: future.result() for future in concurrent.futures.as_completed(futures, 60)}

    threads = [threading.Thread(target=work, args=(base,)) for base in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {base: {n: base**n for n in range(300)} for base in (2, 3)}


class Bar:
    """A progress bar as tqdm has it: it wraps an iterable and shows how far it is of a total."""

    def __init__(self, iterable, total):
        self.iterable, self.total, self.shown = iterable, total, []

    def __iter__(self):
        for count, item in enumerate(self.iterable, 1):
            yield item
            self.shown.append(f"{count}/{self.total}")


def process_map(function, items, **options):
    """The loop of tqdm.contrib.concurrent.process_map."""
    with shmqueue.Executor(**options) as executor:
        bar = Bar(executor.map(function, items, chunksize=7), total=len(items))
        return list(bar), bar.shown


def test_a_progress_bar():
    values, shown = process_map(math.isqrt, range(100), max_workers=2)
    assert values == [math.isqrt(n) for n in range(100)]
    assert shown == [f"{n}/100" for n in range(1, 101)]


@ONCE
@pytest.mark.parametrize("method", METHODS)
def test_sigkill_at_random(method):
    """Only the calls in the hands of killed workers fail; all others arrive."""
    kills = []
    with shmqueue.Executor(3, multiprocessing.get_context(method)) as executor:
        futures = [executor.submit(executor_jobs.nap, 0.004) for _ in range(600)]
        for future in futures[::20]:
            if future.exception() is None and future.result() not in kills:
                kills.append(future.result())  # it has made a call, and probably has the next one in hand
                os.kill(kills[-1], signal.SIGKILL)
        errors = [future.exception(HANG / 2) for future in futures]
    failed = [error for error in errors if error is not None]
    assert len(kills) > 3
    assert len(failed) <= len(kills)
    assert {(type(error), error.result.status) for error in failed} <= {(shmqueue.TaskError, "crashed")}


# The end.


@pytest.mark.parametrize("method", METHODS)
def test_calls_are_finished_when_the_interpreter_exits(tmp_path, method):
    text = """
import atexit, multiprocessing, shmqueue, sys, time

def say(seconds, text):
    time.sleep(seconds)
    print(text)

if __name__ == "__main__":
    atexit.register(lambda: print("exit", flush=True))
    executor = shmqueue.Executor(2, multiprocessing.get_context(sys.argv[1]))
    executor.submit(say, 0.3, "apple")
    for _ in range(20):
        executor.submit(time.sleep, 0.01)
    executor.submit(abs, 1).add_done_callback(lambda future: print("called", flush=True))
    if len(sys.argv) > 2:
        executor.shutdown(wait=False)
    if len(sys.argv) > 3:
        del executor
"""
    for more in ((), ("shutdown",), ("shutdown", "forget")):
        assert sorted(run_script(tmp_path, text, method, *more)[:-1]) == ["apple", "called"]


def test_a_call_after_the_interpreter_has_begun_to_exit(tmp_path):
    text = """
import atexit, shmqueue

@atexit.register
def last():
    try:
        executor.submit(abs, 1)
    except RuntimeError as error:
        print(str(error).replace(" ", "-"))

executor = shmqueue.Executor(1)
"""
    assert run_script(tmp_path, text) == ["cannot-schedule-new-futures-after-interpreter-shutdown"]


def test_a_child_of_multiprocessing_finishes_its_calls(tmp_path):
    text = """
import multiprocessing, shmqueue, time

def say(text):
    time.sleep(0.2)
    print(text, flush=True)

def host():
    executor = shmqueue.Executor(1)
    executor.submit(say, "one")
    executor.submit(say, "two")

if __name__ == "__main__":
    for method in ("fork", "spawn"):
        child = multiprocessing.get_context(method).Process(target=host)
        child.start()
        child.join()
"""
    assert run_script(tmp_path, text) == ["one", "two", "one", "two"]


def test_an_executor_that_is_forgotten_finishes_its_calls():
    executor = shmqueue.Executor(2)
    futures = [executor.submit(executor_jobs.nap, 0.02) for _ in range(10)]
    del executor
    assert all(future.result(HANG / 2) for future in futures)
    assert wait_until(lambda: "shmqueue-executor" not in [thread.name for thread in threading.enumerate()])


def test_nothing_is_left():
    with shmqueue.Executor(1) as executor:
        executor.submit(abs, 1).result()
    before = descriptors(), threading.active_count(), signal.getsignal(signal.SIGTERM)
    for wait in (True, False):
        executor = shmqueue.Executor(2)
        executor.submit(abs, 1).result()
        executor.shutdown(wait)
        executor.shutdown()  # may be called again
    assert (descriptors(), threading.active_count(), signal.getsignal(signal.SIGTERM)) == before


def test_a_thread_that_cannot_start_leaves_nothing(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    before = descriptors()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        shmqueue.Executor(2, multiprocessing.get_context("fork"))
    monkeypatch.undo()
    assert descriptors() == before
    assert unreaped_children() == []


HOST = """
import contextlib, multiprocessing, os, shmqueue, signal, sys, threading, time

def interrupt(seconds, number):
    time.sleep(seconds)
    os.kill(os.getppid(), number)

if __name__ == "__main__":
    way, number = sys.argv[1], getattr(signal, sys.argv[2])
    executor = shmqueue.Executor(2, multiprocessing.get_context("fork"))
    for _ in range(20):
        executor.submit(time.sleep, 300)
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    if way == "with":
        with executor:
            time.sleep(300)
    elif way == "without":
        time.sleep(300)
"""


@pytest.mark.parametrize("way", ["with", "without", "exit"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_end_the_program_and_its_calls(tmp_path, own_pids, way, name):
    """ "exit": the signal comes while the interpreter waits for calls at its end."""
    script = tmp_path / "host.py"
    script.write_text(HOST)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "default", str(script), way, name]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, start_new_session=True, text=True)
    own_pids.add(run.pid)
    _, err = run.communicate(timeout=HANG / 2)
    assert wait_until(lambda: not session_of(run.pid))
    if name == "SIGINT":
        assert "KeyboardInterrupt" in err
        assert run.returncode == (0 if way == "exit" else -signal.SIGINT)
    else:
        assert (run.returncode, err) == (-getattr(signal, name), "")
        assert wait_until(lambda: not segments_of([run.pid]))


def test_forked_children_of_the_host_are_left_alone(executor):
    """A child has the Executor's memory, and none of its threads."""
    futures = [executor.submit(executor_jobs.nap, 0.02) for _ in range(20)]
    values = executor.map(executor_jobs.nap, [0.02] * 20)
    assert next(values)

    def refuses():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # in case it hangs
        with pytest.raises(RuntimeError, match="forked child"):
            executor.submit(abs, 1)
        values.close()
        executor.shutdown()
        return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    held, released = threading.Event(), threading.Event()

    def hold():
        with executor._calls._lock:
            held.set()
            released.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert in_child(refuses)
    finally:
        released.set()
    holder.join()
    assert all(future.result() for future in futures)
    assert sum(1 for _ in values) == 19
    assert executor.submit(abs, -1).result() == 1


def test_a_forked_child_that_leaves_the_block(tmp_path):
    text = """
import os, shmqueue, sys, time

if __name__ == "__main__":
    try:
        with shmqueue.Executor(2) as executor:
            futures = [executor.submit(time.sleep, 0.05) for _ in range(10)]
            pid = os.fork()
            if pid == 0:
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            print(sum(future.result() is None for future in futures))
    except SystemExit as error:
        os._exit(error.code)
"""
    assert run_script(tmp_path, text, flags=("-W", "ignore::DeprecationWarning")) == ["7", "10"]


def test_workers_print_where_this_process_prints(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    text = """
import multiprocessing, os, shmqueue, sys

def say(text):
    print(text, end=" ")
    if text == "last":
        os.abort()

if __name__ == "__main__":
    for method in ("fork", "forkserver", "spawn"):
        with shmqueue.Executor(1, multiprocessing.get_context(method)) as executor:
            executor.submit(say, method).result()
            executor.submit(os.system, "echo child").result()
"""
    assert run_script(tmp_path, text) == ["fork", "child", "forkserver", "child", "spawn", "child"]


def test_a_program_may_close_its_output(tmp_path):
    text = """
import multiprocessing, os, shmqueue, sys

if __name__ == "__main__":
    sys.stdout.close()
    with shmqueue.Executor(1, multiprocessing.get_context("fork")) as executor:
        os.write(1, b"%d" % executor.submit(abs, -1).result())
"""
    assert run_script(tmp_path, text) == ["1"]


def test_successors_are_forked_without_a_warning(tmp_path):
    """Python warns of a fork beside threads, but this thread is ours."""
    text = """
import multiprocessing, os, shmqueue

if __name__ == "__main__":
    with shmqueue.Executor(1, multiprocessing.get_context("fork")) as executor:
        print(type(executor.submit(os.abort).exception()).__name__, executor.submit(abs, -1).result())
"""
    assert run_script(tmp_path, text) == ["TaskError", "1"]
