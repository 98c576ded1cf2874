"""Rows as the log has them, made into Blocks.

The log has a text for each value. They are gathered as they are and read as numbers all at once; only what is no
number is looked at one by one.  W&B's core splits a dict into its leaves, {"a": {"b": 1}} is ("a", "b") = 1: they are
joined by ".", but for media ({"_type": ...}), which are one value and are put together again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlmigrate.adapters.wandb.datalog.messages import DecodeError, Message, has, pb, utf8
from mlmigrate.adapters.wandb.datalog.scan import HISTORY, Found, Path, Unusual, scan
from mlmigrate.adapters.wandb.gathering import SPELT
from mlmigrate.adapters.wandb.provenance import OWN_COLUMNS
from mlmigrate.adapters.wandb.shape import Block, Other

STEP, TIME, RUNTIME = "_step", "_timestamp", "_runtime"
OWN = (STEP, TIME, RUNTIME)  # columns of their own; the first ids of keys
EXACT = 2.0**53  # integers beyond may be such that float64 cannot hold
LONG = 250  # characters of a key that are told
DEEPEST = 64  # dicts in dicts; below that they stay as they are
_BEGINS = "-0123456789NI"  # the JSON of a number, NaN and Infinity among them
_SPELT = frozenset(f'"{word}"' for word in SPELT)  # older SDKs have these words for what JSON has none for
_NUMERIC = np.zeros(256, dtype=bool)
_NUMERIC[list(_BEGINS.encode())] = True

Row = npt.NDArray[np.int32]
Column = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Bad = Callable[[str], None]  # told of a value that cannot be read


class Leaf(NamedTuple):
    """A value in a row, found in a dict."""

    row: int
    key: str
    text: str


class _Ids(dict[str, int]):
    """Numbers keys in the order in which they are met, after our own."""

    def __init__(self) -> None:
        super().__init__((name, number) for number, name in enumerate(OWN))

    def __missing__(self, key: str) -> int:
        self[key] = number = len(self)
        return number


@dataclass(slots=True)
class _Gathered:
    """All values of some rows: `row`, `key` and `text` of each, and what stands in dicts that have media."""

    ids: _Ids
    row: Row
    key: Row
    text: pa.Array
    deep: Sequence[tuple[int, Path, str]]
    steps: list[int | None]


def history(records: Sequence[bytes], bad: Bad) -> Block:
    """The Block of some records of kind history."""
    try:
        return _block(_scanned(scan(records, HISTORY)), bad)
    except Unusual:
        return _block(_parsed(_messages(records, "history", bad)), bad)


def events(records: Sequence[bytes], started: float | None, bad: Bad) -> Block:
    """The Block of some records of kind stats; `started` in seconds, for their `runtime`."""
    parsed = list(_messages(records, "stats", bad))
    block = _block(_parsed(parsed), bad)
    times = [
        one.timestamp.seconds + one.timestamp.nanos * 1e-9 if one.HasField("timestamp") else None for one in parsed
    ]
    runtime = [None if time is None or started is None else time - started for time in times]
    return replace(block, time=pa.array(times, pa.float64()), runtime=pa.array(runtime, pa.float64()))


def _messages(records: Sequence[bytes], kind: str, bad: Bad) -> Iterator[Message]:
    for record in records:
        try:
            parsed = pb.Record.FromString(record)
        except DecodeError:
            bad(f"a record of kind {kind} is no protobuf")
            continue
        if parsed.WhichOneof("record_type") == kind:
            yield getattr(parsed, kind)


def _scanned(found: Found) -> _Gathered:
    ids = _Ids()
    steps = [step if there else None for step, there in zip(found.steps.tolist(), found.stepped.tolist(), strict=True)]
    row, text, path = found.owner, found.text, found.path
    key = np.array([ids[".".join(one)] for one in found.paths], dtype=np.int32)
    deep: list[tuple[int, Path, str]] = []
    if any(one[-1:] == ("_type",) and len(one) > 1 for one in found.paths):
        flat = np.array([len(one) == 1 for one in found.paths])[path]
        at = np.flatnonzero(~flat)
        texts = text.take(pa.array(at)).to_pylist()
        deep = [(int(row[n]), found.paths[path[n]], one) for n, one in zip(at, texts, strict=True)]
        row, text, path = row[flat], text.filter(pa.array(flat)), path[flat]
    return _Gathered(ids, row, key[path], text, deep, steps)


def _parsed(records: Iterable[Message]) -> _Gathered:
    """The same by protobuf's classes, of HistoryRecords or StatsRecords."""
    ids = _Ids()
    row: list[int] = []
    key: list[int] = []
    text: list[str] = []
    deep: list[tuple[int, Path, str]] = []
    steps: list[int | None] = []
    for number, record in enumerate(records):
        for item in record.item:
            path = tuple(getattr(item, "nested_key", ())) or (item.key,)
            told = item.value_json or typed(item)
            if len(path) > 1:
                deep.append((number, path, told))
                continue
            row.append(number)
            key.append(ids[path[0]])
            text.append(told)
        steps.append(record.step.num if has(record, "step") and record.HasField("step") else None)
    arrays = (np.array(row, dtype=np.int32), np.array(key, dtype=np.int32), pa.array(text, pa.utf8()))
    return _Gathered(ids, *arrays, deep, steps)


def typed(item: Message) -> str:
    """The JSON of a value that newer SDKs tell with its type; "" for none."""
    kind = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None
    if kind is None:
        return ""
    if kind == "json":
        return str(item.json)
    return json.dumps(None if kind == "none" else getattr(item, kind))


def _block(got: _Gathered, bad: Bad) -> Block:
    row, key = got.row, got.key
    value, numeric = _numbers(got.text)
    others: list[Other] = []
    leaves: list[Leaf] = []
    names = list(got.ids)
    at = np.flatnonzero(~numeric)
    for number, text in zip(at, got.text.take(pa.array(at)).to_pylist(), strict=True):
        _look(Leaf(int(row[number]), names[key[number]], text), leaves, others, bad)
    for leaf in _folded(got.deep):
        _look(leaf, leaves, others, bad, joined=True)
    _huge(got.text, value, row, key, names, others)
    own = _own(got, value, numeric)
    keep = numeric & (key >= len(OWN))
    row, key, value = row[keep], key[keep], value[keep]
    if leaves:
        row, key, value = _with(leaves, got.ids, row, key, value, others, bad)
    if "" in got.ids:
        bad("a value has no key")
        keep = key != got.ids[""]
        row, key, value = row[keep], key[keep], value[keep]
    used = np.bincount(key, minlength=len(got.ids)) > 0
    names = [name for name, there in zip(got.ids, used, strict=True) if there]
    key = (np.cumsum(used, dtype=np.int32) - 1)[key]
    others = sorted((one for one in others if one.key and one.key not in OWN), key=lambda one: one.row)
    return Block(*own, names, pa.array(row), pa.array(key, pa.int32()), pa.array(value), others)


def _numbers(texts: pa.Array) -> tuple[Column, Mask]:
    """The texts as numbers, and which of them are such."""
    size = len(texts)
    value, numeric = np.zeros(size), np.zeros(size, dtype=bool)
    _, buffer, data = texts.buffers()
    if not size or not data:
        return value, numeric
    offsets = np.frombuffer(buffer, np.int32, size + 1, texts.offset * 4)
    filled = np.diff(offsets) > 0
    numeric[filled] = _NUMERIC[np.frombuffer(data, np.uint8)[offsets[:-1][filled]]]
    try:
        value[numeric] = texts.filter(pa.array(numeric)).cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # one of them only looks like a number
        for at in np.flatnonzero(numeric):
            number = _number(texts[at].as_py())
            numeric[at], value[at] = number is not None, number or 0.0
    return value, numeric


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _look(leaf: Leaf, leaves: list[Leaf], others: list[Other], bad: Bad, *, joined: bool = False) -> None:
    """Finds out what a value is that is not plainly a number."""
    row, key, text = leaf
    if joined and text.startswith(tuple(_BEGINS)):
        leaves.append(leaf)
        return
    if text in _SPELT and key not in OWN_COLUMNS:
        leaves.append(Leaf(row, key, text[1:-1]))
        return
    try:
        parts = _parts(text) if text.startswith("{") else _checked(text)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        _unread(key, bad)
        return
    if not parts or "_type" in parts or key.count(".") > DEEPEST:
        others.append(Other(row, key, text))
        return
    for name, part in parts.items():
        _look(Leaf(row, f"{key}.{name}", part), leaves, others, bad, joined=True)


def _unread(key: str, bad: Bad) -> None:
    bad(f"{key[:LONG]!r} has a value that is no JSON")


def _parts(text: str) -> dict[str, str]:
    """What a JSON object holds: name -> JSON."""
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return {utf8(name): bytes(part).decode() for name, part in raw.items()}
    except msgspec.MsgspecError:  # it may hold NaN
        return {utf8(name): json.dumps(part) for name, part in json.loads(text).items()}


def _checked(text: str) -> dict[str, str]:
    """Raises ValueError where this is no JSON."""
    try:
        msgspec.json.decode(text)
    except msgspec.MsgspecError:
        json.loads(text)
    return {}


def _folded(items: Sequence[tuple[int, Path, str]]) -> Iterator[Leaf]:
    """Leaves of dicts, by rows: names joined, media put together."""
    media = {(row, path[:-1]) for row, path, _ in items if path[-1] == "_type"}
    trees: dict[tuple[int, Path], dict[str, Any]] = {}
    for row, path, text in items:
        top = next(((row, path[:n]) for n in range(1, len(path)) if (row, path[:n]) in media), None)
        if top is None:
            yield Leaf(row, ".".join(path), text)
            continue
        node = trees.setdefault(top, {})
        for name in path[len(top[1]) : -1]:
            inner = node.setdefault(name, {})
            node = inner if isinstance(inner, dict) else {}
        node[path[-1]] = msgspec.Raw(text.encode() or b"null")
    for (row, path), tree in trees.items():
        yield Leaf(row, ".".join(path), msgspec.json.encode(tree).decode())


def _huge(texts: pa.Array, value: Column, row: Row, key: Row, names: Sequence[str], others: list[Other]) -> None:
    """Integers that float64 cannot hold keep their text besides."""
    for at in np.flatnonzero(np.abs(value) >= EXACT):
        text = texts[at].as_py()
        if key[at] >= len(OWN) and not exact(text, float(value[at])):
            others.append(Other(int(row[at]), names[key[at]], text))


def exact(text: str, value: float) -> bool:
    """Whether this text of a number is no integer, or one that `value` is exactly."""
    if not text.lstrip("-").isdigit():
        return True
    try:
        return int(text) == int(value)
    except (ValueError, OverflowError):  # thousands of digits
        return False


def _own(got: _Gathered, value: Column, numeric: Mask) -> tuple[pa.Array, pa.Array, pa.Array]:
    """The columns `_step` (from the record where no value tells it), `_timestamp`, `_runtime`."""
    row, key, steps = got.row, got.key, got.steps
    at = np.flatnonzero(numeric & (key == 0))
    texts = got.text.take(pa.array(at))
    try:
        told = texts.cast(pa.int64()).to_pylist()
    except pa.ArrowInvalid:
        told = [_step(text) for text in texts.to_pylist()]
    for where, step in zip(row[at].tolist(), told, strict=True):
        steps[where] = steps[where] if step is None else step
    columns = [pa.array(steps, pa.int64())]
    for number in (1, 2):
        at = np.flatnonzero(numeric & (key == number))
        column, there = np.zeros(len(steps)), np.zeros(len(steps), dtype=bool)
        column[row[at]], there[row[at]] = value[at], True
        columns.append(pa.array(column, mask=~there))
    return columns[0], columns[1], columns[2]


def _step(text: str) -> int | None:
    try:
        step = int(text) if text.lstrip("-").isdigit() else int(float(text))
    except (ValueError, OverflowError):
        return None
    return step if -(2**63) <= step < 2**63 else None


def _with(
    leaves: Sequence[Leaf], ids: _Ids, row: Row, key: Row, value: Column, others: list[Other], bad: Bad
) -> tuple[Row, Row, Column]:
    """The numbers, and those that were found in dicts after the others of their rows."""
    texts = pa.array([leaf.text for leaf in leaves], pa.utf8())
    found, numeric = _numbers(texts)
    for at in np.flatnonzero(~numeric).tolist():
        _unread(leaves[at].key, bad)
    rows = np.array([leaf.row for leaf in leaves], dtype=np.int32)
    keys = np.array([ids[leaf.key] for leaf in leaves], dtype=np.int32)
    _huge(texts, found, rows, keys, list(ids), others)
    row = np.concatenate([row, rows[numeric]])
    order = np.argsort(row, kind="stable")
    key = np.concatenate([key, keys[numeric]])[order]
    return row[order], key, np.concatenate([value, found[numeric]])[order]
