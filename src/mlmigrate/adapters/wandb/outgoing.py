"""A run of ours in W&B's words: config, labels, summary and the rest, and what the config says of where it came from.
Pure.

    params       the config, at its top; what is plainly a number or a truth value becomes one ("typed")
    tags         notes, program, host, git, group, job type where W&B has such; the others are labels "name=value"
    all of it    the config key `mlmigrate` (Provenance), as far as reading W&B would not give the same again

A run that was W&B's before (its artifacts hold wandb/run.json) gets back what it had there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from mlmigrate.adapters.wandb import moments, names
from mlmigrate.adapters.wandb.blocks import escaped, neutral, unescaped
from mlmigrate.adapters.wandb.gathering import spelt
from mlmigrate.adapters.wandb.limits import CONFIG, OWN_KEYS
from mlmigrate.adapters.wandb.natives import DEEPEST, ROW_WORDS, SEPARATOR, number_of, opens, params_of
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.provenance import KEY, OWN_COLUMNS, STEP, SYSTEM, UNSAFE, Provenance, as_config
from mlmigrate.adapters.wandb.shape import File, Version, WandbRun
from mlmigrate.errors import MigrateError
from mlmigrate.globs import glob
from mlmigrate.model import PARENT_TAG, Experiment, Loss, Run, Value, text_of

EXACT = 2**53  # integers beyond are no longer told apart by everybody who reads JSON
WRITER = "mlmigrate"  # who tells of the environment, in `_wandb`
STATES: Mapping[str, tuple[str, int | None]] = {
    "FINISHED": ("finished", 0),
    "FAILED": ("failed", 1),
    "KILLED": ("failed", 1),
    "RUNNING": ("running", None),
    "SCHEDULED": ("pending", None),
}
OWN_TAGS = ("mlflow.", "wandb.")  # tags that have a place of their own, or none
METRICS: tuple[Mapping[str, Any], ...] = (
    {"name": STEP, "options": {"defined": True}},
    {"glob_name": "*", "step_metric": STEP, "options": {"defined": True}},
    *({"name": name, "options": {"hidden": True, "defined": True}} for name in OWN_COLUMNS if name != STEP),
)
_FIELDS = {"name": "1", "glob_name": "2", "step_metric": "4", "goal": "8"}  # numbers of MetricRecord's fields
_LISTS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "options": ("6", {"step_sync": 1, "hidden": 2, "defined": 3}),
    "summary": (
        "7",
        {"min": 1, "max": 2, "mean": 3, "best": 4, "last": 5, "none": 6, "copy": 7, "first": 8},
    ),
}
_INT = re.compile(r"-?(0|[1-9]\d{0,15})", re.ASCII)
_FLOAT = re.compile(r"-?(\d+\.\d+([eE][+-]?\d+)?|\d+[eE][+-]?\d+)", re.ASCII)
_TRUTH = {"True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Home:
    """Where the runs of an experiment live: a project of its own, or (`shared`) one for all."""

    entity: str
    project: str
    experiment: Experiment
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rows of a run came to. `native`: they bear W&B's own steps; `last` is the time of the last, in s.

    `latest` has the latest value of every key in rows, `keys` those of all points.
    """

    rows: int = 0
    events: int = 0
    native: bool = False
    latest: Mapping[str, float] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    last: float | None = None


@dataclass(frozen=True, slots=True)
class Goods:
    """What a run logs, reads and shows besides, and where its artifacts went (as in Provenance).

    digests  of versions logged again whose digest is another now: (name, the one W&B had) -> the one it gets
    """

    logged: tuple[Version, ...] = ()
    used: tuple[Version, ...] = ()
    files: tuple[File, ...] = ()
    trees: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    digests: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A run as W&B shall hold it, and what does not come through."""

    run: WandbRun
    losses: tuple[Loss, ...] = ()


def outgoing(run: Run, home: Home, options: Options, facts: Facts, goods: Goods, native: WandbRun | None) -> Outgoing:
    """The run in W&B's words; `native` is what wandb/run.json says, None where there is none.

    Raises MigrateError for a config that is larger than W&B takes.
    """
    config, view, because = _config(run, options, native)
    losses = [Loss(run.id, f"view {options.nested!r}", because)] if because else []
    provenance = replace(_provenance(run, home, facts, goods, config, native), view=next(iter(view), ""))
    state, code = STATES.get(run.status, STATES["FINISHED"])
    found = WandbRun(
        id=names.run_id(run.origin, run.id),
        entity=home.entity,
        project=home.project,
        name=shown(run.name) or run.id,
        notes=shown(run.tags.get("mlflow.note.content", "")),
        tags=_labels(run, options),
        group=shown(_group(run, home, options)),
        job_type=shown(run.tags.get(options.job_type or "wandb.job_type", "")),
        state=state,
        exit_code=code if native is None or native.exit_code is None or state != native.state else native.exit_code,
        user=run.user,
        host=shown(run.tags.get("wandb.host", "")),
        program=shown(run.tags.get("mlflow.source.name") or run.system.get("source_name", "")),
        args=native.args if native is not None else (),
        git_remote=shown(run.tags.get("mlflow.source.git.repoURL", "")),
        git_commit=shown(run.tags.get("mlflow.source.git.commit") or run.system.get("source_version", "")),
        started=moments.dated(run.start),
        ended=moments.dated(run.end),
        runtime=_seconds(run.start, run.end),
        config=config | view | {KEY: as_config(provenance)},
        files=goods.files,
        logged=goods.logged,
        used=goods.used,
    )
    _bounded(run, found.config)
    return Outgoing(_told(found, facts, native), tuple(losses))


def provenance_of(experiment: Experiment, origin: str) -> Provenance:
    """The provenance of the run that stands for an experiment."""
    return Provenance(
        kind="experiment",
        origin=origin,
        experiment=experiment.name,
        experiment_id=experiment.id,
        estate=msgspec.to_builtins(experiment),
    )


def shown(text: str) -> str:
    """The text as JSON and what reads it can hold it."""
    return UNSAFE.sub("\ufffd", text)


def encoded(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Definitions of metrics as they stand in config's `_wandb.m`: by the numbers of MetricRecord's fields."""
    places = {one.get("name") or one.get("glob_name"): n for n, one in enumerate(metrics, 1)}
    return [_encoded(one, places) for one in metrics]


def expanded(metrics: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> list[Mapping[str, Any]]:
    """The definitions with one for each of these columns of a history that a glob means, and without globs.

    So does the SDK before it tells a server of them: few servers know what globs are.
    """
    found = {one["name"]: one for one in metrics if one.get("name")}
    globs = [one for one in metrics if one.get("glob_name")]
    for column in sorted(columns):
        meant = next((one for one in globs if column.startswith(one["glob_name"].removesuffix("*"))), None)
        if meant is not None and column not in found and not column.startswith("_"):
            options = {name: on for name, on in (meant.get("options") or {}).items() if name != "defined"}
            found[column] = {**meant, "name": column, "glob_name": "", "options": options}
    for step in {one.get("step_metric") for one in found.values()} - {None, "", *found}:
        found[step] = {"name": step}
    return list(found.values())


def _encoded(metric: Mapping[str, Any], places: Mapping[str | None, int]) -> dict[str, Any]:
    found: dict[str, Any] = {_FIELDS[name]: metric[name] for name in _FIELDS if metric.get(name)}
    if found.get("4") in places:
        found["5"] = places[found.pop("4")]
    for name, (number, known) in _LISTS.items():
        given = metric.get(name) or {}
        chosen = [at for option, at in known.items() if given.get(option)]
        found |= {number: chosen} if chosen else {}
    return found


def typed(text: str) -> str | bool | int | float:
    """What a text plainly is: a number of those that JSON and float64 can hold, a truth value, or a text."""
    if text in _TRUTH:
        return _TRUTH[text]
    if _INT.fullmatch(text) and abs(int(text)) <= EXACT:
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def _config(run: Run, options: Options, native: WandbRun | None) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The config without provenance, the nested view besides, and why there is none ("" when nothing is wrong)."""
    by_name = any(not isinstance(value, str) for value in run.params.values()) or options.params == "text"
    plain = {name: _plain(value, as_text=by_name) for name, value in run.params.items()}
    config = _own_config(plain) if native is None else _native_config(run, plain, native, options.separator)
    if not options.nested:
        return config, {}, ""
    if options.nested in config or options.nested in run.params or options.nested in OWN_KEYS:
        return config, {}, "a param, or W&B itself, has that name"
    return config, {shown(options.nested): _nested(plain)}, ""


def _own_config(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Params by name; one whose name only looks like another's, or is W&B's own, is told by provenance alone."""
    config: dict[str, Any] = {}
    for name, value in plain.items():
        key = shown(name)
        if key not in OWN_KEYS and (key == name or key not in plain):
            config.setdefault(key, value)
    return config


def _native_config(run: Run, plain: Mapping[str, Any], native: WandbRun, separator: str) -> dict[str, Any]:
    """What W&B had, but for params that are others by now, or gone."""
    had, _ = params_of(native.config, separator)
    same = {name for name, value in run.params.items() if name in had and text_of(had[name]) == text_of(value)}
    config = _without(native.config, had.keys() - same, separator) if had.keys() - same else dict(native.config)
    config.pop(KEY, None)
    safe: dict[str, Any] = _safe(config)
    return safe | _own_config({name: value for name, value in plain.items() if name not in same})


def _without(config: Mapping[str, Any], gone: set[str], separator: str, before: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if before + name in gone:
            continue
        if isinstance(value, Mapping) and value:
            value = _without(value, gone, separator, before + name + separator)  # noqa: PLW2901
            if not value:
                continue
        kept[name] = value
    return kept


def _nested(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Params opened at "." and "/"; one whose way is barred by a value, or very long, keeps its whole name."""
    root: dict[str, Any] = {}
    for name, value in sorted(plain.items()):
        *way, last = re.split(r"[./]", shown(name))
        at: Any = root if "" not in (*way, last) and len(way) < DEEPEST // 2 else None
        for part in way:
            at = at.setdefault(part, {}) if isinstance(at, dict) else None
        if isinstance(at, dict) and last not in at:
            at[last] = value
        else:
            root.setdefault(shown(name), value)
    return root


def _provenance(
    run: Run,
    home: Home,
    facts: Facts,
    goods: Goods,
    config: Mapping[str, Any],
    native: WandbRun | None,
) -> Provenance:
    kinds, texts, types = differences(config, run.params)
    id_ = names.run_id(run.origin, run.id)
    return Provenance(
        origin=run.origin,
        native=native is not None and facts.native,
        id=run.id if run.id != id_ else "",
        name=None if shown(run.name) == run.name != "" else run.name,
        experiment=home.experiment.name,
        experiment_id=run.experiment,
        status=run.status,
        status_word=run.status_word,
        start=run.start,
        end=run.end,
        user=run.user,
        deleted=run.deleted,
        deleted_at=run.deleted_at,
        artifact_uri=run.artifact_uri,
        typed=kinds,
        params=texts,
        types=types,
        tags=dict(run.tags),
        system=dict(run.system),
        inputs=tuple(msgspec.to_builtins(one) for one in run.inputs),
        trees=goods.trees,
        files=goods.paths,
        rows=facts.rows,
        events=facts.events,
    )


def differences(
    config: Mapping[str, Any], params: Mapping[str, Value]
) -> tuple[bool, dict[str, str | None], dict[str, str]]:
    """What Provenance keeps of params (typed, params, types), so that reading `config` gives exactly `params`.

    The config is read as it is and as W&B may tell it again: 3.0 as 3, keys within lists in another order.
    """
    kinds = any(not isinstance(value, str) for value in params.values())
    readings = [params_of(one)[0] for one in (config, _told_again(config))]
    texts: dict[str, str | None] = {}
    types: dict[str, str] = {}
    for name, value in params.items():
        if all(name in one and _same(one[name] if kinds else text_of(one[name]), value) for one in readings):
            continue
        texts[name] = text_of(value)
        if not isinstance(value, str):
            types[name] = _kind(value)
    texts |= {name: None for one in readings for name in one if name not in params}
    return kinds, texts, types


def _told_again(value: Any) -> Any:  # noqa: ANN401  any JSON
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _told_again(value[name]) for name in sorted(value)}
    return [_told_again(one) for one in value] if isinstance(value, list | tuple) else value


def _plain(value: Value, *, as_text: bool) -> Any:  # noqa: ANN401  any JSON
    """A param as it stands in a config."""
    if isinstance(value, str):
        return shown(value) if as_text else _safe(typed(value))
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, frozenset):
        return [shown(one) for one in sorted(value)]
    return str(value) if isinstance(value, int) and abs(value) > EXACT else _safe(value)


def _safe(value: Any) -> Any:  # noqa: ANN401  any JSON
    """The value as every reader of JSON takes it: numbers that JSON has no word for are texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return spelt(value)
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {shown(name): _safe(one) for name, one in value.items()}
    return [_safe(one) for one in value] if isinstance(value, list | tuple) else value


def _kind(value: Value) -> str:
    if value is None:
        return "null"
    return "set" if isinstance(value, frozenset) else type(value).__name__


def _same(read: Value, value: Value) -> bool:
    return type(read) is type(value) and read == value


def _labels(run: Run, options: Options) -> tuple[str, ...]:
    """W&B's own tags, where it had such; a view of ours; and the words that no state tells."""
    found = _listed(run.tags.get("wandb.tags", ""))
    if options.labels:
        wanted = glob(options.labels)
        own = ((name, value) for name, value in run.tags.items() if not name.startswith(OWN_TAGS))
        found += [label for name, value in own if wanted.fullmatch(name) and (label := names.label(name, value))]
    found += ["killed"] if run.status == "KILLED" else []
    found += ["deleted"] if run.deleted else []
    return tuple(dict.fromkeys(found))


def _listed(text: str) -> list[str]:
    try:
        found = json.loads(text or "[]")
    except ValueError:  # somebody else's tag of that name
        return []
    return [one for one in found if isinstance(one, str) and names.label(one, "")] if isinstance(found, list) else []


def _group(run: Run, home: Home, options: Options) -> str:
    own = run.tags.get(options.group or "wandb.group", "")
    if own or options.group:
        return own
    parent = run.tags.get(PARENT_TAG, "")
    if parent:
        return names.parent_id(run.origin, run.id, parent)
    return home.experiment.name if home.shared else ""


def _told(found: WandbRun, facts: Facts, native: WandbRun | None) -> WandbRun:
    """The run with definitions of metrics, summary, environment."""
    keys = [key for key in facts.keys if not key.startswith(SYSTEM)]
    if native is None or not facts.native:
        metrics = METRICS if facts.rows else ()
        internal = {"m": encoded(expanded(metrics, map(escaped, keys))), "e": {WRITER: _environment(found)}}
        summary = _summary(found, facts) | (_words(native.summary) if native is not None else {})
    else:
        metrics, internal = native.metrics, dict(_safe(native.internal))
        if metrics and "m" not in internal:  # a log has them as records of their own
            internal["m"] = encoded(expanded(metrics, map(unescaped, keys)))
        summary = _without_left_behind(native.summary, facts.keys)
    metadata = _safe(native.metadata) if native is not None else {}
    return replace(found, metrics=metrics, internal=internal, summary=summary, metadata=metadata or _environment(found))


def _environment(found: WandbRun) -> dict[str, Any]:
    """What wandb-metadata.json says of where a run ran, as far as it is known."""
    git = {"remote": found.git_remote, "commit": found.git_commit}
    told = {
        "startedAt": _iso(found.started),
        "program": found.program,
        "args": list(found.args),
        "git": {name: text for name, text in git.items() if text},
        "host": found.host,
        "username": shown(found.user),
    }
    return {name: one for name, one in told.items() if one}


def _iso(ms: int | None) -> str:
    """As W&B writes times; "" for none."""
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}000Z"


def _summary(found: WandbRun, facts: Facts) -> dict[str, Any]:
    summary: dict[str, Any] = {key: one for key, one in facts.latest.items() if not key.startswith(SYSTEM)}
    if facts.rows:
        summary["_step"] = facts.rows - 1
    if facts.last is not None:
        summary["_timestamp"] = facts.last
        if found.started is not None:
            summary["_runtime"] = facts.last - found.started / 1000
    if found.runtime is not None:
        summary["_wandb"] = {"runtime": max(0, round(found.runtime))}
    return summary


def _words(part: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """What W&B had in a summary beside numbers: those are told by points."""
    kept: dict[str, Any] = {}
    for name, value in part.items():
        if opens(value) and depth < DEEPEST:
            if inner := _words(value, depth + 1):
                kept[name] = inner
        elif (depth or name not in ROW_WORDS) and number_of(value) is None:
            kept[name] = value
    return kept


def _without_left_behind(part: Mapping[str, Any], keys: frozenset[str], way: tuple[str, ...] = ()) -> dict[str, Any]:
    """What W&B had in a summary, but for numbers whose points were left behind, or called otherwise since."""
    kept: dict[str, Any] = {}
    for name, value in part.items():
        here = (*way, str(name))
        if opens(value) and len(way) < DEEPEST:
            kept[name] = _without_left_behind(value, keys, here)
        elif here[0] in ROW_WORDS or number_of(value) is None or neutral(SEPARATOR.join(here)) in keys:
            kept[name] = value
    return kept


def _seconds(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1000


def _bounded(run: Run, config: Mapping[str, Any]) -> None:
    size = len(msgspec.json.encode(config))
    if size > CONFIG:
        raise MigrateError(
            f"The config of run {run.id} would have {size:,} bytes, with its params and tags; W&B takes {CONFIG:,}.",
            'Leave the largest out with a mapping: [keys] "name" = false, [tag_keys] "name" = false.',
        )
