"""How much of the slow tail is run: little in CI, all of it with MLMIGRATE_TEST_SIZE above 1."""

from __future__ import annotations

import os

import pytest

SIZE = int(os.environ.get("MLMIGRATE_TEST_SIZE", "1"))
large = pytest.mark.skipif(SIZE <= 1, reason="one of the slow tail: MLMIGRATE_TEST_SIZE=2 runs it")
