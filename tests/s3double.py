"""A stand-in for an S3 that says yes to everything and writes down what it was asked: for the headers that we send.

It keeps no promise of a real one beside giving back the checksums it was sent.  What must be true of bytes is
tested against a real server (s3server.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate

from recorder import Answer, Recording, Request, recording

KEY, SECRET = "KEYOFTHETEST", "CANARY-secret"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-test-1"}


@dataclass
class Double:
    """`fault` may answer in its stead."""

    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)
    fault: Callable[[Request], Answer | None] = lambda _: None
    record: Recording | None = None

    @property
    def url(self) -> str:
        return self.record.url

    @property
    def requests(self) -> list[Request]:
        return self.record.requests

    @property
    def env(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def keys_used(self) -> list[str]:
        """The access keys that the requests were signed with, in order; "" for none."""
        found = (re.search(r"Credential=([^/]+)/", one.headers.get("authorization", "")) for one in self.requests)
        return [match[1] if match else "" for match in found]

    def answer(self, request: Request) -> Answer:
        if said := self.fault(request):
            return said
        if request.method == "POST":
            return self._post(request)
        if request.method == "PUT":
            return self._put(request)
        if "list-type" in request.query:
            return _xml("ListBucketResult", "<IsTruncated>false</IsTruncated>")
        if request.method == "DELETE":
            return Answer(204)
        return self._get(request)

    def _post(self, request: Request) -> Answer:
        if "uploads" in request.query:
            return _xml("InitiateMultipartUploadResult", "<UploadId>upload-1</UploadId>")
        if "uploadId" in request.query:
            self.objects[request.path] = (b"".join(data for _, data in sorted(self.parts.items())), "")
            return _xml("CompleteMultipartUploadResult", f"<ETag>{_etag(b'')}</ETag>")
        return _xml("DeleteResult", "")

    def _put(self, request: Request) -> Answer:
        data, checksum = _plain(request), request.headers.get("x-amz-checksum-sha256", "")
        if "partNumber" in request.query:
            self.parts[int(request.query["partNumber"])] = data
        else:
            self.objects[request.path] = (data, checksum)
        said = {"x-amz-checksum-sha256": checksum} if checksum else {}
        return Answer(200, b"", {"ETag": _etag(data), **said})

    def _get(self, request: Request) -> Answer:
        if request.path not in self.objects:
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data, checksum = self.objects[request.path]
        said = {"ETag": _etag(data), "Last-Modified": formatdate(usegmt=True), "Content-Length": str(len(data))}
        if checksum:
            said["x-amz-checksum-sha256"] = checksum
        return Answer(200, data, said)


@contextlib.contextmanager
def double(tls: ssl.SSLContext | None = None) -> Iterator[Double]:
    """A stand-in of its own for one test."""
    store = Double()
    with recording(store.answer, tls) as store.record:
        yield store


def failing(status: int, code: str, times: int = 1_000_000) -> Callable[[Request], Answer | None]:
    """A fault that is answered so often, whoever asks at once."""
    numbers = itertools.count()

    def fault(_: Request) -> Answer | None:
        return Answer(status, f"<Error><Code>{code}</Code></Error>".encode()) if next(numbers) < times else None

    return fault


def _plain(request: Request) -> bytes:
    """The bytes themselves, where boto3 sent them in signed chunks."""
    if "aws-chunked" not in request.headers.get("content-encoding", ""):
        return request.body
    data, rest = b"", request.body
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        if not (size := int(head.split(b";")[0], 16)):
            break
        data, rest = data + rest[:size], rest[size + 2 :]
    return data


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _xml(name: str, inside: str) -> Answer:
    text = f'<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{name}>'
    return Answer(200, text.encode(), {"Content-Type": "application/xml"})
