"""What goes to W&B and comes back is what it was: from MLflow through W&B into MLflow, and the other way round."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import wandbsdk
import wandbserver
from mlmigrate import demo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# Logged by the real SDK: what a person has in W&B.
LOGGED = """
import os, pathlib, wandb
optimizer = {"name": "adam", "lr": 0.1, "betas": [0.9, 0.999]}
config = {"optimizer": optimizer, "epochs": 3, "dropout": None, "amp": True, "a.b": "dotted"}
where = {"project": "vision", "group": "g1", "job_type": "train", "tags": ["baseline", "größe"], "notes": "two\\nlines"}
with wandb.init(id="maker", name="maker of things", config=config, **where) as run:
    run.define_metric("val/*", step_metric="epoch")
    for step in range(20):
        row = {"loss": 1 / (step + 1), "train": {"acc": step / 20, "n": step}}
        row["_timestamp"] = 1_700_000_000 + step * 0.25
        if step % 5 == 0:
            row |= {"val/loss": float("nan") if step == 5 else step / 3, "epoch": step // 5}
            row |= {"note": f"step {step}", "ok": step > 5}
        if step == 10:
            row["hist"] = wandb.Histogram(np_histogram=([1, 2], [0.0, 0.5, 1.0]))
            row["table"] = wandb.Table(columns=["a", "b"], data=[[1, "x"], [2, "y"]])
        run.log(row, step=step * 3)
    run.summary["best"] = 0.5
    run.summary["verdict"] = "good"
    pathlib.Path("weights.bin").write_bytes(bytes(range(256)) * 40)
    run.save("weights.bin", policy="now")
    model = wandb.Artifact("net", type="model", description="the net", metadata={"layers": 3})
    model.add_file("weights.bin", name="model/weights.bin")
    model.add_reference("https://example.com/data.csv", name="there.csv", checksum=False)
    run.log_artifact(model, aliases=["best", "prod"]).wait()
    data = wandb.Artifact("numbers", type="dataset")
    with data.new_file("n.txt") as file:
        file.write("1 2 3")
    run.log_artifact(data).wait()
with wandb.init(id="reader", name="reader", project="vision", group="g1") as run:
    run.use_artifact("numbers:latest")
    run.use_artifact("net:best")
    run.log({"score": 0.9})
    again = wandb.Artifact("net", type="model", metadata={"layers": 4})
    with again.new_file("model/weights.bin") as file:
        file.write("other")
    run.log_artifact(again, aliases=["candidate"]).wait()
"""


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


@pytest.fixture(autouse=True)
def empty(server):
    server.reset()


def mlmigrate(*arguments, env, cwd, code=0):
    argv = [sys.executable, "-m", "mlmigrate", *map(str, arguments)]
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stdout


def in_database(file):
    """What MLflow's tables say of each run, read by hand; names of ours left out."""
    link = sqlite3.connect(file)
    query = link.execute
    runs = {
        run: {"name": name, "status": status, "start": start, "end": end, "user": user, "stage": stage, "in": place}
        for run, name, status, start, end, user, stage, place in query(
            "select run_uuid, r.name, status, start_time, end_time, user_id, r.lifecycle_stage, e.name from runs r "
            "join experiments e using (experiment_id)"
        )
    }
    for table in ("params", "tags", "metrics"):
        columns = "key, value" if table != "metrics" else "key, value, timestamp, step, is_nan"
        for run, *row in query(f"select run_uuid, {columns} from {table}"):
            if not row[0].startswith("mlmigrate."):
                runs[run].setdefault(table, []).append(tuple(row))
    link.close()
    return {
        run: {name: sorted(what, key=repr) if isinstance(what, list) else what for name, what in held.items()}
        for run, held in runs.items()
    }


@pytest.mark.parametrize("way", ["server", "folder"])
def test_mlflow_to_wandb_and_back_is_equal(way, server, tmp_path):
    store = demo.make(tmp_path)
    there = f"wandb:{server.entity}" if way == "server" else f"wandb:{tmp_path}/offline"
    first, last = tmp_path / "first.db", tmp_path / "last.db"
    mlmigrate("copy", f"mlflow:{store}", f"mlflow:sqlite:///{first}", env=server.env, cwd=tmp_path)
    mlmigrate("copy", f"mlflow:sqlite:///{first}", there, env=server.env, cwd=tmp_path)
    told = mlmigrate("verify", f"mlflow:sqlite:///{first}", there, env=server.env, cwd=tmp_path)
    assert "All 12 runs are equal" in told
    mlmigrate("copy", there, f"mlflow:sqlite:///{last}", env=server.env, cwd=tmp_path)
    assert in_database(last) == in_database(first)
    told = mlmigrate("verify", f"mlflow:sqlite:///{first}", f"mlflow:sqlite:///{last}", env=server.env, cwd=tmp_path)
    assert "All 12 runs are equal" in told


def held(server, entity):
    """What the server holds of an entity's runs and artifacts, but for what it sets itself and what is ours."""
    state = server.state()
    runs = {one["name"]: wanted(one) for one in state["runs"].values() if one["entity"] == entity and not ours(one)}
    artifacts = {
        path.removeprefix(entity): told(one, entity)
        for path, one in state["artifacts"].items()
        if path.startswith(entity + "/") and not one["type"].startswith(("mlmigrate", "mlflow", "wandb-"))
    }
    return runs, artifacts


def ours(run):
    return run["job_type"] == "mlmigrate"


def told(artifact, entity):
    names = ("type", "version", "digest", "description", "metadata", "ttl", "tags")
    by = {"producer": artifact["producer"] and artifact["producer"].removeprefix(entity)}
    by["consumers"] = sorted(path.removeprefix(entity) for path in artifact["consumers"])
    kept = ("digest", "ref", "size")
    entries = {at: {name: entry.get(name) for name in kept} for at, entry in artifact["manifest"].items()}
    return {**{name: artifact[name] for name in names}, **by, "aliases": sorted(artifact["aliases"]), "files": entries}


def wanted(run):
    config = {key: value for key, value in run["config"].items() if key not in ("_wandb", "mlmigrate")}
    plain = {name: run[name] or "" for name in ("display", "notes", "group", "job_type", "tags", "state", "exitcode")}
    summary = json.loads(run["summary"])
    summary = {key: value for key, value in summary.items() if key not in ("_wandb", "_runtime", "_timestamp")}
    unowned = ("wandb-", "config.yaml", "requirements", "artifact/")
    files = {name: file["md5"] for name, file in run["files"].items() if not name.startswith(unowned)}
    rows = [json.loads(line) for line in run["history"]]
    # MLflow's times are milliseconds, cut; W&B shows nested names joined
    rows = [{**flat(row), "_runtime": 0, "_timestamp": round(row["_timestamp"] * 1_000_000) // 1000} for row in rows]
    return {**plain, "config": config, "summary": summary, "history": rows, "files": files}


def test_wandb_to_mlflow_and_back_is_equal(server, tmp_path):
    entity, other = wandbserver.ENTITY, wandbserver.OTHER_ENTITY
    wandbsdk.run("0.31.0", LOGGED, server, tmp_path / "sdk", {"WANDB_ENTITY": entity})
    database = f"mlflow:sqlite:///{tmp_path}/mlflow.db"
    mlmigrate("copy", f"wandb:{entity}", database, env=server.env, cwd=tmp_path)
    told = mlmigrate("verify", f"wandb:{entity}", database, env=server.env, cwd=tmp_path)
    assert "All 2 runs are equal" in told
    mlmigrate("copy", database, f"wandb:{other}", env=server.env, cwd=tmp_path)
    told = mlmigrate("verify", database, f"wandb:{other}", env=server.env, cwd=tmp_path)
    assert "All 2 runs are equal" in told
    (runs, artifacts), (found, there) = held(server, entity), held(server, other)
    assert texts(found) == texts(runs)
    assert there == artifacts


def flat(row):
    """Nested numbers under joined names, as W&B itself shows them."""
    found = {}
    for key, value in row.items():
        nested = isinstance(value, dict) and "_type" not in value
        found |= {f"{key}.{name}": one for name, one in flat(value).items()} if nested else {key: value}
    return found


def texts(runs):
    """With NaN as a text, since it is not itself."""
    return json.loads(json.dumps(runs), parse_constant=str)


def test_the_smoke_test_of_a_real_account_passes_against_the_contract_server(server, tmp_path):
    env = {**os.environ, **server.env, "XDG_STATE_HOME": str(tmp_path), "MLMIGRATE_ENV": sys.prefix}
    done = subprocess.run(
        [ROOT / "scripts" / "smoke-wandb", f"{server.entity}/smoke"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "The round trip closed." in done.stdout
