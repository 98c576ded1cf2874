"""What runs owe until all of them are there, paid at the end of a command or of a later one.

uses     of a version that nobody had made when its reader was written
latest   W&B gives this alias to whichever version comes last; it goes back to the one that had it

Both stand in the provenance of the run, set together with its stamp: a command that is killed before its end forgets
none, and none is paid twice, so that what somebody changes in W&B afterwards stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.configs import set_configs
from mlmigrate.adapters.wandb.api.logged import LATEST, Artifacts
from mlmigrate.adapters.wandb.api.places import as_json
from mlmigrate.adapters.wandb.api.rounds import GROUP, Sent, shared
from mlmigrate.adapters.wandb.api.stream import Where
from mlmigrate.adapters.wandb.api.there import Existing, There, provenance, told_anew, values
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config
from mlmigrate.adapters.wandb.shape import Version
from mlmigrate.errors import MigrateError, Unavailable
from mlmigrate.model import Loss

OF_USES = ("name", "type", "version", "project", "digest")  # what is kept of a version that a run has read


def told_of(sent: Sent) -> Mapping[str, Any]:
    """What the provenance of a run says, once it is there, of the versions that it made and read."""
    heads: dict[str, tuple[str, int]] = {}
    overtook: dict[str, str] = {}
    run, where = sent.written.sheet.run, sent.written.where
    for version, made in (*zip(run.logged, sent.written.logged, strict=True), *sent.lent):
        if not shared(version, run, where):
            continue
        if LATEST in version.aliases:
            heads[version.name] = (made.id, time.time_ns() // 1_000_000)
            overtook.pop(version.name, None)
        elif version.name not in heads or heads[version.name][0] != made.id:
            overtook[version.name] = made.id
    unmade = [{name: one for name in OF_USES if (one := getattr(version, name))} for version in sent.owed]
    told = as_config(Provenance(heads=heads, overtook=overtook, unmade=tuple(unmade)))
    return {name: told[name] for name in ("heads", "overtook", "unmade") if name in told}


@dataclass(frozen=True)
class Debts:
    """Those of the runs that are there."""

    client: Client
    entity: str
    there: There
    artifacts: Artifacts

    def settle(self) -> list[Loss]:
        """Pays what can be paid now, and says in the runs what is left. What cannot be paid is told, once."""
        whole = [(run, run.ours) for run in self.there.all() if run.ours is not None and run.whole]
        debtors = [(run, told) for run, told in whole if told.overtook or told.unmade or told.missing]
        losses, unclaimed = self._give_back(debtors)
        left = []
        for run, told in debtors:
            overtook = {name: version for name, version in told.overtook.items() if (run.project, name) in unclaimed}
            missing = tuple(self._use(run, told, losses))
            rest = replace(told, overtook=overtook, unmade=(), missing=missing)
            if rest != told:
                left.append((run, rest))
        self._tell(left)
        return losses

    # -- the alias "latest" --------------------------------------------------------------------------------------------

    def _give_back(self, debtors: Sequence[tuple[Existing, Provenance]]) -> tuple[list[Loss], set[tuple[str, str]]]:
        """What was refused; and (project, collection) of those whose "latest" has not come here yet."""
        taken: dict[tuple[str, str], list[str]] = {}
        for run, told in debtors:
            for name, version in told.overtook.items():
                taken.setdefault((run.project, name), []).append(version)
        heads = self._heads() if taken else {}
        losses = []
        for (project, name), versions in taken.items():
            if (project, name) in heads:
                owner, head = heads[project, name]
                because = self._hand_over(Where(self.entity, project, owner), name, versions, head)
                losses += [Loss(owner, f"alias {LATEST!r} of the artifact {name}", because)] if because else []
        return losses, taken.keys() - heads.keys()

    def _heads(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(project, collection) -> the run that made the version that is "latest", as was last told; that version."""
        found: dict[tuple[str, str], tuple[int, str, str]] = {}
        for run in self.there.all():
            for name, (version, at) in (run.ours.heads if run.ours is not None and run.whole else {}).items():
                claim = (at, run.id, version)
                found[run.project, name] = max(claim, found.get((run.project, name), claim))
        return {key: (owner, version) for key, (_, owner, version) in found.items()}

    def _hand_over(self, where: Where, name: str, from_: Sequence[str], to: str) -> str:
        """Why W&B does not do it; "" where it has."""
        try:
            done = self.artifacts.hand_over(where, name, from_, to)
        except Unavailable:
            raise
        except MigrateError as error:  # all else is there
            return error.message
        return "" if done else "W&B has it at another version"

    # -- uses ----------------------------------------------------------------------------------------------------------

    def _use(self, run: Existing, told: Provenance, losses: list[Loss]) -> Iterator[Mapping[str, str]]:
        """Says which versions the run has read; gives those that are still not there."""
        where = Where(self.entity, run.project, run.id)
        for owed in (*told.unmade, *told.missing):
            version = _version(owed)
            because = self._use_one(where, version)
            if because and owed in told.unmade:
                losses.append(Loss(run.id, f"use of the artifact {version.name}:{version.version}", because))
            if because:
                yield owed

    def _use_one(self, where: Where, version: Version) -> str:
        """Why it cannot be said; "" where it was."""
        try:
            found = self.artifacts.find(replace(where, project=version.project or where.project), version)
            if found is None:
                return "the artifact is not there"
            self.artifacts.use(where, found)
        except Unavailable:
            raise
        except MigrateError as error:  # all else is there
            return error.message
        return ""

    # -- what is left --------------------------------------------------------------------------------------------------

    def _tell(self, left: Sequence[tuple[Existing, Provenance]]) -> None:
        by_project: dict[str, dict[str, tuple[Existing, Provenance]]] = {}
        for run, rest in left:
            by_project.setdefault(run.project, {})[run.bucket] = (run, rest)
        for project, runs in by_project.items():
            told = (_Told.of(node, runs) for node in self.there.nodes(project))
            ready = [one for one in told if one is not None]
            for first in range(0, len(ready), GROUP):
                self._write(ready[first : first + GROUP])

    def _write(self, some: Sequence[_Told]) -> None:
        def told(n: int, answer: Mapping[str, Any]) -> None:
            found = provenance((answer.get("bucket") or {}).get("config"))
            if found is not None:
                self.there.note(told_anew(some[n].run, found))

        set_configs(self.client, [(one.run.bucket, one.config) for one in some], told)


@dataclass(frozen=True, slots=True)
class _Told:
    """A run and what its config will say."""

    run: Existing
    config: str

    @classmethod
    def of(cls, node: Mapping[str, Any], runs: Mapping[str, tuple[Existing, Provenance]]) -> _Told | None:
        """None for others; and where W&B is behind with what it took: the config that it tells has no stamp yet.
        The debt, which stays, is found paid another time.
        """
        told = provenance(node.get("config"))
        if node["id"] not in runs or told is None:
            return None
        run, rest = runs[node["id"]]
        if told.stamp != rest.stamp:
            return None
        now = replace(told, overtook=rest.overtook, unmade=rest.unmade, missing=rest.missing)
        return cls(run, as_json({**values(node["config"]), KEY: {"value": as_config(now)}}))


def _version(told: Mapping[str, str]) -> Version:
    name, type_, version, project, digest = (told.get(one, "") for one in OF_USES)
    return Version(name, type_, version, project=project, digest=digest)
