"""What an MLflow server holds beside experiments and runs: its kinds of object, as rows of MLflow's own tables.

An object is a Record whose body is {table: [row, ...]}: one row of the kind's own table and the rows of
other tables that belong to it, each row {column: value} with the names of MLflow's schema (revision HEAD of
`sql.schema`; the source is mlflow/store/tracking/dbmodels and mlflow/store/model_registry/dbmodels).  Files,
databases and servers all speak of objects so; what a source does not know is left out of its rows.

Values that JSON has no word for are objects of one name: {"$bytes": base64} and {"$float": "NaN"}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from mlmigrate.model import Record

PREFIX = "mlflow."
ROWS = "mlflow.sql."  # rows of a table that no kind below owns: one row a record
DEFAULT_WORKSPACE = "default"
IS_PROMPT = "mlflow.prompt.is_prompt"  # a tag: prompts are registered models (mlflow/prompt/constants.py)
Row = dict[str, Any]
Tree = dict[str, list[Row]]  # table -> rows
Named = Literal[
    "run", "experiment", "logged_model", "trace", "evaluation_dataset", "dataset", "scorer", "label_schema", "queue",
    "issue", "endpoint", "model_definition", "secret", "guardrail",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Child:
    """Rows of another table that belong to an object.

    keys   (column here, column of the kind's own table) that are equal
    where  (column, values) that hold beside, where one table has rows of several kinds
    """

    table: str
    keys: tuple[tuple[str, str], ...]
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object.

    name        the record's kind, without "mlflow."
    table, key  its own table, and the columns that tell one object from another in one place
    children    the tables of its other rows, parents before those that refer to them
    experiment  the column that names its experiment, "" for none: then it belongs to the estate
    group       the ref ("@<group>" or "@<group>/<experiment>") that it is read by
    """

    name: str
    table: str
    key: tuple[str, ...]
    children: tuple[Child, ...] = ()
    experiment: str = ""
    group: str = ""

    @property
    def record(self) -> str:
        return PREFIX + self.name

    @property
    def tables(self) -> tuple[str, ...]:
        return (self.table, *dict.fromkeys(child.table for child in self.children))


def _by(*columns: str) -> tuple[tuple[str, str], ...]:
    return tuple((column, column) for column in columns)


_MODEL = _by("workspace", "name")
_REGISTERED = (
    Child("registered_model_tags", _MODEL),
    Child("registered_model_aliases", _MODEL),
    Child("model_versions", _MODEL),
    Child("model_version_tags", _MODEL),
)
_MCP = _by("workspace", "name")
_ASSOCIATIONS = "entity_associations"

# In the order in which they are carried: what others refer to comes first.
KINDS = (
    Kind("workspace", "workspaces", ("name",), group="workspaces"),
    Kind(
        "logged_model",
        "logged_models",
        ("model_id",),
        (
            Child("logged_model_params", _by("model_id")),
            Child("logged_model_tags", _by("model_id")),
            Child("logged_model_metrics", _by("model_id")),
            # which runs made it (RUN_OUTPUT -> MODEL_OUTPUT, at a step) and which read it
            Child(
                "inputs", (("destination_id", "model_id"),), (("destination_type", ("MODEL_INPUT", "MODEL_OUTPUT")),)
            ),
        ),
        experiment="experiment_id",
        group="logged_models",
    ),
    Kind("registered_model", "registered_models", ("workspace", "name"), _REGISTERED, group="registry"),
    Kind("prompt", "registered_models", ("workspace", "name"), _REGISTERED, group="registry"),
    # a dataset that no run read; one that a run read travels with the run, as its input
    Kind("dataset", "datasets", ("experiment_id", "name", "digest"), experiment="experiment_id", group="datasets"),
    Kind(
        "evaluation_dataset",
        "evaluation_datasets",
        ("dataset_id",),
        (
            Child("evaluation_dataset_tags", _by("dataset_id")),
            Child("evaluation_dataset_records", _by("dataset_id")),
            Child(_ASSOCIATIONS, (("source_id", "dataset_id"),), (("source_type", ("evaluation_dataset",)),)),
        ),
        group="evaluation_datasets",
    ),
    Kind(
        "scorer",
        "scorers",
        ("experiment_id", "scorer_name"),
        (Child("scorer_versions", _by("scorer_id")), Child("online_scoring_configs", _by("scorer_id"))),
        experiment="experiment_id",
        group="scorers",
    ),
    Kind(
        "issue",
        "issues",
        ("issue_id",),
        (Child("issue_categories", _by("issue_id")),),  # since 3.18
        experiment="experiment_id",
        group="issues",
    ),
    Kind(
        "trace",
        "trace_info",
        ("request_id",),
        (
            Child("trace_tags", _by("request_id")),
            Child("trace_request_metadata", _by("request_id")),
            Child("trace_metrics", _by("request_id")),
            Child("spans", (("trace_id", "request_id"),)),
            Child("span_metrics", (("trace_id", "request_id"),)),
            Child("assessments", (("trace_id", "request_id"),)),
            Child(_ASSOCIATIONS, (("source_id", "request_id"),), (("source_type", ("trace",)),)),
        ),
        experiment="experiment_id",
        group="traces",
    ),
    Kind("label_schema", "label_schemas", ("schema_id",), experiment="experiment_id", group="label_schemas"),
    Kind(
        "review_queue",
        "review_queues",
        ("queue_id",),
        (
            Child("review_queue_users", _by("queue_id")),
            Child("review_queue_items", _by("queue_id")),
            Child("review_queue_label_schemas", _by("queue_id")),
        ),
        experiment="experiment_id",
        group="review_queues",
    ),
    Kind("webhook", "webhooks", ("webhook_id",), (Child("webhook_events", _by("webhook_id")),), group="webhooks"),
    Kind("gateway_model", "model_definitions", ("model_definition_id",), group="gateway"),
    Kind(
        "gateway_endpoint",
        "endpoints",
        ("endpoint_id",),
        (
            Child("endpoint_bindings", _by("endpoint_id")),
            Child("endpoint_tags", _by("endpoint_id")),
            Child("endpoint_model_mappings", _by("endpoint_id")),
        ),
        group="gateway",
    ),
    Kind(
        "guardrail",
        "guardrails",
        ("guardrail_id",),
        (Child("guardrail_configs", _by("guardrail_id")),),
        group="gateway",
    ),
    Kind("budget_policy", "budget_policies", ("budget_policy_id",), group="gateway"),
    Kind(
        "mcp_server",
        "mcp_servers",
        ("workspace", "name"),
        (
            Child("mcp_server_tags", _MCP),
            Child("mcp_server_versions", _MCP),
            Child("mcp_server_version_tags", _MCP),
            Child("mcp_server_aliases", _MCP),
            Child("mcp_access_endpoints", (("workspace", "workspace"), ("server_name", "name"))),
        ),
        group="mcp_servers",
    ),
    Kind("job", "jobs", ("id",), group="jobs"),
)
BY_NAME: Mapping[str, Kind] = {kind.record: kind for kind in KINDS}
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(kind.group for kind in KINDS))

# Columns whose value is the id of something, "table.column" -> of what. Columns called experiment_id are not listed:
# they are always an experiment's.
IDS: Mapping[str, Named] = {
    "model_versions.run_id": "run",
    "logged_models.source_run_id": "run",
    "logged_models.model_id": "logged_model",
    "logged_model_params.model_id": "logged_model",
    "logged_model_tags.model_id": "logged_model",
    "logged_model_metrics.model_id": "logged_model",
    "logged_model_metrics.run_id": "run",
    "logged_model_metrics.dataset_uuid": "dataset",
    "trace_info.request_id": "trace",
    "trace_tags.request_id": "trace",
    "trace_request_metadata.request_id": "trace",
    "trace_metrics.request_id": "trace",
    "spans.trace_id": "trace",
    "span_metrics.trace_id": "trace",
    "assessments.trace_id": "trace",
    "assessments.run_id": "run",
    "evaluation_datasets.dataset_id": "evaluation_dataset",
    "evaluation_dataset_tags.dataset_id": "evaluation_dataset",
    "evaluation_dataset_records.dataset_id": "evaluation_dataset",
    "issues.source_run_id": "run",
}
# Tables whose rows name things by a type and an id: (type column, id column).
TYPED_IDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "inputs": (("source_type", "source_id"), ("destination_type", "destination_id")),
    "entity_associations": (("source_type", "source_id"), ("destination_type", "destination_id")),
    "review_queue_items": (("item_type", "item_id"),),
    "evaluation_dataset_records": (("source_type", "source_id"),),
}
TYPES: Mapping[str, Named] = {  # the words of those type columns, in lower case
    "run": "run",
    "run_input": "run",
    "run_output": "run",
    "model": "logged_model",
    "model_input": "logged_model",
    "model_output": "logged_model",
    "experiment": "experiment",
    "trace": "trace",
    "evaluation_dataset": "evaluation_dataset",
}
# Columns of text in which ids, models:/, runs:/ and artifact URIs may hide.
TEXTS = frozenset(
    [
        "model_versions.source",
        "model_versions.storage_location",
        "model_versions.run_link",
        "model_version_tags.value",
        "registered_model_tags.value",
        "logged_models.artifact_location",
        "logged_model_tags.tag_value",
        "logged_model_params.param_value",
        "trace_tags.value",
        "trace_request_metadata.value",
        "assessments.assessment_metadata",
        "evaluation_dataset_tags.value",
        "evaluation_dataset_records.source",
        "datasets.dataset_source",
    ]
)


# Tables of tags where a target may note what came from where (tags mlmigrate.origin, mlmigrate.stamp); no source
# reads a tag back that begins with "mlmigrate.". table -> its key column
MARKS: Mapping[str, str] = {
    "registered_model_tags": "key",
    "model_version_tags": "key",
    "logged_model_tags": "tag_key",
    "trace_tags": "key",
    "evaluation_dataset_tags": "key",
    "endpoint_tags": "key",
    "mcp_server_tags": "key",
    "mcp_server_version_tags": "key",
}


def record_of(kind: Kind, tree: Tree) -> Record:
    """The record of an object."""
    root = tree[kind.table][0]
    owner = root.get(kind.experiment) if kind.experiment else None
    return Record(
        kind.record, id_of(kind, root), "" if owner is None else str(owner), msgspec.json.encode(tree).decode()
    )


def id_of(kind: Kind, root: Row) -> str:
    """What an object is called in its own place: its key, parts joined by "/"; the default workspace is not said."""
    parts = [root.get(column) for column in kind.key]
    if kind.key[0] == "workspace" and parts[0] in (None, DEFAULT_WORKSPACE):
        del parts[0]
    return "/".join(str(part) for part in parts)


def tree_of(record: Record) -> Tree:
    """The rows of an object."""
    tree: Tree = msgspec.json.decode(record.body)
    return tree


def root_of(record: Record) -> Row:
    """The row of the object's own table."""
    return tree_of(record)[BY_NAME[record.kind].table][0]


def registered_kind(tags: Iterable[Row]) -> Kind:
    """Whether a registered model with these tags (rows) is a model or a prompt."""
    prompt = any(tag["key"] == IS_PROMPT and str(tag["value"]).lower() == "true" for tag in tags)
    return BY_NAME["mlflow.prompt" if prompt else "mlflow.registered_model"]


def pairs(rows: Sequence[Row], key: str = "key", value: str = "value") -> dict[str, str]:
    """Rows of a table of tags as a mapping."""
    return {row[key]: row[value] for row in rows}


def rows_of(values: Mapping[str, object], key: str = "key", value: str = "value", **same: object) -> list[Row]:
    """A mapping as rows of a table of tags; each row has the columns in `same` too."""
    return [{key: name, value: text, **same} for name, text in values.items()]


def model_origin(model: Row) -> str:
    """What names a registered model (its row) the same by whatever route it is read: see `MARKS`."""
    return f"{model['name']}@{model.get('creation_time')}"


def version_origin(version: Row) -> str:
    """What names a model version (its row) the same by whatever route it is read."""
    return f"{version['name']}/{version['version']}@{version.get('creation_time')}"


def kinds_of(group: str) -> Iterator[Kind]:
    """The kinds that are read by one ref."""
    return (kind for kind in KINDS if kind.group == group)
