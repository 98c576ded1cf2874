"""Pages of lists, as the API has them: {"edges": [{"node": ...}], "pageInfo": {"hasNextPage", "endCursor"}}.

A server may tell null for a list, and for a thing in it.  A list that is null is not an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlmigrate.errors import MigrateError

Json = Mapping[str, Any]


class Untold(MigrateError):
    """The server tells nothing of what it was asked for."""


def nodes(connection: Json | None) -> list[dict[str, Any]]:
    """The things of a page; those that are null are left out."""
    return [edge["node"] for edge in (connection or {}).get("edges") or () if edge and edge.get("node")]


def hidden(connection: Json | None) -> int:
    """How many things of a page are null."""
    edges = (connection or {}).get("edges") or ()
    return len(edges) - len(nodes(connection))


def held(connection: Json | None, what: str) -> Json:
    """The page. Raises Untold where there is none."""
    if not isinstance(connection, Mapping) or connection.get("edges") is None:
        raise Untold(f"W&B tells nothing of {what}.", "Does it show them in a browser, to the owner of this key?")
    return connection


def next_page(connection: Json, before: str | None, what: str) -> str | None:
    """The cursor of the next page, after one of the cursor `before`; None after the last page. Raises Untold."""
    info = connection.get("pageInfo") or {}
    if not info.get("hasNextPage"):
        return None
    cursor = info.get("endCursor")
    if not cursor or cursor == before:
        raise Untold(f"W&B says that there are more of {what}, but not where.", "The same command again asks again")
    return str(cursor)


def all_pages(ask: Callable[[str | None], Json | None], what: str) -> Iterator[Json]:
    """All pages: `ask` gives the one at a cursor, None for the first. Raises Untold."""
    cursor: str | None = None
    while True:
        page = held(ask(cursor), what)
        yield page
        cursor = next_page(page, cursor, what)
        if cursor is None:
            return
