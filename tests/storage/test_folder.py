"""A folder is used like an object store: files by key, written whole, under the very name or not at all."""

import ctypes
import errno
import hashlib
import io
import os
import threading

import pytest

from mlmigrate.errors import DiskFull, MigrateError, NotFound, Refused, UsageError
from mlmigrate.storage import folder as folders
from mlmigrate.storage.folder import PARTS, FolderObjects
from mlmigrate.storage.objects import PART, BadKey, Changed, Exists, FileBody, Objects, Stored, open_objects
from mlmigrate.storage.slices import open_slice


@pytest.fixture
def place(tmp_path):
    return FolderObjects.of(str(tmp_path / "place"))


def files(root):
    return {str(one.relative_to(root)): one.read_bytes() for one in root.rglob("*") if one.is_file()}


def version(path):
    found = path.stat()
    return f"{found.st_mtime_ns}-{found.st_size}"


class TestPlaces:
    def test_a_path_and_a_file_uri_name_the_same_folder(self, tmp_path):
        spaced = tmp_path / "a b%20"
        for text in (str(spaced), f"file://{tmp_path}/a%20b%2520", f"file:{tmp_path}/a%20b%2520"):
            found: Objects = open_objects(text, {})
            assert (found.url, found.local, found.store) == (str(spaced), spaced, "file")

    @pytest.mark.parametrize("text", ["", "file://elsewhere/x", "http://x/y", "a\0b"])
    def test_what_is_no_folder_here_is_refused(self, text):
        with pytest.raises(UsageError):
            FolderObjects.of(text)

    def test_a_folder_that_is_not_there_is_said_and_made_by_a_write(self, place, tmp_path):
        with pytest.raises(NotFound, match="does not exist"):
            place.check()
        assert list(place.list()) == []
        place.check(write=True)
        place.check()
        assert files(tmp_path / "place") == {}


class TestListing:
    def test_every_file_below_is_listed_as_it_is_called(self, place, tmp_path):
        names = ["a", "b/c", "b/ c d", "b/100%2F.txt", "b/ü😀", "b/new\nline", "b.c/x", "b/d/e/f"]
        for n, name in enumerate(names):
            place.put(name, b"x" * n)
        root = tmp_path / "place"
        assert sorted(place.list(), key=lambda one: one.key) == [
            Stored(name, n, version(root / name), (root / name).stat().st_mtime_ns / 1e9)
            for name, n in sorted(zip(names, range(len(names)), strict=True))
        ]
        assert sorted(one.key for one in place.list("b/")) == sorted(name for name in names if name[:2] == "b/")
        assert [one.key for one in place.list("b/d/e/")] == ["b/d/e/f"]
        assert list(place.list("nowhere/")) == []

    def test_links_pipes_and_names_without_unicode_are_left_out_and_told(self, place, tmp_path):
        root = tmp_path / "place"
        place.put("a", b"1")
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "s").write_bytes(b"2")
        (root / "link").symlink_to(tmp_path / "secret")
        (root / "file").symlink_to(tmp_path / "secret" / "s")
        os.mkfifo(root / "pipe")
        (root / os.fsdecode(b"\xff.bin")).write_bytes(b"")
        assert [one.key for one in place.list()] == ["a"]
        assert sorted(place.odd) == [
            "\\xff.bin: a name that is no UTF-8",
            "file: a symbolic link",
            "link: a symbolic link",
            "pipe: neither file nor folder",
        ]

    def test_files_being_written_are_not_listed(self, place, tmp_path):
        place.put("a", b"")
        (tmp_path / "place" / PARTS / "x").write_bytes(b"1")
        assert [one.key for one in place.list()] == ["a"]

    def test_what_was_left_by_a_crash_goes_after_a_day(self, place, tmp_path):
        place.put("a", b"")
        for name, age in (("old", 100_000), ("young", 0)):
            part = tmp_path / "place" / PARTS / name
            part.write_bytes(b"1")
            os.utime(part, (part.stat().st_mtime - age,) * 2)
        FolderObjects.of(str(tmp_path / "place")).put("b", b"")
        assert [one.name for one in (tmp_path / "place" / PARTS).iterdir()] == ["young"]


class TestReading:
    def test_a_range_is_read_and_what_lies_behind_the_end_is_not_there(self, place):
        place.put("a/b", b"0123456789")
        for start, length in ((0, None), (2, 3), (8, 5), (10, None), (20, 5), (0, 0)):
            with place.open("a/b", start, length) as stream:
                assert stream.read() == b"0123456789"[start : None if length is None else start + length]

    def test_a_version_that_is_not_the_files_is_told(self, place):
        stored = place.put("a", b"1")
        with place.open("a", version=stored.version) as stream:
            assert stream.read() == b"1"
        place.put("a", b"22")
        with pytest.raises(Changed, match="written meanwhile"):
            place.open("a", version=stored.version)

    def test_a_link_on_the_way_is_not_followed(self, place, tmp_path):
        place.put("d/a", b"1")
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "s").write_bytes(b"hidden")
        (tmp_path / "place" / "d" / "link").symlink_to(tmp_path / "secret")
        (tmp_path / "place" / "d" / "s").symlink_to(tmp_path / "secret" / "s")
        for key in ("d/link/s", "d/s"):
            with pytest.raises(NotFound, match="symbolic link"):
                place.open(key)
            assert place.head(key) is None
        with pytest.raises(BadKey):
            place.put("d/link/new", b"")
        assert list(place.list("d/link/")) == []
        place.delete(["d/link/s"])
        assert files(tmp_path / "secret") == {"s": b"hidden"}

    def test_what_is_missing_or_a_folder_is_no_file(self, place):
        place.put("a/b", b"1")
        assert (place.head("a"), place.head("x/y"), place.head("a/b/c")) == (None, None, None)
        for key in ("x/y", "a/b/c"):
            with pytest.raises(NotFound):
                place.open(key)
        with pytest.raises(NotFound):
            place.open("a")


class TestWriting:
    def test_a_file_is_put_with_its_digest(self, place, tmp_path):
        stored = place.put("a/b", memoryview(b"12345"))
        root = tmp_path / "place"
        assert files(root) == {"a/b": b"12345"}
        assert (stored.size, stored.version) == (5, version(root / "a" / "b"))
        assert stored.digest == "sha256:" + hashlib.sha256(b"12345").hexdigest()

    def test_create_writes_once(self, place, tmp_path):
        place.put("a", b"1", create=True)
        with pytest.raises(Exists):
            place.put("a", b"2", create=True)
        place.put("a", b"3")
        assert files(tmp_path / "place") == {"a": b"3"}

    def test_a_large_file_is_written_in_parts_and_its_digest_is_that_of_its_parts(self, place, tmp_path):
        data = os.urandom(2 * PART + 5)
        (tmp_path / "large").write_bytes(data)
        body = FileBody(tmp_path / "large", len(data), version(tmp_path / "large"))
        stored = place.upload("a/b", body, part_size=6 << 20)
        parts = [data[at : at + (6 << 20)] for at in range(0, len(data), 6 << 20)]
        whole = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        assert stored.digest == f"sha256:{whole}/{6 << 20}"
        assert files(tmp_path / "place") == {"a/b": data}

    def test_an_upload_whose_source_changes_leaves_nothing(self, place, tmp_path):
        (tmp_path / "large").write_bytes(b"x" * (PART + 1))
        body = FileBody(tmp_path / "large", PART + 1, "1-1")
        with pytest.raises(Changed):
            place.upload("a/b", body)
        assert files(tmp_path / "place") == {}

    def test_a_copy_is_equal_and_has_a_digest(self, place, tmp_path):
        source = FolderObjects.of(str(tmp_path / "source"))
        stored = source.put("a/b", b"123")
        copied = place.copy(source, "a/b", "c/d", 3, stored.version)
        assert copied.digest == stored.digest
        assert files(tmp_path / "place") == {"c/d": b"123"}
        with pytest.raises(Changed):
            place.copy(source, "a/b", "c/e", 3, "1-1")
        assert files(tmp_path / "place") == {"c/d": b"123"}

    def test_delete_takes_files_and_may_be_repeated(self, place, tmp_path):
        for key in ("a/b", "a/c"):
            place.put(key, b"1")
        for _ in range(2):
            place.delete(iter(["a/b", "x/y"]))
        assert files(tmp_path / "place") == {"a/c": b"1"}

    def test_of_many_writers_each_file_is_whole(self, place, tmp_path):
        def work(n):
            for i in range(20):
                place.put(f"d{i % 3}/f{i}", b"%d" % n * 1000)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        found = files(tmp_path / "place")
        assert len(found) == 20
        assert all(len(data) == 1000 and len(set(data)) == 1 for data in found.values())

    def test_a_folder_taken_away_by_another_process_is_made_again(self, place, tmp_path):
        place.put("a/b/c", b"1")
        (tmp_path / "place" / "a" / "b" / "c").unlink()
        (tmp_path / "place" / "a" / "b").rmdir()
        place.put("a/b/c", b"2")
        assert files(tmp_path / "place") == {"a/b/c": b"2"}


BAD = ["", "/", "/etc/x", "a/", "a//b", ".", "..", "a/../b", "../x", "a/./b", "a\0b", f"{PARTS}/x", "a/" + "x" * 256]
BAD += ["a/" + "ü" * 128, "\ud800", "/".join(["x" * 200] * 30)]


class TestNames:
    @pytest.mark.parametrize("key", BAD)
    def test_a_name_that_cannot_be_held_as_it_is_is_refused(self, place, tmp_path, key):
        with pytest.raises(BadKey):
            place.put(key, b"1")
        assert [one for one in tmp_path.rglob("*") if one.is_file()] == []

    @pytest.mark.parametrize(
        "key", ["%2e%2e/x", "a\\b", "...", "..a", "a..", "~", "-", "a" * 255, "e\u0301", "é", "CON"]
    )
    def test_a_strange_name_is_kept_as_it_is(self, place, key):
        place.put(key, b"1")
        assert [one.key for one in place.list()] == [key]

    def test_one_name_for_a_file_and_a_folder_is_refused(self, place, tmp_path):
        place.put("a", b"1")
        place.put("b/c", b"2")
        for key in ("a/b", "a/b/c", "b"):
            with pytest.raises(BadKey):
                place.put(key, b"3")
        assert files(tmp_path / "place") == {"a": b"1", "b/c": b"2"}

    def test_names_that_differ_only_in_case_are_two_files_here(self, place, tmp_path):
        place.put("Model/A", b"1")
        place.put("model/a", b"2")
        assert files(tmp_path / "place") == {"Model/A": b"1", "model/a": b"2"}

    def test_where_case_is_not_told_apart_nothing_is_replaced(self, place, tmp_path, monkeypatch):
        """As on a Mac: a name is there when one is that differs from it in case."""

        def lexists(path):
            folder, name = os.path.split(path)
            return name.casefold() in (one.casefold() for one in os.listdir(folder))  # noqa: PTH208  as the code

        monkeypatch.setattr(folders.os.path, "lexists", lexists)
        place.put("Model/A", b"1")
        place.put("Model/A", b"2")
        for key in ("Model/a", "model/B"):
            with pytest.raises(Exists, match="does not tell such names apart"):
                place.put(key, b"3")
        assert files(tmp_path / "place") == {"Model/A": b"2"}


class TestTrouble:
    @pytest.mark.parametrize(
        ("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EACCES, Refused)]
    )
    def test_what_the_disk_says_is_told_and_leaves_nothing(self, place, tmp_path, monkeypatch, number, kind):
        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(folders.os, "fsync", refuse)
        with pytest.raises(kind, match="place/a/b"):
            place.put("a/b", b"1")
        assert files(tmp_path / "place") == {}

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount")
    def test_a_full_disk_is_said(self, tmp_path):
        small = tmp_path / "small"
        small.mkdir()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"none", os.fsencode(small), b"tmpfs", 0, b"size=1m"):
            pytest.skip("no mounts here")
        try:
            place = FolderObjects.of(str(small))
            place.put("a", b"x" * 500_000)
            with pytest.raises(DiskFull, match="No space is left"):
                place.put("b", b"x" * 700_000)
            assert [one.key for one in place.list()] == ["a"]
            assert list((small / PARTS).iterdir()) == []
        finally:
            libc.umount2(os.fsencode(small), 2)


class TestSlices:
    def test_a_slice_reads_its_bytes_alone_and_again(self, tmp_path):
        file = tmp_path / "f"
        file.write_bytes(bytes(range(100)))
        with open_slice(file, 10, 20, version(file)) as piece:
            assert (len(piece), piece.read(5), piece.tell(), piece.read()) == (
                20,
                bytes(range(10, 15)),
                5,
                bytes(range(15, 30)),
            )
            assert (piece.read(1), piece.seek(0), piece.seek(-3, io.SEEK_END), piece.read(10)) == (
                b"",
                0,
                17,
                bytes(range(27, 30)),
            )
            assert (piece.seek(0), io.BufferedReader(piece).read()) == (0, bytes(range(10, 30)))

    def test_a_file_that_changes_while_it_is_read_is_told_at_the_last_byte(self, tmp_path):
        file = tmp_path / "f"
        file.write_bytes(b"x" * 100)
        with open_slice(file, 0, 100, version(file)) as piece:
            piece.read(50)
            file.write_bytes(b"y" * 100)
            os.utime(file, (1, 1))  # some clocks tick every 4 ms
            with pytest.raises(Changed):
                piece.read(50)

    def test_a_file_that_becomes_shorter_is_told(self, tmp_path):
        file = tmp_path / "f"
        file.write_bytes(b"x" * 100)
        with open_slice(file, 0, 100) as piece:
            os.truncate(file, 40)
            with pytest.raises(Changed, match="shorter"):
                piece.read(100)

    def test_a_disk_that_cannot_read_is_told(self, tmp_path, monkeypatch):
        def broken(*_):
            raise OSError(errno.EIO, "Input/output error")

        (tmp_path / "f").write_bytes(b"1")
        monkeypatch.setattr(os, "pread", broken)
        with open_slice(tmp_path / "f", 0, 1) as piece, pytest.raises(MigrateError, match="Input/output error"):
            piece.read()

    def test_only_plain_files_are_opened(self, tmp_path):
        (tmp_path / "f").write_bytes(b"1")
        (tmp_path / "link").symlink_to(tmp_path / "f")
        os.mkfifo(tmp_path / "pipe")
        for name in ("link", "pipe", "nothing", ""):
            with pytest.raises(NotFound):
                open_slice(tmp_path / name, 0, 1)
