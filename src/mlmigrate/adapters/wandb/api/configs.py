"""The configs of runs that are there, set anew: several in one request where the server takes that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.writes import STAMP_RUN, stamp_all

Told = Callable[[int, Mapping[str, Any]], None]  # the place of a run among those given, and what W&B answers of it


def set_configs(client: Client, configs: Sequence[tuple[str, str]], told: Told) -> None:
    """Sets them: (storage id, config as JSON). What `told` raises of several is asked once more of each alone."""

    def at_once() -> None:
        buckets = {f"i{n}": bucket for n, (bucket, _) in enumerate(configs)}
        answer = client.graphql(
            stamp_all(len(configs)), buckets | {f"c{n}": config for n, (_, config) in enumerate(configs)}
        )
        for n in range(len(configs)):
            told(n, answer.get(f"u{n}") or {})

    def singly() -> None:
        for n, (bucket, config) in enumerate(configs):
            told(n, client.graphql(STAMP_RUN, {"id": bucket, "config": config}).get("upsertBucket") or {})

    if len(configs) == 1:
        singly()
    else:
        client.together(at_once, singly)
