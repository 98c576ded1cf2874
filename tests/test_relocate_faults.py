"""A move of artifacts meets faults of S3 and odd names: it ends equal or told, nothing half switched, and goes on."""

import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import s3faults
import s3server
from sizes import large

pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow
MIB = 1 << 20
LOG = """
import sys, pathlib, mlflow
uri, root, files = sys.argv[1:]
client = mlflow.MlflowClient(uri)
experiment = client.create_experiment("trained", artifact_location=root + "/1")
for number in range(4):
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, files)
    client.set_terminated(run.info.run_id)
"""
ODD = ["100%2F.txt", "a#b.txt", "q?m.txt", "a b+c&d.txt", "e\u0301.txt", "é.txt", "😀.txt", "Case", "case", "...", "~"]
NAMES = ["plain.txt", *ODD, "deep/" * 40 + "x", "n" * 200, "empty"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    limited = {"reader": ["Read:not-ours", "List:not-ours"]}
    with s3server.running(tmp_path_factory.mktemp("s3"), limited) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What each run logs: odd names, and one file of two parts."""
    folder = tmp_path_factory.mktemp("files")
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"" if name == "empty" else name.encode() * 99)
    (folder / "large").write_bytes(random.Random(0).randbytes(17 * MIB))
    return folder


def quiet():
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLMIGRATE_", "AWS_"))}
    return {**own, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}


def logged(uri, root, files):
    subprocess.run(
        [sys.executable, "-c", LOG, uri, str(root), str(files)], env=quiet(), check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, files):
    """A database, whose artifacts stay where they are whatever is copied of it."""
    folder = tmp_path_factory.mktemp("made")
    logged(f"sqlite:///{folder}/mlflow.db", folder / "root", files)
    return folder


@pytest.fixture
def database(made, tmp_path):
    return Path(shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db"))


def relocate(store, to, env, tmp_path, *more):
    return subprocess.run(
        [sys.executable, "-m", "mlmigrate", "relocate", store, "--to", to, "--ledger", tmp_path / "ledger", *more],
        env={**quiet(), **env, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


def rows(database, sql="select run_uuid, artifact_uri from runs"):
    with closing(sqlite3.connect(database)) as db:
        return db.execute(sql).fetchall()


def on_disk(made):
    root = made / "root"
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def in_s3(s3, to):
    bucket, _, prefix = to.removeprefix("s3://").partition("/")
    return {key: hashlib.sha256(data).hexdigest() for key, data in s3.objects(bucket, prefix).items()}


FAULTS = {
    "busy": s3faults.SLOW_DOWN,
    "broken after": s3faults.AFTER,
    "a flipped bit": s3faults.FLIPPED,
    "a lost part": s3faults.LOST,
}


@pytest.mark.parametrize("fault", ["busy", *(pytest.param(one, marks=large) for one in list(FAULTS)[1:])])
def test_a_fault_now_and_then_is_overcome(s3, made, database, tmp_path, fault):
    to, store = f"s3://{s3.bucket()}/new", f"mlflow:sqlite:///{database}"
    op = "UploadPart" if fault == "a lost part" else ""
    die = random.Random(7)

    def rule(request):
        meets = request.op == op if op else request.op in ("PutObject", "UploadPart", "CompleteMultipartUpload")
        return FAULTS[fault] if meets and die.random() < 0.2 else None

    with s3faults.faulty(s3, rule) as proxy:
        first = relocate(store, to, proxy.env, tmp_path)
    assert proxy.met
    done = relocate(store, to, s3.env, tmp_path, *(["--check=all"] if first.returncode == 0 else []))
    assert done.returncode == 0, first.stdout + done.stdout + done.stderr
    assert in_s3(s3, to) == on_disk(made)
    assert {uri[: len(to)] for _, uri in rows(database)} == {to}


def test_credentials_that_expire_half_way_switch_nothing_and_the_same_command_goes_on(s3, made, database, tmp_path):
    to, store = f"s3://{s3.bucket()}/new", f"mlflow:sqlite:///{database}"
    before = rows(database)
    with s3faults.faulty(s3, s3faults.since(s3faults.EXPIRED, 40)) as proxy:
        first = relocate(store, to, proxy.env, tmp_path)
    assert (first.returncode, rows(database)) == (12, before)
    assert "expired" in first.stderr
    with s3faults.faulty(s3) as proxy:
        again = relocate(store, to, proxy.env, tmp_path)
    assert again.returncode == 0, again.stderr
    assert 0 < len([one for one in proxy.ops("PutObject") if one.size]) < 4 * (len(NAMES) - 1)
    assert in_s3(s3, to) == on_disk(made)


def test_a_bucket_without_permission_or_none_at_all_changes_nothing(s3, database, tmp_path):
    before, store = rows(database), f"mlflow:sqlite:///{database}"
    s3.bucket("not-ours")
    limited = s3.env_of(*s3.identities["reader"])
    assert relocate(store, "s3://not-ours/x", limited, tmp_path).returncode == 12
    assert relocate(store, "s3://there-is-none/x", s3.env, tmp_path, "--ledger", tmp_path / "other").returncode == 10
    assert rows(database) == before
    assert s3.objects("not-ours") == {}


def test_odd_names_go_there_and_back(s3, made, database, tmp_path):
    to, store = f"s3://{s3.bucket()}/new", f"mlflow:sqlite:///{database}"
    before = rows(database, "select * from runs order by 1")
    assert relocate(store, to, s3.env, tmp_path).returncode == 0
    assert in_s3(s3, to) == on_disk(made)
    back = relocate(store, str(tmp_path / "back"), s3.env, tmp_path, "--ledger", tmp_path / "back.ledger")
    assert back.returncode == 0, back.stdout + back.stderr
    found = {str(one.relative_to(tmp_path / "back")): one for one in (tmp_path / "back").rglob("*") if one.is_file()}
    assert {name: hashlib.sha256(one.read_bytes()).hexdigest() for name, one in found.items()} == on_disk(made)
    for ledger, place in (("back.ledger", str(tmp_path / "back")), ("ledger", to)):
        assert relocate(store, place, s3.env, tmp_path, "--ledger", tmp_path / ledger, "--undo").returncode == 0
    assert rows(database, "select * from runs order by 1") == before


def test_a_postgresql_server_moves_and_comes_back(s3, files, tmp_path, postgresql):
    import sqlalchemy

    plain = postgresql()
    logged(plain.replace("postgresql://", "postgresql+psycopg2://"), tmp_path / "root", files)
    engine = sqlalchemy.create_engine(plain.replace("postgresql://", "postgresql+psycopg2://"))

    def all_rows():
        with engine.connect() as connection:
            tables = sqlalchemy.inspect(engine).get_table_names()
            return {
                name: sorted(map(repr, connection.execute(sqlalchemy.text(f'select * from "{name}"'))))
                for name in tables
            }

    before = all_rows()
    to = f"s3://{s3.bucket()}/new"
    done = relocate(f"mlflow:{plain}", to, s3.env, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert in_s3(s3, to) == on_disk(tmp_path)
    assert all(to in row for row in all_rows()["runs"])
    assert relocate(f"mlflow:{plain}", to, s3.env, tmp_path, "--undo").returncode == 0
    assert all_rows() == before
    engine.dispose()
