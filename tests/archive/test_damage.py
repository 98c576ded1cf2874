"""No wrong byte is ever given back, and every one is found."""

import random
import shutil

import pytest

from mlmigrate.archive import commits, index, layout, tools
from mlmigrate.archive.commits import Commit, Entry, File
from mlmigrate.errors import BadData, Damaged, MigrateError
from mlmigrate.model import Experiment, Record
from mlmigrate.storage import LocalStorage

FLIPS = 700


def small(folder, kit):
    """An archive of every kind of file."""
    runs = [kit.run(f"r{n}", params={"lr": 0.1, "n": n}, tags={"a": "b"}) for n in range(3)]
    batches = [kit.series(one.id, [n + 0.5, n + 0.25]) for n, one in enumerate(runs)]
    files = [kit.artifact(one.id, "model.bin", one.id.encode() * 40) for one in runs]
    kit.write(folder, runs, batches, files, experiments=[Experiment("1", "vision", {"t": "v"})])
    held = kit.replace(kit.ref(kit.run("@m")), kind="records")
    kit.write(folder, [], records=[Record("k", "1", "", '{"a": 1}')], refs=[held], experiments=[])
    index.fold(LocalStorage(folder), index.load(LocalStorage(folder)).commits)
    return folder


def seen(kit, folder):
    found = kit.read(folder)
    return found.experiments, found.refs, found.runs, found.points.to_pylist(), found.files, found.records


def test_every_bit_flipped_is_found_by_check_and_never_read_as_another_value(tmp_path, kit):
    folder = small(tmp_path / "a", kit)
    truth = seen(kit, folder)
    assert list(tools.check(str(folder))) == []
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    bits = [(file, bit) for file in files for bit in range(file.stat().st_size * 8)]
    wrong = []
    for file, bit in random.Random(7).sample(bits, FLIPS):
        data = file.read_bytes()
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        if not any(finding.mark == "!" for finding in tools.check(str(folder))):
            wrong.append(("not found", file.name, bit))
        try:
            if seen(kit, folder) != truth:
                wrong.append(("read as another value", file.name, bit))
        except BadData:
            pass
        file.write_bytes(data)
    assert wrong == []


@pytest.mark.parametrize("harm", ["truncated", "deleted", "emptied", "longer", "swapped"])
def test_every_file_harmed_is_found_and_never_read_as_another_value(tmp_path, kit, harm):
    folder = small(tmp_path / "a", kit)
    truth = seen(kit, folder)
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    for n, name in enumerate(names):
        harmed = tmp_path / f"{harm}{n}"
        shutil.copytree(folder, harmed)
        data, other = (folder / name).read_bytes(), (folder / names[n - 1]).read_bytes()
        contents = {"truncated": data[:-1], "emptied": b"", "longer": data + b"\0", "swapped": other}
        (harmed / name).unlink() if harm == "deleted" else (harmed / name).write_bytes(contents[harm])
        copy_lost = harm == "deleted" and name.parts[0] == "checkpoints"
        if name.parts != ("mlmigrate.json",) and not copy_lost:
            assert [one for one in tools.check(str(harmed)) if one.mark == "!"], name
        try:
            assert seen(kit, harmed) == truth, name
        except MigrateError:
            assert not copy_lost


def test_a_damaged_blob_is_named_with_its_run_and_its_last_byte_is_kept_back(tmp_path, kit):
    folder = tmp_path / "a"
    kit.write(folder, [kit.run("r")], (), [kit.artifact("r", "big", b"x" * 3_000_000)])
    (blob,) = [file for file in (folder / "blobs").rglob("*") if file.is_file()]
    blob.write_bytes(b"y" + b"x" * 2_999_999)
    got = []
    with tools.cat(str(folder), "r", "big") as stream, pytest.raises(Damaged, match="r, big: the bytes read are not"):
        got.extend(iter(lambda: stream.read(1000), b""))
    assert sum(map(len, got)) < 3_000_000
    (finding,) = tools.check(str(folder))
    assert (finding.mark, finding.experiment, finding.run) == ("!", "experiment 1", "r")
    assert finding.what.startswith("artifact big: ")


def test_a_damaged_table_is_named_with_what_to_do(tmp_path, kit):
    folder = small(tmp_path / "a", kit)
    (table,) = folder.glob("packs/*/points.parquet")
    table.write_bytes(table.read_bytes()[::-1])
    with pytest.raises(Damaged, match=f"{table.parent.name}/points.parquet") as raised:
        kit.read(folder)
    assert "export what it held again" in raised.value.hint
    assert [one.what for one in tools.check(str(folder)) if "Runs in it: 3 (r0, r1, r2)" in one.what]


@pytest.mark.parametrize("name", ["../../evil.parquet", "/etc/passwd", "a\0b.parquet", "runs.parquet/../x", ".."])
def test_a_hostile_commit_reaches_no_file_outside(tmp_path, kit, name):
    folder = small(tmp_path / "a", kit)
    entry = Entry("r0", "1", "mlflow:r0", "s")
    hostile = Commit(1, "evil", 2**60, "", "", False, (File(name, 1, "0" * 64, 1),), {}, (entry,))
    (folder / "packs" / "evil.json").write_bytes(commits.encode(hostile))
    found = [one.what for one in tools.check(str(folder)) if one.mark == "!"]
    assert any("no name of a table" in what for what in found)
    tools.prune(str(folder), older_than=-1)
    assert (tmp_path / "a").exists()


@pytest.mark.parametrize("pack", ["../evil", "a/b", "", "..", "x" * 500])
def test_a_commit_of_a_hostile_name_is_damage(tmp_path, kit, pack):
    folder = small(tmp_path / "a", kit)
    (folder / "packs" / "evil.json").write_bytes(commits.encode(Commit(1, pack, 2**60, "", "", False)))
    with pytest.raises(Damaged, match=r"packs/evil\.json"):
        kit.read(folder)


@pytest.mark.parametrize("sha256", ["../../../etc/passwd", "", "G" * 64, "0" * 63])
def test_a_hostile_digest_reaches_no_file_outside(sha256):
    with pytest.raises(BadData, match="no name of a blob"):
        layout.blob_name(sha256)
