"""The values of rows, gathered into Blocks: by whole columns where rows are alike, one by one where they are not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.wandb.moments import F64, Bits, Ints
from mlmigrate.adapters.wandb.provenance import OWN_COLUMNS
from mlmigrate.adapters.wandb.shape import Block, Other

STEP_KEY, TIME_KEY, RUNTIME_KEY = "_step", "_timestamp", "_runtime"
OURS = frozenset({STEP_KEY, TIME_KEY, RUNTIME_KEY})
_TEXTS = frozenset(OWN_COLUMNS)  # text in these is text, whatever it spells
A_NUMBER = tuple("-0123456789")  # how the JSON of a number begins
SPELT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # JSON has no words for these: W&B's
_NUMBERS = frozenset({int, float})
_EXACT = 2.0**53  # beyond, not each integer is a float64
_FEW = 8  # rows of one shape, fewer than which are not worth columns
_DEPTH = 50  # levels of nested keys; what is deeper stays JSON


def msgspec_text(value: object) -> str:
    """The JSON of what msgspec read."""
    return msgspec.json.encode(value).decode()


def python_text(value: object) -> str:
    """The JSON of anything, with NaN and infinities as W&B has them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return sound(text)


def spelt(number: float) -> str:
    """The word for NaN, or for one of the infinities."""
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def sound(text: str) -> str:
    """The same text, with each lone surrogate as the escape that JSON has for it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def shapes(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], tuple[list[int], list[Any]]]:
    """Keys in their order -> the numbers of the rows that have just these, and their values one after another."""
    found: dict[tuple[str, ...], tuple[list[int], list[Any]]] = {}
    for number, row in enumerate(rows):
        shape = tuple(row)
        group = found.get(shape)
        if group is None:
            group = found[shape] = ([], [])
        group[0].append(number)
        group[1].extend(row.values())
    return found


class Gathered:
    """Takes the values of rows, in any order, and makes a Block of them."""

    def __init__(self, rows: int, prefix: str, text: Callable[[object], str]) -> None:
        self._rows, self._prefix, self._text = rows, prefix, text
        self._step = np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
        self._floats = {key: np.full(rows, np.nan) for key in (TIME_KEY, RUNTIME_KEY)}
        self._places: dict[str, int] = {}  # of the names in `_names`
        self._names: dict[str, int] = {}
        self._pieces: list[tuple[Ints, Ints, F64]] = []
        self._single: tuple[list[int], list[int], list[float]] = ([], [], [])
        self._others: list[Other] = []

    def alike(self, shape: Sequence[str], numbers: Sequence[int], values: Sequence[Any]) -> None:
        """Rows that have the same keys; their values one after another."""
        width = len(shape)
        if len(numbers) >= _FEW:
            self._columns(np.array(numbers, np.int32), {key: values[i::width] for i, key in enumerate(shape)})
            return
        for i, number in enumerate(numbers):
            for key, value in zip(shape, values[i * width : (i + 1) * width], strict=True):
                self.one(number, key, value)

    def _columns(self, numbers: Ints, columns: Mapping[str, Sequence[Any]]) -> None:
        """Many rows of one shape, by columns."""
        whole: dict[int, F64] = {}
        for key, values in columns.items():
            column = _floats(values)
            if column is None or not self._took(numbers, key, values, column):
                for number, value in zip(numbers.tolist(), values, strict=True):
                    self.one(number, key, value)
            elif key not in OURS:
                whole[self._place(key)] = column
        if whole:
            keys = np.tile(np.fromiter(whole, np.int32), len(numbers))
            self._pieces.append((np.repeat(numbers, len(whole)), keys, np.stack([*whole.values()], axis=1).ravel()))

    def array(self, key: str, array: pa.Array) -> None:
        """A column of a table."""
        rows = np.flatnonzero(np.asarray(array.is_valid())).astype(np.int32)
        present = array.drop_null()
        if key == STEP_KEY and pa.types.is_signed_integer(array.type):
            self._step[0][rows], self._step[1][rows] = np.asarray(present), True
            return
        if not _is_number(array.type) or key == STEP_KEY:
            for number, value in zip(rows.tolist(), present.to_pylist(), strict=True):
                self.one(number, key, value)
            return
        column = np.asarray(present.cast(pa.float64(), safe=False))
        if key in OURS:
            self._floats[key][rows] = column
            return
        self._pieces.append((rows, np.full(len(rows), self._place(key), np.int32), column))
        if pa.types.is_integer(array.type):
            self._large(rows, key, column, lambda at: present[at].as_py())

    def one(self, number: int, key: str, value: Any, depth: int = 0) -> None:  # noqa: ANN401  any JSON
        """One value, whatever it is."""
        kind = type(value)
        if key in OURS:
            self._own(number, key, value)
        elif kind is float or kind is int:
            self._number(number, key, value)
        elif kind is dict and value and "_type" not in value and depth < _DEPTH:
            for name, inner in value.items():
                self.one(number, f"{key}.{name}", inner, depth + 1)
        elif kind is str and value in SPELT and key.removeprefix(self._prefix) not in _TEXTS:
            self._number(number, key, SPELT[value])
        else:
            self._other(number, key, value)

    def block(self) -> Block:
        """All of it."""
        rows, keys, values = (np.array(c, t) for c, t in zip(self._single, ("i4", "i4", "f8"), strict=True))
        pieces = [*self._pieces, (rows, keys, values)] if len(rows) or not self._pieces else self._pieces
        row, key, value = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        if (row[1:] < row[:-1]).any():
            order = np.argsort(row, kind="stable")
            row, key, value = row[order], key[order], value[order]
        step, known = self._step
        time, runtime = (pa.array(column, mask=np.isnan(column)) for column in self._floats.values())
        self._others.sort(key=lambda other: other.row)
        names, arrays = list(self._names), (pa.array(row), pa.array(key), pa.array(value))
        return Block(pa.array(step, mask=~known), time, runtime, names, *arrays, self._others)

    def _took(self, numbers: Ints, key: str, values: Sequence[Any], column: F64) -> bool:
        """Whether a column of numbers can be taken whole; what is not among `keys` is taken here."""
        if key == STEP_KEY:
            if not (np.abs(column) < _EXACT).all() or (column != np.floor(column)).any():
                return False
            self._step[0][numbers], self._step[1][numbers] = column.astype(np.int64), True
        elif key in OURS:
            if not np.isfinite(column).all():
                return False
            self._floats[key][numbers] = column
        else:
            self._large(numbers, key, column, values.__getitem__)
        return True

    def _large(self, numbers: Ints, key: str, column: F64, value: Callable[[int], Any]) -> None:
        """Integers that float64 cannot hold, kept besides."""
        for at in np.flatnonzero(np.abs(column) >= _EXACT).tolist():
            self._inexact(int(numbers[at]), key, value(at))

    def _inexact(self, number: int, key: str, value: float) -> None:
        if isinstance(value, int) and _float(value) != value:
            self._other(number, key, value)

    def _number(self, number: int, key: str, value: float) -> None:
        numbers, keys, values = self._single
        numbers.append(number)
        keys.append(self._place(key))
        values.append(_float(value))
        self._inexact(number, key, value)

    def _own(self, number: int, key: str, value: Any) -> None:  # noqa: ANN401  any JSON
        finite = type(value) in _NUMBERS and math.isfinite(_float(value))
        if key != STEP_KEY and finite:
            self._floats[key][number] = _float(value)
        elif finite and -(2**63) <= value < 2**63 and value == int(value):
            self._step[0][number], self._step[1][number] = int(value), True
        else:
            self._others.append(Other(number, key, self._as_text(value)))

    def _other(self, number: int, key: str, value: object) -> None:
        self._others.append(Other(number, sound(key.removeprefix(self._prefix)), self._as_text(value)))

    def _as_text(self, value: object) -> str:
        try:
            return self._text(value)
        except (UnicodeEncodeError, OverflowError):
            return python_text(value)

    def _place(self, key: str) -> int:
        place = self._places.get(key)
        if place is None:
            name = sound(key.removeprefix(self._prefix))
            place = self._places[key] = self._names.setdefault(name, len(self._names))
        return place


def _floats(values: Sequence[Any]) -> F64 | None:
    """A column of JSON values as numbers, or None when some are none."""
    if not _NUMBERS.issuperset(map(type, values)):
        return None
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return None


def _float(value: float) -> float:
    """An integer of any size as float64."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One array, without a dictionary."""
    array = column.combine_chunks()
    whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole


def leaves(name: str, array: pa.Array) -> Iterable[tuple[str, pa.Array]]:
    """A column, or the columns of a struct; one that holds media stays whole, its nulls being absent."""
    kind = array.type
    if not pa.types.is_struct(kind):
        yield name, array if not pa.types.is_map(kind) else _objects(array, dict)
    elif kind.get_field_index("_type") >= 0:
        yield name, _objects(array, _present)
    else:
        for i in range(kind.num_fields):
            inner = pc.struct_field(array, [i])
            yield from leaves(f"{name}.{kind.field(i).name}", inner)


class _Objects:
    """As much of an array as `Gathered.array` asks for, of Python values."""

    type = pa.null()

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def is_valid(self) -> Bits:
        return np.array([value is not None for value in self._values], np.bool_)

    def drop_null(self) -> _Objects:
        return _Objects([value for value in self._values if value is not None])

    def to_pylist(self) -> list[Any]:
        return self._values


def _objects(array: pa.Array, change: Callable[[Any], Any]) -> pa.Array:
    return _Objects([None if value is None else change(value) for value in array.to_pylist()])


def _present(value: object) -> object:
    """Without the nulls that stand for fields which other rows have."""
    if isinstance(value, dict):
        return {name: _present(inner) for name, inner in value.items() if inner is not None}
    return value
