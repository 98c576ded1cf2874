"""Any version of MLflow into any other: real servers, each in its own environment, filled by its own client.

What arrived is counted by raw SQL in both servers' databases, and verified.  A size (MLMIGRATE_TEST_SIZE)
above 1 takes every pair; CI takes each version once as a source and once as a target.
"""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

import servers
from mlmigrate.address import Address, parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import verify
from sizes import SIZE

pytestmark = pytest.mark.slow

FILLER = Path(__file__).parent / "adapters" / "mlflow" / "rest" / "rest_fill.py"
SOURCES = ("1.30.0", "2.9.2", "2.22.4", "3.5.1", servers.CURRENT)
TARGETS = ("2.9.2", "2.22.4", "3.5.1", servers.CURRENT)
FEW = (
    ("1.30.0", servers.CURRENT),
    ("2.9.2", "3.5.1"),
    ("2.22.4", "2.9.2"),
    ("3.5.1", servers.CURRENT),
    (servers.CURRENT, "2.22.4"),
)
# what is counted: table -> (rows that a server shows, the version that first had a place for them, the kind of record)
COUNTED = {
    "registered_models": ("1 = 1", (1, 0), "mlflow.registered_model"),
    "model_versions": ("current_stage <> 'Deleted_Internal'", (1, 0), "mlflow.registered_model"),
    "registered_model_aliases": ("1 = 1", (2, 3), ""),
    "trace_info": ("1 = 1", (2, 14), "mlflow.trace"),
    "logged_models": ("lifecycle_stage = 'active'", (3, 0), "mlflow.logged_model"),
    "evaluation_datasets": ("1 = 1", (3, 4), "mlflow.evaluation_dataset"),
    "evaluation_dataset_records": ("1 = 1", (3, 4), ""),
    "scorer_versions": ("1 = 1", (3, 4), "mlflow.scorer"),
    "assessments": ("valid", (3, 2), ""),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Version -> (the archive of its server, the server's database); each server runs while it is exported."""
    return {version: exported(version, tmp_path_factory.mktemp(version.replace(".", "_"))) for version in SOURCES}


def exported(version: str, folder: Path) -> tuple[Path, Path]:
    server = servers.start(version, folder / "server")
    try:
        python = servers.environment(version) / "python"
        done = subprocess.run([python, FILLER, server.url], check=False, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        source, archive = parse(f"mlflow:{server.url}"), parse(str(folder / "archive"))
        report = carried(source, archive, folder)
        assert report.failed == ()
        assert verify(Job(source, archive), Silent()).findings == ()
        return folder / "archive", server.database
    finally:
        server.stop()


def carried(source: Address, target: Address, folder: Path) -> Report:
    with closing(Ledger.open(folder / f"{abs(hash(target.text))}.ledger", source, target)) as ledger:
        return transfer(Job(source, target), ledger, Silent())


def count(database: Path, table: str) -> int:
    where = COUNTED[table][0]
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        known = connection.execute("select 1 from sqlite_master where name = ?", (table,)).fetchone()
        return int(connection.execute(f"select count(*) from {table} where {where}").fetchone()[0]) if known else 0


def number(version: str) -> tuple[int, int]:
    if version == servers.CURRENT:
        return (99, 0)
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def pairs() -> list[tuple[str, str]]:
    if SIZE > 1:
        return [(source, target) for source in SOURCES for target in TARGETS]
    return list(FEW)


def word(what: str) -> str:
    """What a finding is about: of what a server refused, a loss is told, and verify finds it missing."""
    return what.partition(" ")[0].removeprefix("mlflow.").replace("_", " ")


@pytest.mark.parametrize(("source", "target"), pairs())
def test_all_that_the_target_has_a_place_for_arrives_and_the_rest_is_told(
    source: str, target: str, filled: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    archive, database = filled[source]
    server = servers.start(target, tmp_path / "server")
    try:
        here, there = parse(str(archive)), parse(f"mlflow:{server.url}")
        report = carried(here, there, tmp_path)
        assert report.failed == ()
        lost = {loss.what.partition(" ")[0] for loss in report.losses}
        for table, (_, since, kind) in COUNTED.items():
            meant = count(database, table)
            if number(target) >= since:
                assert (table, count(server.database, table)) == (table, meant)
            elif meant and kind:
                assert kind in lost
        told = " ".join(loss.what for loss in report.losses)
        findings = verify(Job(here, there), Silent()).findings
        assert [one for one in findings if word(one.what) not in told] == []
        again = carried(here, there, tmp_path)
        assert (again.copied, again.records) == (0, {})
    finally:
        server.stop()


@pytest.mark.parametrize("source", SOURCES)
def test_the_archive_of_a_server_of_any_version_becomes_a_database(
    source: str, filled: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    archive, database = filled[source]
    here, file = parse(str(archive)), tmp_path / "new.db"
    there = parse(f"mlflow:sqlite:///{file}")
    report = carried(here, there, tmp_path)
    assert report.failed == ()
    for table in COUNTED:
        assert (table, count(file, table)) == (table, count(database, table))
    assert verify(Job(here, there), Silent()).findings == ()


@pytest.mark.parametrize("source", SOURCES)
def test_the_database_of_any_version_is_read_directly(
    source: str, filled: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    _, database = filled[source]
    file = tmp_path / "new.db"
    here, there = parse(f"mlflow:sqlite:///{database}"), parse(f"mlflow:sqlite:///{file}")
    report = carried(here, there, tmp_path)
    assert report.failed == ()
    for table in COUNTED:
        assert (table, count(file, table)) == (table, count(database, table))
    assert verify(Job(here, there), Silent()).findings == ()
