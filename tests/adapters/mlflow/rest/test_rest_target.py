"""A server is written as the source was: checked in its own database, whatever the version."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from dataclasses import replace

import pytest
from rest_helpers import Database, estate, fresh, ours

from mlmigrate.adapters.base import Context
from mlmigrate.adapters.memory import Held
from mlmigrate.adapters.mlflow import open_target
from mlmigrate.address import parse
from mlmigrate.model import DatasetInput, Experiment
from mlmigrate.testing.conformance import copy
from mlmigrate.testing.samples import START, series

pytestmark = pytest.mark.slow


def test_times_user_status_and_name_arrive_as_they_were(server, tmp_path):
    runs = [
        fresh("finished", start=START - 5, end=START + 77, user="älice"),
        fresh("running", status="RUNNING", end=None),
        fresh("planned", status="SCHEDULED", end=None),
        fresh("killed", status="KILLED"),
        fresh("deleted", status="FAILED", deleted=True),
    ]
    report = copy(estate(*map(Held, runs)), parse(f"mlflow:{server.url}"), tmp_path / "l")
    assert report.failed == ()
    for run in runs:
        stage = "deleted" if run.deleted else "active"
        assert Database(server).run(run)[1:] == (run.name, run.status, run.start, run.end, run.user, stage)


def test_params_tags_and_points_arrive_as_they_were(server, tmp_path):
    run = fresh("whole", params={f"p{i}": f"v{i}" for i in range(230)}, tags={f"t{i}": f"ü{i}" for i in range(230)})
    metrics = {
        "a": [(i, START + i, i / 3) for i in range(2500)],
        "nan": [(-(2**53) - 1, START, math.nan), (2**62, START, -1e308)],
        "same": [(1, START, 0.5), (1, START + 1, 0.5), (1, START, 0.75)],
    }
    report = copy(estate(Held(run, series(run, metrics))), parse(f"mlflow:{server.url}"), tmp_path / "l")
    assert (report.failed, report.points) == ((), 2505)
    db = Database(server)
    id_ = db.run(run)[0]
    assert db.params(id_) == run.params
    assert ours(db.tags(id_)) == run.tags
    expected = [(key, s, t, "NaN" if math.isnan(v) else v) for key, rows in metrics.items() for s, t, v in rows]
    assert db.points(id_) == Counter(expected)


def test_a_tag_that_the_source_had_not_is_not_there(server, tmp_path):
    run = fresh("bare", tags={"mlflow.runName": None})
    copy(estate(Held(run)), parse(f"mlflow:{server.url}"), tmp_path / "l")
    db = Database(server)
    assert ours(db.tags(db.run(run)[0])) == {}


def test_a_run_without_a_name_is_named_by_its_id_and_that_is_said(current, tmp_path):
    run = fresh("")
    report = copy(estate(Held(run)), parse(f"mlflow:{current.url}"), tmp_path / "l")
    assert Database(current).run(run)[1] == run.id
    assert [loss.what for loss in report.losses if loss.run] == ["name ''", "tag 'mlflow.runName'"]


def test_files_arrive_byte_by_byte_whatever_their_names(server, tmp_path):
    run = fresh("files")
    files = {
        "a b/ünï 模型.txt": b"x",
        "large.bin": bytes(range(256)) * 9000,
        "empty": b"",
        "q?x=1&y.txt": b"q",
        "p+%.txt": b"p",
    }
    held = Held(run, artifacts={(run.id, path): data for path, data in files.items()})
    report = copy(estate(held), parse(f"mlflow:{server.url}"), tmp_path / "l")
    assert report.failed == ()
    id_ = Database(server).run(run)[0]
    (folder,) = server.files.glob(f"*/{id_}/artifacts")
    assert {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == files


def test_a_name_that_the_server_refuses_is_a_loss(current, tmp_path):
    run = fresh("refused")
    held = Held(run, artifacts={(run.id, "hash#x.txt"): b"1", (run.id, "fine"): b"2"})
    report = copy(estate(held), parse(f"mlflow:{current.url}"), tmp_path / "l")
    assert report.failed == ()
    assert [loss.what for loss in report.losses if loss.run] == ["artifact 'hash#x.txt'"]


def test_references_between_runs_are_those_of_the_target(server, tmp_path):
    parent = fresh("parent")
    history = json.dumps([{"run_id": "SELF", "artifact_path": "model"}])
    child = fresh("child", tags={"mlflow.parentRunId": parent.id, "mlflow.rootRunId": parent.id})
    gone = fresh("gone", deleted=True, tags={"mlflow.parentRunId": parent.id})
    logged = fresh("logged")
    logged.tags["mlflow.log-model.history"] = history.replace("SELF", logged.id)
    stray = fresh("stray", tags={"mlflow.parentRunId": "f" * 32})
    report = copy(
        estate(*map(Held, (child, gone, logged, stray, parent))), parse(f"mlflow:{server.url}"), tmp_path / "l"
    )
    db = Database(server)
    there = db.run(parent)[0]
    tags = db.tags(db.run(child)[0])
    assert (tags["mlflow.parentRunId"], tags["mlflow.rootRunId"]) == (there, there)
    assert db.tags(db.run(gone)[0])["mlflow.parentRunId"] == there
    assert db.run(gone)[-1] == "deleted"
    own = db.run(logged)[0]
    assert db.tags(own)["mlflow.log-model.history"] == history.replace("SELF", own)
    assert db.tags(db.run(stray)[0])["mlflow.parentRunId"] == "f" * 32
    assert [(loss.run, loss.what) for loss in report.losses if loss.run] == [(stray.id, "tag 'mlflow.parentRunId'")]


def test_a_parent_that_comes_later_is_found_by_the_next_copy(server, tmp_path):
    parent = fresh("late parent")
    child = fresh("early child", tags={"mlflow.parentRunId": parent.id})
    deleted = fresh("early deleted child", deleted=True, tags={"mlflow.parentRunId": parent.id})
    place = estate(Held(child), Held(deleted))
    copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    place.held[parent.origin] = Held(parent)
    report = copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    assert (report.copied, report.already) == (1, 2)
    db = Database(server)
    for run in (child, deleted):
        tags = db.tags(db.run(run)[0])
        assert tags["mlflow.parentRunId"] == db.run(parent)[0]
        assert not [key for key in tags if key.startswith("mlmigrate.ref.")]
    assert db.run(deleted)[-1] == "deleted"


def test_a_deleted_experiment_arrives_whole_and_deleted_also_when_taken_up_again(server, tmp_path):
    place = estate(Held(fresh("one", deleted=True, params={"p": "1"})), deleted=True)
    name = place.experiments()[0].name
    copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    assert Database(server).experiment(name) == "deleted"
    more = fresh("two", deleted=True)
    place.held[more.origin] = Held(more)
    report = copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    assert (report.failed, report.copied, report.already) == ((), 1, 1)
    db = Database(server)
    assert (db.experiment(name), db.count(name)) == ("deleted", 2)
    assert db.run(more)[-1] == "deleted"


def test_an_experiment_that_somebody_deleted_in_the_target_is_a_conflict(current, tmp_path):
    from mlmigrate.errors import Conflict

    place = estate(Held(fresh("x")), deleted=True)
    copy(place, parse(f"mlflow:{current.url}"), tmp_path / "l")
    (experiment,) = place.experiments()
    target = open_target(parse(f"mlflow:{current.url}"), Context("target"))
    with pytest.raises(Conflict, match="is deleted on"):
        target.prepare([Experiment("7", experiment.name)])
    target.close()


def test_a_run_that_changed_is_brought_up_to_date(server, tmp_path):
    run = fresh("changing", params={"a": "1", "b": "2"}, tags={"old": "x", "same": "y"})
    place = estate(Held(run, series(run, {"m": [(0, START, 1.0)]})))
    copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    id_ = Database(server).run(run)[0]
    fields = {"stamp": "later", "name": "renamed", "status": "FAILED", "end": START + 5, "deleted": True}
    fields |= {
        "params": {"a": "1", "b": "other", "c": "3"},
        "tags": {"same": "z", "new": "", "mlflow.runName": "renamed"},
    }
    changed = replace(run, **fields)
    place.held[run.origin] = Held(changed, series(run, {"m": [(0, START, 1.0), (1, START, 2.0)]}))
    report = copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    db = Database(server)
    row = db.run(run)
    assert row[0] == id_
    assert row[1:] == ("renamed", "FAILED", run.start, START + 5, run.user, "deleted")
    assert ours(db.tags(id_)) == changed.tags
    assert db.params(id_) == {"a": "1", "b": "2", "c": "3"}
    assert db.points(id_) == Counter([("m", 0, START, 1.0), ("m", 1, START, 2.0)])
    assert [loss.what for loss in report.losses if loss.run] == ["param 'b'"]


def test_a_deleted_run_that_was_not_deleted_yet_is_taken_up_again(current, tmp_path):
    run = fresh("half deleted", deleted=True)
    place = estate(Held(run))
    target = parse(f"mlflow:{current.url}")
    copy(place, target, tmp_path / "l")
    opened = open_target(target, Context("target"))
    opened._writing.restore(Database(current).run(run)[0])  # as if it had ended before deleting
    assert run.origin not in opened.arrived()
    opened.close()
    report = copy(place, target, tmp_path / "l")
    assert report.copied == 1
    assert Database(current).run(run)[-1] == "deleted"


def test_datasets_arrive_once_with_their_tags(server, tmp_path):
    given = DatasetInput("d", "x1", "local", "{}", '{"a": 1}', None, {"mlflow.data.context": "train"})
    run = fresh("inputs", inputs=(given,))
    place = estate(Held(run))
    copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    place.held[run.origin] = Held(replace(run, stamp="again"))
    copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    db = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True)
    id_ = Database(server).run(run)[0]
    rows = db.execute(
        "select d.name, d.digest, d.dataset_schema, nullif(d.dataset_profile, ''), t.name, t.value from inputs i "
        "join datasets d on d.dataset_uuid = i.source_id left join input_tags t on t.input_uuid = i.input_uuid "
        "where i.destination_id = ?",
        [id_],
    ).fetchall()
    assert rows == [("d", "x1", '{"a": 1}', None, "mlflow.data.context", "train")]
