"""A worker that kills itself just before its n-th store into the segment, for every n, in real processes."""

import os
import signal

import pytest

from shmqueue import SharedTaskQueue, Supervisor
from tests.helpers import segments_of, wait_until

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),  # a runner's own threads
]
NUMBER, MARKER = "SHMQUEUE_TEST_KILL_AT", "SHMQUEUE_TEST_KILL_MARKER"
MOST_STORES = 1000


class DeadlyWords:
    """The segment's words; the store before which so many others were made is the last thing that is tried."""

    def __init__(self, words, stores):
        self._words, self._left = words, stores

    def __getitem__(self, place):
        return self._words[place]

    def __setitem__(self, place, value):
        self._left -= 1
        if self._left == 0:
            with open(os.environ[MARKER] + ".killed", "wb"):
                os.kill(os.getpid(), signal.SIGKILL)
        self._words[place] = value

    def release(self):
        self._words.release()


class DiesAtStore(SharedTaskQueue):
    """The first process that attaches dies at its n-th store; those after it live."""

    @classmethod
    def attach(cls, name, primitives):
        queue = super().attach(name, primitives)
        try:
            os.close(os.open(os.environ[MARKER], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return queue
        queue.words = DeadlyWords(queue.words, int(os.environ[NUMBER]))
        return queue


def value_or_nothing(payload: bytes) -> object:
    """Bytes for v, text for t, plain data for p, nothing for q."""
    return {b"v": payload.upper(), b"t": payload.decode(), b"p": (7, payload)}.get(payload[:1])


def all_sleep(supervisor):
    return len(supervisor._queue.sleepers()) == len(supervisor._pool.lanes)


PAYLOADS = [b"q0", b"v1", b"t2", b"t3", b"p4", b"v5"]


@pytest.mark.promise("G1", "G2b", "G3")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_at_any_store_loses_nothing(workers, tmp_path, monkeypatch):
    crashes = 0
    for number in range(1, MOST_STORES):
        marker, killed = tmp_path / str(number), tmp_path / f"{number}.killed"
        monkeypatch.setenv(NUMBER, str(number))
        monkeypatch.setenv(MARKER, str(marker))
        options = {"workers": workers, "batch": 2, "num_slots": 8, "start_method": "fork", "queue": DiesAtStore}
        with Supervisor([value_or_nothing], **options) as supervisor:
            segment = supervisor.name
            results = sorted(supervisor.run(PAYLOADS))
            # One that is still starting when its Supervisor is closed would not come to its store.
            assert wait_until(lambda killed=killed: killed.exists() or all_sleep(supervisor))
        crashed = [result for result in results if result.status == "crashed"]
        ended = [(result.tsk_id, result.payload) for result in results]
        assert ended == list(enumerate(PAYLOADS, 1)), f"killed at store {number}"
        assert len(crashed) <= 1, f"killed at store {number}"
        for result in results:
            if result.status != "crashed":
                assert (result.status, result.value) == ("ok", value_or_nothing(result.payload)), f"store {number}"
            assert result.attempts == 1
        assert not [left for left in segments_of({os.getpid()}) if left.startswith(segment)]
        assert marker.exists()
        crashes += len(crashed)
        if not killed.exists():
            break
    least = 20 if workers == 1 else 5  # of two, the other may do most
    assert least < number < MOST_STORES - 1, "it was killed at few stores, or at all of them"
    assert crashes > 0 or workers > 1, "no kill met a task in hand"
