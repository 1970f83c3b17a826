# SPDX-License-Identifier: MIT
"""What strategies with locks or state of their own share. Not a strategy by itself.

Lock: what a lock must be able to do; this one is the kernel's.
Strategy: the ring of shmqueue, with hooks for another lock and for state in the segment.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, ClassVar

try:
    from . import shmqueue  # type: ignore[attr-defined, unused-ignore]  # copied next to it, into a package
except ImportError:
    import shmqueue  # type: ignore[no-redef, unused-ignore]

__all__ = ["Lock", "Strategy", "shmqueue", "whole_lines"]


def whole_lines(size: int) -> int:
    """Round a number of bytes up to whole lines."""
    return -(-size // shmqueue.LINE) * shmqueue.LINE


class Lock(shmqueue.KernelLock):
    """One of a strategy's locks. Each process has its own object.

    size: bytes of the lock in the segment.
    shared: what the supervisor's object makes and each worker's is given, or None.
    """

    size: ClassVar[int] = 0

    def __init__(self, segment: shmqueue.Segment, number: int, offset: int, shared: Any) -> None:
        """Lock `number` of the segment, with its bytes at `offset`. shared: None in the supervisor, at first."""
        super().__init__(segment, number)
        self.shared = shared

    @classmethod
    def refusal(cls) -> str:
        """Say why this lock is not right on this machine. Empty if it is."""
        return ""

    def prepare(self, context: Any) -> None:
        """Make the lock, before any worker starts (supervisor). context: of multiprocessing."""

    def close(self) -> None:
        """Let go of the lock, in case an interrupt came while this process held it, before its memory goes."""

    def holder_died(self, queue: Any, living: Sequence[shmqueue.Lane]) -> None:
        """Free the lock of a dead holder (supervisor); here the kernel does. living: the other workers."""


class Strategy(shmqueue.SharedTaskQueue):
    """A queue with `num_locks` locks of `lock_type`, and `state_bytes` of its own in the segment.

    _locks: all of them. _lock: the first one.
    """

    lock_type: ClassVar[Any] = Lock

    @classmethod
    def refusal(cls) -> str:
        """Say why this strategy is not right on this machine. Empty if it is."""
        return str(cls.lock_type.refusal())

    @classmethod
    def num_locks(cls, num_workers: int) -> int:
        return 1

    @classmethod
    def state_bytes(cls, num_slots: int, num_workers: int) -> int:
        return 0

    def prepare(self) -> None:
        """Give the strategy's state its first values (supervisor)."""

    @classmethod
    def create(
        cls, num_slots: int, slot_size: int, num_workers: int, batch: int, context: Any = None, name: str = ""
    ) -> shmqueue.SharedTaskQueue:
        """As in shmqueue. Raises OSError (ENOTSUP), too, if the strategy is not right here."""
        if reason := cls.refusal():
            raise OSError(errno.ENOTSUP, f"{cls.strategy}: {reason}")
        queue = super().create(num_slots, slot_size, num_workers, batch, context, name)
        try:
            for lock in queue._locks:  # type: ignore[attr-defined]
                lock.prepare(context or shmqueue.late("multiprocessing"))
            queue.prepare()  # type: ignore[attr-defined]
        except BaseException:
            queue.close()
            shmqueue.remove_segment(queue.segment.path)
            raise
        return queue

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        locks = cls.num_locks(num_workers) * whole_lines(cls.lock_type.size)
        return whole_lines(cls.state_bytes(num_slots, num_workers)) + locks

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        first = self.state_offset + whole_lines(self.state_bytes(self.num_slots, self.num_workers))
        size = whole_lines(self.lock_type.size)
        given = primitives or [None] * self.num_locks(self.num_workers)
        self._locks = [self.lock_type(segment, i, first + i * size, shared) for i, shared in enumerate(given)]
        self._lock = self._locks[0]

    @property
    def primitives(self) -> list[Any]:
        return [lock.shared for lock in self._locks]

    def ask_why(self, holder: int, seconds: float, number: int = 0) -> Sequence[shmqueue.Lane]:
        """Ask why lock `number` is not free. Free it if its holder is dead: nobody who may hold it lives then."""
        living = super().ask_why(holder, seconds)
        suspects = [lane for lane in living if holder in (lane.index, -1)]
        if not suspects or (holder < 0 and seconds >= 1):
            self._locks[number].holder_died(self, living)
        return living

    def close(self) -> None:
        for lock in self._locks:
            lock.close()
        self._locks.clear()  # a lock may keep something in the system as long as it lives
        self._lock = None
        super().close()
