"""Runs written to a server, many at once; each of its steps may be made again, by a second try or a second command.

upsert      all that is told of the run; its provenance has no stamp yet.  The server says how many lines it has
go on       lines that are there are read back: the beginning of ours? Then the rest is sent
            else the run is spoiled, and the next generation of its id takes its place
files       of the run page
artifacts   that the run made
stream      history, system metrics, console, summary; that it is complete
uses        artifacts that it read, once all runs at hand made theirs
prove       all of it read back and compared, several runs in one look
stamp       only now is the run there; a spoiled one is deleted after that
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mlmigrate.adapters.wandb import names
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.links import linked
from mlmigrate.adapters.wandb.api.logged import Artifacts, Made, draft
from mlmigrate.adapters.wandb.api.proving import Proof, Written
from mlmigrate.adapters.wandb.api.stream import (
    CONSOLE,
    EVENTS,
    HISTORY,
    SUMMARY,
    Counts,
    Stream,
    Where,
    console_lines,
    counts,
    event_lines,
    history_lines,
)
from mlmigrate.adapters.wandb.api.there import Existing, There, light, provenance, stamped
from mlmigrate.adapters.wandb.api.uploads import (
    FILES_PER_CALL,
    PIECE,
    Bytes,
    config_yaml,
    measured,
    of_data,
    send_files,
    send_to,
)
from mlmigrate.adapters.wandb.api.writes import (
    DELETE_RUN,
    RUN_FILES,
    STAMP_RUN,
    UPSERT_RUN,
    UPSERT_RUN_WITH_FILES,
    stamp_all,
)
from mlmigrate.adapters.wandb.provenance import KEY, Provenance, as_config, of_config
from mlmigrate.adapters.wandb.records import Collection
from mlmigrate.adapters.wandb.shape import Sheet, Version, WandbRun
from mlmigrate.adapters.wandb.writing import regenerated
from mlmigrate.errors import Conflict, Damaged, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.model import PARENT_TAG, Loss

WRITERS = 32  # runs under way at once
PROVERS = 3
GROUP = 16  # runs in one look
GROUP_BYTES = 4 << 20
GENERATIONS = 20  # tried, before that is an error
KEPT = 256 << 10  # bytes of a run's lines that wait in memory to be compared
LARGE_ROWS = 5_000  # from so many on, few runs stream at once
LARGE_AT_ONCE = 3
SMALL_REQUEST = 2 << 20  # bytes; those of many runs are in memory at once
EXIT_CODES: Mapping[str, int | None] = {"finished": 0, "running": None, "pending": None}


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that may be written now. `fresh`: nothing of it was there; `places`: where its files may be put."""

    sheet: Sheet
    where: Where
    bucket: str
    config: Mapping[str, Any]
    there: Counts
    fresh: bool
    files: tuple[Bytes, ...] = ()
    places: Mapping[str, Any] | None = None
    spoiled: tuple[Existing, ...] = ()


@dataclass(frozen=True, slots=True)
class Sent:
    """A run that was written, and what is to be deleted once it is whole."""

    written: Written
    begun: Begun


@dataclass
class Sending:
    """Delivers sheets to one server: shape.Delivery. May be called from several threads at once."""

    client: Client
    entity: str
    there: There
    artifacts: Artifacts
    proof: Proof
    losses: list[Loss] = field(default_factory=list)
    blames: bool = False
    waiting: list[tuple[Where, Version]] = field(default_factory=list)  # uses of what nobody made yet
    _large: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(LARGE_AT_ONCE))

    def deliver(self, sheets: Sequence[Sheet]) -> Mapping[str, str]:
        """Writes the runs, proves and stamps them: origin -> id. Raises the first error, after all have ended."""
        self.there.load(sheet.run.project for sheet in sheets)
        round_ = Round(self)
        todo = []
        for sheet in sheets:
            there = self._whole(sheet)
            if there is None:
                todo.append(sheet)
            else:
                round_.ids[sheet.origin] = there.id
        round_.run(todo)
        if round_.errors:
            raise self._blamed(round_.errors[0], arrived=len(round_.ids) > len(sheets) - len(todo))
        return round_.ids

    def _blamed(self, error: BaseException, *, arrived: bool) -> BaseException:
        """Where other runs arrive the server is not away: then it is this run that fails, and not the whole pack."""
        if isinstance(error, Unavailable) and arrived and self.blames:
            blamed = MigrateError(error.message, error.hint)
            blamed.__cause__ = error
            return blamed
        return error

    def for_a_pack(self) -> Sending:
        """The same, with losses of its own. What fails alone in a pack is to blame for it."""
        return replace(self, losses=[], blames=True)

    def _whole(self, sheet: Sheet) -> Existing | None:
        for run in self.there.of(sheet.origin):
            if run.project == sheet.run.project:
                return run if run.ours is not None and run.ours.stamp == sheet.stamp else None
        return None

    def link(self, collections: Sequence[Collection]) -> Sequence[Loss]:
        """Makes collections of versions that are there: what W&B's own registry of models does."""
        return linked(self.artifacts, self.there, self.entity, collections)

    # -- one run -------------------------------------------------------------------------------------------------------

    def write(self, sheet: Sheet, least: int = 1) -> Sent:
        """All of a run but the uses; `least` is the first generation that is tried."""
        begun = self._begin(sheet, least)
        sheet = begun.sheet
        console = next((file for file in sheet.run.files if file.path == CONSOLE and file.open is not None), None)
        files = begun.files
        self._send_files(begun)
        logged = tuple(self._log(begun.where, sheet.run.logged))
        large = sheet.rows + sheet.event_rows > LARGE_ROWS
        with self._large if large else nullcontext():
            stream = Stream(self.client, begun.where) if large else Stream(self.client, begun.where, SMALL_REQUEST)
            lines, steps = self._stream_history(stream, sheet, begun.there.history)
            events = self._stream_events(stream, sheet, begun.there.events)
            if console is not None and console.open is not None:
                with console.open() as data:
                    stream.lines(CONSOLE, 0, console_lines(iter(lambda: data.read(PIECE), b"")))
            stream.finish(_json(sheet.run.summary), [file.path for file in files], exit_code(sheet.run))
        there = {file.path: "" if _generated(sheet, file.path) else file.md5 for file in files}
        written = Written(
            sheet, begun.where, begun.bucket, begun.config, state(sheet.run), begun.there.history, lines, steps,
            events, there, logged,
        )  # fmt: skip
        return Sent(written, begun)

    def _begin(self, sheet: Sheet, least: int) -> Begun:
        """A place for the run: made, gone on with, or another generation's."""
        mine = [run for run in self.there.of(sheet.origin) if run.project == sheet.run.project and run.ours]
        newest = max((run.ours.generation for run in mine if run.ours), default=1)
        start = max(newest, least)
        spoiled = [run for run in mine if run.ours and run.ours.generation < start]
        for generation in range(start, start + GENERATIONS):
            begun = self._try(sheet, generation, spoiled)
            if begun is None:
                continue
            if generation > newest:
                because = "a run of its id was there, deleted or with another history"
                self.losses.append(
                    Loss(sheet.run.id, f"run id {sheet.run.id!r}", f"{because}; ours is {begun.where.id!r}")
                )
            return replace(begun, spoiled=tuple(spoiled))
        raise Conflict(
            f"W&B takes no id for the run {sheet.run.id!r}: {GENERATIONS} generations of it are taken or deleted.",
            "Copy into another project",
        )

    def _try(self, sheet: Sheet, generation: int, spoiled: list[Existing]) -> Begun | None:
        """The run as one of this generation; None where that cannot be."""
        mine = self._settled(sheet if generation == 1 else regenerated(sheet, generation))
        where = Where(mine.run.entity or self.entity, mine.run.project, mine.run.id)
        known = self.there.at(where.project, where.id)
        if known is not None and (known.ours is None or known.ours.origin != sheet.origin):
            return None  # somebody else's
        there = counts(self.client, where) if known is not None else Counts()
        if known is not None and self._spoils(mine, where, there):
            spoiled.append(known)
            return None
        try:
            begun = self._upsert(mine, where, generation, known, there)
        except Conflict:
            return None  # a run of this id was deleted: W&B never takes it again
        if known is None and self._spoils(mine, where, begun.there):
            spoiled.append(_existing(begun, generation))
            return None
        return begun

    def _settled(self, sheet: Sheet) -> Sheet:
        """The sheet, its parent called as it is here."""
        told = of_config(sheet.run.config.get(KEY))
        parent = told.tags.get(PARENT_TAG) if told is not None else None
        if told is None or not parent:
            return sheet
        plain = names.parent_id(told.origin, told.id or sheet.run.id, parent)
        here = next((run.id for run in self._parents(told, sheet.run, parent) if run.ours), plain)
        if here == parent:
            return sheet
        config = {**sheet.run.config, KEY: as_config(replace(told, tags={**told.tags, PARENT_TAG: here}))}
        group = here if sheet.run.group == plain else sheet.run.group
        return replace(sheet, run=replace(sheet.run, config=config, group=group))

    def _parents(self, told: Provenance, run: WandbRun, parent: str) -> list[Existing]:
        own = told.id or run.id
        if not told.origin.endswith(own):
            return []
        return [one for one in self.there.of(told.origin.removesuffix(own) + parent) if one.project == run.project]

    def _upsert(self, sheet: Sheet, where: Where, generation: int, known: Existing | None, there: Counts) -> Begun:
        config = config_of(sheet.run)
        files = self._files(sheet, where, config)
        answer = self._made(_upsert_of(sheet.run, where, config), files if known is None else ())
        made = answer["upsertBucket"] or {}
        bucket = made.get("bucket")
        if not bucket:
            raise MigrateError(f"W&B did not make the run {where.shown}.", "May the key's owner write there?")
        fresh = known is None and not bucket.get("historyLineCount")
        if known is None:
            there = Counts() if fresh else counts(self.client, where)
        fresh = fresh and bool(made.get("inserted", True))
        begun = Begun(sheet, where, bucket["id"], config, there, fresh, files, answer.get("createRunFiles"))
        self.there.note(_existing(begun, generation))
        return begun

    def _made(self, given: Mapping[str, Any], files: Sequence[Bytes]) -> dict[str, Any]:
        """The run, and where its files may be put: in one request where the server likes that."""
        if 0 < len(files) <= FILES_PER_CALL:
            try:
                return self.client.graphql(UPSERT_RUN_WITH_FILES, {**given, "files": [file.path for file in files]})
            except (Conflict, Unavailable, Refused):
                raise
            except MigrateError:
                pass  # it may take one at a time, or not know the run's files yet; else the next says why
        return self.client.graphql(UPSERT_RUN, given)

    def _spoils(self, sheet: Sheet, where: Where, there: Counts) -> bool:
        """Whether the lines that are there are not the beginning of ours."""
        if there.history > sheet.rows or there.events > sheet.event_rows:
            return True
        return bool(there.history and self.proof.compare(where, sheet.history(0), there.history))

    def _files(self, sheet: Sheet, where: Where, config: Mapping[str, Any]) -> tuple[Bytes, ...]:
        """The files of the run page."""
        files = [measured(file, f"the run {where.shown}") for file in sheet.run.files]
        own = {file.path for file in files}
        return (*files, *(file for file in _told(sheet.run, config) if file.path not in own))

    def _send_files(self, begun: Begun) -> None:
        """Sends the files where they are not there already."""
        if begun.fresh and begun.places is not None:
            send_to(self.client, begun.where, begun.files, begun.places)
        else:
            send_files(self.client, begun.where, begun.files if begun.fresh else self._missing(begun))

    def _missing(self, begun: Begun) -> list[Bytes]:
        where, files = begun.where, begun.files
        there: dict[str, str] = {}
        for first in range(0, len(files), 100):
            some = [file.path for file in files[first : first + 100]]
            given = {"entity": where.entity, "project": where.project, "name": where.id, "fileNames": some}
            data = self.client.graphql(RUN_FILES, {**given, "fileLimit": len(some)})
            found = (((data.get("project") or {}).get("run") or {}).get("files") or {}).get("edges") or ()
            there |= {edge["node"]["name"]: edge["node"].get("md5") or "" for edge in found}
        return [file for file in files if there.get(file.path) != file.md5]

    def _log(self, where: Where, versions: Iterable[Version]) -> Iterator[Made]:
        for version in versions:
            yield self.artifacts.log(draft(where, where.id, version))

    def _stream_history(self, stream: Stream, sheet: Sheet, start: int) -> tuple[list[bytes] | None, tuple[int, int]]:
        """Sends the rows from `start` on; keeps the lines where they are few, and says the steps from, to."""
        kept: list[bytes] | None = []
        offset, size, first, last = start, 0, 0, 0
        for block in sheet.history(start) if start < sheet.rows else ():
            lines, cut = history_lines(block)
            if cut:
                self.losses.append(Loss(sheet.run.id, f"{cut} rows of history", "they are longer than W&B takes"))
            first = block.step[0].as_py() if offset == start and lines else first
            last = block.step[-1].as_py() if lines else last
            stream.lines(HISTORY, offset, lines)
            offset += len(lines)
            size += sum(map(len, lines))
            kept = [*kept, *lines] if kept is not None and size <= KEPT else None
        if offset != sheet.rows:
            raise Damaged(f"The run {sheet.run.id!r} has {offset} rows, {sheet.rows} were told.")
        return kept, (first, last)

    def _stream_events(self, stream: Stream, sheet: Sheet, start: int) -> list[bytes] | None:
        """Sends the system metrics from `start` on; keeps all their lines where they are few."""
        kept: list[bytes] | None = []
        offset = size = 0
        for block in sheet.events(0) if sheet.event_rows else ():
            lines = event_lines(block)
            stream.lines(EVENTS, max(offset, start), lines[max(0, start - offset) :])
            offset += len(lines)
            size += sum(map(len, lines))
            kept = [*kept, *lines] if kept is not None and size <= KEPT else None
        return kept

    # -- together ------------------------------------------------------------------------------------------------------

    def use(self, sent: Sent) -> Sent:
        """Says which versions the run has read. What nobody made yet waits for `finish`."""
        where, used = sent.written.where, []
        for version in sent.written.sheet.run.used:
            home = replace(where, project=version.project or where.project)
            if version.files:
                found: str | None = self.artifacts.log(draft(home, None, version)).id
            else:
                found = self.artifacts.find(home, version)
            if found is None:
                self.waiting.append((where, version))
                continue
            self.artifacts.use(where, found)
            used.append(found)
        return replace(sent, written=replace(sent.written, used=tuple(used)))

    def stamp(self, sent: Sequence[Sent]) -> None:
        """Sets the stamps of runs that were proven, and deletes what was spoiled."""
        if len(sent) == 1:
            self._stamp_one(sent[0])
        else:
            self._stamp_all(sent)
        for one in sent:
            for old in one.begun.spoiled:
                self.discard(old)

    def _stamp_all(self, sent: Sequence[Sent]) -> None:
        variables: dict[str, Any] = {}
        for n, one in enumerate(sent):
            variables |= {f"i{n}": one.begun.bucket, f"c{n}": _stamped_config(one)}
        try:
            answer = self.client.graphql(stamp_all(len(sent)), variables)
        except Unavailable:
            raise
        except MigrateError:  # one of them is to blame, or the server takes one at a time
            for one in sent:
                self._stamp_one(one)
            return
        for n, one in enumerate(sent):
            self._check(one, answer.get(f"u{n}"))

    def _stamp_one(self, sent: Sent) -> None:
        answer = self.client.graphql(STAMP_RUN, {"id": sent.begun.bucket, "config": _stamped_config(sent)})
        self._check(sent, answer.get("upsertBucket"))

    def _check(self, sent: Sent, answer: Mapping[str, Any] | None) -> None:
        """The answer tells what the server holds now."""
        found = provenance(((answer or {}).get("bucket") or {}).get("config"))
        sheet = sent.written.sheet
        if found is None or found.stamp != sheet.stamp:
            raise Damaged(f"W&B did not keep the stamp of the run {sent.written.where.shown}.")
        known = self.there.at(sent.written.where.project, sent.written.where.id)
        if known is not None:
            self.there.note(stamped(known, sheet.stamp))

    def settle_uses(self) -> list[Loss]:
        """Uses of what nobody had made yet when its readers were written; those still unknown are losses."""
        left, self.waiting[:] = list(self.waiting), []
        losses = []
        for where, version in left:
            found = self.artifacts.find(replace(where, project=version.project or where.project), version)
            if found is not None:
                self.artifacts.use(where, found)
                continue
            shown = f"use of the artifact {version.name}:{version.version}"
            losses.append(Loss(where.id, shown, "the artifact is not there"))
        return losses

    def discard(self, run: Existing) -> None:
        """Deletes a run of ours that never became whole."""
        if run.ours is None or run.whole:
            return
        with suppress(NotFound):  # an answer that was lost: it is gone
            self.client.graphql(DELETE_RUN, {"id": run.bucket})
        self.there.forget(run)


class Round:
    """One delivery under way: runs are written as threads are free, and proven in groups."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
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
        for sent in self._done(writers.submit(self._sending.write, sheet) for sheet in sheets):
            if sent.written.sheet.run.used:
                readers.append(sent)
                continue
            ready.append(sent)
            if _full(ready):
                proving.append(provers.submit(self._prove, ready))
                ready = []
        for sent in self._done(writers.submit(self._sending.use, sent) for sent in readers):
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
            wrong = self._sending.proof.prove([one.written for one in some])
            good = [one for one in some if one.written.sheet.origin not in wrong]
            if good:
                self._stamp(good)
            for one in some:
                error = wrong.get(one.written.sheet.origin)
                if error is not None:
                    self._again(one, error)

    def _stamp(self, good: Sequence[Sent]) -> None:
        self._sending.stamp(good)
        self.ids |= {one.written.sheet.origin: one.written.where.id for one in good}

    def _again(self, sent: Sent, error: MigrateError) -> None:
        """A run that was gone on with may have been spoiled where nobody looked before: once more, from nothing."""
        if sent.begun.fresh:
            self.errors.append(error)
            return
        generation = _generation(sent.begun.config)
        again = self._sending.use(self._sending.write(sent.written.sheet, generation + 1))
        wrong = self._sending.proof.prove([again.written])
        if wrong:
            self.errors += wrong.values()
        else:
            self._stamp([again])


def config_of(run: WandbRun) -> dict[str, Any]:
    """The config as W&B takes it: {"value": ...} of each key, the metric definitions among them."""
    config: dict[str, Any] = {key: {"value": value} for key, value in run.config.items()}
    if run.internal:
        config["_wandb"] = {"value": dict(run.internal)}
    return config


def _upsert_of(run: WandbRun, where: Where, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": where.id,
        "project": where.project,
        "entity": where.entity,
        "groupName": run.group,
        "displayName": run.name,
        "notes": run.notes,
        "commit": run.git_commit or None,
        "config": _json(config),
        "host": run.host or None,
        "program": run.program or None,
        "repo": run.git_remote or None,
        "jobType": run.job_type,
        "state": "pending" if run.state == "pending" else None,
        "sweep": run.sweep or None,
        "tags": list(run.tags),
    }


def _existing(begun: Begun, generation: int) -> Existing:
    told = of_config(begun.sheet.run.config.get(KEY)) or Provenance(origin=begun.sheet.origin, generation=generation)
    return Existing(begun.where.project, begun.where.id, begun.bucket, begun.there.history, light(told))


def state(run: WandbRun) -> str:
    """The state that W&B gives the run in the end."""
    if run.state in ("running", "pending", "finished"):
        return run.state
    return "failed"


def exit_code(run: WandbRun) -> int | None:
    """What the run ended with; None for one that goes on."""
    if run.state in EXIT_CODES:
        return EXIT_CODES[run.state]
    return run.exit_code or 1


def _stamped_config(sent: Sent) -> str:
    config = dict(sent.begun.config)
    config[KEY] = {"value": {**config[KEY]["value"], "stamp": sent.written.sheet.stamp}}
    return _json(config)


def _generation(config: Mapping[str, Any]) -> int:
    found = of_config(config[KEY]["value"])
    return found.generation if found is not None else 1


def _told(run: WandbRun, config: Mapping[str, Any]) -> list[Bytes]:
    """The files that W&B's SDK writes of every run; one that stands for an experiment has no page to be looked at."""
    told = of_config(run.config.get(KEY))
    if told is not None and told.kind != "run":
        return []
    metadata = dict(run.metadata) or {
        name: value for name, value in (("host", run.host), ("program", run.program), ("args", list(run.args))) if value
    }
    return [
        of_data("config.yaml", config_yaml(config)),
        of_data("wandb-metadata.json", _json(metadata).encode()),
        of_data(SUMMARY, _json(run.summary).encode()),
    ]


def _generated(sheet: Sheet, path: str) -> bool:
    """Whether the server may write the file itself, so that its bytes are not ours."""
    return path in ("config.yaml", "wandb-metadata.json", SUMMARY) and all(f.path != path for f in sheet.run.files)


def _json(value: object) -> str:
    return json.dumps(value if not isinstance(value, Mapping) else dict(value), separators=(",", ":"))


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
