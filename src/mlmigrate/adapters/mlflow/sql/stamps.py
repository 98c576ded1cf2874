"""Stamps of rows: a hash for each group of them that changes when any row does.

Every column is hashed but the largest, of which the length is: they are written once, together with
others that tell when.  Spans, of which there are the most, are summed: how many, their times and lengths.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL, SQLITE, Session
from mlmigrate.adapters.mlflow.sql.listing import Hashed
from mlmigrate.adapters.mlflow.sql.rows import is_text, quoted

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.sql.schema import Shape

_LARGE: Mapping[str, frozenset[str]] = {
    "spans": frozenset(["content"]),
    "evaluation_dataset_records": frozenset(["inputs", "outputs", "expectations", "source"]),
}
# of a span these change together with all else
_SUMMED: Mapping[str, tuple[str, ...]] = {"spans": ("content", "status", "end_time_unix_nano", "total_cost")}
_PRIME = 1_000_000_007  # the sum of times in nanoseconds would overflow
_BETWEEN = "\x1f"


def stamps(
    session: Session, shape: Shape, table: str, group: str, tables: str, where: str, before: str = ""
) -> dict[str, str]:
    """Group -> hash of its rows. `tables` follows FROM, and calls the table "t"; `before` comes before all else."""
    if session.kind == POSTGRESQL:
        number = "('x' || substr(md5(t::text), 1, 16))::bit(64)::bigint"
        chosen = f"{group} AS g, count(*) AS n, sum({number})::text AS s"
        sql = f"{before}SELECT {chosen} FROM {tables} WHERE {where} GROUP BY 1"
        return {group: digest(f"{count} {total}") for group, count, total in session.rows(sql)}
    if table in _SUMMED:
        sql = f"{before}SELECT {group} AS g, {_sums(session, shape, table)} FROM {tables} WHERE {where} GROUP BY 1"
        return {group: digest(repr(found)) for group, *found in session.rows(sql)}
    columns = f" || '{_BETWEEN}' || ".join(_column(session, table, one) for one in shape.tables[table])
    order = "t.rowid" if session.kind == SQLITE else "2"
    hashed = Hashed()
    sql = f"{before}SELECT {group} AS id, {columns} AS pair FROM {tables} WHERE {where} ORDER BY {order}"
    for batch in session.batches(sql):
        hashed.add(batch)
    return {group: found.hex() for group, found in hashed.digests().items()}


def digest(text: str) -> str:
    """A short hash."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _sums(session: Session, shape: Shape, table: str) -> str:
    sums = ["count(*)"] + (["max(t.rowid)"] if session.kind == SQLITE else [])
    for name in _SUMMED[table]:
        column, kind = f"t.{quoted(name)}", shape.tables[table].get(name)
        if kind is not None:
            whole = f"{column} % {_PRIME}" if "INT" in kind.upper() else column
            sums.append(f"sum({_length(session, column) if is_text(kind) else whole})")
    return ", ".join(f"{session.text(one)} AS c{number}" for number, one in enumerate(sums))


def _column(session: Session, table: str, name: str) -> str:
    column = f"t.{quoted(name)}"
    if name not in _LARGE.get(table, ()):
        return session.nullable(column)
    return f"COALESCE({session.text(_length(session, column))}, '')"


def _length(session: Session, column: str) -> str:
    return f"octet_length({column})" if session.kind == SQLITE else f"length({column})"
