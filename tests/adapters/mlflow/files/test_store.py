"""A file store as it is found in the wild: nothing is dropped in silence, nothing outside it is opened."""

import json
import os
from hashlib import md5
from pathlib import Path

import pytest

from mlmigrate.adapters.base import Settings
from mlmigrate.adapters.mlflow.files import databases_under, stores_under
from mlmigrate.errors import NotFound
from mlmigrate.model import DatasetInput, RunRef

RUN = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


def rows(records):
    """The rows of all records, by table."""
    found = {}
    for record in records:
        for table, some in json.loads(record.body).items():
            found.setdefault(table, []).extend(some)
    return found


def told(losses, text=""):
    return [f"{loss.what}: {loss.because}" for loss in losses if text in f"{loss.what}: {loss.because}"]


class TestARun:
    def test_all_of_a_plain_run_is_read(self, store):
        files = {
            "params/lr": "0.1",
            "tags/team": "blue",
            "metrics/loss": "1700000000000 0.5 1\n",
            "artifacts/a/b.txt": "B",
        }
        store.run(files=files)
        seen = store.look()
        run = seen.runs[RUN]
        assert (run.id, run.experiment, run.name, run.user, run.status) == (RUN, "1", "calm-dawn-1", "ada", "FINISHED")
        assert (run.start, run.end, run.deleted, run.deleted_at) == (1700000000000, 1700000001000, False, None)
        assert (run.params, run.tags, run.system) == ({"lr": "0.1"}, {"team": "blue"}, {"source_type": "LOCAL"})
        assert [(p["key"], p["value"], p["step"], p["timestamp"]) for p in seen.points] == [
            ("loss", 0.5, 1, 1700000000000)
        ]
        assert seen.artifacts == {(RUN, "a/b.txt"): b"B"}
        assert (seen.losses, seen.oddities) == ([], [])

    def test_its_ref_says_the_same(self, store):
        store.run(files={"metrics/loss": "1700000000000 0.5 1\n" * 9, "artifacts/a": "12345"})
        (ref,) = store.look().refs
        assert ref == RunRef(
            "1", RUN, "calm-dawn-1", f"mlflow:{RUN}", ref.stamp, "FINISHED", 1700000000000, False, 6, 5
        )
        assert ref.stamp

    @pytest.mark.parametrize("gone", ["metrics", "params", "tags", "artifacts"])
    def test_a_run_without_one_of_its_folders_is_read(self, store, gone):
        files = {"params/lr": "0.1", "tags/team": "blue", "metrics/loss": "1 0.5 1\n", "artifacts/a": "B"}
        store.run(files={path: text for path, text in files.items() if not path.startswith(gone)})
        seen = store.look()
        counts = (len(seen.points), len(seen.runs[RUN].params), len(seen.runs[RUN].tags), len(seen.artifacts))
        assert sum(counts) == 3
        assert (seen.losses, seen.oddities) == ([], [])

    @pytest.mark.parametrize(
        ("status", "expected"),
        [(1, ("RUNNING", "")), (2, ("SCHEDULED", "")), (3, ("FINISHED", "")), (4, ("FAILED", "")), (5, ("KILLED", "")),
         ("FINISHED", ("FINISHED", "")), ("failed", ("FAILED", "")), ("'3'", ("FINISHED", "")), (9, ("FINISHED", "9")),
         ("PAUSED", ("FINISHED", "PAUSED")), (None, ("RUNNING", ""))],
    )  # fmt: skip
    def test_its_status_is_a_number_or_a_word(self, store, status, expected):
        store.run(status=status)
        run = store.look().runs[RUN]
        assert (run.status, run.status_word) == expected

    @pytest.mark.parametrize(
        ("fields", "tag", "name"),
        [({"run_name": "a", "name": "b"}, "c", "a"), ({"run_name": ..., "name": "b"}, "c", "b"),
         ({"run_name": "''", "name": "''"}, "c", "c"), ({"run_name": ...}, None, ""),
         ({"run_name": "'123'"}, None, "123")],
    )  # fmt: skip
    def test_its_name_is_in_a_field_in_an_older_field_or_in_a_tag(self, store, fields, tag, name):
        store.run(files={} if tag is None else {"tags/mlflow.runName": tag}, **fields)
        seen = store.look()
        assert (seen.runs[RUN].name, seen.refs[0].name) == (name, name)

    def test_a_deleted_run_is_listed(self, store):
        store.run(lifecycle_stage="deleted", deleted_time=1700000002000)
        seen = store.look()
        assert (seen.refs[0].deleted, seen.runs[RUN].deleted, seen.runs[RUN].deleted_at) == (True, True, 1700000002000)

    def test_a_run_that_knows_only_run_uuid_is_a_run(self, store):
        store.run(run_id=..., run_uuid=RUN)
        assert (list(store.look().runs), store.look().oddities) == ([RUN], [])

    def test_values_are_kept_to_the_byte(self, store):
        values = {
            "empty": "",
            "lines": "a\nb\n",
            "crlf": "a\r\nb",
            "space": " x ",
            "unicode": "\u00fc\U0001f600\ufeff",
            "nul": "a\0b",
        }
        store.run(files={f"params/{key}": value for key, value in values.items()} | {"tags/a/b": "nested\n"})
        run = store.look().runs[RUN]
        assert (run.params, run.tags) == (values, {"a/b": "nested\n"})

    def test_values_and_names_that_are_no_utf8_are_kept(self, store):
        folder = os.fsencode(store.put(f"1/{RUN}/params/x", b"\xff\xfe").parent)
        Path(os.fsdecode(folder + b"/caf\xe9")).write_bytes(b"1")
        store.run()
        run = store.look().runs[RUN]
        assert {os.fsencode(key): value.encode("utf-8", "surrogateescape") for key, value in run.params.items()} == {
            b"x": b"\xff\xfe",
            b"caf\xe9": b"1",
        }

    def test_a_metric_whose_name_is_no_utf8_is_carried_under_another_and_told(self, store):
        place = os.fsencode(store.put(f"1/{RUN}/metrics/x", "1 2 3\n").parent)
        Path(os.fsdecode(place + b"/caf\xe9")).write_bytes(b"1 2 3\n")
        store.run()
        seen = store.look()
        assert sorted(point["key"] for point in seen.points) == ["caf\\xe9", "x"]
        assert told(seen.losses) == ["metric 'caf\\\\xe9': its name is not UTF-8: carried under this name"]

    def test_what_mlmigrate_wrote_is_left_out(self, store):
        store.run(files={"tags/mlmigrate.origin": "x", "tags/kept": "y"})
        store.put("1/tags/mlmigrate.stamp", "x")
        store.put("1/tags/kept", "z")
        seen = store.look()
        assert (seen.runs[RUN].tags, seen.experiments["1"].tags) == ({"kept": "y"}, {"kept": "z"})

    def test_what_other_programs_left_is_skipped_and_told(self, store):
        store.run(files={"params/.DS_Store": "x", "metrics/._loss": "x", "tags/.hidden": "a tag", "model.pkl": "stray"})
        seen = store.look()
        assert (seen.runs[RUN].params, seen.points, seen.runs[RUN].tags) == ({}, [], {".hidden": "a tag"})
        assert sorted(told(seen.oddities), key=len, reverse=True) == [
            f"1/{RUN}/model.pkl: left behind: MLflow keeps nothing of that name in a run",
            f"1/{RUN}/params/.DS_Store: left there by another program",
            f"1/{RUN}/metrics/._loss: left there by another program",
        ]

    def test_points_that_are_written_twice_are_told_and_are_no_loss(self, store):
        store.run(files={"metrics/loss": "1 0.5 0\n1 0.5 0\n"})
        seen = store.look()
        assert (len(seen.points), seen.losses) == (1, [])
        assert [(loss.run, loss.what) for loss in seen.oddities] == [(RUN, "metric 'loss'")]

    def test_keys_that_differ_in_case_alone_are_two(self, store):
        store.run(files={"params/LR": "1", "params/lr": "2"})
        assert store.look().runs[RUN].params == {"LR": "1", "lr": "2"}

    def test_bad_metric_lines_are_losses_and_the_others_are_kept(self, store):
        store.run(files={"metrics/loss": b"1 0.5 0\ntorn\n2 0.25 1\n3 0.1"})
        seen = store.look()
        assert [point["step"] for point in seen.points] == [0, 1, 0]
        assert told(seen.oddities) == ["metric 'loss': its last line has no end, and may be cut short: kept"]
        assert told(seen.losses) == ["metric 'loss', line 2: not \"time value [step [dataset digest]]\": 'torn'"]


class TestATornRun:
    @pytest.mark.parametrize("content", [b"", b"\0" * 99, b"[1, 2]", b"run_id: 'abc", None])
    def test_what_is_there_is_kept(self, store, content):
        store.run(files={"params/lr": "0.1", "metrics/loss": "1 0.5 0\n"})
        meta = store.root / "1" / RUN / "meta.yaml"
        meta.unlink() if content is None else meta.write_bytes(content)
        seen = store.look()
        assert (list(seen.runs), seen.runs[RUN].params, len(seen.points)) == ([RUN], {"lr": "0.1"}, 1)
        assert len(told(seen.losses, "status, times, user and name are unknown")) == 1
        assert len(told(seen.oddities, "meta.yaml")) == 1

    def test_the_whole_lines_of_a_torn_meta_are_kept(self, store):
        store.run(files={"params/lr": "0.1"})
        meta = store.root / "1" / RUN / "meta.yaml"
        meta.write_bytes(meta.read_bytes().partition(b"status")[0] + b"status: [")
        run = store.look().runs[RUN]
        assert (run.name, run.start, run.status) == ("calm-dawn-1", 1700000000000, "RUNNING")

    def test_a_folder_that_holds_nothing_of_a_run_is_told_and_left(self, store):
        store.put("1/notes/readme.txt", "x")
        seen = store.look()
        assert (seen.runs, told(seen.oddities)) == ({}, ["1/notes: left behind: no run"])

    def test_one_bad_run_does_not_stop_the_others(self, store):
        store.run()
        store.put(f"1/{OTHER}/meta.yaml", b"a: " + b"[" * 100_000)
        assert set(store.look().runs) == {RUN, OTHER}

    def test_an_id_that_is_not_the_folders_is_told(self, store):
        store.run(run_id=OTHER)
        seen = store.look()
        assert list(seen.runs) == [RUN]
        assert told(seen.oddities) == [
            f"1/{RUN}/meta.yaml: says that it is run '{OTHER}': kept under its folder's name"
        ]

    def test_a_time_that_is_none_is_a_loss(self, store):
        store.run(start_time="yesterday", end_time=9 * 10**30)
        seen = store.look()
        assert (seen.runs[RUN].start, seen.runs[RUN].end) == (None, None)
        assert len(told(seen.losses, "is no time")) == 2


class TestExperiments:
    def test_their_fields_are_read(self, store):
        store.experiment("7", "'a name'", creation_time=5, last_update_time=6)
        store.put("7/tags/mlflow.note.content", "line\n")
        one = store.look().experiments["7"]
        assert (one.name, one.created, one.updated, one.deleted) == ("a name", 5, 6, False)
        assert (one.tags, one.artifact_root) == ({"mlflow.note.content": "line\n"}, "file:///elsewhere/mlruns/7")

    def test_those_in_the_trash_are_deleted_and_their_runs_are_read(self, store):
        store.experiment(".trash/2", "second", lifecycle_stage="deleted")
        store.run(experiment=".trash/2", files={"metrics/loss": "1 2 3\n"})
        seen = store.look()
        assert (seen.experiments["2"].deleted, seen.runs[RUN].experiment, len(seen.points)) == (True, "2", 1)
        assert (seen.oddities, seen.losses) == ([], [])

    def test_one_without_meta_keeps_its_runs_under_a_made_up_name(self, store):
        store.run(experiment="9", files={"params/lr": "1"})
        seen = store.look()
        assert (seen.experiments["9"].name, seen.runs[RUN].experiment) == ("experiment 9", "9")
        assert told(seen.oddities) == [
            "experiment 9: its meta.yaml is missing: its runs are kept, under the name 'experiment 9'"
        ]

    def test_a_store_in_which_no_experiment_has_its_meta_is_a_store(self, new_store):
        store = new_store("bare")
        store.run(experiment="9")
        assert list(store.look().runs) == [RUN]

    def test_an_experiment_that_is_there_and_in_the_trash_is_one(self, store):
        store.experiment(".trash/1", "old")
        store.run()
        store.run(OTHER, ".trash/1")
        seen = store.look()
        assert (list(seen.experiments), set(seen.runs)) == (["1"], {RUN, OTHER})
        assert len(told(seen.oddities, "is there and in the trash")) == 1

    def test_equal_names_are_told(self, store):
        store.experiment("2", "first")
        assert len(told(store.look().oddities, "experiment 1 has the same name")) == 1

    def test_what_is_no_experiment_is_told(self, store):
        store.put("notes.txt", "x")
        store.put("lib/code.py", "x")
        store.put(".DS_Store", "x")
        expected = ["lib: left behind: no experiment", "notes.txt: left behind: no part of a store"]
        assert told(store.look().oddities) == expected

    def test_a_run_that_lies_twice_is_carried_once(self, store):
        store.experiment("2", "second")
        for experiment in ("1", "2"):
            store.run(experiment=experiment, files={"params/lr": "1"})
        (store.root / "2" / RUN / "meta.yaml").write_bytes((store.root / "1" / RUN / "meta.yaml").read_bytes())
        seen = store.look()
        assert [ref.experiment for ref in seen.refs] == ["1"]
        assert len(told(seen.oddities, "byte for byte")) == 1

    def test_another_run_of_the_same_id_is_told_as_left_behind(self, store):
        store.experiment("2", "second")
        store.run(files={"params/lr": "1"})
        store.run(experiment="2", files={"params/lr": "2"})
        seen = store.look()
        assert (seen.runs[RUN].params, len(told(seen.oddities, "this one is left behind"))) == ({"lr": "1"}, 1)

    def test_parents_come_before_their_children(self, store):
        store.run("a" * 32, files={"tags/mlflow.parentRunId": "c" * 32})
        store.run("b" * 32, files={"tags/mlflow.parentRunId": "a" * 32})
        store.run("c" * 32)
        store.run("d" * 32, files={"tags/mlflow.parentRunId": "d" * 32})
        assert [ref.id[0] for ref in store.open().refs()] == ["c", "a", "b", "d"]


class TestStamps:
    @pytest.mark.parametrize(
        ("path", "content"),
        [("metrics/loss", "1 0.5 0\n2 0.5 1\n"), ("metrics/new", "1 1 1\n"), ("tags/t", "other"), ("params/p", "1"),
         ("artifacts/a", "longer"), ("artifacts/sub/b", ""), ("inputs/i/meta.yaml", "x: 1\n"),
         ("meta.yaml", "run_id: x\n")],
    )  # fmt: skip
    def test_a_stamp_changes_with_anything_in_the_run(self, store, path, content):
        store.run(files={"metrics/loss": "1 0.5 0\n", "tags/t": "one", "artifacts/a": "x"})
        store.run(OTHER)
        before = {ref.id: ref.stamp for ref in store.open().refs()}
        store.put(f"1/{RUN}/{path}", content)
        after = {ref.id: ref.stamp for ref in store.open().refs()}
        assert after[RUN] != before[RUN]
        assert after[OTHER] == before[OTHER]

    def test_listing_opens_no_metric(self, store, monkeypatch):
        store.run(files={"metrics/loss": "1 0.5 0\n", "params/p": "x", "artifacts/a": "x"})
        opened = []
        real = os.open
        monkeypatch.setattr(
            os, "open", lambda path, *rest, **more: opened.append(str(path)) or real(path, *rest, **more)
        )
        store.look.__self__.open().refs()
        assert {Path(path).name for path in opened} == {"meta.yaml"}

    def test_a_run_has_the_stamp_it_was_read_for(self, store):
        store.run()
        source = store.open()
        (ref,) = source.refs()
        with source.read([ref]) as reading:
            assert reading.runs[0].stamp == ref.stamp

    def test_a_run_that_is_gone_is_a_loss(self, store):
        ref = RunRef("1", "f" * 32, origin="mlflow:" + "f" * 32)
        with store.open().read([ref]) as reading:
            assert (list(reading.runs), told(reading.losses)) == ([], ["the run: gone since it was listed"])

    def test_a_worker_that_has_not_listed_reads_a_run(self, store):
        store.run(files={"metrics/loss": "1 0.5 0\n"})
        (ref,) = store.open().refs()
        with store.open().read([ref]) as reading:
            assert [run.id for run in reading.runs] == [RUN]


class TestLinks:
    def test_nothing_is_read_through_a_link(self, store, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text("secret")
        folder = tmp_path / "folder"
        (folder / RUN).mkdir(parents=True)
        (folder / "x").write_text("1 2 3\n")
        store.run(files={"params/p": "1", "metrics/m": "1 2 3\n", "artifacts/a": "x"})
        run = store.root / "1" / RUN
        for link in ("params/link", "metrics/link", "tags", "artifacts/link"):
            (run / link).symlink_to(secret)
        (run / "artifacts/dir").symlink_to(folder)
        (run / "metrics/dir").symlink_to(folder)
        (store.root / "1" / OTHER).symlink_to(folder / RUN)
        (store.root / "5").symlink_to(folder)
        seen = store.look()
        assert (list(seen.runs), seen.runs[RUN].params, seen.runs[RUN].tags) == ([RUN], {"p": "1"}, {})
        assert ([point["key"] for point in seen.points], list(seen.artifacts)) == (["m"], [(RUN, "a")])
        linked = {loss.what for loss in [*seen.losses, *seen.oddities] if "link" in loss.because}
        assert linked >= {
            "param link",
            "metric link",
            "metric dir",
            "tags",
            "artifact link",
            "artifact dir",
            "5",
            f"1/{OTHER}",
        }

    def test_a_pipe_is_told_and_not_waited_for(self, store):
        store.run(files={"params/p": "1", "artifacts/a": "x"})
        os.mkfifo(store.root / "1" / RUN / "params" / "pipe")
        os.mkfifo(store.root / "1" / RUN / "artifacts" / "pipe")
        seen = store.look()
        assert seen.runs[RUN].params == {"p": "1"}
        assert len(told([*seen.losses, *seen.oddities], "no regular file")) == 2


class TestArtifacts:
    def test_bytes_beside_the_run_are_found_whatever_its_uri_says(self, store):
        store.run(files={"artifacts/a": "x", "artifacts/.hidden": "y"}, artifact_uri="s3://bucket/1")
        seen = store.look()
        assert seen.artifacts == {(RUN, "a"): b"x", (RUN, ".hidden"): b"y"}
        assert seen.losses == []

    def test_bytes_in_mlartifacts_beside_the_store_are_found(self, store):
        store.run(artifact_uri=f"mlflow-artifacts:/1/{RUN}/artifacts")
        place = store.root.parent / "mlartifacts" / "1" / RUN / "artifacts"
        place.mkdir(parents=True)
        (place / "a").write_text("x")
        seen = store.look()
        assert (seen.artifacts, seen.refs[0].size, seen.losses) == ({(RUN, "a"): b"x"}, 1, [])

    def test_a_uri_outside_the_store_is_opened_only_when_allowed(self, store, tmp_path):
        place = tmp_path / "elsewhere"
        place.mkdir()
        (place / "a").write_text("x")
        store.run(artifact_uri=f"file://{place}")
        seen = store.look()
        assert (seen.artifacts, len(told(seen.losses, "lies outside the store"))) == ({}, 1)
        assert store.look(Settings(artifacts_at=(str(tmp_path / "elsewhere"),))).artifacts == {(RUN, "a"): b"x"}

    def test_a_uri_does_not_climb_out_of_an_allowed_folder(self, store, tmp_path):
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "a").write_text("x")
        (tmp_path / "allowed").mkdir()
        for uri in (
            f"file://{tmp_path}/allowed/../secret",
            "mlflow-artifacts:/../secret",
            "mlflow-artifacts:/%2e%2e/secret",
        ):
            store.run(artifact_uri=uri)
            assert store.look(Settings(artifacts_at=(str(tmp_path / "allowed"),))).artifacts == {}

    def test_a_folder_that_a_person_names_is_looked_into_by_layout(self, store, tmp_path):
        place = tmp_path / "bucket" / "1" / RUN / "artifacts"
        place.mkdir(parents=True)
        (place / "a").write_text("x")
        store.run(artifact_uri=f"s3://bucket/1/{RUN}/artifacts")
        assert store.look(Settings(artifacts_at=(str(tmp_path / "bucket"),))).artifacts == {(RUN, "a"): b"x"}

    @pytest.mark.parametrize(
        ("uri", "files", "lost"),
        [("abfss://bucket@host/1", {}, True), ("mlflow-artifacts:/1/x/artifacts", {}, True),
         ("file:///C:/no/artifacts", {}, False),
         ("file:///C:/no/artifacts", {"tags/mlflow.log-model.history": "[{}]"}, True)],
    )  # fmt: skip
    def test_artifacts_that_are_not_here_are_a_loss(self, store, uri, files, lost):
        store.run(files=files, artifact_uri=uri)
        assert len(told(store.look().losses, "artifacts: ")) == lost

    def test_a_password_in_a_uri_is_not_told(self, store):
        store.run(artifact_uri="ftp://ada:hunter2@host/x")
        assert "hunter2" not in str(told(store.look().losses))


class TestInputsAndRecords:
    def dataset(self, store, name="d1", digest="abc", run=RUN):
        dataset = md5((name + digest).encode()).hexdigest()
        read = md5((dataset + run).encode()).hexdigest()
        store.put(
            f"1/datasets/{dataset}/meta.yaml",
            f"name: {name}\ndigest: {digest}\nsource: '{{}}'\nsource_type: code\nschema: null\n",
        )
        return dataset, f"inputs/{read}/meta.yaml"

    def test_a_dataset_that_a_run_read_is_its_input(self, store):
        dataset, path = self.dataset(store)
        store.run(files={path: f"source_id: {dataset}\nsource_type: DATASET\ntags:\n  mlflow.data.context: train\n"})
        seen = store.look()
        assert seen.runs[RUN].inputs == (
            DatasetInput("d1", "abc", "code", "{}", None, None, {"mlflow.data.context": "train"}),
        )
        assert (seen.records, seen.losses, len(seen.refs)) == ([], [], 1)

    def test_a_dataset_that_no_run_read_is_a_row_of_its_own(self, store):
        self.dataset(store)
        store.run()
        seen = store.look()
        assert [(record.kind, record.id, record.owner) for record in seen.records] == [
            ("mlflow.dataset", "1/d1/abc", "1")
        ]
        assert rows(seen.records) == {
            "datasets": [
                {
                    "experiment_id": 1,
                    "name": "d1",
                    "digest": "abc",
                    "dataset_source_type": "code",
                    "dataset_source": "{}",
                    "dataset_schema": None,
                    "dataset_profile": None,
                }
            ]
        }
        assert [ref.id for ref in seen.refs if ref.kind == "records"] == ["@datasets/1"]

    def test_an_input_without_its_dataset_is_a_loss(self, store):
        store.run(files={"inputs/x/meta.yaml": "source_id: ../..\nsource_type: DATASET\ntags: {}\n"})
        assert told(store.look().losses) == ["input ../..: the experiment holds no such dataset"]

    def test_the_origin_of_records_tells_stores_apart_and_stays(self, store, new_store):
        store.put("models/net/meta.yaml", "name: net\n")
        other = new_store("other")
        other.experiment("1", "first", artifact_location="/another/place")
        other.put("models/net/meta.yaml", "name: net\n")
        (before,), (elsewhere,) = store.open().refs(), other.open().refs()
        store.put("models/net/version-1/meta.yaml", "version: 1\n")
        (after,) = store.open().refs()
        assert before.origin == after.origin != elsewhere.origin
        assert before.stamp != after.stamp


class TestPlaces:
    def test_the_folder_above_mlruns_is_as_good(self, store):
        store.run()
        store.put("../code/main.py", "x")
        assert store.open().root == str(store.root)
        store.root = store.root.parent
        assert list(store.look().runs) == [RUN]

    @pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "{}/"])
    def test_a_folder_is_named_as_mlflow_names_it(self, store, form):
        store.run()
        store.root = Path(store.root.parent / "a b")
        (store.root.parent / "mlruns").rename(store.root)
        store.root = form.format(store.root)
        assert list(type(store)(store.root).look().runs) == [RUN]

    def test_a_place_that_is_not_there_is_said(self, new_store):
        with pytest.raises(NotFound, match="does not exist"):
            new_store("nowhere").open()

    def test_a_folder_without_experiments_is_said(self, new_store):
        store = new_store("empty")
        store.put("sub/file.txt", "x")
        with pytest.raises(NotFound, match="holds no experiment"):
            store.open()

    def test_a_database_is_said_with_the_address_to_use(self, new_store, tmp_path):
        store = new_store("project")
        database = store.put("mlflow.db", b"SQLite format 3\0rest")
        with pytest.raises(NotFound) as raised:
            store.open()
        assert raised.value.hint == f"There is a database in it: mlflow:sqlite:///{database}"
        store.root = database
        with pytest.raises(NotFound) as raised:
            store.open()
        assert raised.value.hint == f"Read it as mlflow:sqlite:///{database}"

    def test_an_experiments_own_folder_is_said_with_its_store(self, store):
        store.run()
        store.root = store.root / "1"
        with pytest.raises(NotFound) as raised:
            store.open()
        assert str(store.root.parent) in raised.value.hint

    def test_every_store_under_a_folder_is_found(self, new_store, tmp_path):
        for name in ("a/mlruns", "b/deep/mlruns", "node_modules/x/mlruns", ".git/mlruns"):
            store = new_store(name)
            store.experiment()
            store.run(files={"artifacts/inner/mlruns/3/meta.yaml": "experiment_id: '3'\n"})
        (tmp_path / "link").symlink_to(tmp_path / "a")
        assert stores_under(tmp_path) == [tmp_path / "a/mlruns", tmp_path / "b/deep/mlruns"]

    def test_every_backend_database_under_a_folder_is_found(self, tmp_path):
        import sqlite3

        for name, tables in (("a/mlflow.db", ("alembic_version", "experiments")), ("b/other.db", ("users",))):
            (tmp_path / name).parent.mkdir()
            with sqlite3.connect(tmp_path / name) as database:
                for table in tables:
                    database.execute(f"CREATE TABLE {table} (x)")
        (tmp_path / "torn.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 200)
        assert databases_under(tmp_path) == [tmp_path / "a/mlflow.db"]
