"""A short soak (tests/tools/soak.py runs for longer): workers killed and stopped at random instants, nothing lost."""

import pytest

from tests.tools.soak import MANY, Plan, Soak

SEED = 20_260_101
PLANS = {
    "fork, no retries": Plan(40),
    "fork, retries": Plan(40, retries=3),
    "short tasks": Plan(25, brisk=True),
    "a small ring": Plan(25, num_slots=16, batch=4, retries=1),
    "in order": Plan(25, retries=MANY, ordered=True, workers=3),
    "forkserver": Plan(8, method="forkserver", workers=2, retries=3),
    "spawn": Plan(6, method="spawn", workers=2),
}


@pytest.mark.long
@pytest.mark.promise("G1")
@pytest.mark.parametrize("name", PLANS)
def test_nothing_is_lost_when_workers_are_killed_and_stopped(name):
    plan = PLANS[name]._replace(tasks=2000)
    soak = Soak(SEED, plan).go()
    assert soak.violations == [], soak
    assert len(soak.killed) + soak.stops >= plan.kills, soak
