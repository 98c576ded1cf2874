"""The HTTP client, against a server that answers what a test says."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mlmigrate.adapters.base import Context
from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client, connect
from mlmigrate.adapters.wandb.api.login import api_key, network
from mlmigrate.errors import Conflict, MigrateError, NotFound, Refused, Stopped, Unavailable, UsageError
from mlmigrate.steps import Steps
from mlmigrate.storage.throttle import Bucket, Throttle
from recorder import Server

KEY = "k" * 40
VIEWER = "query Viewer { viewer { id } }"
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Double:
    """What was asked, and what is answered next (the last answer is given for ever)."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    by_path: dict[str, Answer] = field(default_factory=dict)

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers.append((status, headers or {}, data))

    def next(self, path: str) -> Answer:
        if path in self.by_path:
            return self.by_path[path]
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def double() -> Iterator[Double]:
    told = Double()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            told.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            status, headers, data = told.next(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = int(headers.get("Content-Length", len(data))) != len(data)

        do_GET = do_POST = do_PUT = do  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[Double]:
    with double() as told:
        yield told


@pytest.fixture
def store() -> Iterator[Double]:
    with double() as told:
        yield told


@pytest.fixture
def client(server: Double) -> Iterator[Client]:
    made = Client(server.url, KEY)
    yield made
    made.close()


def fine(**data: Any) -> dict[str, Any]:
    return {"data": data}


def wrong(message: str) -> dict[str, Any]:
    return {"errors": [{"message": message}], "data": None}


class TestGraphql:
    def test_it_sends_the_text_its_variables_and_the_key(self, server: Double, client: Client) -> None:
        server.answer(200, fine(viewer={"id": "u1"}))
        assert client.graphql(VIEWER, {"name": "x"}) == {"viewer": {"id": "u1"}}
        (asked,) = server.asked
        assert (asked.method, asked.path) == ("POST", "/graphql")
        assert json.loads(asked.body) == {"operationName": "Viewer", "query": VIEWER, "variables": {"name": "x"}}
        assert base64.b64decode(asked.headers["Authorization"].removeprefix("Basic ")).decode() == f"api:{KEY}"

    @pytest.mark.parametrize(
        ("status", "message", "kind"),
        [
            (401, "user is not logged in", Refused),
            (403, "permission denied", Refused),
            (200, "permission denied to read project", Refused),
            (404, "project not found", NotFound),
            (200, "could not find run <x> in project", NotFound),
            (409, "run x was previously created and deleted; try a new run name", Conflict),
            (200, "run x was previously created and deleted; try a new run name", Conflict),
            (500, "internal", Unavailable),
            (502, "bad gateway", Unavailable),
            (400, "Cannot query field 'parquetHistory' on type 'Run'.", Unsupported),
            (400, "filters is no JSON", MigrateError),
        ],
    )
    def test_its_errors_are_ours(
        self, server: Double, client: Client, status: int, message: str, kind: type[MigrateError]
    ) -> None:
        server.answer(status, wrong(message))
        with pytest.raises(MigrateError) as caught:
            client.graphql(VIEWER)
        assert type(caught.value) is kind
        assert message in caught.value.message
        assert KEY not in caught.value.message + caught.value.hint

    def test_a_refused_key_tells_what_to_set(self, server: Double, client: Client) -> None:
        server.answer(401, wrong("user is not logged in"))
        with pytest.raises(Refused) as caught:
            client.graphql(VIEWER)
        assert "WANDB_API_KEY" in caught.value.hint

    def test_a_page_for_people_is_no_answer(self, server: Double, client: Client) -> None:
        server.answer(200, b"<!doctype html><title>Login</title>")
        with pytest.raises(Unavailable, match="an HTML page"):
            client.graphql(VIEWER)

    def test_no_answer_within_the_time_is_an_error_that_says_so(self) -> None:
        with double() as server:
            client = Client(server.url, KEY, read=0.2)
            server.answers = _Held()
            with pytest.raises(Unavailable, match="does not answer"):
                client.graphql(VIEWER)
            server.answers.given_up.set()
            client.close()


class _Held(list[Answer]):
    """An answer that comes only when nobody waits for it any more."""

    def __init__(self) -> None:
        super().__init__([(200, {}, b'{"data": {}}')])
        self.given_up = threading.Event()

    def __getitem__(self, index: Any) -> Any:
        self.given_up.wait(60)
        return super().__getitem__(index)


class TestAgain:
    def test_a_busy_server_is_asked_again_when_it_says(self, server: Double, client: Client) -> None:
        server.answer(429, wrong("rate limit exceeded"), {"Retry-After": "0.3"})
        server.answer(200, fine(viewer=None))
        before = time.monotonic()
        assert client.graphql(VIEWER) == {"viewer": None}
        assert time.monotonic() - before >= 0.3

    def test_a_limit_that_is_used_up_is_waited_for(self, server: Double, client: Client) -> None:
        server.answer(200, fine(n=1), {"RateLimit-Remaining": "0", "RateLimit-Reset": "0.3"})
        before = time.monotonic()  # before the answer, for the wait counts from there
        client.graphql(VIEWER)
        client.graphql(VIEWER)
        assert time.monotonic() - before >= 0.3

    def test_a_server_that_fails_is_asked_as_often_as_the_steps_say(self, server: Double) -> None:
        server.answer(500, wrong("internal"))
        server.answer(503, b"")
        server.answer(200, fine(n=1))
        client = Client(server.url, KEY, Steps(3))
        assert client.graphql(VIEWER) == {"n": 1}
        client.close()

    def test_what_may_not_be_repeated_is_not(self, server: Double) -> None:
        server.answer(500, wrong("internal"))
        client = Client(server.url, KEY, Steps(3))
        with pytest.raises(Unavailable):
            client.graphql(VIEWER, repeat=False)
        with pytest.raises(Unavailable):
            client.stream("e", "p", "r", {})
        assert len(server.asked) == 2
        client.close()

    def test_a_stop_ends_the_wait(self, server: Double) -> None:
        server.answer(429, wrong("rate limit exceeded"), {"Retry-After": "250"})
        steps = Steps()
        client = Client(server.url, KEY, steps)
        timer = threading.Timer(0.3, steps.stop.set)
        timer.start()
        before = time.monotonic()
        with pytest.raises(Stopped):
            client.graphql(VIEWER)
        assert time.monotonic() - before < 120
        timer.join()
        client.close()

    def test_requests_are_throttled(self, server: Double) -> None:
        server.answer(200, fine(n=1))
        client = Client(server.url, KEY, throttle=Throttle(Bucket(), Bucket(10)))
        before = time.monotonic()
        for _ in range(4):
            client.graphql(VIEWER)
        assert time.monotonic() - before >= 0.2
        client.close()


class TestStream:
    def test_parts_of_its_path_are_quoted(self, server: Double, client: Client) -> None:
        server.answer(200, {"exitcode": None, "limits": {}})
        assert client.stream("e/../x", "p q", "r?", {"complete": True}) == {"exitcode": None, "limits": {}}
        assert server.asked[0].path == "/files/e%2F..%2Fx/p%20q/r%3F/file_stream"


class TestSigned:
    def test_another_host_never_sees_the_key(self, server: Double, store: Double, client: Client) -> None:
        store.answer(200, b"bytes")
        with client.get(f"{store.url}/a?sig=s") as data:
            assert data.read() == b"bytes"
        client.put(f"{store.url}/b?sig=s", lambda: io.BytesIO(b"abc"), 3, ["Content-Type:text/plain", "Cookie:x"])
        assert [one.path for one in store.asked] == ["/a?sig=s", "/b?sig=s"]
        assert not any({"Authorization", "Cookie"} & set(one.headers) for one in store.asked)
        assert store.asked[1].body == b"abc"
        assert store.asked[1].headers["Content-Type"] == "text/plain"
        assert server.asked == []

    def test_a_relative_url_is_the_servers(self, server: Double, client: Client) -> None:
        server.answer(200, b"bytes")
        with client.get("/files/e/p/r/x.txt") as data:
            assert data.read() == b"bytes"
        assert "Authorization" in server.asked[0].headers

    def test_the_server_may_lead_to_its_store_but_not_with_the_key(
        self, server: Double, store: Double, client: Client
    ) -> None:
        server.answer(302, b"", {"Location": f"{store.url}/a"})
        store.answer(200, b"bytes")
        with client.get("/files/e/p/r/x.txt") as data:
            assert data.read() == b"bytes"
        assert "Authorization" not in store.asked[0].headers

    def test_a_store_may_not_lead_elsewhere(self, server: Double, store: Double, client: Client) -> None:
        store.answer(302, b"", {"Location": f"{server.url}/graphql"})
        with pytest.raises(MigrateError, match="not followed"), client.get(f"{store.url}/a"):
            pass
        assert server.asked == []

    def test_a_put_is_led_nowhere(self, server: Double, store: Double, client: Client) -> None:
        store.answer(307, b"", {"Location": f"{server.url}/x"})
        with pytest.raises(MigrateError):
            client.put(f"{store.url}/a", lambda: io.BytesIO(b"abc"), 3)
        assert server.asked == []

    def test_a_public_server_cannot_send_us_to_private_addresses(self) -> None:
        client = Client("https://wandb.example.com", KEY)
        for url in ("http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/x", "http://[::1]/x"):
            with pytest.raises(Refused, match="private"), client.get(url):
                pass

    def test_a_person_may_name_a_private_address(self, store: Double) -> None:
        client = Client("https://wandb.example.com", KEY, allow=[f"{store.url}/bucket"])
        store.answer(200, b"bytes")
        with client.get(f"{store.url}/bucket/x?sig=s") as data:
            assert data.read() == b"bytes"
        for path in ("other/x", "bucket/../other", "bucket/%2e%2e/other"):
            with pytest.raises(Refused), client.get(f"{store.url}/{path}"):
                pass
        client.close()

    @pytest.mark.parametrize("url", ["", "file:///etc/passwd", "http://u:p@host/x", "gopher://x/", "http://a b/"])
    def test_other_urls_are_not_asked(self, client: Client, url: str) -> None:
        with pytest.raises(MigrateError), client.get(url):
            pass

    def test_an_answer_that_ends_too_early_is_an_error(self, server: Double, client: Client) -> None:
        server.answer(200, b"half", {"Content-Length": "8"})
        with pytest.raises(Unavailable), client.get("/x") as data:
            data.read()

    def test_a_file_that_breaks_off_is_fetched_again_from_its_start(self, server: Double) -> None:
        server.answer(200, b"half", {"Content-Length": "8"})
        server.answer(200, b"all of it")
        client = Client(server.url, KEY, Steps(3))
        file = io.BytesIO()
        assert client.fetch("/x", file) == len(b"all of it")
        assert file.getvalue() == b"all of it"
        client.close()

    def test_a_put_that_failed_is_sent_again_whole(self, server: Double) -> None:
        server.answer(503, b"")
        server.answer(200, b"")
        client = Client(server.url, KEY, Steps(3))
        client.put("/up", lambda: io.BytesIO(b"abc"), 3)
        assert [one.body for one in server.asked] == [b"abc", b"abc"]
        client.close()

    def test_a_refused_put_is_refused_at_once(self, server: Double) -> None:
        server.answer(403, b"<Error/>")
        client = Client(server.url, KEY, Steps(3))
        with pytest.raises(Refused):
            client.put("/up", lambda: io.BytesIO(b"abc"), 3)
        assert len(server.asked) == 1
        client.close()


class TestLogin:
    def test_the_environment_wins_over_the_netrc_file(self, tmp_path: Path) -> None:
        env = _netrc(tmp_path, f"machine wandb.corp login user password {KEY}\n")
        assert api_key("https://wandb.corp", env) == KEY
        assert api_key("https://wandb.corp", {**env, "WANDB_API_KEY": "other"}) == "other"

    def test_another_hosts_entry_is_not_for_us_nor_is_the_default(self, tmp_path: Path) -> None:
        env = _netrc(tmp_path, f"machine other login user password {KEY}\ndefault login user password {KEY}\n")
        with pytest.raises(Refused) as caught:
            api_key("https://wandb.corp", env)
        assert "WANDB_API_KEY" in caught.value.hint

    def test_a_key_with_a_line_break_is_refused(self) -> None:
        with pytest.raises(Refused):
            api_key("https://wandb.corp", {"WANDB_API_KEY": "k\r\nX-Evil: 1"})

    def test_a_login_in_the_address_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        with pytest.raises(UsageError) as caught:
            connect("https://user:secret@wandb.corp", Context("source"))
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("host", "proxied"),
        [("api.corp", True), ("127.0.0.1", False), ("wandb.local.corp", False), ("xlocal.corp", True)],
    )
    def test_proxies_are_those_of_the_environment(self, host: str, proxied: bool) -> None:
        way = network({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "local.corp"})
        assert way.proxy("https", host) == ("http://proxy:3128" if proxied else "")


def _netrc(folder: Path, text: str) -> dict[str, str]:
    file = folder / "netrc"
    file.write_text(text)
    file.chmod(0o600)
    return {"NETRC": str(file)}
