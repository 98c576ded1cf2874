"""Files read from behind a server: straight from the store where it signs URLs, else through its proxy.

    small                by one request, whole
    large, by URL        in ranges, some of them under way while one is read; all must be of one file (its ETag)
    large, by proxy      as a stream; one that breaks off is taken up by a Range where the server knows them,
                         else from the start, and what was read already is compared

Sizes are those that were listed.  Where the store's ETag is an MD5 the bytes are checked against it.
"""

from __future__ import annotations

import hashlib
import io
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

from mlmigrate.adapters.mlflow.rest.client import CHUNK, Client, Params, path_of
from mlmigrate.adapters.mlflow.rest.presigned import PARTIAL, Piece
from mlmigrate.adapters.mlflow.rest.wire import Link, ServerInfo
from mlmigrate.errors import Damaged, MigrateError, Refused, Unavailable
from mlmigrate.storage.objects import Changed

INFO = "api/3.0/mlflow/server-info"
SIGNED = "api/2.0/mlflow-artifacts/presigned"
WHOLE = 8 << 20  # bytes; files up to that are read by one request
RANGE = 8 << 20  # bytes
RANGES = 6  # under way of one file at once
_AGAIN = "The same command again reads it as it is then."


class Downloads:
    """Files by the URLs that one server signs. What it turned out not to offer is not asked again."""

    def __init__(self, client: Client, allow: Sequence[str]) -> None:
        self._client, self._allow = client, allow

    def whole(self, path: str, size: int | None) -> bytes | None:
        """A small file, asked for once; None when it must be read otherwise."""
        presigned = self._client.presigned
        data: bytes | None = self._tried(path, lambda link: presigned.whole(link.url, link.headers, WHOLE))
        return data if data is None or size is None or len(data) == size else None

    @contextmanager
    def stream(self, path: str, size: int) -> Iterator[BinaryIO | None]:
        """A large file; None when it must be read otherwise."""
        used: list[Link] = []

        def read(link: Link) -> Piece | None:
            used[:] = [link]
            return self._client.presigned.part(link.url, link.headers, 0, RANGE)

        first = self._client.again.do(path, self._tried, path, read)
        if first is None or first.total != size:
            yield None
            return
        ranges = _Ranges(self, path, used[0], first)
        with _Ranged(first, ranges.read, self._client.offers.spare) as raw:
            yield cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", raw), CHUNK))

    def _tried(self, path: str, read: Callable[[Link], Any]) -> Any:  # noqa: ANN401  what `read` gives, or None
        """One try. A store that never answered us yet is not insisted on: it may be out of our reach."""
        offers = self._client.offers
        link = self.link(path)
        if link is None:
            return None
        try:
            found = read(link)
        except Damaged:
            raise
        except MigrateError as error:
            if offers.reads and isinstance(error, Unavailable):
                raise
            offers.miss()
            return None
        offers.reads = True
        return found

    def link(self, path: str) -> Link | None:
        """Where the store gives a file of the proxy; None where that is not to be had, or not to be used."""
        offers, client = self._client.offers, self._client
        if offers.downloads is None:
            offers.downloads = bool(server_info(client).multipart_downloads_enabled)
        if not offers.downloads:
            return None
        try:
            link = client.once("GET", f"{SIGNED}/{path_of(path)}", Link)
        except MigrateError:
            offers.miss()
            return None  # the proxy has it, or says what is the matter
        if client.presigned.allows(link.url, self._allow):
            return link
        offers.downloads = False
        return None

    def again(self, path: str) -> Link:
        """A new URL for a file that is being read."""
        link = self.link(path)
        if link is None:
            raise Unavailable(f"The server gives no URL for {path} any more.")
        return link

    def part(self, link: Link, start: int, length: int) -> Piece:
        """Bytes of a file. One request."""
        return self._client.presigned.part(link.url, link.headers, start, length)

    def do(self, what: str, call: Callable[..., Any], *given: object) -> Any:  # noqa: ANN401  as Again
        """Calls again while the store is away."""
        return self._client.again.do(what, call, *given)


def signed_version(client: Client, allow: Sequence[str], path: str) -> str:
    """The ETag of a file as the store has it; "" where that is not to be had."""
    link = Downloads(client, allow).link(path)
    if link is None:
        return ""
    try:
        return client.presigned.part(link.url, link.headers, 0, 1).version
    except MigrateError:
        return ""


def server_info(client: Client) -> ServerInfo:
    """What the server says of itself; nothing when it is older than that."""
    try:
        return client.get(INFO, ServerInfo)
    except Unavailable:
        raise
    except MigrateError:
        return ServerInfo()


class _Ranges:
    """The ranges of one file. Its URL runs out, and is asked for anew then."""

    def __init__(self, downloads: Downloads, path: str, link: Link, first: Piece) -> None:
        self._downloads, self._path, self._link, self._first = downloads, path, link, first
        self._lock = threading.Lock()

    def read(self, start: int) -> bytes:
        """The range that begins there."""
        data: bytes = self._downloads.do(self._path, self._once, start)
        return data

    def _once(self, start: int) -> bytes:
        link = self._link
        try:
            piece = self._downloads.part(link, start, RANGE)
        except Refused as error:
            self._renew(link)
            raise Unavailable(error.message, after=0.0) from error
        if (piece.version, piece.total) != (self._first.version, self._first.total):
            raise Changed(f"Artifact {self._path!r} was written while it was read.", _AGAIN)
        return piece.data

    def _renew(self, link: Link) -> None:
        with self._lock:
            if self._link is link:
                self._link = self._downloads.again(self._path)


class _Ranged(io.RawIOBase):
    """The ranges of a file as one stream."""

    def __init__(self, first: Piece, read: Callable[[int], bytes], spare: threading.Semaphore) -> None:
        self._first, self._read, self._spare = first, read, spare
        self._left = memoryview(first.data)
        self._next = len(first.data)  # where the next range begins that is asked for
        self._asked: deque[tuple[Future[bytes], bool]] = deque()
        self._md5 = hashlib.md5(first.data, usedforsecurity=False) if first.md5 else None
        self._pool = ThreadPoolExecutor(RANGES, "mlflow-ranges")
        self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  any writable buffer, as RawIOBase has it
        if not self._left:
            self._take()
        read = min(len(buffer), len(self._left))
        buffer[:read] = self._left[:read]
        self._left = self._left[read:]
        return read

    def _take(self) -> None:
        """The range that comes next; at the end, what came is checked."""
        self._left = memoryview(b"")
        if not self._asked:
            self._check()
            return
        future, spared = self._asked.popleft()
        try:
            data = future.result()
        finally:
            if spared:
                self._spare.release()
        self._left = memoryview(data)
        if self._md5 is not None:
            self._md5.update(data)
        self._ask()

    def _ask(self) -> None:
        """Has the next ranges fetched: one for certain, more while there is room for them."""
        while self._next < self._first.total and len(self._asked) < RANGES:
            spared = bool(self._asked)
            if spared and not self._spare.acquire(blocking=False):
                return
            self._asked.append((self._pool.submit(self._read, self._next), spared))
            self._next += RANGE

    def _check(self) -> None:
        if self._md5 is not None and self._md5.hexdigest() != self._first.md5:
            raise Damaged("The bytes read are not those that the store has (MD5 differs).", _AGAIN)

    def close(self) -> None:
        """Lets go of what was asked for and is not wanted any more."""
        if not self.closed:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for _, spared in self._asked:
                if spared:
                    self._spare.release()
            self._asked.clear()
        super().close()


class Resumed(io.RawIOBase):
    """The answer to one request, taken up again where it breaks off."""

    def __init__(self, client: Client, path: str, params: Params | None, size: int | None) -> None:
        self._client, self._path, self._params, self._size = client, path, params, size
        self._at, self._crc, self._version = 0, 0, ""
        self._open = ExitStack()
        self._read: Callable[[int], bytes]
        self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  as above
        try:
            data = self._some(len(buffer))
        except Unavailable:
            data = self._client.again.do(self._path, self._again, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        if not self._version:
            self._crc = zlib.crc32(data, self._crc)
        return len(data)

    def _some(self, most: int) -> bytes:
        data = self._read(most)
        if not data and self._size is not None and self._at < self._size:
            raise Unavailable(f"{self._client.shown(self._path)} ended {self._size - self._at} bytes too early.")
        return data

    def _again(self, most: int) -> bytes:
        """One try to go on."""
        self._ask()
        return self._some(most)

    def _ask(self) -> None:
        """Asks for what was not read yet. One request."""
        self._open.close()
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        with ExitStack() as stack:
            answer = stack.enter_context(self._client.answer(self._path, self._params, headers))
            self._same(answer.headers)
            self._read = answer.read
            if self._at and answer.status != PARTIAL:
                self._skip()
            elif self._at and not answer.headers.get("Content-Range", "").startswith(f"bytes {self._at}-"):
                raise Unavailable(f"{self._client.shown(self._path)} gave other bytes than those asked for.")
            self._open = stack.pop_all()

    def _same(self, headers: Mapping[str, str]) -> None:
        version = headers.get("ETag", "") or headers.get("Last-Modified", "")
        if self._at and version != self._version:
            raise Changed(f"{self._client.shown(self._path)} was written while it was read.", _AGAIN)
        self._version = version

    def _skip(self) -> None:
        """Reads what was read already; it is compared where no header tells that it is the same."""
        left, crc = self._at, 0
        while left:
            data = self._read(min(CHUNK, left))
            if not data:
                raise Unavailable(f"{self._client.shown(self._path)} ended too early once more.")
            crc, left = zlib.crc32(data, crc), left - len(data)
        if not self._version and crc != self._crc:
            raise Changed(f"{self._client.shown(self._path)} was written while it was read.", _AGAIN)

    def close(self) -> None:
        """Gives the connection back, or up."""
        self._open.close()
        super().close()
