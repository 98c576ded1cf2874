"""A store whose artifacts can be moved under it: every value in it that names a place, and their change in one step.

`mlmigrate relocate` asks an adapter's module for it:

    open_estate(address, context) -> Estate     raises NotFound when nothing is there, UsageError when it cannot be one

Nothing of MLflow's own code opens the store: its classes upgrade a database that they merely look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a store that names a place of artifacts.

    table, key, column   where it stands: a database's own names and the row's primary key as texts, in the
                         key's order; in a file store the file (relative to its root) and what it is called there
    value        the URI, as it stands
    kind         "experiment", "run", "model", "trace", "version" or "workspace"
    owner        whose files lie below it: run id, "@model/<id>", "@trace/<id>", "@version/<name>/<version>";
                 "" for roots
    experiment   the id of its experiment; "" for none
    name         for people: the run's or model's name
    active       whether its owner may go on writing there: a run that is running, a model that is pending
    changed      when its owner last ended or was changed, in ms since the epoch; None when it cannot be told
    room         so many characters fit there; None for any number
    """

    table: str
    key: tuple[str, ...]
    column: str
    value: str
    kind: str
    owner: str = ""
    experiment: str = ""
    name: str = ""
    active: bool = False
    changed: int | None = None
    room: int | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one value: it is made only where `old` still stands."""

    table: str
    key: tuple[str, ...]
    column: str
    old: str
    new: str

    @property
    def undone(self) -> Edit:
        """The edit that takes this one back."""
        return Edit(self.table, self.key, self.column, self.new, self.old)


class Switching(Protocol):
    """The store while others' writes wait."""

    def cells(self) -> Iterator[Cell]:
        """All values, as they are now."""

    def edit(self, edits: Iterable[Edit]) -> list[Edit]:
        """Makes the edits; gives those that were not made, for another value stands there or none."""

    def commit(self) -> None:
        """From now on everybody sees them, all at once (file stores: one file after another, see docs/relocate.md)."""


class Estate(Protocol):
    """A store whose artifacts are to be moved."""

    @property
    def shown(self) -> str:
        """The store for messages, secrets hidden."""

    @property
    def identity(self) -> str:
        """The same whenever this store is opened again, and another's never: for the name of its ledger. No secrets."""

    def cells(self) -> Iterator[Cell]:
        """All values, in one consistent look."""

    def folder(self, cell: Cell) -> Path | None:
        """The folder of this machine that holds the cell's files, if it is one: what the URI names or, when the
        store came from elsewhere, what lies where its files should (--artifacts-at). Never a place that the store
        merely claims: the tail must be MLflow's own, or a person allowed the prefix.
        """

    def switching(self) -> AbstractContextManager[Switching]:
        """One transaction; leaving without commit changes nothing. Raises Unavailable when others hold the store."""

    def close(self) -> None: ...


class Downloads(Protocol):
    """The tracker's own client, which downloads as everybody downloads. Used by many threads."""

    def of_uri(self, uri: str, to: Path) -> Path:
        """The file at an artifact's address, downloaded below the folder `to`. Raises NotFound, MigrateError."""

    def of_run(self, run: str, path: str, to: Path) -> Path:
        """A file of a run, through the server."""

    def close(self) -> None: ...
