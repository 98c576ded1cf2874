"""A server that tells null, for each field that writing asks for, alone: an error that says so, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import wandbserver
from mlmigrate.adapters.memory import Memory
from mlmigrate.adapters.wandb.api import writes
from mlmigrate.errors import MigrateError
from mlmigrate.testing.samples import place_of, samples
from sizes import some
from wandbfields import nullable, texts
from wandbtarget import carried, essence, use

pytestmark = pytest.mark.slow
WRITTEN = nullable([*texts(writes), writes.look_at(2), writes.stamp_all(2)])
NAMES = ("values", "files", "inputs")


@pytest.fixture(scope="module")
def running() -> Iterator[wandbserver.Server]:
    with wandbserver.running() as server:
        yield server


@pytest.fixture
def server(running: wandbserver.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[wandbserver.Server]:
    running.reset()
    use(running, monkeypatch, patience=0.02)
    yield running
    running.less()
    running.heal()


@pytest.fixture(scope="module")
def clean(running: wandbserver.Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the server holds after a copy into one that tells all."""
    with pytest.MonkeyPatch.context() as patch:
        use(running, patch)
        running.reset()
        assert carried(source(), "team", tmp_path_factory.mktemp("clean")).failed == ()
    return essence(running.state())


def source() -> Memory:
    return place_of([held for held in samples() if held.run.name in NAMES])


def tried(server: wandbserver.Server, folder: Any) -> list[str]:
    """What a copy says that went wrong. An error that is not ours ends the test."""
    try:
        return [failure.message for failure in carried(source(), "team", folder).failed]
    except MigrateError as error:
        return [error.message]


@pytest.mark.parametrize("field", some(WRITTEN))
def test_null_is_a_default_or_an_error_and_nothing_is_written_twice(field, clean, server, tmp_path):
    server.less(nulls=[field])
    wrong = tried(server, tmp_path)
    assert all(message.strip() for message in wrong)
    server.less()
    assert tried(server, tmp_path) == []
    assert essence(server.state()) == clean


@pytest.mark.parametrize("field", ["Run.historyLineCount", "Run.eventsLineCount", "Query.model", "Project.bucket"])
@pytest.mark.parametrize("after", [False, True], ids=["before it was done", "after it was done"])
def test_lines_are_not_sent_again_where_the_server_does_not_say_what_it_has(field, after, clean, server, tmp_path):
    server.less(nulls=[field])
    server.fail("file_stream", None if after else 0, after=after, times=3, skip=4)
    tried(server, tmp_path)
    server.less()
    server.heal()
    assert tried(server, tmp_path) == []
    assert essence(server.state()) == clean
