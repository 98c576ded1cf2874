"""An MLflow server read: experiments, runs, points, files.

Runs are listed by runs/search, which brings params, tags and the last point of each metric along; a
hash of all that is the run's stamp.  What is listed is not kept: a pack's runs are asked for again,
a hundred at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import msgspec
import pyarrow as pa

from mlmigrate.adapters.base import Context, Packing
from mlmigrate.adapters.mlflow.direct import Stores
from mlmigrate.adapters.mlflow.rest.artifacts import Shelf
from mlmigrate.adapters.mlflow.rest.auth import login
from mlmigrate.adapters.mlflow.rest.client import Client, timeout_of
from mlmigrate.adapters.mlflow.rest.histories import IN_FLIGHT, BulkRoute, Histories, Wanted, expected
from mlmigrate.adapters.mlflow.rest.records import Things
from mlmigrate.adapters.mlflow.rest.server import Server, probe
from mlmigrate.adapters.mlflow.rest.wire import (
    DatasetInput,
    ExperimentInfo,
    Experiments,
    OneRun,
    Pair,
    Runs,
    WireRun,
)
from mlmigrate.address import Address
from mlmigrate.errors import BadData, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.model import OURS, STATUSES, Artifact, Experiment, Loss, Record, Run, RunRef
from mlmigrate.model import DatasetInput as Input

API = "api/2.0/mlflow"
PAGE_BYTES = 8 << 20  # what a page of runs should come to
FIRST_PAGE = 100
LARGEST_PAGE = 1000
EXPERIMENTS_PER_SEARCH = 100
IDS_PER_SEARCH = 100
ORDER = ["attributes.start_time ASC", "attributes.run_id ASC"]
SURPLUS_TAG = OURS + "surplus"  # a run that lost answers made twice; it is deleted, and nobody's
BARREN = 1000  # pages in a row with nothing new
ALIVE = ("RUNNING", "SCHEDULED")


def open_source(address: Address, context: Context) -> RestSource:
    """The server at `address`, for reading. Raises NotFound, Refused, Unavailable."""
    client = Client(login(address.place, context.env), context.again, timeout_of(context.env))
    client.stores = Stores.of(context)
    try:
        return RestSource(client, probe(client), context.settings.allow_artifacts)
    except BaseException:
        client.close()
        raise


KEPT_VALUES = 50_000  # params, tags and metrics of runs that are kept from the listing: some 15 MB


class RestSource:
    """A server. `read` may be called from several threads at once."""

    packing = Packing(runs=200, points=500_000)

    def __init__(self, client: Client, server: Server, allow: tuple[str, ...]) -> None:
        self._client, self._server, self._allow = client, server, allow
        self._bulk = BulkRoute(client, works=not client.login.databricks)
        self._experiments: list[Experiment] | None = None
        self._oddities: list[Loss] = []
        self._things = Things(client, server, self._pages)
        self._kept: dict[str, WireRun] = {}
        self._room = 0

    def experiments(self) -> Sequence[Experiment]:
        """All experiments, oldest first."""
        if self._experiments is None:
            self._experiments = [_experiment(info) for info in all_experiments(self._client)]
        return self._experiments

    def refs(self) -> Iterator[RunRef]:
        """All runs, the oldest of each hundred experiments first, so that parents come before their children."""
        ids = [experiment.id for experiment in self.experiments()]
        self._kept, self._room = {}, KEPT_VALUES
        self._things = Things(self._client, self._server, self._pages)
        for start in range(0, len(ids), EXPERIMENTS_PER_SEARCH):
            for run in self._pages(ids[start : start + EXPERIMENTS_PER_SEARCH]):
                self._keep(run)
                self._things.note(run)
                yield _ref(run)
        self._oddities = []
        with ThreadPoolExecutor(IN_FLIGHT, "mlflow-list") as pool:
            gone = {experiment.id for experiment in self.experiments() if experiment.deleted}
            yield from self._things.refs(ids, gone, self._oddities, pool)

    def _keep(self, run: WireRun) -> None:
        """Spares the server a second look at a run that is over, as long as there are few."""
        self._room -= len(run.data.params) + len(run.data.tags) + len(run.data.metrics)
        if self._room > 0 and run.info.status not in ALIVE:
            self._kept[run.id] = run

    def _pages(self, experiments: Sequence[str]) -> Iterator[WireRun]:
        seen: set[str] = set()
        for runs in run_pages(self._client, experiments):
            for run in runs:
                # pages are offsets: a run that goes away meanwhile shifts them
                if run.id not in seen and SURPLUS_TAG not in run.tags:
                    seen.add(run.id)
                    yield run

    @contextmanager
    def read(self, refs: Sequence[RunRef]) -> Iterator[RestReading]:
        """The runs, asked for again."""
        with ThreadPoolExecutor(IN_FLIGHT, "mlflow-read") as pool:
            try:
                yield self._reading(refs, pool)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _reading(self, refs: Sequence[RunRef], pool: Executor) -> RestReading:
        things, refs = [ref for ref in refs if ref.kind == "records"], [ref for ref in refs if ref.kind == "run"]
        found = {ref.id: run for ref in refs if (run := self._kept.pop(ref.id, None)) is not None}
        others = [ref for ref in refs if ref.id not in found]
        found |= {run.id: run for some in pool.map(self._fetch, _batches(others, IDS_PER_SEARCH)) for run in some}
        gone = [ref for ref in refs if ref.id not in found]
        losses = [Loss(ref.id, "the run", "it is not on the server any more", ref.experiment) for ref in gone]
        pairs = [(ref, found[ref.id]) for ref in refs if ref.id in found]
        return RestReading(self, pairs, things, pool, losses)

    def _fetch(self, refs: Sequence[RunRef]) -> list[WireRun]:
        """The runs of these refs that are there."""
        found = self._search(refs) if self._server.finds_ids else {}
        missing = [ref.id for ref in refs if ref.id not in found]
        return [*found.values(), *(run for run in map(self._get, missing) if run is not None)]

    def _search(self, refs: Sequence[RunRef]) -> dict[str, WireRun]:
        ids = ", ".join(f"'{ref.id}'" for ref in refs if ref.id.isalnum())
        if not ids:
            return {}
        body = {
            "experiment_ids": sorted({ref.experiment for ref in refs}),
            "filter": f"attributes.run_id IN ({ids})",
            "run_view_type": "ALL",
            "max_results": len(refs),
        }
        try:
            found = self._client.post(f"{API}/runs/search", Runs, body)
        except (NotFound, BadData):
            return {}
        return {run.id: run for run in found.runs}

    def _get(self, id: str) -> WireRun | None:
        try:
            return self._client.get(f"{API}/runs/get", OneRun, {"run_id": id, "run_uuid": id}).run
        except NotFound:
            return None

    def oddities(self) -> Sequence[Loss]:
        """What the server keeps from us, as far as that can be known."""
        return self._oddities

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    def histories(self, pool: Executor) -> Histories:
        """What reads points."""
        return Histories(self._client, pool, self._bulk)

    def shelf(self, pool: Executor) -> Shelf:
        """What reads files."""
        return Shelf(self._client, pool, self._allow)

    def things(self) -> tuple[Things, list[str]]:
        """What reads all that belongs to no run, and the experiments to look in."""
        return self._things, [experiment.id for experiment in self.experiments()]

    @property
    def distinct(self) -> bool:
        """Whether the server's store cannot hold a point twice."""
        return self._server.distinct


@dataclass
class RestReading:
    """Some runs of a server."""

    _source: RestSource
    _pairs: Sequence[tuple[RunRef, WireRun]]
    _things: Sequence[RunRef]
    _pool: Executor
    losses: list[Loss]

    def __post_init__(self) -> None:
        self.runs = [run_of(wire, ref) for ref, wire in self._pairs]
        self.distinct = self._source.distinct

    def points(self) -> Iterator[pa.RecordBatch]:
        """All points."""
        histories = self._source.histories(self._pool)
        wanted = [Wanted(wire.id, {last.key: last for last in wire.data.metrics}) for _, wire in self._pairs]
        yield from histories.points(wanted)
        self.losses += histories.losses

    def artifacts(self) -> Iterator[Artifact]:
        """All files."""
        shelf, (things, _) = self._source.shelf(self._pool), self._source.things()
        runs = [(wire.id, wire.info.artifact_uri) for _, wire in self._pairs]
        roots = chain(runs, *(things.roots(ref, shelf.in_use) for ref in self._things))
        found = (artifact for artifact in shelf.of(roots) if not things.is_copy(artifact))
        yield from shelf.client.stores.ahead(found)
        self.losses += shelf.losses

    def records(self) -> Iterator[Record]:
        """All that belongs to no run."""
        if self._things:
            things, experiments = self._source.things()
            for ref in self._things:
                yield from things.records(ref, experiments, self.losses, self._pool)


def all_experiments(client: Client) -> list[ExperimentInfo]:
    """All experiments of a server, deleted ones too, oldest first."""
    try:
        return list(_searched_experiments(client))
    except NotFound:  # before 1.28
        found = client.get(f"{API}/experiments/list", Experiments, {"view_type": "ALL"}).experiments
        return sorted(found, key=lambda one: (one.creation_time or 0, one.experiment_id))


def _searched_experiments(client: Client) -> Iterator[ExperimentInfo]:
    body: dict[str, object] = {"view_type": "ALL", "max_results": 1000, "order_by": ["creation_time ASC"]}
    seen: set[str] = set()
    tokens: set[str] = set()
    barren = 0
    while True:
        page = client.post(f"{API}/experiments/search", Experiments, body)
        fresh = [one for one in page.experiments if one.experiment_id not in seen]
        seen.update(one.experiment_id for one in fresh)
        yield from fresh
        if not page.next_page_token:
            return
        barren = 0 if fresh else barren + 1  # services give empty pages, and go on
        if page.next_page_token in tokens or barren > BARREN:
            raise BadData("The server goes round in circles over its experiments.")
        tokens.add(page.next_page_token)
        body["page_token"] = page.next_page_token


def run_pages(client: Client, experiments: Sequence[str], filter_text: str = "") -> Iterator[Sequence[WireRun]]:
    """All runs of some experiments, page by page; a page's length suits the size of the runs.

    Tokens of managed services may run out: then the listing begins anew, and each run still comes once.
    """
    if not client.login.service.steady:
        yield from _run_pages(client, experiments, filter_text)
        return
    seen: set[str] = set()
    for again in (True, True, False):
        try:
            for runs in _run_pages(client, experiments, filter_text):
                yield [run for run in runs if run.id not in seen]
                seen.update(run.id for run in runs)
        except _TokenRefused as error:
            if not again:
                raise error.why from error
        else:
            return


class _TokenRefused(Exception):
    """The server does not know the token of a page that it gave."""

    def __init__(self, why: MigrateError) -> None:
        super().__init__(why)
        self.why = why


def _run_pages(client: Client, experiments: Sequence[str], filter_text: str) -> Iterator[Sequence[WireRun]]:
    body: dict[str, object] = {"experiment_ids": experiments, "run_view_type": "ALL", "order_by": ORDER}
    body |= {"max_results": FIRST_PAGE} | ({"filter": filter_text} if filter_text else {})
    tokens: set[str] = set()
    barren = 0
    while True:
        try:
            page, size = client.measured(f"{API}/runs/search", Runs, body)
        except (NotFound, Refused, Unavailable):
            raise
        except MigrateError as error:
            if not (tokens and client.login.service.steady):
                raise
            raise _TokenRefused(error) from error
        yield page.runs
        token = page.next_page_token
        if not token:
            return
        barren = 0 if page.runs or filter_text else barren + 1
        if token in tokens or barren > BARREN:
            raise BadData("The server goes round in circles over its runs.")
        tokens.add(token)
        body["page_token"] = token
        if not client.login.service.steady:  # whose tokens may belong to one length of page
            fitting = PAGE_BYTES * max(len(page.runs), 1) // max(size, 1)
            body["max_results"] = max(10, min(LARGEST_PAGE, fitting))


def _batches(refs: Sequence[RunRef], n: int) -> list[list[RunRef]]:
    left: Iterable[RunRef] = iter(refs)
    return list(iter(lambda: list(islice(left, n)), []))


def _experiment(info: ExperimentInfo) -> Experiment:
    return Experiment(
        info.experiment_id,
        info.name,
        tags=_tags(info.tags),
        created=info.creation_time,
        updated=info.last_update_time,
        deleted=info.lifecycle_stage == "deleted",
        artifact_root=info.artifact_location,
    )


def _tags(pairs: Sequence[Pair]) -> dict[str, str]:
    return {pair.key: pair.value for pair in pairs if not pair.key.startswith(OURS)}


def _name(run: WireRun) -> str:
    return run.info.run_name or run.tags.get("mlflow.runName", "")


def _ref(run: WireRun) -> RunRef:
    info = run.info
    return RunRef(
        info.experiment_id,
        run.id,
        name=_name(run),
        origin=f"mlflow:{run.id}",
        stamp="" if info.status in ALIVE else stamp(run),
        status=info.status,
        start=info.start_time,
        deleted=info.lifecycle_stage == "deleted",
        points=sum(map(expected, run.data.metrics)),
    )


def stamp(run: WireRun) -> str:
    """Changes when the run does, as far as a listing shows it."""
    data = run.data
    seen = (
        run.info,
        sorted((pair.key, pair.value) for pair in data.params),
        sorted(_tags(data.tags).items()),
        sorted((last.key, repr(last.value), last.timestamp, last.step) for last in data.metrics),
        sorted(repr(given) for given in run.inputs.dataset_inputs),
        sorted((made.model_id, made.step) for made in run.outputs.model_outputs),
    )
    return hashlib.blake2b(msgspec.json.encode(seen), digest_size=16).hexdigest()


def run_of(wire: WireRun, ref: RunRef) -> Run:
    """The run in our words; its stamp is the one that it was asked for by."""
    info = wire.info
    status = info.status if info.status in STATUSES else "FINISHED"
    return Run(
        wire.id,
        info.experiment_id,
        name=_name(wire),
        origin=ref.origin,
        stamp=ref.stamp,
        status=status,
        status_word="" if status == info.status else info.status,
        start=info.start_time,
        end=info.end_time,
        user=info.user_id,
        deleted=info.lifecycle_stage == "deleted",
        params={pair.key: pair.value for pair in wire.data.params},
        tags=_tags(wire.data.tags),
        inputs=tuple(map(_input, wire.inputs.dataset_inputs)),
        artifact_uri=info.artifact_uri,
    )


def _input(given: DatasetInput) -> Input:
    one = given.dataset
    tags = {pair.key: pair.value for pair in given.tags}
    return Input(one.name, one.digest, one.source_type, one.source, one.schema or None, one.profile or None, tags)
