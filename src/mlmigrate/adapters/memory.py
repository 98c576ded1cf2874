"""A place in this process's memory: the smallest adapter, for tests and for reading how one is made.

memory:NAME     all places of one name are one place
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.base import Context, Limits, Names, Packing, SameNames
from mlmigrate.address import Address
from mlmigrate.errors import NotFound
from mlmigrate.model import POINTS, Arrival, Artifact, Experiment, Loss, Record, Run, RunRef

RECORDS_PREFIX = "@"


@dataclass(frozen=True, slots=True)
class Held:
    """One run, whole; or records, then `run.id` begins with "@"."""

    run: Run
    points: pa.Table = field(default_factory=POINTS.empty_table)
    artifacts: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    records: tuple[Record, ...] = ()

    @property
    def ref(self) -> RunRef:
        """Where the run lives, with its size."""
        run = self.run
        return RunRef(
            run.experiment,
            run.id,
            name=run.name,
            origin=run.origin,
            stamp=run.stamp,
            status=run.status,
            start=run.start,
            deleted=run.deleted,
            points=len(self.points),
            size=sum(map(len, self.artifacts.values())),
            kind="records" if run.id.startswith(RECORDS_PREFIX) else "run",
        )


class Memory:
    """Experiments and runs in dictionaries; both a source and a target."""

    def __init__(self, limits: Limits | None = None, packing: Packing | None = None) -> None:
        self.limits = limits or Limits()
        self.packing = packing or Packing()
        self.held: dict[str, Held] = {}
        self._experiments: dict[str, Experiment] = {}
        self._lock = threading.Lock()

    def add(self, experiment: Experiment, *held: Held) -> None:
        """Puts runs here, as if they had been tracked here."""
        self._experiments[experiment.id] = experiment
        self.held.update({one.run.origin: one for one in held})

    def experiments(self) -> Sequence[Experiment]:
        return list(self._experiments.values())

    def refs(self) -> Iterator[RunRef]:
        yield from [held.ref for held in self.held.values()]

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[MemoryReading]:
        yield MemoryReading([self.held[ref.origin] for ref in refs if ref.origin in self.held])

    def oddities(self) -> Sequence[Loss]:
        return ()

    def arrived(self) -> Mapping[str, Arrival]:
        return {origin: Arrival(held.run.id, held.run.stamp) for origin, held in self.held.items()}

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        self._experiments.update({experiment.id: experiment for experiment in experiments})
        return ()

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[MemoryPlace]:  # noqa: ARG002
        yield MemoryPlace(self, refs)

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:  # noqa: ARG002
        return ()

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:  # noqa: ARG002
        return ()

    def names(self, ids: Mapping[str, str]) -> Names:  # noqa: ARG002
        return SameNames()

    def close(self) -> None: ...

    def arrive(self, arrivals: Mapping[str, Held]) -> None:
        """Puts a whole pack here, at once."""
        with self._lock:
            self.held.update(arrivals)


class MemoryReading:
    """Some runs of a Memory."""

    distinct = False

    def __init__(self, held: Sequence[Held]) -> None:
        self._held = held
        self.runs = [one.run for one in held if not one.run.id.startswith(RECORDS_PREFIX)]
        self.losses: list[Loss] = []

    def points(self) -> Iterator[pa.RecordBatch]:
        for one in self._held:
            yield from one.points.to_batches(max_chunksize=64_000)

    def artifacts(self) -> Iterator[Artifact]:
        for one in self._held:
            for (owner, path), data in one.artifacts.items():
                yield _artifact(owner, path, data)

    def records(self) -> Iterator[Record]:
        for one in self._held:
            yield from one.records


class MemoryPlace:
    """A pack on its way into a Memory: nothing is there before `commit`."""

    def __init__(self, memory: Memory, refs: Sequence[RunRef]) -> None:
        self._memory = memory
        self._runs: dict[str, Run] = {}
        self._holders = [ref for ref in refs if ref.kind == "records"]
        self._points: list[pa.RecordBatch] = []
        self._artifacts: dict[tuple[str, str], bytes] = {}
        self._records: list[Record] = []

    def begin(self, runs: Sequence[Run]) -> None:
        self._runs = {run.id: run for run in runs}

    def points(self, batch: pa.RecordBatch) -> None:
        self._points.append(batch)

    def put(self, artifact: Artifact) -> None:
        with artifact.open() as stream:
            self._artifacts[artifact.owner, artifact.path] = stream.read()

    def keep(self, record: Record) -> None:
        self._records.append(record)

    def commit(self, losses: Sequence[Loss] = ()) -> Mapping[str, str]:  # noqa: ARG002  the report has them
        arrivals = {run.origin: self._whole(run) for run in self._runs.values()}
        for ref in self._holders:
            run = Run(ref.id, ref.experiment, origin=ref.origin, stamp=ref.stamp)
            arrivals[ref.origin] = Held(run, artifacts=self._artifacts, records=tuple(self._records))
        self._memory.arrive(arrivals)
        return {origin: held.run.id for origin, held in arrivals.items()}

    def _whole(self, run: Run) -> Held:
        table = pa.Table.from_batches(self._points, POINTS).unify_dictionaries()
        mine = table.filter(pc.equal(table["run"].cast(pa.utf8()), run.id))
        artifacts = {key: data for key, data in self._artifacts.items() if key[0] == run.id}
        return Held(run, mine, artifacts)


_places: dict[str, Memory] = {}


def place(name: str) -> Memory:
    """The place that memory:NAME names, made when it is not there yet."""
    return _places.setdefault(name, Memory())


def install(name: str, memory: Memory) -> Address:
    """Makes memory:NAME mean this place."""
    _places[name] = memory
    return Address("memory", name)


def open_source(address: Address, context: Context) -> Memory:  # noqa: ARG001
    """The place of that name; raises NotFound when nothing was ever put there."""
    if address.place not in _places:
        raise NotFound(f"memory:{address.place} does not exist.")
    return _places[address.place]


def open_target(address: Address, context: Context) -> Memory:  # noqa: ARG001
    """The place of that name, made when it is not there yet."""
    return place(address.place)


def _artifact(owner: str, path: str, data: bytes) -> Artifact:
    return Artifact(owner, path, lambda: io.BytesIO(data), len(data))
