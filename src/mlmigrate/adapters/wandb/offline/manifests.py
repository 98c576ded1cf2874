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
_MOST = 10_000_000  # files of an artifact


def entries(path: Path) -> list[Entry] | None:
    """The entries, None when the file is not there or is no such list."""
    try:
        with gzip.open(path) as lines:
            return list(_entries(cast("BinaryIO", lines)))
    except (OSError, EOFError, ValueError, zlib.error):
        return None


def _entries(lines: BinaryIO) -> Iterator[Entry]:
    for _ in range(_MOST):
        line = lines.readline(_LONGEST)
        if not line:
            return
        told = json.loads(line)
        if not isinstance(told, dict):
            raise ValueError("no object")  # noqa: TRY004  as what is no JSON at all
        texts = {name: value for name, value in told.items() if isinstance(value, str)}
        size = told.get("size")
        yield Entry(
            texts.get("path", ""),
            texts.get("digest", ""),
            size if isinstance(size, int) else None,
            texts.get("local_path", ""),
            texts.get("ref", ""),
        )
