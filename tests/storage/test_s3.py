"""S3 as objects, against a real server: what arrives is looked at with boto3 alone."""

import base64
import hashlib
import io
import os

import pytest

import s3server
from mlmigrate.errors import NotFound, Refused, Unavailable, UsageError
from mlmigrate.storage.objects import (
    BadKey,
    Changed,
    Exists,
    composite,
    digest_of,
    open_objects,
    part_size,
    parts_in,
)

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3server.running(tmp_path_factory.mktemp("s3"), {"reader": ["Read:readable", "List:readable"]}) as server:
        yield server


@pytest.fixture
def bucket(s3):
    return s3.bucket()


@pytest.fixture
def objects(s3, bucket):
    return open_objects(f"s3://{bucket}/some/prefix", s3.env)


class Bytes:
    """A body in memory; `once` gives streams that cannot be read twice."""

    def __init__(self, data, once=False):
        self.data, self.size, self.once, self.asked = data, len(data), once, []

    def open(self, start, length):
        self.asked.append(start)
        stream = io.BytesIO(self.data[start : start + length])
        stream.seekable = lambda: not self.once
        return stream


def test_what_is_put_lies_under_its_key_with_its_checksum(s3, bucket, objects):
    stored = objects.put("a/x.txt", b"hello")
    found = s3.client().get_object(Bucket=bucket, Key="some/prefix/a/x.txt", ChecksumMode="ENABLED")
    digest = hashlib.sha256(b"hello")
    assert found["Body"].read() == b"hello"
    assert base64.b64decode(found["ChecksumSHA256"]) == digest.digest()
    assert stored.digest == f"sha256:{digest.hexdigest()}"
    assert objects.head("a/x.txt").digest == stored.digest
    assert objects.head("a/y.txt") is None


ODD = ["a#b", "a?b", "a%2Fb", "a b", "a+b", "é", "e\u0301", "😀", "A/case", "a/Case", "a//b", "new\nline", "n" * 250]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_name_arrives_as_it_is_and_leads_back(s3, bucket, objects, name):
    if name == "a//b":
        pytest.skip("SeaweedFS keeps 'a/b' for it") if "a/b" in s3.objects(bucket) else None
    objects.put(name, name.encode())
    assert s3.client().get_object(Bucket=bucket, Key=f"some/prefix/{name}")["Body"].read() == name.encode()
    with objects.open(name) as stream:
        assert stream.read() == name.encode()


@pytest.mark.parametrize("name", ["", "folder/", "a/../b", "a/./b", "é" * 600, "\ud800"], ids=ascii)
def test_a_name_that_cannot_be_held_is_refused_not_changed(s3, bucket, objects, name):
    with pytest.raises(BadKey):
        objects.put(name, b"x")
    assert s3.objects(bucket) == {}


def test_a_listing_has_every_object_below_and_no_folder_markers(s3, bucket, objects):
    client = s3.client()
    for key in ("some/prefix/a/1", "some/prefix/a/empty", "some/prefix/ab/2", "some/prefixed/3"):
        client.put_object(Bucket=bucket, Key=key, Body=b"" if "empty" in key else b"data")
    client.put_object(Bucket=bucket, Key="some/prefix/folder/", Body=b"")
    assert sorted((one.key, one.size) for one in objects.list()) == [("a/1", 4), ("a/empty", 0), ("ab/2", 4)]
    assert sorted(one.key for one in objects.list("a/")) == ["a/1", "a/empty"]
    version = next(one.version for one in objects.list("a/") if one.key == "a/1")
    assert version == hashlib.md5(b"data").hexdigest()


def test_one_of_two_creators_wins(objects):
    objects.put("commit", b"first", create=True)
    with pytest.raises(Exists):
        objects.put("commit", b"second", create=True)
    with objects.open("commit") as stream:
        assert stream.read() == b"first"


def test_a_range_is_read_and_the_end_is_known(objects):
    objects.put("x", b"0123456789")
    with objects.open("x", 3, 4) as stream:
        assert stream.read() == b"3456"
    with objects.open("x", 7) as stream:
        assert stream.read() == b"789"
    with objects.open("x", 7, 100) as stream:
        assert stream.read() == b"789"
    with objects.open("x", 0, 0) as stream:
        assert stream.read() == b""


def test_an_object_that_was_written_meanwhile_is_told(objects):
    version = objects.put("x", b"old").version
    objects.put("x", b"new")
    with pytest.raises(Changed), objects.open("x", version=version) as stream:
        stream.read()


@pytest.mark.parametrize("once", [False, True], ids=["a file", "a stream"])
@pytest.mark.parametrize("size", [0, 5 * MIB, 5 * MIB + 1, 12 * MIB])
def test_a_file_of_any_size_arrives_with_its_digest(s3, bucket, objects, size, once):
    data = os.urandom(size)
    stored = objects.upload("big", Bytes(data, once), part_size=5 * MIB)
    assert s3.objects(bucket) == {"some/prefix/big": data}
    parts = [hashlib.sha256(data[at : at + 5 * MIB]).digest() for at in range(0, size, 5 * MIB)]
    whole = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert stored.digest == (composite(parts, 5 * MIB) if len(parts) > 1 else whole)
    assert objects.head("big").digest == stored.digest
    assert digest_of(io.BytesIO(data), parts_in(stored.digest)) == (stored.digest, size)
    assert list(objects.unfinished()) == []


def test_an_upload_goes_on_at_the_parts_that_are_there(s3, bucket, objects):
    data = os.urandom(17 * MIB)
    client, at = s3.client(), {"Bucket": bucket, "Key": "some/prefix/big"}
    upload = client.create_multipart_upload(**at, ChecksumAlgorithm="SHA256")["UploadId"]
    for number, part in ((1, data[: 5 * MIB]), (3, os.urandom(5 * MIB))):  # the third is of another file
        checksum = base64.b64encode(hashlib.sha256(part).digest()).decode()
        client.upload_part(**at, UploadId=upload, PartNumber=number, Body=part, ChecksumSHA256=checksum)
    assert [(key, found) for key, found, _ in objects.unfinished()] == [("big", upload)]
    sent = []
    objects.throttle = type("Counted", (), {"request": lambda self, size=0: sent.append(size)})()
    objects.upload("big", Bytes(data), part_size=5 * MIB, resume=upload)
    assert sorted(size for size in sent if size) == [2 * MIB, 5 * MIB, 5 * MIB]
    assert s3.objects(bucket) == {"some/prefix/big": data}
    assert list(objects.unfinished()) == []


def test_an_upload_that_is_gone_is_begun_anew(s3, bucket, objects):
    data = os.urandom(6 * MIB)
    objects.upload("big", Bytes(data), part_size=5 * MIB, resume="0123456789abcdef")
    assert s3.objects(bucket) == {"some/prefix/big": data}


def test_a_broken_off_upload_can_be_taken_away(s3, bucket, objects):
    upload = s3.client().create_multipart_upload(Bucket=bucket, Key="some/prefix/big")["UploadId"]
    objects.abort("big", upload)
    objects.abort("big", upload)
    assert list(objects.unfinished()) == []


@pytest.mark.parametrize("parts_of", [5 * MIB, 0])
def test_the_store_copies_by_itself_and_the_copy_is_proven(s3, bucket, objects, parts_of):
    data = os.urandom(12 * MIB) if parts_of else b"small"
    stored = objects.upload("big", Bytes(data), part_size=parts_of)
    other = open_objects(f"s3://{s3.bucket()}", s3.env)
    copy = other.copy(objects, "big", "there/big", len(data), stored.version)
    assert (copy.version, copy.size) == (stored.version, len(data))
    assert copy.digest in (stored.digest, f"etag:{stored.version}")
    assert s3.objects(other.bucket) == {"there/big": data}


def test_a_source_that_was_written_meanwhile_is_not_copied(s3, objects):
    version = objects.put("x", b"old").version
    objects.put("x", b"new")
    other = open_objects(f"s3://{s3.bucket()}", s3.env)
    with pytest.raises(Changed):
        other.copy(objects, "x", "x", 3, version)
    assert s3.objects(other.bucket) == {}


def test_more_than_a_page_is_deleted(s3, bucket, objects):
    for n in range(3):
        objects.put(f"x{n}", b"")
    objects.delete([*(f"x{n}" for n in range(1, 1003)), "x0"])
    assert s3.objects(bucket) == {}


def test_a_probe_of_the_right_to_write_leaves_nothing(s3, bucket, objects):
    objects.check(write=True)
    assert s3.objects(bucket) == {}


def test_each_refusal_is_told_for_what_it_is(s3, bucket, objects):
    limited = s3.env_of(*s3.identities["reader"])
    s3.bucket("readable")
    open_objects("s3://readable", limited).check()
    with pytest.raises(Refused, match="may not do that"):
        open_objects("s3://readable", limited).check(write=True)
    with pytest.raises(Refused, match="may not do that"):
        list(open_objects(f"s3://{bucket}", limited).list())
    with pytest.raises(Refused, match="access key is unknown"):
        open_objects(f"s3://{bucket}", s3.env_of("NOBODY", "secret-of-nobody")).put("x", b"")
    with pytest.raises(Refused, match="secret key is wrong") as wrong:
        open_objects(f"s3://{bucket}", s3.env_of(s3.key, "secret-of-nobody")).put("x", b"")
    assert "secret-of-nobody" not in str(wrong.value) + wrong.value.hint
    with pytest.raises(NotFound, match="no such bucket"):
        open_objects("s3://there-is-none", s3.env).check()
    with pytest.raises(NotFound, match="not there"), objects.open("nothing") as stream:
        stream.read()
    with pytest.raises(UsageError, match="no bucket"):
        open_objects("s3:///x", s3.env)


def test_a_server_that_is_away_may_be_asked_again(s3):
    env = {**s3.env, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "MLFLOW_S3_ENDPOINT_URL": ""}
    with pytest.raises(Unavailable):
        open_objects("s3://bucket", env).put("x", b"")


def test_parts_stay_few_enough():
    assert part_size(1) == 16 * MIB
    assert part_size(160_000 * MIB) == 16 * MIB
    assert part_size(160_000 * MIB + 1) == 32 * MIB
    assert part_size(5 << 40, 64 * MIB) == 1024 * MIB
