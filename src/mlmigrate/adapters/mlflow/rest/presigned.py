"""Bytes that go straight to and from the object store behind a server, by URLs that the server signs.

The server chooses the host of such a URL, so a URL is used only when its host is

    the server itself
    the endpoint that this side's AWS settings name, or a bucket's own name below it
    a well-known one of S3, Google Cloud Storage or Azure, by https
    what --allow-artifacts says

Nothing of our login goes there: no header of the server's, no cookie, no netrc; redirects are not followed.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, SSLError
from urllib3.response import BaseHTTPResponse

from mlmigrate.adapters.mlflow.repositories import allowed
from mlmigrate.errors import Damaged, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.storage.throttle import UNLIMITED, Throttle

CONNECTIONS = 48
CONNECT = 10.0  # seconds: a store that cannot be reached from here is noticed soon
BLOCK = 256 << 10  # how much is sent, and read, at once
PARTIAL = 206
SPARE = 12  # ranges and parts held in memory, of all files together
MISSES = 3
_AWAY = (408, 429, 500, 502, 503, 504)
_TRUE = ("true", "1")
_URL = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?(/[!-\"$-\[\]-~]*)", re.IGNORECASE)
_REGION = r"[a-z]{2}(?:-[a-z]+)+-\d"
_S3 = "|".join(
    (
        r"s3", r"s3-accelerate", r"s3-accelerate\.dualstack", rf"s3[.-]{_REGION}", rf"s3\.dualstack\.{_REGION}",
        rf"s3-fips\.{_REGION}", rf"s3-fips\.dualstack\.{_REGION}", rf"s3-accesspoint\.{_REGION}",
    )
)  # fmt: skip
_KNOWN = re.compile(
    rf"(?:[a-z0-9][a-z0-9.-]*\.)?(?:{_S3})\.amazonaws\.com(?:\.cn)?"
    r"|(?:[a-z0-9][a-z0-9._-]*\.)?storage\.googleapis\.com"
    r"|[a-z0-9][a-z0-9.-]*\.(?:blob|dfs)\.core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn)"
)
_HEADER = re.compile(r"content-(?:type|encoding|disposition|language)|cache-control|x-(?:amz|goog|ms)-[a-z0-9-]+")
_VALUE = re.compile(r"[ -~]*")
_MD5 = re.compile(r"[0-9a-f]{32}")
_ENDPOINTS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What one side's settings say of object stores: where they are, and how far certificates are believed."""

    urls: tuple[str, ...] = ()
    certificates: str = ""
    insecure: bool = False


def endpoints(env: Mapping[str, str]) -> Endpoints:
    """The settings that boto3 and MLflow read."""
    urls = tuple(url for name in _ENDPOINTS if (url := env.get(name, "")))
    return Endpoints(urls, env.get("AWS_CA_BUNDLE", ""), env.get("MLFLOW_S3_IGNORE_TLS", "").lower() in _TRUE)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A URL taken apart once, so that what was judged is what is asked."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def shown(self) -> str:
        """For messages: the signature stays out."""
        return f"{self.scheme}://{self.host}:{self.port}{self.target.partition('?')[0]}"


def spoken(url: str) -> Spoken | None:
    """The parts of a URL that is beyond doubt; None for any other (credentials, odd characters)."""
    found = _URL.fullmatch(url)
    if found is None:
        return None
    scheme, port = found[1].lower(), int(found[3] or 0)
    port = port or (443 if scheme == "https" else 80)
    return Spoken(scheme, found[2].lower(), port, found[4]) if port < 1 << 16 else None


def known_host(url: Spoken, base: str, named: Endpoints) -> bool:
    """Whether somebody named the host, or everybody knows it."""
    if url.scheme == "https" and url.port == 443 and _KNOWN.fullmatch(url.host):  # noqa: PLR2004  # https
        return True
    server = spoken(base + "/")
    if server is not None and (url.scheme, url.host, url.port) == (server.scheme, server.host, server.port):
        return True
    return any(_at(url, end) for one in named.urls if (end := spoken(one.rstrip("/") + "/")) is not None)


def _at(url: Spoken, endpoint: Spoken) -> bool:
    if (url.scheme, url.port) != (endpoint.scheme, endpoint.port):
        return False
    return url.host == endpoint.host or (_is_name(endpoint.host) and url.host.endswith("." + endpoint.host))


def _is_name(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file, how large all of it is, and what changes when it does. `md5` where the store tells it."""

    data: bytes
    total: int
    version: str
    md5: str = ""


@dataclass
class Offers:
    """What a server turned out to offer.

    downloads, uploads   whether it signs URLs for whole files, and for parts; None while nobody has asked
    reads, writes        whether its store has answered us by one
    misses, refusals     files that were not to be had, or not taken, so before any was
    spare                how many ranges and parts may be held beyond the one that each file needs
    """

    downloads: bool | None = None
    uploads: bool | None = None
    reads: bool = False
    writes: bool = False
    misses: int = 0
    refusals: int = 0
    spare: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(SPARE))

    def miss(self) -> None:
        """Another file was not to be had by URL. After some, and no other, we ask for none."""
        self.misses += 1
        if not self.reads and self.misses >= MISSES:
            self.downloads = False

    def refuse(self) -> None:
        """Another file was not taken by URL. After some, and no other, we send none so."""
        self.refusals += 1
        if not self.writes and self.refusals >= MISSES:
            self.uploads = False


class Presigned:
    """Requests to stores by signed URLs. Used by many threads."""

    def __init__(self, base: str, named: Endpoints, timeout: float, throttle: Throttle = UNLIMITED) -> None:
        self._base, self._named, self.throttle = base, named, throttle
        self._timeout = urllib3.Timeout(connect=min(CONNECT, timeout), read=timeout)
        self._http = urllib3.PoolManager(num_pools=8, maxsize=CONNECTIONS, blocksize=BLOCK)
        self._tls: dict[str, Any] = {
            "cert_reqs": "CERT_NONE" if named.insecure else "CERT_REQUIRED",
            "ca_certs": named.certificates or None,
        }

    def close(self) -> None:
        """Gives the connections back."""
        self._http.clear()

    def allows(self, url: str, allow: Sequence[str]) -> bool:
        """Whether this URL may be used."""
        parts = spoken(url)
        return parts is not None and (known_host(parts, self._base, self._named) or allowed(url, allow))

    def whole(self, url: str, headers: Mapping[str, str], most: int) -> bytes | None:
        """A file; None for one of more than `most` bytes. One request.

        Raises Refused, NotFound, Unavailable, Damaged.
        """
        self.throttle.request()
        with self._asked("GET", url, headers, None) as (response, shown):
            if (response.length_remaining or 0) > most:
                return None
            data = _read(response, most + 1)
            if len(data) > most:
                return None
            self.throttle.payload(len(data))
            return _piece(data, response.headers, len(data), shown).data

    def part(self, url: str, headers: Mapping[str, str], start: int, length: int) -> Piece:
        """`length` bytes of a file, or those that there are. One request. Raises as `whole`."""
        self.throttle.request(length)
        wanted = {**headers, "Range": f"bytes={start}-{start + length - 1}"}
        with self._asked("GET", url, wanted, None) as (response, shown):
            if response.status != PARTIAL:
                raise MigrateError(f"{shown} gives no parts of a file ({response.status}).")
            data = _read(response, length + 1)
            total = _total(response.headers, start, len(data), shown)
            if len(data) != min(length, total - start):
                raise Unavailable(f"{shown} gave {len(data)} bytes of {length}.")
            return _piece(data, response.headers, total, shown)

    def put(self, url: str, headers: Mapping[str, str], data: bytes, md5: bytes) -> str:
        """Puts bytes; gives the ETag, which is their MD5 where the store says so. Raises as `get`."""
        self.throttle.request(len(data))
        with self._asked("PUT", url, headers, data) as (response, shown):
            response.read()
            etag = response.headers.get("ETag", "")
            told = _told_md5(response.headers)
        if told and told != md5.hex():
            raise Unavailable(f"{shown} has got other bytes than were sent (MD5 differs).")
        return etag

    @contextmanager
    def _asked(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Iterator[tuple[BaseHTTPResponse, str]]:
        """A 2xx answer. The caller has asked `allows`."""
        parts = spoken(url)
        if parts is None:
            raise MigrateError("The server gave a URL that cannot be understood.")
        sent = {"User-Agent": "mlmigrate", "Accept-Encoding": "identity", **_harmless(headers)}
        try:
            response = self._pool(parts).urlopen(
                method, parts.target, body=body, headers=sent, redirect=False, retries=False,
                timeout=self._timeout, preload_content=False, decode_content=False, assert_same_host=False,
            )  # fmt: skip
            try:
                _check(response, parts.shown)
                yield response, parts.shown
            finally:
                response.close()  # one that was read to its end has given its connection back already
        except SSLError as error:
            raise Refused(f"The certificate of {parts.shown} is not trusted.", "AWS_CA_BUNDLE names one.") from error
        except (HTTPError, OSError) as error:
            raise Unavailable(f"{parts.shown} does not answer ({type(error).__name__}).") from error

    def _pool(self, url: Spoken) -> urllib3.HTTPConnectionPool:
        extra = self._tls if url.scheme == "https" else {}
        return self._http.connection_from_host(url.host, url.port, url.scheme, pool_kwargs=extra)


def _harmless(headers: Mapping[str, str]) -> dict[str, str]:
    """What a store may be told at the server's wish: nothing that logs in, or that changes the request's shape."""
    return {
        name: value
        for name, value in headers.items()
        if (_HEADER.fullmatch(name.lower()) or name in ("Range", "Content-MD5")) and _VALUE.fullmatch(value)
    }


def _read(response: BaseHTTPResponse, most: int) -> bytes:
    """All of an answer, or its first bytes. One that breaks off gives what came, and an error only when asked again."""
    chunks, left = [response.read(most, decode_content=False)], most
    while chunks[-1] and (left := left - len(chunks[-1])):
        chunks.append(response.read(left, decode_content=False))
    return b"".join(chunks) if any(chunks[1:]) else chunks[0]


def _check(response: BaseHTTPResponse, shown: str) -> None:
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004  # HTTP's successes
        return
    response.drain_conn()
    if status in _AWAY:
        raise Unavailable(f"{shown} answered {status}.")
    if status in (401, 403):
        raise Refused(f"{shown} does not take the server's signature ({status}).")
    if status == 404:  # noqa: PLR2004
        raise NotFound(f"{shown} is not there.")
    raise MigrateError(f"{shown} refused a request ({status}).")


def _total(headers: Mapping[str, str], start: int, length: int, shown: str) -> int:
    """How large the file is that these bytes are a part of."""
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None or (int(found[1]), int(found[2])) != (start, start + length - 1):
        raise Unavailable(f"{shown} gave other bytes than those asked for.")
    return int(found[3])


def _piece(data: bytes, headers: Mapping[str, str], total: int, shown: str) -> Piece:
    """What came; when it is all of a file and the store tells its MD5, it is checked."""
    whole = _told_md5(headers) if len(data) == total else ""
    if whole and whole != hashlib.md5(data, usedforsecurity=False).hexdigest():
        raise Damaged(f"{shown}: the bytes read are not those that the store has (MD5 differs).")
    return Piece(data, total, headers.get("ETag", ""), _told_md5(headers))


def _told_md5(headers: Mapping[str, str]) -> str:
    """The MD5 that an ETag is, unless the store encrypts with keys: then it is something else."""
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    if encrypted or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return ""
    etag = headers.get("ETag", "").strip('"').lower()
    return etag if _MD5.fullmatch(etag) else ""
