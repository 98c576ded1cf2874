"""Files go from place to place: all that can, each proven, and what cannot is told."""

import hashlib
import io
import itertools
import os
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mlmigrate.errors import Damaged, DiskFull, MigrateError, NotFound, Refused, Stopped, Unavailable
from mlmigrate.steps import Steps
from mlmigrate.storage import carry, moving
from mlmigrate.storage.folder import FolderObjects
from mlmigrate.storage.moving import LARGE_AT_ONCE, Failed, Moved, Mover, Task
from mlmigrate.storage.objects import PART, BadKey, Stored, digest_text
from mlmigrate.storage.throttle import UNLIMITED

QUICK = Steps(tries=3)


class Elsewhere(FolderObjects):
    """A folder that is another store: nothing can be copied there, all bytes go through us."""

    store = "elsewhere"


class Memory:
    """Objects in memory, whose etags are md5s. `trouble` is called with each request, and may raise."""

    url = "memory"
    shown = "memory"
    store = "memory"
    local = None
    throttle = UNLIMITED

    def __init__(self, files=(), trouble=lambda what, key: None):
        self.files, self.trouble = dict(files), trouble

    def check(self, *, write=False):
        self.trouble("check", "")

    def list(self, below=""):
        return (self.head(key) for key in list(self.files) if key.startswith(below))

    def head(self, key):
        self.trouble("head", key)
        data = self.files.get(key)
        return None if data is None else Stored(key, len(data), hashlib.md5(data).hexdigest())

    @contextmanager
    def open(self, key, start=0, length=None, version=""):
        found = self.trouble("open", key)
        if key not in self.files:
            raise NotFound(key)
        data = self.files[key] if found is None else found
        yield io.BytesIO(data[start : None if length is None else start + length])

    def put(self, key, data, *, create=False, sha256=""):
        found = self.trouble("put", key)
        self.files[key] = bytes(data) if found is None else found
        return Stored(key, len(data), "", 0, digest_text(hashlib.sha256(self.files[key]).digest()))

    def unfinished(self, below=""):
        return iter(())

    def abort(self, key, upload): ...

    def delete(self, keys):
        for key in keys:
            self.files.pop(key, None)


@pytest.fixture
def source(tmp_path):
    place = FolderObjects.of(str(tmp_path / "source"))
    for n in range(100):
        (place.root / f"d{n % 7}").mkdir(parents=True, exist_ok=True)
        (place.root / f"d{n % 7}" / f"f{n}").write_bytes(b"%d" % n * n)
    return place


@pytest.fixture
def target(tmp_path):
    return Elsewhere.of(str(tmp_path / "target"))


def tasks(source, to="new/"):
    return [Task(source, one.key, one.size, one.version, to + one.key) for one in source.list()]


def files(place):
    return {str(one.relative_to(place.root)): one.read_bytes() for one in place.root.rglob("*") if one.is_file()}


def renamed(found):
    return {f"new/{key}": data for key, data in found.items()}


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def movers():
    return [one for one in threading.enumerate() if one.name.startswith(("mover", "part"))]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert movers() == []


class TestMoving:
    def test_every_file_arrives_and_is_told_once_with_its_digest(self, source, target):
        told = []
        ended = list(Mover(target, told=lambda size, objects: told.append((size, objects))).move(tasks(source)))
        meant = files(source)
        assert files(target) == renamed(meant)
        assert {one.task.key: (one.digest, one.how, one.sent) for one in ended} == {
            key: (sha256(data), "put", len(data)) for key, data in meant.items()
        }
        assert [sum(all_) for all_ in zip(*told, strict=True)] == [sum(map(len, meant.values())), 100]

    def test_a_second_move_gives_the_same(self, source, target):
        for _ in range(2):
            assert all(isinstance(one, Moved) for one in Mover(target).move(tasks(source)))
            assert files(target) == renamed(files(source))

    def test_a_large_file_goes_in_parts(self, source, target):
        data = os.urandom(PART + 12_345)
        source.put("large", data)
        told = []
        [one] = Mover(target, told=lambda *all_: told.append(all_)).move(
            [task for task in tasks(source) if task.size > PART]
        )
        parts = hashlib.sha256(data[:PART]).digest() + hashlib.sha256(data[PART:]).digest()
        assert (one.how, one.digest) == ("parts", f"{sha256(parts)}/{PART}")
        assert files(target) == {"new/large": data}
        assert [sum(all_) for all_ in zip(*told, strict=True)] == [len(data), 1]

    @pytest.mark.slow
    def test_large_and_small_ones_and_those_between_go_together(self, source, target):
        for n in range(3):
            source.put(f"large{n}", os.urandom(PART + n))
            source.put(f"middle{n}", os.urandom(PART - n))
        ended = list(Mover(target, threads=3).move(tasks(source)))
        assert files(target) == renamed(files(source))
        assert len(ended) == 106

    def test_within_a_store_the_store_copies(self, source, tmp_path):
        target = FolderObjects.of(str(tmp_path / "target"))
        ended = list(Mover(target).move(tasks(source)))
        assert files(target) == renamed(files(source))
        assert {(one.how, one.digest == sha256(files(source)[one.task.key])) for one in ended} == {("copied", True)}

    def test_nothing_is_nothing(self, target):
        assert list(Mover(target).move([])) == []

    def test_tasks_are_pulled_as_they_are_needed_in_the_callers_thread(self, source, target):
        pulled, me = [], threading.current_thread()

        def endless():
            for n in itertools.count():
                assert threading.current_thread() is me
                pulled.append(n)
                yield Task(source, "d1/f1", 1, "", f"f{n}")

        ended = Mover(target, threads=2).move(endless())
        for _ in range(10):
            next(ended)
        ended.close()
        assert len(pulled) < 60

    @pytest.mark.slow
    def test_at_most_four_large_files_and_so_many_small_ones_go_at_once(self, source, target, monkeypatch):
        now, most, lock, several = [0, 0], [0, 0], threading.Lock(), threading.Event()

        @contextmanager
        def counted(lane):
            with lock:
                now[lane] += 1
                most[lane] = max(now[lane], most[lane])
                if now[1] > 1:
                    several.set()
            if lane == 1:
                several.wait(60)  # a quick machine would be done with the first before the second begins
            yield
            with lock:
                now[lane] -= 1

        def watched(lane, call):
            def one(self):
                with counted(lane):
                    return call(self)

            return one

        monkeypatch.setattr(carry.Carry, "_put", watched(0, carry.Carry._put))
        monkeypatch.setattr(carry.Carry, "_in_parts", watched(1, carry.Carry._in_parts))
        for n in range(8):
            source.put(f"large{n}", b"x" * (PART + 1))
        list(Mover(target, threads=5).move(tasks(source)))
        assert most[0] <= 5
        assert 1 < most[1] <= LARGE_AT_ONCE

    @pytest.mark.slow
    def test_small_files_do_not_wait_for_the_large_ones_before_them(self, source, target, monkeypatch):
        for n in range(20):
            source.put(f"large{n}", b"x" * (PART + 1))
        gate, ended = threading.Event(), []
        in_parts = carry.Carry._in_parts
        monkeypatch.setattr(carry.Carry, "_in_parts", lambda self: (gate.wait(120), in_parts(self))[1])
        for one in Mover(target).move(sorted(tasks(source), key=lambda task: -task.size)):
            ended.append(one.how)
            if len(ended) == 100:
                gate.set()
        assert ended == ["put"] * 100 + ["parts"] * 20


class TestTheSource:
    def test_a_file_that_is_gone_or_may_not_be_read_fails_alone(self, source, target, tmp_path):
        listed = tasks(source)
        (source.root / "d0" / "f0").unlink()
        (source.root / "d1" / "f1").unlink()
        (source.root / "d1" / "f1").symlink_to(tmp_path)
        meant = renamed(files(source))
        ended = list(Mover(target).move(listed))
        assert {one.task.key: type(one.error) for one in ended if isinstance(one, Failed)} == {
            "d0/f0": NotFound,
            "d1/f1": NotFound,
        }
        assert files(target) == meant

    def test_a_name_that_the_target_cannot_hold_fails_alone(self, source, target):
        bad = [Task(source, "d1/f1", 1, "", to) for to in ("a/../../b", "a//b", "x" * 300)]
        ended = list(Mover(target).move([*bad, *tasks(source)]))
        assert {one.task.to: type(one.error) for one in ended if isinstance(one, Failed)} == dict.fromkeys(
            (one.to for one in bad), BadKey
        )
        assert files(target) == renamed(files(source))

    def test_a_name_that_leads_out_of_the_source_is_not_read(self, source, target, tmp_path):
        (tmp_path / "secret").write_bytes(b"hidden")
        [one] = Mover(target).move([Task(source, "../secret", 6, "", "x")])
        assert isinstance(one.error, BadKey)

    @pytest.mark.parametrize("size", [10, PART + 10])
    def test_a_file_that_was_written_since_it_was_listed_is_moved_as_it_is_now(self, source, target, size):
        source.put("x", b"1" * 5)
        listed = [task for task in tasks(source) if task.key == "x"]
        stored = source.put("x", b"2" * size)
        [one] = Mover(target).move(listed)
        assert files(target) == {"new/x": b"2" * size}
        assert (one.task.size, one.task.version) == (size, stored.version)

    def test_a_file_that_is_written_while_it_is_read_is_taken_again(self, source, target, monkeypatch):
        monkeypatch.setattr(carry, "os", Rewriting(source.root / "d5" / "f5", times=2))
        ended = list(Mover(target, threads=1).move(tasks(source)))
        assert [one for one in ended if isinstance(one, Failed)] == []
        assert files(target) == renamed(files(source))

    def test_a_file_that_is_written_all_the_time_fails_alone(self, source, target, monkeypatch):
        monkeypatch.setattr(carry, "os", Rewriting(source.root / "d5" / "f5", times=99))
        ended = list(Mover(target, threads=1).move(tasks(source)))
        [failed] = [one for one in ended if isinstance(one, Failed)]
        assert failed.task.key == "d5/f5"
        assert "written while it was copied" in str(failed.error)
        meant = renamed(files(source))
        meant.pop("new/d5/f5")
        assert files(target) == meant

    def test_bytes_that_are_not_those_of_the_etag_are_read_again(self, target):
        count = itertools.count()
        place = Memory({"a": b"good"}, lambda what, key: b"evil" if what == "open" and not next(count) else None)
        [one] = Mover(target).move(tasks(place))
        assert (one.digest, files(target)) == (sha256(b"good"), {"new/a": b"good"})

    def test_bytes_that_differ_with_each_reading_fail(self, target):
        count = itertools.count()
        place = Memory({"a": b"good"}, lambda what, key: b"%04d" % next(count) if what == "open" else None)
        [one] = Mover(target).move(tasks(place))
        assert isinstance(one.error, Damaged)
        assert files(target) == {} if target.root.exists() else True

    def test_etags_that_are_no_md5s_are_found_out(self, target):
        opened = []
        place = Memory(dict.fromkeys("abcde", b"1"), lambda what, key: opened.append((what, key)))
        listed = [Task(place, key, 1, "0" * 32, key) for key in place.files]
        assert all(isinstance(one, Moved) for one in Mover(target, threads=1).move(listed))
        assert [key for what, key in opened if what == "open"] == ["a", "a", "b", "b", "c", "c", "d", "e"]


class Rewriting:
    """The system, as it is while somebody writes into `file` right after each time that it was read."""

    def __init__(self, file, times):
        self.file, self.left = file, times

    def __getattr__(self, name):
        return getattr(os, name)

    def read(self, descriptor, size):
        data = os.read(descriptor, size)
        if self.left and os.path.sameopenfile(descriptor, self._open()):
            self.left -= 1
            self.file.write_bytes(b"again %d" % self.left)
            os.utime(self.file, ns=(self.left, self.left))
        return data

    def _open(self):
        with self.file.open("rb") as other:
            return os.dup(other.fileno())


class TestTheTarget:
    @pytest.mark.parametrize("error", [Refused("no right"), DiskFull("no space"), NotFound("no bucket")])
    def test_when_it_takes_nothing_more_the_move_ends_and_what_arrived_is_told(self, source, error):
        def trouble(what, key):
            if what in ("put", "check") and len(target.files) >= 20:
                raise error

        target, ended = Memory(trouble=trouble), []
        with pytest.raises(type(error), match=str(error)):
            ended.extend(Mover(target, threads=4).move(tasks(source)))
        assert {one.task.to for one in ended} == set(target.files)
        assert len(target.files) < 30

    def test_what_it_refuses_of_one_file_fails_alone(self, source):
        def trouble(what, key):
            if what == "put" and key == "new/d5/f5":
                raise MigrateError("what a name")

        target = Memory(trouble=trouble)
        [failed] = [one for one in Mover(target).move(tasks(source)) if isinstance(one, Failed)]
        assert (failed.task.key, len(target.files)) == ("d5/f5", 99)

    def test_while_it_is_away_each_file_is_tried_again(self, source):
        tries = Counter()

        def trouble(what, key):
            if what == "put":
                tries[key] += 1
                if tries[key] < 3:
                    raise Unavailable("busy", after=0.0)

        target = Memory(trouble=trouble)
        ended = list(Mover(target, threads=8, again=QUICK).move(tasks(source)))
        assert [one for one in ended if isinstance(one, Failed)] == []
        assert target.files == renamed(files(source))

    def test_as_often_as_was_asked_for_and_no_more(self, source):
        asked = []

        def trouble(what, key):
            asked.append(what)
            raise Unavailable("busy", after=0.0)

        target = Memory(trouble=trouble)
        [one] = Mover(target, again=QUICK).move([Task(source, "d1/f1", 1, "", "x")])
        assert (type(one.error), asked) == (Unavailable, ["put"] * 3)

    def test_when_it_stays_away_the_move_ends(self, source):
        def trouble(what, key):
            raise Unavailable("gone", after=0.0)

        with pytest.raises(Unavailable, match="gone"):
            list(Mover(Memory(trouble=trouble), threads=2).move(tasks(source)))

    def test_what_arrived_otherwise_than_it_was_sent_is_sent_again(self, source):
        count = itertools.count()
        target = Memory(trouble=lambda what, key: b"evil" if what == "put" and not next(count) % 3 else None)
        ended = list(Mover(target).move(tasks(source)))
        failed = [one for one in ended if isinstance(one, Failed)]
        assert all(isinstance(one.error, Damaged) for one in failed)
        arrived = {one.task.to for one in ended if isinstance(one, Moved)}
        assert target.files == {key: data for key, data in renamed(files(source)).items() if key in arrived}
        assert len(arrived) + len(failed) == 100

    def test_wrong_bytes_do_not_stay_under_a_files_name(self, source):
        target = Memory(trouble=lambda what, key: b"evil" if what == "put" and key == "new/d5/f5" else None)
        [failed] = [one for one in Mover(target).move(tasks(source)) if isinstance(one, Failed)]
        assert (failed.task.key, type(failed.error)) == ("d5/f5", Damaged)
        assert target.files.keys() == renamed(files(source)).keys() - {"new/d5/f5"}


class TestStopping:
    def test_a_stop_ends_it_and_leaves_no_thread(self, source):
        gate = threading.Event()
        target = Memory(trouble=lambda what, key: (gate.wait(120), None)[1])
        looks = itertools.count()

        def check():
            if next(looks) == 12:  # nothing has ended before
                gate.set()
                raise Stopped

        with pytest.raises(Stopped):
            list(Mover(target, threads=4, check=check).move(tasks(source)))
        assert len(target.files) < 100
        assert movers() == []

    def test_a_stop_ends_a_large_file_in_its_midst(self, tmp_path, target):
        class Slow(FolderObjects):
            store = "slow"

            @contextmanager
            def open(self, key, start=0, length=None, version=""):
                yield Crawling()

        class Crawling:
            seek = tell = seekable = None
            read_ = itertools.count()

            def read(self, size=-1):
                threading.Event().wait(0.02)
                return b"x"

        looks = itertools.count()

        def check():
            if next(looks) == 3:
                raise Stopped

        source = Memory()
        source.open = Slow(tmp_path).open
        with pytest.raises(Stopped):
            list(Mover(target, check=check).move([Task(source, "a", PART + 1, "", "a")]))
        assert movers() == []
        assert files(target) == {}

    def test_who_stops_listening_leaves_no_thread(self, source, target):
        for _ in Mover(target).move(tasks(source)):
            break
        assert movers() == []

    def test_an_error_of_who_lists_rises_as_it_is(self, source, target):
        def broken():
            yield from tasks(source)[:10]
            raise Refused("the list may not be read")

        with pytest.raises(Refused, match="the list"):
            list(Mover(target).move(broken()))

    def test_a_bug_rises_whole(self, source):
        def trouble(what, key):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(Mover(Memory(trouble=trouble)).move(tasks(source)))

    def test_a_thread_that_waits_for_another_try_keeps_nobody(self, source, monkeypatch):
        monkeypatch.setattr(moving, "PATIENCE", 600.0)
        waits, over = threading.Event(), threading.Event()

        class Later:
            """Calls again when all is over."""

            def do(self, what, call):
                with suppress(Unavailable):
                    return call()
                waits.set()
                over.wait(600)
                return call()

        def trouble(what, key):
            raise Unavailable("busy")

        def check():
            if waits.is_set():
                raise Stopped

        def run():
            with pytest.raises(Stopped):
                list(Mover(Memory(trouble=trouble), threads=1, again=Later(), check=check).move(tasks(source)))

        begun = threading.Thread(target=run)
        begun.start()
        begun.join(120)
        kept = begun.is_alive()
        over.set()
        for one in (begun, *movers()):
            one.join(120)
        assert not kept


class Silent(FolderObjects):
    """A store that copies by itself and says nothing of the bytes, as some that encrypt."""

    wrong = ""

    def copy(self, source, key, to, size, version=""):
        stored = super().copy(source, key, to, size, version)
        if key == self.wrong:
            (Path(self.url) / to).write_bytes(b"x" * size)
        return replace(stored, digest="")


def test_a_copy_that_its_store_cannot_prove_is_proven_by_reading(tmp_path):
    (tmp_path / "here").mkdir()
    for name in ("good", "bad"):
        (tmp_path / "here" / name).write_bytes(name.encode())
    here, there = Silent.of(str(tmp_path / "here")), Silent.of(str(tmp_path / "there"))
    here.local = there.local = None
    there.wrong = "bad"
    tasks = [Task(here, one.key, one.size, one.version, one.key) for one in here.list()]
    good, bad = sorted(Mover(there).move(tasks), key=lambda one: isinstance(one, Failed))
    assert good.digest == "sha256:" + hashlib.sha256(b"good").hexdigest()
    assert (bad.task.key, type(bad.error)) == ("bad", Damaged)
    assert not (tmp_path / "there" / "bad").exists()
