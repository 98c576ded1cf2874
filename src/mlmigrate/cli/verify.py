"""mlmigrate verify: two places compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

if TYPE_CHECKING:
    from mlmigrate.messages import Verified
    from mlmigrate.verify import Verdict

DIFFERENT = 4


@click.command(
    "verify",
    **options.help_of(
        "Compare SOURCE (or several) with TARGET by reading both again, and list every difference: "
        "+ only in SOURCE, - only in TARGET, * differs, ! could not be read (and = equal, with -v). "
        "What is known to be lost is no difference, but for --strict.",
        "verify mlflow:http://old:5000 mlflow:http://new:5000",
        "verify mlflow:./mlruns ./archive --quick",
    ),
)
@click.argument("places", nargs=-1, metavar="SOURCE... TARGET")
@click.option("--quick", is_flag=True, envvar="MLMIGRATE_QUICK", help="Counts, times and sizes only.")
@click.option(
    "--download/--no-download",
    default=None,
    envvar="MLMIGRATE_DOWNLOAD",
    help="Whether all bytes of artifacts are read and compared (they are, but for large files of object stores that "
    "name the same digest).",
)
@options.takes(
    options.WHICH_RUNS,
    options.WHICH_PARTS,
    options.LIMITS,
    options.MAPPING,
    options.PLACES,
    options.WORKERS,
    options.RETRIES,
    options.STRICT,
    options.PRINTING,
    options.REPORT,
)
def command(places: tuple[str, ...], chosen: Chosen, *, quick: bool, download: bool | None) -> int:
    """Two places compared."""
    from mlmigrate import report, verify
    from mlmigrate.cli.carry import written
    from mlmigrate.cli.jobs import job_of, whole_file
    from mlmigrate.cli.output import shown, tell

    job = job_of(places, chosen)
    if job.target_settings.artifacts_to == "keep" and not chosen.artifacts_to and verify.files_moved(job):
        settings = replace(job.target_settings, artifacts_to="")  # a copy by way of an archive: compared by content
        job = replace(job, source_settings=settings, target_settings=settings)
    verdict = verify.verify(
        job, shown(chosen), quick=quick, download=download, strict=chosen.strict, workers=chosen.workers
    )
    code = DIFFERENT if report.differs(verdict) else 0
    lines = report.verified(verdict, job, quick=quick, download=download is not False)
    message = _message(verdict, ok=code == 0)
    if chosen.report is not None:
        all_lines = [*map(report.found, verdict.findings), *lines]
        whole_file(chosen.report, written(all_lines, [message], as_json=chosen.report.suffix == ".json"))
    tell(chosen, lines, [message])
    return code


def _message(verdict: Verdict, *, ok: bool) -> Verified:
    from mlmigrate import messages

    return messages.Verified(
        ok=ok,
        runs=verdict.runs,
        equal=verdict.equal,
        differs=verdict.differs,
        missing=verdict.missing,
        extra=verdict.extra,
        unreadable=verdict.unreadable,
        points=verdict.points,
        artifacts=verdict.artifacts,
        bytes=verdict.size,
        losses=len(verdict.losses),
        records=dict(verdict.records),
    )
