"""Files by key, wherever they lie: a bucket of an object store, or a folder here that is used like one.

    open_objects("s3://bucket/prefix", env)    s3: boto3 finds the way, obstore moves small files, boto3 parts
    open_objects("gs://bucket/prefix", env)    gs: and az: by obstore alone
    open_objects("/data/mlruns", env)          a folder: keys are relative paths

A key is what comes behind the place and a "/", exactly as the store has it: never cleaned, never
decoded.  What a place cannot hold under its own name it refuses (BadKey), it does not change it.

How bytes are known (`Stored.digest`, `digest_of`), written as text so that it can be kept and compared:

    sha256:<hex>                      of a file that was put whole
    sha256:<hex>/<part size>          of a file in parts: sha256 of the sha256s (32 bytes each) of its parts,
                                      which S3 calls a composite checksum
    etag:<etag>                       what S3 says of objects that have no checksum: two objects of one size
                                      with one etag are equal, whoever wrote them, but for some encryptions
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mlmigrate.errors import BadData, Conflict, MigrateError
from mlmigrate.storage.throttle import UNLIMITED, Throttle

CHUNK = 1 << 20
PART = 1 << 24  # bytes; a file that is no larger is put whole
MOST_PARTS = 10_000  # of S3
LARGEST_COPY = 5 << 30  # bytes that S3 copies in one request


class BadKey(BadData):
    """The place cannot hold a file of this name as it is."""


class Changed(MigrateError):
    """A file is not the one that was listed: somebody wrote it meanwhile."""


class Exists(Conflict):
    """A file of this name is there already, and none was to be replaced."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as its place lists it.

    version   changes when the file does: an etag, or "<mtime ns>-<size>" on a disk; "" when it cannot be told
    modified  seconds since the epoch
    digest    as above, where the place keeps one; "" otherwise (lists have none, `head` may have)
    """

    key: str
    size: int
    version: str = ""
    modified: float = 0.0
    digest: str = ""


class Body(Protocol):
    """Bytes to be uploaded, that can be read anywhere, by several threads: a file here, or an object elsewhere."""

    @property
    def size(self) -> int:
        """How many bytes."""

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """`length` bytes from `start` as a stream. Raises Changed when the file is not the one it was."""


@dataclass(frozen=True, slots=True)
class FileBody:
    """A file of this machine. `version` is checked with each reading when it is given."""

    path: Path
    size: int
    version: str = ""

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A slice of the file."""
        from mlmigrate.storage.slices import open_slice  # noqa: PLC0415  only uploads need it

        return open_slice(self.path, start, length, self.version)


class Objects(Protocol):
    """A place with files in it. Used by many threads at once.

    url     the place as MLflow writes it in a database: s3://bucket/prefix, /data/mlruns (no trailing "/")
    store   the same for two places between which the store itself can copy
    local   the folder here; None for a store elsewhere
    throttle   what every request and every byte of payload asks first
    """

    url: str
    store: str
    local: Path | None
    throttle: Throttle

    @property
    def shown(self) -> str:
        """The place for messages, secrets hidden."""

    def check(self, *, write: bool = False) -> None:
        """Asks whether we may list (and write). Raises NotFound (no bucket), Refused, Unavailable."""

    def list(self, below: str = "") -> Iterator[Stored]:
        """Every file whose key begins with `below` ("" or "a/b/": whole parts), at any depth, in no order."""

    def head(self, key: str) -> Stored | None:
        """The file, with its digest where the place has one; None when there is none."""

    def open(
        self, key: str, start: int = 0, length: int | None = None, version: str = ""
    ) -> AbstractContextManager[BinaryIO]:
        """Its bytes as a stream, all of them or a range. Raises NotFound, and Changed when `version` is another's."""

    def put(self, key: str, data: bytes | memoryview, *, create: bool = False, sha256: str = "") -> Stored:
        """Writes a small file whole, its checksum with it; gives it with its digest.

        `create`: only when there is none of this name, else Exists. `sha256` (hex) spares a second hashing.
        Raises BadKey, Refused, DiskFull, Unavailable.
        """

    def upload(self, key: str, body: Body, *, part_size: int = 0, resume: str = "", threads: int = 4) -> Stored:
        """Writes a file of any size, in parallel parts where it is larger than PART; whole or not at all.

        Parts of an upload of this key and this part size that was broken off are not sent again when
        `resume` is its id (as `unfinished` gives it) and their sha256s are those of the body.
        """

    def unfinished(self, below: str = "") -> Iterator[tuple[str, str, float]]:
        """Uploads broken off: key, id, when it began (s). Empty where a place has no such thing."""

    def abort(self, key: str, upload: str) -> None:
        """Takes the parts of an unfinished upload away."""

    def copy(self, source: Objects, key: str, to: str, size: int, version: str = "") -> Stored:
        """Copies between two places of one `store`, no byte passing through here; gives the copy, digest and all.

        Over LARGEST_COPY, and where the source was itself written in parts, in the same parts, so that equal
        etags prove equal bytes.  Raises Changed when `version` is not the source's any more.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Takes files away; one that is not there is no error. Raises Refused, Unavailable."""


def part_size(size: int, asked: int = 0) -> int:
    """How large the parts of a file are: PART (or what was asked), doubled until they are few enough."""
    part = max(asked or PART, 5 << 20)
    while size > part * MOST_PARTS:
        part *= 2
    return part


def digest_of(stream: BinaryIO, parts_of: int = 0) -> tuple[str, int]:
    """The digest of a stream's bytes, whole or (`parts_of` bytes each) in parts; and how many they are."""
    whole, done = hashlib.sha256(), 0
    part, left = hashlib.sha256(), parts_of
    while chunk := stream.read(min(CHUNK, left) if parts_of else CHUNK):
        done += len(chunk)
        (part if parts_of else whole).update(chunk)
        left -= len(chunk)
        if parts_of and not left:
            whole.update(part.digest())
            part, left = hashlib.sha256(), parts_of
    if parts_of and left < parts_of:
        whole.update(part.digest())
    return digest_text(whole.digest(), parts_of), done


def digest_text(sha256: bytes, parts_of: int = 0) -> str:
    """A digest as it is kept."""
    return f"sha256:{sha256.hex()}/{parts_of}" if parts_of else f"sha256:{sha256.hex()}"


def composite(parts: Sequence[bytes], parts_of: int) -> str:
    """The digest of a file whose parts have these sha256s."""
    return digest_text(hashlib.sha256(b"".join(parts)).digest(), parts_of)


def parts_in(digest: str) -> int:
    """The part size that a digest was made with; 0 for a whole one."""
    return int(digest.partition("/")[2] or 0)


def open_objects(place: str, env: Mapping[str, str], throttle: Throttle = UNLIMITED) -> Objects:
    """The place that `place` names, with the credentials that `env` (one side's) leads to; nothing is asked yet.

    Raises UsageError for what is no such place, Refused when no credentials are found.
    """
    scheme = place.partition("://")[0].lower() if "://" in place else ""
    if scheme in ("s3", "s3a"):
        from mlmigrate.storage.s3 import S3Objects  # noqa: PLC0415  boto3 is slow to import

        return S3Objects.of(place, env, throttle)
    if scheme in ("gs", "az", "abfss", "wasbs"):
        from mlmigrate.storage.clouds import CloudObjects  # noqa: PLC0415  as above

        return CloudObjects.of(place, env, throttle)
    from mlmigrate.storage.folder import FolderObjects  # noqa: PLC0415  as above

    return FolderObjects.of(place, throttle)
