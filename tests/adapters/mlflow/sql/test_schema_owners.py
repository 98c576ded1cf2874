"""Every table and column of MLflow's schema has an owner here.

`schema-3.17.toml` lists the tables and columns that somebody has looked at.  When a new MLflow brings
more, these tests fail: decide how each travels (a kind in `objects.KINDS`, rows of their own, or not at
all, with the reason in `schema.LEFT_OUT`), then add them to the list.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from mlmigrate.adapters.mlflow.objects import IDS, KINDS, MARKS, TEXTS, TYPED_IDS
from mlmigrate.adapters.mlflow.sql.schema import HEADS, LEFT_OUT, MODELLED, OWNED, SECRETS, head_columns

LIST = tomllib.loads((Path(__file__).parent / "schema-3.17.toml").read_text())
INPUTS = {"inputs", "input_tags"}  # of runs: they travel as Run.inputs


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(revision, table -> columns) of the schema that the installed MLflow makes."""
    pytest.importorskip("mlflow")
    file = tmp_path_factory.mktemp("schema") / "new.db"
    subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{file}"], check=True, capture_output=True
    )
    with closing(sqlite3.connect(file)) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        # xinfo: the columns that are made of others too
        columns = {name: [row[1] for row in connection.execute(f"PRAGMA table_xinfo('{name}')")] for name in names}
        return revision, {name: found for name, found in columns.items() if not name.startswith("sqlite_")}


def owner(table):
    """Who takes care of a table; None for nobody."""
    if table in MODELLED | INPUTS:
        return "experiments and runs"
    kinds = [kind.name for kind in KINDS if table in kind.tables]
    if kinds:
        return ", ".join(kinds)
    return LEFT_OUT.get(table, LIST["rows"].get(table))


def test_every_table_has_an_owner(installed):
    revision, tables = installed
    nobodys = sorted(table for table in tables if owner(table) is None)
    assert nobodys == [], f"revision {revision} has tables that nobody looked at: {', '.join(nobodys)}"


def test_every_column_was_looked_at(installed):
    revision, tables = installed
    known = LIST["columns"]
    new = [f"{table}.{one}" for table, columns in tables.items() for one in columns if one not in known.get(table, ())]
    assert new == [], f"revision {revision} has columns that nobody looked at: {', '.join(sorted(new))}"


def test_the_schema_that_we_make_is_the_one_that_was_looked_at(installed):
    revision, tables = installed
    if revision == HEADS[0]:
        made = {table: set(columns) for table, columns in head_columns().items()}
        derived = {table: set(columns) for table, columns in LIST["derived"].items()}
        assert made == {table: set(columns) - derived.get(table, set()) for table, columns in tables.items()}
    assert revision in HEADS, f"revision {revision} is new: look at it, and at what we write into"


def test_what_is_told_of_columns_is_true_of_the_schema():
    known = LIST["columns"]
    told = [*IDS, *TEXTS, *(f"{table}.{column}" for table, (column, _) in SECRETS.items())]
    told += [f"{table}.{column}" for table, column in MARKS.items()]
    told += [f"{table}.{column}" for table, pairs in TYPED_IDS.items() for pair in pairs for column in pair]
    assert [one for one in told if one.partition(".")[2] not in known.get(one.partition(".")[0], ())] == []
    for kind in KINDS:
        for child in kind.children:
            if child.table in known:
                assert {here for here, _ in child.keys} <= set(known[child.table])
                assert {there for _, there in child.keys} <= set(known[kind.table])


def test_ids_of_runs_experiments_models_and_traces_are_told_as_such():
    """A column that is called like an id is named in `objects`, or here with the reason why it needs no rewriting."""
    alike = {"run_id", "source_run_id", "model_id", "trace_id", "request_id", "run_uuid"}
    columns = {f"{table}.{one}" for table in OWNED for one in LIST["columns"].get(table, ()) if one in alike}
    assert columns - IDS.keys() == set(LIST["kept"]["columns"])
