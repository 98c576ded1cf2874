"""What a transfer would do. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from mlmigrate.events import Progress
from mlmigrate.model import Loss
from mlmigrate.transfer import Job


@dataclass(frozen=True, slots=True)
class Line:
    """One experiment of a plan. `size` in bytes."""

    experiment: str
    runs: int
    points: int
    artifacts: int
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`rules` counts how many names each mapping rule met; `quick` plans read no points and no artifacts."""

    source: str
    target: str
    lines: tuple[Line, ...]
    already: int
    losses: tuple[Loss, ...]
    oddities: tuple[Loss, ...]
    rules: tuple[tuple[str, int], ...]
    quick: bool


def plan(job: Job, progress: Progress, quick: bool = False) -> Plan:
    """What `transfer(job, ...)` would do."""
    raise NotImplementedError
