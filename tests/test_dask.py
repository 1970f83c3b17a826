"""`python -m variants.dask_cluster` against a real scheduler and real nodes on 127.0.0.1, which these tests start.

Left out where `distributed` is not installed. Each process of the cluster has a session of its own, by which all that
it starts is known; nodes work in empty folders, so that what they import has travelled."""

import collections
import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import HANG, ROOT, is_running, segments_of, wait_until
from test_cli import summary, usage_error

from variants import dask_cluster

pytest.importorskip("distributed", reason="a cluster needs Dask: pip install distributed")
pytestmark = pytest.mark.timeout(HANG)

TASKS = 8000
JOBS = """
import os, time

def square(payload: str) -> str:
    time.sleep(0.001)
    return str(int(payload) ** 2)

def sleep(payload: str) -> None:
    time.sleep(float(payload))

def fail(payload: str) -> None:
    raise ValueError(payload)

def die(payload: str) -> None:
    os._exit(3)

def where(payload: str) -> str:
    return os.getcwd()
"""


def session(leader):
    """The processes of a session that run."""
    pids = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[3]) == leader and stat[0] not in "ZX":
            pids.append(int(entry))
    return pids


class Dask:
    """A scheduler and its nodes; `pids` are all processes that were seen in their sessions."""

    def __init__(self, folder):
        self.folder, self.pids, self._started = folder, set(), []
        self.scheduler, self.address = None, ""

    def start_scheduler(self):
        """Also one in place of one that died."""
        file = self.folder / f"scheduler{len(self._started)}.json"
        where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        self.scheduler = self._start("scheduler", *where)
        assert wait_until(lambda: file.exists() and file.read_text().endswith("}"), HANG / 2)
        self.address = json.loads(file.read_text())["address"]

    def start_node(self):
        """A node of two threads."""
        return self._start("worker", self.address, "--host", "127.0.0.1", "--nthreads", "2", "--no-dashboard")

    def all_registered(self):
        return all(b"Registered to" in log.read_bytes() for log in self.folder.glob("worker*/log"))

    def _start(self, *arguments):
        folder = self.folder / f"{arguments[0]}{len(self._started)}"
        folder.mkdir()
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def look(self):
        for process in self._started:
            self.pids.update(session(process.pid))

    def kill(self, process):
        """As a machine that loses its power, but for what must leave by itself: the processes of Supervisors."""
        self.look()
        for pid in session(process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has left meanwhile
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"dask" in command.split(b"\0")[2:3] or b"spawn_main" in command:
                    os.kill(pid, signal.SIGKILL)
        process.wait(HANG / 4)

    def segments(self):
        self.look()
        return segments_of(self.pids)

    def close(self):
        self.look()
        for process in self._started[::-1]:
            process.send_signal(signal.SIGTERM) if process.poll() is None else None
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(HANG / 4)
            left = not wait_until(lambda leader=process.pid: not session(leader), 10)
            for pid in session(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait(HANG / 4)
            assert not left, "processes are left on a node"


@pytest.fixture
def dask(tmp_path):
    cluster = Dask(tmp_path)
    cluster.start_scheduler()
    yield cluster
    cluster.close()


@pytest.fixture
def nodes(dask):
    pair = dask.start_node(), dask.start_node()
    assert wait_until(dask.all_registered, HANG / 2)
    return pair


@pytest.fixture
def deal(cli):
    """Starts the command line over a file of tasks."""

    def start(tasks, *arguments, **options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        path = tasks if tasks == "-" else cli.file("tasks", tasks)
        command = ("-m", "variants.dask_cluster", path, "--screen", "off", *arguments)
        return cli.start(*command[1:], script=command[0], env=environment, **options)

    return start


@pytest.fixture
def jobs(cli):
    return cli.file("jobs.py", JOBS)


def numbers(count=TASKS):
    return "".join(f"{n}\n" for n in range(count))


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def reached(run, path, count):
    """Whether a run that goes on has recorded so many results."""
    return wait_until(lambda: lines(path) >= count or run.poll() is not None, HANG / 2) and run.poll() is None


def recorded(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_squares(results, count=TASKS):
    """Every task has one outcome, and it is right."""
    assert len(results) == count
    assert {result["tsk_id"] for result in results} == set(range(1, count + 1))
    assert all(int(result["value"]) == int(result["payload"]) ** 2 for result in results)
    assert {int(result["payload"]) for result in results} == set(range(count))


def test_a_node_dies_half_way(dask, nodes, deal, cli, jobs):
    path = cli.folder / "out.jsonl"
    run = deal(numbers(), "--call", f"{jobs}:square", "--scheduler", dask.address, "--results", str(path))
    assert reached(run, path, TASKS // 2)
    dask.look()
    first = {result["worker"] for result in recorded(path)[: TASKS // 4]}
    dask.kill(nodes[0])
    assert wait_until(lambda: not session(nodes[0].pid), 10)  # its worker processes have left by themselves
    done = cli.finish(run)
    assert done.code == 0, done
    results = recorded(path)
    check_squares(results)
    assert {result["status"] for result in results} == {"ok"}
    assert len(first) == 4  # both nodes worked, two processes each
    counts = summary(done.out)
    assert (counts["total"], counts["ok"], counts["workers"]) == (TASKS, TASKS, 4)
    cli.run("--clean")  # what the dead machine's memory held is swept by the next start there
    assert dask.segments() == []


def test_what_travels_is_what_the_file_is_now(dask, nodes, deal, cli):
    cli.file("helper.py", "def answer():\n    return 'one'\n")
    handlers = cli.file("words.py", "import helper\n\ndef say(payload: str) -> str:\n    return helper.answer()\n")
    arguments = ("--handlers", handlers, "--upload", "helper.py", "--scheduler", dask.address, "--results", "-")
    first = cli.finish(deal("say 1\n" * 50, *arguments))
    assert first.values == ["one"] * 50, first
    cli.file("helper.py", "def answer():\n    return 'another'\n")
    second = cli.finish(deal("say 1\n" * 50 + "cry\n", *arguments))
    assert second.values == ["another"] * 50 + [None], second
    assert "nearest" in second.err or "there are: say" in second.err
    assert dask.segments() == []


def test_every_kind_of_outcome(dask, nodes, deal, cli, jobs):
    tasks = "square 3\nfail x\ndie x\nsleep 60\nwhere x\n" * 4
    arguments = ("--handlers", jobs, "--timeout", "1", "--retries", "1", "--scheduler", dask.address)
    run = cli.finish(deal(tasks, *arguments, "--results", "-"))
    assert run.code == 1
    assert collections.Counter((r["function"], r["status"], r["attempts"]) for r in run.results) == {
        ("square", "ok", 1): 4, ("fail", "failed", 2): 4, ("die", "crashed", 2): 4, ("sleep", "timeout", 2): 4,
        ("where", "ok", 1): 4,
    }  # fmt: skip
    assert {r["value"] for r in run.results if r["function"] == "where"} <= set(map(str, dask.folder.glob("worker*")))
    assert dask.segments() == []


def test_the_scheduler_dies_and_resume_goes_on(dask, nodes, deal, cli, jobs):
    path = cli.folder / "out.jsonl"
    arguments = ("--call", f"{jobs}:square", "--results", str(path))
    run = deal(numbers(), *arguments, "--scheduler", dask.address)
    assert reached(run, path, TASKS // 4)
    dask.kill(dask.scheduler)
    done = cli.finish(run)
    assert done.code == 1
    assert "the scheduler at tcp://" in done.out
    assert "--resume" in done.out
    assert {result["tsk_id"] for result in recorded(path)} == set(range(1, TASKS + 1))
    assert len(recorded(path)) == TASKS
    assert wait_until(lambda: not dask.segments(), 60)
    dask.start_scheduler()
    dask.start_node()
    kept = sum(result["status"] == "ok" for result in recorded(path))
    again = cli.finish(deal(numbers(), *arguments, "--scheduler", dask.address, "--resume"))
    assert again.code == 0, again
    assert f"{kept:,} tasks left out" in again.out
    ok = [result for result in recorded(path) if result["status"] == "ok"]
    assert sorted(int(result["payload"]) for result in ok) == list(range(TASKS))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(dask, nodes, deal, cli, jobs, times):
    path = cli.folder / "out.jsonl"
    arguments = ("--handlers", jobs, "--scheduler", dask.address, "--results", str(path))
    run = deal("square 2\n" * 100 + "sleep 3\n" * 200, *arguments)
    assert reached(run, path, 50)
    assert wait_until(lambda: len(dask.segments()) >= 2)
    for _ in range(times):
        run.send_signal(signal.SIGINT)
    done = cli.finish(run)
    assert done.code == 128 + signal.SIGINT
    results = recorded(path)
    assert sorted(result["tsk_id"] for result in results) == list(range(1, 301))
    assert {result["status"] for result in results} == {"ok", "cancelled"}
    assert dask.segments() == []
    assert cli.finish(deal("square 2\n", *arguments[:4])).code == 0  # the cluster is as it was


def test_the_client_is_killed(dask, nodes, deal, cli, jobs):
    run = deal("sleep 60\n" * 100, "--handlers", jobs, "--scheduler", dask.address)
    assert wait_until(lambda: len(dask.segments()) >= 2, HANG / 2)
    run.kill()
    assert wait_until(lambda: not dask.segments(), 30)


# The process on a node that has the Supervisor.

LEDGER = """
import ctypes, os, signal, time

def start(payload):
    file = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, payload + b"\\n")
    os.close(file)

def nap(payload: bytes) -> bytes:
    start(payload)
    time.sleep(0.004)
    return payload

def quick(payload: bytes) -> bytes:
    start(payload)
    return payload

def kill_supervisor(payload: bytes) -> bytes:
    start(payload)
    if os.getcwd().endswith({where!r}):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return payload

def hold_interpreter(payload: bytes) -> bytes:
    start(payload)
    ctypes.PyDLL(None).sleep(60)
    return payload
"""


class Ledger:
    """Functions that note each start in a file; `where` is the end of the folders in which some do harm."""

    def __init__(self, cli, where=""):
        self._file = cli.folder / "ledger"
        self.handlers = cli.file("ledger.py", LEDGER.format(ledger=str(self._file), where=where))

    def count(self):
        return lines(self._file)

    def starts(self):
        return collections.Counter(self._file.read_text().split())


def supervisors(dask):
    """The pids of the processes on nodes that have a segment."""
    return sorted({int(name.split("-")[1]) for name in dask.segments()} & set(filter(is_running, dask.pids)))


def one_each(results, count):
    """The results by payload, after a check that each task has one."""
    assert sorted(result["tsk_id"] for result in results) == list(range(1, count + 1))
    return {result["payload"]: result for result in results}


def surplus(results, starts):
    """How many attempts beyond the first were counted, after a check that none was missed. A task that is killed
    before the first line of its function has one more attempt than starts."""
    assert all(starts[payload] <= result["attempts"] for payload, result in results.items())
    assert set(starts) <= set(results)
    return sum(result["attempts"] for result in results.values()) - len(results)


@pytest.mark.parametrize(("function", "count"), [("nap", 3000), ("quick", 60000)])
@pytest.mark.parametrize("retries", [0, 2])
def test_the_death_of_a_supervisor_costs_the_tasks_in_hand_an_attempt(dask, nodes, deal, cli, retries, function, count):
    ledger, kills = Ledger(cli), 3
    arguments = ("--call", f"{ledger.handlers}:{function}", "--retries", str(retries), "--scheduler", dask.address)
    run = deal(numbers(count), *arguments, "--results", str(cli.folder / "out.jsonl"))
    for part in range(1, kills + 1):
        assert wait_until(lambda part=part: ledger.count() > part * count // 5, HANG / 2)
        os.kill(supervisors(dask)[part % 2 - 1], signal.SIGKILL)
    done = cli.finish(run)
    results, starts = one_each(recorded(cli.folder / "out.jsonl"), count), ledger.starts()
    bad = [result for result in results.values() if result["status"] != "ok"]
    assert surplus(results, starts) + len(bad) <= 2 * kills  # two workers a node
    assert all(result["value"] == payload for payload, result in results.items() if result["status"] == "ok")
    assert max(result["attempts"] for result in results.values()) <= retries + 1
    assert done.code == (1 if bad else 0), done
    if retries:
        assert not bad
    else:
        assert {result["status"] for result in bad} <= {"crashed"}
        assert all("its process ended with code -9 while the task ran" in result["error"] for result in bad)
    cli.run("--clean")  # as the next start there does
    assert wait_until(lambda: not dask.segments(), 10)


def test_a_node_whose_supervisor_dies_each_time_is_left_out(dask, nodes, deal, cli):
    ledger = Ledger(cli, "worker1")
    arguments = ("--call", f"{ledger.handlers}:kill_supervisor", "--retries", "3", "--scheduler", dask.address)
    done = cli.finish(deal(numbers(200), *arguments, "--results", "-"))
    assert done.code == 0, done
    results, starts = one_each(done.results, 200), ledger.starts()
    assert 3 <= surplus(results, starts) <= 3 * 2
    assert "had to be left out: its process ended with code -9" in done.err


def test_supervisors_that_die_on_all_nodes_end_the_run(dask, nodes, deal, cli):
    ledger = Ledger(cli)
    done = cli.finish(
        deal(
            numbers(200), "--call", f"{ledger.handlers}:kill_supervisor", "--scheduler", dask.address, "--results", "-"
        )
    )
    assert done.code == 1
    results = one_each(done.results, 200)
    counts = collections.Counter(result["status"] for result in results.values())
    assert set(counts) == {"crashed", "cancelled"}
    assert 6 <= counts["crashed"] <= 12  # three deaths on each of two nodes, of two workers
    assert set(ledger.starts()) <= {p for p, r in results.items() if r["status"] == "crashed"}
    assert max(ledger.starts().values()) == 1
    assert "its process ended with code -9" in done.err


def test_a_worker_that_cannot_leave_after_its_supervisor_is_killed(dask, nodes, deal, cli):
    ledger = Ledger(cli)
    tasks = "hold_interpreter 1\n" + "".join(f"nap {n}\n" for n in range(2, 1001))
    run = deal(tasks, "--handlers", ledger.handlers, "--scheduler", dask.address, "--results", "-", "--batch", "16")
    assert wait_until(lambda: ledger.starts()["1"] if ledger.count() else 0, HANG / 2)
    pids = supervisors(dask)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    results, starts = one_each(cli.finish(run).results, 1000), ledger.starts()
    assert results["1"]["status"] == "crashed"
    assert sum(result["status"] != "ok" for result in results.values()) <= 2 * len(pids)
    assert max(starts.values()) == 1
    assert len(starts) >= 1000 - len(pids)


def test_no_task_begins_in_a_chunk_that_was_taken_back(tmp_path):
    file = tmp_path / "run-1"
    file.write_bytes(bytes(3))
    begin = "import sys; from variants.dask_cluster import Journal; Journal(sys.argv[1]).open(1)"

    def attempt(before=""):
        command = [sys.executable, "-c", before + begin, str(tmp_path / "run")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    with open(file, "r+b") as journal:
        fcntl.lockf(journal, fcntl.LOCK_EX)
        assert "BlockingIOError" in attempt().stderr
        late = (
            "import fcntl, os; lock = fcntl.lockf; fcntl.lockf = lambda *a: (os.unlink(sys.argv[1] + '-1'), lock(*a));"
        )
        fcntl.lockf(journal, fcntl.LOCK_UN)
        assert "was taken back" in attempt("import sys;" + late).stderr
        assert journal.read() == bytes(3)


def test_records_are_read_up_to_what_is_torn(tmp_path):
    outcomes = [(0, "ok", b"value", None, 1, None, 0.5), (2, "failed", None, "KeyError", 1, None, 0.5)]
    data, file = b"".join(map(dask_cluster.pack, outcomes)), tmp_path / "records"
    file.write_bytes(data)
    assert list(dask_cluster.read_records(str(file))) == outcomes
    for length in range(len(data)):
        file.write_bytes(data[:length])
        assert list(dask_cluster.read_records(str(file))) in ([], outcomes[:1])


def test_streamed(dask, nodes, deal, cli, jobs):
    run = deal("-", "--call", f"{jobs}:square", "--scheduler", dask.address, "--results", "-")
    for number in range(5):
        run.stdin.write(f"{number}\n".encode())
        assert json.loads(run.stdout.readline())["value"] == str(number**2)
    assert cli.finish(run).code == 0


def test_no_node_comes(dask, deal, cli):
    run = cli.finish(deal("5\n" * 10, "--shell", "--scheduler", dask.address, "--wait", "1", "--results", "-"))
    assert run.code == 1
    assert {result["status"] for result in run.results} == {"cancelled"}
    assert "no node at tcp://" in run.err


def test_a_node_that_cannot_start(dask, nodes, deal, cli):
    cli.file(
        "broken.py",
        "import os\nif os.getcwd().find('worker') > 0: raise OSError('no licence here')\n\ndef f(p): pass\n",
    )
    run = cli.finish(deal("f\n" * 10, "--handlers", "broken.py", "--scheduler", dask.address, "--results", "-"))
    assert run.code == 1
    assert len(run.results) == 10
    assert "no licence here" in run.err


def test_a_cluster_of_its_own(deal, cli, jobs):
    run = cli.finish(deal(numbers(500), "--call", f"{jobs}:square", "-w", "2", "--results", "-"))
    assert run.code == 0, run
    check_squares(run.results, 500)
    assert summary(run.err)["workers"] == 2


def test_no_scheduler_there(deal, cli):
    run = cli.finish(deal("noop\n", "--scheduler", "tcp://127.0.0.1:9"))
    assert run.code == 2
    assert run.err.startswith("shmqueue: --scheduler tcp://127.0.0.1:9: cannot be reached")
    assert run.err.count("\n") == 1


def test_bad_options_are_told_before_anything_starts(deal, cli):
    run = cli.finish(deal("noop\n", "--scheduler", "tcp://127.0.0.1:9", "--slots", "1"))
    assert (run.code, run.err) == (2, "shmqueue: --slots 1: must be from 2 to 67,108,864\n")
    assert usage_error(cli.finish(deal("noop\n", "--wait", "-1"))) == "shmqueue: --wait -1: must be 0 or more seconds\n"
    assert "--upload absent.py: must be a file" in usage_error(cli.finish(deal("noop\n", "--upload", "absent.py")))


@pytest.mark.parametrize("option", [("--retry-delay", "1"), ("--retry-on", "failed")])
def test_how_retries_go_cannot_be_chosen_on_a_cluster(deal, cli, option):
    assert option[0] in usage_error(cli.finish(deal("noop\n", *option)))


@pytest.mark.parametrize("option", ["--watch", "--clean"])
def test_what_means_nothing_on_a_cluster_is_refused(deal, cli, option):
    said = usage_error(cli.finish(deal("noop\n", option)))
    assert said == f"shmqueue: {option}: is for one machine's runs; use `python shmqueue.py {option}` there\n"


def test_without_dask(cli):
    code = "import sys; sys.modules['distributed'] = None; import variants.dask_cluster as d; sys.exit(d.main())"
    run = cli.finish(cli.start(code, script="-c", env={**os.environ, "PYTHONPATH": str(ROOT)}))
    assert run.code == 2
    assert run.err == "shmqueue: a cluster needs Dask, which is not installed: pip install distributed\n"


def test_that_the_tests_would_see_what_is_left():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)  # noqa: S607
    try:
        assert session(child.pid) == [child.pid]
        assert is_running(child.pid)
    finally:
        child.kill()
        child.wait()
