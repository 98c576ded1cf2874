"""Records meant and records found -> what differs, in little memory: digests are held, never bodies. Pure.

A record made of rows ({table: [row, ...]}) is looked for under its id and compared table by table, by the
columns that the source's rows have: a newer schema has columns that the source did not know.  Any other
record is compared as a whole, whatever its id is in the target.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from mlmigrate.model import Record

Row = Mapping[str, object]
Tables = Mapping[str, Sequence[Row]]
Shape = tuple[tuple[str, frozenset[str]], ...]  # the tables of a record, and the columns of each
_encoded = msgspec.json.Encoder(order="sorted").encode
_DIGEST = 8  # bytes, for one table of one record


class Expected:
    """The records that a target shall have. Some 300 bytes each are held."""

    def __init__(self) -> None:
        self._shapes: dict[Shape, int] = {}
        self._known: list[Shape] = []
        self._trees: dict[tuple[str, str], tuple[int, bytes, str]] = {}  # (kind, id) -> shape, digests, owner
        self._others: dict[str, Counter[tuple[int, bytes]]] = {}  # kind -> (shape, digest)
        self._ids: dict[tuple[str, int, bytes], str] = {}

    def add(self, record: Record) -> None:
        """One more that is meant to be there."""
        body = msgspec.json.decode(record.body)
        if is_rows(body):
            number = self._number(_shape(body))
            self._trees[record.kind, record.id] = number, _digests(body, self._known[number]), record.owner
            return
        number = self._number((("", frozenset(body)),) if isinstance(body, dict) else ())
        digest = _whole(body, self._known[number])
        self._others.setdefault(record.kind, Counter())[number, digest] += 1
        self._ids[record.kind, number, digest] = record.id

    def meet(self, record: Record) -> str:
        """One that is there: takes it off the list; gives what differs, "" for nothing, and for what was not meant."""
        body = msgspec.json.decode(record.body)
        if is_rows(body):
            return self._meet_rows(record, body)
        waiting = self._others.get(record.kind, Counter())
        for number in dict.fromkeys(number for number, _ in waiting):
            at = number, _whole(body, self._known[number])
            if waiting[at] > 0:
                waiting[at] -= 1
                break
        return ""

    def _meet_rows(self, record: Record, body: Tables) -> str:
        meant = self._trees.pop((record.kind, record.id), None)
        if meant is None:
            return ""
        number, digests, _ = meant
        shape = self._known[number]
        found = _digests(body, shape)
        differing = [table for n, (table, _) in enumerate(shape) if _piece(digests, n) != _piece(found, n)]
        known = {table for table, _ in shape}
        differing += [table for table, rows in body.items() if rows and table not in known]
        return f"other {', '.join(differing)}" if differing else ""

    def left(self) -> Iterator[tuple[str, str, str]]:
        """(kind, id, owner) of those that were not met."""
        for (kind, id_), (_, _, owner) in self._trees.items():
            yield kind, id_, owner
        for kind, waiting in self._others.items():
            for (number, digest), n in waiting.items():
                if n > 0:
                    yield kind, self._ids[kind, number, digest], ""

    def _number(self, shape: Shape) -> int:
        number = self._shapes.setdefault(shape, len(self._shapes))
        if number == len(self._known):
            self._known.append(shape)
        return number


def is_rows(body: object) -> bool:
    """Whether a body is made of rows."""
    return isinstance(body, dict) and all(isinstance(rows, list) for rows in body.values())


def _shape(body: Tables) -> Shape:
    return tuple((table, frozenset().union(*rows)) for table, rows in sorted(body.items()) if rows)


def _digests(body: Tables, shape: Shape) -> bytes:
    """A digest of each table of the shape; the order of rows does not count."""
    return b"".join(_rows(body.get(table, ()), columns) for table, columns in shape)


def _rows(rows: Sequence[Row], columns: frozenset[str]) -> bytes:
    texts = sorted(
        _encoded(row if row.keys() == columns and None not in row.values() else _slim(row, columns)) for row in rows
    )
    return hashlib.blake2b(b"\0".join(texts), digest_size=_DIGEST).digest()


def _slim(row: Row, columns: frozenset[str]) -> Row:
    """Null and what is not said are one: servers leave out what is null."""
    return {name: value for name, value in row.items() if name in columns and value is not None}


def _piece(digests: bytes, number: int) -> bytes:
    return digests[number * _DIGEST : (number + 1) * _DIGEST]


def _whole(body: object, shape: Shape) -> bytes:
    """A digest of a body that is not made of rows, by the fields that are known."""
    if isinstance(body, dict) and shape:
        body = {name: value for name, value in body.items() if name in shape[0][1]}
    return hashlib.blake2b(msgspec.json.encode(body, order="sorted"), digest_size=16).digest()
