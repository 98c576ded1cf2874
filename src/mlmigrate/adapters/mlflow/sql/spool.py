"""Points laid aside: in memory while they are few, then in a temporary file that has no name."""

from __future__ import annotations

import tempfile
from typing import IO, TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = 32 << 20  # bytes in memory


class Spool:
    """Batches of one schema, kept in their order; they can be taken out as often as wanted."""

    def __init__(self) -> None:
        self.rows = 0
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Lays one more batch aside."""
        self.rows += batch.num_rows
        if self._writer is not None:
            self._writer.write_batch(batch)
            return
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > ROOM:
            self._overflow(batch.schema)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All of them, from the first."""
        if self._file is None:
            yield from self._batches
            return
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._file.seek(0)
        yield from pa.ipc.open_stream(pa.PythonFile(self._file, "r"))

    def close(self) -> None:
        """Gives the room back."""
        self._batches = []
        if self._file is not None:
            self._file.close()

    def _overflow(self, schema: pa.Schema) -> None:
        self._file = tempfile.TemporaryFile(prefix="mlmigrate-")  # noqa: SIM115 - closed by close()
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), schema)
        for batch in self._batches:
            self._writer.write_batch(batch)
        self._batches = []
