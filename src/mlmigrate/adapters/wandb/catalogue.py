"""What there is in a place of W&B's, as experiments and refs: both sources fill one and ask it.

    catalogue = Catalogue(options)
    catalogue.project(Project(...)), .add(run, stamp), .sweep(Sweep(...)), .report(Report(...)), .loose(version)
    catalogue.experiments(), catalogue.refs(), catalogue.oddities()
    catalogue.find(ref)      where the run lies that a ref names, also where its id had to become another
    catalogue.opened(ref)    what is no run of W&B's: a sweep, a group, loose artifacts, reports, the registry

It keeps some 800 bytes of a run, never its config.

    a project                    an experiment; the home of runs that are W&B's own
    a run of kind "experiment"   an experiment as it was in its source; the home of runs that we wrote for it
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from mlmigrate.adapters.mlflow.objects import GROUPS
from mlmigrate.adapters.wandb import natives, registered, restored
from mlmigrate.adapters.wandb.clients import Named
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.provenance import KEY, MADE, MODEL_TYPE, Provenance
from mlmigrate.adapters.wandb.shape import Block, Version, WandbRun
from mlmigrate.model import PARENT_TAG, Experiment, Loss, Record, RunRef

REGISTRY, SWEEPS, REPORTS = "@registry", "@sweeps", "@reports"
SWEEP_KIND, REPORT_KIND = "wandb.sweep", "wandb.report"
_DEEP = 50  # generations of parents: more are a circle


class Path(NamedTuple):
    """A project's place."""

    entity: str
    project: str


class Where(NamedTuple):
    """A run's place in W&B."""

    entity: str
    project: str
    id: str


@dataclass(frozen=True, slots=True)
class Project:
    """A project; `created` in ms since the epoch."""

    entity: str
    name: str
    created: int | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep. `body` is all that W&B tells of it; times in ms since the epoch."""

    id: str
    entity: str
    project: str
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    user: str = ""
    created: int | None = None
    ended: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """A report (what W&B's API calls a view). `body` is all that W&B tells of it."""

    id: str
    entity: str
    project: str
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Told:
    """Opened, of what has neither rows nor a run of W&B's behind it; `told` holds the records of a ref of records."""

    run: WandbRun
    losses: list[Loss] = field(default_factory=list)
    told: Sequence[Record] = ()

    def history(self) -> Iterator[Block]:
        return iter(())

    def events(self) -> Iterator[Block]:
        return iter(())

    def called(self, named: Named) -> tuple[Version, ...]:  # noqa: ARG002  it has no rows that could name any
        return self.run.logged


@dataclass(frozen=True, slots=True)
class _Entry:
    """A run that was listed.

    own     it is W&B's own
    home    of one that we wrote: the experiment in its source, (id, name)
    source  its id there, as its children's tags name it
    """

    ref: RunRef
    where: Where
    group: str = ""
    sweep: str = ""
    parent: str = ""
    source: str = ""
    own: bool = True
    home: tuple[str, str] | None = None
    generation: int = 1

    @property
    def path(self) -> Path:
        return Path(self.where.entity, self.where.project)


@dataclass(frozen=True, slots=True)
class _Made:
    """A ref that we make of something, and what opens it."""

    ref: RunRef
    opened: Callable[[], Told]


def stamp_of(*parts: object) -> str:
    """32 hex digits that change when one of the parts does: texts, numbers, bytes, or JSON of them."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else _text(part).encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


def ref_of(run: WandbRun, stamp: str, points: int, size: int, experiment: str) -> RunRef | None:
    """The ref of a run as a listing tells of it; None where it is no run: an experiment's, or one half written.

    `stamp` is what the source can tell changes by; `experiment` the id of the experiment.
    """
    told = restored.provenance_of(run)
    if told is None:
        start, _ = natives.times_of(run)
        status = natives.STATUSES.get(run.state, "FINISHED")
        origin = natives.origin_of(run)
        return RunRef(experiment, run.id, run.name, origin, stamp, status, start, False, points, size)
    if told.kind == "experiment" or not told.stamp:
        return None
    if told.kind == "records":
        home = experiment if told.experiment_id else ""
        return RunRef(home, told.id, told.id, told.origin, stamp, points=points, size=size, kind="records")
    name = run.name if told.name is None else told.name
    return RunRef(experiment, run.id, name, told.origin, stamp, told.status, told.start, told.deleted, points, size)


def _turn(ref: RunRef) -> tuple[bool, int, str, int, str]:
    """Runs stay as they are; records go in the order of MLflow's own, models before the registry that names them."""
    if ref.kind != "records":
        return False, 0, "", 0, ""
    group = ref.id[1:].partition("/")[0]
    return True, GROUPS.index(group) if group in GROUPS else len(GROUPS), group, len(ref.id), ref.id


def same(version: Version) -> Version:
    """A version that has its files already."""
    return version


class Catalogue:
    """Gathers what a listing finds.

    fill    a version that was told without its files, with them
    models  all versions of type model, their files not told; asked for with options.models alone
    """

    def __init__(
        self,
        options: Options,
        fill: Callable[[Version], Version] = same,
        models: Callable[[], Iterable[Version]] | None = None,
    ) -> None:
        self._options, self._fill = options, fill
        self._models = models or self._known_models
        self._projects: dict[Path, Project] = {}
        self._entries: dict[str, _Entry] = {}  # by origin
        self._estates: dict[tuple[Path, str, str], Experiment] = {}  # by place, id and name in the source
        self._sweeps: dict[tuple[Path, str], Sweep] = {}
        self._reports: dict[Path, list[Report]] = {}
        self._loose: dict[Path, list[Version]] = {}
        self._logged: list[Version] = []
        self._odd: list[Loss] = []
        self._made: dict[str, _Made] | None = None  # by origin
        self._homes: _Homes | None = None

    def project(self, project: Project) -> None:
        """Takes note of a project."""
        self._fresh()
        self._projects[Path(project.entity, project.name)] = project

    def add(self, run: WandbRun, stamp: str, points: int = 0, size: int = 0) -> None:
        """Takes note of a run; its config must be told, its files need not."""
        self._fresh()
        told = restored.provenance_of(run)
        path = Path(run.entity, run.project)
        self._projects.setdefault(path, Project(*path))
        if told is not None and told.kind == "experiment":
            self._estate(path, told)
            return
        ref = ref_of(run, stamp, points, size, natives.experiment_id(*path))
        if ref is None:
            self._odd.append(Loss(run.id, "the run", "a copy into W&B stopped before it was whole: not read"))
            return
        self._odd += restored.unreadable(run)
        if self._options.models and told is None:
            self._logged += [replace(one, files=()) for one in run.logged if one.type == MODEL_TYPE]
        self._enter(_entry(run, ref, told))

    def sweep(self, sweep: Sweep) -> None:
        """Takes note of a sweep."""
        self._fresh()
        self._sweeps[Path(sweep.entity, sweep.project), sweep.id] = sweep

    def report(self, report: Report) -> None:
        """Takes note of a report."""
        self._fresh()
        self._reports.setdefault(Path(report.entity, report.project), []).append(report)

    def loose(self, version: Version) -> None:
        """Takes note of a version that no run logged, unless it is ours; its files need not be told (see `fill`)."""
        self._fresh()
        if version.metadata.get(KEY) == MADE:
            return
        self._loose.setdefault(Path(version.entity, version.project), []).append(version)

    def experiments(self) -> list[Experiment]:
        """All experiments, those of projects first."""
        return self._found_homes().all()

    def refs(self) -> list[RunRef]:
        """All runs, parents first; then what belongs to no run, what others refer to first."""
        made = [one.ref for one in self._all_made().values()]
        runs = [self._placed(entry) for entry in self._parents_first()]
        both = [*(ref for ref in made if ref.kind == "run"), *runs, *(ref for ref in made if ref.kind == "records")]
        return sorted(both, key=_turn)

    def find(self, ref: RunRef) -> Where | None:
        """Where the run lies that a ref of this catalogue names; None for what is no run, or is not there."""
        entry = self._entries.get(ref.origin)
        return entry.where if entry is not None else None

    def opened(self, ref: RunRef) -> Told | None:
        """What a ref names that we made of something else; None for a run of W&B's."""
        made = self._all_made().get(ref.origin)
        return made.opened() if made is not None else None

    def oddities(self) -> list[Loss]:
        """What is strange about the place."""
        return list(self._odd)

    def _fresh(self) -> None:
        self._made = self._homes = None

    def _estate(self, path: Path, told: Provenance) -> None:
        experiment = restored.experiment_of(told)
        if experiment is not None:
            self._estates[path, experiment.id, experiment.name] = experiment

    def _enter(self, entry: _Entry) -> None:
        """One run an origin: of several generations the last."""
        there = self._entries.get(entry.ref.origin)
        if there is not None and there.where != entry.where:
            because = f"{there.where.id} and {entry.where.id} are copies of one run: the later one is read"
            self._odd.append(Loss(entry.where.id, "the run", because))
        if there is None or there.generation <= entry.generation:
            self._entries[entry.ref.origin] = entry

    def _found_homes(self) -> _Homes:
        if self._homes is None:
            self._homes = _Homes(self._projects, self._estates, self._entries.values(), self._in_use())
        return self._homes

    def _in_use(self) -> set[Path]:
        """Projects that hold something of W&B's own."""
        own = {entry.path for entry in self._entries.values() if entry.own}
        return own | {path for path, _ in self._sweeps} | set(self._reports) | set(self._loose)

    def _placed(self, entry: _Entry) -> RunRef:
        homes, ref = self._found_homes(), entry.ref
        home = homes.native(entry.path) if entry.home is None else homes.of(entry.path, entry.home)
        if ref.kind == "records":
            return replace(ref, experiment=home) if ref.experiment else ref
        return replace(ref, experiment=home, id=homes.id_of(entry))

    def _parents_first(self) -> list[_Entry]:
        parents = {entry.source: entry.parent for entry in self._entries.values()}

        def depth(entry: _Entry) -> int:
            n, parent = 0, entry.parent
            while parent in parents and n < _DEEP:
                n, parent = n + 1, parents[parent]
            return n

        return sorted(self._entries.values(), key=depth)

    def _all_made(self) -> dict[str, _Made]:
        if self._made is None:
            made = [*self._sweep_runs(), *self._group_runs(), *self._loose_runs(), *self._records(), *self._registry()]
            self._made = {one.ref.origin: one for one in made}
        return self._made

    def _sweep_runs(self) -> Iterator[_Made]:
        if self._options.sweeps != "runs":
            return
        starts = self._starts("sweep")
        unseen = {(path, id_): Sweep(id_, *path) for path, id_ in starts}
        for (path, id_), sweep in sorted((unseen | self._sweeps).items()):
            run = WandbRun(
                natives.sweep_run(id_),
                *path,
                name=sweep.name or id_,
                job_type="sweep",
                config=sweep.config,
                user=sweep.user,
                started=sweep.created if sweep.created is not None else starts.get((path, id_)),
                ended=sweep.ended,
            )
            yield self._run(run, stamp_of(sweep.config, sweep.body, sweep.ended))

    def _group_runs(self) -> Iterator[_Made]:
        if self._options.groups != "runs":
            return
        starts = self._starts("group")
        for path, group in sorted(starts):
            id_ = natives.group_run(*path, group)
            run = WandbRun(id_, *path, name=group, job_type="group", started=starts[path, group])
            yield self._run(run, stamp_of(group, run.started))

    def _loose_runs(self) -> Iterator[_Made]:
        for path, versions in sorted(self._loose.items()):
            light = WandbRun(_loose_run(path), *path, name="artifacts", job_type="artifacts")
            stamp = stamp_of(*((one.name, one.version, one.digest, sorted(one.aliases)) for one in versions))

            def opened(light: WandbRun = light, versions: Sequence[Version] = tuple(versions)) -> Told:
                return Told(replace(light, logged=tuple(map(self._fill, versions))))

            yield replace(self._run(light, stamp), opened=opened)

    def _records(self) -> Iterator[_Made]:
        for path, reports in sorted(self._reports.items()):
            found = [Record(REPORT_KIND, one.id, "", _text(one.body)) for one in reports]
            yield self._held(REPORTS, path, found)
        sweeps: dict[Path, list[Record]] = {}
        for (path, id_), sweep in sorted(self._sweeps.items()):
            body = _text(sweep.body or {"config": sweep.config})
            sweeps.setdefault(path, []).append(Record(SWEEP_KIND, id_, "", body))
        for path, found in sweeps.items():
            yield self._held(SWEEPS, path, found)

    def _registry(self) -> Iterator[_Made]:
        if not self._options.models:
            return
        loose = {(path, one.name, one.version) for path, versions in self._loose.items() for one in versions}
        found = list(registered.records(self._models(), lambda version: self._files_of(version, loose)))
        if found:
            place = "+".join(sorted({path.entity for path in self._projects}))
            yield self._made_of(RunRef("", REGISTRY, REGISTRY, f"wandb:{REGISTRY}:{place}"), found)

    def _held(self, group: str, path: Path, found: Sequence[Record]) -> _Made:
        experiment = self._found_homes().native(path)
        id_, origin = f"{group}/{experiment}", f"wandb:{group}/{natives.experiment_id(*path)}"
        return self._made_of(RunRef(experiment, id_, id_, origin), [replace(one, owner=experiment) for one in found])

    def _made_of(self, ref: RunRef, found: Sequence[Record]) -> _Made:
        stamp = stamp_of(*((one.kind, one.id, one.body) for one in found))
        told = tuple(found)
        return _Made(replace(ref, stamp=stamp, kind="records"), lambda: Told(WandbRun(ref.id), told=told))

    def _run(self, run: WandbRun, stamp: str) -> _Made:
        ref = ref_of(run, stamp, 0, 0, self._found_homes().native(Path(run.entity, run.project)))
        assert ref is not None  # noqa: S101  it has no provenance
        return _Made(ref, lambda: Told(run))

    def _starts(self, name: Literal["sweep", "group"]) -> dict[tuple[Path, str], int | None]:
        """Every sweep or group that a run names, and when its first run began."""
        found: dict[tuple[Path, str], int | None] = {}
        for entry in self._entries.values():
            if id_ := getattr(entry, name):
                before, start = found.get((entry.path, id_)), entry.ref.start
                both = [one for one in (before, start) if one is not None]
                found[entry.path, id_] = min(both, default=None)
        return found

    def _files_of(self, version: Version, loose: set[tuple[Path, str, str]]) -> str:
        """The id of the run that holds a version's files; "" for one that we wrote: its registry came with it."""
        path = Path(version.entity, version.project)
        if not version.run:
            return _loose_run(path) if (path, version.name, version.version) in loose else ""
        entry = self._entries.get(natives.origin_of(WandbRun(version.run, *path)))
        return self._found_homes().id_of(entry) if entry is not None else ""

    def _known_models(self) -> Iterable[Version]:
        loose = (one for versions in self._loose.values() for one in versions)
        return [*self._logged, *loose]


class _Homes:
    """The experiments, each with an id of its own, and the ids of runs."""

    def __init__(
        self,
        projects: Mapping[Path, Project],
        estates: Mapping[tuple[Path, str, str], Experiment],
        entries: Iterable[_Entry],
        in_use: set[Path],
    ) -> None:
        self._projects, self._names = projects, Counter(path.project for path in projects)
        self._estates = dict(estates)
        self._ids = Counter[str]()
        ours = {path for path, _, _ in estates}
        for entry in entries:
            ours |= set() if entry.own else {entry.path}
            self._ids[entry.where.id] += entry.ref.kind == "run"
            if entry.home is not None and self._key(entry.path, entry.home) is None:
                id_, name = entry.home
                self._estates[entry.path, id_, name] = Experiment(id_ or name, name or id_)
        self._own = {key[0]: key for key in sorted(self._estates) if key[2] == key[0].project}
        shown = in_use | (projects.keys() - ours)
        self._shown = sorted(path for path in shown if path in projects and path not in self._own)
        self._given = self._with_ids()

    def all(self) -> list[Experiment]:
        """All experiments."""
        own = [self._project(path) for path in self._shown]
        return own + [replace(one, id=self._given[key]) for key, one in sorted(self._estates.items())]

    def native(self, path: Path) -> str:
        """The id of the experiment of a project's own runs."""
        return self._given[self._own[path]] if path in self._own else natives.experiment_id(*path)

    def of(self, path: Path, home: tuple[str, str]) -> str:
        """The id of the experiment of a run that we wrote."""
        key = self._key(path, home)
        return self._given[key] if key is not None else self.native(path)

    def id_of(self, entry: _Entry) -> str:
        """The id of a run: W&B's, where no run of another project has the same."""
        id_ = entry.where.id
        return id_ if self._ids[id_] < 2 else f"{id_}-{natives.digest(*entry.where)}"  # noqa: PLR2004  two of them

    def _key(self, path: Path, home: tuple[str, str]) -> tuple[Path, str, str] | None:
        if (path, *home) in self._estates:
            return (path, *home)
        alike = [key for key in self._estates if key[0] == path and (key[1] == home[0] or key[2] == home[1])]
        return alike[0] if len(alike) == 1 else None

    def _with_ids(self) -> dict[tuple[Path, str, str], str]:
        taken = {natives.experiment_id(*path) for path in self._shown}
        given: dict[tuple[Path, str, str], str] = {}
        for key, experiment in sorted(self._estates.items()):
            id_ = experiment.id
            if id_ in taken:
                id_ = f"{id_}-{natives.digest(*key[0], experiment.name, experiment.created)}"
            taken.add(id_)
            given[key] = id_
        return given

    def _project(self, path: Path) -> Experiment:
        project, id_ = self._projects[path], natives.experiment_id(*path)
        name = (path.project or "uncategorized") if self._names[path.project] == 1 else id_
        told = {
            "mlflow.note.content": project.description,
            "wandb.entity": path.entity,
            "wandb.project": path.project,
        }
        return Experiment(id_, name, {key: text for key, text in told.items() if text}, project.created)


def _entry(run: WandbRun, ref: RunRef, told: Provenance | None) -> _Entry:
    where = Where(run.entity, run.project, run.id)
    if told is None:
        return _Entry(ref, where, run.group, run.sweep, source=run.id)
    home = (told.experiment_id, told.experiment) if told.experiment_id or told.experiment else None
    parent, source = told.tags.get(PARENT_TAG, ""), told.id or run.id
    return _Entry(ref, where, parent=parent, source=source, own=False, home=home, generation=told.generation)


def _loose_run(path: Path) -> str:
    return f"artifacts-{natives.digest(*path)}"


def _text(value: object) -> str:
    """JSON of anything that W&B tells, the same for the same."""
    return value if isinstance(value, str) else natives.json_text(natives.shallow(value)[0], in_order=True)
