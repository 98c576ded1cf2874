"""How W&B knows an artifact by what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_HEADER = b"wandb-artifact-manifest-v1\n"


def of_manifest(entries: Iterable[tuple[str, str]]) -> str:
    """The digest of an artifact of these (path, digest), as W&B's SDK computes it."""
    digest = hashlib.md5(_HEADER, usedforsecurity=False)
    for path, own in sorted(entries):
        digest.update(f"{path}:{own}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
