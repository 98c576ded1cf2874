"""mlmigrate demo: a small estate made, exported, imported and verified, with no server at all."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMANDS = (
    ("list", "mlflow:./mlruns"),
    ("plan", "mlflow:./mlruns", "./archive"),
    ("export", "mlflow:./mlruns", "./archive"),
    ("verify", "mlflow:./mlruns", "./archive"),
    ("import", "./archive", "mlflow:sqlite:///mlflow.db"),
    ("verify", "mlflow:./mlruns", "mlflow:sqlite:///mlflow.db"),
    ("export", "mlflow:./mlruns", "./archive"),
)


@click.command(
    "demo",
    **options.help_of(
        "Make a small estate (an MLflow file store of 3 experiments and 12 runs), export it into an archive, import "
        "that into a database, and verify both. Needs no server.",
        "demo",
        "demo --at ./demo",
    ),
)
@click.option("--at", type=options.folder(exists=False), metavar="DIR", help="Make it in DIR and leave it there.")
@options.takes(options.JSON)
def command(at: Path | None, chosen: Chosen) -> int:
    """All of it, once."""
    from mlmigrate import demo, messages
    from mlmigrate.cli.output import tell

    worst = 0
    with _folder(at) as folder:
        demo.make(folder)
        for arguments in COMMANDS:
            shown = shlex.join(["mlmigrate", *arguments])
            code, last = _ran(arguments, folder)
            worst = max(worst, code)
            tell(chosen, [f"$ {shown}", f"  {last}"], [messages.Step(command=shown, code=code, last_line=last)])
    if not chosen.json:
        tell(chosen, ["", _closing(at, worst)], [])
    return worst


def _closing(at: Path | None, worst: int) -> str:
    if worst:
        return "Something went wrong; the lines above say what."
    where = f" All of it is in {at}." if at else ""
    return f"The estate went into an archive and out of it into a database, and both were verified.{where}"


@contextmanager
def _folder(at: Path | None) -> Iterator[Path]:
    """Where the estate is made: a new folder for as long as it is needed, or `at`, which must be empty."""
    from tempfile import TemporaryDirectory

    from mlmigrate.errors import UsageError

    if at is None:
        with TemporaryDirectory(prefix="mlmigrate-demo-") as made:
            yield Path(made)
        return
    at.mkdir(parents=True, exist_ok=True)
    if any(at.iterdir()):
        raise UsageError(f"{at} is not empty.", "Name a folder that is, or that does not exist yet.")
    yield at


def _ran(arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """The exit code and the last line of one command, run as a person would run it, with no options from outside."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(options.PREFIX)}
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-m", "mlmigrate", *arguments],
        cwd=folder,
        env=own,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    wrong = [line for line in done.stderr.splitlines() if line.startswith("mlmigrate:")]
    lines = wrong or done.stdout.strip().splitlines() or [""]
    return done.returncode, lines[-1]
