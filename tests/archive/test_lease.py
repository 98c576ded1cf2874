"""Who may write into an archive in an object store."""

import contextlib
import os
import threading

import pytest

from mlmigrate.archive import lease
from mlmigrate.archive.lease import ArchiveInUse, Lease
from mlmigrate.errors import Unavailable
from mlmigrate.storage.bucket import BucketStorage
from mlmigrate.storage.folder import FolderObjects

NOBODY = 1 << 22  # no Linux gives so high a pid


@pytest.fixture
def storage(tmp_path):
    return BucketStorage(FolderObjects(tmp_path / "s"))


def writers(storage):
    return sorted(one.key for one in storage.objects.list("writers/"))


@pytest.mark.parametrize("at", range(1, 5))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_try_in_vain_is_not_taken_for_another_writer(storage, monkeypatch, at, after):
    calls = []

    def sometimes(real):
        def call(self, *args, **kwargs):
            calls.append(args)
            if len(calls) == at and not after:
                raise Unavailable("503")
            answer = real(self, *args, **kwargs)
            if len(calls) == at:
                raise Unavailable("503")
            return answer

        return call

    mine = Lease(storage, "export")
    with monkeypatch.context() as patched, contextlib.suppress(Unavailable):
        for name in ("list", "put", "delete", "open", "head"):
            patched.setattr(FolderObjects, name, sometimes(getattr(FolderObjects, name)))
        mine.take()
    mine.take()
    assert len(writers(storage)) == 1
    with pytest.raises(ArchiveInUse):
        Lease(storage, "export").take()
    mine.release()
    assert writers(storage) == []


def test_a_sign_of_life_under_way_does_not_outlive_who_gives_it(storage, monkeypatch):
    mine = Lease(storage, "export")
    mine.take()
    releasing, put = threading.Thread(target=mine.release), FolderObjects.put

    def meanwhile(*args, **kwargs):
        releasing.start()
        releasing.join(0.5)  # it has to wait for us
        return put(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(FolderObjects, "put", meanwhile)
        mine._beat()
    releasing.join()
    assert writers(storage) == []


def test_this_process_is_alive_and_one_that_never_was_is_not():
    assert lease.started(os.getpid()) > 0
    assert lease.started(NOBODY) == 0
    assert lease.started(0) == 0


def test_a_holder_elsewhere_is_never_taken_for_gone():
    mine = Lease(None, "export")._mine
    there = lease.Holder("n", "host", "another machine", NOBODY, 5, "", "export")
    here = lease.Holder("n", "host", lease.machine(), NOBODY, 5, "", "export")
    assert (mine.gone, there.gone, here.gone) == (False, False, True)
