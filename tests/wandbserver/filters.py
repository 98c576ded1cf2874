"""The `filters` and `order` of lists: the part of MongoDB's language that W&B documents."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .store import Refused, Run

_NAMES: dict[str, Callable[[Run], Any]] = {
    "name": lambda run: run.name,
    "displayName": lambda run: run.display,
    "display_name": lambda run: run.display,
    "state": lambda run: run.state,
    "group": lambda run: run.group,
    "jobType": lambda run: run.job_type,
    "job_type": lambda run: run.job_type,
    "tags": lambda run: run.tags,
    "sweep": lambda run: run.sweep,
    "host": lambda run: run.host,
    "username": lambda run: run.user,
    "createdAt": lambda run: run.created,
    "created_at": lambda run: run.created,
    "heartbeatAt": lambda run: run.heartbeat,
    "heartbeat_at": lambda run: run.heartbeat,
}
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, wanted: _same(value, wanted),  # noqa: PLW0108  it is made below
    "$ne": lambda value, wanted: not _same(value, wanted),
    "$in": lambda value, wanted: any(_same(value, one) for one in wanted),
    "$nin": lambda value, wanted: not any(_same(value, one) for one in wanted),
    "$gt": lambda value, wanted: value is not None and value > wanted,
    "$gte": lambda value, wanted: value is not None and value >= wanted,
    "$lt": lambda value, wanted: value is not None and value < wanted,
    "$lte": lambda value, wanted: value is not None and value <= wanted,
    "$exists": lambda value, wanted: (value is not None) == wanted,
    "$regex": lambda value, wanted: isinstance(value, str) and re.search(wanted, value) is not None,
}


def runs(runs: list[Run], filters: str | None, order: str | None) -> list[Run]:
    """Those that match, the newest first unless told otherwise."""
    wanted = json.loads(filters or "{}")
    found = [run for run in runs if _matches(run, wanted)]
    order = order or "-created_at"
    key = order.lstrip("+-")
    numbered = {run.name: run.number for run in found}

    def rank(run: Run) -> tuple[bool, Any, int]:
        value = value_of(run, key)
        return (value is not None, value if value is not None else 0, numbered[run.name])

    return sorted(found, key=rank, reverse=order.startswith("-"))


def _matches(run: Run, wanted: dict[str, Any]) -> bool:
    for name, test in wanted.items():
        if name in ("$and", "$or"):
            if not (all if name == "$and" else any)(_matches(run, one) for one in test):
                return False
        elif not _holds(value_of(run, name), test):
            return False
    return True


def _holds(value: Any, test: Any) -> bool:
    if not isinstance(test, dict) or not any(key.startswith("$") for key in test):
        return _same(value, test)
    unknown = [key for key in test if key not in _TESTS]
    if unknown:
        raise Refused(f"unknown operator {unknown[0]} in filters")
    return all(_TESTS[key](value, wanted) for key, wanted in test.items())


def value_of(run: Run, name: str) -> Any:
    """What a filter's name means of a run. Raises Refused for a name that means nothing."""
    if name in _NAMES:
        return _NAMES[name](run)
    column, _, path = name.partition(".")
    if column == "config":
        key, _, rest = path.partition(".")
        entry = json.loads(run.config).get(key)
        value = entry.get("value") if isinstance(entry, dict) else entry
        return _dig(value, rest.removeprefix("value").lstrip("."))
    if column in ("summary_metrics", "summaryMetrics", "summary"):
        return _dig(json.loads(run.summary), path)
    raise Refused(f"unknown name {name!r} in filters")


def _dig(value: Any, path: str) -> Any:
    if not path or value is None:
        return value
    if isinstance(value, dict) and path in value:
        return value[path]
    head, _, rest = path.partition(".")
    return _dig(value.get(head), rest) if isinstance(value, dict) and rest else None


def _same(value: Any, wanted: Any) -> bool:
    return value == wanted or (isinstance(value, list) and wanted in value)
