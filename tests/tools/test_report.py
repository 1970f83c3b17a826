"""The report of the benchmarks, made of made-up findings; and that README and BENCHMARKS.md say what was kept."""

import re

import pytest

from benchmarks import document, kept, ours, peers, report
from benchmarks.harness import FULL, ROWS, TIMES, Curve, Findings, Plan, Sample, case, ratio, samples, take_turns
from benchmarks.jobs import WrongError

pytestmark = pytest.mark.timeout(120)
OLD, NEW = "Old processor, 2 cores", "New processor, 2 cores"
FACTS = {"processor": NEW, "commit": "abc1234 (1.0)", "Python": "CPython 3", "system": "Linux", "took": "9 turns"}


def findings(ours, theirs):
    """Return what the row `noop` found, if the two sides had these rates."""
    return Findings([ratio("Pool.map", Sample(ours), Sample(theirs), unit="tasks/s", setting="chunks of 500")])


FAST = findings([3000.0, 2600.0, 2500.0], [2000.0, 2000.0, 2000.0])
SLOW = findings([1000.0, 1100.0, 900.0], [2000.0, 2000.0, 2000.0])


def machines():
    """Return two machines: the new one was measured last, and has missed the goal."""
    before = kept.with_new({}, {**FACTS, "processor": OLD, "commit": "0000000 (0.9)"}, {"noop": FAST})
    return kept.with_new(before, FACTS, {"noop": SLOW})


# What is kept.


def test_figures_are_read_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "FILE", tmp_path / "kept.json")
    kept.write(machines())
    assert kept.read() == machines()
    assert f'"Pool.map": [0.5, 0.45, 0.55, "{TIMES}", 1000.0, 2000.0, "tasks/s"]' in kept.FILE.read_text()


def test_a_processor_has_the_figures_of_its_last_run_alone_and_comes_first():
    again = kept.with_new(machines(), {**FACTS, "processor": OLD}, {"noop": SLOW})
    assert list(again) == [OLD, NEW]
    assert again[OLD].rows == again[NEW].rows == machines()[NEW].rows


def test_a_run_is_compared_with_its_own_processor():
    said = report.compared({"noop": FAST}, machines(), NEW)
    assert "| noop | Pool.map | 0.50 | 1.30 | +160% better |" in said
    assert "abc1234" in said
    assert "+0% |" in report.compared({"noop": FAST}, machines(), OLD)
    assert "**worse**" in report.compared({"noop": SLOW}, machines(), OLD)


def test_a_run_on_a_new_processor_says_that_nothing_was_kept():
    said = report.compared({"noop": FAST}, machines(), "Other processor, 2 cores")
    assert said.startswith("No figures were kept of Other processor, 2 cores.")
    assert OLD in said


# What is written.


def test_each_processor_has_a_column_and_a_missed_goal_is_bold():
    said = document.benchmarks(machines())
    assert f"| goal | {NEW}, commit abc1234 (1.0) | {OLD}, commit 0000000 (0.9) |" in said
    row = next(line for line in said.splitlines() if line.startswith("| 1,000,000 no-ops"))
    figures = "| ≥ 1.2 x | **0.50** (0.45–0.55) x; 1,000 against 2,000 tasks/s | 1.30 (1.25–1.50) x; "
    assert figures.replace(" x", f" {TIMES}") in row
    assert f"Pool.map 0.50 {TIMES} (≥ 1.2 {TIMES}). Why: " in said


def test_what_was_not_measured_has_no_figure():
    said = document.benchmarks(machines())
    assert f"| `xargs -P` | ≤ 1.15 {TIMES} | – | – |" in said


def test_all_that_a_run_found_stands_in_internals():
    curve = Curve("It grows", "tasks", [10, 1000], {"shmqueue": [Sample([1.0]), None]})
    done = {"noop": SLOW, "by_tasks": Findings(curves=[curve], notes=["nothing else ran"])}
    said = report.internals(FACTS, done, {"warm": "a value is missing"})
    assert "| Pool.map, chunks of 500 | 1,000 (900–1,100) tasks/s | 2,000 (2,000–2,000) tasks/s | 0.50" in said
    assert "**missed**" in said
    assert "| 1,000 | – |" in said
    assert "**wrong, no figure**: a value is missing" in said
    assert "nothing else ran" in said
    assert "chunks of 500: 1,000 (900–1,100) tasks/s against" in report.text("noop", SLOW)


def test_readme_leaves_out_what_was_not_kept_and_has_bold_what_is_worse():
    figures = {"shell": {"xargs -P": kept.Figure(1.2, 1.1, 1.3, TIMES, 1.2, 1.0, "s")}}
    said = document.speed(NEW, kept.Machine(FACTS, figures))
    assert "take **1.20** times the time of `xargs -P2`" in said
    assert "memory" not in said
    assert NEW in said
    assert "{" not in said


# The files.


def test_benchmarks_says_what_was_kept_and_is_short():
    text = document.BENCHMARKS.read_text()
    assert text == document.benchmarks(kept.read()), "python -m benchmarks --write writes it"
    assert len(text.splitlines()) <= 130
    for path in re.findall(r"\]\((benchmarks/[^)]*)\)", text):
        assert (document.BENCHMARKS.parent / path).exists()


def test_readme_says_what_was_kept_of_the_processor_that_it_names():
    first, last = document.MARKS
    said = document.README.read_text().partition(first)[2].partition(last)[0].strip()
    processor, machine = next((name, each) for name, each in kept.read().items() if name in said)
    assert said == document.speed(processor, machine).strip(), "python -m benchmarks --write writes it"


def test_every_row_of_the_twelve_exists_and_its_goals_name_lines_that_are_kept():
    assert len(document.TWELVE) == 12
    named = {key for lines in document.TWELVE.values() for keys in lines.values() for key in keys}
    assert {row for row, _ in named} <= set(ROWS)
    for machine in kept.read().values():
        for row, lines in machine.rows.items():
            assert set(lines) & set(ROWS[row].goals) or not ROWS[row].goals, row


# Turns.


def counting(start):
    """Yield one number after the other."""
    while True:
        yield start
        start += 1


def ours_constant(value):
    return value


def ours_wrong():
    raise WrongError("a value is missing")


def test_cases_take_turns_in_one_process_and_the_first_step_does_not_count():
    cases = [case("steps", counting, start=5), case("call", ours_constant, value=7)]
    assert take_turns(cases, 3) == {"steps": [6, 7, 8], "call": [7, 7, 7]}
    assert samples(take_turns(cases, 1))["call"].median == 7


def test_a_wrong_value_is_no_figure():
    with pytest.raises(WrongError, match="a value is missing"):
        take_turns([case("wrong", ours_wrong)], 2)


def test_the_plan_has_few_turns_for_what_takes_long():
    assert (FULL.turns, FULL.few, FULL.repetitions) == (7, 5, 3)
    assert Plan(quick=False, turns=1).repetitions == 1


def test_what_takes_turns_checks_its_values_and_has_figures():
    few = {"tasks": 500, "size": 93}
    cases = [
        case("map", ours.ours_map, job="echo", **few),
        case("run", ours.ours_run, job="echo", **few),
        case("steady", ours.ours_steady, job="noop", **few),
        case("records", ours.ours_records, method="run", **few),
        case("task", ours.ours_there_and_back, times=3, pause=0.0),
        case("calls", ours.ours_calls, calls=20, chunk=5),
        case("faults", ours.ours_faults, **few),
        case("open", ours.ours_open, tasks=500),
        case("Pool", peers.pool_steady, job="noop", chunk=100, **few),
        case("apply", peers.pool_apply, times=3, pause=0.0),
        case("Pool there", peers.pool_wake, times=3),
        case("ProcessPoolExecutor", peers.executor_calls, calls=20, chunk=5),
    ]
    found = take_turns(cases, 2)
    assert list(found) == [each.name for each in cases]
    for name in (name for name in found if name != "faults"):
        assert len(found[name]) == 2
        assert min(found[name]) > 0, name
