"""A W&B server as a source: an entity's projects, or one of them.

listing   pages of runs with config and summary; the catalogue keeps what refs need
read      a pack's runs are listed once more, together, and looked at many at a time (opened.py)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from mlmigrate.adapters.base import Context, Packing
from mlmigrate.adapters.wandb.address import spot
from mlmigrate.adapters.wandb.api import listing
from mlmigrate.adapters.wandb.api.client import Client, connect
from mlmigrate.adapters.wandb.api.opened import OnlineRun, open_run
from mlmigrate.adapters.wandb.api.told import Listed
from mlmigrate.adapters.wandb.api.versions import files_of
from mlmigrate.adapters.wandb.catalogue import Catalogue, Path, Project, Where, stamp_of
from mlmigrate.adapters.wandb.options import Options, options
from mlmigrate.adapters.wandb.provenance import MODEL_TYPE
from mlmigrate.adapters.wandb.reading import WandbReading
from mlmigrate.adapters.wandb.shape import Opened, Version
from mlmigrate.address import Address
from mlmigrate.errors import MigrateError, NotFound, Refused, Unavailable
from mlmigrate.model import Experiment, Loss, RunRef

AHEAD = 16  # runs that are looked at at once
LISTERS = 8  # projects that are listed at once
RUNS = 50  # in a pack
Json = Mapping[str, Any]
Thing = TypeVar("Thing")


def open_source(address: Address, context: Context) -> ApiSource:
    """The projects that `address` names. Raises Refused for a wrong key, NotFound when nothing is there."""
    where = spot(address.place, context.env)
    chosen = options(context.settings)
    client = connect(where.base_url, context)
    try:
        entity = listing.entity_of(client, where)
        one = where.project
        losses: list[Loss] = []
        found = [listing.project(client, entity, one)] if one else listing.projects(client, entity, losses)
    except BaseException:
        client.close()
        raise
    return ApiSource(client, found, chosen, losses)


class ApiSource:
    """Some projects of a server. They are listed when it is first asked what there is."""

    packing = Packing(runs=RUNS)

    def __init__(self, client: Client, projects: Sequence[Project], chosen: Options, losses: list[Loss]) -> None:
        self._client, self._projects, self._options = client, projects, chosen
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._sweeps: dict[tuple[Path, str], Json] = {}
        self._nodes: dict[tuple[Path, str, str], Json] = {}  # of loose versions
        self._losses = losses

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    def experiments(self) -> Sequence[Experiment]:
        """A project is one, and so is each experiment that we wrote."""
        return self._seen().experiments()

    def refs(self) -> Sequence[RunRef]:
        """All runs, and what belongs to none."""
        return self._seen().refs()

    def oddities(self) -> Sequence[Loss]:
        """What is strange about the place, and what this server does not tell."""
        return [*self._seen().oddities(), *self._losses]

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[WandbReading]:
        """Opens these runs, many at a time."""
        with (
            Pack(self._client, self._seen(), refs, self._sweeps) as pack,
            WandbReading(refs, pack.open, self._options) as reading,
        ):
            yield reading

    def _seen(self) -> Catalogue:
        with self._lock:
            if self._catalogue is None:
                self._catalogue = self._look()
            return self._catalogue

    def _look(self) -> Catalogue:
        catalogue = Catalogue(self._options, self._filled, self._models)
        for project in self._projects:
            catalogue.project(project)
        lock = threading.Lock()
        with ThreadPoolExecutor(LISTERS) as pool:
            asked = [
                pool.submit(look, catalogue, project, lock)
                for project in self._projects
                for look in (self._list, self._list_sweeps, self._list_reports, self._list_loose)
            ]
            for one in asked:
                one.result()
        return catalogue

    def _list(self, catalogue: Catalogue, project: Project, lock: threading.Lock) -> None:
        """A project's pages come one after another, those of several projects side by side."""
        for one in listing.list_runs(self._client, project.entity, project.name, self._losses):
            points = (one.run.lines or 0) * max(one.keys, 1)
            with lock:
                catalogue.add(one.run, stamp(one), points)

    def _list_sweeps(self, catalogue: Catalogue, project: Project, lock: threading.Lock) -> None:
        found = self._of(listing.sweeps, project, "sweeps")
        with lock:
            for sweep in found:
                catalogue.sweep(sweep)
                self._sweeps[Path(project.entity, project.name), sweep.id] = sweep.config

    def _list_reports(self, catalogue: Catalogue, project: Project, lock: threading.Lock) -> None:
        found = self._of(listing.reports, project, "reports")
        with lock:
            for report in found:
                catalogue.report(report)

    def _list_loose(self, catalogue: Catalogue, project: Project, lock: threading.Lock) -> None:
        """Versions that no run made."""
        path = Path(project.entity, project.name)
        found = self._of(listing.loose, project, "artifacts that no run made")
        with lock:
            for version, node in found:
                catalogue.loose(version)
                self._nodes[path, version.name, version.version] = node

    def _of(
        self, look: Callable[[Client, str, str, list[Loss]], list[Thing]], project: Project, what: str
    ) -> list[Thing]:
        """What else there is in a project; where the server does not tell it, the runs are copied all the same."""
        try:
            return look(self._client, project.entity, project.name, self._losses)
        except Unavailable:
            raise
        except MigrateError as error:
            self._losses.append(
                Loss("", f"{what} of {project.name}", f"this server does not tell them: {error.message}")
            )
            return []

    def _filled(self, version: Version) -> Version:
        """A loose version with its files."""
        node = self._nodes.get((Path(version.entity, version.project), version.name, version.version))
        if node is None:
            return version
        return replace(version, files=files_of(self._client, node, "", self._losses))

    def _models(self) -> list[Version]:
        """All versions of type model."""
        return [
            version
            for project in self._projects
            for version, _ in listing.versions(self._client, project.entity, project.name, self._losses, MODEL_TYPE)
        ]


def stamp(one: Listed) -> str:
    """Changes when the run does, as far as a list of runs tells it."""
    run = one.run
    told = (run.state, run.name, run.notes, run.tags, run.group, run.job_type, run.sweep, run.lines)
    return stamp_of(one.beat, *told, run.config, run.internal, run.summary)


@dataclass
class Pack:
    """Some runs being opened: each project's are listed at once, then looked at, up to AHEAD of them ahead."""

    client: Client
    catalogue: Catalogue
    refs: Sequence[RunRef]
    sweeps: Mapping[tuple[Path, str], Json]
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(AHEAD))
    _lists: dict[Path, Future[dict[str, Listed]]] = field(default_factory=dict)
    _coming: dict[str, Future[OnlineRun | None]] = field(default_factory=dict)
    _opened: dict[str, OnlineRun] = field(default_factory=dict)
    _next: int = 0

    def __enter__(self) -> Self:
        by_path: dict[Path, list[str]] = {}
        for ref in self.refs:
            where = self.catalogue.find(ref)
            if where is not None:
                by_path.setdefault(Path(where.entity, where.project), []).append(where.id)
        self._lists = {path: self._pool.submit(self._list, path, ids) for path, ids in by_path.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def open(self, ref: RunRef) -> Opened | None:
        """The run; None where it is gone. A second time it gives the same, whose streams may be taken again."""
        if ref.origin in self._opened:
            return self._opened[ref.origin]
        where = self.catalogue.find(ref)
        if where is None:
            return self.catalogue.opened(ref)
        self._go_on(ref)
        coming = self._coming.pop(ref.origin, None)
        found = coming.result() if coming is not None else self._look(where)
        if found is not None:
            self._opened[ref.origin] = found
        return found

    def _go_on(self, ref: RunRef) -> None:
        """Begins with the runs that come next."""
        while self._next < len(self.refs) and len(self._coming) < AHEAD:
            coming = self.refs[self._next]
            self._next += 1
            where = self.catalogue.find(coming)
            if where is not None and (coming is ref or coming.origin not in self._opened):
                self._coming[coming.origin] = self._pool.submit(self._look, where)

    def _list(self, path: Path, ids: Sequence[str]) -> dict[str, Listed]:
        """Runs of one project by id; those that are missing are asked for singly."""
        try:
            return {one.run.id: one for one in listing.list_runs(self.client, *path, [], ids)}
        except (Refused, Unavailable):
            raise
        except MigrateError:  # a server that has no such filter
            return {}

    def _look(self, where: Where) -> OnlineRun | None:
        path = Path(where.entity, where.project)
        listed = self._lists[path].result().get(where.id) if path in self._lists else None
        listed = listed or listing.run(self.client, *path, where.id)
        if listed is None:
            return None
        try:
            return open_run(self.client, listed, self.sweeps.get((path, listed.run.sweep)))
        except NotFound:  # deleted a moment ago
            return None
