"""A trace's rows as MLflow's calls take them, and as a server's database has them afterwards. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from mlmigrate.adapters.mlflow.objects import Row, Tree, pairs, rows_of
from mlmigrate.adapters.mlflow.rest import otlp

# Since then spans are read from the database; before, servers took them there (3.4), and their clients and pages
# read files all the same.
DATABASE_SPANS = (3, 6)
FINALIZES = (3, 10)  # since about then it notes that a trace was written whole
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
    metadata = pairs(tree.get("trace_request_metadata", ()))
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
        body["metadata"] = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
        }
    return body


def _judgement(row: Row) -> dict[str, Any]:
    value = json.loads(row["value"])
    if row["assessment_type"] == "issue":
        return {"issue_name": value.get("issue_name") or ""}
    if row["assessment_type"] == "expectation":
        return {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": row["value"]}}
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


def changed_values(tree: Tree) -> list[Row]:
    """The feedback whose value does not survive: whole numbers beyond 2^53, and NaN."""
    rows = (row for row in tree.get("assessments", ()) if row["assessment_type"] == "feedback")
    return [row for row in rows if value_there(row) != json.loads(row["value"])]


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


def as_there(tree: Tree, version: tuple[int, int], artifacts: str) -> Tree:
    """The rows, named as they are here, as a server of this version has them once they are written.

    `artifacts` is where the experiment keeps its artifacts there.
    """
    rows = {table: [dict(row) for row in some] for table, some in tree.items()}
    info = rows["trace_info"][0]
    tags = tags_of(tree)
    name = tags.pop(NAME, None)
    if name is not None:
        info["trace_name"] = name
    tags[LOCATION] = f"{artifacts.rstrip('/')}/traces/{info['request_id']}/artifacts"
    spans = spans_of(tree) if version >= DATABASE_SPANS else None
    if spans:
        tags[SPANS_LOCATION] = IN_DATABASE
        for row, span in zip(rows["spans"], spans, strict=True):
            row["content"] = otlp.content_there(span)
    else:
        rows.pop("spans", None)
    metadata = pairs(rows.get("trace_request_metadata", ()))
    metadata |= {FINALIZED: "true"} if version >= FINALIZES else {}
    _promote(metadata, info)
    for row in rows.get("assessments", ()):
        _assessment_there(row)
    for table, values in (("trace_tags", tags), ("trace_request_metadata", metadata)):
        rows[table] = rows_of(values, request_id=info["request_id"])
    return rows


def _promote(metadata: dict[str, str], info: Row) -> None:
    """Session, tokens and costs are columns now."""
    if (session := metadata.pop(SESSION, None)) is not None:
        info["session_id"] = session
    for key, columns in ((USAGE, TOKENS), (COST, COSTS)):
        text = metadata.pop(key, None)
        numbers = _object(text)
        info |= {column: numbers[column] for column in columns if isinstance(numbers.get(column), int | float)}


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _assessment_there(row: Row) -> None:
    """As the server shows it: of what is kept whole, the plain values of expectations too become floats."""
    value = value_there(row)
    if row["assessment_type"] == "feedback" or not isinstance(value, dict | list):
        row["value"] = json.dumps(value, sort_keys=True)
    if row.get("assessment_metadata"):
        row["assessment_metadata"] = json.dumps(json.loads(row["assessment_metadata"]), sort_keys=True)


def value_there(row: Row) -> object:
    """The value of feedback once it was carried: protobuf knows only floats."""
    return _floats(_plain(json.loads(row["value"])))


def _floats(value: object) -> object:
    if isinstance(value, dict):
        return {key: _floats(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_floats(one) for one in value]
    return value if isinstance(value, bool) or not isinstance(value, int) else float(value)


def old_span(span: otlp.Span, id: str) -> dict[str, Any]:
    """A span as MLflow 2 wrote it, of the trace that is called `id` there."""
    return {
        "name": span.name,
        "context": {"span_id": f"0x{span.id}", "trace_id": f"0x{span.trace}"},
        "parent_id": f"0x{span.parent}" if span.parent else None,
        "start_time": span.start,
        "end_time": span.end,
        "status_code": {0: "UNSET", 1: "OK", 2: "ERROR"}[span.code],
        "status_message": span.message,
        "attributes": {**span.attributes, otlp.REQUEST_ID: json.dumps(id)},
        "events": [
            {"name": event.name, "timestamp": event.time, "attributes": event.attributes} for event in span.events
        ],
    }


def old_file(data: bytes, id: str) -> bytes:
    """A file traces.json as MLflow 2 reads it. Raises ValueError where it is none."""
    body = json.loads(data)
    if not isinstance(body, dict) or not isinstance(body.get("spans"), list):
        raise ValueError("no file of spans")  # noqa: TRY004  # as for what is no JSON
    spans = [otlp.span_of(json.dumps(span)) for span in body["spans"]]
    body["spans"] = [old_span(span, id) for span in spans if span is not None]
    return json.dumps(body, ensure_ascii=False).encode()


def old_trace_body(tree: Tree, experiment: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """The trace as the call that starts one takes it (MLflow 2)."""
    return {
        "experiment_id": experiment,
        "timestamp_ms": root(tree)["timestamp_ms"],
        "request_metadata": _old_pairs(metadata_of(tree)),
        "tags": _old_pairs(tags),
    }


def old_end(tree: Tree) -> dict[str, Any] | None:
    """What ends it; None for one that is under way."""
    row = root(tree)
    if row.get("execution_time_ms") is None:
        return None
    status = row["status"] if row["status"] in STATES else "TRACE_STATUS_UNSPECIFIED"
    return {
        "timestamp_ms": row["timestamp_ms"] + row["execution_time_ms"],
        "status": status,
        "request_metadata": [],
        "tags": [],
    }


def _old_pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]
