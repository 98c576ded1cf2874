"""A stand-in for Google Cloud Storage: its XML interface, as Google's reference describes it, kept in memory.

What obstore asks is answered: objects whole and in ranges, uploads of one and of many parts, conditions
on the generation and on the etag, copies in a bucket, lists by the page.  Etags are the md5 of objects that
were put whole and opaque for those in parts, as they are there.

with google() as store:
    store.env                   an environment that leads there
    store.objects["key"]        what lies in the bucket "bucket"
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import unquote
from xml.sax.saxutils import escape

from recorder import Answer, Recording, Request, recording

TOKEN = "token-of-the-test"
BUCKET = "bucket"
PAGE = 3  # names a page: small, so that lists have several


@dataclass
class Kept:
    data: bytes
    etag: str
    generation: int


@dataclass
class Google:
    """The store. `fault` may answer in its stead; `spoil` may change what is kept of what was sent."""

    objects: dict[str, Kept] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    fault: Callable[[Request], Answer | None] = lambda _: None
    spoil: Callable[[bytes], bytes] = lambda data: data
    record: Recording | None = None
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000_000_000))

    @property
    def env(self) -> dict[str, str]:
        return {"GOOGLE_BEARER_TOKEN": TOKEN, "GOOGLE_BASE_URL": self.record.url}

    def put(self, key: str, data: bytes, etag: str = "") -> Kept:
        return self._keep(key, self.spoil(data), etag)

    def _keep(self, key: str, data: bytes, etag: str) -> Kept:
        kept = Kept(data, etag or hashlib.md5(data).hexdigest(), next(self._count))
        self.objects[key] = kept
        return kept

    def answer(self, request: Request) -> Answer:
        if said := self.fault(request):
            return said
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _error(401, "AuthenticationRequired")
        bucket, _, key = unquote(request.path).lstrip("/").partition("/")
        if bucket != BUCKET:
            return _error(404, "NoSuchBucket")
        if not key:
            return self._list(request)
        return getattr(self, f"_{request.method.lower()}")(key, request)

    def _put(self, key: str, request: Request) -> Answer:
        if "partNumber" in request.query:
            self.uploads[request.query["uploadId"]][int(request.query["partNumber"])] = self.spoil(request.body)
            return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        if request.headers.get("x-goog-if-generation-match") == "0" and key in self.objects:
            return _error(412, "PreconditionFailed")
        if source := request.headers.get("x-goog-copy-source"):
            return self._copy(key, unquote(source))
        kept = self.put(key, request.body)
        return Answer(200, b"", _headers(kept))

    def _copy(self, key: str, source: str) -> Answer:
        found = self.objects.get(source.lstrip("/").partition("/")[2])
        if found is None:
            return _error(404, "NoSuchKey")
        kept = self.put(key, found.data, found.etag if "-" not in found.etag else f"{found.etag}-copied")
        return Answer(200, f"<CopyObjectResult><ETag>{kept.etag}</ETag></CopyObjectResult>".encode(), _headers(kept))

    def _post(self, key: str, request: Request) -> Answer:
        if "uploads" in request.query:
            name = f"upload{next(self._count)}"
            self.uploads[name] = {}
            text = f"<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key>"
            return Answer(200, f"{text}<UploadId>{name}</UploadId></InitiateMultipartUploadResult>".encode())
        parts = self.uploads.pop(request.query["uploadId"])
        numbers = [int(one) for one in re.findall(rb"<PartNumber>(\d+)</PartNumber>", request.body)]
        data = b"".join(parts[number] for number in numbers)
        kept = self._keep(key, data, f"opaque-{next(self._count)}")  # its parts were spoilt as they came
        text = f'<CompleteMultipartUploadResult><ETag>"{kept.etag}"</ETag></CompleteMultipartUploadResult>'
        return Answer(200, text.encode(), _headers(kept))

    def _get(self, key: str, request: Request) -> Answer:
        kept = self.objects.get(key)
        if kept is None:
            return _error(404, "NoSuchKey")
        if (wanted := request.headers.get("if-match")) and wanted != f'"{kept.etag}"':
            return _error(412, "PreconditionFailed")
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(kept.data)), len(kept.data) - 1)
            if start >= len(kept.data):
                return _error(416, "InvalidRange")
            said = {"Content-Range": f"bytes {start}-{end}/{len(kept.data)}"}
            return Answer(206, kept.data[start : end + 1], _headers(kept) | said)
        return Answer(200, kept.data, _headers(kept))

    def _head(self, key: str, request: Request) -> Answer:
        return self._get(key, request)

    def _delete(self, key: str, request: Request) -> Answer:
        if "uploadId" in request.query:
            self.uploads.pop(request.query["uploadId"], None)
            return Answer(204)
        return Answer(204) if self.objects.pop(key, None) else _error(404, "NoSuchKey")

    def _list(self, request: Request) -> Answer:
        prefix, after = request.query.get("prefix", ""), request.query.get("continuation-token", "")
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > after)
        text = "".join(self._listed(name) for name in names[:PAGE])
        if len(names) > PAGE:
            text += f"<NextContinuationToken>{escape(names[PAGE - 1])}</NextContinuationToken>"
        return Answer(200, f"<ListBucketResult>{text}</ListBucketResult>".encode())

    def _listed(self, name: str) -> str:
        kept = self.objects[name]
        return (
            f"<Contents><Key>{escape(name)}</Key><Generation>{kept.generation}</Generation>"
            f"<LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{kept.etag}&quot;</ETag>"
            f"<Size>{len(kept.data)}</Size></Contents>"
        )


@contextlib.contextmanager
def google() -> Iterator[Google]:
    """A store of its own for one test."""
    store = Google()
    with recording(store.answer) as store.record:
        yield store


def _headers(kept: Kept) -> dict[str, str]:
    return {
        "ETag": f'"{kept.etag}"',
        "x-goog-generation": str(kept.generation),
        "Last-Modified": formatdate(usegmt=True),
        "Content-Type": "application/octet-stream",
    }


def _error(status: int, code: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>CANARY-of-the-store</Message></Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml"})
