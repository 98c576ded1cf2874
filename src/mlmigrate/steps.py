"""Calls made again while a tracker is away: the one place that meets Unavailable, and retries.

Only calls that may be repeated are given here: that is each adapter's promise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import stamina

from mlmigrate.errors import Stopped, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

FIRST_WAIT = 0.2  # seconds; doubled each time
LONGEST_WAIT = 30.0
logging.getLogger("stamina").addHandler(logging.NullHandler())  # we tell people ourselves, through `waiting`


@dataclass(frozen=True, slots=True)
class Steps:
    """Calls `tries` times at most. `waiting` is told of each wait; `stop` ends all at the next call."""

    tries: int = 3
    waiting: Callable[[str], object] = str
    stop: threading.Event = field(default_factory=threading.Event)

    def do(self, what: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` gives. `what` names it for people.

        Raises Stopped once `stop` is set, and the last Unavailable when all tries were in vain.
        """
        for attempt in stamina.retry_context(
            on=self._again, attempts=self.tries, timeout=None, wait_initial=FIRST_WAIT, wait_max=LONGEST_WAIT
        ):
            self.check()
            with attempt:
                if attempt.num > 1:
                    self.waiting(what)
                return call(*args, **kwargs)
        raise AssertionError("stamina gives the last error or an answer")

    def check(self) -> None:
        """Raises Stopped once `stop` is set."""
        if self.stop.is_set():
            raise Stopped

    def _again(self, error: Exception) -> bool | float:
        if not isinstance(error, Unavailable) or self.stop.is_set():
            return False
        return True if error.after is None else min(error.after, 300.0)
