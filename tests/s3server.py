"""A real S3 server for tests and benchmarks: SeaweedFS on this machine, ports and folder of its own.

with running(folder) as s3:
    s3.url, s3.env        its address, and the environment that leads an S3 client there
    s3.bucket()           a new bucket
    s3.client()           boto3, for looking without us
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

from servers import free_port

KEY, SECRET, REGION = "TESTKEY", "testsecret", "us-east-1"
PATIENCE = 180  # seconds; it takes 3 on a quiet machine
VOLUME = 64  # MB
GROWTH = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "2"}  # volumes that a new bucket begins with, instead of 7


@dataclass
class S3Server:
    """A running server. `identities` were made with it: name -> (key, secret)."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    identities: dict[str, tuple[str, str]]
    key: str = KEY
    secret: str = SECRET

    @property
    def env(self) -> dict[str, str]:
        """The environment of who is to reach it."""
        return self.env_of(self.key, self.secret)

    def env_of(self, key: str, secret: str) -> dict[str, str]:
        """The same for another identity."""
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.url,
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, key: str = "", secret: str = "") -> Any:
        return _client(self.url, key or self.key, secret or self.secret)

    def bucket(self, name: str = "") -> str:
        """Makes a bucket that takes objects; gives its name."""
        name = name or f"test-{secrets.token_hex(4)}"
        if not _takes(self, name):
            raise RuntimeError(f"SeaweedFS takes nothing into {name}:\n{self.said}")
        return name

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """All objects and their bytes, by key without the prefix."""
        client, found = self.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for one in page.get("Contents", ()):
                body = client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
                found[one["Key"].removeprefix(prefix).removeprefix("/")] = body
        return found

    @property
    def said(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """It takes 26 s to heed a SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@functools.cache
def _client(url: str, key: str, secret: str) -> Any:
    session = boto3.session.Session(key, secret, region_name=REGION)
    style = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3})
    return session.client("s3", endpoint_url=url, config=style)


@contextlib.contextmanager
def running(folder: Path, limited: dict[str, list[str]] | None = None, volumes: int = 1000) -> Iterator[S3Server]:
    """A server that keeps its data in `folder`, which is emptied afterwards.

    `limited`: name -> actions ("Read:bucket", "List:bucket", "Write:bucket") of further identities.
    """
    server = start(folder, limited or {}, volumes)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder / "data", ignore_errors=True)


def start(folder: Path, limited: dict[str, list[str]], volumes: int = 1000) -> S3Server:
    """As `running`, for who stops it themselves."""
    last = ""
    for _ in range(3):  # a port may be taken between asking and binding
        server = _start(folder, limited, volumes)
        if _ready(server):
            return server
        last = server.said
        server.stop()
    raise RuntimeError(f"SeaweedFS did not start:\n{last}")


def _start(folder: Path, limited: dict[str, list[str]], volumes: int) -> S3Server:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    identities = {name: (f"KEY{name}".upper(), f"secret-{name}") for name in limited}
    config = [_identity("admin", KEY, SECRET, ["Admin", "Read", "Write", "List", "Tagging"])]
    config += [_identity(name, *identities[name], actions) for name, actions in limited.items()]
    (folder / "s3.json").write_text(json.dumps({"identities": config}))
    port = free_port()
    command = [weed(), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-s3.config={folder / 's3.json'}", f"-s3.port={port}", f"-s3.port.grpc={free_port()}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    for part in ("master", "volume", "filer"):
        command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
    command += [f"-volume.max={volumes}", f"-master.volumeSizeLimitMB={VOLUME}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **GROWTH}
        )
    return S3Server(f"http://127.0.0.1:{port}", folder, process, identities)


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def _ready(server: S3Server) -> bool:
    """Whether an object can be written: only then is there a leader, and a volume."""
    ready = _takes(server, "ready-or-not")
    if ready:
        server.client().delete_bucket(Bucket="ready-or-not")
    return ready


def _takes(server: S3Server, bucket: str) -> bool:
    """Makes the bucket; whether it takes objects at last: each has volumes of its own, which come when it is new."""
    client, made = server.client(), False
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if not made:
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):  # by a try without an answer
                    client.create_bucket(Bucket=bucket)
                made = True
            client.put_object(Bucket=bucket, Key="k", Body=b"x")
            client.delete_object(Bucket=bucket, Key="k")
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
            time.sleep(0.3)
        else:
            return True
    return False


def weed() -> str:
    """The program."""
    return program("weed")


def program(name: str) -> str:
    """A program that a package of the test environment brought."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise RuntimeError(f"{name} is not installed: scripts/test installs it")
    return found
