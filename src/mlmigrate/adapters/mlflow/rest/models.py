"""Logged models written to a server of MLflow 3: each under an id that the server gives.

model    made with params and tags, among them mlmigrate.origin, which it is found again by
links    its metrics on the runs that measured them, the runs that made and that read it
files    to where the server wants them; MLmodel names the ids that are here
status   and then the tag mlmigrate.stamp, when all its files are there
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import TypeVar
from urllib.parse import quote

import msgspec

from mlmigrate.adapters.base import LEFT_OUT, Change, Holding
from mlmigrate.adapters.mlflow import objects
from mlmigrate.adapters.mlflow.objects import Row, Tree
from mlmigrate.adapters.mlflow.rest.here import MODELS_SINCE, Logged, is_stamped, logged
from mlmigrate.adapters.mlflow.rest.objects import Frame
from mlmigrate.adapters.mlflow.rest.source import API
from mlmigrate.adapters.mlflow.rest.wire import Anything, History, Point
from mlmigrate.adapters.mlflow.rest.writing import pairs
from mlmigrate.errors import Conflict, MigrateError, NotFound, Unavailable
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, Artifact, Record

T = TypeVar("T")
OWNER = "@model/"
PARAMS = 100  # in one call; as MLflow's own client
METRICS = 1000
STATUSES = {1: "LOGGED_MODEL_PENDING", 2: "LOGGED_MODEL_READY", 3: "LOGGED_MODEL_UPLOAD_FAILED"}


class OneModel(msgspec.Struct, frozen=True):
    """The model that was asked for, or made."""

    model: Logged = Logged()


class _Link(msgspec.Struct, frozen=True):
    model_id: str = ""
    step: int = 0


class _Inputs(msgspec.Struct, frozen=True):
    model_inputs: list[_Link] = []


class _Outputs(msgspec.Struct, frozen=True):
    model_outputs: list[_Link] = []


class _Run(msgspec.Struct, frozen=True):
    inputs: _Inputs = _Inputs()
    outputs: _Outputs = _Outputs()


class _OneRun(msgspec.Struct, frozen=True):
    run: _Run = _Run()


def holdings(version: tuple[int, int]) -> Sequence[Holding]:
    """Logged models, at servers of this version."""
    if version < MODELS_SINCE:
        because = f"MLflow {version[0]}.{version[1]} knows no logged models"
        return (Holding("mlflow.logged_model", "lost", because),)
    own = "the server sets its own"
    changes = (
        Change("logged_models.creation_timestamp_ms", own),
        Change("logged_models.last_updated_timestamp_ms", own),
        Change("logged_models.status_message", "MLflow's API has no call that sets it", unless=("",)),
        Change("logged_models.lifecycle_stage", "a deleted one is not shown", lost=False),
        Change("logged_models.name", "the server names every model", kept=True, lost=False, only=(None, "")),
        Change("logged_models.model_type", "the server writes no null", LEFT_OUT, only=(None, ""), lost=False),
        Change("logged_models.source_run_id", "the server writes no null", LEFT_OUT, only=(None, ""), lost=False),
        Change("logged_model_metrics.dataset_uuid", "datasets are told by name and digest", lost=False),
        Change("logged_model_metrics.dataset_name", "the server shows no null", LEFT_OUT, only=(None,), lost=False),
        Change("logged_model_metrics.dataset_digest", "the server shows no null", LEFT_OUT, only=(None,), lost=False),
        Change("inputs.input_uuid", "links are told without their ids", lost=False),
    )
    deleted = Change(
        "logged_models.lifecycle_stage", "it is deleted, and a server shows no deleted models", only=("deleted",)
    )
    return (Holding("mlflow.logged_model", "mapped", changes=changes, refuses=(deleted,)),)


@dataclass(slots=True)
class Draft:
    """A model being written. `found`: an earlier try made it; `done`: and left nothing to do.

    waits, late  tags and params that name what may come after it
    """

    source: str
    id: str
    uri: str
    status: int
    stamp: str
    found: bool = False
    done: bool = False
    has: Mapping[str, str] = field(default_factory=dict)
    params: frozenset[str] = frozenset()
    waits: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)


class ModelWriter:
    """Writes the logged models of one pack."""

    kinds = ("mlflow.logged_model",)
    owner = OWNER
    raw = True

    def __init__(self, frame: Frame) -> None:
        self._frame, self._client = frame, frame.client
        self._drafts: dict[str, Draft] = {}  # by the source's id
        self._there: dict[str, Logged] = {}  # by origin
        self._looked: set[str] = set()
        self._doubtful: set[str] = set()
        self._lock = threading.Lock()
        self._settled = False
        self._no_numbers: dict[tuple[str, str], set[tuple[int, int]]] = {}  # (run here, metric) -> when it is NaN

    def keep(self, record: Record) -> None:
        """Makes the model, with all but its files."""
        experiment = self._frame.home(record.owner)
        self._look(experiment)
        self._frame.later(self._write, record, experiment)

    def _look(self, experiment: str) -> None:
        """Which models of ours an experiment has."""
        if experiment not in self._looked:
            self._looked.add(experiment)
            self._there |= {
                one.info.pairs[ORIGIN_TAG]: one
                for one in logged(self._client, [experiment])
                if ORIGIN_TAG in one.info.pairs
            }

    def _write(self, record: Record, experiment: str) -> None:
        tree = objects.tree_of(record)
        try:
            draft = self._open(record, tree, experiment)
            self._frame.known.note("logged_model", record.id, draft.id, draft.uri)
            if not draft.done:
                self._fill(record, draft)
        except Unavailable:
            raise
        except MigrateError as error:
            self._lose(record, "it", error.message)
            return
        with self._lock:
            self._drafts[record.id] = draft

    def _open(self, record: Record, tree: Tree, experiment: str) -> Draft:
        """The model that an earlier try left, or a new one."""
        root = tree["logged_models"][0]
        stamp = hashlib.blake2b(record.body.encode(), digest_size=16).hexdigest()
        there = self._there.get(record.id)
        made = there if there is not None else self._create(record, tree, experiment)
        has = made.info.pairs
        found = there is not None or record.id in self._doubtful
        done = there is not None and is_stamped(has, stamp)
        params = frozenset(pair.key for pair in made.data.params)
        status = int(root.get("status") or 1)
        return Draft(record.id, made.info.model_id, made.info.artifact_uri, status, stamp, found, done, has, params)

    def _create(self, record: Record, tree: Tree, experiment: str) -> Logged:
        """Made once: after an answer that was lost it is looked for before it is made again."""
        root, references = tree["logged_models"][0], self._frame.references
        body = {
            "experiment_id": experiment,
            "name": root.get("name") or "",
            "model_type": root.get("model_type") or "",
            "source_run_id": references.id("run", root.get("source_run_id") or ""),
            "params": pairs(dict(list(self._known(self._params(tree)).items())[:PARAMS])),
            "tags": pairs({**self._tags(tree), ORIGIN_TAG: record.id}),
        }
        tries = count()

        def attempt() -> Logged:
            if next(tries) > 0:
                self._doubtful.add(record.id)
                for one in logged(self._client, [experiment]):
                    if one.info.pairs.get(ORIGIN_TAG) == record.id:
                        return one
            return self._client.once("POST", f"{API}/logged-models", OneModel, None, body).model

        return self._client.again.do(f"logged model {record.id}", attempt)

    def _params(self, tree: Tree) -> dict[str, str]:
        rows = tree.get("logged_model_params", ())
        return {row["param_key"]: self._frame.references.text(row["param_value"] or "") for row in rows}

    def _tags(self, tree: Tree) -> dict[str, str]:
        rows = tree.get("logged_model_tags", ())
        return {
            row["tag_key"]: self._frame.references.text(row["tag_value"] or "")
            for row in rows
            if not row["tag_key"].startswith(OURS)
        }

    def _fill(self, record: Record, draft: Draft) -> None:
        """Params that did not fit, tags that name the model itself, and what ties it to runs."""
        tree = objects.tree_of(self._frame.references.record(record))
        params, means = self._params(tree), self._tags(tree)
        known = self._known(params)
        draft.late = {key: value for key, value in params.items() if key not in known}
        draft.waits = {key: value for key, value in means.items() if self._frame.known.waits(value)}
        self._add_params(draft, {key: value for key, value in known.items() if key not in draft.params})
        self._set_tags(draft, {key: value for key, value in means.items() if draft.has.get(key) != value})
        for key in draft.has:
            if key not in means and not key.startswith(OURS):
                with suppress(NotFound):
                    path = f"{self._path(draft)}/tags/{quote(key, safe='')}"
                    self._client.again.do(path, self._client.once, "DELETE", path, Anything)
        self._measure(record, draft, tree.get("logged_model_metrics", ()))
        for row in tree.get("inputs", ()):
            self._told(record, f"its link to run {row['source_id']}", partial(self._link, draft, row))

    def _known(self, params: Mapping[str, str]) -> dict[str, str]:
        """Those that wait for nothing: no param can be changed."""
        return {key: value for key, value in params.items() if not self._frame.known.waits(value)}

    def _add_params(self, draft: Draft, params: Mapping[str, str]) -> None:
        for some in _in_lots(params.items(), PARAMS):
            self._add_some(draft, dict(some))

    def _add_some(self, draft: Draft, params: Mapping[str, str]) -> None:
        """A param that is there already is refused, and with it the whole call."""
        tries = count()

        def attempt() -> None:
            has = self._get(draft).data.params if next(tries) > 0 else []
            missing = {key: value for key, value in params.items() if key not in {pair.key for pair in has}}
            if missing:
                body = {"model_id": draft.id, "params": pairs(missing)}
                self._client.once("POST", f"{self._path(draft)}/params", Anything, None, body)

        self._client.again.do("params", attempt)

    def _get(self, draft: Draft) -> Logged:
        return self._client.once("GET", self._path(draft), OneModel).model

    def _path(self, draft: Draft) -> str:
        return f"{API}/logged-models/{quote(draft.id, safe='')}"

    def _set_tags(self, draft: Draft, tags: Mapping[str, str]) -> None:
        if tags:
            self._client.patch(f"{self._path(draft)}/tags", Anything, {"tags": pairs(tags)})

    def _measure(self, record: Record, draft: Draft, rows: Sequence[Row]) -> None:
        """Its metrics, each on the run that logged it: the point is there already, and gets its link."""
        by_run: dict[str, list[Row]] = {}
        for row in rows:
            by_run.setdefault(row["run_id"], []).append(row)
        for run, some in by_run.items():
            for few in _in_lots(some, METRICS):
                metrics = [_metric(row, draft.id, self._value(run, row)) for row in few]
                self._log_all(record, run, metrics)

    def _log_all(self, record: Record, run: str, metrics: Sequence[Mapping[str, object]]) -> None:
        """Together; one that the server refuses (3.5 does that to NaN) does not take the others along."""
        try:
            self._log(run, {"run_id": run, "metrics": metrics})
        except (Unavailable, Conflict):
            raise
        except MigrateError as error:
            if len(metrics) == 1:
                self._lose(record, f"metric {metrics[0]['key']!r} that run {run} measured", error.message)
                return
            for metric in metrics:
                self._log_all(record, run, [metric])

    def _value(self, run: str, row: Row) -> float | str | None:
        """What the run's own point is: MLflow keeps 0 for a model's NaN, and another value would be another point."""
        value = row.get("metric_value")
        if isinstance(value, dict):
            return str(value.get("$float"))
        at = row["metric_timestamp_ms"], row["metric_step"]
        return "NaN" if not value and at in self._nans(run, row["metric_name"]) else value

    def _nans(self, run: str, key: str) -> set[tuple[int, int]]:
        """When, and at which steps, a run's metric is NaN and never 0."""
        if (run, key) not in self._no_numbers:
            points = self._history(run, key)
            zeros = {(one.timestamp, one.step) for one in points if one.value == 0}
            nans = {(one.timestamp, one.step) for one in points if math.isnan(one.value)}
            self._no_numbers[run, key] = nans - zeros
        return self._no_numbers[run, key]

    def _history(self, run: str, key: str) -> list[Point]:
        found: list[Point] = []
        ask: dict[str, str | int] = {"run_id": run, "metric_key": key, "max_results": 25_000}
        while True:
            page = self._client.get(f"{API}/metrics/get-history", History, ask)
            found += page.metrics
            if not page.next_page_token or not page.metrics:
                return found
            ask["page_token"] = page.next_page_token

    def _log(self, run: str, body: object) -> None:
        def call() -> None:
            self._client.post(f"{API}/runs/log-batch", Anything, body)

        self._frame.on_run(run, call)

    def _link(self, draft: Draft, row: Row) -> None:
        """Once: a server keeps each link that it is told as another one."""
        run, made = row["source_id"], row["source_type"] == "RUN_OUTPUT"
        tries = count()

        def attempt() -> None:
            if (next(tries) > 0 or draft.found) and self._linked(draft, run, made=made):
                return
            link = {"model_id": draft.id} | ({"step": int(row.get("step") or 0)} if made else {})
            path = "runs/outputs" if made else "runs/log-inputs"
            self._client.once("POST", f"{API}/{path}", Anything, None, {"run_id": run, "models": [link]})

        self._frame.on_run(run, lambda: self._client.again.do("a link", attempt))

    def _linked(self, draft: Draft, run: str, *, made: bool) -> bool:
        there = self._client.once("GET", f"{API}/runs/get", _OneRun, {"run_id": run}).run
        links = there.outputs.model_outputs if made else there.inputs.model_inputs
        return any(link.model_id == draft.id for link in links)

    def put(self, artifact: Artifact) -> None:
        """Sends a file."""
        if not self._settled:
            self._frame.settle()
            self._settled = True
        draft = self._drafts.get(artifact.owner.removeprefix(OWNER))
        if draft is None or draft.done:
            return
        moved = self._frame.references.artifact(artifact)
        call = self._frame.uploads.of(OWNER + draft.id, draft.uri, moved)
        if call is not None:
            self._frame.later(call)

    def commit(self) -> None:
        """Their status, and their stamps."""
        self._frame.settle()
        for draft in self._drafts.values():
            if not draft.done:
                self._frame.later(self._close, draft)
        self._frame.settle()

    def _close(self, draft: Draft) -> None:
        self._frame.uploads.check(OWNER + draft.id)
        text = self._frame.references.text
        self._add_params(draft, {key: text(value) for key, value in draft.late.items() if key not in draft.params})
        later = {key: text(value) for key, value in draft.waits.items()}
        self._set_tags(draft, {key: value for key, value in later.items() if value != draft.waits[key]})
        if draft.status != 1 or draft.found:
            body = {"model_id": draft.id, "status": STATUSES.get(draft.status, STATUSES[1])}
            self._client.patch(self._path(draft), Anything, body)
        self._set_tags(draft, {STAMP_TAG: draft.stamp})

    def _told(self, record: Record, what: str, call: Callable[[], None]) -> None:
        """Calls; what the server refuses is a loss of this model."""
        try:
            call()
        except (Unavailable, Conflict):
            raise
        except MigrateError as error:
            self._lose(record, what, error.message)

    def _lose(self, record: Record, what: str, because: str) -> None:
        self._frame.lose(f"logged model {record.id}: {what}", because, record.owner)


def _metric(row: Row, model: str, value: float | str | None) -> dict[str, object]:
    body: dict[str, object] = {
        "key": row["metric_name"],
        "value": value,
        "timestamp": row["metric_timestamp_ms"],
        "step": row["metric_step"],
        "model_id": model,
    }
    for column in ("dataset_name", "dataset_digest"):
        if row.get(column) is not None:
            body[column] = row[column]
    return body


def _in_lots(things: Iterable[T], most: int) -> Iterator[list[T]]:
    left = iter(things)
    return iter(lambda: list(islice(left, most)), [])
