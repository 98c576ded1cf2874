"""Conformance suites, sample runs and faults, shipped so that adapters from outside can use them.

from mlmigrate.testing.conformance import TargetTests

class TestMine(TargetTests):
    @pytest.fixture
    def new_target(self, tmp_path): ...
"""
