"""Experiments and registered models whose names a target has already: merged, renamed or refused, as was asked."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mlmigrate.adapters.base import OnConflict, Settings
from mlmigrate.address import parse
from mlmigrate.errors import Conflict
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.model import Finding
from mlmigrate.plan import plan
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import Verdict, verify

pytestmark = pytest.mark.slow
HELPERS = Path(__file__).parent / "adapters" / "mlflow"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two databases of MLflow's own making, with the same names of experiments and models in both."""
    folder = tmp_path_factory.mktemp("two")
    files = folder / "ours.db", folder / "theirs.db"
    for file in files:  # in a process of its own: MLflow's client writes its address into the environment
        program = "import sys; sys.path.append(sys.argv[1]); from filled import fill; fill(sys.argv[2])"
        subprocess.run([sys.executable, "-c", program, str(HELPERS), f"sqlite:///{file}"], check=True, cwd=folder)
    return files


def job_of(source: Path, target: Path, policy: OnConflict) -> Job:
    settings = Settings(on_conflict=policy)
    place = parse(f"mlflow:sqlite:///{source}"), parse(f"mlflow:sqlite:///{target}")
    return Job(*place, source_settings=settings, target_settings=settings)


def carried(job: Job, folder: Path) -> Report:
    with closing(Ledger.open(folder / "ledger", job.source, job.target)) as ledger:
        return transfer(job, ledger, Silent())


def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return sorted(connection.iterdump())


def ask(file: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def target(two: tuple[Path, Path], tmp_path: Path) -> Path:
    file = tmp_path / "theirs.db"
    with closing(sqlite3.connect(two[1])) as connection, closing(sqlite3.connect(file)) as copy:
        connection.backup(copy)
    return file


def others_apart(verdict: Verdict) -> list[Finding]:
    """The findings, without the kinds of which the one that is there stays, which is told as a loss."""
    kinds = ("scorer", "label_schema", "review_queue", "mcp_server")
    return [one for one in verdict.findings if not one.what.startswith(tuple(f"mlflow.{kind} " for kind in kinds))]


VERSIONS = "select name, version, creation_time from model_versions where current_stage <> 'Deleted_Internal'"


def test_fail_says_what_is_in_the_way_and_writes_nothing(two, target, tmp_path):
    before = dump(target)
    job = job_of(two[0], target, "fail")
    with pytest.raises(Conflict, match="of the same name already"):
        plan(job, Silent())
    with pytest.raises(Conflict, match="Nothing was written"):
        carried(job, tmp_path)
    assert dump(target) == before


def test_merge_changes_no_version_that_is_there_and_ours_get_the_next_free_numbers(two, target, tmp_path):
    job = job_of(two[0], target, "merge")
    foreseen = {loss.what for loss in plan(job, Silent()).losses}
    theirs = set(ask(target, VERSIONS))
    ours = ask(two[0], VERSIONS)
    report = carried(job, tmp_path)
    assert report.failed == ()
    assert {"experiment 'kitchen'", "registered model 'forest'"} <= foreseen
    after = set(ask(target, VERSIONS))
    assert theirs <= after
    assert len(after) == len(theirs) + len(ours)
    assert others_apart(verify(job, Silent())) == []
    again = dump(target)
    assert carried(job, tmp_path).records == {}
    assert dump(target) == again


def test_rename_keeps_ours_apart_under_the_next_free_name(two, target, tmp_path):
    job = job_of(two[0], target, "rename")
    theirs = set(ask(target, VERSIONS))
    assert carried(job, tmp_path).failed == ()
    ours = {(f"{name}-2", version, created) for name, version, created in ask(two[0], VERSIONS)}
    assert set(ask(target, VERSIONS)) == theirs | ours
    names = {name for (name,) in ask(target, "select name from experiments")}
    assert {"kitchen", "kitchen-2"} <= names
    assert others_apart(verify(job, Silent())) == []
    again = dump(target)
    assert carried(job, tmp_path).records == {}
    assert dump(target) == again
