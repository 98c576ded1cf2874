"""One file's way from its place to the target, proven: the errors of either side told apart."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal, Protocol, cast

from mlmigrate.adapters.base import Again
from mlmigrate.errors import Damaged, DiskFull, MigrateError, NotFound, Refused, Stopped, Unavailable
from mlmigrate.storage.folder import FolderObjects
from mlmigrate.storage.objects import PART, Body, Changed, FileBody, Objects, Stored, digest_of, digest_text, parts_in
from mlmigrate.storage.slices import version_of

PARTS_AT_ONCE = 4  # of one file
FRESH = 3  # times that a file is taken again when it changed under us, or did not arrive as it was sent
MIDDLE = 1 << 20  # bytes from which files ask before they are held in memory
CERTAIN = 3  # files whose etags were no md5s, and none whose was: then they are something else there
_MD5 = 32  # characters of an etag that may be one

How = Literal["put", "parts", "copied", "there"]


@dataclass(frozen=True, slots=True)
class Task:
    """A file to be moved, as it was listed. `to` is its key in the target."""

    source: Objects
    key: str
    size: int
    version: str
    to: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A file that the target has.

    task    its size and version are those of the bytes that were moved, which may be younger than the list
    digest  of the target's bytes, proven to be those that were read; "" for a copy by a store that proves nothing
    sent    bytes of it that passed through this process
    """

    task: Task
    stored: Stored
    digest: str
    how: How
    sent: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A file that did not arrive. Another run may go on with its parts."""

    task: Task
    error: MigrateError


class TargetLost(Exception):
    """The target takes nothing more: no right, no space, not there."""

    def __init__(self, error: MigrateError) -> None:
        super().__init__(error)
        self.error = error


class Etags:
    """What was found out of the etags of each place: md5s they are, but for some encryptions."""

    def __init__(self) -> None:
        self._others: dict[str, int] = {}

    def are(self, url: str, *, md5s: bool) -> None:
        """A file's etag was its md5, or proved to be none. One md5 is enough to go on looking at all of them."""
        if md5s:
            self._others[url] = -(1 << 60)
        else:
            self._others[url] = self._others.get(url, 0) + 1

    def told(self, url: str) -> bool:
        """Whether the etags there are something else for certain."""
        return self._others.get(url, 0) >= CERTAIN


class Shared(Protocol):
    """What the carriers of one move share. `apart`: the target's credentials cannot read the source."""

    target: Objects
    part_size: int
    over: threading.Event
    etags: Etags
    apart: bool

    def hold(self, size: int) -> AbstractContextManager[None]:
        """Waits until so many bytes may be held."""

    def unfinished(self, key: str, *, fresh: bool = False) -> list[str]:
        """The uploads of this key that were broken off, the youngest last; `fresh`: those of now."""

    def arrived(self, size: int) -> None:
        """So many bytes more of a large file are there."""


@dataclass(frozen=True, slots=True)
class ObjectBody:
    """A file of another place as a body: each part is a request of its own, for this version alone."""

    source: Objects
    key: str
    size: int
    version: str = ""

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A range of the file."""
        return self.source.open(self.key, start, length, self.version)


class Watched:
    """A body that ends when all is to end, remembers its own error, and tells of each part that was taken."""

    def __init__(self, body: Body, shared: Shared, count: Callable[[int], None]) -> None:
        self.size = body.size
        self.error: MigrateError | None = None
        self._body, self._over, self._count = body, shared.over, count
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    @contextmanager
    def open(self, start: int, length: int) -> Iterator[BinaryIO]:
        """A part. It counts as arrived when who reads it is content, once."""
        with self._remembered():
            opened = self._body.open(start, length)
            stream = opened.__enter__()
        try:
            yield cast("BinaryIO", WatchedStream(stream, length, self))
        finally:
            opened.__exit__(None, None, None)
        with self._lock:
            if start not in self._seen:
                self._seen.add(start)
                self._count(length)

    @contextmanager
    def looked_at(self) -> Iterator[BinaryIO]:
        """All of it, only to be compared."""
        with self._body.open(0, self.size) as stream:
            yield cast("BinaryIO", WatchedStream(stream, self.size, self))

    def go_on(self) -> None:
        """Raises Stopped when all is to end."""
        if self._over.is_set():
            raise Stopped

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        self.go_on()
        try:
            yield
        except MigrateError as error:
            self.error = error
            raise


class WatchedStream:
    """The stream of a part: as it is, but that it can be ended."""

    def __init__(self, stream: BinaryIO, length: int, body: Watched) -> None:
        self._stream, self._length, self._body = stream, length, body
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def __len__(self) -> int:
        return self._length

    def read(self, size: int = -1) -> bytes:
        """As the stream does."""
        self._body.go_on()
        try:
            return self._stream.read(size)
        except MigrateError as error:
            self._body.error = error
            raise


class Carry:
    """Carries one file. `left` is how many of its bytes `arrived` was not told of."""

    def __init__(self, shared: Shared, task: Task, again: Again) -> None:
        self._shared, self.task, self._again = shared, task, again
        self._targets = False  # whether what went wrong last did so in the target
        self._wrote = False  # whether the last try began to write there
        self._tries = 0
        self._parts = task.size > PART
        self.left = task.size

    def end(self) -> Moved | Failed:
        """Tries until it is there or cannot be. Raises TargetLost, Stopped."""
        last = MigrateError("never tried")
        for _ in range(FRESH):
            try:
                moved = self._patient()
            except MigrateError as error:
                self._tries += 1
                last = error
                if self._targets and not isinstance(error, Damaged | Unavailable) and self._is_lost(error):
                    raise TargetLost(error) from error
                if not self._may_help(error) or not self._refreshed():
                    break
            else:
                self._tidied(moved)
                return moved
        self._undone(last)
        return Failed(self.task, last)

    def _undone(self, error: MigrateError) -> None:
        """What nobody will go on with goes: parts, and a file whose bytes are wrong."""
        if not isinstance(error, Unavailable) and self._parts:
            self._abort()
        if isinstance(error, Damaged) and self._wrote:
            with suppress(MigrateError):  # it is named as failed all the same
                self._shared.target.delete([self.task.to])

    def _may_help(self, error: MigrateError) -> bool:
        """Whether another try may end otherwise: what a store has against parts, it says only of these parts."""
        return isinstance(error, Changed | Damaged) or (self._targets and self._parts and type(error) is MigrateError)

    def _tidied(self, moved: Moved) -> None:
        """Parts of other uploads of this file go: of one that was broken off, or whose beginning was never answered."""
        if self._parts and (moved.how == "parts" or self._shared.unfinished(self.task.to)):
            self._abort()

    def _patient(self) -> Moved:
        """Once, and again while a place is away: what calls again is asked only when something went wrong."""
        try:
            return self._once()
        except Unavailable as error:
            first = [error]

        def repeated() -> Moved:
            if first:
                raise first.pop()
            if self._shared.over.is_set():
                raise Stopped
            self._tries += 1
            return self._once()

        return self._again.do(f"file {self.task.key}", repeated)

    def _once(self) -> Moved:
        self._targets = self._wrote = False
        task, target = self.task, self._shared.target
        if task.source.store and task.source.store == target.store and not self._shared.apart:
            try:
                return self._copied()
            except Refused:  # each side's credentials may know its own bucket alone: then the bytes pass through here
                if target.local is not None or not self._targets:
                    raise
                self._shared.apart, self._targets = True, False
        if task.size > PART:
            return self._in_parts()
        if task.size <= MIDDLE:
            return self._put()
        with self._shared.hold(task.size):
            return self._put()

    def _put(self) -> Moved:
        data = self._read()
        if data is None:
            return self._in_parts()
        sha256 = hashlib.sha256(data).hexdigest()
        self._targets = self._wrote = True
        stored = self._shared.target.put(self.task.to, data, sha256=sha256)
        if stored.digest != f"sha256:{sha256}" or stored.size != len(data):
            raise self._not_as_sent()
        return Moved(self.task, stored, stored.digest, "put", len(data))

    def _read(self) -> bytes | None:
        """All bytes of the file as it is now; None when it has become a large one."""
        source = self.task.source
        if isinstance(source, FolderObjects):
            with source._explained(self.task.key):  # noqa: SLF001  the quickest way, taken for each of millions
                return self._read_here(source)
        with source.open(self.task.key, 0, None, self.task.version) as stream:
            data = stream.read(PART + 1)
            while len(data) <= PART and (more := stream.read(PART)):
                data += more
        if len(data) != self.task.size:
            raise self._changed()
        return self._sure(data)

    def _read_here(self, source: FolderObjects) -> bytes | None:
        descriptor = source.descriptor(self.task.key)
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise NotFound(f"{source.shown}/{self.task.key} is no file.")
            size, version = before.st_size, version_of(before)
            if size != self.task.size or version != self.task.version:
                self._renew(size, version)
            if size > PART:
                return None
            data = os.read(descriptor, size + 1)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if len(data) != size or after.st_mtime_ns != before.st_mtime_ns or after.st_size != size:
            raise self._changed()
        return data

    def _sure(self, data: bytes) -> bytes:
        """Data whose etag is its md5, or else what the source's checksum or a second reading says of them."""
        source, etag = self.task.source, self.task.version
        if len(etag) != _MD5 or self._shared.etags.told(source.url):
            return data
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == etag:
            self._shared.etags.are(source.url, md5s=True)
            return data
        known = source.head(self.task.key)
        if known is not None and known.digest.startswith("sha256:") and not parts_in(known.digest):
            equal = known.digest == digest_text(hashlib.sha256(data).digest())
        else:
            with source.open(self.task.key, 0, None, etag) as stream:
                equal = b"".join(iter(lambda: stream.read(PART), b"")) == data
        if not equal:
            raise Damaged(f"{source.shown}/{self.task.key}: what was read is not what lies there.")
        self._shared.etags.are(source.url, md5s=False)
        return data

    def _in_parts(self) -> Moved:
        target, self._parts = self._shared.target, True
        body = Watched(self._body(), self._shared, self._count)
        known, part = self._known()
        if there := self._there(body, known):
            return there
        self._targets = True
        upload = self._shared.unfinished(self.task.to, fresh=self._tries > 0)
        resume, self._wrote = upload[-1] if upload else "", True
        try:
            stored = target.upload(self.task.to, body, part_size=part, resume=resume, threads=PARTS_AT_ONCE)
        except MigrateError as error:
            if body.error is not None and error is not body.error:
                raise body.error from error
            self._targets = body.error is None
            raise
        self._targets = True
        if stored.size != self.task.size or not stored.digest.startswith("sha256:"):
            raise self._not_as_sent()
        if known and parts_in(known) == parts_in(stored.digest) and known != stored.digest:
            self._read_again(body, stored.digest)
        return Moved(self.task, stored, stored.digest, "parts", self.task.size)

    def _read_again(self, body: Watched, digest: str) -> None:
        """A store may have taken other parts than it seems; then a second reading decides. Raises Damaged."""
        with body.looked_at() as stream:
            if digest_of(stream, parts_in(digest))[0] != digest:
                raise Damaged(f"{self.task.source.shown}/{self.task.key}: what was read is not what lies there.")

    def _known(self) -> tuple[str, int]:
        """The digest that the source keeps, and the parts to send: of that size, so that both can be compared."""
        asked = self._shared.part_size
        if isinstance(self.task.source, FolderObjects):
            return "", asked
        found = self.task.source.head(self.task.key)
        if found is None or not found.digest.startswith("sha256:"):
            return "", asked
        return found.digest, asked or parts_in(found.digest)

    def _body(self) -> Body:
        """The file as a body, as it is now."""
        source = self.task.source
        if not isinstance(source, FolderObjects):
            return ObjectBody(source, self.task.key, self.task.size, self.task.version)
        found = source.head(self.task.key)
        if found is None:
            raise NotFound(f"{source.shown}/{self.task.key} does not exist.")
        if (found.size, found.version) != (self.task.size, self.task.version):
            self._renew(found.size, found.version)
        return FileBody(source.root / self.task.key, found.size, found.version)

    def _there(self, body: Watched, known: str) -> Moved | None:
        """The file that the target has already, when its digest is that of the source's bytes."""
        self._targets = True
        found = self._shared.target.head(self.task.to)
        self._targets = False
        if found is None or found.size != body.size or not found.digest.startswith("sha256:"):
            return None
        if known != found.digest:
            with body.looked_at() as stream:
                if digest_of(stream, parts_in(found.digest)) != (found.digest, found.size):
                    return None
        return Moved(self.task, found, found.digest, "there", 0)

    def _copied(self) -> Moved:
        task, target = self.task, self._shared.target
        try:
            stored = target.copy(task.source, task.key, task.to, task.size, task.version)
        except (Refused, NotFound):
            self._targets = self._can_be_read()
            raise
        except (Changed, Unavailable):
            raise
        except MigrateError:
            self._targets = True
            raise
        if not stored.digest and target.local is None:
            return self._proven_by_reading(stored)
        sent = stored.size if target.local is not None else 0
        return Moved(self.task, stored, stored.digest, "copied", sent)

    def _proven_by_reading(self, stored: Stored) -> Moved:
        """What the store's own words leave open (some encryptions, Azure), both sides' bytes tell. Raises Damaged."""
        task, self._wrote = self.task, True
        with task.source.open(task.key, version=task.version) as stream:
            digest = digest_of(stream)[0]
        with self._shared.target.open(task.to) as stream:
            self._targets = True
            if digest_of(stream)[0] != digest:
                raise Damaged(f"{task.to}: the copy is not as its source.", "Run the same command again.")
        return Moved(task, stored, digest, "copied", 2 * stored.size)

    def _can_be_read(self) -> bool:
        """Whether the source has nothing against a copy."""
        try:
            return self.task.source.head(self.task.key) is not None
        except MigrateError:
            return False

    def _refreshed(self) -> bool:
        """The task as its file is now; False when there is none any more."""
        if self._shared.over.is_set():
            raise Stopped
        try:
            found = self.task.source.head(self.task.key)
        except MigrateError:
            return True  # the next try says it better
        if found is not None:
            self._renew(found.size, found.version)
        return found is not None

    def _count(self, size: int) -> None:
        size = max(0, min(size, self.left))
        self.left -= size
        self._shared.arrived(size)

    def _renew(self, size: int, version: str) -> None:
        self.left += size - self.task.size
        self.task = replace(self.task, size=size, version=version)

    def _is_lost(self, error: MigrateError) -> bool:
        """Whether what the target said of one file is true of all."""
        if not isinstance(error, NotFound):
            return isinstance(error, Refused | DiskFull)
        try:
            self._shared.target.check()
        except MigrateError:
            return True
        return False

    def _abort(self) -> None:
        """Takes parts away that nobody will go on with."""
        with suppress(MigrateError):  # they cost space, no more; the next run finds them again
            for upload in self._shared.unfinished(self.task.to, fresh=True):
                self._shared.target.abort(self.task.to, upload)

    def _changed(self) -> Changed:
        shown = f"{self.task.source.shown}/{self.task.key}"
        return Changed(f"{shown} was written while it was copied.", "Run the same command again when it is done.")

    def _not_as_sent(self) -> Damaged:
        shown = f"{self._shared.target.shown}/{self.task.to}"
        return Damaged(f"{shown}: what arrived is not what was sent.", "Run the same command again.")
