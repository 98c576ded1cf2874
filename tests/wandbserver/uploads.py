"""Signed URLs: where bytes are put and fetched. Who has the URL needs no key, and may not send one.

As the object stores behind W&B do: a URL that is unknown or expired is answered with 403, a header that was signed
must be sent (403), bytes that do not have their Content-MD5 are refused (400), a second way to say who one is, too.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from .store import Refused, Store
from .web import Reply, Request

PREFIX = "/storage/"


@dataclass(slots=True)
class Slot:
    """One upload: `md5` what the bytes must have ("" for any), `put` takes what they have and how many there are."""

    kind: str
    name: str
    put: Callable[[str, int], None]
    md5: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Multipart:
    """A file under way in parts, which are blobs by number."""

    path: str
    artifact: str
    md5: str
    numbers: list[int]
    parts: dict[int, str] = field(default_factory=dict)


class Uploads:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.base = ""  # of signed URLs: another origin than the server's, as with W&B
        self.server = ""
        self.slots: dict[str, Slot] = {}
        self.downloads: dict[str, str] = {}
        self.multiparts: dict[str, Multipart] = {}

    def url(self, slot: Slot) -> str:
        """A URL that this slot's bytes may be put to."""
        token = secrets.token_hex(12)
        self.slots[token] = slot
        return f"{self.base}{PREFIX}put/{quote(slot.name)}?X-Signature={token}"

    def direct(self, md5: str, name: str) -> str:
        """A URL that gives these bytes."""
        token = secrets.token_hex(12)
        self.downloads[token] = md5
        return f"{self.base}{PREFIX}get/{quote(name)}?X-Signature={token}"

    def expire(self) -> None:
        """No URL that was given so far is of use."""
        self.slots.clear()
        self.downloads.clear()

    def answer(self, request: Request) -> Reply:
        token = request.query.removeprefix("X-Signature=")
        if "authorization" in request.headers:
            return _denied(400, "InvalidArgument", "Only one auth mechanism allowed")
        if request.method == "PUT" and token in self.slots:
            return self._put(self.slots[token], request)
        if request.method in ("GET", "HEAD") and token in self.downloads:
            return _ranged(self.store.blobs.get(self.downloads[token]), request)
        return _denied(403, "AccessDenied", "Request has expired")

    def kind(self, request: Request) -> str:
        """What is put there: file, artifact, manifest or part."""
        slot = self.slots.get(request.query.removeprefix("X-Signature="))
        return slot.kind if slot else "unknown"

    def _put(self, slot: Slot, request: Request) -> Reply:
        for name, value in slot.headers.items():
            if request.headers.get(name.lower()) != value:
                return _denied(403, "SignatureDoesNotMatch", f"{name} was signed as {value}")
        digest = hashlib.md5(request.body).digest()
        md5 = base64.b64encode(digest).decode()
        told = request.headers.get("content-md5", slot.md5 or md5)
        if md5 != (slot.md5 or md5) or told != md5:
            return _denied(400, "BadDigest", f"The Content-MD5 you specified did not match: {slot.md5 or told}")
        self.store.blobs[md5] = request.body
        slot.put(md5, len(request.body))
        return Reply(200, b"", {"ETag": f'"{digest.hex()}"'})

    def complete(self, id: str, path: str, parts: list[tuple[int, str]]) -> str:
        """A file of parts, put together. Raises Refused where parts are missing or not as told."""
        whole = self.multiparts.get(id)
        if whole is None or whole.path != path:
            raise Refused(f"no multipart upload {id} of {path}", 404)
        for number, etag in parts:
            md5 = whole.parts.get(number)
            if md5 is None or base64.b64decode(md5).hex() != etag.strip('"'):
                raise Refused(f"part {number} of {path} is missing or has another digest")
        if [number for number, _ in parts] != whole.numbers:
            raise Refused(f"parts of {path} are missing")
        digest = self.store.keep(b"".join(self.store.blobs[whole.parts[number]] for number in whole.numbers))
        if digest != whole.md5:
            raise Refused(f"{path} has digest {digest}, not {whole.md5}")
        del self.multiparts[id]
        return digest


def _ranged(data: bytes | None, request: Request) -> Reply:
    if data is None:
        return _denied(404, "NoSuchKey", "The specified key does not exist.")
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    wanted = request.headers.get("range", "")
    if not wanted.startswith("bytes="):
        return Reply(200, data, headers if request.method == "GET" else {**headers, "Content-Length": str(len(data))})
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) if first and last else len(data) - 1, len(data) - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Reply(206, data[start : end + 1], headers)


def _denied(status: int, code: str, message: str) -> Reply:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Reply(status, text.encode(), {"Content-Type": "application/xml"})
