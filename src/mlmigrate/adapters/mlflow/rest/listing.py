"""Listings of a server that come in pages, and what becomes of those that fail.

A page may be shorter than was asked for, or empty with more to come; only a page without a token is the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ParamSpec, TypeVar

import msgspec

from mlmigrate.adapters.mlflow.rest.client import Client, Params
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.rest.wire import Experiments, decode
from mlmigrate.errors import BadData, MigrateError, NotFound, Unavailable
from mlmigrate.model import Loss

P = ParamSpec("P")
T = TypeVar("T")
EMPTY_PAGES = 1000  # in a row; a server that gives more has no end
NOT_IMPLEMENTED = "(501)"


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """How some things are listed. `most` on a page; 0 where the call knows no pages."""

    path: str
    field: str
    ask: Mapping[str, object] = dataclasses.field(default_factory=dict)
    most: int = 0
    post: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """A server, and whether it is there."""

    client: Client
    server: Server

    def answers(self) -> bool:
        """Whether the server is there at all, so that what it failed at is to blame and not the way to it."""
        try:
            self.client.once("POST", "api/2.0/mlflow/experiments/search", Experiments, None, {"max_results": 1})
        except NotFound:
            return self.server.version < (2, 0)
        except MigrateError:
            return False
        return True

    def take(
        self, losses: list[Loss], loss: Loss, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """What `call` gives; None when the server knows no such thing, or with `loss` when it fails at it.

        Raises Unavailable when the server is gone altogether.
        """
        try:
            return call(*args, **kwargs)
        except NotFound:
            return None
        except MigrateError as error:
            if isinstance(error, Unavailable) and not self.answers():
                raise
            if NOT_IMPLEMENTED not in error.message:
                losses.append(Loss(loss.run, loss.what, f"{loss.because}{error.message}", loss.experiment))
            return None

    def pages(self, listing: Listing) -> Iterator[list[msgspec.Raw]]:
        """The pages of a listing. Raises BadData when they never end."""
        token, seen, empty = "", set[str](), 0
        while True:
            page = self._page(listing, token)
            items = msgspec.json.decode(page[listing.field], type=list[msgspec.Raw]) if listing.field in page else []
            yield items
            token = msgspec.json.decode(page["next_page_token"], type=str | None) or "" if _more(page) else ""
            empty = 0 if items else empty + 1
            if not token:
                return
            if token in seen or empty > EMPTY_PAGES:
                raise BadData(f"The server goes round in circles over its {listing.field.replace('_', ' ')}.")
            seen.add(token)

    def items(self, listing: Listing, kind: type[T]) -> Iterator[T]:
        """All things of a listing."""
        for page in self.pages(listing):
            yield from (_typed(raw, kind, listing) for raw in page)

    def all(self, listing: Listing, kind: type[T]) -> list[T]:
        """All things of a listing, at once."""
        return list(self.items(listing, kind))

    def has(self, listing: Listing) -> bool:
        """Whether there is at least one."""
        return any(map(bool, self.pages(listing)))

    def _page(self, listing: Listing, token: str) -> dict[str, msgspec.Raw]:
        ask = {**listing.ask, **({"max_results": listing.most} if listing.most else {})}
        ask |= {"page_token": token} if token else {}
        if listing.post:
            return self.client.post(listing.path, dict[str, msgspec.Raw], ask)
        params: Params = ask  # type: ignore[assignment]  # strings, numbers and lists of strings alone
        return self.client.get(listing.path, dict[str, msgspec.Raw], params)


def having(experiments: Sequence[str], any_in: Callable[[Sequence[str]], bool]) -> list[str]:
    """Those of the experiments that have anything, asked for in ever smaller groups."""
    if not experiments or not any_in(experiments):
        return []
    if len(experiments) == 1:
        return list(experiments)
    middle = len(experiments) // 2
    return having(experiments[:middle], any_in) + having(experiments[middle:], any_in)


def _more(page: Mapping[str, msgspec.Raw]) -> bool:
    return "next_page_token" in page


def _typed(raw: msgspec.Raw, kind: type[T], listing: Listing) -> T:
    try:
        return decode(bytes(raw), kind)
    except ValueError as error:
        raise BadData(f"The server gave something among its {listing.field.replace('_', ' ')} that is none.") from error
