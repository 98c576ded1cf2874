"""Ids, places and names of a source become those of the target, wherever they hide, and nothing else changes."""

from __future__ import annotations

import io
import json

import pytest

from mlmigrate.adapters.mlflow.objects import BY_NAME, KINDS, id_of, record_of, tree_of
from mlmigrate.adapters.mlflow.references import References
from mlmigrate.model import Artifact, Run

OLD, NEW, OTHER = "a" * 32, "b" * 32, "c" * 32
MODEL, NEW_MODEL = "m-" + "1" * 32, "m-" + "2" * 32
HERE = References(
    ids={"run": {OLD: NEW}, "experiment": {"3": "9"}, "logged_model": {MODEL: NEW_MODEL}},
    places={
        "run": {OLD: f"mlflow-artifacts:/9/{NEW}/artifacts"},
        "logged_model": {MODEL: f"mlflow-artifacts:/9/models/{NEW_MODEL}/artifacts"},
    },
    models={"fraud": "fraud-2"},
    versions={("fraud", 3): 7},
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (OLD, NEW),
        (f"runs:/{OLD}/model", f"runs:/{NEW}/model"),
        (f"mlflow-artifacts:/3/{OLD}/artifacts/model", f"mlflow-artifacts:/9/{NEW}/artifacts/model"),
        (f"file:///home/x/mlruns/3/{OLD}/artifacts/a b", f"mlflow-artifacts:/9/{NEW}/artifacts/a b"),
        (f"/home/x/mlruns/3/{OLD}/artifacts", f"mlflow-artifacts:/9/{NEW}/artifacts"),
        (f"s3://bucket/3/models/{MODEL}/artifacts", f"mlflow-artifacts:/9/models/{NEW_MODEL}/artifacts"),
        (f"models:/{MODEL}", f"models:/{NEW_MODEL}"),
        ("models:/fraud/3", "models:/fraud-2/7"),
        ("models:/fraud/4", "models:/fraud-2/4"),
        ("models:/fraud@champion", "models:/fraud-2@champion"),
        (f'[{{"run_id": "{OLD}", "artifact_path": "model"}}]', f'[{{"run_id": "{NEW}", "artifact_path": "model"}}]'),
    ],
)
def test_a_known_name_is_replaced(before: str, after: str) -> None:
    assert HERE.text(before) == after


@pytest.mark.parametrize(
    "text",
    [
        OTHER,
        OLD + "0",
        "x" + OLD,
        f"mlflow-artifacts:/3/{OTHER}/artifacts",
        "models:/frauds/3",
        "models:/other/3",
        "3",
        "a commit: 0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_what_is_not_known_stays(text: str) -> None:
    assert HERE.text(text) == text


def test_the_rows_of_a_version_name_what_is_here() -> None:
    tree = {
        "registered_models": [{"name": "fraud"}],
        "registered_model_aliases": [{"name": "fraud", "alias": "champion", "version": 3}],
        "model_versions": [
            {"name": "fraud", "version": 3, "run_id": OLD, "source": f"models:/{MODEL}", "description": OLD},
        ],
        "model_version_tags": [{"name": "fraud", "version": 3, "key": "from", "value": f"runs:/{OLD}"}],
    }
    moved = HERE.record(record_of(BY_NAME["mlflow.registered_model"], tree))
    assert moved.id == "fraud-2"
    assert tree_of(moved) == {
        "registered_models": [{"name": "fraud-2"}],
        "registered_model_aliases": [{"name": "fraud-2", "alias": "champion", "version": 7}],
        "model_versions": [
            # a description is a person's own words
            {"name": "fraud-2", "version": 7, "run_id": NEW, "source": f"models:/{NEW_MODEL}", "description": OLD},
        ],
        "model_version_tags": [{"name": "fraud-2", "version": 7, "key": "from", "value": f"runs:/{NEW}"}],
    }


def test_rows_that_name_things_by_type_and_id_are_followed() -> None:
    tree = {
        "logged_models": [{"model_id": MODEL, "experiment_id": 3, "source_run_id": OLD}],
        "inputs": [
            {"source_type": "RUN_OUTPUT", "source_id": OLD, "destination_type": "MODEL_OUTPUT", "destination_id": MODEL}
        ],
    }
    moved = HERE.record(record_of(BY_NAME["mlflow.logged_model"], tree))
    assert (moved.id, moved.owner) == (NEW_MODEL, "3")
    assert tree_of(moved) == {
        "logged_models": [{"model_id": NEW_MODEL, "experiment_id": 9, "source_run_id": NEW}],
        "inputs": [
            {
                "source_type": "RUN_OUTPUT",
                "source_id": NEW,
                "destination_type": "MODEL_OUTPUT",
                "destination_id": NEW_MODEL,
            }
        ],
    }


def test_an_mlmodel_file_names_the_run_and_the_model_here_and_keeps_every_other_byte() -> None:
    text = (
        f"artifact_path: mlflow-artifacts:/3/models/{MODEL}/artifacts\n"
        f"# a comment\r\nmodel_id: {MODEL}\nmodel_uuid: {OTHER}\nrun_id: {OLD}\n"
    )
    moved = HERE.artifact(Artifact(f"@model/{MODEL}", "MLmodel", lambda: io.BytesIO(text.encode()), len(text)))
    with moved.open() as stream:
        data = stream.read()
    assert data.decode() == (
        f"artifact_path: mlflow-artifacts:/9/models/{NEW_MODEL}/artifacts\n"
        f"# a comment\r\nmodel_id: {NEW_MODEL}\nmodel_uuid: {OTHER}\nrun_id: {NEW}\n"
    )
    assert (moved.owner, moved.size) == (f"@model/{NEW_MODEL}", len(data))


def test_another_file_is_never_opened() -> None:
    def opened() -> io.BytesIO:
        raise AssertionError

    file = Artifact(OLD, "weights.bin", opened, 5)
    assert HERE.artifact(file) is file


def test_a_run_names_its_parent_and_what_it_made_as_they_are_here() -> None:
    history = json.dumps([{"run_id": OLD}])
    given = Run(OLD, "3", tags={"mlflow.parentRunId": OLD, "mlflow.log-model.history": history}, params={"base": OLD})
    moved = HERE.run(given)
    assert moved.id == OLD
    assert moved.tags == {"mlflow.parentRunId": NEW, "mlflow.log-model.history": json.dumps([{"run_id": NEW}])}
    assert moved.params == {"base": NEW}


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("_mlflow_experiment_ids", ",3,4,", ",9,4,"),
        ("mlflow.linkedPrompts", '[{"name": "fraud", "version": "3"}]', '[{"name": "fraud-2", "version": "7"}]'),
        ("mlflow.modelVersions", '[{"name": "fraud", "version": 3}]', '[{"name": "fraud-2", "version": 7}]'),
        ("mlflow.modelVersions", '[{"name":"other","version":3}]', '[{"name":"other","version":3}]'),
        ("mlflow.modelVersions", "no JSON", "no JSON"),
        ("note", ",3,", ",3,"),
    ],
)
def test_tags_that_name_things_in_their_own_way_are_followed(key: str, before: str, after: str) -> None:
    assert HERE.tag(key, before) == after


def test_an_assessment_names_its_issue_and_the_run_that_found_it() -> None:
    here = References(ids={"issue": {"iss-1": "iss-2"}, "run": {OLD: NEW}})
    row = {"assessment_type": "issue", "name": "iss-1", "source_id": OLD}
    here.row("assessments", row)
    assert row == {"assessment_type": "issue", "name": "iss-2", "source_id": NEW}
    feedback = {"assessment_type": "feedback", "name": "iss-1", "source_id": "anna"}
    here.row("assessments", feedback)
    assert feedback["name"] == "iss-1"


def test_every_kind_names_itself_by_its_key() -> None:
    for kind in KINDS:
        root = {column: f"<{column}>" for column in kind.key}
        assert id_of(kind, root) == "/".join(f"<{column}>" for column in kind.key)
    assert id_of(BY_NAME["mlflow.registered_model"], {"name": "n", "workspace": "default"}) == "n"


@pytest.mark.parametrize(
    ("given", "here"),
    [
        ("runs:/maker/model", f"runs:/{'b' * 32}/model"),
        ("runs:/maker", f"runs:/{'b' * 32}"),
        ("runs:/makers/model", "runs:/makers/model"),
        ("the maker of runs", "the maker of runs"),
        (f"runs:/{'a' * 32}/x", f"runs:/{'b' * 32}/x"),
        (f"runs:/{'b' * 32}/x", f"runs:/{'c' * 32}/x"),
    ],
)
def test_a_run_of_another_tracker_is_renamed_behind_runs_alone_and_none_twice(given, here):
    ids = {"maker": "b" * 32, "a" * 32: "b" * 32, "b" * 32: "c" * 32}
    assert References(ids={"run": ids}).text(given) == here
