"""Lists of an artifact's files that were too long for the log: gzip, a JSON object a line, as the SDK writes them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from mlmigrate.adapters.wandb.datalog.state import Entry

_LONGEST = 1 << 20  # bytes of a line
_MOST = 1 << 28  # bytes of all of them: gzip makes terabytes of little


def entries(path: Path) -> list[Entry] | None:
    """The entries, None when the file is not there or is no such list."""
    try:
        if not path.is_file():  # to open a pipe would take forever
            return None
        with gzip.open(path) as lines:
            return list(_entries(cast("BinaryIO", lines)))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error):
        return None


def _entries(lines: BinaryIO) -> Iterator[Entry]:
    read = 0
    while line := lines.readline(_LONGEST):
        read += len(line)
        if read > _MOST:
            raise ValueError("too much")
        told = json.loads(line)
        if not isinstance(told, dict):
            raise ValueError("no object")  # noqa: TRY004  as what is no JSON at all
        texts = {name: value for name, value in told.items() if isinstance(value, str)}
        size, extra = told.get("size"), told.get("extra")
        yield Entry(
            texts.get("path", ""),
            texts.get("digest", ""),
            size if isinstance(size, int) else None,
            texts.get("local_path", ""),
            texts.get("ref", ""),
            extra if isinstance(extra, dict) else {},
        )
