"""What every target must do: join with a dozen lines, and pass before being merged.

    class TestArchive(TargetTests):
        @pytest.fixture
        def new_target(self, tmp_path):
            numbers = itertools.count()
            return lambda: parse(str(tmp_path / f"archive{next(numbers)}"))

`new_target()` gives the address of a place without our runs.  It may be the same server each time:
every test's runs have ids and experiments of their own.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Limits, Target
from mlmigrate.adapters.memory import Held, Memory, install
from mlmigrate.address import Address
from mlmigrate.errors import BadData, Stopped, Unavailable
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.mapping import Mapping as Rules
from mlmigrate.model import OURS, PARENT_TAG, POINTS, Artifact, Run
from mlmigrate.pack import Contents, Recipe
from mlmigrate.selection import Selection
from mlmigrate.survey import Job
from mlmigrate.testing.faults import Fault, Faulty
from mlmigrate.testing.samples import EXPERIMENTS, hard_samples, make, place_of, samples
from mlmigrate.transfer import Report, transfer

NewTarget = Callable[[], Address]


@dataclass(frozen=True)
class Seen:
    """A run as it was read again: by value, whatever its ids."""

    experiment: str
    fields: Mapping[str, Any]
    points: tuple[tuple[Any, ...], ...]
    artifacts: Mapping[str, str]


def copy(source: Memory, target: Address, ledger: Path, fault: Fault | None = None, tries: int = 3) -> Report:
    """One run of the command, with one failure."""
    job = Job(install(uuid.uuid4().hex, source), target, tries=tries)
    held = Ledger.open(ledger, Address("memory", "samples"), target)
    try:
        with _faulty(fault):
            return transfer(job, held, Silent(), workers=2)
    finally:
        held.close()


@contextmanager
def _faulty(fault: Fault | None) -> Iterator[None]:
    if fault is None:
        yield
        return
    opener = registry.open_target

    def open_faulty(address: Address, context: Context) -> Target:
        return Faulty(opener(address, context), fault)

    with mock.patch.object(registry, "open_target", open_faulty):
        yield


def _stopped(source: Memory, target: Address, ledger: Path, fault: Fault) -> bool:
    """Whether the command ended as a stopped one; it may be stopped before there is anything to report."""
    try:
        return copy(source, target, ledger, fault).stopped
    except Stopped:
        return True


def meant(place: Memory, limits: Limits) -> dict[str, Seen]:
    """What a target of these limits shall hold, by origin."""
    return _seen(place, limits, {held.run.id: origin for origin, held in place.held.items()}, limits)


def reread(address: Address, origins: Sequence[str]) -> tuple[dict[str, Seen], list[str]]:
    """What is at `address`, by origin, of the runs asked for; and every origin found, in any number."""
    target = registry.open_target(address, Context("target"))
    source = registry.open_source(address, Context("target"))
    try:
        arrived = {arrival.id: origin for origin, arrival in target.arrived().items()}
        wanted = {id_: origin for id_, origin in arrived.items() if origin in set(origins)}
        return _seen(source, Limits(), wanted, target.limits), [arrived.get(ref.id, "") for ref in source.refs()]
    finally:
        source.close()
        target.close()


def _seen(source: Any, limits: Limits, origins: Mapping[str, str], target: Limits) -> dict[str, Seen]:
    names = {one.id: one.name for one in source.experiments()}
    refs = [ref for ref in source.refs() if ref.id in origins]
    with source.read(refs) as reading:
        contents = Contents(reading, Recipe(Selection(), Rules(), limits))
        batches = list(contents.points())
        files = [(one.owner, one.path, _digest(one)) for one in contents.artifacts()]
        runs = contents.runs
    rows: dict[str, list[tuple[Any, ...]]] = {run.id: [] for run in runs}
    for row in pa.Table.from_batches(batches, POINTS).to_pylist():
        rows[row.pop("run")].append(tuple(map(_comparable, row.values())))
    return {
        origins[run.id]: Seen(
            names[run.experiment],
            _fields(run, origins, target),
            tuple(sorted(rows[run.id], key=repr)),
            {path: digest for owner, path, digest in files if owner == run.id},
        )
        for run in runs
    }


def _fields(run: Run, origins: Mapping[str, str], limits: Limits) -> dict[str, Any]:
    tags = {name: value for name, value in run.tags.items() if not name.startswith(OURS)}
    if PARENT_TAG in tags:
        tags[PARENT_TAG] = origins.get(tags[PARENT_TAG], tags[PARENT_TAG])
    fields = {name: getattr(run, name) for name in ("name", "status", "start", "end", "user", "deleted")}
    fields |= {"params": dict(run.params), "tags": tags}
    fields["inputs"] = sorted(run.inputs, key=lambda given: given.name)
    if limits.deleted_times:
        fields["deleted_at"] = run.deleted_at
    return fields


def _comparable(value: Any) -> Any:
    """NaN equals nothing, itself included: compared by name."""
    return "NaN" if isinstance(value, float) and value != value else value  # noqa: PLR0124  NaN is not itself


def _digest(artifact: Artifact) -> str:
    with artifact.open() as stream:
        return hashlib.sha256(stream.read()).hexdigest()


class TargetTests:
    """The promises, each a test."""

    every_nth_call = 1  # a slow target may try every third call, say; it must say so

    @pytest.fixture
    def new_target(self) -> NewTarget:
        """Gives addresses of places without our runs."""
        raise NotImplementedError("give new_target, see the head of this module")

    @pytest.fixture
    def place(self) -> Memory:
        return place_of(samples(), " " + uuid.uuid4().hex[:8])

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Path:
        return tmp_path / "copy.ledger.sqlite"

    def test_what_is_copied_is_equal(self, new_target: NewTarget, place: Memory, ledger: Path) -> None:
        target = new_target()
        report = copy(place, target, ledger)
        assert (report.failed, report.copied, report.already) == ((), len(place.held), 0)
        self.assert_whole(place, target)

    def test_a_second_copy_does_nothing(self, new_target: NewTarget, place: Memory, ledger: Path) -> None:
        target = new_target()
        copy(place, target, ledger)
        report = copy(place, target, ledger)
        assert (report.failed, report.copied, report.already) == ((), 0, len(place.held))
        self.assert_whole(place, target)

    def test_a_lost_ledger_makes_no_duplicates(
        self, new_target: NewTarget, place: Memory, ledger: Path, tmp_path: Path
    ) -> None:
        target = new_target()
        copy(place, target, ledger)
        report = copy(place, target, tmp_path / "another.ledger.sqlite")
        assert report.copied == 0
        self.assert_whole(place, target)

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_stopped_at_any_call_it_is_taken_up_again(
        self, new_target: NewTarget, tmp_path: Path, *, after: bool
    ) -> None:
        for number in range(1, 1000, self.every_nth_call):
            place = place_of(samples(), f" {after} {number} {uuid.uuid4().hex[:4]}")
            target, fault = new_target(), Fault(number, Stopped(), after)
            stopped = _stopped(place, target, tmp_path / f"{number}.ledger.sqlite", fault)
            if not fault.happened:
                break
            assert stopped
            copy(place, target, tmp_path / f"{number}.ledger.sqlite")
            self.assert_whole(place, target)
        assert number > self.every_nth_call, "no call was ever stopped"

    def test_away_at_any_call_it_calls_again(self, new_target: NewTarget, tmp_path: Path) -> None:
        for number in range(1, 1000, self.every_nth_call):
            place = place_of(samples(), f" away {number} {uuid.uuid4().hex[:4]}")
            target, fault = new_target(), Fault(number, Unavailable("busy", after=0.0), after=number % 2 == 0)
            report = copy(place, target, tmp_path / f"{number}.ledger.sqlite", fault)
            assert report.failed == ()
            self.assert_whole(place, target)
            if not fault.happened:
                break
        assert number > self.every_nth_call, "no call was ever away"

    def test_a_copy_of_a_copy_is_equal(
        self, new_target: NewTarget, place: Memory, ledger: Path, tmp_path: Path
    ) -> None:
        first, second = new_target(), new_target()
        if first == second:
            pytest.skip("the adapter's tests give one place only")
        copy(place, first, ledger)
        job = Job(first, second)
        held = Ledger.open(tmp_path / "second.ledger.sqlite", first, second)
        report = transfer(job, held, Silent(), workers=2)
        held.close()
        assert report.failed == ()
        once, _ = reread(first, list(place.held))
        by_name = {
            (seen.experiment, seen.fields["name"]): replace(seen, fields=_without_parent(seen))
            for seen in once.values()
        }
        target = registry.open_target(second, Context("target"))
        twice, _ = reread(second, list(target.arrived()))
        target.close()
        for seen in twice.values():
            name = (seen.experiment, seen.fields["name"])
            if name in by_name:
                assert replace(seen, fields=_without_parent(seen)) == by_name.pop(name)
        assert by_name == {}

    def test_a_run_that_changed_is_taken_again(self, new_target: NewTarget, place: Memory, ledger: Path) -> None:
        target = new_target()
        copy(place, target, ledger)
        origin = next(origin for origin, held in place.held.items() if held.run.name == "running")
        held = place.held[origin]
        grown = replace(
            held.run, status="FINISHED", end=held.run.start, stamp="grown", tags={**held.run.tags, "new": "tag"}
        )
        place.held[origin] = replace(held, run=grown)
        report = copy(place, target, ledger)
        assert (report.copied, report.already) == (1, len(place.held) - 1)
        self.assert_whole(place, target)

    def test_one_bad_run_never_stops_the_others(self, new_target: NewTarget, place: Memory, ledger: Path) -> None:
        target = new_target()
        bad = _Torn(make("torn" + uuid.uuid4().hex), artifacts={("", "x"): b""})
        place.held[bad.run.origin] = bad
        report = copy(place, target, ledger)
        assert [failure.name for failure in report.failed] == [bad.run.name]
        assert report.copied == len(place.held) - 1
        del place.held[bad.run.origin]
        self.assert_whole(place, target)

    def test_what_the_target_cannot_hold_is_said(self, new_target: NewTarget, ledger: Path) -> None:
        target, place = new_target(), place_of(hard_samples(), " " + uuid.uuid4().hex[:8])
        report = copy(place, target, ledger)
        assert report.failed == ()
        limits = self.limits(target)
        lossy = {loss.run for loss in report.losses if loss.run}
        names = {held.run.id: held.run.name for held in place.held.values()}
        expected = set() if limits.infinities else {"infinite"}
        longest = max(len(str(value)) for held in place.held.values() for value in held.run.params.values())
        expected |= {"long values"} if limits.param_length is not None and limits.param_length < longest else set()
        assert {names[run] for run in lossy} == expected
        self.assert_whole(place, target)

    def test_experiments_without_runs_arrive(self, new_target: NewTarget, place: Memory, ledger: Path) -> None:
        target = new_target()
        copy(place, target, ledger)
        source = registry.open_source(target, Context("target"))
        there = {one.name: one for one in source.experiments()}
        source.close()
        for given in place.experiments():
            found = there[given.name]
            tags = {name: value for name, value in found.tags.items() if not name.startswith(OURS)}
            assert (tags, found.deleted) == (dict(given.tags), given.deleted)
        assert len(EXPERIMENTS) == len(place.experiments())

    def assert_whole(self, place: Memory, target: Address) -> None:
        """Every run is there once, and equal to what it was meant to be."""
        found, every = reread(target, list(place.held))
        expected = meant(place, self.limits(target))
        assert set(found) == set(expected)
        for origin, seen in expected.items():
            assert found[origin] == seen
        assert all(every.count(origin) == 1 for origin in expected)

    def limits(self, target: Address) -> Limits:
        """What the target says that it can hold."""
        opened = registry.open_target(target, Context("target"))
        try:
            return opened.limits
        finally:
            opened.close()


def _without_parent(seen: Seen) -> dict[str, Any]:
    """Fields without the parent: a copy of a copy names it by another origin."""
    tags = {name: value for name, value in seen.fields["tags"].items() if name != PARENT_TAG}
    return {**seen.fields, "tags": tags}


class _TornFiles(dict[tuple[str, str], bytes]):
    def items(self) -> Any:
        raise BadData("the file is torn")


class _Torn(Held):
    """A run whose artifacts cannot be read."""

    def __init__(self, run: Run, artifacts: Mapping[tuple[str, str], bytes]) -> None:
        super().__init__(run, artifacts=_TornFiles(artifacts))
