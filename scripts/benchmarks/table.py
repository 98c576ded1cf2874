"""One figure after another as a table, and all of them as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

HEAD = ("figure", "workload", "mlmigrate", "beside it", "ratio", "goal", "")


@dataclass(frozen=True)
class Row:
    """A figure. `ratio` is met when it is at least (or, `at_most`, at most) the goal; goal None: told, not judged."""

    figure: str
    workload: str
    ours: str
    theirs: str
    ratio: float
    goal: float | None
    at_most: bool = False
    unit: str = "x"
    detail: dict[str, object] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    def cells(self) -> tuple[str, ...]:
        sign = "" if self.goal is None else "<= " if self.at_most else ">= "
        goal = "" if self.goal is None else f"{sign}{self.goal:g}{self.unit}"
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return (self.figure, self.workload, self.ours, self.theirs, f"{self.ratio:.3g}{self.unit}", goal, verdict)


def markdown(rows: list[Row]) -> str:
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    texts = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "-|-".join("-" * width for width in widths)
    return (
        "\n".join(f"| {text} |" for text in texts[:1])
        + f"\n|-{rule}-|\n"
        + "\n".join(f"| {text} |" for text in texts[1:])
    )


def write_json(rows: list[Row], file: Path, machine: dict[str, object]) -> None:
    whole = {"machine": machine, "figures": [{**asdict(row), "met": row.met} for row in rows]}
    file.write_text(json.dumps(whole, indent=2, default=str) + "\n")
