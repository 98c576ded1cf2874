"""Where the archive's bytes lie: `local` is a folder; object stores join here."""

from __future__ import annotations

from pathlib import Path

from mlmigrate.address import OBJECT_STORES, hide_secrets
from mlmigrate.errors import UsageError
from mlmigrate.storage.base import Entry, Part, Storage
from mlmigrate.storage.local import LocalStorage

__all__ = ["Entry", "LocalStorage", "Part", "Storage", "open_storage"]


def open_storage(place: str) -> Storage:
    """The storage that `place` names; nothing is written yet. Raises UsageError for a kind that we cannot reach."""
    if place.partition(":")[0] in OBJECT_STORES and ":" in place:
        raise UsageError(
            f"{hide_secrets(place)}: mlmigrate cannot keep an archive in an object store yet.",
            "Give a folder, for example ./archive",
        )
    return LocalStorage(Path(place))
