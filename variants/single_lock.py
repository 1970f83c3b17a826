# SPDX-License-Identifier: MIT
"""single_lock: one multiprocessing.Lock for everything, the lock that most programs would take.

Idea
    The ring of shmqueue.py, guarded by a POSIX semaphore. It is the fastest lock here while nobody contends. But it
    knows nothing of processes: when its holder dies it stays taken.

Extra state
    One word, the number of the lock in use. Each process knows the number of its own lock. If it finds another number
    in the word, it never uses its lock again.

Lock order
    One lock, so there is none.

If the holder dies
    The supervisor does not get the lock. It sees that the worker which signed `dirty` is dead, or that nobody signs
    for a second, since a holder can die before it does. It makes a new lock and wakes those that sleep. Workers
    that ask for the old lock leave, with nothing in hand. Then the supervisor enters with the new lock, repairs, and
    starts workers that have it. This takes a tenth of a second, and a new process for each worker.

When to use it
    To compare, and where `fcntl.lockf` is slow. With spawn and forkserver the semaphore has a name. It stays if
    multiprocessing's resource tracker is killed together with all other processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

from .strategy import Lock, Strategy, shmqueue

SLICE_SECONDS = 0.02  # from one look at the number to the next


class NumberedLock(Lock):
    """A multiprocessing.Lock and its number. A worker leaves if it asks for a lock that is not in use any more."""

    size = 8

    def __init__(self, segment: shmqueue.Segment, number: int, offset: int, shared: Any) -> None:
        self._segment = segment
        self._word = offset // 8
        self.shared = shared

    def prepare(self, context: Any) -> None:
        """Make a lock with the next number.

        A lock with a name starts multiprocessing's resource tracker, which removes the name if this process is killed.
        SIGHUP is blocked there, too: the tracker must outlive a closed terminal, or it complains when the lock goes.
        """
        self._context = context
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            lock = context.Lock()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._segment.words[self._word] += 1
        self.shared = (lock, self._segment.words[self._word])

    def acquire(self, timeout: float | None = None) -> bool:
        lock, number = self.shared
        deadline = None if timeout is None else shmqueue.system.monotonic() + timeout
        acquired = lock.acquire(False)
        while self._segment.words[self._word] == number:
            if acquired:
                return True
            if deadline is not None and shmqueue.system.monotonic() > deadline:
                return False
            acquired = lock.acquire(True, SLICE_SECONDS)
        os._exit(0)

    def release(self) -> None:
        self.shared[0].release()

    def holder_died(self, queue: Any, living: Sequence[shmqueue.Lane]) -> None:
        """Change to another lock, and wait until no worker can be inside the old one."""
        self.prepare(self._context)
        for lane in living:
            lane.told = shmqueue.system.monotonic()  # to leave, by the number
            shmqueue.ring(lane.wake)
        deadline = shmqueue.system.monotonic() + 1
        while inside := [lane for lane in living if may_hold_lock(queue, lane)]:
            if shmqueue.system.monotonic() > deadline:
                for lane in inside:
                    lane.process.kill()
            shmqueue.system.sleep(0.001)


def may_hold_lock(queue: shmqueue.SharedTaskQueue, lane: shmqueue.Lane) -> bool:
    """Return True if a worker may be inside the lock. It is not while it has a task in hand."""
    idle = queue.glance(lane.index).in_hand is None
    return not lane.process.is_dead() and (idle or queue.is_claiming(lane.index))


class SingleLock(Strategy):
    strategy = "single_lock"
    lock_type = NumberedLock


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=SingleLock))
