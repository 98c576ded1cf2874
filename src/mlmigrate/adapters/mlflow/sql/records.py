"""Rows that are part of no object, row by row: a row is a Record of kind "mlflow.sql.<table>", its body a JSON object.

These are the tables of an MLflow that is newer than we are, and rows of known tables whose run, model or
trace is not there any more.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mlmigrate.adapters.mlflow.objects import ROWS
from mlmigrate.adapters.mlflow.sql.layout import ALL, Layout
from mlmigrate.adapters.mlflow.sql.rows import Rows, is_text, quoted, value_of
from mlmigrate.adapters.mlflow.sql.schema import LEFT_OUT, SECRETS
from mlmigrate.adapters.mlflow.sql.stamps import stamps
from mlmigrate.model import Loss, Record, RunRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlmigrate.adapters.mlflow.sql.connect import Session
    from mlmigrate.adapters.mlflow.sql.schema import Shape

__all__ = ["KIND", "is_text", "value_of"]

KIND = ROWS
_ORPHANS = "belong to nothing that is in the database; they are carried as they are, row by row"


def refs(
    session: Session, layout: Layout, lost: Mapping[str, int], identity: str
) -> Iterator[tuple[RunRef, Loss | None]]:
    """A ref for each table that has such rows, those that others refer to first, and what is strange about them.

    `lost` are the tables of runs with rows of runs that are not there; this was told before.
    """
    for table in layout.others():
        for ref in _ref(session, layout, table, ALL, identity):
            yield ref, None
    for table in layout.shared():
        for ref in _ref(session, layout, table, layout.remains(session, table), identity):
            yield ref, Loss("", f"{ref.points} rows of {table}", _ORPHANS)
    for table in lost:
        for ref in _ref(session, layout, table, layout.remains(session, table), identity):
            yield ref, None


def _ref(session: Session, layout: Layout, table: str, where: str, identity: str) -> Iterator[RunRef]:
    if not where:
        return
    count = int(session.rows(f"SELECT count(*) AS n FROM {quoted(table)} WHERE {where}")[0][0])
    if count:
        stamp = stamps(session, layout.shape, table, "''", f"{quoted(table)} t", where).get("", "")
        origin = f"mlflow:@{table}:{identity}"
        yield RunRef("", f"@{table}", table, origin, stamp, points=count, kind="records")


def stays(session: Session, shape: Shape) -> Iterator[Loss]:
    """What must stay where it is."""
    for table, reason in LEFT_OUT.items():
        if reason and shape.has(table):
            count = int(session.rows(f"SELECT count(*) AS n FROM {quoted(table)}")[0][0])
            if count:
                yield Loss("", f"{count} rows of {table}", reason)
    for table, (column, reason) in SECRETS.items():
        if shape.has(table, column):
            count = int(session.rows(f"SELECT count(*) AS n FROM {table} WHERE {column} IS NOT NULL")[0][0])
            if count:
                yield Loss("", f"{count} values of {table}.{column}", reason)


def read(session: Session, layout: Layout, ref: RunRef, rows: Rows) -> Iterator[Record]:
    """The rows that `ref` stands for."""
    table = ref.id.removeprefix("@")
    if not layout.shape.has(table) or table in LEFT_OUT:
        return
    where = ALL if table in layout.others() else layout.remains(session, table)
    if not where:
        return
    for number, row in enumerate(rows.read(table, where, SECRETS.get(table, ())[:1])):
        yield Record(f"{KIND}{table}", f"{table}/{number}", _owner(row), msgspec.json.encode(row).decode())


def _owner(row: dict[str, Any]) -> str:
    for column in ("run_uuid", "run_id", "source_run_id", "experiment_id"):
        if row.get(column) not in (None, ""):
            return str(row[column])
    return ""
