"""Rows of any table, each value exactly as the database has it, in the words of `objects`.

SQLite gives each value a type of its own, whatever its column was declared as, so every row brings a
word with one letter a column: n(ull), i(nteger), r(eal), t(ext), b(lob).
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL, SQLITE, Session, texts
from mlmigrate.model import Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mlmigrate.adapters.mlflow.objects import Row
    from mlmigrate.adapters.mlflow.sql.schema import Shape

_TRUTH = frozenset(["BOOLEAN", "BOOL", "TINYINT(1)"])
_FLOATS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class Rows:
    """Reads rows; counts the texts that were no Unicode."""

    def __init__(self, session: Session, shape: Shape) -> None:
        self.session, self.shape = session, shape
        self._replaced: Counter[str] = Counter()

    def read(self, table: str, where: str = "1 = 1", hidden: Sequence[str] = (), order: str = "") -> Iterator[Row]:
        """The rows for which `where` holds, without the columns in `hidden`."""
        columns = [one for one in self.shape.tables[table] if one not in hidden]
        rest = f"FROM {quoted(table)} WHERE {where}{f' ORDER BY {order}' if order else ''}"
        if self.session.kind == SQLITE:
            return self._sqlite(table, columns, rest)
        if self.session.kind == POSTGRESQL:
            return self._postgresql(table, columns, rest)
        return self._other(table, columns, rest)

    def losses(self) -> list[Loss]:
        """What could not be read as it was, told once."""
        found = [
            Loss("", f"{count} values of {column}", "hold bytes that are no UTF-8; these are replaced by U+FFFD")
            for column, count in self._replaced.items()
        ]
        self._replaced.clear()
        return found

    def _sqlite(self, table: str, columns: list[str], rest: str) -> Iterator[Row]:
        declared = [self.shape.tables[table][name].upper() for name in columns]
        reals = [at for at, kind in enumerate(declared) if not _exact_as_text(kind)]
        chosen = [" || ".join(f"substr(typeof({quoted(name)}), 1, 1)" for name in columns) + " AS types"]
        chosen += [f"{_as_text(quoted(name), at in reals)} AS t{at}" for at, name in enumerate(columns)]
        chosen += [f"{_as_real(quoted(columns[at]))} AS r{at}" for at in reals]
        for batch in self.session.batches(f"SELECT {', '.join(chosen)} {rest}"):
            if batch.num_rows:
                types = batch.column(0).cast(pa.utf8()).dictionary_encode()
                words = types.dictionary.to_pylist()
                values = []
                for at, (name, kind) in enumerate(zip(columns, declared, strict=True)):
                    real = batch.column(1 + len(columns) + reals.index(at)) if at in reals else None
                    letters = [word[at] for word in words]
                    column = _Column(batch.column(1 + at), real, letters, types.indices, kind)
                    values.append(column.values(lambda column, n=f"{table}.{name}": self._texts(n, column)))
                yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))

    def _texts(self, name: str, column: pa.Array) -> list[Any]:
        try:
            return column.to_pylist()  # type: ignore[no-any-return]
        except UnicodeDecodeError:
            found = texts(column)
            # one that held U+FFFD before is counted too: better one too many
            self._replaced[name] += sum("\ufffd" in one for one in found if one)
            return found

    def _postgresql(self, table: str, columns: list[str], rest: str) -> Iterator[Row]:
        kinds = self.shape.tables[table]
        binary = [one for one in columns if kinds[one] == "bytea"]
        floats = [one for one in columns if kinds[one] in ("double precision", "real")]
        chosen = ", ".join(_postgresql_column(one, kinds[one]) for one in columns)
        for batch in self.session.batches(f"SELECT row_to_json(t)::text AS row FROM (SELECT {chosen} {rest}) t"):
            for text in batch.column(0).to_pylist():
                row: Row = msgspec.json.decode(text)
                for name in binary:
                    row[name] = None if row[name] is None else {"$bytes": row[name].replace("\n", "")}
                for name in floats:
                    value = row[name]
                    if isinstance(value, str):  # NaN and the infinities
                        row[name] = {"$float": value}
                    elif value is not None:
                        row[name] = float(value)  # 1.0 is written as 1
                    elif isinstance(row[name], int):  # JSON writes 1.0 as 1
                        row[name] = float(row[name])
                yield row

    def _other(self, table: str, columns: list[str], rest: str) -> Iterator[Row]:
        truths = [one for one in columns if self.shape.tables[table][one].upper() in _TRUTH]
        for batch in self.session.batches(f"SELECT {', '.join(map(quoted, columns))} {rest}"):
            for found in batch.to_pylist():
                row = {name: plain(value) for name, value in found.items()}
                row.update((name, bool(row[name])) for name in truths if row[name] in (0, 1))
                yield row


class _Column:
    """One column of a batch from SQLite: its texts, its reals, and what tells which of them holds."""

    def __init__(
        self, text: pa.Array, real: pa.Array | None, letters: list[str], codes: pa.Array, declared: str
    ) -> None:
        self.text, self.real, self.letters, self.codes = text, real, letters, codes
        self.truth, self.json = declared in _TRUTH, declared == "JSON"

    def values(self, decode: Any) -> list[Any]:  # noqa: ANN401 - a function of Arrow arrays
        kinds = set(self.letters)
        if kinds == {"t"}:
            return decode(self.text)  # type: ignore[no-any-return]
        found = self._as_they_are(kinds, decode)
        if kinds == {"n"} or "n" not in kinds:
            return found
        absent = [letter == "n" for letter in self.letters]
        return [None if absent[code] else value for code, value in zip(self.codes.to_pylist(), found, strict=True)]

    def _as_they_are(self, kinds: set[str], decode: Any) -> list[Any]:  # noqa: ANN401
        """With whatever stands for null."""
        present = kinds - {"n"}
        if not present:
            return [None] * len(self.text)
        if present == {"t"} or self.json:
            return decode(self.text)  # type: ignore[no-any-return]
        if present == {"i"}:
            numbers = self.text.cast(pa.utf8())
            whole = pc.if_else(pc.equal(numbers, ""), "0", numbers).cast(pa.int64()).to_pylist()
            return [bool(one) if one in (0, 1) else one for one in whole] if self.truth else whole
        if present == {"r"} and self.real is not None:
            return [plain(one) for one in self.real.to_pylist()]
        return self._mixed(decode)

    def _mixed(self, decode: Any) -> list[Any]:  # noqa: ANN401
        reals = self.real.to_pylist() if self.real is not None else [None] * len(self.text)
        rows = zip(self.codes.to_pylist(), decode(self.text), reals, strict=True)
        return [self._one(self.letters[code], text, real) for code, text, real in rows]

    def _one(self, letter: str, text: str, real: float | None) -> object:
        if letter == "i":
            return bool(int(text)) if self.truth and text in ("0", "1") else int(text)
        if letter == "r":
            return plain(float(text) if real is None else real)
        return plain(bytes.fromhex(text)) if letter == "b" else text


def quoted(name: str) -> str:
    """A name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def is_text(declared: str) -> bool:
    """Whether SQLite keeps no real number in a column of this type."""
    return any(word in declared.upper() for word in ("CHAR", "CLOB", "TEXT"))


def plain(value: object) -> object:
    """A value of Python as `objects` writes it."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": _FLOATS[str(value)]}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def value_of(value: object) -> object:
    """The value of Python that `plain` wrote."""
    if isinstance(value, dict) and set(value) == {"$bytes"}:
        return base64.b64decode(value["$bytes"])
    if isinstance(value, dict) and set(value) == {"$float"}:
        return float(value["$float"])
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def _exact_as_text(declared: str) -> bool:
    """Columns of text, of whole numbers, of truth and of JSON hold no real number that text would not tell."""
    return is_text(declared) or "INT" in declared or declared in _TRUTH or declared == "JSON"


def _as_text(column: str, has_real: bool) -> str:
    real = "''" if has_real else f"printf('%!.17g', {column})"
    return (
        f"CASE typeof({column}) WHEN 'null' THEN '' WHEN 'blob' THEN hex({column}) "
        f"WHEN 'real' THEN {real} ELSE CAST({column} AS TEXT) END"
    )


def _as_real(column: str) -> str:
    return f"CASE typeof({column}) WHEN 'real' THEN {column} ELSE 0.0 END"


def _postgresql_column(name: str, kind: str) -> str:
    if kind == "bytea":
        return f"encode({quoted(name)}, 'base64') AS {quoted(name)}"
    if kind in ("json", "jsonb"):
        return f"{quoted(name)}::text AS {quoted(name)}"
    return quoted(name)


def chunks(ids: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    """The ids, some at a time."""
    return (ids[at : at + size] for at in range(0, len(ids), size))
