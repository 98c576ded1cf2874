"""A backend database as a source: never written, never upgraded, of whatever revision it is.

One moment: in PostgreSQL a snapshot is held for the whole transfer; in SQLite each read is one
transaction, which ends before a slow target could hold up those who write.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import math
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adbc_driver_manager
import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.base import Context, Packing, Settings
from mlmigrate.adapters.mlflow.direct import Stores, reachable
from mlmigrate.adapters.mlflow.objects import GROUPS
from mlmigrate.adapters.mlflow.sql import accounts, records, schema
from mlmigrate.adapters.mlflow.sql.artifacts import Finder, Kept
from mlmigrate.adapters.mlflow.sql.connect import (
    POSTGRESQL,
    SQLITE,
    Database,
    Session,
    database,
    explained,
    texts,
    unmarked,
)
from mlmigrate.adapters.mlflow.sql.layout import Layout
from mlmigrate.adapters.mlflow.sql.listing import Listing, reconstructed
from mlmigrate.adapters.mlflow.sql.objects_source import Objects, group_of
from mlmigrate.adapters.mlflow.sql.rows import Rows
from mlmigrate.adapters.mlflow.sql.schema import Shape, shape
from mlmigrate.adapters.mlflow.sql.spool import Spool
from mlmigrate.errors import NotFound, Unavailable
from mlmigrate.model import OURS, STATUSES, DatasetInput, Experiment, Loss, Record, Run, RunRef, points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlmigrate.address import Address
    from mlmigrate.model import Artifact

_NAME_TAG = "mlflow.runName"
_SYSTEM = ("source_type", "source_name", "source_version", "entry_point_name")
_WITHOUT_INDEX = Packing(runs=20_000, points=20_000_000)  # each pack reads the whole table of points
_MARKS_OF_MLFLOW = (("experiments", "experiment_id"), ("runs", "run_uuid"), ("params", "run_uuid"))
_MARK = tuple[tuple[int, int], ...]


def open_source(address: Address, context: Context) -> DatabaseSource:
    """The database, which must hold MLflow's tables. Raises NotFound, Refused or Unavailable."""
    return DatabaseSource(database(address.place), context)


def _looking(context: Context) -> Settings:
    """Settings for reading; in a target, the folder that artifacts were written to is looked into too."""
    settings = context.settings
    if context.side == "source" or settings.artifacts_to in ("", "keep") or reachable(settings.artifacts_to):
        return settings
    return replace(settings, artifacts_at=(*settings.artifacts_at, settings.artifacts_to))


class DatabaseSource:
    """An MLflow backend database, for reading."""

    def __init__(self, place: Database, context: Context) -> None:
        self._database = place
        self._lock, self._snapshots = threading.Lock(), threading.Lock()
        self._mark = self._file_mark()
        beside = place.file.absolute().parent if place.file is not None else Path.cwd()
        self._finder = Finder(beside, _looking(context), Stores.of(context))
        self._finder.stores.named = lambda: [one.artifact_root for one in self._experiments or ()]
        self._holder: Session | None = None
        self._snapshot = ""
        self._refs: list[RunRef] | None = None
        self._oddities: list[Loss] = []
        self._experiments: list[Experiment] | None = None
        with self._session() as session:
            self._shape = shape(session)
        self._accounts_only = bool(accounts.tables(self._shape)) and not self._shape.has("experiments")
        self._check_tables()
        self._layout = Layout(self._shape)
        self._accounts = accounts.beside(place)
        self.packing = Packing() if self._shape.run_index else _WITHOUT_INDEX

    def experiments(self) -> Sequence[Experiment]:
        """All experiments; one is made up for runs whose own is not there."""
        self._list()
        return self._experiments or []

    def refs(self) -> Sequence[RunRef]:
        """All runs, and a ref for each table that is carried row by row."""
        self._list()
        return self._refs or []

    def oddities(self) -> Sequence[Loss]:
        """What is strange about the database as a whole."""
        found = list(self._oddities)
        if self._database.stale:
            why = "lie in a write-ahead log that cannot be read in a read-only folder"
            found.append(Loss("", "the newest rows", why))
        return [*found, *self.written_to()]

    def written_to(self) -> list[Loss]:
        """Once, when somebody wrote into the SQLite file since it was opened."""
        if self._mark == self._file_mark():
            return []
        self._mark = self._file_mark()
        why = "was written to while it was read; run the same command again to take what is new"
        return [Loss("", str(self._database.file), why)]

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[DatabaseReading]:
        """The runs and tables that `refs` name, from one moment."""
        with self._session() as session, explained(self._database.shown):
            reading = DatabaseReading(self._database, session, self._layout, refs, self._finder, self.written_to)
            reading.accounts = self._database if self._accounts_only else self._accounts
            try:
                yield reading
            finally:
                reading.close()

    def close(self) -> None:
        """Lets the snapshot go."""
        self._finder.stores.close()
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def _list(self) -> None:
        with self._lock:
            if self._refs is not None:
                return
            if self._accounts_only:
                self._refs, self._experiments = self._account_refs(self._database, "accounts"), []
                return
            with self._session() as session, explained(self._database.shown):
                self._oddities += schema.oddities(session, self._shape)
                experiments = _experiments(session, self._shape, self._oddities)
                listing = Listing(session, self._shape)
                runs = [self._still(ref) for ref in listing.refs()]
                self._oddities += listing.oddities
                refs = runs + self._record_refs(session, listing.orphans, _identity(experiments, runs))
                experiments += self._made_up(experiments, refs)
                self._refs, self._experiments = refs, experiments

    def _record_refs(self, session: Session, orphans: Mapping[str, int], identity: str) -> list[RunRef]:
        """Refs of what lies beside the runs."""
        self._oddities += records.stays(session, self._shape)
        refs = list(Objects(session, self._layout).refs(identity))
        for ref, told in records.refs(session, self._layout, orphans, identity):
            refs.append(ref)
            self._oddities += [told] if told is not None else []
        return refs + (self._account_refs(self._accounts, identity) if self._accounts is not None else [])

    def _account_refs(self, place: Database, identity: str) -> list[RunRef]:
        """A ref of the accounts of MLflow's basic-auth app."""
        with closing(place.reading()) as session, explained(place.shown):
            found = shape(session)
            self._oddities += accounts.stays(session, found)
            return list(accounts.ref(session, found, identity))

    def _still(self, ref: RunRef) -> RunRef:
        """A run under way may write files that the database does not know of: nobody can tell whether it changed."""
        under_way = ref.status in ("RUNNING", "SCHEDULED") and self._finder.wanted
        return replace(ref, stamp="") if under_way else ref

    def _made_up(self, experiments: list[Experiment], refs: list[RunRef]) -> list[Experiment]:
        lost = reconstructed((one.id for one in experiments), refs)
        for id_ in lost:
            runs = sum(ref.experiment == id_ for ref in refs if ref.kind == "run")
            there = f"{runs} of its runs" if runs else "some that belongs to it"
            why = f"is not in the database, but {there} {'are' if runs else 'is'}; it is made up anew"
            self._oddities.append(Loss("", f"experiment {id_}", why, id_))
        return [Experiment(id_, f"experiment {id_ or 'without id'}") for id_ in lost]

    def _check_tables(self) -> None:
        if self._accounts_only:
            return
        if sum(self._shape.has(*one) for one in _MARKS_OF_MLFLOW) > 1:
            return  # one of them may be gone: a migration can stop between two steps
        names = ", ".join(sorted(self._shape.tables)[:8]) or "no table at all"
        raise NotFound(f"{self._database.shown} holds no MLflow tables; it has {names}.")

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """A transaction; in PostgreSQL of the one snapshot that all of them share."""
        before = self._file_mark()
        session = self._database.reading()
        immutable = self._database.immutable
        try:
            if session.kind == POSTGRESQL:
                self._share(session)
            yield session
        finally:
            session.close()
        if immutable and not self._database.stale and before != self._file_mark():
            raise Unavailable(f"{self._database.file} was opened by a writer while it was read.")

    def _share(self, session: Session) -> None:
        with explained(self._database.shown), self._snapshots:
            if self._holder is None:
                self._holder = self._database.reading()
                self._snapshot = str(self._holder.rows("SELECT pg_export_snapshot()::text AS s")[0][0])
        with suppress(adbc_driver_manager.Error):  # gone with its connection: then this read is its own moment
            session.execute(f"SET TRANSACTION SNAPSHOT '{self._snapshot}'")

    def _file_mark(self) -> _MARK:
        """Changes when the file or its write-ahead log does."""
        file = self._database.file
        if file is None:
            return ()
        marks = []
        for path in (file, file.with_name(file.name + "-wal")):
            with suppress(OSError):
                found = path.stat()
                marks.append((found.st_mtime_ns, found.st_size))
        return tuple(marks)


class DatabaseReading:
    """Some runs of one moment; points are taken first."""

    def __init__(
        self,
        place: Database,
        session: Session,
        layout: Layout,
        refs: Sequence[RunRef],
        finder: Finder,
        written_to: Callable[[], list[Loss]],
    ) -> None:
        self.losses: list[Loss] = []
        self._session, self._layout, self._finder = session, layout, finder
        self._shape = found = layout.shape
        self.distinct = "metrics" not in found.keyless  # its primary key holds every column
        self._written_to = written_to
        self._blocks_writers = place.kind == SQLITE and not place.immutable and not place.write_ahead()
        self._others = [ref for ref in refs if ref.kind == "records"]
        self.accounts: Database | None = None
        wanted = {ref.id: ref for ref in refs if ref.kind == "run"}
        self.runs: Sequence[Run] = _Runs(session, found, wanted, self.losses).read() if wanted else []
        self._spool: Spool | None = None
        if self.runs and self._blocks_writers:
            self._lay_aside()

    def points(self) -> Iterator[pa.RecordBatch]:
        """The points of the runs, run by run, in log order."""
        if self._spool is not None:
            yield from map(_as_points, self._spool.batches())
        elif self.runs:
            yield from map(_as_points, self._batches())

    def artifacts(self) -> Iterator[Artifact]:
        """The files of the runs, of logged models and of traces."""
        return self._finder.artifacts(self._kept(), self.losses)

    def _kept(self) -> Iterator[Kept]:
        yield from map(Kept.of_run, self.runs)
        if not self._finder.wanted:
            return
        objects = Objects(self._session, self._layout)
        for ref in self._others:
            yield from (*objects.models(ref), *objects.traces(ref))

    def records(self) -> Iterator[Record]:
        """The objects, and rows that are part of none."""
        rows, objects = Rows(self._session, self._shape), Objects(self._session, self._layout)
        for ref in self._others:
            if ref.id == accounts.REF:
                yield from self._account_rows()
            elif group_of(ref) in GROUPS:
                yield from objects.read(ref, rows, self.losses, self._let_go)
            else:
                yield from records.read(self._session, self._layout, ref, rows)
        self.losses += [*rows.losses(), *self._written_to()]

    def _account_rows(self) -> Iterator[Record]:
        if self.accounts is not None:
            with closing(self.accounts.reading()) as session, explained(self.accounts.shown):
                yield from accounts.read(session, shape(session))

    def _let_go(self) -> None:
        """Ends the transaction where it would keep others from writing while a slow target takes what was read."""
        if self._blocks_writers:
            self._session.commit()

    def close(self) -> None:
        """Gives back what was laid aside."""
        if self._spool is not None:
            self._spool.close()

    def _lay_aside(self) -> None:
        """Takes the points at once and ends the transaction, which keeps a team's runs from being written."""
        self._spool = Spool()
        for batch in self._batches():
            self._spool.add(batch)
        self._session.commit()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if not self._shape.has("metrics"):
            return
        for batch in self._session.batches(_points_sql(self._session, self._shape, [run.id for run in self.runs])):
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays(
                    [_named(batch.column(0)), _named(batch.column(1)), *batch.columns[2:]], names=batch.schema.names
                )


def _named(column: pa.Array) -> pa.Array:
    return column.cast(pa.utf8()).dictionary_encode()


def _points_sql(session: Session, found: Shape, ids: list[str]) -> str:
    """Points run by run in log order: the order of SQLite's row numbers, of PostgreSQL's places in the table."""
    step = session.integer("step") if found.has("metrics", "step") else "0"
    is_nan = session.integer("CAST(is_nan AS integer)") if session.kind == POSTGRESQL else session.integer("is_nan")
    is_nan = is_nan if found.has("metrics", "is_nan") else "0"
    order = {SQLITE: "rowid", POSTGRESQL: "ctid"}.get(session.kind, '"timestamp", step')
    return (
        f"SELECT {session.text('run_uuid')} AS run, {session.text(_KEY)} AS k, {step} AS step, "
        f"{session.integer(_TIME)} AS at, {session.real('value')} AS value, {is_nan} AS is_nan "
        f"FROM metrics WHERE {session.among('run_uuid', ids)} ORDER BY run_uuid, {order}"
    )


_KEY, _TIME = '"key"', '"timestamp"'


def _as_points(batch: pa.RecordBatch) -> pa.RecordBatch:
    run, key, step, at, value, is_nan = batch.columns
    value, is_nan = value.cast(pa.float64()), pc.fill_null(is_nan, 0).cast(pa.int64())
    if pc.max(is_nan).as_py():
        value = pc.if_else(pc.not_equal(is_nan, 0), pa.scalar(math.nan), value)
    numbers = {"step": step.cast(pa.int64()), "timestamp": at.cast(pa.int64()), "value": value}
    return points({"run": run, "key": key, **numbers})


class _Runs:
    """The runs of a reading, with all that lies in other tables."""

    def __init__(self, session: Session, found: Shape, refs: Mapping[str, RunRef], losses: list[Loss]) -> None:
        self.session, self.shape, self.refs, self.losses = session, found, refs, losses
        self.mine = session.among("run_uuid", list(refs))

    def read(self) -> list[Run]:
        """In the order of the refs."""
        rows = self._rows()
        for id_ in self.refs.keys() - rows.keys():
            self.losses.append(Loss(id_, "run", "is gone from the database", self.refs[id_].experiment))
        params, tags, inputs = self._pairs("params"), self._pairs("tags"), self._inputs()
        return [
            _run(self.refs[id_], rows[id_], params.get(id_, {}), tags.get(id_, {}), tuple(inputs.get(id_, ())))
            for id_ in self.refs
            if id_ in rows
        ]

    def _rows(self) -> dict[str, dict[str, Any]]:
        s = self.session
        words = ["name", "status", "user_id", "lifecycle_stage", "artifact_uri", *_SYSTEM]
        numbers = ["start_time", "end_time", "deleted_time"]
        columns = [f"{s.nullable(one)} AS {one}" for one in words if self.shape.has("runs", one)]
        columns += [f"{s.integer(one)} AS {one}" for one in numbers if self.shape.has("runs", one)]
        sql = f"SELECT {s.text('run_uuid')} AS id, {', '.join(columns)} FROM runs WHERE {self.mine}"
        table = s.table(sql)
        rows = zip(*map(texts, table.columns), strict=True)
        named = (dict(zip(table.column_names, row, strict=True)) for row in rows)
        return {
            row["id"]: {name: unmarked(value) if name in words else value for name, value in row.items()}
            for row in named
        }

    def _pairs(self, table: str) -> dict[str, dict[str, str]]:
        if not self.shape.has(table):
            return {}
        s = self.session
        chosen = f"{s.text('run_uuid')} AS id, {s.text(_KEY)} AS k, COALESCE({s.text('value')}, '') AS v"
        found: dict[str, dict[str, str]] = {}
        for id_, key, value in s.rows(f"SELECT {chosen} FROM {table} WHERE {self.mine}"):
            if not key.startswith(OURS):
                found.setdefault(id_, {})[key] = value
        return found

    def _inputs(self) -> dict[str, list[DatasetInput]]:
        if not self.shape.has("inputs") or not self.shape.has("datasets"):
            return {}
        s = self.session
        words = ["digest", "dataset_source_type", "dataset_source", "dataset_schema", "dataset_profile"]
        rows = s.rows(
            f"SELECT {s.text('i.destination_id')} AS id, {s.text('i.input_uuid')} AS uuid, "
            f"{s.nullable('d.name')} AS n, "
            + ", ".join(f"{s.nullable(f'd.{one}')} AS {one}" for one in words)
            + " FROM inputs i LEFT JOIN datasets d ON d.dataset_uuid = i.source_id WHERE i.source_type = 'DATASET' "
            f"AND i.destination_type = 'RUN' AND {s.among('i.destination_id', list(self.refs))} "
            "ORDER BY i.destination_id, d.name, d.digest"
        )
        tags = self._input_tags([row[1] for row in rows])
        found: dict[str, list[DatasetInput]] = {}
        for id_, uuid, *texts_ in rows:
            name, digest, kind, source, schema, profile = map(unmarked, texts_)
            if name is None or digest is None:
                self.losses.append(Loss(id_, f"dataset input {uuid}", "names a dataset that is not in the database"))
                continue
            one = DatasetInput(name, digest, kind or "", source or "", schema, profile, tags.get(uuid, {}))
            found.setdefault(id_, []).append(one)
        return found

    def _input_tags(self, uuids: list[str]) -> dict[str, dict[str, str]]:
        if not uuids or not self.shape.has("input_tags"):
            return {}
        s = self.session
        found: dict[str, dict[str, str]] = {}
        sql = f"SELECT {s.text('input_uuid')} AS id, {s.text('name')} AS k, {s.text('value')} AS v FROM input_tags"
        for uuid, key, value in s.rows(f"{sql} WHERE {s.among('input_uuid', uuids)}"):
            found.setdefault(uuid, {})[key] = value
        return found


def _run(
    ref: RunRef,
    row: Mapping[str, Any],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    inputs: tuple[DatasetInput, ...],
) -> Run:
    status = row.get("status") or ""
    return Run(
        id=ref.id,
        experiment=ref.experiment,
        name=row.get("name") or tags.get(_NAME_TAG, ""),
        origin=ref.origin,
        stamp=ref.stamp,
        status=status if status in STATUSES else "FINISHED",
        status_word="" if status in STATUSES else status,
        start=row.get("start_time"),
        end=row.get("end_time"),
        user=row.get("user_id") or "",
        deleted=row.get("lifecycle_stage") == "deleted",
        deleted_at=row.get("deleted_time"),
        params=params,
        tags=tags,
        system={name: row[name] for name in _SYSTEM if row.get(name) is not None},
        inputs=inputs,
        artifact_uri=row.get("artifact_uri") or "",
    )


def _experiments(session: Session, found: Shape, oddities: list[Loss]) -> list[Experiment]:
    if not found.has("experiments", "experiment_id"):
        return []
    tags = _experiment_tags(session, found)
    made = []
    for id_, name, root, stage, born, changed, space in session.rows(_experiments_sql(session, found)):
        one = Experiment(id_, name, tags.get(id_, {}), born, changed, stage == "deleted", unmarked(root) or "")
        if space != "default":
            oddities.append(Loss("", f"workspace {space!r}", "becomes the first part of the experiment's name", id_))
            one = replace(one, name=f"{space}/{name}")
        made.append(one)
    return made


def _experiments_sql(session: Session, found: Shape) -> str:
    """What is not there is as if nobody had said it: a migration can stop between two steps."""
    s = session
    there = {one: s.text(one) for one in ("name", "lifecycle_stage", "workspace") if found.has("experiments", one)}
    name = there.get("name", f"'experiment ' || {s.text('experiment_id')}")
    root = s.nullable("artifact_location") if found.has("experiments", "artifact_location") else "''"
    created, updated = (
        s.integer(one if found.has("experiments", one) else "NULL") for one in ("creation_time", "last_update_time")
    )
    return (
        f"SELECT {s.text('experiment_id')} AS id, COALESCE({name}, '') AS n, {root} AS a, "
        f"COALESCE({there.get('lifecycle_stage', 'NULL')}, '') AS l, {created} AS c, {updated} AS u, "
        f"COALESCE({there.get('workspace', 'NULL')}, 'default') AS w FROM experiments ORDER BY experiment_id"
    )


def _experiment_tags(session: Session, found: Shape) -> dict[str, dict[str, str]]:
    if not found.has("experiment_tags"):
        return {}
    s = session
    tags: dict[str, dict[str, str]] = {}
    chosen = f"{s.text('experiment_id')} AS id, {s.text(_KEY)} AS k, COALESCE({s.text('value')}, '') AS v"
    for id_, key, value in s.rows(f"SELECT {chosen} FROM experiment_tags"):
        if not key.startswith(OURS):
            tags.setdefault(id_, {})[key] = value
    return tags


def _identity(experiments: list[Experiment], refs: list[RunRef]) -> str:
    """Names the estate wherever it lies: by its first experiment, or its first run where that tells nothing."""
    first = min(experiments, key=lambda one: (len(one.id), one.id), default=None)
    run = "" if first is not None and first.created is not None else next((ref.id for ref in refs), "")
    text = f"{first.id} {first.created} {run}" if first is not None else run
    return blake2b(text.encode(), digest_size=8).hexdigest()
