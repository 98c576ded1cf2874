"""A copy into a W&B server: what the server holds then, told by the server itself and by W&B's own SDK."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import wandbsdk
from mlmigrate.adapters.base import Context
from mlmigrate.adapters.memory import Held
from mlmigrate.adapters.wandb.api import target
from mlmigrate.adapters.wandb.api.logged import Artifacts
from mlmigrate.adapters.wandb.api.target import open_target
from mlmigrate.address import parse
from mlmigrate.errors import Conflict, NotFound, Refused
from mlmigrate.model import PARENT_TAG
from mlmigrate.testing.samples import START, hard_samples, make, place_of, samples, series
from wandbtarget import carried, essence, points_of, points_of_held, provenance, run_of

pytestmark = pytest.mark.slow
MANY = next(held for held in hard_samples() if held.run.name == "many points")
EVERYTHING = [held for held in (*samples(), *hard_samples()) if held.run.name != MANY.run.name]

READ = """
import json, os, wandb
api = wandb.Api()
run = api.run(os.environ["RUN"])
art = [one for one in run.logged_artifacts()]
folder = art[0].download(root="artifact") if art else None
print("TOLD " + json.dumps({
    "config": dict(run.config), "name": run.name, "state": run.state, "summary": sorted(dict(run.summary)),
    "rows": list(run.scan_history()), "files": sorted(one.name for one in run.files()),
    "artifacts": [[one.name, one.type, one.digest] for one in art], "metadata": run.metadata,
}))
"""


def one_run(name: str, *values: float, **fields: object) -> Held:
    run = make(name, **fields)
    return Held(run, series(run, {"loss": [(n, START + n, value) for n, value in enumerate(values)]}))


def sdk(server, path: str, folder: Path) -> dict[str, object]:
    """What W&B's own SDK reads."""
    done = wandbsdk.ask(wandbsdk.VERSIONS[-1], READ, server, folder, {"RUN": path})
    return json.loads(next(line for line in done.out.splitlines() if line.startswith("TOLD ")).removeprefix("TOLD "))


def test_every_point_is_there_with_its_step_and_time(server, tmp_path):
    runs = [*EVERYTHING, MANY]
    report = carried(place_of(runs), "team", tmp_path)
    assert (report.failed, report.copied) == ((), len(runs))
    state = server.state()
    for held in runs:
        assert points_of(run_of(state, held)) == points_of_held(held)


def test_every_run_is_told_whole_and_says_where_it_is_from(server, tmp_path):
    carried(place_of(EVERYTHING), "team", tmp_path)
    state = server.state()
    ended = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "failed", "RUNNING": "running"}
    for held in EVERYTHING:
        found = run_of(state, held)
        assert (found["name"], found["display"]) == (held.run.id, held.run.name)
        assert found["state"] == ended[held.run.status]
        assert provenance(found)["stamp"] == held.run.stamp
        assert {"config.yaml", "wandb-metadata.json", "wandb-summary.json"} <= found["files"].keys()


def test_files_are_artifacts_with_their_bytes(server, tmp_path):
    files = next(held for held in EVERYTHING if held.run.name == "files")
    carried(place_of([files]), "team", tmp_path)
    state = server.state()
    (path,) = run_of(state, files)["logged"]
    contents = state["artifacts"][path]["manifest"]
    sent = {name: data for (_, name), data in files.artifacts.items()}
    assert {name: server.blob(entry["digest"]) for name, entry in contents.items()} == sent
    assert state["artifacts"][path]["producer"] == f"team/{path.split('/')[1]}/{files.run.id}"


def test_a_second_copy_sends_nothing(server, tmp_path):
    source = place_of(EVERYTHING)
    carried(source, "team", tmp_path)
    before = server.state()
    server.forget()
    report = carried(source, "team", tmp_path)
    assert (report.copied, report.already, report.failed) == (0, len(EVERYTHING), ())
    assert {name for _, name in server.requests()} == {"GetTeamEntity", "GetProjects", "Runs"}
    assert server.state() == before


def test_a_run_costs_few_requests(server, tmp_path):
    runs = [one_run(f"run {n}", 1.0, 2.0) for n in range(32)]
    carried(place_of(runs), "team", tmp_path)
    asked = Counter(name.partition("/put/")[0] for _, name in server.requests())
    assert sum(asked.values()) <= 6.4 * len(runs) + 40
    assert asked["RunsWritten"] + asked["UpsertBuckets"] <= 12


def test_the_sdk_reads_what_was_copied(server, tmp_path):
    runs = [held for held in EVERYTHING if held.run.name in ("files", "values")]
    carried(place_of(runs), "team", tmp_path)
    state = server.state()
    for held in runs:
        found = run_of(state, held)
        (tmp_path / held.run.name).mkdir()
        seen = sdk(server, f"team/{found['project']}/{held.run.id}", tmp_path / held.run.name)
        assert seen["name"] == held.run.name
        assert seen["state"] == "finished"
        assert len(seen["rows"]) == len(found["history"])
        assert set(seen["summary"]) >= set(held.points["key"].to_pylist())
    artifact = tmp_path / "files" / "artifact"
    there = {str(file.relative_to(artifact)): file.read_bytes() for file in artifact.rglob("*") if file.is_file()}
    assert there == {name: data for held in runs for (_, name), data in held.artifacts.items()}


def test_all_experiments_go_into_the_one_project_that_is_named(server, tmp_path):
    report = carried(place_of(EVERYTHING), "team/all", tmp_path)
    assert report.failed == ()
    state = server.state()
    assert list(state["projects"]) == ["team/all"]
    again = carried(place_of(EVERYTHING), "team/all", tmp_path)
    assert (again.copied, again.already) == (0, len(EVERYTHING))


def test_a_run_that_grew_goes_on_where_it_ended(server, tmp_path):
    carried(place_of([one_run("growing", 1.0, 2.0)]), "team", tmp_path)
    grown = one_run("growing", 1.0, 2.0, 3.0)
    grown = replace(grown, run=replace(grown.run, stamp="later"))
    report = carried(place_of([grown]), "team", tmp_path)
    assert (report.copied, report.failed, report.losses) == (1, (), ())
    state = server.state()
    assert points_of(run_of(state, grown)) == points_of_held(grown)
    assert provenance(run_of(state, grown))["stamp"] == "later"


def test_a_run_that_is_another_now_takes_the_place_of_what_was_whole(server, tmp_path):
    first = one_run("changing", 1.0, 2.0)
    carried(place_of([first]), "team", tmp_path)
    other = one_run("changing", 5.0)
    other = replace(other, run=replace(other.run, stamp="later"))
    report = carried(place_of([other]), "team", tmp_path)
    assert (report.copied, report.failed) == (1, ())
    runs = {one["name"]: one for one in server.state()["runs"].values()}
    assert first.run.id not in runs
    assert points_of(runs[f"{first.run.id}-2"]) == points_of_held(other)
    assert carried(place_of([other]), "team", tmp_path).already == 1


def test_a_deleted_id_is_burnt_and_another_is_told(server, tmp_path):
    held = one_run("burnt", 1.0)
    carried(place_of([held]), "team", tmp_path)
    _delete(server, run_of(server.state(), held)["id"])
    report = carried(place_of([held]), "team", tmp_path)
    assert report.failed == ()
    assert run_of(server.state(), held)["name"] == f"{held.run.id}-2"
    assert [loss.what for loss in report.losses] == [f"run id {held.run.id!r}"]


def test_children_name_their_parent_by_the_id_that_it_has(server, tmp_path):
    parent = one_run("a parent", 1.0)
    child = one_run("a child", 1.0, tags={PARENT_TAG: parent.run.id})
    carried(place_of([parent]), "team", tmp_path)
    _delete(server, run_of(server.state(), parent)["id"])
    assert carried(place_of([parent, child]), "team", tmp_path).failed == ()
    found = run_of(server.state(), child)
    assert found["group"] == f"{parent.run.id}-2"
    assert provenance(found)["tags"][PARENT_TAG] == f"{parent.run.id}-2"


def _delete(server, id_: str) -> None:
    there = open_target(parse("wandb:team"), Context("target"))
    there.client.graphql(
        "mutation DeleteRun($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }", {"id": id_}
    )
    there.close()


def test_a_run_of_somebody_else_with_the_same_id_stays_as_it_is(server, tmp_path):
    held = one_run("mine", 1.0)
    project = "vision-eager-5e1c700a"
    there = open_target(parse("wandb:team"), Context("target"))
    made = {"name": held.run.id, "project": project, "entity": "team", "config": '{"theirs": {"value": 1}}'}
    upsert = """mutation UpsertBucket($name: String, $project: String, $entity: String, $config: JSONString) {
      upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, config: $config}) { inserted } }"""
    there.client.graphql(upsert, made)
    there.close()
    before = server.state()["runs"][f"team/{project}/{held.run.id}"]
    assert carried(place_of([held]), "team", tmp_path).failed == ()
    state = server.state()
    assert state["runs"][f"team/{project}/{held.run.id}"] == before
    assert run_of(state, held)["name"] == f"{held.run.id}-2"


@pytest.mark.parametrize("policy", ["merge", "rename", "fail"])
def test_a_project_of_somebody_else_is_dealt_with_as_asked(server, tmp_path, policy):
    there = open_target(parse("wandb:team"), Context("target"))
    upsert = """mutation UpsertBucket($name: String, $project: String, $entity: String) {
      upsertBucket(input: {name: $name, modelName: $project, entityName: $entity}) { inserted } }"""
    there.client.graphql(upsert, {"name": "theirs", "project": "empty", "entity": "team"})
    there.close()
    source = place_of([one_run("mine", 1.0)])
    if policy == "fail":
        with pytest.raises(Conflict, match="empty"):
            carried(source, "team", tmp_path, on_conflict=policy)
        assert list(server.state()["projects"]) == ["team/empty"]
        return
    for _ in range(2):
        report = carried(source, "team", tmp_path, on_conflict=policy)
        assert report.failed == ()
    expected = "empty-2" if policy == "rename" else "empty"
    assert any(provenance(one).get("kind") == "experiment" for one in server.state()["runs"].values())
    assert ("team/empty-2" in server.state()["projects"]) == (expected == "empty-2")


def test_an_entity_that_there_is_not_is_an_error_that_names_it(server):
    with pytest.raises(NotFound, match="nobody"):
        open_target(parse("wandb:nobody"), Context("target"))


def test_a_wrong_key_is_refused_and_not_told(server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    with pytest.raises(Refused) as error:
        open_target(parse("wandb:team"), Context("target"))
    assert "f" * 40 not in f"{error.value} {error.value.hint}"


def test_without_an_entity_it_is_that_of_the_key(server):
    there = open_target(parse(f"wandb:{server.url}"), Context("target"))
    assert there.where.entity in ("team", "tester")
    there.close()


def test_a_large_file_goes_in_parts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(target, "Artifacts", lambda client: Artifacts(client, multipart=100_000, part=64_000))
    files = next(held for held in EVERYTHING if held.run.name == "files")
    report = carried(place_of([files]), "team", tmp_path)
    assert report.failed == ()
    state = server.state()
    (path,) = run_of(state, files)["logged"]
    entry = state["artifacts"][path]["manifest"]["model/weights.bin"]
    assert server.blob(entry["digest"]) == files.artifacts[files.run.id, "model/weights.bin"]
    assert sum("part" in one["name"] or one["name"] == "CompleteMultipartUploadArtifact" for one in server.log()) >= 1


def test_a_row_that_is_too_long_stays_as_a_row_and_is_told(server, tmp_path, monkeypatch):
    monkeypatch.setattr("mlmigrate.adapters.wandb.api.stream.LONGEST_LINE", 200)
    run = make("wide")
    wide = {f"metric_{n:03}": [(0, START, float(n))] for n in range(30)}
    held = Held(run, series(run, wide | {"loss": [(1, START + 1, 0.5)]}))
    report = carried(place_of([held]), "team", tmp_path)
    assert report.failed == ()
    assert len(run_of(server.state(), held)["history"]) == 2
    assert any("longer than W&B takes" in loss.because for loss in report.losses)


def test_two_copies_of_the_same_hold_the_same(server, tmp_path):
    carried(place_of(EVERYTHING), "team", tmp_path)
    first = essence(server.state())
    server.reset()
    carried(place_of(EVERYTHING), "team", tmp_path)
    assert essence(server.state()) == first


def test_nothing_is_written_before_prepare(server):
    there = open_target(parse("wandb:team"), Context("target"))
    assert there.arrived() == {}
    assert there.foresee(place_of(EVERYTHING).experiments(), ()) == []
    there.close()
    assert server.state()["projects"] == {}
