"""Runs of W&B's as mlmigrate's values: what both of its sources give.

    Opened --> a run that is W&B's own     natives   config, history, summary; and all of it under wandb/ (index)
           --> a run that we wrote         restored  as it was before
           --> a run of kind "records"     records.jsonl, and the files of what is in it
           --> catalogue.Told              a sweep, a group, reports: made here, not read

What a source lists it gathers in a catalogue.Catalogue, which knows experiments and refs, and opens the last of these.

Runs are opened one by one; history passes in blocks; what in it is no number is spooled to a file on its way, or read
again where nobody took the points.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import BinaryIO, Self

import pyarrow as pa

from mlmigrate.adapters.wandb import blocks, index, natives, restored
from mlmigrate.adapters.wandb.catalogue import Told
from mlmigrate.adapters.wandb.clients import Named
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.provenance import HISTORY_JSONL, RUN_JSON, STEP, Provenance
from mlmigrate.adapters.wandb.shape import Block, File, Opened, Opener, WandbRun
from mlmigrate.errors import MigrateError, Unavailable
from mlmigrate.model import Artifact, Loss, Record, Run, RunRef

OpenRun = Callable[[RunRef], Opened | None]


@dataclass(slots=True)
class _One:
    """A run being read. `run` is W&B's, `neutral` ours, None of what holds records.

    spool   the file of values that are no numbers, made by whoever saw the history first; None before that
    seen    what that history held
    named   the versions that its values name
    told    its losses that were passed on
    """

    ref: RunRef
    opened: Opened
    run: WandbRun
    provenance: Provenance | None
    neutral: Run | None
    spool: Path | None = None
    seen: natives.Seen = field(default_factory=natives.Seen)
    named: Named = field(default_factory=Named)
    told: Counter[Loss] = field(default_factory=Counter)

    @property
    def own(self) -> bool:
        """Whether the run's rows are W&B's own."""
        return self.provenance is None or self.provenance.native


class WandbReading:
    """Some runs, opened. It ends with its block, and its temporary files with it."""

    distinct = False  # a log may repeat itself

    def __init__(self, refs: Iterable[RunRef], open_run: OpenRun, options: Options) -> None:
        self._open_run, self._options = open_run, options
        self.losses: list[Loss] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self._all = [one for ref in refs if (one := self._one(ref)) is not None]
        self.runs: Sequence[Run] = [one.neutral for one in self._all if one.neutral is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes its temporary files away."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def points(self) -> Iterator[pa.RecordBatch]:
        """Every number of history, then of system metrics, then what the summary alone has; a run's together."""
        for one in self._all:
            if one.neutral is not None:
                yield from self._points(one, one.neutral)
            self._tell(one)

    def artifacts(self) -> Iterator[Artifact]:
        """The files of the runs; of W&B's own also what tells of them exactly."""
        for one in self._all:
            if one.neutral is None:
                yield from self._record_files(one)
            elif one.provenance is None:
                yield from self._own_files(one)
            else:
                yield from self._restored_files(one, one.provenance)
            self._tell(one)

    def records(self) -> Iterator[Record]:
        """What refs of kind "records" hold."""
        for one in self._all:
            if one.neutral is not None:
                continue
            if isinstance(one.opened, Told):
                yield from one.opened.told
            elif one.provenance is not None:
                losses: list[Loss] = []
                for record in restored.records_of(one.run, losses):
                    yield restored.owned(record, one.provenance, one.ref.experiment)
                self.losses += [_loss(one.ref, loss) for loss in losses]
            self._tell(one)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _one(self, ref: RunRef) -> _One | None:
        opened = self._open_run(ref)
        if opened is None:
            self.losses.append(_loss(ref, Loss("", "the run", "gone since it was listed")))
            return None
        run, losses = natives.bounded(opened.run)
        provenance = restored.provenance_of(run)
        if ref.kind == "records":
            return _One(ref, opened, run, provenance, None)
        if provenance is None:
            found, renamed = natives.run_of(run, self._options)
            losses += [*renamed, *restored.unreadable(run)]
        else:
            found = restored.run_of(run, provenance)
            if restored.has_records(run):
                found = replace(found, records=tuple(restored.records_of(run, losses)))
        self.losses += [_loss(ref, loss) for loss in losses]
        named = replace(found, id=ref.id, experiment=ref.experiment, origin=ref.origin, stamp=ref.stamp)
        return _One(ref, opened, run, provenance, named)

    def _tell(self, one: _One) -> None:
        """Passes on what a run's streams lost since it was asked last."""
        self._pass_on(one, one.opened)

    def _pass_on(self, one: _One, opened: Opened) -> None:
        now = Counter(opened.losses)
        self.losses += [_loss(one.ref, loss) for loss in (now - one.told).elements()]
        one.told |= now

    # -- points --------------------------------------------------------------------------------------------------------

    def _points(self, one: _One, neutral: Run) -> Iterator[pa.RecordBatch]:
        with self._spooling(one) as spool:
            first = 0
            for block in one.opened.history():
                spool(block)
                yield from _filled(blocks.points(block, one.ref.id, restored=not one.own, first_row=first))
                first += block.rows
        first = 0
        for block in one.opened.events():
            ours = not one.own or (one.provenance is not None and STEP in block.keys)  # we number those of any run
            yield from _filled(blocks.event_points(block, one.ref.id, restored=ours, first_row=first))
            first += block.rows
        last = natives.summary_points(neutral, one.run.summary, one.seen) if one.own else None
        if last is not None:
            yield last
        if one.provenance is None:
            self.losses += [_loss(one.ref, loss) for loss in natives.renamed(one.run, one.seen)]

    @contextmanager
    def _spooling(self, one: _One) -> Iterator[Callable[[Block], None]]:
        """Keeps the values that are no numbers of a run that is W&B's own; they are there when the block ends well."""
        seen = natives.Seen()
        if one.provenance is not None or one.spool is not None:
            yield seen.look
            one.seen = seen
            return
        path, named = self._file(), Named()
        with path.open("wb") as file:

            def take(block: Block) -> None:
                seen.look(block)
                file.writelines(named.through(index.lines(block)))

            yield take
        one.spool, one.seen, one.named = path, seen, named

    def _file(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mlmigrate-wandb-")
        self._files += 1
        return Path(self._folder.name) / f"{self._files}.jsonl"

    # -- files ---------------------------------------------------------------------------------------------------------

    def _own_files(self, one: _One) -> Iterator[Artifact]:
        told = index.of(one.run)
        for path, file in told.places():
            because: list[str] = []
            yield from self._artifact(one, one.ref.id, path, file, because)
            if because:
                told.gone[path] = because[0]
        yield from self._values(one)
        one.named.take(one.run.summary)
        alone = tuple(natives.alone(one.run.summary, one.seen))
        told.run = replace(told.run, alone=alone, logged=one.opened.called(one.named))
        yield Artifact(one.ref.id, RUN_JSON, lambda: BytesIO(told.encoded()), values=True)

    def _values(self, one: _One) -> Iterator[Artifact]:
        """wandb/history.jsonl, when there is anything to tell in it."""
        if one.spool is None:
            again = self._open_run(one.ref)
            with self._spooling(one) as spool:
                for block in again.history() if again is not None else ():
                    spool(block)
            if again is not None:
                self._pass_on(one, again)
        path = one.spool
        if path is not None and (size := path.stat().st_size):
            yield Artifact(one.ref.id, HISTORY_JSONL, partial(_opened, path), size, values=True)

    def _restored_files(self, one: _One, told: Provenance) -> Iterator[Artifact]:
        kept, losses = restored.files_of(one.run, told)
        self.losses += [_loss(one.ref, loss) for loss in losses]
        for path, file in kept:
            yield from self._artifact(one, one.ref.id, path, file)

    def _record_files(self, one: _One) -> Iterator[Artifact]:
        for owner, (path, file) in restored.record_files_of(one.run):
            yield from self._artifact(one, owner, path, file)

    def _artifact(
        self, one: _One, owner: str, path: str, file: File, because: list[str] | None = None
    ) -> Iterator[Artifact]:
        """The file, if its bytes can be had: that is tried here, and what was opened is used for the first reading."""
        reason = _without_bytes(path, file)
        if not reason and file.open is not None:
            ahead = _Ahead(file.open)
            reason = ahead.look()
            if not reason:
                made = one.provenance is not None and path in (RUN_JSON, HISTORY_JSONL)
                with ahead:
                    yield Artifact(owner, path, ahead.open, file.size, values=made)
                return
        self.losses.append(_loss(one.ref, Loss("", f"artifact {path!r}", reason)))
        if because is not None:
            because.append(reason)


@dataclass(slots=True)
class _Ahead:
    """A file that was opened to see that it is there; who opens it first goes on with that."""

    opener: Opener
    _held: tuple[ExitStack, BinaryIO] | None = None
    _lock: Lock = field(default_factory=Lock)

    def look(self) -> str:
        """Opens it; gives why that cannot be, "" when it can. Raises Unavailable."""
        stack = ExitStack()
        try:
            self._held = stack, stack.enter_context(self.opener())
        except Unavailable:
            raise
        except (MigrateError, OSError) as error:
            return f"its bytes are gone: {error}"
        return ""

    def open(self) -> AbstractContextManager[BinaryIO]:
        return self._opened()

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        held = self._take()
        if held is None:
            with self.opener() as stream:
                yield stream
            return
        stack, stream = held
        with stack:
            yield stream

    def _take(self) -> tuple[ExitStack, BinaryIO] | None:
        with self._lock:
            held, self._held = self._held, None
        return held

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        """Nobody wants it any more."""
        held = self._take()
        if held is not None:
            held[0].close()


def _opened(path: Path) -> AbstractContextManager[BinaryIO]:
    return path.open("rb")


def _without_bytes(path: str, file: File) -> str:
    """Why a file cannot even be tried; "" when it can."""
    if not restored.clean(path):
        return "its name is no path below a folder"
    if file.ref:
        return f"W&B has no bytes of it, only that it lies at {file.ref}"
    return file.gone or ("" if file.open is not None else "W&B tells no way to its bytes")


def _loss(ref: RunRef, loss: Loss) -> Loss:
    return replace(loss, run="" if ref.kind == "records" else ref.id, experiment=ref.experiment)


def _filled(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if len(batch):
        yield batch
