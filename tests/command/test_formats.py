"""The three forms of results and the lines of tasks, for any bytes and any plain data: written, read, resumed."""

import collections
import json
import marshal
import math
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import shmqueue
from shmqueue import LineParser, Rejected, TaskResult, results_format, task_digest
from tests.command.test_cli import FORMATS
from tests.helpers import rows_of
from tests.library.test_values import PLAIN


def is_written(value):
    """Text at the top is UTF-8 by surrogateescape: half a pair is not, and escaped bytes that are UTF-8 are joined."""
    try:
        return not isinstance(value, str) or shmqueue.decode_text(shmqueue.encode_text(value)) == value
    except UnicodeEncodeError:
        return False


LAST_CHARACTER = "\U0010ffff"
PIECES = [b'"', b"'", b",", b"\r", b"\n", b"\0", b" ", b"\xff", b"\xed\xa0\x80", b"\\", LAST_CHARACTER.encode()]
PAYLOADS = st.one_of(st.binary(), st.lists(st.sampled_from(PIECES) | st.binary(max_size=3)).map(b"".join))
NUMBERS = st.floats() | st.complex_numbers() | st.integers(-(10**4299), 10**4299)
TEXTS = st.text(st.characters()) | PAYLOADS.map(os.fsdecode)  # the first with surrogates
VALUES = st.one_of(
    PAYLOADS, TEXTS.filter(is_written), NUMBERS, PLAIN.filter(is_written), st.lists(st.one_of(NUMBERS, TEXTS, PAYLOADS))
)
STATUSES = st.sampled_from([*shmqueue.STATUSES, "ok", "ok"])
ROWS = st.lists(st.tuples(st.sampled_from(["f", "echo"]), PAYLOADS, STATUSES, VALUES), max_size=5)


def make_results(rows):
    """Return TaskResults of these rows. Those that are not ok have an error of their payload, and no value."""
    results = []
    for tsk_id, (function, payload, status, value) in enumerate(rows, 1):
        error = None
        if status != "ok":
            error = "ValueError: " + payload.decode("utf-8", "backslashreplace")
            value = None
        results.append(TaskResult(tsk_id, function, payload, status, value, error, 1, 0, 0.5, None, 1.5))
    return results


def expected(value, is_json):
    """What the documents say that becomes of a value: text, JSON, or as Python writes it."""
    if value is None or isinstance(value, (bytes, str)):
        return os.fsdecode(value) if value is not None else None
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return json.loads(text) if is_json else text


def fill(path, results, resume):
    """Write results to a file as a run does. Return the tasks that it held as ok before."""
    file = results_format(str(path))(str(path), resume)
    done = collections.Counter(file.done)
    file.begin()
    for result in results:
        file.attempt(file.write, result)
    file.attempt(file.end)
    assert file.error is None
    return done


def ok_tasks(results):
    return collections.Counter(task_digest(result.function, result.payload) for result in results if result[3] == "ok")


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_is_written_can_be_read_and_is_known_to_resume(tmp_path, name):
    path = tmp_path / name

    @given(ROWS, ROWS)
    @example([("f", LAST_CHARACTER.encode(), "ok", LAST_CHARACTER), ("f", b"\0", "ok", "\0")], [])
    @example([("f", b"", "ok", [float("nan"), -math.inf])], [("f", b'"', "failed", None)])
    def check(first, second):
        first = make_results(first)
        second = make_results(second)
        fill(path, first, resume=False)
        assert fill(path, second, resume=True) == ok_tasks(first)
        assert fill(path, [], resume=True) == ok_tasks(first + second)
        rows = rows_of(path)
        assert len(rows) == len(first) + len(second)
        for row, result in zip(rows, first + second):
            compare(row, result, name)

    check()


def compare(row, result, name):
    """Compare what a file holds with a result. CSV knows no numbers, and has an empty field for None."""
    wanted = {**result._asdict(), "payload": os.fsdecode(result.payload)}
    wanted["value"] = expected(result.value, is_json=name.endswith("jsonl"))
    if name.endswith("csv"):
        wanted = {field: "" if value is None else str(value) for field, value in wanted.items()}
    assert row == wanted


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("code", [0xD800, 0xD83D, 0xDC00])
def test_half_a_surrogate_pair_in_a_value_is_kept_and_spoils_no_other_field(tmp_path, name, code):
    half = chr(code)
    path = tmp_path / name
    results = make_results([("f", b"\xff", "ok", half)])
    fill(path, results, resume=False)
    assert fill(path, [], resume=True) == ok_tasks(results)
    (row,) = rows_of(path)
    as_bytes = os.fsdecode(half.encode("utf-8", "surrogatepass"))
    assert (row["payload"], row["value"]) == ("\udcff", half if name.endswith("jsonl") else as_bytes)


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"": inner}])
@pytest.mark.parametrize("name", FORMATS)
def test_values_of_any_depth_can_be_written_and_resumed(tmp_path, name, wrap):
    """From nine hundred levels on, or 1,500, some Pythons make no JSON of them."""
    path = tmp_path / name
    value = []
    for depth in range(1, 1_900):
        value = wrap(value)
        if depth % 200 == 20 or 850 < depth < 1_000 or 1_480 < depth < 1_500:
            results = make_results([("f", b"", "ok", value)])
            fill(path, results, resume=False)
            assert fill(path, [], resume=True) == ok_tasks(results)


HANDLERS = """
import marshal

def make(payload: str):
    return marshal.loads(bytes.fromhex(payload))
"""


def letters(value):
    """A value without its order, since each process has an order of its own for sets. CSV has no None."""
    return sorted(repr(value or ""))


@pytest.mark.parametrize("name", FORMATS)
def test_values_of_a_run_are_written_and_resumed(cli, name):
    """Through workers and the command line."""
    seen = []

    @given(VALUES)
    def collect(value):
        seen.append(value)

    collect()
    tasks = cli.file("tasks", "".join(f"make {marshal.dumps(value).hex()}\n" for value in seen))
    options = ("--handlers", cli.file("handlers.py", HANDLERS), "--results", name, "-w", "2", "--screen", "off")
    assert cli.run(tasks, *options).code == 0
    rows = sorted(rows_of(cli.folder / name), key=lambda row: int(row["tsk_id"]))
    wanted = [expected(value, is_json=name.endswith("jsonl")) for value in seen]
    found = [row["value"] for row in rows]
    assert list(map(letters, found)) == list(map(letters, wanted))
    again = cli.run(tasks, *options, "--resume")
    assert f"{len(seen)} tasks left out" in again.out.partition("no tasks")[0]
    assert "no tasks" in again.out


# Lines.

WORDS = st.sampled_from([b"echo", b"f", b"ecko", b" ", b"\t", b"#", b"\x0b", b"\x1c", b"\x85", b"\xa0", b"\xff"])
LINES = st.lists(st.lists(WORDS | st.binary(max_size=2), max_size=5).map(b"".join).map(lambda x: x.replace(b"\n", b"")))


def read_line(line, number):
    """What a line is, said simply: a task, None for none, or the name that no function has."""
    name, _, payload = line.partition(b" ")
    if name not in (b"echo", b"f"):
        line = line.lstrip()
        if not line or line.startswith(b"#"):
            return None
        name = line.split()[0]
        payload = line[len(name) + 1 :]
    if name in (b"echo", b"f"):
        return name.decode(), payload
    return os.fsdecode(name), payload, f"line {number}"


@given(LINES, st.integers(1, 5))
@example([b"f f", b"echo\tf", b" echo  f", b"#echo", b" # f", b"echo", b"ecko\xff f", b"\x85"], 2)
def test_any_line_is_a_task_or_says_which_line_it_is(lines, size):
    parse = LineParser(["echo", "f"], comments=True)
    items = [item for start in range(0, len(lines), size) for item in parse(lines[start : start + size])]
    wanted = [read_line(line, number) for number, line in enumerate(lines, 1)]
    found = [(*item[:2], item[2].partition(":")[0]) if isinstance(item, Rejected) else item for item in items]
    assert found == [task for task in wanted if task is not None]


@given(LINES, st.booleans())
def test_whole_lines_are_payloads(lines, comments):
    parse = LineParser(["echo", "f"], comments=comments, whole=True)
    assert parse(lines) == [line for line in lines if line and not (comments and line.startswith(b"#"))]


@given(st.lists(st.tuples(st.sampled_from(["echo", "f"]), st.sampled_from([b"", b"a", b"\xff"]))), st.data())
def test_a_task_is_left_out_as_often_as_it_is_done(tasks, data):
    parse = LineParser(["echo", "f"], comments=True)
    done = data.draw(st.lists(st.sampled_from(tasks))) if tasks else []
    parse.done.update(task_digest(*task) for task in done)
    remain = parse([name.encode() + b" " + payload for name, payload in tasks])
    done, asked = collections.Counter(done), collections.Counter(tasks)
    assert collections.Counter(remain) == asked - done
    assert parse.left_out == (asked & done).total()
