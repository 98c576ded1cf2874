"""Calls made again while a tracker is away."""

from __future__ import annotations

import threading
import time

import pytest

from mlmigrate.errors import BadData, Stopped, Unavailable
from mlmigrate.steps import Steps


class Away:
    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.left:
            raise self.error
        return "here"


def test_a_call_is_made_again_while_the_tracker_is_away() -> None:
    said: list[str] = []
    call = Away(2, Unavailable("busy", after=0.01))
    assert Steps(3, said.append).do("runs", call) == "here"
    assert (call.calls, said) == (3, ["runs", "runs"])


def test_the_last_error_rises_when_all_tries_were_in_vain() -> None:
    call = Away(5, Unavailable("busy", after=0.01))
    with pytest.raises(Unavailable, match="busy"):
        Steps(3).do("runs", call)
    assert call.calls == 3


def test_other_errors_rise_at_once() -> None:
    call = Away(5, BadData("torn"))
    with pytest.raises(BadData):
        Steps(3).do("runs", call)
    assert call.calls == 1


def test_the_wait_that_was_asked_for_is_kept() -> None:
    began = time.monotonic()
    Steps(2).do("runs", Away(1, Unavailable("busy", after=0.5)))
    assert time.monotonic() - began >= 0.5


def test_after_a_stop_nothing_is_called() -> None:
    stop = threading.Event()
    stop.set()
    call = Away(0, BadData(""))
    with pytest.raises(Stopped):
        Steps(3, stop=stop).do("runs", call)
    assert call.calls == 0
