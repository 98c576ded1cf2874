"""The values of a file store that name places of artifacts.

    table            file                                                     column
    experiments      <experiment>/meta.yaml                                   artifact_location
    runs             <experiment>/<run>/meta.yaml                             artifact_uri
    logged_models    <experiment>/models/<id>/meta.yaml                       artifact_location
    model_versions   models/<name>/version-<n>/meta.yaml                      source, storage_location
    trace_tags       <experiment>/traces/<id>/tags/mlflow.artifactLocation    value (the whole file)

Experiments in the trash are <experiment>s too.  A value's key is its file's path below the root.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH112, PTH118

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mlmigrate.adapters.estate import Cell
from mlmigrate.adapters.mlflow.files import disk, homes, meta, runs, traces
from mlmigrate.adapters.mlflow.files.homes import Home
from mlmigrate.adapters.mlflow.files.logged import STATUSES as MODEL_STATUSES
from mlmigrate.adapters.mlflow.files.meta import Meta
from mlmigrate.adapters.mlflow.files.registry import VERSION
from mlmigrate.adapters.mlflow.files.runs import META
from mlmigrate.errors import BadData

NO_PLACES = ("", "dummy-source", "REDACTED-SOURCE-PATH")
REFERENCES = ("models:/", "runs:/", "prompts:/")
TAGS = (traces.LOCATION, "mlflow.trace.archiveLocation")
VALUE = "value"  # the column of a file that is one value
# (table, column, the name of the file)
COLUMNS = frozenset(
    [
        ("experiments", "artifact_location", META),
        ("runs", "artifact_uri", META),
        ("logged_models", "artifact_location", META),
        ("model_versions", "source", META),
        ("model_versions", "storage_location", META),
        *(("trace_tags", VALUE, tag) for tag in TAGS),
    ]
)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads all values of one store, kind by kind, sorted by path. `at`: where a file is read instead."""

    root: str
    at: Callable[[str], str] = str

    def cells(self) -> Iterator[Cell]:
        """Those that are no place, and those whose file's path is no text, are left out."""
        found = homes.homes(self.root, [])
        for walk in (self._experiment, self._runs, self._models):
            for home in found:
                yield from walk(home)
        yield from self._versions({home.id: home for home in found})
        for home in found:
            yield from self._traces(home)

    def _experiment(self, home: Home) -> Iterator[Cell]:
        file = os.path.join(home.path, META)
        said = home.found.meta if self.at(file) == file else meta.load(self.at(file)).meta
        cell = Cell(
            *("experiments", (), "artifact_location", meta.word(said.get("artifact_location")), "experiment"),
            name=home.name,
            changed=meta.time(said.get("last_update_time")),
        )
        yield from self._placed(cell, home, file)

    def _runs(self, home: Home) -> Iterator[Cell]:
        for entry in disk.folders(home.path):
            if entry.name in homes.RESERVED:
                continue
            file = os.path.join(entry.path, META)
            said = meta.load(self.at(file)).meta
            if homes.is_run(said):
                cell = Cell(
                    *("runs", (), "artifact_uri", meta.word(said.get("artifact_uri")), "run"),
                    owner=entry.name,
                    name=runs.name_of(said) or runs.tag(entry.path, runs.NAME_TAG),
                    active=runs.status_of(said)[0] in ("RUNNING", "SCHEDULED"),
                    changed=meta.time(said.get("end_time")),
                )
                yield from self._placed(cell, home, file)

    def _models(self, home: Home) -> Iterator[Cell]:
        for entry in disk.folders(os.path.join(home.path, "models")):
            file = os.path.join(entry.path, META)
            said = meta.load(self.at(file)).meta
            cell = Cell(
                *("logged_models", (), "artifact_location", meta.word(said.get("artifact_location")), "model"),
                owner=f"@model/{entry.name}",
                name=meta.word(said.get("name")),
                active=meta.word(said.get("status")).upper() in ("PENDING", str(MODEL_STATUSES["PENDING"])),
                changed=meta.time(said.get("last_updated_timestamp")),
            )
            yield from self._placed(cell, home, file)

    def _versions(self, found: dict[str, Home]) -> Iterator[Cell]:
        for model in disk.folders(os.path.join(self.root, homes.REGISTRY)):
            for entry in disk.folders(model.path):
                if not entry.name.startswith(VERSION):
                    continue
                file = os.path.join(entry.path, META)
                said = meta.load(self.at(file)).meta
                name = meta.word(said.get("name")) or model.name
                cell = Cell(
                    *("model_versions", (), "", "", "version"),
                    owner=f"@version/{name}/{entry.name.removeprefix(VERSION)}",
                    experiment=self._experiment_of(meta.word(said.get("run_id")), found),
                    name=name,
                    active=meta.word(said.get("status")) in ("PENDING_REGISTRATION", "1"),
                    changed=meta.time(said.get("last_updated_timestamp")),
                )
                for column in ("source", "storage_location"):
                    yield from self._placed(replace(cell, column=column, value=meta.word(said.get(column))), None, file)

    def _experiment_of(self, run: str, found: dict[str, Home]) -> str:
        """The experiment of a version's run: told by where the run's folder is."""
        if not runs.looks_like_id(run):
            return ""
        return next((id_ for id_, home in found.items() if os.path.isdir(os.path.join(home.path, run))), "")

    def _traces(self, home: Home) -> Iterator[Cell]:
        for entry in disk.folders(os.path.join(home.path, "traces")):
            said: Meta | None = None
            for tag in TAGS:
                file = os.path.join(entry.path, "tags", tag)
                value = whole(self.at(file))
                if value:
                    said = meta.load(os.path.join(entry.path, traces.INFO)).meta if said is None else said
                    cell = Cell(
                        *("trace_tags", (), VALUE, value, "trace"),
                        owner=f"@trace/{entry.name}",
                        name=runs.tag(entry.path, "mlflow.traceName"),
                        active=meta.word(said.get("status") or said.get("state")) in ("IN_PROGRESS", "3"),
                        changed=traces.ended(said),
                    )
                    yield from self._placed(cell, home, file)

    def _placed(self, cell: Cell, home: Home | None, file: str) -> Iterator[Cell]:
        path = os.path.relpath(file, self.root).replace(os.sep, "/")
        if cell.value in NO_PLACES or cell.value.startswith(REFERENCES) or not _texts(path, cell.value):
            return
        experiment = cell.experiment if home is None else home.id
        owner, name, experiment = (runs.escaped(one) for one in (cell.owner, cell.name, experiment))
        yield replace(cell, key=(path,), owner=owner, name=name, experiment=experiment)


def whole(file: str) -> str:
    """The text of a file that is one value; "" when it cannot be read."""
    try:
        return disk.text(disk.read(file, meta.MOST))
    except (OSError, BadData):
        return ""


def _texts(*values: str) -> bool:
    """Whether all of these are text that can be written down."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True
