"""Metric points of many runs, complete to the last one, by the fastest route the server has.

Two routes, both with their traps:

    get-history-bulk  one metric of up to 100 runs; 25,000 points in all, cut off without a word
    get-history       one metric of one run; pages of 25,000 (servers from 3.1) or all in one answer

A chunk of runs is asked in bulk, metric by metric, several at once, and held until it can be given
out run by run.  A series that fills a bulk answer alone is long: it is fetched page by page when its
turn comes, so that no run's size matters.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa

from mlmigrate.adapters.mlflow.rest.client import CHUNK, IN_MEMORY, Client
from mlmigrate.adapters.mlflow.rest.wire import BulkHistory, History, Latest, Point, RunPoint, decode
from mlmigrate.errors import BadData, MigrateError
from mlmigrate.model import Loss, points

BULK = "ajax-api/2.0/mlflow/metrics/get-history-bulk"
SINGLE = "api/2.0/mlflow/metrics/get-history"
CAP = 25_000  # the most points in one answer of either route
BULK_RUNS = 100
CHUNK_POINTS = 200_000  # how many points, as estimated, are asked for before the first is given out
HELD = 2_000_000  # how many are held at most, whatever the estimates were
IN_FLIGHT = 8
BATCH = 65_536


@dataclass(slots=True)
class Series:
    """The points of one metric of one run."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, found: Sequence[Point] | Sequence[RunPoint]) -> None:
        """Adds points in order. Raises BadData for numbers beyond int64."""
        try:
            self.steps.extend([point.step for point in found])
            self.times.extend([point.timestamp for point in found])
        except OverflowError as error:
            raise BadData("The server gave a step or a time beyond 64 bits.") from error
        self.values.extend([point.value for point in found])

    def holds(self, latest: Latest) -> bool:
        """Whether the point that the server calls the last is here; it is near the end."""
        for i in range(len(self.values) - 1, -1, -1):
            if self.steps[i] == latest.step and self.times[i] == latest.timestamp:
                return True
        return False

    def __len__(self) -> int:
        return len(self.values)


class Columns:
    """Points on their way into Arrow batches."""

    def __init__(self) -> None:
        self._runs: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._run, self._key = array("i"), array("i")
        self._series = Series()

    def add(self, run: str, key: str, series: Series) -> None:
        """Adds a series."""
        n = len(series)
        self._run.extend(array("i", [self._runs.setdefault(run, len(self._runs))]) * n)
        self._key.extend(array("i", [self._keys.setdefault(key, len(self._keys))]) * n)
        self._series.steps += series.steps
        self._series.times += series.times
        self._series.values += series.values

    def __len__(self) -> int:
        return len(self._series)

    def batch(self) -> pa.RecordBatch:
        """What was added, as a batch; the columns are empty then."""
        series = self._series
        batch = points(
            {
                "run": _names(self._run, self._runs),
                "key": _names(self._key, self._keys),
                "step": _plain(pa.int64(), series.steps),
                "timestamp": _plain(pa.int64(), series.times),
                "value": _plain(pa.float64(), series.values),
            }
        )
        self.__init__()  # type: ignore[misc]  # begins anew
        return batch


def _names(indices: array[int], names: Mapping[str, int]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(_plain(pa.int32(), indices), pa.array(list(names), pa.utf8()))


def _plain(kind: pa.DataType, values: array[int] | array[float]) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run and the metrics that it has, with the last point of each."""

    run: str
    metrics: Mapping[str, Latest]

    @property
    def estimate(self) -> int:
        """How many points there may be: metrics are mostly logged step by step from 0."""
        return sum(map(expected, self.metrics.values()))


def expected(latest: Latest) -> int:
    """How many points a metric may have."""
    return min(max(latest.step + 1, 1), CAP)


class Histories:
    """The points of some runs. `losses` is complete once they are drained."""

    def __init__(self, client: Client, pool: Executor, bulk: BulkRoute) -> None:
        self._client, self._pool, self._bulk = client, pool, bulk
        self.losses: list[Loss] = []

    def points(self, runs: Sequence[Wanted]) -> Iterator[pa.RecordBatch]:
        """Batches of points, run by run, metric by metric."""
        columns = Columns()
        for series in self._series(runs):
            columns.add(*series)
            if len(columns) >= BATCH:
                yield columns.batch()
        if len(columns):
            yield columns.batch()

    def _series(self, runs: Sequence[Wanted]) -> Iterator[tuple[str, str, Series]]:
        """Chunk by chunk; the next one is fetched while this one is given out."""
        ahead: _Chunk | None = None
        for chunk in map(self._begin, _chunks(runs)):
            if ahead is not None:
                yield from self._emit(ahead)
            ahead = chunk
        if ahead is not None:
            yield from self._emit(ahead)

    def _begin(self, runs: Sequence[Wanted]) -> _Chunk:
        chunk = _Chunk(runs)
        if self._bulk.works:
            chunk.asked = [self._pool.submit(self._ask, chunk, key, group) for key, group in _groups(runs)]
        return chunk

    def _ask(self, chunk: _Chunk, key: str, runs: Sequence[str]) -> None:
        """Fills the chunk with one metric of these runs; what does not fit stays out, and is long."""
        left = list(runs)
        while left and chunk.room:
            found = self._bulk.ask(key, left)
            if found is None:
                return
            by_run: dict[str, list[RunPoint]] = {}
            for point in found:
                by_run.setdefault(point.run_id, []).append(point)
            cut = len(found) >= CAP and found[-1].run_id
            for run in left:
                if run in by_run and run != cut:
                    chunk.keep(run, key, by_run[run])
            # after a cut answer: the run it was cut in, and those that it did not come to
            left = [run for run in left if run == cut or run not in by_run] if cut and len(by_run) > 1 else []

    def _emit(self, chunk: _Chunk) -> Iterator[tuple[str, str, Series]]:
        for asked in chunk.asked:
            asked.result()
        long = self._long(chunk.missing())
        for wanted in chunk.runs:
            for key, latest in wanted.metrics.items():
                series = chunk.take(wanted.run, key, latest)
                if series is not None:
                    yield wanted.run, key, series
                else:
                    yield from self._told(wanted.run, key, next(long))

    def _long(self, missing: Sequence[tuple[str, str]]) -> Iterator[Iterator[Series]]:
        """The series that bulk did not bring, each as pages; the first pages of the next few are under way."""
        ahead: list[Pages] = []
        for i in range(len(missing)):
            while len(ahead) < IN_FLIGHT and i + len(ahead) < len(missing):
                ahead.append(Pages(self._client, self._pool, *missing[i + len(ahead)]))
            yield iter(ahead.pop(0))

    def _told(self, run: str, key: str, pages: Iterator[Series]) -> Iterator[tuple[str, str, Series]]:
        n = 0
        for series in pages:
            n += len(series)
            yield run, key, series
        if n == 0:
            self.losses.append(Loss(run, f"metric {key!r}", "the server lists it and gives no points of it"))


class _Chunk:
    """Some runs whose points are being fetched. Filled by several threads, emptied by one."""

    def __init__(self, runs: Sequence[Wanted]) -> None:
        self.runs = runs
        self.asked: list[Future[None]] = []
        self._held: dict[tuple[str, str], Series] = {}
        self._points = 0

    @property
    def room(self) -> bool:
        return self._points < HELD

    def keep(self, run: str, key: str, found: Sequence[RunPoint]) -> None:
        series = Series()
        series.add(found)
        self._points += len(series)
        self._held[run, key] = series

    def has(self, run: str, key: str, latest: Latest) -> bool:
        """Whether all of a series is here, to its last point."""
        series = self._held.get((run, key))
        return series is not None and series.holds(latest)

    def missing(self) -> list[tuple[str, str]]:
        """(run, metric) of the series that are not here."""
        return [
            (wanted.run, key)
            for wanted in self.runs
            for key, latest in wanted.metrics.items()
            if not self.has(wanted.run, key, latest)
        ]

    def take(self, run: str, key: str, latest: Latest) -> Series | None:
        return self._held.pop((run, key)) if self.has(run, key, latest) else None


def _chunks(runs: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    chunk: list[Wanted] = []
    size = 0
    for run in runs:
        if chunk and (len(chunk) >= BULK_RUNS or size + run.estimate > CHUNK_POINTS):
            yield chunk
            chunk, size = [], 0
        chunk.append(run)
        size += run.estimate
    if chunk:
        yield chunk


def _groups(runs: Sequence[Wanted]) -> Iterator[tuple[str, Sequence[str]]]:
    """Metrics, each with runs whose points should fit into one answer; long series stay out."""
    by_key: dict[str, list[tuple[str, int]]] = {}
    for wanted in runs:
        for key, latest in wanted.metrics.items():
            if expected(latest) < CAP:
                by_key.setdefault(key, []).append((wanted.run, expected(latest)))
    for key, having in by_key.items():
        group: list[str] = []
        size = 0
        for run, n in having:
            if group and size + n >= CAP:
                yield key, group
                group, size = [], 0
            group.append(run)
            size += n
        yield key, group


class BulkRoute:
    """get-history-bulk, which belongs to MLflow's web pages: not every server, proxy or gateway has it."""

    def __init__(self, client: Client, works: bool = True) -> None:
        self._client = client
        self._proven = False
        self.works = works

    def ask(self, key: str, runs: Sequence[str]) -> Sequence[RunPoint] | None:
        """The points of one metric of these runs, `CAP` at most; None when there is no such route."""
        if not self.works:
            return None
        try:
            found = self._client.get(BULK, BulkHistory, {"run_id": runs, "metric_key": key, "max_results": CAP})
        except MigrateError:  # the other route says whether the server is away, or a run is gone
            self.works = self._proven
            return None
        self._proven = True
        return found.metrics


class Pages:
    """One metric of one run, page by page. The first page is fetched at once, the others ahead of need."""

    def __init__(self, client: Client, pool: Executor, run: str, key: str) -> None:
        self._client, self._pool, self._run, self._key = client, pool, run, key
        self._first = pool.submit(self._page, "")

    def __iter__(self) -> Iterator[Series]:
        series, token = self._first.result()
        yield from series
        seen = {""}
        ahead = [self._pool.submit(self._page, guess) for guess in _guesses(token)]
        while token:
            if token in seen:
                raise BadData(f"The server goes round in circles over metric {self._key!r} of run {self._run}.")
            seen.add(token)
            series, token = (ahead.pop(0) if ahead else self._pool.submit(self._page, token)).result()
            yield from series
            if token and ahead:
                ahead += [self._pool.submit(self._page, guess) for guess in _guesses(token)[len(ahead) :]]

    def _page(self, token: str) -> tuple[Iterator[Series], str]:
        return self._client.again.do(SINGLE, self._once, token)

    def _once(self, token: str) -> tuple[Iterator[Series], str]:
        params: dict[str, str | int | Sequence[str]] = {
            "run_id": self._run,
            "metric_key": self._key,
            "max_results": CAP,
        }
        file = self._client.spool(SINGLE, {**params, "page_token": token} if token else params)
        whole = file.read(IN_MEMORY + 1)
        if len(whole) <= IN_MEMORY:
            file.close()
            history = self._client.decoded(SINGLE, whole, History)
            series = Series()
            series.add(history.metrics)
            return iter([series] if len(series) else []), history.next_page_token
        file.seek(0)
        return _slabs(file), ""  # only servers that know no pages answer at such length


def _guesses(token: str) -> list[str]:
    """The token and the next few, where it is an offset that can be counted on from."""
    if not token:
        return []
    try:
        known = json.loads(base64.b64decode(token, validate=True))
        offset = known["offset"]
    except (ValueError, TypeError, KeyError):
        return [token]
    if list(known) != ["offset"] or offset != CAP * (offset // CAP):
        return [token]
    return [token, *(base64.b64encode(json.dumps({"offset": offset + i * CAP}).encode()).decode() for i in (1, 2, 3))]


def _slabs(file: IO[bytes]) -> Iterator[Series]:
    """A long answer in pieces: its points are flat objects in one array."""
    with file:
        rest = file.read(CHUNK)
        start = rest.find(b"[") + 1
        if not start or b"}" in rest[:start]:
            raise BadData("The server gave a long answer that is no metric history.")
        rest = rest[start:]
        while b"]" not in rest:
            end = rest.rfind(b"}") + 1
            if end:
                yield _slab(rest[:end])
            more = file.read(CHUNK)
            if not more:
                raise BadData("The server ended a metric history too early.")
            rest = rest[end:] + more
        yield _slab(rest[: rest.index(b"]")])


def _slab(data: bytes) -> Series:
    series = Series()
    try:
        series.add(decode(b"[" + data.strip().strip(b",") + b"]", list[Point]))
    except ValueError as error:
        raise BadData("The server gave a long answer that is no metric history.") from error
    return series
