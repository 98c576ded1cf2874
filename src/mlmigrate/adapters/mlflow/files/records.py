"""What belongs to no run, by the refs that stand for it: "@registry", and for each experiment the rest.

    <root>/models/           "@registry"                    registry
    <experiment>/models/     "@logged_models/<experiment>"  logged
    <experiment>/traces/     "@traces/<experiment>"         traces
    <experiment>/datasets/   "@datasets/<experiment>"       datasets

Each thing becomes the rows of MLflow's own tables (see objects); what no row holds is told.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH118

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlmigrate.adapters.mlflow.files import datasets, disk, homes
from mlmigrate.adapters.mlflow.files.artifacts import Whereabouts
from mlmigrate.adapters.mlflow.files.homes import Home
from mlmigrate.adapters.mlflow.files.links import Links
from mlmigrate.adapters.mlflow.files.logged import LoggedModels
from mlmigrate.adapters.mlflow.files.registry import Registry
from mlmigrate.adapters.mlflow.files.runs import escaped
from mlmigrate.adapters.mlflow.files.things import Told
from mlmigrate.adapters.mlflow.files.traces import Traces
from mlmigrate.adapters.mlflow.objects import GROUPS
from mlmigrate.model import Artifact, Loss, Record, RunRef

REGISTRY = "registry"
FOLDERS: Mapping[str, str] = {"logged_models": "models", "datasets": "datasets", "traces": "traces"}


class Things(Protocol):
    """The things of one kind in one folder."""

    def records(self) -> Iterator[Record]: ...

    def artifacts(self) -> Iterator[Artifact]: ...


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds the things of a store. `runs` holds the names of the folders in an experiment that may be runs."""

    root: str
    links: Links
    found: Sequence[Home]
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def refs(self) -> Iterator[RunRef]:
        """A ref for each kind of thing that there is, in the order in which they are carried."""
        identity = homes.identity(self.found)
        for group in GROUPS:
            if group == REGISTRY:
                place = os.path.join(self.root, homes.REGISTRY)
                if all(home.path != place for home in self.found) and disk.folders(place):
                    yield _ref("@" + REGISTRY, "", [place], "", identity)
            elif group in FOLDERS:
                yield from self._of_experiments(group, identity)

    def _of_experiments(self, group: str, identity: str) -> Iterator[RunRef]:
        places: dict[str, list[str]] = {}
        for home in self.found:
            place = os.path.join(home.path, FOLDERS[group])
            if disk.folders(place) and (group != "datasets" or datasets.unread(home.path, self._runs(home))):
                places.setdefault(home.id, []).append(place)
        for experiment, folders in places.items():
            models = [escaped(entry.name) for place in folders for entry in disk.folders(place)]
            more = self.links.marks(models) if group == "logged_models" else ""
            yield _ref(f"@{group}/{experiment}", experiment, folders, more, identity)

    def _runs(self, home: Home) -> Sequence[str]:
        return self.runs.get(home.path, ())


def _ref(id: str, experiment: str, folders: Sequence[str], more: str, identity: str) -> RunRef:
    """The ref that stands for all things in some folders. `identity` tells stores apart."""
    trees = [disk.walk(folder, stats=True, skip_noise=False) for folder in folders]
    marks = [f"{file.path}\0{file.size}\0{file.changed}" for tree in trees for file in tree.files]
    return RunRef(
        experiment=experiment,
        id=id,
        name=id,
        origin=f"mlflow:{id}:{identity}",
        stamp=disk.digest("\n".join([*marks, more])),
        size=sum(tree.size for tree in trees),
        kind="records",
    )


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens what refs stand for."""

    root: str
    whereabouts: Whereabouts
    links: Links
    losses: list[Loss]
    notes: list[Loss]

    def open(self, ref: RunRef, places: Sequence[str]) -> Iterator[Things]:
        """The things behind a ref; `places` are the folders of its experiment that may be there."""
        group = ref.id.removeprefix("@").partition("/")[0]
        told = Told(ref.experiment, self.losses, self.notes)
        if group == REGISTRY:
            yield Registry(os.path.join(self.root, homes.REGISTRY), told)
        for home in places if group in FOLDERS else ():
            folder = os.path.join(home, FOLDERS[group])
            if os.path.islink(folder) or not os.path.isdir(folder):  # noqa: PTH112, PTH114
                continue
            if group == "logged_models":
                yield LoggedModels(folder, self.whereabouts, self.links, told)
            elif group == "traces":
                yield Traces(folder, self.whereabouts, told)
            else:
                yield datasets.Datasets(folder, datasets.unread(home, _names(home)), told)


def _names(home: str) -> list[str]:
    return [entry.name for entry in disk.folders(home) if entry.name not in homes.RESERVED]
