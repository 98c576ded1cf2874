"""What `wandb sync` makes of a log that was written here."""

import hashlib
import json

import pyarrow as pa
import pytest

import wandbsdk
import wandbserver
from mlmigrate.adapters.wandb.datalog.state import Entry
from mlmigrate.adapters.wandb.datalog.writer import LogWriter, file_digest
from mlmigrate.adapters.wandb.shape import Block, Other, Version, WandbRun

pytestmark = pytest.mark.slow

ROWS = [
    {"a.b": 1, "train/loss": "NaN", "_step": 0, "_timestamp": 1_600_000_001.5, "_runtime": 1.5, "text": "hi"},
    {"ünï c": 0.1 + 0.2, "a.b": 1e17, "_step": 1, "_timestamp": 1_600_000_002.0, "_runtime": 2, "big": 2**60 + 1},
]


def logged(folder):
    """A run with a bit of everything, in `folder`."""
    home = folder / "wandb" / "offline-run-20200913_122640-abc"
    (home / "files").mkdir(parents=True)
    (home / "files" / "a[1].txt").write_text("hello")
    model = folder / "model.bin"
    model.write_bytes(b"weights")
    entry = Entry("m/model.bin", file_digest(hashlib.md5(b"weights").digest()), 7, str(model))
    run = WandbRun(
        "abc",
        "team",
        "proj",
        "shown",
        tags=("t",),
        host="node",
        started=1_600_000_000_000,
        config={"lr": 0.1, "n": {"x": 1}, "a.b": [1]},
        metrics=({"glob_name": "*", "step_metric": "mlflow/step", "options": {"defined": True}},),
    )
    keys = ["a.b", "train/loss", "ünï c"]
    rows = Block(
        pa.array([0, 1]),
        pa.array([1_600_000_001.5, 1_600_000_002.0]),
        pa.array([1.5, 2.0]),
        keys,
        pa.array([0, 0, 1, 1], pa.int32()),
        pa.array([0, 1, 2, 0], pa.int32()),
        pa.array([1.0, float("nan"), 0.1 + 0.2, 1e17]),
        [Other(0, "text", '"hi"'), Other(1, "big", str(2**60 + 1))],
    )
    events = Block(
        pa.nulls(1, pa.int64()),
        pa.array([1_600_000_010.5]),
        pa.array([10.5]),
        ["cpu"],
        pa.array([0], pa.int32()),
        pa.array([0], pa.int32()),
        pa.array([12.5]),
    )
    with LogWriter(home / "run-abc.wandb") as log:
        log.run(run)
        log.history(rows)
        log.events(events)
        log.console("line 1\nline 2\n")
        log.files(["a[1].txt"])
        log.artifact(Version("net", "model", metadata={"k": 1}, aliases=("best",)), [entry])
        log.use(Version("data", "dataset"), [entry])
        log.summary({"a.b": 2, "_wandb": {"runtime": 77.5}})
        log.exit(1, 77.5)
    return model


@pytest.mark.parametrize("version", wandbsdk.VERSIONS)
def test_wandb_sync_takes_it_whole(version, tmp_path):
    model = logged(tmp_path)
    with wandbserver.running() as server:
        wandbsdk.sync(version, tmp_path, server)
        state = server.state()
    run = state["runs"]["team/proj/abc"]
    assert (run["display"], run["tags"], run["state"], run["exitcode"]) == ("shown", ["t"], "failed", 1)
    assert [json.loads(line, parse_constant=str) for line in run["history"]] == ROWS
    (event,) = map(json.loads, run["events"])
    assert (event["system.cpu"], event["_timestamp"], event["_runtime"]) == (12.5, 1_600_000_010.5, 10.5)
    assert [json.loads(line)["content"] for line in run["output"]] == ["line 1", "line 2"]
    assert {key: value for key, value in run["config"].items() if key != "_wandb"} == {
        "lr": 0.1,
        "n": {"x": 1},
        "a.b": [1],
    }
    (environment,) = run["config"]["_wandb"]["e"].values()
    assert environment["startedAt"] == "2020-09-13T12:26:40Z"
    assert json.loads(run["summary"])["_wandb"]["runtime"] == 77.5
    assert run["files"]["a[1].txt"]["size"] == 5
    assert (run["logged"], run["used"]) == (["team/proj/net:v0"], ["team/proj/data:v0"])
    net = state["artifacts"]["team/proj/net:v0"]
    assert (net["state"], net["metadata"], sorted(net["aliases"]), net["producer"]) == (
        "COMMITTED",
        {"k": 1},
        ["best", "latest"],
        "team/proj/abc",
    )
    assert model.read_bytes() == b"weights"
