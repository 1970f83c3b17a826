"""The figures of an earlier quick run, which a later one is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import Findings

FILE = Path(__file__).with_name("kept.json")


def read() -> dict[str, dict[str, float]]:
    """Return the kept medians by row and by what each is compared with."""
    if not FILE.exists():
        return {}
    found: dict[str, dict[str, float]] = json.loads(FILE.read_text())
    return found


def write(done: Mapping[str, Findings]) -> None:
    """Keep the medians of these rows. Rows that were not measured stay as they are."""
    figures = read()
    for name, found in done.items():
        figures[name] = {key(line.against): round(line.figure.median, 4) for line in found.lines}
    FILE.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def key(against: str) -> str:
    """What a comparison is called whatever chunk size is the best this time."""
    return against.partition(", chunks of")[0]
