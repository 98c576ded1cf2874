"""What belongs to no run (registered models, traces, ...), as a run of W&B's of kind "records".

    records.jsonl           a line for each record: {"kind", "id", "owner", "body"}
    files/<owner>/<path>    files of models and traces

Both lie in one artifact of type mlmigrate-records.  The files of each logged model are an artifact of type model
besides, whose bytes W&B has but once; a registered model says which of those, or of the models of runs, are its
versions (Collection).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlmigrate.adapters.mlflow.objects import Tree, tree_of
from mlmigrate.adapters.wandb import names
from mlmigrate.adapters.wandb.outgoing import Home
from mlmigrate.adapters.wandb.provenance import (
    KEY,
    MODEL_TYPE,
    RECORD_FILES,
    RECORDS_JSONL,
    RECORDS_TYPE,
    Provenance,
    as_config,
)
from mlmigrate.adapters.wandb.shape import Collection, File, Linked, Version, WandbRun
from mlmigrate.adapters.wandb.trees import MLMODEL, Spool, described, digest_of, line_of
from mlmigrate.model import Artifact, Record, RunRef

OWN = "mlmigrate"  # the job type, and the label, of runs that are no runs of the source
_MODEL = "@model/"
_REGISTERED = "mlflow.registered_model"
_OF_RUN = re.compile(r"^runs:/([^/]+)/(.+)$|/([0-9a-f]{32})/artifacts/(.+)$")
_LOGGED = re.compile(r"^models:/(m-[^/]+)$|/models/(m-[^/]+)/artifacts/?$")


class Records:
    """Records and their files on their way; nothing of them stays in memory but paths."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool = Spool(folder / "files")
        self._files: dict[tuple[str, str], File] = {}  # by owner and path
        self.collections: list[Collection] = []

    def keep(self, record: Record) -> None:
        """One more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / RECORDS_JSONL).open("ab") as lines:
            lines.write(line_of(record))
        if record.kind == _REGISTERED:
            found = collection(tree_of(record))
            self.collections += [found] if found is not None else []

    def put(self, artifact: Artifact) -> None:
        """A file of something that was kept."""
        self._files[artifact.owner, artifact.path] = self._spool.take(artifact)

    def run(self, ref: RunRef, home: Home) -> WandbRun:
        """The run that holds all of it."""
        id_ = names.run_id(ref.origin, ref.id)
        origin = ref.origin or f"records:{ref.id}"
        told = Provenance(
            kind="records", origin=origin, id=ref.id, experiment=home.experiment.name, experiment_id=ref.experiment
        )
        files = tuple(self._held())
        whole = Version(names.records(id_), RECORDS_TYPE, digest=digest_of(files), aliases=("latest",), files=files)
        return WandbRun(
            id=id_,
            entity=home.entity,
            project=home.project,
            name=f"{OWN}: {ref.name or ref.id}",
            tags=(OWN,),
            job_type=OWN,
            exit_code=0,
            config={KEY: as_config(told)},
            logged=tuple(
                replace(one, entity=home.entity, project=home.project, run=id_) for one in (whole, *self._models())
            ),
        )

    def _held(self) -> Iterator[File]:
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = self._folder / RECORDS_JSONL
        lines.touch()
        with lines.open("rb") as stream:
            yield self._spool.put(RECORDS_JSONL, stream)
        for (owner, path), file in self._files.items():
            yield replace(file, path=f"{RECORD_FILES}{owner}/{path}")

    def _models(self) -> Iterator[Version]:
        """Each logged model that has files."""
        owners = dict.fromkeys(owner for owner, _ in self._files if owner.startswith(_MODEL))
        for owner in owners:
            files = tuple(file for (mine, _), file in self._files.items() if mine == owner)
            told = next((described(file) for file in files if file.path == MLMODEL), {})
            name = names.artifact(owner.removeprefix(_MODEL))
            yield Version(name, MODEL_TYPE, digest=digest_of(files), metadata=told, aliases=("latest",), files=files)


def collection(tree: Tree) -> Collection | None:
    """What a registered model would be among W&B's collections; None when no version of it can be found there."""
    row = tree["registered_models"][0]
    aliases: dict[str, list[str]] = {}
    for one in tree.get("registered_model_aliases", ()):
        aliases.setdefault(str(one["version"]), []).append(str(one["alias"]))
    versions = sorted(tree.get("model_versions", ()), key=lambda one: int(one["version"]))
    found = [_linked(one, aliases.get(str(one["version"]), [])) for one in versions]
    linked = tuple(one for one in found if one is not None)
    return Collection(names.artifact(str(row["name"])), row.get("description") or "", linked) if linked else None


def _linked(version: Mapping[str, Any], aliases: list[str]) -> Linked | None:
    number, said = str(version["version"]), version.get("description") or ""
    for source in (version.get("source") or "", version.get("storage_location") or ""):
        of_run, logged = _OF_RUN.search(source), _LOGGED.search(source)
        if of_run:
            run = names.run_id("", of_run[1] or of_run[3])
            folder = (of_run[2] or of_run[4]).strip("/")
            return Linked(names.model(run, folder), run, number, names.aliases(aliases), said)
        if logged:
            return Linked(names.artifact(logged[1] or logged[2]), "", number, names.aliases(aliases), said)
    return None
