"""`python shmqueue.py ...` from outside: files and lines, options, results, and what is said of bad input."""

import contextlib
import errno
import functools
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import shmqueue
from tests.helpers import (
    HANG,
    METHODS,
    ROOT,
    SCRIPT,
    USAGE_ERROR,
    is_running,
    read_line,
    rows_of,
    segments_of,
    summary,
    unreaped_children,
    usage_error,
    wait_until,
    workers_of,
)

STREAMED = ("--results", "-", "-w", "1", "--screen", "off")
HANDLERS = """
import os, sys, time

def upper(payload: str) -> str:
    return payload.upper()

def seen(payload: str) -> str:
    return ascii(payload)

def size(payload: bytes) -> str:
    return str(len(payload))

def fail(payload: str) -> None:
    raise ValueError(payload)

def die(payload):
    os._exit(0)

def note(payload: str) -> None:
    with open("notes", "a") as file:
        file.write(payload + "\\n")

def note_and_fail(payload: str) -> None:
    note(payload)
    time.sleep(0.001)
    raise ValueError(payload)

def pid(payload):
    return str(os.getpid())

def show(payload: str) -> None:
    print("shown", payload)
    print("complained", payload, file=sys.stderr)

def grow(payload: str) -> None:
    grow.kept = b"x" * int(payload)
    time.sleep(60)

def _hidden(payload):
    return None

from shutil import which
imported = which
"""


@pytest.fixture
def handlers(cli):
    return cli.file("handlers.py", HANDLERS)


def open_source(path, names=None):
    parse = shmqueue.LineParser(names or ["whole"], comments=names is not None, whole=names is None)
    return shmqueue.LineSource(str(path), parse)


def read_all(path, names=None, room=1000):
    """All tasks of a file of lines, no more than `room` at a time."""
    source, items = open_source(path, names), []
    while not source.exhausted:
        taken = source.take(room)
        assert len(taken) <= room
        items += taken
    assert source.total() == len(items)
    return items


# Files and lines.


def test_outcomes_and_the_summary(cli):
    run = cli.tasks("echo one\nsleep 0\n\n# a comment\nsha256 absent\necho two words\n", "-w", "1")
    assert run.code == 1
    assert [(r["tsk_id"], r["function"], r["payload"], r["status"], r["value"]) for r in run.results] == [
        (1, "echo", "one", "ok", "one"),
        (2, "sleep", "0", "ok", None),
        (3, "sha256", "absent", "failed", None),
        (4, "echo", "two words", "ok", "two words"),
    ]
    first, *_, last = run.err.splitlines()
    assert first.startswith("#3 line 5: sha256 'absent' failed: FileNotFoundError")
    assert summary(last) == {"total": 4, "ok": 3, "failed": 1, "timeout": 0, "crashed": 0, "cancelled": 0, "workers": 1}


def failure_lines(text):
    """Of the summary, in the order of the input: they are in the order in which tasks were done."""
    return sorted(line for line in text.splitlines() if line.startswith("#"))


def test_the_summary_says_which_line_and_payload_was_not_ok(cli, handlers):
    """Of a file and of a stream, of names that no function has, and where lines are skipped or left out."""
    tasks = "\n# one\n\nupper a\nfail 3 0\n\ngone b c\nupper d\nfail " + "x" * 40 + "y" * 40 + "\n"
    arguments = ("--handlers", handlers, "-w", "1", "--screen", "off", "--results", "out.jsonl", "--resume")
    expected = [
        ("#2", "line 5: fail '3 0' failed: ValueError: 3 0 (handlers.py:14 in fail)"),
        ("#3", "line 7: gone 'b c' failed: LookupError: no function 'gone'; nearest: "),
        ("#5", f"line 9: fail '{'x' * 27}...{'y' * 28}' failed: ValueError: xxx"),
    ]
    run = cli.run(cli.file("tasks", tasks), *arguments)
    for line, (number, text) in zip(failure_lines(run.out), expected, strict=True):
        assert line.startswith(f"{number} {text}")
    run = cli.run("-", *arguments, stdin=b"fail 1\n" + tasks.encode())  # upper is done, and left out
    (first, *rest) = failure_lines(run.out)
    assert first == "#1 line 1: fail '1' failed: ValueError: 1 (handlers.py:14 in fail)"
    for line, number, (_, text) in zip(rest, (2, 3, 4), expected, strict=True):
        before, _, after = text.partition(":")
        assert line.startswith(f"#{number} line {int(before[5:]) + 1}:{after}")


def test_tasks_that_are_no_lines_have_a_payload_in_the_summary(cli):
    base = sqlite3.connect(cli.folder / "base")
    base.executescript("CREATE TABLE t (f, p); INSERT INTO t VALUES ('noop', 'a'), ('sha256', 'absent')")
    base.close()
    run = cli.run("base", "--query", "SELECT f, p FROM t", "-w", "1", "--screen", "off")
    assert failure_lines(run.out)[0].startswith("#2 sha256 'absent' failed: FileNotFoundError")


def test_each_status_is_among_the_first_failures(cli, handlers):
    tasks = "fail a\n" * 20 + "grow 1\n" + "die\n" * 2
    run = cli.run(cli.file("tasks", tasks), "--handlers", handlers, "-w", "1", "--timeout", "1", "--screen", "off")
    lines = failure_lines(run.out)
    assert len(lines) == 5
    assert any(line.startswith("#21 line 21: grow '1' timeout: ") for line in lines)
    assert any(": die '' crashed: " in line for line in lines)


def test_without_results_the_summary_is_all_of_standard_output(cli):
    run = cli.run(cli.file("tasks", "echo a\nnoop\n"), "-w", "2", "--screen", "off")
    assert (run.code, run.err) == (0, "")
    assert summary(run.out)["ok"] == 2


def test_the_sample_in_the_repository_names_only_functions_there_are():
    items = read_all(ROOT / "tasks.txt", ["echo", "sleep", "sha256", "noop"])
    assert items
    assert {type(item) for item in items} == {tuple}


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n", b"\xef\xbb\xbf", b"# only\n#comments", b"\n\n  \n\t\n"])
def test_a_file_without_tasks_is_no_error(cli, data):
    run = cli.tasks(data)
    assert (run.code, run.out) == (0, "")
    assert "no tasks" in run.err
    assert "total" not in summary(run.err)


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b"echo a\necho b\n", ["a", "b"]),
        (b"echo a\necho b", ["a", "b"]),
        (b"echo a\r\necho b\r\n", ["a", "b"]),
        (b"echo a\r\r\necho b\r", ["a\r", "b\r"]),
        (b"echo a\rb\necho c\n", ["a\rb", "c"]),
        (b"\xef\xbb\xbfecho a\n\xef\xbb\xbfecho b\n", ["a", None]),
        (b"echo \xef\xbb\xbfa\n", ["\ufeffa"]),
        ("echo a\u2028b\u2029c\u0085d\n".encode(), ["a\u2028b\u2029c\u0085d"]),
        (b"echo a\vb\fc\x1cd\x1ee\n", ["a\vb\fc\x1cd\x1ee"]),
        (b"echo a\0b\0\n", ["a\0b\0"]),
        (b"echo \xff\xfe\x80 \xc3\n", ["\udcff\udcfe\udc80 \udcc3"]),
        ("echo ä ☃ 𝄞\n".encode(), ["ä ☃ 𝄞"]),
        (b"echo  two  spaces  \n", [" two  spaces  "]),
        (b"  \techo indented\n", ["indented"]),
        (b"echo\ttab\n", ["tab"]),
        (b"echo\necho \n", ["", ""]),
        (b"echo # no comment\n#echo b\n  # echo c\n", ["# no comment"]),
        (b"\n\necho a\n\n\necho b\n\n", ["a", "b"]),
        (b"\r\r\necho a\n", [None, "a"]),
        (b"\f\necho a\n\v\n", [None, "a", None]),
        (b"\0\necho a\n", [None, "a"]),
        (b"\xff\xfe\necho a\n", [None, "a"]),
    ],
)
def test_lines_end_at_newlines_and_bytes_are_kept(cli, data, values):
    """A value of None: what is there instead of a function's name fails, or is skipped as blank."""
    run = cli.tasks(data)
    ok = [value for value in values if value is not None]
    assert [value for value in run.values if value is not None] == ok
    bad = [result for result in run.results if result["status"] != "ok"]
    assert len(bad) <= len(values) - len(ok)
    assert run.code == int(bool(bad))
    assert summary(run.err)["total"] == len(run.results)


def test_str_functions_get_undecodable_bytes_by_surrogateescape(cli, handlers):
    assert cli.tasks(b"seen \xff\xe4\0\r.\n", "--handlers", handlers).values == [r"'\udcff\udce4\x00\r.'"]


@pytest.mark.parametrize("data", [b"x" * 10_000_000, b"x\r" * 5_000_000, b"\xff" * 10_000_000])
def test_a_line_of_10_mb(cli, handlers, data):
    run = cli.tasks(b"size a\nsize " + data + b"\nsize bc\n", "--handlers", handlers)
    assert (run.code, run.values) == (0, ["1", str(len(data) - data.endswith(b"\r")), "2"])


def test_values_of_10_mb_are_written_whole(cli):
    data = "x☃" * 2_500_000
    assert cli.tasks("echo " + data).values == [data]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_name_that_no_function_has_fails_with_its_line_and_the_nearest_names(cli, streamed):
    data = b"echo a\n\n# c\necko b\nSHA256 c\nsleep 0\nzzzzzz\n\xff\x1b[2J d\n"
    run = cli.run("-", *STREAMED, stdin=data) if streamed else cli.tasks(data)
    results = {result["tsk_id"]: result for result in run.results}
    assert run.code == 1
    assert [results[i]["status"] for i in range(1, 7)] == ["ok", "failed", "failed", "ok", "failed", "failed"]
    for tsk_id, words in {
        2: ("line 4", "'ecko'", "echo"),
        3: ("line 5", "sha256"),
        5: ("line 7", "zzzzzz", "noop"),
    }.items():
        assert all(word.lower() in results[tsk_id]["error"].lower() for word in words), results[tsk_id]
        assert results[tsk_id]["attempts"] == 0
    assert "\x1b" not in run.err, "what goes to the terminal commands nothing"


def reference(data):
    """The lines of a file, said simply."""
    *lines, last = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line for line in (*(line.removesuffix(b"\r") for line in lines), last) if line]


pieces = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"a", b" ", b"\0", b"\xef\xbb\xbf", b"\xef", b"\xe2\x80\xa8", b"#", b"\v", b"\xbb\xbf"]
)
blobs = st.lists(pieces | st.binary(max_size=8), max_size=30).map(b"".join)


def test_a_line_far_behind_is_named_by_its_number(tmp_path):
    """A file is read in blocks."""
    path = tmp_path / "tasks"
    path.write_bytes(b"# " + b"x" * 98 + b"\n" + b"#\n" * 400_000 + b"ecko a\n")
    (rejected,) = read_all(path, ["echo"])
    assert rejected[2].startswith("line 400,002: ")


def test_any_file_is_read_as_its_lines(tmp_path):
    path = tmp_path / "tasks"

    @given(blobs, st.integers(1, 5))
    def check(data, room):
        path.write_bytes(data)
        assert read_all(path, room=room) == reference(data)

    check()


def test_any_stream_is_read_as_its_lines_however_it_is_cut(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)

    @given(st.lists(blobs, max_size=6))
    @example([b"\xef", b"\xbb\xbfa\r", b"\nb\r\n"])
    def check(parts):
        writer = os.open(path, os.O_RDWR)
        source, items = open_source(path), []
        for part in parts:
            if part:
                os.write(writer, part)
                items += source.take(1000)
        os.close(writer)
        while not source.exhausted:
            items += source.take(1000)
        assert items == reference(b"".join(parts))

    check()


@given(
    st.lists(st.tuples(st.sampled_from(["echo", "noop", "f"]), st.binary(max_size=20).filter(lambda b: b"\n" not in b)))
)
def test_any_function_and_payload_on_a_line_comes_back(tmp_path_factory, tasks):
    tasks = [(name, payload.removesuffix(b"\r")) for name, payload in tasks]
    tasks = [(name, payload) for name, payload in tasks if not payload.endswith(b"\r")]
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"".join(name.encode() + b" " + payload + b"\n" for name, payload in tasks))
    assert read_all(path, ["echo", "noop", "f"]) == tasks


# Where tasks come from.


def absent(cli):
    return [str(cli.folder / "absent")]


def folder(cli):
    return [str(cli.folder)]


def unreadable(cli):
    """A file that cannot be opened, by whoever runs the tests."""
    path = cli.folder / "unreadable"
    if os.geteuid() == 0:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    else:
        path.touch(mode=0)
    return [str(path)]


def odd_name(cli):
    return [str(cli.folder / "no\x1b[2J\nsuch")]


def below_a_file(cli):
    return [cli.file("tasks", "noop\n") + "/tasks"]


@pytest.mark.parametrize("arguments", [absent, folder, unreadable, odd_name, below_a_file])
def test_a_file_that_cannot_be_read_is_exit_2(cli, arguments):
    arguments = arguments(cli)
    error = usage_error(cli.run(*arguments, "-w", "1"))
    assert f"cannot read {arguments[0]!r}: " in error
    assert "\x1b[2J" not in error


@pytest.fixture
def database(cli):
    """A table of three rows, the last of which cannot be computed by `overflow`."""
    path = str(cli.folder / "tasks.db")
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE t (id INTEGER, name TEXT, payload BLOB)")
        rows = [(1, "echo", "ä"), (2, "echo", b"\xff\0\n"), (3, "noop", None), (4, "ecko", 5.5)]
        base.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    return path


OVERFLOW = "SELECT CASE WHEN id < 3 THEN 'echo a' ELSE abs(-9223372036854775807 - 1) END FROM t"


@pytest.mark.parametrize("arguments", [["/proc/self/mem"], ["tasks.db", "--query", OVERFLOW]], ids=["file", "query"])
def test_a_source_that_fails_while_it_is_read_is_said_in_a_line(cli, database, arguments):
    run = cli.run(*arguments, "-w", "1", "--screen", "off")
    assert run.code == 1
    assert "Traceback" not in run.err
    assert re.search(f"{os.strerror(errno.EIO)}|integer overflow", run.out + run.err)


def test_rows_of_two_columns_are_function_and_payload(cli, database):
    run = cli.run(database, "--query", "SELECT name, payload FROM t ORDER BY id", *STREAMED)
    assert (run.code, run.values) == (1, ["ä", "\udcff\0\n", None, None])
    assert [result["payload"] for result in sorted(run.results, key=lambda r: r["tsk_id"])][2:] == ["", "5.5"]
    assert "nearest: echo" in run.err


def test_rows_of_one_column_are_lines(cli, database):
    query = "SELECT name || ' ' || id FROM t WHERE id < 4 ORDER BY id DESC"
    assert cli.run(database, "--query", query, *STREAMED).values == [None, "2", "1"]
    run = cli.run(database, "--query", "SELECT 'printf ' || id FROM t", "--shell", *STREAMED)
    assert (run.code, run.values) == (0, ["1", "2", "3", "4"])


def test_a_query_without_rows_is_no_tasks(cli, database):
    run = cli.run(database, "--query", "SELECT name FROM t WHERE id > 9", *STREAMED)
    assert (run.code, "no tasks" in run.err) == (0, True)


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("tasks.db", "SELEKT 1", "SELEKT"),
        ("tasks.db", "SELECT name FROM absent", "absent"),
        ("tasks.db", "SELECT absent FROM t", "absent"),
        ("tasks.db", "SELECT id, name, payload FROM t", "3 columns"),
        ("tasks.db", "DELETE FROM t", "DELETE"),
        ("tasks.db", "", "--query"),
        ("handlers.py", "SELECT name FROM t", "not a database"),
        ("absent.db", "SELECT name FROM t", "absent.db"),
        (".", "SELECT name FROM t", "'.'"),
        ("-", "SELECT name FROM t", "--query"),
    ],
)
def test_a_query_that_cannot_be_run_is_exit_2(cli, database, handlers, path, query, words):
    assert words in usage_error(cli.run(path, "--query", query, "-w", "1"))


@pytest.mark.parametrize("end", [b"", b"echo c"])
def test_a_pipe_is_streamed(cli, end):
    process = cli.start("-", *STREAMED)
    for word in ("a", "b"):
        process.stdin.write(f"echo {word}\n".encode())
        assert json.loads(read_line(process.stdout))["value"] == word, "before the input ends"
    run = cli.finish(process, end)
    assert (run.code, run.values) == (0, ["c"] if end else [])
    assert summary(run.err)["ok"] == 3 if end else 2


def test_a_fifo_is_streamed(cli):
    path = cli.folder / "fifo"
    os.mkfifo(path)
    process = cli.start(path, *STREAMED)
    with open(path, "wb", buffering=0) as file:
        file.write(b"\xef\xbb\xbfecho a\r\nec")
        assert json.loads(read_line(process.stdout))["value"] == "a"
        file.write(b"ho b\n")
        assert json.loads(read_line(process.stdout))["value"] == "b"
    run = cli.finish(process)
    assert (run.code, summary(run.err)["ok"]) == (0, 2)


def test_a_terminal_is_streamed(cli, terminal):
    process = cli.start("-", *STREAMED, stdin=terminal.theirs)
    terminal.type(b"echo a\n")
    assert json.loads(read_line(process.stdout))["value"] == "a"
    terminal.type(b"echo b\n")
    assert json.loads(read_line(process.stdout))["value"] == "b"
    terminal.type(b"\x04")
    run = cli.finish(process)
    assert (run.code, summary(run.err)["ok"]) == (0, 2)


def test_redirected_standard_input_and_an_empty_one(cli):
    with open(cli.file("tasks", "echo a\n"), "rb") as file:
        assert cli.finish(cli.start("-", *STREAMED, stdin=file)).values == ["a"]
    run = cli.run("-", *STREAMED)
    assert (run.code, "no tasks" in run.err) == (0, True)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_is_closed_from_the_start(cli, closed):
    results = cli.folder / "out.jsonl"
    tasks = cli.file("tasks", "echo a\necho b\n")
    run = cli.finish(cli.start(tasks, "--results", results, "-w", "1", preexec_fn=functools.partial(os.close, closed)))
    assert run.code == 0, run
    assert [json.loads(line)["value"] for line in results.read_text().splitlines()] == ["a", "b"]
    assert "Traceback" not in run.err


def closed(*numbers):
    """Options of a process that starts with these descriptors closed."""

    def close():
        for number in numbers:
            os.close(number)

    return {"preexec_fn": close}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams_stay_silent_and_hurt_nothing(cli, numbers, method):
    """No pipe, segment or file gets the number of one: what a function or Python itself prints would go there."""
    results = cli.folder / "out.jsonl"
    tasks = cli.file("tasks", "echo out; echo err >&2\n" * 3)
    arguments = ("--shell", "--results", results, "-w", "2", "--start-method", method)
    run = cli.finish(cli.start(tasks, *arguments, **closed(*numbers)))
    assert run.code == 0, run
    assert len(results.read_text().splitlines()) == 3
    assert "Traceback" not in run.out + run.err


def test_with_standard_error_closed_results_are_alone_on_standard_output(cli):
    run = cli.finish(cli.start(cli.file("tasks", "echo a\n"), *STREAMED, **closed(2)))
    assert (run.code, run.values, run.out.count("\n"), run.err) == (0, ["a"], 1, "")
    run = cli.finish(cli.start("absent", *STREAMED, **closed(2)))
    assert (run.code, run.out, run.err) == (2, "", "")


def test_bad_usage_is_exit_2_where_the_error_stream_is_full(cli):
    with open("/dev/full", "wb") as full:
        assert cli.finish(cli.start("absent", stderr=full)).code == 2
        assert cli.finish(cli.start("absent", stderr=full, env={})).code == 2  # where Python keeps what it cannot write


def test_results_on_a_closed_standard_output_and_tasks_from_a_closed_input_are_refused(cli):
    error = usage_error(cli.finish(cli.start(cli.file("tasks", "echo a\n"), *STREAMED, **closed(1))))
    assert "standard output is closed" in error
    error = usage_error(cli.finish(cli.start("-", "-w", "1", **closed(0))))
    assert "standard input is closed" in error


def test_main_fills_the_numbers_of_closed_streams(cli):
    code = "import os, shmqueue; shmqueue.main(argv=['absent']); os._exit(os.open('/dev/null', os.O_RDONLY))"
    script = cli.file("own.py", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\n")
    assert cli.finish(cli.start(script=script, **closed(0, 1, 2))).code >= 3


# Options.


@pytest.mark.parametrize("where", ["handlers.py", "handlers", "./handlers.py", "./handlers"])
def test_handlers_by_file_and_by_module(cli, handlers, where):
    run = cli.tasks("upper a\nsize abc\n", "--handlers", where)
    assert (run.code, run.values) == (0, ["A", "3"])


def test_a_module_may_change_the_working_directory(cli):
    cli.file("moving.py", "import os\n\nos.chdir('/')\n\ndef folder(payload):\n    return os.getcwd()\n")
    run = cli.tasks("folder a\n", "--handlers", "moving.py")
    assert (run.code, run.values) == (0, ["/"])


def test_files_beside_a_module_take_no_module_from_us(cli):
    names = ("csv", "difflib", "inspect", "json", "pathlib", "shlex", "sqlite3", "subprocess", "traceback", "typing")
    for name in names:
        cli.file(f"{name}.py", "raise ImportError('not this one')\n")
    cli.file("own.py", "def double(text: str):\n    return text * 2\n")
    run = cli.tasks("double a\ndoubel a\n", "--handlers", "own.py", "--results", "out.csv", "--summary", "summary")
    assert run.code == 1
    assert {row["value"] for row in rows_of(cli.folder / "out.csv")} == {"aa", ""}


@pytest.mark.parametrize("name", ["_hidden", "which", "imported", "os", "HANDLERS", "echo"])
def test_only_public_functions_of_the_module_itself_may_be_named(cli, handlers, name):
    run = cli.tasks(f"{name} a\n", "--handlers", handlers)
    assert (run.code, run.results[0]["status"]) == (1, "failed")
    assert name in run.results[0]["error"]


ODD_FUNCTIONS = """
import functools

def whole(payload: str) -> str:
    return payload

@functools.lru_cache
def cached(payload: str) -> str:
    return payload

def twice(function):
    def wrapper(payload):
        return function(payload) * 2
    return wrapper

@twice
def doubled(payload: str) -> str:
    return payload

nameless = lambda payload: payload
other_name = whole
partial = functools.partial(whole)
"""


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_sent_by_its_name_cannot_be_named(cli, method):
    """It does not stand in the way of the others, either."""
    names = ["whole", "cached", "doubled", "wrapper", "nameless", "other_name", "partial", "functools"]
    lines = "".join(f"{name} a\n" for name in names)
    run = cli.tasks(lines, "--handlers", cli.file("odd.py", ODD_FUNCTIONS), "--start-method", method)
    assert {result["function"] for result in run.results if result["status"] == "ok"} == {"whole", "cached"}
    assert run.code == 1


def test_a_long_name_that_no_function_has_is_said_briefly(cli):
    run = cli.run(cli.file("tasks", "y" * 1_000_000 + "\n"), "-w", "1", "--screen", "off")
    assert run.code == 1
    assert len(run.out) < 1000


def test_what_the_output_cannot_encode_is_escaped(cli):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    tasks = cli.file("tasks", "echo gr\u00fcn >&2; false\n")
    run = cli.run(tasks, "--shell", "--no-print", "-w", "1", "--screen", "off", env=environment)
    assert run.code == 1
    assert r"gr\xfcn" in run.out
    assert summary(run.out)["failed"] == 1
    run = cli.run("--help", env=environment)
    assert (run.code, run.err) == (0, "")


def test_ctrl_c_during_the_import_of_functions_ends_the_program(cli):
    handlers = cli.file("slow.py", "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    process = cli.start(cli.file("tasks", "good\n"), "--handlers", handlers, "--screen", "off")
    assert wait_until((cli.folder / "begun").exists)
    process.send_signal(signal.SIGINT)
    run = cli.finish(process)
    assert (run.code, run.err) == (130, "")


@pytest.mark.parametrize("where", ["handlers.py:seen", "handlers:seen"])
def test_call_gives_each_line_whole(cli, handlers, where):
    run = cli.tasks(b"upper a\r\n # b \n\n\xff\n", "--call", where)
    assert (run.code, run.values) == (0, ["'upper a'", "' # b '", r"'\udcff'"])


def test_shell_gives_the_output_and_fails_with_the_exit_code(cli):
    run = cli.tasks(
        "printf '%s' \"$((20 + 3))\"\necho out; echo err >&2; exit 3\nkill -9 $$\nno-such-command-here\ncat\n",
        "--shell",
    )
    assert run.code == 1
    assert [result["status"] for result in sorted(run.results, key=lambda r: r["tsk_id"])] == [
        "ok", "failed", "failed", "failed", "ok",
    ]  # fmt: skip
    errors = {result["tsk_id"]: result["error"] for result in run.results}
    assert run.values[0] == "23"
    assert "exit code 3" in errors[2]
    assert "err" in errors[2]
    assert "9" in errors[3]
    assert "127" in errors[4]
    assert run.values[4] == "", "standard input is empty"


def test_comments_are_no_commands(cli):
    run = cli.tasks("#echo a\n# b\necho c\n", "--shell")
    assert (run.code, run.values) == (0, ["c\n"])


@pytest.mark.parametrize("option", ["-w", "--workers"])
def test_workers(cli, option):
    assert summary(cli.tasks("noop\n", option, "3").err)["workers"] == 3


def test_timeout(cli):
    run = cli.tasks("echo a\nsleep 100\necho b\n", "--timeout", "1")
    assert run.code == 1
    assert summary(run.err) == {
        "total": 3,
        "ok": 2,
        "failed": 0,
        "timeout": 1,
        "crashed": 0,
        "cancelled": 0,
        "workers": 2,
    }
    assert "#2 line 2: sleep '100' timeout: " in run.err


def test_retries(cli, handlers):
    run = cli.tasks("note_and_fail a\nnote b\n", "--handlers", handlers, "--retries", "2")
    assert sorted((cli.folder / "notes").read_text().split()) == ["a", "a", "a", "b"]
    assert {r["function"]: r["attempts"] for r in run.results} == {"note_and_fail": 3, "note": 1}


def test_a_death_is_a_crash(cli, handlers):
    run = cli.tasks("upper a\ndie\nupper b\n", "--handlers", handlers)
    assert (run.code, run.values) == (1, ["A", None, "B"])
    assert (summary(run.err)["crashed"], "#2 line 2: die '' crashed: " in run.err) == (1, True)


# Without workers.

DEBUGGED = """
import os, time

def pid(payload):
    return os.getpid()

def stop(payload: str):
    breakpoint()
    return payload

def wait(payload):
    print("begun", flush=True)
    time.sleep(60)
"""
IN_PROCESS = ("--handlers", "debugged.py", "-w", "0", "--screen", "off")


@pytest.fixture
def debugged(cli):
    cli.file("debugged.py", DEBUGGED)
    return cli


def test_without_workers_functions_run_in_the_process_itself(debugged):
    process = debugged.start(debugged.file("tasks", "pid\npid\n"), *IN_PROCESS, "--results", "-")
    run = debugged.finish(process)
    assert (run.code, run.values) == (0, [process.pid] * 2)
    assert summary(run.err)["workers"] == 0


@pytest.mark.parametrize("more", [(), ("--no-print",)])
def test_without_workers_commands_know_their_number_and_complain_once(cli, more):
    tasks = cli.file("tasks", "a\nb\n")
    run = cli.run(tasks, "--command", "echo {#} $SHMQUEUE_TASK {%} {}; echo oops >&2; false", "-w", "0", *more)
    assert run.code == 1
    assert ("1 1 0 a\n2 2 0 b\n" in run.out) is not more
    assert run.err.count("oops\n") == (0 if more else 2 + 2)  # in errors, too


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_workers_a_signal_interrupts_the_function(debugged, number):
    process = debugged.start(debugged.file("tasks", "pid\nwait\npid\n"), *IN_PROCESS)
    assert read_line(process.stdout) == "begun\n"
    process.send_signal(number)
    run = debugged.finish(process)
    assert (run.code, run.err) == (128 + number, "")
    assert summary(run.out)["ok"] == 1
    assert "shmqueue: the run was interrupted before every task had an outcome\n" in run.out


def test_a_debugger_stops_in_a_function(debugged):
    run = debugged.run(debugged.file("tasks", "stop x\nstop y\n"), *IN_PROCESS, "--print", stdin=b"p payload\nc\n" * 2)
    assert run.code == 0, run
    assert "(Pdb) 'x'" in run.out
    assert "(Pdb) 'y'" in run.out
    assert summary(run.err)["ok"] == 2


def test_the_debuggers_q_ends_the_run(debugged):
    run = debugged.run(
        debugged.file("tasks", "pid\nstop x\npid\n"), *IN_PROCESS, "--results", "out.jsonl", stdin=b"q\n"
    )
    assert (run.code, run.err) == (130, "")
    asked = "Quitting pdb will kill the process. Quit anyway? [y/n] \n" if sys.version_info >= (3, 14) else ""
    ended = "shmqueue: the run was interrupted before every task had an outcome\n1 task: 1 ok, "
    assert f"(Pdb) {asked}{ended}" in run.out


@pytest.mark.parametrize("method", METHODS)
def test_breakpoint_in_a_worker_says_what_to_do(debugged, method):
    arguments = ("--handlers", "debugged.py", "--start-method", method)
    run = debugged.tasks("stop x\n", *arguments)
    assert "use workers=0" in run.results[0]["error"]
    assert debugged.tasks("stop x\n", *arguments, env={**os.environ, "PYTHONBREAKPOINT": "0"}).values == ["x"]


@pytest.mark.parametrize("streamed", [False, True])
def test_halt_stops_after_so_many_failures_and_cancels_the_rest(cli, handlers, streamed):
    data = b"note_and_fail x\n" * 500
    options = ("--handlers", handlers, "--halt", "3", "--batch", "1", "--slots", "8")
    run = cli.run("-", *STREAMED, *options, stdin=data) if streamed else cli.tasks(data, *options, "-w", "1")
    counts = summary(run.err)
    assert run.code == 1
    assert 3 <= counts["failed"] < 100
    assert len((cli.folder / "notes").read_text().split()) == counts["failed"]
    assert counts["total"] == len(run.results) == counts["failed"] + counts["cancelled"]
    assert streamed or counts["total"] == 500


def test_halt_stops_at_its_number(cli):
    counts = summary(cli.tasks("sha256 none\n" * 2 + "sleep 0.01\n" * 300, "--halt", "2", "-w", "1").err)
    assert (counts["failed"], counts["ok"] + counts["cancelled"]) == (2, 300)
    assert counts["cancelled"] > 0


def test_halt_does_nothing_below_its_number(cli, handlers):
    run = cli.tasks("fail a\nfail b\nupper c\n", "--handlers", handlers, "--halt", "3")
    assert (run.code, summary(run.err)["failed"], summary(run.err)["ok"]) == (1, 2, 1)


def test_max_tasks(cli, handlers):
    run = cli.tasks("pid\n" * 20, "--handlers", handlers, "--max-tasks", "4")
    assert run.code == 0
    assert max(map(run.values.count, run.values)) <= 4


def test_max_rss(cli, handlers):
    pytest.importorskip("psutil")
    run = cli.tasks("grow 400000000\nupper a\n", "--handlers", handlers, "--max-rss", "0.15g")
    assert (run.code, summary(run.err)["crashed"], run.values[1]) == (1, 1, "A")
    (grown,) = (result for result in run.results if result["function"] == "grow")
    assert "max_rss" in grown["error"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5", 5), ("5K", 5 << 10), ("5k", 5 << 10), ("1.5M", 3 << 19), ("2G", 2 << 30), ("1T", 1 << 40), ("1e3", 1000)],
)
def test_sizes_have_units(text, size):
    assert shmqueue.size(text) == size


@pytest.mark.parametrize(
    "options", [("--slots", "2"), ("--slots", "3", "--batch", "1"), ("--slot-size", "64"), ("--slot-size", "65536")]
)
def test_sizes_of_the_queue(cli, options):
    words = [("x" * (i % 150)) + str(i) for i in range(300)]
    run = cli.tasks("".join(f"echo {word}\n" for word in words), *options)
    assert (run.code, run.values) == (0, words)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("functions", ["built in", "file", "module", "call", "shell"])
def test_start_methods(cli, handlers, method, functions):
    options, tasks = {
        "built in": ((), "echo A\n"),
        "file": (("--handlers", handlers), "upper a\n"),
        "module": (("--handlers", "handlers"), "upper a\n"),
        "call": (("--call", "handlers.py:upper"), "a\n"),
        "shell": (("--shell",), "printf A\n"),
    }[functions]
    run = cli.tasks(tasks, *options, "--start-method", method, "-w", "1")
    assert (run.code, run.values) == (0, ["A"]), run


def test_a_handler_may_import_the_library_by_its_name(cli):
    cli.file("own.py", "import shmqueue\n\ndef version(payload) -> str:\n    return shmqueue.__version__\n")
    for method in METHODS:
        run = cli.tasks("version\n", "--handlers", "own.py", "--start-method", method, "-w", "1")
        assert (run.code, run.values) == (0, [shmqueue.__version__])


def test_log_holds_what_functions_print(cli, handlers):
    run = cli.tasks("show a\nshow b\n", "--handlers", handlers, "--log", "log", "-w", "1")
    assert run.code == 0
    assert (cli.folder / "log").read_text().splitlines() == [
        "[worker 0 task 1] shown a",
        "[worker 0 task 1] complained a",
        "[worker 0 task 2] shown b",
        "[worker 0 task 2] complained b",
    ]


def test_without_log_what_functions_print_is_dropped(cli, handlers):
    run = cli.tasks("show a\n", "--handlers", handlers)
    assert (run.code, len(run.results), run.out.count("\n")) == (0, 1, 1)
    assert "complained" not in run.err


# Results.


def test_results_in_a_file_have_the_fields_of_task_result(cli):
    cli.file("out.jsonl", "what was there before\n")
    run = cli.tasks(b"echo \xff\necko\n", "--results", "out.jsonl")
    rows = [json.loads(line) for line in (cli.folder / "out.jsonl").read_text().splitlines()]
    assert (run.code, run.err) == (1, "")
    assert [tuple(row) for row in rows] == [shmqueue.TaskResult._fields] * 2
    assert sorted(row["value"] or "" for row in rows) == ["", "\udcff"]
    assert summary(run.out)["total"] == 2


FORMATS = ("out.jsonl", "out.csv", "out.sqlite")
ODD = [
    b"a, \"b\"\t'c'",
    b"\xff\xfe\xc3",
    "ä☃𝄞\u2028".encode(),
    b"lone \r inside",
    b"",
    b" spaces ",
    b"\x1b[2J",
    b"x" * 5000,
]


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_come_back_from_the_results(cli, name):
    run = cli.tasks(b"".join(b"echo " + payload + b"\n" for payload in ODD), "--results", name)
    assert run.code == 0
    rows = sorted(rows_of(cli.folder / name), key=lambda row: int(row["tsk_id"]))
    assert [tuple(row) for row in rows] == [shmqueue.TaskResult._fields] * len(ODD)
    assert [row["payload"] for row in rows] == [os.fsdecode(payload) for payload in ODD]
    assert [row["value"] for row in rows] == [os.fsdecode(payload) for payload in ODD]
    assert {(row["function"], row["status"], int(row["attempts"])) for row in rows} == {("echo", "ok", 1)}


@pytest.mark.parametrize("name", FORMATS)
def test_resume_leaves_out_what_is_ok_by_function_and_payload(cli, handlers, name):
    """By content, wherever it stands, as often as it is there; what was not ok is done again."""
    odd = b"".join(b"size " + payload + b"\n" for payload in ODD)
    first = cli.tasks(b"upper a\nupper b\nfail c\n" + odd, "--handlers", handlers, "--results", name)
    assert summary(first.out)["ok"] == 2 + len(ODD)
    second = cli.tasks(
        odd + b"upper new\nfail c\nupper b\nseen a\nupper a\nupper a\n",
        *("--handlers", handlers, "--results", name, "--resume"),
    )
    assert second.code == 1
    counts = summary(second.out)
    assert (counts["total"], counts["ok"], counts["failed"]) == (4, 3, 1)
    assert f"{2 + len(ODD)} tasks left out" in second.out
    rows = [(row["function"], row["payload"], row["status"]) for row in rows_of(cli.folder / name)]
    assert len(rows) == 3 + len(ODD) + 4
    assert sorted(row for row in rows[3 + len(ODD) :]) == [
        ("fail", "c", "failed"), ("seen", "a", "ok"), ("upper", "a", "ok"), ("upper", "new", "ok"),
    ]  # fmt: skip
    third = cli.tasks("upper a\nupper a\nseen a\n", "--handlers", handlers, "--results", name, "--resume")
    assert (third.code, "no tasks" in third.out) == (0, True)


@pytest.mark.parametrize("name", FORMATS[:2])
def test_resume_cuts_off_what_a_kill_left_of_the_last_record(cli, name):
    path = cli.folder / name
    cli.tasks("echo a\necho b\necho c\n", "--results", name, "-w", "1")
    path.write_bytes(path.read_bytes()[:-4])
    run = cli.tasks("echo a\necho b\necho c\n", "--results", name, "--resume")
    assert (run.code, summary(run.out)["ok"]) == (0, 1)
    assert sorted(row["value"] for row in rows_of(path)) == ["a", "b", "c"]


@pytest.mark.parametrize("name", FORMATS)
def test_resume_of_a_file_that_is_not_there_yet_begins_it(cli, name):
    run = cli.tasks("echo a\n", "--results", name, "--resume")
    assert (run.code, len(rows_of(cli.folder / name))) == (0, 1)


def test_results_in_a_file_come_while_the_run_goes_on(cli):
    path = cli.folder / "out.jsonl"
    process = cli.start("-", "--results", path, "-w", "1", "--screen", "off")
    process.stdin.write(b"echo a\n")
    assert wait_until(lambda: path.exists() and path.read_bytes().endswith(b"\n"))
    assert cli.finish(process, b"echo b\n").code == 0
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_standard_output_closed_half_way_the_work_is_finished(cli, handlers):
    """As by `| head -n 1`."""
    tasks = cli.file("tasks", "".join(f"note {i}\n" for i in range(3000)))
    process = cli.start(tasks, "--handlers", handlers, "--results", "-", "-w", "2", "--screen", "off", "--slots", "16")
    assert json.loads(read_line(process.stdout))["status"] == "ok"
    process.stdout.close()
    process.stdout = None
    run = cli.finish(process)
    assert run.code == 1
    assert len((cli.folder / "notes").read_text().split()) == 3000
    assert summary(run.err)["ok"] == 3000
    assert "the last results were not written" in run.err
    assert "Traceback" not in run.err
    assert "Exception ignored" not in run.err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_closed_before_the_summary(cli, stream):
    tasks, path = cli.file("tasks", "echo a\nsleep 0.5\necho b\n"), cli.folder / "out.jsonl"
    process = cli.start(tasks, "--results", path, "-w", "1", "--screen", "on")
    getattr(process, stream).close()
    setattr(process, stream, None)
    run = cli.finish(process)
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == ["a", None, "b"]
    assert run.code == (1 if stream == "stdout" else 0), "the summary was lost, or only the screen"
    assert "Traceback" not in run.err
    assert "Exception ignored" not in run.err


@pytest.mark.parametrize("name", FORMATS[:2])
@pytest.mark.parametrize("count", [3, 2000])
def test_a_full_disk_is_said_with_how_to_go_on(cli, name, count):
    path = cli.folder / name
    path.symlink_to("/dev/full")
    run = cli.tasks("echo a\n" * count, "--results", str(path))
    assert (run.code, summary(run.out)["total"]) == (1, count)
    text = run.out + run.err
    assert str(path) in text
    assert "No space left" in text
    assert "--resume" in text
    assert "Traceback" not in text
    assert "Exception ignored" not in text


# The screen, and what else is said.

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def test_screen_on_draws_on_the_error_stream_and_leaves(cli):
    run = cli.run(cli.file("tasks", "sleep 1\necho a\n"), "--results", "-", "--screen", "on", "-w", "1")
    assert [result["value"] for result in run.results] == [None, "a"]
    assert "\x1b" not in run.out
    assert run.err.startswith(ENTER)
    frame, _, after = run.err.partition(LEAVE)
    assert "shmqueue  tasks" in frame
    assert "\x1b" not in after
    assert summary(after)["ok"] == 2


@pytest.mark.parametrize(
    ("mode", "term", "drawn"), [("auto", "xterm", True), ("auto", "dumb", False), ("off", "xterm", False)]
)
def test_screen_auto_draws_on_a_terminal_only(cli, terminal, mode, term, drawn):
    arguments = (cli.file("tasks", f"sleep {1 if drawn else 0.2}\n"), "-w", "1", "--screen", mode)
    run = cli.run(*arguments, env={**os.environ, "TERM": term}, stderr=terminal.theirs)
    seen = terminal.all_output()
    assert run.code == 0
    assert (ENTER.encode() in seen) == drawn
    assert (LEAVE.encode() in seen) == drawn
    assert (b"\x1b" in seen) == drawn


def test_screen_auto_draws_nothing_without_a_terminal(cli):
    run = cli.run(cli.file("tasks", "sleep 0.5\n"), "-w", "1", env={**os.environ, "TERM": "xterm"})
    assert (run.code, "\x1b" in run.err) == (0, False)


def test_version_and_help(cli):
    assert cli.run("--version") == (0, f"shmqueue {shmqueue.__version__}\n", "")
    run = cli.run("--help")
    assert (run.code, run.err) == (0, "")
    for option in ("--handlers", "--call", "--shell", "--workers", "--timeout", "--retries", "--halt", "--max-tasks",
                   "--max-rss", "--slots", "--slot-size", "--batch", "--start-method", "--results", "--log", "--screen",
                   "--clean", "TASKS"):  # fmt: skip
        assert option in run.out


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_that_nobody_reads_are_no_failure(cli, option):
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "wb") as unread:
        assert cli.finish(cli.start(option, stdout=unread)) == (0, "", "")


def test_clean_removes_what_a_killed_run_left_and_nothing_of_a_living_one(cli):
    sleeping = cli.file("tasks", "echo " + "x" * 1000 + "\nsleep 60\n")
    living, dead = (cli.start(sleeping, "--screen", "off", "-w", "1", "--timeout", "50") for _ in range(2))
    assert wait_until(lambda: segments_of([living.pid]) and segments_of([dead.pid]))
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    kept = segments_of([living.pid])
    run = cli.run("--clean")
    assert (run.code, run.err) == (0, "")
    assert wait_until(lambda: not segments_of([dead.pid]))  # another start's sweep may be at it still
    assert set(kept) & set(segments_of([living.pid]))
    living.send_signal(signal.SIGTERM)
    assert cli.finish(living).code == 128 + signal.SIGTERM
    assert cli.run("--clean", "-w", "1").code == 0


# Functions of one's own.

OWN = """
    import sys
    import shmqueue

    def shout(payload: str) -> str:
        return payload.upper()

    def fail(payload):
        raise ValueError("on purpose")

    if __name__ == "__main__":
        raise SystemExit(shmqueue.main([shout, fail]))
"""


@pytest.mark.parametrize("method", METHODS)
def test_main_over_functions_of_a_script(cli, method):
    shutil.copy(shmqueue.__file__, cli.folder)
    script = cli.file("own.py", textwrap.dedent(OWN))
    run = cli.tasks("shout a\nfail\necho b\n", "--start-method", method, script=script)
    assert (run.code, run.values) == (1, ["A", None, None])
    errors = [result["error"] for result in sorted(run.results, key=lambda result: result["tsk_id"])]
    assert errors[1] == "ValueError: on purpose"
    assert "line 3" in errors[2]


def test_the_module_can_be_run_by_its_name(cli):
    shutil.copy(SCRIPT, cli.folder)
    cli.file("tasks", "noop\nnoop\n")
    command = [sys.executable, "-m", "shmqueue", "tasks", "--screen", "off"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    options = {"cwd": cli.folder, "env": environment, "capture_output": True, "text": True, "timeout": HANG / 2}
    done = subprocess.run(command, check=False, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 tasks: 2 ok" in done.stdout
    assert list(cli.folder.glob("__pycache__/shmqueue.*.pyc")), "the compiled code is kept"


def test_main_in_process_takes_arguments_and_returns_the_exit_code(tmp_path, capfd):
    tasks = tmp_path / "tasks"
    tasks.write_text("noop\n")
    options = [str(tasks), "-w", "1", "--screen", "off", "--start-method", "fork"]
    assert shmqueue.main([shmqueue.noop], options) == 0
    assert summary(capfd.readouterr().out)["ok"] == 1
    assert shmqueue.main({5: shmqueue.echo}, options) == 1
    assert shmqueue.main([shmqueue.noop], []) == 2
    assert unreaped_children() == []


SIGNALLED = """
    import os
    import sys
    import shmqueue

    class Line(shmqueue.CommandLine):
        def make_supervisor(self, *arguments, **options):
            number, late = int(sys.argv.pop()), sys.argv.pop() == "late"
            late or os.kill(os.getpid(), number)
            supervisor = super().make_supervisor(*arguments, **options)
            late and os.kill(os.getpid(), number)
            return supervisor

    shmqueue.CommandLine = Line
    raise SystemExit(shmqueue.main(argv=sys.argv[1:-2]))
"""


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_while_the_workers_start_ends_the_run_and_leaves_nothing(cli, number, when):
    shutil.copy(shmqueue.__file__, cli.folder)
    script, tasks = cli.file("own.py", textwrap.dedent(SIGNALLED)), cli.file("tasks", "sleep 0.3\n" * 50)
    run = cli.run(tasks, "-w", "2", "--screen", "off", when, int(number), script=script)
    assert run.code == 128 + number, run
    assert summary(run.out)["cancelled"] > 0


def handled():
    return {number: signal.getsignal(number) for number in shmqueue.HEARD}


@pytest.mark.promise("G8a")
def test_after_main_signals_are_handled_as_before(tmp_path, capfd, monkeypatch):
    tasks = tmp_path / "tasks"
    tasks.write_text("noop\n")
    before = handled()
    for more, code in (([], 0), (["-w", "-1"], 2), (["--results", str(tasks) + "/x.jsonl"], 2)):
        assert shmqueue.main(argv=[str(tasks), "-w", "1", "--screen", "off", *more]) == code
        assert handled() == before
    monkeypatch.setattr(shmqueue, "choose_run", lambda name: name)
    assert shmqueue.main(argv=["--watch", "shmq-1-absent"]) == 0
    assert handled() == before


# Bad usage.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["TASKS", "--help"]),
        (["tasks", "more"], ["more"]),
        (["tasks", "--no-such-option"], ["--no-such-option"]),
        (["tasks", "--work", "2"], ["--work"]),
        (["tasks", "-w"], ["-w"]),
        (["tasks", "-w", "-1"], ["-1", "0"]),
        (["tasks", "-w", "two"], ["two"]),
        (["tasks", "-w", "1.5"], ["1.5"]),
        (["tasks", "-w", "1000000"], ["1000000", "4,096"]),
        (["tasks", "-w", "0", "--timeout", "1"], ["--timeout 1.0", "--workers 0"]),
        (["tasks", "--timeout", "0"], ["0", "0.001"]),
        (["tasks", "--timeout", "-1"], ["-1"]),
        (["tasks", "--timeout", "nan"], ["nan"]),
        (["tasks", "--timeout", "inf"], ["inf"]),
        (["tasks", "--timeout", "soon"], ["soon"]),
        (["tasks", "--retries", "-1"], ["-1", "0"]),
        (["tasks", "--retries", "x"], ["x"]),
        (["tasks", "--halt", "0"], ["0", "1"]),
        (["tasks", "--halt", "x"], ["x"]),
        (["tasks", "--max-tasks", "0"], ["0", "1"]),
        (["tasks", "--max-rss", "0"], ["0"]),
        (["tasks", "--max-rss", "-5M"], ["--max-rss"]),
        (["tasks", "--max-rss", "much"], ["much"]),
        (["tasks", "--max-rss", "5X"], ["5X"]),
        (["tasks", "--max-rss", "inf"], ["inf"]),
        (["tasks", "--max-rss", "nan"], ["nan"]),
        (["tasks", "--max-rss", ""], ["--max-rss"]),
        (["tasks", "--slots", "1"], ["1", "2"]),
        (["tasks", "--slots", "100000000000"], ["100000000000", "67,108,864"]),
        (["tasks", "--slots", "67108864", "--slot-size", "65536"], ["needed", "free", "--slots"]),
        (["tasks", "--slot-size", "32"], ["32", "64"]),
        (["tasks", "--slot-size", "100"], ["100", "8"]),
        (["tasks", "--slot-size", "1000000"], ["1000000", "65,536"]),
        (["tasks", "--batch", "0"], ["0", "1"]),
        (["tasks", "--start-method", "thread"], ["thread", "fork"]),
        (["tasks", "--screen", "maybe"], ["maybe", "auto"]),
        (["tasks", "--results", "out.txt"], ["out.txt", ".jsonl"]),
        (["tasks", "--results", ""], ["--results"]),
        (["tasks", "--log", ""], ["--log"]),
        (["tasks", "--handlers", ""], ["--handlers"]),
        (["tasks", "--call", ""], ["--call"]),
        (["tasks", "--results", "absent/out.jsonl"], ["absent/out.jsonl"]),
        (["tasks", "--results", "folder.jsonl"], ["folder.jsonl"]),
        (["tasks", "--resume"], ["--resume", "--results"]),
        (["tasks", "--resume", "--results", "-"], ["--resume", "--results"]),
        (["tasks", "--resume", "--results", "foreign.jsonl"], ["foreign.jsonl"]),
        (["tasks", "--resume", "--results", "foreign.sqlite"], ["foreign.sqlite"]),
        (["tasks", "--resume", "--results", "text.jsonl"], ["text.jsonl"]),
        (["tasks", "--watch", "shmq-1-absent"], ["shmq-1-absent"]),
        (["tasks", "--log", "absent/log"], ["absent/log"]),
        (["tasks", "--log", "."], ["--log"]),
        (["tasks", "--handlers", "absent.py"], ["absent.py"]),
        (["tasks", "--handlers", "absent_module"], ["absent_module"]),
        (["tasks", "--handlers", "broken.py"], ["broken.py", "SyntaxError"]),
        (["tasks", "--handlers", "raising.py"], ["raising.py", "on import"]),
        (["tasks", "--handlers", "leaving.py"], ["leaving.py", "SystemExit"]),
        (["tasks", "--handlers", "time.py"], ["time.py", "another module", "rename"]),
        (["tasks", "--log", "-"], ["--log -", "file"]),
        (["tasks", "--summary", "-"], ["--summary -", "file"]),
        (["tasks", "--grace", "1"], ["--grace", "--timeout"]),
        (["tasks", "--retry-delay", "1"], ["--retry-delay", "--retries"]),
        (["tasks", "--retry-on", "failed"], ["--retry-on", "--retries"]),
        (["tasks", "--call", "nameless.py:double", "--start-method", "spawn"], ["<lambda>", "def"]),
        (["tasks", "--handlers", "empty.py"], ["empty.py", "no public functions"]),
        (["tasks", "--handlers", "json.py"], ["json.py", "another module", "rename"]),
        (["tasks", "--call", "own.py"], ["own.py", "FUNCTION"]),
        (["tasks", "--call", "own.py:absent"], ["absent", "good"]),
        (["tasks", "--call", "own.py:gooo"], ["gooo", "good"]),
        (["tasks", "--call", "absent.py:good"], ["absent.py"]),
        (["tasks", "--call", "own.py:"], ["own.py:"]),
        (["tasks", "--call", ":good"], [":good"]),
        (["tasks", "--shell", "--handlers", "own.py"], ["--shell", "--handlers"]),
        (["tasks", "--shell", "--call", "own.py:good"], ["--shell", "--call"]),
        (["tasks", "--handlers", "own.py", "--call", "own.py:good"], ["--handlers", "--call"]),
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_exit_2(cli, request, arguments, words):
    cli.file("tasks", "noop\n")
    cli.file("own.py", "def good(payload): return None\n")
    cli.file("broken.py", "def broken(:\n")
    cli.file("raising.py", "raise RuntimeError('on import')\n")
    cli.file("leaving.py", "import sys; sys.exit(0)\n")
    cli.file("empty.py", "x = 1\n")
    cli.file("nameless.py", "double = lambda payload: payload * 2\n")
    cli.file("json.py", "def good(payload): return None\n")
    cli.file("foreign.jsonl", '{"other": 1}\n')
    cli.file("foreign.sqlite", "no database, for all its length" * 10)
    cli.file("text.jsonl", "no JSON\nat all\n")
    (cli.folder / "folder.jsonl").mkdir()
    before = sorted(path.name for path in cli.folder.iterdir())
    error = usage_error(cli.run(*arguments))
    assert [word for word in words if word not in error] == [], error
    left = {path.name for path in cli.folder.iterdir()} - set(before) - {"__pycache__"}
    assert left == set(), "nothing is made before the usage is known to be good"


@pytest.mark.parametrize("inner", ["1 / 0", "import absent", "json.loads('')", "raise SystemExit"])
def test_a_file_that_cannot_be_imported_says_in_which_line(cli, inner):
    cli.file("inner.py", f"import json\n\n{inner}\n")
    cli.file("outer.py", "import inner\n\n\ndef good(payload): return None\n")
    tasks = cli.file("tasks", "good\n")
    for where in ("inner.py", "inner", "outer.py", "outer"):
        assert usage_error(cli.run(tasks, "--handlers", where)).endswith("(inner.py:3 in <module>)\n")
    for missing in ("absent.py", "absent"):
        assert usage_error(cli.run(tasks, "--handlers", missing)).endswith("No module named 'absent'\n")


@pytest.mark.parametrize("where", ["own.py", "own"])
def test_a_working_directory_that_was_deleted(cli, where):
    tasks, gone = cli.file("tasks", "good\n"), cli.folder / "gone"
    gone.mkdir()
    run = cli.finish(cli.start(tasks, "--handlers", where, cwd=gone, preexec_fn=gone.rmdir))
    assert f"'{where}' cannot be imported: FileNotFoundError" in usage_error(run)


@pytest.mark.parametrize("method", METHODS)
def test_too_few_descriptors_or_too_small_files_are_said_with_a_remedy(cli, method):
    tasks = cli.file("tasks", "noop\n")
    for limit, size, words in (
        (resource.RLIMIT_NOFILE, 40, [os.strerror(errno.EMFILE), "-w", "ulimit -n"]),
        (resource.RLIMIT_FSIZE, 4096, ["File too large", "--slots", "ulimit -f"]),
    ):
        limited = functools.partial(resource.setrlimit, limit, (size, size))
        run = cli.finish(cli.start(tasks, "-w", "40", "--start-method", method, preexec_fn=limited))
        last = run.err.splitlines()[-1]  # Python's forkserver may have said more
        assert (run.code, run.out) == (2, ""), run
        assert re.match(USAGE_ERROR, last), run
        assert [word for word in words if word not in last] == [], last


def test_max_rss_without_psutil_is_exit_2(cli):
    cli.file("psutil.py", "raise ImportError('blocked')\n")
    cli.file("tasks", "noop\n")
    environment = {**os.environ, "PYTHONPATH": str(cli.folder)}
    error = usage_error(cli.run("tasks", "--max-rss", "1G", env=environment))
    assert "psutil" in error
    run = cli.run("tasks", "-w", "1", "--screen", "off", env=environment)
    assert (run.code, summary(run.out)["ok"]) == (0, 1)


def test_what_functions_start_does_not_read_the_tasks(cli):
    code = "import os\ndef standard_input(payload):\n    return os.readlink('/proc/self/fd/0')\n"
    run = cli.run("-", "--handlers", cli.file("own.py", code), *STREAMED, stdin=b"standard_input\n")
    assert run.values == ["/dev/null"]


def test_processes_that_functions_started_end_with_the_run(cli):
    run = cli.tasks("sleep 600 >/dev/null 2>&1 & echo $!\n" * 3, "--shell")
    pids = [int(value) for value in run.values]
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_results_that_existed_are_kept_when_the_usage_is_bad(cli):
    cli.file("out.jsonl", "kept\n")
    for arguments in (["absent"], ["tasks", "-w", "-1"], ["tasks", "--log", "absent/log"]):
        cli.file("tasks", "noop\n")
        usage_error(cli.run(*arguments, "--results", "out.jsonl"))
        assert pathlib.Path(cli.folder, "out.jsonl").read_text() == "kept\n", arguments


def test_the_summary_names_the_place_in_the_users_code(cli):
    """And not one of the standard library, if there is one of the user's."""
    cli.file("place.py", "import json\n\n\ndef parse(text: str):\n    return json.loads(text)\n")
    run = cli.tasks("parse {\n", "--handlers", "place.py", "--screen", "off")
    assert run.err.splitlines()[0].endswith("(place.py:5 in parse)")
    deep = cli.run(cli.file("tasks", "1 2\n"), "--call", "json:loads")
    assert re.search(r"\(decoder\.py:\d+ in \w+\)$", deep.out.splitlines()[0])


def test_modules_that_python_has_frozen_are_not_the_users_code(cli):
    """From Python 3.11 on, os and posixpath are among them: their frames are not in files."""
    cli.file("place.py", "import os\n\n\ndef join(text: str):\n    return os.path.join(text, 3)\n")
    run = cli.tasks("join a\n", "--handlers", "place.py")
    assert run.err.splitlines()[0].endswith("(place.py:5 in join)")


def test_the_rate_is_of_what_was_done():
    counts = {"ok": 8, "failed": 2, "timeout": 0, "crashed": 0, "cancelled": 90}
    more = {"kinds": {}, "failures": [], "busy": 0.0, "seconds": 2.0, "workers": [{}], "problem": "", "left_out": 0}
    (*_, last) = shmqueue.summary_lines({**counts, **more})
    assert last == ("100 tasks: 8 ok, 2 failed, 0 timed out, 0 crashed, 90 cancelled; 2.00 s, 5 tasks/s, 1 worker")


def test_main_runs_beside_the_main_thread_too(cli):
    """Where no signal can be handled."""
    codes = []
    arguments = [cli.file("tasks", "echo x\n" * 10), "--screen", "off", "--results", str(cli.folder / "out.jsonl")]
    thread = threading.Thread(target=lambda: codes.append(shmqueue.main(None, arguments)))
    thread.start()
    thread.join(60)
    assert codes == [0]
    assert len((cli.folder / "out.jsonl").read_text().splitlines()) == 10


def test_a_run_that_an_error_ends_has_its_summary(cli, capfd, monkeypatch):
    """As if this library had a mistake in it."""

    def mistaken(ledger, *arguments):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(shmqueue.Ledger, "complete", mistaken)
    assert shmqueue.main(None, [cli.file("tasks", "noop\n" * 10), "-w", "1", "--screen", "off"]) == 1
    out, err = capfd.readouterr()
    assert "shmqueue: this run has ended early: ZeroDivisionError: a mistake\n" in out
    assert (summary(out)["crashed"], err) == (10, "")


@pytest.mark.promise("G9")
def test_what_holds_up_a_run_is_said_once_where_no_screen_says_it(cli):
    code = "import sys, shmqueue\nshmqueue.Progress.SHARE_SECONDS = 0.05\nsys.exit(shmqueue.main())\n"
    tasks = cli.file("tasks", "kill -STOP $PPID; sleep 0.01\ntrue\n")  # the parent of the command is the worker
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = (tasks, "--shell", "-w", "1", "--screen", "off")
    run = cli.start(*arguments, script=cli.file("tool.py", code), env=environment)
    line = run.stderr.readline()
    time.sleep(1)
    for pid in workers_of(run):
        os.kill(pid, signal.SIGCONT)
    rest = cli.finish(run)
    assert (line, rest.code) == (b"shmqueue: waiting: worker 0 is stopped\n", 0)
    assert "waiting" not in rest.err


@pytest.mark.parametrize("order", ["sleepy=0.3,upper=60", "upper=60,sleepy=0.3"])
def test_each_function_has_a_limit_of_its_own(cli, tmp_path, order):
    (tmp_path / "own.py").write_text(
        "import time\ndef sleepy(s): time.sleep(float(s))\ndef upper(s: str): return s.upper()\n"
    )
    run = cli.tasks(
        "sleepy 30\nupper a\n",
        "--handlers",
        str(tmp_path / "own.py"),
        "--timeout",
        order,
        "--results",
        str(tmp_path / "out.jsonl"),
        "--print",
    )
    assert run.code == 1
    assert "A" in run.out.splitlines()
    assert "ran longer than 0.3 s" in run.out + run.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--timeout", "sleep=5,ecko=6"), "timeout: LookupError: no function 'ecko'; nearest: echo"),
        (("--timeout", "echo=x"), "--timeout: invalid seconds value: 'echo=x'"),
        (("--timeout", "echo=0"), "--timeout 0.0: must be from"),
        (("--shell", "--timeout", "echo=1"), "--timeout NAME=S: needs functions with names (--handlers)"),
    ],
)
def test_limits_by_function_that_cannot_be_right_are_refused(cli, arguments, says):
    run = cli.tasks("echo a\n", *arguments)
    assert (run.code, run.out) == (2, "")
    assert says in run.err
    assert run.err.count("\n") == 1
