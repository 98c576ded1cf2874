"""A metric file of any size, a few megabytes at a time.

Points are counted once here too.  While the steps or the times of a file rise no point can repeat
another, and nothing need be remembered.  Where they stop rising the file is looked through for
repeats, by 8-byte numbers that stand for points, so many at a time that memory stays small.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH116

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlmigrate.adapters.mlflow.files import disk
from mlmigrate.adapters.mlflow.files.lines import Bad, shortened
from mlmigrate.model import Loss

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.files.points import Columns, MetricFile

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

CHUNK = 3 << 20
LONGEST = 1 << 20  # a longer line is no point
AT_A_TIME = 6_000_000  # points whose numbers are held together
REPEATED = "{} there already, equal to the last digit; each point is counted once, no value is lost"


@dataclass(slots=True)
class _Rise:
    """Whether steps, or times, rose all along."""

    step: int | None = None
    time: int | None = None
    by_step: bool = True
    by_time: bool = True

    def add(self, columns: Columns) -> bool:
        """Whether no point of these can repeat an earlier one."""
        if not len(columns):
            return self.by_step or self.by_time
        steps, times = columns.step, columns.timestamp
        if self.step is not None and self.time is not None:
            steps, times = np.r_[self.step, steps], np.r_[self.time, times]
        up = steps[1:] > steps[:-1]
        self.by_step &= bool(up.all())
        self.by_time &= bool(((times[1:] > times[:-1]) | ((times[1:] == times[:-1]) & up)).all())
        self.step, self.time = int(steps[-1]), int(times[-1])
        return self.by_step or self.by_time


def stream(file: MetricFile, losses: list[Loss], notes: list[Loss]) -> Iterator[Columns]:
    """The points of a file in order, each once."""
    rise = _Rise()
    dropped: I64 | None = None
    row = bad = again = linked = 0
    try:
        for columns, flaws in _chunks(file.place):
            losses += [_bad(file, flaw) for flaw in flaws[: max(0, 10 - bad)]]
            bad += len(flaws)
            if dropped is None and not rise.add(columns):
                dropped = _repeats(file.place)
            kept = columns if dropped is None else _without(columns, dropped - row)
            linked += _linked(columns) - _linked(kept)
            row, again = row + len(columns), again + len(columns) - len(kept)
            yield kept
    except OSError as error:
        losses.append(Loss(file.run, f"metric {file.key!r}", disk.why(error), file.experiment))
    if bad > 10:  # noqa: PLR2004
        losses.append(Loss(file.run, f"metric {file.key!r}", f"{bad - 10} more lines cannot be read", file.experiment))
    if again:
        because = REPEATED.format("1 line is" if again == 1 else f"{again} lines are")
        notes.append(Loss(file.run, f"metric {file.key!r}", because, file.experiment))
    if linked:
        because = f"{linked} of these name a dataset; that of the first line is kept, in so large a file"
        losses.append(Loss(file.run, f"metric {file.key!r}", because, file.experiment))


def _bad(file: MetricFile, flaw: Bad) -> Loss:
    return Loss(file.run, f"metric {file.key!r}, line {flaw.number}", flaw.because, file.experiment)


def _linked(columns: Columns) -> int:
    """How many points have a dataset."""
    return 0 if columns.name is None else len(columns) - int(columns.name.null_count)


def _without(columns: Columns, rows: I64) -> Columns:
    rows = rows[(rows >= 0) & (rows < len(columns))]
    if not len(rows):
        return columns
    kept = np.ones(len(columns), np.bool_)
    kept[rows] = False
    return columns.take(np.flatnonzero(kept))


def _chunks(place: str) -> Iterator[tuple[Columns, list[Bad]]]:
    """The file's points some lines at a time, as far as it reached when it was opened."""
    from mlmigrate.adapters.mlflow.files.points import parse  # noqa: PLC0415 - the two need each other

    line = 1
    for data, too_long in _whole_lines(place):
        if too_long:
            yield parse([b""]).columns, [Bad(line, f"longer than {LONGEST >> 20} MiB: {shortened(data)}")]
            line += 1
            continue
        parsed = parse([data])
        yield parsed.columns, [Bad(line - 1 + flaw.number, flaw.because) for _, flaw in parsed.bad]
        line += data.count(b"\n")


def _whole_lines(place: str) -> Iterator[tuple[bytes, bool]]:
    """Some whole lines, or (True) the beginning of one that is too long."""
    carried, skipping = b"", False
    for data in _read(place):
        end = data.rfind(b"\n") + 1
        if skipping:
            start = data.find(b"\n") + 1
            if not start:
                continue
            data, end, skipping = data[start:], end - start, False  # noqa: PLW2901
        if end:
            yield carried + data[:end], False
            carried = data[end:]
        else:
            carried += data
        if len(carried) > LONGEST:
            yield carried[:100], True
            carried, skipping = b"", True
    if carried:
        yield carried, False


def _read(place: str) -> Iterator[bytes]:
    handle = os.open(place, disk.FLAGS)
    try:
        left = os.fstat(handle).st_size
        while left > 0 and (data := os.read(handle, min(CHUNK, left))):
            left -= len(data)
            yield data
    finally:
        os.close(handle)


def _repeats(place: str) -> I64:
    """The numbers of the rows that repeat an earlier one, sorted."""
    parts = 1 + os.stat(place).st_size // _bytes_a_line(place) // AT_A_TIME
    found = [_repeats_among(place, np.uint64(part), np.uint64(parts)) for part in range(parts)]
    return np.sort(np.concatenate(found))


def _bytes_a_line(place: str) -> int:
    first = next(_read(place), b"")
    return max(1, len(first) // max(1, first.count(b"\n")))


def _repeats_among(place: str, part: np.uint64, parts: np.uint64) -> I64:
    """The repeats among the points whose number leaves `part` when divided by `parts`."""
    numbers = np.concatenate([mine[mine % parts == part] for mine, _ in _numbered(place)])
    numbers.sort()
    twice = np.unique(numbers[1:][numbers[1:] == numbers[:-1]])
    if not len(twice):
        return np.zeros(0, np.int64)
    return _later(place, twice)


def _later(place: str, twice: U64) -> I64:
    """The rows whose number is one of `twice`, but for the first row of each."""
    hits, rows = [], []
    for numbers, row in _numbered(place):
        near = np.minimum(np.searchsorted(twice, numbers), len(twice) - 1)
        mine = np.flatnonzero(twice[near] == numbers)
        hits.append(near[mine])
        rows.append(mine + row)
    hit, where = np.concatenate(hits), np.concatenate(rows)
    order = np.argsort(hit, kind="stable")
    again = hit[order][1:] == hit[order][:-1]
    later: I64 = where[order[1:][again]]
    return later


def _numbered(place: str) -> Iterator[tuple[U64, int]]:
    """The numbers of the points, and which row is the first of them."""
    row = 0
    for columns, _ in _chunks(place):
        yield _numbers(columns), row
        row += len(columns)


def _numbers(columns: Columns) -> U64:
    """A number for each point: SplitMix64's finaliser over its three columns, a bijection for each."""
    number = np.full(len(columns), 0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for column in (columns.timestamp, columns.step, columns.bits):
            number = _mixed(number + column.view(np.uint64))
    return number


def _mixed(number: U64) -> U64:
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))
