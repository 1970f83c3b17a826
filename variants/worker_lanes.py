# SPDX-License-Identifier: MIT
"""worker_lanes: no common ring; the supervisor deals tasks into one lane for each worker.

Idea
    Each worker has a lane of its own, with one producer and one consumer, as dealt.py lays it out. Each lane has a
    lock, of any type, that only its worker and the supervisor acquire. So workers never wait for each other.

Extra state
    The words of dealt.py, and a lock for each lane.

Lock order
    At most one lane's lock is held at a time.

If the holder dies
    The kernel releases the lane's lock. Only the supervisor waits for it. One store commits a claim: `claimed`. If the
    worker dies before that, the supervisor empties the half-made batch; the tasks are still in the lane. Then it takes
    back what was not claimed, and deals it to others.

When to use it
    Many processors, and tasks of a few microseconds that are alike. On two processors the one ring is as fast; more
    were not measured. Put tasks of very different lengths into the one ring, where nothing has to be taken back. Each
    worker needs at least one slot. Copy dealt.py as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    from . import shmqueue  # type: ignore[attr-defined, unused-ignore]  # copied next to it, into a package
except ImportError:
    import shmqueue  # type: ignore[no-redef, unused-ignore]
from .dealt import CLAIMING, LANE_PUSHED, DealtQueue


class WorkerLanes(DealtQueue):
    strategy = "worker_lanes"
    if_killed = "the kernel releases the lane's lock, which no other worker wants"

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        self._lock = self._locks

    @classmethod
    def num_locks(cls, num_workers: int) -> int:
        return num_workers

    def _shut(self, worker: int) -> None:
        since = shmqueue.system.monotonic()
        while not self._lock[worker].acquire(shmqueue.LOCK_PATIENCE):
            self.ask_why(worker, shmqueue.system.monotonic() - since, worker)

    def _reopen(self, worker: int) -> None:
        self._freed[worker] = self._head(worker)
        self._lock[worker].release()

    def _offer(self, worker: int, span: shmqueue.Span) -> None:
        self._shut(worker)
        self.words[self.lanes[worker] + LANE_PUSHED] = span.end
        self._reopen(worker)

    def _ready(self, worker: int, first: int) -> int:
        return self._waiting(worker)

    def claim(self, worker: int, limit: int) -> shmqueue.Span | None:
        words, status, claiming = self.words, self.status[worker], self.lanes[worker] + CLAIMING
        self._lock[worker].acquire()
        words[claiming] = 1
        words[status + shmqueue.PUBLISHED] = words[status + shmqueue.CLAIMS]
        claim = self._claim_head(worker, limit)
        if claim is None:
            self._sleeps += 1
            words[status + shmqueue.ASLEEP] = self._sleeps
        else:
            words[status + shmqueue.ASLEEP] = 0
        words[claiming] = 0
        self._lock[worker].release()
        return claim

    def harvest(self, harvested: Sequence[int]) -> list[int]:
        """Look into lanes that seem to have something new; if none has, into all of them, before going to sleep."""
        words, published = self.words, list(harvested)
        new = [words[status + shmqueue.PUBLISHED] > count for status, count in zip(self.status, harvested, strict=True)]
        words[shmqueue.SUPERVISOR_ASLEEP] = 2 * (not any(new))  # a worker that publishes too late for this look rings
        for worker, (status, count) in enumerate(zip(self.status, harvested, strict=True)):
            if new[worker] or not any(new) or words[status + shmqueue.HARVESTED] != count:
                self._shut(worker)
                words[status + shmqueue.HARVESTED] = count
                published[worker] = words[status + shmqueue.PUBLISHED]
                self._reopen(worker)
        words[shmqueue.SUPERVISOR_ASLEEP] = 2 * (published == list(harvested))
        return published


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=WorkerLanes))
