"""Mistakes by name of a function and of what stands there: each place and change, and errors where nothing fits."""

import pytest

from tests.tools.mistakes import branch, call, drop, first, last, less, mistaken, more, move, never, part, put, store
from tests.tools.mistakes import without as leave_out

notes = []


def note(text):
    notes.append(text)


def work(a, b=5):
    total = a + 1
    note("begins")
    if a > 3 and b > 4:
        note("large")
    total = total + 2
    return total, [*notes]


def run(*changes, a=4):
    notes.clear()
    return mistaken(work, *changes).make()(a)


def test_as_it_is():
    notes.clear()
    assert work(4) == (7, ["begins", "large"])


@pytest.mark.parametrize(
    ("change", "result"),
    [
        (drop(first(call("note"))), (7, ["large"])),
        (drop(last(call("note"))), (7, ["begins"])),
        (drop(branch("a", "b")), (7, ["begins"])),
        (drop(last(store("total"))), (5, ["begins", "large"])),
        (never(branch("b")), (7, ["begins"])),
        (move(last(call("note")), before=first(call("note"))), (7, ["large", "begins"])),
        (move(first(call("note")), after=branch("a")), (7, ["large", "begins"])),
        (put("total = 0", before=store("total", "total")), (2, ["begins", "large"])),
        (put("note('more')", after=store("total", "a")), (7, ["more", "begins", "large"])),
        (more(part("a")), (7, ["begins"])),
        (less(store("total", "a")), (6, ["begins", "large"])),
    ],
)
def test_changes(change, result):
    assert run(change) == result


def test_without_a_part():
    assert run(leave_out(part("a", beside="b")), a=1) == (4, ["begins", "large"])


@pytest.mark.parametrize(
    "change",
    [
        drop(call("nothing")),
        drop(call("note")),
        drop(last(branch("a"))),
        drop(store("total", 2)),
        never(branch("a", but=("b",))),
        more(call("note")),
        leave_out(part("c")),
        put("pass", before=call("nothing")),
    ],
)
def test_what_is_not_there_once_is_an_error(change):
    with pytest.raises(ValueError, match="work has"):
        mistaken(work, change).make()
