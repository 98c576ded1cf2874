"""What the archive's tests are made of: rich runs, and a way to write them."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from mlmigrate.archive.reader import ArchiveSource
from mlmigrate.archive.writer import ArchiveTarget
from mlmigrate.model import POINTS, Artifact, Experiment, Run, RunRef, points
from mlmigrate.storage import LocalStorage

START = 1_700_000_000_000


def run(id, **fields):
    return Run(id, **({"experiment": "1", "name": f"name of {id}", "origin": f"mlflow:{id}", "stamp": "s1"} | fields))


def ref(of, **fields):
    return RunRef(of.experiment, of.id, of.name, of.origin, of.stamp, **fields)


def series(run_id, values, key="loss"):
    n = len(values)
    return points(
        {"run": [run_id] * n, "key": [key] * n, "step": range(n), "timestamp": range(START, START + n), "value": values}
    )


def artifact(owner, path, data, **fields):
    return Artifact(owner, path, lambda: io.BytesIO(data), len(data), **fields)


def write(place, runs, batches=(), artifacts=(), records=(), refs=None, experiments=None, pack="p", distinct=False):
    """One pack, as the loop writes it. `place` is a folder or a storage."""
    target = ArchiveTarget(LocalStorage(place) if isinstance(place, Path) else place)
    if experiments is None:
        experiments = [Experiment(name, f"experiment {name}") for name in sorted({one.experiment for one in runs})]
    target.prepare(experiments)
    with target.pack(pack, [ref(one) for one in runs] if refs is None else refs, distinct) as into:
        into.begin(runs)
        for batch in batches:
            into.points(batch)
        for one in artifacts:
            into.put(one)
        for record in records:
            into.keep(record)
        ids = into.commit()
    target.finish(experiments, ids)
    return ids


def read(place, wanted=None):
    """What the archive gives back: all of it, or the runs of the ids `wanted`."""
    source = ArchiveSource(LocalStorage(place) if isinstance(place, Path) else place)
    refs = [one for one in source.refs() if wanted is None or one.id in wanted]
    with source.read(refs) as reading:
        batches = list(reading.points())
        files = {}
        for one in reading.artifacts():
            with one.open() as stream:
                files[one.owner, one.path] = stream.read()
        return SimpleNamespace(
            experiments=list(source.experiments()),
            refs=refs,
            runs=list(reading.runs),
            points=pa.Table.from_batches(batches, POINTS),
            files=files,
            records=list(reading.records()),
            losses=reading.losses,
            distinct=reading.distinct,
        )


def commits(folder):
    """The commits as anyone reads them, by pack."""
    found = [json.loads(file.read_bytes())["commit"] for file in folder.glob("packs/*.json")]
    return {commit["pack"]: commit for commit in found}


@pytest.fixture
def kit():
    """The helpers of this folder's tests."""
    return SimpleNamespace(
        run=run, ref=ref, series=series, artifact=artifact, write=write, read=read, commits=commits, replace=replace
    )


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """These tests kill processes, not machines."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr("mlmigrate.storage.local._sync_filesystem", lambda root: True)
