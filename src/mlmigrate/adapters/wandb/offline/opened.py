"""One run, opened: its log (or logs, where it was taken up again), and what lies beside."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from mlmigrate.adapters.wandb import digests
from mlmigrate.adapters.wandb.clients import Named
from mlmigrate.adapters.wandb.datalog.reader import Log
from mlmigrate.adapters.wandb.datalog.state import Entry, Logged
from mlmigrate.adapters.wandb.moments import milliseconds
from mlmigrate.adapters.wandb.offline import beside, manifests
from mlmigrate.adapters.wandb.offline.files import CONFIG, CONSOLE, METADATA, SUMMARY, merged, opener, run_files
from mlmigrate.adapters.wandb.offline.folders import EVENTS, HISTORY, Place
from mlmigrate.adapters.wandb.offline.remains import Remains
from mlmigrate.adapters.wandb.offline.stores import Stores
from mlmigrate.adapters.wandb.shape import Block, File, Version, WandbRun
from mlmigrate.model import Loss

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ITSELF = frozenset([CONFIG, SUMMARY, METADATA, CONSOLE])  # files that the SDK may name without having written them
_OF_LOG = ("user", "host", "program", "args", "git_remote", "git_commit")


def log_of(place: Place) -> Log | Remains:
    """What tells of the run. Raises OSError."""
    return Remains(place) if place.bare else Log(place.log)


def told(place: Place, log: Log | Remains, losses: list[Loss]) -> WandbRun:
    """What a log tells, and where it is silent, what lies beside it. No files yet."""
    run = replace(log.run, id=place.id) if "run" not in log.counts else log.run
    files, _ = _files_of(place)
    parsed = _Beside(run.id, files, losses)
    config = {} if run.config else parsed.of(CONFIG, beside.config)
    internal = config.pop("_wandb", {})
    metadata = run.metadata or parsed.of(METADATA, beside.mapping)
    run = replace(
        run,
        config=run.config or config,
        internal=run.internal or (internal if isinstance(internal, dict) else {}),
        summary=run.summary or parsed.of(SUMMARY, beside.mapping),
        metadata=metadata,
        started=run.started if run.started is not None else milliseconds(metadata.get("startedAt")),
    )
    said = _said(metadata)
    run = replace(run, **{name: said[name] for name in _OF_LOG if name in said and not getattr(run, name)})
    if run.started is None and (named := beside.named_time(place.time)) is not None:
        because = "its folder's name alone tells it, in the time of the machine that it ran on: it is taken for UTC"
        losses.append(Loss(run.id, f"start of {place.folder.name}", because))
        run = replace(run, started=named)
    return log.completed(run) if isinstance(log, Remains) else run


def joined(first: WandbRun, then: WandbRun) -> WandbRun:
    """A run and what it became when it was taken up again: what was said last holds."""
    texts = ("name", "notes", "group", "job_type", "sweep", *_OF_LOG, "entity", "project")
    return replace(
        then,
        **{name: getattr(then, name) or getattr(first, name) for name in texts},
        tags=then.tags or first.tags,
        started=first.started if first.started is not None else then.started,
        ended=first.ended if then.ended is None and then.state == "crashed" else then.ended,
        created=first.created if first.created is not None else then.created,
        config={**first.config, **then.config},
        internal={**first.internal, **then.internal},
        summary={**first.summary, **then.summary},
        metrics=tuple({_named(one): one for one in (*first.metrics, *then.metrics)}.values()),
        metadata=then.metadata or first.metadata,
        logged=(*first.logged, *then.logged),
        used=(*first.used, *then.used),
    )


class OfflineRun:
    """A run as shape.Opened has it."""

    def __init__(self, places: Sequence[Place], stores: Stores, sweep: str = "") -> None:
        self._logs = logs = [log_of(place) for place in places]
        self._stores = stores
        self._passed: set[Loss] = set()
        self.losses: list[Loss] = []
        pairs = list(zip(places, logs, strict=True))
        run = reduce(joined, [told(place, log, self.losses) for place, log in pairs])
        files, left = merged([_files_of(place) for place in places])
        self.losses += [Loss(run.id, f"file {name!r}", because) for name, because in left]
        logged = tuple(self._filled(run, one) for log in logs for one in log.artifacts if not one.used)
        self.run = replace(run, files=(*_with_console(pairs, files), *self._gone(files)), logged=logged, sweep=sweep)
        self._tell()

    def history(self) -> Iterator[Block]:
        """All rows, those of the first log first."""
        for log in self._logs:
            yield from log.history()
        self._tell()

    def events(self) -> Iterator[Block]:
        """System metrics."""
        for log in self._logs:
            yield from log.events()
        self._tell()

    def called(self, named: Named) -> tuple[Version, ...]:
        """What it logged, with those of the ids that the log tells by which a value names it."""
        return tuple(
            replace(one, clients=tuple(pair for pair in one.clients if pair[0] in named.clients))
            for one in self.run.logged
        )

    def _tell(self) -> None:
        """Passes on what the logs lost since they were asked last."""
        fresh = [loss for log in self._logs for loss in log.losses if loss not in self._passed]
        self._passed.update(fresh)
        self.losses += fresh

    def _filled(self, run: WandbRun, logged: Logged) -> Version:
        """A version with its files; those whose bytes are nowhere are gone."""
        version, entries = logged.version, logged.entries
        if logged.manifest_file:
            found = manifests.entries(Path(logged.manifest_file))
            if found is None:
                because = f"its list of files lay in {logged.manifest_file}, which is gone"
                self.losses.append(Loss(run.id, f"artifact {version.name!r} of W&B", because))
            entries = (*entries, *(found or ()))
        if logged.incremental or logged.distributed:
            because = "it is a part of one: what other runs gave to it is theirs"
            self.losses.append(Loss(run.id, f"artifact {version.name!r} of W&B", because))
        entity, project = version.entity or run.entity, version.project or run.project
        return replace(version, entity=entity, project=project, files=tuple(map(self._file, entries)))

    def _file(self, entry: Entry) -> File:
        if entry.ref:
            return File(entry.path, size=entry.size, ref=entry.ref, digest=entry.digest)
        algorithm = digests.algorithm(entry.extra)
        found = self._stores.find(entry.local_path, entry.digest, entry.size, algorithm)
        md5 = entry.digest if algorithm == digests.MD5 else ""
        if found is None:
            at = entry.local_path or "no place that the log names"
            because = f"its bytes are neither at {at} nor in the SDK's folders"
            if digests.hasher(algorithm) is None:
                because = f"nothing here can tell whether bytes are its own, by {algorithm[:40]!r}"
            return File(entry.path, size=entry.size, md5=md5, gone=because)
        return File(entry.path, opener(found.path, found.size, found.version), found.size, md5)

    def _gone(self, files: Sequence[File]) -> Iterator[File]:
        """Files that the log names and nobody finds."""
        there = {file.path for file in files} | _ITSELF
        named = dict.fromkeys(path for log in self._logs for path in log.files)
        for path in named:
            if path not in there and not set("*?[") & set(path):
                yield File(path, gone="the log names it, and it is not in the run's folder")


def _files_of(place: Place) -> tuple[list[File], list[tuple[str, str]]]:
    """The files of the run's page; without a log, what stands in its stead is none of them."""
    files, left = run_files(place.files)
    return [file for file in files if not place.bare or file.path not in (HISTORY, EVENTS)], left


def _with_console(pairs: Sequence[tuple[Place, Log | Remains]], files: list[File]) -> list[File]:
    """The files, with an output.log where there is none or there are several: what the logs have of the console."""
    lying = [next((one for one in _files_of(place)[0] if one.path == CONSOLE), None) for place, _ in pairs]
    if len(pairs) == 1 and lying[0] is not None:
        return files
    parts: list[Callable[[], Iterable[bytes]]] = []
    for (place, log), file in zip(pairs, lying, strict=True):
        if file is not None:
            parts.append(partial(_pieces, file))
        elif any(kind.startswith("output") for kind, n in log.counts.items() if n):
            parts.append(partial(_console, place))
    if not parts:
        return files
    others = [file for file in files if file.path != CONSOLE]
    return sorted([*others, File(CONSOLE, open=partial(_opened, parts))], key=lambda file: file.path)


def _opened(parts: Sequence[Callable[[], Iterable[bytes]]]) -> AbstractContextManager[BinaryIO]:
    return cast("BinaryIO", io.BufferedReader(_Made(piece for part in parts for piece in part())))


def _pieces(file: File) -> Iterator[bytes]:
    if file.open is not None:
        with file.open() as stream:
            while piece := stream.read(1 << 20):
                yield piece


def _console(place: Place) -> Iterator[bytes]:
    for text in Log(place.log).console():
        yield text.encode("utf-8", "replace")


class _Made(io.RawIOBase):
    """A stream of bytes that are made as they are read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces, self._held = pieces, b""

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills the buffer with what comes next."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held = piece
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._held))
        view[:size] = self._held[:size]
        self._held = self._held[size:]
        return size


class _Beside:
    """Reads what lies beside a log; what is not what it should be is told, and counts for nothing."""

    def __init__(self, run: str, files: Sequence[File], losses: list[Loss]) -> None:
        self._run, self._files, self._losses = run, files, losses

    def of(self, path: str, parse: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
        """What the file says; nothing when it is not there."""
        data = beside.small(self._files, path)
        if data is None and any(file.path == path and (file.size or 0) > beside.LARGEST for file in self._files):
            because = f"it is larger than {beside.LARGEST >> 20} MiB: what it says of the run is not read"
            self._losses.append(Loss(self._run, f"file {path!r}", because))
        try:
            return parse(data) if data else {}
        except beside.Bad as error:
            self._losses.append(Loss(self._run, f"file {path!r}", f"{error}: what it says of the run is not read"))
            return {}


def _said(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What wandb-metadata.json says, under the names that a run has for it."""
    git = metadata.get("git")
    git = git if isinstance(git, dict) else {}
    texts = {
        "user": metadata.get("username"),
        "host": metadata.get("host"),
        "program": metadata.get("program"),
        "git_remote": git.get("remote") or git.get("remoteURL"),
        "git_commit": git.get("commit"),
    }
    args = metadata.get("args")
    found: dict[str, Any] = {name: text for name, text in texts.items() if isinstance(text, str) and text}
    return found | ({"args": tuple(map(str, args))} if isinstance(args, list) and args else {})


def _named(metric: Mapping[str, Any]) -> tuple[str, str]:
    return str(metric.get("name", "")), str(metric.get("glob_name", ""))
