"""Runs in W&B's words, and told again from these words by the reader."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmigrate.adapters.wandb import restored
from mlmigrate.adapters.wandb.limits import LIMITS
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.outgoing import Facts, Goods, Home, encoded, expanded, outgoing, typed
from mlmigrate.adapters.wandb.provenance import KEY, OWN_COLUMNS, STEP
from mlmigrate.adapters.wandb.shape import WandbRun
from mlmigrate.errors import MigrateError
from mlmigrate.fit import fit_run
from mlmigrate.model import PARENT_TAG, Experiment, Run
from mlmigrate.testing.samples import EXPERIMENTS, hard_samples, make, samples

EXPERIMENT = Experiment("1", "vision/eager")
PLAIN = Options()
HOME = Home("team", "vision", EXPERIMENT)
NATIVE = WandbRun(
    "maker",
    "team",
    "vision",
    config={"optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9, 1.0]}, "epochs": 3, "amp": True, "none": None},
    summary={"loss": 0.5, "best": 1, "verdict": "good", "_step": 3},
)


def written(run: Run, options: Options = PLAIN, native: WandbRun | None = None, facts: Facts | None = None) -> WandbRun:
    facts = facts or Facts(native=native is not None)
    return outgoing(run, HOME, options, facts, Goods(), native).run


def through_a_server(run: WandbRun) -> WandbRun:
    """The run as a server tells it: config and the rest were JSON, 3.0 is 3 now, keys are sorted."""
    text = json.dumps(run.config, sort_keys=True, allow_nan=False)
    text.encode()
    return replace(
        run, config=json.loads(text, parse_float=lambda one: int(float(one)) if float(one).is_integer() else float(one))
    )


def read(run: WandbRun) -> Run:
    provenance = restored.provenance_of(run)
    assert provenance is not None
    return restored.run_of(run, provenance)


def told(value: object) -> tuple[type, str]:
    if isinstance(value, frozenset):
        return frozenset, repr(sorted(value))
    return type(value), value.isoformat() if isinstance(value, datetime) else repr(value)


def assert_equal(found: Run, wanted: Run) -> None:
    """Types too, and NaN equals itself."""
    assert {name: told(value) for name, value in found.params.items()} == {
        name: told(value) for name, value in wanted.params.items()
    }
    assert replace(found, params={}, stamp="") == replace(wanted, params={}, stamp="")


@pytest.mark.parametrize("held", [*samples(), *hard_samples()], ids=lambda held: held.run.name)
@pytest.mark.parametrize("options", [Options(), Options(params="text"), Options(nested="params")], ids=str)
def test_a_run_is_told_again_as_it_was(held, options):
    run = fit_run(held.run, LIMITS).run
    assert_equal(read(written(run, options)), run)
    assert_equal(read(through_a_server(written(run, options))), run)


NAMES = st.text(st.characters(), max_size=12)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["True", "False", "None", "1.10", "007", "-0", "1e-3", "1E5", "+1", ".5", "1_000", "{}", "[1]", "1e999", " 1"]
    ),
)


@given(st.dictionaries(NAMES, TEXTS), st.booleans(), st.booleans())
def test_params_of_any_text_come_back_letter_by_letter(params, nested, text):
    options = Options(nested="view" if nested else "", params="text" if text else "typed")
    run = fit_run(make("x", params=params), LIMITS).run
    assert_equal(read(written(run, options)), run)
    assert_equal(read(through_a_server(written(run, options))), run)


VALUES = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(),
    st.floats(),
    st.none(),
    st.datetimes(timezones=st.just(UTC)),
    st.frozensets(st.text(st.characters(), max_size=4), max_size=3),
)


@given(st.dictionaries(NAMES, VALUES))
def test_params_of_any_type_come_back_with_their_types(params):
    run = fit_run(make("x", params=params), LIMITS).run
    assert_equal(read(written(run)), run)
    assert_equal(read(through_a_server(written(run))), run)


@given(st.dictionaries(NAMES, st.text(st.characters(), max_size=8)), st.text(st.characters(), max_size=8))
def test_tags_and_names_of_any_text_come_back(tags, name):
    run = fit_run(replace(make("x", tags=tags), name=name), LIMITS).run
    assert_equal(read(through_a_server(written(run))), run)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-12", -12), ("0", 0), ("0.1", 0.1), ("1e-3", 0.001), ("1.10", 1.1), ("True", True),
        ("False", False), ("007", "007"), ("nan", "nan"), ("inf", "inf"), ("-inf", "-inf"),
        ("1e999", "1e999"), ("true", "true"),
        ("None", "None"), ("1_000", "1_000"), ("9007199254740993", "9007199254740993"), ("1 ", "1 "), ("", ""),
        ("\u0661", "\u0661"), ("1.\u0661", "1.\u0661"), ("0x10", "0x10"), ("1.", "1."), ("9007199254740992", 2**53),
    ],
)  # fmt: skip
def test_only_what_is_plainly_a_number_or_a_truth_value_becomes_one(text, value):
    assert (typed(text), type(typed(text))) == (value, type(value))


def test_params_stand_at_the_top_of_the_config_and_once_more_nested_where_asked():
    run = make("x", params={"optimizer.lr": "0.1", "optimizer/name": "adam", "optimizer": "yes", "a..b": "1"})
    config = written(run, Options(nested="view")).config
    assert {name: value for name, value in config.items() if name != KEY} == {
        "optimizer.lr": 0.1,
        "optimizer/name": "adam",
        "optimizer": "yes",
        "a..b": 1,
        "view": {"optimizer": "yes", "optimizer.lr": 0.1, "optimizer/name": "adam", "a..b": 1},
    }
    plain = make("x", params={"optimizer.lr": "0.1", "optimizer/name": "adam"})
    assert written(plain, Options(nested="view")).config["view"] == {"optimizer": {"lr": 0.1, "name": "adam"}}


def test_a_nested_view_that_has_a_params_name_is_told_and_left_out():
    given_ = make("x", params={"view": "1", "a.b": "2"})
    found = outgoing(given_, HOME, Options(nested="view"), Facts(), Goods(), None)
    assert found.run.config["view"] == 1
    assert [loss.what for loss in found.losses] == ["view 'view'"]


def test_a_nested_view_makes_provenance_no_longer_but_for_its_name():
    run = make("x", params={f"group.{n}": f"p{n}" for n in range(50)} | {"view.group.1": "own", "." * 500: "deep"})
    plain, viewed = (written(run, Options(nested=name)) for name in ("", "view"))
    assert viewed.config[KEY] == plain.config[KEY] | {"view": "view"}
    assert viewed.config["view"]["group"]["7"] == "p7"
    assert_equal(read(through_a_server(viewed)), run)


def test_tags_become_labels_that_fit_and_what_wandb_has_a_place_for_goes_there():
    tags = {
        "mlflow.note.content": "a note",
        "mlflow.source.name": "train.py",
        "mlflow.source.git.commit": "abc",
        "mlflow.source.git.repoURL": "https://example.com/x.git",
        "team": "red",
        "long": "x" * 80,
        "kind": "sweep",
    }
    run = written(make("x", tags=tags), Options(job_type="kind", labels="t*"))
    assert (run.notes, run.program, run.git_commit) == ("a note", "train.py", "abc")
    assert (run.git_remote, run.job_type, run.tags) == ("https://example.com/x.git", "sweep", ("team=red",))
    assert written(make("x", tags=tags), Options(labels="")).tags == ()
    assert written(make("x", tags=tags)).tags == ("team=red", "kind=sweep")


def test_a_child_is_in_the_group_of_its_parent_and_a_tag_may_say_otherwise():
    parent = make("parent")
    child = make("child", tags={PARENT_TAG: parent.id, "study": "s1"})
    assert written(child).group == parent.id
    assert written(child, Options(group="study")).group == "s1"
    assert written(parent).group == ""
    shared = replace(HOME, shared=True)
    assert outgoing(parent, shared, Options(), Facts(), Goods(), None).run.group == "vision/eager"


@pytest.mark.parametrize(
    ("status", "state", "code", "labels"),
    [
        ("FINISHED", "finished", 0, ()),
        ("FAILED", "failed", 1, ()),
        ("KILLED", "failed", 1, ("killed",)),
        ("RUNNING", "running", None, ()),
        ("SCHEDULED", "pending", None, ()),
    ],
)
def test_a_status_becomes_the_state_that_wandb_has_for_it(status, state, code, labels):
    run = written(make("x", status=status))
    assert (run.state, run.exit_code, run.tags) == (state, code, labels)


def test_a_run_has_its_own_start_and_duration_and_the_latest_values_as_its_summary():
    run = make("x", start=1_600_000_000_000, end=1_600_000_090_500)
    facts = Facts(rows=7, latest={"loss": 0.5, "acc": math.nan, "system/cpu": 1.0}, last=1_600_000_080.0)
    found = written(run, facts=facts)
    assert (found.started, found.ended, found.runtime) == (1_600_000_000_000, 1_600_000_090_500, 90.5)
    assert math.isnan(found.summary["acc"])
    assert {name: value for name, value in found.summary.items() if name != "acc"} == {
        "loss": 0.5, "_step": 6, "_timestamp": 1_600_000_080.0, "_runtime": 80.0, "_wandb": {"runtime": 90},
    }  # fmt: skip
    assert found.internal["e"]["mlmigrate"]["startedAt"] == "2020-09-13T12:26:40.000000Z"


def test_the_step_of_each_metric_is_the_runs_own_and_is_told_of_each_by_its_name():
    found = written(make("x"), facts=Facts(rows=1, keys=frozenset(["loss", "_step", "system/cpu"])))
    (step, *hidden, first, second) = found.internal["m"]
    assert (step, first, second) == (
        {"1": STEP, "6": [3]},
        {"1": "loss", "5": 1},
        {"1": "mlflow/key/_step", "5": 1},
    )
    assert {one["1"] for one in hidden} == {*OWN_COLUMNS} - {STEP}
    assert {"glob_name": "*", "step_metric": STEP, "options": {"defined": True}} in found.metrics
    assert written(make("x")).metrics == ()


def test_a_glob_is_told_by_the_names_it_means_as_the_sdk_tells_it():
    val = {"glob_name": "val/*", "step_metric": "epoch", "summary": {"min": True}, "options": {"defined": True}}
    given_ = [{"name": "val/own"}, val, {"glob_name": "*"}]
    assert expanded(given_, ["val/loss", "val/own", "loss", "_timestamp"]) == [
        {"name": "val/own"},
        {"glob_name": "", "name": "loss", "options": {}},
        {**val, "glob_name": "", "name": "val/loss", "options": {}},
        {"name": "epoch"},
    ]


def test_definitions_of_metrics_are_told_by_the_numbers_of_their_fields():
    given_ = [{"name": "val/*"}, {"name": "loss", "step_metric": "epoch", "summary": {"min": True, "last": True}}]
    assert encoded(given_) == [{"1": "val/*"}, {"1": "loss", "4": "epoch", "7": [1, 5]}]


def test_the_config_of_a_run_that_was_wandbs_is_its_own_again():
    params = {
        "optimizer.name": "adam", "optimizer.lr": "0.1", "optimizer.betas": "[0.9, 1.0]",
        "epochs": "3", "amp": "True", "none": "None",
    }  # fmt: skip
    run = make("x", params=params)
    found = written(run, native=NATIVE)
    assert {name: value for name, value in found.config.items() if name != KEY} == NATIVE.config
    assert_equal(read(through_a_server(found)), run)


def test_params_that_changed_on_the_way_are_changed_in_the_config_too():
    params = {"optimizer.name": "sgd", "optimizer.betas": "[0.9, 1.0]", "epochs": "3", "amp": "True", "new": "1"}
    run = make("x", params=params)
    found = written(run, native=NATIVE)
    assert {name: value for name, value in found.config.items() if name != KEY} == {
        "optimizer": {"betas": [0.9, 1.0]}, "optimizer.name": "sgd", "epochs": 3, "amp": True, "new": 1,
    }  # fmt: skip
    assert_equal(read(through_a_server(found)), run)


def test_numbers_of_a_summary_whose_points_are_not_there_are_left_out_however_deep():
    summary = {
        "loss": 0.5, "gone": 1, "spelt": "NaN", "huge": 10**400, "_step": 3, "_own": 2,
        "val": {"f1": 0.5, "gone": 2.5, "on": True, "note": "x", "image": {"_type": "image-file", "size": 1}},
    }  # fmt: skip
    native = replace(NATIVE, summary=summary)
    found = written(make("x"), native=native, facts=Facts(native=True, keys=frozenset(["loss", "val.f1"])))
    assert found.summary == {
        "loss": 0.5, "huge": 10**400, "_step": 3,
        "val": {"f1": 0.5, "on": True, "note": "x", "image": {"_type": "image-file", "size": 1}},
    }  # fmt: skip


def test_what_wandb_told_beside_config_goes_where_it_was():
    tags = {"wandb.tags": '["a", "b c"]', "wandb.group": "g", "wandb.job_type": "train", "wandb.host": "h", "own": "x"}
    found = written(make("x", tags=tags), native=NATIVE, facts=Facts(native=True, keys=frozenset(["loss"])))
    assert (found.tags, found.group, found.job_type, found.host) == (("a", "b c", "own=x"), "g", "train", "h")
    assert found.summary == {"loss": 0.5, "verdict": "good", "_step": 3}  # "best" was left behind on the way


def test_a_config_of_more_than_10_megabytes_is_refused_with_what_to_do():
    run = make("x", params={f"p{n}": "y" * 500_000 for n in range(21)})
    with pytest.raises(MigrateError, match=r"config of run .* would have .* bytes") as error:
        written(run)
    assert "[keys]" in error.value.hint


def test_times_beyond_all_calendars_are_carried_and_not_shown():
    run = make("x", start=2**62, end=2**62 + 1)
    found = written(run)
    assert (found.started, found.ended, found.runtime) == (None, None, 0.001)
    assert "startedAt" not in found.metadata
    assert_equal(read(found), run)


def test_runs_of_experiments_say_which():
    assert EXPERIMENTS
    told = restored.provenance_of(written(replace(make("x"), experiment="1")))
    assert told is not None
    assert (told.experiment, told.experiment_id) == ("vision/eager", "1")


def test_a_datetime_is_told_as_people_write_it():
    assert (
        written(make("x", params={"when": datetime(2020, 1, 2, tzinfo=UTC)})).config["when"]
        == "2020-01-02T00:00:00+00:00"
    )
