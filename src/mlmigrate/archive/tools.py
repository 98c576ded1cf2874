"""What a person does with an archive beside filling and emptying it: list, read, check, tidy.

Each takes the place of an archive as it is typed, and raises NotFound when none is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mlmigrate.adapters.base import Context
from mlmigrate.archive import checkout as trees
from mlmigrate.archive import index, layout
from mlmigrate.archive.blobs import checked_chunks
from mlmigrate.archive.commits import Commit, Entry
from mlmigrate.archive.fetching import AHEAD, looking_ahead
from mlmigrate.archive.index import Index
from mlmigrate.archive.lease import Lease
from mlmigrate.archive.reader import ArchiveSource, PackReading, Tables, check_archive, experiments_in
from mlmigrate.archive.values import Row, escape, unescape
from mlmigrate.errors import BadData, Conflict, Damaged, NotFound
from mlmigrate.model import Artifact, Finding, Loss
from mlmigrate.storage import Entry as StoredEntry
from mlmigrate.storage import Storage, open_storage


@dataclass(frozen=True, slots=True)
class Listed:
    """A run (`path` is "") or one of its artifacts. `size` in bytes of artifacts."""

    experiment: str
    run: str
    name: str
    points: int
    artifacts: int
    size: int
    path: str = ""
    sha256: str = ""


def ls(place: str, run: str = "") -> Iterator[Listed]:
    """The runs of an archive, or the artifacts of one run."""
    source = ArchiveSource(_opened(place))
    names = {one.id: one.name for one in source.experiments()}
    if run:
        for entry, artifact in _artifacts(source, run):
            experiment = names.get(unescape(entry.experiment), unescape(entry.experiment))
            size, sha256 = artifact.size or 0, artifact.sha256 or ""
            yield Listed(experiment, artifact.owner, unescape(entry.name), 0, 1, size, artifact.path, sha256)
        return
    for _, entry in source.index.live.values():
        ref = entry.ref
        experiment = names.get(ref.experiment, ref.experiment)
        yield Listed(experiment, ref.id, ref.name, ref.points, entry.artifacts, ref.size)


def cat(place: str, run: str, path: str) -> AbstractContextManager[BinaryIO]:
    """The bytes of an artifact. Reading raises Damaged, at the latest with the last byte, when they are damaged."""
    for _, artifact in _artifacts(ArchiveSource(_opened(place)), run):
        if artifact.path == path:
            return artifact.open()
    raise NotFound(f"The run {run!r:.80} has no artifact {path!r:.200}.", f"mlmigrate archive ls {place} {run}")


def checkout(place: str, run: str, folder: str | Path) -> list[Loss]:
    """The artifacts of a run as files under `folder`; of every run ("") and model under a
    folder named by its id.

    Gives those that were not written: their names are unsafe, or their bytes damaged.
    """
    source = ArchiveSource(_opened(place))
    if run:
        return trees.fill(Path(folder), ((artifact.path, artifact) for _, artifact in _artifacts(source, run)))
    return trees.fill(Path(folder), _all_artifacts(source))


def check(place: str) -> Iterator[Finding]:
    """Reads every byte of an archive back.

    mark "!"   damaged or missing
    mark "-"   named by no commit: left by a stopped export, or older than what replaced it (`prune` drops it)
    """
    return _Check(_opened(place)).findings()


def prune(place: str, dry_run: bool = False, older_than: float = 3600) -> list[str]:
    """Drops what no live commit names, and gives its names.

    What was written or replaced less than `older_than` seconds ago stays: a writer or a reader may be
    at work on it. Raises Damaged when a commit cannot be read, for nobody knows then what it names; in an object
    store ArchiveInUse while another command writes.
    """
    storage = _opened(place)
    check_archive(storage)
    with ExitStack() as stack:
        if storage.many > 1 and not dry_run:
            lease = Lease(storage, "prune")
            lease.take()
            stack.callback(lease.release)
        plan = _Prune(storage, time.time() - older_than)
        if not dry_run:
            plan.run()
        return [*plan.names, *storage.sweep(plan.before, dry_run=dry_run)]


def _opened(place: str) -> Storage:
    return open_storage(place, Context("source").env)


def _artifacts(source: ArchiveSource, run: str) -> Iterator[tuple[Entry, Artifact]]:
    """The artifacts of the run of this id or origin, or of the model or trace "@..."."""
    live = list(source.index.live.values())
    found = [one for one in live if escape(run) in (one[1].id, one[1].origin)]
    if len(found) > 1:
        origins = ", ".join(entry.origin for _, entry in found)
        message = f"There are {len(found)} runs with the id {run!r:.80}."
        raise Conflict(message, f"Name one by its origin: {origins:.300}")
    owner = unescape(found[0][1].id) if found else run
    if not found and run.startswith("@"):
        found = [one for one in live if one[1].kind == "records"]
    if not found:
        raise NotFound(f"There is no run {run!r:.80} in the archive.", "mlmigrate archive ls lists them.")
    for commit, entry in found:
        for artifact in _of_entry(source, commit, entry):
            if artifact.owner == owner or (entry.kind == "records" and owner == unescape(entry.id)):
                yield entry, artifact


def _all_artifacts(source: ArchiveSource) -> Iterator[tuple[str, Artifact]]:
    for commit, entry in source.index.live.values():
        for artifact in _of_entry(source, commit, entry):
            yield f"{artifact.owner}/{artifact.path}", artifact


def _of_entry(source: ArchiveSource, commit: Commit, entry: Entry) -> Iterator[Artifact]:
    pack = PackReading(source.tables, commit)
    pack.asked.append(entry)
    return pack.artifacts()


class _Check:
    """One check of an archive, from its commits down to the last blob."""

    def __init__(self, storage: Storage) -> None:
        _check_there(storage)
        self._storage = storage
        self._tables = Tables(storage)
        self._index = Index(())
        self._names: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(storage.many, thread_name_prefix="blob") if storage.many > 1 else None
        self._reading: dict[str, Future[str]] = {}
        self._blobs: dict[bytes, str] = {}  # digest -> what is wrong with the blob, "" for nothing

    def findings(self) -> Iterator[Finding]:
        """What is wrong, and what nothing names."""
        try:
            yield from self._findings()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def _findings(self) -> Iterator[Finding]:
        yield from self._found(partial(check_archive, self._storage))
        for name in index.checkpoint_names(self._storage):
            yield from self._found(partial(index.read_checkpoint, self._storage, name))
        yield from self._commits()
        for commit in self._index.commits:
            yield from self._pack(commit)
        yield from self._strangers()

    def _found(self, call: Callable[[], object]) -> Iterator[Finding]:
        try:
            call()
        except BadData as error:
            yield _finding(error.message)

    def _commits(self) -> Iterator[Finding]:
        self._index = index.load(self._storage)
        names = index.commit_names(self._storage)
        for one in index.read_commits(self._storage, names):
            if isinstance(one, Damaged):
                yield _finding(one.message)
        living = self._index.living() - {layout.pack_of_commit(name) for name in names}
        for pack in sorted(living):
            yield _finding(f"{layout.commit_name(pack)}: it is missing; a checkpoint still holds it.")
        try:
            self._names = {one.id: one.name for one in experiments_in(self._storage, self._index, self._tables)}
        except BadData:
            return  # found again with its pack

    def _pack(self, commit: Commit) -> Iterator[Finding]:
        whole = True
        for file in commit.files:
            try:
                name = layout.table_name(commit.pack, file.name)
                with self._tables.open(commit.pack, file) as parquet:
                    if parquet.metadata.num_rows != file.rows:
                        raise layout.damaged(name, f"its commit counts {file.rows:,} rows")
            except BadData as error:
                whole = False
                yield _finding(f"{error.message} {self._of_runs(commit)}".rstrip())
        if whole:
            try:
                yield from self._artifacts(commit)
            except BadData as error:
                yield _finding(error.message)

    def _of_runs(self, commit: Commit) -> str:
        ids = [unescape(entry.id) for pack, entry in self._index.live.values() if pack is commit]
        more = " ..." if len(ids) > 3 else ""  # noqa: PLR2004  enough to find the others
        return f"Runs in it: {len(ids):,} ({', '.join(ids[:3])}{more})" if ids else ""

    def _artifacts(self, commit: Commit) -> Iterator[Finding]:
        entries = {unescape(entry.id): entry for entry in commit.runs}
        for owner, path, size, sha256 in self._read_ahead(self._tables.rows(commit, "artifacts")):
            wrong = self._blob(sha256, size)
            if wrong:
                entry = entries.get(owner)
                experiment = unescape(entry.experiment) if entry else ""
                yield Finding("!", self._names.get(experiment, experiment), owner, f"artifact {path}: {wrong}")

    def _blob(self, sha256: str, size: int) -> str:
        """What is wrong with a blob; each is read once."""
        key = bytes.fromhex(sha256) if layout.is_blob(sha256) else sha256.encode()
        if key not in self._blobs:
            reading = self._reading.pop(sha256, None)
            self._blobs[key] = self._wrong(sha256, size) if reading is None else reading.result()
        return self._blobs[key]

    def _read_ahead(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows of files; those whose blobs are about to be asked for are being read, many at once."""
        if self._pool is None:
            return rows
        return looking_ahead(map(self._asked, rows), AHEAD)

    def _asked(self, row: Row) -> Row:
        _, _, size, sha256 = row
        if self._pool is not None and layout.is_blob(sha256) and bytes.fromhex(sha256) not in self._blobs:
            self._reading.setdefault(sha256, self._pool.submit(self._wrong, sha256, size))
        return row

    def _wrong(self, sha256: str, size: int) -> str:
        try:
            for _ in checked_chunks(self._storage, sha256, size):
                pass
        except BadData as error:
            return error.message
        return ""

    def _strangers(self) -> Iterator[Finding]:
        """What no commit names."""
        known = {commit.pack for commit in self._index.commits}
        living = self._index.living()
        for entry in _listed(self._storage):
            if not self._is_named(entry, known, living):
                yield Finding("-", "", "", f"{entry.name}: no live commit names it.")

    def _is_named(self, entry: StoredEntry, known: set[str], living: set[str]) -> bool:
        pack = layout.pack_of_commit(entry.name) or entry.name.partition("/")[2]
        if entry.name.startswith(layout.PACKS + "/"):
            return pack in living or (pack in known and not entry.folder)
        if entry.name.startswith(layout.BLOBS + "/"):
            sha256 = entry.name.rpartition("/")[2]
            return layout.is_blob(sha256) and bytes.fromhex(sha256) in self._blobs
        return (
            entry.name == layout.MANIFEST
            or layout.sha256_of_checkpoint(entry.name) is not None
            or layout.writer_number(entry.name) is not None
        )


def _check_there(storage: Storage) -> None:
    """Raises NotFound when there is no archive; one that is damaged is there."""
    try:
        check_archive(storage)
    except BadData:
        return


def _listed(storage: Storage) -> Iterator[StoredEntry]:
    """Files and packs' folders, down to where names say something."""
    if storage.many > 1:
        yield from _listed_at_once(storage)
        return
    for entry in storage.entries(""):
        if entry.folder and entry.name in (layout.PACKS, layout.CHECKPOINTS):
            yield from storage.entries(entry.name)
        elif entry.folder and entry.name == layout.BLOBS:
            for folder in storage.entries(entry.name):
                yield from storage.entries(folder.name) if folder.folder else [folder]
        elif not entry.name.startswith("."):
            yield entry


def _listed_at_once(storage: Storage) -> Iterator[StoredEntry]:
    """The same where a listing is of everything below a place: one is enough."""
    packs: set[str] = set()
    for entry in storage.walk(""):
        parts = entry.name.split("/")
        if parts[0] == layout.PACKS and len(parts) > 2:  # noqa: PLR2004  packs/<pack>/<table>
            if parts[1] not in packs:
                packs.add(parts[1])
                yield StoredEntry(f"{layout.PACKS}/{parts[1]}", folder=True, size=0, modified=entry.modified)
        elif not parts[0].startswith("."):
            yield entry


def _finding(what: str) -> Finding:
    return Finding("!", "", "", what)


class _Prune:
    """What is to be dropped, and in which order: first what names, then what is named."""

    def __init__(self, storage: Storage, before: float) -> None:
        self._storage, self.before = storage, before
        entries = list(storage.entries(layout.PACKS))  # listed first: what is committed meanwhile is not among them
        found = index.load(storage)
        for error in found.bad:
            raise error
        old = Index(tuple(commit for commit in found.commits if commit.sequence <= before * 1e6))
        dead = {commit.pack for commit in old.commits} - old.living()
        self._kept = [commit for commit in found.commits if commit.pack not in dead]
        self._commits = sorted(layout.commit_name(pack) for pack in dead)
        named = {layout.pack_folder(commit.pack) for commit in self._kept}
        self._packs = sorted(self._strays(entries, named, {layout.pack_folder(pack) for pack in dead}))
        self._blobs = sorted(self._stray_blobs())

    @property
    def names(self) -> list[str]:
        """All that is to be dropped."""
        return [*self._commits, *self._packs, *self._blobs]

    def run(self) -> None:
        """Drops it."""
        if self._commits:
            index.fold(self._storage, self._kept)
            index.keep_newest(self._storage, 1)
        self._storage.delete_files(self._commits)
        for name in self._packs:
            self._storage.delete(name)
        self._storage.delete_files(self._blobs)

    def _strays(self, entries: list[StoredEntry], named: set[str], dead: set[str]) -> Iterator[str]:
        for entry in entries:
            young = entry.modified > self.before
            stray = entry.name not in named if entry.folder else entry.name.endswith(".json.damaged")
            if stray and (entry.name in dead or not young):
                yield entry.name

    def _stray_blobs(self) -> Iterator[str]:
        used = {blob for commit in self._kept for blob in _blobs_of(Tables(self._storage), commit)}
        for entry in self._storage.walk(layout.BLOBS):
            sha256 = entry.name.rpartition("/")[2]
            if layout.is_blob(sha256) and bytes.fromhex(sha256) not in used and entry.modified <= self.before:
                yield entry.name


def _blobs_of(tables: Tables, commit: Commit) -> Iterator[bytes]:
    for _, _, _, sha256 in tables.rows(commit, "artifacts"):
        if layout.is_blob(sha256):
            yield bytes.fromhex(sha256)
