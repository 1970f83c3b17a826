"""BENCHMARKS.md, and the same as text on the terminal."""

from __future__ import annotations

import multiprocessing
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.harness import CORES, ROOT, ROWS, Curve, Findings, Line, Plan, Row, number

PEERS = ("faster-fifo", "joblib", "mpire", "pebble")

NOT_EQUIVALENT = """\
- `Pool`, `ProcessPoolExecutor`, joblib, mpire and Pebble carry any Python object, by pickle. shmqueue carries bytes,
  text and flat structures only. On the tasks measured here, bytes, both do the same.
- `Pool.map` and joblib hold all tasks and all values in memory, and `imap_unordered` reads its whole input ahead;
  shmqueue reads as there is room. Its rates include that.
- shmqueue keeps an account of every task, so that each has one outcome whatever is killed; times every task, or every
  run of short ones; and its iterator as they finish gives a record with function, payload, status, attempts, worker and
  seconds. `Pool` gives the value alone, and waits for ever when a worker is killed.
- faster-fifo and `multiprocessing.Queue` are queues, not pools. There and back through two of them is compared, with a
  loop that calls the function in between; they know nothing of tasks. They allow several producers, where shmqueue
  has one: in faster-fifo's scenarios it sends as many tasks as all their producers together.
- Chunk sizes of `Pool` are chosen by hand here, the best of several for these very tasks. Batches of shmqueue size
  themselves in all rows but the one that sets them.
- `xargs` and GNU parallel do not keep the output of each line apart as a value, with its time and its exit code;
  `xargs` mixes the output of lines that run at the same time.
- The floor is not a system. Nothing that keeps its processes apart and tells its tasks apart can reach it.
- Rates include the start and the end of workers on both sides, except where a row says otherwise. Where it says
  "processes running already", both sides have done the same tasks once before, in the same processes.
- A list schedule is not a system either. It gives each task, in input order, to the first worker that is free, at no
  cost, and is computed from the times that the tasks of the same run took. It is not the best schedule there is: a
  makespan may be a little below it.
"""


def machine() -> dict[str, str]:
    """What the figures depend on."""
    versions = []
    for name in PEERS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} missing")
    return {
        "processor": f"{_processor()}, {CORES} cores used",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "start method": f"{multiprocessing.get_start_method()} (multiprocessing), fork (shmqueue)",
        "commit": _commit(),
        "compared": ", ".join(versions),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", "shmqueue.py", "variants") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def verdict(line: Line) -> str:
    return {None: "", True: "met", False: "**missed**"}[line.met]


def cells(line: Line) -> list[str]:
    """A comparison as the cells of the table: against, ours, theirs, figure, goal, verdict."""
    theirs = line.theirs.text(line.unit) if line.theirs else "–"
    goal = line.goal.text().strip() if line.goal else "–"
    return [line.against, line.ours.text(line.unit), theirs, line.figure.text(line.figure_unit), goal, verdict(line)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def summary(done: Mapping[str, Findings], failed: Mapping[str, str]) -> str:
    """The table of goals and figures."""
    rows = []
    for name, found in done.items():
        for at, line in enumerate(found.lines):
            rows.append([ROWS[name].title if at == 0 else "", *cells(line)])
    rows += [[ROWS[name].title, "", "", "", "", "", f"**wrong, no figure**: {why}"] for name, why in failed.items()]
    return table(["what", "against", "shmqueue", "the other", "figure", "goal", ""], rows)


def curve_table(curve: Curve) -> str:
    names = list(curve.series)
    rows = []
    for at, x in enumerate(curve.x):
        found = [curve.series[name][at] for name in names]
        rows.append([f"{x:,}" if isinstance(x, int) else str(x), *(s.text(curve.unit) if s else "–" for s in found)])
    return table([curve.label, *names], rows)


def text(name: str, found: Findings) -> str:
    """What a row found, for the terminal."""
    lines = [f"{name}: {ROWS[name].title}"]
    for line in found.lines:
        against, us, them, figure, goal, met = cells(line)
        lines.append(
            f"  {against}: {us} against {them}; {figure}" + (f", goal {goal}: {met.strip('*')}" if met else "")
        )
    for curve in found.curves:
        lines.append(f"  {curve.title}")
        lines += ["    " + line.replace("|", " ") for line in curve_table(curve).splitlines() if "---" not in line]
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])


def _missed(rows: Sequence[tuple[Row, Findings]]) -> str:
    """Why rows missed their goals."""
    missed = [(row, [line for line in found.lines if line.met is False]) for row, found in rows]
    lines = []
    for row, bad in missed:
        if bad:
            figures = "; ".join(
                f"{number(x.figure.median)} {x.figure_unit}, goal {x.goal.text()}" for x in bad if x.goal
            )
            lines.append(f"- {row.title}: {figures}" + (f". Why: {row.reason}." if row.reason else "."))
    return "\n".join(lines) or "None."


def write(path: Path, plan: Plan, done: Mapping[str, Findings], failed: Mapping[str, str], seconds: float) -> None:
    """Write BENCHMARKS.md, and the plots where matplotlib is there."""
    pieces = [
        "# Benchmarks",
        f"Written by `python -m benchmarks{' --quick' if plan.quick else ''}` in {seconds / 60:.1f} minutes.\n"
        f"Figures are medians of {plan.repetitions} or more repetitions, the systems taking turns, with the range in\n"
        "parentheses; a ratio is taken repetition by repetition. All values were checked before a rate was printed."
        "\n`python -m benchmarks --rows NAME …` measures single rows; it writes no file unless `--out` names one."
        + ("\nWith `--quick` there are fewer tasks than the rows say." if plan.quick else ""),
        "\n".join(f"- {name}: {value}" for name, value in machine().items()),
        "## Goals and figures",
        summary(done, failed),
        "### Missed",
        _missed([(ROWS[name], found) for name, found in done.items()]),
    ]
    if absent := [row.title for name, row in ROWS.items() if name not in done and name not in failed]:
        pieces += ["Not measured in this run: " + "; ".join(absent) + "."]
    pieces += ["## What is not equivalent", NOT_EQUIVALENT.strip(), "## Curves and tables"]
    notes: list[str] = []
    for found in done.values():
        for curve in found.curves:
            pieces += [f"### {curve.title}", *_plot(curve, path.parent, notes), curve_table(curve)]
    for name, found in done.items():
        notes += [f"{ROWS[name].title}: {note}" for note in found.notes]
    pieces += ["## Notes", "\n".join(f"- {note}" for note in dict.fromkeys(notes)) or "None."]
    path.write_text("\n\n".join(pieces) + "\n")


def _plot(curve: Curve, folder: Path, notes: list[str]) -> list[str]:
    if not curve.plot:
        return []
    from benchmarks.plots import draw

    try:
        drawn = draw(curve, folder / "benchmarks" / "plots")
    except ImportError:
        notes.append("no plots: matplotlib is not installed")
        return []
    return [f"![{curve.title}]({drawn.relative_to(folder).as_posix()})"]
