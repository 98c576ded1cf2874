"""A server that fails in the middle of a copy: afterwards all is there once, or an error says what is not."""

from __future__ import annotations

import io
from copy import copy
from dataclasses import replace

import pytest

from mlmigrate.adapters.memory import Held, Memory
from mlmigrate.adapters.wandb.api import target
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.errors import NotFound
from mlmigrate.testing.samples import make, place_of, samples, series
from wandbtarget import carried, essence, points_of, points_of_held, run_of, use

pytestmark = pytest.mark.slow
EXPERIMENTS = 4  # each a run of its own, written before all others
NAMES = ("values", "repeats", "files", "inputs")
KINDS = (
    "GetTeamEntity",
    "GetProjects",
    "Runs",
    "UpsertBucket",
    "CreateRunFiles",
    "PUT file",
    "file_stream",
    "CreateArtifact",
    "CreateArtifactManifest",
    "CreateArtifactFiles",
    "PUT artifact",
    "PUT manifest",
    "CommitArtifact",
    "ArtifactByID",
    "UseArtifact",
    "RunsWritten",
    "RunOutputArtifacts",
    "RunInputArtifacts",
    "UpsertBuckets",
)


@pytest.fixture
def source() -> Memory:
    return place_of([held for held in samples() if held.run.name in NAMES])


@pytest.fixture(scope="module")
def clean(running, tmp_path_factory):
    """What the server holds after a copy in which nothing failed."""
    patch = pytest.MonkeyPatch()
    use(running, patch)
    running.reset()
    held = place_of([held for held in samples() if held.run.name in NAMES])
    assert carried(held, "team", tmp_path_factory.mktemp("clean")).failed == ()
    patch.undo()
    return essence(running.state())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["before it was done", "after it was done"])
def test_a_request_that_is_lost_once_changes_nothing(clean, server, source, tmp_path, kind, how):
    server.fail(kind, 0 if how.startswith("before") else None, after=how.startswith("after"))
    report = carried(source, "team", tmp_path)
    assert report.failed == ()
    assert essence(server.state()) == clean


@pytest.mark.parametrize("kind", ["UpsertBucket", "file_stream", "PUT file", "CommitArtifact"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(clean, server, source, tmp_path, kind, status):
    server.fail(kind, status, headers={"Retry-After": "0.1"}, times=2)
    report = carried(source, "team", tmp_path)
    assert report.failed == ()
    assert essence(server.state()) == clean


@pytest.mark.parametrize("kind", ["PUT file", "PUT artifact", "PUT manifest"])
def test_a_file_that_is_refused_fails_its_run_alone_and_the_next_copy_sends_it(clean, server, source, tmp_path, kind):
    server.fail(kind, 403, times=1000)
    report = carried(source, "team", tmp_path)
    assert report.failed
    assert all("refused" in failure.message for failure in report.failed)
    assert report.copied + len(report.failed) == len(source.held)
    server.heal()
    again = carried(source, "team", tmp_path)
    assert (again.failed, again.copied) == ((), len(report.failed))
    assert essence(server.state()) == clean


def test_a_commit_that_hangs_is_an_error_that_names_the_artifact(clean, server, source, tmp_path, monkeypatch):
    connect = target.connect
    monkeypatch.setattr(target, "connect", lambda *given: _impatient(connect(*given)))
    server.fail("CommitArtifact", 500, hang=60.0, times=100)
    report = carried(source, "team", tmp_path)
    assert {failure.name for failure in report.failed} == {"files", "inputs"}
    assert all("commit" in failure.message for failure in report.failed)
    server.heal()
    assert carried(source, "team", tmp_path).failed == ()
    assert essence(server.state()) == clean


def _impatient(client: Client) -> Client:
    """It gives up on commits alone: on a busy machine other answers take their time."""
    brief = copy(client)
    brief._timeout = 0.3
    client._request = lambda call: Client._request(brief if call.name == "CommitArtifact" else client, call)
    return client


def test_a_server_that_fails_for_one_run_alone_does_not_stop_the_others(clean, server, source, tmp_path):
    server.fail("PUT artifact", 500, times=1000)
    report = carried(source, "team", tmp_path)
    assert {failure.name for failure in report.failed} == {"files", "inputs"}
    assert report.copied == len(source.held) - 2
    server.heal()
    assert carried(source, "team", tmp_path).failed == ()
    assert essence(server.state()) == clean


def test_lines_that_are_there_from_before_are_never_doubled(clean, server, source, tmp_path):
    """All but the stamp, then again."""
    server.fail("UpsertBuckets", 400, times=50)
    server.fail("UpsertBucket", 400, times=50, skip=2 * EXPERIMENTS + len(source.held))
    assert carried(source, "team", tmp_path).failed
    server.heal()
    assert carried(source, "team", tmp_path).failed == ()
    assert essence(server.state()) == clean


def test_a_long_run_goes_on_where_it_was_cut(server, tmp_path, monkeypatch):
    monkeypatch.setattr("mlmigrate.adapters.wandb.api.sending.SMALL_REQUEST", 10_000)
    run = make("long")
    held = Held(run, series(run, {"loss": [(n, 1_600_000_000_000 + n, n / 3) for n in range(2000)]}))
    source = place_of([held])
    server.fail("file_stream", 400, skip=EXPERIMENTS + 6, times=50)
    assert carried(source, "team", tmp_path).failed
    cut = run_of(server.state(), held)
    assert 0 < len(cut["history"]) < 2000
    server.heal()
    server.forget()
    assert carried(source, "team", tmp_path).failed == ()
    whole = run_of(server.state(), held)
    assert points_of(whole) == points_of_held(held)
    assert whole["name"] == cut["name"]
    sent = [one for one in server.requests() if one[1].endswith("file_stream")]
    assert len(sent) < 2000 * len(cut["history"][0]) // 10_000 + 3


def test_a_history_that_is_not_ours_is_left_for_another_generation(server, tmp_path):
    run = make("spoiled")
    held = Held(run, series(run, {"loss": [(0, 1_600_000_000_000, 1.0), (1, 1_600_000_000_001, 2.0)]}))
    server.fail("RunsWritten", 400, times=10, skip=EXPERIMENTS)
    assert carried(place_of([held]), "team", tmp_path).failed
    server.heal()
    other = Held(replace(run, stamp="another"), series(run, {"loss": [(0, 1_600_000_000_000, 7.0)]}))
    report = carried(place_of([other]), "team", tmp_path)
    assert report.failed == ()
    state = server.state()
    found = run_of(state, other)
    assert found["name"] == f"{run.id}-2"
    assert points_of(found) == points_of_held(other)
    assert [loss.what for loss in report.losses] == [f"run id {run.id!r}"]


def test_bytes_that_are_gone_are_an_error_that_names_the_file(server, tmp_path):
    held = next(held for held in samples() if held.run.name == "files")

    class Gone(Memory):
        def read(self, refs):
            return _Broken(super().read(refs))

    source = place_of([held])
    gone = Gone()
    gone.held, gone._experiments = source.held, source._experiments
    report = carried(gone, "team", tmp_path)
    (failure,) = report.failed
    assert "weights.bin" in failure.message


class _Broken:
    def __init__(self, inner):
        self._inner = inner

    def __enter__(self):
        reading = self._inner.__enter__()
        artifacts = [
            replace(one, sha256=None, open=_gone) if one.path.endswith("weights.bin") else one
            for one in reading.artifacts()
        ]
        reading.artifacts = lambda: iter(artifacts)
        return reading

    def __exit__(self, *error):
        return self._inner.__exit__(*error)


def _gone() -> io.BytesIO:
    raise NotFound("model/weights.bin is gone.")
