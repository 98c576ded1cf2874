"""Datasets that no run read: <experiment>/datasets/<id>/meta.yaml. One that a run read is the run's input."""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH118

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlmigrate.adapters.mlflow.files import disk
from mlmigrate.adapters.mlflow.files.runs import META
from mlmigrate.adapters.mlflow.files.things import Thing, Told, experiment_key, folders
from mlmigrate.adapters.mlflow.objects import BY_NAME, record_of
from mlmigrate.model import Artifact, Record

KIND = BY_NAME["mlflow.dataset"]
_KNOWN = frozenset(("name", "digest", "source_type", "source", "schema", "profile"))


def unread(experiment: str, runs: Sequence[str]) -> list[str]:
    """The ids of the datasets in an experiment's folder that none of these runs names as an input.

    An input's folder is called md5(dataset id + run id), so none need be opened.
    """
    left = [entry.name for entry in disk.folders(os.path.join(experiment, "datasets"))]
    for run in runs if left else ():
        inputs = {entry.name for entry in disk.folders(os.path.join(experiment, run, "inputs"))}
        left = [one for one in left if _input_name(one, run) not in inputs] if inputs else left
    return left


def _input_name(dataset: str, run: str) -> str:
    whole = (dataset + run).encode("utf-8", "surrogatepass")
    return hashlib.md5(whole, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Datasets:
    """The datasets in one folder of an experiment; `only` holds the ids of those that are meant."""

    folder: str
    only: Sequence[str]
    told: Told

    def records(self) -> Iterator[Record]:
        """Every dataset."""
        for entry in folders(self.folder, self.told):
            dataset = Thing(entry.path, f"dataset {disk.shown(entry.name)}", self.told)
            if entry.name not in self.only or not dataset.load(META, _KNOWN, ("name", "digest")):
                continue
            dataset.strays(lambda one: one == META)
            row = {
                "experiment_id": experiment_key(self.told.experiment),
                "name": dataset.text("name"),
                "digest": dataset.text("digest"),
                "dataset_source_type": dataset.text("source_type", ""),
                "dataset_source": dataset.text("source", ""),
                "dataset_schema": dataset.text("schema"),
                "dataset_profile": dataset.text("profile"),
            }
            yield record_of(KIND, {"datasets": [row]})

    def artifacts(self) -> Iterator[Artifact]:
        """None."""
        return iter(())
