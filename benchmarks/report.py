"""Write BENCHMARKS.md, and the same figures as text for the terminal."""

from __future__ import annotations

import multiprocessing
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks import kept
from benchmarks.harness import CORES, ROOT, ROWS, Curve, Findings, Line, Plan, Row, number

PEERS = ("faster-fifo", "joblib", "loky", "mpire", "pebble")

NOT_EQUIVALENT = """\
- `Pool`, `ProcessPoolExecutor`, joblib, loky, mpire and Pebble pickle their arguments, so they carry any Python object.
  shmqueue carries plain data, and other objects only with a codec. The tasks measured here are bytes but in the row of
  kinds, and both sides do the same.
- `Pool.map` and joblib hold all tasks and all values in memory. `imap_unordered` reads its whole input ahead. shmqueue
  reads its input only while there is room. Its rates include the cost of that.
- shmqueue keeps an account of every task, so each task has one outcome whatever is killed. It measures the time of
  every task, or of every run of short ones. As they finish, its results are records with function, payload, status,
  attempts, worker and seconds. `Pool` returns the value alone, and waits for ever when a worker is killed.
- faster-fifo and `multiprocessing.Queue` are queues, not pools. They know nothing of tasks. Tasks go through one queue,
  a loop calls the function, and values come back through a second queue. These queues allow several producers; shmqueue
  has one. In faster-fifo's scenarios it sends as many tasks as all their producers together.
- The chunk sizes of `Pool` were chosen by hand: the best of several for these very tasks. The batches of shmqueue size
  themselves in all rows but the one that sets them.
- `xargs` and GNU parallel do not keep the output of each line as a value of its own, with its time and its exit code.
  `xargs` mixes the output of lines that run at the same time.
- The floor is not a system. No system that keeps processes and tasks apart can reach it.
- Rates include the start and the end of the workers on both sides, unless a row says otherwise. Where a row says
  "processes running already", both sides have done the same tasks once before, in the same processes.
- A list schedule is not a system either. It gives each task, in input order, to the first free worker, at no cost. It
  is computed from the times that the tasks took in the same run. It is not the best schedule there is, so a makespan
  may be a little below it.
"""


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
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
    """Return a comparison as the cells of the table: against, ours, theirs, figure, goal, verdict."""
    return [
        line.against,
        line.ours.text(line.unit),
        line.theirs.text(line.unit) if line.theirs else "–",
        line.figure.text(line.figure_unit),
        line.goal.text().strip() if line.goal else "–",
        verdict(line),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def summary(done: Mapping[str, Findings], failed: Mapping[str, str]) -> str:
    """Return the table of goals and figures."""
    rows = []
    for name, found in done.items():
        for at, line in enumerate(found.lines):
            rows.append([ROWS[name].title if at == 0 else "", *cells(line)])
    rows += [[ROWS[name].title, "", "", "", "", "", f"**wrong, no figure**: {why}"] for name, why in failed.items()]
    return table(["what", "against", "shmqueue", "the other", "figure", "goal", ""], rows)


NOISE = 0.1  # a figure that is worse by less than this part of it may be as good as before


def compared(done: Mapping[str, Findings], before: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table of the figures of a quick run beside those that were kept."""
    rows = []
    for name, found in done.items():
        for line in found.lines:
            now = line.figure.median
            then = before.get(name, {}).get(kept.key(line.against))
            if then is None:
                rows.append([name, line.against, "–", number(now), "new"])
            else:
                rows.append([name, line.against, number(then), number(now), _change(line, then)])
    return table(["row", "against", "kept", "now", "change"], rows)


def _change(line: Line, then: float) -> str:
    """Return how much a figure has changed, and whether it is better or worse now. Without a goal, nobody can say."""
    change = line.figure.median / then - 1 if then else 0.0
    word = ""
    if line.goal is not None and abs(change) > NOISE:
        word = "better" if (change > 0) == (line.goal.sign == "≥") else "**worse**"
    return f"{change:+.0%} {word}".strip()


def curve_table(curve: Curve) -> str:
    names = list(curve.series)
    rows = []
    for at, x in enumerate(curve.x):
        label = f"{x:,}" if isinstance(x, int) else str(x)
        found = [curve.series[name][at] for name in names]
        rows.append([label, *(sample.text(curve.unit) if sample else "–" for sample in found)])
    return table([curve.label, *names], rows)


def text(name: str, found: Findings) -> str:
    """Return what a row found as text for the terminal."""
    lines = [f"{name}: {ROWS[name].title}"]
    for line in found.lines:
        against, us, them, figure, goal, met = cells(line)
        judged = f", goal {goal}: {met.strip('*')}" if met else ""
        lines.append(f"  {against}: {us} against {them}; {figure}{judged}")
    for curve in found.curves:
        lines.append(f"  {curve.title}")
        lines += ["    " + line.replace("|", " ") for line in curve_table(curve).splitlines() if "---" not in line]
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])


def _missed(rows: Sequence[tuple[Row, Findings]]) -> str:
    """Return a list of the rows that missed their goals, with the reasons."""
    lines = []
    for row, found in rows:
        missed = [line for line in found.lines if line.met is False and line.goal]
        if missed:
            figures = [f"{number(x.figure.median)} {x.figure_unit}, goal {x.goal.text()}" for x in missed if x.goal]
            reason = f" Why: {row.reason}." if row.reason else ""
            lines.append(f"- {row.title}: {'; '.join(figures)}.{reason}")
    return "\n".join(lines) or "None."


def _preface(plan: Plan, seconds: float) -> str:
    lines = [
        f"Written by `python -m benchmarks{' quick' if plan.quick else ''}` in {seconds / 60:.1f} minutes.",
        f"Figures are medians of {plan.repetitions} or more repetitions, with the range in parentheses.",
        "The systems take turns. A ratio is taken repetition by repetition.",
        "All values were checked before a rate was printed.",
        "`python -m benchmarks --rows NAME …` measures single rows. It writes no file unless `--out` names one.",
    ]
    if plan.quick:
        lines.append("With `quick` there are fewer tasks than the rows say.")
    return "\n".join(lines)


def write(path: Path, plan: Plan, done: Mapping[str, Findings], failed: Mapping[str, str], seconds: float) -> None:
    """Write BENCHMARKS.md, and the plots if matplotlib is installed."""
    pieces = [
        "# Benchmarks",
        _preface(plan, seconds),
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
