"""Make screen.svg, the picture in the README, from a real run in a terminal emulator (needs pyte).

python -m benchmarks.tools.screen
"""

from __future__ import annotations

import fcntl
import html
import itertools
import os
import pathlib
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterable
from typing import Any

import pyte

COLUMNS = 106
LINES = 14
SECONDS = 6.0  # from the start of the run to the picture
ROOT = pathlib.Path(__file__).resolve().parents[2]


def tasks() -> str:
    """Return tasks of several kinds. Some of them fail."""
    lines = []
    for i in range(4000):
        lines += [f"echo {i}", "sha256 shmqueue.py", "sleep 0.02"]
        if i % 40 == 7:
            lines.append(f"sha256 photos/{i}.jpg")
    return "\n".join(lines) + "\n"


def film(path: str) -> pyte.Screen:
    """Return the screen of a run SECONDS after its start."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [sys.executable, "shmqueue.py", path, "-w", "4"]
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": ""}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and run.poll() is None:
            stream.feed(os.read(ours, 65536))
        run.terminate()
    os.close(ours)
    return screen


def rows_of(screen: pyte.Screen) -> list[list[Any]]:
    """Return the characters of the screen's rows, without blanks at the ends, and without empty rows at the end."""
    rows = [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(LINES)]
    for row in rows:
        while row and row[-1].data == " ":
            row.pop()
    while not rows[-1]:
        rows.pop()
    return rows


def spans(row: Iterable[Any]) -> str:
    """Return characters as SVG text: those of one colour in one piece."""
    pieces = []
    for colour, characters in itertools.groupby(row, key=lambda character: character.fg):
        text = html.escape("".join(character.data for character in characters))
        if colour != "default":
            text = f'<tspan fill="#{colour}">{text}</tspan>'
        pieces.append(text)
    return "".join(pieces)


def draw(rows: list[list[Any]]) -> str:
    """Return rows of characters as an SVG picture."""
    wide = 8.4  # of a character
    high = 19  # of a line
    width = round(COLUMNS * wide + 24)
    height = len(rows) * high + 20
    texts = "\n".join(
        f'<text x="12" y="{20 + high * at}" xml:space="preserve" textLength="{len(row) * wide:.1f}">{spans(row)}</text>'
        for at, row in enumerate(rows)
        if row
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        '<rect width="100%" height="100%" rx="6" fill="#1c1f26"/>\n'
        '<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14" fill="#d8dee9">\n'
        f"{texts}\n</g>\n</svg>\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "photos.txt")
        path.write_text(tasks())
        rows = rows_of(film(str(path)))
    (ROOT / "benchmarks" / "screen.svg").write_text(draw(rows), encoding="utf-8")
    for row in rows:
        print("".join(character.data for character in row))


if __name__ == "__main__":
    main()
