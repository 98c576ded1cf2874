"""Rows, as rows.py sorted them, become Blocks: what float64 cannot tell is told beside it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlmigrate.adapters.wandb import moments
from mlmigrate.adapters.wandb.blocks import escaped, unescaped
from mlmigrate.adapters.wandb.gathering import A_NUMBER, sound
from mlmigrate.adapters.wandb.moments import F64, NO_MICRO, NOTHING, Ints
from mlmigrate.adapters.wandb.provenance import DATASET_DIGEST, DATASET_NAME, MODEL, STEP, SYSTEM, TIME
from mlmigrate.adapters.wandb.shape import Block, Other
from mlmigrate.adapters.wandb.sorting import Slab, explained

_HEAD = struct.Struct("<dI")  # before each text: runtime (NaN for none), length
_TEXTS_HELD = 1 << 20  # bytes
_LINKS = (DATASET_NAME, DATASET_DIGEST, MODEL)

Link = tuple[str | None, ...]


class Texts:
    """A file of the values that are no numbers, each with the runtime of its row. It is open only while it is used."""

    def __init__(self, file: Path) -> None:
        self._file, self._size = file, 0
        self._held: list[bytes] = []
        self._held_from = 0

    def put(self, runtime: float, text: str) -> int:
        """Keeps a text; where it lies."""
        data, at = sound(text).encode(), self._size
        self._held.append(_HEAD.pack(runtime, len(data)) + data)
        self._size += len(self._held[-1])
        if self._size - self._held_from > _TEXTS_HELD:
            self._flush()
        return at

    def get(self, places: Sequence[int]) -> Iterator[tuple[float, str]]:
        """The runtimes and texts that lie there."""
        if not places:
            return
        self._flush()
        with self._file.open("rb") as file:
            for at in places:
                file.seek(at)
                runtime, length = _HEAD.unpack(file.read(_HEAD.size))
                yield runtime, file.read(length).decode()

    def _flush(self) -> None:
        if self._held:
            with explained(self._file), self._file.open("ab") as file:
                file.writelines(self._held)
            self._held, self._held_from = [], self._size


class Blocks:
    """Makes Blocks. `keys` and `links` in the order that slabs number them; `start` is that of the run, in ms."""

    def __init__(self, keys: Sequence[str], links: Sequence[Link], texts: Texts, start: int | None) -> None:
        self._native = ["" if key.startswith(SYSTEM) else unescaped(key) for key in keys]
        self._dense = [*map(escaped, keys), STEP]
        self._events = [*(escaped(key.removeprefix(SYSTEM)) for key in keys), STEP]
        self._links, self._texts, self._start = links, texts, start

    def history(self, slab: Slab, *, native: bool) -> Block:
        """Some rows of the history."""
        rows = _Rows(slab)
        step, keys = (rows.step, self._native) if native else (rows.number, self._dense)
        return self._block(rows, step, keys, moments.seconds(*rows.time), told=not native)

    def events(self, slab: Slab, *, numbered: bool) -> Block:
        """Some rows of system metrics; `numbered`: the step of each is its number, and not told.

        Logs and servers hold none without a time: the run's start stands there then, and the column of times says so.
        """
        rows = _Rows(slab)
        time, start = moments.seconds(*rows.time), (moments.dated(self._start) or 0) / 1000
        dated = np.where(moments.in_calendar(time), time, start)
        return self._block(rows, pa.nulls(rows.count, pa.int64()), self._events, dated, told=not numbered)

    def _block(self, rows: _Rows, step: pa.Array, keys: Sequence[str], time: F64, *, told: bool) -> Block:
        """`told`: the steps are told in a column of their own."""
        runtime, others, words = self._others(rows, keys)
        entries = _without(rows.numbers, words)
        others += [Other(i, TIME, text) for i, text in _untold(rows.time, moments.moments(time))]
        if told:
            number = moments.numbers(*rows.steps)
            untold = list(_untold(rows.steps, moments.steps(number)))
            number[[i for i, _ in untold]] = math.nan
            entries = _with_steps(entries, number, len(keys) - 1)
            others += [Other(i, STEP, text) for i, text in untold]
        row, key, value = entries
        arrays = pa.array(row, pa.int32()), pa.array(key, pa.int32()), pa.array(value, pa.float64())
        return Block(step, _known(time), _known(runtime), keys, *arrays, sorted(others, key=lambda other: other.row))

    def _others(self, rows: _Rows, keys: Sequence[str]) -> tuple[F64, list[Other], list[tuple[int, int]]]:
        """What is no number in each row, and the runtimes: those told with it, or the time since the start.

        Also the row and the key of each that is not even the text of one.
        """
        ms, micro = rows.time
        since = ms.astype(np.float64) - (math.nan if self._start is None else self._start)
        runtime = np.where(micro == NOTHING, math.nan, (since * 1000 + np.where(micro > NO_MICRO, micro, 0)) / 1e6)
        found: list[Other] = []
        words: list[tuple[int, int]] = []
        others = [*rows.others()]
        for (row, key, _), (told, text) in zip(others, self._texts.get([at for *_, at in others]), strict=True):
            found.append(Other(row, keys[key], text))
            if not text.startswith(A_NUMBER):
                words.append((row, key))
            runtime[row] = runtime[row] if math.isnan(told) else told
        return runtime, [*found, *self._linked(rows)], words

    def _linked(self, rows: _Rows) -> Iterator[Other]:
        if not any(name is not None for link in self._links for name in link):
            return
        for row, link in enumerate(rows.links.tolist()):
            for column, name in zip(_LINKS, self._links[link], strict=True):
                if name is not None:
                    yield Other(row, column, json.dumps(name, ensure_ascii=False))


class _Rows:
    """The rows of a slab: what is told once of each, and its entries."""

    def __init__(self, slab: Slab) -> None:
        number = slab["row"]
        first = np.flatnonzero(np.concatenate([[True], number[1:] != number[:-1]]))
        self.count = len(first)
        self.time = slab["time"][first], slab["time_micro"][first]
        self.steps = slab["step"][first], slab["step_micro"][first]
        self.links = slab["link"][first]
        self.number, self.step = pa.array(number[first]), pa.array(self.steps[0])
        self._entries = (number - number[0]), slab["key"] // 2, slab["value"]
        self._other = slab["key"] % 2 == 1

    @property
    def numbers(self) -> tuple[Ints, Ints, F64]:
        """Row, key and value of each number."""
        row, key, value = (column[~self._other] for column in self._entries)
        return row, key, value

    def others(self) -> Iterator[tuple[int, int, int]]:
        """Row, key and place of each text."""
        row, key, at = (column[self._other].tolist() for column in self._entries)
        yield from zip(row, key, (int(one) if one >= 0 else -1 - int(one) for one in at), strict=True)


def _known(column: F64) -> pa.Array:
    return pa.array(column, mask=np.isnan(column))


def _untold(meant: tuple[Ints, Ints], told: tuple[Ints, Ints]) -> Iterator[tuple[int, str]]:
    """The rows of which the number does not tell what is meant, and that as JSON."""
    for i in np.flatnonzero((meant[0] != told[0]) | (meant[1] != told[1])).tolist():
        yield i, f'"{moments.text(int(meant[0][i]), int(meant[1][i]))}"'


def _without(entries: tuple[Ints, Ints, F64], words: Sequence[tuple[int, int]]) -> tuple[Ints, Ints, F64]:
    """The numbers but those which are words in W&B: its truth values are points elsewhere."""
    if not words:
        return entries
    row, key, value = entries
    code, wide = row.astype(np.int64), int(key.max(initial=0)) + 1
    keep = ~np.isin(code * wide + key, [row * wide + key for row, key in words if key < wide])
    return row[keep], key[keep], value[keep]


def _with_steps(entries: tuple[Ints, Ints, F64], number: F64, key: int) -> tuple[Ints, Ints, F64]:
    """The entries with one more at the head of each row whose step is known."""
    rows = np.flatnonzero(~np.isnan(number))
    row, keys, value = entries
    at = np.searchsorted(row, rows)
    return np.insert(row, at, rows), np.insert(keys, at, key), np.insert(value, at, number[rows])
