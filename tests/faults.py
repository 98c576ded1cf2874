"""A proxy that makes faults on the way to a server, each on the requests that a rule picks."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from recorder import Server

LOST = "the answer is lost after the server has done it"
BEFORE = "the connection breaks before the server has seen it"
ERROR_AFTER = "500 after the server has done it"
BUSY = "429 with Retry-After, not done"
TRUNCATED = "half of the answer"
HTML = "a login page with status 200, not done"
TWICE = "the request reaches the server twice"
HANG = "no answer for longer than anyone waits"

EARLY = {  # answered without asking the server
    BUSY: (429, [("Retry-After", "0.1")], b"slow down"),
    HTML: (200, [("Content-Type", "text/html")], b"<!doctype html><p>Log in"),
}
KEPT = ("content-type", "location", "retry-after", "content-range", "etag", "last-modified")
Rule = Callable[[int, str, str], str | None]  # number of the request from 1, method, path -> fault


class Proxy:
    """Before the server at `target`. `rule` says which fault a request meets; `seen` lists the requests."""

    def __init__(self, target: str, rule: Rule = lambda number, method, path: None) -> None:
        self.target, self.rule = urlsplit(target), rule
        self.seen: list[tuple[str, str]] = []
        self.made = 0
        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_of(self, method: str, path: str) -> str | None:
        with self._lock:
            self.seen.append((method, path))
            fault = self.rule(len(self.seen), method, path)
            self.made += fault is not None
            return fault

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, list, bytes]:
        there = http.client.HTTPConnection(self.target.hostname, self.target.port, timeout=60)
        try:
            there.request(method, path, body, headers)
            answer = there.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            there.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:  # noqa: C901  # a class of short methods
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one(self) -> None:
                body = self._body()
                fault = proxy.fault_of(self.command, self.path)
                if fault == HANG:
                    time.sleep(30)
                if fault in (BEFORE, HANG):
                    self._break()
                elif fault in EARLY:
                    self._answer(*EARLY[fault])
                else:
                    self._forwarded(fault, body)

            def _forwarded(self, fault: str | None, body: bytes) -> None:
                left_out = ("host", "transfer-encoding", "connection")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in left_out}
                if fault == TWICE:
                    proxy.forward(self.command, self.path, body, headers)
                status, answered, data = proxy.forward(self.command, self.path, body, headers)
                kept = [(k, v) for k, v in answered if k.lower() in KEPT]
                if fault == LOST:
                    self._break()
                elif fault == ERROR_AFTER:
                    self._answer(500, [], b"oops")
                else:
                    self._answer(status, kept, data, cut=fault == TRUNCATED)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815  # http.server's names

            def _body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _answer(self, status: int, headers: list, data: bytes, *, cut: bool = False) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self._break()

            def _break(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *args) -> None: ...

        return Handler
