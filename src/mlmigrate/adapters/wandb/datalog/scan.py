"""The values of many records at once, found in their bytes.

Nearly all of a log is rows and the summaries that follow each row, and nearly all of these look alike:

    record = [num] (history | summary)          history = item* step         summary = item*
    item   = (key | nested_key)* value_json     by protobuf's rules: tag, length, bytes

So all records of a batch are walked in step, field by field, with arrays of positions in place of one position.
A batch with anything else in it is Unusual: it is left to protobuf's own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

HISTORY, SUMMARY = 0x12, 0x1A  # the tags of these kinds of record
_NUM = _STEP_NUM = 0x08
_ITEM, _STEP = 0x0A, 0x12
_KEY, _NESTED_KEY = 0x0A, 0x12
_VALUE_JSON = (0x82, 0x01)
_MORE = 0x80  # the bit of a byte that says: the number goes on
_LARGEST = 2**31  # bytes that Arrow's offsets reach
_PADDING = bytes(16)  # a look behind the end finds no tag

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Path = tuple[str, ...]


class Unusual(Exception):
    """Something is here that records seldom have, or that is no protobuf at all."""


@dataclass(frozen=True, slots=True)
class Found:
    """The items of a batch, in order.

    owner  which record of the batch each is of
    path   which of `paths` each has
    text   its JSON
    steps  by record, and `stepped`: whether it has one
    """

    owner: npt.NDArray[np.int32]
    path: npt.NDArray[np.int32]
    paths: Sequence[Path]
    text: pa.Array
    steps: Ints
    stepped: npt.NDArray[np.bool_]


def scan(records: Sequence[bytes], tag: int) -> Found:
    """What is in these records, all of kind `tag`. Raises Unusual."""
    joined = b"".join([*records, _PADDING])
    data = np.frombuffer(joined, np.uint8)
    _usual(np.array([len(joined) < _LARGEST]))
    stop = np.cumsum(np.fromiter(map(len, records), np.int64, len(records)))
    at = _message(data, np.concatenate([stop[:1] * 0, stop[:-1]]), stop, tag)
    owner, begin, end, steps, stepped = _fields(data, at, stop)
    split, value = _split(data, begin, end)
    path = _slices(joined, begin, split, pa.binary()).dictionary_encode()
    text = _slices(joined, value, end, pa.utf8())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Unusual from error
    return Found(
        owner.astype(np.int32),
        path.indices.to_numpy(zero_copy_only=False),
        [_path(one) for one in path.dictionary.to_pylist()],
        text,
        steps,
        stepped,
    )


def _message(data: Bytes, at: Ints, stop: Ints, tag: int) -> Ints:
    """Where the message of each record begins; it must go up to the record's end."""
    numbered = np.flatnonzero(data[at] == _NUM)
    if numbered.size:
        at[numbered] = _varint(data, at[numbered] + 1)[1]
    _usual(data[at] == tag)
    length, at = _varint(data, at + 1)
    _usual((length >= 0) & (at + length == stop))
    return at


def _fields(data: Bytes, at: Ints, stop: Ints) -> tuple[Ints, Ints, Ints, Ints, npt.NDArray[np.bool_]]:
    """The items of all messages: owner, begin, end; and the messages' steps."""
    count = np.zeros(len(at), np.int64)
    steps, stepped = np.zeros(len(at), np.int64), np.zeros(len(at), bool)
    rounds: list[tuple[Ints, Ints, Ints, Ints]] = []
    live = np.flatnonzero(at < stop)
    while live.size:
        tag = data[at[live]]
        _usual((tag == _ITEM) | (tag == _STEP))
        length, begin = _varint(data, at[live] + 1)
        end = begin + length
        _usual((length >= 0) & (end <= stop[live]))
        item = tag == _ITEM
        rounds.append((live[item], count[live[item]], begin[item], end[item]))
        count[live[item]] += 1
        if not item.all():
            steps[live[~item]], stepped[live[~item]] = _steps(data, begin[~item], end[~item]), True
        at[live] = end
        live = live[end < stop[live]]
    first = np.cumsum(count) - count
    owner, begin, end = (np.zeros(count.sum(), np.int64) for _ in range(3))
    for whose, place, begins, ends in rounds:
        where = first[whose] + place
        owner[where], begin[where], end[where] = whose, begins, ends
    return owner, begin, end, steps, stepped


def _steps(data: Bytes, begin: Ints, end: Ints) -> Ints:
    """The numbers in messages that hold one number, or none: 0."""
    steps = np.zeros(len(begin), np.int64)
    filled = begin < end
    _usual(data[begin[filled]] == _STEP_NUM)
    steps[filled], at = _varint(data, begin[filled] + 1)
    _usual(at == end[filled])
    return steps


def _split(data: Bytes, begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Where each item's path ends, and where its JSON begins; that goes up to the item's end."""
    at = begin.copy()
    live = np.arange(len(at))
    while live.size:
        tag = data[at[live]]
        live = live[((tag == _KEY) | (tag == _NESTED_KEY)) & (at[live] < end[live])]
        length, after = _varint(data, at[live] + 1)
        _usual((length >= 0) & (after + length <= end[live]))
        at[live] = after + length
    _usual((data[at] == _VALUE_JSON[0]) & (data[at + 1] == _VALUE_JSON[1]) & (at > begin))
    length, value = _varint(data, at + 2)
    _usual((value + length == end) & (length > 0))
    return at, value


def _varint(data: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """The numbers that begin there, and where they end."""
    value, at = data[at].astype(np.int64), at + 1
    more, shift = np.flatnonzero(value >= _MORE), 7
    value &= 0x7F
    while more.size:
        _usual(np.array([shift < 64]))  # noqa: PLR2004  bits of a number
        _usual(at[more] < len(data))
        byte = data[at[more]].astype(np.int64)
        value[more] |= (byte & 0x7F) << shift
        at[more] += 1
        more, shift = more[byte >= _MORE], shift + 7
    return value, at


def _slices(data: bytes, begin: Ints, end: Ints, kind: pa.DataType) -> pa.Array:
    """data[begin:end] of each. They ascend, so every other element of one array over `data` is one."""
    if not len(begin):
        return pa.array([], kind)
    offsets = np.stack([begin, end], axis=1).ravel().astype(np.int32)
    whole = pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return whole.take(pa.array(np.arange(0, len(offsets), 2)))


def _path(encoded: bytes) -> Path:
    """The names in a path: a key, or several nested ones, which win."""
    keys: dict[int, list[str]] = {_KEY: [], _NESTED_KEY: []}
    at = 0
    while at < len(encoded):
        tag, length, shift = encoded[at], 0, 0
        while True:
            at += 1
            length |= (encoded[at] & 0x7F) << shift
            shift += 7
            if encoded[at] < _MORE:
                break
        try:
            keys[tag].append(encoded[at + 1 : at + 1 + length].decode())
        except UnicodeDecodeError as error:
            raise Unusual from error
        at += 1 + length
    return tuple(keys[_NESTED_KEY] or keys[_KEY][-1:])


def _usual(good: npt.NDArray[np.bool_]) -> None:
    if not good.all():
        raise Unusual
