"""How a command says what it has to say: lines for people, messages for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from mlmigrate import messages, progress
from mlmigrate.cli.options import Chosen
from mlmigrate.cli.run import complain, say, say_raw
from mlmigrate.events import Progress


def shown(chosen: Chosen) -> Progress:
    """What shows progress, as chosen."""
    return progress.made(
        say_raw if chosen.json else say,
        complain,
        terminal=sys.stderr.isatty(),
        json=chosen.json,
        moving=not chosen.no_progress,
        verbose=chosen.verbose,
        quiet=chosen.quiet,
    )


def tell(chosen: Chosen, lines: Iterable[str], told: Iterable[messages.Message]) -> None:
    """The result: `told` with --json, else `lines`; with --quiet the last of them."""
    if chosen.json:
        for message in told:
            say_raw(messages.line(message))
        return
    for line in list(lines)[-1 if chosen.quiet else 0 :]:
        say(line)
