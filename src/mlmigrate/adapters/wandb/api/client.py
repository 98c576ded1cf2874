"""HTTP to one W&B server and to the stores whose URLs it signs: our errors, bounded retries, no redirect with our key.

    graphql   POST /graphql                 again while the server is away, when the operation may be repeated
    stream    POST /files/.../file_stream   once: what became of it, only a look at the run can tell
    get, put  signed URLs                   our key goes along only to the server itself

A server that is too busy for us (429) has done nothing, so any request is made again, by all threads together no
sooner than it said.
"""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, TypeVar, cast
from urllib.parse import quote, urljoin

import msgspec
import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.response import BaseHTTPResponse

from mlmigrate import __version__
from mlmigrate.adapters.base import Again, Context, Once
from mlmigrate.adapters.wandb.api.answers import A_PAGE, Asked, after, explained, look, reset, said
from mlmigrate.adapters.wandb.api.hosts import Spoken, reachable, spoken
from mlmigrate.adapters.wandb.api.login import Network, api_key, authorization, checked_base, network, told
from mlmigrate.errors import BadData, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.storage.throttle import UNLIMITED, Paid, Throttle

CONNECTIONS = 48
CONNECT, READ = 10.0, 60.0  # seconds
BLOCK = 256 << 10
LARGEST_ANSWER = 512 << 20  # bytes; a page of histories stays far below
LARGEST_ERROR = 64 << 10
PATIENCE = 8  # times that the server says it is too busy, before that is an error
LONGEST_WAIT = 300.0  # seconds
NAP = 0.25
HOPS = 5
ENOUGH = 2  # refusals of several things in one request, one after another, until that is tried no more
BUSY = 429
_REDIRECTS = (301, 302, 303, 307, 308)
_OURS = frozenset(("authorization", "cookie", "host", "connection", "transfer-encoding", "content-length", "expect",
                   "proxy-authorization", "te", "trailer", "upgrade"))  # fmt: skip
Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Call:
    """One request; `ours`: it goes to the server itself."""

    name: str
    method: str
    target: Spoken
    ours: bool
    headers: Mapping[str, str]
    body: bytes | io.RawIOBase = b""


class Pace:
    """When the next request may go: none before the server asked us to come back."""

    def __init__(self) -> None:
        self._not_before = 0.0
        self._lock = threading.Lock()

    def wait(self, check: Callable[[], object]) -> None:
        """Waits; `check` may end it with an error."""
        while (left := self._not_before - time.monotonic()) > 0:
            check()
            time.sleep(min(left, NAP))

    def hold(self, seconds: float) -> None:
        """No request before that, from any thread."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + min(seconds, LONGEST_WAIT))


class Client:
    """One server. Calls may come from many threads. `asked` counts requests by operation or kind."""

    def __init__(
        self,
        base_url: str,
        key: str,
        again: Again | None = None,
        throttle: Throttle = UNLIMITED,
        way: Network | None = None,
        allow: Sequence[str] = (),
        read: float = READ,
    ) -> None:
        self.base_url = checked_base(base_url)
        self.again: Again = again or Once()
        self.throttle = throttle
        self.asked: Counter[str] = Counter()
        self._key = authorization(key)
        self._allow = tuple(allow)
        self._pace = Pace()
        self._way = way or Network()
        self._timeout = urllib3.Timeout(connect=CONNECT, read=read)
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        self._refusals = 0
        server = spoken(self.base_url + "/")
        if server is None:
            raise NotFound("The address of the W&B server cannot be understood.")
        self._server = server

    def close(self) -> None:
        """Gives the connections back."""
        for pool in self._pools.values():
            pool.clear()

    def graphql(self, operation: str, variables: Mapping[str, Any] | None = None, *, repeat: bool = True) -> Json:
        """The `data` of an answer without errors. `repeat`: the operation may be made again after a lost answer.

        Raises NotFound, Refused, Conflict, Unavailable, Unsupported (the server has no such field), MigrateError.
        """
        name = operation_name(operation)
        body = {"operationName": name, "query": operation, "variables": dict(variables or {})}
        sent = msgspec.json.encode(body)
        if repeat:
            return self.again.do(name, self._graphql, name, sent)
        return self._graphql(name, sent)

    def together(self, several: Callable[[], T], singly: Callable[[], T]) -> T:
        """Several things asked for in one request, or, where the server does not take that, each in its own.

        A refusal may mean one of the things as well: asked for singly, it says so itself.
        """
        if self._refusals >= ENOUGH:
            return singly()
        try:
            found = several()
        except Unavailable:
            raise
        except MigrateError:
            found = singly()
            self._refusals += 1
        else:
            self._refusals = 0
        return found

    def stream(self, entity: str, project: str, run: str, body: Mapping[str, Any]) -> Json:
        """One file_stream request, whatever comes of it."""
        path = f"files/{_quoted(entity)}/{_quoted(project)}/{_quoted(run)}/file_stream"
        return self._json("file_stream", f"{self.base_url}/{path}", msgspec.json.encode(dict(body)))

    def put(
        self,
        url: str,
        open: Callable[[], AbstractContextManager[BinaryIO]],
        size: int,
        headers: Mapping[str, str] | Sequence[str] = (),
    ) -> Mapping[str, str]:
        """Puts a file at a URL that the server gave; gives the answer's headers. Again while the store is away."""
        return self.again.do("upload", self._put, url, open, size, _pairs(headers))

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[BinaryIO]:
        """The bytes behind a URL that the server gave, as they come. Asking is repeated, reading is not."""
        response, shown = self.again.do("download", self._get, url, dict(headers or {}))
        try:
            size = response.length_remaining
            stream = cast("io.RawIOBase", _Stream(response, size, shown, self.throttle))
            yield cast("BinaryIO", io.BufferedReader(stream, BLOCK))
        finally:
            response.close()  # one that was read to its end has given its connection back already

    def fetch(self, url: str, file: IO[bytes]) -> int:
        """The bytes behind a URL into a file, from its start; how many. Again, from the start, when it breaks off."""
        return self.again.do("download", self._fetch, url, file)

    def check(self) -> None:
        """Raises Stopped once somebody stops us."""
        check = getattr(self.again, "check", None)
        if check is not None:
            check()

    def _graphql(self, name: str, body: bytes) -> Json:
        answer = self._json(name, f"{self.base_url}/graphql", body)
        if answer.get("errors"):
            raise explained(Asked(self.base_url, name), 200, said(answer), {})
        data = answer.get("data")
        if not isinstance(data, dict):
            raise Unavailable(f"{self.base_url} gave an answer to {name} that is not a W&B server's.")
        return data

    def _json(self, name: str, url: str, body: bytes) -> Json:
        target, _ = self._target(url)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip", "Authorization": self._key}
        with self._answered(_Call(name, "POST", target, True, headers, body)) as response:
            data = response.read(LARGEST_ANSWER + 1, decode_content=True)
        self.throttle.payload(len(data))
        if len(data) > LARGEST_ANSWER:
            raise BadData(f"{self.base_url} gave an answer to {name} of more than {LARGEST_ANSWER >> 20} MiB.")
        try:
            found = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"{self.base_url} answered {name} with {look(data)}.", _NOT_WANDB) from error
        if not isinstance(found, dict):
            raise Unavailable(f"{self.base_url} answered {name} with {look(data)}.", _NOT_WANDB)
        return found

    def _put(
        self, url: str, opener: Callable[[], AbstractContextManager[BinaryIO]], size: int, headers: Mapping[str, str]
    ) -> Mapping[str, str]:
        target, ours = self._target(url)
        sent = {**_harmless(headers), "Content-Length": str(size), **self._login(ours)}
        with opener() as data:
            body = Paid(data, self.throttle) if size else b""
            with self._answered(_Call("upload", "PUT", target, ours, sent, body)) as response:
                if look(response.read(1024)) == A_PAGE:
                    raise Unavailable(f"{target.shown} answered an upload with a page for people.")
                return dict(response.headers)

    def _get(self, url: str, headers: Mapping[str, str]) -> tuple[BaseHTTPResponse, str]:
        """An open 200 answer. Redirects: of the server itself to where it likes, of others to the same host."""
        target, ours = self._target(url)
        for _ in range(HOPS):
            sent = {"Accept-Encoding": "identity", **_harmless(headers), **self._login(ours)}
            call = _Call("download", "GET", target, ours, sent)
            response = self._patient(call)
            if response.status not in _REDIRECTS:
                self._check(response, call)
                return response, target.shown
            response.close()
            target, ours = self._next(target, ours, response.headers.get("Location", ""))
        raise MigrateError(f"{target.shown} leads from place to place without end.")

    def _next(self, here: Spoken, ours: bool, location: str) -> tuple[Spoken, bool]:
        target, next_ours = self._target(urljoin(here.url, location))
        if not ours and target.origin != here.origin:
            raise MigrateError(f"{here.shown} leads elsewhere, to {target.shown}: that is not followed.")
        if here.scheme == "https" and target.scheme != "https":
            raise MigrateError(f"{here.shown} leads to a place without encryption: that is not followed.")
        return target, next_ours

    def _login(self, ours: bool) -> dict[str, str]:
        """Our key is for the server itself."""
        return {"Authorization": self._key} if ours else {}

    def _fetch(self, url: str, file: IO[bytes]) -> int:
        file.seek(0)
        file.truncate()
        done = 0
        with self.get(url) as data:
            while chunk := data.read(BLOCK):
                done += file.write(chunk)
        return done

    def _target(self, url: str) -> tuple[Spoken, bool]:
        """A URL that the server gave, and whether it is the server's own (relative ones are)."""
        if not url:
            raise NotFound("The server gave no URL for a file.")
        target = spoken(urljoin(self.base_url + "/", url))
        if target is None:
            raise MigrateError("The server gave a URL that cannot be understood.")
        ours = target.origin == self._server.origin
        if not ours and not reachable(target, self._server, self._allow):
            raise Refused(
                f"The server sends us to {target.shown}, a private address that nobody named.",
                f"If you trust it: --allow-artifacts {target.scheme}://{target.netloc}/",
            )
        return target, ours

    @contextmanager
    def _answered(self, call: _Call) -> Iterator[BaseHTTPResponse]:
        """A 2xx answer. A stream cannot be sent again from here."""
        response = self._patient(call) if isinstance(call.body, bytes) else self._request(call)
        try:
            self._check(response, call)
            yield response
            response.drain_conn()
        except (HTTPError, OSError) as error:
            raise _away(error, call.target.shown, call.name) from error
        finally:
            response.close()  # one that was read to its end has given its connection back already

    def _patient(self, call: _Call) -> BaseHTTPResponse:
        """An answer of any status; one that says "too busy" is asked for again, some times."""
        for n in range(PATIENCE):
            response = self._request(call)
            if response.status != BUSY:
                return response
            wait = after(response.headers)
            self._pace.hold(min(2.0**n, 30.0) if wait is None else wait)
            response.drain_conn()
            response.release_conn()
        return self._request(call)

    def _request(self, call: _Call) -> BaseHTTPResponse:
        self.check()
        self._pace.wait(self.check)
        self.throttle.request(len(call.body) if isinstance(call.body, bytes) else 0)  # a stream pays as it is read
        self.asked[call.name] += 1
        sent = {"User-Agent": f"mlmigrate/{__version__}", **call.headers}
        try:
            response = self._pool(call.target).urlopen(
                call.method, call.target.url, body=call.body or None, headers=sent, redirect=False, retries=False,
                timeout=self._timeout, preload_content=False, decode_content=False,
            )  # fmt: skip
        except (HTTPError, OSError) as error:
            raise _away(error, call.target.shown, call.name) from error
        if (seconds := reset(response.headers)) is not None:
            self._pace.hold(seconds)
        return response

    def _check(self, response: BaseHTTPResponse, call: _Call) -> None:
        if 200 <= response.status < 300:  # noqa: PLR2004  # HTTP's successes
            return
        try:
            body = response.read(LARGEST_ERROR, decode_content=True)
        except (HTTPError, OSError):
            body = b""  # the status says enough
        response.close()
        where = (
            Asked(self.base_url, call.name, told(self.base_url)) if call.ours else Asked(call.target.shown, call.name)
        )
        raise explained(where, response.status, said(body), response.headers)

    def _pool(self, target: Spoken) -> urllib3.PoolManager:
        """Hosts that need a proxy, and those that need none, each with its own manager."""
        proxy = self._way.proxy(target.scheme, target.host)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._manager(proxy)
            return self._pools[proxy]

    def _manager(self, proxy: str) -> urllib3.PoolManager:
        kind: dict[str, Any] = {"num_pools": 8, "maxsize": CONNECTIONS, "blocksize": BLOCK}
        kind["cert_reqs"] = "CERT_NONE" if self._way.insecure else "CERT_REQUIRED"
        kind["ca_certs"], kind["ca_cert_dir"] = self._way.bundle or None, self._way.folder or None
        if not proxy:
            return urllib3.PoolManager(**kind)
        address = proxy if "://" in proxy else f"http://{proxy}"
        login = urllib3.util.parse_url(address).auth
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return urllib3.ProxyManager(address, proxy_headers=headers, **kind)


_NOT_WANDB = "Is that the address of a W&B server, and not of a page before it?"


def connect(base_url: str, context: Context) -> Client:
    """The server at `base_url`, as this side reaches it. Asks nothing yet. Raises Refused where there is no key."""
    base = checked_base(base_url)
    env = context.env
    allow = context.settings.allow_artifacts
    return Client(base, api_key(base, env), context.again, context.throttle, network(env), allow)


def operation_name(operation: str) -> str:
    """The name that a GraphQL text gives its (only) operation."""
    for line in operation.splitlines():
        words = line.split("(")[0].split("{")[0].split()
        if len(words) == 2 and words[0] in ("query", "mutation"):  # noqa: PLR2004
            return words[1]
    return ""


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _pairs(headers: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """W&B tells headers as lines, "Name:value"."""
    if isinstance(headers, Mapping):
        return dict(headers)
    split = (line.partition(":") for line in headers)
    return {name.strip(): value.strip() for name, _, value in split}


def _harmless(headers: Mapping[str, str]) -> dict[str, str]:
    """What a store may be told at the server's wish: nothing that logs in, or changes the request's shape."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() not in _OURS and _printable(name) and _printable(value)
    }


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _away(error: Exception, where: str, name: str) -> MigrateError:
    """Our error for one of urllib3's."""
    inner = getattr(error, "reason", None)
    if isinstance(error, SSLError) or isinstance(inner, SSLError):
        return Refused(f"The certificate of {where} is not trusted.", "SSL_CERT_FILE or REQUESTS_CA_BUNDLE names one")
    if isinstance(error, LocationParseError):
        return NotFound(f"The address {where} cannot be understood.")
    why = type(error).__name__
    return Unavailable(f"{where} does not answer ({name}: {why}).", "The same command again goes on")


class _Stream(io.RawIOBase):
    """A response as a file. One that ends too early is an error."""

    def __init__(self, response: BaseHTTPResponse, size: int | None, where: str, throttle: Throttle) -> None:
        self._response, self._left = response, size
        self._where, self._throttle = where, throttle

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # any writable buffer, as RawIOBase has it
        try:
            data = self._response.read(len(buffer))
        except (HTTPError, OSError) as error:
            raise _away(error, self._where, "download") from error
        self._throttle.payload(len(data))
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left > 0:
                raise Unavailable(f"{self._where} ended {self._left} bytes too early.")
        return len(data)
