"""mlmigrate export: into an archive."""

from __future__ import annotations

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen


@click.command(
    "export",
    **options.help_of(
        "Copy runs from SOURCE (or several) into ARCHIVE. Again later, it takes only what is new or has changed.",
        "export mlflow:http://localhost:5000 ./archive",
        "export mlflow:./mlruns ./archive -e vision --skip artifacts",
        "export --scan ~/projects ./archive",
    ),
)
@click.argument("places", nargs=-1, metavar="SOURCE... ARCHIVE")
@options.takes(
    options.WHICH_RUNS,
    options.WHICH_PARTS,
    options.LIMITS,
    options.MAPPING,
    options.PLACES,
    options.RUNNING,
    options.PRINTING,
    options.REPORT,
)
def command(places: tuple[str, ...], chosen: Chosen) -> int:
    """Any place into an archive."""
    from mlmigrate.cli.carry import carry
    from mlmigrate.cli.jobs import job_of, must_be_archive

    job = job_of(places, chosen)
    must_be_archive(job.target, "the target of export")
    return carry(job, chosen)
