"""The archive joins the suite that every target passes."""

import itertools
from dataclasses import replace

import pytest

from mlmigrate.adapters.memory import Memory, install
from mlmigrate.address import Address, parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.testing.conformance import TargetTests, copy
from mlmigrate.testing.samples import place_of, samples
from mlmigrate.transfer import transfer


class TestArchive(TargetTests):
    @pytest.fixture
    def new_target(self, tmp_path):
        n = itertools.count()
        return lambda: Address("archive", str(tmp_path / f"archive{next(n)}"))


def test_a_run_that_was_under_way_is_taken_again_but_leaves_an_archive_once(tmp_path):
    source = place_of(samples())
    for origin, held in source.held.items():
        if held.run.status == "RUNNING":
            source.held[origin] = replace(held, run=replace(held.run, stamp=""))
    archive, target = parse(str(tmp_path / "archive")), install("after", Memory())
    assert [copy(source, archive, tmp_path / "a.ledger").copied for _ in range(2)] == [len(source.held), 1]
    copied = []
    for number in range(2):
        ledger = Ledger.open(tmp_path / f"{number}.ledger", archive, target)
        copied.append(transfer(Job(archive, target), ledger, Silent()).copied)
        ledger.close()
    assert copied == [len(source.held), 0]
