"""Traces arrive at a server with their ids, spans, assessments and links: compared column by column, by raw SQL."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import faults
import servers
from mlmigrate.adapters.mlflow.objects import tree_of
from mlmigrate.adapters.mlflow.rest import otlp, trace_bodies
from mlmigrate.adapters.mlflow.rest.write_traces import holdings
from mlmigrate.model import Artifact


def _load(file: Path):
    if file.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[file.stem])
    return sys.modules[file.stem]


lab = _load(Path(__file__).with_name("rest_trees.py"))
filled = _load(Path(__file__).parents[1] / "filled.py")
pytestmark = pytest.mark.slow

TABLES = {
    "trace_info": "request_id",
    "trace_tags": "request_id",
    "trace_request_metadata": "request_id",
    "spans": "trace_id",
    "assessments": "trace_id",
    "entity_associations": "source_id",
}
# what may differ, and why
EXCEPTIONS = {
    ("trace_info", "experiment_id"): "experiments have other ids",
    ("spans", "experiment_id"): "the same",
    ("assessments", "experiment_id"): "the same",
    ("trace_info", "db_payload_generation"): "counts writes",
    ("entity_associations", "association_id"): "random",
    ("entity_associations", "created_time"): "the server's clock",
    ("entity_associations", "destination_id"): "runs have other ids",
}
OWN_TAGS = ("mlflow.artifactLocation", "mlmigrate.stamp")
AWKWARD = {
    "text": 'größe 🎉 "quoted" \\ \n\t',
    "int": 2**62,
    "float": 1.0,
    "small": 1e-300,
    "nan": float("nan"),
    "null": None,
    "nested": [{"a": [1, 2.5, "x", None, True, {}, []]}],
    "empty": "",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A database filled by MLflow's own client, with spans that are hard to carry."""
    file = tmp_path_factory.mktemp("traces") / "mlflow.db"
    made = filled.fill(f"sqlite:///{file}", webhooks=False)
    with filled._tracking(f"sqlite:///{file}"):
        awkward(made.experiments[0])
    return file


def awkward(experiment: str) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource, Link, SpanEvent

    root = mlflow.start_span_no_context("größe", "TOOL", None, AWKWARD, experiment_id=experiment)
    root.add_event(SpanEvent("happened", attributes={"a": 1, "b": "t", "c": [1, 2], "d": 1.5, "e": True}))
    root.add_link(Link(f"tr-{'ab' * 16}", "cd" * 8, {"why": "x"}))
    child = mlflow.start_span_no_context("inner", parent_span=root)
    child.record_exception(ValueError("böse"))
    child.end(status="ERROR")
    root.end(outputs=AWKWARD)
    mlflow.flush_trace_async_logging()
    code = AssessmentSource("CODE", "judge")
    for value in (0.1, 3.0, True, "text", [1.5, "x"], None):
        mlflow.log_feedback(trace_id=root.trace_id, name=f"f {value}", value=value, source=code)
    mlflow.log_feedback(
        trace_id=root.trace_id, name="failed", error=ValueError("no"), source=code, span_id=child.span_id
    )
    mlflow.log_expectation(trace_id=root.trace_id, name="whole", value=7, source=code)


@pytest.fixture
def server(current, source):
    return lab.Lab(current.url, source)


def content(file: Path, ids, tables=TABLES) -> dict[str, list[str]]:
    """All rows of some traces, but for what may differ."""
    found = {}
    with lab.opened(file) as db:
        for table, key in tables.items():
            some = lab.rows(db, table, f"{key} in ({', '.join('?' * len(ids))})", ids)
            kept = [row for row in some if row.get("key") not in OWN_TAGS]
            slim = [{name: value for name, value in row.items() if (table, name) not in EXCEPTIONS} for row in kept]
            found[table] = sorted(json.dumps(row, sort_keys=True) for row in slim)
    return found


def ids_of(some) -> list[str]:
    return [record.id for record in some]


def test_every_column_of_every_trace_is_as_it_was(server, source, current):
    some = list(lab.records(source, "trace"))
    server.write(some)
    meant, found = content(source, ids_of(some)), content(current.database, ids_of(some))
    runs = server.known.ids["run"]
    for table in TABLES:
        there = [server.known.references.text(row) for row in meant[table]]
        assert found[table] == sorted(there), table
    assert server.losses == []
    with lab.opened(current.database) as db:
        links = lab.rows(db, "entity_associations", "source_id = ?", [some[0].id])
        assert {row["destination_id"] for row in links} <= set(runs.values())


def test_what_verify_is_told_of_a_trace_is_what_the_database_has(server, source, current):
    some = list(lab.records(source, "trace"))
    server.write(some)
    with lab.opened(current.database) as db:
        for record in some:
            (row,) = lab.rows(db, "trace_info", "request_id = ?", [record.id])
            (place,) = db.execute(
                "select artifact_location from experiments where experiment_id = ?", [row["experiment_id"]]
            )
            here = server.known.references.record(record)
            there = trace_bodies.as_there(tree_of(here), (3, 17), place[0])
            for table in ("trace_tags", "trace_request_metadata", "spans"):
                key = TABLES[table]
                found = [
                    one for one in lab.rows(db, table, f"{key} = ?", [record.id]) if one.get("key") != "mlmigrate.stamp"
                ]
                assert sorted(map(repr, map(_sorted, found))) == sorted(map(repr, map(_sorted, there[table])))


def _sorted(row: dict) -> dict:
    return dict(sorted(row.items()))


def test_a_second_copy_changes_nothing(server, source, current, proxy_of):
    some = list(lab.records(source, "trace"))
    server.write(some)
    before = dump(current.database, ids_of(some))
    proxy = proxy_of(current.url)
    server.write(some, url=proxy.url)
    assert dump(current.database, ids_of(some)) == before
    paths = {path for method, path in proxy.seen if method in ("POST", "PATCH")}
    assert paths <= {"/api/2.0/mlflow/experiments/search", "/api/3.0/mlflow/traces/batchGetInfos"}


def dump(file: Path, ids) -> dict[str, list]:
    with lab.opened(file) as db:
        return {
            table: lab.rows(db, table, f"{key} in ({', '.join('?' * len(ids))})", ids) for table, key in TABLES.items()
        }


def test_a_trace_that_changed_is_brought_up_to_date(server, source, current):
    some = list(lab.records(source, "trace"))
    server.write(some)
    (seen,) = (record for record in some if '"jä"' in record.body)
    changed = replace(seen, body=seen.body.replace('"jä"', '"nein"'))
    server.write([changed])
    with lab.opened(current.database) as db:
        (row,) = lab.rows(db, "trace_tags", "request_id = ? and key = 'seen'", [changed.id])
        assert row["value"] == "nein"
        valid = {
            row["assessment_id"]: row["valid"] for row in lab.rows(db, "assessments", "trace_id = ?", [changed.id])
        }
    assert valid == {row["assessment_id"]: row["valid"] for row in tree_of(changed)["assessments"]}


@pytest.mark.parametrize("kind", [faults.LOST, faults.ERROR_AFTER])
def test_lost_answers_make_no_doubles_and_miss_nothing(kind, current, proxy_of, tmp_path, monkeypatch):
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.01)
    file = tmp_path / "mlflow.db"
    filled.fill(f"sqlite:///{file}", webhooks=False)
    server = lab.Lab(current.url, file)
    seen = set()

    def once_each(number, method, path):
        first = (method, path) not in seen and method in ("POST", "PATCH", "DELETE")
        seen.add((method, path))
        return kind if first else None

    some = list(lab.records(file, "trace"))
    server.write(some, url=proxy_of(current.url, rule=once_each).url)
    meant, found = content(file, ids_of(some)), content(current.database, ids_of(some))
    for table in TABLES:
        assert found[table] == sorted(map(server.known.references.text, meant[table])), table


def test_a_trace_that_another_experiment_has_is_left_alone(server, source, current):
    some = list(lab.records(source, "trace"))
    server.write(some)
    before = dump(current.database, ids_of(some))
    elsewhere = lab.call(current.url, "2.0/mlflow/experiments/create", {"name": f"elsewhere {source.parent.name}"})
    for id_ in server.known.ids["experiment"]:
        server.known.ids["experiment"][id_] = elsewhere["experiment_id"]
    server.write(some)
    assert dump(current.database, ids_of(some)) == before
    assert {loss.because for loss in server.losses} == {
        "the server has a trace of this id in another experiment, and holds each id once"
    }


def test_mlflows_own_client_sees_the_same_trace(server, source, current):
    from mlflow import MlflowClient

    some = list(lab.records(source, "trace"))
    server.write(some)
    here, there = MlflowClient(f"sqlite:///{source}"), MlflowClient(current.url)
    for record in some:
        a, b = here.get_trace(record.id), there.get_trace(record.id)
        assert json.dumps([span.to_dict() for span in a.data.spans]) == json.dumps(
            [span.to_dict() for span in b.data.spans]
        )
        assert (a.info.request_time, a.info.execution_duration, a.info.state, a.info.request_preview) == (
            b.info.request_time,
            b.info.execution_duration,
            b.info.state,
            b.info.request_preview,
        )
        assert len(a.info.assessments) == len(b.info.assessments)


def old_trace(experiment: int):
    """A trace as MLflow 2 made them: no id that OpenTelemetry knows, spans in a file."""
    id_ = "0123456789abcdef0123456789abcdef"[::-1]
    tree = {
        "trace_info": [
            {
                "request_id": id_,
                "experiment_id": experiment,
                "timestamp_ms": 1000,
                "execution_time_ms": 5,
                "status": "OK",
            }
        ],
        "trace_tags": [{"request_id": id_, "key": "mlflow.traceName", "value": "old"}],
        "trace_request_metadata": [{"request_id": id_, "key": "mlflow.trace_schema.version", "value": "2"}],
    }
    span = {
        "name": "old",
        "context": {"span_id": "0x1234567890abcdef", "trace_id": "0x" + "12" * 16},
        "parent_id": None,
        "start_time": 1_000_000_000,
        "end_time": 1_005_000_000,
        "status_code": "OK",
        "status_message": "",
        "attributes": {"mlflow.traceRequestId": json.dumps(id_), "mlflow.spanInputs": '{"q": "wie?"}'},
        "events": [],
    }
    data = json.dumps({"spans": [span], "request": None, "response": None}).encode()
    return id_, tree, data


def test_spans_in_files_arrive_as_files(server, current, tmp_path):
    from mlmigrate.adapters.mlflow.objects import BY_NAME, record_of

    id_, tree, data = old_trace(1)
    file = tmp_path / "traces.json"
    file.write_bytes(data)
    artifact = Artifact(f"@trace/{id_}", "traces.json", lambda: file.open("rb"), len(data))
    for _ in range(2):
        server.write([record_of(BY_NAME["mlflow.trace"], tree)], [artifact])
    with filled._tracking(current.url) as client:
        trace = client.get_trace(id_)
    assert [(span.name, span.inputs) for span in trace.data.spans] == [("old", {"q": "wie?"})]
    (there,) = current.files.glob(f"*/traces/{id_}/artifacts/*")
    assert there.read_bytes() == data
    assert server.losses == []


READ = """
import json, mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
found = mlflow.MlflowClient().search_traces([sys.argv[2]])
print(json.dumps({t.info.tags.get("mlmigrate.origin", t.info.request_id): [
    getattr(t.info, "state", t.info.status).value, t.info.timestamp_ms, t.info.execution_time_ms,
    [[s.name, s.span_type, repr(s.inputs), repr(s.outputs), s.parent_id, s.start_time_ns, s.end_time_ns]
     for s in t.data.spans]
] for t in found}))
"""


def read_by(version: str, url: str, experiment: str) -> dict[str, list]:
    """The traces of an experiment as the client of that version reads them."""
    python = servers.environment(version) / "python"
    told = subprocess.run([python, "-c", READ, url, experiment], check=True, capture_output=True, text=True)
    return json.loads(told.stdout.splitlines()[-1])


def assert_read(found: dict[str, list], source: Path) -> None:
    """What a client read is what the current one reads at the source."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{source}")
    for id_, (status, start, duration, spans) in found.items():
        trace = client.get_trace(id_)
        info = trace.info
        assert [status, start, duration] == [info.state.value, info.request_time, info.execution_duration]
        meant = [
            [s.name, s.span_type, repr(s.inputs), repr(s.outputs), s.parent_id, s.start_time_ns, s.end_time_ns]
            for s in trace.data.spans
        ]
        assert sorted(spans) == sorted(meant)


def test_the_client_of_3_5_reads_what_was_written_for_it(server_of, source):
    there = server_of("3.5.1")
    server = lab.Lab(there.url, source)
    some = [record for record in lab.records(source, "trace") if record.owner == "1"]
    for _ in range(2):
        server.write(some)
    found = read_by("3.5.1", there.url, server.known.ids["experiment"]["1"])
    assert found.keys() == set(ids_of(some))
    assert_read(found, source)
    with lab.opened(there.database) as db:
        for record in some:
            (info,) = lab.rows(db, "trace_info", "request_id = ?", [record.id])
            root = tree_of(record)["trace_info"][0]
            for column in ("timestamp_ms", "execution_time_ms", "status", "request_preview", "response_preview"):
                assert info[column] == root[column], column
            rows = lab.rows(db, "assessments", "trace_id = ?", [record.id])
            wanted = [row for row in tree_of(record).get("assessments", ()) if row["name"] != "f None"]
            assert {row["assessment_id"]: row["valid"] for row in rows} == {
                row["assessment_id"]: row["valid"] for row in wanted
            }
    told = {(loss.what.partition(": ")[2], loss.because.rpartition(": ")[2]) for loss in server.losses}
    assert told == {
        ("assessment 'f None'", "Either `value` or `error` must be provided.")
    }  # this version takes no null


def test_the_client_of_2_22_reads_what_was_written_for_it(server_of, source):
    there = server_of("2.22.4")
    server = lab.Lab(there.url, source)
    some = [record for record in lab.records(source, "trace") if record.owner == "1"]
    for _ in range(2):
        server.write(some)
    found = read_by("2.22.4", there.url, server.known.ids["experiment"]["1"])
    assert found.keys() == set(ids_of(some))
    assert_read(found, source)
    assert any("keeps no assessments" in because for _, because in server.foreseen)


def test_versions_that_know_no_traces_say_so():
    assert [(one.how, one.because) for one in holdings((2, 9))] == [("lost", "MLflow 2.9 knows no traces")]


def test_spans_are_read_as_opentelemetry_reads_them(source):
    from mlflow.entities import Span
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    db = sqlite3.connect(source)
    contents = [row[0] for row in db.execute("select content from spans")]
    spans = [otlp.span_of(content) for content in contents]
    request = ExportTraceServiceRequest.FromString(otlp.request(spans))
    (scope,) = request.resource_spans[0].scope_spans
    again = [Span.from_otel_proto(span).to_dict() for span in scope.spans]
    assert [json.dumps(one, ensure_ascii=False) for one in again] == contents
    assert list(map(otlp.content_there, spans)) == contents


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "null", '{"trace_id": "x", "span_id": "y"}', '{"context": {}}', '{"trace_id": 7}', "[" * 10_000],
)
def test_what_is_no_span_is_none(content):
    assert otlp.span_of(content) is None


def test_an_attribute_that_is_no_json_is_kept_as_text():
    body = json.loads(json.dumps({"trace_id": "ab" * 16, "span_id": "cd" * 8, "name": "n", "start_time_unix_nano": 1}))
    span = otlp.span_of(json.dumps(body | {"attributes": {"k": "no json"}}))
    assert msgspec.json.decode(otlp.content_there(span))["attributes"]["k"] == '"no json"'


def test_attributes_that_a_server_of_3_5_kept_as_values_are_texts_again():
    attributes = {"mlflow.traceRequestId": "tr-" + "ab" * 16, "mlflow.spanInputs": {"n": 0}, "id": "1", "n": 1}
    body = {"trace_id": "ab" * 16, "span_id": "cd" * 8, "name": "n", "start_time_unix_nano": 1}
    span = otlp.span_of(json.dumps(body | {"attributes": attributes}))
    assert {key: json.loads(text) for key, text in span.attributes.items()} == attributes
