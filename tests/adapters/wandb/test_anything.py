"""Runs that hold whatever a log may hold go everywhere, and each place is verified against the one before."""

import pytest

import wandbanything
import wandbserver
from sizes import SEED, SIZE
from wandbtarget import command, use

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


@pytest.mark.parametrize("seed", range(SEED, SEED + SIZE**5))
def test_runs_of_any_kind_are_equal_wherever_they_went(server, tmp_path, monkeypatch, seed):
    server.reset()
    use(server, monkeypatch)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    logs = f"wandb:{wandbanything.folder(tmp_path / 'in', seed, 40)}"
    first, second = (f"mlflow:sqlite:///{tmp_path}/{name}.db" for name in ("first", "second"))
    archive = str(tmp_path / "archive")
    ways = [
        (logs, "wandb:team"),
        (logs, first),
        ("wandb:team", second),
        (second, f"wandb:{tmp_path}/again"),
        (second, "wandb:other"),
        ("wandb:other", archive),
        (archive, f"wandb:{tmp_path}/out"),
    ]
    for number, (source, target) in enumerate(ways):
        code, said = command("copy", source, target, "--ledger", tmp_path / f"{number}.ledger")
        assert code == 0, (seed, source, target, said)
        code, said = command("verify", source, target)
        assert code == 0, (seed, source, target, said)
        assert "All 40 runs are equal" in said
