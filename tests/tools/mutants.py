"""Mistakes made out of the syntax tree, each of which a test should catch.

    python -m tests.tools.mutants [--since COMMIT] [-n JOBS] [NAME ...]

NAME is a class or function of shmqueue.py or variants/, as Run or Lane.halt. Without names, mistakes are made in
the lines that differ from COMMIT. operators.py says what kinds of mistakes there are.

First all tests run once, on a copy whose functions note their lines (see reach.py). Then each mistake is made in a
copy, and the tests that reach its line run there: those first that have caught others of the same function, then each
with its shortest parameters, for so many seconds as --seconds says. It is

    caught       a test fails twice by what it asserts, or cannot be imported. A test that was late has a second try
                 with more time, since what waits for something asserts that it came
    timed out    tests waited too long, and none of them failed by what it asserts. That is not caught
    survived     all of these tests pass
    not reached  no test reaches its line
    broken       pytest itself failed

Each run has process ids and shared memory of its own, by `unshare`: a mistake may send any signal to any process.

Looked at first, in 2026: mutmut 3.8 makes mistakes in functions that it runs in its own process, notes there which
tests reach them, and counts a time-out as caught; cosmic-ray 8.7 and poodle 1.3 run one command, so all tests, for each
mistake; mutatest 3.1 needs coverage below 6 and MutPy 0.6 is from 2019: neither runs on this Python.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from tests.tools import reach
from tests.tools.operators import choose, sources

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "plots")
PLUGIN = "mutants_plugin"
FIRST = 6  # tests, before the others: most mistakes are caught by them
WAITS = 2  # tests that wait too long, after which the others do not run
interrupted = threading.Event()
running = set()  # processes that run tests


@functools.cache
def namespaces():
    """Return the command that gives what it runs processes and shared memory of its own; empty if there is none."""
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    script = 'mount -t tmpfs none /dev/shm; "$@"; exit $?'  # the shell is the first process: it reaps
    for user in ([], ["--user", "--map-root-user"]):
        whole = [*command, *user, "sh", "-c", script, "sh"]
        if shutil.which("unshare") and subprocess.run([*whole, "true"], capture_output=True).returncode == 0:
            return whole
    print("no namespaces here: a mistake can send signals to any of your processes", file=sys.stderr)
    return []


class Copy:
    """A copy of the project, for one run of tests at a time."""

    def __init__(self, root, folder):
        self.folder = folder
        self.sources = sources(root)
        shutil.copytree(root, folder, ignore=NOT_COPIED)
        shutil.copy(reach.__file__, folder / f"{PLUGIN}.py")

    def trace(self):
        """Let the functions of this copy note their lines."""
        for name, source in self.sources.items():
            if source.strip():
                current = str(self.folder / "notes" / "current")
                (self.folder / name).write_text(reach.traced(source.decode(), name, current), encoding="utf-8")

    def run(self, paths, tests=None, limit=3600.0):
        """Run tests. Return how each ended, and the exit code of pytest; None if it had to be ended."""
        if interrupted.is_set():
            raise KeyboardInterrupt
        notes, temporary = self.folder / "notes", self.folder / "tmp"
        for folder in (notes, temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        plan = {"folder": str(notes), "tests": tests, "waits": WAITS}
        (self.folder / reach.PLAN.name).write_text(json.dumps(plan), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", PLUGIN]
        command += ["-p", "no:cacheprovider", "-p", "no:randomly", *paths]
        with open(notes / "output", "wb") as file:
            process = subprocess.Popen(
                [*namespaces(), *command],
                cwd=self.folder,
                env={**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            running.add(process)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_session(process)
                running.discard(process)
        rows = notes / "rows"
        return [json.loads(line) for line in rows.read_text("utf-8").splitlines()] if rows.exists() else [], code

    def lines_of(self, row):
        """Return the lines that a test has reached."""
        path = self.folder / "notes" / row["lines"]
        return set(path.read_text("utf-8").split()) if path.exists() else set()


def end_session(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def interrupt(number, frame):
    """Handle SIGINT and SIGTERM: end what runs, and begin nothing more."""
    interrupted.set()
    for process in list(running):
        end_session(process)
    raise KeyboardInterrupt


class Copies:
    """So many copies, each of which one thread has at a time."""

    def __init__(self, root, folder, count):
        self._free = [Copy(root, folder / str(number)) for number in range(count)]
        self._lock = threading.Lock()

    def with_one(self, work, *arguments):
        with self._lock:
            copy = self._free.pop()
        try:
            return work(copy, *arguments)
        finally:
            self._free.append(copy)


class Reach(NamedTuple):
    """seconds: of each test that passes. tests: the tests that reach a line, by "file:line"."""

    seconds: dict[str, float]
    tests: dict[str, list[str]]


def look(copies, jobs, paths):
    """Run all tests. Return the Reach."""
    seconds, tests, bad = {}, collections.defaultdict(list), []
    with ThreadPoolExecutor(jobs) as pool:
        for found in as_completed([pool.submit(copies.with_one, look_at, path) for path in paths]):
            for row, lines in found.result():
                if row["failed"] is not None:
                    bad.append(f"{row['test']}: {row['failed'].splitlines()[0]}")
                elif not row["skipped"]:
                    seconds[row["test"]] = row["seconds"]
                    for line in lines:
                        tests[line].append(row["test"])
    print(f"{len(seconds)} tests pass on the unchanged project, {len(bad)} do not", *bad, sep="\n", flush=True)
    return Reach(seconds, tests)


def look_at(copy, path):
    copy.trace()
    rows, code = copy.run([path])
    if not rows and code not in (0, 5):
        sys.exit((copy.folder / "notes" / "output").read_text("utf-8")[-3000:])
    return [(row, copy.lines_of(row)) for row in rows]


def kept_look(file, root, jobs, paths):
    """Return the Reach, out of `file` if it was made from the same product and tests."""
    digest = hashlib.sha256()
    for path in [*map(root.joinpath, sources(root)), *sorted((root / "tests").rglob("*.py"))]:
        digest.update(path.read_bytes())
    if file and file.exists() and (kept := json.loads(file.read_text("utf-8")))["of"] == digest.hexdigest():
        return Reach(kept["seconds"], kept["tests"])
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        found = look(Copies(root, pathlib.Path(folder), jobs), jobs, paths)
    if file:
        file.write_text(json.dumps({"of": digest.hexdigest(), **found._asdict()}), encoding="utf-8")
    return found


class Judge:
    """Says what becomes of mistakes."""

    def __init__(self, found, seconds, late):
        self._reach = found
        self._seconds = seconds
        self._late = late
        self._catches = collections.defaultdict(collections.Counter)  # of each test, by function

    def tests_for(self, mistake):
        """Return the tests that run, in order."""
        reaching = {test for line in mistake.lines for test in self._reach.tests.get(f"{mistake.file}:{line}", ())}
        catches = self._catches[mistake.scope]
        ranks, seen = {}, collections.Counter()
        for test in sorted(reaching, key=lambda test: (self._reach.seconds[test], test)):
            function = test.partition("[")[0]
            ranks[test] = seen[function]  # so each test runs with one of its parameters before any runs with another
            seen[function] += 1
        chosen, spent = [], 0.0
        for test in sorted(ranks, key=lambda test: (-catches[test], ranks[test])):
            chosen.append(test)
            spent += self._reach.seconds[test]
            if spent > self._seconds:
                break
        return chosen

    def judge(self, copy, mistake):
        """Make a mistake. Return what becomes of it, and the test that says so."""
        tests = self.tests_for(mistake)
        if not tests:
            return "not reached", ""
        for name, source in copy.sources.items():
            (copy.folder / name).write_bytes(mistake.text(source) if name == mistake.file else source)
        late = []
        for some in (tests[:FIRST], tests[FIRST:]):
            verdict, test = self._run(copy, mistake, some, min(5.0, self._late))
            if verdict in ("caught", "broken"):
                return verdict, test
            if verdict == "timed out":
                late.append(test)
        if not late:
            return "survived", f"{len(tests)} tests"
        verdict, test = self._run(copy, mistake, late[:1], self._late)
        return ("caught" if verdict == "caught" else "timed out"), test or late[0]

    def _run(self, copy, mistake, tests, spare, again=False):
        """Run tests. One that fails has to fail again: on a busy machine one may fail by chance."""
        if not tests:
            return "survived", ""
        limits = {test: spare + 4 * self._reach.seconds[test] for test in tests}
        paths = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        rows, code = copy.run(paths, limits, limit=30.0 + spare * WAITS + 4 * sum(limits[t] - spare for t in tests))
        failed = [row for row in rows if row["failed"] is not None]
        if asserted := [row["test"] for row in failed if not reach.waited(row)]:
            if not again and self._run(copy, mistake, asserted[:1], spare, again=True)[0] != "caught":
                return self._run(copy, mistake, [test for test in tests if test != asserted[0]], spare)
            self._catches[mistake.scope][asserted[0]] += 1
            return "caught", asserted[0]
        if failed or code is None:
            return "timed out", failed[0]["test"] if failed else tests[min(len(rows), len(tests) - 1)]
        if code in (0, 2):  # 2: a file of tests cannot be imported
            return ("caught", "an import") if code else ("survived", "")
        return "broken", (copy.folder / "notes" / "output").read_text("utf-8", "replace")[-1000:]


def judge_all(mistakes, judge, root, jobs):
    """Make all of these mistakes. Print what becomes of each, and return it."""
    verdicts = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies = Copies(root, pathlib.Path(folder), jobs)
        runs = {pool.submit(copies.with_one, judge.judge, mistake): mistake for mistake in mistakes}
        for run in as_completed(runs):
            verdicts[runs[run]] = verdict, about = run.result()
            print(f"{verdict:<11} {runs[run]}  ({about})", flush=True)
    return verdicts


def report(verdicts):
    """Print what was not caught, and the score."""
    counts = collections.Counter(verdict for verdict, _ in verdicts.values())
    for word in ("survived", "not reached", "timed out", "broken"):
        for mistake in sorted(mistake for mistake, (verdict, _) in verdicts.items() if verdict == word):
            print(f"{word:<11} {mistake}")
    print(", ".join(f"{count} {word}" for word, count in counts.most_common()))
    if verdicts:
        print(f"score: {counts['caught']} of {len(verdicts)}, {100 * counts['caught'] / len(verdicts):.0f} %")


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description="Make mistakes, and say which of them no test catches.")
    parser.add_argument("names", metavar="NAME", nargs="*", help="classes and functions")
    parser.add_argument("--since", metavar="COMMIT", default="HEAD", help="the lines that differ from this commit")
    parser.add_argument("-n", "--jobs", type=int, default=2, help="runs of tests at a time (default: %(default)s)")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="files and folders of tests (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for a mistake (default: %(default)s)")
    parser.add_argument(
        "--late", type=float, default=40.0, metavar="SECONDS", help="for a test that was late (default: %(default)s)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="so many mistakes, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice (default: %(default)s)")
    parser.add_argument("--reach", type=pathlib.Path, metavar="FILE", help="keep there which test reaches what")
    parser.add_argument("--list", action="store_true", help="say which mistakes there are, and exit")
    options = parser.parse_args(arguments)
    if sys.version_info < (3, 12):
        parser.error("Python 3.12 or later is needed: lines are noted by sys.monitoring")
    began = time.monotonic()
    mistakes = choose(root, options.names, options.since)
    if options.sample is not None and options.sample < len(mistakes):
        mistakes = random.Random(options.seed).sample(mistakes, options.sample)  # noqa: S311
    if options.list or not mistakes:
        print(*mistakes, f"{len(mistakes)} mistakes", sep="\n")
        return 0
    places = [root / path for path in options.tests or ["tests"]]
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("test_*.py")))]
    paths = [path.relative_to(root).as_posix() for path in files]
    found = kept_look(options.reach, root, options.jobs, paths)
    report(judge_all(mistakes, Judge(found, options.seconds, options.late), root, options.jobs))
    print(f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    sys.exit(main())
