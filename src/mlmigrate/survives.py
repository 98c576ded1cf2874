"""What survives a move: every kind of thing x (where it comes from, where it goes), from the adapters' declarations.

A source says in its `Reads` what it cannot tell, a target in its `Limits` what it cannot hold.  What survives
is the weaker of both.  Everything here only reads declarations:

    python -m mlmigrate.survives     prints docs/what-survives.md
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlmigrate.adapters.base import LEFT_OUT, Change, Context, Holding, How, Limits, Reads
from mlmigrate.adapters.mlflow import objects
from mlmigrate.adapters.mlflow.files.reads import READS as FILES
from mlmigrate.adapters.mlflow.rest.reads import READS as SERVER
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.sql import open_target
from mlmigrate.adapters.mlflow.sql.reads import READS as DATABASE
from mlmigrate.adapters.wandb.limits import LIMITS as WANDB
from mlmigrate.adapters.wandb.survives import section
from mlmigrate.address import Address
from mlmigrate.archive.writer import ArchiveTarget

WEAKER: tuple[How, ...] = ("whole", "mapped", "record", "lost")
WORDS: Mapping[How, str] = {"whole": "whole", "mapped": "mapped", "record": "record only", "lost": "lost"}
CURRENT = "server 3.17"
SERVERS = {CURRENT: (3, 17), "3.5": (3, 5), "2.22": (2, 22), "2.9": (2, 9)}
# Each older server says of many kinds that it does not know them: one reason for all.
_NOT_YET = re.compile(r"MLflow [\d.]+ knows no [\w ]+")
KEPT_ASIDE = WANDB.holdings[-1].because  # what W&B says of most kinds
NOT_YET = "that version of MLflow knows no such thing"
SECRETS = "mlflow.gateway_secret"  # never carried, so no archive has them
ACCOUNTS = "mlflow.auth."  # as sql.accounts calls them
Part = Callable[[Limits], Holding]


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of target: its limits, and what no limit says (`beside`: of parts of experiments and runs)."""

    name: str
    limits: Limits
    beside: Mapping[str, Holding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Thing:
    """A row of the table. `part` tells how limits hold a part of experiments and runs; None for kinds of record."""

    kind: str
    label: str
    part: Part | None = None

    def held(self, place: Place) -> Holding:
        """How a target holds it."""
        if self.kind in place.beside:
            return place.beside[self.kind]
        if self.part is not None:
            return self.part(place.limits)
        declared = place.limits.holding(self.kind)
        if declared is not None:
            return replace(declared, changes=(*declared.changes, *declared.refuses))
        if place.limits.holds(self.kind):
            return Holding(self.kind)
        return Holding(self.kind, "lost", "the target has no place for it")


@dataclass(frozen=True, slots=True)
class Cell:
    """What becomes of a thing. `notes` are numbers of reasons; `but`: some of it does not arrive."""

    how: How
    notes: tuple[int, ...] = ()
    but: bool = False

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.notes))
        return WORDS[self.how] + (", but" if self.but else "") + (f" ({numbers})" if numbers else "")


def sources() -> dict[str, Reads]:
    """The kinds of place that can be read."""
    return {
        "file store": FILES,
        "database": DATABASE,
        "server": SERVER,
        "archive": Reads(_untold(DATABASE), frozenset([SECRETS])),  # no source had more to tell
    }


def _untold(reads: Reads) -> tuple[Holding, ...]:
    """What is missing in records that came from such a place."""
    return tuple(one for one in reads.holdings if one.changes)


def targets() -> list[Place]:
    """The kinds of place that can be written, servers of several versions."""
    servers = [Place(name, Server(version).limits, _SERVER) for name, version in SERVERS.items()]
    database = Place("database", _database(), _DATABASE)
    return [Place("archive", ArchiveTarget.limits), database, *servers, Place("W&B", WANDB, _WANDB)]


def _database() -> Limits:
    """The limits of a database that is made new."""
    with tempfile.TemporaryDirectory() as folder:
        address = Address("mlflow", f"sqlite:///{Path(folder) / 'none.db'}")
        return open_target(address, Context("target")).limits


def _but(kind: str, *reasons: str) -> Holding:
    """Whole, but for what the reasons say; empty ones are none."""
    return Holding(kind, changes=tuple(Change("", reason) for reason in reasons if reason))


# What a target does with parts that no field of Limits speaks of.
_DATABASE = {
    "experiment.id": Holding(
        "experiment.id",
        "mapped",
        "ids are kept where they are free and fit (PostgreSQL: up to 2,147,483,647), artifacts go below the "
        "target's own root (`--artifacts-to keep` leaves them where they are), and what names either is rewritten",
    ),
}
_SERVER = {
    "experiment.id": Holding(
        "experiment.id", "mapped", "the server gives ids and roots of its own; what names either is rewritten"
    ),
    "run.artifacts": Holding("run.artifacts", because="a server takes no file with `#` in its name"),
}
_WANDB = {
    "experiment.name": _but(
        "experiment.name", "`/ \\ # ? % :` are refused in names of projects: such a name is changed and ends in a hash"
    ),
    "experiment.id": Holding("experiment.id", "record", "experiments are projects, or groups of runs in one"),
    "run.id": Holding(
        "run.id", "mapped", "ids are kept; one that was deleted there can never be used again, its run gets `<id>-2`"
    ),
    ACCOUNTS: Holding(ACCOUNTS, "record", KEPT_ASIDE),
    objects.ROWS: Holding(objects.ROWS, "record", KEPT_ASIDE),
    "run.state": _but("run.state", "the state killed cannot be set: such a run has failed, with the tag `killed`"),
}


def _id(limits: Limits) -> Holding:
    return Holding("run.id") if limits.ids else Holding("run.id", "mapped", "the target gives ids of its own")


def _times(limits: Limits) -> Holding:
    kind = "experiment.times"
    return Holding(kind) if limits.experiment_times else Holding(kind, "lost", "the target sets its own")


def _plain(kind: str) -> Part:
    return lambda _: Holding(kind)


def _name(limits: Limits) -> Holding:
    blank = "" if limits.blank_names else "a run without a name is given its id"
    return _but("run.name", _overflow(limits.name_length), blank)


def _state(limits: Limits) -> Holding:
    blank = "" if limits.blank_starts else "a run without a start has 1970"
    return _but("run.state", _overflow(limits.user_length), blank)


def _deletion(limits: Limits) -> Holding:
    moved = "deleted runs are deleted there too, but the time is that of the move"
    return _but("run.deletion", "" if limits.deleted_times else moved)


def _system(limits: Limits) -> Holding:
    kind = "run.system"
    return Holding(kind) if limits.system else Holding(kind, "lost", "the target writes its own")


def _experiment_name(limits: Limits) -> Holding:
    return _but("experiment.name", _cut(limits.experiment_name_length, "names"))


def _experiment_tags(limits: Limits) -> Holding:
    return _but("experiment.tags", _keys(limits), _cut(limits.experiment_tag_length, "values"))


def _params(limits: Limits) -> Holding:
    return _but("run.params", _keys(limits), _overflow(limits.param_length))


def _tags(limits: Limits) -> Holding:
    return _but("run.tags", _keys(limits), _overflow(limits.tag_length))


def _points(limits: Limits) -> Holding:
    return _but(
        "run.points",
        "" if limits.infinities else "infinities become the largest number there is (1.8e308); NaN stays",
        "points that are equal in all are one" if limits.distinct_points else "",
        "" if limits.negative_times else "times before 1970 become 1970",
        _keys(limits),
    )


def _inputs(limits: Limits) -> Holding:
    kind = "run.inputs"
    return Holding(kind) if limits.inputs else Holding(kind, "lost", "such servers know no dataset inputs")


def _owned(limits: Limits) -> Holding:
    kind = "owned.artifacts"
    if not limits.owned_artifacts:
        return Holding(kind, "lost", "the target has no place for them")
    if not limits.holds("mlflow.logged_model"):
        return Holding(kind, changes=(Change("", "those of logged models are lost with their models"),))
    return Holding(kind)


def _keys(limits: Limits) -> str:
    signs = (limits.key_chars or "").replace("\\w", "").replace("\\", "").replace(" ", "")
    spoken = f"with other characters than letters, digits, spaces and `_{signs}`"
    renamed = [
        f"longer than {limits.key_length} characters" if limits.key_length else "",
        spoken if limits.key_chars else "",
        "that are no clean path" if limits.key_paths else "",
    ]
    told = " or ".join(filter(None, renamed))
    return f"names {told} are changed to ones that end in a hash" if told else ""


def _cut(length: int | None, what: str) -> str:
    return f"{what} are cut to {length:,} characters" if length else ""


def _overflow(length: int | None) -> str:
    return f"values are cut to {length:,} characters, and the whole text is kept as an artifact" if length else ""


PARTS = {
    "Experiments": (
        Thing("experiment.name", "name", _experiment_name),
        Thing("experiment.tags", "tags", _experiment_tags),
        Thing("experiment.times", "times of creation and update", _times),
        Thing("experiment.id", "id and artifact root", _plain("experiment.id")),
    ),
    "Runs": (
        Thing("run.id", "id", _id),
        Thing("run.name", "name", _name),
        Thing("run.state", "status, start, end, user", _state),
        Thing("run.deletion", "deletion", _deletion),
        Thing("run.system", "source type, name, version, entry point", _system),
        Thing("run.params", "params", _params),
        Thing("run.tags", "tags, links between runs", _tags),
        Thing("run.points", "points (every metric, every step)", _points),
        Thing("run.inputs", "dataset inputs", _inputs),
        Thing("run.artifacts", "artifacts", _plain("run.artifacts")),
    ),
}
_LABELS = {
    "registered_model": "registered models, versions, aliases",
    "prompt": "prompts, their versions and aliases",
    "logged_model": "logged models, their links to runs",
    "trace": "traces, spans, assessments",
    "dataset": "datasets that no run read",
    "evaluation_dataset": "evaluation datasets, their records",
    "scorer": "scorers, their versions",
    "budget_policy": "budget policies",
    "mcp_server": "MCP servers",
    "gateway_model": "models of the gateway",
    "gateway_endpoint": "endpoints of the gateway",
}
_GROUPS = {
    "Models": ("registered_model", "prompt", "logged_model"),
    "Traces and evaluation": (
        *("trace", "evaluation_dataset", "dataset", "scorer", "label_schema", "review_queue", "issue"),
    ),
}


def things() -> dict[str, tuple[Thing, ...]]:
    """All rows, by the heading above them; every kind of the catalogue is one of them."""
    grouped = {
        heading: tuple(_thing(objects.BY_NAME[objects.PREFIX + name]) for name in names)
        for heading, names in _GROUPS.items()
    }
    told = {name for names in _GROUPS.values() for name in names}
    others = tuple(_thing(kind) for kind in objects.KINDS if kind.name not in told)
    last = (
        Thing(SECRETS, "secrets of the gateway"),
        Thing(ACCOUNTS, "accounts, roles, permissions"),
        Thing(objects.ROWS, "tables that are none of MLflow's"),
    )
    owned = Thing("owned.artifacts", "files of logged models and of traces", _owned)
    grouped["Models"] += (owned,)
    return {**PARTS, **grouped, "The rest of a server": others + last}


def _thing(kind: objects.Kind) -> Thing:
    return Thing(kind.record, _LABELS.get(kind.name, kind.name.replace("_", " ") + "s"))


class Notes:
    """Reasons, numbered in the order in which the table needs them; equal ones are one."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of this reason."""
        return self.numbers.setdefault(text, len(self.numbers) + 1)


def cell(thing: Thing, source: Holding, place: Place, current: Holding, notes: Notes) -> Cell:
    """The weaker of what the source tells and what the target holds; `current` is what the newest server holds."""
    held, current = _without(thing.held(place), source), _without(current, source)
    if source.how == "lost" or held.how == "lost":
        lost = source if source.how == "lost" else held
        return Cell("lost", tuple(notes.number(text) for text in _reasons(lost)))
    texts = dict.fromkeys([*_reasons(source), *_differing(held, current)])
    how = max(source.how, held.how, key=WEAKER.index)
    some_lost = any(one.how == "whole" and one.because for one in (source, held)) or _loses(source) or _loses(held)
    return Cell(how, tuple(notes.number(text) for text in texts), some_lost and how != "record")


def _without(held: Holding, source: Holding) -> Holding:
    """What a target does not hold of that which the source tells."""
    untold = {change.part for change in source.changes if change.part}
    return replace(held, changes=tuple(change for change in held.changes if change.part not in untold))


def _loses(holding: Holding) -> bool:
    return any(change.lost for change in holding.changes)


def _differing(held: Holding, current: Holding) -> list[str]:
    """The reasons of a holding; of an older server's, those of the newest and then what comes on top."""
    more = tuple(change for change in held.changes if change not in current.changes)
    same = (held.how, held.because) == (current.how, current.because) and set(current.changes) <= set(held.changes)
    if not same or not more:
        return _reasons(held)
    return _reasons(current) + _reasons(Holding(held.kind, held.how, "", more))


def _reasons(holding: Holding) -> list[str]:
    """Why a thing is not simply whole; nothing when it is. What a place makes again itself is no reason.

    All parts of a record are one reason; a change that names no part is a reason of its own.
    """
    if holding.how == "lost":
        return [NOT_YET if _NOT_YET.fullmatch(holding.because) else holding.because]
    by_reason: dict[str, list[Change]] = {}
    for change in holding.changes:
        if change.lost:
            by_reason.setdefault(change.because, []).append(change)
    plain = [because for because, changes in by_reason.items() if not changes[0].part]
    parted = [f"{_parts(changes)}: {because}" for because, changes in by_reason.items() if changes[0].part]
    joined = "; ".join(filter(None, [holding.because, *parted]))
    return [joined, *plain] if joined else plain


def _parts(changes: Sequence[Change]) -> str:
    """What changes: tables, and columns of tables."""
    columns: dict[str, list[str]] = {}
    for change in changes:
        table, _, column = change.part.partition(".")
        columns.setdefault(table, []).append(_column(column, change))
    told = [f"{', '.join(names)} of {table}" if all(names) else f"`{table}`" for table, names in columns.items()]
    return ", ".join(told)


def _column(column: str, change: Change) -> str:
    if not column or change.becomes in (LEFT_OUT, None):
        return f"`{column}`" if column else ""
    values = ", ".join(map(str, change.only))
    becomes = f"{values} become" if values else "becomes"
    return f"`{column}` ({becomes} {change.becomes if change.becomes != '' else 'empty'})"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: a thing, the sources that it is the same for, a cell a target."""

    label: str
    sources: tuple[str, ...]
    cells: tuple[Cell, ...]


def lines(thing: Thing, places: Sequence[Place], notes: Notes) -> Iterator[Line]:
    """The lines of a thing; sources that come to the same are one line."""
    current = thing.held(next(place for place in places if place.name == CURRENT))
    found: dict[tuple[Cell, ...], list[str]] = {}
    for name, reads in sources().items():
        told = reads.of(thing.kind)
        if told is not None:
            cells = tuple(cell(thing, told, place, current, notes) for place in places)
            found.setdefault(cells, []).append(name)
    for cells, names in found.items():
        yield Line(thing.label, tuple(names), cells)


def table(notes: Notes) -> list[str]:
    """The table in Markdown; `notes` has the reasons afterwards."""
    places = targets()
    heads = ["", "from", *(place.name if place.name[0].isalpha() else f"server {place.name}" for place in places)]
    text = [_row(heads), _row(["---"] * len(heads))]
    for heading, rows in things().items():
        text.append(_row([f"**{heading}**"] + [""] * (len(heads) - 1)))
        for thing in rows:
            for number, line in enumerate(lines(thing, places, notes)):
                whence = "any" if len(line.sources) == len(sources()) else ", ".join(line.sources)
                text.append(_row(["" if number else line.label, whence, *map(str, line.cells)]))
    return text


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


OPENING = """\
# What survives a move

Where something comes from, where it goes, and what becomes of it on the way. The table is made from what the
adapters declare, the same that `mlmigrate plan` and the report of a move count losses by.

- **whole**: everything arrives as it was; "but" names the parts that do not, or not always.
- **mapped**: the same, and ids or places in it become those that its things have in the target.
- **record only**: it is kept, but nothing there uses it.
- **lost**: it does not arrive. An archive holds it nonetheless, unless its column says otherwise.

A source that a line does not name has no such thing. "server" is MLflow over HTTP, "database" its backend store
(SQLite or PostgreSQL; MySQL and MariaDB are read alone), "file store" a folder like `mlruns`. File stores are read
alone. Older servers lack what MLflow did not have then: keep the archive, and import it again when the server is newer.
Everywhere but in an archive, a text that is longer than MLflow's own column for it is cut, and the report tells which.
"""


def page() -> str:
    """docs/what-survives.md."""
    notes = Notes()
    rows = table(notes)
    told = [f"{number}. {text[0].upper()}{text[1:]}." for text, number in notes.numbers.items()]
    return "\n".join([OPENING, *rows, "", "## Why", "", *told, "", section()])


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201  this is what it is for
