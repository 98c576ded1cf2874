"""A run whose history changed at the source: a new copy of it, and then no more of the old one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import urllib3

from mlmigrate.adapters.memory import Held
from mlmigrate.errors import Unavailable
from mlmigrate.testing.samples import make, place_of, series
from wandbtarget import carried, points_of, points_of_held, provenance, run_of

pytestmark = pytest.mark.slow
BEFORE = {"loss": [(0, 1_600_000_000_000, 1.0), (1, 1_600_000_000_500, 0.5)]}
AFTER = {**BEFORE, "accuracy": [(1, 1_600_000_000_500, 0.9), (2, 1_600_000_001_000, 0.95)]}


def run_at(moment: str, points, status="RUNNING") -> Held:
    """A run as it is at a moment of its life."""
    run = replace(make("training"), stamp=moment, status=status)
    return Held(run, series(run, points))


def runs_of(server, held) -> dict[str, dict]:
    runs = {one["name"]: one for one in server.state()["runs"].values()}
    return {name: one for name, one in runs.items() if provenance(one).get("origin") == held.run.origin}


def copied_between_two_logs_of_a_step(server, tmp_path) -> tuple[Held, str]:
    """The run is copied when the last of its rows has not all of its keys yet."""
    before = run_at("early", BEFORE)
    assert carried(place_of([before]), "team", tmp_path).failed == ()
    return run_at("late", AFTER, "FINISHED"), run_of(server.state(), before)["name"]


def test_a_row_that_grew_later_leaves_one_copy_of_the_run(server, tmp_path):
    held, old = copied_between_two_logs_of_a_step(server, tmp_path)
    report = carried(place_of([held]), "team", tmp_path)
    assert (report.failed, report.copied) == ((), 1)
    found = run_of(server.state(), held)
    assert (found["name"], provenance(found)["stamp"]) == (f"{old}-2", "late")
    assert points_of(found) == points_of_held(held)
    (loss,) = report.losses
    assert (loss.what, loss.run) == (f"run id {old!r}", held.run.id)
    assert "its old copy was taken away" in loss.because


def test_the_old_copy_goes_only_after_the_new_one_is_proven(server, tmp_path):
    held, old = copied_between_two_logs_of_a_step(server, tmp_path)
    server.fail("RunsWritten", 400, times=50)
    assert carried(place_of([held]), "team", tmp_path).failed
    assert stamps_of(server, held) == {old: "early", f"{old}-2": None}
    server.heal()
    assert carried(place_of([held]), "team", tmp_path).failed == ()
    assert list(runs_of(server, held)) == [f"{old}-2"]
    assert points_of(run_of(server.state(), held)) == points_of_held(held)


def stamps_of(server, held) -> dict[str, str | None]:
    return {name: provenance(run).get("stamp") for name, run in runs_of(server, held).items()}


def swept_by_the_next_command(server, tmp_path, held, old) -> None:
    assert stamps_of(server, held) == {old: "early", f"{old}-2": "late"}
    server.heal()
    server.forget()
    report = carried(place_of([held]), "team", tmp_path)
    assert (report.failed, report.copied) == ((), 0)
    assert list(runs_of(server, held)) == [f"{old}-2"]
    assert "its old copy was taken away" in report.losses[0].because
    assert not [one for one in server.requests() if one[1].endswith("file_stream")]


def test_after_an_end_between_stamp_and_deletion_the_next_command_deletes(server, tmp_path):
    held, old = copied_between_two_logs_of_a_step(server, tmp_path)
    server.fail("DeleteRun", 0, times=1000)
    with pytest.raises(Unavailable):
        carried(place_of([held]), "team", tmp_path)
    swept_by_the_next_command(server, tmp_path, held, old)


def test_a_deletion_that_is_refused_is_told_and_tried_by_the_next_command(server, tmp_path):
    held, old = copied_between_two_logs_of_a_step(server, tmp_path)
    server.fail("DeleteRun", 403, times=1000)
    report = carried(place_of([held]), "team", tmp_path)
    assert report.failed == ()
    assert "could not be taken away" in report.losses[0].because
    swept_by_the_next_command(server, tmp_path, held, old)


@pytest.mark.parametrize("after", [False, True])
def test_a_deletion_that_fails_once_is_made_again(server, tmp_path, after):
    held, old = copied_between_two_logs_of_a_step(server, tmp_path)
    server.fail("DeleteRun", None if after else 0, after=after)
    assert carried(place_of([held]), "team", tmp_path).failed == ()
    assert list(runs_of(server, held)) == [f"{old}-2"]


def test_a_fork_of_the_old_copy_that_somebody_made_stays(server, tmp_path):
    held, old = copied_between_two_logs_of_a_step(server, tmp_path)
    fork(server, runs_of(server, held)[old])
    assert carried(place_of([held]), "team", tmp_path).failed == ()
    assert set(runs_of(server, held)) == {f"{old}-2", "fork"}


def fork(server, run) -> None:
    text = """mutation UpsertBucket($entity: String!, $project: String!, $config: JSONString!) {
        upsertBucket(input: {name: "fork", modelName: $project, entityName: $entity, config: $config}) { inserted } }"""
    config = json.dumps({name: {"value": value} for name, value in run["config"].items()})
    given = {"entity": run["entity"], "project": run["project"], "config": config}
    headers = urllib3.make_headers(basic_auth=f"api:{server.key}")
    answer = urllib3.request("POST", f"{server.url}/graphql", json={"query": text, "variables": given}, headers=headers)
    assert answer.json() == {"data": {"upsertBucket": {"inserted": True}}}


def test_artifacts_that_the_old_copy_made_stay(server, tmp_path):
    before = run_at("early", BEFORE)
    files = {(before.run.id, "model.bin"): b"weights"}
    assert carried(place_of([replace(before, artifacts=files)]), "team", tmp_path).failed == ()
    made = set(server.state()["artifacts"])
    assert made
    held = replace(run_at("late", AFTER), artifacts=files)
    assert carried(place_of([held]), "team", tmp_path).failed == ()
    there = server.state()["artifacts"]
    assert made < set(there)
    assert [one["producer"] for path, one in there.items() if path not in made] == [
        f"team/{run['project']}/{name}" for name, run in runs_of(server, held).items()
    ]


def test_children_of_a_run_that_was_taken_away_name_the_new_one(server, tmp_path):
    before = run_at("early", BEFORE)
    child = make("a child")
    child = Held(replace(child, tags={**child.tags, "mlflow.parentRunId": before.run.id}))
    assert carried(place_of([before, child]), "team", tmp_path).failed == ()
    there = run_of(server.state(), child)
    assert (there["group"], provenance(there)["tags"]["mlflow.parentRunId"]) == (before.run.id, before.run.id)
    report = carried(place_of([run_at("late", AFTER), child]), "team", tmp_path)
    assert (report.failed, report.copied) == ((), 1)
    now, new = run_of(server.state(), child), f"{before.run.id}-2"
    assert (now["group"], provenance(now)["tags"]["mlflow.parentRunId"]) == (new, new)
    given = ("heartbeat", "group", "config")
    assert {k: v for k, v in now.items() if k not in given} == {k: v for k, v in there.items() if k not in given}
    assert provenance(now)["stamp"] == provenance(there)["stamp"]
