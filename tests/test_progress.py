"""What shows progress: bars, lines, JSON."""

import io
import json
import time

import pytest

from mlmigrate import messages, progress
from mlmigrate.events import Failure, RunEvent, Silent
from mlmigrate.model import Finding, Loss


class Lines(list):
    def wait(self, seconds=5):
        end = time.monotonic() + seconds
        while not self and time.monotonic() < end:
            time.sleep(0.01)
        return self


@pytest.fixture
def out():
    return Lines()


@pytest.fixture
def err():
    return Lines()


def go(shown):
    """A little transfer."""
    shown.note("Reading ./a")
    shown.begin("copy", 3, 100, 1000)
    shown.advance(points=50, artifacts=1, size=500)
    shown.run(RunEvent("vision", "1", "eager", "copied", "9"))
    shown.run(RunEvent("vision", "2", "calm", "already", "8"))
    shown.loss(Loss("1", "param 'a'", "cut"))
    shown.failure(Failure("vision", "3", "odd", "NotFound", "gone"))
    shown.run(RunEvent("vision", "3", "odd", "failed"))
    shown.finding(Finding("*", "vision", "1", "eager: metric loss", "480,000 points", "479,000"))
    shown.waiting("a pack")
    shown.end()


def test_all_kinds_know_the_same_events(out, err):
    for shown in (
        progress.Plain(out.append, err.append),
        progress.Bars(out.append, err.append),
        progress.Json(out.append),
    ):
        assert {name for name in vars(Silent) if not name.startswith("_")} <= set(dir(shown))


def test_without_a_terminal_nothing_is_said_but_notes_and_findings(out, err):
    go(progress.Plain(out.append, err.append))
    assert err == ["Reading ./a"]
    assert len(out) == 1
    assert out[0].startswith("* vision/eager: metric loss")


def test_a_plain_line_comes_every_so_many_seconds(out, err):
    shown = progress.Plain(out.append, err.append, seconds=0.01)
    shown.begin("copy", 1500, 0, 96_600_000_000)
    shown.tally.runs_done, shown.tally.failed = 461, 2
    shown.advance(size=26_100_000_000)
    err.clear()
    assert err.wait()[0] == "461/1500 runs, 26.1 GB of 96.6 GB, 2 failed"
    shown.end()
    said = len(err)
    time.sleep(0.05)
    assert len(err) == said


def test_how_long_it_will_take_follows_from_the_work_done():
    tally = progress.Tally(runs=100, points=0, size=1000, runs_done=10, size_done=250, started=0.0)
    assert tally.left(100.0) == pytest.approx(300.0)
    assert tally.sentence(100.0) == "10/100 runs, 250 B of 1.0 kB, about 5 min left"


def test_too_small_an_estimate_does_no_harm():
    tally = progress.Tally(runs=100, points=0, size=1000, runs_done=10, size_done=5000, started=0.0)
    assert tally.left(100.0) is None
    assert tally.sentence(100.0).startswith("10/100 runs, 5.0 kB of 5.0 kB")


def test_verbose_names_every_run_and_twice_every_loss(out, err):
    go(progress.Plain(out.append, err.append, verbose=2))
    assert out[:4] == [
        "copied   vision/eager -> 9",
        "already  vision/calm -> 8",
        "lost     param 'a' of 1: cut",
        "failed   vision/odd",
    ]
    assert err[-1] == "again: a pack"


def test_quiet_says_findings_alone(out, err):
    go(progress.Plain(out.append, err.append, quiet=True))
    assert (len(out), err) == (1, [])


def test_bars_say_the_same_lines(out, err, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    go(progress.Bars(out.append, err.append, verbose=1))
    assert out[0] == "copied   vision/eager -> 9"
    assert err == ["Reading ./a"]
    assert "runs" in screen.getvalue()


def test_bars_bear_more_work_than_was_estimated(out, err, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    shown = progress.Bars(out.append, err.append)
    shown.begin("copy", 1, 10, 0)
    shown.advance(points=100)
    assert shown._work.total == 100
    shown.end()


def test_json_is_one_object_a_line(out):
    go(progress.Json(out.append, seconds=0))
    told = [json.loads(line) for line in out]
    assert [one["message_type"] for one in told] == ["run", "run", "loss", "failure", "run", "finding"]
    assert (told[-1]["source"], told[-1]["target"]) == (480_000, 479_000)


def test_json_tells_how_far_it_is(out):
    shown = progress.Json(out.append, seconds=0.01)
    shown.begin("copy", 3, 100, 1000)
    first = json.loads(out.wait()[0])
    shown.end()
    assert first["message_type"] == "progress"
    assert (first["runs"], first["points"], first["bytes"], first["seconds_left"]) == (3, 100, 1000, None)


def test_json_is_always_valid():
    line = messages.line(messages.Loss(experiment="a\ud800", id="\x1b", what="é", because='"\n'))
    assert json.loads(line.encode("utf-8")) == {
        "message_type": "loss",
        "experiment": "a\\ud800",
        "id": "\x1b",
        "what": "é",
        "because": '"\n',
    }
    number = messages.line(
        messages.Status(
            source="",
            target="",
            started=float("nan"),
            ended=None,
            pid=0,
            runs=0,
            copied=0,
            already=0,
            failed=0,
            losses=0,
            points=0,
            bytes=0,
        )
    )
    assert json.loads(number)["started"] is None


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"terminal": True, "json": False, "moving": True}, progress.Bars),
        ({"terminal": False, "json": False, "moving": True}, progress.Plain),
        ({"terminal": True, "json": False, "moving": False}, progress.Plain),
        ({"terminal": True, "json": True, "moving": True}, progress.Json),
    ],
)
def test_bars_are_for_terminals(out, err, how, kind):
    assert type(progress.made(out.append, err.append, **how)) is kind
