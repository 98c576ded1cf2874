"""An assessment of a trace, from the JSON form of MLflow's protobuf message to a row.  Pure.

feedback: {value, error}   expectation: {value | serialized_value}   issue: {issue_name}
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mlmigrate.adapters.mlflow.files import disk, meta
from mlmigrate.adapters.mlflow.files.meta import Meta
from mlmigrate.adapters.mlflow.files.runs import escaped
from mlmigrate.adapters.mlflow.files.things import Thing
from mlmigrate.adapters.mlflow.objects import Row

KINDS = ("feedback", "expectation", "issue")
_TIMES = ("create_time", "create_time_ms", "last_update_time", "last_update_time_ms")
_TEXTS = ("run_id", "span_id", "rationale", "overrides")
_KNOWN = frozenset((*KINDS, *_TIMES, *_TEXTS, "assessment_id", "trace_id", "assessment_name", "name", "source")) | {
    "metadata",
    "valid",
}


def assessment(trace: Thing, id: str, said: Meta, info: Row, moment: Callable[[object], int | None]) -> Row | None:
    """The row of an assessment of the trace whose own row is `info`; None, and told, when it cannot be read."""
    what = f"assessment {disk.shown(id)}"
    kind = next((kind for kind in KINDS if isinstance(said.get(kind), dict)), "")
    if not kind:
        trace.lose(what, f"it is none of {', '.join(KINDS)}")
        return None
    try:
        value, error = _value(kind, said)
        texts = json.dumps(value), None if not error else json.dumps(error)
        metadata = json.dumps(said["metadata"]) if said.get("metadata") else None
    except (TypeError, ValueError, RecursionError):
        trace.lose(what, "its value is no JSON")
        return None
    for field in sorted(said.keys() - _KNOWN):
        trace.lose(f"{what}, {disk.shown(field)}", "MLflow knows no such field")
    source = said.get("source")
    created = _moment(said, "create_time", moment)
    updated = _moment(said, "last_update_time", moment)
    if created is None:
        trace.lose(f"{what}, create_time", "it says none that can be read: that of the trace is kept")
        created = info["timestamp_ms"]
    return {
        "assessment_id": id,
        "trace_id": info["request_id"],
        "name": _text(said.get("assessment_name", said.get("name"))) or "",
        "assessment_type": kind,
        "value": texts[0],
        "error": texts[1],
        "created_timestamp": created,
        "last_updated_timestamp": created if updated is None else updated,
        "source_type": _text(source.get("source_type")) if isinstance(source, dict) else "CODE",
        "source_id": _text(source.get("source_id")) if isinstance(source, dict) else None,
        **{field: _text(said.get(field)) for field in _TEXTS},
        "valid": said.get("valid") is not False,
        "assessment_metadata": metadata,
    }


def _value(kind: str, said: Meta) -> tuple[Any, Any]:
    """The value and the error of an assessment."""
    held: Any = said[kind]
    if kind == "issue":
        return held, None
    serialized = held.get("serialized_value")
    if isinstance(serialized, dict):
        return json.loads(serialized["value"]), None
    return held.get("value"), held.get("error") if kind == "feedback" else None


def _moment(said: Meta, field: str, moment: Callable[[object], int | None]) -> int | None:
    given = said.get(f"{field}_ms")
    return moment(said.get(field) if given is None else given)


def _text(value: object) -> str | None:
    return None if value is None else escaped(meta.word(value))
