"""Every option, declared once. Each has an environment twin: --workers is MLMIGRATE_WORKERS too."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlmigrate.adapters.base import OnConflict

PREFIX = "MLMIGRATE_"
ON_CONFLICT = ("merge", "rename", "fail")
STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
# what a person may name in --only and --skip -> the part of a run that it is
PARTS = {
    "params": "params",
    "metrics": "metrics",
    "tags": "tags",
    "artifacts": "artifacts",
    "inputs": "inputs",
    "models": "models",
    "traces": "traces",
    "records": "records",
}
_SIZE = re.compile(r"(?i)\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*")

Command = Callable[..., int]
Decorator = Callable[[Command], Command]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a person chose on the command line or in the environment."""

    experiment: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None
    status: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    deleted: bool = True
    max_artifact_size: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bwlimit: int = 0
    tpslimit: float = 0.0
    part_size: int = 0
    mapping: tuple[Path, ...] = ()
    scan: tuple[Path, ...] = ()
    artifacts_to: str = ""
    artifacts_at: tuple[str, ...] = ()
    allow_artifacts: tuple[str, ...] = ()
    on_conflict: OnConflict = "merge"
    dry_run: bool = False
    workers: int = 0
    dask: str = ""
    retries: int = 3
    ledger: Path | None = None
    restart: bool = False
    strict: bool = False
    quiet: bool = False
    verbose: int = 0
    json: bool = False
    no_progress: bool = False
    report: Path | None = None


class Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Words from a list, with commas between them."""

    name = "names"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  click's signature
        if isinstance(value, tuple):
            return value
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        known = {word.lower(): word for word in self.known}
        for word in words:
            if word.lower() not in known:
                self.fail(f"{word!r} is none of {', '.join(self.known).lower()}", param, ctx)
        return tuple(known[word.lower()] for word in words)


class When(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A date or a moment, ISO 8601; local time where it names no zone. Becomes ms since the epoch."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if isinstance(value, int):
            return value
        try:
            return milliseconds(value)
        except ValueError:
            self.fail(f"{value!r} is no date; write it as 2026-01-31 or 2026-01-31T14:00", param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes, with a unit, and `least` of them."""

    name = "size"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if isinstance(value, int):
            return value
        size = number_of_bytes(value)
        if size is None:
            self.fail(f"{value!r} is no size; write it as 500M or 2G", param, ctx)
        if size < self.least:
            self.fail(f"{value!r} is less than {self.least >> 20}M", param, ctx)
        return size


class Glob(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A glob over the path of an artifact."""

    name = "glob"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if not value or value.startswith("/"):
            self.fail(f"{value!r} names no artifact: a path in a run is like model/weights.pt", param, ctx)
        return value


def milliseconds(text: str) -> int:
    """Milliseconds since the epoch of an ISO date or moment, local where it names no zone. Raises ValueError."""
    return round(datetime.fromisoformat(text.strip()).astimezone().timestamp() * 1000)


def number_of_bytes(text: str) -> int | None:
    """500, 500k, 2G, 2GiB: powers of 1,024; 2GB: powers of 1,000. None for anything else."""
    found = _SIZE.fullmatch(text)
    if found is None:
        return None
    base = 1000 if found[2] and (found[3] or "").lower() == "b" else 1024
    return int(float(found[1]) * base ** " kmgt".index(found[2].lower() or " "))


def option(*names: str, many: bool = False, **rest: Any) -> Decorator:  # noqa: ANN401  click's own keywords
    """An option with its environment twin."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    twin = PREFIX + long.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=twin, multiple=many, **rest)


def folder(*, exists: bool) -> click.Path:
    """An option's type: a folder."""
    return click.Path(path_type=Path, exists=exists, file_okay=False)


def file(*, exists: bool = False) -> click.Path:
    """An option's type: a file."""
    return click.Path(path_type=Path, exists=exists, dir_okay=False)


_only = ", ".join(PARTS)
WHICH_RUNS = (
    option("-e", "--experiment", many=True, metavar="GLOB", help="Experiments by name or id."),
    option("-r", "--run", many=True, metavar="ID|GLOB", help="Runs by id or name."),
    option("--since", type=When(), metavar="DATE", help="Runs started at DATE or later."),
    option("--until", type=When(), metavar="DATE", help="Runs started before DATE."),
    option("--status", type=Names(STATUSES), default=(), metavar="STATUS,...", help="Runs by status: finished,failed."),
    option("--deleted/--no-deleted", default=True, help="Whether deleted runs and experiments are carried (they are)."),
)
WHICH_PARTS = (
    option("--only", type=Names(tuple(PARTS)), default=(), metavar="PART,...", help=f"Carry these alone: {_only}."),
    option("--skip", type=Names(tuple(PARTS)), default=(), metavar="PART,...", help="Leave these behind."),
    option("--max-artifact-size", type=Size(), metavar="SIZE", help="Leave larger artifacts behind: 500M, 2G."),
    option("--include", many=True, type=Glob(), metavar="GLOB", help="Artifacts by path, these alone: 'model/**'."),
    option("--exclude", many=True, type=Glob(), metavar="GLOB", help="Leave these behind: '**/*.ckpt'."),
)
LIMITS = (
    option("--bwlimit", type=Size(), metavar="SIZE", help="So many bytes a second at most: 10M."),
    option("--tpslimit", type=click.FloatRange(min=0), metavar="N", help="So many requests a second at most."),
    option("--part-size", type=Size(5 << 20), metavar="SIZE", help="Parts of large uploads (5M at least)."),
)
MAPPING = (
    option(
        "-m",
        "--mapping",
        many=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Rename, drop, redact by the rules of FILE; later ones win.",
    ),
)
PLACES = (
    option("--scan", many=True, type=folder(exists=True), metavar="DIR", help="Every store under DIR is a source."),
    option(
        "--artifacts-to",
        default="",
        metavar="PLACE",
        help='Where a database\'s artifacts go: a folder, s3://bucket/prefix; "keep": they stay where they are.',
    ),
    option("--artifacts-at", many=True, metavar="DIR", help="Look for the source's artifacts here too."),
    option(
        "--allow-artifacts",
        many=True,
        metavar="PREFIX",
        help="Artifact addresses that a server may name though they lie elsewhere.",
    ),
)
CONFLICTS = (
    option(
        "--on-conflict",
        type=click.Choice(ON_CONFLICT),
        default="merge",
        show_default=True,
        help="What becomes of an experiment or a registered model whose name the target has already.",
    ),
)
WORKERS = (
    option("-j", "--workers", type=click.IntRange(min=1), default=None, metavar="N", help="So many packs at once."),
)
RETRIES = (
    option(
        "--retries",
        type=click.IntRange(min=1),
        default=3,
        show_default=True,
        metavar="N",
        help="Tries while a tracker is away.",
    ),
)
STRICT = (option("--strict", is_flag=True, help="A loss counts as a failure."),)
RUNNING = (
    option("-n", "--dry-run", is_flag=True, help="Say what would be done: plan."),
    *WORKERS,
    option("--dask", default="", metavar="ADDRESS", help="Work on the workers of a Dask scheduler."),
    *RETRIES,
    option("--ledger", type=file(), metavar="FILE", help="Where this copy's history is kept."),
    option("--restart", is_flag=True, help="Forget the ledger and begin anew."),
    *STRICT,
)
JSON = (option("--json", is_flag=True, help="One JSON object a line."),)
VERBOSE = (option("-v", "--verbose", count=True, help="Every run; twice: every loss and every call made again."),)
PRINTING = (
    option("-q", "--quiet", is_flag=True, help="Results alone."),
    *VERBOSE,
    *JSON,
    option("--no-progress", is_flag=True, help="Nothing on how far it is."),
)
REPORT = (option("--report", type=file(), metavar="FILE", help="Write the report into FILE too (.json: as JSON)."),)


def takes(*groups: tuple[Decorator, ...]) -> Callable[[Callable[..., int]], Command]:
    """A command that takes these options, as one value `chosen`."""

    def decorate(command: Callable[..., int]) -> Command:
        own = signature(command).parameters.keys()  # its arguments, and options that no other command has

        @functools.wraps(command)
        def called(**given: Any) -> int:  # noqa: ANN401  click gives what was declared
            rest = {name: value for name, value in given.items() if name in own}
            return command(chosen=chosen_of({name: given[name] for name in given.keys() - own}), **rest)

        taking: Command = called
        for group in reversed(groups):
            for one in reversed(group):
                taking = one(taking)
        return taking

    return decorate


def chosen_of(given: Mapping[str, Any]) -> Chosen:
    """What was chosen; what was not takes its default."""
    return Chosen(**{name: value for name, value in given.items() if value is not None})


def help_of(what: str, *examples: str) -> dict[str, Any]:
    """A command's help: what it does, examples first, exit statuses last."""
    from mlmigrate.cli import EXITS

    shown = "\n".join(f"  mlmigrate {example}" for example in examples)
    return {
        "help": f"{what}\n\n\b\nExamples:\n{shown}\n",
        "epilog": EXITS,
        "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
    }
