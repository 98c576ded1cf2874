"""Metric files into Arrow: many files at once, as columns, with exactly the values that Python reads.

A line is "time value", "time value step" or "time value step dataset digest".  Files of plain lines
are joined and parsed by Arrow's CSV reader; whatever it or a glance at the bytes finds odd is parsed
line by line, where a bad line is a loss and its neighbours are kept.

Points that are equal in time, value and step are one point (MLflow 3 writes some twice).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from mlmigrate import model
from mlmigrate.adapters.mlflow.files import disk, huge
from mlmigrate.adapters.mlflow.files.lines import Bad, slowly
from mlmigrate.errors import BadData
from mlmigrate.model import Loss

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

BYTES = 3 << 20  # parsed together: about 100,000 points
ROWS = 1 << 17  # at most so many in a batch
BIG = 8 << 20  # a larger file is not read whole
TOLD = 10  # bad lines of a file that are told one by one
_WIDTHS = (2, 3, 5)
_NAMES = ["timestamp", "value", "step", "name", "digest"]
_TYPES = {
    "timestamp": pa.int64(),
    "value": pa.float64(),
    "step": pa.int64(),
    "name": pa.utf8(),
    "digest": pa.utf8(),
}
# where Arrow's reader and Python's int() and float() differ, or lines are not what they seem
_HAZARDS = (b"x", b"X", b"(", b"\t", b"\r", b"\v", b"\f", b"\0")
_LINK_HAZARDS = (b"0x", b"0X", *_HAZARDS[2:])  # a dataset's name may hold an x
_NEWLINE, _SPACE = b"\n "
_NAN = np.float64("nan").view(np.int64)


@dataclass(frozen=True, slots=True)
class MetricFile:
    """A metric of a run and where its lines are."""

    experiment: str
    run: str
    key: str
    place: str


@dataclass(slots=True)
class Columns:
    """Points of one or more files. `name` and `digest` are None when no point has a dataset."""

    timestamp: I64
    value: F64
    step: I64
    name: pa.Array | None = None
    digest: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.value)

    def part(self, start: int, stop: int) -> Columns:
        """Rows from `start` to before `stop`, not copied."""
        names = [None if x is None else x.slice(start, stop - start) for x in (self.name, self.digest)]
        return Columns(self.timestamp[start:stop], self.value[start:stop], self.step[start:stop], *names)

    def take(self, rows: I64) -> Columns:
        """These rows, in this order."""
        names = [None if x is None else x.take(pa.array(rows)) for x in (self.name, self.digest)]
        return Columns(self.timestamp[rows], self.value[rows], self.step[rows], *names)

    @property
    def bits(self) -> I64:
        """The values' bits, all NaNs alike: equal where Python's repr is."""
        bits: I64 = np.where(np.isnan(self.value), _NAN, self.value.view(np.int64))
        return bits


@dataclass(slots=True)
class Parsed:
    """The columns of some files with the number of rows of each, and (file, line) of what is bad."""

    columns: Columns
    rows: list[int]
    bad: list[tuple[int, Bad]] = field(default_factory=list)


def batches(files: Iterable[MetricFile], losses: list[Loss], notes: list[Loss]) -> Iterator[pa.RecordBatch]:
    """The points of the files as batches of the schema POINTS, in the order of the files.

    `notes` takes what is odd and no loss: points that a file holds more than once, a last line without an end.
    """
    held: list[tuple[MetricFile, bytes]] = []
    size = 0
    for file in files:
        try:
            data = disk.read(file.place, BIG)
        except BadData:
            yield from _flush(held, losses, notes)
            held, size = [], 0
            yield from _streamed(file, losses, notes)
            continue
        except OSError as error:
            losses.append(Loss(file.run, f"metric {file.key!r}", disk.why(error), file.experiment))
            continue
        held.append((file, data))
        size += len(data)
        if size >= BYTES:
            yield from _flush(held, losses, notes)
            held, size = [], 0
    yield from _flush(held, losses, notes)


def _flush(held: Sequence[tuple[MetricFile, bytes]], losses: list[Loss], notes: list[Loss]) -> Iterator[pa.RecordBatch]:
    if not held:
        return
    files = [file for file, _ in held]
    parsed = parse([data for _, data in held])
    losses += _bad_losses(files, parsed.bad)
    notes += (
        Loss(file.run, f"metric {file.key!r}", "its last line has no end, and may be cut short: kept", file.experiment)
        for file, data in held
        if data and data[-1:] != b"\n"
    )
    whose = np.repeat(np.arange(len(files), dtype=np.int32), parsed.rows)
    columns, whose = _once(parsed.columns, whose, files, losses, notes)
    yield from _batches(columns, whose, files)


def _batches(columns: Columns, whose: npt.NDArray[np.int32], files: Sequence[MetricFile]) -> Iterator[pa.RecordBatch]:
    if not len(columns):
        return
    whole = model.points(
        {
            "run": _named(whose, [file.run for file in files]),
            "key": _named(whose, [file.key for file in files]),
            "timestamp": pa.array(columns.timestamp),
            "value": pa.array(columns.value, from_pandas=False),
            "step": pa.array(columns.step),
            "dataset_name": columns.name,
            "dataset_digest": columns.digest,
        }
    )
    for start in range(0, len(whole), ROWS):
        yield whole.slice(start, ROWS)


def _named(whose: npt.NDArray[np.int32], names: Sequence[str]) -> pa.Array:
    """Each row's name, dictionary-encoded, each name once in the dictionary."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    index = np.array([places[name] for name in names], np.int32)[whose]
    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(list(places), pa.utf8()))


def _bad_losses(files: Sequence[MetricFile], bad: Sequence[tuple[int, Bad]]) -> Iterator[Loss]:
    seen: dict[int, int] = {}
    for place, line in bad:
        file = files[place]
        seen[place] = seen.get(place, 0) + 1
        if seen[place] <= TOLD:
            yield Loss(file.run, f"metric {file.key!r}, line {line.number}", line.because, file.experiment)
    for place, count in seen.items():
        if count > TOLD:
            file = files[place]
            because = f"{count - TOLD} more lines cannot be read"
            yield Loss(file.run, f"metric {file.key!r}", because, file.experiment)


def parse(pieces: Sequence[bytes]) -> Parsed:
    """The points in the bytes of some metric files, one after another."""
    data = b"".join(pieces)
    lines, widths = _shapes(pieces, data)
    if len(set(widths)) == 1 and widths[0]:
        whole = _table(data, widths[0], sum(lines))
        if whole is not None:
            return Parsed(whole, lines)
    return _mixed(pieces, lines, widths)


def _shapes(pieces: Sequence[bytes], data: bytes) -> tuple[list[int], list[int]]:
    """How many lines each piece has, and how many fields each of its lines; 0 when that is not plain to see."""
    signs = np.frombuffer(data, np.uint8)
    ends = np.cumsum([len(piece) for piece in pieces])
    lines = _counts(signs == _NEWLINE, ends)
    gaps, rest = np.divmod(_counts(signs == _SPACE, ends), np.maximum(lines, 1))
    plain = np.isin(gaps + 1, _WIDTHS) & (rest == 0) & (lines > 0)
    plain &= np.array([piece[-1:] == b"\n" for piece in pieces])
    return lines.tolist(), np.where(plain, gaps + 1, 0).tolist()


def _counts(flags: npt.NDArray[np.bool_], ends: I64) -> I64:
    """How many flags are set in each piece, by where the pieces end."""
    return np.diff(np.searchsorted(np.flatnonzero(flags), ends), prepend=0)


def _mixed(pieces: Sequence[bytes], lines: Sequence[int], widths: Sequence[int]) -> Parsed:
    """As `parse`, when the files differ in the number of fields or some of them are odd."""
    parts: dict[int, Columns] = {}
    for width in _WIDTHS:
        chosen = [place for place, other in enumerate(widths) if other == width]
        parts |= _together(pieces, lines, chosen, width)
    bad: list[tuple[int, Bad]] = []
    for place, data in enumerate(pieces):
        if place not in parts:
            points, flaws = slowly(data)
            parts[place] = _columns(points)
            bad += [(place, flaw) for flaw in flaws]
    ordered = [parts[place] for place in range(len(pieces))]
    return Parsed(joined(ordered), [len(part) for part in ordered], bad)


def _together(pieces: Sequence[bytes], lines: Sequence[int], chosen: Sequence[int], width: int) -> dict[int, Columns]:
    """The columns of the chosen pieces, parsed at once; those that Arrow refuses are left out."""
    ends = np.cumsum([0, *(lines[place] for place in chosen)]).tolist()
    whole = _table(b"".join(pieces[place] for place in chosen), width, ends[-1]) if chosen else None
    if whole is not None:
        return {place: whole.part(start, stop) for place, start, stop in zip(chosen, ends, ends[1:], strict=False)}
    singly = {place: _table(pieces[place], width, lines[place]) for place in chosen if len(chosen) > 1}
    return {place: columns for place, columns in singly.items() if columns is not None}


def _table(data: bytes, width: int, lines: int) -> Columns | None:
    """The columns of lines that all have `width` fields; None when they are not all plain."""
    if any(hazard in data for hazard in (_LINK_HAZARDS if width > 3 else _HAZARDS)):  # noqa: PLR2004
        return None
    names = _NAMES[:width]
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
            csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types={name: _TYPES[name] for name in names}, null_values=[], strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    if len(table) != lines:
        return None
    plain = {name: table[name].combine_chunks() for name in names}
    step = plain["step"].to_numpy() if width > _WIDTHS[0] else np.zeros(lines, np.int64)
    times, values = plain["timestamp"].to_numpy(), plain["value"].to_numpy()
    return Columns(times, values, step, plain.get("name"), plain.get("digest"))


def _columns(points: Sequence[tuple[int, float, int, str | None, str | None]]) -> Columns:
    times, values, steps, names, digests = zip(*points, strict=True) if points else ([], [], [], [], [])
    linked = any(name is not None for name in names)
    return Columns(
        np.array(times, np.int64),
        np.array(values, np.float64),
        np.array(steps, np.int64),
        pa.array(names, pa.utf8()) if linked else None,
        pa.array(digests, pa.utf8()) if linked else None,
    )


def joined(parts: Sequence[Columns]) -> Columns:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    linked = any(part.name is not None for part in parts)
    return Columns(
        np.concatenate([part.timestamp for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.step for part in parts]),
        _strings([(part.name, len(part)) for part in parts]) if linked else None,
        _strings([(part.digest, len(part)) for part in parts]) if linked else None,
    )


def _strings(parts: Sequence[tuple[pa.Array | None, int]]) -> pa.Array:
    return pa.concat_arrays([pa.nulls(rows, pa.utf8()) if array is None else array for array, rows in parts])


def _once(
    columns: Columns,
    whose: npt.NDArray[np.int32],
    files: Sequence[MetricFile],
    losses: list[Loss],
    notes: list[Loss],
) -> tuple[Columns, npt.NDArray[np.int32]]:
    """Each point once: the first of equal ones, with the dataset that any of them has."""
    doubtful = np.unique(whose[1:][~_rising(columns, whose)])
    if not len(doubtful):
        return columns, whose
    rows = np.flatnonzero(np.isin(whose, doubtful))
    again, firsts = _repeats(columns, whose, rows)
    if not len(again):
        return columns, whose
    columns, lost = _relinked(columns, again, firsts)
    notes += _counted(files, whose[again], huge.REPEATED)
    losses += _counted(files, whose[lost], "{} there already with another dataset; the first dataset is kept")
    kept = np.ones(len(columns), np.bool_)
    kept[again] = False
    return columns.take(np.flatnonzero(kept)), whose[kept]


def _rising(columns: Columns, whose: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """For each row after the first: whether it cannot equal an earlier one of its file.

    That is so in a file whose steps rise, or whose times rise.
    """
    other = whose[1:] != whose[:-1]
    by_step: npt.NDArray[np.bool_] = other | (columns.step[1:] > columns.step[:-1])
    if by_step.all():
        return by_step
    later = columns.timestamp[1:] > columns.timestamp[:-1]
    same = columns.timestamp[1:] == columns.timestamp[:-1]
    by_time = other | later | (same & (columns.step[1:] > columns.step[:-1]))
    fine: npt.NDArray[np.bool_] = _all_of(by_step, whose) | _all_of(by_time, whose)
    rising: npt.NDArray[np.bool_] = fine[whose[1:]]
    return rising


def _all_of(flags: npt.NDArray[np.bool_], whose: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """For each file: whether the flags of all its rows are set."""
    fine: npt.NDArray[np.bool_] = np.ones(int(whose[-1]) + 1 if len(whose) else 0, np.bool_)
    fine[whose[1:][~flags]] = False
    return fine


def _repeats(columns: Columns, whose: npt.NDArray[np.int32], rows: I64) -> tuple[I64, I64]:
    """The rows that repeat an earlier one of their file, each with the first of its equals."""
    keys = (columns.bits[rows], columns.step[rows], columns.timestamp[rows], whose[rows])
    order = np.lexsort(keys)
    equal = np.ones(max(0, len(order) - 1), np.bool_)
    for key in keys:
        equal &= key[order][1:] == key[order][:-1]
    first = np.maximum.accumulate(np.where(np.r_[True, ~equal], np.arange(len(order)), 0))
    again = np.flatnonzero(equal) + 1
    return rows[order[again]], rows[order[first[again]]]


def _relinked(columns: Columns, repeats: I64, firsts: I64) -> tuple[Columns, I64]:
    """The first of equal points takes the dataset of a later one; gives the rows whose own is lost."""
    if columns.name is None or columns.digest is None:
        return columns, repeats[:0]
    names, digests = columns.name.to_pylist(), columns.digest.to_pylist()
    lost = []
    for again, first in zip(repeats.tolist(), firsts.tolist(), strict=True):
        if names[again] is None:
            continue
        if names[first] is None:
            names[first], digests[first] = names[again], digests[again]
        elif (names[first], digests[first]) != (names[again], digests[again]):
            lost.append(again)
    linked = Columns(columns.timestamp, columns.value, columns.step, pa.array(names), pa.array(digests))
    return linked, np.array(lost, np.int64)


def _counted(files: Sequence[MetricFile], whose: npt.NDArray[np.int32], because: str) -> Iterator[Loss]:
    """For each file that some rows belong to: how many, in one sentence."""
    for place, count in zip(*np.unique(whose, return_counts=True), strict=True):
        file = files[int(place)]
        lines = "1 line is" if count == 1 else f"{count} lines are"
        yield Loss(file.run, f"metric {file.key!r}", because.format(lines), file.experiment)


def _streamed(file: MetricFile, losses: list[Loss], notes: list[Loss]) -> Iterator[pa.RecordBatch]:
    """A file too large to be read whole, some lines at a time."""
    for columns in huge.stream(file, losses, notes):
        yield from _batches(columns, np.zeros(len(columns), np.int32), [file])
