"""A transaction log, written for `wandb sync`.

    with LogWriter(folder / "run-abc.wandb") as log:
        log.run(run)                      first: who the run is, its config, environment and definitions of metrics
        log.history(block) ...
        log.events(block) ...
        log.console(text), log.files(paths), log.artifact(version, entries), log.use(version, entries)
        log.summary(run.summary)
        log.exit(run.exit_code, run.runtime)

The file has its name only once all is written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from mlmigrate.adapters.wandb import clients, digests
from mlmigrate.adapters.wandb.datalog import wire
from mlmigrate.adapters.wandb.datalog.framing import Frames
from mlmigrate.adapters.wandb.datalog.messages import MIN_CONSUMER, Json, Message, has, json_format, pb, producer, utf8
from mlmigrate.adapters.wandb.datalog.state import Entry
from mlmigrate.adapters.wandb.shape import Block, Version, WandbRun
from mlmigrate.errors import BadData

LINES = 64 * 1024  # characters of console text in one record
# what W&B's core puts into config's `_wandb` by itself, of other records
_DERIVED = ("m", "e", "t", "cli_version", "python_version")
_INT32 = 2**31 - 1


class LogWriter:
    """The log of one run, on its way."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._part = self._path.with_name(f".{self._path.name}.part")
        self._run = WandbRun("")
        self._records = 0

    def __enter__(self) -> Self:
        self._file = self._part.open("wb")
        self._frames = Frames(self._file)
        self._put(header=pb.HeaderRecord(version_info=pb.VersionInfo(producer=producer(), min_consumer=MIN_CONSUMER)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._frames.flush()
        finally:
            self._file.close()
            if kind is not None:
                self._part.unlink(missing_ok=True)
        if kind is None:
            os.replace(self._part, self._path)  # noqa: PTH105  one call, one rename

    def run(self, run: WandbRun) -> None:
        """Who the run is; before anything else."""
        self._run = run
        self._put(run=_run_record(run))
        if hasattr(pb, "EnvironmentRecord"):
            self._put(environment=_environment(run))
        for metric in run.metrics:
            told = {name: value for name, value in metric.items() if has(pb.MetricRecord, name)}
            self._put(metric=_parsed(told, pb.MetricRecord(), "definition of a metric"))

    def history(self, block: Block) -> None:
        """Rows of history."""
        self._add(wire.history(block, self._records + 1))

    def events(self, block: Block) -> None:
        """Rows of system metrics; their keys are without "system."."""
        self._add(wire.events(block, (self._run.started or 0) / 1000, self._records + 1))

    def console(self, text: str, *, stderr: bool = False, time: float | None = None) -> None:
        """What was printed; `time` in seconds, the run's start where it is not known."""
        stamp = int((self._run.started or 0) * 1000 if time is None else time * 1e6)
        kind = "STDERR" if stderr else "STDOUT"
        for at in range(0, len(text), LINES):
            record = pb.OutputRawRecord(output_type=kind, line=utf8(text[at : at + LINES]))
            record.timestamp.FromMicroseconds(stamp)
            self._put(output_raw=record)

    def files(self, paths: Iterable[str]) -> None:
        """Files of the run page, by their paths in the folder `files` beside the log."""
        items = [pb.FilesItem(path=path, policy="NOW") for path in paths]
        if items:
            self._put(files=pb.FilesRecord(files=items))

    def artifact(self, version: Version, entries: Sequence[Entry]) -> None:
        """An artifact that the run made, as often as it did. Its entries' local paths must stay until it is synced."""
        for pair in clients.sound(version.clients) or [("", "")]:
            self._put(artifact=self._artifact(version, entries, *pair))

    def use(self, version: Version, entries: Sequence[Entry] = ()) -> None:
        """An artifact that the run read. W&B finds the one with the same entries; it makes it where there is none.

        Whoever made it, and wherever: the record names the run that reads, which the server looks for in its project.
        """
        record = self._artifact(replace(version, entity="", project=""), entries)
        record.user_created = record.use_after_commit = True
        self._put(artifact=record)

    def summary(self, summary: Mapping[str, Json]) -> None:
        """The run's summary; W&B's own part of it name by name, beside what W&B adds."""
        record = pb.SummaryRecord()
        for path, value in _summary_paths(summary):
            record.update.add(nested_key=map(utf8, path), value_json=_json(value))
        if record.update:
            self._put(summary=record)

    def exit(self, code: int | None, runtime: float | None = None) -> None:
        """The end; no code: the run stays as one that is going on. `runtime` in seconds."""
        seconds = round(min(max(runtime or 0, 0), _INT32))
        done = code is not None
        self._put(exit=pb.RunExitRecord(exit_code=_int32(code or 0), runtime=seconds, not_complete=not done))

    def _artifact(self, version: Version, entries: Sequence[Entry], client: str = "", sequence: str = "") -> Message:
        run = self._run
        place = (version.entity or run.entity, version.project or run.project)
        digest = version.digest or manifest_digest(entries)
        record = pb.ArtifactRecord(
            run_id=run.id,
            entity=place[0],
            project=place[1],
            type=version.type,
            name=version.name,
            digest=digest,
            description=utf8(version.description),
            metadata=_json(version.metadata) if version.metadata else "",
            aliases=version.aliases,
            manifest=_manifest(entries),
            finalize=True,
            client_id=client or _id(*place, version.name, digest, run.id),
            sequence_client_id=sequence or _id(*place, version.type, version.name),
        )
        for name, value in (("tags", version.tags), ("digest_algorithm", "MANIFEST_MD5")):
            if value and has(record, name):
                record.MergeFrom(pb.ArtifactRecord(**{name: value}))
        if version.ttl and has(record, "ttl_duration_seconds"):
            record.ttl_duration_seconds = version.ttl
        return record

    def _put(self, **record: Message) -> None:
        """One record, of the kind that its name says."""
        self._add([pb.Record(num=self._records + 1, **record).SerializeToString()])

    def _add(self, records: Iterable[bytes]) -> None:
        add = self._frames.add
        for record in records:
            add(record)
            self._records += 1


def manifest_digest(entries: Iterable[Entry]) -> str:
    """The digest of an artifact of these entries, as W&B makes it."""
    return digests.of_manifest((entry.path, entry.digest) for entry in entries)


def file_digest(md5: bytes) -> str:
    """How W&B writes the MD5 of a file."""
    return base64.b64encode(md5).decode()


def _run_record(run: WandbRun) -> Message:
    told = {
        "run_id": run.id,
        "entity": run.entity,
        "project": run.project,
        "display_name": run.name,
        "notes": run.notes,
        "run_group": run.group,
        "job_type": run.job_type,
        "sweep_id": run.sweep,
        "host": run.host,
    }
    record = pb.RunRecord(**{name: utf8(text) for name, text in told.items()}, tags=map(utf8, run.tags))
    if run.git_remote or run.git_commit:
        record.git.MergeFrom(pb.GitRepoRecord(remote_url=run.git_remote, commit=run.git_commit))
    if run.started is not None:
        record.start_time.FromMilliseconds(run.started)
    internal = {name: value for name, value in run.internal.items() if name not in _DERIVED}
    for name, value in [*run.config.items(), *([("_wandb", internal)] if internal else [])]:
        record.config.update.add(key=utf8(name), value_json=_json(value))
    record.telemetry.cli_version = str(run.internal.get("cli_version") or producer())
    record.telemetry.python_version = str(run.internal.get("python_version") or "")
    return record


def _environment(run: WandbRun) -> Message:
    """What the SDK tells of the machine: as much of wandb-metadata.json as has its place here."""
    record = pb.EnvironmentRecord(writer_id=run.id)
    for name, value in run.metadata.items():
        with suppress(json_format.ParseError):  # older SDKs gave other shapes; their file goes as it is
            record.MergeFrom(json_format.ParseDict({name: value}, pb.EnvironmentRecord()))
    if run.args:
        del record.args[:]
    told = {"host": run.host, "program": run.program, "args": run.args}
    record.MergeFrom(pb.EnvironmentRecord(**{name: value for name, value in told.items() if value}))
    if run.git_remote or run.git_commit:
        record.git.MergeFrom(pb.GitRepoRecord(remote_url=run.git_remote, commit=run.git_commit))
    if run.started is not None and not record.HasField("started_at"):
        record.started_at.FromMilliseconds(run.started)
    return record


def _parsed(plain: Mapping[str, Json], record: Message, what: str) -> Message:
    try:
        return json_format.ParseDict(plain, record)
    except json_format.ParseError as error:
        raise BadData(f"W&B's {what} cannot be written: {error}.") from error


def _manifest(entries: Iterable[Entry]) -> Message:
    manifest = pb.ArtifactManifest(version=1, storage_policy="wandb-storage-policy-v1")
    manifest.storage_policy_config.add(key="storageLayout", value_json='"V2"')
    for entry in sorted(entries, key=lambda entry: entry.path):
        line = manifest.contents.add(
            path=entry.path, digest=entry.digest, size=entry.size or 0, local_path=entry.local_path, ref=entry.ref
        )
        for name, value in entry.extra.items():
            line.extra.add(key=name, value_json=_json(value))
        if entry.local_path and has(line, "skip_cache"):
            line.skip_cache = True  # the bytes are ours already: no second copy of them
    return manifest


def _summary_paths(summary: Mapping[str, Json]) -> Iterable[tuple[list[str], Json]]:
    for name, value in summary.items():
        if name == "_wandb" and isinstance(value, Mapping) and value:
            yield from (([name, inner], one) for inner, one in value.items())
        else:
            yield [name], value


def _id(*parts: str) -> str:
    """128 letters and digits, like those that the SDK makes by chance."""
    return hashlib.sha512("\0".join(parts).encode()).hexdigest()


def _json(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _int32(number: int) -> int:
    return max(-_INT32 - 1, min(number, _INT32))
