"""Limits that a person sets, held by real copies; what plan says they leave behind and cost.

A limit promises that a volume takes no less than a time, so that is what is asked: never how fast it is.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from pathlib import Path

import pytest

import s3faults
import s3server
import servers
from faults import Proxy
from mlmigrate import ledger, plan
from mlmigrate.address import parse
from mlmigrate.cli.jobs import job_of
from mlmigrate.cli.options import Chosen
from mlmigrate.cli.plan import show
from mlmigrate.errors import Damaged
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.storage.throttle import Throttle
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import verify

RUN, RATE = "0123456789abcdef0123456789abcdef", 1_000_000
SLACK = 0.2  # of the time that a limit alone would take


def store(folder: Path, files: dict[str, bytes]) -> str:
    """A file store of one run with these artifacts, written by hand."""
    run = folder / "mlruns" / "1" / RUN
    for name in ("metrics", "params", "tags", "artifacts"):
        (run / name).mkdir(parents=True)
    (folder / "mlruns" / "1" / "meta.yaml").write_text(
        f"artifact_location: file://{run.parent}\ncreation_time: 1\nexperiment_id: '1'\nlast_update_time: 1\n"
        "lifecycle_stage: active\nname: limits\n"
    )
    (run / "meta.yaml").write_text(
        f"artifact_uri: file://{run}/artifacts\nend_time: 2\nentry_point_name: ''\nexperiment_id: '1'\n"
        f"lifecycle_stage: active\nrun_id: {RUN}\nrun_name: r\nrun_uuid: {RUN}\nsource_name: ''\nsource_type: 4\n"
        "source_version: ''\nstart_time: 1\nstatus: 3\ntags: []\nuser_id: u\n"
    )
    for path, data in files.items():
        file = run / "artifacts" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return f"mlflow:{folder}/mlruns"


def some(number: int, size: int) -> dict[str, bytes]:
    """So many files of that size, no two alike."""
    dice = random.Random(number)
    return {f"data/{n}.bin": dice.randbytes(size) for n in range(number)}


class Seen(Silent):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.advances: list[tuple[int, int, int]] = []

    def advance(self, points: int = 0, artifacts: int = 0, size: int = 0) -> None:
        self.advances.append((points, artifacts, size))

    @property
    def sums(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(*self.advances, strict=True)))


def carried(source: str, target: str, tmp_path: Path, seen: Silent | None = None, **fields: object) -> Report:
    job = job_of((source, target), Chosen(**fields))
    held = Ledger.open(tmp_path / f"{time.monotonic_ns()}.sqlite", job.source, job.target)
    try:
        return transfer(job, held, seen or Silent())
    finally:
        held.close()


def planned(source: str, target: str, **fields: object) -> plan.Plan:
    return plan.plan(job_of((source, target), Chosen(**fields)), Silent())


# from disk to disk


def test_bwlimit_holds_from_disk_to_disk(tmp_path):
    source = store(tmp_path, some(20, 100_000))
    begun = time.monotonic()
    report = carried(source, str(tmp_path / "archive"), tmp_path, bwlimit=RATE)
    assert report.size == 2_000_000
    assert time.monotonic() - begun >= 2.0 * (1 - SLACK)


def test_a_byte_is_paid_for_once(tmp_path, monkeypatch):
    paid: list[int] = []
    monkeypatch.setattr(Throttle, "payload", lambda _self, size: paid.append(size))
    carried(store(tmp_path, some(20, 100_000)), str(tmp_path / "archive"), tmp_path, bwlimit=RATE)
    assert sum(paid) == 2_000_000


def test_bwlimit_holds_for_verify(tmp_path):
    source, target = store(tmp_path, some(10, 100_000)), str(tmp_path / "archive")
    carried(source, target, tmp_path)
    begun = time.monotonic()
    verdict = verify(job_of((source, target), Chosen(bwlimit=RATE)), Silent())
    assert (verdict.equal, verdict.findings) == (1, ())
    assert time.monotonic() - begun >= 2.0 * (1 - SLACK)  # both sides are read


def test_bytes_are_told_as_they_pass(tmp_path):
    source, seen = store(tmp_path, {"large.bin": bytes(20 << 20)}), Seen()
    carried(source, str(tmp_path / "archive"), tmp_path, seen)
    assert seen.sums == (0, 1, 20 << 20)
    assert max(size for _, _, size in seen.advances) <= 1 << 20


def test_what_failed_is_told_back(tmp_path, monkeypatch):
    source, seen = store(tmp_path, some(4, 1000)), Seen()

    def refuses(_self: object, artifact: object) -> object:
        with artifact.open() as stream:  # type: ignore[attr-defined]
            stream.read()
        raise Damaged("The bytes read are not those announced.")

    monkeypatch.setattr("mlmigrate.archive.blobs.Blobs.put", refuses)
    report = carried(source, str(tmp_path / "archive"), tmp_path, seen)
    assert [failure.run for failure in report.failed] == [RUN]
    assert max(size for _, _, size in seen.advances) == 1000
    assert seen.sums == (0, 0, 0)


# what is left behind

FILES = {
    "log.txt": b"a" * 10,
    "model/MLmodel": b"flavors: {}\n",
    "model/weights.ckpt": b"w" * 5000,
    "deep/er/old.ckpt": b"o" * 3000,
}


@pytest.mark.parametrize(
    ("fields", "arrived"),
    [
        ({"exclude": ("**/*.ckpt",)}, {"log.txt", "model/MLmodel"}),
        ({"exclude": ("*.ckpt",)}, set(FILES)),
        ({"include": ("model/**",)}, {"model/MLmodel", "model/weights.ckpt"}),
        ({"include": ("model/**",), "exclude": ("**/*.ckpt",)}, {"model/MLmodel"}),
        ({"max_artifact_size": 3000}, set(FILES) - {"model/weights.ckpt"}),
        ({"max_artifact_size": 2999}, {"log.txt", "model/MLmodel"}),
    ],
)
def test_what_is_left_behind_is_planned_and_lost(tmp_path, fields, arrived):
    source, target = store(tmp_path, FILES), f"mlflow:sqlite:///{tmp_path}/new.db"
    said = planned(source, target, **fields)
    report = carried(source, target, tmp_path, artifacts_to=str(tmp_path / "files"), **fields)
    there = {
        str(file.relative_to(folder))
        for folder in (tmp_path / "files").rglob("artifacts")
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert there == arrived
    left = set(FILES) - arrived
    assert (said.left.artifacts, said.left.size) == (len(left), sum(len(FILES[path]) for path in left))
    assert {loss.what for loss in said.losses} == {f"artifact {path!r}" for path in left}
    assert {loss.what for loss in report.losses} == {loss.what for loss in said.losses}


def test_what_is_left_behind_is_no_difference(tmp_path):
    source, target = store(tmp_path, FILES), str(tmp_path / "archive")
    chosen = Chosen(exclude=("**/*.ckpt",))
    carried(source, target, tmp_path, exclude=chosen.exclude)
    assert verify(job_of((source, target), chosen), Silent()).findings == ()
    assert len(verify(job_of((source, target), Chosen()), Silent()).findings) == 2


def test_a_copy_with_other_globs_is_made_again(tmp_path):
    source, target = store(tmp_path, FILES), str(tmp_path / "archive")
    first = carried(source, target, tmp_path, exclude=("**/*.ckpt",))
    again = carried(source, target, tmp_path, exclude=("**/*.ckpt",))
    other = carried(source, target, tmp_path)
    assert [(one.copied, one.already, one.artifacts) for one in (first, again, other)] == [
        (1, 0, 2),
        (0, 1, 0),
        (1, 0, 4),
    ]


def test_the_ledger_names_what_was_left(tmp_path):
    source, target = store(tmp_path, FILES), str(tmp_path / "archive")
    job = job_of((source, target), Chosen(exclude=("model/",)))
    file = tmp_path / "copy.sqlite"
    held = Ledger.open(file, job.source, job.target)
    transfer(job, held, Silent())
    held.close()
    assert {(loss.what, loss.because) for loss in ledger.losses(file)} == {
        ("artifact 'model/MLmodel'", "left out by --exclude 'model/'"),
        ("artifact 'model/weights.ckpt'", "left out by --exclude 'model/'"),
    }


def test_a_copy_on_this_machine_costs_nothing(tmp_path):
    assert planned(store(tmp_path, FILES), str(tmp_path / "archive")).costs == ()


# over a network


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3server.running(tmp_path_factory.mktemp("s3"), volumes=200) as server:
        yield server


@pytest.fixture
def counted(s3, monkeypatch):
    """A proxy that counts what passes between us and the store."""
    with s3faults.faulty(s3) as proxy:
        for name, value in proxy.env.items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.mark.slow
class TestStores:
    def test_bwlimit_holds_on_the_way_up_and_down(self, s3, counted, tmp_path):
        source, target = store(tmp_path, some(20, 100_000)), f"s3://{s3.bucket()}/archive"
        begun = time.monotonic()
        carried(source, target, tmp_path, bwlimit=RATE)
        up = time.monotonic() - begun
        assert counted.up >= 2_000_000
        assert up >= 2.0 * (1 - SLACK)
        begun = time.monotonic()
        carried(target, f"mlflow:sqlite:///{tmp_path}/b.db", tmp_path, bwlimit=RATE, artifacts_to=str(tmp_path / "f"))
        assert time.monotonic() - begun >= 2.0 * (1 - SLACK)

    def test_tpslimit_holds(self, s3, counted, tmp_path):
        source, target = store(tmp_path, some(40, 1000)), f"s3://{s3.bucket()}/archive"
        begun = time.monotonic()
        carried(source, target, tmp_path, tpslimit=20.0)
        seconds = time.monotonic() - begun
        requests = len(counted.seen)
        assert requests >= 40
        assert seconds >= (requests / 20) * (1 - SLACK)

    def test_requests_are_what_plan_said(self, s3, counted, tmp_path):
        files = some(60, 2000) | {"large.bin": random.Random(1).randbytes(40 << 20)}
        source, target = store(tmp_path, files), f"s3://{s3.bucket()}/archive"
        (cost,) = planned(source, target).costs
        counted.seen.clear()
        counted.up, seen = 0, Seen()
        carried(source, target, tmp_path, seen)
        assert seen.sums == (0, 61, cost.up)  # this run has no points
        assert max(size for _, _, size in seen.advances) <= 2 << 20  # the large one moves the bar all the time
        puts = [one for one in counted.seen if one.method in ("PUT", "POST") or one.op.startswith("List")]
        gets = [one for one in counted.seen if one.method in ("GET", "HEAD") and not one.op.startswith("List")]
        assert (cost.side, cost.way, cost.place) == ("target", "store", target)
        assert (cost.puts, cost.gets) == (pytest.approx(len(puts), rel=0.2), pytest.approx(len(gets), abs=5))
        assert (cost.up, cost.down, cost.inside) == (pytest.approx(counted.up, rel=0.05), 0, 0)

        new = f"mlflow:sqlite:///{tmp_path}/b.db"
        (cost,) = planned(target, new).costs
        counted.seen.clear()
        counted.down = 0
        carried(target, new, tmp_path, artifacts_to=str(tmp_path / "f"))
        gets = [one for one in counted.seen if one.method in ("GET", "HEAD") and not one.op.startswith("List")]
        assert (cost.side, cost.place, cost.up) == ("source", target, 0)
        assert cost.gets == pytest.approx(len(gets), rel=0.3)
        assert cost.down == pytest.approx(counted.down, rel=0.05)

    def test_what_the_store_copies_costs_no_byte(self, s3, counted, tmp_path):
        bucket = s3.bucket()
        database, new = f"mlflow:sqlite:///{tmp_path}/a.db", f"mlflow:sqlite:///{tmp_path}/b.db"
        carried(store(tmp_path, some(30, 2000)), database, tmp_path, artifacts_to=f"s3://{bucket}/a")
        where = {"artifacts_to": f"s3://{bucket}/b"}
        costs = {(one.side, one.place): one for one in planned(database, new, **where).costs}
        cost = costs["target", f"s3://{bucket}/b"]
        assert (cost.up, cost.down, cost.inside) == (0, 0, 60_000)
        counted.seen.clear()
        counted.up = counted.down = 0
        seen = Seen()
        report = carried(database, new, tmp_path, seen, **where)
        assert (report.artifacts, counted.up, counted.down) == (30, 0, 0)
        assert seen.sums == (0, 30, 60_000)
        ops = [one.op for one in counted.seen]
        assert (cost.puts, cost.gets) == (ops.count("CopyObject"), pytest.approx(ops.count("HeadObject"), rel=0.2))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = servers.start(servers.CURRENT, tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.mark.slow
class TestServers:
    def test_limits_hold_and_plan_says_what_passes(self, server, tmp_path):
        source = store(tmp_path, some(20, 100_000))
        proxy = Proxy(server.url)
        target = f"mlflow:{proxy.url}"
        (cost,) = planned(source, target).costs
        assert (cost.side, cost.way, cost.place, cost.up) == ("target", "server", target, 2_000_000)
        proxy.seen.clear()
        begun = time.monotonic()
        carried(source, target, tmp_path, bwlimit=RATE, tpslimit=30.0)
        seconds = time.monotonic() - begun
        requests = len(proxy.seen)
        assert seconds >= max(2.0, requests / 30) * (1 - SLACK)
        uploads = [path for method, path in proxy.seen if "mlflow-artifacts/artifacts" in path and method == "PUT"]
        assert len(uploads) == 20 == cost.puts
        begun = time.monotonic()
        back = carried(target, str(tmp_path / "back"), tmp_path, bwlimit=RATE)
        assert back.size == 2_000_000
        assert time.monotonic() - begun >= 2.0 * (1 - SLACK)
        proxy.stop()
        with sqlite3.connect(server.database) as db:
            assert db.execute("select count(*) from runs where run_uuid is not null").fetchone()[0] >= 1

    def test_larger_files_of_models_and_traces_stay_behind(self, server, tmp_path):
        """Of every kind of owner; the size of a trace's spans is told by no server, and they are read for it."""
        mlflow = pytest.importorskip("mlflow")
        client = mlflow.MlflowClient(server.url)
        experiment = client.create_experiment("sizes")
        run = client.create_run(experiment)
        for name, length in (("small.txt", 10), ("large.txt", 3000)):
            client.log_text(run.info.run_id, "x" * length, name)
        model = client.create_logged_model(experiment, "m", source_run_id=run.info.run_id)
        for name, length in (("MLmodel", 10), ("weights", 3000)):
            (tmp_path / name).write_text("y" * length)
        client.log_model_artifacts(model.model_id, str(_folder(tmp_path)))
        said = planned(f"mlflow:{server.url}", str(tmp_path / "archive"), max_artifact_size=1000, experiment=("sizes",))
        assert {loss.what for loss in said.losses if "larger than" in loss.because} == {
            "artifact 'large.txt'",
            "artifact 'weights'",
        }
        assert (said.left.artifacts, said.left.size) == (2, 6000)
        (cost,) = said.costs
        assert (cost.side, cost.way, cost.place) == ("source", "server", f"mlflow:{server.url}")
        assert cost.down == 20


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("MLmodel", "weights"):
        (tmp_path / name).rename(folder / name)
    return folder


def test_far_is_what_goes_over_a_network():
    far = {text for text in FAR if parse(text).far}
    assert far == {text for text, meant in FAR.items() if meant}


FAR = {
    "mlflow:http://localhost:5000": True,
    "mlflow:https://user:pw@host": True,
    "mlflow:databricks": True,
    "mlflow:databricks://profile": True,
    "mlflow:sqlite:///databricks.db": False,
    "mlflow:postgresql://http://x": False,
    "mlflow:./mlruns": False,
    "s3://bucket/archive": True,
    "gs://bucket": True,
    "az://container/x": True,
    "./archive": False,
    "/data/s3/archive": False,
}


def test_json_says_the_same(tmp_path, capsys):
    job = job_of((store(tmp_path, FILES), str(tmp_path / "archive")), Chosen(exclude=("**/*.ckpt",)))
    assert show(job, Chosen(json=True, no_progress=True)) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["artifacts_left"], last["bytes_left"], last["artifacts"]) == (2, 8000, 2)
