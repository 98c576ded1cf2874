"""Times that no calendar has are carried as all others: stores hold nanoseconds that were logged as milliseconds."""

from contextlib import closing

import pytest

from mlmigrate.adapters import memory
from mlmigrate.adapters.memory import Held, Memory
from mlmigrate.adapters.wandb import moments
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.testing.samples import EXPERIMENTS, START, make, series
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

NANOSECONDS = START * 10**6


@pytest.mark.parametrize(
    ("start", "times"),
    [
        (NANOSECONDS, (NANOSECONDS, NANOSECONDS + 1)),
        (-5, (-5000, -1)),
        (-(2**62), (-(2**63) + 1, 2**63 - 1)),
        (None, (None, 5)),
        (START, (None, None)),
    ],
)
def test_a_folder_gives_every_point_its_time_again(start, times, tmp_path, request):
    run = make("timed", start=start, end=None if start is None else start + 1)
    first, second = times
    logged = {"loss": [(0, first, 0.5), (1, second, 0.25)], "system/cpu": [(0, first, 1.0), (7, second, 2.0)]}
    place = Memory()
    place.add(EXPERIMENTS[0], Held(run, series(run, logged)))
    job = Job(memory.install(request.node.name, place), parse(f"wandb:{tmp_path / 'out'}"))
    with closing(Ledger.open(tmp_path / "ledger", job.source, job.target)) as ledger:
        report = transfer(job, ledger, Silent())
    assert (report.failed, report.losses, report.copied) == ((), (), 1)
    assert verify(job, Silent()).findings == ()


NO_TIME = [True, "90", None, float("nan"), float("inf"), 1e300, -1e300, 10**400]


@pytest.mark.parametrize(("told", "seconds"), [(90, 90.0), (0.5, 0.5), *((one, None) for one in NO_TIME)])
def test_what_no_run_can_take_is_no_runtime(told, seconds):
    assert moments.lasted(told) == seconds
