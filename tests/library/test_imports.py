"""What `import shmqueue` loads, what is loaded later, and what it needs."""

import ast
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT, SCRIPT

LATE = {
    "argparse", "csv", "dataclasses", "difflib", "hashlib", "inspect", "json", "multiprocessing", "psutil", "secrets",
    "shutil", "sqlite3", "subprocess", "tempfile", "termios", "traceback", "tty", "urllib",
}  # fmt: skip
# argparse is loaded before the user's functions are, sqlite3 for a database.
UNGUARDED = {"argparse", "sqlite3"}


def modules_after(code):
    """Return the names of what is loaded after a line of code, less what Python itself loads."""
    code = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(  # -S: what a site loads is not ours
        [sys.executable, "-S", "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()


def imports(tree):
    """Return the names of the modules that are imported in this part of the file."""
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_one_file_needs_nothing_but_the_standard_library():
    names = imports(ast.parse(SCRIPT.read_text("utf-8")))
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names}


def test_an_import_loads_nothing_that_only_some_need():
    assert {name.partition(".")[0] for name in modules_after("import shmqueue")} & LATE == set()


@pytest.mark.command_line
def test_what_is_imported_late_is_imported_before_a_users_folder_is_searched():
    """A file of theirs may be called json.py."""
    tree = ast.parse(SCRIPT.read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = set().union(*map(imports, functions))
    assert late - UNGUARDED <= set(modules_after("import shmqueue; shmqueue.import_all()"))
