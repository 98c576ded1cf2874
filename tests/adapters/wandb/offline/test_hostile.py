"""Folders that somebody made to harm, or to last: what can be read is read, the rest is told."""

import gzip
import json
import os
import socket
import subprocess
import time

import pytest
import yaml

import wandblogs as rawlog
from mlmigrate.adapters.wandb.datalog import framing
from mlmigrate.adapters.wandb.datalog.reader import Log
from mlmigrate.adapters.wandb.offline import beside, manifests, marks, source

from .test_source import a_run, nobody_elses_folders, opened, whole  # noqa: F401  a fixture for all tests

ROWS = [rawlog.row(step, 1_600_000_000.0 + step, loss=0.5) for step in range(3)]


def merges():
    """A merge of nine merges, twelve times: 9**12 keys for who follows them."""
    lines = ["b0: &b0 {x: 1}"]
    return "\n".join([*lines, *(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}" for n in range(1, 13))])


@pytest.mark.parametrize(
    "text", [merges(), "[" + "a," * 400_000 + "]", "{a: " * 2000], ids=["merges", "values", "nested"]
)
def test_yaml_that_would_fill_the_memory_is_told_at_once(text):
    start = time.process_time()
    with pytest.raises(beside.Bad):
        beside.config(text.encode())
    assert time.process_time() - start < 3


def test_yaml_that_only_looks_like_a_merge_is_read():
    told = {"<<": {"desc": None, "value": 1}, "lr": {"value": "<<"}}
    assert beside.config(yaml.safe_dump(told).encode()) == {"<<": 1, "lr": "<<"}


def test_pipes_sockets_and_links_in_a_circle_are_told_and_hold_nobody_up(tmp_path, monkeypatch):
    here = a_run(tmp_path / "runs", "one", *ROWS, rawlog.exit_())
    files = here / "files"
    files.mkdir()
    (files / "kept").write_text("kept")
    os.mkfifo(files / "pipe")
    (files / "round").symlink_to(files / "round")
    (files / "up").symlink_to(here)
    other = tmp_path / "runs" / "offline-run-20200913_122640-two"
    other.mkdir()
    os.mkfifo(other / "run-two.wandb")
    (other / "again").symlink_to(tmp_path / "runs")
    with socket.socket(socket.AF_UNIX) as end:
        monkeypatch.chdir(files)  # the path of a socket must be short
        end.bind("socket")
        runs, losses = whole(tmp_path / "runs")
    assert (list(runs), runs["one"][2]["wandb/files/kept"]) == (["one"], b"kept")
    assert sorted((loss.what, loss.because) for loss in losses) == [
        (str(other / "run-two.wandb"), "a link, or no file: not read"),
        ("file 'pipe'", "no file that can be read"),
        ("file 'round'", "a link to a file that is gone"),
        ("file 'socket'", "no file that can be read"),
        ("file 'up'", "a link to a folder, which is not followed"),
    ]


@pytest.mark.parametrize(
    ("name", "depth", "told"),
    [("d", 1100, []), ("d" * 200, 40, ["a folder that cannot be read"])],
    ids=["calls", "path"],
)
def test_folders_deeper_than_calls_or_paths_may_be_end_nothing(name, depth, told, tmp_path):
    here = a_run(tmp_path / "runs", "one", *ROWS, rawlog.exit_())
    deep = os.open(here, os.O_RDONLY)
    for one in ["files", *([name] * depth)]:
        os.mkdir(one, dir_fd=deep)
        inner = os.open(one, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    try:
        runs, losses = whole(tmp_path / "runs")
    finally:
        subprocess.run(["rm", "-rf", here / "files"], check=True)  # what Python itself cannot remove
    assert (len(runs["one"][1]), [loss.because for loss in losses]) == (3, told)


def test_a_log_of_nothing_but_zeros_is_told_in_a_few_words(tmp_path):
    here = a_run(tmp_path, "one", *ROWS, rawlog.exit_())
    with (here / "run-two.wandb").open("wb") as file:
        file.truncate(16 << 20)
    runs, losses = whole(tmp_path)
    assert (len(runs["one"][1]), len(runs["two"][1])) == (3, 0)
    assert "the file does not begin as a log of W&B does" in [loss.because for loss in losses]
    assert len(losses) < 6


def test_a_record_of_any_length_fills_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(framing, "LARGEST", 100_000)
    huge = rawlog.summary(text="x" * 200_000)
    log = Log(rawlog.write(tmp_path / "run-a.wandb", [rawlog.run("a"), ROWS[0], huge, ROWS[1], rawlog.exit_()]))
    assert (log.run.lines, log.run.summary, log.run.state) == (2, {}, "finished")
    assert [loss.because for loss in log.losses] == ["a record has more than 0 MiB; it is skipped"]


def test_what_lies_beside_a_log_and_is_too_large_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "LARGEST", 1 << 20)
    here = a_run(tmp_path, "one", *ROWS, rawlog.exit_())
    (here / "files").mkdir()
    (here / "files" / "wandb-summary.json").write_text(json.dumps({"text": "x" * (1 << 20)}))
    runs, losses = whole(tmp_path)
    assert len(runs["one"][2]["wandb/files/wandb-summary.json"]) > 1 << 20
    assert [(loss.what, loss.because) for loss in losses] == [
        ("file 'wandb-summary.json'", "it is larger than 1 MiB: what it says of the run is not read")
    ]


def test_a_thousand_files_of_a_run_are_all_there(tmp_path):
    files = a_run(tmp_path, "one", *ROWS, rawlog.exit_()) / "files"
    for n in range(1000):
        (files / f"{n % 40}").mkdir(parents=True, exist_ok=True)
        (files / f"{n % 40}" / f"{n}").touch()
    source_ = opened(tmp_path)
    with source_.read(source_.refs()) as reading:
        found = {one.path for one in reading.artifacts() if one.path.startswith("wandb/files/")}
    assert found >= {f"wandb/files/{n % 40}/{n}" for n in range(1000)}


def test_a_copy_of_a_log_under_another_name_is_no_second_run(tmp_path):
    here = a_run(tmp_path, "one", *ROWS, rawlog.exit_())
    (here / "backup of one.wandb").write_bytes((here / "run-one.wandb").read_bytes())
    runs, losses = whole(tmp_path)
    assert (list(runs), len(runs["one"][1])) == (["one"], 3)
    assert [loss.because.partition(":")[0].partition(" of ")[0] for loss in losses] == ["a copy"]


def test_a_log_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def denied(place):
        if place.id == "two":
            raise PermissionError(13, "Permission denied")
        return Log(place.log)

    monkeypatch.setattr(source, "log_of", denied)
    a_run(tmp_path, "one", *ROWS, rawlog.exit_())
    a_run(tmp_path, "two", *ROWS, rawlog.exit_())
    runs, losses = whole(tmp_path)
    assert (list(runs), [loss.because for loss in losses]) == (["one"], ["it cannot be read: Permission denied"])


def test_names_of_any_bytes_are_shown_as_text(tmp_path):
    here = a_run(tmp_path, "one", *ROWS, rawlog.exit_())
    (here / os.fsdecode(b"run-\xff.wandb")).write_bytes((here / "run-one.wandb").read_bytes())
    (here / os.fsdecode(b"run-\xfe.wandb")).touch()
    runs, losses = whole(tmp_path)
    assert sorted(map(len, runs)) == [3, 6]  # the second is named as its file is
    assert len(runs["one"][1]) == 3
    for text in (*runs, *(part for loss in losses for part in (loss.what, loss.because))):
        text.encode()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"path": ' * 50_000, "3\n", "\xff"])
def test_a_manifest_that_is_none_counts_for_nothing(text, tmp_path):
    (tmp_path / "list.gz").write_bytes(gzip.compress(text.encode("latin-1")))
    assert manifests.entries(tmp_path / "list.gz") is None


def test_a_manifest_that_is_a_pipe_or_unpacks_without_end_counts_for_nothing(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    assert manifests.entries(tmp_path / "pipe") is None
    monkeypatch.setattr(manifests, "_MOST", 1 << 16)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"{}\n" * (1 << 16)))
    assert manifests.entries(tmp_path / "bomb.gz") is None


@pytest.mark.parametrize("id_", ["../../one", "one"])
def test_a_mark_names_no_log_but_that_beside_it(id_, tmp_path):
    here = a_run(tmp_path, "one", *ROWS, rawlog.exit_())
    size = (here / "run-one.wandb").stat().st_size
    marks.write(here, marks.Mark("origin", "stamp", id_, log=size))
    assert (marks.marked(here) is None) == (id_ != "one")


def test_a_mark_that_is_none_counts_for_nothing(tmp_path):
    here = a_run(tmp_path, "one", *ROWS, rawlog.exit_())
    (here / marks.MARK).write_text('{"more": ' + "[" * 100_000)
    assert marks.marked(here) is None
    (here / marks.MARK).unlink()
    os.mkfifo(here / marks.MARK)
    assert marks.marked(here) is None


def test_a_run_that_goes_on_while_it_is_read_is_read_as_far_as_it_went_and_changes(tmp_path):
    log = a_run(tmp_path, "one", *ROWS) / "run-one.wandb"
    source_ = opened(tmp_path)
    (ref,) = source_.refs()
    with source_.read([ref]) as reading:
        rawlog.write(tmp_path / "more", [rawlog.header(), rawlog.run("one"), *ROWS, ROWS[2], ROWS[2]])
        with log.open("ab") as file:
            file.write((tmp_path / "more").read_bytes()[log.stat().st_size :][:-4])  # a record is half written
        (run,) = reading.runs
        seen = sum(len(batch) for batch in reading.points())
        assert (run.status, run.end, seen) == ("RUNNING", None, 3)
        assert [loss.because.partition(":")[0] for loss in reading.losses] == ["the log has no exit record"]
    (now,) = opened(tmp_path).refs()
    assert now.stamp != ref.stamp
    runs, losses = whole(tmp_path)
    assert len(runs["one"][1]) == 4
    assert "the last record is cut off" in [loss.because for loss in losses]


@pytest.mark.parametrize("how", ["cut", "replaced"])
def test_a_log_that_is_written_anew_while_it_is_read_is_told(how, tmp_path):
    path = rawlog.write(tmp_path / "run-a.wandb", [rawlog.run("a"), *ROWS, rawlog.exit_()])
    log = Log(path)
    assert log.losses == []
    other = rawlog.write(tmp_path / "other", [rawlog.run("a"), *ROWS, *ROWS, rawlog.exit_()])
    if how == "cut":
        os.truncate(path, path.stat().st_size - 40)
    else:
        other.replace(path)
    list(log.history())
    assert [loss.because for loss in log.losses] == ["it was written anew while it was read: rows may be missing"]
