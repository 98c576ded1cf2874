"""Turns of several packs under way at once, in an order of theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable

LOOK = 0.5  # seconds between two looks at whether somebody wants to stop
Ticket = tuple[int, int]  # where in the order; which of those at one place


class Turns:
    """Tickets. Calls may come from many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = 0
        self._open: set[Ticket] = set()

    def begin(self, place: int) -> Ticket:
        """A ticket for this place in the order; to be ended whatever happens."""
        with self._changed:
            self._last += 1
            ticket = place, self._last
            self._open.add(ticket)
            return ticket

    def wait(self, ticket: Ticket, check: Callable[[], None]) -> None:
        """Returns once no ticket that comes before this one is open; `check` raises where somebody wants to stop."""
        with self._changed:
            while min(self._open, default=ticket) < ticket:
                self._changed.wait(LOOK)
                check()

    def end(self, ticket: Ticket) -> None:
        """The ticket waits for nobody any more, and nobody for it; a second time does nothing."""
        with self._changed:
            self._open.discard(ticket)
            self._changed.notify_all()
