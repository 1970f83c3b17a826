"""What travels: plain data, text and bytes-like payloads, what annotations ask for, codecs; and what a result says of
an exception and of the time when its task began.
"""

import array
import collections
import csv
import ctypes
import enum
import functools
import itertools
import json
import marshal
import math
import multiprocessing
import pathlib
import pickle
import random
import sqlite3
import sys
import time
import traceback
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmqueue
from tests import jobs


def only(function, payload=b"", workers=1, **options):
    """The result of one task."""
    with shmqueue.Supervisor([function], workers=workers, **options) as supervisor:
        (result,) = supervisor.run([payload])
    return result


def sent(value, codec=None):
    """What becomes of a value on its way."""
    codec = codec and shmqueue.Codec(codec)
    return shmqueue.decode(*shmqueue.encode(value, codec, ()), codec)


# Plain data.

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.complex_numbers(allow_nan=False),
    st.binary(), st.text(), st.integers(-(2**200), 2**200),
)  # fmt: skip
KEYS = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
PLAIN = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(KEYS, inner), st.sets(KEYS), st.frozensets(KEYS)
    ),
    max_leaves=25,
)


def shape(value):
    """A value with the types of everything in it."""
    kind = type(value)
    if kind is dict:
        return kind, [(shape(key), shape(part)) for key, part in value.items()]
    if kind in (set, frozenset):
        return kind, sorted(map(repr, map(shape, value)))
    return kind, [shape(part) for part in value] if kind in (list, tuple) else repr(value)


@given(PLAIN)
def test_plain_data_arrives_as_it_is(value):
    assert shape(sent(value)) == shape(value)


@pytest.mark.once
def test_plain_data_as_payloads_and_values_of_a_run():
    seen = []

    @settings(max_examples=300)
    @given(PLAIN)
    def collect(value):
        seen.append(value)

    collect()
    values = [*seen, [b"x" * 5000] * 3, {"long": "ä" * 500_000}, list(range(100_000))]
    with shmqueue.Supervisor([jobs.echo_any], workers=2) as supervisor:
        back = list(supervisor.map(jobs.echo_any, values))
        assert list(map(shape, back)) == list(map(shape, values))
        for result in supervisor.run(values):
            assert result.payload is values[result.tsk_id - len(values) - 1]
            assert shape(result.value) == shape(result.payload)


def test_none_is_a_payload_and_a_value():
    results = {}
    with shmqueue.Supervisor([jobs.kind, jobs.echo_any], workers=1) as supervisor:
        for result in supervisor.run(itertools.product([jobs.kind, jobs.echo_any], [None, b""])):
            results[result.function, result.payload] = result.value
    assert results == {("kind", None): "NoneType", ("kind", b""): "bytes", ("echo_any", None): None,
                       ("echo_any", b""): b""}  # fmt: skip


class Number(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


class Hostile:
    def __repr__(self):
        raise RuntimeError("no text")


class Chunk(bytes):
    pass


Pair = collections.namedtuple("Pair", "a b")
WRONG = [Number.ONE, Text("a"), Pair(1, 2), pathlib.Path("a"), object(), ..., StopIteration, len, range(3), Hostile(),
         collections.OrderedDict(), collections.defaultdict(), ctypes.c_int(3), int,
         compile("1", "", "eval")]  # fmt: skip


@pytest.mark.promise("L6")
@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, (x,)], lambda x: {1: {"a": [x]}}])
def test_what_is_not_plain_data_is_refused_at_any_depth(value, wrap):
    with pytest.raises((TypeError, ValueError), match="codec=") as caught:
        sent(wrap(value))
    assert type(value).__name__ in str(caught.value)


@pytest.mark.parametrize("value", [bytearray(b"a"), memoryview(b"a"), array.array("I", [1]), (ctypes.c_int * 2)()])
def test_bytes_like_objects_within_others_are_refused(value):
    with pytest.raises(TypeError, match="codec="):
        sent([value])


@pytest.mark.promise("L6")
@pytest.mark.parametrize("value", [Number.ONE, [Pair(1, 2)], pathlib.Path("a")])
def test_a_payload_or_value_that_is_not_plain_fails_alone(value):
    name = type(value[0] if isinstance(value, list) else value).__name__
    give = functools.partial(jobs.give_by_number, [5, value, 7])
    with shmqueue.Supervisor({1: jobs.echo_any, 2: give}, workers=1) as supervisor:
        tasks = [(jobs.echo_any, 1), (jobs.echo_any, value), (give, 0), (give, 1), (give, 2), (jobs.echo_any, 2)]
        results = sorted(supervisor.run(tasks), key=lambda result: result.tsk_id)
    assert [result.value for result in results] == [1, None, 5, None, 7, 2]
    for result, attempts in ((results[1], 0), (results[3], 1)):
        assert (result.status, result.attempts) == ("failed", attempts)
        assert name in result.error
        assert "codec=" in result.error


@pytest.mark.promise("L6")
@pytest.mark.parametrize(
    "wrong", [Number.ONE, {"a": [Pair(1, 2)]}, object(), Chunk(b"a"), "numpy"], ids=lambda wrong: type(wrong).__name__
)
def test_one_payload_that_is_not_plain_fails_alone_in_its_block(wrong):
    if wrong == "numpy":
        wrong = [pytest.importorskip("numpy").float64(1)]
    payloads = [(number, ["a"], {"b": 1.5}) for number in range(3000)]
    payloads[1700] = wrong
    with shmqueue.Supervisor([jobs.echo_any], workers=2) as supervisor:
        results = sorted(supervisor.run((jobs.echo_any, payload) for payload in payloads))
    assert [result.tsk_id for result in results if result.status != "ok"] == [1701]
    assert [result.value for result in results if result.status == "ok"] == payloads[:1700] + payloads[1701:]
    assert "codec=" in results[1700].error


@pytest.mark.promise("L6")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("value", [shmqueue.Output(b"a", b"b"), shmqueue.Failure("a")], ids=["output", "failure"])
def test_what_stands_for_a_value_of_our_own_is_no_payload(value, workers):
    """What a shell command has returned, for example: it is a subclass of bytes."""
    result = only(jobs.echo_any, value, workers)
    assert (result.status, result.attempts) == ("failed", 0)
    assert f"shmqueue.{type(value).__name__} is not plain data" in result.error
    assert only(repr, value, workers, codec=pickle).value == repr(value)


@pytest.mark.parametrize("container", [list, dict])
def test_what_contains_itself_travels(container):
    value = [1] if container is list else {0: 1}
    if container is list:
        value.append((value, {1: value}))
    else:
        value[1] = [value, (value,)]
    with shmqueue.Supervisor([jobs.echo_any], workers=1) as supervisor:
        first, second = supervisor.map(jobs.echo_any, [value] * 2)
    assert type(first) is container
    assert first is not second
    assert first[1][0] is first
    assert first[1][1][0 if container is dict else 1] is first


def test_what_is_equal_to_plain_data_is_refused_in_a_block_with_it():
    payloads = [{1: 2}, {Number.ONE: 2}, {1: Number.ONE}, (1, 2), (Number.ONE, 2), Pair(1, 2), 1, Number.ONE]
    for kinds in (payloads, payloads[:3], payloads[3:5], payloads[3:6], payloads[6:]):
        with shmqueue.Supervisor([jobs.echo_any], workers=1) as supervisor:
            results = sorted(supervisor.run((jobs.echo_any, payload) for payload in kinds))
        wrong = [any(kind in repr(payload) for kind in ("Number", "Pair")) for payload in kinds]
        assert [result.status == "failed" for result in results] == wrong


def test_objects_that_are_shared_within_a_payload_or_value_stay_so():
    with shmqueue.Supervisor([jobs.echo_any], workers=1) as supervisor:
        for number, back in enumerate(supervisor.map(jobs.echo_any, [[[number]] * 2 for number in range(300)])):
            assert back == [[number]] * 2
            assert back[0] is back[1]


def test_a_container_that_changes_while_it_is_encoded_fails_alone(monkeypatch):
    """Another thread can change what a function has returned."""

    def dumps(value, *version):
        if value == {1: 2}:
            raise RuntimeError("dictionary changed size during iteration")
        return marshal.dumps(value, *version)

    give = functools.partial(jobs.give_by_number, [(1, 2), {1: 2}, {3: 4}] * 10)
    monkeypatch.setattr(shmqueue, "marshal", types.SimpleNamespace(dumps=dumps, loads=marshal.loads))
    with shmqueue.Supervisor({1: give}, workers=1, batch=6, start_method="fork") as supervisor:
        results = sorted(supervisor.run(range(30)))
    assert [result.value for result in results] == [(1, 2), None, {3: 4}] * 10
    assert {(result.status, result.attempts) for result in results if result.value is None} == {("failed", 1)}
    assert {result.worker for result in results} == {0}


# Batches whose values are of one kind have no heads.

SAME_KIND = {
    "bytes": [b"%d" % number for number in range(200)],
    "text": [f"ä{number}" for number in range(200)],
    "half a pair": [f"\udc80{number}" for number in range(200)],
    "numbers": [[number, number * 0.5, 2**70, True, 3j][number % 5] for number in range(200)],
    "flat": [[(number, "a"), {"a": number}, {number}, [b"b", None]][number % 4] for number in range(200)],
    "nested": [{"a": [number, (number,)]} for number in range(200)],
    "plain of all kinds": [[(1, [2]), {"a": 1}, number, 1.5][number % 4] for number in range(200)],
    "with nothing among it": [[None, (number,), number, None][number % 4] for number in range(200)],
}


def halves(supervisor):
    """The kind and the number of records of each batch of worker 0 that is still there."""
    queue = supervisor._queue
    return [(half.log[0], sum(end >= shmqueue.RECORD for end in half.ends)) for half in queue.halves(0)]


@pytest.mark.parametrize("name", SAME_KIND)
def test_a_batch_of_one_kind_has_no_heads(name):
    values = SAME_KIND[name]
    with shmqueue.Supervisor([jobs.echo_any], workers=1, batch=20) as supervisor:
        for _ in range(2):
            assert list(map(shape, supervisor.map(jobs.echo_any, values))) == list(map(shape, values))
        kind = {"bytes": shmqueue.BYTES, "text": shmqueue.TEXT, "half a pair": shmqueue.TEXT}.get(name, shmqueue.CODED)
        assert halves(supervisor) == [(kind, 0)] * 2


def test_a_batch_of_one_kind_by_a_codec_has_no_heads():
    values = [Pair(number, [2]) for number in range(200)]
    with shmqueue.Supervisor([jobs.echo_any], workers=1, batch=20, codec=pickle) as supervisor:
        back = list(supervisor.map(jobs.echo_any, values))
        assert (back, {*map(type, back)}) == (values, {Pair})
        assert halves(supervisor) == [(shmqueue.CODED, 0)] * 2


@pytest.mark.parametrize("codec", [None, pickle])
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_kinds_that_change_within_batches_and_from_one_to_the_next(batch, codec):
    chance = random.Random(batch)  # noqa: S311
    choices = [
        b"x",
        b"",
        "t",
        "",
        "\udcff",
        None,
        5,
        (1, "a"),
        {"a": [1]},
        b"y" * 20_000,
        "z" * 20_000,
        jobs.Point(1, 2),
        ...,
    ]
    some = [chance.choices(choices[:-1], k=2) + [choices[-1]] * (number % 7 == 0) for number in range(40)]
    values = [value for part in some for value in chance.choices(part, k=chance.randrange(1, 60))]
    give = functools.partial(jobs.give_by_number, values)
    functools.update_wrapper(give, jobs.echo_point)  # whose annotation names a Structure
    del give.__wrapped__
    with shmqueue.Supervisor({1: give, 2: jobs.echo_point}, workers=2, batch=batch, codec=codec) as supervisor:
        results = sorted(supervisor.run((give, number) for number in range(len(values))))
    for value, result in zip(values, results):
        if value is ... and codec is None:
            assert (result.status, "ellipsis" in result.error) == ("failed", True)
        else:
            assert result.status == "ok", result.error
            assert type(result.value) is type(value)
            assert bytes(result.value) == bytes(value) if isinstance(value, jobs.Point) else result.value == value


def test_a_payload_that_is_spoiled_fails_alone_in_its_batch(monkeypatch):
    def spoil(values, kinds):
        return [b"?" if value == 7 else marshal.dumps(value) for value in values]

    with shmqueue.Supervisor([jobs.echo_any], workers=1, batch=20, start_method="fork") as supervisor:
        monkeypatch.setattr(shmqueue, "dump_block", spoil)
        results = sorted(supervisor.run(range(20)))
    assert [result.payload for result in results if result.status != "ok"] == [7]
    assert [result.value for result in results] == [value if value != 7 else None for value in range(20)]


@pytest.mark.promise("L23")
@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 6, 99, 2**63, 2**64 - 1])
@pytest.mark.parametrize("records", [False, True])
def test_any_kind_that_stands_in_a_half_is_checked(kind, records):
    reader = shmqueue.Lane.__new__(shmqueue.Lane)
    reader._ledger = types.SimpleNamespace(structures=[], codec=None)
    log = pickle.dumps(Hostile) * 2
    ends = array.array("Q", [1 + len(log) // 2, 1 + len(log)])
    outcomes = shmqueue.Outcomes(0, 2, ends, log=log, kind=kind)
    if kind > shmqueue.CODED:
        with pytest.raises(shmqueue.SpoiledSegmentError):
            reader._values(outcomes, records)
    else:
        values = reader._values(outcomes, records)
        assert len(values) == 2
        assert Hostile not in values


def test_each_object_is_looked_at_once():
    value = []
    for _ in range(200):  # 2 ** 200 ways to the innermost
        value = [value, value, {1: value}]
    back = sent(value)
    assert back[0] is back[1] is back[2][1]


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {1: x}, lambda x: [1, x, b"", [x]]])
def test_what_is_nested_deeply_is_an_error_and_no_recursion(wrap):
    value = "x"
    for _ in range(20_000):
        value = wrap(value)
    with pytest.raises(ValueError, match="deep"):
        sent(value)
    result = only(jobs.kind, value)
    assert (result.status, result.error.partition(":")[0]) == ("failed", "ValueError")


@pytest.mark.promise("L5", "L6")
def test_what_numpy_makes_is_refused_with_a_remedy_at_any_depth():
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(3, dtype="int16"), numpy.arange(6).reshape(2, 3).T, numpy.array([object()])]
    for value in (*arrays, numpy.float64(1), numpy.int64(1), numpy.bytes_(b"a")):
        for wrapped in (value, [value], {"a": (value,)}):
            with pytest.raises(TypeError, match=r"numpy.*codec="):
                sent(wrapped)
    with shmqueue.Supervisor([jobs.echo_any, jobs.return_array], workers=1) as supervisor:
        results = list(supervisor.run([(jobs.echo_any, arrays[0]), (jobs.return_array, b"")]))
    assert [result.status for result in results] == ["failed"] * 2
    assert all("numpy.ndarray" in result.error and "codec=" in result.error for result in results)
    with shmqueue.Supervisor([jobs.echo_any], workers=1, codec=pickle) as supervisor:
        (back,) = supervisor.map(jobs.echo_any, arrays[:1])
    assert back.tolist() == [0, 1, 2]


@pytest.mark.promise("L23")
def test_code_is_neither_sent_nor_read():
    data = marshal.dumps(compile("1", "", "eval"))
    if sys.version_info >= (3, 13):
        with pytest.raises(ValueError, match="code"):
            shmqueue.load_plain(data)


@pytest.mark.parametrize("output", [None, (b"", b"complaint"), (b"out\xff", b"")])
@pytest.mark.parametrize("error", ["ValueError: \udcff", ""])
def test_failures_and_output_arrive_as_they_are(error, output):
    output = output and shmqueue.Output(*output)
    failure = shmqueue.Failure(error, "Traceback\n", output)
    back = sent(failure)
    assert back == failure
    for value in (back.value, output and sent(output)):
        assert type(value) is type(output)
        assert output is None or value.errors == output.errors


# What a function is given.


@pytest.mark.promise("L5")
@pytest.mark.parametrize(
    ("function", "payload", "value"),
    [
        (jobs.kind, "ä", "str"),
        (jobs.kind, bytearray(b"a"), "bytes"),
        (jobs.kind, memoryview(b"ab")[::2], "bytes"),
        (jobs.kind, array.array("I", [1, 2]), "bytes"),
        (jobs.kind, (ctypes.c_int * 2)(), "bytes"),
        (jobs.kind, 5, "int"),
        (jobs.kind_of_bytes, 5, "int"),
        (jobs.kind_of_text, (1, 2), "tuple"),
        (jobs.kind_of_point_or_none, [1], "list"),
        (jobs.kind_of_either, b"a", "bytes"),
        (jobs.kind_of_either, "a", "str"),
        (jobs.kind_of_list, b"a", "bytes"),
        (jobs.kind_of_list, "a", "str"),
        (jobs.kind_of_list, ["a"], "list"),
        (jobs.echo_int, b" 12\r\n", 12),
        (jobs.echo_int, "-1_000", -1000),
        (jobs.echo_int, "12\N{NO-BREAK SPACE}".encode(), 12),
        (jobs.echo_int, 2**70, 2**70),
        (jobs.echo_int, 1.5, 1.5),
        (jobs.echo_int, None, None),
        (jobs.echo_float, b"1e3", 1000.0),
        (jobs.echo_float, "inf", math.inf),
        (jobs.echo_float, 3, 3),
        (jobs.echo_any, bytearray(b"abc"), b"abc"),
        (jobs.return_bytearray, b"", b"a"),
    ],
)
def test_what_a_function_is_given(function, payload, value):
    result = only(function, payload)
    assert (result.status, result.value, type(result.value)) == ("ok", value, type(value)), result.error
    assert result.payload is payload


@pytest.mark.parametrize("payload", [b"x", "1.5", b"", "\udcff"])
def test_what_is_no_number_is_a_failed_task(payload):
    result = only(jobs.echo_int, payload)
    assert (result.status, result.attempts, result.traceback) == ("failed", 1, None)
    assert "ValueError: invalid literal for int()" in result.error


def test_text_and_numbers_that_do_not_fit_their_slots():
    payloads = ["ä" * n for n in range(40, 160)] + [10**n for n in range(200, 400)] + [b"b" * 300, ["x" * 70_000]]
    with shmqueue.Supervisor([jobs.echo_any], workers=2, num_slots=16) as supervisor:
        assert list(supervisor.map(jobs.echo_any, payloads)) == payloads


def test_annotations_that_cannot_be_evaluated_count_as_absent():
    for function in (jobs.kind_of_lost, jobs.LazyAnnotations()):
        assert [only(function, payload).value for payload in (b"a", "a", 1)] == ["bytes", "str", "int"]


def test_without_workers_everything_is_the_same():
    tasks = [(jobs.kind, "a"), (jobs.echo_any, (1, {2})), (jobs.echo_int, "5"), (jobs.echo_any, None),
             (jobs.echo_any, ["x" * 1000]), (jobs.return_path, b""), (jobs.raise_chain, 3), (jobs.echo_int, b"x"),
             (jobs.echo, object()), (jobs.echo_any, bytearray(b"a"))]  # fmt: skip
    for function, payload in tasks:
        results = [only(function, payload, workers=workers) for workers in (0, 1)]
        assert [result[:6] for result in results] == [results[0][:6]] * 2
        assert results[0].traceback == results[1].traceback
        assert results[0].started == pytest.approx(results[1].started, abs=30)
    value = Pair(1, pathlib.Path("a"))
    assert only(jobs.echo_any, value, workers=0, codec=pickle).value == value


# Codecs.


class Words:
    """A codec whose `dumps` returns text. It gets its UTF-8 back."""

    @staticmethod
    def dumps(value):
        return ",".join(map(str, value))

    @staticmethod
    def loads(data):
        return ("loaded", *data.decode().split(","))


class Faulty:
    @staticmethod
    def dumps(value):
        if value == 1:
            raise KeyError("cannot dump")
        return b"" if value == 2 else 5 if value == 3 else pickle.dumps(value)

    loads = pickle.loads


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_codec_takes_what_is_neither_bytes_nor_text(method):
    values = [Pair(1, [2]), pathlib.Path("a"), Number.ONE, None, 5, b"b", "t", bytearray(b"q"), {1, 2}]
    with shmqueue.Supervisor([jobs.echo_any], workers=1, codec=pickle, start_method=method) as supervisor:
        back = list(supervisor.map(jobs.echo_any, values))
        assert list(map(type, back)) == list(map(type, values))
        assert back == values


@pytest.mark.promise("L6")
def test_the_usual_codecs():
    for codec, value in ((json, {"a": [1, None]}), (marshal, (1, {2: b"b"}))):
        with shmqueue.Supervisor([jobs.echo_any], workers=1, codec=codec) as supervisor:
            assert list(supervisor.map(jobs.echo_any, [value, b"b", "t"])) == [value, b"b", "t"]


def test_a_codec_that_makes_text():
    assert sent((1, "ä"), Words) == ("loaded", "1", "ä")
    result = only(jobs.echo_any, (1, "ä"), codec=Words)
    assert result.value == ("loaded", "loaded", "1", "ä")


def test_a_codec_that_fails_fails_the_task():
    with shmqueue.Supervisor([jobs.echo_any, jobs.echo_int], workers=1, codec=Faulty) as supervisor:
        tasks = [(jobs.echo_any, 1), (jobs.echo_any, 2), (jobs.echo_any, 3), (jobs.echo_int, "1"), (jobs.echo_int, "2"),
                 (jobs.echo_any, 4)]  # fmt: skip
        results = sorted(supervisor.run(tasks), key=lambda result: result.tsk_id)
    assert [result.status for result in results] == ["failed"] * 5 + ["ok"]
    assert [result.attempts for result in results] == [0, 1, 0, 1, 1, 1]
    assert "cannot dump" in results[0].error
    assert "EOFError" in results[1].error  # in the worker
    assert "bytes-like" in results[2].error
    assert "cannot dump" in results[3].error
    assert "EOFError" in results[4].error  # where it was read


@pytest.mark.parametrize("batch", [None, 1])
def test_a_codec_that_fails_behind_values_of_the_same_type_fails_one_task(batch):
    with shmqueue.Supervisor([jobs.echo_int], workers=1, codec=Faulty, batch=batch) as supervisor:
        results = sorted(supervisor.run([b"%d" % number for number in (4, 5, 1, 6, 2, 7)] * 20))
    assert [result.status for result in results] == ["ok", "ok", "failed", "ok", "failed", "ok"] * 20
    assert {result.error for result in results[2::6]} == {"KeyError: 'cannot dump'"}
    assert [result.value for result in results if result.status == "ok"] == [4, 5, 6, 7] * 20


class Streaming:
    """It takes the first of a stream. The number 2 makes an empty one, and 1 is read as one. All else is 3."""

    @staticmethod
    def dumps(value):
        return next(iter([marshal.dumps(value)][value == 2 :]))

    @staticmethod
    def loads(data):
        return next(iter([3][data == marshal.dumps(1) :]))


def test_a_codec_may_raise_stop_iteration():
    with shmqueue.Supervisor([jobs.echo_any, jobs.echo_int], workers=1, codec=Streaming) as supervisor:
        sent_here = sorted(supervisor.run([(jobs.echo_any, 2), (jobs.echo_any, 3)]))
        read_here = sorted(supervisor.run([(jobs.echo_int, "1"), (jobs.echo_int, "3")]))
    for failed, fine in (sent_here, read_here):
        assert (failed.status, failed.error) == ("failed", "StopIteration")
        assert (fine.status, fine.value) == ("ok", 3)


def test_a_value_that_cannot_be_loaded_here_is_a_failed_task():
    result = only(jobs.return_unknown_class, codec=pickle)
    assert (result.status, "Missing" in result.error) == ("failed", True)


@pytest.mark.parametrize("codec", [5, object(), "pickle", math])
def test_what_is_no_codec_is_refused(codec):
    with pytest.raises(TypeError, match=r"codec=.*dumps and loads"):
        shmqueue.Supervisor([jobs.echo], codec=codec)


@pytest.mark.promise("L23")
def test_nothing_is_pickled_without_a_codec(monkeypatch):
    with shmqueue.Supervisor([jobs.echo_any], workers=1, start_method="fork") as supervisor:
        for name in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
            monkeypatch.setattr(pickle, name, None)
        assert list(supervisor.map(jobs.echo_any, [{"a": 1}, "b", b"c"])) == [{"a": 1}, "b", b"c"]


# Tracebacks.


def test_a_traceback_is_what_the_interpreter_prints():
    result = only(jobs.raise_chain, 3)
    try:
        jobs.raise_chain(3)
    except ValueError as error:
        own = error.__traceback__.tb_next  # this function
        expected = "".join(traceback.TracebackException(type(error), error, own).format())
    assert result.traceback == expected
    assert result.error == "ValueError: chained"
    assert "The above exception was the direct cause" in expected
    assert shmqueue.__file__ not in expected


@pytest.mark.command_line
@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are new in Python 3.11")
def test_notes_and_groups_are_in_the_traceback():
    with shmqueue.Supervisor([jobs.raise_group], workers=1) as supervisor:
        (result,) = supervisor.run([b""])
    assert "ExceptionGroup: several (2 sub-exceptions)\n  | a note\n  | of two lines\n" in result.traceback
    line, *_ = shmqueue.summary_lines({**supervisor.summary(), "problem": "", "left_out": 0})
    assert line.endswith(" in raise_group)")


@pytest.mark.parametrize(
    ("function", "last"),
    [
        (jobs.raise_error, "KeyError: 'gone'"),
        (jobs.sys_exit, "SystemExit: 5"),
        (jobs.raise_interrupt, "KeyboardInterrupt"),
        (jobs.recurse, "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_the_last_line_of_a_traceback(function, last):
    trace = only(function).traceback
    assert trace.startswith("Traceback (most recent call last):\n  File ")
    assert trace.splitlines()[-1].startswith(last)
    assert f"in {function.__name__}" in trace


def test_exceptions_whose_texts_raise_have_a_traceback_all_the_same():
    for function in (jobs.raise_hostile, jobs.raise_hostile_notes):
        result = only(function)
        assert (result.status, isinstance(result.traceback, str)) == ("failed", True)
        assert "raise" in result.traceback


def test_a_long_traceback_loses_its_middle():
    trace = only(jobs.raise_long).traceback
    assert len(trace.encode()) <= 16 << 10
    assert trace.startswith("Traceback (most recent call last):\n")
    assert "bytes are left out" in trace


def test_many_long_tracebacks_that_do_not_fit_the_log():
    with shmqueue.Supervisor([jobs.raise_long], workers=2, batch=64) as supervisor:
        results = list(supervisor.run([b""] * 300))
    assert {result.status for result in results} == {"failed"}
    assert len({result.traceback for result in results}) == 1


def test_there_is_no_traceback_where_nothing_was_raised():
    assert only(jobs.quiet).traceback is None
    assert only(jobs.segfault).traceback is None
    assert only(jobs.hang, timeout=0.2).traceback is None
    assert only(bytes.decode, b"\xff").traceback is None  # no frame of Python's


@pytest.mark.command_line
def test_the_screen_names_the_function_of_a_task_with_text():
    with shmqueue.Supervisor([jobs.hang, jobs.echo], workers=1, timeout=1.0) as supervisor:
        names = set()
        supervisor.on_check = lambda: names.update(row.get("function") for row in supervisor.snapshot()["workers"])
        list(supervisor.run([(jobs.hang, "text")]))
    assert names >= {"hang"}
    assert names <= {"hang", None}


def test_a_task_error_shows_the_traceback_and_can_be_pickled():
    with pytest.raises(shmqueue.TaskError) as caught:
        shmqueue.parallel_map(jobs.raise_error, [b"b"], workers=1)
    first, *rest = str(caught.value).splitlines()
    assert first == "task 1 (raise_error) failed: KeyError: 'gone'"
    assert rest[0] == "payload: 'b'"
    assert "\n".join(rest[1:]).strip() == caught.value.result.traceback.strip()
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(again), again.result) == (str(caught.value), caught.value.result)


@pytest.mark.command_line
def test_the_summary_names_the_last_frame(cli, tmp_path):
    tasks = tmp_path / "tasks.txt"
    tasks.write_text("5\nx\n")
    module = tmp_path / "mine.py"
    module.write_text(
        "def inner(text):\n    return {'5': 5}[text]\n\n\ndef outer(line: str):\n    return inner(line)\n"
    )
    run = cli.run(str(tasks), "--call", f"{module}:outer", "-w", "1", "--screen", "off")
    assert "#2 line 2: outer 'x' failed: KeyError: 'x' (mine.py:2 in inner)" in run.out.splitlines()


# When a task began.


def test_started_is_the_time_of_the_call():
    before = time.time()
    with shmqueue.Supervisor([jobs.tell_time], workers=2) as supervisor:
        results = list(supervisor.run([0.0, 0.03] * 10 + [0.0] * 300))
    for result in results:
        assert before - 0.01 <= result.started <= time.time()
        assert result.value - 10 < result.started < result.value + 0.005  # a busy machine delays the call
    for worker in (0, 1):
        slow = sorted((r for r in results if r.payload and r.worker == worker), key=lambda result: result.started)
        for result, following in itertools.pairwise(slow):
            assert result.seconds >= 0.03
            assert result.started + result.seconds < following.started + 0.001


def test_the_traceback_and_the_time_are_those_of_the_last_attempt():
    before = time.time()
    result = only(jobs.raise_error, retries=1, retry_delay=0.2)
    assert result.attempts == 2
    assert result.traceback.splitlines()[-1] == "KeyError: 'gone'"
    assert result.started >= before + 0.2


def test_when_tasks_that_are_not_ok_began():
    before = time.time()
    failed = only(jobs.raise_error)
    crashed = only(jobs.segfault)
    late = only(jobs.hang, timeout=0.3)
    refused = only(jobs.echo, object())
    after = time.time()
    assert before <= failed.started <= crashed.started <= late.started <= after
    assert late.started + late.seconds <= after
    assert (refused.started, refused.attempts) == (0.0, 0)


def test_tasks_that_never_began_have_no_time():
    with shmqueue.Supervisor([jobs.sleep_a_little], workers=1) as supervisor:
        results = []
        for result in supervisor.run([b""] * 50):
            results.append(result)
            supervisor.cancel()
    assert {result.started for result in results if result.status == "cancelled"} == {0.0}


@pytest.mark.parametrize("nothing", [b"", ""])
def test_values_of_no_bytes_need_no_records_of_their_own(monkeypatch, nothing):
    """Each record costs ten times as much as a value that the loop appends."""
    records = multiprocessing.get_context("fork").Value("i", 0)
    put = shmqueue.Worker._put

    def count(*arguments):
        records.value += 1
        return put(*arguments)

    monkeypatch.setattr(shmqueue.Worker, "_put", count)
    with shmqueue.Supervisor([jobs.echo_any], workers=1, start_method="fork") as supervisor:
        assert list(supervisor.map(jobs.echo_any, [nothing] * 1000)) == [nothing] * 1000
    assert records.value < 100


# In results files.


@pytest.mark.command_line
def test_results_files_have_plain_data_tracebacks_and_times(tmp_path):
    values = [{"a": [1, None]}, {1, 2}, b"b\xff", "text", None, math.nan, 3]
    results = [shmqueue.TaskResult(n, "f", value, "ok", value, None, 1, 0, 0.5, None, 7.5)
               for n, value in enumerate(values)]  # fmt: skip
    results.append(shmqueue.TaskResult(9, "f", Hostile(), "failed", None, "E", 1, 0, 0.5, "Traceback\n", 8.5))
    for ending in ("jsonl", "csv", "sqlite"):
        path = str(tmp_path / f"r.{ending}")
        written = shmqueue.results_format(path)(path, False)
        written.begin()
        for result in results:
            written.write(result)
        written.end()
        assert written.error is None
        again = shmqueue.results_format(path)(path, True)
        keys = [shmqueue.task_digest("f", shmqueue.encode_text(shmqueue.as_text(value))) for value in values]
        assert again.done == collections.Counter(keys)
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["value"] for row in rows] == [{"a": [1, None]}, "{1, 2}", "b\udcff", "text", None, "nan", 3, None]
    assert [(row["traceback"], row["started"]) for row in rows[-2:]] == [(None, 7.5), ("Traceback\n", 8.5)]
    assert "Hostile object" in rows[-1]["payload"]
    with open(tmp_path / "r.csv", newline="", errors="surrogateescape") as file:
        texts = [row["value"] for row in csv.DictReader(file)]
    assert texts == ['{"a": [1, null]}', "{1, 2}", "b\udcff", "text", "", "nan", "3", ""]
    base = sqlite3.connect(tmp_path / "r.sqlite")
    assert [value for (value,) in base.execute("SELECT value FROM results")][:2] == texts[:2]
    base.close()
