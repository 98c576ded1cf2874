"""A server is read whole: what its own database holds is what we read, whatever the version."""

from __future__ import annotations

import json
import math
import sqlite3
import urllib.parse
import urllib.request
from collections import Counter

import pytest

from mlmigrate.adapters.base import Context
from mlmigrate.adapters.mlflow import open_source
from mlmigrate.adapters.mlflow.rest import histories, source
from mlmigrate.address import parse

pytestmark = pytest.mark.slow


def post(url: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request))


def put(url: str, path: str, data: bytes) -> None:
    place = f"{url}/api/2.0/mlflow-artifacts/artifacts/{urllib.parse.quote(path)}"
    headers = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(place, data, headers, method="PUT")).read()


def make_run(url: str, experiment: str, name: str, **metrics) -> str:
    start = 1_700_000_000_000
    body = {"experiment_id": experiment, "user_id": "anna", "run_name": name, "start_time": start}
    run = post(url, "runs/create", body)["run"]["info"]["run_id"]
    for key, values in metrics.items():
        rows = [{"key": key, "value": v, "timestamp": start + i, "step": s} for i, (s, v) in enumerate(values)]
        for i in range(0, len(rows), 1000):
            post(url, "runs/log-batch", {"run_id": run, "metrics": rows[i : i + 1000]})
    return run


@pytest.fixture(scope="module")
def filled(server):
    """A server with an experiment of ours: (server, experiment id, its runs)."""
    made = post(server.url, "experiments/create", {"name": "read me", "tags": [{"key": "a", "value": "ü"}]})
    experiment = made["experiment_id"]
    runs = []
    for i in range(5):
        run = make_run(
            server.url, experiment, f"run {i}",
            acc=[(0, 0.5), (1, "NaN"), (2, "Infinity"), (-3, -1.5)],
            **{f"m/{k}": [(j, j / 7) for j in range(30)] for k in range(3)},
        )  # fmt: skip
        post(server.url, "runs/log-batch", {"run_id": run, "params": [{"key": "p", "value": "x" * 400}]})
        post(server.url, "runs/set-tag", {"run_id": run, "key": "t", "value": "größe\n🚀"})
        post(server.url, "runs/set-tag", {"run_id": run, "key": "mlmigrate.origin", "value": "not carried"})
        put(server.url, f"{experiment}/{run}/artifacts/model/weights 1.bin", bytes(range(256)) * 300 * i + b"w")
        put(server.url, f"{experiment}/{run}/artifacts/ünï 模型.txt", b"hello")
        post(server.url, "runs/update", {"run_id": run, "status": "FAILED", "end_time": 1_700_000_001_000})
        runs.append(run)
    dataset = {"name": "d", "digest": "x", "source_type": "local", "source": "{}", "profile": "{}"}
    given = {"tags": [{"key": "mlflow.data.context", "value": "train"}], "dataset": dataset}
    post(server.url, "runs/log-inputs", {"run_id": runs[0], "datasets": [given]})
    post(server.url, "runs/delete", {"run_id": runs[4]})
    runs.append(make_run(server.url, experiment, "alive"))
    return server, experiment, runs


def opened(server):
    return open_source(parse(f"mlflow:{server.url}"), Context("source"))


def refs_of(place, runs):
    return [ref for ref in place.refs() if ref.id in runs]


def rows_of(reading) -> list[tuple]:
    return [
        (row["run"], row["key"], row["step"], row["timestamp"], row["value"])
        for batch in reading.points()
        for row in batch.to_pylist()
    ]


def test_fields_params_and_tags_are_those_of_the_database(filled):
    server, experiment, runs = filled
    place, db = opened(server), sqlite3.connect(server.database)
    with place.read(refs_of(place, runs)) as reading:
        read = {run.id: run for run in reading.runs}
    place.close()
    names = "name, status, start_time, end_time, user_id, lifecycle_stage"
    for run in runs:
        row = db.execute(f"select {names} from runs where run_uuid = ?", [run]).fetchone()
        one = read[run]
        stage = "deleted" if one.deleted else "active"
        assert (one.name, one.status, one.start, one.end, one.user, stage) == row
        assert one.experiment == experiment
        params = dict(db.execute("select key, value from params where run_uuid = ?", [run]))
        tags = dict(db.execute("select key, value from tags where run_uuid = ? and key not like 'mlmigrate.%'", [run]))
        assert (dict(one.params), dict(one.tags)) == (params, tags)
    assert (read[runs[4]].deleted, read[runs[5]].end) == (True, None)


def test_every_point_of_the_database_is_read(filled):
    server, _, runs = filled
    place, db = opened(server), sqlite3.connect(server.database)
    with place.read(refs_of(place, runs)) as reading:
        read = rows_of(reading)
    place.close()
    found = db.execute("select run_uuid, key, step, timestamp, value, is_nan from metrics")
    expected = [(*row[:4], math.nan if row[5] else row[4]) for row in found if row[0] in runs]
    assert Counter(map(repr, read)) == Counter(map(repr, expected))
    assert reading.losses == []
    order = [row[0] for row in read]
    assert order == sorted(order, key=order.index), "a run's points lie together"


def test_files_are_read_byte_by_byte(filled):
    server, experiment, runs = filled
    place = opened(server)
    with place.read(refs_of(place, runs)) as reading:
        read = {}
        for artifact in reading.artifacts():
            with artifact.open() as data:
                read[artifact.owner, artifact.path] = data.read()
    place.close()
    expected = {}
    for run in runs:
        folder = server.files / experiment / run / "artifacts"
        expected |= {(run, f.relative_to(folder).as_posix()): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert read == expected
    assert len(read) == 10


def test_a_file_can_be_opened_twice(filled):
    server, _, runs = filled
    place = opened(server)
    with place.read(refs_of(place, runs)) as reading:
        artifacts = list(reading.artifacts())
        for artifact in artifacts:
            with artifact.open() as first, artifact.open() as second:
                assert first.read() == second.read()
    place.close()


def test_datasets_come_with_their_tags(filled):
    server, _, runs = filled
    place = opened(server)
    with place.read(refs_of(place, runs[:1])) as reading:
        (given,) = reading.runs[0].inputs
    place.close()
    assert (given.name, given.digest, given.source_type, given.profile) == ("d", "x", "local", "{}")
    assert given.schema is None
    assert given.tags == {"mlflow.data.context": "train"}


def test_experiments_come_with_their_tags_and_deleted_ones_too(filled):
    server, experiment, _ = filled
    gone = post(server.url, "experiments/create", {"name": "gone and read"})["experiment_id"]
    post(server.url, "experiments/delete", {"experiment_id": gone})
    place = opened(server)
    read = {one.id: one for one in place.experiments()}
    place.close()
    assert (read[experiment].name, read[experiment].tags, read[experiment].deleted) == ("read me", {"a": "ü"}, False)
    assert read[gone].deleted


def test_short_pages_list_the_same_runs(filled, monkeypatch):
    server, _, runs = filled
    place = opened(server)
    at_once = refs_of(place, runs)
    monkeypatch.setattr(source, "FIRST_PAGE", 2)
    monkeypatch.setattr(source, "LARGEST_PAGE", 2)
    assert refs_of(place, runs) == at_once
    assert len(at_once) == len(runs)
    place.close()


def test_a_stamp_changes_when_a_run_does_and_a_running_run_has_none(filled):
    server, experiment, runs = filled
    run = make_run(server.url, experiment, "stamped", a=[(0, 1.0)])
    post(server.url, "runs/update", {"run_id": run, "status": "FINISHED", "end_time": 1_700_000_001_000})
    place = opened(server)

    def stamp(of: str) -> str:
        return next(ref.stamp for ref in place.refs() if ref.id == of)

    stamps = [stamp(run), stamp(run)]
    row = {"key": "a", "value": 2.0, "timestamp": 1_700_000_000_005, "step": 1}
    post(server.url, "runs/log-batch", {"run_id": run, "metrics": [row]})
    stamps.append(stamp(run))
    post(server.url, "runs/set-tag", {"run_id": run, "key": "new", "value": ""})
    stamps.append(stamp(run))
    post(server.url, "runs/set-tag", {"run_id": run, "key": "mlmigrate.x", "value": "ours"})
    stamps.append(stamp(run))
    assert stamps[0] == stamps[1]
    assert stamps[3] == stamps[4]
    assert len(set(stamps)) == 3
    assert stamp(runs[5]) == ""
    place.close()


def test_a_run_that_is_gone_is_a_loss(filled):
    server, _, runs = filled
    place = opened(server)
    ref = refs_of(place, runs)[0]
    with place.read([source.RunRef(ref.experiment, "0" * 31 + "f"), ref]) as reading:
        assert [run.id for run in reading.runs] == [ref.id]
        assert [loss.run for loss in reading.losses] == ["0" * 31 + "f"]
    place.close()


def test_a_series_longer_than_any_answer_is_read_to_its_last_point(filled):
    server, experiment, _ = filled
    counts = {"long": 26_500, "still": 25_003, "short": 7}
    long = make_run(server.url, experiment, "long", short=[(i, 0.5) for i in range(7)])
    db = sqlite3.connect(server.database, timeout=30)
    for key in ("long", "still"):  # straight into the database: 50,000 points over REST take a while
        step = "i" if key == "long" else "0"
        db.execute(
            f"with recursive n(i) as (select 0 union all select i + 1 from n where i + 1 < {counts[key]}) "
            f"insert into metrics(key, value, timestamp, run_uuid, step, is_nan) "
            f"select ?, i / 3.0, 1000 + i, ?, {step}, 0 from n",
            [key, long],
        )
        db.execute(
            "insert into latest_metrics(key, value, timestamp, step, is_nan, run_uuid) values (?, ?, ?, ?, 0, ?)",
            [key, (counts[key] - 1) / 3, 1000 + counts[key] - 1, counts[key] - 1 if key == "long" else 0, long],
        )
    db.commit()
    others = [make_run(server.url, experiment, f"beside {i}", still=[(0, 1.0)]) for i in range(3)]
    place = opened(server)
    with place.read(refs_of(place, [long, *others])) as reading:
        read = Counter((row[0], row[1]) for row in rows_of(reading))
        assert reading.losses == []
    place.close()
    expected = {(long, key): n for key, n in counts.items()} | {(run, "still"): 1 for run in others}
    assert read == Counter(expected)


def test_points_are_read_without_the_bulk_route(filled, monkeypatch):
    server, _, runs = filled
    monkeypatch.setattr(histories, "BULK", "no/such/route")
    place, db = opened(server), sqlite3.connect(server.database)
    with place.read(refs_of(place, runs)) as reading:
        read = len(rows_of(reading))
    place.close()
    marks = ", ".join("?" * len(runs))
    assert read == db.execute(f"select count(*) from metrics where run_uuid in ({marks})", runs).fetchone()[0]


def test_a_server_without_pages_is_read_piece_by_piece(filled, monkeypatch):
    server, _, runs = filled
    monkeypatch.setattr(histories, "BULK", "no/such/route")
    place = opened(server)
    with place.read(refs_of(place, runs)) as reading:
        whole = rows_of(reading)
    monkeypatch.setattr(histories, "IN_MEMORY", 10)
    monkeypatch.setattr(histories, "CHUNK", 150)
    with place.read(refs_of(place, runs)) as reading:
        assert Counter(map(repr, rows_of(reading))) == Counter(map(repr, whole))
    place.close()
