"""Tables that the real SDK logged: wherever their run is written, W&B finds them by the ids that its rows tell."""

import json
import re

import pytest

import wandbsdk
import wandbserver
import wandbtarget
from wandbtarget import command

pytestmark = pytest.mark.slow
SDK = "0.31.0"
LOG = """
import wandb

with wandb.init(project="p", id="r") as run:
    for n in range(2):
        run.log({"t": wandb.Table(columns=["a"], data=[[n]]), "same": wandb.Table(columns=["b"], data=[["x"]])})
"""
_CLIENT, _SEQUENCE = re.compile(r"wandb-client-artifact://(\w+)/"), re.compile(r"wandb-client-artifact://(\w+):latest/")


@pytest.fixture
def servers(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with wandbserver.running() as one, wandbserver.running() as other:
        wandbtarget.use(other, monkeypatch)
        monkeypatch.setenv("SOURCE_WANDB_BASE_URL", one.url)
        for name in ("DATA", "CACHE"):
            monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "sdk" / name.lower()))
        yield one, other


def shown(state, run):
    """What the run's rows and summary name: client id -> version, and client ids of collections -> collection."""
    text = json.dumps([state["runs"][run]["history"], state["runs"][run]["summary"]])
    clients, sequences = set(_CLIENT.findall(text)), set(_SEQUENCE.findall(text))
    return (
        {client: state["clients"].get(client) for client in clients},
        {client: state["sequences"].get(client) for client in sequences},
    )


@pytest.mark.parametrize(("mode", "by_mlflow"), [("online", False), ("offline", False), ("online", True)])
def test_rows_name_the_tables_of_their_own_server(servers, tmp_path, mode, by_mlflow):
    one, other = servers
    wandbsdk.run(SDK, LOG, one, tmp_path / "sdk", more={"WANDB_MODE": mode})
    source = "wandb:team/p" if mode == "online" else f"wandb:{tmp_path / 'sdk'}"
    if by_mlflow:
        between = f"mlflow:sqlite:///{tmp_path / 'm.db'}"
        assert command("copy", source, between, "--artifacts-to", tmp_path / "files")[0] == 0
        code, said = command("copy", between, "wandb:team/q", "--artifacts-at", tmp_path / "files")
    else:
        code, said = command("copy", source, "wandb:team/q")
    assert code == 0, said
    state = other.state()
    clients, sequences = shown(state, "team/q/r")
    assert (len(clients), len(sequences)) == (4, 4)
    assert sorted(clients.values()) == ["team/q/run-r-same:v0"] * 2 + ["team/q/run-r-t:v0", "team/q/run-r-t:v1"]
    assert sorted(set(sequences.values())) == ["team/q/run-r-same", "team/q/run-r-t"]
    assert command("copy", source, "wandb:team/again")[0] == 0
    lost = command("status", "--losses")[1]
    assert lost.count("the id that they name it by is another version's") == 3
    assert shown(other.state(), "team/again/r") == (clients, sequences)


def test_a_folder_that_is_synced_names_its_tables(servers, tmp_path):
    one, other = servers
    wandbsdk.run(SDK, LOG, one, tmp_path / "sdk")
    assert command("copy", "wandb:team/p", f"wandb:{tmp_path / 'offline'}")[0] == 0
    wandbsdk.sync(SDK, tmp_path / "there", other, *(tmp_path / "offline").glob("*run-*"))
    state = other.state()
    (run,) = [path for path in state["runs"] if path.endswith("/r")]
    clients, sequences = shown(state, run)
    assert sorted(clients.values()) == ["team/p/run-r-same:v0"] * 2 + ["team/p/run-r-t:v0", "team/p/run-r-t:v1"]
    assert sorted(set(sequences.values())) == ["team/p/run-r-same", "team/p/run-r-t"]
