"""Large files put straight into the store behind a server, in parts, by URLs that the server signs.

    mpu/create      the server begins an upload and signs a URL for each part
    PUT ...         some parts at once, each made again by itself; the store's ETag must be the part's MD5
    mpu/complete    only now is the file there
    mpu/abort       when it fails for good

The id of an upload is known to this process alone: the server tells nobody which uploads it has begun.  So
one that was killed leaves its parts behind, where a rule of the bucket takes them away, and begins anew.
"""

from __future__ import annotations

import hashlib
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from mlmigrate.adapters.mlflow.rest.client import CHUNK, Client, path_of
from mlmigrate.adapters.mlflow.rest.downloads import server_info, signed_version
from mlmigrate.adapters.mlflow.rest.wire import Anything, PartLink, PartLinks
from mlmigrate.errors import Damaged, MigrateError, Unavailable
from mlmigrate.storage.objects import MOST_PARTS, part_size

MPU = "api/2.0/mlflow-artifacts/mpu"
LARGE = 32 << 20  # bytes; up to that, one request through the proxy is as fast
AT_ONCE = 6  # parts
HELD = 112 << 20  # bytes of parts in memory, of one file
_REFUSED_NAMES = ("#", "%")  # that servers take here, and then do not give out


class NotTaken(Exception):  # not an error of ours: the file goes another way
    """The store behind the server did not take a file in parts."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A file to be sent: its folder and its name behind the proxy, and its bytes."""

    folder: str
    name: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


class Parts:
    """Uploads in parts to one server. What it turned out not to offer is not asked again."""

    def __init__(self, client: Client, allow: Sequence[str], part: int = 0) -> None:
        self._client, self._allow, self._part = client, allow, part

    def put(self, file: Whole) -> bool:
        """Sends a large file; False when it must be sent otherwise. Raises what reading the file raises."""
        if file.size < LARGE or any(one in file.path for one in _REFUSED_NAMES) or not self._offered():
            return False
        part = part_size(file.size, self._part)
        begun = self._begin(file, -(-file.size // part))
        if begun is None:
            return False
        try:
            self._send(file, begun, part)
        except NotTaken:
            self._abort(file, begun)
            self._client.offers.refuse()
            return False
        except BaseException:
            self._abort(file, begun)
            raise
        return True

    def _offered(self) -> bool:
        """Old servers do not tell: they are asked for an upload, and say no."""
        offers = self._client.offers
        if offers.uploads is None:
            offers.uploads = server_info(self._client).multipart_uploads_enabled is not False
        return offers.uploads

    def _begin(self, file: Whole, count: int) -> PartLinks | None:
        """A URL for each part; None when there are none that we may use."""
        body = {"path": file.name, "num_parts": count}
        try:
            begun = self._client.post(_of("create", file), PartLinks, body)
        except Unavailable:
            return None  # the proxy takes it, or says what is the matter
        except MigrateError:
            self._client.offers.uploads = False
            return None
        numbers = [one.part_number for one in begun.credentials]
        usable = all(self._client.presigned.allows(one.url, self._allow) for one in begun.credentials)
        if usable and numbers == list(range(1, count + 1)) and count <= MOST_PARTS:
            return begun
        self._client.offers.uploads = False
        self._abort(file, begun)
        return None

    def _send(self, file: Whole, begun: PartLinks, part: int) -> None:
        """All parts, then the end of it."""
        with ThreadPoolExecutor(AT_ONCE, "mlflow-parts") as pool, file.open() as data:
            sending = _Sending(self._client, pool, max(1, min(AT_ONCE, HELD // part - 1)))
            try:
                for link, chunk in zip(begun.credentials, _chunks(data, file, part), strict=True):
                    sending.put(file.path, link, chunk)
                sending.settle()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._complete(file, begun, sending)

    def _complete(self, file: Whole, begun: PartLinks, sending: _Sending) -> None:
        """A second try finds no upload when the first was done and its answer lost: then the file itself tells."""
        body = _id(file, begun) | {"parts": [sending.sent[number] for number in sorted(sending.sent)]}
        try:
            self._client.post(_of("complete", file), Anything, body)
        except MigrateError as error:
            if signed_version(self._client, self._allow, file.path).strip('"') != sending.etag():
                raise NotTaken from error

    def _abort(self, file: Whole, begun: PartLinks) -> None:
        with suppress(MigrateError):
            self._client.once("POST", _of("abort", file), Anything, None, _id(file, begun))


class _Sending:
    """The parts of one file on their way: a few in memory at once."""

    def __init__(self, client: Client, pool: ThreadPoolExecutor, at_once: int) -> None:
        self._client, self._pool, self._at_once = client, pool, at_once
        self._under_way: set[Future[None]] = set()
        self._md5s: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self.sent: dict[int, dict[str, object]] = {}

    def put(self, what: str, link: PartLink, data: bytes) -> None:
        """Begins to send a part, once there is room. Raises NotTaken when an earlier one was not taken."""
        self._wait(self._at_once - 1)
        self._under_way.add(self._pool.submit(self._part, what, link, data))

    def settle(self) -> None:
        """All parts are there when this returns. Raises NotTaken."""
        self._wait(0)

    def etag(self) -> str:
        """What S3 calls the file that these parts make."""
        md5s = b"".join(self._md5s[number] for number in sorted(self._md5s))
        return f"{hashlib.md5(md5s, usedforsecurity=False).hexdigest()}-{len(self._md5s)}"

    def _part(self, what: str, link: PartLink, data: bytes) -> None:
        offers, md5 = self._client.offers, hashlib.md5(data, usedforsecurity=False).digest()
        try:
            if offers.writes:
                etag = self._client.again.do(f"{what}, part {link.part_number}", self._once, link, data, md5)
            else:  # a store that never answered us yet is not insisted on: it may be out of our reach
                etag = self._once(link, data, md5)
        except MigrateError as error:
            raise NotTaken from error
        offers.writes = True
        told: dict[str, object] = {"part_number": link.part_number, "etag": etag}
        with self._lock:
            self._md5s[link.part_number] = md5
            self.sent[link.part_number] = told if etag else {**told, "url": link.url}

    def _once(self, link: PartLink, data: bytes, md5: bytes) -> str:
        headers = dict(link.headers)
        if "comp=block" in link.url:  # Azure's: they have no ETag
            headers["Content-MD5"] = b64encode(md5).decode()
        return self._client.presigned.put(link.url, headers, data, md5)

    def _wait(self, most: int) -> None:
        while len(self._under_way) > most:
            done, self._under_way = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()


def _of(what: str, file: Whole) -> str:
    return f"{MPU}/{what}/{path_of(file.folder)}"


def _id(file: Whole, begun: PartLinks) -> dict[str, object]:
    """How an upload is named; Azure's have no id."""
    named: dict[str, object] = {"path": file.name}
    return named | ({"upload_id": begun.upload_id} if begun.upload_id else {})


def _chunks(data: BinaryIO, file: Whole, part: int) -> Iterator[bytes]:
    """The parts of a file. Raises Damaged when it is not of its size."""
    left = file.size
    while left:
        chunk = _filled(data, min(part, left))
        left -= len(chunk)
        if len(chunk) < min(part, left + len(chunk)):
            raise Damaged(f"Artifact {file.path!r} should have {file.size} bytes, and {file.size - left} were read.")
        yield chunk
    if data.read(1):
        raise Damaged(f"Artifact {file.path!r} should have {file.size} bytes, and more were read.")


def _filled(data: BinaryIO, size: int) -> bytes:
    chunks: list[bytes] = []
    while size and (chunk := data.read(min(CHUNK, size))):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
