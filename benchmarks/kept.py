"""The figures that were kept, by processor: the last whole run on each writes them into kept.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import TIMES, Findings, Goal, Line, number

FILE = Path(__file__).with_name("kept.json")


class Figure(NamedTuple):
    """What is kept of a line: its figure with the range, and the medians of both sides, in `per`."""

    median: float
    lowest: float
    highest: float
    unit: str
    ours: float
    theirs: float | None
    per: str

    @classmethod
    def of(cls, line: Line) -> Figure:
        values = line.figure.values
        numbers = (line.figure.median, min(values), max(values), line.ours.median)
        median, lowest, highest, ours = map(_rounded, numbers)
        theirs = _rounded(line.theirs.median) if line.theirs else None
        return cls(median, lowest, highest, line.figure_unit, ours, theirs, line.unit)

    def is_worse(self, goal: Goal | None) -> bool:
        """Return True if the other side is better. goal: it says whether more is better; without one, more is."""
        if self.unit == TIMES:
            return self.median < 1 if goal is None or goal.sign == "≥" else self.median > 1
        return self.theirs is not None and self.ours > self.theirs

    def spread(self) -> str:
        """Return the range and the unit, as they stand behind the median."""
        low, high = (number(value, self.unit) for value in (self.lowest, self.highest))
        return f"({low}–{high}) {self.unit}".rstrip()


@dataclasses.dataclass
class Machine:
    """A processor with its figures. facts: the commit, the version of Python and what else figures depend on."""

    facts: dict[str, str]
    rows: dict[str, dict[str, Figure]]

    def figure(self, row: str, name: str) -> Figure | None:
        return self.rows.get(row, {}).get(name)


def with_new(
    machines: Mapping[str, Machine], facts: Mapping[str, str], done: Mapping[str, Findings]
) -> dict[str, Machine]:
    """Return the machines with what a whole run has found. Its processor comes first, and is there once."""
    facts = dict(facts)
    processor = facts.pop("processor")
    rows = {name: {line.name: Figure.of(line) for line in found.lines} for name, found in done.items() if found.lines}
    others = {name: machine for name, machine in machines.items() if name != processor}
    return {processor: Machine(facts, rows), **others}


def read() -> dict[str, Machine]:
    """Return the machines by processor."""
    machines = {}
    for processor, told in json.loads(FILE.read_text()).items():
        rows = {name: {key: Figure(*each) for key, each in lines.items()} for name, lines in told.pop("rows").items()}
        machines[processor] = Machine(told, rows)
    return machines


def write(machines: Mapping[str, Machine]) -> None:
    """Write one line for each figure."""
    told = {processor: {**machine.facts, "rows": machine.rows} for processor, machine in machines.items()}
    FILE.write_text(_text(told, 0) + "\n")


def _text(told: object, depth: int) -> str:
    if not isinstance(told, dict):
        return json.dumps(told, ensure_ascii=False)
    lines = [f"{' ' * (depth + 1)}{_text(key, 0)}: {_text(value, depth + 1)}" for key, value in told.items()]
    return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"


def _rounded(value: float) -> float:
    """Return the value with four digits that count."""
    return float(f"{value:.4g}")
