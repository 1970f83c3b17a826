# SPDX-License-Identifier: MIT
"""robust_mutex: a pthread mutex in the segment, of the kind that survives its holder.

Idea
    The ring of shmqueue.py, guarded by a pthread_mutex_t with PTHREAD_MUTEX_ROBUST and PTHREAD_PROCESS_SHARED, which
    ctypes calls. While nobody contends it is one atomic instruction, without the system call that fcntl.lockf needs.

Extra state
    The mutex: 40 bytes on x86-64, 48 on aarch64, on a line of its own.

Lock order
    One lock, so there is none.

If the holder dies
    The kernel walks the dead thread's list of robust mutexes and marks this one. The next process that asks for it
    gets it with EOWNERDEAD, and calls pthread_mutex_consistent; otherwise nobody could ever acquire it again. The
    `dirty` word says that a repair is needed, as for the built-in lock. So that process may be killed before it
    repairs.

When to use it
    On Linux, with many workers and tasks of a few microseconds, where the lock is what they wait for. As a test of the
    system, at each start a thread dies with such a mutex.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from typing import Any

from .strategy import Lock, Strategy, shmqueue

SHARED, ROBUST, ERRORCHECK = 1, 1, 2  # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST, PTHREAD_MUTEX_ERRORCHECK
SLICE_SECONDS = 0.05  # how long to wait in C, where no signal handler of Python can run
quick = ctypes.PyDLL(None)  # for calls that return at once
slow = ctypes.CDLL(None)  # for calls that wait: other threads run meanwhile


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class RobustMutex(Lock):
    """A robust mutex in the segment."""

    size = 64
    _held = False
    _error = 0  # once there was one, do not try again: glibc may say then that this thread holds the mutex

    def __init__(self, segment: shmqueue.Segment, number: int, offset: int, shared: Any) -> None:
        self._at = address_of(segment.window(offset, self.size))
        self.shared = None

    @classmethod
    def refusal(cls) -> str:
        """Have a thread die with the mutex, and see whether another one can acquire it."""
        mutex = cls.__new__(cls)
        mutex.shared = mmap.mmap(-1, mmap.PAGESIZE)  # the thread keeps it, and may go on after an exception here
        mutex._at = address_of(mutex.shared)
        try:
            mutex.prepare(None)
            thread = threading.Thread(target=mutex.acquire)
            thread.start()
            thread.join()
            for _ in range(2):  # once from the dead thread, once more to see that the mutex is consistent
                if not mutex.acquire(1.0):
                    return "this system leaves a robust mutex locked when its holder dies"
                mutex.release()
        except (OSError, AttributeError) as error:
            return f"this system has no robust mutexes ({error})"
        return ""

    def prepare(self, context: Any) -> None:
        """Raises OSError, or AttributeError if the system has no such function."""
        kind = ctypes.create_string_buffer(64)  # pthread_mutexattr_t is smaller everywhere
        for code in (
            quick.pthread_mutexattr_init(kind),
            quick.pthread_mutexattr_setpshared(kind, SHARED),
            quick.pthread_mutexattr_setrobust(kind, ROBUST),
            quick.pthread_mutexattr_settype(kind, ERRORCHECK),
            quick.pthread_mutex_init(self._at, kind),
        ):
            if code:
                raise OSError(code, os.strerror(code))

    def acquire(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else shmqueue.system.monotonic() + timeout
        code = self._error or quick.pthread_mutex_trylock(self._at)
        while code in (errno.EBUSY, errno.ETIMEDOUT):
            if deadline is not None and shmqueue.system.monotonic() > deadline:
                return False
            seconds, part = divmod(time.time() + SLICE_SECONDS, 1)
            until = Timespec(int(seconds), int(part * 1e9))
            code = slow.pthread_mutex_timedlock(self._at, ctypes.byref(until))
        if code == errno.EOWNERDEAD:
            code = self._revive()
        if code not in (0, errno.EDEADLK):  # EDEADLK: this thread holds it, and was interrupted before the release
            self._error = code
            raise OSError(code, f"the mutex cannot be acquired: {os.strerror(code)}")
        self._held = True
        return True

    def _revive(self) -> int:
        return int(quick.pthread_mutex_consistent(self._at))

    def release(self) -> None:
        quick.pthread_mutex_unlock(self._at)
        self._held = False

    def close(self) -> None:
        """The C library keeps a list of the robust mutexes that a thread holds in their own memory, which goes now."""
        if self._held:
            self.release()


def address_of(memory: Any) -> ctypes.c_void_p:
    """Where a buffer lies. Nothing is kept of the buffer itself."""
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))


class RobustMutexQueue(Strategy):
    strategy = "robust_mutex"
    lock_type = RobustMutex


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=RobustMutexQueue))
