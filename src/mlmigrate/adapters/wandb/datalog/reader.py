"""A transaction log, read as far as it goes.

log = Log(path)        one pass over the file: what it tells of the run; rows are only counted
log.run                all but the bytes of files
log.history()          a pass each: Blocks of rows, of system metrics, the console's text
log.events()
log.console()
log.losses             what is torn, damaged or missing; those of rows once they were taken
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mlmigrate.adapters.wandb.datalog import columns
from mlmigrate.adapters.wandb.datalog.framing import HEADER, records
from mlmigrate.adapters.wandb.datalog.messages import DecodeError, Message, pb
from mlmigrate.adapters.wandb.datalog.state import Logged, State
from mlmigrate.adapters.wandb.shape import Block, WandbRun
from mlmigrate.model import Loss

ROWS, BYTES = 4096, 8 << 20  # of one Block
SILENT = 300.0  # seconds without a record after which W&B takes a run for crashed
_NEAR = 1 << 20
TOLD, MOST = 20, 1000  # places with the same damage, and things, that are told one by one
# the kinds that nearly all records are of, by the tag that follows the record's number: no need to parse these
_KINDS = {b"\x12": "history", b"\x1a": "summary", b"\x22": "output", b"\x3a": "stats", b"\x6a": "output_raw"}
_TAG = re.compile(rb"(?:\x08[\x80-\xff]*[\x00-\x7f])?([\x12\x1a\x22\x3a\x6a])")
_TIMED = frozenset(_KINDS.values()) - {"summary"}
_CONSOLE = ("output", "output_raw", "output_logger")


class Log:
    """The log of one run, at the length that it had when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._name = self.path.name.encode("utf-8", "backslashreplace").decode()  # it may hold bytes that are no text
        self.counts: dict[str, int] = {}
        self._told: dict[tuple[str, str], None] = {}
        self._more = 0
        self._places: Counter[str] = Counter()
        self._values: dict[str, Counter[str]] = {}
        about = self.path.stat()
        self._size, self._inode = about.st_size, about.st_ino
        live = time.time() - about.st_mtime < SILENT
        state = State(self._tell)
        self._take(state)
        state.settle()
        name = self._name.removesuffix(".wandb").removeprefix("run-")
        self.run: WandbRun = state.run(name, live=live, lines=self.counts.get("history", 0))
        self.artifacts: Sequence[Logged] = tuple(state.artifacts)
        self.files: Sequence[str] = tuple(state.files)
        self._finished(state)

    @property
    def losses(self) -> list[Loss]:
        """What could not be read as it was."""
        told = [*self._told]
        told += [("log", f"{because}, in {n - TOLD} more places") for because, n in self._places.items() if n > TOLD]
        for what, values in self._values.items():
            told += [(what, because if n == 1 else f"{because}, {n} times") for because, n in values.items()]
        if self._more:
            told.append(("log", f"{self._more} more things in it cannot be read"))
        return [Loss(self.run.id, f"{what} of {self._name}", because) for what, because in told]

    def history(self) -> Iterator[Block]:
        """All rows, in the order of the log."""
        bad = self._bad("rows")
        for batch in _batches(self._of("history")):
            block = columns.history(batch, bad)
            if block.rows:
                yield block

    def events(self) -> Iterator[Block]:
        """System metrics."""
        started = None if self.run.started is None else self.run.started / 1000
        bad = self._bad("system metrics")
        for batch in _batches(self._of("stats")):
            block = columns.events(batch, started, bad)
            if block.rows:
                yield block

    def console(self) -> Iterator[str]:
        """What was printed, in pieces as they came: joined they are the whole text."""
        for kind, _, record in self._records(_silent):
            if kind in _CONSOLE and (parsed := _parsed(record)) is not None:
                line: str = getattr(parsed, kind).line
                yield line if kind != "output_logger" or line.endswith("\n") else line + "\n"

    def _take(self, state: State) -> None:
        counts: Counter[str] = Counter()
        summaries: list[bytes] = []
        held = 0
        for kind, offset, record in self._records(self._damaged):
            counts[kind] += 1
            if kind == "summary":
                summaries.append(record)
                held += len(record)
                if len(summaries) < ROWS and held < BYTES:
                    continue
            if kind in ("run", "summary") and summaries:
                self._summaries(state, summaries)
                summaries, held = [], 0
            if kind in _TIMED:
                state.last[kind] = record
            elif kind != "summary":
                self._one(state, kind, offset, record)
        self._summaries(state, summaries)
        self.counts = dict(counts)

    def _one(self, state: State, kind: str, offset: int, record: bytes) -> None:
        parsed = _parsed(record)
        if parsed is None:
            self._damaged(offset, "a record is no protobuf")
        elif kind == "unknown":
            self._damaged(offset, "a record is of a kind that this version does not know")
        else:
            state.take(kind, parsed)

    def _summaries(self, state: State, summaries: Sequence[bytes]) -> None:
        try:
            state.summaries(summaries)
        except DecodeError:
            for record in summaries:
                parsed = _parsed(record)
                if parsed is None:
                    self._tell("summary", "a record of it is no protobuf")
                else:
                    state.take("summary", parsed)

    def _of(self, kind: str) -> Iterator[bytes]:
        if self.counts.get(kind):  # else there is nothing to look for
            yield from (record for one, _, record in self._records(_silent) if one == kind)

    def _records(self, tell: Callable[[int, str], None]) -> Iterator[tuple[str, int, bytes]]:
        """Kind, offset and bytes of each record."""
        with self.path.open("rb") as file:
            head = file.read(len(HEADER))
            if head != HEADER:
                tell(0, _header(head, self._size))
            file.seek(0)
            for offset, record in records(file, self._size, tell):
                yield _kind(record), offset, record
            about = os.fstat(file.fileno())
            if about.st_size < self._size or about.st_ino != self._inode:
                self._tell("log", "it was written anew while it was read: rows may be missing")

    def _finished(self, state: State) -> None:
        """Tells what a whole log would have."""
        if not self._size:
            return  # that is told already
        if not state.record.run_id:
            self._tell("run record", "there is none: name, config and project are unknown")
        if state.exit is None:
            self._tell("end", "the log has no exit record: the run was cut off, or is still going on")

    def _tell(self, what: str, because: str) -> None:
        if len(self._told) < MOST:
            self._told[what, because] = None
        else:
            self._more += (what, because) not in self._told

    def _damaged(self, offset: int, because: str) -> None:
        self._places[because] += 1
        if self._places[because] <= TOLD:
            self._tell(f"byte {offset:,}", because)

    def _bad(self, what: str) -> Callable[[str], None]:
        """Takes what is wrong with single values; a second look at the same ones counts none twice."""
        values = self._values[what] = Counter()

        def tell(because: str) -> None:
            if because in values or len(values) < MOST:
                values[because] += 1
            else:
                values["more values cannot be read"] += 1

        return tell


def named(path: Path) -> str:
    """The id that a log gives its run, found near its beginning; "" where it is not there."""
    with path.open("rb") as file:
        for number, (_, record) in enumerate(records(file, _NEAR, _silent)):
            run = _parsed(record)
            if run is not None and run.WhichOneof("record_type") == "run":
                return str(run.run.run_id)
            if number > ROWS:
                break
    return ""


def _parsed(record: bytes) -> Message | None:
    try:
        return pb.Record.FromString(record)
    except DecodeError:
        return None


def _header(head: bytes, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if HEADER.startswith(head):
        return "the file ends within its header"
    if head[:6] == HEADER[:6]:
        return f"the log is of version {head[6]}, not 0; it is read as if it were"
    return "the file does not begin as a log of W&B does"


def _kind(record: bytes) -> str:
    """The kind of a record; "unknown" for one that this version of the SDK has no name for."""
    if tag := _TAG.match(record):
        return _KINDS[tag[1]]
    kind = None
    with suppress(DecodeError):
        kind = pb.Record.FromString(record).WhichOneof("record_type")
    return kind or "unknown"


def _batches(records_: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for record in records_:
        batch.append(record)
        size += len(record)
        if len(batch) >= ROWS or size >= BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _silent(offset: int, because: str) -> None:
    """Damage is told by the first pass."""
