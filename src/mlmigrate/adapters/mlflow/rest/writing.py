"""The calls that write one run. Each may be made again; only creating may not, and so looks first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, islice

import pyarrow as pa

from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.source import API, SURPLUS_TAG, run_pages
from mlmigrate.adapters.mlflow.rest.wire import Anything, OneRun, WireRun
from mlmigrate.errors import BadData, MigrateError, NotFound
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, DatasetInput, Run

DELETED_TAG = OURS + "deleted"
NAME_TAG = "mlflow.runName"
WAITS_TAG = OURS + "waits"  # names what of a run still speaks of things that were not there: see waiting
MEETINGS = 3  # calls that may meet another one over the same dataset
PARAMS = TAGS = 100  # MLflow's own bounds on one log-batch
ENTITIES = 1000  # metrics, params and tags together
_HELD = re.compile(r"(unique|duplicate).*\bmetric", re.IGNORECASE)  # what databases say of a point that is there


def _met_another(error: MigrateError) -> bool:
    """Whether two calls made the same dataset at once: the server refuses the second, and knows it the next time."""
    return "unique" in error.message.lower() and "datasets" in error.message


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags or params as MLflow takes them."""
    return [{"key": key, "value": value} for key, value in values.items()]


def is_whole(run: WireRun) -> bool:
    """Whether a run bears a stamp, and is deleted if it should be."""
    tags = run.tags
    return STAMP_TAG in tags and (DELETED_TAG not in tags or run.info.lifecycle_stage == "deleted")


def quoted(text: str) -> str | None:
    """`text` as a string of MLflow's search language, which knows no escapes; None when it cannot be written."""
    for quote in ("'", '"'):
        if quote not in text and "\\" not in text:
            return f"{quote}{text}{quote}"
    return None


class Writing:
    """Writes to runs of one server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._doubtful: set[str] = set()  # origins of runs whose making was not answered

    def create(self, run: Run, experiment: str, tags: Mapping[str, str]) -> WireRun:
        """The run made, once: after an answer that was lost it is looked for before it is made again."""
        tries = count()

        def attempt() -> WireRun:
            retried = next(tries) > 0
            if run.origin in self._doubtful and (found := self.find(run.origin, experiment)):
                return found[0]
            self._doubtful.add(run.origin)
            made = self.client.once("POST", f"{API}/runs/create", OneRun, None, _creation(run, experiment, tags)).run
            if not retried:
                self._doubtful.discard(run.origin)
            return made

        made = self.client.again.do(f"run {run.name}", attempt)
        if not made.id:
            raise BadData(f"{self.client.login.base} made a run and gave no id.")
        return made

    def find(self, origin: str, experiment: str) -> list[WireRun]:
        """The runs that came from `origin`, the most complete first."""
        text = quoted(origin)
        wanted = f"= {text}" if text else "!= ''"
        pages = run_pages(self.client, [experiment], f"tags.`{ORIGIN_TAG}` {wanted}")
        found = [run for page in pages for run in page if run.tags.get(ORIGIN_TAG) == origin]
        return sorted(found, key=lambda one: (not is_whole(one), one.id))

    def surplus(self, origin: str, experiment: str, id: str) -> list[WireRun]:
        """Runs that a lost answer hid from us until now, beside the one of this id."""
        if origin not in self._doubtful:
            return []
        self._doubtful.discard(origin)
        return [run for run in self.find(origin, experiment) if run.id != id]

    def get(self, id: str) -> WireRun:
        """A run by its id here."""
        return self.client.get(f"{API}/runs/get", OneRun, {"run_id": id, "run_uuid": id}).run

    def between(self, experiment: str, first: int, last: int) -> Iterator[WireRun]:
        """The runs of ours that began in that time."""
        text = f"tags.`{ORIGIN_TAG}` != '' and attributes.start_time >= {first} and attributes.start_time <= {last}"
        for page in run_pages(self.client, [experiment], text):
            yield from page

    def remove(self, run: WireRun) -> None:
        """A run that was made twice: it forgets where it came from and is deleted."""
        if run.info.lifecycle_stage == "deleted":
            self.restore(run.id)
        self.set_tag(run.id, SURPLUS_TAG, "true")
        for tag in (STAMP_TAG, ORIGIN_TAG):
            self.delete_tag(run.id, tag)
        self.delete(run.id)

    def log(
        self,
        id: str,
        params: Sequence[Mapping[str, str]],
        tags: Sequence[Mapping[str, str]],
        points: pa.RecordBatch | None,
    ) -> None:
        """Params, tags and points, in as few calls as MLflow's bounds allow.

        Where points fill a call alone, params and tags go before them: calls of 1,000 points then begin
        where a metric does, which the server's database takes a fifth faster.
        """
        if points is not None and len(points) + len(params) + len(tags) > ENTITIES and (params or tags):
            self.log(id, params, tags, None)
            params, tags = (), ()
        rest = (iter(params), iter(tags), iter(_metrics(points)))
        while True:
            some_params = list(islice(rest[0], PARAMS))
            some_tags = list(islice(rest[1], TAGS))
            some_points = list(islice(rest[2], ENTITIES - len(some_params) - len(some_tags)))
            if not (some_params or some_tags or some_points):
                return
            self._log(id, some_params, some_tags, some_points)

    def _log(
        self,
        id: str,
        params: Sequence[Mapping[str, str]],
        tags: Sequence[Mapping[str, str]],
        points: Sequence[Mapping[str, object]],
    ) -> None:
        """One call. Old servers refuse a NaN that they have, and all that comes with it: then each goes alone."""
        body = {"run_id": id, "params": params, "tags": tags, "metrics": points}
        try:
            self.client.post(f"{API}/runs/log-batch", Anything, body)
        except MigrateError as error:
            nans = [point for point in points if point["value"] == "NaN"]
            if not nans or not _HELD.search(error.message):
                raise
            if len(nans) == len(points) == 1 and not params and not tags:
                return  # a point is its own key there: it is the same
            self._log(id, params, tags, [point for point in points if point["value"] != "NaN"])
            for point in nans:
                self._log(id, (), (), [point])

    def update(self, id: str, run: Run, name: str | None) -> None:
        """Status and end, and the name if it is to change. Old servers take a missing status for RUNNING."""
        body: dict[str, object] = {"run_id": id, "run_uuid": id, "status": run.status}
        body |= {} if run.end is None else {"end_time": run.end}
        body |= {} if name is None else {"run_name": name}
        self.client.post(f"{API}/runs/update", Anything, body)

    def input(self, id: str, given: DatasetInput) -> None:
        """A dataset that the run read."""
        dataset = {"name": given.name, "digest": given.digest, "source_type": given.source_type, "source": given.source}
        dataset |= {} if given.schema is None else {"schema": given.schema}
        dataset |= {} if given.profile is None else {"profile": given.profile}
        body = {"run_id": id, "datasets": [{"tags": pairs(given.tags), "dataset": dataset}]}
        for _ in range(MEETINGS):
            try:
                self.client.post(f"{API}/runs/log-inputs", Anything, body)
            except MigrateError as error:
                if not _met_another(error):
                    raise
            else:
                return
        self.client.post(f"{API}/runs/log-inputs", Anything, body)

    def set_tag(self, id: str, key: str, value: str) -> None:
        body = {"run_id": id, "run_uuid": id, "key": key, "value": value}
        self.client.post(f"{API}/runs/set-tag", Anything, body)

    def delete_tag(self, id: str, key: str) -> None:
        with suppress(NotFound):  # it is gone already
            self.client.post(f"{API}/runs/delete-tag", Anything, {"run_id": id, "key": key})

    def delete(self, id: str) -> None:
        self.client.post(f"{API}/runs/delete", Anything, {"run_id": id})

    def restore(self, id: str) -> None:
        self.client.post(f"{API}/runs/restore", Anything, {"run_id": id})


def _creation(run: Run, experiment: str, tags: Mapping[str, str]) -> dict[str, object]:
    """The tag mlflow.runName is left to the server: old ones fail on it."""
    return {
        "experiment_id": experiment,
        "user_id": run.user,
        "run_name": run.name,
        "start_time": run.start or 0,
        "tags": pairs({key: value for key, value in tags.items() if key != NAME_TAG}),
    }


def _metrics(batch: pa.RecordBatch | None) -> Iterator[dict[str, object]]:
    if batch is None:
        return
    columns = [batch.column(name) for name in ("key", "value", "timestamp", "step")]
    for key, value, timestamp, step in zip(*(column.to_pylist() for column in columns), strict=True):
        yield {"key": key, "value": _number(value), "timestamp": timestamp or 0, "step": step or 0}


def _number(value: float) -> float | str:
    """JSON has no NaN: MLflow takes the word."""
    if value != value:  # noqa: PLR0124  # NaN is not itself
        return "NaN"
    return value if abs(value) != float("inf") else "Infinity" if value > 0 else "-Infinity"
