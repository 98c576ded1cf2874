"""Files in a bucket, with a real MLflow server on one side; and copies that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import s3faults
import s3server
import servers
from direct_estate import carry, compared, filled, in_bucket, job_of, on_disk, rows, without_mlmodel

pytestmark = pytest.mark.slow

PATIENCE = 240  # seconds; a copy takes 5 on a quiet machine


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def env(s3, monkeypatch):
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def served(s3, env, tmp_path):
    """Starts a server over a database whose new experiments lie in a bucket."""
    running = []

    def start(root):
        server = servers.start(servers.CURRENT, tmp_path / "served", "--default-artifact-root", root, artifacts=False)
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


def downloaded(client, owner, below):
    """All files of a run, by way of MLflow's own client."""
    root = Path(client.download_artifacts(owner, "", str(below)))
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


class TestServers:
    def test_mlflow_reads_what_was_copied_within_the_store(self, s3, served, tmp_path):
        from mlflow import MlflowClient

        estate = in_bucket(tmp_path / "estate", s3, s3.bucket(), files=3)
        (tmp_path / "served").mkdir()
        bucket = s3.bucket()
        place = f"mlflow:sqlite:///{tmp_path}/served/mlflow.db"
        assert carry(job_of(estate.place, place, artifacts_to=f"s3://{bucket}/root"), tmp_path).failed == ()
        client = MlflowClient(served(f"s3://{bucket}/root").url)
        for run in estate.runs:
            (tmp_path / run).mkdir()
            prefix = f"{run}/artifacts/"
            expected = {key[len(prefix) :]: data for key, data in estate.files.items() if key.startswith(prefix)}
            assert downloaded(client, run, tmp_path / run) == expected
        new = client.create_run(client.create_experiment("next")).info.artifact_uri
        assert new.startswith(f"s3://{bucket}/root/")

    def test_a_server_whose_files_lie_in_a_bucket_is_a_source_and_a_target(self, s3, served, tmp_path, monkeypatch):
        estate = on_disk(tmp_path / "estate", files=3)
        bucket = s3.bucket()
        server = served(f"s3://{bucket}/home")
        place = f"mlflow:{server.url}"
        job = job_of(estate.place, place)
        report = carry(job, tmp_path)
        assert report.failed == ()
        ids = dict(rows(server.database, "SELECT value, run_uuid FROM tags WHERE key = 'mlmigrate.origin'"))
        uris = dict(rows(server.database, "SELECT run_uuid, artifact_uri FROM runs"))
        for run in estate.runs:
            uri = uris[ids[f"mlflow:{run}"]]
            assert uri.startswith(f"s3://{bucket}/home/")
            prefix = f"{run}/artifacts/"
            expected = {key[len(prefix) :]: data for key, data in estate.files.items() if key.startswith(prefix)}
            assert s3.objects(bucket, uri.split("/", 3)[3]) == expected
        assert compared(job).findings == ()
        (tmp_path / "ledger.sqlite").unlink()
        with s3faults.faulty(s3) as proxy:  # the server hands out addresses; the bytes come from the store
            for name, value in proxy.env.items():
                monkeypatch.setenv(name, value)
            back = job_of(place, f"mlflow:sqlite:///{tmp_path}/back.db", artifacts_to=str(tmp_path / "back"))
            assert carry(back, tmp_path).failed == ()
            assert proxy.down >= sum(map(len, estate.plain.values()))
        found = {
            str(file.relative_to(tmp_path / "back")).partition("/")[2]: file.read_bytes()
            for file in (tmp_path / "back").rglob("*")
            if file.is_file()
        }
        runs = {key: data for key, data in found.items() if not key.startswith("models/")}
        expected = {key: data for key, data in estate.files.items() if not key.startswith("models/")}
        assert sorted(runs.values()) == sorted(expected.values())


class TestFileStores:
    def test_files_of_a_folder_of_runs_may_lie_in_a_bucket(self, s3, env, tmp_path):
        bucket, run = s3.bucket(), "a" * 32
        place = tmp_path / "mlruns" / "1" / run
        for part in ("params", "tags", "metrics", "artifacts"):
            (place / part).mkdir(parents=True)
        uri = f"s3://{bucket}/1/{run}/artifacts"
        (place.parent / "meta.yaml").write_text(
            f"artifact_location: s3://{bucket}/1\nexperiment_id: '1'\nlifecycle_stage: active\nname: one\n"
        )
        (place / "meta.yaml").write_text(
            f"artifact_uri: {uri}\nrun_id: {run}\nrun_uuid: {run}\nexperiment_id: '1'\nrun_name: r\nstatus: 3\n"
            "lifecycle_stage: active\nstart_time: 1\nend_time: 2\nuser_id: u\nsource_type: 4\ntags: []\n"
        )
        s3.client().put_object(Bucket=bucket, Key=f"1/{run}/artifacts/d/ü.txt", Body=b"far away")
        job = job_of(f"mlflow:{tmp_path}/mlruns", f"mlflow:sqlite:///{tmp_path}/t.db", artifacts_to=str(tmp_path / "f"))
        report = carry(job, tmp_path)
        assert (report.failed, report.losses) == ((), ())
        assert (tmp_path / "f" / "1" / run / "artifacts" / "d" / "ü.txt").read_bytes() == b"far away"
        assert compared(job).findings == ()


class TestKills:
    def copying(self, source, database, bucket, env):
        command = [sys.executable, "-m", "mlmigrate", "copy", source, f"mlflow:sqlite:///{database}"]
        command += ["--artifacts-to", f"s3://{bucket}/x", "--part-size", "5M", "--no-progress"]
        return subprocess.Popen(
            command, cwd=database.parent, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def until(self, process, happened):
        end = time.monotonic() + PATIENCE
        while not happened() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)

    @pytest.mark.parametrize("kind", ["disk", "bucket"])
    def test_a_killed_copy_goes_on_with_what_is_not_there(self, s3, env, tmp_path, kind):
        make = on_disk if kind == "disk" else in_bucket
        where = () if kind == "disk" else (s3, s3.bucket())
        estate = make(tmp_path / "estate", *where, files=120)
        bucket, database = s3.bucket(), tmp_path / "target.db"
        whole = ("PutObject", "CopyObject")
        done = lambda proxy: sum(one.op in whole for one in proxy.seen)  # noqa: E731
        with s3faults.faulty(s3) as proxy:
            process = self.copying(estate.place, database, bucket, proxy.env)
            self.until(process, lambda: done(proxy) > 60)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            before = len(s3.objects(bucket, "x"))
            sent = done(proxy)
            assert sent > 0
        with s3faults.faulty(s3) as proxy:
            process = self.copying(estate.place, database, bucket, proxy.env)
            _, told = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, told
            assert done(proxy) <= len(estate.files) - before + 8
        ((id_,),) = rows(database, "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        assert without_mlmodel(s3.objects(bucket, f"x/{id_}")) == estate.plain

    def test_a_large_file_goes_on_at_its_parts(self, s3, env, tmp_path):
        size, part = 60 << 20, 5 << 20

        def put(key, data):
            file = tmp_path / "files" / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(size) if key.endswith("/empty") else data)

        estate = filled(tmp_path / "estate", put, str(tmp_path / "files"), runs=1, files=0)
        bucket, database = s3.bucket(), tmp_path / "target.db"
        with s3faults.faulty(s3, s3faults.at(s3faults.SLOW, "UploadPart")) as proxy:
            process = self.copying(estate.place, database, bucket, proxy.env)
            self.until(process, lambda: len(proxy.ops("UploadPart")) >= 12)  # 8 are under way
            process.send_signal(signal.SIGKILL)
            process.communicate()
        uploads = s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        there = {
            one["Key"]: len(
                s3.client().list_parts(Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"]).get("Parts", ())
            )
            for one in uploads
        }
        assert sum(there.values()) > 0
        with s3faults.faulty(s3) as proxy:
            process = self.copying(estate.place, database, bucket, proxy.env)
            _, told = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, told
            big = -(-(17 << 20) // part)
            assert len(proxy.ops("UploadPart")) <= size // part + big - sum(there.values())
        ((id_,),) = rows(database, "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        found = s3.objects(bucket, f"x/{id_}/{estate.runs[0]}/artifacts")
        assert found["empty"] == (tmp_path / "files" / estate.runs[0] / "artifacts" / "empty").read_bytes()
