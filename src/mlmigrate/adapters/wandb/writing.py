"""A pack on its way into W&B, whichever way: runs, points, files and records come in, sheets go to a Delivery.

    begin, points, put, keep      into a folder of its own; W&B hears nothing yet
    commit                        the sheets, level by level: what others read, and parents, come first

A pack holds many small runs or one large one: its bytes are on disk, and its points but for a few.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.wandb import index, moments, names, trees
from mlmigrate.adapters.wandb.blocks import MARK, escaped, neutral
from mlmigrate.adapters.wandb.clients import Named
from mlmigrate.adapters.wandb.limits import LIMITS
from mlmigrate.adapters.wandb.natives import numbers_of
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.outgoing import Facts, Home, outgoing, provenance_of
from mlmigrate.adapters.wandb.provenance import (
    FILES_TYPE,
    HISTORY_JSONL,
    KEY,
    RECORDS_TYPE,
    RUN_JSON,
    SYSTEM,
    as_config,
    of_config,
)
from mlmigrate.adapters.wandb.records import OWN, Records
from mlmigrate.adapters.wandb.rows import TELLS_A_POINT, Rows, Written
from mlmigrate.adapters.wandb.shape import Block, Delivery, File, Opener, Sheet, WandbRun
from mlmigrate.errors import BadData, DiskFull
from mlmigrate.model import PARENT_TAG, POINTS, Artifact, Experiment, Loss, Record, Run, RunRef
from mlmigrate.storage.local import explain

IN_MEMORY = 100_000  # points of a pack that wait in memory before they go to disk
ROWS_IN_MEMORY = 250_000  # points of a run that are sorted without the disk
LARGEST_INDEX = 512 << 20  # bytes of a wandb/run.json
RENUMBERED = (
    "their steps do not rise: rows are numbered anew, their steps stand in the column 'mlflow/step'; "
    "what keys of numbers hold beside these (truth values, exact integers, texts) is in wandb/history.jsonl alone"
)


class Homes:
    """Where each experiment lives: a project of its own, or all in one (`project`)."""

    def __init__(self, entity: str, project: str = "") -> None:
        self.entity, self.project = entity, project
        self._experiments: dict[str, Experiment] = {"": Experiment("", "")}
        self._digests: dict[tuple[str, str, str], str] = {}  # of versions: project, name, digest before -> here

    def add(self, experiments: Sequence[Experiment]) -> None:
        """Makes experiments known, by their ids in the source."""
        self._experiments |= {one.id: one for one in experiments}

    def of(self, experiment: str) -> Home:
        """The home of the experiment of this id; "" is for what belongs to none."""
        found = self._experiments[experiment]
        own = names.project(found.name) if found.id else names.ESTATE
        return Home(self.entity, self.project or own, found, shared=bool(self.project))

    def logged_again(self, project: str, digests: Mapping[tuple[str, str], str]) -> None:
        """Versions that were W&B's have another digest here: those who read them must know."""
        self._digests |= {(project, *key): digest for key, digest in digests.items()}

    def met(self, sheet: Sheet) -> Sheet:
        """The sheet with what it has read called by the digests that it has here, as far as they are known."""
        used = tuple(
            replace(one, digest=self._digests.get((one.project, one.name, one.digest), one.digest))
            for one in sheet.run.used
        )
        return sheet if used == sheet.run.used else replace(sheet, run=replace(sheet.run, used=used))


def experiment_sheets(experiments: Sequence[Experiment], homes: Homes) -> list[Sheet]:
    """A run for each experiment, that keeps what a project has no place for. Makes them known to `homes`."""
    homes.add(experiments)
    return [_experiment_sheet(one, homes.of(one.id)) for one in experiments]


def _experiment_sheet(experiment: Experiment, home: Home) -> Sheet:
    origin = f"experiment:{experiment.origin or experiment.id}"
    told = provenance_of(experiment, origin)
    run = WandbRun(
        id=names.run_id(origin, origin),
        entity=home.entity,
        project=home.project,
        name=f"{OWN}: experiment",
        tags=(OWN,),
        job_type=OWN,
        exit_code=0,
        config={KEY: as_config(told)},
    )
    stamp = hashlib.blake2b(msgspec.json.encode(as_config(told), order="sorted"), digest_size=16).hexdigest()
    return _without_rows(run, origin, stamp)


def regenerated(sheet: Sheet, generation: int) -> Sheet:
    """The same run under the id of another generation, where that of the sheet is burnt."""
    run, was = sheet.run, sheet.run.id
    told = of_config(run.config[KEY])
    if told is None:  # a sheet of ours always says where it is from
        return sheet
    id_ = names.run_id(told.origin, told.id or was, generation)
    mine = (one.name for one in run.logged if not told.native or one.type in (FILES_TYPE, RECORDS_TYPE))
    # W&B's own keep their names; ours end in the run's id, unless they were too long for it
    new = {name: names.artifact(name.removesuffix(was) + id_) for name in mine if name.endswith(was)}
    renamed = {_in_key(key, new): folder for key, folder in told.trees.items()}
    again = replace(told, generation=generation, trees=renamed, id=told.id or was)
    logged = tuple(replace(one, run=id_, name=new.get(one.name, one.name)) for one in run.logged)
    return replace(sheet, run=replace(run, id=id_, logged=logged, config={**run.config, KEY: as_config(again)}))


def _in_key(key: str, new: Mapping[str, str]) -> str:
    name, colon, digest = key.partition(":")
    return new.get(name, name) + colon + digest


@dataclass
class _Points:
    """The points of one run: in memory while few, then on disk. May be read again and again."""

    file: Path
    rows: int = 0
    micros: bool = False  # whether any time has parts of a millisecond
    counts: Counter[str] = field(default_factory=Counter)
    _held: list[pa.RecordBatch] = field(default_factory=list)
    _writer: pa.RecordBatchStreamWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += len(batch)
        self.micros = self.micros or bool(pc.any(pc.not_equal(batch["timestamp_micro"], 0)).as_py())
        for one in pc.value_counts(batch["key"]):
            self.counts[one["values"].as_py()] += one["counts"].as_py()
        if self._writer is None:
            self._held.append(batch)
        else:
            self._writer.write_batch(batch)

    def to_disk(self) -> None:
        """Lets go of what is in memory."""
        if self._writer is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pa.ipc.new_stream(self.file, POINTS)
        for batch in self._held:
            self._writer.write_batch(batch)
        self._held.clear()

    def batches(self) -> Iterator[pa.RecordBatch]:
        if self._writer is None:
            yield from self._held
            return
        self._writer.close()
        with pa.OSFile(str(self.file)) as stream:
            yield from pa.ipc.open_stream(stream)


@dataclass
class _Draft:
    """A run while its parts come in."""

    run: Run
    points: _Points
    files: dict[str, File] = field(default_factory=dict)


class WandbPlace:
    """A pack being written (see adapters.base.Place). `folder` is its alone, and may go once commit has ended."""

    def __init__(
        self, delivery: Delivery, folder: Path, refs: Sequence[RunRef], homes: Homes, options: Options
    ) -> None:
        self._delivery, self._folder, self._homes, self._options = delivery, folder, homes, options
        self._holders = [ref for ref in refs if ref.kind == "records"]
        self._drafts: dict[str, _Draft] = {}
        self._spool = trees.Spool(folder / "spool")
        self._records = Records(folder / "records")
        self._in_memory = 0
        self.losses: list[Loss] = []

    def begin(self, runs: Sequence[Run]) -> None:
        """The runs of the pack."""
        self._drafts = {run.id: _Draft(run, _Points(self._folder / "points" / str(n))) for n, run in enumerate(runs)}

    def points(self, batch: pa.RecordBatch) -> None:
        """Some more points; those of a run lie together."""
        with _room(self._folder):
            for id_, part in _by_run(batch):
                self._drafts[id_].points.add(part)
                self._in_memory += len(part)
            if self._in_memory > IN_MEMORY:
                for draft in self._drafts.values():
                    if draft.points.rows:
                        draft.points.to_disk()
                self._in_memory = 0

    def put(self, artifact: Artifact) -> None:
        """A file of a run, or of what was kept. Raises whatever reading it raises."""
        draft = self._drafts.get(artifact.owner)
        with _room(self._folder):
            if draft is None:
                self._records.put(artifact)
            else:
                draft.files[artifact.path] = self._spool.take(artifact)

    def keep(self, record: Record) -> None:
        """A record."""
        with _room(self._folder):
            self._records.keep(record)

    def commit(self, losses: Sequence[Loss] = ()) -> Mapping[str, str]:  # noqa: ARG002  the report has them
        """Writes all of it. Gives origin -> id in W&B."""
        ids: dict[str, str] = {}
        with ExitStack() as open_rows:
            made = [self._sheet(draft, open_rows) for draft in self._drafts.values()]
            sheets = [self._homes.met(sheet) for sheet in made]
            for ref in self._holders:
                run = self._records.run(ref, self._homes.of(ref.experiment))
                sheets.append(_without_rows(run, ref.origin, ref.stamp))
            for level in levels(sheets, uses=self._delivery.needs_levels):
                ids |= self._delivery.deliver(level)
        if self._records.collections:
            self.losses += self._delivery.link(self._records.collections)
        self.losses += self._delivery.losses
        return ids

    def _sheet(self, draft: _Draft, open_rows: ExitStack) -> Sheet:
        run, home = draft.run, self._homes.of(draft.run.experiment)
        native = self._native(draft)
        written = self._written(draft, native, open_rows)
        goods, losses = trees.goods(run, home, self._options, draft.files, native)
        self._homes.logged_again(home.project, goods.digests)
        found = outgoing(run, home, self._options, _facts(draft, written, native), goods, native)
        self.losses += [*losses, *found.losses]
        return Sheet(
            found.run, run.origin, run.stamp, written.rows, written.history, written.event_rows, written.events
        )

    def _native(self, draft: _Draft) -> WandbRun | None:
        """What wandb/run.json says; None where there is none, or another run's."""
        file = draft.files.get(RUN_JSON)
        if file is None or file.open is None:
            return None
        if (file.size or 0) > LARGEST_INDEX:
            self._lose(draft, RUN_JSON, f"it has {file.size} bytes, so the run is written as any other")
            return None
        try:
            with file.open() as stream:
                return index.parse(stream.read(), _opener(draft.files))
        except BadData as error:
            self._lose(draft, RUN_JSON, f"{error}, so the run is written as any other")
            return None

    def _written(self, draft: _Draft, native: WandbRun | None, open_rows: ExitStack) -> Written:
        if native is not None:
            rows = open_rows.enter_context(closing(self._rows(draft)))
            _fill(rows, draft, native)
            if self._others(rows, draft, native):
                written = rows.sorted(native=True)
                if written.native:
                    return written
                self._lose(draft, "rows of W&B", RENUMBERED)
                return self._numbered_anew(draft, native, open_rows)
        return self._numbered_anew(draft, None, open_rows)

    def _numbered_anew(self, draft: _Draft, native: WandbRun | None, open_rows: ExitStack) -> Written:
        """Every point, as of any run; of a native one also what keys hold that have no points."""
        rows = open_rows.enter_context(closing(self._rows(draft)))
        for batch in draft.points.batches():
            rows.add(batch)
        file = draft.files.get(HISTORY_JSONL)
        if native is not None and file is not None and file.open is not None:
            exact = _are_exact(draft.points, native)
            with file.open() as stream:
                for step, time, runtime, name, text in index.values(stream):
                    told = text.startswith(TELLS_A_POINT) or name in draft.points.counts
                    if not told and escaped(neutral(name)) == name:
                        rows.other(step, time if exact else _in_ms(time), runtime, name, text)
        return rows.sorted(native=False)

    def _rows(self, draft: _Draft) -> Rows:
        return Rows(self._folder / "rows", draft.run.start, ROWS_IN_MEMORY)

    def _others(self, rows: Rows, draft: _Draft, native: WandbRun) -> bool:
        """Adds the values that are no numbers; False where they cannot be told."""
        file = draft.files.get(HISTORY_JSONL)
        if file is None or file.open is None:
            return True
        exact, gone, named = _are_exact(draft.points, native), Counter[str](), Named()
        try:
            with file.open() as stream:
                for step, time, runtime, name, text in index.values(named.through(stream)):
                    key = _called(name, text, draft.points.counts)
                    if key is None:
                        gone[name] += 1
                    else:
                        rows.other(step, time if exact else _in_ms(time), runtime, key, text)
        except BadData as error:
            self._lose(draft, HISTORY_JSONL, f"{error}, so only the numbers are written as rows")
            return False
        for name, count in gone.items():
            self._lose(draft, f"metric {name!r}", f"it is not there under this name: {count} exact values are left out")
        named.take(native.summary)
        if strangers := named.strangers(native.logged):
            because = "they show versions by ids that only the W&B server knows which they came from"
            self._lose(draft, f"values that name {strangers} versions of artifacts", because)
        return True

    def _lose(self, draft: _Draft, what: str, because: str) -> None:
        self.losses.append(Loss(draft.run.id, what, because, draft.run.experiment))


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """A block that writes below `folder`: raises DiskFull where there is no room."""
    try:
        yield
    except OSError as error:
        told = explain(error, str(folder))
        if not isinstance(told, DiskFull):  # what cannot be read is the source's to explain
            raise
        raise told from error


def levels(sheets: Sequence[Sheet], *, uses: bool) -> list[list[Sheet]]:
    """The sheets in turns: a child comes after its parent, and (`uses`) who reads an artifact after who logs it."""
    made = {(one.name, one.digest): n for n, sheet in enumerate(sheets) for one in sheet.run.logged}
    parents = {sheet.run.id: n for n, sheet in enumerate(sheets)}
    needs = [
        {made[key] for one in sheet.run.used if uses and (key := (one.name, one.digest)) in made and made[key] != n}
        | {parents[parent] for parent in _parents(sheet) if parent in parents and parents[parent] != n}
        for n, sheet in enumerate(sheets)
    ]
    turns: list[list[Sheet]] = []
    left = set(range(len(sheets)))
    while left:
        ready = sorted(n for n in left if not needs[n] & left) or sorted(left)  # a ring is delivered at once
        turns.append([sheets[n] for n in ready])
        left -= set(ready)
    return turns


def _parents(sheet: Sheet) -> tuple[str, ...]:
    told = of_config(sheet.run.config.get(KEY))
    parent = told.tags.get(PARENT_TAG) if told is not None else None
    return (names.parent_id(sheet.origin, sheet.run.id, parent),) if parent else ()


def _by_run(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The stretches of a batch that belong to one run."""
    if not len(batch):
        return
    column = batch["run"]
    indices = column.indices.to_numpy(zero_copy_only=False)
    bounds = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(batch)]
    for first, end in pairwise(bounds):
        yield column.dictionary[int(indices[first])].as_py(), batch.slice(first, end - first)


def _fill(rows: Rows, draft: _Draft, native: WandbRun) -> None:
    """The points, but for those that only the summary tells: reading tells them from there again."""
    known = native.alone or ()
    single = {key: value for key, value in numbers_of(native.summary) if key in known and draft.points.counts[key] == 1}
    for batch in draft.points.batches():
        rows.add(_of_rows(batch, single) if single else batch)


def _of_rows(batch: pa.RecordBatch, single: Mapping[str, float]) -> pa.RecordBatch:
    """The batch without the only point of each of these keys, where it has the summary's value still."""
    known = [number for number, key in enumerate(batch["key"].dictionary.to_pylist()) if key in single]
    maybe = np.flatnonzero(np.isin(batch["key"].indices.to_numpy(zero_copy_only=False), known))
    told = [int(n) for n in maybe if _same(batch["value"][int(n)].as_py(), single[batch["key"][int(n)].as_py()])]
    keep = np.ones(len(batch), dtype=bool)
    keep[told] = False
    return batch.filter(pa.array(keep)) if told else batch


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _facts(draft: _Draft, written: Written, native: WandbRun | None) -> Facts:
    return Facts(
        rows=written.rows,
        events=written.event_rows,
        native=native is not None and written.native,
        latest=written.latest,
        keys=frozenset(draft.points.counts),
        last=written.last,
    )


def _are_exact(points: _Points, native: WandbRun) -> bool:
    """Whether times are to be taken to the microsecond: points have such, or there are none that rows could meet."""
    alone = native.alone or ()
    return points.micros or all(key in alone or key.startswith(SYSTEM) for key in points.counts)


def _called(name: str, text: str, points: Mapping[str, int]) -> str | None:
    """The name of a value in a row. What is a point, too, is called as the points of its key had to be.

    None where these are called otherwise, or left out, since it was told: it would be one more.
    """
    if name == MARK or not text.startswith(TELLS_A_POINT):
        return name
    key = neutral(name)
    fitted = LIMITS.key(key)
    if fitted not in points:
        return None
    return name if fitted == key else fitted


def _in_ms(time: float | None) -> float | None:
    """The time as points tell it that came by a tracker of whole milliseconds: those of one row must meet."""
    ms = moments.whole_ms(time)
    return time if ms is None else ms / 1000


def _opener(files: Mapping[str, File]) -> Callable[[str], Opener | None]:
    return lambda at: files[at].open if at in files else None


def _without_rows(run: WandbRun, origin: str, stamp: str) -> Sheet:
    return Sheet(run, origin, stamp, 0, _nothing, 0, _nothing)


def _nothing(start: int) -> Iterator[Block]:  # noqa: ARG001  as a history
    return iter(())
