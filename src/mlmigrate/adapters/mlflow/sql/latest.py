"""The latest point of each key of each run, as MLflow's latest_metrics holds it: the greatest (step, timestamp, value).

Found by whole columns: the greatest step of each series, among its points the greatest time, among
those the greatest value.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")
_HELD = 200_000  # rows between two sweeps
_ORDER = ("step", "timestamp", "value")


class Latest:
    """Takes batches of the columns of metrics; gives a table of the latest of each series."""

    def __init__(self) -> None:
        self._held: list[pa.Table] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Looks at more points."""
        if not batch.num_rows:
            return
        found = _greatest(pa.Table.from_batches([batch]))
        self._held.append(found)
        self._rows += len(found)
        if self._rows > _HELD and len(self._held) > 1:
            self._sweep()

    def table(self) -> pa.Table | None:
        """The latest of each series so far."""
        self._sweep()
        return self._held[0].select(COLUMNS) if self._held else None

    def _sweep(self) -> None:
        if len(self._held) > 1:
            self._held = [_greatest(pa.concat_tables(self._held))]
            self._rows = len(self._held[0])


def _greatest(table: pa.Table) -> pa.Table:
    """One row for each run and key."""
    table = table.unify_dictionaries().combine_chunks()
    for column in _ORDER:
        series = _series(table)
        best = pa.table({"series": series, "x": table.column(column)}).group_by("series", use_threads=False)
        most = best.aggregate([("x", "max")]).column("x_max").combine_chunks()
        table = table.filter(pc.equal(table.column(column), most.take(series))).combine_chunks()
    first = pc.unique(_series(table))
    if len(first) == len(table):
        return table
    places = pa.table({"series": _series(table), "row": pa.array(range(len(table)))})
    rows = places.group_by("series", use_threads=False).aggregate([("row", "min")]).column("row_min")
    return table.take(rows)


def _series(table: pa.Table) -> pa.Array:
    """The number of each row's series; they are numbered as they come."""
    runs, keys = (table.column(name).combine_chunks() for name in ("run_uuid", "key"))
    width = max(1, len(keys.dictionary))
    numbers = pc.add(pc.multiply(runs.indices.cast(pa.int64()), width), keys.indices.cast(pa.int64()))
    return numbers.dictionary_encode().indices
