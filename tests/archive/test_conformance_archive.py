"""The archive passes the suite that all adapters pass."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mlmigrate.address import parse
from mlmigrate.testing.conformance import NewTarget, TargetTests


class TestArchive(TargetTests):
    @pytest.fixture
    def new_target(self, tmp_path: Path) -> NewTarget:
        numbers = itertools.count()
        return lambda: parse(str(tmp_path / f"archive{next(numbers)}"))
