"""A file store whose artifacts are to be moved: all values that name places, changed one file after another."""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH112, PTH114, PTH118, PTH119, PTH120

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mlmigrate.adapters.base import Context
from mlmigrate.adapters.estate import Cell
from mlmigrate.adapters.mlflow.files import homes
from mlmigrate.adapters.mlflow.files.artifacts import FOLDER, Whereabouts, local_path
from mlmigrate.adapters.mlflow.files.cells import Reader
from mlmigrate.adapters.mlflow.files.runs import MODELS_TAG
from mlmigrate.adapters.mlflow.files.source import root_of
from mlmigrate.adapters.mlflow.files.switching import FileSwitching, held
from mlmigrate.adapters.mlflow.owned_folders import INSIDE, holds_runs, within
from mlmigrate.address import Address, hide_secrets

_PROXIED = "mlflow-artifacts:"


def open_estate(address: Address, context: Context) -> FileEstate:
    """The store in the folder that the address names, or in its mlruns/. Raises NotFound."""
    return FileEstate(root_of(address), context)


class FileEstate:
    """A folder that MLflow writes, for a move of its artifacts."""

    def __init__(self, root: str, context: Context) -> None:
        self._root = root
        self._whereabouts = Whereabouts(root, context.settings)

    @property
    def shown(self) -> str:
        """The store for messages."""
        return f"mlflow:{hide_secrets(self._root)}"

    @property
    def identity(self) -> str:
        """The folder's real path."""
        return os.path.realpath(self._root)

    def cells(self) -> Iterator[Cell]:
        """All values, file by file: a folder cannot be seen as it was at one moment."""
        return Reader(self._root).cells()

    def folder(self, cell: Cell) -> Path | None:
        """The folder of this machine that holds the cell's files, or would; None when none is here, or believed."""
        local = local_path(cell.value)
        if "\0" in cell.value or (local is None and not cell.value.startswith(_PROXIED)):
            return None
        try:
            found = self._of_owner(cell) if cell.kind in ("run", "model", "trace") else self._of_other(cell)
        except PermissionError:
            return None  # nothing that this user could move
        return Path(found) if found else None

    @contextmanager
    def switching(self) -> Iterator[FileSwitching]:
        """Edits that are staged, and made by `commit` one file after another; others go on writing."""
        with held(self._root, self.shown), closing(FileSwitching(self._root, self.shown)) as switching:
            yield switching

    def close(self) -> None:
        """Nothing is held open."""

    def _of_owner(self, cell: Cell) -> str:
        beside = self._beside(cell)
        id_ = cell.owner.rpartition("/")[2]
        parts = {"run": (id_,), "model": ("models", id_), "trace": ("traces", id_)}[cell.kind]
        found = self._whereabouts.folder(beside, (cell.experiment, *parts), cell.value)
        if found:
            return found if not os.path.islink(found) else self._whereabouts.named(found)
        local = local_path(cell.value)
        if local and os.path.isdir(local):
            own = os.path.realpath(local) == os.path.realpath(os.path.join(beside, FOLDER))
            believed = own or self._whereabouts.named(cell.value) or _ends(local, (*parts, FOLDER))
            return local if believed else ""
        return "" if local is None or _had_files(beside, cell) else os.path.join(beside, FOLDER)

    def _beside(self, cell: Cell) -> str:
        """The folder of the run, the model or the trace in the store."""
        folder = os.path.dirname(os.path.join(self._root, *cell.key[0].split("/")))
        return os.path.dirname(folder) if cell.kind == "trace" else folder

    def _of_other(self, cell: Cell) -> str:
        named = self._whereabouts.named(cell.value)
        if named:
            return named
        return self._of_experiment(cell) if cell.kind == "experiment" else self._of_version(cell)

    def _of_experiment(self, cell: Cell) -> str:
        """Where its runs' files go: nothing is read there but what these name."""
        local = local_path(cell.value)
        if not local:
            return ""
        if os.path.isdir(local):
            return local if holds_runs(Path(local)) or os.path.basename(local) == cell.experiment else ""
        return local if os.path.isdir(os.path.dirname(local)) else self._beside(cell)

    def _of_version(self, cell: Cell) -> str:
        """What its source names within the folder of a run or a model, which may have been moved with the store."""
        found = INSIDE.fullmatch(cell.value)
        if found is None:
            return ""
        own = (found["run"],) if found["run"] else ("models", found["model"])
        above = re.split(r"[/\\]", found["base"])[: -len(own) - 1]
        experiment = above[-1] if above and above[-1] not in ("", ".", "..") else homes.TRASH
        bases = [os.path.join(self._root, *one, experiment, *own) for one in ((), (homes.TRASH,))]
        bases += [one.removesuffix(f"/{FOLDER}") for one in [local_path(found["base"])] if one]
        inner = (within(Path(base, FOLDER), found["rest"] or "") for base in bases)
        return next((str(one) for one in inner if one is not None), "")


def _ends(path: str, tail: tuple[str, ...]) -> bool:
    """Whether a path ends as MLflow ends it, and leads nowhere but down."""
    parts = Path(path).parts
    return ".." not in parts and parts[-len(tail) :] == tail


def _had_files(beside: str, cell: Cell) -> bool:
    """Whether a run is known to have logged a model, whose files then are missing."""
    return cell.kind == "run" and os.path.lexists(os.path.join(beside, "tags", MODELS_TAG))
