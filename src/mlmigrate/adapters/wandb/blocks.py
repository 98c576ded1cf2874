"""Blocks of rows from W&B's JSON lines and parquet exports, and as lines and points again.

    {"_step": 0, "_timestamp": 1.5e9, "loss": 0.5, "eval": {"f1": 1}, "note": "x"}
                                            row  key        value      others
    step [0]  time [1.5e9]  runtime [null]   0   "loss"     0.5        (0, "note", '"x"')
                                             0   "eval.f1"  1.0

Values go by whole columns: lines of one shape (the same keys in the same order) are read together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from mlmigrate.adapters.wandb import moments
from mlmigrate.adapters.wandb.gathering import (
    OURS,
    RUNTIME_KEY,
    STEP_KEY,
    TIME_KEY,
    Gathered,
    leaves,
    msgspec_text,
    plain,
    python_text,
    shapes,
    sound,
    spelt,
)
from mlmigrate.adapters.wandb.moments import F64, NO_MICRO, NOTHING, Bits, Ints
from mlmigrate.adapters.wandb.provenance import DATASET_DIGEST, DATASET_NAME, MODEL, OWN_COLUMNS, STEP, SYSTEM, TIME
from mlmigrate.adapters.wandb.shape import Block, Other
from mlmigrate.errors import BadData
from mlmigrate.model import points as points_of

ESCAPE = "mlflow/key/"  # stands before metric keys that would mean something else in a row
MARK = "_wandb"
_MARKS = OURS | {MARK}  # W&B's own, no metrics
_RESERVED = _MARKS | frozenset(OWN_COLUMNS) | {""}
_TRUTH = {"true": 1.0, "false": 0.0}
_DIGITS = 4000  # of an integer; Python reads no more than 4300
_MINUS_ZERO = re.compile(rb"-0(?![.\deE])")  # msgspec makes it 0; a text that looks so is read slowly, no more
_DECODER = msgspec.json.Decoder(dict[str, Any])
_UNREAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def escaped(key: str) -> str:
    """The name of a metric's column: its key, but where that means something else."""
    return ESCAPE + key if key in _RESERVED or key.startswith(ESCAPE) else key


def unescaped(name: str) -> str:
    """The key of the metric whose column is called so."""
    return name.removeprefix(ESCAPE)


def neutral(name: str) -> str:
    """The key of the metric that a column of W&B's own history is: what begins with "system/" would be another."""
    return ESCAPE + name if name.startswith((SYSTEM, ESCAPE)) else name


def own_name(key: str) -> str | None:
    """The column of W&B's own history that is this metric; None where there can be none."""
    name = unescaped(key)
    return name if neutral(name) == key and (name == MARK or name not in _RESERVED) else None


def from_lines(lines: Sequence[bytes], prefix: str = "") -> Block:
    """The rows of a history's (or of events') JSON lines; `prefix` is taken from the keys that have it.

    Raises BadData for a line that is no JSON object.
    """
    rows, plain = _decoded(lines)
    return from_rows(rows, prefix, plain=plain)


def from_rows(rows: Sequence[Mapping[str, Any]], prefix: str = "", *, plain: bool = False) -> Block:
    """The same, of rows that are decoded already. `plain`: no NaN and no infinity is inside of lists or media."""
    gathered = Gathered(len(rows), prefix, msgspec_text if plain else python_text)
    for shape, (numbers, values) in shapes(rows).items():
        gathered.alike(shape, numbers, values)
    return gathered.block()


def from_table(table: pa.Table) -> Block:
    """The rows of a parquet export, a column for each key; nested ones too. Null is: no value."""
    gathered = Gathered(len(table), "", python_text)
    for name, column in zip(table.column_names, table.columns, strict=True):
        for key, array in leaves(name, plain(column)):
            gathered.array(key, array)
    return gathered.block()


def lines(block: Block, prefix: str = "") -> list[bytes]:
    """A JSON line for each row, as W&B writes them: NaN, Infinity and -Infinity are literals."""
    bodies = _bodies(block, prefix)
    heads = zip(
        _told(STEP_KEY, block.step), _told(TIME_KEY, block.time), _told(RUNTIME_KEY, block.runtime), bodies, strict=True
    )
    return [b"{" + b"".join(parts)[1:] + b"}" for parts in heads]


def points(block: Block, run_id: str, *, restored: bool, first_row: int) -> pa.RecordBatch:
    """The numbers, and truth values as 1 and 0, as points; `first_row` is the number of the block's first row.

    restored  the block is of dense rows that we wrote (Written.native False): step, time, dataset and model are
              those that our own columns tell; without such a column a point has none
    else      the step is `_step`, or the number of the row where there is none; keys are `neutral`
    """
    own = _restored_steps(block) if restored else _native_steps(block, first_row)
    return _points(block, run_id, own, restored=restored, prefix="")


def event_points(block: Block, run_id: str, *, restored: bool, first_row: int) -> pa.RecordBatch:
    """System metrics as points, their keys after "system/". The step is the row's number, or our own column's."""
    own = _restored_steps(block) if restored else _counted(block, first_row)
    return _points(block, run_id, own, restored=restored, prefix=SYSTEM)


# -- reading -----------------------------------------------------------------------------------------------------------


def _decoded(lines: Sequence[bytes]) -> tuple[list[dict[str, Any]], bool]:
    """The lines as dicts, and whether all were plain JSON."""
    joined = b"\n".join(lines)
    if joined.count(b"\n") == len(lines) - 1 and not _MINUS_ZERO.search(joined):
        try:
            rows = _DECODER.decode_lines(joined)
        except _UNREAD:
            rows = []
        if len(rows) == len(lines):
            return rows, True
    return [_row(line) for line in lines], False


def _row(line: bytes) -> dict[str, Any]:
    """A line alone: fast, or with all that W&B's JSON may hold."""
    if not _MINUS_ZERO.search(line):
        try:
            return _DECODER.decode(line)
        except _UNREAD:
            pass
    try:
        row = _LOOSE.decode(line.decode("utf-8", "replace").strip())
    except (ValueError, RecursionError) as error:
        raise _no_row(line) from error
    if not isinstance(row, dict):
        raise _no_row(line)
    return row


def _no_row(line: bytes) -> BadData:
    shown = line[:80].decode("utf-8", "replace")
    return BadData(f"A line of a W&B history is no JSON object: {shown!r}", "Look at the run's history in W&B itself")


def _integer(digits: str) -> int | float:
    if digits == "-0":
        return -0.0
    return int(digits) if len(digits) < _DIGITS else float(digits)


_LOOSE = json.JSONDecoder(parse_int=_integer, strict=False)


# -- lines -------------------------------------------------------------------------------------------------------------


def _told(key: str, column: pa.Array) -> list[bytes]:
    ""","key":value for each row, or nothing."""
    head = b"," + msgspec.json.encode(key) + b":"
    if not column.null_count:
        return [head + text for text in _number_texts(column)]
    texts = iter(_number_texts(column.drop_null()))
    return [head + next(texts) if valid else b"" for valid in column.is_valid().to_pylist()]


def _number_texts(column: pa.Array) -> list[bytes]:
    """The JSON of each number."""
    if not len(column):
        return []
    texts: list[bytes] = msgspec.json.encode(column.to_pylist())[1:-1].split(b",")
    if pa.types.is_floating(column.type):
        values = np.asarray(column)
        for at in np.flatnonzero(~np.isfinite(values)).tolist():
            texts[at] = spelt(values[at]).encode()
    return texts


def _bodies(block: Block, prefix: str) -> list[bytes]:
    """Of each row its values, each after its key, all after commas."""
    row, key = np.asarray(block.row), np.asarray(block.key)
    parts = [b""] * (2 * len(row))
    heads = [b"," + msgspec.json.encode(sound(prefix + name)) + b":" for name in block.keys]
    parts[0::2] = map(heads.__getitem__, key.tolist())
    parts[1::2] = _number_texts(block.value)
    others: dict[int, list[bytes]] = {}
    for other in block.others:
        others.setdefault(other.row, []).append(_other_text(other, prefix))
    for at in _hidden(block, row, key):
        parts[2 * at] = parts[2 * at + 1] = b""
    bounds = (2 * np.searchsorted(row, np.arange(block.rows + 1))).tolist()
    bodies = [b"".join(parts[a:b]) for a, b in pairwise(bounds)]
    for number, texts in others.items():
        bodies[number] += b"".join(texts)
    return bodies


def _hidden(block: Block, row: Ints, key: Ints) -> list[int]:
    """Which numbers are told by `others` already."""
    places = {name: i for i, name in enumerate(block.keys)}
    hiding = [(other.row, places[other.key]) for other in block.others if other.key in places]
    if not hiding:
        return []
    width = len(block.keys)  # not of places: keys that no number has here may have one name, ""
    codes = np.array([r * width + k for r, k in hiding], np.int64)
    found: list[int] = np.flatnonzero(np.isin(row.astype(np.int64) * width + key, codes)).tolist()
    return found


def _other_text(other: Other, prefix: str) -> bytes:
    name = other.key if other.key in _MARKS else prefix + other.key
    text = other.text.encode("utf-8", "backslashreplace").replace(b"\n", b" ").replace(b"\r", b" ")
    return b"," + msgspec.json.encode(sound(name)) + b":" + text


# -- points ------------------------------------------------------------------------------------------------------------


def _native_steps(block: Block, first_row: int) -> tuple[Ints, Ints]:
    """`_step`, or the number of the row."""
    known = np.asarray(block.step.is_valid())
    counted, micro = _counted(block, first_row)
    return np.where(known, np.asarray(block.step.fill_null(0)), counted), micro


def _counted(block: Block, first_row: int) -> tuple[Ints, Ints]:
    return np.arange(first_row, first_row + block.rows), np.full(block.rows, NO_MICRO)


def _restored_steps(block: Block) -> tuple[Ints, Ints]:
    """The own step of each row: a number, or text where float64 cannot hold it."""
    number = np.full(block.rows, np.nan)
    is_step = _is(block, STEP)
    number[np.asarray(block.row)[is_step]] = np.asarray(block.value)[is_step]
    return _overlaid(block, STEP, moments.steps(number))


def _overlaid(block: Block, column: str, found: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """With what the texts in `column` say."""
    for number, text in _texts(block, column):
        told = moments.parsed(text)
        if told is not None:
            found[0][number], found[1][number] = told
    return found


def _is(block: Block, column: str) -> Bits:
    place = list(block.keys).index(column) if column in block.keys else -1
    found: Bits = np.asarray(block.key) == place
    return found


def _texts(block: Block, column: str) -> Iterable[tuple[int, str]]:
    """The text values of a column of ours, with their rows."""
    for other in block.others:
        if other.key == column and other.text.startswith('"'):
            yield other.row, json.loads(other.text)


def _points(block: Block, run_id: str, step: tuple[Ints, Ints], *, restored: bool, prefix: str) -> pa.RecordBatch:
    row, names, key, value = _measured(block, restored=restored, prefix=prefix)
    time = moments.moments(np.asarray(block.time.fill_null(float("nan")), np.float64))
    time = _overlaid(block, TIME, time) if restored else time
    columns: dict[str, object] = {
        "run": pa.DictionaryArray.from_arrays(np.zeros(len(row), np.int32), pa.array([run_id], pa.utf8())),
        "key": pa.DictionaryArray.from_arrays(key.astype(np.int32), pa.array(names, pa.utf8())),
        "value": pa.array(value),
    }
    for name, (whole, micro), kind in (("step", step, pa.int32()), ("timestamp", time, pa.int16())):
        whole, micro = whole[row], micro[row]  # noqa: PLW2901  of each point, not of each row
        columns[name] = pa.array(whole, mask=micro == NOTHING)
        columns[f"{name}_micro"] = pa.array(micro.astype(np.int64), mask=micro <= NO_MICRO).cast(kind)
    if restored:
        linked = ("dataset_name", DATASET_NAME), ("dataset_digest", DATASET_DIGEST), ("model", MODEL)
        columns |= {name: _links(block, column, row) for name, column in linked}
    return points_of(columns)


def _measured(block: Block, *, restored: bool, prefix: str) -> tuple[Ints, list[str], Ints, F64]:
    """Rows, names, keys and values of the numbers; truth values among them."""
    row, key, value = (np.asarray(column) for column in (block.row, block.key, block.value))
    if restored:
        row, key, value = (column[~_is(block, STEP)] for column in (row, key, value))
    keys = [*block.keys]
    truths = [one for one in block.others if one.text in _TRUTH and unescaped(one.key) not in _MARKS]
    if truths:
        known = set(keys)
        keys += dict.fromkeys(one.key for one in truths if one.key not in known)
        places = {name: i for i, name in enumerate(keys)}
        more = [(one.row, places[one.key], _TRUTH[one.text]) for one in truths]
        added = (np.array(column) for column in zip(*more, strict=True))
        row, key, value = (np.concatenate(both) for both in zip((row, key, value), added, strict=True))
        order = np.argsort(row, kind="stable")
        row, key, value = row[order], key[order], value[order]
    called = unescaped if restored else str if prefix else neutral
    told = [prefix + called(name) for name in keys]
    names = {name: i for i, name in enumerate(dict.fromkeys(told))}
    if len(names) < len(told):
        key = np.array([names[name] for name in told])[key]
    return row, list(names), key, value


def _links(block: Block, column: str, row: Ints) -> pa.Array | None:
    """The text of a column of ours for each point, or None where no row has it."""
    cells: list[str | None] = [None] * block.rows
    for number, text in _texts(block, column):
        cells[number] = sound(text)
    if not any(cell is not None for cell in cells):
        return None
    return pa.array(cells, pa.utf8()).dictionary_encode().take(pa.array(row))
