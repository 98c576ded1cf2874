"""How W&B knows an artifact, and a file of one, by what is in it.

Digests of files stand in manifests in base64. They are MD5 where the entry's `extra` names no other algorithm:
W&B's SDK 0.29 and newer can be told to make an artifact with XXH128 (`wandb.Artifact(digest_algorithm=...)`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import xxhash

MD5, XXH128 = "MD5", "XXH128"  # as entries name them
_HEADER = b"wandb-artifact-manifest-v1\n"
_SIZE = 16  # bytes of either


class Hasher(Protocol):
    """What digests bytes as they pass."""

    def update(self, data: bytes, /) -> None:
        """More bytes."""

    def digest(self) -> bytes:
        """That of all bytes so far."""


def _md5(data: bytes = b"") -> Hasher:
    return hashlib.md5(data, usedforsecurity=False)


_KNOWN: dict[str, Callable[[], Hasher]] = {MD5: _md5, XXH128: xxhash.xxh128}


def algorithm(extra: object) -> str:
    """What made the digest of an entry that has this `extra`."""
    return str(extra.get("alg") or MD5) if isinstance(extra, dict) else MD5


def hasher(algorithm: str) -> Hasher | None:
    """Makes such digests; None where the algorithm is not known here."""
    return _KNOWN[algorithm]() if algorithm in _KNOWN else None


def of_base64(digest: str) -> bytes:
    """The bytes of a file's digest; b"" for what is none."""
    try:
        found = base64.b64decode(digest, validate=True)
    except ValueError:
        return b""
    return found if len(found) == _SIZE else b""


def of_manifest(entries: Iterable[tuple[str, str]]) -> str:
    """The digest of an artifact of these (path, digest), as W&B's SDK computes it."""
    return _of_manifest(_md5(_HEADER), entries)


def empty() -> frozenset[str]:
    """The digests that an artifact without entries has."""
    return frozenset(_of_manifest(made, ()) for made in (_md5(_HEADER), xxhash.xxh128(_HEADER)))


def _of_manifest(digest: Any, entries: Iterable[tuple[str, str]]) -> str:  # noqa: ANN401  hashlib's and xxhash's
    for path, own in sorted(entries):
        digest.update(f"{path}:{own}\n".encode("utf-8", "surrogatepass"))
    return str(digest.hexdigest())
