"""What a run leaves: results in four forms, --resume after any ending, the summary, and the log."""

import collections
import contextlib
import csv
import functools
import json
import os
import random
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

import shmqueue
from tests.command.test_cli import FORMATS
from tests.helpers import (
    HANG,
    METHODS,
    ROOT,
    has_heard,
    is_running,
    rows_of,
    summary,
    usage_error,
    wait_until,
    workers_of,
)

FIELDS = shmqueue.TaskResult._fields
HANDLERS = """
import os, sys, time

def note(payload: str) -> str:
    with open("notes", "a") as file:
        file.write(payload.partition(" ")[0] + "\\n")
    return payload.upper()

def slow(payload: str) -> None:
    note(payload)
    time.sleep(0.005)

def wait(payload: str) -> None:
    note(payload)
    while not os.path.exists("go"):
        time.sleep(0.005)

def fail(payload):
    raise ValueError(os.fsdecode(payload))

def fail_once(payload: str) -> None:
    if not os.path.exists("once " + payload):
        open("once " + payload, "w").close()
        raise ValueError(payload)

def bytes_of(payload: bytes) -> bytes:
    return payload

def nothing(payload):
    return None

def die(payload):
    os._exit(3)

def show(payload: str) -> None:
    print(payload)
    print("more of", payload, file=sys.stderr)

def show_part(payload: str) -> None:
    print(payload, end="")

def show_bytes(payload: bytes) -> None:
    sys.stdout.buffer.write(payload + b"\\n")
    sys.stdout.flush()

def show_lines(payload: str) -> None:
    for i in range(20):
        print(payload, i)
        time.sleep(0.001)

def %s1(payload):
    return b"1"

def %s2(payload):
    return b"2"
""" % (("a_name_" * 10,) * 2)


@pytest.fixture
def handlers(cli):
    return cli.file("handlers.py", HANDLERS)


def notes(cli):
    """How often each payload began."""
    path = cli.folder / "notes"
    return collections.Counter(path.read_text().split() if path.exists() else ())


def oks(path):
    """How often the results hold each payload as ok."""
    return collections.Counter(row["payload"].partition(" ")[0] for row in rows_of(path) if row["status"] == "ok")


def command_line_rows(path):
    """A SQLite file as the command line of SQLite sees it."""
    done = subprocess.run(["sqlite3", "-json", path, "SELECT * FROM results"], capture_output=True, check=True)  # noqa: S607
    return json.loads(done.stdout)


# What is written.

ODD = {
    "plain": b"a b",
    "empty": b"",
    "quotes": b'"a" \'b\' """',
    "commas": b",a,,b;\t",
    "invalid": b"\xff\xfe\xc3(",
    "surrogates": b"\xed\xa0\x80\xed\xb2\x80",
    "nul": b"\0a\0",
    "lone returns": b"a\rb\rc",
    "returns": b"\r\r\r x",
    "unicode": "ä☃𝄞\u2028\u2029\u0085\ufffd\ufeff".encode(),
    "controls": bytes(c for c in range(1, 32) if c not in b"\n") + b"\x7f.",
    "spaces": b"  a  ",
    "backslashes": rb"\n\u0041\\",
    "formula": b"=1+1",
    "long": b"x" * 140_000,
    "long and odd": b'"\xff,\r' * 10_000 + b".",
}
ROWS = {"newlines": b"a\nb\r\nc\n", "only a newline": b"\n", "quote and newline": b'"\n"\n', "return": b"a\r"}


def said(error, text):
    """An error of this text; what is no text in it is escaped."""
    return f"{error}: {text}".encode("utf-8", "backslashreplace").decode() if text else error


@pytest.fixture
def wide_fields():
    """Have the csv module read fields of any size, as a user has who reads such a file."""
    before = csv.field_size_limit(1 << 30)
    yield
    csv.field_size_limit(before)


@pytest.fixture
def odd_tasks(cli):
    """All of them as rows of a query, which can hold newlines."""
    path = cli.folder / "odd.db"
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE t (name, payload)")
        base.executemany("INSERT INTO t VALUES ('bytes_of', ?)", [(data,) for data in (*ODD.values(), *ROWS.values())])
        base.executemany("INSERT INTO t VALUES ('fail', ?)", [(data,) for data in ODD.values() if len(data) < 100])
        base.execute("INSERT INTO t VALUES ('nothing', 'x')")
    return (path, "--query", "SELECT name, payload FROM t", "-w", "2", "--screen", "off")


@pytest.mark.usefixtures("wide_fields")
@pytest.mark.parametrize("name", [*FORMATS, "-"])
def test_any_bytes_come_back_from_every_form_and_are_known_to_resume(cli, handlers, odd_tasks, name):
    run = cli.run(*odd_tasks, "--handlers", handlers, "--results", name)
    assert run.code == 1, run.err
    rows = run.results if name == "-" else rows_of(cli.folder / name)
    assert {tuple(row) for row in rows} == {FIELDS}
    assert sorted(int(row["tsk_id"]) for row in rows) == list(range(1, len(rows) + 1))
    rows.sort(key=lambda row: int(row["tsk_id"]))
    texts = [os.fsdecode(data) for data in (*ODD.values(), *ROWS.values())]
    good = [row for row in rows if row["function"] == "bytes_of"]
    assert [row["payload"] for row in good] == texts
    assert [row["value"] for row in good] == texts
    assert {row["status"] for row in good} == {"ok"}
    bad = [row for row in rows if row["function"] == "fail"]
    short = [os.fsdecode(data) for data in ODD.values() if len(data) < 100]
    assert [(row["payload"], row["error"], row["status"]) for row in bad] == [
        (text, said("ValueError", text), "failed") for text in short
    ]
    assert all(row["value"] in (None, "") for row in bad)
    (none,) = [row for row in rows if row["function"] == "nothing"]
    assert none["value"] in (None, "")
    assert {int(row["attempts"]) for row in rows} == {1}
    assert {int(row["worker"]) for row in rows} <= {0, 1}
    assert all(float(row["seconds"]) >= 0 for row in rows)
    if name != "-":
        again = cli.run(*odd_tasks, "--handlers", handlers, "--results", name, "--resume")
        assert again.code == 1, again.err
        assert f"{len(good) + 1} tasks left out" in again.out
        assert (summary(again.out)["failed"], summary(again.out)["ok"]) == (len(bad), 0)
        assert len(rows_of(cli.folder / name)) == len(rows) + len(bad)


def test_errors_that_are_not_utf_8_are_written(cli):
    """What a shell command complains of is bytes."""
    for name in (*FORMATS, "-"):
        run = cli.tasks(b"printf '\\377\\0\\n' >&2; exit 3\ntrue\n", "--shell", "--results", name)
        assert run.code == 1, run.err
        rows = run.results if name == "-" else rows_of(cli.folder / name)
        (error,) = [row["error"] for row in rows if row["error"]]
        assert error == "exit code 3: \\xff\0"
        assert "Traceback" not in run.err


@pytest.mark.parametrize("resume", [(), ("--resume",)])
@pytest.mark.parametrize("name", FORMATS)
def test_names_that_are_not_utf_8_are_written(cli, name, resume):
    run = cli.tasks(b"\xff\xfe a\necho b\n", "--results", name, *resume)
    assert (run.code, "Traceback" in run.err) == (1, False), run.err
    assert sorted(row["function"] for row in rows_of(cli.folder / name)) == ["echo", "\udcff\udcfe"]


def test_numbers_and_none_keep_their_kind(cli, handlers):
    tasks = "note a\nfail b\ndie\n"
    for name in ("out.jsonl", "out.sqlite"):
        cli.tasks(tasks, "--handlers", handlers, "--results", name)
        rows = {row["function"]: row for row in rows_of(cli.folder / name)}
        for row in rows.values():
            kinds = [type(row[field]) for field in ("tsk_id", "attempts", "worker", "seconds")]
            assert kinds == [int, int, int, float]
        assert (rows["note"]["value"], rows["note"]["error"] or None) == ("A", None)
        assert (rows["fail"]["value"], rows["die"]["value"]) == (None, None)


def test_the_command_line_of_sqlite_reads_the_results(cli, handlers):
    path = cli.folder / "out.sqlite"
    cli.tasks("note ä☃\nfail \"b',\nnote c\n", "--handlers", handlers, "--results", path)
    rows = sorted(command_line_rows(path), key=lambda row: row["tsk_id"])
    assert [(row["function"], row["payload"], row["status"], row["value"]) for row in rows] == [
        ("note", "ä☃", "ok", "Ä☃"), ("fail", "\"b',", "failed", None), ("note", "c", "ok", "C"),
    ]  # fmt: skip


def test_a_csv_file_has_one_header_and_ends_with_a_newline(cli):
    path = cli.folder / "out.csv"
    for resume in ((), ("--resume",), ("--resume",)):
        cli.tasks("echo a\nsha256 absent\n", "--results", path, *resume)
    lines = path.read_text().split("\n")
    assert lines[0].split(",") == list(FIELDS)
    assert lines.count(lines[0]) == 1
    assert lines[-1] == ""
    assert len(lines) == 1 + 2 + 2 + 1, "the failed one is tried each time"


@pytest.mark.parametrize("name", FORMATS)
def test_results_are_there_while_the_run_goes_on(cli, name):
    """For any reader, who does not stand in the way of the writer."""
    path = cli.folder / name
    process = cli.start("-", "--results", path, "-w", "2", "--screen", "off")
    for count in range(1, 4):
        process.stdin.write(b"echo a%d\n" % count)

        def seen(count=count):
            with contextlib.suppress(FileNotFoundError, sqlite3.OperationalError):
                return len(rows_of(path)) == count
            return False

        assert wait_until(seen), count
    if name == "out.sqlite":
        assert len(command_line_rows(path)) == 3
    assert cli.finish(process).code == 0
    assert sorted(row["value"] for row in rows_of(path)) == ["a1", "a2", "a3"]


@pytest.mark.long
def test_a_reader_of_the_database_who_takes_long_loses_no_results(cli):
    """Somebody looks at them in another program, and leaves it open."""
    path = cli.folder / "out.sqlite"
    process = cli.start("-", "--results", path, "-w", "1", "--screen", "off")
    process.stdin.write(b"echo a\n")

    def is_recorded():
        with contextlib.suppress(sqlite3.OperationalError):  # the file is there before its table
            return path.exists() and len(rows_of(path)) == 1
        return False

    assert wait_until(is_recorded)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM results").fetchone() == (1,)
        process.stdin.write(b"echo b\n")
        time.sleep(6.0)  # SQLite itself gives up after five seconds
        process.stdin.write(b"echo c\n")
        time.sleep(0.3)
    run = cli.finish(process, b"echo d\n")
    assert run.code == 0, run.out
    assert sorted(row["value"] for row in rows_of(path)) == ["a", "b", "c", "d"]


# Resuming.


@pytest.mark.parametrize("name", FORMATS)
def test_duplicates_are_left_out_as_often_as_they_are_recorded(cli, handlers, name):
    cli.tasks("note a\nnote a\nnote b\n", "--handlers", handlers, "--results", name)
    run = cli.tasks("note a\n" * 5 + "note b\nnote c\n", "--handlers", handlers, "--results", name, "--resume")
    assert (run.code, summary(run.out)["ok"]) == (0, 4)
    assert "3 tasks left out" in run.out
    assert notes(cli) == oks(cli.folder / name) == {"a": 5, "b": 1, "c": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_not_ok_is_done_again_and_its_old_record_is_kept(cli, handlers, name):
    tasks = "fail_once a\nnote b\nfail c\n"
    for failed, ok, left_out in ((2, 1, 0), (1, 1, 1), (1, 0, 2)):
        run = cli.tasks(tasks, "--handlers", handlers, "--results", name, "--resume")
        assert (run.code, summary(run.out)["failed"], summary(run.out)["ok"]) == (1, failed, ok)
        assert (f"{left_out} task{'s' * (left_out != 1)} left out" in run.out) == bool(left_out)
    found = collections.Counter((row["function"], row["status"]) for row in rows_of(cli.folder / name))
    assert found == {("fail_once", "failed"): 1, ("fail_once", "ok"): 1, ("note", "ok"): 1, ("fail", "failed"): 3}


def test_resume_by_content_of_call_shell_and_query(cli, handlers):
    """The same task is the same, wherever it comes from; another function is another task."""
    call = ("--call", "handlers.py:note", "--results", "out.jsonl", "--resume")
    assert summary(cli.tasks("a 1\nb\n", *call).out)["ok"] == 2
    again = cli.tasks("b\na 1\nc\n", *call)
    assert ("2 tasks left out" in again.out, summary(again.out)["ok"]) == (True, 1)
    named = cli.tasks("note c\nnote d\nslow c\n", "--handlers", handlers, "--results", "out.jsonl", "--resume")
    assert ("1 task left out" in named.out, summary(named.out)["ok"]) == (True, 2)
    with contextlib.closing(sqlite3.connect(cli.folder / "tasks.db")) as base, base:
        base.execute("CREATE TABLE t AS SELECT 'note' AS f, 'a 1' AS p UNION ALL SELECT 'note', 'e'")
    rows = cli.run(
        "tasks.db", "--query", "SELECT f, p FROM t", "--handlers", handlers, "--results", "out.jsonl", "--resume",
        "--screen", "off", "-w", "1",
    )  # fmt: skip
    assert ("1 task left out" in rows.out, summary(rows.out)["ok"]) == (True, 1)
    assert notes(cli) == {"a": 1, "b": 1, "c": 2, "d": 1, "e": 1}


@pytest.mark.promise("L26")
def test_resume_does_not_notice_a_changed_command(cli):
    options = ("--results", "out.jsonl", "--resume", "--command")
    assert cli.tasks("a\nb\n", *options, "echo old").code == 0
    changed = cli.tasks("b\nc\n", *options, "echo new")
    assert (changed.code, "1 task left out" in changed.err) == (0, True)
    assert {row["value"] for row in rows_of(cli.folder / "out.jsonl")} == {"old a\n", "old b\n", "new c\n"}


@pytest.mark.parametrize("name", FORMATS)
def test_functions_whose_long_names_begin_alike_are_told_apart(cli, handlers, name):
    long = "a_name_" * 10
    cli.tasks(f"{long}1 x\n", "--handlers", handlers, "--results", name)
    run = cli.tasks(f"{long}2 x\n{long}1 x\n", "--handlers", handlers, "--results", name, "--resume")
    assert (run.code, summary(run.out).get("ok")) == (0, 1), run
    assert sorted(row["value"] for row in rows_of(cli.folder / name)) == ["1", "2"]


def read_back(path):
    """What --resume knows of a file: how many tasks it holds as ok. It cuts off the rest, once it begins."""
    before = path.read_bytes()
    results = shmqueue.results_format(str(path))(str(path), True)
    assert path.suffix == ".sqlite" or path.read_bytes() == before
    results.begin()
    results.end()
    return +results.done


LAST = {"plain": b"last", "odd": b'"la,st"\xff\n"",\n,"\r\n,ok,"', "like a record": b"\n3,echo,x,ok,x,,1,0,0.5\n"}


def write_records(path, *payloads, resume=False):
    results = shmqueue.results_format(str(path))(str(path), resume)
    results.begin()
    for number, payload in enumerate(payloads, 1):
        results.write(shmqueue.TaskResult(number, "echo", payload, "ok", payload, "", 1, 0, 0.5))
    results.end()


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("name", FORMATS[:2])
def test_a_last_record_torn_at_any_byte_is_cut_off(tmp_path, name, last):
    """As a kill or a full disk leaves it; all before it is kept, and what is appended is read back."""
    path, payloads = tmp_path / name, [b"first", LAST[last], b'"', LAST[last]]
    write_records(path, *payloads[:-1])
    start = path.stat().st_size
    write_records(path, payloads[-1], resume=True)
    data = path.read_bytes()
    assert len(rows_of(path)) == 4
    kept = collections.Counter(shmqueue.task_digest("echo", payload) for payload in payloads[:-1])
    for end in range(start, len(data)):
        path.write_bytes(data[:end])
        assert read_back(path) == kept, data[start:end]
        assert path.read_bytes() == data[:start], data[start:end]
        write_records(path, payloads[-1], resume=True)
        assert [row["payload"] for row in rows_of(path)] == [os.fsdecode(payload) for payload in payloads]


@pytest.mark.parametrize("name", FORMATS[:2])
def test_a_file_torn_at_any_byte_keeps_its_whole_records(tmp_path, name):
    """The header and the first record, too; a file of nothing is begun anew."""
    path = tmp_path / name
    write_records(path, b"a", b"b")
    data = path.read_bytes()
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        count = sum(read_back(path).values())
        assert count == max(0, data[:end].count(b"\n") - (name == "out.csv"))
        write_records(path, b"c", resume=True)
        assert len(rows_of(path)) == count + 1
        assert {tuple(row) for row in rows_of(path)} == {FIELDS}


def test_a_torn_database_is_refused_in_one_line_or_used_and_never_made_worse(cli):
    """SQLite's own journal sees to a kill; what is torn all the same is damaged, and left alone."""
    path = cli.folder / "out.sqlite"
    write_records(path, *(b"%d %s" % (i, b"x" * 300) for i in range(60)))
    data = path.read_bytes()
    for end in [*range(1, 101, 33), 2048, *range(4096, len(data), 4096), len(data) - 1, len(data) - 200]:
        path.write_bytes(data[:end])
        try:
            count = sum(read_back(path).values())
        except shmqueue.UsageError:
            assert path.read_bytes() == data[:end]
        else:
            assert 0 <= count <= 60
    path.write_bytes(data[: len(data) // 2])
    usage_error(cli.run(cli.file("tasks", "echo a\n"), "--results", path, "--resume", "-w", "1"))


def test_a_killed_writers_journal_is_rolled_back(tmp_path):
    """The database of a run that was killed in the midst of a transaction which had begun to reach the disk."""
    path = tmp_path / "out.sqlite"
    write_records(path, b"kept")
    child = f"""if True:
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        import shmqueue
        results = shmqueue.results_format({str(path)!r})({str(path)!r}, True)
        results.begin()
        for i in range(20_000):
            results.write(shmqueue.TaskResult(i, "echo", b"x" * 500, "ok", b"x" * 500, "", 1, 0, 0.5))
        os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == -signal.SIGKILL
    done = read_back(path)
    assert done[shmqueue.task_digest("echo", b"kept")] == 1
    assert len(rows_of(path)) == sum(done.values())


@pytest.mark.parametrize("name", FORMATS)
def test_foreign_files_are_not_resumed_and_stay_as_they_are(cli, name):
    """Somebody mistook the file."""
    path = cli.folder / name
    if name == "out.sqlite":
        with contextlib.closing(sqlite3.connect(path)) as base, base:
            base.execute("CREATE TABLE results (mine)")
            base.execute("INSERT INTO results VALUES (1)")
    else:
        path.write_text('{"mine": 1}\n' if name == "out.jsonl" else "mine,yours\n1,2\n3,4\n")
    before = path.read_bytes()
    error = usage_error(cli.run(cli.file("tasks", "echo a\n"), "--results", path, "--resume", "-w", "1"))
    assert name in error
    assert path.read_bytes() == before


def test_a_quote_in_the_midst_of_a_field_is_part_of_it(tmp_path):
    path = tmp_path / "out.csv"
    write_records(path, *([b"1"] * 3))
    path.write_bytes(data := path.read_bytes().replace(b"2,echo", b'2,e"cho').replace(b"0.5", b'0.5"'))
    assert read_back(path) == {shmqueue.task_digest("echo", b"1"): 2, shmqueue.task_digest('e"cho', b"1"): 1}
    assert path.read_bytes() == data


GOOD = {"tsk_id": 1, "function": "echo", "payload": "1", "status": "ok"}


@pytest.mark.parametrize(
    "line", ["xx", "", "[]", "1", "null", "{}", '"', "[" * 100_000]
    + [json.dumps({**GOOD, name: value}) for name in ("function", "payload", "status") for value in (None, 1, [])]
    + [json.dumps({**GOOD, "status": "OK"})],
    ids=lambda line: line[:70],
)  # fmt: skip
def test_a_line_that_is_no_record_is_said_by_its_number(tmp_path, line):
    path = tmp_path / "out.jsonl"
    path.write_text(data := f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(shmqueue.UsageError, match="cannot be used: what begins in line 2 is not a record"):
        read_back(path)
    assert path.read_text() == data


@pytest.mark.parametrize("name", FORMATS)
def test_long_payloads_are_known_to_resume(tmp_path, name):
    """The csv module of Python takes no field of more than 128 KiB unless it is told to."""
    csv.field_size_limit(1 << 17)
    path = tmp_path / name
    write_records(path, b"x" * 200_000)
    assert read_back(path) == {shmqueue.task_digest("echo", b"x" * 200_000): 1}


def test_a_last_line_that_no_kill_has_left_is_not_cut_off(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("notes of mine")
    with pytest.raises(shmqueue.UsageError, match="line 1 is not a record"):
        read_back(path)
    assert path.read_text() == "notes of mine"


@pytest.mark.parametrize(
    "line", ["1,echo", "1,echo,1,ok,1,,1,0,0.5,more", "1,echo,1,OK,1,,1,0,0.5", '1,"echo"x,1,ok,,,,,0', ""]
)
def test_a_row_that_is_no_record_is_said_by_its_line(tmp_path, line):
    path = tmp_path / "out.csv"
    write_records(path, b"of\r\ntwo lines")
    data = path.read_bytes() + line.encode() + b"\r\n4,echo,1,ok,1,,1,0,0.5\r\n"
    path.write_bytes(data)
    with pytest.raises(shmqueue.UsageError, match="line 5 is not a record"):
        read_back(path)
    assert path.read_bytes() == data


def test_a_row_of_the_table_that_is_no_record_is_said_by_its_number(tmp_path):
    path = tmp_path / "out.sqlite"
    write_records(path, b"1", b"2", b"3")
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("UPDATE results SET payload = NULL WHERE rowid = 2")
    with pytest.raises(shmqueue.UsageError, match="row 2 of its table results is not a record"):
        read_back(path)


def not_a_database(path):
    path.write_text("no database, for all its length" * 10)


def locked(path):
    path.write_bytes(b"")
    base = sqlite3.connect(path)
    base.executescript("CREATE TABLE mine (x); BEGIN IMMEDIATE")
    return base


def a_view(path):
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE VIEW results AS SELECT 1 AS x")


@pytest.mark.parametrize("make", [not_a_database, locked, a_view])
def test_a_database_that_cannot_be_used_is_exit_2_and_leaves_nothing(cli, make):
    path = cli.folder / "g.sqlite"
    with contextlib.ExitStack() as stack:
        if made := make(path):
            stack.callback(made.close)
        error = usage_error(cli.run(cli.file("tasks", "noop\n"), "--results", path, "-w", "1"))
    assert "--results" in error


@pytest.mark.parametrize("name", FORMATS)
def test_results_are_kept_when_the_workers_cannot_start(cli, monkeypatch, name):
    """Unusable ones are found before that."""
    path, tasks = cli.folder / name, cli.file("tasks", "noop\n")

    def fail(*arguments, **options):
        raise ValueError("no room")

    monkeypatch.setattr(shmqueue, "Supervisor", fail)
    write_records(path, b"1", b"2")
    for more in ((), ("--resume",)):
        assert shmqueue.main(argv=[tasks, "--results", str(path), *more]) == 2
        assert len(rows_of(path)) == 2
    path.write_text("no database, for all its length" * 10)
    monkeypatch.setattr(shmqueue, "Supervisor", None)
    assert shmqueue.main(argv=[tasks, "--results", str(path), "--resume"]) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_other_tables_and_old_results_without_resume(cli, name):
    """A new run begins its results anew, and nothing else in the file."""
    path = cli.folder / name
    if name == "out.sqlite":
        with contextlib.closing(sqlite3.connect(path)) as base, base:
            base.execute("CREATE TABLE mine (x)")
    for payload in ("a", "b"):
        assert cli.tasks(f"echo {payload}\n", "--results", name).code == 0
    assert [row["payload"] for row in rows_of(path)] == ["b"]
    if name == "out.sqlite":
        with contextlib.closing(sqlite3.connect(path)) as base:
            assert base.execute("SELECT count(*) FROM mine").fetchone() == (0,)


def kill_all(process, workers):
    """The supervisor, and then its workers' groups, as a machine that runs out of memory might."""
    process.kill()
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not any(map(is_running, workers)))


@pytest.mark.parametrize("name", FORMATS)
def test_resume_after_kill_9_of_everything_at_random_instants(cli, handlers, name):
    """In the end every task is ok exactly once, and none that was recorded ran again."""
    path, count, chance = cli.folder / name, 1000, random.Random(name)  # noqa: S311
    names = [f"{i}" for i in range(count)]
    tasks = cli.file("tasks", "".join(f"slow {n}\n" if int(n) % 7 else f"note {n} {'x' * 300}\n" for n in names))
    arguments = (tasks, "--handlers", handlers, "--results", path, "--resume", "-w", "2", "--screen", "off")
    kills = 0
    for _ in range(5):
        begun, recorded = notes(cli), read_only_oks(path) if path.exists() else collections.Counter()
        process = cli.start(*arguments)
        assert wait_until(lambda begun=begun, process=process: notes(cli) != begun or process.poll() is not None)
        time.sleep(chance.random() * 0.5)
        workers = workers_of(process)
        if process.poll() is not None:
            break
        kill_all(process, workers)
        kills += 1
        assert not [n for n, times in (notes(cli) - begun).items() if recorded[n]], "it was recorded, and ran again"
        assert +(recorded - read_only_oks(path)) == {}, "what was recorded is still there"
    run = cli.run(*arguments)
    assert (run.code, kills >= 1) == (0, True), run.out + run.err  # how many depends on how busy the machine is
    assert oks(path) == dict.fromkeys(names, 1)
    begun = notes(cli)
    assert sorted(begun, key=int) == names
    assert sum(begun.values()) >= count
    assert "no tasks" in cli.run(*arguments).out
    assert notes(cli) == begun


def read_only_oks(path):
    """As `oks`, from a copy: what a kill has left of the last record is left out, as --resume does."""
    copy = path.with_name("copy" + path.suffix)
    for file in path.parent.glob(path.name + "*"):
        copy.with_name(copy.name + file.name[len(path.name) :]).write_bytes(file.read_bytes())
    results = shmqueue.results_format(str(copy))(str(copy), True)
    results.begin()
    results.end()
    found = oks(copy)
    for file in path.parent.glob(copy.name + "*"):
        file.unlink()
    return found


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupted", "terminated"])
def test_resume_after_a_signal_runs_the_rest_once(cli, handlers, name, number):
    path, names = cli.folder / name, [f"{i}" for i in range(600)]
    tasks = cli.file("tasks", "".join(f"{'slow' if int(n) < 100 else 'wait'} {n}\n" for n in names))
    arguments = (tasks, "--handlers", handlers, "--results", path, "--resume", "-w", "2", "--screen", "off")
    process = cli.start(*arguments)
    assert wait_until(lambda: len(notes(cli)) >= 20)
    process.send_signal(number)
    assert wait_until(lambda: has_heard(process.pid, number))
    cli.file("go", "")
    assert cli.finish(process).code == 128 + number
    rows = collections.Counter(row["status"] for row in rows_of(path))
    assert sum(rows.values()) == len(names), "each has its record"
    recorded, begun = oks(path), notes(cli)
    run = cli.run(*arguments)
    assert run.code == 0
    assert f"{rows['ok']} tasks left out" in run.out
    assert oks(path) == dict.fromkeys(names, 1)
    again = notes(cli) - begun
    assert not set(again) & set(recorded)
    if number == signal.SIGINT:
        assert notes(cli) == dict.fromkeys(names, 1), "what had begun was finished"


# What cannot be written.


@pytest.mark.parametrize("name", FORMATS)
def test_places_that_cannot_be_written_are_exit_2_before_anything_runs(cli, handlers, name):
    tasks = cli.file("tasks", "note a\n")
    suffix = os.path.splitext(name)[1]
    (cli.folder / f"folder{suffix}").mkdir()
    places = (f"folder{suffix}", f"absent/{name}", f"tasks/{name}", f"/proc/absent{suffix}", "n" * 300 + suffix)
    for number, path in enumerate(places):
        resume = ("--resume",) if number % 2 else ()
        error = usage_error(cli.run(tasks, "--handlers", handlers, "--results", path, "-w", "1", *resume))
        assert path in error
    assert not notes(cli)


@pytest.mark.parametrize(
    "name", ["out", "out.txt", "out.json", "out.JSONL", "out.csv.gz", ".jsonl", "jsonl", "out.db", "/"]
)
def test_other_endings_are_refused(cli, name):
    error = usage_error(cli.run(cli.file("tasks", "noop\n"), "--results", name, "-w", "1"))
    assert all(word in error for word in (name, ".jsonl", ".csv", ".sqlite"))
    assert [path.name for path in cli.folder.iterdir()] == ["tasks"]


LIMIT = 250_000  # bytes that a file may have; above what the segment needs


def limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.mark.parametrize("name", FORMATS)
def test_when_the_disk_is_full_it_stops_says_how_to_go_on_and_resume_does(cli, handlers, name):
    """A limit of the file's size stands for the disk. What is not recorded would run again, so no more is begun."""
    path, count = cli.folder / name, 600
    names = [f"{i}" for i in range(count)]
    tasks = cli.file("tasks", "".join(f"slow {n} {'x' * 900}\n" for n in names))
    arguments = (tasks, "--handlers", handlers, "--results", path, "--resume", "-w", "2", "--screen", "off")
    run = cli.run(*arguments, "--slots", "32", "--slot-size", "1024", "--batch", "8", preexec_fn=limited)
    assert run.code == 1
    assert "Traceback" not in run.err
    assert name in run.out
    assert "--resume" in run.out
    assert "the last results were not written: run again with --resume" in run.out
    kept = read_only_oks(path)
    assert 10 < len(kept) < count
    assert set(kept.values()) == {1}
    counts = summary(run.out)
    assert counts["cancelled"] > 0, "it went on with work that is lost"
    begun = notes(cli)
    assert sum(begun.values()) < len(kept) + 300
    again = cli.run(*arguments)
    assert again.code == 0, again.out
    assert f"{len(kept):,} tasks left out" in again.out
    assert oks(path) == dict.fromkeys(names, 1)
    assert not set(notes(cli) - begun) & set(kept)


# The summary.

SUMMARY_FIELDS = {
    "ok", "failed", "timeout", "crashed", "cancelled", "retried", "respawned", "outstanding", "seconds", "workers",
    "busy", "failures", "kinds", "problem", "left_out",
}  # fmt: skip


def test_the_summary_as_json(cli, handlers):
    tasks = "note a\n" * 5 + "fail b\n" * 7 + "die\nsleepy\nfail_once c\n"
    run = cli.tasks(
        tasks, "--handlers", handlers, "--results", "out.csv", "--summary", "summary.json", "--retries", "1"
    )
    assert run.code == 1
    found = json.loads((cli.folder / "summary.json").read_text())
    assert set(found) >= SUMMARY_FIELDS
    assert {name: found[name] for name in ("ok", "failed", "timeout", "crashed", "cancelled", "outstanding")} == {
        "ok": 6, "failed": 8, "timeout": 0, "crashed": 1, "cancelled": 0, "outstanding": 0,
    }  # fmt: skip
    assert found["retried"] == 7 + 1 + 1
    assert found["respawned"] >= 1
    assert (found["problem"], found["left_out"]) == ("", 0)
    assert 0 <= found["busy"] <= 1
    assert len(found["workers"]) == 2
    assert sum(worker["completed"] for worker in found["workers"]) == 6
    assert len(found["failures"]) == 5
    assert all(set(result) == set(FIELDS) for result in found["failures"])
    assert sum(found["kinds"].values()) == 9
    assert max(found["kinds"].values()) == 7
    assert any("ValueError" in kind for kind in found["kinds"])


def test_the_summary_holds_what_was_left_out_and_payloads_that_are_no_text(cli, handlers):
    arguments = ("--handlers", handlers, "--results", "out.jsonl", "--resume", "--summary", "summary.json")
    cli.tasks(b"note a\nnote b\n", *arguments)
    cli.tasks(b"bytes_of \xff\0\nnote a\nnote b\n", *arguments)
    found = json.loads((cli.folder / "summary.json").read_text())
    assert (found["left_out"], found["ok"], found["failed"]) == (2, 1, 0)


@pytest.mark.parametrize("option", ["--results", "--log", "--summary"])
def test_the_file_of_tasks_is_not_written_over(cli, option):
    tasks = cli.file("tasks.csv", "echo a\n")
    run = cli.run(tasks, option, "./tasks.csv", "-w", "1")
    assert f"{option} ./tasks.csv: is the file of TASKS" in usage_error(run)
    assert (cli.folder / "tasks.csv").read_bytes() == b"echo a\n"
    with open(tasks, "rb") as stdin:
        run = cli.finish(cli.start("-", option, "./tasks.csv", stdin=stdin))
    assert f"{option} ./tasks.csv: is the file of TASKS" in usage_error(run)
    assert (cli.folder / "tasks.csv").read_bytes() == b"echo a\n"


@pytest.mark.parametrize("option", ["--log", "--summary"])
def test_what_is_written_may_go_to_a_named_pipe(cli, option):
    pipe = cli.folder / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["/bin/cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        run = cli.run(cli.file("tasks", "echo a\nshow b\n"), option, str(pipe), "-w", "1", "--screen", "off")
        read, _ = reader.communicate(timeout=HANG)
    assert run.code == 1
    assert bool(read) == (option == "--summary")


def test_a_table_that_holds_no_results_is_not_replaced(cli):
    path = cli.folder / "notes.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE results AS SELECT 'precious' AS note")
    run = cli.run(cli.file("tasks", "echo a\n"), "--results", path, "-w", "1")
    assert "its table results has the columns note" in usage_error(run)
    with contextlib.closing(sqlite3.connect(path)) as base:
        assert base.execute("SELECT * FROM results").fetchall() == [("precious",)]


def test_a_table_of_another_version_is_replaced_without_resume_and_only_then(cli):
    path, tasks = cli.folder / "out.sqlite", cli.file("tasks", "echo a\n")
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute(f"CREATE TABLE results ({', '.join(FIELDS[:-2])})")
    error = usage_error(cli.run(tasks, "--results", path, "--resume", "-w", "1"))
    assert "its table results has the columns tsk_id, " in error
    assert cli.run(tasks, "--results", path, "-w", "1", "--screen", "off").code == 0
    assert [tuple(row) for row in rows_of(path)] == [FIELDS]


@pytest.mark.parametrize("format", FORMATS)
def test_results_are_replaced_without_resume(cli, format):
    path = cli.folder / f"out.{format}"
    for _ in range(2):
        assert cli.run(cli.file("tasks", "echo a\n"), "--results", path, "-w", "1", "--screen", "off").code == 0
        assert len(rows_of(path)) == 1


def test_results_do_not_go_to_a_named_pipe(cli):
    os.mkfifo(cli.folder / "pipe.jsonl")
    run = cli.run(cli.file("tasks", "echo a\n"), "--results", "pipe.jsonl")
    assert "--results pipe.jsonl: is a pipe" in usage_error(run)


def test_results_do_not_go_to_the_database_of_the_tasks(cli):
    """Its reader is in the way of their writer."""
    path = cli.folder / "tasks.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE mine AS SELECT 'noop' AS x")
    run = cli.run(path, "--query", "SELECT x FROM mine", "--results", path, "-w", "1")
    assert "is the file of TASKS" in usage_error(run)


@pytest.mark.parametrize("options", [("--results", "--log"), ("--results", "--summary"), ("--log", "--summary")])
def test_no_two_options_write_the_same_file(cli, options):
    tasks, path = cli.file("tasks", "echo a\n"), cli.file("out.jsonl", "kept")
    (cli.folder / "link").symlink_to("out.jsonl")
    error = usage_error(cli.run(tasks, options[0], path, options[1], "link", "-w", "1"))
    assert f"{options[1]} link: is the file of {options[0]}" in error
    assert (cli.folder / "out.jsonl").read_text() == "kept"


def test_two_options_may_write_the_same_device(cli):
    run = cli.run(cli.file("tasks", "noop\n"), "--log", "/dev/null", "--summary", "/dev/null", "-w", "1")
    assert run.code == 0, run


@pytest.mark.parametrize("where", ["absent/summary.json", ".", "tasks/x", ""])
def test_a_summary_that_cannot_be_written_is_exit_2(cli, where):
    error = usage_error(cli.run(cli.file("tasks", "noop\n"), "--summary", where, "-w", "1"))
    assert "--summary" in error


def test_a_summary_on_a_full_disk_is_said(cli):
    run = cli.run(cli.file("tasks", "noop\n"), "--summary", "/dev/full", "-w", "1", "--screen", "off")
    assert (run.code, "--summary" in run.out + run.err) == (1, True), run


def test_the_summary_of_a_run_that_was_stopped(cli):
    tasks = cli.file("tasks", "echo >> begun; sleep 60\n" * 4)
    process = cli.start(tasks, "--shell", "-w", "2", "--screen", "off", "--summary", "summary.json")
    path, begun = cli.folder / "summary.json", cli.folder / "begun"
    assert wait_until(lambda: path.exists() and begun.exists() and len(begun.read_bytes()) == 2)
    process.terminate()
    assert cli.finish(process).code == 128 + signal.SIGTERM
    assert json.loads(path.read_text())["cancelled"] == 4


def test_lines_that_name_no_function_are_one_kind_of_failure(cli):
    """Whatever the lines and the names are: what is counted must not grow with them."""
    run = cli.run(cli.file("tasks", "".join(f"ecko{i} x\n" for i in range(20))), "-w", "1", "--screen", "off")
    assert "in all: 20 failed: LookupError\n" in run.out


def test_the_lines_of_the_summary(cli, handlers):
    """What went wrong first, in which ways, what was left out, and the totals last."""
    tasks = "fail a\n" * 6 + "die\necko\n" + "".join(f"slow {i}\n" for i in range(8))
    arguments = ("--handlers", handlers, "--results", "out.csv", "-w", "1")
    run = cli.tasks(tasks + "show done\n", *arguments)
    lines = run.out.splitlines()
    bad = re.compile(r"#\d+ line \d+: \S+ '.*' (failed|crashed): ")
    assert [bool(bad.match(line)) for line in lines] == [True] * 5 + [False] * (len(lines) - 5)
    kinds = next(line for line in lines if line.startswith("in all: "))
    assert "6 " in kinds.split(";")[0]
    assert "ValueError" in kinds.split(";")[0]
    assert "1 " in kinds.split(";")[1]
    assert summary(lines[-1])["failed"] == 7
    slower = cli.run(cli.file("tasks", "sleep 1.1\nsleep 0.2\n"), "-w", "2", "--screen", "off")
    shares = next(line for line in slower.out.splitlines() if line.startswith("workers: "))
    assert re.fullmatch(r"workers: busy \d+% of the time", shares)
    again = cli.tasks(tasks + "show done\n", *arguments, "--resume").out.splitlines()
    assert again[-2] == "9 tasks left out: the results file holds them as ok"
    assert "in all" not in "\n".join(cli.tasks("fail a\nnote b\n", "--handlers", handlers).err.splitlines())


# The log.

LINE = re.compile(r"\[worker (\d+) task (\d+)\] (.*)")


def log_lines(cli):
    lines = (cli.folder / "log").read_text("utf-8", "surrogateescape").splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return [(int(match[1]), int(match[2]), match[3]) for match in found]


def test_log_lines_of_several_workers_are_whole_and_name_worker_and_task(cli, handlers):
    run = cli.tasks(
        "".join(f"show_lines p{i}\n" for i in range(1, 13)), "--handlers", handlers, "--log", "log", "-w", "3"
    )
    assert run.code == 0
    lines = log_lines(cli)
    assert collections.Counter((task, text) for _, task, text in lines) == collections.Counter(
        (task, f"p{task} {i}") for task in range(1, 13) for i in range(20)
    )
    worker_of = {result["tsk_id"]: result["worker"] for result in run.results}
    assert all(worker_of[task] == worker for worker, task, _ in lines)


def test_log_is_appended_to_and_holds_odd_text(cli, handlers):
    cli.file("log", "[worker 9 task 9] before\n")
    run = cli.tasks(b"show \xe4\xff\n", "--handlers", handlers, "--log", "log")
    assert run.code == 0
    assert log_lines(cli) == [
        (9, 9, "before"),
        *((run.results[0]["worker"], 1, f"{x}\udce4\udcff") for x in ("", "more of ")),
    ]


def test_a_line_without_an_end_is_logged_with_its_own_task(cli, handlers):
    run = cli.tasks("show_part a\nshow_part b\n", "--handlers", handlers, "--log", "log", "-w", "1")
    assert run.code == 0
    assert log_lines(cli) == [(0, 1, "a"), (0, 2, "b")]


def test_functions_that_write_bytes_can_do_so_with_and_without_a_log(cli, handlers):
    for arguments in ((), ("--log", "log")):
        run = cli.tasks("show_bytes a\n", "--handlers", handlers, *arguments)
        assert [result["error"] for result in run.results] == [None], arguments
    assert "a" in (cli.folder / "log").read_text()


def test_the_log_may_be_the_error_stream(cli, handlers):
    run = cli.tasks("show_part a\n", "--handlers", handlers, "--log", "/dev/stderr")
    assert run.code == 0
    assert "[worker 0 task 1] a" in run.err or "[worker 1 task 1] a" in run.err


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_log_on_a_standard_stream_shares_its_place_in_a_file(cli, handlers, name):
    """A second opening of the file would write over what the summary or the values write, and they over it."""
    tasks = cli.file("tasks", "show_lines a\n" * 20)
    with open(cli.folder / "all", "wb") as file:
        arguments = ("--handlers", handlers, "--log", f"/dev/{name}", "--print", "-w", "2", "--screen", "off")
        run = cli.run(tasks, *arguments, **{name: file})
    lines = (cli.folder / "all").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("workers: ")]  # which a run of a second says
    kept = [line for line in lines if LINE.fullmatch(line)]
    assert len(kept) == 20 * 20
    assert run.code == 0
    assert summary(lines[-1] if name == "stderr" else run.err)["ok"] == 20
    assert len(lines) == len(kept) + (name == "stderr")


KEEPS = "functions printed; --log FILE keeps it"


@pytest.mark.parametrize("method", METHODS)
def test_that_functions_printed_is_said_where_nothing_kept_it(cli, handlers, method):
    arguments = ("--handlers", handlers, "--start-method", method)
    tasks = "show a\nshow b\nnote c\n"
    assert cli.tasks(tasks, *arguments).err.splitlines().count(KEEPS) == 1
    for quiet in (cli.tasks(tasks, *arguments, "--log", "log"), cli.tasks("note a\n", *arguments)):
        assert KEEPS not in quiet.err


def test_what_commands_complain_of_counts_unless_it_is_printed(cli):
    tasks = "echo err >&2\n"
    assert KEEPS not in cli.tasks(tasks, "--shell", "--print", "--results", "out.jsonl").err
    assert KEEPS in cli.tasks(tasks, "--shell", "--no-print").err


def test_a_child_of_a_function_may_print(cli):
    code = "import os\ndef forks(payload):\n    if not os.fork():\n        print('x')\n        os._exit(0)\n"
    code += "    return os.waitstatus_to_exitcode(os.wait()[1])\n"
    assert cli.tasks("forks\n", "--handlers", cli.file("forks.py", code)).values == [0]


def test_what_commands_print_beside_their_output_stays_out_of_the_results(cli):
    run = cli.tasks("echo out; echo err >&2\n", "--shell", "--log", "log")
    assert (run.code, run.values) == (0, ["out\n"])


def test_a_log_on_a_full_disk_does_not_hurt_the_tasks(cli, handlers):
    (cli.folder / "log").symlink_to("/dev/full")
    run = cli.tasks("show a\nnote b\n", "--handlers", handlers, "--log", "log")
    assert {result["function"]: result["status"] for result in run.results}["note"] == "ok"
    assert "Traceback" not in run.err


limited_to_nothing = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, 0))


def test_no_room_for_the_first_byte_is_said(cli):
    """Neither for the results nor for the queue."""
    run = cli.run(
        cli.file("tasks", "noop\n"), "--results", "out.csv", "-w", "1", "--screen", "off", preexec_fn=limited_to_nothing
    )
    assert run.code == 2
    assert "File too large" in usage_error(run)
