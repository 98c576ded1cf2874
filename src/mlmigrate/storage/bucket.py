"""An archive's files in an object store.

Nothing there is ever half a file: an object is put whole, or in parts that become one file at their end.
Only `create` needs more, that of two who write one name one is told so; S3, GCS and Azure have it.

.parts/<random>   what has no name yet; rubbish after a crash
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

from mlmigrate.errors import DiskFull, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.model import Spot
from mlmigrate.storage.base import Entry, clean
from mlmigrate.storage.objects import PART, BadKey, Body, Changed, Exists, Objects, Stored, parts_in
from mlmigrate.storage.slices import Slice

log = logging.getLogger(__name__)
PARTS = ".parts"
TRIES = 5  # of a conditional put that meets another
NOT_IMPLEMENTED = re.compile(r"NotImplemented|\b501\b")
AT_ONCE = 32  # requests
CHUNK = 1 << 20
WHOLE = 2 << 20  # bytes; a file that is no larger is fetched whole
FARTHEST = 8 << 20  # bytes read ahead of who reads on and on
HELD = PART  # bytes of a file without a name that are kept in memory
CACHED = 48 << 20  # bytes of small tables that are kept: each is opened several times
READ_TO_BELIEVE = PART  # bytes; what a store keeps no plain digest of is read where it is no larger


class BucketStorage:
    """Files below a place in an object store."""

    many = AT_ONCE

    def __init__(self, objects: Objects, other: Callable[[str], Objects] | None = None) -> None:
        """`other` opens other places of the store, with the same credentials."""
        self.objects, self._other = objects, other
        self._conditional = True
        self._cached: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def shown(self) -> str:
        """The place, secrets hidden."""
        return self.objects.shown

    def open(self, name: str) -> BinaryIO:
        """The file for reading, seekable: small ones in one request. Raises NotFound."""
        key = clean(name)
        known = self._known(key)
        if known is not None:
            return io.BytesIO(known)
        with ExitStack() as stack:
            stream = stack.enter_context(self.objects.open(key))
            head = filled(stream, WHOLE + 1)
            if len(head) > WHOLE:
                raw = RangeFile(self.objects, key, head, stream, stack.pop_all())
                return cast("BinaryIO", io.BufferedReader(raw, 1 << 16))
        self._keep(key, head)
        return io.BytesIO(head)

    def piece(self, name: str, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A piece of the file, in one request. Raises NotFound."""
        return self.objects.open(clean(name), start, length)

    def size(self, name: str) -> int | None:
        """How many bytes the file has; None when there is none."""
        found = self.objects.head(clean(name))
        return None if found is None else found.size

    def entries(self, folder: str) -> Iterator[Entry]:
        """What lies directly in `folder`; a folder is as young as the youngest file in it."""
        start = len(folder) + 1 if folder else 0
        folders: dict[str, float] = {}
        for entry in self.walk(folder):
            first, deeper, _ = entry.name[start:].partition("/")
            if deeper:
                folders[first] = max(folders.get(first, 0.0), entry.modified)
            else:
                yield entry
        for name, modified in folders.items():
            yield Entry(entry_name(folder, name), folder=True, size=0, modified=modified)

    def walk(self, folder: str) -> Iterator[Entry]:
        """Every file below `folder`. Raises NotFound when there is no bucket."""
        for one in self.objects.list(f"{clean(folder)}/" if folder else ""):
            if not one.key.endswith("/"):  # some tools make empty objects that stand for folders
                yield Entry(one.key, folder=False, size=one.size, modified=one.modified)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a whole file of this name unless there is one."""
        key = clean(name)
        for _ in range(TRIES):
            try:
                self._create(key, data)
            except (Exists, Changed):
                there = self._read(key, len(data) + 1)
                if there is not None:
                    return there == data  # by ourselves: the answer to a first try was lost
                continue  # two at once: the store refused both
            return True
        raise Unavailable(f"{self.shown}/{key}: others write it at the same time.")

    @contextmanager
    def part(self) -> Iterator[BucketPart]:
        """A file to write; leaving before `become` leaves nothing, for nothing is sent before."""
        part = BucketPart(self)
        try:
            yield part
        finally:
            part.close()

    def holds(self, name: str, size: int, sha256: str) -> bool | None:
        """Whether these bytes lie there, as the store's own digest tells where it keeps one.

        Large files have digests of their parts alone: there the size must do, for a store keeps files whole.
        Nothing is made young: who prunes and who writes keep out of each other's way (archive/lease.py).
        """
        found = self.objects.head(clean(name))
        if found is None or found.size != size:
            return False
        if found.digest.startswith("sha256:") and not parts_in(found.digest):
            return found.digest == f"sha256:{sha256}"
        return None if size <= READ_TO_BELIEVE else True

    def spot(self, name: str) -> Spot | None:
        """Where the store has the file."""
        return Spot(self.objects.store, f"{self.objects.url}/{clean(name)}")

    def delete(self, name: str) -> None:
        """Takes the file, or the folder with all that is in it, away."""
        self.delete_files([entry.name for entry in self.walk(name)] or [clean(name)])

    def delete_files(self, names: Iterable[str]) -> None:
        """Takes files away, many with one request."""
        keys = list(names)
        with self._lock:
            for key in keys:
                self._cached.pop(key, None)
        self.objects.delete(keys)

    def sweep(self, before: float, *, dry_run: bool = False) -> list[str]:
        """Takes away what has no name, and the parts of uploads, that are older than `before`; gives what they were."""
        parts = sorted(one.key for one in self.objects.list(f"{PARTS}/") if one.modified < before)
        uploads = sorted((key, id_) for key, id_, began in self.objects.unfinished() if began < before)
        if not dry_run:
            self.objects.delete(parts)
            for key, id_ in uploads:
                self.objects.abort(key, id_)
        return [*parts, *(f"{key} (an upload that never ended)" for key, _ in uploads)]

    def flush(self, names: Iterable[str]) -> None:
        """Nothing: what a store has answered for, it has."""

    def put(self, name: str, data: bytes | memoryview, sha256: str = "") -> None:
        """Writes a file whole; what was called so is replaced."""
        self.objects.put(clean(name), data, sha256=sha256)

    def upload(self, name: str, body: Body, part_size: int = 0, threads: int = 4) -> None:
        """Writes a file of any size; what was called so is replaced."""
        self.objects.upload(clean(name), body, part_size=part_size, threads=threads)

    def nameless(self) -> str:
        """The key of a new file that has no name yet."""
        return f"{PARTS}/{secrets.token_hex(8)}"

    def rename(self, key: str, name: str, size: int) -> None:
        """Gives a file that had no name its own; no byte passes through here."""
        self.objects.copy(self.objects, key, clean(name), size)
        self.objects.delete([key])

    def take(self, spot: Spot, name: str, size: int) -> Stored | None:
        """Has the store copy a file of its own to this name; None when that is not for us to do."""
        bucket, _, key = spot.url.partition("://")[2].partition("/")
        if spot.store != self.objects.store or self._other is None or not key:
            return None
        try:
            source = self._other(f"{spot.url.partition('://')[0]}://{bucket}")
            return self.objects.copy(source, key, clean(name), size, spot.version)
        except (Refused, BadKey):  # whoever opened the file may read it; we may not
            return None

    def _create(self, key: str, data: bytes) -> None:
        """Raises Exists. A store that knows no conditional put is asked first, as near as it lets us."""
        if self._conditional:
            try:
                self.objects.put(key, data, create=True)
            except MigrateError as error:
                if not NOT_IMPLEMENTED.search(error.message):
                    raise
                self._conditional = False
                log.warning("%s knows no conditional put: let one export at a time write there.", self.shown)
            else:
                return
        if self.objects.head(key) is not None:
            raise Exists(f"{self.shown}/{key} is there already.")
        self.objects.put(key, data)

    def _read(self, key: str, most: int) -> bytes | None:
        try:
            with self.objects.open(key) as stream:
                return filled(stream, most)
        except NotFound:
            return None

    def _known(self, key: str) -> bytes | None:
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
            return self._cached.get(key)

    def _keep(self, key: str, data: bytes) -> None:
        if not key.endswith(".parquet"):
            return
        with self._lock:
            self._cached[key] = data
            while sum(map(len, self._cached.values())) > CACHED:
                self._cached.popitem(last=False)


class BucketPart:
    """A file on its way: in memory, and on the disk from where it is larger than HELD."""

    def __init__(self, storage: BucketStorage) -> None:
        self._storage = storage
        self._held = bytearray()
        self._spilt: IO[bytes] | None = None
        self._size = 0

    def write(self, data: bytes | memoryview) -> int:
        """Adds all of `data`."""
        view = memoryview(data).cast("B")
        if self._spilt is None and len(self._held) + len(view) > HELD:
            self._spill()
        if self._spilt is None:
            self._held += view
        else:
            with _on_disk():
                self._spilt.write(view)
        self._size += len(view)
        return len(view)

    def become(self, name: str) -> None:
        """The file is whole and is called so."""
        if self._spilt is not None:
            with _on_disk():
                self._spilt.flush()
            self._storage.upload(name, _Spilt(self._spilt.fileno(), self._size))
        else:
            self._storage.put(name, memoryview(self._held))
        self.close()

    def close(self) -> None:
        """Forgets what was written."""
        self._held = bytearray()
        if self._spilt is not None:
            self._spilt.close()

    def _spill(self) -> None:
        with _on_disk():
            self._spilt = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
            self._spilt.write(self._held)
        self._held = bytearray()


@dataclass(frozen=True, slots=True)
class _Spilt:
    """A file of ours that has no name."""

    descriptor: int
    size: int

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A slice of it."""
        return cast("BinaryIO", Slice(os.dup(self.descriptor), "a temporary file", start, length))


class RangeFile(io.RawIOBase):
    """A file elsewhere: read on, it is one request; read here and there, each place is one, with a little more."""

    def __init__(self, objects: Objects, key: str, head: bytes, stream: BinaryIO, closing: ExitStack) -> None:
        super().__init__()
        self._objects, self._key = objects, key
        self._stream: BinaryIO | None = stream
        self._closing = closing
        self._window, self._start, self._at = head, 0, 0
        self._ahead = CHUNK
        self._size: int | None = None
        self._version = ""

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def tell(self) -> int:
        """Where it stands."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to another place; nothing is asked for before it is read."""
        base = 0 if whence == io.SEEK_SET else self._at if whence == io.SEEK_CUR else self._length()
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Some bytes; none at the end."""
        view = memoryview(buffer).cast("B")
        offset = self._at - self._start
        if not 0 <= offset < len(self._window):
            self._fetch(len(view))
            offset = 0
        data = self._window[offset : offset + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Lets go of the connection."""
        self._stream, self._window = None, b""
        self._closing.close()
        super().close()

    def _fetch(self, wanted: int) -> None:
        end = self._start + len(self._window)
        if self._stream is not None and self._at == end:
            try:
                self._window, self._start = self._stream.read(CHUNK), end
            except Unavailable:  # broken on the way: asked for again from here on
                pass
            else:
                return
        self._leave_stream()
        left = max(0, self._length() - self._at)
        self._ahead = min(2 * self._ahead, FARTHEST) if self._at == end else CHUNK
        length = min(max(wanted, self._ahead), left)
        self._window = self._range(length) if length else b""
        self._start = self._at

    def _range(self, length: int) -> bytes:
        with self._objects.open(self._key, self._at, length, self._version) as stream:
            return filled(stream, length)

    def _leave_stream(self) -> None:
        if self._stream is not None:
            self._stream = None
            self._closing.close()

    def _length(self) -> int:
        if self._size is None:
            found = self._objects.head(self._key)
            if found is None:
                raise NotFound(f"{self._objects.shown}/{self._key} does not exist any more.")
            self._size, self._version = found.size, found.version
        return self._size


def filled(stream: BinaryIO, size: int) -> bytes:
    """So many bytes, or all that there are."""
    data = stream.read(size)
    if not data or len(data) == size:
        return bytes(data)
    parts = [bytes(data)]
    missing = size - len(data)
    while missing and (more := stream.read(missing)):
        parts.append(bytes(more))
        missing -= len(more)
    return b"".join(parts)


def entry_name(folder: str, name: str) -> str:
    """The full name of what lies in a folder."""
    return f"{folder}/{name}" if folder else name


@contextmanager
def _on_disk() -> Iterator[None]:
    """What is too large for memory lies on this machine's disk until it is sent."""
    try:
        yield
    except OSError as error:
        place = tempfile.gettempdir()
        raise (
            DiskFull(f"No space is left in {place} for a large table.", "Make room there, or set TMPDIR.")
            if error.errno in (28, 122)
            else MigrateError(f"{place}: {error.strerror}.", "Set TMPDIR to another folder.")
        ) from error
