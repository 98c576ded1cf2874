"""A prefix in a bucket of S3, or of what speaks like it, as objects by key.

small files      obstore, whole, sha256 sent and checked by the server; the answer's etag compared with our md5
large ones       boto3, parts in parallel, each with its sha256; the composite compared with what the server made of it
server side      boto3; copies are made in the parts that their source was written in, so that etags compare
strange names    boto3: obstore refuses "a//b" and "..", and would quietly cut the "/" off the end of a name
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError
from obstore.store import S3Store

from mlmigrate.address import hide_secrets
from mlmigrate.errors import Damaged, NotFound, Refused, Unavailable, UsageError
from mlmigrate.storage.access import Access, access
from mlmigrate.storage.explain import explain, strange_key
from mlmigrate.storage.objects import (
    CHUNK,
    BadKey,
    Body,
    Objects,
    Stored,
    digest_text,
)
from mlmigrate.storage.objects import (
    part_size as size_of_parts,
)
from mlmigrate.storage.throttle import Throttle

if TYPE_CHECKING:
    from obstore import GetOptions

PAGE = 1000  # keys that one request lists, or deletes
COPIES = 8  # parts of one object that are copied at once
COPY_PART = 256 << 20  # bytes of a part of a copy whose source was not written in parts
LONGEST = 1024  # bytes of a key
HELD = 128 << 20  # bytes of parts that are held at once where a body can only be read once
NO_NAME = ("InvalidRequest", "InvalidURI", "KeyTooLongError", "InvalidArgument", "XMinioInvalidObjectName")
OBSTORE = (BaseError, ValueError, OSError)  # some of its errors are Python's own
PROBE = ".mlmigrate-probe"
_MD5 = 32  # characters of an etag that is one


class S3Objects:
    """Objects below a prefix of a bucket. Nothing is asked before the first call."""

    local: Path | None = None

    def __init__(self, access: Access, bucket: str, prefix: str, throttle: Throttle) -> None:
        self.bucket, self.prefix, self.throttle = bucket, prefix, throttle
        self.url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self.store = access.store
        self.access = access
        self._lock = threading.Lock()

    @classmethod
    def of(cls, place: str, env: Mapping[str, str], throttle: Throttle) -> S3Objects:
        """The place that an address names. Raises UsageError, and Refused when there are no credentials."""
        bucket, _, prefix = place.partition("://")[2].partition("/")
        if not bucket:
            raise UsageError(f"{hide_secrets(place)} names no bucket.", "For example s3://bucket/prefix")
        return cls(access(env), bucket, prefix.strip("/"), throttle)

    @property
    def shown(self) -> str:
        """The place; an S3 address has no secrets, but a person may have thought so."""
        return hide_secrets(self.url)

    def check(self, *, write: bool = False) -> None:
        """Lists one object, and (write) makes one and takes it away. Raises NotFound, Refused, Unavailable."""
        self.throttle.request()
        with self.explained():
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.full(""), MaxKeys=1, **self.payer)
        if write:
            self.put(PROBE, b"")
            self.delete([PROBE])

    def list(self, below: str = "") -> Iterator[Stored]:
        """Every object whose key begins with `below`, as the store pages them; "folders" are left out."""
        last = ""
        try:
            for one in self._quick(self.full(below)):
                last = one["path"]
                if one["size"] or self._is_file(last):
                    yield Stored(
                        self._key(last), one["size"], _bare(one["e_tag"] or ""), one["last_modified"].timestamp()
                    )
        except OBSTORE as error:
            if strange_key(error):
                yield from self._exact(self.full(below), last)
                return
            raise explain(error, self.shown) or error from error

    def _quick(self, prefix: str) -> Iterator[Any]:
        """Obstore lists whole parts of a path alone, at a twentieth of boto3's CPU."""
        if prefix and not prefix.endswith("/"):
            raise UsageError(f"{prefix!r} is no folder of {self.shown}.")
        for page in obstore.list(self._fast, prefix or None, chunk_size=PAGE):
            self.throttle.request()
            yield from page

    def _is_file(self, full: str) -> bool:
        """Whether an empty object has this very name: one that stands for a folder ends in "/"."""
        self.throttle.request()
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=full, **self.payer)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:  # noqa: PLR2004  HTTP's
                return False
            raise explain(error, self.shown) or error from error
        return not str(found.get("ContentType", "")).startswith("application/x-directory")

    def _exact(self, prefix: str, after: str) -> Iterator[Stored]:
        """The rest of a listing by boto3, which takes any name."""
        pages = self.client.get_paginator("list_objects_v2")
        with self.explained():
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, StartAfter=after, **self.payer):
                self.throttle.request()
                for one in page.get("Contents", ()):
                    if not (one["Key"].endswith("/") and not one["Size"]):
                        yield Stored(
                            self._key(one["Key"]), one["Size"], _bare(one["ETag"]), one["LastModified"].timestamp()
                        )

    def head(self, key: str) -> Stored | None:
        """The object with its digest: the checksum that the store keeps, or else its etag."""
        self.throttle.request()
        try:
            found = self.client.head_object(
                Bucket=self.bucket, Key=self.full(key), ChecksumMode="ENABLED", **self.payer
            )
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:  # noqa: PLR2004  HTTP's
                return None
            raise self.ours(error, key) from error
        except BotoCoreError as error:
            raise self.ours(error, key) from error
        return self._headed(key, found)

    def _headed(self, key: str, found: Mapping[str, Any]) -> Stored:
        size, etag = int(found["ContentLength"]), _bare(found["ETag"])
        return Stored(key, size, etag, found["LastModified"].timestamp(), self.digest_in(key, size, etag, found))

    def digest_in(self, key: str, size: int, etag: str, found: Mapping[str, Any]) -> str:
        """What the store says of the bytes, in our words."""
        checksum = str(found.get("ChecksumSHA256", ""))
        if not checksum:
            return f"etag:{etag}"
        plain, _, parts = checksum.partition("-")
        sha256 = base64.b64decode(plain)
        if not parts:
            return digest_text(sha256)
        part = self._first_part(key, size, int(parts))
        return digest_text(sha256, part) if part else f"etag:{etag}"

    def _first_part(self, key: str, size: int, parts: int) -> int:
        """How large the parts of an object are; 0 when the store does not tell, or they are not alike."""
        if parts == 1:
            return size_of_parts(size)
        likely = size_of_parts(size)
        if -(-size // likely) == parts:
            return likely
        part = self.part_length(self.full(key))
        return part if part and -(-size // part) == parts else 0

    def part_length(self, full: str) -> int:
        self.throttle.request()
        try:
            found = self.client.head_object(Bucket=self.bucket, Key=full, PartNumber=1, **self.payer)
        except ClientError:  # some stores know nothing of parts once the object is whole
            return 0
        return int(found["ContentLength"]) if int(found.get("PartsCount", 0)) > 1 else 0

    @contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None, version: str = "") -> Iterator[BinaryIO]:
        """Its bytes as a stream. Raises NotFound, Changed, and Unavailable when the stream ends too soon."""
        if length == 0:
            yield io.BytesIO()
            return
        self.throttle.request()
        stream = self._stream(key, start, length, version)
        with closing(stream), io.BufferedReader(stream, CHUNK) as reader:
            yield cast("BinaryIO", reader)

    def _stream(self, key: str, start: int, length: int | None, version: str) -> Download:
        full = self.full(key)
        if not _plain(full):
            return self._strange_stream(full, start, length, version)
        options: dict[str, Any] = {}
        if start or length is not None:
            options["range"] = {"offset": start} if length is None else (start, start + length)
        if version:
            options["if_match"] = f'"{version}"'
        try:
            got = obstore.get(self._fast, full, options=cast("GetOptions", options))
            size = got.range[1] - got.range[0]
        except OBSTORE as error:
            if not length and "range" in str(error).lower() and (found := self.head(key)) and found.size <= start:
                return Download(iter(()), 0, self, key)
            raise self.ours(error, key) from error
        return Download(iter(got.stream(CHUNK)), size, self, key)

    def _strange_stream(self, full: str, start: int, length: int | None, version: str) -> Download:
        more: dict[str, Any] = {}
        if start or length is not None:
            more["Range"] = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
        if version:
            more["IfMatch"] = f'"{version}"'
        with self.explained(self._key(full)):
            got = self.client.get_object(Bucket=self.bucket, Key=full, **more, **self.payer)
        return Download(got["Body"].iter_chunks(CHUNK), int(got["ContentLength"]), self, full)

    def put(self, key: str, data: bytes | memoryview, *, create: bool = False, sha256: str = "") -> Stored:
        """Writes an object whole."""
        full = self.writable(key)
        self.throttle.request(len(data))
        digest = bytes.fromhex(sha256) if sha256 else hashlib.sha256(data).digest()
        if _plain(full) and self.access.quick:
            etag = self._quick_put(full, key, data, create=create)
        else:
            etag = self._strange_put(full, data, digest, create=create)
        stored = Stored(key, len(data), etag, 0.0, digest_text(digest))
        return stored if self._is_md5(etag, data) else self._read_back(stored, data)

    def _quick_put(self, full: str, key: str, data: bytes | memoryview, *, create: bool) -> str:
        storage_class = self.access.extra.get("StorageClass")
        more: dict[str, Any] = {"attributes": {"Storage-Class": storage_class}} if storage_class else {}
        try:
            answer = obstore.put(
                self._fast, full, data, mode="create" if create else "overwrite", use_multipart=False, **more
            )
        except OBSTORE as error:
            raise self.ours(error, key) from error
        return _bare(answer["e_tag"] or "")

    def _strange_put(self, full: str, data: bytes | memoryview, digest: bytes, *, create: bool) -> str:
        more = {"IfNoneMatch": "*"} if create else {}
        try:
            answer = self.client.put_object(
                Bucket=self.bucket, Key=full, Body=bytes(data), ChecksumSHA256=_base64(digest), **more, **self._said
            )
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and error.response.get("Error", {}).get("Code") in NO_NAME:
                raise BadKey(f"{self.shown} takes no object called {self._key(full)!r:.200}.") from error
            raise self.ours(error, self._key(full)) from error
        return _bare(answer["ETag"])

    def _is_md5(self, etag: str, data: bytes | memoryview) -> bool:
        """Whether the answer itself proves what arrived: an etag is an md5 but for some encryptions."""
        return len(etag) == _MD5 and hashlib.md5(data, usedforsecurity=False).hexdigest() == etag

    def _read_back(self, stored: Stored, data: bytes | memoryview) -> Stored:
        """The checksum that the store keeps, or else the bytes themselves, must be what was sent."""
        found = self.head(stored.key)
        if found is None or found.size != stored.size:
            raise self.not_as_sent(stored.key)
        if found.digest.startswith("sha256:"):
            if found.digest != stored.digest:
                raise self.not_as_sent(stored.key)
            return found
        with self.open(stored.key) as stream:
            if stream.read() != bytes(data):
                raise self.not_as_sent(stored.key)
        return Stored(stored.key, stored.size, found.version, found.modified, stored.digest)

    def short(self, key: str) -> Unavailable:
        return Unavailable(f"{self.shown}/{key}: the answer ended too soon.")

    def not_as_sent(self, key: str) -> Damaged:
        return Damaged(
            f"{self.shown}/{key}: the bytes that arrived are not the bytes sent.", "Run the same command again."
        )

    def upload(self, key: str, body: Body, *, part_size: int = 0, resume: str = "", threads: int = 4) -> Stored:
        """Writes an object of any size."""
        part = size_of_parts(body.size, part_size)
        if body.size <= part:
            with body.open(0, body.size) as stream:
                return self.put(key, stream.read())
        from mlmigrate.storage.multipart import Multipart  # noqa: PLC0415  needs this module

        return Multipart(self, self.writable(key), key, body, part).run(resume, threads)

    def unfinished(self, below: str = "") -> Iterator[tuple[str, str, float]]:
        """Uploads broken off."""
        pages = self.client.get_paginator("list_multipart_uploads")
        with self.explained():
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.full(below), **self.payer):
                self.throttle.request()
                for one in page.get("Uploads", ()):
                    yield self._key(one["Key"]), one["UploadId"], one["Initiated"].timestamp()

    def abort(self, key: str, upload: str) -> None:
        """Takes the parts of an unfinished upload away."""
        self.throttle.request()
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.full(key), UploadId=upload, **self.payer)
        except (ClientError, BotoCoreError) as error:
            ours = self.ours(error, key)
            if not isinstance(ours, NotFound):
                raise ours from error

    def copy(self, source: Objects, key: str, to: str, size: int, version: str = "") -> Stored:
        """Copies within the store. Raises Refused when these credentials may not read the source."""
        from mlmigrate.storage.multipart import copied  # noqa: PLC0415  needs this module

        if not isinstance(source, S3Objects) or source.store != self.store:
            raise UsageError(f"{source.shown} and {self.shown} are not in one store.")
        return copied(source, key, self, to, size, version)

    def delete(self, keys: Iterable[str]) -> None:
        """Takes objects away, a thousand with a request."""
        left = iter(keys)
        while batch := tuple(self.full(key) for key in islice(left, PAGE)):
            self._delete(batch)

    def _delete(self, keys: Sequence[str]) -> None:
        self.throttle.request()
        with self.explained():
            answer = self.client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}, **self.payer
            )
        for error in answer.get("Errors", ()):
            if error.get("Code") == "NoSuchKey":
                continue
            place = f"{self.shown}/{self._key(error.get('Key', ''))}"
            raise Refused(
                f"{place} cannot be deleted ({error.get('Code')}: {error.get('Message')}).", "Ask for that right."
            )

    @cached_property
    def client(self) -> Any:  # noqa: ANN401  boto3 makes its clients' classes as it goes
        with self._lock:  # sessions are not made for several threads at once
            return self.access.client(self.region)

    @cached_property
    def _fast(self) -> S3Store:
        config, client = self.access.options(self.bucket, self.region)
        return S3Store(
            config=config,
            client_options=client,
            retry_config={"max_retries": 4},
            credential_provider=self.access.provider(),
        )

    @cached_property
    def region(self) -> str:
        """Where the bucket is: Amazon alone minds, and answers obstore with a redirect that leads nowhere."""
        if self.access.endpoint is not None:
            return self.access.region
        client = self.access.client()
        try:
            headers = client.head_bucket(Bucket=self.bucket)["ResponseMetadata"]["HTTPHeaders"]
        except ClientError as error:
            headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
        except BotoCoreError as error:
            raise self.ours(error, "") from error
        return str(headers.get("x-amz-bucket-region") or self.access.region)

    @property
    def payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self.access.requester_pays else {}

    @property
    def _said(self) -> dict[str, str]:
        """What goes with everything that is written."""
        return {**self.access.extra, **self.payer}

    def full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _key(self, full: str) -> str:
        return full[len(self.prefix) + 1 :] if self.prefix else full

    def writable(self, key: str) -> str:
        full = self.full(key)
        if not key or key.endswith("/") or len(full.encode("utf-8", "surrogatepass")) > LONGEST:
            raise BadKey(f"{self.shown}: no object can be called {key[:80]!r}... ({len(full)} characters).")
        try:
            full.encode()
        except UnicodeEncodeError as error:
            raise BadKey(f"{self.shown}: {key!r:.200} is no valid Unicode, and so no name of an object.") from error
        return full

    @contextmanager
    def explained(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise self.ours(error, what) from error

    def ours(self, error: Exception, key: str) -> Exception:
        place = f"{self.shown}/{key}" if key else self.shown
        return explain(error, place) or error


class Download(io.RawIOBase):
    """The chunks of an answer as a stream that ends with an error when bytes are missing."""

    def __init__(self, chunks: Iterator[Any], size: int, objects: S3Objects, key: str) -> None:
        super().__init__()
        self._chunks, self._left, self._objects, self._key = chunks, size, objects, key
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  any writable buffer
        if not self._held and self._left:
            self._held = memoryview(self._next()).cast("B")
            self._left -= len(self._held)
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _next(self) -> bytes:
        try:
            chunk = next(self._chunks, b"")
        except (*OBSTORE, ClientError, BotoCoreError) as error:
            raise self._objects.ours(error, self._key) from error
        if not chunk:
            raise self._objects.short(self._key)
        self._objects.throttle.payload(len(chunk))
        return cast("bytes", chunk)


def _plain(full: str) -> bool:
    """Whether obstore takes this name, and leaves it as it is."""
    return all(part not in ("", ".", "..") for part in full.split("/")) and full.isprintable()


def _bare(etag: str) -> str:
    return etag.strip('"')


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
