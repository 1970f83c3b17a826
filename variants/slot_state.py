# SPDX-License-Identifier: MIT
"""slot_state: no lock; one state byte a slot says whose it is.

Idea
    FREE -> READY (supervisor, once the task is written) -> CLAIMED -> DONE (worker, once it has copied it) -> FREE
    (supervisor). The slots are partitioned, so that no two workers race for one; there is no common head. The
    supervisor deals so that loads are level, and takes back from a slow worker when another has nothing to do.

Extra state
    A byte for each slot. For each worker a line of the supervisor's (`start`, below which nothing is to be claimed,
    and `taking`, while it takes back) and one of its own (`claiming`). Worker i has the positions from i * 2**48 on.

Lock order
    No lock. Two who each store a word and then look at the other's (sleep against push, claiming against taking) have
    a fence in between: an atomic instruction, had by taking a lock that nobody else knows. All else relies on stores
    being seen in their order. x86 and s390x promise that, others do not, and an emulator may not: so this strategy
    refuses other processors, and tests at the start whether two processes see it kept.

If the holder dies
    Only its own slots are affected. `end` commits a claim in one store: slots CLAIMED below it are DONE, and those
    above it READY again; what it had not claimed is taken back and dealt to others.

When to use it
    x86, many processors, tasks of a few microseconds: a claim costs no system call. On two processors the one ring is
    as fast; more were not measured. It needs at least one slot for each worker.
"""

from __future__ import annotations

import bisect
import functools
import mmap
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

try:
    from . import shmqueue  # type: ignore[attr-defined, unused-ignore]  # copied next to it, into a package
except ImportError:
    import shmqueue  # type: ignore[no-redef, unused-ignore]

FREE, READY, CLAIMED, DONE = (bytes([state]) for state in range(4))
IN_ORDER = ("x86_64", "amd64", "i686", "i386", "s390x")  # processors that show stores in their order
STORE = """import mmap, sys
words = memoryview(mmap.mmap(int(sys.argv[1]), 0)).cast("Q")
number = 0
while not words[32]:
    number += 1
    words[number % 16 * 2 + 64] = number
    words[0] = number"""


@functools.lru_cache
def out_of_order(seconds: float = 0.02) -> int:
    """How often a store was seen before an earlier one of the same process."""
    with tempfile.TemporaryFile(dir=shmqueue.shared_directory()) as file:
        file.truncate(mmap.PAGESIZE)
        with mmap.mmap(file.fileno(), 0) as memory, memoryview(memory).cast("Q") as words:
            command = [sys.executable, "-I", "-S", "-c", STORE, str(file.fileno())]
            with subprocess.Popen(command, pass_fds=[file.fileno()]) as writer:
                while not words[0] and writer.poll() is None:
                    time.sleep(0.001)
                wrong, until = 0, time.monotonic() + seconds
                while time.monotonic() < until:
                    number = words[0]
                    wrong += words[number % 16 * 2 + 64] < number
                words[32] = 1
    return wrong


def shares(loads: Sequence[int], rooms: Sequence[int], count: int) -> list[int]:
    """How many of `count` tasks each lane gets, so that the loads come out as level as the rooms allow."""

    def filled(level: int) -> list[int]:
        return [min(room, max(0, level - load)) for load, room in zip(loads, rooms, strict=True)]

    level = bisect.bisect_left(range(max(loads) + max(rooms)), count, key=lambda level: sum(filled(level)))
    result = filled(level)
    for lane in [i for i, load in enumerate(loads) if result[i] == level - load > 0][: sum(result) - count]:
        result[lane] -= 1
    return result


class SlotState(shmqueue.SharedTaskQueue):
    strategy = "slot_state"
    if_killed = "no lock; only its own slots are affected"

    @classmethod
    def refusal(cls) -> str:
        if platform.machine().lower() not in IN_ORDER:
            return f"a processor of type {platform.machine()} may show a slot's state before the slot"
        return "stores are seen out of order here (an emulator?)" if out_of_order() else ""

    @classmethod
    def extra_bytes(cls, num_slots: int, num_workers: int) -> int:
        return num_workers * (2 * shmqueue.LINE + cls._stride(num_slots // num_workers))

    @staticmethod
    def _stride(slots: int) -> int:
        return -(-slots // shmqueue.LINE) * shmqueue.LINE

    @classmethod
    def make_primitives(cls, context: Any, num_slots: int, num_workers: int) -> Any:
        if num_slots < num_workers:
            raise ValueError(f"num_slots={num_slots}: {cls.strategy} needs one for each worker, workers={num_workers}")

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        line, workers = shmqueue.LINE, range(self.num_workers)
        self._size = self.num_slots // self.num_workers  # slots of a worker
        self._start = [(self.extra_offset + 2 * i * line) // 8 for i in workers]
        self._taking = [start + 1 for start in self._start]
        self._claiming = [start + line // 8 for start in self._start]
        states, stride = self.extra_offset + 2 * line * self.num_workers, self._stride(self._size)
        self.states = [segment.window(states + i * stride, self._size) for i in workers]
        self._pushed_to = [self.first_position + (i << 48) for i in workers]  # the supervisor's alone: what it pushed,
        self._freed_to = list(self._pushed_to)  # and what it has seen DONE

    def make_lock(self) -> Any:
        return threading.Lock()  # for its atomic instruction

    def _fence(self) -> None:
        self._lock.acquire()
        self._lock.release()

    def prepare(self) -> None:
        super().prepare()
        for status, start, position in zip(self.status, self._start, self._pushed_to, strict=True):
            for word in (status + shmqueue.FIRST, status + shmqueue.PROGRESS, status + shmqueue.END, start):
                self.words[word] = position

    def _set(self, worker: int, first: int, stop: int, state: bytes) -> None:
        for index, length in shmqueue.pieces(first, stop - first, self._size):
            self.states[worker][index : index + length] = state * length

    def _run_of(self, worker: int, first: int, most: int, state: bytes) -> int:
        """How many slots from `first` on, without wrapping, are in this state."""
        index = first % self._size
        part = bytes(self.states[worker][index : index + max(0, most)])
        return len(part) - len(part.lstrip(state))

    def _head(self, worker: int) -> int:
        return int(max(self.words[self.status[worker] + shmqueue.END], self.words[self._start[worker]]))

    def _rooms(self) -> list[int]:
        """For each worker, its free slots; none where there is no process."""
        pids = [self.words[status + shmqueue.PID] for status in self.status]
        return [
            self._size - (pushed - freed) if pid else 0
            for pid, pushed, freed in zip(pids, self._pushed_to, self._freed_to, strict=True)
        ]

    def room(self) -> int:
        return sum(self._rooms())

    def push(self, tasks: shmqueue.Tasks) -> list[tuple[int, int]]:
        loads = [
            pushed - max(self.words[status + shmqueue.PROGRESS], self.words[start])
            for pushed, status, start in zip(self._pushed_to, self.status, self._start, strict=True)
        ]
        done, positions = 0, []
        for worker, count in enumerate(shares(loads, self._rooms(), len(tasks.data))):
            if count:
                first = self._pushed_to[worker]
                places = shmqueue.pieces(first, count, self._size)
                part = tasks.part(done, done + count)
                self._write([(worker * self._size + index, length) for index, length in places], part)
                self._set(worker, first, first + count, READY)
                self._pushed_to[worker] += count
                positions.append((first, count))
                done += count
        self._fence()  # before it is asked who sleeps
        return positions

    def claim(self, worker: int, limit: int) -> tuple[int, int] | None:
        claim = self._try_to_claim(worker, limit)
        if claim is None:
            self._sleeps += 1
            self.words[self.status[worker] + shmqueue.ASLEEP] = self._sleeps
            claim = self._try_to_claim(worker, limit)  # what was pushed by somebody who did not see the sleep
        if claim is not None:
            self.words[self.status[worker] + shmqueue.ASLEEP] = 0
        return claim

    def _try_to_claim(self, worker: int, limit: int) -> tuple[int, int] | None:
        words, status, size = self.words, self.status[worker], self._size
        records = words[status + shmqueue.PUBLISHED] = words[status + shmqueue.RECORDS]
        words[self._claiming[worker]] = 1
        self._fence()
        count, first = 0, self._head(worker)
        if not words[self._taking[worker]]:
            free = 2 * self.batch - (records - words[status + shmqueue.HARVESTED])
            ready = self._run_of(worker, first, min(2 * self.batch, size - first % size), READY)
            count = min(limit, self.batch, free, -(-ready // 2))
        if count > 0:
            self._set(worker, first, first + count, CLAIMED)
            self._copy_to_lane(worker, [(worker * size + first % size, count)])
            words[status + shmqueue.FIRST] = words[status + shmqueue.PROGRESS] = first
            words[status + shmqueue.END] = first + count
            self._set(worker, first, first + count, DONE)
        words[self._claiming[worker]] = 0
        return (first, count) if count > 0 else None

    def harvest(self, harvested: Sequence[int]) -> list[int]:
        words = self.words
        for status, count in zip(self.status, harvested, strict=True):
            words[status + shmqueue.HARVESTED] = count
        words[shmqueue.SUPERVISOR_ASLEEP] = 1
        self._fence()
        published = [words[status + shmqueue.PUBLISHED] for status in self.status]
        words[shmqueue.SUPERVISOR_ASLEEP] = all(new <= old for new, old in zip(published, harvested, strict=True))
        for worker, freed in enumerate(self._freed_to):
            done = self._run_of(worker, freed, self._pushed_to[worker] - freed, DONE)
            self._set(worker, freed, freed + done, FREE)
            self._freed_to[worker] += done
        return published

    def recover(self, worker: int) -> shmqueue.Remains:
        head, freed = self._head(worker), self._freed_to[worker]
        self._set(worker, freed, max(freed, head), DONE)
        self._set(worker, head, self._pushed_to[worker], READY)
        self.words[self._claiming[worker]] = 0
        self.words[self.status[worker] + shmqueue.PID] = 0  # until there is another process
        return self._clear(worker)

    def take_back(self, worker: int) -> list[tuple[int, int]]:
        self.words[self._taking[worker]] = 1
        self._fence()
        first, stop = self._head(worker), self._pushed_to[worker]
        taken = not self.words[self._claiming[worker]] and first < stop
        if taken:
            self._set(worker, first, stop, DONE)
            self.words[self._start[worker]] = stop
        self.words[self._taking[worker]] = 0
        return [(first, stop - first)] if taken else []

    def backlog(self) -> int:
        return sum(max(0, pushed - self._head(worker)) for worker, pushed in enumerate(self._pushed_to))

    def wakeable(self) -> list[tuple[int, int]]:
        return [(i, number) for i, number in self.sleepers() if self._pushed_to[i] > self._head(i)]


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=SlotState))
