"""The table of strategies: what it measures, what it says of a suite that failed, and that README has it."""

import re

import pytest

from benchmarks.harness import Sample
from benchmarks.tools import compare
from benchmarks.tools.compare import Figures, Suite
from benchmarks.tools.locking import MeteredLock, ours_locking, ours_pause, ours_rate
from variants import strategies

ABLE = [name for name in strategies if not getattr(strategies[name], "refusal", str)()]


def figures(few, many):
    """Return figures with these rates, each of several runs."""
    locking = {"tasks": Sample([400.0]), "contended": Sample([0.25]), "median": Sample([3.0]), "p99": Sample([40.0])}
    return Figures(few=Sample(few), many=Sample(many), locking=locking, pause=Sample([2.0]))


BASE = figures([2.0, 2.1, 2.2], [1.0, 1.1, 1.2])
LEVEL = figures([2.1, 2.2, 2.3], [1.1, 1.2, 1.3])
FASTER = figures([2.0, 2.1, 2.2], [2.1, 2.2, 2.4])


# What is measured.


@pytest.mark.parametrize("name", ABLE)
def test_each_strategy_is_measured(name):
    assert ours_rate(name, workers=2, tasks=500) > 0
    found = ours_locking(name, workers=4, tasks=2000)
    if name == "slot_state":
        assert found == {}
    else:
        assert 0 <= found["contended"] <= 1
        assert 0 < found["median"] <= found["p99"]


@pytest.mark.parametrize("name", ABLE)
def test_a_worker_is_killed_inside_and_another_goes_on(name):
    assert ours_pause(name) > 0


def test_a_hold_is_timed_and_a_wait_is_counted():
    class Taken:
        """A lock that the first try does not get."""

        tries = 0

        def acquire(self, timeout=None):
            self.tries += 1
            return self.tries > 1

        def release(self):
            pass

    lock = MeteredLock(Taken())
    for _ in range(2):
        assert lock.acquire()
        lock.release()
    assert (lock.contended, len(lock.held)) == (1, 2)


# What is said of it.


@pytest.mark.parametrize("others", [{}, {"level": LEVEL}])
def test_the_built_in_one_is_advised_unless_another_is_faster_in_each_run(others):
    said = compare.advice({"lockf": BASE, **others})
    assert said == "Take `lockf` on this machine: no other one was faster in each of its 3 runs."


def test_one_that_is_faster_in_each_run_is_named():
    said = compare.advice({"lockf": BASE, "level": LEVEL, "fast": FASTER})
    assert "`fast` is 100 % faster with 16 workers (after a kill the others stand for 2.00 ms)" in said
    assert "level" not in said
    assert "with 2 workers" not in said


def test_bars_are_as_long_as_the_rates_say():
    lines = compare.chart({"lockf": BASE, "fast": FASTER}).splitlines()
    assert [(line.split()[0], line.count("█")) for line in lines if "█" in line] == [
        ("lockf", 38), ("fast", 38), ("lockf", 20), ("fast", 40),
    ]  # fmt: skip


def test_one_whose_suite_failed_is_not_advised():
    suites = {"lockf": Suite("2 of 2"), "fast": Suite("1 of 2", ["test_it"])}
    said = compare.report({"lockf": BASE, "fast": FASTER}, suites, {}, tasks=1000, load=0.0)
    assert "failed: test_it" in said
    assert "**Take `lockf` on this machine: no other" in said


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """A file with the marks, which main() writes into."""
    path = tmp_path / "README.md"
    path.write_text(compare.README.read_text())
    monkeypatch.setattr(compare, "README", path)
    monkeypatch.setattr(compare, "measured", lambda names, tasks: dict.fromkeys(names, BASE))
    return path


def outside(text):
    """Return what stands outside of the marks."""
    return re.sub(r"<!-- begin of (\w+).*?<!-- end of \1", "", text, flags=re.DOTALL)


def test_the_tables_are_written_between_the_marks(readme, monkeypatch):
    monkeypatch.setattr(compare, "contract", lambda name: Suite("30 of 30"))
    before = readme.read_text()
    assert compare.main([]) == 0
    after = readme.read_text()
    assert outside(after) == outside(before) != after
    assert f"| `{ABLE[-1]}` | 30 of 30 | 2.10 (2.00–2.20) | 1.10 (1.00–1.20) | 400 | 25.0 % |" in after
    assert compare.main([]) == 0
    assert readme.read_text().count("2.10 (2.00–2.20)") == len(ABLE), "the next run replaces what it finds"


def test_the_hooks_are_written_alone(readme):
    before = readme.read_text()
    readme.write_text(before.replace("`claim`", "`old`"))
    assert compare.main(["--hooks"]) == 0
    assert part("hooks") == compare.matrix()
    assert readme.read_text() == before.replace("`claim` and `push`", "`old` and `push`")


def test_single_strategies_are_printed_only(readme, capsys):
    before = readme.read_text()
    assert compare.main(["single_lock", "--no-suite"]) == 0
    assert "| `lockf` | – |" in capsys.readouterr().out
    assert readme.read_text() == before


def test_failed_tests_are_named_and_the_exit_code_says_so(readme, tmp_path, monkeypatch, capsys):
    suite = tmp_path / "test_suite.py"
    suite.write_text(
        "import pytest\n\n\n"
        '@pytest.mark.parametrize("name", ["lockf", "other"])\n'
        "def test_one(name):\n    assert False\n\n\n"
        "def test_lockf_is_good():\n    pass\n"
    )
    monkeypatch.setattr(compare, "SUITE", suite)
    monkeypatch.setattr(compare, "PROCESSES", "1")
    assert compare.main(["lockf"]) == 1
    assert "| `lockf` | 1 of 2, **failed: test_one[lockf]** |" in capsys.readouterr().out


def test_a_suite_that_does_not_run_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "SUITE", tmp_path / "test_none.py")
    monkeypatch.setattr(compare, "PROCESSES", "1")
    (said,) = compare.contract("lockf").failed
    assert said.startswith("the suite did not run")


# README.


def part(name):
    """Return what stands between the marks in variants/README.md."""
    text = compare.README.read_text()
    return re.search(rf"<!-- begin of {name}\b.*?-->\n(.*?)\n?<!-- end of {name}\b", text, re.DOTALL)[1]


def test_the_matrix_of_hooks_is_that_of_the_code():
    assert part("hooks") == compare.matrix(), "python -m benchmarks.tools.compare --hooks writes it"


def test_readme_has_figures_of_every_strategy():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", part("figures"), re.MULTILINE)
    assert [name for name, _ in rows] == list(strategies)
    assert "**failed" not in part("figures")
