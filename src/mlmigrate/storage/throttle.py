"""How fast we may go: bytes and requests a second, for the whole process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import cache

BURST = 1.0  # seconds' worth that may go at once


@dataclass
class Bucket:
    """Gives out `rate` a second; 0: without limit. Those who ask wait their turn, in the order they came."""

    rate: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def take(self, amount: float) -> None:
        """Returns once so much may go. More than the rate is allowed: it is paid for by waiting."""
        if not self.rate or not amount:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._free_at, now - BURST)
            self._free_at = start + amount / self.rate
            wait = start - now
        if wait > 0:
            time.sleep(wait)


@dataclass
class Throttle:
    """What every request and every byte of payload asks first."""

    bytes: Bucket = field(default_factory=Bucket)
    requests: Bucket = field(default_factory=Bucket)

    def request(self, size: int = 0) -> None:
        """Returns once one request with so many bytes of payload may be sent."""
        self.requests.take(1)
        self.bytes.take(size)

    def payload(self, size: int) -> None:
        """Returns once so many bytes may go."""
        self.bytes.take(size)


UNLIMITED = Throttle()


@cache
def throttle(bytes_a_second: int = 0, requests_a_second: float = 0.0) -> Throttle:
    """The one throttle of this process for these limits: both sides of a copy share it."""
    if not bytes_a_second and not requests_a_second:
        return UNLIMITED
    return Throttle(Bucket(bytes_a_second), Bucket(requests_a_second))
