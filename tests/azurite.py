"""A real Azure Blob service for tests: Microsoft's emulator Azurite, on this machine, in memory.

with running() as azure:
    azure.env                        an environment that leads there
    azure.container()                a new container's name
    azure.blobs(container)           what lies in it, asked without us

It comes from npm, into the folder of the tests' environments (MLMIGRATE_TEST_ENVS), once.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import unescape

from servers import ENVS, free_port

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # of every emulator
RELEASE = "3.35.0"
PATIENCE = 240  # seconds; it takes 1 on a quiet machine


def missing() -> str:
    """Why it cannot run here; "" when it can."""
    if shutil.which("node") is None:
        return "Azurite needs node"
    if not _program().exists() and shutil.which("npm") is None:
        return "Azurite is not installed, and npm is missing"
    return ""


@dataclass
class Azure:
    """A running service."""

    url: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT": ACCOUNT,
            "AZURE_STORAGE_ACCESS_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.url}/{ACCOUNT}",
        }

    def container(self) -> str:
        name = f"test-{secrets.token_hex(4)}"
        self.ask("PUT", f"/{name}", query="restype=container")
        return name

    def put(self, container: str, key: str, data: bytes) -> None:
        self.ask("PUT", f"/{container}/{quote(key)}", data, headers={"x-ms-blob-type": "BlockBlob"})

    def get(self, container: str, key: str) -> bytes:
        return self.ask("GET", f"/{container}/{quote(key)}")

    def blobs(self, container: str) -> dict[str, bytes]:
        """All blobs and their bytes."""
        page = self.ask("GET", f"/{container}", query="restype=container&comp=list").decode()
        names = [unescape(name) for name in re.findall(r"<Blob><Name>([^<]*)</Name>", page)]
        return {name: self.get(container, name) for name in names}

    def ask(
        self, method: str, path: str, data: bytes = b"", query: str = "", headers: dict[str, str] | None = None
    ) -> bytes:
        """One request, signed here as Microsoft's reference says ("Shared Key")."""
        own = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06", **(headers or {})}
        said = "".join(f"{name}:{value}\n" for name, value in sorted(own.items()))
        words = "".join(f"\n{name}:{value}" for name, value in sorted(parse_qsl(query)))
        text = f"{method}\n\n\n{len(data) or ''}\n\napplication/octet-stream\n\n\n\n\n\n\n{said}"
        text += f"/{ACCOUNT}/{ACCOUNT}{path}{words}"
        sign = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
        own |= {"Content-Type": "application/octet-stream", "Authorization": f"SharedKey {ACCOUNT}:{sign}"}
        own["Content-Length"] = str(len(data))
        url = f"{self.url}/{ACCOUNT}{path}{'?' if query else ''}{query}"
        with urllib.request.urlopen(urllib.request.Request(url, data or None, own, method=method)) as answer:
            return answer.read()


def signature(permissions: str = "rwdlc") -> str:
    """A shared access signature of the account, for an hour."""
    start, end = "2020-01-01T00:00:00Z", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    fields = [ACCOUNT, permissions, "b", "co", start, end, "", "http,https", "2020-08-04", ""]
    sign = hmac.digest(base64.b64decode(KEY), "\n".join(fields).encode(), hashlib.sha256)
    said = {"sv": "2020-08-04", "ss": "b", "srt": "co", "sp": permissions, "st": start, "se": end, "spr": "http,https"}
    said["sig"] = base64.b64encode(sign).decode()
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in said.items())


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Azure]:
    """A service that keeps everything in memory; its log lies in `folder`."""
    program, port = _installed(), free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--extentMemoryLimit", "1024", "--disableTelemetry", "--silent", "--skipApiVersionCheck"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        azure = Azure(f"http://127.0.0.1:{port}")
        _await(azure, process, folder / "log")
        yield azure
    finally:
        process.kill()
        process.wait()


def _program() -> Path:
    return ENVS / "azurite" / "node_modules" / ".bin" / "azurite-blob"


def _installed() -> Path:
    """The program, fetched now if it is not there."""
    program, home = _program(), ENVS / "azurite"
    home.mkdir(parents=True, exist_ok=True)
    with (ENVS / "azurite.lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _install(home)
    return program


def _install(home: Path) -> None:
    (home / "package.json").write_text(json.dumps({"private": True}))
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"azurite@{RELEASE}"]
    subprocess.run(npm, cwd=home, check=True, env={**os.environ, "CI": "1"})


def _await(azure: Azure, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            azure.container()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"Azurite did not start:\n{log.read_text()[-2000:]}")
