"""What a run says of other things is what they are called on the server, whenever they came."""

from __future__ import annotations

import json
import sqlite3
import uuid
from dataclasses import replace

import pytest
from rest_helpers import Database, estate, fresh, ours

from mlmigrate.adapters import registry as adapters
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.memory import Held, Memory, install
from mlmigrate.adapters.mlflow import objects
from mlmigrate.address import Address, parse
from mlmigrate.errors import Conflict
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.model import Experiment, Run
from mlmigrate.survey import Job
from mlmigrate.testing.conformance import copy
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

pytestmark = pytest.mark.slow


def model_id() -> str:
    return f"m-{uuid.uuid4().hex}"


def with_model(place, id_: str, run: str) -> None:
    """Puts a logged model of a run into a place."""
    row = {"model_id": id_, "experiment_id": 7, "name": "m", "status": 2, "source_run_id": run, "model_type": "x"}
    row["artifact_location"] = f"mlflow-artifacts:/7/models/{id_}/artifacts"
    record = objects.record_of(objects.BY_NAME["mlflow.logged_model"], {"logged_models": [row]})
    origin = f"mlflow:@logged_models/7:{place.experiments()[0].name}"
    files = {(f"@model/{id_}", "MLmodel"): b"flavors: {}\n"}
    place.held[origin] = Held(
        Run("@logged_models/7", "7", origin=origin, stamp="1"), artifacts=files, records=(record,)
    )


def model_here(server, id_: str) -> tuple[str, str]:
    db = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)
    query = (
        "select m.model_id, m.artifact_location from logged_models m join logged_model_tags t "
        "on t.model_id = m.model_id where t.tag_key = 'mlmigrate.origin' and t.tag_value = ?"
    )
    (found,) = db.execute(query, [id_]).fetchall()
    return found


def uri_of(server, run: str) -> str:
    db = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)
    (row,) = db.execute("select artifact_uri from runs where run_uuid = ?", [run]).fetchall()
    return row[0]


def test_tags_and_params_name_runs_models_and_places_of_the_server(current, tmp_path):
    first, model = fresh("first"), model_id()
    root = f"mlflow-artifacts:/7/{first.id}/artifacts"
    second = fresh(
        "second",
        tags={
            "mlflow.parentRunId": first.id,
            "mlflow.loggedModelId": model,
            "mlflow.log-model.history": json.dumps(
                [{"run_id": first.id, "model_uuid": "a" * 32, "artifact_path": "m"}]
            ),
            "uri": f"runs:/{first.id}/model and {root}/model",
            "model": f"models:/{model}",
            "hash": "b" * 32,
            "plain": "x",
        },
        params={"from": f"runs:/{first.id}/model", "at": f"{root}/x", "n": "1"},
    )
    place = estate(Held(second), Held(first))
    with_model(place, model, first.id)
    report = copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    assert report.failed == ()
    db = Database(current)
    run, model_ = db.run(first)[0], model_here(current, model)[0]
    id_ = db.run(second)[0]
    assert ours(db.tags(id_)) == {
        "mlflow.runName": "second",
        "mlflow.parentRunId": run,
        "mlflow.loggedModelId": model_,
        "mlflow.log-model.history": json.dumps([{"run_id": run, "model_uuid": "a" * 32, "artifact_path": "m"}]),
        "uri": f"runs:/{run}/model and {uri_of(current, run)}/model",
        "model": f"models:/{model_}",
        "hash": "b" * 32,
        "plain": "x",
    }
    assert db.params(id_) == {"from": f"runs:/{run}/model", "at": f"{uri_of(current, run)}/x", "n": "1"}
    job = Job(install(uuid.uuid4().hex, place), parse(f"mlflow:{current.url}"))
    assert verify(job, Silent()).findings == ()


def test_what_comes_with_a_later_copy_is_named_then_also_in_a_deleted_run(current, tmp_path):
    late, model = fresh("late"), model_id()
    tags = {"model": f"models:/{model}", "uri": f"runs:/{late.id}/m"}
    early = fresh("early", tags=tags)
    gone = fresh("gone", tags=tags, deleted=True)
    files = {(early.id, "model/MLmodel"): f"run_id: {late.id}\nmodel_id: {model}\n".encode()}
    place = estate(Held(early, artifacts=files), Held(gone))
    copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    db = Database(current)
    assert ours(db.tags(db.run(early)[0]))["uri"] == f"runs:/{late.id}/m"
    place.held[late.origin] = Held(late)
    with_model(place, model, late.id)
    report = copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    assert (report.failed, report.copied, report.already) == ((), 1, 2)
    run, model_ = db.run(late)[0], model_here(current, model)[0]
    for one in (early, gone):
        found = db.tags(db.run(one)[0])
        assert (found["model"], found["uri"]) == (f"models:/{model_}", f"runs:/{run}/m")
        assert "mlmigrate.waits" not in found
    assert db.run(gone)[-1] == "deleted"
    (file,) = current.files.glob(f"*/{db.run(early)[0]}/artifacts/model/MLmodel")
    assert file.read_text() == f"run_id: {run}\nmodel_id: {model_}\n"


def test_a_param_that_names_what_came_later_keeps_the_name_and_that_is_said(current, tmp_path):
    model = model_id()
    run = fresh("param", params={"model": f"models:/{model}", "other": "c" * 32})
    place = estate(Held(run))
    with_model(place, model, run.id)
    report = copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    assert Database(current).params(Database(current).run(run)[0]) == run.params
    assert [loss.what for loss in report.losses if loss.run == run.id] == ["param 'model'"]


def test_an_mlmodel_file_of_a_run_names_the_run_here(server, tmp_path):
    run = fresh("logs a model")
    text = f"artifact_path: model\nmodel_uuid: {'d' * 32}\nrun_id: {run.id}\n"
    files = {(run.id, "model/MLmodel"): text.encode(), (run.id, "model/other.txt"): run.id.encode()}
    copy(estate(Held(run, artifacts=files)), parse(f"mlflow:{server.url}"), tmp_path / "l")
    id_ = Database(server).run(run)[0]
    (folder,) = server.files.glob(f"*/{id_}/artifacts/model")
    assert (folder / "MLmodel").read_text() == text.replace(run.id, id_)
    assert (folder / "other.txt").read_text() == run.id  # a file of somebody's own is left as it is
    assert "mlmigrate.waits" not in Database(server).tags(id_)


class TestAnExperimentOfThisNameIsThere:
    """From somebody else: merge, rename or fail."""

    @pytest.fixture
    def taken(self, current):
        from mlflow import MlflowClient

        name = f"taken {uuid.uuid4().hex[:8]}"
        MlflowClient(current.url).create_experiment(name, tags={"team": "theirs"})
        return name

    def place(self, taken) -> tuple[Memory, Run]:
        run = fresh("one")
        place = Memory()
        place.add(Experiment("7", taken, {"team": "ours", "more": "x"}, created=abs(hash(taken))), Held(run))
        return place, run

    def copied(self, place, server, tmp_path, policy):
        target = parse(f"mlflow:{server.url}")
        job = Job(install(uuid.uuid4().hex, place), target, target_settings=Settings(on_conflict=policy))
        ledger = Ledger.open(tmp_path / f"{uuid.uuid4().hex}.sqlite", Address("memory", "x"), target)
        try:
            return transfer(job, ledger, Silent(), workers=2)
        finally:
            ledger.close()

    def tags(self, server, name) -> dict[str, str]:
        db = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)
        query = "select t.key, t.value from experiment_tags t join experiments e using (experiment_id) where e.name = ?"
        return ours(dict(db.execute(query, [name])))

    def test_merged_its_tags_stay_and_both_lives_go_on(self, current, taken, tmp_path):
        place, _run = self.place(taken)
        for n in range(2):
            report = self.copied(place, current, tmp_path, "merge")
            assert (report.failed, report.copied) == ((), 1 - n)
        assert Database(current).count(taken) == 1
        assert self.tags(current, taken) == {"team": "theirs", "more": "x"}
        assert [loss.what for loss in report.losses if "tag" in loss.what] == ["tag 'team'"]

    def test_renamed_ours_is_found_again(self, current, taken, tmp_path):
        place, _run = self.place(taken)
        place._experiments["7"] = replace(place._experiments["7"], created=abs(hash(taken)) + 1)
        for n in range(2):
            report = self.copied(place, current, tmp_path, "rename")
            assert (report.failed, report.copied) == ((), 1 - n)
        db = Database(current)
        assert (db.count(taken), db.count(f"{taken}-2")) == (0, 1)
        assert self.tags(current, f"{taken}-2") == {"team": "ours", "more": "x"}

    def test_failing_nothing_is_written(self, current, taken, tmp_path):
        place, _run = self.place(taken)
        place.add(Experiment("8", f"free {taken}", created=2))
        with pytest.raises(Conflict, match="taken"):
            self.copied(place, current, tmp_path, "fail")
        db = sqlite3.connect(f"file:{current.database}?mode=ro", uri=True, timeout=30)
        assert db.execute("select 1 from experiments where name = ?", [f"free {taken}"]).fetchall() == []
        target = adapters.open_target(
            parse(f"mlflow:{current.url}"), Context("target", settings=Settings(on_conflict="fail"))
        )
        with pytest.raises(Conflict):
            target.foresee(place.experiments(), [])
        target.close()
