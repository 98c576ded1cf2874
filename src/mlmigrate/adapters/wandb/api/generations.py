"""Older generations of runs, taken away once a newer one is whole; their children then name the newer one.

Only what is called as we call generations is ever deleted: whoever forked a run of ours has our provenance too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from mlmigrate.adapters.wandb import names
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.places import as_json
from mlmigrate.adapters.wandb.api.there import Existing, There, provenance, values
from mlmigrate.adapters.wandb.api.writes import DELETE_RUN, PLACE_RUN
from mlmigrate.adapters.wandb.provenance import KEY, as_config
from mlmigrate.errors import MigrateError, NotFound, Unavailable
from mlmigrate.model import PARENT_TAG, Loss


@dataclass(frozen=True)
class Generations:
    """Those of the runs of some projects."""

    client: Client
    there: There

    def drop_spoiled(self, origin: str) -> list[Loss]:
        """Deletes older generations of the run that never were whole: nobody can name them."""
        return [loss for newest, old in self._outdated(origin) if not old.whole for loss in self._delete(old, newest)]

    def settle(self) -> list[Loss]:
        """Deletes all older generations, after the children of each call the newest their parent."""
        origins = dict.fromkeys(run.ours.origin for run in self.there.all() if run.ours is not None)
        outdated = [pair for origin in origins for pair in self._outdated(origin)]
        renamed: dict[str, dict[str, str]] = {}
        for newest, old in outdated:
            renamed.setdefault(old.project, {})[old.id] = newest.id
        losses = [loss for project, ids in renamed.items() for loss in self._adopt(project, ids)]
        return losses + [loss for newest, old in outdated for loss in self._delete(old, newest)]

    def _outdated(self, origin: str) -> Iterator[tuple[Existing, Existing]]:
        """The newest generation in each project, where that is whole, with each of the older ones there."""
        runs = self.there.of(origin)
        for project in dict.fromkeys(run.project for run in runs):
            yield from _older([run for run in runs if run.project == project])

    def _adopt(self, project: str, ids: Mapping[str, str]) -> Iterator[Loss]:
        """Children of runs that have another id now."""
        for node in self.there.nodes(project):
            told = provenance(node.get("config"))
            parent = told.tags.get(PARENT_TAG, "") if told is not None else ""
            if told is None or parent not in ids:
                continue
            tags = {**told.tags, PARENT_TAG: ids[parent]}
            config = {**values(node["config"]), KEY: {"value": as_config(replace(told, tags=tags))}}
            group = node.get("group") or None
            given = {"id": node["id"], "config": as_json(config), "group": ids.get(group, group) if group else None}
            try:
                self.client.graphql(PLACE_RUN, given)
            except Unavailable:
                raise
            except MigrateError as error:
                yield Loss(told.id, f"the parent {parent!r}", f"it is {ids[parent]!r} now: {error.message}")

    def _delete(self, old: Existing, newest: Existing) -> list[Loss]:
        """As the SDK does: the artifacts that it made stay. A copy that was whole is told as a loss."""
        id_, shown = newest.ours.id if newest.ours else newest.id, f"run id {old.id!r}"
        try:
            with suppress(NotFound):  # an answer that was lost: it is gone
                self.client.graphql(DELETE_RUN, {"id": old.bucket})
        except Unavailable:
            raise
        except MigrateError as error:
            return [Loss(id_, shown, f"its old copy could not be taken away: {error.message}")]
        self.there.forget(old)
        because = f"its history changed at the source: its old copy was taken away, the run is {newest.id!r} now"
        return [Loss(id_, shown, because)] if old.whole else []


def _older(generations: Sequence[Existing]) -> Iterator[tuple[Existing, Existing]]:
    newest, *older = generations
    if newest.ours is None or not newest.whole:
        return
    for old in older:
        if old.ours is None or old.ours.generation >= newest.ours.generation:
            continue
        if old.id == names.run_id(old.ours.origin, newest.ours.id, old.ours.generation):
            yield newest, old
