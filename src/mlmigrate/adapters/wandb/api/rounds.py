"""Many runs written at once: each by a thread, and proven in groups, several in one look.

Versions of artifacts that several runs may make wait until all runs are written: those of one collection are then made
one after another, by the numbers that they had, else by the times of their runs, for W&B numbers them as they come.
Uses come after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mlmigrate.adapters.wandb.api.logged import Made
from mlmigrate.adapters.wandb.api.pages import Untold
from mlmigrate.adapters.wandb.api.places import Begun
from mlmigrate.adapters.wandb.api.proving import Written
from mlmigrate.adapters.wandb.api.stream import Where
from mlmigrate.adapters.wandb.provenance import FILES_TYPE, KEY, MADE, RECORDS_TYPE, of_config
from mlmigrate.adapters.wandb.restored import number_of
from mlmigrate.adapters.wandb.shape import Sheet, Version, WandbRun
from mlmigrate.errors import MigrateError, Unavailable

WRITERS = 32  # runs under way at once
PROVERS = 3
GROUP = 16  # runs in one look
GROUP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Sent:
    """A run that was written.

    made     the versions that it logged: position in its `logged` -> what it became
    waiting  positions of those that are still to be made, each when its turn comes
    lent     versions that it read and that were made for it, with what they became
    owed     those that it read and that nobody has made yet
    """

    written: Written
    begun: Begun
    made: Mapping[int, Made] = field(default_factory=dict)
    waiting: tuple[int, ...] = ()
    lent: tuple[tuple[Version, Made], ...] = ()
    owed: tuple[Version, ...] = ()

    def logged(self, more: Mapping[int, Made]) -> Sent:
        """The same with all versions made."""
        all_ = {**self.made, **more}
        written = replace(self.written, logged=tuple(all_[n] for n in sorted(all_)))
        return replace(self, written=written, made=all_, waiting=())


class Writer(Protocol):
    """What is done with a run. Calls come from many threads."""

    def write(self, sheet: Sheet, least: int = 1) -> Sent:
        """All of it but versions that wait, and the uses; `least` is the first generation that is tried."""

    def log(self, sent: Sent, n: int) -> Made:
        """Makes a version that it logged, the one at this position."""

    def turn(self) -> AbstractContextManager[None]:
        """While it lasts, this round alone makes versions that have waited."""

    def use(self, sent: Sent) -> Sent:
        """Says which versions it has read."""

    def prove(self, written: Sequence[Written]) -> Mapping[str, MigrateError]:
        """Origin -> what is wrong, for those that are not as sent. All of one project."""

    def stamp(self, sent: Sequence[Sent]) -> None:
        """Says that they are whole."""


class Round:
    """One delivery under way: runs are written as threads are free, and proven in groups."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.ids: dict[str, str] = {}
        self.errors: list[BaseException] = []

    def run(self, sheets: Sequence[Sheet]) -> None:
        """All of them; errors are collected."""
        if not sheets:
            return
        width = min(WRITERS, len(sheets))
        with ThreadPoolExecutor(width, "wandb-write") as writers, ThreadPoolExecutor(PROVERS, "wandb-prove") as provers:
            try:
                self._run(writers, provers, sheets)
            except BaseException:
                writers.shutdown(wait=False, cancel_futures=True)
                provers.shutdown(wait=False, cancel_futures=True)
                raise

    def _run(self, writers: ThreadPoolExecutor, provers: ThreadPoolExecutor, sheets: Sequence[Sheet]) -> None:
        proving: list[Future[None]] = []
        waiting: list[Sent] = []
        ready: list[Sent] = []
        for sent in self._done(writers.submit(self._writer.write, sheet) for sheet in sheets):
            if sent.waiting or sent.written.sheet.run.used:
                waiting.append(sent)
                continue
            ready.append(sent)
            if _full(ready):
                proving.append(provers.submit(self._prove, ready))
                ready = []
        if any(sent.waiting for sent in waiting):
            places = {sheet.origin: (sheet.run.started or 0, n) for n, sheet in enumerate(sheets)}
            waiting.sort(key=lambda sent: places[sent.written.sheet.origin])
            waiting = self._log_in_order(writers, waiting)
        for sent in self._done(writers.submit(self._writer.use, sent) for sent in waiting):
            ready.append(sent)
        proving += [provers.submit(self._prove, some) for some in _groups(ready)]
        for _ in self._done(iter(proving)):
            pass

    def _log_in_order(self, writers: ThreadPoolExecutor, waiting: Sequence[Sent]) -> list[Sent]:
        """Makes the versions that wait; gives the runs of which none failed."""
        collections: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        for run, sent in enumerate(waiting):
            for n in sent.waiting:
                version = sent.written.sheet.run.logged[n]
                key = sent.written.where.project, version.name
                collections.setdefault(key, []).append((number_of(version.version), run, n))
        made: dict[int, dict[int, Made]] = {}
        with self._writer.turn():
            for found in self._done(writers.submit(self._log, waiting, sorted(some)) for some in collections.values()):
                for run, n, one in found:
                    made.setdefault(run, {})[n] = one
        return [
            sent.logged(made.get(run, {}))
            for run, sent in enumerate(waiting)
            if made.get(run, {}).keys() == set(sent.waiting)
        ]

    def _log(self, waiting: Sequence[Sent], some: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, Made]]:
        """Those of one collection. One that is bad does not stop the others; a server that is away does, so that the
        next try finds their order kept.
        """
        found = []
        for _, run, n in some:
            try:
                found.append((run, n, self._writer.log(waiting[run], n)))
            except Unavailable as error:
                self.errors.append(error)
                break
            except MigrateError as error:
                self.errors.append(error)
        return found

    def _done(self, futures: Iterable[Future[Any]]) -> Iterator[Any]:
        """What they give as they end. Errors are kept; those that are no mere errors end all at once."""
        for future in as_completed(list(futures)):
            error = future.exception()
            if error is None:
                yield future.result()
            elif isinstance(error, Exception):
                self.errors.append(error)
            else:
                raise error

    def _prove(self, group: Sequence[Sent]) -> None:
        for some in _by_project(group):
            wrong = self._writer.prove([one.written for one in some])
            good = [one for one in some if one.written.sheet.origin not in wrong]
            if good:
                self._stamp(good)
            for one in some:
                error = wrong.get(one.written.sheet.origin)
                if error is not None:
                    self._again(one, error)

    def _stamp(self, good: Sequence[Sent]) -> None:
        self._writer.stamp(good)
        self.ids |= {one.written.sheet.origin: one.written.where.id for one in good}

    def _again(self, sent: Sent, error: MigrateError) -> None:
        """A run that was gone on with may have been spoiled where nobody looked before: once more, from nothing."""
        if sent.begun.fresh or isinstance(error, Untold):
            self.errors.append(error)
            return
        generation = _generation(sent.begun.config)
        written = self._writer.write(sent.written.sheet, generation + 1)
        again = self._writer.use(written.logged({n: self._writer.log(written, n) for n in written.waiting}))
        wrong = self._writer.prove([again.written])
        if wrong:
            self.errors += wrong.values()
        else:
            self._stamp([again])


def shared(version: Version, run: WandbRun, where: Where) -> bool:
    """Whether its collection may have several versions, of which one is the latest, and each has a number that says
    something. Those that we name after a run are that run's alone.
    """
    ours = version.type in (FILES_TYPE, RECORDS_TYPE) or version.metadata.get(KEY) == MADE
    alone = version.name.endswith(where.id) and sum(one.name == version.name for one in run.logged) == 1
    return not ours and not alone and version.project in ("", where.project)


def _generation(config: Mapping[str, Any]) -> int:
    found = of_config(config[KEY]["value"])
    return found.generation if found is not None else 1


def _full(group: Sequence[Sent]) -> bool:
    return len(group) >= GROUP or sum(one.written.size for one in group) > GROUP_BYTES


def _groups(ready: Iterable[Sent]) -> Iterator[list[Sent]]:
    group: list[Sent] = []
    for one in ready:
        group.append(one)
        if _full(group):
            yield group
            group = []
    if group:
        yield group


def _by_project(group: Sequence[Sent]) -> list[list[Sent]]:
    found: dict[tuple[str, str], list[Sent]] = {}
    for one in group:
        found.setdefault((one.written.where.entity, one.written.where.project), []).append(one)
    return list(found.values())
