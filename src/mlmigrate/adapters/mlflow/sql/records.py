"""Tables that have no counterpart elsewhere, row by row: a row is a Record, its body a JSON object.

Values that JSON has no word for are objects of one name: {"$bytes": base64} and {"$float": "NaN"}.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import base64
import json
import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mlmigrate.adapters.mlflow.sql.connect import OTHER, POSTGRESQL, SQLITE, Session, texts
from mlmigrate.model import Loss, Record, RunRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlmigrate.adapters.mlflow.sql.schema import Shape

KIND = "mlflow.sql."
SMALL = 5_000  # rows; smaller tables are stamped by all that they hold
_LARGE_ROWS = frozenset(["spans", "evaluation_dataset_records"])
SECRET_TABLES = {"secrets": "secrets can be read only by the server that encrypted them"}
# A queue, its locks and leases: they tell what one server is doing, and would make another do it again.
TRANSIENT_TABLES = ("jobs", "job_locks", "scheduler_leases")
SECRET_COLUMNS = {"webhooks": ("secret", "webhook secrets can be read only by the server that encrypted them")}
_DATASET_INPUTS = "source_type = 'DATASET' AND destination_type = 'RUN'"
_FILTERS = {
    "inputs": f"NOT ({_DATASET_INPUTS})",
    "input_tags": f"input_uuid NOT IN (SELECT input_uuid FROM inputs WHERE {_DATASET_INPUTS})",
}


def table_of(ref: RunRef) -> str:
    """The table that a ref of kind "records" stands for."""
    return ref.id.removeprefix("@")


def refs(session: Session, shape: Shape, identity: str) -> Iterator[RunRef]:
    """A ref for each table that has rows, those that others refer to first."""
    for table in shape.others():
        if table in SECRET_TABLES:
            continue
        sql = f"SELECT count(*) AS n FROM {_quoted(table)} WHERE {_where(table, shape)}"
        count = int(session.rows(sql)[0][0])
        if count:
            yield RunRef(
                experiment="",
                id=f"@{table}",
                name=table,
                origin=f"mlflow:@{table}:{identity}",
                stamp=_stamp(session, shape, table, count),
                points=count,
                kind="records",
            )


def stays(session: Session, shape: Shape) -> Iterator[Loss]:
    """What must stay where it is."""
    transient = dict.fromkeys(TRANSIENT_TABLES, "are the server's own work under way, and stay with it")
    for table, reason in (SECRET_TABLES | transient).items():
        if shape.has(table) and (count := int(session.rows(f"SELECT count(*) AS n FROM {_quoted(table)}")[0][0])):
            yield Loss("", f"{count} rows of {table}", reason)
    for table, (column, reason) in SECRET_COLUMNS.items():
        if shape.has(table, column):
            count = int(session.rows(f"SELECT count(*) AS n FROM {table} WHERE {column} IS NOT NULL")[0][0])
            if count:
                yield Loss("", f"{count} values of {table}.{column}", reason)


def read(session: Session, shape: Shape, refs_: Iterable[RunRef]) -> Iterator[Record]:
    """The rows of the tables that `refs_` stand for."""
    for ref in refs_:
        table = table_of(ref)
        if shape.has(table) and table not in SECRET_TABLES:
            for number, row in enumerate(_rows(session, shape, table)):
                yield Record(f"{KIND}{table}", f"{table}/{number}", _owner(row), json.dumps(row, ensure_ascii=False))


def _owner(row: dict[str, Any]) -> str:
    for column in ("run_uuid", "run_id", "source_run_id", "experiment_id"):
        if row.get(column) not in (None, ""):
            return str(row[column])
    return ""


def _rows(session: Session, shape: Shape, table: str) -> Iterator[dict[str, Any]]:
    hidden = SECRET_COLUMNS.get(table, ("", ""))[0]
    columns = [one for one in shape.tables[table] if one != hidden]
    where = _where(table, shape)
    if session.kind == SQLITE:
        yield from _sqlite_rows(session, shape, columns, table, where)
    elif session.kind == POSTGRESQL:
        yield from _postgresql_rows(session, shape, columns, table, where)
    else:
        for batch in session.batches(f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table)} WHERE {where}"):
            yield from ({name: _plain(value) for name, value in row.items()} for row in batch.to_pylist())


def _sqlite_rows(
    session: Session, shape: Shape, columns: list[str], table: str, where: str
) -> Iterator[dict[str, Any]]:
    """SQLite gives each value a type of its own: the text tells it, a real comes as it is in a second column."""
    chosen = []
    for number, name in enumerate(columns):
        c = _quoted(name)
        chosen.append(
            f"CASE typeof({c}) WHEN 'null' THEN '' WHEN 'integer' THEN 'i' || {c} WHEN 'real' THEN 'r' "
            f"WHEN 'blob' THEN 'b' || hex({c}) ELSE 't' || {c} END AS t{number}"
        )
        real = "0.0" if is_text(shape.tables[table][name]) else f"CASE typeof({c}) WHEN 'real' THEN {c} ELSE 0.0 END"
        chosen.append(f"{real} AS r{number}")
    for batch in session.batches(f"SELECT {', '.join(chosen)} FROM {_quoted(table)} WHERE {where}"):
        values = [texts(column) for column in batch.columns]
        typed = [map(_typed, values[at], values[at + 1]) for at in range(0, len(values), 2)]
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*typed, strict=True))


def _typed(text: str, real: float) -> object:
    kind, rest = text[:1], text[1:]
    if kind == "i":
        return int(rest)
    if kind == "r":
        return _plain(real)
    if kind == "b":
        return _plain(bytes.fromhex(rest))
    return rest if kind else None


def is_text(declared: str) -> bool:
    """Whether SQLite keeps no real number in a column of this type."""
    return any(word in declared.upper() for word in ("CHAR", "CLOB", "TEXT"))


def _postgresql_rows(
    session: Session, shape: Shape, columns: list[str], table: str, where: str
) -> Iterator[dict[str, Any]]:
    binary = [one for one in columns if shape.tables[table][one] == "bytea"]
    chosen = ", ".join(_postgresql_column(one, shape.tables[table][one]) for one in columns)
    sql = f"SELECT row_to_json(t)::text AS row FROM (SELECT {chosen} FROM {_quoted(table)} WHERE {where}) t"
    for batch in session.batches(sql):
        for text in batch.column(0).to_pylist():
            row: dict[str, Any] = json.loads(text)
            for name in binary:
                row[name] = None if row[name] is None else {"$bytes": row[name].replace("\n", "")}
            yield row


def _postgresql_column(name: str, kind: str) -> str:
    if kind == "bytea":
        return f"encode({_quoted(name)}, 'base64') AS {_quoted(name)}"
    if kind in ("json", "jsonb"):
        return f"{_quoted(name)}::text AS {_quoted(name)}"
    return _quoted(name)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def value_of(value: object) -> object:
    """What `body` held for one column: the other way round."""
    if isinstance(value, dict) and set(value) == {"$bytes"}:
        return base64.b64decode(value["$bytes"])
    if isinstance(value, dict) and set(value) == {"$float"}:
        return float(value["$float"])
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def _stamp(session: Session, shape: Shape, table: str, count: int) -> str:
    """A hash of all rows of a small table; of a large one, of what is cheap to sum."""
    columns = list(shape.tables[table])
    if count <= SMALL and table not in _LARGE_ROWS and session.kind != OTHER:
        chosen = " || '/' || ".join(session.nullable(_quoted(one)) for one in columns)
        digests = sorted(_digest(row) for (row,) in session.rows(f"SELECT {chosen} AS r FROM {_quoted(table)}"))
        return _digest("".join(digests))
    sums = [f"sum({session.integer(_quoted(one))})" for one in columns if _whole(shape.tables[table][one])]
    row_number = ["max(rowid)"] if session.kind == SQLITE else []
    chosen = ", ".join(f"{session.text(one)} AS c{n}" for n, one in enumerate(["count(*)", *row_number, *sums]))
    return _digest(json.dumps(session.rows(f"SELECT {chosen} FROM {_quoted(table)}")))


def _whole(kind: str) -> bool:
    return kind.upper() in ("BIGINT", "INTEGER", "INT")


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _where(table: str, shape: Shape) -> str:
    if table == "input_tags" and not shape.has("inputs"):
        return "1 = 1"
    return _FILTERS.get(table, "1 = 1")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
