"""The command line: one file per command, imported when it is called, so that `mlmigrate --help` is quick."""

from __future__ import annotations

from importlib import import_module

import click

from mlmigrate import __version__

# each command -> what it does, in the words of `mlmigrate --help`; its module is called as it is (import: import_)
COMMANDS = {
    "plan": "Say what a copy would do and what would be lost. Writes nothing.",
    "export": "Copy into an archive.",
    "import": "Copy out of an archive.",
    "copy": "Copy from one place into another.",
    "verify": "Compare two places and list every difference.",
    "relocate": "Move a store's artifacts to another place, and switch its URIs.",
    "list": "The experiments and runs of a place.",
    "status": "How far a copy is, also while it runs.",
    "report": "What happened in a copy.",
    "archive": "Look into an archive, check it, take files out.",
    "adapters": "What each kind of place can do.",
    "demo": "A small estate made, exported, imported and verified.",
}
EXAMPLES = """\b
Examples:
  mlmigrate export mlflow:http://localhost:5000 ./archive
  mlmigrate import ./archive mlflow:postgresql://user@host/mlflow
  mlmigrate copy mlflow:sqlite:///mlflow.db mlflow:postgresql://user@host/mlflow
  mlmigrate verify mlflow:./mlruns ./archive

\b
A place is KIND:PLACE, PLACE being what that tracker itself calls it:
  mlflow:http://localhost:5000    a server
  mlflow:sqlite:///mlflow.db      a backend database, read directly
  mlflow:./mlruns                 a file store
  wandb:entity/project            Weights & Biases; wandb:./wandb: its offline runs
  ./archive                       no kind: an archive
"""
EXITS = """\b
Exit status:
  0    all of it is there
  1    an unexpected error (a bug)
  2    the command line is wrong
  3    finished, but some runs failed (or something was lost, with --strict)
  4    verify, or a check of relocate, found differences
  5    the tracker is away; later may work
  10   SOURCE or TARGET does not exist
  11   the ledger is in use, or belongs to another copy
  12   credentials refused
  130  stopped by Ctrl-C or SIGTERM; run again to go on
"""


class Commands(click.Group):
    """A group whose commands are imported when they are called; `--help` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{'import_' if cmd_name == 'import' else cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_commands(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Command.format_options(self, ctx, formatter)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help=f"Move experiment-tracking estates, and prove what arrived.\n\n{EXAMPLES}",
    epilog=EXITS,
)
@click.version_option(__version__, "-V", "--version", message="mlmigrate %(version)s")
def cli() -> None:
    """The root of all commands."""


def main() -> None:
    """The program `mlmigrate`."""
    from mlmigrate.cli.run import run

    run(cli)
