"""A backend database as an estate: every value that names a place of artifacts, and their change in one step.

What is expected is read by raw SQL; other writers are processes of their own, for SQLite's locks are a process's.
MLMIGRATE_TEST_MYSQL names a MySQL or MariaDB for tests, mysql+pymysql://user:password@host:port, that may be filled.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing, contextmanager
from pathlib import Path

import adbc_driver_postgresql.dbapi
import pytest

import rawsql
import servers
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.estate import Cell, Edit
from mlmigrate.adapters.mlflow.sql import estate as estate_module
from mlmigrate.adapters.mlflow.sql.schema import head_statements
from mlmigrate.address import Address
from mlmigrate.errors import NotFound, Unavailable, UsageError

FILLED = Path(__file__).parent.parent
FILL = """
import dataclasses, json, sys
sys.path.append(sys.argv[1])
from filled import fill
print(json.dumps(dataclasses.asdict(fill(sys.argv[2]))))
"""
RUN, OTHER_RUN, MODEL, TRACE = "a" * 32, "b" * 32, "m-" + "c" * 32, "tr-" + "d" * 32
PLACES = {  # as MLflow's own source says; the condition leaves out what is no place
    "experiments": {"artifact_location": ""},
    "workspaces": {"default_artifact_root": "", "trace_archival_location": ""},
    "runs": {"artifact_uri": ""},
    "logged_models": {"artifact_location": ""},
    "model_versions": {
        column: f"{column} not like 'models:/%' and {column} not like 'runs:/%' "
        f"and {column} not in ('dummy-source', 'REDACTED-SOURCE-PATH')"
        for column in ("source", "storage_location")
    },
    "trace_tags": {"value": "key in ('mlflow.artifactLocation', 'mlflow.trace.archiveLocation')"},
}


def opened(place, **settings):
    return registry.open_estate(Address("mlflow", place), Context("source", settings=Settings(**settings)))


def of_file(file, **settings):
    return opened(f"sqlite:///{file}", **settings)


def to_s3(cells, old="", new="s3://bucket/new"):
    return [Edit(c.table, c.key, c.column, c.value, new + c.value.removeprefix(old)) for c in cells]


def edited(estate, edits):
    with estate.switching() as switching:
        missed = switching.edit(edits)
        switching.commit()
    return missed


def dump(file):
    """All rows of all tables."""
    return {table: rawsql.rows(file, table) for table in rawsql.tables(file)}


def raw_values(file):
    """(table, column, value) of every place, as often as it is there."""
    found = []
    for table, columns in PLACES.items():
        for column, condition in columns.items():
            if table in rawsql.tables(file) and column in rawsql.columns(file, table):
                only = f"{column} <> ''" + (f" and {condition}" if condition else "")
                rows = rawsql.ask(file, f"select {column} from {table} where {only}")
                found += [(table, column, value) for (value,) in rows]
    return sorted(found)


def values(cells):
    return sorted((cell.table, cell.column, cell.value) for cell in cells)


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """A database at the current schema, with nothing in it."""
    file = tmp_path_factory.mktemp("head") / "mlflow.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA synchronous = OFF")
        for statement in head_statements("sqlite"):
            db.execute(statement)
        db.commit()
    return file


ONE_OF_EACH = """
insert into experiments values (7, 'seven', '{root}/7', 'active', 1, 22, 'default');
insert into workspaces (name, default_artifact_root) values ('team', '{root}/team');
insert into runs (run_uuid, name, status, lifecycle_stage, artifact_uri, experiment_id, end_time)
    values ('{run}', 'calm', 'FINISHED', 'deleted', '{root}/7/{run}/artifacts', 7, 33);
insert into runs (run_uuid, name, status, lifecycle_stage, artifact_uri, experiment_id)
    values ('{other}', '', 'RUNNING', 'active', '{root}/7/{other}/artifacts', 7);
insert into tags (key, value, run_uuid) values ('mlflow.runName', 'wild', '{other}');
insert into tags (key, value, run_uuid) values ('note', '{root}/7 is full', '{other}');
insert into logged_models
    values ('{model}', 7, 'net', '{root}/7/models/{model}/artifacts', 1, 44, 1, 'active', null, null, null);
insert into registered_models (name, workspace) values ('net', 'default');
insert into model_versions (name, version, source, run_id, storage_location, last_updated_time, workspace, status)
    values ('net', 1, '{root}/7/{run}/artifacts/model', '{run}', '{root}/7/{run}/artifacts/model', 55, 'default',
    'READY');
insert into model_versions (name, version, source, storage_location, workspace)
    values ('net', 2, 'models:/{model}', '{root}/7/models/{model}/artifacts', 'default');
insert into model_versions (name, version, source, workspace) values ('net', 3, 'dummy-source', 'default');
insert into trace_info (request_id, experiment_id, timestamp_ms, execution_time_ms, status, trace_name)
    values ('{trace}', 7, 60, 6, 'IN_PROGRESS', 'ask');
insert into trace_tags (key, value, request_id)
    values ('mlflow.artifactLocation', '{root}/7/traces/{trace}/artifacts', '{trace}');
insert into trace_tags (key, value, request_id)
    values ('mlflow.trace.archiveLocation', 's3://old/7/traces/{trace}/artifacts', '{trace}');
insert into trace_tags (key, value, request_id) values ('note', '{root}/7', '{trace}')
"""
MANY = """
insert into experiments values (7, 'seven', '/data/7', 'active', 1, 2, 'default');
insert into runs (run_uuid, name, status, lifecycle_stage, artifact_uri, experiment_id, end_time)
    {n} select 'r' || i, 'run ' || i, 'FINISHED', 'active', '/data/7/r' || i || '/artifacts', 7, i from n;
insert into logged_models {n} select 'm-' || i, 7, 'model', '/data/7/models/m-' || i || '/artifacts',
    1, 2, 2, 'active', null, null, null from n;
insert into trace_info (request_id, experiment_id, timestamp_ms, status) {n} select 'tr-' || i, 7, 1, 'OK' from n;
insert into trace_tags (key, value, request_id)
    {n} select 'mlflow.artifactLocation', '/data/7/traces/tr-' || i || '/artifacts', 'tr-' || i from n
"""
NUMBERED = "with recursive n(i) as (select 1 union all select i + 1 from n where i < {most})"


def one_of_each():
    """SQL that makes an experiment with one of each."""
    script = ONE_OF_EACH.format(root="/data/mlruns", run=RUN, other=OTHER_RUN, model=MODEL, trace=TRACE)
    return script.split(";\n")


def many(runs):
    """SQL that makes so many runs, and as many models and traces."""
    return MANY.format(n=NUMBERED.format(most=runs)).split(";\n")


def expected(room):
    """The cells of `fill_rows`; `room`: whether the database keeps to declared lengths."""
    root = "/data/mlruns/7"

    def cell(table, key, column, value, kind, length, **more):
        return Cell(table, key, column, value, kind, room=length if room else None, **more)

    version = {"name": "net", "kind": "version", "length": 500}
    first = {"owner": "@version/net/1", "experiment": "7", "changed": 55, **version}
    trace = {"owner": f"@trace/{TRACE}", "experiment": "7", "name": "ask", "active": True, "changed": 66}
    files, own = f"{root}/{RUN}/artifacts/model", f"{root}/models/{MODEL}/artifacts"
    return [
        cell(
            "experiments",
            ("7",),
            "artifact_location",
            root,
            "experiment",
            256,
            experiment="7",
            name="seven",
            changed=22,
        ),
        cell("workspaces", ("team",), "default_artifact_root", "/data/mlruns/team", "workspace", None, name="team"),
        *(
            cell(
                "runs", (id_,), "artifact_uri", f"{root}/{id_}/artifacts", "run", 200, owner=id_, experiment="7", **more
            )
            for id_, more in (
                (RUN, {"name": "calm", "changed": 33}),
                (OTHER_RUN, {"name": "wild", "active": True}),
            )
        ),
        cell(
            *("logged_models", (MODEL,), "artifact_location", own, "model", 1000),
            owner=f"@model/{MODEL}",
            experiment="7",
            name="net",
            active=True,
            changed=44,
        ),
        cell("model_versions", ("default", "net", "1"), "source", files, **first),
        cell("model_versions", ("default", "net", "1"), "storage_location", files, **first),
        cell("model_versions", ("default", "net", "2"), "storage_location", own, owner="@version/net/2", **version),
        *(
            cell("trace_tags", (key, TRACE), "value", f"{base}/traces/{TRACE}/artifacts", "trace", 8000, **trace)
            for key, base in (("mlflow.artifactLocation", root), ("mlflow.trace.archiveLocation", "s3://old/7"))
        ),
    ]


@pytest.fixture
def small(head, tmp_path):
    """A database with one of each."""
    file = Path(shutil.copy(head, tmp_path / "small.db"))
    with closing(sqlite3.connect(file)) as db:
        for statement in one_of_each():
            db.execute(statement)
        db.commit()
    return file


class TestCells:
    def test_each_value_tells_whose_it_is_and_whether_it_is_in_use(self, small):
        assert list(of_file(small).cells()) == expected(room=False)

    def test_looking_writes_nothing(self, small):
        before = small.read_bytes()
        list(of_file(small).cells())
        assert small.read_bytes() == before
        assert [one.name for one in small.parent.iterdir()] == [small.name]

    def test_what_is_no_text_or_no_time_holds_up_nothing(self, small):
        with closing(sqlite3.connect(small)) as db:
            db.execute("pragma ignore_check_constraints = on")
            db.execute("update runs set artifact_uri = cast(x'2fff41' as text), end_time = 'late', name = x'ff'")
            db.execute(
                "update experiments set artifact_location = 5, last_update_time = 2.5, name = 'a' || char(0) || 'b'"
            )
            db.execute("update trace_info set status = 3, timestamp_ms = 'x'")
            db.execute("update logged_models set artifact_location = ''")
            db.commit()
        cells = list(of_file(small).cells())
        assert [cell.value for cell in cells if cell.kind == "run"] == ["/\ufffdA"] * 2
        assert [(cell.value, cell.changed) for cell in cells if cell.kind == "experiment"] == [("5", 2)]
        assert len(cells) == len(expected(room=False)) - 1
        missed = edited(of_file(small), to_s3(cells))
        assert {edit.table for edit in missed} == {"runs"}
        assert rawsql.ask(small, "select artifact_location from experiments") == [("s3://bucket/new5",)]

    def test_a_reader_who_takes_his_time_holds_up_no_writer(self, small):
        cells = of_file(small).cells()
        next(cells)
        assert write_at_once(small) == "done"
        assert len(list(cells)) == len(expected(room=False)) - 1

    def test_a_database_of_something_else_is_refused(self, tmp_path):
        with closing(sqlite3.connect(tmp_path / "other.db")) as db:
            db.execute("create table songs (title text)")
        with pytest.raises(NotFound, match="it has songs"):
            of_file(tmp_path / "other.db")
        with pytest.raises(NotFound):
            of_file(tmp_path / "none.db")
        assert not (tmp_path / "none.db").exists()

    def test_other_databases_are_refused_with_what_to_do(self):
        with pytest.raises(UsageError, match="neither SQLite, PostgreSQL nor MySQL"):
            opened("mssql+pyodbc://user:secret@localhost/mlflow")

    def test_it_is_the_same_store_by_whatever_path(self, small, tmp_path):
        (tmp_path / "link").symlink_to(small)
        assert of_file(small).identity == of_file(tmp_path / "link").identity
        assert of_file(small).shown == f"mlflow:sqlite:///{small}"


class TestEdits:
    def test_an_edit_changes_one_value_and_nothing_beside(self, small):
        before = dump(small)
        edits = to_s3(of_file(small).cells())
        assert edited(of_file(small), edits) == []
        assert raw_values(small) == sorted((one.table, one.column, one.new) for one in edits)
        assert edited(of_file(small), [one.undone for one in edits]) == []
        assert dump(small) == before

    def test_what_somebody_else_changed_is_given_back_and_not_overwritten(self, small):
        edits = to_s3(of_file(small).cells())
        with closing(sqlite3.connect(small)) as db:
            db.execute(f"update runs set artifact_uri = '/mine' where run_uuid = '{RUN}'")
            db.execute("delete from model_versions where version = 1")
            db.commit()
        missed = edited(of_file(small), edits)
        assert [(one.table, one.key[-1], one.column) for one in missed] == [
            ("runs", RUN, "artifact_uri"),
            ("model_versions", "1", "source"),
            ("model_versions", "1", "storage_location"),
        ]
        assert rawsql.ask(small, f"select artifact_uri from runs where run_uuid = '{RUN}'") == [("/mine",)]

    def test_edits_made_again_are_given_back_and_change_nothing(self, small):
        edits = to_s3(of_file(small).cells())
        edited(of_file(small), edits)
        after = dump(small)
        assert edited(of_file(small), edits) == edits
        assert dump(small) == after

    def test_a_value_changed_twice_in_one_call_ends_as_the_second_says(self, small):
        first = Edit("runs", (RUN,), "artifact_uri", f"/data/mlruns/7/{RUN}/artifacts", "/a")
        assert edited(of_file(small), [first, Edit("runs", (RUN,), "artifact_uri", "/a", "/b")]) == []
        assert rawsql.ask(small, f"select artifact_uri from runs where run_uuid = '{RUN}'") == [("/b",)]

    def test_leaving_without_commit_changes_nothing(self, small):
        before = dump(small)
        with of_file(small).switching() as switching:
            assert switching.edit(to_s3(switching.cells())) == []
            assert {cell.value[:5] for cell in switching.cells()} == {"s3://"}
        assert dump(small) == before

    def test_an_error_within_changes_nothing(self, small):
        before = dump(small)
        edits = to_s3(of_file(small).cells())
        with pytest.raises(ZeroDivisionError), of_file(small).switching() as switching:
            switching.edit(one if number < 5 else 1 / 0 for number, one in enumerate(edits))
        assert dump(small) == before

    @pytest.mark.parametrize(
        "edit",
        [
            Edit("tags", ("note", OTHER_RUN), "value", "/data/mlruns/7 is full", "x"),
            Edit("runs", (OTHER_RUN,), "name", "", "x"),
            Edit("trace_tags", ("note", TRACE), "value", "/data/mlruns/7", "x"),
            Edit("runs; drop table tags", (RUN,), "artifact_uri", "a", "b"),
            Edit("experiments", ("7 or 1=1",), "artifact_location", "/data/mlruns/7", "x"),
            Edit("experiments", ("7", "8"), "artifact_location", "/data/mlruns/7", "x"),
            Edit("runs", (RUN + "\0",), "artifact_uri", "a", "b"),
            Edit("runs", ("\ud800",), "artifact_uri", "a", "b"),
            Edit("runs", ("' or '1'='1",), "artifact_uri", f"/data/mlruns/7/{RUN}/artifacts", "b"),
        ],
        ids=lambda edit: f"{edit.table[:5]}-{ascii(edit.key[0])[:12]}",
    )
    def test_nothing_but_places_is_ever_changed(self, small, edit):
        before = dump(small)
        assert edited(of_file(small), [edit]) == [edit]
        assert dump(small) == before

    def test_a_version_is_found_by_the_key_that_it_had_before_there_were_workspaces(self, small):
        old = f"/data/mlruns/7/{RUN}/artifacts/model"
        assert edited(of_file(small), [Edit("model_versions", ("net", "1"), "source", old, "s3://b/x")]) == []
        assert rawsql.ask(small, "select source from model_versions where version = 1") == [("s3://b/x",)]

    @pytest.mark.parametrize("mode", ["delete", "wal"])
    def test_the_files_journal_stays_of_its_kind(self, small, mode):
        with closing(sqlite3.connect(small)) as db:
            db.execute(f"pragma journal_mode = {mode}")
        edited(of_file(small), to_s3(of_file(small).cells()))
        with closing(sqlite3.connect(small)) as db:
            assert db.execute("pragma journal_mode").fetchall() == [(mode,)]
            assert db.execute("pragma integrity_check").fetchall() == [("ok",)]

    @pytest.mark.slow
    def test_20_000_runs_and_as_many_models_and_traces_take_a_moment(self, head, tmp_path, capsys):
        file = Path(shutil.copy(head, tmp_path / "many.db"))
        with closing(sqlite3.connect(file)) as db:
            for statement in many(20_000):
                db.execute(statement)
            db.commit()
        edits = to_s3(of_file(file).cells())
        assert len(edits) == 60_001
        with of_file(file).switching() as switching:
            began = time.process_time()  # of this process alone, since the machine may be busy
            assert switching.edit(edits) == []
            switching.commit()
            took = time.process_time() - began
        with capsys.disabled():
            sys.stdout.write(f"\nSQLite: 60,001 edits and commit took {took:.2f} s\n")
        assert rawsql.ask(file, "select count(*) from runs where artifact_uri like 's3://%'") == [(20_000,)]
        assert took < 4  # half a second is usual


WRITER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]))
print("ready", flush=True)
try:
    db.execute("update runs set user_id = 'writer'")
    db.commit()
    print("done", flush=True)
except sqlite3.OperationalError as error:
    print(error, flush=True)
"""
HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("begin immediate")
print("ready", flush=True)
sys.stdin.read()
"""
KILLED = """
import os, sys
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context
from mlmigrate.adapters.estate import Edit
from mlmigrate.address import Address
with registry.open_estate(Address("mlflow", sys.argv[1]), Context("source")).switching() as switching:
    cells = list(switching.cells())
    assert cells and not switching.edit(Edit(c.table, c.key, c.column, c.value, "s3://x" + c.value) for c in cells)
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(program, *words):
    """Another process, up to where it says "ready"; ended at last."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, words)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def write_at_once(file, patience=0.1):
    with process(WRITER, file, patience) as writer:
        return writer.stdout.readline().strip()


class TestOthers:
    @pytest.mark.parametrize("mode", ["delete", "wal"])
    def test_a_writer_waits_and_then_goes_on(self, small, mode):
        with closing(sqlite3.connect(small)) as db:
            db.execute(f"pragma journal_mode = {mode}")
        with of_file(small).switching() as switching, process(WRITER, small, 300) as writer:
            assert switching.edit(to_s3(switching.cells())) == []
            time.sleep(0.5)
            assert writer.poll() is None
            switching.commit()
            assert writer.stdout.readline() == "done\n"
        assert rawsql.ask(small, "select distinct user_id, substr(artifact_uri, 1, 5) from runs") == [
            ("writer", "s3://")
        ]

    def test_a_store_that_others_hold_is_said_to_be_busy(self, small, monkeypatch):
        monkeypatch.setattr(estate_module, "PATIENCE", 0.3)
        estate = of_file(small)
        with process(HOLDER, small):
            with pytest.raises(Unavailable, match="others are writing there"), estate.switching():
                pass
            assert len(list(estate.cells())) == len(expected(room=False))
        with estate.switching():
            assert write_at_once(small) == "database is locked"
        assert write_at_once(small) == "done"

    @pytest.mark.parametrize("mode", ["delete", "wal"])
    def test_a_kill_within_a_switch_leaves_nothing(self, small, mode):
        with closing(sqlite3.connect(small)) as db:
            db.execute(f"pragma journal_mode = {mode}")
        before = dump(small)
        with process(KILLED, f"sqlite:///{small}") as child:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        assert dump(small) == before
        assert edited(of_file(small), to_s3(of_file(small).cells())) == []


class TestFolders:
    def test_the_folders_of_this_machine_are_found(self, small, tmp_path):
        root = tmp_path / "mlruns"
        for place in (f"7/{RUN}/artifacts/model", f"7/models/{MODEL}/artifacts", f"7/traces/{TRACE}/artifacts"):
            (root / place).mkdir(parents=True)
        moved(small, "/data/mlruns", str(root))
        estate = of_file(small)
        found = {(cell.kind, cell.key[-1], cell.column): estate.folder(cell) for cell in estate.cells()}
        assert found == {
            ("experiment", "7", "artifact_location"): root / "7",
            ("workspace", "team", "default_artifact_root"): root / "team",
            ("run", RUN, "artifact_uri"): root / "7" / RUN / "artifacts",
            ("run", OTHER_RUN, "artifact_uri"): root / "7" / OTHER_RUN / "artifacts",  # has no files yet
            ("model", MODEL, "artifact_location"): root / "7" / "models" / MODEL / "artifacts",
            ("version", "1", "source"): root / "7" / RUN / "artifacts" / "model",
            ("version", "1", "storage_location"): root / "7" / RUN / "artifacts" / "model",
            ("version", "2", "storage_location"): root / "7" / "models" / MODEL / "artifacts",
            ("trace", TRACE, "value"): None,  # the archive's, which lies in an object store, comes last
        }

    def test_a_store_from_elsewhere_is_looked_for_where_a_person_says(self, small, tmp_path):
        at = tmp_path / "rescued"
        (at / "7" / RUN / "artifacts" / "model").mkdir(parents=True)
        estate = of_file(small, artifacts_at=(str(at),))
        found = {cell.kind + cell.column: estate.folder(cell) for cell in estate.cells() if cell.owner != OTHER_RUN}
        assert found["runartifact_uri"] == at / "7" / RUN / "artifacts"
        assert found["experimentartifact_location"] == at / "7"
        assert of_file(small).folder(next(c for c in of_file(small).cells() if c.owner == RUN)) is None

    @pytest.mark.parametrize(
        "uri", ["/etc", "file:///etc", f"/tmp/../etc/{RUN}/../../etc", "/etc/ssl", "s3://b/x", "http://evil/x"]
    )
    @pytest.mark.parametrize("kind", ["run", "experiment", "version", "trace", "model", "workspace"])
    def test_a_place_that_the_store_merely_claims_is_not_believed(self, small, kind, uri):
        estate = of_file(small)
        assert estate.folder(Cell("t", ("k",), "c", uri, kind, owner=RUN, experiment="7")) is None

    def test_unless_a_person_allowed_it(self, small, tmp_path):
        (tmp_path / "odd" / "place").mkdir(parents=True)
        cell = Cell("runs", (RUN,), "artifact_uri", str(tmp_path / "odd" / "place"), "run", owner=RUN, experiment="7")
        assert of_file(small).folder(cell) is None
        assert of_file(small, allow_artifacts=(str(tmp_path / "odd"),)).folder(cell) == tmp_path / "odd" / "place"

    def test_a_source_leads_out_of_no_run(self, small, tmp_path):
        base = tmp_path / "mlruns" / "7" / RUN / "artifacts"
        base.mkdir(parents=True)
        (base / "link").symlink_to("/etc")
        estate = of_file(small)
        for rest in ("link", "../../..", "..", "link/ssl"):
            assert estate.folder(Cell("t", ("k",), "source", f"{base}/{rest}", "version", experiment="7")) is None


def moved(file, old, new):
    with closing(sqlite3.connect(file)) as db:
        for table, columns in PLACES.items():
            for column in columns:
                db.execute(f"update {table} set {column} = replace({column}, ?, ?)", (old, new))
        db.commit()


@pytest.fixture(scope="session")
def filled(head, tmp_path_factory):
    """A database that MLflow's client filled."""
    pytest.importorskip("mlflow", minversion="3.17")
    file = shutil.copy(head, tmp_path_factory.mktemp("filled") / "mlflow.db")
    command = [sys.executable, "-c", FILL, str(FILLED), f"sqlite:///{file}"]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=file.parent)
    return file


@pytest.mark.slow
class TestFilled:
    def test_every_value_below_the_old_root_is_listed(self, filled):
        """Every column of every table is asked for the root's text: nothing that a client wrote holds it."""
        root = str(filled.parent)
        found = []
        with closing(sqlite3.connect(f"file:{filled}?mode=ro", uri=True)) as db:
            for table in rawsql.tables(filled):
                for column in rawsql.columns(filled, table):
                    sql = f'select "{column}" from "{table}" where instr(cast("{column}" as text), ?) > 0'
                    found += [(table, column, value) for (value,) in db.execute(sql, (root,))]
        assert values(cell for cell in of_file(filled).cells() if root in cell.value) == sorted(found)
        assert {table for table, _, _ in found} == PLACES.keys() - {"workspaces"}

    def test_there_and_back_it_is_row_for_row_the_same(self, filled, tmp_path):
        file = Path(shutil.copy(filled, tmp_path / "mlflow.db"))
        before = dump(file)
        cells = list(of_file(file).cells())
        assert values(cells) == raw_values(file)
        edits = to_s3(cells)
        assert edited(of_file(file), edits) == []
        after = dump(file)
        assert {table for table in before if before[table] != after[table]} == {cell.table for cell in cells}
        assert edited(of_file(file), [one.undone for one in edits]) == []
        assert dump(file) == before


@pytest.mark.parametrize(
    "name",
    [
        "db-agenthq-2026",
        "db-attrition-2023",
        "db-ds-experiments-2025",
        "db-hyperopt-2021",
        "db-llm-eval-2026",
        "db-omegaml",
    ],
)
def test_real_databases_of_all_ages_go_there_and_back(store, name):
    file = store(name)
    before = dump(file)
    cells = list(of_file(file).cells())
    assert cells
    assert values(cells) == raw_values(file)
    edits = to_s3(cells)
    assert edited(of_file(file), edits) == []
    assert raw_values(file) == sorted((one.table, one.column, one.new) for one in edits)
    assert edited(of_file(file), [one.undone for one in edits]) == []
    assert dump(file) == before


MADE = """
import json, sys
import mlflow
from mlflow.tracking import MlflowClient
uri, root = sys.argv[1:]
client = MlflowClient(uri, uri)
experiment = client.create_experiment("e", root + "/e")
runs = [client.create_run(experiment) for _ in range(3)]
client.set_terminated(runs[0].info.run_id)
client.delete_run(runs[1].info.run_id)
client.create_registered_model("net")
for run in runs[:1]:
    client.create_model_version("net", run.info.artifact_uri + "/model", run.info.run_id)
if hasattr(mlflow, "start_span"):
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=experiment)
    with mlflow.start_span("ask"):
        pass
print(json.dumps([run.info.run_id for run in runs]))
"""
SEEN = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1], sys.argv[1])
print(json.dumps([client.get_run(run).info.artifact_uri for run in sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.30.0", "2.9.2", "2.22.4"])
def test_databases_of_old_versions_are_changed_and_not_upgraded(tmp_path, version):
    if "MLMIGRATE_TEST_ENVS" not in os.environ:
        pytest.skip("MLMIGRATE_TEST_ENVS names no environments of other versions")
    python = servers.environment(version) / "python"
    file, root = tmp_path / "mlflow.db", f"{tmp_path}/art"

    def ask(program, *words):
        done = subprocess.run(
            [python, "-c", program, f"sqlite:///{file}", *words], capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    ids = ask(MADE, root)
    before = dump(file)
    estate = of_file(file)
    cells = list(estate.cells())
    assert values(cells) == raw_values(file)
    assert [cell.active for cell in cells if cell.owner == ids[0]] == [False]
    assert [cell.active for cell in cells if cell.owner == ids[2]] == [True]
    edits = to_s3([cell for cell in cells if cell.value.startswith(root)], root)
    tables = {"experiments", "runs", "model_versions"} | ({"trace_tags"} if version == "2.22.4" else set())
    assert {edit.table for edit in edits} == tables
    assert edited(estate, edits) == []
    assert ask(SEEN, *ids) == [f"s3://bucket/new/e/{one}/artifacts" for one in ids]
    assert edited(estate, [one.undone for one in edits]) == []
    assert dump(file) == before


@pytest.fixture(scope="session")
def small_postgresql(postgresql):
    """Gives a new database with one of each."""

    def made(statements=None):
        uri = postgresql()
        with asking(uri) as ask:
            for statement in [*head_statements("postgresql"), *(one_of_each() if statements is None else statements)]:
                ask(statement)
        return uri

    return made


@contextmanager
def asking(uri):
    """Asks a PostgreSQL by raw SQL, each statement on its own."""
    with adbc_driver_postgresql.dbapi.connect(uri, autocommit=True) as connection:

        def ask(sql):
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else []

        yield ask


def tables_of(uri):
    """All rows of all tables, as text."""
    with asking(uri) as ask:
        names = [name for (name,) in ask("select tablename::text from pg_tables where schemaname = 'public'")]
        return {name: sorted(row for (row,) in ask(f'select t::text from "{name}" t')) for name in names}


PG_WRITER = """
import sys
import adbc_driver_postgresql.dbapi as driver
with driver.connect(sys.argv[1]) as db:
    with db.cursor() as cursor:
        cursor.execute("select count(*) from runs")
        print("ready", flush=True)
        sys.stdin.readline()
        cursor.execute("update runs set user_id = 'writer'")
    db.commit()
    print("done", flush=True)
"""
PG_HOLDER = """
import sys
import adbc_driver_postgresql.dbapi as driver
with driver.connect(sys.argv[1]) as db:
    with db.cursor() as cursor:
        cursor.execute("update runs set user_id = 'held'")
        print("ready", flush=True)
        sys.stdin.readline()
    db.commit()
    print("done", flush=True)
"""


@pytest.mark.slow
class TestPostgreSQL:
    def test_it_tells_the_same_and_how_much_fits(self, small_postgresql):
        assert list(opened(small_postgresql()).cells()) == expected(room=True)

    def test_there_and_back_it_is_row_for_row_the_same(self, small_postgresql):
        uri = small_postgresql()
        before = tables_of(uri)
        edits = to_s3(opened(uri).cells())
        assert edited(opened(uri), edits) == []
        with asking(uri) as ask:
            assert ask("select artifact_uri from runs order by 1")[0] == (
                f"s3://bucket/new/data/mlruns/7/{RUN}/artifacts",
            )
        assert edited(opened(uri), edits) == edits
        assert edited(opened(uri), [one.undone for one in edits]) == []
        assert tables_of(uri) == before

    def test_leaving_without_commit_changes_nothing(self, small_postgresql):
        uri = small_postgresql()
        before = tables_of(uri)
        with opened(uri).switching() as switching:
            assert switching.edit(to_s3(switching.cells())) == []
        assert tables_of(uri) == before

    def test_a_writer_waits_and_then_goes_on_and_a_reader_never_waits(self, small_postgresql):
        uri = small_postgresql()
        with process(PG_WRITER, uri) as writer:
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "done\n"
        with opened(uri).switching() as switching, process(PG_WRITER, uri) as writer:
            assert switching.edit(to_s3(switching.cells())) == []
            writer.stdin.write("\n")
            writer.stdin.flush()
            time.sleep(0.5)
            assert writer.poll() is None
            with asking(uri) as ask:
                assert ask("select count(*) from runs where artifact_uri like 's3:%'") == [(0,)]
            switching.commit()
            assert writer.stdout.readline() == "done\n"
        with asking(uri) as ask:
            assert ask("select distinct user_id, substr(artifact_uri, 1, 5) from runs") == [("writer", "s3://")]

    def test_what_was_written_before_the_lock_was_had_is_seen(self, small_postgresql):
        uri = small_postgresql()
        with process(PG_HOLDER, uri) as holder:
            holder.stdin.write("\n")
            holder.stdin.flush()
            with opened(uri).switching() as switching:
                assert switching.edit(to_s3(switching.cells())) == []
                switching.commit()
        with asking(uri) as ask:
            assert ask("select distinct user_id, substr(artifact_uri, 1, 5) from runs") == [("held", "s3://")]

    def test_a_store_that_others_hold_is_said_to_be_busy(self, small_postgresql, monkeypatch):
        monkeypatch.setattr(estate_module, "PATIENCE", 0.5)
        uri = small_postgresql()
        with process(PG_HOLDER, uri):
            with pytest.raises(Unavailable, match="others are writing there"), opened(uri).switching():
                pass
            assert len(list(opened(uri).cells())) == len(expected(room=True))

    def test_a_kill_within_a_switch_leaves_nothing(self, small_postgresql):
        uri = small_postgresql()
        before = tables_of(uri)
        with process(KILLED, uri) as child:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        assert tables_of(uri) == before
        assert edited(opened(uri), to_s3(opened(uri).cells())) == []

    def test_its_identity_holds_no_secret(self, small_postgresql):
        uri = small_postgresql()
        secret = uri.replace("postgres:@", "postgres:hunter2@")
        assert opened(secret).identity == opened(uri).identity
        assert "hunter2" not in opened(secret).identity + opened(secret).shown

    def test_20_000_runs_and_as_many_models_and_traces_take_a_moment(self, small_postgresql, capsys):
        uri = small_postgresql(many(20_000))
        edits = to_s3(opened(uri).cells())
        assert len(edits) == 60_001
        with opened(uri).switching() as switching:
            began = time.perf_counter()
            assert switching.edit(edits) == []
            switching.commit()
            took = time.perf_counter() - began
        with capsys.disabled():
            sys.stdout.write(f"\nPostgreSQL: 60,001 edits and commit took {took:.2f} s\n")
        assert took < 60  # 2 on a quiet machine; minutes where each edit looks at every row


@contextmanager
def asking_mysql(uri):
    """Asks a MySQL by raw SQL in one transaction, which is committed at last."""
    from sqlalchemy import create_engine

    with create_engine(uri).begin() as connection:
        connection.exec_driver_sql("set session sql_mode = concat(@@sql_mode, ',ANSI'), foreign_key_checks = 0")

        def ask(sql):
            result = connection.exec_driver_sql(sql.replace("%", "%%").replace("_tags (key", '_tags ("key"'))
            return [tuple(row) for row in result] if result.returns_rows else []

        yield ask


MYSQL_WRITER = """
import sys
from sqlalchemy import create_engine
with create_engine(sys.argv[1]).begin() as db:
    print("ready", flush=True)
    db.exec_driver_sql(sys.argv[2])
print("done", flush=True)
"""
NEW_RUN = (
    "insert into runs (run_uuid, name, status, lifecycle_stage, artifact_uri, experiment_id) "
    "values ('new', 'n', 'RUNNING', 'active', 's3://new', 7)"
)


@pytest.fixture(scope="module")
def mysql():
    """The URI of a database of MLflow's in a MySQL that is at hand."""
    server = os.environ.get("MLMIGRATE_TEST_MYSQL") or pytest.skip("MLMIGRATE_TEST_MYSQL names no server")
    uri = f"{server.rstrip('/')}/mlmigrate_estate"
    with asking_mysql(server) as ask:
        ask("drop database if exists mlmigrate_estate")
        ask("create database mlmigrate_estate")
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    subprocess.run(command, check=True, capture_output=True)
    return uri


@pytest.fixture
def small_mysql(mysql):
    """The same with one of each in it."""
    with asking_mysql(mysql) as ask:
        for table in (*PLACES, "tags", "trace_info", "registered_models"):
            ask(f"delete from {table}")
        for statement in one_of_each():
            ask(statement.replace("into tags (key", 'into tags ("key"'))
    return mysql


def rows_of_mysql(uri):
    with asking_mysql(uri) as ask:
        return {table: sorted(map(repr, ask(f'select * from "{table}"'))) for (table,) in ask("show tables")}


@pytest.mark.slow
class TestMySQL:
    def test_there_and_back_it_is_row_for_row_the_same(self, small_mysql):
        before = rows_of_mysql(small_mysql)
        assert list(opened(small_mysql).cells()) == expected(room=True)
        edits = to_s3(opened(small_mysql).cells())
        assert edited(opened(small_mysql), edits) == []
        with asking_mysql(small_mysql) as ask:
            assert ask("select distinct substr(artifact_uri, 1, 14) from runs") == [("s3://bucket/ne",)]
        assert edited(opened(small_mysql), edits) == edits
        louder = [Edit(one.table, one.key, one.column, one.new.upper(), "x") for one in edits]
        assert edited(opened(small_mysql), louder) == louder
        assert edited(opened(small_mysql), [one.undone for one in edits]) == []
        assert rows_of_mysql(small_mysql) == before

    def test_leaving_without_commit_changes_nothing(self, small_mysql):
        before = rows_of_mysql(small_mysql)
        with opened(small_mysql).switching() as switching:
            assert switching.edit(to_s3(switching.cells())) == []
        assert rows_of_mysql(small_mysql) == before

    def test_a_kill_within_a_switch_leaves_nothing(self, small_mysql):
        before = rows_of_mysql(small_mysql)
        with process(KILLED, small_mysql) as child:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        with opened(small_mysql).switching():  # has the rows that the other one had
            pass
        assert rows_of_mysql(small_mysql) == before

    @pytest.mark.parametrize("written", ["update runs set user_id = 'w'", NEW_RUN])
    def test_a_writer_waits_and_then_goes_on_and_a_reader_never_waits(self, small_mysql, written):
        with opened(small_mysql).switching() as switching, process(MYSQL_WRITER, small_mysql, written) as writer:
            assert switching.edit(to_s3(switching.cells())) == []
            time.sleep(1)
            assert writer.poll() is None
            with asking_mysql(small_mysql) as ask:
                assert ask("select count(*) from runs where artifact_uri like 's3:%'") == [(0,)]
            switching.commit()
            assert writer.stdout.readline() == "done\n"
        with asking_mysql(small_mysql) as ask:
            assert ask("select distinct substr(artifact_uri, 1, 5) from runs") == [("s3://",)]

    def test_a_store_that_others_hold_is_said_to_be_busy(self, small_mysql, monkeypatch):
        monkeypatch.setattr(estate_module, "PATIENCE", 0.5)
        with asking_mysql(small_mysql) as ask:
            ask("update runs set user_id = 'held'")
            with pytest.raises(Unavailable, match="others are writing there"), opened(small_mysql).switching():
                pass
            assert len(list(opened(small_mysql).cells())) == len(expected(room=True))
