"""Sorts more rows of numbers than memory holds.

    add add add ─▶ held ─spill─▶ chunk 0, chunk 1, ... ─▶ each sorted ─▶ merged, a slab at a time

A slab is columns of one length. Equal rows stay in the order in which they came.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlmigrate.adapters.wandb.moments import Ints
from mlmigrate.storage.local import explain

Slab = dict[str, npt.NDArray[Any]]
_SMALLEST, _LARGEST = 1024, 65536  # rows of a batch in a file
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


def length(slab: Slab) -> int:
    """How many rows it has."""
    return len(next(iter(slab.values())))


def joined(slabs: Sequence[Slab]) -> Slab:
    """One after another."""
    return slabs[0] if len(slabs) == 1 else {name: np.concatenate([one[name] for one in slabs]) for name in slabs[0]}


def cut(slab: Slab, start: int, end: int | None = None) -> Slab:
    """The rows from `start` on, to `end`."""
    return {name: column[start:end] for name, column in slab.items()}


def chosen(slab: Slab, which: npt.NDArray[Any]) -> Slab:
    """Those rows: their numbers, or of each whether it is one of them."""
    return {name: column[which] for name, column in slab.items()}


def ordered(slab: Slab, by: Sequence[str]) -> Slab:
    """Sorted by these columns, the first of them first."""
    order = _order([slab[name] for name in by])
    return slab if order is None else chosen(slab, order)


def changes(slab: Slab, by: Sequence[str]) -> npt.NDArray[np.bool_]:
    """For each row but the first, whether it differs from the one before in any of these columns."""
    found = np.zeros(max(0, length(slab) - 1), np.bool_)
    for name in by:
        column = slab[name]
        found |= column[1:] != column[:-1]
    return found


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """A block that writes a file: raises DiskFull and the like."""
    try:
        yield
    except OSError as error:
        told = explain(error, str(file))
        if told is None:
            raise
        raise told from error


class Chunks:
    """A file of slabs, written once and then read, from any of them on."""

    def __init__(self, file: Path, batch: int = _LARGEST) -> None:
        self._file, self._batch = file, batch
        self._writer: pa.RecordBatchFileWriter | None = None

    def write(self, slab: Slab) -> None:
        """Some more rows."""
        table = pa.table(slab)
        with explained(self._file):
            if self._writer is None:
                self._writer = pa.ipc.new_file(str(self._file), table.schema, options=_OPTIONS)
            self._writer.write_table(table, max_chunksize=self._batch)

    def slabs(self, start: int = 0) -> Iterator[Slab]:
        """From slab number `start` on; a slab has `batch` rows at most."""
        self.close()
        with pa.OSFile(str(self._file)) as file, pa.ipc.open_file(file) as reader:
            for i in range(start, reader.num_record_batches):
                batch = reader.get_batch(i)
                yield {name: column.to_numpy() for name, column in zip(batch.schema.names, batch.columns, strict=True)}

    def close(self) -> None:
        """Writes no more."""
        if self._writer is not None:
            with explained(self._file):
                self._writer.close()
            self._writer = None

    def remove(self) -> None:
        """Takes the file away."""
        self.close()
        self._file.unlink(missing_ok=True)


class Sorter:
    """Takes slabs; gives them sorted. `name` is that of its files in `folder`, of which there are none at first."""

    def __init__(self, folder: Path, name: str, in_memory: int) -> None:
        self._folder, self._name, self.in_memory = folder, name, in_memory
        self._held: list[Slab] = []
        self._chunks: list[Chunks] = []
        self.held = 0

    @property
    def spilled(self) -> bool:
        """Whether some of it is in files."""
        return bool(self._chunks)

    def add(self, slab: Slab) -> None:
        """Some more rows."""
        if rows := length(slab):
            self._held.append(slab)
            self.held += rows

    def spill(self) -> None:
        """All that is held goes into a file."""
        if self._held:
            chunk = Chunks(self._folder / f"{self._name}-{len(self._chunks)}.arrow")
            chunk.write(joined(self._held))
            chunk.close()
            self._chunks.append(chunk)
            self._held, self.held = [], 0

    def sorted(self, by: Sequence[str], renumbered: Mapping[str, Ints]) -> Iterator[Slab]:
        """All rows sorted by these columns. `renumbered`: what the numbers in a column become before. Repeatable."""
        if not self._chunks:
            if self._held:
                yield ordered(_renumbered(joined(self._held), renumbered), by)
            return
        self.spill()
        batch = min(max(self.in_memory // (2 * len(self._chunks)), _SMALLEST), _LARGEST)
        runs = [Chunks(self._folder / f"{self._name}-sorted-{i}.arrow", batch) for i in range(len(self._chunks))]
        try:
            for chunk, run in zip(self._chunks, runs, strict=True):
                run.write(ordered(_renumbered(joined(list(chunk.slabs())), renumbered), by))
            yield from _merged([run.slabs() for run in runs], by)
        finally:
            for run in runs:
                run.remove()

    def remove(self) -> None:
        """Takes its files away."""
        for chunk in self._chunks:
            chunk.remove()
        self._held, self._chunks, self.held = [], [], 0


def _renumbered(slab: Slab, renumbered: Mapping[str, Ints]) -> Slab:
    return {name: renumbered[name][column] if name in renumbered else column for name, column in slab.items()}


def _order(columns: Iterable[Ints]) -> Ints | None:
    """Where the rows go; None when they stay. Columns are packed into as few as hold them: that sorts faster."""
    packed: list[Ints] = []
    width = 1
    for column in columns:
        low, high = int(column.min()), int(column.max())
        span = high - low + 1
        if span == 1:
            continue
        near = column.astype(np.int64) - low if span < 2**63 else column
        if packed and width * span < 2**63:
            packed[-1], width = packed[-1] * span + near, width * span
        else:
            packed, width = [*packed, near], span
    if not packed:
        return None
    if len(packed) > 1:
        return np.lexsort(packed[::-1])
    if (packed[0][1:] >= packed[0][:-1]).all():
        return None
    return np.argsort(packed[0], kind="stable")


def _merged(runs: Sequence[Iterator[Slab]], by: Sequence[str]) -> Iterator[Slab]:
    """Sorted runs as one. Of equal rows, those of the earlier run are first."""
    blocks: dict[int, Slab] = {}
    more = dict(enumerate(runs))
    while True:
        for i in sorted(more.keys() - blocks.keys()):
            block = next(more[i], None)
            if block is None:
                del more[i]
            else:
                blocks[i] = block
        if not blocks:
            return
        last = min((*_at(block, by, length(block) - 1), i) for i, block in blocks.items())
        pieces = []
        for i in sorted(blocks):
            end = _until(blocks[i], by, last[:-1], after=i <= last[-1])
            pieces.append(cut(blocks[i], 0, end))
            if end == length(blocks[i]):
                del blocks[i]
            else:
                blocks[i] = cut(blocks[i], end)
        yield ordered(joined([piece for piece in pieces if length(piece)]), by)


def _until(slab: Slab, by: Sequence[str], bound: tuple[int, ...], *, after: bool) -> int:
    """How many rows are less than `bound`; with `after`, those that equal it too."""
    search = bisect_right if after else bisect_left
    return search(range(length(slab)), bound, key=lambda row: _at(slab, by, row))


def _at(slab: Slab, by: Sequence[str], row: int) -> tuple[int, ...]:
    return tuple(int(slab[name][row]) for name in by)
