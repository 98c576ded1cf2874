"""What is written into a backend database is what MLflow would have written, and whole or not there."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap

import adbc_driver_postgresql.dbapi
import pytest

from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.mlflow.sql import open_source, open_target
from mlmigrate.adapters.mlflow.sql.schema import HEAD, head_statements
from mlmigrate.address import parse
from mlmigrate.errors import Conflict, Unavailable, UsageError
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.model import Experiment
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer

RUN = "a" * 32
NOT_COMPARED = {"alembic_version", "workspaces"}  # a schema brings these itself
# new ids for readings of datasets; MLflow gives them at random
OWN_IDS = {"dataset_uuid", "input_uuid", "source_id"}
KEEP = Settings(artifacts_to="keep")


def sqlite_address(path):
    return parse(f"mlflow:sqlite:///{path}")


def carry(source, target, folder, settings=KEEP):
    ledger = Ledger.open(folder / "ledger.sqlite", source, target)
    try:
        job = Job(source, target, source_settings=settings, target_settings=settings)
        return transfer(job, ledger, Silent(), workers=2)
    finally:
        ledger.close()


def sqlite_tables(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: (connection.execute(f'SELECT * FROM "{name}"')) for name in names}
    return {
        name: [dict(zip([c[0] for c in rows.description], row, strict=True)) for row in rows]
        for name, rows in found.items()
    }


def postgresql_tables(uri):
    with adbc_driver_postgresql.dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'")
        names = [name for (name,) in cursor.fetchall()]
        found = {}
        for name in names:
            cursor.execute(f'SELECT * FROM "{name}"')
            found[name] = cursor.fetch_arrow_table().to_pylist()
        return found


def comparable(tables, columns):
    """Rows without order, without our own tags, of the columns that both places have; true is 1."""
    made = {}
    for table, rows in tables.items():
        kept = [row for row in rows if not str(row.get("key", row.get("tag_key", ""))).startswith("mlmigrate.")]
        names = sorted(columns.get(table, set()) - OWN_IDS)
        made[table] = sorted(
            [tuple(int(row[name]) if isinstance(row[name], bool) else row[name] for name in names) for row in kept],
            key=repr,
        )
    return made


def columns_of(tables):
    return {table: set(rows[0]) for table, rows in tables.items() if rows}


def assert_equal_tables(source, target):
    columns = columns_of(source)
    expected = comparable(
        {table: rows for table, rows in source.items() if rows and table not in NOT_COMPARED}, columns
    )
    found = comparable({table: target.get(table, []) for table in expected}, columns)
    assert found.keys() == expected.keys()
    for table, rows in expected.items():
        assert found[table] == rows, table


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """A database at the current schema with something of everything."""
    path = tmp_path_factory.mktemp("full") / "full.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    for statement in head_statements("sqlite"):
        connection.execute(statement)
    connection.executescript(FULL)
    connection.commit()
    connection.close()
    return path


FULL = f"""
INSERT INTO experiments VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active', 10, 11, 'default');
INSERT INTO experiments VALUES (12, 'größe 模型', '/somewhere/12', 'active', 12, 13, 'default');
INSERT INTO experiments VALUES (5, 'gone', 's3://bucket/5', 'deleted', 14, 15, 'default');
INSERT INTO experiment_tags VALUES ('team', 'a', 12), ('mlflow.note.content', 'Zeilen
und mehr', 12);
INSERT INTO runs VALUES ('{RUN}', 'eager-sun', 'PROJECT', 'train.py', 'main', 'älice', 'FAILED', 1700000000000,
    1700000000001, 'abc', 'active', '/somewhere/12/{RUN}/artifacts', 12, NULL);
INSERT INTO runs VALUES ('{"b" * 32}', 'child', 'UNKNOWN', '', '', '', 'RUNNING', 0, NULL, '', 'deleted',
    's3://bucket/5/{"b" * 32}/artifacts', 5, 1700000000009);
INSERT INTO tags VALUES ('mlflow.parentRunId', '{RUN}', '{"b" * 32}'), ('empty', '', '{RUN}');
INSERT INTO params VALUES ('p', '{"é" * 8000}', '{RUN}'), ('q', 'a''b";--', '{RUN}');
INSERT INTO metrics VALUES ('loss', 0.0, 3, '{RUN}', 2, 1),
    ('loss', -1.7976931348623157e308, 1, '{RUN}', 1, 0),
    ('loss', 1.7976931348623157e308, 2, '{RUN}', 4611686018427387904, 0),
    ('loss', 0.1, 2, '{RUN}', -9007199254740993, 0),
    ('acc/é x', 5e-324, 9007199254740993, '{"b" * 32}', 0, 0);
INSERT INTO latest_metrics VALUES ('loss', 1.7976931348623157e308, 2, 4611686018427387904, 0, '{RUN}'),
    ('acc/é x', 5e-324, 9007199254740993, 0, 0, '{"b" * 32}');
INSERT INTO datasets VALUES ('d1', 12, 'train', 'abc', 'local', '{{}}', NULL, '{{"rows": 1}}');
INSERT INTO inputs VALUES ('i1', 'DATASET', 'd1', 'RUN', '{RUN}', 0);
INSERT INTO inputs VALUES ('i2', 'RUN_OUTPUT', '{RUN}', 'MODEL_OUTPUT', 'm-1', 3);
INSERT INTO input_tags VALUES ('i1', 'mlflow.data.context', 'training');
INSERT INTO logged_models VALUES ('m-1', 12, 'model', '/somewhere/12/models/m-1/artifacts', 20, 21, 2, 'active', 'sk',
    '{RUN}', NULL);
INSERT INTO logged_model_params VALUES ('m-1', 12, 'k', 'v');
INSERT INTO logged_model_metrics VALUES ('m-1', 'loss', 2, 4, 0.30000000000000004, 12, '{RUN}', 'd1', 'train', 'abc');
INSERT INTO registered_models VALUES ('rm', 30, 31, 'text', 'default');
INSERT INTO model_versions VALUES ('rm', 3, 32, 33, NULL, 'älice', 'None', 'models:/m-1', '{RUN}', 'READY', NULL, '',
    'x', 'default');
INSERT INTO model_version_tags VALUES ('k', 'v', 'rm', 3, 'default');
INSERT INTO registered_model_aliases VALUES ('champion', 3, 'rm', 'default');
INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, execution_time_ms, status, request_preview)
    VALUES ('tr-1', 12, 40, 41, 'OK', 'ü');
INSERT INTO trace_tags VALUES ('k', 'v', 'tr-1');
INSERT INTO spans (trace_id, experiment_id, span_id, name, status, start_time_unix_nano, end_time_unix_nano, content)
    VALUES ('tr-1', 12, 's1', 'n', 'OK', 1700000000000000001, 1700000000000000002, '{{"a": [1, "ü"]}}');
INSERT INTO span_metrics VALUES ('tr-1', 's1', 'cost', 0.1);
INSERT INTO evaluation_datasets (dataset_id, name, created_time) VALUES ('d-1', 'e', 50);
INSERT INTO evaluation_dataset_records (dataset_record_id, dataset_id, inputs, input_hash)
    VALUES ('r-1', 'd-1', '{{"q": 1}}', 'h');
INSERT INTO webhooks (webhook_id, name, url, status) VALUES ('w', 'n', 'https://example.org', 'DISABLED');
INSERT INTO webhook_events VALUES ('w', 'model_version', 'created');
"""


class TestDatabaseToDatabase:
    def test_into_sqlite_every_row_of_every_table_arrives(self, full, tmp_path):
        target = tmp_path / "new.db"
        report = carry(sqlite_address(full), sqlite_address(target), tmp_path)
        assert (report.failed, report.losses, report.copied) == ((), (), 2)
        assert_equal_tables(sqlite_tables(full), sqlite_tables(target))

    @pytest.mark.slow
    def test_into_postgresql_and_back_every_row_of_every_table_arrives(self, full, tmp_path, postgresql):
        uri, back = postgresql(), tmp_path / "back.db"
        report = carry(sqlite_address(full), parse(f"mlflow:{uri}"), tmp_path)
        assert (report.failed, report.losses, report.copied) == ((), (), 2)
        source, there = sqlite_tables(full), postgresql_tables(uri)
        assert_equal_tables(source, there)
        (tmp_path / "second").mkdir()
        report = carry(parse(f"mlflow:{uri}"), sqlite_address(back), tmp_path / "second")
        assert (report.failed, report.losses, report.copied) == ((), (), 2)
        assert_equal_tables(source, sqlite_tables(back))

    def test_the_rows_of_a_link_to_a_dataset_name_the_dataset(self, full, tmp_path):
        target = tmp_path / "new.db"
        carry(sqlite_address(full), sqlite_address(target), tmp_path)
        tables = sqlite_tables(target)
        (dataset,) = tables["datasets"]
        (reading,) = [row for row in tables["inputs"] if row["source_type"] == "DATASET"]
        assert reading["source_id"] == dataset["dataset_uuid"]
        assert tables["logged_model_metrics"][0]["dataset_uuid"] == dataset["dataset_uuid"]

    def test_a_second_copy_writes_nothing(self, full, tmp_path):
        target = tmp_path / "new.db"
        carry(sqlite_address(full), sqlite_address(target), tmp_path)
        before = target.read_bytes()
        report = carry(sqlite_address(full), sqlite_address(target), tmp_path)
        assert (report.copied, report.already) == (0, 2)
        assert target.read_bytes() == before

    def test_what_changed_is_brought_up_to_date(self, full, tmp_path):
        source, target = tmp_path / "source.db", tmp_path / "new.db"
        source.write_bytes(full.read_bytes())
        carry(sqlite_address(source), sqlite_address(target), tmp_path)
        with sqlite3.connect(source) as connection:
            connection.execute("UPDATE registered_models SET description = 'another'")
            connection.execute("INSERT INTO metrics VALUES ('new', 1.0, 1, ?, 1, 0)", [RUN])
            connection.execute("INSERT INTO latest_metrics VALUES ('new', 1.0, 1, 1, 0, ?)", [RUN])
            connection.execute("DELETE FROM params WHERE key = 'q'")
        report = carry(sqlite_address(source), sqlite_address(target), tmp_path)
        assert (report.failed, report.copied, report.already) == ((), 1, 1)
        assert_equal_tables(sqlite_tables(source), sqlite_tables(target))


STORES = ["db-attrition-2023", "db-ds-experiments-2025", "db-taxi-fare-2023-03", "db-agenthq-2026"]


@pytest.mark.parametrize("name", STORES)
def test_an_old_store_arrives_at_the_current_schema(store, tmp_path, name):
    path, target = store(name), tmp_path / "new.db"
    report = carry(sqlite_address(path), sqlite_address(target), tmp_path)
    assert (report.failed, report.losses) == ((), ())
    assert_equal_tables(sqlite_tables(path), sqlite_tables(target))


class TestSchema:
    def described(self, engine):
        from sqlalchemy import inspect

        inspector = inspect(engine)
        casts = re.compile(r"::(character varying|text)(\[\])?")  # PostgreSQL writes one check in two ways
        return {
            table: (
                sorted(
                    (one["name"], str(one["type"]), one["nullable"], str(one["default"]).strip("'()"))
                    for one in inspector.get_columns(table)
                ),
                inspector.get_pk_constraint(table)["constrained_columns"],
                sorted(repr(sorted(one.items(), key=repr)) for one in inspector.get_foreign_keys(table)),
                sorted((one["name"], one["column_names"], bool(one["unique"])) for one in inspector.get_indexes(table)),
                sorted((str(one["name"]), one["column_names"]) for one in inspector.get_unique_constraints(table)),
                sorted(
                    sorted(re.findall(r"\w+", casts.sub("", one["sqltext"])))
                    for one in inspector.get_check_constraints(table)
                ),
            )
            for table in inspector.get_table_names()
        }

    def upgraded(self, uri):
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    @pytest.mark.slow
    def test_the_sqlite_schema_is_that_of_mlflow(self, tmp_path):
        pytest.importorskip("mlflow")
        from sqlalchemy import create_engine

        theirs, ours = f"sqlite:///{tmp_path}/theirs.db", f"sqlite:///{tmp_path}/ours.db"
        self.upgraded(theirs)
        open_target(parse(f"mlflow:{ours}"), Context("target")).prepare([Experiment("0", "Default")])
        assert self.described(create_engine(ours)) == self.described(create_engine(theirs))

    @pytest.mark.slow
    def test_the_postgresql_schema_is_that_of_mlflow(self, postgresql):
        pytest.importorskip("mlflow")
        from sqlalchemy import create_engine

        theirs, ours = (postgresql().replace("postgresql:", "postgresql+psycopg2:") for _ in range(2))
        self.upgraded(theirs)
        open_target(parse(f"mlflow:{ours}"), Context("target")).prepare([Experiment("0", "Default")])
        assert self.described(create_engine(ours)) == self.described(create_engine(theirs))

    def test_an_older_schema_is_refused_and_stays_as_it_is(self, store):
        path = store("db-taxi-fare-2023-03")
        before = path.read_bytes()
        with pytest.raises(UsageError, match="97727af70f4d") as caught:
            open_target(sqlite_address(path), Context("target"))
        assert caught.value.hint.endswith(f"mlflow db upgrade sqlite:///{path}")
        assert path.read_bytes() == before

    def test_other_tables_are_refused(self, tmp_path):
        with sqlite3.connect(tmp_path / "x.db") as connection:
            connection.execute("CREATE TABLE cats (name TEXT)")
        with pytest.raises(UsageError, match="other tables than MLflow's: cats"):
            open_target(sqlite_address(tmp_path / "x.db"), Context("target"))

    def test_opening_writes_nothing(self, tmp_path):
        open_target(sqlite_address(tmp_path / "x.db"), Context("target")).arrived()
        assert list(tmp_path.iterdir()) == []


class TestFilledTarget:
    @pytest.fixture
    def target(self, tmp_path):
        """An experiment of the same name, another under the id 5, and a run of its own."""
        path = tmp_path / "filled.db"
        open_target(sqlite_address(path), Context("target")).prepare(
            [Experiment("2", "größe 模型", {"team": "b"}), Experiment("5", "mine")]
        )
        with sqlite3.connect(path) as connection:
            connection.execute(
                "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage) VALUES ('mine', 5, 'active')"
            )
        return path

    def test_equal_names_are_one_experiment_and_taken_ids_become_others(self, full, target, tmp_path):
        report = carry(sqlite_address(full), sqlite_address(target), tmp_path)
        assert report.failed == ()
        tables = sqlite_tables(target)
        ids = {row["name"]: row["experiment_id"] for row in tables["experiments"]}
        assert ids == {"Default": 0, "größe 模型": 2, "mine": 5, "gone": 6}
        homes = {row["run_uuid"]: row["experiment_id"] for row in tables["runs"]}
        assert homes == {"mine": 5, RUN: 2, "b" * 32: 6}
        for table in ("logged_models", "trace_info", "spans", "datasets", "logged_model_params"):
            assert {row["experiment_id"] for row in tables[table]} == {2}
        tags = {row["key"]: row["value"] for row in tables["experiment_tags"] if row["experiment_id"] == 2}
        assert "12@12" in tags.values()  # which of the source's experiments lives here
        tags = {key: value for key, value in tags.items() if not key.startswith("mlmigrate.")}
        assert tags == {"team": "b", "mlflow.note.content": "Zeilen\nund mehr"}
        assert {(loss.what, loss.because) for loss in report.losses} == {
            ("experiment 'größe 模型'", "the target has one of this name already; ours is merged into it"),
            ("experiment id 5", "is taken here; it is 6 now"),
            ("experiment tag 'team'", "has another value here, which stays"),
        }

    def test_a_run_of_somebody_else_is_never_overwritten(self, full, target, tmp_path):
        with sqlite3.connect(target) as connection:
            connection.execute("INSERT INTO runs (run_uuid, name, experiment_id) VALUES (?, 'theirs', 5)", [RUN])
        report = carry(sqlite_address(full), sqlite_address(target), tmp_path)
        assert [(failure.run, failure.error) for failure in report.failed] == [(RUN, "Conflict")]
        names = {row["run_uuid"]: row["name"] for row in sqlite_tables(target)["runs"]}
        assert (names[RUN], names["b" * 32]) == ("theirs", "child")


def test_a_run_without_a_start_gets_one_for_mlflow_opens_none_without(full, tmp_path):
    source, target = tmp_path / "source.db", tmp_path / "new.db"
    source.write_bytes(full.read_bytes())
    with sqlite3.connect(source) as connection:
        connection.execute("UPDATE runs SET start_time = NULL WHERE run_uuid = ?", [RUN])
    report = carry(sqlite_address(source), sqlite_address(target), tmp_path)
    assert [(loss.run, loss.what) for loss in report.losses] == [(RUN, "start")]
    assert {row["start_time"] for row in sqlite_tables(target)["runs"]} == {0}


class TestArtifacts:
    def source(self, full, tmp_path):
        path = tmp_path / "estate" / "source.db"
        folder = path.parent / "mlartifacts" / "12" / RUN / "artifacts" / "model"
        folder.mkdir(parents=True)
        (folder / "w.bin").write_bytes(bytes(range(256)) * 9000)
        path.write_bytes(full.read_bytes())
        with sqlite3.connect(path) as connection:
            connection.execute(
                "UPDATE runs SET artifact_uri = 'mlflow-artifacts:/5/b/artifacts' WHERE experiment_id = 5"
            )
        return path

    @pytest.mark.parametrize("to", ["", "chosen"])
    def test_the_bytes_lie_where_a_server_looks_for_them(self, full, tmp_path, to):
        source, target = self.source(full, tmp_path), tmp_path / "new.db"
        settings = Settings(artifacts_to=str(tmp_path / to) if to else "")
        ledger = Ledger.open(tmp_path / "l.sqlite", sqlite_address(source), sqlite_address(target))
        report = transfer(
            Job(sqlite_address(source), sqlite_address(target), target_settings=settings), ledger, Silent()
        )
        ledger.close()
        assert (report.failed, report.artifacts) == ((), 1)
        root = tmp_path / (to or "mlartifacts")
        files = [path for path in root.rglob("*") if path.is_file()]
        assert [path.relative_to(root).as_posix() for path in files] == [f"12/{RUN}/artifacts/model/w.bin"]
        assert files[0].read_bytes() == bytes(range(256)) * 9000
        uris = {row["run_uuid"]: row["artifact_uri"] for row in sqlite_tables(target)["runs"]}
        assert uris[RUN] == f"mlflow-artifacts:/12/{RUN}/artifacts"


KILLED = """
    import sys
    from mlmigrate.adapters.mlflow.sql import connect
    from mlmigrate.adapters.base import Settings
    from mlmigrate.address import parse
    from mlmigrate.events import Silent
    from mlmigrate.ledger import Ledger
    from mlmigrate.survey import Job
    from mlmigrate.transfer import transfer
    import os, pathlib, signal

    source, target, at = parse(sys.argv[1]), parse(sys.argv[2]), int(sys.argv[3])
    seen = 0
    def counted(call):
        def one(*args, **kwargs):
            global seen
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return one
    for name in ("execute", "ingest", "commit"):
        setattr(connect.Session, name, counted(getattr(connect.Session, name)))
    keep = Settings(artifacts_to="keep")
    ledger = Ledger.open(pathlib.Path(sys.argv[4]), source, target)
    transfer(Job(source, target, source_settings=keep, target_settings=keep), ledger, Silent(), workers=1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("at", [3, 156, 163, 169, 180, 200, 219, 238])
def test_killed_between_two_statements_nothing_is_there_in_part_and_a_second_try_completes(full, tmp_path, at):
    target = tmp_path / "new.db"
    arguments = [f"mlflow:sqlite:///{full}", f"mlflow:sqlite:///{target}", str(at), str(tmp_path / "ledger.sqlite")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments], check=False, env=dict(os.environ)
    )
    assert done.returncode in (-signal.SIGKILL, 0)
    if target.exists() and target.stat().st_size:
        tables = sqlite_tables(target)
        whole = {row["run_uuid"] for row in tables.get("tags", []) if row["key"] == "mlmigrate.stamp"}
        assert {row["run_uuid"] for row in tables.get("runs", [])} == whole
        assert {row["run_uuid"] for row in tables.get("metrics", [])} <= whole
    report = carry(sqlite_address(full), sqlite_address(target), tmp_path)
    assert (report.failed, report.losses) == ((), ())
    assert_equal_tables(sqlite_tables(full), sqlite_tables(target))


@pytest.mark.slow
def test_mlflow_itself_opens_the_result_and_reads_every_run(full, tmp_path):
    pytest.importorskip("mlflow")
    target = tmp_path / "new.db"
    carry(sqlite_address(full), sqlite_address(target), tmp_path)
    script = """
        import json, sys
        from mlflow import MlflowClient
        client = MlflowClient(sys.argv[1])
        seen = {}
        for experiment in client.search_experiments(view_type=3):
            for run in client.search_runs([experiment.experiment_id], run_view_type=3):
                history = client.get_metric_history(run.info.run_id, "loss") if "loss" in run.data.metrics else []
                seen[run.info.run_id] = [
                    experiment.name, run.info.run_name, run.info.status, run.info.start_time, run.info.lifecycle_stage,
                    dict(run.data.params), {k: v for k, v in run.data.tags.items() if not k.startswith("mlmigrate.")},
                    [str(point.value) for point in history], run.inputs.dataset_inputs[0].dataset.name
                    if run.inputs.dataset_inputs else None,
                ]
        new = client.create_experiment("a new one")
        models = [model.name for model in client.search_registered_models()]
        print(json.dumps([seen, new, models, client.get_model_version_by_alias("rm", "champion").version]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), f"sqlite:///{target}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    import json

    seen, new, models, version = json.loads(done.stdout.splitlines()[-1])
    points = ["0.1", "-1.7976931348623157e+308", "1.7976931348623157e+308", "nan"]
    assert seen[RUN][:5] == ["größe 模型", "eager-sun", "FAILED", 1700000000000, "active"]
    assert seen[RUN][5] == {"p": "é" * 8000, "q": "a'b\";--"}
    assert (seen[RUN][6], sorted(seen[RUN][7]), seen[RUN][8]) == ({"empty": ""}, sorted(points), "train")
    assert seen["b" * 32][:5] == ["gone", "child", "RUNNING", 0, "deleted"]
    assert (int(new) > 12, models, int(version)) == (True, ["rm"], 3)
    assert sqlite_tables(target)["alembic_version"] == [{"version_num": HEAD}]


@pytest.mark.slow
def test_the_next_experiment_of_a_postgresql_gets_a_free_id(postgresql):
    uri = postgresql()
    target = open_target(parse(f"mlflow:{uri}"), Context("target"))
    losses = target.prepare([Experiment("41", "a"), Experiment("123456789012345678", "of a file store")])
    assert [loss.because for loss in losses] == ["does not fit here; it is 42 now"]
    with adbc_driver_postgresql.dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT nextval('experiments_experiment_id_seq')")
        assert cursor.fetchone() == (43,)
    assert target.prepare([Experiment("41", "a"), Experiment("123456789012345678", "of a file store")]) == []


def test_two_runs_of_one_id_and_no_origin_meet_a_conflict_before_anything_is_written(full, tmp_path):
    source = open_source(sqlite_address(full), Context("source", settings=KEEP))
    copy = tmp_path / "copy.db"
    copy.write_bytes(full.read_bytes())
    target = open_target(sqlite_address(copy), Context("target", settings=KEEP))
    target.prepare(source.experiments())
    refs = [ref for ref in source.refs() if ref.kind == "run"]
    with (
        source.read(refs) as reading,
        target.pack("x", refs) as place,
        pytest.raises(Conflict, match="did not come from"),
    ):
        place.begin(reading.runs)
    assert copy.read_bytes() == full.read_bytes()


def test_a_busy_database_is_unavailable_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("mlmigrate.adapters.mlflow.sql.connect.LOCKED", 50)
    path = tmp_path / "busy.db"
    target = open_target(sqlite_address(path), Context("target"))
    target.prepare([Experiment("12", "x")])
    hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); print(0, flush=True)"
    hold += "; input()"
    command = [sys.executable, "-c", hold, str(path)]  # locks are a process's: only another one stands in the way
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        with pytest.raises(Unavailable):
            target.prepare([Experiment("13", "y")])
        holder.communicate("\n")
    assert target.prepare([Experiment("13", "y")]) == []


def test_rows_whose_key_the_target_has_already_stay_and_that_is_told(full, tmp_path):
    target = tmp_path / "filled.db"
    with sqlite3.connect(target) as connection:
        for statement in head_statements("sqlite"):
            connection.execute(statement)
        connection.execute("INSERT INTO registered_models VALUES ('rm', 1, 2, 'theirs', 'default')")
    report = carry(sqlite_address(full), sqlite_address(target), tmp_path)
    assert report.failed == ()
    assert [row["description"] for row in sqlite_tables(target)["registered_models"]] == ["theirs"]
    assert "registered model 'rm'" in [loss.what for loss in report.losses]


@pytest.mark.slow
def test_a_bucket_whose_uris_postgresql_cannot_hold_is_refused_before_anything_is_written(postgresql, full, tmp_path):
    uri = postgresql()
    long = "s3://bucket/" + "x" * 150
    with pytest.raises(UsageError, match="200 characters"):
        carry(sqlite_address(full), parse(f"mlflow:{uri}"), tmp_path, Settings(artifacts_to=long))
    assert postgresql_tables(uri) == {}
