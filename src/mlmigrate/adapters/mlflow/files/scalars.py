"""One field of a meta.yaml changed in its text: all else stays as it is, byte for byte."""

from __future__ import annotations

import re

import yaml

from mlmigrate.adapters.mlflow.files import meta

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def replaced(data: bytes, field: str, old: str, new: str) -> bytes | None:
    """`data` with `new` where `old` stands in the mapping's field; None when `old` does not stand there.

    Also None for a file that is torn or no YAML: what it says cannot be told for certain.
    """
    found = meta.parse(data)
    if found.flaw or field not in found.meta or meta.word(found.meta[field]) != old:
        return None
    wanted = {**found.meta, field: new}
    text = data.decode("utf-8")
    for way in (_in_line, _in_span, _anew):  # the gentlest first
        made = way(text, field, new)
        if made is not None and _says(made, wanted):
            return made.encode("utf-8")
    return None


def _in_line(text: str, field: str, new: str) -> str | None:
    """The field's one line set anew, where all lines are plain."""
    if meta.flat(text) is None:
        return None
    lines = list(re.finditer(rf"^{re.escape(field)}: (.*)$", text, re.MULTILINE))
    if len(lines) != 1:
        return None
    start, end = lines[0].span(1)
    return text[:start] + _scalar(field, new, text[start:end]) + text[end:]


def _in_span(text: str, field: str, new: str) -> str | None:
    """The field's value set anew where YAML finds it: quoted, folded over lines, or among nested things."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # the one that tells places in characters
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(root, yaml.MappingNode):
        return None
    values = [value for key, value in root.value if isinstance(key, yaml.ScalarNode) and key.value == field]
    if len(values) != 1 or not isinstance(values[0], yaml.ScalarNode) or values[0].style in ("|", ">"):
        return None
    start, end = values[0].start_mark.index, values[0].end_mark.index
    return text[:start] + _scalar(field, new, text[start:end]) + text[end:]


def _anew(text: str, field: str, new: str) -> str | None:
    """The whole file written anew, as MLflow would."""
    try:
        said = yaml.load(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    return _dumped({**said, field: new}) if isinstance(said, dict) else None


def _scalar(field: str, new: str, old: str) -> str:
    """A text as MLflow's own writer puts it behind the field's name; quoted when the old one was."""
    if old[:1] == old[-1:] == "'" and new.isprintable() and "\n" not in old:
        return "'" + new.replace("'", "''") + "'"
    return _dumped({field: new}).removeprefix(f"{field}:").removesuffix("\n").lstrip(" ")


def _dumped(mapping: dict[str, object]) -> str:
    return str(yaml.dump(mapping, Dumper=_DUMPER, default_flow_style=False, allow_unicode=True))


def _says(text: str, wanted: meta.Meta) -> bool:
    try:
        found = meta.parse(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    return not found.flaw and found.meta == wanted
