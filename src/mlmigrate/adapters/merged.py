"""Several places read as one: the stores that a team's scripts left everywhere, collected by one command.

experiments  equal names become one; an id that another experiment has already is replaced by a new one
runs         a run that lies in several places is carried once: the copy with more points, then the one
             that ended later, then the one in the place named first
models       a registered model (or prompt) whose name one of another place has is called "name-2": versions
             of two models are never mixed
the rest     whatever a place holds besides, under the new ids of its experiments

What names an experiment or a model that is called otherwise here is rewritten.

A new id has 18 digits, made from the old one and the name, so that the same places give the same ids
again and a database can keep them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import count

import pyarrow as pa

from mlmigrate import fingerprint
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Names, Packing, Reading, Source
from mlmigrate.address import Address
from mlmigrate.model import Artifact, Experiment, Loss, Record, Run, RunRef

_DIGITS = 18

_REGISTRY = "@registry"

Ids = Mapping[tuple[int, str], str]  # (which member, its experiment's id) -> the id here
Index = dict[str, tuple["Member", RunRef]]  # origin -> the copy that is carried


def open_source(address: Address, context: Context) -> Source:
    """All places of the address, opened; raises what opening one of them raises."""
    with ExitStack() as opened:
        members: list[Member] = []
        for one in address.many:
            source = registry.open_source(one, context)
            opened.callback(source.close)
            members.append(Member(len(members), one.shown, source, one.kind))
        opened.pop_all()
        return Merged(members)


@dataclass(frozen=True, slots=True)
class Member:
    """One of the places. `shown` is its address, secrets hidden."""

    number: int
    shown: str
    source: Source
    kind: str


@dataclass(frozen=True, slots=True)
class Renaming:
    """What the things of a member are called here; `models`: whether models are among them."""

    names: Names
    models: bool


@dataclass(slots=True)
class Union:
    """The experiments of all members as one list, and which became which."""

    experiments: dict[str, Experiment] = field(default_factory=dict)
    ids: dict[tuple[int, str], str] = field(default_factory=dict)
    oddities: list[Loss] = field(default_factory=list)
    _named: dict[str, str] = field(default_factory=dict)

    def add(self, member: Member, experiment: Experiment) -> None:
        """One more experiment: merged with that of the same name, or under an id of its own."""
        here = self._named.get(experiment.name)
        if here is None:
            here = self._new_id(member, experiment)
            self._named[experiment.name] = here
            self.experiments[here] = replace(experiment, id=here)
        else:
            self.experiments[here] = self._merged(self.experiments[here], experiment, member)
        self.ids[member.number, experiment.id] = here

    def _new_id(self, member: Member, experiment: Experiment) -> str:
        if experiment.id not in self.experiments:
            return experiment.id
        other = self.experiments[experiment.id].name
        new, again = new_id(experiment, 0), 0
        while new in self.experiments:
            again += 1
            new = new_id(experiment, again)
        because = f"its id {experiment.id} in {member.shown} is that of {other!r}: it gets the id {new}"
        self.oddities.append(Loss("", f"experiment {experiment.name!r}", because, new))
        return new

    def _merged(self, first: Experiment, other: Experiment, member: Member) -> Experiment:
        for key, value in other.tags.items():
            if first.tags.get(key, value) != value:
                because = f"another value in {member.shown}: the first one is kept"
                self.oddities.append(Loss("", f"tag {key!r} of experiment {first.name!r}", because, first.id))
        return replace(
            first,
            tags={**other.tags, **first.tags},
            created=min((time for time in (first.created, other.created) if time is not None), default=None),
            updated=max((time for time in (first.updated, other.updated) if time is not None), default=None),
            deleted=first.deleted and other.deleted,
            artifact_root=first.artifact_root or other.artifact_root,
        )


def new_id(experiment: Experiment, again: int) -> str:
    """An id of 18 digits for an experiment whose own is taken; `again` for when that is taken too."""
    text = f"{experiment.id}\0{experiment.name}\0{again}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    least = 10 ** (_DIGITS - 1)
    return str(least + number % (9 * least))


class Merged:
    """Several sources as one."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._lock = threading.Lock()
        self._union: Union | None = None
        self._index: Index | None = None
        self._names: Mapping[int, Renaming] = {}
        self._renamed: list[Loss] = []
        self._doubles: list[Loss] = []
        self._left: dict[str, list[Loss]] = {}
        self.packing = reduce(Packing.within, (member.source.packing for member in members))

    def experiments(self) -> Sequence[Experiment]:
        """All experiments, those of one name as one."""
        with self._lock:
            self._union = self._look()
            return list(self._union.experiments.values())

    def _look(self) -> Union:
        union = Union()
        for member in self._members:
            for experiment in member.source.experiments():
                union.add(member, experiment)
        return union

    def refs(self) -> Sequence[RunRef]:
        """All runs, each once."""
        with self._lock:
            ids = self._ids()
            index = self._listed()
            return sorted(
                (_moved(ref, member, ids) for member, ref in index.values()), key=lambda ref: ref.kind == "records"
            )

    def _listed(self) -> Index:
        """Looks at all members again."""
        self._doubles, self._left, self._renamed = [], {}, []
        self._index = self._once()
        self._names = self._renaming(self._index)
        return self._index

    def _renaming(self, index: Index) -> dict[int, Renaming]:
        """What the things of each member are called here, where that is not what they are called there."""
        moved: dict[int, dict[str, str]] = {}
        for (number, own), here in self._ids().items():
            if own != here:
                moved.setdefault(number, {})[own] = here
        models = self._models([(member, ref) for member, ref in index.values() if ref.id == _REGISTRY])
        return {
            n: Renaming(registry.renaming(self._members[n].kind, moved.get(n, {}), models.get(n, {})), n in models)
            for n in moved.keys() | models.keys()
        }

    def _models(self, registries: Sequence[tuple[Member, RunRef]]) -> dict[int, dict[str, str]]:
        """By member: the registered models whose name another one had first, and what they are called here."""
        renamed: dict[int, dict[str, str]] = {}
        if len(registries) < 2:  # noqa: PLR2004
            return renamed
        names = [(member, _names(member, ref)) for member, ref in registries]
        taken = {name for _, some in names for name in some}
        seen: dict[str, Member] = {}
        for member, some in names:
            for name in some:
                first = seen.setdefault(name, member)
                if first is not member:
                    new = next(f"{name}-{n}" for n in count(2) if f"{name}-{n}" not in taken)
                    taken.add(new)
                    renamed.setdefault(member.number, {})[name] = new
                    because = f"a model in {first.shown} has its name: it is called {new!r}"
                    self._renamed.append(Loss("", f"{member.shown}: registered model {name!r}", because))
        return renamed

    def _ids(self) -> Ids:
        if self._union is None:
            self._union = self._look()
        return self._union.ids

    def _once(self) -> Index:
        """The copies that are carried, in the order of the members."""
        index: Index = {}
        for member in self._members:
            for ref in member.source.refs():
                origin = ref.origin or f"{member.number}:{ref.id}"
                if origin in index:
                    index[origin] = self._choice(index[origin], (member, ref))
                else:
                    index[origin] = (member, ref)
        return index

    def _choice(self, first: tuple[Member, RunRef], other: tuple[Member, RunRef]) -> tuple[Member, RunRef]:
        here, there = Copy.of(*first), Copy.of(*other)
        if here.same(there):
            because = f"lies in {other[0].shown} too, with the same values, points and artifact sizes: carried once"
            self._doubles.append(_double(other, because, self._ids()))
            return first
        kept, left = (other, first) if there.rank > here.rank else (first, other)
        ranked = {first[0].number: here, other[0].number: there}
        because = (
            f"lies in {kept[0].shown} with {ranked[kept[0].number].told} and in {left[0].shown} with"
            f" {ranked[left[0].number].told}: only the first of these is carried"
        )
        # told with the run that is carried: something of it stays behind
        self._left.setdefault(kept[1].origin, []).append(_double(left, because, self._ids()))
        return kept

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[Reading]:
        """The runs that `refs` name, read from the places that hold them."""
        with self._lock:
            ids = self._ids()
            index = self._listed() if self._index is None else self._index
            names = self._names
        wanted: dict[int, list[RunRef]] = {}
        gone: list[Loss] = []
        for ref in refs:
            if ref.origin in index:
                member, own = index[ref.origin]
                wanted.setdefault(member.number, []).append(replace(own, stamp=ref.stamp))
                gone += self._left.get(ref.origin, ())
            else:
                gone.append(Loss(ref.id, "the run", "gone since it was listed", ref.experiment))
        with ExitStack() as opened:
            readings = [
                Part(self._members[number], opened.enter_context(self._members[number].source.read(own)))
                for number, own in wanted.items()
            ]
            yield MergedReading(readings, ids, gone, names)

    def oddities(self) -> Sequence[Loss]:
        """What is strange about each place, and what of several is one here."""
        ids = self._ids()
        found = [
            replace(_told(loss, member, ids), what=f"{member.shown}: {loss.what}")
            for member in self._members
            for loss in member.source.oddities()
        ]
        return [*found, *(self._union.oddities if self._union else ()), *self._renamed, *self._doubles]

    def close(self) -> None:
        """Closes every member."""
        with ExitStack() as closing:
            for member in self._members:
                closing.callback(member.source.close)


def _moved(ref: RunRef, member: Member, ids: Ids) -> RunRef:
    origin = ref.origin or f"{member.number}:{ref.id}"
    here = ids.get((member.number, ref.experiment), ref.experiment)
    if ref.kind == "records" and ref.experiment and ref.id.endswith(f"/{ref.experiment}"):
        own = f"{ref.id.removesuffix(ref.experiment)}{here}"
        return replace(ref, id=own, name=own, experiment=here, origin=origin)
    return replace(ref, experiment=here, origin=origin)


def _names(member: Member, ref: RunRef) -> list[str]:
    """The names of the registered models of a member."""
    with member.source.read([ref]) as reading:
        found = (registry.name_of(member.kind, record) for record in reading.records())
        return [name for name in found if name]


def _told(loss: Loss, member: Member, ids: Ids) -> Loss:
    return replace(loss, experiment=ids.get((member.number, loss.experiment), loss.experiment))


def _double(where: tuple[Member, RunRef], because: str, ids: Ids) -> Loss:
    member, ref = where
    what = "the run" if ref.kind == "run" else ref.id
    return Loss(ref.id, what, because, ids.get((member.number, ref.experiment), ref.experiment))


@dataclass(frozen=True, slots=True)
class Copy:
    """A run as it lies in one of several places, to be compared with another copy of it."""

    stamp: str
    run: Run | None
    points: Mapping[str, object]
    count: int
    artifacts: frozenset[tuple[str, int | None]]
    records: frozenset[Record]

    @classmethod
    def of(cls, member: Member, ref: RunRef) -> Copy:
        """What can be told of the copy without reading its artifacts."""
        sums = fingerprint.Sums()
        count = 0
        with member.source.read([ref]) as reading:
            run = next(iter(reading.runs), None)
            for batch in reading.points():
                sums.add(batch)
                count += len(batch)
            files = frozenset((f"{file.owner}/{file.path}", file.size) for file in reading.artifacts())
            records = frozenset(reading.records())
        return cls(ref.stamp, run, sums.of.get(ref.id, {}), count, files, records)

    def same(self, other: Copy) -> bool:
        """Whether both hold the same, wherever they lie; of artifacts paths and sizes are compared."""
        if self.stamp and self.stamp == other.stamp:
            return True
        mine, theirs = ((_placeless(copy.run), copy.points, copy.artifacts, copy.records) for copy in (self, other))
        return mine == theirs

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """The greater is the copy to keep."""
        if self.run is None:
            return 0, 0, len(self.artifacts) + len(self.records), 0
        values = len(self.run.params) + len(self.run.tags)
        return self.count, self.run.end or 0, len(self.artifacts) + len(self.records), values

    @property
    def told(self) -> str:
        """What is in it, in words."""
        if self.run is None:
            return f"{len(self.records)} records"
        end = "no end" if self.run.end is None else f"end {self.run.end}"
        values = len(self.run.params) + len(self.run.tags)
        return f"{self.count} points, {values} params and tags, {len(self.artifacts)} artifacts and {end}"


def _placeless(run: Run | None) -> Run | None:
    """The run without what differs between two copies of one folder."""
    return None if run is None else replace(run, stamp="", experiment="", artifact_uri="")


@dataclass(frozen=True, slots=True)
class Part:
    """What is read from one member."""

    member: Member
    reading: Reading


class MergedReading:
    """Runs of several places, opened."""

    def __init__(self, parts: Sequence[Part], ids: Ids, losses: Iterable[Loss], names: Mapping[int, Renaming]) -> None:
        self._parts, self._ids, self._names = parts, ids, names
        self._own = list(losses)
        self.losses: list[Loss] = []
        self.distinct = all(part.reading.distinct for part in parts)
        self.runs: Sequence[Run] = [self._run(part, run) for part in parts for run in part.reading.runs]
        self._gather()

    def points(self) -> Iterator[pa.RecordBatch]:
        """Member after member."""
        for part in self._parts:
            yield from part.reading.points()
        self._gather()

    def artifacts(self) -> Iterator[Artifact]:
        """Member after member."""
        for part in self._parts:
            names = self._models(part)
            yield from part.reading.artifacts() if names is None else map(names.artifact, part.reading.artifacts())
        self._gather()

    def records(self) -> Iterator[Record]:
        """Member after member, under the experiments' ids here."""
        for part in self._parts:
            for record in part.reading.records():
                yield self._record(part, record)
        self._gather()

    def _run(self, part: Part, run: Run) -> Run:
        experiment = self._ids.get((part.member.number, run.experiment), run.experiment)
        names = self._models(part)
        named = run if names is None else names.run(run)
        return replace(named, experiment=experiment, records=tuple(self._record(part, one) for one in run.records))

    def _record(self, part: Part, record: Record) -> Record:
        known = self._names.get(part.member.number)
        named = record if known is None else known.names.record(record)
        return replace(named, owner=self._ids.get((part.member.number, record.owner), record.owner))

    def _models(self, part: Part) -> Names | None:
        """What runs and files must be rewritten by: they name models, and no experiments."""
        known = self._names.get(part.member.number)
        return known.names if known is not None and known.models else None

    def _gather(self) -> None:
        self.losses[:] = [
            *self._own,
            *(_told(loss, part.member, self._ids) for part in self._parts for loss in part.reading.losses),
        ]
