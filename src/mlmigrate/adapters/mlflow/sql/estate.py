"""A backend database whose artifacts are to be moved: all values that name places, changed in one transaction."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from mlmigrate.adapters.mlflow.sql import cells, edits
from mlmigrate.adapters.mlflow.sql.artifacts import Finder
from mlmigrate.adapters.mlflow.sql.connect import OTHER, POSTGRESQL, SQLITE, Database, Session, database, explained
from mlmigrate.adapters.mlflow.sql.folders import Folders
from mlmigrate.adapters.mlflow.sql.schema import Shape, shape
from mlmigrate.errors import NotFound, Unavailable, UsageError

if TYPE_CHECKING:
    from mlmigrate.adapters.base import Context
    from mlmigrate.adapters.estate import Cell, Edit
    from mlmigrate.address import Address

PATIENCE = 30.0  # seconds that others may hold the store before we give up
# Milliseconds that we wait for a lock while we hold others: a PostgreSQL looks for deadlocks after a second, and
# would end whom it finds waiting, which must not be somebody's training.
BRIEFLY = 100
_LOCKED = (1205, 1213, 3572)  # what MySQL and MariaDB say when a row is another's
PAUSE = 0.2  # seconds between two tries


def open_estate(address: Address, context: Context) -> DatabaseEstate:
    """The database, which must hold MLflow's tables. Raises NotFound, Refused, Unavailable or UsageError."""
    return DatabaseEstate(database(address.place), context)


class DatabaseEstate:
    """An MLflow backend database, for a move of its artifacts."""

    def __init__(self, place: Database, context: Context) -> None:
        if place.kind == OTHER and not place.place.startswith(("mysql", "mariadb")):
            raise UsageError(
                f"The artifacts of {place.shown} cannot be moved: it is neither SQLite, PostgreSQL nor MySQL.",
                "Copy the store into one of these with mlmigrate copy",
            )
        self._database = place
        beside = place.file.absolute().parent if place.file is not None else Path.cwd()
        self._folders = Folders(Finder(beside, context.settings))
        with closing(self._reading()) as session, explained(place.shown):
            found = shape(session)
            self._schema = _schema(session)
        if not (found.has("runs", "run_uuid") and found.has("experiments", "experiment_id")):
            names = ", ".join(sorted(found.tables)[:8]) or "no table at all"
            raise NotFound(f"{place.shown} holds no MLflow tables; it has {names}.")

    @property
    def shown(self) -> str:
        """The store for messages, secrets hidden."""
        return f"mlflow:{self._database.shown}"

    @property
    def identity(self) -> str:
        """The file's real path; of a server its host, port, database and schema."""
        if self._database.file is not None:
            return f"sqlite:///{self._database.file.resolve()}"
        told = urlsplit(self._database.place)
        given = {key: values[-1] for key, values in parse_qs(told.query).items()}
        host = given.get("host") or unquote(told.hostname or "") or "localhost"
        port = given.get("port") or told.port or (5432 if self._database.kind == POSTGRESQL else 3306)
        family = "postgresql" if self._database.kind == POSTGRESQL else "mysql"
        return f"{family}://{host.lower() if '/' not in host else host}:{port}/{self._schema}"

    def cells(self) -> Iterator[Cell]:
        """All values, in one consistent look; nobody is held up while they are taken."""
        with closing(self._reading()) as session, explained(self.shown):
            found = shape(session)
            spool = cells.cells(session, found)
            bounded = cells.bounded(session)
        with closing(spool):
            yield from cells.taken(spool, found, bounded=bounded)

    def folder(self, cell: Cell) -> Path | None:
        """The folder of this machine that holds the cell's files, if it can be found and believed."""
        return self._folders.of(cell)

    @contextmanager
    def switching(self) -> Iterator[DatabaseSwitching]:
        """One transaction that holds the tables concerned: others read on, and who writes there waits."""
        with closing(self._held()) as session:
            with explained(self.shown):
                found = shape(session)
            yield DatabaseSwitching(session, found, self.shown)

    def close(self) -> None:
        """Nothing is held open."""

    def _reading(self) -> Session:
        """A session for reading.

        A SQLite file in write-ahead mode that nobody seems to have open is read by sources as it lies, without
        locks. This one is in use: it is opened as its own writers do, who find the log and take it away again.
        """
        file = self._database.file
        if file is not None and file.is_file() and os.access(file, os.W_OK) and os.access(file.parent, os.W_OK):
            self._database.check_file()
            return self._database.writing()
        return self._database.reading()

    def _held(self) -> Session:
        return self._sqlite() if self._database.kind == SQLITE else self._of_server()

    def _sqlite(self) -> Session:
        """A session that holds the file's one lock for writing."""
        self._database.check_file()
        with explained(self.shown):
            session = self._database.writing()
        try:
            with explained(self.shown):
                session.table(f"PRAGMA busy_timeout = {int(PATIENCE * 1000)}")
                session.execute("DELETE FROM experiments WHERE 0")  # a write that changes nothing takes the lock
        except Unavailable as error:
            session.close()
            raise _held_by_others(self.shown) from error
        except BaseException:
            session.close()
            raise
        return session

    def _of_server(self) -> Session:
        """A session that holds the tables; tried again and again, for nobody is to wait for us while we wait."""
        until = time.monotonic() + PATIENCE
        while True:
            with explained(self.shown):
                session = self._database.writing()
            try:
                with explained(self.shown):
                    _lock(session) if session.kind == POSTGRESQL else _lock_rows(session)
            except Unavailable as error:
                session.close()
                if time.monotonic() > until:
                    raise _held_by_others(self.shown) from error
                time.sleep(PAUSE)
            except BaseException:
                session.close()
                raise
            else:
                return session


class DatabaseSwitching:
    """The database while others' writes wait."""

    def __init__(self, session: Session, found: Shape, shown: str) -> None:
        self._session, self._shape, self._shown = session, found, shown

    def cells(self) -> Iterator[Cell]:
        """All values, as they are now."""
        with explained(self._shown):
            spool = cells.cells(self._session, self._shape)
        with closing(spool):
            yield from cells.taken(spool, self._shape, bounded=cells.bounded(self._session))

    def edit(self, changes: Iterable[Edit]) -> list[Edit]:
        """Makes the edits; gives those that were not made, for another value stands there or none."""
        with explained(self._shown):
            return edits.make(self._session, self._shape, changes)

    def commit(self) -> None:
        """From now on everybody sees them, all at once."""
        with explained(self._shown):
            self._session.commit()


def _lock(session: Session) -> None:
    """Holds the tables that name places. Raises Unavailable when somebody is writing there."""
    for setting in (
        "TRANSACTION ISOLATION LEVEL READ COMMITTED",  # all that others wrote before the lock is seen
        f"LOCAL lock_timeout = {BRIEFLY}",
        "LOCAL statement_timeout = 0",
        "LOCAL idle_in_transaction_session_timeout = 0",  # files may be copied meanwhile
    ):
        session.execute(f"SET {setting}")
    found = shape(session)
    tables = dict.fromkeys(place.table for place in cells.PLACES if place.is_in(found))
    session.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE ROW EXCLUSIVE MODE")
    session.execute("SET LOCAL lock_timeout = 0")


def _lock_rows(session: Session) -> None:
    """As `_lock`, in MySQL: all rows and the gaps between them. Others read on."""
    found = shape(session)
    session.execute("ROLLBACK")  # what is read from here on is what others had written before the lock
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")  # the one that locks gaps
    for table in dict.fromkeys(place.table for place in cells.PLACES if place.is_in(found)):
        try:
            # by way of the primary key: with the gaps of another index alone, half of an insert would get through
            session.rows(f"SELECT count(*) AS n FROM {table} FORCE INDEX (PRIMARY) FOR UPDATE NOWAIT")  # noqa: S608
        except Exception as error:
            if _number(error) not in _LOCKED:
                raise
            raise Unavailable(f"{table} is locked") from error


def _number(error: Exception) -> int:
    """MySQL's number of an error that SQLAlchemy passes on; 0 for any other."""
    told = getattr(getattr(error, "orig", None), "args", ())
    return told[0] if told and isinstance(told[0], int) else 0


def _schema(session: Session) -> str:
    """The database and the schema in a server; "" for a file."""
    if session.kind == SQLITE:
        return ""
    if session.kind == OTHER:
        return str(session.rows("SELECT database() AS d")[0][0])
    ((base, inner),) = session.rows("SELECT current_database()::text, current_schema()::text")
    return f"{base}/{inner}"


def _held_by_others(shown: str) -> Unavailable:
    return Unavailable(
        f"{shown}: others are writing there, and did not let go within {PATIENCE:.0f} s.",
        "Run the same command again when less is going on.",
    )
