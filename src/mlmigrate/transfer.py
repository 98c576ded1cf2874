"""The loop: one for export, import and copy.

    Source --refs--> plan --packs-->  read > map > fit > write > receipt  --> ledger, report
                                      `------- one pack, anywhere ------'
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlmigrate.adapters.base import Settings
from mlmigrate.address import Address
from mlmigrate.events import Failure, Progress
from mlmigrate.ledger import Ledger
from mlmigrate.mapping import Mapping
from mlmigrate.model import Loss
from mlmigrate.selection import Selection


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker, here or elsewhere, must know to carry a pack; picklable."""

    source: Address
    target: Address
    selection: Selection = field(default_factory=Selection)
    mapping: Mapping = field(default_factory=Mapping)
    source_settings: Settings = field(default_factory=Settings)
    target_settings: Settings = field(default_factory=Settings)
    tries: int = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What a transfer came to. `size` in bytes."""

    runs: int
    copied: int
    already: int
    failed: tuple[Failure, ...]
    losses: tuple[Loss, ...]
    oddities: tuple[Loss, ...]
    points: int
    artifacts: int
    size: int
    seconds: float
    stopped: bool = False


def transfer(job: Job, ledger: Ledger, progress: Progress, workers: int = 0, dask: str = "") -> Report:
    """Carries what `job` asks for and is not in the target yet. 0 workers: as many as suit the places."""
    raise NotImplementedError
