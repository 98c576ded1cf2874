"""What tables and columns a backend database has: read from the database, never taken from its revision.

Half-applied migrations exist, so the revision says what a schema should be, not what it is.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.objects import KINDS
from mlmigrate.adapters.mlflow.sql.connect import OTHER, POSTGRESQL, SQLITE, Session
from mlmigrate.model import Loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HEAD = "dc11669786a5"  # the revision of head-*.sql: MLflow 3.17
HEADS = (HEAD, "f4a9b2c7d1e6")  # and of 3.18: these we write into
NEWEST = "3.18"

# These we read and write as experiments, runs and points.
MODELLED = frozenset(
    ["experiments", "experiment_tags", "runs", "params", "tags", "metrics", "latest_metrics", "datasets"]
)
# These are read as the objects of KINDS, all others row by row.
OWNED = frozenset(table for kind in KINDS for table in kind.tables)
_WORK = "are the server's own work under way, and stay with it"
_SUMS = "are sums that a server keeps to be faster and makes again from the traces, and stay with it"
# Rows that no other place can use, and why.
LEFT_OUT: Mapping[str, str] = {
    "alembic_version": "",  # the schema's own
    "job_locks": _WORK,
    "scheduler_leases": _WORK,
    "secrets": "secrets can be read only by the server that encrypted them",
    "sql_trace_metric_daily_rollups": _SUMS,
    "sql_span_cost_daily_rollups": _SUMS,
    "sql_assessment_daily_rollups": _SUMS,
    "sql_trace_rollup_rebuild_queue": _SUMS,
}
# Columns that no other place can use, and why.
SECRETS: Mapping[str, tuple[str, str]] = {
    "webhooks": ("secret", "webhook secrets can be read only by the server that encrypted them"),
    "jobs": ("token_hash", "is what a worker under way shows to the server that started it"),
}
_TMP = "_alembic_tmp_"  # how a migration of SQLite calls the table that is to take the place of another
_REVISION = re.compile(r"[0-9a-f]{12,13}")  # as MLflow's own are
# Every revision of MLflow's, up to 3.18: a database that names another one is newer, or not MLflow's.
_REVISIONS = (
    "451aebb31d03 90e64c465722 181f10493468 df50e92ffc5e 7ac759974ad8 89d4b8295536 2b4d017a5e9b cfd24bdc0731 "
    "0a8213491aaa 728d730b5ebd 27a6a02d2cf1 84291f40a231 a8c4a736bde6 39d1c3be5f05 c48cb773bb87 bd07f7e963c5 "
    "0c779009ac13 cc1f77228345 97727af70f4d 3500859a5d39 7f2a7d5fae7d 2d6e25af4d3e acf3f17fdcc7 867495a8f9d4 "
    "5b0e9adcef9c 4465047574b1 f5a4f2784254 0584bdc529eb 400f98739977 6953534de441 bda7b8c39065 cbc13b556ace "
    "770bee3ae1dd a1b2c3d4e5f6 de4033877273 1a0cddfcaa16 534353b11cbc 71994744cf8e 3da73c924c2f bf29a5ff90ea "
    "1bd49d398cd23 b7c8d9e0f1a2 5d2d30f0abce c9d4e5f6a7b8 2c33131f4dae d3e4f5a6b7c8 d0e1f2a3b4c5 c8d9e0f1a2b3 "
    "1b5f0d9ad7c1 e1f2a3b4c5d6 76601a5f987d c3d6457b6d8a a5b4c3d2e1f0 ae8bbe7743c9 7d34483879f0 da6fb0208061 "
    "89d3d66ed43f b7e4c1a90f23 a8b9c0d1e2f3 c1d2e3f4a5b6 c3d9e7f1a2b4 6f8d9c3b2a1e 1971f2d9a75b 17e22815139b "
    "b7e2c1a4d9f3 75868b020152 dc11669786a5 8b6ad64cb8f5 e7d1f4b2a9c6 f4a9b2c7d1e6 "
)
REVISIONS = frozenset(_REVISIONS.split())

_TABLES = {
    SQLITE: "SELECT m.name, p.name, p.type, p.pk FROM sqlite_master m, pragma_table_info(m.name) p "
    "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY m.name, p.cid",
    POSTGRESQL: "SELECT table_name::text, column_name::text, (data_type || coalesce('(' || "
    "character_maximum_length || ')', ''))::text, (EXISTS (SELECT 1 FROM pg_constraint k WHERE k.contype = 'p' "
    "AND k.connamespace = current_schema()::regnamespace AND k.conrelid = to_regclass(quote_ident(table_name))))"
    "::int::bigint FROM information_schema.columns "
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
    """What tables and columns there are.

    tables     table -> column -> declared type
    run_index  whether a run's points can be found without reading them all
    parents    table -> the tables that its rows refer to, as declared
    keyless    tables without a primary key: a row may be there twice
    """

    tables: Mapping[str, Mapping[str, str]]
    run_index: bool = True
    parents: Mapping[str, frozenset[str]] = field(default_factory=dict)
    keyless: frozenset[str] = frozenset()

    def has(self, table: str, column: str = "") -> bool:
        """Whether there is such a table, or such a column of it."""
        return table in self.tables and (not column or column in self.tables[table])

    def length(self, table: str, column: str) -> int | None:
        """How many characters a column is declared to hold."""
        found = re.search(r"\((\d+)\)", self.tables.get(table, {}).get(column, ""))
        return int(found[1]) if found else None

    def others(self) -> list[str]:
        """The tables that are carried row by row, those that others refer to first."""
        names = sorted(set(self.tables) - MODELLED - OWNED - LEFT_OUT.keys())
        return sorted(names, key=lambda name: (self._depth(name), name))

    def _depth(self, table: str, below: frozenset[str] = frozenset()) -> int:
        above = [one for one in self.parents.get(table, ()) if one not in below and one != table]
        return max((1 + self._depth(one, below | {table}) for one in above), default=0)


def shape(session: Session) -> Shape:
    """What this database has."""
    if session.kind == OTHER:
        return _alchemy_shape(session)
    tables: dict[str, dict[str, str]] = {}
    keyed: set[str] = set()
    for table, column, kind, key in session.rows(_TABLES[session.kind]):
        tables.setdefault(table, {})[column] = kind
        keyed |= {table} if key else set()
    parents: dict[str, set[str]] = {}
    for child, parent in session.rows(_KEYS[session.kind]):
        parents.setdefault(child, set()).add(parent)
    indexed = bool(session.rows(_INDEXES[session.kind])[0][0])
    found = {child: frozenset(above) for child, above in parents.items()}
    return Shape(tables, indexed, found, frozenset(tables.keys() - keyed))


def revisions(session: Session, found: Shape) -> list[str]:
    """The schema's revisions as alembic noted them."""
    if not found.has("alembic_version", "version_num"):
        return []
    return [one for (one,) in session.rows(f"SELECT {session.text('version_num')} AS v FROM alembic_version")]


def oddities(session: Session, found: Shape) -> Iterator[Loss]:
    """What is strange about the schema: a migration that stopped half-way, a version that nobody knows."""
    named = revisions(session, found)
    if not named:
        why = "it was made by hand, or a migration stopped: what is there is read"
        yield Loss("", "the schema names no revision", why)
    if len(named) > 1:
        yield Loss("", f"the schema names {len(named)} revisions", "a migration stopped: what is there is read")
    for one in named:
        if one not in REVISIONS:
            shown = one if _REVISION.fullmatch(one) else repr(one[:40])
            why = f"is none of MLflow's up to {NEWEST}: what is there is read, tables that are not known row by row"
            yield Loss("", f"revision {shown} of the schema", why)
    for table in sorted(one for one in found.tables if one.startswith(_TMP)):
        yield Loss("", f"table {table}", "was left by a migration that stopped; it is carried row by row")
    if HEAD in named:
        yield from _missing(found)


def _missing(found: Shape) -> Iterator[Loss]:
    why = f"is not there, though revision {HEAD} has it: a migration stopped, or somebody took it away"
    for table, columns in head_columns().items():
        if table not in found.tables:
            yield Loss("", f"table {table}", why)
        else:
            yield from (Loss("", f"column {table}.{one}", why) for one in columns if one not in found.tables[table])


def head_columns() -> dict[str, list[str]]:
    """The tables of HEAD and their columns."""
    with closing(sqlite3.connect(":memory:")) as made:
        for statement in head_statements(SQLITE):
            made.execute(statement)
        found: dict[str, list[str]] = {}
        for table, column, *_ in made.execute(_TABLES[SQLITE]):
            found.setdefault(table, []).append(column)
        return found


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
        name: {one["name"]: str(one["type"]) for one in inspector.get_columns(name) if "computed" not in one}
        for name in inspector.get_table_names()
    }
    parents = {name: frozenset(key["referred_table"] for key in inspector.get_foreign_keys(name)) for name in tables}
    keyless = frozenset(name for name in tables if not inspector.get_pk_constraint(name)["constrained_columns"])
    return Shape(tables, run_index=True, parents=parents, keyless=keyless)


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
