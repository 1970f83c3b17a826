"""What the command line prints of values, and how templates make commands of lines."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmqueue
from tests.helpers import HANG, METHODS, SCRIPT, has_heard, is_running, wait_until

ENTER, LEAVE = shmqueue.Screen.ENTER.encode(), shmqueue.Screen.LEAVE.encode()


@pytest.fixture
def put(cli):
    """Run a file of these lines with two workers. Return the exit code, and what came on both streams, as bytes."""

    def run(lines, *arguments, **options):
        data = lines if isinstance(lines, bytes) else lines.encode()
        command = [cli.file("tasks", data), "-w", "2", "--screen", "off", *arguments]
        process = cli.start(*command, **options)
        out, err = process.communicate(b"", HANG / 2)
        return process.returncode, out, err

    return run


def results_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_pieces(text, pieces):
    """Return True if a text consists of these pieces, in any order, none of them torn."""
    for piece in sorted(pieces, key=len, reverse=True):
        assert piece in text, piece
        text = text.replace(piece, b"", 1)
    return not text


# Templates.


# Of the manual of GNU parallel (man parallel, parallel_examples and parallel_tutorial, version 20221122): what follows
# the options, the arguments as lines, and what `parallel -k` prints of them. Seconds to sleep are tenths here.
EXAMPLES = {
    "appended": ("echo", (), "A\nB\nC\n", "A\nB\nC\n"),
    "line": ("echo {}", (), "A/B.C\n", "A/B.C\n"),
    "without extension": ("echo {.}", (), "A/B.C\n", "A/B\n"),
    "base name": ("echo {/}", (), "A/B.C\n", "B.C\n"),
    "folder": ("echo {//}", (), "A/B.C\n", "A\n"),
    "base name without extension": ("echo {/.}", (), "A/B.C\n", "B\n"),
    "number": ("echo {#}", (), "A\nB\nC\n", "1\n2\n3\n"),
    "fields": (
        "echo 1={1} 2={2}", ("--delimiter", r"\t"), "f1\tf2\nA\tB\nC\tD\n", "1=f1 2=f2\n1=A 2=B\n1=C 2=D\n",
    ),
    "fields of csv": (
        "echo {1} of {2} at {3}", ("--delimiter", ","), "log,3,5\nmore,1,9\n", "log of 3 at 5\nmore of 1 at 9\n",
    ),
    "tag": ("echo foo-{}", ("--tag",), "A\nB\nC\n", "A\tfoo-A\nB\tfoo-B\nC\tfoo-C\n"),
    "order": ("sleep 0.{}; echo {}", (), "2\n1\n4\n3\n", "2\n1\n4\n3\n"),
    "order of pieces": (
        r'printf "%s-start\n%s" {} {}; sleep 0.{}; printf "%s\n" -middle; echo {}-end',
        (),
        "4\n2\n1\n",
        "4-start\n4-middle\n4-end\n2-start\n2-middle\n2-end\n1-start\n1-middle\n1-end\n",
    ),
    "the shell's braces": (
        'a={}; name=${a##*/}; upper=$(echo "$name" | tr "[:lower:]" "[:upper:]"); echo "$name - $upper"',
        (),
        "./sub\n./sub/a.txt\n./sub/it's one.txt\n",
        "sub - SUB\na.txt - A.TXT\nit's one.txt - IT'S ONE.TXT\n",
    ),
    "several commands": ('echo -n {}" "; ls {}|wc -l', (), "sub\nsub/deep\n", "sub 4\nsub/deep 1\n"),
    "absent files": (
        "if [ ! -e {} ] ; then echo {}; fi", (), "sub\nabsent one\nsub/a.txt\nnone\n", "absent one\nnone\n",
    ),
    "white space and quotes": (
        "echo {} append_string",
        (),
        'one line\n  two  \n$HOME `x` "q"\n',
        'one line append_string\n  two   append_string\n$HOME `x` "q" append_string\n',
    ),
    "paths": (
        "echo {} -o mydir/{/.}.mp3",
        (),
        "sub/a.txt\nsub/b.tar.gz\n",
        "sub/a.txt -o mydir/a.mp3\nsub/b.tar.gz -o mydir/b.tar.mp3\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_output_is_that_of_gnu_parallel(cli, put, example):
    template, arguments, lines, expected = example
    (cli.folder / "sub" / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.tar.gz", "it's one.txt", "deep/x"):
        (cli.folder / "sub" / name).touch()
    code, out, _ = put(lines, "--command", template, "-k", *arguments)
    assert (code, out.decode()) == (0, expected)


def filled(template, line, delimiter=None):
    return shmqueue.Command(template, delimiter).fill(line, 7, "3")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"dir/sub.dir/file.tar.gz", b"dir/sub.dir/file.tar file.tar.gz dir/sub.dir file.tar"),
        (b"dir.d/file", b"dir.d/file file dir.d file"),
        (b".bashrc", b"'' .bashrc . ''"),
        (b"x/", b"x/ '' . ''"),
        (b"/", b"/ '' / ''"),
        (b"/a", b"/a a / a"),
        (b"plain", b"plain plain . plain"),
    ],
)
def test_parts_of_paths_are_those_of_gnu_parallel(line, parts):
    assert filled("{.} {/} {//} {/.}", line) == parts


def test_numbers_of_the_task_and_of_the_worker():
    assert filled("{#}/{%}{}", b"x") == b"7/3x"


def test_what_is_no_replacement_string_stays():
    template = "{x} {1..3} {01..10..2} {2,3} { } {} ${} ${1} ${.} ${0} ${1.} $ {} a{,b} {print $1}"
    assert filled(template, b"l") == template.replace(" {} ", " l ").encode()
    assert filled("echo ${1} {x}", b"a b") == b"echo ${1} {x} 'a b'", "none of these is ours, so the line is appended"


@pytest.mark.parametrize(
    "string",
    ["{0}", "{01}", "{-1}", "{+1}", "{1.}", "{1/}", "{2//}", "{1/.}", "{..}", "{...}", "{/..}", "{##}", "{0%}", "{+/}"],
)
def test_a_replacement_string_that_is_not_known_is_refused_before_anything_runs(cli, string):
    """Those of GNU parallel, and what looks like them."""
    tasks = cli.file("tasks", "touch started\n")
    for more in ((), ("--dry-run",)):
        run = cli.run(
            tasks, "--command", f"echo {{}} '{string}'; touch started", "--results", "out.jsonl", "-w", "1", *more
        )
        assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
        assert f"--command: {string} is none of" in run.err
    assert os.listdir(cli.folder) == ["tasks"]


@pytest.mark.parametrize(
    "template", ["echo '{}'", 'cp -- "{1}" out/', "sh -c 'echo {.}'", 'echo "it\'s {//}"', 'x "\\"{}"']
)
def test_a_replacement_string_in_quotes_is_refused_before_anything_runs(cli, template):
    """What the line holds would end the quotes."""
    tasks = cli.file("tasks", "a; touch started\n$(touch started)\n")
    run = cli.run(tasks, "--command", f"{template}; touch begun", "-w", "1")
    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert "is in quotes: " in run.err
    assert os.listdir(cli.folder) == ["tasks"]


def test_quotes_that_a_line_cannot_end_are_not_refused():
    assert filled('echo "{#}-{%}" {}', b"a b") == b"echo \"7-3\" 'a b'"
    assert filled('x "$(basename {})" "`basename {}`"', b"a b") == b"x \"$(basename 'a b')\" \"`basename 'a b'`\""
    assert filled(r"echo \'{}\' 'x' {} \"{}\"", b"a b") == rb"""echo \''a b'\' 'x' 'a b' \"'a b'\""""


def test_what_a_line_holds_is_not_filled_again():
    assert filled("{2} {1} {}", b"{1} {#}") == b"'{#}' '{1}' '{1} {#}'"


def test_fields():
    assert filled("{3}{1}", b" a\t b  c ") == b"ca"
    assert filled("{2}|{3}|{1}", b"a,, b", ",") == b"''|' b'|a"
    assert filled("{2}", b"a::b:c", "::") == b"b:c"
    assert filled("{2}", b"a b\tc d", r"\t") == filled("{2}", b"a b\tc d", "\t") == b"'c d'"
    assert filled("{11}", b"a b c d e f g h i j k") == b"k"


@given(st.binary(min_size=1, max_size=40))
def test_whatever_a_line_holds_is_one_word_for_the_shell(line):
    words = shlex.split(filled("echo {} {}", line).decode("utf-8", "surrogateescape"))
    assert [word.encode("utf-8", "surrogateescape") for word in words] == [b"echo", line, line]


def test_any_bytes_reach_a_command_unchanged(put):
    odd = bytes(byte for byte in range(1, 256) if byte not in b"\n\r")
    lines = [odd, b"-n", b" ", b"'", b"\\", b"\xff\xfe", b"# no comment", b"$(touch x)", "ä\u2028€".encode()]
    code, out, _ = put(b"\n".join(lines), "--command", "printf '%s\\n' {}", "-k")
    assert (code, out.split(b"\n")[:-1]) == (0, lines)


def test_a_line_without_a_field_fails_and_says_which_one(cli, put):
    arguments = ("--command", "echo {2}", "--results", "out.jsonl", "-k")
    code, out, err = put("a b\n\nc\nd e\n\n\nf\n", *arguments)
    assert (code, out) == (1, b"b\ne\n")
    by_payload = {result["payload"]: result for result in results_of(cli.folder / "out.jsonl")}
    assert [result["status"] for result in by_payload.values()].count("failed") == 2
    assert (by_payload["c"]["traceback"], by_payload["c"]["value"]) == (None, None)
    assert by_payload["f"]["error"] == "LookupError: no {2}: the line has 1 field; see --delimiter"
    assert b"#2 line 3: command 'c' failed: LookupError: no {2}: " in err


def test_a_dry_run_writes_the_commands(cli):
    """All but the worker's number, which nobody knows yet."""
    tasks = cli.file("tasks", "a b\n\nc\nd 'e'\n")
    run = cli.run(tasks, "--command", "echo {#} {%} {2}", "--dry-run")
    assert (run.code, run.out) == (1, "echo 1 {%} b\nc\necho 3 {%} ''\"'\"'e'\"'\"''\n")
    assert run.err.startswith("shmqueue: #2: no {2}: ")
    assert cli.run(tasks, "--command", "echo", "--dry-run").out == "echo 'a b'\necho c\necho 'd '\"'\"'e'\"'\"''\n"


def test_lines_that_failed_can_be_given_in_again(cli, put):
    arguments = ("--command", "echo {2}; test {2} != 1", "--failed", "tasks")
    assert put("a 0\nb\nc 1\n#d 1\n", *arguments)[0] == 1
    assert sorted((cli.folder / "tasks").read_text().splitlines()) == ["#d 1", "b", "c 1"]


def test_rows_of_a_query_fill_a_template(cli):
    import sqlite3

    with contextlib.closing(sqlite3.connect(cli.folder / "base.sqlite")) as base:
        base.execute("CREATE TABLE t (name)")
        base.executemany("INSERT INTO t VALUES (?)", [("one x",), ("two",)])
        base.commit()
    query = ("--query", "SELECT name FROM t", "--screen", "off")
    run = cli.run("base.sqlite", *query, "--command", "echo got {}", "-k")
    assert (run.code, run.out) == (0, "got one x\ngot two\n")
    assert cli.run("base.sqlite", *query, "--command", "echo {2}").err.startswith(
        "#2 command 'two' failed: LookupError: no {2}: "
    )
    run = cli.run("base.sqlite", "--query", "SELECT name, name FROM t", "--command", "echo {}")
    assert run.code == 2
    assert "--command" in run.err


def test_lines_are_left_out_that_the_results_hold(cli, put):
    arguments = ("--command", "test {2} != bad && echo {1}", "--results", "out.jsonl", "-k")
    assert put("a 1\nb bad\nc\nd 4\n", *arguments)[:2] == (1, b"a\nd\n")
    code, out, err = put("a 1\nb good\nc 3\nd 4\n", *arguments, "--resume")
    assert (code, out) == (0, b"b\nc\n")
    assert b"2 tasks left out" in err


@pytest.mark.parametrize("method", METHODS)
def test_templates_work_with_every_start_method(put, method):
    template = "echo {}{1} $SHMQUEUE_TASK {#}; echo {2} >&2; exit {2}"
    code, out, err = put("a 0\nb 3\n", "--command", template, "--start-method", method, "-k")
    assert (code, out) == (1, b"a 0a 1 1\nb 3b 2 2\n")
    assert err.startswith(b"0\n3\n#2 line 2: command 'b 3' failed: exit code 3: 3\n")


# A command's streams and its end.


def test_task_and_worker_are_in_the_environment(put):
    code, out, _ = put("x\n" * 40, "--command", "echo $SHMQUEUE_TASK {#} $SHMQUEUE_WORKER {%}", "-k")
    rows = [line.split() for line in out.decode().splitlines()]
    assert code == 0
    assert [row[:2] for row in rows] == [[f"{i}", f"{i}"] for i in range(1, 41)]
    assert all(worker in ("0", "1") and worker == number for _, _, worker, number in rows)


def test_output_is_the_value_whether_or_not_the_command_succeeded(cli, put):
    lines = "printf out; printf err >&2; exit 3\nprintf good; printf warning >&2\nprintf '\\377\\0' ; false\n"
    code, out, err = put(lines, "--shell", "--results", "out.jsonl", "-k")
    assert (code, out) == (1, b"outgood\xff\0")
    assert err.startswith(b"errwarning#")
    assert b"#1 line 1: shell 'printf out; printf err >&2; exit 3' failed: exit code 3: err\n" in err
    failed, good, binary = sorted(results_of(cli.folder / "out.jsonl"), key=lambda result: result["tsk_id"])
    assert (failed["status"], failed["value"], failed["error"]) == ("failed", "out", "exit code 3: err")
    assert (good["status"], good["value"], good["error"]) == ("ok", "good", None)
    assert (binary["status"], binary["value"], binary["error"]) == ("failed", "\udcff\0", "exit code 1")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_library_gets_the_same(workers):
    with shmqueue.Supervisor([shmqueue.shell], workers=workers) as supervisor:
        good, bad = sorted(supervisor.run([b"echo a; echo w >&2", b"echo b; echo e >&2; exit 1"]))
    assert (good.status, good.value, good.error, good.traceback) == ("ok", b"a\n", None, None)
    assert (bad.status, bad.value, bad.error, bad.traceback) == ("failed", b"b\n", "exit code 1: e", None)


@pytest.mark.parametrize("name", ["HUP", "KILL", "SEGV", "TERM", "USR1"])
def test_a_signal_is_named(cli, put, name):
    """One that ends the shell, and one that ends what the shell runs."""
    lines = f"echo first; kill -{name} $$\nsh -c 'kill -{name} $$'; exit $?\n"
    code, out, _ = put(lines, "--shell", "--results", "out.jsonl")
    number = getattr(signal, f"SIG{name}").value
    own, inner = sorted(results_of(cli.folder / "out.jsonl"), key=lambda result: result["tsk_id"])
    assert (code, out) == (1, b"first\n")
    assert (own["value"], own["error"]) == ("first\n", f"killed by signal {number} (SIG{name})")
    assert inner["error"].startswith(f"exit code {128 + number} (SIG{name})")


def test_what_a_command_complains_of_goes_to_the_log_if_nothing_is_printed(cli, put):
    lines = "echo out; echo warning >&2\necho more >&2; exit 1\n"
    code, out, err = put(lines, "--shell", "--log", "log", "--no-print")
    assert code == 1
    assert (b"out\n" in out, err) == (False, b"")
    log = (cli.folder / "log").read_text().splitlines()
    assert sorted(re.sub(r"worker \d", "worker N", line) for line in log) == [
        "[worker N task 1] warning",
        "[worker N task 2] more",
    ]


def test_a_command_hears_signals_as_in_a_shell(put):
    code, out, _ = put("trap 'echo caught' INT; kill -INT $$; echo end\n", "--shell")
    assert (code, out) == (0, b"caught\nend\n")


@pytest.mark.long
def test_a_hundred_megabytes(put):
    size = 100_000_000
    zeros = f"head -c {size} /dev/zero"
    lines = f"{zeros} | tr '\\0' x\necho small\n{zeros}; head -c 5000000 /dev/zero >&2; false\n"
    code, out, err = put(lines, "--shell", "-k")
    assert code == 1
    assert len(out) == 2 * size + 6
    expected = b"x" * size + b"small\n" + bytes(size)
    assert hashlib.sha256(out).digest() == hashlib.sha256(expected).digest()
    assert err.startswith(bytes(5_000_000) + b"#3 line 3: shell 'head -c 100000000 /dev")


def test_a_process_that_is_left_behind_does_not_hold_up_its_command(put):
    """It holds both pipes, for longer than `put` waits. It ends with the run."""
    code, out, _ = put("sleep 300 & echo $!\n" * 6, "--shell")
    assert code == 0
    pids = [int(pid) for pid in out.split()]
    assert len(pids) == 6
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_a_process_that_is_left_behind_may_write_without_end(put):
    code, out, _ = put("echo mine; while :; do echo on; sleep 0.01; done &\n", "--shell")
    assert code == 0
    assert out.startswith(b"mine\n")


def test_what_comes_right_behind_the_end_of_a_command_is_not_lost(monkeypatch):
    """As from `tee >(sort)` in bash, which does not wait for it."""
    monkeypatch.setattr(shmqueue, "LINGER_SECONDS", 20.0)
    assert shmqueue.shell(b"echo now; (sleep 0.2; echo late) &") == b"now\nlate\n"


def test_a_command_that_closes_its_streams_is_waited_for(cli, put):
    code, out, _ = put("echo x; exec >&- 2>&-; sleep 0.3; touch done; exit 4\n", "--shell", "--results", "out.jsonl")
    assert (code, out) == (1, b"x\n")
    assert (cli.folder / "done").exists()
    assert results_of(cli.folder / "out.jsonl")[0]["error"] == "exit code 4"


def test_a_command_that_ran_too_long_is_ended_with_what_it_started(put):
    code, out, err = put("echo a; sleep 300\necho b\n", "--shell", "--timeout", "2", "-k")
    assert (code, out) == (1, b"a\nb\n")
    assert b"1 timed out" in err


def test_only_the_last_attempt_is_printed(cli, put):
    line = "echo x >> tries; echo try $(wc -l < tries); test $(wc -l < tries) -ge 3\n"
    assert put(line, "--shell", "--retries", "5")[:2] == (0, b"try 3\n")


# What is printed, and where the summary goes.

VALUES = """
def data(payload): return bytes(range(256))
def text(payload: str) -> str: return payload
def lines(payload): return b"one\\ntwo\\n"
def empty(payload): return b""
def none(payload): return None
def fails(payload): raise ValueError("no value")
def plain(payload): return {"a": [1, 2.5, None, "\\n"], "b": True}
def number(payload: int): return payload * 2
"""


def test_values_get_a_line_end_and_plain_data_is_json(cli, put):
    cli.file("own.py", VALUES)
    lines = "data\ntext ä\ntext \nlines\nempty\nnone\nfails\nplain\nnumber 21\ntext end\n"
    code, out, err = put(lines, "--handlers", "own.py", "--print", "-k")
    assert code == 1
    plain = b'{"a": [1, 2.5, null, "\\n"], "b": true}\n'
    assert out == bytes(range(256)) + "\nä\n\n".encode() + b"one\ntwo\n\n" + plain + b"42\nend\n"
    assert b"no value" in err
    assert b"10 tasks: 9 ok, 1 failed" in err


def test_without_print_functions_print_nothing(cli, put):
    cli.file("own.py", VALUES)
    code, out, err = put("text a\n", "--handlers", "own.py")
    assert (code, err) == (0, b"")
    assert out.startswith(b"1 task: 1 ok")


@pytest.mark.parametrize("arguments", [("--shell",), ("--command", "sh -c {}")])
def test_commands_print_unless_told_otherwise(cli, put, arguments):
    code, out, err = put("printf a\n", *arguments)
    assert (code, out) == (0, b"a")
    assert b"1 task: 1 ok" in err
    code, out, err = put("printf a\n", *arguments, "--results", "-")
    assert (code, json.loads(out)["value"]) == (0, "a")
    assert b"1 task: 1 ok" in err
    code, out, err = put("printf a\n", *arguments, "--no-print")
    assert (code, err) == (0, b"")
    assert b"1 task: 1 ok" in out
    assert put("printf a\n", *arguments, "--print", "--results", "out.csv")[:2] == (0, b"a")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shell", "--print", "--results", "-"), ("--print", "--results -")),
        (("--print", "--results", "-"), ("--print", "--results -")),
        (("--shell", "--print", "--no-print"), ("--print", "--no-print")),
        (("--tag",), ("--tag", "--print")),
        (("--shell", "--no-print", "--tag"), ("--tag", "--print")),
        (("--shell", "--results", "-", "--tag"), ("--tag", "--print")),
        (("-k",), ("--keep-order", "--print")),
        (("--delimiter", ","), ("--delimiter", "--command")),
        (("--command", "echo", "--delimiter", ""), ("--delimiter", "empty")),
        (("--command", ""), ("--command", "empty")),
        (("--command", "echo", "--shell"), ("--command", "--shell")),
    ],
)
def test_contradictions_are_refused(cli, arguments, said):
    run = cli.run(cli.file("tasks", "touch started\n"), "-w", "1", *arguments)
    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert all(word in run.err for word in said), run.err
    assert not (cli.folder / "started").exists()


def test_results_on_standard_output_can_be_in_order_too(put):
    code, out, _ = put("sleep 0.3\ntrue\ntrue\n", "--shell", "--results", "-", "-k")
    assert (code, [json.loads(line)["tsk_id"] for line in out.splitlines()]) == (0, [1, 2, 3])


def test_a_closed_standard_output(cli):
    """It is no mistake to close it. Only to ask for values there is one."""
    cli.file("tasks", "echo x > done\n")
    script = f"exec {sys.executable} {SCRIPT} tasks --screen off -w 1"
    for more, code in (("--shell >&-", 0), ("--shell --print >&-", 2), ("--shell --no-print >&-", 0)):
        done = subprocess.run(["/bin/sh", "-c", f"{script} {more}"], cwd=cli.folder, capture_output=True, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (code, False), (more, done.stderr)


# Tags.


def test_each_line_has_its_task_before_it(put):
    lines = "printf 'one\\n\\ntwo\\n'; printf 'e1\\ne2' >&2; exit 1\nprintf end\ntrue\n"
    code, out, err = put(lines, "--shell", "-k", "--tag")
    first, second, _ = lines.encode().splitlines()
    assert code == 1
    assert out == b"".join([first, b"\tone\n", first, b"\t\n", first, b"\ttwo\n", second, b"\tend"])
    assert err.startswith(first + b"\te1\n" + first + b"\te2#1 line 1: shell ")


def test_tags_stand_only_behind_newlines_whatever_bytes_are_printed(cli, put):
    """Not behind what else may end a line of text. Each byte comes out as it was written, and so does each tag."""
    every = bytes((*range(10), *range(11, 256)))
    cli.file("every", every + "\r\u2028".encode())
    cli.file("two", b"\r\n\xff\r\n\0")
    first, second, third = b"cat every", b"cat two; exit 1", b"cat two # \xff \x85 \x0c"
    code, out, _ = put(b"\n".join([first, second, third]), "--shell", "-k", "--tag")
    assert code == 1
    pieces = [(first, every + "\r\u2028".encode())]
    pieces += [(line, text) for line in (second, third) for text in (b"\r\n", b"\xff\r\n", b"\0")]
    assert out == b"".join(line + b"\t" + text for line, text in pieces)


def test_a_tag_has_the_function_if_the_line_names_one(put):
    assert put("echo a b\necho c\n", "--print", "-k", "--tag")[:2] == (0, b"echo a b\ta b\necho c\tc\n")


# Order.


def test_order_is_that_of_the_input_with_failures_in_their_place(cli, put):
    lines = [f"sleep 0.{i * 7 % 5}; echo {i}; exit {i % 2}" for i in range(24)]
    code, out, _ = put("\n".join(lines), "--shell", "-k", "-w", "8", "--results", "out.jsonl")
    assert (code, out.decode().split()) == (1, [str(i) for i in range(24)])
    finished = [result["tsk_id"] for result in results_of(cli.folder / "out.jsonl")]
    assert sorted(finished) == list(range(1, 25))
    assert finished != sorted(finished), "results are written as they come"


def test_order_holds_while_tasks_wait_for_their_retries(cli, put):
    """Each is printed once, by its last attempt, in its place. Reading ahead stops meanwhile; the retries do not."""
    count, line = 40, "echo >> {1}; tries=$(wc -l < {1}); echo {1} $tries; test $tries -gt {2}"
    arguments = ("-k", "--retries", "2", "--retry-delay", "0.01", "--slots", "2", "--results", "out.jsonl")
    tasks = "".join(f"{number} {number % 4}\n" for number in range(count))
    code, out, _ = put(tasks, "--command", line, *arguments)
    attempts = [min(3, number % 4 + 1) for number in range(count)]
    assert (code, out.decode().splitlines()) == (1, [f"{number} {tries}" for number, tries in enumerate(attempts)])
    results = results_of(cli.folder / "out.jsonl")
    assert [result["attempts"] for result in sorted(results, key=lambda result: result["tsk_id"])] == attempts
    finished = [result["tsk_id"] for result in results]
    assert finished != sorted(finished), "some wait for the retries of those before them"


def test_without_it_values_come_as_they_finish(cli):
    lines = "while [ ! -e go ]; do sleep 0.1; done; echo slow\necho quick\n"
    process = cli.start(cli.file("tasks", lines), "--shell", "-w", "2", "--screen", "off")
    assert select.select([process.stdout], [], [], HANG / 2)[0]
    assert os.read(process.stdout.fileno(), 100) == b"quick\n"
    (cli.folder / "go").touch()
    assert cli.finish(process)[:2] == (0, "slow\n")


class SlowFirst:
    """The first task waits until a file is there, and for another second."""

    __name__ = "slow_first"

    def __init__(self, gate):
        self.gate = gate

    def __call__(self, payload):
        if payload == b"0":
            wait_until(self.gate.exists)
            time.sleep(1.0)
        return payload


@pytest.mark.promise("G5b")
def test_reading_ahead_stops_while_results_wait_for_an_earlier_one(tmp_path):
    slots, gate = 16, tmp_path / "gate"
    taken = itertools.count()
    total = 20_000
    source = shmqueue.IterableSource(b"%d" % next(taken) for _ in range(total))
    delivered, most = [], 0
    put = shmqueue.in_order(delivered.append, source)
    with shmqueue.Supervisor([SlowFirst(gate)], workers=2, num_slots=slots) as supervisor:
        for result in supervisor.run(source):
            put(result)
            most = max(most, source.held)
            if most > slots and not delivered:
                gate.touch()
            if not delivered:
                assert result.tsk_id <= (shmqueue.READ_AHEAD + 2) * slots
    assert [result.value for result in delivered] == [b"%d" % i for i in range(total)]
    assert slots < most <= (shmqueue.READ_AHEAD + 2) * slots
    assert source.held == 0


# One piece.


def test_a_thousand_outputs_of_many_lines_do_not_mix(cli):
    """Neither with each other nor, in one file, with what the commands complain of."""
    total = 1000
    loop = 'i=0; while [ $i -lt {} ]; do echo "$SHMQUEUE_TASK out $i"; i=$((i + 1)); done'
    complaint = 'printf "$SHMQUEUE_TASK err 1\\n$SHMQUEUE_TASK err 2\\n" >&2'
    sizes = [i * 37 % 61 for i in range(total)]
    cli.file("tasks", "".join(f"{size}\n" for size in sizes))
    with open(cli.folder / "both", "wb") as both:
        process = cli.start(
            "tasks", "--command", f"{loop}; {complaint}", "-w", "2", "--screen", "off", stdout=both, stderr=both
        )
        assert process.wait(HANG / 2) == 0
    lines = (cli.folder / "both").read_text().splitlines()
    pieces = [(task, list(group)) for task, group in itertools.groupby(lines, lambda line: line.split()[0])]
    pieces = {int(task): group for task, group in pieces if task.isdigit()}
    assert sorted(pieces) == list(range(1, total + 1))
    for task, size in enumerate(sizes, 1):
        expected = [f"{task} out {i}" for i in range(size)] + [f"{task} err 1", f"{task} err 2"]
        assert pieces[task] == expected
    assert len(lines) - sum(map(len, pieces.values())) in range(1, 4), "the rest is the summary"


def test_large_outputs_do_not_mix(put):
    letters = "abcdefgh"
    lines = [f"head -c 300000 /dev/zero | tr '\\0' {letter}" for letter in letters]
    code, out, _ = put("\n".join(lines), "--shell")
    assert code == 0
    assert in_pieces(out, [letter.encode() * 300_000 for letter in letters])


# A reader that closes early, or takes nothing.


def piped(cli, reader, *arguments):
    """Run `shmqueue tasks ... | reader`. Return the exit code, what the reader wrote, and the error stream."""
    command = " ".join(map(shlex.quote, [sys.executable, "-W", "default", str(SCRIPT), "tasks", *arguments]))
    script = f"{{ {command} --screen off -w 2; echo $? >code; }} | {reader}"
    done = subprocess.run(["/bin/sh", "-c", script], cwd=cli.folder, capture_output=True, timeout=HANG / 2, check=False)
    assert wait_until(lambda: (cli.folder / "code").exists() and (cli.folder / "code").read_text())
    return int((cli.folder / "code").read_text()), done.stdout, done.stderr.decode()


@pytest.mark.parametrize("arguments", [("--shell",), ("--shell", "-k"), ("--shell", "-k", "--tag")])
@pytest.mark.parametrize("reader", ["head -n 1", "true", "exec <&-"])
def test_a_reader_that_closes_early_ends_the_printing_and_not_the_work(cli, reader, arguments):
    cli.file("tasks", "".join(f"seq {i} 20000; echo {i} >> done; echo e >&2\n" for i in range(1, 41)))
    code, out, err = piped(cli, reader, *arguments)
    assert len((cli.folder / "done").read_text().split()) == 40
    assert len(out.splitlines()) == reader.startswith("head")
    assert code == 1
    assert "40 tasks: 40 ok" in err
    said = [line for line in err.splitlines() if not line.startswith(("workers: ", "40 tasks: "))]
    assert {re.sub(r"^.*\t", "", line) for line in said} <= {"e"}


def test_a_full_disk_is_said(cli):
    with open("/dev/full", "wb") as full:
        process = cli.start(
            cli.file("tasks", "echo x; echo y >> done\n" * 9), "--shell", "--screen", "off", stdout=full
        )
        run = cli.finish(process)
    assert run.code == 1
    assert "standard output: No space left on device" in run.err
    assert "9 ok" in run.err
    assert (cli.folder / "done").read_text() == "y\n" * 9


def is_full(pipe):
    """Return True if a pipe holds as much as it can."""
    waiting = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return waiting == fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


@pytest.mark.parametrize("arguments", [("-k",), ("--results", "-")], ids=" ".join)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_can_be_ended_while_its_reader_takes_nothing(cli, number, arguments):
    """Its standard output is full for ever: Ctrl-C twice, or SIGTERM, end it all the same."""
    process = cli.start(cli.file("tasks", "seq 100000\n" * 50), "--shell", "-w", "2", "--screen", "off", *arguments)
    assert wait_until(lambda: is_full(process.stdout))
    assert process.poll() is None
    process.send_signal(number)
    if number == signal.SIGINT:
        time.sleep(0.5)
        assert wait_until(lambda: has_heard(process.pid, number))
        assert process.poll() is None, "what was begun would be printed, if somebody read it"
        process.send_signal(number)
    assert process.wait(HANG / 2) == 128 + number


def test_what_an_interrupt_cuts_off_is_not_written_twice():
    """A third Ctrl-C is raised wherever the run is."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)

    def interrupt():
        raise KeyboardInterrupt

    outlet = shmqueue.Outlet(theirs, interrupt, shmqueue.Progress())
    data = b"".join(b"%07d\n" % i for i in range(20_000))
    with pytest.raises(KeyboardInterrupt):
        outlet.write(data)
    read = os.read(ours, 1 << 20)
    with pytest.raises(KeyboardInterrupt):
        outlet.flush()
    read += os.read(ours, 1 << 20)
    assert len(read) > 1 << 16
    assert data.startswith(read)
    os.close(ours)
    os.close(theirs)


def test_ctrl_c_prints_what_had_begun(cli):
    task = "echo a; echo >> begun; while [ ! -e go ]; do sleep 0.05; done; sleep 0.5; echo b\n"
    process = cli.start(cli.file("tasks", task * 50), "--shell", "-w", "2", "--screen", "off")
    begun = cli.folder / "begun"
    assert wait_until(lambda: begun.exists() and len(begun.read_bytes()) == 2)
    process.send_signal(signal.SIGINT)
    (cli.folder / "go").touch()
    run = cli.finish(process)
    assert run.code == 130
    assert run.out in ("a\nb\n" * n for n in range(2, 50))
    assert "cancelled" in run.err


# A terminal.


def on_terminal(cli, terminal, *arguments, streams=("stdout", "stderr")):
    """Run LINES with a terminal as these streams. Return how it ended, and what came there."""
    options = {"env": {**os.environ, "TERM": "xterm"}, **dict.fromkeys(streams, terminal.theirs)}
    run = cli.run(cli.file("tasks", LINES), "-w", "2", *arguments, **options)
    return run, terminal.all_output()


def outside_of_the_screen(shown):
    """Return what stays on a terminal when the screen is gone."""
    first, *frames = shown.split(ENTER)
    return first + b"".join(frame.partition(LEAVE)[2] for frame in frames)


LINES = "echo one; sleep 0.6\necho two; echo complaint >&2\nsleep 1.8; echo three\n"


def test_values_on_a_terminal_keep_the_screen_away(cli, terminal):
    run, shown = on_terminal(cli, terminal, "--shell")
    assert (run.code, ENTER in shown) == (0, False)
    assert shown.replace(b"\r\n", b"\n").count(b"one\n") == 1
    assert b"3 tasks: 3 ok" in shown


def test_values_on_a_terminal_stay_beside_a_screen_that_is_wanted(cli, terminal):
    run, shown = on_terminal(cli, terminal, "--shell", "--screen", "on")
    assert run.code == 0
    assert shown.count(ENTER) == shown.count(LEAVE) > 1
    left = outside_of_the_screen(shown).replace(b"\r\n", b"\n")
    for line in (b"one\n", b"two\ncomplaint\n", b"three\n", b"3 tasks: 3 ok"):
        assert left.count(line) == 1, left


def test_the_screen_is_there_while_values_go_to_a_file(cli, terminal):
    """What commands complain of stays on the terminal beside it."""
    run, shown = on_terminal(cli, terminal, "--shell", "-k", streams=("stderr",))
    assert (run.code, run.out) == (0, "one\ntwo\nthree\n")
    assert ENTER in shown
    assert b"complaint\r\n" in outside_of_the_screen(shown)


def test_a_pipe_gets_values_soon(cli):
    """Input that comes line by line is not held back until there is more."""
    process = cli.start("-", "--command", "echo got {}", "-w", "1", "--screen", "off")
    for i in range(3):
        process.stdin.write(b"%d\n" % i)
        assert select.select([process.stdout], [], [], HANG / 2)[0]
        assert os.read(process.stdout.fileno(), 100) == b"got %d\n" % i
    process.stdin.close()
    assert process.wait(HANG / 2) == 0
