"""Which runs made and read which logged models: links lie with the runs, and tell of the models.

    <run>/inputs/<md5>/meta.yaml        source_type MODEL: the run read the model   RUN_INPUT -> MODEL_INPUT
    <run>/outputs/<model>/meta.yaml     the run made the model, at a step           RUN_OUTPUT -> MODEL_OUTPUT
    models/<model>/metrics/<key>        a line names the run that logged the point

A store is looked through once, the first time that somebody asks.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH118

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mlmigrate.adapters.mlflow.files import disk, homes, meta
from mlmigrate.adapters.mlflow.files.modelmetrics import Line, lines_of
from mlmigrate.adapters.mlflow.files.runs import META, Link, escaped, link_of
from mlmigrate.adapters.mlflow.files.things import MOST
from mlmigrate.errors import BadData
from mlmigrate.model import POINTS

MODELS = "models"


@dataclass(slots=True)
class _Seen:
    """What a look through a store came to."""

    places: dict[str, list[str]] = field(default_factory=dict)  # model -> its folders
    links: dict[str, dict[tuple[str, str], Link]] | None = None  # model -> (run, part) -> link
    measured: dict[str, list[str]] | None = None  # run -> the models that it logged points with a dataset of


class Links:
    """The links of one store. Of use to several threads at once."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._seen: _Seen | None = None

    def forget(self) -> None:
        """The store may have changed: it is looked through again."""
        with self._lock:
            self._seen = None

    def knows(self, model: str) -> bool:
        """Whether the store has a folder of this logged model."""
        return model in self._places()

    def of(self, model: str) -> list[Link]:
        """The links of a logged model, those of the same run and kind once."""
        with self._lock:
            seen = self._look()
            if seen.links is None:
                seen.links = self._all_links() if seen.places else {}
            return list(seen.links.get(model, {}).values())

    def marks(self, models: list[str]) -> str:
        """Changes when a link of one of these models does."""
        return "\n".join(repr(link) for model in models for link in self.of(model))

    def fill(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Points whose dataset a logged model knows too get that model in their column `model`."""
        names = batch["dataset_name"]
        if names.null_count == len(names):
            return batch
        models = _Models(self)
        columns = {name: batch[name] for name in ("run", "key", "step", "timestamp", "value", "dataset_name")}
        rows = np.flatnonzero(names.is_valid().to_numpy(zero_copy_only=False))
        slim = pa.table({**columns, "dataset_digest": batch["dataset_digest"]}).take(pa.array(rows))
        found: list[str | None] = [None] * len(batch)
        for row, point in zip(rows.tolist(), slim.to_pylist(), strict=True):
            found[row] = models.of(point)
        filled = {name: batch[name] for name in POINTS.names} | {
            "model": pa.array(found, pa.utf8()).dictionary_encode()
        }
        return pa.RecordBatch.from_arrays(list(filled.values()), schema=POINTS)

    def measured_by(self, run: str) -> list[str]:
        """The folders of the logged models that a run logged points with a dataset of."""
        with self._lock:
            seen = self._look()
            if seen.measured is None:
                seen.measured = _measured(seen.places)
            return seen.measured.get(run, [])

    def _places(self) -> Mapping[str, list[str]]:
        with self._lock:
            return self._look().places

    def _look(self) -> _Seen:
        if self._seen is None:
            self._seen = _Seen()
            for home in homes.homes(self._root, []):
                for entry in disk.folders(os.path.join(home.path, MODELS)):
                    self._seen.places.setdefault(escaped(entry.name), []).append(entry.path)
        return self._seen

    def _all_links(self) -> dict[str, dict[tuple[str, str], Link]]:
        found: dict[str, dict[tuple[str, str], Link]] = {}
        for home in homes.homes(self._root, []):
            for entry in disk.folders(home.path):
                for link in () if entry.name in homes.RESERVED else links_in(entry.path, entry.name):
                    found.setdefault(link.model, {}).setdefault((link.run, link.part), link)
        return found


def links_in(folder: str, run: str) -> Iterator[Link]:
    """The links in a run's folder, as far as they can be read."""
    inside = {entry.name for entry in disk.folders(folder)}
    for part in inside & {"inputs", "outputs"}:
        for entry in disk.folders(os.path.join(folder, part)):
            found = meta.load(os.path.join(entry.path, META))
            link = None if found.flaw else link_of(run, part, entry.name, found.meta)
            if link is not None:
                yield link


def _measured(places: Mapping[str, list[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folders in places.values():
        for folder in folders:
            runs = {
                line.run
                for file in disk.walk(os.path.join(folder, "metrics")).files
                for line in _lines(file.place)
                if line.name is not None
            }
            for run in runs:
                found.setdefault(run, []).append(folder)
    return found


def _lines(place: str) -> Iterator[Line]:
    try:
        data = disk.read(place, MOST)
    except (OSError, BadData):
        return iter(())
    return iter(lines_of(data)[0])


class _Models:
    """Which logged model knows a point: looked up in the files of one metric of one run at a time."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._at: tuple[str, str] | None = None
        self._known: dict[tuple[object, ...], str] = {}

    def of(self, point: Mapping[str, object]) -> str | None:
        """The model that has this point (a row of POINTS) with the same dataset."""
        at = str(point["run"]), str(point["key"])
        if at != self._at:
            self._at, self._known = at, dict(self._points(*at))
        number = repr(point["value"])
        return self._known.get(
            (point["timestamp"], point["step"], number, point["dataset_name"], point["dataset_digest"])
        )

    def _points(self, run: str, key: str) -> Iterator[tuple[tuple[object, ...], str]]:
        for folder in self._links.measured_by(run):
            place = os.path.join(folder, "metrics", *key.split("/"))
            if ".." in key or not os.path.isfile(place):  # noqa: PTH113
                continue
            for line in _lines(place):
                if line.run == run:
                    point = (line.timestamp, line.step, repr(line.value), line.name, line.digest)
                    yield point, escaped(os.path.basename(folder))  # noqa: PTH119
