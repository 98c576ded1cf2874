"""A folder keeps files whole, or not at all."""

import errno
import os
import threading

import pytest

from mlmigrate.errors import BadData, DiskFull, MigrateError, NotFound, Refused
from mlmigrate.storage import LocalStorage, open_storage
from mlmigrate.storage.local import explain


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "s")


def put(storage, name, data):
    with storage.part() as part:
        part.write(data)
        part.become(name)


def test_a_part_is_there_only_once_it_has_its_name(storage):
    with storage.part() as part:
        part.write(b"12")
        part.write(memoryview(b"345"))
        assert storage.size("a/b") is None
        part.become("a/b")
        assert storage.size("a/b") == 5
    assert storage.open("a/b").read() == b"12345"
    assert list((storage.root / ".parts").iterdir()) == []


def test_a_part_that_is_left_leaves_nothing(storage):
    with storage.part() as part:
        part.write(b"12")
    assert [file for file in storage.root.rglob("*") if file.is_file()] == []


def test_create_writes_once(storage):
    assert storage.create("x/y", b"first") is True
    assert storage.create("x/y", b"second") is False
    assert storage.open("x/y").read() == b"first"
    assert list((storage.root / ".parts").iterdir()) == []


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
    assert storage.open("x").read() == b"%d" % won[0]


def test_create_works_where_there_are_no_hard_links(storage, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert (storage.create("x", b"1"), storage.create("x", b"2")) == (True, False)
    assert storage.open("x").read() == b"1"


def test_entries_lie_directly_in_a_folder(storage):
    put(storage, "a/b/c", b"123")
    put(storage, "a/d", b"")
    assert sorted((one.name, one.folder, one.size if not one.folder else 0) for one in storage.entries("a")) == [
        ("a/b", True, 0),
        ("a/d", False, 0),
    ]
    assert list(storage.entries("nowhere")) == []
    assert sorted(one.name for one in storage.entries("")) == [".parts", "a"]


def test_links_are_no_entries(storage, tmp_path):
    put(storage, "a/d", b"")
    (storage.root / "a" / "link").symlink_to(tmp_path)
    assert [one.name for one in storage.entries("a")] == ["a/d"]


def test_delete_takes_files_and_folders_and_may_be_repeated(storage):
    put(storage, "a/b/c", b"1")
    for _ in range(2):
        storage.delete("a/b")
        assert storage.size("a/b/c") is None
    put(storage, "a/b/c", b"2")
    assert storage.open("a/b/c").read() == b"2"


def test_a_folder_taken_away_by_another_process_is_made_again(storage):
    put(storage, "a/b", b"1")
    LocalStorage(storage.root).delete("a")
    put(storage, "a/b", b"2")
    assert storage.open("a/b").read() == b"2"


OUTSIDE = ["../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "..", "a\0", "a\\b", ".parts/x", "ü"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leaves_the_folder(storage, name):
    for call in (storage.open, storage.size, storage.delete, storage.touch):
        with pytest.raises(BadData, match="no name of a file"):
            call(name)
    with pytest.raises(BadData):
        storage.create(name, b"")
    with pytest.raises(BadData):
        put(storage, name, b"")


def test_what_is_missing_is_said(storage):
    with pytest.raises(NotFound, match="does not exist"):
        storage.open("x")
    assert (storage.size("x"), storage.touch("x")) == (None, False)


def test_sweep_takes_old_parts_only(storage):
    put(storage, "a", b"")
    for name, age in (("old", 100), ("young", 0)):
        (storage.root / ".parts" / name).write_bytes(b"")
        os.utime(storage.root / ".parts" / name, (1000 - age,) * 2)
    assert storage.sweep(950, dry_run=True) == [".parts/old"]
    assert storage.sweep(950) == [".parts/old"]
    assert [one.name for one in (storage.root / ".parts").iterdir()] == ["young"]


@pytest.mark.parametrize("number", [1, 20])
def test_flush_reaches_the_disk(storage, number):
    names = [f"a{n}/b/c" for n in range(number)]
    for name in names:
        put(storage, name, b"1")
    storage.flush(iter(names))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EACCES, Refused),
        (errno.EROFS, Refused),
        (errno.ENOENT, NotFound),
        (errno.EIO, MigrateError),
    ],
)
def test_errors_of_the_system_are_explained(number, kind):
    error = explain(OSError(number, "why"), "/x")
    assert type(error) is kind
    assert "/x" in error.message
    assert kind is NotFound or error.hint


def test_a_place_without_a_kind_is_a_folder(tmp_path):
    assert isinstance(open_storage(str(tmp_path), {}), LocalStorage)


def test_a_file_of_the_right_size_is_made_young_but_must_be_read_to_be_believed(storage):
    put(storage, "a/b", b"12")
    os.utime(storage.root / "a" / "b", (1, 1))
    assert (storage.holds("a/b", 3, ""), storage.holds("a/c", 2, ""), storage.holds("a/b", 2, "")) == (
        False,
        False,
        None,
    )
    assert (storage.root / "a" / "b").stat().st_mtime > 1


def test_a_walk_finds_every_file(storage):
    put(storage, "a/b/c", b"123")
    put(storage, "a/d", b"")
    assert sorted((one.name, one.size) for one in storage.walk("a")) == [("a/b/c", 3), ("a/d", 0)]
    assert list(storage.walk("nowhere")) == []
