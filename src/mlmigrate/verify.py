"""Two places -> findings, by reading both again.

The source is read as a transfer would read it: mapped, and fitted to what the target can hold, so
that known losses are not differences.  Each run is then compared with the one in the target that
carries its origin (or, where no copy of ours went, that has its id): every field, every param and
tag, every point as part of a 128-bit sum over its metric (see fingerprint), every file by sha256.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Limits, Names, Reading, SameNames, Source, Target
from mlmigrate.compare import Expected
from mlmigrate.engine import default_workers
from mlmigrate.errors import MigrateError, UsageError
from mlmigrate.events import Progress, RunEvent, RunState, Silent
from mlmigrate.fingerprint import Sums
from mlmigrate.mapping import Mapping as Rules
from mlmigrate.model import OURS, Arrival, Artifact, Experiment, Finding, Loss, Record, Run, RunRef, text_of
from mlmigrate.pack import Contents, Pack, Recipe, packs
from mlmigrate.passing import Passing
from mlmigrate.steps import Steps
from mlmigrate.survey import Job, passing, wanted_experiments, wanted_refs
from mlmigrate.weighing import Scale, Weight, asks, look_closer, weighing

LINE = 60  # characters of a value in a finding


@dataclass(frozen=True, slots=True)
class Verdict:
    """`losses` are the differences that are known and lawful. `size` in bytes; `records` counts by kind."""

    runs: int
    equal: int
    differs: int
    missing: int
    extra: int
    unreadable: int
    points: int
    artifacts: int
    size: int
    findings: tuple[Finding, ...]
    losses: tuple[Loss, ...]
    records: Mapping[str, int] = field(default_factory=dict)


def verify(
    job: Job,
    progress: Progress,
    *,
    quick: bool = False,
    download: bool | None = None,
    strict: bool = False,
    workers: int = 0,
) -> Verdict:
    """Compares every run, param, tag, point and artifact of job.source with job.target.

    quick: no points are read, and artifacts are compared by path and size only.
    download: None reads the bytes of artifacts, but for large ones of object stores that name the same digest;
    True reads all; False compares them by path and size, and by sha256 where both places know it.
    strict: known losses are findings too.
    """
    with _opened(job, progress) as both:
        progress.note(f"Reading {job.source.shown} and {job.target.shown}")
        comparison = _Comparison(both, quick=quick, download=False if quick else download, strict=strict)
        comparison.look()
        progress.begin("verify", len(comparison.pairs), comparison.expected_points, 0)
        try:
            with ThreadPoolExecutor(workers or default_workers()) as pool:
                comparison.compare(pool)
                comparison.compare_records()
        except BaseException:
            both.steps.stop.set()
            raise
        finally:
            progress.end()
        return comparison.verdict()


def files_moved(job: Job) -> bool:
    """Whether the target keeps the artifacts of runs elsewhere than the source: told by the first run of both."""
    with _opened(job, Silent()) as both:
        targets = {ref.id: ref for ref in both.there.refs() if ref.kind == "run"}
        for ref in both.source.refs():
            arrival = both.arrived.get(ref.origin)
            target = targets.get(arrival.id if arrival is not None else ref.id)
            if ref.kind == "run" and target is not None:
                with both.source.read([ref]) as here, both.there.read([target]) as there:
                    return [run.artifact_uri for run in here.runs] != [run.artifact_uri for run in there.runs]
    return False


@dataclass(frozen=True, slots=True)
class _Both:
    """Two places, open for reading; `recipe` has the limits of the target, which is None if it can only be read."""

    source: Source
    there: Source
    target: Target | None
    recipe: Recipe
    steps: Steps
    progress: Progress
    arrived: Mapping[str, Arrival]
    files_stay: bool
    job: Job

    def passing(self) -> Passing:
        """What tells of things that are read to be compared, and holds that to the limits."""
        return passing(self.job, self.progress, self.steps)

    @property
    def plain(self) -> Recipe:
        """How the target is read: as it is, for what was left behind should not be there."""
        return Recipe(replace(self.recipe.selection, max_artifact_size=None, include=(), exclude=()), Rules(), Limits())


@contextmanager
def _opened(job: Job, progress: Progress) -> Iterator[_Both]:
    steps = Steps(job.tries, progress.waiting, threading.Event())
    with ExitStack() as stack:
        source = registry.open_source(job.source, Context("source", steps, job.source_settings))
        stack.callback(source.close)
        context = Context("target", steps, job.target_settings)
        there = registry.open_source(job.target, context)
        stack.callback(there.close)
        target = _as_target(job, context)
        if target is not None:
            stack.enter_context(closing(target))
        limits = Limits() if target is None else target.limits
        arrived = {} if target is None else steps.do("what has arrived", target.arrived)
        files_stay = job.target_settings.artifacts_to == "keep"
        recipe = Recipe(job.selection, job.mapping, limits)
        yield _Both(source, there, target, recipe, steps, progress, arrived, files_stay, job)


def _as_target(job: Job, context: Context) -> Target | None:
    """What would write there; nothing is known of a place that can only be read."""
    try:
        return registry.open_target(job.target, context)
    except UsageError:
        return None


@dataclass(frozen=True, slots=True)
class _Pair:
    source: RunRef
    target: RunRef


@dataclass
class _Sides:
    """What the streams of some runs came to, by run id."""

    runs: dict[str, Run]
    sums: Sums = field(default_factory=Sums)
    artifacts: dict[str, dict[str, Weight]] = field(default_factory=dict)
    points: int = 0
    size: int = 0
    losses: tuple[Loss, ...] = ()


class _Comparison:
    def __init__(self, both: _Both, *, quick: bool, download: bool | None, strict: bool) -> None:
        self.both = both
        self.quick, self.download, self.strict = quick, download, strict
        self.findings: list[Finding] = []
        self.losses: list[Loss] = []
        self.pairs: list[_Pair] = []
        self.experiments: dict[str, Experiment] = {}
        self.target_ids: dict[str, str] = {}
        self._there_names: dict[str, str] = {}
        self.equal = self.differs = self.missing = self.extra = self.unreadable = 0
        self.points = self.artifacts = self.size = 0
        self.records: Counter[str] = Counter()
        self.record_refs: tuple[list[RunRef], list[RunRef]] = ([], [])
        self.names: Names = SameNames()

    @property
    def expected_points(self) -> int:
        return sum(pair.source.points for pair in self.pairs)

    def look(self) -> None:
        """Which runs are compared with which; what only one place has."""
        self.experiments, losses = wanted_experiments(self.both.source, self.both.recipe, self.both.steps)
        self.losses += losses
        steps = self.both.steps
        there = {one.name: one for one in steps.do("experiments", self.both.there.experiments)}
        self._there_names = {one.id: one.name for one in there.values()}
        refs = list(wanted_refs(self.both.source, self.both.recipe, steps, self.experiments))
        found = steps.do("runs", lambda: list(self.both.there.refs()))
        self.record_refs = (_of_kind(refs, "records"), _of_kind(found, "records"))
        targets = {ref.id: ref for ref in _of_kind(found, "run")}
        for ref in _of_kind(refs, "run"):
            self._match(ref, targets)
        if self.both.target is not None:
            self.names = steps.do("names", self.both.target.names, self.target_ids)
        self.experiments = {id_: self.names.experiment(one) for id_, one in self.experiments.items()}
        for wanted in self.experiments.values():
            self._experiment(wanted, there.get(wanted.name))
        if not self.both.arrived:
            self._extra(targets)

    def _match(self, ref: RunRef, targets: Mapping[str, RunRef]) -> None:
        arrival = self.both.arrived.get(ref.origin)
        target = targets.get(arrival.id if arrival is not None else ref.id)
        if target is None:
            self.missing += 1
            self._find(Finding("+", self._name(ref.experiment), ref.id, f"{ref.name or ref.id}: not there"))
            return
        self.target_ids[ref.id] = target.id
        self.pairs.append(_Pair(ref, target))

    def _extra(self, targets: Mapping[str, RunRef]) -> None:
        """Only where no copy of ours went: elsewhere, other runs are other people's."""
        names = self._there_names
        known = set(self.target_ids.values())
        wanted = {one.name for one in self.experiments.values()}
        for ref in targets.values():
            if ref.id not in known and names.get(ref.experiment) in wanted and self.both.recipe.selection.wants(ref):
                self.extra += 1
                self._find(Finding("-", names[ref.experiment], ref.id, f"{ref.name or ref.id}: only in the target"))

    def _experiment(self, wanted: Experiment, there: Experiment | None) -> None:
        if there is None:
            self._find(Finding("+", wanted.name, "", "experiment: not there"))
            return
        if wanted.deleted != there.deleted:
            self._find(Finding("*", wanted.name, "", "experiment deleted", str(wanted.deleted), str(there.deleted)))
        tags = _without_ours(there.tags)
        for key, value in _without_ours(wanted.tags).items():
            if tags.get(key) != value:
                self._find(
                    Finding("*", wanted.name, "", f"experiment tag {key!r}", _short(value), _short(tags.get(key)))
                )

    def compare(self, pool: ThreadPoolExecutor) -> None:
        """Compares all pairs, a pack at a time."""
        targets = {pair.source.origin: pair.target for pair in self.pairs}
        bounds = self.both.source.packing.within(self.both.there.packing)
        waiting = list(packs([pair.source for pair in self.pairs], bounds))
        while waiting:
            halves: list[Pack] = []
            for pack, outcome in zip(waiting, pool.map(lambda one: self._try(one, targets), waiting), strict=True):
                if isinstance(outcome, MigrateError):
                    halves += self._again(pack, outcome)
                else:
                    self._settle(pack, *outcome)
            waiting = halves

    def compare_records(self) -> None:
        """What belongs to no run: models, traces and the like, where the target can hold them."""
        here, there = self.record_refs
        if not here:
            return
        wanted = {one.name for one in self.experiments.values()}
        there = [ref for ref in there if not ref.experiment or self._there_name(ref.experiment) in wanted]
        expected = Expected()

        def mean(record: Record) -> None:
            self.records[record.kind] += 1
            expected.add(record)

        def met(record: Record) -> None:
            if differing := expected.meet(record):
                self._record(record.kind, record.id, self._there_name(record.owner), differing)

        files = self._files_of(here, self.both.source, self.both.recipe, self.names, mean)
        self.artifacts += len(files)
        self.size += sum(weight.size or 0 for weight in files.values())
        found = self._files_of(there, self.both.there, self.both.plain, SameNames(), met)
        look_closer([(files, found)])
        for kind, id_, owner in expected.left():
            self._record(kind, id_, self._name(owner), "not there")
        for at, weight in files.items():
            if at not in found or not weight.like(found[at]):
                self._find(Finding("*", "", "", f"artifact {at[0]}/{at[1]}", weight.shown, "not there, or another"))

    def _record(self, kind: str, id_: str, experiment: str, found: str) -> None:
        self._find(Finding("*", experiment, "", f"{kind} {id_}", "there", found))

    def _files_of(
        self, refs: Sequence[RunRef], source: Source, recipe: Recipe, names: Names, take: Callable[[Record], None]
    ) -> dict[tuple[str, str], Weight]:
        """Gives each record to `take`; the weights of the files that belong to records, by owner and path."""
        files: dict[tuple[str, str], Weight] = {}
        for ref in refs:
            passing = self.both.passing()
            with source.read([ref]) as reading, passing.going(), weighing(self.download) as scale:
                contents = Contents(reading, recipe)
                for record in contents.records():
                    self.both.steps.check()
                    take(names.record(record))
                for artifact in contents.artifacts():
                    self.both.steps.check()
                    _lay(artifact, names, passing, scale)
                found = scale.weights()
                files |= {(owner, path): weight for owner, its in found.items() for path, weight in its.items()}
                self.losses += contents.losses
        return files

    def _again(self, pack: Pack, error: MigrateError) -> Sequence[Pack]:
        if len(pack.refs) > 1:
            return pack.halves
        ref = pack.refs[0]
        self.unreadable += 1
        self._find(
            Finding("!", self._name(ref.experiment), ref.id, f"{ref.name or ref.id}: could not be read: {error}")
        )
        return ()

    def _try(self, pack: Pack, targets: Mapping[str, RunRef]) -> tuple[_Sides, _Sides] | MigrateError:
        try:
            return self.both.steps.do("a pack", self._sides, pack, targets)
        except MigrateError as error:
            return error

    def _sides(self, pack: Pack, targets: Mapping[str, RunRef]) -> tuple[_Sides, _Sides]:
        with (passing := self.both.passing()).going():
            with self.both.source.read(pack.refs) as reading:
                here = self._drained(reading, self.both.recipe, self.names, passing)
            with self.both.there.read([targets[ref.origin] for ref in pack.refs]) as reading:
                there = self._drained(reading, self.both.plain, SameNames(), passing)
            ids = [(ref.id, targets[ref.origin].id) for ref in pack.refs]
            look_closer((here.artifacts.get(a, {}), there.artifacts.get(b, {})) for a, b in ids)
        return here, there

    def _drained(self, reading: Reading, recipe: Recipe, names: Names, passing: Passing) -> _Sides:
        contents = Contents(reading, recipe)
        sides = _Sides({run.id: names.run(run) for run in contents.runs})
        for batch in () if self.quick else contents.points():
            self.both.steps.check()
            sides.sums.add(batch)
            passing.points(len(batch))
        with weighing(self.download) as scale:
            for artifact in contents.artifacts():
                self.both.steps.check()
                _lay(artifact, names, passing, scale)
            sides.artifacts = scale.weights()
        sides.points, sides.size, sides.losses = contents.points_seen, contents.bytes_seen, contents.losses
        return sides

    def _settle(self, pack: Pack, here: _Sides, there: _Sides) -> None:
        self.points += here.points
        self.size += here.size
        self.losses += here.losses
        lost = {loss.run: loss for loss in here.losses}
        for ref in pack.refs:
            findings = list(self._differences(ref, here, there))
            if self.strict and ref.id in lost:
                what = lost[ref.id]
                findings.append(self._finding(ref, f"{what.what}: {what.because}"))
            for finding in findings:
                self._find(finding)
            self.artifacts += len(here.artifacts.get(ref.id, {}))
            self.equal += not findings
            self.differs += bool(findings)
            state: RunState = "differs" if findings else "equal"
            self.both.progress.run(
                RunEvent(self._name(ref.experiment), ref.id, ref.name, state, self.target_ids[ref.id])
            )

    def _differences(self, ref: RunRef, here: _Sides, there: _Sides) -> Iterator[Finding]:
        target_id = self.target_ids[ref.id]
        meant, found = here.runs.get(ref.id), there.runs.get(target_id)
        if meant is None or found is None:
            yield self._finding(
                ref, "the run", "gone" if meant is None else "there", "gone" if found is None else "there"
            )
            return
        for what, a, b in self._values(meant, found):
            if a != b:
                yield self._finding(ref, what, _short(a), _short(b))
        yield from self._points(ref, target_id, here, there)
        yield from self._files(ref, here.artifacts.get(ref.id, {}), there.artifacts.get(target_id, {}))

    def _values(self, meant: Run, found: Run) -> Iterator[tuple[str, object, object]]:
        limits = self.both.recipe.limits
        for name in ("name", "status", "start", "end", "user", "deleted"):
            yield name, getattr(meant, name), getattr(found, name)
        if limits.deleted_times:
            yield "deleted_at", meant.deleted_at, found.deleted_at
        if self.both.files_stay:  # then no file is read, and both places must name the same ones
            yield "artifact_uri", meant.artifact_uri, found.artifact_uri
        yield "experiment", self._name(meant.experiment), self._there_name(found.experiment)
        parts = self.both.recipe.selection.parts
        if "params" in parts:
            yield from _entries("param", _texts(meant.params), _texts(found.params))
        if "tags" in parts:
            yield from _entries("tag", _without_ours(meant.tags), _without_ours(found.tags))
        if "inputs" in parts:
            yield "inputs", _inputs(meant), _inputs(found)
        if limits.system:
            known = {name: found.system[name] for name in meant.system if name in found.system}
            yield from _entries("field", dict(meant.system), known)  # what the source did not tell has a default

    def _points(self, ref: RunRef, target_id: str, here: _Sides, there: _Sides) -> Iterator[Finding]:
        meant, found = here.sums.of.get(ref.id, {}), there.sums.of.get(target_id, {})
        for key in sorted(meant.keys() | found.keys()):
            a, b = meant.get(key, (0, 0, 0)), found.get(key, (0, 0, 0))
            if a[0] != b[0]:
                yield self._finding(ref, f"metric {key}", f"{a[0]:,} points", f"{b[0]:,}")
            elif a != b:
                yield self._finding(ref, f"metric {key}", f"{a[0]:,} points", "as many, but not the same")

    def _files(
        self,
        ref: RunRef,
        meant: Mapping[str, Weight],
        found: Mapping[str, Weight],
    ) -> Iterator[Finding]:
        for path in sorted(meant.keys() | found.keys()):
            if path not in found:
                yield self._finding(ref, f"artifact {path}", "there", "not there")
            elif path not in meant:
                yield self._finding(ref, f"artifact {path}", "not there", "there")
            elif not meant[path].like(found[path]):
                yield self._finding(ref, f"artifact {path}", meant[path].shown, found[path].shown)

    def _finding(self, ref: RunRef, what: str, source: str = "", target: str = "") -> Finding:
        return Finding("*", self._name(ref.experiment), ref.id, f"{ref.name or ref.id}: {what}", source, target)

    def _find(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.both.progress.finding(finding)

    def _name(self, experiment: str) -> str:
        known = self.experiments.get(experiment)
        return known.name if known is not None else experiment

    def _there_name(self, experiment: str) -> str:
        return self._there_names.get(experiment, experiment)

    def verdict(self) -> Verdict:
        """What all came to."""
        return Verdict(
            runs=len(self.pairs) + self.missing,
            equal=self.equal,
            differs=self.differs,
            missing=self.missing,
            extra=self.extra,
            unreadable=self.unreadable,
            points=self.points,
            artifacts=self.artifacts,
            size=self.size,
            findings=tuple(self.findings),
            losses=tuple(self.losses),
            records=self.records,
        )


def _entries(role: str, meant: Mapping[str, str], found: Mapping[str, str]) -> Iterator[tuple[str, object, object]]:
    for key in sorted(meant.keys() | found.keys()):
        yield f"{role} {key}", meant.get(key), found.get(key)


def _of_kind(refs: Sequence[RunRef], kind: str) -> list[RunRef]:
    return [ref for ref in refs if ref.kind == kind]


def _texts(params: Mapping[str, object]) -> dict[str, str]:
    return {key: text_of(value) for key, value in params.items()}  # type: ignore[arg-type]


def _without_ours(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith(OURS)}


def _inputs(run: Run) -> list[tuple[object, ...]]:
    found = [
        (
            one.name,
            one.digest,
            one.source_type,
            one.source,
            one.schema or "",
            one.profile or "",
            sorted(one.tags.items()),
        )
        for one in run.inputs
    ]
    return sorted(found, key=repr)


def _lay(artifact: Artifact, names: Names, passing: Passing, scale: Scale) -> None:
    """Weighs a file as it is there; one that is another there has no digest that its store could know."""
    told = passing.artifact(artifact)
    meant = names.artifact(told)
    scale.lay(meant, asks(artifact) if meant.open is told.open else None)
    passing.put()


def _short(value: object) -> str:
    """A value for a finding: never more than a line."""
    text = "not there" if value is None else str(value)
    return text if len(text) <= LINE else f"{text[: LINE - 3]}..."
