"""Servers of each version, started once for all tests that ask for them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[3]


def _load(name: str):
    """A helper beside the tests, which are no package."""
    if name not in sys.modules:
        (file,) = [
            folder / f"{name}.py" for folder in (TESTS, Path(__file__).parent) if (folder / f"{name}.py").exists()
        ]
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


servers = _load("servers")
faults = _load("faults")
_load("rest_helpers")
_load("managed_server")
VERSIONS = ("2.9.2", "2.22.4", servers.CURRENT)


@pytest.fixture(scope="session")
def server_of(tmp_path_factory) -> Iterator[Callable[[str], servers.Server]]:
    """Gives the server of a version."""
    running = {}

    def server(version: str) -> servers.Server:
        if version not in running:
            running[version] = servers.start(version, tmp_path_factory.mktemp(f"mlflow-{version}"))
        return running[version]

    yield server
    for one in running.values():
        one.stop()


@pytest.fixture(scope="session", params=VERSIONS)
def server(request, server_of):
    return server_of(request.param)


@pytest.fixture(scope="session")
def current(server_of):
    return server_of(servers.CURRENT)


@pytest.fixture
def proxy_of():
    """Gives a proxy that makes faults, before a server."""
    running = []

    def proxy(url: str, **rules) -> faults.Proxy:
        running.append(faults.Proxy(url, **rules))
        return running[-1]

    yield proxy
    for one in running:
        one.stop()
