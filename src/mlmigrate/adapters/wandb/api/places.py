"""A place for a run on a server: made, gone on with, or taken under the id of another generation.

Whoever begins again finds what was written before: its lines are the beginning of ours, and the rest is sent; or they
are not, and then the run is spoiled (W&B cuts no history), and the next generation of its id takes its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlmigrate.adapters.wandb import names
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.proving import Proof
from mlmigrate.adapters.wandb.api.stream import SUMMARY, Counts, Where, counts
from mlmigrate.adapters.wandb.api.there import Existing, There, light
from mlmigrate.adapters.wandb.api.uploads import FILES_PER_CALL, Bytes, config_yaml, measured, of_data
from mlmigrate.adapters.wandb.api.writes import UPSERT_RUN, UPSERT_RUN_WITH_FILES
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config, of_config
from mlmigrate.adapters.wandb.shape import Sheet, WandbRun
from mlmigrate.adapters.wandb.writing import regenerated
from mlmigrate.errors import Conflict, MigrateError
from mlmigrate.model import PARENT_TAG, Loss

GENERATIONS = 20  # tried, before that is an error


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that may be written now. `fresh`: nothing of it was there; `places`: where its files may be put."""

    sheet: Sheet
    where: Where
    bucket: str
    config: Mapping[str, Any]
    there: Counts
    fresh: bool
    files: tuple[Bytes, ...] = ()
    places: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Places:
    """Finds places for runs; `losses` grows where one gets another id."""

    client: Client
    entity: str
    there: There
    proof: Proof
    losses: list[Loss]

    def begin(self, sheet: Sheet, least: int = 1) -> Begun:
        """A place for the run; `least` is the first generation that is tried."""
        mine = [run for run in self.there.of(sheet.origin) if run.project == sheet.run.project and run.ours]
        newest = max((run.ours.generation for run in mine if run.ours), default=1)
        start = max(newest, least)
        told_later = any(run.whole for run in mine)  # when its old copy is taken away
        for generation in range(start, start + GENERATIONS):
            begun = self._try(sheet, generation)
            if begun is None:
                continue
            if generation > newest and not told_later:
                because = "a run of its id was there, deleted or with another history"
                shown = f"run id {sheet.run.id!r}"
                self.losses.append(Loss(sheet.run.id, shown, f"{because}; ours is {begun.where.id!r}"))
            return begun
        raise Conflict(
            f"W&B takes no id for the run {sheet.run.id!r}: {GENERATIONS} generations of it are taken or deleted.",
            "Copy into another project",
        )

    def _try(self, sheet: Sheet, generation: int) -> Begun | None:
        """The run as one of this generation; None where that cannot be."""
        mine = self._settled(sheet if generation == 1 else regenerated(sheet, generation))
        where = Where(mine.run.entity or self.entity, mine.run.project, mine.run.id)
        known = self.there.at(where.project, where.id)
        if known is not None and (known.ours is None or known.ours.origin != sheet.origin):
            return None  # somebody else's
        there = counts(self.client, where) if known is not None else Counts()
        if known is not None and self._spoils(mine, where, there):
            return None
        try:
            begun = self._upsert(mine, where, generation, known, there)
        except Conflict:
            return None  # a run of this id was deleted: W&B never takes it again
        return None if known is None and self._spoils(mine, where, begun.there) else begun

    def _settled(self, sheet: Sheet) -> Sheet:
        """The sheet, its parent called as it is here."""
        told = of_config(sheet.run.config.get(KEY))
        parent = told.tags.get(PARENT_TAG) if told is not None else None
        if told is None or not parent:
            return sheet
        plain = names.parent_id(told.origin, told.id or sheet.run.id, parent)
        here = next((run.id for run in self._parents(told, sheet.run, parent) if run.ours), plain)
        if here == parent:
            return sheet
        config = {**sheet.run.config, KEY: as_config(replace(told, tags={**told.tags, PARENT_TAG: here}))}
        group = here if sheet.run.group == plain else sheet.run.group
        return replace(sheet, run=replace(sheet.run, config=config, group=group))

    def _parents(self, told: Provenance, run: WandbRun, parent: str) -> list[Existing]:
        own = told.id or run.id
        if not told.origin.endswith(own):
            return []
        return [one for one in self.there.of(told.origin.removesuffix(own) + parent) if one.project == run.project]

    def _upsert(self, sheet: Sheet, where: Where, generation: int, known: Existing | None, there: Counts) -> Begun:
        config = config_of(sheet.run)
        files = self._files(sheet, where, config)
        answer = self._made(_upsert_of(sheet.run, where, config), files if known is None else ())
        made = answer.get("upsertBucket") or {}
        bucket = made.get("bucket")
        if not bucket or not bucket.get("id"):
            raise MigrateError(f"W&B did not make the run {where.shown}.", "May the key's owner write there?")
        fresh = known is None and bool(made.get("inserted", True)) and not bucket.get("historyLineCount")
        if known is None:
            there = Counts() if fresh else counts(self.client, where)
        begun = Begun(sheet, where, bucket["id"], config, there, fresh, files, answer.get("createRunFiles"))
        self.there.note(_existing(begun, generation))
        return begun

    def _made(self, given: Mapping[str, Any], files: Sequence[Bytes]) -> dict[str, Any]:
        """The run, and where its files may be put: in one request where the server likes that."""
        if not 0 < len(files) <= FILES_PER_CALL:
            return self.client.graphql(UPSERT_RUN, given)
        both = {**given, "files": [file.path for file in files]}
        return self.client.together(
            lambda: self.client.graphql(UPSERT_RUN_WITH_FILES, both), lambda: self.client.graphql(UPSERT_RUN, given)
        )

    def _spoils(self, sheet: Sheet, where: Where, there: Counts) -> bool:
        """Whether the lines that are there are not the beginning of ours."""
        if there.history > sheet.rows or there.events > sheet.event_rows:
            return True
        return bool(there.history and self.proof.compare(where, sheet.history(0), there.history))

    def _files(self, sheet: Sheet, where: Where, config: Mapping[str, Any]) -> tuple[Bytes, ...]:
        """The files of the run page."""
        files = [measured(file, f"the run {where.shown}") for file in sheet.run.files]
        own = {file.path for file in files}
        return (*files, *(file for file in _told(sheet.run, config) if file.path not in own))


def config_of(run: WandbRun) -> dict[str, Any]:
    """The config as W&B takes it: {"value": ...} of each key, the metric definitions among them."""
    config: dict[str, Any] = {key: {"value": value} for key, value in run.config.items()}
    if run.internal:
        config["_wandb"] = {"value": dict(run.internal)}
    return config


def _upsert_of(run: WandbRun, where: Where, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": where.id,
        "project": where.project,
        "entity": where.entity,
        "groupName": run.group,
        "displayName": run.name,
        "notes": run.notes,
        "commit": run.git_commit or None,
        "config": as_json(config),
        "host": run.host or None,
        "program": run.program or None,
        "repo": run.git_remote or None,
        "jobType": run.job_type,
        "state": "pending" if run.state == "pending" else None,
        "sweep": run.sweep or None,
        "tags": list(run.tags),
    }


def _existing(begun: Begun, generation: int) -> Existing:
    told = of_config(begun.sheet.run.config.get(KEY)) or Provenance(origin=begun.sheet.origin, generation=generation)
    return Existing(begun.where.project, begun.where.id, begun.bucket, begun.there.history, light(told))


def _told(run: WandbRun, config: Mapping[str, Any]) -> list[Bytes]:
    """The files that W&B's SDK writes of every run; one that stands for an experiment has no page to be looked at."""
    told = of_config(run.config.get(KEY))
    if told is not None and told.kind != "run":
        return []
    metadata = dict(run.metadata) or {
        name: value for name, value in (("host", run.host), ("program", run.program), ("args", list(run.args))) if value
    }
    return [
        of_data("config.yaml", config_yaml(config)),
        of_data("wandb-metadata.json", as_json(metadata).encode()),
        of_data(SUMMARY, as_json(run.summary).encode()),
    ]


def as_json(value: object) -> str:
    """As the SDK sends it."""
    return json.dumps(value if not isinstance(value, Mapping) else dict(value), separators=(",", ":"))
