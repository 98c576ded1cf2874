"""Rows written into tables of a backend database, a few thousand at once, with the values that they have.

rows --Arrow, by column--> mlmigrate_rows --INSERT ... SELECT--> the table
                                          `- rows that the table refuses stay behind, and are counted
"""

# ruff: noqa: S608 - names come from the target's own schema, values are bound

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL, SQLITE, Session
from mlmigrate.model import Loss

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.objects import Row
    from mlmigrate.adapters.mlflow.sql.schema import Shape

_STAGE = "mlmigrate_rows"
_REFUSED = "the target has others under the same key, or refuses what is in them"
_UNTIED = "belong to something that is not in the target"
_SET_NULL = ("SET NULL", "n")
_SQLITE_KEYS = (
    'SELECT m.name, f.id, f."table", f."from", f."to", f.on_delete FROM sqlite_master m, '
    "pragma_foreign_key_list(m.name) f WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq"
)
_POSTGRESQL_KEYS = (
    "SELECT c.conrelid::regclass::text AS t, c.oid::bigint AS i, c.confrelid::regclass::text AS p, "
    "a.attname::text AS f, b.attname::text AS g, c.confdeltype::text AS d FROM pg_constraint c "
    "CROSS JOIN LATERAL unnest(c.conkey, c.confkey) WITH ORDINALITY AS k(here, there, n) "
    "JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.here "
    "JOIN pg_attribute b ON b.attrelid = c.confrelid AND b.attnum = k.there "
    "WHERE c.contype = 'f' AND c.connamespace = current_schema()::regnamespace ORDER BY 1, 2, k.n"
)
_SQLITE_COLUMNS = (
    'SELECT m.name, p.name, p."notnull", p.pk FROM sqlite_master m, pragma_table_info(m.name) p '
    "WHERE m.type = 'table'"
)
_POSTGRESQL_COLUMNS = (
    "SELECT c.relname::text AS t, a.attname::text AS n, CASE WHEN a.attnotnull THEN 1 ELSE 0 END::bigint AS r, "
    "COALESCE(array_position(i.indkey::int[], a.attnum::int), -1)::bigint + 1 AS k FROM pg_class c "
    "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
    "LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary "
    "WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace"
)


@dataclass(frozen=True, slots=True)
class Key:
    """A foreign key: columns here, the parent and its columns; `nulls` when it is to become null without a parent."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    nulls: bool


@dataclass(slots=True)
class Catalog:
    """What the target's tables demand of their rows, read from the database."""

    required: dict[str, set[str]] = field(default_factory=dict)
    primary: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[str, list[Key]] = field(default_factory=dict)


def catalog(session: Session) -> Catalog:
    """The demands of all tables."""
    found = Catalog()
    primary: dict[str, list[tuple[int, str]]] = {}
    for table, column, required, place in session.rows(
        _POSTGRESQL_COLUMNS if session.kind == POSTGRESQL else _SQLITE_COLUMNS
    ):
        if required:
            found.required.setdefault(table, set()).add(column)
        if place > 0:
            primary.setdefault(table, []).append((place, column))
    found.primary = {table: [column for _, column in sorted(columns)] for table, columns in primary.items()}
    keys: dict[tuple[str, int, str, str], list[tuple[str, str]]] = {}
    for table, number, parent, here, there, gone in session.rows(
        _POSTGRESQL_KEYS if session.kind == POSTGRESQL else _SQLITE_KEYS
    ):
        keys.setdefault((table, number, parent, gone), []).append((here, there))
    for (table, _, parent, gone), pairs in keys.items():
        columns, parents = zip(*pairs, strict=True)
        found.keys.setdefault(table, []).append(Key(columns, parent, parents, gone in _SET_NULL))
    return found


class Stage:
    """Writes rows into tables, in the session's transaction; what does not fit is told in `losses`."""

    def __init__(self, session: Session, shape: Shape, losses: list[Loss]) -> None:
        self.session, self.shape, self.losses = session, shape, losses
        self._catalog = catalog(session)
        self._counts: dict[tuple[str, str], int] = {}

    def insert(self, table: str, rows: Sequence[Row], *, whole: str = "", upsert: bool = False) -> int:
        """Adds rows; those whose key is taken stay as they are, or are brought up to date where `upsert`.

        `whole`: a table whose rows are known to be there. Gives how many rows were taken.
        """
        if not rows:
            return 0
        if not self.shape.has(table):
            self.count(f"rows of {table}", "the target has no such table", len(rows))
            return 0
        return sum(self._insert(table, alike, whole, upsert=upsert) for alike in _alike(rows))

    def count(self, what: str, because: str, count: int = 1) -> None:
        """Notes a loss; equal ones are told once, with their number."""
        if count:
            self._counts[what, because] = self._counts.get((what, because), 0) + count

    def tell(self) -> None:
        """The counts as losses."""
        self.losses += [Loss("", f"{count} {what}", because) for (what, because), count in self._counts.items()]
        self._counts = {}

    def _insert(self, table: str, rows: Sequence[Row], whole: str, *, upsert: bool) -> int:
        declared = self.shape.tables[table]
        for name in rows[0]:
            if name not in declared:
                full = sum(row[name] is not None for row in rows)
                self.count(f"values of {table}.{name}", "the target has no such column", full)
        columns = [name for name in rows[0] if name in declared]
        if not columns:
            return 0
        chosen: dict[str, str] = {}
        staged: dict[str, pa.Array] = {}
        for number, name in enumerate(columns):
            arrays, chosen[name] = self._column(table, name, number, [row[name] for row in rows])
            staged |= arrays
        self.session.ingest(_STAGE, pa.table(staged), temporary=True)
        taken = self._move(table, columns, chosen, whole, upsert=upsert)
        self.session.execute(f"DROP TABLE {_STAGE}")
        return taken

    def _move(self, table: str, columns: Sequence[str], chosen: Mapping[str, str], whole: str, *, upsert: bool) -> int:
        names = ", ".join(map(quoted, columns))
        values = ", ".join(f"{chosen[name]} AS {quoted(name)}" for name in columns)
        keys = [
            key
            for key in self._catalog.keys.get(table, ())
            if key.parent not in (whole, "experiments") and set(key.columns) <= set(columns)
        ]
        taken = ", ".join(
            f"CASE WHEN {_parent(key)} THEN r.{quoted(name)} END" if key is not None else f"r.{quoted(name)}"
            for name, key in ((name, _nulling(name, keys)) for name in columns)
        )
        fits = [f"r.{quoted(name)} IS NOT NULL" for name in columns if name in self._catalog.required.get(table, ())]
        fits += [_parent(key) for key in keys if not key.nulls]
        rows = f"SELECT {taken} FROM (SELECT {values} FROM {_STAGE}) AS r WHERE {' AND '.join(fits) or '1 = 1'}"
        count = self._count_of(f"INSERT INTO {quoted(table)} ({names}) {rows} {self._does(table, columns, upsert)}")
        total = int(self.session.rows(f"SELECT count(*) AS n FROM {_STAGE}")[0][0])
        if count < total:
            self._refused(table, total - count, [_parent(key) for key in keys if not key.nulls], values)
        self._nulled(table, [key for key in keys if key.nulls], values)
        return count

    def _count_of(self, insert: str) -> int:
        """Does the insert; gives how many rows it took."""
        if self.session.kind == SQLITE:
            self.session.execute(insert)
            return int(self.session.rows("SELECT changes() AS n")[0][0])
        sql = f"WITH taken AS ({insert} RETURNING 1) SELECT count(*)::bigint AS n FROM taken"
        return int(self.session.rows(sql)[0][0])

    def _does(self, table: str, columns: Sequence[str], upsert: bool) -> str:
        key = self._catalog.primary.get(table, [])
        rest = [name for name in columns if name not in key]
        if not upsert or not key or not rest:
            return "ON CONFLICT DO NOTHING"
        changed = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in rest)
        return f"ON CONFLICT ({', '.join(map(quoted, key))}) DO UPDATE SET {changed}"

    def _refused(self, table: str, missing: int, tied: Sequence[str], values: str) -> None:
        untied = 0
        if tied:
            untied = self._number(f"SELECT count(*) AS n FROM (SELECT {values} FROM {_STAGE}) AS r "
                                  f"WHERE NOT ({' AND '.join(tied)})")  # fmt: skip
        untied = min(untied, missing)
        self.count(f"rows of {table}", _UNTIED, untied)
        self.count(f"rows of {table}", _REFUSED, missing - untied)

    def _nulled(self, table: str, keys: Sequence[Key], values: str) -> None:
        for key in keys:
            column = quoted(key.columns[0])
            count = self._number(
                f"SELECT count(*) AS n FROM (SELECT {values} FROM {_STAGE}) AS r "
                f"WHERE r.{column} IS NOT NULL AND NOT {_parent(key)}"
            )
            self.count(f"values of {table}.{key.columns[0]}", "name something that is not in the target", count)

    def _number(self, sql: str) -> int:
        return int(self.session.rows(sql)[0][0])

    def _column(self, table: str, name: str, number: int, values: list[Any]) -> tuple[dict[str, pa.Array], str]:
        """The staged columns of one column, and what gives its values from them."""
        declared = self.shape.tables[table][name]
        kinds = {*map(type, values)} - {type(None)}
        if kinds - _PLAIN:
            values = [value_of(value) for value in values]
            kinds = {*map(type, values)} - {type(None)}
        c = f"c{number}"
        if str in kinds:
            values = self._clean(table, values)
        if self.session.kind == POSTGRESQL:
            return {c: _typed(values, kinds, declared)}, f"CAST({c} AS {kind_of(declared)})"
        array = _array(values, kinds)
        if array is not None:
            return {c: array}, c
        return _marked(c, values, text=is_text(declared))

    def _clean(self, table: str, values: list[Any]) -> list[Any]:
        """Text that the database can hold."""
        nul = self.session.kind == POSTGRESQL
        if not nul or not any(isinstance(value, str) and "\0" in value for value in values):
            return values
        count = sum(isinstance(value, str) and "\0" in value for value in values)
        self.count(f"texts of {table}", "held NUL, which PostgreSQL cannot hold; now replacement characters", count)
        return [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]


_PLAIN = {str, int, float, bool}


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by which columns they have."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row), []).append(row)
    return list(found.values())


def _parent(key: Key) -> str:
    """A condition on the staged row r: there is what it refers to, or it refers to nothing."""
    nulls = " OR ".join(f"r.{quoted(name)} IS NULL" for name in key.columns)
    same = " AND ".join(
        f"p.{quoted(there)} = r.{quoted(here)}" for here, there in zip(key.columns, key.parent_columns, strict=True)
    )
    return f"({nulls} OR EXISTS (SELECT 1 FROM {quoted(key.parent)} p WHERE {same}))"


def _nulling(name: str, keys: Sequence[Key]) -> Key | None:
    return next((key for key in keys if key.nulls and name in key.columns), None)


def _array(values: list[Any], kinds: set[type]) -> pa.Array | None:
    """As SQLite takes them where all are of one type; None where they are not."""
    if not kinds or kinds == {str}:
        return pa.array(values, pa.utf8())
    if kinds <= {int, bool}:
        return pa.array([None if value is None else int(value) for value in values], pa.int64())
    if kinds == {float}:
        return pa.array(values, pa.float64())
    return pa.array(values, pa.binary()) if kinds == {bytes} else None


def _marked(c: str, values: list[Any], *, text: bool) -> tuple[dict[str, pa.Array], str]:
    """Values of several types: texts that begin with their type; a real goes as it is in a second column."""
    marked = pa.array([mark(value) for value in values], pa.utf8())
    reals = pa.array([value if isinstance(value, float) else 0.0 for value in values], pa.float64())
    rest = f"substr({c}, 2)"
    chosen = (
        f"CASE substr({c}, 1, 1) WHEN 'i' THEN CAST({rest} AS INTEGER) WHEN 'r' THEN {rest if text else f'{c}r'} "
        f"WHEN 'b' THEN unhex({rest}) WHEN 't' THEN {rest} END"
    )
    return {c: marked, f"{c}r": reals}, chosen


def mark(value: object) -> str:
    """A value as text that begins with its type."""
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return f"i{int(value)}"
    if isinstance(value, float):
        return f"r{value!r}"
    return f"b{value.hex()}" if isinstance(value, bytes) else f"t{value}"


def _typed(values: list[Any], kinds: set[type], declared: str) -> pa.Array:
    """As PostgreSQL takes them: of the declared type where that is plain, else as text."""
    if declared == "boolean" and kinds <= {bool, int}:
        return pa.array([None if value is None else bool(value) for value in values], pa.bool_())
    if declared.startswith("double") and kinds <= {float, int, bool}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if declared in ("integer", "bigint", "smallint") and kinds <= {int, bool}:
        return pa.array([None if value is None else int(value) for value in values], pa.int64())
    if kinds == {bytes}:
        return pa.array(values, pa.binary())
    return pa.array([None if value is None else _text(value) for value in values], pa.utf8())


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return json.dumps(value) if isinstance(value, bool) else str(value)


def value_of(value: object) -> object:
    """What an object's row says, as a value: {"$bytes": ...} and {"$float": ...} are such; other objects are JSON."""
    if isinstance(value, dict) and value.keys() == {"$bytes"}:
        return base64.b64decode(value["$bytes"])
    if isinstance(value, dict) and value.keys() == {"$float"}:
        return float(value["$float"])
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def kind_of(declared: str) -> str:
    """What a staged value is cast to."""
    plain = ("character", "bigint", "integer", "double", "json", "bytea", "boolean")
    return declared if declared.startswith(plain) else "text"


def is_text(declared: str) -> bool:
    """Whether SQLite keeps no real number in a column of this type."""
    return any(word in declared.upper() for word in ("CHAR", "CLOB", "TEXT"))


def quoted(name: str) -> str:
    """A name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'
