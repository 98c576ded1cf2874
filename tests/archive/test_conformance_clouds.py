"""Archives in Azure (Azurite) and in Google Cloud Storage (a stand-in): the promises of every target."""

import itertools

import pytest

import azurite
import googledouble
from mlmigrate.address import Address
from mlmigrate.testing.conformance import TargetTests

pytestmark = pytest.mark.slow
_numbers = itertools.count()


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    if reason := azurite.missing():
        pytest.skip(reason)
    with azurite.running(tmp_path_factory.mktemp("azurite")) as server:
        server.shared = server.container()
        yield server


class TestArchiveInAzure(TargetTests):
    every_nth_call = 17

    @pytest.fixture
    def new_target(self, azure, monkeypatch):
        for name, value in azure.env.items():
            monkeypatch.setenv(name, value)
        return lambda: Address("archive", f"az://{azure.shared}/archive{next(_numbers)}")


class TestArchiveInGoogle(TargetTests):
    every_nth_call = 17

    @pytest.fixture
    def new_target(self, monkeypatch):
        with googledouble.google() as store:
            for name, value in store.env.items():
                monkeypatch.setenv(name, value)
            yield lambda: Address("archive", f"gs://{googledouble.BUCKET}/archive{next(_numbers)}")
