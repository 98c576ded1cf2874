"""What a ledger holds, and who may hold it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mlmigrate import ledger
from mlmigrate.address import parse
from mlmigrate.errors import BadData, LedgerInUse, NotFound
from mlmigrate.events import Failure
from mlmigrate.ledger import Ledger
from mlmigrate.model import Loss, Receipt, RunRef

SOURCE, TARGET = parse("mlflow:postgresql://me:secret@old/db"), parse("mlflow:http://new:5000")
REF = RunRef("1", "r1", "n", "mlflow:r1", "s")
OTHER = RunRef("1", "r2", "m", "mlflow:r2", "s")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.ledger.sqlite"


def test_it_tells_how_far_a_copy_is(file: Path) -> None:
    held = Ledger.open(file, SOURCE, TARGET)
    held.begin(2, 1)
    held.arrived([REF], Receipt("p", {"mlflow:r1": "t1"}, (Loss("r1", "param 'x'", "cut", "1"),), points=5, size=7))
    held.failed(OTHER, Failure("vision", "r2", "m", "Unavailable", "away"))
    running = ledger.state(file)
    assert (running.runs, running.copied, running.already, running.failed) == (3, 1, 1, 1)
    assert (running.points, running.size, running.losses) == (5, 7, 1)
    assert running.pid != 0
    held.end()
    held.close()
    assert ledger.state(file).pid == 0
    assert list(ledger.ids(file)) == [("mlflow:r1", "t1")]
    assert list(ledger.failures(file)) == [Failure("vision", "r2", "m", "Unavailable", "away")]
    assert list(ledger.losses(file)) == [Loss("r1", "param 'x'", "cut", "1")]


def test_a_failed_run_that_arrives_later_failed_no_more(file: Path) -> None:
    held = Ledger.open(file, SOURCE, TARGET)
    held.begin(1, 0)
    held.failed(REF, Failure("vision", "r1", "n", "Unavailable", "away"))
    held.begin(1, 0)
    held.arrived([REF], Receipt("p", {"mlflow:r1": "t1"}))
    held.close()
    assert list(ledger.failures(file)) == []


def test_secrets_are_never_stored(file: Path) -> None:
    Ledger.open(file, SOURCE, TARGET).close()
    assert b"secret" not in b"".join(one.read_bytes() for one in file.parent.iterdir())


def test_two_commands_never_hold_one_ledger(file: Path) -> None:
    held = Ledger.open(file, SOURCE, TARGET)
    with pytest.raises(LedgerInUse, match="another mlmigrate"):
        Ledger.open(file, SOURCE, TARGET)
    held.close()
    Ledger.open(file, SOURCE, TARGET).close()


def test_the_ledger_of_a_killed_command_is_free(file: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path\n"
        "from mlmigrate.address import parse; from mlmigrate.ledger import Ledger\n"
        f"held = Ledger.open(Path({str(file)!r}), parse('./a'), parse('./b')); held.begin(1, 0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    assert ledger.state(file).pid == 0
    Ledger.open(file, parse("./a"), parse("./b")).close()


def test_the_ledger_of_another_copy_is_refused(file: Path) -> None:
    Ledger.open(file, SOURCE, TARGET).close()
    with pytest.raises(LedgerInUse, match="records a copy to mlflow:http://new:5000, not to mlflow:http://newer:5000"):
        Ledger.open(file, SOURCE, parse("mlflow:http://newer:5000"))
    Ledger.open(file, SOURCE, parse("mlflow:http://newer:5000"), restart=True).close()


def test_a_file_that_is_no_ledger_is_refused(file: Path) -> None:
    file.write_bytes(b"something else entirely, and long enough to be looked at" * 100)
    with pytest.raises(BadData, match="not a ledger"):
        Ledger.open(file, SOURCE, TARGET)


def test_there_may_be_none(file: Path) -> None:
    with pytest.raises(NotFound):
        ledger.state(file)


def test_it_lies_beside_a_local_archive_else_in_the_state_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    assert ledger.default_file(parse("mlflow:http://a"), parse("./archive")).parent == tmp_path
    assert ledger.default_file(parse("./archive"), parse("mlflow:http://a")).name.startswith("archive.")
    elsewhere = ledger.default_file(SOURCE, TARGET)
    assert elsewhere.parent == tmp_path / "state" / "mlmigrate"
    assert "secret" not in elsewhere.name
    assert ledger.default_file(SOURCE, TARGET) != ledger.default_file(TARGET, SOURCE)


def test_names_that_are_no_utf8_are_kept_readable(file: Path) -> None:
    held = Ledger.open(file, SOURCE, TARGET)
    held.begin(1, 0)
    held.arrived(
        [RunRef("1", "r1", "bad \udcff name", "mlflow:r1", "s")], Receipt("p", {}, (Loss("r1", "tag '\udcff'", "x"),))
    )
    held.close()
    assert [loss.what for loss in ledger.losses(file)] == ["tag '\\udcff'"]


def test_a_ledger_of_before_artifacts_were_counted_goes_on(file: Path) -> None:
    Ledger.open(file, SOURCE, TARGET).close()
    with sqlite3.connect(file) as db:
        db.execute("alter table copy drop column artifacts")
    assert ledger.state(file).artifacts == 0
    held = Ledger.open(file, SOURCE, TARGET)
    held.begin(1, 0)
    held.arrived([REF], Receipt("p", {"mlflow:r1": "t1"}, points=5, artifacts=3, size=7))
    held.close()
    now = ledger.state(file)
    assert (now.points, now.artifacts, now.size) == (5, 3, 7)
