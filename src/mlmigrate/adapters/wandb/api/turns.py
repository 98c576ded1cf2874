"""Turns of several packs under way at once, in the order that they began in."""

from __future__ import annotations

import threading
from collections.abc import Callable

LOOK = 0.5  # seconds between two looks at whether somebody wants to stop


class Turns:
    """Tickets. Calls may come from many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = 0
        self._open: set[int] = set()

    def begin(self) -> int:
        """The next ticket, from 1 on; to be ended whatever happens."""
        with self._changed:
            self._last += 1
            self._open.add(self._last)
            return self._last

    def wait(self, ticket: int, check: Callable[[], None]) -> None:
        """Returns once all earlier tickets have ended; `check` raises where somebody wants to stop before that."""
        with self._changed:
            while min(self._open, default=ticket) < ticket:
                self._changed.wait(LOOK)
                check()

    def end(self, ticket: int) -> None:
        """The ticket waits for nobody any more, and nobody for it; a second time does nothing."""
        with self._changed:
            self._open.discard(ticket)
            self._changed.notify_all()
