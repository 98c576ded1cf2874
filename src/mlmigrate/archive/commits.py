"""A commit: what one pack brought, in one file, written last. What no commit names does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
import pyarrow as pa

from mlmigrate.archive import layout
from mlmigrate.archive.values import unescape
from mlmigrate.model import RunRef


class File(msgspec.Struct, frozen=True):
    """A table of a pack."""

    name: str
    size: int
    sha256: str
    rows: int


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run that is whole with this commit, or (kind "records") things that belong to no run.

    `first` is the row of its first point where its points lie together; `points`, `params`, `tags`
    and `artifacts` count; `size` is the bytes of its artifacts. All texts are escaped.
    """

    id: str
    experiment: str
    origin: str
    stamp: str
    kind: Literal["run", "records"] = "run"
    name: str = ""
    status: str = ""
    start: int | None = None
    deleted: bool = False
    parent: str = ""
    points: int = 0
    first: int | None = None
    params: int = 0
    tags: int = 0
    artifacts: int = 0
    size: int = 0

    @property
    def key(self) -> str:
        """What a later entry must share to replace this one."""
        return self.origin or self.id

    @property
    def ref(self) -> RunRef:
        """The reference to the run, as a source gives it."""
        return RunRef(
            unescape(self.experiment),
            unescape(self.id),
            unescape(self.name),
            unescape(self.origin),
            unescape(self.stamp),
            unescape(self.status),
            self.start,
            self.deleted,
            self.points,
            self.size,
            self.kind,
        )


class Lost(msgspec.Struct, frozen=True):
    """A loss that came with the pack."""

    run: str
    what: str
    because: str
    experiment: str = ""


class Totals(msgspec.Struct, frozen=True):
    """What the whole pack counts. `size` in bytes of artifacts."""

    runs: int = 0
    points: int = 0
    params: int = 0
    tags: int = 0
    artifacts: int = 0
    records: int = 0
    size: int = 0


class Commit(msgspec.Struct, frozen=True):
    """`sequence` orders commits: microseconds since the epoch, but more than any that its writer saw.

    experiments   id -> fingerprint of each in the table `experiments`
    distinct      no two points of the pack are equal
    """

    format: int
    pack: str
    sequence: int
    written: str
    by: str
    distinct: bool
    files: tuple[File, ...] = ()
    experiments: dict[str, str] = {}
    runs: tuple[Entry, ...] = ()
    totals: Totals = Totals()
    losses: tuple[Lost, ...] = ()

    def file(self, table: str) -> File | None:
        """The file of this table; None when the pack has no rows in it."""
        return next((file for file in self.files if file.name == f"{table}.parquet"), None)

    @property
    def order(self) -> tuple[int, str]:
        """Of two commits of one run the greater one counts."""
        return self.sequence, self.pack


_decoder = msgspec.json.Decoder(Commit)


def encode(commit: Commit) -> bytes:
    """The commit as its file holds it."""
    return layout.sealed("commit", commit)


def decode(data: bytes, name: str) -> Commit:
    """The commit in these bytes of the file `name`. Raises Damaged."""
    body = layout.unsealed("commit", data, name)
    try:
        commit = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise layout.damaged(name, f"it is no commit: {error}") from error
    if not layout.is_pack(commit.pack) or layout.pack_of_commit(name) not in (None, commit.pack):
        raise layout.damaged(name, f"it is the commit of {commit.pack!r:.100}")
    return commit


def pack_lines(lines: Iterable[bytes]) -> bytes:
    """A checkpoint: files of commits one after another, zstd."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        for line in lines:
            out.write(line)
    return bytes(sink.getvalue())


def unpack_lines(data: bytes, name: str) -> list[bytes]:
    """The files of commits in a checkpoint. Raises Damaged."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            whole: bytes = stream.read(layout.MOST_CHECKPOINT + 1)
    except (OSError, pa.ArrowException) as error:
        raise layout.damaged(name, f"it cannot be unpacked: {error}") from error
    if len(whole) > layout.MOST_CHECKPOINT:
        raise layout.damaged(name, "it is larger than any checkpoint")
    return whole.splitlines(keepends=True)
