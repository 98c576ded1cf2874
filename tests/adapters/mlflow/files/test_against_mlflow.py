"""A store that MLflow wrote is read as MLflow's own `migrate-filestore` reads it, table by table.

Where that tool is known to be wrong the client that wrote the store is asked instead.
"""

import json
import math
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.servers import environment

from mlmigrate.adapters.mlflow.objects import KINDS

pytestmark = pytest.mark.slow
FILL = Path(__file__).with_name("fill_store.py")
OBJECTS = ("registered_model", "logged_model", "trace")
TABLES = sorted({table for kind in KINDS if kind.name in OBJECTS for table in kind.tables})
# made by the tool for itself
OWN_IDS = {"input_uuid"}
# what it moves into columns of trace_info; we leave that to the schema that has them
PROMOTED = {"mlflow.traceName", "mlflow.trace.session", "mlflow.trace.tokenUsage", "mlflow.trace.cost"}
# it knows these by other names than the store has them by, and writes 0 and null
MISREAD = {"created_timestamp", "last_updated_timestamp", "value"}
# columns that are made from others
DERIVED = {"trace_name", "experiment_id", "trace_timestamp_ms", "aggregate_value", "is_numeric_value"}


@pytest.fixture(scope="module", params=["current", "3.5.1", "2.22.4"])
def made(request, tmp_path_factory):
    """A store that this version of MLflow wrote, what its client says of it, and the tool's database."""
    place = tmp_path_factory.mktemp("made")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    python = environment(request.param) / "python"
    done = subprocess.run([python, FILL, place / "mlruns"], check=True, capture_output=True, env=env, cwd=place)
    mlflow = Path(sys.executable).with_name("mlflow")
    command = [mlflow, "migrate-filestore", "--source", place / "mlruns", "--target", f"sqlite:///{place}/db"]
    subprocess.run(command, check=True, capture_output=True, env=env | {"MLFLOW_ALLOW_FILE_STORE": "true"})
    return place, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def seen(made, new_store):
    """What we read of it: the rows by table."""
    store = new_store("none")
    store.root = made[0] / "mlruns"
    found = store.look()
    assert (found.losses, found.oddities) == ([], [])
    rows = {}
    for record in found.records:
        for table, some in json.loads(record.body).items():
            rows.setdefault(table, []).extend(some)
    return rows


def database(place, table):
    """The rows of a table in the tool's database; SQLite has no truth values, and JSON no NaN."""
    with sqlite3.connect(place / "db") as connection:
        connection.row_factory = sqlite3.Row
        where = "where destination_type like 'MODEL_%'" if table == "inputs" else ""
        return [dict(row) for row in connection.execute(f"select * from {table} {where}")]


def plain(value):
    if isinstance(value, dict) and value.get("$float") == "NaN":
        return None
    return int(value) if isinstance(value, bool) else value


def bag(rows, columns):
    """Rows as a multiset, of some columns."""
    return Counter(json.dumps({name: plain(row.get(name)) for name in columns}, sort_keys=True) for row in rows)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_the_rows_that_mlflows_own_tool_writes(made, seen, table):
    place, _ = made
    ours = [row for row in seen.get(table, []) if row.get("key") not in PROMOTED]
    theirs = database(place, table)
    columns = set().union(*ours) - (MISREAD if table == "assessments" else set())
    assert bag(ours, columns) == bag(theirs, columns)
    for name in set().union(*theirs) - columns - OWN_IDS - MISREAD - DERIVED:
        assert {row[name] for row in theirs} <= {None, 0, "default"}


def test_assessments_are_what_the_client_says(made, seen):
    _, told = made
    names = set().union(*told)
    assert bag(seen.get("assessments", []), names) == bag(told, names)


def test_the_name_of_a_trace_is_what_the_tool_puts_into_its_column(made, seen):
    place, _ = made
    ours = {row["request_id"]: row["value"] for row in seen["trace_tags"] if row["key"] == "mlflow.traceName"}
    assert ours == {row["request_id"]: row["trace_name"] for row in database(place, "trace_info")}


def test_points_say_of_which_model_they_are_as_the_models_do(made, new_store):
    store = new_store("none")
    store.root = made[0] / "mlruns"
    mine = Counter((p["key"], p["step"], p["value"], p["model"]) for p in store.look().points if p["model"])
    theirs = Counter(
        (row["metric_name"], row["metric_step"], row["metric_value"], row["model_id"])
        for row in database(made[0], "logged_model_metrics")
        if row["dataset_name"] is not None and not math.isnan(row["metric_value"])
    )
    assert mine == theirs
