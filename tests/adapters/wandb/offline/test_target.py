"""A folder that mlmigrate writes is one that the SDK could have left: whole or not there, and never synced twice."""

import base64
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import wandblogs
from mlmigrate.adapters import memory, registry
from mlmigrate.adapters.base import Context
from mlmigrate.adapters.memory import Held, Memory
from mlmigrate.adapters.wandb.datalog.writer import LogWriter
from mlmigrate.adapters.wandb.offline import delivery, marks, order
from mlmigrate.address import parse
from mlmigrate.errors import Damaged, UsageError
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.model import DatasetInput, Experiment, Loss, Run, points
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

START = 1_600_000_000_000


def a_run(id_="one", values=(0.5, 0.25), **fields):
    run = Run(
        id_,
        "1",
        name=f"run {id_}",
        origin=f"test:{id_}",
        stamp="s1",
        start=START,
        end=START + 5000,
        user="me",
        params={"lr": "0.1", "depth": "3", "name": "é"},
        tags={"team": "blue", "mlflow.note.content": "two\nlines"},
        inputs=(DatasetInput("digits", "abc", "local", "data.csv"),),
    )
    table = {
        "run": [id_] * len(values),
        "key": ["loss"] * len(values),
        "step": [-1, 3, 4][: len(values)],
        "timestamp": [START + 1 + 1000 * n for n in range(len(values))],
        "value": list(values),
    }
    files = {(id_, "model/MLmodel"): b"flavors: {}\n", (id_, "model/w.bin"): bytes(9999), (id_, "notes.txt"): b"notes"}
    batch = points(table)
    import pyarrow as pa

    return Held(replace(run, **fields), pa.Table.from_batches([batch]), files)


@pytest.fixture
def copied(tmp_path, request):
    """Copies runs into tmp_path/out; gives the report."""
    out = tmp_path / "out"

    def copy(*held, to=out):
        place = Memory()
        place.add(Experiment("1", "vision/a", created=START), *held)
        source = memory.install(f"{request.node.name}", place)
        ledger = Ledger.open(tmp_path / f"{len(list(tmp_path.iterdir()))}.ledger", source, parse(f"wandb:{to}"))
        try:
            report = transfer(Job(source, parse(f"wandb:{to}")), ledger, Silent())
            assert verify(Job(source, parse(f"wandb:{to}")), Silent()).findings == ()
            return report
        finally:
            ledger.close()

    return copy


def folder_of(out, id_):
    (found,) = out.glob(f"offline-run-*-{id_}")
    return found


def test_the_log_says_in_protobuf_what_was_meant(copied, tmp_path):
    copied(a_run())
    folder = folder_of(tmp_path / "out", "one")
    assert folder.name == "offline-run-20200913_122640-one"
    log = folder / "run-one.wandb"
    (run,) = wandblogs.of_kind(log, "run")
    assert (run.run_id, run.display_name, run.notes, run.entity) == ("one", "run one", "two\nlines", "")
    assert run.project.startswith("vision-a-")
    assert list(run.tags) == ["team=blue"]
    assert run.start_time.ToMilliseconds() == START
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {name: config[name] for name in ("lr", "depth", "name")} == {"lr": 0.1, "depth": 3, "name": "é"}
    assert [(row["loss"], row["_step"], row["mlflow/step"], row["_timestamp"]) for row in wandblogs.rows(log)] == [
        (0.5, 0, -1, 1_600_000_000.001),
        (0.25, 1, 3, 1_600_000_001.001),
    ]
    (summary,) = wandblogs.of_kind(log, "summary")
    assert ["loss", "0.25"] in [[item.nested_key[0], item.value_json] for item in summary.update]
    (end,) = wandblogs.of_kind(log, "exit")
    assert (end.exit_code, end.runtime) == (0, 5)


def test_the_stamp_is_the_last_word_before_the_end(copied, tmp_path):
    copied(a_run())
    records = list(wandblogs.read(folder_of(tmp_path / "out", "one") / "run-one.wandb"))
    assert [record.WhichOneof("record_type") for record in records][-2:] == ["config", "exit"]
    (item,) = records[-2].config.update
    assert (list(item.nested_key), json.loads(item.value_json)) == (["mlmigrate", "stamp"], "unproven:s1")
    (run,) = [record.run for record in records if record.HasField("run")]
    assert ["stamp" in json.loads(item.value_json) for item in run.config.update if item.key == "mlmigrate"] == [False]


def test_artifacts_lie_once_where_the_manifests_say(copied, tmp_path):
    copied(a_run(), a_run("two"))
    held, names = set(), {}
    for id_ in ("one", "two"):
        for artifact in wandblogs.of_kind(folder_of(tmp_path / "out", id_) / f"run-{id_}.wandb", "artifact"):
            names.setdefault(artifact.type, []).append((artifact.name, artifact.run_id, artifact.user_created))
            lines = b""
            for entry in sorted(artifact.manifest.contents, key=lambda entry: entry.path):
                if entry.local_path:
                    data = Path(entry.local_path).read_bytes()
                    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
                    assert (len(data), md5) == (entry.size, entry.digest)
                    held.add(entry.local_path)
                lines += f"{entry.path}:{entry.digest}\n".encode()
            assert artifact.digest == hashlib.md5(b"wandb-artifact-manifest-v1\n" + lines).hexdigest()
    assert sorted(names) == ["dataset", "mlflow-artifacts", "model"]
    assert names["model"] == [("model-one", "one", False), ("model-two", "two", False)]
    assert [user for _, _, user in names["dataset"]] == [True, True]
    assert held == {str(file) for file in (tmp_path / "out" / "artifacts").rglob("*") if file.is_file()}


def test_a_second_copy_writes_nothing(copied, tmp_path):
    copied(a_run())

    def told():
        return {
            (str(path), path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*") if "sync-" not in path.name
        }

    before = {one for one in told() if ".parts" not in one[0] and one[0] != str(tmp_path / "out")}
    assert copied(a_run()).copied == 0
    assert {one for one in told() if ".parts" not in one[0] and one[0] != str(tmp_path / "out")} == before


def test_a_run_that_changed_takes_the_place_of_what_it_was(copied, tmp_path):
    copied(a_run())
    report = copied(a_run(values=(1.0, 2.0, 3.0), stamp="s2", start=START + 60_000))
    assert (report.copied, report.failed) == (1, ())
    folder = folder_of(tmp_path / "out", "one")
    assert [row["loss"] for row in wandblogs.rows(folder / "run-one.wandb")] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("ending", [".synced", ".syncstate"])
def test_a_run_that_was_synced_is_never_synced_again_under_its_id(ending, copied, tmp_path):
    copied(a_run())
    folder = folder_of(tmp_path / "out", "one")
    (folder / f"run-one.wandb{ending}").touch()
    assert copied(a_run()).copied == 0
    report = copied(a_run(values=(1.0,), stamp="s2"))
    assert [loss.because for loss in report.losses if loss.what == "the run"] == [
        "it has changed since one was synced, and what is synced stays: it is one-2 now"
    ]
    assert [row["loss"] for row in wandblogs.rows(folder_of(tmp_path / "out", "one-2") / "run-one-2.wandb")] == [1.0]
    third = copied(a_run(values=(4.0,), stamp="s3"))
    assert third.copied == 1
    assert [row["loss"] for row in wandblogs.rows(folder_of(tmp_path / "out", "one-2") / "run-one-2.wandb")] == [4.0]


def test_what_a_crash_leaves_is_nothing_that_sync_would_find(copied, tmp_path, monkeypatch):
    whole = delivery.Writer.become

    def crash(self, part, old):
        if part.name.endswith("-one"):
            raise KeyboardInterrupt
        return whole(self, part, old)

    monkeypatch.setattr(delivery.Writer, "become", crash)
    with suppress(BaseException):  # the process is dead
        copied(a_run())
    out = tmp_path / "out"
    assert [log for log in out.glob("*/*.wandb") if log.name == "run-one.wandb"] == []
    assert list(out.rglob("run-one.wandb")) != []
    monkeypatch.undo()
    assert copied(a_run()).copied == 1


def test_a_log_that_reads_otherwise_than_was_meant_is_no_run(tmp_path, monkeypatch, request):
    rows = LogWriter.history
    monkeypatch.setattr(
        LogWriter, "history", lambda self, block: rows(self, replace(block, value=_nudged(block.value)))
    )
    place = Memory()
    place.add(Experiment("1", "e"), a_run(), a_run("two", values=()))
    source, target = memory.install(request.node.name, place), parse(f"wandb:{tmp_path}/out")
    report = transfer(Job(source, target), Ledger.open(tmp_path / "l", source, target), Silent())
    assert [(failure.run, "reads otherwise: rows" in failure.message) for failure in report.failed] == [("one", True)]
    assert report.copied == 1


def _nudged(values):
    import pyarrow.compute as pc

    return pc.add(values, 1e-9)


def test_somebody_elses_run_is_never_written_over(copied, tmp_path, request):
    log = tmp_path / "out" / "offline-run-20200913_122640-one" / "run-one.wandb"
    wandblogs.write(log, [wandblogs.header(), wandblogs.run("one"), wandblogs.exit_()])
    before = log.read_bytes()
    place = Memory()
    place.add(Experiment("1", "e"), a_run(), a_run("two"))
    source, target = memory.install(request.node.name, place), parse(f"wandb:{tmp_path}/out")
    report = transfer(Job(source, target), Ledger.open(tmp_path / "l", source, target), Silent())
    assert [failure.run for failure in report.failed] == ["one"]
    assert (report.copied, log.read_bytes()) == (1, before)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "new.wandb"):
        with pytest.raises(UsageError, match="is a file"):
            registry.open_target(parse(f"wandb:{tmp_path}/{place}"), Context("target"))


def test_who_reads_is_synced_after_who_made_whatever_the_packs_were(tmp_path, monkeypatch):
    monkeypatch.setattr("mlmigrate.adapters.wandb.offline.target.OfflineTarget.packing", _one_run_a_pack())
    data = tmp_path / "m.bin"
    data.write_bytes(b"weights")
    entry = {"m": (base64.b64encode(hashlib.md5(b"weights").digest()).decode(), 7, str(data))}
    digest = hashlib.md5(f"wandb-artifact-manifest-v1\nm:{entry['m'][0]}\n".encode()).hexdigest()
    made = wandblogs.artifact("net", "model", entry, run_id="maker", project="p", digest=digest, aliases=["best"])
    read = wandblogs.artifact("net", "model", entry, run_id="a-reader", project="p", digest=digest)
    read.artifact.user_created = read.artifact.use_after_commit = True
    lost = wandblogs.artifact("lost", "model", entry, run_id="a-reader", project="p", digest="0" * 32)
    lost.artifact.user_created = lost.artifact.use_after_commit = True
    for id_, records in {"a-reader": [read, lost], "maker": [made]}.items():
        log = tmp_path / "in" / f"offline-run-20200913_122640-{id_}" / f"run-{id_}.wandb"
        wandblogs.write(log, [wandblogs.header(), wandblogs.run(id_), *records, wandblogs.exit_()])
    source, target = parse(f"wandb:{tmp_path}/in"), parse(f"wandb:{tmp_path}/out")
    report = transfer(Job(source, target), Ledger.open(tmp_path / "l", source, target), Silent(), workers=1)
    assert (report.failed, report.copied) == ((), 2)
    assert [loss.what for loss in report.losses] == ["used artifact 'lost'"]
    assert verify(Job(source, target), Silent()).findings == ()
    log = folder_of(tmp_path / "out", "a-reader") / "run-a-reader.wandb"
    told = [(one.name, one.digest, one.run_id, one.user_created) for one in wandblogs.of_kind(log, "artifact")]
    assert ("net", digest, "a-reader", True) in told
    assert [record.WhichOneof("record_type") for record in wandblogs.read(log)][-1] == "exit"
    turns = [
        {line.rpartition("-run-")[2].split("-", 1)[1] for line in file.read_text().splitlines()}
        for file in sorted((tmp_path / "out").glob("sync-*.txt"))
    ]
    assert len(turns) == 2
    assert "maker" in turns[0]
    assert turns[1] == {"a-reader"}


def _one_run_a_pack():
    from mlmigrate.adapters.base import Packing

    return Packing(runs=1)


def test_what_a_run_lost_is_told_once_though_its_pack_failed(tmp_path, monkeypatch):
    for id_ in ("bad", "good"):
        log = tmp_path / "in" / f"offline-run-20200913_122640-{id_}" / f"run-{id_}.wandb"
        wandblogs.write(log, [wandblogs.header(), wandblogs.run(id_), wandblogs.exit_()])
    write = delivery.Writer.write

    def losing(self, sheet, mark, losses):
        if sheet.run.id == "bad":
            raise Damaged("the disk has a hole")
        if sheet.run.id == "good":
            losses.append(Loss("good", "a thing", "it was in the hole"))
        return write(self, sheet, mark, losses)

    monkeypatch.setattr(delivery.Writer, "write", losing)
    source, target = parse(f"wandb:{tmp_path}/in"), parse(f"wandb:{tmp_path}/out")
    report = transfer(Job(source, target), Ledger.open(tmp_path / "l", source, target), Silent(), workers=1)
    assert [failure.run for failure in report.failed] == ["bad"]
    assert [loss.what for loss in report.losses] == ["a thing"]


def test_two_commands_may_write_the_lists_of_a_folder_at_the_same_moment(copied, tmp_path, monkeypatch):
    copied(a_run(values=(1.0,)))
    out, replace_ = tmp_path / "out", os.replace
    runs = list(marks.all_marked(out))
    (before,) = out.glob("sync-*.txt")
    told = before.read_text()

    def overtaken(part, final):
        monkeypatch.undo()
        order.write(out, runs)
        replace_(part, final)

    monkeypatch.setattr(os, "replace", overtaken)
    order.write(out, runs)
    assert [file.read_text() for file in out.glob("sync-*")] == [told]


def test_what_another_command_takes_away_meanwhile_is_no_hindrance(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / "gone"]))
    order.sweep(tmp_path)
