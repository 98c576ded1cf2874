"""Limits hold: so much, and no more, in a time. Waits are made by a clock of our own where that is enough."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from mlmigrate.adapters.base import Context, Settings
from mlmigrate.errors import Stopped
from mlmigrate.steps import Steps
from mlmigrate.storage import throttle as module
from mlmigrate.storage.throttle import UNLIMITED, Bucket, Throttle, throttle


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only while somebody sleeps."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize("chunk", [1, 1000, 10_000])
def test_a_rate_is_kept_to_the_byte(clock, chunk):
    bucket, begun, volume = Bucket(10_000), clock.now, 50_000
    for _ in range(0, volume, chunk):
        bucket.take(chunk)
    seconds = clock.now - begun
    assert seconds <= volume / 10_000
    assert seconds >= (volume - chunk) / 10_000 - module.BURST - 1e-6  # the last one is paid for by who comes later


def test_what_is_more_than_the_rate_is_paid_for_later(clock):
    bucket, begun = Bucket(1000), clock.now
    bucket.take(10_000)
    assert clock.now == begun
    bucket.take(1)
    assert clock.now - begun == pytest.approx(10 - module.BURST)


def test_a_rest_saves_up_next_to_nothing(clock):
    bucket = Bucket(1000)
    bucket.take(1)
    clock.sleep(3600)
    begun = clock.now
    for _ in range(50):
        bucket.take(100)
    assert clock.now - begun >= 5 - 0.1 - module.BURST


def test_without_a_limit_nobody_waits(clock):
    begun = clock.now
    Bucket(0).take(1e12)
    UNLIMITED.request(1 << 40)
    assert clock.now == begun


def test_requests_and_bytes_are_counted_apart(clock):
    one, begun = Throttle(Bucket(1e9), Bucket(10)), clock.now
    for _ in range(51):
        one.request(1)
    assert clock.now - begun == pytest.approx(5, abs=module.BURST + 0.01)
    one.payload(10)
    assert clock.now - begun == pytest.approx(5, abs=module.BURST + 0.01)


def test_both_sides_share_one_throttle():
    settings = Settings(bwlimit=1000, tpslimit=5.0)
    source, target = Context("source", settings=settings).throttle, Context("target", settings=settings).throttle
    assert (source.bytes, source.requests) == (target.bytes, target.requests)
    assert source.bytes is target.bytes
    assert (source.bytes.rate, source.requests.rate) == (1000, 5.0)
    assert throttle() is UNLIMITED
    assert Context("source").throttle is UNLIMITED


def test_who_stops_need_not_wait(clock):
    steps = Steps()
    limited = Context("source", steps, Settings(bwlimit=10)).throttle
    limited.payload(10_000)
    steps.stop.set()
    with ThreadPoolExecutor(1) as pool, pytest.raises(Stopped):
        pool.submit(limited.payload, 1).result()


def test_what_puts_things_in_order_at_the_end_waits_for_its_turn(clock):
    steps, begun = Steps(), clock.now
    limited = Context("source", steps, Settings(tpslimit=2.0)).throttle
    steps.stop.set()
    for _ in range(5):
        limited.request()
    assert clock.now - begun >= 4 / 2 - module.BURST - 1e-6


def test_threads_wait_for_each_other():
    """With real time: a hundred threads together get no more than the rate."""
    import time

    bucket, moments = Bucket(2000), []
    begun = time.monotonic()

    def take(_):
        bucket.take(10)
        moments.append(time.monotonic())

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(take, range(100)))
    assert time.monotonic() - begun >= (1000 - 10) / 2000 - module.BURST
    assert all(a <= b for a, b in pairwise(sorted(moments)))
