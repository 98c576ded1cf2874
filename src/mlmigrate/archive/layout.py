"""What lies where in an archive, in which columns. `docs/archive.md` says the same for everybody.

mlmigrate.json                  the version of the format; written first
packs/<pack>/points.parquet     every point of the pack's runs, in log order, and other tables
packs/<pack>.json               the commit, written last: what no commit names does not exist
blobs/<aa>/<sha256>             artifact bytes, by content
checkpoints/<n>-<sha256>.jsonl.zst   the commits so far in one file: a copy, to open an archive quickly
writers/<n>.json                who writes into an archive in an object store just now
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import msgspec
import pyarrow as pa

from mlmigrate import __version__
from mlmigrate.errors import BadData, Damaged
from mlmigrate.model import POINTS

FORMAT = 1
MANIFEST = "mlmigrate.json"
PACKS, BLOBS, CHECKPOINTS, WRITERS = "packs", "blobs", "checkpoints", "writers"
WRITER = f"mlmigrate {__version__}"
MOST_MANIFEST = 1 << 16
MOST_COMMIT = 1 << 28  # bytes of one commit: some 500,000 runs
MOST_CHECKPOINT = 1 << 32  # bytes of one checkpoint, unpacked

_MAP = pa.map_(pa.utf8(), pa.utf8())
# what is kept in tables; a pack has only those that have rows, and always `runs` when it has runs
SCHEMAS: dict[str, pa.Schema] = {
    "runs": pa.schema(
        [
            ("id", pa.utf8()),
            ("experiment", pa.utf8()),
            ("name", pa.utf8()),
            ("origin", pa.utf8()),
            ("stamp", pa.utf8()),
            ("status", pa.utf8()),
            ("status_word", pa.utf8()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("user", pa.utf8()),
            ("deleted", pa.bool_()),
            ("deleted_at", pa.int64()),
            ("artifact_uri", pa.utf8()),
        ]
    ),
    "attributes": pa.schema(
        [
            ("run", pa.utf8()),
            ("role", pa.utf8()),
            ("name", pa.utf8()),
            ("type", pa.utf8()),
            ("value", pa.utf8()),
        ]
    ),
    "inputs": pa.schema(
        [
            ("run", pa.utf8()),
            ("name", pa.utf8()),
            ("digest", pa.utf8()),
            ("source_type", pa.utf8()),
            ("source", pa.utf8()),
            ("schema", pa.utf8()),
            ("profile", pa.utf8()),
            ("tags", _MAP),
        ]
    ),
    "points": POINTS,
    "artifacts": pa.schema(
        [
            ("owner", pa.utf8()),
            ("path", pa.utf8()),
            ("size", pa.int64()),
            ("sha256", pa.utf8()),
        ]
    ),
    "records": pa.schema(
        [
            ("run", pa.utf8()),
            ("kind", pa.utf8()),
            ("id", pa.utf8()),
            ("owner", pa.utf8()),
            ("body", pa.utf8()),
        ]
    ),
    "experiments": pa.schema(
        [
            ("id", pa.utf8()),
            ("name", pa.utf8()),
            ("tags", _MAP),
            ("created", pa.int64()),
            ("updated", pa.int64()),
            ("deleted", pa.bool_()),
            ("artifact_root", pa.utf8()),
        ]
    ),
}

_PACK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,150}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLE = re.compile(r"[a-z][a-z0-9_]{0,40}\.parquet")
_COMMIT = re.compile(rf"{PACKS}/({_PACK.pattern})\.json")
_WRITER = re.compile(rf"{WRITERS}/([0-9]{{1,18}})\.json")
_CHECKPOINT = re.compile(rf"{CHECKPOINTS}/[0-9]{{20}}-({_SHA256.pattern})\.jsonl\.zst")


def pack_folder(pack: str) -> str:
    """Where the tables of a pack lie. Raises BadData for a name that no pack can have."""
    return f"{PACKS}/{_fit(_PACK, pack, 'pack')}"


def commit_name(pack: str) -> str:
    """Where the commit of a pack lies."""
    return pack_folder(pack) + ".json"


def table_name(pack: str, file: str) -> str:
    """Where a table of a pack lies."""
    return f"{pack_folder(pack)}/{_fit(_TABLE, file, 'table')}"


def blob_name(sha256: str) -> str:
    """Where the bytes of this digest lie."""
    return f"{BLOBS}/{_fit(_SHA256, sha256, 'blob')[:2]}/{sha256}"


def checkpoint_name(sequence: int, data: bytes) -> str:
    """The name of a checkpoint of these bytes, in which no commit is later than `sequence`."""
    return f"{CHECKPOINTS}/{sequence:020d}-{sha256_of(data)}.jsonl.zst"


def writer_name(number: int) -> str:
    """Where a writer says that it is at work."""
    return f"{WRITERS}/{number}.json"


def writer_number(name: str) -> int | None:
    """The number of the writer whose file this is; None for another file."""
    found = _WRITER.fullmatch(name)
    return int(found[1]) if found else None


def is_pack(pack: str) -> bool:
    """Whether a pack can be called so."""
    return _PACK.fullmatch(pack) is not None


def is_blob(sha256: str) -> bool:
    """Whether a blob can be called so."""
    return _SHA256.fullmatch(sha256) is not None


def pack_of_commit(name: str) -> str | None:
    """The pack whose commit this file is; None for another file."""
    found = _COMMIT.fullmatch(name)
    return found[1] if found else None


def sha256_of_checkpoint(name: str) -> str | None:
    """The digest in the name of a checkpoint; None for another file."""
    found = _CHECKPOINT.fullmatch(name)
    return found[1] if found else None


def sha256_of(data: bytes) -> str:
    """The digest of some bytes, as we write digests."""
    return hashlib.sha256(data).hexdigest()


def sealed(what: str, value: object) -> bytes:
    """A JSON file that shows when it is damaged: {"sha256":"<of the value's bytes>","<what>":<value>}."""
    body = msgspec.json.encode(value)
    return b'{"sha256":"%s","%s":%s}\n' % (sha256_of(body).encode(), what.encode(), body)


def unsealed(what: str, data: bytes, name: str) -> bytes:
    """The bytes of the value in a sealed file. Raises Damaged when one bit is not as it was written."""
    head, middle, tail = b'{"sha256":"', b'","%s":' % what.encode(), b"}\n"
    at = len(head) + 64
    body = data[at + len(middle) : -len(tail)]
    if data != head + sha256_of(body).encode() + middle + body + tail:
        raise damaged(name, "it is not as it was written (sha256 differs)")
    return body


def manifest(created: str) -> bytes:
    """The file mlmigrate.json of a new archive."""
    return sealed("archive", {"format": FORMAT, "created": created, "by": WRITER})


def check_manifest(data: bytes, shown: str) -> None:
    """Raises BadData when the archive is of a newer format, Damaged when the file is damaged."""
    version = _version(data)
    if isinstance(version, int) and version > FORMAT:
        raise BadData(
            f"{shown} is an archive of format {version}; this mlmigrate reads up to {FORMAT}.",
            'Upgrade it: pip install -U "mlmigrate"',
        )
    unsealed("archive", data, MANIFEST)
    if version != FORMAT:
        raise damaged(MANIFEST, f"it names format {version!r:.40}")


def damaged(name: str, because: str) -> Damaged:
    """The error for a file that is not what was written."""
    return Damaged(f"{name}: {because}.", "The archive is damaged there; export what it held again, with --restart.")


def _version(data: bytes) -> Any:  # noqa: ANN401  whatever stands there
    try:
        return json.loads(data)["archive"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _fit(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise BadData(f"{text!r:.200} is no name of a {what} in an archive.")
    return text
