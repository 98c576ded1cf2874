"""The values of a backend database that name places of artifacts, whatever its schema's age.

    experiments.artifact_location     workspaces.default_artifact_root, .trace_archival_location
    runs.artifact_uri                 logged_models.artifact_location
    model_versions.source, .storage_location
    trace_tags.value of mlflow.artifactLocation and mlflow.trace.archiveLocation

What people wrote (params, tags, sources of datasets) is theirs, and `models:/` and `runs:/` are no places.
"""

# ruff: noqa: S608 - no value from outside is written into SQL

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mlmigrate.adapters.estate import Cell
from mlmigrate.adapters.mlflow.sql.connect import SQLITE, Session, texts
from mlmigrate.adapters.mlflow.sql.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlmigrate.adapters.mlflow.sql.schema import Shape

TRACE_TAGS = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")
NO_PLACES = ("dummy-source", "REDACTED-SOURCE-PATH")  # of prompts, and of versions that were deleted
REFERENCES = ("models:/", "runs:/", "prompts:/")
MOST_KEYS = 3
AT_ONCE = 4_096  # rows that are Python's values at a time

_TEXTS = ("key0", "key1", "key2", "value", "owner", "experiment", "name")
_NUMBERS = ("active", "changed")
_SCHEMA = pa.schema([*((one, pa.large_string()) for one in _TEXTS), *((one, pa.int64()) for one in _NUMBERS)])
_NEVER = -1  # `changed` of what says no time


@dataclass(frozen=True, slots=True)
class Place:
    """A column that names places. What is said below is said of the table `t` and of those that are joined.

    key         the columns of the row's key; one that an old schema has not yet is left out if it is `newer`
    owner       SQL that gives the owner's id, and what stands before it in Cell.owner
    experiment  ... "table.column" of the experiment's id
    names       ... of the name, the first that is not empty
    changed     ... of times, in ms, that are added up
    under_way   ... and the values of it that tell that the owner may go on writing
    joins       (table, alias, condition) of tables that may be missing
    only        a condition on the rows
    """

    table: str
    column: str
    kind: str
    key: tuple[str, ...]
    newer: frozenset[str] = frozenset()
    owner: str = "''"
    experiment: str = ""
    names: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    under_way: tuple[str, tuple[str, ...]] = ("", ())
    joins: tuple[tuple[str, str, str], ...] = ()
    only: str = ""

    def keys(self, shape: Shape) -> tuple[str, ...]:
        """The columns of the key that this database has."""
        return tuple(one for one in self.key if one not in self.newer or shape.has(self.table, one))

    def is_in(self, shape: Shape) -> bool:
        """Whether this database has it."""
        return shape.has(self.table, self.column) and all(shape.has(self.table, one) for one in self.keys(shape))


_RUN_NAME = ("tags", "g", "g.run_uuid = t.run_uuid AND g.\"key\" = 'mlflow.runName'")
_TRACE = ("trace_info", "i", "i.request_id = t.request_id")
_RUN = ("runs", "r", "r.run_uuid = t.run_id")


def _version(column: str) -> Place:
    left_out = [f"t.{column} NOT LIKE '{one}%'" for one in REFERENCES] + [f"t.{column} <> '{one}'" for one in NO_PLACES]
    return Place(
        *("model_versions", column, "version", ("workspace", "name", "version")),
        newer=frozenset(["workspace"]),
        owner="'@version/' || {t.name} || '/' || {t.version}",
        experiment="r.experiment_id",
        names=("t.name",),
        changed=("t.last_updated_time",),
        under_way=("t.status", ("PENDING_REGISTRATION",)),
        joins=(_RUN,),
        only=" AND ".join(left_out),
    )


PLACES = (
    Place(
        *("experiments", "artifact_location", "experiment", ("experiment_id",)),
        experiment="t.experiment_id",
        names=("t.name",),
        changed=("t.last_update_time",),
    ),
    Place("workspaces", "default_artifact_root", "workspace", ("name",), names=("t.name",)),
    Place("workspaces", "trace_archival_location", "workspace", ("name",), names=("t.name",)),
    Place(
        *("runs", "artifact_uri", "run", ("run_uuid",)),
        owner="{t.run_uuid}",
        experiment="t.experiment_id",
        names=("t.name", "g.value"),
        changed=("t.end_time",),
        under_way=("t.status", ("RUNNING", "SCHEDULED")),
        joins=(_RUN_NAME,),
    ),
    Place(
        *("logged_models", "artifact_location", "model", ("model_id",)),
        owner="'@model/' || {t.model_id}",
        experiment="t.experiment_id",
        names=("t.name",),
        changed=("t.last_updated_timestamp_ms",),
        under_way=("t.status", ("1",)),  # PENDING
    ),
    _version("source"),
    _version("storage_location"),
    Place(
        *("trace_tags", "value", "trace", ("key", "request_id")),
        owner="'@trace/' || {t.request_id}",
        experiment="i.experiment_id",
        names=("i.trace_name",),
        changed=("i.timestamp_ms", "i.execution_time_ms"),
        under_way=("i.status", ("IN_PROGRESS",)),
        joins=(_TRACE,),
        only=f't."key" IN ({", ".join(map(repr, TRACE_TAGS))})',
    ),
)


def cells(session: Session, shape: Shape) -> Spool:
    """All values, laid aside one after another: whoever takes them, however slowly, holds up nobody who writes."""
    spool = Spool()
    for number, place in enumerate(PLACES):
        if place.is_in(shape):
            for batch in session.batches(_Query(session, shape, place).sql):
                spool.add(_named(batch, number))
    return spool


def taken(spool: Spool, shape: Shape, *, bounded: bool) -> Iterator[Cell]:
    """What was laid aside, as cells; `bounded`: the database keeps to its columns' declared lengths."""
    parts = (whole.slice(at, AT_ONCE) for whole in spool.batches() for at in range(0, whole.num_rows, AT_ONCE))
    for part in parts:
        columns = [texts(column) for column in part.columns]
        for number, *keys, value, owner, experiment, name, active, changed in zip(*columns, strict=True):
            place = PLACES[number]
            yield Cell(
                *(place.table, tuple(keys[: len(place.keys(shape))]), place.column, value, place.kind),
                owner=owner,
                experiment=experiment,
                name=name,
                active=bool(active),
                changed=None if changed == _NEVER else changed,
                room=shape.length(place.table, place.column) if bounded else None,
            )


def _named(batch: pa.RecordBatch, number: int) -> pa.RecordBatch:
    """The batch in the one schema that all have, with its place's number."""
    typed = [batch.column(field.name).cast(field.type) for field in _SCHEMA]
    return pa.RecordBatch.from_arrays(
        [pa.repeat(pa.scalar(number, pa.int8()), batch.num_rows), *typed], ["place", *_SCHEMA.names]
    )


class _Query:
    """What asks a database of this shape for the values of one place."""

    def __init__(self, session: Session, shape: Shape, place: Place) -> None:
        self._session, self._shape, self._place = session, shape, place
        self._tables = {"t": place.table}
        for table, alias, condition in place.joins:
            self._tables[alias] = table
            if not all(self._has(one) for one in _columns_in(condition)):
                del self._tables[alias]

    @property
    def sql(self) -> str:
        """One row a value, in the order of their keys."""
        place = self._place
        keys = [f"t.{_quoted(one)}" for one in place.keys(self._shape)]
        told = {
            **{f"key{n}": self._session.text(keys[n]) if n < len(keys) else "''" for n in range(MOST_KEYS)},
            "value": self._session.text(f"t.{place.column}"),
            "owner": self._owner(),
            "experiment": self._first((place.experiment,)),
            "name": self._first(place.names),
            "active": self._active(),
            "changed": self._changed(),
        }
        chosen = ", ".join(f"{expression} AS {_quoted(name)}" for name, expression in told.items())
        joined = "".join(
            f" LEFT JOIN {table} {alias} ON {on}" for table, alias, on in place.joins if alias in self._tables
        )
        only = f" AND {place.only}" if place.only else ""
        there = f"t.{place.column} IS NOT NULL AND t.{place.column} <> ''"
        return f"SELECT {chosen} FROM {place.table} t{joined} WHERE {there}{only} ORDER BY {', '.join(keys)}"

    def _owner(self) -> str:
        owner = self._place.owner
        for one in _columns_in(owner):
            owner = owner.replace("{" + one + "}", f"COALESCE({self._session.text(one)}, '')")
        return owner

    def _first(self, columns: tuple[str, ...]) -> str:
        """The first of these that is there and not empty, as text."""
        found = [f"NULLIF({self._session.text(one)}, '')" for one in columns if self._has(one)]
        return f"COALESCE({', '.join(found)}, '')" if found else "''"

    def _active(self) -> str:
        column, values = self._place.under_way
        if not self._has(column):
            return self._session.integer("0")
        among = ", ".join(map(repr, values))
        return self._session.integer(f"CASE WHEN {self._session.text(column)} IN ({among}) THEN 1 ELSE 0 END")

    def _changed(self) -> str:
        first, *others = self._place.changed or ("",)
        if not self._has(first):
            return self._session.integer(str(_NEVER))
        summed = [self._session.integer(first)]
        summed += [f"COALESCE({self._session.integer(one)}, 0)" for one in others if self._has(one)]
        return f"COALESCE({' + '.join(summed)}, {self._session.integer(str(_NEVER))})"

    def _has(self, column: str) -> bool:
        alias, _, name = column.partition(".")
        return alias in self._tables and self._shape.has(self._tables[alias], name.strip('"'))


def _columns_in(sql: str) -> list[str]:
    """The columns "t.name" that a condition or a template names."""
    words = sql.replace("{", " ").replace("}", " ").split()
    return [one for one in words if one[1:2] == "." and one[:1].isalpha()]


def _quoted(name: str) -> str:
    return f'"{name}"'


def bounded(session: Session) -> bool:
    """Whether the database keeps to the lengths that its columns are declared with: SQLite does not."""
    return session.kind != SQLITE
