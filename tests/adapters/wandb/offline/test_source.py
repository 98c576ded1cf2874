"""Offline runs are read as they lie: whatever the SDK, a crash or a copy left behind."""

import base64
import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import wandblogs as rawlog
from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.address import parse
from mlmigrate.errors import NotFound

# each name is nine times the one before
LAUGHS = "b0: &b0 [x]\n" + "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 13))


@pytest.fixture(autouse=True)
def nobody_elses_folders(tmp_path, monkeypatch):
    for name in ("DATA", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "sdk" / name.lower()))


def opened(place, settings=None):
    return registry.open_source(parse(f"wandb:{place}"), Context("source", settings=settings or Settings()))


def whole(place, settings=None):
    """Every run of a folder: the run, its points, its files; and all losses."""
    source = opened(place, settings)
    refs = [ref for ref in source.refs() if ref.kind == "run"]
    runs, losses = {}, list(source.oddities())
    for ref in refs:
        with source.read([ref]) as reading:
            points = [row for batch in reading.points() for row in batch.to_pylist()]
            files = {artifact.path: read(artifact) for artifact in reading.artifacts()}
            runs[ref.id] = (reading.runs[0], points, files)
            losses += reading.losses
    source.close()
    return runs, losses


def read(artifact):
    with artifact.open() as stream:
        return stream.read()


def folder(root, id_, time="20200913_122640", kind="offline-run"):
    return root / f"{kind}-{time}-{id_}"


def a_run(root, id_, *records, time="20200913_122640", kind="offline-run", **fields):
    here = folder(root, id_, time, kind)
    rawlog.write(here / f"run-{id_}.wandb", [rawlog.header(), rawlog.run(id_, **fields), *records])
    return here


def b64md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def test_runs_are_found_at_any_depth_with_their_rows_and_params(tmp_path):
    rows = [rawlog.row(0, 1_600_000_000.25, loss=0.5), rawlog.row(7, 1_600_000_001.5, loss=0.25, acc=1.0)]
    a_run(tmp_path / "a" / "wandb", "one", *rows, rawlog.exit_(), project="p", config={"lr": 0.1}, display_name="first")
    a_run(tmp_path / "b" / "deep" / "wandb", "two", rawlog.exit_(1), project="q", kind="run")
    runs, losses = whole(tmp_path)
    run, points, _ = runs["one"]
    assert (run.name, dict(run.params), run.status, run.start) == ("first", {"lr": 0.1}, "FINISHED", 1_600_000_000_000)
    assert [(one["key"], one["step"], one["timestamp"], one["value"]) for one in points] == [
        ("loss", 0, 1_600_000_000_250, 0.5),
        ("loss", 7, 1_600_000_001_500, 0.25),
        ("acc", 7, 1_600_000_001_500, 1.0),
    ]
    assert (runs["two"][0].status, runs["two"][0].experiment) == ("FAILED", "q")
    assert losses == []


def test_a_lone_log_and_a_single_run_folder_are_read(tmp_path):
    here = a_run(tmp_path / "wandb", "one", rawlog.row(0, 1_600_000_000.0, loss=0.5), rawlog.exit_())
    (here / "files").mkdir()
    (here / "files" / "notes.txt").write_text("kept")
    for place in (here, here / "run-one.wandb"):
        runs, _ = whole(place)
        assert list(runs) == ["one"]
        assert runs["one"][2]["wandb/files/notes.txt"] == b"kept"
    alone = tmp_path / "elsewhere" / "any name.wandb"
    alone.parent.mkdir()
    shutil.copy(here / "run-one.wandb", alone)
    assert list(whole(alone)[0]) == ["one"]


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="does not exist"):
        opened(tmp_path / "nothing")


def test_a_run_that_was_taken_up_again_is_one_run_in_order_of_time(tmp_path):
    later = [rawlog.row(2, 1_600_000_100.0, loss=0.1), rawlog.summary(loss=0.1), rawlog.exit_()]
    a_run(tmp_path, "one", *later, time="20200914_000000", started=1_600_000_100, config={"lr": 0.2})
    first = [rawlog.row(0, 1_600_000_000.0, loss=0.5), rawlog.row(1, 1_600_000_001.0, loss=0.4), rawlog.exit_(1)]
    a_run(tmp_path, "one", *first, time="20200913_000000", config={"lr": 0.1, "seed": 3}, display_name="named once")
    runs, losses = whole(tmp_path)
    run, points, _ = runs["one"]
    assert [point["value"] for point in points] == [0.5, 0.4, 0.1]
    assert (run.name, dict(run.params), run.status) == ("named once", {"lr": 0.2, "seed": 3}, "FINISHED")
    assert any("taken up again" in loss.because for loss in losses)


def test_latest_run_is_no_second_run_as_a_link_and_as_a_copy(tmp_path):
    here = a_run(tmp_path, "one", rawlog.row(0, 1_600_000_000.0, loss=0.5), rawlog.exit_())
    (tmp_path / "latest-run").symlink_to(here.name)
    runs, losses = whole(tmp_path)
    assert (list(runs), len(runs["one"][1]), losses) == (["one"], 1, [])
    (tmp_path / "latest-run").unlink()
    shutil.copytree(here, tmp_path / "latest-run")
    log = tmp_path / "latest-run" / "run-one.wandb"
    log.write_bytes(log.read_bytes()[:-9])  # a copy that was made while the run went on
    runs, losses = whole(tmp_path)
    assert (list(runs), len(runs["one"][1])) == (["one"], 1)
    assert [loss.because.partition(":")[0] for loss in losses] == [f"a copy of {here}/run-one.wandb, or its beginning"]


def test_an_empty_log_gives_what_lies_beside_it(tmp_path):
    here = folder(tmp_path, "gone")
    (here / "files").mkdir(parents=True)
    (here / "run-gone.wandb").touch()
    (here / "files" / "config.yaml").write_text(
        "wandb_version: 1\nlr:\n  desc: null\n  value: 0.5\n_wandb:\n  value: {}\n"
    )
    (here / "files" / "wandb-summary.json").write_text('{"loss": 0.25, "_step": 3, "_timestamp": 1600000009.5}')
    metadata = {"startedAt": "2020-09-13T12:26:40.5", "username": "me", "program": "t.py", "git": {"commit": "abc"}}
    (here / "files" / "wandb-metadata.json").write_text(json.dumps(metadata))
    runs, losses = whole(tmp_path)
    run, points, _ = runs["gone"]
    assert (run.experiment, dict(run.params), run.user, run.start) == (
        "uncategorized",
        {"lr": 0.5},
        "me",
        1_600_000_000_500,
    )
    assert (run.tags["mlflow.source.name"], run.tags["mlflow.source.git.commit"]) == ("t.py", "abc")
    assert [(point["key"], point["value"]) for point in points] == [("loss", 0.25)]
    assert any("empty" in loss.because for loss in losses)


def test_a_torn_log_is_read_up_to_the_tear_and_told(tmp_path):
    rows = [rawlog.row(step, 1_600_000_000.0 + step, loss=float(step)) for step in range(100)]
    log = a_run(tmp_path, "torn", *rows, rawlog.exit_()) / "run-torn.wandb"
    log.write_bytes(log.read_bytes()[:-200])
    kept = len(rawlog.rows(log))
    runs, losses = whole(tmp_path)
    assert 0 < kept < 100
    assert len(runs["torn"][1]) == kept
    assert any("cut off" in loss.because for loss in losses)
    assert any("no exit record" in loss.because for loss in losses)


def test_one_log_that_is_none_never_hides_the_others(tmp_path):
    a_run(tmp_path, "good", rawlog.exit_())
    bad = folder(tmp_path, "bad")
    bad.mkdir()
    (bad / "run-bad.wandb").write_bytes(b"\x89PNG\r\n" * 9000)
    runs, losses = whole(tmp_path)
    assert "good" in runs
    assert any("does not begin as a log of W&B" in loss.because for loss in losses)


def test_links_to_files_are_followed_and_others_are_told(tmp_path):
    here = a_run(tmp_path / "wandb", "one", rawlog.exit_())
    files = here / "files"
    (files / "media" / "images").mkdir(parents=True)
    (files / "media" / "images" / "a.png").write_bytes(b"png")
    (tmp_path / "model.bin").write_bytes(b"weights")
    (files / "model.bin").symlink_to(tmp_path / "model.bin")
    (files / "broken").symlink_to(tmp_path / "never was")
    (files / "all").symlink_to(tmp_path)
    os.mkfifo(files / "pipe")
    runs, losses = whole(tmp_path)
    found = runs["one"][2]
    assert found["wandb/files/model.bin"] == b"weights"
    assert found["wandb/files/media/images/a.png"] == b"png"
    assert {loss.what: loss.because for loss in losses} == {
        "file 'all'": "a link to a folder, which is not followed",
        "file 'broken'": "a link to a file that is gone",
        "file 'pipe'": "no file that can be read",
    }


def test_files_that_the_log_names_and_nobody_finds_are_told(tmp_path):
    names = rawlog.pb.Record()
    for path in ("media/table/t.json", "config.yaml", "ckpt-*.pt"):
        names.files.files.add(path=path)
    a_run(tmp_path, "one", names, rawlog.exit_())
    runs, losses = whole(tmp_path)
    assert [loss.what for loss in losses] == ["artifact 'wandb/files/media/table/t.json'"]
    assert "gone" in json.dumps(json.loads(runs["one"][2]["wandb/run.json"])["run"]["files"])


def test_console_text_stands_for_a_log_file_that_is_missing(tmp_path):
    a_run(tmp_path, "one", rawlog.console("first\n"), rawlog.console("größe\n"), rawlog.exit_())
    assert whole(tmp_path)[0]["one"][2]["wandb/files/output.log"] == "first\ngröße\n".encode()


@pytest.mark.parametrize("where", ["local", "staging", "cache", "named", "moved"])
def test_bytes_of_an_artifact_are_found_and_right(where, tmp_path):
    data = b"weights" * 999
    md5 = base64.b64decode(b64md5(data)).hex()
    staging = tmp_path / "sdk" / "data" / "artifacts" / "staging"
    lies, said = {
        "local": (tmp_path / "user" / "model.bin", tmp_path / "user" / "model.bin"),
        "staging": (staging / "tmp1234", "/home/another/.local/share/wandb/artifacts/staging/tmp1234"),
        "cache": (tmp_path / "sdk" / "cache" / "artifacts" / "obj" / "md5" / md5[:2] / md5[2:], "/gone/away"),
        "named": (tmp_path / "rescued" / "tmp77", "/home/another/staging/tmp77"),
        "moved": (tmp_path / "runs" / "artifacts" / "ab" / "cdef", "/where/it/was/artifacts/ab/cdef"),
    }[where]
    lies.parent.mkdir(parents=True, exist_ok=True)
    lies.write_bytes(data)
    entries = {"model/weights.bin": (b64md5(data), len(data), str(said))}
    record = rawlog.artifact("net", "model", entries, run_id="one", project="p", digest="d1", aliases=["latest"])
    a_run(tmp_path / "runs", "one", record, rawlog.exit_())
    runs, losses = whole(tmp_path / "runs", Settings(artifacts_at=(str(tmp_path / "rescued"),)))
    (kept,) = [bytes_ for path, bytes_ in runs["one"][2].items() if path.endswith("model/weights.bin")]
    assert (kept, losses) == (data, [])


def test_bytes_that_are_others_by_now_are_gone_and_told(tmp_path):
    changed = tmp_path / "model.bin"
    changed.write_bytes(b"other!!")
    record = rawlog.artifact("net", "model", {"m": (b64md5(b"weights"), 7, str(changed))}, run_id="one", digest="d")
    a_run(tmp_path / "runs", "one", record, rawlog.exit_())
    runs, losses = whole(tmp_path / "runs")
    assert not [path for path in runs["one"][2] if path.startswith("wandb/artifacts/")]
    assert [str(changed) in loss.because for loss in losses] == [True]


@pytest.mark.parametrize("where", ["local", "cache"])
def test_a_file_that_is_known_by_its_xxh128_is_found_by_it(tmp_path, monkeypatch, where):
    plain = "06b05ab6733a618578af5f94892f3950"  # of "abc"
    digest = base64.b64encode(bytes.fromhex(plain)).decode()
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "sdk"))
    lies = {"local": tmp_path / "m", "cache": tmp_path / "sdk/artifacts/obj/xxh128" / plain[:2] / plain[2:]}[where]
    lies.parent.mkdir(parents=True, exist_ok=True)
    lies.write_bytes(b"abc")
    record = rawlog.artifact("net", "model", {"m": (digest, 3, str(tmp_path / "m"))}, run_id="one", digest="d")
    (entry,) = record.artifact.manifest.contents
    entry.extra.add(key="alg", value_json='"XXH128"')
    a_run(tmp_path / "runs", "one", record, rawlog.exit_())
    runs, losses = whole(tmp_path / "runs")
    assert ([data for path, data in runs["one"][2].items() if path.endswith("/m")], losses) == ([b"abc"], [])
    lies.write_bytes(b"abd")
    assert ["neither at" in loss.because for loss in whole(tmp_path / "runs")[1]] == [True]
    lies.write_bytes(b"abc")
    entry.extra[0].value_json = '"BLAKE9"'
    a_run(tmp_path / "runs", "one", record, rawlog.exit_())
    assert ["'BLAKE9'" in loss.because for loss in whole(tmp_path / "runs")[1]] == [True]


def test_a_manifest_of_its_own_is_read(tmp_path):
    (tmp_path / "m").write_bytes(b"one")
    lines = {"path": "a/m", "digest": b64md5(b"one"), "size": 3, "local_path": str(tmp_path / "m")}
    (tmp_path / "list.gz").write_bytes(gzip.compress(json.dumps(lines).encode() + b"\n"))
    record = rawlog.artifact("net", "model", {}, run_id="one", digest="d")
    record.artifact.manifest.manifest_file_path = str(tmp_path / "list.gz")
    a_run(tmp_path / "runs", "one", record, rawlog.exit_())
    runs, losses = whole(tmp_path / "runs")
    assert ([data for path, data in runs["one"][2].items() if path.endswith("a/m")], losses) == ([b"one"], [])
    (tmp_path / "list.gz").write_bytes(b"no gzip")
    assert [loss.because.rpartition(",")[2] for loss in whole(tmp_path / "runs")[1]] == [" which is gone"]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        LAUGHS,
        "[" * 5000,
        "\x00\x01",
        "- a\n- b\n",
    ],
    ids=["object", "aliases", "nested", "binary", "list"],
)
def test_hostile_yaml_is_told_and_does_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = a_run(tmp_path / "runs", "one", rawlog.exit_())
    (here / "files").mkdir()
    (here / "files" / "config.yaml").write_text(text)
    runs, losses = whole(tmp_path / "runs")
    assert dict(runs["one"][0].params) == {}
    assert [loss.what for loss in losses] == ["file 'config.yaml'"]
    assert not (tmp_path / "pwned").exists()


def test_a_sweep_is_told_of_its_runs_and_of_those_that_are_not_here(tmp_path):
    a_run(tmp_path, "one", rawlog.exit_())
    (tmp_path / "sweep-s1").mkdir()
    for run in ("one", "two", "three"):
        (tmp_path / "sweep-s1" / f"config-{run}.yaml").write_text("wandb_version: 1\nlr:\n  value: 3\n")
    runs, losses = whole(tmp_path)
    assert runs["one"][0].tags["wandb.sweep"] == "s1"
    assert [loss.what for loss in losses] == ["2 runs of sweep 's1'"]


def test_a_stamp_changes_when_the_log_or_a_file_does(tmp_path):
    here = a_run(tmp_path, "one", rawlog.exit_())
    (here / "files").mkdir()

    def stamp():
        (ref,) = opened(tmp_path).refs()
        return ref.stamp

    stamps = [stamp()]
    (here / "files" / "a").write_text("x")
    stamps.append(stamp())
    (here / "files" / "a").write_text("y")
    os.utime(here / "files" / "a", ns=(1, 1))
    stamps.append(stamp())
    a_run(tmp_path, "one", rawlog.row(0, 1.0, loss=1.0), rawlog.exit_())
    stamps.append(stamp())
    assert len(set(stamps)) == 4
    assert stamp() == stamps[-1]


def test_nothing_in_the_folder_is_written(tmp_path):
    a_run(tmp_path, "one", rawlog.row(0, 1_600_000_000.0, loss=0.5), rawlog.console("x\n"), rawlog.exit_())
    before = sorted((str(path), path.stat().st_mtime_ns) for path in Path(tmp_path).rglob("*"))
    whole(tmp_path)
    assert sorted((str(path), path.stat().st_mtime_ns) for path in Path(tmp_path).rglob("*")) == before
