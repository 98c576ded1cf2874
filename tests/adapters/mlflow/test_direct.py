"""Files in a bucket are read and written where they lie, against a real S3 server.

What is expected was written by boto3, MLflow's client and raw files, and is looked at with boto3, SQL and raw files.
"""

from __future__ import annotations

import tempfile

import pytest

import s3faults
import s3server
from direct_estate import BIG, carry, compared, in_bucket, job_of, on_disk, rows, sha256s, without_mlmodel
from mlmigrate.adapters.mlflow.direct import NoBucket
from mlmigrate.errors import NotFound, Refused
from mlmigrate.events import Silent

pytestmark = pytest.mark.slow

MLMODELS = 4096  # bytes: the little that is read where a store copies all else


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    limited = {
        "reader": ["Read:old-home", "List:old-home"],
        "writer": ["Read:new-home", "List:new-home", "Write:new-home"],
    }
    with s3server.running(tmp_path_factory.mktemp("s3"), limited) as server:
        for bucket in ("old-home", "new-home", "shut"):
            server.bucket(bucket)
        yield server


@pytest.fixture
def env(s3, monkeypatch):
    """Leads this process to the server; gives what leads it elsewhere."""

    def lead(values, prefix=""):
        for name, value in values.items():
            monkeypatch.setenv(prefix + name, value)

    lead(s3.env)
    return lead


@pytest.fixture(scope="module")
def estate(s3, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        return in_bucket(tmp_path_factory.mktemp("estate"), s3, "old-home")


@pytest.fixture
def no_spool(monkeypatch, tmp_path):
    """Whoever wants a temporary file fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))


def target(tmp_path, name="target.db"):
    return f"mlflow:sqlite:///{tmp_path / name}"


class TestReading:
    def test_an_archive_gets_the_bytes_that_boto3_wrote(self, estate, env, tmp_path, no_spool):
        job = job_of(estate.place, tmp_path / "archive")
        report = carry(job, tmp_path)
        blobs = {file.name for file in (tmp_path / "archive" / "blobs").rglob("*") if file.is_file()}
        assert (report.failed, report.losses, report.artifacts) == ((), (), len(estate.files))
        assert sha256s(estate.files) <= blobs
        assert compared(job).findings == ()

    def test_a_folder_gets_the_same_tree(self, estate, env, tmp_path, no_spool):
        job = job_of(estate.place, target(tmp_path), artifacts_to=str(tmp_path / "files"))
        report = carry(job, tmp_path)
        ((id_,),) = rows(tmp_path / "target.db", "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        root = tmp_path / "files" / str(id_)
        found = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        assert (report.failed, report.losses) == ((), ())
        assert without_mlmodel(found) == estate.plain
        assert compared(job).findings == ()

    def test_a_plan_lists_and_reads_nothing(self, s3, estate, env, tmp_path):
        from mlmigrate.plan import plan

        with s3faults.faulty(s3) as proxy:
            env(proxy.env)
            told = plan(job_of(estate.place, tmp_path / "archive"), Silent())
        assert proxy.ops("GetObject") == []
        assert sum(line.artifacts for line in told.lines) == len(estate.files)


class TestWithinOneStore:
    def test_no_payload_passes_through_us(self, s3, estate, env, tmp_path, no_spool):
        bucket = s3.bucket()
        job = job_of(estate.place, target(tmp_path), artifacts_to=f"s3://{bucket}/new/root/")
        with s3faults.faulty(s3) as proxy:
            env(proxy.env)
            report = carry(job, tmp_path)
            assert proxy.up + proxy.down < MLMODELS
            verdict = compared(job)
            assert (verdict.findings, verdict.artifacts) == ((), len(estate.files))
            assert proxy.up + proxy.down < BIG  # the large one was told equal by its digest
        assert (report.failed, report.losses, report.copied) == ((), (), 2)
        ((id_,),) = rows(tmp_path / "target.db", "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        root = f"s3://{bucket}/new/root/{id_}"
        assert without_mlmodel(s3.objects(bucket, f"new/root/{id_}")) == estate.plain
        locations = rows(tmp_path / "target.db", "SELECT experiment_id, artifact_location FROM experiments")
        assert dict(locations) == {0: f"s3://{bucket}/new/root/0", id_: root}
        assert {uri for (uri,) in rows(tmp_path / "target.db", "SELECT artifact_uri FROM runs")} == {
            f"{root}/{run}/artifacts" for run in estate.runs
        }
        place = f"{root}/models/{estate.model}/artifacts"
        assert rows(tmp_path / "target.db", "SELECT artifact_location FROM logged_models") == [(place,)]
        mlmodel = s3.objects(bucket, f"new/root/{id_}/models/{estate.model}/artifacts")["MLmodel"]
        assert f"artifact_path: {place}\n".encode() in mlmodel

    def test_a_file_that_became_another_is_found(self, s3, estate, env, tmp_path):
        bucket = s3.bucket()
        job = job_of(estate.place, target(tmp_path), artifacts_to=f"s3://{bucket}")
        carry(job, tmp_path)
        ((id_,),) = rows(tmp_path / "target.db", "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        key = f"{id_}/{estate.runs[0]}/artifacts/big.bin"
        s3.client().put_object(Bucket=bucket, Key=key, Body=bytes(BIG))
        s3.client().put_object(Bucket=bucket, Key=f"{id_}/{estate.runs[1]}/artifacts/big.bin", Body=b"SMALL")
        for download in (None, True):
            verdict = compared(job, download=download)
            assert (verdict.differs, len(verdict.findings)) == (2, 2)
            assert all("artifact big.bin" in finding.what for finding in verdict.findings)

    def test_download_reads_every_byte_of_both_sides(self, s3, estate, env, tmp_path):
        bucket = s3.bucket()
        job = job_of(estate.place, target(tmp_path), artifacts_to=f"s3://{bucket}")
        carry(job, tmp_path)
        with s3faults.faulty(s3) as proxy:
            env(proxy.env)
            assert compared(job, download=True).findings == ()
            assert proxy.down >= 2 * sum(map(len, estate.files.values()))

    def test_what_arrived_before_a_kill_is_not_copied_again(self, s3, estate, env, tmp_path):
        bucket = s3.bucket()
        settings = {"artifacts_to": f"s3://{bucket}"}
        carry(job_of(estate.place, target(tmp_path, "first.db"), **settings), tmp_path)
        (tmp_path / "ledger.sqlite").unlink()
        with s3faults.faulty(s3) as proxy:  # a database that lost all, and the bucket did not
            env(proxy.env)
            report = carry(job_of(estate.place, target(tmp_path, "second.db"), **settings), tmp_path)
            sent = {one.key.rpartition("/")[2] for one in proxy.seen if one.method == "PUT"} - {""}
        assert report.failed == ()
        assert not any(name.startswith("f") or name == "big.bin" for name in sent)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return on_disk(tmp_path_factory.mktemp("local"))


class TestFromADisk:
    def test_files_go_up_without_a_spool(self, s3, local, env, tmp_path, no_spool):
        bucket = s3.bucket()
        job = job_of(local.place, target(tmp_path), artifacts_to=f"s3://{bucket}")
        with s3faults.faulty(s3) as proxy:
            env(proxy.env)
            report = carry(job, tmp_path)
            assert 0 <= proxy.up - sum(map(len, local.plain.values())) < MLMODELS
            assert proxy.down == 0  # nothing is read back
            assert len(proxy.ops("UploadPart")) == 2
            assert compared(job).findings == ()
        assert (report.failed, report.losses) == ((), ())
        ((id_,),) = rows(tmp_path / "target.db", "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        assert without_mlmodel(s3.objects(bucket, str(id_))) == local.plain

    def test_an_archive_goes_up_too(self, s3, local, env, tmp_path):
        bucket = s3.bucket()
        carry(job_of(local.place, tmp_path / "archive"), tmp_path)
        (tmp_path / "ledger.sqlite").unlink()
        job = job_of(str(tmp_path / "archive"), target(tmp_path), artifacts_to=f"s3://{bucket}/a")
        report = carry(job, tmp_path)
        ((id_,),) = rows(tmp_path / "target.db", "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        assert (report.failed, report.losses) == ((), ())
        assert without_mlmodel(s3.objects(bucket, f"a/{id_}")) == local.plain

    def test_a_missing_bucket_ends_it_at_once(self, local, env, tmp_path):
        with pytest.raises(NotFound, match="no-such-bucket") as told:
            carry(job_of(local.place, target(tmp_path), artifacts_to="s3://no-such-bucket/x"), tmp_path)
        assert told.value.exit_code == 10
        assert not (tmp_path / "target.db").exists()

    def test_refused_credentials_end_it_at_once(self, local, env, tmp_path):
        env({"AWS_SECRET_ACCESS_KEY": "hunter2"})
        with pytest.raises(Refused) as told:
            carry(job_of(local.place, target(tmp_path), artifacts_to="s3://new-home/x"), tmp_path)
        assert told.value.exit_code == 12
        assert "hunter2" not in str(told.value)


class TestTwoCredentials:
    """One identity may read the old bucket, another write the new one, and neither both."""

    def test_each_side_has_its_own(self, s3, estate, env, monkeypatch, tmp_path, no_spool):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        env(s3.env_of(*s3.identities["reader"]), "SOURCE_")
        env(s3.env_of(*s3.identities["writer"]), "TARGET_")
        job = job_of(estate.place, target(tmp_path), artifacts_to="s3://new-home/both")
        report = carry(job, tmp_path)
        assert (report.failed, report.losses) == ((), ())
        ((id_,),) = rows(tmp_path / "target.db", "SELECT experiment_id FROM experiments WHERE name = 'vision'")
        assert without_mlmodel(s3.objects("new-home", f"both/{id_}")) == estate.plain
        assert compared(job).findings == ()

    def test_the_wrong_way_round_nothing_is_written(self, s3, estate, env, tmp_path):
        env(s3.env_of(*s3.identities["writer"]), "SOURCE_")
        env(s3.env_of(*s3.identities["reader"]), "TARGET_")
        with pytest.raises(Refused):
            carry(job_of(estate.place, target(tmp_path), artifacts_to="s3://new-home/wrong"), tmp_path)
        assert s3.objects("new-home", "wrong") == {}

    def test_a_bucket_that_may_not_be_read_fails_its_runs_alone(self, s3, env, tmp_path):
        estate = in_bucket(tmp_path / "two", s3, "old-home", prefix="mixed", runs=2, files=2)
        import sqlite3

        with sqlite3.connect(estate.database) as connection:
            connection.execute(
                "UPDATE runs SET artifact_uri = replace(artifact_uri, 's3://old-home', 's3://shut') WHERE run_uuid = ?",
                (estate.runs[0],),
            )
        env(s3.env_of(*s3.identities["reader"]))
        report = carry(job_of(estate.place, tmp_path / "archive"), tmp_path)
        assert ([one.run for one in report.failed], report.copied) == ([estate.runs[0]], 1)
        assert "s3://shut/" in report.failed[0].message

    def test_a_source_whose_buckets_are_all_gone_ends_it_at_once(self, s3, estate, env, tmp_path):
        import shutil
        import sqlite3

        database = tmp_path / "gone.db"
        shutil.copy(estate.database, database)
        with sqlite3.connect(database) as connection:
            for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
                connection.execute(f"UPDATE {table} SET {column} = replace({column}, 's3://old-home', 's3://gone')")
        with pytest.raises(NoBucket, match="s3://gone") as told:
            carry(job_of(f"mlflow:sqlite:///{database}", tmp_path / "archive"), tmp_path)
        assert told.value.exit_code == 10

    def test_credentials_that_are_no_good_end_it_at_once(self, s3, estate, env, tmp_path):
        env({"AWS_SECRET_ACCESS_KEY": "hunter2"}, "SOURCE_")
        with pytest.raises(Refused) as told:
            carry(job_of(estate.place, tmp_path / "archive"), tmp_path)
        assert told.value.exit_code == 12


ODD = {
    "a//b": b"two slashes",
    "../up": b"up",
    "./here": b"here",
    "/lead": b"lead",
    "%2F": b"quoted",
    "Case": b"upper",
    "case": b"lower",
    "caf\u00e9": b"NFC",
    "cafe\u0301": b"NFD",
    "\U0001f600 ~#?&+": b"emoji",
    " space ": b"space",
    "x": b"file",
    "x/y": b"below a file",
    "n" * 255: b"long",
}
UNCLEAN = {"a//b", "../up", "./here", "/lead"}


class TestNames:
    @pytest.fixture
    def odd(self, s3, env, tmp_path):
        estate = in_bucket(tmp_path / "odd", s3, s3.bucket(), prefix="p", runs=1, files=0)
        client = s3.client()
        bucket = rows(estate.database, "SELECT artifact_uri FROM runs")[0][0].split("/")[2]
        below = f"p/{estate.runs[0]}/artifacts/"
        held = {}
        for name, data in ODD.items():
            try:
                client.put_object(Bucket=bucket, Key=below + name, Body=data)
            except client.exceptions.ClientError:
                continue  # this server refuses it
            held[name] = data
        client.put_object(Bucket=bucket, Key=below + "folder/", Body=b"")
        there = s3.objects(bucket, below[:-1])  # this server makes "a/b" of "a//b"
        return estate, {name: data for name, data in held.items() if name in there}

    def test_within_a_store_all_names_are_kept(self, s3, odd, tmp_path):
        estate, held = odd
        bucket = s3.bucket()
        job = job_of(estate.place, target(tmp_path), artifacts_to=f"s3://{bucket}")
        report = carry(job, tmp_path)
        ((uri,),) = rows(tmp_path / "target.db", "SELECT artifact_uri FROM runs")
        found = s3.objects(bucket, uri.split("/", 3)[3])
        assert report.failed == ()
        lost = {loss.what for loss in report.losses}
        assert {name: data for name, data in found.items() if name in held} == {
            name: data for name, data in held.items() if f"artifact {name!r}" not in lost
        }
        assert "folder/" not in found

    def test_a_disk_gets_the_clean_ones_and_the_others_are_losses(self, odd, tmp_path):
        estate, held = odd
        job = job_of(estate.place, target(tmp_path), artifacts_to=str(tmp_path / "files"))
        report = carry(job, tmp_path)
        (home,) = (tmp_path / "files").glob(f"*/{estate.runs[0]}/artifacts")
        found = {str(file.relative_to(home)): file.read_bytes() for file in home.rglob("*") if file.is_file()}
        lost = {loss.what for loss in report.losses}
        assert report.failed == ()
        assert not UNCLEAN & found.keys()
        for name, data in held.items():
            assert found.get(name) == data or f"artifact {name!r}" in lost, name
