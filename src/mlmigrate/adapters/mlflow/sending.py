"""Files put into object stores: copied by the store itself, or sent, many at a time.

    from a place of the same store      Objects.copy: no byte passes here
    from a disk, or another store       from there itself, large files in parallel parts
    from a stream (a server)            small ones whole; others by way of a temporary file

A file that is there already, with this size and this digest, is not sent again; a large one goes on at its parts.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast, runtime_checkable

from mlmigrate.adapters.mlflow import local_artifacts
from mlmigrate.errors import Damaged, Refused
from mlmigrate.model import Artifact, Loss, Spot
from mlmigrate.storage.objects import PART, BadKey, Body, FileBody, Objects, Stored, digest_of, digest_text, parts_in

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.direct import Stores

CHUNK = 1 << 20
WINDOW = 128  # files of a pack on their way at once
FILE = "file"  # the store of spots on this machine
UPLOAD_THREADS = 4  # parts of one file at once


@runtime_checkable
class Openable(Protocol):
    """What opens an artifact, and can open a part of it too: a Body."""

    size: int
    open: object


class Sending:
    """The files of one pack on their way; `losses` gets those whose names a store cannot hold."""

    def __init__(self, stores: Stores, losses: list[Loss]) -> None:
        self._stores, self._losses = stores, losses
        self._under_way: set[Future[None]] = set()

    def put(self, uri: str, artifact: Artifact) -> None:
        """Begins to send a file to below `uri`. Raises what stood in the way of an earlier one."""
        folder = self._stores.folder(uri)
        self._under_way.add(self._stores.submit(self._send, folder, artifact))
        self._wait(WINDOW - 1)

    def settle(self) -> None:
        """All are there when this returns. Raises what stood in the way of any."""
        self._wait(0)

    def close(self) -> None:
        """Begins no further one, and waits for those that are under way."""
        for future in self._under_way:
            future.cancel()
        wait(self._under_way)
        self._under_way = set()

    def _send(self, folder: Folder, artifact: Artifact) -> None:
        try:
            folder.send(artifact)
        except BadKey as error:
            self._losses.append(Loss(artifact.owner, f"artifact {artifact.path!r}", error.message))

    def _wait(self, most: int) -> None:
        while len(self._under_way) > most:
            done, self._under_way = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()


class Folder:
    """A place in a store that files are put below. Used by many threads at once."""

    def __init__(self, stores: Stores, objects: Objects, prefix: str) -> None:
        self._stores, self._objects = stores, objects
        self._below = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._begun: bool | None = None
        self._unfinished: dict[str, str] | None = None

    def send(self, artifact: Artifact) -> None:
        """Has the file there, whole. Raises BadKey, Damaged, Changed, Refused, Unavailable."""
        self._stores.again.do(f"file {artifact.path}", self._send, artifact)

    def _send(self, artifact: Artifact) -> None:
        key = f"{self._below}{artifact.path}"
        spot = artifact.spot
        if spot is not None and spot.store == self._objects.store and self._copied(artifact, spot, key):
            return
        with _body(artifact) as body:
            if body is None:
                self._put(artifact, key)
            else:
                self._upload(artifact, key, body)

    def _copied(self, artifact: Artifact, spot: Spot, key: str) -> bool:
        """Has the store copy it; False when these credentials, unlike the source's, may not read it there."""
        source, source_key = self._stores.of_spot(spot)
        if (source.url, source_key) == (self._objects.url, key):
            _tell(artifact)
            return True
        if source.url in self._stores.closed:
            return False
        size = artifact.size or 0
        there = self._there(key, size)
        try:
            if there is None or not _same(there, source.head(source_key), spot.version):
                copy = self._objects.copy(source, source_key, key, size, spot.version)
                if artifact.sha256 is not None and not copy.digest.startswith("sha256:"):
                    copy = self._objects.head(key) or copy  # equal to its source, which may itself be damaged
                _check_stored(artifact, copy)
        except Refused:
            self._stores.closed.add(source.url)
            return False
        _tell(artifact)
        return True

    def _put(self, artifact: Artifact, key: str) -> None:
        """A small file, whole."""
        with self._stores.budget.of(artifact.size or 0):
            with artifact.open() as stream:
                data = stream.read()
            sha256 = hashlib.sha256(data)
            _check(artifact, len(data), sha256.hexdigest())
            there = self._there(key, len(data))
            if there is None or there.digest != digest_text(sha256.digest()):
                _check_stored(artifact, self._objects.put(key, data, sha256=sha256.hexdigest()))

    def _upload(self, artifact: Artifact, key: str, body: Body) -> None:
        if artifact.sha256 is not None:
            with body.open(0, body.size) as stream:
                digest, size = digest_of(stream)
            _check(artifact, size, digest.partition(":")[2])
        there = self._there(key, body.size)
        if there is not None and there.digest.startswith("sha256:"):
            with body.open(0, body.size) as stream:
                if digest_of(stream, parts_in(there.digest))[0] == there.digest:
                    return
        asked = self._stores.part_size
        with self._stores.budget.of(UPLOAD_THREADS * (asked or PART)):
            resume = self._uploads().get(key, "")
            stored = self._objects.upload(key, body, part_size=asked, resume=resume, threads=UPLOAD_THREADS)
        _check_stored(artifact, stored)

    def _there(self, key: str, size: int) -> Stored | None:
        """The file of this name and size that an earlier try left; nothing is asked where none left any."""
        with self._lock:
            if self._begun is None:
                self._begun = next(iter(self._objects.list(self._below)), None) is not None
        there = self._objects.head(key) if self._begun else None
        return there if there is not None and there.size == size else None

    def _uploads(self) -> dict[str, str]:
        """The uploads that were broken off here, by key; the youngest of each."""
        with self._lock:
            if self._unfinished is None:
                found = sorted(self._objects.unfinished(self._below), key=lambda one: one[2])
                self._unfinished = {key: upload for key, upload, _ in found}
            return self._unfinished


@contextmanager
def _body(artifact: Artifact) -> Iterator[Body | None]:
    """What the bytes can be read from at any place; None for a small file that is a stream."""
    spot, opener = artifact.spot, artifact.open
    if artifact.size is not None and artifact.size <= PART:
        yield None
    elif spot is not None and spot.store == FILE and artifact.size is not None:
        yield _Told(FileBody(Path(spot.url), artifact.size, spot.version), artifact)
    elif artifact.size is not None and isinstance(opener, Openable):
        yield cast("Body", opener)
    else:
        with _spooled(artifact) as body:
            yield body


@dataclass(frozen=True, slots=True)
class _Told:
    """A body that tells what is read of it."""

    inner: Body
    artifact: Artifact

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.inner.size

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A part, told when it is opened."""
        _tell(self.artifact, start, length)
        return self.inner.open(start, length)


def _tell(artifact: Artifact, start: int = 0, length: int | None = None) -> None:
    """Bytes that did not pass through what opens the artifact."""
    if artifact.told is not None:
        artifact.told(start, (artifact.size or 0) if length is None else length)


@contextmanager
def _spooled(artifact: Artifact) -> Iterator[Body]:
    with tempfile.TemporaryDirectory(prefix="mlmigrate-") as folder:
        file = Path(folder, "file")
        try:
            with artifact.open() as stream, file.open("wb") as to:
                while chunk := stream.read(CHUNK):
                    to.write(chunk)
        except OSError as error:
            raise local_artifacts.explain(error, file) or error from error
        yield FileBody(file, file.stat().st_size)


def _same(there: Stored, here: Stored | None, version: str) -> bool:
    """Whether a file that is there already is a copy of what lies here."""
    return here is not None and version in ("", here.version) and bool(here.digest) and here.digest == there.digest


def _check(artifact: Artifact, size: int, sha256: str) -> None:
    """Raises Damaged for bytes that are not what the artifact promised."""
    if artifact.sha256 is not None and artifact.sha256 != sha256:
        raise Damaged(f"{artifact.path}: the bytes read are not the bytes written (sha256 differs).")
    if artifact.sha256 is None and artifact.size is not None and artifact.size != size:
        raise Damaged(f"{artifact.path}: {size} bytes were read, not the {artifact.size} that it was said to have.")


def _check_stored(artifact: Artifact, stored: Stored) -> None:
    """Raises Damaged when what lies in the store now is not what the artifact promised."""
    whole = digest_text(bytes.fromhex(artifact.sha256)) if artifact.sha256 is not None else ""
    if whole and stored.digest.startswith("sha256:") and not parts_in(stored.digest) and stored.digest != whole:
        raise Damaged(f"{artifact.path}: the bytes in the store are not the bytes written (sha256 differs).")
    if artifact.size is not None and stored.size != artifact.size:
        raise Damaged(f"{artifact.path}: {stored.size} bytes lie in the store, and {artifact.size} were to.")
