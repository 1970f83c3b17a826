"""What is left after every ending: processes, files in shared memory and for the time being, standard error.

Each run is a process in a session of its own, so that whatever it started can be found: by session, by the pids its
functions wrote down, or by the run's mark in the environment, which a session of its own does not shed.
"""

import collections
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

import shmqueue
from tests.helpers import (
    HANG,
    METHODS,
    ROOT,
    SCRIPT,
    USAGE_ERROR,
    Terminal,
    has_heard,
    is_running,
    processes_in,
    run_script,
    segments_of,
    state_of,
    wait_until,
)

MARK = "SHMQUEUE_TEST_RUN"

JOB = '''
"""Functions and a run of them, for the library and for the command line."""
import contextlib, os, pathlib, signal, subprocess, sys, time
import shmqueue

HERE = pathlib.Path(__file__).resolve().parent

def note(name, text):
    with open(HERE / name, "ab", buffering=0) as file:
        file.write(b"%s\\n" % str(text).encode())

def work(payload: bytes) -> bytes:
    note("pids", os.getpid())
    time.sleep(0.02)
    return payload

def hang(payload: bytes) -> None:
    note("pids", os.getpid())
    while True:
        time.sleep(1)

def pace(payload: bytes) -> None:
    note("pids", os.getpid())
    if not (HERE / "gate").exists():
        time.sleep(0.02)

def fail(payload: bytes) -> None:
    raise ValueError("on purpose")

def ordinary(payload: bytes) -> None:
    note("children", subprocess.Popen(["sleep", "600"]).pid)

def background(payload: bytes) -> None:
    subprocess.run(["sh", "-c", "sleep 600 & echo $! >>" + str(HERE / "children")], check=True)

def session(payload: bytes) -> None:
    note("children", subprocess.Popen(["sleep", "600"], start_new_session=True).pid)

def child_then_hang(payload: bytes) -> None:
    globals()[payload.decode()](b"")
    hang(b"")

def child(payload: bytes) -> None:
    globals()[payload.decode()](b"")

def wait(payload: bytes) -> None:
    note("pids", os.getpid())
    while not (HERE / "gate").exists():
        time.sleep(0.01)

def main(method, ending, count, function="work", payload=""):
    functions = [globals()[function]]
    tasks = [payload.encode() or b"%d" % i for i in range(int(count))]
    with shmqueue.Supervisor(functions, workers=2, start_method=method, batch=4) as supervisor:
        statuses = []
        for result in supervisor.run(tasks):
            statuses.append(result.status)
            if len(statuses) == 8:
                note("ready", os.getpid())
                if ending == "exception":
                    raise RuntimeError("in the consumer")
            if ending == "print":
                print("x" * 10000, flush=True)
    note("statuses", " ".join(statuses))

if __name__ == "__main__":
    main(*sys.argv[1:])
'''
CTTY = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if os.fork() == 0:  # as a shell does, ties the group to its session: Ctrl-Z does nothing to an orphaned group
    import ctypes, signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # goes with its parent
    os.setpgid(0, 0)
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        os.setpgid(0, os.getsid(0))
    while True:
        signal.pause()
os.execv(sys.argv[1], sys.argv[1:])
"""


class Scene:
    """One run, started in one of several ways, and what is left of it."""

    def __init__(self, cli, folder):
        self.cli, self.folder, self.terminal = cli, folder, None
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.errors = folder / "errors"
        self.mark = f"{MARK}={folder}"
        self.job = cli.file("job.py", JOB)
        self.ctty = cli.file("ctty.py", CTTY)
        self.process = None

    def environment(self, **more):
        return {
            **os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "TERM": "xterm",
            MARK: str(self.folder), **more,
        }  # fmt: skip

    def start(self, *arguments, terminal=False, screen=False, script=None, **options):
        """Start a script: without a terminal its error stream is a file."""
        options = {"stdin": subprocess.DEVNULL, "env": self.environment(), **options}
        with open(self.errors, "ab") as errors:
            if terminal:
                self.terminal = Terminal()
                options["stdin"] = self.terminal.theirs
                options.setdefault("stderr", self.terminal.theirs if screen else errors)
                options.setdefault("stdout", self.terminal.theirs)
                command = [sys.executable, "-W", "default", str(script or self.cli.program), *arguments]
                self.process = self.cli.start(*command, script=self.ctty, **options)
            else:
                options.setdefault("stderr", errors)
                self.process = self.cli.start(*arguments, script=script, start_new_session=True, **options)
        return self.process

    def library(self, method="fork", ending="", count=100_000, function="work", payload="", **options):
        return self.start(method, ending, str(count), function, payload, script=self.job, **options)

    def command(self, *arguments, count=100_000, function="work", line="", first="", **options):
        """The command line over the job's functions. first: lines before the others."""
        tasks = first + "".join(f"{function} {line or i}\n" for i in range(int(count)))
        path = self.cli.file("tasks", tasks)
        screen = "on" if options.get("screen") else "off"  # by itself, it says from time to time how far it is
        more = ("--handlers", self.job, "-w", "2", "--batch", "4", "--screen", screen, *arguments)
        return self.start(path, *more, **options)

    def lines(self, name):
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    def wait_for(self, name, count=1):
        assert wait_until(lambda: len(self.lines(name)) >= count, HANG / 2), self.told()

    def wait_ready(self):
        """Until several tasks have run, in both workers."""
        self.wait_for("pids", 8)
        assert wait_until(lambda: len(set(self.lines("pids"))) >= 2, HANG / 2), self.told()

    def workers(self):
        """Those that live and have had a task."""
        return sorted({int(pid) for pid in self.lines("pids") if is_running(int(pid))})

    def kill_a_worker(self):
        """Kill one of two in its call of wait(). Once its successor, which needs the segment, has a task, all go on."""
        os.kill(self.workers()[0], signal.SIGKILL)
        self.wait_for("pids", 3)
        self.cli.file("gate", "")

    def segment(self):
        """The name of the run's segment, without what lies beside it."""
        (name,) = (name for name in segments_of([self.process.pid]) if "." not in name)
        return name

    def told(self):
        return self.errors.read_text("utf-8", "replace") if self.errors.exists() else ""

    def left(self):
        return processes_in(self.process.pid, self.mark)

    def ended(self):
        """The exit code, once it has one."""
        assert wait_until(lambda: self.process.poll() is not None, HANG / 2), self.told()
        return self.process.returncode

    def check_nothing_is_left(self, errors="", temporary="nothing"):
        """Now that the run has ended: no process, no file, and nothing said but `errors`, a pattern.

        temporary: how the names of files begin that may be left in the temporary folder.
        """
        assert wait_until(lambda: not self.left()), self.left()
        assert segments_of([self.process.pid]) == []
        assert [name for name in os.listdir(self.temporary) if not name.startswith(temporary)] == []
        assert re.fullmatch(errors, self.told(), re.DOTALL), self.told()

    def close(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            for pid in self.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for name in segments_of([self.process.pid]):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"/dev/shm/{name}")
        if self.terminal is not None:
            self.terminal.close()


@pytest.fixture
def scene(cli):
    with tempfile.TemporaryDirectory(prefix="shmqueue-endings-") as folder:  # short: sockets lie in it
        cli.folder = pathlib.Path(folder)
        here = Scene(cli, cli.folder)
        yield here
        here.close()


# The library: a script that uses a Supervisor in a `with` block.


SERVERS_FOLDER = "pymp-"  # with the socket of the fork server: multiprocessing removes it if its program can


@pytest.mark.promise("G4a")
@pytest.mark.parametrize("method", METHODS)
def test_library_normal(scene, method):
    scene.library(method, count=50)
    assert scene.ended() == 0
    assert scene.lines("statuses") == ["ok"] * 50
    scene.check_nothing_is_left()


@pytest.mark.promise("G4a")
@pytest.mark.parametrize("method", METHODS)
def test_library_exception_in_the_consumer(scene, method):
    scene.library(method, "exception")
    assert scene.ended() == 1
    scene.check_nothing_is_left(r"Traceback [^\n]*\n((?!Traceback).)*\nRuntimeError: in the consumer\n")


@pytest.mark.promise("G4a")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGHUP, -1)])
def test_library_signal(scene, method, number, code):
    scene.library(method)
    scene.wait_for("ready")
    scene.process.send_signal(number)
    assert scene.ended() == code
    scene.check_nothing_is_left(temporary=SERVERS_FOLDER)


# The second Ctrl-C may come when Python itself is about to end: it says more then.
INTERRUPTED = {1: r"(Traceback .*)?KeyboardInterrupt\n", 2: r".*KeyboardInterrupt\n"}


@pytest.mark.promise("G4a")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_library_ctrl_c(scene, method, times):
    scene.library(method, terminal=True)
    scene.wait_for("ready")
    for _ in range(times):
        scene.terminal.type(b"\x03")
    assert scene.ended() == -signal.SIGINT
    scene.check_nothing_is_left(INTERRUPTED[times])


# What a signal meets in this process is the same whichever way workers start.
IMPATIENT = [
    *itertools.product(["fork"], [0.0, 0.0005, 0.001, 0.002, 0.004, 0.008]),
    *itertools.product(["spawn", "forkserver"], [0.0, 0.001, 0.008]),
]


@pytest.mark.parametrize(("method", "pause"), IMPATIENT)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_library_impatient_signals(scene, method, number, pause):
    """While the first one is being obeyed, more come."""
    scene.library(method)
    scene.wait_for("ready")
    for _ in range(20):
        with contextlib.suppress(ProcessLookupError):
            scene.process.send_signal(number)
        threading.Event().wait(pause)
    assert scene.ended() in (-number, 1)
    scene.check_nothing_is_left(r".*", SERVERS_FOLDER)


def test_library_closed_terminal(scene):
    scene.library(terminal=True)
    scene.wait_for("ready")
    scene.terminal.close()
    assert scene.ended() == -signal.SIGHUP
    scene.check_nothing_is_left()


def test_library_closed_standard_output(scene):
    process = scene.library(ending="print")
    process.stdout.read(10_000)
    process.stdout.close()
    assert scene.ended() in (1, 120)
    scene.check_nothing_is_left(r".*BrokenPipeError: [^\n]*\n")


@pytest.mark.promise("G4a")
@pytest.mark.parametrize("method", METHODS)
def test_library_a_worker_is_killed(scene, method):
    scene.library(method, count=150, function="wait")
    scene.wait_for("pids", 2)
    scene.kill_a_worker()
    assert scene.ended() == 0
    assert collections.Counter(scene.lines("statuses")) == {"ok": 149, "crashed": 1}
    scene.check_nothing_is_left()


def test_library_stopped_and_continued(scene):
    """By SIGSTOP, which nobody can catch."""
    scene.library(count=100)
    scene.wait_for("ready")
    scene.process.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: state_of(scene.process.pid) == "T")
    scene.process.send_signal(signal.SIGCONT)
    assert scene.ended() == 0
    assert scene.lines("statuses") == ["ok"] * 100
    scene.check_nothing_is_left()


# The command line.


def counts_of(text):
    """The counts in the last lines."""
    found = re.findall(r"([\d,]+) (ok|failed|timed out|crashed|cancelled)", text)
    return {name: int(number.replace(",", "")) for number, name in found}


@pytest.mark.promise("G4a")
@pytest.mark.parametrize(("function", "code"), [("work", 0), ("fail", 1)])
def test_command_normal(scene, function, code):
    process = scene.command(count=50, function=function)
    out = process.communicate(timeout=HANG / 2)[0].decode()
    assert process.returncode == code
    assert counts_of(out)["failed" if code else "ok"] == 50
    scene.check_nothing_is_left()


def test_command_bad_usage(scene):
    scene.command("--slots", "1", count=1)
    assert scene.ended() == 2
    scene.check_nothing_is_left(USAGE_ERROR + r"--slots 1: must be from [^\n]*\n")


@pytest.mark.promise("G4a")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_command_signal(scene, method, number, code):
    """After it, each task still has its outcome in the last lines; what hangs in a worker does not hold it up."""
    process = scene.command("--start-method", method, count=2000, function="work" if code == 130 else "hang")
    scene.wait_for("pids", 2)
    process.send_signal(number)
    out = process.communicate(timeout=HANG / 2)[0].decode()
    assert process.returncode == code
    counts = counts_of(out)
    assert sum(counts.values()) == 2000
    assert counts["cancelled"] == 2000 - counts["ok"] > 0
    scene.check_nothing_is_left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_command_signal_after_failures(scene, number, code):
    """The exit code is the signal's: 1 would say that every task was tried. No failure is lost by the stop."""
    results, failed = scene.folder / "results.jsonl", scene.folder / "failed"
    files = ("--results", str(results), "--failed", str(failed))
    process = scene.command(*files, count=2000, first="fail a\nfail b\nfail c\n")
    assert wait_until(lambda: results.exists() and results.read_text().count('"failed"') == 3, HANG / 2)
    process.send_signal(number)
    out = process.communicate(timeout=HANG / 2)[0].decode()
    assert process.returncode == code
    counts = counts_of(out)
    assert (sum(counts.values()), counts["failed"]) == (2003, 3)
    assert counts["cancelled"] == 2000 - counts["ok"] > 0
    statuses = [json.loads(line)["status"] for line in results.read_text().splitlines()]
    assert collections.Counter(statuses) == collections.Counter(counts)
    again = failed.read_text().splitlines()
    assert sorted(line for line in again if line.startswith("fail")) == ["fail a", "fail b", "fail c"]
    assert len(again) == 3 + counts["cancelled"]
    scene.check_nothing_is_left()


@pytest.mark.promise("G6")
@pytest.mark.parametrize("screen", [False, True])
def test_command_ctrl_c_once_finishes_what_is_in_hand(scene, screen):
    results = scene.folder / "results.jsonl"
    scene.command("--results", str(results), count=2000, terminal=True, screen=screen)
    scene.wait_ready()
    if screen:  # the first frame comes after a tenth of a second, and the run ends at once
        assert wait_until(lambda: b"\x1b[?1049h" in scene.terminal.output), scene.told()
    scene.terminal.type(b"\x03")
    assert scene.ended() == 130
    statuses = [json.loads(line)["status"] for line in results.read_text().splitlines()]
    assert len(statuses) == 2000
    assert statuses.count("ok") == len(scene.lines("pids"))
    assert statuses.count("cancelled") == 2000 - statuses.count("ok") > 0
    scene.check_nothing_is_left()
    check_terminal(scene, screen)


@pytest.mark.parametrize("way", ["library", "command"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_run_goes_on_if_the_signal_was_ignored_when_it_started(scene, way, number):
    """SIGHUP under nohup, SIGINT in the background of a script."""

    def ignore():
        signal.signal(number, signal.SIG_IGN)

    if way == "library":
        scene.library(count=200, preexec_fn=ignore)
    else:
        scene.command(count=200, preexec_fn=ignore)
    scene.wait_for("pids", 20)
    scene.process.send_signal(number)
    assert scene.ended() == 0
    assert len(scene.lines("pids")) == 200
    scene.check_nothing_is_left()


def test_ctrl_c_says_what_it_waits_for_where_no_screen_does(scene):
    scene.command("--screen", "off", count=50, function="hang", terminal=True, screen=True)
    scene.wait_for("pids", 2)
    scene.terminal.type(b"\x03")
    assert wait_until(lambda: b"shmqueue: what is begun is finished; Ctrl-C again stops it" in scene.terminal.output)
    scene.terminal.type(b"\x03")
    assert scene.ended() == 130
    scene.check_nothing_is_left()


@pytest.mark.parametrize("screen", [False, True])
def test_command_ctrl_c_twice_ends_what_hangs(scene, screen):
    scene.command(count=50, function="hang", terminal=True, screen=screen)
    scene.wait_for("pids", 2)
    scene.terminal.type(b"\x03")
    assert not wait_until(lambda: scene.process.poll() is not None, 0.5)
    assert wait_until(lambda: has_heard(scene.process.pid, signal.SIGINT))
    scene.terminal.type(b"\x03")
    assert scene.ended() == 130
    scene.check_nothing_is_left()
    check_terminal(scene, screen)
    assert wait_until(lambda: counts_of(scene.terminal.output.decode()).get("cancelled") == 50)


def check_terminal(scene, screen):
    """It is as it was: its modes, its screen, its cursor."""
    terminal = scene.terminal
    assert terminal.has_its_modes()
    assert wait_until(lambda: b"tasks/s" in terminal.output.rpartition(b"\x1b")[2]), terminal.output[-500:]
    if screen:
        for on, off in ((b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?7l", b"\x1b[?7h")):
            assert terminal.output.rfind(on) < terminal.output.rfind(off)


def test_command_closed_terminal(scene):
    results = scene.folder / "results.jsonl"
    scene.command("--results", str(results), count=2000, terminal=True, screen=True)
    scene.wait_ready()
    scene.terminal.close()
    assert scene.ended() in (129, 1)
    assert len(results.read_text().splitlines()) == 2000
    scene.check_nothing_is_left()


@pytest.mark.parametrize("method", METHODS)
def test_command_ctrl_z_stops_the_workers_too_and_they_go_on(scene, method):
    """Twice; and the time that they stand still is not counted as a task's."""
    arguments = ("--start-method", method, "--timeout", "3")
    scene.command(*arguments, function="pace", count=2000, terminal=True, screen=True)
    for already in (8, 40):
        scene.wait_for("pids", already)
        scene.wait_ready()
        scene.terminal.type(b"\x1a")
        everybody = [scene.process.pid, *scene.workers()]
        assert wait_until(lambda pids=everybody: set(map(state_of, pids)) == {"T"}), list(map(state_of, everybody))
        began = len(scene.lines("pids"))
        threading.Event().wait(0.3)
        assert len(scene.lines("pids")) == began
        check_modes(scene)
        os.killpg(scene.process.pid, signal.SIGCONT)  # as fg does
    scene.cli.file("gate", "")
    assert scene.ended() == 0
    scene.check_nothing_is_left()
    check_terminal(scene, True)


def check_modes(scene):
    terminal = scene.terminal
    assert wait_until(lambda: terminal.output.rfind(b"\x1b[?1049l") >= terminal.output.rfind(b"\x1b[?1049h"))
    assert terminal.has_its_modes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_command_ends_while_it_is_stopped(scene, number):
    scene.command(terminal=True)
    scene.wait_ready()
    workers = scene.workers()
    scene.terminal.type(b"\x1a")
    assert wait_until(lambda: {state_of(pid) for pid in [scene.process.pid, *workers]} == {"T"})
    scene.process.send_signal(number)
    scene.process.send_signal(signal.SIGCONT)
    assert scene.ended() == (143 if number == signal.SIGTERM else -number)
    assert wait_until(lambda: not scene.left()), scene.left()
    assert scene.told() == ""


def test_command_closed_standard_output_loses_results_and_says_so(scene):
    """The work is finished."""
    process = scene.command("--results", "-", function="pace", count=2000)
    process.stdout.read(10)
    process.stdout.close()
    scene.cli.file("gate", "")
    assert scene.ended() == 1
    assert len(scene.lines("pids")) == 2000
    scene.check_nothing_is_left(r".*results were not written\n.*")
    assert counts_of(scene.told())["ok"] == 2000


# Which one is closed, and how workers start: test_closed_streams_stay_silent_and_hurt_nothing has all pairs.
CLOSED = [*itertools.product(["<&-", ">&-", "2>&-"], ["fork"]), *itertools.product(["<&- >&- 2>&-"], METHODS)]


@pytest.mark.parametrize(("closing", "method"), CLOSED)
def test_command_with_streams_closed_from_the_start(scene, closing, method):
    """Pipes and files have their numbers then."""
    results = scene.folder / "results.jsonl"
    tasks = scene.cli.file("tasks", "sleep 0.02\n" * 50)
    line = f'exec "$0" "$@" {closing}'
    arguments = [tasks, "-w", "2", "--results", str(results), "--start-method", method]
    shell = ["-c", "import os, sys; os.execv('/bin/sh', ['sh', '-c', *sys.argv[1:]])", line]
    command = [sys.executable, *shell, sys.executable, str(SCRIPT), *arguments]
    with open(scene.errors, "ab") as errors:
        scene.process = subprocess.Popen(
            command, env=scene.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
    scene.process.stdout.close()
    assert scene.ended() in (0, 1)
    assert results.read_text().count('"status": "ok"') == 50
    scene.check_nothing_is_left(r"((?!Traceback).)*")


@pytest.mark.promise("G4a")
def test_command_a_worker_is_killed(scene):
    process = scene.command(count=150, function="wait")
    scene.wait_for("pids", 2)
    scene.kill_a_worker()
    out = process.communicate(timeout=HANG / 2)[0].decode()
    counts = counts_of(out)
    assert (sum(counts.values()), counts["ok"], counts["crashed"]) == (150, 149, 1)
    assert process.returncode == 1
    scene.check_nothing_is_left()


@pytest.mark.parametrize("way", ["library", "command"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_starts(scene, way, number):
    """At a moment in the life of a short run that differs each time: nothing is left.

    The library removes nothing if it is killed before it has a worker. The next start does.
    """
    killed = way == "library" and number != signal.SIGINT
    for tenth in range(10):
        if scene.process is not None:
            scene.errors.unlink()
        scene.library(count=20) if way == "library" else scene.command(count=20)
        run = scene.process
        wait_until(lambda run=run: segments_of([run.pid]) or run.poll() is not None)
        threading.Event().wait(0.004 * tenth)
        with contextlib.suppress(ProcessLookupError):
            run.send_signal(number)
        code = scene.ended()
        assert code in ((0, -number) if killed else (0, 1, 128 + number, -number)), (code, scene.told())
        if killed:
            assert wait_until(lambda: not scene.left()), scene.left()
            shmqueue.sweep()
            assert swept(run.pid)
        scene.check_nothing_is_left(r".*")
        if way == "command":
            assert "Traceback" not in scene.told()


UNCLOSED = """
import os, signal, sys, threading, time, warnings, weakref
warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
weakref.finalize(sys, int)  # from here on weakref's own work at exit comes after that of multiprocessing
import shmqueue

def echo(payload: bytes) -> bytes:
    return payload

def interrupt(when):
    import multiprocessing.context
    start, calls = multiprocessing.context.ForkProcess.start, []
    def interrupted(process):
        start(process)
        calls.append(process)
        if len(calls) == 2:
            os.kill(os.getpid(), getattr(signal, when))
    multiprocessing.context.ForkProcess.start = interrupted

if __name__ == "__main__":
    for _ in range(int(sys.argv[2])):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    if sys.argv[1] != "run":
        interrupt(sys.argv[1])
    supervisor = shmqueue.Supervisor([echo], workers=3, start_method="fork")
    results = supervisor.run(b"%d" % i for i in range(10**6))
    print(next(results).status)
"""


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize(("way", "code", "said"), [("run", 0, "ok\n"), ("SIGINT", -2, ""), ("SIGTERM", -15, "")])
def test_a_supervisor_that_nobody_closes_ends_with_its_process(cli, own_pids, way, code, said, threads):
    """Also where it is interrupted between the start of a process and the note of it, and another thread is told."""
    script, environment = cli.file("unclosed.py", UNCLOSED), {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    run = cli.run(way, threads, script=script, env=environment)
    assert (run.code, run.out) == (code, said)
    assert "KeyboardInterrupt" in run.err if way == "SIGINT" else run.err == ""
    assert wait_until(lambda: not segments_of(own_pids - {os.getpid()}))  # its workers do that


IN_A_CHILD = """
import multiprocessing, shmqueue

def echo(payload: bytes) -> bytes:
    return payload

def child():
    global supervisor
    supervisor = shmqueue.Supervisor([echo], workers=2, start_method="fork")
    print(len(list(supervisor.run([b"x"] * 100))), flush=True)

if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    print(process.exitcode)
"""


def test_a_supervisor_that_a_child_of_multiprocessing_does_not_close_ends_with_it(cli):
    """Such a child waits for its own children as it ends, and runs nothing of atexit."""
    script, environment = cli.file("inside.py", IN_A_CHILD), {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    run = cli.run(script=script, env=environment)
    assert (run.code, run.out, run.err) == (0, "100\n0\n", "")


# SIGKILL of the supervisor, or of all of them.


def swept(pid):
    """Whether a sweep has removed what this process left; another run's sweep, at the same time, may be at it still."""
    return wait_until(lambda: not segments_of([pid]))


@pytest.mark.promise("G4b")
@pytest.mark.parametrize("function", ["work", "hang"])
@pytest.mark.parametrize("method", METHODS)
def test_the_supervisor_is_killed(scene, method, function):
    """The workers remove the segment, and go."""
    scene.library(method, function=function)
    scene.wait_for("pids", 2)
    scene.process.send_signal(signal.SIGKILL)
    assert scene.ended() == -signal.SIGKILL
    scene.check_nothing_is_left(temporary=SERVERS_FOLDER)


REFUSED = """
import os, sys, shmqueue
from job import hang

def refuse(*_):
    raise PermissionError(1, "refused")

setattr(os, sys.argv[1], refuse)
shmqueue.System.killpg = staticmethod(os.killpg)
list(shmqueue.Supervisor([hang], workers=2, start_method="fork").run([b""] * 2))
"""


@pytest.mark.promise("G4b")
@pytest.mark.parametrize("call", ["setpgid", "killpg"])
def test_the_supervisor_is_killed_where_groups_are_refused(scene, call):
    """As sandboxes do. And macOS refuses to signal a group whose processes have all ended."""
    scene.start(call, script=scene.cli.file("refused.py", REFUSED))
    scene.wait_for("pids", 2)
    scene.process.send_signal(signal.SIGKILL)
    assert scene.ended() == -signal.SIGKILL
    scene.check_nothing_is_left()


SLOW = """
import time, shmqueue

end_strays = shmqueue.end_strays

def end_slowly(name):
    found = end_strays(name)
    time.sleep(0.5)
    return found

shmqueue.end_strays = end_slowly
shmqueue.main()
"""


@pytest.mark.promise("G4b")
def test_the_supervisor_of_commands_is_killed(scene):
    """The worker that ends the run kills its own command, too, and begins no other, however long the rest takes."""
    tasks = scene.cli.file("tasks", "echo $$ >>pids; sleep 600\n" * 10)
    scene.start(tasks, "--shell", "-w", "1", "--screen", "off", script=scene.cli.file("slow.py", SLOW))
    scene.wait_for("pids")
    scene.process.send_signal(signal.SIGKILL)
    assert scene.ended() == -signal.SIGKILL
    scene.check_nothing_is_left()
    assert len(scene.lines("pids")) == 1


@pytest.mark.promise("G4b")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("method", METHODS)
def test_the_whole_group_is_killed(scene, method, number):
    """With the fork server, and with multiprocessing's resource tracker."""
    scene.library(method)
    scene.wait_for("ready")
    os.killpg(scene.process.pid, number)
    assert scene.ended() == -number
    scene.check_nothing_is_left(temporary=SERVERS_FOLDER)


def test_everybody_is_killed_at_once(scene):
    scene.command()
    scene.wait_ready()
    for pid in scene.left():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    scene.ended()
    assert wait_until(lambda: not scene.left())
    assert scene.cli.run("--clean").code == 0
    assert swept(scene.process.pid)


@pytest.mark.promise("G4b")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("method", METHODS)
def test_the_supervisor_is_killed_while_its_workers_are_stopped(scene, method, number):
    """What is stopped cannot see it. The kernel continues it, and sends SIGHUP to an orphaned group."""
    scene.library(method)
    scene.wait_ready()

    def all_stand_still():
        for pid in scene.workers():  # again: the supervisor may have halted one, and continues it
            os.kill(pid, signal.SIGSTOP)
        return {state_of(pid) for pid in scene.workers()} == {"T"}

    assert wait_until(all_stand_still)
    scene.process.send_signal(number)
    assert scene.ended() == -number
    scene.check_nothing_is_left(temporary=SERVERS_FOLDER)


# The sweep.


def test_an_orphan_leaves_no_file_once_a_sweep_has_removed_the_run():
    """Nobody would find it: a file beside a segment goes with the segment."""
    before = segments_of({os.getpid()})
    queue = shmqueue.SharedTaskQueue.create(4, 128, 1, 2)
    files = shmqueue.ValueFiles(queue.segment)
    shmqueue.remove_segment(queue.segment.path)
    assert files.write(7, b"x" * 1000) == 0
    queue.close()
    assert segments_of({os.getpid()}) == before


def dead_pid():
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def header(pid, start=0, magic=shmqueue.MAGIC, size=4096):
    """The first bytes of a segment."""
    fields = shmqueue.QueueHeader(magic=magic, version=1, owner_pid=pid, owner_start=start)
    return bytes(fields).ljust(size, b"\0")[:size]


class Planted:
    """Files in shared memory that look like a run's."""

    def __init__(self):
        self.paths = []
        self.locked = []

    def file(self, pid, label="abc123", *, owner=None, locked=False, **fields):
        """Make a file, in one step: any start of a run on this machine may sweep it from then on.

        locked: this process holds the lock of its owner. fields: see header().
        """
        path = pathlib.Path(f"/dev/shm/shmq-{pid}-{label}")
        self.paths.append(path)
        made = path.with_name(f"planted-{pid}-{label}")
        made.write_bytes(header(pid, **fields))
        if owner is not None:
            os.chown(made, owner, owner)
            made.chmod(0o666)
        if locked:
            self.locked.append(open(made, "r+b"))
            fcntl.lockf(self.locked[-1], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shmqueue.OWNER_BYTE)
        made.rename(path)
        return path

    def beside(self, pid, ending, label="abc123"):
        """Make a file that belongs to one that is still to be made: alone, no sweep removes it."""
        self.paths.append(pathlib.Path(f"/dev/shm/shmq-{pid}-{label}.{ending}"))
        self.paths[-1].write_bytes(b"x")
        return self.paths[-1]

    def unlock(self):
        while self.locked:
            self.locked.pop().close()

    def close(self):
        self.unlock()
        for path in self.paths:
            with contextlib.suppress(OSError):
                path.unlink()


@pytest.fixture
def planted():
    files = Planted()
    yield files
    files.close()


@pytest.mark.promise("G4b")
def test_clean_removes_what_dead_runs_left(cli, planted):
    pid = dead_pid()
    beside = planted.beside(pid, "p1")
    whole, empty = planted.file(pid), planted.file(pid, "def456", size=0)
    run = cli.run("--clean")
    assert (run.code, run.err) == (0, "")
    assert swept(pid)
    assert not any(path.exists() for path in (whole, empty, beside))
    assert cli.run("--clean").code == 0


def test_clean_says_what_it_has_removed(planted, capfd, monkeypatch):
    """In this process. The start of a run elsewhere may remove a file before, so this is tried again."""
    for _ in range(20):
        path = planted.file(dead_pid(), size=0)
        assert shmqueue.main(argv=["--clean"]) == 0
        if f"removed {path.name}\n" in capfd.readouterr().out:
            assert not path.exists()
            break
    else:
        pytest.fail("it never said so")
    monkeypatch.setattr(shmqueue, "sweep", list)
    assert shmqueue.main(argv=["--clean"]) == 0
    assert capfd.readouterr().out == "nothing to remove\n"


def test_each_start_sweeps(monkeypatch):
    sweeps = []
    monkeypatch.setattr(shmqueue, "sweep", lambda: sweeps.append(1))
    with shmqueue.Supervisor([shmqueue.noop], workers=1, start_method="fork"):
        assert sweeps == [1]


def test_clean_knows_a_later_process_with_the_same_pid(cli, planted):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        start = shmqueue.process_state(stranger.pid)[1]
        kinds = {"aaa111": {"start": start - 1}, "bbb222": {"start": start}, "ccc333": {"magic": 0, "size": 0}}
        lives = []
        for fields in kinds.values():  # here, where nobody sweeps
            with open(cli.file("segment", header(stranger.pid, **fields)), "rb") as file:
                lives.append(shmqueue._owner_lives(stranger.pid, file))
        assert lives == [False, True, True]
        reused, living, unready = (planted.file(stranger.pid, label, **fields) for label, fields in kinds.items())
        assert cli.run("--clean").code == 0
        assert wait_until(lambda: not reused.exists())
        assert living.exists()
        assert unready.exists()
    finally:
        stranger.communicate(b"\n")


def test_clean_leaves_a_run_whose_owner_holds_its_lock(cli, planted):
    """Its pid may be one of another pid namespace, where it lives."""
    pid = dead_pid()
    beside = planted.beside(pid, "v1")
    path = planted.file(pid, locked=True)
    run = cli.run("--clean")
    assert (run.code, run.err) == (0, "")
    assert path.name not in run.out
    assert path.exists()
    assert beside.exists()
    planted.unlock()
    assert cli.run("--clean").code == 0
    assert swept(pid)


@pytest.mark.parametrize("way", ["--clean", "a start"])
def test_a_live_run_is_not_touched(scene, planted, way):
    scene.library(count=150, function="wait")
    scene.wait_for("pids", 2)
    name = scene.segment()
    dead = planted.file(dead_pid())
    if way == "--clean":
        scene.cli.run("--clean")
    else:
        scene.cli.tasks("noop\n")
    assert wait_until(lambda: not dead.exists())
    assert scene.segment() == name
    scene.kill_a_worker()
    assert scene.ended() == 0
    assert collections.Counter(scene.lines("statuses")) == {"ok": 149, "crashed": 1}
    scene.check_nothing_is_left()


def test_what_only_looks_like_a_segment_is_no_trouble(cli, planted):
    pid = dead_pid()
    folder, fifo = (pathlib.Path(f"/dev/shm/shmq-{pid}-{label}") for label in ("0f0f0f", "1f1f1f"))
    folder.mkdir()
    os.mkfifo(fifo)
    try:
        run = cli.run("--clean")
        assert (run.code, run.err) == (0, "")
        assert folder.exists()
    finally:
        folder.rmdir()
        fifo.unlink(missing_ok=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_another_users_segment_is_not_touched(cli, planted):
    path, mine = planted.file(dead_pid(), owner=12345), planted.file(dead_pid(), "fff999")
    assert cli.run("--clean").code == 0
    assert path.exists()
    assert wait_until(lambda: not mine.exists())
    code = "import os, shmqueue; os.seteuid(12346); print(shmqueue.sweep())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert path.exists()


# Strangers.


ATTACH = "import os, sys\nfrom multiprocessing import shared_memory\nmemory = shared_memory.SharedMemory(sys.argv[1])\n"
STRANGERS = {
    "shared_memory": ATTACH + "assert memory.size > 4096\nmemory.close()",
    "killed": ATTACH + "os.kill(os.getpid(), 9)",
    "open": "import sys\nfile = open('/dev/shm/' + sys.argv[1], 'r+b')\nfile.read(4096)\nfile.close()",
}


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_that_attaches_and_exits_leaves_the_run_alone(scene, stranger, method):
    """Its workers finish it, also if one is killed: a stranger's resource tracker unlinks what its process had attached
    to, and then no successor can start.
    """
    scene.library(method, count=150, function="wait")
    scene.wait_for("pids", 2)
    name = scene.segment()
    with open(scene.folder / "stranger's errors", "wb") as errors:
        subprocess.run([sys.executable, "-c", STRANGERS[stranger], name], stderr=errors, check=False)
    wait_until(lambda: not segments_of([scene.process.pid]), 1.0)  # the tracker of a killed process takes a moment
    os.kill(scene.workers()[0], signal.SIGKILL)
    scene.cli.file("gate", "")
    assert scene.ended() == 0, scene.told()
    assert collections.Counter(scene.lines("statuses")) == {"ok": 149, "crashed": 1}
    scene.check_nothing_is_left()


# A worker that is stopped while it holds the lock. Strategies, importable by workers that are not forked.


STOPPERS = """
import contextlib, os, signal
import shmqueue

MARKER = os.environ["STOP_MARKER"]

def stop(times=1):  # the first process that comes here; and again when it is continued
    with contextlib.suppress(FileExistsError):
        os.close(os.open(MARKER, os.O_CREAT | os.O_EXCL))
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGSTOP)

class Inside(shmqueue.SharedTaskQueue):
    def _fill_half(self, *arguments):
        stop()
        super()._fill_half(*arguments)

class Unsigned(shmqueue.SharedTaskQueue):
    def _enter(self, worker):
        if worker is not None:
            acquire = self._lock.acquire
            def acquire_and_stop(timeout=None):
                had = acquire(timeout)
                stop()
                return had
            self._lock.acquire = acquire_and_stop
        super()._enter(worker)

class Leaving(shmqueue.SharedTaskQueue):
    def _leave(self):
        if os.getpid() != self.owner_pid:
            self.words[shmqueue.DIRTY] = 0
            stop()
        super()._leave()

class Stubborn(shmqueue.SharedTaskQueue):
    def _fill_half(self, *arguments):
        stop(10)
        super()._fill_half(*arguments)
"""
HOLDER = """
import sys, jobs_of_stoppers as stoppers
import shmqueue
def work(payload: bytes) -> bytes:
    return payload
if __name__ == "__main__":
    queue = getattr(stoppers, sys.argv[1])
    with shmqueue.Supervisor([work], workers=3, start_method=sys.argv[2], queue=queue) as supervisor:
        print(*(result.status for result in supervisor.run([b"x"] * 500)))
"""


@pytest.mark.promise("G3")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("where", ["Inside", "Unsigned", "Leaving", "Stubborn"])
def test_a_worker_stopped_while_it_holds_the_lock_does_not_hold_up_the_run(scene, where, method):
    """It is continued, however often it stops (Stubborn)."""
    scene.cli.file("jobs_of_stoppers.py", STOPPERS)
    path = os.pathsep.join([str(ROOT), str(scene.folder)])
    environment = scene.environment(STOP_MARKER=str(scene.folder / "marker"), PYTHONPATH=path)
    process = scene.start(where, method, script=scene.cli.file("holder.py", HOLDER), env=environment)
    out = process.communicate(timeout=HANG / 2)[0].decode()
    assert (scene.folder / "marker").exists()
    assert process.returncode == 0
    assert out.split() == ["ok"] * 500
    scene.check_nothing_is_left()


# Too little shared memory: in a mount namespace with a small /dev/shm of its own.


def in_small_memory(scene, size, *command):
    mount = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"'
    for who in ("-m", "-rm"):  # root, or a user who becomes root of a namespace of its own
        inside = ["unshare", who, "sh", "-c", mount, "sh"]
        with contextlib.suppress(OSError):
            if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0:
                break
    else:
        pytest.skip("a mount namespace is not permitted here")
    with open(scene.errors, "ab") as errors:
        scene.process = subprocess.Popen(
            [*inside, *map(str, command)], cwd=scene.folder, env=scene.environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
    out = scene.process.communicate(timeout=HANG / 2)[0]
    return scene.process.returncode, out.decode()


@pytest.mark.parametrize("size", ["64k", "1m"])
def test_no_room_for_the_segment_is_a_clear_error(scene, size):
    code, out = in_small_memory(scene, size, sys.executable, SCRIPT, scene.cli.file("tasks", "noop\n"), "-w", "2")
    assert (code, out) == (2, "")
    needed = USAGE_ERROR + r"/dev/shm is too small: [\d,]+ bytes needed, [\d,]+ free; [^\n]*--slots[^\n]*\n"
    scene.check_nothing_is_left(needed)


SMALL = """
import os, sys
import shmqueue
def grow(payload: str) -> bytes:
    return b"v" * int(payload)
def measure(payload: bytes) -> str:
    return str(len(payload))
def both(payload: bytes) -> bytes:
    return payload
if __name__ == "__main__":
    sizes = [int(size) for size in sys.argv[2:]]
    function = globals()[sys.argv[1]]
    tasks = [str(size) if function is grow else b"p" * size for size in sizes]
    with shmqueue.Supervisor([function], workers=2, num_slots=256, start_method="fork") as supervisor:
        for result in supervisor.run(iter(tasks)):
            assert result.status != "ok" or len(result.value) in sizes or int(result.value) in sizes
            print(result.status, result.error or "")
        left = [name for name in os.listdir("/dev/shm") if ".p" in name]
    print("left", left + os.listdir("/dev/shm"))
"""


@pytest.mark.long
@pytest.mark.promise("L4")
@pytest.mark.parametrize("function", ["grow", "measure", "both"])
@pytest.mark.parametrize("sizes", [[1 << 20] * 16, [100_000] * 120, [8 << 20] * 3, [10, 8 << 20, 10, 1 << 20] * 5])
def test_values_and_payloads_in_little_memory_go_through_or_say_why_not(scene, function, sizes):
    script = scene.cli.file("small.py", SMALL)
    code, out = in_small_memory(scene, "4m", sys.executable, "-W", "default", script, function, *sizes)
    assert code == 0, scene.told()
    *lines, last = out.splitlines()
    assert last == "left []"
    assert len(lines) == len(sizes)
    statuses = [line.split()[0] for line in lines]
    assert set(statuses) <= {"ok", "failed"}, lines
    assert all("No space left" in line and "room" in line for line in lines if line.startswith("failed")), set(lines)
    assert statuses.count("failed") >= sizes.count(8 << 20)
    assert statuses.count("ok") >= sizes.count(10)
    if function == "measure" and max(sizes) < 2 << 20:
        assert statuses.count("failed") == 0  # payloads wait for room
    scene.check_nothing_is_left()


FULL = """
import os, sys
import shmqueue
with shmqueue.Supervisor([len], workers=1, num_slots=256, start_method="fork") as supervisor:
    with open("/dev/shm/full", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    print([(result.status, result.error) for result in supervisor.run([b"p" * 100_000])])
    os.unlink("/dev/shm/full")
    print([result.status for result in supervisor.run([b"p" * 100_000])])
"""


@pytest.mark.promise("L4")
def test_memory_that_others_have_filled_is_one_failed_task(scene):
    script = scene.cli.file("full.py", FULL)
    code, out = in_small_memory(scene, "4m", sys.executable, "-W", "default", script)
    assert code == 0, scene.told()
    first, second = out.splitlines()
    assert "('failed', 'OSError: [Errno 28] No space left on device: no room in /dev/shm" in first
    assert second == "['ok']"
    scene.check_nothing_is_left()


# Flipped bits.

FLIPS = '''
"""Runs one after the other; in each, some bits of one part of the segment are flipped while it goes on."""
import faulthandler, mmap, os, random, signal, sys, time, warnings
import shmqueue

warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # the thread is faulthandler's
COUNT = 3000
kept = []

def work(payload: bytes) -> bytes | None:
    number = int(payload) if payload.isdigit() else 0
    if number % 50 == 0:
        time.sleep(0.002)
    return b"v" * 300 if number % 97 == 0 else payload if number % 2 else None

def main(part, seed, trials):
    for trial in range(trials):
        chance = random.Random(f"{part} {seed} {trial}")
        faulthandler.dump_traceback_later(100, exit=True)
        outcome = spoil(part, chance)
        faulthandler.cancel_dump_traceback_later()
        print(outcome, flush=True)
    for file, mapped in kept:
        mapped.close()
        file.close()

def spoil(part, chance):
    supervisor = shmqueue.Supervisor(
        [work], workers=2, num_slots=256, batch=32, start_method="fork", retries=chance.choice([0, 3]),
        timeout=chance.choice([None, 30]))
    path = "/dev/shm/" + supervisor.name
    layout = shmqueue.segment_layout(256, 128, 2, 32, 0, supervisor._queue.log_bytes, 0)
    field = getattr(layout, part)
    told, seen = [], set()
    file = open(path, "r+b")
    mapped = mmap.mmap(file.fileno(), 0)
    kept.append((file, mapped))  # to close them would drop the locks that this process holds
    tasks = [b"%d" % number for number in range(COUNT)]
    flips = chance.choice([1, 1, 1, 4, 50])
    at = sorted(chance.randrange(COUNT // 2) for _ in range(flips))
    kill = chance.random() < 0.4
    try:
        with supervisor:
            for result in supervisor.run(tasks):
                told.append(result.status)
                assert result.tsk_id not in seen, "twice"
                seen.add(result.tsk_id)
                while at and len(told) > at[0]:
                    at.pop(0)
                    word = chance.randrange(field.offset // 8, (field.offset + field.size) // 8)
                    if chance.random() < 0.5 and part in ("header", "status"):  # one of those that are used
                        names = ("PUSHED", "CLAIMED", "DIRTY", "SUPERVISOR_ASLEEP")
                        words = [getattr(shmqueue, name) for name in names]
                        if part == "status":
                            step = shmqueue.ctypes.sizeof(shmqueue.WorkerStatus) // 8
                            words = [field.offset // 8 + chance.randrange(2) * step + each for each in range(6)]
                        word = chance.choice(words)
                    old = int.from_bytes(mapped[8 * word : 8 * word + 8], "little")
                    new = old ^ 1 << chance.choice([chance.randrange(64), chance.randrange(8)])
                    mapped[8 * word : 8 * word + 8] = new.to_bytes(8, "little")
                    if kill:
                        pid = chance.choice(supervisor.stats()["workers"])["pid"]
                        os.kill(pid, signal.SIGKILL)
                        kill = False
    except shmqueue.SpoiledSegmentError as error:
        end = "spoiled"
    except shmqueue.WorkersFailedError as error:
        end = "workers failed"
    else:
        end = "through"
    if len(told) != COUNT:
        return f"LOST {COUNT - len(told)} {end}"
    return end + " " + " ".join(f"{told.count(status)}_{status}" for status in sorted(set(told)))

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
'''


@pytest.mark.promise("L23")
@pytest.mark.timeout(4 * HANG)
@pytest.mark.parametrize("part", ["header", "status", "local", "ring"])
def test_flipped_bits_are_a_clear_error_or_nothing(scene, part):
    trials = int(os.environ.get("SHMQUEUE_FLIPS", "12"))
    seed = os.environ.get("SHMQUEUE_SEED", "1")
    process = scene.start(part, seed, str(trials), script=scene.cli.file("flips.py", FLIPS))
    out = process.communicate(timeout=3 * HANG)[0].decode()
    lines = out.splitlines()
    assert process.returncode == 0, f"trial {len(lines)}: {scene.told()[-3000:]}"
    assert len(lines) == trials
    assert [line for line in lines if not line.startswith(("through", "spoiled", "workers failed"))] == []
    scene.check_nothing_is_left()


# What functions start.


@pytest.mark.promise("L21")
@pytest.mark.parametrize("kind", ["ordinary", "background", "session"])
@pytest.mark.parametrize("ending", ["normal", "SIGTERM", "worker killed", "supervisor killed"])
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_processes_that_functions_started_end_with_the_run(scene, method, ending, kind):
    normal = ending == "normal"
    scene.library(method, count=4, function="child" if normal else "child_then_hang", payload=kind)
    scene.wait_for("children", 4 if normal else 2)
    if not normal:
        scene.wait_for("pids", 2)
    if ending == "SIGTERM":
        scene.process.send_signal(signal.SIGTERM)
    elif ending == "worker killed":  # its own children end, and the rest with the run
        children = list(map(int, scene.lines("children")))
        for victim in scene.workers():
            os.kill(victim, signal.SIGKILL)
        assert kind == "session" or wait_until(lambda: not any(map(is_running, children))), "they live on"
        scene.wait_for("pids", 4)  # their successors: without any, only the next start would end the rest
        scene.wait_for("children", 4)
        scene.process.send_signal(signal.SIGTERM)
    elif ending == "supervisor killed":
        scene.process.send_signal(signal.SIGKILL)
    scene.ended()
    children = list(map(int, scene.lines("children")))
    assert wait_until(lambda: not any(map(is_running, children)))
    assert wait_until(lambda: not scene.left())


# What a signal leaves for a while. Shared memory is a folder of the test, where no other run removes anything.

HOST = """
import ctypes, os, signal, sys
sys.path.insert(0, {root!r})
import shmqueue

shmqueue.shared_directory = lambda: sys.argv[1]

def hold_the_interpreter(payload: bytes) -> None:
    os.write(int(payload), b"!")
    ctypes.PyDLL(None).usleep(2_000_000)

def too_early(*arguments):
    os.kill(os.getpid(), int(sys.argv[3]))

if __name__ == "__main__":
    if sys.argv[2] == "early":
        shmqueue.WorkerPool.start_all = too_early
    ear, mouth = os.pipe()
    with shmqueue.Supervisor([hold_the_interpreter], workers=1, start_method="fork") as supervisor:
        supervisor.submit(hold_the_interpreter, b"%d" % mouth)
        os.read(ear, 1)
        too_early()
"""


@pytest.fixture
def killed_host(cli, tmp_path, monkeypatch):
    """Return a function that runs HOST and waits for its end, and the folder that is its shared memory."""
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setattr(shmqueue, "shared_directory", lambda: str(folder))

    def run(when, number):
        run = cli.run(folder, when, int(number), script=cli.file("host.py", HOST.format(root=str(ROOT))))
        assert (run.code, run.err) == (-number, "")

    return run, folder


@pytest.mark.promise("G4b", "L16")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_segment_without_any_worker_is_removed_by_the_next_start(killed_host, number):
    run, folder = killed_host
    run("early", number)
    assert len(list(folder.iterdir())) == 1
    with shmqueue.Supervisor([len], workers=1, start_method="fork") as supervisor:
        assert {path.name.partition(".")[0] for path in folder.iterdir()} == {supervisor.name}
    assert list(folder.iterdir()) == []


@pytest.mark.promise("L16")
def test_a_last_worker_that_holds_the_interpreter_removes_the_segment_when_it_comes_back(killed_host):
    run, folder = killed_host
    run("late", signal.SIGTERM)
    assert wait_until(lambda: list(folder.iterdir()) == [])


DRAWING = """
import os, signal, sys, time
import shmqueue

if __name__ == "__main__":
    with shmqueue.Supervisor([shmqueue.sleep], workers=1, start_method="fork", screen=True) as supervisor:
        list(supervisor.run([b"600"]))
"""


def test_a_library_draws_only_on_a_terminal(tmp_path):
    """Else its program's error stream, which may be a log, would fill with commands for one."""
    assert run_script(tmp_path, DRAWING.replace('b"600"', 'b"0.3"')) == []


@pytest.mark.promise("L17")
def test_a_signal_leaves_the_terminal_as_a_library_draws_on_it(scene):
    scene.start(terminal=True, screen=True, script=scene.cli.file("drawing.py", DRAWING))
    assert wait_until(lambda: b"\x1b[?1049h" in scene.terminal.output)
    scene.process.send_signal(signal.SIGTERM)
    assert scene.ended() == -signal.SIGTERM
    assert wait_until(lambda: not scene.left()), scene.left()
    assert b"\x1b[?1049l" not in scene.terminal.output
