# SPDX-License-Identifier: MIT
"""worker_lanes: no common ring; the supervisor deals tasks into one lane for each worker.

Idea
    The ring is cut into one lane of slots for each worker, with one producer and one consumer. Each lane has a lock, of
    any type, that only its worker and the supervisor acquire. So workers never wait for each other. Worker i has the
    positions from i * 2**48 on. The supervisor deals so that the loads are level. It takes a lane back if its worker is
    slow and another has nothing to do.

Extra state
    Each lane has a lock and two lines of words. The supervisor writes the first line, the worker the second:
      pushed    the lane holds no task from this position on
      start     no task before this position may be claimed: they have been taken back
      shut      1 while the supervisor wants nobody to claim here (slot_state)
      claimed   the position behind the last claim. It only grows, and its store commits a claim
      claiming  1 while the worker is inside a claim
    The next task to claim, the head, is at the larger of `start` and `claimed`. A halt lowers the `end` of a batch;
    that bounds what the worker runs and says nothing about what was claimed.

Lock order
    At most one lane's lock is held at a time.

If the holder dies
    The kernel releases the lane's lock. Only the supervisor waits for it. One store commits a claim: `claimed`. If the
    worker dies before that, the supervisor empties the half-made batch; the tasks are still in the lane. Then it takes
    back what was not claimed, and deals it to others.

When to use it
    Many processors, and tasks of a few microseconds that are alike. On two processors the one ring is as fast; more
    were not measured. Put tasks of very different lengths into the one ring, where nothing has to be taken back. Each
    worker needs at least one slot.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from .strategy import Strategy, shmqueue

WORDS = shmqueue.LINE // 8  # in a line
LANE_PUSHED, START, SHUT = range(3)
LANE_CLAIMED, CLAIMING = range(WORDS, WORDS + 2)
SLOW_SECONDS = 2 * shmqueue.BATCH_SECONDS  # a worker whose batch takes longer gets more only if nobody else has room


def shares(loads: Sequence[int], rooms: Sequence[int], count: int) -> list[int]:
    """How many of `count` tasks each lane gets, so that the loads become as level as the rooms allow."""

    def filled(level: int) -> list[int]:
        return [min(room, max(0, level - load)) for load, room in zip(loads, rooms, strict=True)]

    level = bisect.bisect_left(range(max(loads) + max(rooms)), count, key=lambda level: sum(filled(level)))
    result = filled(level)
    for lane in [i for i, load in enumerate(loads) if result[i] == level - load > 0][: sum(result) - count]:
        result[lane] -= 1
    return result


class WorkerLanes(Strategy):
    """A lane for each worker. A lane is guarded by hooks of its own, which slot_state has without a lock:

    - _shut, _reopen: between them the supervisor has the lane to itself, and the worker is not inside a claim;
    - _offer: let the worker see tasks that have been written;
    - _ready: how many tasks can be claimed at the head.
    """

    strategy = "worker_lanes"

    @classmethod
    def num_locks(cls, num_workers: int) -> int:
        return num_workers

    @classmethod
    def state_bytes(cls, num_slots: int, num_workers: int) -> int:
        if num_slots < num_workers:
            raise ValueError(f"num_slots={num_slots}: {cls.strategy} needs one for each worker, workers={num_workers}")
        return num_workers * 2 * shmqueue.LINE

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        self._lock = self._locks
        self._size = self.num_slots // self.num_workers  # slots of a lane
        self.lanes = [self.state_offset // 8 + worker * 2 * WORDS for worker in range(self.num_workers)]
        # Of the supervisor: slots of positions below these may be written again.
        self._freed = [self.words[shmqueue.PUSHED] + (worker << 48) for worker in range(self.num_workers)]

    def prepare(self) -> None:
        super().prepare()
        for lane, position in zip(self.lanes, self._freed, strict=True):
            for word in (LANE_PUSHED, START, LANE_CLAIMED):
                self.words[lane + word] = position

    def _head(self, worker: int) -> int:
        lane = self.lanes[worker]
        return int(max(self.words[lane + LANE_CLAIMED], self.words[lane + START]))

    def _waiting(self, worker: int) -> int:
        """How many tasks of a lane are not claimed. This is exact while the lane is shut."""
        return max(0, int(self.words[self.lanes[worker] + LANE_PUSHED]) - self._head(worker))

    def _places(self, worker: int, span: shmqueue.Span) -> list[shmqueue.Span]:
        spans = shmqueue.ring_spans(*span, self._size)
        return [(worker * self._size + index, count) for index, count in spans]

    def _room(self, worker: int) -> int:
        """How many slots of a lane are free, at the least. None are if the worker is to leave, or has left."""
        words, status = self.words, self.status[worker]
        if words[status + shmqueue.LEAVE] or not words[status + shmqueue.PID]:
            return 0
        return int(self._size - (words[self.lanes[worker] + LANE_PUSHED] - self._freed[worker]))

    def _rooms(self) -> list[int]:
        return list(map(self._room, range(self.num_workers)))

    def _load(self, worker: int, now: float) -> int:
        """About how many tasks a worker has to do. A slow one comes after the others."""
        words, status = self.words, self.status[worker]
        load = self._waiting(worker)
        claims = words[status + shmqueue.CLAIMS]
        half = self.half(worker, claims)
        if claims != words[status + shmqueue.PUBLISHED]:
            load += max(0, words[half.end] - words[half.first])
        if not words[status + shmqueue.ASLEEP] and now - half.stamps[0] > SLOW_SECONDS:
            load += self.num_slots
        return load

    def room(self) -> int:
        return sum(self._rooms())

    def push(self, tasks: shmqueue.Tasks) -> list[shmqueue.Span]:
        now = shmqueue.system.perf_counter()
        loads = [self._load(worker, now) for worker in range(self.num_workers)]
        done = 0
        spans = []
        for worker, count in enumerate(shares(loads, self._rooms(), len(tasks))):
            if count:
                span = (self.words[self.lanes[worker] + LANE_PUSHED], count)
                self._write(self._places(worker, span), tasks.part(done, done + count))
                self._offer(worker, span)
                spans.append(span)
                done += count
        return spans

    def _claim_head(self, worker: int, limit: int) -> shmqueue.Span | None:
        """Claim from the head of the lane: half of what is there, since the rest is easier to take back."""
        words, status = self.words, self.status[worker]
        first = self._head(worker)
        count = 0
        claims = words[status + shmqueue.CLAIMS]
        if claims - words[status + shmqueue.HARVESTED] < 2 and not words[status + shmqueue.LEAVE]:
            count = min(limit, self.batch, -(-self._ready(worker, first) // 2))
        if count <= 0:
            return None
        span = (first, count)
        self._fill_half(worker, span, self._places(worker, span))
        words[self.lanes[worker] + LANE_CLAIMED] = first + count  # committed
        return span

    def recover(self, worker: int) -> None:
        words, lane = self.words, self.lanes[worker]
        for half in self.halves(worker):  # a claim that was not committed becomes an empty batch
            words[half.end] = max(words[half.first], min(words[half.end], words[lane + LANE_CLAIMED]))
        words[lane + CLAIMING] = 0
        words[self.status[worker] + shmqueue.PID] = 0  # until the next process, nothing is dealt to it

    def drain(self, worker: int | None = None) -> list[shmqueue.Span]:
        drained = []
        for lane in range(self.num_workers) if worker is None else [worker]:
            self._shut(lane)
            span = (self._head(lane), self._waiting(lane))
            if span[1]:
                self._take_back(lane, span)
                drained.append(span)
            self._reopen(lane)
        return drained

    def _take_back(self, worker: int, span: shmqueue.Span) -> None:
        self.words[self.lanes[worker] + START] = sum(span)

    def tell_to_leave(self, worker: int) -> None:
        self._shut(worker)
        self.words[self.status[worker] + shmqueue.LEAVE] = 1
        self._reopen(worker)

    def is_claiming(self, worker: int) -> bool:
        return bool(self.words[self.lanes[worker] + CLAIMING])

    def backlog(self) -> int:
        return sum(map(self._waiting, range(self.num_workers)))

    def wakeable(self, everyone: bool = False) -> list[tuple[int, int]]:
        return [(i, number) for i, number in self.sleepers() if self._waiting(i) and self.has_free_half(i)]

    # What guards a lane.

    def _shut(self, worker: int) -> None:
        since = shmqueue.system.monotonic()
        while not self._lock[worker].acquire(shmqueue.LOCK_PATIENCE):
            self.ask_why(worker, shmqueue.system.monotonic() - since, worker)

    def _reopen(self, worker: int) -> None:
        self._freed[worker] = self._head(worker)
        self._lock[worker].release()

    def _offer(self, worker: int, span: shmqueue.Span) -> None:
        self._shut(worker)
        self.words[self.lanes[worker] + LANE_PUSHED] = sum(span)
        self._reopen(worker)

    def _ready(self, worker: int, first: int) -> int:
        return self._waiting(worker)

    def claim(self, worker: int, limit: int) -> shmqueue.Span | None:
        words, status = self.words, self.status[worker]
        claiming = self.lanes[worker] + CLAIMING
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
        words = self.words
        published = list(harvested)
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
