"""How fast we may go: bytes and requests a second, for the whole process.

Who asks, so that no byte is paid for twice on its way:

    over a network      what sends or takes the bytes there: storage/s3.py, storage/clouds.py, the client of a server.
                        From one network to another a byte is paid for twice, for it goes over a wire twice.
    from disk to disk   who reads the artifact for a copy (passing.Passing); nobody else does
    inside a store      nobody: no byte passes here (the request is counted)
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import BinaryIO

BURST = 0.1  # seconds' worth that may go at once after a rest
BLOCK = 1 << 20  # bytes of a file that are paid for at once
NAP = 0.25  # seconds after which one who waits looks whether all is to stop


@dataclass
class Bucket:
    """Gives out `rate` a second; 0: without limit. Those who ask wait their turn, in the order they came."""

    rate: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def take(self, amount: float, check: Callable[[], object] | None = None) -> None:
        """Returns once so much may go. More than the rate is allowed: those who come later wait for it.

        `check` is called now and then while it waits, and may raise what ends the wait: but not in the main thread,
        which is interrupted by signals, and puts things in order once all is over.
        """
        if not self.rate or not amount:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(self._free_at, now - BURST)
            self._free_at = turn + amount / self.rate
        while (left := turn - time.monotonic()) > 0:
            if check is not None and threading.current_thread() is not threading.main_thread():
                check()
            time.sleep(min(left, NAP))


@dataclass
class Throttle:
    """What every request and every byte of payload asks first. `check` may end a wait (Stopped)."""

    bytes: Bucket = field(default_factory=Bucket)
    requests: Bucket = field(default_factory=Bucket)
    check: Callable[[], object] | None = None

    def request(self, size: int = 0) -> None:
        """Returns once one request with so many bytes of payload may be sent."""
        self.requests.take(1, self.check)
        self.bytes.take(size, self.check)

    def payload(self, size: int) -> None:
        """Returns once so many bytes may go."""
        self.bytes.take(size, self.check)


UNLIMITED = Throttle()


@cache
def throttle(bytes_a_second: int = 0, requests_a_second: float = 0.0) -> Throttle:
    """The one throttle of this process for these limits: both sides of a copy share it."""
    if not bytes_a_second and not requests_a_second:
        return UNLIMITED
    return Throttle(Bucket(bytes_a_second), Bucket(requests_a_second))


def checked(given: Throttle, check: Callable[[], object] | None) -> Throttle:
    """The same limits, whose waits `check` may end; the buckets are shared."""
    return given if given is UNLIMITED or check is None else Throttle(given.bytes, given.requests, check)


class Paid(io.RawIOBase):
    """A file on its way to a server, paid for as it is read."""

    def __init__(self, data: BinaryIO, throttle: Throttle) -> None:
        self._data, self._throttle = data, throttle

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._data.read(BLOCK if size is None or size < 0 else size) or b""
        self._throttle.payload(len(data))
        return data


def until(text: str) -> float | None:
    """Seconds from now to a date as HTTP writes it (Retry-After); None for what is none."""
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
