"""The program around a Supervisor: its signals, forks, threads, children and limits are its own."""

import contextlib
import ctypes
import errno
import gc
import multiprocessing
import os
import pathlib
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import shmqueue
from shmqueue import Supervisor
from tests import jobs
from tests.helpers import (
    METHODS,
    ROOT,
    descriptors,
    in_child,
    is_running,
    read_line,
    run_script,
    segments_of,
    session_of,
    unreaped_children,
    wait_until,
)

LIMIT = 60.0  # seconds after which a script hangs


# Signals. None of our handlers is in the program, at any time.


def handlers():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


class Watcher:
    """Looks at every line of shmqueue for a handler that has changed, or a signal that is blocked outside a start."""

    def __init__(self):
        self.before = handlers()
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.seen = set()

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename == shmqueue.__file__:
            if handlers() != self.before:
                self.seen.add(("handler", frame.f_code.co_name))
            if signal.pthread_sigmask(signal.SIG_BLOCK, ()) != self.mask:
                self.seen.add(("mask", frame.f_code.co_name))
        return self


@pytest.mark.parametrize("method", METHODS)
def test_the_program_keeps_its_handlers_at_every_line(method):
    """They wait only while a worker is started."""
    watcher = Watcher()
    tracer = sys.gettrace()
    sys.settrace(watcher)
    try:
        with Supervisor([jobs.echo, jobs.kill_itself], workers=1, start_method=method) as supervisor:
            tasks = [("echo", b"x"), ("kill_itself", b""), ("echo", b"x")]
            assert [result.status for result in supervisor.run(tasks)].count("ok") == 2
    finally:
        sys.settrace(tracer)
    assert handlers() == watcher.before
    launching = {frame for kind, frame in watcher.seen if kind == "mask"}
    assert {kind for kind, _ in watcher.seen} == {"mask"}
    assert "_launch" in launching
    assert launching.isdisjoint({"close", "create", "reap", "kill", "_dispose", "release_all"})
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == watcher.mask


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_as_it_would_without_us(tmp_path, number):
    """In the middle of the with block of one Supervisor, with another closed and an Executor open."""
    script = """
import os, sys, shmqueue
from tests import jobs
if __name__ == "__main__":
    pid = os.fork()
    if pid == 0:
        with shmqueue.Supervisor([jobs.echo], workers=1):
            pass
        with shmqueue.Supervisor([jobs.echo], workers=1) as supervisor, shmqueue.Executor(1) as executor:
            assert executor.submit(len, "abc").result() == 3
            list(supervisor.run([b"x"] * 3))
            os.kill(os.getpid(), int(sys.argv[1]))
            print("lived")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    while any(name.startswith(f"shmq-{pid}-") for name in os.listdir("/dev/shm")):
        pass
"""
    assert run_script(tmp_path, script, int(number)) == [str(-number)]


class AlarmError(Exception):
    """What a handler of the program raises, such as a limit of time."""


def ring_alarm(*_):
    signal.raise_signal(signal.SIGALRM)


@pytest.fixture
def alarm(monkeypatch):
    def late(*_):
        raise AlarmError

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.signal(signal.SIGALRM, before)


class AlarmingCodec:
    """Its functions are interrupted by a signal, here in the program alone."""

    def __init__(self, name, pid):
        self.name = name
        self.pid = pid

    def dumps(self, value):
        return self._code("dumps", pickle.dumps, value)

    def loads(self, data):
        return self._code("loads", pickle.loads, data)

    def _code(self, name, code, value):
        if name == self.name and os.getpid() == self.pid:
            ring_alarm()
        return code(value)


def test_no_handler_is_looked_for_where_only_our_own_code_raised(monkeypatch):
    """It takes longer than all else that an item takes which cannot be sent."""
    looks = []
    with Supervisor([jobs.same], workers=1) as supervisor:
        monkeypatch.setattr(signal, "getsignal", looks.append)
        assert [result.status for result in supervisor.run([object()] * 3)] == ["failed"] * 3
        monkeypatch.undo()
    assert looks == []


@pytest.mark.promise("G8a")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "where", ["dumps", "loads", "iterable", "check", "push", pytest.param("display", marks=pytest.mark.command_line)]
)
def test_what_a_handler_raises_ends_the_call_as_it_would_without_us(monkeypatch, alarm, where, workers):
    """It is no fault of a codec, an iterable or a display, and no end of the run with another exception."""
    codec = AlarmingCodec(where, os.getpid())

    def tasks():
        yield {1}
        if where == "iterable":
            ring_alarm()

    def use():
        with Supervisor([jobs.same], workers=workers, codec=codec, start_method="fork") as supervisor:
            if where == "check":
                supervisor.on_check = ring_alarm
            elif where == "display":
                monkeypatch.setattr(supervisor._display, "update", ring_alarm)
            elif where == "push":
                monkeypatch.setattr(supervisor._queue, "push", ring_alarm)
            list(supervisor.run(tasks()))

    with pytest.raises(AlarmError):
        use()


def alarm_and_go_on(payload):
    signal.raise_signal(signal.SIGALRM)


@pytest.mark.promise("G8a")
def test_a_handler_may_end_the_program_where_functions_run_in_it():
    before = signal.signal(signal.SIGALRM, lambda *_: sys.exit(3))
    try:
        with pytest.raises(SystemExit), Supervisor([alarm_and_go_on], workers=0) as supervisor:
            list(supervisor.run([b""] * 2))
    finally:
        signal.signal(signal.SIGALRM, before)


NESTED = """
import os, shmqueue, sys, time
def inner(payload):
    print(os.environ["SHMQUEUE_RUN"].split("-")[1], flush=True)  # the process that made the segment
    time.sleep(0.02)
def outer(method):
    with shmqueue.Supervisor([inner], workers=2, start_method=method, log="/dev/stdout") as supervisor:
        list(supervisor.run(range(100_000)))
if __name__ == "__main__":
    print(os.getpid(), flush=True)
    with shmqueue.Supervisor([outer], workers=2, start_method="fork", log="/dev/stdout") as supervisor:
        for _ in range(2):
            supervisor.submit(outer, sys.argv[1])
        while not os.path.exists(sys.argv[2]):
            list(supervisor.results(0.1))
        raise KeyboardInterrupt
"""


@pytest.mark.promise("G4a", "G4b")
@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("method", METHODS)
def test_a_supervisor_in_a_function_leaves_nothing_when_the_program_ends(tmp_path, method, number):
    """Its workers carry the mark of the outer run, but end by themselves, and remove what is left of theirs."""
    script = tmp_path / "host.py"
    script.write_text(NESTED)
    gate = tmp_path / "gate"
    command = [sys.executable, str(script), method, str(gate)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as host:
        lines = [read_line(host.stdout) for _ in range(21)]
        if number:
            host.send_signal(number)
        else:
            gate.touch()
        lines += map(bytes.decode, host.stdout)
    told = {line.rpartition("] ")[2].strip() for line in lines}
    pids = {host.pid, *map(int, filter(str.isdigit, told))}
    assert len(pids) >= 2
    assert wait_until(lambda: not segments_of(pids)), segments_of(pids)


TELL_SIGNALS = """
import signal
print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
print(*(int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN))
"""


def signals_of(payload: bytes):
    """The signals that this worker blocks, and those that a command of it blocks and ignores."""
    command = [sys.executable, "-c", TELL_SIGNALS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))), done.stdout.split("\n")[:2]


@pytest.mark.parametrize("method", METHODS)
def test_no_mask_is_left_in_a_worker_nor_in_what_it_starts(method):
    ((mask, told),) = shmqueue.parallel_map(signals_of, [b""], workers=1, start_method=method)
    assert mask == []
    assert told == ["", f"{int(signal.SIGPIPE)} {int(signal.SIGXFSZ)}"]


def test_no_mask_is_left_in_other_children_of_the_fork_server(tmp_path):
    """The server and the resource tracker were started by us."""
    script = """
import multiprocessing, os, pathlib, shmqueue, signal, time
from tests import jobs
def tell():
    print(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), flush=True)
if __name__ == "__main__":
    with shmqueue.Supervisor([jobs.echo], workers=1, start_method="forkserver") as supervisor:
        list(supervisor.run([b"x"]))
        child = multiprocessing.get_context("forkserver").Process(target=tell)
        child.start()
        child.join()
        children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in children:
            blocked = -1
            deadline = time.monotonic() + 20  # multiprocessing itself blocks some until its tracker has started
            while blocked and time.monotonic() < deadline:
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
                blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
            print(blocked)
"""
    assert run_script(tmp_path, script) == ["0"] * 3


def test_a_forked_child_that_leaves_the_block_ends_nothing():
    with shmqueue.Supervisor([jobs.pid], workers=1, start_method="fork") as supervisor:
        (before,) = (result.value for result in supervisor.run([b""]))
        child = os.fork()
        if child == 0:
            try:
                supervisor.__exit__(SystemExit, None, None)
                multiprocessing.util._exit_function()  # as the interpreter does when it ends
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.path.exists(supervisor._queue.segment.path)
        (after,) = (result.value for result in supervisor.run([b""]))
    assert before == after


@pytest.mark.command_line
@pytest.mark.promise("L15")
@pytest.mark.parametrize("leaves", ["results.close()", "sys.exit()", "pass", "next(results)"])
def test_a_child_that_is_forked_in_the_middle_of_a_run_takes_nothing_from_it(tmp_path, leaves):
    """It has the iterator, too, and closes it when it leaves."""
    script = f"""
import os, shmqueue, sys
if __name__ == "__main__":
    with shmqueue.Supervisor([shmqueue.sleep], workers=1, start_method="fork") as supervisor:
        results = supervisor.run([b"0.005"] * 100)
        done = 0
        child = None
        for result in results:
            done += result.status == "ok"
            if done == 5:
                child = os.fork()
                if child == 0:
                    try:
                        {leaves}
                    except RuntimeError as error:
                        assert "belongs to the process that made it" in str(error)
                    break
                os.waitpid(child, 0)
    if child:
        print(done)
"""
    assert run_script(tmp_path, script) == ["100"]


def test_a_worker_runs_no_handler_of_the_program(tmp_path):
    """It is told at its start, by a signal that comes when it has just been forked."""
    script = """
import os, signal, shmqueue
from tests import jobs
def told(number, frame):
    os.write(1, b"told ")
if __name__ == "__main__":
    signal.signal(signal.SIGINT, told)
    main = os.getpid()
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
    with shmqueue.Supervisor([jobs.echo], workers=2, start_method="fork") as supervisor:
        print(*(result.status for result in supervisor.run([b"x"] * 4)))
"""
    assert run_script(tmp_path, script) == ["ok"] * 4


POOLS = """
import faulthandler, multiprocessing, shmqueue
from tests import jobs
if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    with shmqueue.Supervisor([jobs.echo], workers=1, start_method="fork") as supervisor:
        for _ in range(200):
            faulthandler.dump_traceback_later(20, exit=True)
            with multiprocessing.Pool(2) as pool:
                assert pool.map(len, [bytes(256 << 10)] * 4) == [256 << 10] * 4
        faulthandler.cancel_dump_traceback_later()
        print(*(result.status for result in supervisor.run([b"x"] * 3)))
"""


@pytest.mark.promise("G8b")
@pytest.mark.once
@pytest.mark.timeout(300)
def test_two_hundred_pools_beside_an_open_supervisor(tmp_path):
    flags = ("-W", "ignore:This process")  # of the pools' own threads
    assert run_script(tmp_path, POOLS, flags=flags, limit=280) == ["ok"] * 3


def test_files_are_looked_through_once_beside_many_supervisors(tmp_path, monkeypatch):
    """A program may have thousands of files open, and many Supervisors in its threads."""
    looks = []
    monkeypatch.setattr(shmqueue, "shared_directory", lambda: str(tmp_path))  # nothing of a dead one is there to sweep
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Supervisor([jobs.echo], workers=1, num_slots=16, start_method="fork"))
        open_files = shmqueue.open_files
        monkeypatch.setattr(shmqueue, "open_files", lambda pid: looks.append(pid) or open_files(pid))
        stack.enter_context(Supervisor([jobs.echo], workers=1, num_slots=16, start_method="fork"))
        assert looks == ["self"]


# Threads.

NATIVE = """
import ctypes, multiprocessing, os, sys, threading
import shmqueue
from tests import jobs

def start_thread():
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    assert libc.pthread_create(ctypes.byref(thread), None, libc.pause, None) == 0
    assert threading.active_count() == 1

def methods(supervisor):
    server = sys.modules.get("multiprocessing.forkserver")
    return "forkserver" if server is not None and server._forkserver._forkserver_pid else "fork"

if __name__ == "__main__":
    if sys.argv[1] == "before":
        start_thread()
    with shmqueue.Supervisor([jobs.echo, jobs.kill_itself], workers=1) as supervisor:
        if sys.argv[1] == "after":
            start_thread()
        tasks = [("echo", b"x"), ("kill_itself", b""), ("echo", b"x")]
        print(*(result.status for result in supervisor.run(tasks)))
    print(methods(supervisor))
"""


@pytest.mark.promise("L9")
@pytest.mark.parametrize("flags", [("-W", "error"), ("-W", "default")])
@pytest.mark.parametrize(("when", "method"), [("before", "forkserver"), ("after", "fork"), ("never", "fork")])
def test_a_program_with_native_threads_is_not_forked_unless_they_came_later(tmp_path, when, method, flags):
    """And Python's warning of such forks does not reach the user."""
    *statuses, found = run_script(tmp_path, NATIVE, when, flags=flags)
    assert sorted(statuses) == ["crashed", "ok", "ok"]
    assert found == method


def test_a_thread_that_has_just_ended_is_not_counted():
    for _ in range(50):
        thread = threading.Thread(target=lambda: None)
        before = threading.active_count()
        thread.start()
        thread.join()
        assert shmqueue.count_threads() <= max(before, shmqueue.count_threads())


@pytest.mark.promise("G8b")
@pytest.mark.parametrize("method", METHODS)
def test_another_thread_may_be_starting_a_process_while_a_worker_is_reaped(method):
    """multiprocessing asks all children of its list then how they have ended, and would take the answer for itself."""
    with Supervisor([jobs.echo], workers=2, start_method=method) as supervisor:
        assert list(supervisor.map(jobs.echo, [b"x"])) == [b"x"]
        children = [lane.process.child for lane in supervisor._pool.lanes]
        assert not multiprocessing.process._children.intersection(children)
    assert None not in [child._popen.poll() for child in children]
    assert not multiprocessing.process._children.intersection(children)


def test_a_fork_while_another_thread_closes_a_pipe(monkeypatch):
    """The child closes the other ends all the same, and says nothing."""
    said = []
    monkeypatch.setattr("sys.unraisablehook", said.append)
    ends = [multiprocessing.Pipe(duplex=False)[0] for _ in range(20)]
    shmqueue._supervisor_ends.update(ends)
    for end in ends[::2]:
        os.close(end.fileno())
    assert in_child(lambda: all(end.closed for end in ends[1::2]) and not said)
    for end in ends[::2]:
        end._handle = None
    for end in ends[1::2]:
        end.close()


# Programs that take their children's exit status.

TAKERS = """
import os, signal, sys, threading, time
import shmqueue
from tests import jobs

def reap(number, frame):
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass

def reap_for_ever():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)

def take(how):
    if how == "ignore":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    elif how == "handler":
        signal.signal(signal.SIGCHLD, reap)
    else:
        threading.Thread(target=reap_for_ever, daemon=True).start()

if __name__ == "__main__":
    how, method, pidfds = sys.argv[1:]
    if pidfds == "without":
        del os.pidfd_open
    take(how)
    with shmqueue.Supervisor([jobs.echo, jobs.kill_itself], workers=2, start_method=method) as supervisor:
        tasks = [("echo", b"x")] * 20 + [("kill_itself", b"")] + [("echo", b"x")] * 20
        results = list(supervisor.run(tasks))
        assert [r.error for r in results if r.function == "echo" and r.status != "ok"] == []
        (crash,) = (r for r in results if r.function != "echo")
        assert len(results) == 41
        print(crash.status, crash.error.replace(" ", "_"))
"""
TAKEN = "the_worker_process_ended;_its_exit_status_was_taken_by_this_program"
KILLED = "the_worker_process_was_killed_by_SIGKILL"


@pytest.mark.promise("G8b", "L20")
@pytest.mark.parametrize("pidfds", ["with", "without"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["ignore", "handler", "thread"])
def test_a_program_that_takes_the_exit_status_of_our_workers(tmp_path, how, method, pidfds):
    status, error = run_script(tmp_path, TAKERS, how, method, pidfds, flags=("-W", "ignore:This process"))
    assert status == "crashed"
    assert error == KILLED if method == "forkserver" else error in (TAKEN, KILLED)
    if how == "ignore" and method != "forkserver":
        assert error == TAKEN


@pytest.mark.command_line
def test_functions_learn_how_their_children_end_though_the_program_ignores_that(tmp_path):
    script = """
import signal, sys, shmqueue
from tests import jobs
if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with shmqueue.Supervisor([shmqueue.shell], workers=1, start_method=sys.argv[1]) as supervisor:
        print(*(result.status for result in supervisor.run([b"true", b"false"])))
"""
    for method in METHODS:
        assert run_script(tmp_path, script, method) == ["ok", "failed"]


# Pids.


@pytest.fixture
def stranger():
    """A process in a group of its own that we have no business with."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)  # noqa: S607
    time.sleep(0.05)  # start times count hundredths of a second
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("pidfds", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_no_signal_goes_to_a_process_that_got_the_pid_of_a_worker(stranger, monkeypatch, method, pidfds):
    if not pidfds:
        monkeypatch.delattr(os, "pidfd_open")
    with Supervisor([jobs.echo], workers=1, start_method=method) as supervisor:
        handle = supervisor._pool.lanes[0].process
        assert (handle.pidfd is not None) == pidfds
        pid, handle.pid = handle.pid, stranger.pid
        handle.signal(signal.SIGSTOP)
        handle.signal_group(signal.SIGKILL)
        assert not wait_until(lambda: stranger.poll() is not None, 0.1)
        assert shmqueue.process_state(stranger.pid)[0] not in shmqueue.STOPPED
        if pidfds:
            assert wait_until(lambda: shmqueue.process_state(pid)[0] in shmqueue.STOPPED)
        handle.pid = pid
        handle.signal(signal.SIGCONT)
        assert [result.status for result in supervisor.run([b"x"])] == ["ok"]


def test_a_sandbox_that_refuses_signals_by_pidfd(monkeypatch):
    """Then processes have no pidfds."""

    def refuse(pidfd, number):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    with Supervisor([jobs.rest], workers=2, timeout=0.2) as supervisor:
        assert [lane.process.pidfd for lane in supervisor._pool.lanes] == [None, None]
        assert [result.status for result in supervisor.run(["60"])] == ["timeout"]


def has_pidfd_of_a_worker(pid):
    """A worker has one of its supervisor, and none of another worker."""
    with contextlib.suppress(FileNotFoundError):  # one has just been closed
        infos = [path.read_text() for path in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir()]
        named = {int(line.split()[1]) for info in infos for line in info.splitlines() if line.startswith("Pid:")}
        return bool(named - {os.getpid()})
    return True


@pytest.mark.parametrize("method", METHODS)
def test_no_descriptor_is_left_and_no_worker_has_those_of_another(method):
    with Supervisor([jobs.echo], workers=1, start_method=method):  # starts what multiprocessing keeps
        pass
    before = descriptors()
    with Supervisor([jobs.pid, jobs.kill_itself], workers=3, start_method=method) as supervisor:
        tasks = [("pid", b""), ("kill_itself", b"")] * 4
        assert sorted(result.status for result in supervisor.run(tasks)) == ["crashed"] * 4 + ["ok"] * 4
        wait_until(lambda: all(lane.process.child for lane in supervisor._pool.lanes), 1)
        list(supervisor.run([("pid", b"")]))
        for worker in supervisor.stats()["workers"]:
            # A worker that has just been forked has still to close them.
            assert wait_until(lambda pid=worker["pid"]: not has_pidfd_of_a_worker(pid))
    assert descriptors() == before


# A worker is stopped when its supervisor is killed.


def parent_death_signal(payload: bytes) -> int:
    number = ctypes.c_int()
    code = ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
    return number.value if code == 0 else code


@pytest.mark.promise("G4b")
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_is_continued_when_its_parent_ends(method):
    """Also one that was sent SIGSTOP and does not stand still yet, which the kernel would not continue otherwise."""
    assert shmqueue.parallel_map(parent_death_signal, [b""], workers=1, start_method=method) == [signal.SIGCONT]


STOPPED = """
import sys, time, shmqueue
from tests import jobs
if __name__ == "__main__":
    with shmqueue.Supervisor([jobs.pid_after, jobs.hang], workers=2, start_method=sys.argv[1]) as supervisor:
        pids = set()
        while len(pids) < 2:  # until both have begun: they have groups of their own then
            pids |= {result.value for result in supervisor.run([("pid_after", "0.01")] * 4)}
        print(*pids, flush=True)
        list(supervisor.run([("hang", b"")] * 2))
"""


def stands_still(pid):
    """Return True if all threads of a process are stopped: before that, the kernel takes it for running."""
    states = [
        path.read_text().rpartition(")")[2].split()[0] for path in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return set(states) == {"T"}


@pytest.mark.promise("G4b")
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_is_stopped_when_its_supervisor_is_killed_ends_too(tmp_path, own_pids, method):
    """And so do the fork server and the resource tracker."""
    script = tmp_path / "host.py"
    script.write_text(STOPPED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), method]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
    try:
        workers = [int(word) for word in read_line(run.stdout).split()]
        os.kill(workers[0], signal.SIGSTOP)
        assert wait_until(lambda: stands_still(workers[0]))
        assert len(session_of(run.pid)) == {"fork": 3, "spawn": 4, "forkserver": 5}[method]
        run.kill()
        run.wait()
        assert wait_until(lambda: not session_of(run.pid)), session_of(run.pid)
    finally:
        run.stdout.close()
        for pid in session_of(run.pid):
            os.kill(pid, signal.SIGKILL)
        shmqueue.sweep()


@pytest.mark.promise("L30")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_what_a_worker_in_place_of_a_dead_one_holds(method):
    """A forked one holds a connection that was opened before, and whose other end waits for the end of it."""
    with Supervisor([jobs.kill_itself, jobs.echo], workers=1, start_method=method) as supervisor:
        connection, client = socket.socketpair()
        supervisor.submit(jobs.kill_itself, b"")
        supervisor.submit(jobs.echo, b"")
        assert [result.status for result in supervisor.results()] == ["crashed", "ok"]
        connection.close()
        assert select.select([client], [], [], 0)[0] == ([] if method == "fork" else [client])
    assert client.recv(1) == b""
    client.close()


# Limits.


@contextlib.contextmanager
def limited(kind, size):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextlib.contextmanager
def descriptors_used_up(left=0):
    """This program holds as many descriptors as it may, but `left`."""
    kept = []
    with limited(resource.RLIMIT_NOFILE, 200):
        with contextlib.suppress(OSError):
            while True:
                kept.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(kept.pop())
        try:
            yield
        finally:
            for descriptor in kept:
                os.close(descriptor)


def tried(**options):
    """What a Supervisor raises; it must leave nothing open."""
    before = descriptors()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        Supervisor([jobs.echo], **{"workers": 2, **options})
    assert descriptors() == before
    assert segments_of([os.getpid()]) == []
    assert unreaped_children() == []
    return caught.value


@pytest.fixture(scope="module")
def warm():
    """What multiprocessing keeps for later is there already."""
    for method in METHODS:
        with Supervisor([jobs.echo], workers=1, start_method=method):
            pass


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 25])
@pytest.mark.parametrize("method", METHODS)
def test_too_few_descriptors(warm, monkeypatch, method, left):
    """And nothing is said when what was made of it is collected, while there still are too few."""
    said = []
    monkeypatch.setattr("sys.unraisablehook", said.append)
    with descriptors_used_up(left):
        before = len(descriptors()) if left else 0
        with pytest.raises(OSError, match="ulimit -n") as caught:
            Supervisor([jobs.echo], workers=4, start_method=method)
        assert caught.value.errno == errno.EMFILE
        assert not left or len(descriptors()) == before
        del caught
        gc.collect()
    assert said == []
    assert segments_of([os.getpid()]) == []
    assert unreaped_children() == []


@pytest.mark.parametrize("method", METHODS)
def test_files_may_not_be_large_enough(warm, method):
    with limited(resource.RLIMIT_FSIZE, 4096):
        error = tried(start_method=method)
    assert error.errno == errno.EFBIG
    assert "ulimit -f" in str(error)


def no_more_processes(*arguments):
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize("where", ["os.fork", "multiprocessing.process.BaseProcess.start"])
def test_too_few_processes(warm, monkeypatch, where):
    monkeypatch.setattr(where, no_more_processes)
    error = tried(start_method="fork")
    assert error.errno == errno.EAGAIN
    assert "ulimit -u" in str(error)


def test_too_few_processes_for_spawn(warm, monkeypatch):
    monkeypatch.setattr("multiprocessing.util.spawnv_passfds", no_more_processes)
    assert "ulimit -u" in str(tried(start_method="spawn"))


def test_too_few_processes_for_the_fork_server(warm, monkeypatch):
    """It ends then, and multiprocessing finds its pipe closed."""

    def end_of_file(descriptor):
        raise EOFError("unexpected EOF")

    monkeypatch.setattr("multiprocessing.forkserver.read_signed", end_of_file)
    assert "ulimit -u" in str(tried(start_method="forkserver"))


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_that_cannot_be_replaced_now_is_replaced_later(warm, method):
    before = descriptors()
    with Supervisor([jobs.echo, jobs.kill_itself], workers=2, start_method=method, batch=1) as supervisor:
        list(supervisor.run([("echo", b"x")] * 10))
        with descriptors_used_up():
            tasks = [("kill_itself", b"")] + [("echo", b"x")] * 200
            statuses = [result.status for result in supervisor.run(tasks)]
            assert sorted(statuses) == ["crashed"] + ["ok"] * 200
            assert [lane.process.child is None for lane in supervisor._pool.lanes].count(True) == 1
        first = time.monotonic()
        while any(lane.process.child is None for lane in supervisor._pool.lanes) and time.monotonic() < first + LIMIT:
            list(supervisor.run([("echo", b"x")]))
        assert all(lane.process.child for lane in supervisor._pool.lanes)
    assert descriptors() == before


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_with_the_error_if_no_worker_can_be_replaced(warm, method):
    before = descriptors()
    with Supervisor([jobs.echo, jobs.kill_itself], workers=2, start_method=method, batch=1) as supervisor:
        list(supervisor.run([("echo", b"x")] * 10))
        results = []
        with descriptors_used_up():
            tasks = [("kill_itself", b"")] * 2 + [("echo", b"x")] * 200
            with pytest.raises(shmqueue.WorkersFailedError, match="ulimit -n"):
                results.extend(supervisor.run(tasks))
    assert descriptors() == before


# A stop is seen by the program.


@pytest.mark.promise("L18")
@pytest.mark.parametrize("method", METHODS)
def test_the_programs_handler_of_sigchld_is_not_disturbed_when_workers_are_stopped(method, monkeypatch):
    """Nor is a process that the program waits for."""
    monkeypatch.setattr(shmqueue, "STILL_SECONDS", LIMIT)
    told = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: told.append(number))
    try:
        with Supervisor([jobs.echo], workers=2, start_method=method) as supervisor:
            list(supervisor.run([b"x"] * 4))
            child = subprocess.Popen(["sleep", "0.3"])  # noqa: S607
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.3,))
            process.start()
            for _ in range(20):
                for lane in supervisor._pool.lanes:
                    lane.process.stop()
                    lane.process.go_on()
            assert child.wait(LIMIT) == 0
            process.join(LIMIT)
            assert process.exitcode == 0
            assert [result.status for result in supervisor.run([b"x"] * 40)] == ["ok"] * 40
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert told
    assert is_running(os.getpid())
