"""Where packs are carried."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from mlmigrate import demo, transfer
from mlmigrate.address import parse
from mlmigrate.engine import executor
from mlmigrate.errors import UsageError
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.verify import verify


def test_packs_are_carried_by_other_processes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def processes(workers: int = 0, dask: str = "") -> Iterator[Executor]:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            yield pool

    monkeypatch.setattr(transfer, "executor", processes)
    demo.make(tmp_path)
    job = Job(parse(f"mlflow:{tmp_path / 'mlruns'}"), parse(str(tmp_path / "archive")))
    ledger = Ledger.open(tmp_path / "ledger", job.source, job.target)
    report = transfer.transfer(job, ledger, Silent())
    ledger.close()
    assert (report.failed, report.copied) == ((), 12)
    verdict = verify(job, Silent())
    assert (verdict.equal, verdict.findings) == (12, ())


def test_without_dask_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UsageError, match="not installed"), executor(dask="tcp://127.0.0.1:1"):
        pass
