"""Run folders without a log: those of W&B before 0.10, and copies that lost theirs."""

import json
import os
import sqlite3
import time

import pytest

import wandblogs as rawlog
from mlmigrate.adapters.wandb.offline import remains
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

from .test_source import a_run, nobody_elses_folders, whole  # noqa: F401  a fixture for all tests

CONFIG = """wandb_version: 1

_wandb:
  desc: null
  value:
    cli_version: 0.8.19
epochs:
  desc: null
  value: 25
lr:
  desc: null
  value: 1.0e-06
"""
METADATA = {
    "program": "train.py",
    "git": {"remote": "https://example.com/a.git", "commit": "0a" * 20},
    "email": "a@example.com",
    "startedAt": "2019-12-20T14:05:18.251907",
    "heartbeatAt": "2019-12-20T14:13:53.907377",
    "host": "DESKTOP",
    "username": "Pablo",
    "args": ["--fast"],
    "state": "failed",
    "jobType": "train",
    "project": "four",
    "exitcode": 3,
}
ROWS = [
    {"loss": 0.5, "_runtime": 5.4, "_timestamp": 1576850722.6120756, "_step": 0},
    {
        "loss": float("nan"),
        "note": "half way",
        "eval": {"f1": 1},
        "_runtime": 6.3,
        "_timestamp": 1576850723.5,
        "_step": 4,
    },
]
EVENTS = [
    {"system.cpu": 38.5, "system.proc.memory.rssMB": 149, "_wandb": True, "_timestamp": 1576850749, "_runtime": 31}
]
STARTED, BEAT = 1576850718251, 1576851233907
LONG_AGO = 1_600_000_000


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def lie(folder, files):
    """Writes files, long ago."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def old(root, id_="five", time="20191220_140518", kind="run", **changed):
    files = {
        "wandb-history.jsonl": lines(*ROWS),
        "wandb-events.jsonl": lines(*EVENTS),
        "wandb-summary.json": {"loss": 0.25, "best": 7},
        "wandb-metadata.json": METADATA,
        "config.yaml": CONFIG,
        "output.log": "epoch 1\n",
        "media/images/one.txt": "no picture",
    }
    return lie(root / f"{kind}-{time}-{id_}", {**files, **changed})


def points_of(points):
    return [(one["key"], one["step"], one["timestamp"], repr(one["value"])) for one in points]


@pytest.mark.parametrize("kind", ["run", "dryrun"])
def test_a_run_of_before_0_10_has_its_rows_its_config_and_its_end(tmp_path, kind):
    old(tmp_path / "wandb", kind=kind)
    (tmp_path / "wandb" / "settings").write_text("[default]\nproject = other\nentity = plubitz\n")
    runs, losses = whole(tmp_path)
    run, points, files = runs["five"]
    assert dict(run.params) == {"epochs": 25, "lr": 1.0e-06}
    assert (run.status, run.start, run.end) == ("FAILED", STARTED, BEAT)
    assert run.tags["wandb.entity"] == "plubitz"
    assert (run.experiment, run.tags["mlflow.user"]) == ("plubitz/four", "Pablo")  # its own word counts first
    assert (run.tags["wandb.job_type"], run.tags["mlflow.source.git.commit"]) == ("train", "0a" * 20)
    assert points_of(points) == [
        ("loss", 0, 1576850722612, "0.5"),
        ("loss", 4, 1576850723500, "nan"),
        ("eval.f1", 4, 1576850723500, "1.0"),
        ("system/cpu", 0, 1576850749000, "38.5"),
        ("system/proc.memory.rssMB", 0, 1576850749000, "149.0"),
        ("best", points[-1]["step"], BEAT, "7.0"),
    ]
    assert files["wandb/files/output.log"] == b"epoch 1\n"
    assert files["wandb/files/media/images/one.txt"] == b"no picture"
    assert not {"wandb/files/wandb-history.jsonl", "wandb/files/wandb-events.jsonl"} & files.keys()  # they are the rows
    assert b"half way" in files["wandb/history.jsonl"]
    assert json.loads(files["wandb/run.json"])["run"]["exit_code"] == 3
    assert losses == []


def test_a_run_that_lost_its_log_has_what_its_files_tell(tmp_path):
    told = {
        "wandb-summary.json": {"acc": 0.75, "_wandb": {"runtime": 90}},
        "config.yaml": CONFIG,
        "output.log": "done\n",
    }
    metadata = {"startedAt": "2024-11-12T21:56:04.500Z", "state": "running", "program": "train.py"}
    files = {f"files/{name}": content for name, content in {**told, "wandb-metadata.json": metadata}.items()}
    lie(tmp_path / "run-20241112_215604-torn", files | {"logs/debug.log": "x"})
    runs, losses = whole(tmp_path)
    run, points, kept = runs["torn"]
    assert (dict(run.params), run.status) == ({"epochs": 25, "lr": 1.0e-06}, "FINISHED")
    assert (run.start, run.end) == (1731448564500, 1731448654500)
    assert [(one["key"], one["timestamp"], one["value"]) for one in points] == [("acc", run.end, 0.75)]
    assert kept["wandb/files/output.log"] == b"done\n"
    assert [(loss.what, loss.because) for loss in losses] == [
        (
            "rows of run-20241112_215604-torn",
            "neither a .wandb file nor wandb-history.jsonl is there: they are not known",
        ),
        ("end of run-20241112_215604-torn", "how it ended was in its log: it is taken for finished"),
    ]


def test_a_run_of_which_nobody_says_that_it_ended_was_cut_off_or_goes_on(tmp_path):
    going_on = {key: value for key, value in METADATA.items() if key not in ("exitcode", "heartbeatAt")} | {
        "state": "running"
    }
    old(tmp_path, "cut", **{"wandb-metadata.json": going_on})
    live = old(tmp_path, "live", **{"wandb-metadata.json": going_on})
    os.utime(live / "wandb-history.jsonl", (time.time(), time.time()))
    runs, losses = whole(tmp_path)
    assert {id_: run.status for id_, (run, _, _) in runs.items()} == {"cut": "FAILED", "live": "RUNNING"}
    assert [(loss.run, loss.because) for loss in losses] == [
        ("cut", "nothing says that there was one: the run was cut off, or is still going on")
    ]


def test_a_start_that_only_the_folders_name_tells_is_that(tmp_path):
    empty = tmp_path / "run-20241112_215604-empty"
    lie(empty, {"run-empty.wandb": "", "files/config.yaml": CONFIG})
    lie(tmp_path / "run-20241341_215604-odd", {"run-odd.wandb": ""})
    runs, losses = whole(tmp_path)
    assert {id_: run.start for id_, (run, _, _) in runs.items()} == {"empty": 1731448564000, "odd": None}
    assert [loss.what for loss in losses if "taken for UTC" in loss.because] == [f"start of {empty.name}"]


@pytest.mark.parametrize("runtime", ["NaN", "Infinity", "1e400", '"long"', "true", "-1e300"])
def test_a_runtime_that_is_no_time_is_none(tmp_path, runtime):
    lie(tmp_path / "run-20241112_215604-torn", {"files/wandb-summary.json": f'{{"_wandb": {{"runtime": {runtime}}}}}'})
    runs, _ = whole(tmp_path)
    assert (runs["torn"][0].status, runs["torn"][0].end) == ("FAILED", None)


def test_damaged_lines_are_told_and_the_others_read(tmp_path, monkeypatch):
    monkeypatch.setattr(remains, "LONGEST", 300)
    good = [{"loss": n / 4, "_step": n} for n in range(4)]
    history = lines(good[0]) + "\n" + "[1, 2]\n" + lines(good[1]) + "no json\n" + json.dumps({"x": "y" * 700}) + "\n"
    old(tmp_path, **{"wandb-history.jsonl": history + lines(*good[2:]) + '{"loss": 0.', "wandb-events.jsonl": "\0\0\n"})
    runs, losses = whole(tmp_path)
    steps = [(one["step"], one["value"]) for one in runs["five"][1] if one["key"] == "loss"]
    assert steps == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert {(loss.what, loss.because) for loss in losses} == {
        ("rows of run-20191220_140518-five", "a line is no JSON object, 3 times"),
        ("rows of run-20191220_140518-five", "a line is longer than 0 MiB"),
        ("system metrics of run-20191220_140518-five", "a line is no JSON object"),
    }


def test_more_rows_than_go_at_once_are_all_there(tmp_path, monkeypatch):
    monkeypatch.setattr(remains, "ROWS", 7)
    rows = [{"loss": float(n), "_step": n, "_timestamp": 1_576_850_722 + n} for n in range(100)]
    old(tmp_path, **{"wandb-history.jsonl": lines(*rows).rstrip("\n")})
    runs, _ = whole(tmp_path)
    assert [one["step"] for one in runs["five"][1] if one["key"] == "loss"] == list(range(100))


def test_links_pipes_and_what_is_not_what_it_should_be_hold_nobody_up(tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"stolen": 1}\n')
    linked = old(tmp_path / "runs", "linked")
    (linked / "wandb-history.jsonl").unlink()
    (linked / "wandb-history.jsonl").symlink_to(secret)
    odd = old(tmp_path / "runs", "odd", **{"wandb-metadata.json": [1], "wandb-summary.json": "{", "config.yaml": "- 1"})
    (odd / "wandb-events.jsonl").unlink()
    os.mkfifo(odd / "wandb-events.jsonl")
    (tmp_path / "runs" / "settings").write_bytes(b"\xff[default\nproject")
    lie(tmp_path / "runs" / "run-20191220_140518-logs", {"logs/debug.log": "x"})
    (tmp_path / "runs" / "run-20191220_140518-bare").mkdir()
    (tmp_path / "runs" / "run-20191220_140518-bare" / "files").symlink_to(odd)
    runs, losses = whole(tmp_path / "runs")
    assert runs.keys() == {"odd"}
    assert [one["value"] for one in runs["odd"][1]] == [0.5, pytest.approx(float("nan"), nan_ok=True), 1.0]
    because = "it has neither a .wandb file nor anything else that tells of a run"
    assert [loss.what.rpartition("-")[2] for loss in losses if loss.because == because] == ["bare", "linked", "logs"]
    assert {loss.what for loss in losses} >= {
        "file 'wandb-metadata.json'",
        "file 'wandb-summary.json'",
        "file 'config.yaml'",
    }


def test_two_folders_of_one_id_are_one_run_and_a_log_beside_one_counts(tmp_path):
    old(tmp_path, "again", "20191220_140518")
    later = [{"loss": 0.125, "_step": 9, "_timestamp": 1576860000.0}]
    old(tmp_path, "again", "20191220_160518", **{"wandb-history.jsonl": lines(*later)})
    here = a_run(tmp_path, "log", rawlog.row(0, 1_600_000_000.25, loss=0.5), rawlog.exit_())
    lie(here, {"files/wandb-history.jsonl": lines(*ROWS)})
    runs, losses = whole(tmp_path)
    assert [one["step"] for one in runs["again"][1] if one["key"] == "loss"] == [0, 4, 9]
    assert [loss.because for loss in losses] == [
        "it was taken up again: 2 logs are one history, in the order of their times"
    ]
    assert [one["value"] for one in runs["log"][1] if one["key"] == "loss"] == [0.5]  # its own log, once


def test_they_go_into_a_database_and_into_w_and_b_again(tmp_path):
    old(tmp_path / "in")
    lie(tmp_path / "in" / "run-20241112_215604-torn", {"files/wandb-summary.json": {"acc": 0.75}})
    places = [f"wandb:{tmp_path}/in", f"mlflow:sqlite:///{tmp_path}/m.db", f"wandb:{tmp_path}/out"]
    for source, target in zip(map(parse, places), map(parse, places[1:]), strict=False):
        ledger = Ledger.open(tmp_path / f"{target.kind}.ledger", source, target)
        assert transfer(Job(source, target), ledger, Silent()).failed == ()
        ledger.close()
        assert verify(Job(source, target), Silent()).findings == ()
    with sqlite3.connect(tmp_path / "m.db") as connection:
        held = connection.execute(
            "select key, step, is_nan, value from metrics where run_uuid = 'five' order by key, step"
        )
        assert held.fetchall()[:4] == [
            ("best", 4, 0, 7.0),
            ("eval.f1", 4, 0, 1.0),
            ("loss", 0, 0, 0.5),
            ("loss", 4, 1, 0.0),
        ]
    (log,) = (tmp_path / "out").glob("*-five/run-five.wandb")
    assert [row["_step"] for row in rawlog.rows(log)] == [0, 4]
    assert [row["_timestamp"] for row in rawlog.rows(log)] == [1576850722.612, 1576850723.5]
