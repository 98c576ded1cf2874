"""The smallest adapter passes the suite that all adapters pass."""

from __future__ import annotations

import uuid

import pytest

from mlmigrate.adapters.memory import Memory, install
from mlmigrate.testing.conformance import NewTarget, TargetTests


class TestMemory(TargetTests):
    @pytest.fixture
    def new_target(self) -> NewTarget:
        return lambda: install(uuid.uuid4().hex, Memory())
