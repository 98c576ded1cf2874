"""Several stores read as one estate."""

import json
import os
import shutil
import types
from pathlib import Path

import pytest

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context
from mlmigrate.address import Address, merge
from mlmigrate.errors import NotFound
from mlmigrate.model import RunRef

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


class Stores:
    """File stores written by hand, by name."""

    def __init__(self, root: Path):
        self.root = root

    def put(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def experiment(self, store, id, name, **tags):
        folder = f"{store}/{id}"
        self.put(
            f"{folder}/meta.yaml", f"artifact_location: file:///{store}/{id}\nexperiment_id: '{id}'\nname: {name}\n"
        )
        for key, value in tags.items():
            self.put(f"{folder}/tags/{key}", value)

    def run(self, store, experiment, run, points=1, end="1700000001000", **params):
        folder = f"{store}/{experiment}/{run}"
        fields = {"end_time": end, "experiment_id": f"'{experiment}'", "run_id": run, "run_name": "n", "status": 3}
        self.put(f"{folder}/meta.yaml", "".join(f"{key}: {value}\n" for key, value in fields.items()))
        self.put(f"{folder}/metrics/loss", "".join(f"{n} 0.5 {n}\n" for n in range(points)))
        for key, value in params.items():
            self.put(f"{folder}/params/{key}", value)

    def address(self, *names):
        return merge(tuple(Address("mlflow", str(self.root / name)) for name in names))

    def open(self, *names):
        return registry.open_source(self.address(*names), Context("source"))

    def look(self, *names):
        source = self.open(*names)
        experiments, refs = source.experiments(), list(source.refs())
        with source.read(refs) as reading:
            runs = {run.id: run for run in reading.runs}
            points = [row for batch in reading.points() for row in batch.to_pylist()]
            artifacts = {(artifact.owner, artifact.path) for artifact in reading.artifacts()}
            records = list(reading.records())
            losses = list(reading.losses)
        source.close()
        return types.SimpleNamespace(
            experiments={one.id: one for one in experiments},
            refs=refs,
            runs=runs,
            points=points,
            artifacts=artifacts,
            records=records,
            losses=losses,
            oddities=list(source.oddities()),
        )


@pytest.fixture
def stores(tmp_path):
    return Stores(tmp_path)


def told(losses, text):
    return [f"{loss.what}: {loss.because}" for loss in losses if text in f"{loss.what}: {loss.because}"]


def test_equal_names_become_one_experiment(stores):
    stores.experiment("x", 1, "vision", team="blue", both="same")
    stores.experiment("y", 7, "vision", site="north", both="same")
    stores.run("x", 1, A)
    stores.run("y", 7, B)
    seen = stores.look("x", "y")
    (one,) = seen.experiments.values()
    assert (one.id, one.name, one.tags) == ("1", "vision", {"team": "blue", "site": "north", "both": "same"})
    assert {run.id: run.experiment for run in seen.runs.values()} == {A: "1", B: "1"}
    assert {ref.id: ref.experiment for ref in seen.refs} == {A: "1", B: "1"}
    assert (seen.oddities, len(seen.points)) == ([], 2)


def test_a_tag_that_differs_keeps_its_first_value_and_is_told(stores):
    stores.experiment("x", 1, "vision", team="blue")
    stores.experiment("y", 1, "vision", team="red")
    seen = stores.look("x", "y")
    assert seen.experiments["1"].tags == {"team": "blue"}
    assert len(told(seen.oddities, "tag 'team' of experiment 'vision': another value in")) == 1


def test_equal_ids_of_different_experiments_do_not_collide(stores):
    for store, name, run in (("x", "vision", A), ("y", "speech", B), ("z", "text", C)):
        stores.experiment(store, 1, name)
        stores.run(store, 1, run)
    seen = stores.look("x", "y", "z")
    names = {one.name: one.id for one in seen.experiments.values()}
    assert names["vision"] == "1"
    assert len(set(names.values())) == 3
    assert all(len(names[name]) == 18 and 10**15 <= int(names[name]) < 2**63 for name in ("speech", "text"))
    assert {run.id: run.experiment for run in seen.runs.values()} == {A: "1", B: names["speech"], C: names["text"]}
    assert {one.id for one in stores.look("x", "y", "z").experiments.values()} == set(names.values())
    assert len(told(seen.oddities, "it gets the id")) == 2


def test_a_merged_experiment_is_deleted_only_when_all_are(stores):
    stores.experiment("x/.trash", 1, "vision")
    stores.experiment("y", 1, "vision")
    stores.experiment("x/.trash", 2, "speech")
    stores.experiment("y/.trash", 2, "speech")
    seen = stores.look("x", "y")
    assert {one.name: one.deleted for one in seen.experiments.values()} == {"vision": False, "speech": True}


def test_a_run_that_lies_twice_is_carried_once(stores):
    stores.experiment("x", 1, "vision")
    stores.run("x", 1, A, lr="0.1")
    shutil.copytree(stores.root / "x", stores.root / "y")
    os.utime(stores.root / "y/1" / A / "meta.yaml", (1, 1))
    seen = stores.look("x", "y")
    assert ([ref.id for ref in seen.refs], len(seen.points)) == ([A], 1)
    assert len(told(seen.oddities, "carried once")) == 1


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_of_two_copies_the_fuller_is_carried_and_the_other_told(stores, order):
    for store, points in (("old", 3), ("new", 5)):
        stores.experiment(store, 1, "vision")
        stores.run(store, 1, A, points=points)
    seen = stores.look(*order)
    assert len(seen.points) == 5
    (line,) = told(seen.losses, "only the first of these is carried")
    assert line.startswith(f"the run: lies in mlflow:{stores.root}/new with 5 points,")
    assert f"mlflow:{stores.root}/old with 3 points," in line


def test_of_two_copies_equally_full_the_later_is_carried(stores):
    for store, end in (("x", "5"), ("y", "9")):
        stores.experiment(store, 1, "vision")
        stores.run(store, 1, A, end=end)
    assert stores.look("x", "y").runs[A].end == 9


def test_registries_of_two_stores_are_both_carried_and_no_versions_are_mixed(stores):
    for store, place in (("x", "1"), ("y", "2")):
        stores.experiment(store, place, f"in {store}")
        stores.put(f"{store}/models/net/meta.yaml", "name: net\n")
        stores.put(f"{store}/models/net/version-1/meta.yaml", f"name: net\nversion: 1\nsource: s3://{store}\n")
        stores.put(f"{store}/models/net/aliases/best", "1")
        stores.put(f"{store}/models/own-{store}/meta.yaml", f"name: own-{store}\n")
    seen = stores.look("x", "y")
    assert {record.id for record in seen.records} == {"net", "own-x", "net-2", "own-y"}
    found = {record.id: json.loads(record.body) for record in seen.records}
    assert [
        (row["name"], row["version"], row["source"])
        for tree in found.values()
        for row in tree.get("model_versions", ())
    ] == [("net", 1, "s3://x"), ("net-2", 1, "s3://y")]
    assert found["net-2"]["registered_model_aliases"] == [{"name": "net-2", "alias": "best", "version": 1}]
    first, second = (f"mlflow:{stores.root}/{name}" for name in "xy")
    because = f"a model in {first} has its name: it is called 'net-2'"
    assert told(seen.oddities, "registered model 'net'") == [f"{second}: registered model 'net': {because}"]


def test_a_new_name_is_one_that_no_store_has(stores):
    for store, names in (("x", ("net", "net-2")), ("y", ("net", "net-3"))):
        stores.experiment(store, 1, f"in {store}")
        for name in names:
            stores.put(f"{store}/models/{name}/meta.yaml", f"name: {name}\n")
    assert sorted(record.id for record in stores.look("x", "y").records) == ["net", "net-2", "net-3", "net-4"]


def test_what_names_a_renamed_model_names_it_still(stores):
    for store, run in (("x", A), ("y", B)):
        stores.experiment(store, 1, f"in {store}")
        stores.put(f"{store}/models/net/meta.yaml", "name: net\n")
        stores.run(store, 1, run, base="models:/net/1", other="models:/network/1")
    seen = stores.look("x", "y")
    assert dict(seen.runs[A].params) == {"base": "models:/net/1", "other": "models:/network/1"}
    assert dict(seen.runs[B].params) == {"base": "models:/net-2/1", "other": "models:/network/1"}


def test_the_registry_of_a_copy_of_a_store_is_carried_once(stores):
    stores.experiment("x", 1, "vision")
    stores.put("x/models/net/meta.yaml", "name: net\n")
    shutil.copytree(stores.root / "x", stores.root / "y")
    seen = stores.look("x", "y")
    assert [record.id for record in seen.records] == ["net"]
    assert len(told(seen.oddities, "carried once")) == 1


def test_records_and_losses_are_told_under_the_new_ids(stores):
    for store, name in (("x", "vision"), ("y", "speech")):
        stores.experiment(store, 1, name)
        stores.put(f"{store}/1/traces/t-{store}/trace_info.yaml", "timestamp_ms: 5\ncolour: blue\n")
        stores.put(f"{store}/1/models/m-{store}/meta.yaml", "name: net\n")
        stores.put(f"{store}/1/models/m-{store}/params/depth", "3")
        stores.put(f"{store}/1/models/m-{store}/artifacts/w", "x")
        stores.put(f"{store}/1/stray.txt", "x")
    seen = stores.look("x", "y")
    speech = next(one.id for one in seen.experiments.values() if one.name == "speech")
    assert {record.id: record.owner for record in seen.records} == {
        "t-x": "1",
        "t-y": speech,
        "m-x": "1",
        "m-y": speech,
    }
    rows = [row for record in seen.records for some in json.loads(record.body).values() for row in some]
    assert {row["experiment_id"] for row in rows} == {1, int(speech)}
    assert {row["experiment_id"] for row in rows if "m-y" in row.values()} == {int(speech)}
    assert [(ref.id, ref.experiment) for ref in seen.refs] == [
        ("@logged_models/1", "1"),
        ("@traces/1", "1"),
        (f"@logged_models/{speech}", speech),
        (f"@traces/{speech}", speech),
    ]
    assert len({ref.origin for ref in seen.refs}) == 4
    assert seen.artifacts == {("@model/m-x", "w"), ("@model/m-y", "w")}
    assert {loss.experiment for loss in seen.losses if "colour" in loss.what} == {"1", speech}
    assert {loss.experiment for loss in seen.oddities if "stray" in loss.what} == {"1", speech}
    assert all(str(stores.root) in loss.what for loss in seen.oddities if "stray" in loss.what)


def test_a_worker_that_has_not_listed_gives_models_the_same_names(stores):
    for store in ("x", "y"):
        stores.experiment(store, 1, f"in {store}")
        stores.put(f"{store}/models/net/meta.yaml", "name: net\n")
    refs = list(stores.open("x", "y").refs())
    found = []
    for ref in refs:
        with stores.open("x", "y").read([ref]) as reading:
            found += [record.id for record in reading.records()]
    assert found == ["net", "net-2"]


def test_a_worker_that_has_not_listed_reads_the_same(stores):
    stores.experiment("x", 1, "vision")
    stores.experiment("y", 1, "speech")
    stores.run("y", 1, B)
    refs = list(stores.open("x", "y").refs())
    with stores.open("x", "y").read(refs) as reading:
        (run,) = reading.runs
    assert (run.id, run.experiment, run.stamp) == (B, refs[0].experiment, refs[0].stamp)


def test_a_run_that_is_gone_is_a_loss(stores):
    stores.experiment("x", 1, "vision")
    stores.experiment("y", 1, "speech")
    with stores.open("x", "y").read([RunRef("1", C, origin=f"mlflow:{C}")]) as reading:
        assert [loss.because for loss in reading.losses] == ["gone since it was listed"]


def test_a_place_that_is_not_there_is_said(stores):
    stores.experiment("x", 1, "vision")
    with pytest.raises(NotFound, match="nowhere does not exist"):
        stores.open("x", "nowhere")
