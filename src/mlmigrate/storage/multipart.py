"""Large objects of S3 in parts: sent in parallel, gone on with after a kill, or copied by the store itself.

Every part goes with its sha256, which the server checks.  Where it does not say so in its answer, the
part's etag must be its md5.  At the end the whole must have the composite of the parts' digests.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from mlmigrate.errors import Damaged, MigrateError, NotFound
from mlmigrate.storage.budget import Budget
from mlmigrate.storage.objects import (
    CHUNK,
    LARGEST_COPY,
    MOST_PARTS,
    Body,
    Changed,
    Stored,
    composite,
    digest_text,
)
from mlmigrate.storage.s3 import COPIES, COPY_PART, HELD, S3Objects

T = TypeVar("T")


HOLD = Budget(HELD)  # of parts that must be held, in this process


@dataclass(frozen=True, slots=True)
class Part:
    """A part that the store has. `sha256` is empty where nobody computed it."""

    number: int
    etag: str
    sha256: bytes = b""

    @property
    def named(self) -> dict[str, Any]:
        """As the request that completes an upload names it."""
        checksum = {"ChecksumSHA256": _base64(self.sha256)} if self.sha256 else {}
        return {"PartNumber": self.number, "ETag": self.etag, **checksum}


class Multipart:
    """One upload under way."""

    def __init__(self, objects: S3Objects, full: str, key: str, body: Body, part: int) -> None:
        self._objects, self.full, self._key, self._body, self._part = objects, full, key, body, part
        self.client = objects.client
        self._count = -(-body.size // part)
        self._at = {"Bucket": objects.bucket, "Key": full, **objects.payer}

    def run(self, resume: str, threads: int) -> Stored:
        """Sends what the store has not got yet, and completes."""
        there = self._there(resume) if resume else {}
        upload = resume if resume and there is not None else self._begin()
        numbers = range(1, self._count + 1)
        parts = _in_parallel(threads, [partial(self._one, upload, n, (there or {}).get(n)) for n in numbers])
        return self._complete(upload, parts)

    def _begin(self) -> str:
        self._objects.throttle.request()
        with self._objects.explained(self._key):
            answer = self.client.create_multipart_upload(
                **self._at,
                ChecksumAlgorithm="SHA256",
                **self._objects.access.extra,
            )
        return str(answer["UploadId"])

    def _there(self, upload: str) -> dict[int, dict[str, Any]] | None:
        """The parts of an upload that was broken off, by number; None when it is there no more."""
        found: dict[int, dict[str, Any]] = {}
        pages = self.client.get_paginator("list_parts")
        try:
            for page in pages.paginate(**self._at, UploadId=upload):
                self._objects.throttle.request()
                found |= {one["PartNumber"]: one for one in page.get("Parts", ())}
        except (ClientError, BotoCoreError) as error:
            ours = self._objects.ours(error, self._key)
            if isinstance(ours, NotFound):
                return None
            raise ours from error
        return found

    def _one(self, upload: str, number: int, there: dict[str, Any] | None) -> Part:
        """Sends a part, unless the store has it."""
        start = (number - 1) * self._part
        length = min(self._part, self._body.size - start)
        with self._body.open(start, length) as stream, ExitStack() as holding:
            data: Any = stream
            if not stream.seekable():  # it must be read twice, to be hashed and to be sent
                holding.enter_context(HOLD.of(length))
                data = io.BytesIO(stream.read())
            sha256, md5 = _digests(data, with_md5=there is not None and "ChecksumSHA256" not in there)
            if there is not None and int(there["Size"]) == length and _same(there, sha256, md5):
                return Part(number, there["ETag"], sha256)
            data.seek(0)
            self._objects.throttle.request(length)
            with self._objects.explained(self._key):
                answer = self.client.upload_part(
                    **self._at,
                    UploadId=upload,
                    PartNumber=number,
                    Body=data,
                    ContentLength=length,
                    ChecksumSHA256=_base64(sha256),
                )
            self._prove(answer, data, sha256)
        return Part(number, answer["ETag"], sha256)

    def _prove(self, answer: dict[str, Any], data: Any, sha256: bytes) -> None:  # noqa: ANN401  a stream
        checksum = answer.get("ChecksumSHA256")
        if checksum == _base64(sha256):
            return
        data.seek(0)
        if checksum or _digests(data, with_md5=True)[1] != answer["ETag"].strip('"'):
            raise self._objects.not_as_sent(self._key)

    def _complete(self, upload: str, parts: Sequence[Part]) -> Stored:
        digest = composite([part.sha256 for part in parts], self._part)
        self._objects.throttle.request()
        with self._objects.explained(self._key):
            answer = self.client.complete_multipart_upload(
                **self._at, UploadId=upload, MultipartUpload={"Parts": [part.named for part in parts]}
            )
        said = str(answer.get("ChecksumSHA256", "")).partition("-")[0]
        if said:
            if base64.b64decode(said).hex() != digest.partition(":")[2].partition("/")[0]:
                raise self._objects.not_as_sent(self._key)
            return Stored(self._key, self._body.size, answer["ETag"].strip('"'), 0.0, digest)
        found = self._objects.head(self._key)
        if found is None or found.size != self._body.size:
            raise self._objects.not_as_sent(self._key)
        return Stored(self._key, found.size, found.version, found.modified, digest)


def copied(source: S3Objects, key: str, target: S3Objects, to: str, size: int, version: str) -> Stored:
    """A copy made by the store. Its etag, or else its checksum, must be the source's; else Stored.digest is empty."""
    at, full = source.full(key), target.writable(to)
    made = False
    if version and "-" not in version and size <= LARGEST_COPY:
        quick = _Copying(source.bucket, at, target, full, to, {"ETag": f'"{version}"'}).whole()
        if quick["ETag"].strip('"') == version:  # one request, and it proves itself
            checksum = quick.get("ChecksumSHA256")
            digest = digest_text(base64.b64decode(checksum)) if checksum else f"etag:{version}"
            return Stored(to, size, version, 0.0, digest)
        made = True  # the etags of an encrypted copy tell nothing
    target.throttle.request()
    with target.explained(to):
        found = target.client.head_object(
            Bucket=source.bucket,
            Key=at,
            ChecksumMode="ENABLED",
            **target.payer,
        )
    etag = found["ETag"].strip('"')
    if version and etag != version:
        raise Changed(f"{source.shown}/{key} was written by somebody else meanwhile.", "Run the same command again.")
    copying = _Copying(source.bucket, at, target, full, to, found)
    in_parts = "-" in etag
    if int(found["ContentLength"]) > LARGEST_COPY or in_parts:
        copying.in_parts(source.part_length(at) if in_parts else 0)
    elif not made:
        copying.whole()
    return _proven(target, to, size, etag, source.digest_in(key, size, etag, found))


def _proven(target: S3Objects, to: str, size: int, etag: str, digest: str) -> Stored:
    """The copy, when it is equal for certain; without a digest when nobody can tell without reading."""
    there = target.head(to)
    if there is None or there.size != size:
        raise Damaged(f"{target.shown}/{to}: the copy is not as large as its source.", "Run the same command again.")
    if there.version == etag:
        known = there.digest if there.digest.startswith("sha256:") else digest
        return Stored(to, size, there.version, there.modified, known)
    if there.digest == digest and digest.startswith("sha256:"):
        return there
    if there.digest.startswith("sha256:") and digest.startswith("sha256:") and _comparable(there.digest, digest):
        raise Damaged(f"{target.shown}/{to}: the copy is not as its source.", "Run the same command again.")
    return Stored(to, size, there.version, there.modified, "")


def _comparable(one: str, other: str) -> bool:
    """Whether two digests were made in the same parts, so that they must be equal."""
    return one.partition("/")[2] == other.partition("/")[2]


@dataclass(frozen=True, slots=True)
class _Copying:
    """One copy within a store. `found` is what the store says of the source."""

    bucket: str
    key: str
    target: S3Objects
    full: str
    to: str
    found: dict[str, Any]

    @property
    def _from(self) -> dict[str, Any]:
        return {
            "CopySource": {"Bucket": self.bucket, "Key": self.key},
            "CopySourceIfMatch": self.found["ETag"],
        }

    @property
    def _at(self) -> dict[str, Any]:
        return {"Bucket": self.target.bucket, "Key": self.full, **self.target.payer}

    def whole(self) -> dict[str, Any]:
        """In one request, its headers with it; gives what the store says of the copy."""
        self.target.throttle.request()
        with self.target.explained(self.to):
            answer = self.target.client.copy_object(**self._at, **self._from, **self.target.access.extra)
        result: dict[str, Any] = answer["CopyObjectResult"]
        return result

    def in_parts(self, part: int) -> None:
        """In parts of the size that the source was written in, or in large ones where that is not known."""
        size = int(self.found["ContentLength"])
        part = part or COPY_PART
        while size > part * MOST_PARTS:
            part *= 2
        client = self.target.client
        with self.target.explained(self.to):
            upload = client.create_multipart_upload(**self._at, **self._kept())["UploadId"]
            try:
                ranges = [(start, min(start + part, size) - 1) for start in range(0, size, part)]
                parts = _in_parallel(COPIES, [partial(self._part, upload, n, *r) for n, r in enumerate(ranges, 1)])
                client.complete_multipart_upload(
                    **self._at, UploadId=upload, MultipartUpload={"Parts": [one.named for one in parts]}
                )
            except (ClientError, BotoCoreError, MigrateError):
                self.target.abort(self.to, upload)
                raise

    def _part(self, upload: str, number: int, first: int, last: int) -> Part:
        self.target.throttle.request()
        answer = self.target.client.upload_part_copy(
            **self._at, UploadId=upload, PartNumber=number, CopySourceRange=f"bytes={first}-{last}", **self._from
        )
        result = answer["CopyPartResult"]
        sha256 = base64.b64decode(result["ChecksumSHA256"]) if "ChecksumSHA256" in result else b""
        return Part(number, result["ETag"], sha256)

    def _kept(self) -> dict[str, Any]:
        """The headers of the source: a copy in parts does not take them by itself."""
        names = ("ContentType", "ContentEncoding", "ContentLanguage", "ContentDisposition", "CacheControl", "Metadata")
        kept = {name: self.found[name] for name in names if self.found.get(name)}
        if "ChecksumSHA256" in self.found:
            kept["ChecksumAlgorithm"] = "SHA256"
        return kept | dict(self.target.access.extra)


def _in_parallel(threads: int, calls: Iterable[Callable[[], T]]) -> list[T]:
    """The answers in order; the first error ends it once what was under way has ended."""
    with ThreadPoolExecutor(threads, thread_name_prefix="part") as pool:
        waiting: list[Future[T]] = [pool.submit(call) for call in calls]
        done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
        if any(one.exception() for one in done):
            pool.shutdown(cancel_futures=True)
        return [one.result() for one in waiting if not one.cancelled()]


def _digests(stream: Any, *, with_md5: bool) -> tuple[bytes, str]:  # noqa: ANN401  a stream
    """sha256, and (when wanted) md5 in hex, of what is left of a stream."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(CHUNK):
        sha256.update(chunk)
        if with_md5:
            md5.update(chunk)
    return sha256.digest(), md5.hexdigest()


def _same(there: dict[str, Any], sha256: bytes, md5: str) -> bool:
    """Whether a part that the store has is ours."""
    checksum = there.get("ChecksumSHA256")
    return bool(checksum == _base64(sha256) if checksum else there["ETag"].strip('"') == md5)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
