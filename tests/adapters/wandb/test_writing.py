"""Packs become sheets; sheets, read again by the reader, are the packs."""

from __future__ import annotations

import errno
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmigrate.adapters.memory import Held
from mlmigrate.adapters.mlflow.objects import BY_NAME, record_of
from mlmigrate.adapters.wandb import names
from mlmigrate.adapters.wandb.blocks import from_lines, lines
from mlmigrate.adapters.wandb.limits import LIMITS
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config, of_config
from mlmigrate.adapters.wandb.reading import WandbReading
from mlmigrate.adapters.wandb.records import collection
from mlmigrate.adapters.wandb.shape import Block, Collection, File, Linked, Sheet, Version, WandbRun
from mlmigrate.adapters.wandb.writing import Homes, WandbPlace, experiment_sheets, levels, regenerated
from mlmigrate.errors import DiskFull, MigrateError
from mlmigrate.fit import fit_points, fit_run
from mlmigrate.model import POINTS, Artifact, DatasetInput, Experiment, Loss, Record, Run, RunRef, points
from mlmigrate.testing.samples import EXPERIMENTS, NAN, START, hard_samples, make, samples, series

OPTIONS = Options()


class Kept:
    """Keeps the sheets it was given; W&B as it would be after all of them."""

    needs_levels = True

    def __init__(self) -> None:
        self.levels: list[list[Sheet]] = []
        self.held: dict[str, Stored] = {}
        self.linked: list[Collection] = []
        self.losses: list[Loss] = []

    def deliver(self, sheets: Sequence[Sheet]) -> Mapping[str, str]:
        self.levels.append(list(sheets))
        self.held |= {sheet.run.id: Stored(sheet) for sheet in sheets}
        return {sheet.origin: sheet.run.id for sheet in sheets}

    def link(self, collections: Sequence[Collection]) -> Sequence[Loss]:
        self.linked += collections
        return [Loss("", "a link", "not here")]


def wired(block: Block) -> Block:
    """The rows as they are after they were lines of JSON."""
    return from_lines(lines(block))


class Stored:
    """A run as W&B holds it: what was streams is bytes now, and what was a dict went through JSON."""

    def __init__(self, sheet: Sheet) -> None:
        self.losses: list[Loss] = []
        config = json.loads(json.dumps(sheet.run.config, allow_nan=False))
        config[KEY]["stamp"] = sheet.stamp
        logged = [self._version(n, one) for n, one in enumerate(sheet.run.logged)]
        files = tuple(self._file(one) for one in sheet.run.files)
        self.run = replace(sheet.run, config=config, files=files, logged=tuple(logged))
        self.sheet = sheet
        self._history, self._events = list(map(wired, sheet.history(0))), list(map(wired, sheet.events(0)))
        assert sum(block.rows for block in self._history) == sheet.rows
        assert sum(block.rows for block in self._events) == sheet.event_rows

    def _version(self, n: int, version: Version) -> Version:
        json.dumps(version.metadata, allow_nan=False)
        return replace(version, version=f"v{n}", files=tuple(self._file(one) for one in version.files))

    def _file(self, file: File) -> File:
        if file.open is None:
            return file
        with file.open() as stream:
            data = stream.read()
        assert len(data) == file.size
        return replace(file, open=lambda: io.BytesIO(data))

    def history(self):
        yield from self._history

    def events(self):
        yield from self._events

    def called(self, named):
        return self.run.logged


def homes(*experiments: Experiment, project: str = "") -> Homes:
    found = Homes("team", project)
    experiment_sheets([*EXPERIMENTS, *experiments], found)
    return found


def artifact(owner: str, path: str, data: bytes) -> Artifact:
    return Artifact(owner, path, lambda: io.BytesIO(data), len(data))


def content(one: Artifact) -> bytes:
    with one.open() as stream:
        return stream.read()


def write(
    folder: Path, held: Sequence[Held], options: Options = OPTIONS, batch: int = 64_000
) -> tuple[Kept, WandbPlace]:
    kept = Kept()
    refs = [one.ref for one in held]
    place = WandbPlace(kept, folder, refs, homes(), options)
    place.begin([one.run for one in held])
    for one in held:
        for part in one.points.to_batches(max_chunksize=batch):
            place.points(part)
    for one in held:
        for (owner, path), data in one.artifacts.items():
            place.put(artifact(owner, path, data))
    assert place.commit() == {one.run.origin: one.run.id for one in held}
    return kept, place


def read(stored: Stored, ref: RunRef) -> Held:
    with WandbReading([ref], lambda _: stored, OPTIONS) as reading:
        table = pa.Table.from_batches(reading.points(), POINTS)
        files = {(one.owner, one.path): content(one) for one in reading.artifacts()}
        assert reading.losses == []
        return Held(reading.runs[0], table, files)


def in_order(table: pa.Table) -> dict[str, list[tuple[object, ...]]]:
    """Each key's points, NaN as a word."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for row in table.to_pylist():
        told = tuple(str(value) for name, value in row.items() if name != "key")
        found.setdefault(row["key"], []).append(told)
    return found


def assert_same(found: Held, wanted: Held) -> None:
    assert found.run == replace(wanted.run, experiment=found.run.experiment)
    assert found.artifacts == wanted.artifacts
    assert {key: sorted(rows) for key, rows in in_order(found.points).items()} == {
        key: sorted(rows) for key, rows in in_order(wanted.points).items()
    }


@pytest.mark.parametrize("held", [*samples(), *hard_samples()[:2]], ids=lambda held: held.run.name)
def test_a_run_written_and_read_is_the_run(tmp_path, held):
    held = replace(held, run=fit_run(held.run, LIMITS).run)
    kept, place = write(tmp_path, [held])
    assert place.losses == []
    assert_same(read(kept.held[held.run.id], held.ref), held)


def test_a_pack_of_many_runs_keeps_them_apart_and_a_long_one_whole(tmp_path):
    held = [*samples(), *hard_samples()]
    held = [replace(one, run=fit_run(one.run, LIMITS).run) for one in held]
    kept, _ = write(tmp_path, held, batch=700)
    for one in held:
        assert_same(read(kept.held[one.run.id], one.ref), one)


def test_one_batch_may_hold_the_points_of_several_runs(tmp_path):
    runs = [make(f"run {n}") for n in range(3)]
    rows = {"run": [runs[0].id] * 2 + [runs[1].id] * 3, "key": list("ababc"), "step": [0, 0, 0, 0, 1]}
    batch = points({**rows, "timestamp": [START] * 5, "value": [1.0, 2.0, 3.0, 4.0, 5.0]})
    kept = Kept()
    place = WandbPlace(kept, tmp_path, [], homes(), OPTIONS)
    place.begin(runs)
    place.points(batch)
    place.commit()
    read_ = [read(kept.held[run.id], Held(run).ref).points for run in runs]
    assert [sorted(one["value"].to_pylist()) for one in read_] == [[1.0, 2.0], [3.0, 4.0, 5.0], []]


def test_a_sheet_may_be_read_again_and_from_any_row_on(tmp_path):
    run = make("x")
    held = Held(run, series(run, {"loss": [(n, START + n, n / 3) for n in range(500)]}))
    kept = Kept()
    place = WandbPlace(kept, tmp_path, [held.ref], homes(), OPTIONS)
    place.begin([run])
    place.points(held.points.to_batches()[0])

    def rows(blocks) -> list[int]:
        return [step for block in blocks for step in block.step.to_pylist()]

    class Looking(Kept):
        def deliver(self, sheets: Sequence[Sheet]) -> Mapping[str, str]:
            sheet = sheets[0]
            assert rows(sheet.history(0)) == rows(sheet.history(0)) == list(range(500))
            assert rows(sheet.history(497)) == [497, 498, 499]
            return super().deliver(sheets)

    place._delivery = Looking()
    assert place.commit() == {run.origin: run.id}


def test_the_summarys_time_is_that_of_the_last_row_whatever_system_metrics_came_later(tmp_path):
    run = make("x")
    given_ = {
        "a": [(5, START + 250, 1.0), (9, START, NAN), (9, START - 9, 3.0)],
        "system/cpu": [(0, START + 9000, 1.0)],
    }
    kept, _ = write(tmp_path, [Held(run, series(run, given_))])
    summary = kept.held[run.id].run.summary
    assert math.isnan(summary.pop("a"))
    assert summary == {"_step": 2, "_timestamp": START / 1000 + 0.25, "_runtime": 0.25, "_wandb": {"runtime": 1}}


def test_points_of_many_runs_wait_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("mlmigrate.adapters.wandb.writing.IN_MEMORY", 100)
    held = [Held(run, series(run, {"a": [(n, START, 1.0) for n in range(90)]})) for run in map(make, "abcde")]
    kept, _ = write(tmp_path, held, batch=40)
    assert len(list((tmp_path / "points").iterdir())) >= 4
    for one in held:
        assert_same(read(kept.held[one.run.id], one.ref), one)


def test_experiments_are_projects_or_groups_of_one(tmp_path):
    run = make("x")
    for project, wanted in (("", ("vision-eager-", "")), ("all", ("all", "vision/eager"))):
        kept = Kept()
        place = WandbPlace(kept, tmp_path / (project or "own"), [], homes(project=project), OPTIONS)
        place.begin([run])
        place.commit()
        found = kept.held[run.id].run
        assert found.entity == "team"
        assert (found.project.startswith(wanted[0]), found.group) == (True, wanted[1])


def test_an_experiment_is_kept_by_a_run_of_its_own():
    (sheet,) = experiment_sheets([EXPERIMENTS[0]], Homes("team"))
    told = of_config(sheet.run.config[KEY])
    assert told is not None
    assert (told.kind, told.estate) == ("experiment", msgspec.to_builtins(EXPERIMENTS[0]))
    assert sheet.run.project == names.project(EXPERIMENTS[0].name)
    again = experiment_sheets([replace(EXPERIMENTS[0], deleted=True)], Homes("team"))[0]
    assert again.run.id == sheet.run.id
    assert again.stamp != sheet.stamp


def sheet_of(id_: str, used: Sequence[str] = (), logged: Sequence[str] = (), parent: str = "") -> Sheet:
    tags = {"mlflow.parentRunId": parent} if parent else {}
    told = as_config(Provenance(origin=f"mlflow:{id_}", tags=tags))
    versions = {name: Version(name, "model", digest=name) for name in (*used, *logged)}
    run = WandbRun(
        id_,
        config={KEY: told},
        used=tuple(versions[name] for name in used),
        logged=tuple(versions[name] for name in logged),
    )
    return Sheet(run, f"mlflow:{id_}", "", 0, lambda start: iter(()), 0, lambda start: iter(()))


def test_who_logs_an_artifact_comes_before_who_reads_it_and_a_parent_before_its_children():
    sheets = [
        sheet_of("child", parent="parent"),
        sheet_of("late", used=["b"]),
        sheet_of("middle", used=["a"], logged=["b"]),
        sheet_of("first", logged=["a", "own"], used=["own"]),
        sheet_of("parent"),
    ]
    assert [[one.run.id for one in level] for level in levels(sheets, uses=True)] == [
        ["first", "parent"], ["child", "middle"], ["late"],
    ]  # fmt: skip


def test_where_uses_need_no_levels_only_children_wait():
    sheets = [sheet_of("child", parent="parent"), sheet_of("reader", used=["a"]), sheet_of("parent", logged=["a"])]
    told = [[one.run.id for one in level] for level in levels(sheets, uses=False)]
    assert told == [["reader", "parent"], ["child"]]


def test_runs_that_read_each_others_artifacts_are_delivered_all_the_same():
    sheets = [sheet_of("a", used=["y"], logged=["x"]), sheet_of("b", used=["x"], logged=["y"])]
    assert [len(level) for level in levels(sheets, uses=True)] == [2]
    assert levels([], uses=True) == []


def test_another_generation_is_the_same_run_under_another_id(tmp_path):
    run = make("files")
    files = {(run.id, "model/MLmodel"): b"flavors: {}", (run.id, "a"): b"1"}
    held = Held(run, series(run, {"a": [(0, START, 1.0)]}), files)
    kept, _ = write(tmp_path, [held])
    sheet = kept.held[run.id].sheet
    again = regenerated(sheet, 3)
    assert again.run.id == f"{run.id}-3"
    assert {one.name for one in again.run.logged} == {f"model-{run.id}-3", f"mlflow-artifacts-{run.id}-3"}
    assert {one.run for one in again.run.logged} == {f"{run.id}-3"}
    assert regenerated(again, 3) == again
    kept.held.clear()
    assert [one.digest for one in again.run.logged] == [one.digest for one in sheet.run.logged]
    found = of_config(again.run.config[KEY])
    assert found is not None
    assert (found.generation, found.id, set(found.trees)) == (3, run.id, {one.name for one in again.run.logged})


def test_another_generation_of_a_run_with_a_short_id_changes_the_ends_of_names_alone(tmp_path):
    run = replace(make("x"), id="a", origin="mlflow:a")
    held = Held(run, series(run, {}), {("a", "data/MLmodel"): b"{}\n", ("a", "notes"): b"n"})
    kept, _ = write(tmp_path, [held])
    again = regenerated(kept.held["a"].sheet, 2)
    assert {one.name for one in again.run.logged} == {"data-a-2", "mlflow-artifacts-a-2"}


def test_a_dataset_that_two_runs_read_is_one_artifact(tmp_path):
    given = DatasetInput("train", "d1", "s3", '{"uri": "s3://b/x"}')
    held = [Held(replace(make(name), inputs=(given,))) for name in "ab"]
    kept, _ = write(tmp_path, held)
    used = [kept.held[one.run.id].run.used[0] for one in held]
    assert (used[0].digest, used[0].name) == (used[1].digest, used[1].name)
    for one in held:
        assert_same(read(kept.held[one.run.id], one.ref), one)


def test_a_file_that_cannot_be_read_ends_the_pack_and_says_so_itself(tmp_path):
    def torn():
        raise MigrateError("gone")

    run = make("x")
    place = WandbPlace(Kept(), tmp_path, [], homes(), OPTIONS)
    place.begin([run])
    with pytest.raises(MigrateError, match="gone"):
        place.put(Artifact(run.id, "a", torn))


INT64 = st.integers(-(2**63), 2**63 - 1)
POINT = st.tuples(
    st.sampled_from(["loss", "val/loss", "system/gpu.0", "naïve 模型", "a.b"]),
    st.one_of(st.integers(-2, 3), INT64),
    st.one_of(st.integers(START, START + 3), INT64),
    st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0])),
    st.sampled_from([None, "train"]),
)
PATH = st.lists(st.sampled_from(["a", "b.txt", "MLmodel", "wandb", "files", "ü x"]), min_size=1, max_size=3).map(
    "/".join
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(POINT, max_size=12),
    st.dictionaries(st.text(max_size=5), st.text(st.characters(), max_size=8), max_size=4),
    st.dictionaries(PATH, st.binary(max_size=4), max_size=5),
)
def test_any_run_written_and_read_is_the_run(given_, params, files):
    run = fit_run(make("any", params=params, tags=params), LIMITS).run
    keys, steps, times, values, datasets = (
        (list(column) for column in zip(*given_, strict=True)) if given_ else [[]] * 5
    )
    told = {"run": [run.id] * len(keys), "key": keys, "step": steps, "timestamp": times, "value": values}
    table = pa.Table.from_batches([points({**told, "dataset_name": datasets})])
    held = Held(run, table, {(run.id, path): data for path, data in files.items()})
    with TemporaryDirectory() as folder:
        kept, place = write(Path(folder), [held])
    assert place.losses == []
    assert_same(read(kept.held[run.id], held.ref), held)


# -- records -----------------------------------------------------------------------------------------------------------

TREE = {
    "registered_models": [{"name": "net work", "description": "d", "creation_time": 1}],
    "registered_model_aliases": [{"alias": "champion", "version": "10"}],
    "model_versions": [
        {"version": "10", "source": "runs:/" + "a" * 32 + "/model", "description": "ten"},
        {"version": "2", "source": "models:/m-123"},
        {"version": "3", "source": "s3://bucket/1/" + "b" * 32 + "/artifacts/deep/er"},
        {"version": "4", "source": "/somewhere/else"},
    ],
}


def test_records_and_their_files_come_back(tmp_path):
    record = record_of(BY_NAME["mlflow.registered_model"], TREE)
    odd = Record("mlflow.trace", "tr-1", "1", '{"trace_info": [{"request_id": "tr-1", "x": "ü"}]}')
    ref = RunRef("", "@registry", origin="mlflow:x/@registry", stamp="s1", kind="records")
    files = {
        ("@model/m-123", "MLmodel"): b"flavors: {}",
        ("@model/m-123", "data/w.bin"): b"w",
        ("@trace/tr-1", "traces.json"): b"{}",
    }
    kept = Kept()
    place = WandbPlace(kept, tmp_path, [ref], homes(), OPTIONS)
    place.begin([])
    for one in (record, odd):
        place.keep(one)
    for (owner, path), data in files.items():
        place.put(artifact(owner, path, data))
    (id_,) = place.commit().values()
    stored = kept.held[id_]
    assert (stored.run.project, stored.sheet.stamp, stored.sheet.origin) == (names.ESTATE, "s1", ref.origin)
    with WandbReading([replace(ref, id=id_)], lambda _: stored, OPTIONS) as reading:
        assert list(reading.records()) == [record, odd]
        found = {(one.owner, one.path): content(one) for one in reading.artifacts()}
    assert found == files
    models = [one for one in stored.run.logged if one.type == "model"]
    assert [(one.name, sorted(file.path for file in one.files)) for one in models] == [
        ("m-123", ["MLmodel", "data/w.bin"])
    ]
    assert place.losses == [Loss("", "a link", "not here")]
    assert kept.linked == [collection(TREE)]


def test_records_within_a_run_come_back_with_it(tmp_path):
    within = (Record("other.note", "n1", "x", '{"a": [1, "ü"]}'), Record("other.note", "n2", "x", '"\ud800"'))
    run = replace(make("x"), records=within)
    held = Held(run, artifacts={(run.id, "records.jsonl"): b"the run's own file"})
    kept, place = write(tmp_path, [held])
    assert place.losses == []
    stored = kept.held[run.id]
    assert_same(read(stored, held.ref), held)
    again = regenerated(stored.sheet, 2)
    assert {one.name for one in again.run.logged} == {f"records-{run.id}-2", f"mlflow-artifacts-{run.id}-2"}


def test_a_registered_model_knows_the_artifacts_of_its_versions():
    assert collection(TREE) == Collection(
        names.artifact("net work"),
        "d",
        (
            Linked("m-123", "", "2"),
            Linked(names.model("b" * 32, "deep/er"), "b" * 32, "3"),
            Linked(f"model-{'a' * 32}", "a" * 32, "10", ("champion",), "ten"),
        ),
    )


def test_a_registered_model_whose_files_are_elsewhere_links_to_nothing():
    assert collection({"registered_models": [{"name": "x"}]}) is None


def test_records_that_are_none_leave_an_empty_file_that_tells_they_were_carried(tmp_path):
    kept = Kept()
    ref = RunRef("1", "@traces/1", origin="o", stamp="s", kind="records")
    place = WandbPlace(kept, tmp_path, [ref], homes(), OPTIONS)
    place.begin([])
    (id_,) = place.commit().values()
    (version,) = kept.held[id_].run.logged
    assert [(one.path, one.size) for one in version.files] == [("records.jsonl", 0)]
    assert kept.held[id_].run.project == names.project(EXPERIMENTS[0].name)


# -- runs that were W&B's ----------------------------------------------------------------------------------------------

LINES = [
    b'{"_step": 0, "_timestamp": 1700000000.25, "_runtime": 0.5, "loss": 1.5, "note": "a", "ok": true}',
    b'{"_step": 3, "_timestamp": 1700000001.123456, "_runtime": 1.25, "loss": "NaN", "n": 9007199254740993}',
    b'{"_step": 5, "_timestamp": 1700000002.5, "_runtime": 2.5, "hist": {"_type": "histogram", "bins": [1, 2]}}',
    b'{"_step": 9, "_timestamp": 1700000003.0, "_runtime": 3.0, "loss": "Infinity", "a.b": 1}',
]
EVENTS = [b'{"_timestamp": 1700000001.0, "_runtime": 1.0, "cpu": 50.5}']


class Own:
    """A run of W&B's own."""

    def __init__(self) -> None:
        self.losses: list[Loss] = []
        data = {"model/w": b"weights", "output.log": b"hi\n"}
        files = {path: File(path, lambda one=one: io.BytesIO(one), len(one)) for path, one in data.items()}  # type: ignore[misc]
        self.run = WandbRun(
            "maker",
            "team",
            "vision",
            name="maker of things",
            notes="n",
            tags=("baseline",),
            group="g1",
            state="finished",
            started=1_700_000_000_000,
            ended=1_700_000_003_500,
            config={"optimizer": {"lr": 0.1, "betas": [0.9, 1.0]}, "epochs": 3, "none": None},
            summary={"loss": float("inf"), "best": 0.5, "verdict": "good", "_step": 9, "_timestamp": 1700000003.0},
            metrics=({"name": "val/loss", "step_metric": "epoch"},),
            files=(files["output.log"],),
            logged=(Version("net", "model", "v4", "team", "vision", aliases=("best",), files=(files["model/w"],)),),
        )

    def history(self):
        yield from_lines(LINES)

    def events(self):
        yield from_lines(EVENTS)

    def called(self, named):
        return self.run.logged


def neutral(ms: bool = False, make_: type[Own] = Own) -> Held:
    """As an archive keeps it; `ms`: as MLflow does, texts and whole milliseconds."""
    id_ = make_().run.id
    ref = RunRef("team/vision", id_, origin=f"wandb:team/vision/{id_}", stamp="s")
    with WandbReading([ref], lambda _: make_(), OPTIONS) as reading:
        table = pa.Table.from_batches(reading.points(), POINTS)
        files = {(one.owner, one.path): content(one) for one in reading.artifacts()}
        run = reading.runs[0]
    if ms:
        at = POINTS.get_field_index("timestamp_micro")
        table = table.set_column(at, POINTS.field(at), pa.nulls(len(table), POINTS.field(at).type))
        run = replace(run, params={name: str(value) for name, value in run.params.items()})
    return Held(run, table, files)


def write_native(folder: Path, held: Held) -> tuple[Kept, WandbPlace]:
    kept = Kept()
    place = WandbPlace(kept, folder, [held.ref], homes(Experiment("team/vision", "vision")), OPTIONS)
    place.begin([held.run])
    for batch in held.points.to_batches():
        place.points(batch)
    for (owner, path), data in held.artifacts.items():
        place.put(artifact(owner, path, data))
    place.commit()
    return kept, place


def rows_of(blocks: Sequence[Block]) -> list[dict[str, object]]:
    """Each row with its numbers and the JSON of the rest."""
    found: list[dict[str, object]] = []
    for block in blocks:
        times = zip(block.step.to_pylist(), block.time.to_pylist(), strict=True)
        rows: list[dict[str, object]] = [{"_step": step, "_timestamp": time} for step, time in times]
        numbers = zip(block.row.to_pylist(), block.key.to_pylist(), block.value.to_pylist(), strict=True)
        for row, key, value in numbers:
            rows[row][block.keys[key]] = str(value)
        for row, key, text in block.others:
            rows[row][key] = json.loads(text)
        found += rows
    return found


@pytest.mark.parametrize("ms", [False, True])
def test_a_run_that_was_wandbs_is_wandbs_again_and_reads_as_it_was_told(tmp_path, ms):
    held = neutral(ms)
    kept, place = write_native(tmp_path, held)
    assert place.losses == []
    stored, was = kept.held["maker"], Own()
    assert rows_of(list(stored.history())) == [
        {**row, "_timestamp": int(row["_timestamp"] * 1000) / 1000} if ms else row  # type: ignore[operator]
        for row in rows_of(list(was.history()))
    ]
    assert rows_of(list(stored.events()))[0]["cpu"] == "50.5"
    assert stored.run.summary == was.run.summary
    assert stored.run.metrics == was.run.metrics
    assert {name: value for name, value in stored.run.config.items() if name != KEY} == was.run.config
    same = ("name", "notes", "tags", "group", "state", "started", "ended")
    assert {name: getattr(stored.run, name) for name in same} == {name: getattr(was.run, name) for name in same}
    assert [one.path for one in stored.run.files] == ["output.log"]
    net = next(one for one in stored.run.logged if one.name == "net")
    assert (net.type, net.aliases, [one.path for one in net.files]) == ("model", ("best",), ["model/w"])
    assert_same(read(stored, held.ref), held)


def test_numbers_that_only_the_summary_tells_are_no_rows(tmp_path):
    held = neutral()
    assert "best" in held.points["key"].to_pylist()
    kept, _ = write_native(tmp_path, held)
    keys = {key for block in kept.held["maker"].history() for key in block.keys}
    assert "best" not in keys
    assert "loss" in keys


def test_a_users_own_key_that_begins_like_a_system_metric_is_history_and_stays_so(tmp_path):
    class Mine(Own):
        def __init__(self) -> None:
            super().__init__()
            self.run = replace(self.run, summary={"system/cpu": "high", "system/best": 2, "system/cpu2": 7, "cpu": 2})

        def history(self):
            yield from_lines(
                [
                    b'{"_step": 0, "_timestamp": 1700000000.25, "system/cpu": 1.5, "system/on": true, "cpu": 2}',
                    b'{"_step": 1, "_timestamp": 1700000001.25, "system/cpu": "high", "mlflow/key/x": 3}',
                ]
            )

        def events(self):
            yield from_lines(
                [b'{"_timestamp": 1700000001.0, "cpu": 50.5}', b'{"_timestamp": 1700000002.0, "cpu2": 51.5}']
            )

    held = neutral(make_=Mine)
    keys = held.points["key"].to_pylist()
    assert sorted(key for key in keys if "cpu" in key) == [
        "cpu", "mlflow/key/system/cpu", "mlflow/key/system/cpu2", "system/cpu", "system/cpu2",
    ]  # fmt: skip
    with WandbReading([held.ref], lambda _: Mine(), OPTIONS) as reading:
        assert list(reading.points())
        told = {loss.what for loss in reading.losses}
    assert told >= {"metric 'system/cpu'", "metric 'system/best'", "metric 'mlflow/key/x'"}
    kept, place = write_native(tmp_path, held)
    assert place.losses == []
    stored = kept.held["maker"]
    assert rows_of(list(stored.history())) == rows_of(list(Mine().history()))
    assert rows_of(list(stored.events())) == rows_of(list(Mine().events()))
    assert stored.run.summary == Mine().run.summary
    assert_same(read(stored, held.ref), held)


def test_who_reads_an_artifact_finds_it_though_its_digest_is_another_now(tmp_path):
    class Reader(Own):
        def __init__(self) -> None:
            super().__init__()
            net = Version("net", "model", "v4", "team", "vision", digest="of another algorithm")
            self.run = replace(self.run, id="reader", logged=(), files=(), used=(net,))

    class Maker(Own):
        def __init__(self) -> None:
            super().__init__()
            self.run = replace(self.run, logged=(replace(self.run.logged[0], digest="of another algorithm"),))

    kept = Kept()
    both = [neutral(make_=Reader), neutral(make_=Maker)]
    place = WandbPlace(kept, tmp_path, [], homes(Experiment("team/vision", "vision")), OPTIONS)
    place.begin([one.run for one in both])
    for one in both:
        for (owner, path), data in one.artifacts.items():
            place.put(artifact(owner, path, data))
    place.commit()
    net = next(one for one in kept.held["maker"].run.logged if one.name == "net")
    assert [one.digest for one in kept.held["reader"].run.used] == [net.digest] != ["of another algorithm"]
    assert [[sheet.run.id for sheet in level] for level in kept.levels] == [["maker"], ["reader"]]


def test_steps_that_do_not_rise_any_more_make_the_rows_ours(tmp_path):
    held = neutral()
    more = points({"run": ["maker"], "key": ["late"], "step": [3], "timestamp": [START], "value": [1.0]})
    held = replace(held, points=pa.concat_tables([held.points, pa.Table.from_batches([more])]))
    kept, place = write_native(tmp_path, held)
    assert [loss.what for loss in place.losses] == ["rows of W&B"]
    stored = kept.held["maker"]
    assert_same(read(stored, held.ref), held)
    assert told_in_rows(stored) == told_in_rows(Own())  # with what is no number, and what that shows
    assert (stored.run.summary["verdict"], [one.path for one in stored.run.files]) == ("good", ["output.log"])


def told_in_rows(run):
    """The values of keys that have no numbers."""
    rows = rows_of(list(run.history()))
    return [(key, row[key]) for row in rows for key in ("note", "hist") if key in row]


def test_exact_values_of_a_metric_that_is_not_there_under_its_name_are_left_out_and_told(tmp_path):
    held = neutral()
    names_ = held.points["key"].to_pylist()
    called = pa.array(["n_renamed" if name == "n" else name for name in names_]).dictionary_encode()
    table = held.points.set_column(held.points.schema.get_field_index("key"), POINTS.field("key"), called)
    held = replace(held, points=table.filter(pc.not_equal(table["key"].cast(pa.utf8()), "ok")))
    kept, place = write_native(tmp_path, held)
    assert [(loss.what, loss.because) for loss in place.losses] == [
        ("metric 'ok'", "it is not there under this name: 1 exact values are left out"),
        ("metric 'n'", "it is not there under this name: 1 exact values are left out"),
    ]
    (row,) = [row for row in rows_of(list(kept.held["maker"].history())) if row["_step"] == 3]
    assert (row["n_renamed"], "n" in row) == (str(2.0**53), False)
    assert_same(read(kept.held["maker"], held.ref), held)


def test_values_under_names_of_ours_go_where_their_points_go(tmp_path):
    class Mine(Own):
        def history(self):
            yield from_lines([b'{"_step": 0, "mlmigrate": true, "mlflow/step": 9007199254740993, "_wandb": true}'])
            yield from_lines([b'{"_step": 1, "mlmigrate": "text", "mlflow/step": 2, "_wandb": 3}'])

    held = neutral(make_=Mine)
    fitting = fit_points(LIMITS, {"maker": None})
    table = pa.Table.from_batches([fitting.fit(batch) for batch in held.points.to_batches()])
    held = replace(held, points=table)
    kept, place = write_native(tmp_path, held)
    assert place.losses == []
    first, second = rows_of(list(kept.held["maker"].history()))
    assert first == {"_step": 0, "_timestamp": None, LIMITS.key("mlmigrate"): True, "_wandb": True} | {
        LIMITS.key("mlflow/step"): 2**53 + 1
    }
    assert second == {"_step": 1, "_timestamp": None, "mlmigrate": "text"} | {
        LIMITS.key("mlflow/step"): "2.0", LIMITS.key("_wandb"): "3.0",
    }  # fmt: skip
    assert_same(read(kept.held["maker"], held.ref), held)


@pytest.mark.parametrize("number", [b"", b', "loss": 1'])
def test_rows_without_numbers_keep_their_microseconds_but_where_they_must_meet_those_of_points(tmp_path, number):
    class Mine(Own):
        def history(self):
            yield from_lines([b'{"_step": 0, "_timestamp": 1700000001.123456, "note": "a"%s}' % number])

    kept, _ = write_native(tmp_path, neutral(ms=True, make_=Mine))
    (row,) = rows_of(list(kept.held["maker"].history()))
    assert row["_timestamp"] == (1700000001.123 if number else 1700000001.123456)


@pytest.mark.parametrize(
    ("path", "data"),
    [("wandb/run.json", b"no json"), ("wandb/run.json", b'{"run": 3}'), ("wandb/history.jsonl", b"{}\n")],
)
def test_what_is_no_index_is_a_file_like_others(tmp_path, path, data):
    held = neutral()
    held = replace(held, artifacts={**held.artifacts, ("maker", path): data})
    kept, place = write_native(tmp_path, held)
    assert [loss.what for loss in place.losses] == [path]
    assert_same(read(kept.held["maker"], held.ref), held)


def test_a_full_disk_is_told_as_that(tmp_path):
    place = WandbPlace(Kept(), tmp_path, [], homes(Experiment("team/vision", "vision")), OPTIONS)
    place.begin([Run("r", "team/vision")])

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    def gone():
        raise FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(DiskFull):
        place.put(Artifact("r", "a", full))
    with pytest.raises(FileNotFoundError):
        place.put(Artifact("r", "a", gone))
