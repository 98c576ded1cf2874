"""All that a server holds beside runs is read as its own database has it, whatever the version."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import msgspec
import pytest

from mlmigrate.adapters.base import Context
from mlmigrate.adapters.mlflow import open_source
from mlmigrate.adapters.mlflow.objects import BY_NAME
from mlmigrate.adapters.mlflow.rest import read_datasets, read_experiments, read_models, read_registry, read_traces
from mlmigrate.adapters.mlflow.rest.listing import Listing, Site
from mlmigrate.adapters.mlflow.rest.records import _stamp
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.address import parse
from mlmigrate.errors import BadData
from sizes import large

FILL = Path(__file__).with_name("rest_fill.py")
CURRENT = "current"
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
    "label_schemas": (
        "experiment_id not in (select experiment_id from label_schemas where is_default)",
        "listing them would make a default one where nobody looked yet",
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


@pytest.fixture(scope="session")
def servers():
    return sys.modules["servers"]  # which conftest loads


@pytest.fixture(scope="module")
def filled(servers, tmp_path_factory):
    """Gives a server of a version, filled by that version's own client."""
    running = {}

    def fill(version: str):
        if version not in running:
            running[version] = servers.start(version, tmp_path_factory.mktemp("objects"))
            fill_up(servers, running[version])
        return running[version]

    yield fill
    for server in running.values():
        server.stop()


def fill_up(servers, server) -> None:
    python = servers.environment(server.version) / "python"
    env = {"PATH": f"{python.parent}:/usr/bin:/bin", "MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(server.folder)}
    run = subprocess.run([python, FILL, server.url], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


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


def artifacts_of(place, refs) -> dict[tuple[str, str], bytes]:
    found = {}
    for ref in refs:
        with place.read([ref]) as reading:
            list(reading.records())
            for artifact in reading.artifacts():
                with artifact.open() as data:
                    found[artifact.owner, artifact.path] = data.read()
            assert reading.losses == []
    return found


def refs_of(place, *groups: str):
    return [ref for ref in place.refs() if ref.kind == "records" and ref.id.partition("/")[0][1:] in groups]


def run_sql(server, *statements: str) -> None:
    with sqlite3.connect(server.database, timeout=30) as db:
        for statement in statements:
            db.execute(statement)


def one(server, query: str):
    with sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30) as db:
        return db.execute(query).fetchone()[0]


def dumped(server) -> list[str]:
    with sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30) as db:
        return list(db.iterdump())


@pytest.fixture(scope="module")
def server(filled):
    return filled(CURRENT)


def test_every_row_is_that_of_the_database(server):
    found, losses, _ = read(server)
    assert differences(server, found) == []
    assert losses == []
    kinds = {record.kind for record, _ in found}
    assert kinds == set(BY_NAME) - {
        "mlflow.dataset",
        "mlflow.webhook",
        "mlflow.workspace",
        "mlflow.mcp_server",
        "mlflow.job",
    }


def test_reading_changes_nothing_on_the_server(server):
    before = dumped(server)
    read(server)
    assert dumped(server) == before


def test_refs_stand_for_groups_of_things_in_their_order(server):
    place = opened(server)
    refs = [ref for ref in place.refs() if ref.kind == "records"]
    place.close()
    assert [ref.id for ref in refs] == [
        "@logged_models/1", "@registry", "@evaluation_datasets", "@scorers/1", "@issues/1", "@traces/1",
        "@label_schemas/1", "@review_queues/1", "@gateway",
    ]  # fmt: skip
    assert [ref.experiment for ref in refs] == ["1", "", "", "1", "1", "1", "1", "1", ""]
    assert all(ref.stamp for ref in refs)
    assert len({ref.origin for ref in refs}) == len(refs)


def test_a_stamp_is_the_same_in_whatever_order_things_and_their_rows_are_told():
    tags = [{"key": name, "value": "x"} for name in "abc"]
    first, second = {"trace_info": [{"request_id": "1"}], "trace_tags": tags}, {"trace_info": [{"request_id": "2"}]}
    told = _stamp(iter([first, second]))
    assert told == _stamp(iter([second, {**first, "trace_tags": tags[::-1]}]))
    assert told != _stamp(iter([second, {**first, "trace_tags": tags[1:]}]))
    assert told != _stamp(iter([first]))


def test_a_stamp_changes_with_the_things_and_not_with_our_marks(server):
    place = opened(server)

    def stamps() -> dict[str, str]:
        return {ref.id: ref.stamp for ref in place.refs() if ref.kind == "records"}

    first = stamps()
    trace = one(server, "select min(request_id) from trace_info")
    model = one(server, "select model_id from logged_models where name = 'model 0'")
    run_sql(server, f"insert into trace_tags values ('mlmigrate.stamp', 'x', '{trace}')")
    assert stamps() == first
    run_sql(server, f"insert into trace_tags values ('new', 'x', '{trace}')")
    second = stamps()
    run_sql(server, f"insert into inputs values ('i', 'RUN_OUTPUT', (select max(run_uuid) from runs), "
                    f"'MODEL_OUTPUT', '{model}', 1)")  # fmt: skip
    third = stamps()
    run_sql(server, "insert into model_version_tags values ('new', 'x', 'fraud', 1, 'default')")
    fourth = stamps()
    place.close()
    assert [name for name in first if first[name] != second[name]] == ["@traces/1"]
    assert [name for name in first if second[name] != third[name]] == ["@logged_models/1"]
    assert [name for name in first if third[name] != fourth[name]] == ["@registry"]


def test_files_of_models_and_traces_are_read_byte_by_byte(server):
    """Of traces whose spans are rows, all but the copy of these that some clients put beside."""
    trace = one(server, "select min(request_id) from trace_info")
    models = [row["model_id"] for row in rows_of(server, "logged_models")]
    expected = {}
    for n, model in enumerate(models[:2]):
        for path in ("MLmodel", "data/größe 1.bin"):
            expected[f"@model/{model}", path] = b"%d" % n * 1000 * n
            put(server, f"1/models/{model}/artifacts/{path}", expected[f"@model/{model}", path])
    put(server, f"1/traces/{trace}/artifacts/attachments/one", b"attached")
    expected[f"@trace/{trace}", "attachments/one"] = b"attached"
    place = opened(server)
    assert artifacts_of(place, refs_of(place, "logged_models", "traces")) == expected
    place.close()


def put(server, path: str, data: bytes) -> None:
    url = f"{server.url}/api/2.0/mlflow-artifacts/artifacts/{urllib.parse.quote(path)}"
    urllib.request.urlopen(urllib.request.Request(url, data, method="PUT")).read()


def test_pages_of_any_length_give_the_same(server, monkeypatch):
    at_once, _, _ = read(server)
    for module in (read_registry, read_models, read_traces, read_datasets, read_experiments):
        monkeypatch.setattr(module, "MOST", 2)
    in_pieces, _, _ = read(server)
    assert [(record.id, tree) for record, tree in in_pieces] == [(record.id, tree) for record, tree in at_once]


def test_what_a_server_fails_at_is_a_loss_and_the_rest_is_read(server):
    """A webhook whose secret nobody can decipher, and feedback that protobuf cannot hold: MLflow answers 500."""
    run_sql(
        server,
        "insert into webhooks (webhook_id, name, url, status, secret, creation_timestamp, last_updated_timestamp, "
        "workspace) values ('w', 'hook', 'https://example.org', 'ACTIVE', 'gAAA', 1, 2, 'default')",
        "update assessments set value = 'NaN' where name = 'f1'",
    )
    try:
        found, losses, _ = read(server)
    finally:
        run_sql(server, "delete from webhooks", "update assessments set value = '2.5' where name = 'f1'")
    kinds = {record.kind for record, _ in found}
    assert {"mlflow.registered_model", "mlflow.scorer", "mlflow.gateway_endpoint"} <= kinds
    assert [loss.what for loss in losses] == ["traces", "webhooks"]


def test_webhooks_come_without_their_secrets(server):
    run_sql(
        server,
        "insert into webhooks (webhook_id, name, url, status, description, creation_timestamp, last_updated_timestamp, "
        "workspace) values ('w', 'hook', 'https://example.org', 'DISABLED', 'ü', 1, 2, 'default')",
        "insert into webhook_events values ('w', 'model_version', 'created')",
        "insert into webhook_events values ('w', 'registered_model', 'created')",
    )
    try:
        found, losses, _ = read(server)
        assert differences(server, found) == []
    finally:
        run_sql(server, "delete from webhook_events", "delete from webhooks")
    assert "mlflow.webhook" in {record.kind for record, _ in found}
    assert losses == []


def test_a_server_that_goes_round_in_circles_is_found_out():
    class Round:
        def get(self, path, kind, params):
            return {"things": msgspec.Raw(b"[{}]"), "next_page_token": msgspec.Raw(b'"again"')}

    with pytest.raises(BadData, match="circles over its things"):
        list(Site(Round(), Server((3, 0))).pages(Listing("p", "things")))


def test_empty_pages_with_more_to_come_are_passed():
    class Sparse:
        def get(self, path, kind, params):
            n = int(params.get("page_token", 0))
            page = {"things": msgspec.Raw(b"[%d]" % n)} if n in (2, 5) else {}
            return page | ({"next_page_token": msgspec.Raw(b'"%d"' % (n + 1))} if n < 5 else {})

    assert Site(Sparse(), Server((3, 0))).all(Listing("p", "things"), int) == [2, 5]


@pytest.mark.slow
def test_a_server_without_a_proxy_gives_files_by_their_owners(servers, tmp_path):
    server = servers.start(CURRENT, tmp_path / "plain", artifacts=False)
    try:
        fill_up(servers, server)
        model = one(server, "select min(model_id) from logged_models where lifecycle_stage = 'active'")
        folder = Path(one(server, f"select artifact_location from logged_models where model_id = '{model}'"))
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "größe.txt").write_bytes(b"bytes")
        trace = one(server, "select min(request_id) from trace_info")
        run_sql(server, f"delete from trace_tags where request_id = '{trace}' and key = 'mlflow.trace.spansLocation'")
        folder = Path(one(server, f"select value from trace_tags where key = 'mlflow.artifactLocation' "
                                  f"and request_id = '{trace}'"))  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traces.json").write_bytes(b'{"spans": []}')
        place = opened(server)
        found = artifacts_of(place, refs_of(place, "logged_models", "traces"))
        place.close()
    finally:
        server.stop()
    assert found == {
        (f"@model/{model}", "data/größe.txt"): b"bytes",
        (f"@trace/{trace}", "traces.json"): b'{"spans": []}',
    }


@pytest.mark.slow
@pytest.mark.parametrize("version", [pytest.param(one, marks=large if one == "3.5.1" else ()) for one in OLD])
def test_every_row_of_an_older_server_is_that_of_its_database(filled, version):
    server = filled(version)
    found, losses, _ = read(server)
    assert differences(server, found) == []
    assert losses == []
