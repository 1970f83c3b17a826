"""Measure command lines: ours, a script with Pool, xargs and GNU parallel.

Each command is a process. Its exit code and its report about the tasks are checked before there is a figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import CORES, ROOT, terminal
from benchmarks.jobs import WrongError

SHMQUEUE = [sys.executable, str(ROOT / "shmqueue.py")]
MODULE = [sys.executable, "-m", "shmqueue"]  # Python keeps its compiled code, as that of the installed command
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
JOBS_FILE = str(ROOT / "benchmarks" / "jobs.py")
POOL_SCRIPT = str(ROOT / "benchmarks" / "pool_script.py")
DATE = "date +%s.%N"


@contextlib.contextmanager
def task_file(line: str, count: int) -> Iterator[str]:
    """Make a file of `count` lines. In each line, `#` is replaced by the number of the line, from 0."""
    with tempfile.NamedTemporaryFile("w", prefix="tasks-", suffix=".txt") as file:
        for start in range(0, count, 10_000):
            file.writelines(line.replace("#", str(n)) + "\n" for n in range(start, min(count, start + 10_000)))
        file.flush()
        yield file.name


class Ended(NamedTuple):
    """A command that has ended.

    seconds: wall time. cpu: seconds of processor time, its children included. peaks: the MiB of memory that each
    process held at most, by pid, the command's own first; empty unless that was measured.
    """

    seconds: float
    cpu: float
    peaks: Mapping[int, float]
    output: str

    def peak(self) -> dict[str, float]:
        own, *others = self.peaks.values()
        return {"supervisor": own, "largest worker": max(others)}


def _peak(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) / 1024
    return 0.0


def run(
    command: Sequence[str], source: str = os.devnull, measure_peak: bool = False, stderr: int | None = None
) -> Ended:
    """Run a command to its end. Raise WrongError if its exit code is not 0."""
    start = time.perf_counter()
    with open(source, "rb") as tasks, tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        streams: Any = {"stdin": tasks, "stdout": output, "stderr": errors if stderr is None else stderr}
        child = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **streams)
        peaks = _highest_peaks(child.pid) if measure_peak else {}
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        text = _text_of(output)
        if child.returncode:
            why = _text_of(errors)[-300:]
            raise WrongError(f"{' '.join(command)[:100]}: exit code {child.returncode} {text[-200:]} {why}")
    return Ended(seconds, usage.ru_utime + usage.ru_stime, peaks, text)


def _highest_peaks(pid: int) -> dict[int, float]:
    """Read the peak memory of a child and its children until it has ended. Leave it to be waited for."""
    peaks = {pid: 0.0}
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        for each in (pid, *_children(pid)):
            peaks[each] = max(peaks.get(each, 0.0), _peak(each))
        time.sleep(0.01)
    return peaks


def _text_of(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def check_ok(output: str, tasks: int) -> None:
    """Raise WrongError unless our summary says that all tasks were ok."""
    if f"{tasks:,} ok, 0 failed, 0 timed out, 0 crashed, 0 cancelled" not in output:
        raise WrongError(f"{tasks:,} tasks, and the summary says: {output.strip()[-200:]!r}")


def _check_lines(output: str, tasks: int) -> list[float]:
    """Return the times in the output, one a line. Raise WrongError if their number is not that of the tasks."""
    times = [float(line) for line in output.split()]
    if len(times) != tasks:
        raise WrongError(f"{tasks:,} tasks, {len(times):,} lines")
    return times


# Memory.


def ours_memory(lines: int, command: Sequence[str] = SHMQUEUE) -> dict[str, float]:
    """Return the MiB that the supervisor and a worker held at most while they ran a file of `lines` tasks."""
    with task_file("noop #", lines) as path:
        ended = run([*command, path, "--screen", "off"], measure_peak=True)
    check_ok(ended.output, lines)
    return ended.peak()


def pool_memory(lines: int) -> dict[str, float]:
    with task_file("noop #", lines) as path:
        ended = run([sys.executable, POOL_SCRIPT, path, "noop"], measure_peak=True)
    if ended.output.split() != [str(lines)]:
        raise WrongError(f"{lines:,} tasks, and the script says {ended.output!r:.60}")
    return ended.peak()


# Lines of shell commands.


def ours_shell(lines: int) -> float:
    """Return the seconds for `lines` lines of `true`."""
    with task_file("true", lines) as path:
        ended = run([*SHMQUEUE, path, "--shell", "--no-print", "-w", str(CORES), "--screen", "off"])
    check_ok(ended.output, lines)
    return ended.seconds


def xargs_shell(lines: int) -> float:
    with task_file("true", lines) as path:
        return run([_installed("xargs"), f"-P{CORES}", "-I{}", "sh", "-c", "{}"], source=path).seconds


def parallel_shell(lines: int) -> float:
    with task_file("true", lines) as path:
        return run([_installed("parallel"), f"-j{CORES}"], source=path).seconds


def _installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise ImportError(name=program)
    return found


# From the command to the first task, and to the end.


def ours_start(tasks: int, command: Sequence[str] = SHMQUEUE) -> dict[str, float]:
    """Return the seconds from the command to the first line of the first task, and to the end of the command."""
    return _ours_start(tasks, "x", [*command, "--call", f"{JOBS_FILE}:wall"])


def ours_start_shell(tasks: int) -> dict[str, float]:
    return _ours_start(tasks, DATE, [*SHMQUEUE, "--shell"])


def _ours_start(tasks: int, line: str, command: list[str]) -> dict[str, float]:
    with task_file(line, tasks) as path:
        began = time.time()
        ended = run([*command, path, "--results", "-", "--screen", "off"])
    values = "\n".join(json.loads(result)["value"] for result in ended.output.splitlines())
    return {"first": min(_check_lines(values, tasks)) - began, "all": ended.seconds}


def xargs_start(tasks: int) -> dict[str, float]:
    with task_file(DATE, tasks) as path:
        began = time.time()
        ended = run([_installed("xargs"), f"-P{CORES}", "-I{}", "sh", "-c", "{}"], source=path)
    return {"first": min(_check_lines(ended.output, tasks)) - began, "all": ended.seconds}


def pool_start(tasks: int) -> dict[str, float]:
    with task_file("x", tasks) as path:
        began = time.time()
        ended = run([sys.executable, POOL_SCRIPT, path, "wall"])
    count, first = ended.output.split()
    if int(count) != tasks:
        raise WrongError(f"{tasks:,} tasks, and the script says {count}")
    return {"first": float(first) - began, "all": ended.seconds}


def ours_import(module: str) -> float:
    """Return the milliseconds that an import takes, from compiled code, over an interpreter that imports nothing."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**ENVIRONMENT, "PYTHONPYCACHEPREFIX": cache, "PYTHONPATH": str(ROOT)}

        def seconds(code: str) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-S", "-c", code], env=environment, check=True)
            return time.perf_counter() - start

        code = f"import {module}"
        seconds(code)  # writes the compiled code
        pairs = [(seconds(code), seconds("pass")) for _ in range(11)]
    return 1000 * statistics.median(with_it - bare for with_it, bare in pairs)


# The screen.


def ours_screen(lines: int, screen: str) -> dict[str, float]:
    """Return tasks a second and microseconds of processor time a task. The error stream is a terminal."""
    drawn: list[bytes] = []
    os.environ["TERM"] = "xterm-256color"
    with task_file("noop #", lines) as path, terminal(drawn) as stream:
        ended = run([*SHMQUEUE, path, "--screen", screen], stderr=stream)
    check_ok(ended.output, lines)
    if (len(b"".join(drawn)) > 1000) != (screen == "on"):
        raise WrongError(f"screen {screen}, and {len(b''.join(drawn))} bytes were drawn")
    return {"rate": lines / ended.seconds, "cpu": ended.cpu / lines * 1e6}


# Idle.


def ours_idle(workers: int, seconds: float) -> float:
    """Return the percentage of a core that a command and its workers use while their input, a pipe, is silent."""
    command = [*SHMQUEUE, "-", "-w", str(workers), "--screen", "off"]
    child: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        child.stdin.write(b"sleep 0.2\n" * workers)
        child.stdin.flush()
        time.sleep(2)
        pids = [child.pid, *_children(child.pid)]
        before = sum(map(_processor_seconds, pids))
        start = time.perf_counter()
        time.sleep(seconds)
        share = (sum(map(_processor_seconds, pids)) - before) / (time.perf_counter() - start)
        child.stdin.close()
        output = child.stdout.read().decode()
    check_ok(output, workers)
    if len(pids) != workers + 1:
        raise WrongError(f"{workers} workers, {len(pids) - 1} processes")
    return 100 * share


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):  # it has ended
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _processor_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9
