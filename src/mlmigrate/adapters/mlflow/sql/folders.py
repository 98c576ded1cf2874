"""The folder of this machine that holds the files of a value's owner.

A database may have come from elsewhere: a folder is believed when it ends as MLflow ends it, when a
person allowed it, or when what lies in it is what MLflow puts there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.sql.artifacts import Kept

if TYPE_CHECKING:
    from mlmigrate.adapters.estate import Cell
    from mlmigrate.adapters.mlflow.sql.artifacts import Finder

LOOKED_AT = 10_000  # entries of a folder, for one that looks like a run's
_ID = re.compile(r"[0-9a-f]{32}")
# where a version's source leads into: a run's folder or a logged model's, and what follows
_INSIDE = re.compile(
    r"(?P<base>.*?(?:^|[/\\])(?:(?P<run>[0-9a-f]{32})|models[/\\](?P<model>m-[0-9a-f]{32}))[/\\]artifacts)"
    r"(?:[/\\](?P<rest>.*))?"
)


@dataclass(frozen=True, slots=True)
class Folders:
    """Finds the folders of one database's cells."""

    finder: Finder

    def of(self, cell: Cell) -> Path | None:
        """The folder that holds the cell's files; None when none can be found, or believed."""
        id_ = cell.owner.rpartition("/")[2]
        tails = {
            "run": (id_, "artifacts"),
            "model": ("models", id_, "artifacts"),
            "trace": ("traces", id_, "artifacts"),
        }
        if cell.kind in tails:
            return self.finder.folder(_kept(cell, cell.value, tails[cell.kind], rare=cell.kind == "trace"))
        return self._of_version(cell) if cell.kind == "version" else self._of_root(cell)

    def _of_version(self, cell: Cell) -> Path | None:
        named = self.finder.named(cell.value)
        if named is not None and self.finder.allowed(named):
            return named
        found = _INSIDE.fullmatch(cell.value)
        if found is None:
            return None
        tail = (found["run"],) if found["run"] else ("models", found["model"])
        experiment = re.split(r"[/\\]", found["base"])[-len(tail) - 2 :][0]
        base = self.finder.folder(_kept(cell, found["base"], (*tail, "artifacts"), experiment=experiment))
        return None if base is None else _within(base, found["rest"] or "")

    def _of_root(self, cell: Cell) -> Path | None:
        """An experiment's folder, or a workspace's: a place to look in for what their runs name."""
        named = self.finder.named(cell.value)
        if named is not None and (self.finder.allowed(named) or _holds_runs(named)):
            return named
        if cell.kind != "experiment":
            return None
        found = self.finder.folder(_kept(cell, cell.value, (cell.experiment,)))
        return found if found is not None and _holds_runs(found) else None


def _kept(cell: Cell, uri: str, tail: tuple[str, ...], *, experiment: str = "", rare: bool = False) -> Kept:
    return Kept(cell.owner, experiment or cell.experiment, uri, tail, expected=False, rare=rare)


def _within(base: Path, rest: str) -> Path | None:
    """The folder below `base`, unless a ".." or a link leads out of it."""
    parts = [one for one in re.split(r"[/\\]", rest) if one]
    inner = base.joinpath(*parts)
    if ".." in parts or "\0" in rest or not inner.is_dir():
        return None
    return inner if inner.resolve().is_relative_to(base.resolve()) else None


def _holds_runs(folder: Path) -> bool:
    """Whether something that MLflow made for a run, a model or a trace lies in a folder."""
    try:
        with os.scandir(folder) as found:
            for entry in islice(found, LOOKED_AT):
                if _ID.fullmatch(entry.name) and Path(entry.path, "artifacts").is_dir():
                    return True
                if entry.name in ("models", "traces") and any(Path(entry.path).glob("*/artifacts")):
                    return True
    except OSError:  # not ours to read: then it is no place to look in
        return False
    return False
