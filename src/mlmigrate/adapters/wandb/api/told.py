"""What a server tells of a run, as a WandbRun: config, summary, definitions of metrics, environment, times."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from mlmigrate.adapters.wandb.moments import lasted, milliseconds
from mlmigrate.adapters.wandb.shape import WandbRun

Json = Mapping[str, Any]
_INTERNAL = ("_wandb", "wandb_version")
RESUMED = 1000  # ms: rows of a run that was resumed go on counting seconds from those of its first part
_UNFINISHED = ("running", "pending", "preempting")
# W&B writes definitions of metrics into the config by the numbers that MetricRecord's fields have
_METRIC = {"1": "name", "2": "glob_name", "4": "step_metric", "5": "step_metric_index", "6": "options",
           "7": "summary", "8": "goal", "9": "_control"}  # fmt: skip
_OPTIONS = {"1": "step_sync", "2": "hidden", "3": "defined"}
_SUMMARY = {"1": "min", "2": "max", "3": "mean", "4": "best", "5": "last", "6": "none", "7": "copy", "8": "first"}
_GOALS = {"0": "GOAL_UNSET", "1": "GOAL_MINIMIZE", "2": "GOAL_MAXIMIZE"}


@dataclass(frozen=True, slots=True)
class Listed:
    """A run as a list of runs tells it.

    last   the highest step there is, -1 for none known
    keys   how many keys its history has
    beat   when the server last heard of it, as it says so
    system whether there are system metrics
    """

    run: WandbRun
    last: int = -1
    keys: int = 0
    beat: str = ""
    system: bool = False

    @property
    def live(self) -> bool:
        """Whether more may come."""
        return self.run.state in _UNFINISHED


def listed(node: Json, entity: str, project: str) -> Listed:
    """A node of `runs`, or of `run`."""
    config, internal = config_of(as_json(node.get("config")))
    summary = as_json(node.get("summaryMetrics"))
    user = node.get("user") or {}
    run = WandbRun(
        id=str(node.get("name") or ""),
        entity=entity,
        project=project,
        name=node.get("displayName") or "",
        notes=node.get("notes") or "",
        tags=tuple(node.get("tags") or ()),
        group=node.get("group") or "",
        job_type=node.get("jobType") or "",
        sweep=node.get("sweepName") or "",
        state=node.get("state") or "finished",
        user=user.get("username") or user.get("name") or "",
        git_commit=node.get("commit") or "",
        created=milliseconds(node.get("createdAt")),
        config=config,
        internal=internal,
        summary=summary,
        metrics=metrics_of(internal.get("m")),
        lines=node.get("historyLineCount"),
    )
    keys = node.get("historyKeys")
    keys = keys if isinstance(keys, Mapping) else as_json(keys)
    last = whole(keys.get("lastStep"))
    beat = str(node.get("heartbeatAt") or "")
    run = with_environment(run, environment_of(internal), beat)
    found = len(keys.get("keys") or ())
    return Listed(run, -1 if last is None else last, found, beat, bool(as_json(node.get("systemMetrics"))))


def with_environment(run: WandbRun, told: Json, beat: str = "") -> WandbRun:
    """The run with what wandb-metadata.json, or what stands for it in the config, says."""
    git = told.get("git") if isinstance(told.get("git"), Mapping) else {}
    args = told.get("args")
    newest = milliseconds(told.get("startedAt")) or _started(run.internal) or run.started
    started, runtime = _first(run, newest), runtime_of(run.summary)
    return replace(
        run,
        host=_text(told.get("host")) or run.host,
        program=_text(told.get("program")) or run.program,
        args=tuple(str(one) for one in args) if isinstance(args, list) else run.args,
        git_remote=_text(_of(git, "remote", "remote_url")) or run.git_remote,
        git_commit=_text(_of(git, "commit")) or run.git_commit,
        started=started,
        runtime=runtime,
        ended=_ended(run, started, runtime, beat, resumed=started != newest),
        metadata=dict(told) or run.metadata,
    )


def environment_of(internal: Json) -> Json:
    """What stands in the config for wandb-metadata.json: the newest writer's environment."""
    told = internal.get("e")
    found = [one for one in told.values() if isinstance(one, Mapping)] if isinstance(told, Mapping) else []
    return max(found, key=lambda one: str(one.get("startedAt") or "")) if found else {}


def config_of(told: Json) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, its `_wandb`), plain: W&B keeps {"value": ..., "desc": ...} for each key."""
    plain = {key: value["value"] if _is_value(value) else value for key, value in told.items()}
    internal = plain.get("_wandb")
    config = {key: value for key, value in plain.items() if key not in _INTERNAL}
    return config, dict(internal) if isinstance(internal, Mapping) else {}


def metrics_of(told: object) -> tuple[dict[str, Any], ...]:
    """Definitions of metrics in the field names of MetricRecord."""
    given = [one for one in told if isinstance(one, Mapping)] if isinstance(told, list) else []
    found = [_named(one) for one in given]
    for one in found:
        at = whole(one.pop("step_metric_index", None))
        if at is not None and 0 < at <= len(found):
            one.setdefault("step_metric", found[at - 1].get("name") or found[at - 1].get("glob_name") or "")
    return tuple(found)


def as_json(told: object) -> dict[str, Any]:
    """A JSONString as a mapping; empty for what is none. W&B keeps NaN, Infinity and control characters in them."""
    if isinstance(told, Mapping):
        return dict(told)
    if not isinstance(told, str):
        return {}
    try:
        found = json.loads(told, strict=False)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def runtime_of(summary: Json) -> float | None:
    """How long the run took, in seconds."""
    inner = summary.get("_wandb")
    for told in (_of(inner, "runtime"), summary.get("_runtime")):
        if (runtime := lasted(told)) is not None:
            return runtime
    return None


def whole(told: object) -> int | None:
    """An integer; the API says some as floats."""
    if isinstance(told, float) and told.is_integer():
        return int(told)
    return told if isinstance(told, int) and not isinstance(told, bool) else None


def _ended(run: WandbRun, started: int | None, runtime: float | None, beat: str, *, resumed: bool) -> int | None:
    """What follows from start and runtime, else the last that the server heard of it.

    The runtime of a run that was resumed leaves the time between its parts out: it ends no sooner than its last row.
    """
    if run.state in _UNFINISHED:
        return None
    if started is not None and runtime is not None:
        end = started + round(runtime * 1000)
        return max(end, round(run.summary["_timestamp"] * 1000)) if resumed else end
    return run.ended if run.ended is not None else milliseconds(beat)


def _first(run: WandbRun, started: int | None) -> int | None:
    """When the run began: one that was resumed says when that was, but its rows go on counting from the first time."""
    time, runtime = run.summary.get("_timestamp"), run.summary.get("_runtime")
    if started is None or run.created is None or not (_is_number(time) and _is_number(runtime)):
        return started
    return min(started, run.created) if (time - runtime) * 1000 < started - RESUMED else started


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _started(internal: Json) -> int | None:
    """Older SDKs say the start in seconds in the config."""
    told = internal.get("start_time")
    if isinstance(told, int | float) and not isinstance(told, bool) and 0 < told < 1e11:  # noqa: PLR2004  seconds
        return round(told * 1000)
    return None


def _named(told: Json) -> dict[str, Any]:
    named = {_METRIC.get(str(number), str(number)): value for number, value in told.items()}
    found = {name: value for name, value in named.items() if name != "_control"}
    for name, flags in (("options", _OPTIONS), ("summary", _SUMMARY)):
        if name in found:
            found[name] = _flags(found[name], flags)
    if "goal" in found:
        found["goal"] = _GOALS.get(str(found["goal"]), found["goal"])
    return found


def _flags(told: object, names: Mapping[str, str]) -> Any:  # noqa: ANN401  any JSON
    """[1, 3] -> {"step_sync": True, "defined": True}."""
    if not isinstance(told, list):
        return told
    return {names.get(str(one), str(one)): True for one in told}


def _is_value(value: object) -> bool:
    return isinstance(value, Mapping) and "value" in value


def _of(told: object, *names: str) -> Any:  # noqa: ANN401  any JSON
    if not isinstance(told, Mapping):
        return None
    return next((told[name] for name in names if told.get(name) is not None), None)


def _text(told: object) -> str:
    return told if isinstance(told, str) else ""
