"""What an MLflow server says of its models, traces and the rest, as msgspec structs, and the rows that come of it.

Fields that a server leaves out are UNSET and are left out of rows too: protobuf says nothing of what is null.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from mlmigrate.adapters.mlflow.objects import Row, Tree
from mlmigrate.adapters.mlflow.rest.wire import Pair
from mlmigrate.errors import BadData
from mlmigrate.model import OURS

Text = str | None | UnsetType
Whole = int | None | UnsetType
Truth = bool | None | UnsetType
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|\+00:00)")
_DURATION = re.compile(r"(-?)(\d+)(?:\.(\d+))?s")


class WireAlias(msgspec.Struct, frozen=True, kw_only=True):
    """An alias of a registered model."""

    alias: str = ""
    version: int = 0


class WireModel(msgspec.Struct, frozen=True, kw_only=True):
    """A registered model or a prompt."""

    name: str
    creation_timestamp: Whole = UNSET
    last_updated_timestamp: Whole = UNSET
    description: Text = UNSET
    tags: list[Pair] = []
    aliases: list[WireAlias] = []


class WireVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A model version."""

    name: str
    version: int
    creation_timestamp: Whole = UNSET
    last_updated_timestamp: Whole = UNSET
    description: Text = UNSET
    user_id: Text = UNSET
    current_stage: Text = UNSET
    source: Text = UNSET
    run_id: Text = UNSET
    status: Text = UNSET
    status_message: Text = UNSET
    run_link: Text = UNSET
    tags: list[Pair] = []


class WireModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A logged model."""

    model_id: str
    experiment_id: str
    name: Text = UNSET
    creation_timestamp_ms: Whole = UNSET
    last_updated_timestamp_ms: Whole = UNSET
    artifact_uri: Text = UNSET
    status: str = ""
    model_type: Text = UNSET
    source_run_id: Text = UNSET
    status_message: Text = UNSET
    tags: list[Pair] = []


class WireModelMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A point that was measured of a logged model."""

    key: str
    value: float = 0.0
    timestamp: int = 0
    step: int = 0
    dataset_name: Text = UNSET
    dataset_digest: Text = UNSET
    run_id: str = ""


class WireModelData(msgspec.Struct, frozen=True, kw_only=True):
    """What was logged of a logged model."""

    params: list[Pair] = []
    metrics: list[WireModelMetric] = []


class WireLoggedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A logged model, whole."""

    info: WireModelInfo
    data: WireModelData = WireModelData()


class WireExperiment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a trace belongs."""

    experiment_id: str = ""


class WirePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a trace belongs, of all the kinds of place that there are."""

    mlflow_experiment: WireExperiment = WireExperiment()


class WireTrace(msgspec.Struct, frozen=True, kw_only=True):
    """A trace without its spans (3.0 and later)."""

    trace_id: str
    trace_location: WirePlace = WirePlace()
    request_time: str = ""
    execution_duration: Text = UNSET
    state: str = "STATE_UNSPECIFIED"
    trace_metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    client_request_id: Text = UNSET
    request_preview: Text = UNSET
    response_preview: Text = UNSET
    assessments: list[dict[str, Any]] = []


class WireOldTrace(msgspec.Struct, frozen=True, kw_only=True):
    """A trace without its spans (before 3.0)."""

    request_id: str
    experiment_id: str = ""
    timestamp_ms: int = 0
    execution_time_ms: Whole = UNSET
    status: str = ""
    request_metadata: list[Pair] = []
    tags: list[Pair] = []


def known(**columns: object) -> Row:
    """A row of the columns that the server told."""
    return {name: value for name, value in columns.items() if value is not UNSET and value is not None}


def tree(**tables: Iterable[Row]) -> Tree:
    """The tables that have rows."""
    filled = {name: list(rows) for name, rows in tables.items()}
    return {name: rows for name, rows in filled.items() if rows}


def tags(
    pairs: Iterable[Pair] | Mapping[str, str], key: str = "key", value: str = "value", **same: object
) -> list[Row]:
    """Tags as rows, but for those that are ours."""
    given = pairs.items() if isinstance(pairs, Mapping) else ((pair.key, pair.value) for pair in pairs)
    return [{key: name, value: text, **same} for name, text in given if not name.startswith(OURS)]


def experiment(id: str) -> int | str:
    """An experiment's id as rows have it."""
    return int(id) if id.isascii() and id.isdigit() else id


def number(value: float) -> object:
    """A float as rows have it."""
    return value if math.isfinite(value) else {"$float": str(value).replace("nan", "NaN")}


def dumped(value: object) -> str:
    """JSON text as a server writes it into its database."""
    return json.dumps(value)


def ordered(value: object) -> str:
    """JSON text of what came as a map of protobuf, whose keys are in no order that means anything."""
    return json.dumps(value, sort_keys=True)


def moment(text: str) -> int:
    """Milliseconds since the epoch of a time as protobuf writes it. Raises BadData."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise BadData(f"The server gave {text[:40]!r} for a time.")
    try:
        seconds = msgspec.convert(found[1] + "Z", type=datetime).timestamp()
    except (ValueError, OverflowError) as error:
        raise BadData(f"The server gave {text[:40]!r} for a time.") from error
    return int(seconds) * 1000 + int((found[2] or "")[:3].ljust(3, "0"))


def duration(text: Text) -> Whole:
    """Milliseconds of a duration as protobuf writes it ("1.5s"). Raises BadData."""
    if not isinstance(text, str):
        return text
    found = _DURATION.fullmatch(text)
    if found is None:
        raise BadData(f"The server gave {text[:40]!r} for a duration.")
    whole = int(found[2]) * 1000 + int((found[3] or "")[:3].ljust(3, "0"))
    return -whole if found[1] else whole


def texts(said: Mapping[str, Any], names: str) -> Row:
    """Those of the columns (named with spaces between) that were told, as text."""
    return {name: said[name] for name in names.split() if isinstance(said.get(name), str)}


def numbers(said: Mapping[str, Any], names: str) -> Row:
    """Those of the columns that were told, as whole numbers. Raises BadData."""
    try:
        return {name: int(said[name]) for name in names.split() if said.get(name) is not None}
    except (TypeError, ValueError) as error:
        raise BadData(f"The server gave something for one of {names} that is no number.") from error


def truths(said: Mapping[str, Any], names: str) -> Row:
    """Those of the columns that were told, as true or false."""
    return {name: said[name] for name in names.split() if isinstance(said.get(name), bool)}
