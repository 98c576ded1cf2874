"""Artifacts of type model as registered models: rows of MLflow's own tables, each version naming the files of a run.

collection "nets" of a project    registered model "nets"; "nets-project" where another project has one so called
v0, v1, ...                       versions 1, 2, ...: MLflow counts from 1; the tag wandb.version keeps W&B's own
aliases                           aliases, but for "latest" and "v3", which MLflow keeps for itself
the files                         source "runs:/<run id>/wandb/artifacts/<name>/<version>"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from mlmigrate.adapters.wandb import index, natives
from mlmigrate.adapters.wandb.provenance import MODEL_TYPE
from mlmigrate.adapters.wandb.restored import number_of
from mlmigrate.adapters.wandb.shape import Version
from mlmigrate.model import Record

KIND = "mlflow.registered_model"
_RESERVED = re.compile(r"(latest|v\d+)", re.IGNORECASE)
_ALIAS = re.compile(r"[\w\-]+")
_REFUSED = re.compile(r"[/:]")  # in names of registered models

Row = dict[str, Any]
Place = tuple[str, str, str]  # entity, project, name of a collection


def records(versions: Iterable[Version], run_of: Callable[[Version], str]) -> Iterator[Record]:
    """A record for each collection. `run_of` gives the id of the run whose files a version's are, "" to skip it."""
    found: dict[Place, dict[int, tuple[Version, str]]] = {}
    for version in versions:
        number = number_of(version.version)
        run = run_of(version) if version.type == MODEL_TYPE and number >= 0 else ""
        if run:
            place = (version.entity, version.project, version.name)
            found.setdefault(place, {})[number] = version, run
    names = _names(found)
    for place, numbered in sorted(found.items()):
        tree = _tree(names[place], dict(sorted(numbered.items())))
        yield Record(KIND, names[place], "", msgspec.json.encode(tree).decode())


def _names(places: Iterable[Place]) -> dict[Place, str]:
    """What each collection is called among all."""
    names: dict[Place, str] = {}
    taken: set[str] = set()
    for place in sorted(places):
        entity, project, name = place
        clean = _REFUSED.sub("_", name)
        tries = (clean, f"{clean}-{_REFUSED.sub('_', project)}", f"{clean}-{natives.digest(entity, project, name)}")
        names[place] = next(one for one in tries if one not in taken or one == tries[-1])
        taken.add(names[place])
    return names


def _tree(name: str, numbered: dict[int, tuple[Version, str]]) -> dict[str, list[Row]]:
    versions = [version for version, _ in numbered.values()]
    times = [version.created for version in versions if version.created is not None]
    model = {
        "name": name,
        "creation_time": min(times, default=None),
        "last_updated_time": max(times, default=None),
        "description": None,
    }
    tree: dict[str, list[Row]] = {
        "registered_models": [model],
        "registered_model_aliases": [
            {"name": name, "alias": alias, "version": n + 1}
            for n, (version, _) in numbered.items()
            for alias in version.aliases
            if _ALIAS.fullmatch(alias) and not _RESERVED.fullmatch(alias)
        ],
        "model_versions": [_version(name, n + 1, version, run) for n, (version, run) in numbered.items()],
        "model_version_tags": [row for n, (version, _) in numbered.items() for row in _tags(name, n + 1, version)],
    }
    return {table: rows for table, rows in tree.items() if rows}


def _version(name: str, number: int, version: Version, run: str) -> Row:
    return {
        "name": name,
        "version": number,
        "creation_time": version.created,
        "last_updated_time": version.created,
        "description": version.description or None,
        "user_id": None,
        "current_stage": "None",
        "source": f"runs:/{run}/{index.folder_of(version)}",
        "run_id": run,
        "status": "READY" if version.state == "COMMITTED" else "PENDING_REGISTRATION",
        "status_message": None,
        "run_link": None,
        "storage_location": None,
    }


def _tags(name: str, number: int, version: Version) -> Iterator[Row]:
    told = {
        "wandb.version": version.version,
        "wandb.name": version.name,
        "wandb.project": version.project,
        "wandb.entity": version.entity,
        "wandb.digest": version.digest,
        "wandb.aliases": natives.json_text(list(version.aliases)) if version.aliases else "",
        "wandb.tags": natives.json_text(list(version.tags)) if version.tags else "",
        "wandb.metadata": natives.json_text(natives.shallow(version.metadata)[0]) if version.metadata else "",
    }
    for key, text in told.items():
        if text:
            yield {"key": key, "value": text, "name": name, "version": number}
