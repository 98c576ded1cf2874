"""A tracking place filled through MLflow's own client with one or two of everything that a server holds.

    made = fill("sqlite:////tmp/x/mlflow.db")     or fill("http://127.0.0.1:5000")

Names, values and times that a client may choose are the same each time; ids and other times are the
server's, and are in what comes back.  Files go where the place keeps them: of a database, in the
folder `mlartifacts` beside it.  It imports mlflow, which must be of version 3.17 or newer.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START = 1_700_000_000_000
MODELS = ("forest", "bäume/ü 模型")
PROMPTS = ("greeting",)
HISTORY = 3  # versions of the first registered model; the second of them is deleted, which leaves a gap
WEBHOOKS_ENV = {
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
}
MLMODEL = """artifact_path: model
flavors:
  python_function:
    loader_module: mlflow.sklearn
model_id: {model}
run_id: {run}
utc_time_created: '2023-11-14 22:13:20.000000'
"""


@dataclass
class Filled:
    """What was made: names and ids in the order of their making."""

    uri: str
    experiments: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    logged_models: list[str] = field(default_factory=list)
    registered_models: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    evaluation_datasets: list[str] = field(default_factory=list)
    scorers: list[str] = field(default_factory=list)
    webhooks: list[str] = field(default_factory=list)
    label_schemas: list[str] = field(default_factory=list)
    review_queues: list[str] = field(default_factory=list)
    issues: list[str] = field(default_factory=list)
    mcp_servers: list[str] = field(default_factory=list)


def fill(uri: str, *, suffix: str = "", webhooks: bool | None = None) -> Filled:
    """Fills the place. `suffix` ends the names of experiments, models and the rest, to fill one place twice.

    webhooks  only for servers that were started with WEBHOOKS_ENV; by default for databases
    """
    with _tracking(uri) as client:
        return _Filling(client, uri, suffix).all(not uri.startswith("http") if webhooks is None else webhooks)


class _Filling:
    def __init__(self, client, uri: str, suffix: str) -> None:
        self.client, self.suffix = client, suffix
        self.made = Filled(uri)

    def all(self, webhooks: bool) -> Filled:
        self.experiments()
        self.runs()
        self.logged_models()
        self.registered_models()
        self.prompts()
        self.traces()
        self.evaluation_datasets()
        self.scorers()
        self.mcp_servers()
        self.rest()
        if webhooks:
            self.webhooks()
        return self.made

    def experiments(self) -> None:
        for name in (f"kitchen{self.suffix}", f"garden/ü{self.suffix}"):
            place = _artifacts(self.made.uri, name)
            id_ = self.client.create_experiment(name, place, {"team": "küche", "note": "a\nb"})
            self.made.experiments.append(id_)

    def runs(self) -> None:
        """A parent with a child and a run elsewhere; each has points, and the first has a dataset."""
        kitchen, garden = self.made.experiments
        parent = self.run(kitchen, "bake", {"plain": "tag"})
        child = self.run(kitchen, "bake more", {"mlflow.parentRunId": parent})
        other = self.run(garden, "plant", {})
        for number, run in enumerate((parent, child, other)):
            self.client.log_param(run, "p", str(number))
            for step in range(3):
                self.client.log_metric(run, "loss", 1.0 / (step + 1), START + step, step)
        self.client.log_text(parent, "Teig", "notes/dough ü.txt")

    def run(self, experiment: str, name: str, tags: dict[str, str]) -> str:
        run = self.client.create_run(experiment, START + len(self.made.runs), tags, name).info.run_id
        self.made.runs.append(run)
        return run

    def logged_models(self) -> None:
        """One of a run, with files, params, tags, metrics on a dataset, read by a run; one failed; one deleted."""
        from mlflow.entities import (
            Dataset,
            DatasetInput,
            InputTag,
            LoggedModelInput,
            LoggedModelOutput,
        )

        (kitchen, _), (parent, child, _) = self.made.experiments, self.made.runs
        dataset = Dataset("flour", "d1gest", "local", '{"uri": "flour.csv"}', '{"columns": 2}', '{"rows": 3}')
        self.client.log_inputs(parent, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        model = self.model(kitchen, "dough", parent, {"depth": "3"}, {"kind": "süß"})
        self.files(model, parent)
        self.client.log_metric(parent, "acc", 0.5, START, 0, True, "flour", "d1gest", model)
        self.client.log_metric(parent, "acc", 0.75, START + 1, 1, True, None, None, model)
        self.client.log_outputs(parent, [LoggedModelOutput(model, 7)])
        self.client.log_inputs(child, models=[LoggedModelInput(model)])
        self.client.finalize_logged_model(model, "READY")
        failed = self.model(kitchen, "burnt", None, {}, {})
        self.client.finalize_logged_model(failed, "FAILED")
        pending = self.model(kitchen, "raising", child, {"p": "q"}, {})
        gone = self.model(kitchen, "eaten", parent, {}, {})
        self.client.delete_logged_model(gone)
        assert self.made.logged_models == [model, failed, pending, gone]

    def model(self, experiment: str, name: str, run: str | None, params: dict[str, str], tags: dict[str, str]) -> str:
        model = self.client.create_logged_model(experiment, name, run, tags, params, "agent").model_id
        self.made.logged_models.append(model)
        return model

    def files(self, model: str, run: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "MLmodel").write_text(MLMODEL.format(model=model, run=run))
            Path(folder, "data").mkdir()
            Path(folder, "data", "weights.bin").write_bytes(bytes(range(256)))
            self.client.log_model_artifacts(model, folder)

    def registered_models(self) -> None:
        run, model = self.made.runs[0], self.made.logged_models[0]
        name = MODELS[0] + self.suffix
        self.client.create_registered_model(name, {"owner": "jörg"}, "a forest\nof trees")
        for number in range(HISTORY):
            self.client.create_model_version(
                name, f"models:/{model}", run, {"n": str(number)}, None, f"version {number + 1}", model_id=model
            )
        self.client.delete_model_version(name, "2")
        self.client.set_registered_model_alias(name, "champion", "1")
        self.client.set_registered_model_alias(name, "latest-good", str(HISTORY))
        self.client.transition_model_version_stage(name, "1", "Production")
        self.client.create_registered_model(MODELS[1].replace("/", " ") + self.suffix)
        self.made.registered_models += [name, MODELS[1].replace("/", " ") + self.suffix]

    def prompts(self) -> None:
        name = PROMPTS[0] + self.suffix
        self.client.register_prompt(name, "Hello {{who}}", "first", {"lang": "de"})
        prompt = self.client.register_prompt(name, [{"role": "user", "content": "Grüß {{who}}"}], "second")
        self.client.set_prompt_alias(name, "live", 2)
        self.client.link_prompt_version_to_run(self.made.runs[0], prompt)
        for thread in threading.enumerate():  # MLflow tags prompts in threads that it waits for only at its end
            if thread.name.startswith("link_prompt"):
                thread.join()
        self.made.prompts.append(name)

    def traces(self) -> None:
        """Three: one of a run with spans, tags, assessments; one that failed; one in the other experiment."""
        import mlflow

        (kitchen, garden), run = self.made.experiments, self.made.runs[0]
        first = self.trace(kitchen, "ask", 0, {"mlflow.sourceRun": run, "mlflow.trace.session": "s-1"})
        second = self.trace(kitchen, "fail", 1, {}, "ERROR")
        third = self.trace(garden, "grow", 2, {"mlflow.modelId": self.made.logged_models[0]})
        mlflow.flush_trace_async_logging()
        self.made.traces += [first, second, third]
        self.client.set_trace_tag(first, "seen", "jä")
        self.assess(first)
        self.client.link_traces_to_run([first, second], self.made.runs[1])

    def trace(self, experiment: str, name: str, number: int, metadata: dict[str, str], status: str = "OK") -> str:
        import mlflow

        start = (START + 1000 * number) * 1_000_000 + 123
        root = mlflow.start_span_no_context(
            name, "CHAIN", None, {"q": "wie?"}, {"a": "b"}, {"tag": name}, metadata, experiment, start
        )
        child = mlflow.start_span_no_context(f"{name} inner", "LLM", root, {"n": number}, start_time_ns=start + 1000)
        child.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
        child.end({"x": [1, 2.5, None]}, status=status, end_time_ns=start + 2_000_000)
        root.end({"r": "so ü"}, status=status, end_time_ns=start + 5_000_000)
        return root.trace_id

    def assess(self, trace: str) -> None:
        """A feedback that another one took the place of, and an expectation."""
        import mlflow
        from mlflow.entities import AssessmentSource

        human = AssessmentSource("HUMAN", "jörg")
        given = mlflow.log_feedback(
            trace_id=trace, name="good", value=True, source=human, rationale="weil", metadata={"m": "1"}
        )
        mlflow.override_feedback(trace_id=trace, assessment_id=given.assessment_id, value=False, rationale="doch nicht")
        mlflow.log_expectation(trace_id=trace, name="answer", value={"text": "so", "n": 1.5}, source=human)

    def evaluation_datasets(self) -> None:
        name = "tasting" + self.suffix
        dataset = self.client.create_dataset(name, self.made.experiments, {"kind": "früh"})
        rows = [
            {
                "inputs": {"question": f"q{n}", "n": n},
                "expectations": {"answer": n / 3},
                "tags": {"t": str(n)},
                "outputs": {"o": n},
            }
            for n in range(3)
        ]
        rows[0]["source"] = {"source_type": "TRACE", "source_data": {"trace_id": self.made.traces[0]}}
        dataset.merge_records(rows)
        self.made.evaluation_datasets.append(dataset.dataset_id)

    def scorers(self) -> None:
        """Two versions of a scorer, of those that MLflow brings."""
        from mlflow.genai.scorers import RelevanceToQuery, RetrievalGroundedness

        kitchen = self.made.experiments[0]
        for scorer in (RelevanceToQuery(), RelevanceToQuery(name="relevance_to_query"), RetrievalGroundedness()):
            scorer.register(experiment_id=kitchen)
        self.made.scorers += ["relevance_to_query", "retrieval_groundedness"]

    def mcp_servers(self) -> None:
        name = "org.example/kneader" + self.suffix
        self.client.create_mcp_server(name, "kneads")
        self.client.create_mcp_server_version({"name": name, "version": "1.0.0", "description": "erste"})
        self.client.set_mcp_server_tag(name, "k", "v")
        self.client.set_mcp_server_version_tag(name, "1.0.0", "k", "w")
        self.client.set_mcp_server_alias(name, "live", "1.0.0")
        self.made.mcp_servers.append(name)

    def rest(self) -> None:
        """What there is no public call for is made through the store that MLflow's client has."""
        from mlflow.genai.label_schemas import InputCategorical, InputText

        (kitchen, _), store = self.made.experiments, self.client._tracking_client.store
        issue = store.create_issue(
            kitchen, "too sweet", "süß", root_causes=["sugar"], source_run_id=self.made.runs[0], categories=["taste"]
        )
        self.made.issues.append(issue.issue_id)
        for name, kind, given in (
            ("verdict", "feedback", InputCategorical(options=["yes", "no"])),
            ("wanted", "expectation", InputText(max_length=90)),
        ):
            schema = store.create_label_schema(kitchen, name=name, type=kind, input=given, instruction="Bitte")
            self.made.label_schemas.append(schema.schema_id)
        queue = store.create_review_queue(
            kitchen, name="tasters", queue_type="custom", users=["jörg"], schema_ids=self.made.label_schemas
        )
        store.add_items_to_review_queue(queue.queue_id, item_ids=self.made.traces[:2], item_type="trace")
        self.made.review_queues.append(queue.queue_id)

    def webhooks(self) -> None:
        hook = self.client.create_webhook(
            "bell" + self.suffix,
            "https://127.0.0.1:9/bell",
            ["model_version.created", "registered_model.created"],
            "rings",
            "a secret",
            "ACTIVE",
        )
        self.made.webhooks.append(hook.webhook_id)


def _artifacts(uri: str, name: str) -> str | None:
    if not uri.startswith("sqlite:///"):
        return None
    beside = Path(uri.removeprefix("sqlite:///")).absolute().parent
    return str(beside / "mlartifacts" / name.replace("/", "-"))


@contextmanager
def _tracking(uri: str):
    """MLflow's client with everything that it keeps for the process pointed at `uri`, and back after."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        **WEBHOOKS_ENV,
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    import mlflow
    from mlflow.tracing.provider import reset as reset_tracing

    places = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    reset_tracing()
    try:
        yield mlflow.MlflowClient(uri, uri)
    finally:
        mlflow.flush_trace_async_logging()
        mlflow.set_tracking_uri(places[0])
        mlflow.set_registry_uri(places[1])
        reset_tracing()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
