"""The mark of a run that is whole in a folder of ours: mlmigrate.json beside its log.

It is written with the folder and so comes into being by the same rename; it counts only with a log of the size that it
names.  It says what the log says too, so that a folder of thousands of runs is known without reading their logs.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

MARK = "mlmigrate.json"
RUN_FOLDERS = "offline-run-*"
_LARGEST = 256 << 20  # bytes of a mark
_SYNCED = (".synced", ".syncstate")  # beside the log: sent by `wandb sync`, or begun to be

Made = tuple[str, str]  # the name of an artifact, and its digest


@dataclass(frozen=True, slots=True)
class Unmet:
    """An artifact that a run read, while who made it was not in the folder."""

    name: str
    type: str
    digest: str
    project: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A run in the folder. `log` is the size of its log; `logged` and `used` tell its artifacts.

    unmet  those of `used` that the log does not name yet
    """

    origin: str
    stamp: str
    id: str
    kind: Literal["run", "experiment", "records"] = "run"
    generation: int = 1
    log: int = 0
    logged: Sequence[Made] = ()
    used: Sequence[Made] = ()
    unmet: Sequence[Unmet] = ()
    version: int = 1


@dataclass(frozen=True, slots=True)
class Whole:
    """A run that is there, and its folder."""

    mark: Mark
    folder: Path = field(compare=False)

    @property
    def log(self) -> Path:
        """Its log."""
        return self.folder / log_name(self.mark.id)

    @property
    def synced(self) -> bool:
        """Whether a server has it, or a part of it: then its history must not go there again."""
        return any(self.log.with_name(self.log.name + ending).exists() for ending in _SYNCED)


def log_name(id: str) -> str:
    """The name of the log of the run of this id."""
    return f"run-{id}.wandb"


def write(folder: Path, mark: Mark) -> None:
    """Puts the mark into a folder that has its name not yet."""
    (folder / MARK).write_bytes(msgspec.json.encode(mark))


def marked(folder: Path) -> Whole | None:
    """The run of this folder; None when there is none of ours, or not all of it."""
    try:
        about = (folder / MARK).stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
            return None
        mark = msgspec.json.decode((folder / MARK).read_bytes(), type=Mark)
        whole = Whole(mark, folder)
        ours = mark.origin and mark.stamp and "/" not in mark.id
        return whole if ours and whole.log.stat().st_size == mark.log else None
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def all_marked(root: Path) -> Iterator[Whole]:
    """All runs of ours in a folder."""
    for folder in sorted(root.glob(RUN_FOLDERS)):
        if (whole := marked(folder)) is not None:
            yield whole
