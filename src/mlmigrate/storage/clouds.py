"""Files by key in Google Cloud Storage and in Azure Blob Storage, moved by obstore alone.

    gs://bucket/prefix
    az://container/prefix                                         the account as the environment names it
    wasbs://container@account.blob.core.windows.net/prefix        as MLflow writes it
    abfss://container@account.dfs.core.windows.net/prefix         as MLflow writes it

obstore does not show the checksums that these stores keep, so what was written is read back, unless
its etag is the md5 of what was sent (Google, small files): docs/object-stores.md says what is checked.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from obstore import exceptions

from mlmigrate.errors import BadData, Conflict, Damaged, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.storage import cloud_access
from mlmigrate.storage.objects import (
    CHUNK,
    PART,
    BadKey,
    Body,
    Changed,
    Exists,
    Objects,
    Stored,
    composite,
    digest_of,
    digest_text,
)
from mlmigrate.storage.objects import part_size as sized
from mlmigrate.storage.throttle import UNLIMITED, Throttle

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import AzureStore, GCSStore
    from typing_extensions import Buffer

MEMORY = 1 << 26  # bytes of parts of one upload that may be held at once: half are read, half are being sent
LARGE = threading.BoundedSemaphore(2)  # uploads in parts at once, whoever asks for them
PAGE = 1000  # names that a list is asked for at a time
BATCH = 256  # names that Azure deletes in one request
LONGEST = 1024  # of a name, in bytes: both stores
LONGEST_COPY = 3600.0  # seconds that a copy within Azure is waited for
_MD5 = re.compile(r"[0-9a-f]{32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,80})</Code>|\"reason\": ?\"([A-Za-z]{1,80})\"")
_AWAY = re.compile(r"error sending request|timed out|timeout|connection|dns|HTTP error", re.IGNORECASE)
_URL = re.compile(r"\w+://\S+")
_THERE = frozenset({"", "BlobAlreadyExists", "PreconditionFailed", "ConditionNotMet"})
_WAIT = frozenset({408, 429, 500, 502, 503, 504})
_RATE = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "SlowDown", "ServerBusy"})


class NoBucket(NotFound):
    """It is the bucket or container that is not there."""


@dataclass(eq=False)
class CloudObjects:
    """A bucket or container, and a prefix in it. `kind` is gs or az."""

    kind: str
    url: str
    store: str
    prefix: str
    typed: str
    bucket: GCSStore | AzureStore = field(repr=False)
    throttle: Throttle
    local: Path | None = None

    @classmethod
    def of(cls, place: str, env: Mapping[str, str], throttle: Throttle = UNLIMITED) -> CloudObjects:
        """The place, reached with what `env` alone says; nothing is asked yet. Raises UsageError, Refused."""
        way = cloud_access.way(place, env)
        with explained(place):
            bucket = cloud_access.opened(way)
        prefix = way.prefix
        if prefix:
            check_key(way.kind, prefix)
        return cls(way.kind, way.url, way.store, prefix + "/" if prefix else "", way.typed, bucket, throttle)

    @property
    def shown(self) -> str:
        """The place as it was typed: it holds no secrets."""
        return self.typed

    def check(self, *, write: bool = False) -> None:
        """Lists; writes an empty file and deletes it."""
        next(self._pages(""), None)
        if write:
            probe = f".mlmigrate-{secrets.token_hex(8)}"
            self.put(probe, b"", create=True)
            self.delete([probe])

    def list(self, below: str = "") -> Iterator[Stored]:
        """Every file. A name that ends in "/" (the marker of a folder) is none."""
        for page in self._pages(self.prefix + below):
            for one in page:
                found = self._stored(one["path"].removeprefix(self.prefix), one)
                # obstore gives "folder/" as "folder": the empty one that is not there is such a marker
                if found.size or self.head(found.key) is not None:
                    yield found

    def head(self, key: str) -> Stored | None:
        """The file; its digest is the etag where that is an md5."""
        self.throttle.request()
        try:
            with explained(self.typed, key):
                return self._stored(key, self.bucket.head(self._name(key)))
        except NotFound:
            return None

    def open(
        self, key: str, start: int = 0, length: int | None = None, version: str = ""
    ) -> AbstractContextManager[BinaryIO]:
        """One request; the bytes are taken as they come."""
        name = self._name(key)
        if length == 0:
            return io.BytesIO()
        options: GetOptions = {"if_match": f'"{version}"'} if version else {}
        if length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}
        self.throttle.request()
        try:
            with explained(self.typed, key):
                answer = self.bucket.get(name, options=options)
        except Changed:  # past its end there is nothing, when nothing more was asked
            if length is not None or version or (found := self.head(key)) is None or found.size > start:
                raise
            return io.BytesIO()
        return io.BufferedReader(Download(answer, f"{self.typed}/{key}", self.throttle), CHUNK)

    def put(self, key: str, data: bytes | memoryview, *, create: bool = False, sha256: str = "") -> Stored:
        """Writes the file in one request; then reads it back, where the etag does not prove it."""
        name = self._name(key)
        self.throttle.request(len(data))
        with explained(self.typed, key):
            answer = self.bucket.put(name, data, mode="create" if create else "overwrite", use_multipart=False)
        version = _bare(answer["e_tag"])
        wanted = sha256 or hashlib.sha256(data).hexdigest()
        if version != hashlib.md5(data, usedforsecurity=False).hexdigest():
            self._prove(key, 0, len(data), version, bytes.fromhex(wanted))
        return Stored(key, len(data), version, time.time(), f"sha256:{wanted}")

    def upload(self, key: str, body: Body, *, part_size: int = 0, resume: str = "", threads: int = 4) -> Stored:  # noqa: ARG002  no upload can be taken up
        """Writes the file in parts, no more than MEMORY of them at once; then reads all of it back."""
        if body.size <= PART:
            with body.open(0, body.size) as stream:
                return self.put(key, _all(stream, body.size))
        with LARGE:
            return self._upload_parts(key, body, sized(body.size, part_size), threads)

    def _upload_parts(self, key: str, body: Body, size: int, threads: int) -> Stored:
        name = self._name(key)
        source = _Parts(body, size, self.throttle)
        held = max(1, min(threads, MEMORY // (2 * size)))
        with ThreadPoolExecutor(held) as pool, explained(self.typed, key):
            parts = source.read(pool, held)
            answer = self.bucket.put(name, parts, use_multipart=True, chunk_size=size, max_concurrency=held)
        version = _bare(answer["e_tag"])
        self._prove_parts(key, source, version, threads)
        return Stored(key, body.size, version, time.time(), composite(source.sums, size))

    def _prove_parts(self, key: str, source: _Parts, version: str, threads: int) -> None:
        """Reads all parts back; the first that is wrong ends it."""
        with ThreadPoolExecutor(threads) as pool:
            proofs = [
                pool.submit(self._prove, key, start, length, version, sha256)
                for (start, length), sha256 in zip(source.ranges(), source.sums, strict=True)
            ]
            try:
                for proof in proofs:
                    proof.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def unfinished(self, below: str = "") -> Iterator[tuple[str, str, float]]:  # noqa: ARG002  of the protocol
        """None that obstore could name: Azure forgets them after a week, in Google a rule of the bucket does."""
        return iter(())

    def abort(self, key: str, upload: str) -> None:
        """There is none to take away."""

    def copy(self, source: Objects, key: str, to: str, size: int, version: str = "") -> Stored:
        """Copies within one bucket or container. The digest is the etag where both have one md5, else ""."""
        if not isinstance(source, CloudObjects) or source.store != self.store:
            raise BadData(f"{source.shown} and {self.shown} are not in one bucket: neither can copy from the other.")
        before = source._unchanged(key, size, version)  # noqa: SLF001  of our own kind
        self.throttle.request()
        with explained(self.typed, key):
            self.bucket.copy(source._name(key), self._name(to))  # noqa: SLF001  as above
        copied = self._awaited(to, size)
        source._unchanged(key, size, before.version)  # noqa: SLF001  as above
        proved = _MD5.fullmatch(before.version) and copied.version == before.version
        return Stored(to, size, copied.version, copied.modified, f"etag:{copied.version}" if proved else "")

    def delete(self, keys: Iterable[str]) -> None:
        """Takes files away, by the batch where the store can."""
        names = map(self._name, keys)
        while batch := list(islice(names, BATCH)):
            for _ in batch if self.kind == "gs" else batch[:1]:
                self.throttle.request()
            try:
                with explained(self.typed):
                    self.bucket.delete(batch)
            except NoBucket:
                raise
            except NotFound:  # one of them; the others may be there still
                self._delete_each(batch)

    def _delete_each(self, names: Sequence[str]) -> None:
        for name in names:
            self.throttle.request()
            try:
                with explained(self.typed):
                    self.bucket.delete(name)
            except NoBucket:
                raise
            except NotFound:  # what was to be
                continue

    def _name(self, key: str) -> str:
        check_key(self.kind, key)
        name = self.prefix + key
        if len(name.encode()) > LONGEST:
            raise BadKey(f"{self.shown} cannot hold {key!r:.200}: with the prefix it is longer than {LONGEST} bytes.")
        return name

    def _pages(self, below: str) -> Iterator[Iterable[ObjectMeta]]:
        pages = iter(self.bucket.list(below.rstrip("/") or None, chunk_size=PAGE))
        while True:
            self.throttle.request()
            try:
                with explained(self.typed):
                    page = next(pages)
            except StopIteration:
                return
            except BadKey as error:
                raise BadData(
                    f"{self.shown} holds an object whose name cannot be read here, so it cannot be listed.",
                    'Names with "//", "." or ".." between slashes, or control characters: rename them, then run again',
                ) from error
            yield page

    def _stored(self, key: str, found: ObjectMeta) -> Stored:
        version = _bare(found["e_tag"])
        digest = f"etag:{version}" if self.kind == "gs" and _MD5.fullmatch(version) else ""
        return Stored(key, found["size"], version, found["last_modified"].timestamp(), digest)

    def _prove(self, key: str, start: int, length: int, version: str, sha256: bytes) -> None:
        """That the store has these bytes. Raises Damaged; Changed when somebody else wrote meanwhile."""
        with self.open(key, start, length, version) as stream:
            digest, size = digest_of(stream)
        if size != length or digest != digest_text(sha256):
            raise Damaged(
                f"{self.shown}/{key}: the bytes read back are not those that were written.",
                "Run the same command again; if it happens again, the way to the store changes bytes",
            )

    def _unchanged(self, key: str, size: int, version: str) -> Stored:
        """The file, being the one it was. Raises NotFound, Changed."""
        found = self.head(key)
        if found is None:
            raise NotFound(f"{self.shown} has no {key!r:.200}.")
        if found.size != size or (version and found.version != version):
            raise Changed(f"{self.shown}/{key} was written meanwhile.", "Run the same command again.")
        return found

    def _awaited(self, key: str, size: int) -> Stored:
        """The copy, once it is whole: Azure may answer before it is done."""
        end, wait = time.monotonic() + LONGEST_COPY, 0.1
        while (found := self.head(key)) is None or found.size != size:
            if time.monotonic() > end:
                raise Unavailable(f"{self.shown} is still copying {key!r:.200}.", "Run the same command again later.")
            time.sleep(wait)
            wait = min(wait * 2, 5.0)
        return found


@dataclass(frozen=True)
class _Parts:
    """A body in parts of `size`; `sums` are the sha256s of those that were read."""

    body: Body
    size: int
    throttle: Throttle
    sums: list[bytes] = field(default_factory=list)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Where each part begins and how long it is."""
        return ((start, min(self.size, self.body.size - start)) for start in range(0, self.body.size, self.size))

    def read(self, pool: ThreadPoolExecutor, ahead: int) -> Iterator[bytes]:
        """The parts in order, some read ahead."""
        ranges = self.ranges()
        reading: deque[Future[bytes]] = deque()
        while True:
            reading.extend(pool.submit(self._one, *one) for one in islice(ranges, ahead - len(reading)))
            if not reading:
                return
            data = reading.popleft().result()
            self.sums.append(hashlib.sha256(data).digest())
            self.throttle.request(len(data))
            yield data

    def _one(self, start: int, length: int) -> bytes:
        with self.body.open(start, length) as stream:
            return _all(stream, length)


class Download(io.RawIOBase):
    """A download as a file for reading, from its beginning to its end."""

    def __init__(self, answer: GetResult, shown: str, throttle: Throttle) -> None:
        super().__init__()
        self._chunks = iter(answer.stream(min_chunk_size=CHUNK))
        self._left = answer.range[1] - answer.range[0]
        self._shown, self._throttle = shown, throttle
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Some bytes; none at the end."""
        view = memoryview(buffer).cast("B")
        while not self._rest:
            try:
                with explained(self._shown):
                    self._rest = memoryview(next(self._chunks)).cast("B")
            except StopIteration:
                if self._left:
                    raise Unavailable(f"{self._shown}: the answer ended too soon.") from None
                return 0
            self._left -= len(self._rest)
            self._throttle.payload(len(self._rest))
        taken = min(len(view), len(self._rest))
        view[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken


@contextmanager
def explained(place: str, key: str = "") -> Iterator[None]:
    """Turns obstore's errors into ours."""
    try:
        yield
    except (exceptions.BaseError, FileNotFoundError, ValueError) as error:
        found = explain(error, place, key)
        if found is None:
            raise
        raise found from error


def explain(error: Exception, place: str, key: str = "") -> MigrateError | None:
    """What obstore's error means; None for what is not its own.

    Of its text, which holds the store's answer, no more than a status and a code are repeated.
    """
    text = str(error)
    if isinstance(error, ValueError):
        return BadKey(f"{place} cannot hold {key!r:.200}.") if "parse path" in text else None
    if isinstance(error, exceptions.InvalidPathError):
        return BadKey(f"{place} has a name that cannot be read here.")
    what = f"{place}/{key:.200}" if key else place
    return _answered(error, text, place, what) if isinstance(error, (exceptions.BaseError, FileNotFoundError)) else None


def _answered(error: Exception, text: str, place: str, what: str) -> MigrateError:
    """As `explain`, for what the store said."""
    status = int(match[1]) if (match := _STATUS.search(text)) else 0
    code = (match[1] or match[2]) if (match := _CODE.search(text)) else ""
    said = f"{status} {code}".strip() if status else _first_line(text)
    if isinstance(error, exceptions.AlreadyExistsError) and code in _THERE:  # else another 409 of Azure's
        return Exists(f"{what} is there already.")
    if isinstance(error, exceptions.PreconditionError) or status == 416 or "Wanted range" in text:  # noqa: PLR2004
        return Changed(f"{what} was written meanwhile.", "Run the same command again.")
    if status in _WAIT or code in _RATE:
        return Unavailable(f"{what}: the store is busy or away ({said}).")
    if _is_about_credentials(error, text, status):
        return Refused(f"{place} refused the credentials ({said}).", "docs/object-stores.md names the variables")
    if isinstance(error, FileNotFoundError) or status == 404:  # noqa: PLR2004
        return _missing(what, place, code, error)
    return _other(what, status, said, text)


def _is_about_credentials(error: Exception, text: str, status: int) -> bool:
    if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)) or status in (401, 403):
        return True
    return re.search(r"token request|credential", text.partition("\n")[0]) is not None


def _missing(what: str, place: str, code: str, error: Exception) -> NotFound:
    """A list, which names no file, misses the bucket itself."""
    if code in ("ContainerNotFound", "NoSuchBucket") or not isinstance(error, FileNotFoundError):
        return NoBucket(f"{place}: there is no such bucket or container.", "Make it first, or correct its name")
    return NotFound(f"{what} is not there.")


def _other(what: str, status: int, said: str, text: str) -> MigrateError:
    if "certificate" in text.lower():
        return MigrateError(f"{what}: the certificate of the store is not trusted.", "REQUESTS_CA_BUNDLE names a CA")
    if not status and _AWAY.search(text):
        return Unavailable(f"{what} cannot be reached ({said}).")
    if status == 409:  # noqa: PLR2004
        return Conflict(f"{what}: the store refuses it as it is ({said}).")
    return MigrateError(f"{what}: the store answered {said}.")


def _first_line(text: str) -> str:
    """The beginning of an error's text without addresses, which may hold signatures."""
    return _URL.sub("…", text.partition("\n")[0])[:200]


def check_key(kind: str, key: str) -> None:
    """Raises BadKey for a name that the store, or obstore, would change or refuse."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise BadKey(f'{key!r:.200} begins or ends with "/", or has "//", "." or ".." in it: {kind}: cannot hold it.')
    if _CONTROL.search(key):
        raise BadKey(f"{key!r:.200} has control characters in it: {kind}: cannot hold it.")
    if len(key.encode("utf-8", "surrogatepass")) > LONGEST:
        raise BadKey(f"{key!r:.100}… is longer than {LONGEST} bytes: {kind}: cannot hold it.")
    if re.search(r"[\ud800-\udfff]", key):
        raise BadKey(f"{key!r:.200} is no text: {kind}: cannot hold it.")
    if kind == "az" and ("\\" in key or any(part.endswith(".") for part in parts)):
        raise BadKey(f"{key!r:.200} has a backslash, or a part that ends with a dot: Azure cannot hold it.")


def _bare(etag: str | None) -> str:
    """An etag without its quotes, which heads have and lists have not."""
    return (etag or "").removeprefix("W/").strip('"')


def _all(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    if len(data) != size or stream.read(1):
        raise Changed(f"A file was {size:,} bytes long and gave {len(data):,}.", "Run the same command again.")
    return data
