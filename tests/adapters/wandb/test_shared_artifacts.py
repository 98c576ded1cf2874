"""Runs of one project that logged the same under one name: W&B keeps one version of it, and no run loses its files."""

import base64
import hashlib

import pytest

import wandblogs
from wandbtarget import command, serving

pytestmark = pytest.mark.slow
DATA = b"the same in every run"


@pytest.fixture
def server(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path) as found:
        yield found


@pytest.fixture
def folder(tmp_path):
    """Three runs: each logs its code, which never changed, and a model of its own; as SDKs do without a server."""
    for n in range(3):
        records = [logged(tmp_path, "source-p", "code", n, DATA), logged(tmp_path, f"net-{n}", "model", n, b"%d" % n)]
        row = wandblogs.row(0, 1_600_000_000.25 + n, loss=0.5)
        begun = wandblogs.run(f"r{n}", started=1_600_000_000 + n)
        place = tmp_path / "wandb" / f"offline-run-2020091{n}_122640-r{n}" / f"run-r{n}.wandb"
        place.parent.mkdir(parents=True)
        wandblogs.write(place, [wandblogs.header(), begun, row, *records, wandblogs.exit_()])
    return tmp_path / "wandb"


def logged(tmp_path, name, kind, n, data):
    file = tmp_path / "staging" / f"{name}-{n}"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    digest = hashlib.md5(f"wandb-artifact-manifest-v1\ntrain.py:{md5}\n".encode()).hexdigest()
    entries = {"train.py": (md5, len(data), str(file))}
    return wandblogs.artifact(name, kind, entries, run_id=f"r{n}", digest=digest, aliases=["latest"])


def test_one_makes_it_the_others_use_it_and_all_have_their_files(server, folder, tmp_path):
    source = f"wandb:{folder}"
    code, said = command("copy", source, "wandb:team")
    assert code == 0, said
    made = server.state()["artifacts"]
    shared = made["team/p/source-p:v0"]
    assert [made[f"team/p/net-{n}:v0"]["producer"] for n in range(3)] == [f"team/p/r{n}" for n in range(3)]
    assert "team/p/source-p:v1" not in made
    assert sorted([shared["producer"], *shared["consumers"]]) == ["team/p/r0", "team/p/r1", "team/p/r2"]
    assert command("status", "--losses")[1].count("W&B has it by another run, which made the same") == 2
    code, said = command("verify", source, "wandb:team")
    assert code == 0, said
    before = server.state()
    assert command("copy", source, "wandb:team", "--ledger", tmp_path / "another.ledger")[0] == 0
    assert server.state()["artifacts"] == before["artifacts"]
    code, said = command("export", "wandb:team", tmp_path / "archive")
    assert code == 0, said
    assert command("archive", "checkout", tmp_path / "archive", tmp_path / "tree")[0] == 0
    assert [file.read_bytes() for file in (tmp_path / "tree").rglob("source-p/*/train.py")] == [DATA] * 3
