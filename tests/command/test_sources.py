"""Where tasks come from: a file, a pipe, a FIFO, the keyboard, and the rows of a SQLite query."""

import collections
import contextlib
import gc
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

import shmqueue
from tests.command.test_cli import STREAMED, open_source
from tests.helpers import ROOT, is_running, read_line, summary, usage_error


@pytest.fixture
def base(cli):
    """A way to make a SQLite file of statements; the file's path."""

    def make(*statements, name="tasks.db"):
        path = str(cli.folder / name)
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            for statement in statements:
                connection.execute(*([statement] if isinstance(statement, str) else statement))
        return path

    return make


@pytest.fixture
def query(cli, base):
    """Run the rows of a query."""

    def run(sql, *arguments):
        path = base() if not (cli.folder / "tasks.db").exists() else str(cli.folder / "tasks.db")
        return cli.run(path, "--query", sql, *STREAMED, *arguments)

    return run


def query_source(path, sql, names=("echo", "noop")):
    return shmqueue.QuerySource(path, sql, shmqueue.LineParser(names, comments=True))


def read_all(source, room=100):
    items = []
    while not source.exhausted:
        taken = source.take(room)
        assert len(taken) <= room
        items += taken
    return items


# A file, a pipe, a FIFO, the keyboard: the same lines give the same outcomes.

LINES = b"\xef\xbb\xbfecho a\r\n\n# c\n  echo b  \necho \xff\0\nnoop\necho last"
VALUES = ["a", "b  ", "\udcff\0", None, "last"]


def by_file(cli):
    return cli.run(cli.file("tasks", LINES), *STREAMED)


def by_redirection(cli):
    with open(cli.file("tasks", LINES), "rb") as file:
        return cli.finish(cli.start("-", *STREAMED, stdin=file))


def by_pipe(cli):
    return cli.run("-", *STREAMED, stdin=LINES)


def by_a_pipe_in_pieces(cli):
    process = cli.start("-", *STREAMED)
    for byte in LINES:
        process.stdin.write(bytes([byte]))
    return cli.finish(process)


def by_fifo(cli):
    path = cli.folder / "fifo"
    os.mkfifo(path)
    process = cli.start(path, *STREAMED)
    with open(path, "wb") as file:
        file.write(LINES)
    return cli.finish(process)


def by_device(cli):
    process = cli.start("/dev/stdin", *STREAMED)
    return cli.finish(process, LINES)


def by_query(cli):
    path = cli.folder / "tasks.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (line)")
        lines = [line.removesuffix(b"\r") for line in LINES[3:].split(b"\n")]
        connection.executemany("INSERT INTO t VALUES (?)", [(line,) for line in lines])
    return cli.run(path, "--query", "SELECT line FROM t ORDER BY rowid", *STREAMED)


@pytest.mark.parametrize(
    "way",
    [by_file, by_redirection, by_pipe, by_a_pipe_in_pieces, by_fifo, by_device, by_query],
    ids=lambda f: f.__name__,
)
def test_the_same_lines_whichever_way_they_come(cli, way):
    run = way(cli)
    assert (run.code, run.values) == (0, VALUES)
    assert summary(run.err)["ok"] == len(VALUES)


def test_a_fifo_with_several_writers_one_after_the_other(cli):
    """It ends when its last writer has left it."""
    path = cli.folder / "fifo"
    os.mkfifo(path)
    process = cli.start(path, *STREAMED)
    with open(path, "wb", buffering=0) as first:
        first.write(b"echo a\n")
        assert json.loads(read_line(process.stdout))["value"] == "a"
        with open(path, "wb", buffering=0) as second:
            first.close()
            second.write(b"echo b\n")
            assert json.loads(read_line(process.stdout))["value"] == "b"
            assert process.poll() is None
    assert cli.finish(process).code == 0


def test_a_pipe_that_says_nothing_costs_nothing_and_is_waited_for(cli):
    process = cli.start("-", *STREAMED)
    process.stdin.write(b"echo a\n")
    assert json.loads(read_line(process.stdout))["value"] == "a"
    states = []
    for _ in range(50):  # one that never waits is always ready to run, however busy the machine is
        time.sleep(0.02)
        states.append(shmqueue.process_state(process.pid)[0])
    assert states.count("S") > 10, "it looks for more without a pause"
    assert cli.finish(process, b"echo b\n").values == ["b"]


def test_lines_from_the_keyboard_with_its_line_editing(cli, terminal):
    process = cli.start("-", *STREAMED, stdin=terminal.theirs)
    terminal.type(b"echo ab\x7fc\n")  # backspace
    assert json.loads(read_line(process.stdout))["value"] == "ac"
    terminal.type(b"echo no\x15echo yes\n")  # the line is rubbed out
    assert json.loads(read_line(process.stdout))["value"] == "yes"
    terminal.type(b"\n\necko\n")
    assert json.loads(read_line(process.stdout))["status"] == "failed"
    assert terminal.has_its_modes()
    terminal.type(b"echo half\x04")  # an end of file in the midst of a line passes on what is there
    terminal.type(b" whole\n")
    assert json.loads(read_line(process.stdout))["value"] == "half whole"
    terminal.type(b"\x04")
    run = cli.finish(process)
    assert run.code == 1
    assert summary(run.err)["total"] == 4


def test_a_last_line_from_the_keyboard_without_a_newline(cli, terminal):
    process = cli.start("-", *STREAMED, stdin=terminal.theirs)
    terminal.type(b"echo half\x04\x04")
    run = cli.finish(process)
    assert (run.code, run.values) == (0, ["half"])


def test_a_line_of_which_only_a_part_can_be_read_is_no_task(tmp_path):
    """It might be a command that does something else."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    source = open_source(path)
    os.write(end, b"rm -r a\nrm -r b")
    assert source.take(10) == [b"rm -r a"]
    os.close(end)
    folder = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder, source.fileno())  # it cannot be read
    os.close(folder)
    assert read_all(source) == []
    assert source.problem == "reading the tasks stopped: Is a directory"


def test_a_keyboard_that_goes_away(cli, terminal):
    process = cli.start("-", *STREAMED, stdin=terminal.theirs)
    terminal.type(b"echo a\n")
    assert json.loads(read_line(process.stdout))["value"] == "a"
    terminal.close()
    run = cli.finish(process)
    assert run.code in (0, 1)
    assert "Traceback" not in run.err
    assert summary(run.err)["ok"] == 1


# How many there are.


@pytest.mark.parametrize("lines", [1, 100, 9_000, 60_000])
def test_the_total_of_a_file_is_known_soon(tmp_path, lines):
    """By its bytes, when part of it is read; exactly, in the end."""
    path = tmp_path / "tasks"
    path.write_bytes(b"echo abcdefgh\n" * lines)
    source, taken, totals = open_source(path, ["echo"]), 0, []
    while not source.exhausted:
        taken += len(source.take(64))
        totals.append(source.total())
    assert (taken, source.total()) == (lines, lines)
    assert all(total is not None and 0.9 * lines <= total <= 1.1 * lines for total in totals), totals[:5]


def test_the_total_of_a_stream_is_not_known_before_its_end(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    source = open_source(path, ["echo"])
    os.write(end, b"echo a\necho b\n")
    assert len(source.take(10)) == 2
    assert source.total() is None
    os.close(end)
    assert read_all(source) == []
    assert source.total() == 2


@pytest.mark.parametrize("rows", [0, 1, 2048, 5000])
def test_the_total_of_a_query_is_known_at_its_end(base, rows):
    path = base("CREATE TABLE t (n)", *(("INSERT INTO t VALUES (?)", (n,)) for n in range(rows)))
    source = query_source(path, "SELECT 'echo ' || n FROM t;")
    assert source.total() is None
    assert len(read_all(source)) == rows
    assert source.total() == rows


def endless(select):
    """A query over the table i of 1, 2, 3 and so on."""
    return " ".join(("WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i)", select))


def test_blank_rows_and_comments_are_no_tasks_and_the_total_says_so_in_the_end(base):
    path = base("CREATE TABLE t (n)", "INSERT INTO t VALUES ('echo a'), (''), ('# c'), (NULL), ('  '), ('echo b')")
    source = query_source(path, "SELECT n FROM t")
    assert read_all(source) == [("echo", b"a"), ("echo", b"b")]
    assert source.total() == 2


# Rows.


def test_one_column_is_a_line_whatever_its_type(cli, base, query):
    rows = ["echo a b", b"echo \xff\x00\n", "echo", 7, 1.5, None, "# no", "  echo c", "ecko", "echo two\nlines\r", ""]
    base("CREATE TABLE t (n)", *(("INSERT INTO t VALUES (?)", (row,)) for row in rows))
    run = query("SELECT n FROM t ORDER BY rowid")
    assert run.code == 1
    results = sorted(run.results, key=lambda result: result["tsk_id"])
    assert [(r["function"], r["payload"], r["value"], r["status"]) for r in results] == [
        ("echo", "a b", "a b", "ok"),
        ("echo", "\udcff\0\n", "\udcff\0\n", "ok"),
        ("echo", "", "", "ok"),
        ("7", "", None, "failed"),
        ("1.5", "", None, "failed"),
        ("echo", "c", "c", "ok"),
        ("ecko", "", None, "failed"),
        ("echo", "two\nlines\r", "two\nlines\r", "ok"),
    ]


PAYLOADS = {
    "NULL": "",
    "''": "",
    "'  '": "  ",
    "'# a'": "# a",
    "'two\nlines\r\n'": "two\nlines\r\n",
    "X'FF00C3'": "\udcff\0\udcc3",
    "X''": "",
    "CAST('ä☃𝄞' AS BLOB)": "ä☃𝄞",
    "'ä☃𝄞'": "ä☃𝄞",
    "42": "42",
    "-9223372036854775808": "-9223372036854775808",
    "0.1": "0.1",
    "1e100": "1e+100",
    "1 = 1": "1",
    "CAST('a' || char(0) || 'b' AS TEXT)": "a\0b",
    "printf('%.*c', 300000, 'x')": "x" * 300_000,
}


def test_two_columns_are_a_function_and_its_payload(query):
    rows = ", ".join(f"({i}, 'echo', {value})" for i, value in enumerate(PAYLOADS))
    run = query(" ".join(("WITH t(o, f, p) AS (VALUES", rows, ") SELECT f, p FROM t ORDER BY o")))
    assert (run.code, run.values) == (0, list(PAYLOADS.values()))


@pytest.mark.parametrize(
    "name", ["NULL", "''", "X'FF'", "7", "'ecko'", "'echo '", "'ECHO'", "'# echo'", "'a' || char(0)"]
)
def test_a_name_in_a_row_that_no_function_has_fails(query, name):
    run = query(f"SELECT {name}, 'a' UNION ALL SELECT 'echo', 'b'")
    assert run.code == 1
    assert sorted((r["status"], r["value"]) for r in run.results) == [("failed", None), ("ok", "b")]
    assert "Traceback" not in run.err


@pytest.mark.parametrize(("functions", "values"), [(("--shell",), ["1", "2"]), (("--call", "own.py:same"), None)])
def test_one_column_is_the_whole_payload_of_a_single_function(cli, query, functions, values):
    cli.file("own.py", "def same(payload):\n    return payload\n")
    run = query("SELECT 'printf ' || value FROM (SELECT 1 AS value UNION ALL SELECT 2)", *functions)
    assert (run.code, run.values) == (0, values or ["printf 1", "printf 2"])
    error = usage_error(cli.run(cli.folder / "tasks.db", "--query", "SELECT 'f', 1", *STREAMED, *functions))
    assert "two columns" in error


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELEKT 1", ["SELEKT"]),
        ("SELECT 1 FROM absent", ["absent"]),
        ("SELECT absent FROM t", ["absent"]),
        ("SELECT 1, 2, 3", ["3 columns"]),
        ("SELECT 1; SELECT 2", ["SELECT 2"]),
        ("", ["--query"]),
        ("   ", ["--query"]),
        ("-- nothing", ["--query"]),
        ("SELECT ?", ["--query"]),
        ("SELECT 'a\0b'", ["--query"]),
        ("DELETE FROM t", ["DELETE"]),
        ("INSERT INTO t VALUES (2) RETURNING n", ["INSERT"]),
        ("DROP TABLE t", ["DROP"]),
        ("CREATE TABLE u (n)", ["CREATE"]),
        ("SELECT load_extension('x')", ["load_extension"]),
        ("SELECT '\x1b[31m' FROM absent", ["absent"]),
    ],
    ids=repr,
)
def test_a_query_that_cannot_be_run_is_exit_2_and_changes_nothing(cli, base, sql, words):
    path = base("CREATE TABLE t (n)", "INSERT INTO t VALUES ('noop')")
    before = (cli.folder / "tasks.db").read_bytes()
    if "\0" in sql:  # no argument can hold it
        with pytest.raises(shmqueue.UsageError, match="--query"):
            query_source(path, sql)
        return
    error = usage_error(cli.run(path, "--query", sql, "-w", "1"))
    assert [word for word in words if word not in error] == [], error
    assert "\x1b" not in error
    assert (cli.folder / "tasks.db").read_bytes() == before
    assert sorted(file.name for file in cli.folder.iterdir()) == ["tasks.db"]


def test_files_that_are_no_database_are_exit_2(cli, base):
    good = base("CREATE TABLE t (n)", "INSERT INTO t VALUES ('noop')")
    data = (cli.folder / "tasks.db").read_bytes()
    cli.file("text.db", "echo a\n" * 1000)
    cli.file("torn.db", data[: len(data) // 2])
    os.mkfifo(cli.folder / "fifo.db")
    (cli.folder / "folder.db").mkdir()
    for name in ("text.db", "torn.db", "absent.db", "folder.db", "fifo.db", "-", ""):
        error = usage_error(cli.run(name, "--query", "SELECT n FROM t", "-w", "1"))
        assert name in error
    assert not (cli.folder / "absent.db").exists()
    assert cli.run(good, "--query", "SELECT n FROM t", *STREAMED).code == 0


def test_an_empty_file_is_a_database_without_tables(cli):
    path = cli.file("empty.db", "")
    assert cli.run(path, "--query", "SELECT 'echo a'", *STREAMED).values == ["a"]
    assert "no such table" in usage_error(cli.run(path, "--query", "SELECT n FROM t", "-w", "1"))


@pytest.mark.parametrize("name", ["a?b.db", "a#b%20.db", "ä☃.db", "file:a.db", " .db"])
def test_names_of_databases_are_taken_as_they_are(cli, base, name):
    base("CREATE TABLE t (n)", "INSERT INTO t VALUES ('echo a')", name="plain.db")
    (cli.folder / "plain.db").rename(cli.folder / name)
    assert cli.run(name, "--query", "SELECT n FROM t", *STREAMED).values == ["a"]


def test_a_query_that_fails_at_a_later_row_is_said_and_what_came_before_is_done(cli, query):
    sql = endless("SELECT CASE WHEN n < 3000 THEN 'noop' ELSE abs(-9223372036854775807 - 1) END FROM i")
    run = query(sql)
    assert run.code == 1
    assert "integer overflow" in run.err
    assert "Traceback" not in run.err
    assert 2048 <= len(run.results) < 3000
    assert {result["status"] for result in run.results} == {"ok"}


def test_a_database_that_somebody_writes_to_meanwhile(cli, base):
    """In WAL mode a reader does not stand in the way of a writer."""
    path = base("PRAGMA journal_mode = WAL", "CREATE TABLE t (n)", "INSERT INTO t VALUES ('echo a'), ('echo b')")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO t VALUES ('echo c')")
        run = cli.run(path, "--query", "SELECT n FROM t", *STREAMED)
        other.execute("COMMIT")
    assert (run.code, run.values) == (0, ["a", "b"])


WRITER = """
import contextlib, sqlite3

def done(payload: str) -> None:
    with contextlib.closing(sqlite3.connect({path!r}, timeout={seconds})) as connection, connection:
        connection.execute("UPDATE t SET done = 1 WHERE id = ?", [payload])
"""


@pytest.fixture
def write(cli, base):
    """Run the rows of a table by a function that writes into it, and waits so many seconds for others who do."""

    def run(journal, rows, seconds, *arguments):
        inserts = [("INSERT INTO t VALUES (?, 0)", [number]) for number in range(rows)]
        path = base(f"PRAGMA journal_mode = {journal}", "CREATE TABLE t (id INTEGER, done)", *inserts)
        cli.file("own.py", WRITER.format(path=path, seconds=seconds))
        return cli.run(path, "--query", "SELECT id FROM t", "--call", "own.py:done", *STREAMED, *arguments)

    return run


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_tasks_may_write_into_the_database_of_the_rows(write, journal):
    """SQLite's connections are not for a fork: a new one in the child would find locks of the old one for ever."""
    run = write(journal, 4, 10, "-w", "2", "--start-method", "fork")
    assert (run.code, [r["status"] for r in run.results]) == (0, ["ok"] * 4), run


def test_workers_are_not_forked_beside_an_open_database(cli, base):
    """One that replaced a dead one in the midst of the rows, and wrote into their database, lost what it wrote."""
    cli.file("own.py", "import os\n\ndef parent(payload):\n    return os.getppid()\n")
    path = base("CREATE TABLE t (n)", "INSERT INTO t VALUES (1)")
    process = cli.start(path, "--query", "SELECT n FROM t", "--call", "own.py:parent", *STREAMED)
    run = cli.finish(process)
    assert run.code == 0
    assert run.values != [process.pid]


@pytest.mark.promise("L32")
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_rows_that_are_not_read_yet_lock_the_database_without_wal(write, journal):
    seconds = 10 if journal == "wal" else 0.01
    first = write(journal, 40, seconds, "--slots", "2", "--batch", "1").results[0]
    assert first["status"] == ("ok" if journal == "wal" else "failed"), first
    assert journal == "wal" or "database is locked" in first["error"]


# Memory.

PEAK = """
import pathlib, re, sys
sys.path.insert(0, {root!r})
import shmqueue
code = shmqueue.main()
# What getrusage() tells includes the memory of the process that started this one.
print("peak", re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1], file=sys.stderr)
raise SystemExit(code)
"""


def peak(cli, *arguments, stdin=subprocess.DEVNULL):
    """The largest resident memory of the supervisor, in KiB."""
    script = cli.file("peak.py", PEAK.format(root=str(ROOT)))
    run = cli.finish(cli.start(*arguments, "-w", "2", "--screen", "off", script=script, stdin=stdin))
    assert run.code == 0, run
    return int(re.search(r"(?m)^peak (\d+)$", run.err)[1])


@pytest.mark.promise("G5a")
def test_memory_does_not_grow_with_the_rows_of_a_query(cli, base):
    path = base()
    sql = endless("SELECT 'noop', 'payload ' || n FROM i LIMIT ")
    few, many = (peak(cli, path, "--query", sql + str(rows)) for rows in (20_000, 500_000))
    assert many < few + 8_000, "half a million rows, and not 16 bytes for each of them"


@pytest.mark.promise("G5a")
def test_memory_does_not_grow_with_the_lines_of_a_file_or_pipe(cli):
    few, many = (cli.file(f"tasks{lines}", "noop some payload\n" * lines) for lines in (20_000, 300_000))
    assert peak(cli, many) < peak(cli, few) + 16_000
    with open(many, "rb") as file:
        process = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)  # noqa: S607
        with process:
            assert peak(cli, "-", stdin=process.stdout) < peak(cli, few) + 16_000
    assert not is_running(process.pid)


def test_what_is_left_out_needs_no_memory_for_what_is_not(base):
    """--resume remembers what the results hold, and nothing of what it reads."""
    sql = endless("SELECT 'noop', n FROM i LIMIT 20000")
    done = collections.Counter(shmqueue.task_digest("noop", str(n).encode()) for n in range(1, 101))
    parse = shmqueue.LineParser(["noop"], comments=True)
    source = shmqueue.QuerySource(base(), sql, parse)
    parse.done = done
    items, most = 0, 0
    while not source.exhausted:
        items += len(source.take(1000))
        most = max(most, len(done))
    assert (items, parse.left_out) == (19_900, 100)
    assert most <= 100


def test_a_query_may_be_dropped_in_any_thread(base):
    """The garbage collector runs where garbage is made, which may be another thread of a program that calls main()."""
    sources = [query_source(base(), "SELECT 'echo a'")]
    thread = threading.Thread(target=lambda: (sources.clear(), gc.collect()))
    thread.start()
    thread.join()


def test_ending_early_does_not_read_an_endless_query(cli, base):
    sql = endless("SELECT 'ecko' FROM i")
    run = cli.run(base(), "--query", sql, "-w", "2", "--screen", "off", "--halt", "3", "--slots", "16")
    assert run.code == 1
    assert 3 <= summary(run.out)["failed"] < 10_000
    assert sys.maxsize > summary(run.out)["cancelled"]
