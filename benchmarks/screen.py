"""Make screen.svg, the picture in the README, from a real run in a terminal emulator (needs pyte).

python -m benchmarks.screen
"""

from __future__ import annotations

import fcntl
import html
import os
import pathlib
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time

import pyte

COLUMNS = 106
LINES = 14
SECONDS = 6.0  # from the start of the run to the picture
HERE = pathlib.Path(__file__).parent


def tasks() -> str:
    """Return tasks of several kinds. Some of them fail."""
    lines = []
    for i in range(4000):
        lines += [f"echo {i}", "sha256 shmqueue.py", "sleep 0.02"]
        if i % 400 == 7:
            lines.append(f"sha256 photos/{i}.jpg")
    return "\n".join(lines) + "\n"


def film(path: str) -> pyte.Screen:
    """Return the screen of a run SECONDS after its start."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    command = [sys.executable, "shmqueue.py", path, "-w", "4"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=HERE.parent, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and run.poll() is None:
            stream.feed(os.read(ours, 65536))
        run.terminate()
    os.close(ours)
    return screen


def draw(lines: list[str]) -> str:
    """Return lines of text as an SVG picture."""
    wide = 8.4  # of a character
    high = 19  # of a line
    width = round(COLUMNS * wide + 24)
    height = len(lines) * high + 20
    rows = "\n".join(
        f'<text x="12" y="{20 + high * at}" xml:space="preserve" textLength="{len(line) * wide:.1f}">'
        f"{html.escape(line)}</text>"
        for at, line in enumerate(lines)
        if line.strip()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        '<rect width="100%" height="100%" rx="6" fill="#1c1f26"/>\n'
        '<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14" fill="#d8dee9">\n'
        f"{rows}\n</g>\n</svg>\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "photos.txt")
        path.write_text(tasks())
        lines = [line.rstrip() for line in film(str(path)).display]
    while not lines[-1]:
        lines.pop()
    (HERE / "screen.svg").write_text(draw(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
