"""What a store holds beside its runs becomes the rows that MLflow's own database would have, and the rest is told."""

import json

import pytest

from mlmigrate.adapters.base import Limits
from mlmigrate.fit import fit_points

RUN = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
MODEL = "m-" + "a" * 32
TRACE = "tr-" + "b" * 32
NO_COLUMN = "its source is another, and no table of MLflow's has a column for it"


def rows(records):
    """The rows of all records, by table."""
    found = {}
    for record in records:
        for table, some in json.loads(record.body).items():
            found.setdefault(table, []).extend(some)
    return found


def told(losses, text=""):
    return [f"{loss.what}: {loss.because}" for loss in losses if text in f"{loss.what}: {loss.because}"]


def column(found, table, name):
    return [row[name] for row in found.get(table, [])]


class TestTheRegistry:
    def model(self, store, name="net", **more):
        fields = {"name": name, "creation_timestamp": 5, "last_updated_timestamp": 6, "description": "what it does"}
        store.put(f"models/{name}/meta.yaml", "".join(f"{key}: {value}\n" for key, value in (fields | more).items()))

    def version(self, store, number=1, model="net", **more):
        fields = {"name": model, "version": number, "creation_timestamp": 7, "last_updated_timestamp": 8} | {
            "current_stage": "None",
            "source": "s3://b/x",
            "status": "READY",
        }
        text = "".join(f"{key}: {value}\n" for key, value in (fields | more).items())
        store.put(f"models/{model}/version-{number}/meta.yaml", text)

    def test_a_model_is_one_record_with_its_versions(self, store):
        self.model(store)
        self.version(store, 2, run_id=RUN, user_id="ada", run_link="http://h", storage_location="s3://b/y")
        store.put("models/net/tags/a/b", "x\n")
        store.put("models/net/aliases/best", "2")
        store.put("models/net/version-2/tags/t", "y")
        seen = store.look()
        assert [(record.kind, record.id, record.owner) for record in seen.records] == [
            ("mlflow.registered_model", "net", "")
        ]
        assert rows(seen.records) == {
            "registered_models": [
                {"name": "net", "creation_time": 5, "last_updated_time": 6, "description": "what it does"}
            ],
            "registered_model_tags": [{"name": "net", "key": "a/b", "value": "x\n"}],
            "registered_model_aliases": [{"name": "net", "alias": "best", "version": 2}],
            "model_versions": [
                {
                    "name": "net",
                    "version": 2,
                    "creation_time": 7,
                    "last_updated_time": 8,
                    "description": None,
                    "user_id": "ada",
                    "current_stage": "None",
                    "source": "s3://b/x",
                    "run_id": RUN,
                    "run_link": "http://h",
                    "status": "READY",
                    "status_message": None,
                    "storage_location": "s3://b/y",
                }
            ],
            "model_version_tags": [{"name": "net", "version": 2, "key": "t", "value": "y"}],
        }
        assert (seen.losses, seen.oddities) == ([], [])
        assert [(ref.id, ref.kind, ref.experiment) for ref in seen.refs] == [("@registry", "records", "")]

    def test_a_prompt_is_told_by_its_tag(self, store):
        self.model(store)
        store.put("models/net/tags/mlflow.prompt.is_prompt", "true")
        assert [record.kind for record in store.look().records] == ["mlflow.prompt"]

    @pytest.mark.parametrize(
        ("given", "status"),
        [(1, "PENDING_REGISTRATION"), (2, "FAILED_REGISTRATION"), (3, "READY"), ("READY", "READY"), ("null", "READY")],
    )
    def test_a_status_is_a_number_or_a_word(self, store, given, status):
        self.model(store)
        self.version(store, status=given)
        assert column(rows(store.look().records), "model_versions", "status") == [status]

    def test_a_deleted_version_keeps_its_number(self, store):
        self.model(store)
        self.version(store, 1, current_stage="Deleted_Internal")
        self.version(store, 3)
        found = rows(store.look().records)
        assert column(found, "model_versions", "version") == [1, 3]
        assert column(found, "model_versions", "current_stage") == ["Deleted_Internal", "None"]

    @pytest.mark.parametrize("content", [None, b"", b"\0\0", b"a: ["])
    def test_a_version_that_cannot_be_read_is_a_loss_and_the_others_arrive(self, store, content):
        self.model(store)
        self.version(store, 1)
        store.put("models/net/version-2/tags/t", "y")
        if content is not None:
            store.put("models/net/version-2/meta.yaml", content)
        store.put("models/net/aliases/second", "2")
        store.put("models/net/aliases/first", "1")
        seen = store.look()
        found = rows(seen.records)
        assert column(found, "model_versions", "version") == [1]
        assert column(found, "registered_model_aliases", "alias") == ["first"]
        assert len(told(seen.losses, "version 2 of registered model 'net': its meta.yaml is ")) == 1
        assert len(told(seen.losses, "alias 'second': names version '2', which is not there")) == 1

    def test_the_versions_of_a_model_without_meta_arrive(self, store):
        self.version(store)
        seen = store.look()
        assert [record.id for record in seen.records] == ["net"]
        assert column(rows(seen.records), "model_versions", "version") == [1]
        assert told(seen.losses) == ["registered model 'net': its meta.yaml is missing"]

    def test_what_no_row_holds_is_told(self, store):
        self.model(store, deployment_job_id="job-1", workspace="default", colour="blue", aliases="{}")
        self.version(store, model_id=MODEL, source=f"models:/{OTHER}", shape="round")
        store.put("models/net/notes.txt", "x")
        store.put("models/net/.DS_Store", "x")
        store.put("models/net/version-x/meta.yaml", "version: x\n")
        store.put("models/stray.txt", "x")
        seen = store.look()
        assert sorted(told(seen.losses)) == sorted(
            [
                "registered model 'net', colour in meta.yaml: MLflow knows no such field",
                "registered model 'net', deployment_job_id 'job-1': no table of MLflow's has a column for it",
                "registered model 'net', notes.txt: left behind: MLflow keeps nothing of that name there",
                "version x of registered model 'net', its number: left behind: that is none",
                "version 1 of registered model 'net', shape in meta.yaml: MLflow knows no such field",
                f"version 1 of registered model 'net', model_id {MODEL!r}: {NO_COLUMN}",
                "models/stray.txt: left behind: belongs to nothing there",
            ]
        )
        assert told(seen.oddities, ".DS_Store") == ["registered model 'net', .DS_Store: left there by another program"]

    def test_two_folders_of_one_name_are_two_models(self, store):
        self.model(store)
        self.model(store, "copy")
        store.put("models/copy/meta.yaml", "name: net\n")
        seen = store.look()
        assert sorted(record.id for record in seen.records) == ["copy", "net"]
        assert len(told(seen.losses, "another model has it: kept under its folder's name")) == 1

    def test_links_are_never_followed(self, store, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text("hidden")
        self.model(store)
        self.version(store)
        (store.root / "models/net/tags").mkdir()
        (store.root / "models/net/tags/t").symlink_to(secret)
        (store.root / "models/net/version-1/tags").symlink_to(tmp_path)
        (store.root / "models/linked").symlink_to(tmp_path)
        seen = store.look()
        assert "hidden" not in str(seen.records)
        assert len(told(seen.losses, "a symbolic link, not followed")) == 3

    def test_text_that_is_no_utf8_becomes_escapes_and_is_told(self, store):
        self.model(store)
        store.put("models/net/tags/t", b"caf\xe9")
        seen = store.look()
        assert column(rows(seen.records), "registered_model_tags", "value") == ["caf\\xe9"]
        assert len(told(seen.losses, "is no UTF-8")) == 1

    def test_what_mlmigrate_wrote_is_left_out(self, store):
        self.model(store)
        self.version(store)
        store.put("models/net/tags/mlmigrate.origin", "x")
        store.put("models/net/version-1/tags/mlmigrate.stamp", "x")
        assert rows(store.look().records).keys() == {"registered_models", "model_versions"}


class TestLoggedModels:
    def model(self, store, id=MODEL, experiment="1", **more):
        fields = {
            "artifact_location": f"file:///elsewhere/{experiment}/models/{id}/artifacts",
            "creation_timestamp": 5,
            "experiment_id": f"'{experiment}'",
            "last_updated_timestamp": 6,
            "model_id": id,
            "model_type": "agent",
            "name": "net",
            "source_run_id": RUN,
            "status": 2,
            "status_message": "null",
        }
        text = "".join(f"{key}: {value}\n" for key, value in (fields | more).items())
        store.put(f"{experiment}/models/{id}/meta.yaml", text)
        return f"{experiment}/models/{id}"

    def test_a_model_is_one_record_with_what_belongs_to_it(self, store):
        folder = self.model(store)
        store.put(f"{folder}/params/depth", "3")
        store.put(f"{folder}/tags/a/b", "x\n")
        store.put(f"{folder}/metrics/acc", f"9 0.5 1 {RUN}\n10 nan 2 {RUN} my data 0a1b\n")
        store.put(f"{folder}/artifacts/data/model.bin", b"\0\xff")
        seen = store.look()
        assert [(record.kind, record.id, record.owner) for record in seen.records] == [
            ("mlflow.logged_model", MODEL, "1")
        ]
        same = {"model_id": MODEL, "experiment_id": 1}
        point = {"metric_name": "acc", "run_id": RUN, **same}
        assert rows(seen.records) == {
            "logged_models": [
                {
                    **same,
                    "name": "net",
                    "artifact_location": f"file:///elsewhere/1/models/{MODEL}/artifacts",
                    "creation_timestamp_ms": 5,
                    "last_updated_timestamp_ms": 6,
                    "status": 2,
                    "lifecycle_stage": "active",
                    "model_type": "agent",
                    "source_run_id": RUN,
                    "status_message": None,
                }
            ],
            "logged_model_params": [{**same, "param_key": "depth", "param_value": "3"}],
            "logged_model_tags": [{**same, "tag_key": "a/b", "tag_value": "x\n"}],
            "logged_model_metrics": [
                {
                    **point,
                    "metric_timestamp_ms": 9,
                    "metric_step": 1,
                    "metric_value": 0.5,
                    "dataset_name": None,
                    "dataset_digest": None,
                },
                {
                    **point,
                    "metric_timestamp_ms": 10,
                    "metric_step": 2,
                    "metric_value": {"$float": "NaN"},
                    "dataset_name": "my data",
                    "dataset_digest": "0a1b",
                },
            ],
        }
        assert seen.artifacts == {("@model/" + MODEL, "data/model.bin"): b"\0\xff"}
        assert (seen.losses, seen.oddities) == ([], [])
        assert [ref.id for ref in seen.refs] == ["@logged_models/1"]

    @pytest.mark.parametrize(
        ("given", "status"), [(1, 1), (2, 2), (3, 3), ("READY", 2), ("failed", 3), ("odd", 1), ("9", 1)]
    )
    def test_a_status_is_mlflows_number(self, store, given, status):
        self.model(store, status=given)
        seen = store.look()
        assert column(rows(seen.records), "logged_models", "status") == [status]
        assert len(told(seen.losses, "is none that MLflow knows")) == (given in ("odd", "9"))

    def test_a_deleted_model_is_carried_as_deleted(self, store):
        self.model(store, lifecycle_stage="deleted")
        assert column(rows(store.look().records), "logged_models", "lifecycle_stage") == ["deleted"]

    def test_links_of_runs_anywhere_in_the_store_are_rows_of_their_model(self, store):
        self.model(store)
        store.experiment("2", "second")
        store.run(files={f"outputs/{MODEL}/meta.yaml": f"destination_id: {MODEL}\nstep: 7\ntags: {{}}\n"})
        link = f"source_id: {MODEL}\nsource_type: MODEL\ntags: {{}}\n"
        store.run(OTHER, "2", files={"inputs/x/meta.yaml": link})
        seen = store.look()
        assert rows(seen.records)["inputs"] == [
            {
                "source_type": "RUN_OUTPUT",
                "source_id": RUN,
                "destination_type": "MODEL_OUTPUT",
                "destination_id": MODEL,
                "step": 7,
            },
            {
                "source_type": "RUN_INPUT",
                "source_id": OTHER,
                "destination_type": "MODEL_INPUT",
                "destination_id": MODEL,
                "step": 0,
            },
        ]
        assert [run.records for run in seen.runs.values()] == [(), ()]
        assert told(seen.losses, "put") == []

    def test_a_link_to_a_model_that_is_not_there_is_a_loss(self, store):
        store.run(
            files={
                "inputs/x/meta.yaml": "source_id: m-1\nsource_type: MODEL\ntags: {}\n",
                "outputs/m-2/meta.yaml": "destination_id: m-2\nstep: 3\n",
            }
        )
        assert told(store.look().losses) == [
            "input m-1: the store holds no such logged model",
            "output m-2: the store holds no such logged model",
        ]

    def test_tags_of_a_link_are_a_loss(self, store):
        self.model(store)
        store.run(files={f"outputs/{MODEL}/meta.yaml": f"destination_id: {MODEL}\nstep: 7\ntags:\n  a: b\n"})
        assert len(told(store.look().losses, f"tags of output {MODEL}")) == 1

    def test_a_new_link_changes_the_stamp_of_the_models(self, store):
        self.model(store)
        store.run()
        before = {ref.id: ref.stamp for ref in store.open().refs()}
        store.put(f"1/{RUN}/outputs/{MODEL}/meta.yaml", f"destination_id: {MODEL}\nstep: 0\n")
        after = {ref.id: ref.stamp for ref in store.open().refs()}
        assert after["@logged_models/1"] != before["@logged_models/1"]

    def test_bad_lines_are_losses_and_equal_points_one(self, store):
        folder = self.model(store)
        store.put(f"{folder}/metrics/acc", f"9 0.5 1 {RUN}\ntorn\n9 0.5 1 {RUN}\n9 0.75 1 {RUN}\n9 1 2\n")
        seen = store.look()
        assert column(rows(seen.records), "logged_model_metrics", "metric_value") == [0.5]
        assert [line.partition(": ")[0] for line in told(seen.losses, "metric")] == [
            f"logged model {MODEL}, metric 'acc', line 2",
            f"logged model {MODEL}, metric 'acc', line 5",
            f"logged model {MODEL}, metric 'acc'",
        ]

    def test_a_model_whose_meta_cannot_be_read_is_left_behind_with_its_files_and_told(self, store):
        store.put(f"1/models/{MODEL}/artifacts/w", "x")
        self.model(store, OTHER)
        seen = store.look()
        assert [record.id for record in seen.records] == [OTHER]
        assert seen.artifacts == {}
        assert len(told(seen.losses, f"logged model {MODEL}")) == 2

    def test_files_that_are_not_here_are_told_and_files_that_never_were_are_not(self, store):
        here = store.root / "1" / "models" / MODEL / "artifacts"
        self.model(store, artifact_location=f"file://{here}")
        assert store.look().losses == []
        self.model(store)
        assert len(told(store.look().losses, "its files are not here")) == 1

    def test_what_no_row_holds_is_told(self, store):
        folder = self.model(store, colour="blue", metrics="[]")
        store.put(f"{folder}/notes.txt", "x")
        losses = told(store.look().losses)
        assert [line for line in losses if ", artifacts" not in line] == [
            f"logged model {MODEL}, colour in meta.yaml: MLflow knows no such field",
            f"logged model {MODEL}, notes.txt: left behind: MLflow keeps nothing of that name there",
        ]

    def test_models_of_an_experiment_there_and_in_the_trash_are_one_ref(self, store):
        store.experiment(".trash/1", "old")
        self.model(store)
        self.model(store, OTHER, ".trash/1")
        seen = store.look()
        assert [ref.id for ref in seen.refs] == ["@logged_models/1"]
        assert sorted(record.id for record in seen.records) == sorted([MODEL, OTHER])


class TestPointsThatNameADataset:
    def lost(self, store, **limits):
        """How many points lose their dataset in a target that keeps it with logged models alone."""
        source = store.open()
        refs = [ref for ref in source.refs() if ref.kind == "run"]
        with source.read(refs) as reading:
            fitting = fit_points(Limits(point_links=False, **limits), {})
            for batch in reading.points():
                fitted = fitting.fit(batch)
                assert all(fitted[name].null_count == len(fitted) for name in ("dataset_name", "model"))
        return [loss.because for loss in fitting.losses({})]

    def test_their_dataset_arrives_with_the_logged_model_that_says_the_same(self, store):
        store.put(f"1/models/{MODEL}/meta.yaml", f"model_id: {MODEL}\nname: net\n")
        store.put(
            f"1/models/{MODEL}/metrics/val/acc", f"9 0.5 1 {RUN} d 0a\n10 nan 2 {RUN} d 0a\n11 1 3 {OTHER} d 0a\n"
        )
        store.run(files={"metrics/val/acc": "9 0.5 1 d 0a\n10 nan 2 d 0a\n11 1 3 d 0a\n"})
        seen = store.look()
        assert [(point["step"], point["model"]) for point in seen.points] == [(1, MODEL), (2, MODEL), (3, None)]
        assert self.lost(store) == ["1 points lose their link to a dataset"]

    def test_it_is_lost_where_no_logged_model_can_be_held(self, store):
        store.put(f"1/models/{MODEL}/meta.yaml", f"model_id: {MODEL}\nname: net\n")
        store.put(f"1/models/{MODEL}/metrics/acc", f"9 0.5 1 {RUN} d 0a\n")
        store.run(files={"metrics/acc": "9 0.5 1 d 0a\n"})
        assert self.lost(store) == []
        assert self.lost(store, records=()) == [
            "1 points lose their link to a dataset",
            "1 points lose their link to a model",
        ]

    def test_it_is_lost_where_no_logged_model_says_so(self, store):
        store.run(files={"metrics/acc": "9 0.5 1 d 0a\n"})
        assert self.lost(store) == ["1 points lose their link to a dataset"]


OLD = "request_id: {id}\nexperiment_id: '1'\ntimestamp_ms: 1700000000123\nexecution_time_ms: 87\nstatus: ERROR\n"
NEW = """client_request_id: cli-1
execution_duration_ms: 50
request_preview: '{{"x": 3}}'
request_time: '2023-11-14T22:13:20.123Z'
response_preview: '[3]'
state: OK
trace_id: {id}
trace_location:
  mlflow_experiment:
    experiment_id: '1'
  type: MLFLOW_EXPERIMENT
"""
ASSESSMENT = """assessment_id: a-1
assessment_name: good
create_time: '2023-11-14T22:13:20.5Z'
last_update_time: '2023-11-14T22:13:21Z'
{value}
source:
  source_id: ada
  source_type: HUMAN
trace_id: tr-1
"""


class TestTraces:
    def trace(self, store, text=NEW, id=TRACE):
        store.put(f"1/traces/{id}/trace_info.yaml", text.format(id=id))
        return f"1/traces/{id}"

    def test_a_trace_of_mlflow_2_is_read(self, store):
        folder = self.trace(store, OLD)
        store.put(f"{folder}/tags/mlflow.traceName", "f")
        store.put(f"{folder}/request_metadata/k", "v\n")
        store.put(f"{folder}/artifacts/traces.json", "{}")
        seen = store.look()
        assert [(record.kind, record.id, record.owner) for record in seen.records] == [("mlflow.trace", TRACE, "1")]
        assert rows(seen.records) == {
            "trace_info": [
                {
                    "request_id": TRACE,
                    "experiment_id": 1,
                    "timestamp_ms": 1700000000123,
                    "execution_time_ms": 87,
                    "status": "ERROR",
                }
            ],
            "trace_tags": [{"request_id": TRACE, "key": "mlflow.traceName", "value": "f"}],
            "trace_request_metadata": [{"request_id": TRACE, "key": "k", "value": "v\n"}],
        }
        assert seen.artifacts == {("@trace/" + TRACE, "traces.json"): b"{}"}
        assert (seen.losses, seen.oddities) == ([], [])
        assert [ref.id for ref in seen.refs] == ["@traces/1"]

    def test_a_trace_of_mlflow_3_is_read(self, store):
        store.put(f"{self.trace(store)}/artifacts/traces.json", "{}")
        seen = store.look()
        assert rows(seen.records)["trace_info"] == [
            {
                "request_id": TRACE,
                "experiment_id": 1,
                "timestamp_ms": 1700000000123,
                "execution_time_ms": 50,
                "status": "OK",
                "client_request_id": "cli-1",
                "request_preview": '{"x": 3}',
                "response_preview": "[3]",
            }
        ]
        assert (seen.losses, seen.oddities) == ([], [])

    @pytest.mark.parametrize(
        ("duration", "expected"),
        [("execution_duration: 1.5s", 1500), ("execution_duration: '0.001s'", 1), ("execution_time_ms: null", None)],
    )
    def test_a_duration_is_ms_or_seconds_or_unknown(self, store, duration, expected):
        self.trace(store, f"trace_id: {{id}}\nrequest_time: '2023-11-14T22:13:20Z'\nstate: OK\n{duration}\n")
        assert column(rows(store.look().records), "trace_info", "execution_time_ms") == [expected]

    @pytest.mark.parametrize(
        ("value", "kind", "held", "error"),
        [
            ("feedback:\n  value: true", "feedback", "true", None),
            ("feedback:\n  value: 5.0", "feedback", "5.0", None),
            ("feedback:\n  value: null\n  error:\n    error_code: E1", "feedback", "null", '{"error_code": "E1"}'),
            ("expectation:\n  value: ü", "expectation", '"\\u00fc"', None),
            (
                "expectation:\n  serialized_value:\n    serialization_format: JSON_FORMAT\n    value: '{\"a\": 1}'",
                "expectation",
                '{"a": 1}',
                None,
            ),
            ("issue:\n  issue_name: slow", "issue", '{"issue_name": "slow"}', None),
        ],
    )
    def test_an_assessment_is_a_row(self, store, value, kind, held, error):
        folder = self.trace(store)
        store.put(f"{folder}/assessments/a-1.yaml", ASSESSMENT.format(value=value))
        assert rows(store.look().records)["assessments"] == [
            {
                "assessment_id": "a-1",
                "trace_id": TRACE,
                "name": "good",
                "assessment_type": kind,
                "value": held,
                "error": error,
                "created_timestamp": 1700000000500,
                "last_updated_timestamp": 1700000001000,
                "source_type": "HUMAN",
                "source_id": "ada",
                "run_id": None,
                "span_id": None,
                "rationale": None,
                "overrides": None,
                "valid": True,
                "assessment_metadata": None,
            }
        ]

    def test_an_overridden_assessment_stays_invalid(self, store):
        folder = self.trace(store)
        text = ASSESSMENT.format(value="feedback:\n  value: true\nmetadata:\n  m: '1'\nvalid: false\noverrides: a-0")
        store.put(f"{folder}/assessments/a-1.yaml", text)
        (row,) = rows(store.look().records)["assessments"]
        assert (row["valid"], row["overrides"], row["assessment_metadata"]) == (False, "a-0", '{"m": "1"}')

    def test_what_no_row_holds_is_told_and_the_others_arrive(self, store):
        folder = self.trace(store)
        store.put(f"{folder}/artifacts/traces.json", "{}")
        store.put(f"{folder}/assessments/a-1.yaml", ASSESSMENT.format(value="mood: good"))
        store.put(f"{folder}/assessments/a-2.yaml", ASSESSMENT.format(value="feedback:\n  value: 1\nmood: good"))
        store.put(f"{folder}/assessments/a-3.yaml", "torn: [")
        store.put(f"{folder}/notes.txt", "x")
        store.put("1/traces/tr-2/trace_info.yaml", "trace_id: tr-2\n")
        store.put("1/traces/tr-3/tags/t", "x")
        seen = store.look()
        assert [record.id for record in seen.records] == [TRACE]
        assert column(rows(seen.records), "assessments", "assessment_id") == ["a-2"]
        assert sorted(told(seen.losses)) == sorted(
            [
                f"trace {TRACE}, assessment a-1: it is none of feedback, expectation, issue",
                f"trace {TRACE}, assessment a-2, mood: MLflow knows no such field",
                f"trace {TRACE}, assessments/a-3.yaml: torn or no YAML",
                f"trace {TRACE}, notes.txt: left behind: MLflow keeps nothing of that name there",
                "trace tr-2: its trace_info.yaml says no time that can be read",
                "trace tr-3: its trace_info.yaml is missing",
                "trace tr-2, artifacts: its files are not here (no URI)",
                "trace tr-3, artifacts: its files are not here (no URI)",
            ]
        )

    def test_a_hostile_meta_stops_nothing(self, store):
        self.trace(store)
        store.put("1/traces/tr-2/trace_info.yaml", b"a: " + b"[" * 100_000)
        store.put("1/traces/tr-3/trace_info.yaml", b"x: &a [*a, *a]\n")
        store.put("1/traces/tr-4/trace_info.yaml", b"timestamp_ms: 99999999999999999999999\n")
        assert [record.id for record in store.look().records] == [TRACE]
