"""Backend databases keep what every target promises."""

from __future__ import annotations

import itertools

import pytest

from mlmigrate.address import parse
from mlmigrate.testing.conformance import TargetTests


class TestSqlite(TargetTests):
    @pytest.fixture
    def new_target(self, tmp_path):
        numbers = itertools.count()

        def new():
            folder = tmp_path / f"place {next(numbers)}"
            folder.mkdir()
            return parse(f"mlflow:sqlite:///{folder}/mlflow.db")

        return new


@pytest.mark.slow
class TestPostgresql(TargetTests):
    every_nth_call = 4  # a new database for each call would take minutes

    @pytest.fixture
    def new_target(self, postgresql, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # the artifacts go to ./mlartifacts
        return lambda: parse(f"mlflow:{postgresql()}")
