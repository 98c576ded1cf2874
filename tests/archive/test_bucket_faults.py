"""An archive in a store that fails: at any request, in any way. The same export again completes it."""

import itertools
import os
import shutil
import threading
from unittest import mock

import pytest

from mlmigrate.archive import tools
from mlmigrate.archive.writer import ArchiveTarget
from mlmigrate.errors import DiskFull, Refused, Unavailable
from mlmigrate.storage.bucket import BucketStorage
from mlmigrate.storage.folder import FolderObjects

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """The process is no more."""


class Failing(FolderObjects):
    """Fails at its nth request, and from then on (`once`: then no more); after it was done, or before."""

    def __init__(self, root, at, error, *, after=False, once=False):
        super().__init__(root)
        self.at, self.error, self.after, self.once = at, error, after, once
        self.calls = 0
        self.happened = False
        self._counting = threading.Lock()

    def _step(self, call, *args, **kwargs):
        with self._counting:
            self.calls += 1
            now = self.calls == self.at or (self.calls > self.at and not self.once)
            self.happened |= now
        if now and not (self.after and self.calls == self.at):
            raise self.error
        answer = call(*args, **kwargs)
        if now:
            raise self.error
        return answer

    def head(self, key):
        return self._step(super().head, key)

    def open(self, key, start=0, length=None, version=""):
        return self._step(super().open, key, start, length, version)

    def put(self, key, data, *, create=False, sha256=""):
        return self._step(super().put, key, data, create=create, sha256=sha256)

    def upload(self, key, body, **how):
        return self._step(super().upload, key, body, **how)

    def copy(self, *args, **kwargs):
        return self._step(super().copy, *args, **kwargs)

    def delete(self, keys):
        return self._step(super().delete, list(keys))

    def list(self, below=""):
        return self._step(super().list, below)


def estate(kit, version):
    """Two packs of a small estate as it is at some time."""
    for pack in ("p", "q"):
        runs = [kit.run(f"{pack}{n}", stamp=version, params={"version": version}) for n in range(2)]
        batches = [kit.series(one.id, [1.0, float(version)]) for one in runs]
        files = [kit.artifact(one.id, "model", b"same") for one in runs]
        files += [
            kit.artifact(one.id, f"own {n}", f"{one.id} {version} {n}".encode()) for one in runs for n in range(4)
        ]
        files += [kit.artifact(runs[0].id, "large", b"x" * (17 << 20))] if pack == "q" and version == "1" else []
        yield pack + version, runs, batches, files


def export(kit, objects, version):
    """As the command does: a lease, packs that are not there yet, and an end whatever comes."""
    for pack, runs, batches, files in estate(kit, version):
        target = ArchiveTarget(BucketStorage(objects))
        try:
            there = target.arrived()
            if any(one.origin not in there or there[one.origin].stamp != one.stamp for one in runs):
                target.prepare([])
                with target.pack(pack, [kit.ref(one) for one in runs]) as into:
                    into.begin(runs)
                    for batch in batches:
                        into.points(batch)
                    for file in files:
                        into.put(file)
                    into.commit()
        finally:
            target.close()


def state(kit, root):
    found = kit.read(BucketStorage(FolderObjects(root)))
    rows = found.points.to_pylist()
    return {
        one.id: (
            one.params["version"],
            [row["value"] for row in rows if row["run"] == one.id],
            sorted(data for (owner, _), data in found.files.items() if owner == one.id),
        )
        for one in found.runs
    }


def expected(kit, version):
    found = {}
    for _, runs, _, files in estate(kit, version):
        for one in runs:
            mine = sorted(file.open().read() for file in files if file.owner == one.id)
            found[one.id] = (version, [1.0, float(version)], mine)
    return found


@pytest.fixture(autouse=True)
def _dead_writers_are_followed_at_once(monkeypatch):
    """In these tests the one that was killed has our pid."""
    monkeypatch.setattr("mlmigrate.archive.lease.STALE", -1.0)
    monkeypatch.setattr("mlmigrate.storage.folder.sync_folders", lambda *_: None)


ERRORS = {
    "killed": (Killed(), Killed),
    "expired": (Refused("the credentials have expired"), Refused),
    "full": (DiskFull("the store takes no more"), DiskFull),
    "away": (Unavailable("503 SlowDown"), Unavailable),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_failing_at_any_request_the_old_state_is_there_and_a_new_try_completes(tmp_path, kit, kind, after):
    error, raised = ERRORS[kind]
    old, new = expected(kit, "1"), expected(kit, "2")
    first = tmp_path / "first"
    export(kit, FolderObjects(first), "1")
    for at in itertools.count(1, 6):
        root = tmp_path / str(at)
        copy_tree(first, root)
        objects = Failing(root, at, error, after=after)
        try:
            export(kit, objects, "2")
        except raised:
            between = state(kit, root)
            assert between.keys() == old.keys()
            assert all(seen in (old[id_], new[id_]) for id_, seen in between.items())
            assert all(one.mark == "-" for one in check(root))
            export(kit, FolderObjects(root), "2")
        assert state(kit, root) == new
        if not objects.happened:
            break
    assert at > 30


def test_failing_in_the_very_first_export_a_new_try_completes(tmp_path, kit):
    for at in itertools.count(1, 6):
        root = tmp_path / str(at)
        objects = Failing(root, at, Killed(), after=True)
        try:
            export(kit, objects, "1")
        except Killed:
            export(kit, FolderObjects(root), "1")
        assert state(kit, root) == expected(kit, "1")
        if not objects.happened:
            break
    assert at > 30


def check(root):
    with mock.patch.object(tools, "_opened", return_value=BucketStorage(FolderObjects(root))):
        return list(tools.check(""))


def copy_tree(source, target):
    shutil.copytree(source, target, copy_function=os.link)
