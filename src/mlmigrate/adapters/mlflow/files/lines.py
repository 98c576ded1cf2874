"""Metric lines one by one: slow, and able to say what is wrong with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[int, float, int, str | None, str | None]

_INT64 = 1 << 63
_LINKED = 5
_CUT = 60


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is no point."""

    number: int
    because: str


def slowly(data: bytes, first: int = 1) -> tuple[list[Point], list[Bad]]:
    """The points in the lines of a metric file, and its bad lines; `first` is the number of the first line."""
    points: list[Point] = []
    bad: list[Bad] = []
    for number, line in enumerate(data.split(b"\n"), first):
        stripped = line.strip()
        if not stripped:
            continue
        try:
            points.append(_point(stripped.split(b" ")))
        except ValueError:
            bad.append(Bad(number, f'not "time value [step [dataset digest]]": {shortened(stripped)}'))
    return points, bad


def _point(fields: Sequence[bytes]) -> Point:
    if len(fields) not in (2, 3, _LINKED):
        raise ValueError(len(fields))
    step = _int(fields[2]) if len(fields) > 2 else 0  # noqa: PLR2004
    name, digest = (_name(fields[3]), _name(fields[4])) if len(fields) == _LINKED else (None, None)
    return _int(fields[0]), float(fields[1]), step, name, digest


def _int(field: bytes) -> int:
    number = int(field)
    if not -_INT64 <= number < _INT64:
        raise ValueError(number)
    return number


def _name(field: bytes) -> str:
    return field.decode("utf-8", "backslashreplace")


def shortened(line: bytes) -> str:
    """A line from outside for a message: ASCII, cut."""
    plain = ascii(line.decode("latin-1"))
    return plain if len(plain) <= _CUT else plain[:_CUT] + "..."
