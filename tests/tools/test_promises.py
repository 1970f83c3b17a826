"""Each guarantee of README and each limit of docs/limits.md has a number, and a test: @pytest.mark.promise("G3").

conftest.py sees to it that each number that a test carries is in one of the two.
"""

import ast
import re

from tests.helpers import ROOT, document, numbers_of_promises


def marks():
    """Yield the numbers that tests carry, also those of tests that are not run now."""
    for path in ROOT.glob("tests/*/test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
                yield from map(ast.literal_eval, node.args)


def test_each_number_is_given_once_and_has_a_test():
    numbers = numbers_of_promises()
    assert len(set(numbers)) == len(numbers) > 0
    assert sorted(set(numbers) - set(marks())) == []


def test_readme_names_each_limit():
    named = set()
    for first, last in re.findall(r"\bL(\d+)(?:–L(\d+))?", document("README.md")):
        named.update(range(int(first), int(last or first) + 1))
    assert {f"L{number}" for number in named} == {number for number in numbers_of_promises() if number[0] == "L"}
