"""Frames of the screen, line by line. `render` is pure: no terminal is needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmqueue import paint, render


def row(number, pid, state, completed, failed, rate, **known):
    counts = {"completed": completed, "failed": failed, "rate": rate}
    return {"number": number, "pid": pid, "state": state, **counts, **known}


IN_HAND = {"function": "sha256", "in_hand": 621_034, "held": 0.021}
ROWS = (
    row(0, 4122, "run", 155_210, 3, 12_801.2, cpu=98.4, rss=18.0, **IN_HAND),
    row(1, 4123, "sleep", 155_007, 9, 12_790.0, cpu=1.0, rss=18.0),
    row(2, 4124, "dead", 7, 0, 0.0),
)
COUNTS = {"ok": 621_009, "failed": 25, "timeout": 0, "crashed": 0, "cancelled": 0}
FAILURE = "#5,123 sha256 failed: FileNotFoundError: no such file: a.bin"


def snapshot(**changes):
    fields = {
        "title": "tasks.txt",
        "name": "shmq-4121-9f3a",
        "strategy": "lockf",
        "seconds": 12.3,
        **COUNTS,
        "retried": 3,
        "total": 1_000_000,
        "rate": 51_204.2,
        "rates": [1.0, 2.0, 40_000.0, 51_204.2],
        "ring": 11_204,
        "num_slots": 16_384,
        "workers": ROWS,
        "failures": [FAILURE],
        "state": "",
        "keys": "",
    }
    return {**fields, **changes}


def many(count):
    return [row(i, 5000 + i, "run" if i % 2 else "sleep", 10, 0, 5.0, function="f") for i in range(count)]


def test_a_frame_of_80_by_24():
    assert render(snapshot(), 80, 24) == [
        " shmqueue  tasks.txt           3 workers · lockf · shmq-4121-9f3a      00:00:12",
        " ████████████████████▌░░░░░░░░░░░░   62.1%   621,034 / 1,000,000   eta 00:00:07",
        " 51,204 tasks/s  ▁▁▇█                           ring ██████▉░░░ 11,204 / 16,384",
        " ok 621,009  failed 25  retried 3",
        "",
        " worker  state         done  failed    tasks/s    cpu  in hand",
        "      0  run        155,210       3     12,801   98 %  #621,034  0.02 s",
        "      1  sleep      155,007       9     12,790    1 %  –",
        "      2  dead             7       0          0         –",
        "",
        " #5,123 sha256 failed: FileNotFoundError: no such file: a.bin",
    ]


def test_a_frame_of_200_by_50():
    frame = render(snapshot(), 200, 50)
    assert frame[0] == " shmqueue  tasks.txt" + " " * 131 + "3 workers · lockf · shmq-4121-9f3a      00:00:12"
    assert frame[1] == " " + "█" * 95 + "░" * 58 + "   62.1%   621,034 / 1,000,000   eta 00:00:07"
    assert frame[2:] == [
        " 51,204 tasks/s  ▁▁▇█   ring ██████▉░░░ 11,204 / 16,384   ok 621,009  failed 25  retried 3",
        "",
        " worker      pid  state  function             done  failed    tasks/s    cpu      rss  in hand",
        "      0     4122  run    sha256            155,210       3     12,801   98 %    18 MB  #621,034  0.02 s",
        "      1     4123  sleep  –                 155,007       9     12,790    1 %    18 MB  –",
        "      2     4124  dead   –                       7       0          0                  –",
        "",
        " #5,123 sha256 failed: FileNotFoundError: no such file: a.bin",
    ]


def test_the_payload_in_hand_is_shown_where_it_is_wide_enough():
    rows = [{**each, "payload": payload} for each, payload in zip(ROWS, ("'a.bin'", "", ""))]
    table = render(snapshot(workers=rows), 140, 24)[4:6]
    assert table[0].endswith("  in hand               payload")
    assert table[1].endswith("  #621,034  0.02 s      'a.bin'")
    assert "payload" not in render(snapshot(workers=rows), 139, 24)[4]


def test_a_frame_of_40_by_10():
    assert render(snapshot(total=None, failures=[]), 40, 10) == [
        " shmqueue  tasks.txt",
        " 621,034 tasks done",
        " 51,204 tasks/s  ▁▁▇█",
        " ok 621,009  failed 25  retried 3",
        "",
        " worker  state         done    tasks/s",
        "      0  run        155,210     12,801",
        "      1  sleep      155,007     12,790",
        "      2  dead             7          0",
    ]


def test_a_run_that_begins_and_one_without_a_known_end():
    begun = snapshot(**dict.fromkeys(COUNTS, 0), rate=0.0, rates=[], retried=0, ring=0, failures=[], seconds=0)
    assert render(begun, 80, 24)[:4] == [
        " shmqueue  tasks.txt           3 workers · lockf · shmq-4121-9f3a      00:00:00",
        " ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░    0.0%   0 / 1,000,000   eta –",
        " 0 tasks/s     ring ░░░░░░░░░░ 0 / 16,384   ok 0  failed 0",
        "",
    ]
    assert render({**begun, "total": None}, 80, 24)[1] == " 0 tasks done"


def test_every_kind_of_outcome_is_counted():
    text = "\n".join(render(snapshot(ok=1, failed=2, timeout=3, crashed=4, cancelled=5, total=15), 200, 50))
    assert "ok 1  failed 2  timeout 3  crashed 4  cancelled 5  retried 3" in text
    assert "100.0%   15 / 15" in text


@pytest.mark.parametrize(("count", "height"), [(100, 24), (100, 12), (20, 10), (999, 50)])
def test_more_workers_than_lines_are_summed_up(count, height):
    frame = render(snapshot(workers=many(count), failures=[]), 80, height)
    assert len(frame) <= height
    rows = [line for line in frame if line.split()[1:2] in (["run"], ["sleep"])]
    rest = count - len(rows)
    assert [line.split()[0] for line in rows] == [str(i) for i in range(len(rows))]
    assert len(rows) >= height - 8
    busy = sum(row["state"] == "run" for row in many(count)[len(rows) :])
    assert frame[-1] == f" and {rest:,} more: {busy:,} run, {10 * rest:,} done, {5 * rest:,} tasks/s"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (80, 8), (60, 14), (200, 50)])
def test_failures_leave_room_for_the_workers(width, height):
    """Five of them, as there are after a bad start, and more workers than fit."""
    frame = render(snapshot(workers=many(100), failures=[FAILURE] * 5), width, height)
    assert any(line.split()[:1] == ["worker"] for line in frame), frame
    assert any(line.split()[:1] == ["0"] for line in frame), frame
    assert height < 14 or any(line.startswith(" #5,123") for line in frame)
    assert max(map(len, frame)) <= width


HOSTILE = {
    "escape": "\x1b[2J\x1b]52;c;aGk=\x07",
    "c1": "\x9b31m\x85\x90",
    "bidi": "\u202e\u2066\u200f",
    "control": "\0\b\r\x7f",
    "line": "\n\t\u2028\u2029\v\f",
    "surrogate": "\udcff\ud800",
    "zero width": "\u200b\u200d\ufeff",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["title", "function", "failure"])
@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_hostile_text_is_replaced(text, place, size):
    rows = [{**ROWS[0], "function": text}] if place == "function" else ROWS
    changes = {"title": f"a{text}z"} if place == "title" else {"failures": [f"a{text}z"]} if place == "failure" else {}
    frame = render(snapshot(workers=rows, **changes), *size)
    assert all(line.isprintable() for line in frame)
    frame_of_plain_text = render(snapshot(workers=ROWS[:1] if place == "function" else ROWS), *size)
    assert len(frame) == len(frame_of_plain_text), "no line is broken in two"
    if place != "function" and text.strip():
        assert any("a\ufffd" in line for line in frame)


numbers = st.one_of(st.integers(0, 2**63), st.integers(0, 1000))
texts = st.text(st.characters(), max_size=60)
own_words = st.sampled_from(["", "shmq-4121-9f3a", "paused, a rather long state"])
rates = st.floats(0, 1e12)
known = [
    st.fixed_dictionaries({}),
    st.fixed_dictionaries({"cpu": st.floats(0, 10_000), "rss": numbers}),
    st.fixed_dictionaries({"function": texts, "in_hand": numbers, "held": st.floats(0, 1e9)}),
]
workers = st.builds(
    lambda *fields: row(*fields[:6], **fields[6]), st.integers(0, 4095), st.integers(0, 2**22),
    st.sampled_from(["run", "sleep", "dead"]), numbers, numbers, rates, st.one_of(known),
)  # fmt: skip
snapshots = st.builds(
    snapshot, title=texts, name=own_words, strategy=own_words, seconds=st.floats(0, 1e9),
    **dict.fromkeys(COUNTS, numbers), retried=numbers, total=st.none() | numbers, rate=rates,
    rates=st.lists(rates, max_size=12), ring=numbers, num_slots=st.integers(2, 2**26),
    workers=st.lists(workers, min_size=1, max_size=12), failures=st.lists(texts, max_size=5), state=own_words,
    keys=own_words,
)  # fmt: skip


@given(snapshots, st.integers(20, 250), st.integers(5, 60))
def test_a_frame_never_exceeds_the_screen_and_shows_nothing_that_commands_it(shown, width, height):
    frame = render(shown, width, height)
    assert len(frame) <= height
    assert max(map(len, frame)) <= width
    assert all(line.isprintable() for line in frame)
    assert render(shown, width, height) == frame, "pure"


# Colours.

COLOURS = {"green": "\x1b[32m", "yellow": "\x1b[33m", "red": "\x1b[31m"}
UNCOLOURED = "\x1b[m"


def painted(shown, width=80, height=24):
    """A frame with marks for colours."""
    text = "\n".join(map(paint, render(shown, width, height)))
    for name, command in COLOURS.items():
        text = text.replace(command, f"<{name[0]}>")
    return text.replace(UNCOLOURED, "</>").split("\n")


def test_a_frame_in_colours():
    assert painted(snapshot(state="paused"), 90) == [
        " shmqueue  tasks.txt  <y>[paused]</>           3 workers · lockf · shmq-4121-9f3a      00:00:12",
        "<g> ██████████████████████████▊</>░░░░░░░░░░░░░░░░   62.1%   621,034 / 1,000,000   eta 00:00:07",
        " 51,204 tasks/s  ▁▁▇█                                     ring ██████▉░░░ 11,204 / 16,384",
        " <g>ok 621,009</>  <r>failed 25</>  <y>retried 3</>",
        "",
        " worker  state  function             done  failed    tasks/s    cpu  in hand",
        "      0  <g>run</>    sha256            155,210       3     12,801   98 %  #621,034  0.02 s",
        "      1  sleep  –                 155,007       9     12,790    1 %  –",
        "      2  <r>dead</>   –                       7       0          0         –",
        "",
        "<r> #5,123 sha256 failed: FileNotFoundError: no such file: a.bin</>",
    ]


def test_only_what_went_wrong_is_red():
    one = {**dict.fromkeys(COUNTS, 0), "ok": 1}
    text = "\n".join(painted(snapshot(**one, total=None, failures=[], workers=ROWS[:2]), 200))
    assert "failed 0" in text
    assert "<r>" not in text
    text = "\n".join(painted(snapshot(**dict.fromkeys(COUNTS, 7)), 200))
    for part in ("<g>ok 7</>", "<r>failed 7</>", "<r>timeout 7</>", "<r>crashed 7</>", "<y>cancelled 7</>"):
        assert part in text


@given(snapshots, st.integers(20, 250), st.integers(5, 60))
def test_colours_change_nothing_but_colours(shown, width, height):
    for line in render(shown, width, height):
        text = paint(line)
        for command in (*COLOURS.values(), UNCOLOURED):
            text = text.replace(command, "")
        assert text == line
