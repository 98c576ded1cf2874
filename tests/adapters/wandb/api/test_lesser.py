"""Servers that do less: those that take one thing a request, and those that are older than what our SDK speaks to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wandbsdk
import wandbserver
from mlmigrate import demo
from mlmigrate.adapters.memory import Held
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.histories import Where
from mlmigrate.adapters.wandb.api.opened import console_opener
from mlmigrate.adapters.wandb.api.operations import VIEWER
from mlmigrate.adapters.wandb.api.writes import look_at, stamp_all
from mlmigrate.errors import MigrateError
from mlmigrate.testing.samples import make, place_of, samples, series
from wandbtarget import carried, command, essence, use

pytestmark = pytest.mark.slow
SERVERS = {
    "gateway, 400": {"plain": 400},
    "gateway, errors with 200": {"plain": 200},
    "gateway, 403": {"plain": 403},
    "older": {"older": True},
    "older, behind a gateway": {"plain": 422, "older": True},
}


@pytest.fixture(scope="module")
def running() -> Iterator[wandbserver.Server]:
    with wandbserver.running() as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, as a database: what came out of it is compared with another database."""
    folder = tmp_path_factory.mktemp("demo")
    made = demo.make(folder)
    assert (
        command("copy", f"mlflow:{made}", f"mlflow:sqlite:///{folder}/first.db", "--ledger", folder / "ledger")[0] == 0
    )
    return folder / "first.db"


@pytest.fixture
def server(running: wandbserver.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[wandbserver.Server]:
    running.less()
    running.reset()
    use(running, monkeypatch)
    yield running
    running.less()


@pytest.fixture(scope="module")
def able(running: wandbserver.Server, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a server holds that takes everything."""
    with pytest.MonkeyPatch.context() as patch:
        use(running, patch)
        running.less()
        running.reset()
        assert copied(store, tmp_path_factory.mktemp("able"))[0] == 0
    return essence(running.state())


def copied(store: Path, folder: Path) -> tuple[int, str]:
    return command("copy", f"mlflow:sqlite:///{store}", "wandb:team", "--ledger", folder / "there")


def in_database(file: Path) -> list[tuple[Any, ...]]:
    """What MLflow's tables say of each run; names of ours left out."""
    link = sqlite3.connect(file)
    of_runs = "select run_uuid, r.name, status, start_time, end_time, user_id, r.lifecycle_stage, e.name from runs r "
    found = list(link.execute(of_runs + "join experiments e using (experiment_id)"))
    for table, columns in (
        ("params", "key, value"),
        ("tags", "key, value"),
        ("metrics", "key, value, timestamp, step"),
    ):
        found += link.execute(f"select run_uuid, {columns} from {table} where key not like 'mlmigrate.%'")
    link.close()
    return sorted(found, key=repr)


@pytest.mark.parametrize("less", SERVERS.values(), ids=SERVERS)
def test_all_arrives_and_comes_back_equal_and_a_second_copy_does_nothing(less, able, server, store, tmp_path):
    server.less(**less)
    code, said = copied(store, tmp_path)
    assert code == 0, said
    assert essence(server.state()) == able
    code, said = command("verify", f"mlflow:sqlite:///{store}", "wandb:team")
    assert (code, "All 12 runs are equal" in said) == (0, True), said
    last = tmp_path / "last.db"
    code, said = command("copy", "wandb:team", f"mlflow:sqlite:///{last}", "--ledger", tmp_path / "back")
    assert code == 0, said
    assert in_database(last) == in_database(store)
    before = server.state()
    server.forget()
    (tmp_path / "there").unlink()
    assert copied(store, tmp_path)[0] == 0
    assert server.state() == before
    assert {name for _, name in server.requests()} == {"GetTeamEntity", "GetProjects", "Runs"}


@pytest.mark.parametrize("kind", ["UpsertBucket", "CreateRunFiles", "file_stream", "UseArtifact", "RunsWritten"])
@pytest.mark.parametrize("after", [False, True], ids=["before it was done", "after it was done"])
def test_a_run_that_was_half_made_is_not_made_twice(kind, after, server, tmp_path):
    """A request is lost once, with servers that take one thing a request and are old."""
    chosen = [held for held in samples() if held.run.name in ("values", "repeats", "files", "inputs")]
    runs = place_of(chosen)
    server.less(plain=400, older=True)
    server.fail(kind, None if after else 0, after=after, skip=2)
    assert carried(runs, "team", tmp_path).failed == ()
    state = server.state()
    mine = [run for run in state["runs"].values() if run["job_type"] != "mlmigrate"]
    assert sorted(run["name"] for run in mine) == sorted(held.run.id for held in chosen)
    before = essence(state)
    assert carried(runs, "team", tmp_path).copied == 0
    assert essence(server.state()) == before


def test_a_copy_that_broke_off_is_gone_on_with(able, server, store, tmp_path):
    server.less(plain=400, older=True)
    server.fail("CreateRunFiles", 400, times=1000, skip=4)
    code, said = copied(store, tmp_path)
    assert (code, "status 400 on request" in said) == (3, True), said
    server.heal()
    assert copied(store, tmp_path)[0] == 0
    assert essence(server.state()) == able


def test_that_a_server_takes_one_thing_a_request_is_found_out_once(server, tmp_path):
    server.less(plain=400)
    runs = [make(f"run {n}") for n in range(40)]
    held = [Held(run, series(run, {"loss": [(0, 1, 0.5)]})) for run in runs]
    assert carried(place_of(held), "team", tmp_path).failed == ()
    refused = [one["name"] for one in server.log() if one["status"] == 400]
    assert 0 < len(refused) <= 40  # those that were under way together


@pytest.mark.parametrize("plain", [400, 200, 403, 422])
def test_a_gateway_refuses_what_asks_for_several_things(plain, server, tmp_path):
    """Or the others would pass for nothing."""
    server.less(plain=plain)
    client = Client(server.url, server.key)
    for text in ("query Q { viewer { id } serverInfo { features { name } } }", look_at(2), stamp_all(2)):
        with pytest.raises(MigrateError):
            client.graphql(text, {})
    assert client.graphql(VIEWER)["viewer"]["entity"] == "team"


def test_uses_of_artifacts_reach_a_server_that_asks_for_no_more_than_their_id(server, tmp_path):
    (held,) = [held for held in samples() if held.run.name == "inputs"]
    server.less(older=True)
    assert carried(place_of([held]), "team", tmp_path).failed == ()
    (run,) = [run for run in server.state()["runs"].values() if run["job_type"] != "mlmigrate"]
    assert len(run["used"]) == len(held.run.inputs)


LOG = """
import wandb
for name in ("maker", "reader"):
    with wandb.init(project="vision", id=name) as run:
        for step in range(2100):
            run.log({"loss": 1 / (step + 1)})
        print("printed")
        if name == "reader":
            run.use_artifact("data:latest")
        artifact = wandb.Artifact("data", type="dataset")
        with artifact.new_file("x.txt") as file:
            file.write(name)
        run.log_artifact(artifact, aliases=["best"], tags=["a tag"][: TAGS]).wait()
"""


@pytest.mark.parametrize("tags", [0, 1])
def test_what_the_sdk_logs_goes_through_an_older_server(tags, server, tmp_path):
    """The SDK's own way is open there; tags of artifacts it can only send to newer ones."""
    server.less(older=not tags)
    wandbsdk.run("0.31.0", LOG.replace("TAGS", str(tags)), server, tmp_path / "sdk")
    server.less(older=True)
    code, said = command("copy", "wandb:team/vision", "wandb:other", "--ledger", tmp_path / "ledger")
    assert (code, "2 things in 2 runs" in said) == (0, bool(tags)), said  # their tags
    state = server.state()
    assert len(state["runs"]) == 5  # two, their copies, and the one that tells of the experiment
    for name in ("maker", "reader"):
        old, new = state["runs"][f"team/vision/{name}"], state["runs"][f"other/vision/{name}"]
        assert len(new["history"]) == len(old["history"]) == 2100
        assert [path.replace("team/", "other/") for path in old["used"]] == [
            path for path in new["used"] if "mlflow" not in path
        ]
    data = [state["artifacts"][f"other/vision/data:v{n}"] for n in (0, 1)]
    assert [sorted(one["aliases"]) for one in data] == [[], ["best", "latest"]]


def test_console_lines_are_read_from_a_server_without_pages_of_them(server, tmp_path):
    client = Client(server.url, server.key)
    run = Held(made := make("talker"), series(made, {"loss": [(0, 1, 0.5)]}))
    assert carried(place_of([run]), "team", tmp_path).failed == ()
    (there,) = [one for one in server.state()["runs"].values() if one["name"] == made.id]
    lines = {str(n): f"line {n}" for n in range(1500)}
    body = {"files": {"output.log": {"offset": 0, "content": list(lines.values())}}}
    client.stream("team", there["project"], made.id, body)
    server.less(older=True)
    with console_opener(client, Where("team", there["project"], made.id))() as data:
        assert data.read().decode().splitlines() == list(lines.values())
