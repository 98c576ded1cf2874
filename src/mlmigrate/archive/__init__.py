"""The neutral archive: a folder, here or in an object store, that any target can be filled from. An adapter.

packs/<pack>/points.parquet   every point of the pack's runs, in log order
packs/<pack>.json             the commit, written last: what it does not name does not exist
blobs/<aa>/<sha256>           artifact bytes, by content

`docs/archive.md` is the format; `tools` lists, checks and empties an archive.
"""

from __future__ import annotations

from mlmigrate.adapters.base import Context
from mlmigrate.address import Address
from mlmigrate.archive.reader import ArchiveSource
from mlmigrate.archive.writer import ArchiveTarget
from mlmigrate.storage import open_storage

__all__ = ["ArchiveSource", "ArchiveTarget", "open_source", "open_target"]


def open_source(address: Address, context: Context) -> ArchiveSource:
    """The archive at `address`. Raises NotFound, and BadData when it is of a newer format."""
    return ArchiveSource(open_storage(address.place, context.env, context.throttle))


def open_target(address: Address, context: Context) -> ArchiveTarget:
    """The archive at `address`, which may not be there yet. Raises Conflict when something else is."""
    storage = open_storage(address.place, context.env, context.throttle)
    return ArchiveTarget(storage, context.again, context.settings.part_size)
