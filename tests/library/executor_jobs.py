"""What the tests of Executor have workers call. A file of its own, since it is imported by every worker."""

import os
import pathlib
import signal
import threading
import time

import shmqueue


def raise_it(error):
    raise error


def raise_chained():
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("second") from error


class TwoArguments(Exception):  # noqa: N818
    """It pickles, and cannot be read again."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def raise_unreadable():
    raise TwoArguments(1, 2)


class Unreadable:
    """It pickles, and cannot be read again."""

    def __reduce__(self):
        return raise_it, (OSError("no such file"),)


def make_unreadable():
    return Unreadable()


def make_lock():
    return threading.Lock()


def die(seconds=0.0):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def fail_until(folder, count, how):
    """Fail in one of several ways until it has been called so often; then return the number of calls."""
    calls = sum(1 for _ in pathlib.Path(folder).iterdir())
    (pathlib.Path(folder) / f"call{calls}").touch()
    if calls >= count:
        return calls + 1
    if how == "crashed":
        die()
    if how == "timeout":
        time.sleep(60)
    raise ValueError(f"call {calls}")


STATE = []


def set_state(*values):
    STATE.extend(values)


def get_state(_):
    return list(STATE)


def fail_at_start():
    raise ValueError("no licence")


def inner(number):
    with shmqueue.Executor(1) as executor:
        return executor.submit(abs, number).result()


class Payload:
    """Something that can be referred to weakly."""

    def method(self):
        return os.getpid()


def nap(seconds):
    time.sleep(seconds)
    return os.getpid()


def wait_for(gate):
    """Wait until a file is there. Each call adds a byte to the file beside it."""
    with open(f"{gate}.calls", "ab", buffering=0) as file:
        file.write(b".")
    while not os.path.exists(gate):
        time.sleep(0.01)


def wait_if_positive(gate, number):
    if number < 0:
        raise ValueError("negative")
    if number > 0:
        wait_for(gate)
    return number


def get_pid(_):
    return os.getpid()


def die_if_zero(number):
    if number == 0:
        die()
    return number
