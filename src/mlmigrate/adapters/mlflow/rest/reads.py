"""What a server can tell: its API shows nearly all, but for what is deleted, secret or its own."""

from __future__ import annotations

from mlmigrate.adapters.base import Change, Holding, Reads
from mlmigrate.adapters.mlflow.objects import ROWS

_AGAIN = "the target makes it again"
_ENCRYPTED = "{}secrets can be read only by the server that encrypted them"

READS = Reads(
    holdings=(
        Holding("run.deletion", because="the API does not tell when a run was deleted"),
        Holding("run.system", "lost", "the API tells them as tags alone (`mlflow.source.name` and its kin)"),
        Holding("run.artifacts", because="a server cannot hand out files with `#` in their names"),
        Holding(
            "mlflow.logged_model",
            because="the API does not show deleted ones",
            changes=(
                Change("logged_model_metrics.dataset_uuid", "datasets are told by name and digest", lost=False),
                Change("inputs.input_uuid", "links are told without their ids", lost=False),
            ),
        ),
        Holding("mlflow.registered_model", because="the API does not show deleted versions"),
        Holding("mlflow.prompt", because="the API does not show deleted versions"),
        Holding("mlflow.dataset", "lost", "the API shows only datasets that a run read"),
        Holding(
            "mlflow.trace",
            changes=(
                Change(
                    "trace_request_metadata.value",
                    "the API shows the first 250 characters; what may have been longer is told",
                ),
                Change("trace_metrics", _AGAIN, lost=False),
                Change("span_metrics", _AGAIN, lost=False),
                Change("entity_associations.association_id", "links are told without their ids", lost=False),
            ),
        ),
        Holding("mlflow.webhook", changes=(Change("webhooks.secret", _ENCRYPTED.format("webhook ")),)),
        Holding("mlflow.gateway_secret", "lost", _ENCRYPTED.format("")),
        Holding("mlflow.mcp_server", "lost", "they are read from a database alone"),
        Holding("mlflow.job", "lost", "they are read from a database alone"),
        Holding("mlflow.auth.", "lost", "they are read from a database alone"),
    ),
    absent=frozenset([ROWS]),
)
