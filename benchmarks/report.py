"""What a run found: text for the terminal, a comparison with what was kept, and benchmarks/internals.md."""

from __future__ import annotations

import multiprocessing
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import shmqueue
from benchmarks.harness import CORES, ROOT, ROWS, Curve, Findings, Goal, Line, number
from benchmarks.kept import Machine

INTERNALS = ROOT / "benchmarks" / "internals.md"
PEERS = ("faster-fifo", "joblib", "loky", "mpire", "pebble")


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    versions = []
    for name in PEERS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} missing")
    return {
        "processor": f"{_processor()}, {CORES} cores",
        "commit": f"{_commit()} ({shmqueue.__version__})",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "start method": f"{multiprocessing.get_start_method()} (multiprocessing), fork (shmqueue)",
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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def cells(row: str, line: Line) -> list[str]:
    """Return a comparison as the cells of a table: against, ours, theirs, figure, goal, verdict."""
    goal = ROWS[row].goals.get(line.name)
    verdict = ""
    if goal:
        verdict = "met" if goal.met(line.figure.median) else "**missed**"
    return [
        f"{line.name}, {line.setting}" if line.setting else line.name,
        line.ours.text(line.unit),
        line.theirs.text(line.unit) if line.theirs else "–",
        line.figure.text(line.figure_unit),
        goal.text().strip() if goal else "–",
        verdict,
    ]


def text(row: str, found: Findings) -> str:
    """Return what a row found as text for the terminal."""
    lines = [f"{row}: {ROWS[row].title}"]
    for line in found.lines:
        against, us, them, figure, goal, verdict = cells(row, line)
        judged = f", goal {goal}: {verdict.strip('*')}" if verdict else ""
        lines.append(f"  {against}: {us} against {them}; {figure}{judged}")
    for curve in found.curves:
        lines.append(f"  {curve.title}")
        lines += ["    " + line.replace("|", " ") for line in curve_table(curve).splitlines() if "---" not in line]
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])


def curve_table(curve: Curve) -> str:
    names = list(curve.series)
    rows = []
    for at, x in enumerate(curve.x):
        label = f"{x:,}" if isinstance(x, int) else str(x)
        found = [curve.series[name][at] for name in names]
        rows.append([label, *(sample.text(curve.unit) if sample else "–" for sample in found)])
    return table([curve.label, *names], rows)


NOISE = 0.1  # a figure that is worse by less than this part of it may be as good as before


def compared(done: Mapping[str, Findings], machines: Mapping[str, Machine], processor: str) -> str:
    """Return a table of the figures of a run beside those that were kept of this processor."""
    if processor not in machines:
        return f"No figures were kept of {processor}. A whole run keeps them. There are some of: {'; '.join(machines)}."
    before = machines[processor]
    rows = []
    for row, found in done.items():
        for line in found.lines:
            now = number(line.figure.median)
            then = before.figure(row, line.name)
            if then is None:
                rows.append([row, line.name, "–", now, "new"])
            else:
                change = _change(line.figure.median, then.median, ROWS[row].goals.get(line.name))
                rows.append([row, line.name, number(then.median), now, change])
    kept = f"{processor}, kept at commit {before.facts['commit']}, {before.facts['Python']}"
    return f"{kept}\n{table(['row', 'line', 'kept', 'now', 'change'], rows)}"


def _change(now: float, then: float, goal: Goal | None) -> str:
    """Return how much a figure has changed, and whether it is better or worse now. Without a goal, nobody can say."""
    change = now / then - 1 if then else 0.0
    word = ""
    if goal is not None and abs(change) > NOISE:
        word = "better" if (change > 0) == (goal.sign == "≥") else "**worse**"
    return f"{change:+.0%} {word}".strip()


def internals(
    facts: Mapping[str, str], done: Mapping[str, Findings], failed: Mapping[str, str], notes: Sequence[str] = ()
) -> str:
    """Return internals.md: all that a whole run found."""
    rows = []
    notes = [f"- {note}" for note in notes]
    pieces = []
    for name, found in done.items():
        for at, line in enumerate(found.lines):
            rows.append([ROWS[name].title if at == 0 else "", *cells(name, line)])
        for curve in found.curves:
            pieces += [f"## {curve.title}", curve_table(curve)]
        notes += [f"- {ROWS[name].title}: {note}" for note in found.notes]
    rows += [[ROWS[name].title, "", "", "", "", "", f"**wrong, no figure**: {why}"] for name, why in failed.items()]
    return joined(
        "# Benchmarks: internals",
        "Written by `python -m benchmarks`, with [BENCHMARKS.md](../BENCHMARKS.md), which says what the figures are.",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## All rows",
        table(["what", "against", "shmqueue", "the other", "figure", "goal", ""], rows),
        *pieces,
        "## Notes",
        "\n".join(dict.fromkeys(notes)) or "None.",
    )


def joined(*pieces: str) -> str:
    return "\n\n".join(pieces) + "\n"


def draw(done: Mapping[str, Findings]) -> list[str]:
    """Draw the curves that have a plot. Return why there is none, if matplotlib is not installed."""
    try:
        from benchmarks.plots import draw as draw_one

        for found in done.values():
            for curve in found.curves:
                if curve.plot:
                    draw_one(curve, ROOT / "benchmarks" / "plots")
    except ImportError:
        return ["the plots are those of an earlier run: matplotlib is not installed"]
    return []
