"""An object of an older MLflow as 3.17 holds it: what its migrations move into columns, and what may not be null.

trace tag mlflow.traceName, metadata mlflow.trace.session    -> trace_info.trace_name, session_id
metadata mlflow.trace.tokenUsage, cost; trace_metrics        -> trace_info.input_tokens ... total_cost
spans.dimension_attributes, span_metrics (or span content)   -> spans.model_name, model_provider, costs
assessments.value                                            -> aggregate_value, is_numeric_value

A column that a row has is never changed, but for a null where MLflow allows none.  Tags and metadata stay.
Ids that a source does not tell are made from what tells the row from its like, so that they are the same again.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from mlmigrate.adapters.mlflow.objects import Kind, Row, Tree, pairs

LARGEST = 2**63 - 1
SESSION_LENGTH, MODEL_LENGTH, NAME_LENGTH = 250, 500, 4096
TOKENS = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cache_creation_input_tokens_above_1hr",
)
COSTS = ("input_cost", "output_cost", "total_cost")
GATEWAY = "mlflow.gateway.endpointId"
_MODEL, _PROVIDER, _COST = "mlflow.llm.model", "mlflow.llm.provider", "mlflow.llm.cost"
_IDS = uuid.UUID("0d6f2f8e-5a0b-5c59-8a56-6f8f9f7b0c11")
_STAGES = ("active", "deleted")

# What stands in a column that may not be null, where a source knows nothing better.
_INSTEAD: Mapping[str, Mapping[str, object]] = {
    "logged_models": {"name": "", "artifact_location": "", "creation_timestamp_ms": 0, "status": 2},
    "logged_model_params": {"param_value": ""},
    "logged_model_tags": {"tag_value": ""},
    "logged_model_metrics": {"metric_timestamp_ms": 0, "metric_step": 0, "run_id": ""},
    "inputs": {"step": 0},
    "datasets": {"dataset_source_type": "", "dataset_source": ""},
    "trace_info": {"timestamp_ms": 0, "status": "TRACE_STATUS_UNSPECIFIED"},
    "spans": {"status": "UNSET", "start_time_unix_nano": 0, "content": ""},
    "assessments": {
        "assessment_type": "feedback",
        "value": "null",
        "source_type": "SOURCE_TYPE_UNSPECIFIED",
        "valid": True,
        "created_timestamp": 0,
    },
    "evaluation_dataset_records": {"inputs": "{}"},
    "scorer_versions": {"serialized_scorer": ""},
    "issues": {"description": "", "status": "", "created_timestamp": 0},
    "label_schemas": {"input_config": "{}", "input_type": "", "type": "", "created_time": 0},
    "review_queues": {"queue_type": "", "creation_time_ms": 0},
    "review_queue_items": {"item_type": "TRACE", "status": "", "creation_time_ms": 0},
    "endpoints": {"created_at": 0},
    "endpoint_bindings": {"created_at": 0},
    "endpoint_model_mappings": {"created_at": 0, "weight": 1.0},
    "model_definitions": {"created_at": 0},
    "guardrails": {"created_at": 0},
    "guardrail_configs": {"created_at": 0},
    "budget_policies": {"created_at": 0},
    "mcp_servers": {"created_at": 0},
    "mcp_server_versions": {"created_at": 0},
    "mcp_access_endpoints": {"created_at": 0},
    "jobs": {"creation_time": 0, "params": "{}", "status": 5, "retry_count": 0},
}
# What stands in a column that a source does not tell, though it may be null.
_UNTOLD: Mapping[str, Mapping[str, object]] = {"model_versions": {"current_stage": "None", "status": "READY"}}
# The time of the last change is that of making, where a source does not know it.
_SINCE = (
    ("last_updated_timestamp_ms", "creation_timestamp_ms"),
    ("last_updated_timestamp", "created_timestamp"),
    ("last_updated_at", "created_at"),
    ("last_update_time_ms", "creation_time_ms"),
)
_SINCE_ONLY: Mapping[str, tuple[str, str]] = {
    "label_schemas": ("last_update_time", "created_time"),
    "jobs": ("last_update_time", "creation_time"),
}
_CHANGED = frozenset(
    [
        "logged_models",
        "assessments",
        "issues",
        "label_schemas",
        "review_queues",
        "review_queue_items",
        "endpoints",
        "endpoint_bindings",
        "model_definitions",
        "guardrails",
        "budget_policies",
        "mcp_servers",
        "mcp_server_versions",
        "mcp_access_endpoints",
        "jobs",
    ]
)
# Ids that not every source tells -> the columns that tell a row from its like.
_MADE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "inputs": ("input_uuid", ("source_type", "source_id", "destination_type", "destination_id")),
    "entity_associations": (
        "association_id",
        ("source_type", "source_id", "destination_type", "destination_id"),
    ),
    "datasets": ("dataset_uuid", ("experiment_id", "name", "digest")),
    "evaluation_dataset_records": ("dataset_record_id", ("dataset_id", "input_hash")),
    "scorers": ("scorer_id", ("experiment_id", "scorer_name")),
    "online_scoring_configs": ("online_scoring_config_id", ("scorer_id", "experiment_id", "filter_string")),
    "endpoint_model_mappings": ("mapping_id", ("endpoint_id", "model_definition_id", "linkage_type")),
}
_OF_EXPERIMENT = frozenset(["logged_model_params", "logged_model_tags", "logged_model_metrics", "spans", "assessments"])


def modern(kind: Kind, tree: Tree) -> Tree:
    """Changes the tree into what the current schema holds; gives it back."""
    root = tree[kind.table][0]
    if kind.name == "trace":
        _trace(root, tree)
    for table, rows in tree.items():
        instead, untold, made = _INSTEAD.get(table), _UNTOLD.get(table, {}), _MADE.get(table)
        for row in rows:
            if table in _OF_EXPERIMENT and row.get("experiment_id") is None:
                row["experiment_id"] = root.get("experiment_id")
            if instead is not None:
                _fill(row, instead)
            for column, value in untold.items():
                row.setdefault(column, value)
            if table in _CHANGED:
                _since(table, row)
            if made is not None and row.get(made[0]) is None:
                row[made[0]] = _id(table, row, made[1])
    if kind.name == "logged_model" and root.get("lifecycle_stage") not in (None, *_STAGES):
        root["lifecycle_stage"] = _STAGES[0]
    if kind.name == "scorer":
        _scorer(root, tree)
    if kind.name == "review_queue" and root.get("name_key") is None:
        root["name_key"] = str(root.get("name", "")).strip().lower()
    return tree


def _fill(row: Row, instead: Mapping[str, object]) -> None:
    for column, value in instead.items():
        if row.get(column) is None:
            row[column] = value


def _since(table: str, row: Row) -> None:
    for changed, made in (*_SINCE, *((_SINCE_ONLY[table],) if table in _SINCE_ONLY else ())):
        if row.get(changed) is None and row.get(made) is not None:
            row[changed] = row[made]


def _id(table: str, row: Row, columns: Iterable[str]) -> str:
    return str(uuid.uuid5(_IDS, json.dumps([table, *(row.get(column) for column in columns)])))


def _scorer(root: Row, tree: Tree) -> None:
    for table in ("scorer_versions", "online_scoring_configs"):
        for row in tree.get(table, ()):
            row.setdefault("scorer_id", root["scorer_id"])


def _trace(root: Row, tree: Tree) -> None:
    metadata = pairs(tree.get("trace_request_metadata", ()))
    _spans(tree)
    if "trace_name" not in root:
        root["trace_name"] = _cut(pairs(tree.get("trace_tags", ())).get("mlflow.traceName"), NAME_LENGTH)
    if "session_id" not in root:
        root["session_id"] = _cut(metadata.get("mlflow.trace.session"), SESSION_LENGTH)
    _trace_counts(root, tree, metadata)
    for row in tree.get("assessments", ()):
        _assessment(root, row)


def _trace_counts(root: Row, tree: Tree, metadata: Mapping[str, str]) -> None:
    if "input_tokens" not in root:
        usage = _object(metadata.get("mlflow.trace.tokenUsage"))
        measured = {row["key"]: row.get("value") for row in tree.get("trace_metrics", ())}
        root |= {name: _count(measured[name] if name in measured else usage.get(name)) for name in TOKENS}
    if "input_cost" not in root:
        cost = _object(metadata.get("mlflow.trace.cost"))
        root |= {name: _finite(cost.get(name)) for name in COSTS}
        totals = [row["total_cost"] for row in tree.get("spans", ()) if row.get("total_cost") is not None]
        if root["total_cost"] is None and GATEWAY in metadata and totals:
            root["total_cost"] = sum(totals)


def _spans(tree: Tree) -> None:
    measured: dict[str, dict[str, object]] = {}
    for row in tree.get("span_metrics", ()):
        measured.setdefault(row["span_id"], {})[row["key"]] = row.get("value")
    for row in tree.get("spans", ()):
        row.pop("duration_ns", None)  # the database makes it
        told = "dimension_attributes" in row
        dimensions = _object(row.pop("dimension_attributes", None))
        if "model_name" in row:
            continue
        costs: Mapping[str, object] = measured.get(row.get("span_id", ""), {})
        if not told:
            dimensions = _attributes(row.get("content"))
            costs = costs or _object(dimensions.get(_COST))
        row["model_name"] = _cut(_unquoted(dimensions.get(_MODEL)), MODEL_LENGTH)
        row["model_provider"] = _cut(_unquoted(dimensions.get(_PROVIDER)), MODEL_LENGTH)
        row |= {name: _finite(costs.get(name)) for name in COSTS}


def _attributes(content: object) -> dict[str, Any]:
    """The attributes of a span, where any of ours is among them."""
    if not isinstance(content, str) or '"mlflow.llm.' not in content:
        return {}
    found = _object(content).get("attributes")
    return found if isinstance(found, dict) else {}


def _unquoted(value: object) -> object:
    """Attributes of spans are JSON in JSON."""
    if isinstance(value, str) and value.startswith('"'):
        return _parsed(value, value)
    return value


def _assessment(root: Row, row: Row) -> None:
    if row.get("trace_timestamp_ms") is None and root.get("timestamp_ms") is not None:
        row["trace_timestamp_ms"] = root["timestamp_ms"]
    if row.get("is_numeric_value") is None:
        aggregate, row["is_numeric_value"] = _aggregate(row.get("value"))
        row.setdefault("aggregate_value", aggregate)


def _aggregate(text: object) -> tuple[float | None, bool]:
    """What an assessment counts as, and whether it is a number."""
    value = _parsed(text, text)
    if isinstance(value, bool):
        return float(value), False
    if isinstance(value, int | float):
        number = _finite(value)
        return number, number is not None
    word = value.strip().lower() if isinstance(value, str) else ""
    return ({"yes": 1.0, "no": 0.0}.get(word), False)


def _parsed(text: object, otherwise: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else otherwise
    except (ValueError, RecursionError):
        return otherwise


def _object(value: object) -> dict[str, Any]:
    found = _parsed(value, value)
    return found if isinstance(found, dict) else {}


def _finite(value: object) -> float | None:
    number = _converted(value, float)
    return number if number is not None and math.isfinite(number) else None


def _converted(value: object, convert: Callable[[Any], float]) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _count(value: object) -> int | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    if not number.is_finite() or number != number.to_integral_value() or not -LARGEST - 1 <= number <= LARGEST:
        return None
    return int(number)


def _cut(value: object, length: int) -> str | None:
    return value[:length] if isinstance(value, str) else None
