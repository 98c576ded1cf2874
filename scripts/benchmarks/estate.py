"""A database as a team's server has it: registered models, logged models, traces, and the runs they refer to.

Raw SQL into the current schema, the same rows each time; the columns are filled as MLflow 3.17 fills them.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

START = 1_760_000_000_000
STEPS, KEYS = 10, 4  # of each run's metrics
QUESTIONS = (
    "How do I get a refund?",
    "Which plan has single sign-on?",
    "Why was I billed twice?",
    "Où est ma facture ?",
)
WORDS = tuple(
    f"{first} {second}"
    for first in ("the invoice", "your annual plan", "a refund", "the card", "that period", "the mail", "support")
    for second in ("shows", "was billed", "goes back", "is charged", "has changed", "tells when", "within five days")
)
STEP_NAMES = ("plan", "retrieve", "rerank", "call_tool", "parse", "summarise", "guard", "answer", "cite")


@dataclass(frozen=True)
class Estate:
    """How much there is. `traces` of `spans` each; `reading`: runs that read models, and not only make them."""

    models: int = 50
    versions: int = 20
    logged: int = 1000
    traces: int = 10_000
    spans: int = 10
    runs: int = 200
    experiments: int = 5
    reading: bool = True

    def __str__(self) -> str:
        traces = f", {self.traces:,} traces of {self.spans} spans" if self.traces else ""
        models = f"{self.models} models x {self.versions} versions, {self.logged:,} logged models"
        return f"{models}, {self.runs:,} runs{traces}"

    @property
    def objects(self) -> int:
        """Whatever has a name or an id of its own."""
        return self.models * (1 + self.versions) + self.logged + self.traces + self.runs

    def part(self, of: float) -> Estate:
        """So many times less of everything; models keep their versions."""
        counts = {name: max(2, round(getattr(self, name) / of)) for name in ("models", "logged", "runs")}
        return replace(self, **counts, traces=round(self.traces / of))


def make(folder: Path, estate: Estate, empty: Path) -> Path:
    """The database, filled from an empty one, and in `mlartifacts` the files of a default `mlflow server`."""
    folder.mkdir(parents=True)
    file = Path(shutil.copy(empty, folder / "mlflow.db"))
    store = sqlite3.connect(file)
    store.execute("pragma synchronous = off")
    with store:
        for table, rows in _tables(estate):
            _insert(store, table, rows)
        _latest(store)
    store.close()
    for number in range(estate.logged):
        _files(folder / "mlartifacts", estate, number)
    return file


def tables(file: Path) -> dict[str, int]:
    """How many rows each table has that has any; tags that mlmigrate sets beside what it carries do not count."""
    store = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    names = [name for (name,) in store.execute("select name from sqlite_master where type = 'table' order by name")]
    counts = {name: _count(store, name) for name in names}
    store.close()
    return {name: count for name, count in counts.items() if count}


def _count(store: sqlite3.Connection, table: str) -> int:
    keys = {row[1] for row in store.execute(f'pragma table_info("{table}")')} & {"key", "tag_key"}
    where = "".join(f" where {key} not like 'mlmigrate.%'" for key in keys)
    return int(store.execute(f'select count(*) from "{table}"{where}').fetchone()[0])


def run_id(number: int) -> str:
    return _hex("run", number)


def model_id(number: int) -> str:
    return f"m-{_hex('model', number)}"


def trace_id(number: int) -> str:
    return f"tr-{_hex('trace', number)}"


def _hex(what: str, number: int, bits: int = 128) -> str:
    return f"{random.Random(f'{what} {number}').getrandbits(bits):0{bits // 4}x}"


def _tables(estate: Estate) -> Iterator[tuple[str, Iterator[Mapping[str, object]]]]:
    yield "experiments", _experiments(estate)
    yield "datasets", _datasets(estate)
    yield "runs", _runs(estate)
    yield "params", _params(estate)
    yield "tags", _tags(estate)
    yield "metrics", _metrics(estate)
    yield "inputs", _inputs(estate)
    yield "logged_models", _logged(estate)
    yield "logged_model_params", _logged_params(estate)
    yield "logged_model_tags", _logged_tags(estate)
    yield "logged_model_metrics", _logged_metrics(estate)
    yield "registered_models", _models(estate)
    yield "registered_model_tags", _model_tags(estate)
    yield "model_versions", _versions(estate)
    yield "model_version_tags", _version_tags(estate)
    yield "registered_model_aliases", _aliases(estate)
    yield "trace_info", _traces(estate)
    yield "trace_tags", _trace_tags(estate)
    yield "trace_request_metadata", _trace_metadata(estate)
    yield "spans", _spans(estate)
    yield "assessments", _assessments(estate)


def _insert(store: sqlite3.Connection, table: str, rows: Iterator[Mapping[str, object]]) -> None:
    first = next(rows, None)
    if first is None:
        return
    names, marks = ", ".join(first), ", ".join(f":{name}" for name in first)
    sql = f"insert into {table} ({names}) values ({marks})"
    store.execute(sql, first)
    store.executemany(sql, rows)


def _latest(store: sqlite3.Connection) -> None:
    """As MLflow does: the highest step, then time, then value."""
    store.execute(
        "insert into latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
        "select key, value, timestamp, step, is_nan, run_uuid from (select *, row_number() over (partition by "
        "run_uuid, key order by step desc, timestamp desc, value desc) as place from metrics) where place = 1"
    )


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def _experiments(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(1, estate.experiments + 1):
        yield {
            "experiment_id": number,
            "name": f"support/assistant {number}",
            "artifact_location": f"mlflow-artifacts:/{number}",
            "lifecycle_stage": "active",
            "creation_time": START,
            "last_update_time": START,
        }


def _experiment(estate: Estate, number: int) -> int:
    return 1 + number % estate.experiments


def _dataset(experiment: int) -> str:
    return _hex("dataset", experiment)


def _datasets(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(1, estate.experiments + 1):
        yield {
            "dataset_uuid": _dataset(number),
            "experiment_id": number,
            "name": "tickets",
            "digest": f"{number:08x}",
            "dataset_source_type": "http",
            "dataset_source": json.dumps({"url": f"https://data.example/tickets-{number}.parquet"}),
            "dataset_schema": json.dumps({"mlflow_colspec": [{"type": "string", "name": "question"}]}),
            "dataset_profile": json.dumps({"num_rows": 1000 * number}),
        }


def _runs(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.runs):
        start, experiment = START + number * 60_000, _experiment(estate, number)
        yield {
            "run_uuid": run_id(number),
            "name": f"train {number}",
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "alice",
            "status": "FINISHED",
            "start_time": start,
            "end_time": start + 50_000,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/{experiment}/{run_id(number)}/artifacts",
            "experiment_id": experiment,
        }


def _params(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.runs):
        for n in range(10):
            yield {"key": f"param_{n}", "value": str(number * n), "run_uuid": run_id(number)}


def _tags(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.runs):
        tags = {
            "mlflow.runName": f"train {number}",
            "mlflow.user": "alice",
            "mlflow.source.name": "train.py",
            "mlflow.source.type": "LOCAL",
            "team": "support",
        }
        yield from ({"key": key, "value": value, "run_uuid": run_id(number)} for key, value in tags.items())


def _maker(estate: Estate, number: int) -> int:
    """The run that made a logged model."""
    return number % estate.runs


def _points(run: int) -> Iterator[tuple[str, int, int, float]]:
    chance = random.Random(f"points {run}").random
    for step in range(STEPS):
        yield from ((f"metric_{key}", step, START + run * 60_000 + step * 1000, chance()) for key in range(KEYS))


def _metrics(estate: Estate) -> Iterator[Mapping[str, object]]:
    for run in range(estate.runs):
        for key, step, at, value in _points(run):
            yield {"key": key, "value": value, "timestamp": at, "run_uuid": run_id(run), "step": step, "is_nan": 0}


def _inputs(estate: Estate) -> Iterator[Mapping[str, object]]:
    for run in range(estate.runs):
        yield _input(f"{run} reads", "DATASET", _dataset(_experiment(estate, run)), "RUN", run_id(run))
    for number in range(estate.logged):
        made = run_id(_maker(estate, number))
        yield _input(f"{number} made", "RUN_OUTPUT", made, "MODEL_OUTPUT", model_id(number), number // estate.runs)
        if estate.reading and number % 10 == 0:
            reader = run_id((_maker(estate, number) + estate.experiments) % estate.runs)
            yield _input(f"{number} read", "RUN_INPUT", reader, "MODEL_INPUT", model_id(number))


def _input(seed: str, source: str, source_id: str, destination: str, destination_id: str, step: int = 0) -> dict:
    return {
        "input_uuid": _hex(seed, 0),
        "source_type": source,
        "source_id": source_id,
        "destination_type": destination,
        "destination_id": destination_id,
        "step": step,
    }


def _home(estate: Estate, number: int) -> int:
    """The experiment of a logged model: that of the run that made it."""
    return _experiment(estate, _maker(estate, number))


def _place(estate: Estate, number: int) -> str:
    return f"mlflow-artifacts:/{_home(estate, number)}/models/{model_id(number)}/artifacts"


def _logged(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.logged):
        made = START + number * 30_000
        yield {
            "model_id": model_id(number),
            "experiment_id": _home(estate, number),
            "name": f"classifier-{number % 7}",
            "artifact_location": _place(estate, number),
            "creation_timestamp_ms": made,
            "last_updated_timestamp_ms": made + 900,
            "status": 2,
            "lifecycle_stage": "active",
            "model_type": ("", "classifier", "agent")[number % 3],
            "source_run_id": run_id(_maker(estate, number)),
        }


def _logged_params(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.logged):
        key = {"model_id": model_id(number), "experiment_id": _home(estate, number)}
        yield from ({**key, "param_key": f"layer_{n}", "param_value": str(number * n)} for n in range(8))


def _logged_tags(estate: Estate) -> Iterator[Mapping[str, object]]:
    registered: dict[int, list[dict[str, object]]] = {}
    for model, version in _registered(estate):
        registered.setdefault(_behind(estate, model, version), []).append({"name": _model(model), "version": version})
    for number in range(estate.logged):
        key = {"model_id": model_id(number), "experiment_id": _home(estate, number)}
        tags = {"mlflow.user": "alice", "mlflow.source.name": "train.py", "mlflow.source.type": "LOCAL"}
        if number in registered:
            tags["mlflow.modelVersions"] = json.dumps(registered[number])
        yield from ({**key, "tag_key": name, "tag_value": value} for name, value in tags.items())


def _logged_metrics(estate: Estate) -> Iterator[Mapping[str, object]]:
    """The points of the run at one step, as measured of the model on the experiment's dataset."""
    for number in range(estate.logged):
        run, home = _maker(estate, number), _home(estate, number)
        step_of = number // estate.runs % STEPS
        for key, step, at, value in _points(run):
            if step == step_of:
                yield {
                    "model_id": model_id(number),
                    "metric_name": key,
                    "metric_timestamp_ms": at,
                    "metric_step": step,
                    "metric_value": value,
                    "experiment_id": home,
                    "run_id": run_id(run),
                    "dataset_uuid": _dataset(home),
                    "dataset_name": "tickets",
                    "dataset_digest": f"{home:08x}",
                }


def _model(number: int) -> str:
    return f"support-model-{number}"


def _registered(estate: Estate) -> Iterator[tuple[int, int]]:
    return ((m, v) for m in range(estate.models) for v in range(1, estate.versions + 1))


def _behind(estate: Estate, model: int, version: int) -> int:
    """The logged model that a version is."""
    return (model * estate.versions + version - 1) % estate.logged


def _models(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.models):
        yield {
            "name": _model(number),
            "creation_time": START + number,
            "last_updated_time": START + number + 10_000,
            "description": _text(random.Random(number), 15),
        }


def _model_tags(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.models):
        yield from ({"key": f"tag_{n}", "value": str(number * n), "name": _model(number)} for n in range(5))


def _versions(estate: Estate) -> Iterator[Mapping[str, object]]:
    for model, version in _registered(estate):
        logged = _behind(estate, model, version)
        yield {
            "name": _model(model),
            "version": version,
            "creation_time": START + version * 1000,
            "last_updated_time": START + version * 1000 + 1,
            "description": f"Trained on week {version}",
            "current_stage": "Production" if version == estate.versions - 1 else "None",
            "source": f"models:/{model_id(logged)}",
            "run_id": run_id(_maker(estate, logged)),
            "status": "READY",
            "storage_location": _place(estate, logged),
        }


def _version_tags(estate: Estate) -> Iterator[Mapping[str, object]]:
    for model, version in _registered(estate):
        for n in range(3):
            yield {"key": f"tag_{n}", "value": f"{version * n}", "name": _model(model), "version": version}


def _aliases(estate: Estate) -> Iterator[Mapping[str, object]]:
    for model in range(estate.models):
        yield {"alias": "champion", "version": estate.versions, "name": _model(model)}
        if estate.versions > 1:
            yield {"alias": "challenger", "version": estate.versions - 1, "name": _model(model)}


def _question(number: int) -> str:
    return f"{QUESTIONS[number % len(QUESTIONS)]} (ticket {number})"


def _answer(number: int) -> str:
    return _text(random.Random(f"answer {number}"), 15)


def _tokens(number: int) -> dict[str, int]:
    sent, got = 200 + number % 50, 40 + number % 7
    return {"input_tokens": sent, "output_tokens": got, "total_tokens": sent + got}


def _at(number: int) -> int:
    return START + number * 500


def _traces(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.traces):
        yield {
            "request_id": trace_id(number),
            "experiment_id": _experiment(estate, number),
            "timestamp_ms": _at(number),
            "execution_time_ms": 10 * estate.spans,
            "status": "ERROR" if number % 25 == 0 else "OK",
            "client_request_id": f"req-{number}",
            "request_preview": _question(number),
            "response_preview": _answer(number)[:1000],
            "db_payload_generation": 1,
            "trace_name": "answer_ticket",
            "session_id": f"session-{number // 4}",
            **_tokens(number),
        }


def _trace_tags(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.traces):
        experiment, trace = _experiment(estate, number), trace_id(number)
        tags = {
            "mlflow.artifactLocation": f"mlflow-artifacts:/{experiment}/traces/{trace}/artifacts",
            "mlflow.trace.spansLocation": "TRACKING_STORE",
            "channel": ("mail", "chat")[number % 2],
        }
        yield from ({"key": key, "value": value, "request_id": trace} for key, value in tags.items())


def _trace_metadata(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.traces):
        size = 1100 * estate.spans
        metadata = {
            "mlflow.source.name": "assistant.py",
            "mlflow.source.type": "LOCAL",
            "mlflow.sourceRun": run_id(number % estate.runs),
            "mlflow.modelId": model_id(number % estate.logged),
            "mlflow.trace.infoFinalized": "true",
            "mlflow.trace.sizeBytes": str(size),
            "mlflow.trace.sizeStats": json.dumps({"total_size_bytes": size, "num_spans": estate.spans}),
            "mlflow.trace.tokenUsage": json.dumps(_tokens(number)),
            "mlflow.trace.session": f"session-{number // 4}",
            "mlflow.trace.user": f"customer-{number % 500}",
            "mlflow.traceInputs": json.dumps({"question": _question(number)}),
            "mlflow.traceOutputs": json.dumps({"answer": _answer(number)[:200]}),
            "mlflow.trace_schema.version": "3",
        }
        yield from ({"key": key, "value": value, "request_id": trace_id(number)} for key, value in metadata.items())


def _spans(estate: Estate) -> Iterator[Mapping[str, object]]:
    for number in range(estate.traces):
        yield from (_span(estate, number, n) for n in range(estate.spans))


def _span(estate: Estate, number: int, n: int) -> Mapping[str, object]:
    """The first is the root; the others are its children, of some 1 KB each."""
    chat = n == estate.spans - 1
    name, kind = ("answer_ticket", "AGENT") if n == 0 else (STEP_NAMES[n % 9], "CHAT_MODEL" if chat else "TOOL")
    start = (_at(number) + 10 * n) * 1_000_000
    span, parent = _hex(f"span {number}", n, 64), _hex(f"span {number}", 0, 64) if n else None
    failed = number % 25 == 0 and n == 0
    content = {
        "trace_id": _base64(trace_id(number).removeprefix("tr-")),
        "span_id": _base64(span),
        "parent_span_id": None if parent is None else _base64(parent),
        "name": name,
        "start_time_unix_nano": start,
        "end_time_unix_nano": start + 9_000_000,
        "events": [],
        "status": {"code": "STATUS_CODE_ERROR" if failed else "STATUS_CODE_OK", "message": ""},
        "attributes": {key: json.dumps(value) for key, value in _attributes(number, n, kind, chat).items()},
        "links": [],
    }
    return {
        "trace_id": trace_id(number),
        "experiment_id": _experiment(estate, number),
        "span_id": span,
        "parent_span_id": parent,
        "name": name,
        "type": kind,
        "status": "ERROR" if failed else "OK",
        "start_time_unix_nano": start,
        "end_time_unix_nano": start + 9_000_000,
        "content": json.dumps(content),
        "model_name": "small-chat" if chat else None,
        "model_provider": "example" if chat else None,
    }


def _attributes(number: int, n: int, kind: str, chat: bool) -> dict[str, object]:
    asked = {"question": _question(number), "context": _text(random.Random(f"span {number} {n}"), 24)}
    attributes: dict[str, object] = {
        "mlflow.traceRequestId": trace_id(number),
        "mlflow.spanType": kind,
        "mlflow.spanFunctionName": STEP_NAMES[n % 9],
        "mlflow.spanInputs": asked,
        "mlflow.spanOutputs": {"text": _answer(number)[:200], "score": number % 10 / 10},
    }
    if chat:
        attributes |= {"mlflow.chat.tokenUsage": _tokens(number), "mlflow.llm.model": "small-chat"}
    return attributes


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


def _assessments(estate: Estate) -> Iterator[Mapping[str, object]]:
    """Every fifth trace was judged, and every tenth has an answer that was expected."""
    for number in range(0, estate.traces, 5):
        yield _assessment(estate, number, "feedback", "helpful", number % 3 > 0)
        if number % 10 == 0:
            yield _assessment(estate, number, "expectation", "expected_answer", _answer(number + 1))


def _assessment(estate: Estate, number: int, kind: str, name: str, value: object) -> Mapping[str, object]:
    feedback = kind == "feedback"
    return {
        "assessment_id": f"a-{_hex(kind, number)}",
        "trace_id": trace_id(number),
        "name": name,
        "assessment_type": kind,
        "value": json.dumps(value),
        "created_timestamp": _at(number) + 1000,
        "last_updated_timestamp": _at(number) + 1000,
        "source_type": "LLM_JUDGE" if feedback else "HUMAN",
        "source_id": "judge" if feedback else "bob",
        "rationale": _text(random.Random(number), 8) if feedback else None,
        "valid": 1,
        "experiment_id": _experiment(estate, number),
        "trace_timestamp_ms": _at(number),
        "aggregate_value": float(bool(value)) if feedback else None,
        "is_numeric_value": 0,
    }


def _files(store: Path, estate: Estate, number: int) -> None:
    """A logged model's files: an MLmodel that names its run and itself, and something small to load."""
    folder = store.joinpath(*_place(estate, number).removeprefix("mlflow-artifacts:/").split("/"))
    folder.mkdir(parents=True)
    lines = [
        f"artifact_path: {_place(estate, number)}",
        "flavors:",
        "  python_function:",
        "    loader_module: mlflow.sklearn",
        "    model_path: model.pkl",
        "mlflow_version: 3.17.2",
        f"model_id: {model_id(number)}",
        f"model_uuid: {model_id(number)}",
        f"run_id: {run_id(_maker(estate, number))}",
    ]
    (folder / "MLmodel").write_text("\n".join(lines) + "\n")
    (folder / "model.pkl").write_bytes(random.Random(number).randbytes(2048))
