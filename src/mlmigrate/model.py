"""The neutral values that stand between any two trackers.

Everything here is a frozen value; large contents are streams opened on demand.  Times are
milliseconds since the epoch unless a name says otherwise.  Points are Arrow record batches of the
schema POINTS, never Python objects one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO, Literal

import pyarrow as pa

NAMES = pa.dictionary(pa.int32(), pa.utf8())

# One row a point, in log order within a run, so that repeats and restarts survive.
#   run             the source's run id
#   key             metric name
#   step            int64; null where the tracker knows none
#   step_micro      millionths after `step` (decimal steps); null for none
#   timestamp       ms since the epoch; null where the tracker knows none. Milliseconds, not
#                   microseconds: stores hold nanoseconds logged as milliseconds by mistake, and
#                   those times 1000 do not fit an int64
#   timestamp_micro microseconds after `timestamp`; null for none
#   value           NaN and the infinities kept
#   dataset_name, dataset_digest, model   what the point was measured on, by; null for none
POINTS = pa.schema(
    [
        ("run", NAMES),
        ("key", NAMES),
        ("step", pa.int64()),
        ("step_micro", pa.int32()),
        ("timestamp", pa.int64()),
        ("timestamp_micro", pa.int16()),
        ("value", pa.float64()),
        ("dataset_name", NAMES),
        ("dataset_digest", NAMES),
        ("model", NAMES),
    ]
)

Value = str | bool | int | float | datetime | frozenset[str] | None
Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
STATUSES: tuple[Status, ...] = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")

# Everything that we write beside what was carried has a name that begins so; sources leave it out.
OURS = "mlmigrate."
ORIGIN_TAG = "mlmigrate.origin"
STAMP_TAG = "mlmigrate.stamp"
PARENT_TAG = "mlflow.parentRunId"
UNKNOWN_STAMP = "?"  # of a run that nobody can tell to have changed or not


@dataclass(frozen=True, slots=True)
class Experiment:
    """What W&B and Neptune call a project. Times in ms since the epoch.

    `origin` names it the same wherever it is found again; a survey gives it.
    """

    id: str
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    created: int | None = None
    updated: int | None = None
    deleted: bool = False
    artifact_root: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class RunRef:
    """Where a run lives in its tracker: cheap to list, enough to find it again.

    `origin` names the run the same wherever it is found again ("mlflow:<run id>").
    `stamp` changes when the run does; "" means that nobody can tell, so it is taken again.
    `points` and `size` (bytes of artifacts) are estimates, for packing.
    A ref of kind "records" stands for things that belong to no run (models, traces, ...).
    """

    experiment: str
    id: str
    name: str = ""
    origin: str = ""
    stamp: str = ""
    status: str = ""
    start: int | None = None
    deleted: bool = False
    points: int = 0
    size: int = 0
    kind: Literal["run", "records"] = "run"


@dataclass(frozen=True, slots=True)
class DatasetInput:
    """A dataset that a run read, with the tags of that reading."""

    name: str
    digest: str
    source_type: str = ""
    source: str = ""
    schema: str | None = None
    profile: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """A source-native object with no counterpart elsewhere, kept whole.

    kind   "<tracker>.<what>", for example "mlflow.registered_model"
    owner  the id of the run or experiment that it belongs to, or "" for the estate
    body   the source's own content as JSON text; {table: [row, ...]} where it is made of rows
    """

    kind: str
    id: str
    owner: str
    body: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run with all but its points and artifact bytes.

    `status_word` is the source's own word where STATUSES has no equal for it.
    `system` holds the tracker's own fields that are neither params nor tags
    (source_type, source_name, source_version, entry_point_name).
    """

    id: str
    experiment: str
    name: str = ""
    origin: str = ""
    stamp: str = ""
    status: str = "FINISHED"
    status_word: str = ""
    start: int | None = None
    end: int | None = None
    user: str = ""
    deleted: bool = False
    deleted_at: int | None = None
    params: Mapping[str, Value] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    system: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[DatasetInput, ...] = ()
    records: tuple[Record, ...] = ()
    artifact_uri: str = ""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where bytes lie, for a target that can take them from there itself, without their passing through us.

    store    names the store and how it is reached (storage.objects.Objects.store); "file" for this machine
    url      s3://bucket/key as the store has it (no quoting), or the absolute path of a file
    version  changes when the file does: an etag, or "<mtime ns>-<size>"; "" when it cannot be told
    """

    store: str
    url: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a run (or of a model, a trace: then `owner` begins with "@").

    `path` is relative, with "/" between its parts. `size` in bytes and `sha256` (hex) where known.
    `open` gives the bytes from the start each time it is called; `spot` is where they lie, when that is known.
    Who takes them from the spot itself calls `told(at, length)` for bytes that have passed, so that a bar moves;
    what is read from `open` is told already, and nothing counts twice.
    `values`: no file of the user's, but JSON (lines, where the path ends in "l") that we made of the run's own values,
    so that what redacts those redacts it too.
    """

    owner: str
    path: str
    open: Callable[[], AbstractContextManager[BinaryIO]] = field(compare=False, repr=False)
    size: int | None = None
    sha256: str | None = None
    spot: Spot | None = field(default=None, compare=False)
    told: Callable[[int, int], object] | None = field(default=None, compare=False, repr=False)
    values: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that does not arrive as it was: planned before, reported after, never silent.

    `run` is the source's id of the run ("" for none), `experiment` that of its experiment (or "" for the estate),
    `what` the thing, `because` the reason.
    """

    run: str
    what: str
    because: str
    experiment: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference that verify found, or (mark "!") something that could not be read.

    mark   "+" only in source, "-" only in target, "*" differs, "!" unreadable
    """

    mark: str
    experiment: str
    run: str
    what: str
    source: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A run that is whole in a target: its id there, and the stamp it had when it was taken."""

    id: str
    stamp: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one pack brought: `ids` maps origin to the target's id; `records` counts by kind."""

    pack: str
    ids: Mapping[str, str]
    losses: tuple[Loss, ...] = ()
    points: int = 0
    artifacts: int = 0
    size: int = 0
    records: Mapping[str, int] = field(default_factory=dict)


def text_of(value: Value) -> str:
    """A typed value as the text that a tracker without types is given; a set is the JSON of its sorted list."""
    if isinstance(value, str):
        return value
    if isinstance(value, frozenset):
        return json.dumps(sorted(value), ensure_ascii=False, separators=(",", ":"))
    return value.isoformat() if isinstance(value, datetime) else str(value)


def points(columns: Mapping[str, object]) -> pa.RecordBatch:
    """A batch of the schema POINTS from the columns that there are; the others are null.

    `columns` holds Arrow arrays or Python sequences of one length, among them run, key and value.
    """
    rows = len(columns["value"])  # type: ignore[arg-type]
    arrays = [_column(columns.get(field.name), field.type, rows) for field in POINTS]
    return pa.RecordBatch.from_arrays(arrays, schema=POINTS)


def _column(given: object, kind: pa.DataType, rows: int) -> pa.Array:
    if given is None:
        return _nulls(kind, rows)
    array = given if isinstance(given, pa.Array) else pa.array(given, kind if kind != NAMES else pa.utf8())
    return array if array.type == kind else array.cast(kind)


def _nulls(kind: pa.DataType, rows: int) -> pa.Array:
    if kind == NAMES:
        return pa.DictionaryArray.from_arrays(pa.nulls(rows, pa.int32()), pa.array([], pa.utf8()))
    return pa.nulls(rows, kind)
