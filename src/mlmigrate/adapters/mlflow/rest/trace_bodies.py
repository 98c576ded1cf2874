"""A trace's rows as MLflow's calls take them, and as a server's database has them afterwards. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from mlmigrate.adapters.mlflow.objects import Row, Tree, pairs
from mlmigrate.adapters.mlflow.rest import otlp

LOCATION = "mlflow.artifactLocation"
SPANS_LOCATION = "mlflow.trace.spansLocation"
IN_DATABASE = "TRACKING_STORE"
NAME = "mlflow.traceName"
FINALIZED = "mlflow.trace.infoFinalized"
SESSION, USAGE, COST = "mlflow.trace.session", "mlflow.trace.tokenUsage", "mlflow.trace.cost"
USER = "mlflow.trace.user"
# written by the server, or by the job that moves spans into an archive of its own
ITS_OWN = frozenset([LOCATION, SPANS_LOCATION, "mlflow.trace.archiveLocation", "mlflow.trace.archivalFailure"])
TOKENS = (
    "input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    "cache_creation_input_tokens_above_1hr",
)  # fmt: skip
COSTS = ("input_cost", "output_cost", "total_cost")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STATES = ("OK", "ERROR", "IN_PROGRESS", "STATE_UNSPECIFIED")
SOURCES = ("HUMAN", "LLM_JUDGE", "AI_JUDGE", "CODE")


def root(tree: Tree) -> Row:
    """The row of the trace itself."""
    return tree["trace_info"][0]


def tags_of(tree: Tree) -> dict[str, str]:
    """Its tags but for those that are a server's own; its name among them."""
    tags = {key: value for key, value in pairs(tree.get("trace_tags", ())).items() if key not in ITS_OWN}
    name = root(tree).get("trace_name")
    return tags if name is None else {**tags, NAME: name}


def metadata_of(tree: Tree) -> dict[str, str]:
    """Its metadata; what newer databases keep in columns is said as it was said before."""
    row = root(tree)
    metadata = {key: value for key, value in pairs(tree.get("trace_request_metadata", ())).items() if key != FINALIZED}
    if row.get("session_id") is not None:
        metadata[SESSION] = row["session_id"]
    for key, columns in ((USAGE, TOKENS), (COST, COSTS)):
        numbers = {column: row[column] for column in columns if row.get(column) is not None}
        if numbers:
            metadata[key] = json.dumps(numbers)
    return metadata


def trace_body(tree: Tree, experiment: str, tags: Mapping[str, str], assessments: Sequence[Row]) -> dict[str, Any]:
    """The trace as the call that starts one takes it (MLflow 3)."""
    row = root(tree)
    info: dict[str, Any] = {
        "trace_id": row["request_id"],
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}},
        "request_time": timestamp(row["timestamp_ms"]),
        "state": row["status"] if row["status"] in STATES else "STATE_UNSPECIFIED",
        "trace_metadata": metadata_of(tree),
        "tags": dict(tags),
        "assessments": [assessment_body(one) for one in assessments],
    }
    if row.get("execution_time_ms") is not None:
        info["execution_duration"] = duration(row["execution_time_ms"])
    for key in ("client_request_id", "request_preview", "response_preview"):
        if row.get(key) is not None:
            info[key] = row[key]
    return {"trace": {"trace_info": info}}


def timestamp(ms: int) -> str:
    """Milliseconds since the epoch as JSON has a time."""
    return (EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3].rjust(23, "0") + "Z"


def duration(ms: int) -> str:
    """Milliseconds as JSON has a duration."""
    sign = "-" if ms < 0 else ""
    return f"{sign}{abs(ms) // 1000}.{abs(ms) % 1000:03d}s"


def assessment_body(row: Row) -> dict[str, Any]:
    """An assessment, with its own id."""
    source = row.get("source_type") or "CODE"
    body: dict[str, Any] = {
        "assessment_id": row["assessment_id"],
        "assessment_name": row["name"],
        "trace_id": row["trace_id"],
        "source": {"source_type": source, "source_id": row.get("source_id") or ""},
        "create_time": timestamp(row["created_timestamp"]),
        "last_update_time": timestamp(row["last_updated_timestamp"]),
        "valid": True,
        row["assessment_type"]: _judgement(row),
    }
    for key in ("span_id", "rationale", "overrides"):
        if row.get(key):
            body[key] = row[key]
    if row.get("assessment_metadata"):
        metadata = json.loads(row["assessment_metadata"])
        body["metadata"] = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return body


def _judgement(row: Row) -> dict[str, Any]:
    value = json.loads(row["value"])
    if row["assessment_type"] == "issue":
        return {"issue_name": value.get("issue_name") or ""}
    if row["assessment_type"] == "expectation":
        if isinstance(value, dict | list):
            return {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": row["value"]}}
        return {"value": _plain(value)}
    feedback: dict[str, Any] = {"value": _plain(value)}
    if row.get("error"):
        error = json.loads(row["error"])
        feedback["error"] = {key: text for key, text in error.items() if text is not None}
    return feedback


def _plain(value: object) -> object:
    """JSON as protobuf knows it has no NaN."""
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):  # noqa: PLR0124  # NaN
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def assessments_of(tree: Tree) -> tuple[list[Row], list[Row]]:
    """Those that go with the trace, and those that go after it: a server invalidates what a new one overrides."""
    rows = sorted(tree.get("assessments", ()), key=lambda row: row["created_timestamp"])
    invalid = {row["assessment_id"] for row in rows if row.get("valid") is False}
    after = [row for row in rows if row.get("overrides") in invalid]
    first = [row for row in rows if row.get("overrides") not in invalid]
    return first, after


def still_invalid(tree: Tree) -> list[Row]:
    """The assessments that are not valid in the source, and that nothing in it overrides."""
    rows = tree.get("assessments", ())
    overridden = {row.get("overrides") for row in rows}
    return [row for row in rows if row.get("valid") is False and row["assessment_id"] not in overridden]


def spans_of(tree: Tree) -> list[otlp.Span] | None:
    """Its spans as OpenTelemetry carries them; None where they cannot go that way under the trace's id."""
    id_ = root(tree)["request_id"]
    rows = tree.get("spans", ())
    spans = [otlp.span_of(row["content"]) for row in rows if row.get("content")]
    if len(spans) != len(rows) or any(span is None or f"tr-{span.trace}" != id_ for span in spans):
        return None
    return [span for span in spans if span is not None]


def spans_file(tree: Tree) -> bytes | None:
    """The file traces.json that older servers keep spans in; None for none."""
    contents = [row["content"] for row in tree.get("spans", ()) if row.get("content")]
    if not contents:
        return None
    metadata = pairs(tree.get("trace_request_metadata", ()))
    ends = "".join(
        f', "{name}": {json.dumps(metadata[key])}'
        for name, key in (("request", "mlflow.traceInputs"), ("response", "mlflow.traceOutputs"))
        if metadata.get(key)
    )
    return ('{"spans": [' + ", ".join(contents) + "]" + ends + "}").encode()
