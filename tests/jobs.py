"""Functions that workers call in tests, and strategies that tests start workers with.

All are at the top level, so that workers can import them if they are not forked.
"""

import ctypes
import faulthandler
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import shmqueue


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_int32))


class Record(ctypes.Structure):
    """Longer than a slot."""

    _fields_ = (("number", ctypes.c_uint64), ("text", ctypes.c_char * 300))


# Payloads and values.


def echo(payload: bytes) -> bytes:
    return payload


def echo_text(payload: str) -> str:
    return payload


def echo_point(payload: Point) -> Point:
    return Point(payload.y, payload.x)


def echo_record(payload: Record) -> Record | None:
    return Record(payload.number + 1, payload.text)


def quiet(payload: bytes) -> None:
    """Return nothing, as fast as possible."""


def kind(payload):
    return type(payload).__name__


def kind_of_bytes(payload: bytes) -> str:
    return type(payload).__name__


def kind_of_text(payload: str) -> str:
    return type(payload).__name__


def kind_of_text_by_name(payload: "str") -> str:
    return type(payload).__name__


def kind_of_point(payload: Point) -> str:
    return f"{type(payload).__name__} {payload.x} {payload.y}"


def kind_of_point_or_none(payload: Point | None) -> str:
    return type(payload).__name__


def undeclared_point(payload):
    return Point(1, 2)


def kind_of_either(payload: str | bytes) -> str:
    return type(payload).__name__


def kind_of_list(payload: list[int]) -> str:
    return type(payload).__name__


def kind_of_lost(payload: "Lost") -> "Lost | None":  # noqa: F821
    return type(payload).__name__


class LazyAnnotations:
    """As a function of Python 3.14 whose annotations cannot be evaluated: looking at them raises."""

    def __call__(self, payload):
        return type(payload).__name__

    @property
    def __signature__(self):
        raise NameError("name 'Lost' is not defined")


def echo_any(payload):
    return payload


def return_array(payload):
    import numpy

    return numpy.arange(3)


def echo_int(payload: int):
    return payload


def echo_float(payload: "float | None"):
    return payload


def give_by_number(values, number):
    return values[number]


def return_bytearray(payload: bytes) -> bytearray:
    return bytearray(b"a")


def return_unknown_class(payload: bytes):
    """An object of a class that other processes cannot load."""
    missing = type("Missing", (), {"__module__": __name__})
    globals()["Missing"] = missing
    return missing()


def tell_time(payload: float) -> float:
    """When this was called; it takes `payload` seconds."""
    now = time.time()
    time.sleep(payload)
    return now


def same(payload):
    return payload


def sleep_a_little(payload: bytes) -> None:
    time.sleep(0.01)


def digest(payload: bytes) -> str:
    return f"{len(payload)} {hashlib.sha256(payload).hexdigest()}"


def blow_up(payload: str) -> bytes:
    """Return as many bytes as the payload says."""
    return pattern(int(payload))


def pattern(size: int) -> bytes:
    """Return `size` bytes that differ from place to place."""
    return (bytes(range(256)) * (size // 256 + 1))[:size]


class Callable:
    """A callable that is not a function."""

    def __call__(self, payload: str) -> str:
        return payload.upper()

    def method(self, payload: str) -> str:
        return payload.upper()


# Side effects. Before anything else, these functions append a line to the file that the payload names.


def note(payload: str) -> None:
    path, _, text = payload.partition("|")
    with open(path, "ab", buffering=0) as file:
        file.write(text.encode() + b"\n")


def note_slowly(payload: str) -> None:
    note(payload)
    time.sleep(0.002)


def note_and_raise(payload: str) -> None:
    note(payload)
    raise ValueError("on purpose")


def note_and_die(payload: str) -> None:
    note(payload)
    os._exit(7)


def note_and_hang(payload: str) -> None:
    note(payload)
    hang(b"")


def fail_twice(payload: str) -> str:
    """Fail until the file has three lines."""
    note(payload)
    with open(payload.partition("|")[0], "rb") as file:
        lines = file.read().count(b"\n")
    if lines < 3:
        raise ValueError(f"attempt {lines}")
    return f"attempt {lines}"


def wait_for_file(payload: str) -> str:
    while not os.path.exists(payload):
        time.sleep(0.005)
    return "there"


def note_and_wait(payload: str) -> str:
    """Note that the task has begun, then wait until a file exists."""
    path, text, gate = payload.split("|")
    note(f"{path}|{text}")
    return wait_for_file(gate)


def rest(payload: str) -> None:
    time.sleep(float(payload))


def rest_and_fail(payload: str) -> None:
    rest(payload)
    raise ValueError(payload)


# The worker's own state.


def pid(payload: bytes) -> str:
    return str(os.getpid())


def pid_after(seconds: str) -> str:
    time.sleep(float(seconds))
    return str(os.getpid())


_kept: list[bytes] = []


def keep_memory(payload: str) -> str:
    """Hold as many more bytes as the payload says until the process ends."""
    _kept.append(b"x" * int(payload))
    time.sleep(0.01)
    return str(os.getpid())


def take_memory_and_stay(payload: str) -> None:
    _kept.append(b"x" * int(payload))
    hang(b"")


_ready = ""


def make_ready() -> None:
    global _ready
    _ready = "ready"


def readiness(payload: bytes) -> str:
    return _ready


def refuse_to_start() -> None:
    raise RuntimeError("no licence for this worker")


def exit_at_start() -> None:
    os._exit(3)


# Functions that misbehave.


def raise_error(payload: bytes) -> None:
    raise KeyError("gone")


def raise_interrupt(payload: bytes) -> None:
    raise KeyboardInterrupt


class HostileError(Exception):
    def __init__(self, first, second):  # With two arguments it cannot be unpickled.
        super().__init__(first)

    def __str__(self):
        raise RuntimeError("no text either")


def raise_hostile(payload: bytes) -> None:
    raise HostileError(1, 2)


def raise_long(payload: bytes) -> None:
    raise ValueError("long " * 20_000)


def raise_deeper(number):
    return {1: 1}[number]


def raise_chain(payload):
    try:
        raise_deeper(payload)
    except KeyError as error:
        raise ValueError("chained") from error


def raise_group(payload):
    error = ExceptionGroup("several", [KeyError(1), ValueError(2)])  # noqa: F821
    error.add_note("a note\nof two lines")
    raise error


class HostileNotesError(Exception):
    @property
    def __notes__(self):
        raise RuntimeError("no notes")

    @property
    def __traceback__(self):
        raise RuntimeError("no traceback")

    @property
    def __cause__(self):
        raise RuntimeError("no cause")

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


def raise_hostile_notes(payload):
    raise HostileNotesError


def raise_odd_text(payload: bytes) -> None:
    raise ValueError("half a pair \ud800 and \x1b[31m")


def sys_exit(payload: bytes) -> None:
    sys.exit(5)


def exit_zero(payload: bytes) -> None:
    os._exit(0)


def exit_as_unguarded(payload: bytes) -> None:
    os._exit(shmqueue.UNGUARDED)


def segfault(payload: bytes) -> None:
    faulthandler.disable()  # The test runner has enabled it.
    ctypes.string_at(0)


def abort(payload: bytes) -> None:
    faulthandler.disable()
    os.abort()


def kill_itself(payload: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_its_group(payload: bytes) -> None:
    os.killpg(0, signal.SIGTERM)


def stop_itself(payload: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def recurse(payload: bytes) -> bytes:
    return recurse(payload) + b""


def hang(payload: bytes) -> None:
    while True:
        time.sleep(1)


def spin(payload: bytes) -> None:
    while True:
        pass


def fork_and_return(payload: bytes) -> bytes:
    os.fork()
    return b"one of two"


def fork_and_return_nothing(payload: bytes) -> None:
    os.fork()


def fork_and_raise(payload: bytes) -> None:
    os.fork()
    raise ValueError("one of two")


def start_child(payload: bytes) -> str:
    """Start a child that outlives the task. Return its pid."""
    return str(subprocess.Popen(["sleep", "600"]).pid)  # noqa: S607


def start_child_in_session(payload: bytes) -> str:
    """Do the same outside the worker's group and session."""
    return str(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)  # noqa: S607


def print_much(payload: bytes) -> bytes:
    for _ in range(100):
        print("\x1b[2Jprinted" * 50)
        print("to the error stream" * 50, file=sys.stderr)
        os.write(1, b"past Python\n")
    subprocess.run(["echo", "from a child"], check=True)  # noqa: S607
    return b"printed"


def fork_and_print(payload: bytes) -> str:
    """Return how a forked child ended that printed a line."""
    child = os.fork()
    if not child:
        try:
            print("forked")
            os._exit(0)
        finally:
            os._exit(1)
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def fork_and_print_at_start() -> None:
    """An initializer. Print how a forked child ended that went on as this worker does."""
    print("begins")
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def keep_queue(queue) -> None:
    """An initializer, with a queue of multiprocessing."""
    global _queue
    _queue = queue


def put_much(payload: bytes) -> None:
    for _ in range(4):
        _queue.put(bytes(100_000))


def close_descriptors(payload: bytes) -> bytes:
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            os.close(descriptor)
        except OSError:
            continue
    return b"closed"


def take_over_descriptors(payload: bytes) -> bytes:
    close_descriptors(payload)
    while os.open(os.devnull, os.O_RDWR) < 64:
        continue
    return b"taken"


def change_signal_handlers(payload: bytes) -> bytes:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    return b"deaf"


def change_surroundings(payload: bytes) -> bytes:
    os.chdir("/")
    os.environ.clear()
    os.umask(0o777)
    sys.path.clear()
    sys.setrecursionlimit(200)
    sys.stdout = sys.stderr = None
    return b"changed"


def return_path(payload: bytes) -> pathlib.Path:
    return pathlib.Path("a")


def return_half_a_pair(payload: bytes) -> str:
    return "\ud800"


# Strategies whose counters do not start at 0.


class StartsLate(shmqueue.SharedTaskQueue):
    """The queue of a run that has already pushed `start` tasks."""

    start = 0

    def __init__(self, segment, primitives):
        if segment.words[0] != shmqueue.MAGIC:  # It is being made, so no other process uses it yet.
            segment.words[shmqueue.PUSHED] = segment.words[shmqueue.CLAIMED] = self.start
        super().__init__(segment, primitives)


class Starts32(StartsLate):
    start = 2**32 - 100


class Starts63(StartsLate):
    start = 2**63 - 100


def signal_mask(payload: bytes) -> str:
    return str(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))


class Stalling:
    """Return the x of a point. It takes `seconds` if x is 0."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.__name__ = "stalling"

    def __call__(self, point: Point) -> bytes:
        if point.x == 0:
            time.sleep(self.seconds)
        return b"%d" % point.x


def kill_self(number: str) -> None:
    os.kill(os.getpid(), int(number))
    time.sleep(10)


def nested_handler(payload: bytes) -> str:
    """Return how SIGTERM is handled after a Supervisor was open in this worker."""
    shmqueue.parallel_map(echo, [b"1"], workers=1, start_method="fork")
    return str(signal.getsignal(signal.SIGTERM))
