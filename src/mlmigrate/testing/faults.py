"""Failures made, not awaited: places that stop, or are away, at the nth call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from mlmigrate.adapters.base import Limits, Names, Packing, Place, Target
from mlmigrate.model import Arrival, Artifact, Experiment, Loss, Record, Run, RunRef

T = TypeVar("T")


@dataclass
class Fault:
    """Raises `error` at the nth call (from 1), before or after it is done, and only once."""

    at: int
    error: BaseException
    after: bool = False
    calls: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    happened: bool = False

    def around(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The call, or its failure."""
        now = next(self.calls) == self.at
        if now and not self.after:
            self.happened = True
            raise self.error
        answer = call(*args, **kwargs)
        if now:
            self.happened = True
            raise self.error
        return answer


class Faulty:
    """A target that fails as its fault says."""

    def __init__(self, target: Target, fault: Fault) -> None:
        self._target, self._fault = target, fault
        self.limits: Limits = target.limits
        self.packing: Packing = target.packing

    def arrived(self) -> Mapping[str, Arrival]:
        return self._fault.around(self._target.arrived)

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        return self._fault.around(self._target.prepare, experiments)

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[FaultyPlace]:
        with self._target.pack(id, refs, distinct) as place:
            yield FaultyPlace(place, self._fault)

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:
        return self._fault.around(self._target.finish, experiments, ids)

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:
        return self._fault.around(self._target.foresee, experiments, records)

    def names(self, ids: Mapping[str, str]) -> Names:
        return self._target.names(ids)

    def close(self) -> None:
        self._target.close()


class FaultyPlace:
    """A pack that fails as its fault says."""

    def __init__(self, place: Place, fault: Fault) -> None:
        self._place, self._fault = place, fault

    @property
    def losses(self) -> Sequence[Loss]:
        return getattr(self._place, "losses", ())

    def begin(self, runs: Sequence[Run]) -> None:
        self._fault.around(self._place.begin, runs)

    def points(self, batch: pa.RecordBatch) -> None:
        self._fault.around(self._place.points, batch)

    def put(self, artifact: Artifact) -> None:
        self._fault.around(self._place.put, artifact)

    def keep(self, record: Record) -> None:
        self._fault.around(self._place.keep, record)

    def commit(self, losses: Sequence[Loss] = ()) -> Mapping[str, str]:
        return self._fault.around(self._place.commit, losses)
