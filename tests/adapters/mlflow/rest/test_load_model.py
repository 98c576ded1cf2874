"""A model that was copied can be loaded and predicts the same, after the server that it came from is gone."""

from __future__ import annotations

import os
import subprocess
import textwrap
import uuid
from pathlib import Path

import pytest

import servers
from mlmigrate.address import Address, parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import verify
from sizes import large

pytestmark = pytest.mark.slow
NAME, ALIAS = "flowers", "champion"

# run in the environment of each version: logs a model, registers it, tells what it predicts
LOG = """
    import json, sys
    import mlflow, numpy as np
    from mlflow import MlflowClient
    from sklearn.linear_model import LogisticRegression

    mlflow.set_tracking_uri(sys.argv[1])
    mlflow.set_experiment("flowers")
    data = np.random.RandomState(7).rand(60, 4)
    model = LogisticRegression().fit(data, (data.sum(axis=1) * 2).astype(int) % 3)
    with mlflow.start_run() as run:
        mlflow.log_param("before", "it")
    with mlflow.start_run() as run:
        args = {"name": "model"} if mlflow.__version__ >= "3" else {"artifact_path": "model"}
        info = mlflow.sklearn.log_model(model, registered_model_name="flowers", **args)
        mlflow.log_metric("acc", 0.5)
        mlflow.set_tag("which", info.model_uri)
    MlflowClient().set_registered_model_alias("flowers", "champion", "1")
    loaded = mlflow.pyfunc.load_model("models:/flowers@champion")
    print(json.dumps({"run": run.info.run_id, "says": [int(x) for x in loaded.predict(data)]}))
"""
LOAD = """
    import json, sys
    import mlflow, numpy as np

    mlflow.set_tracking_uri(sys.argv[1])
    data = np.random.RandomState(7).rand(60, 4)
    loaded = mlflow.pyfunc.load_model("models:/flowers@champion")
    meta = loaded.metadata
    print(json.dumps({"run": meta.run_id, "model": getattr(meta, "model_id", None),
                      "says": [int(x) for x in loaded.predict(data)]}))
"""


def said(version: str, script: str, url: str, folder: Path) -> dict:
    """What a script prints, run in the environment of a version of MLflow."""
    import json

    env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    command = [servers.environment(version) / "python", "-c", textwrap.dedent(script), url]
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False, timeout=300, env=env
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def move(source: Address, target: Address, folder: Path) -> Report:
    ledger = Ledger.open(folder / f"{uuid.uuid4().hex}.sqlite", source, target)
    try:
        return transfer(Job(source, target), ledger, Silent(), workers=2)
    finally:
        ledger.close()


@pytest.fixture
def start(tmp_path):
    """Starts servers that end with the test."""
    running = []

    def started(version: str) -> servers.Server:
        running.append(servers.start(version, tmp_path / f"server{len(running)}"))
        return running[-1]

    yield started
    for one in running:
        one.stop()


@pytest.mark.parametrize(
    ("version", "through"),
    [
        (servers.CURRENT, "directly"),
        pytest.param("2.22.4", "directly", marks=large),
        pytest.param(servers.CURRENT, "through an archive", marks=large),
        pytest.param("2.9.2", "directly", marks=large),
    ],
)
def test_a_registered_model_predicts_the_same_from_the_copy(version, through, start, tmp_path):
    old = start(version)
    before = said(version, LOG, old.url, tmp_path)
    source, new = parse(f"mlflow:{old.url}"), None
    if through == "through an archive":
        archive = parse(f"archive:{tmp_path / 'archive'}")
        assert move(source, archive, tmp_path).failed == ()
        old.stop()
        source = archive
    new = start(servers.CURRENT)
    target = parse(f"mlflow:{new.url}")
    report = move(source, target, tmp_path)
    assert report.failed == ()
    if through == "directly":
        assert verify(Job(source, target), Silent()).findings == ()
        old.stop()
    after = said(servers.CURRENT, LOAD, new.url, tmp_path)
    assert after["says"] == before["says"]
    assert named_here(new, after, before["run"]) == (True, True)


def named_here(server, told: dict, run_before: str) -> tuple[bool, bool]:
    """Whether the MLmodel names the run, and the logged model where there is one, of this server."""
    import sqlite3

    db = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)
    ours = "select run_uuid from tags where key = 'mlmigrate.origin' and value = ?"
    (run,) = db.execute(ours, [f"mlflow:{run_before}"]).fetchone()
    models = {row[0] for row in db.execute("select model_id from logged_models")}
    db.close()
    return told["run"] == run, not models or told["model"] in models
