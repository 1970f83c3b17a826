"""The tool that makes mistakes: each kind, the choice of lines, and what becomes of mistakes in a small project."""

import ast
import contextlib
import io
import subprocess
import sys
import textwrap

import pytest

from tests.tools.mutants import main
from tests.tools.operators import Maker, choose


def mistakes_in(body):
    """Return what becomes of the body of a function by each mistake."""
    source = ("def work(a, b):\n" + textwrap.indent(body, "    ") + "\n").encode()
    texts = [mistake.text(source).decode() for mistake in Maker("shmqueue.py", source).found]
    return [ast.unparse(ast.parse(text).body[0].body) for text in texts]


@pytest.mark.parametrize(
    ("body", "mistaken"),
    [
        pytest.param("a.stop()", ["pass"], id="deletes a statement"),
        pytest.param("a.x = b", ["pass"], id="deletes an assignment"),
        pytest.param("x = a", [], id="leaves no name without a value"),
        pytest.param("if a:\n    raise b", ["pass", "if a:\n    pass", "if not a:\n    raise b"], id="negates"),
        pytest.param("while a:\n    break", ["pass", "while a:\n    pass", "while not a:\n    break"], id="loops"),
        pytest.param("return a and b", ["return b", "return a", "return True", "return False"], id="drops a part"),
        pytest.param("return a < b", ["return a <= b", "return True", "return False"], id="moves a comparison"),
        pytest.param("return a[2]", ["return a[3]", "return None"], id="moves a constant"),
        pytest.param("return True", ["return False"], id="turns a truth value"),
        pytest.param("return min(a, b)", ["return a", "return None"], id="drops a call"),
        pytest.param("a.x(a, b)", ["pass", "a.x(b, a)"], id="swaps two arguments"),
        pytest.param("return a", ["return None"], id="returns nothing"),
        pytest.param("return not a", ["return True", "return False"], id="returns one truth value"),
        pytest.param('"""Say what."""', [], id="no docstring"),
        pytest.param(
            "return [x for x in a if x.é]", ["return [x for x in a if not x.é]", "return None"], id="no ASCII"
        ),
    ],
)
def test_kinds(body, mistaken):
    assert mistakes_in(body) == mistaken


def test_a_constant_of_a_class_matters_where_its_name_is_used():
    source = b"class A:\n    LIMIT = 3\n\n    def work(self):\n        return None if self.LIMIT else 0\n"
    first = Maker("shmqueue.py", source).found[0]
    assert (first.scope, first.line, first.lines) == ("A", 2, (5,))


PRODUCT = """
from __future__ import annotations

import os
import signal


def area(width, height):
    if width < 0:
        raise ValueError("no width")
    return width * height


def in_a_child(path):
    pid = os.fork()
    if pid == 0:
        leave(path)
    return os.waitpid(pid, 0)[1]


def leave(path):
    path.touch()
    signal.raise_signal(signal.SIGKILL)


def nobody():
    return 1


def more():
    return False
"""
TESTS = """
import signal
import time

import shmqueue


def test_area():
    assert shmqueue.area(2, 3) == 6


def test_child(tmp_path):
    end = shmqueue.in_a_child(tmp_path / "x")
    assert (tmp_path / "x").exists()
    assert end == signal.SIGKILL


def test_more():
    while shmqueue.more():
        time.sleep(0.01)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The folder of a product and its tests, committed. With one plugin alone, pytest starts in half the time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_timeout")
    folder = tmp_path
    (folder / "tests").mkdir()
    (folder / "variants").mkdir()
    (folder / "shmqueue.py").write_text(PRODUCT.lstrip())
    (folder / "tests" / "test_sample.py").write_text(TESTS)
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m all"):
        subprocess.run(["/usr/bin/env", "git", *command.split()], cwd=folder, check=True)
    return folder


def test_what_becomes_of_mistakes(project):
    if sys.version_info < (3, 12):
        pytest.skip("sys.monitoring is there from Python 3.12 on")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["-n", "1", "--late", "3", "area", "leave", "nobody", "more"], root=project) == 0
    said = output.getvalue().splitlines()
    for mistake, verdict in {
        "area: returns None in `return width * height`": "caught",
        "area: negated in `if width < 0:`": "caught",
        "area: compared by <= in `if width < 0:`": "survived",
        'area: deleted in `raise ValueError("no width")`': "not reached",
        "leave: deleted in `path.touch()`": "caught",  # in a child that is killed
        "nobody: 2 for 1 in `return 1`": "not reached",
        "more: True for False in `return False`": "timed out",
    }.items():
        (line,) = [line for line in said if mistake in line and line.endswith(")")]
        assert line.startswith(verdict)
    caught = sum(line.startswith("caught ") for line in said)
    assert said[-2].startswith(f"score: {caught} of ")
    assert any(line.startswith("survived    shmqueue.py:8 area: ") and line.endswith("`") for line in said)


def test_lines_that_differ_from_a_commit(project):
    text = (project / "shmqueue.py").read_text()
    (project / "shmqueue.py").write_text(
        text.replace("return width * height", "size = width * height\n    return size")
    )
    found = choose(project, [], "HEAD")
    assert [(mistake.scope, mistake.line, mistake.new) for mistake in found] == [("area", 11, "None")]


def test_one_function_by_name(project):
    assert {mistake.scope for mistake in choose(project, ["in_a_child"], "HEAD")} == {"in_a_child"}
    assert choose(project, ["in_a"], "HEAD") == []
