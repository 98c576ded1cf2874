from __future__ import annotations

import pytest

from mlmigrate.address import parse
from mlmigrate.testing.conformance import TargetTests

pytestmark = pytest.mark.slow


class TestServer(TargetTests):
    every_nth_call = 7  # a server takes a second for each try

    @pytest.fixture
    def new_target(self, current):
        return lambda: parse(f"mlflow:{current.url}")


class TestOldServer(TargetTests):
    every_nth_call = 23

    @pytest.fixture
    def new_target(self, server_of):
        return lambda: parse(f"mlflow:{server_of('2.9.2').url}")
