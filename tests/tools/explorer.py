"""Runs the product's own code under every interleaving; kills, stops and continues its workers at every step.

    python -m tests.tools.explorer --preemptions 2 --kills 1 --halts 2 --conts 1 [--scenario NAME] [--every]

Supervisor.run and Worker.serve run here as coroutines of one process, over one real segment, each with a queue object
of its own, as in reality. Doubles stand between them and what they share: the words, the lock, the cells of each half
(`ends`, `stamps`, `log`), the slots and the heap. An object in place of the product's `system` plays files,
pipes, polls, the clock, signals and the state of a process. Each asks the scheduler before it does anything.
Everything else is the product: a halt is its own Engine.halt, with its own looks.

A schedule is what happened at each choice. The schedules are walked depth first, each run from its start. A process
goes on, or one of these happens:

- It is preempted by another process.
- A worker is killed. Its coroutine is never resumed.
- The supervisor wakes and halts a worker that is at this step. Others run only where the supervisor is preempted.
- In the midst of a halt, somebody else sends SIGCONT to the worker. It runs; after any of its steps the supervisor
  may be back, and the worker may have been stopped again.
- A worker's look at the clock finds that more than QUIET_SECONDS have passed.

These bounds and reductions apply:

- No more than so many of each. To be blocked, asleep or dead is not to be preempted.
- A state that was reached before, with as much of each left, is not explored again. A state is the segment's bytes,
  the files beside it, what each process has read since it was last between two batches (or two turns), and what is
  yet to come of its clock, signals and stops. It has the vector clocks, too, as far as they can matter: for each place
  that somebody does not know of, who does. A state without them could hide a store that nothing orders, where it was
  reached by an ordered way first.
- A process is preempted where it takes the lock, and where it touches what others touch without the lock. That is
  enough where all else is ordered by the lock, by a start, by a death that was waited for, or by a stop (the worker
  stands still, the supervisor reads and stores, the worker goes on). So each access is checked for that with vector
  clocks: two that are not ordered are a failure in themselves, since processors may reorder them, too. What a halt
  has read of a worker that was running again may be read, but nothing may come of it. In a halt, the supervisor and
  a worker that runs again are preempted at each access. `every=True` preempts at each access everywhere.
- A process is killed at the first step after one that others can notice. A kill at a later one is the same kill. It
  is halted there, too, and after a look at the clock or at `end`.

The clock stands still, apart from this: a worker's clock has moved by as long as it was stopped. A stop that somebody
cut short adds nothing, or more than QUIET_SECONDS. Nobody ever wakes because time has passed, unless nothing else
could wake him by design (the pause before a worker that died early is started again), or the scenario says so: a
worker or a supervisor that sleeps on while there is work is a lost wake-up.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import signal
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

from greenlet import getcurrent, greenlet

import shmqueue

FIRST_PID = 1 << 22  # beyond what Linux gives, so that no signal to a process that is played here can reach a real one
SENTINEL, BELL = 0, 1  # descriptors that are played
MOST_ACTORS, MOST_STEPS, MOST_SHOWN = 16, 6000, 400
READY, LOCKED, ASLEEP, WAITING, HANGING, TURNING, DRAINING, LEFT, DEAD = range(9)
STATES = (
    "ready",
    "waits for the lock",
    "asleep",
    "waits for a bell",
    "hangs",
    "waits for a word",
    "done",
    "left",
    "dead",
)
STEP, TURN, CLOCK = "a step", "whose turn it is", "a look at the clock"  # places of choices
STAY, KILL, SWITCH, HALT, CONTINUE, CONTINUE_LATE, RETURN, STOP_AGAIN, SLOW = range(9)
LOG, HEAP = (1 << 30, 1 << 31)  # where the places of bytes of logs, and of the heap, begin; a word is its own place
SLOT_SIZE, LOG_BYTES, HEAP_PAGES = 64, 128, 2


class Scenario(NamedTuple):
    """What is put through the queue. tasks: a letter each, see `value_of` and `payload_of`.

    how: run, map, submit, each (submitted once the one before has its result), or two (submitted and run at once).
    few: of how many workers each has a fair share, so that few tasks make batches of several; 0 for the product's own
    rule. then: what the supervisor does after the first result. ticks: how often the supervisor may wake because time
    has passed. close: it has the workers leave at the end.
    """

    name: str
    tasks: str
    num_slots: int = 4
    batch: int = 2
    retries: int = 0
    few: int = 2
    then: str = ""
    ticks: int = 0
    close: bool = False
    workers: int = 2
    how: str = "run"
    max_tasks: int | None = None
    timeout: float | None = None


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("nothing returned", "qqq"),
        Scenario("values", "vvv"),
        Scenario("mixed", "qvs", batch=3),
        Scenario("records", "tef", batch=3),
        Scenario("kinds", "tiv", batch=3),
        Scenario("files", "bvb", batch=3),
        Scenario("heap", "ppp", num_slots=2),
        Scenario("payload in a file", "PqP", num_slots=2),
        Scenario("one at a time", "vqv", batch=1, few=0),
        Scenario("small ring", "qvq", num_slots=2),
        Scenario("retries", "qfv", retries=1),
        Scenario("cancelled", "qvvq", batch=1, then="cancel"),
        Scenario("paused", "vqv", then="pause"),
        Scenario("closed early", "vqv", then="close"),
        Scenario("told to leave", "vqq", then="leave"),
        Scenario("left", "vq", close=True, few=1),
        Scenario("few tasks each", "vq", max_tasks=1),
        Scenario("submitted", "qv", how="submit"),
        Scenario("one after the other", "qqq", how="each", workers=1, few=1),
        Scenario("in order", "vqv", how="map"),
        Scenario("two jobs", "qvqv", how="two"),
        Scenario("looked behind", "qvq", batch=3, ticks=2),
        Scenario("timeout", "hq", ticks=2, timeout=0.05, workers=1, few=1),
        Scenario("too slow", "qqv", batch=3, ticks=3, workers=1, few=1, timeout=0.05),
        Scenario("two too slow", "qq", ticks=2, workers=1, few=1, timeout=0.05),
        Scenario("one task", "q"),
        Scenario("two tasks", "qq"),
        Scenario("two tasks retried", "qv", retries=1),
        Scenario("two tasks cancelled", "qv", batch=1, few=1, then="cancel"),
        Scenario("one worker", "qvq", num_slots=2, workers=1, few=1),
        Scenario("one worker, one at a time", "vqv", batch=1, workers=1, few=1),
        Scenario("one worker, cancelled", "qvq", batch=3, workers=1, few=1, then="cancel"),
        Scenario("one worker, the last one cancelled", "qq", batch=2, workers=1, few=1, then="cancel the last"),
        Scenario("one worker, files", "bvb", batch=3, workers=1, few=1),
        Scenario("one worker, text", "tttt", batch=2, workers=1, few=1),
        Scenario("one worker, kinds", "qvti", batch=4, workers=1, few=1),
        Scenario("one worker looked behind", "qqv", batch=3, ticks=3, workers=1, few=1),
        Scenario("one batch", "qvqv", batch=4, workers=1, few=1),
        Scenario("two batches", "qqvv", batch=2, workers=1, few=1),
        Scenario("two in a batch", "qv", workers=1, few=1),
        Scenario("three in a batch", "qvq", batch=3, workers=1, few=1),
    )
}


PARTS = (
    shmqueue.SharedTaskQueue, shmqueue.Worker, shmqueue.Run, shmqueue.Ledger, shmqueue.Lane,
    shmqueue.Heap, shmqueue.WorkerPool, shmqueue.Process, shmqueue.Packer,
)  # fmt: skip


class Bounds(NamedTuple):
    preemptions: int = 0
    kills: int = 0
    halts: int = 0
    conts: int = 0
    slows: int = 0

    def __str__(self) -> str:
        parts = [f"{count} {name}" for name, count in self._asdict().items() if count]
        return ", ".join(parts) or "nothing"


class Failure(NamedTuple):
    """A schedule that went wrong: what is wrong, and its steps, the last ones last."""

    scenario: str
    bounds: Bounds
    message: str
    steps: list[str]

    def __str__(self) -> str:
        return "\n".join([f"{self.scenario}, {self.bounds}: {self.message}", *self.steps[-MOST_SHOWN:]])


class Report(NamedTuple):
    """schedules: run, those that were cut short at a known state included; complete: they are all that there are.
    kinds: steps that workers took; kills, halts: by the kind of step that the victim did not take any more, or yet.
    """

    schedules: int
    states: int
    kinds: set[str]
    kills: collections.Counter[str]
    halts: collections.Counter[str]
    failure: Failure | None
    complete: bool


class Choice:
    """A choice in a schedule: where it was made, what may happen to which process, and what was known before it.

    A schedule is run from its start up to its last choice in the same way as the one before. Nothing of that is
    computed again: neither the options, nor what orders the accesses, nor the traces.
    """

    __slots__ = ("chosen", "known", "options", "place", "step")

    def __init__(self, world: World, place: str, options: list[tuple[int, Any]]) -> None:
        self.chosen = 0
        self.options = [(what, other and other.number) for what, other in options]
        self.place, self.step = place, world.steps
        self.known = world.knowledge()

    @property
    def matters(self) -> bool:
        """False where everything goes on as if there were no choice."""
        return self.chosen > 0 or self.place == TURN

    @property
    def until(self) -> int:
        """All steps before this one go on."""
        return self.step + (self.place != STEP)


class Gone(BaseException):
    """In a coroutine whose process was killed, or whose run is over: nothing that it does counts."""


# What the workers call. The first letter of a payload says what becomes of the task.


def log_bytes(lane_bytes: int) -> int:
    """All of a log is there from the start: what it has in one schedule must be the same in the next."""
    return max(LOG_BYTES, lane_bytes)


def payload_of(letter: str, number: int) -> bytes:
    """A small payload; for p one that goes to the heap, for P one that goes to a file."""
    sizes = {"p": SLOT_SIZE, "P": HEAP_PAGES * 4096 // 2 + 1}
    return b"%c%d" % (ord(letter), number) + b"." * sizes.get(letter, 0)


def value_of(payload: bytes) -> Any:
    """What a task returns: q, s (slow) and h (hangs) nothing; p, P nothing; v bytes; t text; e no bytes; b more
    than fits a log; i plain data; f fails.
    """
    letter = payload[:1]
    if letter == b"f":
        raise ValueError(payload.decode())
    values = {b"v": payload + b"!", b"t": payload.decode(), b"e": b"", b"b": payload * LOG_BYTES, b"i": (7, payload)}
    return values.get(letter)


class Actor:
    """A process. worker: its index, or -1 for the supervisor.

    effect: it has done something that others can notice; moved: or that a stop at this place can be told by.
    skew: by how much its clock is before the common one.
    """

    def __init__(self, number: int, worker: int, clock: list[int]) -> None:
        self.number, self.worker, self.clock = number, worker, clock
        self.name = "supervisor" if worker < 0 else f"worker {'AB'[worker]}{number}"
        self.state, self.hint = READY, 0
        self.trace, self.effect, self.moved, self.at = 0, False, True, "start"
        self.wake, self.rings, self.skew = -1, 0, 0.0
        self.stopping = self.stopped = self.ran = False  # SIGSTOP was sent; it has arrived; it ran since the last one
        self.awaited = False  # the supervisor has sent SIGSTOP, and not seen yet that it has arrived
        self.switches = 0
        self.lane = [0, 0]  # the positions that it stored as `first` and `end` of its batch,
        self.settled: set[int] = set()  # and those that are committed
        self.body: Any = None
        self.greenlet: Any = None
        self.wants: Any = None  # the lock that it waits for

    @property
    def alive(self) -> bool:
        return self.state < LEFT

    def hand(self) -> int | None:
        """The position of the task in hand: the first of the batch that is not committed."""
        return next((position for position in range(*self.lane) if position not in self.settled), None)


# The doubles.


class Words:
    """The segment's words, as one process sees them."""

    def __init__(self, world: World, memory: memoryview) -> None:
        self.world, self.memory = world, memory
        self.actor: Any = None

    def __getitem__(self, place: int) -> int:
        actor, world = self.actor, self.world
        if world.passes():
            return self.memory[place]
        world.step(actor, world.reads[place], place in world.shared)
        world.order(actor, place, False)
        value = self.memory[place]
        actor.trace = hash((actor.trace, value))
        if place in world.ends:
            actor.moved = True
        return value

    def __setitem__(self, place: int, value: int) -> None:
        actor, world = self.actor, self.world
        if not world.passes():
            world.step(actor, world.stores[place], place in world.shared and self.memory[place] != value)
            world.order(actor, place, True)
            actor.trace = hash((actor.trace, place))
        self.memory[place] = value
        actor.effect = actor.moved = True
        if actor.worker >= 0:
            world.note_store(actor, place, value)

    def release(self) -> None:
        raise AssertionError("a process of its own gave up its words")


class Cells:
    """A view of part of the segment, as one process sees it.

    Item i lies at the place first + i * size // unit. noted: called with the actor and the item that it stored.
    """

    def __init__(
        self, words: Words, view: Any, what: str, first: int, unit: int = 8, shared: bool = False, noted: Any = None
    ) -> None:
        self._words, self._view, self._noted, self._shared = words, view, noted, shared
        self._first, self._unit, self._size = first, unit, view.itemsize
        self._read, self._store = f"read {what}", f"store {what}"

    def __len__(self) -> int:
        return len(self._view)

    def _ask(self, key: Any, kind: str, write: bool) -> Actor:
        actor, world = self._words.actor, self._words.world
        world.step(actor, kind, self._shared)
        if not world.repeating:
            start, stop, _ = (key if isinstance(key, slice) else slice(key, key + 1)).indices(len(self._view))
            for place in range(start * self._size // self._unit, -(-stop * self._size // self._unit)):
                world.order(actor, self._first + place, write)
        return actor

    def __getitem__(self, key: Any) -> Any:
        if self._words.world.passes():
            return self._view[key]
        actor = self._ask(key, self._read, False)
        value = self._view[key]
        seen = bytes(value) if isinstance(key, slice) else value
        actor.trace = hash((actor.trace, seen))
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        actor = self._ask(key, self._store, True)
        self._view[key] = value
        actor.trace = hash((actor.trace, self._store))
        actor.effect = actor.moved = True
        if self._noted is not None and actor.worker >= 0 and type(key) is int:
            self._noted(actor, key)


class Lock:
    """A lock that is free once its holder is dead."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.holder: Any = None
        self.clock = [0] * MOST_ACTORS

    def seat(self, words: Words) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            acquire=lambda *_, **__: self.acquire(words.actor), release=lambda: self.release(words.actor)
        )

    def acquire(self, actor: Actor) -> bool:
        world = self.world
        world.step(actor, "lock", True)
        while self.holder is not None:
            actor.wants = self
            world.block(actor, LOCKED)
        self.holder = actor
        join(actor.clock, self.clock)
        actor.trace = hash((actor.trace, "lock"))
        actor.effect = actor.moved = True
        return True

    def release(self, actor: Actor) -> None:
        self.world.step(actor, "unlock", False)
        if self.holder is not actor:
            self.world.fail(f"{actor.name} released a lock that it did not have")
        self.let_go(actor)
        actor.trace = hash((actor.trace, "unlock"))
        actor.effect = actor.moved = True

    def let_go(self, actor: Actor) -> None:
        self.holder, self.clock = None, list(actor.clock)
        actor.clock[actor.number] += 1


def join(clock: list[int], other: Sequence[int]) -> None:
    clock[:] = map(max, clock, other)


class End:
    """A descriptor that is played: of a pipe, or one that stands for a process."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        pass


class Poll:
    """select.poll() of a worker, which waits to be rung; of the supervisor, which waits for a bell or a death; or of
    one process alone.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._descriptors: list[int] = []

    def register(self, descriptor: Any, events: int = 0) -> None:
        self._descriptors.append(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    def unregister(self, descriptor: Any) -> None:
        pass

    def poll(self, milliseconds: float | None = None) -> list[tuple[Any, int]]:
        world, first = self._world, self._descriptors[0]
        if first >= FIRST_PID:
            return [(first, 1)] if world.has_ended(first, milliseconds is None) else []
        if first == SENTINEL:
            return []
        return world.sleep((milliseconds or 0.0) / 1000)


class PlayedSystem(shmqueue.System):
    """What the product asks of the machine, played by the world. The descriptor of a process has its pid's number."""

    def __init__(self, world: World) -> None:
        self._world = world

    # Clocks.

    def monotonic(self) -> float:
        return self._world.now

    wall_clock = monotonic

    def perf_counter(self) -> float:
        return self._world.read_clock()

    def sleep(self, seconds: float) -> None:
        self._world.give_way(seconds)

    def spin_until(self, when: float) -> None:
        self._world.stand_for(when)

    # Descriptors.

    def dup(self, descriptor: int) -> int:
        return descriptor

    def set_blocking(self, descriptor: int, blocking: bool) -> None:
        pass

    def poll(self) -> Any:
        return Poll(self._world)

    def read(self, descriptor: int, count: int) -> bytes:
        return b""  # Poll has emptied the pipe

    def write(self, descriptor: int, data: Any) -> int:
        self._world.write(descriptor)
        return len(data)

    # Processes.

    def get_context(self, method: str) -> Any:
        process = functools.partial(Process, self._world)
        return types.SimpleNamespace(Process=process, Pipe=self._world.pipe, get_start_method=lambda: "fork")

    def pidfd_open(self, pid: int) -> Any:
        return End(pid)

    def pidfd_send_signal(self, pidfd: int, number: int) -> None:
        self._world.signal(self._world.actor_of(pidfd), number)

    def killpg(self, group: int, number: int) -> None:
        pass

    def process_state(self, pid: int) -> tuple[str, int]:
        return "R", 0

    def state_and_switches(self, pid: int) -> tuple[str, int]:
        return self._world.state_and_switches(pid)

    # Files beside the segment.

    def exists(self, path: str) -> bool:
        return self._world.file_exists(path)

    def unlink(self, path: str) -> None:
        if self._world.touch("remove a file").pop(path, None) is None:
            raise FileNotFoundError(path)

    def write_file(self, path: str, data: bytes) -> None:
        self._world.touch("write a file")[path] = bytes(data)

    def read_file(self, path: str, length: int) -> bytes:
        files = self._world.touch("read a file")
        if len(files[path]) != length:
            raise AssertionError(f"a file has {len(files[path])} bytes instead of {length}")
        return files[path]


class Process:
    """A multiprocessing.Process whose target is played by a coroutine."""

    def __init__(self, world: World, target: Any, args: Sequence[Any], name: str) -> None:
        self.world, self.sentinel = world, SENTINEL
        _, _, _, self.index, self.options, self.pipes = args
        self.actor: Any = None
        self.pid = 0

    def start(self) -> None:
        self.actor = self.world.spawn(self.index, self.options, self.pipes)
        self.pid = FIRST_PID + self.actor.number

    @property
    def exitcode(self) -> int:
        return 0 if self.actor.state == LEFT else -9

    def join(self) -> None:
        pass


def steered_pool(world: World) -> type[shmqueue.WorkerPool]:
    class SteeredPool(world.part(shmqueue.WorkerPool)):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            world.pool = self

    return SteeredPool


def steered_run(world: World) -> type[shmqueue.Run]:
    class SteeredRun(world.part(shmqueue.Run)):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            world.engine = self

        def step(self, job: Any, report: Any, *until: float) -> None:
            if not world.repeating:
                world.begin_turn(self, job)
            super().step(job, lambda: None, *until)  # the screen, and what --watch reads, are no part of the protocol

    return SteeredRun


def steered_ledger(world: World) -> type[shmqueue.Ledger]:
    class SteeredLedger(world.part(shmqueue.Ledger)):  # type: ignore[misc]
        def complete(self, *outcomes: Any) -> None:
            world.nothing_doubtful()
            super().complete(*outcomes)

        def give_back(self, position: int, count: int) -> None:
            if count > 0:
                world.nothing_doubtful()
            super().give_back(position, count)

        def charge(self, worker: int, position: int, failure: Any, *about: Any, **more: Any) -> None:
            world.nothing_doubtful()
            if failure.status != "failed":
                world.charged(worker, position)
            super().charge(worker, position, failure, *about, **more)

    return SteeredLedger


def steered_lane(world: World) -> type[shmqueue.Lane]:
    class SteeredLane(world.part(shmqueue.Lane)):  # type: ignore[misc]
        def has_batches(self) -> bool:  # it counts only if it is so at two checks, with a turn of the lock between them
            return world.hint(super().has_batches)

        def is_ready(self) -> bool:  # when the run ends: a worker that is not seems to be still starting, and is killed
            return world.hint(super().is_ready)

    return SteeredLane


class Seat:
    """A queue object, of one process at a time, with the doubles in it; made anew for each run from what it held."""

    def __init__(self, world: World, queue: Any, few: int) -> None:
        self.world, self.queue, self.words = world, queue, Words(world, queue.words)
        queue.words = self.words
        for name in world.lock_names:
            locks = getattr(queue, name)
            names = [f"{name} {i}" for i in range(len(locks))] if isinstance(locks, list) else []
            seats = [world.locks[name].seat(self.words) for name in names or [name]]
            setattr(queue, name, seats if names else seats[0])
        if few:
            queue.share = lambda available, limit: int(min(limit, available, max(-(-available // few), limit // 8)))
        slot = queue.slot_size // 8
        ring = world.layout.ring.offset // 8
        self._guard_slots(queue.ring, "the ring", ring, slot)
        self._guard(
            queue,
            "_write",
            "write the ring",
            True,
            False,
            lambda spans, _: (place for i, n in spans for place in places_of(ring, slot, i, range(n))),
        )
        for half in halves_of(queue):
            self._guard_half(half)
        queue.heap = Cells(self.words, queue.heap, "the heap", HEAP, 4096)
        if hasattr(queue, "states"):
            first = (1 << 29) + queue.state_offset
            queue.states = [
                Cells(self.words, view, f"states {worker}", first + (worker << 10), 1, True)
                for worker, view in enumerate(queue.states)
            ]
        for name in ("_filled", "_free"):
            if hasattr(queue, name):
                for method in ("take", "post", "value"):
                    self._guard(getattr(queue, name), method, f"{method} {name[1:]} tokens", True, True, lambda *_: ())
        for name in ("sleepers", "backlog", "glance", "wakeable", "has_free_half", "is_claiming"):
            self._hint(name)
        claim = queue.claim
        queue.claim = lambda worker, limit: claim(worker, world.begin_claim(self.words.actor, limit))
        self._kept = dict(vars(queue))

    def _guard(self, owner: Any, name: str, kind: str, write: bool, shared: bool, of: Callable[..., Any]) -> None:
        """Have `owner.name` ask the scheduler; of: the places it touches, from its arguments."""
        original, words, world = getattr(owner, name), self.words, self.world

        def guarded(*arguments: Any) -> Any:
            actor, passes = words.actor, world.passes()
            if not passes:
                world.step(actor, kind, shared)
                for place in of(*arguments):
                    world.order(actor, place, write)
            value = original(*arguments)
            if write:
                actor.effect = actor.moved = True
            if not passes:
                actor.trace = hash((actor.trace, kind, repr(value)))
            return value

        setattr(owner, name, guarded)

    def _guard_slots(self, slots: Any, what: str, first: int, size: int) -> None:
        """A slot is one place, that of its first word."""
        self._guard(slots, "payloads", f"read {what}", False, False, lambda i, n: places_of(first, size, i, range(n)))
        places = lambda unit, word, i, n: places_of(first, size, i, range(n))  # noqa: E731
        self._guard(slots, "column", f"read {what}", False, False, places)

    def _guard_half(self, half: Any) -> None:
        words, base = self.words, half.first
        layout = self.world.half_layout
        place = {name: base + getattr(layout, name).offset // 8 for name in ("lane", "ends", "stamps")}
        half.ends = Cells(words, half.ends, "ends", place["ends"], noted=self.world.note_commit)
        half.stamps = Cells(words, half.stamps, "stamps", place["stamps"])
        half.log = Cells(words, half.log, "the log", LOG + 8 * base, 1)
        self._guard_slots(half.lane, "the lane", place["lane"], self.queue.slot_size // 8)
        self._guard_copy(half.lane, place["lane"])

    def _guard_copy(self, lane: Any, first: int) -> None:
        copy, words, world, slot = lane.copy_from, self.words, self.world, self.queue.slot_size // 8

        def guarded(ring: Any, places: Any) -> None:
            actor, places = words.actor, list(places)
            world.step(actor, "copy to the lane", False)
            done = 0
            for index, length in places:
                for place in places_of(world.layout.ring.offset // 8, slot, index, range(length)):
                    world.order(actor, place, False)
                for place in places_of(first, slot, done, range(length)):
                    world.order(actor, place, True)
                done += length
            copy(ring, places)
            actor.effect = actor.moved = True

        lane.copy_from = guarded

    def _hint(self, name: str) -> None:
        """What is read here need not be new: it is asked again, or told in another way."""
        setattr(self.queue, name, functools.partial(self.world.hint, getattr(self.queue, name)))

    def take(self, actor: Actor) -> Any:
        held = vars(self.queue)
        held.clear()
        for name, value in self._kept.items():
            held[name] = value.copy() if type(value) in (list, dict, set, collections.deque, bytearray) else value
        self.words.actor = actor
        return self.queue


def halves_of(queue: Any) -> list[Any]:
    """Return the halves of all workers."""
    return [half for worker in range(queue.num_workers) for half in queue.halves(worker)]


def places_of(first: int, size: int, index: int, items: Any) -> range:
    return range(first + index * size, first + (index + len(items)) * size, size)


class World:
    """One scenario, explored within bounds.

    parts: subclasses of PARTS, to be put in their places. locks: the attributes of a queue object that hold locks.
    ordered: accesses must be ordered. one_ring: at the end, the words must be those of a queue whose positions all
    come from one ring. kill_anywhere: also where a kill is the same as one before.
    """

    def __init__(
        self,
        scenario: Scenario,
        bounds: Bounds,
        *,
        parts: Sequence[type] = (),
        locks: Sequence[str] = ("_lock",),
        every: bool = False,
        kill_anywhere: bool = False,
        ordered: bool = True,
        one_ring: bool = True,
    ) -> None:
        self.scenario, self.bounds, self.every = scenario, bounds, every or scenario.ticks > 0
        self.kill_anywhere, self.ordered, self.one_ring = kill_anywhere, ordered, one_ring
        self.lock_names, self.locks = locks, collections.defaultdict[str, Lock](lambda: Lock(self))
        self.parts = {next(base for base in part.__mro__ if base in PARTS): part for part in parts}
        self._queue, self._worker = self.part(shmqueue.SharedTaskQueue), self.part(shmqueue.Worker)
        self.payloads = [payload_of(letter, i) for i, letter in enumerate(scenario.tasks)]
        self.path: list[Choice] = []  # of the schedule
        self.visited: dict[int, list[tuple[int, ...]]] = {}
        self.kinds: set[str] = set()
        self.kills: collections.Counter[str] = collections.Counter()
        self.halts_at: collections.Counter[str] = collections.Counter()
        self.schedules = self.states = 0
        self.logging = False
        self.failure = ""
        self.current: Any = None

    def part(self, base: type) -> Any:
        """The class of the product in this place, or what was given in its stead."""
        return self.parts.get(base, base)

    # All schedules.

    def explore(self, seconds: float = float("inf")) -> Report:
        """Run every schedule, until one goes wrong, or time is up."""
        until, failure = time.monotonic() + seconds, None
        with self._doubles():
            try:
                while True:
                    self.run()
                    self.schedules += 1
                    if self.failure:
                        failure = self._explain()
                        break
                    while self.path and self.path[-1].chosen + 1 == len(self.path[-1].options):
                        self.path.pop()
                    if not self.path or time.monotonic() > until:
                        break
                    self.path[-1].chosen += 1
            finally:
                self._close()
        complete = not self.path
        return Report(self.schedules, self.states, self.kinds, self.kills, self.halts_at, failure, complete)

    def _explain(self) -> Failure:
        """Run the schedule again, noting its steps."""
        message, self.logging = self.failure, True
        self.run()
        if self.failure != message:
            raise AssertionError(f"the same schedule first gave {message!r}, then {self.failure!r}")
        return Failure(self.scenario.name, self.bounds, message, self.log)

    @contextlib.contextmanager
    def _doubles(self) -> Iterator[None]:
        """Put the doubles where the product looks for the real ones, and make the segment."""
        self.main = getcurrent()
        heap = HEAP_PAGES * 4096 if {"p", "P"} & set(self.scenario.tasks) else 0
        sizes = {
            "HEAP_BYTES": heap,
            "LOG_BYTES": 0,
            "first_log_bytes": log_bytes,
            "BLOCK_BYTES": 3 * SLOT_SIZE,  # two payloads of p
            "segment_layout": functools.cache(shmqueue.segment_layout.__wrapped__),
        }
        with mock.patch.multiple(shmqueue, **sizes):
            self._make_segment()
            with contextlib.ExitStack() as stack:
                stack.enter_context(mock.patch.multiple(shmqueue, **self._steered()))
                yield

    def _make_segment(self) -> None:
        scenario, queue = self.scenario, self._queue
        batch = min(scenario.batch, scenario.num_slots)
        context = multiprocessing.get_context("fork")
        made = queue.create(scenario.num_slots, SLOT_SIZE, scenario.workers, batch, context)
        self._made, self._primitives, self.status = made, made.primitives, made.status
        heap = len(made.heap)
        extra = queue.extra_bytes(scenario.num_slots, scenario.workers)
        log = log_bytes(batch * SLOT_SIZE)
        sizes = scenario.num_slots, SLOT_SIZE, scenario.workers, batch, extra, log, heap
        self.layout = shmqueue.segment_layout(*sizes)
        self.half_layout = shmqueue.batch_half(SLOT_SIZE, batch, log)
        self.memory = made.segment.window(0, self.layout.heap.offset + heap)
        self._image = bytes(self.memory)
        self.firsts = [[half.first for half in made.halves(worker)] for worker in range(made.num_workers)]
        self.ends = {half.end for half in halves_of(made)}
        size = ctypes.sizeof(self.half_layout) // 8
        owned = [(s, s + 16) for s in self.status], [(pair[0], pair[1] + size) for pair in self.firsts]
        self._owners = {word: worker for part in owned for worker, words in enumerate(part) for word in range(*words)}
        self._name_words()
        self._seats: dict[tuple[int, int], Seat] = {(-1, 0): Seat(self, made, 0)}

    def _name_words(self) -> None:
        """Which words are shared without an order, and what steps on words are called."""
        status = self.status
        alone = {s + word for s in status for word in (shmqueue.LIMIT, shmqueue.LEAVE)}
        self.unordered = {shmqueue.SUPERVISOR_ASLEEP, *alone}
        asleep = {s + shmqueue.ASLEEP for s in status}
        self.shared = {shmqueue.SUPERVISOR_ASLEEP, shmqueue.CLAIMED, *asleep, *(s + shmqueue.LEAVE for s in status)}
        header = ("PUSHED", "CLAIMED", "DIRTY", "SUPERVISOR_ASLEEP")
        fields = ("CLAIMS", "PUBLISHED", "ASLEEP", "LIMIT", "HARVESTED", "LEAVE", "PID", "BORN")
        names = {getattr(shmqueue, name): name for name in header}
        names.update((s + getattr(shmqueue, name), name) for s in status for name in fields)
        names.update((first, "FIRST") for pair in self.firsts for first in pair)
        names.update(dict.fromkeys(self.ends, "END"))
        words = range(len(self._made.segment.words))
        self.reads = [f"read {names.get(word, word)}" for word in words]
        self.stores = [f"store {names.get(word, word)}" for word in words]

    def _steered(self) -> dict[str, Any]:
        return {
            **{base.__name__: part for base, part in self.parts.items()},
            "WorkerPool": steered_pool(self),
            "Run": steered_run(self),
            "Ledger": steered_ledger(self),
            "Lane": steered_lane(self),
            "system": PlayedSystem(self),
            "handled_signals": list,
            "release_all": lambda release: None,
            "HALT_TRIES": 2,  # one that succeeds, and one before it that does not
            "psutil": None,
            "sweep": list,
            "annotated": functools.cache(shmqueue.annotated),  # it takes long, and there is one function
            "structures_of": lambda functions: [],
            "describe_traceback": lambda error: 4 * LOG_BYTES * ".",  # more than fits a log, as any that is made
        }

    def _close(self) -> None:
        for seat in self._seats.values():
            vars(seat.queue).pop("stuck", None)
            seat.queue.words = seat.words.memory  # to close it is no step of an actor
            seat.queue.close()
        shmqueue.remove_segment(self._made.segment.path)

    # One schedule.

    def run(self) -> None:
        """One schedule, from its start to its end, or to a state that was explored before."""
        self.memory[:] = self._image
        self.steps, self.failure, self.log = 0, "", []
        self.withdrawn = False  # what cancel(tsk_id) has returned
        self.preemptions, self.mortality, self.halts, self.conts, self.slows = self.bounds
        self.ticks, self.now, self.bell, self.calm, self.over = self.scenario.ticks, 1.0, False, False, False
        self.halting: Any = None  # the worker that is being halted
        self.seen: Any = None  # the one whose state was asked for last
        self.wanted: int | None = None  # the worker to be halted
        self.pipes = 0
        self.returns = 0  # how often a worker that runs in its halt may give way to the supervisor
        self.disturbed = False  # somebody has continued it
        self.doubts = ""  # why what the halt has read may not be used
        self.actors: list[Actor] = []
        self.files: dict[str, bytes] = {}
        self.started = [0] * len(self.payloads)
        self.hands: dict[int, int | None] = {}  # by worker: what the one who was buried last had in hand
        self.results: list[tuple[Any, ...]] = []
        self.pool: Any = None
        self._writes: dict[int, tuple[int, int]] = {}
        self._reads: dict[int, dict[int, int]] = {}
        self.ahead = [choice for choice in self.path[:-1] if choice.matters] + self.path[-1:]  # to be made again
        self.ahead.reverse()
        self.repeating = bool(self.path)  # as in the schedule before
        self.known_until = self.ahead[-1].until if self.repeating else 0  # before this step there is nothing to choose
        self.since_choice: set[int] = set()  # states at the start of turns and claims since the last choice
        for lock in self.locks.values():
            lock.holder, lock.clock = None, [0] * MOST_ACTORS
        self.supervisor = self._actor(-1, [0] * MOST_ACTORS, self._supervise)
        self.current = self.supervisor
        self.supervisor.greenlet.switch()
        while not self.over:
            with contextlib.suppress(Gone):
                self._next()
        self.current = None
        for actor in self.actors:  # now that nothing counts, let them go
            if not actor.greenlet.dead:
                with contextlib.suppress(Gone):
                    actor.greenlet.throw()

    def _actor(self, worker: int, clock: list[int], body: Any) -> Actor:
        actor = Actor(len(self.actors), worker, clock)
        clock[actor.number] = 1
        self.actors.append(actor)
        actor.greenlet = greenlet(functools.partial(self._live, actor, body), self.main)
        return actor

    def _live(self, actor: Actor, body: Any) -> None:
        try:
            body(actor)
        except Gone:
            return
        except Exception as error:
            if actor is self.current:
                actor.state = LEFT
                self.failure = self.failure or f"{actor.name} raised {shmqueue.describe(error)}"
                self.over = True
            return
        if actor is self.current:
            actor.state, actor.at = LEFT, "left"

    def _seat(self, actor: Actor) -> Any:
        """The queue object of a process: one for each that there ever is of a worker, kept from run to run."""
        which = actor.worker, sum(other.worker == actor.worker for other in self.actors) - 1
        if which not in self._seats:
            queue = self._queue.attach(self._made.name, self._primitives)
            self._seats[which] = Seat(self, queue, self.scenario.few)
        return self._seats[which].take(actor)

    def _supervise(self, actor: Actor) -> None:
        """The whole life of the supervisor: the run, and what is left after it."""
        scenario, queue = self.scenario, self._seat(actor)
        strategy = types.SimpleNamespace(create=lambda *_: queue)
        supervisor = shmqueue.Supervisor(
            [self.task], workers=scenario.workers, num_slots=scenario.num_slots, slot_size=SLOT_SIZE,
            batch=scenario.batch, retries=scenario.retries, max_tasks=scenario.max_tasks, timeout=scenario.timeout,
            start_method="fork", queue=strategy,
        )  # fmt: skip
        getattr(self, f"_{scenario.how}")(supervisor)
        if scenario.close:
            supervisor.close()
            if any(other.alive for other in self.actors if other is not actor):
                self.fail("a worker stayed")
        else:
            self._drain(actor, supervisor)
        self._check(supervisor)
        self.over = True

    # How tasks are put through: Scenario.how.

    def _run(self, supervisor: Any, payloads: Sequence[bytes] | None = None) -> None:
        tasks = self.payloads if payloads is None else payloads
        self._read(supervisor, supervisor.run(tasks))

    def _read(self, supervisor: Any, iterator: Any) -> None:
        then = self.scenario.then
        with contextlib.closing(iterator) as results:
            for result in results:
                self.results.append((result.tsk_id, result.status, result.value, result.attempts))
                if len(self.results) == 1 and then == "close":
                    break
                if len(self.results) == 1 and then:
                    self._interfere(supervisor, then)

    def _interfere(self, supervisor: Any, then: str) -> None:
        if then == "cancel":
            supervisor.cancel()
        elif then == "cancel the last":
            self.withdrawn = supervisor.cancel(len(self.payloads))
        elif then == "pause":
            supervisor.pause(True)
            supervisor.pause(False)
        elif then == "leave":  # as where a worker's memory is larger than max_rss
            lane = self.pool.lanes[0]
            if lane.process.child is not None:
                lane.retire()
                self.pool.next_check = 0.0

    def _map(self, supervisor: Any) -> None:
        values = supervisor.map(self.task, self.payloads)
        try:
            for tsk_id, value in enumerate(values, 1):
                self.results.append((tsk_id, "ok", value, 1))
        except shmqueue.TaskError as error:
            self.results.append((error.result.tsk_id, error.result.status, error.result.value, error.result.attempts))

    def _submit(self, supervisor: Any) -> None:
        for payload in self.payloads:
            supervisor.submit(self.task, payload)
        self._read(supervisor, supervisor.results())

    def _each(self, supervisor: Any) -> None:
        for payload in self.payloads:
            supervisor.submit(self.task, payload)
            self._read(supervisor, supervisor.results())

    def _two(self, supervisor: Any) -> None:
        half = len(self.payloads) // 2
        for payload in self.payloads[:half]:
            supervisor.submit(self.task, payload)
        self._run(supervisor, self.payloads[half:])
        self._read(supervisor, supervisor.results())

    def _drain(self, actor: Actor, supervisor: Any) -> None:
        """Let everybody come to rest, reap the dead, and read what is left: there must be nothing."""
        if self._known(self._state()):
            self._stop_here()
        self.calm = True
        for _ in range(4):  # also what cancelled tasks and dead workers leave
            self.block(actor, DRAINING)
            self.pool.collect()
            self.pool.check(self.now)
            self.engine.request(self.engine.push)
        self.block(actor, DRAINING)
        self.pool.collect()
        self.engine.request(self.engine.push)  # this also frees the blocks of payloads whose tasks are settled

    def _serve(self, options: Any, pipes: Any, actor: Actor) -> None:
        queue = self._seat(actor)
        actor.body = self._worker(queue, actor.worker, options, *(end.fileno() for end in pipes))
        actor.body.serve()

    def task(self, payload: bytes) -> bytes | str | None:
        """What the workers call."""
        actor, number = self.current, self.payloads.index(payload)
        self.step(actor, "call", self.every)
        self.started[number] += 1
        actor.effect = actor.moved = True
        if self.started[number] > self.scenario.retries + 1:
            self.fail(f"task {number} is started for the {self.started[number]}th time")
        if payload[:1] == b"s":
            actor.skew += 0.001
        if payload[:1] == b"h":
            self.block(actor, HANGING)
        return value_of(payload)

    # A step of a process, and who goes on after it.

    def step(self, actor: Actor, kind: str, shared: bool) -> None:
        """`actor` is about to do this; before it, it may be preempted, killed, or halted."""
        if actor is not self.current:
            raise Gone
        self.steps += 1
        actor.at = kind
        if actor.worker >= 0:
            self.kinds.add(kind)
        if self.logging:
            self.log.append(f"{actor.name:>12}: {kind}")
        if self.steps > MOST_STEPS:
            self.fail("no end")
        if self.steps < self.known_until or self.calm:
            return
        if self.repeating:
            self._do(actor, *self._choose(STEP, [(STAY, None)]))
        elif self.preemptions or self.mortality or self.halts or self.conts or self.returns:
            options = self._options(actor, shared or self.every)
            if len(options) > 1:
                self._do(actor, *self._choose(STEP, options))

    def passes(self) -> bool:
        """Whether the next step is one of the schedule before, with nothing to choose. It is taken then."""
        if not self.repeating or self.steps + 1 >= self.known_until or self.logging:
            return False
        self.steps += 1
        return True

    def _options(self, actor: Actor, shared: bool) -> list[tuple[int, Any]]:
        options: list[tuple[int, Any]] = [(STAY, None)]
        if actor.worker < 0:
            shared = self._add_in_halt(actor, options) or shared
        else:
            shared = self._add_for_worker(actor, options) or shared
        if shared and self.preemptions > 0:
            options += [(SWITCH, other) for other in self.actors if other is not actor and self._may_come(other)]
        return options

    def _may_come(self, actor: Actor) -> bool:
        """Return True if a process can preempt another: also the supervisor, because time has passed."""
        return self._ready(actor) or (self.ticks > 0 and actor.state == WAITING)

    def _add_for_worker(self, actor: Actor, options: list[tuple[int, Any]]) -> bool:
        """What may happen to a worker at this step. Return True if it runs in the midst of its halt."""
        if self.mortality > 0 and (actor.effect or self.kill_anywhere):
            options.append((KILL, actor))
            actor.effect = False
        if self.halts > 0 and actor.moved and self.supervisor.state == WAITING and self.wanted is None:
            options.append((HALT, actor))
            actor.moved = False
        if actor is not self.halting:
            return False
        if self.returns > 0 and actor.moved:
            options += [(RETURN, self.supervisor), (STOP_AGAIN, actor)]
            actor.moved = False
        return True

    def _add_in_halt(self, actor: Actor, options: list[tuple[int, Any]]) -> bool:
        """What may happen to workers at this step of the supervisor. Return True if a halted worker runs."""
        if self.mortality > 0 and actor.at == "see who lives":
            options += [(KILL, other) for other in self.actors if other is not actor and other.alive]
        if self.mortality > 0 and actor.at == "see its state" and self.seen.alive:
            options.append((KILL, self.seen))
        halted = self.halting
        if halted is None or not halted.alive:
            return False
        if halted.stopping or halted.stopped:
            if self.conts > 0:
                options += [(CONTINUE, halted), (CONTINUE_LATE, halted)]
            return bool(halted.stopping)
        return True

    def _do(self, actor: Actor, what: int, other: Any) -> None:
        """Have this happen at a step of `actor`."""
        if what == KILL:
            self._kill(other)
            if other is actor:
                self._switch()
        elif what == SWITCH:
            self.preemptions -= 1
            self._switch_to(other)
        elif what == HALT:
            self.halts -= 1
            self.wanted = actor.worker
            if not self.repeating:
                self.halts_at[actor.at] += 1
            self._note(f"{actor.name:>12}: is to be HALTED before: {actor.at}")
            self._switch_to(self.supervisor)
        elif what in (CONTINUE, CONTINUE_LATE):
            self._continue(other, what == CONTINUE_LATE)
        elif what == RETURN:
            self.returns -= 1
            self._switch_to(other)
        elif what == STOP_AGAIN:
            self._stop_again(actor)

    def _note(self, text: str) -> None:
        if self.logging:
            self.log.append(text)

    def _choose(self, place: str, options: list[tuple[int, Any]]) -> tuple[int, Any]:
        if self.repeating:
            return self._choose_again(place) or options[0]
        if self._known(self._state()):
            self._stop_here()
        self.path.append(Choice(self, place, options))
        self.since_choice.clear()
        return options[0]

    def _choose_again(self, place: str) -> tuple[int, Any] | None:
        """What was chosen here in the schedule before, or is to be chosen now; None if that did not matter."""
        choice = self.ahead[-1]
        if choice.until < self.steps:
            raise AssertionError(f"the schedule is not repeatable: at step {choice.step} there was no choice")
        if (choice.step, choice.place) != (self.steps, place):
            return None
        self.ahead.pop()
        if self.ahead:
            self.known_until = self.ahead[-1].until
        else:
            self.repeating = False
            self.known_until = 0
            self._know(choice.known)
        what, number = choice.options[choice.chosen]
        return what, number if number is None else self.actors[number]

    def knowledge(self) -> Any:
        """What is kept of a schedule for those that begin in the same way."""
        reads = {place: dict(readers) for place, readers in self._reads.items()}
        of_actors = [(actor.trace, actor.effect, actor.moved) for actor in self.actors]
        return dict(self._writes), reads, self.doubts, of_actors

    def _know(self, known: Any) -> None:
        writes, reads, self.doubts, of_actors = known
        self._writes = dict(writes)
        self._reads = {place: dict(readers) for place, readers in reads.items()}
        for actor, kept in zip(self.actors, of_actors, strict=True):
            actor.trace, actor.effect, actor.moved = kept

    def _ready(self, actor: Actor) -> bool:
        """Whether a process can go on."""
        if actor.stopped:
            return False
        state = actor.state
        if state == READY:
            return True
        if state == LOCKED:
            return actor.wants.holder is None
        if state == ASLEEP:
            return actor.rings > 0
        return state == WAITING and (self.bell or self._unburied() or self._paused())

    def _unburied(self) -> bool:
        return any(lane.process.child is not None and not lane.process.child.actor.alive for lane in self.pool.lanes)

    def _paused(self) -> bool:
        """Whether the supervisor waits to start a worker."""
        return not self.pool.closing and any(lane.process.child is None for lane in self.pool.lanes)

    def _next(self) -> None:
        """Somebody else goes on, since the current process cannot."""
        ready = [actor for actor in self.actors if self._ready(actor)]
        hangs = any(actor.state == HANGING for actor in self.actors)
        ticking = self.ticks > 0 if ready else hangs
        if ticking and not self.calm and self.supervisor.state == WAITING and self.supervisor not in ready:
            ready.append(self.supervisor)  # because time has passed
        if not ready and self.supervisor.state == DRAINING:
            ready = [self.supervisor]
        ready = ready or [actor for actor in self.actors if actor.state == TURNING and not actor.stopped]
        if not ready:
            states = ", ".join(
                f"{a.name} {'stopped' if a.stopped else STATES[a.state]}" for a in self.actors if a.alive
            )
            self.failure = self.failure or f"nobody goes on: {states}"
            self.over = True
            return
        options = [(SWITCH, actor) for actor in ready]
        _, chosen = options[0] if self.calm or len(ready) == 1 else self._choose(TURN, options)
        self._switch_to(chosen)

    def _switch(self) -> None:
        """Leave the current process for good, or until it is chosen again."""
        actor = self.current
        self._next()
        if self.over:
            self.main.switch()
        if actor is not self.current:
            raise Gone

    def _switch_to(self, actor: Actor) -> None:
        before, self.current = self.current, actor
        actor.state = READY
        actor.ran = True
        if before is not actor:
            actor.greenlet.switch()
            if getcurrent() is not self.main and self.current is not before:
                raise Gone

    def block(self, actor: Actor, state: int) -> None:
        """`actor` cannot go on before something happens."""
        actor.state = state
        self._switch()

    def _stop_here(self) -> None:
        self.over = True
        self.main.switch()
        raise Gone

    def fail(self, message: str) -> None:
        if self.current is not None:
            self.failure = self.failure or message
            self._stop_here()
        raise Gone

    def _kill(self, actor: Actor, free: bool = False) -> None:
        self.mortality -= not free
        if not self.repeating and not free:
            self.kills[actor.at] += 1
        self._note(f"{actor.name:>12}: KILLED before: {actor.at}")
        actor.state, actor.stopped, actor.stopping = DEAD, False, False
        for lock in self.locks.values():
            if lock.holder is actor:
                lock.let_go(actor)

    # Stops.

    def signal(self, actor: Actor, number: int) -> None:
        """The supervisor sends a signal to a worker. A halt begins with SIGSTOP and ends with SIGCONT."""
        if number == signal.SIGSTOP:
            self.halting = actor
        self.step(
            self.supervisor, {signal.SIGSTOP: "stop it", signal.SIGCONT: "continue it"}.get(number, "kill it"), True
        )
        self.supervisor.effect = True
        if actor.alive:
            self._deliver(actor, number)
        if number == signal.SIGCONT:
            self.halting, self.disturbed, self.doubts = None, False, ""

    def _deliver(self, actor: Actor, number: int) -> None:
        if number == signal.SIGSTOP:
            actor.stopping = actor.awaited = True
            actor.ran = True
        elif number == signal.SIGCONT:
            if actor.stopped:
                join(actor.clock, self.supervisor.clock)
                self.supervisor.clock[0] += 1
            actor.stopping = actor.stopped = False
        else:
            self._kill(actor, free=True)

    def state_and_switches(self, pid: int) -> tuple[str, int]:
        """What the system tells of a process; a signal to stop has arrived when this is asked."""
        if pid < FIRST_PID:
            return "", 0
        actor = self.seen = self.actor_of(pid)
        self.step(self.supervisor, "see its state", True)
        if actor.stopping:
            actor.stopping, actor.stopped = False, True
            self._count_switch(actor)
        if actor.stopped and actor.awaited:  # what it has done, the supervisor may see
            actor.awaited = False
            join(self.supervisor.clock, actor.clock)
            actor.clock[actor.number] += 1
        state = "Z" if not actor.alive else "T" if actor.stopped else "R"
        if state == "R" and self.disturbed:
            self.now += 2 * shmqueue.STILL_SECONDS
        self.supervisor.trace = hash((self.supervisor.trace, state, actor.switches))
        return state, actor.switches

    def _count_switch(self, actor: Actor) -> None:
        actor.switches += actor.ran
        actor.ran = False

    def stand_for(self, until: float) -> None:
        """The supervisor has waited, while a worker was stopped, until the clock would be there."""
        actor = self.halting
        self.step(self.supervisor, "wait", True)
        if actor.stopped and actor.alive:
            actor.skew += round(until - self.now, 9)

    def _continue(self, actor: Actor, late: bool) -> None:
        """Somebody else continues a worker that is being halted. late: it was stopped for more than QUIET_SECONDS."""
        self._note(f"{actor.name:>12}: CONTINUED by somebody else{', late' if late else ''}")
        self.conts -= 1
        self.returns = 1
        self.disturbed = True
        actor.stopping = actor.stopped = False
        actor.moved = True
        if late:
            actor.skew += 2 * shmqueue.QUIET_SECONDS
        self._forget_halt(actor.worker)
        if self._ready(actor):
            self._switch_to(actor)

    def _forget_halt(self, worker: int) -> None:
        """A worker was continued without the supervisor's doing. It may see what that stored to `end`, or may not; what
        the supervisor has read before, it had read: its looks come after it.
        """
        for first in self.firsts[worker]:
            self._writes.pop(first + 1, None)
        for place, readers in self._reads.items():
            if self.owner(place) == worker:
                readers.pop(0, None)

    def owner(self, place: int) -> int | None:
        """The worker whose part of the segment this place is in."""
        word = place if place < LOG else (place - LOG) // 8
        return self._owners.get(word)

    def _stop_again(self, actor: Actor) -> None:
        self._note(f"{actor.name:>12}: STOPPED by somebody else")
        self.returns -= 1
        actor.stopped = True
        self._count_switch(actor)
        self._switch_to(self.supervisor)

    # What a state is.

    def _state(self) -> int:
        """A number for this state."""
        return hash((
            bytes(self.memory), self.current.number, self.bell, self.now, self.ticks, tuple(self.started),
            tuple(lock.holder and lock.holder.number for lock in self.locks.values()),
            tuple(self.hands.items()), tuple(sorted(self.files)),
            self.halting and self.halting.number, self.wanted, self.returns, self.disturbed, self.doubts,
            tuple(
                (a.worker, a.state, a.trace, a.at, a.effect, a.moved, a.rings, a.skew, a.stopped, a.stopping, a.ran)
                if a.alive else (a.worker, a.state, a.hand())
                for a in self.actors
            ),
            self._known_stores(),
        ))  # fmt: skip

    def _known(self, key: int) -> bool:
        """Whether this state was explored with as much left to choose."""
        if self.logging:
            return False
        left = self.preemptions, self.mortality, self.halts, self.conts, self.slows
        before = self.visited.setdefault(key, [])
        if any(all(map(int.__le__, left, other)) for other in before):
            return True
        self.states += not before
        before.append(left)
        return False

    def _stop_if_known(self) -> None:
        """What follows from a known state is known. A state that comes again without a choice comes for ever."""
        if self.calm:
            return
        key = self._state()
        if key in self.since_choice:
            self.fail("no end: nothing changes any more")
        self.since_choice.add(key)
        if self._known(key):
            self._stop_here()

    def _known_stores(self) -> Any:
        """The vector clocks, as far as they matter: for each store and each reading that not everybody knows of, who
        does. Of the times of a process only the order counts, and who knows of each.
        """
        if not self.ordered:
            return None
        clocks = [actor.clock for actor in self.actors] + [lock.clock for lock in self.locks.values()]
        columns = list(itertools.islice(zip(*clocks), len(self.actors)))
        times = [sorted(set(column)) for column in columns]
        who = tuple(tuple(map(row.index, column)) for row, column in zip(times, columns))
        least = [row[0] for row in times]
        stores = [
            (place, number, bisect.bisect_left(times[number], at))
            for place, (number, at) in self._writes.items()
            if at > least[number]
        ]
        readings = [
            (place, number, bisect.bisect_left(times[number], at))
            for place, readers in self._reads.items()
            for number, at in readers.items()
            if at > least[number]
        ]
        return who, frozenset(stores), frozenset(readings)

    def begin_claim(self, actor: Actor, limit: int) -> int:
        """A worker has nothing in mind now but its own attributes."""
        actor.skew = 0.0
        if not self.repeating:
            body = actor.body
            actor.at = "begin a claim"
            actor.trace = hash((scalars(body), scalars(body._queue), tuple(body._files._left), limit))
            self._stop_if_known()
        return limit

    def begin_turn(self, engine: Any, job: Any) -> None:
        """The supervisor has nothing in mind now but attributes."""
        ledger, packer = engine._ledger, engine._packer
        self.supervisor.at = "begin a turn"
        self.supervisor.trace = hash((
            scalars(engine), scalars(engine._queue), scalars(ledger), of_job(job), scalars(engine._pool),
            tuple(
                (scalars(lane), scalars(lane.process, HIDDEN), lane.process.child is None)
                for lane in engine._pool.lanes
            ),
            tuple(tuple(tasks.tsk_ids) for tasks in (*ledger.again, None, *ledger.fresh) if tasks is not None),
            len(ledger.again),
            tuple((tasks.first, bytes(tasks.settled), tuple(tasks.tsk_ids)) for tasks in ledger._placed),
            tuple(
                (tasks.tsk_ids[0], tasks.last.attempts, tasks.last.status)
                for tasks in (*ledger.again, *ledger._placed) if tasks.last is not None
            ),
            tuple(self.results),
            scalars(packer), bytes(packer.heap._in_use),
        ))  # fmt: skip
        self._stop_if_known()

    # What processes do to each other.

    def pipe(self, duplex: bool) -> tuple[End, End]:
        """A pipe, both of whose ends have its number. The first one is the supervisor's bell."""
        self.pipes += 1
        return End(self.pipes), End(self.pipes)

    def spawn(self, worker: int, options: Any, pipes: Any) -> Actor:
        words, status = self._made.segment.words, self.status[worker]
        at = {name: words[status + getattr(shmqueue, name)] for name in ("ASLEEP", "LEAVE")}
        if any(at.values()):
            self.fail(f"worker {worker} is started with {at}")
        actor = self._actor(worker, list(self.supervisor.clock), functools.partial(self._serve, options, pipes))
        actor.wake = pipes[0].fileno()
        self.supervisor.clock[0] += 1
        return actor

    def actor_of(self, pid: int) -> Actor:
        return self.actors[pid - FIRST_PID]

    def has_ended(self, pid: int, wait: bool) -> bool:
        """Asked by the supervisor. wait: it does so before it reaps the process, which has ended."""
        actor = self.actor_of(pid)
        if wait:
            if actor.alive:
                self.fail(f"the supervisor waits until {actor.name} has ended")
            join(self.supervisor.clock, actor.clock)
            self.hands[actor.worker] = actor.hand()
            return True
        self.step(self.supervisor, "see who lives", True)
        self.supervisor.trace = hash((self.supervisor.trace, actor.alive))
        return not actor.alive

    def read_clock(self) -> float:
        """perf_counter() of the current process."""
        actor = self.current
        if actor is None:
            raise Gone
        if actor.worker < 0:
            return self.now
        self.step(actor, "read the clock", False)
        if self.slows > 0 and not self.calm and self._choose(CLOCK, [(STAY, None), (SLOW, None)])[0] == SLOW:
            self.slows -= 1
            actor.skew += 2 * shmqueue.QUIET_SECONDS
        actor.moved = True
        actor.trace = hash((actor.trace, self.now + actor.skew))
        return self.now + actor.skew

    def sleep(self, seconds: float) -> list[tuple[Any, int]]:
        """The current process waits to be woken. A worker that sleeps for a time only is woken by that."""
        actor = self.current
        self.step(actor, "sleep", True)
        actor.effect = actor.moved = True
        if actor.worker >= 0:
            if not actor.rings:
                if seconds:  # it has passed
                    actor.trace = hash((actor.trace, "slept"))
                    return []
                self.block(actor, ASLEEP)
            actor.rings = 0
            return [(None, 1)]
        if not self._ready_to_wake():
            self.block(actor, WAITING)
        if self.wanted is not None:
            self._halt_wanted()
            return []
        woken, self.bell = self.bell, False
        if self._unburied():
            return [(None, 1)]
        if not woken:
            self._let_time_pass(seconds)
        return []

    def give_way(self, seconds: float) -> None:
        """The current process waits for a word; others go on, unless all of them do."""
        actor = self.current
        self.step(actor, "give way", True)
        self.block(actor, TURNING)

    def _halt_wanted(self) -> None:
        lane, self.wanted = self.pool.lanes[self.wanted], None
        lane.halt()

    def _ready_to_wake(self) -> bool:
        return self.bell or self._unburied()

    def _let_time_pass(self, seconds: float) -> None:
        if not self.pool.closing and any(lane.process.child is None for lane in self.pool.lanes):
            self.now = max(self.now + seconds, self.pool._start_due)
        else:
            self.ticks = max(0, self.ticks - 1)
            self.now += max(seconds, 2 * shmqueue.CHECK_SECONDS)

    def write(self, pipe: int) -> None:
        """The current process rings the supervisor's bell, or the supervisor wakes a worker."""
        actor = self.current
        if actor is None:
            raise Gone
        if pipe == BELL:
            self.step(actor, "ring the bell", True)
            self.bell = actor.effect = actor.moved = True
        else:
            self.step(actor, "wake", True)
            woken = next(other for other in self.actors if other.wake == pipe)
            woken.rings = 1

    def touch(self, kind: str) -> dict[str, bytes]:
        """The files beside the segment, for what the current process does with one."""
        actor = self.current
        if actor is None:
            raise Gone
        self.step(actor, kind, True)
        actor.effect = actor.moved = True
        return self.files

    def file_exists(self, path: str) -> bool:
        if path == self._made.segment.path:
            return True
        exists = path in self.touch("look for a file")
        self.current.trace = hash((self.current.trace, exists))
        return exists

    def hint(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call this. What the current process reads there need not be new."""
        actor = self.current
        if actor is None:
            raise Gone
        actor.hint += 1
        try:
            return function(*arguments)
        finally:
            actor.hint -= 1

    # What must hold.

    def order(self, actor: Actor, place: int, write: bool) -> None:
        """Each access comes after the last store, and each store after all accesses, by way of the lock, a start, a
        stop or a death that was waited for: only then does every processor show what was stored. Who has the lock reads
        `end` in a repair only, to compare it: a halt of its owner stores nothing there that a repair would.
        """
        if self.repeating or not self.ordered or place in self.unordered:
            return
        if not write and (actor.hint or (place in self.ends and self._has_lock(actor))):
            return
        clock, number = actor.clock, actor.number
        last = self._writes.get(place)
        if last is not None and last[1] > clock[last[0]]:
            self._disorder(actor, f"after the store by {self.actors[last[0]].name}")
        if not write:
            if number or not self.disturbed:
                self._reads.setdefault(place, {})[number] = clock[number]
            return
        for reader, at in self._reads.pop(place, {}).items():
            if at > clock[reader]:
                self._disorder(actor, f"after the reading by {self.actors[reader].name}")
        if place in self.ends and number == 0 and self.disturbed:
            self._writes.pop(place, None)  # the halt will see that the worker has run, and count on nothing
        else:
            self._writes[place] = number, clock[number]

    def _has_lock(self, actor: Actor) -> bool:
        return any(lock.holder is actor for lock in self.locks.values())

    def _disorder(self, actor: Actor, what: str) -> None:
        """Fail; in a halt only if something comes of what was read."""
        text = f"{actor.name}: nothing orders {actor.at!r} {what}"
        if not self.disturbed or actor not in (self.halting, self.supervisor):
            self.fail(text)
        if actor is self.supervisor:
            self.doubts = self.doubts or text

    def nothing_doubtful(self) -> None:
        if self.doubts:
            self.fail(f"the supervisor uses what it may not: {self.doubts}")

    def note_store(self, actor: Actor, place: int, value: int) -> None:
        """A worker stored a word: its batch, or that it has left it."""
        firsts, status = self.firsts[actor.worker], self.status[actor.worker]
        if place in firsts:
            actor.lane = [value, value]
        elif place - 1 in firsts:
            actor.lane[1] = value
        elif place == status + shmqueue.PUBLISHED:
            actor.lane = [0, 0]

    def note_commit(self, actor: Actor, task: int) -> None:
        actor.settled.add(actor.lane[0] + task)

    def charged(self, worker: int, position: int) -> None:
        if self.hands.pop(worker, None) != position:
            self.fail(f"worker {worker} is charged with the task at {position}, which it did not have in hand")

    def _check(self, supervisor: Any) -> None:
        """At the end of a schedule."""
        scenario = self.scenario
        tsk_ids = sorted(result[0] for result in self.results)
        bad = any(status != "ok" for _, status, _, _ in self.results)
        all_of_them = scenario.then != "close" and not (scenario.how == "map" and bad)
        if tsk_ids != list(range(1, len(self.payloads) + 1)) and (all_of_them or len(set(tsk_ids)) < len(tsk_ids)):
            self.fail(f"tasks with an outcome: {tsk_ids}")
        for result in self.results:
            self._check_result(*result)
        crashed = self.bounds.kills - self.mortality
        if sum(status == "crashed" for _, status, _, _ in self.results) > crashed:
            self.fail(f"more tasks crashed than the {crashed} workers killed")
        ledger = supervisor._ledger
        if left := [tasks.tsk_ids for tasks in (*ledger.again, *ledger.fresh, *ledger._placed)]:
            self.fail(f"tasks are left: {left}")
        if self.files:
            self.fail(f"files are left: {sorted(self.files)}")
        if any(self.engine._packer.heap._in_use):
            self.fail("pages of the heap are left")
        if self.one_ring and not scenario.close:
            self._check_words(self.pool.lanes)

    def _check_result(self, tsk_id: int, status: str, value: Any, attempts: int) -> None:
        scenario, payload, started = self.scenario, self.payloads[tsk_id - 1], self.started[tsk_id - 1]
        letter = chr(payload[0])
        expected = value_of(payload) if status == "ok" and letter != "f" else None
        if value != expected or type(value) is not type(expected):
            self.fail(f"task {tsk_id} is {status} with {value!r} instead of {expected!r}")
        allowed = {"crashed", {"f": "failed", "h": "timeout"}.get(letter, "ok")}
        if scenario.then == "cancel" or (self.withdrawn and tsk_id == len(self.payloads)):
            allowed.add("cancelled")
        if self.withdrawn and tsk_id == len(self.payloads) and status != "cancelled":
            self.fail(f"task {tsk_id} was cancelled, and is {status}")
        if scenario.timeout:  # any task may take so long, as far as can be told
            allowed.add("timeout")
        if status not in allowed:
            self.fail(f"task {tsk_id} is {status}")
        least = 0 if status == "cancelled" else 1
        if scenario.how != "map" and (not least <= attempts <= scenario.retries + 1 or started > attempts):
            self.fail(f"task {tsk_id} has {attempts} attempts and was started {started} times")
        if status in ("ok", "failed") and not started:
            self.fail(f"task {tsk_id} is {status} and was never started")

    def _check_words(self, lanes: Any) -> None:
        """All have come to rest."""
        words = self._made.segment.words
        claimed, pushed, dirty = (words[word] for word in (shmqueue.CLAIMED, shmqueue.PUSHED, shmqueue.DIRTY))
        if claimed != pushed or dirty:
            self.fail(f"at rest: claimed {claimed}, pushed {pushed}, dirty {dirty}")
        for status, lane in zip(self.status, lanes):
            names = ("CLAIMS", "PUBLISHED", "HARVESTED", "ASLEEP")
            at = {name: words[status + getattr(shmqueue, name)] for name in names}
            rest = at["ASLEEP"] > 0 or lane.process.child is None
            if not (at["CLAIMS"] == at["PUBLISHED"] == lane.harvested and rest):
                self.fail(f"at rest: worker {lane.index} has {at}, and {lane.harvested} batches were read")


PLAIN = frozenset((int, bool, float, str, tuple, type(None)))
HIDDEN = ("_switches", "_stopped_before")  # of a Process: of no use between two halts


def scalars(thing: Any, hidden: Iterable[str] = ()) -> tuple[Any, ...]:
    """The attributes that are numbers, truths or texts, or lists or tuples of them."""
    values = [(type(value), value) for name, value in vars(thing).items() if name not in hidden]
    lists = [tuple(value) for kind, value in values if kind is list and PLAIN.issuperset(map(type, value))]
    return (*[value for kind, value in values if kind in PLAIN], *lists)


def of_job(job: Any) -> tuple[Any, ...]:
    ordered = isinstance(job, shmqueue.OrderedJob)
    order = (tuple(sorted(job._early)), tuple(map(tuple, job._due))) if ordered else ()
    return scalars(job), order, job.source and job.source.exhausted


def explore(scenario: Scenario, bounds: Bounds, **options: Any) -> Report:
    seconds = options.pop("seconds", float("inf"))
    return World(scenario, bounds, **options).explore(seconds)


SMALL_TO_LARGE = (
    Bounds(), Bounds(0, 1), Bounds(1, 0), Bounds(halts=1), Bounds(1, 1), Bounds(0, 2), Bounds(kills=1, halts=1),
    Bounds(2, 0), Bounds(halts=1, conts=1), Bounds(halts=2), Bounds(1, 1, 1),
)  # fmt: skip


def first_failure(scenarios: Sequence[Scenario], bounds: Sequence[Bounds] = SMALL_TO_LARGE, **options: Any) -> Any:
    """The first schedule that goes wrong, within small bounds first; None if there is none."""
    for bound, scenario in itertools.product(bounds, scenarios):
        failure = explore(scenario, bound, **options).failure
        if failure is not None:
            return failure
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.explorer", description=__doc__.splitlines()[0])
    for name, default in Bounds(2, 1)._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scenario", choices=list(SCENARIOS), action="append")
    parser.add_argument("--every", action="store_true", help="preempt at each access, not only where it can matter")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, for each scenario")
    options = parser.parse_args(arguments)
    bounds, failed = Bounds(*(getattr(options, name) for name in Bounds._fields)), False
    for name in options.scenario or SCENARIOS:
        began = time.monotonic()
        report = explore(SCENARIOS[name], bounds, every=options.every, seconds=options.seconds)
        took, failed = time.monotonic() - began, failed or report.failure is not None
        rest = "" if report.complete or report.failure else ", and more when time was up"
        print(f"{name}: {report.schedules:,} schedules{rest}, {report.states:,} states, {took:.1f} s", flush=True)
        if report.failure is not None:
            print(report.failure, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
