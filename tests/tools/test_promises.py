"""Every promise of README has a test (see promises.py); and those tests of promises that belong nowhere else."""

import ast
import functools
import inspect
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import shmqueue
from shmqueue import Supervisor
from tests import jobs
from tests.helpers import HANG, ROOT, SCRIPT, is_running, wait_until
from tests.tools.promises import INFORMS, PROMISES, statements

# The table.


@functools.cache
def names_in(file):
    """Return the names of the tests in a file."""
    (path,) = (ROOT / "tests").glob(f"*/test_{file}.py")
    tree = ast.parse(path.read_text("utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    names += [ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)]  # of hypothesis
    return [name for name in names if name.lower().startswith("test")]


def test_each_sentence_is_listed_once():
    found = statements()
    assert len(set(found)) == len(found)
    assert sorted([*PROMISES, *INFORMS]) == sorted(found)


def test_what_is_guaranteed_is_a_promise():
    text = " ".join((ROOT / "README.md").read_text("utf-8").partition("## What is guaranteed\n")[2].split())
    guaranteed = text.partition("Forty thousand tasks")[0]
    informs = [sentence for sentence in INFORMS if sentence in guaranteed]
    assert [sentence.partition(",")[0] for sentence in informs] == [
        "(This holds on Linux",
        "Elsewhere it may take longer.)",
    ]


def test_each_promise_has_tests_and_they_are_there():
    assert all(PROMISES.values())
    tests = [test.split("::") for tests in PROMISES.values() for test in tests]
    assert [(file, name) for file, name in tests if name not in names_in(file)] == []


# What README says of names.

README = (ROOT / "README.md").read_text("utf-8")


def test_the_fields_of_a_result_are_those_of_readme():
    fields = re.search(r"A `TaskResult` has the fields (.*?)\. A `TaskError`", README, re.DOTALL)[1]
    assert tuple(re.findall(r"`(\w+)`", fields)) == shmqueue.TaskResult._fields


def test_the_signature_of_executor_is_that_of_readme():
    shown = re.search(r"`Executor(\(.*?\))` has the methods", README, re.DOTALL)[1]
    parameters = inspect.signature(shmqueue.Executor).parameters.values()
    without_types = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(without_types)) == " ".join(shown.split())


def test_one_file_needs_nothing_but_the_standard_library():
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text("utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names}


def test_the_module_can_be_run_by_its_name(cli):
    shutil.copy(SCRIPT, cli.folder)
    cli.file("tasks", "noop\nnoop\n")
    command = [sys.executable, "-m", "shmqueue", "tasks", "--screen", "off"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    options = {"cwd": cli.folder, "env": environment, "capture_output": True, "text": True, "timeout": HANG / 2}
    done = subprocess.run(command, check=False, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 tasks: 2 ok" in done.stdout
    assert list(cli.folder.glob("__pycache__/shmqueue.*.pyc")), "the compiled code is kept"


# How it works.


def count_batches(supervisor):
    return sum(supervisor._queue.glance(process.index).number for process in supervisor._pool.processes)


def test_batches_are_large_while_tasks_are_short_and_small_while_they_are_long():
    short, long = 20_000, 40
    with Supervisor([jobs.quiet, jobs.sleep_a_little], workers=2) as supervisor:
        list(supervisor.map(jobs.quiet, [b""] * short))
        for_short = count_batches(supervisor)
        list(supervisor.map(jobs.sleep_a_little, [b""] * long))
        for_long = count_batches(supervisor) - for_short
    assert for_short < short / 50
    assert for_long > long / 3


def switches(pid):
    """How often the threads of a process have begun to wait."""
    texts = [path.read_text() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", text)[1]) for text in texts)


def test_a_worker_with_nothing_to_do_sleeps():
    """It waits once, and does not look from time to time."""
    with Supervisor([jobs.quiet], workers=2) as supervisor:
        list(supervisor.map(jobs.quiet, [b""] * 1000))
        assert wait_until(lambda: len(supervisor._queue.sleepers()) == 2)
        pids = [worker["pid"] for worker in supervisor.stats()["workers"]]
        time.sleep(0.2)
        before = [switches(pid) for pid in pids]
        time.sleep(0.5)
        assert [switches(pid) for pid in pids] == before
        assert list(supervisor.map(jobs.quiet, [b""])) == [None]


# Limits.


def list_files(payload: bytes) -> str:
    """The files beside the segment of this run, and the length of the payload."""
    run = os.environ[shmqueue.RUN_VARIABLE]
    names = [name for name in os.listdir(shmqueue.shared_directory()) if name.startswith(f"{run}.p")]
    return f"{len(names)} {len(payload)}"


def test_values_and_payloads_that_go_through_files(monkeypatch):
    lengths = []
    read_file = shmqueue.read_file
    monkeypatch.setattr(shmqueue, "read_file", lambda path, length: lengths.append(length) or read_file(path, length))
    log, heap = 128 << 10, 32 << 20
    with Supervisor([list_files, jobs.blow_up], workers=1, start_method="fork") as supervisor:
        sizes = [1000, heap // 2, heap // 2 + 1]
        found = [value for size in sizes for value in supervisor.map("list_files", [bytes(size)])]
        assert found == [f"0 {sizes[0]}", f"0 {sizes[1]}", f"1 {sizes[2]}"]
        for size in (log - 1000, log + 1):
            assert list(map(len, supervisor.map("blow_up", [str(size)]))) == [size]
    assert lengths == [log + 1]


def test_the_sizes_in_limits():
    assert shmqueue.LIMITS["slot_size"][1] == 65_536
    with Supervisor([jobs.echo], workers=2) as supervisor:
        queue = supervisor._queue
        list(supervisor.map(jobs.echo, [b"a"] * 50_000))
        assert queue.ring.capacity == 119
        assert supervisor._engine._packer.heap.size == 32 << 20
        assert 2.5e6 < os.stat(queue.segment.path).st_blocks * 512 < 3.5e6


KEPT = []


def keep(payload: bytes) -> int:
    KEPT.append(payload)
    return len(KEPT)


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


def test_python_code_does_not_notice_that_its_worker_is_stopped():
    with Supervisor([sleep_and_read], workers=1) as supervisor:
        list(supervisor.map(sleep_and_read, [0.0]))
        supervisor.submit(sleep_and_read, 0.3)
        (process,) = supervisor._pool.processes
        for _ in range(50):
            process.stop()
            process.go_on()
            time.sleep(0.01)
        assert [result.value for result in supervisor.results()] == [(True, b"x")]


# What the next start removes. Shared memory is a folder of the test, where no other run removes anything.

HOST = """
import sys, threading, warnings
sys.path.insert(0, {root!r})
import shmqueue
from tests import jobs

warnings.simplefilter("ignore", DeprecationWarning)  # fork beside a thread is meant
shmqueue.shared_directory = lambda: sys.argv[1]

def work():
    with shmqueue.Supervisor([jobs.pid, jobs.hang], workers=2, start_method="fork") as supervisor:
        print(next(supervisor.run([("pid", b"")])).value, flush=True)
        list(supervisor.run([("hang", b"")]))

if __name__ == "__main__":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_segment_that_a_signal_left_is_removed_by_the_next_start(cli, tmp_path, monkeypatch, number):
    """Outside the main thread nothing catches SIGTERM, as nothing ever catches SIGKILL."""
    folder = tmp_path / "shared"
    folder.mkdir()
    process = cli.start(folder, script=cli.file("host.py", HOST.format(root=str(ROOT))))
    worker = int(process.stdout.readline())
    process.send_signal(number)
    run = cli.finish(process)
    assert (run.code, run.err) == (-number, "")
    assert wait_until(lambda: not is_running(worker))
    assert {path.name.split("-")[1] for path in folder.iterdir()} == {str(process.pid)}
    monkeypatch.setattr(shmqueue, "shared_directory", lambda: str(folder))
    with Supervisor([jobs.echo], workers=1, start_method="fork") as supervisor:
        assert {path.name.partition(".")[0] for path in folder.iterdir()} == {supervisor.name}
    assert list(folder.iterdir()) == []
