"""The loop: one for export, import and copy.

    Source --refs--> survey --packs-->  read > map > fit > write > receipt  --> ledger, report
                                        `------- one pack, anywhere ------'

A pack that fails is carried again in halves, until the one run that is to blame stands alone: one
bad run never stops the others.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mlmigrate.engine import executor
from mlmigrate.errors import DiskFull, LedgerInUse, MigrateError, Refused, Stopped, Unavailable, UsageError
from mlmigrate.events import Failure, Progress, RunEvent, RunState
from mlmigrate.ledger import Ledger
from mlmigrate.model import Loss, Receipt, RunRef
from mlmigrate.pack import Contents, Pack, packs
from mlmigrate.survey import Job, Places, Survey, named_records, opened, places_of, survey

T = TypeVar("T")
FATAL = (DiskFull, LedgerInUse, Refused, UsageError)
LEAST_POINTS = 200_000  # of a pack that is made smaller than it may be
AWAY_IN_A_ROW = 3  # so many packs in vain, none between them: the place is gone, not busy


@dataclass(frozen=True, slots=True)
class Report:
    """What a transfer came to. `size` in bytes; `records` counts by kind."""

    runs: int
    copied: int
    already: int
    failed: tuple[Failure, ...]
    losses: tuple[Loss, ...]
    oddities: tuple[Loss, ...]
    points: int
    artifacts: int
    size: int
    seconds: float
    stopped: bool = False
    records: Mapping[str, int] = field(default_factory=dict)


def transfer_pack(job: Job, pack: Pack) -> Receipt:
    """Carries one pack, whole or not at all. Runs in a thread, a process or on another machine."""
    places = places_of(job)
    return places.steps.do("a pack", _carry, places, pack)


def _carry(places: Places, pack: Pack) -> Receipt:
    with places.source.read(pack.refs) as reading:
        contents, passing = Contents(reading, places.recipe, pack.refs), places.passing()
        with places.target.pack(pack.id, pack.refs, contents.distinct) as place, passing.going():
            place.begin(contents.runs)
            for batch in _checked(places, contents.points()):
                place.points(batch)
                passing.points(len(batch))
            for record in _checked(places, contents.records()):
                place.keep(record)
            for artifact in _checked(places, contents.artifacts()):
                place.put(passing.artifact(artifact))
                passing.put()
            ids = place.commit(contents.losses)
            losses = (*contents.losses, *getattr(place, "losses", ()))
    seen = contents.points_seen, contents.artifacts_seen, contents.bytes_seen
    return Receipt(pack.id, ids, losses, *seen, contents.records_seen)


def _checked(places: Places, values: Iterator[T]) -> Iterator[T]:
    """The values, until somebody asks to stop."""
    for value in values:
        places.steps.check()
        yield value


def transfer(job: Job, ledger: Ledger, progress: Progress, workers: int = 0, dask: str = "") -> Report:
    """Carries what `job` asks for and is not in the target yet. 0 workers: one for each core.

    Raises what both places raise on opening, Unavailable when one of them is gone for good, and
    DiskFull; each of these after all that was under way has been written down.
    """
    stop = threading.Event()
    with opened(job, progress, stop) as places:
        progress.note(f"Reading {job.source.shown}")
        seen = survey(places)
        work = _Work(job, places, seen, ledger, progress)
        try:
            work.open()
            with executor(workers, dask) as pool:
                work.carry(pool)
            work.finish()
        except (KeyboardInterrupt, Stopped):
            work.stopped = True
        finally:
            stop.set()
            work.close()
        return work.report()


@dataclass
class _Work:
    """One transfer under way; the main thread's alone."""

    job: Job
    places: Places
    survey: Survey
    ledger: Ledger
    progress: Progress
    started: float = field(default_factory=time.monotonic)
    ids: dict[str, str] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    copied: int = 0
    points: int = 0
    artifacts: int = 0
    size: int = 0
    records: Counter[str] = field(default_factory=Counter)
    away: int = 0
    bug: Exception | None = None
    stopped: bool = False
    oddities: tuple[Loss, ...] = ()

    @property
    def runs(self) -> list[RunRef]:
        return [ref for ref in (*self.survey.already, *self.survey.todo) if ref.kind == "run"]

    def open(self) -> None:
        """Tells everyone what there is to do, and prepares the target."""
        todo = [ref for ref in self.survey.todo if ref.kind == "run"]
        self.progress.begin("copy", len(todo), sum(ref.points for ref in todo), sum(ref.size for ref in todo))
        self.ledger.begin(len(todo), len(self.runs) - len(todo))
        self._lose(self.survey.losses)
        if self.job.target_settings.on_conflict == "fail":  # before anything is written
            named = self.places.steps.do("models", named_records, self.places, self.survey.todo)
            experiments = list(self.survey.experiments.values())
            self.places.steps.do("names", self.places.target.foresee, experiments, named)
        self._lose(
            self.places.steps.do("experiments", self.places.target.prepare, list(self.survey.experiments.values()))
        )
        for ref in self.survey.already:
            self.ids[ref.origin] = self.survey.arrived[ref.origin].id
            self._tell(ref, "already", self.ids[ref.origin], 0)

    def carry(self, pool: Executor) -> None:
        """Runs in parallel; then records, one pack after another, for they refer to runs and to each other."""
        bounds = self.places.source.packing.within(self.places.target.packing)
        # so many packs that no worker ends long before the others
        share = sum(ref.points for ref in self.survey.todo) // (2 * _width(pool))
        bounds = replace(bounds, points=min(bounds.points, max(share, LEAST_POINTS)))
        kinds: tuple[tuple[list[RunRef], bool], ...] = (
            ([ref for ref in self.survey.todo if ref.kind == "run"], True),
            ([ref for ref in self.survey.todo if ref.kind == "records"], False),
        )
        for refs, parallel in kinds:
            self._carry(pool, list(packs(refs, bounds)), parallel=parallel)
        if self.bug is not None:
            raise self.bug

    def _carry(self, pool: Executor, waiting: list[Pack], *, parallel: bool) -> None:
        under_way: dict[Future[Receipt], Pack] = {}
        waiting.reverse()
        most = _width(pool) if parallel else 1
        try:
            while waiting or under_way:
                while waiting and len(under_way) < most:
                    pack = waiting.pop()
                    under_way[pool.submit(transfer_pack, self.job, pack)] = pack
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    waiting += self._settle(under_way.pop(future), future)
        except BaseException:
            self.places.steps.stop.set()
            self._last(under_way)
            raise

    def _last(self, under_way: Mapping[Future[Receipt], Pack]) -> None:
        """What was under way when something ended the transfer: written down if it arrived after all."""
        for future, pack in under_way.items():
            if not future.cancel() and future.exception() is None:
                self._arrived(pack, future.result())

    def _settle(self, pack: Pack, future: Future[Receipt]) -> Sequence[Pack]:
        """Writes down how a pack ended; gives the packs to try instead."""
        error = future.exception()
        if error is None:
            self._arrived(pack, future.result())
            return ()
        if isinstance(error, FATAL) or not isinstance(error, Exception):
            raise error
        self.away = self.away + 1 if isinstance(error, Unavailable) else 0
        if self.away >= AWAY_IN_A_ROW:
            raise error
        if len(pack.refs) > 1 and not isinstance(error, Unavailable):
            return pack.halves
        for ref in pack.refs:
            self._fail(ref, error)
        return ()

    def _arrived(self, pack: Pack, receipt: Receipt) -> None:
        self.away = 0
        self.ids |= receipt.ids
        self.points += receipt.points
        self.artifacts += receipt.artifacts
        self.size += receipt.size
        self.records.update(receipt.records)
        lost: dict[str, int] = {}
        for loss in receipt.losses:
            lost[loss.run] = lost.get(loss.run, 0) + 1
        gone = [ref for ref in pack.refs if ref.kind == "run" and ref.origin not in receipt.ids]
        arrived = [ref for ref in pack.refs if ref not in gone]
        self.ledger.arrived(arrived, receipt)
        for ref in arrived:
            self.copied += ref.kind == "run"
            self._tell(ref, "copied", receipt.ids.get(ref.origin, ""), lost.get(ref.id, 0))
        for ref in gone:
            self._fail(ref, MigrateError("The run was there when the runs were listed, and is gone now."))
        self._lose(receipt.losses, to_ledger=False)

    def _fail(self, ref: RunRef, error: Exception) -> None:
        message = str(error)
        if not isinstance(error, MigrateError):
            message = "".join(traceback.format_exception(error))
            self.bug = self.bug or error
        failure = Failure(self._experiment(ref), ref.id, ref.name, type(error).__name__, message)
        self.failed[ref.origin] = failure
        self.ledger.failed(ref, failure)
        self.progress.failure(failure)
        self._tell(ref, "failed", "", 0)

    def finish(self) -> None:
        """References between runs, and deletions, once all of an experiment's runs are there."""
        waiting_for = {failure.experiment for failure in self.failed.values()}
        done = [one for one in self.survey.experiments.values() if one.name not in waiting_for]
        ids = {origin: arrival.id for origin, arrival in self.survey.arrived.items()} | self.ids
        self._lose(self.places.steps.do("references", self.places.target.finish, done, ids))

    def close(self) -> None:
        """Ends it for everyone. Some oddities are known only once the runs were read."""
        self.oddities = tuple(self.places.source.oddities())
        self.progress.end()
        self.ledger.end(self.oddities)

    def report(self) -> Report:
        already = sum(ref.kind == "run" for ref in self.survey.already)
        return Report(
            runs=len(self.runs),
            copied=self.copied,
            already=already,
            failed=tuple(self.failed.values()),
            losses=tuple(self.losses),
            oddities=self.oddities,
            points=self.points,
            artifacts=self.artifacts,
            size=self.size,
            seconds=time.monotonic() - self.started,
            stopped=self.stopped,
            records=self.records,
        )

    def _lose(self, losses: Sequence[Loss], *, to_ledger: bool = True) -> None:
        for loss in losses:
            named = replace(loss, experiment=self._name(loss.experiment))
            self.losses.append(named)
            self.progress.loss(named)
        if to_ledger:
            self.ledger.lost(losses)

    def _tell(self, ref: RunRef, state: RunState, target_id: str, losses: int) -> None:
        if ref.kind == "run":
            self.progress.run(RunEvent(self._experiment(ref), ref.id, ref.name, state, target_id, losses))

    def _experiment(self, ref: RunRef) -> str:
        return self._name(ref.experiment)

    def _name(self, experiment: str) -> str:
        known = self.survey.experiments.get(experiment)
        return known.name if known is not None else experiment


def _width(pool: Executor) -> int:
    """How many packs may be under way at once: twice the workers, so that none waits for us."""
    return 2 * getattr(pool, "_max_workers", 32)


__all__ = ["Job", "Report", "transfer", "transfer_pack"]
