"""Many values of a backend database changed at once: staged in a temporary table, compared, then set."""

# ruff: noqa: S608 - no value from outside is written into SQL

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mlmigrate.adapters.mlflow.sql.cells import MOST_KEYS, PLACES, TRACE_TAGS, Place
from mlmigrate.adapters.mlflow.sql.connect import OTHER, Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlmigrate.adapters.estate import Edit
    from mlmigrate.adapters.mlflow.sql.schema import Shape

AT_ONCE = 20_000
WORKSPACE = "default"  # what a schema with workspaces puts all that came before into
_STAGE = "mlmigrate_edits"
_NUMBERS = frozenset(["experiment_id", "version"])  # key columns that are numbers
_NUMBER = re.compile(r"-?\d{1,18}")
_PLACES = {(place.table, place.column): place for place in PLACES}


def make(session: Session, shape: Shape, edits: Iterable[Edit]) -> list[Edit]:
    """Makes the edits; gives those that were not made, for another value stands there or none."""
    missed: list[Edit] = []
    for batch in _batches(edits):
        groups: dict[tuple[str, str], list[Edit]] = {}
        for edit in batch:
            groups.setdefault((edit.table, edit.column), []).append(edit)
        for at, group in groups.items():
            place = _PLACES.get(at)
            known = place is not None and place.is_in(shape)
            making = _MakingInMySQL if session.kind == OTHER else _Making
            missed += making(session, shape, place).make(group) if place is not None and known else group
    return missed


def _batches(edits: Iterable[Edit]) -> Iterator[list[Edit]]:
    """Some edits at once, none of a value that another one of them changes."""
    batch: dict[tuple[str, tuple[str, ...], str], Edit] = {}
    for edit in edits:
        at = (edit.table, edit.key, edit.column)
        if at in batch or len(batch) == AT_ONCE:
            yield list(batch.values())
            batch = {}
        batch[at] = edit
    yield list(batch.values())


@dataclass(frozen=True, slots=True)
class _Making:
    """Edits of one column, in the making."""

    session: Session
    shape: Shape
    place: Place

    def make(self, edits: list[Edit]) -> list[Edit]:
        keys = [self._key(edit) for edit in edits]
        staged = [number for number, key in enumerate(keys) if key is not None]
        missed = {number for number, key in enumerate(keys) if key is None}
        if staged:
            self._stage(staged, [keys[number] or () for number in staged], edits)
            missed |= self._others()
            self._set()
            self._drop()
        return [edits[number] for number in sorted(missed)]

    def _key(self, edit: Edit) -> tuple[str, ...] | None:
        """The edit's key as this database has it; None when no row of it can be meant."""
        columns, key = self.place.keys(self.shape), edit.key
        if "workspace" in columns and len(key) == len(columns) - 1:
            key = (WORKSPACE, *key)  # it was taken before the database had workspaces
        if len(key) != len(columns) or not all(map(_storable, (*key, edit.old, edit.new))):
            return None
        numbers = [one for column, one in zip(columns, key, strict=True) if column in _NUMBERS]
        if not all(map(_NUMBER.fullmatch, numbers)):
            return None
        return key if self.place.table != "trace_tags" or key[0] in TRACE_TAGS else None

    def _stage(self, numbers: list[int], keys: list[tuple[str, ...]], edits: list[Edit]) -> None:
        columns = {f"k{n}": [key[n] if n < len(key) else "" for key in keys] for n in range(MOST_KEYS)}
        texts = {"was": [edits[n].old for n in numbers], "becomes": [edits[n].new for n in numbers]}
        named = {name: pa.array(values, pa.string()) for name, values in (columns | texts).items()}
        self._ingest(pa.table({"n": pa.array(numbers, pa.int64()), **named}))

    def _ingest(self, staged: pa.Table) -> None:
        self.session.ingest(_STAGE, staged, temporary=True)

    def _drop(self) -> None:
        self.session.execute(f"DROP TABLE {_STAGE}")

    def _same(self, column: str) -> str:
        """Whether the old value still stands, letter for letter."""
        return f"{self.session.text(f't.{column}')} = e.was"

    def _others(self) -> set[int]:
        """The edits whose row is gone, or holds another value by now."""
        table, column = self.place.table, self.place.column
        sql = f"SELECT e.n FROM {_STAGE} e LEFT JOIN {table} t ON {self._same_key()} AND {self._same(column)}"
        return {number for (number,) in self.session.rows(f"{sql} WHERE t.{column} IS NULL")}

    def _set(self) -> None:
        table, column = self.place.table, self.place.column
        where = f"{self._same_key()} AND {self._same(column)}"
        self.session.execute(f"UPDATE {table} AS t SET {column} = e.becomes FROM {_STAGE} e WHERE {where}")

    def _same_key(self) -> str:
        """The staged key is the row's: compared as the column's own type is, so that an index finds it."""
        columns = enumerate(self.place.keys(self.shape))
        given = [(f't."{one}"', f"e.k{n}", one in _NUMBERS) for n, one in columns]
        return " AND ".join(
            f"{column} = {self.session.integer(staged) if number else staged}" for column, staged, number in given
        )


class _MakingInMySQL(_Making):
    """The same in MySQL and MariaDB, whose texts are equal whatever their case and need a type to be found by."""

    __slots__ = ()

    def _ingest(self, staged: pa.Table) -> None:
        keys = [f"k{n}" for n in range(len(self.place.keys(self.shape)))]
        like = [f't."{one}" AS {key}' for one, key in zip(self.place.keys(self.shape), keys, strict=True)]
        like += [f"t.{self.place.column} AS {one}" for one in ("was", "becomes")]
        empty = f"SELECT CAST(0 AS SIGNED) AS n, {', '.join(like)} FROM {self.place.table} t WHERE 1 = 0"
        self.session.execute(f"CREATE TEMPORARY TABLE {_STAGE} AS {empty}")
        self.session.ingest(_STAGE, staged.select(["n", *keys, "was", "becomes"]), temporary=True)

    def _key(self, edit: Edit) -> tuple[str, ...] | None:
        room = self.shape.length(self.place.table, self.place.column)
        return None if room is not None and len(edit.old) > room else super()._key(edit)

    def _drop(self) -> None:
        self.session.execute(f"DROP TEMPORARY TABLE {_STAGE}")  # without that word it would commit

    def _same(self, column: str) -> str:
        return f"CAST(t.{column} AS BINARY) = CAST(e.was AS BINARY)"

    def _set(self) -> None:
        table, column = self.place.table, self.place.column
        where = f"{self._same_key()} AND {self._same(column)}"
        self.session.execute(f"UPDATE {table} t JOIN {_STAGE} e ON {where} SET t.{column} = e.becomes")


def _storable(text: str) -> bool:
    """Whether a database can hold a text: no character that is none, and no end of a C string."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
