"""Assessments of traces as a server tells them, and as its database has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlmigrate.adapters.mlflow.objects import Row
from mlmigrate.adapters.mlflow.rest.things import dumped, known, moment, ordered
from mlmigrate.errors import BadData

KINDS = ("feedback", "expectation", "issue")
_RUN = "mlflow.assessment.sourceRunId"  # in the metadata: the call has no field for the run
_ERROR = ("error_code", "error_message", "stack_trace")


def assessment(said: Mapping[str, Any], trace: str) -> Row:
    """A row of `assessments`. Raises BadData for what is none."""
    try:
        return _row(said, trace)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadData(f"The server gave an assessment of trace {trace} that is none.") from error


def _row(said: Mapping[str, Any], trace: str) -> Row:
    kind = next(kind for kind in KINDS if kind in said)
    metadata = said.get("metadata") or {}
    value, error = _value(said[kind])
    source = said.get("source") or {}
    return known(
        assessment_id=said["assessment_id"],
        trace_id=trace,
        name=said["assessment_name"],
        assessment_type=kind,
        value=value,
        error=error,
        created_timestamp=moment(said["create_time"]),
        last_updated_timestamp=moment(said["last_update_time"]),
        source_type=source.get("source_type"),
        source_id=source.get("source_id"),
        run_id=metadata.get(_RUN),
        span_id=said.get("span_id") or None,
        rationale=said.get("rationale"),
        overrides=said.get("overrides") or None,
        valid=said.get("valid"),
        assessment_metadata=ordered(metadata) if metadata else None,
    )


def _value(held: Mapping[str, Any]) -> tuple[str, str | None]:
    """The value and the error of an assessment, as JSON text."""
    serialized = held.get("serialized_value")
    if isinstance(serialized, Mapping):
        return serialized["value"], None
    if "issue_name" in held:
        return dumped(held), None
    error = held.get("error")
    told = None if error is None else dumped({key: error.get(key) for key in _ERROR})
    return ordered(held.get("value")), told
