"""What a copy has done so far, for people and for the next run of the same command: SQLite.

The truth of what arrived lies in the target; the ledger holds its history: the id map, failures,
losses.  A lost ledger makes no duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlmigrate.address import Address
from mlmigrate.events import Failure
from mlmigrate.model import Loss


@dataclass(frozen=True, slots=True)
class State:
    """How far a copy is. Times in seconds since the epoch; `pid` 0 when nothing runs."""

    source: str
    target: str
    started: float
    ended: float | None
    pid: int
    runs: int
    copied: int
    already: int
    failed: int
    losses: int
    points: int
    size: int


class Ledger:
    """One copy's ledger, held by one process at a time."""

    @classmethod
    def open(cls, file: Path, source: Address, target: Address, restart: bool = False) -> Ledger:
        """Raises LedgerInUse when another process holds it or it records another copy."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def default_file(source: Address, target: Address) -> Path:
    """Beside a local archive, else under ~/.local/state/mlmigrate (or XDG_STATE_HOME)."""
    raise NotImplementedError


def newest() -> Path | None:
    """The ledger written to last, here or in the state folder."""
    raise NotImplementedError


def state(file: Path) -> State:
    """How far the copy is, also while it runs. Raises NotFound."""
    raise NotImplementedError


def failures(file: Path) -> Sequence[Failure]:
    raise NotImplementedError


def losses(file: Path) -> Sequence[Loss]:
    raise NotImplementedError


def ids(file: Path) -> Sequence[tuple[str, str]]:
    """(origin, id in the target) of each run that arrived."""
    raise NotImplementedError
