"""Artifact bytes by content: hashed on their way in, and again on their way out."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from mlmigrate.archive import layout
from mlmigrate.errors import Damaged, NotFound
from mlmigrate.model import Artifact
from mlmigrate.storage import Storage

CHUNK = 1 << 20
_MOST_KNOWN = 200_000  # digests remembered: some 25 MB


class Blobs:
    """The blobs of an archive that is being written."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: set[bytes] = set()
        self._lock = threading.Lock()

    def put(self, artifact: Artifact) -> tuple[str, int]:
        """Keeps the artifact's bytes; gives their digest and size. Raises Damaged when they are not those announced."""
        with artifact.open() as stream:
            head = _filled(stream)
            sha256, size = self._small(head) if len(head) < CHUNK else self._large(head, stream)
        self._check(artifact, sha256)
        return sha256, size

    def _check(self, artifact: Artifact, sha256: str) -> None:
        if artifact.sha256 is not None and artifact.sha256 != sha256:
            raise Damaged(
                f"{artifact.owner}, {artifact.path}: the bytes read are not those announced (sha256 differs).",
                "The source is damaged there, or the file changed meanwhile; run the same command again.",
            )

    def _small(self, data: bytes) -> tuple[str, int]:
        sha256 = layout.sha256_of(data)
        if not self._has(sha256, len(data)):
            with self._storage.part() as part:
                part.write(data)
                part.become(layout.blob_name(sha256))
            self._remember(sha256)
        return sha256, len(data)

    def _large(self, head: bytes, stream: BinaryIO) -> tuple[str, int]:
        digest, size, chunk = hashlib.sha256(), 0, head
        with self._storage.part() as part:
            while chunk:
                digest.update(chunk)
                size += part.write(chunk)
                chunk = stream.read(CHUNK)
            sha256 = digest.hexdigest()
            if not self._has(sha256, size):
                part.become(layout.blob_name(sha256))
                self._remember(sha256)
        return sha256, size

    def _has(self, sha256: str, size: int) -> bool:
        """Whether the blob is there, whole: "exists" is never taken for that, but once in a process.

        Nobody prunes it before the commit that needs it.
        """
        held = self._storage.holds(layout.blob_name(sha256), size, sha256)
        if held is False:
            return False
        if held is None and not self._is_known(sha256):
            try:
                for _ in checked_chunks(self._storage, sha256, size):
                    pass
            except Damaged:
                return False
        self._remember(sha256)
        return True

    def _is_known(self, sha256: str) -> bool:
        return bytes.fromhex(sha256) in self._known

    def _remember(self, sha256: str) -> None:
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add(bytes.fromhex(sha256))


def _filled(stream: BinaryIO) -> bytes:
    """The first chunk, full unless the stream ends in it."""
    head = stream.read(CHUNK)
    while len(head) < CHUNK and (more := stream.read(CHUNK - len(head))):
        head += more
    return head


class CheckedStream(io.RawIOBase):
    """A blob's bytes; the last of them are given only when all of them are those that were written."""

    def __init__(self, file: BinaryIO, sha256: str, size: int, what: str) -> None:
        super().__init__()
        self._file, self._sha256, self._size, self._what = file, sha256, size, what
        self._digest = hashlib.sha256()
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self._digest.update(data)
        self._read += len(data)
        if self._read >= self._size or not data:
            self._check(self._read)
        buffer[: len(data)] = data
        return len(data)

    def _check(self, size: int) -> None:
        if size != self._size:
            raise layout.damaged(self._what, f"{size:,} bytes were read where {self._size:,} were written")
        if self._digest.hexdigest() != self._sha256:
            raise layout.damaged(self._what, "the bytes read are not the bytes written (sha256 differs)")


@contextmanager
def open_blob(storage: Storage, sha256: str, size: int, what: str = "") -> Iterator[BinaryIO]:
    """A blob for reading. Raises Damaged, at the latest with its last byte, when it is not what was written."""
    what = what or layout.blob_name(sha256)
    try:
        file = storage.open(layout.blob_name(sha256))
    except NotFound as error:
        raise layout.damaged(what, "its bytes are missing") from error
    with file, io.BufferedReader(CheckedStream(file, sha256, size, what), CHUNK) as stream:
        yield stream


@dataclass(frozen=True, slots=True)
class Blob:
    """Opens a blob: all of it, checked; or a piece, for who sends it on in parts and compares the whole's digest."""

    storage: Storage
    sha256: str
    size: int
    what: str
    ahead: Callable[[], AbstractContextManager[BinaryIO]] | None = None

    def __call__(self) -> AbstractContextManager[BinaryIO]:
        """All of it. Raises Damaged, at the latest with the last byte."""
        return open_blob(self.storage, self.sha256, self.size, self.what) if self.ahead is None else self.ahead()

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A piece, as it is. Raises Damaged when the bytes are missing."""
        try:
            return self.storage.piece(layout.blob_name(self.sha256), start, length)
        except NotFound as error:
            raise layout.damaged(self.what, "its bytes are missing") from error


def checked_chunks(storage: Storage, sha256: str, size: int, what: str = "") -> Iterator[bytes]:
    """The blob's bytes. Raises Damaged."""
    with open_blob(storage, sha256, size, what) as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
