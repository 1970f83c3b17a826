"""A guest in a program: beside other copies of the file, in a program that executes itself, behind a terminal, with
other people's locks, and without what it needs.
"""

import contextlib
import functools
import multiprocessing
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from concurrent import futures

import pytest

import shmqueue
from tests import jobs
from tests.helpers import HANG, METHODS, ROOT, SCRIPT, is_running, run_script, segments_of, session_of, wait_until

# Two copies of the file, as two packages would bring them along.

COPIES = """
import os, signal, sys, warnings
import first_copy, second_copy
warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside the Executor's thread

def echo(payload: bytes) -> bytes:
    return payload

if __name__ == "__main__":
    with first_copy.Supervisor([echo], workers=1, start_method=sys.argv[1]) as supervisor:
        assert [result.status for result in supervisor.run([b"x"])] == ["ok"]
    executor = first_copy.Executor(1) if sys.argv[2] == "executor" else None
    supervisor = second_copy.Supervisor([echo], workers=1, start_method=sys.argv[1])
    assert [result.status for result in supervisor.run([b"x"])] == ["ok"]
    if executor is not None:
        assert executor.submit(len, "abc").result() == 3
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.promise("G4b", "G8b")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("beside", ["closed", "executor"])
def test_two_copies_in_one_program_that_is_terminated(tmp_path, own_pids, method, beside):
    for name in ("first_copy", "second_copy"):
        shutil.copy(SCRIPT, tmp_path / f"{name}.py")
    script = tmp_path / "host.py"
    script.write_text(COPIES)
    command = [sys.executable, "-W", "default", str(script), method, beside]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    own_pids.add(run.pid)
    try:
        assert run.stdout.readline() == b"ready\n"
        assert segments_of([run.pid])
        run.send_signal(signal.SIGTERM)
        assert run.communicate(timeout=HANG / 2) == (b"", b"")
        assert run.returncode == -signal.SIGTERM
        assert wait_until(lambda: not (segments_of([run.pid]) or session_of(run.pid)))
    finally:
        for pid in session_of(run.pid):
            os.kill(pid, signal.SIGKILL)


# A program that executes itself anew.

EXECUTES = """
import os, sys
import shmqueue
from tests import jobs

if __name__ == "__main__":
    method, rounds = sys.argv[1], int(sys.argv[2])
    if rounds:
        if method == "none":
            shmqueue.SharedTaskQueue.create(16, 128, 1, 4)
        else:
            supervisor = shmqueue.Supervisor([jobs.echo], workers=2, start_method=method)
            assert [result.status for result in supervisor.run([b"x"])] == ["ok"]
        os.execv(sys.executable, [*sys.orig_argv[:-1], str(rounds - 1)])
    with shmqueue.Supervisor([jobs.echo], workers=1, start_method="fork") as supervisor:
        other = shmqueue.SharedTaskQueue.create(16, 128, 1, 4)
        shmqueue.sweep()  # it must not remove what this process has open, in this copy or another
        print(*(result.status for result in supervisor.run([b"x"])), os.path.exists(other.segment.path))
        other.close()
        shmqueue.remove_segment(other.segment.path)
"""


@pytest.mark.promise("G8b")
@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_a_program_that_executes_itself_five_times_leaves_nothing(tmp_path, method):
    """Its workers remove the segment. If there were none, the next start in the same process does."""
    assert run_script(tmp_path, EXECUTES, method, 5) == ["ok", "True"]


# The terminal: workers are a background group of it.

TERMINAL = """
import getpass, os, subprocess, sys, warnings
import shmqueue

def write():
    print("written", flush=True)

def ask():
    warnings.simplefilter("ignore", getpass.GetPassWarning)  # it cannot turn the echo off
    return getpass.getpass()

def command(line):
    return subprocess.call(["sh", "-c", line])

def outcome(future):
    return type(future.exception()).__name__ if future.exception() else future.result()

if __name__ == "__main__":
    context = shmqueue.multiprocessing.get_context(sys.argv[1])
    lines = ["echo written", "echo written >/dev/tty", "stty -echo </dev/tty", "read line </dev/tty"]
    with shmqueue.Executor(1, context, timeout=20) as executor:
        futures = [executor.submit(write), executor.submit(ask), *(executor.submit(command, line) for line in lines)]
        told = [outcome(future) for future in futures]
    with open(sys.argv[2], "w") as file:
        file.write(" ".join(map(str, told)))
"""


@pytest.mark.promise("L27")
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_is_not_stopped_by_the_terminal(tmp_path, method):
    """With `stty tostop` neither. It may print; what asks, or sets the terminal, fails; and so does a command."""
    script, told = tmp_path / "host.py", tmp_path / "told"
    script.write_text(TERMINAL)
    pid, terminal = pty.fork()
    if pid == 0:
        attributes = termios.tcgetattr(0)
        attributes[3] |= termios.TOSTOP
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, str(script), method, str(told)], environment)  # noqa: S606
    output = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while block := os.read(terminal, 4096):
            output += block
    os.close(terminal)
    os.waitpid(pid, 0)
    assert output.count(b"written") == 2
    assert re.fullmatch(r"None EOFError 0 [12] [12] [12]", told.read_text()), told.read_text()


def policy(payload: bytes) -> int:
    """Return how the system schedules this process."""
    return os.sched_getscheduler(0)


def policies_while_tasks_become_many_and_few():
    """Return how a worker is scheduled at its first task, among many, and at its last one."""
    with shmqueue.Supervisor([policy], workers=1, start_method="fork") as supervisor:
        first = list(supervisor.map(policy, [b""]))
        many = set(supervisor.map(policy, [b""] * 3000))
        for _ in range(20):
            last = list(supervisor.map(policy, [b""]))
    return first[0], many, last[0]


@pytest.mark.promise("L31")
@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policies")
def test_a_worker_with_many_short_tasks_takes_no_processor_away_when_it_wakes():
    """With few it does; and a policy that its program has chosen stays."""
    first, many, last = policies_while_tasks_become_many_and_few()
    assert (first, last) == (os.SCHED_OTHER, os.SCHED_OTHER)
    assert os.SCHED_BATCH in many
    chosen = functools.partial(os.sched_setscheduler, 0, os.SCHED_BATCH, os.sched_param(0))
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork"), initializer=chosen) as pool:
        policies = pool.submit(policies_while_tasks_become_many_and_few).result()
    assert policies == (os.SCHED_BATCH, {os.SCHED_BATCH}, os.SCHED_BATCH)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def policy_after_a_wait(payload: bytes) -> int:
    time.sleep(0.0001)
    return policy(payload)


@pytest.mark.promise("L31")
@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policies")
def test_tasks_that_wait_for_a_moment_get_the_processor_back_at_once():
    """With SCHED_BATCH each would wait until the process that runs meanwhile has used its time."""
    with shmqueue.Supervisor([policy_after_a_wait], workers=1, batch=256, start_method="fork") as supervisor:
        assert set(supervisor.map(policy_after_a_wait, [b""] * 1024)) == {os.SCHED_OTHER}


def test_suspend_outside_the_main_thread(tmp_path):
    """The kernel ignores it here, since nobody could continue this group; the workers go on."""
    script = """
import shmqueue, sys, threading
from tests import jobs
if __name__ == "__main__":
    with shmqueue.Supervisor([jobs.echo], workers=2, start_method="fork") as supervisor:
        thread = threading.Thread(target=supervisor.suspend)
        thread.start()
        thread.join()
        print(*(result.status for result in supervisor.run([b"x"] * 3)))
"""
    assert run_script(tmp_path, script) == ["ok"] * 3


# What it needs, and says so.


def test_a_module_that_sys_modules_does_not_have(tmp_path):
    script = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("loaded", sys.argv[1])
loaded = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loaded)
assert "loaded" not in sys.modules
print(*loaded.parallel_map(len, ["a", "bc"], workers=1, start_method="fork"))
with loaded.Executor(1) as executor:
    print(executor.submit(len, "abc").result())
"""
    assert run_script(tmp_path, script, SCRIPT) == ["1", "2", "3"]


def keep(lock):
    pass


@pytest.mark.parametrize(("made", "workers"), [("fork", "forkserver"), ("fork", "spawn"), ("spawn", "forkserver")])
def test_a_lock_of_another_context_is_an_error_that_names_the_argument(made, workers):
    """As tqdm's process_map has one in its initargs."""
    lock = multiprocessing.get_context(made).Lock()
    context = multiprocessing.get_context(workers)
    if made == "spawn":  # then it is right
        with shmqueue.Executor(1, initializer=keep, initargs=(lock,), mp_context=context) as executor:
            assert executor.submit(len, "abc").result() == 3
        return
    with pytest.raises(TypeError, match=r"SemLock.*mp_context=multiprocessing\.get_context\('fork'\)"):
        shmqueue.Executor(1, initializer=keep, initargs=(lock,), mp_context=context)
    with shmqueue.Executor(
        1, initializer=keep, initargs=(lock,), mp_context=multiprocessing.get_context(made)
    ) as right:
        assert right.submit(len, "abc").result() == 3


SMALL = """
import shmqueue
from tests import jobs
if __name__ == "__main__":
    for make in (lambda: shmqueue.Supervisor([jobs.echo], workers=2), lambda: shmqueue.Executor(2)):
        try:
            make()
        except OSError as error:
            print(error)
"""


def test_too_little_shared_memory_names_arguments_of_the_library(tmp_path):
    unshare = shutil.which("unshare")
    allowed = unshare and subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode == 0
    if not allowed:
        pytest.skip("unshare -m is not permitted here")
    script = tmp_path / "host.py"
    script.write_text(SMALL)
    mount = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    command = [unshare, "-m", "sh", "-c", mount, "sh", sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG / 2, check=True)
    assert run.stderr == ""
    library, executor = run.stdout.splitlines()
    assert "num_slots=" in library
    assert "max_workers=" in executor
    assert "num_slots=" not in executor
    assert "--" not in run.stdout.replace("--shm-size", "")


def test_limits_name_arguments_of_an_executor(monkeypatch):
    def no_more_processes(*arguments):
        raise BlockingIOError(11, os.strerror(11))

    monkeypatch.setattr("os.fork", no_more_processes)
    with pytest.raises(OSError, match=r"max_workers=.*ulimit -u"):
        shmqueue.Executor(1, mp_context=multiprocessing.get_context("fork"))
    with pytest.raises(OSError, match=r"\bworkers=.*ulimit -u"):
        shmqueue.Supervisor([jobs.echo], workers=1, start_method="fork")


def test_without_proc_nothing_is_said_about_processes(monkeypatch, capfd):
    """Where ps does not know its options, as that of busybox."""
    isdir = os.path.isdir
    monkeypatch.setattr("os.path.isdir", lambda path: path != "/proc/self" and isdir(path))
    assert shmqueue.process_state(os.getpid())[0] in ("R", "S")
    assert shmqueue.process_state(-1) == ("", 0)
    assert capfd.readouterr().err == ""
    assert is_running(os.getpid())


def test_files_beside_a_segment_go_though_somebody_has_unlinked_it():
    """As a stranger's resource tracker does."""
    with shmqueue.Supervisor([len], workers=1, start_method="fork") as supervisor:
        path = os.path.join(shmqueue.shared_directory(), supervisor.name)
        assert list(supervisor.map(len, [b"x"])) == [1]
        shmqueue.write_file(path + ".watch", b"")
        os.unlink(path)
    assert not os.path.exists(path + ".watch")
