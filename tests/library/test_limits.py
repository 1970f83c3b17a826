"""What docs/limits.md says, where no other test shows it."""

import ctypes
import errno
import os
import signal
import threading
import time

import pytest

import shmqueue
from shmqueue import Supervisor
from tests import jobs
from tests.helpers import HANG, is_running, wait_until


def list_files(payload: bytes) -> str:
    """The files beside the segment of this run, and the length of the payload."""
    run = os.environ[shmqueue.RUN_VARIABLE]
    names = [name for name in os.listdir(shmqueue.shared_directory()) if name.startswith(f"{run}.p")]
    return f"{len(names)} {len(payload)}"


@pytest.mark.promise("L2")
def test_values_and_payloads_that_go_through_files(monkeypatch):
    lengths = []
    read = shmqueue.read_file
    monkeypatch.setattr(shmqueue.system, "read_file", lambda path, length: lengths.append(length) or read(path, length))
    log, heap = 2 << 20, 32 << 20
    with Supervisor([list_files, jobs.blow_up], workers=1, start_method="fork") as supervisor:
        sizes = [1000, heap // 2, heap // 2 + 1]
        found = [value for size in sizes for value in supervisor.map("list_files", [bytes(size)])]
        assert found == [f"0 {sizes[0]}", f"0 {sizes[1]}", f"1 {sizes[2]}"]
        for size in (log - 1000, log + 1):
            assert list(map(len, supervisor.map("blow_up", [str(size)]))) == [size]
    assert lengths == [log + 1]


@pytest.mark.promise("L1", "L3")
def test_the_sizes_in_limits():
    assert shmqueue.LIMITS["slot_size"][1] == 65_536
    with Supervisor([jobs.echo], workers=2) as supervisor:
        list(supervisor.map(jobs.echo, [b"a"] * 50_000))
        assert supervisor._queue.ring.capacity == 119
        assert supervisor._engine._packer.heap.size == 32 << 20
        path = os.path.join(shmqueue.shared_directory(), supervisor.name)
        assert 4.5e6 < os.stat(path).st_blocks * 512 < 5.5e6


KEPT = []


def keep(payload: bytes) -> int:
    KEPT.append(payload)
    return len(KEPT)


@pytest.mark.promise("L11")
@pytest.mark.parametrize("how", [jobs.kill_itself, jobs.hang])
def test_what_a_function_kept_is_lost_when_its_worker_ends(how):
    with Supervisor([keep, how], workers=1, timeout=2, start_method="fork") as supervisor:
        assert list(supervisor.map(keep, [b""] * 2)) == [1, 2]
        assert [result.status for result in supervisor.run([(how, b"")])] in (["crashed"], ["timeout"])
        assert list(supervisor.map(keep, [b""])) == [1]


def sleep_and_read(payload: float) -> tuple:
    """Sleep, then wait in a system call. Return True if the whole time has passed, and what was read."""
    began = time.monotonic()
    time.sleep(payload)
    slept = time.monotonic() - began
    reader, writer = os.pipe()
    timer = threading.Timer(payload, os.write, (writer, b"x"))
    timer.start()
    data = os.read(reader, 1)
    timer.join()
    os.close(reader)
    os.close(writer)
    return slept >= payload, data


def wait_in_c(payload: float) -> int:
    """Wait in a C function for what never comes. Return the number of the error that ended it."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.epoll_create1(0)
    ctypes.set_errno(0)
    library.epoll_wait(descriptor, ctypes.create_string_buffer(12), 1, int(1000 * payload))
    os.close(descriptor)
    return ctypes.get_errno()


@pytest.mark.parametrize(
    ("function", "payload", "value"),
    [(sleep_and_read, 0.3, (True, b"x")), (wait_in_c, HANG / 3, errno.EINTR)],
    ids=["Python", "C"],
)
@pytest.mark.promise("L19")
def test_who_notices_that_a_worker_is_stopped(function, payload, value):
    ended = threading.Event()

    def stop_now_and_then(pid):
        while not ended.wait(0.01):
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGCONT)

    with Supervisor([function], workers=1, start_method="fork") as supervisor:
        list(supervisor.map(function, [0.0]))
        thread = threading.Thread(target=stop_now_and_then, args=(supervisor.stats()["workers"][0]["pid"],))
        thread.start()
        try:
            assert list(supervisor.map(function, [payload])) == [value]
        finally:
            ended.set()
            thread.join()


def fork_into_another_group(payload: bytes) -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    os.setpgid(pid, pid)
    return pid


@pytest.mark.promise("L22")
def test_a_forked_process_that_left_its_group_is_not_found():
    (pid,) = shmqueue.parallel_map(fork_into_another_group, [b""], workers=1, start_method="fork")
    try:
        assert is_running(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def wait_and_note(payload: str) -> None:
    path, gate = payload.split("|")
    jobs.wait_for_file(gate)
    jobs.note(f"{path}|")


@pytest.mark.promise("L25")
def test_results_wait_while_an_iterable_waits_and_not_after_submit(tmp_path):
    path, gate = tmp_path / "noted", tmp_path / "gate"
    task = f"{path}|{gate}"
    events = []

    def slow():
        yield task
        time.sleep(0.01)  # so that both tasks are passed on before the third is asked for
        yield task
        gate.touch()  # not before: a result that is there already would be handed out first
        assert wait_until(lambda: path.exists() and path.read_bytes() == b"\n\n")
        events.append("the iterable goes on")
        yield task

    with Supervisor([wait_and_note], workers=1) as supervisor:
        events.extend(result.status for result in supervisor.run(slow()))
        assert events == ["the iterable goes on", "ok", "ok", "ok"]
        supervisor.submit(wait_and_note, task)
        assert next(supervisor.results()).status == "ok"
