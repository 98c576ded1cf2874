"""A copy into W&B that is killed at any request is whole after the same command again.

A store written by hand, and what the real SDK has logged to another W&B server; what arrived is read from the server's
own state: nothing is lost, and no line is there twice. MLMIGRATE_TEST_SIZE says how many kills there are,
MLMIGRATE_TEST_SEED which.
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

import wandbsdk
import wandbserver
from sizes import SIZE
from test_kill import RUNS, write_store

pytestmark = pytest.mark.slow

KILLS = 6 if SIZE <= 1 else 50  # half of them between two servers
SEED = int(os.environ.get("MLMIGRATE_TEST_SEED", "20261121"))


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A file store, written by hand."""
    return f"mlflow:{write_store(tmp_path_factory.mktemp('store') / 'mlruns')}"


def start(source, target, ledger, env):
    argv = [sys.executable, "-m", "mlmigrate", "copy", source, target, "--ledger", ledger, "--deleted", "-j", "1"]
    return subprocess.Popen(
        [*map(str, argv)], env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process, code=0):
    told, _ = process.communicate(timeout=300)
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


LOGGED = """
import pathlib, wandb

reader = wandb.init(project="p", id="reader", reinit="create_new")
for n in range(6):
    with wandb.init(project="p", id=f"maker{n}", reinit="create_new") as run:
        run.log({"loss": n})
        pathlib.Path("w.txt").write_text(f"weights {n}")
        made = wandb.Artifact("net", "model")
        made.add_file("w.txt")
        run.log_artifact(made, aliases=[f"of {n}"]).wait()
reader.use_artifact("net:of 2")
reader.finish()
best = wandb.Api().artifact("team/p/net:of 1")
best.aliases.append("latest")
best.save()
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another server, and what the SDK logged to it."""
    with wandbserver.running() as other:
        wandbsdk.run("0.31.0", LOGGED, other, tmp_path_factory.mktemp("sdk"), {"WANDB_ENTITY": "team"})
        yield other


def both(other, server):
    """The environment of a command from one server to another."""
    sides = {"SOURCE": other, "TARGET": server}
    return {f"{side}_{name}": value for side, one in sides.items() for name, value in one.env.items()}


def lineage(server):
    """Of each version its number, its aliases, its producer and its consumers; and the lines of each run, counted."""
    state = server.state()
    runs = {
        name: (len(run["history"]), bool(run["config"]["mlmigrate"]["stamp"])) for name, run in state["runs"].items()
    }
    found = {}
    for one in state["artifacts"].values():
        if one["collection"] == "team/p/net":
            (path,) = one["manifest"]
            data = server.blob(one["manifest"][path]["digest"]).decode()
            assert data not in found
            aliases = {*one["aliases"]} - {f"v{one['version']}"}
            found[data] = (one["version"], aliases, one["producer"], one["consumers"])
    return found, {name: told for name, told in runs.items() if name.startswith(("team/p/maker", "team/p/reader"))}


LINEAGE = (
    {
        f"weights {n}": (
            n,
            {f"of {n}", *(["latest"] if n == 1 else [])},
            f"team/p/maker{n}",
            ["team/p/reader"] if n == 2 else [],
        )
        for n in range(6)
    },
    {**{f"team/p/maker{n}": (1, True) for n in range(6)}, "team/p/reader": (0, True)},
)


@pytest.fixture(scope="module")
def requests_between(other, server, tmp_path_factory):
    """How many requests a whole copy from one to the other takes."""
    server.reset()
    ledger = tmp_path_factory.mktemp("between") / "l.sqlite"
    ended(start("wandb:team", "wandb:team", ledger, both(other, server)))
    assert lineage(server) == LINEAGE
    return len(server.requests())


@pytest.mark.parametrize("kill", range(KILLS // 2))
def test_who_made_and_read_what_and_what_is_the_latest(kill, other, server, requests_between, tmp_path):
    """Artifacts that many runs make versions of, and one that reads them began before them all."""
    chance = random.Random(f"{SEED} lineage {kill}")
    server.reset()
    late = max(1, requests_between - 1 - chance.randint(0, 12))  # where what waits for the end is done
    after = late if kill % 2 else chance.randint(1, requests_between - 1)
    first = start("wandb:team", "wandb:team", tmp_path / "l.sqlite", both(other, server))
    assert killed(first, server, after) or first.returncode == 0
    ledger = tmp_path / ("l.sqlite" if chance.random() < 0.5 else "another.sqlite")
    ended(start("wandb:team", "wandb:team", ledger, both(other, server)))
    assert lineage(server) == LINEAGE
