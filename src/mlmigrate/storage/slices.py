"""A piece of a file of this machine, as a stream of its own: what one part of an upload is made of.

Each slice opens the file itself, so that any number of threads may read, and proves that the file is still
the one that was listed: at its opening, and again when its last byte was read.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mlmigrate.errors import MigrateError, NotFound
from mlmigrate.storage.local import explain
from mlmigrate.storage.objects import CHUNK, Changed

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


def version_of(found: os.stat_result) -> str:
    """What a file's version is called here."""
    return f"{found.st_mtime_ns}-{found.st_size}"


def open_plain(path: str | Path) -> int:
    """A descriptor of the file for reading; a link in its place is an error, and a pipe does not make us wait."""
    return os.open(path, _FLAGS)


def explain_file(error: OSError, shown: str) -> MigrateError | None:
    """What this error of opening or reading a file means to a person; None when it is a bug of ours."""
    if error.errno in (errno.ELOOP, errno.EMLINK):  # BSDs say the second
        return NotFound(f"{shown} is a symbolic link; links are not followed.")
    if error.errno == errno.EISDIR:
        return NotFound(f"{shown} is a folder, not a file.")
    return explain(error, shown)


def open_slice(path: Path, start: int, length: int, version: str = "") -> AbstractContextManager[BinaryIO]:
    """`length` bytes from `start`, seekable. Raises NotFound, and Changed when the file is not `version`."""
    try:
        return cast("BinaryIO", Slice(open_plain(path), str(path), start, length, version))
    except OSError as error:
        raise explain_file(error, str(path)) or error from error


class Slice(io.RawIOBase):
    """`length` bytes of an open file, which it closes. What it reads, another's seek does not disturb."""

    def __init__(self, descriptor: int, shown: str, start: int, length: int, version: str = "") -> None:
        super().__init__()
        self._descriptor, self._shown, self._version = descriptor, shown, version
        self._start, self._length, self._at = start, length, 0
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """How many bytes the slice has, wherever it stands (so do HTTP clients ask)."""
        return self._length

    def read(self, size: int | None = -1, /) -> bytes:
        """As many bytes as asked for, but at the end; one system call."""
        left = self._length - self._at
        asked = left if size is None or size < 0 else min(size, left)
        if asked <= 0:
            return b""
        data = self._read(asked)
        self._at += len(data)
        if len(data) < asked or self._at == self._length:
            data = self._whole(data, asked)
        return data

    def readall(self) -> bytes:
        """All that is left."""
        return self.read(-1)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills the buffer, but at the end."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Goes to a place of the slice."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Where it stands, from the beginning of the slice."""
        return self._at

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def seekable(self) -> bool:
        """It can be read again."""
        return True

    def fileno(self) -> int:
        """None is given: nobody may read the whole file in our stead."""
        raise io.UnsupportedOperation("fileno")

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, self._start + self._at)
        except OSError as error:
            raise explain_file(error, self._shown) or error from error

    def _whole(self, data: bytes, asked: int) -> bytes:
        """`data`, read on where the system gave less; the file being the one it was. Raises Changed."""
        parts = [data]
        while (missing := asked - sum(map(len, parts))) and parts[-1]:
            parts.append(self._read(min(missing, CHUNK)))
            self._at += len(parts[-1])
        if missing:
            raise Changed(f"{self._shown} became shorter while it was read.", "Run the same command again.")
        self._check()
        return b"".join(parts)

    def _check(self) -> None:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotFound(f"{self._shown} is no file that can be read.")
        if self._version and self._version != version_of(found):
            raise Changed(f"{self._shown} was written meanwhile.", "Run the same command again.")
