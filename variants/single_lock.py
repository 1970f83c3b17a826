# SPDX-License-Identifier: MIT
"""single_lock: one multiprocessing.Lock for everything, the lock that most programs would take.

Idea
    The ring of shmqueue.py, guarded by a POSIX semaphore from the standard library. It is the fastest lock here where
    nobody contends, and knows nothing of processes: when its holder dies it stays taken.

Extra state
    One word, the number of the lock in use. Each process knows the number of the lock it was started with. A process
    that finds another number in the word never uses its lock again.

Lock order
    One lock, so there is none.

If the holder dies
    The supervisor does not get the lock, and sees that the worker which signed `dirty` is dead (or that nobody has
    signed for a second: a holder can die before it signs). It changes the number, makes a new lock, and wakes those
    that sleep. Workers that ask for the old lock leave. Those with a batch finish it first; nobody waits for them, and
    nothing is charged to them. Then the supervisor enters with the new lock, repairs, and starts workers that have
    it. Cost: a tenth of a second and a new process for each worker.

When to use it
    To compare: it is what the others are measured against. And where `fcntl.lockf` is slow or missing. Start by fork
    gives the semaphore no name; spawn and forkserver do, and then a link beside the segment leads the next start to
    it if everything was killed at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

try:
    from . import shmqueue  # type: ignore[attr-defined, unused-ignore]  # copied next to it, into a package
except ImportError:
    import shmqueue  # type: ignore[no-redef, unused-ignore]

SLICE_SECONDS = 0.02  # how long to wait before looking whether the lock is still in use


def new_lock(context: Any) -> Any:
    """A lock of the context. Where it has a name, the first one starts multiprocessing's resource tracker, which
    inherits that SIGHUP is blocked: it must outlive a closed terminal, or it complains when the lock goes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        return context.Lock()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class NumberedLock:
    """A lock that raises LockLostError once the word says that another one is in use."""

    def __init__(self, lock: Any, number: int, words: Any, word: int) -> None:
        self._lock, self._number, self._words, self._word = lock, number, words, word
        self.release = lock.release

    def acquire(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        had = self._lock.acquire(False)
        while self._words[self._word] == self._number:
            if had:
                return True
            if deadline is not None and time.monotonic() > deadline:
                return False
            had = self._lock.acquire(True, SLICE_SECONDS)
        if had:
            self._lock.release()
        raise shmqueue.LockLostError


class SingleLock(shmqueue.SharedTaskQueue):
    strategy = "single_lock"
    if_killed = "the lock stays taken: workers leave after their batch, and start anew with another"
    kernel_unlocks = False

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        return 8

    @classmethod
    def make_primitives(cls, context: Any, num_slots: int, num_workers: int) -> Any:
        return new_lock(context), 0

    def prepare(self) -> None:
        super().prepare()
        self._leave_trace()

    def make_lock(self) -> NumberedLock:
        lock, number = self.primitives
        return NumberedLock(lock, number, self.words, self.extra_offset // 8)

    def renew_lock(self, context: Any) -> None:
        number = self.primitives[1] + 1
        self.words[self.extra_offset // 8] = number
        self.primitives = (new_lock(context), number)
        self._lock = self.make_lock()
        self._leave_trace()

    def _leave_trace(self) -> None:
        """Link a named semaphore's file beside the segment, for shmqueue.sweep."""
        name = getattr(getattr(self.primitives[0], "_semlock", None), "name", None)
        if name:
            file = "sem." + name.lstrip("/")
            with contextlib.suppress(OSError):  # not a file on this system
                os.link(os.path.join(shmqueue.shared_directory(), file), self.segment.beside(file))

    def close(self) -> None:
        self._lock = self.primitives = None  # a semaphore goes with its last user
        super().close()


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=SingleLock))
