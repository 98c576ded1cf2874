"""What a relocation knows between its commands, in SQLite: owners, files that were copied, and the undo journal.

owner    whose files lie where, and where they go; `state`: todo, held (cannot go, `why`), switched
file     what was copied: the source's version, the copy's version, the digest that both have
edit     the journal: every value that a switch changed, written and on the disk before the store's commit

The store itself says where a switch stands: a journal that a kill left open is closed by looking there.
One process holds a ledger at a time.  No secret is ever in it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mlmigrate.adapters.estate import Cell, Edit
from mlmigrate.errors import LedgerInUse
from mlmigrate.ledger import explained, locked, state_folder, transaction
from mlmigrate.relocate.places import old_place

BATCH = 500  # copies that a kill may make us prove again
LONGEST = 1.0  # seconds until what was copied is written down
SCHEMA = """
create table if not exists meta (name text primary key, value text not null) without rowid;
create table if not exists root (
    place text not null, experiment text not null, primary key (place, experiment)
) without rowid;
create table if not exists owner (
    place text primary key, dest text not null, kind text not null, owner text not null, experiment text not null,
    name text not null, active integer not null, changed integer, at text not null, root text not null,
    state text not null, why text not null, seen integer not null, fresh integer not null
) without rowid;
create index if not exists owner_dest on owner (dest);
create table if not exists file (
    at text primary key, dest text not null, size integer not null, version text not null, digest text not null,
    placed text not null, place text not null, made real not null, gone integer not null default 0
) without rowid;
create unique index if not exists file_dest on file (dest);
create index if not exists file_place on file (place);
create table if not exists switch (
    id integer primary key, begun real not null, committed real, undone real
);
create table if not exists edit (
    switch integer not null, "table" text not null, "key" text not null, "column" text not null,
    old text not null, new text not null, kind text not null, owner text not null, name text not null,
    primary key (switch, "table", "key", "column")
) without rowid;
create index if not exists edit_cell on edit ("table", "key", "column");
create table if not exists failure (
    at text primary key, place text not null, owner text not null, error text not null, message text not null
) without rowid;
create temp table if not exists there (dest text primary key, size integer not null, version text not null)
    without rowid;
create temp table if not exists todo (
    at text primary key, dest text not null, key text not null, size integer not null, version text not null,
    place text not null
) without rowid;
create temp table if not exists cell (
    "table" text not null, "key" text not null, "column" text not null, value text not null, kind text not null,
    owner text not null, experiment text not null, name text not null, active integer not null, changed integer,
    room integer, old text not null
);
create temp table if not exists alone (kind text, owner text, name text, value text, why text);
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files lie below `at`: a run, a model, a trace, a version, or (kind "proxy") whatever a server keeps.

    place   the old place as the store names it (places.old_place)
    dest    the key below the new place
    at      where the bytes really are: a folder of this machine, or a URL; "" when nobody knows
    root    what is listed to find them, the place of many owners at once
    fresh   not seen before the last look at the store
    """

    place: str
    dest: str
    kind: str
    owner: str
    experiment: str
    name: str
    active: bool
    changed: int | None
    at: str
    root: str
    state: str
    why: str
    fresh: bool

    @property
    def shown(self) -> str:
        """For people: its name and its id."""
        called = self.owner or self.place
        return f"{self.name} ({called})" if self.name else called


@dataclass(frozen=True, slots=True)
class Copied:
    """A file that was copied and proven."""

    at: str
    dest: str
    size: int
    version: str
    digest: str
    placed: str
    place: str
    gone: bool = False


_OWNER = "place, dest, kind, owner, experiment, name, active, changed, at, root, state, why, fresh"
_FILE = "at, dest, size, version, digest, placed, place, gone"
_CELL = '"table", "key", "column", value, kind, owner, experiment, name, active, changed, room'


class Ledger:
    """One relocation's ledger. Used from several threads; one statement at a time."""

    def __init__(self, db: sqlite3.Connection, lock: IO[bytes] | None, file: Path | None) -> None:
        self._db, self._lock, self.file = db, lock, file
        self._turn = threading.RLock()
        self._waiting: list[tuple[Any, ...]] = []
        self._flushed = time.monotonic()
        with self._turn:
            self._db.executescript(SCHEMA)

    @classmethod
    def open(cls, file: Path, store: str, target: str) -> Ledger:
        """The ledger at `file`, made when it is not there. Raises LedgerInUse when it is held or another's."""
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = locked(file)
            try:
                db = _connected(str(file))
                db.execute("pragma journal_mode = wal")
                found = cls(db, lock, file)
                found._belongs(store, target)
            except BaseException:
                lock.close()
                raise
        return found

    @classmethod
    def of_nobody(cls, file: Path) -> Ledger:
        """A ledger that leaves no trace, knowing what the one at `file` knows: for looking alone."""
        db = _connected("")
        if file.is_file():
            with explained(file):
                known = sqlite3.connect(f"file:{_quoted(file)}?mode=ro", uri=True)
                known.backup(db)
                known.close()
        return cls(db, None, None)

    def _belongs(self, store: str, target: str) -> None:
        known = (self.get("store"), self.get("target"))
        if known == ("", ""):
            self.set(store=store, target=target)
        elif known != (store, target):
            raise LedgerInUse(
                f"this ledger records a move of {known[0]} to {known[1]}: {self.file}",
                "Give another with --ledger.",
            )

    def close(self) -> None:
        """Gives the ledger to others; what was copied is written down."""
        self.flush()
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    # small things

    def get(self, name: str) -> str:
        """A value by its name; "" for none."""
        row = self.one("select value from meta where name = ?", name)
        return str(row[0]) if row else ""

    def set(self, **values: str) -> None:
        """Writes values by their names."""
        with self.writing():
            self._db.executemany("replace into meta values (?, ?)", list(values.items()))

    def one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        """The first row."""
        with self._turn:
            row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
            return row

    def count(self, sql: str, *values: object) -> int:
        """The first number of the first row."""
        row = self.one(sql, *values)
        return int(row[0] or 0) if row else 0

    def rows(self, sql: str, *values: object, many: int = 1000) -> Iterator[tuple[Any, ...]]:
        """Rows, some at a time: what is written meanwhile may or may not be among them."""
        with self._turn:
            cursor = self._db.cursor().execute(sql, values)
        while True:
            with self._turn:
                found = cursor.fetchmany(many)
            if not found:
                return
            yield from found

    def do(self, sql: str, *values: object) -> int:
        """One statement, in a transaction of its own. Gives how many rows it met."""
        with self.writing():
            return self._db.execute(sql, values).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """One statement for many rows, in a transaction of its own."""
        with self.writing():
            self._db.executemany(sql, rows)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction."""
        with self._turn, explained(self.file):
            if self._db.in_transaction:
                yield
                return
            with transaction(self._db):
                yield

    # what the store says

    def look(self, cells: Iterable[Cell]) -> None:
        """All of a store's values, as they are now, instead of those that were known."""
        with self.writing():
            self._db.execute("delete from cell")
            self._db.executemany(
                "insert into cell values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        one.table,
                        json.dumps(one.key),
                        one.column,
                        one.value,
                        one.kind,
                        one.owner,
                        one.experiment,
                        one.name,
                        one.active,
                        one.changed,
                        one.room,
                        old_place(one.value),
                    )
                    for one in cells
                ),
            )

    def cells(self, where: str = "1", *values: object) -> Iterator[tuple[Cell, str]]:
        """The values as they were at the last look, with their old places."""
        for row in self.rows(f"select {_CELL}, old from cell where {where}", *values):  # noqa: S608  ours
            yield _cell(row), row[11]

    def cells_of_owners(self) -> Iterator[tuple[Cell, str, str | None, str | None]]:
        """The same, and with those of runs, models and traces where their owners go and how they stand."""
        columns = ", ".join(f"c.{one.strip()}" for one in _CELL.split(","))
        sql = (
            f"select {columns}, c.old, o.dest, o.state from cell c left join owner o on o.place = c.old "  # noqa: S608
            "and c.kind in ('run', 'model', 'trace') where c.old <> ''"
        )
        for row in self.rows(sql):
            yield _cell(row), row[11], row[12], row[13]

    def owners(self, where: str = "1", *values: object) -> Iterator[Owner]:
        """Owners, in the order of their places."""
        for row in self.rows(f"select {_OWNER} from owner where {where} order by place", *values):  # noqa: S608  ours
            yield _owner(row)

    def owner_at(self, place: str) -> Owner | None:
        """The owner of just this place."""
        row = self.one(f"select {_OWNER} from owner where place = ?", place)  # noqa: S608  ours
        return None if row is None else _owner(row)

    def owner_of(self, parents: Sequence[str]) -> Owner | None:
        """Whose files lie there: of the owners of these places, the one with the longest."""
        marks = ",".join("?" * len(parents))
        row = self.one(
            f"select {_OWNER} from owner where place in ({marks}) order by length(place) desc",  # noqa: S608  marks
            *parents,
        )
        return None if row is None else _owner(row)

    def owner_to(self, parents: Sequence[str]) -> Owner | None:
        """Whose files go to these keys: of several, the one with the longest."""
        marks = ",".join("?" * len(parents))
        row = self.one(
            f"select {_OWNER} from owner where dest in ({marks}) order by length(dest) desc",  # noqa: S608  marks
            *parents,
        )
        return None if row is None else _owner(row)

    # what was copied

    def copied(self, at: str) -> Copied | None:
        """What is known of the copy of the file at `at`."""
        row = self.one(f"select {_FILE} from file where at = ?", at)  # noqa: S608  ours
        return None if row is None else _copied(row)

    def copies(self, at: Sequence[str]) -> list[Copied]:
        """What is known of the copies of some files."""
        marks = ",".join("?" * len(at))
        return [_copied(row) for row in self.rows(f"select {_FILE} from file where at in ({marks})", *at)]  # noqa: S608

    def listed(self, dest: Sequence[str]) -> dict[str, tuple[int, str]]:
        """What the target listed under some keys: size and version."""
        marks = ",".join("?" * len(dest))
        sql = f"select dest, size, version from there where dest in ({marks})"  # noqa: S608  marks
        return {key: (size, version) for key, size, version in self.rows(sql, *dest)}

    def copied_to(self, dest: str) -> Copied | None:
        """What is known of the copy with this key."""
        row = self.one(f"select {_FILE} from file where dest = ?", dest)  # noqa: S608  ours
        return None if row is None else _copied(row)

    def files(self, where: str = "1", *values: object) -> Iterator[Copied]:
        """Copies, in the order of their sources."""
        for row in self.rows(f"select {_FILE} from file where {where} order by at", *values):  # noqa: S608  ours
            yield _copied(row)

    def note(self, one: Copied) -> None:
        """A file was copied; written down with others, soon."""
        with self._turn:
            self._waiting.append(
                (one.at, one.dest, one.size, one.version, one.digest, one.placed, one.place, time.time())
            )
            if len(self._waiting) >= BATCH or time.monotonic() - self._flushed > LONGEST:
                self.flush()

    def flush(self) -> None:
        """Writes down what was copied."""
        with self._turn:
            waiting, self._waiting = self._waiting, []
            self._flushed = time.monotonic()
            if waiting:
                self.many("replace into file values (?, ?, ?, ?, ?, ?, ?, ?, 0)", waiting)

    # the journal

    def open_switch(self, edits: Iterable[tuple[Edit, Cell]]) -> int:
        """The journal of a switch, on the disk when this returns; gives its number."""
        with self._turn:
            self._db.execute("pragma synchronous = full")
            try:
                with self.writing():
                    number = self._db.execute("insert into switch (begun) values (?)", (time.time(),)).lastrowid or 0
                    self._db.executemany(
                        "insert into edit values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (_edit_row(number, *one) for one in edits),
                    )
            finally:
                self._db.execute("pragma synchronous = normal")
        return number

    def close_switch(self, number: int, not_made: Iterable[Edit] = ()) -> None:
        """The store has committed the switch, but for what it did not take."""
        with self.writing():
            self._db.executemany(
                'delete from edit where switch = ? and "table" = ? and "key" = ? and "column" = ?',
                [(number, one.table, json.dumps(one.key), one.column) for one in not_made],
            )
            self._db.execute("update switch set committed = ? where id = ?", (time.time(), number))

    def drop_switch(self, number: int) -> None:
        """The store never committed it."""
        with self.writing():
            self._db.execute("delete from edit where switch = ?", (number,))
            self._db.execute("delete from switch where id = ?", (number,))

    def switches(self, where: str) -> list[int]:
        """Numbers of switches, the last first."""
        return [int(row[0]) for row in self.rows(f"select id from switch where {where} order by id desc")]  # noqa: S608

    def edits(self, number: int) -> Iterator[tuple[Edit, str, str, str]]:
        """A switch's edits, each with its kind, owner and name."""
        for row in self.rows(
            'select "table", "key", "column", old, new, kind, owner, name from edit where switch = ?', number
        ):
            yield Edit(row[0], tuple(json.loads(row[1])), *row[2:5]), row[5], row[6], row[7]


def default_file(identity: str, target: str) -> Path:
    """Under ~/.local/state/mlmigrate (or XDG_STATE_HOME), one for a store and a target."""
    import hashlib  # noqa: PLC0415  here alone

    pair = hashlib.blake2b(f"{identity}\0{target}".encode(), digest_size=8).hexdigest()
    return state_folder() / f"relocate-{pair}.sqlite"


def _connected(name: str) -> sqlite3.Connection:
    db = sqlite3.connect(name, isolation_level=None, timeout=30, check_same_thread=False)
    db.execute("pragma synchronous = normal")
    return db


def _quoted(file: Path) -> str:
    from urllib.parse import quote  # noqa: PLC0415  here alone

    return quote(str(file))


def _cell(row: Sequence[Any]) -> Cell:
    table, key, column, value, kind, owner, experiment, name, active, changed, room = row[:11]
    keys = tuple(json.loads(key))
    return Cell(table, keys, column, value, kind, owner, experiment, name, bool(active), changed, room)


def _owner(row: Sequence[Any]) -> Owner:
    place, dest, kind, owner, experiment, name, active, changed, at, root, state, why, fresh = row
    return Owner(place, dest, kind, owner, experiment, name, bool(active), changed, at, root, state, why, bool(fresh))


def _copied(row: Sequence[Any]) -> Copied:
    at, dest, size, version, digest, placed, place, gone = row
    return Copied(at, dest, size, version, digest, placed, place, bool(gone))


def _edit_row(number: int, edit: Edit, cell: Cell) -> tuple[object, ...]:
    key = json.dumps(edit.key)
    return (number, edit.table, key, edit.column, edit.old, edit.new, cell.kind, cell.owner, cell.name)
