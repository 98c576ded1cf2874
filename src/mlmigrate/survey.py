"""The two places opened, and what there is to do between them: what plan, transfer and verify begin with."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from uuid import uuid4

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Settings, Source, Target
from mlmigrate.address import Address, in_store
from mlmigrate.events import Progress, Silent
from mlmigrate.fit import fit_experiment
from mlmigrate.mapping import Mapping as Rules
from mlmigrate.model import UNKNOWN_STAMP, Arrival, Experiment, Loss, Record, RunRef
from mlmigrate.pack import Contents, Recipe, full_stamp
from mlmigrate.passing import Passing
from mlmigrate.selection import Selection
from mlmigrate.steps import Steps
from mlmigrate.storage.throttle import UNLIMITED


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker, here or elsewhere, must know to carry a pack; picklable."""

    source: Address
    target: Address
    selection: Selection = field(default_factory=Selection)
    mapping: Rules = field(default_factory=Rules)
    source_settings: Settings = field(default_factory=Settings)
    target_settings: Settings = field(default_factory=Settings)
    tries: int = 3
    key: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True, slots=True)
class Places:
    """Source and target of a job, open, with what calls again while they are away."""

    source: Source
    target: Target
    recipe: Recipe
    steps: Steps
    progress: Progress
    job: Job

    def passing(self) -> Passing:
        """What tells of a pack on its way, and holds it to the limits."""
        return passing(self.job, self.progress, self.steps)


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to do. `todo` and `already` hold refs whose stamps are those the target shall keep.

    experiments  as the target shall hold them, by their id in the source
    """

    experiments: Mapping[str, Experiment]
    todo: Sequence[RunRef]
    already: Sequence[RunRef]
    arrived: Mapping[str, Arrival]
    losses: tuple[Loss, ...]


REGISTRY = "@registry"  # the id of the ref of registered models
_open: dict[str, Places] = {}
_opening = threading.Lock()


@contextmanager
def opened(job: Job, progress: Progress, stop: threading.Event | None = None) -> Iterator[Places]:
    """The places of a job, shared by all threads of this process until the block is left."""
    places = _opened(job, progress, stop or threading.Event())
    _open[job.key] = places
    try:
        yield places
    finally:
        del _open[job.key]
        with ExitStack() as closing:
            closing.callback(places.source.close)
            closing.callback(places.target.close)


def places_of(job: Job) -> Places:
    """The job's places in this process: those that are open, or, in a worker elsewhere, opened now and kept."""
    with _opening:
        if job.key not in _open:
            places = _opened(job, Silent(), threading.Event())
            places.target.prepare(list(wanted_experiments(places.source, places.recipe, places.steps)[0].values()))
            _open[job.key] = places
        return _open[job.key]


def _opened(job: Job, progress: Progress, stop: threading.Event) -> Places:
    steps = Steps(job.tries, progress.waiting, stop)
    source = registry.open_source(job.source, Context("source", steps, job.source_settings))
    target = registry.open_target(job.target, Context("target", steps, job.target_settings))
    return Places(source, target, Recipe(job.selection, job.mapping, target.limits), steps, progress, job)


def passing(job: Job, progress: Progress, steps: Steps) -> Passing:
    """What tells of a pack of this job. Bytes that go over a network are held to the limits there, not here."""
    far = job.source.far or job.target.far or in_store(job.target_settings.artifacts_to)
    return Passing(progress, UNLIMITED if far else Context("source", steps, job.source_settings).throttle)


def survey(places: Places) -> Survey:
    """Looks at both places."""
    experiments, losses = wanted_experiments(places.source, places.recipe, places.steps)
    arrived = places.steps.do("what has arrived", places.target.arrived)
    todo: list[RunRef] = []
    already: list[RunRef] = []
    for ref in wanted_refs(places.source, places.recipe, places.steps, experiments):
        there = arrived.get(ref.origin)
        (already if there is not None and there.stamp == ref.stamp != UNKNOWN_STAMP else todo).append(ref)
    return Survey(experiments, todo, already, arrived, tuple(losses))


def named_records(places: Places, refs: Sequence[RunRef]) -> list[Record]:
    """The records that a target finds by their names, and so may meet others of the same."""
    found: list[Record] = []
    for ref in refs:
        if ref.id == REGISTRY:
            with places.source.read([ref]) as reading:
                found += Contents(reading, places.recipe).records()
    return found


def wanted_experiments(source: Source, recipe: Recipe, steps: Steps) -> tuple[dict[str, Experiment], list[Loss]]:
    """The experiments asked for, mapped and fitted, by their id in the source."""
    wanted, losses = {}, []
    for experiment in steps.do("experiments", source.experiments):
        if not recipe.selection.wants_experiment(experiment):
            continue
        losses += recipe.mapping.experiment_losses(experiment)
        mapped = recipe.mapping.experiment(experiment)
        if mapped is None:
            continue
        named = replace(mapped, origin=origin_of(experiment))
        wanted[experiment.id], lost = fit_experiment(named, recipe.limits)
        losses += lost
    return wanted, losses


def origin_of(experiment: Experiment) -> str:
    """What names an experiment the same wherever it is found again, whatever rules gave it another name."""
    return f"{experiment.id}@{experiment.created if experiment.created is not None else experiment.name}"


def wanted_refs(
    source: Source, recipe: Recipe, steps: Steps, experiments: Mapping[str, Experiment]
) -> Iterator[RunRef]:
    """The runs asked for, with the stamps that the target shall keep."""
    text = recipe.text
    for ref in steps.do("runs", lambda: list(source.refs())):
        known = ref.experiment in experiments or (ref.kind == "records" and not ref.experiment)
        if known and recipe.selection.wants(ref):
            stamp = full_stamp(ref.stamp, text) if ref.stamp else UNKNOWN_STAMP
            yield ref if stamp == ref.stamp else replace(ref, stamp=stamp)
