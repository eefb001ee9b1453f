"""Leases in memory, with clocks that the test gives; real ones are in tests/integration/test_one_writer.py."""

import threading
import time

import pytest

from diffmm_dist.errors import TakenOverError, UserError
from diffmm_dist.runs.lease import LeaseLock


class Store:
    """What many processes see; ``conditional`` as S3 should be, or without conditions."""

    settle_s = 0.0

    def __init__(self):
        self.lease = None
        self.tag = 0
        self.lock = threading.Lock()
        self.before_write = lambda: None
        self.lose_answers = 0

    def version(self):
        return None if self.lease is None else str(self.tag)

    def read(self):
        return None if self.lease is None else dict(self.lease)

    def write(self, lease, *, tag):
        self.before_write()
        with self.lock:
            if self.version() != tag:
                return None
            self.lease = dict(lease)
            self.tag += 1
            if self.lose_answers > 0:
                self.lose_answers -= 1
                return None  # the client repeated the request, and the second one was refused
            return str(self.tag)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lease(store, clock=time.monotonic, lease_s=1000.0):
    return LeaseLock("s3://bucket/run/lock", lease_s=lease_s, kept_in=store, clock=clock)


def take(lock, after=0, patience_s=0.0):
    lock.acquire("the run", patience_s=patience_s, after=after)
    return lock


def test_released_and_taken_again_with_a_higher_number(tmp_path):
    store, numbers = Store(), []
    for after in (0, 0, 7):
        lock = take(lease(store), after=after)
        numbers.append(lock.writer)
        lock.check()
        lock.release()
        lock.release()  # nothing to do
        assert store.lease["released"]
    assert numbers == [1, 2, 8]


def test_of_many_that_begin_at_once_one_has_it():
    store, barrier, winners = Store(), threading.Barrier(8), []
    store.before_write = lambda: barrier.wait(timeout=20)  # when all have seen that it is free

    def one():
        lock = lease(store)
        if lock._try(0):
            winners.append(lock)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    store.before_write = lambda: None
    assert len(winners) == 1
    winners[0].check()


def test_a_holder_that_is_silent_for_a_lease_by_the_waiters_clock_is_replaced():
    """Whatever the holder's clock says; and it finds out at its next look, not from its clock."""
    store, clock = Store(), Clock()
    first = take(lease(store, clock=Clock()))
    second = lease(store, clock)
    assert not second._try(0)
    clock.now = 1000.0
    assert not second._try(0)  # not longer than the lease
    clock.now = 1000.1
    assert second._try(0)
    assert second.writer == 2
    with pytest.raises(TakenOverError, match=r"was taken over by .* \(process \d+\), its writer 2"):
        first.check()
    first.release()  # leaves the other's alone
    assert not store.lease["released"]
    second.check()


def test_a_holder_that_renews_keeps_its_lease_however_late_the_waiters_clock_is():
    store, clock = Store(), Clock()
    first = take(lease(store))
    second = lease(store, clock)
    for _ in range(5):
        assert not second._try(0)
        first.check()  # renews
        clock.now += 10_000
    with pytest.raises(UserError, match=r"another process is training in the run: .* \(process \d+\)"):
        second.acquire("the run", patience_s=0)
    first.check()


def test_the_length_of_the_lease_is_the_holders():
    store, clock = Store(), Clock()
    take(lease(store, lease_s=5000.0))
    second = lease(store, clock, lease_s=1.0)
    assert not second._try(0)
    clock.now = 4999.0
    assert not second._try(0)
    clock.now = 5001.0
    assert second._try(0)


def test_a_waiter_that_is_itself_stopped_counts_no_time_in_which_it_saw_nothing():
    store, clock = Store(), Clock()
    first = take(lease(store))
    second = lease(store, clock)
    assert not second._try(0)
    first.check()  # renewed while the waiter was stopped
    clock.now = 1e6
    assert not second._try(0)
    first.check()


def test_answers_that_get_lost_lose_no_lease():
    store = Store()
    store.lose_answers = 1
    lock = take(lease(store))
    for _ in range(3):
        store.lose_answers = 1
        lock.check()
    store.lose_answers = 1
    lock.release()
    assert store.lease["released"]


def test_renewals_that_fail_for_a_while_lose_no_lease_that_nobody_took():
    store = Store()
    lock = take(lease(store))

    def fails():
        raise UserError("cannot write")

    store.before_write = fails
    with pytest.raises(UserError, match="cannot write"):
        lock.check()
    store.before_write = lambda: None
    lock.check()


def test_it_is_renewed_until_it_is_released():
    store = Store()
    lock = take(lease(store, lease_s=0.06))
    deadline = time.monotonic() + 20
    while store.lease["renewal"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()
    renewals = store.lease["renewal"]
    time.sleep(0.1)
    assert store.lease["renewal"] == renewals


def test_the_renewals_of_one_that_lost_touch_nothing():
    store = Store()
    first = take(lease(store, lease_s=0.06))
    store.before_write = lambda: time.sleep(0.2)  # a request on its way while the other takes over
    time.sleep(0.05)
    with store.lock:
        store.lease = {**store.lease, "owner": "another", "writer": 2}
        store.tag += 1
    store.before_write = lambda: None
    time.sleep(0.3)
    assert store.lease["owner"] == "another"
    with pytest.raises(TakenOverError):
        first.check()


def test_a_lock_that_was_removed_is_lost():
    store = Store()
    lock = take(lease(store))
    store.lease = None
    with pytest.raises(TakenOverError, match="has lost its lock s3://bucket/run/lock, which somebody has removed"):
        lock.check()


class Overwriting(Store):
    """A store without conditions: another's write comes after ours."""

    settle_s = 0.01

    def write(self, lease, *, tag):
        super().write(lease, tag=tag)
        self.lease = {**lease, "owner": "another"}
        self.tag += 1
        return str(self.tag - 1)


def test_without_conditions_what_was_written_is_read_again():
    assert not lease(Overwriting())._try(0)
