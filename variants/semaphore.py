# SPDX-License-Identifier: MIT
"""semaphore: the textbook's bounded buffer, a counting semaphore for filled slots and one for free slots.

Idea
    Who pushes takes tokens from `free` and puts as many into `filled`; who claims does the reverse. The tokens say how
    much there is without the lock, which is held only while a position is moved.

Extra state
    Two sem_t in the segment, through ctypes, each on a line of its own. Nothing with a name, so nothing is left over.

Lock order
    Tokens first, then the lock; nobody waits for a token while holding it. Tokens go into `filled` before the tasks
    are pushed: whoever finds no token after it has noted (under the lock) that it sleeps is seen by who pushes.

If the holder dies
    The lock is the built-in one: the kernel releases it and the next holder repairs. But a worker that is killed with
    tokens in its hand takes them along. So tokens are hints and the positions decide: a claim is never more than what
    is there, and when a worker has died the supervisor counts both semaphores anew. A token too many is harmless.

When to use it
    To compare with the textbook. A token a task costs more than the lock that it saves; the semaphores would pay where
    every task is claimed alone and claims are rare.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import operator
from typing import Any

try:
    from . import shmqueue  # type: ignore[attr-defined, unused-ignore]  # copied next to it, into a package
except ImportError:
    import shmqueue  # type: ignore[no-redef, unused-ignore]

libc = ctypes.PyDLL(None)  # nothing here waits


class Semaphore:
    """A sem_t at an address that all its users have mapped."""

    def __init__(self, address: int) -> None:
        self._at = ctypes.c_void_p(address)

    def make(self, value: int) -> bool:
        """Whether this system has semaphores that processes can share."""
        return hasattr(libc, "sem_init") and libc.sem_init(self._at, 1, value) == 0

    def take(self, most: int) -> int:
        """Take up to `most` tokens, those that are there; how many."""
        codes = map(libc.sem_trywait, itertools.repeat(self._at, max(0, most)))
        return sum(1 for _ in itertools.takewhile(operator.not_, codes))

    def post(self, count: int) -> None:
        for _ in range(count):
            libc.sem_post(self._at)

    def value(self) -> int:
        number = ctypes.c_int()
        libc.sem_getvalue(self._at, ctypes.byref(number))
        return max(0, number.value)

    def recount(self, value: int) -> None:
        """Make up for tokens that are lost. One too many is harmless; who is about to post must not be forestalled."""
        self.post(value - self.value())


class SemaphoreQueue(shmqueue.SharedTaskQueue):
    strategy = "semaphore"
    if_killed = "the kernel releases the lock, the next holder repairs; tokens are counted anew"

    @classmethod
    def refusal(cls) -> str:
        with mmap.mmap(-1, mmap.PAGESIZE) as memory:
            semaphore = Semaphore(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
            if not semaphore.make(1):
                return "this system has no semaphores that processes can share (sem_init)"
            semaphore.post(1)
            if (semaphore.take(3), semaphore.value()) != (2, 0):
                return "this system's semaphores do not count"
        return ""

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        return 2 * shmqueue.LINE

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        address = ctypes.addressof(ctypes.c_char.from_buffer(segment.window(self.extra_offset, 2 * shmqueue.LINE)))
        self._filled, self._free = Semaphore(address), Semaphore(address + shmqueue.LINE)

    def prepare(self) -> None:
        super().prepare()
        self._filled.make(0)
        self._free.make(self.num_slots)

    def room(self) -> int:
        return min(super().room(), self._free.value())

    def push(self, tasks: shmqueue.Tasks) -> list[tuple[int, int]]:
        self._free.take(len(tasks.data))
        self._filled.post(len(tasks.data))
        return super().push(tasks)

    def claim(self, worker: int, limit: int) -> tuple[int, int] | None:
        while True:
            tokens = self._filled.take(min(self.batch, self.share(self._filled.value(), limit)))
            claim = super().claim(worker, tokens)  # without a token: note that it sleeps
            count = claim[1] if claim else 0
            self._free.post(count)
            self._filled.post(tokens - count)
            if claim or tokens or limit <= 0 or not self._filled.value():
                return claim

    def wakeable(self) -> list[tuple[int, int]]:
        """Nobody, where there is no token; who has taken one is about to claim, or to put it back."""
        return super().wakeable() if self._filled.value() else []

    def recover(self, worker: int) -> shmqueue.Remains:
        remains = super().recover(worker)
        self._enter(None)
        filled = self.words[shmqueue.PUSHED] - self.words[shmqueue.CLAIMED]
        self._leave()
        self._filled.recount(filled)
        self._free.recount(self.num_slots - filled)
        return remains


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=SemaphoreQueue))
