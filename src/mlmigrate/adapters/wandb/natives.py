"""A run of W&B's in our words: a WandbRun becomes a Run whose vocabulary is MLflow's.

Config becomes params by this rule, which every version keeps:

    1. A mapping that is not empty is opened; the names on the way to a value are joined by the separator ("." unless
       a person chose another): {"a": {"b": 1}} is the param "a.b" = 1.
    2. Texts, numbers, truth values and null are values, of their own types.  A list is its JSON text, a mapping that is
       empty the text "{}".
    3. Where several ways give one name ({"a": {"b": 1}, "a.b": 2}), the shortest way keeps it; of those of one length
       the first by code points.  Every other is called name + "~" + 8 hex digits, a BLAKE2b of its way, and told.
    4. The config key `mlmigrate` is ours and no param.

How a config is nested, its order, and what is a list stand in wandb/run.json, exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from mlmigrate.adapters.wandb.blocks import neutral, unescaped
from mlmigrate.adapters.wandb.gathering import SPELT, sound
from mlmigrate.adapters.wandb.moments import whole_ms
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.provenance import DATASET_TYPE, KEY, SYSTEM
from mlmigrate.adapters.wandb.shape import Block, Version, WandbRun
from mlmigrate.model import PARENT_TAG, DatasetInput, Loss, Run, Value, points

SEPARATOR = "."
DEEPEST = 100  # levels of nesting: JSON of more can neither be written nor read again by everybody
STATUSES: Mapping[str, str] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "crashed": "FAILED",
    "killed": "KILLED",
    "preempted": "KILLED",
    "preempting": "RUNNING",
    "running": "RUNNING",
    "pending": "SCHEDULED",
}
EQUALS = frozenset(["finished", "failed", "killed", "running", "pending"])  # states that a status tells wholly
ROW_WORDS = frozenset(["_step", "_timestamp", "_runtime", "_wandb"])  # keys of a summary that are no metrics

Way = tuple[str, ...]


def run_of(run: WandbRun, options: Options) -> tuple[Run, list[Loss]]:
    """The run but for its points and files, and what does not come through as it was."""
    params, collisions = params_of(run.config, options.separator)
    start, end = times_of(run)
    found = Run(
        id=run.id,
        experiment=experiment_id(run.entity, run.project),
        name=run.name,
        origin=origin_of(run),
        status=STATUSES.get(run.state, "FINISHED"),
        status_word="" if run.state in EQUALS else run.state,
        start=start,
        end=end,
        user=run.user,
        params=params,
        tags=tags_of(run) | parent_of(run, options),
        inputs=inputs_of(run),
    )
    because = "another param has that name"
    return found, [
        Loss(run.id, f"param {name!r}", f"called {other!r}: {because}") for other, name in collisions.items()
    ]


def params_of(config: Mapping[str, Any], separator: str = SEPARATOR) -> tuple[dict[str, Value], dict[str, str]]:
    """Params by the rule above, in the order of the config; and of those renamed: name -> what it would have been."""
    found = [(way, value) for way, value in _leaves(config) if way[0] != KEY]
    names = _names([way for way, _ in found], separator)
    params = {names[way]: _value(value) for way, value in found}
    collisions = {names[way]: separator.join(way) for way, _ in found if names[way] != separator.join(way)}
    return params, collisions


def shallow(value: Any, deepest: int = DEEPEST) -> tuple[Any, int]:  # noqa: ANN401  any JSON
    """The value without what is nested deeper than that (null stands there), and how many such parts there were."""
    cut = 0
    root: list[Any] = [value]
    waiting: list[tuple[Any, Any, int]] = [(root, 0, 0)]  # where a part stands, and how deep
    while waiting:
        holder, at, depth = waiting.pop()
        part = holder[at]
        if not isinstance(part, Mapping | list | tuple) or not part:
            continue
        if depth == deepest:
            holder[at], cut = None, cut + 1
            continue
        copy: Any = {str(name): one for name, one in part.items()} if isinstance(part, Mapping) else list(part)
        holder[at] = copy
        waiting += [(copy, name, depth + 1) for name in (copy if isinstance(copy, dict) else range(len(copy)))]
    return root[0], cut


def bounded(run: WandbRun) -> tuple[WandbRun, list[Loss]]:
    """The run with no value nested deeper than DEEPEST, and what was cut."""
    losses, changed = [], {}
    for name in ("config", "internal", "summary", "sweep_config", "metadata"):
        value, cut = shallow(getattr(run, name))
        if cut:
            changed[name] = value
            losses.append(Loss(run.id, name, f"{cut} parts nested deeper than {DEEPEST} levels were left behind"))
    return (replace(run, **changed) if changed else run), losses


def tags_of(run: WandbRun) -> dict[str, str]:
    """What W&B tells beside config and history, as tags; those that say nothing are left out."""
    told = {
        "mlflow.note.content": run.notes,
        "mlflow.user": run.user,
        "mlflow.source.name": run.program,
        "mlflow.source.git.commit": run.git_commit,
        "mlflow.source.git.repoURL": run.git_remote,
        "wandb.tags": json_text(list(run.tags)) if run.tags else "",
        "wandb.group": run.group,
        "wandb.job_type": run.job_type,
        "wandb.sweep": run.sweep,
        "wandb.host": run.host,
        "wandb.state": "" if run.state in EQUALS else run.state,
        "wandb.entity": run.entity,
        "wandb.project": run.project,
        "wandb.id": run.id,
    }
    return {name: text for name, text in told.items() if text}


def times_of(run: WandbRun) -> tuple[int | None, int | None]:
    """Start and end in ms: what the run says; else the end follows from how long it took, or from its last row."""
    start = run.started if run.started is not None else run.created
    if STATUSES.get(run.state) in ("RUNNING", "SCHEDULED"):
        return start, None
    if run.ended is not None:
        return start, run.ended
    own = run.summary.get("_wandb")
    took = (run.runtime, own.get("runtime") if isinstance(own, Mapping) else None, run.summary.get("_runtime"))
    lasted = next((ms for one in took if (ms := _ms(one)) is not None), None)
    return start, start + lasted if start is not None and lasted is not None else _ms(run.summary.get("_timestamp"))


def parent_of(run: WandbRun, options: Options) -> dict[str, str]:
    """The tag that names its parent, where a sweep or a group is a run; a sweep comes before a group."""
    if run.sweep and options.sweeps == "runs":
        return {PARENT_TAG: sweep_run(run.sweep)}
    if run.group and options.groups == "runs":
        return {PARENT_TAG: group_run(run.entity, run.project, run.group)}
    return {}


def sweep_run(sweep: str) -> str:
    """The id of the run that stands for a sweep."""
    return f"sweep-{sweep}"


def group_run(entity: str, project: str, group: str) -> str:
    """The id of the run that stands for a group."""
    return f"group-{digest(entity, project, group)}"


def inputs_of(run: WandbRun) -> tuple[DatasetInput, ...]:
    """The artifacts of type dataset that the run used, each once."""
    found = {(one.name, one.digest): _input(one) for one in run.used if one.type == DATASET_TYPE}
    return tuple(found.values())


def experiment_id(entity: str, project: str) -> str:
    """What a project is called among experiments. A run that names none is in "uncategorized", as W&B has it."""
    return "/".join(part for part in (entity, project or "uncategorized") if part)


def origin_of(run: WandbRun) -> str:
    """What names the run the same wherever it is found again; after the last ":" its id, as targets expect."""
    return f"wandb:{experiment_id(run.entity, run.project)}:{run.id}"


def digest(*parts: object, size: int = 4) -> str:
    """A few hex digits that tell these parts from others."""
    return hashlib.blake2b(json_text([str(part) for part in parts]).encode(), digest_size=size).hexdigest()


def json_text(value: Any, *, in_order: bool = False) -> str:  # noqa: ANN401  any JSON
    """JSON as people read it: letters of all alphabets as they are, but for halves of surrogate pairs.

    `in_order`: the same text for the same value, in whatever order its names came.
    """
    return sound(json.dumps(value, ensure_ascii=False, sort_keys=in_order))


@dataclass(slots=True)
class Seen:
    """What a history was seen to hold while it passed: its neutral keys, and its last row that has a value.

    That is the row of the greatest step, in whatever order a log has them; of equals the last.
    """

    keys: set[str] = field(default_factory=set)
    step: int | None = None
    time: float | None = None

    def look(self, block: Block) -> None:
        """Takes note of some more rows."""
        self.keys.update(map(neutral, block.keys))
        self.keys.update(neutral(other.key) for other in block.others)
        rows = np.union1d(np.asarray(block.row), np.array([other.row for other in block.others], np.int32))
        if len(rows):  # a row without values arrives nowhere: none counts
            steps = np.asarray(block.step.fill_null(-(2**63)))[rows]
            last = int(rows[len(steps) - 1 - np.argmax(steps[::-1])])
            step = block.step[last].as_py()
            if self.step is None or (step is not None and step >= self.step):
                self.step, self.time = step, block.time[last].as_py()


def summary_points(run: Run, summary: Mapping[str, Any], seen: Seen) -> pa.RecordBatch | None:
    """Numbers that only the summary has, one point each: at the run's last step, and at its end; None for none.

    Truth values are no numbers here. `run` is the neutral one: these are the same wherever it is told from.
    """
    found = alone(summary, seen)
    if not found:
        return None
    last = summary.get("_step")
    ends = (run.end, _ms(summary.get("_timestamp")), whole_ms(seen.time), run.start)
    end = next((one for one in ends if one is not None), None)
    step = last if _is_int64(last) else seen.step or 0
    n = len(found)
    columns = {"run": [run.id] * n, "key": list(found), "step": [step] * n, "timestamp": [end] * n}
    return points({**columns, "value": list(found.values())})


def alone(summary: Mapping[str, Any], seen: Seen) -> dict[str, float]:
    """The numbers of a summary that history has not."""
    return {key: value for key, value in numbers_of(summary) if key not in seen.keys}


def renamed(run: WandbRun, seen: Seen) -> Iterator[Loss]:
    """The metrics that are called otherwise, for their keys would mean something else."""
    for key in sorted({*seen.keys, *alone(run.summary, seen)}):
        if (name := unescaped(key)) != key:
            yield Loss(run.id, f"metric {name!r}", f"called {key!r}: what begins with {SYSTEM!r} is a system metric")


def numbers_of(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a summary by their neutral keys, nested names joined by "." as in history; media are none."""
    for way, value in _leaves(summary, opens):
        number = number_of(value)
        if number is not None and way[0] not in ROW_WORDS:
            yield neutral(SEPARATOR.join(way)), number


def opens(part: object) -> bool:
    """Whether a part of a summary is names and values, and no media."""
    return isinstance(part, Mapping) and bool(part) and "_type" not in part


def number_of(value: object) -> float | None:
    """The number that a value of a summary is; None for what is none, and for an integer beyond all floats."""
    number = SPELT.get(value, value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    try:
        return float(number)
    except OverflowError:
        return None


def _ms(seconds: object) -> int | None:
    """Whole milliseconds; None of what is no time."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return round(seconds * 1000) if abs(seconds) < 9e15 else None  # noqa: PLR2004  ms fit an int64; NaN is not less


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _input(version: Version) -> DatasetInput:
    told = {name: getattr(version, name) for name in ("entity", "project", "name", "version", "digest")}
    source = json_text({name: value for name, value in told.items() if value})
    return DatasetInput(version.name, version.digest, "wandb", source)


def _leaves(config: Mapping[str, Any], opens: Callable[[Mapping[str, Any]], bool] = bool) -> Iterator[tuple[Way, Any]]:
    """(way, value) in the config's order; without recursion, for a config may be nested as deep as it likes."""
    waiting: list[tuple[Way, Iterator[tuple[Any, Any]]]] = [((), iter(config.items()))]
    while waiting:
        way, items = waiting[-1]
        for name, value in items:
            if isinstance(value, Mapping) and value and opens(value) and len(way) < DEEPEST:
                waiting.append(((*way, str(name)), iter(value.items())))
                break
            yield (*way, str(name)), value
        else:
            waiting.pop()


def _names(ways: Iterable[Way], separator: str) -> dict[Way, str]:
    """Each way's own name."""
    claims: dict[str, list[Way]] = {}
    for way in ways:
        claims.setdefault(separator.join(way), []).append(way)
    names: dict[Way, str] = {}
    taken = set(claims)
    for name, rivals in claims.items():
        first, *others = sorted(rivals, key=lambda way: (len(way), way)) if len(rivals) > 1 else rivals
        names[first] = name
        for way in others:
            names[way] = next(one for one in _others(name, way) if one not in taken)
            taken.add(names[way])
    return names


def _others(name: str, way: Way) -> Iterator[str]:
    yield f"{name}~{digest(*way)}"
    yield from (f"{name}~{digest(*way, n)}" for n in count(1))


def _value(value: Any) -> Value:  # noqa: ANN401  any JSON
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return json_text(shallow(value)[0]) if isinstance(value, Mapping | list | tuple) else str(value)
