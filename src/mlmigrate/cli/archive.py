"""mlmigrate archive: look into an archive, check it, take files out, drop what nothing names."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

CHUNK = 1 << 20
DAMAGED = 4
SOME_LOST = 3


def _place(text: str) -> str:
    from mlmigrate import address
    from mlmigrate.cli.jobs import must_be_archive

    place = address.parse(text)
    must_be_archive(place, "ARCHIVE")
    return place.place


@click.command("ls", **options.help_of("The runs of ARCHIVE; with RUN the files of that run.", "archive ls ./archive"))
@click.argument("archive")
@click.argument("run", default="")
@options.takes(options.JSON)
def ls(archive: str, run: str, chosen: Chosen) -> int:
    """What is in it."""
    from mlmigrate import messages, report
    from mlmigrate.archive import tools
    from mlmigrate.cli.output import tell

    listed = list(tools.ls(_place(archive), run))
    rows: list[tuple[str, ...]]
    if run:
        rows = [("path", "size"), *((one.path, report.size(one.size)) for one in listed)]
    else:
        rows = [("experiment", "run", "name", "points", "size")]
        rows += [(one.experiment, one.run, one.name, f"{one.points:,}", report.size(one.size)) for one in listed]
    told = [
        messages.Archived(
            experiment=one.experiment, id=one.run, name=one.name, path=one.path, points=one.points, bytes=one.size
        )
        for one in listed
    ]
    end = f"{report.several(len(listed), 'file' if run else 'run')}."
    tell(chosen, [*report.table(rows, right=(len(rows[0]) - 1, 3)), end], told)
    return 0


@click.command(
    "cat",
    **options.help_of("The bytes of one file of a run, on stdout.", "archive cat ./archive 0a1b2c model/weights.pt"),
)
@click.argument("archive")
@click.argument("run")
@click.argument("path")
def cat(archive: str, run: str, path: str) -> int:
    """One file."""
    from mlmigrate.archive import tools
    from mlmigrate.errors import Stopped

    with tools.cat(_place(archive), run, path) as stream:
        try:
            while chunk := stream.read(CHUNK):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise Stopped from None
    return 0


@click.command(
    "checkout",
    **options.help_of(
        "The files of all runs (or of RUN) as an ordinary tree under FOLDER.",
        "archive checkout ./archive ./files",
        "archive checkout ./archive ./files 0a1b2c",
    ),
)
@click.argument("archive")
@click.argument("folder", type=options.folder(exists=False))
@click.argument("run", default="")
@options.takes(options.STRICT, options.JSON)
def checkout(archive: str, folder: Path, run: str, chosen: Chosen) -> int:
    """The files as a tree."""
    from mlmigrate import progress, report
    from mlmigrate.archive import tools
    from mlmigrate.cli.output import tell

    losses = tools.checkout(_place(archive), run, folder)
    lines = [
        *report.grouped(losses),
        f"The files are in {folder}; {report.several(len(losses), 'thing')} could not be.",
    ]
    if not losses:
        lines = [f"All files are in {folder}."]
    tell(chosen, lines, map(progress.loss_message, losses))
    return SOME_LOST if losses else 0


@click.command(
    "check", **options.help_of("Read every byte of ARCHIVE back and compare its sha256.", "archive check ./archive")
)
@click.argument("archive")
@options.takes(options.JSON)
def check(archive: str, chosen: Chosen) -> int:
    """Whether it is whole."""
    from mlmigrate import progress, report
    from mlmigrate.archive import tools
    from mlmigrate.cli.output import tell

    damaged = left = 0
    for finding in tools.check(_place(archive)):
        damaged += finding.mark != "-"
        left += finding.mark == "-"
        tell(chosen, [report.found(finding)], [progress.finding_message(finding)])
    lines = (
        [f"{report.several(left, 'file')} named by no commit: mlmigrate archive prune drops what is old."]
        if left
        else []
    )
    lines += [
        f"{report.several(damaged, 'thing')} in {archive} damaged."
        if damaged
        else f"All of {archive} is as it was written."
    ]
    tell(chosen, lines, [])
    return DAMAGED if damaged else 0


@click.command(
    "prune",
    **options.help_of(
        "Drop what no commit names: the remains of stopped exports and of runs taken again.",
        "archive prune ./archive --dry-run",
    ),
)
@click.argument("archive")
@click.option("-n", "--dry-run", is_flag=True, envvar="MLMIGRATE_DRY_RUN", help="Say what would be dropped.")
@click.option(
    "--older-than",
    type=click.IntRange(min=0),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="Leave what is younger: an export may be at work.",
)
@options.takes(options.JSON)
def prune(archive: str, chosen: Chosen, *, dry_run: bool, older_than: int) -> int:
    """What nothing names."""
    from mlmigrate import messages, report
    from mlmigrate.archive import tools
    from mlmigrate.cli.output import tell

    gone = tools.prune(_place(archive), dry_run=dry_run, older_than=older_than)
    verb = "would be dropped" if dry_run else "dropped"
    tell(
        chosen,
        [*(f"  {path}" for path in gone), f"{report.several(len(gone), 'file')} {verb}."],
        [messages.Removed(path=path, dry_run=dry_run) for path in gone],
    )
    return 0


command = click.Group(
    "archive",
    commands=[ls, cat, checkout, check, prune],
    **options.help_of(
        "Look into an archive, check it, take files out.",
        "archive ls ./archive",
        "archive ls ./archive 0a1b2c",
        "archive cat ./archive 0a1b2c model/weights.pt > weights.pt",
        "archive checkout ./archive ./files",
        "archive check ./archive",
        "archive prune ./archive --dry-run",
    ),
)
