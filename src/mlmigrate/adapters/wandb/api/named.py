"""Which version a client id names on a server (see clients.py), many asked for in one request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.errors import MigrateError, NotFound, Unavailable

AT_ONCE = 50
VERSION = """
query VersionOfClientID($id: ID!) {
  artifact(id: $id) { digest artifactSequence { name project { name entity { name } } } }
}
"""


def named_by(client: Client, ids: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Client id -> W&B's own id of the version, for those that the server knows; and those of which it does not tell.

    Raises Unavailable.
    """
    found: dict[str, str] = {}
    untold: set[str] = set()
    try:
        for first in range(0, len(ids), AT_ONCE):
            found |= _some(client, ids[first : first + AT_ONCE], untold)
    except Unsupported:
        untold |= set(ids) - found.keys()
    return found, untold


def where_is(client: Client, id: str) -> tuple[str, str, str, str] | None:
    """Entity, project, collection and digest of a version; None where it is gone, or the server does not say.

    Raises Unavailable.
    """
    try:
        found = client.graphql(VERSION, {"id": id}).get("artifact") or {}
    except Unavailable:
        raise
    except MigrateError:  # it may be of a project that is not for us
        return None
    home = found.get("artifactSequence") or {}
    project = home.get("project") or {}
    entity = (project.get("entity") or {}).get("name")
    told = (entity, project.get("name"), home.get("name"), found.get("digest"))
    return (str(told[0]), str(told[1]), str(told[2]), str(told[3])) if all(told) else None


def _some(client: Client, ids: Sequence[str], untold: set[str]) -> dict[str, str]:
    def singly() -> dict[str, str]:
        return {id_: version for one in ids for id_, version in _one(client, one, untold).items()}

    return client.together(lambda: _asked(client, ids), singly)


def _one(client: Client, id: str, untold: set[str]) -> dict[str, str]:
    try:
        return _asked(client, [id])
    except (Unavailable, Unsupported):
        raise
    except NotFound:
        return {}
    except MigrateError:
        untold.add(id)
        return {}


def _asked(client: Client, ids: Sequence[str]) -> dict[str, str]:
    answer = client.graphql(_query(len(ids)), {f"c{n}": id_ for n, id_ in enumerate(ids)})
    told = {id_: answer.get(f"c{n}") or {} for n, id_ in enumerate(ids)}
    return {id_: str(one["serverID"]) for id_, one in told.items() if one.get("serverID")}


@cache
def _query(ids: int) -> str:
    given = ", ".join(f"$c{n}: ID!" for n in range(ids))
    asked = "\n".join(f"  c{n}: clientIDMapping(clientID: $c{n}) {{ serverID }}" for n in range(ids))
    return f"query ClientIDMappings({given}) {{\n{asked}\n}}\n"
