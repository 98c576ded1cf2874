"""What W&B holds, and what becomes of what it does not."""

from __future__ import annotations

import pytest

from mlmigrate.adapters.mlflow.objects import KINDS
from mlmigrate.adapters.wandb.limits import LIMITS, TEXT
from mlmigrate.adapters.wandb.provenance import KEY, OWN_COLUMNS
from mlmigrate.fit import fit_run
from mlmigrate.testing.samples import hard_samples, make, samples


@pytest.mark.parametrize("held", [*samples(), *hard_samples()], ids=lambda held: held.run.name)
def test_no_run_of_the_samples_loses_anything(held):
    fitted = fit_run(held.run, LIMITS)
    assert (fitted.run, fitted.losses) == (held.run, ())


@pytest.mark.parametrize("key", ["", "_step", "_timestamp", "_runtime", "_wandb", "wandb_version", KEY, *OWN_COLUMNS])
def test_keys_that_mean_something_else_in_wandb_are_renamed_and_that_is_told(key):
    fitted = fit_run(make("x", params={key: "1"}), LIMITS)
    assert LIMITS.key(key) != key
    assert fitted.run.params == {LIMITS.key(key): "1"}
    assert [loss.what for loss in fitted.losses] == [f"param {key!r}"]


@pytest.mark.parametrize(
    "key", ["loss", "val/loss", "a.b", "naïve 模型 🚀", "system/cpu", "_private", "x" * 1000, "a:b", "*"]
)
def test_all_other_keys_stay(key):
    assert LIMITS.key(key) == key


def test_a_text_that_would_fill_a_config_is_cut_and_kept_whole_as_an_artifact():
    fitted = fit_run(make("x", params={"p": "y" * (TEXT + 1)}, tags={"t": "z" * (TEXT + 1)}), LIMITS)
    assert [len(one) for one in (fitted.run.params["p"], fitted.run.tags["t"])] == [TEXT, TEXT]  # type: ignore[arg-type]
    assert {one.size for one in fitted.overflow} == {TEXT + 1}
    assert len(fitted.losses) == 2


@pytest.mark.parametrize("kind", [kind.record for kind in KINDS])
def test_every_kind_of_mlflows_objects_is_kept_and_it_is_said_that_nothing_uses_it(kind):
    holding = LIMITS.holding(kind)
    assert holding is not None
    assert (holding.how, LIMITS.holds(kind)) == ("record", True)
    assert holding.because


def test_what_is_wandbs_own_is_held_whole():
    assert LIMITS.holds("wandb.report")
    assert LIMITS.holding("wandb.report") is None
