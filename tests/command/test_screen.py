"""The screen on a real terminal: a pseudo-terminal, whose bytes a terminal emulator (pyte) reads."""

import collections
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import pyte
import pyte.modes
import pytest

import shmqueue
from tests import jobs
from tests.helpers import HANG, SCRIPT, Terminal, is_running, state_of, summary, wait_until, workers_of

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
FRAME = b"\x1b[H"
ALTERNATE = 1049
BEFORE = "what stood there before"
KNOWN = re.compile(rb"\x1b\[(?:\?(?:1049|25|7)[hl]|2?J|H|K|(?:3[123])?m)")  # the commands that the screen needs
# What a test looks at goes on until it makes a file, "go": a machine may be as busy as it likes.
HANDLERS = """
import os, time

def fail(payload):
    time.sleep(0.02)
    raise ValueError(os.fsdecode(payload))

def note(payload: str) -> None:
    with open("notes", "a", errors="surrogateescape") as file:
        file.write(payload + "\\n")
    if not os.path.exists("go"):
        time.sleep(0.05)

def pace(payload):
    if not os.path.exists("go"):
        time.sleep(0.1)

def hold(payload):
    while not os.path.exists("go"):
        time.sleep(0.01)

def die(payload):
    os._exit(3)
"""


class Emulator(pyte.HistoryScreen):
    """A screen with two buffers, as terminals have; `scrolled` counts the lines that left the alternate one."""

    def __init__(self, columns, lines):
        super().__init__(columns, lines, history=10_000)
        self.scrolled, self._kept = 0, None

    @property
    def alternate(self):
        return self._kept is not None

    @property
    def text(self):
        return "\n".join(self.display)

    @property
    def ordinary(self):
        """The lines of the ordinary buffer, with those that have left it."""
        above = ["".join(line[x].data for x in range(self.columns)) for line in self.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.display])

    @property
    def is_as_before(self):
        """Whether the alternate screen is left, the cursor shown, and wrap on."""
        return not self.alternate and not self.cursor.hidden and pyte.modes.DECAWM in self.mode

    def index(self):
        self.scrolled += self.alternate and self.cursor.y == self.lines - 1
        super().index()

    def set_mode(self, *modes, **options):
        super().set_mode(*modes, **options)
        if ALTERNATE in modes and not self.alternate:
            self._kept = self.buffer, self.cursor.x, self.cursor.y, self.history
            self.buffer = type(self.buffer)(self.buffer.default_factory)
            self.history = self.history._replace(top=collections.deque(), bottom=collections.deque())

    def reset_mode(self, *modes, **options):
        super().reset_mode(*modes, **options)
        if ALTERNATE in modes and self.alternate:
            self.buffer, self.cursor.x, self.cursor.y, self.history = self._kept
            self.cursor.y = min(self.cursor.y, self.lines - 1)
            self._kept = None


class Window(Terminal):
    """A terminal with its emulator. A line stands there before."""

    def __init__(self, columns=80, lines=24, known_size=True):
        self.screen, self._marks = Emulator(columns, lines), 0
        self._stream, self._lock = pyte.ByteStream(self.screen), threading.RLock()
        super().__init__()
        if known_size:
            self.resize(columns, lines)
        os.write(self.theirs, BEFORE.encode() + b"\r\n")

    def take(self, block):
        text = block.replace(b"\0", b"")
        super().take(text)
        with self._lock:
            self._stream.feed(text)
        self._marks += block.count(0)

    def resize(self, columns, lines):
        """As a user does who pulls at the window: the kernel sends SIGWINCH."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        if (columns, lines) != (self.screen.columns, self.screen.lines):
            with self._lock:
                self.screen.resize(lines, columns)

    def shows(self, pattern):
        """Wait until the screen, whichever buffer, shows this; the match."""
        found = []

        def look():
            with self._lock:
                found[:] = [re.search(pattern, "\n".join(self.lines))]
            return found[0]

        assert wait_until(look), (pattern, self.screen.display)
        return found[0]

    def settle(self):
        """Wait until all that was written has been read: a NUL, which nothing else writes, comes after it."""
        wanted = self._marks + 1
        os.write(self.theirs, b"\0")
        assert wait_until(lambda: self._marks == wanted)

    @property
    def lines(self):
        with self._lock:
            return [line.rstrip() for line in self.screen.display]

    def assert_as_before(self):
        self.settle()
        assert self.screen.is_as_before, self.output[-300:]
        assert self.has_its_modes()
        assert self.screen.scrolled == 0
        assert BEFORE in self.screen.ordinary

    def assert_commands_are_ours(self):
        """Nothing but text, line ends and the commands that the screen needs."""
        whole = re.sub(rb"\x1b(?:\[\??\d*)?(?=\x1b)", b"", self.output)  # a signal may have cut off a frame
        text = KNOWN.sub(b"", whole).decode(errors="replace")
        assert [c for c in text if not (c.isprintable() or c in "\r\n")] == []


class Desk:
    """Terminals, and what runs on them."""

    def __init__(self, cli):
        self.cli, self.folder, self._terminals = cli, cli.folder, []

    def terminal(self, *size, **options):
        self._terminals.append(Window(*size, **options))
        return self._terminals[-1]

    def start(self, terminal, *arguments, controlling=True, **options):
        """Start the command line with this terminal as its own, and no shell above it."""

        def take():
            fcntl.ioctl(terminal.theirs, termios.TIOCSCTTY, 0)

        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
        environment = {**os.environ, "TERM": "xterm", **options.pop("environment", {})}
        options = {"env": environment, "start_new_session": True, **streams, **options}
        if controlling:
            options |= {"preexec_fn": take, "pass_fds": (terminal.theirs,)}
        return self.cli.start(*arguments, **options)

    def run(self, terminal, *arguments, **options):
        process = self.start(terminal, *arguments, **options)
        return self.wait(process)

    def wait(self, process):
        return process.wait(HANG / 2)

    def go(self):
        """Let what holds end, and what is slow be quick."""
        self.cli.file("go", "")

    def shell(self, terminal):
        """An interactive shell, for job control."""

        def take():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        command = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
        environment = {**os.environ, "TERM": "xterm", "PS1": "ready> ", "HISTFILE": ""}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, start_new_session=True, preexec_fn=take, **streams
        )
        self.cli._started.append(process)
        terminal.shows("ready>")
        return process

    def close(self):
        """End everything; what a signal has left that cannot be caught, the next start would remove."""
        self.cli.close()
        if any(process.returncode in (-signal.SIGKILL, -signal.SIGQUIT) for process in self.cli._started):
            shmqueue.sweep()
        for terminal in self._terminals:
            terminal.close()


@pytest.fixture
def desk(cli):
    it = Desk(cli)
    yield it
    it.close()


@pytest.fixture
def handlers(cli):
    return cli.file("handlers.py", HANDLERS)


def last_line(terminal):
    return terminal.output.rpartition(LEAVE)[2].decode(errors="replace").rstrip("\r\n").rpartition("\n")[2]


def totals(terminal):
    """The counts of the last line of the summary, which stands in the ordinary buffer, be it wrapped."""
    last = last_line(terminal)
    assert last in "".join(terminal.screen.display), terminal.lines
    return summary(last)


# What is drawn.


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 10), (200, 50)])
def test_sizes(desk, handlers, columns, lines):
    terminal = desk.terminal(columns, lines)
    process = desk.start(terminal, desk.cli.file("tasks", "hold a\n" * 16), "-w", "2", "--handlers", handlers)
    terminal.shows(r"(?m)^ shmqueue  tasks(.|\n)*^ worker +(pid +)?state(.|\n)*^      0 (.|\n)*^      1 ")
    terminal.shows(r"\d+ / 16")
    assert terminal.screen.alternate
    assert terminal.screen.cursor.hidden
    assert terminal.lines[-1].startswith(" p pause or go on")
    desk.go()
    assert desk.wait(process) == 0
    terminal.assert_as_before()
    terminal.assert_commands_are_ours()
    assert terminal.screen.ordinary.startswith(BEFORE)
    assert totals(terminal)["ok"] == 16


def test_the_payload_in_hand_is_shown_where_it_is_wide_enough(desk):
    terminal = desk.terminal(140, 24)
    tasks = desk.cli.file("tasks", f"sleep 9; : {'a' * 40} gr\u00fcn\n")
    desk.start(terminal, tasks, "--shell", "--no-print", "-w", "1")
    terminal.shows(r"(?m)^ +0 +\d+  run +shell .* #1 +\d\.\d\d s +'sleep 9; : a\.\.\.a+ gr\u00fcn'$")


def test_nothing_is_left_of_the_frame_before_by_characters_that_take_no_column(desk):
    functions = """
import os, time

def plain(payload):
    raise ValueError("x" * 200)

def marks(payload):
    raise ValueError("e\u0301" * 100)

def wait(payload: str):
    while not os.path.exists(payload):
        time.sleep(0.01)
"""
    handlers = desk.cli.file("marked.py", functions)
    tasks = desk.cli.file("tasks", "plain a\n" * 5 + "wait first\n" + "marks a\n" * 5 + "wait second\n")
    terminal = desk.terminal(80, 24)
    process = desk.start(terminal, tasks, "-w", "1", "--handlers", handlers)
    terminal.shows("plain failed(.|\n)*plain failed")
    desk.cli.file("first", "")
    terminal.shows("marks failed(.|\n)*marks failed")
    shown = [line for line in terminal.lines if "marks failed" in line]
    desk.cli.file("second", "")
    assert desk.wait(process) == 1
    assert [line for line in shown if "x" in line] == []


@pytest.mark.parametrize(("columns", "lines"), [(12, 24), (80, 4), (15, 3), (2, 2)])
def test_nothing_scrolls_on_a_terminal_that_is_too_small(desk, columns, lines):
    terminal = desk.terminal(columns, lines)
    assert desk.run(terminal, desk.cli.file("tasks", "sleep 0.1\n" * 20), "-w", "2") == 0
    terminal.settle()
    assert FRAME in terminal.output
    assert terminal.screen.scrolled == 0
    assert terminal.screen.is_as_before


def test_a_terminal_that_does_not_know_its_size_is_80_by_24(desk, handlers):
    """As on a serial line."""
    terminal = desk.terminal(known_size=False)
    process = desk.start(terminal, desk.cli.file("tasks", "hold a\n" * 16), "-w", "2", "--handlers", handlers)
    terminal.shows(r"\d+ / 16")
    assert re.search(r"\d\d:\d\d:\d\d$", terminal.lines[0])
    desk.go()
    assert desk.wait(process) == 0
    terminal.assert_as_before()


def test_it_follows_the_size_while_it_runs(desk):
    terminal = desk.terminal()
    process = desk.start(terminal, desk.cli.file("tasks", "sleep 0.05\n" * 4000), "-w", "2")
    for columns, lines in ((80, 24), (40, 10), (200, 50), (60, 12), (132, 43), (41, 11)):
        terminal.resize(columns, lines)

        def drawn(columns=columns, lines=lines):
            shown = terminal.lines
            keys = [y for y, line in enumerate(shown) if line.startswith(" p pause or")]
            heads = [line for line in shown if line.startswith(" shmqueue  tasks")]
            wide = columns < 75 or (re.search(r"\d\d:\d\d:\d\d$", shown[0]) and len(shown[0]) == columns - 1)
            return keys == [lines - 1] and len(heads) == 1 and wide

        assert wait_until(drawn), (columns, lines, terminal.lines)
    terminal.type(b"\x03")
    assert desk.wait(process) == 128 + signal.SIGINT
    terminal.settle()
    assert terminal.screen.is_as_before
    assert terminal.has_its_modes()


def test_resizing_all_the_time_does_no_harm(desk):
    terminal = desk.terminal()
    process = desk.start(terminal, desk.cli.file("tasks", "sleep 0.02\n" * 60), "-w", "2")
    for i in range(200):
        terminal.resize(20 + i * 37 % 180, 5 + i * 11 % 50)
        time.sleep(0.002)
    assert desk.wait(process) == 0
    terminal.assert_commands_are_ours()
    terminal.settle()
    assert terminal.screen.is_as_before
    assert summary(last_line(terminal))["ok"] == 60  # a resize after it may have cut it off


def test_more_workers_than_lines(desk, handlers):
    terminal = desk.terminal(80, 16)
    process = desk.start(terminal, desk.cli.file("tasks", "hold a\n" * 400), "-w", "24", "--handlers", handlers)
    more = terminal.shows(r"(?m)^ and (\d+) more: (\d+) run, \d+ done")
    rows = [line for line in terminal.lines if re.match(r" {5,}\d+  (run|sleep)", line)]
    assert len(rows) + int(more[1]) == 24
    desk.go()
    assert desk.wait(process) == 0
    terminal.assert_as_before()
    assert totals(terminal) == {
        "total": 400, "ok": 400, "failed": 0, "timeout": 0, "crashed": 0, "cancelled": 0, "workers": 24,
    }  # fmt: skip


def test_what_the_screen_says_of_the_workers(desk):
    terminal = desk.terminal(120, 24)
    process = desk.start(terminal, desk.cli.file("tasks", "sleep 60\n" * 2), "-w", "3")
    terminal.shows(r"(?m)(^ +\d+ +\d+  run +sleep .*#\d  \d+\.\d\d s\n(.|\n)*){2}")
    terminal.shows(r"(?m)^ +\d+ +\d+  sleep +– ")
    shown = {int(line.split()[1]) for line in terminal.lines if re.match(r" +\d+ +\d+  (run|sleep)", line)}
    assert shown <= set(workers_of(process))
    assert len(shown) == 3
    process.terminate()
    assert desk.wait(process) == 128 + signal.SIGTERM
    terminal.assert_as_before()


def test_a_line_as_wide_as_the_terminal_is_shown_to_its_last_column(desk):
    """Erasing to the end of a line takes the last column with it where the cursor stands on it, as it does then."""
    terminal, handlers = desk.terminal(), desk.cli.file("handlers.py", HANDLERS)
    tasks = desk.cli.file("tasks", b"fail " + b"x" * 200 + b"\nnote a\n" * 30)
    desk.run(terminal, tasks, "--handlers", handlers, "-w", "1")
    terminal.settle()
    full = [line for frame in terminal.output.split(FRAME)[1:] for line in frame.split(b"\r\n") if b"xxxx" in line]
    assert full
    assert max(map(len, full)) > 80
    assert not any(re.search(rb"[^\x1b]{80}\x1b\[K", line) for line in full), full[0]


HOSTILE = {
    "escape": b"\x1b[2J\x1b[31mred\x1b[?1049l",
    "clipboard": b"\x1b]52;c;aGk=\x07 \x1b]0;title\x1b\\",
    "c1": "\x9b31m\x9d52;c;aGk=\x9c\x85".encode(),
    "c1 as bytes": b"\x9b31m\x9d52;c;aGk=\x9c\x85",
    "bidi": "\u202egnp.exe\u202c\u2066\u200f".encode(),
    "controls": b"\x08\x08\x07\x0e\x0f\x7f\r\t\v\f",
    "lines": "a\u2028b\u2029c".encode(),
    "unseen": "\ufeff\u200b\u200d\U000e0041".encode(),
}


@pytest.mark.parametrize("drawn", [True, False])
def test_hostile_text_never_reaches_the_terminal(desk, handlers, drawn):
    """In payloads, errors, values, function names and the file's name; on the screen and in the summary."""
    everything = b" ".join(HOSTILE.values())
    lines = [b"fail " + everything, b"f" + everything, *(b"note " + text for text in HOSTILE.values())]
    tasks = desk.cli.file("tasks\x1b[31m\u202e", b"\n".join(lines) + b"\nnote end" * 8)
    terminal = desk.terminal(400, 40)
    mode = "auto" if drawn else "off"
    assert desk.run(terminal, tasks, "--handlers", handlers, "-w", "1", "--screen", mode) == 1
    terminal.settle()
    assert (ENTER in terminal.output) == drawn
    terminal.assert_commands_are_ours()
    terminal.assert_as_before()
    assert re.search("fail '.*' failed: ValueError: \N{REPLACEMENT CHARACTER}", terminal.screen.ordinary)
    assert totals(terminal)["failed"] == 2


def test_hostile_usage_is_said_without_its_commands(desk):
    terminal = desk.terminal()
    for arguments in (["no\x1b[31m\u202esuch"], ["tasks", "--watch", "x\x1b[2J"], ["t", "--resume\x1b]0;t\x07"]):
        assert desk.run(terminal, *arguments) == 2
    terminal.settle()
    assert b"\x1b" not in terminal.output
    terminal.assert_commands_are_ours()


# How it is written.


def test_a_frame_is_one_write_and_there_are_at_most_ten_a_second(cli):
    """A socket that keeps the bounds of writes stands for the terminal."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    writes = []
    began = time.monotonic()
    with ours:
        process = cli.start(cli.file("tasks", "sleep 0.05\n" * 60), "-w", "2", "--screen", "on", stderr=theirs)
        theirs.close()
        while write := ours.recv(1 << 20):
            writes.append(write)
        assert cli.finish(process).code == 0
    seconds = time.monotonic() - began  # how long it took, or a little more
    *frames, last = writes
    assert all(write.startswith((ENTER, FRAME)) for write in frames), [write[:20] for write in frames]
    assert all(write.count(FRAME) == 1 and write.endswith(b"\x1b[J") for write in frames)
    assert last.endswith(LEAVE)
    assert FRAME not in last
    assert 2 <= len(frames) <= 10 * seconds + 1


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_a_terminal_that_knows_no_commands_gets_none(desk, term):
    terminal = desk.terminal()
    environment = {**os.environ, "TERM": term}
    if term is None:
        del environment["TERM"]
    assert desk.run(terminal, desk.cli.file("tasks", "sleep 0.2\n" * 4), "-w", "2", env=environment) == 0
    terminal.assert_as_before()
    assert b"\x1b" not in terminal.output
    assert totals(terminal)["ok"] == 4


@pytest.mark.parametrize(
    ("environment", "commands"),
    [
        ({}, {b"31", b"32"}),
        ({"TERM": "xterm-256color"}, {b"31", b"32"}),
        ({"TERM": "linux", "NO_COLOR": ""}, {b"31", b"32"}),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, set()),
        ({"TERM": "vt100"}, set()),
        ({"TERM": "no-such-terminal"}, set()),
    ],
)
def test_colours_are_those_of_the_terminal(desk, environment, commands):
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "sha256 absent\nsleep 0.8\nsleep 0.8\n")
    assert desk.run(terminal, tasks, "-w", "2", environment={"NO_COLOR": "", **environment}) == 1
    terminal.assert_as_before()
    seen = terminal.output
    assert ENTER in seen
    assert set(re.findall(rb"\x1b\[([\d;:]*)m", seen)) - {b""} == commands


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_screen_that_goes_to_no_terminal_has_no_colours(cli, term):
    tasks = cli.file("tasks", "sha256 absent\nsleep 0.8\n")
    run = cli.run(tasks, "-w", "1", "--screen", "on", env={**os.environ, "TERM": term})
    assert FRAME.decode() in run.err
    assert re.search(r"\x1b\[[\d;:]*m", run.err) is None


@pytest.mark.parametrize("arguments", [(), ("--screen", "off")])
def test_without_a_terminal_there_are_no_commands(cli, arguments):
    run = cli.run(cli.file("tasks", "sleep 0.2\n" * 4), "-w", "2", *arguments)
    assert run.code == 0
    assert "\x1b" not in run.out + run.err


PLAIN = """
import sys
sys.path.insert(0, {root!r})
import shmqueue
shmqueue.PlainLines.SECONDS = 0.2
raise SystemExit(shmqueue.main())
"""


def test_without_a_terminal_a_plain_line_is_written_now_and_then(cli):
    script = cli.file("plain.py", PLAIN.format(root=str(SCRIPT.parent)))
    run = cli.run(cli.file("tasks", "sleep 0.1\n" * 16), "-w", "2", script=script)
    assert run.code == 0
    lines = run.err.splitlines()
    assert lines
    done = [re.fullmatch(r"shmqueue: (\d+)(?: of \d+)? tasks done, 0 not ok, \d+ tasks/s", line) for line in lines]
    assert all(done), lines
    counts = [int(match[1]) for match in done]
    assert counts == sorted(counts)


def test_results_on_the_same_terminal_are_not_lost_in_the_alternate_screen(desk):
    terminal = desk.terminal(200, 24)
    assert desk.run(terminal, desk.cli.file("tasks", "sleep 0.1\necho seen\n" * 6), "-w", "2", "--results", "-") == 0
    terminal.assert_as_before()
    shown = terminal.screen.ordinary
    assert shown.count('"status": "ok"') == 12, shown


def test_a_summary_that_the_encoding_of_the_output_cannot_say_is_not_lost(cli):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = cli.run(cli.file("tasks", "sha256 ä☃\n"), "-w", "1", "--screen", "off", env=environment)
    assert run.code == 1
    assert "#1 line 1: sha256 " in run.out
    assert "1 task: 0 ok, 1 failed" in run.out


# How it ends.


def interrupt(terminal, process):
    terminal.type(b"\x03")


def interrupt_twice(terminal, process):
    terminal.type(b"\x03")
    terminal.shows(r"\[ending")
    terminal.type(b"\x03")


def quit_key(terminal, process):
    terminal.type(b"q")


def quit_signal(terminal, process):
    terminal.type(b"\x1c")


def terminate(terminal, process):
    process.terminate()


def hang_up(terminal, process):
    process.send_signal(signal.SIGHUP)


def interrupt_paused(terminal, process):
    terminal.type(b"p")
    terminal.shows(r"\[paused\]")
    terminal.type(b"\x03")


ENDINGS = {
    interrupt: (130, 2),
    interrupt_twice: (130, 0),
    interrupt_paused: (130, 2),
    quit_key: (1, 2),
    terminate: (143, 0),
    hang_up: (129, 0),
}


@pytest.mark.promise("G6")
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_endings(desk, handlers, ending):
    """What is begun is finished after the first Ctrl-C and after q, and not otherwise; the terminal is as before."""
    code, ok = ENDINGS[ending]
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "hold a\n" * 42)
    process = desk.start(terminal, tasks, "-w", "2", "--handlers", handlers)
    terminal.shows(r"(?m)(^ +\d+  run (.|\n)*){2}")
    workers = workers_of(process)
    ending(terminal, process)
    if ok:
        terminal.shows(r"\[ending")
        desk.go()
    assert desk.wait(process) == code
    terminal.assert_as_before()
    terminal.assert_commands_are_ours()
    counts = totals(terminal)
    assert (counts["ok"], counts["cancelled"], counts["total"]) == (ok, 42 - ok, 42)
    assert not any(map(is_running, workers))


@pytest.mark.promise("G6")
def test_the_quit_signal_leaves_the_terminal_as_it_was(desk):
    terminal = desk.terminal()
    process = desk.start(terminal, desk.cli.file("tasks", "sleep 60\n" * 4), "-w", "2")
    terminal.shows(r"(?m)(^ +\d+  run (.|\n)*){2}")
    quit_signal(terminal, process)
    assert desk.wait(process) in (-signal.SIGQUIT, 128 + signal.SIGQUIT)
    terminal.assert_as_before()


def test_kill_9_leaves_no_process(desk):
    terminal = desk.terminal()
    process = desk.start(terminal, desk.cli.file("tasks", "sleep 60\n" * 4), "-w", "2")
    terminal.shows(r"(?m)(^ +\d+  run (.|\n)*){2}")
    workers = workers_of(process)
    process.kill()
    process.wait()
    assert wait_until(lambda: not any(map(is_running, workers)))
    assert desk.cli.run("--clean").code == 0


def test_a_worker_that_dies_does_not_disturb_the_screen(desk, handlers):
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "note a\ndie\n" * 4)
    assert desk.run(terminal, tasks, "--handlers", handlers, "-w", "2") == 1
    terminal.assert_as_before()
    terminal.assert_commands_are_ours()
    assert (totals(terminal)["ok"], totals(terminal)["crashed"]) == (4, 4)


def test_a_terminal_that_goes_away_ends_the_run_cleanly(desk):
    """Its window is closed: the code is that of SIGHUP, the results are kept, and the summary is written."""
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "echo a\n" + "sleep 60\n" * 4)
    process = desk.start(terminal, tasks, "-w", "2", "--results", "out.jsonl", "--summary", "summary.json")
    terminal.shows(r"(?m)(^ +\d+  run (.|\n)*){2}")
    assert wait_until(lambda: '"ok"' in (desk.folder / "out.jsonl").read_text())
    terminal.close()
    assert desk.wait(process) == 128 + signal.SIGHUP
    rows = [json.loads(line) for line in (desk.folder / "out.jsonl").read_text().splitlines()]
    assert sorted(row["status"] for row in rows) == ["cancelled"] * 4 + ["ok"]
    assert json.loads((desk.folder / "summary.json").read_text())["cancelled"] == 4


# A program that calls the library, and what it raises.


PROGRAM = """
import os, sys, time
import shmqueue

def nap(payload: str) -> None:
    if payload == "bad":
        raise ValueError("on purpose")
    time.sleep(0.01)

def payloads(way):  # the test makes this file once it has seen a frame
    while not os.path.exists("go"):
        yield "x"
    if way != "task":
        raise ValueError("on purpose")
    yield "bad"

def main(way, workers):
    options = {"workers": int(workers), "num_slots": 16, "screen": True}
    if way == "task":
        shmqueue.parallel_map(nap, payloads(way), **options)
    elif way == "iterable":
        with shmqueue.Supervisor([nap], **options) as supervisor:
            list(supervisor.run(payloads(way)))
    else:
        supervisor = shmqueue.Supervisor([nap], **options)
        list(supervisor.run(payloads(way)))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.promise("G6")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["iterable", "task", "unclosed"])
def test_what_a_program_raises_leaves_the_terminal_as_it_was(desk, way, workers):
    """The program's iterable raises, or one of its tasks; "unclosed": no `with` block is there to end the screen."""
    terminal = desk.terminal(120, 60)
    script = desk.cli.file("program.py", PROGRAM)
    environment = {"PYTHONPATH": str(SCRIPT.parent), "PYTHON_COLORS": "0"}
    process = desk.start(terminal, way, workers, script=script, environment=environment)
    assert wait_until(lambda: FRAME in terminal.output)
    desk.cli.file("go", "")
    assert desk.wait(process) == 1
    terminal.assert_as_before()
    said = terminal.output if way == "unclosed" else terminal.output.rpartition(LEAVE)[2]
    assert b"ValueError: on purpose" in said


# Stopping and going on.


def command(tasks, *arguments):
    return f"{sys.executable} {SCRIPT} {tasks} {' '.join(arguments)}; echo code=$?\n".encode()


@pytest.mark.promise("G6")
def test_ctrl_z_and_fg(desk, handlers):
    terminal = desk.terminal(120, 30)
    shell = desk.shell(terminal)
    before = termios.tcgetattr(terminal.theirs)
    arguments = ("-w", "2", "--results", "out.jsonl", "--handlers", handlers)
    terminal.type(command(desk.cli.file("tasks", "pace a\n" * 400), *arguments))
    for _ in range(2):
        terminal.shows(r"(?m)^ +\d+ +\d+  run ")
        # When it is continued, it draws first, and reads keys from its next check on.
        assert wait_until(lambda: termios.tcgetattr(terminal.theirs) != before)
        terminal.type(b"\x1a")
        assert wait_until(lambda: not terminal.screen.alternate)
        terminal.shows(r"Stopped(.|\n)*ready>\s*$")
        terminal.settle()
        assert terminal.screen.is_as_before
        assert termios.tcgetattr(terminal.theirs) == before
        results = (desk.folder / "out.jsonl").read_text()
        time.sleep(0.3)
        assert (desk.folder / "out.jsonl").read_text() == results, "nothing runs"
        terminal.type(b"clear >/dev/null; fg\n")
        assert wait_until(lambda: terminal.screen.alternate)
    desk.go()
    assert wait_until(lambda: len((desk.folder / "out.jsonl").read_text().splitlines()) == 400)
    terminal.shows(r"400 tasks: 400 ok(.|\n)*ready>\s*$")
    terminal.settle()
    assert terminal.screen.is_as_before
    assert termios.tcgetattr(terminal.theirs) == before
    assert terminal.screen.scrolled == 0
    terminal.type(b"exit\n")
    shell.wait(HANG / 2)


def test_ctrl_z_and_bg_goes_on_in_the_background(desk, handlers):
    """The terminal belongs to the shell then: neither its keys nor its attributes may be touched."""
    terminal = desk.terminal(120, 30)
    shell = desk.shell(terminal)
    arguments = ("-w", "2", "--results", "out.jsonl", "--handlers", handlers)
    terminal.type(command(desk.cli.file("tasks", "pace a\n" * 400), *arguments))
    terminal.shows(r"(?m)^ +\d+ +\d+  run ")
    terminal.type(b"\x1a")
    terminal.shows("Stopped")
    terminal.settle()
    entered = terminal.output.count(ENTER)
    terminal.type(b"bg\n")
    path = desk.folder / "out.jsonl"
    done = path.read_text().count('"ok"')
    assert wait_until(lambda: path.read_text().count('"ok"') >= done + 10), "it was stopped again"
    desk.go()
    assert wait_until(lambda: path.read_text().count('"ok"') == 400), "it was stopped again"
    terminal.settle()
    assert terminal.output.count(ENTER) == entered, "it draws over the shell"
    terminal.type(b"kill -9 %1\nexit\nexit\n")
    shell.wait(HANG / 2)


@pytest.mark.parametrize("arguments", [(), ("--screen", "on")])
def test_in_the_background_it_is_not_stopped_for_the_keys(desk, arguments):
    terminal = desk.terminal(120, 30)
    shell = desk.shell(terminal)
    tasks, path = desk.cli.file("tasks", "sleep 0.1\n" * 8), desk.folder / "out.jsonl"
    line = command(tasks, "-w", "2", "--results", str(path), *arguments).partition(b";")[0]
    terminal.type(line + b" &\n")
    assert wait_until(lambda: path.exists() and path.read_text().count('"ok"') == 8)
    terminal.type(b"wait; echo left=$?\n")
    terminal.shows(r"(?m)left=\d")
    assert terminal.has_its_modes()
    assert ENTER not in terminal.output, "it draws over the shell"
    terminal.type(b"exit\n")
    shell.wait(HANG / 2)


def test_ctrl_z_where_nobody_could_continue_it(desk, handlers):
    """The process group is an orphan, as in a container: the kernel discards SIGTSTP there."""
    terminal = desk.terminal()
    process = desk.start(terminal, desk.cli.file("tasks", "hold a\n" * 10), "-w", "2", "--handlers", handlers)
    terminal.shows(r"(?m)^ +\d+  run ")
    terminal.type(b"\x1a")
    time.sleep(0.2)
    desk.go()
    assert wait_until(lambda: process.poll() is not None), "it was stopped, for ever"
    assert process.returncode == 0
    terminal.assert_as_before()


def test_kill_9_while_it_is_stopped_leaves_no_process(desk):
    terminal = desk.terminal(120, 30)
    shell = desk.shell(terminal)
    terminal.type(command(desk.cli.file("tasks", "sleep 60\n" * 4), "-w", "2"))
    terminal.shows(r"(?m)(^ +\d+ +\d+  run (.|\n)*){2}")
    workers = [int(line.split()[1]) for line in terminal.lines if re.match(r" +\d+ +\d+  run", line)]
    assert len(workers) == 2
    terminal.type(b"\x1a")
    terminal.shows("Stopped")
    terminal.type(b"kill -9 %1; exit\nexit\n")
    shell.wait(HANG / 2)
    left = [] if wait_until(lambda: not any(map(is_running, workers))) else workers
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
    assert desk.cli.run("--clean").code == 0


# Keys.


def notes(desk):
    path = desk.folder / "notes"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_p_pauses_and_goes_on(desk, handlers):
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "".join(f"note {i}\n" for i in range(400)))
    process = desk.start(terminal, tasks, "--handlers", handlers, "-w", "2")
    assert wait_until(lambda: notes(desk) >= 4)
    terminal.shows("p pause or go on")  # what was typed before is no keys
    terminal.type(b"xP ")  # nor are these
    terminal.type(b"p")
    terminal.shows(r"\[paused\]")
    terminal.shows(r"(?m)(^ +\d+  sleep (.|\n)*){2}")
    begun = notes(desk)
    time.sleep(0.4)
    assert notes(desk) == begun < 400
    desk.go()
    terminal.type(b"p")
    assert desk.wait(process) == 0
    assert notes(desk) == 400
    terminal.assert_as_before()
    assert totals(terminal)["ok"] == 400


@pytest.mark.parametrize("keys", [b"q", b"qp", b"qq"])
def test_q_finishes_what_is_begun(desk, handlers, keys):
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "".join(f"note {i}\n" for i in range(400)))
    process = desk.start(terminal, tasks, "--handlers", handlers, "-w", "2")
    assert wait_until(lambda: notes(desk) >= 4)
    terminal.shows("p pause or go on")
    terminal.type(keys)
    assert desk.wait(process) == 1
    terminal.assert_as_before()
    counts = totals(terminal)
    assert 4 <= counts["ok"] == notes(desk) < 400, "begun is finished, and nothing is lost"
    assert counts["ok"] + counts["cancelled"] == counts["total"] == 400


def test_q_while_paused(desk):
    terminal = desk.terminal()
    process = desk.start(terminal, desk.cli.file("tasks", "sleep 0.05\n" * 400), "-w", "2")
    terminal.shows(r"(?m)^ +\d+  run ")
    terminal.type(b"p")
    terminal.shows(r"\[paused\]")
    terminal.type(b"q")
    assert desk.wait(process) == 1
    terminal.assert_as_before()
    assert totals(terminal)["total"] == 400


@pytest.mark.parametrize(("tasks", "title"), [("-", "standard input"), ("/dev/stdin", "stdin")])
def test_the_keyboard_as_the_source_is_no_keys(desk, tasks, title):
    """What is typed are tasks, the line editing of the terminal stays on, and the footer names no keys."""
    terminal = desk.terminal()
    process = desk.start(terminal, tasks, "-w", "1", "--results", "out.jsonl")
    terminal.shows(rf"(?m)^ shmqueue  {title}")
    assert terminal.has_its_modes()
    terminal.type(b"echo p\np\nq\n")
    path = desk.folder / "out.jsonl"
    assert wait_until(lambda: path.read_text().count("\n") == 3)
    assert "pause or go on" not in terminal.screen.text
    terminal.type(b"\x04")
    assert desk.wait(process) == 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((row["function"], row["status"]) for row in rows) == [
        ("echo", "ok"),
        ("p", "failed"),
        ("q", "failed"),
    ]
    assert terminal.has_its_modes()
    terminal.settle()
    assert terminal.screen.is_as_before


@pytest.mark.parametrize("stream", ["pipe", "null", "closed"])
def test_keys_where_standard_input_is_no_terminal(desk, handlers, stream):
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "hold a\n" * 12)
    options = {"pipe": subprocess.PIPE, "null": subprocess.DEVNULL, "closed": None}
    if stream == "closed":
        script = desk.cli.file("closed.py", f"import os, sys\nos.close(0)\nos.execv(sys.executable, {CLOSED!r})\n")
        process = desk.start(terminal, script=script)
    else:
        process = desk.start(terminal, tasks, "-w", "2", "--handlers", handlers, stdin=options[stream])
    terminal.shows(r"(?m)^ +\d+  run ")
    assert "pause or go on" not in terminal.screen.text
    assert terminal.has_its_modes()
    terminal.type(b"pq")
    if stream == "pipe":
        process.stdin.write(b"pq")
    time.sleep(0.2)
    desk.go()
    assert desk.wait(process) == 0
    terminal.settle()
    assert terminal.screen.is_as_before
    assert totals(terminal)["ok"] == 12


CLOSED = [sys.executable, str(SCRIPT), "tasks", "-w", "2", "--handlers", "handlers.py"]


def test_a_terminal_that_is_not_the_controlling_one(desk):
    """As under setsid: its foreground cannot be asked for."""
    terminal = desk.terminal()
    tasks = desk.cli.file("tasks", "sleep 0.1\n" * 8)
    assert desk.run(terminal, tasks, "-w", "2", controlling=False) == 0, terminal.lines
    terminal.assert_as_before()
    assert totals(terminal)["ok"] == 8


# Watching from another terminal.

ALONE = """
import sys
sys.path.insert(0, {root!r})
import shmqueue
shmqueue.shared_directory = lambda: {folder!r}
raise SystemExit(shmqueue.main())
"""


class Watched:
    """Runs whose segments lie in a folder of their own, so that no other run on the machine is seen."""

    def __init__(self, desk):
        self.desk, self.shared = desk, desk.folder / "shared"
        self.shared.mkdir()
        self.script = desk.cli.file("alone.py", ALONE.format(root=str(SCRIPT.parent), folder=str(self.shared)))
        self.processes = []

    @property
    def names(self):
        return sorted(path.name for path in self.shared.iterdir() if "." not in path.name)

    def start(self, data="sleep 60\n" * 4, *arguments):
        before, results = self.names, self.desk.folder / f"out{len(self.processes)}.jsonl"
        tasks = self.desk.cli.file("tasks", data)
        arguments = (tasks, "-w", "2", "--screen", "off", "--results", results, *arguments)
        process = self.desk.cli.start(*arguments, script=self.script, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        assert wait_until(lambda: len(self.names) > len(before) and list(self.shared.glob("*.watch")))
        (name,) = set(self.names) - set(before)
        assert wait_until(lambda: (self.shared / f"{name}.watch").exists())
        return process, name

    def watch(self, terminal, *arguments, **options):
        return self.desk.start(terminal, "--watch", *arguments, script=self.script, **options)


@pytest.fixture
def watched(desk):
    it = Watched(desk)
    yield it
    for process in it.processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        process.wait(HANG / 2)
    assert it.names == [] or any(process.returncode == -signal.SIGKILL for process in it.processes)


@pytest.mark.parametrize("named", [True, False])
def test_watching_shows_the_run_and_leaves_it_as_it_is(desk, watched, named):
    process, name = watched.start()
    before = sorted(path.name for path in watched.shared.iterdir() if not path.name.endswith(".new"))
    terminal = desk.terminal(120, 24)
    watcher = watched.watch(terminal, *([name] if named else []))
    terminal.shows(r"(?m)^ shmqueue  tasks .*" + name + r"(.|\n)*0 +\d+  run +sleep .* #\d (.|\n)*  run +sleep .* #\d ")
    terminal.shows("(?m)^ Ctrl-C leaves")
    shown = {int(line.split()[1]) for line in terminal.lines if re.match(r" +\d+ +\d+  run", line)}
    assert shown == set(workers_of(process))
    terminal.type(b"pq")
    time.sleep(0.3)
    assert watcher.poll() is None
    terminal.type(b"\x03")
    assert desk.wait(watcher) in (0, 128 + signal.SIGINT)
    terminal.assert_as_before()
    terminal.assert_commands_are_ours()
    assert process.poll() is None
    after = sorted(path.name for path in watched.shared.iterdir() if not path.name.endswith(".new"))
    assert after == before
    assert set(workers_of(process)) == shown


def test_watching_ends_with_the_run(desk, watched, handlers):
    process, name = watched.start("pace a\n" * 400, "--handlers", handlers)
    first, second = desk.terminal(120, 20), desk.terminal(40, 10)
    watchers = [watched.watch(terminal, name) for terminal in (first, second)]
    for terminal in (first, second):
        terminal.shows(r"(?m)^ +\d+ +(\d+ +)?run ")
    desk.go()
    assert desk.wait(process) == 0
    for terminal, watcher in zip((first, second), watchers):
        assert desk.wait(watcher) == 0
        terminal.assert_as_before()
    assert (desk.folder / "out0.jsonl").read_text().count('"ok"') == 400
    assert re.search(r"(?m)^ shmqueue  tasks  \[done\] .*" + name, first.screen.ordinary)  # the last frame stays
    assert re.search(r"(?m)^ █+  100\.0%   400 / 400", first.screen.ordinary)
    assert re.search(r"(?m)^ ok 400 ", second.screen.ordinary)


@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGKILL, "killed"), (signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "stopped by SIGINT")],
)
def test_watching_ends_when_the_run_is_stopped(desk, watched, number, ending):
    process, name = watched.start("sleep 3\n" * 40)
    terminal = desk.terminal(120, 20)
    watcher = watched.watch(terminal, name)
    terminal.shows(r"(?m)^ +\d+ +\d+  run ")
    process.send_signal(number)
    process.wait()
    assert wait_until(lambda: watcher.poll() is not None), "it shows a run that is dead"
    terminal.assert_as_before()
    assert f" shmqueue  tasks  [{ending}] " in terminal.screen.ordinary


def test_the_last_frame_of_a_watcher_does_not_name_keys_of_the_run(desk, watched):
    theirs, ours = desk.terminal(120, 20), desk.terminal(120, 20)
    process = desk.start(theirs, desk.cli.file("tasks", "sleep 60\n"), "-w", "1", script=watched.script)
    theirs.shows("q finish what is begun and quit")
    watcher = watched.watch(ours)
    ours.shows("(?m)^ Ctrl-C leaves")
    process.terminate()
    assert desk.wait(watcher) == 0
    assert "[stopped by SIGTERM]" in ours.screen.ordinary
    assert "q finish what is begun and quit" not in ours.screen.ordinary


def test_watching_says_that_a_program_left_tasks_undone(desk, watched):
    code = """
import os, sys
import shmqueue
from time import sleep
shmqueue.shared_directory = lambda: sys.argv[1]
with shmqueue.Supervisor([sleep], workers=1) as supervisor:
    results = supervisor.run([0.2] * 10_000)
    while not os.path.exists("go"):
        next(results)
    raise SystemExit(0)
"""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    process = desk.cli.start(watched.shared, script=desk.cli.file("leaves.py", code), env=environment)
    assert wait_until(lambda: list(watched.shared.glob("*.watch")))
    terminal = desk.terminal(120, 20)
    watcher = watched.watch(terminal)
    terminal.shows(r"(?m)^ +\d+ +\d+  run ")
    desk.go()
    assert desk.cli.finish(process).code == 0
    assert desk.wait(watcher) == 0
    terminal.assert_as_before()
    assert "[ended early]" in terminal.screen.ordinary


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name)
def test_a_watcher_that_is_ended_leaves_its_terminal_as_it_was(desk, watched, number):
    process, name = watched.start()
    terminal = desk.terminal(120, 20)
    watcher = watched.watch(terminal, name)
    terminal.shows(r"(?m)^ +\d+ +\d+  run ")
    watcher.send_signal(number)
    assert desk.wait(watcher) in (128 + number, -number)
    terminal.assert_as_before()
    assert process.poll() is None


def test_a_watcher_that_is_killed_leaves_the_run_alone(desk, watched, handlers):
    process, name = watched.start("pace a\n" * 400, "--handlers", handlers)
    terminal = desk.terminal(120, 20)
    watcher = watched.watch(terminal, name)
    terminal.shows(r"(?m)^ +\d+ +\d+  run ")
    watcher.kill()
    watcher.wait()
    desk.go()
    assert desk.wait(process) == 0
    assert (desk.folder / "out0.jsonl").read_text().count('"ok"') == 400


def test_a_watcher_stopped_by_ctrl_z_gives_the_terminal_back(desk, watched):
    _, name = watched.start()
    terminal = desk.terminal(120, 30)
    shell = desk.shell(terminal)
    terminal.type(f"{sys.executable} {watched.script} --watch {name}; echo code=$?\n".encode())
    terminal.shows(r"(?m)^ +\d+ +\d+  run ")
    terminal.type(b"\x1a")
    terminal.shows("Stopped")
    terminal.settle()
    assert terminal.screen.is_as_before
    terminal.type(b"fg\n")
    assert wait_until(lambda: terminal.screen.alternate)
    terminal.shows(r"(?m)^ +\d+ +\d+  run ")
    terminal.type(b"\x03")
    assert wait_until(lambda: not terminal.screen.alternate)
    terminal.settle()
    assert terminal.screen.is_as_before
    terminal.type(b"exit\nexit\n")
    shell.wait(HANG / 2)


def test_watch_without_a_name_needs_one_run(desk, watched):
    def refused(*arguments):
        run = desk.cli.run("--watch", *arguments, script=watched.script)
        assert (run.code, run.out) == (2, "")
        assert re.fullmatch(r"[\w.]+: error: --watch[^\n]*\n", run.err), run.err
        return run.err

    def is_listed(name, error):
        """Nothing is known yet of a run that writes its snapshot at the moment."""
        return re.search(rf"{name} \(tasks in {desk.folder}, \d\d:\d\d:\d\d, 0 of 4 done\)", error)

    assert "no run is alive" in refused()
    assert "shmq-1-x" in refused("shmq-1-x")
    _, first = watched.start()
    assert first in refused("shmq-1-x")
    assert wait_until(lambda: is_listed(first, refused()))  # nothing can be drawn here
    _, second = watched.start()
    assert wait_until(lambda: is_listed(first, refused()) and is_listed(second, refused()))
    pid = int(second.split("-")[1])
    os.kill(pid, signal.SIGSTOP)  # else it may leave another snapshot
    assert wait_until(lambda: state_of(pid) == "T")
    watched.shared.joinpath(f"{second}.watch").unlink()
    assert f"{second} (nothing is known yet)" in refused()
    os.kill(pid, signal.SIGCONT)
    terminal = desk.terminal(120, 20)
    watcher = watched.watch(terminal, second)
    terminal.shows(second)
    terminal.type(b"\x03")
    desk.wait(watcher)
    watched.processes[0].terminate()
    watched.processes[0].wait()
    terminal = desk.terminal(120, 20)
    watcher = watched.watch(terminal)
    terminal.shows(second)
    terminal.type(b"\x03")
    desk.wait(watcher)
    terminal.assert_as_before()


@pytest.mark.parametrize("where", ["dumb", "pipe"])
def test_watching_without_a_terminal_sends_no_commands(desk, watched, where):
    process, name = watched.start("sleep 0.1\n" * 30)
    if where == "pipe":
        run = desk.cli.run("--watch", name, script=watched.script)
        code, seen = run.code, (run.out + run.err).encode()
    else:
        terminal = desk.terminal()
        code = desk.wait(watched.watch(terminal, name, environment={"TERM": "dumb"}))
        terminal.settle()
        seen = terminal.output
    assert code == 2
    assert b"\x1b" not in seen
    assert b"Traceback" not in seen
    assert desk.wait(process) == 0


ROW = {
    "number": 0, "pid": 4, "completed": 1, "failed": 0, "rate": 1.0, "state": "run", "function": "f", "in_hand": 5,
    "held": 0.1,
}  # fmt: skip
SHOT = {
    **dict.fromkeys(("ok", "failed", "timeout", "crashed", "cancelled", "retried", "respawned", "outstanding"), 0),
    "held_up": "", "seconds": 1.0, "title": "tasks", "name": "NAME", "strategy": "lockf", "total": 9, "rate": 1.0,
    "rates": [1.0], "ring": 0, "num_slots": 16, "workers": [ROW], "failures": [], "state": "", "keys": "",
}  # fmt: skip
HOSTILE_SHOTS = {
    "text": {
        **SHOT, "title": "\x1b[31m", "name": "\x1b]52;c;aGk=\x07", "strategy": "\x9b31m", "state": "\x1b[2J",
        "keys": "\x1bc", "failures": ["\x1b[31m"], "workers": [{**ROW, "state": "\x1b[1", "function": "\x1b[31m"}],
    },
    "more fields": {**SHOT, "of a later version": 5},
    "fewer fields": {"title": "x"},
    "other types": dict.fromkeys(SHOT, "x"),
    "other types in a row": {**SHOT, "workers": [dict.fromkeys(ROW, "x")]},
    "other numbers": {**SHOT, "num_slots": 0},
    "no dict": [1, 2],
    "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("shot", HOSTILE_SHOTS.values(), ids=HOSTILE_SHOTS)
def test_a_snapshot_that_is_spoiled_or_of_another_version_does_no_harm(desk, watched, shot):
    """Whoever can write into the folder can leave such a file; it must not command the terminal."""
    name = f"shmq-{os.getpid()}-0123"
    segment, file = watched.shared / name, watched.shared / f"{name}.watch"
    file.write_text(json.dumps(shot))
    segment.write_bytes(bytes(4096))
    terminal = desk.terminal()
    watcher = watched.watch(terminal, name)
    assert wait_until(lambda: FRAME in terminal.output or watcher.poll() is not None)
    time.sleep(0.2)
    file.unlink()
    segment.unlink()
    assert desk.wait(watcher) in (0, 2)
    terminal.assert_as_before()
    terminal.assert_commands_are_ours()
    assert b"Traceback" not in terminal.output


def test_runs_of_other_users_are_not_seen(monkeypatch, tmp_path):
    """In a folder that all can write into, they would decide what is watched."""
    name = f"shmq-{os.getpid()}-4567"
    (tmp_path / name).write_bytes(bytes(4096))
    monkeypatch.setattr(shmqueue, "shared_directory", lambda: str(tmp_path))
    assert shmqueue.runs() == [name]
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert shmqueue.runs() == []


@pytest.mark.command_line
def test_an_error_of_what_draws_ends_the_drawing_and_not_the_run():
    class Broken(shmqueue.Progress):
        SECONDS = 0.01
        shown = closed = 0

        def show(self, snapshot):
            self.shown += 1
            raise ZeroDivisionError("no such colour")

        def close(self):
            self.closed += 1

    display = Broken()
    with (
        pytest.warns(RuntimeWarning, match="not shown any more: ZeroDivisionError: no such colour"),
        shmqueue.Supervisor([jobs.rest], workers=2, screen=display) as supervisor,
    ):
        assert [result.status for result in supervisor.run(["0.2"] * 4)] == ["ok"] * 4
    assert display.shown == 1
    assert display.closed
