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
from mlmigrate.adapters.wandb.api.pages import all_pages, held, hidden, next_page, nodes
from mlmigrate.adapters.wandb.api.told import Listed, as_json, listed
from mlmigrate.adapters.wandb.api.versions import HISTORY_TYPE, version_of
from mlmigrate.adapters.wandb.catalogue import Project, Report, Sweep
from mlmigrate.adapters.wandb.moments import milliseconds
from mlmigrate.adapters.wandb.shape import Version
from mlmigrate.errors import NotFound, Refused, Unavailable
from mlmigrate.model import Loss

RUNS = 100  # in a page, with config and summary
FEWEST, MOST = 10, 1000
LIGHT = 2 << 20  # letters of config and summary in a page: one with fewer is followed by a larger one
THINGS = 100
EMPTY: Mapping[str, Any] = {"edges": []}
CALLED = {"models": "projects", "sweeps": "sweeps", "allViews": "reports", "artifactTypes": "types of artifacts",
          "artifactCollections": "collections of artifacts", "artifacts": "versions of artifacts"}  # fmt: skip
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


def projects(client: Client, entity: str, losses: list[Loss]) -> list[Project]:
    """All projects of an entity. Raises NotFound where there is no such entity, or none of its projects can be seen."""
    found = [
        _project(node, entity) for node in _listed(client, operations.PROJECTS, {"entity": entity}, losses, "models")
    ]
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


def list_runs(
    client: Client, entity: str, project: str, losses: list[Loss], ids: Sequence[str] | None = None
) -> Iterator[Listed]:
    """The runs of a project, or those that `ids` name, the oldest first; files and artifacts are not told.

    A page that is too much for the server is asked for in smaller ones. Raises NotFound where there is no such project,
    Untold where the server keeps its runs to itself.
    """
    filters = {} if ids is None else {"name": {"$in": list(ids)}}
    size = RUNS if ids is None else max(len(ids), 1)
    what = f"the runs of {entity}/{project}"
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
        page = held(told.get("runs"), what)
        yield from (listed(node, entity, project) for node in nodes(page))
        tell_hidden(page, what, losses)
        if _letters(page) < LIGHT:
            size = min(2 * size, MOST)
        cursor = next_page(page, cursor, what)
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


def sweeps(client: Client, entity: str, project: str, losses: list[Loss]) -> list[Sweep]:
    """The sweeps of a project. Servers that tell none have none for us."""
    try:
        found = list(_listed(client, operations.SWEEPS, _named(entity, project), losses, "project", "sweeps"))
    except Unsupported:
        return []
    return [_sweep(node, entity, project) for node in found]


def reports(client: Client, entity: str, project: str, losses: list[Loss]) -> list[Report]:
    """The reports of a project, drafts too. Those that cannot be seen are none."""
    found: dict[str, Report] = {}
    for kind in ("runs", "runs/draft"):  # the second: those that are not published
        variables = {**_named(entity, project), "viewType": kind}
        try:
            for node in _listed(client, operations.REPORTS, variables, losses, "project", "allViews"):
                body = {**node, "viewType": kind, "spec": as_json(node.get("spec")) or node.get("spec")}
                found[str(node["id"])] = Report(str(node["id"]), entity, project, body)
        except Unsupported:
            break
    return list(found.values())


def versions(
    client: Client, entity: str, project: str, losses: list[Loss], type_: str | None = None
) -> Iterator[tuple[Version, Json]]:
    """All versions in a project (of one type), each with its node; what is linked from elsewhere is left out."""
    types = [type_] if type_ is not None else _types(client, entity, project, losses)
    for name in types:
        collections = _listed(
            client, operations.COLLECTIONS_AND_VERSIONS, {**_named(entity, project), "type": name}, losses,
            "project", "artifactType", "artifactCollections",
        )  # fmt: skip
        for collection in collections:
            if collection.get("__typename") != "ArtifactPortfolio":
                yield from _versions(client, entity, project, name, collection, losses)


def loose(client: Client, entity: str, project: str, losses: list[Loss]) -> list[tuple[Version, Json]]:
    """Versions that no run made."""
    return [(version, node) for version, node in versions(client, entity, project, losses) if not version.run]


def _versions(
    client: Client, entity: str, project: str, type_: str, collection: Json, losses: list[Loss]
) -> Iterator[tuple[Version, Json]]:
    page = held(collection.get("artifacts"), f"the versions of {collection.get('name')} of {entity}/{project}")
    found = nodes(page)
    if (page.get("pageInfo") or {}).get("hasNextPage"):
        variables = {**_named(entity, project), "type": type_, "collection": collection["name"]}
        names = ("project", "artifactType", "artifactCollection", "artifacts")
        found = list(_listed(client, operations.VERSIONS, variables, losses, *names))
    for node in found:
        yield version_of(node), node


def _types(client: Client, entity: str, project: str, losses: list[Loss]) -> list[str]:
    found = _listed(client, operations.ARTIFACT_TYPES, _named(entity, project), losses, "project", "artifactTypes")
    return [str(node["name"]) for node in found if node["name"] != HISTORY_TYPE]


def _listed(client: Client, operation: str, variables: Json, losses: list[Loss], *way: str) -> Iterator[dict[str, Any]]:
    """The nodes of all pages of what lies at `way` in the answers. Raises Untold."""
    what = (
        f"{CALLED[way[-1]]} of {'/'.join(str(variables[name]) for name in ('entity', 'project') if name in variables)}"
    )

    def ask(cursor: str | None) -> Json | None:
        found: Any = client.graphql(operation, {**variables, "cursor": cursor, "perPage": THINGS})
        for name in way[:-1]:
            found = found.get(name)
            if found is None:
                return EMPTY  # gone since it was listed
        page: Json | None = found.get(way[-1])
        return page

    for page in all_pages(ask, what):
        yield from nodes(page)
        tell_hidden(page, what, losses)


def tell_hidden(page: Json, what: str, losses: list[Loss]) -> None:
    """Things of a page that the server keeps to itself are losses."""
    if n := hidden(page):
        losses.append(Loss("", what, f"the server tells null for {n} of them"))


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
