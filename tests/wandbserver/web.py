"""HTTP/1.1 for the contract server: asyncio, keep-alive, nothing that a test does not need."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

REASONS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden"}


@dataclass(slots=True)
class Request:
    """A whole request. `path` is without the query, still quoted; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def parts(self) -> list[str]:
        """The path's segments, unquoted."""
        return [unquote(part) for part in self.path.strip("/").split("/")]


@dataclass(slots=True)
class Reply:
    """What is answered: after `wait` seconds, or never (`drop`: the connection is closed instead)."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drop: bool = False


Answer = Callable[[Request], Reply]


class Connection(asyncio.Protocol):
    """One client's connection: requests are answered one after the other."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received = bytearray()
        self.head: tuple[str, str, str, dict[str, str], int] | None = None
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._go_on()

    def _go_on(self) -> None:
        while not self.busy and not self.transport.is_closing():
            request = self._next()
            if request is None:
                return
            self.busy = True
            reply = self.answer(request)
            if reply.wait:
                asyncio.get_running_loop().call_later(reply.wait, self._send, request, reply, True)
            else:
                self._send(request, reply, False)

    def _next(self) -> Request | None:
        """The next request, when it is here as a whole."""
        if self.head is None:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return None
            self.head = _head(bytes(self.received[:end]), end + 4)
            if self.head[3].get("expect", "").lower() == "100-continue":
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, path, query, headers, start = self.head
        taken = self._body(headers, start)
        if taken is None:
            return None
        body, end = taken
        del self.received[:end]
        self.head = None
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        return Request(method, path, query, headers, body)

    def _body(self, headers: dict[str, str], start: int) -> tuple[bytes, int] | None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return _chunks(self.received, start)
        end = start + int(headers.get("content-length", 0))
        return (bytes(self.received[start:end]), end) if len(self.received) >= end else None

    def _send(self, request: Request, reply: Reply, later: bool) -> None:
        self.busy = False
        if self.transport.is_closing():
            return
        if reply.drop:
            self.transport.abort()
            return
        lines = [f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Status')}"]
        given = {"Content-Type": "application/json", "Content-Length": str(len(reply.body)), **reply.headers}
        lines += [f"{name}: {value}" for name, value in given.items()]
        body = b"" if request.method == "HEAD" else reply.body
        self.transport.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        if request.headers.get("connection", "").lower() == "close":
            self.transport.close()
        elif later:
            self._go_on()


def _head(raw: bytes, start: int) -> tuple[str, str, str, dict[str, str], int]:
    first, *rest = raw.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    path, _, query = target.partition("?")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return method, path, query, headers, start


def _chunks(data: bytearray, at: int) -> tuple[bytes, int] | None:
    """The body of a chunked request and where it ends, when it is here as a whole."""
    body = bytearray()
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        size = int(bytes(data[at:line]).split(b";")[0], 16)
        end = line + 2 + size + 2
        if len(data) < end:
            return None
        if size == 0:
            return bytes(body), end
        body += data[line + 2 : line + 2 + size]
        at = end
