"""mlmigrate copy: from one place into another."""

from __future__ import annotations

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen


@click.command(
    "copy",
    **options.help_of(
        "Copy runs from SOURCE (or several) into TARGET. The same command again goes on where it stopped.",
        "copy mlflow:sqlite:///mlflow.db mlflow:postgresql://user@host/mlflow",
        "copy mlflow:./mlruns mlflow:http://localhost:5000",
        "copy mlflow:http://localhost:5000 wandb:my-team",
        "copy --scan ~/projects mlflow:sqlite:///all.db",
        "copy mlflow:http://old:5000 mlflow:http://new:5000 -e 'vision*' --since 2026-01-01",
    ),
)
@click.argument("places", nargs=-1, metavar="SOURCE... TARGET")
@options.takes(
    options.WHICH_RUNS,
    options.WHICH_PARTS,
    options.LIMITS,
    options.MAPPING,
    options.PLACES,
    options.CONFLICTS,
    options.RUNNING,
    options.PRINTING,
    options.REPORT,
)
def command(places: tuple[str, ...], chosen: Chosen) -> int:
    """Any place into any other."""
    from mlmigrate.cli.carry import carry
    from mlmigrate.cli.jobs import job_of

    return carry(job_of(places, chosen), chosen)
