"""What a backend database can tell: everything but what only the server that wrote it can decipher."""

from __future__ import annotations

from mlmigrate.adapters.base import Change, Holding, Reads

READS = Reads(
    holdings=(
        Holding(
            "run.artifacts",
            because="`mlflow-artifacts:` is a place that only the server knows: name its folder with `--artifacts-at`",
        ),
        Holding(
            "mlflow.webhook",
            changes=(Change("webhooks.secret", "it is encrypted with a key that only the server has"),),
        ),
        Holding("mlflow.gateway_secret", "lost", "they are encrypted with keys that only the server has"),
        Holding(
            "mlflow.account",
            "lost",
            "the accounts of MLflow's basic-auth app lie in a database of their own (`basic_auth.db`), "
            "which mlmigrate does not read",
        ),
    ),
)
