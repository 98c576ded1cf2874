"""Registered models and prompts that meet others of their name: what each is called here, and its versions' numbers.

A model that we made bears the tag mlmigrate.origin, one that ours joined "mlmigrate.origin <hash>"; each
version of ours bears mlmigrate.origin.  Versions never take a number that another has.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlmigrate.adapters.mlflow import conflicts
from mlmigrate.adapters.mlflow.objects import DEFAULT_WORKSPACE, Row, Tree, model_origin, version_origin
from mlmigrate.adapters.mlflow.sql.homes import is_mark
from mlmigrate.model import ORIGIN_TAG, OURS, Loss

if TYPE_CHECKING:
    from mlmigrate.adapters.base import OnConflict
    from mlmigrate.adapters.mlflow.sql.connect import Session

Key = tuple[str, str]  # workspace, name
KINDS = ("registered_model", "prompt")
TABLES = (
    "registered_models",
    "registered_model_tags",
    "model_versions",
    "model_version_tags",
    "registered_model_aliases",
)


@dataclass(slots=True)
class Registry:
    """The registered models that are here: which are ours.

    owners   the model -> the origin of the one that we made, "" for somebody else's
    places   an origin -> the model that it is, or that it joined
    """

    owners: dict[Key, str] = field(default_factory=dict)
    places: dict[str, Key] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a model of the source goes: `made` when the model there is ours, else ours joins it."""

    key: Key
    made: bool


def registry(session: Session) -> Registry:
    """What is here."""
    found = Registry()
    names = f"{session.text('workspace')} AS w, {session.text('name')} AS n"
    for workspace, name in session.rows(f"SELECT {names} FROM registered_models"):
        found.owners[workspace, name] = ""
    marks = f"SELECT {names}, \"key\" AS k, COALESCE(value, '') AS v FROM registered_model_tags WHERE {_marks()}"
    for workspace, name, key, origin in session.rows(marks):
        if is_mark(key) and origin:
            found.places.setdefault(origin, (workspace, name))
            if key == ORIGIN_TAG:
                found.owners[workspace, name] = origin
                found.places[origin] = (workspace, name)
    return found


def choose(
    models: Iterable[Row], here: Registry, policy: OnConflict, what: str
) -> tuple[dict[str, Choice], list[Loss]]:
    """Origin -> where it goes, for the rows of models. Raises Conflict when a name is taken and that is to fail."""
    rows = list(models)
    wanted = [(origin_of(row), shown(key_of(row))) for row in rows if origin_of(row) not in here.places]
    spaces = {origin_of(row): key_of(row)[0] for row in rows}
    settled = conflicts.settle(wanted, {shown(key): "" for key in here.owners}, policy, what)
    choices = {
        origin: Choice(_key(spaces[origin], choice.name), choice.how in ("new", "renamed"))
        for origin, choice in settled.items()
    }
    for origin in spaces:
        if origin in here.places:
            key = here.places[origin]
            choices[origin] = Choice(key, here.owners.get(key) == origin)
    return choices, conflicts.losses(wanted, settled, what)


def origin_of(row: Row) -> str:
    """What names a model (its row) the same in every copy."""
    workspace, _ = key_of(row)
    return model_origin(row) if workspace == DEFAULT_WORKSPACE else f"{model_origin(row)} in {workspace}"


def key_of(row: Row) -> Key:
    """The workspace and the name of a model's row."""
    return str(row.get("workspace") or DEFAULT_WORKSPACE), str(row["name"])


def shown(key: Key) -> str:
    """A model as it is told; the default workspace is not said."""
    return key[1] if key[0] == DEFAULT_WORKSPACE else f"{key[0]}/{key[1]}"


def _key(workspace: str, name: str) -> Key:
    return workspace, name if workspace == DEFAULT_WORKSPACE else name.removeprefix(f"{workspace}/")


def versions(session: Session, keys: Iterable[Key]) -> dict[Key, dict[int, str]]:
    """The versions of these models that are here, by number, each with the origin that we noted, "" for none."""
    found: dict[Key, dict[int, str]] = {key: {} for key in keys}
    for workspace, name, number, origin in session.rows(
        f"SELECT {session.text('v.workspace')} AS w, {session.text('v.name')} AS n, {session.integer('v.version')} "
        f"AS i, COALESCE({session.text('t.value')}, '') AS o FROM model_versions v LEFT JOIN model_version_tags t "
        "ON t.workspace = v.workspace AND t.name = v.name AND t.version = v.version "
        f"AND t.\"key\" = '{ORIGIN_TAG}' WHERE {session.among('v.name', sorted({name for _, name in found}))}"
    ):
        if (workspace, name) in found:
            found[workspace, name][number] = origin
    return found


def numbers(ours: Sequence[Row], there: Mapping[int, str]) -> dict[int, int]:
    """Our versions' numbers here: that which they have already, their own, or the next after the highest."""
    known = {origin: number for number, origin in there.items() if origin}
    chosen: dict[int, int] = {}
    waiting = []
    for row in sorted(ours, key=lambda row: int(row["version"])):
        number = int(row["version"])
        if version_origin(row) in known:
            chosen[number] = known[version_origin(row)]
        elif number in there:
            waiting.append(number)
        else:
            chosen[number] = number
    highest = max((*there, *chosen.values()), default=0)
    for number in waiting:
        highest += 1
        chosen[number] = highest
    return chosen


def number_losses(key: Key, chosen: Mapping[int, int]) -> list[Loss]:
    """The versions that have another number here, told."""
    because = "the target has others of these numbers"
    return [
        Loss("", f"version {old} of {shown(key)!r}", f"is {new} here: {because}")
        for old, new in chosen.items()
        if old != new
    ]


def rows_here(session: Session, table: str, columns: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one of TABLES of the models called so, as plain values; ours among the tags are left out."""
    chosen = ", ".join(
        f"{session.integer(_quoted(one))} AS {_quoted(one)}"
        if one in _WHOLE
        else f"{session.text(_quoted(one))} AS {_quoted(one)}"
        for one in columns
    )
    rows = session.table(f"SELECT {chosen} FROM {table} WHERE {session.among('name', list(names))}").to_pylist()
    return [row for row in rows if not str(row.get("key", "")).startswith(OURS)]


_WHOLE = frozenset(["version", "creation_time", "last_updated_time"])


def versions_of(tree: Tree) -> list[Row]:
    """The rows of a model's versions."""
    return tree.get("model_versions", [])


def _marks() -> str:
    return f"substr(\"key\", 1, {len(ORIGIN_TAG)}) = '{ORIGIN_TAG}'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
