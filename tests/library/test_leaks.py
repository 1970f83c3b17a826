"""What must not grow: memory with the tasks; descriptors, processes, files and objects with the Supervisors."""

import contextlib
import gc
import json
import os
import signal

import psutil
import pytest

from shmqueue import Supervisor
from tests import jobs
from tests.helpers import ROOT, segments_of

# Memory. Each run is a process of its own, so that nobody else's memory is counted.

HOST = """
import itertools, json, os, pathlib, re, sys, threading, time
sys.path.insert(0, {root!r})
from tests import jobs
from shmqueue import READ_AHEAD, Supervisor

def peak(pid):
    "The largest resident memory that a process had, in bytes."
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path(f"/proc/{{pid}}/status").read_text())[1]) * 1024
"""
MANY = """
def work(supervisor, how, function, count):
    payloads = itertools.repeat(b"payload", count)
    if how == "map":
        results = supervisor.map(function, payloads)
    else:
        results = supervisor.run((function, payload) for payload in payloads)
    assert sum(1 for _ in results) == count

if __name__ == "__main__":
    how, function = sys.argv[1:]
    with Supervisor([jobs.quiet, jobs.echo], workers=2) as supervisor:
        work(supervisor, how, function, 100_000)
        pids = [os.getpid()] + [worker["pid"] for worker in supervisor.stats()["workers"]]
        before = [peak(pid) for pid in pids]
        work(supervisor, how, function, 1_000_000)
        print(json.dumps([peak(pid) - then for pid, then in zip(pids, before)]))
"""
SLOW_ONE = """
read = 0

def payloads(gate, count, size):
    global read
    for number in range(count):
        read += 1
        yield ("wait_for_file", gate) if number == 100 else ("echo", bytes(size))

def open_gate(gate):
    "Let the slow task end once nothing more is read."
    before = 0
    while not read or read != before:
        before = read
        time.sleep(0.5)
    print(json.dumps([read, peak(os.getpid())]), flush=True)
    pathlib.Path(gate).touch()

def in_order(payload):
    function, data = payload
    return getattr(jobs, function)(data)

if __name__ == "__main__":
    gate, slots, count, size = sys.argv[1], *map(int, sys.argv[2:])
    with Supervisor([in_order], workers=2, num_slots=slots) as supervisor:
        threading.Thread(target=open_gate, args=[gate]).start()
        assert sum(1 for _ in supervisor.map(in_order, payloads(gate, count, size))) == count
"""


@pytest.mark.promise("G5a")
@pytest.mark.parametrize("function", ["quiet", "echo"])
@pytest.mark.parametrize("how", ["map", "run"])
def test_memory_does_not_grow_with_the_tasks_of_a_supervisor(cli, how, function):
    """Neither in the supervisor nor in its workers."""
    run = cli.run(how, function, script=cli.file("host.py", HOST.format(root=str(ROOT)) + MANY))
    assert (run.code, run.err) == (0, "")
    grown = json.loads(run.out)
    assert len(grown) == 3
    assert max(grown) < 4 << 20, "a million tasks more, and not four bytes for each of them"


@pytest.mark.promise("G5b")
def test_memory_of_results_that_wait_for_a_slow_task_is_bounded(cli):
    """Two hundred megabytes of payloads and as much of values, of which a slow task would hold up nearly all."""
    slots, count, size = 64, 10_000, 20_000
    gate = cli.folder / "gate"
    script = cli.file("host.py", HOST.format(root=str(ROOT)) + SLOW_ONE)
    run = cli.run(gate, slots, count, size, script=script)
    assert (run.code, run.err) == (0, "")
    read, peak = json.loads(run.out)
    assert read < 10 * slots
    assert peak < count * size // 2


# Supervisors.


def finish(supervisor):
    with supervisor:
        assert list(supervisor.map(jobs.echo, [b"a"])) == [b"a"]


def leave_a_run(supervisor):
    with supervisor:
        next(supervisor.run([b"a"] * 100))


def raise_in_the_block(supervisor):
    with contextlib.suppress(ZeroDivisionError), supervisor:
        supervisor.submit(jobs.echo, b"a")
        raise ZeroDivisionError


def forget(supervisor):
    """It is closed when nobody refers to it any more."""
    next(supervisor.run([b"a"]))


def signal_handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]


def holdings():
    """What this process holds: descriptors, children, segments, threads; and how many objects."""
    process = psutil.Process()
    children = sorted(child.pid for child in process.children(recursive=True))
    for _ in range(3):  # types of ctypes go one after the other
        gc.collect()
    return (process.num_fds(), process.num_threads(), children, segments_of([os.getpid()])), len(gc.get_objects())


@pytest.mark.promise("G4a", "G8a")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("end", [finish, leave_a_run, raise_in_the_block, forget])
def test_nothing_is_left_of_a_hundred_supervisors(end, workers):
    """A hundred in all, and some of each kind."""
    count = 13
    handlers = signal_handlers()
    for _ in range(3):  # what Python itself keeps is there then
        end(Supervisor([jobs.echo], workers=workers, num_slots=16, start_method="fork"))
    held, objects = holdings()
    for _ in range(count):
        end(Supervisor([jobs.echo], workers=workers, num_slots=16, start_method="fork"))
    held_now, objects_now = holdings()
    assert held_now == held
    assert signal_handlers() == handlers
    assert objects_now - objects < count, "not an object for each"


HOLDER = """\
import sys
sys.path.insert(0, {root!r})
from tests import jobs
from shmqueue import Supervisor

class Holder:
    def __init__(self):
        self.supervisor = Supervisor([jobs.echo], workers=1)

    def __del__(self):
        self.supervisor.close()

if __name__ == "__main__":
    holder = Holder()
    holder.supervisor.submit(jobs.echo, b"x")
"""


@pytest.mark.promise("G4a")
def test_a_del_that_closes_a_supervisor_when_python_exits_writes_nothing(cli):
    run = cli.run(script=cli.file("holder.py", HOLDER.format(root=str(ROOT))))
    assert (run.code, run.out, run.err) == (0, "", "")
