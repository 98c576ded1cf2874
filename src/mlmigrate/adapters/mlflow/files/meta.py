"""The meta.yaml files of a store, read safely and fast.

MLflow writes flat "key: value" lines; those are read here (seven times faster than YAML), exactly as
YAML would read them.  Anything else goes through YAML, with bounds: no aliases, no deep nesting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from mlmigrate.adapters.mlflow.files import disk
from mlmigrate.errors import BadData

MOST = 8 << 20
DEEPEST = 50
_EVENTS = 500_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = frozenset(("yes", "no", "on", "off", "true", "false", "null", "y", "n"))
_LINE = re.compile(
    r"([a-z_]{2,}): (?:"
    r"(?P<null>null)|(?P<int>0|-?[1-9][0-9]{0,17})|'(?P<quoted>[ -&(-~]*)'|(?P<list>\[\])"
    r"|(?P<hex>(?!0b)[0-9a-f]*[a-f][0-9a-f]*)|(?P<plain>[A-Za-z/][!-~]*(?: [!-~]+)*))"
)
_INT64 = 1 << 63

Meta = dict[str, object]


@dataclass(frozen=True, slots=True)
class Found:
    """What a meta.yaml says. `flaw` tells why it, or the rest of it, could not be read; "" when all is well."""

    meta: Meta
    flaw: str = ""


def load(path: str) -> Found:
    """The mapping in a meta.yaml; of a torn one what its whole lines say."""
    try:
        data = disk.read(path, MOST)
    except BadData:
        return Found({}, f"larger than {MOST >> 20} MiB")
    except OSError as error:
        return Found({}, "missing" if isinstance(error, FileNotFoundError) else disk.why(error))
    return parse(data)


def parse(data: bytes) -> Found:
    """As `load`, from the bytes."""
    if not data.strip(b" \t\r\n\0"):
        return Found({}, "empty")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _salvaged(data.decode("utf-8", "replace"), "not UTF-8")
    meta = flat(text)
    if meta is not None:
        return Found(meta)
    return _by_yaml(text)


def flat(text: str) -> Meta | None:
    """The mapping of a text of plain lines; None when only YAML can tell what it means."""
    meta: Meta = {}
    lines = text.split("\n")
    if lines.pop():  # no line end after the last line: perhaps torn
        return None
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None or found[1] in _WORDS:
            return None
        kind = found.lastgroup
        value = found[kind] if kind else ""
        if kind == "int":
            meta[found[1]] = int(value)
        elif kind == "null":
            meta[found[1]] = None
        elif kind == "list":
            meta[found[1]] = []
        elif kind in ("quoted", "hex"):
            meta[found[1]] = value
        elif ": " in value or " #" in value or value.endswith(":") or value.lower() in _WORDS:
            return None
        else:
            meta[found[1]] = value
    return meta


def _by_yaml(text: str) -> Found:
    try:
        meta = _yaml(text)
    except BadData as error:
        return Found({}, str(error))
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError, RecursionError):
        return _salvaged(text, "torn or no YAML")
    if not isinstance(meta, dict):
        return Found({}, "no mapping")
    return Found({str(key): value for key, value in meta.items()})


def _salvaged(text: str, flaw: str) -> Found:
    """What the lines before the last, or those that stand alone, say."""
    meta: Meta = {}
    for line in text.split("\n")[:-1]:
        meta |= flat(line.rstrip("\r") + "\n") or {}
    return Found(meta, flaw)


def _yaml(text: str) -> object:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise BadData("holds YAML aliases")
        if depth > DEEPEST or count > _EVENTS:
            raise BadData("nested too deep or too long")
    return yaml.load(text, Loader=_LOADER)  # noqa: S506 - the safe loader, as above


def time(value: object) -> int | None:
    """Milliseconds since the epoch; None when the value is no time."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        told = int(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
    return told if told is not None and -_INT64 <= told < _INT64 else None


def word(value: object) -> str:
    """A field as text; "" for none."""
    return "" if value is None else str(value)
