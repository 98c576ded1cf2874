"""Stores made by raw writers, so that nothing measured has a hand in what it is measured on."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import run

MAKE = """
import sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
SqlAlchemyStore(sys.argv[1], sys.argv[2])
"""
START = 1_700_000_000_000
TABLES = ("experiments", "runs", "params", "tags", "metrics", "latest_metrics")
STATUSES = ("FINISHED", "FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Shape:
    """How much there is: `keys` metrics of `steps` points, `files` artifacts of `size` bytes in each run."""

    runs: int = 100
    keys: int = 10
    steps: int = 100
    params: int = 20
    tags: int = 10
    files: int = 3
    size: int = 64 * 1024
    experiments: int = 5

    @property
    def points(self) -> int:
        return self.runs * self.keys * self.steps

    def __str__(self) -> str:
        files = f", {self.files} x {self.size // 1024} KiB artifacts a run" if self.files else ""
        return f"{self.runs:,} runs x {self.keys} keys x {self.steps:,} steps{files}"


def schema(uri: str, root: Path) -> None:
    """An empty database of the mlflow that is installed here, made by it."""
    run([sys.executable, "-c", MAKE, uri, str(root)])


def sqlite(folder: Path, shape: Shape, empty: Path) -> Path:
    """A database, filled from an empty one, and in `mlartifacts` the artifacts of a default `mlflow server`."""
    folder.mkdir(parents=True)
    file = Path(shutil.copy(empty, folder / "mlflow.db"))
    with sqlite3.connect(file) as store:
        store.execute("pragma synchronous = off")
        _fill(store, shape)
    store.close()
    if shape.files:
        for number in range(shape.runs):
            write_artifacts(
                folder / "mlartifacts" / experiment_of(shape, number) / run_id(number) / "artifacts", shape, number
            )
    return file


def _fill(store: sqlite3.Connection, shape: Shape) -> None:
    experiments = [
        (number, f"team/experiment {number}", f"mlflow-artifacts:/{number}", "active", START, START, "default")
        for number in range(1, shape.experiments + 1)
    ]
    _insert(
        store,
        "experiments",
        "experiment_id name artifact_location lifecycle_stage creation_time last_update_time workspace",
        experiments,
    )
    columns = "run_uuid name source_type source_name entry_point_name user_id status start_time end_time source_version"
    _insert(
        store,
        "runs",
        f"{columns} lifecycle_stage artifact_uri experiment_id",
        (_run(shape, n) for n in range(shape.runs)),
    )
    _insert(store, "params", "key value run_uuid", _params(shape))
    _insert(store, "tags", "key value run_uuid", _tags(shape))
    _insert(store, "metrics", "key value timestamp run_uuid step is_nan", _points(shape))
    latest = "select key, value, timestamp, step, is_nan, run_uuid from metrics where step = ?"
    store.execute(
        f"insert into latest_metrics (key, value, timestamp, step, is_nan, run_uuid) {latest}", (shape.steps - 1,)
    )


def _insert(store: sqlite3.Connection, table: str, columns: str, rows: object) -> None:
    names = columns.split()
    marks = ", ".join("?" * len(names))
    store.executemany(f"insert into {table} ({', '.join(names)}) values ({marks})", rows)  # type: ignore[arg-type]


def run_id(number: int) -> str:
    return f"{random.Random(number).getrandbits(128):032x}"


def experiment_of(shape: Shape, number: int) -> str:
    return str(1 + number % shape.experiments)


def _run(shape: Shape, number: int) -> tuple[object, ...]:
    run, experiment = run_id(number), experiment_of(shape, number)
    status, start = STATUSES[number % len(STATUSES)], START + number * 60_000
    uri = f"mlflow-artifacts:/{experiment}/{run}/artifacts"
    return (
        run,
        f"run {number}",
        "LOCAL",
        "train.py",
        "",
        "alice",
        status,
        start,
        start + 50_000,
        "",
        "active",
        uri,
        int(experiment),
    )


def _params(shape: Shape) -> Iterator[tuple[str, str, str]]:
    for number in range(shape.runs):
        yield from ((f"param_{n}", f"value {number * n}", run_id(number)) for n in range(shape.params))


def _tags(shape: Shape) -> Iterator[tuple[str, str, str]]:
    for number in range(shape.runs):
        run = run_id(number)
        yield from ((f"tag_{n}", f"value {number * n}", run) for n in range(shape.tags))
        yield from (("mlflow.runName", f"run {number}", run), ("mlflow.user", "alice", run))
        yield from (("mlflow.source.name", "train.py", run), ("mlflow.source.type", "LOCAL", run))


def _points(shape: Shape) -> Iterator[tuple[object, ...]]:
    for number in range(shape.runs):
        run, chance = run_id(number), random.Random(number).random
        for step in range(shape.steps):
            at = START + number * 60_000 + step * 10
            yield from ((f"metric_{key}", chance(), at, run, step, 0) for key in range(shape.keys))


def _meta(place: Path, fields: dict[str, object]) -> None:
    """JSON's way to write a text, a number and an empty list is YAML's too."""
    (place / "meta.yaml").write_text(
        "".join(f"{name}: {json.dumps(value)}\n" for name, value in sorted(fields.items()))
    )


def write_artifacts(folder: Path, shape: Shape, number: int) -> None:
    """Different bytes for every run: nothing is gained by storing equal ones once."""
    folder.mkdir(parents=True, exist_ok=True)
    bytes_of = random.Random(number).randbytes
    for n in range(shape.files):
        (folder / f"file {n}.bin").write_bytes(bytes_of(shape.size))


def files(folder: Path, shape: Shape) -> Path:
    """A file store, as mlflow's own client writes it."""
    store = folder / "mlruns"
    for number in range(1, shape.experiments + 1):
        place = store / str(number)
        place.mkdir(parents=True)
        times = {"creation_time": START, "last_update_time": START}
        root = {"artifact_location": str(place), "experiment_id": str(number), "name": f"team/experiment {number}"}
        _meta(place, root | times | {"lifecycle_stage": "active"})
    for number in range(shape.runs):
        _file_run(store / experiment_of(shape, number) / run_id(number), shape, number)
    return store


def _file_run(place: Path, shape: Shape, number: int) -> None:
    for part in ("metrics", "params", "tags", "artifacts"):
        (place / part).mkdir(parents=True)
    run, experiment, start = run_id(number), experiment_of(shape, number), START + number * 60_000
    names = {
        "run_id": run,
        "run_uuid": run,
        "run_name": f"run {number}",
        "experiment_id": experiment,
        "user_id": "alice",
    }
    times = {"start_time": start, "end_time": start + 50_000, "status": 3, "lifecycle_stage": "active"}
    source = {"source_name": "", "source_type": 4, "source_version": "", "entry_point_name": "", "tags": []}
    _meta(place, names | times | source | {"artifact_uri": f"{place}/artifacts"})
    for n in range(shape.params):
        (place / "params" / f"param_{n}").write_text(f"value {number * n}")
    for n in range(shape.tags):
        (place / "tags" / f"tag_{n}").write_text(f"value {number * n}")
    chance = random.Random(number).random
    for key in range(shape.keys):
        lines = (f"{start + step * 10} {chance()!r} {step}\n" for step in range(shape.steps))
        (place / "metrics" / f"metric_{key}").write_text("".join(lines))
    write_artifacts(place / "artifacts", shape, number)


def columns_of(file: Path, folder: Path) -> Path:
    """The rows of a store's tables as Parquet, in the order of the rows: what a bare bulk insert is fed with."""
    folder.mkdir(parents=True)
    store = sqlite3.connect(file)
    for table in TABLES:
        where = " where experiment_id > 0" if table == "experiments" else ""
        cursor = store.execute(f"select * from {table}{where} order by rowid")
        names, writer = [column[0] for column in cursor.description], None
        while rows := cursor.fetchmany(200_000):
            batch = _typed(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))))
            writer = writer or pq.ParquetWriter(folder / f"{table}.parquet", batch.schema)
            writer.write_table(batch)
        if writer is not None:
            writer.close()
    store.close()
    return folder


KINDS = {"is_nan": pa.bool_(), "experiment_id": pa.int32(), "deleted_time": pa.int64()}


def _typed(table: pa.Table) -> pa.Table:
    """The types of PostgreSQL's columns (SQLite takes them too); no column without a type."""
    for number, field in enumerate(table.schema):
        kind = KINDS.get(field.name, pa.string() if pa.types.is_null(field.type) else field.type)
        table = table.set_column(number, field.name, table.column(number).cast(kind))
    return table


def warm(*places: Path) -> None:
    """Everything is read once, so that the first to be measured does not pay for the disk."""
    for place in places:
        for file in (
            [place] if place.is_file() else (Path(top) / name for top, _, names in os.walk(place) for name in names)
        ):
            with file.open("rb") as opened:
                while opened.read(1 << 20):
                    pass


def counts(file: Path) -> dict[str, int]:
    """How many rows each table of a SQLite store has."""
    store = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    found = {table: store.execute(f"select count(*) from {table}").fetchone()[0] for table in TABLES}
    store.close()
    return found
