"""Copies into the contract server, and what it then holds: for tests of the target."""

from __future__ import annotations

import json
import os
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import stamina
from click.testing import CliRunner

import wandbserver
from mlmigrate.adapters.base import Settings
from mlmigrate.adapters.memory import Held, Memory, install
from mlmigrate.address import parse
from mlmigrate.cli import cli
from mlmigrate.errors import MigrateError
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer

PASSING = ("id", "created", "heartbeat", "uploaded", "marked")  # of a run: what the server gives anew each time


def carried(source: Memory, place: str, folder: Path, **settings: Any) -> Report:
    """A copy of all into wandb:`place`, with a ledger of its own."""
    target = Settings(**settings)
    job = Job(install(uuid.uuid4().hex, source), parse(f"wandb:{place}"), target_settings=target)
    ledger = Ledger.open(folder / f"{uuid.uuid4().hex}.sqlite", job.source, job.target)
    try:
        return transfer(job, ledger, Silent())
    finally:
        ledger.close()


def use(server: Any, monkeypatch: Any, patience: float = 1.0) -> None:
    """The environment is that of a client of this server."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLMIGRATE_WANDB_PATIENCE", str(patience))
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.02)  # waits are short where failures are many
    monkeypatch.setattr(stamina, "retry_context", partial(stamina.retry_context, wait_jitter=0.0))


@contextmanager
def serving(monkeypatch: Any, folder: Path) -> Iterator[wandbserver.Server]:
    """A server of its own for commands, whose ledgers lie in `folder`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    with wandbserver.running() as found:
        use(found, monkeypatch)
        yield found


def run_of(state: Mapping[str, Any], held: Held) -> dict[str, Any]:
    """The run that the server holds of this one."""
    (found,) = [one for one in state["runs"].values() if provenance(one).get("origin") == held.run.origin]
    return dict(found)


def provenance(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's config says of where it came from."""
    return dict(run["config"].get("mlmigrate") or {})


def points_of(run: Mapping[str, Any]) -> list[tuple[str, int, int, str]]:
    """Key, step, time in ms, value (as text: NaN is equal to itself) of each number in the lines that were sent."""
    found = []
    for line in run["history"]:
        row = json.loads(line)
        own = {key for key in row if key.startswith("mlflow/") or key in ("_step", "_timestamp", "_runtime")}
        time = int(row.get("mlflow/time", round(row["_timestamp"] * 1000)))
        found += [(key, int(row["mlflow/step"]), time, repr(float(row[key]))) for key in row.keys() - own]
    return sorted(found)


def points_of_held(held: Held) -> list[tuple[str, int, int, str]]:
    """The same, of what was to be copied."""
    rows = held.points.to_pylist()
    return sorted((row["key"], row["step"], row["timestamp"], repr(row["value"])) for row in rows)


def essence(state: Mapping[str, Any]) -> dict[str, Any]:
    """What two copies of the same must have in common, whatever failed on the way."""
    runs = {path: {k: v for k, v in run.items() if k not in PASSING} for path, run in state["runs"].items()}
    artifacts = {
        path: {name: one[name] for name in ("state", "digest", "type", "aliases", "producer", "metadata")}
        | {"consumers": sorted(one["consumers"])}
        for path, one in state["artifacts"].items()
    }
    return {"runs": runs, "artifacts": artifacts}


def command(*words: object) -> tuple[int, str]:
    """The exit code of `mlmigrate WORDS`, done in this process, and all that it said."""
    done = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    error = done.exception
    if error is None:
        return int(done.return_value or 0), done.output
    if isinstance(error, MigrateError):
        return error.exit_code, f"{done.output}{error.message}\n{error.hint}"
    return 1, f"{done.output}{''.join(traceback.format_exception(error))}"
