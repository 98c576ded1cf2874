"""W&B keeps the promises of any target: as offline folders, and as a server."""

import itertools

import pytest

import wandbserver
from mlmigrate.address import parse
from mlmigrate.testing.conformance import TargetTests


class TestOfflineFolders(TargetTests):
    every_nth_call = 7

    @pytest.fixture
    def new_target(self, tmp_path):
        numbers = itertools.count()
        return lambda: parse(f"wandb:{tmp_path}/wandb{next(numbers)}")


@pytest.fixture(scope="module")
def server():
    with wandbserver.running() as server:
        yield server


@pytest.mark.slow
class TestServer(TargetTests):
    every_nth_call = 5

    @pytest.fixture
    def new_target(self, server, monkeypatch):
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.reset()
        entities = itertools.cycle((wandbserver.ENTITY, wandbserver.OTHER_ENTITY))
        return lambda: parse(f"wandb:{next(entities)}")


@pytest.mark.slow
class TestOneProject(TargetTests):
    """All experiments in one project, each a group of its runs."""

    every_nth_call = 31

    @pytest.fixture
    def new_target(self, server, monkeypatch):
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.reset()
        numbers = itertools.count()
        return lambda: parse(f"wandb:{server.entity}/all{next(numbers)}")
