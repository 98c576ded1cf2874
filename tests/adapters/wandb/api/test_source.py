"""A server as a source: what the real SDK logged there is read, whole, in few requests; faults are met or told."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import wandbsdk
import wandbserver
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.wandb.api import versions
from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.histories import Where
from mlmigrate.adapters.wandb.api.opened import console_opener
from mlmigrate.adapters.wandb.api.source import ApiSource, open_source
from mlmigrate.adapters.wandb.reading import WandbReading
from mlmigrate.address import parse
from mlmigrate.errors import MigrateError, NotFound, Refused, Unavailable
from mlmigrate.steps import Steps

pytestmark = pytest.mark.slow
LOG = """
import json, math, wandb

for n in range(3):
    config = {"lr": 0.1 * n, "deep": {"a": 1, "b": [1, 2]}, "text": "x", "none": None}
    about = dict(name=f"run {n}", notes="a note", tags=["a", "b"], group="g", job_type="train")
    with wandb.init(project="vision", id=f"r{n}", config=config, **about) as run:
        run.define_metric("epoch")
        run.define_metric("loss", step_metric="epoch", summary="min")
        for i in range(20):
            told = {"loss": 1 / (i + 1), "epoch": i, "nest": {"a": i}, "ok": i % 2 == 0, "word": f"w{i}"}
            run.log(told if i != 7 else {**told, "loss": math.nan, "big": 2**60})
        run.log({"late": math.inf}, step=1000)
        open("hello.txt", "w").write("hello")
        run.save("hello.txt")
        artifact = wandb.Artifact(f"data{n}", type="dataset", metadata={"k": n}, description="about it")
        with artifact.new_file("a/x.txt") as file:
            file.write(f"bytes {n}")
        artifact.add_reference("mydb://bucket/key", name="elsewhere")
        run.log_artifact(artifact, aliases=["best"], tags=["t"]).wait()
        if n:
            run.use_artifact("data0:latest")
        print(f"printed by {n}")
"""
TELL = """
import json, wandb

api = wandb.Api()
told = {}
for run in api.runs("team/vision", lazy=False):
    told[run.id] = {
        "rows": list(run.scan_history(use_cache=False)),
        "config": run.config,
        "name": run.name,
        "state": run.state,
        "tags": run.tags,
        "files": {file.name: file.size for file in run.files()},
    }
open("told.json", "w").write(json.dumps(told, default=str))
"""


@pytest.fixture(scope="module")
def running() -> Iterator[wandbserver.Server]:
    with wandbserver.running() as server:
        yield server


@pytest.fixture(scope="module")
def told(running: wandbserver.Server, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What the real SDK logged, as the real SDK reads it again."""
    folder = tmp_path_factory.mktemp("sdk")
    wandbsdk.run("0.31.0", LOG, running, folder)
    wandbsdk.ask("0.31.0", TELL, running, folder)
    return json.loads((folder / "told.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def server(
    running: wandbserver.Server, told: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[wandbserver.Server]:
    """With what the SDK logged in it."""
    assert len(told) == 3
    for name, value in running.env.items():
        monkeypatch.setenv(name, value)
    running.forget()
    yield running
    running.heal()


def source(place: str = "wandb:team/vision", tries: int = 3, **options: Any) -> ApiSource:
    settings = Settings(options=tuple((f"wandb.{name}", value) for name, value in options.items()))
    return open_source(parse(place), Context("source", Steps(tries), settings))


@contextmanager
def reading(place: str = "wandb:team/vision", tries: int = 3, **options: Any) -> Iterator[WandbReading]:
    with closing(source(place, tries, **options)) as opened, opened.read(list(opened.refs())) as read:
        yield read


def points(read: WandbReading) -> Counter[tuple[str, str, int, str]]:
    """(run, key, step, value) of history; how often each is there."""
    found: Counter[tuple[str, str, int, str]] = Counter()
    for batch in read.points():
        for point in batch.to_pylist():
            found[point["run"], point["key"], point["step"], repr(point["value"])] += 1
    return found


def files(read: WandbReading) -> dict[tuple[str, str], bytes]:
    found = {}
    for artifact in read.artifacts():
        with artifact.open() as data:
            found[artifact.owner, artifact.path] = data.read()
    return found


def numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a row as the SDK tells it."""
    for key, value in row.items():
        if isinstance(value, dict) and "_type" not in value:
            yield from numbers(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            number = {"NaN": math.nan, "Infinity": math.inf}.get(value, value) if isinstance(value, str) else value
            if isinstance(number, int | float):
                yield f"{prefix}{key}", float(number)


class TestWhatTheSdkLogged:
    def test_runs_are_told(self, server: wandbserver.Server, told: Mapping[str, Any]) -> None:
        with reading() as read:
            assert [run.id for run in read.runs] == ["r0", "r1", "r2"]
            for run in read.runs:
                assert run.name == told[run.id]["name"]
                assert run.status == "FINISHED"
                assert run.params["lr"] == told[run.id]["config"]["lr"]
                assert run.params["deep.b"] == "[1, 2]"
                assert json.loads(run.tags["wandb.tags"]) == told[run.id]["tags"]
                assert run.tags["mlflow.note.content"] == "a note"

    def test_points_are_those_that_the_sdk_reads(self, server: wandbserver.Server, told: Mapping[str, Any]) -> None:
        expected: Counter[tuple[str, str, int, str]] = Counter()
        for id_, run in told.items():
            for row in run["rows"]:
                expected.update((id_, key, row["_step"], repr(value)) for key, value in numbers(row))
        with reading() as read:
            found = points(read)
            assert read.losses == []
        plain = {
            point: n for point, n in found.items() if not point[1].startswith("system/") and point[1] != "loss.min"
        }
        assert plain == expected

    def test_system_metrics_are_those_that_were_sent(self, server: wandbserver.Server) -> None:
        expected: Counter[tuple[str, str, int, str]] = Counter()
        for run in server.state()["runs"].values():
            for n, line in enumerate(run["events"]):
                row = json.loads(line).items()
                expected.update(
                    (run["name"], "system/" + key.removeprefix("system."), n, repr(float(value)))
                    for key, value in row
                    if key.startswith("system.")
                )
        with reading() as read:
            found = points(read)
        assert {point: n for point, n in found.items() if point[1].startswith("system/")} == expected
        assert expected

    def test_files_are_those_on_the_server(self, server: wandbserver.Server, told: Mapping[str, Any]) -> None:
        state = server.state()
        with reading() as read:
            found = files(read)
            assert read.losses == []
        for id_ in told:
            there = {path.removeprefix("wandb/files/") for run, path in found if run == id_ and "/files/" in path}
            assert there == set(state["runs"][f"team/vision/{id_}"]["files"])
            assert found[id_, "wandb/files/hello.txt"] == b"hello"
            assert found[id_, "wandb/files/output.log"] == f"printed by {id_[1:]}\n".encode()
            assert found[id_, f"wandb/artifacts/data{id_[1:]}/v0/a/x.txt"] == f"bytes {id_[1:]}".encode()

    def test_all_that_is_told_stands_in_run_json(self, server: wandbserver.Server, told: Mapping[str, Any]) -> None:
        with reading() as read:
            found = files(read)
        for id_, mine in told.items():
            run = json.loads(found[id_, "wandb/run.json"])["run"]
            assert {key: value for key, value in run["config"].items() if key != "mlmigrate"} == mine["config"]
            assert run["lines"] == len(mine["rows"])
            (version,) = run["logged"]
            state = server.state()["artifacts"][f"team/vision/data{id_[1:]}:v0"]
            assert version["digest"] == state["digest"]
            assert (version["type"], version["metadata"]) == ("dataset", {"k": int(id_[1:])})
            assert sorted(version["aliases"]) == ["best", "latest"]
            assert version["tags"] == ["t"]
            assert {one["path"]: one.get("ref") for one in version["files"]} == {
                "a/x.txt": None,
                "elsewhere": "mydb://bucket/key",
            }
            assert [(one["name"], one["run"]) for one in run.get("used", [])] == (
                [("data0", "r0")] if id_ != "r0" else []
            )
            loss = next(one for one in run["metrics"] if one.get("name") == "loss")
            assert loss["step_metric"] == "epoch"
            assert loss["summary"] == {"min": True}

    def test_requests_are_few(self, server: wandbserver.Server) -> None:
        with reading() as read:
            points(read)
        asked = Counter(name for _, name in server.requests())
        assert asked["ReadRun"] == 3
        assert asked["/storage/get/wandb_manifest.json"] == 3
        assert sum(asked.values()) - 6 <= 10  # what is asked once: the viewer, projects, lists
        assert asked["Run"] == asked["HistoryPage"] == 0

    def test_the_list_of_operations_is_within_what_the_sdk_asks_for(self, server: wandbserver.Server) -> None:
        with reading("wandb:team") as read:
            files(read)
        assert not any(server.operations().values())

    def test_exports_give_the_same(self, server: wandbserver.Server) -> None:
        with reading() as read:
            plain = points(read)
        for id_, parts in (("r0", (21,)), ("r1", (10,)), ("r2", (5, 5))):
            server.export(f"team/vision/{id_}", *parts)
        try:
            with reading() as read:
                assert points(read) == plain
                assert read.losses == []
        finally:
            for id_ in ("r0", "r1", "r2"):
                server.export(f"team/vision/{id_}")

    def test_a_run_that_did_not_change_keeps_its_stamp(self, server: wandbserver.Server) -> None:
        def stamps() -> dict[str, str]:
            with closing(source()) as opened:
                return {ref.id: ref.stamp for ref in opened.refs()}

        before = stamps()
        server.set("team/vision/r1", notes="another")
        after = stamps()
        server.set("team/vision/r1", notes="a note")
        assert [id_ for id_ in before if before[id_] != after[id_]] == ["r1"]

    def test_runs_are_looked_at_side_by_side(self, server: wandbserver.Server, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(source()) as opened:
            refs, asked, all_there = list(opened.refs()), opened._client._graphql, threading.Barrier(3)

            def met(name: str, body: bytes) -> dict[str, Any]:
                """None is asked before the others are about to be."""
                if name == "ReadRun":
                    all_there.wait(60)
                return asked(name, body)

            monkeypatch.setattr(opened._client, "_graphql", met)
            server.forget()
            with opened.read(refs):
                pass
        assert [name for _, name in server.requests()].count("ReadRun") == 3


class TestFaults:
    @pytest.mark.parametrize(
        "headers", [{"Retry-After": "0.2"}, {"RateLimit-Remaining": "0", "RateLimit-Reset": "0.2"}]
    )
    def test_a_busy_server_is_waited_for(self, server: wandbserver.Server, headers: Mapping[str, str]) -> None:
        with reading() as read:
            plain = points(read)
        server.fail("graphql", 429, times=5, headers=headers)
        with reading() as read:
            assert points(read) == plain
            assert read.losses == []

    @pytest.mark.parametrize("match", ["Viewer", "Runs", "ReadRun", "GET", "ProjectArtifactTypes"])
    @pytest.mark.parametrize("status", [500, 0])
    def test_each_request_may_be_lost_once(self, server: wandbserver.Server, match: str, status: int) -> None:
        server.fail(match, status)
        with reading() as read:
            assert len(files(read)) > 20
            assert read.losses == []

    def test_a_server_that_stays_away_is_an_error(self, server: wandbserver.Server) -> None:
        server.fail("ReadRun", 503, times=50)
        with pytest.raises(Unavailable), reading(tries=1):
            pass

    def test_a_wrong_key_is_refused_with_what_to_set(
        self, server: wandbserver.Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
        with pytest.raises(Refused) as caught:
            source()
        assert "WANDB_API_KEY" in caught.value.hint
        assert "f" * 40 not in str(caught.value) + caught.value.hint

    def test_no_key_is_refused_before_anything_is_asked(
        self, server: wandbserver.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        with pytest.raises(Refused, match="no API key"):
            source()
        assert server.requests() == []

    @pytest.mark.parametrize("place", ["wandb:nobody", "wandb:team/nothing", "wandb:nobody/vision"])
    def test_a_place_that_is_not_there_is_not_found(self, server: wandbserver.Server, place: str) -> None:
        with pytest.raises(NotFound) as caught:
            source(place)
        assert place.removeprefix("wandb:").partition("/")[0] in caught.value.message

    def test_a_forbidden_entity_is_an_error_that_says_so(self, server: wandbserver.Server) -> None:
        with pytest.raises(MigrateError) as caught:
            source("wandb:forbidden/x")
        assert isinstance(caught.value, Refused | NotFound)

    def test_bytes_that_are_gone_are_told_and_the_rest_is_read(
        self, server: wandbserver.Server, tmp_path: Path
    ) -> None:
        wandbsdk.run("0.31.0", GONE, server, tmp_path)
        (artifact,) = (one for path, one in server.state()["artifacts"].items() if path.startswith("team/gone/"))
        server.lose(artifact["manifest"]["bad.txt"]["digest"])
        with reading("wandb:team/gone") as read:
            found = files(read)
            assert [path for _, path in found if "/artifacts/" in path] == ["wandb/artifacts/thing/v0/good.txt"]
            (loss,) = read.losses
        assert "bad.txt" in loss.what
        told = json.loads(found["one", "wandb/run.json"])["run"]["logged"][0]["files"]
        assert [(one["path"], bool(one.get("gone"))) for one in told] == [("bad.txt", True), ("good.txt", False)]

    def test_signed_urls_that_are_too_old_are_asked_for_again(self, server: wandbserver.Server) -> None:
        with closing(source()) as opened:
            refs = list(opened.refs())
            with opened.read(refs) as read:
                _age(read)
                server.expire()
                assert len(files(read)) > 20
                assert read.losses == []

    def test_two_servers_with_the_same_names_do_not_mix(
        self, server: wandbserver.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with wandbserver.running() as other:
            wandbsdk.run("0.31.0", OTHER, other, tmp_path)
            with reading() as read:
                here = points(read)
            monkeypatch.setenv("SOURCE_WANDB_BASE_URL", other.url)
            with reading() as read:
                there = points(read)
        assert ("r0", "loss", 0, "1.0") in here
        assert [point for point in there if point[1] == "loss"] == [("r0", "loss", 0, "99.0")]


def _age(read: WandbReading) -> None:
    """Signed URLs that were given are older than they are."""
    versions_urls = [
        cell.cell_contents
        for one in read._all
        for file in (*one.run.files, *(file for version in one.run.logged for file in version.files))
        for cell in (getattr(file.open, "__wrapped__", None) or (lambda: None)).__closure__ or ()
        if isinstance(cell.cell_contents, versions.Urls)
    ]
    assert versions_urls
    for urls in versions_urls:
        urls.at -= 3600


GONE = """
import wandb

with wandb.init(project="gone", id="one") as run:
    artifact = wandb.Artifact("thing", type="data")
    for name in ("good.txt", "bad.txt"):
        with artifact.new_file(name) as file:
            file.write(f"bytes of {name}")
    run.log_artifact(artifact).wait()
"""
OTHER = """
import wandb

with wandb.init(project="vision", id="r0") as run:
    run.log({"loss": 99.0})
"""


SWEEP = """
import wandb

wandb.sweep({"method": "grid", "parameters": {"lr": {"values": [1, 2]}}}, project="beside", entity="team")
"""
CHILD = """
import wandb

with wandb.init() as run:
    run.log({"loss": 1})
"""
MODEL = """
import wandb

with wandb.init(project="models", id="one") as run:
    artifact = wandb.Artifact("net", type="model")
    with artifact.new_file("weights") as file:
        file.write("w")
    run.log_artifact(artifact, aliases=["prod"]).wait()
"""


class TestOddServers:
    """What an older server, or a run that changes meanwhile, makes of it."""

    @pytest.mark.parametrize(
        "error", [Unsupported("Cannot query field"), Refused("not yours"), Unavailable("timed out")]
    )
    def test_one_part_that_is_not_to_be_had_does_not_stop_the_others(
        self, server: wandbserver.Server, monkeypatch: pytest.MonkeyPatch, error: MigrateError
    ) -> None:
        with closing(source(tries=1)) as opened:
            refs, asked = list(opened.refs()), opened._client._graphql

            def picky(name: str, body: bytes) -> dict[str, Any]:
                alone = b"outputArtifacts" not in body
                if b"inputArtifacts" in body and not (alone and isinstance(error, Unavailable)):
                    raise error
                return asked(name, body)

            monkeypatch.setattr(opened._client, "_graphql", picky)
            with opened.read(refs) as read:
                assert len(files(read)) > 20
                told = [] if isinstance(error, Unavailable) else ["r0", "r1", "r2"]
                assert [(loss.run, loss.what) for loss in read.losses] == [
                    (id_, "artifacts that it used") for id_ in told
                ]

    def test_a_server_without_filters_is_asked_run_by_run(
        self, server: wandbserver.Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with closing(source()) as opened:
            refs, asked = list(opened.refs()), opened._client._graphql

            def older(name: str, body: bytes) -> dict[str, Any]:
                if b"$in" in body:
                    raise MigrateError("filters are no JSON")
                return asked(name, body)

            monkeypatch.setattr(opened._client, "_graphql", older)
            with opened.read(refs) as read:
                assert [run.id for run in read.runs] == ["r0", "r1", "r2"]

    def test_a_run_that_was_deleted_meanwhile_is_left_out_and_told(
        self, server: wandbserver.Server, tmp_path: Path
    ) -> None:
        wandbsdk.run("0.31.0", OTHER.replace("vision", "leaving"), server, tmp_path)
        with closing(source("wandb:team/leaving")) as opened:
            refs = list(opened.refs())
            wandbsdk.run("0.31.0", "import wandb; wandb.Api().run('team/leaving/r0').delete()", server, tmp_path)
            with opened.read(refs) as read:
                assert list(read.runs) == []
                (loss,) = read.losses
        assert "gone" in loss.because

    def test_a_page_that_is_too_much_is_asked_for_in_parts(self, server: wandbserver.Server) -> None:
        server.fail("Runs", 502, times=1)
        with closing(source(tries=1)) as opened:
            assert [ref.id for ref in opened.refs() if ref.kind == "run"] == ["r0", "r1", "r2"]

    def test_a_console_without_its_file_is_read_line_by_line(self, server: wandbserver.Server) -> None:
        client = Client(server.url, server.key)
        text = "mutation M($input: UpsertBucketInput!) { upsertBucket(input: $input) { inserted } }"
        client.graphql(text, {"input": {"entityName": "team", "modelName": "console", "name": "one"}})
        lines = [f"line {n}" for n in range(2500)]
        client.stream("team", "console", "one", {"files": {"output.log": {"offset": 0, "content": lines}}})
        with console_opener(client, Where("team", "console", "one"))() as data:
            assert data.read().decode() == "".join(f"{line}\n" for line in lines)
        client.close()


class TestBesideRuns:
    def test_reports_come_as_records(self, server: wandbserver.Server) -> None:
        server.report("vision", "A title", {"blocks": [1]}, "about it")
        with closing(source()) as opened:
            refs = [ref for ref in opened.refs() if ref.kind == "records"]
            with opened.read(refs) as read:
                (record,) = read.records()
        body = json.loads(record.body)
        assert (record.kind, body["displayName"], body["spec"]) == ("wandb.report", "A title", {"blocks": [1]})

    def test_sweeps_come_as_records_and_as_tags_or_parents(self, server: wandbserver.Server, tmp_path: Path) -> None:
        wandbsdk.run("0.31.0", SWEEP, server, tmp_path)
        (sweep,) = server.state()["projects"]["team/beside"]["sweeps"]
        wandbsdk.run("0.31.0", CHILD, server, tmp_path, {"WANDB_SWEEP_ID": sweep, "WANDB_PROJECT": "beside"})
        with closing(source("wandb:team/beside")) as opened:
            refs = list(opened.refs())
            with opened.read([ref for ref in refs if ref.kind == "records"]) as read:
                (record,) = read.records()
            with opened.read([ref for ref in refs if ref.kind == "run"]) as read:
                (run,) = read.runs
                told = json.loads(files(read)[run.id, "wandb/run.json"])["run"]
        assert (record.kind, record.id) == ("wandb.sweep", sweep)
        assert run.tags["wandb.sweep"] == sweep
        assert told["sweep_config"]["parameters"] == {"lr": {"values": [1, 2]}}
        with reading("wandb:team/beside", sweeps="runs") as read:
            parent, child = read.runs
        assert child.tags["mlflow.parentRunId"] == parent.id

    def test_models_can_be_registered_models(self, server: wandbserver.Server, tmp_path: Path) -> None:
        wandbsdk.run("0.31.0", MODEL, server, tmp_path)
        with closing(source("wandb:team/models", models=True)) as opened:
            refs = [ref for ref in opened.refs() if ref.kind == "records"]
            with opened.read(refs) as read:
                told = list(read.records())
        assert any("net" in record.body for record in told)

    def test_versions_that_no_run_made_are_in_a_run_of_their_own(self, server: wandbserver.Server) -> None:
        put_loose(server)
        with reading("wandb:team/loose") as read:
            (run,) = read.runs
            assert run.name == "artifacts"
            found = files(read)
            assert read.losses == []
        assert found[run.id, "wandb/artifacts/alone/v0/x.txt"] == b"alone"


def put_loose(server: wandbserver.Server) -> None:
    """An artifact without a run, as W&B's own page makes them."""

    def md5(data: bytes) -> str:
        return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()

    def ask(text: str, **given: Any) -> Any:
        return next(iter(client.graphql(text, {"input": given}).values()))

    client = Client(server.url, server.key)
    data = b"alone"
    digest = hashlib.md5(f"wandb-artifact-manifest-v1\nx.txt:{md5(data)}\n".encode(), usedforsecurity=False).hexdigest()
    ask(
        "mutation M($input: UpsertModelInput!) { upsertModel(input: $input) { inserted } }",
        name="loose",
        entityName="team",
    )
    home = {"entityName": "team", "projectName": "loose"}
    text = "mutation M($input: CreateArtifactInput!) { createArtifact(input: $input) { artifact { id } } }"
    id_ = ask(text, **home, artifactTypeName="data", artifactCollectionNames=["alone"], digest=digest)["artifact"]["id"]
    manifest = json.dumps(
        {
            "version": 1,
            "storagePolicy": "wandb-storage-policy-v1",
            "storagePolicyConfig": {"storageLayout": "V2"},
            "contents": {"x.txt": {"digest": md5(data), "size": len(data), "birthArtifactID": id_}},
        }
    ).encode()
    text = (
        "mutation M($input: CreateArtifactManifestInput!) { createArtifactManifest(input: $input) "
        "{ artifactManifest { id file { uploadUrl uploadHeaders } } } }"
    )
    named = {"name": "wandb_manifest.json", "digest": md5(manifest), **home, "runName": "", "type": "FULL"}
    told = ask(text, artifactID=id_, **named)["artifactManifest"]
    text = (
        "mutation M($input: CreateArtifactFilesInput!) { createArtifactFiles(input: $input) "
        "{ files { edges { node { uploadUrl uploadHeaders } } } } }"
    )
    spec = {"artifactID": id_, "artifactManifestID": told["id"], "name": "x.txt", "md5": md5(data)}
    node = ask(text, artifactFiles=[spec], storageLayout="V2")["files"]["edges"][0]["node"]
    client.put(node["uploadUrl"], lambda: io.BytesIO(data), len(data), node["uploadHeaders"])
    client.put(told["file"]["uploadUrl"], lambda: io.BytesIO(manifest), len(manifest), told["file"]["uploadHeaders"])
    ask(
        "mutation M($input: CommitArtifactInput!) { commitArtifact(input: $input) { artifact { id } } }", artifactID=id_
    )
    client.close()
