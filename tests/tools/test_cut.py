"""The library works in a file that ends at the banner. Its other tests run there, too: see tox.ini."""

import subprocess
import sys

import shmqueue
from tests.helpers import SCRIPT
from tests.tools import cut

CODE = """
from shmqueue import *
import shmqueue

assert shmqueue.__all__ == ["Executor", "Supervisor", "TaskError", "TaskResult", "parallel_map"]
print(parallel_map(len, [b"a", b"bc"], workers=1))
for call in (lambda: shmqueue.main, lambda: Supervisor([len], screen=True)):
    try:
        call()
    except (AttributeError, ValueError) as error:
        print(error)
"""


def test_the_library_needs_nothing_below_the_banner(tmp_path):
    text = cut.library(SCRIPT.read_text("utf-8"))
    (tmp_path / "shmqueue.py").write_text(text, encoding="utf-8")
    run = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    values, no_main, no_screen = run.stdout.splitlines()
    assert (values, run.stderr) == ("[1, 2]", "")
    assert "main" in no_main
    assert "screen=True" in no_screen
    assert "cut off" in no_screen


def test_the_command_line_is_in_all_names_of_the_whole_file():
    assert sorted(shmqueue.__all__) == ["Executor", "Supervisor", "TaskError", "TaskResult", "main", "parallel_map"]
