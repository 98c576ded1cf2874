"""A run's history as the API gives it: by ranges of steps, sampled, by columns, exported as parquet.

Where lines were exported, pages by ranges of steps tell those that were not: the SDK joins both and drops nothing.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from .store import Run, Store, loads, plain, worded

SAMPLES = 500  # where nobody says how many


def page(run: Run, first: int | None, last: int | None, samples: int | None, start: int) -> list[str]:
    """Lines from `start` on with first <= _step < last; of more than `samples` so many, evenly chosen."""
    if run.ordered:
        low = bisect_left(run.steps, first, start) if first is not None else start
        high = bisect_left(run.steps, last, start) if last is not None else len(run.steps)
        lines: Sequence[str] = run.history[low:high]
    else:
        rows = sorted(zip(run.steps[start:], run.history[start:], strict=True), key=lambda row: row[0])
        lines = [line for step, line in rows if step >= (first or 0) and (last is None or step < last)]
    return [plain(line) for line in sampled(lines, samples)]


def sampled(lines: Sequence[str], samples: int | None) -> Sequence[str]:
    """All of them, or `samples` of them from the first to the last."""
    wanted = SAMPLES if samples is None else samples
    if len(lines) <= wanted or wanted < 1:
        return lines if wanted else []
    if wanted == 1:
        return lines[:1]
    return [lines[n * (len(lines) - 1) // (wanted - 1)] for n in range(wanted)]


def columns(run: Run, spec: dict[str, Any], start: int) -> list[dict[str, Any]]:
    """Rows from line `start` on that have all of the keys, with these keys alone. `maxStep` is among them."""
    names = list(dict.fromkeys(spec.get("keys") or []))
    first, last = spec.get("minStep", 0), spec.get("maxStep")
    found = []
    if run.ordered:
        start = bisect_left(run.steps, first, start)
    for at in range(start, len(run.steps)):
        step, line = run.steps[at], run.history[at]
        if last is not None and step > last and run.ordered:
            break
        if step < first or (last is not None and step > last):
            continue
        row = loads(plain(line))
        values = {name: _dig(row, name) for name in names}
        if not names or None not in values.values():
            found.append(values if names else row)
    return list(sampled(found, spec.get("samples")))  # type: ignore[arg-type]  # of whatever


def _dig(row: Any, name: str) -> Any:
    """The value under a key, which may be the joined names of nested keys."""
    if not isinstance(row, dict):
        return None
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    return _dig(row.get(head), rest) if rest else None


def keys(run: Run) -> dict[str, Any] | None:
    """Which keys there are, how often, of which types; None where there is no line."""
    if not run.history:
        return None
    for line in run.history[run.counted :]:
        for key, value in loads(line).items():
            _count(run.counts, key, value)
    run.counted = len(run.history)
    told = {key: {"typeCounts": list(types.values()), "monotonic": False} for key, types in run.counts.items()}
    return {"sets": [], "keys": told, "lastStep": run.steps[-1] if run.ordered else max(run.steps)}


def _count(found: dict[str, dict[str, Any]], key: str, value: Any) -> None:
    if isinstance(value, dict) and "_type" not in value:
        for name, one in value.items():
            _count(found, f"{key}.{name}", one)
        return
    kind = _kind(value)
    types = found.setdefault(key, {})
    types.setdefault(kind, {"type": kind, "count": 0})["count"] += 1


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "boolean" if value is not None else "nil"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, dict):
        return str(value["_type"])
    return "list" if isinstance(value, list) else "string"


def live(run: Run, names: list[str]) -> list[dict[str, Any]]:
    """Of the lines that are not exported yet, these keys."""
    lines = run.history[sum(run.exported) :]
    if names == ["_step"]:
        return [{"_step": step} for step in run.steps[sum(run.exported) :]]
    rows = (loads(plain(line)) for line in lines)
    return [{name: row[name] for name in names if name in row} for row in rows]


def export(store: Store, run: Run, parts: list[int]) -> None:
    """Exports the first lines: a parquet file for each of `parts`, with so many."""
    run.exported, run.exports = parts, []
    start = 0
    for count in parts:
        run.exports.append(store.keep(_parquet(run.history[start : start + count])))
        start += count


def _parquet(lines: list[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in lines]
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({name: _column(pa, [row.get(name) for row in rows]) for name in names})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _column(pa: Any, values: list[Any]) -> Any:
    """Numbers as int64 or float64, else what fits all; what does not fit one type as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else json.dumps(worded(value)) for value in values], pa.string())
