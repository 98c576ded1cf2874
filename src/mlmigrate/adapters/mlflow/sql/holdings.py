"""How a backend database at the current schema holds objects: whole, but for what is told here."""

from __future__ import annotations

import re
from functools import cache

from mlmigrate.adapters.base import Change, Holding
from mlmigrate.adapters.mlflow.objects import IDS, KINDS, ROWS, TYPED_IDS
from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL
from mlmigrate.adapters.mlflow.sql.schema import MODELLED, OWNED, head_statements

PENDING, RUNNING, NEEDS_RECOVERY, CANCELED = 0, 1, 6, 5  # mlflow/entities/_job_status.py
_ELSEWHERE = "belongs to the server that ran the job"

_CHANGES: dict[str, tuple[Change, ...]] = {
    "logged_model": (
        # the target makes it again, from the dataset's name and digest
        Change("logged_model_metrics.dataset_uuid", "names the dataset as it is called here", lost=False),
    ),
    "webhook": (
        Change(
            "webhooks.status", "webhooks arrive disabled, for both servers would call them", "DISABLED",
            unless=("DISABLED",),
        ),
        Change("webhooks.secret", "webhook secrets can be read only by the server that encrypted them"),
    ),
    "gateway_model": (
        Change("model_definitions.secret_id", "secrets can be read only by the server that encrypted them", None),
    ),
    "job": (
        Change(
            "jobs.status", "another server would run the job again: it arrives canceled", CANCELED,
            only=(PENDING, RUNNING, NEEDS_RECOVERY),
        ),
        Change("jobs.token_hash", _ELSEWHERE, None),
        Change("jobs.lease_expires_at", _ELSEWHERE, None),
    ),
}  # fmt: skip

# Rows of the tables that objects and runs are made of, read one by one: what they belonged to is gone at the source.
_ASTRAY = tuple(
    Holding(ROWS + table, "lost", "what the row belongs to is gone, so MLflow cannot reach it")
    for table in sorted(OWNED | MODELLED)
)
HOLDINGS: tuple[Holding, ...] = (
    *(Holding(kind.record, changes=_CHANGES.get(kind.name, ())) for kind in KINDS),
    *_ASTRAY,
)
RECORDS: tuple[str, ...] = (*(kind.record for kind in KINDS), ROWS)


@cache
def column_lengths(kind: str) -> tuple[tuple[str, int], ...]:
    """How much text the columns of the objects' tables hold, ids apart. SQLite holds what it is given."""
    if kind != POSTGRESQL:
        return ()
    tables = {table for one in KINDS for table in one.tables}
    found = []
    for statement in head_statements(kind):
        table = re.match(r"CREATE TABLE (\w+) ", statement)
        if table is not None and table[1] in tables:
            columns = re.findall(r'^\s+"?(\w+)"? character varying\((\d+)\)', statement, re.MULTILINE)
            found += [(f"{table[1]}.{column}", int(most)) for column, most in columns if not _is_id(table[1], column)]
    return tuple(found)


def _is_id(table: str, column: str) -> bool:
    """Whether a column names something: an id that is cut names nothing, so it is refused rather than cut."""
    typed = {one for _, one in TYPED_IDS.get(table, ())}
    return column in typed or column.endswith(("_id", "_uuid")) or f"{table}.{column}" in IDS
