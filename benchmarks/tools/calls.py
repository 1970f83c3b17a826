"""Count the calls that a task costs, here and in other files: `python -m benchmarks.tools.calls [NAME=FILE ...]`.

It writes benchmarks/calls.md. A call is a Python function that begins, or a generator that goes on, as sys.setprofile
tells. The counts differ a little from run to run, since the processes meet at other moments.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.jobs import echo, noop
from benchmarks.report import joined, table

RUNS = 5
TASKS = 100_000
ROUNDS = 300
PAYLOAD = b"x" * 93
LOCK, BELL = "lockf", "write"  # what of C is counted
COPIES = """
Copies of a payload and of a value, by reading; *in bulk* are those of many tasks at once:

| what | 0.2.0 | now |
| --- | --- | --- |
| payload in its slot | into the slot; to the lane (in bulk); into an object | into a slot; to the ring and to the lane (in bulk); into an object |
| payload out of line | joined (in bulk); to the heap (in bulk); out of it (in bulk); into an object | the same |
| what the slot says of it | a bytes object on each side, packed and unpacked | two words, written and read by column |
| bytes and text as value | into the log; out of it twice (in bulk); into an object | into the log; out of it (in bulk); into an object |
| plain data as value | into bytes; into the log; out of it; its head cut off; into an object | into bytes; into the log; out of it twice (in bulk); into an object |

Cache lines of 64 bytes that move between processes for a task with a payload of 93 bytes: 2 of its slot, an eighth for
its word in `ends`, and 1.5 of the log if it returns the payload. The words of a batch are 5 lines for 1,000 tasks.
"""  # noqa: E501


def load(path: str) -> Any:
    """Return this shmqueue.py, under the name by which its workers find it."""
    sys.modules.pop("shmqueue", None)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    return importlib.import_module("shmqueue")


def counted(action: Callable[[], object]) -> collections.Counter[str]:
    """Do it, and return how many Python functions this thread has called ("calls"), and how often each of C."""
    counts: collections.Counter[str] = collections.Counter()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            counts["calls"] += 1
        elif event == "c_call":
            counts[argument.__name__] += 1

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return counts


def drain(results: Any) -> None:
    collections.deque(results, 0)


def count(path: str) -> dict[str, float]:
    """Return what tasks cost the supervisor of this shmqueue.py."""
    shmqueue = load(path)
    found: dict[str, float] = {}
    items = [PAYLOAD] * TASKS
    with shmqueue.Supervisor([noop, echo], workers=2, start_method="fork") as supervisor:
        for _ in range(3):
            drain(supervisor.map(echo, items))  # batches grow
        for name, read in (
            ("no-op, map()", lambda: supervisor.map(noop, items)),
            ("value returned, map()", lambda: supervisor.map(echo, items)),
            ("value returned, run()", lambda: supervisor.run(zip([echo] * TASKS, items))),
        ):
            counts = counted(lambda read=read: drain(read()))  # type: ignore[misc]
            found[f"{name}: Python calls, 1,000 tasks"] = counts["calls"] / TASKS * 1000
            found[f"{name}: turns of the lock, 1,000,000 tasks"] = counts[LOCK] / 2 / TASKS * 1e6

        def there_and_back() -> None:
            for _ in range(ROUNDS):
                supervisor.submit(noop, PAYLOAD)
                drain(supervisor.results())

        there_and_back()
        counts = counted(there_and_back)
        for name, key, share in (("Python calls", "calls", 1), ("turns of the lock", LOCK, 2), ("bells rung", BELL, 1)):
            found[f"one task there and back: {name}"] = counts[key] / share / ROUNDS
    return found


def medians(path: str) -> dict[str, float]:
    """Count several times, each in a process of its own, and return the medians."""
    runs = []
    for _ in range(RUNS):
        command = [sys.executable, "-m", "benchmarks.tools.calls", "--count", path]
        runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    if sys.argv[1:2] == ["--count"]:
        print(json.dumps(count(sys.argv[2])))
        return
    files = dict(each.split("=", 1) for each in [*sys.argv[1:], "now=shmqueue.py"])
    columns = [medians(path) for path in files.values()]
    rows = [[name, *(f"{column[name]:,.4g}" for column in columns)] for name in columns[-1]]
    text = joined(
        "# What a task costs, counted",
        "Written by `python -m benchmarks.tools.calls`, with 2 workers and payloads of 93 bytes. A turn of the lock is"
        " one acquisition of it.",
        table(["in the supervisor", *files], rows),
        COPIES.strip(),
    )
    (ROOT / "benchmarks" / "calls.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
