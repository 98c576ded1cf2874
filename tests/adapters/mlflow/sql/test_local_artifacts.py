"""Artifacts on a local disk are written whole or not at all, and never out of their folder."""

from __future__ import annotations

import hashlib
import io
import os

import pytest

from mlmigrate.adapters.mlflow.local_artifacts import open_file, walk, write
from mlmigrate.errors import BadData, Conflict, Damaged, NotFound
from mlmigrate.model import Artifact


def artifact(path, data=b"bytes", **known):
    return Artifact("run", path, lambda: io.BytesIO(data), **known)


@pytest.mark.parametrize(
    "path", ["", "/etc/x", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b", "d/" * 900 + "x", "n" * 300]
)
def test_a_hostile_name_is_refused_and_nothing_is_written(tmp_path, path):
    root = tmp_path / "root"
    with pytest.raises(BadData):
        write(root, artifact(path))
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []


@pytest.mark.parametrize("path", ["a b/ü 模型.txt", "x#y", "q?m", "100%25", "back\\slash", " ", "new\nline"])
def test_an_odd_name_is_kept(tmp_path, path):
    assert write(tmp_path / "root", artifact(path))[1:] == (5, hashlib.sha256(b"bytes").hexdigest())
    losses = []
    (found,) = walk(tmp_path / "root", "run", losses)
    with found.open() as stream:
        assert (found.path, found.size, stream.read(), losses) == (path, 5, b"bytes", [])


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"size": 6}])
def test_damaged_bytes_leave_no_file_and_the_old_one_stays(tmp_path, known):
    write(tmp_path, artifact("a", b"old"))
    with pytest.raises(Damaged):
        write(tmp_path, artifact("a", **known))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_file_where_a_folder_is_needed_is_a_conflict(tmp_path):
    write(tmp_path, artifact("a"))
    with pytest.raises(Conflict):
        write(tmp_path, artifact("a/b"))
    write(tmp_path, artifact("c/d"))
    with pytest.raises(Conflict):
        write(tmp_path, artifact("c"))


def test_a_file_that_became_a_link_or_went_away_is_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BadData):
        open_file(tmp_path / "link")
    with pytest.raises(NotFound):
        open_file(tmp_path / "gone")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_a_loss_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    losses = []
    assert list(walk(tmp_path, "run", losses)) == []
    assert [loss.because for loss in losses] == ["is neither a file nor a folder"]
    with pytest.raises(BadData):
        open_file(tmp_path / "pipe")


def test_folders_deeper_than_the_stack_are_walked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")  # noqa: PTH102 - pathlib goes down by calling itself
        os.chdir("d")
    with open("x", "wb"):  # noqa: PTH123 - relative to where we are
        pass
    found = [one.path for one in walk(tmp_path, "run", [])]
    os.remove("x")  # noqa: PTH107 - as above
    for _ in range(1200):
        os.chdir("..")
        os.rmdir("d")  # noqa: PTH106 - as above
    assert found == ["d/" * 1200 + "x"]
