"""mlmigrate report: what happened in a copy."""

from __future__ import annotations

from pathlib import Path

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen


@click.command(
    "report",
    **options.help_of(
        "What happened in the copy recorded in LEDGER (default: the one written to last): "
        "what arrived, what failed and why, what was lost.",
        "report",
        "report archive.1f2e3d4c.ledger.sqlite --json",
        "report --report copy.txt",
    ),
)
@click.argument("file", required=False, type=options.file(), metavar="[LEDGER]")
@options.takes(options.JSON, options.REPORT)
def command(file: Path | None, chosen: Chosen) -> int:
    """What happened."""
    from mlmigrate import ledger as ledgers
    from mlmigrate import progress, report
    from mlmigrate.cli.carry import written
    from mlmigrate.cli.jobs import whole_file
    from mlmigrate.cli.output import tell
    from mlmigrate.cli.status import ledger_of, message

    file = ledger_of(file)
    state, failures, losses = ledgers.state(file), ledgers.failures(file), ledgers.losses(file)
    lines = report.history(state, failures, losses)
    told = [*map(progress.failure_message, failures), *map(progress.loss_message, losses), message(state)]
    if chosen.report is not None:
        whole_file(chosen.report, written(lines, told, as_json=chosen.report.suffix == ".json"))
    tell(chosen, lines, told)
    return 0
