"""Real commands with an archive in a real S3: whole after a kill and the same command again, and one at a time.

The store is written by hand; what arrived is read with boto3, pyarrow and SQL alone.
MLMIGRATE_TEST_SIZE says how many kills there are, MLMIGRATE_TEST_SEED which.
"""

import hashlib
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest

import s3faults
import s3server

pytestmark = pytest.mark.slow
KILLS = 6  # times MLMIGRATE_TEST_SIZE
START = 1_700_000_000_000
MIB = 1 << 20


def data_of(name, size):
    return hashlib.shake_128(name.encode()).digest(size)


RUNS = {
    f"{number:032x}": {
        "params": {"lr": f"0.{number}"},
        "tags": {"mlflow.runName": f"run {number}"},
        "points": [(key, step, START + step, step / (number + 1)) for key in ("acc", "loss") for step in range(40)],
        "files": {
            **{f"small/{n}.bin": data_of(f"{number} {n}", 3000) for n in range(30)},
            "model/medium.bin": data_of(f"medium {number}", 2 * MIB),
            "shared.txt": b"the same in every run",
            **({"model/large.bin": data_of("large", 34 * MIB)} if number == 2 else {}),
        },
    }
    for number in range(6)
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3server.running(tmp_path_factory.mktemp("s3"), volumes=400) as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A file store, written by hand."""
    root = tmp_path_factory.mktemp("store") / "mlruns"
    place = root / "1"
    place.mkdir(parents=True)
    (place / "meta.yaml").write_text(
        f"artifact_location: {place}\nexperiment_id: '1'\nlifecycle_stage: active\nname: team\n"
        f"creation_time: {START}\nlast_update_time: {START}\n"
    )
    for name, what in RUNS.items():
        write_run(place / name, name, what)
    return root


def write_run(place, name, what):
    for folder in ("metrics", "params", "tags"):
        (place / folder).mkdir(parents=True)
    (place / "meta.yaml").write_text(
        f"artifact_uri: {place}/artifacts\nrun_id: {name}\nrun_uuid: {name}\nexperiment_id: '1'\n"
        f"run_name: {what['tags']['mlflow.runName']}\nlifecycle_stage: active\n"
        f"start_time: {START}\nend_time: {START + 1000}\nstatus: 3\nuser_id: ann\nsource_type: 4\nsource_name: ''\n"
        f"source_version: ''\nentry_point_name: ''\ntags: []\n"
    )
    for part in ("params", "tags"):
        for key, value in what[part].items():
            (place / part / key).write_text(value)
    for key, step, at, value in what["points"]:
        with (place / "metrics" / key).open("a") as file:
            file.write(f"{at} {value!r} {step}\n")
    for path, data in what["files"].items():
        file = place / "artifacts" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


@pytest.fixture
def env(s3, tmp_path):
    return {**os.environ, **s3.env, "XDG_STATE_HOME": str(tmp_path / "state"), "MLFLOW_DISABLE_TELEMETRY": "true"}


def command(*arguments):
    return [sys.executable, "-m", "mlmigrate", *map(str, arguments)]


def run(*arguments, env, cwd):
    return subprocess.run(command(*arguments), cwd=cwd, env=env, capture_output=True, text=True, check=False)


def well(*arguments, env, cwd):
    done = run(*arguments, env=env, cwd=cwd)
    assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def archived(objects):
    """The live runs of an archive, by its commits and their tables, and how often each is committed."""
    live = {}
    for name, data in objects.items():
        if name.startswith("packs/") and name.endswith(".json"):
            commit = json.loads(data)["commit"]
            for run_ in commit["runs"]:
                live.setdefault(run_["id"], []).append((commit["sequence"], commit["pack"], commit))
    found = {}
    for id_, commits in live.items():
        _, pack, commit = max(commits, key=lambda one: one[:2])
        tables = {}
        for file in commit["files"]:
            table = objects[f"packs/{pack}/{file['name']}"]
            assert hashlib.sha256(table).hexdigest() == file["sha256"]
            rows = pq.read_table(io.BytesIO(table)).to_pylist()
            tables[file["name"].removesuffix(".parquet")] = [
                row for row in rows if id_ in (row.get("run"), row.get("owner"), row.get("id"))
            ]
        found[id_] = {
            **{
                f"{role}s": {row["name"]: row["value"] for row in tables["attributes"] if row["role"] == role}
                for role in ("param", "tag")
            },
            "points": sorted((row["key"], row["step"], row["timestamp"], row["value"]) for row in tables["points"]),
            "files": {row["path"]: blob(objects, row["sha256"]) for row in tables["artifacts"]},
        }
    return found


def blob(objects, sha256):
    data = objects[f"blobs/{sha256[:2]}/{sha256}"]
    assert hashlib.sha256(data).hexdigest() == sha256
    return data


def stored(file, artifacts):
    """All runs of a database, and the artifacts beside it."""
    found = {}
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        for name, uri in db.execute("select run_uuid, artifact_uri from runs").fetchall():
            values = {
                table: dict(
                    db.execute(
                        f"select key, value from {table} where run_uuid = ? and key not like 'mlmigrate.%'", (name,)
                    )
                )
                for table in ("params", "tags")
            }
            rows = db.execute("select key, step, timestamp, value from metrics where run_uuid = ?", (name,))
            folder = artifacts / uri.removeprefix("mlflow-artifacts:/")
            files = {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
            found[name] = {**values, "points": sorted(rows), "files": files}
    db.close()
    return found


def killed(s3, env, cwd, arguments, at, fault):
    """Runs the command until its request of this number, which then is done, or never comes. Whether it was killed."""
    reached, dead = threading.Event(), threading.Event()

    def rule(request):
        if request.number < at:
            return None
        reached.set()
        dead.wait(120)
        return fault

    with s3faults.faulty(s3, rule) as proxy:
        process = subprocess.Popen(command(*arguments), cwd=cwd, env=env | proxy.env, stdout=-3, stderr=-3)
        while process.poll() is None and not reached.wait(0.05):
            pass
        process.send_signal(signal.SIGKILL)
        was = process.wait() == -signal.SIGKILL
        dead.set()
        proxy.settled()
    return was


def wanted(runs):
    return {name: {**what, "points": sorted(what["points"])} for name, what in runs.items()}


def test_mlruns_to_s3_and_on_to_a_database_is_equal(s3, store, env, tmp_path):
    bucket = s3.bucket()
    place = f"s3://{bucket}/some/archive"
    well("plan", f"mlflow:{store}", place, env=env, cwd=tmp_path)
    assert s3.objects(bucket) == {}
    well("export", f"mlflow:{store}", place, env=env, cwd=tmp_path)
    assert archived(s3.objects(bucket, "some/archive")) == wanted(RUNS)
    assert not [name for name in s3.objects(bucket) if "/writers/" in name or "/.parts/" in name]
    assert f"->  {place}" in well("status", env=env, cwd=tmp_path).stdout
    well("verify", f"mlflow:{store}", place, env=env, cwd=tmp_path)
    well("archive", "check", place, env=env, cwd=tmp_path)
    assert "run 3" in well("list", place, "-r", "*", env=env, cwd=tmp_path).stdout
    assert "run 3" in well("archive", "ls", place, env=env, cwd=tmp_path).stdout
    target = f"mlflow:sqlite:///{tmp_path}/mlflow.db"
    well("import", place, target, "--artifacts-to", tmp_path / "artifacts", env=env, cwd=tmp_path)
    assert stored(tmp_path / "mlflow.db", tmp_path / "artifacts") == wanted(RUNS)
    well("verify", place, target, "--artifacts-at", tmp_path / "artifacts", env=env, cwd=tmp_path)
    before = sorted(s3.objects(bucket))
    well("copy", f"mlflow:{store}", place, env=env, cwd=tmp_path)
    assert sorted(s3.objects(bucket)) == before


def test_an_export_killed_at_any_moment_is_whole_after_the_same_command_again(s3, store, env, tmp_path, size, seed):
    choice, bucket = random.Random(seed), s3.bucket()
    with s3faults.faulty(s3) as proxy:
        well("export", f"mlflow:{store}", f"s3://{bucket}/plain", env=env | proxy.env, cwd=tmp_path)
    most = len(proxy.seen) * 9 // 10  # threads may ask a little less another time
    for number in range(KILLS * size // 2):
        arguments = ("export", f"mlflow:{store}", f"s3://{bucket}/{number}")
        for requests in (most, most // 10):  # there is less to do the second time
            fault = choice.choice((None, s3faults.BEFORE))
            assert killed(s3, env, tmp_path, arguments, choice.randrange(1, requests), fault)
        well(*arguments, env=env, cwd=tmp_path)
        assert archived(s3.objects(bucket, f"{number}/")) == wanted(RUNS)
        well("archive", "prune", f"s3://{bucket}/{number}", "--older-than", "0", env=env, cwd=tmp_path)
        left = s3.objects(bucket, f"{number}/")
        assert archived(left) == wanted(RUNS)
        assert not [name for name in left if name.startswith(("writers/", ".parts/"))]


def test_of_two_exports_at_once_one_goes_on_and_the_other_says_who_writes(s3, store, env, tmp_path):
    bucket = s3.bucket()
    place = f"s3://{bucket}/archive"
    first = ("export", f"mlflow:{store}", place, "--ledger", tmp_path / "first.ledger")
    at_work, go_on = threading.Event(), threading.Event()

    def rule(request):
        if "/blobs/" in request.key:
            at_work.set()
            go_on.wait(300)

    with s3faults.faulty(s3, rule) as proxy:
        writing = subprocess.Popen(command(*first), cwd=tmp_path, env=env | proxy.env, stdout=-1, stderr=-1, text=True)
        assert at_work.wait(120)
        said = run("export", f"mlflow:{store}", place, "--ledger", tmp_path / "second.ledger", env=env, cwd=tmp_path)
        go_on.set()
        told = writing.communicate(timeout=300)
    assert (said.returncode, f"(pid {writing.pid})" in said.stderr) == (11, True), said
    assert "being written by export on" in said.stderr
    assert "Traceback" not in said.stderr
    assert writing.returncode == 0, told
    assert archived(s3.objects(bucket, "archive/")) == wanted(RUNS)
    well("export", f"mlflow:{store}", place, "--ledger", tmp_path / "second.ledger", env=env, cwd=tmp_path)
    assert archived(s3.objects(bucket, "archive/")) == wanted(RUNS)


def test_what_is_not_there_or_not_allowed_has_its_exit_code(s3, store, env, tmp_path):
    said = run("export", f"mlflow:{store}", "s3://no-such-bucket/a", env=env, cwd=tmp_path)
    assert (said.returncode, "no such bucket" in said.stderr) == (10, True), said
    said = run("archive", "ls", f"s3://{s3.bucket()}/nothing", env=env, cwd=tmp_path)
    assert (said.returncode, "not an archive" in said.stderr) == (10, True), said
    wrong = env | {"TARGET_AWS_SECRET_ACCESS_KEY": "wrong"}
    said = run("export", f"mlflow:{store}", f"s3://{s3.bucket()}/a", env=wrong, cwd=tmp_path)
    assert (said.returncode, "Traceback" in said.stderr) == (12, False), said
    assert "wrong" not in said.stderr.replace("secret key is wrong", "")


def test_two_writers_that_nothing_keeps_apart_lose_and_double_nothing(s3, store, env, tmp_path):
    bucket = s3.bucket()
    place = f"s3://{bucket}/archive"
    free = "import sys; from mlmigrate.archive.lease import Lease; Lease.take = Lease.check = lambda self: None; "
    free += "from mlmigrate.cli import main; sys.argv[0] = 'mlmigrate'; main()"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", free, "export", f"mlflow:{store}", place, "--ledger", str(tmp_path / f"{n}.ledger")],
            cwd=tmp_path, env=env, stdout=-1, stderr=-1, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    told = [one.communicate(timeout=300) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert archived(s3.objects(bucket, "archive/")) == wanted(RUNS)
    assert well("archive", "ls", place, env=env, cwd=tmp_path).stdout.splitlines()[-1] == "6 runs."
    well("archive", "check", place, env=env, cwd=tmp_path)
