"""Objects written into a backend database: told by raw SQL, against what the source has and what MLflow reads."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import adbc_driver_postgresql.dbapi
import pytest

from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.mlflow.objects import BY_NAME, KINDS, MARKS, record_of, rows_of
from mlmigrate.adapters.mlflow.sql import open_target
from mlmigrate.adapters.mlflow.sql.holdings import HOLDINGS
from mlmigrate.adapters.mlflow.sql.schema import head_statements
from mlmigrate.address import parse
from mlmigrate.errors import Conflict
from mlmigrate.events import Silent
from mlmigrate.fit import fit_record
from mlmigrate.ledger import Ledger
from mlmigrate.model import Experiment, RunRef
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

KEEP = Settings(artifacts_to="keep")
RUN, MODEL, TRACE, OLD = "a" * 32, "m-" + "b" * 32, "tr-" + "c" * 32, "d" * 32

# A row of everything; where a column may be null, it is not.
FULL = f"""
INSERT INTO experiments VALUES (0, 'Default', '/old/0', 'active', 10, 11, 'default');
INSERT INTO experiments VALUES (7, 'kitchen', '/old/7', 'active', 12, 13, 'default');
INSERT INTO experiment_tags VALUES ('team', 'küche', 7);
INSERT INTO runs VALUES ('{RUN}', 'r', 'LOCAL', '', '', 'u', 'FINISHED', 5, 6, '', 'active',
    '/old/7/{RUN}/artifacts', 7, NULL);
INSERT INTO tags VALUES ('plain', '{RUN}', '{RUN}'),
    ('uri', 'see /old/7/{RUN}/artifacts/model and models:/fraud/3', '{RUN}');
INSERT INTO params VALUES ('at', '/old/7/{RUN}/artifacts/x', '{RUN}');
INSERT INTO metrics VALUES ('loss', 0.5, 3, '{RUN}', 2, 0);
INSERT INTO latest_metrics VALUES ('loss', 0.5, 3, 2, 0, '{RUN}');
INSERT INTO datasets VALUES ('d1', 7, 'train', 'abc', 'local', '{{}}', '[]', '{{"rows": 1}}');
INSERT INTO datasets VALUES ('d2', 7, 'unread', 'abc', 'local', '{{}}', NULL, NULL);
INSERT INTO inputs VALUES ('i1', 'DATASET', 'd1', 'RUN', '{RUN}', 0);
INSERT INTO input_tags VALUES ('i1', 'mlflow.data.context', 'training');
INSERT INTO inputs VALUES ('i2', 'RUN_OUTPUT', '{RUN}', 'MODEL_OUTPUT', '{MODEL}', 3);
INSERT INTO inputs VALUES ('i3', 'RUN_INPUT', '{RUN}', 'MODEL_INPUT', '{MODEL}', 0);
INSERT INTO logged_models VALUES ('{MODEL}', 7, 'model', '/old/7/models/{MODEL}/artifacts', 20, 21, 2, 'active', 'sk',
    '{RUN}', 'fine');
INSERT INTO logged_model_params VALUES ('{MODEL}', 7, 'k', 'v');
INSERT INTO logged_model_tags VALUES ('{MODEL}', 7, 'k', '/old/7/{RUN}/artifacts/é');
INSERT INTO logged_model_metrics
    VALUES ('{MODEL}', 'loss', 2, 4, 0.30000000000000004, 7, '{RUN}', 'd1', 'train', 'abc');
INSERT INTO registered_models VALUES ('fraud', 30, 31, 'text', 'default'), ('größe', 30, 31, NULL, 'default');
INSERT INTO registered_model_tags VALUES ('team', 'a', 'fraud', 'default');
INSERT INTO model_versions VALUES ('fraud', 1, 32, 33, 'one', 'ä', 'Production', 'models:/{MODEL}', '{RUN}', 'READY',
    'm', 'l', '/old/7/models/{MODEL}/artifacts', 'default');
INSERT INTO model_versions VALUES ('fraud', 3, 34, 35, NULL, 'ä', 'None', '/old/7/{RUN}/artifacts/model', '{RUN}',
    'READY', NULL, NULL, NULL, 'default');
INSERT INTO model_version_tags VALUES ('k', 'v', 'fraud', 3, 'default');
INSERT INTO registered_model_aliases VALUES ('champion', 3, 'fraud', 'default');
INSERT INTO registered_models VALUES ('greeting', 36, 37, NULL, 'default');
INSERT INTO registered_model_tags VALUES ('mlflow.prompt.is_prompt', 'true', 'greeting', 'default');
INSERT INTO trace_info
    VALUES ('{TRACE}', 7, 40, 41, 'OK', 'c', 'ü', 'ö', 2, 'name', 's', 1, 2, 3, 4, 5, 6, 0.1, 0.2, 0.3);
INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, execution_time_ms, status)
    VALUES ('{OLD}', 7, 42, 43, 'OK');
INSERT INTO trace_tags VALUES ('mlflow.artifactLocation', '/old/7/traces/{TRACE}/artifacts', '{TRACE}'),
    ('e', '', '{TRACE}');
INSERT INTO trace_request_metadata VALUES ('mlflow.sourceRun', '{RUN}', '{TRACE}');
INSERT INTO trace_metrics VALUES ('{TRACE}', 'quality', 0.1);
INSERT INTO spans (trace_id, experiment_id, span_id, parent_span_id, name, type, status, start_time_unix_nano,
    end_time_unix_nano, content, input_cost, output_cost, total_cost, model_name, model_provider)
    VALUES ('{TRACE}', 7, 's1', 's0', 'n', 'LLM', 'OK', 1700000000000000001, 1700000000000000009, '{{"a": [1, "ü"]}}',
    0.1, 0.2, 0.30000000000000004, 'gpt', 'them');
INSERT INTO span_metrics VALUES ('{TRACE}', 's1', 'cost', 0.1);
INSERT INTO assessments VALUES ('a-1', '{TRACE}', 'good', 'feedback', 'true', NULL, 50, 51, 'HUMAN', 'jörg', '{RUN}',
    's1', 'weil', 'a-0', 0, '{{"m": "1"}}', 7, 40, 1.0, 0);
INSERT INTO evaluation_datasets VALUES ('e-1', 'eval', '{{}}', '{{}}', 'dig', 60, 61, 'c', 'd', 'default');
INSERT INTO evaluation_dataset_tags VALUES ('e-1', 'k', 'v');
INSERT INTO evaluation_dataset_records
    VALUES ('er-1', 'e-1', '{{"q": 1}}', '{{"a": 0.1}}', '{{}}', '{{"s": 1}}', '{TRACE}',
    'TRACE', 62, 63, 'c', 'd', 'hash', '"o"');
INSERT INTO entity_associations VALUES ('x1', 'evaluation_dataset', 'e-1', 'experiment', '7', 64),
    ('x2', 'trace', '{TRACE}', 'run', '{RUN}', 65);
INSERT INTO scorers VALUES (7, 'judge', 'sc-1');
INSERT INTO scorer_versions VALUES ('sc-1', 1, '{{}}', 70), ('sc-1', 3, '{{"b": 1}}', 71);
INSERT INTO online_scoring_configs VALUES ('os-1', 'sc-1', 0.25, 7, 'x = 1');
INSERT INTO label_schemas VALUES ('ls-1', 7, 'verdict', 'feedback', 'i', 1, 'text', '{{}}', 'c', 72, 73, 1);
INSERT INTO review_queues VALUES ('q-1', 7, 'Tasters', 'custom', 'c', 74, 75, 'tasters');
INSERT INTO review_queue_users VALUES ('q-1', 'jörg');
INSERT INTO review_queue_items VALUES ('q-1', 'trace', '{TRACE}', 'pending', 'c', 76, 77, 78);
INSERT INTO review_queue_label_schemas VALUES ('q-1', 'ls-1');
INSERT INTO issues VALUES ('is-1', 7, 'sweet', 'too', 'open', 'high', '[]', '{RUN}', '[]', 80, 81, 'c');
INSERT INTO webhooks VALUES ('w-1', 'bell', 'd', 'https://example.org', 'ACTIVE', 'cipher', 82, 83, NULL, 'default');
INSERT INTO webhook_events VALUES ('w-1', 'model_version', 'created');
INSERT INTO secrets (secret_id, secret_name, encrypted_value, wrapped_dek, masked_value, kek_version, created_at,
    last_updated_at) VALUES ('se-1', 'key', x'00', x'01', '*', 1, 84, 85);
INSERT INTO model_definitions VALUES ('md-1', 'gpt', 'se-1', 'openai', 'gpt', 'c', 86, 'c', 87, 'default');
INSERT INTO endpoints VALUES ('ep-1', 'chat', 'c', 88, 'c', 89, 'r', '{{}}', 7, 1, 'default');
INSERT INTO endpoint_bindings VALUES ('ep-1', 'scorer', 'sc-1', 90, 'c', 91, 'c', 'shown');
INSERT INTO endpoint_tags VALUES ('k', 'v', 'ep-1');
INSERT INTO endpoint_model_mappings VALUES ('em-1', 'ep-1', 'md-1', 0.5, 'c', 92, 'PRIMARY', 1);
INSERT INTO guardrails VALUES ('g-1', 'safe', 'sc-1', 3, 'before', 'block', 'ep-1', 'c', 93, 'c', 94, 'default');
INSERT INTO guardrail_configs VALUES ('ep-1', 'g-1', 1, 'c', 95, 'default');
INSERT INTO budget_policies VALUES ('b-1', 'USD', 1.5, 'day', 1, 'all', 'alert', 'c', 96, 'c', 97, 'default', 'v');
INSERT INTO mcp_servers VALUES ('default', 'org/x', 'X', 'd', '[]', 'c', 'c', 98, 99);
INSERT INTO mcp_server_versions
    VALUES ('default', 'org/x', '1.0.0', 1, 0, 0, '~', '{{}}', 'active', '[]', 's', '{{}}', 'c', 'c', 100, 101);
INSERT INTO mcp_server_tags VALUES ('default', 'org/x', 'k', 'v');
INSERT INTO mcp_server_version_tags VALUES ('default', 'org/x', '1.0.0', 'k', 'v');
INSERT INTO mcp_server_aliases VALUES ('default', 'org/x', 'live', '1.0.0');
INSERT INTO mcp_access_endpoints
    VALUES ('ma-1', 'default', 'org/x', '1.0.0', 'live', 'https://example.org', 'sse', 'c', 'c', 102, 103);
INSERT INTO jobs
    VALUES ('j-1', 104, 'score', '{{}}', 1.5, 1, NULL, 0, 105, 'default', '{{}}', 'c', 'b', 106, 'm', '{{}}',
    107, 'hash', '[]', 108);
INSERT INTO jobs (id, creation_time, job_name, params, status, result, retry_count, last_update_time)
    VALUES ('j-2', 104, 'score', '{{}}', 2, 'done', 0, 105);
INSERT INTO workspaces VALUES ('team', 'a team', '/w', '/t', '30d');
"""

# What may lawfully differ, "table.column" -> why, and what stands there instead.
LAWFUL = {
    "webhooks.status": "arrives disabled",
    "webhooks.secret": "is bound to the key of one server",
    "model_definitions.secret_id": "secrets stay with the server that can read them",
    "jobs.status": "a job under way is canceled",
    "jobs.token_hash": "belongs to the server that runs the job",
    "jobs.lease_expires_at": "belongs to the server that runs the job",
    "logged_model_metrics.dataset_uuid": "is what the dataset is called there",
}
RENAMED = {  # ids that MLflow gives at random, and we make from what they stand for
    "datasets.dataset_uuid",
    "inputs.input_uuid",
    "inputs.source_id",
    "input_tags.input_uuid",
}
STAY = {  # whole tables that stay, and why
    "alembic_version": "the schema's own",
    "secrets": "can be read only by the server that encrypted them",
    "job_locks": "work under way",
    "scheduler_leases": "work under way",
    "sql_trace_metric_daily_rollups": "sums that a server makes again",
    "sql_span_cost_daily_rollups": "sums that a server makes again",
    "sql_assessment_daily_rollups": "sums that a server makes again",
    "sql_trace_rollup_rebuild_queue": "sums that a server makes again",
}


def make(path, script=""):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for statement in head_statements("sqlite"):
            connection.execute(statement)
        connection.executescript(script)
    return path


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    return make(tmp_path_factory.mktemp("objects") / "full.db", FULL)


@pytest.fixture
def source(full, tmp_path):
    path = tmp_path / "source.db"
    path.write_bytes(full.read_bytes())
    return path


def sqlite(path):
    return parse(f"mlflow:sqlite:///{path}")


def job(source, target, **settings):
    return Job(source, target, source_settings=KEEP, target_settings=Settings(**{"artifacts_to": "keep", **settings}))


def carry(source, target, folder, **settings):
    ledger = Ledger.open(folder / "ledger.sqlite", source, target)
    try:
        return transfer(job(source, target, **settings), ledger, Silent(), workers=2)
    finally:
        ledger.close()


def verified(source, target, **settings):
    found = verify(job(source, target, **settings), Silent())
    return [(one.mark, one.what, one.source, one.target) for one in found.findings], found.records


def rows(connection, table):
    found = connection.execute(f'SELECT * FROM "{table}"')
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found]


def tables(path):
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: rows(connection, name) for name in names}


def postgresql_tables(uri):
    with adbc_driver_postgresql.dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name::text, column_name::text FROM information_schema.columns WHERE table_schema = 'public'"
        )
        columns = {}
        for table, column in cursor.fetchall():
            columns.setdefault(table, []).append(column)
        found = {}
        for table, names in columns.items():
            chosen = ", ".join(f'"{n}"::text AS "{n}"' if _is_json(table, n) else f'"{n}"' for n in names)
            cursor.execute(f'SELECT {chosen} FROM "{table}"')
            found[table] = cursor.fetch_arrow_table().to_pylist()
        return found


def _is_json(table, column):
    with sqlite3.connect(":memory:") as connection:
        for statement in head_statements("sqlite"):
            if statement.startswith(("CREATE TABLE " + table + " ", f'CREATE TABLE "{table}" ')):
                connection.execute(statement)
        kinds = {row[1]: row[2] for row in connection.execute(f'PRAGMA table_info("{table}")')}
    return kinds.get(column) == "JSON"


def without_marks(found):
    """Rows without our own tags, in no order; booleans are 0 and 1."""
    plain = {}
    for table, some in found.items():
        key = MARKS.get(table, "key")
        kept = [row for row in some if not str(row.get(key, "")).startswith("mlmigrate.")]
        plain[table] = [{name: int(v) if isinstance(v, bool) else v for name, v in row.items()} for row in kept]
    return plain


def differences(source, target):
    """ "table.column" of all that is not the same in both, by the rows of each table in order."""
    source, target = without_marks(source), without_marks(target)
    found = set()
    for table in source.keys() - STAY.keys():
        skipped = {at for at in (*LAWFUL, *RENAMED) if at.partition(".")[0] == table}
        names = {at.partition(".")[2] for at in skipped}

        def order(row, names=names):
            return json.dumps({k: v for k, v in row.items() if k not in names}, sort_keys=True, default=repr)

        mine, theirs = sorted(source[table], key=order), sorted(target.get(table, []), key=order)
        if len(mine) != len(theirs):
            found.add(table)
        for a, b in zip(mine, theirs, strict=False):
            found |= {f"{table}.{name}" for name in a if a[name] != b[name]}
    return found


class TestEveryTable:
    def test_each_table_of_the_schema_has_a_row_in_the_source_or_stays(self, full):
        found = tables(full)
        empty = {table for table, some in found.items() if not some}
        assert empty <= STAY.keys()
        assert {table for kind in KINDS for table in kind.tables} - found.keys() == {"issue_categories"}  # since 3.18

    def test_what_may_differ_is_what_is_declared(self):
        declared = {change.part for holding in HOLDINGS for change in holding.changes}
        assert declared == LAWFUL.keys()

    def test_into_sqlite_all_columns_are_equal_but_those_named(self, full, tmp_path):
        report = carry(sqlite(full), sqlite(tmp_path / "new.db"), tmp_path)
        assert report.failed == ()
        assert differences(tables(full), tables(tmp_path / "new.db")) == LAWFUL.keys() | RENAMED
        assert verified(sqlite(full), sqlite(tmp_path / "new.db"))[0] == []

    def test_by_way_of_an_archive_too(self, full, tmp_path):
        (tmp_path / "b").mkdir()
        carry(sqlite(full), parse(str(tmp_path / "archive")), tmp_path)
        report = carry(parse(str(tmp_path / "archive")), sqlite(tmp_path / "new.db"), tmp_path / "b")
        assert report.failed == ()
        assert differences(tables(full), tables(tmp_path / "new.db")) == LAWFUL.keys() | RENAMED

    @pytest.mark.slow
    def test_into_postgresql_and_back(self, full, tmp_path, postgresql):
        uri = parse(f"mlflow:{postgresql()}")
        report = carry(sqlite(full), uri, tmp_path)
        assert report.failed == ()
        assert differences(tables(full), postgresql_tables(uri.place)) == LAWFUL.keys() | RENAMED
        (tmp_path / "b").mkdir()
        carry(uri, sqlite(tmp_path / "back.db"), tmp_path / "b")
        assert differences(tables(full), tables(tmp_path / "back.db")) == LAWFUL.keys() | RENAMED
        assert verified(sqlite(full), uri)[0] == []

    def test_what_stands_instead(self, full, tmp_path):
        carry(sqlite(full), sqlite(tmp_path / "new.db"), tmp_path)
        there = tables(tmp_path / "new.db")
        (hook,) = there["webhooks"]
        assert (hook["status"], hook["secret"]) == ("DISABLED", None)
        assert there["model_definitions"][0]["secret_id"] is None
        assert {one["id"]: (one["status"], one["token_hash"]) for one in there["jobs"]} == {
            "j-1": (5, None),
            "j-2": (2, None),
        }
        dataset = next(one for one in there["datasets"] if one["name"] == "train")
        assert there["logged_model_metrics"][0]["dataset_uuid"] == dataset["dataset_uuid"]

    def test_a_second_copy_changes_nothing(self, full, tmp_path):
        carry(sqlite(full), sqlite(tmp_path / "new.db"), tmp_path)
        before = (tmp_path / "new.db").read_bytes()
        carry(sqlite(full), sqlite(tmp_path / "new.db"), tmp_path)
        assert (tmp_path / "new.db").read_bytes() == before


class TestPlaces:
    def test_all_that_names_a_place_names_the_new_one(self, full, tmp_path):
        carry(sqlite(full), sqlite(tmp_path / "new.db"), tmp_path, artifacts_to="")
        there = tables(tmp_path / "new.db")
        run, model = f"mlflow-artifacts:/7/{RUN}/artifacts", f"mlflow-artifacts:/7/models/{MODEL}/artifacts"
        trace = f"mlflow-artifacts:/7/traces/{TRACE}/artifacts"
        assert there["runs"][0]["artifact_uri"] == run
        assert there["logged_models"][0]["artifact_location"] == model
        assert there["logged_model_tags"][0]["tag_value"] == f"{run}/é"
        versions = {one["version"]: one for one in there["model_versions"]}
        assert (versions[1]["source"], versions[1]["storage_location"]) == (f"models:/{MODEL}", model)
        assert versions[3]["source"] == f"{run}/model"
        tags = {one["key"]: one["value"] for one in there["trace_tags"]}
        assert tags["mlflow.artifactLocation"] == trace
        assert {one["key"]: one["value"] for one in there["tags"]}["uri"] == f"see {run}/model and models:/fraud/3"
        assert there["params"] == [{"key": "at", "value": f"{run}/x", "run_uuid": RUN}]
        assert verified(sqlite(full), sqlite(tmp_path / "new.db"), artifacts_to="")[0] == []

    def test_files_of_models_and_traces_lie_there_and_an_mlmodel_names_its_place(self, source, tmp_path):
        lay = {
            f"/7/models/{MODEL}/artifacts/MLmodel": (
                f"artifact_path: /old/7/models/{MODEL}/artifacts\nmodel_id: {MODEL}\n"
            ),
            f"/7/models/{MODEL}/artifacts/data/w.bin": "weights",
            f"/7/traces/{TRACE}/artifacts/traces.json": "{}",
        }
        estate = tmp_path / "old"
        for path, text in lay.items():
            (estate / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (estate / path[1:]).write_text(text.replace("/old", str(estate)))
        with sqlite3.connect(source) as connection:
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
                ("trace_tags", "value"),
            ):
                connection.execute(f"UPDATE {table} SET {column} = replace({column}, '/old', ?)", [str(estate)])
        target = tmp_path / "target" / "new.db"
        target.parent.mkdir()
        ledger = Ledger.open(tmp_path / "l.sqlite", sqlite(source), sqlite(target))
        one = Job(sqlite(source), sqlite(target))
        report = transfer(one, ledger, Silent(), workers=1)
        ledger.close()
        assert report.failed == ()
        root = target.parent / "mlartifacts"
        there = {str(file.relative_to(root)): file.read_text() for file in root.rglob("*") if file.is_file()}
        assert there == {
            f"7/models/{MODEL}/artifacts/MLmodel": (
                f"artifact_path: mlflow-artifacts:/7/models/{MODEL}/artifacts\nmodel_id: {MODEL}\n"
            ),
            f"7/models/{MODEL}/artifacts/data/w.bin": "weights",
            f"7/traces/{TRACE}/artifacts/traces.json": "{}",
        }
        assert [(one.what, one.source, one.target) for one in verify(one, Silent()).findings] == []


class TestChanges:
    def test_a_changed_object_is_brought_up_to_date_and_what_refers_to_it_stays(self, source, tmp_path):
        target = tmp_path / "new.db"
        carry(sqlite(source), sqlite(target), tmp_path)
        with sqlite3.connect(source) as connection:
            connection.executescript("""
                DELETE FROM trace_tags WHERE key = 'e';
                INSERT INTO assessments SELECT 'a-2', trace_id, 'new', assessment_type, value, error, created_timestamp,
                    last_updated_timestamp, source_type, source_id, run_id, span_id, rationale, overrides, valid,
                    assessment_metadata, experiment_id, trace_timestamp_ms, aggregate_value, is_numeric_value
                    FROM assessments;
                UPDATE registered_models SET description = 'another';
                DELETE FROM registered_model_tags WHERE key = 'team';
                UPDATE registered_model_aliases SET version = 1;
                INSERT INTO model_versions (name, version, creation_time, workspace) VALUES ('fraud', 4, 99, 'default');
                UPDATE evaluation_dataset_records SET outputs = '"p"', last_update_time = 64;
                UPDATE evaluation_datasets SET last_update_time = 64;
                INSERT INTO scorer_versions VALUES ('sc-1', 4, '{}', 72);
                UPDATE logged_models SET status = 3;
                DELETE FROM logged_model_params;
                UPDATE label_schemas SET instruction = 'other';
                DELETE FROM review_queue_items;
            """)
        report = carry(sqlite(source), sqlite(target), tmp_path)
        assert report.failed == ()
        assert differences(tables(source), tables(target)) == LAWFUL.keys() | RENAMED
        assert tables(target)["guardrails"][0]["scorer_version"] == 3

    def test_an_object_that_did_not_change_is_left_alone(self, source, tmp_path):
        target = tmp_path / "new.db"
        carry(sqlite(source), sqlite(target), tmp_path)
        with sqlite3.connect(target) as connection:
            connection.execute("INSERT INTO trace_tags VALUES ('theirs', 'x', ?)", [OLD])
        with sqlite3.connect(source) as connection:
            connection.execute("UPDATE trace_info SET status = 'ERROR' WHERE request_id = ?", [TRACE])
        carry(sqlite(source), sqlite(target), tmp_path)
        found = tables(target)
        assert ("theirs", OLD) in {(one["key"], one["request_id"]) for one in found["trace_tags"]}
        assert {one["request_id"]: one["status"] for one in found["trace_info"]} == {TRACE: "ERROR", OLD: "OK"}

    def test_objects_of_somebody_else_are_never_changed(self, full, tmp_path):
        target = make(
            tmp_path / "filled.db",
            f"""
            INSERT INTO experiments VALUES (0, 'Default', '/t/0', 'active', 1, 1, 'default');
            INSERT INTO experiments VALUES (7, 'theirs', '/t/7', 'active', 1, 1, 'default');
            INSERT INTO experiments VALUES (8, 'kitchen', '/t/8', 'active', 1, 1, 'default');
            INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('{TRACE}', 7, 1, 'ERROR');
            INSERT INTO trace_tags VALUES ('own', 'x', '{TRACE}');
            INSERT INTO label_schemas VALUES ('other', 8, 'verdict', 't', '', 0, 'text', '{{}}', '', 1, 1, 0);
            INSERT INTO webhooks (webhook_id, name, url) VALUES ('w-1', 'theirs', 'https://example.org');
            INSERT INTO endpoints (endpoint_id, name, created_at, last_updated_at) VALUES ('their', 'chat', 1, 1);
            """,
        )
        before = tables(target)
        report = carry(sqlite(full), sqlite(target), tmp_path)
        assert report.failed == ()
        after = tables(target)
        for table in ("trace_info", "trace_tags", "label_schemas", "webhooks", "endpoints"):
            assert [row for row in after[table] if row in before[table]] == before[table]
        told = {(loss.what, loss.because.partition(";")[0]) for loss in report.losses}
        stays = "are in the target already and did not come from here"
        assert {("1 traces", stays), ("1 webhooks", stays)} <= told
        assert ("1 label schemas", "have the name of another in the target, which stays") in told
        assert ("1 gateway endpoints", "have the name of another in the target, which stays") in told
        assert [row["experiment_id"] for row in after["logged_models"]] == [8]  # merged by its experiment's name


EXPERIMENT = Experiment("1", "x", {}, 5, 5, deleted=False, artifact_root="/old/1", origin="1@5")


def model(name, created, versions, tags=None, aliases=None):
    tree = {
        "registered_models": [{"name": name, "creation_time": created, "description": f"of {created}"}],
        "registered_model_tags": rows_of(tags or {}, name=name),
        "registered_model_aliases": [
            {"alias": alias, "version": number, "name": name} for alias, number in (aliases or {}).items()
        ],
        "model_versions": [
            {"name": name, "version": n, "creation_time": created + n, "source": f"models:/{name}/{n}"}
            for n in versions
        ],
        "model_version_tags": [{"key": "k", "value": f"{created}/{n}", "name": name, "version": n} for n in versions],
    }
    return record_of(BY_NAME["mlflow.registered_model"], {table: some for table, some in tree.items() if some})


OURS = model("fraud", 200, [1, 2, 3], {"t": "ours", "u": "ours"}, {"champion": 1, "live": 3})
THEIRS = model("fraud", 100, [1, 3], {"t": "theirs"}, {"champion": 3})


class Place:
    """A target that is opened anew for each call, as by one command after another."""

    def __init__(self, path):
        self.path, self.number = path, 0

    def open(self, policy="merge"):
        return open_target(sqlite(self.path), Context("target", settings=Settings(on_conflict=policy)))

    def put(self, records, policy="merge", store="ours", ref="@registry", experiments=(EXPERIMENT,)):
        target = self.open(policy)
        losses = list(target.prepare(experiments))
        self.number += 1
        one = RunRef("", ref, origin=f"mlflow:{ref}:{store}", stamp=str(self.number), kind="records")
        with target.pack("p", [one]) as place:
            place.begin([])
            for record in records:
                place.keep(fit_record(record, target.limits).record)
            place.commit()
            losses += place.losses
        return {(loss.what, loss.because) for loss in losses}

    def models(self):
        found = tables(self.path)
        return (
            {row["name"]: row["description"] for row in found["registered_models"]},
            {(row["name"], row["version"]): row["creation_time"] for row in found["model_versions"]},
            {(row["name"], row["alias"]): row["version"] for row in found["registered_model_aliases"]},
            {
                (row["name"], row["key"]): row["value"]
                for row in found["registered_model_tags"]
                if not row["key"].startswith("mlmigrate.")
            },
        )

    def named(self, record):
        """What verify expects of a record here."""
        target = self.open()
        return json.loads(target.names({}).record(fit_record(record, target.limits).record).body)


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "filled.db")
    place.put([THEIRS], store="theirs")
    return place


class TestRegistryConflicts:
    def test_merged_versions_never_overwrite_versions(self, place):
        told = place.put([OURS])
        assert {what for what, _ in told} == {
            "registered model 'fraud'",
            "version 1 of 'fraud'",
            "version 3 of 'fraud'",
            "tag 't' of 'fraud'",
            "alias 'champion' of 'fraud'",
        }
        assert place.models() == (
            {"fraud": "of 100"},
            {("fraud", 1): 101, ("fraud", 3): 103, ("fraud", 4): 201, ("fraud", 2): 202, ("fraud", 5): 203},
            {("fraud", "champion"): 3, ("fraud", "live"): 5},
            {("fraud", "t"): "theirs", ("fraud", "u"): "ours"},
        )

    def test_texts_name_the_merged_versions_as_they_are_there(self, place):
        place.put([OURS])
        sources = {row["creation_time"]: row["source"] for row in tables(place.path)["model_versions"]}
        assert sources == {n: f"models:/fraud/{v}" for n, v in {101: 1, 103: 3, 201: 4, 202: 2, 203: 5}.items()}

    @pytest.mark.parametrize("policy", ["merge", "rename"])
    def test_a_second_copy_changes_nothing(self, place, policy):
        place.put([OURS], policy)
        before = place.models()
        place.put([OURS], policy)
        assert place.models() == before

    @pytest.mark.parametrize(("policy", "name"), [("merge", "fraud"), ("rename", "fraud-2")])
    def test_a_version_that_came_later_keeps_its_own_number_where_that_is_free(self, place, policy, name):
        place.put([OURS], policy)
        place.put([model("fraud", 200, [1, 2, 3, 9], aliases={"live": 9})], policy)
        _, versions, aliases, _ = place.models()
        assert (versions[name, 9], aliases[name, "live"]) == (209, 9)

    def test_renamed_ours_stands_beside_theirs(self, place):
        told = place.put([OURS], "rename")
        assert [what for what, _ in told] == ["registered model 'fraud'"]
        names, versions, aliases, _ = place.models()
        assert names == {"fraud": "of 100", "fraud-2": "of 200"}
        assert {at for at in versions if at[0] == "fraud-2"} == {("fraud-2", n) for n in (1, 2, 3)}
        assert aliases == {("fraud", "champion"): 3, ("fraud-2", "champion"): 1, ("fraud-2", "live"): 3}

    def test_fail_writes_nothing_and_says_what_to_do(self, place):
        before = place.models()
        with pytest.raises(Conflict, match="'fraud'"):
            place.open("fail").foresee([EXPERIMENT], [OURS])
        with pytest.raises(Conflict, match="'fraud'"):
            place.put([OURS], "fail")
        assert place.models() == before
        assert place.put([THEIRS], "fail", store="theirs") == set()

    @pytest.mark.parametrize("policy", ["merge", "rename"])
    def test_what_is_foreseen_is_what_is_told(self, place, policy):
        before = place.models()
        foreseen = {(loss.what, loss.because) for loss in place.open(policy).foresee([EXPERIMENT], [OURS])}
        assert place.models() == before
        told = place.put([OURS], policy)
        assert foreseen <= told
        assert all(what.startswith(("tag", "alias")) for what, _ in told - foreseen)

    @pytest.mark.parametrize("policy", ["merge", "rename"])
    def test_verify_expects_exactly_what_is_there(self, place, policy):
        place.put([OURS], policy)
        name = "fraud" if policy == "merge" else "fraud-2"
        with sqlite3.connect(place.path) as connection:
            connection.row_factory = sqlite3.Row
            there = {
                table: [
                    {key: row[key] for key in row.keys()}  # noqa: SIM118  rows of sqlite3 iterate over values
                    for row in connection.execute(f"SELECT * FROM {table} WHERE name = ?", [name])
                    if not str(dict(row).get("key", "")).startswith("mlmigrate.")
                ]
                for table in BY_NAME["mlflow.registered_model"].tables
            }
        for record in (OURS, THEIRS) if policy == "merge" else (OURS,):
            for table, expected in place.named(record).items():
                columns = set().union(*expected)
                found = [{column: row[column] for column in columns} for row in there[table]]
                assert sorted(found, key=repr) == sorted(
                    ({column: row[column] for column in found[0]} for row in expected), key=repr
                ), table

    def test_gaps_in_version_numbers_stay(self, tmp_path):
        place = Place(tmp_path / "new.db")
        place.put([THEIRS])
        assert {number for _, number in place.models()[1]} == {1, 3}


class TestExperimentConflicts:
    OTHER = replace(EXPERIMENT, created=77, origin="1@77", tags={"a": "b"})
    BUILT_IN = Experiment("0", "Default", {}, 1, 1, origin="0@1")

    def experiments(self, path):
        return {row["name"]: row["experiment_id"] for row in tables(path)["experiments"]}

    @pytest.mark.parametrize(
        ("policy", "there"),
        [("merge", {"Default": 0, "x": 1}), ("rename", {"Default": 0, "x": 1, "x-2": 2})],
    )
    def test_each_policy_does_as_it_says_and_finds_its_own_again(self, tmp_path, policy, there):
        place = Place(tmp_path / "new.db")
        place.open().prepare([EXPERIMENT])
        foreseen = place.open(policy).foresee([self.OTHER, self.BUILT_IN], [])
        told = place.open(policy).prepare([self.OTHER, self.BUILT_IN])
        assert foreseen == told
        assert told[0].what == "experiment 'x'"
        assert self.experiments(place.path) == there
        before = place.path.read_bytes()
        for again in (policy, "fail"):
            assert place.open(again).prepare([self.OTHER, self.BUILT_IN, EXPERIMENT]) == []
        assert place.path.read_bytes() == before

    def test_fail_writes_nothing(self, tmp_path):
        place = Place(tmp_path / "new.db")
        place.open().prepare([EXPERIMENT])
        before = place.path.read_bytes()
        for call in ("prepare", "foresee"):
            target = place.open("fail")
            with pytest.raises(Conflict, match="'x'"):
                target.prepare([self.OTHER]) if call == "prepare" else target.foresee([self.OTHER], [])
        assert place.path.read_bytes() == before

    def test_the_default_experiment_is_the_same_everywhere(self, tmp_path):
        place = Place(tmp_path / "new.db")
        place.open().prepare([EXPERIMENT])
        assert place.open("fail").prepare([self.BUILT_IN]) == []

    def test_a_copy_from_before_such_marks_is_known_by_its_runs(self, full, tmp_path):
        target = tmp_path / "new.db"
        carry(sqlite(full), sqlite(target), tmp_path)
        with sqlite3.connect(target) as connection:
            connection.execute("DELETE FROM experiment_tags WHERE key LIKE 'mlmigrate.origin%'")
        report = carry(sqlite(full), sqlite(target), tmp_path, on_conflict="fail")
        assert (report.failed, report.copied) == ((), 0)

    def test_the_rows_of_objects_follow_a_renamed_experiment(self, full, tmp_path):
        target = make(
            tmp_path / "filled.db", "INSERT INTO experiments VALUES (7, 'kitchen', '/t', 'active', 1, 1, 'default')"
        )
        carry(sqlite(full), sqlite(target), tmp_path, on_conflict="rename")
        assert {row["experiment_id"] for row in tables(target)["spans"]} == {8}
        names = open_target(sqlite(target), Context("target", settings=KEEP)).names({RUN: RUN})
        assert names.experiment(Experiment("7", "kitchen")).name == "kitchen-2"
        record = record_of(BY_NAME["mlflow.issue"], {"issues": [{"issue_id": "i", "experiment_id": 7, "name": "n"}]})
        assert names.record(record).owner == "8"


def trace(number, spans=10, **root):
    """As a server of MLflow 2 or a folder tells it: nothing of what newer columns hold."""
    id_ = f"tr-{number:032x}"
    attributes = {
        "mlflow.llm.model": '"gpt"',
        "mlflow.llm.provider": '"them"',
        "mlflow.llm.cost": '{"input_cost": 0.25, "output_cost": 0.5, "total_cost": 0.75}',
        "mlflow.spanType": '"LLM"',
    }
    metadata = {
        "mlflow.trace.session": "s-1",
        "mlflow.trace.tokenUsage": '{"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}',
        "mlflow.trace.cost": '{"input_cost": 0.25, "total_cost": 0.75}',
        "mlflow.trace_schema.version": "3",
    }
    tags = {"mlflow.traceName": "ask", "mlflow.trace.spansLocation": "TRACKING_STORE"}
    whole = {
        "trace_info": [{"request_id": id_, "experiment_id": 1, "timestamp_ms": 1000 + number, "status": "OK", **root}],
        "trace_tags": rows_of(tags, request_id=id_),
        "trace_request_metadata": rows_of(metadata, request_id=id_),
        "spans": [
            {
                "trace_id": id_,
                "span_id": f"{span:016x}",
                "name": f"n{span}",
                "type": "LLM",
                "status": "OK",
                "start_time_unix_nano": 1_700_000_000_000_000_000 + span,
                "end_time_unix_nano": 1_700_000_000_000_000_009 + span,
                "content": json.dumps(
                    {
                        "trace_id": "AAAAAAAAAAAAAAAAAAAAAA==",
                        "span_id": "AAAAAAAAAAA=",
                        "parent_span_id": None,
                        "name": f"n{span}",
                        "start_time_unix_nano": 1_700_000_000_000_000_000 + span,
                        "end_time_unix_nano": 1_700_000_000_000_000_009 + span,
                        "events": [],
                        "status": {"code": "STATUS_CODE_OK", "message": ""},
                        "attributes": {"mlflow.traceRequestId": json.dumps(id_), **attributes},
                    }
                ),
            }
            for span in range(spans)
        ],
        "assessments": [
            {
                "assessment_id": f"a-{number}",
                "trace_id": id_,
                "name": "good",
                "assessment_type": "feedback",
                "value": "0.5",
                "created_timestamp": 1,
                "source_type": "HUMAN",
                "source_id": "me",
            }
        ],
    }
    return record_of(BY_NAME["mlflow.trace"], {table: some for table, some in whole.items() if some})


class TestOlderPlaces:
    def test_columns_are_filled_as_migrations_would_have(self, tmp_path):
        place = Place(tmp_path / "new.db")
        assert place.put([trace(1, spans=1)], ref="@traces/1") == set()
        found = tables(place.path)
        (info,), (span,), (given,) = found["trace_info"], found["spans"], found["assessments"]
        assert (info["trace_name"], info["session_id"], info["total_tokens"]) == ("ask", "s-1", 7)
        assert (info["input_cost"], info["output_cost"], info["total_cost"]) == (0.25, None, 0.75)
        assert (info["cache_read_input_tokens"], info["db_payload_generation"]) == (None, 0)
        assert (span["model_name"], span["model_provider"], span["total_cost"]) == ("gpt", "them", 0.75)
        assert (span["duration_ns"], span["experiment_id"]) == (9, 1)
        assert (given["aggregate_value"], given["is_numeric_value"], given["valid"]) == (0.5, 1, 1)
        assert (given["experiment_id"], given["trace_timestamp_ms"], given["last_updated_timestamp"]) == (1, 1001, 1)
        kept = {row["key"] for row in found["trace_request_metadata"]}
        assert {"mlflow.trace.session", "mlflow.trace.tokenUsage"} <= kept

    @pytest.mark.parametrize(
        ("value", "aggregate", "numeric"),
        [("true", 1.0, 0), ('"yes"', 1.0, 0), ('" No "', 0.0, 0), ('"x"', None, 0), ("NaN", None, 0), ("2", 2.0, 1)],
    )
    def test_what_an_assessment_counts_as(self, tmp_path, value, aggregate, numeric):
        place = Place(tmp_path / "new.db")
        body = json.loads(trace(1, spans=0).body)
        body["assessments"][0]["value"] = value
        place.put([record_of(BY_NAME["mlflow.trace"], body)], ref="@traces/1")
        (given,) = tables(place.path)["assessments"]
        assert (given["aggregate_value"], given["is_numeric_value"]) == (aggregate, numeric)

    def test_ids_that_a_source_does_not_tell_are_the_same_again(self, tmp_path):
        place = Place(tmp_path / "new.db")
        tree = {
            "scorers": [{"experiment_id": 1, "scorer_name": "judge"}],
            "scorer_versions": [{"scorer_version": 1, "serialized_scorer": "{}"}],
        }
        for _ in range(2):
            place.put([record_of(BY_NAME["mlflow.scorer"], json.loads(json.dumps(tree)))], ref="@scorers/1")
        found = tables(place.path)
        assert [row["scorer_id"] for row in found["scorer_versions"]] == [found["scorers"][0]["scorer_id"]]

    def test_rows_whose_run_is_not_there_are_told(self, tmp_path):
        place = Place(tmp_path / "new.db")
        tree = {
            "logged_models": [{"model_id": MODEL, "experiment_id": 1, "name": "m", "status": 2}],
            "logged_model_metrics": [
                {"model_id": MODEL, "metric_name": "a", "metric_timestamp_ms": 1, "metric_step": 1, "run_id": "gone"}
            ],
        }
        told = place.put([record_of(BY_NAME["mlflow.logged_model"], tree)], ref="@logged_models/1")
        assert told == {("1 rows of logged_model_metrics", "belong to something that is not in the target")}

    @pytest.mark.slow
    def test_mlflow_itself_reads_what_came_from_older_places(self, tmp_path):
        pytest.importorskip("mlflow")
        place = Place(tmp_path / "new.db")
        place.put([trace(n, spans=2) for n in range(3)], ref="@traces/1")
        place.put([OURS])
        script = """
            import json, sys
            from mlflow import MlflowClient
            client = MlflowClient(sys.argv[1], sys.argv[1])
            traces = client.search_traces(["1"], include_spans=True)
            first = min(traces, key=lambda one: one.info.request_time)
            version = client.get_model_version("fraud", "3")
            print(json.dumps([len(traces), first.info.tags["mlflow.traceName"], first.info.trace_metadata,
                [span.name for span in first.data.spans], [one.value for one in first.info.assessments],
                version.source, version.current_stage, version.tags["k"], version.aliases]))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), f"sqlite:///{place.path}"],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        count, name, metadata, spans, values, *version = json.loads(done.stdout.splitlines()[-1])
        assert (count, name, metadata["mlflow.trace.session"], spans) == (3, "ask", "s-1", ["n0", "n1"])
        assert json.loads(metadata["mlflow.trace.tokenUsage"])["total_tokens"] == 7
        assert values == [0.5]
        assert version == ["models:/fraud/3", "None", "200/3", ["live"]]


@pytest.mark.slow
def test_ten_thousand_traces_of_ten_spans_are_written_in_seconds(tmp_path):
    records = [trace(number) for number in range(10_000)]
    place = Place(tmp_path / "new.db")
    started = time.monotonic()
    assert place.put(records, ref="@traces/1") == set()
    taken = time.monotonic() - started
    with sqlite3.connect(place.path) as connection:
        assert connection.execute("SELECT count(*) FROM spans").fetchone() == (100_000,)
    assert taken < 60  # 5 seconds on a quiet machine of two cores; this one may be shared
