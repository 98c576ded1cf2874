"""What a file store can tell. MLflow keeps the newer kinds of object in databases alone."""

from __future__ import annotations

from mlmigrate.adapters.base import Holding, Reads

READS = Reads(
    absent=frozenset(
        f"mlflow.{name}"
        for name in (
            "workspace",
            "evaluation_dataset",
            "scorer",
            "label_schema",
            "review_queue",
            "issue",
            "webhook",
            "gateway_model",
            "gateway_endpoint",
            "gateway_secret",
            "guardrail",
            "budget_policy",
            "mcp_server",
            "job",
            "auth.",
            "sql.",
        )
    ),
    holdings=(
        Holding(
            "run.artifacts",
            because="links, sockets and devices among the files are never followed; artifacts that were logged to "
            "another place are read where that is a folder of this machine or is named by `--artifacts-at`",
        ),
    ),
)
