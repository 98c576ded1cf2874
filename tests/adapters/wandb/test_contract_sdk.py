"""The real SDK, in two versions, against the contract server: it logs and it reads, and finds what it logged."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import wandbsdk
import wandbserver

pytestmark = pytest.mark.slow

LOG = """
import math, pathlib, wandb

wandb.login(verify=True)
pathlib.Path("f.txt").write_text("hello")
with wandb.init(
    project="p", id="r1", name="nice", config={"a": 1, "n": {"b": 2.5}}, tags=["t"], notes="note", group="g",
    job_type="j",
) as run:
    run.define_metric("d/*", step_metric="loss")
    for i in range(10):
        run.log({"loss": i * 0.5, "d/x": i, "nan": math.nan, "inf": -math.inf, "m": i if i % 2 else "odd"})
    print("a line")
    run.summary["best"] = 3
    run.save("f.txt")
    art = wandb.Artifact("data", "dataset", metadata={"k": 1}, description="text")
    art.add_file("f.txt", name="d/f.txt")
    art.add_reference("http://127.0.0.1:1/x", name="ref", checksum=False)
    run.log_artifact(art, aliases=["best"], tags=["one tag"]).wait()
    run.link_artifact(art, "team/p/port", aliases=["prod"])
with wandb.init(project="p", id="r2") as run:
    run.use_artifact("data:best").download("got")
    more = wandb.Artifact("data", "dataset")
    more.add_file("f.txt", name="d/f.txt")
    with more.new_file("new") as file:
        file.write("new")
    run.log_artifact(more).wait()
assert pathlib.Path("got/d/f.txt").read_text() == "hello"
with wandb.init(project="p", id="r1", resume="must") as run:
    assert run.step == 10 or run.starting_step == 10
    run.log({"loss": 99})
sweep = wandb.sweep({"method": "grid", "parameters": {"a": {"values": [1, 2]}}}, project="p", entity="team")
with wandb.init(project="p", id="s1", settings=wandb.Settings(sweep_id=sweep)) as run:
    run.log({"a": 1})
try:
    with wandb.init(project="p", id="bad"):
        raise RuntimeError
except RuntimeError:
    pass
"""

READ = """
import json, wandb

api = wandb.Api()
r1, r2 = api.run("team/p/r1"), api.run("team/p/r2")
art = api.artifact("team/p/data:best")
r1.file("f.txt").download(root="dl")
sweeps = list(api.project("p", "team").sweeps())
told = {
    "viewer": [api.viewer.username, api.default_entity],
    "projects": [one.name for one in api.projects("team")],
    "runs": {one.id: [one.state, one.config] for one in api.runs("team/p", lazy=False, order="+created_at")},
    "filtered": [one.id for one in api.runs("team/p", filters={"$and": [{"state": "failed"}]})],
    "run": [r1.name, r1.tags, r1.notes, r1.group, r1.job_type, r1.state, r1.user.username, r1.lastHistoryStep],
    "created": r1.created_at,
    "summary": {key: r1.summary[key] for key in ("loss", "best", "d/x", "nan", "inf")},
    "scan": sorted(([row["_step"], row["loss"]] for row in r1.scan_history(use_cache=False))),
    "whole": [row for row in r1.scan_history(use_cache=False)][:1],
    "keys": [[row["_step"], row["d/x"]] for row in r1.scan_history(keys=["d/x"], use_cache=False)],
    "pages": [row["_step"] for row in r1.scan_history(page_size=3, use_cache=False)],
    "sampled": len(r1.history(samples=4, pandas=False)),
    "events": len(r1.history(stream="system", pandas=False)),
    "console": [line.content for line in r1.console_logs()],
    "files": {one.name: [one.size, one.md5] for one in r1.files()},
    "downloaded": open("dl/f.txt").read(),
    "logged": [one.name for one in r1.logged_artifacts()],
    "used": [one.name for one in r2.used_artifacts()],
    "artifact": [art.source_name, art.type, art.version, art.aliases, art.metadata, art.description],
    "state": [art.tags, art.state],
    "lineage": [art.logged_by().id, [one.id for one in art.used_by()]],
    "entries": {name: [entry.digest, entry.size, entry.ref] for name, entry in art.manifest.entries.items()},
    "types": [one.name for one in api.artifact_types("team/p")],
    "collections": [[one.name, one.is_sequence()] for one in api.artifact_type("dataset", "team/p").collections()],
    "versions": [one.name for one in api.artifacts("dataset", "team/p/data")],
    "linked": [one.name for one in art.linked_artifacts],
    "portfolio": api.artifact("team/p/port:prod").source_name,
    "sweep": [len(sweeps), sweeps[0].config, [one.id for one in sweeps[0].runs]],
    "reports": [[one.display_name, one.spec] for one in api.reports("team/p")],
}
print("told " + json.dumps(told))
"""

CHANGE = """
import json, wandb

api = wandb.Api()
run = api.run("team/p/r1")
run.config["new"], run.tags, run.notes = 5, ["x", "y"], "other"
run.update()
run.summary["more"] = 1
run.summary.update()
open("g.txt", "w").write("more")
run.upload_file("g.txt")
run.file("f.txt").delete()
art = api.artifact("team/p/data:v0")
art.aliases.append("second")
art.metadata["k"], art.description, art.tags = 2, "changed", ["t1"]
art.save()
api.create_run(project="p", entity="team", run_id="made")
api.run("team/p/made").delete()
api.create_project("empty", "team")

def error(ask):
    try:
        ask()
    except Exception as error:
        return str(error)

print("told " + json.dumps({
    "run": error(lambda: api.run("team/p/nope")),
    "entity": error(lambda: api.run("forbidden/p/r")),
    "deleted": error(lambda: wandb.init(project="p", id="made")),
    "artifact": error(lambda: api.artifact("team/p/data:v9")),
}))
"""

REGISTRY = """
import json, wandb

api = wandb.Api()
api.create_registry(name="models", organization="acme", visibility="organization")
open("m.txt", "w").write("weights")
with wandb.init(project="p", id="r3") as run:
    art = wandb.Artifact("m", "model")
    art.add_file("m.txt")
    run.log_artifact(art).wait()
    run.link_artifact(art, "wandb-registry-models/best", aliases=["prod"])
    run.link_model("m.txt", "old")
    run.log({"table": wandb.Table(columns=["a"], data=[[1]])})
registries = api.registries(organization="acme")
print("told " + json.dumps({
    "registries": [one.name for one in registries],
    "collections": [one.name for one in registries.collections()],
    "versions": [one.name for one in registries.collections().versions()],
}))
api.artifact("team/p/m:v0").linked_artifacts[0].unlink()
"""

SCAN = """
import json, wandb

run = wandb.Api().run("team/p/r1")
print("told " + json.dumps([[row["loss"] for row in run.scan_history(**more)] for more in ({}, {"use_cache": False})]))
"""

EXPORTED = """
import json, pathlib, wandb

run = wandb.Api().run("team/p/r1")
told = {
    "scan": [[row["_step"], row["loss"]] for row in run.scan_history(use_cache=False)],
    "pages": [[row["_step"], row["loss"]] for row in run.scan_history(page_size=3, use_cache=False)],
    "keys": [[row["_step"], row["loss"]] for row in run.scan_history(keys=["loss"], use_cache=False)],
}
try:
    run.download_history_exports("exports", require_complete_history=True)
except Exception as error:
    told["incomplete"] = type(error).__name__
done = run.download_history_exports("exports", require_complete_history=False)
told["exports"] = sorted(path.name for path in pathlib.Path("exports").iterdir())
print("told " + json.dumps(told))
"""


@dataclass
class World:
    """A server that one version of the SDK has logged to."""

    version: str
    server: wandbserver.Server
    folder: Path
    state: dict[str, Any]

    def told(self, script: str, run: Callable[..., wandbsdk.Done] = wandbsdk.ask) -> Any:
        """What a script prints after "told "; one that changes something is not begun twice: `run`."""
        done = run(self.version, script, self.server, self.folder)
        return json.loads(
            next(line for line in done.out.splitlines() if line.startswith("told ")).removeprefix("told ")
        )

    @property
    def run(self) -> dict[str, Any]:
        """The first run, as the server had it after logging."""
        return self.state["runs"]["team/p/r1"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=wandbsdk.VERSIONS)
def world(request, tmp_path_factory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("sdk")
    with wandbserver.running() as server:
        wandbsdk.run(request.param, LOG, server, folder)
        server.report("p", "A report", {"blocks": [{"type": "paragraph"}]})
        yield World(request.param, server, folder, server.state())


@pytest.fixture(scope="module")
def read(world):
    return world.told(READ)


def md5(data: bytes) -> str:
    return b64encode(hashlib.md5(data).digest()).decode()


class TestWhatTheSdkLogs:
    def test_its_run_is_there_whole(self, world):
        plain = ("display", "tags", "notes", "group", "job_type", "state", "exitcode", "complete", "sweep")
        assert [world.run[name] for name in plain] == ["nice", ["t"], "note", "g", "j", "finished", 0, True, None]
        assert world.run["config"]["a"] == 1
        assert world.run["config"]["n"] == {"b": 2.5}
        assert world.run["config"]["_wandb"]["e"]

    def test_its_history_has_a_line_a_step(self, world):
        rows = [json.loads(line) for line in world.run["history"]]
        assert [row["_step"] for row in rows] == list(range(11))
        assert [row["loss"] for row in rows] == [i * 0.5 for i in range(10)] + [99]
        assert "NaN" in world.run["history"][0]
        assert "-Infinity" in world.run["history"][0]

    def test_resuming_goes_on_after_the_last_line(self, world):
        assert world.run["steps"] == list(range(11))
        assert json.loads(world.run["summary"])["loss"] == 99

    def test_a_run_that_raised_has_failed(self, world):
        assert world.state["runs"]["team/p/bad"]["state"] == "failed"
        assert world.state["runs"]["team/p/bad"]["exitcode"] == 1

    def test_its_console_and_files_came(self, world):
        assert any("a line" in line for line in world.run["output"])
        assert world.run["files"]["f.txt"] == {"md5": md5(b"hello"), "size": 5}
        assert {"config.yaml", "output.log", "wandb-metadata.json", "wandb-summary.json"} < set(world.run["files"])

    def test_its_artifacts_are_committed_with_lineage(self, world):
        first, second = (world.state["artifacts"][f"team/p/data:v{n}"] for n in (0, 1))
        assert (first["producer"], first["consumers"], first["links"]) == ("team/p/r1", ["team/p/r2"], ["team/p/port"])
        assert (first["aliases"], second["aliases"]) == (["best"], ["latest"])
        assert (first["metadata"], first["description"], first["tags"]) == ({"k": 1}, "text", ["one tag"])
        assert first["manifest"]["d/f.txt"]["digest"] == md5(b"hello")
        assert world.state["pending"] == {}

    def test_bytes_that_are_there_are_not_put_again(self, world):
        births = {
            name: entry["birthArtifactID"]
            for name, entry in world.state["artifacts"]["team/p/data:v1"]["manifest"].items()
        }
        first, second = (world.state["artifacts"][f"team/p/data:v{n}"]["id"] for n in (0, 1))
        assert births == {"d/f.txt": first, "new": second}


class TestWhatTheSdkReads:
    def test_projects_and_runs(self, read):
        assert read["viewer"] == ["tester", "team"]
        assert read["projects"] == ["p"]
        assert list(read["runs"]) == ["r1", "r2", "s1", "bad"]
        assert read["runs"]["r1"] == ["finished", {"a": 1, "n": {"b": 2.5}}]
        assert read["filtered"] == ["bad"]
        assert read["run"] == ["nice", ["t"], "note", "g", "j", "finished", "tester", 10]

    def test_what_the_server_says_of_time(self, world, read):
        assert read["created"] == world.run["created"]

    def test_the_summary_with_words_for_what_is_no_number(self, read):
        assert read["summary"] == {"loss": 99, "best": 3, "d/x": 9, "nan": "NaN", "inf": "-Infinity"}

    def test_the_whole_history(self, read):
        losses = [[i, i * 0.5] for i in range(10)] + [[10, 99]]
        assert read["scan"] == losses
        assert read["pages"] == list(range(11))
        assert read["keys"] == [[i, i] for i in range(10)]
        assert {name: read["whole"][0][name] for name in ("nan", "inf", "m")} == {
            "nan": "NaN",
            "inf": "-Infinity",
            "m": "odd",
        }

    def test_samples_of_history_and_system_metrics(self, world, read):
        assert read["sampled"] == 4
        assert read["events"] == len(world.run["events"]) > 0

    def test_the_console(self, read):
        assert "a line" in read["console"]

    def test_files(self, world, read):
        there = {name: [file["size"], file["md5"]] for name, file in world.run["files"].items()}
        assert read["files"] == there
        assert read["downloaded"] == "hello"

    def test_artifacts_and_lineage(self, read):
        assert read["artifact"] == ["data:v0", "dataset", "v0", ["best"], {"k": 1}, "text"]
        assert read["state"] == [["one tag"], "COMMITTED"]
        assert (read["logged"], read["used"]) == (["data:v0"], ["data:v0"])
        assert read["lineage"] == ["r1", ["r2"]]
        assert read["entries"]["d/f.txt"] == [md5(b"hello"), 5, None]
        assert read["entries"]["ref"][2] == "http://127.0.0.1:1/x"

    def test_types_collections_and_links(self, read):
        assert read["types"] == ["dataset"]
        assert read["collections"] == [["data", True], ["port", False]]
        assert read["versions"] == ["data:v1", "data:v0"]
        assert (read["linked"], read["portfolio"]) == (["port:v0"], "data:v0")

    def test_sweeps_and_reports(self, read):
        config = {"method": "grid", "parameters": {"a": {"values": [1, 2]}}}
        assert read["sweep"] == [1, config, ["s1"]]
        assert read["reports"] == [["A report", {"blocks": [{"type": "paragraph"}]}]]


class TestAfterwards:
    """In this order: what was read before is changed now."""

    def test_exported_history_is_joined_with_what_is_live(self, world):
        world.server.export("team/p/r1", 4, 3)
        told = world.told(EXPORTED)
        losses = [[i, i * 0.5] for i in range(10)] + [[10, 99]]
        assert (told["scan"], told["pages"], told["keys"]) == (losses, losses, losses)
        assert told["incomplete"] == "IncompleteRunHistoryError"
        assert told["exports"] == [f"team_p_r1_{n}.runhistory.parquet" for n in (0, 1)]

    def test_exports_of_another_server_are_taken_from_the_cache_of_this_one(self, world):
        log = "import wandb\nwith wandb.init(project='p', id='r1') as run:\n    for _ in range(3): run.log({'loss': 7})"
        with wandbserver.running() as other:
            wandbsdk.run(world.version, log, other, world.folder)
            other.export("team/p/r1", 3)
            cached, asked = World(world.version, other, world.folder, {}).told(SCAN)
        assert cached == [0, 0.5, 1]
        assert asked == [7, 7, 7]

    def test_runs_and_artifacts_are_changed_and_deleted(self, world):
        told = world.told(CHANGE, wandbsdk.run)
        state = world.server.state()
        run, artifact = state["runs"]["team/p/r1"], state["artifacts"]["team/p/data:v0"]
        assert (run["config"]["new"], run["tags"], run["notes"]) == (5, ["x", "y"], "other")
        assert json.loads(run["summary"])["more"] == 1
        assert ("g.txt" in run["files"], "f.txt" in run["files"]) == (True, False)
        assert (artifact["metadata"], artifact["description"]) == ({"k": 2}, "changed")
        assert (artifact["aliases"], artifact["tags"]) == (["best", "second"], ["t1"])
        assert state["projects"]["team/p"]["deleted"] == ["made"]
        assert "team/empty" in state["projects"]
        assert "previously created and deleted" in told["deleted"]
        assert told["entity"] is not None
        assert told["run"] is not None
        assert told["artifact"] is not None

    def test_models_are_linked_into_registries(self, world):
        told = world.told(REGISTRY, wandbsdk.run)
        assert told == {"registries": ["models"], "collections": ["best"], "versions": ["best:v0"]}
        collections = world.server.state()["collections"]
        assert collections["acme-org/wandb-registry-models/best"]["members"] == {}
        assert collections["team/model-registry/old"]["members"]["v0"]["aliases"] == ["latest"]
        assert collections["team/p/run-r3-table"]["type"] == "run_table"

    def test_all_that_it_sends_fits_the_schema(self, world):
        """But for texts that it tries on new servers before it falls back to older ones."""
        wrong = {text: errors for text, errors in world.server.operations().items() if errors}
        assert wrong == {}


SLOW_ONCE = """
import pathlib, time

there = pathlib.Path("there")
if not there.exists():
    there.touch(); time.sleep(600)
print("told 1")
"""


def test_an_sdk_that_does_not_end_is_asked_once_more_and_where_it_stood_is_told(tmp_path, monkeypatch):
    there, communicate = tmp_path / "there", subprocess.Popen.communicate
    hangs = iter([True, False, False, True, False])  # each that hangs is waited for once more, when it is aborted

    def impatient(process, **how):
        """Waits until the script hangs, however long that takes, and no longer."""
        if not next(hangs):
            return communicate(process, **how)
        while not there.exists() and process.poll() is None:
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, how["timeout"])

    monkeypatch.setattr(subprocess.Popen, "communicate", impatient)
    with wandbserver.running() as server:
        with pytest.warns(UserWarning, match=r'(?s)no end after \d+ s.*File "<string>", line 6'):
            assert wandbsdk.ask("0.31.0", SLOW_ONCE, server, tmp_path).out == "told 1\n"
        there.unlink()
        with pytest.raises(wandbsdk.HungError):
            wandbsdk.run("0.31.0", SLOW_ONCE, server, tmp_path)
