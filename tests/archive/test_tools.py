"""List, read, check out and tidy an archive."""

import os
import time

import pytest

from mlmigrate.archive import index, tools
from mlmigrate.archive.writer import ArchiveTarget
from mlmigrate.errors import Conflict, Damaged, NotFound
from mlmigrate.model import Loss
from mlmigrate.storage import LocalStorage


@pytest.fixture
def filled(tmp_path, kit):
    """An archive of two runs."""
    runs = [kit.run("r1"), kit.run("r2", experiment="2")]
    files = [kit.artifact("r1", "model/a.bin", b"12345"), kit.artifact("r1", "b", b""), kit.artifact("r2", "c", b"1")]
    kit.write(tmp_path / "a", runs, [kit.series("r1", [1.0, 2.0])], files)
    return tmp_path / "a"


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_ls_lists_runs_and_the_artifacts_of_one(filled):
    listed = [(one.experiment, one.run, one.name, one.points, one.artifacts, one.size) for one in tools.ls(str(filled))]
    assert listed == [("experiment 1", "r1", "name of r1", 2, 2, 5), ("experiment 2", "r2", "name of r2", 0, 1, 1)]
    for name in ("r1", "mlflow:r1"):
        assert [(one.path, one.size) for one in tools.ls(str(filled), name)] == [("model/a.bin", 5), ("b", 0)]


def test_cat_gives_the_bytes(filled):
    with tools.cat(str(filled), "r1", "model/a.bin") as stream:
        assert stream.read() == b"12345"
    with pytest.raises(NotFound, match="no artifact 'x'"):
        tools.cat(str(filled), "r1", "x")
    with pytest.raises(NotFound, match="no run 'r9'"):
        tools.cat(str(filled), "r9", "x")


def test_a_run_id_of_two_origins_must_be_said_more_exactly(filled, kit):
    kit.write(filled, [kit.run("r1", origin="wandb:r1")], pack="q")
    with pytest.raises(Conflict, match="2 runs") as raised:
        list(tools.ls(str(filled), "r1"))
    assert "mlflow:r1, wandb:r1" in raised.value.hint
    assert list(tools.ls(str(filled), "wandb:r1")) == []


def test_checkout_writes_an_ordinary_tree_and_may_be_repeated(filled, tmp_path):
    for _ in range(2):
        assert tools.checkout(str(filled), "r1", str(tmp_path / "out")) == []
        assert tree(tmp_path / "out") == {"model/a.bin": b"12345", "b": b""}
    assert tools.checkout(str(filled), "", tmp_path / "all") == []
    assert tree(tmp_path / "all") == {"r1/model/a.bin": b"12345", "r1/b": b"", "r2/c": b"1"}


HOSTILE = [
    "../evil", "a/../../evil", "/etc/evil", "..", ".", "", "a//b", "a/", "a\0b", "a\\b", "..\\evil", "./a", "x" * 300,
    "good/UPPER", "GOOD", "good", "Good/second", "dir", "é/x", "e\u0301/y",
]  # fmt: skip


def test_checkout_never_leaves_its_folder_and_says_what_it_refused(tmp_path, kit):
    paths = ["good/upper", "dir/file", *HOSTILE]
    files = [kit.artifact("r", path, path.encode("utf-8")) for path in paths]
    kit.write(tmp_path / "a", [kit.run("r")], (), files)
    (tmp_path / "in").mkdir()
    losses = tools.checkout(str(tmp_path / "a"), "r", tmp_path / "in" / "out")
    assert tree(tmp_path / "in") == {f"out/{path}": path.encode() for path in ("good/upper", "dir/file", "é/x")}
    refused = [path for path in HOSTILE if path != "é/x"]
    assert [loss.what for loss in losses] == [f"artifact {path!r}" for path in refused]
    assert all(isinstance(loss, Loss) and loss.because.startswith("not written: ") for loss in losses)


def test_checkout_writes_through_no_symbolic_link(filled, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out" / "b").symlink_to(tmp_path / "precious")
    (loss,) = tools.checkout(str(filled), "r1", tmp_path / "out")
    assert "symbolic link" in loss.because
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_checkout_keeps_back_damaged_bytes_and_writes_the_rest(filled, tmp_path):
    for blob in (filled / "blobs").rglob("*"):
        if blob.is_file() and blob.read_bytes() == b"12345":
            blob.write_bytes(b"12346")
    (loss,) = tools.checkout(str(filled), "r1", tmp_path / "out")
    assert "sha256 differs" in loss.because
    assert tree(tmp_path / "out") == {"b": b""}


def test_a_name_that_is_no_unicode_is_checked_out_as_the_same_bytes(tmp_path, kit):
    name = os.fsdecode(b"caf\xe9")
    kit.write(tmp_path / "a", [kit.run("r")], (), [kit.artifact("r", name, b"x")])
    assert tools.checkout(str(tmp_path / "a"), "r", tmp_path / "out") == []
    assert [os.fsencode(file.name) for file in (tmp_path / "out").iterdir()] == [b"caf\xe9"]


def test_files_of_models_are_read_and_checked_out_by_their_owner(tmp_path, kit):
    held = kit.replace(kit.ref(kit.run("@models")), kind="records")
    files = [kit.artifact("@model/m-1", "MLmodel", b"1"), kit.artifact("@../../evil", "x", b"2")]
    kit.write(tmp_path / "a", [], (), files, refs=[held], experiments=[])
    with tools.cat(str(tmp_path / "a"), "@model/m-1", "MLmodel") as stream:
        assert stream.read() == b"1"
    assert [one.path for one in tools.ls(str(tmp_path / "a"), "@models")] == ["MLmodel", "x"]
    (loss,) = tools.checkout(str(tmp_path / "a"), "", tmp_path / "in" / "out")
    assert (loss.run, tree(tmp_path / "in")) == ("@../../evil", {"out/@model/m-1/MLmodel": b"1"})


def grow_old(folder):
    """Everything in the archive was written two hours ago."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - 7200,) * 2)


def leave_rubbish(folder, kit):
    """An export that was killed, and runs that were replaced."""
    kit.write(folder, [kit.run("r1", stamp="s2")], (), [kit.artifact("r1", "b", b"new")], pack="q")
    kit.write(folder, [kit.run("r2", stamp="s2", experiment="2")], pack="q2")
    (folder / "packs" / "dead-0").mkdir()
    (folder / "packs" / "dead-0" / "runs.parquet").write_bytes(b"x")
    (folder / ".parts" / "torn").write_bytes(b"x")


def test_prune_drops_what_no_live_commit_names_and_nothing_else(filled, kit, monkeypatch):
    leave_rubbish(filled, kit)
    before = kit.read(filled)
    grow_old(filled)
    real = time.time
    monkeypatch.setattr("mlmigrate.archive.tools.time.time", lambda: real() + 7200)
    planned = tools.prune(str(filled), dry_run=True)
    kinds = sorted(name.split("/")[0] + ("/commit" if name.endswith(".json") else "") for name in planned)
    assert kinds == [".parts", "blobs", "blobs", "blobs", "packs", "packs", "packs/commit"]
    assert len(tools.prune(str(filled), dry_run=True)) == len(planned)
    assert tools.prune(str(filled)) == planned
    assert list(tools.check(str(filled))) == []
    after = kit.read(filled)
    assert (after.runs, after.files, after.experiments) == (before.runs, before.files, before.experiments)
    assert tools.prune(str(filled)) == []


def test_prune_drops_nothing_that_is_young(filled, kit):
    leave_rubbish(filled, kit)
    assert tools.prune(str(filled)) == []


def test_prune_keeps_an_old_blob_that_a_pack_under_way_needs(filled, kit):
    (filled / "blobs" / "ff").mkdir(exist_ok=True)
    storage = LocalStorage(filled)
    kit.write(filled, [kit.run("r1", stamp="s2")], pack="q")
    grow_old(filled)
    target = ArchiveTarget(storage)
    with target.pack("w", [kit.ref(kit.run("r1", stamp="s3"))]) as place:
        place.begin([kit.run("r1")])
        place.put(kit.artifact("r1", "again", b"12345"))
        tools.prune(str(filled))
        place.commit()
    assert kit.read(filled).files["r1", "again"] == b"12345"


def test_prune_refuses_where_a_commit_cannot_be_read(filled):
    (commit,) = list((filled / "packs").glob("p-*.json"))
    commit.write_bytes(b"x")
    with pytest.raises(Damaged, match=commit.name):
        tools.prune(str(filled), older_than=-1)


def test_a_prune_killed_anywhere_harms_nothing(filled, kit, tmp_path, monkeypatch):
    leave_rubbish(filled, kit)
    truth = kit.read(filled)
    deleted = LocalStorage.delete
    for at in range(1, 12):
        count = iter(range(1, 1000))

        def dying(self, name, count=count, at=at):
            if next(count) >= at:
                raise KeyboardInterrupt
            deleted(self, name)

        monkeypatch.setattr(LocalStorage, "delete", dying)
        try:
            tools.prune(str(filled), older_than=-1)
        except KeyboardInterrupt:
            found = kit.read(filled)
            assert (found.runs, found.files) == (truth.runs, truth.files)
    monkeypatch.setattr(LocalStorage, "delete", deleted)
    tools.prune(str(filled), older_than=-1)
    assert list(tools.check(str(filled))) == []


def test_check_names_what_no_commit_names(filled, kit):
    leave_rubbish(filled, kit)
    (filled / "notes.txt").write_text("mine")
    found = [(one.mark, one.what.split(":")[0]) for one in tools.check(str(filled))]
    assert ("-", "packs/dead-0") in found
    assert ("-", "notes.txt") in found
    assert {mark for mark, _ in found} == {"-"}


def test_a_lost_commit_that_a_checkpoint_holds_is_read_and_told(filled, kit):
    storage = LocalStorage(filled)
    index.fold(storage, index.load(storage).commits)
    (commit,) = list((filled / "packs").glob("p-*.json"))
    commit.unlink()
    assert len(kit.read(filled).refs) == 2
    (finding,) = tools.check(str(filled))
    assert finding.what == f"packs/{commit.name}: it is missing; a checkpoint still holds it."


@pytest.mark.parametrize("call", [tools.ls, tools.check, tools.prune])
def test_no_archive_is_said(call, tmp_path):
    with pytest.raises(NotFound, match="not an archive"):
        list(call(str(tmp_path / "none")))
