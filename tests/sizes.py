"""How much of the slow tail is run: little in CI, all of it with MLMIGRATE_TEST_SIZE above 1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random
from typing import TypeVar

import pytest

T = TypeVar("T")

SIZE = int(os.environ.get("MLMIGRATE_TEST_SIZE", "1"))
SEED = int(os.environ.get("MLMIGRATE_TEST_SEED", "20260101"))
large = pytest.mark.skipif(SIZE <= 1, reason="one of the slow tail: MLMIGRATE_TEST_SIZE=2 runs it")


def some(whole: Sequence[T], few: int = 20) -> list[T]:
    """A few of these, others for another MLMIGRATE_TEST_SEED; all of them with MLMIGRATE_TEST_SIZE above 1."""
    if SIZE > 1 or len(whole) <= few:
        return list(whole)
    chosen = set(Random(SEED).sample(range(len(whole)), few))
    return [one for number, one in enumerate(whole) if number in chosen]
