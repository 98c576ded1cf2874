"""What two sources list becomes experiments and refs."""

import io
import json
import sqlite3
from contextlib import contextmanager
from dataclasses import replace

from mlmigrate import address
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Packing
from mlmigrate.adapters.mlflow.objects import GROUPS
from mlmigrate.adapters.wandb.catalogue import Catalogue, Project, Report, Sweep, Where, ref_of, stamp_of
from mlmigrate.adapters.wandb.natives import group_run
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config
from mlmigrate.adapters.wandb.reading import WandbReading
from mlmigrate.adapters.wandb.shape import File, Version, WandbRun
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.model import PARENT_TAG, Experiment, Record
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

TEAM = Project("team", "vision", 1_600_000_000_000, "what we see")


def own(id, project="vision", **fields):
    return WandbRun(id, "team", project, **fields)


def ours(run, /, project="vision", experiment="vision/eager", experiment_id="1", **fields):
    told = {"origin": f"mlflow:{run}", "stamp": "s", "experiment": experiment, "experiment_id": experiment_id} | fields
    return WandbRun(run, "team", project, config={KEY: as_config(Provenance(**told))})


def estate(id="1", name="vision/eager", project="vision", **fields):
    body = {"id": id, "name": name, "tags": {"a": "b"}, "created": 5, **fields}
    return ours(f"experiment-{id}", project, name, id, kind="experiment", estate=body)


def filled(*runs, options=Options(), projects=(), **kinds):  # noqa: B008
    catalogue = Catalogue(options)
    for project in projects:
        catalogue.project(project)
    for number, run in enumerate(runs):
        catalogue.add(run, f"stamp {number}")
    for kind, things in kinds.items():
        for thing in things:
            getattr(catalogue, kind)(thing)
    return catalogue


def pairs(catalogue):
    return [(ref.id, ref.experiment) for ref in catalogue.refs()]


class TestProjects:
    def test_a_project_is_an_experiment_empty_or_not(self):
        catalogue = filled(own("a", "other"), projects=[TEAM])
        vision = Experiment(
            "team/vision",
            "vision",
            {"mlflow.note.content": "what we see", "wandb.entity": "team", "wandb.project": "vision"},
            1_600_000_000_000,
        )
        assert catalogue.experiments() == [
            Experiment("team/other", "other", {"wandb.entity": "team", "wandb.project": "other"}),
            vision,
        ]
        assert pairs(catalogue) == [("a", "team/other")]

    def test_a_run_of_no_project_is_in_the_one_that_wandb_calls_uncategorized(self):
        catalogue = filled(WandbRun("a"))
        assert catalogue.experiments() == [Experiment("uncategorized", "uncategorized")]
        assert pairs(catalogue) == [("a", "uncategorized")]

    def test_projects_of_one_name_in_two_entities_are_two_experiments(self):
        catalogue = filled(own("a"), WandbRun("b", "ada", "vision"))
        assert {one.id: one.name for one in catalogue.experiments()} == {
            "ada/vision": "ada/vision",
            "team/vision": "team/vision",
        }

    def test_runs_of_one_id_in_two_projects_are_two_runs(self):
        catalogue = filled(own("a"), own("a", "other"), own("b"))
        ids = [ref.id for ref in catalogue.refs()]
        assert len(set(ids)) == 3
        assert "b" in ids
        assert {catalogue.find(ref) for ref in catalogue.refs()} == {
            Where("team", "vision", "a"),
            Where("team", "other", "a"),
            Where("team", "vision", "b"),
        }


class TestExperimentsOfOurs:
    def test_an_experiment_is_as_it_was_and_its_runs_are_in_it(self):
        catalogue = filled(ours("a"), estate(), ours("b"), projects=[TEAM])
        assert catalogue.experiments() == [Experiment("1", "vision/eager", {"a": "b"}, 5)]
        assert pairs(catalogue) == [("a", "1"), ("b", "1")]

    def test_several_share_a_project(self):
        catalogue = filled(estate(), estate("2", "two"), ours("a"), ours("b", experiment="two", experiment_id="2"))
        assert [one.name for one in catalogue.experiments()] == ["vision/eager", "two"]
        assert pairs(catalogue) == [("a", "1"), ("b", "2")]

    def test_one_id_from_two_estates_is_two_experiments(self):
        catalogue = filled(estate(), estate("1", "other", "other"), ours("a"), ours("b", "other", experiment="other"))
        found = {one.id: one.name for one in catalogue.experiments()}
        assert sorted(found.values()) == ["other", "vision/eager"]
        assert {run: found[experiment] for run, experiment in pairs(catalogue)} == {"a": "vision/eager", "b": "other"}

    def test_runs_of_wandbs_own_beside_them_are_in_the_project(self):
        catalogue = filled(estate(), ours("a"), own("mine"))
        assert dict(pairs(catalogue)) == {"a": "1", "mine": "team/vision"}
        assert {one.id for one in catalogue.experiments()} == {"1", "team/vision"}

    def test_or_in_the_experiment_that_the_project_is_called_by(self):
        catalogue = filled(estate("1", "vision"), ours("a", experiment="vision"), own("mine"))
        assert dict(pairs(catalogue)) == {"a": "1", "mine": "1"}
        assert [one.id for one in catalogue.experiments()] == ["1"]

    def test_where_its_own_run_is_missing_an_experiment_is_made_of_what_runs_say(self):
        catalogue = filled(ours("a"))
        assert catalogue.experiments() == [Experiment("1", "vision/eager")]
        assert pairs(catalogue) == [("a", "1")]

    def test_a_run_that_was_not_written_whole_is_told_and_not_read(self):
        catalogue = filled(ours("a", stamp=""), ours("b"))
        assert [ref.id for ref in catalogue.refs()] == ["b"]
        assert [loss.run for loss in catalogue.oddities()] == ["a"]

    def test_of_two_generations_the_later_is_read(self):
        first, second = ours("a"), ours("a-2", origin="mlflow:a", generation=2)
        for runs in ((first, second), (second, first)):
            catalogue = filled(*runs)
            assert [ref.id for ref in catalogue.refs()] == ["a-2"]
            assert len(catalogue.oddities()) == 1

    def test_parents_come_before_their_children(self):
        child = ours("c", tags={PARENT_TAG: "p"})
        grandchild = ours("g", tags={PARENT_TAG: "c"})
        assert [ref.id for ref in filled(grandchild, child, ours("p")).refs()] == ["p", "c", "g"]

    def test_a_circle_of_parents_is_no_harm(self):
        runs = ours("a", tags={PARENT_TAG: "b"}), ours("b", tags={PARENT_TAG: "a"})
        assert len(filled(*runs).refs()) == 2

    def test_records_come_last_and_under_the_ids_they_had(self):
        registry = ours("r1", "mlmigrate", "", "", kind="records", id="@registry", origin="mlflow:@registry:x")
        traces = ours("r2", kind="records", id="@traces/1", origin="mlflow:@traces/1:x")
        catalogue = filled(registry, traces, ours("a"), estate())
        refs = catalogue.refs()
        assert [(ref.id, ref.experiment, ref.kind) for ref in refs] == [
            ("a", "1", "run"),
            ("@registry", "", "records"),
            ("@traces/1", "1", "records"),
        ]
        assert catalogue.find(refs[1]) == Where("team", "mlmigrate", "r1")
        assert [one.id for one in catalogue.experiments()] == ["1"]  # nothing for a project of records alone


class TestSweepsAndGroups:
    RUNS = (own("a", sweep="sw", group="g", started=7), own("b", sweep="sw", started=5), own("c", group="g"))
    SWEEP = Sweep("sw", "team", "vision", "grid of lr", {"method": "grid"}, "ada", 4, body={"state": "FINISHED"})

    def test_they_are_tags_alone_unless_asked_for(self):
        assert [ref.id for ref in filled(*self.RUNS).refs()] == ["a", "b", "c"]

    def test_a_sweep_may_be_a_run_whose_config_is_its_own(self):
        options = Options(sweeps="runs")
        catalogue = filled(*self.RUNS, options=options, sweep=[self.SWEEP])
        first = catalogue.refs()[0]
        with WandbReading([first], catalogue.opened, options) as reading:
            run = reading.runs[0]
        assert (run.id, run.name, run.status, run.experiment) == ("sweep-sw", "grid of lr", "FINISHED", "team/vision")
        assert (run.params, run.user, run.start) == ({"method": "grid"}, "ada", 4)
        assert PARENT_TAG not in run.tags

    def test_a_sweep_of_which_nobody_tells_is_made_of_its_runs(self):
        options = Options(sweeps="runs")
        catalogue = filled(*self.RUNS, options=options)
        assert catalogue.opened(catalogue.refs()[0]).run.started == 5

    def test_a_group_may_be_a_run(self):
        options = Options(groups="runs")
        catalogue = filled(*self.RUNS, own("d", "other", group="g"), options=options)
        made = [ref for ref in catalogue.refs() if ref.id.startswith("group-")]
        assert [(ref.name, ref.experiment) for ref in made] == [("g", "team/other"), ("g", "team/vision")]
        with WandbReading([next(ref for ref in catalogue.refs() if ref.id == "a")], Opened(self.RUNS), options) as one:
            assert one.runs[0].tags[PARENT_TAG] == made[1].id

    def test_sweeps_and_reports_are_records(self):
        report = Report("r1", "team", "vision", {"displayName": "what we found", "spec": {"blocks": []}})
        catalogue = filled(*self.RUNS, sweep=[self.SWEEP], report=[report])
        held = [ref for ref in catalogue.refs() if ref.kind == "records"]
        assert [(ref.id, ref.experiment) for ref in held] == [
            ("@reports/team/vision", "team/vision"),
            ("@sweeps/team/vision", "team/vision"),
        ]
        with WandbReading(held, catalogue.opened, Options()) as reading:
            assert list(reading.records()) == [
                Record("wandb.report", "r1", "team/vision", json.dumps(dict(sorted(report.body.items())))),
                Record("wandb.sweep", "sw", "team/vision", '{"state": "FINISHED"}'),
            ]
            assert list(reading.runs) == []

    def test_records_of_ours_come_in_the_order_in_which_they_refer_to_each_other(self):
        ids = ("@registry", "@traces/1/10", "@traces/1/9", "@logged_models/1", "@something")
        runs = [
            WandbRun(
                id=f"r{n}",
                entity="team",
                project="vision",
                config={KEY: as_config(Provenance(kind="records", origin=f"mlflow:{id_}", stamp="s", id=id_))},
            )
            for n, id_ in enumerate(ids)
        ]
        found = [ref.id for ref in filled(*runs).refs() if ref.kind == "records"]
        names = [f"@{group}" for group in GROUPS]
        assert found[-1] == "@something"
        assert [one for one in found if one.startswith("@traces")] == ["@traces/1/9", "@traces/1/10"]
        assert names.index("@logged_models") < names.index("@registry")
        assert found.index("@logged_models/1") < found.index("@registry")

    def test_a_stamp_changes_when_the_thing_does(self):
        other = replace(self.SWEEP, body={"state": "RUNNING"})
        one, two = (filled(sweep=[sweep]).refs()[0] for sweep in (self.SWEEP, other))
        assert (one.origin, one.id) == (two.origin, two.id)
        assert one.stamp != two.stamp
        assert one == filled(sweep=[self.SWEEP]).refs()[0]


class Opened:
    """Opens runs as they were listed."""

    def __init__(self, runs):
        self.runs = {run.id: run for run in runs}

    def __call__(self, ref):
        return Bare(self.runs[ref.id])


class Bare:
    def __init__(self, run):
        self.run, self.losses = run, []

    def history(self):
        return iter(())

    events = history

    def called(self, named):
        return self.run.logged


class TestArtifactsOfNoRun:
    LOOSE = Version("raw", "dataset", "v0", "team", "vision", "d0")

    def test_a_run_of_their_own_holds_them(self):
        file = File("x.csv", lambda: io.BytesIO(b"1,2"))
        catalogue = Catalogue(Options(), fill=lambda version: replace(version, files=(file,)))
        catalogue.add(own("a"), "s")
        catalogue.loose(self.LOOSE)
        first = catalogue.refs()[0]
        assert (first.name, first.experiment) == ("artifacts", "team/vision")
        with WandbReading([first], catalogue.opened, Options()) as reading:
            paths = {artifact.path for artifact in reading.artifacts()}
        assert paths == {"wandb/artifacts/raw/v0/x.csv", "wandb/run.json"}


class TestModels:
    NET = Version(
        "net", "model", "v0", "team", "vision", "d0", "the net", {"layers": 3}, ("latest",), created=5, run="a"
    )

    def tree(self, catalogue):
        registry = catalogue.refs()[-1]
        assert (registry.id, registry.kind, registry.experiment) == ("@registry", "records", "")
        with WandbReading([registry], catalogue.opened, Options(models=True)) as reading:
            return {
                record.id: json.loads(record.body)
                for record in reading.records()
                if record.kind == "mlflow.registered_model"
            }

    def test_they_stay_artifacts_unless_asked_for(self):
        assert [ref.id for ref in filled(own("a", logged=(self.NET,))).refs()] == ["a"]

    def test_a_collection_is_a_registered_model_with_versions_and_aliases(self):
        later = replace(self.NET, version="v2", aliases=("latest", "v2", "prod", "best!"), created=9, run="b")
        catalogue = Catalogue(Options(models=True), models=lambda: [later, self.NET])
        catalogue.add(own("a"), "s")
        catalogue.add(own("b"), "s")
        tree = self.tree(catalogue)["net"]
        assert [(row["name"], row["creation_time"], row["last_updated_time"]) for row in tree["registered_models"]] == [
            ("net", 5, 9)
        ]
        assert [(row["version"], row["source"], row["run_id"], row["status"]) for row in tree["model_versions"]] == [
            (1, "runs:/a/wandb/artifacts/net/v0", "a", "READY"),
            (3, "runs:/b/wandb/artifacts/net/v2", "b", "READY"),
        ]
        assert tree["registered_model_aliases"] == [{"name": "net", "alias": "prod", "version": 3}]
        tags = {(row["version"], row["key"]): row["value"] for row in tree["model_version_tags"]}
        assert tags[3, "wandb.version"] == "v2"
        assert json.loads(tags[3, "wandb.aliases"]) == ["latest", "v2", "prod", "best!"]
        assert json.loads(tags[1, "wandb.metadata"]) == {"layers": 3}

    def test_the_models_that_runs_were_told_with_are_known(self):
        catalogue = filled(own("a", logged=(self.NET,)), options=Options(models=True))
        assert list(self.tree(catalogue)) == ["net"]

    def test_the_run_is_called_as_it_is_called_here(self):
        other = replace(self.NET, project="other")
        runs = own("a", logged=(self.NET,)), own("a", "other", logged=(other,))
        catalogue = filled(*runs, options=Options(models=True))
        ids = {ref.id for ref in catalogue.refs() if ref.kind == "run"}
        trees = self.tree(catalogue)
        assert set(trees) == {"net", "net-vision"}
        assert {tree["model_versions"][0]["run_id"] for tree in trees.values()} == ids

    def test_those_of_no_run_are_where_their_files_are(self):
        loose = replace(self.NET, run="")
        catalogue = filled(own("a"), options=Options(models=True), loose=[loose])
        holder = catalogue.refs()[0]
        row = self.tree(catalogue)["net"]["model_versions"][0]
        assert row["source"] == f"runs:/{holder.id}/wandb/artifacts/net/v0"

    def test_those_that_we_wrote_came_with_their_own_registry(self):
        catalogue = Catalogue(Options(models=True), models=lambda: [self.NET])
        catalogue.add(ours("a"), "s")
        assert [ref.id for ref in catalogue.refs()] == ["a"]


def test_a_ref_tells_what_a_listing_knows():
    run = own("a", name="n", state="running", started=5)
    ref = ref_of(run, "s", 10, 20, "e")
    assert (ref.experiment, ref.id, ref.name, ref.origin, ref.stamp) == ("e", "a", "n", "wandb:team/vision:a", "s")
    assert (ref.status, ref.start, ref.points, ref.size, ref.kind) == ("RUNNING", 5, 10, 20, "run")
    assert ref_of(estate(), "s", 0, 0, "e") is None
    assert ref_of(ours("a", stamp=""), "s", 0, 0, "e") is None
    assert ref_of(ours("a", start=9, deleted=True, status="KILLED"), "s", 0, 0, "e").deleted


def test_a_stamp_tells_its_parts_apart():
    assert stamp_of("a", "b") != stamp_of("ab") != stamp_of("ab", "")
    assert stamp_of({"a": 1, "b": 2}) == stamp_of({"b": 2, "a": 1})
    assert len(stamp_of(None, 3, b"x", [1, {"a": "\ud800"}])) == 32


class Place:
    """A source over a catalogue and the runs that it was filled with."""

    packing = Packing()

    def __init__(self, options, runs, **kinds):
        self.catalogue, self.options = filled(*runs, options=options, **kinds), options
        self.runs = Opened(runs)

    def experiments(self):
        return self.catalogue.experiments()

    def refs(self):
        return self.catalogue.refs()

    def oddities(self):
        return self.catalogue.oddities()

    @contextmanager
    def read(self, refs):
        def opened(ref):
            return self.catalogue.opened(ref) if self.catalogue.find(ref) is None else self.runs(ref)

        with WandbReading(refs, opened, self.options) as reading:
            yield reading

    def close(self): ...


def test_sweeps_groups_and_models_arrive_in_mlflow_as_parents_and_registered_models(tmp_path, monkeypatch):
    def net(version, run, *aliases):
        file = File("MLmodel", lambda: io.BytesIO(b"flavors: {}\n"))
        return Version("net", "model", version, "team", "vision", version, aliases=aliases, run=run, files=(file,))

    runs = (
        own("a", name="one", sweep="sw", logged=(net("v0", "a"),), summary={"x": 1.5}, started=5),
        own(
            "b",
            name="two",
            group="g",
            logged=(net("v1", "b", "latest", "prod"),),
            files=(File("../x", lambda: io.BytesIO(b"1")),),
            started=5,
        ),
    )
    options = Options(sweeps="runs", groups="runs", models=True)
    source = Place(options, runs, sweep=[Sweep("sw", "team", "vision", "grid", {"method": "grid"})])
    open_source = registry.open_source
    monkeypatch.setattr(
        registry,
        "open_source",
        lambda place, context: source if place.kind == "memory" else open_source(place, context),
    )
    job = Job(address.parse("memory:x"), address.parse(f"mlflow:sqlite:///{tmp_path}/m.db"))
    ledger = Ledger.open(tmp_path / "ledger", job.source, job.target)
    assert transfer(job, ledger, Silent()).copied
    verdict = verify(job, Silent())
    assert (verdict.equal, verdict.findings) == (4, ())
    query = sqlite3.connect(tmp_path / "m.db").execute
    assert dict(query("select run_uuid, name from runs")) == {
        "a": "one",
        "b": "two",
        "sweep-sw": "grid",
        group_run("team", "vision", "g"): "g",
    }
    assert dict(query("select run_uuid, value from tags where key = 'mlflow.parentRunId'")) == {
        "a": "sweep-sw",
        "b": group_run("team", "vision", "g"),
    }
    assert sorted(query("select name, version, source, run_id from model_versions")) == [
        ("net", 1, "runs:/a/wandb/artifacts/net/v0", "a"),
        ("net", 2, "runs:/b/wandb/artifacts/net/v1", "b"),
    ]
    assert list(query("select name, alias, version from registered_model_aliases")) == [("net", "prod", 2)]
