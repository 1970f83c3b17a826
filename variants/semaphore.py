# SPDX-License-Identifier: MIT
"""semaphore: the textbook's bounded buffer, a counting semaphore for filled slots and one for free slots.

Idea
    A push takes tokens from `free` and puts as many into `filled`. A claim does the reverse. The tokens tell how much
    there is without the lock, of any type. It is held only while a position moves.

Extra state
    Two sem_t in the segment, each on its own line, through ctypes. Having no name, they go with it.

Lock order
    Tokens first, then the lock. Nobody waits for a token under the lock. Tokens are in `filled` before `pushed` moves.
    So if a worker has noted under the lock that it sleeps, and finds no token then, the next push sees it.

If the holder dies
    The kernel releases the lock and the next holder repairs. But a worker that is killed or stopped with tokens in its
    hand keeps them. So tokens are hints and the positions decide: a claim takes no more than there is. If a worker has
    died, or sleeps beside tasks without a token, both are counted anew. Too many tokens do no harm.

When to use it
    To compare with the textbook. A token a task costs more than the lock that it saves. Semaphores would pay if every
    task were claimed alone and claims were rare.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from .strategy import Strategy, shmqueue

libc = ctypes.PyDLL(None)  # nothing here waits


class Semaphore:
    """A sem_t at an address that all its users have mapped."""

    def __init__(self, address: int) -> None:
        self._at = ctypes.c_void_p(address)

    def make(self, value: int) -> bool:
        return hasattr(libc, "sem_init") and libc.sem_init(self._at, 1, value) == 0

    def take(self, most: int) -> int:
        """Take up to `most` tokens. Return how many there were."""
        for taken in range(most):
            if libc.sem_trywait(self._at) != 0:
                return taken
        return max(0, most)

    def post(self, count: int) -> None:
        for _ in range(count):
            libc.sem_post(self._at)

    def value(self) -> int:
        number = ctypes.c_int()
        libc.sem_getvalue(self._at, ctypes.byref(number))
        return max(0, number.value)


class SemaphoreQueue(Strategy):
    strategy = "semaphore"

    @classmethod
    def refusal(cls) -> str:
        with mmap.mmap(-1, mmap.PAGESIZE) as memory:
            semaphore = Semaphore(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
            if not semaphore.make(2) or (semaphore.take(3), semaphore.value()) != (2, 0):
                return "this system has no semaphores that processes can share (sem_init)"
        return super().refusal()

    @classmethod
    def state_bytes(cls, num_slots: int, num_workers: int) -> int:
        return 2 * shmqueue.LINE

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        address = ctypes.addressof(ctypes.c_char.from_buffer(segment.window(self.state_offset, 2 * shmqueue.LINE)))
        self._filled = Semaphore(address)
        self._free = Semaphore(address + shmqueue.LINE)

    def prepare(self) -> None:
        super().prepare()
        self._filled.make(0)
        self._free.make(self.num_slots)

    def room(self) -> int:
        return min(super().room(), self._free.value())

    def push(self, tasks: shmqueue.Tasks) -> list[shmqueue.Span]:
        self._free.take(len(tasks))
        self._filled.post(len(tasks))
        return super().push(tasks)

    def claim(self, worker: int, limit: int) -> shmqueue.Span | None:
        while True:
            tokens = self._filled.take(min(self.batch, self.share(self._filled.value(), limit)))
            claim = super().claim(worker, tokens)  # without a token it notes that it sleeps
            count = claim[1] if claim else 0
            self._free.post(count)
            self._filled.post(tokens - count)
            if claim or tokens or limit <= 0 or not self._filled.value():
                return claim

    def drain(self, worker: int | None = None) -> list[shmqueue.Span]:
        drained = super().drain(worker)
        for _, count in drained:
            self._filled.take(count)  # a worker may have some in its hand; later these are too many
            self._free.post(count)
        return drained

    def wakeable(self, everyone: bool = False) -> list[tuple[int, int]]:
        worth = super().wakeable(everyone)
        if worth and not self._filled.value():
            self._count_anew()
        return worth

    def recover(self, worker: int) -> None:
        self._count_anew()  # which also repairs, as whoever gets the lock does

    def _count_anew(self) -> None:
        self._enter(None)
        filled = self.words[shmqueue.PUSHED] - self.words[shmqueue.CLAIMED]
        self._leave()
        for semaphore, count in ((self._filled, filled), (self._free, self.num_slots - filled)):
            semaphore.post(count - semaphore.value())  # none is taken: somebody may be about to


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=SemaphoreQueue))
