"""Folders of offline runs as a source.

Runs of one id are one run: several logs of it are one that was taken up again, their histories joined in the
order of time.  A log that is another's copy (`latest-run` where links were followed) is left out.  Nothing is
written, and nothing outside the folder is read but the bytes of artifacts, those only when their md5 is right.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from mlmigrate.adapters.base import Context, Packing, Reading
from mlmigrate.adapters.wandb.catalogue import Catalogue, Where, stamp_of
from mlmigrate.adapters.wandb.datalog.reader import named
from mlmigrate.adapters.wandb.offline.files import signature
from mlmigrate.adapters.wandb.offline.folders import Found, Place, copies, find, shown
from mlmigrate.adapters.wandb.offline.opened import OfflineRun, joined, log_of, told
from mlmigrate.adapters.wandb.offline.stores import Stores
from mlmigrate.adapters.wandb.options import Options, options
from mlmigrate.adapters.wandb.reading import WandbReading
from mlmigrate.adapters.wandb.shape import Opened, WandbRun
from mlmigrate.address import Address
from mlmigrate.errors import MigrateError, NotFound
from mlmigrate.model import Experiment, Loss, RunRef

A_POINT = 36  # bytes that one takes in a log, about


def open_source(address: Address, context: Context) -> OfflineSource:
    """The runs below a folder, or the one of a lone log. Raises NotFound when nothing is there."""
    place = Path(address.place).expanduser()
    if not place.exists():
        raise NotFound(f"wandb:{address.place} does not exist.", "Name a folder of W&B runs, or a .wandb file.")
    folder = place.parent if place.is_file() else place
    stores = Stores.of(folder.absolute(), context.env, context.settings.artifacts_at)
    return OfflineSource(place, stores, options(context.settings))


class OfflineSource:
    """The runs in a folder; looked through once."""

    packing = Packing()

    def __init__(self, place: Path, stores: Stores, chosen: Options) -> None:
        self._place, self._stores, self._options = place, stores, chosen
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._places: dict[Where, tuple[Place, ...]] = {}
        self._sweeps: dict[Where, str] = {}
        self._odd: list[Loss] = []

    def experiments(self) -> Sequence[Experiment]:
        """The projects."""
        return self._seen().experiments()

    def refs(self) -> Sequence[RunRef]:
        """The runs."""
        return self._seen().refs()

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[Reading]:
        """Some runs, opened one by one."""
        with WandbReading(refs, self._opened, self._options) as reading:
            yield reading

    def oddities(self) -> Sequence[Loss]:
        """What lies in the folder and is no run, or is one twice."""
        return [*self._odd, *self._seen().oddities()]

    def close(self) -> None:
        """Holds nothing open."""

    def _opened(self, ref: RunRef) -> Opened | None:
        seen = self._seen()
        where = seen.find(ref)
        if where is None:
            return seen.opened(ref)
        places = self._places[where]
        if not all(place.log.is_file() for place in places):
            return None
        try:
            return OfflineRun(places, self._stores, self._sweeps.get(where, ""))
        except OSError as error:  # it may not be read any more, or went away just now
            said = f"{places[0].folder} cannot be read: {error.strerror}."
            raise MigrateError(said, "Look at the folder, then run the same command again.") from error

    def _seen(self) -> Catalogue:
        with self._lock:
            if self._catalogue is None:
                self._catalogue = self._look(find(self._place))
            return self._catalogue

    def _look(self, found: Found) -> Catalogue:
        self._odd = [Loss("", what, because) for what, because in found.odd]
        catalogue = Catalogue(self._options)
        for places in _by_id(found.places):
            for head in self._heads(places):
                run = _with_sweep(head.run, found)
                where = Where(run.entity, run.project, run.id)
                self._places[where], self._sweeps[where] = head.places, run.sweep
                catalogue.add(run, *self._measured(head, run))
        self._odd += _unseen(found, {where.id for where in self._places})
        return catalogue

    def _heads(self, places: Sequence[Place]) -> Iterator[_Head]:
        """The runs of one id, by their projects; a log that names none is of the one that there is."""
        heads = [head for place in places if (head := self._head(place)) is not None]
        if not heads:
            return
        projects = sorted({head.run.project for head in heads} - {""})
        for project in projects or [""]:
            mine = [head for head in heads if head.run.project in (project, "" if len(projects) == 1 else project)]
            yield self._joined(mine) if mine else heads[0]
        if len(projects) > 1 and (lost := [head for head in heads if not head.run.project]):
            yield self._joined(lost)

    def _head(self, place: Place) -> _Head | None:
        try:
            log = log_of(place)
            run = told(place, log, [])
        except OSError as error:
            self._odd.append(Loss("", shown(place.log), f"it cannot be read: {error.strerror}"))
            return None
        return _Head(run, (place,), sum(entry.size or 0 for one in log.artifacts for entry in one.entries))

    def _joined(self, heads: Sequence[_Head]) -> _Head:
        """One run of all its logs, copies left out."""
        kept: list[_Head] = []
        for head in sorted(heads, key=lambda head: head.places[0].order):
            twin = next((n for n, one in enumerate(kept) if copies(one.places[0], head.places[0])), None)
            if twin is None:
                kept.append(head)
                continue
            longer, other = sorted((kept[twin], head), key=lambda one: -one.places[0].log.stat().st_size)
            kept[twin] = longer
            because = f"a copy of {shown(longer.places[0].log)}, or its beginning: not read"
            self._odd.append(Loss(head.run.id, f"log {shown(other.places[0].log)}", because))
        if len(kept) > 1:
            because = f"it was taken up again: {len(kept)} logs are one history, in the order of their times"
            self._odd.append(Loss(kept[0].run.id, "the run", because))
        places = tuple(place for head in kept for place in head.places)
        return _Head(reduce(joined, [head.run for head in kept]), places, sum(head.artifacts for head in kept))

    def _measured(self, head: _Head, run: WandbRun) -> tuple[str, int, int]:
        """Stamp, points and bytes, as they can be told without reading."""
        logs = [place.log.stat() for place in head.places]
        files = [list(signature(place.files)) for place in head.places]
        stamp = stamp_of([[one.st_size, one.st_mtime_ns] for one in logs], files, run.state, run.sweep)
        size = head.artifacts + sum(max(0, size) for some in files for _, size, _ in some)
        return stamp, sum(one.st_size for one in logs) // A_POINT, size


@dataclass(frozen=True, slots=True)
class _Head:
    """A run while the folder is looked through: what its logs tell, where they lie, bytes of artifacts."""

    run: WandbRun
    places: tuple[Place, ...]
    artifacts: int


def _by_id(places: Sequence[Place]) -> Iterator[list[Place]]:
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(_id(place), []).append(place)
    yield from found.values()


def _id(place: Place) -> str:
    """A log may be called otherwise than its run."""
    try:
        return (not place.bare and named(place.log)) or place.id
    except OSError:
        return place.id


def _with_sweep(run: WandbRun, found: Found) -> WandbRun:
    """The run with the sweep that chose its params, where the folder knows and the log does not."""
    chosen = found.chosen.get(run.id)
    return replace(run, sweep=chosen[0][0]) if chosen and not run.sweep else run


def _unseen(found: Found, runs: set[str]) -> list[Loss]:
    """Runs of sweeps of which there is nothing but what was chosen for them."""
    missing: dict[str, int] = {}
    for run, chosen in found.chosen.items():
        if run not in runs:
            missing[chosen[0][0]] = missing.get(chosen[0][0], 0) + 1
    because = "their params alone are here: not read"
    return [Loss("", f"{n} runs of sweep {sweep!r}", because) for sweep, n in sorted(missing.items())]
