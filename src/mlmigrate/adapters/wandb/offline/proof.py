"""Whether a log says what was meant: every row and value summed on its way in, and again out of the file.

    sum over values of mix(step, time, key, bits of the value) modulo 2^64

Equal rows give equal sums in any order; a row that is missing, doubled or changed gives another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlmigrate.adapters.wandb import moments
from mlmigrate.adapters.wandb.gathering import A_NUMBER
from mlmigrate.adapters.wandb.shape import Block, WandbRun

Words = npt.NDArray[np.uint64]
_ODD = tuple(np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_TOLD = (
    *("id", "entity", "project", "name", "notes", "tags", "group", "job_type", "exit_code", "started"),
    *("config", "summary"),
)


@dataclass(slots=True)
class Sum:
    """Rows that went by: how many, how many values, the names of their keys, and their sum."""

    rows: int = 0
    values: int = 0
    others: int = 0
    total: int = 0
    names: dict[str, None] = field(default_factory=dict)
    _keys: dict[str, np.uint64] = field(default_factory=dict)

    def through(self, blocks: Iterator[Block], *, steps: bool) -> Iterator[Block]:
        """The blocks themselves, summed as they pass; `steps`: whether they have such."""
        for block in blocks:
            self.add(block, steps=steps)
            yield block

    def add(self, block: Block, *, steps: bool) -> None:
        """Some more rows."""
        at = _row_words(block, steps=steps)
        keys = np.array([self._key(key) for key in block.keys] or [np.uint64()], dtype=np.uint64)
        value = block.value.to_numpy(zero_copy_only=False).astype(np.float64)
        value[np.isnan(value)] = np.nan
        words = at[block.row.to_numpy()] ^ keys[block.key.to_numpy()]
        total = _total(_mixed(words ^ _mixed(value.view(np.uint64)))) + _total(_mixed(at))
        exact = [one for one in block.others if not one.text.startswith(A_NUMBER)]
        for one in exact:
            total += _total(_mixed(at[one.row : one.row + 1] ^ self._key(one.key + "\0" + one.text)))
        self.names |= dict.fromkeys([*block.keys, *(one.key for one in block.others)])
        self.rows += block.rows
        self.values += len(value)
        self.others += len(exact)
        self.total = (self.total + total) % 2**64

    def _key(self, text: str) -> np.uint64:
        known = self._keys.get(text)
        if known is None:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            known = np.uint64(int.from_bytes(digest))
            if len(self._keys) < 100_000:  # noqa: PLR2004  texts of rows are many
                self._keys[text] = known
        return known

    @property
    def told(self) -> tuple[int, int, int, int]:
        """What is compared."""
        return self.rows, self.values, self.others, self.total


def differences(meant: WandbRun, read: WandbRun) -> Iterator[str]:
    """What a log tells of a run otherwise than was meant: the names of fields."""
    for name in _TOLD:
        if not _same(getattr(meant, name), getattr(read, name)):
            yield name
    for name in ("logged", "used"):
        told = [[(one.name, one.type, one.digest) for one in getattr(run, name)] for run in (meant, read)]
        if told[0] != told[1]:
            yield name


def _same(meant: object, read: object) -> bool:
    if isinstance(meant, Mapping) and isinstance(read, Mapping):
        return _text({key: read.get(key) for key in meant}) == _text(meant)
    return meant == read


def _text(value: Any) -> str:  # noqa: ANN401  any JSON
    return json.dumps(value, sort_keys=True, default=str)


def _row_words(block: Block, *, steps: bool) -> Words:
    """What each row is known by: its step, where there are such, and its time to the microsecond."""
    ms, micro = moments.moments(block.time.fill_null(np.nan).to_numpy(zero_copy_only=False))
    words = _mixed(_mixed(ms.astype(np.int64).view(np.uint64)) ^ micro.astype(np.int64).view(np.uint64))
    if not steps:
        return words
    step: npt.NDArray[np.int64] = block.step.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return _mixed(words ^ _mixed(step.view(np.uint64)))


def _total(words: Words) -> int:
    return int(words.sum(dtype=np.uint64))


def _mixed(words: Words) -> Words:
    """Each word's bits spread over all of it."""
    first, second, third = _ODD
    with np.errstate(over="ignore"):
        words = words + first
        words = (words ^ (words >> np.uint64(30))) * second
        words = (words ^ (words >> np.uint64(27))) * third
        mixed: Words = words ^ (words >> np.uint64(31))
        return mixed
