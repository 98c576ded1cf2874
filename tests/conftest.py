"""What every test may ask for: how large and how random to be."""

import os
from pathlib import Path

import pytest

SIZE = int(os.environ.get("MLMIGRATE_TEST_SIZE", "1"))
SEED = int(os.environ.get("MLMIGRATE_TEST_SEED", "20260101"))


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
