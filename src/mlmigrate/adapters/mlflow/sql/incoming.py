"""Rows of other tables written into a backend database; what is there already stays.

Rows that we brought ourselves earlier are brought up to date.
"""

# ruff: noqa: S608 - names come from the target's own schema, values are bound

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.mlflow.objects import BY_NAME, KINDS, PREFIX
from mlmigrate.adapters.mlflow.objects import ROWS as KIND
from mlmigrate.adapters.mlflow.sql import registry
from mlmigrate.adapters.mlflow.sql.arriving import Objects
from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL, Session
from mlmigrate.adapters.mlflow.sql.staging import is_text, value_of
from mlmigrate.model import STAMP_TAG, Loss, Record, RunRef

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.sql.target import DatabaseTarget

_AT_ONCE = 500  # rows a statement
NAMED = frozenset(f"{PREFIX}{name}" for name in registry.KINDS)  # kinds that are found by name
_ESTATE = frozenset(kind.group for kind in KINDS if not kind.experiment)  # refs of objects with a table's name
Batches = Callable[[], Iterator[pa.RecordBatch]]  # of columns kind and body
_Chunk = tuple[str, list[str], list[tuple[Any, ...]]]  # table, columns that the target has, rows
_MODEL_METRICS = "logged_model_metrics"
# a dataset has another id here: its name and digest tell which it is
_SAME = (
    "FROM datasets d WHERE d.experiment_id = logged_model_metrics.experiment_id "
    "AND d.name = logged_model_metrics.dataset_name AND d.digest = logged_model_metrics.dataset_digest"
)
_RELINK = (
    f"UPDATE logged_model_metrics SET dataset_uuid = (SELECT d.dataset_uuid {_SAME}) WHERE EXISTS (SELECT 1 {_SAME} "
    "AND d.dataset_uuid <> logged_model_metrics.dataset_uuid)"
)
_MARK = (
    'INSERT INTO experiment_tags ("key", value, experiment_id) SELECT CAST($1 AS text), CAST($2 AS text), '
    "min(experiment_id) FROM experiments HAVING count(*) > 0 "
    'ON CONFLICT ("key", experiment_id) DO UPDATE SET value = excluded.value'
)
_LINKED = ("source", "destination")  # entity_associations name an experiment by type and id


def write(
    target: DatabaseTarget,
    session: Session,
    batches: Batches,
    refs: Sequence[RunRef],
    known: Mapping[str, object],
    losses: list[Loss],
) -> None:
    """Writes objects and rows in the session's transaction, and notes that what `refs` stand for arrived.

    `batches` gives them, as often as wanted; `known` has the origins that came here before.
    """
    _write_objects(target, session, batches, refs, known, losses)
    insert = _insert_postgresql if session.kind == POSTGRESQL else _insert_sqlite
    for table, columns, rows in _chunks(target, _plain(batches), losses):
        ours = any(ref.id == f"@{table}" and ref.origin in known for ref in refs)
        insert(session, target.shape.tables[table], (table, columns, rows), losses, ours=ours)
        if table == _MODEL_METRICS:
            session.execute(_RELINK)
    for ref in refs:
        session.execute(_MARK, (f"{STAMP_TAG} {ref.origin}", ref.stamp))


def before(refs: Sequence[RunRef], known: Mapping[str, object]) -> frozenset[str]:
    """The tables ("@table") that came from the same stores as `refs`, when tables still came row by row."""
    stores = {ref.origin.partition("@")[2].partition(":")[2] for ref in refs}
    parts = (origin.partition("@")[2].partition(":") for origin in known if origin.startswith("mlflow:@"))
    return frozenset(f"@{table}" for table, _, store in parts if store in stores and table not in _ESTATE)


def _write_objects(
    target: DatabaseTarget,
    session: Session,
    batches: Batches,
    refs: Sequence[RunRef],
    known: Mapping[str, object],
    losses: list[Loss],
) -> None:
    kinds = {kind for batch in batches() for kind in batch.column(0).unique().to_pylist()}
    if not kinds & BY_NAME.keys():
        return
    objects = Objects(
        target, session, losses, known=any(ref.origin in known for ref in refs), before=before(refs, known)
    )
    if kinds & NAMED:
        objects.registry.prepare(lambda: _records(batches, NAMED))
    for record in _records(batches, BY_NAME.keys()):
        objects.add(record)
    objects.close()


def _records(batches: Batches, kinds: Collection[str]) -> Iterator[Record]:
    for batch in batches():
        for kind, body in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if kind in kinds:
                yield Record(kind, "", "", body)


def _plain(batches: Batches) -> Iterator[pa.RecordBatch]:
    """The rows that belong to no object."""
    for batch in batches():
        rows = pc.starts_with(batch.column(0), KIND)
        if pc.any(rows).as_py():
            yield batch.filter(rows)


def _insert_sqlite(
    session: Session, kinds: Mapping[str, str], chunk: _Chunk, losses: list[Loss], *, ours: bool
) -> None:
    """Through a table of texts that begin with their type; a real goes as it is in a second column."""
    table, columns, rows = chunk
    staged: dict[str, pa.Array] = {}
    chosen = []
    for number, (name, values) in enumerate(zip(columns, zip(*rows, strict=True), strict=True)):
        staged[f"t{number}"] = pa.array([_marked(value, losses, table) for value in values], pa.utf8())
        staged[f"r{number}"] = pa.array([value if isinstance(value, float) else 0.0 for value in values], pa.float64())
        text = f"substr(t{number}, 2)"
        real = text if is_text(kinds[name]) else f"r{number}"
        chosen.append(
            f"CASE substr(t{number}, 1, 1) WHEN 'i' THEN CAST({text} AS INTEGER) WHEN 'r' THEN {real} "
            f"WHEN 'b' THEN unhex({text}) WHEN 't' THEN {text} END"
        )
    session.ingest("mlmigrate_rows", pa.table(staged), temporary=True)
    names = ", ".join(map(_quoted, columns))
    verb = "REPLACE" if ours else "IGNORE"
    rows_ = f"SELECT {', '.join(chosen)} FROM mlmigrate_rows ORDER BY rowid"
    session.execute(f"INSERT OR {verb} INTO {_quoted(table)} ({names}) {rows_}")
    if not ours:
        _tell_skipped(table, len(rows) - int(session.rows("SELECT changes() AS n")[0][0]), losses)
    session.execute("DROP TABLE mlmigrate_rows")


def _tell_skipped(table: str, count: int, losses: list[Loss]) -> None:
    """Rows that the database did not take. Each database has the default workspace already, and it is the same."""
    if count and table != "workspaces":
        because = "the target has others under the same key, or refuses what is in them"
        losses.append(Loss("", f"{count} rows of {table}", because))


def _marked(value: object, losses: list[Loss], table: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return f"i{int(value)}"
    if isinstance(value, float):
        return "r"
    if isinstance(value, bytes):
        return f"b{value.hex()}"
    text = str(value).encode("utf-8", "replace").decode()
    if text != value:
        losses.append(Loss("", f"text {text[:40]!r} of {table}", "held characters that the database cannot hold"))
    return f"t{text}"


def _insert_postgresql(
    session: Session, kinds: Mapping[str, str], chunk: _Chunk, losses: list[Loss], *, ours: bool
) -> None:
    """As JSON whose values are all text; the casts are PostgreSQL's own."""
    table, columns, rows = chunk
    declared = ", ".join(f"{_quoted(name)} text" for name in columns)
    values = ", ".join(f"CAST(r.{_quoted(name)} AS {_kind(kinds[name])})" for name in columns)
    names = ", ".join(map(_quoted, columns))
    does = _update(session, table, columns) if ours else "DO NOTHING"
    sql = (
        f"WITH taken AS (INSERT INTO {_quoted(table)} ({names}) SELECT {values} "
        f"FROM json_to_recordset(CAST(CAST($1 AS text) AS json)) AS r({declared}) ON CONFLICT {does} RETURNING 1) "
        "SELECT count(*)::bigint AS n FROM taken"
    )
    taken = int(session.rows(sql, (_json(columns, rows, losses, table),))[0][0])
    if not ours:
        _tell_skipped(table, len(rows) - taken, losses)


def _chunks(target: DatabaseTarget, batches: Iterator[pa.RecordBatch], losses: list[Loss]) -> Iterator[_Chunk]:
    """(table, columns that the target has, rows), some rows at once."""
    held: list[dict[str, Any]] = []
    table = ""
    misfits = _Misfits(target, losses)
    for batch in batches:
        for kind, body in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            name, row = kind.removeprefix(KIND), json.loads(body)
            if held and (name != table or len(held) >= _AT_ONCE or row.keys() != held[0].keys()):
                yield from misfits.fitted(table, held)
                held = []
            table = name
            held.append(row)
    if held:
        yield from misfits.fitted(table, held)
    misfits.tell()


class _Misfits:
    """What of the rows the target has no place for, counted."""

    def __init__(self, target: DatabaseTarget, losses: list[Loss]) -> None:
        self.target, self.losses = target, losses
        self.counts: dict[tuple[str, str], int] = {}

    def fitted(self, table: str, rows: list[dict[str, Any]]) -> Iterator[_Chunk]:
        """The rows as the target's table holds them."""
        shape = self.target.shape
        if not shape.has(table):
            self._count(f"rows of {table}", "the target has no such table", len(rows))
            return
        for name in rows[0]:
            if not shape.has(table, name):
                full = sum(row[name] is not None for row in rows)
                self._count(f"values of {table}.{name}", "the target has no such column", full)
        columns = [name for name in rows[0] if shape.has(table, name)]
        moved = [row for row in map(self._moved, rows) if row is not None]
        if len(moved) < len(rows):
            self._count(f"rows of {table}", "belong to experiments that were not carried", len(rows) - len(moved))
        if moved and columns:
            yield table, columns, [tuple(value_of(row[name]) for name in columns) for row in moved]

    def tell(self) -> None:
        """The counts as losses."""
        self.losses += [Loss("", f"{count} {what}", because) for (what, because), count in self.counts.items() if count]

    def _count(self, what: str, because: str, count: int) -> None:
        self.counts[what, because] = self.counts.get((what, because), 0) + count

    def _moved(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row with the ids that its experiments have here."""
        ids = {id_: home.id for id_, home in self.target.homes.items()}
        if row.get("experiment_id") is not None:
            if str(row["experiment_id"]) not in ids:
                return None
            row = {**row, "experiment_id": ids[str(row["experiment_id"])]}
        for end in _LINKED:
            if row.get(f"{end}_type") == "experiment" and str(row.get(f"{end}_id")) in ids:
                row = {**row, f"{end}_id": str(ids[str(row[f"{end}_id"])])}
        return row


def _json(columns: list[str], rows: list[tuple[Any, ...]], losses: list[Loss], table: str) -> str:
    text = json.dumps([{name: _worded(value) for name, value in zip(columns, row, strict=True)} for row in rows])
    if "\\u0000" not in text:
        return text
    losses.append(Loss("", f"NUL characters in rows of {table}", "PostgreSQL holds none; now replacement characters"))
    clean = [
        {
            name: value.replace("\0", "\ufffd") if isinstance(value, str) else _worded(value)
            for name, value in zip(columns, row, strict=True)
        }
        for row in rows
    ]
    return json.dumps(clean)


def _worded(value: object) -> object:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return str(value) if isinstance(value, float) else value


def _kind(declared: str) -> str:
    return (
        declared
        if declared.startswith(("character", "bigint", "integer", "double", "json", "bytea", "boolean"))
        else "text"
    )


def _update(session: Session, table: str, columns: Sequence[str]) -> str:
    """What happens to a row of ours that is there already."""
    keys = [
        name
        for (name,) in session.rows(
            "SELECT a.attname::text AS n FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
            f"AND a.attnum = ANY(i.indkey) WHERE i.indisprimary AND i.indrelid = to_regclass('{table}')"
        )
    ]
    rest = [name for name in columns if name not in keys]
    if not keys or not rest:
        return "DO NOTHING"
    changed = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in rest)
    return f"({', '.join(map(_quoted, keys))}) DO UPDATE SET {changed}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
