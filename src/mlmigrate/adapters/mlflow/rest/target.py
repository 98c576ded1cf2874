"""An MLflow server written: experiments by name, runs by the address they came from.

A run is made in steps, each of which may be made again and then changes nothing:

    create    with the tag mlmigrate.origin; looked for first, and again after a doubtful answer
    log       params, tags, points (the server's database holds no point twice), inputs, files
    update    status and end, which creating cannot set
    stamp     the tag mlmigrate.stamp, last: only now is the run there
    delete    if it was deleted where it came from (mlmigrate.deleted says so all along)

What names things that are not there yet waits in a helper tag (mlmigrate.waits) until `finish`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from mlmigrate.adapters.base import Context, Names, Packing, Settings
from mlmigrate.adapters.mlflow.direct import Stores
from mlmigrate.adapters.mlflow.rest.auth import login
from mlmigrate.adapters.mlflow.rest.client import Client, timeout_of
from mlmigrate.adapters.mlflow.rest.here import ServerNames, Version, load
from mlmigrate.adapters.mlflow.rest.homes import Homes, issue_ids, marks, origins_of
from mlmigrate.adapters.mlflow.rest.objects import Known
from mlmigrate.adapters.mlflow.rest.place import WRITERS, RestPlace
from mlmigrate.adapters.mlflow.rest.registry import foreseen
from mlmigrate.adapters.mlflow.rest.server import Server, probe
from mlmigrate.adapters.mlflow.rest.source import EXPERIMENTS_PER_SEARCH, run_pages
from mlmigrate.adapters.mlflow.rest.there import AllNames, There
from mlmigrate.adapters.mlflow.rest.there import load as load_traces
from mlmigrate.adapters.mlflow.rest.waiting import Waiting
from mlmigrate.adapters.mlflow.rest.wire import WireRun
from mlmigrate.adapters.mlflow.rest.writing import WAITS_TAG, Writing, is_whole
from mlmigrate.address import Address
from mlmigrate.model import ORIGIN_TAG, STAMP_TAG, Arrival, Experiment, Loss, Record, RunRef


def open_target(address: Address, context: Context) -> RestTarget:
    """The server at `address`, for writing; nothing is written yet. Raises NotFound, Refused, Unavailable."""
    client = Client(login(address.place, context.env), context.again, timeout_of(context.env))
    client.stores = Stores.of(context)
    try:
        return RestTarget(client, probe(client), context.settings)
    except BaseException:
        client.close()
        raise


class RestTarget:
    """A server. `pack` may be called from several threads at once."""

    packing = Packing(runs=200, points=500_000, size=256 << 20)

    def __init__(self, client: Client, server: Server, settings: Settings) -> None:
        self.limits = server.limits
        self.server, self.settings = server, settings
        self._client = client
        self._writing = Writing(client)
        self.homes = Homes(client, settings.on_conflict)
        self.known = Known()
        self.origins: dict[str, str] = {}  # origin -> id here, of runs whole or not
        self.turns: dict[str, threading.Lock] = {}
        self._loading = threading.Lock()
        self._loaded: dict[str, Version] | None = None
        self._runs_known = False

    def arrived(self) -> Mapping[str, Arrival]:
        """The runs that bear a stamp, and are deleted if they should be; refs of objects that were marked."""
        infos = self.homes.look()
        found: dict[str, Arrival] = {}
        for run in self._having([info.experiment_id for info in infos], STAMP_TAG):
            tags = run.tags
            if ORIGIN_TAG in tags and is_whole(run):
                found.setdefault(tags[ORIGIN_TAG], Arrival(run.id, tags[STAMP_TAG]))
                self.origins.setdefault(tags[ORIGIN_TAG], run.id)
                self.known.note("run", _source_id(tags[ORIGIN_TAG]), run.id, run.info.artifact_uri)
        self._runs_known = True
        return found | marks(infos)

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        """Makes the experiments that are not there, and sets the tags of all. Raises Conflict."""
        losses = self.homes.prepare(experiments)
        for id_, here in self.homes.ids.items():
            self.known.note("experiment", id_, here)
        return losses

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[RestPlace]:  # noqa: ARG002
        """A pack; leaving it early leaves runs without a stamp, which a second try completes."""
        if any(ref.kind == "records" for ref in refs):
            self._load()
        if any(ref.id.startswith("@traces") for ref in refs):
            self._refer([])  # while no trace is there: deleting a run again takes assessments with it
        with ThreadPoolExecutor(WRITERS, "mlflow-write") as pool:
            place = RestPlace(self, self._writing, pool, refs)
            try:
                yield place
            finally:  # a second try must not meet calls of this one
                pool.shutdown(wait=False, cancel_futures=True)
                place.close()
                pool.shutdown()

    def _load(self) -> dict[str, Version]:
        """What of ours is here, once: packs of objects come one after another, and note what they make."""
        with self._loading:
            if self._loaded is None:
                if not self._runs_known:
                    self.arrived()
                infos = self.homes.look()
                self.known.ids.setdefault("issue", {}).update(issue_ids(infos))
                experiments = [info.experiment_id for info in infos]
                self._loaded = load(self._client, self.server, experiments, self.known)
            return self._loaded

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:
        """What waited for others, then the experiments that are deleted where they came from."""
        for origin, id_ in ids.items():
            self.known.note("run", _source_id(origin), id_)
        losses: list[Loss] = []
        self._refer(losses, experiments)
        self.homes.finish(experiments)
        return losses

    def _refer(self, losses: list[Loss], experiments: Sequence[Experiment] | None = None) -> None:
        """Sets right what was waiting in runs for what is there now."""
        wanted = self.homes.ids if experiments is None else {one.id: self.homes.ids[one.id] for one in experiments}
        sources = {here: id_ for id_, here in wanted.items()}
        found = list(self._having(list(sources), WAITS_TAG))
        if found:
            self._load()
        waiting = Waiting(self._writing, self.known, self.settings.allow_artifacts, sources)
        for run in found:
            if waiting.wants(run):
                self._settle(waiting, run)
        losses += waiting.losses

    def _settle(self, waiting: Waiting, run: WireRun) -> None:
        """A deleted run takes no tags, so it is restored for a moment."""
        self.homes.restore(run.info.experiment_id)
        deleted = run.info.lifecycle_stage == "deleted"
        # restoring an experiment has restored its runs
        if deleted and self._writing.get(run.id).info.lifecycle_stage == "deleted":
            self._writing.restore(run.id)
        waiting.settle(run)
        if deleted:
            self._writing.delete(run.id)

    def _having(self, experiments: Sequence[str], tag: str) -> Iterator[WireRun]:
        """The runs that bear a tag."""
        for start in range(0, len(experiments), EXPERIMENTS_PER_SEARCH):
            some = experiments[start : start + EXPERIMENTS_PER_SEARCH]
            for runs in run_pages(self._client, some, f"tags.`{tag}` != ''"):
                yield from runs

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:
        """What meets others of its name here, and what comes of it. Raises Conflict when that is to fail."""
        told = self.homes.foresee(experiments)
        return [*told, *foreseen(self._client, self.server, records, self.settings.on_conflict)]

    def names(self, ids: Mapping[str, str]) -> Names:
        """What the source's things are called here."""
        for id_, here in ids.items():
            self.known.note("run", id_, here)
        lost = self._load()
        experiments = {}
        for info in self.homes.look():
            for origin in origins_of(info):
                self.known.note("experiment", origin.partition("@")[0], info.experiment_id)
                experiments[origin.partition("@")[0]] = info.name
        load_traces(self._client, self.server, list(self.known.ids["experiment"].values()), self.known)
        return AllNames(ServerNames(self.known, lost), There(self._client, self.server), experiments)

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()


def _source_id(origin: str) -> str:
    return origin.rpartition(":")[2]
