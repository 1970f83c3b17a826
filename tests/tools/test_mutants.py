"""The table of deliberate mistakes fits the project. `tox -e mutants` makes the mistakes."""

import re

import pytest

from tests.helpers import ROOT
from tests.tools.mutants import MUTANTS, path_of


def test_names_are_unique():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_can_be_made_and_its_tests_exist(mutant):
    assert (ROOT / mutant.file).read_text("utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    for test in mutant.tests:
        file, _, name = path_of(test).partition("::")
        text = (ROOT / file).read_text("utf-8")
        assert re.search(rf"^def {re.escape(name.partition('[')[0])}\b", text, re.MULTILINE), test
