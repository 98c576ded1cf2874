"""Stores from the wild: into an archive, out of it into a database, and verified on the way.

What they hold was counted by a reader that is not ours; what the database holds is asked by raw SQL.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path

import pytest

from mlmigrate.adapters.base import Settings
from mlmigrate.address import Address, parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import verify

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STORES = sorted(file.name.removesuffix(".tar.gz") for kind in ("fs", "db") for file in DATA.glob(f"{kind}-*.tar.gz"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORES, reason="the stores are not at ../shared/data"),
]


def unpacked(name: str, folder: Path) -> Address:
    with tarfile.open(DATA / f"{name}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    place = folder / name
    if name.startswith("fs-"):
        return parse(f"mlflow:{place}")
    (file,) = (one for one in place.iterdir() if one.suffix in (".db", ".sqlite"))
    return parse(f"mlflow:sqlite:///{file}")


def carried(source: Address, target: Address, folder: Path) -> Report:
    ledger = Ledger.open(folder / f"{target.place.rpartition('/')[2]}.ledger", source, target)
    try:
        return transfer(Job(source, target), ledger, Silent())
    finally:
        ledger.close()


def rows(file: Path, table: str, where: str = "") -> int:
    with sqlite3.connect(file) as connection:
        return int(connection.execute(f"select count(*) from {table} {where}").fetchone()[0])


@pytest.mark.parametrize("name", STORES)
def test_a_store_arrives_whole_in_an_archive_and_in_a_database(name: str, tmp_path: Path) -> None:
    counts = json.loads((DATA / "counts" / f"{name}.json").read_text())["counts"]
    source, archive = unpacked(name, tmp_path), parse(str(tmp_path / "archive"))
    file = tmp_path / "new.db"
    database = parse(f"mlflow:sqlite:///{file}")
    points = counts.get("metric_points_distinct", counts.get("metric_points", 0))

    out = carried(source, archive, tmp_path)
    assert (out.failed, out.copied, out.points) == ((), counts.get("runs", 0), points)
    assert verify(Job(source, archive), Silent()).findings == ()

    back = carried(archive, database, tmp_path)
    assert (back.failed, back.copied) == ((), counts.get("runs", 0))
    assert verify(Job(archive, database, source_settings=Settings()), Silent()).findings == ()
    assert rows(file, "runs") == counts.get("runs", 0)
    assert rows(file, "metrics") == points
    assert rows(file, "params") == counts.get("params", 0)
    assert rows(file, "tags", "where key not like 'mlmigrate.%'") == counts.get("tags", 0)
    assert rows(file, "latest_metrics") == counts.get("metric_keys", 0)
    assert carried(archive, database, tmp_path).copied == 0
    assert carried(source, archive, tmp_path).copied == under_way(file, name)


def under_way(file: Path, name: str) -> int:
    """Runs of a database that are under way are taken again: their files may have changed without its knowing."""
    return rows(file, "runs", "where status in ('RUNNING', 'SCHEDULED')") if name.startswith("db-") else 0
