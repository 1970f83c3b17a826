"""What tests share: waiting, processes and what they leave, the command line and what it says."""

import ast
import contextlib
import csv
import functools
import inspect
import io
import json
import multiprocessing
import os
import pathlib
import re
import select
import signal
import sqlite3
import subprocess
import sys
import termios
import threading
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "shmqueue.py"
HANG = 240.0  # seconds after which a test counts as stuck; on a quiet machine none takes a tenth of it
METHODS = ("fork", "spawn", "forkserver")


def wait_until(condition, seconds=HANG / 2):
    """Call `condition()` until it is true. Return False if it is still false after so many seconds.

    `assert wait_until(lambda: ...)` says what it waited for.
    """
    deadline = time.monotonic() + seconds
    pause = 0.005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(0.05, 1.1 * pause)  # whoever waits for long leaves the processor to the others
    return True


def document(name):
    """The text of README.md, or of a file of docs/."""
    return (ROOT / name).read_text("utf-8")


def section(name, heading):
    """What stands under a heading of a document."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n((?:(?!\1 ).*\n)*)", document(name), re.MULTILINE)
    assert found, f"{name} has no heading {heading}"
    return found[2]


@functools.cache
def numbers_of_promises():
    """Return the numbers of README's guarantees and of all limits. Each item of these two lists must begin with one."""
    lists = section("README.md", "What is guaranteed") + document("docs/limits.md")
    items = re.findall(r"^- (.*)", lists, re.MULTILINE)
    return [re.match(r"\*\*([GL]\d+[a-z]?)\. ?", item)[1] for item in items]


def docstring_of(thing):
    """The docstring of a module or a class, from its file: with PYTHONOPTIMIZE=2 there is none at run time."""
    tree = ast.parse(inspect.getsource(thing))
    return ast.get_docstring(tree if inspect.ismodule(thing) else tree.body[0])


# Processes, and what is left of them.


def stat_of(pid):
    """The fields of a process from its state on, or None if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def state_of(pid):
    """A process's state as ps shows it, or "" if it is gone."""
    stat = stat_of(pid)
    return stat[0].decode() if stat else ""


def is_running(pid):
    """Return True if a process exists and is not a zombie."""
    return state_of(pid) not in ("", "Z", "X")


def parent_of(pid):
    """The pid of a process's parent, or None if it is gone or a zombie."""
    stat = stat_of(pid)
    return int(stat[1]) if stat and stat[0] not in (b"Z", b"X") else None


def living_processes():
    """Yield the pid and the session of each process that is not a zombie."""
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        stat = stat_of(pid)
        if stat and stat[0] not in (b"Z", b"X"):
            yield pid, int(stat[3])


def has_heard(pid, number):
    """Return True if a process has taken a signal that was sent to it, and waits again, or has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
        if not is_running(pid):
            return True
        pending = [int(bits, 16) for bits in re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", text, re.MULTILINE)]
        return not any(bits >> (number - 1) & 1 for bits in pending) and state_of(pid) not in ("R", "D")
    return True


def session_of(*leaders):
    """The living processes in the sessions of these."""
    return [pid for pid, session in living_processes() if session in leaders]


def processes_in(session, mark):
    """The living processes of a session, and those that have this mark, a `NAME=value`, in their environment."""
    found = []
    for pid, its_session in living_processes():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            marked = mark.encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if marked or its_session == session:
                found.append(pid)
    return found


def workers_of(process):
    """The pids of a supervisor's children; none when it has ended."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]
    return []


def segments_of(pids):
    """Return the files in shared memory that belong to runs of these processes."""
    prefixes = tuple(f"shmq-{pid}-" for pid in pids)
    return sorted(name for name in os.listdir("/dev/shm") if name.startswith(prefixes))


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def unreaped_children():
    """The processes that multiprocessing has started here. Workers are not in its list of children."""
    started = [each for each in list(multiprocessing.process._dangling) if each._parent_pid == os.getpid()]
    return [each for each in started if each._popen is not None and each._popen.poll() is None]


def in_child(question):
    """Return True if `question()` is true in a child made by os.fork()."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = int(not question())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def run_script(tmp_path, text, *arguments, flags=("-W", "default"), limit=HANG / 2, **options):
    """Run a script that uses the library; it must end by itself, in time, and say nothing on its error stream."""
    script = tmp_path / "host.py"
    script.write_text(text)
    options.setdefault("env", {**os.environ, "PYTHONPATH": str(ROOT)})
    command = [sys.executable, *flags, str(script), *map(str, arguments)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options)
    try:
        out, err = run.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        out, err = run.communicate()
        raise AssertionError(f"the script hung; it said {out.decode()} {err.decode()}") from None
    assert (run.returncode, err.decode()) == (0, "")
    assert segments_of([run.pid]) == []
    assert wait_until(lambda: not session_of(run.pid)), session_of(run.pid)
    return out.decode().split()


# A terminal.


class Terminal:
    """A pseudo-terminal. A thread reads all that is written to it. Programs get `theirs`."""

    def __init__(self):
        self.ours, self.theirs = os.openpty()
        self.output = b""
        self._attributes = termios.tcgetattr(self.theirs)
        self._stopped, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        while self._stopped not in select.select([self.ours, self._stopped], [], [])[0]:
            try:
                block = os.read(self.ours, 65536)
            except OSError:  # it was hung up, or no program has it any more
                return
            self.take(block)

    def take(self, block):
        """Keep what has come. The reading thread calls this."""
        self.output += block

    def type(self, data):
        os.write(self.ours, data)

    def has_its_modes(self):
        """Return True if its modes are those that it had at first."""
        return termios.tcgetattr(self.theirs) == self._attributes

    def all_output(self):
        """Close their end. Return all that was written, once no program has that end any more."""
        os.close(self.theirs)
        self.theirs = -1
        self._thread.join()
        return self.output

    def close(self):
        """Close it, as the user closes a window."""
        if self.ours < 0:
            return
        os.write(self._stop, b"!")
        self._thread.join()
        for descriptor in (self.ours, self.theirs, self._stop, self._stopped):
            if descriptor >= 0:
                os.close(descriptor)
        self.ours = -1


# The command line.

SUMMARY = re.compile(
    r"(?:(?P<total>[\d,]+) tasks?: (?P<ok>[\d,]+) ok, (?P<failed>[\d,]+) failed, (?P<timeout>[\d,]+) timed out, "
    r"(?P<crashed>[\d,]+) crashed, (?P<cancelled>[\d,]+) cancelled|no tasks); "
    r"[\d,.]+ s, [\d,.]+ tasks/s, (?P<workers>\d+) workers?"
)


def summary(text):
    """The counts of the last line."""
    match = SUMMARY.fullmatch(text.rstrip("\n").rpartition("\n")[2])
    assert match, text
    return {name: int(count.replace(",", "")) for name, count in match.groupdict().items() if count is not None}


USAGE_ERROR = r"[\w. -]+: error: "  # how it begins: with the name of the program


def usage_error(run):
    """The one line that says what is wrong."""
    assert run.code == 2, run
    assert run.out == ""
    assert re.fullmatch(USAGE_ERROR + r"[^\n]+\n", run.err), run.err
    return run.err


def read_line(stream):
    """A line, as soon as it is there; the test fails when nothing comes."""
    data = b""
    while not data.endswith(b"\n"):
        assert select.select([stream], [], [], HANG / 2)[0], data
        byte = os.read(stream.fileno(), 1)
        assert byte, data
        data += byte
    return data.decode()


def csv_rows(text):
    """The records of CSV text; Python 3.10 does not read NUL."""
    rows = csv.DictReader(io.StringIO(text.replace("\0", "\ud800"), newline=""))
    return [{key: value.replace("\ud800", "\0") for key, value in row.items()} for row in rows]


def rows_of(path):
    """What a results file holds, bytes as text by surrogateescape."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return csv_rows(file.read())
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.row_factory = sqlite3.Row
        rows = [dict(row) for row in base.execute("SELECT * FROM results")]
    return [
        {name: os.fsdecode(value) if isinstance(value, bytes) else value for name, value in row.items()} for row in rows
    ]


class Run(NamedTuple):
    """How a run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def results(self):
        """The outcomes that `--results -` wrote."""
        return [json.loads(line) for line in self.out.split("\n") if line.startswith("{")]

    @property
    def values(self):
        return [result["value"] for result in sorted(self.results, key=lambda result: result["tsk_id"])]


class CommandLine:
    """Starts `python PROGRAM ...` in the test's own folder, with every Python warning shown."""

    def __init__(self, folder, pids, program):
        self.folder = folder
        self.program = program
        self._pids = pids
        self._started = []

    def file(self, name, data):
        path = self.folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    def start(self, *arguments, script=None, **options):
        """Start a process and return it. Its streams are binary pipes unless `options` say otherwise.

        script: the program, if it is not shmqueue.
        """
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-W", "default", str(script or self.program), *map(str, arguments)]
        process = subprocess.Popen(command, **{"cwd": self.folder, "bufsize": 0, **streams, **options})
        self._pids.add(process.pid)
        self._started.append(process)
        return process

    def finish(self, process, data=None):
        hung = False
        try:
            streams = process.communicate(data, HANG / 2)
        except subprocess.TimeoutExpired:
            hung = True
            process.kill()
            streams = process.communicate(timeout=10)
        out, err = ((text or b"").decode("utf-8", "surrogateescape") for text in streams)
        run = Run(process.returncode, out, err)
        assert not hung, f"the process had to be killed after {HANG / 2:.0f} s: {process.args} {run}"
        return run

    def run(self, *arguments, stdin=b"", **options):
        return self.finish(self.start(*arguments, **options), stdin)

    def tasks(self, data, *arguments, **options):
        """Run a file of these tasks. Results go to standard output unless the arguments name another place."""
        where = () if "--results" in arguments else ("--results", "-")
        workers = () if {"-w", "--workers"} & set(arguments) else ("-w", "2")
        return self.run(self.file("tasks", data), *where, *workers, "--screen", "off", *arguments, **options)

    def close(self):
        for process in self._started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
