"""What tables and columns a backend database has: read from the database, never taken from its revision.

Half-applied migrations exist, so the revision says what a schema should be, not what it is.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.sql.connect import OTHER, POSTGRESQL, SQLITE, Session

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD = "dc11669786a5"  # the revision of head-*.sql: MLflow 3.17
HEADS = (HEAD, "f4a9b2c7d1e6")  # and of 3.18: these we write into
NEWEST = "3.18"

# These we read and write as experiments, runs and points; all other tables are carried row by row.
MODELLED = frozenset(
    ["experiments", "experiment_tags", "runs", "params", "tags", "metrics", "latest_metrics", "datasets"]
)
# Rows that no other place can use; records.stays tells of them.
LEFT_OUT = frozenset(["alembic_version", "jobs", "job_locks", "scheduler_leases"])

_TABLES = {
    SQLITE: "SELECT m.name, p.name, p.type, p.pk FROM sqlite_master m, pragma_table_info(m.name) p "
    "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY m.name, p.cid",
    POSTGRESQL: "SELECT table_name::text, column_name::text, (data_type || coalesce('(' || "
    "character_maximum_length || ')', ''))::text, 0::bigint FROM information_schema.columns "
    "WHERE table_schema = current_schema() AND is_generated = 'NEVER' ORDER BY table_name, ordinal_position",
}
_INDEXES = {
    SQLITE: "SELECT count(*) FROM pragma_index_list('metrics') l, pragma_index_info(l.name) i "
    "WHERE i.seqno = 0 AND i.name = 'run_uuid'",
    POSTGRESQL: "SELECT 1::bigint",
}
_KEYS = {
    SQLITE: "SELECT m.name, f.\"table\" FROM sqlite_master m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table'",
    POSTGRESQL: "SELECT c.conrelid::regclass::text, c.confrelid::regclass::text FROM pg_constraint c "
    "WHERE c.contype = 'f' AND c.connamespace = current_schema()::regnamespace",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Tables -> columns -> declared types, and whether a run's points can be found without reading them all."""

    tables: Mapping[str, Mapping[str, str]]
    run_index: bool = True
    parents: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def has(self, table: str, column: str = "") -> bool:
        """Whether there is such a table, or such a column of it."""
        return table in self.tables and (not column or column in self.tables[table])

    def length(self, table: str, column: str) -> int | None:
        """How many characters a column is declared to hold."""
        found = re.search(r"\((\d+)\)", self.tables.get(table, {}).get(column, ""))
        return int(found[1]) if found else None

    def others(self) -> list[str]:
        """The tables that are carried row by row, those that others refer to first."""
        names = sorted(set(self.tables) - MODELLED - LEFT_OUT)
        return sorted(names, key=lambda name: (self._depth(name), name))

    def _depth(self, table: str, below: frozenset[str] = frozenset()) -> int:
        above = [one for one in self.parents.get(table, ()) if one not in below and one != table]
        return max((1 + self._depth(one, below | {table}) for one in above), default=0)


def shape(session: Session) -> Shape:
    """What this database has."""
    if session.kind == OTHER:
        return _alchemy_shape(session)
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind, _ in session.rows(_TABLES[session.kind]):
        tables.setdefault(table, {})[column] = kind
    parents: dict[str, set[str]] = {}
    for child, parent in session.rows(_KEYS[session.kind]):
        parents.setdefault(child, set()).add(parent)
    indexed = bool(session.rows(_INDEXES[session.kind])[0][0])
    return Shape(tables, indexed, {child: frozenset(found) for child, found in parents.items()})


def revisions(session: Session, found: Shape) -> list[str]:
    """The schema's revisions as alembic noted them."""
    if not found.has("alembic_version", "version_num"):
        return []
    return [one for (one,) in session.rows(f"SELECT {session.text('version_num')} AS v FROM alembic_version")]


def head_statements(kind: str) -> list[str]:
    """What makes the schema of HEAD, statement by statement."""
    text = files(__package__).joinpath(f"head-{kind}.sql").read_text("utf-8")
    return [one.strip().removesuffix(";") for one in text.partition("\n\n")[2].split(";\n\n")]


def _alchemy_shape(session: Session) -> Shape:
    from sqlalchemy import inspect  # noqa: PLC0415 - only for the databases that ADBC cannot read

    connection = session._connection  # noqa: SLF001 - our own
    if connection.dialect.name in ("mysql", "mariadb"):
        return _mysql_shape(session)  # SQLAlchemy's own reflection is lost in ANSI mode
    inspector = inspect(connection)
    tables = {
        name: {column["name"]: str(column["type"]) for column in inspector.get_columns(name)}
        for name in inspector.get_table_names()
    }
    parents = {name: frozenset(key["referred_table"] for key in inspector.get_foreign_keys(name)) for name in tables}
    return Shape(tables, run_index=True, parents=parents)


def _mysql_shape(session: Session) -> Shape:
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in session.rows(
        "SELECT table_name AS t, column_name AS c, column_type AS k FROM information_schema.columns "
        "WHERE table_schema = database() AND extra NOT LIKE '%GENERATED%' ORDER BY table_name, ordinal_position"
    ):
        tables.setdefault(table, {})[column] = kind
    parents: dict[str, set[str]] = {}
    for child, parent in session.rows(
        "SELECT table_name AS t, referenced_table_name AS p FROM information_schema.key_column_usage "
        "WHERE table_schema = database() AND referenced_table_name IS NOT NULL"
    ):
        parents.setdefault(child, set()).add(parent)
    return Shape(tables, run_index=True, parents={child: frozenset(found) for child, found in parents.items()})
