"""Reading an archive: nothing is believed before its digest was checked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlmigrate.adapters.base import Packing
from mlmigrate.archive import index, layout, values
from mlmigrate.archive.blobs import CHUNK, Blob
from mlmigrate.archive.commits import Commit, Entry, File
from mlmigrate.archive.fetching import AHEAD, Ahead, looking_ahead
from mlmigrate.archive.index import Index
from mlmigrate.archive.values import Row, escape
from mlmigrate.errors import Conflict, NotFound
from mlmigrate.model import POINTS, UNKNOWN_STAMP, Artifact, Experiment, Loss, Record, Run, RunRef
from mlmigrate.storage import Storage

BATCH = 1 << 16


class ArchiveSource:
    """An archive to read from."""

    def __init__(self, storage: Storage) -> None:
        check_archive(storage)
        self.packing = Packing(runs=10_000, points=20_000_000, size=1 << 36)
        pool = ThreadPoolExecutor(storage.many, thread_name_prefix="blob") if storage.many > 1 else None
        self.tables = Tables(storage, pool)
        self._storage = storage
        self._lock = threading.Lock()
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """What is in the archive. Raises Damaged when a commit cannot be read: nobody knows what it held."""
        with self._lock:
            if self._index is None:
                found = index.load(self._storage)
                for error in found.bad:
                    raise error
                self._index = found
            return self._index

    def experiments(self) -> Sequence[Experiment]:
        return experiments_in(self._storage, self.index, self.tables)

    def refs(self) -> Sequence[RunRef]:
        live = self.index.live.values()
        packs = {entry.key: commit.pack for commit, entry in live}
        return [_stamped(entry.ref, packs[entry.key]) for entry in _parents_first([entry for _, entry in live])]

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[ArchiveReading]:
        """The runs that `refs` name. Raises Conflict when two of them have one id, Damaged."""
        packs: dict[str, PackReading] = {}
        losses: list[Loss] = []
        for ref in refs:
            found = self.index.live.get(escape(ref.origin or ref.id))
            if found is None:
                losses.append(Loss(ref.id, "run", "it is not in the archive", ref.experiment))
            else:
                commit, entry = found
                packs.setdefault(commit.pack, PackReading(self.tables, commit)).asked.append(entry)
        _check_ids(refs)
        yield ArchiveReading(list(packs.values()), refs, losses)

    def oddities(self) -> Sequence[Loss]:
        return ()

    def close(self) -> None:
        """Nothing is fetched any more."""
        if self.tables.pool is not None:
            self.tables.pool.shutdown(cancel_futures=True)


class ArchiveReading:
    """Some runs of an archive, pack after pack."""

    def __init__(self, packs: Sequence[PackReading], refs: Sequence[RunRef], losses: list[Loss]) -> None:
        self._packs = packs
        self.losses = losses
        self.distinct = all(pack.commit.distinct for pack in packs)
        found = {run.origin or run.id: run for pack in packs for run in pack.runs()}
        self.runs = [found[key] for ref in refs if (key := ref.origin or ref.id) in found]

    def points(self) -> Iterator[pa.RecordBatch]:
        for pack in self._packs:
            yield from pack.points()

    def artifacts(self) -> Iterator[Artifact]:
        for pack in self._packs:
            yield from pack.artifacts()

    def records(self) -> Iterator[Record]:
        for pack in self._packs:
            yield from pack.records()


class Tables:
    """The tables of an archive, each checked once before it is believed. `pool` fetches what will be asked for."""

    def __init__(self, storage: Storage, pool: ThreadPoolExecutor | None = None) -> None:
        self.storage, self.pool = storage, pool
        self._checked: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, pack: str, file: File) -> Iterator[pq.ParquetFile]:
        """The table. Raises Damaged when it is missing, not as it was written, or no table."""
        name = layout.table_name(pack, file.name)
        if (name, file.sha256) not in self._checked:
            check_file(self.storage, name, file)
            with self._lock:
                self._checked.add((name, file.sha256))
        with self.storage.open(name) as raw:
            with _readable(name):
                parquet = pq.ParquetFile(raw)
            yield parquet

    def rows(self, commit: Commit, table: str, only: pa.Array | None = None, by: str = "run") -> Iterator[Row]:
        """The rows of a table, those whose column `by` is among `only`."""
        file = commit.file(table)
        if file is None:
            return
        schema = layout.SCHEMAS[table]
        name = layout.table_name(commit.pack, file.name)
        with self.open(commit.pack, file) as parquet:
            for group in range(parquet.num_row_groups):
                with _readable(name):
                    found = parquet.read_row_group(group, columns=schema.names, use_threads=False)
                    found = found.select(schema.names).cast(schema)
                    wanted = found if only is None else found.filter(pc.is_in(found[by], only, skip_nulls=False))
                yield from values.rows_of(wanted)


class PackReading:
    """What is asked for of one pack."""

    def __init__(self, tables: Tables, commit: Commit) -> None:
        self._tables, self.commit = tables, commit
        self.asked: list[Entry] = []

    @property
    def _ids(self) -> pa.Array | None:
        """The ids asked for, as the tables hold them; None for all."""
        runs = [entry.id for entry in self.asked]
        return None if len(runs) == len(self.commit.runs) else pa.array(runs, pa.utf8())

    @property
    def _shared(self) -> bool:
        """Whether what belongs to no run is asked for: with the pack's records, else with its first run."""
        holders = [entry for entry in self.commit.runs if entry.kind == "records"] or self.commit.runs[:1]
        return any(entry in holders for entry in self.asked)

    def runs(self) -> list[Run]:
        """The runs, with the stamps they were committed with."""
        ids = self._ids
        stamps = {entry.ref.id: entry.ref.stamp for entry in self.asked}
        rows = partial(self._tables.rows, self.commit)
        kept = rows("records", pa.array([entry.id for entry in self.asked], pa.utf8()))
        found = values.runs_of(rows("runs", ids, "id"), rows("attributes", ids), rows("inputs", ids), kept)
        return [values.stamped(run, stamps[run.id]) for run in found if run.id in stamps]

    def points(self) -> Iterator[pa.RecordBatch]:
        """The points. Raises Damaged when there are more or fewer than the commit counts."""
        file = self.commit.file("points")
        wanted = sum(entry.points for entry in self.asked)
        if file is None or not wanted:
            return
        seen = 0
        with self._tables.open(self.commit.pack, file) as parquet:
            for batch in self._batches(parquet, layout.table_name(self.commit.pack, file.name)):
                seen += len(batch)
                if len(batch):
                    yield values.unescaped_points(batch)
        if seen != wanted:
            name = layout.table_name(self.commit.pack, file.name)
            raise layout.damaged(name, f"it holds {seen:,} points of these runs, its commit counts {wanted:,}")

    def _batches(self, parquet: pq.ParquetFile, name: str) -> Iterator[pa.RecordBatch]:
        ids = self._ids
        with _readable(name):
            groups = _groups(parquet, self.asked)
            batches = parquet.iter_batches(BATCH, groups, columns=POINTS.names, use_threads=False)
        while True:
            with _readable(name):
                batch = next(batches, None)
                if batch is None:
                    return
                batch = batch.cast(POINTS)
                found = batch if ids is None else _of_runs(batch, ids)
            yield found

    def artifacts(self) -> Iterator[Artifact]:
        """The files."""
        storage, pool = self._tables.storage, self._tables.pool
        if pool is None:
            for owner, path, size, sha256 in self._files():
                yield Artifact(owner, path, Blob(storage, sha256, size, f"{owner}, {path}"), size, sha256)
            return
        ahead = Ahead(storage, pool)
        yield from looking_ahead((self._fetched(ahead, *row) for row in self._files()), AHEAD)

    def _files(self) -> Iterator[tuple[str, str, int, str]]:
        whole = self._ids is None
        ids, shared = {entry.ref.id for entry in self.asked}, self._shared
        for owner, path, size, sha256 in self._tables.rows(self.commit, "artifacts"):
            if whole or owner in ids or (shared and owner.startswith("@")):
                yield owner, path, size, sha256

    def _fetched(self, ahead: Ahead, owner: str, path: str, size: int, sha256: str) -> Artifact:
        storage, what = self._tables.storage, f"{owner}, {path}"
        opener = partial(ahead.open, ahead.told(sha256, size, what), sha256, size, what)
        spot = storage.spot(layout.blob_name(sha256)) if layout.is_blob(sha256) else None
        return Artifact(owner, path, Blob(storage, sha256, size, what, opener), size, sha256, spot)

    def records(self) -> Iterator[Record]:
        """What belongs to no run."""
        if self._shared:
            nobody = pa.array([None], pa.utf8())
            yield from map(values.record_of, self._tables.rows(self.commit, "records", nobody))


def check_archive(storage: Storage) -> None:
    """Raises NotFound when there is no archive, BadData when it is of a newer format, Damaged."""
    try:
        data = index.read_all(storage, layout.MANIFEST, layout.MOST_MANIFEST)
    except NotFound as error:
        if storage.many > 1:
            next(storage.walk(layout.MANIFEST), None)  # raises NotFound where there is no bucket: that is to be said
        raise NotFound(
            f"{storage.shown} is not an archive: it has no {layout.MANIFEST}.",
            "Give the place that mlmigrate export wrote.",
        ) from error
    layout.check_manifest(data, storage.shown)


def check_file(storage: Storage, name: str, file: File) -> None:
    """Raises Damaged when a table of a pack is missing or not as it was written."""
    try:
        with storage.open(name) as raw:
            digest, size = hashlib.sha256(), 0
            while chunk := raw.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except NotFound as error:
        raise layout.damaged(name, "it is missing") from error
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise layout.damaged(name, "the bytes read are not the bytes written (sha256 differs)")


def experiments_in(storage: Storage, found: Index, tables: Tables | None = None) -> list[Experiment]:
    """The experiments of an archive, each as it was written last."""
    tables = tables or Tables(storage)
    last = {id_: commit.pack for id_, (_, commit) in found.experiments.items()}
    packs, read = set(last.values()), dict[str, Experiment]()
    for commit in found.commits:
        if commit.pack in packs:
            for row in tables.rows(commit, "experiments"):
                if last.get(escape(row[0])) == commit.pack:
                    read[escape(row[0])] = values.experiment_of(row)
    return [read[id_] for id_ in last if id_ in read]


def _stamped(ref: RunRef, pack: str) -> RunRef:
    """A run that may have been changing when it was taken changes here no more, until another pack brings it."""
    return replace(ref, stamp=pack) if ref.stamp in ("", UNKNOWN_STAMP) else ref


def _parents_first(entries: Sequence[Entry]) -> Iterable[Entry]:
    """The entries in their order, but a parent that is among them before its children."""
    ids = {entry.id: entry for entry in entries}
    done: set[str] = set()
    for entry in entries:
        line: list[Entry] = []
        above: Entry | None = entry
        while above is not None and above.key not in done:
            done.add(above.key)
            line.append(above)
            above = ids.get(above.parent) if above.parent else None
        yield from reversed(line)


def _check_ids(refs: Sequence[RunRef]) -> None:
    origins: Mapping[str, str] = {ref.id: ref.origin for ref in refs}
    for ref in refs:
        if origins[ref.id] != ref.origin:
            message = f"Two runs with the id {ref.id!r:.80} were asked for at once."
            raise Conflict(message, "Ask for one of them, with -e.")


def _groups(parquet: pq.ParquetFile, asked: Sequence[Entry]) -> list[int]:
    """The row groups in which the points of these runs lie, as far as the commit says where."""
    spans = [(entry.first, entry.points) for entry in asked if entry.points]
    groups, start = [], 0
    for group in range(parquet.num_row_groups):
        end = start + parquet.metadata.row_group(group).num_rows
        if any(first is None or (first < end and first + points > start) for first, points in spans):
            groups.append(group)
        start = end
    return groups


def _of_runs(batch: pa.RecordBatch, ids: pa.Array) -> pa.RecordBatch:
    """The points of these runs."""
    column = batch.column("run")
    return batch.filter(pc.take(pc.is_in(column.dictionary, ids), column.indices))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise layout.damaged(name, f"it cannot be read as a table: {error!s:.200}") from error
