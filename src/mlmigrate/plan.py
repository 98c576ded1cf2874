"""What a transfer would do. Writes nothing.

A plan reads what a transfer would read, but for the bytes of artifacts, and fits it to the target:
what it says would be lost is what would be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow.compute as pc

from mlmigrate.adapters.base import Reading
from mlmigrate.costs import Cost, Costs, Ways
from mlmigrate.events import Progress
from mlmigrate.model import Loss, RunRef
from mlmigrate.pack import Contents, Left, packs
from mlmigrate.passing import Passing
from mlmigrate.survey import Job, Places, Survey, named_records, opened, survey


@dataclass(frozen=True, slots=True)
class Line:
    """One experiment of a plan. `size` in bytes."""

    experiment: str
    runs: int
    points: int
    artifacts: int
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`rules` counts how many names each mapping rule met, `records` the records by kind.

    `quick` plans read no points, no artifacts and no records. `left` is what --max-artifact-size, --include and
    --exclude leave behind; each of these files is among the losses too. `costs`: see costs.py; none when `quick`.
    """

    source: str
    target: str
    lines: tuple[Line, ...]
    already: int
    losses: tuple[Loss, ...]
    oddities: tuple[Loss, ...]
    rules: tuple[tuple[str, int], ...]
    quick: bool
    records: Mapping[str, int] = field(default_factory=dict)
    left: Left = field(default_factory=Left)
    costs: tuple[Cost, ...] = ()


def plan(job: Job, progress: Progress, quick: bool = False) -> Plan:
    """What `transfer(job, ...)` would do. Raises what both places raise on opening."""
    with opened(job, progress) as places:
        progress.note(f"Reading {job.source.shown}")
        seen = survey(places)
        progress.begin("plan", len(seen.todo), sum(ref.points for ref in seen.todo), sum(ref.size for ref in seen.todo))
        count = _Count(places, seen, quick, Costs(Ways.of(job)))
        for pack in packs(seen.todo, places.source.packing):
            places.steps.do("a pack", count.add, pack.refs)
        named = places.steps.do("models", named_records, places, seen.todo)
        experiments = list(seen.experiments.values())
        foreseen = places.steps.do("names", places.target.foresee, experiments, named)
        progress.end()
        return Plan(
            source=job.source.shown,
            target=job.target.shown,
            lines=tuple(count.lines()),
            already=sum(ref.kind == "run" for ref in seen.already),
            losses=(*seen.losses, *foreseen, *count.losses),
            oddities=tuple(places.source.oddities()),  # some are known only once the runs were read
            rules=tuple(count.rules()),
            quick=quick,
            records=count.records,
            left=count.left,
            costs=() if quick else tuple(count.costs.all()),
        )


@dataclass(frozen=True, slots=True)
class _Drained:
    """What one pack comes to, by experiment name; and what it costs."""

    points: Counter[str]
    artifacts: Counter[str]
    sizes: Counter[str]
    costs: Costs


@dataclass
class _Count:
    """Counts by experiment name."""

    places: Places
    survey: Survey
    quick: bool
    costs: Costs
    losses: list[Loss] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    artifacts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    names: set[tuple[str, str]] = field(default_factory=set)
    records: Counter[str] = field(default_factory=Counter)
    left: Left = field(default_factory=Left)

    def add(self, refs: tuple[RunRef, ...]) -> None:
        """Counts a pack; only once it was read to its end, for it may be read again."""
        passing, costs = self.places.passing(), Costs(self.costs.ways)
        with self.places.source.read(refs) as reading:
            contents = Contents(reading, self.places.recipe)
            experiments = {run.id: self._name(run.experiment) for run in contents.runs}
            points, artifacts, sizes = Counter[str](), Counter[str](), Counter[str]()
            if self.quick:
                for ref in refs:
                    points[self._name(ref.experiment)] += ref.points
                    sizes[self._name(ref.experiment)] += ref.size
            else:
                with passing.going():
                    self._drain(contents, experiments, _Drained(points, artifacts, sizes, costs), passing)
            names = set(self._names(reading, contents))
        self.runs.update(experiments.values())
        self.points += points
        self.artifacts += artifacts
        self.sizes += sizes
        self.costs += costs
        self.left += contents.left
        self.names |= names
        self.records += contents.records_seen
        self.losses += contents.losses

    def _drain(self, contents: Contents, experiments: dict[str, str], into: _Drained, passing: Passing) -> None:
        for batch in contents.points():
            for count in pc.value_counts(batch["run"]).to_pylist():
                into.points[experiments[count["values"]]] += count["counts"]
            passing.points(len(batch))
        for _ in contents.records():  # before their files
            pass
        for artifact in contents.artifacts():
            name = experiments.get(artifact.owner, "")
            into.artifacts[name] += 1
            into.sizes[name] += artifact.size or 0
            into.costs.artifact(artifact)
            passing.seen(artifact)
        into.costs.pack(contents.points_seen)

    def _names(self, reading: Reading, contents: Contents) -> Iterator[tuple[str, str]]:
        mapping = self.places.recipe.mapping
        if mapping.empty:
            return
        for run in reading.runs:
            yield from mapping.names(run)
        for key in contents.keys:
            yield "keys", key

    def lines(self) -> Iterator[Line]:
        """One line for each experiment, those without new runs too, in the source's order."""
        names = dict.fromkeys(one.name for one in self.survey.experiments.values())
        for name in (*names, *(extra for extra in self.artifacts if extra not in names)):
            yield Line(name, self.runs[name], self.points[name], self.artifacts[name], self.sizes[name])

    def rules(self) -> Iterator[tuple[str, int]]:
        """How many names each rule met."""
        mapping = self.places.recipe.mapping
        if mapping.empty:
            return
        for experiment in self.places.source.experiments():
            self.names |= set(mapping.names(experiment))
        yield from mapping.counts(self.names).items()

    def _name(self, experiment: str) -> str:
        known = self.survey.experiments.get(experiment)
        return known.name if known is not None else ""
