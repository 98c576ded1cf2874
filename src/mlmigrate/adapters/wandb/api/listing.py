"""What there is of an entity: its projects, their runs, sweeps, reports, and artifacts that no run made.

Lists come with everything that a run's list can tell (config, summary), so no run is asked for alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import yaml

from mlmigrate.adapters.wandb.address import Spot
from mlmigrate.adapters.wandb.api import operations
from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.told import Listed, as_json, listed, milliseconds
from mlmigrate.adapters.wandb.api.versions import HISTORY_TYPE, next_page, nodes, version_of
from mlmigrate.adapters.wandb.catalogue import Project, Report, Sweep
from mlmigrate.adapters.wandb.shape import Version
from mlmigrate.errors import NotFound, Refused, Unavailable

RUNS = 100  # in a page, with config and summary
FEWEST, MOST = 10, 1000
LIGHT = 2 << 20  # letters of config and summary in a page: one with fewer is followed by a larger one
THINGS = 100
OLDEST_FIRST = "+created_at"
Json = Mapping[str, Any]


def entity_of(client: Client, spot: Spot) -> str:
    """The entity that is named, or the one that the key belongs to. Raises Refused for a wrong key."""
    viewer = client.graphql(operations.VIEWER).get("viewer")
    if not isinstance(viewer, dict):
        raise Refused(f"{client.base_url} does not know the API key.", "Set WANDB_API_KEY to a key of this server")
    found = spot.entity or str(viewer.get("entity") or "")
    if not found:
        raise NotFound(f"{client.base_url} tells no entity of this API key.", "Name one: wandb:ENTITY/PROJECT")
    return found


def projects(client: Client, entity: str) -> list[Project]:
    """All projects of an entity. Raises NotFound where there is no such entity, or none of its projects can be seen."""
    found = [_project(node, entity) for node in _pages(client, operations.PROJECTS, {"entity": entity}, "models")]
    if not found and not _known(client, entity):
        raise NotFound(
            f"{client.base_url} has no entity {entity!r}, or this API key does not see it.", "Look at its name in W&B"
        )
    return found


def project(client: Client, entity: str, name: str) -> Project:
    """One project. Raises NotFound where there is none."""
    node = client.graphql(operations.PROJECT, {"entity": entity, "name": name}).get("project")
    if not isinstance(node, dict):
        raise _no_project(client, entity, name)
    return _project(node, entity)


def list_runs(client: Client, entity: str, project: str, ids: Sequence[str] | None = None) -> Iterator[Listed]:
    """The runs of a project, or those that `ids` name, the oldest first; files and artifacts are not told.

    A page that is too much for the server is asked for in smaller ones. Raises NotFound where there is no such project.
    """
    filters = {} if ids is None else {"name": {"$in": list(ids)}}
    size = RUNS if ids is None else max(len(ids), 1)
    cursor: str | None = None
    while True:
        variables = {
            "entity": entity,
            "project": project,
            "cursor": cursor,
            "perPage": size,
            "order": OLDEST_FIRST,
            "filters": msgspec.json.encode(filters).decode(),
        }
        try:
            told = client.graphql(operations.RUNS, variables).get("project")
        except Unavailable:
            if size <= FEWEST:
                raise
            size = max(size // 5, FEWEST)
            continue
        if not isinstance(told, dict):
            raise _no_project(client, entity, project)
        page = told.get("runs") or {}
        yield from (listed(node, entity, project) for node in nodes(page))
        if _letters(page) < LIGHT:
            size = min(2 * size, MOST)
        cursor = next_page(page)
        if cursor is None:
            return


def run(client: Client, entity: str, project: str, id: str) -> Listed | None:
    """One run; None where it is gone."""
    try:
        told = client.graphql(operations.RUN, {"entity": entity, "project": project, "name": id}).get("project") or {}
    except NotFound:
        return None
    node = told.get("run")
    return listed(node, entity, project) if isinstance(node, dict) else None


def sweeps(client: Client, entity: str, project: str) -> list[Sweep]:
    """The sweeps of a project. Servers that tell none have none for us."""
    try:
        found = list(_pages(client, operations.SWEEPS, _named(entity, project), "project", "sweeps"))
    except Unsupported:
        return []
    return [_sweep(node, entity, project) for node in found]


def reports(client: Client, entity: str, project: str) -> list[Report]:
    """The reports of a project, drafts too. Those that cannot be seen are none."""
    found: dict[str, Report] = {}
    for kind in ("runs", "runs/draft"):  # the second: those that are not published
        variables = {**_named(entity, project), "viewType": kind}
        try:
            for node in _pages(client, operations.REPORTS, variables, "project", "allViews"):
                body = {**node, "viewType": kind, "spec": as_json(node.get("spec")) or node.get("spec")}
                found[str(node["id"])] = Report(str(node["id"]), entity, project, body)
        except Unsupported:
            break
    return list(found.values())


def versions(client: Client, entity: str, project: str, type_: str | None = None) -> Iterator[tuple[Version, Json]]:
    """All versions in a project (of one type), each with its node; what is linked from elsewhere is left out."""
    types = [type_] if type_ is not None else _types(client, entity, project)
    for name in types:
        collections = _pages(
            client, operations.COLLECTIONS_AND_VERSIONS, {**_named(entity, project), "type": name},
            "project", "artifactType", "artifactCollections",
        )  # fmt: skip
        for collection in collections:
            if collection.get("__typename") != "ArtifactPortfolio":
                yield from _versions(client, entity, project, name, collection)


def loose(client: Client, entity: str, project: str) -> list[tuple[Version, Json]]:
    """Versions that no run made."""
    return [(version, node) for version, node in versions(client, entity, project) if not version.run]


def _versions(
    client: Client, entity: str, project: str, type_: str, collection: Json
) -> Iterator[tuple[Version, Json]]:
    page = collection.get("artifacts") or {}
    found = nodes(page)
    if next_page(page) is not None:
        variables = {**_named(entity, project), "type": type_, "collection": collection["name"]}
        names = ("project", "artifactType", "artifactCollection", "artifacts")
        found = list(_pages(client, operations.VERSIONS, variables, *names))
    for node in found:
        yield version_of(node), node


def _types(client: Client, entity: str, project: str) -> list[str]:
    found = _pages(client, operations.ARTIFACT_TYPES, _named(entity, project), "project", "artifactTypes")
    return [str(node["name"]) for node in found if node["name"] != HISTORY_TYPE]


def _pages(client: Client, operation: str, variables: Json, *way: str) -> Iterator[dict[str, Any]]:
    """The nodes of all pages of what lies at `way` in the answers."""
    cursor: str | None = None
    while True:
        found: Any = client.graphql(operation, {**variables, "cursor": cursor, "perPage": THINGS})
        for name in way:
            found = (found or {}).get(name)
        page = found or {}
        yield from nodes(page)
        cursor = next_page(page)
        if cursor is None:
            return


def _letters(page: Json) -> int:
    return sum(len(str(node.get(name) or "")) for node in nodes(page) for name in ("config", "summaryMetrics"))


def _known(client: Client, entity: str) -> bool:
    """Whether the key's owner is in this entity, which then merely has no project yet."""
    viewer = client.graphql(operations.VIEWER).get("viewer") or {}
    teams = [str(team.get("name")) for team in nodes(viewer.get("teams"))]
    return entity in (viewer.get("entity"), viewer.get("username"), *teams)


def _named(entity: str, project: str) -> dict[str, str]:
    return {"entity": entity, "project": project}


def _project(node: Json, entity: str) -> Project:
    return Project(
        str(node.get("entityName") or entity), str(node.get("name") or ""), milliseconds(node.get("createdAt"))
    )


def _sweep(node: Json, entity: str, project: str) -> Sweep:
    body = {name: value for name, value in node.items() if value is not None}
    return Sweep(
        id=str(node.get("name") or ""),
        entity=entity,
        project=project,
        name=str(node.get("displayName") or ""),
        config=_yaml(node.get("config")),
        created=milliseconds(node.get("createdAt")),
        body=body,
    )


def _yaml(told: object) -> dict[str, Any]:
    """A sweep's config is YAML. What cannot be read stands in the sweep's body as it was."""
    try:
        found = yaml.safe_load(told) if isinstance(told, str) else None
        plain = msgspec.json.decode(msgspec.json.encode(found))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, msgspec.MsgspecError):
        return {}
    return plain if isinstance(plain, dict) else {}


def _no_project(client: Client, entity: str, name: str) -> NotFound:
    return NotFound(
        f"{client.base_url} has no project {entity}/{name}, or this API key does not see it.", "Look at its name in W&B"
    )
