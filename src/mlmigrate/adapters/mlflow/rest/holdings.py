"""What a server of each version holds beside runs, as its writers declare it.

Every module of writers may have `holdings(version) -> Sequence[Holding]`: how it writes its kinds, and which of
them a version does not know (how="lost", because="MLflow 2.9 knows no traces").
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from mlmigrate.adapters.base import Holding, Limits
from mlmigrate.adapters.mlflow.objects import KINDS
from mlmigrate.adapters.mlflow.rest.objects import modules

Version = tuple[int, int]


@cache
def holdings(version: Version) -> tuple[Holding, ...]:
    """How a server of this version holds each kind of object."""
    found: dict[str, Holding] = {}
    for module in modules():
        declared = getattr(module, "holdings", None)
        for holding in declared(version) if declared is not None else ():
            found.setdefault(holding.kind, holding)
    for kind in KINDS:
        found.setdefault(kind.record, Holding(kind.record, "lost", "MLflow's API has no call that writes it"))
    return tuple(found[name] for name in sorted(found))


def with_holdings(limits: Limits, version: Version) -> Limits:
    """The limits of a server, with what it holds beside runs."""
    found = holdings(version)
    kinds = tuple(one.kind for one in found if one.how != "lost")
    return replace(
        limits,
        records=kinds,
        holdings=found,
        owned_artifacts=bool({"mlflow.logged_model", "mlflow.trace"} & set(kinds)),
    )
