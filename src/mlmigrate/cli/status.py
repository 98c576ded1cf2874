"""mlmigrate status: how far a copy is, also while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlmigrate.ledger import State
    from mlmigrate.messages import Message


@click.command(
    "status",
    **options.help_of(
        "How far the copy recorded in LEDGER is (default: the one written to last).",
        "status",
        "status archive.1f2e3d4c.ledger.sqlite --losses",
        "status --ids",
    ),
)
@click.argument("file", required=False, type=options.file(), metavar="[LEDGER]")
@click.option("--failures", is_flag=True, help="The runs that did not arrive, and why.")
@click.option("--losses", is_flag=True, help="Everything that did not arrive as it was.")
@click.option("--ids", is_flag=True, help="Where each run arrived: its origin, and its id in the target.")
@options.takes(options.JSON)
def command(file: Path | None, chosen: Chosen, *, failures: bool, losses: bool, ids: bool) -> int:
    """How far a copy is."""
    import time

    from mlmigrate import report
    from mlmigrate.cli.output import tell
    from mlmigrate.ledger import state

    file = ledger_of(file)
    if failures or losses or ids:
        lines, told = _details(file, failures=failures, losses=losses, ids=ids)
        tell(chosen, lines, told)
        return 0
    now = state(file)
    tell(chosen, report.status(now, time.time()), [message(now)])
    return 0


def _details(file: Path, *, failures: bool, losses: bool, ids: bool) -> tuple[Sequence[str], Sequence[Message]]:
    from mlmigrate import ledger, messages, progress

    lines: list[str] = []
    told: list[Message] = []
    for failure in ledger.failures(file) if failures else ():
        lines.append(f"{failure.experiment}/{failure.name or failure.run}: {failure.error}: {failure.message}")
        told.append(progress.failure_message(failure))
    for loss in ledger.losses(file) if losses else ():
        lines.append(f"{loss.run or loss.experiment or 'the estate'}: {loss.what}: {loss.because}")
        told.append(progress.loss_message(loss))
    for origin, target_id in ledger.ids(file) if ids else ():
        lines.append(f"{origin} {target_id}")
        told.append(messages.Id(origin=origin, target_id=target_id))
    return lines, told


def ledger_of(named: Path | None) -> Path:
    """The ledger that was named, or the one written to last. Raises NotFound."""
    from mlmigrate.errors import NotFound
    from mlmigrate.ledger import newest

    file = named or newest()
    if file is None:
        raise NotFound(
            "There is no ledger here or in the state folder.", "A copy makes one; name it: mlmigrate status LEDGER"
        )
    return file


def message(state: State) -> Message:
    """The state of a copy for programs."""
    from mlmigrate import messages

    return messages.Status(
        source=state.source,
        target=state.target,
        started=round(state.started, 3),
        ended=state.ended and round(state.ended, 3),
        pid=state.pid,
        runs=state.runs,
        copied=state.copied,
        already=state.already,
        failed=state.failed,
        losses=state.losses,
        points=state.points,
        artifacts=state.artifacts,
        bytes=state.size,
    )
