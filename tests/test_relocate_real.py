"""A real server, a real S3, and training that never pauses: nothing is lost, and all of it can be taken back."""

import hashlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

import s3server
import servers
from sizes import SIZE

pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow

KILLS = 2 if SIZE <= 1 else 25 * SIZE
# logs runs until it is told to stop; each file it was told is written goes to stdout
TRAINING = """
import hashlib, os, sys, time, pathlib
import mlflow
url, stop = sys.argv[1:]
client = mlflow.MlflowClient(url)
experiment = client.get_experiment_by_name("trained").experiment_id
number = 0
while not os.path.exists(stop):
    run = client.create_run(experiment).info.run_id
    for step in range(3):
        text = f"{number} {step} " * 50
        client.log_text(run, text, f"step {step}/out.txt")
        print(run, f"step {step}/out.txt", hashlib.sha256(text.encode()).hexdigest(), flush=True)
        client.log_metric(run, "loss", 1 / (step + 1), step=step)
    client.set_terminated(run)
    number += 1
"""


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3server.running(tmp_path_factory.mktemp("s3")) as running:
        yield running


def relocate(*arguments, env, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "mlmigrate", "relocate", *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{arguments} => {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def dump(database):
    with closing(sqlite3.connect(database)) as db:
        return list(db.iterdump())


def uris(database):
    with closing(sqlite3.connect(database)) as db:
        return dict(db.execute("select run_uuid, artifact_uri from runs"))


def environment(s3, tmp_path):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLMIGRATE_"))}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    return {**own, **quiet, **s3.env, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}


def downloaded(url, wanted, folder, env):
    """The sha256 of each file, through MlflowClient of a server, in a process that has the keys of S3."""
    script = (
        "import sys, hashlib, pathlib, mlflow\nclient = mlflow.MlflowClient(sys.argv[1])\n"
        "for line in sys.stdin:\n    run, path = line.rstrip().split(' ', 1)\n"
        "    data = pathlib.Path(client.download_artifacts(run, path, sys.argv[2])).read_bytes()\n"
        "    print(run, path, hashlib.sha256(data).hexdigest())\n"
    )
    folder.mkdir(exist_ok=True)
    lines = "".join(f"{run} {path}\n" for run, path in wanted)
    done = subprocess.run(
        [sys.executable, "-c", script, url, str(folder)],
        input=lines,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return told(done.stdout)


def shown(url, wanted):
    """The sha256 of each file as the pages of the server ask for it."""
    found = {}
    for run, path in wanted:
        query = urllib.parse.urlencode({"run_uuid": run, "path": path})
        with urllib.request.urlopen(f"{url}/get-artifact?{query}") as answer:
            found[run, path] = hashlib.sha256(answer.read()).hexdigest()
    return found


def told(text):
    found = {}
    for line in text.splitlines():
        if line_of := re.fullmatch(r"([0-9a-f]{32}) (.+) ([0-9a-f]{64})", line):  # MLflow prints lines of its own
            found[line_of[1], line_of[2]] = line_of[3]
    return found


def test_training_goes_on_and_nothing_is_lost(s3, tmp_path, monkeypatch):
    env = environment(s3, tmp_path)
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)  # the server that a moved store has needs them
    monkeypatch.setattr(servers, "_env", lambda bin_: {**env, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"})
    server = servers.start(servers.CURRENT, tmp_path / "server", artifacts=False)
    stop = tmp_path / "stop"
    try:
        import mlflow

        mlflow.MlflowClient(server.url).create_experiment("trained")
        with (tmp_path / "told").open("w") as out, (tmp_path / "errors").open("w") as errors:
            training = subprocess.Popen(
                [sys.executable, "-c", TRAINING, server.url, str(stop)], env=env, stdout=out, stderr=errors
            )
            until = time.monotonic() + 240
            while len((tmp_path / "told").read_text().splitlines()) < 12 and time.monotonic() < until:
                time.sleep(0.2)
            to = f"s3://{s3.bucket()}/mlflow"
            store = f"mlflow:sqlite:///{server.database}"
            lines = relocate(store, "--to", to, env=env)
            time.sleep(1)
            assert training.poll() is None, (tmp_path / "errors").read_text()
            stop.touch()
            assert training.wait(240) == 0, (tmp_path / "errors").read_text()
        relocate(store, "--to", to, "--sweep", "--check=all", env=env)
        written = told((tmp_path / "told").read_text())
        assert len(written) >= 12
        assert "switched" in lines
        assert {uri[: len(to)] for uri in uris(server.database).values()} == {to}
        assert downloaded(server.url, written, tmp_path / "down", env) == written
        assert shown(server.url, list(written)[:20]) == dict(list(written.items())[:20])
    finally:
        stop.touch()
        server.stop()


@pytest.fixture
def store(tmp_path):
    """A store of 40 runs with files of all sizes, made by MLflow, and what is in them."""
    script = """
import sys, mlflow, os, random, hashlib, tempfile, pathlib
root = sys.argv[1]
die = random.Random(7)
mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
client = mlflow.MlflowClient()
experiment = client.create_experiment("one", artifact_location=f"{root}/old/1")
other = client.create_experiment("two", artifact_location=f"file://{root}/old/2")
for number in range(40):
    run = client.create_run(other if number % 4 == 0 else experiment).info.run_id
    for name in ("a.bin", "deep/er/b é.bin", "c [1].bin"):
        data = die.randbytes(die.choice((0, 1, 5000, 300_000)))
        folder = pathlib.Path(f"{root}/old/{2 if number % 4 == 0 else 1}/{run}/artifacts", name).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / pathlib.Path(name).name).write_bytes(data)
        print(run, name, hashlib.sha256(data).hexdigest())
    client.set_terminated(run)
client.create_registered_model("m")
client.create_model_version("m", f"{root}/old/1/{run}/artifacts", run)
"""
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    return told(done.stdout)


def objects(s3, bucket, prefix):
    """What lies in the bucket, by boto3: key -> sha256."""
    client = s3.client()
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for one in page.get("Contents", ()):
            data = client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
            found[one["Key"]] = hashlib.sha256(data).hexdigest()
    return found


def expected(store, database, to):
    with closing(sqlite3.connect(database)) as db:
        experiments = dict(db.execute("select run_uuid, experiment_id from runs"))
    return {f"{to}/{experiments[run]}/{run}/artifacts/{path}": digest for (run, path), digest in store.items()}


def test_every_uri_and_every_byte_is_moved_and_undo_is_row_for_row(s3, tmp_path, store):
    env, database = environment(s3, tmp_path), tmp_path / "mlflow.db"
    before, bucket = dump(database), s3.bucket()
    place = f"mlflow:sqlite:///{database}"
    relocate(place, "--to", f"s3://{bucket}/new", "--check=all", env=env, code=10)  # nothing was moved yet
    relocate(place, "--to", f"s3://{bucket}/new", env=env)
    assert objects(s3, bucket, "new/") == expected(store, database, "new")
    relocate(place, "--to", f"s3://{bucket}/new", "--check=all", env=env)
    text = "\n".join(dump(database))
    assert f"{tmp_path}/old" not in text
    relocate(place, "--to", f"s3://{bucket}/new", "--undo", env=env)
    assert dump(database) == before


def test_between_buckets_no_byte_comes_through_here(s3, tmp_path, store):
    env, database = environment(s3, tmp_path), tmp_path / "mlflow.db"
    first, second = s3.bucket(), s3.bucket()
    place = f"mlflow:sqlite:///{database}"
    relocate(place, "--to", f"s3://{first}/a", env=env)
    out = relocate(place, "--to", f"s3://{second}/b", "--json", "--no-progress", env=env)
    assert '"bytes_sent":0' in out
    assert objects(s3, second, "b/") == expected(store, database, "b")
    relocate(place, "--to", tmp_path / "disk", env=env)
    found = {
        f"disk/{one.relative_to(tmp_path / 'disk').as_posix()}": hashlib.sha256(one.read_bytes()).hexdigest()
        for one in (tmp_path / "disk").rglob("*")
        if one.is_file()
    }
    assert found == expected(store, database, "disk")


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment_the_same_command_ends_equal(s3, tmp_path, store, number, seed):
    env, database = environment(s3, tmp_path), tmp_path / "mlflow.db"
    before, bucket = dump(database), s3.bucket()
    die = random.Random(f"{seed} {number}")
    command = [sys.executable, "-m", "mlmigrate", "relocate", f"mlflow:sqlite:///{database}"]
    command += ["--to", f"s3://{bucket}/new", "--no-progress"]
    for _ in range(3):
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _await(process, database, die)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    relocate(*command[4:], env=env)
    assert objects(s3, bucket, "new/") == expected(store, database, "new")
    assert f"{tmp_path}/old" not in "\n".join(dump(database))
    relocate(*command[4:], "--undo", env=env)
    assert dump(database) == before


def _await(process, database: Path, die):
    """Until a random moment of its work: after it said that it looks, or that it switches."""
    assert process.stderr is not None
    wanted = die.choice((b"Looking", b"Looking", b"Switching"))
    while process.poll() is None:
        line = process.stderr.readline()
        if not line or line.startswith(wanted):
            break
    time.sleep(die.random() * (0.6 if wanted == b"Looking" else 0.3))
