"""The unit of work: some whole runs, bounded by points and bytes, read, mapped and fitted.

    reading --> Contents: runs, points, artifacts, records as the target shall hold them

A transfer writes the contents, a plan counts them, and verify compares them with what the target has.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate import fingerprint
from mlmigrate.adapters.base import Limits, Packing, Reading
from mlmigrate.errors import MigrateError, Unavailable
from mlmigrate.fit import fit_points, fit_record, fit_run
from mlmigrate.mapping import Mapping as Rules
from mlmigrate.model import POINTS, UNKNOWN_STAMP, Artifact, Loss, Record, Run, RunRef
from mlmigrate.selection import Selection

OWNERS = {"@model": "mlflow.logged_model", "@trace": "mlflow.trace"}  # of files -> the kind of their owner
SPANS = ("@trace/", "traces.json")  # the file that is a trace's spans: no artifact that a glob is about
CHUNK = 1 << 20
COUNTED = ("values of ", "rows of ")  # how a loss of many begins, after their number


@dataclass(frozen=True, slots=True)
class Pack:
    """References to some runs; `id` is the same for the same runs in the same state."""

    id: str
    refs: tuple[RunRef, ...]

    @property
    def halves(self) -> tuple[Pack, Pack]:
        """Two packs of half the runs each."""
        middle = len(self.refs) // 2
        return pack_of(self.refs[:middle]), pack_of(self.refs[middle:])


def pack_of(refs: Sequence[RunRef]) -> Pack:
    """The pack of these runs."""
    digest = hashlib.blake2b(digest_size=16)
    for ref in refs:
        digest.update(f"{ref.origin}\0{ref.stamp}\0".encode("utf-8", "surrogatepass"))
    return Pack(digest.hexdigest(), tuple(refs))


def packs(refs: Iterable[RunRef], bounds: Packing) -> Iterator[Pack]:
    """The runs in packs, in order; a run that is larger than the bounds is a pack of its own."""
    held: list[RunRef] = []
    points = size = 0
    for ref in refs:
        full = len(held) >= bounds.runs or points + ref.points > bounds.points or size + ref.size > bounds.size
        if held and (full or ref.kind != held[0].kind or ref.kind == "records"):
            yield pack_of(held)
            held, points, size = [], 0, 0
        held.append(ref)
        points, size = points + ref.points, size + ref.size
    if held:
        yield pack_of(held)


def full_stamp(stamp: str, recipe: str) -> str:
    """A run's stamp together with what was asked for: a copy with other rules is another copy."""
    if not recipe:
        return stamp or UNKNOWN_STAMP
    return hashlib.blake2b(f"{stamp}\0{recipe}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How runs are changed on their way: which parts, by which rules, to which limits."""

    selection: Selection
    mapping: Rules
    limits: Limits

    @property
    def text(self) -> str:
        """What tells one recipe from another; "" for the plain one."""
        return " ".join(part for part in (self.selection.recipe, self.mapping.recipe) if part)


@dataclass(frozen=True, slots=True)
class Left:
    """How many files were left behind, and their bytes."""

    artifacts: int = 0
    size: int = 0

    def __add__(self, other: Left) -> Left:
        return Left(self.artifacts + other.artifacts, self.size + other.size)


class Contents:
    """What the runs of a reading are once mapped and fitted; each stream can be taken once, records before artifacts.

    Runs bear the stamps of `refs`, those that the target shall keep.  `points_seen`, `artifacts_seen`,
    `bytes_seen` and `records_seen` (by kind) count what passed, `left` the files (and their bytes) that a person
    wanted left behind; `losses` is complete once the streams are drained.
    """

    def __init__(self, reading: Reading, recipe: Recipe, refs: Sequence[RunRef] = ()) -> None:
        self._reading, self._recipe = reading, recipe
        self._stamps = {ref.origin: ref.stamp for ref in refs}
        self._losses: list[Loss] = []
        self._overflow: list[Artifact] = []
        self.runs = [self._run(run) for run in reading.runs]
        self._experiments = {run.id: run.experiment for run in self.runs}
        self._points = fit_points(recipe.limits, {run.id: run.start for run in self.runs})
        self._keys: dict[str, set[str]] = {}
        self.points_seen = self.artifacts_seen = self.bytes_seen = 0
        self.left = Left()
        self.merged: dict[str, int] = {}
        self.records_seen: Counter[str] = Counter()
        self._refused: set[tuple[str, str]] = set()  # (kind, id) of records that the target has no place for
        self._changed: Counter[tuple[str, str, str]] = Counter()  # (what, because, owner) of records

    @property
    def distinct(self) -> bool:
        """Whether no two points are equal."""
        return (self._reading.distinct and self._recipe.mapping.empty) or self._recipe.limits.distinct_points

    @property
    def losses(self) -> tuple[Loss, ...]:
        """All that does not arrive as it was, as far as the streams were taken."""
        found = [*self._reading.losses, *self._losses, *self._points.losses(self._experiments)]
        for run, keys in self._keys.items():
            found += self._recipe.mapping.key_losses(run, sorted(keys))
        for run, n in self.merged.items():
            found.append(Loss(run, "points", f"{n} equal points merged into one each", self._experiments.get(run, "")))
        for (what, because, owner), n in self._changed.items():
            found.append(Loss("", f"{n} {what}" if n > 1 or what.startswith(COUNTED) else what, because, owner))
        return tuple(replace(loss, experiment=loss.experiment or self._experiments.get(loss.run, "")) for loss in found)

    @property
    def keys(self) -> set[str]:
        """The metric keys that passed, as the source names them; noted only when there is a mapping."""
        return set().union(*self._keys.values())

    def _run(self, run: Run) -> Run:
        parts = self._recipe.selection.parts
        kept = replace(
            run,
            stamp=self._stamps.get(run.origin, run.stamp),
            params=run.params if "params" in parts else {},
            tags=run.tags if "tags" in parts else {},
            inputs=run.inputs if "inputs" in parts else (),
            records=run.records if "records" in parts else (),
        )
        mapped, losses = self._recipe.mapping.run(kept)
        fitted = fit_run(mapped, self._recipe.limits)
        self._losses += [*losses, *fitted.losses]
        self._overflow += fitted.overflow
        return fitted.run

    def points(self) -> Iterator[pa.RecordBatch]:
        """The points, a run's together."""
        if "metrics" not in self._recipe.selection.parts:
            return
        for batch in self._distinct(self._fitted_points()):
            self.points_seen += len(batch)
            yield batch

    def _fitted_points(self) -> Iterator[pa.RecordBatch]:
        mapping = self._recipe.mapping
        for batch in self._reading.points():
            if not len(batch):
                continue
            if not mapping.empty:
                self._note_keys(batch)
            yield self._points.fit(batch if mapping.empty else mapping.points(batch))

    def _note_keys(self, batch: pa.RecordBatch) -> None:
        names = pa.table({"run": batch["run"].cast(pa.utf8()), "key": batch["key"].cast(pa.utf8())})
        for row in names.group_by(["run", "key"]).aggregate([]).to_pylist():
            self._keys.setdefault(row["run"], set()).add(row["key"])

    def _distinct(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if not self._recipe.limits.distinct_points or (self._reading.distinct and self._recipe.mapping.empty):
            return batches
        return self._merged(batches)

    def _merged(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Equal points are one; a run's points lie together, so a run at a time is enough."""
        for table in _run_by_run(batches):
            whole = table.unify_dictionaries().combine_chunks().to_batches()[0]
            once = fingerprint.distinct(whole)
            if len(once) < len(whole):
                run = whole["run"][0].as_py()
                self.merged[run] = self.merged.get(run, 0) + len(whole) - len(once)
            yield once

    def artifacts(self) -> Iterator[Artifact]:
        """The files, those of overflowing values last."""
        if "artifacts" not in self._recipe.selection.parts:
            for cut in self._overflow:
                self._losses.append(Loss(cut.owner, f"artifact {cut.path!r}", "artifacts are not carried"))
            return
        for given in self._reading.artifacts():
            if self._fits(given):
                artifact, redacted = self._recipe.mapping.artifact(given)
                self._losses += redacted
                yield self._counted(artifact)
        yield from map(self._counted, self._overflow)

    def _fits(self, artifact: Artifact) -> bool:
        if because := self._unwanted(artifact):
            self.left += Left(1, artifact.size or 0)
        elif not self._has_owner(artifact.owner):
            because = "the target has no place for it"
        elif self._recipe.limits.clean_files and not _clean(artifact.path):
            because = "its name is no clean relative path, and the target can hold no other"
        if because:
            self._losses.append(Loss(artifact.owner, f"artifact {artifact.path!r}", because))
        return not because

    def _unwanted(self, artifact: Artifact) -> str:
        """Why a person does not want this file; "" when it is wanted."""
        selection = self._recipe.selection
        if because := self._recipe.mapping.refuses_path(artifact.path):
            return because
        spans = artifact.owner.startswith(SPANS[0]) and artifact.path == SPANS[1]
        if not spans and (because := selection.refuses_path(artifact.path)):
            return because
        most = selection.max_artifact_size
        return f"left behind: larger than {most} bytes" if most is not None and _larger(artifact, most) else ""

    def _has_owner(self, owner: str) -> bool:
        """Whether the target has what the file belongs to."""
        prefix, _, id_ = owner.partition("/")
        kind, limits = OWNERS.get(prefix, ""), self._recipe.limits
        if not prefix.startswith("@"):
            return True
        return limits.owned_artifacts and (not kind or limits.holds(kind)) and (kind, id_) not in self._refused

    def _counted(self, artifact: Artifact) -> Artifact:
        self.artifacts_seen += 1
        self.bytes_seen += artifact.size or 0
        return artifact

    def records(self) -> Iterator[Record]:
        """What belongs to no run."""
        for given in self._reading.records():
            record, changed = self._recipe.mapping.record(given)
            self._losses += changed
            fitted = fit_record(record, self._recipe.limits)
            for (what, because), n in fitted.changed.items():
                self._changed[what, because, record.owner] += n
            if fitted.record is None:
                self._refused.add((record.kind, record.id))
            else:
                self.records_seen[record.kind] += 1
                yield fitted.record


def _larger(artifact: Artifact, most: int) -> bool:
    """Whether a file has more bytes; one whose size its place does not tell is read until that is known."""
    if artifact.size is not None:
        return artifact.size > most
    size = 0
    try:
        with artifact.open() as stream:
            while size <= most and (chunk := stream.read(min(CHUNK, most + 1 - size))):
                size += len(chunk)
    except Unavailable:
        raise
    except MigrateError:  # whoever is to write it will say what stands in the way
        return False
    return size > most


def _clean(path: str) -> bool:
    """Whether a path names a file below a folder, and nothing else."""
    return "\0" not in path and not {"", ".", ".."} & set(path.split("/"))


def _run_by_run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        for piece in _pieces(batch):
            if held and held[0]["run"][0].as_py() != piece["run"][0].as_py():
                yield pa.Table.from_batches(held, POINTS)
                held = []
            held.append(piece)
    if held:
        yield pa.Table.from_batches(held, POINTS)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch, cut where the run changes."""
    runs = batch["run"].indices
    changes = pc.indices_nonzero(pc.not_equal(runs[1:], runs[:-1])).to_pylist()
    edges = [0, *(change + 1 for change in changes), len(batch)]
    for start, end in pairwise(edges):
        if end > start:
            yield batch.slice(start, end - start)
