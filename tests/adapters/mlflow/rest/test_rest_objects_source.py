"""All that a server holds beside runs is read as its own database has it, whatever the version."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from mlmigrate.adapters.base import Context
from mlmigrate.adapters.mlflow import open_source
from mlmigrate.adapters.mlflow.objects import BY_NAME
from mlmigrate.address import parse

FILL = Path(__file__).with_name("rest_fill.py")
OLD = ("1.30.0", "2.9.2", "2.22.4", "3.5.1")

# Columns that have a value in the database, and that no call tells: "table.column" -> why.
UNTOLD = {
    "registered_models.description": "an empty text is told as nothing",
    "registered_models.workspace": "the default one is not said",
    "registered_model_tags.workspace": "the default one is not said",
    "registered_model_aliases.workspace": "the default one is not said",
    "model_versions.workspace": "the default one is not said",
    "model_version_tags.workspace": "the default one is not said",
    "evaluation_datasets.workspace": "the default one is not said",
    "endpoints.workspace": "the default one is not said",
    "model_definitions.workspace": "the default one is not said",
    "guardrails.workspace": "the default one is not said",
    "guardrail_configs.workspace": "the default one is not said",
    "budget_policies.workspace": "the default one is not said",
    "webhooks.workspace": "the default one is not said",
    "webhooks.secret": "secrets are never told",
    "model_versions.description": "old servers tell an empty text as nothing",
    "model_versions.run_id": "old servers tell an empty text as nothing",
    "model_versions.run_link": "old servers tell an empty text as nothing",
    "model_versions.storage_location": "where it is that of the source, or no logged model's, it is not asked for",
    "evaluation_dataset_records.expectations": "JSON's null is told as nothing",
    "inputs.input_uuid": "links are told without their ids",
    "entity_associations.association_id": "links are told without their ids",
    "entity_associations.created_time": "links are told without their times",
    "logged_model_metrics.dataset_uuid": "datasets are told by name and digest",
    "trace_info.db_payload_generation": "it is the server's own count of writes",
    "assessments.experiment_id": "it is that of the trace",
    "assessments.trace_timestamp_ms": "it is that of the trace",
    "assessments.aggregate_value": "the server makes it of the value",
    "assessments.is_numeric_value": "the server makes it of the value",
    "scorers.scorer_id": "the first servers with scorers do not tell it",
    "scorer_versions.scorer_id": "the first servers with scorers do not tell it",
    "spans.duration_ns": "the database makes it",
    "spans.dimension_attributes": "the server makes it of the content",
    "spans.model_name": "the server makes it of the content",
}
# Rows that no call tells: table -> (SQL that is true for them, why).
UNSEEN = {
    "model_versions": ("current_stage = 'Deleted_Internal'", "deleted versions"),
    "model_version_tags": (
        "(name, version) in (select name, version from model_versions where current_stage = 'Deleted_Internal')",
        "those of deleted versions",
    ),
    "registered_model_tags": ("key like 'mlmigrate.%'", "ours"),
    "trace_tags": ("key like 'mlmigrate.%' or key = 'mlflow.traceName'", "ours; the name is a column since 3.17"),
    "trace_request_metadata": ("key in ('mlflow.trace.session')", "a column since 3.17"),
    "logged_models": ("lifecycle_stage = 'deleted'", "deleted models"),
    "inputs": ("destination_type = 'DATASET'", "those are a run's"),
    "entity_associations": (
        """source_type = 'trace' and destination_id in
        (select value from trace_request_metadata m where m.request_id = source_id and m.key = 'mlflow.sourceRun')""",
        "links to the run that a trace says it was made in cannot be told from that saying",
    ),
    "workspaces": ("true", "workspaces are off"),
    "spans": (
        "trace_id not in (select request_id from trace_tags where key = 'mlflow.trace.spansLocation')",
        "early releases of 3 kept a second copy in the database; the first is a file, traces.json",
    ),
}
# Columns that are JSON whose keys are in no order, or are escaped otherwise.
AS_JSON = ("assessments.value", "assessments.assessment_metadata", "spans.content")
# Columns that some servers write wrongly: (version, "table.column") -> why.
WRONG_THERE = {("3.5.1", "logged_model_metrics.experiment_id"): "this release writes 0 for every experiment"}
# What a newer schema has in columns; older ones have it in tags and metadata.
NEWER = ("trace_info.trace_name", "trace_info.session_id", "trace_info.request_preview", "trace_info.response_preview",
         "trace_info.client_request_id", "model_versions.storage_location")  # fmt: skip


@pytest.fixture(scope="module")
def filled(server_of, request):
    """Gives a server of a version, filled by that version's own client."""
    servers = pytest.importorskip("servers")
    done = {}

    def fill(version: str):
        server = server_of(version)
        if version not in done:
            python = servers.environment(version) / "python"
            env = {
                "PATH": f"{python.parent}:/usr/bin:/bin",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "HOME": str(server.folder),
            }
            run = subprocess.run([python, FILL, server.url], env=env, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr[-3000:]
            done[version] = server
        return server

    return fill


def opened(server):
    return open_source(parse(f"mlflow:{server.url}"), Context("source"))


def read(server):
    """(kind, tree) of all that is there, the losses, and the refs."""
    place = opened(server)
    found, losses, refs = [], [], [ref for ref in place.refs() if ref.kind == "records"]
    for ref in refs:
        with place.read([ref]) as reading:
            found += [(record, json.loads(record.body)) for record in reading.records()]
            losses += reading.losses
    losses += place.oddities()
    place.close()
    return found, losses, refs


def rows_of(server, table: str) -> list[dict]:
    """All rows of a table that a server can tell, read without us."""
    with sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30) as db:
        db.row_factory = sqlite3.Row
        unseen = UNSEEN.get(table, ("false", ""))[0]
        if not db.execute("select 1 from sqlite_master where name = ?", [table]).fetchall():
            return []
        return [dict(row) for row in db.execute(f'select * from "{table}" where not ({unseen})')]


def plain(at: str, value):
    if at in AS_JSON and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, bool):
        return int(value)
    return {"NaN": None}.get(value["$float"], value) if isinstance(value, dict) and "$float" in value else value


def compared(server, table: str, ours: list[dict]) -> list[str]:
    """What differs between rows as we read them and as the database has them."""
    theirs, wrong = rows_of(server, table), []
    columns = set(theirs[0]) if theirs else set()
    for row in ours:
        right = {name for name in row if (server.version, f"{table}.{name}") not in WRONG_THERE}
        told = {name: plain(f"{table}.{name}", row[name]) for name in right}
        told = {name: value for name, value in told.items() if name in columns or f"{table}.{name}" not in NEWER}
        match = next((one for one in theirs if all(
            name in one and plain(f"{table}.{name}", one[name]) == value for name, value in told.items()
        )), None)  # fmt: skip
        if match is None:
            wrong.append(f"only ours: {table} {row}")
            continue
        theirs.remove(match)
        untold = [name for name in match if match[name] is not None and name not in row]
        wrong += [f"untold: {table}.{name} = {match[name]!r}" for name in untold if f"{table}.{name}" not in UNTOLD]
    return wrong + [f"only theirs: {table} {row}" for row in theirs]


def differences(server, found) -> list[str]:
    tables: dict[str, list[dict]] = {}
    for _, tree in found:
        for table, rows in tree.items():
            tables.setdefault(table, []).extend(rows)
    every = {table for kind in BY_NAME.values() for table in kind.tables}
    left = every - {"datasets", "jobs", "trace_metrics", "span_metrics"}
    return [line for table in sorted(left) for line in compared(server, table, tables.get(table, []))]


def test_every_row_is_that_of_the_database(filled):
    server = filled("current")
    found, losses, _ = read(server)
    assert differences(server, found) == []
    assert losses == []


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD)
def test_every_row_of_an_older_server_is_that_of_its_database(filled, version):
    server = filled(version)
    found, losses, _ = read(server)
    assert differences(server, found) == []
    assert losses == []
