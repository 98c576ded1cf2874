"""What the source's things are called in a target, and the rewriting of every place where a name hides.

    mlflow.parentRunId: 8f2c...                     -> the run's id here
    mlflow-artifacts:/3/8f2c.../artifacts/model     -> where that run keeps its artifacts here
    models:/fraud/3, runs:/8f2c.../model, m-4a...   -> the names and ids here
    MLmodel: run_id, model_id, artifact_path        -> the same, the rest of the file as it is

Only ids that are known are replaced: run ids are 32 hexadecimal digits and model ids "m-" and as many, which
nothing else is by chance; ids of any other shape only where they stand behind "runs:/" or in fields of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import msgspec

from mlmigrate.adapters.mlflow.objects import BY_NAME, IDS, MARKS, TEXTS, TYPED_IDS, TYPES, Named, Row, Tree, id_of
from mlmigrate.model import PARENT_TAG, Artifact, Experiment, Record, Run

MLMODEL = "MLmodel"
LARGEST_MLMODEL = 4 << 20  # bytes; what is larger is no MLmodel file of MLflow's
EXPERIMENT_IDS = "_mlflow_experiment_ids"  # a prompt's tag: ids with commas between, before and after them
NAMED_VERSIONS = ("mlflow.linkedPrompts", "mlflow.modelVersions")  # tags that hold names and versions as JSON
KEYS = {"trace_request_metadata": "key", **MARKS}  # table of tags -> its column of keys
RUN_TAGS = (PARENT_TAG, "mlflow.rootRunId")
OWNERS: Mapping[str, Named] = {"@model/": "logged_model", "@trace/": "trace"}
_TOKEN = re.compile(r"(?<![0-9A-Za-z])(?:m-|tr-|d-)?[0-9a-f]{32}(?![0-9A-Za-z])")
# a URI or an absolute path up to "/<id>/artifacts", as MLflow builds them
_ROOT = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.\-]*:|/)(?:[^\s\"'<>]*?)/((?:m-|tr-)?[0-9a-f]{32})/artifacts(?=[/\s\"'<>]|$)"
)
_VERSION = re.compile(r"models:/([^/\s\"'#?@]+)/(\d+)(?![\w.])")
_RUN = re.compile(r"runs:/([^/\s\"'#?]+)")  # a run of another tracker may have an id of any shape
_ALIAS = re.compile(r"models:/([^/\s\"'#?@]+)@")


@dataclass(frozen=True, slots=True)
class References:
    """The names here, by the source's.

    ids     of what -> the source's id -> the id here
    places  of what -> the source's id -> the URI here under which the thing keeps its artifacts
    models  a registered model's name -> its name here
    versions  (the source's name, version number) -> version number here, where it is another
    """

    ids: Mapping[Named, Mapping[str, str]] = field(default_factory=dict)
    places: Mapping[Named, Mapping[str, str]] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def id(self, named: Named, id: str) -> str:
        """What a thing is called here; the id itself where that is not known."""
        return self.ids.get(named, {}).get(id, id)

    def text(self, text: str) -> str:
        """A text with every known id, models:/ and artifact URI in it as they are here."""
        if "/artifacts" in text:
            text = _ROOT.sub(self._root, text)
        if "models:/" in text and (self.models or self.versions):
            text = _ALIAS.sub(self._alias, _VERSION.sub(self._version, text))
        text = _TOKEN.sub(self._token, text)
        return _RUN.sub(self._run, text) if "runs:/" in text else text

    def _run(self, found: re.Match[str]) -> str:
        """Ids of MLflow's shape are replaced already, wherever they stand."""
        return found[0] if _TOKEN.fullmatch(found[1]) else f"runs:/{self.id('run', found[1])}"

    def _root(self, found: re.Match[str]) -> str:
        for places in self.places.values():
            if found[1] in places:
                return places[found[1]]
        return found[0]

    def _version(self, found: re.Match[str]) -> str:
        name, version = found[1], int(found[2])
        return f"models:/{self.models.get(name, name)}/{self.versions.get((name, version), version)}"

    def _alias(self, found: re.Match[str]) -> str:
        return f"models:/{self.models.get(found[1], found[1])}@"

    def _token(self, found: re.Match[str]) -> str:
        token = found[0]
        for ids in self.ids.values():
            if token in ids:
                return ids[token]
        return token

    def experiment(self, experiment: Experiment) -> Experiment:
        """The experiment itself: its name is the target's business."""
        return experiment

    def run(self, run: Run) -> Run:
        """The run with its tags and params as they are here."""
        tags = {key: self.tag(key, value) for key, value in run.tags.items()}
        for key in RUN_TAGS:
            if key in run.tags:
                tags[key] = self.id("run", run.tags[key])
        params = {key: self.text(value) if isinstance(value, str) else value for key, value in run.params.items()}
        return replace(run, tags=tags, params=params)

    def record(self, record: Record) -> Record:
        """An object with all ids and texts in its rows as they are here."""
        if record.kind not in BY_NAME:
            return record
        tree: Tree = msgspec.json.decode(record.body)
        for table, rows in tree.items():
            for row in rows:
                self.row(table, row)
        kind = BY_NAME[record.kind]
        name = id_of(kind, tree[kind.table][0]) if tree.get(kind.table) else record.id
        return replace(record, id=name, body=msgspec.json.encode(tree).decode())

    def tag(self, key: str, value: str) -> str:
        """A tag's value; some tags of MLflow's name things in a way of their own."""
        if key == EXPERIMENT_IDS:
            return ",".join(self.id("experiment", one) for one in value.split(","))
        if key in NAMED_VERSIONS and (self.models or self.versions):
            return self._named_versions(value)
        return self.text(value)

    def _named_versions(self, value: str) -> str:
        """[{"name": ..., "version": ...}, ...] as JSON; anything else stays."""
        try:
            found = msgspec.json.decode(value, type=list[dict[str, Any]])
        except (msgspec.DecodeError, msgspec.ValidationError):
            return self.text(value)
        changed = False
        for one in found:
            name, version = one.get("name"), str(one.get("version", ""))
            if not isinstance(name, str):
                continue
            number = self.versions.get((name, int(version)), int(version)) if version.isdigit() else one.get("version")
            new = {"name": self.models.get(name, name), "version": number}
            if isinstance(one.get("version"), str):
                new["version"] = str(number)
            changed |= any(one.get(field) not in (value, None) for field, value in new.items())
            one |= {field: value for field, value in new.items() if field in one}
        return json.dumps(found) if changed else self.text(value)

    def row(self, table: str, row: Row) -> None:
        """Changes one row of `table`."""
        if table == "assessments" and row.get("assessment_type") == "issue" and isinstance(row.get("name"), str):
            row["name"] = self.id(
                "issue", row["name"]
            )  # MLflow keeps the id there, and its run's as the source
            row["source_id"] = self.id("run", row["source_id"]) if isinstance(row.get("source_id"), str) else None
        types = {id_column: row.get(type_column) for type_column, id_column in TYPED_IDS.get(table, ())}
        for column, value in row.items():
            at = f"{table}.{column}"
            if column == "experiment_id" and value is not None:
                row[column] = _like(value, self.id("experiment", str(value)))
            elif isinstance(value, str):
                named = TYPES.get(str(types[column]).lower()) if column in types else IDS.get(at)
                if named is not None:
                    row[column] = self.id(named, value)
                elif at in TEXTS:
                    row[column] = self.tag(str(row.get(KEYS.get(table, ""))), value)
        if table.startswith(("registered_model", "model_version")) and isinstance(row.get("name"), str):
            name = row["name"]
            if isinstance(row.get("version"), int):
                row["version"] = self.versions.get((name, row["version"]), row["version"])
            row["name"] = self.models.get(name, name)

    def artifact(self, artifact: Artifact) -> Artifact:
        """The file as it is here: owned by the owner's id here, and ids replaced in an MLmodel file."""
        owner = artifact.owner
        for prefix, named in OWNERS.items():
            if owner.startswith(prefix):
                owner = prefix + self.id(named, owner.removeprefix(prefix))
        moved = artifact if owner == artifact.owner else replace(artifact, owner=owner)
        if artifact.path.rpartition("/")[2] != MLMODEL or (artifact.size or 0) > LARGEST_MLMODEL:
            return moved
        return rewritten(moved, self.text)


def rewritten(artifact: Artifact, text: Callable[[str], str]) -> Artifact:
    """A small text file with `text` applied to all of it; the file itself when that changes nothing."""
    with artifact.open() as stream:
        data = stream.read(LARGEST_MLMODEL + 1)
    if len(data) > LARGEST_MLMODEL:
        return artifact
    try:
        new = text(data.decode("utf-8")).encode("utf-8")
    except UnicodeDecodeError:
        return artifact
    if new == data:
        return artifact

    def opened() -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(new)

    return replace(artifact, open=opened, size=len(new), sha256=hashlib.sha256(new).hexdigest(), spot=None)


def _like(value: object, id: str) -> object:
    """An id in the type that the value had."""
    return int(id) if isinstance(value, int) and id.isdigit() else id
