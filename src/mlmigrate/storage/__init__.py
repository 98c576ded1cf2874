"""Where the archive's bytes lie: `local` is a folder, `bucket` a place in an object store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlmigrate.address import OBJECT_STORES
from mlmigrate.storage.base import Entry, Part, Storage
from mlmigrate.storage.local import LocalStorage
from mlmigrate.storage.throttle import UNLIMITED, Throttle

__all__ = ["Entry", "LocalStorage", "Part", "Storage", "open_storage"]


def open_storage(place: str, env: Mapping[str, str], throttle: Throttle = UNLIMITED) -> Storage:
    """The storage that `place` names, with the credentials that `env` (one side's) leads to; nothing is written yet.

    Raises UsageError for what is no such place, Refused when no credentials are found.
    """
    if place.partition(":")[0] in OBJECT_STORES and ":" in place:
        from mlmigrate.storage.bucket import BucketStorage  # noqa: PLC0415  a folder needs none of it
        from mlmigrate.storage.objects import open_objects  # noqa: PLC0415  as above

        return BucketStorage(open_objects(place, env, throttle), lambda other: open_objects(other, env, throttle))
    return LocalStorage(Path(place))
