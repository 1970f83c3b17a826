"""What `import shmqueue` loads, and what is loaded later."""

import ast
import os
import subprocess
import sys

import shmqueue
from tests.helpers import ROOT

LATE = {
    "argparse", "csv", "dataclasses", "difflib", "hashlib", "inspect", "json", "multiprocessing", "psutil", "secrets",
    "shutil", "sqlite3", "subprocess", "tempfile", "termios", "traceback", "tty", "urllib",
}  # fmt: skip
# argparse is loaded before the user's functions are, the others if a name is unknown, or for a database.
UNGUARDED = {"argparse", "difflib", "sqlite3", "urllib.parse"}


def test_an_import_loads_nothing_that_only_some_need():
    code = "import sys; before = set(sys.modules); import shmqueue; print(*(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(  # -S: what a site loads is not ours
        [sys.executable, "-S", "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert {name.partition(".")[0] for name in output.split()} & LATE == set()


def test_what_is_imported_late_is_imported_before_a_users_folder_is_searched():
    """A file of theirs may be called json.py."""
    with open(shmqueue.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = {
        alias.name
        for node in functions
        for part in ast.walk(node)
        if isinstance(part, ast.Import)
        for alias in part.names
    }
    (names,) = [node for node in functions if node.name == "import_all"]
    assert late - UNGUARDED <= set(ast.unparse(names).replace("'", " ").split())
