"""Rows of other tables written into a backend database; what is there already stays.

Rows that we brought ourselves earlier are brought up to date.
"""

# ruff: noqa: S608 - names come from the target's own schema, values are bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlmigrate.adapters.mlflow.sql.connect import LOCKED, Session, explained
from mlmigrate.adapters.mlflow.sql.records import KIND, value_of
from mlmigrate.model import STAMP_TAG, Loss, RunRef

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.sql.target import DatabaseTarget

_AT_ONCE = 500  # rows a statement
_LINKED = ("source", "destination")  # entity_associations name an experiment by type and id


def write_sqlite(
    target: DatabaseTarget, batches: Iterator[pa.RecordBatch], refs: Sequence[RunRef], losses: list[Loss]
) -> None:
    """Writes the rows in a transaction of their own: the standard library keeps each value's type."""
    known = target.arrived()
    with target.writing, explained(target.database.shown):
        connection = sqlite3.connect(target.database.uri("rw"), uri=True, timeout=LOCKED / 1000, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for table, columns, rows in _chunks(target, batches, losses):
                verb = "REPLACE" if _ours(table, refs, known) else "IGNORE"
                names, marks = ", ".join(map(_quoted, columns)), ", ".join("?" * len(columns))
                connection.executemany(f"INSERT OR {verb} INTO {_quoted(table)} ({names}) VALUES ({marks})", rows)
            for key, stamp in _marks(refs):
                connection.execute(
                    'INSERT OR REPLACE INTO experiment_tags ("key", value, experiment_id) '
                    "SELECT ?, ?, min(experiment_id) FROM experiments HAVING count(*) > 0",
                    (key, stamp),
                )
            connection.execute("COMMIT")
        finally:
            connection.close()


def write_postgresql(
    target: DatabaseTarget,
    session: Session,
    batches: Iterator[pa.RecordBatch],
    refs: Sequence[RunRef],
    losses: list[Loss],
) -> None:
    """Writes the rows in the session's transaction."""
    known = target.arrived()
    for table, columns, rows in _chunks(target, batches, losses):
        kinds = target.shape.tables[table]
        declared = ", ".join(f"{_quoted(name)} text" for name in columns)
        values = ", ".join(f"CAST(r.{_quoted(name)} AS {_kind(kinds[name])})" for name in columns)
        names = ", ".join(map(_quoted, columns))
        does = _update(session, table, columns) if _ours(table, refs, known) else "DO NOTHING"
        sql = (
            f"INSERT INTO {_quoted(table)} ({names}) SELECT {values} "
            f"FROM json_to_recordset(CAST(CAST($1 AS text) AS json)) AS r({declared}) ON CONFLICT {does}"
        )
        session.execute(sql, (_json(columns, rows, losses, table),))
    for key, stamp in _marks(refs):
        session.execute(
            'INSERT INTO experiment_tags ("key", value, experiment_id) SELECT CAST($1 AS text), CAST($2 AS text), '
            "min(experiment_id) FROM experiments HAVING count(*) > 0 "
            'ON CONFLICT ("key", experiment_id) DO UPDATE SET value = excluded.value',
            (key, stamp),
        )


def _chunks(
    target: DatabaseTarget, batches: Iterator[pa.RecordBatch], losses: list[Loss]
) -> Iterator[tuple[str, list[str], list[tuple[Any, ...]]]]:
    """(table, columns that the target has, rows), some rows at once."""
    held: list[dict[str, Any]] = []
    table = ""
    misfits = _Misfits(target, losses)
    for batch in batches:
        for kind, body in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            name, row = kind.removeprefix(KIND), json.loads(body)
            if held and (name != table or len(held) >= _AT_ONCE or row.keys() != held[0].keys()):
                yield from misfits.fitted(table, held)
                held = []
            table = name
            held.append(row)
    if held:
        yield from misfits.fitted(table, held)
    misfits.tell()


class _Misfits:
    """What of the rows the target has no place for, counted."""

    def __init__(self, target: DatabaseTarget, losses: list[Loss]) -> None:
        self.target, self.losses = target, losses
        self.counts: dict[tuple[str, str], int] = {}

    def fitted(self, table: str, rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[str], list[tuple[Any, ...]]]]:
        """The rows as the target's table holds them."""
        shape = self.target.shape
        if not shape.has(table):
            self._count(f"rows of {table}", "the target has no such table", len(rows))
            return
        for name in rows[0]:
            if not shape.has(table, name):
                full = sum(row[name] is not None for row in rows)
                self._count(f"values of {table}.{name}", "the target has no such column", full)
        columns = [name for name in rows[0] if shape.has(table, name)]
        moved = [row for row in map(self._moved, rows) if row is not None]
        if len(moved) < len(rows):
            self._count(f"rows of {table}", "belong to experiments that were not carried", len(rows) - len(moved))
        if moved and columns:
            yield table, columns, [tuple(value_of(row[name]) for name in columns) for row in moved]

    def tell(self) -> None:
        """The counts as losses."""
        self.losses += [Loss("", f"{count} {what}", because) for (what, because), count in self.counts.items() if count]

    def _count(self, what: str, because: str, count: int) -> None:
        self.counts[what, because] = self.counts.get((what, because), 0) + count

    def _moved(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row with the ids that its experiments have here."""
        ids = {id_: home.id for id_, home in self.target.homes.items()}
        if row.get("experiment_id") is not None:
            if str(row["experiment_id"]) not in ids:
                return None
            row = {**row, "experiment_id": ids[str(row["experiment_id"])]}
        for end in _LINKED:
            if row.get(f"{end}_type") == "experiment" and str(row.get(f"{end}_id")) in ids:
                row = {**row, f"{end}_id": str(ids[str(row[f"{end}_id"])])}
        return row


def _ours(table: str, refs: Sequence[RunRef], known: Mapping[str, object]) -> bool:
    """Whether the table's rows came here before from the same estate."""
    return any(ref.id == f"@{table}" and ref.origin in known for ref in refs)


def _marks(refs: Sequence[RunRef]) -> list[tuple[str, str]]:
    return [(f"{STAMP_TAG} {ref.origin}", ref.stamp) for ref in refs]


def _json(columns: list[str], rows: list[tuple[Any, ...]], losses: list[Loss], table: str) -> str:
    text = json.dumps([{name: _worded(value) for name, value in zip(columns, row, strict=True)} for row in rows])
    if "\\u0000" not in text:
        return text
    losses.append(Loss("", f"NUL characters in rows of {table}", "PostgreSQL holds none; now replacement characters"))
    clean = [
        {
            name: value.replace("\0", "\ufffd") if isinstance(value, str) else _worded(value)
            for name, value in zip(columns, row, strict=True)
        }
        for row in rows
    ]
    return json.dumps(clean)


def _worded(value: object) -> object:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return str(value) if isinstance(value, float) else value


def _kind(declared: str) -> str:
    return (
        declared
        if declared.startswith(("character", "bigint", "integer", "double", "json", "bytea", "boolean"))
        else "text"
    )


def _update(session: Session, table: str, columns: Sequence[str]) -> str:
    """What happens to a row of ours that is there already."""
    keys = [
        name
        for (name,) in session.rows(
            "SELECT a.attname::text AS n FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
            f"AND a.attnum = ANY(i.indkey) WHERE i.indisprimary AND i.indrelid = to_regclass('{table}')"
        )
    ]
    rest = [name for name in columns if name not in keys]
    if not keys or not rest:
        return "DO NOTHING"
    changed = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in rest)
    return f"({', '.join(map(_quoted, keys))}) DO UPDATE SET {changed}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
