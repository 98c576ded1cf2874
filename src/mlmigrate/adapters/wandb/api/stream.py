"""The lines of a run sent by file_stream: history, system metrics, console, summary, and that it is complete.

    {"files": {"wandb-history.jsonl": {"offset": 20, "content": ["{...}", ...]},
               "wandb-events.jsonl": ..., "output.log": ..., "wandb-summary.json": {"offset": 0, "content": ["{...}"]}},
     "uploaded": ["config.yaml"], "complete": true, "exitcode": 0}

Lines that are sent twice may be there twice.  So an answer that is lost is no reason to send again: the server is
asked how many lines it has, and only what is missing goes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlmigrate.adapters.wandb import blocks
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.pages import Untold
from mlmigrate.adapters.wandb.api.writes import FIRST_LINES, LINE_COUNTS
from mlmigrate.adapters.wandb.provenance import EVENT
from mlmigrate.adapters.wandb.shape import Block
from mlmigrate.errors import Damaged, Unavailable

HISTORY, EVENTS, CONSOLE, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "output.log", "wandb-summary.json"
LONGEST_LINE = (10 << 20) - (100 << 10)  # W&B's own bound
REQUEST = 5 << 20  # bytes of lines in one request, quotes not yet escaped: about 8 MiB as they are sent
TRIES = 6
SETTLING = 0.4  # seconds between two looks at a server that may be behind
_AGAIN = "Nothing is sent twice: the same command again goes on"
KEPT_OF_A_LONG_LINE = ("_step", "_timestamp", "_runtime")


@dataclass(frozen=True, slots=True)
class Where:
    """A run on the server: `id` is what its URL says."""

    entity: str
    project: str
    id: str

    @property
    def shown(self) -> str:
        """For messages."""
        return f"{self.entity}/{self.project}/{self.id}"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many lines the server has of a run."""

    history: int = 0
    events: int = 0

    def of(self, file: str) -> int | None:
        """Of this file; None where nobody counts: sending those again changes nothing."""
        return {HISTORY: self.history, EVENTS: self.events}.get(file)


def counts(client: Client, where: Where) -> Counts:
    """What the server says now of a run that is there. Raises Untold where it does not say it."""
    named = {"project": where.project, "entity": where.entity, "name": where.id}
    bucket = (client.graphql(LINE_COUNTS, named).get("model") or {}).get("bucket")
    if bucket is None:
        raise Untold(f"W&B tells nothing of the run {where.shown}, which is there.", _AGAIN)
    history, events = bucket.get("historyLineCount"), bucket.get("eventsLineCount")
    if history is None or events is None:
        first = (client.graphql(FIRST_LINES, named).get("project") or {}).get("run") or {}
        if (history is None and first.get("history") != []) or (events is None and first.get("events") != []):
            raise Untold(f"W&B does not say how many lines it has of the run {where.shown}.", _AGAIN)
    return Counts(history or 0, events or 0)


@dataclass
class Chunk:
    """Some lines of some files, for one request."""

    files: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    size: int = 0

    def add(self, file: str, offset: int, line: str, size: int) -> None:
        """One line more; lines of a file follow each other."""
        if file not in self.files:
            self.files[file] = (offset, [])
        self.files[file][1].append(line)
        self.size += size

    def missing(self, there: Counts) -> Chunk:
        """What of this the server has not. Raises Damaged when it has what nobody sent."""
        left = Chunk()
        for file, (offset, lines) in self.files.items():
            count = there.of(file)
            done = 0 if count is None else count - offset
            if not 0 <= done <= len(lines):
                raise Damaged(f"W&B has {count} lines of {file}, between {offset} and {offset + len(lines)} were sent.")
            if done < len(lines):
                left.files[file] = (offset + done, lines[done:])
        return left

    @property
    def body(self) -> dict[str, Any]:
        """The request, as JSON values."""
        return {file: {"offset": offset, "content": lines} for file, (offset, lines) in self.files.items()}


class Stream:
    """The file_stream of one run."""

    def __init__(self, client: Client, where: Where, most: int = REQUEST) -> None:
        self._client, self._where, self._most = client, where, most
        self._chunk = Chunk()

    def lines(self, file: str, offset: int, lines: Iterable[bytes]) -> None:
        """Sends lines of a file, the first at `offset`; the last ones wait for `finish`."""
        for line in lines:
            if self._chunk.size + len(line) > self._most and self._chunk.size:
                self.flush()
            self._chunk.add(file, offset, line.decode("utf-8", "replace"), len(line))
            offset += 1

    def flush(self) -> None:
        """Sends what waits."""
        chunk, self._chunk = self._chunk, Chunk()
        if chunk.files:
            self._post(chunk, {})

    def finish(self, summary: str | None, uploaded: Sequence[str], exit_code: int | None) -> None:
        """Sends the rest, and what ends the run (`exit_code` None: it goes on)."""
        chunk, self._chunk = self._chunk, Chunk()
        if summary is not None:
            chunk.add(SUMMARY, 0, summary, len(summary))
        last: dict[str, Any] = {"uploaded": list(uploaded)} if uploaded else {}
        if exit_code is not None:
            last |= {"complete": True, "exitcode": exit_code}
        self._post(chunk, last)

    def _post(self, chunk: Chunk, last: Mapping[str, Any]) -> None:
        """One request, until the server has it all; `last` and what is not counted may be sent again."""
        for n in range(TRIES):
            try:
                where = self._where
                self._client.stream(where.entity, where.project, where.id, {"files": chunk.body, **last})
            except Unavailable as error:
                if n == TRIES - 1:
                    raise
                self._rest(error, n)
                chunk = chunk.missing(self._settled())
                if not chunk.files and not last:
                    return
            else:
                return

    def _rest(self, error: Unavailable, n: int) -> None:
        until = time.monotonic() + (error.after if error.after is not None else min(0.1 * 2**n, 10.0))
        while (left := until - time.monotonic()) > 0:
            self._client.check()
            time.sleep(min(left, 0.25))

    def _settled(self) -> Counts:
        """The counts, once two looks give the same: the server may be at work with what it took."""
        before = counts(self._client, self._where)
        while True:
            time.sleep(SETTLING)
            self._client.check()
            now = counts(self._client, self._where)
            if now == before:
                return now
            before = now


def history_lines(block: Block) -> tuple[list[bytes], int]:
    """The lines of some rows, and how many of them were too long for W&B: of those, only when they were stays."""
    return _cut(blocks.lines(block))


def event_lines(block: Block) -> list[bytes]:
    """The lines of some system metrics."""
    return blocks.lines(block, EVENT)


def _cut(lines: list[bytes]) -> tuple[list[bytes], int]:
    long = [n for n, line in enumerate(lines) if len(line) > LONGEST_LINE]
    for n in long:
        row = json.loads(lines[n])
        lines[n] = json.dumps({key: row[key] for key in KEPT_OF_A_LONG_LINE if key in row}).encode()
    return lines, len(long)


def console_lines(data: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a console log, from its bytes in pieces; one that is very long is cut into several."""
    rest = b""
    for piece in data:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > REQUEST // 8:
            yield rest
            rest = b""
    if rest:
        yield rest
