"""The real `wandb sync` brings what mlmigrate wrote to a server; the server tells what it was given."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wandblogs
import wandbsdk
import wandbserver
from mlmigrate import demo

pytestmark = pytest.mark.slow

OFFLINE = """
import os, pathlib, wandb
config = {"optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9, 0.999]}, "epochs": 3, "dropout": None, "amp": True}
with wandb.init(project="vision", id="maker", name="maker of things", config=config, group="g1", job_type="train",
                tags=["baseline", "größe"], notes="two\\nlines") as run:
    run.define_metric("val/*", step_metric="epoch")
    for step in range(20):
        row = {"loss": 1 / (step + 1), "train": {"acc": step / 20, "n": step}}
        if step % 5 == 0:
            row |= {"val/loss": float("nan") if step == 5 else step / 3, "epoch": step // 5, "note": f"step {step}"}
        run.log(row, step=step * 3)
    print("said on the console")
    run.summary["verdict"] = "good"
    pathlib.Path("weights.bin").write_bytes(bytes(range(256)) * 40)
    run.save("weights.bin", policy="now")
    model = wandb.Artifact("net", type="model", description="the net", metadata={"layers": 3})
    model.add_file("weights.bin", name="model/weights.bin")
    model.add_reference("https://example.com/data.csv", name="there.csv", checksum=False)
    run.log_artifact(model, aliases=["best", "prod"])
"""


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


def mlmigrate(*arguments, env, code=0):
    argv = [sys.executable, "-m", "mlmigrate", *map(str, arguments)]
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stdout


def synced(version, out, server, folder):
    """What docs tell a person to do: one list after another."""
    for turn in sorted(out.glob("sync-*.txt")):
        runs = [Path(line) for line in turn.read_text().splitlines()]
        assert wandbsdk.sync(version, folder, server, *runs).code == 0


@pytest.mark.parametrize("version", wandbsdk.VERSIONS)
def test_an_mlflow_store_is_on_the_server_as_it_was_meant(version, server, tmp_path):
    server.reset()
    env = {**server.env, "WANDB_ENTITY": "team"}
    store = demo.make(tmp_path)
    mlmigrate("copy", f"mlflow:{store}", f"wandb:{tmp_path}/out", env=env)
    logs = {log.name[4:-6]: log for log in (tmp_path / "out").glob("*/*.wandb")}
    synced(version, tmp_path / "out", server, tmp_path / "sdk")
    state = server.state()
    runs = {run["name"]: run for run in state["runs"].values()}
    assert runs.keys() == logs.keys()
    for id_, log in logs.items():
        meant = [{key: value for key, value in row.items() if key != "_runtime"} for row in wandblogs.rows(log)]
        lines = [json.loads(line) for line in runs[id_]["history"]]
        assert [{key: value for key, value in line.items() if key != "_runtime"} for line in lines] == meant, id_
        (told,) = wandblogs.of_kind(log, "run")
        assert (runs[id_]["display"], runs[id_]["notes"], set(runs[id_]["tags"])) == (
            told.display_name,
            told.notes or None,
            set(told.tags),
        )
        assert runs[id_]["config"]["mlmigrate"]["stamp"]
        axes = axes_of(runs[id_]["config"]["_wandb"].get("m", []))
        keys = {key for row in meant for key in row if not key.startswith(("_", "mlflow/"))}
        assert {axes.get(key, axes.get("*")) for key in keys} <= {"mlflow/step"}, (id_, axes)
    assert {run["state"] for run in runs.values()} == {"finished", "failed", "running"}
    assert state["pending"] == {}
    assert state["artifacts"]
    for artifact in state["artifacts"].values():
        assert artifact["producer"]
    told = mlmigrate("verify", f"mlflow:{store}", "wandb:team", env=server.env)
    assert "All 12 runs are equal" in told


def axes_of(metrics):
    """Name or glob -> the key that is its axis, as the config's `_wandb.m` says it."""
    names = [one.get("1") or one.get("2") for one in metrics]
    return {name: names[one["5"] - 1] for name, one in zip(names, metrics, strict=True) if "5" in one}


def axis_of(axes, key):
    """The axis of a column, where a name or a glob of these tells it."""
    globs = [name for name in axes if name.endswith("*") and key.startswith(name[:-1])]
    return axes.get(key) or next((axes[name] for name in globs), None)


def held(state, entity):
    """What the server holds of an entity, but for what is ours or the clock's."""
    runs = {}
    for run in state["runs"].values():
        if run["entity"] != entity or run["job_type"] == "mlmigrate":
            continue
        plain = ("display", "notes", "group", "job_type", "state", "exitcode")
        clocks = ("_runtime", "_timestamp", "_wandb")
        rows = [_row(json.loads(line)) for line in run["history"]]
        runs[run["name"]] = {
            **{name: run[name] for name in plain},
            "tags": sorted(run["tags"]),
            "config": {key: value for key, value in run["config"].items() if key not in ("_wandb", "mlmigrate")},
            "axes": axes_of(run["config"]["_wandb"].get("m", [])),
            "summary": {key: value for key, value in _summary(run).items() if key not in clocks},
            "rows": json.dumps(rows, sort_keys=True),
            "files": {
                name: file["md5"]
                for name, file in run["files"].items()
                if not name.startswith(("wandb-", "config.yaml", "output.log"))
            },
            "events": len(run["events"]),
            "console": [json.loads(line)["content"] for line in run["output"]],
        }
    artifacts = {
        f"{one['collection'].rpartition('/')[2]}:v{one['version']}": {
            **{name: one[name] for name in ("digest", "type", "description", "metadata")},
            "aliases": sorted(one["aliases"]),
            "producer": (one["producer"] or "").rpartition("/")[2],
        }
        for one in state["artifacts"].values()
        if one["collection"].startswith(f"{entity}/") and not one["type"].startswith(("mlmigrate", "mlflow", "wandb-"))
    }
    return runs, artifacts


def _row(row):
    """Nested names joined, as W&B shows them; times as MLflow can hold them."""
    flat = {}
    for key, value in row.items():
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    del flat["_runtime"]
    return flat | {"_timestamp": round(flat["_timestamp"] * 1_000_000) // 1000}


def _summary(run):
    return json.loads(run["summary"]) if isinstance(run["summary"], str) else run["summary"]


@pytest.mark.parametrize("version", wandbsdk.VERSIONS)
def test_an_offline_run_of_the_sdk_is_synced_from_our_copy_as_from_its_own_folder(version, server, tmp_path):
    server.reset()
    sdk = tmp_path / "sdk"
    env = wandbsdk.env(sdk, server)
    where = {"WANDB_DATA_DIR": env["WANDB_DATA_DIR"], "WANDB_CACHE_DIR": env["WANDB_CACHE_DIR"]}
    wandbsdk.run(version, OFFLINE, server, sdk, {"WANDB_MODE": "offline", "WANDB_ENTITY": "team"})
    out = tmp_path / "out"
    # by way of MLflow, so that nothing but what MLflow holds can help
    mlmigrate("copy", f"wandb:{sdk}/wandb", f"mlflow:sqlite:///{tmp_path}/m.db", env=where)
    mlmigrate("copy", f"mlflow:sqlite:///{tmp_path}/m.db", f"wandb:{out}", env={"WANDB_ENTITY": "other"})
    wandbsdk.sync(version, sdk, server)
    synced(version, out, server, sdk)
    state = server.state()
    (runs, artifacts), (found, there) = held(state, "team"), held(state, "other")
    assert runs["maker"]["files"].keys() >= {"weights.bin"}
    assert found["maker"].keys() == runs["maker"].keys()
    for name, what in runs["maker"].items():
        assert (name, found["maker"][name]) == (name, what)
    assert found == runs
    assert there == artifacts
    # straight to the server, too, where nobody but us says what a glob means
    mlmigrate("copy", f"wandb:{sdk}/wandb", "wandb:tester", env={**server.env, **where})
    (straight,) = [run for run in server.state()["runs"].values() if run["entity"] == "tester" and run["group"] == "g1"]
    (row,) = [row for row in map(json.loads, straight["history"]) if row["_step"] == 0]
    axes, meant = axes_of(straight["config"]["_wandb"]["m"]), runs["maker"]["axes"]
    assert not any("*" in name for name in axes)
    assert {key: axes.get(key) for key in row} == {key: axis_of(meant, key) for key in row}


def test_lineage_is_there_when_the_lists_are_synced_in_their_order(server, tmp_path):
    server.reset()
    data = tmp_path / "m.bin"
    data.write_bytes(b"weights")
    entry = {"m": (base64.b64encode(hashlib.md5(b"weights").digest()).decode(), 7, str(data))}
    digest = hashlib.md5(f"wandb-artifact-manifest-v1\nm:{entry['m'][0]}\n".encode()).hexdigest()
    made = wandblogs.artifact("net", "model", entry, run_id="maker", project="p", digest=digest, aliases=["best"])
    read = wandblogs.artifact("net", "model", entry, run_id="reader", project="p", digest=digest)
    read.artifact.user_created = read.artifact.use_after_commit = True
    for id_, record in {"reader": read, "maker": made}.items():
        log = tmp_path / "in" / f"offline-run-20200913_122640-{id_}" / f"run-{id_}.wandb"
        wandblogs.write(log, [wandblogs.header(), wandblogs.run(id_), record, wandblogs.exit_()])
    out = tmp_path / "out"
    mlmigrate("copy", f"wandb:{tmp_path}/in", f"wandb:{out}", env={"WANDB_ENTITY": "team"})
    synced("0.31.0", out, server, tmp_path / "sdk")
    (net,) = [one for name, one in server.state()["artifacts"].items() if "/net:" in name]
    assert net["producer"].endswith("/maker")
    assert [run.rpartition("/")[2] for run in net["consumers"]] == ["reader"]


def test_what_sync_lost_in_silence_is_completed_by_a_copy_to_the_server_and_nothing_is_there_twice(server, tmp_path):
    server.reset()
    store, out = demo.make(tmp_path), tmp_path / "out"
    mlmigrate("copy", f"mlflow:{store}", f"wandb:{out}", env={"WANDB_ENTITY": "team"})
    # the stream of one run that has something to lose; which one were chance if only its first requests failed
    log = max(out.glob("*/*.wandb"), key=lambda log: len(wandblogs.rows(log)))
    (told,) = wandblogs.of_kind(log, "run")
    server.fail(f"/files/team/{told.project}/{told.run_id}/file_stream", status=403, times=1000)
    server.fail("/storage/put/", status=403, times=4)
    synced("0.31.0", out, server, tmp_path / "sdk")  # ends with 0
    server.heal()
    assert server.state()["runs"][f"team/{told.project}/{told.run_id}"]["history"] == []
    ids = server.state()["runs"].keys()
    mlmigrate("verify", f"mlflow:{store}", "wandb:team", env=server.env, code=4)
    mlmigrate("copy", f"mlflow:{store}", "wandb:team", env=server.env)
    assert "All 12 runs are equal" in mlmigrate("verify", f"mlflow:{store}", "wandb:team", env=server.env)
    state = server.state()
    assert state["runs"].keys() == ids
    for log in out.glob("*/*.wandb"):
        (run,) = [run for run in state["runs"].values() if run["name"] == log.name[4:-6]]
        assert len(run["history"]) == len(wandblogs.rows(log))
        assert not run["config"]["mlmigrate"]["stamp"].startswith("unproven:") or run["job_type"] == "mlmigrate"
