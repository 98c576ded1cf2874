"""A copy into W&B that is killed at any request, or loses any answer, is whole after the same command again.

The store is written by hand and what arrived is read from the server's own state: nothing is lost, and no line is there
twice. MLMIGRATE_TEST_SIZE says how many kills there are, MLMIGRATE_TEST_SEED which.
"""

import base64
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import wandbserver
from sizes import SIZE
from test_kill import RUNS, write_store

pytestmark = pytest.mark.slow

KILLS = 6 if SIZE <= 1 else 50
SEED = int(os.environ.get("MLMIGRATE_TEST_SEED", "20261121"))


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A file store, written by hand."""
    return write_store(tmp_path_factory.mktemp("store") / "mlruns")


def start(store, target, ledger, env):
    argv = [
        sys.executable,
        "-m",
        "mlmigrate",
        "copy",
        f"mlflow:{store}",
        target,
        "--ledger",
        ledger,
        "--deleted",
        "-j",
        "1",
    ]
    return subprocess.Popen(
        [*map(str, argv)], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process, code=0):
    told, _ = process.communicate(timeout=120)
    assert process.returncode == code, told
    return told


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def meant():
    """run id -> config values, rows, and files of artifacts, as the store was written."""
    found = {}
    for name, what in RUNS.items():
        rows = {}
        for key, step, at, value in what["points"]:
            rows.setdefault((at, step), {})[key] = value
        lines = [(at / 1000, step, values) for (at, step), values in sorted(rows.items())]
        found[name] = (what["params"]["note"], lines, {path: md5(data) for path, data in what["files"].items()})
    return found


def arrived(server):
    """The same, as the server has it; a run that is there under two ids, or without its stamp, fails."""
    state = server.state()
    found = {}
    for run in state["runs"].values():
        if run["job_type"] == "mlmigrate":
            continue
        ours = run["config"]["mlmigrate"]
        name = ours["origin"].removeprefix("mlflow:")
        assert ours["stamp"], f"{run['name']} is not whole"
        assert name not in found, f"{name} is there twice"
        lines = [json.loads(line) for line in run["history"]]
        assert [line["_step"] for line in lines] == list(range(len(lines)))
        rows = [
            (line["_timestamp"], line["mlflow/step"], {k: v for k, v in line.items() if k in ("acc", "loss")})
            for line in lines
        ]
        found[name] = (run["config"]["note"], rows, files(state, run))
    return found


def files(state, run):
    made = [state["artifacts"][path] for path in run["logged"]]
    return {
        path: entry["digest"]
        for one in made
        if one["type"] in ("mlflow-artifacts", "model")
        for path, entry in one["manifest"].items()
    }


def killed(process, server, after):
    """Kills the command once the server has seen so many requests; whether it was still running."""
    while process.poll() is None and len(server.requests()) < after:
        time.sleep(0.003)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def requests(server, store, tmp_path_factory):
    """How many requests a whole copy takes."""
    server.reset()
    ended(start(store, f"wandb:{server.entity}", tmp_path_factory.mktemp("plain") / "l.sqlite", server.env))
    return len(server.requests())


def test_nothing_happening_all_of_it_is_there(server, store, tmp_path):
    server.reset()
    ended(start(store, f"wandb:{server.entity}", tmp_path / "l.sqlite", server.env))
    assert arrived(server) == meant()


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_at_any_request_the_same_command_makes_it_whole(kill, server, store, requests, tmp_path):
    chance = random.Random(f"{SEED} {kill}")
    server.reset()
    first = start(store, f"wandb:{server.entity}", tmp_path / "l.sqlite", server.env)
    assert killed(first, server, after=chance.randint(1, requests - 1)) or first.returncode == 0
    ledger = tmp_path / ("l.sqlite" if chance.random() < 0.5 else "another.sqlite")
    ended(start(store, f"wandb:{server.entity}", ledger, server.env))
    assert arrived(server) == meant()
