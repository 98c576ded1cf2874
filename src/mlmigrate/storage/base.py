"""Where bytes lie, as the archive sees it: a folder here, a prefix in an object store elsewhere.

A name is a relative path with "/" between its parts.  Files are written once and never changed in
place, so what an object store can do is enough: whole writes, a conditional create, a listing.

    with storage.part() as part:      a file without a name; nothing lies there yet
        part.write(b"...")
        part.become("blobs/ab/...")   from now on it is there, whole
    storage.flush([...])              from now on a power cut does not take it away
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from mlmigrate.errors import BadData
from mlmigrate.model import Spot

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies directly in a folder. `name` is the full name; `modified` in seconds since the epoch."""

    name: str
    folder: bool
    size: int
    modified: float


class Part(Protocol):
    """A file being written, that has no name yet."""

    def write(self, data: bytes | memoryview) -> int: ...

    def become(self, name: str) -> None:
        """The file is whole and is called so; what was called so is replaced."""


class Storage(Protocol):
    """A place where files lie. Used by several threads at once.

    many   so many files are written or read at once with profit: 1 on a disk, more where each is a request
    """

    many: int

    @property
    def shown(self) -> str:
        """The place for messages, secrets hidden."""

    def open(self, name: str) -> BinaryIO:
        """The file for reading, seekable. Raises NotFound."""

    def piece(self, name: str, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """`length` bytes of the file from `start`. Raises NotFound."""

    def size(self, name: str) -> int | None:
        """How many bytes the file has; None when there is none."""

    def entries(self, folder: str) -> Iterator[Entry]:
        """What lies directly in `folder` ("" is the place itself), in no order; nothing when it is not there."""

    def walk(self, folder: str) -> Iterator[Entry]:
        """Every file below `folder` ("" is the place itself), at any depth, in no order."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes a whole, lasting file of this name unless there is one: then False, and nothing is changed."""

    def part(self) -> AbstractContextManager[Part]:
        """A file to write; leaving before `become` leaves nothing."""

    def holds(self, name: str, size: int, sha256: str) -> bool | None:
        """Whether these bytes lie there; nobody prunes them before the commit that needs them now.

        None: a file of this name and size does, and only reading it tells whether it is what it should be.
        """

    def spot(self, name: str) -> Spot | None:
        """Where the file lies, for those who can take it from there without us; None when nobody can."""

    def delete(self, name: str) -> None:
        """Takes the file, or the folder with all that is in it, away; one that is not there is no error."""

    def delete_files(self, names: Iterable[str]) -> None:
        """Takes files away, in any order; one that is not there is no error."""

    def sweep(self, before: float, *, dry_run: bool = False) -> list[str]:
        """Takes parts away that nobody has written since `before` (seconds since the epoch); gives what they were."""

    def flush(self, names: Iterable[str]) -> None:
        """When this returns, these files outlast a power cut."""


def clean(name: str) -> str:
    """`name` when it is one that stays inside its place. Raises BadData."""
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise BadData(f"{name!r:.200} is no name of a file in an archive.")
    return name
