"""Between us and a server anything may break: nothing is made twice, nothing is missing, or we say so."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from dataclasses import replace

import pytest
from rest_helpers import Database, estate, fresh

import faults
from mlmigrate.adapters.base import Context, Once
from mlmigrate.adapters.memory import Held
from mlmigrate.adapters.mlflow import open_source
from mlmigrate.adapters.mlflow.rest.auth import login
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.writing import Writing
from mlmigrate.address import parse
from mlmigrate.errors import Unavailable
from mlmigrate.steps import Steps
from mlmigrate.testing.conformance import copy
from mlmigrate.testing.samples import START, series

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Waits between tries are short here."""
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.01)
    monkeypatch.setattr("mlmigrate.steps.LONGEST_WAIT", 0.05)


def some_runs(n=6):
    parent = fresh("parent")
    tags = {"mlflow.parentRunId": parent.id}
    children = [fresh(f"run {i}", params={"p": str(i)}, tags=tags) for i in range(n)]
    runs = [parent, *children, fresh("deleted", deleted=True)]
    return [
        Held(run, series(run, {"m": [(i, START + i, i / 7) for i in range(50)]}), {(run.id, "a/b.txt"): b"x" * 1000})
        for run in runs
    ]


def assert_whole(server, place):
    """Each run is there once, whole; nothing is there that has no origin."""
    db = Database(server)
    experiment = place.experiments()[0].name
    assert db.count(experiment) == len(place.held)
    for held in place.held.values():
        row = db.run(held.run)
        assert row[-1] == ("deleted" if held.run.deleted else "active")
        assert row[1:6] == (held.run.name, held.run.status, held.run.start, held.run.end, held.run.user)
        assert db.points(row[0]) == Counter({("m", i, START + i, i / 7): 1 for i in range(50)})
        assert db.params(row[0]) == held.run.params
        (file,) = server.files.glob(f"*/{row[0]}/artifacts/a/b.txt")
        assert file.read_bytes() == b"x" * 1000


KINDS = [faults.LOST, faults.BEFORE, faults.ERROR_AFTER, faults.BUSY, faults.TRUNCATED, faults.HTML, faults.TWICE]


@pytest.mark.parametrize("kind", KINDS)
def test_every_third_answer_spoiled_makes_no_ghost_and_misses_nothing(kind, current, proxy_of, tmp_path):
    place = estate(*some_runs())
    if kind == faults.TWICE:  # a create that arrives twice cannot be told from two runs: it is found at the stamp

        def rule(number, method, path):
            return kind if number % 3 == 0 and "runs/create" not in path else None
    else:

        def rule(number, method, path):
            return kind if number % 3 == 0 else None

    proxy = proxy_of(current.url, rule=rule)
    report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / "l", tries=12)
    assert (report.failed, report.copied) == ((), len(place.held))
    assert proxy.made > 5
    assert_whole(current, place)


@pytest.mark.parametrize("seed", range(3))
def test_a_mix_of_faults_ends_whole_or_says_what_is_missing(seed, current, proxy_of, tmp_path):
    place = estate(*some_runs())
    dice = random.Random(seed)
    kinds = [faults.LOST, faults.BEFORE, faults.ERROR_AFTER, faults.BUSY, faults.TRUNCATED, faults.HTML]
    proxy = proxy_of(current.url, rule=lambda *request: dice.choice(kinds) if dice.random() < 0.3 else None)
    for attempt in range(6):
        try:
            report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / f"{attempt}", tries=4)
        except Unavailable:
            continue
        if not report.failed:
            break
    assert not report.failed
    assert_whole(current, place)


def test_a_doubtful_create_is_looked_for_and_adopted(current, proxy_of, tmp_path):
    place = estate(Held(fresh("one")))
    lost = []

    def rule(number, method, path):
        if "runs/create" in path and not lost:
            lost.append(number)
            return faults.LOST
        return None

    proxy = proxy_of(current.url, rule=rule)
    report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / "l")
    assert report.failed == ()
    assert sum("runs/create" in path for _, path in proxy.seen) == 1
    assert Database(current).count(place.experiments()[0].name) == 1


def test_a_create_that_reached_the_server_twice_leaves_one_run(current, proxy_of, tmp_path):
    place = estate(Held(fresh("one"), artifacts={}))

    def rule(number, method, path):  # the second of two runs is found because the answer was doubtful
        creates = sum("runs/create" in seen for _, seen in proxy.seen)
        if "runs/create" in path and creates == 1:
            return faults.LOST
        return None

    proxy = proxy_of(current.url, rule=rule)
    original = proxy.forward

    def twice(method, path, body, headers):
        if "runs/create" in path:
            original(method, path, body, headers)
        return original(method, path, body, headers)

    proxy.forward = twice
    report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / "l")
    assert report.failed == ()
    (held,) = place.held.values()
    assert Database(current).run(held.run)[-1] == "active"  # the one that bears the origin
    source = open_source(parse(f"mlflow:{current.url}"), Context("source"))
    mine = {one.id for one in source.experiments() if one.name == place.experiments()[0].name}
    assert len([ref for ref in source.refs() if ref.experiment in mine]) == 1
    source.close()


def test_a_server_that_went_away_half_way_is_taken_up_again(current, proxy_of, tmp_path):
    place = estate(*some_runs())
    proxy = proxy_of(current.url, rule=lambda number, *request: faults.BEFORE if number > 25 else None)
    with contextlib.suppress(Unavailable):
        assert copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / "l", tries=2).failed
    report = copy(place, parse(f"mlflow:{current.url}"), tmp_path / "other")
    assert report.failed == ()
    assert_whole(current, place)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_through_faults_reads_all(kind, server, proxy_of, tmp_path):
    place = estate(*some_runs(3))
    copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l")
    ids = {Database(server).run(held.run)[0] for held in place.held.values()}
    proxy = proxy_of(server.url, rule=lambda number, *request: kind if number % 3 == 0 else None)
    source = open_source(parse(f"mlflow:{proxy.url}"), Context("source", Steps(12)))
    with source.read([ref for ref in source.refs() if ref.id in ids]) as reading:
        points = sum(len(batch) for batch in reading.points())
        files = [artifact.path for artifact in reading.artifacts()]
        assert len(reading.runs) == len(ids)
        assert reading.losses == []
    source.close()
    assert (
        points
        == sqlite3.connect(server.database, timeout=30)
        .execute(f"select count(*) from metrics where run_uuid in ({','.join('?' * len(ids))})", list(ids))
        .fetchone()[0]
    )
    assert files == ["a/b.txt"] * len(ids)


def test_points_that_are_there_already_are_written_again_whatever_they_are(server, tmp_path):
    place = estate(*some_runs(1))
    held = next(held for held in place.held.values() if held.run.name == "run 0")
    metrics = {
        "m": [(i, START + i, float("nan") if i % 3 else i / 7) for i in range(20)],
        "nan": [(0, 0, float("nan"))],
    }
    place.held[held.run.origin] = replace(held, points=series(held.run, metrics))
    assert copy(place, parse(f"mlflow:{server.url}"), tmp_path / "l").failed == ()
    db = Database(server)
    row = db.run(held.run)
    first = db.points(row[0])
    client = Client(login(server.url, {}), Once())
    columns = place.held[held.run.origin].points.select(["key", "step", "timestamp", "value"])
    (points,) = columns.combine_chunks().to_batches()
    Writing(client).log(row[0], [{"key": "again", "value": "1"}], [], points)
    client.close()
    assert db.points(row[0]) == first
    assert sum(first.values()) == 21
    assert db.params(row[0]) == {**held.run.params, "again": "1"}
