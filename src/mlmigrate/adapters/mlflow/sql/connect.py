"""A backend database opened: SQLite and PostgreSQL through ADBC into Arrow, others through SQLAlchemy.

A Session is one connection inside one transaction.  All SQL here quotes names with double quotes
and holds no value from outside but through `ids`, which are written as hexadecimal.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_sqlite.dbapi
import pyarrow as pa

from mlmigrate.address import hide_secrets
from mlmigrate.errors import BadData, Conflict, DiskFull, MigrateError, NotFound, Refused, Unavailable, UsageError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

BATCH = 65_536  # rows; 2 to 8 MB of points
LOCKED = 30_000  # ms that SQLite waits for another's lock before it says "locked"
_MAGIC, _HEAD = b"SQLite format 3\0", 20
_WAL = b"\x02\x02"  # bytes 18 and 19 of a file in write-ahead mode

SQLITE, POSTGRESQL, OTHER = "sqlite", "postgresql", "other"
_CASTS = {SQLITE: ("TEXT", "INTEGER", "REAL"), POSTGRESQL: ("text", "bigint", "double precision")}

_OTHER_TEXTS = {"mysql": "CHAR", "mariadb": "CHAR", "mssql": "NVARCHAR(MAX)"}


class Session:
    """One connection in one transaction."""

    def __init__(self, kind: str, connection: Any) -> None:  # noqa: ANN401 - ADBC's connection has no common type
        self.kind = kind
        self._connection = connection

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows as they come; the types are those of the first batch, so cast what may vary."""
        with self._connection.cursor() as cursor:
            if self.kind == SQLITE:
                cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH)})
            cursor.execute(sql)
            yield from cursor.fetch_record_batch()

    def table(self, sql: str, values: tuple[str, ...] | None = None) -> pa.Table:
        """All rows at once."""
        with self._connection.cursor() as cursor:
            if self.kind == SQLITE:
                cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH)})
            cursor.execute(sql, values)
            return cursor.fetch_arrow_table()

    def rows(self, sql: str, values: tuple[str, ...] | None = None) -> list[tuple[Any, ...]]:
        """All rows at once, as Python values."""
        return list(zip(*[texts(column) for column in self.table(sql, values).columns], strict=True))

    def execute(self, sql: str, values: tuple[str, ...] | None = None) -> None:
        """Does what `sql` says; rows it may give are not wanted."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)

    def ingest(self, table: str, rows: pa.Table | pa.RecordBatchReader, *, temporary: bool = False) -> None:
        """Appends `rows` to a table, or makes a temporary one of them."""
        with self._connection.cursor() as cursor:
            cursor.adbc_ingest(table, rows, mode="create" if temporary else "append", temporary=temporary)

    def commit(self) -> None:
        """Makes it last."""
        self._connection.commit()

    def close(self) -> None:
        """Ends the transaction, without commit, and the connection."""
        with suppress(adbc_driver_manager.Error):
            self._connection.rollback()
        self._connection.close()

    # what differs between the dialects

    def text(self, expression: str) -> str:
        """`expression` as text."""
        return self._cast(expression, 0)

    def integer(self, expression: str) -> str:
        """`expression` as a 64-bit integer."""
        return self._cast(expression, 1)

    def real(self, expression: str) -> str:
        """`expression` as a double."""
        return self._cast(expression, 2)

    def nullable(self, column: str) -> str:
        """A text column that tells null from empty: "" for null, else "=" and the text (`unmarked` takes it back)."""
        text = self.text(column)
        return f"CASE WHEN {column} IS NULL THEN '' ELSE '=' || {text} END"

    def among(self, column: str, ids: Sequence[str]) -> str:
        """A condition: `column` is one of `ids`."""
        data = json.dumps(list(ids)).encode().hex()
        if self.kind == SQLITE:
            return f"{column} IN (SELECT value FROM json_each(CAST(x'{data}' AS TEXT)))"
        return f"{column} IN (SELECT json_array_elements_text(convert_from(decode('{data}', 'hex'), 'UTF8')::json))"

    def _cast(self, expression: str, kind: int) -> str:
        return f"CAST({expression} AS {_CASTS[self.kind][kind]})"


class OtherSession(Session):
    """The same through SQLAlchemy: MySQL, MariaDB, SQL Server. Their columns are typed: only ids are cast, to text."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(OTHER, connection)

    def batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows as they come."""
        result = self._connection.execution_options(stream_results=True, max_row_buffer=BATCH).exec_driver_sql(
            self._driven(sql)
        )
        names = list(result.keys())
        for part in result.partitions(BATCH):
            yield pa.RecordBatch.from_arrays([_array(column) for column in zip(*part, strict=True)], names=names)

    def table(self, sql: str, values: tuple[str, ...] | None = None) -> pa.Table:
        """All rows at once."""
        result = self._connection.exec_driver_sql(self._driven(sql), values)
        names = list(result.keys())
        columns = list(zip(*result.fetchall(), strict=True)) or [()] * len(names)
        return pa.table([_array(column) for column in columns], names=names)

    def execute(self, sql: str, values: tuple[str, ...] | None = None) -> None:
        """Does what `sql` says."""
        self._connection.exec_driver_sql(sql, values)

    def ingest(self, table: str, rows: pa.Table | pa.RecordBatchReader, *, temporary: bool = False) -> None:
        """Appends `rows`; a temporary table must be there already, for its columns need types."""
        del temporary
        whole = rows if isinstance(rows, pa.Table) else rows.read_all()
        named, marks = ", ".join(whole.column_names), ", ".join(["%s"] * whole.num_columns)
        values = list(zip(*(column.to_pylist() for column in whole.columns), strict=True))
        self._connection.exec_driver_sql(f"INSERT INTO {table} ({named}) VALUES ({marks})", values)

    def close(self) -> None:
        """Ends the transaction and the connection."""
        self._connection.rollback()
        self._connection.close()

    def _driven(self, sql: str) -> str:
        """As the driver takes it: where values are marked by %s, each other % is doubled."""
        return sql.replace("%", "%%") if "format" in self._connection.dialect.paramstyle else sql

    def among(self, column: str, ids: Sequence[str]) -> str:
        """A condition: `column` is one of `ids`."""
        escaped = self._connection.dialect.name in ("mysql", "mariadb")
        return f"{column} IN ({', '.join(_literal(one, escaped=escaped) for one in ids) or 'NULL'})"

    def _cast(self, expression: str, kind: int) -> str:
        if kind:
            return expression
        return f"CAST({expression} AS {_OTHER_TEXTS.get(self._connection.dialect.name, 'TEXT')})"


@dataclass(slots=True)
class Database:
    """Where a backend database is, and how to reach it.

    immutable  how SQLite was last opened: True means that no lock was taken and no file made beside it
    stale      a write-ahead log lies beside the file and could not be read
    """

    kind: str
    place: str
    file: Path | None = None
    immutable: bool = False
    stale: bool = False
    _engine: Engine | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address without its secrets."""
        return hide_secrets(self.place)

    def reading(self) -> Session:
        """A read-only session. Raises NotFound, Refused or Unavailable."""
        with explained(self.shown):
            if self.kind == SQLITE:
                return self._read_sqlite()
            if self.kind == POSTGRESQL:
                session = Session(POSTGRESQL, _postgresql(self.place))
                session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                return session
            return self._read_other()

    def writing(self) -> Session:
        """A session that may write; a SQLite file that is not there is made."""
        with explained(self.shown):
            if self.kind == POSTGRESQL:
                return Session(POSTGRESQL, _postgresql(self.place))
            if self.kind == OTHER:
                return OtherSession(self._connected())
            session = Session(SQLITE, adbc_driver_sqlite.dbapi.connect(self.uri("rwc")))
            for pragma in (f"busy_timeout = {LOCKED}", "cache_size = -65536"):
                session.table(f"PRAGMA {pragma}")
            return session

    def settle(self) -> None:
        """Takes back what a killed writer had not committed: SQLite does so as it opens, but never for a reader."""
        if self.kind == SQLITE and self._beside("-journal"):
            with explained(self.shown), closing(self.writing()) as session:
                session.table("SELECT count(*) FROM sqlite_master")

    def uri(self, mode: str) -> str:
        """SQLite's own name of the file, whatever characters the path has."""
        path = quote(str(self._path().absolute()))
        return f"file:{path}?mode={mode}"

    def write_ahead(self) -> bool:
        """Whether SQLite's readers and writers do not stand in each other's way."""
        return _head(self._path())[18:20] == _WAL

    def check_file(self) -> None:
        """Raises NotFound unless this is a SQLite file."""
        path = self._path()
        if not path.is_file():
            raise NotFound(
                f"There is no database {path}.", "Check the path: sqlite:///relative.db, sqlite:////absolute.db"
            )
        if not _head(path).startswith(_MAGIC):
            raise NotFound(f"{path} is not a SQLite database.")

    def _path(self) -> Path:
        if self.file is None:
            raise UsageError(f"{self.shown} names no file.", "For example mlflow:sqlite:///mlflow.db")
        return self.file

    def _read_sqlite(self) -> Session:
        self.check_file()
        log = self._beside("-wal")
        # Opening a file in write-ahead mode makes -wal and -shm beside it, which a reader cannot take
        # away again.  Without a log nobody has it open: then it can be read as it lies.
        self.immutable = self.write_ahead() and not log
        try:
            return self._open_sqlite()
        except adbc_driver_manager.Error as error:
            if self._beside("-journal") and "readonly" in str(error):
                raise BadData(
                    f"{self.shown} was being written by a process that died; its journal lies beside it.",
                    "No source is written: copy both files elsewhere, open that copy once with sqlite3, and read it.",
                ) from error
            if not log or "open" not in str(error):
                raise
            self.immutable = self.stale = True  # the folder is read-only: the log cannot be read
            return self._open_sqlite()

    def _open_sqlite(self) -> Session:
        uri = self.uri("ro") + ("&immutable=1" if self.immutable else "")
        session = Session(SQLITE, adbc_driver_sqlite.dbapi.connect(uri))
        session.table(f"PRAGMA busy_timeout = {LOCKED}")
        session.table("SELECT count(*) FROM sqlite_master")  # from here on it is one moment
        return session

    def _beside(self, ending: str) -> int:
        """The size of a file beside the database's, 0 for none."""
        path = self._path()
        with suppress(OSError):
            return path.with_name(path.name + ending).stat().st_size
        return 0

    def _read_other(self) -> Session:
        connection = self._connected()
        if connection.dialect.name in ("mysql", "mariadb"):
            connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        return OtherSession(connection)

    def _connected(self) -> Connection:
        connection = self._alchemy().connect()
        if connection.dialect.name in ("mysql", "mariadb"):
            connection.exec_driver_sql("SET SESSION sql_mode = CONCAT(@@sql_mode, ',ANSI')")  # "name" and ||
            connection.rollback()
        return connection

    def _alchemy(self) -> Engine:
        from sqlalchemy import create_engine  # noqa: PLC0415 - only for the databases that ADBC cannot read
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError  # noqa: PLC0415

        if self._engine is None:
            try:
                self._engine = create_engine(self.place)
            except ModuleNotFoundError as error:
                raise UsageError(f"{error.name} is not installed.", f"pip install {error.name}") from error
            except (ArgumentError, NoSuchModuleError) as error:
                raise UsageError(f"SQLAlchemy knows no database {self.shown}.") from error
        return self._engine


def database(place: str) -> Database:
    """The database that a tracking URI names."""
    scheme, _, rest = place.partition("://")
    family = scheme.partition("+")[0]
    if family == "sqlite":
        return Database(SQLITE, place, _sqlite_file(rest))
    if family in ("postgresql", "postgres"):
        return Database(POSTGRESQL, f"postgresql://{rest}")
    return Database(OTHER, place)


def _sqlite_file(rest: str) -> Path:
    """The path after sqlite://; what follows "?" belongs to the path when such a file exists."""
    path = rest.removeprefix("/")
    if not path or path == ":memory:":
        raise UsageError("sqlite:// names a database in memory.", "For example mlflow:sqlite:///mlflow.db")
    whole = Path(path)
    return whole if "?" not in path or whole.exists() else Path(path.partition("?")[0])


def texts(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """Arrow values as Python values; text that is not UTF-8 is read with replacement characters."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [None if one is None else one.decode("utf-8", "replace") for one in column.cast(pa.binary()).to_pylist()]


def unmarked(text: str) -> str | None:
    """What `Session.nullable` marked."""
    return text[1:] if text else None


_heads: dict[tuple[int, int], bytes] = {}


def _postgresql(uri: str) -> Any:  # noqa: ANN401 - ADBC's connection has no common type
    import adbc_driver_postgresql.dbapi as driver  # noqa: PLC0415 - SQLite's commands start without it

    return driver.connect(uri)


def _head(path: Path) -> bytes:
    """The first bytes of a database, read once for each file.

    POSIX drops all locks that a process holds on a file as soon as it closes any descriptor of it:
    a file that SQLite may hold open here is never opened by other means, Python's sqlite3 included.
    """
    found = path.stat()
    key = (found.st_dev, found.st_ino)
    if key not in _heads:
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
        except PermissionError as error:
            raise Refused(f"{path} may not be read by this user.") from error
        if not head.startswith(_MAGIC):
            return head
        _heads[key] = head
    return _heads[key]


def _array(column: Iterable[object]) -> pa.Array:
    return pa.array([one.decode() if isinstance(one, bytes) else one for one in column])


def _literal(text: str, *, escaped: bool) -> str:
    """`escaped`: the database takes a backslash for the beginning of something."""
    if "\0" in text:
        raise BadData(f"An id holds a character that has no place in one: {text!r}")
    text = text.replace("\\", "\\\\") if escaped else text
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def explained(shown: str) -> Iterator[None]:
    """Errors of the drivers become ours, on the way out."""
    try:
        yield
    except MigrateError:
        raise
    except Exception as error:
        ours = explain(error, shown)
        if ours is None:
            raise
        raise ours from error


_SQLSTATES: dict[str, type[MigrateError]] = {
    "08": Unavailable,  # connection exception
    "40": Unavailable,  # serialization failure, deadlock
    "53300": Unavailable,
    "55P03": Unavailable,
    "57P": Unavailable,  # shut down, starting up
    "53100": DiskFull,
    "28": Refused,
    "42501": Refused,
    "3D000": NotFound,
    "22": BadData,
    "23503": Unavailable,  # a row that this one names is not there yet
    "23": Conflict,
}
_WORDS: tuple[tuple[str, type[MigrateError]], ...] = (
    ("disk is full", DiskFull),
    ("no space left", DiskFull),
    ("is locked", Unavailable),
    ("database schema has changed", Unavailable),
    ("not a database", NotFound),
    ("password", Refused),
    ("pg_hba.conf", Refused),
    ("access denied", Refused),
    ("readonly database", Refused),
    ('role "', Refused),
    ('database "', NotFound),
    ("unknown database", NotFound),
    ("unable to open", NotFound),
    ("failed to open", NotFound),
    ("malformed", BadData),
    ("constraint failed", Conflict),
    ("failed to connect", Unavailable),
    ("can't connect", Unavailable),
    ("connection to server", Unavailable),
    ("server closed the connection", Unavailable),
    ("lost connection", Unavailable),
    ("no connection to the server", Unavailable),
)


def explain(error: Exception, shown: str = "the database") -> MigrateError | None:
    """A driver's error as one of ours; None when nobody can act on it."""
    if not isinstance(error, adbc_driver_manager.Error) and type(error).__module__.partition(".")[0] not in (
        "sqlalchemy",
        "pymysql",
    ):
        return _no_space(error)
    text = hide_secrets(str(error)).replace("\n", " ")[:300]
    state = getattr(error, "sqlstate", None) or ""
    kinds = [kind for prefix, kind in _SQLSTATES.items() if state.startswith(prefix)] if state else []
    kinds += [kind for word, kind in _WORDS if word in text.lower()]
    return kinds[0](f"{shown}: {text}") if kinds else None


def _no_space(error: Exception) -> MigrateError | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"No space is left: {error.filename or error}.")
    return None
