"""A file store as an estate: every value that names a place of artifacts, and their change file by file."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.estate import Cell, Edit
from mlmigrate.adapters.mlflow.files import switching as switching_module
from mlmigrate.address import Address
from mlmigrate.errors import NotFound, Unavailable

RUN, OTHER_RUN, MODEL, TRACE = "a" * 32, "b" * 32, "m-" + "c" * 32, "tr-" + "d" * 32
GONE = "e" * 32
HERE = "file:///elsewhere/mlruns"
PLACES = {"artifact_uri", "artifact_location", "source", "storage_location"}
FILL = """
import os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import mlflow
from mlflow.tracking import MlflowClient
mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
experiment = client.create_experiment("kitchen")
mlflow.set_experiment(experiment_id=experiment)
with mlflow.start_run() as run:
    mlflow.log_text("dough", "notes/a.txt")
    model = client.create_logged_model(experiment, "net", run.info.run_id)
with mlflow.start_span("ask"):
    pass
mlflow.flush_trace_async_logging()
client.create_registered_model("net")
client.create_model_version("net", run.info.artifact_uri + "/notes", run.info.run_id)
client.create_model_version("net", f"models:/{model.model_id}", run.info.run_id, model_id=model.model_id)
client.delete_run(client.create_run(experiment).info.run_id)
other = client.create_experiment("given up")
client.create_run(other)
client.delete_experiment(other)
"""


def opened(root, **settings):
    return registry.open_estate(Address("mlflow", str(root)), Context("source", settings=Settings(**settings)))


def to_s3(cells, old=HERE, new="s3://bucket/new"):
    return [Edit(c.table, c.key, c.column, c.value, new + c.value.removeprefix(old)) for c in cells]


def edited(estate, edits):
    with estate.switching() as switching:
        missed = switching.edit(edits)
        switching.commit()
    return missed


def bytes_of(root):
    """Every file and folder below, with its bytes and its rights."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        content = None if path.is_dir() else path.readlink() if path.is_symlink() else path.read_bytes()
        found[str(path.relative_to(root))] = (content, stat.S_IMODE(path.lstat().st_mode))
    return found


def raw_values(root):
    """(file, field, value) of all fields of those names in all meta.yaml, but those of datasets, and of trace tags."""
    found = []
    for file in Path(root).rglob("meta.yaml"):
        path = str(file.relative_to(root))
        said = yaml.safe_load(file.read_text("utf-8"))
        if "/datasets/" not in path and isinstance(said, dict):
            found += [(path, name, str(said[name])) for name in PLACES & said.keys() if said[name]]
    found += [
        (str(file.relative_to(root)), "value", file.read_text("utf-8"))
        for file in Path(root).rglob("traces/*/tags/mlflow.artifactLocation")
    ]
    return sorted(one for one in found if not one[2].startswith(("models:/", "runs:/")) and one[2] != "dummy-source")


def values(cells):
    return sorted((*cell.key, cell.column, cell.value) for cell in cells)


@pytest.fixture
def full(store):
    """A store with one of each; what it names lies elsewhere, and beside it."""
    store.experiment("1", "first", creation_time=5, last_update_time=22)
    store.run(RUN, "1", {"artifacts/model/MLmodel": "flavors: {}\n"}, run_name="calm", status=3, end_time=33)
    store.run(OTHER_RUN, "1", {"tags/mlflow.runName": "wild", "tags/note": HERE}, run_name=..., status=1, end_time=...)
    store.experiment(".trash/2", "gone", artifact_location=f"{HERE}/2")
    store.run(GONE, ".trash/2", artifact_uri=f"{HERE}/2/{GONE}/artifacts", lifecycle_stage="deleted")
    store.put(
        f"1/models/{MODEL}/meta.yaml",
        f"artifact_location: {HERE}/1/models/{MODEL}/artifacts\nmodel_id: {MODEL}\nname: net\n"
        "experiment_id: '1'\nlast_updated_timestamp: 44\nstatus: 1\n",
    )
    store.put(f"1/models/{MODEL}/artifacts/MLmodel", "flavors: {}\n")
    store.put(f"1/traces/{TRACE}/trace_info.yaml", "request_time: 60\nexecution_duration_ms: 6\nstate: IN_PROGRESS\n")
    store.put(f"1/traces/{TRACE}/tags/mlflow.artifactLocation", f"{HERE}/1/traces/{TRACE}/artifacts")
    store.put(f"1/traces/{TRACE}/tags/mlflow.traceName", "ask")
    store.put(f"1/traces/{TRACE}/artifacts/traces.json", "{}")
    store.put("1/datasets/d1/meta.yaml", f"name: data\nsource: {HERE}/1/data.csv\n")
    store.put("models/net/meta.yaml", "name: net\n")
    source = f"{HERE}/1/{RUN}/artifacts/model"
    store.put(
        "models/net/version-1/meta.yaml",
        f"last_updated_timestamp: 55\nname: net\nrun_id: {RUN}\nsource: {source}\nstatus: READY\n"
        f"storage_location: {source}\nversion: '1'\n",
    )
    store.put("models/net/version-2/meta.yaml", f"name: net\nsource: models:/{MODEL}\nstorage_location: null\n")
    store.put("models/greeting/version-1/meta.yaml", "name: greeting\nsource: dummy-source\n")
    return store


def cells_of_full():
    version = {"owner": "@version/net/1", "experiment": "1", "name": "net", "changed": 55}
    one = "models/net/version-1/meta.yaml"
    source = f"{HERE}/1/{RUN}/artifacts/model"

    def run(path, id_, **more):
        experiment = path.rpartition("/")[2]
        uri = f"{HERE}/{experiment}/{id_}/artifacts"
        key = (f"{path}/{id_}/meta.yaml",)
        return Cell("runs", key, "artifact_uri", uri, "run", id_, experiment, **more)

    return [
        Cell(
            "experiments",
            ("1/meta.yaml",),
            "artifact_location",
            f"{HERE}/1",
            "experiment",
            "",
            "1",
            "first",
            changed=22,
        ),
        Cell("experiments", (".trash/2/meta.yaml",), "artifact_location", f"{HERE}/2", "experiment", "", "2", "gone"),
        run("1", RUN, name="calm", changed=33),
        run("1", OTHER_RUN, name="wild", active=True),
        run(".trash/2", GONE, name="calm-dawn-1", changed=1700000001000),
        Cell(
            *("logged_models", (f"1/models/{MODEL}/meta.yaml",), "artifact_location"),
            *(f"{HERE}/1/models/{MODEL}/artifacts", "model", f"@model/{MODEL}", "1", "net"),
            active=True,
            changed=44,
        ),
        Cell("model_versions", (one,), "source", source, "version", **version),
        Cell("model_versions", (one,), "storage_location", source, "version", **version),
        Cell(
            *("trace_tags", (f"1/traces/{TRACE}/tags/mlflow.artifactLocation",), "value"),
            *(f"{HERE}/1/traces/{TRACE}/artifacts", "trace", f"@trace/{TRACE}", "1", "ask"),
            active=True,
            changed=66,
        ),
    ]


class TestCells:
    def test_each_value_tells_whose_it_is_and_whether_it_is_in_use(self, full):
        assert list(opened(full.root).cells()) == cells_of_full()
        assert values(cells_of_full()) == raw_values(full.root)

    def test_looking_writes_nothing(self, full):
        before = bytes_of(full.root)
        list(opened(full.root).cells())
        assert bytes_of(full.root) == before

    def test_what_is_torn_or_missing_or_hostile_holds_up_nothing(self, full):
        full.put("1/" + "c" * 32 + "/meta.yaml", b"\xff\xfe\x00")
        full.put("1/" + "d" * 32 + "/params/p", "1")
        full.put("1/" + "1" * 32 + "/meta.yaml", "run_id: x\nartifact_uri: &a [*a]\n")
        full.put("models/broken/version-1/meta.yaml", "source: [")
        (full.root / "1" / "link").symlink_to(full.root / "1" / RUN)
        assert list(opened(full.root).cells()) == cells_of_full()

    def test_a_folder_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "music").mkdir()
        with pytest.raises(NotFound):
            opened(tmp_path / "music")

    def test_it_is_the_same_store_by_whatever_path(self, full, tmp_path):
        (tmp_path / "link").symlink_to(full.root)
        assert opened(full.root).identity == opened(tmp_path / "link").identity == str(full.root)
        assert opened(tmp_path).shown == f"mlflow:{full.root}"


class TestEdits:
    def test_an_edit_changes_one_value_and_no_byte_beside(self, full):
        before = bytes_of(full.root)
        edits = to_s3(opened(full.root).cells())
        assert edited(opened(full.root), edits) == []
        assert raw_values(full.root) == sorted((*one.key, one.column, one.new) for one in edits)
        expected = dict(before)
        for edit in edits:
            content, mode = expected[edit.key[0]]
            ends = b"" if edit.column == "value" else b"\n"
            field = b"" if edit.column == "value" else f"{edit.column}: ".encode()
            was, becomes = (field + one.encode() + ends for one in (edit.old, edit.new))
            assert content.count(was) == 1
            expected[edit.key[0]] = content.replace(was, becomes), mode
        assert bytes_of(full.root) == expected
        assert edited(opened(full.root), [one.undone for one in edits]) == []
        assert bytes_of(full.root) == before

    def test_what_somebody_else_changed_is_given_back_and_not_overwritten(self, full):
        edits = to_s3(opened(full.root).cells())
        full.run(RUN, "1", artifact_uri="/mine")
        shutil.rmtree(full.root / "models" / "net")
        missed = edited(opened(full.root), edits)
        assert [(one.table, one.column) for one in missed] == [
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ]
        assert "artifact_uri: /mine\n" in (full.root / "1" / RUN / "meta.yaml").read_text()

    def test_edits_made_again_are_given_back_and_change_nothing(self, full):
        edits = to_s3(opened(full.root).cells())
        edited(opened(full.root), edits)
        after = bytes_of(full.root)
        assert edited(opened(full.root), edits) == edits
        assert bytes_of(full.root) == after

    def test_leaving_without_commit_changes_nothing(self, full):
        before = bytes_of(full.root)
        with opened(full.root).switching() as switching:
            assert switching.edit(to_s3(switching.cells())) == []
            assert {cell.value[:5] for cell in switching.cells()} == {"s3://"}
            assert list(opened(full.root).cells()) == cells_of_full()
        assert bytes_of(full.root) == before

    def test_a_value_changed_twice_in_one_switch_ends_as_the_second_says(self, full):
        with opened(full.root).switching() as switching:
            first = to_s3(switching.cells())
            assert switching.edit(first) == []
            assert switching.edit(to_s3(switching.cells(), "s3://bucket/new", "gs://other")) == []
            switching.commit()
            assert {cell.value[:10] for cell in switching.cells()} == {"gs://other"}
        assert raw_values(full.root) == sorted(
            (*one.key, one.column, one.new.replace("s3://bucket/new", "gs://other")) for one in first
        )

    def test_a_waiting_file_is_no_tag_of_its_trace(self, full):
        with opened(full.root).switching() as switching:
            switching.edit(to_s3(switching.cells()))
            tags = sorted(path.name for path in (full.root / "1" / "traces" / TRACE / "tags").iterdir())
            assert tags == ["mlflow.artifactLocation", "mlflow.traceName"]

    def test_files_written_between_reading_and_commit_stop_all_of_it(self, full):
        with opened(full.root).switching() as switching:
            switching.edit(to_s3(switching.cells()))
            full.run(RUN, "1", status=4)
            before = (full.root / "1" / OTHER_RUN / "meta.yaml").read_bytes()
            with pytest.raises(Unavailable, match="nothing was changed"):
                switching.commit()
        assert (full.root / "1" / OTHER_RUN / "meta.yaml").read_bytes() == before
        assert edited(opened(full.root), to_s3(opened(full.root).cells())) == []
        assert "status: 4\n" in (full.root / "1" / RUN / "meta.yaml").read_text()

    def test_a_file_written_in_the_very_moment_keeps_what_was_written_and_gets_the_new_place(self, full, monkeypatch):
        renamed = switching_module._renamed

        def meddling(file, digest):
            if RUN in file:
                full.run(RUN, "1", status=4)
            return renamed(file, digest)

        monkeypatch.setattr(switching_module, "_renamed", meddling)
        edits = to_s3(opened(full.root).cells())
        assert edited(opened(full.root), edits) == []
        text = (full.root / "1" / RUN / "meta.yaml").read_text()
        assert "status: 4\n" in text
        assert f"artifact_uri: s3://bucket/new/1/{RUN}/artifacts\n" in text

    @pytest.mark.parametrize(
        "edit",
        [
            Edit("runs", ("../outside/meta.yaml",), "artifact_uri", "a", "b"),
            Edit("runs", ("/etc/meta.yaml",), "artifact_uri", "a", "b"),
            Edit("runs", ("out/meta.yaml",), "artifact_uri", "a", "b"),
            Edit("runs", (f"1/{OTHER_RUN}/tags/note",), "value", HERE, "b"),
            Edit("trace_tags", (f"1/{OTHER_RUN}/tags/note",), "value", HERE, "b"),
            Edit("runs", (f"1/{RUN}/meta.yaml",), "run_name", "calm", "b"),
            Edit("runs", (f"1/{RUN}/meta.yaml", "x"), "artifact_uri", f"{HERE}/1/{RUN}/artifacts", "b"),
            Edit("runs", (f"1/{RUN}\0/meta.yaml",), "artifact_uri", "a", "b"),
        ],
        ids=lambda edit: ascii(edit.key[0])[:20],
    )
    def test_nothing_but_places_in_the_store_is_ever_changed(self, full, tmp_path, edit):
        for folder in ("outside", "linked"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "meta.yaml").write_text("artifact_uri: a\nrun_id: x\n")
        (full.root / "out").symlink_to(tmp_path / "linked")
        before = bytes_of(tmp_path)
        assert edited(opened(full.root), [edit]) == [edit]
        assert bytes_of(tmp_path) == before

    def test_a_file_keeps_its_rights(self, full):
        file = full.root / "1" / RUN / "meta.yaml"
        file.chmod(0o640)
        edited(opened(full.root), to_s3(opened(full.root).cells()))
        assert stat.S_IMODE(file.stat().st_mode) == 0o640

    @pytest.mark.parametrize(
        "line",
        [
            "artifact_uri: 'file:///elsewhere/it''s here'",
            'artifact_uri: "file:///elsewhere/\\u00fc\\tx"',
            "artifact_uri: file:///elsewhere/bäume/ü 模型",
            "artifact_uri:   file:///elsewhere/x   # by hand",
            "artifact_uri: file:///elsewhere/a long way with many words that MLflow's writer folds\n  over two lines",
            "artifact_uri: >-\n  file:///elsewhere/folded\n  by hand",
            '"artifact_uri": file:///elsewhere/x',
            "artifact_uri: !!str file:///elsewhere/x",
            "artifact_uri: C:\\data\\mlruns",
        ],
    )
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_however_it_is_written_only_that_value_is_another(self, store, line, end):
        head, tail = "# kept\nrun_id: x\nexperiment_id: '1'", "status: 3\nname: 'a: b'\n"
        file = store.put(f"1/{RUN}/meta.yaml", f"{head}\n{line}\n{tail}".replace("\n", end).encode())
        said = yaml.safe_load(file.read_text("utf-8"))
        (edit,) = to_s3(cell for cell in opened(store.root).cells() if cell.kind == "run")
        assert edit.old == said["artifact_uri"]
        new = Edit(edit.table, edit.key, edit.column, edit.old, "s3://bucket/it's ü/#1: x " + "y" * 100)
        assert edited(opened(store.root), [new]) == []
        assert yaml.safe_load(file.read_text("utf-8")) == {**said, "artifact_uri": new.new}
        assert edited(opened(store.root), [new.undone]) == []
        assert yaml.safe_load(file.read_text("utf-8")) == said
        if ">-" not in line:  # such a value is written anew with its file
            data = file.read_bytes().replace(b"\r\n", b"\n")
            assert data.startswith(f"{head}\n".encode())
            assert data.endswith(f"\n{tail}".encode())


KILLED = """
import sys
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context
from mlmigrate.adapters.estate import Edit
from mlmigrate.adapters.mlflow.files import switching as module
from mlmigrate.address import Address
at, seen, renamed = int(sys.argv[2]), 0, module._renamed
def counting(file, digest):
    global seen
    if seen == at:
        print("ready", flush=True)
        sys.stdin.read()
    seen += 1
    return renamed(file, digest)
module._renamed = counting
with registry.open_estate(Address("mlflow", sys.argv[1]), Context("source")).switching() as switching:
    cells = list(switching.cells())
    switching.edit(Edit(c.table, c.key, c.column, c.value, "s3://x/" + c.value) for c in cells)
    switching.commit()
"""


class TestOthers:
    @pytest.mark.parametrize("at", [0, 3])
    def test_after_a_kill_each_file_is_whole_and_the_same_edits_finish_it(self, full, at):
        before = bytes_of(full.root)
        edits = [Edit(c.table, c.key, c.column, c.value, "s3://x/" + c.value) for c in opened(full.root).cells()]
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(full.root), str(at)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(Unavailable, match="another mlmigrate"), opened(full.root).switching():
            pass
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
        done = {(edit.key[0], edit.column, edit.new) for edit in edits} & set(raw_values(full.root))
        assert len(done) == at
        missed = edited(opened(full.root), edits)
        assert {(edit.key[0], edit.column, edit.new) for edit in missed} == done
        assert raw_values(full.root) == sorted((*one.key, one.column, one.new) for one in edits)
        assert edited(opened(full.root), [one.undone for one in edits]) == []
        assert bytes_of(full.root) == before

    def test_the_lock_is_gone_afterwards(self, full):
        with opened(full.root).switching():
            with pytest.raises(Unavailable, match="another mlmigrate"), opened(full.root).switching():
                pass
            assert (full.root / switching_module.LOCK).exists()
        assert not (full.root / switching_module.LOCK).exists()


class TestFolders:
    def test_files_beside_are_found_wherever_the_store_lies_now(self, full):
        estate, root = opened(full.root), full.root
        found = {(cell.kind, cell.owner): estate.folder(cell) for cell in estate.cells()}
        assert found == {
            ("experiment", ""): root / ".trash" / "2",
            ("run", RUN): root / "1" / RUN / "artifacts",
            ("run", OTHER_RUN): root / "1" / OTHER_RUN / "artifacts",
            ("run", GONE): root / ".trash" / "2" / GONE / "artifacts",
            ("model", f"@model/{MODEL}"): root / "1" / "models" / MODEL / "artifacts",
            ("version", "@version/net/1"): root / "1" / RUN / "artifacts" / "model",
            ("trace", f"@trace/{TRACE}"): root / "1" / "traces" / TRACE / "artifacts",
        }

    def test_a_run_that_logged_a_model_has_its_files_or_is_not_here(self, full):
        full.put(f"1/{OTHER_RUN}/tags/mlflow.log-model.history", "[]")
        estate = opened(full.root)
        assert [estate.folder(cell) for cell in estate.cells() if cell.owner == OTHER_RUN] == [None]

    def test_files_elsewhere_on_this_machine_are_found_when_mlflow_made_their_folder(self, full, tmp_path):
        place = tmp_path / "big" / "disk" / RUN / "artifacts"
        place.mkdir(parents=True)
        shutil.rmtree(full.root / "1" / RUN)
        full.run(RUN, "1", artifact_uri=f"file://{place}")
        odd = tmp_path / "odd"
        odd.mkdir()
        full.run(OTHER_RUN, "1", artifact_uri=str(odd))
        for settings, other in (({}, None), ({"allow_artifacts": (str(odd),)}, odd)):
            estate = opened(full.root, **settings)
            found = {cell.owner: estate.folder(cell) for cell in estate.cells()}
            assert (found[RUN], found[OTHER_RUN]) == (place, other)

    @pytest.mark.parametrize("uri", ["/etc", "file:///etc", "s3://b/x", "http://evil/x", "/etc/ssl", "/etc/../etc"])
    @pytest.mark.parametrize("kind", ["run", "experiment", "version", "trace", "model"])
    def test_a_place_that_the_store_merely_claims_is_not_believed(self, full, kind, uri):
        cell = Cell("t", (f"1/{OTHER_RUN}/tags/x",), "c", uri, kind, owner=OTHER_RUN, experiment="1")
        assert opened(full.root).folder(cell) is None

    def test_a_link_out_of_the_store_is_not_believed(self, full, tmp_path):
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "key").write_text("x")
        place = full.root / "1" / OTHER_RUN / "artifacts"
        place.symlink_to(tmp_path / "secret")
        estate = opened(full.root)
        assert [estate.folder(cell) for cell in estate.cells() if cell.owner == OTHER_RUN] == [None]


@pytest.mark.parametrize(
    "name",
    ["fs-bits2", "fs-kenmogne-registry", "fs-llamaindex-traces", "fs-mlflow-misc", "fs-truthlens", "fs-keimoriyama"],
)
def test_real_stores_of_all_ages_go_there_and_back_byte_for_byte(stores, tmp_path, name):
    archive = stores / f"{name}.tar.gz"
    if not archive.exists():
        pytest.skip(f"the real store {name} is not at hand")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / name
    before = bytes_of(root)
    cells = list(opened(root).cells())
    assert values(cells) == raw_values(root)
    edits = to_s3(cells)
    assert edited(opened(root), edits) == []
    assert raw_values(root) == sorted((*one.key, one.column, one.new) for one in edits)
    assert edited(opened(root), [one.undone for one in edits]) == []
    assert bytes_of(root) == before


@pytest.mark.slow
def test_every_text_that_names_the_root_in_a_store_of_mlflows_is_listed(tmp_path):
    """All files are searched for the root's path."""
    pytest.importorskip("mlflow", minversion="3.17")
    root = tmp_path / "mlruns"
    subprocess.run([sys.executable, "-c", FILL, str(root)], check=True, capture_output=True, cwd=tmp_path)
    cells = list(opened(root).cells())
    assert {cell.table for cell in cells} == {"experiments", "runs", "logged_models", "model_versions", "trace_tags"}
    named = sorted(
        (str(file.relative_to(root)), file.read_bytes().count(str(root).encode()))
        for file in root.rglob("*")
        if file.is_file() and str(root).encode() in file.read_bytes()
    )
    files = sorted(cell.key[0] for cell in cells)
    assert named == sorted((file, files.count(file)) for file in set(files))
    before = bytes_of(root)
    edits = to_s3(cells, f"file://{root}")
    assert edited(opened(root), edits) == []
    assert edited(opened(root), [one.undone for one in edits]) == []
    assert bytes_of(root) == before


@pytest.mark.slow
def test_5_000_runs_take_a_moment(new_store, capsys):
    store = new_store("many")
    store.experiment("1")
    for number in range(5_000):
        store.run(f"{number:032x}", "1")
    edits = to_s3(opened(store.root).cells())
    assert len(edits) == 5_001
    with opened(store.root).switching() as switching:
        began = time.perf_counter()
        assert switching.edit(edits) == []
        staged = time.perf_counter()
        switching.commit()
        ended = time.perf_counter()
    with capsys.disabled():
        sys.stdout.write(f"\n5,001 files: staged in {staged - began:.2f} s, switched in {ended - staged:.2f} s\n")
    assert ended - staged < 30  # renames, one after another, of which a busy disk does 200 a second
