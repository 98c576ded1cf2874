"""What happens during a command, told to whoever shows it: the protocol between the loop and `progress`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from mlmigrate.model import Finding, Loss

RunState = Literal["copied", "already", "failed", "equal", "differs"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A run (or records, then `run` begins with "@") that did not arrive, and why."""

    experiment: str
    run: str
    name: str
    error: str  # the class of the error, for example "Unavailable"
    message: str


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One run was dealt with. `experiment` is the experiment's name."""

    experiment: str
    id: str
    name: str
    state: RunState
    target_id: str = ""
    losses: int = 0


class Progress(Protocol):
    """Shows what happens. Called from the main thread only, but for `advance` and `waiting`, from any."""

    def begin(self, what: str, runs: int, points: int, size: int, artifacts: int = 0) -> None:
        """A piece of work begins: `runs` are to be done (0 where it is not about runs).

        `points`, `size` (bytes) and `artifacts` (files) are estimates, 0 for unknown; more may be done than that.
        Work on files alone: begin("copy", runs=0, points=0, size=96_000_000_000, artifacts=1_942).
        """

    def advance(self, points: int = 0, artifacts: int = 0, size: int = 0) -> None:
        """So much more has been written (or compared). Called often: a large file tells of its bytes as they pass.

        Negative numbers take back what was told of work that is to be done again. storage.told.Passage tells of
        the bytes of one file, each once, however often they are read.
        """

    def run(self, event: RunEvent) -> None: ...

    def loss(self, loss: Loss) -> None: ...

    def failure(self, failure: Failure) -> None: ...

    def finding(self, finding: Finding) -> None: ...

    def note(self, text: str) -> None:
        """A sentence for a person: "Reading mlflow:./mlruns ... 1,500 runs"."""

    def waiting(self, what: str) -> None:
        """A call is being made again because a tracker is away."""

    def end(self) -> None: ...


class Silent:
    """Shows nothing."""

    def begin(self, what: str, runs: int, points: int, size: int, artifacts: int = 0) -> None: ...

    def advance(self, points: int = 0, artifacts: int = 0, size: int = 0) -> None: ...

    def run(self, event: RunEvent) -> None: ...

    def loss(self, loss: Loss) -> None: ...

    def failure(self, failure: Failure) -> None: ...

    def finding(self, finding: Finding) -> None: ...

    def note(self, text: str) -> None: ...

    def waiting(self, what: str) -> None: ...

    def end(self) -> None: ...
