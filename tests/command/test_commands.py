"""Commands that run too long, and whoever ends the process group of a command."""

import json
import os
import signal
import time

import pytest

import shmqueue
from tests.helpers import HANG, METHODS, ROOT, is_running, segments_of, state_of, wait_until

IGNORE = "trap '' TERM; "  # children inherit that


@pytest.fixture
def run(cli):
    """Start the command line with these lines. Return the process."""

    def start(lines, *arguments, workers=1):
        return cli.start(
            cli.file("tasks", lines), "-w", workers, "--results", "out.jsonl", "--screen", "off", *arguments
        )

    return start


@pytest.fixture
def results(cli, run):
    """Run these lines as commands. Return the results in the order of the input."""

    def put(lines, *arguments, **options):
        process = run(lines, *arguments, **options)
        process.communicate(b"", HANG / 2)  # less than what is to be cut off would take
        told = [json.loads(line) for line in (cli.folder / "out.jsonl").read_text().splitlines()]
        return sorted(told, key=lambda result: result["tsk_id"])

    return put


def pids_in(path, count=1):
    """The pids in a file, once it has so many lines."""
    assert wait_until(lambda: path.exists() and path.read_text().count("\n") >= count)
    return list(map(int, path.read_text().split()))


@pytest.mark.parametrize("how", ["--shell", "--command"])
@pytest.mark.parametrize("method", METHODS)
def test_what_was_written_is_kept_and_the_worker_lives_on(results, method, how):
    """The parent of a command is the worker."""
    lines = "echo $PPID; echo why >&2; sleep 300\necho $PPID\n"
    options = [how, "eval {}"] if how == "--command" else [how]
    late, good = results(lines, *options, "--timeout", "2", "--start-method", method)
    assert (late["status"], late["error"], late["attempts"]) == ("timeout", "ran longer than 2 s: why", 1)
    assert (good["status"], good["value"]) == ("ok", late["value"])
    assert late["seconds"] >= 2


def test_a_worker_that_has_much_to_hand_over_is_not_taken_for_one_that_cannot_end_its_command(cli):
    """The output of a command that wrote gigabytes takes longer than a second, and so does this."""
    tool = """
import sys, time
import shmqueue

attend = shmqueue.attend

def slow(*arguments):
    found = attend(*arguments)
    time.sleep(1.5)
    return found

shmqueue.attend = slow
if __name__ == "__main__":
    sys.exit(shmqueue.main())
"""
    tasks = cli.file("tasks", "echo a; sleep 300\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = (tasks, "--shell", "--timeout", "0.5", "--screen", "off")
    done = cli.finish(cli.start(*arguments, script=cli.file("tool.py", tool), env=environment))
    assert (done.code, done.out) == (1, "a\n")
    assert "timeout: ran longer than 0.5 s\n" in done.err


def test_it_is_printed(cli):
    lines = "echo a; sleep 300\necho b\n"
    done = cli.run(cli.file("tasks", lines), "-w", "1", "--shell", "--timeout", "2", "-k", "--screen", "off")
    assert (done.code, done.out) == (1, "a\nb\n")
    assert "#1 line 1: shell 'echo a; sleep 300' timeout: ran longer than 2 s" in done.err
    assert "1 timed out" in done.err


def test_a_command_hears_sigterm_first_and_what_it_writes_then_is_kept(results):
    lines = "trap 'echo end; exit' TERM; echo begin; sleep 300 & wait\n"
    (late,) = results(lines, "--shell", "--timeout", "2", "--grace", "600")
    assert (late["status"], late["value"]) == ("timeout", "begin\nend\n")


@pytest.mark.parametrize("grace", ["0", "0.5"])
def test_one_that_ignores_sigterm_is_killed_after_the_grace(cli, results, grace):
    """With what it has started, whether that holds the pipes or not."""
    lines = f"{IGNORE}sleep 300 & echo $! >> pids; sleep 300 >&- 2>&- & echo $! >> pids; echo $PPID; wait\necho $PPID\n"
    late, good = results(lines, "--shell", "--timeout", "2", "--grace", grace)
    assert (late["status"], good["status"], late["value"]) == ("timeout", "ok", good["value"])
    assert late["seconds"] >= 2 + float(grace)
    assert wait_until(lambda: not any(map(is_running, pids_in(cli.folder / "pids", 2))))


def test_the_grace_is_also_for_what_has_no_pipe_when_the_shell_has_gone(cli, results):
    cli.file("slow.sh", "trap 'sleep 0.3; echo tidy > done; exit' TERM; echo x > begun; sleep 300 & wait\n")
    lines = "sh slow.sh >&- 2>&- & until test -e begun; do sleep 0.01; done; echo x; wait\n"
    (late,) = results(lines, "--shell", "--timeout", "3", "--grace", "600")
    assert (late["status"], late["value"]) == ("timeout", "x\n")
    assert (cli.folder / "done").read_text() == "tidy\n"


def test_one_that_closes_its_streams_is_ended_in_time(results):
    lines = "echo $PPID; exec >&- 2>&-; sleep 300\necho $PPID\n"
    late, good = results(lines, "--shell", "--timeout", "2")
    assert (late["status"], late["value"]) == ("timeout", good["value"])


def test_one_that_is_left_behind_does_not_make_its_command_late(cli, results):
    (good,) = results("sleep 300 & echo $! > pids; echo x\n", "--shell", "--timeout", "30")
    assert (good["status"], good["value"]) == ("ok", "x\n")
    assert wait_until(lambda: not any(map(is_running, pids_in(cli.folder / "pids"))))


def test_one_that_ends_in_time_is_not_late_by_what_still_writes(monkeypatch):
    monkeypatch.setattr(shmqueue, "LINGER_SECONDS", 20.0)
    assert shmqueue.shell(b"sleep 1.5 & echo in time", timeout=1.0) == b"in time\n"


def test_it_is_tried_again(results):
    line = "echo x >> tries; echo $PPID $(wc -l < tries); test $(wc -l < tries) -ge 3 || sleep 300\n"
    (good,) = results(line, "--shell", "--timeout", "2", "--retries", "5")
    assert (good["status"], good["attempts"], good["value"].split()[1]) == ("ok", 3, "3")


def test_it_is_not_tried_again_if_only_failures_are(results):
    (late,) = results("sleep 300\n", "--shell", "--timeout", "0.3", "--retries", "2", "--retry-on", "failed")
    assert (late["status"], late["attempts"]) == ("timeout", 1)


def test_it_counts_for_halt(results):
    lines = "sleep 300\n" + "true\n" * 50
    options = ("--timeout", "0.3", "--halt", "1", "--batch", "1", "--slots", "2")  # few are there before it is counted
    statuses = [result["status"] for result in results(lines, "--shell", *options)]
    assert statuses[0] == "timeout"
    assert "cancelled" in statuses


# Whoever ends a worker ends the group of its command. `env -i`: no mark in the environment tells whose it is.

BEGUN = "sleep 0.5; echo $PPID >> workers; echo $$ >> pids; exec env -i sleep 300\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_command_ends_with_its_worker(cli, run, method):
    process = run(BEGUN, "--shell", "--start-method", method)
    (command,) = pids_in(cli.folder / "pids")
    (worker,) = pids_in(cli.folder / "workers")
    assert os.getpgid(command) == command != os.getpgid(worker)
    os.kill(worker, signal.SIGKILL)
    assert wait_until(lambda: not is_running(command))
    assert process.wait(HANG / 2) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_commands_end_with_the_run(cli, run, method, number):
    process = run(BEGUN * 2, "--shell", "--start-method", method, workers=2)
    commands = pids_in(cli.folder / "pids", 2)
    process.send_signal(number)
    assert wait_until(lambda: not any(map(is_running, commands)))
    process.wait(HANG / 2)
    assert wait_until(lambda: not segments_of([process.pid]))


def test_a_worker_is_ended_before_its_command(monkeypatch):
    """Else it might report how that ended, and the task would have failed: of two, whatever their numbers are."""
    with shmqueue.Supervisor([shmqueue.shell], workers=1) as supervisor:
        process, groups = supervisor._pool.lanes[0].process, []
        for command in range(1 << 22, (1 << 22) + 8):  # no process has these numbers
            monkeypatch.setattr(process, "command", lambda command=command: command)
            monkeypatch.setattr(shmqueue.system, "killpg", lambda group, number: groups.append(group))
            process.signal_group(signal.SIGKILL)
            assert groups == [process.pid, command]
            groups.clear()
        monkeypatch.undo()


def test_a_worker_notes_the_group_of_its_command(tmp_path):
    """No longer than it runs: then the number may be another group's. A word with a flipped bit is no group."""
    with shmqueue.Supervisor([shmqueue.shell], workers=1) as supervisor:
        queue = supervisor._queue
        word = queue.status[0] + shmqueue.COMMAND
        supervisor.submit(
            shmqueue.shell,
            b"echo $$ > %s/pid; until test -e %s/gate; do sleep 0.01; done" % ((os.fsencode(tmp_path),) * 2),
        )
        (command,) = pids_in(tmp_path / "pid")
        assert wait_until(lambda: queue.command(0) == command)
        noted = queue.words[word]
        for bit in range(64):
            queue.words[word] = noted ^ 1 << bit
            assert queue.command(0) == 0
        queue.words[word] = noted
        (tmp_path / "gate").touch()
        assert [result.status for result in supervisor.results()] == ["ok"]
        assert queue.words[word] == 0


def test_a_command_stands_still_with_its_run(monkeypatch, tmp_path):
    """As Ctrl-Z has it."""
    states = []

    def stand_still(pid, number):
        if pid == os.getpid() and number == signal.SIGTSTP:
            wait_until(lambda: state_of(command) == "T")
            states.append(state_of(command))
        else:
            kill(pid, number)

    kill = os.kill
    monkeypatch.setattr(shmqueue.system, "kill", stand_still)
    with shmqueue.Supervisor([shmqueue.shell], workers=1) as supervisor:
        supervisor.submit(shmqueue.shell, b"sleep 0.5; echo $$ > %s/pid; exec sleep 300" % os.fsencode(tmp_path))
        (command,) = pids_in(tmp_path / "pid")
        supervisor.suspend()
        assert states == ["T"]
        assert wait_until(lambda: state_of(command) == "S")
        supervisor.abort()


def test_time_that_a_worker_stands_still_is_not_its_commands(cli):
    """As when Ctrl-Z stops it."""
    script = cli.file(
        "still.py",
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import shmqueue\n"
        "print(shmqueue.shell(b'touch begun; until test -e gate; do sleep 0.01; done; echo x', 5.0))\n",
    )
    process = cli.start(script=script)
    assert wait_until((cli.folder / "begun").exists)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    cli.file("gate", "")
    assert process.communicate(timeout=60)[0] == b"b'x\\n'\n"
