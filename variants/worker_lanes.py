# SPDX-License-Identifier: MIT
"""worker_lanes: no common ring; the supervisor deals tasks into one lane for each worker.

Idea
    The slots are cut into one ring for each worker, with one producer and one consumer. Each has a lock of its own
    that only its worker and the supervisor take, so workers never wait for each other, however many there are. The
    supervisor deals so that loads are level, and takes back from a slow worker when another has nothing to do.

Extra state
    For each worker a line that the supervisor writes: `pushed`, and `start`, below which nothing is to be claimed any
    more. What has been claimed is the worker's `end`. Worker i has the positions from i * 2**48 on.

Lock order
    At most one lane's lock is held at a time.

If the holder dies
    The kernel releases the lane's lock, for which only the supervisor waits. A claim is committed by one store, `end`,
    so nothing is ever half-done. What the dead worker had not claimed is taken back and dealt to others.

When to use it
    Many processors, and tasks of a few microseconds that are alike. On two processors the one ring is as fast; more
    were not measured. Tasks of very different lengths are better off in the one ring: there nobody has to take
    anything back. It needs at least one slot for each worker.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from typing import Any

try:
    from . import shmqueue  # type: ignore[attr-defined, unused-ignore]  # copied next to it, into a package
except ImportError:
    import shmqueue  # type: ignore[no-redef, unused-ignore]

WORDS = shmqueue.LINE // 8  # in a line


def shares(loads: Sequence[int], rooms: Sequence[int], count: int) -> list[int]:
    """How many of `count` tasks each lane gets, so that the loads come out as level as the rooms allow."""

    def filled(level: int) -> list[int]:
        return [min(room, max(0, level - load)) for load, room in zip(loads, rooms, strict=True)]

    level = bisect.bisect_left(range(max(loads) + max(rooms)), count, key=lambda level: sum(filled(level)))
    result = filled(level)
    for lane in [i for i, load in enumerate(loads) if result[i] == level - load > 0][: sum(result) - count]:
        result[lane] -= 1
    return result


class WorkerLanes(shmqueue.SharedTaskQueue):
    strategy = "worker_lanes"
    if_killed = "the kernel releases the lane's lock, which no other worker wants"

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        return num_workers * shmqueue.LINE

    @classmethod
    def make_primitives(cls, context: Any, num_slots: int, num_workers: int) -> Any:
        if num_slots < num_workers:
            raise ValueError(f"num_slots={num_slots}: {cls.strategy} needs one for each worker, workers={num_workers}")

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        self._size = self.num_slots // self.num_workers  # slots of a lane
        self._lane_pushed = [self.extra_offset // 8 + worker * WORDS for worker in range(self.num_workers)]

    def make_lock(self) -> list[shmqueue.KernelLock]:
        first = shmqueue.LOCK_BYTE + 1
        return [shmqueue.KernelLock(self.segment, first + worker) for worker in range(self.num_workers)]

    def prepare(self) -> None:
        super().prepare()
        for worker, (status, pushed) in enumerate(zip(self.status, self._lane_pushed, strict=True)):
            position = self.first_position + (worker << 48)
            words = [status + word for word in (shmqueue.FIRST, shmqueue.PROGRESS, shmqueue.END)]
            for word in (*words, pushed, pushed + 1):
                self.words[word] = position

    def _enter_lane(self, worker: int) -> None:
        since = time.monotonic()
        while not self._lock[worker].acquire(shmqueue.LOCK_PATIENCE):
            self.stuck(worker, time.monotonic() - since)

    def _unclaimed(self, worker: int) -> tuple[int, int]:
        """First position and number of the tasks in a lane that can be claimed; exact in its lock."""
        words, pushed = self.words, self._lane_pushed[worker]
        first = max(words[self.status[worker] + shmqueue.END], words[pushed + 1])
        return first, words[pushed] - first

    def _places(self, worker: int, first: int, count: int) -> list[tuple[int, int]]:
        return [(worker * self._size + i, length) for i, length in shmqueue.pieces(first, count, self._size)]

    def _rooms(self) -> list[int]:
        """For each lane, its free slots at the least; none where no process is behind it."""
        pids = [self.words[status + shmqueue.PID] for status in self.status]
        return [self._size - self._unclaimed(worker)[1] if pid else 0 for worker, pid in enumerate(pids)]

    def room(self) -> int:
        return sum(self._rooms())

    def push(self, tasks: shmqueue.Tasks) -> list[tuple[int, int]]:
        words, done, positions = self.words, 0, []
        loads = [
            words[pushed] - max(words[status + shmqueue.PROGRESS], words[pushed + 1])
            for status, pushed in zip(self.status, self._lane_pushed, strict=True)
        ]
        for worker, count in enumerate(shares(loads, self._rooms(), len(tasks.data))):
            if count:
                first = words[self._lane_pushed[worker]]
                self._write(self._places(worker, first, count), tasks.part(done, done + count))
                self._enter_lane(worker)
                words[self._lane_pushed[worker]] = first + count
                self._lock[worker].release()
                positions.append((first, count))
                done += count
        return positions

    def claim(self, worker: int, limit: int) -> tuple[int, int] | None:
        words, status = self.words, self.status[worker]
        self._lock[worker].acquire()
        records = words[status + shmqueue.PUBLISHED] = words[status + shmqueue.RECORDS]
        first, available = self._unclaimed(worker)
        free = 2 * self.batch - (records - words[status + shmqueue.HARVESTED])
        count = min(limit, self.batch, free, -(-available // 2))
        if count > 0:
            self._copy_to_lane(worker, self._places(worker, first, count))
            words[status + shmqueue.FIRST] = words[status + shmqueue.PROGRESS] = first
            words[status + shmqueue.END] = first + count
            words[status + shmqueue.ASLEEP] = 0
        else:
            self._sleeps += 1
            words[status + shmqueue.ASLEEP] = self._sleeps
        self._lock[worker].release()
        return (first, count) if count > 0 else None

    def harvest(self, harvested: Sequence[int]) -> list[int]:
        """Only lanes where something seems to be new are looked into; where none is, all, before going to sleep."""
        words, published = self.words, list(harvested)
        new = [words[status + shmqueue.PUBLISHED] > count for status, count in zip(self.status, harvested, strict=True)]
        words[shmqueue.SUPERVISOR_ASLEEP] = not any(new)  # who publishes once its lane was looked into will see it
        for worker, (status, count) in enumerate(zip(self.status, harvested, strict=True)):
            if new[worker] or not any(new) or words[status + shmqueue.HARVESTED] != count:
                self._enter_lane(worker)
                words[status + shmqueue.HARVESTED] = count
                published[worker] = words[status + shmqueue.PUBLISHED]
                self._lock[worker].release()
        words[shmqueue.SUPERVISOR_ASLEEP] = published == list(harvested)
        return published

    def recover(self, worker: int) -> shmqueue.Remains:
        self.words[self.status[worker] + shmqueue.PID] = 0  # until another process is behind the lane
        return self._clear(worker)

    def take_back(self, worker: int) -> list[tuple[int, int]]:
        self._enter_lane(worker)
        first, count = self._unclaimed(worker)
        self.words[self._lane_pushed[worker] + 1] = first + count
        self._lock[worker].release()
        return [(first, count)] if count else []

    def backlog(self) -> int:
        return sum(max(0, self._unclaimed(worker)[1]) for worker in range(self.num_workers))

    def wakeable(self) -> list[tuple[int, int]]:
        return [(worker, number) for worker, number in self.sleepers() if self._unclaimed(worker)[1]]


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=WorkerLanes))
