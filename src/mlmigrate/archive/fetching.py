"""Small blobs of an archive in an object store, fetched before they are asked for.

Nothing is fetched before the first is: who only lists the files of a run wants no bytes.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from typing import BinaryIO, TypeVar

from mlmigrate.archive.blobs import CHUNK, open_blob
from mlmigrate.storage import Storage

AHEAD = 48  # files
MEMORY = 16 << 20  # bytes of them, of one reading
T = TypeVar("T")


class Ahead:
    """The blobs that one reading is about to give out. What nobody takes is forgotten when the next ones come."""

    def __init__(self, storage: Storage, pool: Executor) -> None:
        self._storage, self._pool = storage, pool
        self._fetched: OrderedDict[int, tuple[Future[bytes], int]] = OrderedDict()
        self._held = 0
        self._coming: OrderedDict[int, tuple[str, int, str]] = OrderedDict()
        self._wanted = False
        self._number = 0
        self._lock = threading.Lock()

    def told(self, sha256: str, size: int, what: str) -> int:
        """A blob that will be given out soon; gives its number."""
        with self._lock:
            self._number += 1
            if size <= CHUNK:
                self._coming[self._number] = (sha256, size, what)
            self._fetch()
            return self._number

    def open(self, number: int, sha256: str, size: int, what: str) -> AbstractContextManager[BinaryIO]:
        """The blob for reading. Raises Damaged as `open_blob` does."""
        with self._lock:
            self._wanted = True
            for gone in [one for one in self._coming if one <= number]:
                del self._coming[gone]
            fetched = self._forget(number)
            for passed in [one for one in self._fetched if one < number - AHEAD]:
                self._forget(passed)
            self._fetch()
        if fetched is None:
            return open_blob(self._storage, sha256, size, what)
        return io.BytesIO(fetched.result())

    def _forget(self, number: int) -> Future[bytes] | None:
        future, size = self._fetched.pop(number, (None, 0))
        self._held -= size
        return future

    def _fetch(self) -> None:
        if not self._wanted:
            while len(self._coming) > AHEAD:
                self._coming.popitem(last=False)
            return
        while self._coming and self._held < MEMORY:
            number, blob = self._coming.popitem(last=False)
            try:
                future = self._pool.submit(self._whole, *blob)
            except RuntimeError:  # the source was closed: what is opened yet is fetched when it is
                self._coming.clear()
                return
            self._fetched[number] = (future, blob[1])
            self._held += blob[1]

    def _whole(self, sha256: str, size: int, what: str) -> bytes:
        with open_blob(self._storage, sha256, size, what) as stream:
            return stream.read()


def looking_ahead(things: Iterable[T], number: int) -> Iterator[T]:
    """The things, so many of them taken before the first is given."""
    held: list[T] = []
    for thing in things:
        held.append(thing)
        if len(held) > number:
            yield held.pop(0)
    yield from held
