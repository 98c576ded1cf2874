"""Where bytes may go by a URL that a server chose: to nobody whom nobody named, and never with our login."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest

from mlmigrate.adapters.mlflow.direct import Stores
from mlmigrate.adapters.mlflow.rest import downloads, parts, uploads
from mlmigrate.adapters.mlflow.rest.artifacts import Shelf
from mlmigrate.adapters.mlflow.rest.auth import Login
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.presigned import Presigned, endpoints
from mlmigrate.adapters.mlflow.rest.uploads import Uploads
from mlmigrate.model import Artifact
from mlmigrate.steps import Steps
from recorder import Server

SECRET = "s3cr3t-token"  # of nobody
MIB = 1 << 20
SERVER = "http://mlflow.acme.io:5000"
MINIO = {"AWS_ENDPOINT_URL": "https://minio.acme.io:9000"}


def allows(url, env=MINIO, allow=()):
    return Presigned(SERVER, endpoints(env), 1.0).allows(url, allow)


@pytest.mark.parametrize(
    "url",
    [
        "http://mlflow.acme.io:5000/bucket/key?sig=1",
        "https://minio.acme.io:9000/bucket/key?X-Amz-Signature=1",
        "https://bucket.minio.acme.io:9000/key",
        "https://s3.amazonaws.com/bucket/key",
        "https://my.bucket.s3.amazonaws.com/key",
        "https://bucket.s3.eu-central-1.amazonaws.com/key",
        "https://bucket.s3-us-west-2.amazonaws.com/key",
        "https://s3.us-gov-west-1.amazonaws.com/bucket/key",
        "https://bucket.s3.dualstack.eu-west-1.amazonaws.com/key",
        "https://bucket.s3-accelerate.amazonaws.com/key",
        "https://bucket.s3.cn-north-1.amazonaws.com.cn/key",
        "https://storage.googleapis.com/bucket/key",
        "https://bucket.storage.googleapis.com/key",
        "https://account.blob.core.windows.net/container/key?sig=1",
        "https://account.dfs.core.windows.net/container/key",
    ],
)
def test_hosts_that_somebody_named_or_everybody_knows_are_used(url):
    assert allows(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file:///etc/passwd",
        "ftp://s3.amazonaws.com/bucket/key",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:2375/containers/create",
        "http://mlflow.acme.io/bucket/key",  # another port of the same host
        "https://mlflow.acme.io:5000/bucket/key",
        "http://minio.acme.io:9000/bucket/key",
        "https://minio.acme.io/bucket/key",
        "https://evilminio.acme.io:9000/key",
        "http://s3.amazonaws.com/bucket/key",  # readable on the way
        "https://s3.amazonaws.com:8443/bucket/key",
        "https://ec2-1-2-3-4.compute-1.amazonaws.com/key",
        "https://abc.execute-api.us-east-1.amazonaws.com/key",
        "https://s3.amazonaws.com.evil.io/key",
        "https://evils3.amazonaws.com/key",
        "https://name.elb.us-east-1.amazonaws.com/key",
        "https://s3.eu-central-1.amazonaws.com@evil.io/key",
        "https://user:pw@s3.amazonaws.com/bucket/key",
        "https://evil.io\\@s3.amazonaws.com/key",
        "https://evil.io#@s3.amazonaws.com/key",
        "https://s3.amazonaws.com\r\nHost: evil.io/key",
        "https://s3.amazonaws.com/key HTTP/1.1\r\nX: y",
        "https://storage.googleapis.com.evil.io/key",
        "https://www.googleapis.com/key",
        "https://evilblob.core.windows.net/key",
        "https://s3.amazonaws.com:99999/key",
    ],
)
def test_all_others_are_not(url):
    assert not allows(url)


def test_a_person_may_allow_more():
    url = "https://minio.elsewhere.io:9000/bucket/key?X-Amz-Signature=1"
    assert not allows(url)
    assert allows(url, allow=("https://minio.elsewhere.io:9000",))
    assert allows(url, allow=("https://minio.elsewhere.io:9000/bucket",))
    assert not allows(url, allow=("https://minio.elsewhere.io:9000/buck",))
    assert not allows("https://minio.elsewhere.io:9000@evil.io/x", allow=("https://minio.elsewhere.io:9000",))
    assert not allows("https://minio.elsewhere.io:90001/x", allow=("https://minio.elsewhere.io:9000",))


def test_an_endpoint_that_is_an_address_has_no_names_below_it():
    assert allows("http://10.0.0.7:9000/b/k", {"AWS_ENDPOINT_URL": "http://10.0.0.7:9000"})
    assert not allows("http://evil.10.0.0.7:9000/b/k", {"AWS_ENDPOINT_URL": "http://10.0.0.7:9000"})


class Listener:
    """A server on loopback that answers by rule and keeps what it was asked."""

    def __init__(self, rule):
        self.asked = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                listener.asked.append((self.command, self.path, dict(self.headers), body))
                status, headers, data = rule(self.command, self.path, self.headers)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = handle_one  # noqa: N815  # http.server's names

            def log_message(self, *args): ...

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def paths(self, method=""):
        return [path for asked, path, *_ in self.asked if method in ("", asked)]


@pytest.fixture
def listen():
    running = []

    def start(rule):
        running.append(Listener(rule))
        return running[-1]

    yield start
    for one in running:
        one.stop()


FILES = {"small.bin": b"x" * 100, "large.bin": bytes(range(256)) * 4096 * 3}
HOSTILE = {
    "Authorization": "Bearer of-the-server",
    "Cookie": "a=b",
    "Host": "elsewhere.io",
    "Transfer-Encoding": "chunked",
    "X-Amz-Odd": "a\r\nX: y",
    "X-Amz-Meta-Fine": "yes",
}


def mlflow(store_url):
    """A server that signs URLs of another place, and asks for things to be sent along."""
    info = {"multipart_uploads_enabled": True, "multipart_downloads_enabled": True}
    cookie = {"Set-Cookie": "session=1; Domain=127.0.0.1; Path=/"}

    def rule(method, path, _headers):
        name = path.rpartition("/")[2]
        if path.endswith("server-info"):
            return 200, cookie, json.dumps(info).encode()
        if "/presigned/" in path:
            return 200, cookie, json.dumps({"url": f"{store_url()}/{name}", "headers": HOSTILE}).encode()
        if "/mpu/create/" in path:
            links = [{"url": f"{store_url()}/{n}", "part_number": n, "headers": HOSTILE} for n in (1, 2)]
            return 200, cookie, json.dumps({"upload_id": "u", "credentials": links}).encode()
        if "path=" in path:
            files = [{"path": one, "is_dir": False, "file_size": len(data)} for one, data in FILES.items()]
            return 200, cookie, json.dumps({"files": files}).encode()
        return 200, cookie, {"GET": FILES.get(name, b"{}"), "POST": b"{}"}.get(method, b"")

    return rule


def store(_method, path, headers):
    data = FILES.get(path.rpartition("/")[2], b"")
    found = headers.get("Range", "")
    if not found:
        return 200, {"ETag": '"e"'}, data
    start, end = (int(one) for one in found.removeprefix("bytes=").split("-"))
    part = data[start : end + 1]
    return 206, {"ETag": '"e"', "Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"}, part


@pytest.fixture
def client_of(monkeypatch, tmp_path):
    """A client with a login; credentials for the store's host lie about in .netrc."""
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login somebody password {SECRET}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setattr("mlmigrate.adapters.mlflow.rest.artifacts.WHOLE", MIB)
    monkeypatch.setattr(downloads, "WHOLE", MIB)
    monkeypatch.setattr(downloads, "RANGE", MIB)
    monkeypatch.setattr(uploads, "SMALL", MIB)
    monkeypatch.setattr(parts, "LARGE", 2 * MIB)
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.01)
    opened = []

    def client(server, **env):
        one = Client(Login(server.url, {"Authorization": f"Bearer {SECRET}"}), Steps(2))
        one.stores = Stores(env, part_size=5 * MIB)
        opened.append(one)
        return one

    yield client
    for one in opened:
        one.close()


def read(client, allow=()):
    with ThreadPoolExecutor(2) as pool:
        found = {}
        for artifact in Shelf(client, pool, allow).of([("r", "mlflow-artifacts:/1/r/artifacts")]):
            with artifact.open() as stream:
                found[artifact.path] = stream.read()
    return found


def test_a_host_that_the_server_made_up_is_not_contacted(listen, client_of):
    elsewhere = listen(store)
    server = listen(mlflow(lambda: elsewhere.url))
    assert read(client_of(server)) == FILES
    assert elsewhere.asked == []


def test_nothing_of_the_login_goes_to_a_store(listen, client_of):
    elsewhere = listen(store)
    server = listen(mlflow(lambda: elsewhere.url))
    assert read(client_of(server), (elsewhere.url,)) == FILES
    assert len(elsewhere.asked) == 1 + 3
    for _, _, headers, _ in elsewhere.asked:
        assert {name.lower() for name in headers} <= {
            "host",
            "user-agent",
            "accept-encoding",
            "range",
            "x-amz-meta-fine",
        }
        assert headers["Host"] == elsewhere.url.removeprefix("http://")
        assert SECRET not in str(headers)
    assert [path for path in server.paths() if "artifacts/artifacts/" in path] == []


def test_nothing_of_the_login_goes_back_to_the_server_by_a_signed_url(listen, client_of):
    server = listen(mlflow(lambda: f"{server.url}/store"))
    assert read(client_of(server))["small.bin"] == FILES["small.bin"]
    (asked,) = [headers for _, path, headers, _ in server.asked if path == "/store/small.bin"]
    assert SECRET not in str(asked)


def test_a_redirect_is_not_followed(listen, client_of):
    third = listen(store)
    elsewhere = listen(lambda *_: (302, {"Location": f"{third.url}/small.bin"}, b""))
    server = listen(mlflow(lambda: elsewhere.url))
    assert read(client_of(server, AWS_ENDPOINT_URL=elsewhere.url)) == FILES
    assert elsewhere.asked != []
    assert third.asked == []


def test_no_part_of_a_file_goes_to_a_host_that_the_server_made_up(listen, client_of):
    elsewhere = listen(store)
    server = listen(mlflow(lambda: elsewhere.url))
    data = b"y" * (6 * MIB)
    sending = Uploads(client_of(server), (), [])
    for name in ("a.bin", "b.bin"):
        sending.of("r", "mlflow-artifacts:/1/r/artifacts", Artifact("s", name, lambda: memory(data), len(data)))
    assert elsewhere.asked == []
    assert [body for method, path, _, body in server.asked if method == "PUT"] == [data, data]
    assert len([path for path in server.paths("POST") if "/mpu/create/" in path]) == 1
    assert len([path for path in server.paths("POST") if "/mpu/abort/" in path]) == 1


def test_parts_go_without_the_login(listen, client_of):
    elsewhere = listen(store)
    server = listen(mlflow(lambda: elsewhere.url))
    data = b"y" * (6 * MIB)
    sending = Uploads(client_of(server, AWS_ENDPOINT_URL=elsewhere.url), (), [])
    sending.of("r", "mlflow-artifacts:/1/r/artifacts", Artifact("s", "a.bin", lambda: memory(data), len(data)))
    assert sorted(elsewhere.paths()) == ["/1", "/2"]
    assert b"".join(body for _, _, _, body in sorted(elsewhere.asked, key=lambda one: one[1])) == data
    for _, _, headers, _ in elsewhere.asked:
        assert SECRET not in str(headers)
        assert not {"authorization", "cookie"} & {name.lower() for name in headers}


def test_a_server_that_gives_more_parts_or_fewer_is_not_believed(listen, client_of):
    elsewhere = listen(store)
    server = listen(mlflow(lambda: elsewhere.url))
    data = b"y" * (11 * MIB)  # three parts
    sending = Uploads(client_of(server, AWS_ENDPOINT_URL=elsewhere.url), (), [])
    sending.of("r", "mlflow-artifacts:/1/r/artifacts", Artifact("s", "a.bin", lambda: memory(data), len(data)))
    assert elsewhere.asked == []
    assert [body for method, _, _, body in server.asked if method == "PUT"] == [data]


def memory(data):
    import io

    return io.BytesIO(data)
