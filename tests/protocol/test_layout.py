"""The bytes of the segment: fields, lines, slots and the ring."""

import array
import collections
import ctypes
import mmap
import os
import stat
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmqueue
from shmqueue import QueueHeader, SharedTaskQueue, TaskSlot128, WorkerStatus
from tests import jobs

LINE = 128
SLOT_SIZES = (64, 72, 128, 136, 256, 264, 272, 1024, 65536)


@pytest.fixture
def make_queue():
    """Makes queues, and removes them."""
    made = []

    def make(num_slots=16, slot_size=128, num_workers=2, batch=4, strategy=SharedTaskQueue):
        made.append(strategy.create(num_slots, slot_size, num_workers, batch))
        return made[-1]

    yield make
    for queue in made:
        queue.close()
        shmqueue.remove_segment(queue.segment.path)


def encoded(payloads, first_id=1, fn_id=1):
    tsk_ids, fn_ids = range(first_id, first_id + len(payloads)), array.array("I", [fn_id] * len(payloads))
    return shmqueue.Tasks(None, tsk_ids, fn_ids, payloads, payloads, fn_ids)


def packed(queue, payloads, **ids):
    tasks = encoded(payloads, **ids)
    assert queue.ring.pack(tasks)
    return tasks


def write(queue, index, payloads, **ids):
    queue._write([(index, len(payloads))], packed(queue, payloads, **ids))


def offsets(structure):
    return {name: getattr(structure, name).offset for name, *_ in structure._fields_}


def test_task_slot_128_has_its_three_fields():
    assert ctypes.sizeof(TaskSlot128) == 128
    assert offsets(TaskSlot128) == {"tsk_id": 0, "fn_id": 4, "payload": 8}
    types = dict(TaskSlot128._fields_)
    assert (types["tsk_id"], types["fn_id"]) == (ctypes.c_uint32, ctypes.c_uint32)
    assert types["payload"]._type_ is ctypes.c_uint8
    assert types["payload"]._length_ == 120


@pytest.mark.parametrize("size", SLOT_SIZES)
def test_other_slot_sizes_have_the_same_fields(size):
    slot = shmqueue.task_slot(size)
    assert ctypes.sizeof(slot) == size
    assert offsets(slot) == offsets(TaskSlot128)
    assert slot.payload.size == size - 8


def test_every_shared_word_has_a_line_to_itself():
    words = [name for name, kind in QueueHeader._fields_ if kind is shmqueue.Word]
    assert {"pushed", "claimed", "dirty", "asleep"} <= set(words)
    places = [getattr(QueueHeader, name).offset for name in words]
    assert [place % LINE for place in places] == [0] * len(places)
    assert len({0, *(place // LINE for place in places)}) == len(places) + 1, "apart from each other and the constants"
    assert ctypes.sizeof(QueueHeader) % LINE == 0


def test_words_of_worker_and_supervisor_lie_on_different_lines():
    lines = {name: offset // LINE for name, offset in offsets(WorkerStatus).items()}
    workers = {lines[name] for name in ("claims", "published", "asleep", "limit")}
    supervisors = {lines[name] for name in ("harvested", "leave", "pid")}
    assert workers.isdisjoint(supervisors)
    assert lines["note"] not in workers | supervisors
    assert ctypes.sizeof(WorkerStatus) % LINE == 0


@pytest.mark.parametrize("structure", [QueueHeader, WorkerStatus])
def test_every_64_bit_word_is_aligned(structure):
    for name, kind in structure._fields_:
        if kind in (ctypes.c_uint64, shmqueue.Word):
            assert getattr(structure, name).offset % 8 == 0, name


@pytest.mark.promise("L34")
def test_words_that_others_read_without_the_lock_have_nothing_in_their_upper_half():
    """A 32-bit Python stores a word in two steps, and a worker may be killed or stopped between them."""
    values = [b"x", b"", "text", 5, None, b"y" * 20_000, "z" * 3_000_000]
    with shmqueue.Supervisor([jobs.echo_any], workers=1, batch=len(values)) as supervisor:
        assert list(supervisor.map(jobs.echo_any, 4 * values)) == 4 * values
        queue = supervisor._queue
        words = [shmqueue.PUSHED, shmqueue.CLAIMED, shmqueue.DIRTY, shmqueue.SUPERVISOR_ASLEEP]
        own = (shmqueue.CLAIMS, shmqueue.PUBLISHED, shmqueue.ASLEEP, shmqueue.LIMIT, shmqueue.HARVESTED)
        words += [queue.status[0] + word for word in own]
        words += [word for half in queue.halves(0) for word in (half.first, half.end)]
        ends = [end for half in queue.halves(0) for end in half.ends]
        assert any(end & shmqueue.RECORD for end in ends)
        assert max(ends + [queue.words[word] for word in words]) < 1 << 32


@pytest.mark.parametrize("slot_size", SLOT_SIZES)
@pytest.mark.parametrize(("num_slots", "workers", "batch"), [(2, 1, 1), (3, 3, 3), (17, 5, 7), (16384, 64, 128)])
def test_every_part_of_the_segment_is_aligned(num_slots, slot_size, workers, batch):
    heap = 8 * mmap.PAGESIZE
    log = 20_001
    layout = shmqueue.segment_layout(num_slots, slot_size, workers, batch, 0, log, heap)
    half = shmqueue.batch_half(slot_size, batch, log)
    lines = (layout.status.offset, layout.local.offset, ctypes.sizeof(half), half.lane.offset)
    assert [line % LINE for line in lines] == [0] * len(lines)
    starts = (half.ends.offset, half.stamps.offset, half.log.offset, layout.ring.offset)
    assert [start % 8 for start in starts] == [0] * len(starts)
    assert layout.local.size == workers * 2 * ctypes.sizeof(half)
    assert half.log.size == log
    assert layout.ring.size == num_slots * slot_size
    assert layout.heap.offset % mmap.PAGESIZE == 0
    assert ctypes.sizeof(layout) == layout.heap.offset + heap


def test_the_segment_says_what_it_is(make_queue):
    queue = make_queue(num_slots=17, slot_size=136, num_workers=3, batch=5)
    path = f"/dev/shm/{queue.name}"
    with open(path, "rb") as file:
        header = QueueHeader.from_buffer_copy(file.read(ctypes.sizeof(QueueHeader)))
    sizes = (header.num_slots, header.slot_size, header.num_workers, header.batch)
    assert (header.magic, header.version) == (shmqueue.MAGIC, shmqueue.LAYOUT_VERSION)
    assert sizes == (17, 136, 3, 5)
    with open("/proc/self/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19])
    assert (header.owner_pid, header.owner_start) == (os.getpid(), started)
    assert queue.name.startswith(f"shmq-{os.getpid()}-")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_segment_that_is_absent_foreign_or_cut_off_is_refused(make_queue):
    with pytest.raises(FileNotFoundError):
        SharedTaskQueue.attach(f"shmq-{os.getpid()}-absent", None)
    for spoil in ("version", "num_slots"):
        queue = make_queue()
        place = getattr(QueueHeader, spoil).offset
        window = queue.segment.window(place, 4, "I")
        window[0] += 1
        with pytest.raises(RuntimeError, match=queue.name):
            SharedTaskQueue(queue.segment, None)


def test_the_length_is_kept_where_the_docstring_says(make_queue):
    for slot_size, length in ((128, b"\3"), (264, b"\3"), (272, (3).to_bytes(2, sys.byteorder))):
        queue = make_queue(slot_size=slot_size)
        write(queue, 0, [b"x" * 40])
        write(queue, 0, [b"abc"], first_id=7, fn_id=9)
        head = (7).to_bytes(4, sys.byteorder) + (9).to_bytes(4, sys.byteorder)
        slot = bytes(queue.ring.bytes[:slot_size])
        assert slot == (head + length + b"abc").ljust(slot_size, b"\0"), "and nothing is left of what was there"


@pytest.mark.parametrize("slot_size", SLOT_SIZES)
def test_slots_give_back_what_was_written(make_queue, slot_size):
    queue = make_queue(num_slots=200, slot_size=slot_size)
    ring = queue.ring
    assert ring.capacity == slot_size - (9 if slot_size <= 264 else 10)
    longest = min(ring.capacity, 300)

    @given(st.integers(0, 60), st.lists(st.binary(max_size=longest), min_size=1, max_size=140))
    def check(index, payloads):
        write(queue, index, payloads, first_id=2**32 - 200, fn_id=shmqueue.FN_ID)
        assert ring.payloads(index, len(payloads)) == payloads
        assert list(ring.column("I", 1, index, len(payloads))) == [shmqueue.FN_ID] * len(payloads)
        assert [ring.tsk_id(index + i) for i in range(len(payloads))] == list(encoded(payloads, 2**32 - 200).tsk_ids)

    check()


@pytest.mark.parametrize("slot_size", SLOT_SIZES)
def test_slots_hold_as_much_as_they_say(make_queue, slot_size):
    queue = make_queue(slot_size=slot_size)
    for payload in (b"", b"\0", b"\0" * queue.ring.capacity, b"\xff" * queue.ring.capacity):
        write(queue, 3, [payload, b"next"])
        assert queue.ring.payloads(3, 2) == [payload, b"next"]
    for payload in (b"x" * (queue.ring.capacity + 1), b"x" * 70_000):
        assert not queue.ring.pack(encoded([b"short", payload]))


@pytest.mark.parametrize("stamped", [(), (0,), (3, 4), (0, 1, 2, 3, 4)])
def test_tasks_between_two_stamps_share_the_time_between_them(make_queue, stamped):
    half = make_queue(batch=5).half(0, 0)
    half.stamps[0] = 10.0
    for task in {*stamped, 4}:  # the last one has a stamp in any batch that was left
        half.stamps[task + 1] = 11.0 + task
    seconds = half.seconds(0, 5)
    each = [seconds] * 5 if isinstance(seconds, float) else seconds
    assert sum(each) == pytest.approx(5.0)
    assert all(each[task] == pytest.approx(1.0) for task in range(5))
    assert half.seconds(4, 5) == pytest.approx(1.0 if 3 in stamped else 0.0)


def test_a_half_tells_what_is_finished(make_queue):
    half = make_queue(batch=5).half(1, 1)
    assert half.done(5) == 0
    half.ends[0] = half.ends[1] = 1
    assert (half.done(5), half.done(1), list(half.ends[:3])) == (2, 1, [1, 1, 0])
    half.ends[2] = 8
    assert half.done(5) == 3
    half.clear(3)
    assert list(half.ends) == [0] * 5


@given(st.integers(0, 2**64), st.integers(0, 50), st.integers(1, 50))
def test_ring_spans_cover_positions_in_order_and_never_wrap(first, count, size):
    count = min(count, size)
    parts = shmqueue.ring_spans(first, count, size)
    assert all(index >= 0 and index + length <= size for index, length in parts)
    assert len(parts) <= 2
    covered = [index + i for index, length in parts for i in range(length)]
    assert covered == [(first + i) % size for i in range(count)]


@pytest.mark.parametrize("strategy", [SharedTaskQueue, jobs.Starts32, jobs.Starts63])
@pytest.mark.parametrize(("num_slots", "batch"), [(2, 1), (3, 3), (16, 5)])
def test_the_ring_is_a_queue_whatever_the_order_of_pushes_and_claims(make_queue, strategy, num_slots, batch):
    """Against a deque, with two workers that claim and finish as they please."""
    queue = make_queue(num_slots=num_slots, num_workers=2, batch=batch, strategy=strategy)
    harvested = [0, 0]
    model, state = collections.deque(), {"pushed": getattr(strategy, "start", 0), "next": 0}
    step = st.tuples(st.sampled_from(["push", "claim 0", "claim 1"]), st.integers(1, num_slots + 2))

    def push(limit):
        count = min(limit, queue.room())
        assert count <= num_slots - len(model)
        payloads = [b"%d" % (state["next"] + i) for i in range(count)]
        state["next"] += count
        if count:
            assert queue.push(packed(queue, payloads)) == [(state["pushed"], count)]
        state["pushed"] += count
        model.extend(payloads)

    def claim(worker, limit):
        claimed = queue.claim(worker, limit)
        if claimed is None:
            assert not model, "a worker sleeps although there is work"
            return
        first, count = claimed
        assert 1 <= count <= min(limit, batch)
        assert first == state["pushed"] - len(model)
        half = queue.half(worker, queue.words[queue.status[worker] + shmqueue.CLAIMS])
        assert half.lane.payloads(0, count) == [model.popleft() for _ in range(count)]
        harvested[worker] += 1  # what is claimed counts as finished and read at once
        queue.harvest(harvested)

    @given(st.lists(step, max_size=40))
    def check(steps):
        for what, number in steps:
            push(number) if what == "push" else claim(int(what[-1]), number)
            assert queue.backlog() == len(model)
        queue.harvest(harvested)
        assert queue.room() == num_slots - len(model)

    check()


@pytest.mark.parametrize(("word", "value"), [("PUSHED", 2), ("PUSHED", 4), ("CLAIMED", 0), ("CLAIMED", 4)])
def test_counters_that_cannot_be_right_are_an_error(make_queue, word, value):
    queue = make_queue()
    queue.push(packed(queue, [b"x"] * 3))
    assert queue.claim(0, 1) == (0, 1)
    queue.harvest([0, 0])
    queue.words[getattr(shmqueue, word)] = value
    with pytest.raises(shmqueue.SpoiledSegmentError, match="the counters say"):
        queue.harvest([0, 0])


def test_a_worker_claims_no_more_than_its_share(make_queue):
    queue = make_queue(num_slots=64, num_workers=4, batch=32)
    queue.push(packed(queue, [b"x"] * 64))
    assert queue.claim(0, 32) == (0, 8), "64 tasks over twice 4 workers"
    assert queue.claim(1, 3) == (8, 3)


def test_a_worker_that_finds_nothing_is_known_to_sleep_until_it_claims(make_queue):
    queue = make_queue()
    assert queue.sleepers() == []
    assert queue.claim(1, 4) is None
    first = queue.sleepers()
    assert [worker for worker, _ in first] == [1]
    assert queue.claim(1, 4) is None
    assert queue.sleepers() != first, "each sleep has its own number"
    queue.push(packed(queue, [b"x"]))
    assert queue.claim(1, 4) == (0, 1)
    assert queue.sleepers() == []


def test_every_view_is_released_and_the_files_beside_go_too():
    queue = SharedTaskQueue.create(4, 128, 1, 2)
    path = queue.segment.path
    shmqueue.write_file(queue.segment.beside("p1"), b"beside")
    views = (queue.words, queue.ring.bytes)
    queue.close()
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view[0]
    shmqueue.remove_segment(queue.segment.path)
    assert [name for name in os.listdir("/dev/shm") if name.startswith(os.path.basename(path))] == []


def test_two_batches_of_a_worker_are_the_most_that_wait(make_queue):
    queue = make_queue(num_slots=16, num_workers=1, batch=1)
    queue.push(packed(queue, [b"x"] * 4))
    assert [queue.claim(0, 1) for _ in range(3)] == [(0, 1), (1, 1), None]
    assert queue.wakeable() == [], "it could not claim if it were awake"
    assert queue.harvest([0]) == [2]
    queue.harvest([1])
    assert [worker for worker, _ in queue.wakeable()] == [0]
    assert queue.claim(0, 1) == (2, 1)


def test_a_drained_ring_gives_back_what_nobody_has_claimed_and_goes_on(make_queue):
    queue = make_queue(num_slots=8)
    queue.push(packed(queue, [b"x"] * 6))
    assert queue.claim(0, 2) == (0, 2)
    assert (queue.drain(), queue.drain(), queue.room()) == ([(2, 4)], [], 8)
    assert queue.claim(1, 2) is None
    assert queue.push(packed(queue, [b"y"])) == [(6, 1)]
    assert queue.claim(1, 2) == (6, 1)


def test_a_worker_that_is_to_leave_claims_nothing(make_queue):
    queue = make_queue()
    queue.push(packed(queue, [b"x"]))
    queue.tell_to_leave(0)
    assert (queue.claim(0, 1), queue.claim(1, 1)) == (None, (0, 1))


class Payloads:
    """A heap, and the payloads that are in it, by their pages."""

    def __init__(self, queue):
        self.heap, self.bytes, self.blocks = shmqueue.Heap(queue), queue.heap, {}

    def put(self, size):
        payload = bytes([len(self.blocks) % 251]) * size
        pages = self.heap.put([payload], size)
        if pages is not None:
            self.blocks[pages.start] = (payload, pages)
        return pages is not None

    def free(self, which):
        first = sorted(self.blocks)[which % len(self.blocks)]
        self.heap.free(self.blocks.pop(first)[1])

    def check(self):
        for first, (payload, _) in self.blocks.items():
            offset = first * mmap.PAGESIZE
            assert bytes(self.bytes[offset : offset + len(payload)]) == payload


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5 * mmap.PAGESIZE)), max_size=40))
def test_blocks_of_the_heap_never_overlap_and_come_back(steps):
    queue = SharedTaskQueue.create(4, 128, 1, 2)
    try:
        queue.heap = queue.heap[: 16 * mmap.PAGESIZE]
        payloads = Payloads(queue)
        for put, size in steps:
            if put or not payloads.blocks:
                payloads.put(size)
            else:
                payloads.free(size)
            payloads.check()
        while payloads.blocks:
            payloads.free(0)
        assert payloads.heap.used == 0
        assert payloads.put(16 * mmap.PAGESIZE), "and all of it can be had again"
        payloads = None
    finally:
        queue.heap.release()
        queue.close()
        shmqueue.remove_segment(queue.segment.path)


@pytest.mark.promise("G2a")
@pytest.mark.parametrize("order", [range(8), (0, 2, 1, 3, 4, 6, 5, 7), (0, 1, 1, 3, 4, 5, 6, 7), range(7, -1, -1)])
def test_payloads_in_the_heap_reach_their_tasks_in_any_order(make_queue, order):
    """What was given back is pushed behind what was behind it. The first and the last one may be where they were."""
    queue = make_queue(num_workers=1, batch=8)
    payloads = [b"%03d" % number * 50 for number in range(8)]
    (size,) = set(map(len, payloads))
    offset = shmqueue.Heap(queue).put(payloads, 8 * size).start * mmap.PAGESIZE
    tasks = encoded([b""] * 8)
    for tsk_id, number in enumerate(order, 1):
        task = encoded([b""], tsk_id)
        queue.ring.refer(task, array.array("Q", [offset + size * number, offset + size * (number + 1)]))
        tasks.slots += task.slots
    queue.push(tasks)
    seen = []
    options = types.SimpleNamespace(functions={1: seen.append}, codec=None, batch=None, max_tasks=None, log=None)
    worker = shmqueue.Worker(queue, 0, options, -1, -1)
    while claim := queue.claim(0, 8):
        worker.run(*claim)
        queue.harvest([queue.words[queue.status[0] + shmqueue.CLAIMS]])
    assert seen == [payloads[number] for number in order]
