"""Writes one run as W&B's SDK would have left it without a server, proves it, and gives it its name.

.parts/<random>/offline-run-<time>-<id>/     while it is written: `wandb sync` does not look there
offline-run-<time>-<id>/run-<id>.wandb       the log; the last word of its config says that it is whole
                        /files/              files of the run page, and those that W&B writes itself
                        /mlmigrate.json      the mark: all of it is here
artifacts/<aa>/<sha256>                      bytes of artifacts, once each; logs name them by absolute paths
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from mlmigrate.adapters.wandb.datalog.framing import records
from mlmigrate.adapters.wandb.datalog.messages import pb
from mlmigrate.adapters.wandb.datalog.reader import Log
from mlmigrate.adapters.wandb.datalog.state import Entry
from mlmigrate.adapters.wandb.datalog.writer import LogWriter
from mlmigrate.adapters.wandb.offline import marks
from mlmigrate.adapters.wandb.offline.files import CONFIG, CONSOLE, METADATA, SUMMARY
from mlmigrate.adapters.wandb.offline.folders import PARTS
from mlmigrate.adapters.wandb.offline.proof import Sum, differences
from mlmigrate.adapters.wandb.offline.stores import OWN
from mlmigrate.adapters.wandb.provenance import KEY
from mlmigrate.adapters.wandb.shape import File, Sheet, Version, WandbRun
from mlmigrate.errors import BadData, Damaged
from mlmigrate.model import Loss
from mlmigrate.storage.local import explain, sync_folders

# How the stamp begins that a log brings to a server: `wandb sync` may have lost anything on the way and says nothing of
# it. The run can be read there, but a copy to that server looks at it, completes it, and only then gives it its stamp.
UNPROVEN = "unproven:"
_CHUNK = 1 << 20
_LINES = 64 * 1024  # characters of console text in one record
_AGAIN = "Look at the disk, then run the same command again."
_EPOCH = "19700101_000000"
_RESERVED = frozenset([CONFIG, SUMMARY, METADATA])  # W&B writes these from what the log tells


class Writer:
    """Writes runs into a folder. Used by many threads at once; keeps nothing between runs."""

    def __init__(self, root: Path, made: Callable[[Version], Path | None]) -> None:
        """`made` gives the log, in this folder, of the run that made an artifact; None where there is none."""
        self._root, self._made = root, made
        self._parts = root / PARTS
        self._bytes = root / OWN

    def write(self, sheet: Sheet, mark: marks.Mark, losses: list[Loss]) -> Path:
        """The run's folder, whole and proven, under a name of its own in .parts; `become` makes it be there."""
        with self._explained(sheet.run.id):
            part = self._parts / secrets.token_hex(8) / folder_name(sheet.run)
            part.mkdir(parents=True)
            try:
                self._fill(part, sheet, mark, losses)
            except BaseException:
                shutil.rmtree(part.parent, ignore_errors=True)
                raise
            return part

    def become(self, part: Path, old: Path | None) -> Path:
        """Puts the folder in its place, and what it replaces away."""
        final = self._root / part.name
        with self._explained(part.name):
            if old is not None:
                os.replace(old, part.parent / "old")  # noqa: PTH105  whole, or not at all
            os.replace(part, final)  # noqa: PTH105  as above
            sync_folders([self._root])
            shutil.rmtree(part.parent, ignore_errors=True)
        return final

    def amend(self, whole: marks.Whole, uses: Sequence[Version]) -> marks.Mark:
        """Adds what a run read to its log, once who made it is here too; gives the new mark."""
        with self._explained(whole.mark.id):
            before, losses = Log(whole.log), list[Loss]()
            with _Writer(whole.log) as writer:
                writer.like(before.run)
                with whole.log.open("rb") as stream:
                    for _, record in records(stream, whole.mark.log, _silent):
                        kind = pb.Record.FromString(record).WhichOneof("record_type")
                        for used in uses if kind == "exit" else ():
                            entries = self._read(used, before.run, losses) or ()
                            writer.use(used, entries)
                        if kind != "header":
                            writer.again(record)
            after = Log(whole.log)
            if (after.run.lines, len(after.run.used)) != (before.run.lines, len(before.run.used) + len(uses)):
                raise Damaged(f"The log of run {whole.mark.id} was written anew, and reads otherwise.", _AGAIN)
            left = [
                one
                for one in whole.mark.unmet
                if (one.name, one.digest) not in {(use.name, use.digest) for use in uses}
            ]
            mark = replace(whole.mark, log=whole.log.stat().st_size, unmet=left)
            part = whole.folder / f"{marks.MARK}.part"
            part.write_bytes(msgspec.json.encode(mark))
            _sync(whole.log)
            os.replace(part, whole.folder / marks.MARK)  # noqa: PTH105  before this, the run counts as half written
            sync_folders([whole.folder])
            return mark

    def drop(self, part: Path) -> None:
        """Takes a folder away that shall not be there."""
        shutil.rmtree(part.parent, ignore_errors=True)

    def _fill(self, part: Path, sheet: Sheet, mark: marks.Mark, losses: list[Loss]) -> None:
        run = sheet.run
        files = part / "files"
        files.mkdir()
        shown = [path for file in run.files if (path := self._page(files, file, run, losses))]
        for path, text in _own_files(run):
            (files / path).write_text(text, encoding="utf-8", errors="replace")
        rows, events = Sum(), Sum()
        log = part / marks.log_name(run.id)
        with _Writer(log) as writer:
            writer.run(run)
            unmet: list[Version] = []
            for used in run.used:
                entries = self._read(used, run, losses)
                if entries is None:
                    unmet.append(replace(used, files=()))
                else:
                    writer.use(used, entries)
            for version in run.logged:
                writer.artifact(version, self._entries(version, run, losses))
            writer.files(path for path in shown if path not in _RESERVED)
            for block in rows.through(sheet.history(0), steps=True):
                writer.history(block)
            writer.expanded(run.metrics, rows.names)
            for block in events.through(sheet.events(0), steps=False):
                writer.events(block)
            for text in _console(files / CONSOLE):
                writer.console(text)
            writer.summary(run.summary)
            writer.stamp(UNPROVEN + sheet.stamp)
            writer.exit(run.exit_code, run.runtime)
        met = [one for one in run.used if replace(one, files=()) not in unmet]
        _prove(log, replace(sheet, run=replace(run, used=tuple(met))), rows, events)
        told = [marks.Unmet(one.name, one.type, one.digest, one.project or run.project) for one in unmet]
        marks.write(part, replace(mark, log=log.stat().st_size, unmet=told))
        _durable(part)

    def _page(self, files: Path, file: File, run: WandbRun, losses: list[Loss]) -> str:
        """Writes a file of the run page; gives its path, "" when there is nothing to write."""
        if file.open is None:
            losses.append(Loss(run.id, f"file {file.path!r}", file.gone or "its bytes are gone"))
            return ""
        path = _below(files, file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _copied(file, path)
        return file.path

    def _entries(self, version: Version, run: WandbRun, losses: list[Loss]) -> list[Entry]:
        """The manifest of an artifact whose bytes are in the folder now."""
        found = []
        for file in version.files:
            if file.ref:
                found.append(Entry(file.path, file.digest or file.ref, file.size, "", file.ref))
            elif file.open is None:
                because = file.gone or "its bytes are gone"
                losses.append(Loss(run.id, f"file {file.path!r} of artifact {version.name!r}", because))
            else:
                path, md5, size = self._put(file)
                found.append(Entry(file.path, md5, size, str(path)))
        return found

    def _read(self, used: Version, run: WandbRun, losses: list[Loss]) -> Sequence[Entry] | None:
        """The manifest of an artifact that the run read: told with it, or by the log of the run that made it."""
        if used.files:
            return self._entries(used, run, losses)
        log = self._made(used)
        for one in Log(log).artifacts if log is not None else ():
            if (one.version.name, one.version.digest) == (used.name, used.digest) and not one.used:
                return one.entries
        return None

    def _put(self, file: File) -> tuple[Path, str, int]:
        """The file's bytes among ours: where, their md5 and size. Raises Damaged when they are others."""
        self._parts.mkdir(parents=True, exist_ok=True)
        part = self._parts / f"{secrets.token_hex(8)}.bytes"
        try:
            md5, sha256, size = _copied(file, part)
            final = self._bytes / sha256[:2] / sha256[2:]
            if not final.is_file() or final.stat().st_size != size:
                final.parent.mkdir(parents=True, exist_ok=True)
                _sync(part)
                os.replace(part, final)  # noqa: PTH105  whole, or not at all
                sync_folders([final.parent])
        finally:
            part.unlink(missing_ok=True)
        return final.resolve(), md5, size

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explain(error, f"{self._root}/{name}") or error from error


class _Writer(LogWriter):
    """A log whose config gets its last word late: a sync that is cut off before leaves a run without a stamp."""

    def stamp(self, stamp: str) -> None:
        """The run is whole."""
        config = pb.ConfigRecord()
        config.update.add(nested_key=[KEY, "stamp"], value_json=json.dumps(stamp))
        self._put(config=config)

    def expanded(self, metrics: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> None:
        """What definitions with a glob ("val/*") come to, key by key, as the SDK tells it while it logs.

        Who syncs does not work that out again, and not every server does.
        """
        named = {metric.get("name") or metric.get("step_metric") for metric in metrics}
        named |= {metric.get("step_metric") for metric in metrics}
        globs = [metric for metric in metrics if metric.get("glob_name")]
        for key in keys:
            metric = next((one for one in globs if key.startswith(one["glob_name"].removesuffix("*"))), None)
            if metric is None or key in named:
                continue
            record = pb.MetricRecord(name=key, step_metric=metric.get("step_metric", ""), expanded_from_glob=True)
            record.options.step_sync = bool((metric.get("options") or {}).get("step_sync"))
            getattr(record, "_control").overwrite = True  # noqa: B009  the field is called so
            self._put(metric=record)

    def like(self, run: WandbRun) -> None:
        """The log is that of this run, whose records come `again`."""
        self._run = run

    def again(self, record: bytes) -> None:
        """A record as it was."""
        self._add([record])


def _silent(offset: int, because: str) -> None:
    """The log is ours, and was proven."""


def folder_name(run: WandbRun) -> str:
    """What the SDK would have called the run's folder."""
    seconds = (run.started or 0) // 1000
    known = 0 <= seconds < 253_402_300_800  # noqa: PLR2004  up to the year 9999
    time = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d_%H%M%S") if known else _EPOCH
    return f"offline-run-{time}-{run.id}"


def _own_files(run: WandbRun) -> Iterator[tuple[str, str]]:
    """The files that the SDK writes of what it is told: for people, and for readers that know no logs."""
    config = {name: {"desc": None, "value": value} for name, value in run.config.items()}
    yield CONFIG, yaml.safe_dump(json.loads(json.dumps({"wandb_version": 1, **config})), sort_keys=True)
    yield SUMMARY, json.dumps(dict(run.summary))
    yield METADATA, json.dumps(dict(run.metadata), indent=2)


def _console(file: Path) -> Iterator[str]:
    """The text of output.log, a record for each stretch of lines."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace", newline="") as text:
        while lines := "".join(text.readlines(_LINES)):
            yield lines


def _below(folder: Path, path: str) -> Path:
    """Where a file of this path lies below a folder. Raises BadData for one that would lie elsewhere."""
    parts = path.split("/")
    if not path or {"", ".", ".."} & set(parts) or "\0" in path or "\\" in path:
        raise BadData(f"A file of a run page is called {path!r}, which is no path below a folder.")
    return folder.joinpath(*parts)


def _copied(file: File, to: Path) -> tuple[str, str, int]:
    """Writes the file's bytes; gives their md5 (base64), sha256 (hex) and number. Raises Damaged."""
    if file.open is None:
        raise BadData(f"The bytes of {file.path!r} are gone.")
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with file.open() as stream, to.open("wb") as out:
        while chunk := stream.read(_CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            out.write(chunk)
            size += len(chunk)
    digest = base64.b64encode(md5.digest()).decode()
    if file.md5 not in ("", digest):
        raise Damaged(f"{file.path!r} has the md5 {digest}, not {file.md5}.", "Run the same command again.")
    return digest, sha256.hexdigest(), size


def _prove(log: Path, sheet: Sheet, rows: Sum, events: Sum) -> None:
    """Reads the log and compares. Raises Damaged."""
    read = Log(log)
    found, system = Sum(), Sum()
    for block in read.history():
        found.add(block, steps=True)
    for block in read.events():
        system.add(block, steps=False)
    wrong = list(differences(_stamped(sheet), read.run))
    wrong += ["rows"] if (found.told, found.rows) != (rows.told, sheet.rows) else []
    wrong += ["system metrics"] if (system.told, system.rows) != (events.told, sheet.event_rows) else []
    wrong += [f"{loss.what}: {loss.because}" for loss in read.losses if sheet.run.exit_code is not None]
    if wrong:
        raise Damaged(f"Run {sheet.run.id} was written, and reads otherwise: {', '.join(wrong)}.", _AGAIN)


def _stamped(sheet: Sheet) -> WandbRun:
    told = {**sheet.run.config[KEY], "stamp": UNPROVEN + sheet.stamp}
    return replace(sheet.run, config={**sheet.run.config, KEY: told})


def _durable(part: Path) -> None:
    """When this returns, what is in the folder outlasts a power cut."""
    folders = [part]
    for folder, below, files in os.walk(part):
        folders += [Path(folder) / name for name in below]
        for name in files:
            _sync(Path(folder) / name)
    sync_folders(folders)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
