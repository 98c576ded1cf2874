"""An archive in Azure (Azurite) and in Google's stand-in: the same promises, with what those stores can do."""

import hashlib
import os

import pytest

import azurite
import googledouble
from mlmigrate.archive import tools
from mlmigrate.archive.lease import ArchiveInUse, Lease
from mlmigrate.errors import Damaged, NotFound
from mlmigrate.storage import open_storage

MIB = 1 << 20


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    if reason := azurite.missing():
        pytest.skip(reason)
    with azurite.running(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def google():
    with googledouble.google() as store:
        yield store


@pytest.fixture(params=["gs", pytest.param("az", marks=pytest.mark.slow)])
def cloud(request, monkeypatch):
    """An address, what lies in the store, and a way to harm it."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    if request.param == "gs":
        store = request.getfixturevalue("google")
        found = (f"gs://{googledouble.BUCKET}/some/archive", store.env, store.put)
    else:
        server = request.getfixturevalue("azure")
        container = server.container()
        found = (f"az://{container}/some/archive", server.env, lambda key, data: server.put(container, key, data))
    for name, value in found[1].items():
        monkeypatch.setenv(name, value)
    return found


def test_an_archive_is_written_read_checked_and_pruned(cloud, kit):
    place, env, put = cloud
    files = {name: hashlib.shake_128(name.encode()).digest(size) for name, size in (("a", 9), ("b", 2 * MIB))}
    files["large"] = b"x" * (17 * MIB)
    sent = [kit.artifact("r", *one) for one in files.items()]
    kit.write(open_storage(place, env), [kit.run("r")], [kit.series("r", [1.0, 2.0])], sent)
    kit.write(open_storage(place, env), [kit.run("r", stamp="s2")], [kit.series("r", [3.0])], sent[1:])
    found = kit.read(open_storage(place, env))
    assert found.points["value"].to_pylist() == [3.0]
    assert found.files == {("r", name): files[name] for name in ("b", "large")}
    assert [one.mark for one in tools.check(place)] == ["-"]  # the tables of the first pack
    assert len(tools.prune(place, older_than=-60)) == 3
    assert list(tools.check(place)) == []
    put("some/archive/blobs/{0:.2}/{0}".format(hashlib.sha256(files["b"]).hexdigest()), b"evil")
    (finding,) = tools.check(place)
    assert (finding.mark, finding.what.split(":")[0]) == ("!", "artifact b")
    with pytest.raises(Damaged):
        kit.read(open_storage(place, env))


def test_one_writes_and_a_second_is_told(cloud):
    place, env, _ = cloud
    first = Lease(open_storage(place, env), "export")
    first.take()
    with pytest.raises(ArchiveInUse, match=rf"export on .* \(pid {os.getpid()}\)"):
        Lease(open_storage(place, env), "export").take()
    first.release()


def test_no_archive_is_said(cloud):
    with pytest.raises(NotFound, match="not an archive"):
        list(tools.ls(cloud[0]))
