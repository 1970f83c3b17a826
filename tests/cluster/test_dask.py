"""`python -m variants.dask_cluster` against a real scheduler and real nodes on 127.0.0.1, which these tests start.

Left out where `distributed` is not installed. The tests of a process share a cluster. One that ends a part leaves the
next one a new cluster. Each process of the cluster has a session of its own, by which all that it starts is known.
Nodes work in empty folders, so that what they import has travelled.

Where a test needs a run that is half-way, its tasks wait for leave to begin (see Leave): a machine may be as busy as it
likes.
"""

import collections
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from tests.helpers import (
    HANG,
    ROOT,
    document,
    is_running,
    read_line,
    segments_of,
    session_of,
    state_of,
    summary,
    usage_error,
    wait_until,
)  # fmt: skip

if importlib.util.find_spec("distributed") is None:  # to import it takes half a second in each process that has tests
    pytest.skip("a cluster needs Dask: pip install distributed", allow_module_level=True)
pytestmark = pytest.mark.timeout(4 * HANG)

# The processes of a cluster look at themselves up to a hundred times a second, also while they have nothing to do.
QUIET = {
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "1s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
TASKS = 4000
NEVER = 1 << 30
LEAVE = """
import os, time

mine = total = each = 0

def begin(payload):
    \"\"\"Note that a task begins, once it may.\"\"\"
    global mine, total, each
    notes = os.open({notes!r}, os.O_WRONLY | os.O_APPEND)
    while os.fstat(notes).st_size >= 16 * total or mine >= each:
        with open({leave!r}) as file:
            total, each = map(int, file.read().split())
        time.sleep(0.005)
    mine += 1
    os.write(notes, b"%7d %7d\\n" % (int(payload), os.getpid()))
    os.close(notes)
"""
JOBS = """
import os, signal, time

def square(payload: str) -> str:
    return str(int(payload) ** 2)

def sleep(payload: str) -> None:
    time.sleep(float(payload))

def fail(payload: str) -> None:
    raise ValueError(payload)

def die(payload: str) -> None:
    os._exit(3)

def kill_node(payload: str) -> None:
    with open(f"/proc/{os.getppid()}/stat") as file:
        os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
    time.sleep(60)

def where(payload: str) -> str:
    return os.getcwd()
"""


class Dask:
    """A scheduler and two nodes; `pids` are all processes that were seen in their sessions."""

    def __init__(self, folder):
        self.folder = folder
        self.pids = set()
        self.nodes = []
        self.scheduler = None
        self.address = ""
        self._started = []

    def start_scheduler(self):
        """Start one, also in place of one that died."""
        file = self.folder / f"scheduler{len(self._started)}.json"
        where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        self.scheduler = self._start("scheduler", *where)
        assert wait_until(lambda: file.exists() and file.read_text().endswith("}"), HANG)
        self.address = json.loads(file.read_text())["address"]

    def start_nodes(self, count=2):
        """Start nodes of two threads, and wait until the scheduler knows them."""
        where = ("--host", "127.0.0.1", "--nthreads", "2", "--no-dashboard", "--local-directory", ".")
        self.nodes = [self._start("worker", self.address, *where) for _ in range(count)]
        logs = [self.folder_of(node) / "log" for node in self.nodes]
        assert wait_until(lambda: all(b"Registered to" in log.read_bytes() for log in logs), HANG)

    def is_whole(self):
        """Return True if the scheduler and two nodes live. A test may have started another one with fewer."""
        return len(self.nodes) == 2 and all(process.poll() is None for process in (self.scheduler, *self.nodes))

    def folder_of(self, process):
        return self.folder / f"process{self._started.index(process)}"

    def _start(self, *arguments):
        folder = self.folder / f"process{len(self._started)}"
        folder.mkdir()
        command = [sys.executable, "-m", "dask", *arguments]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)
        return process

    def look(self):
        self.pids.update(session_of(*(process.pid for process in self._started)))

    def kill(self, process):
        """As a machine that loses its power, but for what must leave by itself: the processes of Supervisors."""
        self.look()
        for pid in session_of(process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has left meanwhile
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"dask" in command.split(b"\0")[2:3] or b"spawn_main" in command:
                    os.kill(pid, signal.SIGKILL)
        process.wait(HANG / 4)

    def segments(self):
        self.look()
        return segments_of(self.pids)

    def supervisors(self):
        """The pids of the processes on nodes that have a Supervisor."""
        return sorted({int(name.split("-")[1]) for name in self.segments()} & set(filter(is_running, self.pids)))

    def is_replacing(self):
        """Return True if a node begins a process in place of one that died, and the scheduler has not heard of it."""
        logs = [(self.folder_of(node) / "log").read_bytes() for node in self.nodes if node.poll() is None]
        return any(log.count(b"Restarting worker") >= log.count(b"Registered to") for log in logs)

    def close(self):
        self.look()
        if self.scheduler.poll() is None:  # a node that is ended while it replaces a process waits for ever
            wait_until(lambda: not self.is_replacing(), HANG / 4)
        for process in self._started[::-1]:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(HANG / 4)
            except subprocess.TimeoutExpired:
                self.kill(process)
            left = not wait_until(lambda leader=process.pid: not session_of(leader))
            for pid in session_of(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait(HANG / 4)
            assert not left, "processes are left on a node"


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    """The clusters that were started, the one in use last."""
    started = []
    yield started
    for cluster in started:
        cluster.close()


@pytest.fixture
def dask(clusters, tmp_path_factory):
    """A scheduler and two nodes, which run nothing."""
    if not clusters or not clusters[-1].is_whole():
        clusters.append(Dask(tmp_path_factory.mktemp("dask")))
        clusters[-1].start_scheduler()
        clusters[-1].start_nodes()
    yield clusters[-1]
    assert wait_until(lambda: not clusters[-1].segments())


@pytest.fixture
def empty_cluster(tmp_path):
    """A scheduler without nodes."""
    cluster = Dask(tmp_path)
    cluster.start_scheduler()
    yield cluster
    cluster.close()


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


class Leave:
    """Functions whose tasks wait before they begin. `up_to` says how many may, of all and of each process."""

    def __init__(self, cli, functions):
        self._notes = pathlib.Path(cli.file("notes", ""))
        self._leave = cli.folder / "leave"
        self.up_to(0)
        text = LEAVE.format(notes=str(self._notes), leave=str(self._leave))
        self.handlers = cli.file("leave.py", text + functions)

    def up_to(self, total=NEVER, each=NEVER):
        new = self._leave.with_suffix(".new")
        new.write_text(f"{total} {each}")
        new.rename(self._leave)

    def begun(self):
        return self._notes.stat().st_size // 16

    def starts(self):
        """How often each payload has begun."""
        return collections.Counter(line.split()[0] for line in self._notes.read_text().splitlines())

    def by_process(self):
        """How many tasks each process has begun."""
        return collections.Counter(line.split()[1] for line in self._notes.read_text().splitlines())


def numbers(count=TASKS):
    return "".join(f"{n}\n" for n in range(count))


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def recorded(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_squares(results, count=TASKS):
    """Every task has one outcome, and it is right."""
    assert len(results) == count
    assert {result["tsk_id"] for result in results} == set(range(1, count + 1))
    assert all(int(result["value"]) == int(result["payload"]) ** 2 for result in results)
    assert {int(result["payload"]) for result in results} == set(range(count))


def test_what_travels_is_what_the_file_is_now(empty_cluster, deal, cli):
    empty_cluster.start_nodes(1)
    cli.file("helper.py", "def answer():\n    return 'one'\n")
    handlers = cli.file("words.py", "import helper\n\ndef say(payload: str) -> str:\n    return helper.answer()\n")
    arguments = (
        "--handlers",
        handlers,
        "--upload",
        "helper.py",
        "--scheduler",
        empty_cluster.address,
        "--results",
        "-",
    )
    first = cli.finish(deal("say 1\n" * 50, *arguments))
    assert first.values == ["one"] * 50, first
    cli.file("helper.py", "def answer():\n    return 'another'\n")
    with open(handlers, "a") as file:
        file.write("\ndef shout(payload: str) -> str:\n    return helper.answer().upper()\n")
    second = cli.finish(deal("say 1\n" * 50 + "shout 1\ncry\n", *arguments))
    assert second.values == ["another"] * 50 + ["ANOTHER", None], second
    assert "nearest" in second.err or "there are: say" in second.err
    assert empty_cluster.segments() == []


ONE_PROCESS = """
import sys, distributed

options = dict(n_workers=3, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1")
with distributed.LocalCluster(**options, dashboard_address=None) as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


def test_dask_workers_that_share_a_process(deal, cli):
    """They share its modules, too: what one of them imports must not be taken away, or be of an earlier run."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", ONE_PROCESS]
    nodes = subprocess.Popen(command, cwd=cli.folder, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        address = read_line(nodes.stdout).strip()
        for word in ("one", "another"):
            handlers = cli.file("words.py", f"def say(payload: str) -> str:\n    return {word!r}\n")
            done = cli.finish(deal("x\n" * 500, "--call", f"{handlers}:say", "--scheduler", address, "--results", "-"))
            assert done.values == [word] * 500, done
            assert "gets no more" not in done.err
        assert segments_of({nodes.pid}) == []
    finally:
        nodes.communicate(timeout=HANG / 4)
    assert wait_until(lambda: not session_of(nodes.pid))


def test_every_kind_of_outcome(dask, deal, cli, jobs):
    tasks = "square 3\nfail x\ndie x\nsleep 60\nwhere x\n" * 4
    arguments = (
        "--handlers",
        jobs,
        "--timeout",
        "1",
        "--retries",
        "1",
        "--retry-delay",
        "0.1",
        "--scheduler",
        dask.address,
    )
    run = cli.finish(deal(tasks, *arguments, "--results", "-"))
    assert run.code == 1
    assert collections.Counter((r["function"], r["status"], r["attempts"]) for r in run.results) == {
        ("square", "ok", 1): 4, ("fail", "failed", 2): 4, ("die", "crashed", 2): 4, ("sleep", "timeout", 2): 4,
        ("where", "ok", 1): 4,
    }  # fmt: skip
    folders = {str(dask.folder_of(node)) for node in dask.nodes}
    assert {r["value"] for r in run.results if r["function"] == "where"} <= folders
    assert dask.segments() == []


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(dask, deal, cli, jobs, times):
    path = cli.folder / "out.jsonl"
    arguments = ("--handlers", jobs, "--scheduler", dask.address, "--results", str(path))
    run = deal("square 2\n" * 100 + "sleep 1\n" * 200, *arguments)
    assert wait_until(lambda: lines(path) >= 50, HANG)
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


def test_a_node_that_is_to_forget_the_run_stops_the_chunk_in_hand(tmp_path):
    """Also if it hears of that before it hears that nobody wants the chunk: here it never hears the latter."""
    from variants import dask_cluster

    begun = tmp_path / "begun"
    node = dask_cluster.Node()
    node.files = {}
    node.spec = pickle.dumps(({1: begin_and_sleep}, {"workers": 1}))
    state = types.SimpleNamespace(tasks={"chunk": types.SimpleNamespace(state="executing")})
    worker = types.SimpleNamespace(address="here", local_directory=tmp_path, state=state)
    node.setup(worker)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        chunk = thread.submit(node.run, "chunk", pickle.dumps([("begin_and_sleep", str(begun))]))
        assert wait_until(begun.exists, HANG)
        node.teardown(worker)
        assert chunk.result()[1].startswith("InterruptedError")


def begin_and_sleep(path):
    pathlib.Path(path).touch()
    time.sleep(HANG)


def test_the_client_is_killed(dask, deal, cli, jobs):
    run = deal("sleep 60\n" * 100, "--handlers", jobs, "--scheduler", dask.address)
    assert wait_until(lambda: len(dask.segments()) >= 2, HANG)
    run.kill()
    assert wait_until(lambda: not dask.segments())


# The Supervisor on a node, which is in the Dask worker.

BEGINNERS = """
def nap(payload: bytes) -> bytes:
    begin(payload)
    time.sleep(0.004)
    return payload

def square(payload: str) -> str:
    begin(payload)
    return str(int(payload) ** 2)

def tell_worker(payload: str) -> str:
    begin(payload)
    return os.getcwd() + " " + os.environ["SHMQUEUE_WORKER"]

def hold(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)

def die(payload: bytes) -> None:
    begin(payload)
    os._exit(3)
"""


@pytest.fixture
def leave(cli):
    """No task may begin yet."""
    return Leave(cli, BEGINNERS)


def one_each(results, count):
    """The results by payload, after a check that each task has one."""
    assert sorted(result["tsk_id"] for result in results) == list(range(1, count + 1))
    return {result["payload"]: result for result in results}


@pytest.mark.promise("L28")
def test_a_supervisor_dies_and_its_tasks_go_elsewhere(dask, leave, deal, cli):
    """Dask starts the process again. Each task has one outcome, and those of the dead process may start again."""
    path = cli.folder / "out.jsonl"
    run = deal(numbers(2000), "--call", f"{leave.handlers}:square", "--scheduler", dask.address, "--results", str(path))
    for part in (1, 2, 3):
        leave.up_to(part * 500)  # or all might be done before the kill
        assert wait_until(lambda part=part: leave.begun() >= part * 500 and dask.supervisors(), HANG)
        alive = dask.supervisors()  # one, if the tasks of a lost chunk are being tried one by one
        os.kill(alive[part % len(alive)], signal.SIGKILL)
    leave.up_to()
    done = cli.finish(run)
    assert done.code == 0, done
    check_squares(recorded(path), 2000)
    assert max(leave.starts().values()) > 1
    cli.run("--clean")  # as the next start there does


def test_an_idle_node_ends_its_process_and_begins_another_one_when_there_is_work(dask, leave, cli):
    """Here a node is idle after half a second. A task in hand is no idleness."""
    text = document("variants/dask_cluster.py")
    quick, count = re.subn(r"^IDLE_SECONDS = [\d.]+", "IDLE_SECONDS = 0.5", text, flags=re.MULTILINE)
    assert count == 1
    arguments = ("-", "--call", f"{leave.handlers}:square", "--scheduler", dask.address, "--results", "-")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = cli.start(*arguments, "--screen", "off", script=cli.file("dask_cluster.py", quick), env=environment)
    for number in range(3):
        run.stdin.write(b"%d\n" % number)
        assert wait_until(dask.supervisors, HANG)
        time.sleep(1.0)
        leave.up_to(number + 1)
        assert json.loads(read_line(run.stdout))["value"] == str(number**2)
        assert len(leave.by_process()) == number + 1
        assert wait_until(lambda: not dask.segments())
    assert cli.finish(run).code == 0
    assert leave.starts() == {"0": 1, "1": 1, "2": 1}


def test_two_runs_at_once_do_not_disturb_each_other(dask, leave, deal, cli, jobs):
    """The second one brings other functions while the first one has chunks to come."""
    arguments = ("--scheduler", dask.address, "--results", "-")
    first = deal(numbers(400), "--call", f"{leave.handlers}:square", *arguments)
    leave.up_to(each=5)
    assert wait_until(lambda: list(leave.by_process().values()) == [5] * 4, HANG)
    logs = [dask.folder_of(node) / "log" for node in dask.nodes]
    known = [log.read_bytes().count(b"Starting Worker plugin") for log in logs]
    second = deal(numbers(100), "--call", f"{jobs}:square", *arguments)
    assert wait_until(lambda: all(log.read_bytes().count(b"Starting Worker plugin") > n for log, n in zip(logs, known)))
    leave.up_to()
    for run, count in ((first, 400), (second, 100)):
        done = cli.finish(run)
        check_squares(done.results, count)
        assert "gets no more" not in done.err


def test_workers_of_all_nodes_have_numbers_and_the_replaced_ones_are_counted(dask, leave, deal, cli):
    arguments = ("--handlers", leave.handlers, "--scheduler", dask.address, "--summary", "summary.json")
    deaths = 6
    tasks = [f"tell_worker {n}\n" for n in range(600)]
    for place in range(deaths):
        tasks.insert(100 * place + 50, f"die {1000 + place}\n")
    run = deal("".join(tasks), *arguments, "--results", "-")
    leave.up_to(each=5)
    assert wait_until(lambda: list(leave.by_process().values()).count(5) >= 4, HANG)  # both nodes have their workers
    leave.up_to()
    done = cli.finish(run)
    told = json.loads((cli.folder / "summary.json").read_text())
    assert collections.Counter(result["status"] for result in done.results) == {"ok": 600, "crashed": deaths}
    assert told["respawned"] == deaths
    numbers = {(result["value"], result["worker"]) for result in done.results if result["status"] == "ok"}
    assert sorted(number for _, number in numbers) == [0, 1, 2, 3]
    folders = [folder for folder, _, _ in (value.rpartition(" ") for value, _ in sorted(numbers, key=lambda n: n[1]))]
    assert folders == [folders[0]] * 2 + [folders[2]] * 2
    assert all(value.endswith(f" {number % 2}") for value, number in numbers)
    counts = collections.Counter(result["worker"] for result in done.results if result["status"] == "ok")
    assert [worker["completed"] for worker in told["workers"]] == [counts[number] for number in range(4)]
    assert [worker["failed"] for worker in told["workers"]] == [
        sum(result["worker"] == number and result["status"] != "ok" for result in done.results) for number in range(4)
    ]


def test_ctrl_z_stops_the_command_and_not_the_nodes(dask, leave, deal, cli):
    arguments = ("--call", f"{leave.handlers}:square", "--scheduler", dask.address, "--results", "out.jsonl")
    run = deal(numbers(), *arguments)
    for each in (5, 10):
        leave.up_to(each=each)
        assert wait_until(lambda each=each: list(leave.by_process().values()) == [each] * 4, HANG)
        run.send_signal(signal.SIGTSTP)
        assert wait_until(lambda: state_of(run.pid) == "T")
        leave.up_to(each=each + 3)
        assert wait_until(lambda each=each: list(leave.by_process().values()) == [each + 3] * 4, HANG)
        assert state_of(run.pid) == "T"
        run.send_signal(signal.SIGCONT)
        assert wait_until(lambda: state_of(run.pid) == "S")  # it has gone on, and hears the next one
    leave.up_to()
    assert cli.finish(run).code == 0
    check_squares(recorded(cli.folder / "out.jsonl"))
    assert set(leave.starts().values()) == {1}


@pytest.mark.promise("L29")
def test_a_node_begins_a_chunk_when_the_one_before_has_ended(empty_cluster, leave, deal, cli):
    """The first chunk has 64 tasks, and one of them waits."""
    empty_cluster.start_nodes(1)
    leave.up_to()
    path = cli.folder / "go"
    arguments = ("--handlers", leave.handlers, "--scheduler", empty_cluster.address, "--results", "-")
    run = deal(f"hold {path}\n" + "".join(f"square {n}\n" for n in range(199)), *arguments)
    assert wait_until(lambda: leave.begun() >= 63, HANG)
    time.sleep(0.5)
    assert leave.begun() == 63
    path.touch()
    done = cli.finish(run)
    assert done.code == 0, done
    assert leave.begun() == 199


def test_streamed(dask, deal, cli, jobs):
    run = deal("-", "--call", f"{jobs}:square", "--scheduler", dask.address, "--results", "-")
    for number in range(5):
        run.stdin.write(f"{number}\n".encode())
        assert json.loads(read_line(run.stdout))["value"] == str(number**2)
    assert cli.finish(run).code == 0


def test_nodes_that_were_not_counted_for_a_while_are_not_taken_for_gone(dask, deal, cli, jobs):
    """Here the machine that reads the tasks is stopped for longer than it would wait for a node."""
    arguments = ("--handlers", jobs, "--scheduler", dask.address, "--wait", "1", "--results", "-")
    run = deal("sleep 0.5\n" * 16, *arguments)
    assert wait_until(lambda: len(dask.segments()) >= 2 or run.poll() is not None, HANG)
    run.send_signal(signal.SIGSTOP)
    time.sleep(2)
    run.send_signal(signal.SIGCONT)
    done = cli.finish(run)
    assert done.code == 0, done
    assert [result["status"] for result in done.results] == ["ok"] * 16


def test_no_node_comes(empty_cluster, deal, cli):
    arguments = ("--scheduler", empty_cluster.address, "--wait", "1")
    run = cli.finish(deal("5\n" * 10, "--shell", *arguments, "--results", "-"))
    assert run.code == 1
    assert {result["status"] for result in run.results} == {"cancelled"}
    assert "no node at tcp://" in run.err


def test_a_node_that_cannot_start(dask, deal, cli):
    cli.file(
        "broken.py",
        f"import os\nif os.getcwd().startswith({str(dask.folder)!r}):\n    raise OSError('no licence here')\n\n"
        "def f(p): pass\n",
    )
    run = cli.finish(deal("f\n" * 10, "--handlers", "broken.py", "--scheduler", dask.address, "--results", "-"))
    assert run.code == 1
    assert len(run.results) == 10
    assert "no licence here" in run.err


def test_a_node_that_cannot_start_gets_no_more(dask, deal, cli):
    text = (
        f"import os\nif os.getcwd() == {str(dask.folder_of(dask.nodes[0]))!r}:\n    raise OSError('no licence here')\n"
    )
    cli.file("broken.py", text + "\ndef f(p):\n    return os.getcwd()\n")
    arguments = ("--handlers", "broken.py", "--scheduler", dask.address, "--results", "-")
    done = cli.finish(deal("f\n" * 1000, *arguments))
    assert done.code == 0, done
    assert done.values == [str(dask.folder_of(dask.nodes[1]))] * 1000
    assert "gets no more while there are others: OSError: no licence here" in done.err


def test_a_cluster_of_its_own(deal, cli, jobs):
    run = cli.finish(deal(numbers(500), "--call", f"{jobs}:square", "-w", "2", "--results", "-"))
    assert run.code == 0, run
    check_squares(run.results, 500)
    assert summary(run.err)["workers"] == 2


def test_ctrl_c_at_a_cluster_of_its_own(leave, deal, cli):
    """A terminal sends it to all processes of the group. The node is spared, and finishes what is in hand."""
    leave.up_to()
    arguments = ("--call", f"{leave.handlers}:nap", "-w", "2", "--wait", "30", "--results", "-")
    run = deal(numbers(20_000), *arguments, start_new_session=True)
    assert wait_until(lambda: leave.begun() >= 100, HANG)
    os.killpg(run.pid, signal.SIGINT)
    done = cli.finish(run)
    assert done.code == 128 + signal.SIGINT, done.err
    results, starts = one_each(done.results, 20_000), leave.starts()
    assert max(starts.values()) == 1
    assert {payload for payload, result in results.items() if result["status"] == "ok"} == set(starts)
    assert {result["status"] for result in results.values()} == {"ok", "cancelled"}


PROGRAM = "python -m variants.dask_cluster"


def test_no_scheduler_there(deal, cli):
    run = cli.finish(deal("noop\n", "--scheduler", "tcp://127.0.0.1:9"))
    assert run.code == 2
    assert run.err.startswith(f"{PROGRAM}: error: --scheduler tcp://127.0.0.1:9: cannot be reached")
    assert run.err.count("\n") == 1


def test_bad_options_are_told_before_anything_starts(deal, cli):
    run = cli.finish(deal("noop\n", "--scheduler", "tcp://127.0.0.1:9", "--slots", "1"))
    assert (run.code, run.err) == (2, f"{PROGRAM}: error: --slots 1: must be from 2 to 67,108,864\n")
    assert "error: --wait -1: must be 0 or more seconds\n" in usage_error(cli.finish(deal("noop\n", "--wait", "-1")))
    assert "error: --workers 0: on a cluster, " in usage_error(cli.finish(deal("noop\n", "-w", "0")))
    assert "error: absent.py: No such file" in usage_error(cli.finish(deal("noop\n", "--upload", "absent.py")))
    assert "error: --upload: its files must end" in usage_error(cli.finish(deal("noop\n", "--upload", "tasks")))


@pytest.mark.parametrize("option", ["--watch", "--clean"])
def test_what_means_nothing_on_a_cluster_is_refused(deal, cli, option):
    said = usage_error(cli.finish(deal("noop\n", option)))
    assert said == f"{PROGRAM}: error: {option}: is for one machine's runs; use `python shmqueue.py {option}` there\n"


def test_without_dask(cli):
    code = "import sys; sys.modules['distributed'] = None; import variants.dask_cluster as d; sys.exit(d.main())"
    run = cli.finish(cli.start(code, script="-c", env={**os.environ, "PYTHONPATH": str(ROOT)}))
    assert run.code == 2
    assert run.err == f"{PROGRAM}: error: a cluster needs Dask, which is not installed: pip install distributed\n"


def test_that_the_tests_would_see_what_is_left():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)  # noqa: S607
    try:
        assert session_of(child.pid) == [child.pid]
        assert is_running(child.pid)
    finally:
        child.kill()
        child.wait()


# What ends a part of the cluster.


def work_until_all_wait(run, leave, workers=4):
    """Each worker process begins so many tasks that its node has replied, and waits with the next one in hand."""
    leave.up_to(each=1)
    assert wait_until(lambda: list(leave.by_process().values()) == [1] * workers, HANG)
    while min(leave.by_process().values()) <= 64:  # the first chunk has so many
        total = leave.begun() + 50
        leave.up_to(total)
        assert wait_until(lambda total=total: leave.begun() >= total, HANG)
    assert run.poll() is None


def test_a_node_dies_half_way(dask, leave, deal, cli):
    path = cli.folder / "out.jsonl"
    run = deal(numbers(), "--call", f"{leave.handlers}:square", "--scheduler", dask.address, "--results", str(path))
    work_until_all_wait(run, leave)
    dask.kill(dask.nodes[0])
    # Its worker processes leave by themselves.
    assert wait_until(lambda: not session_of(dask.nodes[0].pid))
    leave.up_to()
    done = cli.finish(run)
    assert done.code == 0, done
    results = recorded(path)
    check_squares(results)
    assert {result["status"] for result in results} == {"ok"}
    counts = summary(done.out)
    assert (counts["total"], counts["ok"], counts["workers"]) == (TASKS, TASKS, 4)
    cli.run("--clean")  # what the dead machine's memory held is swept by the next start there


def test_the_last_node_dies_after_ctrl_c(empty_cluster, leave, deal, cli):
    empty_cluster.start_nodes(1)
    arguments = ("--call", f"{leave.handlers}:square", "--scheduler", empty_cluster.address, "--wait", "1")
    run = deal(numbers(), *arguments, "--results", "-")
    leave.up_to(each=1)
    assert wait_until(lambda: leave.begun() == 2, HANG)
    run.send_signal(signal.SIGINT)
    empty_cluster.kill(empty_cluster.nodes[0])
    done = cli.finish(run)
    assert done.code == 128 + signal.SIGINT, done
    results, starts = one_each(done.results, TASKS), leave.starts()
    assert {results[payload]["status"] for payload in starts} == {"crashed"}
    assert {result["status"] for result in results.values()} == {"crashed", "cancelled"}
    cli.run("--clean")


@pytest.mark.promise("L28")
def test_the_tasks_of_a_lost_chunk_go_one_by_one(monkeypatch, tmp_path, deal, cli, jobs):
    """One of them ends each node that has it. It is crashed, and costs the others nothing but another start."""
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    cluster = Dask(tmp_path)
    cluster.start_scheduler()
    cluster.start_nodes(1)
    try:
        tasks = "square 2\n" * 5 + "kill_node x\n" + "square 2\n" * 5
        arguments = ("--handlers", jobs, "--scheduler", cluster.address, "--results", "-")
        done = cli.finish(deal(tasks, *arguments))
        assert done.code == 1, done
        results = sorted(done.results, key=lambda result: result["tsk_id"])
        assert [result["status"] for result in results] == ["ok"] * 5 + ["crashed"] + ["ok"] * 5
        assert "KilledWorker" in results[5]["error"]
        log = cluster.folder_of(cluster.nodes[0]) / "log"
        assert wait_until(lambda: log.read_bytes().count(b"Registered to") == 5)  # Dask starts it after each death
        cli.run("--clean")
    finally:
        cluster.close()


def test_the_only_node_fails_once_and_then_dies(empty_cluster, deal, cli):
    """The chunk that it had then goes to the one that comes in its place."""
    empty_cluster.start_nodes(1)
    node = empty_cluster.nodes[0]
    path = cli.folder / "failed"
    text = f"""
if os.getcwd() == {str(empty_cluster.folder_of(node))!r} and not os.path.exists({str(path)!r}):
    open({str(path)!r}, "x").close()
    raise OSError("no licence here")

def kill_node_once(payload: str) -> None:
    if not os.path.exists(payload):
        open(payload, "x").close()
        kill_node(payload)
"""
    handlers = cli.file("once.py", JOBS + text)
    tasks = f"kill_node_once {cli.folder / 'killed'}\nsquare 2\n"
    done = cli.finish(deal(tasks, "--handlers", handlers, "--scheduler", empty_cluster.address, "--results", "-"))
    assert done.code == 0, done
    assert "gets no more while there are others: OSError: no licence here" in done.err
    assert done.values == [None, "4"]
    cli.run("--clean")


def test_the_scheduler_dies_and_resume_goes_on(dask, leave, deal, cli):
    path = cli.folder / "out.jsonl"
    arguments = ("--call", f"{leave.handlers}:square", "--results", str(path))
    run = deal(numbers(), *arguments, "--scheduler", dask.address)
    work_until_all_wait(run, leave)
    assert wait_until(lambda: lines(path) >= 128, HANG)  # the first chunk of each node
    dask.kill(dask.scheduler)
    done = cli.finish(run)
    assert done.code == 1
    assert "the scheduler at tcp://" in done.out
    assert "--resume" in done.out
    results, starts = one_each(recorded(path), TASKS), leave.starts()
    assert {results[payload]["status"] for payload in starts} == {"ok", "crashed"}
    assert wait_until(lambda: not dask.segments(), HANG)
    dask.start_scheduler()
    dask.start_nodes(1)
    leave.up_to()
    kept = sum(result["status"] == "ok" for result in recorded(path))
    again = cli.finish(deal(numbers(), *arguments, "--scheduler", dask.address, "--resume"))
    assert again.code == 0, again
    assert f"{kept:,} tasks left out" in again.out
    ok = [result for result in recorded(path) if result["status"] == "ok"]
    assert sorted(int(result["payload"]) for result in ok) == list(range(TASKS))
