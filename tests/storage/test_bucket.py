"""An archive's storage over files by key: here over a folder, in test_bucket_s3 over a real S3."""

import hashlib
import io
import os
import threading
from dataclasses import replace
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlmigrate.errors import BadData, MigrateError, NotFound, Unavailable
from mlmigrate.storage import bucket, open_storage
from mlmigrate.storage.bucket import BucketStorage
from mlmigrate.storage.folder import FolderObjects
from mlmigrate.storage.objects import Exists


class Counting(FolderObjects):
    """Says what was asked."""

    def __init__(self, root):
        super().__init__(root)
        self.asked = []

    def open(self, key, start=0, length=None, version=""):
        self.asked.append((key, start, length))
        return super().open(key, start, length, version)

    def head(self, key):
        self.asked.append((key, "head"))
        return super().head(key)


@pytest.fixture
def objects(tmp_path):
    return Counting(tmp_path / "s")


@pytest.fixture
def storage(objects):
    return BucketStorage(objects)


def put(storage, name, data):
    with storage.part() as part:
        part.write(data)
        part.become(name)


def files(storage):
    return {one.key: (storage.objects.root / one.key).read_bytes() for one in storage.objects.list()}


def test_an_address_of_an_object_store_opens_it():
    env = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    assert open_storage("s3://bucket/prefix", env).shown == "s3://bucket/prefix"


def test_a_part_is_there_only_once_it_has_its_name(storage):
    with storage.part() as part:
        part.write(b"12")
        part.write(memoryview(b"345"))
        assert files(storage) == {}
        part.become("a/b")
    assert files(storage) == {"a/b": b"12345"}
    with storage.part() as part:
        part.write(b"never")
    assert files(storage) == {"a/b": b"12345"}


@pytest.mark.parametrize("size", [0, 1, (16 << 20) + 1, (40 << 20) + 7])
def test_parts_of_any_size_arrive(storage, size):
    data = hashlib.shake_128(b"x").digest(size)
    with storage.part() as part:
        for start in range(0, size, 7 << 20):
            part.write(memoryview(data)[start : start + (7 << 20)])
        part.become("a/b")
    assert files(storage) == {"a/b": data}
    with storage.open("a/b") as file:
        assert file.read() == data


def test_create_writes_once_and_a_repeated_answer_is_our_own(storage):
    assert [storage.create("x/y", b"first"), storage.create("x/y", b"second")] == [True, False]
    assert storage.create("x/y", b"first") is True
    assert files(storage) == {"x/y": b"first"}


def test_of_many_creators_one_wins(storage):
    gate, won = threading.Barrier(8), []

    def work(n):
        gate.wait(120)
        if storage.create("x", b"%d" % n):
            won.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(won) == 1
    assert files(storage) == {"x": b"%d" % won[0]}


def test_a_store_that_refuses_conditional_puts_is_asked_first_and_it_is_said_once(storage, monkeypatch, caplog):
    real = FolderObjects.put

    def refusing(self, key, data, *, create=False, sha256=""):
        if create:
            raise Unavailable("s3://b is busy or away (NotImplemented).")
        return real(self, key, data, sha256=sha256)

    monkeypatch.setattr(FolderObjects, "put", refusing)
    assert [storage.create("x", b"1"), storage.create("x", b"2"), storage.create("y", b"3")] == [True, False, True]
    assert files(storage) == {"x": b"1", "y": b"3"}
    assert [record.message.count("conditional") for record in caplog.records] == [1]


def test_a_store_that_is_away_is_not_taken_for_one_without_conditional_puts(storage, monkeypatch):
    def away(*_, **__):
        raise Unavailable("s3://b is busy or away (503).")

    monkeypatch.setattr(FolderObjects, "put", away)
    with pytest.raises(Unavailable):
        storage.create("x", b"1")


def test_two_that_a_store_refuses_both_try_again(storage, monkeypatch):
    real, calls = FolderObjects.put, []

    def conflicting(self, key, data, *, create=False, sha256=""):
        calls.append(key)
        if len(calls) == 1:
            raise Exists("a conflict, and nothing there")
        return real(self, key, data, create=create, sha256=sha256)

    monkeypatch.setattr(FolderObjects, "put", conflicting)
    assert storage.create("x", b"1") is True
    assert files(storage) == {"x": b"1"}


def test_entries_lie_directly_in_a_folder_and_a_walk_finds_all(storage):
    put(storage, "a/b/c", b"123")
    put(storage, "a/d", b"")
    assert sorted((one.name, one.folder, one.size) for one in storage.entries("a")) == [
        ("a/b", True, 0),
        ("a/d", False, 0),
    ]
    assert sorted((one.name, one.size) for one in storage.walk("")) == [("a/b/c", 3), ("a/d", 0)]
    assert [one.name for one in storage.entries("")] == ["a"]
    assert list(storage.entries("nowhere")) == []


def test_delete_takes_files_and_folders_and_may_be_repeated(storage):
    for name in ("a/b/c", "a/b/d", "a/bc", "e", "f"):
        put(storage, name, b"1")
    storage.delete("a/b")
    assert sorted(files(storage)) == ["a/bc", "e", "f"]
    for _ in range(2):
        storage.delete("e")
        storage.delete_files(["f", "none"])
        assert sorted(files(storage)) == ["a/bc"]


def test_a_small_file_is_one_request_and_a_table_that_is_opened_again_none(storage, objects):
    put(storage, "packs/p/runs.parquet", b"1" * 1000)
    for _ in range(3):
        with storage.open("packs/p/runs.parquet") as file:
            assert file.read() == b"1" * 1000
    assert objects.asked == [("packs/p/runs.parquet", 0, None)]


def test_a_file_that_was_written_again_is_read_again(storage):
    put(storage, "writers/1.json", b"old")
    assert storage.open("writers/1.json").read() == b"old"
    put(storage, "writers/1.json", b"new")
    assert storage.open("writers/1.json").read() == b"new"


def test_a_large_file_read_on_and_on_is_one_request(storage, objects):
    data = hashlib.shake_128(b"y").digest(20 << 20)
    put(storage, "blobs/x", data)
    with storage.open("blobs/x") as file:
        read = b"".join(iter(lambda: file.read(1 << 20), b""))
    assert read == data
    assert objects.asked == [("blobs/x", 0, None)]


def test_a_stream_that_breaks_is_gone_on_with_where_it_broke(storage, objects, monkeypatch):
    data = hashlib.shake_128(b"y").digest(9 << 20)
    put(storage, "blobs/x", data)
    real = Counting.open

    class Breaking(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > (5 << 20):
                raise Unavailable("the answer ended too soon")
            return super().read(size)

    def opened(self, key, start=0, length=None, version=""):
        return Breaking(data) if not start else real(self, key, start, length, version)

    monkeypatch.setattr(Counting, "open", opened)
    with storage.open("blobs/x") as file:
        assert file.read() == data


@pytest.mark.parametrize("rows", [10, 900_000])
def test_a_table_is_read_from_its_footer_on_and_not_whole(storage, objects, rows):
    table = pa.table({"a": pa.array(range(rows)), "b": pa.array([n * 7919 % 1000003 for n in range(rows)])})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=100_000, compression="none", use_dictionary=False)
    put(storage, "packs/p/points.parquet", sink.getvalue())
    with storage.open("packs/p/points.parquet") as file:
        parquet = pq.ParquetFile(file)
        last = parquet.read_row_group(parquet.num_row_groups - 1, columns=["b"])
    assert last["b"].to_pylist() == table["b"].to_pylist()[-len(last) :]
    ranges = [length for _, start, length in (one for one in objects.asked if len(one) == 3) if start]
    assert sum(ranges) < max(1, len(sink.getvalue()) // 2)


def test_seeking_anywhere_gives_the_bytes_there(storage):
    data = hashlib.shake_128(b"z").digest(6 << 20)
    put(storage, "blobs/x", data)
    with storage.open("blobs/x") as file:
        for at in (0, 5 << 20, 100, (6 << 20) - 3, 3 << 20, 6 << 20, 7 << 20):
            file.seek(at)
            assert file.read(1000) == data[at : at + 1000]
            assert file.tell() == at + len(data[at : at + 1000])
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]


class Digesting(FolderObjects):
    """Keeps the sha256 that was sent along, as S3 does."""

    kept = MappingProxyType({})

    def head(self, key):
        found = super().head(key)
        return found and replace(found, digest=self.kept.get(key, ""))


def test_a_digest_that_the_store_keeps_tells_whether_bytes_are_there(tmp_path):
    storage = BucketStorage(Digesting(tmp_path / "s"))
    put(storage, "b", b"12")
    sha256 = hashlib.sha256(b"12").hexdigest()
    assert (storage.holds("b", 3, sha256), storage.holds("c", 2, sha256)) == (False, False)
    assert storage.holds("b", 2, sha256) is None  # no digest: to be read
    storage.objects.kept = {"b": f"sha256:{sha256}"}
    assert (storage.holds("b", 2, sha256), storage.holds("b", 2, "0" * 64)) == (True, False)
    storage.objects.kept = {"b": "sha256:" + "0" * 64 + "/16777216"}
    assert storage.holds("b", 2, sha256) is None


OUTSIDE = ["../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "..", "a\0", "a\\b", ".parts/x", "ü"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leaves_the_place(storage, name):
    for call in (storage.open, storage.size, storage.delete, storage.spot):
        with pytest.raises(BadData, match="no name of a file"):
            call(name)
    with pytest.raises(BadData):
        storage.create(name, b"")
    with pytest.raises(BadData):
        put(storage, name, b"")


def test_what_is_missing_is_said(storage):
    with pytest.raises(NotFound):
        storage.open("x")
    assert storage.size("x") is None


def test_sweep_takes_old_parts_only(storage, objects, monkeypatch):
    put(storage, "a", b"")
    for name in ("old", "young"):
        objects.put(f".parts/{name}", b"")
    os.utime(objects.root / ".parts" / "old", (900, 900))
    assert storage.sweep(950, dry_run=True) == [".parts/old"]
    assert storage.sweep(950) == [".parts/old"]
    assert sorted(files(storage)) == [".parts/young", "a"]


def test_no_room_for_a_large_table_here_is_said(storage, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bucket, "HELD", 10)
    monkeypatch.setattr(bucket.tempfile, "TemporaryFile", full)
    with pytest.raises(MigrateError, match="No space is left"):
        put(storage, "a", b"x" * 11)
