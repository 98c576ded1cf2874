"""A run whose folder has no transaction log: what W&B before 0.10 left, and copies that lost it.

    dryrun-<YYYYMMDD_HHMMSS>-<id>/      run-<...> when the SDK had a server besides
        wandb-history.jsonl             all rows
        wandb-events.jsonl              system metrics
        wandb-summary.json, config.yaml, wandb-metadata.json, output.log, ...
    run-<...>/files/                    of newer ones the same, but for rows and system metrics: those were in the log
    settings                            beside the folders: entity and project, as an INI file

The first is the layout of wandb 0.8 and 0.9, as repositories of that time have it.
"""

from __future__ import annotations

import configparser
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from mlmigrate.adapters.wandb import blocks
from mlmigrate.adapters.wandb.datalog.reader import BYTES, ROWS, SILENT
from mlmigrate.adapters.wandb.datalog.state import Logged
from mlmigrate.adapters.wandb.moments import lasted, milliseconds
from mlmigrate.adapters.wandb.offline.folders import EVENTS, HISTORY, Place
from mlmigrate.adapters.wandb.provenance import EVENT
from mlmigrate.adapters.wandb.shape import Block, WandbRun
from mlmigrate.errors import BadData
from mlmigrate.model import Loss

LONGEST = 64 << 20  # bytes of a line; W&B takes no more than 10 MiB
_PIECE = 1 << 20
_SETTINGS = 1 << 16
_ENDS = frozenset(["finished", "failed", "killed", "crashed"])


class Remains:
    """What such a folder tells, in the way that datalog.reader.Log does."""

    artifacts: Sequence[Logged] = ()  # only a log names them
    files: Sequence[str] = ()

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lost: dict[tuple[str, str], int] = {}
        self._history, self._events = _plain(place.files / HISTORY), _plain(place.files / EVENTS)
        written = [path.stat().st_mtime for path in (place.log, self._history, self._events) if path is not None]
        self._live = time.time() - max(written) < SILENT
        self.counts: dict[str, int] = {"history": _count(self._history), "stats": _count(self._events)}
        entity, project = _settings(place.folder.parent / "settings")
        lines = None if self._history is None else self.counts["history"]
        self.run = WandbRun(id=place.id, entity=entity, project=project, state="running", lines=lines)
        if self._history is None:
            self._tell("rows", f"neither a .wandb file nor {HISTORY} is there: they are not known")

    @property
    def losses(self) -> list[Loss]:
        """What is damaged or missing; of rows once they were taken."""
        where = self._place.folder.name
        return [
            Loss(self.run.id, f"{what} of {where}", because if n == 1 else f"{because}, {n} times")
            for (what, because), n in self._lost.items()
        ]

    def history(self) -> Iterator[Block]:
        """All rows, in the order that they were written in."""
        yield from self._blocks(self._history, "rows", "")

    def events(self) -> Iterator[Block]:
        """System metrics."""
        yield from self._blocks(self._events, "system metrics", EVENT)

    def completed(self, run: WandbRun) -> WandbRun:
        """The run, with what its metadata and its summary say of its end."""
        told = run.metadata
        ended, runtime = milliseconds(told.get("heartbeatAt")), _runtime(run.summary)
        state = self._state(told.get("state"), ended_well=runtime is not None)
        if runtime is not None and run.started is not None and ended is None:
            ended = run.started + round(runtime * 1000)
        code = told.get("exitcode")
        return replace(
            run,
            state=state,
            exit_code=code if isinstance(code, int) and state != "running" else None,
            project=_text(told.get("project")) or run.project,  # the settings are those of the last run
            job_type=run.job_type or _text(told.get("jobType")),
            user=run.user or _text(told.get("email")),
            runtime=runtime,
            ended=None if state == "running" else ended,
        )

    def _state(self, told: object, *, ended_well: bool) -> str:
        if isinstance(told, str) and told in _ENDS:
            return told
        if self._live:
            return "running"
        if ended_well:  # the SDK writes how long a run took when it ends
            self._tell("end", "how it ended was in its log: it is taken for finished")
            return "finished"
        self._tell("end", "nothing says that there was one: the run was cut off, or is still going on")
        return "crashed"

    def _blocks(self, path: Path | None, what: str, prefix: str) -> Iterator[Block]:
        if path is None:
            return
        self._forget(what)
        with path.open("rb") as file:
            for lines in self._batches(file, what):
                yield from self._read(lines, what, prefix)

    def _read(self, lines: list[bytes], what: str, prefix: str) -> Iterator[Block]:
        try:
            yield blocks.from_lines(lines, prefix)
        except BadData:
            good = [line for line in lines if _reads(line)]
            for _ in range(len(lines) - len(good)):
                self._tell(what, "a line is no JSON object")
            if good:
                yield blocks.from_lines(good, prefix)

    def _batches(self, file: BinaryIO, what: str) -> Iterator[list[bytes]]:
        """Lines by the thousand; none that would not fit into memory."""
        batch: list[bytes] = []
        size = 0
        while line := file.readline(LONGEST):
            if len(line) == LONGEST and not line.endswith(b"\n"):
                self._tell(what, f"a line is longer than {LONGEST >> 20} MiB")
                _skip(file)
            elif line.strip():
                batch.append(line.rstrip(b"\r\n"))
                size += len(line)
            if len(batch) >= ROWS or size >= BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _tell(self, what: str, because: str) -> None:
        self._lost[what, because] = self._lost.get((what, because), 0) + 1

    def _forget(self, what: str) -> None:
        """A second look at the same lines counts none twice."""
        for key in [key for key in self._lost if key[0] == what and key[1].startswith("a line")]:
            del self._lost[key]


def _plain(path: Path) -> Path | None:
    """The path, when a file lies there: no link, which may lead anywhere, and no pipe."""
    return path if path.is_file() and not path.is_symlink() else None


def _count(path: Path | None) -> int:
    """Lines of a file, the last one too when nothing ends it."""
    if path is None:
        return 0
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            lines, last = lines + piece.count(b"\n"), piece[-1:]
    return lines + (last != b"\n")


def _skip(file: BinaryIO) -> None:
    while (rest := file.readline(_PIECE)) and not rest.endswith(b"\n"):
        pass


def _reads(line: bytes) -> bool:
    try:
        blocks.from_lines([line])
    except BadData:
        return False
    return True


def _settings(path: Path) -> tuple[str, str]:
    """Entity and project, as the SDK wrote them beside the runs."""
    parser = configparser.RawConfigParser(strict=False)
    if _plain(path) is None:
        return "", ""
    try:
        with path.open("rb") as file:
            parser.read_string(file.read(_SETTINGS).decode("utf-8", "replace"))
    except (OSError, configparser.Error):  # they only help: a run without a project is one, too
        return "", ""
    return parser.get("default", "entity", fallback="").strip(), parser.get("default", "project", fallback="").strip()


def _runtime(summary: Mapping[str, Any]) -> float | None:
    own = summary.get("_wandb")
    return lasted(own.get("runtime")) if isinstance(own, dict) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
