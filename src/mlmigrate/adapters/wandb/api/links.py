"""Registered models as W&B has such: collections that link to versions of artifacts.

What cannot be linked is told: the whole model lies among the records, and comes back from there all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlmigrate.adapters.wandb.api.logged import Artifacts
from mlmigrate.adapters.wandb.api.stream import Where
from mlmigrate.adapters.wandb.api.there import There
from mlmigrate.adapters.wandb.provenance import MODEL_TYPE
from mlmigrate.adapters.wandb.shape import Collection, Linked, Version
from mlmigrate.errors import MigrateError, Refused, Unavailable
from mlmigrate.model import Loss


@dataclass(frozen=True, slots=True)
class _Found:
    where: Where
    artifact: str


def linked(artifacts: Artifacts, there: There, entity: str, collections: Sequence[Collection]) -> list[Loss]:
    """Links what can be linked, oldest version first; tells what cannot. Linking again changes nothing."""
    losses: list[Loss] = []
    for collection in collections:
        home: Where | None = None
        for version in collection.versions:
            found = _found(artifacts, there, entity, version)
            if found is None:
                losses.append(_loss(collection, version, "its files are no artifact there"))
                continue
            home = home or found.where
            try:
                artifacts.link(home, found.artifact, collection.name, version.aliases)
            except (Unavailable, Refused):
                raise
            except MigrateError as error:
                losses.append(_loss(collection, version, str(error)))
    return losses


def _found(artifacts: Artifacts, there: There, entity: str, version: Linked) -> _Found | None:
    for project in _projects(there, version):
        where = Where(entity, project, version.run or "-")
        found = artifacts.find(where, Version(version.artifact, MODEL_TYPE))
        if found is not None:
            return _Found(where, found)
    return None


def _projects(there: There, version: Linked) -> Iterator[str]:
    """Where the artifact may be: in the project of its run, or of runs that hold records."""
    seen: set[str] = set()
    for run in there.all():
        fits = run.id == version.run if version.run else run.ours is not None and run.ours.kind == "records"
        if fits and run.project not in seen:
            seen.add(run.project)
            yield run.project


def _loss(collection: Collection, version: Linked, because: str) -> Loss:
    what = f"version {version.version} of the model {collection.name!r} as a link in W&B"
    return Loss("", what, f"{because}; it lies among the records")
