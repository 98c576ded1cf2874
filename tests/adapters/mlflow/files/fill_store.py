"""Fills a file store through MLflow's own client, of whichever version runs this: python fill_store.py FOLDER.

Prints, as JSON, what the client says afterwards of the traces' assessments.
"""

import json
import os
import sys

os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
import mlflow
from mlflow import MlflowClient


def registry(client, run, model):
    client.create_registered_model("fraud", tags={"a/b": "x", "t": "y\n"}, description="what\nit does")
    source = f"models:/{model}" if model else "s3://b/x"
    client.create_model_version("fraud", source=source, run_id=run, description="first", tags={"q": "1"})
    client.create_model_version("fraud", source="s3://b/x", run_link="http://host/x")
    client.create_model_version("fraud", source="s3://b/y")
    client.create_model_version("fraud", source="s3://b/z")
    client.set_registered_model_alias("fraud", "best", "2")
    client.transition_model_version_stage("fraud", "2", "Production")
    client.delete_model_version("fraud", "3")
    if hasattr(mlflow, "genai"):
        mlflow.genai.register_prompt(name="hello", template="Hi {{name}}", commit_message="start", tags={"lang": "en"})


def logged_model(client):
    """A run with a model that it made; another that reads it; a model that was deleted."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput
    from pandas import DataFrame

    data = mlflow.data.from_pandas(DataFrame({"a": [1, 2]}), name="numbers")
    with mlflow.start_run(run_name="one") as run:
        model = mlflow.initialize_logged_model("net", params={"depth": "3"}, tags={"team": "blue"}, model_type="agent")
        mlflow.log_input(data, context="train")
        mlflow.log_metric("acc", 0.5, step=1, model_id=model.model_id, dataset=data)
        mlflow.log_metric("acc", 0.75, step=2, model_id=model.model_id, dataset=data)
        mlflow.log_metric("plain", float("nan"), step=2, model_id=model.model_id)
        mlflow.log_metric("alone", 1.5, step=2, dataset=data)
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=7)])
        mlflow.finalize_logged_model(model.model_id, "READY")
    with mlflow.start_run(run_name="two") as other:
        client.log_inputs(other.info.run_id, models=[LoggedModelInput(model.model_id)])
    client.delete_logged_model(mlflow.initialize_logged_model("gone").model_id)
    return run.info.run_id, model.model_id


def assessments(trace):
    from mlflow.entities import AssessmentError, AssessmentSource

    who = AssessmentSource(source_type="HUMAN", source_id="ada")
    log = mlflow.log_feedback
    good = log(trace_id=trace, name="good", value=True, source=who, rationale="nice", metadata={"m": "1"})
    log(trace_id=trace, name="score", value=5)
    log(trace_id=trace, name="note", value={"a": [1, "x"]})
    log(trace_id=trace, name="err", error=AssessmentError("E1", "bad", "where"))
    mlflow.log_expectation(trace_id=trace, name="want", value={"a": 1}, source=who)
    mlflow.log_expectation(trace_id=trace, name="word", value="yes", source=who)
    mlflow.override_feedback(trace_id=trace, assessment_id=good.assessment_id, value=False, rationale="no", source=who)


def told(trace):
    """What the client says of a trace's assessments."""
    return [
        {
            "assessment_id": one.assessment_id,
            "name": one.name,
            "value": json.dumps(one.value),
            "created_timestamp": one.create_time_ms,
            "last_updated_timestamp": one.last_update_time_ms,
            "source_type": one.source.source_type,
            "source_id": one.source.source_id,
            "rationale": one.rationale,
            "valid": one.valid is not False,  # the client does not read back that of an expectation
            "overrides": one.overrides,
        }
        for one in mlflow.get_trace(trace).info.assessments
    ]


def main(root):
    mlflow.set_tracking_uri(f"file:{root}")
    mlflow.set_registry_uri(f"file:{root}")
    mlflow.set_experiment("lab")
    client = MlflowClient()
    if hasattr(mlflow, "initialize_logged_model"):
        run, model = logged_model(client)
    else:
        with mlflow.start_run(run_name="one") as one:
            mlflow.log_metric("acc", 0.5)
        run, model = one.info.run_id, None
    registry(client, run, model)

    @mlflow.trace
    def answer(x):
        mlflow.update_current_trace(tags={"k": "v"})
        return [x]

    answer(3)
    if model is None:
        return []
    getattr(mlflow, "flush_trace_async_logging", lambda: None)()
    trace = mlflow.get_last_active_trace_id()
    assessments(trace)
    return told(trace)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
