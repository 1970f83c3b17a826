"""--failed, --dry-run, and the options of retries on the command line."""

import os
import signal
import sqlite3
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmqueue
from shmqueue import FailedLines, LineParser, LineSource
from tests.helpers import HANG, ROOT, SCRIPT, rows_of, usage_error, wait_until

MIXED = "echo a\necko b\nsha256 none\nsleep 0\nnoop\n"
QUIET = ("--screen", "off", "-w", "2")
WAIT = """
import os, time

def work(payload: str) -> None:
    while int(payload) > 9 and not os.path.exists("go"):
        time.sleep(0.01)
"""


@pytest.fixture
def read(cli):
    """Return the bytes of a file in the test's folder."""
    return lambda name: (cli.folder / name).read_bytes()


def lines(data):
    return sorted(data.splitlines())


# --failed.


def test_what_was_not_ok_can_be_given_in_again(cli, read):
    tasks = cli.file("tasks", MIXED)
    assert cli.run(tasks, "--failed", "again", *QUIET).code == 1
    assert lines(read("again")) == [b"ecko b", b"sha256 none"]
    assert read("tasks") == MIXED.encode()
    assert cli.run("again", "--failed", "and again", *QUIET).code == 1
    assert lines(read("and again")) == [b"ecko b", b"sha256 none"]


def test_it_may_be_the_input_and_is_empty_when_all_are_ok(cli, read):
    tasks = cli.file("tasks", MIXED)
    os.chmod(tasks, 0o640)
    for _ in range(2):
        assert cli.run(tasks, "--failed", tasks, *QUIET).code == 1
        assert lines(read("tasks")) == [b"ecko b", b"sha256 none"]
    cli.file("none", "")
    assert cli.run(cli.file("tasks", "sha256 none\n"), "--failed", tasks, *QUIET).code == 0
    assert read("tasks") == b""
    assert stat.S_IMODE(os.stat(tasks).st_mode) == 0o640
    assert sorted(os.listdir(cli.folder)) == ["none", "tasks"]


def test_a_link_stays_a_link(cli, read):
    tasks = cli.file("tasks", MIXED)
    os.symlink("tasks", cli.folder / "link")
    assert cli.run(tasks, "--failed", "link", *QUIET).code == 1
    assert os.readlink(cli.folder / "link") == "tasks"
    assert lines(read("tasks")) == [b"ecko b", b"sha256 none"]


@pytest.mark.parametrize("way", [("--shell",), ("--call", "jobs.py:fail")])
def test_whole_lines_come_back_whole(cli, read, way):
    cli.file("jobs.py", "def fail(payload):\n    raise ValueError\n")
    data = b"exit 3 # \xff \\ 'x'\n  exit 4\nexit 5"
    assert cli.run(cli.file("tasks", data), *way, "--failed", "again", *QUIET).code == 1
    assert lines(read("again")) == sorted(data.splitlines())


texts = st.lists(
    st.sampled_from([b"\r", b"\xef\xbb\xbf", b" ", b"\t", b"a", b"#", b"\xff", b"echo", b"\0"]), max_size=6
)
inputs = st.lists(texts.map(b"".join), max_size=6).map(b"\n".join)


@pytest.mark.parametrize("whole", [True, False])
def test_any_line_that_is_written_is_read_as_the_same_task(tmp_path, whole):
    first, second = tmp_path / "first", tmp_path / "second"

    def parser():
        return LineParser(["echo", "noop"], comments=not whole, whole=whole)

    def tasks(path):
        parse = parser()
        return list(map(parse.task, LineSource(str(path), parse).rest()))

    @given(inputs)
    def check(data):
        first.write_bytes(data)
        parse = parser()
        failed = FailedLines(str(second), parse, LineSource(str(first), parse))
        failed.attempt(failed.end)
        assert failed.error is None
        assert tasks(second) == tasks(first)

    check()


def test_after_halt_what_was_not_done_is_there_too(cli, read):
    data = "sha256 none\n" * 3 + "sleep 0.01\n" * 1000
    run = cli.run(cli.file("tasks", data), "--halt", "1", "--failed", "tasks", "--screen", "off", "-w", "1")
    assert run.code == 1
    done = data.count("\n") - read("tasks").count(b"\n")
    assert f" {done:,} ok, " in run.out
    assert read("tasks").count(b"sha256 none\n") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_what_was_not_done_is_there_too(cli, read, number):
    data = "echo a\n" * 10 + "sleep 0.2\n" * 5_000
    process = cli.start(cli.file("tasks", data), "--failed", "tasks", "--results", "out.jsonl", *QUIET)
    assert wait_until(lambda: os.path.exists(cli.folder / "out.jsonl") and read("out.jsonl").count(b'"ok"') >= 10)
    assert read("tasks") == data.encode(), "it is as it was until the end"
    process.send_signal(number)
    run = cli.finish(process)
    assert run.code == 128 + number
    done = read("out.jsonl").count(b'"ok"')
    assert done >= 10
    assert read("tasks").count(b"\n") == 5_010 - done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_of_a_stream_that_is_ended_every_line_is_there_as_it_was(cli, read, number):
    """Those that were done are not. Some were in the ring, most were read and not yet taken."""
    cli.file("jobs.py", WAIT)
    given = [b"%s %d" % (b"wurk" if i % 7 == 5 else b"work", i) for i in range(1000)]
    process = cli.start(
        "-", "--handlers", "jobs.py", "--failed", "again", "--results", "out.jsonl", "--screen", "off", "-w", "1",
        "--slots", "2",
    )  # fmt: skip
    process.stdin.write(b"\n".join(given) + b"\n")
    assert wait_until(lambda: os.path.exists(cli.folder / "out.jsonl") and read("out.jsonl").count(b'"ok"') >= 8)
    process.send_signal(number)
    cli.file("go", "")
    assert cli.finish(process).code == 128 + number
    done = {f"work {row['payload']}".encode() for row in rows_of(cli.folder / "out.jsonl") if row["status"] == "ok"}
    assert len(done) >= 8
    assert lines(read("again")) == sorted(set(given) - done)


def test_of_a_run_that_is_given_up_everything_is_there(cli, read):
    """Each worker dies while it imports the functions."""
    cli.file("bad.py", "import os\nif os.path.exists('seen'): os._exit(7)\nopen('seen', 'w').close()\ndef f(x): pass\n")
    data = "f 1\n" * 40_000
    run = cli.run(
        cli.file("tasks", data), "--handlers", "bad.py", "--start-method", "spawn", "--failed", "tasks", *QUIET
    )
    assert run.code == 1
    assert "shmqueue: " in run.out
    assert read("tasks") == data.encode()


def test_a_run_that_is_killed_leaves_the_file_alone(cli, read):
    tasks = cli.file("tasks", "sleep 60\n")
    process = cli.start(tasks, "--failed", "tasks", "--screen", "off", "-w", "1")
    assert wait_until(lambda: len(os.listdir(cli.folder)) > 1)
    process.kill()
    process.wait()
    assert read("tasks") == b"sleep 60\n"
    shmqueue.sweep()


def test_a_full_disk_leaves_the_file_alone(tmp_path):
    path = tmp_path / "tasks"
    path.write_text("before")
    failed = FailedLines(str(path), LineParser(["echo"], comments=True), shmqueue.IterableSource([("echo", b"a")]))
    failed._file.close()
    failed._file = open("/dev/full", "wb")
    failed.attempt(failed.end)
    failed.close()
    assert "No space left" in failed.complaint()
    assert os.listdir(tmp_path) == ["tasks"]
    assert path.read_text() == "before"


def test_tasks_that_could_be_read_in_part_leave_the_file_alone(cli, read):
    run = cli.run("/proc/self/mem", "--failed", cli.file("failed", "before\n"), *QUIET)
    assert run.code == 1
    assert "the file stays as it was" in run.out
    assert read("failed") == b"before\n"
    assert sorted(os.listdir(cli.folder)) == ["failed"]


def test_an_interrupt_leaves_the_file_alone(cli, read, monkeypatch, capfd):
    """A third Ctrl-C, for example, is raised wherever the run is."""

    def interrupted(supervisor, source):
        raise KeyboardInterrupt

    monkeypatch.setattr(shmqueue.Supervisor, "run", interrupted)
    arguments = [cli.file("tasks", "echo a\n"), "--failed", cli.file("failed", "before\n"), *QUIET]
    assert shmqueue.main(argv=arguments) == 130
    assert "the run was interrupted" in capfd.readouterr().out
    assert read("failed") == b"before\n"


def test_a_problem_is_said_at_the_end(cli, read):
    """The folder goes away while the run goes on."""
    (cli.folder / "there").mkdir()
    tasks = cli.file("tasks", "until test -e go; do sleep 0.05; done\n")
    process = cli.start(tasks, "--shell", "--failed", "there/again", *QUIET)
    assert wait_until(lambda: os.listdir(cli.folder / "there"))
    (cli.folder / "there").rename(cli.folder / "gone")
    cli.file("go", "")
    run = cli.finish(process)
    assert run.code == 1
    assert "--failed there/again: No such file" in run.err
    assert "the file stays as it was" in run.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--failed", "-"], ["--failed -", "must be a file"]),
        (["--failed", ""], ["--failed", "empty"]),
        (["--failed", "/dev/null"], ["/dev/null", "not a regular file"]),
        (["--failed", "."], ["not a regular file"]),
        (["--failed", "no/where"], ["no/where", "No such file"]),
        (["--failed", "log", "--log", "log"], ["--failed log", "--log", "another"]),
        (["--failed", "tasks", "--query", "SELECT 1"], ["--failed", "--query", "--resume"]),
        (["--retry-on", "failed,ok"], ["--retry-on", "('failed', 'ok')", "failed, timeout, crashed"]),
        (["--retry-on", ""], ["--retry-on"]),
        (["--retry-delay", "-1"], ["--retry-delay -1", "from 0"]),
        (["--grace", "inf"], ["--grace inf"]),
        (["--retris=3"], ["unrecognized arguments: --retris=3"]),
        (["more"], ["unrecognized arguments: more"]),
        (["--shell", "--call", "a:b"], ["--call", "not allowed with", "--shell"]),
    ],
)
def test_bad_usage_is_one_line_and_starts_nothing(cli, arguments, words):
    error = usage_error(cli.run(cli.file("tasks", "echo a\n"), *arguments))
    for word in words:
        assert word in error
    assert not [name for name in os.listdir(cli.folder) if name.endswith(".part")]


# --dry-run.


def test_a_dry_run_writes_the_tasks_and_starts_nothing(cli):
    run = cli.run(
        cli.file("tasks", "\n# c\n  echo  a \nsleep 60\nnoop\n"), "--dry-run", "--log", "log", "--failed", "f"
    )
    assert run == (0, "echo  a \nsleep 60\nnoop\n", "")
    assert os.listdir(cli.folder) == ["tasks"]


def test_a_dry_run_says_what_could_not_run(cli):
    run = cli.run(cli.file("tasks", MIXED), "--dry-run")
    assert (run.code, run.out) == (1, MIXED)
    assert run.err == "shmqueue: line 2: LookupError: no function 'ecko'; nearest: echo\n"


def test_a_dry_run_with_resume_writes_what_remains(cli):
    tasks = cli.file("tasks", MIXED)
    resume = ("--results", "out.csv", "--resume")
    assert cli.run(tasks, *resume, "--dry-run").out == MIXED
    assert os.listdir(cli.folder) == ["tasks"]
    assert cli.run(tasks, *resume, *QUIET).code == 1
    assert cli.run(tasks, *resume, "--dry-run").out == "ecko b\nsha256 none\n"


def test_a_dry_run_of_a_stream_writes_lines_as_they_come(cli):
    process = cli.start("-", "--shell", "--dry-run")
    for line in (b"exit 1 \xff\n", b"true\r\r\n"):
        process.stdin.write(line)
        assert os.read(process.stdout.fileno(), 100) == line
    assert cli.finish(process, b"last") == (0, "last\n", "")


def test_a_dry_run_of_rows_keeps_a_line_each(cli):
    base = sqlite3.connect(cli.folder / "a.db")
    with base:
        base.execute("CREATE TABLE t (a TEXT)")
        base.executemany("INSERT INTO t VALUES (?)", [("a\nb",), ("c",)])
    base.close()
    run = cli.run("a.db", "--query", "SELECT 'echo', a FROM t", "--dry-run")
    assert run == (0, "echo a\\nb\necho c\n", "")


def test_a_dry_run_whose_reader_leaves_ends(cli):
    process = cli.start("-", "--shell", "--dry-run", stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    process.stdin.write(b"a\n")
    assert process.wait(HANG / 2) == 1


# Retries.


def test_retry_on_and_retry_delay(cli):
    data = "sha256 none\nsleep 60\n"
    run = cli.tasks(data, "--retries", "1", "--retry-on", "timeout", "--timeout", "0.3", "--retry-delay", "0.1")
    attempts = {result["status"]: result["attempts"] for result in run.results}
    assert attempts == {"failed": 1, "timeout": 2}


def test_grace_interrupts_a_task_that_waits(cli):
    """Its grace is longer than `cli` waits."""
    code = """
import signal, sys, time
def wait(payload):
    signal.signal(signal.SIGTERM, lambda *_: (open("ended", "w").close(), sys.exit(1)))
    time.sleep(600)
"""
    cli.file("jobs.py", code)
    run = cli.tasks("x\n", "--call", "jobs.py:wait", "--timeout", "1", "--grace", "600")
    assert [result["status"] for result in run.results] == ["timeout"]
    assert os.path.exists(cli.folder / "ended")
    assert "1 timed out" in run.err


# --help.


def test_help_has_the_options_in_groups_and_the_functions_of_the_program(cli):
    run = cli.run("--help", env={**os.environ, "COLUMNS": "80"}, script=SCRIPT)
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("usage: shmqueue.py TASKS [options]\n")
    groups = [line for line in run.out.splitlines() if line.endswith(":")]
    assert groups[-3:] == ["tasks:", "how they run:", "what is printed and kept:"]
    assert "  --slots N             tasks the ring holds (16384)\n" in run.out
    assert " echo TEXT," in run.out


def test_a_program_of_ones_own_is_named_with_its_functions(cli):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport shmqueue\ndef count(payload):\n    return 1\n"
    tool = cli.file("tool.py", code + "def shout(payload):\n    return 2\nsys.exit(shmqueue.main([count, shout]))\n")
    shown = cli.run("--help", script=tool).out
    assert shown.startswith("usage: tool.py TASKS ")
    assert "count, shout\n" in shown
    assert "echo" not in shown
    assert cli.run("absent", "--halt", "0", script=tool).err.startswith("tool.py: error: --halt 0: must be from ")
