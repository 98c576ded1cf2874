import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmigrate.adapters.wandb import restored
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config
from mlmigrate.adapters.wandb.shape import File, Version, WandbRun
from mlmigrate.errors import BadData, NotFound
from mlmigrate.model import DatasetInput, Experiment, Record, Run

TOLD = Provenance(
    origin="mlflow:abc",
    stamp="s1",
    name="a\x00name",
    experiment="vision",
    experiment_id="7",
    status="KILLED",
    start=5,
    end=9,
    user="ada",
    deleted=True,
    deleted_at=10,
    artifact_uri="s3://b/1",
    tags={"mlflow.parentRunId": "p1", "t": ""},
    system={"source_type": "LOCAL"},
    inputs=({"name": "train", "digest": "d", "source_type": "local", "source": "{}", "tags": {"a": "b"}},),
)


def opener(data):
    return lambda: io.BytesIO(data)


def run_with(told, **fields):
    config = {"lr": 0.1, "n": 3, "on": True, "a": {"b": None}, KEY: as_config(told)}
    return WandbRun("abc", "team", "vision", "shown name", **({"config": config} | fields))


def of(run):
    return restored.run_of(run, restored.provenance_of(run))


class TestARun:
    def test_it_is_told_as_provenance_says(self):
        assert of(run_with(TOLD)) == Run(
            id="abc",
            experiment="7",
            name="a\x00name",
            origin="mlflow:abc",
            stamp="s1",
            status="KILLED",
            start=5,
            end=9,
            user="ada",
            deleted=True,
            deleted_at=10,
            params={"lr": "0.1", "n": "3", "on": "True", "a.b": "None"},
            tags={"mlflow.parentRunId": "p1", "t": ""},
            system={"source_type": "LOCAL"},
            inputs=(DatasetInput("train", "d", "local", "{}", None, None, {"a": "b"}),),
            artifact_uri="s3://b/1",
        )

    def test_without_a_name_in_provenance_it_is_the_shown_one(self):
        assert of(run_with(replace(TOLD, name=None))).name == "shown name"
        assert of(run_with(replace(TOLD, name=""))).name == ""

    def test_params_keep_their_types_where_provenance_says_so(self):
        assert of(run_with(replace(TOLD, typed=True))).params == {"lr": 0.1, "n": 3, "on": True, "a.b": None}

    def test_a_text_in_provenance_stands_for_what_the_config_has(self):
        told = replace(TOLD, params={"n": "3.0", "on": None, "more": "x"}, order={"a.b": "a/b"})
        assert of(run_with(told)).params == {"lr": "0.1", "n": "3.0", "a/b": "None", "more": "x"}

    def test_single_params_have_types_of_their_own(self):
        told = replace(
            TOLD,
            params={
                "when": "2024-01-02T03:04:05+00:00",
                "set": '["b", "a"]',
                "nan": "nan",
                "big": str(2**70),
                "no": "x",
            },
            types={
                "when": "datetime",
                "set": "set",
                "nan": "float",
                "big": "int",
                "no": "int",
                "n": "int",
                "a.b": "null",
            },
        )
        params = of(run_with(told)).params
        assert params["when"] == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert params["set"] == frozenset(["a", "b"])
        assert math.isnan(params["nan"])
        assert (params["big"], params["n"], params["a.b"]) == (2**70, 3, None)
        assert params["no"] == "x"  # cannot be what it is said to be

    @pytest.mark.parametrize(
        "hostile",
        [
            "text",
            3,
            [],
            {},
            {"origin": 5},
            {"origin": "x", "status": "DANCING"},
            {"origin": "x", "kind": "spy"},
            {"origin": "x", "tags": {"a": 1}},
            {"origin": "x", "inputs": [{"name": 3}]},
            {"origin": "x", "inputs": [5]},
            {"origin": "x", "kind": "experiment"},
            {"origin": "x", "kind": "experiment", "estate": {"id": [], "name": "n"}},
            {"origin": "x", "start": "soon"},
        ],
    )
    def test_what_is_nothing_of_ours_is_no_provenance_and_told(self, hostile):
        run = WandbRun("abc", config={KEY: hostile})
        assert restored.provenance_of(run) is None
        assert [loss.what for loss in restored.unreadable(run)] == ["config 'mlmigrate'"]

    def test_a_run_without_it_is_nothing_to_tell_of(self):
        assert restored.provenance_of(WandbRun("abc")) is None
        assert restored.unreadable(WandbRun("abc")) == []
        assert restored.unreadable(run_with(TOLD)) == []

    def test_nesting_without_end_is_no_harm(self):
        deep = {"origin": "x"}
        for _ in range(50_000):
            deep = {"origin": "x", "estate": deep}
        assert restored.provenance_of(WandbRun("abc", config={KEY: deep})) is None

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.dictionaries(st.sampled_from([*Provenance.__dataclass_fields__, "x"]), inner) | st.lists(inner)
            ),
            max_leaves=20,
        )
    )
    def test_anything_at_all_in_the_config_is_read_or_refused(self, hostile):
        run = WandbRun("abc", config={KEY: hostile})
        told = restored.provenance_of(run)
        if told is not None:
            restored.run_of(run, told)
            restored.files_of(run, told)


class TestFiles:
    def versions(self):
        return (
            Version("tree-abc", "mlflow-artifacts", "v0", files=(File("old.txt", opener(b"old")),)),
            Version("tree-abc", "mlflow-artifacts", "v10", files=(File("a/b.txt", opener(b"new")),)),
            Version("tree-abc", "mlflow-artifacts", "v9", files=(File("nine.txt", opener(b"9")),)),
            Version("net", "model", "v3", digest="d3", files=(File("w", opener(b"3")), File("far", ref="s3://x"))),
            Version("net", "model", "v4", digest="d4", files=(File("w", opener(b"4")),)),
            Version("other", "model", "v0", files=(File("not ours", opener(b"")),)),
        )

    def kept(self, told, **fields):
        kept, losses = restored.files_of(run_with(told, **fields), told)
        found = {}
        for path, file in kept:
            assert path not in found
            found[path] = file.open().read()
        return found, losses

    def test_trees_say_which_folder_an_artifact_holds_and_its_newest_version_counts(self):
        told = replace(TOLD, trees={"tree-abc": "", "net:d3": "models/one", "net:d4": "models/two/"})
        assert self.kept(told, logged=self.versions()) == (
            {"a/b.txt": b"new", "models/one/w": b"3", "models/two/w": b"4"},
            [],
        )

    def test_files_of_the_page_lie_under_their_own_paths(self):
        files = (
            File("plots/x.png", opener(b"x")),
            File("output.log", opener(b"log")),
            File("config.yaml", opener(b"")),
        )
        told = replace(TOLD, files=("plots/x.png", "wandb/files/output.log"), native=True)
        assert self.kept(told, files=files) == ({"plots/x.png": b"x", "wandb/files/output.log": b"log"}, [])

    def test_what_is_gone_is_told(self):
        told = replace(TOLD, trees={"tree-abc": ""}, files=("x.png",))
        found, losses = self.kept(told)
        assert found == {}
        assert [loss.what for loss in losses] == ["artifact 'tree-abc' of W&B", "artifact 'x.png'"]

    @pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a\0b"])
    def test_a_path_that_leaves_its_folder_is_not_clean(self, path):
        assert not restored.clean(path)

    def test_a_path_within_is(self):
        assert restored.clean("a//b..c/...")


class TestRecords:
    RECORDS = (
        Record("mlflow.trace", "t1", "7", '{"trace_info": []}'),
        Record("mlflow.registered_model", "nets", "", "{}"),
        Record("wandb.report", "ü\nx", "7", json.dumps("x" * 600_000)),
    )

    def run(self, lines, *files):
        holder = Version("records", "mlmigrate-records", "v0", files=(File("records.jsonl", opener(lines)), *files))
        return WandbRun("r", logged=(holder, Version("m", "model", files=(File("files/@model/x/y", opener(b"")),))))

    def test_records_come_line_by_line(self):
        lines = b"\n".join(json.dumps(vars_of(record)).encode() for record in self.RECORDS) + b"\n"
        losses = []
        assert tuple(restored.records_of(self.run(lines), losses)) == self.RECORDS
        assert losses == []

    def test_a_line_that_is_no_record_is_told_and_the_others_come(self):
        lines = b"".join(json.dumps(vars_of(record)).encode() + b"\n{\n" for record in self.RECORDS)
        losses = []
        assert tuple(restored.records_of(self.run(lines), losses)) == self.RECORDS
        assert [loss.what for loss in losses] == [f"line {n} of records.jsonl" for n in (2, 4, 6)]

    def test_half_a_surrogate_pair_in_a_record_is_no_harm(self):
        given_ = Record("k", "\ud800", "", "{}")
        assert list(restored.records_of(self.run(json.dumps(vars_of(given_)).encode()), [])) == [given_]

    def test_a_records_experiment_has_the_id_that_it_has_here(self):
        first, registered, _ = self.RECORDS
        assert restored.owned(first, TOLD, "team/vision").owner == "team/vision"
        assert restored.owned(registered, TOLD, "team/vision").owner == ""

    def test_files_belong_to_their_owners(self):
        files = [
            File(f"files/{path}", opener(b"")) for path in ("@model/m-1/MLmodel", "@trace/t/a/b.json", "stray", "@x/y")
        ]
        found = [(owner, path) for owner, (path, _) in restored.record_files_of(self.run(b"", *files))]
        assert found == [("@model/m-1", "MLmodel"), ("@trace/t", "a/b.json")]

    @given(st.lists(st.binary(max_size=6).map(lambda part: part.replace(b"\n", b"")), max_size=6), st.integers(1, 4))
    def test_lines_are_lines_whatever_a_stream_gives_at_once(self, parts, size):
        class Slow(io.BytesIO):
            def read(self, n=-1):
                return super().read(size)

        text = b"\n".join(parts)
        assert list(restored.lines_of(Slow(text))) == text.removesuffix(b"\n").split(b"\n") * bool(text)

    @pytest.mark.parametrize("error", [NotFound("404"), FileNotFoundError("no such file"), None])
    def test_records_that_are_gone_are_told(self, error):
        def open_():
            raise error

        file = File("records.jsonl", open_ if error else None)
        losses = []
        run = WandbRun("r", logged=(Version("records", "mlmigrate-records", files=(file,)),))
        assert list(restored.records_of(run, losses)) == []
        assert list(restored.records_of(WandbRun("r"), losses)) == []
        assert [loss.what for loss in losses] == ["records.jsonl"] * 2

    def test_a_line_without_end_is_bad_data(self, monkeypatch):
        monkeypatch.setattr(restored, "LONGEST_LINE", 1000)
        with pytest.raises(BadData):
            list(restored.lines_of(io.BytesIO(b"x" * 2000)))


def vars_of(record):
    return {"kind": record.kind, "id": record.id, "owner": record.owner, "body": record.body}


def test_an_experiment_is_told_as_it_was():
    given_ = Experiment("7", "größe / 🚀", {"a": "b"}, 1, 2, deleted=True, artifact_root="s3://x", origin="7@1")
    told = Provenance(
        kind="experiment",
        origin="x",
        estate={
            "id": "7",
            "name": "größe / 🚀",
            "tags": {"a": "b"},
            "created": 1,
            "updated": 2,
            "deleted": True,
            "artifact_root": "s3://x",
            "origin": "7@1",
        },
    )
    assert restored.experiment_of(told) == given_
