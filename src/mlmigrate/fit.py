"""Makes a run fit a target's Limits; what changes on the way becomes a Loss. Pure.

What is fitted twice stays as it is: `fit(fit(x)) == fit(x)`, so that a copy that is taken up again,
or verified, meets the same values.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.base import LEFT_OUT, Change, Limits
from mlmigrate.model import POINTS, Artifact, DatasetInput, Experiment, Loss, Record, Run, Value, text_of

NAME_TAG = "mlflow.runName"
LARGEST = 1.7976931348623157e308
OVERFLOW = "mlmigrate"  # the folder of artifacts that hold what a value had no room for


@dataclass(frozen=True, slots=True)
class FittedRun:
    """A run as the target can hold it; `overflow` carries the whole of what was cut."""

    run: Run
    losses: tuple[Loss, ...]
    overflow: tuple[Artifact, ...] = ()


def fit_experiment(experiment: Experiment, limits: Limits) -> tuple[Experiment, list[Loss]]:
    """The experiment as the target can hold it."""
    losses: list[Loss] = []

    def lose(what: str, because: str) -> None:
        losses.append(Loss("", what, because, experiment.id))

    placed = _placed(experiment.name, limits.experiment_folder)
    if placed != experiment.name:
        lose(f"name {experiment.name!r}", f"became {placed!r}: the target names experiments by absolute paths")
    name = _shorten(placed, limits.experiment_name_length)
    if name != placed:
        lose(f"name {experiment.name!r}", f"cut to {limits.experiment_name_length} characters: {name!r}")
    tags = {}
    for key, value in experiment.tags.items():
        tags[limits.key(key)] = _shorten(value, limits.experiment_tag_length)
        if tags[limits.key(key)] != value:
            lose(f"tag {key!r}", f"cut from {len(value)} to {limits.experiment_tag_length} characters")
    if not limits.experiment_times and (experiment.created is not None or experiment.updated is not None):
        lose(f"experiment {experiment.name!r}", "its times of creation and update become the target's own")
        return replace(experiment, name=name, tags=tags, created=None, updated=None), losses
    return replace(experiment, name=name, tags=tags), losses


def _placed(name: str, folder: str) -> str:
    return f"{folder}/{name}" if folder and not name.startswith("/") else name


def fit_run(run: Run, limits: Limits) -> FittedRun:
    """The run as the target can hold it."""
    fitting = _RunFitting(run, limits)
    params = {key: fitting.param(name, key, value) for name, key, value in fitting.keyed("param", run.params)}
    tags = {key: fitting.tag(name, key, value) for name, key, value in fitting.keyed("tag", run.tags)}
    fitted = replace(
        run,
        params=params,
        tags=tags,
        inputs=fitting.inputs(),
        records=fitting.records(),
        system=run.system if limits.system else {},
        deleted_at=run.deleted_at if limits.deleted_times else None,
    )
    fitting.fields()
    fitted = fitting.started(fitting.named(fitting.called(fitted)))
    return FittedRun(fitted, tuple(fitting.losses), tuple(fitting.overflow))


class _RunFitting:
    def __init__(self, run: Run, limits: Limits) -> None:
        self.run, self.limits = run, limits
        self.losses: list[Loss] = []
        self.overflow: list[Artifact] = []

    def lose(self, what: str, because: str) -> None:
        self.losses.append(Loss(self.run.id, what, because, self.run.experiment))

    def keyed(self, role: str, values: Mapping[str, Value]) -> list[tuple[str, str, Value]]:
        """(name, key that fits, value) of each; two names never become one key."""
        keyed = []
        for name, value in values.items():
            key = self.limits.key(name)
            if key != name:
                self.lose(f"{role} {name!r}", f"renamed to {key!r}: the target refuses the name")
            keyed.append((name, key, value))
        return keyed

    def param(self, name: str, key: str, value: Value) -> Value:
        if self.limits.types and not isinstance(value, str):
            return value
        text = text_of(value)
        if not isinstance(value, str | bool | int | float):  # the text of those says all of them
            self.lose(f"param {name!r}", f"{type(value).__name__} became text")
        return self.cut("param", name, key, text, self.limits.param_length)

    def tag(self, name: str, key: str, value: Value) -> str:
        return self.cut("tag", name, key, str(value), self.limits.tag_length)

    def cut(self, role: str, name: str, key: str, text: str, length: int | None) -> str:
        if length is None or len(text) <= length:
            return text
        path = f"{OVERFLOW}/{role}s/{_file_name(key)}.txt"
        self.overflow.append(_text_artifact(self.run.id, path, text))
        self.lose(
            f"{role} {name!r}", f"cut from {len(text)} to {length} characters; whole text kept as artifact {path}"
        )
        return text[:length]

    def inputs(self) -> tuple[DatasetInput, ...]:
        if self.limits.inputs:
            return self.run.inputs
        for given in self.run.inputs:
            self.lose(f"dataset input {given.name!r}", "the target has no place for it")
        return ()

    def records(self) -> tuple[Record, ...]:
        for record in self.run.records:
            if not self.limits.holds(record.kind):
                self.lose(f"{record.kind} {record.id!r}", "the target has no place for it")
        return tuple(record for record in self.run.records if self.limits.holds(record.kind))

    def called(self, run: Run) -> Run:
        """The run with a name and a user that are not too long."""
        name = self.cut("field", "name", "name", run.name, self.limits.name_length)
        user = self.cut("field", "user", "user", run.user, self.limits.user_length)
        return run if (name, user) == (run.name, run.user) else replace(run, name=name, user=user)

    def named(self, run: Run) -> Run:
        """The run with a name, where the target has none without."""
        if self.limits.blank_names:
            return run
        name = run.name or run.id
        if not run.name:
            self.lose("name ''", f"became {name!r}: the target names every run")
        tags = dict(run.tags)
        if tags.get(NAME_TAG, name) != name:
            self.lose(f"tag {NAME_TAG!r}", f"became {name!r}: the target holds the run's name there")
            tags[NAME_TAG] = name
        return replace(run, name=name, tags=tags)

    def started(self, run: Run) -> Run:
        """The run with a start, where the target has none without."""
        if self.limits.blank_starts or run.start is not None:
            return run
        self.lose("start", "became 1970: the target holds no run without one")
        return replace(run, start=0)

    def fields(self) -> None:
        if not self.limits.deleted_times and self.run.deleted_at is not None:
            self.lose("time of deletion", "the target sets its own")
        if not self.limits.system:
            for name, value in self.run.system.items():
                self.lose(f"field {name} ({value!r})", "the target has no place for it")
        if self.run.status_word and not self.limits.types:
            self.lose(f"status {self.run.status_word!r}", f"became {self.run.status}")


@dataclass(frozen=True, slots=True)
class FittedRecord:
    """A record as the target can hold it, None when it cannot; `changed` counts by (what, because)."""

    record: Record | None
    changed: Mapping[tuple[str, str], int] = field(default_factory=dict)


def fit_record(record: Record, limits: Limits) -> FittedRecord:
    """The record as the target can hold it.

    A record whose body is {table: [row, ...]} is changed row by row as its Holding declares.
    """
    holding = limits.holding(record.kind)
    if not limits.holds(record.kind):
        because = holding.because if holding is not None and holding.because else "the target has no place for it"
        return FittedRecord(None, {(f"{record.kind} {record.id!r}", because): 1})
    changes = holding.changes if holding is not None else ()
    refuses = holding.refuses if holding is not None else ()
    changed: Counter[tuple[str, str]] = Counter()
    if holding is not None and holding.how == "record" and holding.because:  # kept, but not as what it is
        changed[record.kind, holding.because] = 1
    if not changes and not refuses and not limits.column_lengths:
        return FittedRecord(record, changed)
    rows = msgspec.json.decode(record.body)
    if not _is_rows(rows):
        return FittedRecord(record, changed)
    for refusal in refuses:
        table, _, column = refusal.part.partition(".")
        if any(row.get(column) in refusal.only for row in rows.get(table, ())):
            return FittedRecord(None, {(f"{record.kind} {record.id!r}", refusal.because): 1})
    for change in changes:
        _apply(change, rows, changed)
    _cut_columns(rows, _by_table(limits.column_lengths), changed)
    return FittedRecord(replace(record, body=msgspec.json.encode(rows).decode()), changed)


def _is_rows(body: object) -> bool:
    return isinstance(body, dict) and all(isinstance(rows, list) for rows in body.values())


def _apply(change: Change, rows: dict[str, list[dict[str, object]]], changed: Counter[tuple[str, str]]) -> None:
    table, _, column = change.part.partition(".")
    if not column:
        if rows.get(table) and change.lost:
            changed[f"rows of {table}", change.because] += len(rows[table])
        rows.pop(table, None)
        return
    for row in rows.get(table, ()):
        if column not in row or (change.only and row[column] not in change.only):
            continue
        before = row[column]
        if change.kept:
            if change.lost and before is not None:
                changed[f"values of {change.part}", change.because] += 1
            continue
        if change.becomes == LEFT_OUT:
            del row[column]
        else:
            row[column] = change.becomes
        if change.lost and before is not None and before not in change.unless and row.get(column) != before:
            changed[f"values of {change.part}", change.because] += 1


@lru_cache(maxsize=16)
def _by_table(lengths: tuple[tuple[str, int], ...]) -> Mapping[str, Mapping[str, int]]:
    tables: dict[str, dict[str, int]] = {}
    for at, most in lengths:
        table, _, column = at.partition(".")
        tables.setdefault(table, {})[column] = most
    return tables


def _cut_columns(
    rows: dict[str, list[dict[str, object]]],
    lengths: Mapping[str, Mapping[str, int]],
    changed: Counter[tuple[str, str]],
) -> None:
    for table, found in rows.items():
        long = lengths.get(table, {})
        for row in found if long else ():
            for column, most in long.items():
                value = row.get(column)
                if isinstance(value, str) and len(value) > most:
                    row[column] = value[:most]
                    changed[f"values of {table}.{column}", f"cut to {most} characters"] += 1


def _shorten(text: str, length: int | None) -> str:
    return text if length is None else text[:length]


def _file_name(key: str) -> str:
    """A key as one path part."""
    safe = re.sub(r"[^\w.\- ]", "_", key)[:150]
    return (
        safe
        if safe == key
        else f"{safe}_{hashlib.blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"
    )


def _text_artifact(owner: str, path: str, text: str) -> Artifact:
    data = text.encode("utf-8", "surrogatepass")

    def opened() -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(data)

    return Artifact(owner, path, opened, len(data), hashlib.sha256(data).hexdigest())


@dataclass
class PointFitting:
    """Fits batch after batch of points and counts what changed. `starts`: run -> ms, for points without a time."""

    limits: Limits
    starts: Mapping[str, int | None]
    counts: Counter[tuple[str, str, str]]  # (run, what, because)

    def fit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch as the target can hold it."""
        columns = dict(zip(POINTS.names, batch.columns, strict=True))
        for mend in (self._keys, self._infinities, self._steps, self._times, self._micros, self._links):
            mend(columns)
        return pa.RecordBatch.from_arrays([columns[name] for name in POINTS.names], schema=POINTS)

    def losses(self, experiments: Mapping[str, str]) -> list[Loss]:
        """The losses of all batches so far; `experiments`: run -> its experiment."""
        return [
            Loss(run, what, because.format(n=n), experiments.get(run, ""))
            for (run, what, because), n in self.counts.items()
        ]

    def _count(self, columns: dict[str, pa.Array], rows: pa.Array, what: Callable[[str], str], because: str) -> None:
        """Counts the rows where `rows` is true, by run and key."""
        chosen = pa.table({name: columns[name].filter(rows) for name in ("run", "key")})
        plain = chosen.cast(pa.schema([("run", pa.utf8()), ("key", pa.utf8())]))
        for row in plain.group_by(["run", "key"]).aggregate([([], "count_all")]).to_pylist():
            self.counts[row["run"], what(row["key"]), because] += row["count_all"]

    def _keys(self, columns: dict[str, pa.Array]) -> None:
        names = columns["key"].dictionary.to_pylist()
        fitted = [self.limits.key(name) for name in names]
        if fitted == names:
            return
        renamed = pa.array([a != b for a, b in zip(names, fitted, strict=True)]).take(columns["key"].indices)
        new = dict(zip(names, fitted, strict=True))
        chosen = pa.table({name: columns[name].filter(renamed).cast(pa.utf8()) for name in ("run", "key")})
        for row in chosen.group_by(["run", "key"]).aggregate([]).to_pylist():
            self.counts[
                row["run"], f"metric {row['key']!r}", f"renamed to {new[row['key']]!r}: the target refuses the name"
            ] = 1
        columns["key"] = pa.DictionaryArray.from_arrays(columns["key"].indices, pa.array(fitted, pa.utf8()))

    def _infinities(self, columns: dict[str, pa.Array]) -> None:
        if self.limits.infinities:
            return
        value = columns["value"]
        rows = pc.is_inf(value)
        if pc.any(rows).as_py():
            self._count(columns, rows, "metric {!r}".format, "{n} infinite points became +-" + str(LARGEST))
            columns["value"] = pc.if_else(rows, pc.multiply(pc.sign(value), LARGEST), value)

    def _steps(self, columns: dict[str, pa.Array]) -> None:
        if self.limits.nulls or columns["step"].null_count == 0:
            return
        rows = columns["step"].is_null()
        self._count(columns, rows, "metric {!r}".format, "{n} points without a step have step 0")
        columns["step"] = columns["step"].fill_null(0)

    def _times(self, columns: dict[str, pa.Array]) -> None:
        if not self.limits.nulls and columns["timestamp"].null_count:
            rows = columns["timestamp"].is_null()
            self._count(columns, rows, "metric {!r}".format, "{n} points without a time have that of the run's start")
            start = pa.array([self.starts.get(run) or 0 for run in columns["run"].dictionary.to_pylist()], pa.int64())
            columns["timestamp"] = pc.coalesce(columns["timestamp"], start.take(columns["run"].indices))
        if not self.limits.negative_times:
            rows = pc.less(columns["timestamp"], 0)
            if pc.any(rows).as_py():
                self._count(columns, rows, "metric {!r}".format, "{n} points with a time before 1970 have time 0")
                columns["timestamp"] = pc.max_element_wise(columns["timestamp"], 0)

    def _micros(self, columns: dict[str, pa.Array]) -> None:
        for name in ("step_micro", "timestamp_micro"):
            column = columns[name]
            if not self.limits.micros and column.null_count < len(column):
                rows = pc.fill_null(pc.not_equal(column, 0), fill_value=False)
                self._count(columns, rows, "metric {!r}".format, "{n} points are rounded down: " + name + " is dropped")
                columns[name] = pa.nulls(len(column), column.type)

    def _links(self, columns: dict[str, pa.Array]) -> None:
        if self.limits.point_links:
            return
        models = columns["model"].is_valid()
        with_model = self.limits.holds("mlflow.logged_model")  # it says of each of its points what they say here
        for name in ("dataset_name", "dataset_digest", "model"):
            column = columns[name]
            if column.null_count < len(column):
                lost = pc.and_not(column.is_valid(), models) if with_model else column.is_valid()
                if name != "dataset_digest" and pc.any(lost).as_py():
                    what = "model" if name == "model" else "dataset"
                    self._count(columns, lost, "metric {!r}".format, "{n} points lose their link to a " + what)
                columns[name] = pa.DictionaryArray.from_arrays(
                    pa.nulls(len(column), pa.int32()), pa.array([], pa.utf8())
                )


def fit_points(limits: Limits, starts: Mapping[str, int | None]) -> PointFitting:
    """What fits the points of the runs whose starts are given."""
    return PointFitting(limits, starts, Counter())
