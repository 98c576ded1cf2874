"""What the records tell of a run, one after another: a later word wins over an earlier one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mlmigrate.adapters.wandb.datalog import ends
from mlmigrate.adapters.wandb.datalog.messages import Json, Message, has, json_format, pb
from mlmigrate.adapters.wandb.datalog.scan import SUMMARY, Unusual, scan
from mlmigrate.adapters.wandb.moments import dated
from mlmigrate.adapters.wandb.shape import Version, WandbRun

DEEPEST = 100  # names in a path; more are no config that anyone wrote
_DERIVED = ("_info", "_control")
_GOING_ON = ("running", "preempting")
Tell = Callable[[str, str], None]  # what, because
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of an artifact's manifest. `digest` in base64; `local_path` is where the file lay when it was logged."""

    path: str
    digest: str = ""
    size: int | None = None
    local_path: str = ""
    ref: str = ""
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Logged:
    """An artifact in the log. `used`: the run read it, and did not make it.

    `manifest_file` is where the SDK put a manifest that is too large for the log; then there are no entries.
    `incremental`, `distributed`: it is a part of an artifact only.
    """

    version: Version
    entries: tuple[Entry, ...] = ()
    used: bool = False
    manifest_file: str = ""
    incremental: bool = False
    distributed: str = ""


class State:
    """Takes records and gives the run that they make."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.record: Message = pb.RunRecord()
        self.artifacts: list[Logged] = []
        self._logged: dict[tuple[str, str], int] = {}  # name, digest -> its place among the artifacts
        self._called: dict[int, list[tuple[str, str]]] = {}  # that place -> all ids of one that was logged again
        self._aliased: dict[tuple[str, str], int] = {}  # name, alias -> the place of the version that has it
        self.files: dict[str, None] = {}
        self._config: dict[str, Json] = {}
        self._summary: dict[Path, str] = {}
        self._metrics: dict[tuple[str, str], Message] = {}
        self._telemetry: Message = pb.RunRecord().telemetry
        self._environment: dict[str, Json] = {}
        self.exit: Message = None
        self.last: dict[str, bytes] = {}  # of the kinds that tell times and nothing else of a run: the last record
        self._preempting = False

    def take(self, kind: str, record: Message) -> None:
        """One more record; kinds that tell nothing of the run are passed over."""
        taker = getattr(self, f"_take_{kind}", None)
        if taker is not None:
            taker(getattr(record, kind))

    def summaries(self, records: Sequence[bytes]) -> None:
        """Many records of kind summary, in their order."""
        try:
            found = scan(records, SUMMARY)
        except Unusual:
            found = None
        if found is None or found.stepped.any():  # what is a step in a row is a removal here
            for record in records:
                self._take_summary(pb.Record.FromString(record).summary)
            return
        last = np.zeros(len(found.paths), np.int64)
        last[found.path] = np.arange(len(found.path))
        for at in np.sort(last):
            self._set_summary(found.paths[found.path[at]], found.text[int(at)].as_py())

    def run(self, id: str, *, live: bool, lines: int) -> WandbRun:
        """All of it. `live`: somebody may still be writing; `lines`: rows of history."""
        record, config, summary = self.record, dict(self._config), self._summary_now()
        internal = config.pop("_wandb", {})
        metadata, environment = self._metadata()
        runtime = self._runtime(summary)
        started = _millis(record.start_time) if record.HasField("start_time") else None
        if started is None and environment is not None and environment.HasField("started_at"):
            started = _millis(environment.started_at)
        state = self._state(live=live)
        git = record.git if record.git.ByteSize() or environment is None else environment.git
        return WandbRun(
            id=record.run_id or id,
            entity=record.entity,
            project=record.project,
            name=record.display_name,
            notes=record.notes,
            tags=tuple(record.tags),
            group=record.run_group,
            job_type=record.job_type,
            sweep=record.sweep_id,
            state=state,
            exit_code=self.exit.exit_code if self.exit is not None and not self.exit.not_complete else None,
            user=metadata.get("username") or metadata.get("email") or "",
            host=record.host or metadata.get("host") or "",
            program=metadata.get("program") or "",
            args=tuple(metadata.get("args") or ()),
            git_remote=git.remote_url,
            git_commit=git.commit,
            started=started,
            ended=self._ended(state, started, runtime),
            runtime=runtime,
            config=config,
            internal=self._versions() | internal if isinstance(internal, dict) else self._versions(),
            summary=summary,
            metrics=tuple(_plain(one) for one in self._metrics.values()),
            metadata=metadata,
            logged=tuple(one.version for one in self.artifacts if not one.used),
            used=tuple(one.version for one in self.artifacts if one.used),
            lines=lines,
        )

    def _take_run(self, run: Message) -> None:
        """The first, or what is changed of it."""
        self._take_config(run.config)
        self._take_summary(run.summary)
        self._take_telemetry(run.telemetry)
        if run.tags:
            del self.record.tags[:]
        if has(run, "branch_point") and run.HasField("branch_point"):
            self._branched(run)
        self.record.MergeFrom(run)

    def _branched(self, run: Message) -> None:
        """It goes on from a point of another run, or from an earlier one of its own."""
        at = f"{run.branch_point.metric}={run.branch_point.value:g}"
        if run.branch_point.run == run.run_id:
            self._tell(f"rewound to {at}", "rows of its earlier logs after that count no more for W&B: they are kept")
        else:
            self._tell(f"history until {at}", f"the run was forked from {run.branch_point.run!r}, which has these rows")

    def _take_config(self, config: Message) -> None:
        for item in config.update:
            self._read(item, "config", self._set_config)
        for item in config.remove:
            _remove(self._config, _path(item))

    def _take_summary(self, summary: Message) -> None:
        for item in summary.update:
            self._set_summary(_path(item), item.value_json)
        for item in summary.remove:
            path = _path(item)
            for one in [one for one in self._summary if one[: len(path)] == path]:
                del self._summary[one]
            self._cut(path)

    def _cut(self, path: Path) -> None:
        """Takes a part out of a value that was told whole."""
        for n in range(1, len(path)):
            whole = _value(self._summary.get(path[:n], ""))
            if isinstance(whole, dict):
                _remove(whole, path[n:])
                self._summary[path[:n]] = json.dumps(whole)  # it stays before what was told of its parts since

    def _take_metric(self, metric: Message) -> None:
        if getattr(metric, "expanded_from_glob", False):
            return  # W&B makes it again of its glob
        key = (metric.name, metric.glob_name)
        if key in self._metrics and not getattr(metric, "_control").overwrite:  # noqa: B009  the field is called so
            self._metrics[key].MergeFrom(metric)
        else:
            self._metrics[key] = metric

    def _take_environment(self, environment: Message) -> None:
        if environment.writer_id in self._environment:
            self._environment[environment.writer_id].MergeFrom(environment)
        else:
            self._environment[environment.writer_id] = environment

    def _take_telemetry(self, telemetry: Message) -> None:
        self._telemetry.MergeFrom(telemetry)

    def _take_files(self, files: Message) -> None:
        self.files.update((file.path, None) for file in files.files)

    def _take_exit(self, exit_: Message) -> None:
        self.exit = exit_

    def _take_preempting(self, _: Message) -> None:
        self._preempting = True

    def _take_artifact(self, artifact: Message) -> None:
        """W&B makes no second version of what it has: logged again, the first one gets the aliases."""
        found = _logged(artifact, _value(artifact.metadata or "{}"))
        version, at = found.version, len(self.artifacts)
        first = at if found.used else self._logged.setdefault((version.name, version.digest), at)
        if first < at and _same(self.artifacts[first], found):
            at = first
            self._called.setdefault(at, [*self.artifacts[at].version.clients]).extend(version.clients)
        else:
            self.artifacts.append(found)
        if not found.used:
            self._aliased |= {(version.name, alias): at for alias in version.aliases}

    def settle(self) -> None:
        """After the last record: an artifact that was logged again has all its ids, and an alias one version."""
        if not self._called:
            return
        held: dict[int, list[str]] = {}
        for (_, alias), at in self._aliased.items():
            held.setdefault(at, []).append(alias)
        for at, one in enumerate(self.artifacts):
            if not one.used:
                ids = tuple(self._called.get(at, one.version.clients))
                version = replace(one.version, aliases=tuple(held.get(at, ())), clients=ids)
                self.artifacts[at] = replace(one, version=version)

    def _take_use_artifact(self, use: Message) -> None:
        name, _, version = use.name.partition(":")
        self.artifacts.append(Logged(Version(name, use.type, version), used=True))

    def _take_alert(self, alert: Message) -> None:
        self._tell(f"alert {alert.title!r}", "alerts are messages that W&B sends; nothing holds them afterwards")

    def _set_config(self, path: Path, value: Json) -> None:
        if len(path) > DEEPEST:
            self._tell(f"config {path[0]!r}", f"is nested more than {DEEPEST} deep")
            return
        node = self._config
        for name in path[:-1]:
            inner = node.get(name)
            if not isinstance(inner, dict):
                inner = node[name] = {}
            node = inner
        _merge(node, path[-1], value)

    def _set_summary(self, path: Path, text: str) -> None:
        self._summary.pop(path, None)  # the last that is told stands last
        self._summary[path] = text

    def _summary_now(self) -> dict[str, Json]:
        summary: dict[str, Json] = {}
        for path, text in self._summary.items():
            value = _value(text)
            if value is _UNREADABLE or len(path) > DEEPEST:
                self._tell(f"summary {'.'.join(path[:DEEPEST])!r}", "its value cannot be read")
                continue
            node = summary
            for name in path[:-1]:
                inner = node.get(name)
                if not isinstance(inner, dict):
                    inner = node[name] = {}
                node = inner
            node[path[-1]] = value
        return summary

    def _read(self, item: Message, what: str, put: Callable[[Path, Json], None]) -> None:
        path = _path(item)
        value = _value(item.value_json)
        if value is _UNREADABLE:
            self._tell(f"{what} {'.'.join(path)!r}", "its value is no JSON")
        else:
            put(path, value)

    def _metadata(self) -> tuple[dict[str, Json], Message]:
        """What the SDK puts into wandb-metadata.json, by the first writer, and the record itself."""
        if not self._environment:
            return {}, None
        environment = next(iter(self._environment.values()))
        plain = json_format.MessageToDict(environment)
        return {name: value for name, value in plain.items() if name not in ("writerId", "Info")}, environment

    def _versions(self) -> dict[str, Json]:
        telemetry = self._telemetry
        told = {name: getattr(telemetry, name, "") for name in ("cli_version", "python_version")}
        return {name: value for name, value in told.items() if value}

    def _runtime(self, summary: Mapping[str, Json]) -> float | None:
        """Seconds; the summary tells it exactly, the exit record in whole ones."""
        inner = summary.get("_wandb")
        told = inner.get("runtime") if isinstance(inner, dict) else None
        if isinstance(told, int | float) and not isinstance(told, bool) and -1e12 < told < 1e12:  # noqa: PLR2004
            return told
        return self.exit.runtime if self.exit is not None and self.exit.runtime else None

    def _ended(self, state: str, started: int | None, runtime: float | None) -> int | None:
        """When it took so long as it says; else when its log was written last, unless that goes on."""
        if started is not None and runtime is not None:
            return started + round(runtime * 1000)
        return None if state in _GOING_ON else ends.last(self.last.values(), started)

    def _state(self, *, live: bool) -> str:
        if self.exit is None:
            return "preempting" if self._preempting else "running" if live else "crashed"
        if self.exit.not_complete:
            return "running"
        return "failed" if self.exit.exit_code else "finished"


_UNREADABLE = object()


def _value(text: str) -> Json:
    """What a JSON text says, or _UNREADABLE."""
    try:
        value = json.loads(text)
        if "\\ud" in text.casefold():  # half of a surrogate pair is text that nothing can hold
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return _UNREADABLE
    return value


def _logged(artifact: Message, metadata: Json) -> Logged:
    version = Version(
        name=artifact.name,
        type=artifact.type,
        entity=artifact.entity,
        project=artifact.project,
        digest=artifact.digest,
        description=artifact.description,
        metadata=metadata if isinstance(metadata, dict) else {},
        aliases=tuple(artifact.aliases),
        tags=tuple(getattr(artifact, "tags", ())),
        ttl=getattr(artifact, "ttl_duration_seconds", 0) or None,
        run="" if artifact.user_created else artifact.run_id,
        clients=_clients(artifact),
    )
    manifest = artifact.manifest
    return Logged(
        version,
        tuple(_entry(one) for one in manifest.contents),
        used=artifact.user_created and artifact.use_after_commit,
        manifest_file=getattr(manifest, "manifest_file_path", ""),
        incremental=artifact.incremental_beta1,
        distributed=artifact.distributed_id,
    )


def _same(one: Logged, other: Logged) -> bool:
    """Whether two of one name and digest are one version: equal but for how it is called, and where its files lay."""
    plain = [replace(it.version, clients=(), aliases=()) for it in (one, other)]
    files = [[(entry.path, entry.digest, entry.size, entry.ref) for entry in it.entries] for it in (one, other)]
    partial = one.incremental or other.incremental
    return bool(one.version.digest) and not partial and plain[0] == plain[1] and files[0] == files[1]


def _clients(artifact: Message) -> tuple[tuple[str, str], ...]:
    logged = artifact.client_id and not artifact.user_created
    return ((artifact.client_id, artifact.sequence_client_id),) if logged else ()


def _entry(entry: Message) -> Entry:
    extra = {item.key: _value(item.value_json) for item in entry.extra}
    extra = {key: value for key, value in extra.items() if value is not _UNREADABLE}
    size = None if entry.ref and not entry.size else entry.size  # of a reference it may not be known
    return Entry(entry.path, entry.digest, size, entry.local_path, entry.ref, extra)


def _path(item: Message) -> Path:
    return tuple(item.nested_key) or (item.key,)


def _merge(node: dict[str, Json], name: str, value: Json) -> None:
    """Sets a value; a dict's names are set one by one, as W&B's core does."""
    known = node.get(name)
    if not isinstance(value, dict) or not isinstance(known, dict):
        node[name] = value
        return
    for inner, one in value.items():
        _merge(known, inner, one)


def _remove(node: dict[str, Json], path: Iterable[str]) -> None:
    *before, last = path
    inner: Json = node
    for name in before:
        inner = inner.get(name) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner.pop(last, None)


def _plain(metric: Message) -> Mapping[str, Json]:
    plain = json_format.MessageToDict(metric, preserving_proto_field_name=True)
    return {name: value for name, value in plain.items() if name not in _DERIVED}


def _millis(stamp: Message) -> int | None:
    return dated(int(stamp.seconds * 1000 + stamp.nanos // 1_000_000))
