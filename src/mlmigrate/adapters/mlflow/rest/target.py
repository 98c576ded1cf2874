"""An MLflow server written: experiments by name, runs by the address they came from.

A run is made in steps, each of which may be made again and then changes nothing:

    create    with the tag mlmigrate.origin; looked for first, and again after a doubtful answer
    log       params, tags, points (the server's database holds no point twice), inputs, files
    update    status and end, which creating cannot set
    stamp     the tag mlmigrate.stamp, last: only now is the run there
    delete    if it was deleted where it came from (mlmigrate.deleted says so all along)

References to runs that are not there yet wait in helper tags (mlmigrate.ref.*) until `finish`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from mlmigrate.adapters.base import Context, Names, Packing
from mlmigrate.adapters.mlflow.references import References
from mlmigrate.adapters.mlflow.rest.auth import login
from mlmigrate.adapters.mlflow.rest.client import Client, timeout_of
from mlmigrate.adapters.mlflow.rest.place import WRITERS, RestPlace
from mlmigrate.adapters.mlflow.rest.server import Server, probe
from mlmigrate.adapters.mlflow.rest.source import API, EXPERIMENTS_PER_SEARCH, all_experiments, run_pages
from mlmigrate.adapters.mlflow.rest.wire import Anything, ExperimentInfo, Made, Pair, WireRun
from mlmigrate.adapters.mlflow.rest.writing import REFERENCES, Writing, is_whole, pairs
from mlmigrate.address import Address
from mlmigrate.errors import Conflict, NotFound, UsageError
from mlmigrate.model import ORIGIN_TAG, STAMP_TAG, Arrival, Experiment, Loss, Record, RunRef


def open_target(address: Address, context: Context) -> RestTarget:
    """The server at `address`, for writing; nothing is written yet. Raises NotFound, Refused, Unavailable."""
    client = Client(login(address.place, context.env), context.again, timeout_of(context.env))
    try:
        return RestTarget(client, probe(client), context.settings.allow_artifacts)
    except BaseException:
        client.close()
        raise


class RestTarget:
    """A server. `pack` may be called from several threads at once."""

    packing = Packing(runs=200, points=500_000, size=256 << 20)

    def __init__(self, client: Client, server: Server, allow: tuple[str, ...]) -> None:
        self.limits = server.limits
        self._client, self._allow = client, allow
        self._writing = Writing(client)
        self._there: dict[str, ExperimentInfo] = {}  # by name
        self.known: dict[str, str] = {}  # origin -> id here, of runs whole or not
        self._prepared: dict[str, Experiment] = {}  # by the source's id
        self._restored: set[str] = set()
        self._lock = threading.Lock()

    def arrived(self) -> Mapping[str, Arrival]:
        """The runs that bear a stamp, and are deleted if they should be."""
        ids = [info.experiment_id for info in all_experiments(self._client)]
        found: dict[str, Arrival] = {}
        for run in self._having(ids, STAMP_TAG):
            tags = run.tags
            if ORIGIN_TAG in tags and is_whole(run):
                found.setdefault(tags[ORIGIN_TAG], Arrival(run.id, tags[STAMP_TAG]))
                self.known.setdefault(tags[ORIGIN_TAG], run.id)
        return found

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        """Makes the experiments that are not there, and sets the tags of all."""
        self._look()
        for experiment in experiments:
            there = self._there.get(experiment.name) or self._create(experiment)
            if there.lifecycle_stage == "deleted" and not experiment.deleted:
                raise Conflict(
                    f"Experiment {experiment.name!r} is deleted on {self._client.login.base}.",
                    "Restore it there, or give it another name with a mapping.",
                )
            self._prepared[experiment.id] = experiment
            if there.lifecycle_stage != "deleted":
                self._tag(experiment, there)
        return ()

    def _look(self) -> None:
        self._there = {info.name: info for info in all_experiments(self._client)}

    def _create(self, experiment: Experiment) -> ExperimentInfo:
        """Two of one name cannot be, so a doubtful answer is told by the next: it is there already."""
        body = {"name": experiment.name, "tags": pairs(experiment.tags)}
        try:
            made = self._client.post(f"{API}/experiments/create", Made, body)
        except Conflict:
            self._look()
            if experiment.name not in self._there:
                raise
            return self._there[experiment.name]
        info = ExperimentInfo(made.experiment_id, experiment.name, tags=[Pair(*tag) for tag in experiment.tags.items()])
        self._there[experiment.name] = info
        return info

    def _tag(self, experiment: Experiment, there: ExperimentInfo) -> None:
        has = {pair.key: pair.value for pair in there.tags}
        for key, value in experiment.tags.items():
            if has.get(key) != value:
                body = {"experiment_id": there.experiment_id, "key": key, "value": value}
                self._client.post(f"{API}/experiments/set-experiment-tag", Anything, body)

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[RestPlace]:  # noqa: ARG002
        """A pack; leaving it early leaves runs without a stamp, which a second try completes."""
        with ThreadPoolExecutor(WRITERS, "mlflow-write") as pool:
            try:
                yield RestPlace(self, self._writing, pool, refs, self._allow)
            finally:
                pool.shutdown(cancel_futures=True)  # a second try must not meet calls of this one

    def home(self, experiment: str) -> tuple[str, bool]:
        """The id here of an experiment of the source, which is made active, and whether that one is deleted."""
        given = self._prepared.get(experiment)
        if given is None:
            raise UsageError(f"Experiment {experiment!r} was not prepared.")
        there = self._there[given.name]
        if there.lifecycle_stage == "deleted":
            with self._lock:
                self._restore(there.experiment_id)
        return there.experiment_id, given.deleted

    def _restore(self, id: str) -> None:
        if id in self._restored:
            return
        with suppress(NotFound):  # another worker restored it a moment ago
            self._client.post(f"{API}/experiments/restore", Anything, {"experiment_id": id})
        self._restored.add(id)

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:
        """References between runs, then the experiments that are deleted where they came from."""
        self._look()
        there = [(one, self._there[one.name]) for one in experiments if one.name in self._there]
        losses = self._refer(there, ids)
        for experiment, info in there:
            if experiment.deleted and (info.lifecycle_stage != "deleted" or info.experiment_id in self._restored):
                self._delete(info.experiment_id)
        return losses

    def _delete(self, id: str) -> None:
        with suppress(NotFound):  # it is deleted already, by the call whose answer was lost
            self._client.post(f"{API}/experiments/delete", Anything, {"experiment_id": id})
        self._restored.discard(id)

    def _refer(self, there: Sequence[tuple[Experiment, ExperimentInfo]], ids: Mapping[str, str]) -> list[Loss]:
        """Sets the references that were waiting for their run."""
        losses = []
        sources = {info.experiment_id: one.id for one, info in there}
        deleted = {info.experiment_id for one, info in there if info.lifecycle_stage == "deleted"}
        for helper, tag in REFERENCES.items():
            for run in list(self._having(list(sources), helper)):
                origin = run.tags[helper]
                if origin in ids:
                    self._set(run, helper, tag, ids[origin], run.info.experiment_id in deleted)
                else:
                    named = run.tags.get(ORIGIN_TAG, "").rpartition(":")[2]
                    losses.append(_astray(named, tag, origin, sources.get(run.info.experiment_id, "")))
        return losses

    def _set(self, run: WireRun, helper: str, tag: str, id: str, experiment_deleted: bool) -> None:
        """A deleted run takes no tags, so it is restored for a moment."""
        if experiment_deleted:
            with self._lock:
                self._restore(run.info.experiment_id)
        deleted = run.info.lifecycle_stage == "deleted"
        if deleted:
            self._writing.restore(run.id)
        self._writing.set_tag(run.id, tag, id)
        self._writing.delete_tag(run.id, helper)
        if deleted:
            self._writing.delete(run.id)

    def _having(self, experiments: Sequence[str], tag: str) -> Iterator[WireRun]:
        """The runs that bear a tag."""
        for start in range(0, len(experiments), EXPERIMENTS_PER_SEARCH):
            some = experiments[start : start + EXPERIMENTS_PER_SEARCH]
            for runs in run_pages(self._client, some, f"tags.`{tag}` != ''"):
                yield from runs

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:  # noqa: ARG002
        """What meets others of its name here, and what comes of it. Raises Conflict when that is to fail."""
        return ()

    def names(self, ids: Mapping[str, str]) -> Names:
        """What the source's things are called here."""
        return References({"run": ids})

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()


def _astray(run: str, tag: str, origin: str, experiment: str) -> Loss:
    return Loss(run, f"tag {tag!r}", f"keeps naming a run that was not carried ({origin})", experiment)
