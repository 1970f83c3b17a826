# SPDX-License-Identifier: MIT
"""robust_mutex: a pthread mutex in the segment, of the kind that survives its holder.

Idea
    The ring of shmqueue.py, guarded by a pthread_mutex_t with PTHREAD_MUTEX_ROBUST and PTHREAD_PROCESS_SHARED, reached
    through ctypes. Uncontended it is one atomic instruction, without the system call that fcntl.lockf costs.

Extra state
    The mutex: 40 bytes on x86-64, 48 on aarch64; it is given a line of its own.

Lock order
    One lock, so there is none.

If the holder dies
    The kernel walks the dead thread's list of robust mutexes and marks this one. The next process that asks for it
    gets it, with EOWNERDEAD, and calls pthread_mutex_consistent; without that, nobody could ever have it again. The
    `dirty` word tells what needs repair, as for the built-in lock. So this process may be killed before it repairs.

When to use it
    On Linux, with many workers and tasks of a few microseconds, where the lock is what they wait for. At the start a
    thread dies with such a mutex, as a test of the system.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time

try:
    from . import shmqueue  # type: ignore[attr-defined, unused-ignore]  # copied next to it, into a package
except ImportError:
    import shmqueue  # type: ignore[no-redef, unused-ignore]

SHARED, ROBUST, ERRORCHECK = 1, 1, 2  # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST, PTHREAD_MUTEX_ERRORCHECK
SLICE_SECONDS = 0.05  # how long to wait in C, where no signal handler of Python can run
quick = ctypes.PyDLL(None)  # for calls that return at once
slow = ctypes.CDLL(None)  # for those that wait: other threads run meanwhile


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class RobustMutex:
    """A robust mutex of 64 bytes at an address that all its users have mapped."""

    def __init__(self, address: int) -> None:
        self._at = ctypes.c_void_p(address)

    def make(self) -> None:
        """Raises OSError, or AttributeError where there is no such function."""
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
        deadline = None if timeout is None else time.monotonic() + timeout
        code = quick.pthread_mutex_trylock(self._at)
        while code in (errno.EBUSY, errno.ETIMEDOUT):
            if deadline is not None and time.monotonic() > deadline:
                return False
            seconds, part = divmod(time.time() + SLICE_SECONDS, 1)
            until = Timespec(int(seconds), int(part * 1e9))
            code = slow.pthread_mutex_timedlock(self._at, ctypes.byref(until))
        if code == errno.EOWNERDEAD:
            code = self._revive()
        if code not in (0, errno.EDEADLK):  # EDEADLK: this thread has it, having been interrupted before the release
            raise OSError(code, f"the mutex cannot be had: {os.strerror(code)}")
        return True

    def _revive(self) -> int:
        return int(quick.pthread_mutex_consistent(self._at))

    def release(self) -> None:
        quick.pthread_mutex_unlock(self._at)


class RobustMutexQueue(shmqueue.SharedTaskQueue):
    strategy = "robust_mutex"
    if_killed = "the kernel marks the mutex, the next holder repairs"

    @classmethod
    def refusal(cls) -> str:
        """Have a thread die with the mutex, and look if it can be taken again."""
        with mmap.mmap(-1, mmap.PAGESIZE) as memory:
            mutex = RobustMutex(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
            try:
                mutex.make()
                thread = threading.Thread(target=mutex.acquire)
                thread.start()
                thread.join()
                for _ in range(2):  # once from the dead thread, once more to see that it has been put right
                    if not mutex.acquire(1.0):
                        return "this system leaves a robust mutex locked when its holder dies"
                    mutex.release()
            except (OSError, AttributeError) as error:
                return f"this system has no robust mutexes ({error})"
        return ""

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        return 64

    def make_lock(self) -> RobustMutex:
        window = self.segment.window(self.extra_offset, 64)
        return RobustMutex(ctypes.addressof(ctypes.c_char.from_buffer(window)))  # the object goes, the address stays

    def prepare(self) -> None:
        super().prepare()
        self._lock.make()


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=RobustMutexQueue))
