"""Versions of artifacts: what is told of them, their manifests, and their bytes.

    {"version": 1, "storagePolicy": ..., "contents": {path: {"digest", "size", "ref"?, "birthArtifactID"?, "extra"?}}}

The bytes of an entry are checked against its digest; where `extra` names an algorithm that is not known here, against
its size.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from mlmigrate.adapters.wandb import digests
from mlmigrate.adapters.wandb.api import operations
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.pages import all_pages, nodes
from mlmigrate.adapters.wandb.api.told import as_json, whole
from mlmigrate.adapters.wandb.moments import milliseconds
from mlmigrate.adapters.wandb.shape import File, Opener, Version
from mlmigrate.errors import BadData, Damaged, NotFound, Refused
from mlmigrate.model import Loss

HISTORY_TYPE = "wandb-history"  # W&B's own copies of histories
FRESH = 600.0  # seconds that a signed URL is used for
LARGEST_MANIFEST = 512 << 20
PAGE = 1000
_NUMBER = re.compile(r"v\d+")
Json = Mapping[str, Any]


@dataclass
class Urls:
    """Signed URLs of some files, asked for again when they are old. Used by several threads.

    ask   gives all URLs by name, anew
    """

    ask: Callable[[], dict[str, str]]
    known: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, name: str, *, anew: bool = False) -> str:
        """Raises NotFound where the server gives none: the bytes are gone."""
        with self._lock:
            old = anew or time.monotonic() - self.at > FRESH
            if old or (name not in self.known and not self.complete):
                self.known, self.complete, self.at = self.ask(), True, time.monotonic()
            if name not in self.known:
                raise NotFound(f"W&B has no bytes for {name!r}.")
            return self.known[name]


def opener(
    client: Client, urls: Urls, name: str, size: int | None, digest: str, algorithm: str = digests.MD5
) -> Opener:
    """Opens a file behind a signed URL; one that is no longer taken is asked for anew, once.

    `digest` is in base64; what is none is not checked.
    """

    @contextmanager
    def open_() -> Iterator[BinaryIO]:
        with _opened(client, urls, name) as data:
            checked = cast("io.RawIOBase", _Checked(data, name, size, digest, algorithm))
            yield cast("BinaryIO", io.BufferedReader(checked, 256 << 10))

    return open_


@contextmanager
def _opened(client: Client, urls: Urls, name: str) -> Iterator[BinaryIO]:
    started, used = time.monotonic(), urls.of(name)
    getting = client.get(used)
    try:
        data = getting.__enter__()
    except (Refused, NotFound):
        newer = urls.of(name)  # another may have asked meanwhile
        if newer == used and urls.at > started - 1:  # as new as can be
            raise
        getting = client.get(newer if newer != used else urls.of(name, anew=True))
        data = getting.__enter__()
    try:
        yield data
    finally:
        getting.__exit__(None, None, None)


class _Checked(io.RawIOBase):
    """A file on its way in; at its end it must have been what was told of it."""

    def __init__(self, data: BinaryIO, name: str, size: int | None, digest: str, algorithm: str) -> None:
        self._data, self._name, self._size = data, name, size
        self._told, self._algorithm = digests.of_base64(digest), algorithm
        self._read = 0
        self._hasher = digests.hasher(algorithm) if self._told else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  any writable buffer, as RawIOBase has it
        data = self._data.read(len(buffer))
        buffer[: len(data)] = data
        self._read += len(data)
        if self._hasher:
            self._hasher.update(data)
        if not data and len(buffer):
            self._end()
        return len(data)

    def _end(self) -> None:
        if self._size is not None and self._read != self._size:
            raise Damaged(f"{self._name!r} has {self._read} bytes in W&B, which says {self._size}.")
        if self._hasher and self._hasher.digest() != self._told:
            raise Damaged(f"{self._name!r} is not what W&B says that it is (its {self._algorithm} differs).")


def version_of(node: Json, run: str = "") -> Version:
    """A version as its node tells it, without its files."""
    home = node.get("artifactSequence") or {}
    project = home.get("project") or {}
    name = str(home.get("name") or "")
    ttl = whole(node.get("ttlDurationSeconds"))
    index = node.get("versionIndex")
    return Version(
        name=name,
        type=str((node.get("artifactType") or {}).get("name") or ""),
        version=f"v{index}" if index is not None else "",
        entity=str((project.get("entity") or {}).get("name") or ""),
        project=str(project.get("name") or ""),
        digest=str(node.get("digest") or ""),
        description=node.get("description") or "",
        metadata=as_json(node.get("metadata")),
        aliases=_aliases(node, name, str(project.get("name") or "")),
        tags=tuple(str(tag["name"]) for tag in node.get("tags") or () if tag),
        ttl=ttl if ttl and ttl > 0 and not node.get("ttlIsInherited") else None,
        created=milliseconds(node.get("createdAt")),
        run=run or producer_of(node),
        state=str(node.get("state") or "COMMITTED"),
    )


def producer_of(node: Json) -> str:
    """The id of the run that made it; "" where a person did, or nobody is told."""
    made = node.get("createdBy") or {}
    return str(made.get("name") or "") if made.get("__typename") == "Run" else ""


def files_of(client: Client, node: Json, owner: str, losses: list[Loss]) -> tuple[File, ...]:
    """The entries of a version's manifest. What is not there is told: an entry without bytes, or all of them."""
    version = version_of(node)
    called = f"artifact {version.name}:{version.version}"
    if version.state != "COMMITTED":
        losses.append(Loss(owner, called, f"W&B has none of its files: it is {version.state}"))
        return ()
    try:
        contents = manifest(client, node)
    except (NotFound, BadData, Refused) as error:
        losses.append(Loss(owner, called, f"its files are not to be had: {error.message}"))
        return ()
    urls = urls_of(client, node)
    return tuple(_file(client, urls, str(path), entry) for path, entry in contents.items() if isinstance(entry, dict))


def manifest(client: Client, node: Json) -> dict[str, Any]:
    """What the manifest of a version says of each path."""
    try:
        data = _read(client, _manifest_url(node))
    except (NotFound, Refused):
        found = client.graphql(operations.MANIFEST, {"id": node.get("id")}).get("artifact") or {}
        data = _read(client, _manifest_url(found))
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadData("its manifest is no JSON.") from error
    contents = told.get("contents") if isinstance(told, dict) else None
    if not isinstance(contents, dict):
        raise BadData("its manifest has no contents.")
    return contents


def urls_of(client: Client, node: Json) -> Urls:
    """Where the bytes of a version's files are to be had; the first of them came along with it."""
    page = node.get("files") or {}
    came = _named(page)
    more = bool((page.get("pageInfo") or {}).get("hasNextPage", True))
    return Urls(lambda: _all_urls(client, str(node.get("id"))), came, complete=bool(page) and not more)


def _all_urls(client: Client, id_: str) -> dict[str, str]:
    def ask(cursor: str | None) -> Json | None:
        variables = {"id": id_, "cursor": cursor, "perPage": PAGE}
        return (client.graphql(operations.ARTIFACT_FILES, variables).get("artifact") or {}).get("files")

    found: dict[str, str] = {}
    for page in all_pages(ask, "the files of an artifact"):
        found |= _named(page)
    return found


def _named(page: Json) -> dict[str, str]:
    return {str(one["name"]): str(one["directUrl"]) for one in nodes(page) if one.get("name") and one.get("directUrl")}


def _file(client: Client, urls: Urls, path: str, entry: Json) -> File:
    size, digest = whole(entry.get("size")), str(entry.get("digest") or "")
    ref = str(entry.get("ref") or "")
    if ref:
        return File(path, None, size, ref=ref, digest=digest)
    algorithm = digests.algorithm(entry.get("extra"))
    md5 = digest if algorithm == digests.MD5 else ""
    if urls.complete and path not in urls.known:
        return File(path, None, size, md5=md5, digest=digest, gone="W&B has no bytes for it")
    return File(path, opener(client, urls, path, size, digest, algorithm), size, md5=md5, digest=digest)


def _aliases(node: Json, name: str, project: str) -> tuple[str, ...]:
    """Of its own collection; W&B's own v0, v1, ... are left out."""
    found = []
    for told in node.get("aliases") or ():
        home = told.get("artifactCollection") or {}
        mine = home.get("name") in (None, name) and (home.get("project") or {}).get("name") in (None, project)
        if mine and not _NUMBER.fullmatch(str(told.get("alias"))):
            found.append(str(told["alias"]))
    return tuple(dict.fromkeys(found))


def _manifest_url(node: Json) -> str:
    return str((((node.get("currentManifest") or {}).get("file")) or {}).get("directUrl") or "")


def _read(client: Client, url: str) -> bytes:
    with client.get(url) as data:
        found = data.read(LARGEST_MANIFEST + 1)
    if len(found) > LARGEST_MANIFEST:
        raise BadData(f"its manifest has more than {LARGEST_MANIFEST >> 20} MiB.")
    return found
