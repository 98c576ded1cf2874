"""The folder of this machine that holds the files of a value's owner.

A database may have come from elsewhere: a folder is believed when it ends as MLflow ends it, when a
person allowed it, or when what lies in it is what MLflow puts there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.owned_folders import INSIDE, holds_runs, within
from mlmigrate.adapters.mlflow.sql.artifacts import Kept

if TYPE_CHECKING:
    from pathlib import Path

    from mlmigrate.adapters.estate import Cell
    from mlmigrate.adapters.mlflow.sql.artifacts import Finder


@dataclass(frozen=True, slots=True)
class Folders:
    """Finds the folders of one database's cells."""

    finder: Finder

    def of(self, cell: Cell) -> Path | None:
        """The folder that holds the cell's files, or would; None when none can be found, or believed."""
        try:
            return self._of(cell)
        except PermissionError:
            return None  # nothing that this user could move

    def _of(self, cell: Cell) -> Path | None:
        id_ = cell.owner.rpartition("/")[2]
        above = {"run": (), "model": ("models",), "trace": ("traces",)}.get(cell.kind)
        if above is not None:
            tail = (*above, id_, "artifacts")
            return self.finder.home(_kept(cell, cell.value, tail, rare=cell.kind == "trace"))
        return self._of_version(cell) if cell.kind == "version" else self._of_root(cell)

    def _of_version(self, cell: Cell) -> Path | None:
        named = self.finder.named(cell.value)
        if named is not None and self.finder.allowed(named) and named.is_dir():
            return named
        found = INSIDE.fullmatch(cell.value)
        if found is None:
            return None
        tail = (found["run"],) if found["run"] else ("models", found["model"])
        experiment = re.split(r"[/\\]", found["base"])[-len(tail) - 2 :][0]
        base = self.finder.folder(_kept(cell, found["base"], (*tail, "artifacts"), experiment=experiment))
        return None if base is None else within(base, found["rest"] or "")

    def _of_root(self, cell: Cell) -> Path | None:
        """An experiment's folder, or a workspace's: nothing is read there but what its runs name."""
        named = self.finder.named(cell.value)
        if named is not None and (self.finder.allowed(named) or named.name == cell.experiment):
            known = named.parent.is_dir()
        else:
            known = named is not None and (holds_runs(named) or (not named.exists() and named.parent.is_dir()))
        if known or cell.kind != "experiment" or not cell.experiment:
            return named if known else None
        return self.finder.of_experiment(cell.value, cell.experiment)


def _kept(cell: Cell, uri: str, tail: tuple[str, ...], *, experiment: str = "", rare: bool = False) -> Kept:
    return Kept(cell.owner, experiment or cell.experiment, uri, tail, expected=False, rare=rare)
