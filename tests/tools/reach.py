"""A plugin of pytest for mutants.py: which lines each test reaches, in all of its processes, and how each test ends.

mutants.py copies it into the copies of the project that it makes, and writes a plan beside it:

    folder    what tests reach, and how they end, is written there
    tests     {id: seconds}: only these run, in this order, each with this limit; None: all run, apart from those that
              make mistakes themselves
    waits     the session ends after so many tests that waited too long; it ends at once if one fails by what it asserts

Lines are noted by the copy itself: its first statement executes TRACER, so every process that runs the product notes
them, however it was started and whatever its environment is. Each line is written when a process first reaches it: a
worker that is killed, or ends by os._exit, loses nothing. Coverage.py writes at the end of a process, and its tracer
would be in the way of the tests that trace.

A process that outlives its test, as a node of Dask does, notes a line in the first of its tests only.
"""

import json
import os
import pathlib
import sys

import pytest

PLAN = pathlib.Path(__file__).with_name("mutants_plan.json")
TOOL = 3  # of sys.monitoring: neither a debugger's nor coverage's
WAITED = ("Timeout (>", "TimeoutExpired", "TimeoutError", "FailedHealthCheck")  # in the message of a test that was late

TRACER = """
import os, sys
events = sys.monitoring
def note(code, line):
    try:
        file = os.open({current!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(file, b"{name}:%d\\n" % line)
        os.close(file)
    except OSError:
        pass
    return events.DISABLE
def watch(code):
    for part in code.co_consts:
        if hasattr(part, "co_consts"):
            events.set_local_events({tool}, part, events.events.LINE)
            watch(part)
if events.get_tool({tool}) is None:
    events.use_tool_id({tool}, "reach")
    events.register_callback({tool}, events.events.LINE, note)
watch(sys._getframe(1).f_code)
"""


def traced(text, name, current):
    """Return the text of a module that notes the lines of its functions, as `name`:number, in the file `current`."""
    tracer = TRACER.format(current=current, name=name, tool=TOOL)
    first = "from __future__ import annotations\n"
    assert text.count(first) == 1, f"{name} has no place for the tracer"
    return text.replace(first, f"{first[:-1]}; exec({tracer!r}, {{}})\n")


class Plugin:
    def __init__(self, plan):
        self.folder = pathlib.Path(plan["folder"])
        self.tests = plan["tests"]
        self.waits = plan["waits"]
        self.count = 0
        self.row = {}

    def pytest_sessionstart(self, session):
        self.session = session

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        if self.tests is None:
            items[:] = [item for item in items if item.get_closest_marker("mistake") is None]
            return
        found = {item.nodeid: item for item in items}
        items[:] = [found[test] for test in self.tests if test in found]
        for item in items:
            item.add_marker(pytest.mark.timeout(self.tests[item.nodeid]), append=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        self.count += 1
        self.row = {"test": item.nodeid, "seconds": 0.0, "failed": None, "skipped": False, "lines": str(self.count)}
        link = self.folder / "next"
        link.symlink_to(self.folder / str(self.count))
        link.replace(self.folder / "current")
        sys.monitoring.restart_events()
        done = yield
        with open(self.folder / "rows", "a", encoding="utf-8") as file:
            file.write(json.dumps(self.row) + "\n")
        return done

    def pytest_runtest_logreport(self, report):
        self.row["seconds"] += report.duration
        self.row["skipped"] |= report.skipped
        if not report.failed or self.row["failed"] is not None:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        self.row["failed"] = crash.message if crash else str(report.longrepr)[-1000:]
        if self.tests is not None:
            self.waits -= 1 if waited(self.row) else self.waits
            self.session.shouldfail = self.waits <= 0 and "enough is known"


def waited(row):
    """Return True if a test failed because it waited too long."""
    return row["failed"] is not None and any(word in row["failed"] for word in WAITED)


def pytest_configure(config):
    if PLAN.exists():
        config.pluginmanager.register(Plugin(json.loads(PLAN.read_text(encoding="utf-8"))))
        os.environ.pop("PYTEST_ADDOPTS", None)
