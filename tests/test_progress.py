"""What shows progress: bars, lines, JSON."""

import io
import json
import re
import time

import pytest

from mlmigrate import messages, progress
from mlmigrate.events import Failure, RunEvent, Silent
from mlmigrate.model import Finding, Loss


class Lines(list):
    def wait(self):
        awaited(lambda: self)
        return self


def awaited(what, seconds=120):
    """Returns once it is true, or after more time than any machine takes."""
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)


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


def test_a_plain_line_comes_every_so_many_seconds(out, err, monkeypatch):
    monkeypatch.setattr(progress.Tally, "sentence", lambda self, now: f"{self.runs_done}/{self.runs} runs")
    shown = progress.Plain(out.append, err.append, seconds=0.01)
    shown.begin("copy", 1500, 0, 96_600_000_000)
    awaited(lambda: "0/1500 runs" in err)
    shown.tally.runs_done = 461
    awaited(lambda: "461/1500 runs" in err)
    assert list(dict.fromkeys(err)) == ["0/1500 runs", "461/1500 runs"]
    shown.end()
    said = len(err)
    time.sleep(0.05)
    assert len(err) == said


def test_how_long_it_will_take_follows_from_the_work_done():
    tally = progress.Tally(runs=100, points=0, size=1000, runs_done=10, size_done=250, started=0.0)
    assert tally.left(100.0) == pytest.approx(300.0)
    assert tally.sentence(100.0) == "10/100 runs, 250 B of 1.0 kB, 2 B/s, about 5 min left"


def test_in_the_first_second_nobody_can_tell_how_long_it_will_take():
    tally = progress.Tally(runs=1500, size=96_600_000_000, runs_done=461, failed=2, started=0.0)
    tally.advance(0, 0, 26_100_000_000)
    assert tally.sentence(0.5) == "461/1500 runs, 26.1 GB of 96.6 GB, 2 failed"


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


def drawn(shown, monkeypatch, *advances, **begun):
    """What stands on the screen after each of these steps."""
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    shown.begin(**{"what": "copy", "runs": 0, "points": 0, "size": 0, **begun})
    for advance in advances:
        shown.advance(**advance)
    screen.truncate(0)
    shown.draw()
    shown.end()
    return re.sub(r"\x1b\[A|\n", "", screen.getvalue()).split("\r")


def test_bars_bear_more_work_than_was_estimated(out, err, monkeypatch):
    lines = drawn(progress.Bars(out.append, err.append), monkeypatch, {"points": 100}, runs=1, points=10)
    assert any(re.match(r"points +100% .*100/100", line) for line in lines)


def test_bars_tell_bytes_and_files(out, err, monkeypatch):
    shown = progress.Bars(out.append, err.append)
    lines = drawn(shown, monkeypatch, {"size": 250_000, "artifacts": 3}, size=1_000_000, artifacts=12)
    assert any(re.match(r"bytes +25% .*250k/1\.00M", line) for line in lines)
    assert any(re.match(r"files +25% .*3/12", line) for line in lines)
    assert not any(line.startswith(("runs", "points")) for line in lines)


def test_bars_count_what_nobody_estimated(out, err, monkeypatch):
    lines = drawn(progress.Bars(out.append, err.append), monkeypatch, {"size": 250_000, "artifacts": 3}, runs=2)
    assert any(re.match(r"bytes +250k", line) for line in lines)
    assert any(re.match(r"files +3", line) for line in lines)


def test_the_first_line_tells_the_time_left_whatever_it_is(out, err, monkeypatch):
    shown = progress.Bars(out.append, err.append)
    monkeypatch.setattr(progress.Tally, "left", lambda self, now: 90.0)
    lines = drawn(shown, monkeypatch, {"size": 250_000, "artifacts": 3}, size=1_000_000, artifacts=12)
    assert [line.split()[0] for line in lines if "about 1 min 30 s left" in line] == ["bytes"]


def test_bars_move_of_themselves(out, err, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    shown = progress.Bars(out.append, err.append, often=100)
    shown.begin("copy", 0, 0, 1000)
    shown.advance(size=500)
    awaited(lambda: "50%" in screen.getvalue())
    shown.end()
    assert "50%" in screen.getvalue()


def test_a_rate_is_that_of_late():
    tally = progress.Tally(size=10_000, started=0.0)
    tally.rates(0.0)
    for second in range(1, 101):
        tally.advance(0, 1, 1 if second <= 50 else 100)
        rate = tally.rates(float(second))
    assert rate == (pytest.approx(100.0), pytest.approx(1.0))


def test_bytes_and_artifacts_stand_in_the_plain_line():
    tally = progress.Tally(runs=0, size=1000, artifacts=40, size_done=500, artifacts_done=10, started=0.0)
    assert tally.sentence(0.5) == "500 B of 1.0 kB, 10 of 40 artifacts"
    tally = progress.Tally(runs=5, size_done=500, artifacts_done=1, started=0.0)
    assert tally.sentence(10.0) == "0/5 runs, 500 B, 1 artifact, 50 B/s"


def test_what_is_taken_back_is_not_done():
    tally = progress.Tally(size=1000)
    tally.advance(0, 2, 700)
    tally.advance(0, -2, -700)
    assert (tally.artifacts_done, tally.size_done) == (0, 0)


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
    assert (first["objects_done"], first["objects"], first["bytes_per_second"]) == (0, 0, 0)


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
            artifacts=0,
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
