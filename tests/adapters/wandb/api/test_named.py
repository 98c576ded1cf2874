"""Which versions client ids name, asked of servers that take many questions at once, and of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.named import named_by, where_is
from mlmigrate.errors import MigrateError, NotFound, Refused, Unavailable

KNOWN = {f"c{n}": f"A{n}" for n in range(120) if n % 3}
IDS = [f"c{n}" for n in range(120)]


class Server:
    """Answers what `KNOWN` says; `refusal` gives what it says against a request for so many ids."""

    def __init__(self, refusal: Callable[[Mapping[str, Any]], MigrateError | None] = lambda _: None) -> None:
        self.refusal, self.asked, self._refusals = refusal, 0, 0

    together = Client.together

    def graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        self.asked += 1
        if (error := self.refusal(variables)) is not None:
            raise error
        assert all(f"{name}: clientIDMapping(clientID: ${name}) {{ serverID }}" in query for name in variables)
        return {name: {"serverID": KNOWN[id_]} if id_ in KNOWN else None for name, id_ in variables.items()}


def test_many_are_asked_for_at_once() -> None:
    server = Server()
    assert named_by(server, IDS) == (KNOWN, set())  # type: ignore[arg-type]
    assert server.asked == 3
    assert named_by(server, []) == ({}, set())  # type: ignore[arg-type]


def test_a_server_that_takes_one_question_at_a_time_is_asked_so() -> None:
    server = Server(lambda given: MigrateError("only one root field is permitted") if len(given) > 1 else None)
    assert named_by(server, IDS) == (KNOWN, set())  # type: ignore[arg-type]


def test_an_error_about_one_that_is_not_known_hides_no_other() -> None:
    server = Server(lambda given: None if set(given.values()) <= KNOWN.keys() else NotFound("no such client id"))
    assert named_by(server, IDS) == (KNOWN, set())  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [Refused("forbidden"), MigrateError("400"), Unsupported("no such field")])
def test_a_server_that_tells_of_none_says_so(error: MigrateError) -> None:
    assert named_by(Server(lambda _: error), IDS) == ({}, set(IDS))  # type: ignore[arg-type]


def test_one_that_is_refused_alone_hides_no_other() -> None:
    server = Server(lambda given: Refused("forbidden") if "c1" in given.values() else None)
    assert named_by(server, IDS) == ({id_: KNOWN[id_] for id_ in KNOWN if id_ != "c1"}, {"c1"})  # type: ignore[arg-type]


def test_where_a_version_lies_is_not_known_where_nobody_says_it() -> None:
    for error in (Refused("forbidden"), NotFound("gone"), MigrateError("400")):
        assert where_is(Server(lambda _, error=error: error), "A1") is None  # type: ignore[arg-type,misc]


def test_one_that_is_away_is_away() -> None:
    with pytest.raises(Unavailable):
        named_by(Server(lambda _: Unavailable("busy")), IDS)  # type: ignore[arg-type]
