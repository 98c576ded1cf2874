"""The runs of a database as RunRefs, cheaply: params, tags and latest metrics are read, points never.

A stamp is a hash over everything of the run but its points; these are told by the latest of each key
and, in SQLite, by the highest row number among them, which an index gives at once.  In a PostgreSQL
too large to count, points logged at old steps of a finished run are not seen.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL, SQLITE, Session, texts
from mlmigrate.model import OURS, PARENT_TAG, Loss, RunRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlmigrate.adapters.mlflow.sql.schema import Shape

COUNTED = 2_000_000  # points; a PostgreSQL that has more is not counted for stamps
_STAMPED = ("params", "tags", "latest_metrics")
_KEY = '"key"'
SURPLUS_TAG = OURS + "surplus"
_BETWEEN, _AFTER = "\x1f", "\x1e"  # the separators of ASCII, between a key and its value and after both


class Listing:
    """One look at all runs."""

    def __init__(self, session: Session, shape: Shape) -> None:
        self.session = session
        self.shape = shape
        self.parents: dict[str, str] = {}
        self.steps: dict[str, int] = {}
        self.oddities: list[Loss] = []
        self.orphans: dict[str, int] = {}
        self._digests: dict[str, list[bytes]] = {}
        self._orphans: dict[str, set[str]] = {}

    def refs(self) -> list[RunRef]:
        """All runs, parents before their children."""
        rows = self._runs()
        known = {row[0] for row in rows}
        surplus = self._surplus()
        for table in _STAMPED:
            if self.shape.has(table):
                self._stamp(table, known)
        if self.shape.has("tags"):
            self._find_parents()
        if self.shape.has("inputs") and self.shape.has("datasets"):
            self._inputs()
        points = self._points(known)
        self._count_orphans()
        kept = [row for row in rows if row[0] not in surplus]
        return [self._ref(row, points.get(row[0], (0, ""))) for row in self._ordered(kept)]

    def _surplus(self) -> set[str]:
        """Runs that lost answers made twice: they were deleted, and are nobody's."""
        if not self.shape.has("tags") or not self.shape.has("runs", "lifecycle_stage"):
            return set()
        s = self.session
        marked = f"SELECT run_uuid FROM tags WHERE \"key\" = '{SURPLUS_TAG}'"
        sql = (
            f"SELECT {s.text('run_uuid')} AS id FROM runs WHERE lifecycle_stage = 'deleted' AND run_uuid IN ({marked})"
        )
        return {run for (run,) in s.rows(sql)}

    def _runs(self) -> list[tuple[str, ...]]:
        s, has = self.session, self.shape.has
        if not has("runs", "run_uuid"):
            return []
        words = ["experiment_id", "name", "status", "lifecycle_stage", "deleted_time"]
        experiment, name, status, stage, deleted = (
            f"COALESCE({s.text(one)}, '')" if has("runs", one) else "''" for one in words
        )
        start = s.integer("start_time" if has("runs", "start_time") else "NULL")
        columns = ["source_type", "source_name", "source_version", "entry_point_name", "user_id", "end_time"]
        rest = " || '/' || ".join(s.nullable(one) for one in [*columns, "artifact_uri"] if has("runs", one)) or "''"
        return s.rows(
            f"SELECT {s.text('run_uuid')} AS id, {experiment} AS experiment, {name} AS name, {status} AS status, "
            f"{start} AS start_time, {stage} AS stage, "
            f"{deleted} AS deleted, {rest} AS rest FROM runs WHERE run_uuid IS NOT NULL"
        )

    def _stamp(self, table: str, known: set[str]) -> None:
        """Hashes the rows of each run in `table`, and keeps what else they tell."""
        hashed = Hashed()
        for batch in self.session.batches(self._rows_sql(table)):
            hashed.add(batch)
            if table == "latest_metrics" and "step" in batch.schema.names:
                self._keep_steps(batch)
        for run, digest in hashed.digests().items():
            if run in known:
                self._digests.setdefault(run, []).append(digest)
            else:
                self._orphans.setdefault(run, set()).add(table)

    def _rows_sql(self, table: str) -> str:
        """Each row's run, and all else of it in as few columns as can be."""
        s = self.session
        ours = f"WHERE substr(\"key\", 1, {len(OURS)}) <> '{OURS}' " if table == "tags" else ""
        # row numbers tell the order in which rows were written, which an unchanged file keeps
        order = "rowid" if s.kind == SQLITE else 'run_uuid, "key"'
        if table == "latest_metrics":
            numbers = [("timestamp", "integer"), ("step", "integer"), ("is_nan", "integer"), ("value", "real")]
            columns = [f"{s.text(_KEY)} AS k"]
            columns += [self._number(name, kind) for name, kind in numbers if self.shape.has(table, name)]
        else:
            value = f"COALESCE({s.text('value')}, '')"
            columns = [f"{s.text(_KEY)} || '{_BETWEEN}' || {value} || '{_AFTER}' AS pair"]
        return f"SELECT {s.text('run_uuid')} AS id, {', '.join(columns)} FROM {table} {ours}ORDER BY {order}"

    def _number(self, column: str, kind: str) -> str:
        s = self.session
        cast = s.integer if kind == "integer" else s.real
        plain = f"CAST({column} AS integer)" if column == "is_nan" and s.kind == POSTGRESQL else f'"{column}"'
        return f"{cast(plain)} AS {column}"

    def _inputs(self) -> None:
        s = self.session
        hashed = Hashed()
        sql = (
            f"SELECT {s.text('i.destination_id')} AS id, {s.text('d.name')} AS name, {s.text('d.digest')} AS digest "
            "FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id WHERE i.destination_type = 'RUN' "
            "ORDER BY i.destination_id, d.name, d.digest"
        )
        for batch in s.batches(sql):
            hashed.add(batch)
        for run, digest in hashed.digests().items():
            self._digests.setdefault(run, []).append(digest)

    def _find_parents(self) -> None:
        s = self.session
        sql = f"SELECT {s.text('run_uuid')} AS id, {s.text('value')} AS parent FROM tags WHERE \"key\" = '{PARENT_TAG}'"
        self.parents = dict(s.rows(sql))

    def _keep_steps(self, batch: pa.RecordBatch) -> None:
        """How many points a run has at most, when each step has one: for packing."""
        capped = pc.min_element_wise(pc.max_element_wise(batch.column("step"), 0), 10_000_000)
        table = pa.table({"id": batch.column("id"), "points": pc.add(capped, 1)})
        sums = table.group_by("id").aggregate([("points", "sum")])
        for run, points in zip(sums["id"].to_pylist(), sums["points_sum"].to_pylist(), strict=True):
            self.steps[run] = self.steps.get(run, 0) + (points or 0)

    def _points(self, known: set[str]) -> dict[str, tuple[int, str]]:
        """Run -> how many points about, and what tells whether there are new ones."""
        if not self.shape.has("metrics") or not self.shape.run_index:
            return {}
        if self.session.kind == SQLITE:
            return self._row_numbers(known)
        if self._few():
            counts = dict(
                self.session.rows(
                    f"SELECT {self.session.text('run_uuid')} AS id, count(*) AS n FROM metrics GROUP BY run_uuid"
                )
            )
            for run in counts.keys() - known:
                self._orphans.setdefault(run, set()).add("metrics")
            return {run: (count, str(count)) for run, count in counts.items()}
        return {}

    def _few(self) -> bool:
        if self.session.kind != POSTGRESQL:
            return False
        rows = self.session.rows("SELECT reltuples::bigint AS n FROM pg_class WHERE oid = to_regclass('metrics')")
        return bool(rows) and rows[0][0] < COUNTED

    def _row_numbers(self, known: set[str]) -> dict[str, tuple[int, str]]:
        """Jumps from run to run through the index, so that it costs the same for few points and for many."""
        rows = self.session.rows(
            "WITH RECURSIVE ids(id) AS (SELECT min(run_uuid) FROM metrics UNION ALL "
            "SELECT (SELECT min(run_uuid) FROM metrics WHERE run_uuid > id) FROM ids WHERE id IS NOT NULL) "
            "SELECT CAST(id AS TEXT), (SELECT min(rowid) FROM metrics WHERE run_uuid = id), "
            "(SELECT max(rowid) FROM metrics WHERE run_uuid = id) FROM ids WHERE id IS NOT NULL"
        )
        for run, _, _ in rows:
            if run not in known:
                self._orphans.setdefault(run, set()).add("metrics")
        return {run: (last - first + 1, str(last)) for run, first, last in rows}

    def _count_orphans(self) -> None:
        """Rows of runs that are not there."""
        counts: dict[str, int] = {}
        for table in ("params", "tags", "metrics"):
            ids = [run for run, tables in self._orphans.items() if table in tables or table == "metrics"]
            if ids and self.shape.has(table):
                sql = f"SELECT count(*) AS n FROM {table} WHERE {self.session.among('run_uuid', ids)}"
                counts[table] = self.session.rows(sql)[0][0]
        for table, count in counts.items():
            if count:
                self.orphans[table] = count
                what = "metric points" if table == "metrics" else table
                self.oddities.append(Loss("", f"{count} {what}", "belong to runs that are not in the database"))

    def _ordered(self, rows: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        """By start, but each parent before its children; a ring of parents is cut."""
        rows.sort(key=lambda row: (row[4] is None, row[4] or 0, row[0]))
        by_id, done = {row[0]: row for row in rows}, set[str]()
        for row in rows:
            line: list[str] = []
            run = row[0]
            while run in by_id and run not in done:
                done.add(run)
                line.append(run)
                run = self.parents.get(run, "")
            yield from (by_id[one] for one in reversed(line))

    def _ref(self, row: tuple[str, ...], points: tuple[int, str]) -> RunRef:
        run, experiment, name, status, start, stage, _, _ = row
        count, mark = points
        steps = self.steps.get(run, 0)
        digest = blake2b(repr((*row, mark)).encode("utf-8", "surrogatepass"), digest_size=8)
        for one in self._digests.get(run, ()):
            digest.update(one)
        return RunRef(
            experiment=experiment,
            id=run,
            name=name,
            origin=f"mlflow:{run}",
            stamp=digest.hexdigest(),
            status=status,
            start=start,  # type: ignore[arg-type]
            deleted=stage == "deleted",
            points=min(count, steps) if count and steps else count or steps,
        )


class Hashed:
    """Run -> hash of its rows, from batches whose first column is the run."""

    def __init__(self) -> None:
        self._found: dict[str, blake2b] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Hashes each run's rows by slices of the columns' own buffers, never value by value."""
        if not batch.num_rows:
            return
        ids, codes, rows = _by_run(batch)
        runs = pc.run_end_encode(codes)
        columns = [part for column in rows.columns[1:] for part in _parts(column)]
        start = 0
        for code, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            run = ids[code]
            digest = self._found.get(run)
            if digest is None:
                digest = self._found[run] = blake2b(digest_size=8)
            for data, ends in columns:
                digest.update(data[ends(start) : ends(end)])
            start = end

    def digests(self) -> dict[str, bytes]:
        """What came of it."""
        return {run: digest.digest() for run, digest in self._found.items()}


def _by_run(batch: pa.RecordBatch) -> tuple[list[str], pa.Array, pa.RecordBatch]:
    """The runs' ids, the number of each row's run, and the rows with each run's together, else in their order."""
    runs = batch.column(0).cast(pa.utf8()).dictionary_encode()
    codes = runs.indices
    if not pc.all(pc.greater_equal(codes[1:], codes[:-1])).as_py():
        order = pc.sort_indices(codes)  # a stable sort
        codes, batch = codes.take(order), batch.take(order)
    return texts(runs.dictionary), codes, batch


def _parts(column: pa.Array) -> list[tuple[memoryview, Callable[[int], int]]]:
    """The bytes of a column, and where in them a row begins. Texts are two parts: the bytes and their lengths."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        lengths = pc.fill_null(pc.binary_length(column), -1).cast(pa.int32())
        wide = pa.types.is_large_string(column.type)
        offsets = memoryview(column.buffers()[1]).cast("q" if wide else "i")[column.offset :]
        data = column.buffers()[2]
        return [(memoryview(data or b""), offsets.__getitem__), *_parts(lengths)]
    if pa.types.is_null(column.type):
        return []
    fixed = pc.fill_null(column, 0) if column.null_count else column
    if not pa.types.is_floating(fixed.type):
        fixed = fixed.cast(pa.int64()) if fixed.type != pa.int32() else fixed
    width, first = fixed.type.bit_width // 8, fixed.offset
    return [(memoryview(fixed.buffers()[1]), lambda row: (first + row) * width)]


def reconstructed(experiments: Iterable[str], refs: Iterable[RunRef]) -> list[str]:
    """The ids of experiments that have runs and are not there."""
    known = set(experiments)
    return sorted({ref.experiment for ref in refs if ref.kind == "run" or ref.experiment} - known)
