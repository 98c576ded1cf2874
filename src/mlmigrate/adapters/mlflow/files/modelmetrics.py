"""The metric files of a logged model: "time value step run [dataset digest]", one line a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlmigrate.adapters.mlflow.files.lines import Bad, shortened

_INT64 = 1 << 63
_PLAIN = 4
_LINKED = 6
EXPECTED = 'not "time value step run [dataset digest]"'


@dataclass(frozen=True, slots=True)
class Line:
    """A point of a logged model. `name` and `digest` are those of its dataset."""

    timestamp: int
    value: float
    step: int
    run: str
    name: str | None = None
    digest: str | None = None

    @property
    def key(self) -> tuple[int, int, str]:
        """What tells a point from others of its metric in MLflow's table."""
        return self.timestamp, self.step, self.run


def lines_of(data: bytes) -> tuple[list[Line], list[Bad]]:
    """The points in a file, equal ones once, and its bad lines."""
    found: dict[str, Line] = {}  # by its text: no NaN equals another
    bad: list[Bad] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        stripped = line.strip()
        if not stripped:
            continue
        try:
            point = _line(stripped.split(b" "))
        except ValueError:
            bad.append(Bad(number, f"{EXPECTED}: {shortened(stripped)}"))
        else:
            found.setdefault(repr(point), point)
    return list(found.values()), bad


def _line(fields: Sequence[bytes]) -> Line:
    """A dataset's name may have spaces: its digest has none."""
    if len(fields) != _PLAIN and len(fields) < _LINKED:
        raise ValueError(len(fields))
    linked = len(fields) >= _LINKED
    return Line(
        _int(fields[0]),
        float(fields[1]),
        _int(fields[2]),
        _text(fields[3]),
        _text(b" ".join(fields[4:-1])) if linked else None,
        _text(fields[-1]) if linked else None,
    )


def _int(field: bytes) -> int:
    number = int(field)
    if not -_INT64 <= number < _INT64:
        raise ValueError(number)
    return number


def _text(field: bytes) -> str:
    return field.decode("utf-8", "backslashreplace")
