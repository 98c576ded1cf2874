"""What becomes of names that a target has already."""

from __future__ import annotations

import pytest

from mlmigrate.adapters.mlflow.conflicts import Choice, losses, settle
from mlmigrate.errors import Conflict

WANTED = [("o1", "fraud"), ("o2", "churn"), ("o3", "new")]
THERE = {"fraud": "", "churn": "o2", "fraud-2": ""}


def test_merge_joins_what_is_there_and_finds_its_own_again() -> None:
    choices = settle(WANTED, THERE, "merge", "model")
    assert choices == {"o1": Choice("fraud", "merged"), "o2": Choice("churn", "ours"), "o3": Choice("new", "new")}
    assert [loss.what for loss in losses(WANTED, choices, "model")] == ["model 'fraud'"]


def test_rename_takes_the_first_name_that_nobody_has_or_wants() -> None:
    choices = settle([*WANTED, ("o4", "fraud-3")], THERE, "rename", "model")
    assert choices["o1"] == Choice("fraud-4", "renamed")
    assert losses(WANTED, choices, "model")[0].because.endswith("ours is 'fraud-4'")


def test_what_was_renamed_is_found_under_its_new_name() -> None:
    again = settle(WANTED, {**THERE, "fraud-4": "o1"}, "rename", "model")
    assert again["o1"] == Choice("fraud-4", "ours")


def test_fail_names_what_is_in_the_way() -> None:
    with pytest.raises(Conflict, match="1 models of the same name already: 'fraud'"):
        settle(WANTED, THERE, "fail", "model")


def test_fail_lets_pass_what_is_ours_or_new() -> None:
    assert settle(WANTED[1:], THERE, "fail", "model")["o2"] == Choice("churn", "ours")
