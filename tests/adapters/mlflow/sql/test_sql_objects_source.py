"""What a database holds beside its runs is read as objects; each row of each table is in one of them.

Databases are filled by MLflow's own client; what must be there is asked by raw SQL.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.mlflow.objects import BY_NAME, GROUPS, tree_of
from mlmigrate.adapters.mlflow.sql import objects_source, open_source
from mlmigrate.adapters.mlflow.sql.connect import OTHER, Database
from mlmigrate.adapters.mlflow.sql.schema import LEFT_OUT, MODELLED, SECRETS, head_statements
from mlmigrate.adapters.mlflow.sql.source import DatabaseSource
from mlmigrate.address import parse
from mlmigrate.model import Loss

FILLED = Path(__file__).parent.parent
PROGRAM = """
import dataclasses, json, sys
sys.path.append(sys.argv[1])
from filled import fill
print(json.dumps(dataclasses.asdict(fill(sys.argv[2]))))
"""
RUN = "a" * 32


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """A database at the current schema, with nothing in it."""
    file = tmp_path_factory.mktemp("head") / "mlflow.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for statement in head_statements("sqlite"):
            connection.execute(statement)
        connection.commit()
    return file


@pytest.fixture(scope="session")
def filled(head, tmp_path_factory):
    """(a database that MLflow's client filled, what it made)"""
    pytest.importorskip("mlflow", minversion="3.17")
    file = shutil.copy(head, tmp_path_factory.mktemp("filled") / "mlflow.db")
    command = [sys.executable, "-c", PROGRAM, str(FILLED), f"sqlite:///{file}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=file.parent)
    return file, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def database(filled, tmp_path):
    """A copy of it that may be damaged."""
    return Path(shutil.copy(filled[0], tmp_path / "mlflow.db"))


@pytest.fixture
def empty(head, tmp_path):
    """A database at the current schema, with experiment 7 and one run."""
    file = Path(shutil.copy(head, tmp_path / "empty.db"))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("INSERT INTO experiments VALUES (7, 'seven', '/x/7', 'active', 1, 2, 'default')")
        insert(connection, "runs", run_uuid=RUN, experiment_id=7, lifecycle_stage="active", status="FINISHED")
        connection.commit()
    return file


def opened(file, **settings):
    return open_source(parse(f"mlflow:sqlite:///{file}"), Context("source", settings=Settings(**settings)))


def read(source):
    """(refs, records, artifacts, losses) of all that lies beside the runs."""
    refs = [ref for ref in source.refs() if ref.kind == "records"]
    with source.read(refs) as reading:
        records = list(reading.records())
        artifacts = list(reading.artifacts())
        return refs, records, artifacts, reading.losses


def insert(connection, table, **row):
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


def change(file, *statements):
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def raw_tables(file):
    """Table -> its rows as columns -> values, by raw SQL."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {}
        for name in names:
            kinds = {row["name"]: row["type"] for row in connection.execute(f"PRAGMA table_info('{name}')")}
            found[name] = [
                {column: as_meant(row[column], kind) for column, kind in kinds.items()}
                for row in connection.execute(f'SELECT * FROM "{name}"')
            ]
        return found


def as_meant(value, kind):
    return bool(value) if kind == "BOOLEAN" and value is not None else value


def told_tables(records):
    """Table -> its rows, out of objects and single rows."""
    found = {}
    for record in records:
        if record.kind.startswith("mlflow.sql."):
            found.setdefault(record.kind.removeprefix("mlflow.sql."), []).append(json.loads(record.body))
        else:
            for table, rows in tree_of(record).items():
                found.setdefault(table, []).extend(rows)
    return found


def counted(rows, table):
    hidden = SECRETS.get(table, ("",))[0]
    return Counter(
        repr(sorted((name, value) for name, value in {"workspace": "default", **row}.items() if name != hidden))
        for row in rows
    )


def assert_whole(records, file):
    """Every row that lies beside the runs is in the records, once, exactly as it is."""
    told, raw = told_tables(records), raw_tables(file)
    for table in raw.keys() - MODELLED - LEFT_OUT.keys() - {"workspaces", "input_tags"}:
        rows = raw[table]
        if table == "inputs":
            rows = [row for row in rows if (row["source_type"], row["destination_type"]) != ("DATASET", "RUN")]
        assert counted(told.pop(table, ()), table) == counted(rows, table), table
    assert set(told) <= {"datasets"}


class TestFilledByMlflow:
    def test_each_row_is_in_one_object_exactly_as_it_is(self, filled):
        file, _ = filled
        _, records, _, losses = read(opened(file))
        assert_whole(records, file)
        assert losses == []

    def test_objects_are_called_as_mlflow_calls_them(self, filled):
        file, made = filled
        found = {}
        for record in read(opened(file))[1]:
            found.setdefault(record.kind, set()).add(record.id)
        kitchen = made["experiments"][0]
        assert found == {
            "mlflow.logged_model": set(made["logged_models"]),
            "mlflow.registered_model": set(made["registered_models"]),
            "mlflow.prompt": set(made["prompts"]),
            "mlflow.evaluation_dataset": set(made["evaluation_datasets"]),
            "mlflow.scorer": {f"{kitchen}/{name}" for name in made["scorers"]},
            "mlflow.trace": set(made["traces"]),
            "mlflow.label_schema": set(made["label_schemas"]),
            "mlflow.review_queue": set(made["review_queues"]),
            "mlflow.issue": set(made["issues"]),
            "mlflow.webhook": set(made["webhooks"]),
            "mlflow.mcp_server": set(made["mcp_servers"]),
        }

    def test_each_object_has_its_own_rows_and_no_others(self, filled):
        for record in read(opened(filled[0]))[1]:
            kind, tree = BY_NAME[record.kind], tree_of(record)
            (root,) = tree[kind.table]
            for child in kind.children:
                for row in tree.get(child.table, ()):
                    for here, there in child.keys:
                        assert row.get(here) == root.get(there)

    def test_refs_come_in_the_order_of_their_groups_each_with_its_experiment(self, filled):
        file, made = filled
        refs, _, _, _ = read(opened(file))
        kitchen, garden = made["experiments"]
        assert [(ref.id, ref.experiment, ref.points) for ref in refs] == [
            (f"@logged_models/{kitchen}", kitchen, 4),
            ("@registry", "", 3),
            ("@evaluation_datasets", "", 1),
            (f"@scorers/{kitchen}", kitchen, 2),
            (f"@issues/{kitchen}", kitchen, 1),
            (f"@traces/{kitchen}", kitchen, 2),
            (f"@traces/{garden}", garden, 1),
            (f"@label_schemas/{kitchen}", kitchen, 2),
            (f"@review_queues/{kitchen}", kitchen, 1),
            ("@webhooks", "", 1),
            ("@mcp_servers", "", 1),
        ]
        assert len({ref.origin for ref in refs}) == len(refs)
        assert {ref.id[1:].partition("/")[0] for ref in refs} <= set(GROUPS)

    def test_files_of_models_are_found(self, filled):
        file, made = filled
        _, _, artifacts, losses = read(opened(file))
        owner = f"@model/{made['logged_models'][0]}"
        assert [(one.owner, one.path) for one in artifacts] == [(owner, "MLmodel"), (owner, "data/weights.bin")]
        with artifacts[1].open() as stream:
            assert stream.read() == bytes(range(256))
        assert losses == []

    def test_left_where_they_are_they_are_not_read(self, filled):
        assert read(opened(filled[0], artifacts_to="keep"))[2] == []

    def test_through_sqlalchemy_the_same_is_read(self, filled):
        # SQLAlchemy reads SQLite too, so the way that MySQL takes is tried without one
        other = DatabaseSource(Database(OTHER, f"sqlite:///{filled[0]}"), Context("source"))
        ours, theirs = read(opened(filled[0])), read(other)
        assert [replace(ref, stamp="") for ref in ours[0]] == [replace(ref, stamp="") for ref in theirs[0]]
        assert sorted(map(canonical, ours[1])) == sorted(map(canonical, theirs[1]))
        other.close()


def canonical(record):
    tree = {table: sorted(json.dumps(row, sort_keys=True) for row in rows) for table, rows in tree_of(record).items()}
    return record.kind, record.id, record.owner, json.dumps(tree, sort_keys=True)


@pytest.mark.parametrize("name", ["db-attrition-2023", "db-ds-experiments-2025", "db-omegaml", "db-taxi-fare-2023-03"])
def test_each_row_of_a_real_store_is_in_one_object(store, name):
    file = store(name)
    assert_whole(read(opened(file))[1], file)


class TestStamps:
    CHANGES = (
        ("UPDATE registered_models SET description = 'x' WHERE name = 'forest'", "@registry"),
        ("UPDATE model_version_tags SET value = 'x' WHERE name = 'greeting' AND key = 'lang'", "@registry"),
        ("DELETE FROM registered_model_aliases WHERE alias = 'live'", "@registry"),
        ("UPDATE logged_model_metrics SET metric_value = 0.25 WHERE metric_step = 1", "@logged_models/1"),
        ("DELETE FROM inputs WHERE destination_type = 'MODEL_INPUT'", "@logged_models/1"),
        ("UPDATE trace_tags SET value = 'y' WHERE key = 'tag' AND value = 'grow'", "@traces/2"),
        ("UPDATE assessments SET valid = 1", "@traces/1"),
        ("UPDATE spans SET content = content || ' ' WHERE experiment_id = 2", "@traces/2"),
        ("UPDATE scorer_versions SET creation_time = 5 WHERE scorer_version = 2", "@scorers/1"),
        ("UPDATE evaluation_dataset_records SET outputs = NULL", "@evaluation_datasets"),
        ("UPDATE review_queue_items SET status = 'completed'", "@review_queues/1"),
        ("UPDATE webhook_events SET action = 'deleted' WHERE entity = 'model_version'", "@webhooks"),
    )

    @pytest.mark.parametrize(("statement", "ref"), CHANGES, ids=[f"{ref} {n}" for n, (_, ref) in enumerate(CHANGES)])
    def test_only_the_ref_of_what_changed_changes(self, database, statement, ref):
        before = {one.id: one.stamp for one in opened(database).refs() if one.kind == "records"}
        assert before == {one.id: one.stamp for one in opened(database).refs() if one.kind == "records"}
        change(database, statement)
        after = {one.id: one.stamp for one in opened(database).refs() if one.kind == "records"}
        assert {id_ for id_ in before if before[id_] != after[id_]} == {ref}

    def test_our_own_tags_are_not_read_and_change_nothing(self, database):
        before = read(opened(database))
        change(
            database,
            "INSERT INTO registered_model_tags VALUES ('mlmigrate.origin', 'x', 'forest', 'default')",
            "INSERT INTO logged_model_tags SELECT model_id, 1, 'mlmigrate.stamp', 'x' FROM logged_models",
            "INSERT INTO trace_tags SELECT 'mlmigrate.origin', 'x', request_id FROM trace_info",
            "INSERT INTO evaluation_dataset_tags SELECT dataset_id, 'mlmigrate.origin', 'x' FROM evaluation_datasets",
        )
        assert read(opened(database))[:2] == before[:2]


class TestTraces:
    def many(self, file, count, experiment=7):
        with closing(sqlite3.connect(file)) as connection:
            for n in range(count):
                row = {"request_id": f"tr-{experiment}-{n:05}", "experiment_id": experiment, "status": "OK"}
                insert(connection, "trace_info", **row, timestamp_ms=1000 + n // 3)
                insert(connection, "trace_tags", request_id=row["request_id"], key="n", value=str(n))
            connection.commit()

    def test_many_come_in_bounded_refs_in_the_order_of_their_time(self, empty, monkeypatch):
        monkeypatch.setattr(objects_source, "TRACES", 10)
        self.many(empty, 25)
        source = opened(empty)
        refs = [ref for ref in source.refs() if ref.kind == "records"]
        assert [(ref.id, ref.experiment, ref.points) for ref in refs] == [
            ("@traces/7", "7", 10),
            ("@traces/7/1", "7", 10),
            ("@traces/7/2", "7", 5),
        ]
        found = []
        for ref in refs:
            with source.read([ref]) as reading:
                found += [record.id for record in reading.records()]
        assert found == [f"tr-7-{n:05}" for n in range(25)]

    def test_new_ones_change_the_last_ref_only(self, empty, monkeypatch):
        monkeypatch.setattr(objects_source, "TRACES", 10)
        self.many(empty, 25)
        before = {ref.id: ref.stamp for ref in opened(empty).refs()}
        change(
            empty,
            "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-x', 7, 9999, 'OK')",
        )
        after = {ref.id: ref.stamp for ref in opened(empty).refs()}
        assert {id_ for id_ in before if before[id_] != after[id_]} == {"@traces/7/2"}

    def test_spans_that_lie_in_files_are_found_there(self, empty):
        folder = empty.parent / "mlartifacts" / "7" / "traces" / "tr-1" / "artifacts"
        folder.mkdir(parents=True)
        (folder / "traces.json").write_text('{"spans": []}')
        with closing(sqlite3.connect(empty)) as connection:
            for id_ in ("tr-1", "tr-2"):
                insert(connection, "trace_info", request_id=id_, experiment_id=7, timestamp_ms=1, status="OK")
                where = f"mlflow-artifacts:/7/traces/{id_}/artifacts"
                insert(connection, "trace_tags", request_id=id_, key="mlflow.artifactLocation", value=where)
            connection.commit()
        _, _, artifacts, losses = read(opened(empty))
        assert [(one.owner, one.path) for one in artifacts] == [("@trace/tr-1", "traces.json")]
        why = "mlflow-artifacts:/7/traces/tr-2/artifacts is not on this machine"
        assert losses == [Loss("", "spans of trace 'tr-2'", why, "7")]

    def test_archived_spans_are_found_where_the_archive_is(self, empty, tmp_path):
        folder = tmp_path / "archive" / "7" / "traces" / "tr-1" / "artifacts"
        folder.mkdir(parents=True)
        (folder / "traces.pb").write_bytes(b"\x0a\x00")
        tags = {
            "mlflow.artifactLocation": "/nowhere/7/traces/tr-1/artifacts",
            "mlflow.trace.archiveLocation": f"file://{folder}",
            "mlflow.trace.spansLocation": "ARCHIVE_REPO",
        }
        with closing(sqlite3.connect(empty)) as connection:
            insert(connection, "trace_info", request_id="tr-1", experiment_id=7, timestamp_ms=1, status="OK")
            for key, value in tags.items():
                insert(connection, "trace_tags", request_id="tr-1", key=key, value=value)
            connection.commit()
        _, _, artifacts, losses = read(opened(empty))
        assert [(one.owner, one.path) for one in artifacts] == [("@trace/tr-1", "traces.pb")]
        assert losses == []

    @pytest.mark.parametrize("place", ["/etc", "/etc/traces/tr-2/artifacts", "file:///x/../traces/tr-1/artifacts"])
    def test_a_database_names_no_other_folder_of_this_machine(self, empty, tmp_path, place):
        with closing(sqlite3.connect(empty)) as connection:
            insert(connection, "trace_info", request_id="tr-1", experiment_id=7, timestamp_ms=1, status="OK")
            insert(connection, "trace_tags", request_id="tr-1", key="mlflow.artifactLocation", value=place)
            row = {"model_id": "m-1", "experiment_id": 7, "name": "m", "artifact_location": place, "status": 2}
            insert(connection, "logged_models", **row, creation_timestamp_ms=1, last_updated_timestamp_ms=1)
            connection.commit()
        _, _, artifacts, losses = read(opened(empty))
        assert artifacts == []
        assert {loss.what for loss in losses} == {"spans of trace 'tr-1'", "files of logged model 'm-1'"}


class TestValues:
    def test_numbers_truth_and_json_are_told_the_same_everywhere(self, empty):
        with closing(sqlite3.connect(empty)) as connection:
            insert(connection, "evaluation_datasets", dataset_id="d", name="n")
            row = {"dataset_record_id": "r", "dataset_id": "d", "input_hash": "h"}
            insert(connection, "evaluation_dataset_records", **row, inputs='{"a": 1.50}', outputs="5")
            insert(connection, "trace_info", request_id="t", experiment_id=7, timestamp_ms=2**62, status="OK")
            for key, value in (("inf", float("inf")), ("tiny", 5e-324), ("third", 1 / 3), ("none", None)):
                insert(connection, "trace_metrics", request_id="t", key=key, value=value)
            schema = {"schema_id": "s", "experiment_id": 7, "name": "n", "type": "feedback", "input_type": "text"}
            insert(connection, "label_schemas", **schema, input_config="{}", created_time=1, last_update_time=1)
            connection.commit()
        trees = {record.kind: tree_of(record) for record in read(opened(empty))[1]}
        (row,) = trees["mlflow.evaluation_dataset"]["evaluation_dataset_records"]
        assert (row["inputs"], row["outputs"], row["tags"]) == ('{"a": 1.50}', "5", None)
        assert trees["mlflow.trace"]["trace_info"][0]["timestamp_ms"] == 2**62
        values = {row["key"]: row["value"] for row in trees["mlflow.trace"]["trace_metrics"]}
        assert values == {"inf": {"$float": "Infinity"}, "tiny": 5e-324, "third": 1 / 3, "none": None}
        (schema,) = trees["mlflow.label_schema"]["label_schemas"]
        assert schema["enable_comment"] is False

    def test_an_id_from_outside_is_data(self, empty):
        hostile = "x'); DROP TABLE runs; --\\ \" /%_ 模型"
        with closing(sqlite3.connect(empty)) as connection:
            insert(connection, "registered_models", name=hostile)
            insert(connection, "registered_model_tags", name=hostile, key="k", value="v")
            connection.commit()
        (record,) = read(opened(empty))[1]
        assert (record.id, len(tree_of(record)["registered_model_tags"])) == (hostile, 1)

    def test_text_that_is_no_utf8_is_told(self, empty):
        with closing(sqlite3.connect(empty)) as connection:
            insert(connection, "registered_models", name="m")
            connection.execute("UPDATE registered_models SET description = CAST(x'66fc72' AS TEXT)")
            connection.commit()
        _, (record,), _, losses = read(opened(empty))
        assert tree_of(record)["registered_models"][0]["description"] == "f\ufffdr"
        assert [loss.what for loss in losses] == ["1 values of registered_models.description"]

    def test_the_same_name_in_two_workspaces_is_two_models(self, empty):
        with closing(sqlite3.connect(empty)) as connection:
            for space in ("default", "team"):
                insert(connection, "registered_models", name="m", workspace=space)
                insert(connection, "model_versions", name="m", version=1, workspace=space, source=space)
            connection.commit()
        records = {record.id: tree_of(record) for record in read(opened(empty))[1]}
        assert {id_: tree["model_versions"][0]["source"] for id_, tree in records.items()} == {
            "m": "default",
            "team/m": "team",
        }
        assert "workspace" not in records["m"]["registered_models"][0]
        assert records["team/m"]["registered_models"][0]["workspace"] == "team"

    def test_a_dataset_that_a_run_reads_travels_with_the_run_and_only_then(self, empty):
        with closing(sqlite3.connect(empty)) as connection:
            for id_, reader in (("d1", RUN), ("d2", "nobody"), ("d3", None)):
                row = {"dataset_uuid": id_, "experiment_id": 7, "name": id_, "digest": "x"}
                insert(connection, "datasets", **row, dataset_source_type="local", dataset_source="{}")
                if reader:
                    row = {"input_uuid": id_, "source_type": "DATASET", "source_id": id_}
                    insert(connection, "inputs", **row, destination_type="RUN", destination_id=reader)
            connection.commit()
        records = read(opened(empty))[1]
        assert [one.id for one in records if one.kind == "mlflow.dataset"] == ["7/d2/x", "7/d3/x"]

    def test_secrets_stay_and_jobs_travel(self, empty):
        with closing(sqlite3.connect(empty)) as connection:
            row = {"id": "j", "creation_time": 1, "job_name": "n", "params": "{}", "status": 1, "retry_count": 0}
            insert(connection, "jobs", **row, last_update_time=2, token_hash="sekret")
            insert(connection, "webhooks", webhook_id="w", name="n", url="https://x", secret="sekret")
            insert(connection, "job_locks", lock_key="l", job_id="j", acquired_at=1)
            insert(connection, "sql_trace_rollup_rebuild_queue", experiment_id=7, rollup_day="2024", rollup_family="f")
            row = {"secret_id": "s", "secret_name": "n", "encrypted_value": b"1", "wrapped_dek": b"2"}
            insert(connection, "secrets", **row, kek_version=1, masked_value="sekret", created_at=1, last_updated_at=1)
            connection.commit()
        source = opened(empty)
        records = read(source)[1]
        assert [record.kind for record in records] == ["mlflow.webhook", "mlflow.job"]
        assert "sekret" not in str(records)
        assert {loss.what for loss in source.oddities()} == {
            "1 rows of secrets",
            "1 rows of job_locks",
            "1 rows of sql_trace_rollup_rebuild_queue",
            "1 values of webhooks.secret",
            "1 values of jobs.token_hash",
        }


class TestAccounts:
    @pytest.fixture
    def accounts(self, tmp_path):
        """A database of accounts with the columns of MLflow's own, with a user who has a role."""
        file = tmp_path / "basic_auth.db"
        change(
            file,
            "CREATE TABLE alembic_version_auth (version_num VARCHAR(32) PRIMARY KEY)",
            "CREATE TABLE users (id INTEGER PRIMARY KEY, username VARCHAR(255), password_hash VARCHAR(255), "
            "is_admin BOOLEAN)",
            "CREATE TABLE roles (id INTEGER PRIMARY KEY, name VARCHAR(255), workspace VARCHAR(63), description TEXT)",
            "CREATE TABLE role_permissions (id INTEGER PRIMARY KEY, role_id INTEGER REFERENCES roles (id), "
            "resource_type VARCHAR(64), resource_pattern VARCHAR(255), permission VARCHAR(255))",
            "CREATE TABLE user_role_assignments (id INTEGER PRIMARY KEY, user_id INTEGER, role_id INTEGER)",
            "INSERT INTO users VALUES (1, 'jörg', 'scrypt:32768:8:1$x$y', 1)",
            "INSERT INTO roles (id, name, workspace) VALUES (1, 'cook', 'default')",
            "INSERT INTO user_role_assignments (user_id, role_id) VALUES (1, 1)",
            "INSERT INTO role_permissions (role_id, resource_type, resource_pattern, permission) "
            "VALUES (1, 'experiment', '7', 'EDIT')",
        )
        return file

    def test_they_are_read_without_passwords(self, accounts):
        source = opened(accounts)
        assert list(source.experiments()) == []
        refs, records, _, losses = read(source)
        assert [(ref.id, ref.points) for ref in refs] == [("@accounts", 4)]
        raw, told = raw_tables(accounts), {}
        for record in records:
            told.setdefault(record.kind, []).append(json.loads(record.body))
        users = [{name: value for name, value in row.items() if name != "password_hash"} for row in raw["users"]]
        assert told == {
            "mlflow.auth.users": users,
            **{f"mlflow.auth.{name}": raw[name] for name in ("roles", "role_permissions", "user_role_assignments")},
        }
        assert raw["users"][0]["password_hash"] not in str(records)
        assert [loss.what for loss in source.oddities()] == ["the passwords of 1 users"]
        assert losses == []

    def test_those_beside_a_database_travel_with_it(self, accounts, empty):
        source = opened(empty)
        refs, records, _, _ = read(source)
        assert [ref.id for ref in refs] == ["@accounts"]
        assert [record.kind for record in records][:1] == ["mlflow.auth.users"]
        before = refs[0].stamp
        change(accounts, "UPDATE role_permissions SET permission = 'READ'")
        assert read(opened(empty))[0][0].stamp != before

    def test_another_file_of_that_name_is_no_matter(self, empty):
        (empty.parent / "basic_auth.db").write_text("no database")
        assert read(opened(empty))[0] == []


class TestDamage:
    """Copies of a real database, damaged by raw SQL, are read as far as they go, and what is wrong is told."""

    def test_rows_that_lost_what_they_belong_to_are_told_and_kept(self, database):
        change(
            database,
            "DELETE FROM trace_info WHERE experiment_id = 2",
            "DELETE FROM registered_models WHERE name = 'forest'",
            "DELETE FROM logged_models WHERE name = 'dough'",
            "DELETE FROM runs WHERE name = 'plant'",
        )
        raw = raw_tables(database)
        source = opened(database)
        records = read(source)[1]
        assert_whole([one for one in records if one.kind not in OF_RUNS], database)
        lost = Counter(record.kind for record in records if record.kind.startswith("mlflow.sql."))
        alive = {row["run_uuid"] for row in raw["runs"]}
        assert {kind: lost[kind] for kind in OF_RUNS} == {
            kind: sum(row["run_uuid"] not in alive for row in raw[kind.removeprefix("mlflow.sql.")]) for kind in OF_RUNS
        }
        assert lost["mlflow.sql.model_versions"] == 3
        told = {loss.what: loss.because for loss in source.oddities()}
        assert told["3 rows of model_versions"].startswith("belong to nothing that is in the database")
        assert "2 rows of spans" in told
        assert "3 metric points" in told

    def test_a_migration_that_stopped_is_told_and_what_is_there_is_read(self, database):
        change(
            database,
            "DROP TABLE entity_associations",
            "ALTER TABLE trace_info DROP COLUMN total_tokens",
            "ALTER TABLE registered_models RENAME TO _alembic_tmp_registered_models",
            "CREATE TABLE _alembic_tmp_runs AS SELECT * FROM runs",
        )
        source = opened(database)
        _, records, _, losses = read(source)
        kinds = Counter(record.kind for record in records)
        assert (kinds["mlflow.trace"], kinds["mlflow.sql._alembic_tmp_runs"]) == (3, 3)
        assert (kinds["mlflow.registered_model"], kinds["mlflow.sql.model_versions"]) == (0, 5)
        assert losses == []
        told = {loss.what for loss in source.oddities()}
        assert told >= {
            "table _alembic_tmp_runs",
            "table _alembic_tmp_registered_models",
            "table registered_models",
            "table entity_associations",
            "column trace_info.total_tokens",
        }

    @pytest.mark.parametrize(
        ("statement", "what"),
        [
            ("DELETE FROM alembic_version", "the schema names no revision"),
            ("INSERT INTO alembic_version VALUES ('75868b020152')", "the schema names 2 revisions"),
            ("UPDATE alembic_version SET version_num = '0123456789ab'", "revision 0123456789ab of the schema"),
            ("UPDATE alembic_version SET version_num = 'of another'", "revision 'of another' of the schema"),
            ("DROP TABLE alembic_version", "the schema names no revision"),
        ],
    )
    def test_a_revision_that_nobody_knows_is_told(self, database, statement, what):
        whole = read(opened(database))[1]
        change(database, statement)
        source = opened(database)
        assert read(source)[1] == whole
        assert what in {loss.what for loss in source.oddities()}

    @pytest.mark.parametrize("table", ["experiments", "runs", "tags", "metrics", "datasets", "inputs", "trace_tags"])
    def test_without_a_table_the_others_are_read(self, database, table):
        change(database, f"DROP TABLE {table}")
        source = opened(database)
        refs = list(source.refs())
        with source.read(refs) as reading:
            points = sum(map(len, reading.points()))
            records = Counter(record.kind for record in reading.records())
        assert f"table {table}" in {loss.what for loss in source.oddities()}
        assert points == (0 if table in ("runs", "metrics") else 11)
        assert records["mlflow.trace"] == 3
        assert all(one.name for one in source.experiments())

    @pytest.mark.parametrize("column", ["name", "status", "lifecycle_stage", "start_time", "experiment_id", "user_id"])
    def test_without_a_column_of_runs_they_are_read(self, database, column):
        with closing(sqlite3.connect(database)) as connection:
            columns = [row[1] for row in connection.execute("PRAGMA table_info('runs')") if row[1] != column]
            connection.execute(f"CREATE TABLE short AS SELECT {', '.join(columns)} FROM runs")
            connection.execute("DROP TABLE runs")
            connection.execute("ALTER TABLE short RENAME TO runs")
            connection.commit()
        source = opened(database)
        refs = [ref for ref in source.refs() if ref.kind == "run"]
        with source.read(refs) as reading:
            assert len(reading.runs) == 3
            assert sum(map(len, reading.points())) == 11
        assert f"column runs.{column}" in {loss.what for loss in source.oddities()}

    def test_rows_that_are_there_twice_break_nothing(self, database):
        tables = ("metrics", "params", "tags", "registered_models", "model_version_tags", "logged_models", "spans")
        whole = read(opened(database))[1]
        with closing(sqlite3.connect(database)) as connection:
            for table in tables:
                columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info('{table}')"))
                select = f"SELECT {columns} FROM {table}"
                connection.execute(f"CREATE TABLE twice AS {select} UNION ALL {select}")
                connection.execute(f"DROP TABLE {table}")
                connection.execute(f"ALTER TABLE twice RENAME TO {table}")
            connection.commit()
        source = opened(database)
        refs = list(source.refs())
        with source.read(refs) as reading:
            assert not reading.distinct
            assert sum(map(len, reading.points())) == 22
            records = list(reading.records())
        assert sorted(map(canonical, records)) == sorted(map(canonical, whole))
        assert {loss.because for loss in reading.losses} == {"is there twice; the first is read"}
        assert len(reading.losses) == 3 + 4

    def test_objects_of_an_experiment_that_is_gone_come_with_one_made_up(self, database):
        change(database, "DELETE FROM experiments WHERE experiment_id = 2", "DELETE FROM runs WHERE experiment_id = 2")
        source = opened(database)
        assert "experiment 2" in {one.name for one in source.experiments()}
        assert "@traces/2" in {ref.id for ref in read(source)[0]}

    def test_a_table_of_a_newer_mlflow_travels_row_by_row(self, database):
        change(database, "CREATE TABLE skills (id TEXT PRIMARY KEY, on_ BOOLEAN)", "INSERT INTO skills VALUES ('s', 1)")
        refs, records, _, _ = read(opened(database))
        assert refs[-1].id == "@skills"
        assert (records[-1].kind, json.loads(records[-1].body)) == ("mlflow.sql.skills", {"id": "s", "on_": True})

    def test_a_surplus_run_is_nobodys(self, database):
        change(
            database,
            "INSERT INTO tags SELECT 'mlmigrate.surplus', 'x', run_uuid FROM runs",
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'plant'",
        )
        source = opened(database)
        assert sorted(ref.name for ref in source.refs() if ref.kind == "run") == ["bake", "bake more"]
        assert [loss for loss in source.oddities() if "belong to runs" in loss.because] == []


OF_RUNS = ("mlflow.sql.params", "mlflow.sql.tags", "mlflow.sql.metrics")


@pytest.mark.slow
class TestPostgresql:
    """A database that MLflow's client filled in SQLite, its rows laid into PostgreSQL by raw SQL."""

    @pytest.fixture
    def uri(self, filled, postgresql):
        from adbc_driver_postgresql import dbapi

        uri = postgresql()
        with dbapi.connect(uri) as connection, connection.cursor() as cursor:
            for statement in head_statements("postgresql"):
                cursor.execute(statement)
            cursor.execute("DELETE FROM workspaces")
            cursor.execute("DELETE FROM alembic_version")
            cursor.execute("SET session_replication_role = replica")  # in whatever order
            for table, rows in raw_tables(filled[0]).items():
                for row in rows:
                    names = ", ".join(f'"{name}"' for name in row)
                    values = ", ".join(literal(value) for value in row.values())
                    cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({values})")
            connection.commit()
        return uri

    def test_the_same_objects_are_read(self, uri, filled):
        ours = read(opened(filled[0]))
        source = open_source(parse(f"mlflow:{uri}"), Context("source"))
        theirs = read(source)
        source.close()
        assert [replace(ref, stamp="") for ref in theirs[0]] == [replace(ref, stamp="") for ref in ours[0]]
        assert sorted(map(canonical, theirs[1])) == sorted(map(canonical, ours[1]))
        assert [(one.owner, one.path) for one in theirs[2]] == [(one.owner, one.path) for one in ours[2]]
        assert theirs[3] == []

    def test_a_stamp_changes_with_its_own_rows_alone(self, uri):
        from adbc_driver_postgresql import dbapi

        def stamps():
            source = open_source(parse(f"mlflow:{uri}"), Context("source"))
            found = {ref.id: ref.stamp for ref in source.refs() if ref.kind == "records"}
            source.close()
            return found

        before = stamps()
        assert before == stamps()
        with dbapi.connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute("UPDATE trace_tags SET value = 'y' WHERE key = 'tag' AND value = 'grow'")
            cursor.execute("INSERT INTO trace_tags SELECT 'mlmigrate.origin', 'x', request_id FROM trace_info")
            connection.commit()
        after = stamps()
        assert {id_ for id_ in before if before[id_] != after[id_]} == {"@traces/2"}

    def test_damage_is_told(self, uri):
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE spans DROP CONSTRAINT fk_spans_trace_id")
            cursor.execute("ALTER TABLE metrics DROP CONSTRAINT metric_pk")
            cursor.execute("INSERT INTO metrics SELECT * FROM metrics")
            cursor.execute("UPDATE trace_metrics SET value = 'NaN'")
            cursor.execute("INSERT INTO trace_metrics SELECT request_id, 'nan', 'NaN' FROM trace_info")
            cursor.execute("SET session_replication_role = replica")
            cursor.execute("DELETE FROM trace_info WHERE experiment_id = 2")
            cursor.execute("INSERT INTO alembic_version VALUES ('75868b020152')")
            connection.commit()
        source = open_source(parse(f"mlflow:{uri}"), Context("source"))
        refs = list(source.refs())
        told = {loss.what for loss in source.oddities()}
        with source.read(refs) as reading:
            assert not reading.distinct
            assert sum(map(len, reading.points())) == 22
            records = list(reading.records())
        source.close()
        assert {"2 rows of spans", "the schema names 2 revisions"} <= told
        assert Counter(record.kind for record in records)["mlflow.sql.spans"] == 2
        metrics = [row for one in records if one.kind == "mlflow.trace" for row in tree_of(one)["trace_metrics"]]
        assert [row["value"] for row in metrics] == [{"$float": "NaN"}] * 2


def literal(value):
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"'{value!r}'" if isinstance(value, float) else str(value)


def test_through_sqlalchemy_an_id_from_outside_is_data_too(empty):
    hostile = "x'); DROP TABLE runs; --\\ \" /_ 模型"
    with closing(sqlite3.connect(empty)) as connection:
        insert(connection, "registered_models", name=hostile)
        insert(connection, "registered_model_tags", name=hostile, key="k", value="v")
        connection.commit()
    source = DatabaseSource(Database(OTHER, f"sqlite:///{empty}"), Context("source"))
    (record,) = read(source)[1]
    assert (record.id, len(tree_of(record)["registered_model_tags"])) == (hostile, 1)
    source.close()
