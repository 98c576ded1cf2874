"""Numbers that stand for points, so that millions are compared without being held or sorted.

Each point becomes 128 bits, mixed from all its columns; the sum over a metric's points, modulo 2^128
in two halves, does not depend on their order and changes when any one of them does.  The mixing is
the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlmigrate.model import NAMES, POINTS

U64 = npt.NDArray[np.uint64]
_SEEDS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03))
_NULL = np.uint64(0x6A09E667F3BCC908)


def rows(batch: pa.RecordBatch, leave_out: tuple[str, ...] = ()) -> tuple[U64, U64]:
    """Two independent 64-bit numbers for each point. All NaNs are one, and so are 0.0 and -0.0."""
    columns = [_bits(batch.column(name)) for name in POINTS.names if name not in leave_out]
    high, low = (np.full(len(batch), seed, np.uint64) for seed in _SEEDS)
    with np.errstate(over="ignore"):
        for column in columns:
            high = _mix(high ^ column)
            low = _mix(low + column)
    return high, low


def distinct(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with only the first of each set of equal points."""
    high, low = rows(batch)
    _, first = np.unique(np.stack([high, low], axis=1), axis=0, return_index=True)
    return batch if len(first) == len(batch) else batch.take(pa.array(np.sort(first)))


@dataclass(slots=True)
class Sums:
    """run -> key -> number of points and the two halves of their sum."""

    of: dict[str, dict[str, tuple[int, int, int]]] = field(default_factory=dict)

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds the points of a batch."""
        if not len(batch):
            return
        high, low = rows(batch, leave_out=("run", "key"))
        runs, keys = batch.column("run"), batch.column("key")
        group = _indices(runs).astype(np.int64) * max(1, len(keys.dictionary)) + _indices(keys)
        order = np.argsort(group, kind="stable")
        ordered = group[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        counts = np.diff(np.r_[starts, len(ordered)])
        highs, lows = (np.add.reduceat(half[order], starts) for half in (high, low))
        run_names, key_names = runs.dictionary.to_pylist(), keys.dictionary.to_pylist()
        for code, n, a, b in zip(ordered[starts].tolist(), counts.tolist(), highs.tolist(), lows.tolist(), strict=True):
            self._put(run_names[code // len(key_names)], key_names[code % len(key_names)], n, a, b)

    def _put(self, run: str, key: str, n: int, high: int, low: int) -> None:
        sums = self.of.setdefault(run, {})
        old = sums.get(key, (0, 0, 0))
        sums[key] = (old[0] + n, (old[1] + high) % 2**64, (old[2] + low) % 2**64)


def _mix(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bits(column: pa.Array) -> U64:
    if column.type == NAMES:
        names = [_name_bits(name) for name in column.dictionary.to_pylist()]
        table = np.array([*names, _NULL], np.uint64)
        return table[_indices(column)]
    if column.null_count == len(column):
        return np.full(len(column), _NULL, np.uint64)
    missing = np.asarray(column.is_null()) if column.null_count else None
    if pa.types.is_floating(column.type):
        values = np.asarray(column) + 0.0  # -0.0 + 0.0 is 0.0
        values[np.isnan(values)] = np.nan
        bits = values.view(np.uint64)
    else:
        bits = np.asarray(column.fill_null(0) if missing is not None else column).astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        bits = _mix(bits + _SEEDS[0])
    return bits if missing is None else np.where(missing, _NULL, bits)


def _indices(column: pa.DictionaryArray) -> npt.NDArray[np.int64]:
    """Indices into the dictionary; the last place + 1, that is -1, for null."""
    indices = column.indices
    return np.asarray(indices.fill_null(-1) if indices.null_count else indices).astype(np.int64)


def _name_bits(name: str | None) -> int:
    digest = hashlib.blake2b((name or "").encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
