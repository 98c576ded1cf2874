"""A server that tells null, for each field that is read, alone: a default, a loss, or an error that says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import wandbsdk
import wandbserver
from mlmigrate.adapters.wandb.api import histories, listing, operations
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.testing.samples import place_of, samples
from sizes import some
from wandbfields import nullable, texts
from wandbtarget import carried, command, use

pytestmark = pytest.mark.slow
READ = nullable([*texts(operations), operations.read_run(operations.PARTS)])
ENDS = {"Query.viewer": 12, "Query.project": 10}  # without these there is nothing to copy from
RUNS = 4
LOG = """
import wandb
for n in range(3):
    with wandb.init(project="vision", id=f"r{n}", config={"lr": n}, tags=["a"], group="g", notes="x") as run:
        for step in range(40):
            run.log({"loss": 1 / (step + 1)})
        print("printed")
        if n:
            run.use_artifact("data:latest")
        artifact = wandb.Artifact("data", type="dataset", metadata={"n": n})
        with artifact.new_file("x.txt") as file:
            file.write(str(n))
        run.log_artifact(artifact, aliases=["best"]).wait()
"""
SWEEP = """mutation UpsertSweep($project: String!, $config: String) {
  upsertSweep(input: {id: "s1", entityName: "team", projectName: $project, config: $config}) { sweep { id } } }"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[wandbserver.Server]:
    """Three runs of the SDK's, one of them exported, one of a sweep; a report; and a run of ours."""
    with wandbserver.running() as server:
        wandbsdk.run("0.31.0", LOG, server, tmp_path_factory.mktemp("sdk"))
        Client(server.url, server.key).graphql(SWEEP, {"project": "vision", "config": "method: grid"})
        server.set("team/vision/r1", sweep="s1")
        server.report("vision", "a report", {"blocks": []})
        server.export("team/vision/r0", 30)
        with pytest.MonkeyPatch.context() as patch:
            use(server, patch)
            held = [held for held in samples() if held.run.name == "inputs"]
            assert carried(place_of(held), "team", tmp_path_factory.mktemp("ours")).failed == ()
        yield server


@pytest.fixture
def server(filled: wandbserver.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[wandbserver.Server]:
    use(filled, monkeypatch)
    monkeypatch.setattr(histories, "FEW_LINES", 10)  # so that exports are read as well
    yield filled
    filled.less()


@pytest.fixture(scope="module")
def whole(filled: wandbserver.Server, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The points that there are."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use(filled, patch)
        filled.less()
        assert f"All {RUNS} runs" in copied(folder)[1]
    return points(folder)


def copied(folder: Path) -> tuple[int, str]:
    return command("copy", "wandb:team", folder / "archive", "--ledger", folder / "ledger")


def points(folder: Path) -> int:
    """Of an archive, counted in its files."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in folder.glob("archive/**/points.parquet"))


@pytest.mark.parametrize("field", some(READ))
def test_null_is_a_default_or_told(field, whole, server, tmp_path):
    server.less(nulls=[field])
    code, said = copied(tmp_path)
    assert code in (ENDS.get(field, 0), 3), said
    if code == 0 and not any(words in said for words in ("lost  ", "failed  ", "about wandb:")):
        assert points(tmp_path) == whole
        assert int(said.split("All ")[1].split(" runs")[0]) >= RUNS
    assert command("list", "wandb:team")[0] in (0, code)


@pytest.mark.parametrize(
    "field", ["Run.files", "Run.outputArtifacts", "Run.inputArtifacts", "Artifact.currentManifest"]
)
def test_a_list_that_is_null_is_not_an_empty_one(field, server, tmp_path):
    server.less(nulls=[field])
    code, said = copied(tmp_path)
    assert (code, "lost  " in said) == (0, True), said


def test_runs_that_are_kept_back_are_no_empty_project(server, tmp_path):
    server.less(nulls=["Project.runs"])
    code, said = copied(tmp_path)
    assert (code, "W&B tells nothing of the runs of team/" in said) == (3, True), said


def test_a_next_page_that_is_not_told_is_an_error(server, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "RUNS", 2)
    monkeypatch.setattr(listing, "MOST", 2)
    server.less(nulls=["PageInfo.endCursor"])
    code, said = copied(tmp_path)
    assert (code, "there are more of the runs of team/vision, but not where" in said) == (3, True), said


def test_what_else_is_in_a_project_is_not_needed_for_its_runs(server, tmp_path):
    """Even where the key may not see it."""
    for kind in ("GetSweeps", "ProjectViews", "ProjectArtifactTypes"):
        server.fail(kind, 403, times=20)
    code, said = copied(tmp_path)
    server.heal()
    assert (code, f"All {RUNS} runs" in said, "does not permit this" in said) == (0, True, True), said
