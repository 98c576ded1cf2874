"""What a backend database can tell: everything but what only the server that wrote it can decipher."""

from __future__ import annotations

from mlmigrate.adapters.base import Change, Holding, Reads
from mlmigrate.adapters.mlflow.objects import KINDS
from mlmigrate.adapters.mlflow.sql.accounts import KIND
from mlmigrate.adapters.mlflow.sql.schema import LEFT_OUT, SECRETS

_UNTOLD = tuple(
    Holding(kind.record, changes=(Change(f"{kind.table}.{SECRETS[kind.table][0]}", SECRETS[kind.table][1]),))
    for kind in KINDS
    if kind.table in SECRETS
)
READS = Reads(
    holdings=(
        Holding(
            "run.artifacts",
            because="`mlflow-artifacts:` is a place that only the server knows: name its folder with `--artifacts-at`",
        ),
        *_UNTOLD,
        Holding("mlflow.gateway_secret", "lost", LEFT_OUT["secrets"]),
        Holding(
            KIND,
            because="passwords stay where they are, and each user needs a new one; the accounts of MLflow's basic-auth "
            "app are read where its `basic_auth.db` lies beside a SQLite database",
        ),
    ),
)
