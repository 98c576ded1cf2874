"""The rows of one run, unsampled: exports first, then what is not exported yet; and its system metrics.

    few lines     one page has them all, and came along with the run
    exports       Parquet files that the server made, read row group by row group
    live rows     pages of a range of steps

A page is asked for at most so many rows, and a server that has more in that range gives a sample of them.  So a page
that is as full as it could be is never believed: its range is halved at the middle one of its rows, and asked again.
That also finds its way to steps of 1e13 in a few requests.  In the end all rows are counted against the number of lines
that the server says there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from tempfile import TemporaryFile
from typing import IO, Any, Self

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlmigrate.adapters.wandb import blocks
from mlmigrate.adapters.wandb.api import operations
from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.told import whole
from mlmigrate.adapters.wandb.provenance import EVENT
from mlmigrate.adapters.wandb.shape import Block
from mlmigrate.errors import BadData, NotFound, Refused
from mlmigrate.model import Loss

STEP = "_step"
PAGE = 10_000  # rows in a page, where they have few keys
VALUES = 100_000  # in a page
FEW_VALUES = 20_000  # in rows that come along: those of a whole pack are held at once
SMALLEST = 50
FEW_LINES = 2_000  # so many come along with the run
FEW_EVENTS = 200
BATCH = 32_768  # rows taken of an export at once
SPARSE = 20  # steps a row: beyond that, ranges are found by halving
AHEAD = 4  # pages that are asked for before their turn
FARTHEST = 1 << 53


@dataclass(frozen=True, slots=True)
class Where:
    """A run, as requests name it."""

    entity: str
    project: str
    run: str


@dataclass(frozen=True, slots=True)
class Told:
    """What the server says of a history: `lines` of it, the `last` step, how many `keys`; `live`: more may come.

    `early` are rows that came along with the run.
    """

    lines: int | None
    last: int
    keys: int
    live: bool = False
    early: Sequence[str] | None = None


def page_size(keys: int) -> int:
    """How many rows to ask for at once."""
    return max(SMALLEST, min(PAGE, VALUES // max(keys, 1)))


def inline(told: Told) -> bool:
    """Whether all rows are so few that they may come along with the run."""
    return told.lines is not None and 0 < told.lines * max(told.keys, 1) <= FEW_VALUES and told.lines <= FEW_LINES


@dataclass
class History:
    """All rows of one run. `losses` is complete after `blocks`; `missing`: why an export could not be read."""

    client: Client
    where: Where
    told: Told
    losses: list[Loss]
    read: int = 0
    missing: list[str] = field(default_factory=list)

    def blocks(self) -> Iterator[Block]:
        """The rows, in the order of their steps as far as the server has one."""
        early = self._early()
        if early is not None:
            yield from early
            return
        if self.told.lines == 0 and self.told.last < 0:
            return
        with ExitStack() as stack:
            for block in self._all(stack):
                self.read += block.rows
                if block.rows:
                    yield block
        self._counted()

    def _early(self) -> list[Block] | None:
        """What came along with the run, if that is all of it."""
        if self.told.early is None or len(self.told.early) != self.told.lines:
            return None
        self.read = len(self.told.early)
        return [_block(_ordered(self.told.early))] if self.told.early else []

    def _all(self, stack: ExitStack) -> Iterator[Block]:
        exports, live = self._exports(stack)
        yield from exports.blocks()
        left = None if self.told.lines is None else self.told.lines - exports.rows
        if left is not None and left <= 0:
            return
        last = self.told.last if self.told.last >= 0 else FARTHEST - 1
        first = 0 if exports.last is None else exports.last + 1
        if live is not None and exports.last is not None and live <= exports.last:
            first = live
        pages = Pages(self.client, self.where, page_size(self.told.keys))
        end = max(last, live or 0) + 1
        for rows in pages.scan(first, end, left):
            yield exports.without(_block(rows))
        yield from self._beyond(pages, end, left)

    def _beyond(self, pages: Pages, end: int, left: int | None) -> Iterator[Block]:
        """Rows after the last step that was told, which may be an older one, and before the first that W&B counts."""
        for low, high in ((end, FARTHEST), (-FARTHEST, 0)):
            if left is not None and pages.rows < left:
                for rows in pages.scan(low, high, left - pages.rows):
                    yield _block(rows)

    def _exports(self, stack: ExitStack) -> tuple[Exports, int | None]:
        """The exports, and the first step that may not be in them."""
        try:
            urls, live = parquet_of(self.client, self.where)
        except Unsupported:  # older servers make none
            return Exports([]), None
        found = []
        for n, url in enumerate(urls):
            try:
                found.append(Export.of(stack.enter_context(self._export(n, url))))
            except (NotFound, Refused, BadData) as error:
                self.missing.append(error.message)
        return Exports(sorted(found, key=lambda one: one.first)), 0 if self.missing else live

    def _export(self, n: int, url: str) -> IO[bytes]:
        """An export in a file of its own, that nobody else reads: nothing is kept for another time."""
        file = TemporaryFile(prefix="mlmigrate-history-")  # noqa: SIM115  # the caller closes it
        try:
            self._fetch(n, url, file)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def _fetch(self, n: int, url: str, file: IO[bytes]) -> None:
        """A URL that is no longer taken may be too old: there are newer ones."""
        try:
            self.client.fetch(url, file)
        except (NotFound, Refused):
            urls, _ = parquet_of(self.client, self.where)
            if n >= len(urls) or urls[n] == url:
                raise
            self.client.fetch(urls[n], file)

    def _counted(self) -> None:
        lines = self.told.lines
        if lines is None or self.read == lines or (self.told.live and self.read > lines):
            return
        because = "; ".join([f"the server says that there are {lines} rows, and gave {self.read}", *self.missing])
        _tell(self.losses, Loss(self.where.run, "history", because))


def parquet_of(client: Client, where: Where) -> tuple[list[str], int | None]:
    """URLs of the exports, and the first step that is in none of them (None: all are)."""
    variables = {"entity": where.entity, "project": where.project, "runName": where.run, "liveKeys": [STEP]}
    found = run_of(client.graphql(operations.PARQUET, variables), where).get("parquetHistory") or {}
    live = [whole(row.get(STEP)) for row in found.get("liveData") or () if isinstance(row, dict)]
    steps = [step for step in live if step is not None]
    return list(found.get("parquetUrls") or ()), min(steps) if steps else None


def run_of(data: dict[str, Any], where: Where) -> dict[str, Any]:
    """The run in an answer. Raises NotFound where there is none."""
    run = (data.get("project") or {}).get("run")
    if not isinstance(run, dict):
        raise NotFound(f"There is no run {where.run} in {where.entity}/{where.project}.")
    return run


@dataclass(frozen=True, slots=True)
class Export:
    """A Parquet file of a history, with its lowest and highest step."""

    file: pq.ParquetFile
    first: int
    last: int

    @classmethod
    def of(cls, file: IO[bytes]) -> Export:
        """Raises BadData for what is no Parquet file of a history."""
        try:
            opened = pq.ParquetFile(file)
            bounds = _bounds(opened)
        except (pa.ArrowException, OSError) as error:
            raise BadData(f"An export of a history cannot be read: {error}") from error
        return cls(opened, *bounds)

    def steps(self) -> pa.Array:
        """Its steps, which some other rows may have too."""
        return self.file.read([STEP]).column(STEP).combine_chunks().cast(pa.int64(), safe=False).drop_null()


@dataclass
class Exports:
    """The exports of one run, in the order of their first steps. `rows` counts those given."""

    files: list[Export]
    rows: int = 0

    @property
    def last(self) -> int | None:
        """The highest step in them."""
        return max((one.last for one in self.files), default=None)

    def blocks(self) -> Iterator[Block]:
        """Their rows; what an earlier one has too is left out."""
        for n, one in enumerate(self.files):
            known = [other.steps() for other in self.files[:n] if other.last >= one.first]
            for batch in one.file.iter_batches(BATCH):
                table = pa.Table.from_batches([batch])
                block = blocks.from_table(_unseen(table, known) if known else table)
                self.rows += block.rows
                yield block

    def without(self, block: Block) -> Block:
        """The rows that no export has."""
        least = pc.min(block.step).as_py()
        if self.last is None or least is None or least > self.last:
            return block
        keep = pc.invert(_in(block.step, [one.steps() for one in self.files if one.last >= least]))
        return block if pc.all(keep).as_py() else _rows(block, keep)


class Pages:
    """Rows by ranges of steps. `rows` counts those given."""

    def __init__(self, client: Client, where: Where, size: int) -> None:
        self._client, self._where = client, where
        self._size = self._cap = size
        self._asked = 0
        self.rows = 0

    def scan(self, first: int, end: int, expected: int | None) -> Iterator[list[str]]:
        """Rows with first <= step < end, by pages, each in the order of steps."""
        if end <= first:
            return
        self._asked, most = 0, 200 + 20 * (expected or 1_000_000) // self._size
        if expected is not None and expected <= self._size:
            rows = self._page(first, end, expected)
            if len(rows) >= expected or not rows:
                yield from self._given(rows)
                return
            self._cap = len(rows)  # fewer than there are: a sample
        dense = expected == end - first
        waiting = list(reversed(self._ranges(first, end, expected)))
        with _Ahead(partial(self._wanted, dense=dense)) as ahead:
            while waiting:
                ahead.begin(waiting[-AHEAD:])
                low, high = waiting.pop()
                rows = ahead.take(low, high)
                middle = _middle(rows, low, high) if self._doubted(rows, low, high, dense) else None
                if middle is None:
                    yield from self._given(rows)
                    continue
                if self._asked > most:
                    raise BadData(f"{self._where.run} has more pages of history than {expected} rows can have.")
                waiting += [(middle, high), (low, middle)]

    def _wanted(self, low: int, high: int, *, dense: bool) -> list[str]:
        return self._page(low, high, min(self._size, high - low) if dense else self._size)

    def _ranges(self, first: int, end: int, expected: int | None) -> list[tuple[int, int]]:
        if expected is None or self._cap < self._size or end - first > SPARSE * expected:
            return [(first, end)]
        starts = range(first, end, self._size)
        return [(start, min(start + self._size, end)) for start in starts]

    def _doubted(self, rows: Sequence[str], low: int, high: int, dense: bool) -> bool:
        """Whether the server may have more rows in this range than it gave."""
        if dense and len(rows) == high - low:
            return False
        if dense and len(rows) < high - low:
            return self._asked < 100  # noqa: PLR2004  steps that are missing are found by then
        return len(rows) >= min(self._cap, self._size)

    def _page(self, low: int, high: int, samples: int) -> list[str]:
        self._asked += 1
        named = {"entity": self._where.entity, "project": self._where.project, "run": self._where.run}
        variables = {**named, "minStep": low, "maxStep": high, "pageSize": max(samples, 1)}
        found = run_of(self._client.graphql(operations.HISTORY_PAGE, variables), self._where).get("history")
        return [row for row in _ordered(found or ()) if (step := step_of(row)) is None or low <= step < high]

    def _given(self, rows: list[str]) -> Iterator[list[str]]:
        self.rows += len(rows)
        if rows:
            yield rows


class _Ahead:
    """Pages that are asked for before their turn."""

    def __init__(self, ask: Callable[[int, int], list[str]]) -> None:
        self._ask = ask
        self._pool = ThreadPoolExecutor(AHEAD)
        self._coming: dict[tuple[int, int], Future[list[str]]] = {}

    def begin(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Asks for these; the last is wanted first."""
        for one in reversed(ranges):
            if one not in self._coming and len(self._coming) < AHEAD:
                self._coming[one] = self._pool.submit(self._ask, *one)

    def take(self, low: int, high: int) -> list[str]:
        """The page of a range."""
        coming = self._coming.pop((low, high), None)
        return coming.result() if coming is not None else self._ask(low, high)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def events(
    client: Client, where: Where, lines: int | None, early: Sequence[str] | None, losses: list[Loss]
) -> Iterator[Block]:
    """System metrics. `early` came along with the run; the server has no pages of them, only samples of a size."""
    rows = early or ()
    few = len(rows) < FEW_EVENTS if lines is None else len(rows) >= lines
    if early is None or not few:
        samples = lines if lines is not None else 1_000_000
        variables = {"entity": where.entity, "project": where.project, "name": where.run, "samples": samples}
        rows = run_of(client.graphql(operations.EVENTS, variables), where).get("events") or ()
    if lines is not None and len(rows) < lines:
        because = f"the server says that there are {lines} rows, and gave {len(rows)} of them, a sample"
        _tell(losses, Loss(where.run, "system metrics", because))
    for start in range(0, len(rows), PAGE):
        yield blocks.from_lines(_bytes(rows[start : start + PAGE]), EVENT)


def _tell(losses: list[Loss], loss: Loss) -> None:
    """Once, however often the stream is taken."""
    if loss not in losses:
        losses.append(loss)


class _Stepped(msgspec.Struct):
    step: int | float | None = msgspec.field(default=None, name=STEP)


_STEPPED = msgspec.json.Decoder(_Stepped)


def step_of(row: str) -> int | None:
    """The step of a row. Rows may hold NaN and the like, which are no JSON."""
    try:
        return whole(_STEPPED.decode(row).step)
    except (msgspec.DecodeError, msgspec.ValidationError):
        pass
    try:
        found = json.loads(row, strict=False)
    except ValueError:
        return None
    return whole(found.get(STEP)) if isinstance(found, dict) else None


def _ordered(rows: Sequence[str]) -> list[str]:
    """By step; rows of one step as they came."""
    steps = [step if (step := step_of(row)) is not None else -FARTHEST for row in rows]
    if all(one <= other for one, other in pairwise(steps)):
        return list(rows)
    return [rows[n] for n in sorted(range(len(rows)), key=steps.__getitem__)]


def _middle(rows: Sequence[str], low: int, high: int) -> int | None:
    """Where to halve a range so that both halves have rows; None where it cannot be."""
    steps = [step for row in rows if (step := step_of(row)) is not None]
    found = steps[len(steps) // 2] if steps else (low + high) // 2
    for middle in (found, found + 1, (low + high) // 2):
        if low < middle < high:
            return middle
    return None


def _block(rows: Sequence[str]) -> Block:
    return blocks.from_lines(_bytes(rows))


def _bytes(rows: Sequence[str]) -> list[bytes]:
    return [row.encode("utf-8", "surrogatepass") for row in rows]


def _rows(block: Block, keep: pa.Array) -> Block:
    """Some rows of a block."""
    kept = pc.indices_nonzero(keep)
    number = {old: new for new, old in enumerate(kept.to_pylist())}
    values = pc.is_in(block.row, value_set=kept.cast(pa.int32()))
    rows = pa.array([number[row] for row in block.row.filter(values).to_pylist()], pa.int32())
    return replace(
        block,
        step=block.step.filter(keep),
        time=block.time.filter(keep),
        runtime=block.runtime.filter(keep),
        row=rows,
        key=block.key.filter(values),
        value=block.value.filter(values),
        others=[other._replace(row=number[other.row]) for other in block.others if other.row in number],
    )


def _bounds(file: pq.ParquetFile) -> tuple[int, int]:
    """The lowest and the highest step, told by the file's own statistics where it has them."""
    if STEP not in file.schema_arrow.names:
        raise BadData("An export of a history has no steps.")
    at = [file.metadata.schema.column(n).path for n in range(file.metadata.num_columns)].index(STEP)
    groups = [file.metadata.row_group(n).column(at).statistics for n in range(file.metadata.num_row_groups)]
    if groups and all(one is not None and one.has_min_max for one in groups):
        return int(min(one.min for one in groups)), int(max(one.max for one in groups))
    told = pc.min_max(file.read([STEP]).column(STEP)).as_py()
    return (FARTHEST, -FARTHEST) if told["min"] is None else (int(told["min"]), int(told["max"]))


def _unseen(table: pa.Table, known: Sequence[pa.Array]) -> pa.Table:
    steps = table.column(STEP).combine_chunks().cast(pa.int64(), safe=False)
    return table.filter(pc.invert(_in(steps, known)))


def _in(steps: pa.Array, known: Sequence[pa.Array]) -> pa.Array:
    found = pa.array([False] * len(steps))
    for one in known:
        found = pc.or_(found, pc.is_in(steps, value_set=one))
    return found
