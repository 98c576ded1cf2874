"""What a run's folder tells beside its log: config.yaml, wandb-summary.json, wandb-metadata.json, a sweep's choice.

Anybody may have written these: YAML makes plain values only, and neither size nor nesting is without a bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from mlmigrate.adapters.wandb.offline.files import read
from mlmigrate.adapters.wandb.shape import File

LARGEST = 16 << 20
_MOST = 250_000  # values in one file: YAML's aliases make many of few
_DEEPEST = 64
_TOO_MUCH = "it has too many values, or they are nested too deep"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Bad(ValueError):
    """A file that is not what its name says; the message says why."""


def config(data: bytes) -> dict[str, Any]:
    """config.yaml as plain values, `_wandb` among them. Raises Bad."""
    try:
        _bounded(data)
        loaded = yaml.load(data, Loader=_LOADER)  # noqa: S506  a safe loader, the one in C where there is one
    except Bad:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Bad("it is no YAML") from error
    plain = _Plain().value(loaded, 0)
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise Bad("it is no mapping")
    return {key: _valued(value) for key, value in plain.items() if key != "wandb_version"}


def mapping(data: bytes) -> dict[str, Any]:
    """A JSON object as plain values. Raises Bad."""
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Bad("it is no JSON") from error
    if not isinstance(loaded, dict):
        raise Bad("it is no mapping")
    plain: dict[str, Any] = _Plain().value(loaded, 0)
    return plain


def small(files: Sequence[File], path: str) -> bytes | None:
    """The file, when it is there and not too large."""
    return read(files, path, LARGEST)


def named_time(text: str) -> int | None:
    """The time in the name of a run's folder, as if it were UTC; None for what is none."""
    try:
        at = datetime.strptime(text, "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(at.timestamp() * 1000)


def chosen(file: Path) -> dict[str, Any]:
    """What a sweep chose for a run. Raises Bad."""
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise Bad(f"it cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise Bad(f"it is larger than {LARGEST} bytes")
    return config(data)


def _valued(value: object) -> object:
    return value["value"] if isinstance(value, Mapping) and "value" in value else value


def _bounded(data: bytes) -> None:
    """Looks through YAML before anything is made of it. Raises Bad.

    A node takes hundreds of times the bytes of its text, and a merge ("<<"), which W&B never writes, copies all that
    it names, so that a few lines of merges fill any memory.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(data, Loader=_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if number > _MOST or depth > _DEEPEST:
            raise Bad(_TOO_MUCH)
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise Bad("it merges mappings")


class _Plain:
    """Makes what JSON can hold of what YAML gives, so many values at most."""

    def __init__(self) -> None:
        self._left = _MOST

    def value(self, given: object, depth: int) -> Any:  # noqa: ANN401  any JSON value
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise Bad(_TOO_MUCH)
        if isinstance(given, dict):
            return {str(key): self.value(one, depth + 1) for key, one in given.items()}
        if isinstance(given, list | tuple | set):
            return [self.value(one, depth + 1) for one in given]
        if isinstance(given, date):
            return given.isoformat()
        if isinstance(given, bytes):
            return given.decode("utf-8", "replace")
        return given
