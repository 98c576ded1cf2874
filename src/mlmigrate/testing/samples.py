"""Runs that any adapter must carry: each of them stood hard somewhere in the wild.

A hard run found later becomes a line here, and every adapter meets it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from mlmigrate.adapters.memory import Held, Memory
from mlmigrate.model import PARENT_TAG, POINTS, DatasetInput, Experiment, Run, points

START = 1_600_000_000_000
NAN, INF = float("nan"), float("inf")

EXPERIMENTS = (
    Experiment("1", "vision/eager", {"team": "a b", "mlflow.note.content": "Zeilen\nund mehr"}, START, START + 5),
    Experiment("2", "größe 模型 🚀", {}, START + 10, START + 10),
    Experiment("3", "gone", {"why": "no longer"}, START + 20, START + 30, deleted=True),
    Experiment("4", "empty", {}, START + 40, START + 40),
)


def run_id(name: str) -> str:
    """32 hex digits, as MLflow's run ids are."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def make(name: str, experiment: str = "1", **fields: object) -> Run:
    """A finished run of this name; `fields` as in Run."""
    given: dict[str, object] = {"name": name, "start": START, "end": START + 1000, "user": "alice", "tags": {}} | fields
    tags = {"mlflow.runName": str(given["name"]), "mlflow.user": str(given["user"])} | dict(given["tags"])  # type: ignore[call-overload]
    id_ = run_id(name)
    return Run(id_, experiment, origin=f"mlflow:{id_}", stamp=f"stamp of {name}", **(given | {"tags": tags}))  # type: ignore[arg-type]


def series(run: Run, metrics: Mapping[str, Sequence[tuple[int, int, float]]]) -> pa.Table:
    """The points of a run: key -> (step, timestamp in ms, value) of each, in log order."""
    rows = [(key, *point) for key, values in metrics.items() for point in values]
    columns = dict(zip(("key", "step", "timestamp", "value"), zip(*rows, strict=True), strict=True)) if rows else {}
    if not rows:
        return POINTS.empty_table()
    return pa.Table.from_batches([points({"run": [run.id] * len(rows), **columns})])


def long_series(run: Run, length: int) -> pa.Table:
    """`length` points of one metric."""
    steps = np.arange(length, dtype=np.int64)
    batch = points(
        {
            "run": pa.DictionaryArray.from_arrays(np.zeros(length, np.int32), [run.id]),
            "key": pa.DictionaryArray.from_arrays(np.zeros(length, np.int32), ["loss"]),
            "step": pa.array(steps),
            "timestamp": pa.array(START + steps * 10),
            "value": pa.array(np.sin(steps / 7.0)),
        }
    )
    return pa.Table.from_batches([batch])


def _values() -> Held:
    run = make("values", params={"int": "9007199254740993"}, end=START + 9)
    metrics = {
        "nan": [(0, START, NAN), (1, START + 1, NAN)],
        "large": [(2**53 + 1, START, 9007199254740993.0), (-(2**53) - 1, START, -1e308), (2**62, START, 5e-324)],
        "negative steps": [(-3, START + 2, 1.5), (0, START, -0.25), (-3, START + 2, 1.75)],
        "deep/er/key": [(0, 0, 0.1)],
    }
    return Held(run, series(run, metrics))


def _repeats() -> Held:
    run = make("repeats")
    again = [(1, START, 0.5), (1, START + 1, 0.5), (1, START, 0.75), (0, START, 0.5), (1, START + 2, 0.5)]
    return Held(run, series(run, {"loss": again, "Loss": [(1, START, 0.5)]}))


def _texts() -> Held:
    params = {
        "empty": " ",
        "unicode": "naïve 模型 🚀 \u202e",
        "lines": "a\n\tb\r\nc",
        "long": "x" * 500,
        "quote": "'\";--",
    }
    tags = {"mlflow.note.content": "# Notiz\n" + "ü" * 400, "empty": "", "json": '{"a": [1, NaN]}'}
    return Held(make("texts", experiment="2", params=params, tags=tags, user="älice"))


def _files() -> Held:
    run = make("files")
    files = {
        "model/weights.bin": bytes(range(256)) * 700,
        "model/conda.yaml": b"name: x\n",
        "empty.txt": b"",
        "with space/ünïcode 模型.txt": "grüße".encode(),
    }
    return Held(run, artifacts={(run.id, path): data for path, data in files.items()})


def _inputs() -> Held:
    given = DatasetInput(
        "train",
        "abc123",
        "local",
        '{"uri": "./x.csv"}',
        '{"a": "int"}',
        '{"rows": 3}',
        {"mlflow.data.context": "training"},
    )
    return Held(make("inputs", inputs=(given, DatasetInput("test", "def456", "code", "{}", None, None, {}))))


def _parent() -> list[Held]:
    parent = make("parent")
    return [Held(make("child", tags={PARENT_TAG: parent.id})), Held(parent)]  # the child first


def samples() -> list[Held]:
    """All that any MLflow-like target must carry without loss."""
    return [
        Held(make("nothing in it")),
        Held(make("running", status="RUNNING", end=None)),
        Held(make("failed", status="FAILED")),
        Held(make("killed", status="KILLED", start=START - 10**11)),
        Held(make("deleted", deleted=True, params={"kept": "yes"})),
        Held(make("of a deleted experiment", experiment="3", deleted=True)),
        _values(),
        _repeats(),
        _texts(),
        _files(),
        _inputs(),
        *_parent(),
    ]


def hard_samples() -> list[Held]:
    """Runs that most targets hold only with losses, and a long one."""
    infinite, many = make("infinite"), make("many points")
    long = make("long values", params={"p": "é" * 10_000}, tags={"t": "y" * 12_000})
    return [
        Held(infinite, series(infinite, {"inf": [(0, START, INF), (1, START, -INF), (2, START, 1.0)]})),
        Held(long),
        Held(many, long_series(many, 100_000)),
    ]


def place_of(held: Sequence[Held], salt: str = "") -> Memory:
    """A place with these runs. `salt` makes their ids and their experiments' names others than before,
    so that one server can meet them again and again.
    """
    memory = Memory()
    later = zlib.crc32(salt.encode()) if salt else 0  # an experiment is known again by its id and its creation
    for experiment in EXPERIMENTS:
        created = (experiment.created or 0) + later
        memory.add(replace(experiment, name=experiment.name + salt, created=created))
    for one in held:
        salted = _salted(one, salt)
        memory.held[salted.run.origin] = salted
    return memory


def _salted(held: Held, salt: str) -> Held:
    if not salt:
        return held
    new = {held.run.id: run_id(held.run.id + salt)}
    id_ = new[held.run.id]
    tags = dict(held.run.tags)
    if PARENT_TAG in tags:
        tags[PARENT_TAG] = run_id(tags[PARENT_TAG] + salt)
    run = replace(held.run, id=id_, origin=f"mlflow:{id_}", tags=tags)
    batches = [_of_run(batch, id_) for batch in held.points.to_batches()]
    artifacts = {(new.get(owner, owner), path): data for (owner, path), data in held.artifacts.items()}
    return Held(run, pa.Table.from_batches(batches, POINTS), artifacts, held.records)


def _of_run(batch: pa.RecordBatch, id_: str) -> pa.RecordBatch:
    run = pa.DictionaryArray.from_arrays(
        batch["run"].indices, pa.array([id_] * len(batch["run"].dictionary), pa.utf8())
    )
    return batch.set_column(0, POINTS.field("run"), run)
