"""The alias "latest" is where it was, though W&B gives it to whatever version comes last."""

from __future__ import annotations

import base64
import hashlib

import pytest

import wandblogs
from wandbtarget import command

pytestmark = pytest.mark.slow


def logs(folder, latest):
    """A run that logs two versions of one artifact, one after the other."""
    made = []
    for word in ("first", "second"):
        data = folder / f"{word}.bin"
        folder.mkdir(exist_ok=True)
        data.write_bytes(word.encode())
        md5 = base64.b64encode(hashlib.md5(word.encode()).digest()).decode()
        digest = hashlib.md5(f"wandb-artifact-manifest-v1\nm:{md5}\n".encode()).hexdigest()
        aliases = ["latest", word] if word == latest else [word]
        home = {"run_id": "maker", "project": "p", "digest": digest, "aliases": aliases}
        made.append(wandblogs.artifact("net", "model", {"m": (md5, len(word), str(data))}, **home))
    log = folder / "offline-run-20200913_122640-maker" / "run-maker.wandb"
    wandblogs.write(log, [wandblogs.header(), wandblogs.run("maker"), *made, wandblogs.exit_()])
    return f"wandb:{folder}"


def aliases_of(server):
    """Those of each version, in the order that they were made in."""
    found = [one for name, one in server.state()["artifacts"].items() if "/net:" in name]
    return [sorted({*one["aliases"]} - {f"v{one['version']}"}) for one in sorted(found, key=lambda one: one["version"])]


@pytest.mark.parametrize("latest", ["first", "second"])
def test_latest_is_the_version_that_was_whichever_came_last(server, tmp_path, latest):
    code, said = command("copy", logs(tmp_path / "in", latest), "wandb:team", "--ledger", tmp_path / "ledger")
    assert code == 0, said
    assert aliases_of(server) == [
        sorted({word, *(["latest"] if word == latest else [])}) for word in ("first", "second")
    ]


def test_a_server_that_does_not_give_it_is_told_of(server, tmp_path):
    server.fail("AddAliases", status=403, times=9)
    code, said = command("copy", logs(tmp_path / "in", "first"), "wandb:team", "--ledger", tmp_path / "ledger")
    assert code == 0, said
    assert aliases_of(server) == [["first"], ["latest", "second"]]
    _, said = command("status", "--losses", tmp_path / "ledger")
    assert "alias 'latest' of the artifact net" in said
