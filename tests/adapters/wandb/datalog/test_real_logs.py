"""Logs from the wild: what they hold was counted by a reader that is not ours."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

import wandblogs as rawlog
from mlmigrate.adapters.wandb.datalog.reader import Log

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
STORES = sorted(file.name.removesuffix(".tar.gz") for file in DATA.glob("wandb-*.tar.gz"))
pytestmark = pytest.mark.skipif(not STORES, reason="the logs are not at ../shared/data")


@pytest.fixture(scope="module", params=STORES)
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    with tarfile.open(DATA / f"{request.param}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    logs = [Log(path) for path in sorted(folder.rglob("*.wandb")) if not path.is_symlink()]
    return logs, json.loads((DATA / "counts" / f"{request.param}.json").read_text())


def test_a_log_holds_what_was_counted(store):
    logs, told = store
    counts = told["counts"]
    assert len(logs) == counts["wandb_files"]
    assert sum((Counter(log.counts) for log in logs), Counter()) == told["kinds"]
    blocks = [block for log in logs for block in log.history()]
    assert sum(block.rows for block in blocks) == counts.get("history_rows", 0)
    assert sum(len(block.value) for block in blocks) == counts.get("metric_points", 0)
    assert sum(block.rows for log in logs for block in log.events()) == told["kinds"].get("stats", 0)
    assert sum(log.run.lines for log in logs) == counts.get("history_rows", 0)


def test_what_is_wrong_with_a_log_is_told(store):
    logs, told = store
    oddities = {name: one["n"] for name, one in told["oddities"].items()}
    because = Counter(loss.because for log in logs for loss in log.losses)
    assert because["the file is empty"] == oddities.get("wandb-bad-header", 0)
    assert because["the last record is cut off"] == oddities.get("wandb-truncated-record", 0)
    unfinished = sum(1 for log in logs if log.counts and "exit" not in log.counts)
    assert sum(1 for log in logs if any(loss.what.startswith("end of") for loss in log.losses)) == unfinished
    assert all(log.run.state in ("finished", "failed", "crashed", "running") for log in logs)


def test_a_run_is_named_as_its_file_is(store):
    for log in store[0]:
        assert log.path.name == f"run-{log.run.id}.wandb"
        assert log.run.started is None or 1.6e12 < log.run.started < 1.8e12


def test_a_run_that_is_over_has_an_end(store):
    for log in store[0]:
        records = list(rawlog.read(log.path))
        told = [_time(record) for record in records]
        told = [time for time in told if time]
        if log.run.state in ("finished", "failed", "crashed") and told and not log.run.runtime:
            assert log.run.ended == round(max(told) * 1000)
        assert log.run.ended is None or log.run.ended >= (log.run.started or 0)
        assert log.run.ended is not None or not told


def _time(record):
    """The seconds that a record tells, by the SDK's own classes."""
    kind = record.WhichOneof("record_type")
    if kind in ("output", "output_raw", "stats"):
        stamp = getattr(record, kind).timestamp
        return stamp.seconds + stamp.nanos / 1e9
    items = record.history.item if kind == "history" else []
    return next((json.loads(item.value_json) for item in items if item.key == "_timestamp"), None)
