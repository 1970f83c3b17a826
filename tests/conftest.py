"""What all tests share: paths, a guard against hangs, a guard against leftovers, and the command line."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
from hypothesis import settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "shmqueue.py"
HANG = 120.0  # seconds after which a test counts as stuck; no test takes a tenth of it
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

settings.register_profile("shmqueue", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("shmqueue")


SLOW = {"test_contract", "test_endings", "test_explorer", "test_hooks"}
SLOW |= {"test_kill_at_store", "test_readme", "test_screen", "test_storm", "test_strategy"}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(HANG))
        # What these modules test does not depend on the version of Python.
        if item.module.__name__.rpartition(".")[2] in SLOW:
            item.add_marker(pytest.mark.slow)


def segments_of(pids):
    """Return the files in shared memory that belong to runs of these processes."""
    prefixes = tuple(f"shmq-{pid}-" for pid in pids)
    return sorted(name for name in os.listdir("/dev/shm") if name.startswith(prefixes))


def wait_until(condition, seconds=30.0):
    """Call `condition()` until it is true. Return False if it is still false after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_running(pid):
    """Return True if a process exists and is not a zombie."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


@pytest.fixture
def own_pids():
    """Return the processes whose leftovers this test has to answer for. A test adds each process that it starts."""
    return {os.getpid()}


@pytest.fixture(autouse=True)
def _nothing_is_left(own_pids):
    before = set(segments_of(own_pids))
    children = set(multiprocessing.active_children())
    yield
    assert [name for name in segments_of(own_pids) if name not in before] == []
    assert [child for child in multiprocessing.active_children() if child not in children] == []


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
    """Starts `python shmqueue.py ...` in the test's own folder, with every Python warning shown."""

    def __init__(self, folder, pids):
        self.folder = folder
        self._pids = pids
        self._started = []

    def file(self, name, data):
        path = self.folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    def start(self, *arguments, script=SCRIPT, **options):
        """Start a process and return it. Its streams are binary pipes unless `options` say otherwise."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-W", "default", str(script), *map(str, arguments)]
        process = subprocess.Popen(command, **{"cwd": self.folder, "bufsize": 0, **streams, **options})
        self._pids.add(process.pid)
        self._started.append(process)
        return process

    def finish(self, process, data=None):
        out, err = ((text or b"").decode("utf-8", "surrogateescape") for text in process.communicate(data, HANG / 2))
        return Run(process.returncode, out, err)

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


@pytest.fixture
def cli(tmp_path, own_pids):
    command_line = CommandLine(tmp_path, own_pids)
    yield command_line
    command_line.close()
