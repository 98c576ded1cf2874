"""mlmigrate import: out of an archive."""

from __future__ import annotations

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen


@click.command(
    "import",
    **options.help_of(
        "Copy runs out of ARCHIVE into TARGET. The same command again goes on where it stopped.",
        "import ./archive mlflow:http://localhost:5000",
        "import ./archive mlflow:postgresql://user@host/mlflow",
        "import ./archive mlflow:sqlite:///new.db -e vision",
    ),
)
@click.argument("archive")
@click.argument("target")
@options.takes(
    options.WHICH_RUNS,
    options.WHICH_PARTS,
    options.LIMITS,
    options.MAPPING,
    options.PLACES[1:],
    options.CONFLICTS,
    options.RUNNING,
    options.PRINTING,
    options.REPORT,
)
def command(archive: str, target: str, chosen: Chosen) -> int:
    """An archive into any place."""
    from mlmigrate.cli.carry import carry
    from mlmigrate.cli.jobs import job_of, must_be_archive

    job = job_of((archive, target), chosen)
    must_be_archive(job.source, "the source of import")
    return carry(job, chosen)
