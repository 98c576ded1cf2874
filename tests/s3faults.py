"""A proxy before an S3 server: it makes faults on the way, and counts what passes.

    with faulty(s3, rule) as proxy:
        proxy.env             leads an S3 client through it
        proxy.seen            every request, as `Request`
        proxy.up, proxy.down  bytes of objects that passed, there and back

A rule is asked with each request and names the fault that it meets. The Host header stays the client's:
it is signed. Bodies are passed on piece by piece, so that large ones cost no memory.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SLOW_DOWN = "503 SlowDown, not done"
ERROR = "500 InternalError, not done"
ERROR_AFTER = "500 InternalError after the store has done it"
BEFORE = "the connection breaks before the store has seen it"
AFTER = "the connection breaks after the store has done it"
TRUNCATED = "half of the answer's body"
LOST = "200 with the right digests, and the store never saw it"
FLIPPED = "a bit of the request's body is another"
FLIPPED_ANSWER = "a bit of the answer's body is another"
EXPIRED = "403 ExpiredToken"
DENIED = "403 AccessDenied"
SLOW = "the body crawls"

ANSWERS = {
    SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    ERROR: (500, "InternalError", "We encountered an internal error."),
    EXPIRED: (403, "ExpiredToken", "The provided token has expired."),
    DENIED: (403, "AccessDenied", "Access Denied."),
}
PIECE = 1 << 18


@dataclass(frozen=True)
class Request:
    """A request. `number` counts from 1; `op` is S3's name of it; `key` is decoded, without the bucket."""

    number: int
    op: str
    method: str
    bucket: str
    key: str
    query: dict[str, str]
    size: int


Rule = Callable[[Request], str | None]


def never(_request: Request) -> None:
    return None


def at(fault: str, op: str, *numbers: int) -> Rule:
    """The fault meets the first, second... request of this kind ("" for any); all of them without numbers."""
    count = iter(range(1, 1 << 60))
    lock = threading.Lock()

    def rule(request: Request) -> str | None:
        if op and request.op != op:
            return None
        with lock:
            return fault if next(count) in numbers or not numbers else None

    return rule


def since(fault: str, number: int) -> Rule:
    """The fault meets every request from the n-th on."""
    return lambda request: fault if request.number >= number else None


@dataclass
class Proxy:
    """The proxy under way."""

    target: tuple[str, int]
    rule: Rule
    base: dict[str, str]
    seen: list[Request] = field(default_factory=list)
    met: list[tuple[str, Request]] = field(default_factory=list)
    up: int = 0
    down: int = 0
    url: str = ""
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def env(self) -> dict[str, str]:
        return {**self.base, "AWS_ENDPOINT_URL": self.url, "MLFLOW_S3_ENDPOINT_URL": self.url}

    def ops(self, op: str) -> list[Request]:
        return [one for one in self.seen if one.op == op]

    def noted(self, request: Request) -> tuple[Request, str | None]:
        with self.lock:
            request = replace(request, number=len(self.seen) + 1)
            self.seen.append(request)
        fault = self.rule(request)
        if fault:
            with self.lock:
                self.met.append((fault, request))
        return request, fault

    def settled(self, seconds: float = 120) -> None:
        """Returns once nothing is on its way any more: for who killed the client, and looks into the store."""
        end = time.monotonic() + seconds
        while self.connections:
            assert time.monotonic() < end, f"{self.connections} connections are still open"
            time.sleep(0.01)

    def connected(self, number: int) -> None:
        with self.lock:
            self.connections += number

    def counted(self, up: int = 0, down: int = 0) -> None:
        with self.lock:
            self.up += up
            self.down += down


@contextlib.contextmanager
def faulty(s3: Any, rule: Rule = never) -> Iterator[Proxy]:
    """A proxy before a server (of s3server) that is stopped afterwards."""
    there = urlsplit(s3.url)
    proxy = Proxy((there.hostname, there.port), rule, s3.env)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=_listen, args=(listener, proxy), daemon=True).start()
        yield proxy
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _listen(listener: socket.socket, proxy: Proxy) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # it was closed
            return
        proxy.connected(1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(client, proxy), daemon=True).start()


def _serve(client: socket.socket, proxy: Proxy) -> None:
    """All requests of one connection, over one connection to the server."""
    with contextlib.suppress(OSError, EOFError):
        try:
            near, far = Wire(client), Far(proxy.target)
            with contextlib.closing(far):
                while _one(near, far, proxy):
                    pass
        finally:
            client.close()
            proxy.connected(-1)


def _one(near: Wire, to: Far, proxy: Proxy) -> bool:
    """One request and its answer. False ends the connection."""
    first, headers = near.head()
    if not first:
        return False
    method, path, _ = first.split(" ", 2)
    request, fault = proxy.noted(_request(method, path, headers))
    if headers.get("expect", "").lower() == "100-continue":
        near.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    if fault == BEFORE:
        return near.break_off()
    if fault in ANSWERS or fault == LOST:
        digests = [hashlib.sha256(), hashlib.md5()]
        for piece in near.body(headers):
            [digest.update(piece) for digest in digests]
        near.send(_said(*digests) if fault == LOST else _error(fault, method))
        return True
    far = to.wire()
    far.send(_request_head(first, headers))
    _pass_body(near, far, headers, request, fault, proxy)
    return _pass_answer(near, far, request, fault, proxy)


def _pass_body(
    near: Wire, far: Wire, headers: dict[str, str], request: Request, fault: str | None, proxy: Proxy
) -> None:
    chunked = "chunked" in headers.get("transfer-encoding", "")
    middle, done = request.size // 2, 0
    for piece in near.body(headers):
        if fault == FLIPPED and done <= middle < done + len(piece):
            piece = _flipped(piece, middle - done)  # noqa: PLW2901
        if fault == SLOW:
            time.sleep(0.05)
        done += len(piece)
        far.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        far.send(b"0\r\n\r\n")
    if request.op in ("PutObject", "UploadPart"):
        proxy.counted(up=done)


def _pass_answer(near: Wire, far: Wire, request: Request, fault: str | None, proxy: Proxy) -> bool:
    first, headers = far.head()
    while first.split(" ")[1] == "100":
        first, headers = far.head()
    status = int(first.split(" ")[1])
    empty = request.method == "HEAD" or status in (204, 304)
    if fault in (AFTER, ERROR_AFTER):
        for _ in () if empty else far.body(headers):
            pass
        if fault == AFTER:
            return near.break_off()
        near.send(_error(ERROR, request.method))
        return True
    chunked = "chunked" in headers.get("transfer-encoding", "")
    near.send(_request_head(first, headers))
    size, done, counts = int(headers.get("content-length", 0)), 0, request.op == "GetObject" and status < 300
    for piece in () if empty else far.body(headers):
        if fault == FLIPPED_ANSWER and done <= size // 2 < done + len(piece):
            piece = _flipped(piece, size // 2 - done)  # noqa: PLW2901
        if fault == TRUNCATED and done + len(piece) > size // 2:
            near.send(piece[: size // 2 - done])
            return False
        if fault == SLOW:
            time.sleep(0.05)
        done += len(piece)
        if counts and done == size and not chunked:
            proxy.counted(down=done)  # before the last piece is sent: who has got it looks at once
        near.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    if chunked and not empty:
        proxy.counted(down=done if counts else 0)
        near.send(b"0\r\n\r\n")
    return "close" not in headers.get("connection", "").lower()


class Far:
    """The way to the server: a connection that it gave up while the client was quiet is made anew."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._wire: Wire | None = None

    def wire(self) -> Wire:
        if self._wire is None or select.select([self._wire.sock], [], [], 0)[0]:
            self.close()
            server = socket.create_connection(self._target)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._wire = Wire(server)
        return self._wire

    def close(self) -> None:
        if self._wire is not None:
            self._wire.file.close()
            self._wire.sock.close()
            self._wire = None


class Wire:
    """A connection, read as HTTP."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb", PIECE)
        self.send = sock.sendall

    def head(self) -> tuple[str, dict[str, str]]:
        """The first line, and the headers by their names in small letters; "" at the end."""
        first = self.file.readline().decode("latin-1").strip()
        headers = {}
        while line := self.file.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return first, headers

    def body(self, headers: dict[str, str]) -> Iterator[bytes]:
        """The body, in pieces; chunked ones without their frames."""
        if "chunked" not in headers.get("transfer-encoding", ""):
            yield from self._exactly(int(headers.get("content-length", 0)))
            return
        while size := int(self.file.readline().partition(b";")[0], 16):
            yield from self._exactly(size)
            self.file.readline()
        while self.file.readline().strip():  # trailers
            pass

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.file.read1(min(size, PIECE))
            if not piece:
                raise EOFError
            size -= len(piece)
            yield piece

    def break_off(self) -> bool:
        """A reset, as of a router that forgot the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.sock.close()
        return False


def _request(method: str, path: str, headers: dict[str, str]) -> Request:
    parts = urlsplit(path)
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    bucket, _, key = parts.path.lstrip("/").partition("/")
    size = int(headers.get("content-length", 0))
    return Request(0, _op(method, key, query, headers), method, bucket, unquote(key), query, size)


def _op(method: str, key: str, query: dict[str, str], headers: dict[str, str]) -> str:
    """S3's name of a request."""
    if not key:
        return {"GET": "ListUploads" if "uploads" in query else "List", "POST": "DeleteObjects"}.get(method, method)
    copied = "x-amz-copy-source" in headers
    if "uploadId" in query:
        part = "UploadPartCopy" if copied else "UploadPart"
        return {"PUT": part, "POST": "Complete", "DELETE": "Abort", "GET": "ListParts"}[method]
    if "uploads" in query:
        return "CreateUpload"
    put = "CopyObject" if copied else "PutObject"
    return {"PUT": put, "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, method)


def _request_head(first: str, headers: dict[str, str]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items() if name != "expect")]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _error(fault: str, method: str) -> bytes:
    status, code, message = ANSWERS[fault]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)


def _said(sha256: Any, md5: Any) -> bytes:
    checksum = base64.b64encode(sha256.digest()).decode()
    lines = ["HTTP/1.1 200 OK", f'ETag: "{md5.hexdigest()}"', f"x-amz-checksum-sha256: {checksum}", "Content-Length: 0"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _flipped(piece: bytes, where: int) -> bytes:
    return piece[:where] + bytes([piece[where] ^ 1]) + piece[where + 1 :]
