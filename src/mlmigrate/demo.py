"""A small estate to try things on: an MLflow file store, written by hand, with what real stores have.

Three experiments, twelve runs: nested ones, NaN and infinities, a repeated point, a deleted run, a run that
is still running, names in several scripts, and artifacts, one of them in two runs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import yaml

BEGIN = 1_767_225_600_000  # 2026-01-01, in ms
MINUTE = 60_000
STATUS = {"RUNNING": 1, "FINISHED": 3, "FAILED": 4, "KILLED": 5}  # as MLflow numbers them
WEIGHTS = random.Random(7).randbytes(200_000)  # noqa: S311  no secret: the same bytes each time
MODEL = "flavors:\n  python_function:\n    loader_module: demo\n"

Point = tuple[int, float, int]  # timestamp, value, step


@dataclass(frozen=True, slots=True)
class DemoRun:
    """One run to be written."""

    experiment: str
    name: str
    status: str = "FINISHED"
    parent: str = ""
    deleted: bool = False
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    artifacts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The same each time."""
        return _id(f"{self.experiment}/{self.name}")


def make(folder: Path) -> Path:
    """Writes the estate into `folder`/mlruns and gives that."""
    store = folder / "mlruns"
    runs = estate()
    for number, name in enumerate(dict.fromkeys(run.experiment for run in runs)):
        home = store / str(number)
        _text(home / "meta.yaml", _experiment(number, name, home))
        for place, run in enumerate(one for one in runs if one.experiment == name):
            _write(home, number, BEGIN + (number * 100 + place) * 10 * MINUTE, run)
    return store


def estate() -> list[DemoRun]:
    """The runs."""
    return [*_vision(), *_tuning(), *_unicode()]


def _vision() -> list[DemoRun]:
    files = {"model/MLmodel": MODEL.encode(), "model/weights.bin": WEIGHTS, "notes.txt": b"first try\n"}
    bad = ((BEGIN, 1.0, 0), (BEGIN + 1, math.nan, 1), (BEGIN + 2, math.inf, 2), (BEGIN + 3, -math.inf, 3))
    return [
        DemoRun("vision", "baseline", params={"lr": "0.1"}, metrics=_curves(1, 200), artifacts=files),
        DemoRun("vision", "wider", params={"lr": "0.05"}, metrics=_curves(2, 200), artifacts=files),
        DemoRun("vision", "diverged", "FAILED", params={"lr": "10"}, metrics={"loss": bad}),
        DemoRun("vision", "still at it", "RUNNING", params={"lr": "0.01"}, metrics=_curves(3, 50)),
        DemoRun("vision", "a mistake", "KILLED", deleted=True, params={"lr": "nan"}),
    ]


def _tuning() -> list[DemoRun]:
    children = [
        DemoRun("tuning", f"trial {n}", parent="sweep", params={"depth": str(n)}, metrics=_curves(10 + n, 20))
        for n in range(4)
    ]
    return [DemoRun("tuning", "sweep", tags={"owner": "team A"}), *children]


def _unicode() -> list[DemoRun]:
    twice = ((BEGIN, 0.5, 0), (BEGIN, 0.25, 0), (BEGIN + 1, 0.125, 2**53 + 1))
    return [
        DemoRun(
            "prévision 予測",
            "été",
            params={"langue": "français", "empty": "", "lines": "one\ntwo"},
            metrics={"précision": twice},
            artifacts={"données/résumé.csv": "clé,valeur\né,1\n".encode()},
        ),
        DemoRun("prévision 予測", "nothing in it"),
    ]


def _curves(seed: int, steps: int) -> dict[str, tuple[Point, ...]]:
    noise = random.Random(seed)  # noqa: S311
    losses = [math.exp(-3 * step / steps) + 0.05 * noise.random() for step in range(steps)]
    return {
        "train/loss": tuple((BEGIN + step * 1000, loss, step) for step, loss in enumerate(losses)),
        "train/accuracy": tuple((BEGIN + step * 1000, 1 - loss / 2, step) for step, loss in enumerate(losses)),
    }


def _write(home: Path, number: int, start: int, run: DemoRun) -> None:
    place = home / run.id
    _text(place / "meta.yaml", _meta(place, number, start, run))
    for folder in ("params", "metrics", "tags", "artifacts"):
        (place / folder).mkdir()
    for name, value in run.params.items():
        _text(place / "params" / name, value)
    parent = {"mlflow.parentRunId": _id(f"{run.experiment}/{run.parent}")} if run.parent else {}
    for name, value in {"mlflow.runName": run.name, "mlflow.user": "demo", **parent, **run.tags}.items():
        _text(place / "tags" / name, value)
    for name, points in run.metrics.items():
        _text(place / "metrics" / name, "".join(f"{when} {value!r} {step}\n" for when, value, step in points))
    for name, data in run.artifacts.items():
        file = place / "artifacts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _experiment(number: int, name: str, home: Path) -> str:
    return _yaml(
        artifact_location=home.absolute().as_uri(),
        creation_time=BEGIN,
        experiment_id=str(number),
        last_update_time=BEGIN,
        lifecycle_stage="active",
        name=name,
    )


def _meta(place: Path, number: int, start: int, run: DemoRun) -> str:
    return _yaml(
        artifact_uri=(place.absolute() / "artifacts").as_uri(),
        end_time=None if run.status == "RUNNING" else start + 5 * MINUTE,
        entry_point_name="",
        experiment_id=str(number),
        lifecycle_stage="deleted" if run.deleted else "active",
        run_id=run.id,
        run_name=run.name,
        run_uuid=run.id,
        source_name="demo.py",
        source_type=4,
        source_version="",
        start_time=start,
        status=STATUS[run.status],
        tags=[],
        user_id="demo",
        **({"deleted_time": start + 6 * MINUTE} if run.deleted else {}),
    )


def _yaml(**fields: object) -> str:
    return yaml.safe_dump(fields, allow_unicode=True)


def _id(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")
