"""What the rules of a mapping make of wandb/run.json and wandb/history.jsonl, which say once more what the run says.

What is not carried of params, metrics, tags and users does not stand there either, and what is redacted is so there,
however deep it lies.  What is only renamed keeps there the name that W&B has for it.

Of W&B's own files those that repeat it as a whole (wandb/files/config.yaml, ...) stay behind where rules hide anything;
all others are bytes of the user's, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mlmigrate.adapters.wandb.blocks import MARK, neutral
from mlmigrate.adapters.wandb.natives import ROW_WORDS, SEPARATOR, opens
from mlmigrate.adapters.wandb.provenance import FILES, HISTORY_JSONL, RUN_JSON

PATHS = (RUN_JSON, HISTORY_JSONL)
# Files of the run page that say, as bytes of W&B's own, what wandb/run.json says: that is as the rules want it.
REPEATED = frozenset(f"{FILES}{name}" for name in ("config.yaml", "wandb-summary.json", "wandb-metadata.json"))
# Tags -> what says the same: the field of the run, and the ways to it in what is told of the environment.
_TAGS: Mapping[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "mlflow.note.content": ("notes", ()),
    "mlflow.source.name": ("program", (("program",), ("codePath",), ("codePathLocal",))),
    "mlflow.source.git.commit": ("git_commit", (("git", "commit"),)),
    "mlflow.source.git.repoURL": ("git_remote", (("git", "remote"), ("git", "remote_url"), ("git", "remoteURL"))),
    "wandb.tags": ("tags", ()),
    "wandb.group": ("group", ()),
    "wandb.job_type": ("job_type", ()),
    "wandb.sweep": ("sweep", ()),
    "wandb.host": ("host", (("host",),)),
}
_USERS = ("username", "email")  # in what is told of the environment


class Rules(Protocol):
    """What is asked of a mapping. Names are those of params and metrics (key), of tags, of users; None: not carried."""

    def key(self, name: str) -> str | None: ...

    def tag(self, name: str) -> str | None: ...

    def user(self, name: str) -> str | None: ...

    def instead(self, name: str) -> str | None:
        """What stands in place of the value of a param or a tag of this name; None where the name tells no secret."""

    def tree(self, name: str, tree: object) -> object:
        """Any JSON, redacted."""


def told(path: str, given: Any, rules: Rules, choices: Mapping[str, str | bool]) -> Any:  # noqa: ANN401  any JSON
    """What one of PATHS (or one of its lines) says as the rules want it; None: it is not carried."""
    if path == HISTORY_JSONL:
        return line(given, rules)
    return index(given, rules, str(choices.get("wandb.separator", SEPARATOR)))


def index(told: Any, rules: Rules, separator: str = SEPARATOR) -> Any:  # noqa: ANN401  any JSON
    """What wandb/run.json says, as the rules want it."""
    run = told.get("run") if isinstance(told, dict) else None
    if not isinstance(run, dict):
        return rules.tree("", told)
    kept = {name: value for name, value in run.items() if name not in ("config", "summary")}
    _users(kept, ("user",), rules)
    for environment in _environments(kept):
        _users(environment, _USERS, rules)
    for tag, (field, ways) in _TAGS.items():
        _tag(kept, (field,), tag, rules)
        for environment in _environments(kept):
            for way in ways:
                _tag(environment, way, tag, rules)
    _sweep(kept, rules)
    kept = {name: rules.tree(name, value) for name, value in kept.items()}
    for name, between in (("config", separator), ("summary", SEPARATOR)):
        if isinstance(run.get(name), dict):
            kept[name] = _part(run[name], rules, between, summary=name == "summary")
    return {**told, "run": {name: kept[name] for name in run if name in kept}}


def line(told: Any, rules: Rules) -> Any:  # noqa: ANN401  any JSON
    """A line of wandb/history.jsonl as the rules want it; None: not carried."""
    key = told.get("key") if isinstance(told, dict) else None
    if not isinstance(key, str) or key == MARK:
        return rules.tree("", told)
    if rules.key(neutral(key)) is None:
        return None
    return {**told, "value": _value(told.get("value"), key, key, rules)}


def _part(part: dict[str, Any], rules: Rules, between: str, before: str = "", *, summary: bool) -> dict[str, Any]:
    """Config or summary; a value is called as its param or metric is."""
    kept: dict[str, Any] = {}
    for name, value in part.items():
        here = before + name
        if summary and here in ROW_WORDS:
            kept[name] = value
        elif isinstance(value, dict) and value.keys() == {"$is"} and isinstance(value["$is"], dict):
            kept[name] = {"$is": _part(value["$is"], rules, between, here + between, summary=summary)}
        elif isinstance(value, dict) and value and value.keys() != {"$float"} and (not summary or opens(value)):
            if inner := _part(value, rules, between, here + between, summary=summary):
                kept[name] = inner
        elif rules.key(neutral(here) if summary else here) is not None:
            kept[name] = _value(value, here, name, rules)
    return kept


def _value(value: Any, name: str, last: str, rules: Rules) -> Any:  # noqa: ANN401  any JSON
    """One value, whole: its own name, or that of anything within, may say that it is a secret."""
    if value in ("", None):
        return value
    instead = rules.instead(name)
    return rules.tree(last, value) if instead is None else instead


def _environments(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is told of where the run ran: as wandb-metadata.json, and by each writer in the config's `_wandb`."""
    internal = run.get("internal")
    writers = internal.get("e") if isinstance(internal, dict) else None
    for one in (run.get("metadata"), *(writers.values() if isinstance(writers, dict) else ())):
        if isinstance(one, dict):
            yield one


def _users(holder: dict[str, Any], names: tuple[str, ...], rules: Rules) -> None:
    for name in names:
        if isinstance(holder.get(name), str) and holder[name]:
            user = rules.user(holder.pop(name))
            holder |= {} if user is None else {name: user}


def _tag(holder: Any, way: tuple[str, ...], tag: str, rules: Rules) -> None:  # noqa: ANN401  any JSON
    """Takes out, or redacts, what lies at the end of the way and says what the tag says."""
    *above, name = way
    for part in above:
        holder = holder.get(part) if isinstance(holder, dict) else None
    if not isinstance(holder, dict) or not holder.get(name):
        return
    instead = rules.instead(tag)
    if rules.tag(tag) is None or (instead is not None and not isinstance(holder[name], str)):
        del holder[name]
    elif instead is not None:
        holder[name] = instead


def _sweep(run: dict[str, Any], rules: Rules) -> None:
    """What a sweep tries of a param says it, too."""
    sweep = run.get("sweep_config")
    if "sweep" not in run:
        run.pop("sweep_config", None)
    elif isinstance(sweep, dict) and isinstance(sweep.get("parameters"), dict):
        run["sweep_config"] = {**sweep, "parameters": _tried(sweep["parameters"], rules, "")}


def _tried(parameters: dict[str, Any], rules: Rules, before: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, tried in parameters.items():
        here = before + name
        inner = tried.get("parameters") if isinstance(tried, dict) else None
        if isinstance(inner, dict):
            kept[name] = {**tried, "parameters": _tried(inner, rules, here + SEPARATOR)}
        elif rules.key(here) is not None:
            instead = rules.instead(here)
            kept[name] = tried if instead is None else {"value": instead}
    return kept
