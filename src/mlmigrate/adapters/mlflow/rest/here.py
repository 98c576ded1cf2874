"""What of ours is on a server, read from the tags that came with it; and what the source's things are called there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from mlmigrate.adapters.mlflow import objects
from mlmigrate.adapters.mlflow.objects import BY_NAME, Row, Tree
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.objects import Known
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.rest.source import API
from mlmigrate.adapters.mlflow.rest.wire import Pair
from mlmigrate.adapters.mlflow.rest.writing import NAME_TAG
from mlmigrate.errors import BadData, MigrateError, NotFound, Unavailable
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, Artifact, Record, Run

T = TypeVar("T")
SOURCE_TAG = OURS + "source"  # of a version whose source the server refused: what it was
PLACEHOLDER_TAG = OURS + "placeholder"  # of a version that fills a gap, until the whole model is there
VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model; the server writes it when a version is made of it
PROMPTS = f"tags.`{objects.IS_PROMPT}` = 'true'"
PROMPTS_SINCE, MODELS_SINCE, DATASETS_SINCE = (2, 21), (3, 0), (3, 4)
EXPERIMENTS_AT_ONCE = 50
DELETED_STAGE = "Deleted_Internal"
LARGEST = 1.7976931348623157e308
FLOATS = {"NaN": 0.0, "Infinity": LARGEST, "-Infinity": -LARGEST, "inf": LARGEST, "-inf": -LARGEST}


class Alias(msgspec.Struct, frozen=True):
    """A name for a version."""

    alias: str = ""
    version: int = 0


class Registered(msgspec.Struct, frozen=True):
    """A registered model or a prompt."""

    name: str = ""
    description: str = ""
    tags: list[Pair] = []
    aliases: list[Alias] = []

    @property
    def pairs(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.tags}


class Version(msgspec.Struct, frozen=True):
    """A model version."""

    name: str = ""
    version: int = 0
    description: str = ""
    source: str = ""
    run_id: str = ""
    current_stage: str = ""
    tags: list[Pair] = []

    @property
    def pairs(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.tags}


class LoggedInfo(msgspec.Struct, frozen=True):
    """A logged model."""

    model_id: str = ""
    experiment_id: str = ""
    artifact_uri: str = ""
    status: str = ""
    tags: list[Pair] = []

    @property
    def pairs(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.tags}


class LoggedData(msgspec.Struct, frozen=True):
    """What was logged of it."""

    params: list[Pair] = []


class Logged(msgspec.Struct, frozen=True):
    """A logged model as it is listed."""

    info: LoggedInfo = LoggedInfo()
    data: LoggedData = LoggedData()


class _EvaluationDataset(msgspec.Struct, frozen=True):
    dataset_id: str = ""
    tags: str = ""


def pages(
    client: Client, path: str, field: str, kind: type[T], ask: Mapping[str, object], *, post: bool
) -> Iterator[T]:
    """All things of a listing."""
    body, seen = dict(ask), set[str]()
    while True:
        params: Mapping[str, str | int] = body  # type: ignore[assignment]  # as the callers give them
        page = client.post(path, dict[str, msgspec.Raw], body) if post else client.get(
            path, dict[str, msgspec.Raw], params
        )  # fmt: skip
        if field in page:
            yield from msgspec.json.decode(page[field], type=list[kind], strict=False)  # type: ignore[valid-type]
        token = msgspec.json.decode(page["next_page_token"], type=str | None) if "next_page_token" in page else ""
        if not token:
            return
        if token in seen:
            raise BadData(f"The server goes round in circles over its {field}.")
        seen.add(token)
        body["page_token"] = token


def registered(client: Client, server: Server) -> Iterator[Registered]:
    """All registered models and prompts."""
    for filter_text in ("", PROMPTS) if server.version >= PROMPTS_SINCE else ("",):
        ask = {"max_results": 1000} | ({"filter": filter_text} if filter_text else {})
        yield from pages(client, f"{API}/registered-models/search", "registered_models", Registered, ask, post=False)


def versions(client: Client, server: Server, name: str = "") -> Iterator[Version]:
    """The versions that are not deleted, of one model or of all."""
    quote = '"' if "'" in name else "'"
    named = f"name = {quote}{name}{quote}" if name and quote not in name else ""
    for prompts in ("", PROMPTS) if server.version >= PROMPTS_SINCE else ("",):
        filter_text = " and ".join(part for part in (named, prompts) if part)
        ask = {"max_results": 1000} | ({"filter": filter_text} if filter_text else {})
        for one in pages(client, f"{API}/model-versions/search", "model_versions", Version, ask, post=False):
            if one.current_stage != DELETED_STAGE and name in ("", one.name):
                yield one


def logged(client: Client, experiments: Sequence[str]) -> Iterator[Logged]:
    """The logged models of some experiments that are not deleted."""
    for start in range(0, len(experiments), EXPERIMENTS_AT_ONCE):
        ask = {"experiment_ids": list(experiments[start : start + EXPERIMENTS_AT_ONCE]), "max_results": 50}
        yield from pages(client, f"{API}/logged-models/search", "models", Logged, ask, post=True)


def load(client: Client, server: Server, experiments: Sequence[str], known: Known) -> dict[str, Version]:
    """Fills `known` with all objects of ours; gives the versions whose source the server refused, by origin."""
    if server.version >= MODELS_SINCE:
        for one in logged(client, experiments):
            if origin := one.info.pairs.get(ORIGIN_TAG):
                known.note("logged_model", origin, one.info.model_id, one.info.artifact_uri)
    if server.version >= DATASETS_SINCE:
        _load_datasets(client, known)
    for model in registered(client, server):
        if origin := model.pairs.get(ORIGIN_TAG):
            known.name(origin, model.name)
    lost = {}
    for version in versions(client, server):
        tags = version.pairs
        if ORIGIN_TAG in tags:
            known.number(tags[ORIGIN_TAG], version.version)
            if SOURCE_TAG in tags:
                lost[tags[ORIGIN_TAG]] = version
    return lost


def _load_datasets(client: Client, known: Known) -> None:
    try:
        found = list(pages(client, "api/3.0/mlflow/datasets/search", "datasets", _EvaluationDataset, {}, post=True))
    except (Unavailable, BadData):
        raise
    except (NotFound, MigrateError):  # a server that keeps no such datasets
        return
    for one in found:
        try:
            tags = msgspec.json.decode(one.tags or "{}", type=dict[str, object])
        except (msgspec.DecodeError, msgspec.ValidationError):
            continue
        if origin := tags.get(ORIGIN_TAG):
            known.note("evaluation_dataset", str(origin), one.dataset_id)


@dataclass(frozen=True)
class ServerNames:
    """What things are called on a server, and how it shows them: as verify shall find them there."""

    known: Known
    lost: Mapping[str, Version] = field(default_factory=dict)

    def run(self, run: Run) -> Run:
        """The run with its tags and params as they are there; a name that is an id is a name."""
        moved = self.known.references.run(run)
        name = {NAME_TAG: run.tags[NAME_TAG]} if NAME_TAG in run.tags else {}
        return replace(moved, tags={**moved.tags, **name})

    def artifact(self, artifact: Artifact) -> Artifact:
        """The file as it is there."""
        return self.known.references.artifact(artifact)

    def record(self, record: Record) -> Record:
        """The object as it is read from there."""
        if record.kind not in BY_NAME:
            return record
        tree = objects.tree_of(record)
        if record.kind in ("mlflow.registered_model", "mlflow.prompt"):
            return self._registered(record, tree)
        if record.kind == "mlflow.logged_model":
            self._logged(tree)
            record = replace(record, body=msgspec.json.encode(tree).decode())
        return self.known.references.record(record)

    def _logged(self, tree: Tree) -> None:
        """MLflow's database has no NaN for a logged model's metrics: it keeps 0."""
        for row in tree.get("logged_model_metrics", ()):
            row["metric_value"] = plain(row)

    def _registered(self, record: Record, tree: Tree) -> Record:
        """By their origins, for two sources may have had models of one name."""
        root = tree["registered_models"][0]
        here = self.known.by_origin.get(objects.model_origin(root), "")
        rows = tree.get("model_versions", [])
        lost = [(row, self.lost.get(objects.version_origin(row))) for row in rows]
        known = self.known.of(root["name"], here, {row["version"]: objects.version_origin(row) for row in rows})
        shown_tree(tree)
        moved = known.references.record(replace(record, body=msgspec.json.encode(tree).decode()))
        tree = objects.tree_of(moved)
        replaced = {known.versions.get((root["name"], row["version"]), row["version"]): v for row, v in lost if v}
        for row in tree.get("model_versions", ()):
            if isinstance(row.get("source"), str) and " " in row["source"]:
                row["source"] = known.source(row["source"])
            if (there := replaced.get(row["version"])) is not None:
                row["source"], row["run_id"] = there.source, there.run_id
        return replace(moved, body=msgspec.json.encode(tree).decode())


def shown_tree(tree: Tree) -> None:
    """A registered model without what a server sets itself, and without the versions that were deleted."""
    rows = tree.get("model_versions", [])
    gone = {row["version"] for row in rows if row.get("current_stage") == DELETED_STAGE}
    for table in ("model_versions", "model_version_tags", "registered_model_aliases"):
        if table in tree:
            tree[table] = [row for row in tree[table] if row.get("version") not in gone]
    for row in (*tree["registered_models"], *tree.get("model_versions", ())):
        for column in ("creation_time", "last_updated_time"):
            row.pop(column, None)


def plain(row: Row) -> float | None:
    """The value of a logged model's metric as MLflow keeps it."""
    value = row.get("metric_value")
    if isinstance(value, dict):
        return FLOATS.get(str(value.get("$float")), 0.0)
    return value


def is_stamped(pairs: Mapping[str, str], stamp: str) -> bool:
    """Whether an object bears this stamp."""
    return pairs.get(STAMP_TAG) == stamp


def renumbered(text: str, known: Known) -> str:
    """The tag mlflow.modelVersions as it is here: JSON that names versions by name and number."""
    try:
        versions = json.loads(text)
        moved = [
            {**one, "name": known.models.get(one["name"], one["name"]), "version": _number(one, known)}
            for one in versions
        ]
    except (ValueError, TypeError, KeyError):  # not what MLflow writes there
        return text
    return text if moved == versions else json.dumps(moved)


def _number(one: Mapping[str, Any], known: Known) -> int | str:
    number = known.versions.get((one["name"], int(one["version"])), int(one["version"]))
    return number if isinstance(one["version"], int) else str(number)
