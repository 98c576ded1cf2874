"""The alias "latest" is where it was, though W&B gives it to whatever version comes last."""

from __future__ import annotations

import base64
import hashlib

import pytest

import wandblogs
import wandbserver
from wandbtarget import command, use

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running():
    with wandbserver.running() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    running.reset()
    use(running, monkeypatch)
    return running


def logs(folder, latest):
    """Two runs that log a version of one artifact each."""
    for id_ in ("first", "second"):
        data = folder / f"{id_}.bin"
        folder.mkdir(exist_ok=True)
        data.write_bytes(id_.encode())
        md5 = base64.b64encode(hashlib.md5(id_.encode()).digest()).decode()
        digest = hashlib.md5(f"wandb-artifact-manifest-v1\nm:{md5}\n".encode()).hexdigest()
        aliases = ["latest"] if id_ == latest else ["other"]
        home = {"run_id": id_, "project": "p", "digest": digest, "aliases": aliases}
        made = wandblogs.artifact("net", "model", {"m": (md5, len(id_), str(data))}, **home)
        log = folder / f"offline-run-20200913_122640-{id_}" / f"run-{id_}.wandb"
        wandblogs.write(log, [wandblogs.header(), wandblogs.run(id_), made, wandblogs.exit_()])
    return f"wandb:{folder}"


def held(server):
    """Who made it -> the aliases of a version, but for its number."""
    found = [one for name, one in server.state()["artifacts"].items() if "/net:" in name]
    return {one["producer"].rpartition("/")[2]: set(one["aliases"]) - {f"v{one['version']}"} for one in found}


@pytest.mark.parametrize("latest", ["first", "second"])
def test_latest_is_the_version_that_was_whichever_came_last(server, tmp_path, latest):
    code, said = command("copy", logs(tmp_path / "in", latest), "wandb:team", "--ledger", tmp_path / "ledger")
    assert code == 0, said
    other = "first" if latest == "second" else "second"
    assert held(server) == {latest: {"latest"}, other: {"other"}}


def test_a_server_that_does_not_give_it_is_told_of(server, tmp_path):
    lost = []
    for latest in ("first", "second"):  # one of the two comes last
        server.reset()
        server.fail("AddAliases", status=403, times=9)
        ledger = tmp_path / f"{latest}.ledger"
        code, said = command("copy", logs(tmp_path / latest, latest), "wandb:team", "--ledger", ledger)
        assert code == 0, said
        lost.append("latest" not in held(server)[latest])
        _, said = command("status", "--losses", ledger)
        assert ("alias 'latest' of the artifact net" in said) == lost[-1]
    assert any(lost)
