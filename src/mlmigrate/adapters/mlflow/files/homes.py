"""Which folders of a store are experiments, also when their meta.yaml is gone.

<root>/<experiment id>/meta.yaml  tags/  datasets/  models/  traces/  <run id>/
<root>/.trash/<experiment id>/    the same, deleted
<root>/models/                    the registry
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH113, PTH118

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlmigrate.adapters.mlflow.files import disk, meta, runs
from mlmigrate.adapters.mlflow.files.runs import META
from mlmigrate.errors import BadData
from mlmigrate.model import OURS, Experiment, Loss

TRASH = ".trash"
REGISTRY = "models"
RESERVED = ("tags", "datasets", "traces", "models", TRASH)


@dataclass(frozen=True, slots=True)
class Home:
    """An experiment's folder. Its name is the experiment's id, whatever its meta.yaml says."""

    id: str
    path: str
    trashed: bool
    found: meta.Found

    @property
    def name(self) -> str:
        """The experiment's name, or one made for it."""
        return meta.word(self.found.meta.get("name")) or f"experiment {runs.escaped(self.id)}"

    @property
    def artifacts(self) -> str:
        """Where it says that artifacts lie."""
        return meta.word(self.found.meta.get("artifact_location"))

    @property
    def deleted(self) -> bool:
        """Whether it lies in the trash or says so."""
        return self.trashed or runs.is_deleted(self.found.meta)


def homes(root: str, oddities: list[Loss]) -> list[Home]:
    """The experiments of a store, those in the trash last; what else lies there is an oddity."""
    found = []
    for base in (root, os.path.join(root, TRASH)):
        for entry in disk.entries(base):
            home, odd = _home(entry, base != root)
            if home is not None:
                found.append(home)
            if odd:
                where = disk.shown(os.path.relpath(entry.path, root))
                oddities.append(Loss("", f"experiment {where}" if home else where, odd, entry.name if home else ""))
    return found


def _home(entry: os.DirEntry[str], trashed: bool) -> tuple[Home | None, str]:
    if disk.noise(entry.name) or (entry.name in (TRASH, REGISTRY) and not trashed and not _is_experiment(entry.path)):
        return None, ""
    if not disk.is_folder(entry):
        return None, disk.odd_kind(entry) if entry.is_symlink() else "left behind: no part of a store"
    found = meta.load(os.path.join(entry.path, META))
    if not found.flaw and not is_run(found.meta):
        return Home(entry.name, entry.path, trashed, found), _mismatch(entry.name, found.meta)
    if found.flaw not in ("", "missing") or (found.flaw and holds_runs(entry.path)):
        home = Home(entry.name, entry.path, trashed, found)
        return home, f"its meta.yaml is {found.flaw}: its runs are kept, under the name {disk.shown(home.name)!r}"
    return None, "left behind: no experiment"


def _mismatch(id: str, said: meta.Meta) -> str:
    told = meta.word(said.get("experiment_id"))
    if told in ("", id):
        return ""
    return f"its meta.yaml says that it is {disk.shown(told)!r}: kept as {disk.shown(id)!r}"


def _is_experiment(folder: str) -> bool:
    said = meta.load(os.path.join(folder, META)).meta
    return ("experiment_id" in said or "artifact_location" in said) and not is_run(said)


def is_run(said: meta.Meta) -> bool:
    """Whether a meta.yaml is a run's."""
    return "run_id" in said or "run_uuid" in said


def holds_runs(folder: str) -> bool:
    """Whether a folder without meta.yaml is an experiment's all the same: something in it looks like a run."""
    return any(_looks_like_run(entry.path, entry.name) for entry in disk.folders(folder) if entry.name not in RESERVED)


def _looks_like_run(folder: str, name: str) -> bool:
    inner = {entry.name for entry in disk.entries(folder)}
    if META in inner:
        said = meta.load(os.path.join(folder, META))
        return is_run(said.meta) or (bool(said.flaw) and runs.looks_like_id(name))
    return bool(inner & {"metrics", "params"}) or (runs.looks_like_id(name) and bool(inner & set(runs.CONTENT)))


def is_store(folder: str, *, loosely: bool = False) -> bool:
    """Whether a folder holds an experiment or a registry; loosely: or runs of an experiment without meta.yaml."""
    bases = (folder, os.path.join(folder, TRASH))
    if any(_is_experiment(entry.path) for base in bases for entry in disk.folders(base)):
        return True
    registry = os.path.join(folder, REGISTRY)
    if any(os.path.isfile(os.path.join(entry.path, META)) for entry in disk.folders(registry)):
        return True
    return loosely and any(holds_runs(entry.path) for base in bases for entry in disk.folders(base))


def identity(found: Iterable[Home]) -> str:
    """What tells one store from another, for things that have no id of their own: its oldest experiment."""
    marks = [(meta.time(home.found.meta.get("creation_time")) or 0, home.id, home.artifacts) for home in found]
    return disk.digest(repr(min(marks, default=())), 8)


def experiment(home: Home, oddities: list[Loss]) -> Experiment:
    """The experiment of a folder, with its tags."""
    tree = disk.walk(os.path.join(home.path, "tags"))
    tags = {}
    for file in tree.files:
        if file.path.startswith(OURS):
            continue
        try:
            tags[file.path] = disk.text(disk.read(file.place, runs.MOST))
        except BadData as error:
            oddities.append(Loss("", f"experiment tag {disk.shown(file.path)}", str(error), home.id))
        except OSError as error:
            oddities.append(Loss("", f"experiment tag {disk.shown(file.path)}", disk.why(error), home.id))
    for path, because in tree.odd:
        oddities.append(Loss("", f"experiment tag {disk.shown(path)}", because, home.id))
    said = home.found.meta
    return Experiment(
        id=home.id,
        name=home.name,
        tags=tags,
        created=meta.time(said.get("creation_time")),
        updated=meta.time(said.get("last_update_time")),
        deleted=home.deleted,
        artifact_root=home.artifacts,
    )


def shared_names(experiments: Sequence[Experiment]) -> list[Loss]:
    """An oddity for each experiment whose name an earlier one has."""
    first: dict[str, str] = {}
    odd = []
    for one in experiments:
        other = first.setdefault(one.name, one.id)
        if other != one.id:
            because = f"experiment {other} has the same name: a place that knows experiments by name makes them one"
            odd.append(Loss("", f"experiment {one.name!r}", because, one.id))
    return odd
