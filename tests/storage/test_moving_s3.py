"""Files move to and from a real S3 with faults on the way: each ends equal or is named, and another run goes on."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

import s3faults
import s3server
from mlmigrate.errors import MigrateError, NotFound, Refused, Stopped
from mlmigrate.steps import Steps
from mlmigrate.storage import moving
from mlmigrate.storage.carry import PARTS_AT_ONCE
from mlmigrate.storage.folder import FolderObjects
from mlmigrate.storage.moving import Failed, Moved, Mover, Task
from mlmigrate.storage.objects import PART, open_objects

pytestmark = pytest.mark.slow
MIB = 1 << 20
NAMES = ["a b", "100%2F", "é", "e\u0301", "😀#?&+", "~", "...", "A/x", "a/X", "new\nline", "d/" * 100 + "deep", "-"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    limited = {side: [f"{what}:of-{side}" for what in ("Read", "List", "Write")] for side in ("left", "right")}
    with s3server.running(tmp_path_factory.mktemp("s3"), limited, volumes=400) as server:
        yield server


@pytest.fixture
def bucket(s3):
    return s3.bucket()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """60 small files, one empty, in a folder."""
    root = tmp_path_factory.mktemp("small")
    for n in range(60):
        file = root / f"d{n % 5}" / f"f{n}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(random.Random(n).randbytes(n * 500))
    return FolderObjects.of(str(root))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """One file of 7 parts of 6 MiB."""
    root = tmp_path_factory.mktemp("large")
    (root / "large").write_bytes(random.Random(0).randbytes(36 * MIB + 5))
    return FolderObjects.of(str(root))


def tasks(source, to="new/"):
    return [Task(source, one.key, one.size, one.version, to + one.key) for one in source.list()]


def moved(target, source, **more):
    return list(Mover(target, part_size=6 * MIB, **more).move(tasks(source)))


def files(source):
    return {str(one.relative_to(source.root)): one.read_bytes() for one in source.root.rglob("*") if one.is_file()}


def uploads(s3, bucket):
    return s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])


def now_and_then(fault, ops, share, seed):
    """The fault meets this share of the requests of these kinds."""
    chance, lock = random.Random(seed), threading.Lock()

    def rule(request):
        with lock:
            return fault if request.op in ops and chance.random() < share else None

    return rule


class TestThereAndBack:
    def test_every_file_arrives_with_its_checksum(self, s3, bucket, small, large):
        target = open_objects(f"s3://{bucket}/p", s3.env)
        ended = moved(target, small) + moved(target, large)
        meant = files(small) | files(large)
        assert s3.objects(bucket, "p/new") == meant
        for one in ended:
            found = s3.client().head_object(Bucket=bucket, Key=f"p/{one.task.to}", ChecksumMode="ENABLED")
            assert found["ETag"].strip('"') == one.stored.version
            if one.how == "put":
                assert one.digest == "sha256:" + hashlib.sha256(meant[one.task.key]).hexdigest()
        assert {one.how for one in ended} == {"put", "parts"}
        assert uploads(s3, bucket) == []

    def test_it_comes_back_as_it_went(self, s3, bucket, small, large, tmp_path):
        place = open_objects(f"s3://{bucket}/p", s3.env)
        moved(place, small), moved(place, large)
        back = FolderObjects.of(str(tmp_path / "back"))
        ended = moved(back, open_objects(f"s3://{bucket}/p/new", s3.env))
        assert all(isinstance(one, Moved) for one in ended)
        assert {key.removeprefix("new/"): data for key, data in files(back).items()} == files(small) | files(large)

    def test_a_large_file_that_is_there_is_not_sent_again(self, s3, bucket, large):
        with s3faults.faulty(s3) as proxy:
            target = open_objects(f"s3://{bucket}/p", proxy.env)
            assert [one.how for _ in range(2) for one in moved(target, large)] == ["parts", "there"]
        assert proxy.up == 36 * MIB + 5

    def test_strange_names_go_there_and_back(self, s3, bucket, tmp_path):
        source = FolderObjects.of(str(tmp_path / "source"))
        for n, name in enumerate(NAMES):
            source.put(name, b"%d" % n)
        place, back = open_objects(f"s3://{bucket}/p", s3.env), FolderObjects.of(str(tmp_path / "back"))
        assert [one for one in moved(place, source) if isinstance(one, Failed)] == []
        assert s3.objects(bucket, "p/new") == files(source)
        assert [
            one for one in moved(back, open_objects(f"s3://{bucket}/p/new", s3.env)) if isinstance(one, Failed)
        ] == []
        assert {key.removeprefix("new/"): data for key, data in files(back).items()} == files(source)

    def test_names_that_a_disk_cannot_hold_fail_alone(self, s3, bucket, tmp_path):
        for key in ("good", "x"):
            s3.client().put_object(Bucket=bucket, Key="p/" + key, Body=b"1")
        source = open_objects(f"s3://{bucket}/p", s3.env)
        back = FolderObjects.of(str(tmp_path / "back"))
        listed = [Task(source, key, 1, "", key) for key in ("good", "a//b", "a/../b", "folder/", "x")]
        ended = list(Mover(back).move(listed))
        assert sorted(one.task.key for one in ended if isinstance(one, Failed)) == ["a/../b", "a//b", "folder/"]
        assert files(back) == {"good": b"1", "x": b"1"}


class TestWithinAStore:
    def test_no_byte_passes_through_us(self, s3, bucket, small, large):
        there = open_objects(f"s3://{bucket}/p", s3.env)
        moved(there, small), moved(there, large)
        other = s3.bucket()
        with s3faults.faulty(s3) as proxy:
            ended = moved(open_objects(f"s3://{other}/q", proxy.env), open_objects(f"s3://{bucket}/p/new", proxy.env))
        assert {(one.how, one.sent) for one in ended} == {("copied", 0)}
        assert (proxy.up, proxy.down) == (0, 0)
        assert s3.objects(other, "q/new") == files(small) | files(large)
        assert {one.task.key: one.digest for one in ended if one.task.key != "large"} == {
            key: "etag:" + hashlib.md5(data).hexdigest() for key, data in files(small).items()
        }
        assert uploads(s3, other) == []

    def test_a_source_that_is_gone_fails_alone(self, s3, bucket, small):
        place = open_objects(f"s3://{bucket}/p", s3.env)
        moved(place, small)
        source = open_objects(f"s3://{bucket}/p/new", s3.env)
        listed = [Task(source, one.key, one.size, one.version, "copy/" + one.key) for one in source.list()]
        s3.client().delete_object(Bucket=bucket, Key="p/new/d1/f1")
        failed = [one for one in Mover(place).move(listed) if isinstance(one, Failed)]
        assert [(one.task.key, type(one.error)) for one in failed] == [("d1/f1", NotFound)]


class TestBetweenStores:
    def test_the_bytes_pass_once_and_digests_are_those_of_the_source(self, s3, bucket, small, large):
        moved(open_objects(f"s3://{bucket}/p", s3.env), small), moved(open_objects(f"s3://{bucket}/p", s3.env), large)
        other = s3.bucket()
        with s3faults.faulty(s3) as proxy:  # another address is another store
            source, target = open_objects(f"s3://{bucket}/p/new", proxy.env), open_objects(f"s3://{other}/q", s3.env)
            ended = list(Mover(target).move(tasks(source)))
        meant = files(small) | files(large)
        assert s3.objects(other, "q/new") == meant
        assert proxy.down == sum(map(len, meant.values()))
        assert {one.digest for one in ended if one.how == "parts"} == {source.head("large").digest}

    def test_what_is_there_already_is_not_even_read(self, s3, bucket, large):
        moved(open_objects(f"s3://{bucket}/p", s3.env), large)
        other = s3.bucket()
        with s3faults.faulty(s3) as proxy:
            source, target = open_objects(f"s3://{bucket}/p/new", proxy.env), open_objects(f"s3://{other}/q", s3.env)
            assert [one.how for _ in range(2) for one in Mover(target).move(tasks(source))] == ["parts", "there"]
        assert proxy.down == 36 * MIB + 5

    def test_a_bit_that_falls_over_on_the_way_down_is_found_out(self, s3, bucket, large):
        moved(open_objects(f"s3://{bucket}/p", s3.env), large)
        other = s3.bucket()
        with s3faults.faulty(s3, s3faults.at(s3faults.FLIPPED_ANSWER, "GetObject", 3)) as proxy:
            source, target = open_objects(f"s3://{bucket}/p/new", proxy.env), open_objects(f"s3://{other}/q", s3.env)
            [one] = Mover(target).move(tasks(source))
        assert len(proxy.met) == 1
        assert isinstance(one, Moved)
        assert s3.objects(other, "q/new") == files(large)


PASSING = [
    (s3faults.SLOW_DOWN, ("PutObject", "UploadPart", "CreateUpload", "Complete", "HeadObject")),
    (s3faults.ERROR, ("PutObject", "UploadPart", "CreateUpload", "Complete", "HeadObject")),
    (s3faults.ERROR_AFTER, ("PutObject", "UploadPart", "CreateUpload", "Complete")),
    (s3faults.BEFORE, ("PutObject", "UploadPart", "CreateUpload", "Complete", "HeadObject")),
    (s3faults.AFTER, ("PutObject", "UploadPart", "CreateUpload", "Complete")),
    (s3faults.FLIPPED, ("PutObject", "UploadPart")),
    (s3faults.LOST, ("UploadPart",)),
]


class TestFaults:
    @pytest.mark.parametrize(("fault", "ops"), PASSING, ids=[fault for fault, _ in PASSING])
    def test_what_arrives_is_equal_and_the_rest_is_named_and_goes_with_another_run(
        self, s3, bucket, small, large, fault, ops, seed
    ):
        with s3faults.faulty(s3, now_and_then(fault, ops, 0.2, seed)) as proxy:
            target = open_objects(f"s3://{bucket}/p", proxy.env)
            again = Steps(tries=4)
            ended = moved(target, small, again=again) + moved(target, large, again=again)
        assert proxy.met
        meant, found = files(small) | files(large), s3.objects(bucket, "p/new")
        arrived = {one.task.key for one in ended if isinstance(one, Moved)}
        assert {key: found[key] for key in arrived} == {key: meant[key] for key in arrived}
        assert {one.task.key for one in ended} == meant.keys()
        target = open_objects(f"s3://{bucket}/p", s3.env)
        assert all(isinstance(one, Moved) for one in moved(target, small) + moved(target, large))
        assert s3.objects(bucket, "p/new") == meant
        assert uploads(s3, bucket) == []

    @pytest.mark.parametrize("fault", [s3faults.TRUNCATED, s3faults.FLIPPED_ANSWER, s3faults.ERROR, s3faults.BEFORE])
    def test_the_way_down_too(self, s3, bucket, small, tmp_path, fault, seed):
        moved(open_objects(f"s3://{bucket}/p", s3.env), small)
        with s3faults.faulty(s3, now_and_then(fault, ("GetObject",), 0.2, seed)) as proxy:
            back = FolderObjects.of(str(tmp_path / "back"))
            ended = moved(back, open_objects(f"s3://{bucket}/p/new", proxy.env), again=Steps(tries=4))
        assert proxy.met
        arrived = {one.task.key for one in ended if isinstance(one, Moved)}
        assert {key.removeprefix("new/"): data for key, data in files(back).items()} == {
            key: data for key, data in files(small).items() if key in arrived
        }
        assert len(ended) == 60
        assert len(arrived) > 50  # three readings in a row may all be bad

    def test_lost_parts_are_found_out(self, s3, bucket, large):
        with s3faults.faulty(s3, s3faults.at(s3faults.LOST, "UploadPart", 2, 3)) as proxy:
            [one] = moved(open_objects(f"s3://{bucket}/p", proxy.env), large, again=Steps(tries=3))
        assert len(proxy.met) == 2
        assert isinstance(one, Moved)
        assert s3.objects(bucket, "p/new") == files(large)
        assert uploads(s3, bucket) == []

    def test_credentials_that_expire_half_way_end_it_and_another_run_goes_on(self, s3, bucket, small, large):
        with s3faults.faulty(s3, s3faults.since(s3faults.EXPIRED, 30)) as proxy:
            with pytest.raises(Refused, match="expired") as raised:
                moved(open_objects(f"s3://{bucket}/p", proxy.env), small)
            assert "run the same command again" in raised.value.hint
        assert len(s3.objects(bucket, "p/new")) < 60
        moved(open_objects(f"s3://{bucket}/p", s3.env), small)
        assert s3.objects(bucket, "p/new") == files(small)

    def test_parts_that_went_before_credentials_expired_are_not_sent_again(self, s3, bucket, large):
        with s3faults.faulty(s3, s3faults.at(s3faults.EXPIRED, "UploadPart", 5, 6, 7)) as proxy:
            target = open_objects(f"s3://{bucket}/p", proxy.env)
            with pytest.raises(Refused, match="expired"):
                moved(target, large)
        assert len(uploads(s3, bucket)) == 1
        with s3faults.faulty(s3) as proxy:
            [one] = moved(open_objects(f"s3://{bucket}/p", proxy.env), large)
        assert (one.how, len(proxy.ops("UploadPart")), len(proxy.ops("CreateUpload"))) == ("parts", 3, 0)
        assert s3.objects(bucket, "p/new") == files(large)
        assert uploads(s3, bucket) == []

    def test_a_prefix_that_may_not_be_read_fails_alone(self, s3, bucket, small, tmp_path):
        moved(open_objects(f"s3://{bucket}/p", s3.env), small)

        def rule(request):
            return s3faults.DENIED if request.key.startswith("p/new/d3/") else None

        with s3faults.faulty(s3, rule) as proxy:
            back = FolderObjects.of(str(tmp_path / "back"))
            ended = moved(back, open_objects(f"s3://{bucket}/p/new", proxy.env))
        assert {(one.task.key, type(one.error)) for one in ended if isinstance(one, Failed)} == {
            (key, Refused) for key in files(small) if key.startswith("d3/")
        }

    def test_a_bucket_without_permission_ends_it(self, s3, bucket, small):
        with s3faults.faulty(s3, s3faults.at(s3faults.DENIED, "PutObject")) as proxy:
            target = open_objects(f"s3://{bucket}/p", proxy.env)
            with pytest.raises(Refused, match="may not"):
                moved(target, small)
        assert s3.objects(bucket) == {}

    def test_who_may_not_list_uploads_moves_all_the_same(self, s3, bucket, large):
        with s3faults.faulty(s3, s3faults.at(s3faults.DENIED, "ListUploads")) as proxy:
            [one] = moved(open_objects(f"s3://{bucket}/p", proxy.env), large)
        assert isinstance(one, Moved)

    def test_a_stop_waits_for_no_slow_body(self, s3, bucket, large, monkeypatch):
        monkeypatch.setattr(moving, "PATIENCE", 120.0)
        stopped = threading.Event()

        def rule(request):
            if request.op != "UploadPart":
                return None
            if len(proxy.ops("UploadPart")) <= PARTS_AT_ONCE:
                return s3faults.SLOW
            stopped.wait(120)  # those after the first ones cannot end before the stop
            return s3faults.BEFORE

        def check():
            if proxy.met:
                stopped.set()
                raise Stopped

        with s3faults.faulty(s3, rule) as proxy, pytest.raises(Stopped):
            moved(open_objects(f"s3://{bucket}/p", proxy.env), large, check=check)
        assert proxy.ops("Complete") == []
        assert [one for one in threading.enumerate() if one.name.startswith(("mover", "part"))] == []


KILLED = """
import os, sys
from mlmigrate.storage.folder import FolderObjects
from mlmigrate.storage.moving import Mover, Task
from mlmigrate.storage.objects import open_objects
source = FolderObjects.of(sys.argv[1])
tasks = [Task(source, one.key, one.size, one.version, "new/" + one.key) for one in source.list()]
list(Mover(open_objects(sys.argv[2], os.environ), part_size=6 << 20).move(tasks))
"""


def test_after_a_kill_only_what_is_missing_is_sent(s3, bucket, large):
    sent = threading.Event()

    def rule(request):
        if request.op == "UploadPart" and len(proxy.ops("UploadPart")) > 4:
            sent.set()
            return s3faults.SLOW
        return None

    with s3faults.faulty(s3, rule) as proxy:
        command = [sys.executable, "-c", KILLED, str(large.root), f"s3://{bucket}/p"]
        process = subprocess.Popen(command, env={**os.environ, **proxy.env})
        assert sent.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert s3.objects(bucket) == {}
    with s3faults.faulty(s3) as proxy:
        [one] = moved(open_objects(f"s3://{bucket}/p", proxy.env), large)
    assert len(proxy.ops("UploadPart")) < 7
    assert proxy.ops("CreateUpload") == []
    assert (one.how, s3.objects(bucket, "p/new")) == ("parts", files(large))
    assert uploads(s3, bucket) == []


def test_a_large_file_that_changes_under_its_upload_leaves_no_parts(s3, bucket, tmp_path):
    file = tmp_path / "source" / "large"
    file.parent.mkdir()
    file.write_bytes(b"x" * (PART + 1))

    def rule(request):
        if request.op == "UploadPart":
            with file.open("r+b") as out:
                out.write(os.urandom(8))

    with s3faults.faulty(s3, rule) as proxy:
        [one] = moved(open_objects(f"s3://{bucket}/p", proxy.env), FolderObjects.of(str(file.parent)))
    assert isinstance(one, Failed)
    assert isinstance(one.error, MigrateError)
    assert s3.objects(bucket) == {}
    assert uploads(s3, bucket) == []
    [one] = moved(open_objects(f"s3://{bucket}/p", s3.env), FolderObjects.of(str(file.parent)))
    assert s3.objects(bucket, "p/new") == {"large": file.read_bytes()}


def test_bytes_pass_through_where_each_side_may_reach_its_own_bucket_alone(s3):
    data = {"a": b"small", "b/c": b"", "large": random.Random(1).randbytes(PART + 1)}
    left, right = (
        open_objects(f"s3://{s3.bucket(f'of-{side}')}", s3.env_of(*s3.identities[side])) for side in ("left", "right")
    )
    for key, body in data.items():
        s3.client().put_object(Bucket="of-left", Key=key, Body=body)
    ended = list(Mover(right).move(tasks(left, "")))
    assert {one.how for one in ended} == {"put", "parts"}
    assert s3.objects("of-right") == data
