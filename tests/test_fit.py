"""What fit makes of runs and points that a target cannot hold as they are."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmigrate.adapters.base import Change, Holding, Limits
from mlmigrate.fit import LARGEST, fit_experiment, fit_points, fit_record, fit_run
from mlmigrate.model import Experiment, Record, Run, points

STRICT = Limits(
    key_chars=r"/\w.\- ",
    key_length=40,
    key_paths=True,
    param_length=10,
    tag_length=20,
    name_length=10,
    user_length=4,
    experiment_tag_length=5,
    experiment_name_length=8,
    infinities=False,
    distinct_points=True,
    nulls=False,
    negative_times=False,
    micros=False,
    point_links=False,
    types=False,
    inputs=False,
    experiment_times=False,
    deleted_times=False,
    system=False,
    records=(),
    blank_names=False,
    blank_starts=False,
)


def run(**fields: object) -> Run:
    return Run("r1", "1", **{"name": "n", "tags": {"mlflow.runName": "n"}} | fields)


def test_what_fits_stays_as_it_is() -> None:
    given_run = run(params={"a": "1"}, start=1, end=2)
    fitted = fit_run(given_run, STRICT)
    assert (fitted.run, fitted.losses, fitted.overflow) == (given_run, (), ())


def test_a_long_param_is_cut_and_kept_whole_as_an_artifact() -> None:
    fitted = fit_run(run(params={"prompt/a": "é" * 11}, start=1), STRICT)
    assert fitted.run.params == {"prompt/a": "é" * 10}
    (whole,) = fitted.overflow
    with whole.open() as stream:
        assert stream.read().decode() == "é" * 11
    assert whole.path.startswith("mlmigrate/params/prompt_a_")
    assert fitted.losses[0].because == f"cut from 11 to 10 characters; whole text kept as artifact {whole.path}"


def test_a_long_name_and_a_long_user_are_cut_and_kept_whole_as_artifacts() -> None:
    fitted = fit_run(run(name="n" * 11, user="somebody", start=1), STRICT)
    assert (fitted.run.name, fitted.run.user, fitted.run.tags) == ("n" * 10, "some", {"mlflow.runName": "n" * 10})
    kept = {}
    for whole in fitted.overflow:
        with whole.open() as stream:
            kept[whole.path] = stream.read().decode()
    assert kept == {"mlmigrate/fields/name.txt": "n" * 11, "mlmigrate/fields/user.txt": "somebody"}
    assert [loss.what for loss in fitted.losses] == ["field 'name'", "field 'user'", "tag 'mlflow.runName'"]


def test_typed_params_become_text_and_that_is_said_where_the_text_does_not_say_all() -> None:
    params = {
        "i": 2**70,
        "b": True,
        "f": 0.1,
        "t": datetime(2026, 1, 2, tzinfo=UTC),
        "s": frozenset({"b", "a", "\ud800"}),
        "n": None,
    }
    fitted = fit_run(run(params=params), Limits(types=False))
    assert fitted.run.params == {
        "i": "1180591620717411303424",
        "b": "True",
        "f": "0.1",
        "t": "2026-01-02T00:00:00+00:00",
        "s": '["a","b","\ud800"]',
        "n": "None",
    }
    assert {loss.what for loss in fitted.losses} == {"param 't'", "param 's'", "param 'n'"}


def test_a_run_without_a_name_gets_its_id_where_names_are_needed() -> None:
    fitted = fit_run(run(name="", tags={"mlflow.runName": "else"}, start=1), STRICT)
    assert (fitted.run.name, fitted.run.tags) == ("r1", {"mlflow.runName": "r1"})
    assert [loss.what for loss in fitted.losses] == ["name ''", "tag 'mlflow.runName'"]


def test_a_run_without_a_start_gets_one_where_starts_are_needed() -> None:
    fitted = fit_run(run(), STRICT)
    assert (fitted.run.start, [loss.what for loss in fitted.losses]) == (0, ["start"])
    assert fit_run(run(), Limits()).run.start is None


def test_fields_without_a_place_are_losses() -> None:
    record = Record("mlflow.file.model_output", "m-1", "r1", "{}")
    fitted = fit_run(run(start=1, deleted_at=5, system={"source_name": "x.py"}, records=(record,)), STRICT)
    assert (fitted.run.deleted_at, fitted.run.system, fitted.run.records) == (None, {}, ())
    assert [loss.what for loss in fitted.losses] == [
        "mlflow.file.model_output 'm-1'",
        "time of deletion",
        "field source_name ('x.py')",
    ]


def test_an_experiment_is_fitted() -> None:
    fitted, losses = fit_experiment(Experiment("1", "a long name", {"k": "1234567"}, created=1, updated=2), STRICT)
    assert fitted == Experiment("1", "a long n", {"k": "12345"})
    assert [loss.what for loss in losses] == ["name 'a long name'", "tag 'k'", "experiment 'a long name'"]


def test_records_without_a_place_are_losses() -> None:
    record = Record("mlflow.sql.spans", "s", "", "{}")
    assert fit_record(record, Limits()).record == record
    assert fit_record(record, Limits(records=("mlflow.sql.",))).record == record
    lost = fit_record(record, STRICT)
    assert lost.record is None
    assert lost.changed == {("mlflow.sql.spans 's'", "the target has no place for it"): 1}


TREE = '{"webhooks":[{"webhook_id":"w","status":"ACTIVE","times":5}],"webhook_events":[{"entity":"a"},{"entity":"b"}]}'


def test_a_record_made_of_rows_is_changed_as_the_target_declares_and_each_change_is_counted() -> None:
    changes = (
        Change("webhooks.status", "is never enabled", becomes="DISABLED", unless=("DISABLED",)),
        Change("webhooks.times", "has no place"),
        Change("webhook_events", "are not known there"),
    )
    limits = Limits(records=(), holdings=(Holding("mlflow.webhook", changes=changes),))
    fitted = fit_record(Record("mlflow.webhook", "w", "", TREE), limits)
    assert fitted.record is not None
    assert msgspec.json.decode(fitted.record.body) == {"webhooks": [{"webhook_id": "w", "status": "DISABLED"}]}
    assert fitted.changed == {
        ("values of webhooks.status", "is never enabled"): 1,
        ("values of webhooks.times", "has no place"): 1,
        ("rows of webhook_events", "are not known there"): 2,
    }
    assert fit_record(fitted.record, limits).changed == {}


def test_what_a_target_makes_again_by_itself_is_left_out_and_is_no_loss() -> None:
    change = Change("webhooks.times", "the server counts", lost=False)
    fitted = fit_record(
        Record("mlflow.webhook", "w", "", TREE), Limits(holdings=(Holding("mlflow.webhook", changes=(change,)),))
    )
    assert fitted.changed == {}
    assert fitted.record is not None
    assert "times" not in fitted.record.body


def test_text_of_a_record_that_is_too_long_for_its_column_is_cut() -> None:
    limits = Limits(column_lengths=(("webhooks.status", 3),))
    fitted = fit_record(Record("mlflow.webhook", "w", "", TREE), limits)
    assert fitted.record is not None
    assert msgspec.json.decode(fitted.record.body)["webhooks"][0]["status"] == "ACT"
    assert fitted.changed == {("values of webhooks.status", "cut to 3 characters"): 1}


def test_a_record_with_a_value_that_the_target_refuses_is_lost_and_others_of_its_kind_are_not() -> None:
    disabled = Change("webhooks.status", "disabled ones are not shown there", only=("DISABLED",))
    limits = Limits(holdings=(Holding("mlflow.webhook", refuses=(disabled,)),))
    assert fit_record(Record("mlflow.webhook", "w", "", TREE), limits).record is not None
    lost = fit_record(Record("mlflow.webhook", "w", "", TREE.replace("ACTIVE", "DISABLED")), limits)
    assert (lost.record, lost.changed) == (None, {("mlflow.webhook 'w'", "disabled ones are not shown there"): 1})


def test_a_kind_that_a_target_has_no_place_for_is_lost_for_the_reason_that_it_gives() -> None:
    limits = Limits(holdings=(Holding("mlflow.trace", "lost", "MLflow 2.9 knows no traces"),))
    lost = fit_record(Record("mlflow.trace", "tr-1", "", "{}"), limits)
    assert lost.record is None
    assert lost.changed == {("mlflow.trace 'tr-1'", "MLflow 2.9 knows no traces"): 1}


@pytest.mark.parametrize("key", ["val loss (%)", "a//b", "../x", "/a", "a/", "x" * 41, "a=b", ".", "ü\n"])
def test_a_refused_key_is_renamed_to_one_that_fits(key: str) -> None:
    renamed = STRICT.key(key)
    assert renamed != key
    assert STRICT.key(renamed) == renamed


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_keys_never_become_one(a: str, b: str) -> None:
    assert a == b or STRICT.key(a) != STRICT.key(b)


@given(st.text(min_size=1))
def test_what_was_fitted_fits(key: str) -> None:
    once = STRICT.key(key)
    assert STRICT.key(once) == once


def fitted_points(limits: Limits, **columns: list[object]) -> tuple[dict[str, list[object]], list[str]]:
    fitting = fit_points(limits, {"r1": 77})
    rows = len(columns["value"])
    batch = points({"run": ["r1"] * rows, "key": ["k"] * rows} | columns)
    fitted = fitting.fit(batch).to_pydict()
    return fitted, [loss.because for loss in fitting.losses({"r1": "1"})]


def test_infinities_become_the_largest_numbers() -> None:
    fitted, losses = fitted_points(STRICT, value=[math.inf, -math.inf, 1.0], step=[1, 2, 3], timestamp=[1, 2, 3])
    assert fitted["value"] == [LARGEST, -LARGEST, 1.0]
    assert losses == ["2 infinite points became +-1.7976931348623157e+308"]


def test_nan_stays_and_is_no_loss() -> None:
    fitted, losses = fitted_points(STRICT, value=[math.nan], step=[1], timestamp=[1])
    assert math.isnan(fitted["value"][0])
    assert losses == []


def test_points_without_step_or_time_get_them() -> None:
    fitted, losses = fitted_points(STRICT, value=[1.0, 2.0, 3.0], step=[None, 5, 6], timestamp=[None, None, -4])
    assert (fitted["step"], fitted["timestamp"]) == ([0, 5, 6], [77, 77, 0])
    assert losses == [
        "1 points without a step have step 0",
        "2 points without a time have that of the run's start",
        "1 points with a time before 1970 have time 0",
    ]


def test_parts_and_links_are_dropped_and_counted() -> None:
    columns = {"step": [1, 2], "timestamp": [1, 2], "step_micro": [None, 500_000], "timestamp_micro": [0, 3]}
    fitted, losses = fitted_points(
        STRICT, value=[1.0, 2.0], **columns, dataset_name=["d", None], dataset_digest=["x", None], model=[None, "m"]
    )
    dropped = ("step_micro", "timestamp_micro", "dataset_name", "dataset_digest", "model")
    assert all(fitted[name] == [None, None] for name in dropped)
    assert losses == [
        "1 points are rounded down: step_micro is dropped",
        "1 points are rounded down: timestamp_micro is dropped",
        "1 points lose their link to a dataset",
        "1 points lose their link to a model",
    ]


def test_refused_metric_keys_are_renamed_like_any_other() -> None:
    fitted, losses = fitted_points(STRICT, value=[1.0, 2.0], key=["loss%", "ok"], step=[1, 2], timestamp=[1, 2])
    assert fitted["key"] == [STRICT.key("loss%"), "ok"]
    assert len(losses) == 1


def test_a_target_without_limits_takes_points_as_they_are() -> None:
    columns = {"value": [math.inf, 1.0], "step": [None, 1], "timestamp": [None, -1], "model": ["m", None]}
    fitted, losses = fitted_points(Limits(), **columns)
    assert {name: fitted[name] for name in columns} == columns
    assert losses == []
