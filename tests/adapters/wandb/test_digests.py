"""Artifacts that the real SDK made with another digest than MD5: proven by it, from a server and from a folder."""

import base64
import hashlib
import json

import pytest

import wandbsdk
from mlmigrate.adapters.wandb import digests
from wandbtarget import command, serving

pytestmark = pytest.mark.slow
SDK = "0.31.0"  # the first that makes them
MAKE = """
import os, wandb

offline = os.environ.get("WANDB_MODE") == "offline"
with wandb.init(project="p", id="maker") as run:
    made = wandb.Artifact("net", "model", digest_algorithm="XXH128")
    with made.new_file("a/w.bin", "wb") as file:
        file.write(b"weights")
    made.add_reference("https://example.com/x", "ref", checksum=False)
    logged = run.log_artifact(made)
    offline or logged.wait()
if not offline:
    with wandb.init(project="p", id="reader") as run:
        run.use_artifact("net:latest")
"""


def base64_of_md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@pytest.fixture
def server(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path) as found:
        yield found


def test_from_a_server_they_arrive_with_their_lineage_and_harmed_ones_do_not(server, tmp_path):
    wandbsdk.run(SDK, MAKE, server, tmp_path / "sdk")
    was = server.state()["artifacts"]["team/p/net:v0"]
    assert was["manifest"]["a/w.bin"]["extra"] == {"alg": "XXH128"}
    assert was["manifest"]["a/w.bin"]["digest"] != base64_of_md5(b"weights")
    assert command("copy", "wandb:team/p", "wandb:team/q")[0] == 0
    now = server.state()["artifacts"]["team/q/net:v0"]
    assert now["manifest"]["a/w.bin"]["digest"] == base64_of_md5(b"weights")
    assert server.blob(base64_of_md5(b"weights")) == b"weights"
    assert (now["producer"], now["consumers"]) == ("team/q/maker", ["team/q/reader"])
    assert command("verify", "wandb:team/p", "wandb:team/q")[0] == 0
    server.harm(was["manifest"]["a/w.bin"]["digest"], b"weighty")
    code, said = command("copy", "wandb:team/p", "wandb:team/r")
    assert (code, "its XXH128 differs" in said) == (3, True), said
    assert "team/r/net:v0" not in server.state()["artifacts"]


def test_from_a_folder_their_bytes_are_found(server, tmp_path, monkeypatch):
    wandbsdk.run(SDK, MAKE, server, tmp_path / "sdk", more={"WANDB_MODE": "offline"})
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "sdk" / "data"))
    code, said = command("copy", f"wandb:{tmp_path / 'sdk'}", "wandb:team/q")
    assert code == 0, said
    found = server.state()["artifacts"]["team/q/net:v0"]
    assert found["manifest"]["a/w.bin"]["digest"] == base64_of_md5(b"weights")
    assert json.dumps(found["manifest"]["ref"]).count("https://example.com/x") == 2


def test_the_digest_of_nothing_is_that_of_the_sdk(server, tmp_path):
    tell = "import wandb; [print(wandb.Artifact('n', 't', digest_algorithm=by).digest) for by in ('MD5', 'XXH128')]"
    told = wandbsdk.ask(SDK, tell, server, tmp_path / "sdk").out.split()
    assert set(told) == digests.empty()
