"""An HTTP server that stands where a store would: it writes down what it is asked, and answers as it is told.

with recording(answer) as server:
    server.url, server.requests
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote


@dataclass(frozen=True)
class Request:
    """What was asked. Names of headers are lower-case, `path` is as it came on the wire."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """The path behind the bucket, decoded."""
        return unquote(self.path.partition("/")[2].partition("/")[2])


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Recording:
    """A running server."""

    url: str
    requests: list[Request] = field(default_factory=list)

    def asked(self, method: str, *words: str) -> list[Request]:
        """The requests of this method, whose queries have these words."""
        return [one for one in self.requests if one.method == method and all(word in one.query for word in words)]


class Server(ThreadingHTTPServer):
    """A thread for each connection, and patience for many at once: five may wait otherwise, the sixth is dropped."""

    daemon_threads = True
    request_queue_size = 256


@contextlib.contextmanager
def recording(answer: Callable[[Request], Answer], tls: ssl.SSLContext | None = None) -> Iterator[Recording]:
    """A server on a free port of this machine, gone afterwards."""
    server = Server(("127.0.0.1", 0), _handler(answer))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    host = "localhost" if tls else "127.0.0.1"
    server.record = Recording(f"{'https' if tls else 'http'}://{host}:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.record
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(answer: Callable[[Request], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                super().handle_one_request()
                return
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            if self.headers.get("Expect", "").lower() == "100-continue":
                pass  # the base class has said so already
            path, _, query = self.path.partition("?")
            request = Request(
                self.command,
                path,
                dict(parse_qsl(query, keep_blank_values=True)),
                {name.lower(): value for name, value in self.headers.items()},
                self._body(),
            )
            self.server.record.requests.append(request)
            said = answer(request)
            self.send_response(said.status)
            length = said.headers.get("Content-Length", str(len(said.body)))
            for name, value in {**said.headers, "Content-Length": length}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said.body)
                self.close_connection |= int(length) > len(said.body)  # an answer that was cut off

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815  the base class's names

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

    return Handler
