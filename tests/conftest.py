"""What all tests are run with: a guard against hangs, a guard against leftovers, the command line, and a terminal."""

import gc
import os
import py_compile
import signal
import tempfile

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.helpers")
from tests.helpers import (  # noqa: E402
    HANG,
    SCRIPT,
    CommandLine,
    Terminal,
    numbers_of_promises,
    parent_of,
    segments_of,
    unreaped_children,
)

WHERE_MODULES_ARE = ("PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH", "PYTHONUSERBASE")
LONGEST_TMPDIR = 30  # characters: tests make folders in it, and sockets in these; a socket's path has at most 103


def begin_in_a_known_state():
    """Give what tests start the same signals, environment and temporary folder, wherever the tests were started.

    nohup, a job in the background and some containers ignore signals. A child inherits that, but not a handler. With a
    handler that does nothing, this process goes on as before.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python ignores these two
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    for name in list(os.environ):
        if name in ("COLUMNS", "LINES", "NO_COLOR") or (name.startswith("PYTHON") and name not in WHERE_MODULES_ARE):
            del os.environ[name]
    if len(tempfile.gettempdir()) > LONGEST_TMPDIR:
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"


begin_in_a_known_state()
settings.register_profile("shmqueue", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("shmqueue")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config):
    """Four for each processor, since more than half of what tests do is wait."""
    return 4 * len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Tests that take long begin first: groups do. Those of Dask are two, and each shares a cluster.

    xdist 3.8 has groups of tests, too, but does not find them with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if nodeid.startswith("tests/cluster/"):
                return f"cluster {len(nodeid) % 2}"
            return nodeid.partition("::")[0] if nodeid.startswith("tests/tools/") else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # at the end, a processor would wait for them
    for item in items:
        if item.path.parent.name in ("cluster", "command", "tools"):
            item.add_marker("command_line")
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(HANG))


def pytest_collection_finish():
    """Leave what pytest holds now out of all garbage collections, here and in what is forked. Each would go through it,
    and write to it: so a process that forks, and its child, would copy most of its pages.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    carried = {number for mark in item.iter_markers("promise") for number in mark.args}
    unknown = carried.difference(numbers_of_promises())
    assert not unknown, f"no promise has the number {', '.join(sorted(unknown))}"


@pytest.fixture
def own_pids():
    """Return the processes whose leftovers this test has to answer for. A test adds each process that it starts."""
    return {os.getpid()}


def left_by(pids):
    """What is left of these processes. A child of somebody else has got the pid of one that ended."""
    return segments_of({pid for pid in pids if parent_of(pid) in (None, 1, os.getpid()) or pid == os.getpid()})


@pytest.fixture(autouse=True)
def _nothing_is_left(own_pids):
    before = set(segments_of(own_pids))
    children = set(unreaped_children())
    yield
    assert [name for name in left_by(own_pids) if name not in before] == []
    assert [child for child in unreaped_children() if child not in children] == []


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """shmqueue.py, compiled: to compile it takes half of a short run, and the tests make a thousand of them."""
    return py_compile.compile(str(SCRIPT), str(tmp_path_factory.mktemp("program") / "shmqueue.pyc"), doraise=True)


@pytest.fixture
def cli(tmp_path, own_pids, program):
    command_line = CommandLine(tmp_path, own_pids, program)
    yield command_line
    command_line.close()


@pytest.fixture
def terminal():
    it = Terminal()
    yield it
    it.close()
