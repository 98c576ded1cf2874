"""Fills a server with some of everything that its version of MLflow's client can make: `python rest_fill.py URL`.

Run in the environment of that version; what a version does not know is skipped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request

import mlflow
from mlflow import MlflowClient

VERSION = tuple(int(part) for part in mlflow.__version__.split(".")[:2])


def main(url: str) -> None:
    mlflow.set_tracking_uri(url)
    client = MlflowClient(url)
    experiment = client.create_experiment("rest objects")
    other = client.create_experiment("rest objects, nothing in it but a dataset")
    run = client.create_run(experiment).info.run_id
    client.set_terminated(run)
    registry(client, run)
    if VERSION >= (2, 14):
        traces(client, url, experiment, run)
    if VERSION >= (3, 0):
        models(client, experiment, run)
    if VERSION >= (3, 4):
        datasets(experiment, other, run)
        scorers(url, experiment)
        webhooks(client)
    if VERSION >= (3, 14):
        newest(url, experiment, other)


def call(url: str, path: str, body: dict | None, method: str = "POST") -> dict:
    request = urllib.request.Request(
        f"{url}/{path}",
        json.dumps(body).encode() if body else None,
        {"Content-Type": "application/json"},
        method=method,
    )
    try:
        return json.load(urllib.request.urlopen(request))
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{path}: {error.read().decode()}") from error


def registry(client: MlflowClient, run: str) -> None:
    client.create_registered_model("fraud", tags={"team": "größe"}, description="who cheats?\n2nd line")
    client.create_registered_model("empty")
    client.create_registered_model("mod el 'quoted'" if VERSION >= (2, 0) else "mod el")
    for n in range(4):
        client.create_model_version("fraud", f"s3://bucket/{n}", run if n else None, tags={"n": str(n)})
    client.update_model_version("fraud", "4", description="the best")
    client.delete_model_version("fraud", "2")
    client.create_model_version("fraud", "s3://bucket/5", run, run_link="https://example.org/run")
    with contextlib.suppress(AttributeError):
        client.transition_model_version_stage("fraud", "3", "Production")
    client.set_registered_model_tag("fraud", "mlmigrate.origin", "not carried")
    if VERSION >= (2, 3):
        client.set_registered_model_alias("fraud", "champion", "3")
        client.set_registered_model_alias("fraud", "newest", "5")
    if VERSION >= (3, 0):
        mlflow.genai.register_prompt("greeting", "Hello {{ name }}, größe", tags={"tone": "warm"})
        mlflow.genai.register_prompt("greeting", "Hi {{ name }}", commit_message="shorter")
        client.set_prompt_alias("greeting", "live", 1)
    elif VERSION >= (2, 21):
        mlflow.register_prompt("greeting", "Hello {{ name }}")


def traces(client: MlflowClient, url: str, experiment: str, run: str) -> None:
    mlflow.set_experiment(experiment_id=experiment)

    @mlflow.trace(span_type="LLM", attributes={"k": 1.5, "none": None, "größe": ["ü", 2]})
    def answer(question: str) -> str:
        if question == "boom":
            raise ValueError("größer \U0001f680 than allowed")
        return f"answer to {question} \U0001f680 <b>"

    @mlflow.trace
    def ask(question: str) -> str:
        return answer(question) + answer(question)

    with mlflow.start_run(run):
        ask("why?")
    with contextlib.suppress(ValueError):
        ask("boom")
    for n in range(5):
        ask(f"question {n}")
    flush = getattr(mlflow, "flush_trace_async_logging", None)
    if flush is not None:
        with contextlib.suppress(Exception):
            flush()
    found = client.search_traces(experiment_ids=[experiment])
    ids = [getattr(one.info, "trace_id", None) or one.info.request_id for one in found]
    client.set_trace_tag(ids[0], "mood", "größe")
    client.set_trace_tag(ids[0], "mlmigrate.origin", "not carried")
    if VERSION >= (3, 2):
        assessments(ids)
    if VERSION >= (3, 5):
        client.link_traces_to_run(ids[:2], run)
    if VERSION >= (3, 14):
        call(url, "api/2.0/mlflow/traces/link-prompts", {
            "trace_id": ids[0], "prompt_versions": [{"name": "greeting", "version": "1"}],
        })  # fmt: skip


def assessments(ids: list[str]) -> None:
    from mlflow.entities import AssessmentSource

    human = AssessmentSource("HUMAN", "anna@example.org")
    values = [1, 2.5, True, "ü", [1, "a", None], {"a": 1, "b": {"c": 2.25}}, 12345678901]
    first = None
    for n, value in enumerate(values):
        made = mlflow.log_feedback(
            trace_id=ids[0], name=f"f{n}", value=value, source=human, rationale="because" if n else None,
            metadata={"m": "größe", "n": str(n)} if n == 1 else None,
        )  # fmt: skip
        first = first or made
    mlflow.log_feedback(trace_id=ids[1], name="broken", error=ValueError("no ü"))
    mlflow.log_expectation(trace_id=ids[1], name="e", value={"expected": [1, 2.5, "ü"]}, source=human)
    mlflow.log_expectation(trace_id=ids[1], name="text", value="plain", source=human)
    if VERSION >= (3, 3):
        mlflow.override_feedback(trace_id=ids[0], assessment_id=first.assessment_id, value=7, source=human)


def models(client: MlflowClient, experiment: str, run: str) -> None:
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    ids = []
    for n in range(3):
        made = client.create_logged_model(
            experiment, name=f"model {n}", source_run_id=run if n else None, model_type="agent" if n else None,
            params={"p": "größe", "q": "x" * 300} if n else None, tags={"t": "v"} if n else None,
        )  # fmt: skip
        ids.append(made.model_id)
    client.finalize_logged_model(ids[1], "READY")
    client.finalize_logged_model(ids[2], "FAILED")
    another = client.create_run(experiment).info.run_id
    client.log_outputs(another, [LoggedModelOutput(ids[1], 7)])
    client.log_inputs(another, models=[LoggedModelInput(ids[1]), LoggedModelInput(ids[2])])
    client.log_metric(run, "acc", 0.5, step=3, timestamp=1_700_000_000_000, model_id=ids[1],
                      dataset_name="d", dataset_digest="x")  # fmt: skip
    client.log_metric(run, "acc", float("nan"), step=4, timestamp=1_700_000_000_001, model_id=ids[1])
    client.log_metric(run, "acc", 1e300, step=5, timestamp=1_700_000_000_002, model_id=ids[1])
    gone = client.create_logged_model(experiment, name="gone").model_id
    client.delete_logged_model(gone)
    client.create_model_version("fraud", f"models:/{ids[1]}", run, model_id=ids[1])


def datasets(experiment: str, other: str, run: str) -> None:
    from mlflow.genai.datasets import create_dataset

    made = create_dataset(name="questions", experiment_id=[experiment, other], tags={"größe": "ü"})
    made.merge_records([
        {"inputs": {"q": f"größe {n}", "n": n, "x": 2.5}, "expectations": {"a": ["b", None, 1]}, "tags": {"k": "v"}}
        for n in range(3)
    ] + [
        {"inputs": {"q": "plain"}},
        {"inputs": {"q": "sourced"}, "source": {"source_type": "HUMAN", "source_data": {"user": "anna"}}},
        {"inputs": {"q": "answered"}, "outputs": {"text": "ü"}},
    ])  # fmt: skip
    create_dataset(name="nothing in it", experiment_id=[experiment])


def scorers(url: str, experiment: str) -> None:
    for n in range(3):
        judge = {"instructions": f"Is {{{{ outputs }}}} größe {n}?", "model": "openai:/gpt-4"}
        serialized = {"name": f"judge {n % 2}", "instructions_judge_pydantic_data": judge, "serialization_version": 1}
        serialized |= {"mlflow_version": mlflow.__version__}
        body = {"experiment_id": experiment, "name": f"judge {n % 2}", "serialized_scorer": json.dumps(serialized)}
        call(url, "api/3.0/mlflow/scorers/register", body)


def webhooks(client: MlflowClient) -> None:
    from mlflow.entities.webhook import WebhookStatus

    with contextlib.suppress(mlflow.MlflowException):
        client.create_webhook(
            "hook", "https://example.com/hook", ["model_version.created", "registered_model.created"],
            description="größe", secret="hidden", status=WebhookStatus.DISABLED,
        )  # fmt: skip


def newest(url: str, experiment: str, other: str) -> None:
    """By plain requests: the client's own words for these are young."""
    api = "api/3.0/mlflow"
    issue = {"experiment_id": experiment, "name": "hallucinates", "description": "größe", "severity": "high"}
    call(url, f"{api}/issues", {**issue, "root_causes": ["a", "ü"], "categories": ["c"], "created_by": "anna"})
    call(url, f"{api}/issues", {"experiment_id": experiment, "name": "slow", "description": "so slow"})
    reviews(url, experiment)
    call(url, f"{api}/label-schemas/list?experiment_id={experiment}", None, "GET")  # as MLflow's own pages do
    body = {"experiment_id": other, "name": "never looked at", "type": "FEEDBACK", "input": {"text": {}}}
    call(url, f"{api}/label-schemas/create", body)
    gateway(url, experiment)


def reviews(url: str, experiment: str) -> None:
    api = "api/3.0/mlflow"
    inputs = {
        "good?": {"pass_fail": {"positive_label": "größe", "negative_label": "no"}},
        "which?": {"categorical": {"options": ["a", "ü"], "multi_select": True}},
        "how much?": {"numeric": {"min_value": 1.5}},
        "what?": {"text": {"max_length": 10}},
    }
    ids = []
    for n, (name, given) in enumerate(inputs.items()):
        body = {"experiment_id": experiment, "name": name, "type": "FEEDBACK" if n else "EXPECTATION", "input": given}
        body |= {"instruction": "look", "enable_comment": True} if n else {}
        ids.append(call(url, f"{api}/label-schemas/create", body)["label_schema"]["schema_id"])
    queue = call(url, f"{api}/review-queues/create", {
        "experiment_id": experiment, "name": "Queue", "queue_type": "CUSTOM", "users": ["anna", "ben"],
        "schema_ids": ids[:2],
    })["review_queue"]["queue_id"]  # fmt: skip
    call(url, f"{api}/review-queues/get-or-create-user", {"experiment_id": experiment, "user": "carl"})
    body = {"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}]}
    traces = [one["trace_id"] for one in call(url, f"{api}/traces/search", body)["traces"]]
    call(url, f"{api}/review-queues/items/add", {"queue_id": queue, "item_ids": traces[:3]})
    body = {"queue_id": queue, "item_id": traces[0], "status": "COMPLETE", "completed_by": "anna"}
    call(url, f"{api}/review-queues/items/set-status", body)


def gateway(url: str, experiment: str) -> None:
    api = "api/3.0/mlflow/gateway"
    secret = {"secret_name": "key", "secret_value": [{"key": "api_key", "value": "sk-hidden"}], "provider": "openai"}
    secret_id = call(url, f"{api}/secrets/create", secret)["secret"]["secret_id"]
    body = {"name": "gpt", "secret_id": secret_id, "provider": "openai", "model_name": "gpt-4"}
    model = call(url, f"{api}/model-definitions/create", body)["model_definition"]["model_definition_id"]
    configs = [{"model_definition_id": model, "linkage_type": "PRIMARY", "weight": 1.0}]
    body = {"name": "chat", "model_configs": configs, "usage_tracking": True, "experiment_id": experiment}
    endpoint = call(url, f"{api}/endpoints/create", body)["endpoint"]["endpoint_id"]
    call(url, f"{api}/endpoints/set-tag", {"endpoint_id": endpoint, "key": "team", "value": "größe"})
    call(url, f"{api}/budgets/create", {
        "budget_unit": "USD", "budget_amount": 12.5, "duration": {"unit": "DAYS", "value": 2}, "target_scope": "GLOBAL",
        "budget_action": "ALERT",
    })  # fmt: skip
    scorer = call(url, f"api/3.0/mlflow/scorers/list?experiment_id={experiment}", None, "GET")["scorers"][0]
    guardrail = call(url, f"{api}/guardrails/create", {
        "name": "guard", "scorer_id": scorer["scorer_id"], "scorer_version": scorer["scorer_version"],
        "stage": "BEFORE", "action": "VALIDATION",
    })["guardrail"]["guardrail_id"]  # fmt: skip
    body = {"endpoint_id": endpoint, "guardrail_id": guardrail, "execution_order": 1}
    call(url, f"{api}/guardrails/add-to-endpoint", body)


if __name__ == "__main__":
    main(sys.argv[1])
