"""What the tests of strategies are run with."""

import pytest

import shmqueue
from tests.helpers import HANG


@pytest.fixture(autouse=True)
def _no_run_is_given_up(monkeypatch):
    """On a busy machine, many workers may be killed one after the other before any of them has had a task."""
    monkeypatch.setattr(shmqueue, "FAILED_SECONDS", HANG / 2)
