"""Places for backend databases: SQLite files, databases of a PostgreSQL started for the tests."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

STORES = Path(__file__).parents[5] / "shared" / "data"


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Gives a fresh copy of a real store by its name."""

    def unpacked(name):
        archive = STORES / f"{name}.tar.gz"
        if not archive.exists():
            pytest.skip(f"the real store {name} is not at hand")
        folder = tmp_path_factory.mktemp(name)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return next(path for path in (folder / name).iterdir() if path.is_file())

    return unpacked
