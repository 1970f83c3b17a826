"""The library as a user calls it: functions, payloads, values, outcomes, and how a Supervisor is told what to do."""

import array
import collections
import concurrent.futures
import contextlib
import ctypes
import errno
import functools
import gc
import io
import itertools
import math
import multiprocessing
import os
import pathlib
import pickle
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import weakref
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmqueue
from shmqueue import Supervisor, TaskError, parallel_map
from tests import jobs
from tests.helpers import HANG, METHODS, ROOT, is_running, segments_of, state_of, wait_until
from tests.jobs import Point, Record

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),  # a runner's own threads
]
SIZES = (0, 1, 118, 119, 120, 121, 255, 256, 257, 1 << 20, 10_000_000)
FIELDS = ("tsk_id", "function", "payload", "status", "value", "error", "attempts", "worker", "seconds",
          "traceback", "started")  # fmt: skip


def start(functions, **options):
    """A Supervisor of two forked workers, unless the options say otherwise."""
    return Supervisor(functions, **{"workers": 2, "start_method": "fork", **options})


def mapped(function, payloads, **options):
    return parallel_map(function, payloads, **{"workers": 2, "start_method": "fork", **options})


def outcomes(functions, tasks, **options):
    """All results, by tsk_id."""
    with start(functions, **options) as supervisor:
        return sorted(supervisor.run(tasks))


def only(function, payload=b"", **options):
    """The result of one task."""
    (result,) = outcomes([function], [payload], **options)
    return result


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


# What goes in and what comes out.


def test_parallel_map_returns_values_in_input_order():
    payloads = [b"%d" % i for i in range(5000)]
    assert mapped(jobs.echo, payloads) == payloads


def test_map_yields_values_in_input_order():
    with start([jobs.quiet, jobs.echo], workers=3) as supervisor:
        payloads = [b"%d" % i for i in range(5000)]
        assert list(supervisor.map(jobs.echo, iter(payloads))) == payloads
        assert list(supervisor.map("quiet", payloads[:7])) == [None] * 7


@pytest.mark.parametrize("tasks", [[], (), iter([]), {}])
def test_no_tasks_is_no_results(tasks):
    with start([jobs.echo]) as supervisor:
        assert list(supervisor.run(tasks)) == []
        assert list(supervisor.results()) == []
    assert mapped(jobs.echo, tasks) == []


def test_a_result_says_all_about_its_task():
    first, second = outcomes([jobs.echo, jobs.raise_error], [(jobs.echo, b"a"), ("raise_error", b"b")], workers=1)
    assert first._fields == FIELDS
    assert first[:8] == (1, "echo", b"a", "ok", b"a", None, 1, 0)
    assert second[:8] == (2, "raise_error", b"b", "failed", None, "KeyError: 'gone'", 1, 0)
    assert all(result.seconds >= 0 for result in (first, second))


@pytest.mark.parametrize("lengths", [[2, 1, 3], [2, 3, 1], [3, 0, 6], [4] * 150])
def test_values_of_several_lengths_are_cut_where_they_end(lengths):
    """Also where all of them together are as long as if each were as long as the first."""
    values = [b"%03d..." % number for number in range(1, 1 + len(lengths))]
    values = [value[:length] for value, length in zip(values, lengths)]
    ends = array.array("Q", itertools.accumulate(lengths, initial=1))[1:]
    assert shmqueue.decode_log(shmqueue.BYTES, None, b"".join(values), 1, ends) == [value or None for value in values]


def test_the_seconds_of_a_slow_task_are_not_shared_with_its_batch():
    seconds = [0.0, 0.0, 0.03, 0.0, 0.0, 0.0, 0.0, 0.0]  # not so long that the rest is taken back meanwhile

    def has_its_own():
        results = outcomes([jobs.rest], list(map(str, seconds)), workers=1, batch=8)
        assert results[2].seconds >= 0.03
        return results[1].seconds + results[3].seconds < results[2].seconds

    assert wait_until(has_its_own), "not even once, and on a busy machine any task may be slow"


def test_seconds_are_those_of_the_function():
    assert only(jobs.note_slowly, "/dev/null|x").seconds >= 0.002


POINT = Point(3, -4)


@pytest.mark.parametrize(
    ("function", "payload", "value"),
    [
        (jobs.kind, b"a", "bytes"),
        (jobs.kind, "a", "str"),
        (jobs.kind, POINT, "bytes"),
        (jobs.kind_of_bytes, b"a", "bytes"),
        (jobs.kind_of_bytes, "a", "bytes"),
        (jobs.kind_of_bytes, POINT, "bytes"),
        (jobs.kind_of_text, b"a", "str"),
        (jobs.kind_of_text, "a", "str"),
        (jobs.kind_of_text, POINT, "str"),
        (jobs.kind_of_text_by_name, b"a", "str"),
        (jobs.kind_of_point, POINT, "Point 3 -4"),
        (jobs.kind_of_point, bytes(POINT), "Point 3 -4"),
        (jobs.kind_of_point_or_none, POINT, "Point"),
        (jobs.echo, "ä☃".encode(), "ä☃".encode()),
        (jobs.echo, "ä☃", "ä☃".encode()),
        (jobs.echo_text, "ä☃\0\r\n", "ä☃\0\r\n"),
        (jobs.echo_text, b"\xff\xfe\x80", "\udcff\udcfe\udc80"),
        (jobs.echo_text, "\udcff", "\udcff"),
        (jobs.echo, "\udcff", b"\xff"),
        (jobs.quiet, b"a", None),
        (jobs.Callable(), "a", "A"),
        (jobs.Callable().method, "a", "A"),
        (functools.partial(jobs.echo), b"a", b"a"),
        (functools.partial(jobs.echo_text), "a", "a"),
        (bytes.upper, b"abc", b"ABC"),
    ],
)
def test_a_function_gets_what_its_annotation_says_and_its_value_keeps_its_type(function, payload, value):
    result = only(function, payload, workers=1)
    assert (result.status, result.value, type(result.value)) == ("ok", value, type(value)), result.error
    assert result.payload is payload


def test_structures_travel_in_slots_and_out_of_line():
    points = [Point(i, -i) for i in range(300)]
    values = mapped(jobs.echo_point, points)
    assert {type(value) for value in values} == {Point}
    assert [(value.x, value.y) for value in values] == [(-i, i) for i in range(300)]
    records = mapped(jobs.echo_record, [Record(i, b"t" * i) for i in range(300)])
    assert {type(value) for value in records} == {Record}
    assert [(value.number, value.text) for value in records] == [(i + 1, b"t" * i) for i in range(300)]
    both = outcomes([jobs.echo_point, jobs.echo_record], [("echo_record", Record(1, b"")), ("echo_point", Point(1, 2))])
    assert [type(result.value) for result in both] == [Record, Point]


@pytest.mark.promise("L6")
@pytest.mark.parametrize(
    ("function", "payload", "words"),
    [
        (jobs.kind_of_point, b"short", "ValueError"),
        (jobs.undeclared_point, b"", "Point"),
        (jobs.return_path, b"", "PosixPath"),
        (jobs.return_path, b"", "codec="),
        (jobs.echo, pathlib.Path("a"), "PosixPath"),
        (jobs.echo, [{1: (object(),)}], "object is not plain data"),
    ],
)
def test_what_cannot_travel_is_a_failed_task_that_says_so(function, payload, words):
    results = outcomes([jobs.quiet, function], [(jobs.quiet, b""), (function, payload), (jobs.quiet, b"")], workers=1)
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    assert words in results[1].error
    assert results[1].payload is payload


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (b"no function", "(function, payload)"),
        ((), "(function, payload)"),
        ((jobs.echo, b"a", b"b"), "(function, payload)"),
        ((jobs.pid, b"a"), "nearest"),
        (("ecko", b"a"), "nearest: echo"),
        ((5, b"a"), "int"),
        (([], b"a"), "list"),
        (None, "(function, payload)"),
    ],
)
def test_an_item_that_is_no_task_fails_alone(item, words):
    ok = (jobs.echo, b"ok")
    if item == (jobs.pid, b"a"):
        words = "pid"
    results = outcomes([jobs.echo, jobs.quiet], [ok, item, ok])
    assert [result.status for result in results] == ["ok", "failed", "ok"]
    assert words in results[1].error
    assert results[1].attempts == 0


def test_with_one_function_an_item_is_a_payload_or_a_pair():
    items = [b"a", (jobs.echo, b"b"), "c", ("echo", "d"), (jobs.echo, (jobs.echo.__name__, 5)), (), (1, 2, 3)]
    results = outcomes([jobs.echo], items)
    assert [result.value for result in results] == [b"a", b"b", b"c", ("echo", "d"), ("echo", 5), (), (1, 2, 3)]
    assert only(jobs.kind, (len, b"abc"), codec=pickle).value == "tuple", "of another function"


@pytest.mark.parametrize("size", SIZES)
def test_payloads_and_values_of_any_size(size):
    payload = jobs.pattern(size)
    results = outcomes([jobs.digest, jobs.echo, jobs.blow_up], [
        (jobs.digest, payload), (jobs.echo, payload), (jobs.blow_up, str(size)), (jobs.echo, b"next"),
    ])  # fmt: skip
    assert [result.status for result in results] == ["ok"] * 4
    digest, *values = [result.value for result in results]
    assert digest == jobs.digest(payload)
    assert values == [payload, payload, b"next"]


@pytest.mark.promise("L1")
@pytest.mark.parametrize("slot_size", [64, 72, 128, 136, 256, 264, 272, 1024, 65536])
def test_sizes_at_the_edges_of_every_slot(slot_size):
    sizes = [slot_size + extra for extra in (-30, -21, -20, -19, -18, -11, -10, -9, -8, -7, 0, 1)]
    payloads = [jobs.pattern(size) for size in sizes]
    with start([jobs.echo, jobs.echo_text], slot_size=slot_size, num_slots=4) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads)) == payloads
        texts = ["☃" * (size // 3) for size in sizes]
        assert list(supervisor.map(jobs.echo_text, texts)) == texts


@pytest.mark.promise("L1")
def test_more_bytes_out_of_line_than_may_wait_at_once():
    payloads = [bytes([i]) * (1 << 20) for i in range(80)]
    assert mapped(jobs.echo, payloads) == payloads


@pytest.mark.promise("G1")
@pytest.mark.parametrize("heap", [0, 4096, 16384, 1 << 16])
def test_a_heap_smaller_than_a_block_of_payloads(monkeypatch, heap):
    """As where shared memory is small."""
    monkeypatch.setattr(shmqueue, "HEAP_BYTES", heap)
    payloads = (
        [b"%d" % number * 40 for number in range(300)] + [b"few"] * 30 + [b"%d" % number * 99 for number in range(9)]
    )
    with start([jobs.echo]) as supervisor:
        assert len(supervisor._queue.heap) == heap
        assert list(supervisor.map(jobs.echo, payloads)) == payloads


@pytest.mark.promise("G2a")
@pytest.mark.parametrize("slot_size", [64, 128, 272])
def test_payloads_in_slots_and_out_of_line_arrive_as_they_are(monkeypatch, slot_size):
    """Blocks of the heap, files and what a slot holds, in batches that have some of each."""
    monkeypatch.setattr(shmqueue, "HEAP_BYTES", 1 << 18)
    monkeypatch.setattr(shmqueue, "BLOCK_BYTES", 1 << 14)
    random = Random(slot_size)  # noqa: S311
    sizes = [0, 1, 50, slot_size - 10, slot_size - 9, slot_size - 8, 1000] * 9 + [5000, 200_000]
    payloads = [random.randbytes(random.choice(sizes)) for _ in range(2000)]
    payloads += [random.randbytes(200) for _ in range(2000)] + [b"in its slot"] * 2000
    with start([jobs.echo, jobs.digest], slot_size=slot_size) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads)) == payloads
        tasks = [(random.choice([jobs.echo, jobs.digest]), payload) for payload in payloads]
        for result in supervisor.run(tasks):
            assert result.value == getattr(jobs, result.function)(result.payload)


def files_beside(label):
    """The files beside the segments of this process, of payloads (p) or of values (v)."""
    return [name for name in segments_of([os.getpid()]) if f".{label}" in name]


def test_files_of_payloads_and_values_go_with_their_tasks(monkeypatch):
    monkeypatch.setattr(shmqueue, "HEAP_BYTES", 1 << 16)
    monkeypatch.setattr(shmqueue, "LOG_BYTES", 1 << 16)
    monkeypatch.setattr(shmqueue, "FILE_BYTES", 1 << 20)
    large = [jobs.pattern(size) for size in range(200_000, 200_004)]
    with start([jobs.echo]) as supervisor:
        for _ in range(3):  # more in all than may wait at once
            assert list(supervisor.map(jobs.echo, large)) == large
            assert files_beside("p") == files_beside("v") == []
            assert supervisor._engine._packer._file_bytes == 0


def count_value_files(payload: bytes) -> bytes:
    """How many values of this run wait in files, and much behind it."""
    count = sum(name.startswith(os.environ["SHMQUEUE_RUN"] + ".v") for name in os.listdir("/dev/shm"))
    return b"%d " % count + b"x" * 50_000


def segment_bytes(payload):
    return os.stat(os.path.join(shmqueue.shared_directory(), os.environ["SHMQUEUE_RUN"])).st_blocks * 512


def test_a_short_list_takes_less_shared_memory():
    (few,) = shmqueue.parallel_map(segment_bytes, [b""], workers=1)
    (unknown,) = shmqueue.parallel_map(segment_bytes, (payload for payload in [b""]), workers=1)
    (named,) = shmqueue.parallel_map(segment_bytes, [b""], workers=1, num_slots=16_384)
    assert 4 * few < unknown == named


def test_few_values_wait_in_files(monkeypatch):
    monkeypatch.setattr(shmqueue, "LOG_BYTES", 1 << 15)
    monkeypatch.setattr(shmqueue, "SPILL_BYTES", 120_000)
    with start([count_value_files], workers=1, batch=20) as supervisor:
        counts = [int(value.split()[0]) for value in supervisor.map(count_value_files, [b""] * 20)]
    assert max(counts) <= 3


@pytest.mark.parametrize(
    ("number", "failures", "status"),
    [(errno.ENOSPC, 3, "ok"), (errno.ENOSPC, 1000, "failed"), (errno.EIO, 1, "failed")],
)
def test_a_value_without_room_waits_for_some(monkeypatch, number, failures, status):
    """As if shared memory were full for a while, for ever, or broken."""
    write, left = shmqueue.write_file, iter(range(failures))

    def refuse(path, data):
        if ".v" in path and next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        write(path, data)

    monkeypatch.setattr(shmqueue.system, "write_file", refuse)
    monkeypatch.setattr(shmqueue, "LOG_BYTES", 1 << 16)
    monkeypatch.setattr(shmqueue, "SPILL_TRIES", 10)
    large = jobs.pattern(200_000)
    result = only(jobs.echo, large, workers=1)
    assert (result.status, result.value) == (status, large if status == "ok" else None)
    if status == "failed":
        assert f"{os.strerror(number)}: no room for a value of 200,000 bytes" in result.error


def test_how_many_tasks_take_a_batchs_time_may_be_more_than_a_batch_has():
    """A claim takes an eighth of it at least: else many workers would have a few short tasks each."""
    with start([jobs.quiet], workers=1, num_slots=32) as supervisor:
        queue = supervisor._queue

        def is_more():
            assert list(supervisor.map("quiet", [b""] * 2000)) == [None] * 2000
            return queue.words[queue.status[0] + shmqueue.LIMIT] > queue.batch == 32

        assert wait_until(is_more)


def blocks_of(supervisor):
    """How much memory the segment has."""
    return os.stat(shmqueue.path_of(supervisor.name)).st_blocks


def test_a_log_has_memory_as_it_is_used():
    with start([jobs.echo], workers=2, batch=8) as supervisor:
        assert list(supervisor.map(jobs.echo, [b"x" * 10] * 100)) == [b"x" * 10] * 100
        before = blocks_of(supervisor)
        payloads = [jobs.pattern(size) for size in range(100_000, 100_010)]
        assert list(supervisor.map(jobs.echo, payloads)) == payloads
        assert blocks_of(supervisor) > before


def no_memory_for_workers(monkeypatch):
    """As if shared memory were full as soon as the segment is there."""
    reserve, supervisor = shmqueue.Segment.reserve, os.getpid()

    def refuse(segment, offset, size):
        if os.getpid() != supervisor:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(segment, offset, size)

    monkeypatch.setattr(shmqueue.Segment, "reserve", refuse)


@pytest.mark.parametrize("size", [8, 100, 1000])
def test_values_fit_what_is_there_of_a_log_where_memory_is_full(monkeypatch, size):
    """Batches become as small as that needs."""
    no_memory_for_workers(monkeypatch)
    monkeypatch.setattr(shmqueue.system, "write_file", lambda *_: os.open("/dev/full/", os.O_WRONLY))  # an OSError
    payloads = [jobs.pattern(size)] * 20_000
    with start([jobs.echo], workers=2) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads)) == payloads


def test_a_log_without_memory_leaves_values_in_files(monkeypatch):
    """What a worker has reserved stays as it is, and each task can leave something there."""
    read, lengths = shmqueue.read_file, []
    no_memory_for_workers(monkeypatch)
    monkeypatch.setattr(shmqueue.system, "read_file", lambda path, size: lengths.append(size) or read(path, size))
    payloads = [jobs.pattern(size) for size in (10, 15_000, 15_000, 0, 100_000, 3)] * 20
    with start([jobs.echo], workers=1, batch=50) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads)) == payloads
        assert files_beside("v") == []
    assert lengths.count(100_000) == 20


def test_a_long_error_is_kept_in_part():
    result = only(jobs.raise_long)
    assert result.error.startswith("ValueError: long long ")
    assert len(result.error) < 10_000


@pytest.mark.parametrize("options", [{"num_slots": 3}, {"num_slots": 16, "batch": 1}, {"slot_size": 64, "batch": 5}])
def test_any_payloads_come_back_in_order(options):
    with start([jobs.echo, jobs.echo_text, jobs.quiet], **options) as supervisor:

        @settings(max_examples=25)
        @given(st.lists(st.binary(max_size=300), max_size=30), st.lists(st.text(max_size=200), max_size=30))
        def check(payloads, texts):
            assert list(supervisor.map(jobs.echo, payloads)) == payloads
            assert list(supervisor.map(jobs.echo_text, iter(texts))) == texts
            results = sorted(supervisor.run((jobs.quiet, payload) for payload in payloads))
            assert [(result.status, result.payload) for result in results] == [("ok", p) for p in payloads]

        check()


# Every task has exactly one outcome.


@pytest.mark.promise("G1")
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_exactly_one_outcome_per_task(workers):
    count, functions = 12_000, [jobs.quiet, jobs.echo, jobs.raise_error]
    with start(functions, workers=workers, num_slots=500) as supervisor:
        results = sorted(supervisor.run((functions[i % 3], b"%d" % i) for i in range(count)))
        stats = supervisor.stats()
    assert [result.tsk_id for result in results] == list(range(1, count + 1))
    assert [result.payload for result in results] == [b"%d" % i for i in range(count)]
    assert [result.function for result in results] == [functions[i % 3].__name__ for i in range(count)]
    assert [result.status for result in results] == ["ok", "ok", "failed"] * (count // 3)
    assert [result.value for result in results] == [None if i % 3 != 1 else b"%d" % i for i in range(count)]
    assert (stats["ok"], stats["failed"]) == (count * 2 // 3, count // 3)


@pytest.mark.parametrize("queue", [shmqueue.SharedTaskQueue, jobs.Starts32, jobs.Starts63])
@pytest.mark.parametrize("num_slots", [2, 3, 16])
@pytest.mark.parametrize("batch", [None, 1, 7])
def test_a_ring_smaller_than_the_tasks(queue, num_slots, batch):
    payloads = [b"%d" % i for i in range(400)]
    with start([jobs.echo, jobs.quiet], queue=queue, num_slots=num_slots, batch=batch) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads)) == payloads
        results = sorted(supervisor.run((jobs.quiet, payload) for payload in payloads))
        assert [(result.status, result.payload) for result in results] == [("ok", payload) for payload in payloads]


@pytest.mark.parametrize("queue", [jobs.Starts32, jobs.Starts63])
def test_a_death_where_counters_are_large(queue):
    tasks = [(jobs.exit_zero if i % 50 == 25 else jobs.echo, b"%d" % i) for i in range(300)]
    results = outcomes([jobs.echo, jobs.exit_zero], tasks, queue=queue, batch=4)
    assert [result.status for result in results] == ["crashed" if i % 50 == 25 else "ok" for i in range(300)]


def test_task_ids_go_on_past_32_bits():
    with start([jobs.echo]) as supervisor:
        supervisor._ledger.next_id = first = 2**32 - 50
        results = sorted(supervisor.run(b"%d" % i for i in range(100)))
    assert [(result.tsk_id, result.value) for result in results] == [(first + i, b"%d" % i) for i in range(100)]


def test_more_workers_than_tasks_or_slots():
    assert mapped(jobs.echo, [b"a", b"b"], workers=9, num_slots=2) == [b"a", b"b"]


# Submitting one by one.


def test_submitted_tasks_come_back_from_results():
    with start([jobs.echo, jobs.quiet], num_slots=2) as supervisor:
        ids = [supervisor.submit(jobs.echo, b"%d" % i) for i in range(100)]
        assert ids == list(range(1, 101))
        results = sorted(supervisor.results())
        assert [(result.tsk_id, result.value) for result in results] == [(i + 1, b"%d" % i) for i in range(100)]
        assert list(supervisor.results()) == []
        last = supervisor.submit("quiet", "x")
        assert [(result.tsk_id, result.payload) for result in supervisor.results()] == [(last, "x")]


def test_results_that_two_iterators_read_are_each_read_once():
    with start([jobs.echo], workers=1) as supervisor:
        supervisor.submit(jobs.echo, b"1")
        read = []
        for result in supervisor.results():
            read.append(result.tsk_id)
            if len(read) == 1:
                read += [inner.tsk_id for inner in supervisor.results()]
                supervisor.submit(jobs.echo, b"2")
                assert len(list(supervisor.run([b"x"] * 100))) == 100  # it brings the outcome of 2 as well
        assert read + [result.tsk_id for result in supervisor.results()] == [1, 2]


def test_submitting_to_a_paused_supervisor_does_not_wait():
    with start([jobs.echo]) as supervisor:
        supervisor.pause(True)
        ids = [supervisor.submit(jobs.echo, b"x") for _ in range(3)]
        supervisor.pause(False)
        assert sorted(result.tsk_id for result in supervisor.results()) == ids
    with pytest.raises(RuntimeError, match="closed"):
        supervisor.pause(True)


def test_cancelled_is_for_good():
    with start([jobs.echo]) as supervisor:
        supervisor.cancel()
        supervisor.submit(jobs.echo, b"x")
        assert [result.status for result in supervisor.results()] == ["cancelled"]


@pytest.mark.parametrize("options", [{}, {"retries": 1}])
def test_a_task_that_goes_round_again_has_the_payload_it_had(options):
    """Of a Structure that its user fills again for the next task."""
    point, function = Point(), jobs.Stalling(0.2)
    with start([function], workers=1, batch=10, **options) as supervisor:
        for number in range(10):
            point.x = number
            supervisor.submit(function, point)
        values = [int(result.value) for result in supervisor.results()]
    assert sorted(values) == list(range(10))


def test_pairs_may_be_tuples_with_names():
    pair = collections.namedtuple("pair", "function payload")
    results = outcomes([jobs.echo, jobs.quiet], [pair(jobs.echo, b"a"), (jobs.quiet, b"b"), pair("echo", b"c")])
    assert [result.value for result in results] == [b"a", None, b"c"]


def test_an_item_whose_repr_raises_is_a_failed_task():
    class Hostile:
        def __repr__(self):
            raise RuntimeError("no")

    (result,) = outcomes([jobs.echo, jobs.quiet], [Hostile()])
    assert (result.status, "an item is (function, payload)" in result.error) == ("failed", True)


def test_an_annotation_that_cannot_be_resolved_hides_no_other():
    def length(text: str, places: "Decimal | None" = None) -> str:  # noqa: F821
        return f"{type(text).__name__} {len(text)}"

    def wrong(text: "no[1]") -> str:  # noqa: F821
        return type(text).__name__

    assert mapped(length, ["äö"]) == ["str 2"]
    assert mapped(wrong, ["x"]) == ["str"]


def test_a_relative_log_stays_where_it_was_when_it_was_named(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    with start([jobs.print_much], workers=1, log="log", max_tasks=1) as supervisor:
        monkeypatch.chdir(elsewhere)
        assert {result.status for result in supervisor.run([b""] * 3)} == {"ok"}
    assert len({line[:17] for line in (tmp_path / "log").read_text().splitlines() if "printed" in line}) == 3
    assert list(elsewhere.iterdir()) == []


def test_a_log_without_room_is_named_by_the_task_that_prints():
    result = only(jobs.print_much, log="/dev/full")
    assert (result.status, "No space left" in result.error, "/dev/full" in result.error) == ("failed", True, True)


def test_workers_that_leave_before_they_take_a_task_end_the_run(monkeypatch):
    """Whatever their exit code is; one that was told to leave is another matter."""
    monkeypatch.setattr(shmqueue, "FAILED_SECONDS", 0.1)
    leaves = functools.partial(os._exit, 0)
    with pytest.raises(shmqueue.WorkersFailedError, match="exited with code 0"):
        mapped(jobs.echo, [b"x"], initializer=leaves)


@pytest.mark.promise("L33")
def test_a_segment_that_somebody_removes(monkeypatch):
    """Workers that live go on. None can be replaced, and the error says why."""
    monkeypatch.setattr(shmqueue, "FAILED_STARTS", 2)
    monkeypatch.setattr(shmqueue, "FAILED_SECONDS", 0.0)
    with start([jobs.echo, jobs.kill_self], workers=1) as supervisor:
        assert [result.status for result in supervisor.run([(jobs.echo, b"x")])] == ["ok"]
        os.unlink(f"/dev/shm/{supervisor.name}")
        assert [result.status for result in supervisor.run([(jobs.echo, b"x")] * 100)] == ["ok"] * 100
        with pytest.raises(shmqueue.WorkersFailedError, match=f"{supervisor.name} was removed"):
            list(supervisor.run([(jobs.kill_self, "9"), (jobs.echo, b"x")]))


@pytest.mark.parametrize("method", METHODS)
def test_no_signal_is_blocked_in_a_worker_or_in_other_children(method):
    """Of the fork server, which multiprocessing keeps, too."""
    context = multiprocessing.get_context(method)
    context.Lock()  # starts the resource tracker where the method has one
    assert only(jobs.signal_mask, start_method=method).value == "[]"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    other = context.Process(target=time.sleep, args=(60,))
    other.start()
    other.terminate()
    other.join(HANG / 2)
    assert other.exitcode == -signal.SIGTERM


def test_a_nested_supervisor_leaves_no_handler_in_the_worker():
    tasks = [(jobs.nested_handler, b""), (jobs.kill_self, str(int(signal.SIGTERM)))]
    first, second = outcomes([jobs.nested_handler, jobs.kill_self], tasks, workers=1)
    assert (first.status, first.value) == ("ok", str(signal.SIG_DFL))
    assert (second.status, "SIGTERM" in second.error) == ("crashed", True)


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_does_not_hear_ctrl_c(tmp_path, method):
    """It has a group of its own; but a signal may be sent to every process of a session."""
    with start([jobs.wait_for_file], workers=1, start_method=method) as supervisor:
        supervisor.submit(jobs.wait_for_file, str(tmp_path / "gate"))
        assert wait_until(lambda: supervisor._queue.glance(0).in_hand is not None)
        os.kill(supervisor._pool.lanes[0].process.pid, signal.SIGINT)
        time.sleep(0.1)
        (tmp_path / "gate").touch()
        assert [result.status for result in supervisor.results()] == ["ok"]


def test_an_interrupted_submit_ends_the_supervisor(monkeypatch):
    push = shmqueue.SharedTaskQueue.push

    def interrupted(queue, tasks):
        monkeypatch.setattr(shmqueue.SharedTaskQueue, "push", push)
        raise KeyboardInterrupt

    with start([jobs.echo]) as supervisor:
        monkeypatch.setattr(shmqueue.SharedTaskQueue, "push", interrupted)
        with pytest.raises(KeyboardInterrupt):
            supervisor.submit(jobs.echo, b"x")
        with pytest.raises(RuntimeError, match="interrupted"):
            list(supervisor.results())


def test_workers_too_large_before_they_begin_end_the_run(monkeypatch):
    """They are told to leave, and do not: that is no sign that they worked."""
    pytest.importorskip("psutil")
    for name, seconds in (("MEMORY_SECONDS", 0.05), ("FAILED_SECONDS", 0.1)):
        monkeypatch.setattr(shmqueue, name, seconds)
    with pytest.raises(shmqueue.WorkersFailedError, match="in a row"):
        mapped(jobs.echo, [b"x"], initializer=functools.partial(time.sleep, 30), max_rss=1 << 20)


@pytest.mark.promise("L24")
def test_a_process_is_known_without_proc(monkeypatch):
    """As on macOS: by ps."""
    is_folder = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: path != "/proc/self" and is_folder(path))
    state, started = shmqueue.process_state(os.getpid())
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert (state in "RS", started > 0, shmqueue.process_state(os.getpid())[1] == started) == (True, True, True)
    assert shmqueue.process_state(2**22 + 1) == ("", 0)


def test_a_source_that_gives_nothing_for_now_is_asked_again_at_once(monkeypatch):
    """As where --resume leaves out whole blocks of a file; one that has a descriptor is waited for."""

    class Sparse(shmqueue.Source):
        asked = 0

        def take(self, room):
            self.asked += 1
            self.exhausted = self.asked == 50
            return [b"x"] if self.exhausted else []

    class Poll:
        def __init__(self):
            poll = select.poll()
            self.register, self.unregister, self._wait = poll.register, poll.unregister, poll.poll

        def poll(self, milliseconds=None):
            if milliseconds != 0:
                waits.append(source.asked)
            return self._wait(milliseconds)

    waits, source = [], Sparse()
    monkeypatch.setattr(shmqueue.system, "poll", Poll)
    with start([jobs.echo], workers=1) as supervisor:
        assert [result.value for result in supervisor.run(source)] == [b"x"]
    assert set(waits) <= {50}


def test_a_worker_may_die_at_its_start_for_hours_while_others_work():
    with start([jobs.echo]) as supervisor:
        pool = supervisor._pool
        pool._failed_starts = 5000
        assert list(supervisor.map(jobs.echo, [b"x"])) == [b"x"]
        pool._start_failed("it died", sure=False)
        assert 0 < pool._start_due - time.monotonic() <= 5.0


def test_what_is_submitted_after_an_abort_is_cancelled():
    with start([jobs.echo]) as supervisor:
        supervisor.abort()
        tsk_id = supervisor.submit(jobs.echo, b"x")
        assert [(result.tsk_id, result.status) for result in supervisor.results()] == [(tsk_id, "cancelled")]


def test_submit_wakes_a_worker_that_sleeps():
    """It must not wait until somebody asks for results."""
    with start([jobs.echo], workers=1) as supervisor:
        assert wait_until(lambda: supervisor._queue.sleepers())
        ((_, number),) = supervisor._queue.sleepers()
        supervisor.submit(jobs.echo, b"x")
        assert supervisor._pool.lanes[0].rung == number


@pytest.mark.promise("L24")
def test_workers_go_on_while_tasks_are_submitted(tmp_path):
    """Each has room for two batches only, until somebody takes in what is finished."""
    path = tmp_path / "noted"
    path.touch()
    submitted = 0
    with start([jobs.note], workers=1) as supervisor:
        while path.stat().st_size < 200:
            assert submitted < 10_000, "the worker waits"
            supervisor.submit(jobs.note, f"{path}|")
            submitted += 1
            time.sleep(0.001)


@pytest.mark.promise("L24")
def test_the_dead_are_replaced_while_tasks_are_submitted():
    with start([jobs.kill_itself, jobs.echo]) as supervisor:
        supervisor.submit(jobs.kill_itself, b"")
        assert wait_until(lambda: supervisor.submit(jobs.echo, b"") and supervisor.stats()["respawned"])


def test_a_claim_wakes_the_supervisor_only_where_it_waits_for_room(tmp_path):
    gate = str(tmp_path / "gate")
    with start([jobs.wait_for_file], workers=1, num_slots=2, batch=1) as supervisor:
        words = supervisor._queue.words
        supervisor.submit(jobs.wait_for_file, gate)
        assert wait_until(lambda: list(supervisor.results(0)) or supervisor._queue.glance(0).in_hand is not None)
        assert list(supervisor.results(0)) == []
        assert words[shmqueue.SUPERVISOR_ASLEEP] == 1
        full = []

        def open_gate():
            full.append(wait_until(lambda: words[shmqueue.SUPERVISOR_ASLEEP] == 2))
            pathlib.Path(gate).touch()

        threading.Thread(target=open_gate).start()
        assert len(list(supervisor.run([gate] * 10))) == 10
        assert full == [True]
        assert len(list(supervisor.results())) == 1


@pytest.mark.promise("G5b")
def test_submit_blocks_while_the_ring_is_full(tmp_path):
    gate = tmp_path / "gate"
    with start([jobs.wait_for_file], workers=1, num_slots=2, batch=1) as supervisor:
        submitted = []

        def open_gate():
            assert wait_until(lambda: len(submitted) >= 2)
            time.sleep(0.3)
            gate.touch()

        opener = threading.Thread(target=open_gate)
        opener.start()
        for i in range(10):
            supervisor.submit(jobs.wait_for_file, str(gate))
            submitted.append((i, gate.exists()))
        assert not submitted[1][1], "the first fit"
        assert submitted[-1][1], "the last did not"
        opener.join()
        assert [result.status for result in supervisor.results()] == ["ok"] * 10


def test_submitted_tasks_and_a_run_do_not_mix():
    with start([jobs.echo]) as supervisor:
        supervisor.submit(jobs.echo, b"submitted")
        assert sorted(result.value for result in supervisor.run([b"a", b"b"])) == [b"a", b"b"]
        assert [result.value for result in supervisor.results()] == [b"submitted"]


def test_a_rejected_submission_has_a_result_too():
    with start([jobs.echo]) as supervisor:
        tsk_id = supervisor.submit("ecko", b"a")
        (result,) = supervisor.results()
    assert (result.tsk_id, result.status, result.function) == (tsk_id, "failed", "ecko")
    assert "nearest: echo" in result.error


# Reading ahead, and stopping early.


class Counted:
    """An endless iterable that knows how much of it was read."""

    def __init__(self, payload=lambda i: b"%d" % i):
        self.read, self._payload = 0, payload

    def __iter__(self):
        for i in itertools.count():
            self.read += 1
            yield self._payload(i)


@pytest.mark.promise("G5b")
@pytest.mark.parametrize("ordered", [False, True])
def test_an_endless_iterable_is_read_a_bounded_way_ahead(ordered):
    source, ahead = Counted(), []
    with start([jobs.echo], num_slots=16, batch=4) as supervisor:
        results = supervisor.map(jobs.echo, source) if ordered else supervisor.run(source)
        for i in range(5000):
            result = next(results)
            if ordered:
                assert result == b"%d" % i
            ahead.append(source.read - i)
        results.close()
    assert max(ahead) < 200


@pytest.mark.promise("G5b")
def test_in_order_a_slow_task_does_not_let_the_rest_run_away(tmp_path):
    gate, slow_one = tmp_path / "gate", 3
    source = Counted(lambda i: str(gate if i == slow_one else tmp_path))
    with start([jobs.wait_for_file], num_slots=16, batch=1) as supervisor:
        values = supervisor.map(jobs.wait_for_file, source)
        opener = threading.Timer(0.5, gate.touch)
        opener.start()
        for _ in range(slow_one + 1):
            next(values)
        assert source.read < 200
        opener.join()
        values.close()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("how", ["close", "break", "exception"])
def test_an_iterator_closed_early_cancels_what_has_not_begun(tmp_path, ordered, how):
    path, count = tmp_path / "notes", 3000
    payloads = [f"{path}|{i}" for i in range(count)]
    with start([jobs.note_slowly, jobs.echo], num_slots=4096) as supervisor:
        read = (
            supervisor.map("note_slowly", payloads) if ordered else supervisor.run(("note_slowly", p) for p in payloads)
        )
        next(read)
        if how == "close":
            read.close()
        elif how == "break":
            for _ in read:
                break
            del read
            gc.collect()
        else:
            with contextlib.suppress(ZeroDivisionError), contextlib.closing(read):
                for _ in read:
                    raise ZeroDivisionError
        assert how == "break" or not list(read), "and what was closed yields nothing more"
        assert list(supervisor.map(jobs.echo, [b"a", b"b"])) == [b"a", b"b"], "and the next run is as good as new"
    stats = supervisor.stats()
    started = lines(path)
    assert len(started) == len(set(started)) == stats["ok"] - 2
    assert stats["ok"] + stats["cancelled"] <= count + 2
    assert len(started) < count


def test_cancel_ends_every_run_with_an_outcome_for_each_task():
    with start([jobs.note_slowly], num_slots=64) as supervisor:
        results = []
        for result in supervisor.run([f"/dev/null|{i}" for i in range(2000)]):
            results.append(result)
            if len(results) == 10:
                supervisor.cancel()
        later = list(supervisor.run(["/dev/null|x"] * 3))
    assert sorted(result.tsk_id for result in results) == list(range(1, 2001))
    cancelled = [result for result in results if result.status == "cancelled"]
    assert len(cancelled) > 1000
    assert {result.attempts for result in cancelled} == {0}
    assert [result.status for result in later] == ["cancelled"] * 3


def test_after_cancel_an_endless_iterable_is_not_read_on():
    numbers = itertools.count()
    with start([jobs.echo]) as supervisor:
        results = supervisor.run(b"%d" % number for number in numbers)
        next(results)
        supervisor.cancel()
        read = next(numbers)
        assert len(list(itertools.islice(results, 100_000))) < 100_000
        assert next(numbers) == read + 1


@pytest.mark.parametrize("ordered", [False, True])
def test_an_exception_in_the_users_iterable_is_raised_and_the_supervisor_goes_on(ordered):
    def broken():
        yield from ((b"%d" % i) for i in range(100))
        raise ZeroDivisionError("in the user's code")

    results = []
    with start([jobs.echo], num_slots=16) as supervisor:
        with pytest.raises(ZeroDivisionError, match="in the user's code"):
            results.extend(
                iter_into(results, supervisor.map(jobs.echo, broken()) if ordered else supervisor.run(broken()))
            )
        assert len(results) == 100, "first come the results of what it had yielded"
        assert list(supervisor.map(jobs.echo, [b"next"])) == [b"next"]


def test_the_tasks_of_a_slow_iterable_begin_as_they_come():
    done = []

    def slow():
        until = time.monotonic() + HANG / 2
        while not supervisor.stats()["ok"] and time.monotonic() < until:
            time.sleep(0.01)
            yield b"x"
        done.append(supervisor.stats()["ok"])

    with start([jobs.echo]) as supervisor:
        assert {result.status for result in supervisor.run(slow())} == {"ok"}
    assert done[0] > 0


@pytest.mark.promise("L25")
def test_few_tasks_wait_for_an_iterable_that_becomes_slow():
    def tasks():
        yield from [b"quick"] * 100
        while True:
            time.sleep(0.005)
            yield b"slow"

    source = shmqueue.IterableSource(tasks())
    taken = list(source.take(2000))
    while b"slow" not in taken:  # the machine is busy
        taken += source.take(2000)
    assert taken.count(b"slow") <= 2 * shmqueue.CLOCK_SHARE


@pytest.mark.timeout(30)
def test_a_list_that_iterates_in_its_own_way():
    class Long(list):
        def __iter__(self):
            return itertools.chain(super().__iter__(), [b"last"])

        def __len__(self):
            return 100

    assert mapped(jobs.echo, Long([b"first"])) == [b"first", b"last"]


def test_something_that_cannot_be_iterated_is_a_type_error():
    with start([jobs.echo]) as supervisor, pytest.raises(TypeError, match="int"):
        list(supervisor.run(5))


def test_two_runs_of_one_supervisor_can_be_read_in_turns():
    with start([jobs.echo], num_slots=16) as supervisor:
        first = supervisor.map(jobs.echo, [b"a%d" % i for i in range(500)])
        second = supervisor.map(jobs.echo, [b"b%d" % i for i in range(500)])
        pairs = list(zip(first, second, strict=True))
    assert pairs == [(b"a%d" % i, b"b%d" % i) for i in range(500)]


# TaskError.


@pytest.mark.parametrize("through", ["parallel_map", "map"])
def test_task_error_carries_the_result(through):
    payloads = ["2", "3", "no number", "4"]
    with start([jobs.blow_up]) as supervisor, pytest.raises(TaskError) as caught:
        list(supervisor.map(jobs.blow_up, payloads)) if through == "map" else mapped(jobs.blow_up, payloads)
    result = caught.value.result
    assert (result.tsk_id, result.function, result.payload, result.status) == (3, "blow_up", "no number", "failed")
    assert result.error.startswith("ValueError: invalid literal")
    assert "no number" in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ("3 0", "'3 0'"),
        (b"3 0", "'3 0'"),
        ({"a": [1]}, "{'a': [1]}"),
        ("x" * 5000 + "y" * 5000, "'" + "x" * 97 + "..." + "y" * 98 + "'"),
        ("x" * 198, "'" + "x" * 198 + "'"),
        ("\U00010000".encode() * 3000, "'" + "\U00010000" * 97 + "..." + "\U00010000" * 98 + "'"),
    ],
)
def test_a_task_error_shows_the_payload(payload, shown):
    with start([jobs.raise_error]) as supervisor, pytest.raises(TaskError) as caught:
        list(supervisor.map(jobs.raise_error, [payload]))
    first, second, *_ = str(caught.value).splitlines()
    assert first.startswith("task 1 (raise_error) failed: ")
    assert second == f"payload: {shown}"
    assert len(shown) <= 200


def test_map_yields_what_comes_before_the_error_and_cancels_the_rest(tmp_path):
    path = tmp_path / "notes"
    tasks = [f"{path}|{i}" for i in range(2000)]
    tasks[5] = str(tmp_path / "absent" / "notes")
    with start([jobs.note_slowly], num_slots=64) as supervisor:
        values = supervisor.map(jobs.note_slowly, tasks)
        assert list(itertools.islice(values, 5)) == [None] * 5
        with pytest.raises(TaskError, match="FileNotFoundError"):
            next(values)
        assert list(values) == []
    assert len(lines(path)) < 1000


# Functions by number, and those that are not there.


def test_functions_by_number():
    with start({7: jobs.echo, 2**31 - 1: jobs.quiet}) as supervisor:
        assert list(supervisor.map(jobs.echo, [b"a"])) == [b"a"]
        assert [r.function for r in sorted(supervisor.run([(jobs.quiet, b"a"), ("echo", b"b")]))] == ["quiet", "echo"]


def test_map_of_an_unknown_function_is_a_value_error():
    with start([jobs.echo, jobs.quiet]) as supervisor:
        with pytest.raises(ValueError, match=r"ecko.*echo"):
            supervisor.map("ecko", [b"a"])
        with pytest.raises(ValueError, match="pid"):
            supervisor.map(jobs.pid, [b"a"])


# Retries, timeouts, and replaced workers.


@pytest.mark.promise("G2a", "L12")
@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize(
    ("function", "status"),
    [(jobs.note_and_raise, "failed"), (jobs.note_and_die, "crashed"), (jobs.note_and_hang, "timeout")],
)
def test_a_task_that_is_never_ok_is_started_once_and_again_for_each_retry(tmp_path, function, status, retries):
    path = tmp_path / "notes"
    tasks = [(jobs.note, f"{path}|{i}") for i in range(40)]
    tasks.insert(20, (function, f"{path}|bad"))
    timeout = 0.5 if status == "timeout" else None
    results = outcomes([jobs.note, function], tasks, retries=retries, timeout=timeout, batch=8)
    assert [result.status for result in results] == ["ok"] * 20 + [status] + ["ok"] * 20
    assert results[20].attempts == retries + 1
    assert {result.attempts for result in results if result.status == "ok"} == {1}, "nobody else is charged"
    started = lines(path)
    assert started.count("bad") == retries + 1
    assert sorted(started) == sorted([*map(str, range(40)), *["bad"] * (retries + 1)])


def test_a_worker_was_busy_with_every_attempt():
    with start([jobs.rest_and_fail], workers=1, retries=3) as supervisor:
        list(supervisor.run([b"0.05"]))
        summary = supervisor.summary()
    assert summary["busy"] * summary["seconds"] > 0.19


@pytest.mark.parametrize(("retries", "status"), [(0, "failed"), (1, "failed"), (2, "ok"), (5, "ok")])
def test_retries_end_with_the_first_that_is_ok(tmp_path, retries, status):
    with start([jobs.fail_twice], retries=retries) as supervisor:
        (result,) = supervisor.run([f"{tmp_path / 'notes'}|x"])
        stats = supervisor.stats()
    assert (result.status, result.attempts) == (status, min(retries, 2) + 1)
    assert (result.value, stats["retried"]) == ("attempt 3" if status == "ok" else None, min(retries, 2))


@pytest.mark.parametrize("function", [jobs.hang, jobs.spin])
def test_a_task_that_never_returns_times_out(function):
    tasks = [(jobs.echo, b"%d" % i) for i in range(30)]
    tasks.insert(10, (function, b""))
    results = outcomes([jobs.echo, function], tasks, timeout=0.6)
    assert [result.status for result in results] == ["ok"] * 10 + ["timeout"] + ["ok"] * 20
    assert "0.6" in results[10].error
    assert results[10].seconds >= 0.6


def test_a_task_that_stops_its_process_holds_nobody_up():
    tasks = [(jobs.echo, b"%d" % i) for i in range(30)]
    tasks.insert(10, (jobs.stop_itself, b""))
    results = outcomes([jobs.echo, jobs.stop_itself], tasks, timeout=0.6)
    assert results.pop(10).status in ("ok", "timeout"), "the supervisor may have it go on"
    assert [result.status for result in results] == ["ok"] * 30


def test_a_timeout_is_for_each_task_and_not_for_the_batch():
    results = outcomes([jobs.note_slowly], ["/dev/null|x"] * 500, timeout=0.6, batch=500, workers=1)
    assert {result.status for result in results} == {"ok"}


def test_a_timeout_counts_from_the_start_of_its_task():
    """The first two tasks always run in one batch: only once one has ended is the worker halted for its result."""
    results = outcomes([jobs.rest], ["0.9"] * 3, timeout=1.5, batch=3, workers=1)
    assert [result.status for result in results] == ["ok"] * 3


@pytest.mark.command_line
def test_halts_do_not_put_off_a_timeout():
    """While the first task runs, others are taken back and given out again, many times."""
    with start([jobs.rest], timeout=1.0, batch=4, workers=1) as supervisor:
        halted = []

        def halt():
            row = supervisor.snapshot()["workers"][0]
            if row.get("in_hand") == 1:
                halted.append(row["held"])
                supervisor.pause(True)
                supervisor.pause(False)

        supervisor.on_check = halt
        results = sorted(supervisor.run(["20", *["0"] * 40]))
    assert [result.status for result in results] == ["timeout"] + ["ok"] * 40
    assert len(halted) >= 3


@pytest.mark.parametrize("batch", [None, 2, 50])
def test_a_worker_is_replaced_after_max_tasks(batch):
    with start([jobs.pid], max_tasks=5, batch=batch) as supervisor:
        pids = list(supervisor.map(jobs.pid, [b""] * 40))
    assert max(map(pids.count, pids)) <= 5
    assert len(set(pids)) >= 8


def test_a_worker_that_grows_past_max_rss_is_replaced_and_loses_nothing():
    psutil = pytest.importorskip("psutil")
    step, limit = 60 << 20, psutil.Process().memory_info().rss + (100 << 20)
    with start([jobs.keep_memory, jobs.note_slowly], workers=1, max_rss=limit) as supervisor:
        before = list(supervisor.map(jobs.keep_memory, [str(step)] * 3))
        assert wait_until(
            lambda: all(supervisor.run([("note_slowly", "/dev/null|x")])) and supervisor.stats()["respawned"]
        )
        assert list(supervisor.map(jobs.keep_memory, ["1"])) != before[:1]
        assert (supervisor.stats()["crashed"], supervisor.stats()["failed"]) == (0, 0)


def test_a_task_that_stays_above_max_rss_ends_with_its_worker():
    psutil = pytest.importorskip("psutil")
    limit = psutil.Process().memory_info().rss + (50 << 20)
    results = outcomes(
        [jobs.take_memory_and_stay, jobs.echo],
        [(jobs.take_memory_and_stay, str(120 << 20)), *[(jobs.echo, b"a")] * 20],
        max_rss=limit,
    )
    assert [result.status for result in results] == ["crashed"] + ["ok"] * 20
    what, _, held = results[0].error.partition(": ")  # so the summary counts all such tasks together
    assert (what, held.endswith(" bytes of memory")) == (f"its worker held more than max_rss={limit:,}", True)


def test_only_what_stays_above_max_rss_is_ended(monkeypatch):
    """A worker that was told to leave for another reason, or that was too large some time ago, has its second."""
    with start([jobs.echo], workers=1) as supervisor:
        lane = supervisor._pool.lanes[0]
        seen = []
        monkeypatch.setattr(lane, "doom", seen.append)
        monkeypatch.setattr(lane, "retire", lambda: None)
        lane.told = 1.0
        for now, rss in ((100.0, 60), (100.5, 60), (101.0, 40), (200.0, 60), (200.5, 60)):
            monkeypatch.setattr(lane.process, "measure", lambda rss=rss: rss)
            lane.check_memory(now, 50)
            assert seen == []
        lane.check_memory(201.0, 50)
        assert [doom.status for doom in seen] == ["crashed"]
        lane.told = 0.0


def test_a_line_that_is_written_in_parts_is_whole(monkeypatch):
    """The kernel may write less into a pipe that is full, if the worker is stopped meanwhile."""
    options = types.SimpleNamespace(log="log")
    output = shmqueue.PrintedOutput(types.SimpleNamespace(index=0, options=options, tsk_id_in_hand=lambda: 1))
    written = []
    with monkeypatch.context() as patch:
        patch.setattr(shmqueue.os, "write", lambda _, text: written.append(text[:3]) or len(text[:3]))
        output.write(b"hello\n")
    assert b"".join(written) == b"[worker 0 task 1] hello\n"


def test_lines_of_several_threads_are_whole(monkeypatch):
    options = types.SimpleNamespace(log="log")
    output = shmqueue.PrintedOutput(types.SimpleNamespace(index=0, options=options, tsk_id_in_hand=lambda: 1))
    other = threading.Thread(target=output.write, args=[b"2\n"])

    class Met(bytes):
        """Another thread prints when this is about to be added to the line."""

        def __bytes__(self):
            other.start()
            other.join(0.1)
            return self[:]

    written = []
    with monkeypatch.context() as patch:
        patch.setattr(shmqueue.os, "write", lambda _, text: written.append(text) or len(text))
        output.write(b"line ")
        output.write(Met(b"1\n"))
        other.join()
    assert written == [b"[worker 0 task 1] line 1\n", b"[worker 0 task 1] 2\n"]


# The initializer.


@pytest.mark.parametrize("method", METHODS)
def test_the_initializer_runs_first_in_every_worker(method):
    with start([jobs.readiness, jobs.exit_zero], initializer=jobs.make_ready, start_method=method) as supervisor:
        assert set(supervisor.map(jobs.readiness, [b""] * 50)) == {"ready"}
        assert [result.status for result in supervisor.run([("exit_zero", b"")])] == ["crashed"]
        assert set(supervisor.map(jobs.readiness, [b""] * 50)) == {"ready"}, "also in one that replaces another"


@pytest.mark.long
@pytest.mark.promise("L10")
@pytest.mark.parametrize(
    ("initializer", "words"), [(jobs.refuse_to_start, "no licence for this worker"), (jobs.exit_at_start, "code 3")]
)
def test_an_initializer_that_always_fails_ends_the_run_with_its_error(initializer, words):
    results = []
    with start([jobs.echo], initializer=initializer, num_slots=16) as supervisor:
        with pytest.raises(RuntimeError, match=words):
            results.extend(iter_into(results, supervisor.run([b"%d" % i for i in range(100)])))
        assert sorted(result.tsk_id for result in results) == list(range(1, 101)), "each task has its outcome even so"
        assert {result.status for result in results} <= {"crashed", "cancelled"}
    with pytest.raises((RuntimeError, TaskError)) as caught:
        mapped(jobs.echo, [b"a"], initializer=initializer)
    assert words in f"{caught.value} {caught.value.__cause__}"


def iter_into(kept, results):
    """Reads all results into a list that keeps them when the iterator raises at its end."""
    for result in results:
        kept.append(result)
    return ()


# Functions that misbehave. Each has its own outcome, and its neighbours are ok.


@pytest.mark.promise("G2b")
@pytest.mark.parametrize(
    ("function", "status", "words"),
    [
        (jobs.raise_error, "failed", "KeyError: 'gone'"),
        (jobs.raise_interrupt, "failed", "KeyboardInterrupt"),
        (jobs.raise_hostile, "failed", "HostileError"),
        (jobs.raise_odd_text, "failed", "half a pair"),
        (jobs.sys_exit, "failed", "SystemExit: 5"),
        (jobs.recurse, "failed", "RecursionError"),
        (jobs.return_path, "failed", "PosixPath"),
        (jobs.exit_zero, "crashed", "code 0"),
        (jobs.exit_as_unguarded, "crashed", "code 113"),
        (jobs.segfault, "crashed", "SIGSEGV"),
        (jobs.abort, "crashed", "SIGABRT"),
        (jobs.kill_itself, "crashed", "SIGKILL"),
        (jobs.kill_its_group, "crashed", "SIGTERM"),
        (jobs.hang, "timeout", "longer than 0.6 s"),
        (jobs.fork_and_return, "ok", b"one of two"),
        (jobs.fork_and_return_nothing, "ok", None),
        (jobs.fork_and_raise, "failed", "one of two"),
        (jobs.print_much, "ok", b"printed"),
        (jobs.close_descriptors, "ok", b"closed"),
        (jobs.take_over_descriptors, "ok", b"taken"),
        (jobs.change_signal_handlers, "ok", b"deaf"),
        (jobs.change_surroundings, "ok", b"changed"),
    ],
)
@pytest.mark.parametrize("batch", [None, 16])
def test_a_function_that_misbehaves_has_its_own_outcome(capfd, function, status, words, batch):
    tasks = [(jobs.echo if i % 2 else jobs.quiet, b"%d" % i) for i in range(60)]
    tasks[20:20] = tasks[40:40] = [(function, b"")]
    options = {"timeout": 0.6} if status == "timeout" else {}
    results = outcomes([jobs.echo, jobs.quiet, function], tasks, batch=batch, **options)
    bad = [result for result in results if result.function == function.__name__]
    assert [result.status for result in results if result not in bad] == ["ok"] * 60
    assert [result.value for result in results if result.function == "echo"] == [b"%d" % i for i in range(1, 60, 2)]
    assert [result.status for result in bad] == [status] * 2, bad
    for result in bad:
        assert result.value == words if status == "ok" else words in result.error
    assert capfd.readouterr() == ("", "")


@pytest.mark.promise("L21")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", [jobs.start_child, jobs.start_child_in_session])
def test_processes_that_a_function_started_end_with_the_run(function, method):
    pids = [int(value) for value in parallel_map(function, [b""] * 3, workers=2, start_method=method)]
    assert wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.promise("L21")
def test_a_process_is_found_whose_environment_is_not_there_yet(monkeypatch):
    """The system tells that a program was executed a moment before it shows its arguments and its environment."""
    child = subprocess.Popen(["sleep", "600"], env={shmqueue.RUN_VARIABLE: "shmq-0-found"}, start_new_session=True)  # noqa: S607
    looks = []

    def look(path, *arguments, **options):
        looks.append(path)
        environment = f"/proc/{child.pid}/environ"
        early = path in (environment, f"/proc/{child.pid}/cmdline") and looks.count(environment) < 4
        return io.BytesIO() if early else open(path, *arguments, **options)

    monkeypatch.setattr(shmqueue, "open", look, raising=False)
    shmqueue.end_strays("shmq-0-found")
    try:
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()


def test_what_never_has_an_environment_is_looked_at_once(monkeypatch):
    """A zombie and a thread of the kernel: their environments are empty, but for newer kernels, which refuse.

    And a program that was started without an environment.
    """
    zombie = subprocess.Popen(["true"])  # noqa: S607
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    path = f"/proc/{zombie.pid}/environ"
    program = subprocess.Popen(["/bin/sleep", "60"], env={})
    assert wait_until(pathlib.Path(f"/proc/{program.pid}/cmdline").read_bytes)  # it has begun

    def look(place, *arguments, **options):
        return io.BytesIO() if place == path else open(place, *arguments, **options)

    monkeypatch.setattr(shmqueue, "open", look, raising=False)
    # Not other programs, which may begin at this moment.
    without = [pid for pid in os.listdir("/proc") if pid.isdigit() and not os.path.exists(f"/proc/{pid}/exe")]
    assert str(zombie.pid) in without
    monkeypatch.setattr(shmqueue, "listed", lambda folder: [*without, str(program.pid)])
    slept = []
    monkeypatch.setattr(shmqueue.system, "sleep", slept.append)
    shmqueue.end_strays("shmq-0-found")
    program.kill()
    program.wait()
    zombie.wait()
    assert slept == []


def test_what_cannot_be_killed_does_not_hold_up_a_sweep(tmp_path, monkeypatch):
    """Such as a process in a file system that does not answer."""
    monkeypatch.setattr(shmqueue, "shared_directory", lambda: str(tmp_path))  # nobody else sweeps there
    owner = subprocess.Popen(["true"])  # noqa: S607
    owner.wait()
    name = f"{shmqueue.PREFIX}{owner.pid}-left"
    path = pathlib.Path(shmqueue.path_of(name))
    path.touch()
    stray = subprocess.Popen(["sleep", "600"], env={shmqueue.RUN_VARIABLE: name}, start_new_session=True)  # noqa: S607
    try:
        with monkeypatch.context() as patch:
            patch.setattr(shmqueue.os, "kill", lambda *_: None)
            shmqueue.sweep()
        assert not path.exists()
    finally:
        stray.kill()
        stray.wait()


@pytest.mark.parametrize("name", ["shmq-\N{SUPERSCRIPT TWO}-a", "shmq--a", "shmq-x-a", "shmq-1-a.p1", "shmq-1"])
def test_other_files_are_no_segments(name):
    assert shmqueue.owner_of(f"/dev/shm/{name}") == 0


# How workers start, and where the library is used from.


@pytest.mark.parametrize("method", METHODS)
def test_every_start_method(method):
    tasks = [(jobs.echo, b"%d" % i) for i in range(200)]
    tasks[50:50] = [(jobs.exit_zero, b""), (jobs.raise_error, b""), (jobs.echo_point, Point(1, 2)), (jobs.hang, b"")]
    functions = [jobs.echo, jobs.exit_zero, jobs.raise_error, jobs.echo_point, jobs.hang]
    results = outcomes(functions, tasks, start_method=method, timeout=0.8, retries=1)
    statuses = [result.status for result in results]
    assert statuses == ["ok"] * 50 + ["crashed", "failed", "ok", "timeout"] + ["ok"] * 150
    assert (results[52].value.x, results[52].value.y) == (2, 1)
    assert [result.attempts for result in results[50:54]] == [2, 2, 1, 2]
    payloads = [jobs.pattern(size) for size in (0, 120, 1 << 20)]
    assert parallel_map(jobs.echo, payloads, workers=2, start_method=method) == payloads


@pytest.mark.promise("G8b", "L14")
@pytest.mark.parametrize("method", [None, "fork"])
def test_supervisors_in_several_threads_do_not_disturb_each_other(method):
    values, errors = {}, []

    def work(number):
        try:
            payloads = [b"%d %d" % (number, i) for i in range(3000)]
            options = {"workers": 2, "start_method": method, "num_slots": 64}
            with Supervisor([jobs.echo, jobs.exit_zero], **options) as supervisor:
                values[number] = list(supervisor.map(jobs.echo, payloads)) == payloads
                tasks = [("exit_zero" if i == 5 else "echo", b"") for i in range(20)]
                values[number] &= [r.status for r in sorted(supervisor.run(tasks))].count("ok") == 19
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (values, errors) == ({0: True, 1: True}, [])


def test_a_thread_may_close_a_supervisor_without_touching_signal_handlers():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    thread = threading.Thread(target=mapped, args=(jobs.echo, [b"a"]))
    thread.start()
    thread.join()
    mapped(jobs.echo, [b"a"])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == handlers


def python(own_pids, *arguments, **options):
    """What a Python of its own prints."""
    command = [sys.executable, "-W", "default", *arguments]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    own_pids.add(process.pid)
    out, err = process.communicate(timeout=HANG / 2)
    assert (process.returncode, err) == (0, "")
    return out


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_inside_another_package_works(tmp_path, own_pids, method):
    vendor = tmp_path / "app" / "vendor"
    vendor.mkdir(parents=True)
    (tmp_path / "app" / "__init__.py").touch()
    (vendor / "__init__.py").touch()
    (vendor / "shmqueue.py").write_bytes((ROOT / "shmqueue.py").read_bytes())
    (tmp_path / "app" / "work.py").write_text(
        textwrap.dedent("""
        from app.vendor import shmqueue

        def upper(payload: str) -> str:
            return payload.upper()

        def main(method):
            print(shmqueue.parallel_map(upper, ["a", "b"], workers=2, start_method=method), shmqueue.__name__)
    """)
    )
    program = f"import app.work; app.work.main({method!r})"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert python(own_pids, "-c", program, cwd=tmp_path, env=environment) == "['A', 'B'] app.vendor.shmqueue\n"


@pytest.mark.promise("G8a")
def test_a_program_keeps_its_signals_while_supervisors_open_and_close(own_pids):
    program = textwrap.dedent("""
        import signal, shmqueue
        from tests import jobs
        first, second = (shmqueue.Supervisor([jobs.echo], workers=1) for _ in range(2))
        for supervisor in first, second:
            supervisor.close()
            print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert python(own_pids, "-c", program, env=environment) == "True\nTrue\n"


def test_it_works_without_psutil(own_pids):
    program = textwrap.dedent("""
        import sys
        sys.modules["psutil"] = None
        import shmqueue
        from tests import jobs
        print(shmqueue.psutil)
        print(shmqueue.parallel_map(jobs.echo, [b"a"], workers=1, timeout=5))
        try:
            shmqueue.Supervisor([jobs.echo], max_rss=1 << 30)
        except ValueError as error:
            print(error)
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first, second, third = python(own_pids, "-c", program, env=environment).splitlines()
    assert (first, second) == ("None", "[b'a']")
    assert f"max_rss={1 << 30}" in third
    assert "psutil" in third


def test_the_default_is_one_worker_for_each_processor_this_process_may_use(own_pids):
    program = textwrap.dedent("""
        import os, shmqueue
        from tests import jobs
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with shmqueue.Supervisor([jobs.echo]) as supervisor:
            print(len(supervisor.stats()["workers"]))
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert python(own_pids, "-c", program, env=environment) == "1\n"


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("150000 100000", 2),
        ("200000 100000", 2),
        ("10000 100000", 1),
        ("max 100000", 6),
        ("900000 100000", 6),
        (None, 6),
    ],
)
def test_a_quota_of_one_and_a_half_processors_is_for_two_workers(monkeypatch, tmp_path, quota, count):
    """Six processors are there; and cgroups, which have a quota or none."""

    def read(path, **options):
        assert path == "/sys/fs/cgroup/cpu.max"
        return open(tmp_path / "cpu.max", **options)

    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(shmqueue, "open", read, raising=False)
    assert shmqueue.available_processors() == count


# Arguments.


@pytest.mark.parametrize(
    ("name", "value", "error", "limit"),
    [
        ("workers", -3, ValueError, "0"),
        ("workers", 1_000_000, ValueError, "4,096"),
        ("workers", 1.5, TypeError, "whole"),
        ("workers", "2", TypeError, "whole"),
        ("workers", True, TypeError, "whole"),
        ("num_slots", 1, ValueError, "2"),
        ("num_slots", 2**40, ValueError, "67,108,864"),
        ("num_slots", None, TypeError, "whole"),
        ("slot_size", 56, ValueError, "64"),
        ("slot_size", 65544, ValueError, "65,536"),
        ("slot_size", 100, ValueError, "8"),
        ("slot_size", 128.0, TypeError, "whole"),
        ("batch", 0, ValueError, "1"),
        ("batch", "auto", TypeError, "whole"),
        ("timeout", 0, ValueError, "0.001"),
        ("timeout", -1.0, ValueError, "0.001"),
        ("timeout", math.nan, ValueError, "0.001"),
        ("timeout", math.inf, ValueError, "to"),
        ("timeout", "5", TypeError, "number"),
        ("retries", -1, ValueError, "0"),
        ("retries", 1.0, TypeError, "whole"),
        ("retries", None, TypeError, "whole"),
        ("initializer", 5, TypeError, "initializer=5: must be callable"),
        ("max_tasks", 0, ValueError, "1"),
        ("max_rss", 0, ValueError, "1"),
        ("max_rss", "1G", TypeError, "whole"),
        ("start_method", "thread", ValueError, "thread"),
    ],
)
def test_an_argument_out_of_range_is_named_with_its_limit(name, value, error, limit):
    with pytest.raises(error) as caught:
        Supervisor([jobs.echo], **{name: value})
    text = str(caught.value)
    assert repr(value) in text
    assert limit in text
    assert name in text or name == "start_method"


@pytest.mark.parametrize(
    ("functions", "error", "words"),
    [
        ([], ValueError, "functions"),
        ({}, ValueError, "functions"),
        ([5], TypeError, "5"),
        ([jobs.echo, None], TypeError, "None"),
        ({0: jobs.echo}, ValueError, "0"),
        ({-1: jobs.echo}, ValueError, "-1"),
        ({2**31: jobs.echo}, ValueError, str(2**31)),
        ({"echo": jobs.echo}, TypeError, "echo"),
        ({1: "echo"}, TypeError, "echo"),
        (jobs.echo, TypeError, "function"),
        (jobs.echo, TypeError, r"functions=<function echo .*>: must be a sequence, such as \[echo\]"),
        (None, TypeError, "None"),
    ],
)
def test_functions_that_are_none(functions, error, words):
    with pytest.raises(error, match=words):
        Supervisor(functions)


def test_nothing_is_left_where_there_are_no_descriptors_for_pipes(monkeypatch):
    """Neither the segment (see conftest) nor the handler of a signal."""

    def no_pipe(duplex):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(shmqueue.system, "get_context", lambda method: types.SimpleNamespace(Pipe=no_pipe))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            start([jobs.echo])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_too_little_shared_memory_is_a_clear_error():
    with pytest.raises(OSError, match=r"needed.*free.*num_slots=") as caught:
        start([jobs.echo], num_slots=2**26, slot_size=65536)
    assert "No space" in os.strerror(caught.value.errno)


# The ends.


def test_the_name_is_that_of_the_segment_and_goes_with_it():
    with start([jobs.echo]) as supervisor:
        assert supervisor.name in segments_of([os.getpid()])
        assert supervisor.name.startswith(f"shmq-{os.getpid()}-")
    assert supervisor.name not in segments_of([os.getpid()])


def test_stats_count_outcomes_and_workers():
    tasks = [("echo", b""), ("raise_error", b""), ("exit_zero", b""), ("hang", b"")]
    with start([jobs.echo, jobs.raise_error, jobs.exit_zero, jobs.hang], timeout=0.6, workers=3) as supervisor:
        list(supervisor.run(tasks))
        stats = supervisor.stats()
        pids = [worker["pid"] for worker in stats["workers"]]
        assert all(map(is_running, pids))
    counts = {name: stats[name] for name in ("ok", "failed", "timeout", "crashed", "cancelled")}
    assert counts == {"ok": 1, "failed": 1, "timeout": 1, "crashed": 1, "cancelled": 0}
    assert (stats["retried"], stats["outstanding"], stats["respawned"]) == (0, 0, 2)
    assert sum(worker["completed"] for worker in stats["workers"]) == 1
    assert sum(worker["failed"] for worker in stats["workers"]) == 3
    assert len(set(pids)) == 3
    assert not any(map(is_running, pids))


def test_close_finishes_what_was_submitted(tmp_path):
    path = tmp_path / "notes"
    supervisor = start([jobs.note])
    for i in range(300):
        supervisor.submit(jobs.note, f"{path}|{i}")
    supervisor.close()
    assert sorted(map(int, lines(path))) == list(range(300))


def test_close_finishes_what_a_pause_holds_up():
    with start([jobs.echo]) as supervisor:
        supervisor.pause(True)
        supervisor.submit(jobs.echo, b"x")
    assert supervisor.stats()["ok"] == 1


def test_few_failures_are_kept():
    with start([jobs.raise_error]) as supervisor:
        assert len(list(supervisor.run([b"x"] * 200))) == 200
        assert len(supervisor._ledger.tally.latest) == 5
        assert len(supervisor.summary()["failures"]) == 5


def test_the_heap_is_empty_once_its_tasks_have_their_outcomes():
    functions = [jobs.echo, jobs.raise_error, jobs.kill_itself, jobs.hang]
    large = b"x" * 5000
    with start(functions) as supervisor:
        heap = supervisor._engine._packer.heap
        for function in functions[:3]:
            assert len(list(supervisor.run([(function, large)] * 10))) == 10
            assert heap.used == 0
        for function in [jobs.hang] * 2 + [jobs.echo] * 10:
            supervisor.submit(function, large)
        assert heap.used > 0
        supervisor.cancel()
        supervisor.abort()
        assert [result.status for result in supervisor.results()] == ["cancelled"] * 12
        assert heap.used == 0


@pytest.mark.promise("G4a")
def test_a_signal_handler_may_abort_while_workers_are_ended(monkeypatch):
    reap = shmqueue.WorkerPool._reap
    aborts = []

    def reap_after_handler(pool, lane):
        if not aborts:
            aborts.append(supervisor.abort())
        return reap(pool, lane)

    monkeypatch.setattr(shmqueue.WorkerPool, "_reap", reap_after_handler)
    with start([jobs.hang], workers=2) as supervisor:
        supervisor.submit(jobs.hang, b"")
        supervisor.__exit__(KeyboardInterrupt, None, None)
    assert aborts == [None]


@pytest.mark.command_line
def test_a_new_worker_has_nothing_in_hand_of_its_predecessor():
    with start([jobs.kill_itself], workers=1) as supervisor:
        assert [result.status for result in supervisor.run([b""])] == ["crashed"]
        assert wait_until(lambda: supervisor._queue.sleepers())
        (row,) = supervisor.snapshot()["workers"]
        assert (row["state"], row.get("in_hand")) == ("sleep", None)


def waits_of(pid):
    """How often the threads of a process have begun to wait."""
    texts = [path.read_text() for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", text)[1]) for text in texts)


def test_workers_with_nothing_to_do_sleep():
    """A process that never waits is always ready to run, however busy the machine is."""
    with start([jobs.echo]) as supervisor:
        assert len(list(supervisor.run([b"x"] * 100))) == 100
        assert wait_until(lambda: len(supervisor._queue.sleepers()) == 2)
        pids = [worker["pid"] for worker in supervisor.stats()["workers"]]
        states = []
        for _ in range(20):
            time.sleep(0.01)
            states += map(state_of, pids)
        before = list(map(waits_of, pids))
        time.sleep(0.5)
        assert list(map(waits_of, pids)) == before, "they look from time to time"
    assert states.count("S") > 30


def test_a_sleeper_that_is_told_to_leave_does_so_at_once():
    with start([jobs.echo], workers=1) as supervisor:
        (lane,) = supervisor._pool.lanes
        assert wait_until(lambda: supervisor._queue.sleepers())
        lane.retire()
        assert wait_until(lane.process.is_dead), "nobody has woken it"


@pytest.mark.command_line
def test_each_task_is_in_hand_since_it_began_and_not_since_its_batch_did(tmp_path):
    """The screen shows for how long. Each task waits at a gate, and each gate is opened some time after it began."""
    gates = [str(tmp_path / str(number)) for number in range(4)]
    began = [time.monotonic()]  # or a little earlier
    held = []

    def look():
        (row,) = supervisor.snapshot()["workers"]
        if row.get("in_hand") == len(began) and row["held"] > 0.1:
            held.append((row["held"], time.monotonic() - began[-1]))
            began.append(time.monotonic())
            pathlib.Path(gates[row["in_hand"] - 1]).touch()

    with Supervisor([jobs.wait_for_file], workers=1, batch=4) as supervisor:
        supervisor.on_check = look
        assert [result.value for result in supervisor.run(gates)] == ["there"] * 4
    assert [shown <= at_most for shown, at_most in held] == [True] * 4


def test_time_that_a_run_stands_still_is_not_a_tasks(monkeypatch):
    """As if it were stopped by Ctrl-Z for a while."""
    kill = os.kill

    def stand_still(pid, number):
        if pid == os.getpid() and number == signal.SIGTSTP:
            time.sleep(0.3)
        else:
            kill(pid, number)

    monkeypatch.setattr(shmqueue.system, "kill", stand_still)
    with start([jobs.hang], timeout=100) as supervisor:
        before = [lane.progress_since for lane in supervisor._pool.lanes]
        supervisor.suspend()
        after = [lane.progress_since for lane in supervisor._pool.lanes]
    assert all(new - old >= 0.3 for new, old in zip(after, before))


def test_a_closed_supervisor_says_so_and_may_be_closed_again():
    supervisor = start([jobs.echo])
    supervisor.close()
    supervisor.close()
    for use in (
        lambda: list(supervisor.run([b"a"])),
        lambda: list(supervisor.map(jobs.echo, [b"a"])),
        lambda: supervisor.submit(jobs.echo, b"a"),
        lambda: list(supervisor.results()),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_an_exception_in_the_block_leaves_at_once_with_nothing_left():
    pids = []

    def use():
        with start([jobs.hang]) as supervisor:
            pids.extend(worker["pid"] for worker in supervisor.stats()["workers"])
            supervisor.submit(jobs.hang, b"")
            raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        use()
    assert len(pids) == 2
    assert not any(map(is_running, pids))
    assert segments_of([os.getpid()]) == []


def test_what_functions_print_goes_to_the_log_line_by_line(tmp_path, capfd):
    log = tmp_path / "log"
    results = outcomes([jobs.print_much], [b""] * 3, log=str(log))
    assert {result.status for result in results} == {"ok"}
    text = log.read_text()
    for words in ("\x1b[2Jprinted" * 50, "to the error stream" * 50, "past Python", "from a child"):
        assert words in text
    printed = [line for line in text.splitlines() if "printed" in line]
    assert len(printed) == 300
    assert {line.partition("] ")[0] for line in printed} <= {f"[worker {w} task {t}" for w in (0, 1) for t in (1, 2, 3)}
    assert capfd.readouterr() == ("", "")


def test_a_line_in_many_pieces_takes_time_by_its_length_and_not_by_the_square_of_it():
    """Such as a bar of progress, which begins anew by a carriage return."""

    def seconds(pieces):
        options = types.SimpleNamespace(log="log")
        worker = types.SimpleNamespace(index=0, options=options, tsk_id_in_hand=lambda: 1)
        output = shmqueue.PrintedOutput(worker)
        began = time.process_time()
        for _ in range(pieces):
            output.write(b"x" * 100 + b"\r")
        return time.process_time() - began

    assert seconds(40_000) < 50 * min(seconds(4000) for _ in range(3))


@pytest.mark.parametrize("log", [True, False])
def test_a_child_that_a_function_has_forked_can_print(tmp_path, log):
    path = str(tmp_path / "log")
    result = only(jobs.fork_and_print, workers=1, log=path if log else None)
    assert (result.status, result.value) == ("ok", "0")
    if log:
        assert (tmp_path / "log").read_text() == "[worker 0 task 1] forked\n"


def test_an_initializer_can_print_and_fork(tmp_path):
    """No task is in hand then. The child that goes on is no second worker."""
    log = tmp_path / "log"
    result = only(jobs.echo, workers=1, initializer=jobs.fork_and_print_at_start, log=str(log))
    assert (result.status, log.read_text()) == ("ok", "[worker 0 task 0] begins\n[worker 0 task 0] 1\n")


@pytest.mark.parametrize("method", METHODS)
def test_what_functions_put_into_a_queue_arrives(method):
    """A thread of theirs sends it, and may not be done when the last task is."""
    queue = multiprocessing.get_context(method).Queue()
    queue.cancel_join_thread()  # if one of them was killed in the middle, nobody can put anything
    got = []
    reader = threading.Thread(target=lambda: got.extend(iter(queue.get, None)), daemon=True)
    keep = functools.partial(jobs.keep_queue, queue)
    with start([jobs.put_much], initializer=keep, start_method=method) as supervisor:
        reader.start()
        assert {result.status for result in supervisor.run([b""] * 10)} == {"ok"}
    queue.put(None)
    reader.join(HANG / 4)
    assert len(got) == 40


def test_public_names_are_there():
    for name in ("parallel_map", "Supervisor", "TaskResult", "TaskError", "TaskSlot128", "LocalTaskQueue",
                 "WorkerStatus", "QueueHeader", "SharedTaskQueue"):  # fmt: skip
        assert hasattr(shmqueue, name), name
    assert issubclass(TaskError, Exception)
    assert shmqueue.TaskResult._fields == FIELDS
    assert pathlib.Path(shmqueue.__file__) == ROOT / "shmqueue.py"
    assert issubclass(shmqueue.TaskSlot128, ctypes.Structure)


@pytest.mark.promise("L14")
def test_a_second_thread_is_told_so_and_disturbs_nothing():
    """The first thread waits in the middle of a run."""
    errors = []

    def intrude(supervisor):
        for use in (
            lambda: supervisor.submit(jobs.echo, b""),
            lambda: list(supervisor.run([b""])),
            lambda: list(supervisor.results()),
            supervisor.cancel,
            supervisor.abort,
            supervisor.close,
        ):
            with pytest.raises(RuntimeError, match=r"in use by another thread: .* or use shmqueue\.Executor") as caught:
                use()
            errors.append(caught.value)

    def payloads():
        for number in range(20):
            if number == 10:
                thread = threading.Thread(target=intrude, args=(supervisor,))
                thread.start()
                thread.join()
            yield b"%d" % number

    with Supervisor([jobs.echo], workers=2) as supervisor:
        assert list(supervisor.map(jobs.echo, payloads())) == [b"%d" % number for number in range(20)]
        assert not supervisor.cancelled
    assert len(errors) == 6


@pytest.mark.promise("L14")
def test_another_thread_asks_for_stats_while_a_task_is_on_its_way(monkeypatch):
    """At that moment the task is in no list."""
    told = []

    def look_and_push(tasks):
        thread = threading.Thread(target=lambda: told.append(supervisor.stats()["outstanding"]))
        thread.start()
        thread.join()
        return push(tasks)

    with Supervisor([jobs.echo], workers=1) as supervisor:
        push = supervisor._queue.push
        monkeypatch.setattr(supervisor._queue, "push", look_and_push)
        supervisor.submit(jobs.echo, b"")
    assert told == [1]


def test_an_error_in_a_step_ends_the_run_after_every_outcome(monkeypatch):
    """As if this library had a mistake in it."""

    def mistaken(ledger, *arguments):
        raise ZeroDivisionError("a mistake")

    with Supervisor([jobs.echo], workers=2) as supervisor:
        monkeypatch.setattr(shmqueue.Ledger, "complete", mistaken)
        results = []
        with pytest.raises(RuntimeError, match="ended early: ZeroDivisionError: a mistake") as caught:
            results.extend(supervisor.run([b"x"] * 100))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(RuntimeError, match="ended early"):
            list(supervisor.results())
        assert supervisor.stats()["outstanding"] == 0


@pytest.mark.promise("L14")
def test_any_thread_may_cancel_a_task_and_has_its_answer(tmp_path):
    """The first thread waits in the middle of a run, and is not disturbed."""
    gate = str(tmp_path / "gate")
    answers = []

    def intrude():
        wait_until(lambda: supervisor._queue.glance(0).in_hand is not None)
        answers.extend(supervisor.cancel(tsk_id) for tsk_id in (20, 1, 20))
        pathlib.Path(gate).touch()

    with Supervisor([jobs.wait_for_file], workers=1) as supervisor:
        results = supervisor.run([gate] * 20)
        thread = threading.Thread(target=intrude)
        thread.start()
        statuses = {result.tsk_id: result.status for result in results}
        thread.join()
        assert answers == [True, False, False]
        assert statuses == dict.fromkeys(range(1, 20), "ok") | {20: "cancelled"}


def test_a_thread_may_cancel_a_task_while_nobody_takes_a_step(tmp_path):
    with Supervisor([jobs.wait_for_file], workers=1) as supervisor:
        for _ in range(2):
            supervisor.submit(jobs.wait_for_file, str(tmp_path / "gate"))
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            assert other.submit(supervisor.cancel, 2).result(HANG)
        (tmp_path / "gate").touch()
        assert sorted(result.status for result in supervisor.results()) == ["cancelled", "ok"]


def test_a_task_is_not_cancelled_in_the_middle_of_a_step(monkeypatch):
    """There is no answer there: tasks may be in no list."""
    place, told = shmqueue.Ledger.placed, []

    def interrupted(ledger, *tasks):
        with pytest.raises(RuntimeError, match="in the middle of a step") as caught:
            supervisor.cancel(1)
        told.append(caught.value)
        place(ledger, *tasks)

    monkeypatch.setattr(shmqueue.Ledger, "placed", interrupted)
    with Supervisor([jobs.echo], workers=1) as supervisor:
        assert [result.status for result in supervisor.run([b"a", b"b"])] == ["ok"] * 2
    assert told


@pytest.mark.parametrize("how", ["cancel", "abort"])
def test_a_signal_handler_of_the_program_can_end_a_run_at_any_moment(how):
    """Also in the middle of a turn of the supervisor, when tasks are in no list."""
    ends = []
    before = signal.signal(signal.SIGALRM, lambda *_: getattr(ends[-1], how)())
    try:
        for number in range(30):
            with start([jobs.sleep_a_little], start_method="fork") as supervisor:
                ends.append(supervisor)
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + number * 0.0002)
                assert sum(1 for _ in supervisor.run([b""] * 3000)) == 3000
                assert supervisor.cancelled
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("codec", [None, pickle])
@pytest.mark.parametrize("workers", [0, 1])
def test_any_text_arrives_as_it_is(workers, codec):
    """Also text that is not UTF-8: of names of files, of pieces of them put together, of JSON."""
    texts = ["é", "caf\udce9", "\udcc3\udca9", "\ud83d", "a\udcff\ud800"]
    with Supervisor([jobs.same, jobs.return_half_a_pair], workers=workers, codec=codec) as supervisor:
        assert list(supervisor.map(jobs.same, texts)) == texts
        assert list(supervisor.map(jobs.same, [b"a", *texts])) == [b"a", *texts]
        assert list(supervisor.map(jobs.return_half_a_pair, [b""])) == ["\ud800"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_workers_cannot_find_by_name_is_one_error_with_a_remedy(method):
    with pytest.raises(TypeError, match=r"<lambda>.*at the top level of a module, or name start_method='fork'"):
        Supervisor([lambda payload: payload], start_method=method)


def test_a_signal_handler_inside_a_wait_cannot_wait_itself_and_is_told_so(tmp_path):
    gate = str(tmp_path / "gate")
    told = []

    def intrude(number, frame):
        if frame.f_code is not shmqueue.WorkerPool.wait.__code__:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        with pytest.raises(RuntimeError, match="in the middle of a step, which a signal handler cannot wait for"):
            list(supervisor.results(timeout=0.1))
        told.append(number)
        pathlib.Path(gate).touch()

    before = signal.signal(signal.SIGALRM, intrude)
    try:
        with Supervisor([jobs.wait_for_file], workers=1) as supervisor:
            supervisor.submit(jobs.wait_for_file, gate)
            results = supervisor.run([gate])
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert [result.status for result in (*results, *supervisor.results())] == ["ok"] * 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert told == [signal.SIGALRM]


@pytest.mark.command_line
def test_a_signal_handler_may_wake_a_supervisor_that_is_closed():
    with start([jobs.echo]) as supervisor:
        pass
    supervisor.wake()
    with pytest.raises(RuntimeError, match="closed"):
        supervisor.snapshot()


def test_two_signal_handlers_may_come_at_once():
    """The second one does what the first was about to do."""

    class Emptied(collections.deque):
        def __bool__(self):
            self.clear()
            return True

    with start([jobs.echo]) as supervisor:
        supervisor._engine._requests = Emptied()
        supervisor.cancel()


def test_an_iterable_that_raised_keeps_no_supervisor():
    def broken():
        yield b"a"
        raise ZeroDivisionError

    gc.disable()
    try:
        supervisor = start([jobs.echo])
        with contextlib.suppress(ZeroDivisionError):
            list(supervisor.run(broken()))
        reference = weakref.ref(supervisor)
        del supervisor
        assert reference() is None
    finally:
        gc.enable()


def test_a_task_error_keeps_no_supervisor():
    gc.disable()
    try:
        supervisor = start([jobs.blow_up])
        with contextlib.suppress(TaskError):
            list(supervisor.map(jobs.blow_up, [b"a"]))
        reference = weakref.ref(supervisor)
        del supervisor
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, 1])
def test_text_that_is_not_utf_8_arrives_as_the_annotation_says(workers):
    with Supervisor([jobs.echo], workers=workers) as supervisor:
        assert list(supervisor.map(jobs.echo, ["\udcc3\udca9", "a"])) == [b"\xc3\xa9", b"a"]


def test_text_of_a_codec_that_is_not_utf_8_is_a_failed_task():
    codec = types.SimpleNamespace(dumps=lambda value: "\udcc3\udca9", loads=str)
    with Supervisor([jobs.same], workers=1, codec=codec, start_method="fork") as supervisor:
        (result,) = supervisor.run([{1: 2}])
        assert (result.status, "surrogates not allowed" in result.error) == ("failed", True)


# What cannot be shown.


def refuse(payload):
    raise ValueError("no")


class Nameless:
    @property
    def __name__(self):
        raise ValueError("no name")


@pytest.mark.promise("G1")
@pytest.mark.timeout(HANG)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("payload", [10**5000, [10**5000], {"a": 10**5000}], ids=["int", "list", "dict"])
def test_a_payload_that_has_no_text(request, workers, payload):
    """Python does not make text of such a number, unless a command line has told it to in this process."""
    if hasattr(sys, "set_int_max_str_digits"):
        request.addfinalizer(functools.partial(sys.set_int_max_str_digits, sys.get_int_max_str_digits()))
        sys.set_int_max_str_digits(4300)
    with Supervisor([refuse], workers=workers) as supervisor:
        assert [result.error for result in supervisor.run([payload, 1])] == ["ValueError: no"] * 2
        assert len(supervisor.summary()["failures"]) == 2
    around = ".*" if sys.version_info >= (3, 13, 6) else ""  # the container has a text there
    with pytest.raises(TaskError, match=f"no\npayload: {around}<"):
        parallel_map(refuse, [payload], workers=workers)
    with Supervisor([refuse, jobs.echo], workers=workers) as supervisor:
        assert sorted(result.status for result in supervisor.run([payload, (jobs.echo, b"a")])) == ["failed", "ok"]


@pytest.mark.timeout(HANG)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_while_items_are_sorted_out_ends_the_run(workers):
    """The tasks for which there is no outcome do not keep the reader waiting."""
    with Supervisor([refuse, jobs.echo], workers=workers) as supervisor:
        results = supervisor.run([(Nameless(), 1), (jobs.echo, b"a")])
        with pytest.raises(RuntimeError, match="ended early: ValueError: no name"):
            list(results)


@pytest.mark.timeout(HANG)
@pytest.mark.parametrize("take", range(5))
def test_a_block_is_left_by_an_error_while_another_thread_closes(take):
    """The error is the program's own. The other thread is told, or has closed it."""
    told = []

    def close():
        try:
            supervisor.close()
        except RuntimeError as error:
            told.append(error)

    supervisor = Supervisor([jobs.sleep_a_little], workers=2)
    for _ in range(40):
        supervisor.submit(jobs.sleep_a_little, b"")
    thread = threading.Thread(target=close)

    def leave():
        with supervisor:
            thread.start()
            time.sleep(0.02 * take)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        leave()
    thread.join()
    assert all("Executor" in str(error) or "closed" in str(error) for error in told)
    assert segments_of([os.getpid()]) == []
