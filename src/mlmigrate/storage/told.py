"""Bytes that are told as they pass: what makes a bar move while a large file is on its way.

    passage = Passage(size, lambda n: progress.advance(size=n))
    with passage.stream(stream) as data: ...     a stream whose bytes are told as they are read
    objects.upload(key, passage.body(body))      the same for a body that is read in parts, by many threads
    passage.done()                               the rest: a store has copied it by itself, say
    telling(body, artifact.told)                 the body of an artifact whose bytes are not taken from what opens it

Each byte is told once, though it be read again: for its checksum, or in a second try.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from mlmigrate.storage.objects import Body

BLOCK = 1 << 20  # bytes that are told at once, the first time that any of them passes
MOST_BLOCKS = 4096  # of one file; larger ones have larger blocks


class Passage:
    """The bytes of one file on their way. `size` is None where nobody knows it. Used by many threads at once.

    tell   is given how many more bytes have passed
    pay    is asked before each reading's bytes go on (Throttle.payload), again for those that are read again
    """

    def __init__(
        self, size: int | None, tell: Callable[[int], object], pay: Callable[[int], object] | None = None
    ) -> None:
        self.size, self._tell, self._pay = size, tell, pay
        self._block = max(BLOCK, -(-(size or 0) // MOST_BLOCKS))
        self._seen = 0  # a bit for each block
        self._told = 0
        self._lock = threading.Lock()

    def passed(self, at: int, length: int) -> None:
        """So many bytes from there on have passed."""
        if length <= 0:
            return
        with self._lock:
            new = self._new(at, length)
            self._told += new
        if new:
            self._tell(new)

    def _new(self, at: int, length: int) -> int:
        """How many of these bytes nobody was told of yet."""
        if self.size is None:  # nobody knows where it ends: the furthest byte counts
            return max(0, at + length - self._told)
        first, last = at // self._block, (at + length - 1) // self._block
        new = 0
        for number in range(first, last + 1):
            if not self._seen >> number & 1:
                self._seen |= 1 << number
                new += max(0, min(self._block, self.size - number * self._block))
        return new

    def done(self) -> None:
        """All have passed."""
        self.passed(0, self.size or 0)

    def read(self, at: int, length: int) -> None:
        """So many bytes were read: paid for, and told."""
        if self._pay is not None and length:
            self._pay(length)
        self.passed(at, length)

    @contextmanager
    def stream(self, opened: AbstractContextManager[BinaryIO], start: int = 0) -> Iterator[BinaryIO]:
        """What was opened, telling as it is read; it begins at the byte `start` of the file."""
        with opened as stream:
            yield cast("BinaryIO", _Told(stream, self.read, start))

    def body(self, body: Body) -> Body:
        """The same body, telling as it is read."""
        return _ToldBody(body, self.read)

    def opener(self, opener: Callable[[], AbstractContextManager[BinaryIO]]) -> Opener:
        """What opens an artifact, telling as it is read; a body too, if `opener` is one."""
        if hasattr(opener, "open") and hasattr(opener, "size"):
            return _OpenerOfParts(opener, self)
        return Opener(opener, self)


def telling(body: Body, told: Callable[[int, int], object] | None) -> Body:
    """The same body; `told` is given each place and length that is read, if there is anybody to tell."""
    return body if told is None else _ToldBody(body, told)


@dataclass(frozen=True, slots=True)
class _ToldBody:
    inner: Body
    tell: Callable[[int, int], object]

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.inner.size

    @contextmanager
    def open(self, start: int, length: int) -> Iterator[BinaryIO]:
        """A part."""
        with self.inner.open(start, length) as stream:
            yield cast("BinaryIO", _Told(stream, self.tell, start))


@dataclass(frozen=True, slots=True)
class Opener:
    """What opens an artifact from its start."""

    inner: Callable[[], AbstractContextManager[BinaryIO]]
    passage: Passage

    def __call__(self) -> AbstractContextManager[BinaryIO]:
        return self.passage.stream(self.inner())


@dataclass(frozen=True, slots=True)
class _OpenerOfParts(Opener):
    """One that is a Body too."""

    @property
    def size(self) -> int:
        """How many bytes."""
        return cast("Body", self.inner).size

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A part."""
        return self.passage.stream(cast("Body", self.inner).open(start, length), start)


class _Told(io.RawIOBase):
    """A stream that tells of what is read of it."""

    def __init__(self, stream: BinaryIO, tell: Callable[[int, int], object], start: int) -> None:
        super().__init__()
        self._stream, self._tell, self._at = stream, tell, start

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self._count(len(data or b""))
        return data

    def readall(self) -> bytes:
        """All that is left."""
        return self.read(-1)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view)) or b""
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        before = self._stream.tell()
        after = self._stream.seek(offset, whence)
        self._at += after - before
        return after

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def _count(self, length: int) -> None:
        at, self._at = self._at, self._at + length
        self._tell(at, length)
