"""Names that W&B takes: whatever the source calls a thing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmigrate.adapters.wandb import names

ANY = st.text(alphabet=st.characters(), max_size=300)  # lone surrogates too


def test_an_id_of_mlflow_stays_as_it_is():
    assert names.run_id("mlflow:0a1b", "0a1b" * 8) == "0a1b" * 8


@pytest.mark.parametrize("id_", ["a/b", "a b", "", "..", "-x", "a:b", "ü", "x" * 65, "a'b", "a%41", "a\n", "a\ud800"])
def test_an_id_that_wandb_refuses_becomes_a_hash_of_its_origin(id_):
    found = names.run_id(f"mlflow:{id_}", id_)
    assert re.fullmatch("[0-9a-f]{32}", found)
    assert found != names.run_id(f"other:{id_}", id_)


def test_another_generation_is_another_id_of_no_more_characters():
    assert names.run_id("", "abc", 2) == "abc-2"
    assert names.run_id("", "x" * 64, 12) == "x" * 60 + "-12"


@pytest.mark.parametrize(("id_", "parent"), [("a" * 32, "b" * 32), ("a", "odd/one"), ("odd/child", "odd/one")])
def test_a_child_knows_the_id_of_its_parent(id_, parent):
    assert names.parent_id(f"mlflow:{id_}", id_, parent) == names.run_id(f"mlflow:{parent}", parent)


@given(ANY)
def test_any_experiment_has_a_project_that_wandb_takes(name):
    found = names.project(name)
    assert 1 <= len(found) <= 128
    assert not set(found) & set("/\\#?%:\r\n")
    assert found == found.strip()
    found.encode()  # no half of a surrogate pair
    assert names.project(found) == found


@given(ANY, ANY)
def test_two_experiments_share_a_project_only_when_they_share_a_name(one, other):
    assert (names.project(one) == names.project(other)) == (one == other)


def test_a_project_that_wandb_takes_keeps_its_name_and_others_are_recognized():
    assert names.project("vision eager") == "vision eager"
    assert names.project("vision/eager").startswith("vision-eager-")
    assert names.project("").startswith("experiment-")


@pytest.mark.parametrize("name", [".", "..", " .. ", "..."])
def test_no_project_is_called_like_a_way_to_another_folder(name):
    assert names.project(name).startswith("experiment-")


@given(ANY)
def test_any_name_becomes_an_artifact_that_wandb_takes(name):
    found = names.artifact(name)
    assert re.fullmatch(r"[a-zA-Z0-9_\-.]{1,128}", found)
    assert found.strip(".")
    assert names.artifact(found) == found


@given(ANY, ANY)
def test_two_artifacts_are_one_only_when_they_share_a_name(one, other):
    assert (names.artifact(one) == names.artifact(other)) == (one == other)


@given(st.text(min_size=1, max_size=60))
def test_the_models_of_a_run_and_its_tree_have_names_of_their_own(folder):
    found = {names.tree("r1"), names.model("r1", folder), names.model("r2", folder), names.model("r1", folder + "x")}
    assert len(found) == 4


def test_a_model_called_as_the_tree_is_has_another_name():
    assert names.model("r", "mlflow-artifacts") != names.tree("r")


@given(st.lists(ANY))
def test_aliases_are_those_that_wandb_takes_once_each(given_):
    found = names.aliases(given_)
    assert len(found) == len(set(found))
    for one in found:
        assert not set(one) & set("/:")
        assert one.strip()
        assert len(one) <= 128
        assert not re.fullmatch(r"v\d+", one)


def test_aliases_that_wandb_gives_itself_are_left_to_it():
    assert names.aliases(["v0", "best", "v12", "latest", "best"]) == ("best", "latest")


@pytest.mark.parametrize("kind", ["job", "wandb-history", "wandb-run_table"])
def test_types_that_are_the_servers_are_none_of_ours(kind):
    assert names.artifact_type(kind) == ""


def test_a_type_keeps_its_name_where_wandb_takes_it():
    assert names.artifact_type("raw data") == "raw data"
    assert "/" not in names.artifact_type("a/b")


@given(ANY, ANY)
def test_a_label_has_1_to_64_characters_or_there_is_none(name, value):
    found = names.label(name, value)
    assert found is None or (1 <= len(found) <= 64 and found.isprintable())


def test_a_tag_of_80_characters_is_no_label():
    assert names.label("team", "x" * 80) is None
    assert names.label("team", "a b") == "team=a b"
    assert names.label("baseline", "") == "baseline"
