# SPDX-License-Identifier: MIT
"""slot_state: no lock; one state byte a slot says whose it is.

Idea
    FREE -> READY (supervisor, once the task is written) -> CLAIMED -> DONE (worker, once the claim is committed) ->
    FREE (supervisor). Each worker has its own slots, a lane as in worker_lanes.py, so no two workers race for one.

Extra state
    The words of worker_lanes.py, and a byte for each slot.

Lock order
    No lock. Twice, two processes each store a word and then read the other's: `asleep` against a push or a harvest,
    `claiming` against `shut`. A fence stands between the store and the read: an atomic instruction, that of acquiring
    a lock that nobody else knows. All else needs stores to be seen in their order. x86 and s390x promise that, other
    processors do not, and an emulator may not. So this strategy refuses other processors, and tests at the start
    whether two processes see stores in their order.

If the holder dies
    Only its own slots are affected. One store commits a claim: `claimed`. Afterwards the supervisor makes the slots
    below the head DONE and those above it READY. It empties a batch that was not committed, takes back what the
    worker had not claimed, and deals it to others.

When to use it
    x86, many processors, tasks of a few microseconds: a claim costs no system call. On two processors the one ring is
    as fast; more were not measured. Each worker needs at least one slot. Copy worker_lanes.py as well.
"""

from __future__ import annotations

import functools
import mmap
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from .strategy import shmqueue, whole_lines
from .worker_lanes import CLAIMING, LANE_PUSHED, SHUT, WorkerLanes

FREE, READY, CLAIMED, DONE = (bytes([state]) for state in range(4))
IN_ORDER = ("x86_64", "amd64", "i686", "i386", "s390x")  # processors that show stores in their order
# It ends by itself after some seconds: an exception, or a kill, may keep its parent from stopping it.
STORE = """import mmap, sys
words = memoryview(mmap.mmap(int(sys.argv[1]), 0)).cast("Q")
number = 0
while not words[32] and number < 1 << 23:
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
                wrong = 0
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    number = words[0]
                    wrong += words[number % 16 * 2 + 64] < number
                words[32] = 1
    return wrong


class SlotState(WorkerLanes):
    strategy = "slot_state"

    @classmethod
    def refusal(cls) -> str:
        if platform.machine().lower() not in IN_ORDER:
            return f"a processor of type {platform.machine()} may show a slot's state before the slot"
        return "stores are seen out of order here (an emulator?)" if out_of_order() else ""

    @classmethod
    def state_bytes(cls, num_slots: int, num_workers: int) -> int:
        states = num_workers * whole_lines(num_slots // num_workers)
        return super().state_bytes(num_slots, num_workers) + states

    def __init__(self, segment: shmqueue.Segment, primitives: Any) -> None:
        super().__init__(segment, primitives)
        offset = self.state_offset + 2 * shmqueue.LINE * self.num_workers
        stride = whole_lines(self._size)
        self.states = [segment.window(offset + i * stride, self._size) for i in range(self.num_workers)]
        self._lock = threading.Lock()  # for its atomic instruction; the locks of the lanes are not used

    def _fence(self) -> None:
        self._lock.acquire()
        self._lock.release()

    def _set(self, worker: int, first: int, count: int, state: bytes) -> None:
        for index, length in shmqueue.ring_spans(first, count, self._size):
            self.states[worker][index : index + length] = state * length

    def _run_of(self, worker: int, first: int, most: int, state: bytes) -> int:
        """How many slots from `first` on, without wrapping, are in this state."""
        index = first % self._size
        part = bytes(self.states[worker][index : index + max(0, most)])
        return len(part) - len(part.lstrip(state))

    def _offer(self, worker: int, span: shmqueue.Span) -> None:
        self._set(worker, *span, READY)
        self.words[self.lanes[worker] + LANE_PUSHED] = sum(span)
        self._fence()  # before anybody asks who sleeps

    def _ready(self, worker: int, first: int) -> int:
        if self.words[self.lanes[worker] + SHUT]:
            return 0
        return self._run_of(worker, first, min(2 * self.batch, self._size - first % self._size), READY)

    def claim(self, worker: int, limit: int) -> shmqueue.Span | None:
        asleep = self.status[worker] + shmqueue.ASLEEP
        claim = self._try_to_claim(worker, limit)
        if claim is None:
            self._sleeps += 1
            self.words[asleep] = self._sleeps
            claim = self._try_to_claim(worker, limit)  # what somebody has pushed who did not see the sleep
        if claim is not None:
            self.words[asleep] = 0
        return claim

    def _try_to_claim(self, worker: int, limit: int) -> shmqueue.Span | None:
        words, status = self.words, self.status[worker]
        claiming = self.lanes[worker] + CLAIMING
        words[status + shmqueue.PUBLISHED] = words[status + shmqueue.CLAIMS]
        words[claiming] = 1
        self._fence()
        claim = self._claim_head(worker, limit)
        if claim is not None:
            self._set(worker, *claim, DONE)
        words[claiming] = 0
        return claim

    def _fill_half(self, worker: int, span: shmqueue.Span, places: Iterable[shmqueue.Span]) -> None:
        self._set(worker, *span, CLAIMED)
        super()._fill_half(worker, span, places)

    def harvest(self, harvested: Sequence[int]) -> list[int]:
        words = self.words
        for status, count in zip(self.status, harvested, strict=True):
            words[status + shmqueue.HARVESTED] = count
        words[shmqueue.SUPERVISOR_ASLEEP] = 2
        self._fence()
        published = [words[status + shmqueue.PUBLISHED] for status in self.status]
        words[shmqueue.SUPERVISOR_ASLEEP] = 2 * all(new <= old for new, old in zip(published, harvested, strict=True))
        for worker, freed in enumerate(self._freed):
            done = self._run_of(worker, freed, words[self.lanes[worker] + LANE_PUSHED] - freed, DONE)
            self._set(worker, freed, done, FREE)
            self._freed[worker] += done
        return published

    def recover(self, worker: int) -> None:
        head, freed = self._head(worker), self._freed[worker]
        self._set(worker, freed, max(0, head - freed), DONE)
        self._set(worker, head, self._waiting(worker), READY)
        super().recover(worker)

    def _shut(self, worker: int) -> None:
        """Have the worker claim nothing, and wait until it is inside no claim.

        This takes a few microseconds, unless somebody has stopped it there.
        """
        words, lane = self.words, self.lanes[worker]
        since = shmqueue.system.monotonic()
        words[lane + SHUT] = 1
        self._fence()
        while words[lane + CLAIMING] and not self._is_dead(worker):
            seconds = shmqueue.system.monotonic() - since
            if seconds > shmqueue.LOCK_PATIENCE:
                self.ask_why(worker, seconds)
            shmqueue.system.sleep(0)

    def _is_dead(self, worker: int) -> bool:
        """Return True if the worker's process has ended. Then it stays inside its claim until it is recovered."""
        pid = self.words[self.status[worker] + shmqueue.PID]
        return shmqueue.system.state_and_switches(pid)[0] in shmqueue.ENDED

    def _reopen(self, worker: int) -> None:
        self.words[self.lanes[worker] + SHUT] = 0

    def _take_back(self, worker: int, span: shmqueue.Span) -> None:
        self._set(worker, *span, DONE)
        super()._take_back(worker, span)


if __name__ == "__main__":
    raise SystemExit(shmqueue.main(queue=SlotState))
