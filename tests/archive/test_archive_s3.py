"""An archive in a real S3: the promises of every target, and what only an archive elsewhere must keep.

What lies there is read, and harmed, with boto3 alone.
"""

import hashlib
import itertools
import json
import os
import threading
import time
from types import SimpleNamespace

import pytest

import s3server
from mlmigrate.address import Address
from mlmigrate.archive import lease, tools
from mlmigrate.archive.lease import ArchiveInUse, Lease
from mlmigrate.archive.reader import ArchiveSource
from mlmigrate.archive.writer import ArchiveTarget
from mlmigrate.errors import Conflict, Damaged, NotFound, Refused, Unavailable
from mlmigrate.model import Artifact, Spot
from mlmigrate.storage import open_storage
from mlmigrate.storage.bucket import BucketStorage
from mlmigrate.storage.objects import Changed
from mlmigrate.testing.conformance import TargetTests

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    limited = {"reader": ["Read:readable", "List:readable"]}
    with s3server.running(tmp_path_factory.mktemp("s3"), limited, volumes=400) as server:
        server.shared = server.bucket()
        yield server


@pytest.fixture(autouse=True)
def _environment(s3, monkeypatch):
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)


_numbers = itertools.count()


@pytest.fixture
def place(s3):
    """An address where nothing is yet."""
    return f"s3://{s3.shared}/archive{next(_numbers)}"


@pytest.fixture
def there(s3, place):
    """What lies in the archive, by boto3."""
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    client = s3.client()
    return SimpleNamespace(
        files=lambda: s3.objects(bucket, prefix + "/"),
        put=lambda name, data: client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data),
        delete=lambda name: client.delete_object(Bucket=bucket, Key=f"{prefix}/{name}"),
        head=lambda name: client.head_object(Bucket=bucket, Key=f"{prefix}/{name}", ChecksumMode="ENABLED"),
        uploads=lambda: client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", []),
    )


@pytest.fixture
def storage(place):
    return open_storage(place, dict(os.environ))


class TestArchiveInS3(TargetTests):
    every_nth_call = 9

    @pytest.fixture
    def new_target(self, s3):
        return lambda: Address("archive", f"s3://{s3.shared}/conformance{next(_numbers)}")


def large(name, size):
    return hashlib.shake_128(name.encode()).digest(size)


def files_of(kit, run):
    """One of each size that is sent in another way, and a name that is nobody's path."""
    sizes = {
        "empty": 0,
        "small": 100,
        "asked first": 300_000,
        "medium": 3 * MIB,
        "large": 40 * MIB + 7,
        "../x//é%2F": 9,
    }
    return {name: large(name, size) for name, size in sizes.items()}


def test_files_of_every_size_arrive_under_their_own_digest(place, storage, there, kit):
    files = files_of(kit, "r")
    kit.write(
        storage, [kit.run("r")], [kit.series("r", [1.0, 2.0])], [kit.artifact("r", *one) for one in files.items()]
    )
    kept = there.files()
    blobs = {name: data for name, data in kept.items() if name.startswith("blobs/")}
    assert {name.rpartition("/")[2] for name in blobs} == {hashlib.sha256(data).hexdigest() for data in files.values()}
    assert all(hashlib.sha256(data).hexdigest() == name.rpartition("/")[2] for name, data in blobs.items())
    assert not [name for name in kept if name.startswith(".parts")]
    assert kit.read(open_storage(place, dict(os.environ))).files == {("r", name): data for name, data in files.items()}
    assert list(tools.check(place)) == []


def test_a_large_table_arrives(storage, there):
    data = large("table", 40 * MIB)
    with storage.part() as part:
        for start in range(0, len(data), 3 * MIB):
            part.write(memoryview(data)[start : start + 3 * MIB])
        part.become("packs/p/points.parquet")
    assert there.files() == {"packs/p/points.parquet": data}
    with storage.open("packs/p/points.parquet") as file:
        assert file.read() == data


@pytest.mark.parametrize("said", [None, 10, 30 * MIB])
def test_a_file_whose_size_was_unknown_or_wrong_arrives_as_it_is(storage, there, kit, said):
    data = large("grown", 36 * MIB)
    one = kit.replace(kit.artifact("r", "log", data), size=said)
    kit.write(storage, [kit.run("r")], (), [one])
    assert kit.read(storage).files == {("r", "log"): data}
    assert there.uploads() == []


def test_a_file_of_this_disk_is_read_from_there(storage, there, kit, tmp_path):
    data = large("disk", 33 * MIB)
    (tmp_path / "model").write_bytes(data)
    one = kit.replace(kit.artifact("r", "model", data), spot=Spot("file", str(tmp_path / "model")))
    kit.write(storage, [kit.run("r")], (), [one])
    assert kit.read(storage).files == {("r", "model"): data}
    assert not [name for name in there.files() if name.startswith(".parts")]


def test_a_large_file_of_the_same_store_is_copied_by_the_store(s3, storage, there, kit, monkeypatch):
    client, bucket, data = s3.client(), s3.bucket(), large("elsewhere", 20 * MIB)
    etag = client.put_object(Bucket=bucket, Key="run/model é.bin", Body=data)["ETag"].strip('"')
    spot = Spot(storage.objects.store, f"s3://{bucket}/run/model é.bin", etag)
    one = kit.replace(kit.artifact("r", "model", data), spot=spot)
    stale = kit.replace(one, path="stale", spot=kit.replace(spot, version="0" * 32))
    monkeypatch.setattr(type(storage.objects), "upload", None)
    kit.write(storage, [kit.run("r")], (), [one])
    assert there.files()["blobs/{0:.2}/{0}".format(hashlib.sha256(data).hexdigest())] == data
    monkeypatch.undo()
    there.delete("blobs/{0:.2}/{0}".format(hashlib.sha256(data).hexdigest()))
    with pytest.raises(Changed):
        kit.write(open_storage(storage.shown, s3.env), [kit.run("q")], (), [kit.replace(stale, owner="q")])


def test_bytes_that_are_not_those_announced_are_told(storage, there, kit):
    for size in (10, 2 * MIB, 20 * MIB):
        one = kit.replace(kit.artifact("r", "x", large("x", size)), sha256="0" * 64)
        with pytest.raises(Damaged, match="not those announced"):
            kit.write(storage, [kit.run("r")], (), [one])
    assert [name for name in there.files() if name.startswith("packs/") and "runs" in name] == []


def test_an_error_of_one_file_among_many_is_told_at_the_latest_by_the_commit(storage, there, kit):
    def away():
        raise NotFound("the source has no such file any more")

    files = [kit.artifact("r", f"f{n}", b"%d" % n) for n in range(200)]
    files[150] = Artifact("r", "gone", away, 3)
    with pytest.raises(NotFound, match="no such file"):
        kit.write(storage, [kit.run("r")], (), files)
    assert not [name for name in there.files() if name.startswith("packs/p-")]


def test_what_is_there_already_is_not_sent_again(place, kit, monkeypatch):
    files = [kit.artifact("r", name, large(name, size)) for name, size in (("a", 300_000), ("b", 2 * MIB))]
    kit.write(open_storage(place, dict(os.environ)), [kit.run("r")], (), files)
    sent = []
    real = BucketStorage.put
    monkeypatch.setattr(BucketStorage, "put", lambda self, name, *rest: sent.append(name) or real(self, name, *rest))
    kit.write(open_storage(place, dict(os.environ)), [kit.run("r", stamp="s2")], (), files)
    assert [name for name in sent if name.startswith("blobs/")] == []


def test_a_blob_that_somebody_wrote_over_is_written_anew(place, storage, there, kit):
    for n, data in enumerate((b"good", large("m", 2 * MIB))):
        one = kit.artifact("r", "x", data)
        kit.write(storage, [kit.run("r", stamp=f"{n}")], (), [one])
        name = "blobs/{0:.2}/{0}".format(hashlib.sha256(data).hexdigest())
        there.put(name, b"e" * len(data))
        kit.write(open_storage(place, dict(os.environ)), [kit.run("r", stamp=f"{n}b")], (), [one])
        assert there.files()[name] == data


def test_check_finds_what_was_flipped_and_what_is_gone(place, storage, there, kit):
    files = {"flipped": b"12345", "gone": b"678", "whole": b"9"}
    kit.write(storage, [kit.run("r")], [kit.series("r", [1.0])], [kit.artifact("r", *one) for one in files.items()])
    blob = {path: "blobs/{0:.2}/{0}".format(hashlib.sha256(data).hexdigest()) for path, data in files.items()}
    there.put(blob["flipped"], b"12346")
    there.delete(blob["gone"])
    assert sorted(one.what.split(":")[0] for one in tools.check(place)) == ["artifact flipped", "artifact gone"]
    (points,) = [name for name in there.files() if name.endswith("points.parquet")]
    there.put(points, there.files()[points][:-1] + b"x")
    assert any(points in one.what for one in tools.check(place))
    with pytest.raises(Damaged):
        kit.read(open_storage(place, dict(os.environ)))


def test_ls_cat_checkout_and_prune_reach_it(place, storage, there, kit, tmp_path):
    files = [kit.artifact("r", "model/a", b"12345"), kit.artifact("r", "b", b"old")]
    kit.write(storage, [kit.run("r")], (), files)
    kit.write(storage, [kit.run("r", stamp="s2")], (), files[:1], pack="q")
    assert [(one.path, one.size) for one in tools.ls(place, "r")] == [("model/a", 5)]
    with tools.cat(place, "r", "model/a") as stream:
        assert stream.read() == b"12345"
    assert tools.checkout(place, "", tmp_path / "out") == []
    assert (tmp_path / "out" / "r" / "model" / "a").read_bytes() == b"12345"
    there.put(".parts/left", b"x")
    before = kit.read(storage)
    assert tools.prune(place) == []
    planned = tools.prune(place, older_than=-60, dry_run=True)
    assert sorted({name.split("/")[0] for name in planned}) == [".parts", "blobs", "packs"]
    assert tools.prune(place, older_than=-60) == planned
    assert list(tools.check(place)) == []
    after = kit.read(open_storage(place, dict(os.environ)))
    assert (after.runs, after.files) == (before.runs, before.files)


def test_a_commit_that_may_be_there_though_nobody_said_so_keeps_its_tables(place, storage, there, kit, monkeypatch):
    real = BucketStorage.create

    def unanswered(self, name, data):
        answer = real(self, name, data)
        if name.startswith("packs/p-"):
            raise Unavailable("no answer")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(BucketStorage, "create", unanswered)
        with pytest.raises(Unavailable):
            kit.write(storage, [kit.run("r")], [kit.series("r", [1.0])])
    assert kit.read(storage).points["value"].to_pylist() == [1.0]


class TestLease:
    def test_a_second_writer_is_told_who_writes(self, storage, there):
        first, second = Lease(storage, "export"), Lease(storage, "export")
        first.take()
        assert [name for name in there.files() if name.startswith("writers/")] == ["writers/1.json"]
        with pytest.raises(ArchiveInUse, match=rf"export on .* \(pid {os.getpid()}\)") as raised:
            second.take()
        assert raised.value.exit_code == 11
        first.release()
        second.take()
        second.release()
        assert [name for name in there.files() if name.startswith("writers/")] == []

    def test_of_many_at_once_one_writes(self, place):
        leases = [Lease(open_storage(place, dict(os.environ)), f"export {n}") for n in range(6)]
        gate, won, refused = threading.Barrier(6), [], []

        def work(one):
            gate.wait(120)
            try:
                one.take()
                won.append(one)
            except ArchiveInUse:
                refused.append(one)

        threads = [threading.Thread(target=work, args=(one,)) for one in leases]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert (len(won), len(refused)) == (1, 5)
        won[0].release()

    def test_a_writer_of_this_machine_that_is_gone_is_followed_at_once(self, storage, there):
        dead = json.dumps(
            {
                "nonce": "x",
                "host": "h",
                "machine": lease.machine(),
                "pid": 4_000_000,
                "started": 7,
                "since": "",
                "what": "export",
            }
        )
        there.put("writers/3.json", dead.encode())
        mine = Lease(storage, "export")
        mine.take()
        assert [name for name in there.files() if name.startswith("writers/")] == ["writers/4.json"]
        mine.release()

    def test_a_silent_writer_elsewhere_is_followed_when_it_is_stale(self, storage, there, monkeypatch):
        there.put("writers/1.json", b"nobody can read this")
        with pytest.raises(ArchiveInUse, match="another command"):
            Lease(storage, "export").take()
        monkeypatch.setattr(lease, "STALE", 0.0)
        mine = Lease(storage, "export")
        mine.take()
        mine.release()

    def test_a_writer_that_was_taken_for_dead_commits_no_more(self, place, storage, there, kit):
        target = ArchiveTarget(storage)
        target.arrived()
        target.prepare([])
        there.delete("writers/1.json")
        target._lease._beat()
        with target.pack("p", [kit.ref(kit.run("r"))]) as into:
            into.begin([kit.run("r")])
            with pytest.raises(ArchiveInUse):
                into.commit()
        target.close()
        assert kit.read(storage).refs == []

    def test_signs_of_life_are_given(self, storage, there, monkeypatch):
        monkeypatch.setattr(lease, "BEAT", 0.2)
        mine = Lease(storage, "export")
        mine.take()
        before = there.head("writers/1.json")["LastModified"]
        end = time.monotonic() + 120
        while there.head("writers/1.json")["LastModified"] == before and time.monotonic() < end:
            time.sleep(0.2)
        assert there.head("writers/1.json")["LastModified"] > before
        mine.release()

    def test_prune_waits_for_no_export_and_says_so(self, place, storage, kit):
        kit.write(storage, [kit.run("r")])
        writer = Lease(storage, "export")
        writer.take()
        with pytest.raises(ArchiveInUse, match="export on"):
            tools.prune(place)
        tools.prune(place, dry_run=True)
        writer.release()
        tools.prune(place)


def test_no_bucket_is_said():
    with pytest.raises(NotFound, match="no such bucket"):
        ArchiveTarget(open_storage("s3://there-is-none/x", dict(os.environ)))
    with pytest.raises(NotFound, match="no such bucket"):
        ArchiveSource(open_storage("s3://there-is-none/x", dict(os.environ)))


def test_no_archive_and_another_thing_are_said(place, storage, there):
    with pytest.raises(NotFound, match=r"not an archive: it has no mlmigrate\.json"):
        ArchiveSource(storage)
    there.put("meta.yaml", b"x")
    with pytest.raises(Conflict, match="not empty"):
        ArchiveTarget(storage)


def test_credentials_that_may_not_write_are_refused(s3, kit):
    if "readable" not in [one["Name"] for one in s3.client().list_buckets()["Buckets"]]:
        s3.bucket("readable")
    env = dict(os.environ) | s3.env_of(*s3.identities["reader"])
    with pytest.raises(Refused):
        kit.write(open_storage("s3://readable/a", env), [kit.run("r")])
    wrong = dict(os.environ) | s3.env_of(s3.key, "wrong")
    with pytest.raises(Refused):
        ArchiveTarget(open_storage("s3://readable/a", wrong))
