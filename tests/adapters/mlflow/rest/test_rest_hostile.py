"""A server may lie: it reads no file of ours, sends us to no other host, and learns no secret of others."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.mlflow import open_source, open_target
from mlmigrate.adapters.mlflow.direct import Stores
from mlmigrate.adapters.mlflow.repositories import allowed, repository_artifacts, strange_path
from mlmigrate.address import parse
from mlmigrate.errors import BadData, MigrateError, NotFound, Refused, Unavailable, UsageError
from recorder import Server

SECRET = "s3cr3t-canary-of-the-source"


class Fake:
    """A server that answers what it is told: (method, path without query) -> body or (status, body, headers)."""

    def __init__(self, answers: dict) -> None:
        self.answers, self.requests = answers, []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake.requests.append((self.command, self.path, dict(self.headers), body))
                given = fake.answers.get(self.path.split("?")[0], (404, b"no", {}))
                given = given(self.path, body) if callable(given) else given
                status, data, headers = given if isinstance(given, tuple) else (200, given, {})
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer  # noqa: N815  # http.server's names

            def log_message(self, *args): ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@contextmanager
def fake(answers: dict):
    one = Fake(answers)
    try:
        yield one
    finally:
        one.server.shutdown()
        one.server.server_close()


API = "/api/2.0/mlflow"
RUN = "a" * 32


def estate(uri: str, **more) -> dict:
    run = {"info": {"run_id": RUN, "experiment_id": "1", "status": "FINISHED", "artifact_uri": uri}}
    return {
        "/version": b"2.22.0",
        f"{API}/experiments/search": {"experiments": [{"experiment_id": "1", "name": "x"}]},
        f"{API}/runs/search": {"runs": [run]},
    } | more


def files_of(server: Fake, **settings):
    source = open_source(parse(f"mlflow:{server.url}"), Context("source", settings=Settings(**settings)))
    with source.read(list(source.refs())) as reading:
        found = {}
        for artifact in reading.artifacts():
            with artifact.open() as data:
                found[artifact.path] = data.read()
    source.close()
    return found, reading.losses


@pytest.fixture
def local(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "id_rsa").write_text(SECRET)
    return folder


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "file:{}", "FILE://{}"])
def test_a_local_path_that_the_server_chose_is_never_opened(form, local):
    with fake(estate(form.format(local))) as server:
        found, losses = files_of(server)
    assert found == {}
    (loss,) = losses
    assert "--allow-artifacts" in loss.because


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_local_path_is_read_when_a_person_allows_it(form, local):
    (local / "link").symlink_to("/etc/passwd")
    with fake(estate(form.format(local))) as server:
        found, losses = files_of(server, allow_artifacts=(str(local.parent),))
    assert (found, losses) == ({"id_rsa": SECRET.encode()}, [])


def test_what_lies_on_the_servers_own_disk_is_asked_from_the_server():
    answers = estate("/srv/mlruns/1/a/artifacts") | {
        f"{API}/artifacts/list": {"files": [{"path": "m.bin", "is_dir": False, "file_size": 3}]},
        "/get-artifact": b"abc",
    }
    with fake(answers) as server:
        assert files_of(server) == ({"m.bin": b"abc"}, [])


@pytest.mark.parametrize(
    "form", ["http://{}/x", "mlflow-artifacts://{}/x", "ftp://{}/x", "sftp://{}/x", "hdfs://{}/x", "wasbs://c@{}/x"]
)
def test_another_host_that_the_server_chose_is_never_asked(form):
    with fake({}) as other, fake(estate(form.format(other.url.removeprefix("http://")))) as server:
        found, losses = files_of(server)
        assert (found, other.requests) == ({}, [])
    assert len(losses) == 1


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "C:/x", "a\\..\\b", "nul\0", "", "a//b", "./a"]
)
def test_a_hostile_name_is_a_loss(name):
    listed = {"files": [{"path": name, "is_dir": False, "file_size": 1}, {"path": "fine", "file_size": 2}]}
    answers = estate("mlflow-artifacts:/1/a/artifacts") | {
        "/api/2.0/mlflow-artifacts/artifacts": listed,
        "/api/2.0/mlflow-artifacts/artifacts/1/a/artifacts/fine": b"ok",
    }
    with fake(answers) as server:
        found, losses = files_of(server)
    assert found == {"fine": b"ok"}
    assert len(losses) == 1


def test_folders_without_end_end():
    answers = estate("mlflow-artifacts:/1/a") | {
        "/api/2.0/mlflow-artifacts/artifacts": {"files": [{"path": "again", "is_dir": True}]}
    }
    with fake(answers) as server:
        found, losses = files_of(server)
    assert (found, len(losses)) == ({}, 1)


@pytest.mark.parametrize("what", ["experiments", "runs"])
def test_pages_without_end_end(what):
    rows = {"experiments": [{"experiment_id": "1", "name": "x"}], "next_page_token": "again"}
    if what == "runs":
        rows = {"runs": [], "next_page_token": "again"}
    with fake(estate("") | {f"{API}/{what}/search": rows}) as server, pytest.raises(BadData, match="circles"):
        files_of(server)


def test_fewer_bytes_than_the_listing_said_are_an_error():
    answers = estate("mlflow-artifacts:/1/a") | {
        "/api/2.0/mlflow-artifacts/artifacts": {"files": [{"path": "f", "is_dir": False, "file_size": 10}]},
        "/api/2.0/mlflow-artifacts/artifacts/1/a/f": b"short",
    }
    with fake(answers) as server, pytest.raises(Unavailable, match="5 bytes too early"):
        files_of(server)


def test_a_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    with fake({}) as other:
        moved = (307, b"", {"Location": f"{other.url}{API}/experiments/search"})
        answers = {"/version": b"3.1.0", f"{API}/experiments/search": moved}
        with fake(answers) as server, pytest.raises(MigrateError, match="307") as error:
            open_source(parse(f"mlflow:{server.url}"), Context("source"))
        assert other.requests == []
    assert "Redirects are not followed" in error.value.hint


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_told_by_where_they_stand_and_never_shown(status, monkeypatch):
    monkeypatch.setenv("SOURCE_MLFLOW_TRACKING_TOKEN", SECRET)
    answers = {"/version": b"3.1.0", f"{API}/experiments/search": (status, b"go away", {})}
    with fake(answers) as server, pytest.raises(Refused) as error:
        open_source(parse(f"mlflow:{server.url}"), Context("source"))
    assert error.value.hint == 'MLFLOW_TRACKING_TOKEN is set, and begins "s3cr".'
    assert SECRET not in repr(error.value)
    assert SECRET not in str(error.getrepr(style="long", showlocals=False))


def test_each_side_sends_its_own_credentials(monkeypatch, tmp_path):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("SOURCE_MLFLOW_TRACKING_TOKEN", "of-the-source")
    monkeypatch.setenv("TARGET_MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("TARGET_MLFLOW_TRACKING_PASSWORD", "p@ss")
    monkeypatch.setenv("HOME", str(tmp_path))
    with fake(estate("")) as server:
        open_source(parse(f"mlflow:{server.url}"), Context("source")).close()
        read = {headers.get("Authorization") for *_, headers, _ in server.requests}
        server.requests.clear()
        open_target(parse(f"mlflow:{server.url}"), Context("target")).close()
        written = {headers.get("Authorization") for *_, headers, _ in server.requests}
    assert read == {"Bearer of-the-source"}
    assert written == {"Basic bWU6cEBzcw=="}


def test_credentials_in_the_address_win_and_are_never_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "other")
    with fake({"/version": b"3.1.0", f"{API}/experiments/search": (401, b"", {})}) as server:
        place = server.url.replace("http://", "http://anna:p%40ss@")
        with pytest.raises(Refused) as error:
            open_source(parse(f"mlflow:{place}"), Context("source"))
        assert server.requests[-1][2]["Authorization"] == "Basic YW5uYTpwQHNz"
    assert "p@ss" not in repr(error.value)
    assert "p%40ss" not in repr(error.value)


def test_a_databricks_profile_is_read(monkeypatch, tmp_path):
    with fake(estate("")) as server:
        (tmp_path / ".databrickscfg").write_text(f"[team]\nhost = {server.url}\ntoken = dapi123\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        open_source(parse("mlflow:databricks://team"), Context("source")).close()
        assert server.requests[0][2]["Authorization"] == "Bearer dapi123"
    with pytest.raises(NotFound, match="no profile other"):
        open_source(parse("mlflow:databricks://other"), Context("source"))


def test_mlflows_credentials_file_is_read(monkeypatch, tmp_path):
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = a\nmlflow_tracking_password = b\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    with fake(estate("")) as server:
        open_source(parse(f"mlflow:{server.url}"), Context("source")).close()
        assert server.requests[0][2]["Authorization"] == "Basic YTpi"


@pytest.mark.parametrize("answer", [b"<!doctype html>hello", b"", b'{"experiments": 5}', b"[" * 100_000])
def test_what_is_not_json_of_an_mlflow_server_is_said(answer):
    answers = {"/version": b"hello", f"{API}/experiments/search": answer}
    with fake(answers) as server, pytest.raises(MigrateError, match="not an MLflow server's"):
        open_source(parse(f"mlflow:{server.url}"), Context("source"))


def test_a_place_that_is_no_mlflow_server_is_not_found():
    with fake({}) as server, pytest.raises(NotFound, match="is no MLflow server"):
        open_source(parse(f"mlflow:{server.url}"), Context("source"))


def test_a_server_that_is_away_is_unavailable():
    with fake({}) as server:
        url = server.url
    with pytest.raises(Unavailable, match="does not answer"):
        open_source(parse(f"mlflow:{url}"), Context("source"))


def test_a_server_that_says_nothing_is_unavailable(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.3")
    given_up = threading.Event()
    answers = {"/version": lambda path, body: given_up.wait(60) and b"3.1.0"}
    with fake(answers) as server, pytest.raises(Unavailable, match="does not answer"):
        open_source(parse(f"mlflow:{server.url}"), Context("source"))
    given_up.set()


def test_waits_as_long_as_the_server_asks_for():
    with fake({"/version": (429, b"", {"Retry-After": "17"})}) as server, pytest.raises(Unavailable) as error:
        open_source(parse(f"mlflow:{server.url}"), Context("source"))
    assert error.value.after == 17.0


def test_allowing_a_prefix_allows_nothing_beside_it():
    allow = ("/data/mlruns", "file:///mnt/x", "abfss://c@h/a")
    for uri in ("/data/mlruns/1", "file:///data/mlruns/1/a", "/mnt/x", "abfss://c@h/a/b"):
        assert allowed(uri, allow)
    for uri in ("/data/mlruns2/1", "/data/mlruns/../../etc", "/data/mlruns/%2e%2e/x", "abfss://c@h/ab", "/etc", "/"):
        assert not allowed(uri, allow)
    assert not allowed("/etc/passwd", ("",))


def test_a_place_that_nobody_allowed_is_not_opened(local):
    with pytest.raises(UsageError, match="nobody named"):
        list(repository_artifacts(str(local), "run", (), Stores({})))


@pytest.mark.parametrize("path", ["a", "a/b.c", "ü/模", "a b", "#", "%2e%2e", "...", "a?b"])
def test_plain_names_are_taken(path):
    assert strange_path(path) is None
