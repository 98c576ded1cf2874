"""A W&B server for each file of tests, empty for each test of those that take it as it is."""

import pytest

import wandbserver
from wandbtarget import use


@pytest.fixture(scope="module")
def running():
    with wandbserver.running() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    running.reset()
    use(running, monkeypatch)
    return running
