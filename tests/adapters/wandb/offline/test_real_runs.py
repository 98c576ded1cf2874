"""Offline runs from the wild: into an archive, out of it into a database, and verified on the way.

What they hold was counted by a reader that is not ours, and is counted again here by protobuf alone.
"""

import json
import sqlite3
import tarfile
from collections import Counter
from pathlib import Path

import pytest

import wandblogs
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
FOLDERS = sorted(file.name.removesuffix(".tar.gz") for file in DATA.glob("wandb-*.tar.gz"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDERS, reason="the runs are not at ../shared/data")]


@pytest.fixture(params=FOLDERS)
def folder(request, tmp_path, monkeypatch):
    for name in ("DATA", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "sdk" / name.lower()))
    with tarfile.open(DATA / f"{request.param}.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / request.param


def counts(folder):
    return json.loads((DATA / "counts" / f"{folder.name}.json").read_text())


def logs(folder):
    """The logs; and of each run one, the longest."""
    every = sorted(folder.rglob("*.wandb"))
    one_each = {}
    for log in every:
        if log.stat().st_size >= one_each.get(log.name, log).stat().st_size:
            one_each[log.name] = log
    return every, list(one_each.values())


def leaves(value):
    """The numbers in a value, however nested."""
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    return int(isinstance(value, int | float))


def plain_numbers(rows):
    return sum(isinstance(value, int | float) and not key.startswith("_") for row in rows for key, value in row.items())


def test_the_raw_reading_of_this_test_agrees_with_the_counts(folder):
    every, _ = logs(folder)
    kinds = Counter(record.WhichOneof("record_type") for log in every for record in wandblogs.read(log))
    told = counts(folder)
    assert (len(every), dict(kinds)) == (told["counts"]["wandb_files"], told["kinds"])
    assert kinds["history"] == told["counts"].get("history_rows", 0)


def test_runs_rows_and_points_are_those_that_were_counted(folder):
    _, one_each = logs(folder)
    rows = [row for log in one_each for row in wandblogs.rows(log)]
    lines = [stats for log in one_each for stats in wandblogs.of_kind(log, "stats")]
    stats = sum(leaves(json.loads(item.value_json)) for line in lines for item in line.item)
    source = registry.open_source(parse(f"wandb:{folder}"), Context("source"))
    refs = [ref for ref in source.refs() if ref.kind == "run"]
    assert len(refs) == len(one_each)
    history, system, at = 0, 0, set()
    with source.read(refs) as reading:
        names = {run.id for run in reading.runs}
        for batch in reading.points():
            for point in batch.to_pylist():
                if point["key"].startswith("system/"):
                    system += 1
                elif point["timestamp"] is not None:
                    history += 1
                    at.add((point["run"], point["step"], point["timestamp"], point["timestamp_micro"]))
    assert names == {log.name[4:-6] for log in one_each}
    told = counts(folder)["counts"]
    if told.get("history_rows"):
        assert len(rows) == told["history_rows"]
        assert plain_numbers(rows) == told["metric_points"]
    assert system == stats
    assert history >= plain_numbers(rows)  # what only a summary tells is a point too
    assert len(at) >= len({(row["_step"], row["_timestamp"]) for row in rows})


def carried(source, target, folder):
    ledger = Ledger.open(folder / f"{target.place.rpartition('/')[2]}.ledger", source, target)
    try:
        return transfer(Job(source, target), ledger, Silent())
    finally:
        ledger.close()


def test_they_arrive_whole_in_an_archive_in_a_database_and_in_a_folder_again(folder, tmp_path):
    source, archive = parse(f"wandb:{folder}"), parse(str(tmp_path / "archive"))
    database, again = parse(f"mlflow:sqlite:///{tmp_path}/new.db"), parse(f"wandb:{tmp_path}/again")
    _, one_each = logs(folder)
    out = carried(source, archive, tmp_path)
    assert (out.failed, out.copied) == ((), len(one_each))
    assert verify(Job(source, archive), Silent()).findings == ()
    back = carried(archive, database, tmp_path)
    assert (back.failed, back.copied) == ((), len(one_each))
    assert verify(Job(archive, database), Silent()).findings == ()
    with sqlite3.connect(tmp_path / "new.db") as connection:
        assert connection.execute("select count(*) from metrics").fetchone()[0] == out.points
    assert carried(source, archive, tmp_path).copied == 0

    native = carried(database, again, tmp_path)
    assert (native.failed, native.copied) == ((), len(one_each))
    assert verify(Job(database, again), Silent()).findings == ()
    for log in one_each:
        meant = wandblogs.rows(log)
        if meant:
            (there,) = (tmp_path / "again").glob(f"*-{log.name[4:-6]}/{log.name}")
            kept = [{key: value for key, value in row.items() if key != "_runtime"} for row in wandblogs.rows(there)]
            assert kept == [{key: value for key, value in row.items() if key != "_runtime"} for row in meant]
