"""mlmigrate adapters: what each kind of place can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

if TYPE_CHECKING:
    from mlmigrate.messages import Adapter

INSIDE = ("memory", "merged")  # nobody names these: tests, and several sources at once


@click.command("adapters", **options.help_of("What each kind of place can do.", "adapters", "adapters --json"))
@options.takes(options.JSON)
def command(chosen: Chosen) -> int:
    """What there is."""
    from mlmigrate import report
    from mlmigrate.adapters import registry
    from mlmigrate.cli.output import tell

    found = [_adapter(name) for name in sorted(registry.names()) if name not in INSIDE]
    rows = [("adapter", "reads", "writes", "")]
    rows += [(one.name, "yes" if one.reads else "no", "yes" if one.writes else "no", one.about) for one in found]
    tell(chosen, report.table(rows), found)
    return 0


def _adapter(name: str) -> Adapter:
    from mlmigrate import messages
    from mlmigrate.adapters import registry
    from mlmigrate.errors import UsageError

    try:
        module = registry.module_of(name)
    except UsageError as error:  # a package of its own is missing
        return messages.Adapter(name=name, reads=False, writes=False, about=f"{error.message} {error.hint}")
    about = (module.__doc__ or "").strip().partition("\n")[0]
    return messages.Adapter(
        name=name, reads=hasattr(module, "open_source"), writes=hasattr(module, "open_target"), about=about
    )
