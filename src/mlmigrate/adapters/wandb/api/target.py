"""A W&B server written: experiments are projects, or all of them one; runs by the address they came from.

wandb:entity             a project for each experiment
wandb:entity/project     one project, each experiment a group of its runs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mlmigrate.adapters.base import Context, Names, Packing, SameNames, Settings
from mlmigrate.adapters.wandb import names
from mlmigrate.adapters.wandb.address import Spot, spot
from mlmigrate.adapters.wandb.api import owners
from mlmigrate.adapters.wandb.api.client import Client, connect
from mlmigrate.adapters.wandb.api.logged import Artifacts
from mlmigrate.adapters.wandb.api.operations import VIEWER
from mlmigrate.adapters.wandb.api.proving import Proof
from mlmigrate.adapters.wandb.api.sending import Sending
from mlmigrate.adapters.wandb.api.there import Existing, There
from mlmigrate.adapters.wandb.api.writes import ENTITY
from mlmigrate.adapters.wandb.limits import LIMITS
from mlmigrate.adapters.wandb.options import options
from mlmigrate.adapters.wandb.outgoing import Home
from mlmigrate.adapters.wandb.writing import Homes, WandbPlace, experiment_sheets
from mlmigrate.address import Address
from mlmigrate.errors import NotFound, UsageError
from mlmigrate.model import PARENT_TAG, Arrival, Experiment, Loss, Record, Run, RunRef

PATIENCE = "MLMIGRATE_WANDB_PATIENCE"  # seconds that a server may be behind with what it took
PATIENT = 30.0


def open_target(address: Address, context: Context) -> WandbTarget:
    """The projects at `address`, for writing; nothing is written yet. Raises NotFound, Refused, Unavailable."""
    where = spot(address.place, context.env)
    client = connect(where.base_url, context)
    try:
        patience = _seconds(context.env.get(PATIENCE, ""))
        return WandbTarget(client, replace(where, entity=_entity(client, where)), context.settings, patience)
    except BaseException:
        client.close()
        raise


def _seconds(text: str) -> float:
    try:
        return float(text) if text else PATIENT
    except ValueError as error:
        raise UsageError(f"{PATIENCE} is {text!r}, which is no number of seconds.") from error


def _entity(client: Client, where: Spot) -> str:
    """The entity that is meant, which the key can see."""
    if where.entity:
        if not client.graphql(ENTITY, {"name": where.entity}).get("entity"):
            raise NotFound(
                f"{where.base_url} has no entity {where.entity!r} that this key can see.",
                "An entity is a team or a user; see the settings of your account",
            )
        return where.entity
    own = (client.graphql(VIEWER).get("viewer") or {}).get("entity")
    if not own:
        raise NotFound(f"{where.base_url} tells no entity of this key.", "Write it: wandb:entity")
    return str(own)


class SettledHomes(Homes):
    """Homes of experiments whose projects may be called otherwise, for others have their names."""

    def __init__(self, entity: str, project: str = "") -> None:
        super().__init__(entity, project)
        self.settled: dict[str, str] = {}  # origin of the experiment -> project

    def of(self, experiment: str) -> Home:
        """The home of the experiment of this id."""
        home = super().of(experiment)
        own = self.settled.get(_origin(home.experiment))
        return replace(home, project=own) if own and not home.shared else home


class WandbTarget:
    """A server. `pack` may be called from several threads at once."""

    limits = LIMITS
    packing = Packing(runs=200, points=500_000, size=256 << 20)

    def __init__(self, client: Client, where: Spot, settings: Settings, patience: float = PATIENT) -> None:
        self.where, self.settings = where, settings
        self.client = client
        self.there = There(client, where.entity)
        self.homes = SettledHomes(where.entity, where.project)
        self.sending = Sending(client, where.entity, self.there, Artifacts(client), Proof(client, patience))
        self._options = options(settings)

    def arrived(self) -> Mapping[str, Arrival]:
        """The runs whose provenance has a stamp; of several generations the latest."""
        self._load()
        found: dict[str, Existing] = {}
        for run in self.there.all():
            if run.ours is None or not run.whole or run.ours.kind == "experiment":
                continue
            other = found.get(run.ours.origin)
            if other is None or other.ours is None or other.ours.generation < run.ours.generation:
                found[run.ours.origin] = run
        return {origin: Arrival(run.id, run.ours.stamp) for origin, run in found.items() if run.ours is not None}

    def _load(self) -> list[str]:
        """Lists what is there, once; gives the names of the projects that may be ours."""
        projects = [self.where.project] if self.where.project else self.there.projects()
        self.there.load(projects)
        return projects

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        """Makes the projects, and in each the run that tells of its experiment. Raises Conflict."""
        losses = self._settle(experiments)
        sending = replace(self.sending, losses=[])
        sending.deliver(experiment_sheets(experiments, self.homes))
        return [*losses, *sending.losses]

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:  # noqa: ARG002
        """What meets others of its name here. Records meet none: they lie in artifacts of their own."""
        return self._settle(experiments)

    def _settle(self, experiments: Sequence[Experiment]) -> list[Loss]:
        """Under which names the projects go; one project for all was named by a person, and is taken as it is."""
        if self.where.project:
            return []
        wanted = [(_origin(one), names.project(one.name)) for one in experiments]
        there, known = self._load(), self._known()
        settled = owners.settle(wanted, known, there, self.settings.on_conflict)
        self.homes.settled |= settled
        return owners.losses(wanted, known, there, settled)

    def _known(self) -> dict[str, str]:
        """Origin of each experiment that came here before -> its project."""
        told = ((run, run.ours) for run in self.there.all())
        return {
            ours.origin.removeprefix("experiment:"): run.project
            for run, ours in told
            if ours is not None and ours.kind == "experiment"
        }

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[WandbPlace]:  # noqa: ARG002
        """A pack; leaving it early leaves runs without a stamp, which a second try completes."""
        start = min((ref.start for ref in refs if ref.start is not None), default=0)
        with TemporaryDirectory(prefix="mlmigrate-wandb-") as folder, self.sending.pack(start) as sending:
            yield WandbPlace(sending, Path(folder), refs, self.homes, self._options)

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:  # noqa: ARG002
        """Says which artifacts were read by who came before them, and which are the latest; drops older generations."""
        sending = self.sending
        return [*sending.debts.settle(), *sending.generations.settle()]

    def names(self, ids: Mapping[str, str]) -> Names:
        """Runs are called as they were, but for those whose id W&B did not take."""
        changed = {id_: here for id_, here in ids.items() if id_ != here}
        return RunNames(changed) if changed else SameNames()

    def close(self) -> None:
        """Gives the connections back."""
        self.client.close()


class RunNames(SameNames):
    """Names where some runs have another id here: their children say so."""

    def __init__(self, ids: Mapping[str, str]) -> None:
        self._ids = ids

    def run(self, run: Run) -> Run:
        """The run, its parent called as it is here."""
        parent = run.tags.get(PARENT_TAG)
        if parent is None or parent not in self._ids:
            return run
        return replace(run, tags={**run.tags, PARENT_TAG: self._ids[parent]})


def _origin(experiment: Experiment) -> str:
    return experiment.origin or experiment.id
