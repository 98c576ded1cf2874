"""When a run ended whose log does not say how long it took: when the last of its records was made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress

from mlmigrate.adapters.wandb.datalog.columns import TIME, typed
from mlmigrate.adapters.wandb.datalog.messages import DecodeError, Message, pb
from mlmigrate.adapters.wandb.moments import LATEST


def last(records: Iterable[bytes], started: int | None) -> int | None:
    """The latest time that these records tell, in ms; one before the start says nothing of the end."""
    told = [round(time * 1000) for record in records if 0 < (time := _time(record)) < LATEST]
    return max((time for time in told if started is None or time >= started), default=None)


def _time(record: bytes) -> float:
    """The seconds of a record; 0 when it tells none."""
    try:
        parsed = pb.Record.FromString(record)
    except DecodeError:
        return 0.0
    kind = parsed.WhichOneof("record_type")
    if kind == "history":
        return _of_row(parsed.history)
    if kind not in ("stats", "output", "output_raw"):
        return 0.0
    stamp = getattr(parsed, kind).timestamp
    return float(stamp.seconds + stamp.nanos / 1e9)


def _of_row(row: Message) -> float:
    for item in row.item:
        if (*item.nested_key,) in ((TIME,), ()) and TIME in (item.key, *item.nested_key):
            with suppress(ValueError, RecursionError):
                told = json.loads(item.value_json or typed(item))
                if isinstance(told, int | float) and abs(told) < LATEST:
                    return float(told)
    return 0.0
