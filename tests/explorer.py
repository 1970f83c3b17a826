"""Runs the product's own code under every interleaving, and kills its workers at every step.

    python -m tests.explorer --preemptions 3 --kills 2 [--scenario NAME] [--every]

Supervisor.run and Worker.serve run here as coroutines of one process, over one real segment, each with a queue object
of its own, as in reality. Doubles stand between them and what they share: `queue.words` is an object that asks the
scheduler before each access, `queue._lock` a lock that the death of its holder releases, and the slots, the pipes, the
poll object and the clock are treated alike. Everything else is the product, which has no hook for this.

A schedule is what happened at each choice: go on, be preempted by another process, or be killed. A killed coroutine is
never resumed. The schedules are walked depth first, each run from its start. These bounds and reductions apply:

- No more than so many preemptions and kills; to be blocked, asleep or dead is not to be preempted.
- A state that was reached before, with as many preemptions and kills left, is not explored again. A state is the
  segment's bytes and for each process what it has read since it was last between two batches (or two turns).
- A process is preempted where it takes the lock, and where it touches what others touch without the lock. That is
  enough where all else is ordered by the lock (or by a death that was waited for), so each access is checked for that
  with vector clocks: two that are not ordered are a failure in themselves, since processors may reorder them, too.
  `every=True` preempts at each access instead.
- A process is killed at the first step after one that others can notice. A kill at a later one is the same kill.

Nobody ever wakes because time has passed, unless nothing else could wake him by design (the pause before a worker that
died early is started again): a worker or a supervisor that sleeps on while there is work is a lost wake-up.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import multiprocessing
import sys
import time
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

from greenlet import getcurrent, greenlet

import shmqueue

FIRST_PID = 1 << 22  # beyond what Linux gives, so that no signal to a process that is played here can reach a real one
MOST_ACTORS, MOST_STEPS, MOST_SHOWN = 16, 4000, 400
READY, LOCKED, ASLEEP, WAITING, DRAINING, LEFT, DEAD = range(7)
STATES = ("ready", "waits for the lock", "asleep", "waits for a bell", "done", "left", "dead")
STAY, KILL, SWITCH, DELIVER = range(4)
RING, LANE, OUTCOMES = (1 << 20, 1 << 21, 1 << 22)  # where the places of slots begin; words come before


class Scenario(NamedTuple):
    """What is put through the queue. tasks, a letter each: q returns None at once, s after a while, v a value.

    alone: a worker's fair share is that of one who is alone, so that few tasks make batches of several.
    then: what the supervisor does after the first result. ticks: how often it may wake because time has passed.
    close: it has the workers leave at the end."""

    name: str
    tasks: str
    num_slots: int = 4
    batch: int = 2
    retries: int = 0
    alone: bool = True
    then: str = ""
    ticks: int = 0
    close: bool = False
    workers: int = 2


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("nothing returned", "qqq"),
        Scenario("values", "vvv"),
        Scenario("mixed", "qvs", batch=3),
        Scenario("one at a time", "vqv", batch=1, alone=False),
        Scenario("small ring", "qvq", num_slots=2),
        Scenario("outcomes fill up", "vvvv", batch=1),
        Scenario("retries", "qvq", retries=1),
        Scenario("cancelled", "qvv", then="cancel"),
        Scenario("paused", "vqv", then="pause"),
        Scenario("left", "vq", close=True),
        Scenario("looked behind", "qvq", batch=3, ticks=3),
        Scenario("one task", "q"),
        Scenario("two tasks", "qq"),
        Scenario("two tasks retried", "qv", retries=1),
        Scenario("one worker", "qvq", num_slots=2, workers=1),
        Scenario("one worker looked behind", "qqv", batch=3, ticks=3, workers=1),
    )
}


class Bounds(NamedTuple):
    preemptions: int
    kills: int


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
    kinds: steps that workers took; kills: by the kind of step that the victim did not take any more."""

    schedules: int
    states: int
    kinds: set[str]
    kills: collections.Counter[str]
    failure: Failure | None
    complete: bool


class Gone(BaseException):
    """In a coroutine whose process was killed, or whose run is over: nothing that it does counts."""


class Actor:
    """A process. worker: its index, or -1 for the supervisor."""

    def __init__(self, number: int, worker: int, clock: list[int]) -> None:
        self.number, self.worker, self.clock = number, worker, clock
        self.name = "supervisor" if worker < 0 else f"worker {'AB'[worker]}{number}"
        self.state, self.stopped, self.hint = READY, False, 0
        self.trace, self.effect, self.at = 0, False, "start"
        self.rings, self.recall, self.time = 0, b"", 0.0
        self.lane = [0, 0]  # the positions that it stored as `first` and `end` of its lane,
        self.settled: set[int] = set()  # those of them whose outcome is certain,
        self.packed: tuple[int, int] = (0, 0)  # and what the last outcome slot speaks of
        self.body: Any = None
        self.greenlet: Any = None
        self.wants: Any = None  # the lock that it waits for

    @property
    def alive(self) -> bool:
        return self.state < LEFT

    def hand(self) -> int | None:
        """The position of the task in hand: the first of the lane without a certain outcome."""
        return next((position for position in range(*self.lane) if position not in self.settled), None)


# The doubles.


class Words:
    """The segment's words, as one process sees them."""

    def __init__(self, world: World, memory: memoryview) -> None:
        self.world, self.memory = world, memory
        self.actor: Any = None

    def __getitem__(self, place: int) -> int:
        actor, world = self.actor, self.world
        world.step(actor, world.reads[place], place in world.shared)
        world.order(actor, place, False)
        value = self.memory[place]
        actor.trace = hash((actor.trace, value))
        return value

    def __setitem__(self, place: int, value: int) -> None:
        actor, world = self.actor, self.world
        world.step(actor, world.stores[place], place in world.shared and self.memory[place] != value)
        world.order(actor, place, True)
        self.memory[place] = value
        actor.trace = hash((actor.trace, place))
        actor.effect = True
        if place in world.finishing:
            world.finished(actor, place, value)

    def release(self) -> None:
        raise AssertionError("a process of its own gave up its words")


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
        actor.effect = True
        return True

    def release(self, actor: Actor) -> None:
        self.world.step(actor, "unlock", False)
        if self.holder is not actor:
            self.world.fail(f"{actor.name} released a lock that it did not have")
        self.let_go(actor)
        actor.trace = hash((actor.trace, "unlock"))
        actor.effect = True

    def let_go(self, actor: Actor) -> None:
        self.holder, self.clock = None, list(actor.clock)
        actor.clock[actor.number] += 1


def join(clock: list[int], other: Sequence[int]) -> None:
    clock[:] = map(max, clock, other)


class Pipe:
    """One end of a pipe."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


class Poll:
    """select.poll() of a worker, which waits to be rung, or of the supervisor, which waits for a bell or a death."""

    def __init__(self, world: World) -> None:
        self.world = world

    def register(self, *_: Any) -> None:
        pass

    unregister = register

    def poll(self, milliseconds: float) -> list[tuple[Any, int]]:
        return self.world.sleep(milliseconds / 1000)


class Process:
    """A multiprocessing.Process whose target is played by a coroutine."""

    def __init__(self, world: World, arguments: Sequence[Any]) -> None:
        self.world, self.sentinel, self.exitcode = world, Pipe(), -9
        self.index = next(a for a in arguments if type(a) is int)
        self.options = next(a for a in arguments if isinstance(a, shmqueue.WorkerOptions))
        self.actor: Any = None
        self.pid = 0

    def start(self) -> None:
        self.actor = self.world.spawn(self.index, self.options)
        self.pid = FIRST_PID + self.actor.number

    def is_alive(self) -> bool:
        return self.world.lives(self.actor)

    def join(self) -> None:
        join(self.world.supervisor.clock, self.actor.clock)
        self.world.hands[self.index] = self.actor.hand()
        self.exitcode = 0 if self.actor.state == LEFT else -9

    def close(self) -> None:
        pass


def steered_crew(world: World) -> type[shmqueue.Crew]:
    class SteeredCrew(shmqueue.Crew):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            world.crew = self

        def _pipe(self) -> tuple[Any, Any]:
            return Pipe(), Pipe()

        def _check_descriptors(self) -> None:
            pass

        def _write(self, pipe: Any, data: bytes) -> None:
            for handle in self.handles:
                if handle.process is not None and pipe in (handle.wake, handle.recall):
                    world.send(handle.process.actor, data, pipe is handle.wake)

        def look(self, *arguments: Any) -> Any:
            with world.hints():
                return super().look(*arguments)

        def standing(self, now: float) -> Any:
            with world.hints():
                return list(super().standing(now))

        def is_slow(self, handle: Any, now: float) -> bool:
            with world.hints():
                return super().is_slow(handle, now)

    return SteeredCrew


def steered_handle(world: World) -> type[shmqueue.Handle]:
    class SteeredHandle(shmqueue.Handle):
        def identify(self) -> None:
            pass

        def end_sign(self) -> int:
            return -1

        def is_dead(self) -> bool:
            return not world.lives(self.process.actor)

        def kill(self, why: Any = None) -> None:
            world.fail(f"the supervisor kills worker {self.index}: {why}")

        def stop(self) -> bool:
            return world.stop(self.process.actor)

        def go_on(self) -> None:
            world.go_on(self.process.actor)

    return SteeredHandle


def steered_engine(world: World, base: type[shmqueue.Engine]) -> type[shmqueue.Engine]:
    class SteeredEngine(base):  # type: ignore[misc,valid-type]
        def turn(self, job: Any, report: Any) -> None:
            world.supervisor.trace = world.between_turns(self, job)
            super().turn(job, lambda: None)  # the screen, and what --watch reads, are no part of the protocol

        def _give_up(self, error: Exception) -> None:
            world.fail(f"the supervisor gave up: {shmqueue.describe(error)}")

    return SteeredEngine


def steered_worker(world: World, base: type[shmqueue.Worker]) -> type[shmqueue.Worker]:
    class SteeredWorker(base):  # type: ignore[misc,valid-type]
        def _claimable(self) -> int:
            world.between_batches(world.current)
            return super()._claimable()

        def _ring(self) -> None:
            world.ring_bell(world.current)

    return SteeredWorker


def steered_ledger(world: World, base: type[shmqueue.Ledger]) -> type[shmqueue.Ledger]:
    class SteeredLedger(base):  # type: ignore[misc,valid-type]
        def charge(self, worker: int, position: int, status: str, error: str, seconds: float) -> None:
            if status == "crashed":
                world.charged(worker, position)
            super().charge(worker, position, status, error, seconds)

    return SteeredLedger


class Seat:
    """A queue object, of one process at a time, with the doubles in it; made anew for each run from what it held."""

    def __init__(self, world: World, queue: Any, alone: bool) -> None:
        self.queue, self.words = queue, Words(world, queue.words)
        queue.words = self.words
        for name in world.lock_names:
            locks = getattr(queue, name)
            names = [f"{name} {i}" for i in range(len(locks))] if isinstance(locks, list) else []
            seats = [world.locks[name].seat(self.words) for name in names or [name]]
            setattr(queue, name, seats if names else seats[0])
        if alone:
            queue.num_workers = 1
        words = self.words

        def guard(owner: Any, name: str, kind: str, begin: int, write: bool, of: Any) -> None:
            """Have `owner.name` ask the scheduler; of: the places it touches, from its arguments."""
            original = getattr(owner, name)

            def guarded(*arguments: Any) -> Any:
                actor = words.actor
                world.step(actor, kind, False)
                for place in of(*arguments):
                    world.order(actor, begin + place, write)
                value = original(*arguments)
                actor.effect = actor.effect or write
                actor.trace = hash((actor.trace, kind) if write else (actor.trace, repr(value)))
                return value

            setattr(owner, name, guarded)

        guard(queue.ring, "write", "write the ring", RING, True, lambda i, tasks: range(i, i + len(tasks.data)))
        for worker, (lane, outcomes) in enumerate(zip(queue.lanes, queue.outcomes)):
            at, size = OUTCOMES + (worker << 10), outcomes.size
            guard(lane, "get", "read the lane", LANE + worker, False, lambda *_: (0,))
            guard(outcomes, "get", "read outcomes", at, False, lambda i, n: range(i, i + n))
            guard(outcomes, "pack", "write an outcome", at, True, lambda _, offset, *__, size=size: (offset // size,))
            self._note_outcomes(outcomes)
        self._guard_lane(world, queue)
        for name in ("sleepers", "backlog"):
            self._hint(world, name)
        self._kept = dict(vars(queue))

    def _note_outcomes(self, outcomes: Any) -> None:
        pack, words = outcomes.pack, self.words

        def noting(buffer: Any, offset: int, position: int, count: int, *rest: Any) -> None:
            words.actor.packed = (position, count)
            pack(buffer, offset, position, count, *rest)

        outcomes.pack = noting

    def _guard_lane(self, world: World, queue: Any) -> None:
        copy, words = queue._copy_to_lane, self.words

        def guarded(worker: int, places: Any) -> None:
            actor, places = words.actor, list(places)
            world.step(actor, "copy to the lane", False)
            for index, length in places:
                for place in range(index, index + length):
                    world.order(actor, RING + place, False)
            world.order(actor, LANE + worker, True)
            copy(worker, places)
            actor.effect = True

        queue._copy_to_lane = guarded

    def _hint(self, world: World, name: str) -> None:
        original = getattr(self.queue, name)

        def hinted() -> Any:
            with world.hints():
                return original()

        setattr(self.queue, name, hinted)

    def take(self, actor: Actor) -> Any:
        held = vars(self.queue)
        held.clear()
        for name, value in self._kept.items():
            held[name] = value.copy() if type(value) in (list, dict, set, collections.deque, bytearray) else value
        self.words.actor = actor
        return self.queue


class World:
    """One scenario, explored within bounds with these classes of the product (or mistaken ones made from them).

    locks: the attributes of a queue object that hold locks. ordered: whether accesses must be ordered by a lock.
    one_ring: whether the words at the end must be those of a queue whose positions all come from one ring."""

    def __init__(
        self,
        scenario: Scenario,
        bounds: Bounds,
        *,
        queue: type[shmqueue.SharedTaskQueue] = shmqueue.SharedTaskQueue,
        worker: type[shmqueue.Worker] = shmqueue.Worker,
        engine: type[shmqueue.Engine] = shmqueue.Engine,
        ledger: type[shmqueue.Ledger] = shmqueue.Ledger,
        locks: Sequence[str] = ("_lock",),
        every: bool = False,
        kill_anywhere: bool = False,
        ordered: bool = True,
        one_ring: bool = True,
    ) -> None:
        self.scenario, self.bounds, self.every = scenario, bounds, every or scenario.ticks > 0
        self.kill_anywhere, self.ordered, self.one_ring = kill_anywhere, ordered, one_ring
        self.lock_names, self.locks = locks, collections.defaultdict[str, Lock](lambda: Lock(self))
        self._classes = queue, steered_worker(self, worker), steered_engine(self, engine)
        self._ledger = ledger
        self.payloads = [b"%c%d" % (ord(letter), i) for i, letter in enumerate(scenario.tasks)]
        self.path: list[list[int]] = []  # of the schedule: what was chosen, and of how many
        self.visited: dict[int, list[tuple[int, int]]] = {}
        self.kinds: set[str] = set()
        self.kills: collections.Counter[str] = collections.Counter()
        self.schedules = self.states = 0
        self.logging = False
        self.failure = ""
        self.current: Any = None

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
                    while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
                        self.path.pop()
                    if not self.path or time.monotonic() > until:
                        break
                    self.path[-1][0] += 1
            finally:
                self._close()
        return Report(self.schedules, self.states, self.kinds, self.kills, failure, not self.path)

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
        scenario, queue = self.scenario, self._classes[0]
        self.main = getcurrent()
        batch = min(scenario.batch, scenario.num_slots)
        made = queue.create(scenario.num_slots, 64, scenario.workers, batch, multiprocessing.get_context("fork"))
        self._made, self._primitives, self.status = made, made.primitives, made.status
        self.memory = made.segment.window(0, made.segment.words.nbytes)
        self._image = bytes(self.memory)
        self._seats: dict[tuple[int, int], Seat] = {(-1, 0): Seat(self, made, False)}
        limits = {status + shmqueue.LIMIT for status in made.status}
        self.unordered = {shmqueue.SUPERVISOR_ASLEEP, shmqueue.CONTROL, *limits}
        self.shared = {*self.unordered, shmqueue.CLAIMED, *(status + shmqueue.ASLEEP for status in made.status)}
        own = (shmqueue.FIRST, shmqueue.END, shmqueue.PROGRESS, shmqueue.RECORDS)
        self.finishing = {status + word for status in made.status for word in own}
        header = ("PUSHED", "CLAIMED", "DIRTY", "SUPERVISOR_ASLEEP", "CONTROL")
        fields = ("FIRST", "END", "PROGRESS", "RECORDS", "PUBLISHED", "ASLEEP", "LIMIT", "HARVESTED", "PID", "STARTED")
        names = {getattr(shmqueue, name): name for name in header}
        names.update((status + getattr(shmqueue, name), name) for status in made.status for name in fields)
        words = range(len(made.segment.words))
        self.reads = [f"read {names.get(word, word)}" for word in words]
        self.stores = [f"store {names.get(word, word)}" for word in words]
        context = types.SimpleNamespace(Process=lambda target, args, name: Process(self, args), Pipe=None)
        clocks = {"monotonic": lambda: self.now, "perf_counter": lambda: self.current.time}
        doubles = {
            "Crew": steered_crew(self),
            "Engine": self._classes[2],
            "Handle": steered_handle(self),
            "Ledger": steered_ledger(self, self._ledger),
            "select": types.SimpleNamespace(poll=lambda: Poll(self), POLLIN=1),
            "time": types.SimpleNamespace(**clocks),
            "multiprocessing": types.SimpleNamespace(get_context=lambda method: context, util=mock.Mock()),
            "signals_held": contextlib.nullcontext,
            "_open": set(),
            "psutil": None,
            "sweep": list,
            "dispose": lambda *_: None,
            "exit_on_signals": lambda *_: None,
            "_annotations": functools.cache(shmqueue._annotations),
        }
        with mock.patch.multiple(shmqueue, **doubles):
            yield

    def _close(self) -> None:
        for seat in self._seats.values():
            vars(seat.queue).pop("stuck", None)
            seat.queue.close()
        self._made.segment.unlink()

    # One schedule.

    def run(self) -> None:
        """One schedule, from its start to its end, or to a state that was explored before."""
        self.memory[:] = self._image
        self.depth, self.steps, self.failure, self.log = 0, 0, "", []
        self.preemptions, self.mortality = self.bounds
        self.ticks, self.now, self.bell, self.calm, self.over = self.scenario.ticks, 1.0, False, False, False
        self.actors: list[Actor] = []
        self.started = [0] * len(self.payloads)
        self.hands: dict[int, int | None] = {}  # by worker: what the one who was buried last had in hand
        self.results: list[tuple[Any, ...]] = []
        self.crew: Any = None
        self._writes: dict[int, tuple[int, int]] = {}
        self._reads: dict[int, dict[int, int]] = {}
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
            queue = self._classes[0].attach(self._made.name, self._primitives)
            self._seats[which] = Seat(self, queue, self.scenario.alone)
        return self._seats[which].take(actor)

    def _supervise(self, actor: Actor) -> None:
        """The whole life of the supervisor: the run, and what is left after it."""
        scenario, queue = self.scenario, self._seat(actor)
        strategy = types.SimpleNamespace(create=lambda *_: queue)
        supervisor = shmqueue.Supervisor(
            [self.task], workers=scenario.workers, num_slots=scenario.num_slots, slot_size=64, batch=scenario.batch,
            retries=scenario.retries, start_method="fork", queue=strategy,
        )  # fmt: skip
        with contextlib.closing(supervisor.run(self.payloads)) as results:
            for result in results:
                self.results.append((result.tsk_id, result.status, result.value, result.attempts))
                if len(self.results) == 1 and scenario.then == "cancel":
                    supervisor.cancel()
                if len(self.results) == 1 and scenario.then == "pause":
                    supervisor.pause(True)
                    supervisor.pause(False)
        if scenario.close:
            supervisor.close()
            if any(other.alive for other in self.actors if other is not actor):
                self.fail("a worker stayed")
        else:
            self._drain(actor, supervisor)
        self._check(supervisor)
        self.over = True

    def _drain(self, actor: Actor, supervisor: Any) -> None:
        """Let everybody come to rest, bury the dead, and read what is left: there must be nothing."""
        if self._known():
            self._stop_here()
        self.calm = True
        self.block(actor, DRAINING)
        supervisor._engine.look(self.now)
        self.block(actor, DRAINING)
        supervisor._engine.harvest()

    def _serve(self, options: Any, actor: Actor) -> None:
        queue = self._seat(actor)
        actor.body = self._classes[1](queue, actor.worker, options, shmqueue.Pipes(-1, -1, -1))
        actor.body.serve()

    def task(self, payload: bytes) -> bytes | None:
        """What the workers call."""
        actor, number = self.current, self.payloads.index(payload)
        self.step(actor, "call", self.every)
        self.started[number] += 1
        actor.effect = True
        if self.started[number] > self.scenario.retries + 1:
            self.fail(f"task {number} is started for the {self.started[number]}th time")
        if payload[:1] == b"s":
            actor.time += 0.001
        return payload + b"!" if payload[:1] == b"v" else None

    # A step of a process, and who goes on after it.

    def step(self, actor: Actor, kind: str, shared: bool) -> None:
        """`actor` is about to do this; it may be preempted or killed before."""
        if actor is not self.current:
            raise Gone
        self.steps += 1
        actor.at = kind
        if actor.worker >= 0:
            self.kinds.add(actor.at)
        if self.logging:
            self.log.append(f"{actor.name:>12}: {actor.at}")
        if self.steps > MOST_STEPS:
            self.fail("no end")
        if not self.calm:
            mortal = self.mortality > 0 and actor.worker >= 0 and (actor.effect or self.kill_anywhere)
            if mortal or shared or self.every:
                self._decide(actor, mortal, shared or self.every)

    def _decide(self, actor: Actor, mortal: bool, shared: bool) -> None:
        options: list[tuple[int, Any]] = [(STAY, None)]
        if mortal:
            options.append((KILL, actor))
        if shared and self.preemptions > 0:
            options += [(SWITCH, other) for other in self.actors if other is not actor and self._ready(other)]
        if self.mortality > 0 and actor.at == "see who lives":
            options += [(KILL, other) for other in self.actors if other is not actor and other.alive]
        if actor.recall and actor.at in ("call", "lock"):
            options.append((DELIVER, actor))
        if len(options) == 1:
            return
        what, other = self._choose(options)
        actor.effect = actor.effect and not mortal
        if what == KILL:
            self._kill(other)
            if other is actor:
                self._switch()
        elif what == SWITCH:
            self.preemptions -= 1
            self._switch_to(other)
        elif what == DELIVER:
            self._deliver(actor)

    def _choose(self, options: list[Any]) -> Any:
        depth, self.depth = self.depth, self.depth + 1
        if depth == len(self.path):
            if self._known():
                self._stop_here()
            self.path.append([0, len(options)])
        chosen, count = self.path[depth]
        if count != len(options):
            raise AssertionError(f"the schedule is not repeatable: {count} options, now {len(options)}")
        return options[chosen]

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
        return any(handle.process is not None and not handle.process.actor.alive for handle in self.crew.handles)

    def _paused(self) -> bool:
        """Whether the supervisor waits to start a worker."""
        return not self.crew.closing and any(handle.process is None for handle in self.crew.handles)

    def _next(self) -> None:
        """Somebody else goes on, since the current process cannot."""
        ready = [actor for actor in self.actors if self._ready(actor)]
        ticking = not self.calm and self.ticks > 0 and self.supervisor.state == WAITING
        if ready and ticking and self.supervisor not in ready:
            ready.append(self.supervisor)  # because time has passed
        if not ready and self.supervisor.state == DRAINING:
            ready = [self.supervisor]
        if not ready:
            states = ", ".join(f"{a.name} {STATES[a.state]}" for a in self.actors if a.alive)
            self.failure = self.failure or f"nobody goes on: {states}"
            self.over = True
            return
        chosen = ready[0] if self.calm or len(ready) == 1 else self._choose(ready)
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

    def _kill(self, actor: Actor) -> None:
        self.mortality -= 1
        if self.depth == len(self.path):
            self.kills[actor.at] += 1
        if self.logging:
            self.log.append(f"{actor.name:>12}: KILLED before: {actor.at}")
        actor.state = DEAD
        for lock in self.locks.values():
            if lock.holder is actor:
                lock.let_go(actor)

    # What a state is.

    def _known(self) -> bool:
        """Whether this state was explored with as much left to choose."""
        key = hash((
            bytes(self.memory), self.current.number, self.bell, self.now, self.ticks, tuple(self.started),
            tuple(lock.holder and lock.holder.number for lock in self.locks.values()),
            tuple(self.hands.items()),
            tuple(
                (a.worker, a.state, a.trace, a.at, a.effect, a.rings, a.recall, a.stopped)
                if a.alive else (a.worker, a.state, a.hand())
                for a in self.actors
            ),
        ))  # fmt: skip
        if self.logging:
            return False
        left = self.preemptions, self.mortality
        before = self.visited.setdefault(key, [])
        if any(left[0] <= other[0] and left[1] <= other[1] for other in before):
            return True
        self.states += not before
        before.append(left)
        return False

    def between_batches(self, actor: Actor) -> None:
        """A worker has nothing in mind now but its own attributes."""
        actor.time = 0.0
        actor.trace = hash((scalars(actor.body), scalars(actor.body._queue)))

    def between_turns(self, engine: Any, job: Any) -> int:
        ledger = engine._ledger
        return hash((
            scalars(engine), scalars(engine._queue), scalars(ledger), scalars(job), scalars(engine._crew),
            tuple((scalars(handle), handle.process is None) for handle in engine._crew.handles),
            tuple(tuple(tasks.tsk_ids) for tasks in ledger.requeued),
            tuple((tasks.first, bytes(tasks.settled), tuple(tasks.tsk_ids)) for tasks in ledger._placed),
            tuple(sorted(ledger._attempts.items())), tuple(self.results),
        ))  # fmt: skip

    # What processes do to each other.

    def spawn(self, worker: int, options: Any) -> Actor:
        actor = self._actor(worker, list(self.supervisor.clock), functools.partial(self._serve, options))
        self.supervisor.clock[0] += 1
        return actor

    def lives(self, actor: Actor) -> bool:
        """Asked by the supervisor."""
        self.step(self.supervisor, "see who lives", True)
        self.supervisor.trace = hash((self.supervisor.trace, actor.alive))
        return actor.alive

    def sleep(self, seconds: float) -> list[tuple[Any, int]]:
        """The current process waits to be woken."""
        actor = self.current
        self.step(actor, "sleep", True)
        actor.effect = True
        if actor.worker >= 0:
            if not actor.rings:
                self.block(actor, ASLEEP)
            actor.rings = 0
            return []
        if not self._ready_to_wake():
            self.block(actor, WAITING)
        woken, self.bell = self.bell, False
        if self._unburied():
            return [(None, 1)]
        if not woken:
            self._let_time_pass(seconds)
        return []

    def _ready_to_wake(self) -> bool:
        return self.bell or self._unburied()

    def _let_time_pass(self, seconds: float) -> None:
        due = [handle.due for handle in self.crew.handles if handle.process is None]
        if due and not self.crew.closing:
            self.now = max(self.now + seconds, *due)
        else:
            self.ticks -= 1
            self.now += max(seconds, 2 * shmqueue.LOOK_SECONDS)

    def send(self, actor: Actor, data: bytes, wake: bool) -> None:
        """The supervisor writes to a worker's pipe."""
        self.step(self.supervisor, "wake" if wake else "order", True)
        if wake:
            actor.rings = 1
        else:
            actor.recall += data

    def _deliver(self, actor: Actor) -> None:
        """The worker's watching thread reads its orders."""
        orders, actor.recall = actor.recall, b""
        worker = actor.body
        worker._leaving = worker._leaving or shmqueue.LEAVE in orders
        worker._payloads.clear()
        actor.trace = hash((actor.trace, orders))

    def ring_bell(self, actor: Actor) -> None:
        self.step(actor, "ring the bell", True)
        self.bell = actor.effect = True

    def stop(self, actor: Actor) -> bool:
        """The supervisor stops a worker, wherever it is."""
        self.step(self.supervisor, "stop a worker", True)
        if not actor.alive:
            return False
        actor.stopped = True
        join(self.supervisor.clock, actor.clock)
        actor.clock[actor.number] += 1
        return True

    def go_on(self, actor: Actor) -> None:
        actor.stopped = False
        join(actor.clock, self.supervisor.clock)
        self.supervisor.clock[0] += 1

    @contextlib.contextmanager
    def hints(self) -> Iterator[None]:
        """What the current process reads here need not be new: it asks again, or was told in another way."""
        actor = self.current
        if actor is None:
            raise Gone
        actor.hint += 1
        try:
            yield
        finally:
            actor.hint -= 1

    # What must hold.

    def order(self, actor: Actor, place: int, write: bool) -> None:
        """Each access comes after the last store, and each store after all accesses, by way of the lock, a start or
        a death that was waited for: only then does every processor show what was stored."""
        if (actor.hint and not write) or place in self.unordered or not self.ordered:
            return
        clock, number = actor.clock, actor.number
        last = self._writes.get(place)
        if last is not None and last[1] > clock[last[0]]:
            self.fail(f"{actor.name}: nothing orders {actor.at!r} after the store by {self.actors[last[0]].name}")
        if not write:
            self._reads.setdefault(place, {})[number] = clock[number]
            return
        for reader, at in self._reads.pop(place, {}).items():
            if at > clock[reader]:
                self.fail(f"{actor.name}: nothing orders {actor.at!r} after the reading by {self.actors[reader].name}")
        self._writes[place] = number, clock[number]

    def finished(self, actor: Actor, place: int, value: int) -> None:
        """A worker stored a word of its own: its lane, or that tasks have their outcome."""
        if actor.worker < 0 or not 0 <= place - self.status[actor.worker] < shmqueue.HARVESTED:
            return
        word = place - self.status[actor.worker]
        if word in (shmqueue.FIRST, shmqueue.END):
            actor.lane[word == shmqueue.END] = value
        elif word == shmqueue.PROGRESS:
            actor.settled.update(range(actor.lane[0], min(value, actor.lane[1])))
        else:
            position, count = actor.packed
            actor.settled.update(range(position, position + count))

    def charged(self, worker: int, position: int) -> None:
        if self.hands.pop(worker, None) != position:
            self.fail(f"worker {worker} is charged with the task at {position}, which it did not have in hand")

    def _check(self, supervisor: Any) -> None:
        """At the end of a schedule."""
        scenario = self.scenario
        if (tsk_ids := sorted(result[0] for result in self.results)) != list(range(1, len(self.payloads) + 1)):
            self.fail(f"tasks with an outcome: {tsk_ids}")
        crashed = self.bounds.kills - self.mortality
        for tsk_id, status, value, attempts in self.results:
            payload = self.payloads[tsk_id - 1]
            expected = payload + b"!" if status == "ok" and payload[:1] == b"v" else None
            if value != expected:
                self.fail(f"task {tsk_id} is {status} with {value!r} instead of {expected!r}")
            allowed = ("ok", "crashed", "cancelled") if scenario.then == "cancel" else ("ok", "crashed")
            if status not in allowed:
                self.fail(f"task {tsk_id} is {status}")
            least = 0 if status == "cancelled" else 1
            if not least <= attempts <= scenario.retries + 1 or self.started[tsk_id - 1] > attempts:
                self.fail(f"task {tsk_id} has {attempts} attempts and was started {self.started[tsk_id - 1]} times")
            if status == "ok" and not self.started[tsk_id - 1]:
                self.fail(f"task {tsk_id} is ok and was never started")
        if sum(status == "crashed" for _, status, _, _ in self.results) > crashed:
            self.fail(f"more tasks crashed than the {crashed} workers killed")
        ledger = supervisor._ledger
        if left := [tasks.tsk_ids for tasks in (*ledger.requeued, *ledger._placed) if tasks.job is not None]:
            self.fail(f"tasks are left: {left}")
        if self.one_ring and not scenario.close:
            self._check_words(supervisor._crew.handles)

    def _check_words(self, handles: Any) -> None:
        """All have come to rest."""
        words = self._made.segment.words
        claimed, pushed, dirty = (words[word] for word in (shmqueue.CLAIMED, shmqueue.PUSHED, shmqueue.DIRTY))
        if claimed != pushed or dirty:
            self.fail(f"at rest: claimed {claimed}, pushed {pushed}, dirty {dirty}")
        for status, handle in zip(self.status, handles):
            names = ("FIRST", "PROGRESS", "END", "HARVESTED", "PUBLISHED", "RECORDS", "ASLEEP")
            at = {name: words[status + getattr(shmqueue, name)] for name in names}
            at["read"] = handle.harvested
            lane = at["FIRST"] <= at["PROGRESS"] == at["END"] <= claimed
            rest = at["ASLEEP"] > 0 or handle.process is None
            if not (lane and at["HARVESTED"] <= at["PUBLISHED"] == at["RECORDS"] == at["read"] and rest):
                self.fail(f"at rest: worker {handle.index} has {at}")


def scalars(thing: Any) -> tuple[Any, ...]:
    """The attributes that are numbers, truths or texts, or tuples of them."""
    return tuple(value for value in vars(thing).values() if type(value) in (int, bool, float, str, tuple, type(None)))


def explore(scenario: Scenario, bounds: Bounds, **options: Any) -> Report:
    seconds = options.pop("seconds", float("inf"))
    return World(scenario, bounds, **options).explore(seconds)


SMALL_TO_LARGE = tuple(Bounds(p, k) for p, k in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 1), (1, 2)))


def first_failure(scenarios: Sequence[Scenario], bounds: Sequence[Bounds] = SMALL_TO_LARGE, **options: Any) -> Any:
    """The first schedule that goes wrong, within small bounds first; None if there is none."""
    for bound, scenario in itertools.product(bounds, scenarios):
        failure = explore(scenario, bound, **options).failure
        if failure is not None:
            return failure
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explorer", description=__doc__.splitlines()[0])
    parser.add_argument("--preemptions", type=int, default=2)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--scenario", choices=list(SCENARIOS), action="append")
    parser.add_argument("--every", action="store_true", help="preempt at each access, not only where it can matter")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, for each scenario")
    options = parser.parse_args(arguments)
    bounds, failed = Bounds(options.preemptions, options.kills), False
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
