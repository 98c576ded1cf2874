"""How the objects of `objects.KINDS` lie in the tables of one database, whatever revision it is of.

A kind can be read where its own table has the columns that tell one object from another.  Each row of a
table that kinds own is either part of an object, or it remains: what it belongs to is gone.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.objects import KINDS, MARKS, Child, Kind, kinds_of
from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL
from mlmigrate.adapters.mlflow.sql.rows import quoted
from mlmigrate.model import OURS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlmigrate.adapters.mlflow.sql.connect import Session
    from mlmigrate.adapters.mlflow.sql.schema import Shape

ALL = "1 = 1"
_WORKSPACE = "workspace"
_OF_RUNS = ("params", "tags", "metrics", "latest_metrics")


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one table that belong to an object, by (column here, column of the object's own table)."""

    table: str
    keys: tuple[tuple[str, str], ...]
    where: str


@dataclass(frozen=True, slots=True)
class Own:
    """A kind's own table as it is here.

    link   the column whose values objects are looked for by, some at a time
    key    the columns that tell one object from another
    where  which rows are objects
    """

    kind: Kind
    link: str
    key: tuple[str, ...]
    where: str
    parts: tuple[Part, ...]

    @property
    def table(self) -> str:
        """The kind's own table."""
        return self.kind.table


class Layout:
    """Which kinds a database has, and where."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._own = [own for kind in KINDS if (own := self._own_of(kind)) is not None]

    def group(self, group: str) -> Iterator[Own]:
        """The kinds of a group, each table once: models and prompts are rows of one."""
        tables: set[str] = set()
        wanted = {kind.name for kind in kinds_of(group)}
        for own in self._own:
            if own.kind.name in wanted and own.table not in tables:
                tables.add(own.table)
                yield own

    def others(self) -> list[str]:
        """Tables that no kind owns, and those of kinds that cannot be read here."""
        read = {own.table for own in self._own} | {part.table for own in self._own for part in own.parts}
        tables = {table for kind in KINDS for table in kind.tables if self.shape.has(table)}
        unknown = [table for table in self.shape.others() if table != "input_tags" or not self.shape.has("inputs")]
        return [*unknown, *sorted(tables - read - {"datasets", "inputs"})]

    def shared(self) -> list[str]:
        """Tables whose rows may have lost what they belong to."""
        found = dict.fromkeys(part.table for own in self._own for part in own.parts)
        return [*found, *(one for one in ("inputs", "input_tags") if self.shape.has(one) and one not in found)]

    def remains(self, session: Session, table: str) -> str:
        """A condition for the rows that belong to nothing; "" where there can be none."""
        held = [self._belongs(own, part) for own in self._own for part in own.parts if part.table == table]
        if table in _OF_RUNS:
            held.append(self._of_a_run("run_uuid"))
        elif table == "inputs":
            held.append(self._read_by_runs())
        elif table == "input_tags" and self.shape.has("inputs"):
            held.append(f"input_uuid IN (SELECT input_uuid FROM inputs WHERE {self._read_by_runs()})")
        elif session.kind == POSTGRESQL and self._kept_by_keys(table):
            return ""
        return f"NOT COALESCE({' OR '.join(f'({one})' for one in held)}, FALSE)" if held else ""

    def unmarked(self, table: str, alias: str = "") -> str:
        """A condition for rows that are not ours."""
        column = MARKS.get(table, "")
        if not self.shape.has(table, column or "-"):
            return ALL
        return f"substr(COALESCE({alias}{quoted(column)}, ''), 1, {len(OURS)}) <> '{OURS}'"

    def _own_of(self, kind: Kind) -> Own | None:
        link = kind.children[0].keys[-1][1] if kind.children else _single(kind.key)
        needed = {*kind.key, link, *([kind.experiment] if kind.experiment else [])} - {_WORKSPACE}
        if not all(self.shape.has(kind.table, one) for one in needed):
            return None
        key = tuple(one for one in kind.key if self.shape.has(kind.table, one))
        parts = tuple(part for child in kind.children if (part := self._part(kind, child)) is not None)
        return Own(kind, link, key, {"dataset": self._unread, "workspace": self._made}.get(kind.name, _all)(), parts)

    def _part(self, kind: Kind, child: Child) -> Part | None:
        needed = {here for here, _ in child.keys if here != _WORKSPACE} | {column for column, _ in child.where}
        if not all(self.shape.has(child.table, one) for one in needed):
            return None
        has = self.shape.has
        keys = tuple((here, there) for here, there in child.keys if has(child.table, here) and has(kind.table, there))
        return Part(child.table, keys, " AND ".join(_one_of(column, values) for column, values in child.where) or ALL)

    def _belongs(self, own: Own, part: Part) -> str:
        here = ", ".join(quoted(one) for one, _ in part.keys)
        there = ", ".join(quoted(one) for _, one in part.keys)
        return f"{part.where} AND ({here}) IN (SELECT {there} FROM {quoted(own.table)})"

    def _kept_by_keys(self, table: str) -> bool:
        """Whether the database itself lets no row lose what it belongs to."""
        above = self.shape.parents.get(table, frozenset())
        owners = [own for own in self._own if any(part.table == table for part in own.parts)]
        return bool(above) and all(above <= set(own.kind.tables) for own in owners)

    def _of_a_run(self, column: str) -> str:
        return f"{column} IN (SELECT run_uuid FROM runs)" if self.shape.has("runs", "run_uuid") else "FALSE"

    def _read_by_runs(self) -> str:
        return f"source_type = 'DATASET' AND destination_type = 'RUN' AND {self._of_a_run('destination_id')}"

    def _made(self) -> str:
        """Workspaces that somebody made: every schema brings the one that is called "default"."""
        own = [
            f"{quoted(one)} IS NOT NULL"
            for one in self.shape.tables["workspaces"]
            if one not in ("name", "description")
        ]
        return " OR ".join(["(name <> 'default'", *own]) + ")"

    def _unread(self) -> str:
        """Datasets that no run reads: the others travel with their runs."""
        if not self.shape.has("inputs") or not self.shape.has("datasets", "dataset_uuid"):
            return ALL
        read = f"SELECT source_id FROM inputs WHERE {self._read_by_runs()}"
        return f"NOT COALESCE(dataset_uuid IN ({read}), FALSE)"


def _all() -> str:
    return ALL


def _single(key: Sequence[str]) -> str:
    return "name" if "name" in key else key[-1]


def _one_of(column: str, values: Sequence[str]) -> str:
    return f"{quoted(column)} IN ({texts_of(values)})"


def texts_of(values: Sequence[str]) -> str:
    """Words of our own as SQL takes them."""
    return ", ".join(f"'{one}'" for one in values)
