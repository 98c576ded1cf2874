"""A pack being written to an MLflow server: several runs at once, each run's calls one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.mlflow.references import LARGEST_MLMODEL, MLMODEL, RUN_TAGS, rewritten
from mlmigrate.adapters.mlflow.rest.objects import Frame, Known, Writers, may_refer
from mlmigrate.adapters.mlflow.rest.uploads import Uploads
from mlmigrate.adapters.mlflow.rest.waiting import Waits, encoded
from mlmigrate.adapters.mlflow.rest.wire import WireRun
from mlmigrate.adapters.mlflow.rest.writing import (
    DELETED_TAG,
    NAME_TAG,
    TAGS,
    WAITS_TAG,
    Writing,
    is_whole,
    pairs,
)
from mlmigrate.errors import BadData, MigrateError, Unavailable
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, Artifact, Loss, Record, Run, RunRef

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.rest.target import RestTarget

WRITERS = 8
BLOCK = 20_000  # points that are sorted and sent together
UNDER_WAY = 3 * WRITERS  # calls that wait for their turn: what bounds memory
FILES = 64  # small files on their way, or waiting for it


@dataclass
class Draft:
    """A run being written. `id` is its id here; `done` says that it was whole before we came."""

    run: Run
    stamp: str
    experiment: str
    id: str = ""
    uri: str = ""
    done: bool = False
    adopted: WireRun | None = None
    params: list[dict[str, str]] = field(default_factory=list)
    tags: list[dict[str, str]] = field(default_factory=list)
    held: list[pa.RecordBatch] = field(default_factory=list)
    holding: int = 0
    waits: Waits = field(default_factory=Waits)
    turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def deleted(self) -> bool:
        return self.run.deleted


class RestPlace:
    """A pack. `losses` is complete after `commit`."""

    def __init__(self, target: RestTarget, writing: Writing, pool: Executor, refs: Sequence[RunRef]) -> None:
        self._target, self._writing, self._pool = target, writing, pool
        self._refs = refs
        self._stamps = {ref.id: ref.stamp for ref in refs}
        self._drafts: dict[str, Draft] = {}
        self._last: Draft | None = None  # whose points came last
        self._under_way: set[Future[Any]] = set()
        self._files: set[Future[Any]] = set()
        self.losses: list[Loss] = []
        self._uploads = Uploads(writing.client, target.settings.allow_artifacts, self.losses)
        self._writers = Writers(self._frame())

    @property
    def _known(self) -> Known:
        return self._target.known

    def _frame(self) -> Frame:
        target = self._target
        return Frame(
            client=self._writing.client,
            server=target.server,
            settings=target.settings,
            known=target.known,
            writing=self._writing,
            uploads=self._uploads,
            home=lambda experiment: target.homes.home(experiment)[0],
            later=self._later,
            settle=lambda: self._wait(0),
            losses=self.losses,
            turns=target.turns,
        )

    def begin(self, runs: Sequence[Run]) -> None:
        """Finds the runs that an earlier try left, makes the others."""
        drafts = [self._draft(run) for run in runs]
        there = self._there(drafts)
        futures = [self._pool.submit(self._open, draft, there.get(draft.run.origin, [])) for draft in drafts]
        for draft, future in zip(drafts, futures, strict=True):
            future.result()
            self._drafts[draft.run.id] = draft
            self._target.origins[draft.run.origin] = draft.id
            self._known.note("run", draft.run.id, draft.id, draft.uri)
        for future in [self._pool.submit(self._refer, draft) for draft in drafts if not draft.done]:
            future.result()

    def _draft(self, run: Run) -> Draft:
        experiment, deleted = self._target.homes.home(run.experiment)
        if deleted and not run.deleted:
            self._lose(run, "not being deleted", "its experiment is deleted, and MLflow deletes its runs with it")
        return Draft(run, self._stamps.get(run.id, run.stamp), experiment)

    def _there(self, drafts: Sequence[Draft]) -> dict[str, list[WireRun]]:
        """What earlier tries left, by origin: our runs that began in the same time."""
        found: dict[str, list[WireRun]] = {}
        for experiment in {draft.experiment for draft in drafts}:
            starts = [draft.run.start or 0 for draft in drafts if draft.experiment == experiment]
            for run in self._writing.between(experiment, min(starts), max(starts)):
                found.setdefault(run.tags[ORIGIN_TAG], []).append(run)
        for draft in drafts:  # one whose start changed since it was copied
            if draft.run.origin not in found and (there := self._target.origins.get(draft.run.origin)):
                found[draft.run.origin] = [self._writing.get(there)]
        for runs in found.values():
            runs.sort(key=lambda one: (not is_whole(one), one.id))
        return found

    def _open(self, draft: Draft, there: list[WireRun]) -> None:
        for surplus in there[1:]:
            self._writing.remove(surplus)
        if there:
            self._adopt(draft, there[0])
            return
        first = dict(list(self._tags(draft).items())[: TAGS - 10])
        made = self._writing.create(draft.run, draft.experiment, first)
        draft.id, draft.uri = made.id, made.info.artifact_uri
        draft.tags = [tag for tag in pairs(self._tags(draft)) if tag["key"] not in first and tag["key"] != NAME_TAG]

    def _adopt(self, draft: Draft, there: WireRun) -> None:
        """A run that was left without a stamp, or that changed since: brought up to date."""
        draft.id, draft.uri, draft.adopted = there.id, there.info.artifact_uri, there
        has = there.tags
        if is_whole(there) and has[STAMP_TAG] == draft.stamp:
            draft.done = True
            return
        if there.info.lifecycle_stage == "deleted":
            self._writing.restore(there.id)
        means = self._tags(draft)
        kept = {NAME_TAG, WAITS_TAG, *draft.run.tags}
        gone = [key for key in has if key not in means and key not in kept]
        for key in sorted(gone, key=lambda name: name != STAMP_TAG):  # the stamp first: it is not whole now
            self._writing.delete_tag(there.id, key)
        draft.tags = [tag for tag in pairs(means) if has.get(tag["key"]) != tag["value"] and tag["key"] != NAME_TAG]
        for what, old, new in (
            ("start", there.info.start_time, draft.run.start),
            ("user", there.info.user_id, draft.run.user),
        ):
            if (old or 0) != (new or 0) and (old or new):
                self._lose(draft.run, what, "changed since it was copied, and MLflow changes it no more")

    def _params(self, draft: Draft, means: Mapping[str, str]) -> None:
        """Params that are there cannot be changed nor deleted."""
        has = {} if draft.adopted is None else {pair.key: pair.value for pair in draft.adopted.data.params}
        draft.params = pairs({key: value for key, value in means.items() if key not in has})
        for key, value in has.items():
            if means.get(key) != value:
                self._lose(draft.run, f"param {key!r}", "changed since it was copied, and MLflow changes no param")

    def _tags(self, draft: Draft) -> dict[str, str]:
        """The tags that the run shall have before its stamp, but for those that may name others."""
        tags = {ORIGIN_TAG: draft.run.origin}
        tags |= {DELETED_TAG: "true"} if draft.deleted else {}
        own = {key: value for key, value in draft.run.tags.items() if not key.startswith(OURS)}
        return tags | {key: value for key, value in own.items() if key not in RUN_TAGS and not may_refer(value)}

    def _refer(self, draft: Draft) -> None:
        """Tags and params that name things by id: by the ids here where those are known; the others wait."""
        run, means = self._known.references.run(draft.run), self._tags(draft)
        has = draft.adopted.tags if draft.adopted is not None else {}
        for key, value in run.tags.items():
            if key in means or key == NAME_TAG or key.startswith(OURS):
                continue
            if has.get(key) != value:
                draft.tags.append({"key": key, "value": value})
            if self._known.waits(value) or (key in RUN_TAGS and value and value not in self._known.here):
                draft.waits.tags.append(key)
        params = {key: str(value) for key, value in run.params.items()}
        draft.waits.params += [key for key, value in params.items() if may_refer(value) and self._known.waits(value)]
        self._params(draft, params)

    def points(self, batch: pa.RecordBatch) -> None:
        """Holds points until there are enough of a run to send; several runs are sent at once."""
        for run, rows in _runs_of(batch):
            draft = self._of(run)
            if draft.done:
                continue
            if self._last is not None and self._last is not draft and self._last.holding:
                self._send(self._last)
            self._last = draft
            draft.held.append(rows)
            draft.holding += len(rows)
            if draft.holding >= BLOCK:
                self._send(draft)

    def _send(self, draft: Draft) -> None:
        held, draft.held, draft.holding = draft.held, [], 0
        self._later(self._log, draft, held)

    def _log(self, draft: Draft, held: Sequence[pa.RecordBatch]) -> None:
        with draft.turn:
            params, draft.params = draft.params, []
            tags, draft.tags = draft.tags, []
            self._writing.log(draft.id, params, tags, _sorted(held))

    def put(self, artifact: Artifact) -> None:
        """Sends a file; small ones several at once."""
        if artifact.owner.startswith("@"):
            self._writers.put(artifact)
            return
        draft = self._of(artifact.owner)
        if draft.done:
            return
        call = self._uploads.of(draft.id, draft.uri, self._named(draft, artifact))
        if call is not None:
            self._files = _settled(self._files, FILES - 1)
            self._files.add(self._writing.client.stores.submit(call))

    def _named(self, draft: Draft, artifact: Artifact) -> Artifact:
        """The file; what an MLmodel file names is named as it is here."""
        if artifact.path.rpartition("/")[2] != MLMODEL or (artifact.size or 0) > LARGEST_MLMODEL:
            return artifact

        def text(before: str) -> str:
            after = self._known.references.text(before)
            if self._known.waits(after):
                draft.waits.files.append(artifact.path)
            return after

        return rewritten(artifact, text)

    def keep(self, record: Record) -> None:
        """Takes an object beside runs."""
        self._writers.keep(record)

    def commit(self, losses: Sequence[Loss] = ()) -> Mapping[str, str]:  # noqa: ARG002  there is no call for them
        """What is left of each run, then its stamp."""
        self._writers.commit()
        self._commit_runs()
        for ref in self._refs:
            if ref.kind == "records":
                self._target.homes.mark(ref)
        return {draft.run.origin: draft.id for draft in self._drafts.values()}

    def _commit_runs(self) -> None:
        for draft in self._drafts.values():
            if not draft.done and draft.waits:
                draft.tags.append({"key": WAITS_TAG, "value": encoded(draft.waits)})
        for draft in self._drafts.values():
            if draft.holding or draft.params or draft.tags:
                self._send(draft)
        self._wait(0)
        for draft in self._drafts.values():
            if not draft.done:
                self._later(self._close, draft)
        self._wait(0)

    def _close(self, draft: Draft) -> None:
        run, writing = draft.run, self._writing
        for given in run.inputs:
            self._input(draft, given)
        self._uploads.check(draft.id)
        writing.update(draft.id, run, run.name if _renamed(draft) else None)
        if run.end is None and draft.adopted is not None and draft.adopted.info.end_time:
            self._lose(run, "having no end time", "it had one when it was copied before, and MLflow takes none back")
        if NAME_TAG not in run.tags:
            writing.delete_tag(draft.id, NAME_TAG)
        if not draft.waits and draft.adopted is not None and WAITS_TAG in draft.adopted.tags:
            writing.delete_tag(draft.id, WAITS_TAG)
        for surplus in writing.surplus(run.origin, draft.experiment, draft.id):
            writing.remove(surplus)
        for what, because in writing.client.cuts.of(draft.id, run.origin):
            self._lose(run, what, because)
        writing.set_tag(draft.id, STAMP_TAG, draft.stamp)
        if draft.deleted:
            writing.delete(draft.id)

    def _input(self, draft: Draft, given: Any) -> None:  # noqa: ANN401
        try:
            self._writing.input(draft.id, given)
        except Unavailable:
            raise
        except MigrateError as error:
            self._lose(draft.run, f"dataset input {given.name!r}", error.message)

    def _of(self, run: str) -> Draft:
        if run not in self._drafts:
            raise BadData(f"Something belongs to run {run!r}, which is not in its pack.")
        return self._drafts[run]

    def _later(self, call: Callable[..., None], *given: object) -> None:
        self._wait(UNDER_WAY)
        self._under_way.add(self._pool.submit(call, *given))

    def _wait(self, most: int) -> None:
        """Until fewer than `most` calls are under way, or with 0 none, and no file. Raises what one of them raised."""
        self._under_way = _settled(self._under_way, max(most, 1) - 1)
        if not most:
            self._files = _settled(self._files, 0)

    def close(self) -> None:
        """Sends no further file, and waits for those that are under way: a second try must not meet them."""
        for future in self._files:
            future.cancel()
        wait(self._files)
        self._files = set()

    def _lose(self, run: Run, what: str, because: str) -> None:
        self.losses.append(Loss(run.id, what, because, run.experiment))


def _settled(under_way: set[Future[Any]], most: int) -> set[Future[Any]]:
    """What is left once no more than `most` are under way. Raises what one of them raised."""
    while len(under_way) > most:
        done, under_way = wait(under_way, return_when="FIRST_COMPLETED")
        for future in done:
            future.result()
    return under_way


def _renamed(draft: Draft) -> bool:
    """Whether a run that was there has another name now, or lost the tag that repeats it."""
    if draft.adopted is None:
        return False
    tag = NAME_TAG in draft.run.tags and NAME_TAG not in draft.adopted.tags
    return tag or draft.adopted.info.run_name != draft.run.name


def _runs_of(batch: pa.RecordBatch) -> list[tuple[str, pa.RecordBatch]]:
    """The batch cut where the run changes."""
    if not len(batch):
        return []
    runs = batch.column("run")
    names = runs.dictionary.to_pylist()
    codes = runs.indices
    changes = pc.indices_nonzero(pc.not_equal(codes[1:], codes[:-1])).to_pylist()
    edges = [0, *(change + 1 for change in changes), len(batch)]
    return [(names[codes[start].as_py()], batch.slice(start, end - start)) for start, end in pairwise(edges)]


def _sorted(held: Sequence[pa.RecordBatch]) -> pa.RecordBatch | None:
    """In the order that the server's database takes fastest."""
    if not held:
        return None
    columns = ["key", "step", "timestamp", "value"]
    table = pa.Table.from_batches([batch.select(columns) for batch in held])
    table = table.set_column(0, "key", table["key"].cast(pa.utf8()))
    order = [("key", "ascending"), ("step", "ascending"), ("timestamp", "ascending")]
    return table.sort_by(order).combine_chunks().to_batches()[0]
