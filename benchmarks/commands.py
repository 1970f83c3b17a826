"""What is measured of command lines: ours, a script with Pool, xargs, GNU parallel. Each is a process, and its exit
code and what it says of its tasks are checked before there is a figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import CORES, ROOT, terminal
from benchmarks.jobs import WrongError

SHMQUEUE = [sys.executable, str(ROOT / "shmqueue.py")]
JOBS_FILE, POOL_SCRIPT = str(ROOT / "benchmarks" / "jobs.py"), str(ROOT / "benchmarks" / "pool_script.py")
DATE = "date +%s.%N"


@contextlib.contextmanager
def task_file(line: str, count: int) -> Iterator[str]:
    """A file of `count` lines; `#` in the line stands for its number."""
    with tempfile.NamedTemporaryFile("w", prefix="tasks-", suffix=".txt") as file:
        for start in range(0, count, 10_000):
            file.writelines(line.replace("#", str(n)) + "\n" for n in range(start, min(count, start + 10_000)))
        file.flush()
        yield file.name


class Ended(NamedTuple):
    """A command that has ended. seconds: wall time. cpu: seconds of processor time, with its children. peak: MiB of
    memory that the process itself held at most."""

    seconds: float
    cpu: float
    peak: float
    output: str


def _peak(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) / 1024
    return 0.0


def run(command: Sequence[str], source: str | None = None, watch: bool = False, stderr: Any = None) -> Ended:
    """Run a command to its end. Raises WrongError if its exit code is not 0."""
    peak, start = 0.0, time.perf_counter()
    with contextlib.ExitStack() as stack:
        source_file: Any = stack.enter_context(open(source, "rb")) if source else subprocess.DEVNULL
        output = stack.enter_context(tempfile.TemporaryFile("w+"))
        errors = stack.enter_context(tempfile.TemporaryFile("w+")) if stderr is None else stderr
        child = subprocess.Popen(command, stdin=source_file, stdout=output, stderr=errors)
        while watch and os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = max(peak, _peak(child.pid))
            time.sleep(0.01)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
        if child.returncode:
            why = "" if isinstance(errors, int) else (errors.seek(0), errors.read())[1][-300:]
            raise WrongError(f"{' '.join(command)[:100]}: exit code {child.returncode} {text[-200:]} {why}")
    return Ended(seconds, usage.ru_utime + usage.ru_stime, peak, text)


def check_ok(output: str, tasks: int) -> None:
    """Raises WrongError unless our summary says that all tasks were ok."""
    if f"{tasks:,} ok, 0 failed, 0 timed out, 0 crashed, 0 cancelled" not in output:
        raise WrongError(f"{tasks:,} tasks, and the summary says: {output.strip()[-200:]!r}")


def _check_lines(output: str, tasks: int) -> list[float]:
    """Times, one a line."""
    times = [float(line) for line in output.split()]
    if len(times) != tasks:
        raise WrongError(f"{tasks:,} tasks, {len(times):,} lines")
    return times


# Memory.


def ours_memory(lines: int) -> float:
    """MiB that the supervisor held at most, for so many lines of a task file."""
    with task_file("noop #", lines) as path:
        ended = run([*SHMQUEUE, path, "--screen", "off"], watch=True)
    check_ok(ended.output, lines)
    return ended.peak


def pool_memory(lines: int) -> float:
    with task_file("noop #", lines) as path:
        ended = run([sys.executable, POOL_SCRIPT, path, "noop"], watch=True)
    if ended.output.split() != [str(lines)]:
        raise WrongError(f"{lines:,} tasks, and the script says {ended.output!r:.60}")
    return ended.peak


# Lines of shell commands.


def ours_shell(lines: int) -> float:
    """Seconds for so many lines of `true`."""
    with task_file("true", lines) as path:
        ended = run([*SHMQUEUE, path, "--shell", "-w", str(CORES), "--screen", "off"])
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


def ours_start(tasks: int) -> dict[str, float]:
    """Seconds from the command to the first task's first line, and to the command's end."""
    return _ours_start(tasks, "x", ["--call", f"{JOBS_FILE}:wall"])


def ours_start_shell(tasks: int) -> dict[str, float]:
    return _ours_start(tasks, DATE, ["--shell"])


def _ours_start(tasks: int, line: str, options: list[str]) -> dict[str, float]:
    with task_file(line, tasks) as path:
        began = time.time()
        ended = run([*SHMQUEUE, path, *options, "--results", "-", "--screen", "off"])
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


# The screen.


def ours_screen(lines: int, screen: str) -> dict[str, float]:
    """Tasks a second, and microseconds of processor time a task, of a command whose error stream is a terminal."""
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
    """Per cent of a core that a command and its workers take while their input, a pipe, is silent."""
    command = [*SHMQUEUE, "-", "-w", str(workers), "--screen", "off"]
    child: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        child.stdin.write(b"sleep 0.2\n" * workers)
        child.stdin.flush()
        time.sleep(2)
        pids = [child.pid, *_children(child.pid)]
        before, start = sum(map(_processor_seconds, pids)), time.perf_counter()
        time.sleep(seconds)
        share = (sum(map(_processor_seconds, pids)) - before) / (time.perf_counter() - start)
        child.stdin.close()
        output = child.stdout.read().decode()
    check_ok(output, workers)
    if len(pids) != workers + 1:
        raise WrongError(f"{workers} workers, {len(pids) - 1} processes")
    return 100 * share


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _processor_seconds(pid: int) -> float:
    """Processor time of all threads of a process; the scheduler counts it in ns."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
