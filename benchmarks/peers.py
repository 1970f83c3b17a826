"""Measure other systems at the same work. Each function checks all values before it returns a figure.

Rates include the start and the end of the workers, as ours do, where nothing else is said.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.harness import CORES, busy_core
from benchmarks.jobs import (
    JOBS,
    NANOSECONDS,
    WrongError,
    check,
    median_microseconds,
    payloads,
    seconds_of_map,
    uneven,
    until_it_begins,
)

clock = time.perf_counter
PATIENCE = 20.0  # seconds without a message after which one counts as lost


def _rate(
    job: str, tasks: int, collect: Callable[[list[bytes]], list[Any]], size: int = 100, ordered: bool = True
) -> float:
    items = payloads(tasks, size)
    start = clock()
    values = collect(items)
    seconds = clock() - start
    check(job, items, values, ordered)
    return tasks / seconds


def pool_map(job: str, tasks: int, chunk: int | None = None, workers: int = CORES, size: int = 100) -> float:
    def collect(items: list[bytes]) -> list[Any]:
        with multiprocessing.Pool(workers) as pool:
            return pool.map(JOBS[job], items, chunk)

    return _rate(job, tasks, collect, size)


@functools.cache
def standing_pool() -> Any:
    """Return a Pool whose workers have all started. It ends with this process."""
    pool = multiprocessing.Pool(CORES)
    pool.map(JOBS["whoami"], [b""] * (4 * CORES), 1)
    return pool


def pool_steady(job: str, tasks: int, chunk: int, size: int = 100, neighbour: bool = False) -> Iterator[float]:
    """Yield tasks a second of one call of Pool.map after the other. All workers have started before the first."""
    pool = standing_pool()
    items = payloads(tasks, size)
    while True:
        with busy_core(neighbour):
            start = clock()
            values = pool.map(JOBS[job], items, chunk)
            seconds = clock() - start
        check(job, items, values)
        yield tasks / seconds


def pool_imap_unordered(job: str, tasks: int, chunk: int = 1, size: int = 100) -> float:
    def collect(items: list[bytes]) -> list[Any]:
        with multiprocessing.Pool(CORES) as pool:
            return list(pool.imap_unordered(JOBS[job], items, chunk))

    return _rate(job, tasks, collect, size, ordered=False)


def executor_map(job: str, tasks: int, chunk: int, size: int = 100) -> float:
    def collect(items: list[bytes]) -> list[Any]:
        with concurrent.futures.ProcessPoolExecutor(CORES) as executor:
            return list(executor.map(JOBS[job], items, chunksize=chunk))

    return _rate(job, tasks, collect, size)


def joblib_map(job: str, tasks: int, batch: int | str, size: int = 100) -> float:
    import joblib

    def collect(items: list[bytes]) -> list[Any]:
        function = joblib.delayed(JOBS[job])
        return list(joblib.Parallel(n_jobs=CORES, batch_size=batch)(function(item) for item in items))

    return _rate(job, tasks, collect, size)


def loky_map(job: str, tasks: int, chunk: int, size: int = 100) -> float:
    import loky

    def collect(items: list[bytes]) -> list[Any]:
        with loky.ProcessPoolExecutor(CORES) as executor:
            return list(executor.map(JOBS[job], items, chunksize=chunk))

    return _rate(job, tasks, collect, size)


def mpire_map(job: str, tasks: int, chunk: int | None, size: int = 100) -> float:
    import mpire

    def collect(items: list[bytes]) -> list[Any]:
        with mpire.WorkerPool(n_jobs=CORES) as pool:
            return list(pool.map_unordered(JOBS[job], items, chunk_size=chunk))

    return _rate(job, tasks, collect, size, ordered=False)


def pebble_map(job: str, tasks: int, chunk: int, size: int = 100) -> float:
    import pebble

    def collect(items: list[bytes]) -> list[Any]:
        with pebble.ProcessPool(max_workers=CORES) as pool:
            return list(pool.map(JOBS[job], items, chunksize=chunk).result())

    return _rate(job, tasks, collect, size)


def _serve_many(inbox: Any, outbox: Any, job: str, most: int) -> None:
    """Consume messages of faster-fifo until a None. Put any further None back: it is for another consumer."""
    function = JOBS[job]
    ended = 0
    while not ended:
        messages = inbox.get_many(timeout=PATIENCE, max_messages_to_get=most)
        ended = messages.count(None)
        values = [function(message) for message in messages if message is not None]
        if values:
            outbox.put_many(values, timeout=PATIENCE)
    for _ in range(ended - 1):
        inbox.put(None)


def fifo_many(job: str, tasks: int, many: int, size: int = 100) -> float:
    """Send tasks through one faster-fifo queue and values back through another, `many` messages a call."""
    import faster_fifo

    def collect(items: list[bytes]) -> list[Any]:
        room = 1 << 27
        inbox = faster_fifo.Queue(room)
        outbox = faster_fifo.Queue(room)
        consumers = _start(CORES, _serve_many, (inbox, outbox, job, many))
        values: list[Any] = []
        for at in range(0, len(items), many):
            inbox.put_many(items[at : at + many], timeout=PATIENCE)
            try:
                values += outbox.get_many(block=False, max_messages_to_get=many)
            except queue.Empty:
                continue
        inbox.put_many([None] * CORES)
        while len(values) < len(items):
            values += _patient(outbox.get_many, timeout=PATIENCE, max_messages_to_get=many)
        _join(consumers)
        return values

    return _rate(job, tasks, collect, size, ordered=False)


def _serve_queue(inbox: Any, outbox: Any, job: str) -> None:
    function = JOBS[job]
    for message in iter(inbox.get, None):
        outbox.put(function(message))


def queue_one(job: str, tasks: int, size: int = 100) -> float:
    """Do the same with multiprocessing.Queue, which sends one message a call."""

    def collect(items: list[bytes]) -> list[Any]:
        inbox: Any = multiprocessing.Queue()
        outbox: Any = multiprocessing.Queue()
        consumers = _start(CORES, _serve_queue, (inbox, outbox, job))
        for item in [*items, *[None] * CORES]:
            inbox.put(item)
        values = [_patient(outbox.get, timeout=PATIENCE) for _ in items]
        _join(consumers)
        return values

    return _rate(job, tasks, collect, size, ordered=False)


def _patient(get: Callable[..., Any], **arguments: Any) -> Any:
    try:
        return get(**arguments)
    except queue.Empty:
        raise WrongError(f"no message for {PATIENCE:g} s: some are lost") from None


def _start(count: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> list[Any]:
    processes = [multiprocessing.Process(target=function, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def _join(processes: list[Any]) -> None:
    for process in processes:
        process.join()


# Uneven tasks, and one task to idle workers.


def pool_uneven(method: str, chunk: int | None) -> float:
    """Return the makespan of the uneven tasks over the ideal one. All workers have started before."""
    items = uneven()
    options = {"chunksize": chunk} if chunk else {}
    with multiprocessing.Pool(CORES) as pool:
        pool.map(JOBS["whoami"], [b""] * (4 * CORES), 1)
        start = clock()
        values = list(getattr(pool, method)(JOBS["spin"], items, **options))
        seconds = clock() - start
    check("spin", items, values, ordered=method != "imap_unordered")
    return seconds / (sum(map(int, items)) / 1e6 / CORES)


def pool_wake(times: int) -> Iterator[float]:
    """Yield the median microseconds from Pool.apply to the function's first line in an idle worker."""
    pool = standing_pool()
    while True:
        yield until_it_begins(lambda: pool.apply(JOBS["monotonic"], (b"",)), times)


def pool_apply(times: int, pause: float) -> Iterator[float]:
    """Yield the median microseconds of Pool.apply for one task."""
    pool = standing_pool()
    while True:
        yield median_microseconds(lambda: pool.apply(JOBS["echo"], (b"there",)), times, pause)


def executor_future(times: int, pause: float) -> Iterator[float]:
    """Yield the median microseconds of ProcessPoolExecutor.submit(...).result()."""
    with concurrent.futures.ProcessPoolExecutor(CORES) as executor:
        list(executor.map(JOBS["whoami"], [b""] * (4 * CORES)))
        while True:
            yield median_microseconds(lambda: executor.submit(JOBS["echo"], b"there").result(), times, pause)


def executor_calls(calls: int, chunk: int) -> Iterator[float]:
    """Yield the seconds of ProcessPoolExecutor.map for so many trivial calls."""
    with concurrent.futures.ProcessPoolExecutor(CORES) as executor:
        yield from seconds_of_map(executor, calls, chunk)


def pool_open(tasks: int) -> float:
    """Return the seconds to open and close a Pool while a list of so many payloads is in memory."""
    payloads(tasks, 93)
    start = clock()
    with multiprocessing.Pool(CORES):
        pass
    return clock() - start


def pool_small(tasks: int) -> float:
    """Return the seconds of Pool.map for a few no-ops, the start and the end of the workers included."""
    items = payloads(tasks)
    start = clock()
    with multiprocessing.Pool(CORES) as pool:
        values = pool.map(JOBS["noop"], items)
    seconds = clock() - start
    check("noop", items, values)
    return seconds


def pipe_wake(times: int) -> Iterator[float]:
    """Yield the median microseconds from a write to the return of a read in another process."""
    there = os.pipe()
    back = os.pipe()
    child = os.fork()
    if child == 0:
        while os.read(there[0], 1):
            os.write(back[1], NANOSECONDS.pack(time.monotonic_ns()))
        os._exit(0)

    def once() -> bytes:
        os.write(there[1], b"!")
        return os.read(back[0], 8)

    try:
        while True:
            yield until_it_begins(once, times)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# faster-fifo's own benchmark: producers send messages of five numbers to consumers. Nothing is sent back.


def _produce(inbox: Any, messages: int) -> None:
    for number in range(messages):
        while True:
            try:
                inbox.put((number,) * 5, timeout=0.01)
                break
            except queue.Full:
                continue


def _consume(inbox: Any, counts: Any, index: int, many: int, ended: Any) -> None:
    received: collections.Counter[int] = collections.Counter()
    while True:
        try:
            if many > 1:
                messages = inbox.get_many(timeout=0.001, max_messages_to_get=many)
            else:
                messages = [inbox.get(timeout=0.001)]
            received.update(message[0] for message in messages)
        except queue.Empty:
            if ended.value:
                break
    counts[2 * index : 2 * index + 2] = [sum(received.values()), sum(n * c for n, c in received.items())]


def messages(kind: str, producers: int, consumers: int, messages: int, many: int) -> float:
    """Return the seconds that a scenario of faster-fifo's benchmark takes. The sum of what is received is checked."""
    if kind == "faster-fifo":
        import faster_fifo

        inbox: Any = faster_fifo.Queue(100_000)
    else:
        inbox = multiprocessing.Queue(30_000)
    counts = multiprocessing.RawArray("Q", 2 * consumers)
    ended = multiprocessing.RawValue("b", 0)
    start = clock()
    sending = _start(producers, _produce, (inbox, messages))
    receiving = [
        multiprocessing.Process(target=_consume, args=(inbox, counts, index, many, ended)) for index in range(consumers)
    ]
    for process in receiving:
        process.start()
    _join(sending)
    ended.value = 1
    _join(receiving)
    seconds = clock() - start
    got = sum(itertools.islice(counts, 0, None, 2))
    total = sum(itertools.islice(counts, 1, None, 2))
    if (got, total) != (producers * messages, producers * (messages * (messages - 1) // 2)):
        raise WrongError(f"{producers * messages:,} messages sent, {got:,} received, or not the same ones")
    return seconds
