"""Runs written to a server, many at once; each of its steps may be made again, by a second try or a second command.

upsert      all that is told of the run; its provenance has no stamp yet.  The server says how many lines it has
go on       lines that are there are read back: the beginning of ours? Then the rest is sent
            else the run is spoiled, and the next generation of its id takes its place
files       of the run page
artifacts   that the run made, in collections of its own
stream      history, system metrics, console, summary; that it is complete
versions    of collections that several runs have, in their order
uses        artifacts that it read, once all runs at hand made theirs
prove       all of it read back and compared, several runs in one look
stamp       only now is the run there; spoiled ones are deleted after that
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from mlmigrate.adapters.wandb.api import debts
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.configs import set_configs
from mlmigrate.adapters.wandb.api.generations import Generations
from mlmigrate.adapters.wandb.api.links import linked
from mlmigrate.adapters.wandb.api.logged import Artifacts, Made, draft
from mlmigrate.adapters.wandb.api.pages import nodes
from mlmigrate.adapters.wandb.api.places import Begun, Places, as_json
from mlmigrate.adapters.wandb.api.proving import Proof, Written
from mlmigrate.adapters.wandb.api.rounds import Round, Sent, shared
from mlmigrate.adapters.wandb.api.stream import (
    CONSOLE,
    EVENTS,
    HISTORY,
    SUMMARY,
    Stream,
    Where,
    console_lines,
    event_lines,
    history_lines,
)
from mlmigrate.adapters.wandb.api.there import Existing, There, provenance, told_anew
from mlmigrate.adapters.wandb.api.turns import Ticket, Turns
from mlmigrate.adapters.wandb.api.uploads import PIECE, Bytes, send_files, send_to
from mlmigrate.adapters.wandb.api.writes import OUTPUT_ARTIFACTS, RUN_FILES
from mlmigrate.adapters.wandb.provenance import KEY
from mlmigrate.adapters.wandb.restored import number_of
from mlmigrate.adapters.wandb.shape import Collection, Sheet, Version, WandbRun
from mlmigrate.errors import Damaged, MigrateError, Unavailable
from mlmigrate.model import Loss

KEPT = 256 << 10  # bytes of a run's lines that wait in memory to be compared
LARGE_ROWS = 5_000  # from so many on, few runs stream at once
LARGE_AT_ONCE = 3
SMALL_REQUEST = 2 << 20  # bytes; those of many runs are in memory at once
NONE: Ticket = (0, 0)  # of what waits for nobody
EXIT_CODES: Mapping[str, int | None] = {"finished": 0, "running": None, "pending": None}


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
    delivered: dict[str, str] = field(default_factory=dict)  # id, here or there, -> origin of what is whole
    unsaid: dict[str, list[Loss]] = field(default_factory=dict)  # origin -> losses that no pack has told yet
    turns: Turns = field(default_factory=Turns)
    ticket: Ticket = NONE
    needs_levels = False
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
                self.losses += self.unsaid.pop(sheet.origin, ())
        round_.run(todo)
        self.delivered |= {sheet.run.id: sheet.origin for sheet in todo if sheet.origin in round_.ids}
        self.delivered |= {id_: origin for origin, id_ in round_.ids.items()}
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

    @property
    def debts(self) -> debts.Debts:
        """Of the runs that are there."""
        return debts.Debts(self.client, self.entity, self.there, self.artifacts)

    @property
    def generations(self) -> Generations:
        """Of the runs that are there."""
        return Generations(self.client, self.there)

    def for_a_pack(self, ticket: Ticket = NONE) -> Sending:
        """The same, with losses of its own. What fails alone in a pack is to blame for it."""
        return replace(self, losses=[], delivered={}, blames=True, ticket=ticket)

    @contextmanager
    def pack(self, place: int) -> Iterator[Sending]:
        """For one pack, which makes versions of shared collections after all packs at hand of an earlier place.

        A pack that fails tells nothing: what runs lost that are whole all the same is told by the next try.
        """
        ticket = self.turns.begin(place)
        sending = self.for_a_pack(ticket)
        try:
            yield sending
        except Exception:
            for loss in sending.losses:
                if loss.run in sending.delivered:
                    self.unsaid.setdefault(sending.delivered[loss.run], []).append(loss)
            raise
        finally:
            self.turns.end(ticket)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for the packs that come before this one."""
        self.turns.wait(self.ticket, self.client.check)
        try:
            yield
        finally:
            self.turns.end(self.ticket)

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
        """All of a run but versions that wait, and the uses; `least` is the first generation that is tried."""
        begun = Places(self.client, self.entity, self.there, self.proof, self.losses).begin(sheet, least)
        sheet = begun.sheet
        console = next((file for file in sheet.run.files if file.path == CONSOLE and file.open is not None), None)
        files = begun.files
        self._send_files(begun)
        waits = [shared(one, sheet.run, begun.where) for one in sheet.run.logged]
        made = {n: self._log(begun.where, one) for n, one in enumerate(sheet.run.logged) if not waits[n]}
        large = sheet.rows + sheet.event_rows > LARGE_ROWS
        with self._large if large else nullcontext():
            stream = Stream(self.client, begun.where) if large else Stream(self.client, begun.where, SMALL_REQUEST)
            lines, steps = self._stream_history(stream, sheet, begun.there.history)
            events = self._stream_events(stream, sheet, begun.there.events)
            if console is not None and console.open is not None:
                with console.open() as data:
                    stream.lines(CONSOLE, 0, console_lines(iter(lambda: data.read(PIECE), b"")))
            stream.finish(as_json(sheet.run.summary), [file.path for file in files], exit_code(sheet.run))
        there = {file.path: "" if _generated(sheet, file.path) else file.md5 for file in files}
        written = Written(
            sheet, begun.where, begun.bucket, begun.config, state(sheet.run), begun.there.history, lines, steps,
            events, there, tuple(made.values()),
        )  # fmt: skip
        return Sent(written, begun, made, tuple(n for n, wait in enumerate(waits) if wait))

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
            found = nodes(((data.get("project") or {}).get("run") or {}).get("files"))
            there |= {node["name"]: node.get("md5") or "" for node in found}
        return [file for file in files if there.get(file.path) != file.md5]

    def log(self, sent: Sent, n: int) -> Made:
        """Makes a version that the run logged, the one at this position."""
        return self._log(sent.written.where, sent.written.sheet.run.logged[n])

    def _log(self, where: Where, version: Version) -> Made:
        made = self.artifacts.log(draft(where, where.id, version))
        if made.there and made.id not in {node["id"] for node in self.proof.artifacts(where, OUTPUT_ARTIFACTS)}:
            self.artifacts.use(where, made.id)
            made = replace(made, lent=True)
            because = "W&B has it by another run, which made the same: this one is told to have used it"
            self.losses.append(Loss(where.id, f"artifact {version.name} as its own", because))
        if made.untagged:
            shown = f"tags {', '.join(version.tags)} of the artifact {version.name}"
            self.losses.append(Loss(where.id, shown, "this W&B server has none for artifacts"))
        if made.unnamed:
            shown = f"artifact {version.name} as values show it"
            because = "the id that they name it by is another version's, or the server does not tell whose"
            self.losses.append(Loss(where.id, shown, because))
        return made

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

    def prove(self, written: Sequence[Written]) -> Mapping[str, MigrateError]:
        """Origin -> what is wrong, for those that are not as sent. All of one project."""
        return self.proof.prove(written)

    def use(self, sent: Sent) -> Sent:
        """Says which versions the run has read. What nobody made yet it owes."""
        where, used, lent, owed = sent.written.where, [], [], []
        for version in sent.written.sheet.run.used:
            home = replace(where, project=version.project or where.project)
            if version.files:
                made = self.artifacts.log(draft(home, None, version))
                lent.append((version, made))
                found: str | None = made.id
            else:
                found = self.artifacts.find(home, version)
            if found is None:
                owed.append(version)
                continue
            self.artifacts.use(where, found)
            used.append(found)
        written = replace(sent.written, used=tuple(used))
        return replace(sent, written=written, lent=tuple(lent), owed=tuple(owed))

    def stamp(self, sent: Sequence[Sent]) -> None:
        """Sets the stamps of runs that were proven, and deletes those that they take the place of."""
        configs = [(one.begun.bucket, _stamped_config(one)) for one in sent]
        set_configs(self.client, configs, lambda n, answer: self._check(sent[n], answer))
        for one in sent:
            self.losses += self.generations.drop_spoiled(one.written.sheet.origin)
            self.losses += self._renumbered(one.written)

    def _renumbered(self, written: Written) -> Iterator[Loss]:
        """Versions that have another number here: some before them are missing, or came later."""
        for version, made in zip(written.sheet.run.logged, written.logged, strict=True):
            here = self.proof.numbers.get(made.id)
            if here is not None and number_of(version.version) not in (-1, here):
                shown = f"number {version.version} of the artifact {version.name}"
                yield Loss(written.where.id, shown, f"it is v{here} here: W&B numbers versions as they come")

    def _check(self, sent: Sent, answer: Mapping[str, Any]) -> None:
        """The answer tells what the server holds now."""
        found = provenance((answer.get("bucket") or {}).get("config"))
        sheet = sent.written.sheet
        if found is None or found.stamp != sheet.stamp:
            raise Damaged(f"W&B did not keep the stamp of the run {sent.written.where.shown}.")
        known = self.there.at(sent.written.where.project, sent.written.where.id)
        if known is not None:
            self.there.note(told_anew(known, found))


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
    told = {**config[KEY]["value"], "stamp": sent.written.sheet.stamp, **debts.told_of(sent)}
    config[KEY] = {"value": told}
    return as_json(config)


def _generated(sheet: Sheet, path: str) -> bool:
    """Whether the server may write the file itself, so that its bytes are not ours."""
    return path in ("config.yaml", "wandb-metadata.json", SUMMARY) and all(f.path != path for f in sheet.run.files)
