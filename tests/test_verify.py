"""What verify says of two places."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mlmigrate.adapters.base import Limits
from mlmigrate.adapters.memory import Held, Memory, install
from mlmigrate.address import Address
from mlmigrate.events import Silent
from mlmigrate.model import POINTS, Record, Run
from mlmigrate.survey import Job
from mlmigrate.testing.conformance import copy
from mlmigrate.testing.samples import hard_samples, place_of, samples
from mlmigrate.verify import Verdict, verify


@pytest.fixture
def source() -> Memory:
    return place_of([*samples(), *hard_samples()])


@pytest.fixture
def target(source: Memory, tmp_path: Path) -> Memory:
    target = Memory()
    copy(source, install("verified", target), tmp_path / "ledger.sqlite")
    return target


def verdict(source: Memory, target: Memory, **how: bool) -> Verdict:
    return verify(Job(install(uuid.uuid4().hex, source), install(uuid.uuid4().hex, target)), Silent(), **how)


def found(source: Memory, target: Memory, **how: bool) -> list[tuple[str, str]]:
    return [(finding.mark, finding.what) for finding in verdict(source, target, **how).findings]


def change(target: Memory, name: str, by: Callable[[Held], Held]) -> None:
    origin = next(origin for origin, held in target.held.items() if held.run.name == name)
    target.held[origin] = by(target.held[origin])


def value_changed(held: Held, row: int, value: float) -> Held:
    values = held.points["value"].to_pylist()
    values[row] = value
    return replace(held, points=held.points.set_column(6, "value", pa.array(values)))


def test_equal_places_have_no_findings(source: Memory, target: Memory) -> None:
    said = verdict(source, target)
    assert said.findings == ()
    assert (said.equal, said.runs) == (len(source.held), len(source.held))
    assert said.points == sum(len(held.points) for held in source.held.values())


def test_one_point_of_100_000_is_found(source: Memory, target: Memory) -> None:
    change(target, "many points", lambda held: value_changed(held, 77_777, 0.123))
    assert found(source, target) == [("*", "many points: metric loss")]


def test_a_point_too_few_is_found(source: Memory, target: Memory) -> None:
    change(target, "repeats", lambda held: replace(held, points=held.points.slice(1)))
    assert found(source, target) == [("*", "repeats: metric loss")]


def test_swapped_keys_are_found(source: Memory, target: Memory) -> None:
    def swapped(held: Held) -> Held:
        keys = pc.if_else(pc.equal(held.points["key"].cast(pa.utf8()), "Loss"), "loss", "Loss")
        return replace(
            held, points=held.points.set_column(1, POINTS.field("key"), keys.combine_chunks().dictionary_encode())
        )

    change(target, "repeats", swapped)
    assert found(source, target) == [("*", "repeats: metric Loss"), ("*", "repeats: metric loss")]


def test_order_is_no_difference(source: Memory, target: Memory) -> None:
    change(target, "repeats", lambda held: replace(held, points=held.points.take([3, 1, 2, 0, 5, 4])))
    assert found(source, target) == []


@pytest.mark.parametrize(
    ("field", "value"), [("status", "KILLED"), ("start", 1), ("end", None), ("user", "bob"), ("deleted", True)]
)
def test_each_field_is_compared(source: Memory, target: Memory, field: str, value: object) -> None:
    change(target, "files", lambda held: replace(held, run=replace(held.run, **{field: value})))
    assert found(source, target) == [("*", f"files: {field}")]


def test_params_tags_and_inputs_are_compared(source: Memory, target: Memory) -> None:
    change(
        target,
        "texts",
        lambda held: replace(held, run=replace(held.run, params={**held.run.params, "quote": ""}, tags={})),
    )
    change(target, "inputs", lambda held: replace(held, run=replace(held.run, inputs=held.run.inputs[:1])))
    names = {what for _, what in found(source, target)}
    assert {"texts: param quote", "texts: tag empty", "texts: tag json", "inputs: inputs"} <= names


def test_one_byte_of_an_artifact_is_found_unless_quick(source: Memory, target: Memory) -> None:
    def flipped(held: Held) -> Held:
        path = (held.run.id, "model/weights.bin")
        data = bytearray(held.artifacts[path])
        data[1000] ^= 1
        return replace(held, artifacts={**held.artifacts, path: bytes(data)})

    change(target, "files", flipped)
    assert found(source, target) == [("*", "files: artifact model/weights.bin")]
    assert found(source, target, quick=True) == []


def test_a_missing_run_and_a_missing_experiment_are_found(source: Memory, target: Memory) -> None:
    change(target, "files", lambda held: replace(held, run=replace(held.run, id="other")))
    del target.held[next(origin for origin, held in target.held.items() if held.run.name == "texts")]
    marks = sorted(verdict(source, target).findings, key=lambda finding: finding.mark)
    assert [(one.mark, one.what) for one in marks if one.mark == "+"] == [("+", "texts: not there")]


def test_known_losses_are_findings_only_when_strict(source: Memory, tmp_path: Path) -> None:
    target = Memory(Limits(infinities=False, param_length=6000, tag_length=8000, distinct_points=True))
    copy(source, Address("memory", install("limited", target).place), tmp_path / "ledger.sqlite")
    assert found(source, target) == []
    assert {what for _, what in found(source, target, strict=True)} != set()
    assert len(verdict(source, target).losses) == 3


def with_records(bodies: list[str]) -> Memory:
    place = place_of(samples())
    run = Run("@spans", "", origin="mlflow:@spans:x", stamp="s")
    records = tuple(Record("mlflow.sql.spans", f"spans/{n}", "", body) for n, body in enumerate(bodies))
    place.held[run.origin] = Held(run, records=records)
    return place


def test_records_are_equal_whatever_their_order_and_with_more_fields_there() -> None:
    here = with_records(['{"id": 1, "x": null}', '{"id": 2, "x": "a"}'])
    there = with_records(['{"new": 0, "x": "a", "id": 2}', '{"x": null, "id": 1, "new": 0}'])
    assert found(here, there) == []
    assert verdict(here, there).records == {"mlflow.sql.spans": 2}


def test_a_record_that_is_another_or_is_not_there_is_found() -> None:
    here = with_records(['{"id": 1}', '{"id": 1}', '{"id": 2}'])
    assert found(here, with_records(['{"id": 1}', '{"id": 3}'])) == [
        ("*", "mlflow.sql.spans spans/1"),
        ("*", "mlflow.sql.spans spans/2"),
    ]
