"""Many small requests at once, their answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
AHEAD = 16  # requests under way, or answered and not yet taken


def ahead(pool: Executor, things: Iterable[T], ask: Callable[[T], U]) -> Iterator[U]:
    """What `ask` gives for each thing, in order; a few more are under way meanwhile."""
    under_way: deque[Future[U]] = deque()
    for thing in things:
        under_way.append(pool.submit(ask, thing))
        if len(under_way) >= AHEAD:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
