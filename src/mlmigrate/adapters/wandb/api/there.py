"""What a W&B server has already: its projects, and runs with what their config says of where they came from."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.pages import all_pages, nodes
from mlmigrate.adapters.wandb.api.writes import LIST_PROJECTS, LIST_RUNS
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, of_config
from mlmigrate.errors import NotFound

RUNS_PER_PAGE = 500
PROJECTS_PER_PAGE = 100
READERS = 8
EMPTY: Mapping[str, Any] = {"edges": []}


@dataclass(frozen=True, slots=True)
class Existing:
    """A run that is there; `ours` None where we did not write it."""

    project: str
    id: str
    bucket: str
    lines: int
    ours: Provenance | None

    @property
    def whole(self) -> bool:
        """Ours, and all of it."""
        return self.ours is not None and bool(self.ours.stamp)


class There:
    """The runs of some projects, listed once; what is written is noted. Calls may come from many threads."""

    def __init__(self, client: Client, entity: str) -> None:
        self._client, self._entity = client, entity
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], Existing] = {}
        self._origins: dict[str, dict[tuple[str, str], Existing]] = {}
        self._listed: set[str] = set()

    def projects(self) -> list[str]:
        """The names of the entity's projects."""
        given: dict[str, Any] = {"entity": self._entity, "perPage": PROJECTS_PER_PAGE}
        what = f"the projects of {self._entity}"
        found = _listed(self._client, LIST_PROJECTS, given, what, lambda data: data.get("models"))
        return [node["name"] for node in found]

    def load(self, projects: Iterable[str]) -> None:
        """Lists the runs of those projects that were not listed yet."""
        with self._lock:
            todo = [name for name in dict.fromkeys(projects) if name not in self._listed]
            if not todo:
                return
            with ThreadPoolExecutor(min(READERS, len(todo)), "wandb-list") as pool:
                for name, runs in zip(todo, pool.map(self._list, todo), strict=True):
                    for run in runs:
                        self._note(run)
                    self._listed.add(name)

    def at(self, project: str, id: str) -> Existing | None:
        """The run of this id."""
        return self._runs.get((project, id))

    def of(self, origin: str) -> list[Existing]:
        """Those of this origin, the latest generation first."""
        with self._lock:
            found = list(self._origins.get(origin, {}).values())
        return sorted(found, key=lambda run: (-run.ours.generation if run.ours else 0, run.id))

    def all(self) -> list[Existing]:
        """All of them."""
        with self._lock:
            return list(self._runs.values())

    def note(self, run: Existing) -> None:
        """From now on the run is there."""
        with self._lock:
            self._note(run)

    def forget(self, run: Existing) -> None:
        """From now on it is not."""
        with self._lock:
            self._runs.pop((run.project, run.id), None)
            if run.ours is not None:
                self._origins.get(run.ours.origin, {}).pop((run.project, run.id), None)

    def _note(self, run: Existing) -> None:
        key = (run.project, run.id)
        self._runs[key] = run
        if run.ours is not None:
            self._origins.setdefault(run.ours.origin, {})[key] = run

    def nodes(self, project: str) -> Iterator[dict[str, Any]]:
        """The runs of a project as the API tells them now."""
        given = {"entity": self._entity, "project": project, "perPage": RUNS_PER_PAGE, "order": "+created_at"}
        given["filters"] = "{}"

        def runs(data: Mapping[str, Any]) -> Any:  # noqa: ANN401  any JSON
            told = data.get("project")
            return EMPTY if told is None else told.get("runs")  # a project that is not there yet has none

        return _listed(self._client, LIST_RUNS, given, f"the runs of {self._entity}/{project}", runs)

    def _list(self, project: str) -> list[Existing]:
        try:
            return [existing(project, node) for node in self.nodes(project)]
        except NotFound:  # the project is not there yet
            return []


def existing(project: str, node: Mapping[str, Any]) -> Existing:
    """A run as the API tells it."""
    return Existing(
        project, node["name"], node["id"], node.get("historyLineCount") or 0, light(provenance(node.get("config")))
    )


def provenance(config: object) -> Provenance | None:
    """What the config says of where the run came from."""
    value = values(config).get(KEY)
    return of_config(value.get("value")) if isinstance(value, Mapping) else None


def values(config: object) -> Mapping[str, Any]:
    """The config, parsed; {} for what is none."""
    found = _parsed(config) if isinstance(config, str) else config
    return found if isinstance(found, Mapping) else {}


def _parsed(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _lenient(text)


def _lenient(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return {}


def light(found: Provenance | None) -> Provenance | None:
    """Only what a listing of many runs can afford to keep."""
    if found is None or found.kind == "experiment":
        return found
    return Provenance(
        kind=found.kind,
        origin=found.origin,
        stamp=found.stamp,
        generation=found.generation,
        id=found.id,
        heads=found.heads,
        overtook=found.overtook,
        unmade=found.unmade,
        missing=found.missing,
    )


def told_anew(run: Existing, found: Provenance) -> Existing:
    """The run, of which that is said now."""
    return replace(run, ours=light(found))


def _listed(
    client: Client, operation: str, given: Mapping[str, Any], what: str, of: Callable[[Mapping[str, Any]], Any]
) -> Iterator[dict[str, Any]]:
    for page in all_pages(lambda cursor: of(client.graphql(operation, {**given, "cursor": cursor})), what):
        yield from nodes(page)
