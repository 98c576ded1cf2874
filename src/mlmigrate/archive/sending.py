"""Artifacts on their way into an archive in an object store: many at once, few bytes in memory.

up to 1 MiB       whole, all requests at once
up to 16 MiB      whole, as many as the memory allows
larger            in parts: from its stream, once; from a disk, read first to be named, then sent
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from mlmigrate.archive import layout
from mlmigrate.archive.blobs import CHUNK, Blobs
from mlmigrate.errors import BadData, MigrateError, Unavailable
from mlmigrate.model import Artifact, Spot
from mlmigrate.storage.bucket import BucketStorage, filled
from mlmigrate.storage.budget import Budget
from mlmigrate.storage.objects import PART, Body, Changed, FileBody, digest_of, part_size, parts_in
from mlmigrate.storage.slices import explain_file, version_of
from mlmigrate.storage.told import telling

UNDER_WAY = 64  # files of a pack that are being sent or wait for it
MEMORY = 128 << 20  # bytes of files larger than CHUNK
THREADS = 4  # parts of one file at once
ASK_FIRST = 1 << 18  # bytes; a smaller file is sent without asking whether it is there

Kept = tuple[str, int]  # sha256 and size


class Window:
    """Files of one pack being sent; given back in the order in which they came."""

    def __init__(self, pool: Executor, put: Callable[[Artifact], Kept]) -> None:
        self._pool, self._put = pool, put
        self._waiting: deque[tuple[Artifact, Future[Kept]]] = deque()

    def add(self, artifact: Artifact) -> Iterator[tuple[Artifact, Kept]]:
        """Begins to send a file; gives those that have arrived. Raises what befell one of them."""
        self._waiting.append((artifact, self._pool.submit(self._put, artifact)))
        yield from self._arrived(UNDER_WAY)

    def drain(self) -> Iterator[tuple[Artifact, Kept]]:
        """Waits for all."""
        yield from self._arrived(0)

    def close(self) -> None:
        """Begins no further one, and waits for those that are under way: their source is about to be closed."""
        futures = [future for _, future in self._waiting]
        for future in futures:
            future.cancel()
        wait(futures)
        self._waiting.clear()

    def _arrived(self, most: int) -> Iterator[tuple[Artifact, Kept]]:
        while self._waiting and (len(self._waiting) > most or self._waiting[0][1].done()):
            artifact, future = self._waiting.popleft()
            with suppress(CancelledError):  # the pool was shut down: another error is on its way
                yield artifact, future.result()


class SentBlobs(Blobs):
    """The blobs of an archive in an object store that is being written. Used by many threads at once."""

    def __init__(self, storage: BucketStorage, asked_part: int = 0) -> None:
        super().__init__(storage)
        self._bucket, self._asked_part = storage, asked_part
        self._budget = Budget(MEMORY)

    def put(self, artifact: Artifact) -> Kept:
        """Keeps the artifact's bytes; gives their digest and size. Raises Damaged when they are not those announced."""
        with artifact.open() as stream:
            head = filled(stream, CHUNK)
            kept = self._whole(head) if len(head) < CHUNK else self._larger(artifact, head, stream)
        self._check(artifact, kept[0])
        return kept

    def _whole(self, data: bytes) -> Kept:
        sha256 = layout.sha256_of(data)
        name = layout.blob_name(sha256)
        if not self._is_known(sha256):
            if len(data) <= ASK_FIRST:
                if not self._bucket.create(name, data):
                    self._bucket.put(name, data, sha256)  # something else was called so
            elif not self._there(sha256, len(data)):
                self._bucket.put(name, data, sha256)
            self._remember(sha256)
        return sha256, len(data)

    def _larger(self, artifact: Artifact, head: bytes, stream: BinaryIO) -> Kept:
        if artifact.size is None or artifact.size <= PART:
            with self._budget.of(PART):
                rest = filled(stream, PART - len(head) + 1)
                if len(head) + len(rest) <= PART:
                    return self._whole(head + rest)
            with self._budget.of(MEMORY):
                return self._twice(artifact)
        with self._budget.of(self._threads(artifact.size) * self._part(artifact.size)):
            return self._largest(artifact, head, stream, artifact.size)

    def _largest(self, artifact: Artifact, head: bytes, stream: BinaryIO, size: int) -> Kept:
        if artifact.sha256 is not None and self._there(artifact.sha256, size):
            return artifact.sha256, size
        spot = artifact.spot
        if spot is not None and spot.store == "file":
            return self._of_disk(Path(spot.url), artifact.told)
        if spot is not None and (artifact.sha256 is not None or spot.version):
            taken = self._taken(artifact, spot, size)
            if taken is not None:
                return taken
        body, key = StreamBody(head, stream, size), self._bucket.nameless()
        try:
            self._send(key, body)
        except OtherSize:  # than announced: a log that grows
            return self._twice(artifact)
        sha256 = body.sha256()
        if self._there(sha256, size):
            self._bucket.objects.delete([key])
        else:
            self._bucket.rename(key, layout.blob_name(sha256), size)
            self._remember(sha256)
        return sha256, size

    def _of_disk(self, file: Path, told: Callable[[int, int], object] | None) -> Kept:
        """A file of this machine: read once to be named, and once more to be sent where it is not there yet."""
        for last in (False, False, True):
            found = _stat(file)
            body = FileBody(file, found.st_size, version_of(found))
            try:
                with body.open(0, body.size) as stream:
                    digest, size = digest_of(stream)
                sha256 = digest.partition(":")[2]
                if not self._there(sha256, size):
                    self._send(layout.blob_name(sha256), telling(body, told))
                    self._remember(sha256)
            except Changed:
                if last:
                    raise
            else:
                break
        return sha256, size

    def _taken(self, artifact: Artifact, spot: Spot, size: int) -> Kept | None:
        """A file of the same store: read to be named, and copied by the store itself; None when it does not."""
        if spot.store != self._bucket.objects.store:
            return None
        sha256, found = self._read(artifact)
        if found != size:
            return None
        if not self._there(sha256, size):
            name = layout.blob_name(sha256)
            copy = self._bucket.take(spot, name, size)
            if copy is None:
                return None
            if copy.size != size or (_is_plain(copy.digest) and copy.digest != f"sha256:{sha256}"):
                self._bucket.delete_files([name])
                return None
            self._remember(sha256)
        return sha256, size

    def _read(self, artifact: Artifact) -> Kept:
        with artifact.open() as stream:
            digest, size = digest_of(stream)
        return digest.partition(":")[2], size

    def _twice(self, artifact: Artifact) -> Kept:
        """A stream whose size nobody knew: read to its end to be named, and once more to be sent."""
        sha256, size = self._read(artifact)
        if not self._there(sha256, size):
            with artifact.open() as stream:
                self._send(layout.blob_name(sha256), StreamBody(b"", stream, size, sha256))
            self._remember(sha256)
        return sha256, size

    def _send(self, key: str, body: Body) -> None:
        """Sends a large file; leaves no parts behind when that fails."""
        objects = self._bucket.objects
        try:
            objects.upload(key, body, part_size=self._asked_part, threads=self._threads(body.size))
        except BaseException:
            with suppress(MigrateError):  # what is left, prune takes away
                for name, upload, _ in objects.unfinished(key):
                    objects.abort(name, upload)
            raise

    def _there(self, sha256: str, size: int) -> bool:
        return self._is_known(sha256) or self._has(sha256, size)

    def _part(self, size: int) -> int:
        return part_size(size, self._asked_part)

    def _threads(self, size: int) -> int:
        return max(1, min(THREADS, MEMORY // (2 * self._part(size))))


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise explain_file(error, str(file)) or error from error


def _is_plain(digest: str) -> bool:
    return digest.startswith("sha256:") and not parts_in(digest)


class OtherSize(BadData):
    """A stream has more bytes than were announced, or fewer."""


class StreamBody:
    """A stream that can be read once, given out in parts: each to one thread, in their order.

    Raises OtherSize, and Changed when the bytes are not those of `sha256`: then the last part is not given out.
    """

    def __init__(self, head: bytes, stream: BinaryIO, size: int, sha256: str = "") -> None:
        self.size, self._wanted = size, sha256
        self._head, self._stream = head, stream
        self._digest = hashlib.sha256()
        self._at = 0
        self._broken = False
        self._turn = threading.Condition()

    def sha256(self) -> str:
        """Of all bytes, once they were read."""
        return self._digest.hexdigest()

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """The next part, once those before it were read; a stream of all of it where that is asked for."""
        if start == 0 and length == self.size > MEMORY:
            return io.BufferedReader(cast("io.RawIOBase", _Running(self)), CHUNK)
        with self._turn:
            self._turn.wait_for(lambda: self._broken or self._at >= start)
            if self._broken or self._at > start:
                raise Unavailable("A stream broke off while it was sent.")
            return io.BytesIO(self.next(length))

    def next(self, length: int) -> bytes:
        """So many bytes more."""
        with self._turn:
            try:
                data = self._read(length)
            except BaseException:
                self._broken = True
                raise
            finally:
                self._turn.notify_all()
        return data

    def _read(self, length: int) -> bytes:
        data = self._head[:length]
        self._head = self._head[length:]
        if len(data) < length:
            data += filled(self._stream, length - len(data))
        self._digest.update(data)
        self._at += len(data)
        if len(data) < length or (self._at == self.size and self._stream.read(1)):
            raise OtherSize(f"{self.size:,} bytes were announced, and others came.")
        if self._at == self.size and self._wanted not in ("", self.sha256()):
            raise Changed("A file changed while it was read.", "Run the same command again.")
        return data


class _Running(io.RawIOBase):
    """All of a body, for stores that take a large file as one stream."""

    def __init__(self, body: StreamBody) -> None:
        super().__init__()
        self._body, self._left = body, body.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._body.next(min(len(buffer), self._left)) if self._left else b""
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
