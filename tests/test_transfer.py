"""The loop, where the adapters' suites do not reach."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from mlmigrate import demo, ledger, mapping
from mlmigrate.adapters.base import Limits, Packing
from mlmigrate.adapters.memory import Held, Memory, install
from mlmigrate.address import parse
from mlmigrate.errors import DiskFull, Unavailable
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.model import RunRef
from mlmigrate.pack import pack_of, packs
from mlmigrate.plan import plan
from mlmigrate.selection import Selection
from mlmigrate.survey import Job
from mlmigrate.testing.conformance import copy
from mlmigrate.testing.faults import Fault
from mlmigrate.testing.samples import hard_samples, place_of, samples
from mlmigrate.transfer import Report, transfer


@pytest.fixture
def source() -> Memory:
    return place_of([*samples(), *hard_samples()])


def carried(source: Memory, target: Memory, tmp_path: Path, **fields: object) -> Report:
    job = Job(install(uuid.uuid4().hex, source), install(uuid.uuid4().hex, target), **fields)
    held = Ledger.open(tmp_path / f"{uuid.uuid4().hex}.sqlite", job.source, job.target)
    try:
        return transfer(job, held, Silent())
    finally:
        held.close()


def names(target: Memory) -> set[str]:
    return {held.run.name for held in target.held.values()}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(experiments=("gone",)), {"of a deleted experiment"}),
        (Selection(runs=("fil*", "fai*")), {"failed", "files"}),
        (Selection(statuses=("RUNNING", "KILLED")), {"running", "killed"}),
        (Selection(experiments=("*",), runs=("deleted",), deleted=False), set()),
        (Selection(until=1_600_000_000_000), {"killed"}),
    ],
)
def test_only_what_is_asked_for_is_carried(
    source: Memory, tmp_path: Path, selection: Selection, expected: set[str]
) -> None:
    target = Memory()
    report = carried(source, target, tmp_path, selection=selection)
    assert (names(target), report.copied) == (expected, len(expected))


def test_only_the_parts_asked_for_are_carried_and_later_the_rest(source: Memory, tmp_path: Path) -> None:
    target = Memory()
    carried(source, target, tmp_path, selection=Selection(parts=frozenset({"params"})))
    held = {one.run.name: one for one in target.held.values()}
    assert held["texts"].run.params != {}
    assert (held["texts"].run.tags, len(held["values"].points), held["files"].artifacts) == ({}, 0, {})
    report = carried(source, target, tmp_path)
    assert report.copied == len(source.held)
    assert {one.run.name: one for one in target.held.values()}["files"].artifacts != {}


def test_larger_artifacts_are_left_behind_and_that_is_said(source: Memory, tmp_path: Path) -> None:
    target = Memory()
    report = carried(source, target, tmp_path, selection=Selection(runs=("files",), max_artifact_size=1000))
    (held,) = target.held.values()
    assert sorted(path for _, path in held.artifacts) == [
        "empty.txt",
        "model/conda.yaml",
        "with space/ünïcode 模型.txt",
    ]
    assert [loss.what for loss in report.losses] == ["artifact 'model/weights.bin'"]


def test_a_plan_says_what_the_copy_then_loses(source: Memory, tmp_path: Path) -> None:
    limits = Limits(infinities=False, param_length=6000, tag_length=8000, deleted_times=False)
    target = Memory(limits)
    job = Job(install(uuid.uuid4().hex, source), install(uuid.uuid4().hex, target))
    planned = plan(job, Silent())
    assert target.held == {}
    report = carried(source, target, tmp_path)
    assert sorted(map(repr, (replace(loss, experiment="") for loss in planned.losses))) == sorted(
        map(repr, (replace(loss, experiment="") for loss in report.losses))
    )
    assert sum(line.runs for line in planned.lines) == report.copied
    assert sum(line.points for line in planned.lines) == report.points
    assert sum(line.artifacts for line in planned.lines) == report.artifacts


def test_a_place_that_is_gone_ends_the_copy(source: Memory, tmp_path: Path) -> None:
    class Gone(Memory):
        def pack(self, *args: object) -> object:
            raise Unavailable("gone", after=0.0)

    with pytest.raises(Unavailable):
        carried(source, Gone(packing=Packing(runs=1)), tmp_path, tries=1)


def test_a_full_disk_ends_the_copy_and_the_next_goes_on(source: Memory, tmp_path: Path) -> None:
    target = install(uuid.uuid4().hex, Memory(packing=Packing(runs=2)))
    with pytest.raises(DiskFull):
        copy(source, target, tmp_path / "ledger", Fault(12, DiskFull("full")))
    report = copy(source, target, tmp_path / "ledger")
    assert report.failed == ()
    assert report.copied + report.already == len(source.held)


def test_an_error_nobody_explained_rises_after_the_others_are_carried(source: Memory, tmp_path: Path) -> None:
    class Buggy(Memory):
        def arrive(self, arrivals: dict[str, Held]) -> None:
            if any(held.run.name == "files" for held in arrivals.values()):
                raise ZeroDivisionError("a bug")
            super().arrive(arrivals)

    target = Buggy()
    with pytest.raises(ZeroDivisionError):
        carried(source, target, tmp_path)
    assert names(target) == names(source) - {"files"}


def refs(*points: int, kind: str = "run") -> list[RunRef]:
    return [RunRef("1", str(n), origin=f"x:{n}", points=size, kind=kind) for n, size in enumerate(points)]


def test_packs_keep_their_bounds_and_whole_runs() -> None:
    sizes = [
        [ref.points for ref in pack.refs] for pack in packs(refs(5, 5, 20, 1, 1, 1, 9), Packing(runs=3, points=10))
    ]
    assert sizes == [[5, 5], [20], [1, 1, 1], [9]]


def test_records_are_packs_of_their_own() -> None:
    made = list(packs([*refs(1, 1), *refs(1, 1, kind="records")], Packing()))
    assert [len(pack.refs) for pack in made] == [2, 1, 1]


def test_a_pack_of_the_same_runs_in_the_same_state_has_the_same_id() -> None:
    assert pack_of(refs(1, 2)).id == pack_of(refs(3, 4)).id
    assert pack_of(refs(1, 2)).id != pack_of([replace(ref, stamp="new") for ref in refs(1, 2)]).id


def test_a_second_copy_with_a_mapping_does_nothing_either(tmp_path: Path) -> None:
    demo.make(tmp_path)
    rules = tmp_path / "rules.toml"
    rules.write_text('[tags]\norigin = "old"\n')
    job = Job(parse(f"mlflow:{tmp_path / 'mlruns'}"), parse(str(tmp_path / "archive")), mapping=mapping.load([rules]))
    reports = []
    for number in range(2):
        held = Ledger.open(tmp_path / f"{number}.ledger", job.source, job.target)
        reports.append(transfer(job, held, Silent()))
        held.close()
    assert [report.copied for report in reports] == [12, 0]


def test_a_run_that_is_gone_when_it_is_read_failed(source: Memory, tmp_path: Path) -> None:
    class Forgetful(Memory):
        def read(self, refs: list[RunRef]) -> object:
            return super().read([ref for ref in refs if ref.name != "files"])

    forgetful = Forgetful()
    forgetful.held, forgetful._experiments = source.held, source._experiments
    job = Job(install("forgetful", forgetful), install("remembering", Memory()))
    held = Ledger.open(tmp_path / "ledger", job.source, job.target)
    report = transfer(job, held, Silent())
    held.close()
    assert [failure.name for failure in report.failed] == ["files"]
    assert [failure.name for failure in ledger.failures(tmp_path / "ledger")] == ["files"]
    assert report.copied == len(source.held) - 1
