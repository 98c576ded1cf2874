"""The archive joins the suite that every target passes."""

import itertools

import pytest

from mlmigrate.address import Address
from mlmigrate.testing.conformance import TargetTests


class TestArchive(TargetTests):
    @pytest.fixture
    def new_target(self, tmp_path):
        n = itertools.count()
        return lambda: Address("archive", str(tmp_path / f"archive{next(n)}"))
