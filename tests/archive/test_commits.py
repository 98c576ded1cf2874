"""What no commit names does not exist, and a later commit of a run replaces the earlier one."""

import errno
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlmigrate.archive import index, layout, tools
from mlmigrate.archive.reader import ArchiveSource
from mlmigrate.archive.writer import ArchiveTarget
from mlmigrate.errors import BadData, Conflict, Damaged, DiskFull, NotFound
from mlmigrate.model import Experiment, Record
from mlmigrate.storage import LocalStorage


class Killed(BaseException):
    """The process is no more."""


class Mortal(LocalStorage):
    """Is killed at its nth operation, before it is done or after; then no operation works any more."""

    def __init__(self, root, at, after):
        super().__init__(root)
        self.at, self.after, self.calls = at, after, 0

    def _step(self, call, *args, **kwargs):
        self.calls += 1
        if self.calls > self.at or (self.calls == self.at and not self.after):
            raise Killed
        answer = call(*args, **kwargs)
        if self.calls == self.at:
            raise Killed
        return answer

    def create(self, name, data):
        return self._step(super().create, name, data)

    def delete(self, name):
        self._step(super().delete, name)

    def touch(self, name):
        return self._step(super().touch, name)

    def flush(self, names):
        self._step(super().flush, names)

    @contextmanager
    def part(self):
        with super().part() as real:
            yield MortalPart(self, real)


class MortalPart:
    """The first write counts, not each: the file has no name yet."""

    def __init__(self, storage, real):
        self._storage, self._real, self._begun = storage, real, False

    def write(self, data):
        begun, self._begun = self._begun, True
        return self._real.write(data) if begun else self._storage._step(self._real.write, data)

    def become(self, name):
        self._storage._step(self._real.become, name)


def estate(kit, version):
    """Two packs of a small estate as it is at some time."""
    for pack in ("p", "q"):
        runs = [kit.run(f"{pack}{n}", stamp=version, params={"version": version}) for n in range(2)]
        batches = [kit.series(one.id, [1.0, 2.0, float(version)]) for one in runs]
        files = [kit.artifact(one.id, "model", b"same") for one in runs]
        files += [kit.artifact(one.id, "own", (one.id + version).encode()) for one in runs]
        yield pack + version, runs, batches, files


def export(kit, storage, version):
    for pack, runs, batches, files in estate(kit, version):
        there = ArchiveTarget(storage).arrived()
        if any(one.origin not in there or there[one.origin].stamp != one.stamp for one in runs):
            kit.write(storage, runs, batches, files, pack=pack)


def state(kit, folder):
    """What is read from the archive: run -> version and all that came with it."""
    found = kit.read(folder)
    rows = found.points.to_pylist()
    return {
        one.id: (
            one.params["version"],
            [row["value"] for row in rows if row["run"] == one.id],
            found.files[one.id, "model"],
            found.files[one.id, "own"],
        )
        for one in found.runs
    }


def expected(version):
    ids = [pack + str(n) for pack in "pq" for n in range(2)]
    return {id_: (version, [1.0, 2.0, float(version)], b"same", (id_ + version).encode()) for id_ in ids}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_between_any_two_operations_the_old_state_is_there_and_a_new_try_completes(tmp_path, kit, after):
    for at in itertools.count(1):
        folder = tmp_path / f"{after}{at}"
        export(kit, LocalStorage(folder), "1")
        try:
            export(kit, Mortal(folder, at, after), "2")
        except Killed:
            between = state(kit, folder)
            assert between.keys() == expected("1").keys()
            assert all(seen in (expected("1")[id_], expected("2")[id_]) for id_, seen in between.items())
            assert all(finding.mark == "-" for finding in tools.check(str(folder)))
            export(kit, LocalStorage(folder), "2")
            assert state(kit, folder) == expected("2")
        else:
            break
    assert at > 20
    assert state(kit, folder) == expected("2")


def test_killed_in_the_very_first_export_a_new_try_completes(tmp_path, kit):
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        try:
            export(kit, Mortal(folder, at, after=True), "1")
        except Killed:
            export(kit, LocalStorage(folder), "1")
            assert state(kit, folder) == expected("1")
        else:
            break
    assert at > 20


def test_a_pack_without_its_commit_is_invisible(tmp_path, kit):
    kit.write(tmp_path / "a", [kit.run("r")])
    target = ArchiveTarget(LocalStorage(tmp_path / "a"))
    with target.pack("later", [kit.ref(kit.run("q"))]) as place:
        place.begin([kit.run("q")])
        place.points(kit.series("q", [1.0]))
        place.put(kit.artifact("q", "x", b"y"))
        assert [one.id for one in kit.read(tmp_path / "a").refs] == ["r"]
    assert [one.id for one in kit.read(tmp_path / "a").refs] == ["r"]
    assert list(target.arrived()) == ["mlflow:r"]
    assert not list((tmp_path / "a" / ".parts").iterdir())
    assert not [one for one in (tmp_path / "a" / "packs").iterdir() if one.name.startswith("later")]


def test_a_later_commit_of_a_run_replaces_the_earlier_one(tmp_path, kit):
    old, other = kit.run("r", params={"v": 1}), kit.run("other")
    kit.write(tmp_path / "a", [old, other], [kit.series("r", [1.0]), kit.series("other", [5.0])])
    new = kit.replace(old, params={"v": 2}, stamp="s2")
    kit.write(tmp_path / "a", [new], [kit.series("r", [1.0, 2.0])])
    found = kit.read(tmp_path / "a")
    assert {one.id: one.params for one in found.runs} == {"r": {"v": 2}, "other": {}}
    rows = [(row["run"], row["value"]) for row in found.points.to_pylist()]
    assert sorted(rows) == [("other", 5.0), ("r", 1.0), ("r", 2.0)]
    assert ArchiveTarget(LocalStorage(tmp_path / "a")).arrived()["mlflow:r"].stamp == "s2"


def test_a_clock_that_goes_back_changes_nothing_about_what_is_later(tmp_path, kit, monkeypatch):
    kit.write(tmp_path / "a", [kit.run("r", params={"v": 1})])
    monkeypatch.setattr("mlmigrate.archive.index.time.time_ns", lambda: 1000)
    kit.write(tmp_path / "a", [kit.run("r", params={"v": 2})])
    assert kit.read(tmp_path / "a").runs[0].params == {"v": 2}


def test_records_taken_again_replace_the_earlier_ones(tmp_path, kit):
    held = kit.replace(kit.ref(kit.run("@m")), kind="records")
    kit.write(tmp_path / "a", [], records=[Record("k", "1", "", "{}"), Record("k", "2", "", "{}")], refs=[held])
    kit.write(tmp_path / "a", [], records=[Record("k", "2", "", "[]")], refs=[held])
    assert kit.read(tmp_path / "a").records == [Record("k", "2", "", "[]")]


def test_nothing_is_written_before_prepare_and_nothing_by_a_second_prepare(tmp_path):
    experiments = [Experiment("1", "a", {"t": "v"}), Experiment("2", "b", deleted=True)]
    target = ArchiveTarget(LocalStorage(tmp_path / "a"))
    assert (dict(target.arrived()), (tmp_path / "a").exists()) == ({}, False)
    target.prepare(experiments)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("*")}
    target.prepare(experiments)
    again = ArchiveTarget(LocalStorage(tmp_path / "a"))
    again.arrived()
    again.prepare(experiments)
    again.finish(experiments, {})
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("*")} == before


def test_only_experiments_that_changed_are_written_again(tmp_path, kit):
    kit.write(tmp_path / "a", [], experiments=[Experiment("1", "a"), Experiment("2", "b")])
    kit.write(tmp_path / "a", [], experiments=[Experiment("1", "a"), Experiment("2", "b", {"new": "tag"})])
    assert kit.read(tmp_path / "a").experiments == [Experiment("1", "a"), Experiment("2", "b", {"new": "tag"})]
    written = sorted(list(commit["experiments"]) for commit in kit.commits(tmp_path / "a").values())
    assert written == [[], [], ["1", "2"], ["2"]]


def test_an_id_of_another_experiment_is_refused_and_a_new_name_is_not(tmp_path, kit):
    kit.write(tmp_path / "a", [], experiments=[Experiment("1", "vision", created=5)])
    kit.write(tmp_path / "a", [], experiments=[Experiment("1", "sight", created=5)])
    with pytest.raises(Conflict, match="'sight', not 'nlp'"):
        kit.write(tmp_path / "a", [], experiments=[Experiment("1", "nlp", created=6)])


def test_many_threads_and_two_writers_lose_nothing(tmp_path, kit):
    targets = [ArchiveTarget(LocalStorage(tmp_path / "a")) for _ in range(2)]
    for target in targets:
        target.prepare([Experiment("1", "a")])
    gate = threading.Barrier(4)

    def work(n):
        if n < 4:
            gate.wait(120)
        one = kit.run(f"r{n}")
        with targets[n % 2].pack("same id", [kit.ref(one)]) as place:
            place.begin([one])
            place.points(kit.series(one.id, [float(n)]))
            place.put(kit.artifact(one.id, "x", b"shared"))
            place.commit()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(120)))
    found = kit.read(tmp_path / "a")
    assert sorted(one.id for one in found.refs) == sorted(f"r{n}" for n in range(120))
    assert sorted(found.points["value"].to_pylist()) == list(range(120))
    assert list(tools.check(str(tmp_path / "a"))) == []


def test_an_archive_that_another_makes_just_now_is_an_archive(tmp_path, kit):
    class Late(LocalStorage):
        """Another exports right after it was asked for a manifest that was not there."""

        def size(self, name):
            found = super().size(name)
            if name == layout.MANIFEST and found is None:
                kit.write(self.root, [kit.run("theirs")], pack="p")
            return found

    kit.write(Late(tmp_path / "a"), [kit.run("ours")], pack="p")
    assert sorted(one.id for one in kit.read(tmp_path / "a").refs) == ["ours", "theirs"]


def test_many_commits_are_folded_and_opened_by_one_file_and_a_few(tmp_path, kit, monkeypatch):
    target = ArchiveTarget(LocalStorage(tmp_path / "a"))
    target.prepare([Experiment("1", "a")])
    for n in range(100):
        with target.pack(f"p{n}", [kit.ref(kit.run(f"r{n}"))]) as place:
            place.begin([kit.run(f"r{n}")])
            place.commit()
    read = []
    opened = LocalStorage.open
    monkeypatch.setattr(LocalStorage, "open", lambda self, name: read.append(name) or opened(self, name))
    found = index.load(LocalStorage(tmp_path / "a"))
    assert len(found.commits) == 101
    assert len(read) <= 1 + index.LOOSE + 1
    assert len(list((tmp_path / "a" / "checkpoints").iterdir())) <= 2


@pytest.mark.parametrize("harm", ["gone", "torn", "flipped", "empty"])
def test_a_harmed_checkpoint_costs_no_commit(tmp_path, kit, harm):
    for n in range(40):
        kit.write(tmp_path / "a", [kit.run(f"r{n}")], pack=f"p{n}")
    for checkpoint in (tmp_path / "a" / "checkpoints").iterdir():
        data = checkpoint.read_bytes()
        flipped = data[:50] + bytes([data[50] ^ 1]) + data[51:]
        harmed = {"torn": data[:-9], "flipped": flipped, "empty": b"", "gone": b""}
        checkpoint.unlink() if harm == "gone" else checkpoint.write_bytes(harmed[harm])
    assert len(kit.read(tmp_path / "a").refs) == 40
    assert ["checkpoints/" in one.what for one in tools.check(str(tmp_path / "a"))] == [True] * (harm != "gone")


def test_commits_written_beside_a_checkpoint_of_another_writer_are_kept(tmp_path, kit):
    storage = LocalStorage(tmp_path / "a")
    kit.write(storage, [kit.run("r1")], pack="p1")
    old = index.load(storage).commits
    kit.write(storage, [kit.run("r2")], pack="p2")
    index.fold(storage, index.load(storage).commits)
    kit.write(storage, [kit.run("r3")], pack="p3")
    index.fold(storage, old)  # a slow writer comes late with an outdated view
    assert [one.id for one in kit.read(tmp_path / "a").refs] == ["r1", "r2", "r3"]


def test_no_space_left_is_said_and_room_made_the_export_completes(tmp_path, kit, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(DiskFull, match="No space is left"):
            kit.write(tmp_path / "a", [kit.run("r")], [kit.series("r", [1.0])], [kit.artifact("r", "x", b"y")])
    assert kit.read(tmp_path / "a").runs == []
    kit.write(tmp_path / "a", [kit.run("r")])
    assert len(kit.read(tmp_path / "a").runs) == 1


def test_what_is_no_archive_is_said(tmp_path, kit):
    with pytest.raises(NotFound, match=r"not an archive: it has no mlmigrate\.json"):
        ArchiveSource(LocalStorage(tmp_path / "missing"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "meta.yaml").write_text("x")
    with pytest.raises(NotFound):
        ArchiveSource(LocalStorage(tmp_path / "full"))
    with pytest.raises(Conflict, match="not empty"):
        ArchiveTarget(LocalStorage(tmp_path / "full"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound):
        ArchiveSource(LocalStorage(tmp_path / "file"))
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["meta.yaml"]


@pytest.mark.parametrize("opener", [ArchiveSource, ArchiveTarget])
def test_an_archive_of_a_newer_format_is_refused_with_its_version(tmp_path, kit, opener):
    kit.write(tmp_path / "a", [kit.run("r")])
    (tmp_path / "a" / "mlmigrate.json").write_bytes(layout.sealed("archive", {"format": 2, "new": []}))
    with pytest.raises(BadData, match="format 2; this mlmigrate reads up to 1") as raised:
        opener(LocalStorage(tmp_path / "a"))
    assert "pip install -U" in raised.value.hint


def test_after_a_damaged_commit_the_runs_are_taken_again_and_the_archive_is_whole(tmp_path, kit):
    kit.write(tmp_path / "a", [kit.run("r")], [kit.series("r", [1.0])])
    (commit,) = list((tmp_path / "a" / "packs").glob("p-*.json"))
    commit.write_bytes(commit.read_bytes()[:-20])
    with pytest.raises(Damaged, match=commit.name):
        kit.read(tmp_path / "a")
    assert dict(ArchiveTarget(LocalStorage(tmp_path / "a")).arrived()) == {}
    kit.write(tmp_path / "a", [kit.run("r")], [kit.series("r", [1.0])])
    assert kit.read(tmp_path / "a").points["value"].to_pylist() == [1.0]
    assert all(finding.mark == "-" for finding in tools.check(str(tmp_path / "a")))


def test_a_damaged_blob_is_written_anew_by_the_next_export_of_its_bytes(tmp_path, kit):
    kit.write(tmp_path / "a", [kit.run("r")], (), [kit.artifact("r", "x", b"good")])
    (blob,) = [file for file in (tmp_path / "a" / "blobs").rglob("*") if file.is_file()]
    blob.write_bytes(b"evil")
    kit.write(tmp_path / "a", [kit.run("r")], (), [kit.artifact("r", "x", b"good")])
    assert kit.read(tmp_path / "a").files == {("r", "x"): b"good"}


def test_a_full_disk_at_the_first_byte_of_a_table_leaves_no_part(tmp_path, kit, monkeypatch):
    ArchiveTarget(LocalStorage(tmp_path / "a")).prepare([])

    def full(self, data):
        with self._storage._explained("a new file"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mlmigrate.storage.local.LocalPart.write", full)
        with pytest.raises(DiskFull):
            kit.write(tmp_path / "a", [kit.run("r")], [kit.series("r", [1.0])])
    assert list((tmp_path / "a" / ".parts").iterdir()) == []
