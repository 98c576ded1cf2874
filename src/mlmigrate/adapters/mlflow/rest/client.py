"""HTTP to one MLflow server: typed answers, our errors, no retries, no redirects, one origin.

A default `mlflow server` (several uvicorn workers) leaves Nagle's algorithm on, and holds the body
of a kept-alive answer back until the client has acknowledged the headers, which Linux delays by
40 ms.  So we tell Linux to acknowledge at once before each answer is read.
"""

from __future__ import annotations

import io
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, BinaryIO, TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.response import BaseHTTPResponse

from mlmigrate.adapters.base import Again
from mlmigrate.adapters.mlflow.direct import Stores
from mlmigrate.adapters.mlflow.rest.auth import Login
from mlmigrate.adapters.mlflow.rest.managed import (
    Cuts,
    TooLong,
    answered,
    asked,
    asked_path,
    parent,
    pieces,
    rate_of,
    too_long,
    unasked,
    without_nulls,
)
from mlmigrate.adapters.mlflow.rest.presigned import Offers, Presigned, endpoints
from mlmigrate.adapters.mlflow.rest.wire import Anything, decode, encode
from mlmigrate.errors import BadData, Conflict, MigrateError, NotFound, Refused, Unavailable, UsageError
from mlmigrate.storage.throttle import Paid, Throttle, until

T = TypeVar("T")
Params = Mapping[str, str | int | Sequence[str]]
CHUNK = 1 << 20
A_PAGE = "an HTML page"
LARGEST_ANSWER = 256 << 20  # bytes of JSON; our own page sizes keep honest servers far below
IN_MEMORY = 8 << 20
BLOCK = 256 << 10  # how much of a file is sent at once
BUSY = 429
_AWAY = (408, BUSY, 500, 502, 503, 504)
_AWAY_CODES = ("REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "TEMPORARILY_UNAVAILABLE", "ThrottlingException")
PATIENCE = 10  # times that a service says it is busy, before that is an error
LONGEST_WAIT = 120.0  # seconds
LARGEST_ERROR = 1 << 20
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class _Failure(Exception):  # not an error of ours: `explain` makes one of it
    """An answer that is not 2xx."""

    def __init__(self, where: str, status: int, body: bytes, headers: Mapping[str, str], told: str) -> None:
        super().__init__(where, status)
        self.where = where
        self.status = status
        self.body = body
        self.headers = headers
        self.told = told


class _Torn(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where = where
        self.why = why


def explain(error: Exception, where: str = "The MLflow server") -> MigrateError | None:
    """Our error for one of urllib3's or one of this module's. `where` names the server."""
    if isinstance(error, _Failure):
        return _explain_status(error)
    if isinstance(error, _Torn):
        return Unavailable(f"{error.where} gave an answer that is not an MLflow server's: {error.why}")
    if isinstance(error, SSLError):
        return Refused(
            "The server's certificate is not trusted.", "MLFLOW_TRACKING_SERVER_CERT_PATH names one that is."
        )
    if isinstance(error, LocationParseError):
        return NotFound("The address of the MLflow server cannot be understood.")
    if isinstance(error, HTTPError | OSError):
        return Unavailable(f"{where} does not answer ({type(error).__name__}).", "The same command again goes on.")
    return None


def _explain_status(error: _Failure) -> MigrateError:  # noqa: PLR0911  # a table of answers
    code, reason = said(error.body)
    line = " ".join(reason.split())[:300]
    told = f": {line}" if line else ""
    where = error.where
    if error.status in _AWAY or code in _AWAY_CODES:
        return Unavailable(f"{where} answered {error.status}{told}", after=_after(error.headers))
    if error.status in (401, 403) or code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return Refused(f"{where} refused the credentials ({error.status}){told}", error.told)
    if 300 <= error.status < 400:  # noqa: PLR2004  # HTTP's redirects
        to = urlsplit(error.headers.get("Location", "")).netloc.rpartition("@")[2]
        return MigrateError(f"{where} answered {error.status}: MLflow is elsewhere ({to or 'not said where'}).",
                        "Redirects are not followed. If you trust that place, give its address.")  # fmt: skip
    if b"RESOURCE_ALREADY_EXISTS" in error.body or error.status == 409:  # noqa: PLR2004
        return Conflict(f"{where}: it is there already{told}")
    if error.status == 404 or code == "RESOURCE_DOES_NOT_EXIST":  # noqa: PLR2004
        return NotFound(f"{where} has no such thing{told}")
    if error.status == 400 and (most := too_long(reason)):  # noqa: PLR2004
        return TooLong(f"{where} refused a request (400): {reason[-300:]}", "", *most)
    return MigrateError(f"{where} refused a request ({error.status}){told}")


def said(body: bytes) -> tuple[str, str]:
    """(code, reason) that a server gave: MLflow's way, and those of gateways before it."""
    try:
        found = decode(body, dict[str, Any])
    except ValueError:
        return "", ""
    inner = found.get("error")
    if isinstance(inner, dict):
        found = {**found, **inner}
    elif isinstance(inner, str):
        found.setdefault("message", inner)
    code = next((found[name] for name in ("error_code", "code", "__type") if isinstance(found.get(name), str)), "")
    names = ("message", "Message", "detail", "error_description", "title")
    reason = next((found[name] for name in names if isinstance(found.get(name), str)), "")
    return code, reason


def _after(headers: Mapping[str, str]) -> float | None:
    """What Retry-After says, in seconds or as a date."""
    text = headers.get("Retry-After", "")
    try:
        wait = float(text)
    except ValueError:
        return until(text)
    return max(0.0, wait) if wait == wait else None  # noqa: PLR0124  # NaN is not itself


def _acknowledge(connection: HTTPConnection) -> None:
    """The option holds for a few packets only, so it is set anew each time."""
    if _QUICKACK is not None and connection.sock is not None:
        connection.sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


class _Quick(HTTPConnection):
    def getresponse(self) -> Any:  # noqa: ANN401  # urllib3's own type differs between its versions
        _acknowledge(self)
        response = super().getresponse()
        _acknowledge(self)
        return response


class _QuickTls(HTTPSConnection):
    def getresponse(self) -> Any:  # noqa: ANN401
        _acknowledge(self)
        response = super().getresponse()
        _acknowledge(self)
        return response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Quick


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _QuickTls


def timeout_of(env: Mapping[str, str]) -> float:
    """How long to wait for a server that says nothing, in seconds; MLflow's own variable and default."""
    said = env.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "") or "120"
    try:
        return max(float(said), 0.1)
    except ValueError as error:
        raise UsageError(f"MLFLOW_HTTP_REQUEST_TIMEOUT is {said!r}, which is no number of seconds.") from error


class _Pace:
    """When the next call may go: no more a second than the service takes, none before it asked us to come back."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._not_before = 0.0
        self._lock = threading.Lock()

    def wait(self, group: str, rate: float | None, check: Callable[[], None]) -> None:
        """Waits for this call's turn; `check` may end the wait with an error."""
        with self._lock:
            at = max(time.monotonic(), self._not_before, self._next.get(group, 0.0))
            if rate is not None:
                self._next[group] = at + 1 / rate
        while (left := at - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            check()

    def hold(self, seconds: float) -> None:
        """No call before that, from any thread."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + min(seconds, LONGEST_WAIT))


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer. `read` gives its next bytes, no more than so many; none at the end. It may raise Unavailable."""

    status: int
    headers: Mapping[str, str]
    read: Callable[[int], bytes]


class Client:
    """One server. Calls may come from several threads. `cuts` says which values turned out too long for it."""

    def __init__(self, login: Login, again: Again, timeout: float = 120.0, connections: int = 64) -> None:
        self.login = login
        self.again = again
        self.stores = Stores({})  # the object stores that this side reaches: who opens the server tells which
        parts = urlsplit(login.base)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path
        self.cuts = Cuts()
        self._pace = _Pace()
        self._folders: set[str] = set()  # that are there for experiments
        self.offers = Offers()
        self._seconds = timeout
        self._timeout = urllib3.Timeout(connect=15.0, read=timeout)
        self._http = self._pool(parts.scheme, connections)

    def _pool(self, scheme: str, connections: int) -> urllib3.PoolManager:
        tls = self.login.tls
        extra: dict[str, Any] = {}
        if scheme == "https":
            extra = {
                "cert_reqs": "CERT_NONE" if tls.insecure else "CERT_REQUIRED",
                "ca_certs": tls.server or None,
                "cert_file": tls.client or None,
            }
        manager = urllib3.PoolManager(num_pools=1, maxsize=connections, blocksize=BLOCK, **extra)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager

    @cached_property
    def presigned(self) -> Presigned:
        """What asks the store behind the server by URLs that the server signs."""
        return Presigned(self.login.base, endpoints(self.stores.env), self._seconds, self.stores.throttle)

    def close(self) -> None:
        self._http.clear()
        if "presigned" in self.__dict__:
            self.presigned.close()
        self.stores.close()

    def get(self, path: str, kind: type[T], params: Params | None = None) -> T:
        """Asks, again while the server is away."""
        return self.again.do(path, self.once, "GET", path, kind, params)

    def post(self, path: str, kind: type[T], body: object) -> T:
        """Asks with a body, or writes what can be written twice; again while the server is away."""
        for piece in pieces(self.login.service, path, body):
            answer = self.again.do(path, self.once, "POST", path, kind, None, piece)
        return answer

    def patch(self, path: str, kind: type[T], body: object) -> T:
        """As `post`."""
        return self.again.do(path, self.once, "PATCH", path, kind, None, body)

    def once(self, method: str, path: str, kind: type[T], params: Params | None = None, body: object = None) -> T:
        """One request, whatever comes of it. Values that turn out too long are cut, and go again: nothing was done."""
        self._prepare(path, body)
        for _ in range(3):  # params, then tags, then what is counted in bytes
            fitted = self.cuts.fitted(path, body)
            try:
                return self.decoded(path, self._whole(method, path, params, fitted), kind)
            except TooLong as error:
                if not self.cuts.learn(path, fitted, error):
                    raise
        return self.decoded(path, self._whole(method, path, params, self.cuts.fitted(path, body)), kind)

    def _prepare(self, path: str, body: object) -> None:
        """The folder that an experiment is made in."""
        folder = parent(self.login.service, path, body)
        if folder and folder not in self._folders:
            self.once("POST", "api/2.0/workspace/mkdirs", Anything, None, {"path": folder})
            self._folders.add(folder)

    def measured(self, path: str, kind: type[T], body: object) -> tuple[T, int]:
        """As `post`, with the size of the answer."""

        def call() -> tuple[T, int]:
            data = self._whole("POST", path, None, body)
            found = answered(self.login.service, body, self.decoded(path, data, kind))
            return cast("T", found), len(data)

        return self.again.do(path, call)

    def text(self, path: str) -> str:
        """A short plain answer."""
        data = self.again.do(path, self._whole, "GET", path, None, None)
        return data[:200].decode("utf-8", "replace").strip()

    def spool(self, path: str, params: Params) -> IO[bytes]:
        """An answer of any length in a temporary file, at its start. One request, whatever comes of it."""
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # the caller closes it
        with self._answer("GET", path, asked(self.login.service, path, params), None, None) as response:
            while data := response.read(CHUNK):
                self.stores.throttle.payload(len(data))
                file.write(data)
        file.seek(0)
        return file

    @contextmanager
    def stream(self, path: str, params: Params | None = None, size: int | None = None) -> Iterator[BinaryIO]:
        """The bytes of an answer, as they come. Fewer than `size` of them are an error, when they end."""
        with self._answer("GET", path, params, None, None) as response:
            stream = cast("io.RawIOBase", _Stream(response, size, self.shown(path), self.stores.throttle))
            yield cast("BinaryIO", io.BufferedReader(stream, CHUNK))

    @contextmanager
    def answer(self, path: str, params: Params | None, headers: Mapping[str, str]) -> Iterator[Answer]:
        """What comes to a request for bytes. One request, whatever comes of it."""
        with self._answer("GET", path, params, None, headers) as response:
            stream = _Stream(response, None, self.shown(path), self.stores.throttle)
            yield Answer(response.status, response.headers, stream.some)

    def upload(self, path: str, data: BinaryIO, size: int | None) -> None:
        """Puts a file, streamed."""
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        paid = _paid(data, self.stores.throttle)
        body = paid if size is not None else _chunks(paid)
        with self._answer("PUT", path, None, body, headers) as response:
            self._taken(path, response)

    def send(self, path: str, params: Params, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Posts bytes. One request, whatever comes of it."""
        wanted = {"Content-Type": "application/octet-stream", **(headers or {})}
        with self._answer("POST", path, params, data, wanted) as response:
            self._taken(path, response)

    def _taken(self, path: str, response: BaseHTTPResponse) -> None:
        """A page for people, a login, say, means that nothing was taken, whatever its status."""
        start = response.read(1024)
        response.drain_conn()
        if start and _look(start) == A_PAGE:
            torn = _Torn(self.login.base, f"/{path.lstrip('/')}: {A_PAGE}")
            raise explain(torn) or torn

    def shown(self, path: str) -> str:
        """Where a request goes, for messages."""
        return f"{self.login.base}/{path.lstrip('/')}"

    def _whole(self, method: str, path: str, params: Params | None, body: object) -> bytes:
        service = self.login.service
        if (known := unasked(service, path, params)) is not None:
            return known
        params = None if params is None else asked(service, path, params)
        data = None if body is None else encode(asked(service, path, body) if isinstance(body, dict) else body)
        headers = {"Content-Type": "application/json"} if data is not None else {}
        with self._answer(method, path, params, data, headers) as response:
            read = response.read(LARGEST_ANSWER + 1)
        self.stores.throttle.payload(len(read))
        if len(read) > LARGEST_ANSWER:
            raise BadData(f"{self.shown(path)} gave an answer of more than {LARGEST_ANSWER >> 20} MiB.")
        return read

    def decoded(self, path: str, data: bytes, kind: type[T]) -> T:
        """An answer as what was asked for. Raises Unavailable: what is not JSON is no MLflow server's."""
        try:
            return self._decoded(data, kind)
        except ValueError as error:
            raise explain(_Torn(self.login.base, f"/{path.lstrip('/')}: {_look(data)}")) or error from error

    def _decoded(self, data: bytes, kind: type[T]) -> T:
        """Gateways may write fields that are empty as null, which MLflow's own servers leave out."""
        if not self.login.service.name:
            try:
                return decode(data, kind)
            except ValueError:
                if b"null" not in data:
                    raise
        return decode(without_nulls(data) if b"null" in data else data, kind)

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        params: Params | None,
        body: Any,  # noqa: ANN401  # bytes, a file or chunks: what urllib3 takes
        headers: Mapping[str, str] | None,
    ) -> Iterator[BaseHTTPResponse]:
        """A 2xx answer, open; the connection goes back to the pool only when it was read to its end."""
        began = time.monotonic()
        try:
            response = self._asked(method, path, params, body, headers)
            try:
                self._check(response, began)
                yield response
            finally:
                response.close()  # one that was read to its end has given its connection back already
        except (_Failure, HTTPError, ConnectionError, TimeoutError) as error:
            raise explain(error, self.login.base) or error from error

    def _asked(
        self,
        method: str,
        path: str,
        params: Params | None,
        body: Any,  # noqa: ANN401
        headers: Mapping[str, str] | None,
    ) -> BaseHTTPResponse:
        """An answer of any status. A managed service that is too busy for us has done nothing, and is asked again."""
        managed = self.login.service.name and (body is None or isinstance(body, bytes))
        for n in range(PATIENCE if managed else 0):
            response = self._request(method, path, params, body, headers)
            if response.status != BUSY:
                return response
            self._pace.hold(min(2.0**n, 30.0) if (wait := _after(response.headers)) is None else wait)
            response.drain_conn()
            response.release_conn()
        return self._request(method, path, params, body, headers)

    def _request(
        self,
        method: str,
        path: str,
        params: Params | None,
        body: Any,  # noqa: ANN401
        headers: Mapping[str, str] | None,
    ) -> BaseHTTPResponse:
        group, rate = rate_of(self.login.service, path) or ("", None)
        self._pace.wait(group, rate, self._stopped)
        self.stores.throttle.request(len(body) if isinstance(body, bytes) else 0)  # a stream pays as it is read
        url, sent = self._url(path, params), self._headers(headers or {})
        if self.login.sign is not None:
            url, sent, body = self.login.sign.sign(method, url, sent, body)
        return self._http.request(
            method, url, body=body, headers=sent,
            redirect=False, retries=False, timeout=self._timeout, preload_content=False, decode_content=False,
        )  # fmt: skip

    def _stopped(self) -> None:
        """Raises Stopped once somebody stops us."""
        check = getattr(self.again, "check", None)
        if check is not None:
            check()

    def _check(self, response: BaseHTTPResponse, began: float) -> None:
        if 200 <= response.status < 300:  # noqa: PLR2004  # HTTP's successes
            return
        body = response.read(LARGEST_ERROR)
        failure = _Failure(self.login.base, response.status, body, response.headers, self.login.told)
        if response.status in (401, 403) and self.login.renew(began):
            raise Unavailable(f"{self.login.base} takes the credentials no more: they are asked for again.", after=0.0)
        raise failure

    def _url(self, path: str, params: Params | None) -> str:
        query = "?" + urlencode(params, doseq=True, quote_via=quote) if params else ""
        return f"{self.origin}{self._prefix}/{asked_path(self.login.service, path).lstrip('/')}{query}"

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"User-Agent": "mlmigrate", "Accept-Encoding": "identity", **self.login.headers, **more}
        for plugin in self.login.more:
            headers.update(plugin())
        return headers


def _look(data: bytes) -> str:
    """What an answer that is not JSON of the right shape looks like; never its contents."""
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return A_PAGE
    return f"{len(data)} bytes that are not the JSON that was asked for"


def _chunks(data: BinaryIO) -> Iterator[bytes]:
    while chunk := data.read(CHUNK):
        yield chunk


def _paid(data: BinaryIO, throttle: Throttle) -> BinaryIO:
    """The same bytes, paid for as they are read."""
    return cast("BinaryIO", Paid(data, throttle)) if throttle.bytes.rate else data


class _Stream(io.RawIOBase):
    """A response as a file."""

    def __init__(self, response: BaseHTTPResponse, size: int | None, where: str, throttle: Throttle) -> None:
        self._response = response
        self._left = size
        self._where = where
        self._throttle = throttle

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # any writable buffer, as RawIOBase has it
        data = self.some(len(buffer))
        buffer[: len(data)] = data
        self._count(len(data))
        return len(data)

    def some(self, most: int) -> bytes:
        """The next bytes, no more than so many."""
        try:
            data = self._response.read(most)
        except (HTTPError, ConnectionError, TimeoutError) as error:
            raise explain(error, self._where) or error from error
        self._throttle.payload(len(data))
        return data

    def _count(self, read: int) -> None:
        if self._left is None:
            return
        self._left -= read
        if read == 0 and self._left > 0:
            raise Unavailable(f"{self._where} ended {self._left} bytes too early.")


def path_of(*parts: str) -> str:
    """A URL path made of parts, each quoted; "/" in a part stays."""
    return "/".join(quote(part, safe="/~") for part in parts)
