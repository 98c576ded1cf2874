"""What a server can tell: its API shows nearly all, but for what is deleted, secret or its own."""

from __future__ import annotations

from mlmigrate.adapters.base import Change, Holding, Reads

READS = Reads(
    holdings=(
        Holding("run.deletion", because="the API does not tell when a run was deleted"),
        Holding("run.system", "lost", "the API tells them as tags alone (`mlflow.source.name` and its kin)"),
        Holding("run.artifacts", because="a server cannot hand out files with `#` in their names"),
        Holding(
            "mlflow.logged_model",
            because="deleted ones are not shown",
            changes=(
                Change("logged_models.lifecycle_stage", "it is always that of a model that is not deleted", lost=False),
                Change("logged_model_metrics.dataset_uuid", "datasets are told by name and digest", lost=False),
                Change("inputs.input_uuid", "links are told without their ids", lost=False),
            ),
        ),
        Holding("mlflow.registered_model", because="deleted versions are not shown"),
        Holding("mlflow.prompt", because="deleted versions are not shown"),
        Holding("mlflow.dataset", "lost", "the API shows only datasets that a run read"),
        Holding(
            "mlflow.trace",
            changes=(
                Change("trace_metrics", "the target makes them again", lost=False),
                Change("span_metrics", "the target makes them again", lost=False),
            ),
        ),
        Holding("mlflow.webhook", changes=(Change("webhooks.secret", "the API never shows it"),)),
        Holding("mlflow.gateway_secret", "lost", "the API shows them masked"),
        Holding("mlflow.account", "lost", "passwords are never shown, and accounts are useless without"),
    ),
)
