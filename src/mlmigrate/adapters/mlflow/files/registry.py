"""The registry: <root>/models/<name>/{meta.yaml,tags/,aliases/,version-<n>/{meta.yaml,tags/}}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlmigrate.adapters.mlflow.files import disk
from mlmigrate.adapters.mlflow.files.runs import META, escaped
from mlmigrate.adapters.mlflow.files.things import Thing, Told, folders
from mlmigrate.adapters.mlflow.objects import Row, Tree, record_of, registered_kind, rows_of
from mlmigrate.model import Artifact, Record

VERSION = "version-"
STATUSES: Mapping[str, str] = {"1": "PENDING_REGISTRATION", "2": "FAILED_REGISTRATION", "3": "READY"}
_REPEATED = ("name", "version", "tags", "aliases", "latest_versions", "latest_version", "params", "metrics")
_MODEL = frozenset((*_REPEATED, "creation_timestamp", "last_updated_timestamp", "description"))
_UNHELD = ("deployment_job_id", "deployment_job_state", "workspace")
_TEXTS = ("description", "user_id", "source", "run_id", "status_message", "run_link", "storage_location")
_KNOWN = _MODEL | {*_TEXTS, *_UNHELD, "current_stage", "status", "model_id"}


@dataclass(frozen=True, slots=True)
class Registry:
    """All registered models of a store."""

    folder: str
    told: Told

    def records(self) -> Iterator[Record]:
        """Every registered model with its versions; prompts are told from models by their tag."""
        # a folder's own name is its model's: another that says the same name is told
        taken = {escaped(entry.name) for entry in disk.folders(self.folder)}
        for entry in folders(self.folder, self.told):
            thing = Thing(entry.path, f"registered model {disk.shown(entry.name)!r}", self.told)
            tree = _registered(thing, escaped(entry.name), taken)
            if tree is not None:
                yield record_of(registered_kind(tree.get("registered_model_tags", ())), tree)

    def artifacts(self) -> Iterator[Artifact]:
        """None: versions name the files of runs and of logged models."""
        return iter(())


def _registered(model: Thing, folder: str, taken: set[str]) -> Tree | None:
    """The rows of a registered model; of one whose meta is broken what else lies there."""
    versions = [entry for entry in disk.folders(model.folder) if entry.name.startswith(VERSION)]
    if not model.load(META, _KNOWN, ("name",)) and not versions:
        return None
    name = _name(model, folder, taken)
    row = {
        "name": name,
        "creation_time": model.time("creation_timestamp"),
        "last_updated_time": model.time("last_updated_timestamp"),
        "description": model.text("description"),
    }
    model.without_columns(*_UNHELD)
    model.strays(lambda one: one in (META, "tags", "aliases") or one.startswith(VERSION))
    tree: Tree = {"registered_models": [row]}
    _fill(tree, "registered_model_tags", rows_of(model.values("tags"), name=name))
    for entry in versions:
        version = Thing(entry.path, f"version {disk.shown(entry.name[len(VERSION) :])} of {model.what}", model.told)
        _version(version, entry.name.removeprefix(VERSION), name, tree)
    numbers = {version["version"] for version in tree.get("model_versions", ())}
    _fill(tree, "registered_model_aliases", list(_aliases(model, name, numbers)))
    return tree


def _fill(tree: Tree, table: str, rows: list[Row]) -> None:
    if rows:
        tree.setdefault(table, []).extend(rows)


def _name(model: Thing, folder: str, taken: set[str]) -> str:
    """The name in its meta; its folder's when that is another model's."""
    name = model.text("name") or folder
    if name == folder:
        return name
    if name in taken:
        model.lose(f"name {name!r}", f"another model has it: kept under its folder's name {folder!r}")
        return folder
    model.note("name", f"its meta.yaml says {name!r}: kept under that name")
    taken.add(name)
    return name


def _version(version: Thing, number: str, name: str, tree: Tree) -> None:
    """Adds the rows of a version, when it is one that can be read."""
    if not (number.isascii() and number.isdecimal()) or int(number) >= 1 << 31:
        version.lose("its number", "left behind: that is none")
        return
    if not version.load(META, _KNOWN, ("source",)):
        return
    told = version.text("version", number)
    if told != number:
        version.note("version", f"its meta.yaml says {told!r}: kept under its folder's number")
    row: Row = {
        "name": name,
        "version": int(number),
        "creation_time": version.time("creation_timestamp"),
        "last_updated_time": version.time("last_updated_timestamp"),
        "current_stage": version.text("current_stage", "None"),
        "status": _status(version),
    }
    _fill(tree, "model_versions", [row | {field: version.text(field) for field in _TEXTS}])
    _fill(tree, "model_version_tags", rows_of(version.values("tags"), name=name, version=int(number)))
    version.without_columns(*_UNHELD)
    model = version.text("model_id")
    if model and f"models:/{model}" != version.text("source"):
        version.lose(f"model_id {model!r}", "its source is another, and no table of MLflow's has a column for it")
    version.strays(lambda one: one in (META, "tags"))


def _status(version: Thing) -> str:
    given = version.text("status") or "READY"
    return STATUSES.get(given, given)


def _aliases(model: Thing, name: str, numbers: set[int]) -> Iterator[Row]:
    for alias, text in model.values("aliases").items():
        number = text.strip()
        if number.isascii() and number.isdecimal() and int(number) in numbers:
            yield {"name": name, "alias": alias, "version": int(number)}
        else:
            model.lose(f"alias {alias!r}", f"names version {disk.shown(number)!r}, which is not there")
