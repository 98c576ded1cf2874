"""How a backend database at the current schema holds objects: whole, but for what is told here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlmigrate.adapters.base import Change, Holding
from mlmigrate.adapters.mlflow.objects import KINDS, ROWS

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.sql.schema import Shape

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

HOLDINGS: tuple[Holding, ...] = tuple(Holding(kind.record, changes=_CHANGES.get(kind.name, ())) for kind in KINDS)
RECORDS: tuple[str, ...] = (*(kind.record for kind in KINDS), ROWS)


def column_lengths(shape: Shape) -> tuple[tuple[str, int], ...]:
    """How much text the columns of the objects' tables are declared to hold."""
    tables = dict.fromkeys(table for kind in KINDS for table in kind.tables)
    lengths = (
        (f"{table}.{column}", shape.length(table, column)) for table in tables for column in shape.tables.get(table, ())
    )
    return tuple((at, most) for at, most in lengths if most is not None)
