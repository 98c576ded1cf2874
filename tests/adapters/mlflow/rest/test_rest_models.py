"""Logged models arrive at a server with all that ties them to runs: read in its own database and on its disk."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid

import pytest
from rest_helpers import Database, estate, fresh

import faults
from mlmigrate.adapters.memory import Held, install
from mlmigrate.adapters.mlflow import objects
from mlmigrate.address import parse
from mlmigrate.errors import Unavailable
from mlmigrate.events import Silent
from mlmigrate.model import Record, Run
from mlmigrate.survey import Job
from mlmigrate.testing.conformance import copy
from mlmigrate.testing.samples import START, series
from mlmigrate.verify import verify

pytestmark = pytest.mark.slow
KIND = objects.BY_NAME["mlflow.logged_model"]
READY, FAILED = 2, 3


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Waits between tries are short here."""
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.01)
    monkeypatch.setattr("mlmigrate.steps.LONGEST_WAIT", 0.05)


def model_id() -> str:
    return f"m-{uuid.uuid4().hex}"


def logged(id_: str, run: str | None = None, *, params=(), tags=(), metrics=(), links=(), **fields) -> Record:
    same = {"model_id": id_, "experiment_id": 7}
    root = same | {"name": "classifier", "artifact_location": f"mlflow-artifacts:/7/models/{id_}/artifacts"}
    root |= {"creation_timestamp_ms": START, "last_updated_timestamp_ms": START, "status": READY}
    root |= {"lifecycle_stage": "active", "model_type": "agent", "source_run_id": run, "status_message": None} | fields
    tree = {
        "logged_models": [root],
        "logged_model_params": [same | {"param_key": key, "param_value": value} for key, value in params],
        "logged_model_tags": [same | {"tag_key": key, "tag_value": value} for key, value in tags],
        "logged_model_metrics": [same | row for row in metrics],
        "inputs": [
            {"source_type": f"RUN_{word}", "source_id": source, "destination_type": f"MODEL_{word}",
             "destination_id": id_, "step": step}
            for word, source, step in links
        ],
    }  # fmt: skip
    return objects.record_of(KIND, {table: rows for table, rows in tree.items() if rows})


def measured(run: str, value: float, step: int = 0, dataset: str | None = None) -> dict:
    row = {"metric_name": "acc", "metric_timestamp_ms": START + step, "metric_step": step, "metric_value": value}
    return row | {"run_id": run, "dataset_name": dataset, "dataset_digest": "d1" if dataset else None}


def with_models(place, *records, files=None, stamp="1"):
    origin = f"mlflow:@logged_models/7:{place.experiments()[0].name}"
    run = Run("@logged_models/7", "7", origin=origin, stamp=stamp)
    place.held[origin] = Held(run, artifacts=files or {}, records=records)
    return place


def rows(server, query: str, *values) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)) as db:
        return db.execute(query, values).fetchall()


def here(server, id_: str) -> str:
    """The id that the server gave to a model."""
    query = "select model_id from logged_model_tags where tag_key = 'mlmigrate.origin' and tag_value = ?"
    ((found,),) = rows(server, query, id_)
    return found


def some_models():
    """Three models with two runs: one deleted; one model made by both."""
    run, gone = fresh("trains"), fresh("is gone", deleted=True)
    first, second, third = model_id(), model_id(), model_id()
    points = {"acc": [(n, START + n, n / 4) for n in range(3)]}
    records = (
        logged(
            first,
            run.id,
            params=[(f"p{n}", f"v{n}") for n in range(230)],
            tags=[("size", "größe"), ("self", f"models:/{first} of {run.id}"), ("mlflow.user", "alice")],
            metrics=[measured(run.id, 0.25, 1, "train"), measured(run.id, 0.5, 2), measured(gone.id, 0.25, 1)],
            links=[("OUTPUT", run.id, 3), ("OUTPUT", gone.id, 0)],
        ),
        logged(second, None, links=[("INPUT", run.id, 0)], status=FAILED, model_type=None),
        logged(third, run.id, status=1, tags=[("made from", first)]),
    )
    held = (Held(run, series(run, points)), Held(gone, series(gone, points)))
    files = {
        (f"@model/{first}", "MLmodel"): f"run_id: {run.id}\nmodel_id: {first}\nflavors: {{}}\n".encode(),
        (f"@model/{first}", "data/weights.bin"): bytes(range(256)) * 50,
        (f"@model/{second}", "MLmodel"): b"flavors: {}\n",
    }
    return with_models(estate(*held), *records, files=files), run, gone, (first, second, third)


def state(server, ids) -> list:
    """All that a server has of these models, but for the times it changes itself."""
    found = []
    for id_ in ids:
        for table, columns in (
            ("logged_models", "name, status, model_type, source_run_id, lifecycle_stage, artifact_location"),
            ("logged_model_params", "param_key, param_value"),
            ("logged_model_tags", "tag_key, tag_value"),
            ("logged_model_metrics", "metric_name, metric_timestamp_ms, metric_step, metric_value, run_id"),
        ):
            found.append(sorted(rows(server, f"select {columns} from {table} where model_id = ?", here(server, id_))))
        links = "select source_type, source_id, destination_type, step from inputs where destination_id = ?"
        found.append(sorted(rows(server, links, here(server, id_))))
    return found


def test_models_arrive_whole(current, tmp_path):
    place, run, gone, (first, second, third) = some_models()
    report = copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    assert report.failed == ()
    db = Database(current)
    run_, gone_ = db.run(run)[0], db.run(gone)[0]
    id_ = here(current, first)
    columns = "name, status, model_type, source_run_id, lifecycle_stage"
    assert rows(current, f"select {columns} from logged_models where model_id = ?", id_) == [
        ("classifier", READY, "agent", run_, "active")
    ]
    params = dict(rows(current, "select param_key, param_value from logged_model_params where model_id = ?", id_))
    assert params == {f"p{n}": f"v{n}" for n in range(230)}
    tags = dict(rows(current, "select tag_key, tag_value from logged_model_tags where model_id = ?", id_))
    assert {key: value for key, value in tags.items() if not key.startswith("mlmigrate.")} == {
        "size": "größe",
        "self": f"models:/{id_} of {run_}",
        "mlflow.user": "alice",
    }
    query = (
        "select run_id, metric_name, metric_timestamp_ms, metric_step, metric_value, dataset_name, dataset_digest "
        "from logged_model_metrics where model_id = ?"
    )
    assert sorted(rows(current, query, id_), key=str) == sorted(
        [
            (run_, "acc", START + 1, 1, 0.25, "train", "d1"),
            (run_, "acc", START + 2, 2, 0.5, None, None),
            (gone_, "acc", START + 1, 1, 0.25, None, None),
        ],
        key=str,
    )
    links = "select source_type, source_id, destination_type, step from inputs where destination_id = ?"
    assert sorted(rows(current, links, id_)) == sorted(
        [("RUN_OUTPUT", run_, "MODEL_OUTPUT", 3), ("RUN_OUTPUT", gone_, "MODEL_OUTPUT", 0)]
    )
    assert rows(current, links, here(current, second)) == [("RUN_INPUT", run_, "MODEL_INPUT", 0)]
    statuses = [rows(current, "select status from logged_models where model_id = ?", here(current, one))[0][0]
                for one in (first, second, third)]  # fmt: skip
    assert statuses == [READY, FAILED, 1]
    assert db.run(gone)[-1] == "deleted"
    for one in (run_, gone_):  # the points that were linked are there once
        assert rows(current, "select count(*) from metrics where run_uuid = ?", one) == [(3,)]


def test_the_files_of_a_model_lie_where_the_server_looks_and_name_what_is_there(current, tmp_path):
    place, run, _, (first, *_) = some_models()
    copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    id_, run_ = here(current, first), Database(current).run(run)[0]
    (folder,) = current.files.glob(f"*/models/{id_}/artifacts")
    assert (folder / "data/weights.bin").read_bytes() == bytes(range(256)) * 50
    assert (folder / "MLmodel").read_text() == f"run_id: {run_}\nmodel_id: {id_}\nflavors: {{}}\n"


def test_a_second_copy_changes_nothing(current, tmp_path):
    place, _, _, ids = some_models()
    copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    before = state(current, ids)
    copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    held = next(held for held in place.held.values() if held.records)
    with_models(place, *held.records, files=held.artifacts, stamp="?")  # which is taken again each time
    report = copy(place, parse(f"mlflow:{current.url}"), tmp_path / "other")
    assert report.failed == ()
    assert state(current, ids) == before


def test_versions_of_a_model_name_it_and_its_tag_names_all_of_them(current, tmp_path):
    place, run, _, (first, *_) = some_models()
    name = f"registered-{uuid.uuid4().hex[:8]}"
    held = next(held for held in place.held.values() if held.records)
    told = json.dumps([{"name": name, "version": n} for n in (1, 2)])
    same = {"model_id": first, "experiment_id": 7, "tag_key": "mlflow.modelVersions", "tag_value": told}
    tree = objects.tree_of(held.records[0])
    tree["logged_model_tags"].append(same)
    with_models(place, objects.record_of(KIND, tree), *held.records[1:], files=held.artifacts)
    versions = [
        {"name": name, "version": n, "creation_time": n, "source": f"models:/{first}", "run_id": run.id} for n in (1, 2)
    ]
    record = objects.record_of(
        objects.BY_NAME["mlflow.registered_model"],
        {"registered_models": [{"name": name, "creation_time": 1}], "model_versions": versions},
    )
    origin = f"mlflow:@registry:{name}"
    place.held[origin] = Held(Run("@registry", "", origin=origin, stamp="1"), records=(record,))
    report = copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    assert report.failed == ()
    id_, run_ = here(current, first), Database(current).run(run)[0]
    ((uri,),) = rows(current, "select artifact_location from logged_models where model_id = ?", id_)
    query = "select version, source, run_id, storage_location from model_versions where name = ?"
    assert rows(current, query, name) == [(n, f"models:/{id_}", run_, uri) for n in (1, 2)]
    query = "select tag_value from logged_model_tags where model_id = ? and tag_key = 'mlflow.modelVersions'"
    assert rows(current, query, id_) == [(told,)]
    job = Job(install(uuid.uuid4().hex, place), parse(f"mlflow:{current.url}"))
    assert verify(job, Silent()).findings == ()


@pytest.mark.parametrize("kind", [faults.LOST, faults.ERROR_AFTER, faults.BEFORE])
def test_answers_that_are_lost_make_nothing_twice(kind, current, proxy_of, tmp_path):
    place, _run, _, ids = some_models()
    writes = ("logged-models", "outputs", "log-inputs", "log-batch")

    def rule(number, method, path):
        written = method != "GET" and "search" not in path and any(one in path for one in writes)
        return kind if written and number % 3 else None

    proxy = proxy_of(current.url, rule=rule)
    report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / "l", tries=15)
    assert report.failed == ()
    assert proxy.made > 3
    plain, _, _, other = some_models()
    copy(plain, parse(f"mlflow:{current.url}"), tmp_path / "m")
    assert [len(part) for part in state(current, ids)] == [len(part) for part in state(current, other)]


def test_stopped_between_any_calls_it_is_taken_up_without_doubles(current, proxy_of, tmp_path):
    place, _, _, ids = some_models()
    for last in range(18, 120, 7):
        proxy = proxy_of(current.url, rule=lambda number, *_, last=last: faults.BEFORE if number > last else None)
        with contextlib.suppress(Unavailable):
            report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / f"{last}", tries=1)
            if not report.failed:
                break
    assert not report.failed
    plain, _, _, other = some_models()
    copy(plain, parse(f"mlflow:{current.url}"), tmp_path / "m")
    assert [len(part) for part in state(current, ids)] == [len(part) for part in state(current, other)]


def test_an_older_server_has_no_place_for_models_and_that_is_planned(server_of, tmp_path):
    old = server_of("2.22.4")
    place, _, _, ids = some_models()
    report = copy(place, parse(f"mlflow:{old.url}"), tmp_path / "l")
    assert report.failed == ()
    told = [loss for loss in report.losses if "knows no logged models" in loss.because]
    assert {id_ for id_ in ids if any(id_ in loss.what for loss in told)} == set(ids)
