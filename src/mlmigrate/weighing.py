"""What files weigh: size and sha256, so that two places can be compared.

Bytes are read, several files at a time.  Two large files of object stores are not read when both stores name
the same digest: a store computes it from what arrives (and refuses what does not fit the one that was sent with
it), so that equal digests of one form are equal bytes on arrival.  What has rotted since, only reading finds:
`download` True reads everything.  Small files are always read: that takes no more requests, and proves more.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from mlmigrate.model import Artifact

K = TypeVar("K")
CHUNK = 1 << 20
LARGE = 1 << 20  # bytes; larger files of stores are asked for their digests
READERS = 8
WINDOW = 64  # files that are being read, or wait for it


@dataclass(frozen=True, slots=True)
class Weight:
    """A file's size in bytes and its sha256, where known; `unread`: its store's digest may do instead."""

    size: int | None = None
    sha256: str | None = None
    unread: Unread | None = field(default=None, compare=False)

    @property
    def shown(self) -> str:
        """As a finding tells it."""
        return f"{self.size} bytes" + (f", sha256 {self.sha256[:12]}" if self.sha256 else "")

    def like(self, other: Weight) -> bool:
        """Whether nothing tells the two apart."""
        sizes = self.size is None or other.size is None or self.size == other.size
        return sizes and (self.sha256 is None or other.sha256 is None or self.sha256 == other.sha256)


@dataclass(frozen=True, slots=True)
class Unread:
    """A large file of a store: `digest` asks the store for what it knows."""

    artifact: Artifact
    digest: Callable[[], str]


Weights = dict[str, dict[str, Weight]]  # by owner and path


class Scale:
    """Weighs files. `download`: None as above, True reads all, False none."""

    def __init__(self, pool: ThreadPoolExecutor, download: bool | None) -> None:
        self._pool, self._download = pool, download
        self._under_way: deque[tuple[Artifact, Future[Weight]]] = deque()
        self._weights: Weights = {}

    def lay(self, artifact: Artifact, digest: Callable[[], str] | None = None) -> None:
        """Takes one more file. `digest` asks its store what that knows of its bytes, when it lies in one."""
        if self._download is False:
            self._note(artifact, Weight(artifact.size, artifact.sha256))
        elif self._download is None and digest is not None and (artifact.size or 0) > LARGE:
            self._note(artifact, Weight(artifact.size, None, Unread(artifact, digest)))
        else:
            self._under_way.append((artifact, self._pool.submit(read, artifact)))
        self._settle(WINDOW)

    def weights(self) -> Weights:
        """Of all. Raises what stood in the way of reading any."""
        self._settle(0)
        return self._weights

    def close(self) -> None:
        """Begins no further one."""
        for _, future in self._under_way:
            future.cancel()

    def _settle(self, most: int) -> None:
        while len(self._under_way) > most:
            artifact, future = self._under_way.popleft()
            self._note(artifact, future.result())

    def _note(self, artifact: Artifact, weight: Weight) -> None:
        self._weights.setdefault(artifact.owner, {})[artifact.path] = weight


@contextmanager
def weighing(download: bool | None) -> Iterator[Scale]:
    """A scale; what it reads is read when the block is left."""
    with ThreadPoolExecutor(READERS, "reading") as pool:
        scale = Scale(pool, download)
        try:
            yield scale
        finally:
            scale.close()


def asks(artifact: Artifact) -> Callable[[], str] | None:
    """What asks the store of a file for its digest; None for a file that lies in none."""
    digest = getattr(artifact.open, "digest", None)
    return digest if callable(digest) else None


def look_closer(pairs: Iterable[tuple[dict[K, Weight], dict[K, Weight]]]) -> None:
    """Weighs what was left unread of files that both places have; both sides of each pair are brought up to date."""
    waiting = [(a, b, path) for a, b in pairs for path in a.keys() & b.keys() if a[path].unread or b[path].unread]
    if not waiting:
        return
    with ThreadPoolExecutor(READERS, "reading") as pool:
        found = pool.map(lambda one: _closer(one[0][one[2]], one[1][one[2]]), waiting)
        for (a, b, path), (one, other) in zip(waiting, found, strict=True):
            a[path] = one
            b[path] = other


def _closer(one: Weight, other: Weight) -> tuple[Weight, Weight]:
    if one.unread and other.unread and one.size == other.size:
        digest = one.unread.digest()
        if digest and digest == other.unread.digest():
            return Weight(one.size, digest), Weight(other.size, digest)
    return _now(one), _now(other)


def _now(weight: Weight) -> Weight:
    return weight if weight.unread is None else read(weight.unread.artifact)


def read(artifact: Artifact) -> Weight:
    """Size and sha256 of the bytes, read now."""
    digest, size = hashlib.sha256(), 0
    with artifact.open() as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Weight(size, digest.hexdigest())
