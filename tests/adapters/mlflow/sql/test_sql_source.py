"""Backend databases of any revision are read whole, and never written."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.mlflow.objects import tree_of
from mlmigrate.adapters.mlflow.sql import open_source
from mlmigrate.adapters.mlflow.sql.connect import OTHER, Database
from mlmigrate.adapters.mlflow.sql.schema import head_statements
from mlmigrate.adapters.mlflow.sql.source import DatabaseSource
from mlmigrate.address import parse
from mlmigrate.errors import BadData, NotFound
from mlmigrate.model import POINTS

STORES = [
    "db-agenthq-2026",
    "db-attrition-2023",
    "db-dongimon-2026",
    "db-ds-experiments-2025",
    "db-hyperopt-2021",
    "db-llm-eval-2026",
    "db-omegaml",
    "db-taxi-fare-2023-03",
    "db-zoomcamp-2022",
]
START = 1_700_000_000_000


def opened(path, settings=None):
    return open_source(parse(f"mlflow:sqlite:///{path}"), Context("source", settings=settings or Settings()))


def everything(source):
    """(experiments, runs, rows of points, records, losses)"""
    refs = list(source.refs())
    with source.read(refs) as reading:
        points = pa.Table.from_batches(list(reading.points()), POINTS).to_pylist()
        list(reading.artifacts())
        records = list(reading.records())
        return source.experiments(), {run.id: run for run in reading.runs}, points, records, reading.losses


def raw(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    connection.row_factory = sqlite3.Row
    return connection


def state(path):
    """What lies in the database's folder, by content."""
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in path.parent.iterdir() if one.is_file()}


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "backend.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    for statement in head_statements("sqlite"):
        connection.execute(statement)
    connection.execute("INSERT INTO experiments VALUES (7, 'seven', 'mlflow-artifacts:/7', 'active', 1, 2, 'default')")
    insert_run(connection, "a" * 32)
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def database(template, tmp_path):
    """A database at the current schema, with one experiment and one run."""
    return Path(shutil.copy(template, tmp_path / "backend.db"))


def insert_run(connection, run, experiment=7, **fields):
    row = {
        "run_uuid": run,
        "name": "n",
        "status": "FINISHED",
        "start_time": START,
        "lifecycle_stage": "active",
        "artifact_uri": f"mlflow-artifacts:/{experiment}/{run}/artifacts",
        "experiment_id": experiment,
    } | fields
    connection.execute(f"INSERT INTO runs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))


def change(path, sql, *values):
    with sqlite3.connect(path) as connection:
        connection.execute(sql, values)
    connection.close()


@pytest.mark.parametrize("name", STORES)
class TestRealStores:
    def test_counts_are_those_of_an_independent_reader(self, store, stores, name):
        counts = json.loads((stores / "counts" / f"{name}.json").read_text())["counts"]
        source = opened(store(name))
        experiments, runs, points, records, _ = everything(source)
        by_kind = [record.kind for record in records]
        assert {
            "experiments": len(experiments),
            "runs": len(runs),
            "params": sum(len(run.params) for run in runs.values()),
            "tags": sum(len(run.tags) for run in runs.values()),
            "metric_points": len(points),
            "registered_models": by_kind.count("mlflow.registered_model"),
            "model_versions": sum(len(tree.get("model_versions", ())) for tree in map(tree_of, records)),
        } == {
            key: counts[key]
            for key in ("experiments", "runs", "params", "tags", "metric_points", "registered_models", "model_versions")
        }

    def test_every_run_is_as_the_rows_say(self, store, name):
        path = store(name)
        _, runs, points, _, _ = everything(opened(path))
        found = raw(path)
        for row in found.execute("SELECT * FROM runs"):
            run = runs[row["run_uuid"]]
            tags = dict(found.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run.id]).fetchall())
            params = dict(found.execute("SELECT key, value FROM params WHERE run_uuid = ?", [run.id]).fetchall())
            assert (run.tags, run.params) == (tags, params)
            assert run.name == (row["name"] or tags.get("mlflow.runName", ""))
            assert (run.status, run.start, run.end) == (row["status"], row["start_time"], row["end_time"])
            assert (run.user, run.artifact_uri) == (row["user_id"], row["artifact_uri"])
            assert (run.experiment, run.deleted) == (str(row["experiment_id"]), row["lifecycle_stage"] == "deleted")
        expected = found.execute("SELECT run_uuid, key, step, timestamp, value FROM metrics ORDER BY run_uuid, rowid")
        got = [(one["run"], one["key"], one["step"], one["timestamp"], one["value"]) for one in points]
        assert got == [tuple(row) for row in expected]

    def test_the_file_and_its_folder_stay_as_they_were(self, store, name):
        path = store(name)
        before = state(path)
        everything(opened(path))
        assert state(path) == before


class TestValues:
    def test_nan_infinity_and_large_steps_are_kept(self, database):
        rows = [
            ("k", 0.0, START, 2**62, 1),
            ("k", math.inf, START, -(2**53) - 1, 0),
            ("k", -1.7976931348623157e308, 2**60, 0, 0),
            ("k", 5e-324, START, 1, 0),
        ]
        for row in rows:
            change(database, "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", *row[:3], "a" * 32, *row[3:])
        points = everything(opened(database))[2]
        values = [(one["step"], one["timestamp"], one["value"]) for one in points]
        assert values[1:] == [(-(2**53) - 1, START, math.inf), (0, 2**60, -1.7976931348623157e308), (1, START, 5e-324)]
        assert values[0][:2] == (2**62, START)
        assert math.isnan(values[0][2])

    def test_a_time_that_only_later_runs_have_is_read(self, database):
        with sqlite3.connect(database) as connection:
            connection.executemany(
                "INSERT INTO runs (run_uuid, name, experiment_id, end_time, user_id) VALUES (?, ?, 7, ?, ?)",
                ((f"{n:032x}", None, n if n > 69_000 else None, "u" if n > 69_000 else None) for n in range(70_000)),
            )
        _, runs, *_ = everything(opened(database))
        assert len(runs) == 70_001
        assert (runs[f"{69_999:032x}"].end, runs[f"{69_999:032x}"].user, runs[f"{5:032x}"].end) == (69_999, "u", None)

    def test_an_id_from_outside_is_data(self, database):
        hostile = "x'); DROP TABLE runs; --\\ \" 模型"
        with sqlite3.connect(database) as connection:
            insert_run(connection, hostile)
            connection.execute("INSERT INTO params VALUES ('p', 'v', ?)", [hostile])
        _, runs, *_ = everything(opened(database))
        assert runs[hostile].params == {"p": "v"}

    def test_dataset_inputs_come_with_their_tags(self, database):
        change(database, "INSERT INTO datasets VALUES ('d1', 7, 'train', 'abc', 'local', '{}', NULL, '{\"rows\": 1}')")
        change(database, "INSERT INTO inputs VALUES ('i1', 'DATASET', 'd1', 'RUN', ?, 0)", "a" * 32)
        change(database, "INSERT INTO input_tags VALUES ('i1', 'mlflow.data.context', 'training')")
        _, runs, _, records, _ = everything(opened(database))
        (given,) = runs["a" * 32].inputs
        assert (given.name, given.digest, given.source_type, given.schema) == ("train", "abc", "local", None)
        assert (given.profile, given.tags) == ('{"rows": 1}', {"mlflow.data.context": "training"})
        assert not [one for one in records if one.kind in ("mlflow.sql.inputs", "mlflow.sql.input_tags")]

    def test_runs_without_an_experiment_and_points_without_a_run_are_said(self, database):
        with sqlite3.connect(database) as connection:
            insert_run(connection, "b" * 32, experiment=99)
            connection.execute("INSERT INTO metrics VALUES ('k', 1, 1, 'nobody', 1, 0)")
            connection.execute("INSERT INTO params VALUES ('k', '1', 'nobody')")
        source = opened(database)
        experiments, runs, *_ = everything(source)
        assert [one.name for one in experiments] == ["seven", "experiment 99"]
        assert set(runs) == {"a" * 32, "b" * 32}
        whats = {loss.what for loss in source.oddities()}
        assert whats == {"experiment 99", "1 params", "1 metric points"}

    def test_our_own_tags_are_left_out(self, database):
        change(database, "INSERT INTO tags VALUES ('mlmigrate.origin', 'x', ?)", "a" * 32)
        before = next(iter(opened(database).refs())).stamp
        change(database, "UPDATE tags SET value = 'y'")
        source = opened(database)
        assert everything(source)[1]["a" * 32].tags == {}
        assert next(iter(source.refs())).stamp == before

    def test_secrets_stay_where_they_are(self, database):
        change(
            database,
            "INSERT INTO secrets (secret_id, secret_name, encrypted_value, wrapped_dek, kek_version, masked_value, "
            "created_at, last_updated_at) VALUES ('s', 'n', x'00ff', x'01', 1, '***', 1, 1)",
        )
        change(
            database, "INSERT INTO webhooks (webhook_id, name, url, secret) VALUES ('w', 'n', 'https://x', 'sekret')"
        )
        source = opened(database)
        *_, records, _ = everything(source)
        assert "sekret" not in str(records)
        assert [one.kind for one in records if "secrets" in one.kind] == []
        assert {loss.what for loss in source.oddities()} == {"1 rows of secrets", "1 values of webhooks.secret"}


class TestStamps:
    @pytest.mark.parametrize(
        "sql",
        [
            "UPDATE runs SET status = 'FAILED'",
            "UPDATE runs SET end_time = 5",
            "UPDATE runs SET lifecycle_stage = 'deleted'",
            "INSERT INTO params VALUES ('p', 'v', 'RUN')",
            "INSERT INTO tags VALUES ('t', 'v', 'RUN')",
            "INSERT INTO metrics VALUES ('k', 1.0, 1, 'RUN', 0, 0)",
            "UPDATE latest_metrics SET value = 2.0",
            "INSERT INTO inputs VALUES ('i2', 'DATASET', 'd1', 'RUN', 'RUN', 0)",
        ],
    )
    def test_a_stamp_changes_when_its_run_does_and_no_other(self, database, sql):
        with sqlite3.connect(database) as connection:
            insert_run(connection, "0" * 32, start_time=1)
            connection.execute("INSERT INTO datasets VALUES ('d1', 7, 'train', 'abc', 'local', '{}', NULL, NULL)")
            connection.execute("INSERT INTO latest_metrics VALUES ('k', 1.0, 1, 0, 0, ?)", ["a" * 32])
            connection.execute("INSERT INTO params VALUES ('p', 'v', ?)", ["0" * 32])
        before = {ref.id: ref.stamp for ref in opened(database).refs() if ref.kind == "run"}
        assert before == {ref.id: ref.stamp for ref in opened(database).refs() if ref.kind == "run"}
        sql = sql.replace("'RUN', 'RUN'", f"'RUN', '{'a' * 32}'") if "inputs" in sql else sql.replace("RUN", "a" * 32)
        sql += f" WHERE run_uuid = '{'a' * 32}'" if sql.startswith("UPDATE") else ""
        change(database, sql)
        after = {ref.id: ref.stamp for ref in opened(database).refs() if ref.kind == "run"}
        assert [id_ for id_ in before if before[id_] != after[id_]] == ["a" * 32]

    def test_a_moved_boundary_between_values_changes_the_stamp(self, database):
        change(database, "INSERT INTO params VALUES ('ab', 'c', ?)", "a" * 32)
        before = next(iter(opened(database).refs())).stamp
        change(database, "UPDATE params SET key = 'a', value = 'bc'")
        assert next(iter(opened(database).refs())).stamp != before

    def test_the_registry_has_a_stamp_that_changes_with_it(self, database):
        change(database, "INSERT INTO registered_models (name, description) VALUES ('m', 'one')")
        before = {ref.id: ref.stamp for ref in opened(database).refs()}
        change(database, "UPDATE registered_models SET description = 'two'")
        after = {ref.id: ref.stamp for ref in opened(database).refs()}
        assert {id_ for id_ in before if before[id_] != after[id_]} == {"@registry"}

    def test_parents_come_before_their_children_even_in_a_ring(self, database):
        with sqlite3.connect(database) as connection:
            for run, parent in (("b" * 32, "c" * 32), ("c" * 32, "d" * 32), ("d" * 32, "b" * 32), ("e" * 32, "f" * 32)):
                insert_run(connection, run, start_time=1)
                connection.execute("INSERT INTO tags VALUES ('mlflow.parentRunId', ?, ?)", [parent, run])
            insert_run(connection, "f" * 32, start_time=9)
        ids = [ref.id[0] for ref in opened(database).refs() if ref.kind == "run"]
        assert sorted(ids) == list("abcdef")
        assert ids.index("f") < ids.index("e")


class TestOpening:
    @pytest.mark.parametrize("name", ["a b.db", "a#b.db", "a?b.db", "100%25.db", "ü 模型.db"])
    def test_any_file_name_is_a_file_name(self, database, name):
        path = database.rename(database.with_name(name))
        assert len(everything(opened(path))[1]) == 1
        assert [one.name for one in path.parent.iterdir()] == [name]

    def test_what_is_not_there_is_said_and_not_made(self, tmp_path):
        with pytest.raises(NotFound, match="There is no database"):
            opened(tmp_path / "none.db")
        assert list(tmp_path.iterdir()) == []

    def test_another_file_is_said(self, tmp_path):
        (tmp_path / "x.db").write_text("hello, this is no database at all")
        with pytest.raises(NotFound, match="not a SQLite database"):
            opened(tmp_path / "x.db")

    def test_a_database_of_other_tables_is_said(self, tmp_path):
        change(tmp_path / "x.db", "CREATE TABLE cats (name TEXT)")
        with pytest.raises(NotFound, match="holds no MLflow tables; it has cats"):
            opened(tmp_path / "x.db")

    def test_a_database_in_write_ahead_mode_leaves_nothing_beside_it(self, database):
        change(database, "PRAGMA journal_mode = wal")
        before = state(database)
        assert len(everything(opened(database))[1]) == 1
        assert state(database) == before

    def test_what_a_live_team_wrote_ahead_is_read(self, database):
        change(database, "PRAGMA journal_mode = wal")
        team = sqlite3.connect(database)
        insert_run(team, "b" * 32)
        team.commit()
        assert len(everything(opened(database))[1]) == 2
        team.close()

    def test_a_team_can_write_while_a_slow_target_takes_the_points(self, database):
        with sqlite3.connect(database) as connection:
            rows = ((n, n, "a" * 32) for n in range(200_000))
            connection.executemany("INSERT INTO metrics VALUES ('k', 1.0, ?, ?, 0, 0)", ((t, r) for t, _, r in rows))
        source = opened(database)
        with source.read(list(source.refs())) as reading:
            stream = reading.points()
            first = next(stream)
            sql = "INSERT INTO runs (run_uuid, experiment_id) VALUES ('b', 7)"
            team = (
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=0); c.execute(sys.argv[2]); c.commit()"
            )
            # locks are a process's: only another one shows whether we hold any
            subprocess.run([sys.executable, "-c", team, str(database), sql], check=True)
            assert len(first) + sum(map(len, stream)) == 200_000
            list(reading.records())
            assert "was written to while it was read" in reading.losses[-1].because

    def test_errors_never_show_a_password(self):
        address = parse("mlflow:postgresql://me:sekret@127.0.0.1:1/x")
        with pytest.raises(Exception, match=r"127\.0\.0\.1") as caught:
            open_source(address, Context("source"))
        assert "sekret" not in str(caught.value)
        assert type(caught.value).__name__ == "Unavailable"


class TestArtifacts:
    def paths(self, source):
        with source.read(list(source.refs())) as reading:
            found = [(one.path, one.open().read()) for one in reading.artifacts()]
            return found, reading.losses

    def test_they_are_found_beside_a_database_from_another_machine(self, database):
        change(database, "UPDATE runs SET artifact_uri = ?", f"/home/x/mlruns/7/{'a' * 32}/artifacts")
        folder = database.parent / "mlruns" / "7" / ("a" * 32) / "artifacts" / "model"
        folder.mkdir(parents=True)
        (folder / "w.bin").write_bytes(b"123")
        assert self.paths(opened(database)) == ([("model/w.bin", b"123")], [])

    def test_they_are_found_in_a_proxied_store(self, database, tmp_path):
        folder = tmp_path / "elsewhere" / "7" / ("a" * 32) / "artifacts"
        folder.mkdir(parents=True)
        (folder / "ü.txt").write_bytes(b"x")
        settings = Settings(artifacts_at=(str(tmp_path / "elsewhere"),))
        assert self.paths(opened(database, settings)) == ([("ü.txt", b"x")], [])

    def test_that_they_are_on_another_machine_is_said(self, database):
        found, losses = self.paths(opened(database))
        assert found == []
        assert [loss.because for loss in losses] == [f"mlflow-artifacts:/7/{'a' * 32}/artifacts is not on this machine"]

    def test_links_are_not_followed(self, database, tmp_path):
        folder = tmp_path / "mlartifacts" / "7" / ("a" * 32) / "artifacts"
        folder.mkdir(parents=True)
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "key").write_text("sekret")
        (folder / "link").symlink_to(tmp_path / "private" / "key")
        (folder / "folder").symlink_to(tmp_path / "private")
        found, losses = self.paths(opened(database))
        assert found == []
        assert sorted(loss.what for loss in losses) == ["artifact 'folder'", "artifact 'link'"]

    @pytest.mark.parametrize("uri", ["/etc", "file:///etc", "mlflow-artifacts:/../../etc", "/tmp/../etc/artifacts"])
    def test_a_database_names_no_other_folder_of_this_machine(self, database, uri):
        change(database, "UPDATE runs SET artifact_uri = ?", uri)
        found, losses = self.paths(opened(database))
        assert found == []
        assert len(losses) == 1

    def test_left_where_they_are_they_are_not_read(self, database):
        assert self.paths(opened(database, Settings(artifacts_to="keep"))) == ([], [])


@pytest.mark.slow
def test_postgresql_is_read_from_one_moment(postgresql):
    from adbc_driver_postgresql import dbapi

    uri = postgresql()
    with dbapi.connect(uri) as connection, connection.cursor() as cursor:
        for statement in head_statements("postgresql"):
            cursor.execute(statement)
        cursor.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (1, 'one', 'active')")
        cursor.execute("INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('a', 1, 'active')")
        cursor.execute("INSERT INTO metrics VALUES ('k', 'NaN', 5, 'a', 3, false), ('k', 0, 6, 'a', 4, true)")
        connection.commit()
        source = open_source(parse(f"mlflow:{uri.replace('postgresql:', 'postgresql+psycopg2:')}"), Context("source"))
        refs = list(source.refs())
        cursor.execute("INSERT INTO params VALUES ('p', 'late', 'a')")
        connection.commit()
        with source.read(refs) as reading:
            assert reading.runs[0].params == {}
            points = [one for batch in reading.points() for one in batch.to_pylist()]
        assert [(one["step"], one["timestamp"], math.isnan(one["value"])) for one in points] == [
            (3, 5, True),
            (4, 6, True),
        ]
        source.close()


@pytest.mark.parametrize("name", ["db-taxi-fare-2023-03", "db-ds-experiments-2025"])
def test_through_sqlalchemy_the_same_is_read(store, name):
    # SQLAlchemy reads SQLite too, so the way that MySQL takes is tried without one
    path = store(name)
    other = DatabaseSource(Database(OTHER, f"sqlite:///{path}"), Context("source"))
    ours, theirs = everything(opened(path)), everything(other)
    assert [one.name for one in ours[0]] == [one.name for one in theirs[0]]
    assert {id_: replace(run, stamp="") for id_, run in ours[1].items()} == {
        id_: replace(run, stamp="") for id_, run in theirs[1].items()
    }
    order = sorted(ours[2], key=repr)
    assert sorted(theirs[2], key=repr) == order
    assert sorted(one.body for one in ours[3]) == sorted(one.body for one in theirs[3])
    other.close()


def test_a_source_left_by_a_writer_that_died_is_told_and_not_written(tmp_path):
    file = tmp_path / "mlflow.db"
    program = (
        "import os, signal, sqlite3, sys\n"
        "store = sqlite3.connect(sys.argv[1])\n"
        "store.execute('create table experiments (experiment_id integer, name text)')\n"
        "store.execute('pragma cache_size = 1')\n"
        "store.execute('begin')\n"
        "store.executemany('insert into experiments values (?, ?)', [(n, 'x' * 900) for n in range(500)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(file)], check=False)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert "mlflow.db-journal" in before
    with pytest.raises(BadData, match="a process that died"):
        open_source(parse(f"mlflow:sqlite:///{file}"), Context("source")).refs()
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before
