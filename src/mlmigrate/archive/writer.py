"""Writing an archive: packs side by side, each whole with its commit and not there before it."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pyarrow as pa

from mlmigrate.adapters.base import Again, Limits, Names, Once, Packing, SameNames
from mlmigrate.archive import index, layout, values
from mlmigrate.archive.blobs import Blobs
from mlmigrate.archive.commits import Commit, Entry, File, Lost, Totals, encode
from mlmigrate.archive.index import Clock, Index
from mlmigrate.archive.lease import Lease
from mlmigrate.archive.reader import experiments_in
from mlmigrate.archive.sending import SentBlobs, Window
from mlmigrate.archive.tables import Points, Rows
from mlmigrate.archive.values import escape, unescape
from mlmigrate.errors import BadData, Conflict, Damaged, MigrateError, Unavailable
from mlmigrate.model import PARENT_TAG, Arrival, Artifact, Experiment, Loss, Record, Run, RunRef
from mlmigrate.storage import Storage
from mlmigrate.storage.bucket import BucketStorage

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")


class ArchiveTarget:
    """An archive to write into. Packs may be written by several threads and processes at once.

    In an object store, files are sent many at once, and whoever asked what has arrived leads the writing, and
    keeps others out: workers elsewhere only prepare.
    """

    limits = Limits()

    def __init__(self, storage: Storage, again: Again | None = None, part_size: int = 0) -> None:
        self.packing = Packing()
        self.storage = storage
        self.blobs = _blobs(storage, part_size)
        self._again = again or Once()
        self._pool = ThreadPoolExecutor(storage.many, thread_name_prefix="file") if storage.many > 1 else None
        self._leads = False
        self._lease: Lease | None = None
        self._lock = threading.Lock()
        self._folding = threading.Lock()
        self._is_archive = _checked(storage)
        self._clock: Clock | None = None  # there once the commits were read
        self._prints: dict[str, str] = {}
        self._bad: tuple[Damaged, ...] = ()
        self._loose = self._folded = 0

    def arrived(self) -> Mapping[str, Arrival]:
        """The runs and records that are whole here, by origin."""
        self._leads = self.storage.many > 1
        entries = [entry for _, entry in self._load().live.values() if entry.origin]
        return {unescape(one.origin): Arrival(unescape(one.id), unescape(one.stamp)) for one in entries}

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        """Keeps the experiments that are new or changed; writes nothing when there are none.

        Raises Conflict when another experiment has the id of one of these.
        """
        self._ready()
        prints = {escape(one.id): values.fingerprint(one) for one in experiments}
        changed = [one for one in experiments if self._prints.get(escape(one.id)) != prints[escape(one.id)]]
        if changed:
            self._check_same(changed)
            with self.pack("experiments-" + _joined(prints.values()), ()) as place:
                place.bring(changed)
                place.commit()
            self._prints |= prints
        return ()

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[ArchivePlace]:
        """A pack of the runs that `refs` name; leaving without commit leaves nothing that counts."""
        self._ready()
        place = ArchivePlace(self, _pack_name(id), refs, distinct=distinct)
        try:
            yield place
        finally:
            place.close()

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:  # noqa: ARG002
        """Tidies: few commits lie beside the checkpoint, damaged ones (all they held was written again) lie aside."""
        for error in self._bad:
            self._set_aside(error.message.partition(":")[0])
        if self._loose > index.LOOSE:
            self.fold()
        return ()

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:  # noqa: ARG002
        """Nothing meets anything: an archive holds what it is given, by where it came from."""
        return ()

    def names(self, ids: Mapping[str, str]) -> Names:  # noqa: ARG002
        """All names are kept."""
        return SameNames()

    def close(self) -> None:
        """Others may write."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def window(self) -> Window | None:
        """What sends the files of a pack many at once; None where one after another is as quick."""
        return None if self._pool is None else Window(self._pool, self._sent)

    def _sent(self, artifact: Artifact) -> tuple[str, int]:
        return self._again.do(f"file {artifact.path}", self.blobs.put, artifact)

    def committed(self, commit: Commit) -> None:
        """Writes the commit: from now on its pack is there. Raises Conflict when another has its name."""
        if self._lease is not None:
            self._lease.check()
        if not self.storage.create(layout.commit_name(commit.pack), encode(commit)):
            raise Conflict(f"{self.storage.shown} has another pack {commit.pack}.", "Run the same command again.")
        with self._lock:
            self._loose += 1
            many = self._loose > max(index.LOOSE, self._folded // index.SHARE)
        if many:
            with suppress(Unavailable):  # the pack is there; another one folds
                self.fold()

    def sequence(self) -> int:
        """More than any commit that was seen here."""
        with self._lock:
            self._clock = self._clock or Clock()
            return self._clock.next()

    def fold(self) -> None:
        """Writes the commits that there are now into one checkpoint. One thread does, the others go on."""
        if not self._folding.acquire(blocking=False):
            return
        try:
            now = index.load(self.storage)
            index.fold(self.storage, now.commits)
            with self._lock:
                self._loose, self._folded = 0, len(now.commits)
        finally:
            self._folding.release()

    def _load(self) -> Index:
        self._is_archive = self._is_archive or _checked(self.storage)  # another may have made it meanwhile
        now = index.load(self.storage) if self._is_archive else Index(())
        with self._lock:
            self._clock = Clock(max(now.sequence, self._clock.seen if self._clock else 0))
            self._prints = {id_: print_ for id_, (print_, _) in now.experiments.items()}
            self._bad = now.bad
            self._loose, self._folded = now.loose, len(now.commits) - now.loose
        return now

    def _ready(self) -> None:
        """The folder is an archive from now on, and what it holds is known."""
        if self._clock is None:
            self._load()
        with self._lock:
            if self._leads:
                self._lease = self._lease or Lease(self.storage, "export")
                self._lease.take()
            if not self._is_archive:
                created = datetime.now(UTC).isoformat(timespec="seconds")
                self.storage.create(layout.MANIFEST, layout.manifest(created))
                self._is_archive = True

    def _check_same(self, changed: Sequence[Experiment]) -> None:
        """Refuses an id that means another experiment here: one of another name, made at another time."""
        if not any(escape(one.id) in self._prints for one in changed):
            return
        there = {one.id: one for one in experiments_in(self.storage, index.load(self.storage))}
        for new in changed:
            old = there.get(new.id)
            if old and old.name != new.name and None not in (old.created, new.created) and old.created != new.created:
                raise Conflict(
                    f"{self.storage.shown} holds another experiment with the id {new.id}: "
                    f"{old.name!r:.80}, not {new.name!r:.80}.",
                    "Export into another archive, or give both sources to one command.",
                )

    def _set_aside(self, name: str) -> None:
        if layout.pack_of_commit(name):
            self.storage.create(name + ".damaged", index.read_all(self.storage, name, layout.MOST_COMMIT))
            self.storage.delete(name)


class ArchivePlace:
    """A pack on its way into an archive: its tables lie in a folder of its own that no commit names yet."""

    def __init__(self, target: ArchiveTarget, name: str, refs: Sequence[RunRef], *, distinct: bool) -> None:
        self._target, self._name, self._refs, self._distinct = target, name, refs, distinct
        storage = target.storage
        self._points = Points(storage, name)
        self._artifacts = Rows(storage, name, "artifacts")
        self._records = Rows(storage, name, "records")
        self._others: list[Rows] = []
        self._runs: dict[str, Run] = {}
        self._experiments: Sequence[Experiment] = ()
        self._kept = 0
        self._window = target.window()
        self._files: dict[str, list[int]] = {}  # owner -> number and bytes of its artifacts
        self._blobs: set[str] = set()
        self._entries: list[Entry] = []
        self._committed = False
        self._doubtful = False  # whether the commit may be there, though nobody said so

    def begin(self, runs: Sequence[Run]) -> None:
        """The runs of the pack. Raises Conflict when two of them have one id."""
        self._runs = {run.id: run for run in runs}
        if len(self._runs) < len(runs):
            raise Conflict("Two runs of one pack have the same id.", "Export their sources into archives of their own.")

    def bring(self, experiments: Sequence[Experiment]) -> None:
        """Experiments that the pack holds."""
        self._experiments = experiments

    def points(self, batch: pa.RecordBatch) -> None:
        """Adds points."""
        self._points.add(batch)

    def put(self, artifact: Artifact) -> None:
        """Adds a file."""
        if artifact.owner not in self._runs and not artifact.owner.startswith("@"):
            raise BadData(f"A file belongs to the run {artifact.owner!r:.80}, which is not in the pack.")
        if self._window is None:
            self._has(artifact, *self._target.blobs.put(artifact))
        else:
            for sent, kept in self._window.add(artifact):
                self._has(sent, *kept)

    def _has(self, artifact: Artifact, sha256: str, size: int) -> None:
        self._artifacts.add((artifact.owner, artifact.path, size, sha256))
        self._blobs.add(sha256)
        count = self._files.setdefault(artifact.owner, [0, 0])
        count[0] += 1
        count[1] += size

    def keep(self, record: Record) -> None:
        """Adds a record that belongs to no run."""
        self._records.add(values.record_row(record, None))
        self._kept += 1

    def commit(self, losses: Sequence[Loss] = ()) -> Mapping[str, str]:
        """Everything reaches the disk, then the commit does. Gives origin -> id."""
        if not self._committed:
            for sent, kept in () if self._window is None else self._window.drain():
                self._has(sent, *kept)
            files = self._tables()
            self._entries = self._counted()  # the points are counted once their table is whole
            names = [layout.table_name(self._name, file.name) for file in files]
            self._target.storage.flush([*names, *map(layout.blob_name, self._blobs)])
            commit = self._commit(files, losses)
            self._doubtful = self._target.storage.many > 1
            self._target.committed(commit)
            self._committed = True
        refs = [entry.ref for entry in self._entries]
        return {ref.origin: ref.id for ref in refs}

    def close(self) -> None:
        """Leaves nothing that counts, unless there was a commit."""
        if self._window is not None:
            self._window.close()
        self._points.drop()
        for table in (self._artifacts, self._records, *self._others):
            table.drop()
        if not self._committed and not self._doubtful:  # a commit without an answer may yet be there
            with suppress(MigrateError):  # what is left, prune takes away; what brought us here is worth more
                self._target.storage.delete(layout.pack_folder(self._name))

    def _tables(self) -> list[File]:
        storage, runs = self._target.storage, self._runs.values()
        files: list[File] = []
        for run in runs:
            self._records.extend(values.record_row(record, run.id) for record in run.records)
        rows = {
            "experiments": (values.experiment_row(one) for one in self._experiments),
            "runs": (values.run_row(run) for run in runs),
            "attributes": (row for run in runs for row in values.attribute_rows(run)),
            "inputs": (row for run in runs for row in values.input_rows(run)),
        }
        for table, its_rows in rows.items():
            written = Rows(storage, self._name, table)
            self._others.append(written)
            written.extend(its_rows)
            files += written.close()
        return [*files, *self._points.close(), *self._artifacts.close(), *self._records.close()]

    def _counted(self) -> list[Entry]:
        refs = {ref.origin or ref.id: ref for ref in self._refs}
        strays = self._points.counts.keys() - self._runs.keys()
        if strays:
            raise BadData(f"Points belong to the run {min(strays)!r:.80}, which is not in the pack.")
        entries = [self._entry(run, refs.pop(run.origin or run.id, None)) for run in self._runs.values()]
        return entries + [self._holder(ref) for ref in refs.values() if ref.kind == "records"]

    def _entry(self, run: Run, ref: RunRef | None) -> Entry:
        artifacts, size = self._files.get(run.id, (0, 0))
        return Entry(
            escape(run.id),
            escape(run.experiment),
            escape(run.origin),
            escape(run.stamp if ref is None else ref.stamp),
            kind="run" if ref is None else ref.kind,
            name=escape(run.name),
            status=escape(run.status),
            start=run.start,
            deleted=run.deleted,
            parent=escape(run.tags.get(PARENT_TAG, "")),
            points=self._points.counts.get(run.id, 0),
            first=self._points.first.get(run.id),
            params=len(run.params),
            tags=len(run.tags),
            artifacts=artifacts,
            size=size,
        )

    def _holder(self, ref: RunRef) -> Entry:
        shared = [count for owner, count in self._files.items() if owner.startswith("@")]
        return Entry(
            escape(ref.id),
            escape(ref.experiment),
            escape(ref.origin),
            escape(ref.stamp),
            kind="records",
            name=escape(ref.name),
            artifacts=sum(number for number, _ in shared),
            size=sum(size for _, size in shared),
        )

    def _commit(self, files: Sequence[File], losses: Sequence[Loss]) -> Commit:
        return Commit(
            layout.FORMAT,
            self._name,
            self._target.sequence(),
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            layout.WRITER,
            self._distinct,
            tuple(files),
            {escape(one.id): values.fingerprint(one) for one in self._experiments},
            tuple(self._entries),
            self._totals(),
            tuple(Lost(*map(escape, (loss.run, loss.what, loss.because, loss.experiment))) for loss in losses),
        )

    def _totals(self) -> Totals:
        entries = self._entries
        counts = self._files.values()
        return Totals(
            runs=sum(entry.kind == "run" for entry in entries),
            points=sum(self._points.counts.values()),
            params=sum(entry.params for entry in entries),
            tags=sum(entry.tags for entry in entries),
            artifacts=sum(number for number, _ in counts),
            records=self._kept + sum(len(run.records) for run in self._runs.values()),
            size=sum(size for _, size in counts),
        )


def _blobs(storage: Storage, part_size: int) -> Blobs:
    return SentBlobs(storage, part_size) if isinstance(storage, BucketStorage) else Blobs(storage)


def _checked(storage: Storage) -> bool:
    """Whether the place is an archive already.

    Raises Conflict when it is something else, BadData when it is of a newer format.
    """
    if _has_manifest(storage):
        return True
    there = storage.entries("") if storage.many == 1 else storage.walk("")
    if any(not entry.name.startswith((".", layout.WRITERS + "/")) for entry in there):
        if _has_manifest(storage):  # another made it after the first look: the manifest is the first file of all
            return True
        raise Conflict(
            f"{storage.shown} is not empty, and is not an archive: it has no {layout.MANIFEST}.",
            "Give a folder that does not exist yet, or an archive.",
        )
    return False


def _has_manifest(storage: Storage) -> bool:
    if storage.size(layout.MANIFEST) is None:
        return False
    layout.check_manifest(index.read_all(storage, layout.MANIFEST, layout.MOST_MANIFEST), storage.shown)
    return True


def _pack_name(id: str) -> str:
    """A name that no other try has: a second writer of the same pack is never in the way of the first."""
    plain = id if layout.is_pack(id) and len(id) <= 80 else _joined([_NOT_IN_A_NAME.sub("", id)[:20], id])  # noqa: PLR2004
    return f"{plain}-{secrets.token_hex(4)}"


def _joined(texts: Iterable[str]) -> str:
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]
