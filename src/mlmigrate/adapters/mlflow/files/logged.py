"""Logged models: <experiment>/models/<id>/{meta.yaml,params/,tags/,metrics/,artifacts/}."""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH118

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from mlmigrate.adapters.mlflow.files import disk, meta
from mlmigrate.adapters.mlflow.files.artifacts import FOLDER, Whereabouts, artifacts
from mlmigrate.adapters.mlflow.files.lines import Bad
from mlmigrate.adapters.mlflow.files.links import Links
from mlmigrate.adapters.mlflow.files.modelmetrics import Line, lines_of
from mlmigrate.adapters.mlflow.files.runs import META, escaped
from mlmigrate.adapters.mlflow.files.things import Thing, Told, experiment_key, folders
from mlmigrate.adapters.mlflow.objects import BY_NAME, Row, Tree, record_of, rows_of
from mlmigrate.model import Artifact, Record

OWNER = "@model/"
KIND = BY_NAME["mlflow.logged_model"]
STATUSES = {"UNSPECIFIED": 0, "PENDING": 1, "READY": 2, "FAILED": 3}
TOLD = 10  # bad lines of a file that are told one by one
_PARTS = (META, "params", "tags", "metrics", FOLDER)
_REPEATED = frozenset(("tags", "params", "metrics", "model_uri"))
_KNOWN = _REPEATED | {
    "model_id",
    "experiment_id",
    "name",
    "artifact_location",
    "creation_timestamp",
    "last_updated_timestamp",
    "lifecycle_stage",
    "model_type",
    "source_run_id",
    "status",
    "status_message",
}


@dataclass(frozen=True, slots=True)
class LoggedModels:
    """The logged models in one folder of an experiment."""

    folder: str
    whereabouts: Whereabouts
    links: Links
    told: Told

    def records(self) -> Iterator[Record]:
        """Every logged model with the links of runs to it."""
        for entry in folders(self.folder, self.told):
            model = Thing(entry.path, f"logged model {disk.shown(entry.name)}", self.told)
            if model.load(META, _KNOWN, ("name",)):
                yield record_of(KIND, self._tree(model, escaped(entry.name)))

    def artifacts(self) -> Iterator[Artifact]:
        """The files of every logged model that can be read."""
        for entry in disk.folders(self.folder):
            said = meta.load(os.path.join(entry.path, META)).meta
            uri = meta.word(said.get("artifact_location"))
            parts = (self.told.experiment, "models", entry.name)
            place = self.whereabouts.folder(entry.path, parts, uri)
            if place and meta.word(said.get("name")):
                yield from artifacts(place, OWNER + escaped(entry.name), self.told.experiment, self.told.losses)
            elif place:
                self.told.lose(f"logged model {disk.shown(entry.name)}, artifacts", "left behind with it")
            elif self.whereabouts.far(uri) and meta.word(said.get("name")):
                yield from self.whereabouts.stores.artifacts(uri, OWNER + escaped(entry.name))
            elif because := self.whereabouts.missing(entry.path, uri):
                self.told.lose(f"logged model {disk.shown(entry.name)}, artifacts", because)

    def _tree(self, model: Thing, id: str) -> Tree:
        experiment = experiment_key(self.told.experiment)
        same = {"model_id": id, "experiment_id": experiment}
        created = model.time("creation_timestamp", 0)
        row: Row = {
            **same,
            "name": model.text("name"),
            "artifact_location": model.text("artifact_location", ""),
            "creation_timestamp_ms": created,
            "last_updated_timestamp_ms": model.time("last_updated_timestamp", created),
            "status": _status(model),
            "lifecycle_stage": model.text("lifecycle_stage", "active"),
            "model_type": model.text("model_type"),
            "source_run_id": model.text("source_run_id"),
            "status_message": model.text("status_message"),
        }
        self._check(model, id)
        tree = {
            "logged_models": [row],
            "logged_model_params": rows_of(model.values("params"), "param_key", "param_value", **same),
            "logged_model_tags": rows_of(model.values("tags"), "tag_key", "tag_value", **same),
            "logged_model_metrics": [row | same for row in _metrics(model)],
            "inputs": [link.row for link in self.links.of(id)],
        }
        return {table: rows for table, rows in tree.items() if rows}

    def _check(self, model: Thing, id: str) -> None:
        for field, own in (("model_id", id), ("experiment_id", self.told.experiment)):
            told = model.text(field) or own
            if told != own:
                model.note(
                    field, f"its meta.yaml says {disk.shown(told)!r}: kept as {disk.shown(own)!r}, where it lies"
                )
        model.strays(lambda one: one in _PARTS)


def _status(model: Thing) -> int:
    given = model.said.get("status", STATUSES["PENDING"])
    word = str(given).upper()
    if word in STATUSES:
        return STATUSES[word]
    if word.isascii() and word.isdecimal() and int(word) in STATUSES.values():
        return int(word)
    model.lose("status", f"{disk.shown(word)!r} is none that MLflow knows: PENDING")
    return STATUSES["PENDING"]


def _metrics(model: Thing) -> Iterator[Row]:
    """The points of a logged model; of those that MLflow's table takes for the same, the first."""
    for path, data in model.files("metrics"):
        lines, bad = lines_of(data)
        name = model.valid(path, f"name of metrics/{path}")
        _tell(model, name, bad)
        first: dict[tuple[int, int, str], Line] = {}
        for line in lines:
            first.setdefault(line.key, line)
        if len(first) < len(lines):
            because = "the same time, step and run as another: MLflow's table holds one of them, and that is the first"
            model.lose(f"metric {disk.shown(name)!r}", f"{len(lines) - len(first)} points have {because}")
        yield from (_metric(name, line) for line in first.values())


def _metric(name: str, line: Line) -> Row:
    return {
        "metric_name": name,
        "metric_timestamp_ms": line.timestamp,
        "metric_step": line.step,
        "metric_value": number(line.value),
        "run_id": line.run,
        "dataset_name": line.name,
        "dataset_digest": line.digest,
    }


def number(value: float) -> object:
    """A number as a row has it: JSON has no word for some."""
    if math.isfinite(value):
        return value
    word = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return {"$float": word}


def _tell(model: Thing, name: str, bad: list[Bad]) -> None:
    for line in bad[:TOLD]:
        model.lose(f"metric {disk.shown(name)!r}, line {line.number}", line.because)
    if len(bad) > TOLD:
        model.lose(f"metric {disk.shown(name)!r}", f"{len(bad) - TOLD} more lines cannot be read")
