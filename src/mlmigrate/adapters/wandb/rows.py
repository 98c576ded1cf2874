"""The points of a run, in any order, as the rows of a W&B history.

    points ─▶ by (time, step, dataset, model, key), in log order ─▶ n-th repetition of each key ─▶ rows ─▶ Blocks

A row is all points of one (time, step, dataset, model, repetition). Its `_step` is its number; the points' own step
is the column "mlflow/step", and what float64 seconds and steps cannot hold is told in full beside it. Natively, rows
are ordered by step, and `_step` is the step. System metrics make rows of their own, of which none has a `_step`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlmigrate.adapters.wandb import moments
from mlmigrate.adapters.wandb.blocks import escaped, neutral, own_name
from mlmigrate.adapters.wandb.gathering import A_NUMBER
from mlmigrate.adapters.wandb.moments import NO_MICRO, NOTHING, WHOLE_OF_NOTHING, Ints
from mlmigrate.adapters.wandb.provenance import SYSTEM
from mlmigrate.adapters.wandb.rowblocks import Blocks, Link, Texts
from mlmigrate.adapters.wandb.shape import Block
from mlmigrate.adapters.wandb.sorting import (
    Chunks,
    Slab,
    Sorter,
    changes,
    chosen,
    cut,
    explained,
    joined,
    length,
    ordered,
)

# Columns of slabs: the time and the step of a point (see moments), the number of its dataset and model in `_Names`,
# twice the number of its key, plus one for what is no number: then `value` is where its text lies.
_TYPES = {
    "time": np.int64,
    "time_micro": np.int32,
    "step": np.int64,
    "step_micro": np.int32,
    "link": np.int32,
    "key": np.int32,
    "value": np.float64,
}
_TIME, _STEP = ("time", "time_micro"), ("step", "step_micro")
_GROUP = (*_TIME, *_STEP, "link")
_DENSE, _NATIVE = (*_GROUP, "key"), (*_STEP, *_TIME, "link", "key")
_ROW = (*_GROUP, "repeat")
_NO_LINK: Link = (None, None, None)
_INFINITY = 1.7976931348623157e308  # how MLflow's databases hold it
_Check = Callable[[Iterable[Slab]], Iterator[Slab]]
_BLOCK = 50_000  # values of a block
_HELD = 200_000  # points between two looks at the latest
_OTHERS = 10_000  # that are held before they are columns
_WHOLE = 2**31 - 1
TELLS_A_POINT = ("true", "false", *A_NUMBER)  # how the JSON of a value begins that is a point as well


class Rows:
    """Takes the points of one run; gives its rows, in memory that does not grow with them. To be closed.

    start      when the run started, ms since the epoch, where that is known
    in_memory  points that are held; more lie in files, in a folder of its own in `folder`
    """

    def __init__(self, folder: Path, start: int | None, in_memory: int = 500_000) -> None:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="rows-", dir=folder))
        self._start, self._in_memory = start, in_memory
        self._history, self._events = (Sorter(self._folder, name, in_memory) for name in ("history", "events"))
        self._names, self._latest, self._texts = _Names(), _Latest(), Texts(self._folder / "texts")
        self._others: list[tuple[float, ...]] = []
        self._native = True
        self._stores = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Some points, of the schema POINTS."""
        if not len(batch):
            return
        slab = self._names.slab(batch)
        system = self._names.is_system[slab["key"] // 2]
        if system.any():
            self._events.add(chosen(slab, system))
            slab = chosen(slab, ~system)
        self._points(slab)
        self._spill_when_full()

    def other(self, step: int | None, time: float | None, runtime: float | None, key: str, text: str) -> None:
        """A value in a native row that is no number: it joins the points of that step and time. `text` is its JSON."""
        (ms,), (micro,) = moments.moments(np.array([math.nan if time is None else time]))
        known = step is not None and abs(step) < 2**63  # rows of others may hold anything
        own = (step or 0, NO_MICRO) if known else (WHOLE_OF_NOTHING, NOTHING)
        at = self._texts.put(math.nan if runtime is None else runtime, text)
        place = at if text.startswith(TELLS_A_POINT) else -1 - at  # less than 0: no point stands for it besides
        self._others.append((ms, micro, *own, 0, 2 * self._names.key(neutral(key)) + 1, place))
        if len(self._others) >= _OTHERS:
            self._flush_others()
            self._spill_when_full()

    def sorted(self, native: bool) -> Written:
        """All rows. `native` is a wish: it is not met where steps repeat, are negative or missing. Repeatable."""
        self._flush_others()
        ranks = self._names.ranks()
        wanted = native and self._native and self._names.are_plain()
        natively = self._stored_if(_increasing, self._history, ranks) if wanted else None
        history = natively or self._stored(self._history, _DENSE, ranks)
        numbered = (
            self._stored_if(_of_lines, self._events, ranks) if natively and self._names.are_plain_events() else None
        )
        events = numbered or self._stored(self._events, _DENSE, ranks)
        blocks = Blocks(sorted(self._names.keys), sorted(self._names.links, key=_sortable), self._texts, self._start)
        latest = {self._names.keys[key]: value for key, value in self._latest.values().items()}
        return Written(history, events, blocks, latest, natively is not None, numbered is not None)

    def close(self) -> None:
        """Takes the files away; what `sorted` gave cannot be used any more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _points(self, slab: Slab) -> None:
        if length(slab):
            self._history.add(slab)
            self._latest.add(slab)
            self._native = self._native and _may_be_native(slab)

    def _flush_others(self) -> None:
        if self._others:
            columns = zip(_TYPES.items(), zip(*self._others, strict=True), strict=True)
            slab: Slab = {name: np.array(cells, kind) for (name, kind), cells in columns}
            self._history.add(slab)
            self._native = self._native and _may_be_native(slab)
            self._others = []

    def _spill_when_full(self) -> None:
        if self._history.held + self._events.held >= self._in_memory:
            self._history.spill()
            self._events.spill()

    def _stored_if(self, are: _Check, sorter: Sorter, ranks: Mapping[str, Ints]) -> _Store | None:
        """The rows in the order of their steps; None where they are not as W&B's own."""
        try:
            return self._stored(sorter, _NATIVE, ranks, are)
        except _NotNativeError:
            return None

    def _stored(
        self, sorter: Sorter, by: Sequence[str], ranks: Mapping[str, Ints], are: _Check | None = None
    ) -> _Store:
        """The rows in this order, where they can be read again and again."""
        self._stores += 1
        store = _Store(Chunks(self._folder / f"rows-{self._stores}.arrow", _WHOLE) if sorter.spilled else None)
        huge = Sorter(self._folder, f"huge-{self._stores}", self._in_memory)
        rows = _numbered(_regrouped(_counted(sorter.sorted(by, ranks)), by, huge))
        for slab in _whole_rows(are(rows) if are is not None else rows):
            if are is not None and _conflict(slab):
                raise _NotNativeError
            store.add(slab)
        store.close()
        return store


@dataclass(frozen=True, slots=True)
class Written:
    """The rows of a run, to be read as often as needed, from any row on.

    latest  of each key but system metrics, as MLflow's databases have it: the value of the greatest step, then time,
            then value, where NaN counts as 0; of equals the first
    native  `_step` is the step of the points; they are read back with restored=False, as W&B's own are; so are system
            metrics then, where the step of each is the number of its row
    """

    _history: _Store
    _events: _Store
    _blocks: Blocks
    latest: dict[str, float]
    native: bool
    _events_numbered: bool = False

    @property
    def rows(self) -> int:
        """How many rows the history has."""
        return self._history.rows

    @property
    def last(self) -> float | None:
        """The `_timestamp` of the last row, in seconds; None where there is none."""
        if not self._history.rows:
            return None
        (found,) = moments.seconds(*self._history.last)
        return None if math.isnan(found) else float(found)

    @property
    def event_rows(self) -> int:
        """How many rows of system metrics there are."""
        return self._events.rows

    def history(self, start_row: int = 0) -> Iterator[Block]:
        """The rows from this one on."""
        for slab in self._history.slabs(start_row):
            yield self._blocks.history(slab, native=self.native)

    def events(self, start_row: int = 0) -> Iterator[Block]:
        """The rows of system metrics from this one on; their keys are without "system/"."""
        for slab in self._events.slabs(start_row):
            yield self._blocks.events(slab, numbered=self._events_numbered)


class _NotNativeError(Exception):
    """Steps repeat, or a key has two values in a row."""


class _Names:
    """The keys, and the datasets and models, of the points so far, numbered as they come."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.links: dict[Link, int] = {_NO_LINK: 0}
        self.is_system = np.zeros(0, np.bool_)
        self._keys: dict[str, int] = {}
        self._known: tuple[Any, Ints] = (None, np.zeros(0, np.int32))

    def key(self, name: str) -> int:
        """The number of a key."""
        number = self._keys.setdefault(name, len(self._keys))
        if number == len(self.keys):
            self.keys.append(name)
        return number

    def link(self, link: Link) -> int:
        """The number of a dataset and a model."""
        return self.links.setdefault(link, len(self.links))

    def are_plain(self) -> bool:
        """Whether each key but of system metrics is one that a column of W&B's own would have."""
        return all(own_name(key) is not None for key in self.keys if not key.startswith(SYSTEM))

    def are_plain_events(self) -> bool:
        """Whether each system metric can be the name of a column of W&B as it is."""
        names = (key.removeprefix(SYSTEM) for key in self.keys if key.startswith(SYSTEM))
        return all(name == escaped(name) for name in names)

    def slab(self, batch: pa.RecordBatch) -> Slab:
        """The points as columns of numbers."""
        time, step = _moment(batch, "timestamp"), _moment(batch, "step")
        value = np.asarray(batch.column("value").fill_null(math.nan))
        columns = (*time, *step, self._link_numbers(batch), 2 * self._key_numbers(batch.column("key")), value)
        return {n: column.astype(kind, copy=False) for (n, kind), column in zip(_TYPES.items(), columns, strict=True)}

    def ranks(self) -> dict[str, Ints]:
        """The numbers of links and keys (these doubled) -> their places when sorted: the same whatever came first."""
        links, keys = _ranked(list(self.links), _sortable), 2 * _ranked(self.keys, str)
        return {"link": links, "key": np.stack([keys, keys + 1], axis=1).ravel()}

    def _key_numbers(self, column: pa.DictionaryArray) -> Ints:
        known, numbers = self._known
        if known is None or not column.dictionary.equals(known):
            numbers = np.array([self.key(name) for name in column.dictionary.to_pylist()], np.int32)
            self._known = (column.dictionary, numbers)
            self.is_system = np.array([name.startswith(SYSTEM) for name in self.keys], np.bool_)
        found: Ints = numbers[np.asarray(column.indices)]
        return found

    def _link_numbers(self, batch: pa.RecordBatch) -> Ints:
        columns = [batch.column(name) for name in ("dataset_name", "dataset_digest", "model")]
        if all(column.null_count == len(column) for column in columns):
            return np.zeros(len(batch), np.int32)
        codes = np.stack([np.asarray(column.indices.fill_null(-1)) for column in columns], axis=1)
        distinct, inverse = np.unique(codes, axis=0, return_inverse=True)
        names = [[*column.dictionary.to_pylist(), None] for column in columns]
        numbers = [self.link(tuple(n[i] for n, i in zip(names, link, strict=True))) for link in distinct.tolist()]
        found: Ints = np.array(numbers, np.int32)[inverse.ravel()]
        return found


class _Latest:
    """Finds the latest point of each key."""

    def __init__(self) -> None:
        self._held: list[Slab] = []
        self._rows = 0

    def add(self, slab: Slab) -> None:
        """Looks at more points."""
        self._held.append(slab)
        self._rows += length(slab)
        if self._rows >= _HELD:
            self._held, self._rows = [_latest(joined(self._held))], 0

    def values(self) -> dict[int, float]:
        """The number of each key -> its latest value."""
        if not self._held:
            return {}
        found = _latest(joined(self._held))
        return dict(zip((found["key"] // 2).tolist(), found["value"].tolist(), strict=True))


class _Store:
    """Slabs of whole rows in their order, in memory or in a file."""

    def __init__(self, file: Chunks | None) -> None:
        self._file, self._held = file, list[Slab]()
        self._firsts: list[int] = []
        self.rows = 0
        self.last: tuple[Ints, Ints]  # the time of the last row, where there are any

    def add(self, slab: Slab) -> None:
        """Some more rows."""
        self._firsts.append(int(slab["row"][0]))
        self.rows = int(slab["row"][-1]) + 1
        self.last = slab["time"][-1:], slab["time_micro"][-1:]
        if self._file is None:
            self._held.append(slab)
        else:
            self._file.write(slab)

    def close(self) -> None:
        """Takes no more."""
        if self._file is not None:
            self._file.close()

    def slabs(self, start_row: int) -> Iterator[Slab]:
        """From a row on."""
        if start_row >= self.rows:
            return
        first = max(0, bisect_right(self._firsts, start_row) - 1)
        for slab in self._held[first:] if self._file is None else self._file.slabs(first):
            row = slab["row"]
            yield slab if row[0] >= start_row else cut(slab, int(np.searchsorted(row, start_row)))


def _moment(batch: pa.RecordBatch, name: str) -> tuple[Ints, Ints]:
    """A time or a step of each point, and its micros."""
    whole, micro = batch.column(name), batch.column(f"{name}_micro")
    micros = np.asarray(micro.cast(pa.int32()).fill_null(NO_MICRO))
    if not whole.null_count:
        return np.asarray(whole), micros
    return np.asarray(whole.fill_null(WHOLE_OF_NOTHING)), np.where(np.asarray(whole.is_null()), NOTHING, micros)


def _may_be_native(slab: Slab) -> bool:
    """Whether each step can be `_step`, and each time is told by seconds alone, and nothing else is to be told."""
    if (slab["step_micro"] != NO_MICRO).any() or (slab["step"] < 0).any() or slab["link"].any():
        return False
    ms, micro = moments.moments(moments.seconds(slab["time"], slab["time_micro"]))
    return bool((ms == slab["time"]).all() and (micro == slab["time_micro"]).all())


def _sortable(link: Link) -> tuple[tuple[bool, str], ...]:
    return tuple((name is not None, name or "") for name in link)


def _ranked(names: Sequence[Any], by: Callable[[Any], Any]) -> Ints:
    """Of each its place when they are sorted."""
    ranks = np.zeros(len(names), np.int32)
    ranks[sorted(range(len(names)), key=lambda i: by(names[i]))] = np.arange(len(names), dtype=np.int32)
    return ranks


def _latest(slab: Slab) -> Slab:
    """One point for each key."""
    value = np.nan_to_num(slab["value"], nan=0.0, posinf=_INFINITY, neginf=-_INFINITY)
    places = np.arange(length(slab))
    for column in (*(slab[name] for name in (*_STEP, *_TIME)), value):
        key, cells = slab["key"][places], column[places]
        least = -np.inf if column is value else -(2**63)
        best = np.full(int(key.max()) + 1, least, np.float64 if column is value else np.int64)
        np.maximum.at(best, key, cells)
        places = places[cells == best[key]]
    _, first = np.unique(slab["key"][places], return_index=True)
    return chosen(slab, places[first])


def _differs(last: Slab | None, slab: Slab, by: Sequence[str]) -> bool:
    """Whether the first row is another than the last one before."""
    return last is None or any(last[name][0] != slab[name][0] for name in by)


def _counted(slabs: Iterable[Slab]) -> Iterator[Slab]:
    """Sorted slabs with `repeat`: how many of the same key there were before, at the same time and step."""
    last: Slab | None = None
    for slab in slabs:
        new = np.concatenate([[_differs(last, slab, _DENSE)], changes(slab, _DENSE)])
        place = np.arange(length(slab))
        repeat = place - np.maximum.accumulate(np.where(new, place, 0))
        if last is not None and not new[0]:  # what the last slab began goes on
            repeat[: int(new.argmax()) if new.any() else None] += last["repeat"][0] + 1
        counted = {**slab, "repeat": repeat}
        last = cut(counted, -1)
        yield counted


def _regrouped(slabs: Iterable[Slab], by: Sequence[str], huge: Sorter) -> Iterator[Slab]:
    """Each group sorted by repetition, so that rows lie together. `huge` takes a group that memory cannot hold."""
    held: Slab | None = None  # the last group so far, or its last point when the others are in `huge`
    for more in slabs:
        slab = more if held is None else joined([held, more])
        bounds = np.flatnonzero(changes(slab, _GROUP)) + 1
        start = int(bounds[-1]) if len(bounds) else 0
        end = int(bounds[0]) if huge.spilled and start else 0
        if end:
            yield from _emptied(huge, cut(slab, 0, end))
        if start > end:
            yield _by_repeat(cut(slab, end, start), by)
        held = cut(slab, start)
        if huge.spilled or length(held) > huge.in_memory // 2:
            huge.add(cut(held, 0, -1))
            huge.spill()
            held = cut(held, -1)
    if huge.spilled and held is not None:
        yield from _emptied(huge, held)
    elif held is not None:
        yield _by_repeat(held, by)


def _emptied(huge: Sorter, last: Slab) -> Iterator[Slab]:
    huge.add(last)
    yield from huge.sorted(("repeat", "key"), {})
    huge.remove()


def _by_repeat(slab: Slab, by: Sequence[str]) -> Slab:
    return ordered(slab, (*by[:-1], "repeat", "key")) if slab["repeat"].any() else slab


def _numbered(slabs: Iterable[Slab]) -> Iterator[Slab]:
    """With `row`, from 0 on."""
    last, row = None, -1
    for slab in slabs:
        new = np.concatenate([[_differs(last, slab, _ROW)], changes(slab, _ROW)])
        rows = row + np.cumsum(new)
        last, row = cut(slab, -1), int(rows[-1])
        yield {**{name: slab[name] for name in _TYPES}, "row": rows}


def _increasing(slabs: Iterable[Slab]) -> Iterator[Slab]:
    """The same; raises _NotNativeError where a row has the step of the row before."""
    last: Slab | None = None
    for slab in slabs:
        if last is not None and not _differs(last, slab, ("step",)) and _differs(last, slab, ("row",)):
            raise _NotNativeError
        if (changes(slab, ("row",)) & ~changes(slab, ("step",))).any():
            raise _NotNativeError
        last = cut(slab, -1)
        yield slab


def _conflict(slab: Slab) -> bool:
    """Whether a row has a number and, of the same key, what is none: two rows fell together, as times were cut."""
    row, key = slab["row"], slab["key"]
    pairs = (row[1:] == row[:-1]) & (key[1:] == key[:-1] + 1) & (key[1:] % 2 == 1)
    return bool((pairs & (slab["value"][1:] < 0)).any())


def _of_lines(slabs: Iterable[Slab]) -> Iterator[Slab]:
    """The same; raises _NotNativeError where a row is not called by its own number, or has no time."""
    for slab in slabs:
        dated = moments.in_calendar(moments.seconds(slab["time"], slab["time_micro"])).all()
        if not dated or (slab["step"] != slab["row"]).any() or not _may_be_native(slab):
            raise _NotNativeError
        yield slab


def _whole_rows(slabs: Iterable[Slab]) -> Iterator[Slab]:
    """Cut where rows begin, in pieces of some _BLOCK values."""
    held: Slab | None = None
    for more in slabs:
        slab = more if held is None else joined([held, more])
        row, start = slab["row"], 0
        while (end := _end(row, start)) < len(row):
            yield cut(slab, start, end)
            start = end
        held = cut(slab, start)
    if held is not None:
        yield held


def _end(row: Ints, start: int) -> int:
    """Where the piece that begins at `start` ends."""
    if start + _BLOCK >= len(row):
        return len(row)
    end = int(np.searchsorted(row, row[start + _BLOCK]))
    return end if end > start else int(np.searchsorted(row, row[start], "right"))
