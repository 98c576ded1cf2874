"""What tells a folder that MLflow made from one that a store merely claims: the names in its path, and in it."""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LOOKED_AT = 10_000  # entries of a folder, for one that is called as MLflow calls a run's
# what leads into a run's folder or a logged model's, and what follows
INSIDE = re.compile(
    r"(?P<base>.*?(?:^|[/\\])(?:(?P<run>[0-9a-f]{32})|models[/\\](?P<model>m-[0-9a-f]{32}))[/\\]artifacts)"
    r"(?:[/\\](?P<rest>.*))?"
)
_ID = re.compile(r"[0-9a-f]{32}")


def within(base: Path, rest: str) -> Path | None:
    """The folder below `base`, unless it is none or a ".." or a link leads out of it."""
    parts = [one for one in re.split(r"[/\\]", rest) if one]
    inner = base.joinpath(*parts)
    if ".." in parts or "\0" in rest or not inner.is_dir():
        return None
    return inner if inner.resolve().is_relative_to(base.resolve()) else None


def holds_runs(folder: Path) -> bool:
    """Whether a folder has something in it that is called as MLflow calls the folders of runs, models or traces."""
    try:
        with os.scandir(folder) as found:
            names = (entry.name for entry in islice(found, LOOKED_AT) if entry.is_dir(follow_symlinks=False))
            return any(_ID.fullmatch(name) or name in ("models", "traces") for name in names)
    except OSError:  # not there, or not ours to read: then it is no place to look in
        return False
