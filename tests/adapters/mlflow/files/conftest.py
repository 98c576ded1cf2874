"""Small file stores, written by hand as MLflow lays them out."""

from __future__ import annotations

import hashlib
import os
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.address import Address

RUN = "0123456789abcdef0123456789abcdef"


@dataclass
class Store:
    """A store being written. Contents are text or bytes by path."""

    root: Path

    def put(self, path: str, content: str | bytes = "") -> Path:
        """A file below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def experiment(self, id: str = "1", name: str = "first", **more: object) -> str:
        fields = {
            "artifact_location": f"file:///elsewhere/mlruns/{id}",
            "experiment_id": f"'{id.rpartition('/')[2]}'",
            "lifecycle_stage": "active",
            "name": name,
        } | more
        self.put(f"{id}/meta.yaml", yaml_of(fields))
        return id

    def run(
        self, id: str = RUN, experiment: str = "1", files: dict[str, str | bytes] | None = None, **more: object
    ) -> str:
        fields = {
            "artifact_uri": f"file:///elsewhere/mlruns/{experiment}/{id}/artifacts",
            "end_time": 1700000001000,
            "entry_point_name": "''",
            "experiment_id": f"'{experiment.rpartition('/')[2]}'",
            "lifecycle_stage": "active",
            "run_id": id,
            "run_name": "calm-dawn-1",
            "source_name": "''",
            "source_type": 4,
            "source_version": "''",
            "start_time": 1700000000000,
            "status": 3,
            "tags": "[]",
            "user_id": "ada",
        } | more
        self.put(f"{experiment}/{id}/meta.yaml", yaml_of({k: v for k, v in fields.items() if v is not ...}))
        for path, content in (files or {}).items():
            self.put(f"{experiment}/{id}/{path}", content)
        return f"{experiment}/{id}"

    def open(self, settings: Settings | None = None):
        context = Context("source", settings=settings or Settings())
        return registry.open_source(Address("mlflow", str(self.root)), context)

    def look(self, settings: Settings | None = None) -> types.SimpleNamespace:
        """All that the source gives, as plain values."""
        return look(self.open(settings))


def yaml_of(fields: dict[str, object]) -> str:
    return "".join(f"{key}: {'null' if value is None else value}\n" for key, value in fields.items())


def look(source) -> types.SimpleNamespace:
    experiments, refs = list(source.experiments()), list(source.refs())
    with source.read(refs) as reading:
        runs = {run.id: run for run in reading.runs}
        points = [row for batch in reading.points() for row in batch.to_pylist()]
        artifacts = {}
        for artifact in reading.artifacts():
            with artifact.open() as file:
                artifacts[artifact.owner, artifact.path] = file.read()
        records = list(reading.records())
        losses = list(reading.losses)
    return types.SimpleNamespace(
        experiments={one.id: one for one in experiments},
        refs=refs,
        runs=runs,
        points=points,
        artifacts=artifacts,
        records=records,
        losses=losses,
        oddities=list(source.oddities()),
    )


def tree_hash(root: Path) -> str:
    """Names, bytes and times of everything below a folder."""
    digest = hashlib.sha256()
    for place, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            told = path.lstat()
            digest.update(
                f"{path.relative_to(root)}\0{told.st_mtime_ns}\0{told.st_size}\n".encode("utf-8", "surrogateescape")
            )
            digest.update(str(path.readlink()).encode() if path.is_symlink() else path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def store(tmp_path):
    """A store with one experiment, before any run is in it."""
    made = Store(tmp_path / "mlruns")
    made.experiment()
    return made


@pytest.fixture
def new_store(tmp_path):
    """Makes empty stores by name."""
    return lambda name: Store(tmp_path / name)


@pytest.fixture(scope="session", name="tree_hash")
def _tree_hash():
    return tree_hash


@pytest.fixture(scope="session", name="look")
def _look():
    return look
