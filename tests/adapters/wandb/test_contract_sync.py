"""`wandb sync` of offline runs against the contract server, with what it loses, doubles and hides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import wandbsdk
import wandbserver

pytestmark = pytest.mark.slow

OFFLINE = """
import pathlib, wandb

pathlib.Path("f.txt").write_text("hello")
with wandb.init(mode="offline", entity="team", project="p", id="r", config={"a": 1}, name="nice") as run:
    for i in range(5):
        run.log({"loss": i})
    print("a line")
    run.save("f.txt")
    art = wandb.Artifact("data", "dataset")
    art.add_file("f.txt")
    run.log_artifact(art)
"""
# what a log holds after steps that do not increase: only files written by others have them
STEPS = """
import glob, struct, sys
from zlib import crc32
from wandb.proto import wandb_internal_pb2 as pb

file, = glob.glob("wandb/offline-run-*/*.wandb")
data, out, left = open(file, "rb").read(), bytearray(), 0

def records(data):
    at, whole = 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""

def write(out, whole):
    first = True
    while True:
        room = 32768 - len(out) % 32768
        if room < 7:
            out += bytes(room)
            continue
        part, whole = whole[: room - 7], whole[room - 7 :]
        kind = (1 if not whole else 2) if first else (4 if not whole else 3)
        out += struct.pack("<IHB", crc32(bytes([kind]) + part), len(part), kind) + part
        first = False
        if not whole:
            return

out += data[:7]
steps = iter([0, 3, 3, 1, 7])
for raw in records(data):
    record = pb.Record.FromString(raw)
    if record.WhichOneof("record_type") == "history":
        step = next(steps)
        record.history.step.num = step
        for item in record.history.item:
            if item.key == "_step" or list(item.nested_key) == ["_step"]:
                item.value_json = str(step)
        raw = record.SerializeToString()
    write(out, raw)
open(file, "wb").write(out)
"""


@pytest.fixture(scope="module")
def running():
    with wandbserver.running() as server:
        yield server


@pytest.fixture
def server(running):
    running.reset()
    return running


@pytest.fixture(scope="module", params=wandbsdk.VERSIONS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def written(version, running, tmp_path_factory) -> Path:
    """A folder with one offline run, not synced."""
    folder = tmp_path_factory.mktemp("offline")
    wandbsdk.run(version, OFFLINE, running, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy of it; artifacts lie where they were staged."""
    return Path(shutil.copytree(written, tmp_path / "copy", symlinks=True))


def forget(folder: Path) -> None:
    """Takes away the marks by which the SDK knows that it synced."""
    for mark in (folder / "wandb").glob("offline-run-*/*.synced"):
        mark.unlink()


def marked(folder: Path) -> bool:
    return any((folder / "wandb").glob("offline-run-*/*.synced"))


def losses(server, run: str = "team/p/r") -> list[object]:
    return [json.loads(line)["loss"] for line in server.state()["runs"][run]["history"]]


def test_an_offline_run_arrives_whole(version, server, folder):
    assert server.requests() == []
    wandbsdk.sync(version, folder, server)
    state = server.state()
    run = state["runs"]["team/p/r"]
    assert losses(server) == [0, 1, 2, 3, 4]
    assert (run["display"], run["state"], run["config"]["a"]) == ("nice", "finished", 1)
    assert run["files"]["f.txt"]["size"] == 5
    assert any("a line" in line for line in run["output"])
    assert run["logged"] == ["team/p/data:v0"]
    assert marked(folder)
    assert {text: errors for text, errors in server.operations().items() if errors} == {}


def test_syncing_twice_doubles_the_history(version, server, folder):
    server.switch(strict_steps=False)
    for _ in range(2):
        forget(folder)
        wandbsdk.sync(version, folder, server)
    assert losses(server) == [0, 1, 2, 3, 4] * 2


def test_a_server_that_minds_steps_is_not_doubled_but_nobody_is_told(version, server, folder):
    wandbsdk.sync(version, folder, server)
    forget(folder)
    assert wandbsdk.sync(version, folder, server, check=False).code == 0
    assert losses(server) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("match", "lost"),
    [
        ("PUT file", lambda state: state["runs"]["team/p/r"]["files"] == {}),
        ("PUT artifact", lambda state: state["artifacts"] == {}),
        ("CreateArtifact", lambda state: state["artifacts"] == {}),
        ("file_stream", lambda state: state["runs"]["team/p/r"]["history"] == []),
    ],
)
def test_sync_says_that_all_is_well_after_losing_what_was_refused(version, server, folder, match, lost):
    server.fail(match, 403, times=1000)
    done = wandbsdk.sync(version, folder, server, check=False)
    assert lost(server.state())
    assert done.code == 0
    assert "Finished syncing" in done.out + done.err
    assert marked(folder)


def test_a_run_that_was_deleted_is_lost_and_sync_ends_well(version, server, folder):
    made = "import wandb; api = wandb.Api(); api.create_run(run_id='r', project='p', entity='team')"
    script = f"{made}; api.run('team/p/r').delete()"
    wandbsdk.run(version, script, server, folder)
    assert wandbsdk.sync(version, folder, server, check=False).code == 0
    assert server.state()["runs"] == {}
    assert not marked(folder)


def test_steps_that_do_not_increase_are_renumbered_or_sent_as_they_are(version, server, folder):
    server.switch(strict_steps=False)
    wandbsdk.run(version, STEPS, server, folder)
    wandbsdk.sync(version, folder, server)
    sent = {"0.30.0": [0, 3, 3, 1, 7], "0.31.0": [0, 3, 4, 5, 7]}[version]
    assert server.state()["runs"]["team/p/r"]["steps"] == sent
    assert losses(server) == [0, 1, 2, 3, 4]
