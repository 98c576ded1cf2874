"""Stores from the wild with models and traces: into an archive, a database and a server, all that they hold.

What they hold was counted by a reader that is not ours; what arrived is asked by raw SQL.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mlmigrate.address import Address, parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import verify

from .servers import CURRENT, Server, start
from .sizes import SIZE

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = (
    "fs-kenmogne-registry",
    "fs-psolu",
    "fs-bits2",
    "fs-mlflow-misc",
    "fs-llamaindex-traces",
    "db-attrition-2023",
    "db-ds-experiments-2025",
)
FEW = ("fs-kenmogne-registry", "fs-llamaindex-traces", "db-ds-experiments-2025")  # go to a server in CI too
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the stores are not at ../shared/data")
# tables -> what the independent reader calls their rows
COUNTED = {
    "runs": "runs",
    "registered_models": "registered_models",
    "registered_model_aliases": "model_aliases",
    "model_versions": "model_versions",
    "logged_models": "logged_models",
    "logged_model_params": "logged_model_params",
    "logged_model_tags": "logged_model_tags",
    "logged_model_metrics": "logged_model_metric_points_distinct",
    "trace_info": "traces",
    "trace_tags": "trace_tags",
    "trace_request_metadata": "trace_metas",
}
MARK = "mlmigrate.%"  # the keys of what a target notes beside what was carried


@pytest.fixture(scope="module", params=NAMES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Address]:
    """The name of a store, and the store unpacked."""
    folder = tmp_path_factory.mktemp("store")
    with tarfile.open(DATA / f"{request.param}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    place = folder / request.param
    if request.param.startswith("fs-"):
        return request.param, parse(f"mlflow:{place}")
    (file,) = (one for one in place.iterdir() if one.suffix in (".db", ".sqlite"))
    return request.param, parse(f"mlflow:sqlite:///{file}")


@pytest.fixture(scope="module")
def archive(store: tuple[str, Address], tmp_path_factory: pytest.TempPathFactory) -> Address:
    """The store in an archive, whole."""
    _, source = store
    address = parse(str(tmp_path_factory.mktemp("archive") / "archive"))
    carried(source, address)
    return address


@pytest.fixture
def server(store: tuple[str, Address], tmp_path: Path) -> Iterator[Server]:
    """An empty server of the current version."""
    if SIZE <= 1 and store[0] not in FEW:
        pytest.skip("one of the slow tail: MLMIGRATE_TEST_SIZE=2 runs it")
    running = start(CURRENT, tmp_path / "server")
    yield running
    running.stop()


def carried(source: Address, target: Address) -> Report:
    """A whole transfer, with a ledger of its own."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(Path(folder) / "ledger", source, target)
        try:
            report = transfer(Job(source, target), ledger, Silent())
        finally:
            ledger.close()
    assert report.failed == ()
    return report


def counts(name: str) -> Counter[str]:
    """What the independent reader counted."""
    return Counter(json.loads((DATA / "counts" / f"{name}.json").read_text())["counts"])


def rows(file: Path) -> dict[str, int]:
    """How many rows the tables of a database have, but for what a target notes for itself."""
    with closing(sqlite3.connect(file)) as database:
        found = {}
        for table in COUNTED:
            columns = {row[1] for row in database.execute(f"pragma table_info({table})")}
            key = next((one for one in ("key", "tag_key") if one in columns), "''")
            found[table] = database.execute(f"select count(*) from {table} where {key} not like '{MARK}'").fetchone()[0]
        return found


def meant(name: str, source: Address) -> dict[str, int]:
    """The rows that a table shall have: counted in files, or by SQL in the database itself."""
    if name.startswith("fs-"):
        found = counts(name)
        return {table: found[counted] for table, counted in COUNTED.items()}
    with closing(sqlite3.connect(source.place.removeprefix("sqlite:///"))) as database:
        tables = {row[0] for row in database.execute("select name from sqlite_master")}
        return {
            table: database.execute(f"select count(*) from {table}").fetchone()[0] if table in tables else 0
            for table in COUNTED
        }


def test_the_store_is_what_was_counted(store: tuple[str, Address]) -> None:
    name, source = store
    found = counts(name)
    mine = meant(name, source)
    assert {table: mine[table] for table, counted in COUNTED.items() if counted in found} == {
        table: found[counted] for table, counted in COUNTED.items() if counted in found
    }


def test_it_arrives_whole_in_an_archive(store: tuple[str, Address], archive: Address) -> None:
    name, source = store
    verdict = verify(Job(source, archive), Silent())
    assert verdict.findings == ()
    mine = meant(name, source)
    told = (verdict.records[f"mlflow.{kind}"] for kind in ("registered_model", "logged_model", "trace"))
    assert tuple(told) == (mine["registered_models"], mine["logged_models"], mine["trace_info"])
    assert carried(source, archive).copied == 0


def test_it_arrives_whole_in_a_database(store: tuple[str, Address], archive: Address, tmp_path: Path) -> None:
    name, source = store
    file = tmp_path / "new.db"
    database = parse(f"mlflow:sqlite:///{file}")
    carried(archive, database)
    assert verify(Job(archive, database), Silent()).findings == ()
    assert rows(file) == meant(name, source)
    assert carried(archive, database).copied == 0
    assert rows(file) == meant(name, source)


@pytest.mark.slow
def test_it_arrives_whole_in_a_server(store: tuple[str, Address], archive: Address, server: Server) -> None:
    name, source = store
    target = parse(f"mlflow:{server.url}")
    carried(archive, target)
    assert verify(Job(archive, target), Silent()).findings == ()
    found = rows(server.database)
    with closing(sqlite3.connect(server.database)) as database:
        # a server keeps the names of traces in a column, and notes for itself which traces are whole
        found["trace_tags"] += database.execute("select count(trace_name) from trace_info").fetchone()[0]
        noted = "select count(*) from trace_request_metadata where key = 'mlflow.trace.infoFinalized'"
        found["trace_request_metadata"] -= database.execute(noted).fetchone()[0]
    assert found == meant(name, source)
