"""Run a command in a copy of the project whose shmqueue.py ends at its banner: the library without the command line.

    python -m tests.tools.cut python -m pytest tests/library

The copy is removed afterwards. The exit code is the command's.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent
BANNER = "# The command line begins here. If your program only calls the library, delete everything below.\n"


def library(text: str) -> str:
    """Return what is left of shmqueue.py if one deletes everything from the banner on."""
    above, banner, _ = text.partition(BANNER)
    assert banner, "the banner is there, in one line"
    return above[: above.rindex("\n# ===")].rstrip() + "\n"


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="shmqueue-library-") as folder:
        copy = pathlib.Path(folder)
        for name in ("docs", "tests", "variants"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        (copy / "shmqueue.py").write_text(library((ROOT / "shmqueue.py").read_text("utf-8")), "utf-8")
        return subprocess.run(command, cwd=copy, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
