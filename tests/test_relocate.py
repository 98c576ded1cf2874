"""The whole life of a relocation over folders: nothing is lost, whatever happens in between."""

import os
import sqlite3

import pytest

import memory_estate
from memory_estate import MemoryEstate, Move, files_below
from mlmigrate.address import Address
from mlmigrate.errors import BadData, Conflict, LedgerInUse, NotFound, Stopped, Unavailable, UsageError
from mlmigrate.relocate import told
from mlmigrate.relocate.job import Wish
from mlmigrate.relocate.ledger import Ledger
from mlmigrate.storage.folder import FolderObjects

FILES = {"a": {"model/weights.bin": b"w" * 3000, "a b/ö.txt": b"1"}, "b": {"x": b""}, "c": {}}


@pytest.fixture
def estate(tmp_path):
    made = MemoryEstate(tmp_path / "old")
    made.experiment()
    made.experiment("2", f"file://{made.root}/2")
    for run, files in FILES.items():
        made.run(run, files, active=run == "b")
    made.run("d", {"y": b"yy"}, "2", uri=f"file://{made.root}/2/d/artifacts")
    made.add("version", "m/1", f"{made.root}/1/a/artifacts/model")
    return made


@pytest.fixture
def move(estate, tmp_path):
    return Move(estate, tmp_path / "new", tmp_path / "ledger.sqlite")


EXPECTED = {
    "1/a/artifacts/model/weights.bin": b"w" * 3000,
    "1/a/artifacts/a b/ö.txt": b"1",
    "1/b/artifacts/x": b"",
    "2/d/artifacts/y": b"yy",
}


def uris(to):
    return {
        "1": f"{to}/1",
        "2": f"{to}/2",
        "a": f"{to}/1/a/artifacts",
        "b": f"{to}/1/b/artifacts",
        "c": f"{to}/1/c/artifacts",
        "d": f"{to}/2/d/artifacts",
        "m/1": f"{to}/1/a/artifacts/model",
    }


def named(estate):
    return {key[0]: value for (_, key, _), value in estate.state().items()}


class TestTheWholeWay:
    def test_files_are_there_and_every_uri_names_them(self, estate, move):
        done = move()
        assert files_below(move.to) == EXPECTED
        assert named(estate) == uris(move.to)
        assert (told.code(done), done.switched.edits, done.checked.files) == (0, 7, 4)
        assert files_below(estate.root).keys() == EXPECTED.keys()

    def test_undo_gives_every_value_back(self, estate, move):
        before = estate.state()
        move()
        done = move(undo=True)
        assert estate.state() == before
        assert (told.code(done), done.undone.edits) == (0, 7)

    def test_a_second_command_finds_nothing_to_do(self, estate, move):
        move()
        done = move()
        assert (done.copied.copied, done.switched, done.swept.copied, told.code(done)) == (0, None, 0, 0)

    def test_a_dry_run_writes_nothing(self, estate, move, tmp_path):
        before = estate.state()
        done = move(dry_run=True)
        assert (done.look.todo, done.look.todo_size, done.values) == (4, 3003, 7)
        assert estate.state() == before
        assert sorted(one.name for one in tmp_path.iterdir()) == ["old"]

    def test_copy_only_switches_nothing(self, estate, move):
        before = estate.state()
        done = move(copy_only=True)
        assert (done.copied.copied, estate.state()) == (4, before)
        assert move().copied.copied == 0

    def test_undo_and_again(self, estate, move):
        move()
        move(undo=True)
        done = move()
        assert (named(estate), done.copied.copied) == (uris(move.to), 0)

    def test_a_store_that_came_back_from_a_backup_is_switched_again(self, estate, move):
        before = dict(estate.values)
        move()
        estate.values = before
        done = move()
        assert (named(estate), done.copied.copied, done.look.seen) == (uris(move.to), 0, 4)

    def test_many_roots_become_one(self, estate, move, tmp_path):
        other = MemoryEstate(tmp_path / "old" / "third")
        (other.root / "9" / "e" / "artifacts").mkdir(parents=True)
        (other.root / "9" / "e" / "artifacts" / "z").write_bytes(b"z")
        estate.experiment("9", f"{other.root}/9")
        estate.add("run", "e", f"{other.root}/9/e/artifacts", "9")
        move()
        assert files_below(move.to) == {**EXPECTED, "9/e/artifacts/z": b"z"}


class TestWhatTrainingDoesMeanwhile:
    def test_what_is_written_before_the_lock_is_there_after_it(self, estate, move):
        def train():
            estate.run("b", {"late.txt": b"late"}, active=True)
            estate.run("new", {"n": b"n"}, active=True)

        move(hooks={"lock": train})
        assert files_below(move.to) == {**EXPECTED, "1/b/artifacts/late.txt": b"late", "1/new/artifacts/n": b"n"}
        assert estate.value("runs", "new") == f"{move.to}/1/new/artifacts"

    def test_what_an_active_run_writes_to_the_old_place_is_named_and_brought_over(self, estate, move):
        move()
        late = estate.root / "1/b/artifacts/deep/late.txt"
        late.parent.mkdir()
        late.write_bytes(b"late")
        found = move(check=0)
        assert told.code(found) == 4
        assert [(one.mark, one.run) for one in found.checked.findings] == [("+", "b")]
        swept = move(sweep=True)
        assert [(owner.owner, number) for owner, number in swept.swept.wrote.values()] == [("b", 1)]
        assert (move.to / "1/b/artifacts/deep/late.txt").read_bytes() == b"late"
        assert told.code(move(check=0)) == 0

    def test_a_file_that_both_places_changed_is_not_overwritten(self, estate, move):
        move()
        (estate.root / "1/b/artifacts/x").write_bytes(b"old place")
        (move.to / "1/b/artifacts/x").write_bytes(b"new place!")
        done = move(sweep=True)
        assert (told.code(done), done.swept.copied) == (4, 0)
        assert (move.to / "1/b/artifacts/x").read_bytes() == b"new place!"
        assert "both places" in "\n".join(told.lines(done, _wish(move)))

    def test_a_file_written_anew_at_the_new_place_alone_is_its_owners_business(self, estate, move):
        move()
        (move.to / "1/a/artifacts/a b/ö.txt").write_bytes(b"2")
        done = move(check=0)
        assert (told.code(done), done.checked.changed) == (0, 1)

    def test_damage_at_the_new_place_is_found(self, estate, move):
        move()
        file = move.to / "1/a/artifacts/model/weights.bin"
        was = file.stat()
        file.write_bytes(b"w" * 2999 + b"v")
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        done = move(check=0)
        assert (told.code(done), [one.mark for one in done.checked.findings]) == (4, ["*"])

    def test_a_run_made_since_the_switch_keeps_the_new_place_when_it_is_undone(self, estate, move):
        before = estate.state()
        move()
        new = estate.add("run", "new", f"{move.to}/1/new/artifacts")
        done = move(undo=True)
        assert [cell.owner for cell in done.undone.stay] == ["new"]
        assert estate.state() == before | {("runs", ("new",), "uri"): new.value}

    def test_what_was_written_at_the_new_place_goes_back_with_undo(self, estate, move):
        move()
        (move.to / "1/b/artifacts/since").write_bytes(b"since")
        (move.to / "1/a/artifacts/model/weights.bin").write_bytes(b"better")
        (estate.root / "1/b/artifacts/x").write_bytes(b"old place")
        (move.to / "1/b/artifacts/x").write_bytes(b"new place!")
        done = move(undo=True)
        assert files_below(estate.root) == {
            **EXPECTED,
            "1/a/artifacts/model/weights.bin": b"better",
            "1/b/artifacts/since": b"since",
            "1/b/artifacts/x": b"old place",
        }
        assert (done.returned.copied, told.code(done)) == (2, 4)
        assert (move().copied.copied, files_below(move.to)["1/b/artifacts/since"]) == (1, b"since")

    def test_a_value_that_others_changed_since_is_not_undone_but_listed(self, estate, move):
        before = estate.state()
        move()
        estate.set("runs", "a", value="s3://somewhere/else")
        done = move(undo=True)
        assert [one.key for one in done.undone.changed] == [("a",)]
        assert estate.state() == before | {("runs", ("a",), "uri"): "s3://somewhere/else"}
        assert told.code(done) == 3

    def test_an_experiment_made_at_the_old_place_since_is_moved_by_the_next_command(self, estate, move):
        move()
        estate.experiment("3")
        estate.run("f", {"f": b"f"}, "3")
        done = move()
        assert (done.switched.edits, estate.value("runs", "f")) == (2, f"{move.to}/3/f/artifacts")
        assert files_below(move.to) == {**EXPECTED, "3/f/artifacts/f": b"f"}

    def test_a_run_that_a_server_makes_of_what_it_read_before_the_switch_follows(self, estate, move):
        def late():
            estate.hooks.pop("after commit", None)
            estate.run("late", {"l": b"l"})

        done = move(hooks={"after commit": late})
        assert (estate.value("runs", "late"), done.switched.edits) == (f"{move.to}/1/late/artifacts", 8)
        assert files_below(move.to) == {**EXPECTED, "1/late/artifacts/l": b"l"}
        move(undo=True)
        assert estate.value("runs", "late") == f"{estate.root}/1/late/artifacts"

    def test_one_that_comes_later_still_is_found_by_a_check_and_follows_with_a_sweep(self, estate, move):
        move()
        estate.run("late", {"l": b"l"})
        found = move(check=0)
        assert (told.code(found), [one.run for one in found.checked.findings]) == (4, ["late"])
        move(sweep=True)
        assert estate.value("runs", "late") == f"{move.to}/1/late/artifacts"
        assert told.code(move(check=0)) == 0

    def test_a_store_that_others_hold_is_told_and_nothing_is_changed(self, estate, move):
        before = estate.state()
        estate.busy = True
        with pytest.raises(Unavailable):
            move()
        estate.busy = False
        assert estate.state() == before
        move()
        assert named(estate) == uris(move.to)


class TestWhatCannotGo:
    def test_a_run_whose_folder_is_not_here_keeps_its_uri_and_is_named(self, estate, move):
        estate.add("run", "gone", "/nowhere/on/this/machine/gone/artifacts")
        done = move()
        assert [(one.owner, one.why) for one in done.held] == [("gone", "its folder is not here")]
        assert estate.value("runs", "gone") == "/nowhere/on/this/machine/gone/artifacts"
        assert (told.code(done), told.code(done, strict=True)) == (0, 3)

    def test_a_run_with_a_link_stays_whole_where_it_is(self, estate, move, tmp_path):
        (tmp_path / "big").write_bytes(b"big")
        (estate.root / "1/a/artifacts/link").symlink_to(tmp_path / "big")
        done = move()
        assert [one.owner for one in done.held] == ["a"]
        assert named(estate) == uris(move.to) | {
            "a": f"{estate.root}/1/a/artifacts",
            "m/1": f"{estate.root}/1/a/artifacts/model",
        }
        assert told.code(done) == 3

    def test_what_is_no_place_is_left_alone_and_named(self, estate, move):
        estate.add("version", "m/2", "models:/m-1")
        estate.add("version", "m/3", "dbfs:/x/y")
        estate.add("version", "m/4", "s3://not/ours")
        estate.add("run", "odd", "/a/../b")
        done = move()
        assert sorted((kind, owner) for kind, owner, *_ in done.alone) == [
            ("run", "odd"),
            ("version", "@version/m/3"),
            ("version", "@version/m/4"),
        ]
        assert estate.value("model_versions", "m/2") == "models:/m-1"

    def test_a_name_that_begins_alike_is_another_place(self, estate, move):
        estate.add("version", "m/5", f"{estate.root}/1/a/artifacts2")
        move()
        assert estate.value("model_versions", "m/5") == f"{estate.root}/1/a/artifacts2"

    def test_a_uri_that_would_not_fit_ends_it_before_anything_is_copied(self, estate, move):
        estate.set("runs", "a", room=10)
        with pytest.raises(BadData, match="room for 10"):
            move()
        assert not move.to.exists()

    def test_two_owners_of_one_place_to_be_are_refused(self, estate, move):
        estate.run("q", {"q": b"q"}, uri=f"{estate.root}/x/q/artifacts")
        (estate.root / "x/q/artifacts").mkdir(parents=True)
        estate.add("run", "w", f"{estate.root}/1/q/artifacts")
        with pytest.raises(Conflict):
            move()

    def test_a_file_that_cannot_be_copied_keeps_everything_where_it_is(self, estate, move):
        before = estate.state()

        class Full(FolderObjects):
            def copy(self, source, key, to, size, version=""):
                if key == "y":
                    raise Unavailable("busy")
                return super().copy(source, key, to, size, version)

        move.target = Full(move.to)
        done = move()
        assert (done.ready, told.code(done), len(done.failures), estate.state()) == (False, 3, 1, before)
        move.target = FolderObjects(move.to)
        assert (move().copied.copied, named(estate)) == (1, uris(move.to))


class TestBehindAProxy:
    @pytest.fixture
    def proxied(self, tmp_path):
        made = MemoryEstate(tmp_path / "nowhere")
        made.add("experiment", "1", "mlflow-artifacts:/1")
        made.add("run", "a", "mlflow-artifacts:/1/a/artifacts")
        place = tmp_path / "mlartifacts" / "1" / "a" / "artifacts"
        place.mkdir(parents=True)
        (place / "x").write_bytes(b"x")
        return made

    def test_the_uris_stay_and_the_bytes_go(self, proxied, tmp_path):
        move = Move(proxied, tmp_path / "new", tmp_path / "l")
        before = proxied.state()
        done = move(from_=str(tmp_path / "mlartifacts"))
        assert (proxied.state(), files_below(move.to)) == (before, {"1/a/artifacts/x": b"x"})
        lines = "\n".join(told.lines(done, _wish(move)))
        assert f"--artifacts-destination {move.to}" in lines

    def test_the_same_command_takes_what_was_written_until_the_restart(self, proxied, tmp_path):
        move = Move(proxied, tmp_path / "new", tmp_path / "l")
        move(from_=str(tmp_path / "mlartifacts"))
        (tmp_path / "mlartifacts/1/a/artifacts/late").write_bytes(b"late")
        (move.to / "1/a/artifacts/x").write_bytes(b"by the server, restarted")
        done = move(from_=str(tmp_path / "mlartifacts"))
        assert files_below(move.to) == {"1/a/artifacts/x": b"by the server, restarted", "1/a/artifacts/late": b"late"}
        assert told.code(done) == 0

    def test_the_old_files_stay_while_nobody_knows_that_the_server_was_restarted(self, proxied, tmp_path):
        move = Move(proxied, tmp_path / "new", tmp_path / "l")
        move(from_=str(tmp_path / "mlartifacts"))
        with pytest.raises(Conflict, match="not known"):
            move(from_=str(tmp_path / "mlartifacts"), delete_source=True)
        assert files_below(tmp_path / "mlartifacts") == {"1/a/artifacts/x": b"x"}


def test_where_mlflow_lacks_a_package_files_are_read_without_it(move, monkeypatch):
    def lacking(self, uri, to):
        raise UsageError("MLflow lacks a package for that store")

    monkeypatch.setattr(memory_estate.Reader, "of_uri", lacking)
    done = move()
    assert (told.code(done), done.checked.files, done.checked.directly) == (0, 4, 4)
    assert any("lacks a package" in line for line in told.lines(done, Wish(Address("mlflow", "memory"), str(move.to))))


class TestDeletingTheOldFiles:
    def test_exactly_what_was_copied_goes(self, estate, move):
        move()
        estate.set("runs", "b", active=False)
        (estate.root / "1/unknown.txt").write_bytes(b"nobody's")
        done = move(delete_source=True, check=0)
        assert (told.code(done), done.deleted[0]) == (0, 4)
        assert files_below(estate.root) == {"1/unknown.txt": b"nobody's"}
        assert files_below(move.to) == EXPECTED

    def test_not_while_a_run_of_then_still_runs(self, estate, move):
        move()
        with pytest.raises(Conflict, match="still are"):
            move(delete_source=True)
        assert files_below(estate.root) == EXPECTED

    def test_not_when_something_is_not_swept(self, estate, move):
        move()
        estate.set("runs", "b", active=False)
        (estate.root / "1/b/artifacts/x").write_bytes(b"changed")
        with pytest.raises(Conflict, match="differences"):
            move(delete_source=True)

    def test_what_its_run_wrote_anew_at_the_new_place_keeps_its_old_file(self, estate, move):
        move()
        estate.set("runs", "b", active=False)
        (move.to / "2/d/artifacts/y").write_bytes(b"anew")
        done = move(delete_source=True)
        assert files_below(estate.root) == {"2/d/artifacts/y": b"yy"}
        assert [one.rpartition(": ")[2] for one in done.left] == ["its copy was written since"]

    def test_not_when_a_copy_is_gone(self, estate, move):
        move()
        estate.set("runs", "b", active=False)
        (move.to / "2/d/artifacts/y").unlink()
        with pytest.raises(Conflict, match="differences"):
            move(delete_source=True, check=0)
        assert files_below(estate.root) == EXPECTED

    def test_then_nothing_can_be_undone(self, estate, move):
        move()
        estate.set("runs", "b", active=False)
        move(delete_source=True)
        with pytest.raises(Conflict, match="deleted"):
            move(undo=True)


class TestTheLedger:
    def test_one_process_holds_it(self, estate, move):
        held = Ledger.open(move.ledger, "memory", str(move.to))
        with pytest.raises(LedgerInUse):
            move()
        held.close()

    def test_another_moves_ledger_is_refused(self, move):
        Ledger.open(move.ledger, "other", str(move.to)).close()
        with pytest.raises(LedgerInUse):
            move()

    def test_without_it_nothing_is_copied_twice_and_nothing_pretended(self, estate, move):
        move(copy_only=True)
        before = {one: one.stat().st_ino for one in move.to.rglob("*") if one.is_file()}
        move.ledger.unlink()
        done = move()
        assert done.copied.copied == 0
        assert {one: one.stat().st_ino for one in move.to.rglob("*") if one.is_file()} == before
        move.ledger.unlink()
        with pytest.raises(NotFound):
            move(undo=True)
        with pytest.raises(NotFound):
            move(check=0)

    def test_the_journal_is_whole_before_the_store_commits(self, estate, move):
        seen = []

        def look():
            db = sqlite3.connect(move.ledger)
            seen.append(db.execute("select count(*) from edit").fetchone()[0])
            db.close()

        move(hooks={"before commit": look})
        assert seen == [7]


class TestKilled:
    @pytest.mark.parametrize("point", ["begun", "lock", "edited", "before commit", "after commit"])
    def test_at_any_point_the_same_command_goes_on(self, estate, move, point):
        before = estate.state()

        def die():
            raise Stopped

        with pytest.raises(Stopped):
            move(hooks={point: die})
        done = move()
        assert (named(estate), files_below(move.to), told.code(done)) == (uris(move.to), EXPECTED, 0)
        move(undo=True)
        assert estate.state() == before

    @pytest.mark.parametrize("point", ["lock", "edited", "before commit", "after commit"])
    def test_in_undo_too(self, estate, move, point):
        before = estate.state()
        move()

        def die():
            raise Stopped

        with pytest.raises(Stopped):
            move(undo=True, hooks={point: die})
        if point != "after commit":
            move(undo=True)
        assert estate.state() == before
        move()
        assert named(estate) == uris(move.to)
        move(undo=True)
        assert estate.state() == before

    @pytest.mark.parametrize("at", range(1, 5))
    def test_at_any_file(self, estate, move, at):
        class Dying(FolderObjects):
            left = at

            def copy(self, source, key, to, size, version=""):
                Dying.left -= 1
                if not Dying.left:
                    raise Stopped
                return super().copy(source, key, to, size, version)

        move.target = Dying(move.to)
        with pytest.raises(Stopped):
            move()
        move.target = FolderObjects(move.to)
        move()
        assert (named(estate), files_below(move.to)) == (uris(move.to), EXPECTED)


def _wish(move):
    from mlmigrate.address import Address
    from mlmigrate.relocate.job import Wish

    return Wish(Address("mlflow", "memory"), str(move.to))
