"""Many runs written at once: each by a thread, and proven in groups, several in one look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol

from mlmigrate.adapters.wandb.api.logged import Made
from mlmigrate.adapters.wandb.api.pages import Untold
from mlmigrate.adapters.wandb.api.places import Begun
from mlmigrate.adapters.wandb.api.proving import Written
from mlmigrate.adapters.wandb.provenance import KEY, of_config
from mlmigrate.adapters.wandb.shape import Sheet, Version
from mlmigrate.errors import MigrateError

WRITERS = 32  # runs under way at once
PROVERS = 3
GROUP = 16  # runs in one look
GROUP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Sent:
    """A run that was written.

    lent   versions that it read and that were made for it, with what they became
    owed   those that it read and that nobody has made yet
    """

    written: Written
    begun: Begun
    lent: tuple[tuple[Version, Made], ...] = ()
    owed: tuple[Version, ...] = ()


class Writer(Protocol):
    """What is done with a run. Calls come from many threads."""

    def write(self, sheet: Sheet, least: int = 1) -> Sent:
        """All of it but the uses; `least` is the first generation that is tried."""

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
        readers: list[Sent] = []
        ready: list[Sent] = []
        for sent in self._done(writers.submit(self._writer.write, sheet) for sheet in sheets):
            if sent.written.sheet.run.used:
                readers.append(sent)
                continue
            ready.append(sent)
            if _full(ready):
                proving.append(provers.submit(self._prove, ready))
                ready = []
        for sent in self._done(writers.submit(self._writer.use, sent) for sent in readers):
            ready.append(sent)
        proving += [provers.submit(self._prove, some) for some in _groups(ready)]
        for _ in self._done(iter(proving)):
            pass

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
        again = self._writer.use(self._writer.write(sent.written.sheet, generation + 1))
        wrong = self._writer.prove([again.written])
        if wrong:
            self.errors += wrong.values()
        else:
            self._stamp([again])


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
