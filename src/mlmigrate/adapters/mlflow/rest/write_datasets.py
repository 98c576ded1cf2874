"""Evaluation datasets and scorers written to a server (MLflow 3.4 and later).

A dataset gets an id of its own and bears the tags mlmigrate.origin (the id that it had) and, last,
mlmigrate.stamp.  A scorer has no tags: it is ours when its versions are those that we would write.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from mlmigrate.adapters.base import Change, Holding
from mlmigrate.adapters.mlflow import conflicts
from mlmigrate.adapters.mlflow.objects import Row, Tree, pairs, tree_of
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.wire import Anything
from mlmigrate.errors import Conflict, MigrateError, NotFound, Unavailable
from mlmigrate.model import ORIGIN_TAG, STAMP_TAG, Artifact, Record

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.rest.objects import Frame

DATASETS = "api/3.0/mlflow/datasets"
SCORERS = "api/3.0/mlflow/scorers"
DATASET, SCORER, UNREAD = "mlflow.evaluation_dataset", "mlflow.scorer", "mlflow.dataset"
SINCE = (3, 4)
ONLINE = (3, 9)  # since about then scorers can run by themselves
OUTPUT = "mlflow_wrapped"  # MLflow keeps outputs inside an object of this one name
RECORDS = 500  # in one call
BYTES = 4 << 20  # of records in one call
PAGE = 1000
ITS_OWN = "the server sets its own"


def holdings(version: tuple[int, int]) -> tuple[Holding, ...]:
    """How a server of this version holds datasets and scorers."""
    unread = Holding(UNREAD, "lost", "MLflow's API has no call for a dataset that no run read")
    if version < SINCE:
        shown = ".".join(map(str, version))
        return (
            unread,
            Holding(DATASET, "lost", f"MLflow {shown} knows no evaluation datasets"),
            Holding(SCORER, "lost", f"MLflow {shown} knows no scorers"),
        )
    return unread, Holding(DATASET, "mapped", changes=_DATASET), Holding(SCORER, "mapped", changes=_scorer(version))


_DATASET = (
    *(
        Change(f"evaluation_datasets.{column}", "the server makes it again", lost=False)
        for column in ("schema", "profile", "digest")
    ),
    *(
        Change(f"{table}.{column}", ITS_OWN)
        for table in ("evaluation_datasets", "evaluation_dataset_records")
        for column in ("created_time", "last_update_time", "created_by", "last_updated_by")
    ),
    Change("evaluation_dataset_records.dataset_record_id", "records have new ids", lost=False),
    Change("evaluation_dataset_records.input_hash", "the server makes it again", lost=False),
    Change("entity_associations.association_id", "links have new ids", lost=False),
    Change("entity_associations.created_time", ITS_OWN),
)


def _scorer(version: tuple[int, int]) -> tuple[Change, ...]:
    changes = [
        Change("scorers.scorer_id", "scorers have new ids", lost=False),
        Change("scorer_versions.scorer_id", "scorers have new ids", lost=False),
        Change("scorer_versions.creation_time", ITS_OWN),
        Change("online_scoring_configs.online_scoring_config_id", "configurations have new ids", lost=False),
        Change("online_scoring_configs.scorer_id", "scorers have new ids", lost=False),
    ]
    if version < ONLINE:
        changes.append(Change("online_scoring_configs", "this version runs no scorers by itself"))
    return tuple(changes)


class DatasetInfo(msgspec.Struct, frozen=True):
    """A dataset; its tags are JSON text."""

    dataset_id: str = ""
    name: str = ""
    tags: str = ""

    @property
    def tag(self) -> Mapping[str, str]:
        """Its tags."""
        try:
            found = json.loads(self.tags or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class DatasetInfos(msgspec.Struct, frozen=True):
    """One page of datasets."""

    datasets: list[DatasetInfo] = []
    next_page_token: str = ""


class OneDataset(msgspec.Struct, frozen=True):
    """The dataset that was made."""

    dataset: DatasetInfo = DatasetInfo()


class RecordPage(msgspec.Struct, frozen=True):
    """One page of a dataset's records, as JSON text."""

    records: str = ""
    next_page_token: str = ""


def all_datasets(client: Client) -> Iterator[DatasetInfo]:
    """All evaluation datasets of a server."""
    token = ""
    while True:
        body: dict[str, Any] = {"max_results": PAGE} | ({"page_token": token} if token else {})
        page = client.post(f"{DATASETS}/search", DatasetInfos, body)
        yield from page.datasets
        token = page.next_page_token
        if not token:
            return


class DatasetWriter:
    """Writes evaluation datasets: made, filled, then stamped."""

    kinds = (DATASET, UNREAD)
    owner = ""
    raw = True

    def __init__(self, frame: Frame) -> None:
        self._frame, self._client = frame, frame.client
        self._there: list[DatasetInfo] | None = None

    def keep(self, record: Record) -> None:
        """Writes a dataset."""
        if record.kind != DATASET:
            return
        tree = tree_of(self._frame.references.record(self._linked(record)))
        try:
            self._write(record, tree)
        except (Unavailable, Conflict):
            raise
        except MigrateError as error:
            self._frame.lose(f"{DATASET} {record.id!r}", error.message)

    def _linked(self, record: Record) -> Record:
        """The record without its links to experiments that were not carried: their ids are others' here."""
        tree = tree_of(record)
        known = self._frame.known.ids["experiment"]
        links = tree.pop("entity_associations", [])
        kept = [row for row in links if row["destination_id"] in known]
        for row in links:
            if row not in kept:
                because = "that experiment was not carried"
                self._frame.lose(f"{DATASET} {record.id!r}: link to experiment {row['destination_id']}", because)
        linked = {**tree, "entity_associations": kept} if kept else tree
        return replace(record, body=msgspec.json.encode(linked).decode())

    def _write(self, record: Record, tree: Tree) -> None:
        # the dataset's own id is no part of what it holds
        stamp = hashlib.blake2b(record.body.encode(), digest_size=16).hexdigest()
        there = self._of_ours(record.id)
        if there is not None and there.tag.get(STAMP_TAG) == stamp:
            self._note(record.id, there)
            return
        name = tree["evaluation_datasets"][0]["name"]
        merged = False
        if there is None:
            choice = self._choice(record.id, name)
            merged = choice.how == "merged"
            there = self._named(name) if merged else self._make(record.id, choice.name, tree)
        self._note(record.id, there)
        rows = tree.get("evaluation_dataset_records", [])
        self._fill(there.dataset_id, self._missing(there, rows) if merged else rows)
        if merged:
            self._experiments(there.dataset_id, tree)
            return
        self._set(there.dataset_id, _tags(tree) | {ORIGIN_TAG: record.id, STAMP_TAG: stamp})

    def _note(self, id_: str, there: DatasetInfo) -> None:
        self._frame.known.note("evaluation_dataset", id_, there.dataset_id)

    def _all(self, *, again: bool = False) -> list[DatasetInfo]:
        if self._there is None or again:
            self._there = list(all_datasets(self._client))
        return self._there

    def _of_ours(self, id_: str, *, again: bool = False) -> DatasetInfo | None:
        return next((one for one in self._all(again=again) if one.tag.get(ORIGIN_TAG) == id_), None)

    def _named(self, name: str) -> DatasetInfo:
        return next(one for one in self._all() if one.name == name)

    def _choice(self, id_: str, name: str) -> conflicts.Choice:
        """Raises Conflict when others of its name are not to be joined."""
        there = {one.name: one.tag.get(ORIGIN_TAG, "") for one in self._all()}
        wanted = [(id_, name)]
        choices = conflicts.settle(wanted, there, self._frame.settings.on_conflict, "evaluation dataset")
        self._frame.losses.extend(conflicts.losses(wanted, choices, "evaluation dataset"))
        return choices[id_]

    def _make(self, id_: str, name: str, tree: Tree) -> DatasetInfo:
        """Made once: after an answer that was lost it is looked for before it is made again."""
        tags = _tags(tree) | {ORIGIN_TAG: id_}
        body = {"name": name, "experiment_ids": _experiments(tree), "tags": json.dumps(tags)}
        tries = count()

        def attempt() -> DatasetInfo:
            if next(tries) > 0 and (found := self._of_ours(id_, again=True)):
                return found
            return self._client.once("POST", f"{DATASETS}/create", OneDataset, None, body).dataset

        made = self._client.again.do(f"dataset {name}", attempt)
        self._all().append(replace_tags(made, tags))
        return made

    def _fill(self, id_: str, rows: Sequence[Row]) -> None:
        if len({_inputs_key(row) for row in rows}) < len(rows):
            self._frame.lose(f"{DATASET} {id_!r}: records", "those of equal inputs became one")
        for some in _batches([_record(row) for row in rows]):
            body = {"records": json.dumps(some)}
            self._client.post(f"{DATASETS}/{quote(id_, safe='')}/records", Anything, body)

    def _missing(self, there: DatasetInfo, rows: Sequence[Row]) -> list[Row]:
        """The rows whose inputs nobody has there: what is there is left as it is."""
        known: set[str] = set()
        token = ""
        while True:
            params: dict[str, str | int | Sequence[str]] = {"max_results": PAGE}
            params |= {"page_token": token} if token else {}
            page = self._client.get(f"{DATASETS}/{quote(there.dataset_id, safe='')}/records", RecordPage, params)
            known |= {_key(one.get("inputs")) for one in json.loads(page.records or "[]")}
            token = page.next_page_token
            if not token:
                return [row for row in rows if _inputs_key(row) not in known]

    def _experiments(self, id_: str, tree: Tree) -> None:
        try:
            body = {"experiment_ids": _experiments(tree)}
            self._client.post(f"{DATASETS}/{quote(id_, safe='')}/add-experiments", Anything, body)
        except NotFound:
            self._frame.lose(f"{DATASET} {id_!r}: links to experiments", "this version has no call that adds them")

    def _set(self, id_: str, tags: Mapping[str, str]) -> None:
        self._client.patch(f"{DATASETS}/{quote(id_, safe='')}/tags", Anything, {"tags": json.dumps(tags)})

    def put(self, artifact: Artifact) -> None:
        """Nothing: datasets have no files."""

    def commit(self) -> None:
        """Nothing is left to do."""


def replace_tags(info: DatasetInfo, tags: Mapping[str, str]) -> DatasetInfo:
    """A dataset with other tags."""
    return msgspec.structs.replace(info, tags=json.dumps(tags))


def _tags(tree: Tree) -> dict[str, str]:
    return pairs(tree.get("evaluation_dataset_tags", ()))


def _experiments(tree: Tree) -> list[str]:
    return [str(row["destination_id"]) for row in tree.get("entity_associations", ())]


def _record(row: Row) -> dict[str, Any]:
    """A record as the call takes it; outputs that are null are said, for else they become {}."""
    outputs = _json(row.get("outputs"))
    source = _json(row.get("source"))
    body = {
        "inputs": _json(row.get("inputs")) or {},
        "outputs": outputs.get(OUTPUT) if isinstance(outputs, dict) else outputs,
        "expectations": _json(row.get("expectations")),
        "tags": _json(row.get("tags")),
    }
    return body | ({"source": source} if source else {})


def _json(text: object) -> Any:  # noqa: ANN401  # any JSON
    return json.loads(text) if isinstance(text, str) and text else text


def _inputs_key(row: Row) -> str:
    return _key(_json(row.get("inputs")))


def _key(inputs: object) -> str:
    """What MLflow tells records apart by."""
    return json.dumps(inputs or {}, sort_keys=True)


def _batches(records: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    held: list[dict[str, Any]] = []
    size = 0
    for record in records:
        more = len(json.dumps(record))
        if held and (len(held) >= RECORDS or size + more > BYTES):
            yield held
            held, size = [], 0
        held.append(record)
        size += more
    if held:
        yield held


class ScorerInfo(msgspec.Struct, frozen=True):
    """A version of a scorer."""

    scorer_name: str = ""
    name: str = ""
    scorer_version: int = 0
    version: int = 0
    serialized_scorer: str = ""


class ScorerInfos(msgspec.Struct, frozen=True):
    """The versions of a scorer."""

    scorers: list[ScorerInfo] = []


class ScorerWriter:
    """Writes scorers: their versions in order, gaps left where versions were deleted."""

    kinds = (SCORER,)
    owner = ""
    raw = False

    def __init__(self, frame: Frame) -> None:
        self._frame, self._client = frame, frame.client
        self._lock = threading.Lock()

    def keep(self, record: Record) -> None:
        """Writes a scorer."""
        tree = tree_of(record)
        experiment = self._frame.home(record.owner)
        try:
            name = self._write(record, tree, experiment)
            for row in tree.get("online_scoring_configs", ()):
                self._configure(record, row, experiment, name)
        except (Unavailable, Conflict):
            raise
        except MigrateError as error:
            self._lose(record, "it", error.message)

    def _write(self, record: Record, tree: Tree, experiment: str) -> str:
        """Under its own name, or, by policy, another; gives that name."""
        wanted = {int(row["scorer_version"]): str(row["serialized_scorer"]) for row in tree.get("scorer_versions", ())}
        first = str(tree["scorers"][0]["scorer_name"])
        for n in count(1):
            name = first if n == 1 else f"{first}-{n}"
            there = self._versions(experiment, name)
            if _is_begun(there, wanted):
                self._register(experiment, name, wanted, there)
                break
            if self._frame.settings.on_conflict == "fail":
                raise Conflict(f"The target has a scorer {name!r} already, and it is another.")
            if self._frame.settings.on_conflict == "merge":
                self._append(record, experiment, name, wanted, there)
                break
        if name != first:
            self._lose(record, "its name", f"{conflicts.THERE}; ours is {name!r}")
        return name

    def _versions(self, experiment: str, name: str) -> dict[int, str]:
        params = {"experiment_id": experiment, "name": name}
        try:
            found = self._client.get(f"{SCORERS}/versions", ScorerInfos, params).scorers
        except NotFound:
            return {}
        return {one.scorer_version or one.version: one.serialized_scorer for one in found}

    def _register(self, experiment: str, name: str, wanted: Mapping[int, str], there: Mapping[int, str]) -> None:
        """The versions that are not there; a gap is filled for a moment, for numbers only grow."""
        last = max(there, default=0)
        for version in range(last + 1, max(wanted, default=0) + 1):
            self._one(experiment, name, wanted.get(version) or _after(wanted, version), version)
        for version in range(1, max(wanted, default=0)):
            if version not in wanted and (version > last or version in there):
                self._delete(experiment, name, version)

    def _append(
        self, record: Record, experiment: str, name: str, wanted: Mapping[int, str], there: Mapping[int, str]
    ) -> None:
        """Ours after those of somebody else, but for those that are there in some version."""
        texts = set(map(_canonical, there.values()))
        missing = [text for _, text in sorted(wanted.items()) if _canonical(text) not in texts]
        for number, text in enumerate(missing, max(there, default=0) + 1):
            self._one(experiment, name, text, number)
        self._lose(record, "its versions", f"{conflicts.THERE}; ours are merged into it, with the next numbers")

    def _one(self, experiment: str, name: str, text: str, version: int) -> None:
        """One version, made once: after an answer that was lost it is looked for before it is made again."""
        tries = count()
        body = {"experiment_id": experiment, "name": name, "serialized_scorer": text}

        def attempt() -> None:
            if next(tries) == 0 or version not in self._versions(experiment, name):
                self._client.once("POST", f"{SCORERS}/register", Anything, None, body)

        self._client.again.do(f"scorer {name}", attempt)

    def _delete(self, experiment: str, name: str, version: int) -> None:
        body = {"experiment_id": experiment, "name": name, "version": version}
        tries = count()

        def attempt() -> None:
            try:
                self._client.once("DELETE", f"{SCORERS}/delete", Anything, None, body)
            except NotFound:
                if next(tries) == 0:
                    raise

        self._client.again.do(f"scorer {name}", attempt)

    def _configure(self, record: Record, row: Row, experiment: str, name: str) -> None:
        body = {"experiment_id": experiment, "name": name, "sample_rate": row["sample_rate"]}
        body |= {"filter_string": row["filter_string"]} if row.get("filter_string") else {}
        try:
            self._client.again.do(name, self._client.once, "PUT", f"{SCORERS}/online-config", Anything, None, body)
        except Unavailable:
            raise
        except MigrateError as error:
            self._lose(record, "its running by itself", error.message)

    def _lose(self, record: Record, what: str, because: str) -> None:
        self._frame.lose(f"{SCORER} {record.id!r}: {what}", because, record.owner)

    def put(self, artifact: Artifact) -> None:
        """Nothing: scorers have no files."""

    def commit(self) -> None:
        """Nothing is left to do."""


def _is_begun(there: Mapping[int, str], wanted: Mapping[int, str]) -> bool:
    """Whether what is there is what we wrote, or a beginning of it."""
    filled = {version: wanted.get(version) or _after(wanted, version) for version in there}
    return all(_canonical(text) == _canonical(filled[version]) for version, text in there.items())


def _after(wanted: Mapping[int, str], version: int) -> str:
    """The text of the next version, "" for none."""
    return next((wanted[number] for number in sorted(wanted) if number > version), "")


def _canonical(text: str) -> str:
    """A scorer's text whatever the order of its fields and the name of its model, which a server looks up."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text
