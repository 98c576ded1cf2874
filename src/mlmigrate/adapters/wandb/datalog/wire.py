"""Rows as the log has them, made of Blocks: scan.py turned round.

All values of a block become text at once, each gets the bytes that stand before it (they depend on its key and its
length alone), and Arrow joins them into one message a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.wandb.datalog.columns import OWN
from mlmigrate.adapters.wandb.gathering import A_NUMBER
from mlmigrate.adapters.wandb.moments import LATEST
from mlmigrate.adapters.wandb.shape import Block

_NUM, _HISTORY, _STATS = b"\x08", b"\x12", b"\x3a"  # tags in a record
_ITEM, _STATS_ITEM = b"\x0a", b"\x1a"  # of an item in its message
_KEY, _NESTED_KEY, _VALUE_JSON = b"\x0a", b"\x12", b"\x82\x01"  # in an item
_SECOND, _FIRST_NUMBER, _SECOND_NUMBER = b"\x12", b"\x08", b"\x10"  # step or timestamp, and the numbers in them
_LONGEST = 32  # no text of a number is as long

Ints = npt.NDArray[np.int32]


def history(block: Block, first: int) -> Iterator[bytes]:
    """A record for each row; `first` is the number of the first one in the log."""
    own = [(name, column) for name, column in zip(OWN, (block.step, block.time, block.runtime), strict=True)]
    messages = _messages(block, _ITEM, _NESTED_KEY, own)
    for number, (message, step) in enumerate(zip(messages, block.step.to_pylist(), strict=True), first):
        whole = message if step is None else message + _bytes(_SECOND, _FIRST_NUMBER + varint(step) if step else b"")
        yield _NUM + varint(number) + _bytes(_HISTORY, whole)


def events(block: Block, started: float, first: int) -> Iterator[bytes]:
    """The same of system metrics; a row without a time has its `runtime` after `started`."""
    messages = _messages(block, _STATS_ITEM, _KEY, [])
    times = zip(messages, block.time.to_pylist(), block.runtime.to_pylist(), strict=True)
    for number, (message, time, runtime) in enumerate(times, first):
        told = started + (runtime or 0.0) if time is None else time
        stamp = _stamp(told if abs(told) < LATEST else started)  # NaN is not less either
        yield _NUM + varint(number) + _bytes(_STATS, _bytes(_SECOND, stamp) + message)


def varint(number: int) -> bytes:
    """A number in protobuf's bytes."""
    if 0 <= number < len(_VARINTS):
        return _VARINTS[number]
    return _varint(number)


def numbers(value: pa.Array) -> pa.Array:
    """The JSON of numbers, as W&B writes it: NaN, Infinity and -Infinity are such."""
    text = value.cast(pa.utf8())
    column = value.to_numpy(zero_copy_only=False)
    if column.dtype.kind != "f":
        return text
    odd = ~np.isfinite(column) | ((column == 0) & np.signbit(column))  # "-0" would be an integer, and lose its sign
    if odd.any():
        text = pc.replace_with_mask(text, pa.array(odd), pa.array([json.dumps(one) for one in column[odd].tolist()]))
    return text


def _messages(block: Block, item: bytes, tag: bytes, own: Sequence[tuple[str, pa.Array]]) -> Sequence[bytes]:
    """The items of each row, joined."""
    keep = _not_told_as_text(block)
    row, key = block.row.to_numpy()[keep], block.key.to_numpy()[keep]
    value = block.value.filter(pa.array(keep))
    heads = [_head(item, tag, key) for key in block.keys]
    rows, items = [row], [_items(heads, key, numbers(value))]
    for name, column in own:
        there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).astype(np.int32)
        rows.append(there)
        head = [_head(item, tag, name)]
        items.append(_items(head, np.zeros(len(there), np.int32), numbers(column.drop_null())))
    rows.append(np.array([one.row for one in block.others], dtype=np.int32))
    others = [_item(_head(item, tag, one.key), one.text.encode("utf-8", "replace")) for one in block.others]
    items.append(pa.array(others, pa.large_binary()))
    whose = np.concatenate(rows)
    ordered = pa.concat_arrays(items).take(pa.array(np.argsort(whose, kind="stable")))
    ends = np.cumsum(np.bincount(whose, minlength=block.rows)[: block.rows], dtype=np.int64)
    lists = pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], ends])), ordered)
    joined: list[bytes] = pc.binary_join(lists, pa.scalar(b"", pa.large_binary())).to_pylist()
    return joined


def _not_told_as_text(block: Block) -> npt.NDArray[np.bool_]:
    """Which numbers stand for themselves: integers that float64 cannot hold are among `others`."""
    exact = {(one.row, one.key) for one in block.others if one.text.startswith(A_NUMBER)}
    keep = np.ones(len(block.value), dtype=bool)
    if exact:
        places = zip(block.row.to_pylist(), block.key.to_pylist(), strict=True)
        keep[:] = [(row, block.keys[key]) not in exact for row, key in places]
    return keep


def _head(item: bytes, tag: bytes, key: str) -> tuple[bytes, bytes]:
    return item, _bytes(tag, key.encode())


def _items(heads: Sequence[tuple[bytes, bytes]], key: Ints, text: pa.Array) -> pa.Array:
    """Each text with what stands before it."""
    text = text.cast(pa.large_binary())
    length = pc.binary_length(text).to_numpy(zero_copy_only=False)
    code = key.astype(np.int64) * _LONGEST + length
    used = np.zeros(len(heads) * _LONGEST, dtype=bool)
    used[code] = True
    before = [_before(heads[one // _LONGEST], one % _LONGEST) for one in np.flatnonzero(used).tolist()]
    which = (np.cumsum(used) - 1)[code]
    return pc.binary_join_element_wise(
        pa.array(before, pa.large_binary()).take(pa.array(which)), text, pa.scalar(b"", pa.large_binary())
    )


def _before(head: tuple[bytes, bytes], length: int) -> bytes:
    item, path = head
    value = _VALUE_JSON + varint(length)
    return item + varint(len(path) + len(value) + length) + path + value


def _item(head: tuple[bytes, bytes], text: bytes) -> bytes:
    return _before(head, len(text)) + text


def _bytes(tag: bytes, data: bytes) -> bytes:
    return tag + varint(len(data)) + data


def _stamp(time: float) -> bytes:
    """A protobuf Timestamp, of the shortest decimals that mean this time."""
    seconds, rest = divmod(Decimal(repr(time)), 1)
    if rest < 0:
        seconds, rest = seconds - 1, rest + 1
    nanos = int(rest * 10**9)
    told = _FIRST_NUMBER + varint(int(seconds)) if seconds else b""
    return told + (_SECOND_NUMBER + varint(nanos) if nanos else b"")


def _varint(number: int) -> bytes:
    rest, out = number & (2**64 - 1), bytearray()
    while rest > 0x7F:  # noqa: PLR2004  seven bits a byte
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


_VARINTS = [_varint(number) for number in range(1 << 14)]
