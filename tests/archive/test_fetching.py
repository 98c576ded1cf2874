"""Blobs elsewhere are fetched before they are asked for, and no more of them than are wanted."""

import threading

import pytest

from mlmigrate.archive import fetching
from mlmigrate.archive.reader import ArchiveSource
from mlmigrate.errors import Damaged
from mlmigrate.storage.bucket import BucketStorage
from mlmigrate.storage.folder import FolderObjects


class Watched(FolderObjects):
    """Notes which blobs are read, and how many at once."""

    def __init__(self, root):
        super().__init__(root)
        self.read, self.now, self.most = [], 0, 0
        self.watching = threading.Lock()

    def open(self, key, start=0, length=None, version=""):
        with self.watching:
            if key.startswith("blobs/"):
                self.read.append(key)
        return super().open(key, start, length, version)


@pytest.fixture
def objects(tmp_path, kit):
    objects = Watched(tmp_path / "s")
    files = [kit.artifact("r", f"f{n}", b"%d" % n * (n + 1)) for n in range(200)]
    kit.write(BucketStorage(objects), [kit.run("r")], (), files)
    objects.read.clear()
    return objects


def artifacts(objects):
    source = ArchiveSource(BucketStorage(objects))
    with source.read(list(source.refs())) as reading:
        yield from reading.artifacts()
    source.close()


def test_who_only_lists_fetches_nothing(objects):
    assert [one.path for one in artifacts(objects)] == [f"f{n}" for n in range(200)]
    assert objects.read == []


def test_every_blob_is_fetched_once_and_given_in_order(objects):
    for n, one in enumerate(artifacts(objects)):
        with one.open() as stream:
            assert stream.read() == b"%d" % n * (n + 1)
    assert len(objects.read) == len(set(objects.read)) == 200


def test_a_file_may_be_opened_again_or_late_or_in_pieces(objects):
    every = list(artifacts(objects))
    for one in (every[150], every[3], every[150], every[0]):
        n = int(one.path[1:])
        with one.open() as stream:
            assert stream.read() == b"%d" % n * (n + 1)
    with every[9].open.open(2, 5) as stream:
        assert stream.read() == b"99999"


def test_no_more_than_so_many_bytes_are_held(objects, monkeypatch):
    monkeypatch.setattr(fetching, "MEMORY", 500)
    given = artifacts(objects)
    with next(given).open() as stream:
        stream.read()
    assert len(objects.read) < 40
    assert [one.path for one in given][-1] == "f199"


def test_damage_is_told_by_the_file_it_befell(objects, kit):
    (name,) = [one for one in objects.list("blobs/") if one.size == 11 * 2]
    objects.put(name.key, b"x" * 22)
    told = []
    for one in artifacts(objects):
        try:
            with one.open() as stream:
                stream.read()
        except Damaged as error:
            told.append((one.path, "sha256 differs" in error.message))
    assert told == [("f10", True)]
