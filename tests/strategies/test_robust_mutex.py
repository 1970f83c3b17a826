"""A robust mutex by itself: waiting for it, acquiring it twice. What is done if its holder dies is in the contract."""

import concurrent.futures
import errno
import mmap
import threading
import time
import types

import pytest

from tests.helpers import in_child
from variants import robust_mutex, strategies


@pytest.fixture
def mutex():
    if reason := strategies["robust_mutex"].refusal():
        pytest.skip(reason)
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        segment = types.SimpleNamespace(window=lambda offset, size: memory)
        made = robust_mutex.RobustMutex(segment, 0, 0, None)
        made.prepare(None)
        yield made


@pytest.fixture
def slices(mutex, monkeypatch):
    """The codes with which waits have ended, of a slice each."""
    codes, slow = [], robust_mutex.slow

    def wait(*arguments):
        codes.append(slow.pthread_mutex_timedlock(*arguments))
        return codes[-1]

    monkeypatch.setattr(robust_mutex, "slow", types.SimpleNamespace(pthread_mutex_timedlock=wait))
    return codes


def in_thread(work):
    """Start `work()` in a thread. Return a future of what it returns."""
    executor = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return executor.submit(work)
    finally:
        executor.shutdown(wait=False)


def is_free(mutex):
    """Return True if another thread gets it."""

    def attempt():
        acquired = mutex.acquire(0.0)
        if acquired:
            mutex.release()
        return acquired

    return in_thread(attempt).result()


def test_a_thread_of_the_self_test_may_go_on_when_a_signal_handler_has_left_it(monkeypatch):
    threads = []

    def start(target):
        threads.append(threading.Thread(target=target))
        raise KeyboardInterrupt

    monkeypatch.setattr(robust_mutex, "threading", types.SimpleNamespace(Thread=start))
    with pytest.raises(KeyboardInterrupt):
        robust_mutex.RobustMutex.refusal()
    assert in_child(lambda: threads[0].run() is None)  # it would end by SIGSEGV


def test_who_does_not_get_it_twice_and_more_waits_on_without_using_the_processor(mutex, slices):
    def wait():
        began = time.monotonic()
        return mutex.acquire(), time.monotonic() - began, is_free(mutex)

    mutex.acquire()
    waiting = in_thread(wait)
    while len(slices) < 3 and not waiting.done():
        time.sleep(0.01)
    mutex.release()
    acquired, seconds, free = waiting.result()
    assert (acquired, free) == (True, False)
    assert slices == [errno.ETIMEDOUT] * (len(slices) - 1) + [0]
    assert 3 < len(slices) <= seconds / robust_mutex.SLICE_SECONDS + 2, "it slept in each of them"


def test_a_wait_of_several_slices_ends_in_vain_and_the_mutex_is_as_it_was(mutex, slices):
    mutex.acquire()
    assert in_thread(lambda: mutex.acquire(2.5 * robust_mutex.SLICE_SECONDS)).result() is False
    assert set(slices) == {errno.ETIMEDOUT}
    assert not is_free(mutex)
    mutex.release()
    assert is_free(mutex)


def test_a_second_acquisition_by_its_holder_succeeds_and_one_release_frees_it(mutex):
    """As with KernelLock: a holder that was interrupted before its release comes back."""
    assert mutex.acquire()
    assert mutex.acquire(0.0)
    assert mutex.acquire()
    assert not is_free(mutex)
    mutex.release()
    assert is_free(mutex)
