"""What Weights & Biases holds: nearly all, for what it has no place for stands in the config key `mlmigrate`."""

from __future__ import annotations

from collections.abc import Mapping

from mlmigrate.adapters.base import Holding, Limits
from mlmigrate.adapters.mlflow.objects import KINDS
from mlmigrate.adapters.wandb.provenance import KEY, OWN_COLUMNS

TEXT = 500_000  # characters of a param or a tag: some of them fit into a config, the rest goes on as an artifact
CONFIG = 10_000_000  # bytes of a config, by W&B's own guidance
METADATA_KEYS = 100  # of an artifact
OWN_KEYS = frozenset(
    ["", "_step", "_timestamp", "_runtime", "_wandb", "wandb_version", KEY, *OWN_COLUMNS]
)  # what W&B, or we, keep under these keys is something else

_NOTHING = "W&B has no such thing: it lies in an artifact of type mlmigrate-records, and comes back from there"
_BECAUSE: Mapping[str, str] = {
    "registered_model": "W&B links versions of artifacts to collections instead: it lies in an artifact of type "
    "mlmigrate-records, and comes back from there",
    "logged_model": "W&B's models are artifacts of runs: it lies with its files in an artifact of type "
    "mlmigrate-records, and comes back from there",
    "trace": "W&B keeps traces in Weave: it lies in an artifact of type mlmigrate-records, and comes back from there",
}

LIMITS = Limits(
    key_words=OWN_KEYS,
    param_length=TEXT,
    tag_length=TEXT,
    clean_files=True,
    holdings=tuple(Holding(kind.record, "record", _BECAUSE.get(kind.name, _NOTHING)) for kind in KINDS),
)
