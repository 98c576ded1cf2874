"""Our values as rows of tables, and back. Pure.

Parquet and JSON hold Unicode only; a name read from a disk may hold bytes that are none, as lone
surrogates.  In every text of an archive these are written as U+241B and four hex digits, and so is
U+241B itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.archive.layout import SCHEMAS, sha256_of
from mlmigrate.errors import BadData
from mlmigrate.model import NAMES, DatasetInput, Experiment, Record, Run, Value

ESCAPE = "\u241b"
_SPECIAL = re.compile("[\u241b\ud800-\udfff]")
_ESCAPED = re.compile("\u241b(241b|d[89a-f][0-9a-f]{2})")
_DECIMAL_BITS = 13_000  # Python reads and writes decimals of up to 4,300 digits
Row = tuple[Any, ...]
T = TypeVar("T")


def escape(text: str) -> str:
    """`text` as it is written in an archive."""
    return _SPECIAL.sub(lambda found: f"{ESCAPE}{ord(found[0]):04x}", text)


def unescape(text: str) -> str:
    """`text` as it was before `escape`."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if ESCAPE in text else text


def rows_of(table: pa.Table) -> Iterator[Row]:
    """The rows of a table, texts unescaped."""
    for batch in table.to_batches(max_chunksize=10_000):
        yield from zip(*(_plain(batch.column(field.name), field.type) for field in batch.schema), strict=True)


def table_of(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """A table of these rows. Raises BadData for an integer that 64 bits cannot hold."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [_array(values, field) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    try:
        if pa.types.is_map(field.type):
            return pa.array([[(escape(a), escape(b)) for a, b in value.items()] for value in values], field.type)
        if field.type == pa.utf8():
            return _texts(values)
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise BadData(f"A value of {field.name!r} does not fit an archive: {error}.") from error


def _texts(values: Sequence[str | None]) -> pa.Array:
    try:
        array = pa.array(values, pa.utf8())
    except UnicodeEncodeError:
        array = None
    if array is None or pc.any(pc.match_substring(array, ESCAPE)).as_py():
        return pa.array([None if value is None else escape(value) for value in values], pa.utf8())
    return array


def _plain(column: pa.Array, kind: pa.DataType) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if pa.types.is_map(kind):
        return [{unescape(name): unescape(text) for name, text in value} for value in values]
    if kind == pa.utf8() and pc.any(pc.match_substring(column, ESCAPE)).as_py():
        return [None if value is None else unescape(value) for value in values]
    return values


def escaped_points(table: pa.Table) -> pa.Table:
    """The points with U+241B escaped in their names."""
    return _names(table, lambda names: pc.replace_substring(names, ESCAPE, ESCAPE + "241b"))


def unescaped_points(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The points as they were before `escaped_points`."""
    return _names(batch, lambda names: pc.replace_substring(names, ESCAPE + "241b", ESCAPE))


def _names(given: Any, change: Callable[[pa.Array], pa.Array]) -> Any:  # noqa: ANN401  a table or a batch
    for at, field in enumerate(given.schema):
        if field.type == NAMES:
            column = given.column(at)
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            if any(pc.any(pc.match_substring(chunk.dictionary, ESCAPE)).as_py() for chunk in chunks):
                changed = [pa.DictionaryArray.from_arrays(one.indices, change(one.dictionary)) for one in chunks]
                whole = changed[0] if column is chunks[0] else pa.chunked_array(changed)
                given = given.set_column(at, field, whole)
    return given


def run_row(run: Run) -> Row:
    """A row of the table `runs`."""
    return (
        run.id,
        run.experiment,
        run.name,
        run.origin,
        run.stamp,
        run.status,
        run.status_word,
        run.start,
        run.end,
        run.user,
        run.deleted,
        run.deleted_at,
        run.artifact_uri,
    )


def attribute_rows(run: Run) -> Iterator[Row]:
    """Rows of the table `attributes`."""
    for name, value in run.params.items():
        yield (run.id, "param", name, *typed(value))
    for role, texts in (("tag", run.tags), ("system", run.system)):
        for name, text in texts.items():
            yield run.id, role, name, "str", text


def input_rows(run: Run) -> Iterator[Row]:
    """Rows of the table `inputs`."""
    for one in run.inputs:
        yield run.id, one.name, one.digest, one.source_type, one.source, one.schema, one.profile, one.tags


def record_row(record: Record, run: str | None) -> Row:
    """A row of the table `records`; `run` is None for a record that belongs to no run."""
    return run, record.kind, record.id, record.owner, record.body


def experiment_row(one: Experiment) -> Row:
    """A row of the table `experiments`."""
    return one.id, one.name, one.tags, one.created, one.updated, one.deleted, one.artifact_root


def experiment_of(row: Row) -> Experiment:
    """The experiment of a row."""
    return Experiment(*row)


def record_of(row: Row) -> Record:
    """The record of a row."""
    return Record(*row[1:])


def runs_of(
    runs: Iterable[Row], attributes: Iterable[Row], inputs: Iterable[Row], records: Iterable[Row]
) -> Iterator[Run]:
    """The runs, put together again from the rows of four tables."""
    params, tags, system = (dict[str, dict[str, Any]]() for _ in range(3))
    roles = {"param": params, "tag": tags, "system": system}
    for run, role, name, kind, text in attributes:
        if role not in roles:
            raise BadData(f"The archive holds an attribute of the role {role!r:.20}, which nobody knows.")
        value = text if kind == "str" and text is not None else untyped(kind, text)
        roles[role].setdefault(run, {})[name] = value
    given = _by_run(inputs, lambda row: DatasetInput(*row[1:]))
    kept = _by_run(records, record_of)
    for row in runs:
        id_ = row[0]
        yield Run(
            **dict(zip(SCHEMAS["runs"].names, row, strict=True)),
            params=params.get(id_, {}),
            tags=tags.get(id_, {}),
            system=system.get(id_, {}),
            inputs=tuple(given.get(id_, ())),
            records=tuple(kept.get(id_, ())),
        )


def _by_run(rows: Iterable[Row], make: Callable[[Row], T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(make(row))
    return found


def typed(value: Value) -> tuple[str, str | None]:  # noqa: PLR0911  one for each type
    """A param's value as its type and a text that gives back exactly it."""
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "bool", "true" if value else "false"
    if isinstance(value, int):
        return "int", str(value) if value.bit_length() < _DECIMAL_BITS else hex(value)
    if isinstance(value, float):
        return "float", repr(float(value))
    if isinstance(value, datetime):
        return "datetime", value.isoformat()
    if isinstance(value, frozenset):
        return "set", json.dumps(sorted(value))
    return "str", value


_READERS: dict[str, Callable[[str], Value]] = {
    "str": lambda text: text,
    "bool": lambda text: {"true": True, "false": False}[text],
    "int": lambda text: int(text, 16 if "x" in text else 10),
    "float": float,
    "datetime": datetime.fromisoformat,
    "set": lambda text: frozenset(json.loads(text)),
}


def untyped(kind: str, text: str | None) -> Value:
    """The value of this type and text. Raises BadData."""
    if kind == "null":
        return None
    try:
        return _READERS[kind](text or "")
    except (KeyError, ValueError) as error:
        raise BadData(f"The archive holds {text!r:.80} as a {kind!r:.20}, which it is not.") from error


def fingerprint(experiment: Experiment) -> str:
    """What tells whether an experiment is as it was."""
    fields = asdict(experiment) | {"tags": sorted(experiment.tags.items())}
    return sha256_of(json.dumps(fields, sort_keys=True).encode())


def stamped(run: Run, stamp: str) -> Run:
    """The run with this stamp."""
    return run if run.stamp == stamp else replace(run, stamp=stamp)
