"""Stores from the wild: to a W&B server and back into a database, verified on the way, counted by raw SQL.

MLMIGRATE_TEST_SIZE above 1 takes all of them.
"""

import json

import pytest

import wandbserver
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.survey import Job
from mlmigrate.verify import verify
from sizes import SIZE
from test_real_stores import DATA, STORES, carried, rows, under_way, unpacked

FEW = ("db-llm-eval-2026", "fs-kenmogne-registry", "fs-mlflow-misc")
NAMES = STORES if SIZE > 1 else [name for name in FEW if name in STORES]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORES, reason="the stores are not at ../shared/data"),
]


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


@pytest.mark.parametrize("name", NAMES)
def test_a_store_goes_to_wandb_and_comes_back_whole(name, server, tmp_path, monkeypatch):
    for variable, value in server.env.items():
        monkeypatch.setenv(variable, value)
    server.reset()
    counts = json.loads((DATA / "counts" / f"{name}.json").read_text())["counts"]
    source, there = unpacked(name, tmp_path), parse(f"wandb:{server.entity}")
    file = tmp_path / "back.db"
    database = parse(f"mlflow:sqlite:///{file}")

    out = carried(source, there, tmp_path)
    assert (out.failed, out.copied) == ((), counts.get("runs", 0))
    assert verify(Job(source, there), Silent()).findings == ()
    runs = [run for run in server.state()["runs"].values() if run["job_type"] != "mlmigrate"]
    assert len(runs) == counts.get("runs", 0)

    back = carried(there, database, tmp_path)
    assert (back.failed, back.copied) == ((), counts.get("runs", 0))
    assert verify(Job(there, database), Silent()).findings == ()
    assert rows(file, "runs") == counts.get("runs", 0)
    assert rows(file, "metrics") == counts.get("metric_points_distinct", counts.get("metric_points", 0))
    assert rows(file, "params") == counts.get("params", 0)
    assert rows(file, "tags", "where key not like 'mlmigrate.%'") == counts.get("tags", 0)
    assert rows(file, "registered_models") == counts.get("registered_models", 0)
    assert carried(source, there, tmp_path).copied == under_way(file, name)
