"""Where experiments live in a target: their ids there, and the folders their runs' artifacts go to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlmigrate.errors import UsageError
from mlmigrate.model import Experiment, Loss

PROXY = "mlflow-artifacts:"


@dataclass(frozen=True, slots=True)
class Home:
    """An experiment in the target: `root` is its artifact location there."""

    id: int
    name: str
    root: str = ""
    deleted: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Moving:
    """How a target's experiments become home to a source's: `new` are to be made, `ids` is the map of all."""

    ids: dict[str, Home] = field(default_factory=dict)
    new: list[tuple[Experiment, Home]] = field(default_factory=list)
    new_tags: list[tuple[int, str, str]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


def move(experiments: Sequence[Experiment], there: Sequence[Home], most: int, *, keep_uris: bool) -> Moving:
    """Equal names are one experiment; the others keep their ids where these are free and not above `most`."""
    moving = Moving()
    homes = {home.name: home for home in there}
    taken = {home.id for home in there}
    for one, name in _named(experiments, moving.losses):
        if name in homes:
            _merge(one, homes[name], moving)
        else:
            id_ = _id(one, taken, most, moving.losses)
            taken.add(id_)
            root = one.artifact_root if keep_uris and one.artifact_root else f"{PROXY}/{id_}"
            homes[name] = Home(id_, name, root, one.deleted, one.tags)
            moving.new.append((one, homes[name]))
        moving.ids[one.id] = homes[name]
    return moving


def _named(experiments: Sequence[Experiment], losses: list[Loss]) -> list[tuple[Experiment, str]]:
    """Each with its name; a deleted one cedes the name to one that is not."""
    active = {one.name for one in experiments if not one.deleted}
    gone: set[str] = set()
    named = []
    for one in experiments:
        name = one.name
        if one.deleted and (name in active or name in gone):
            name = f"{name} (deleted {one.id})"
            losses.append(
                Loss("", f"experiment {one.name!r}", f"is deleted and another has its name; now {name!r}", one.id)
            )
        elif one.deleted:
            gone.add(name)
        named.append((one, name))
    return named


def _merge(one: Experiment, home: Home, moving: Moving) -> None:
    if one.deleted != home.deleted:
        here, there = ("deleted", "not") if one.deleted else ("not deleted", "deleted")
        moving.losses.append(Loss("", f"experiment {one.name!r}", f"is {here} in the source, {there} here", one.id))
    for key, value in one.tags.items():
        if key not in home.tags:
            moving.new_tags.append((home.id, key, value))
        elif home.tags[key] != value:
            moving.losses.append(Loss("", f"experiment tag {key!r}", "has another value here, which stays", one.id))


def _id(one: Experiment, taken: set[int], most: int, losses: list[Loss]) -> int:
    given = int(one.id) if re.fullmatch(r"0|[1-9]\d{0,18}", one.id) else None
    if given is not None and given not in taken and given <= most:
        return given
    new = max([id_ for id_ in taken if id_ < most], default=0) + 1
    if given is not None:
        why = "is taken here" if given in taken else "does not fit here"
        losses.append(Loss("", f"experiment id {one.id}", f"{why}; it is {new} now", one.id))
    return new


def folder_of(root: str, store: Path) -> Path:
    """The folder that an artifact location names, `store` being what mlflow-artifacts: stands for.

    Raises UsageError for a place that is no local folder.
    """
    parts = urlsplit(root)
    if parts.scheme == "mlflow-artifacts" and not parts.netloc:
        return _below(store, unquote(parts.path).strip("/"), root)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if parts.scheme == "" and root.startswith("/"):
        return Path(root)
    raise UsageError(
        f"An experiment of the target keeps its artifacts at {root}, which is no local folder.",
        "Leave the bytes where they are (--artifacts-to keep), or give the experiment another name (-m).",
    )


def _below(store: Path, path: str, root: str) -> Path:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise UsageError(f"The artifact location {root} leads out of its store.")
    return store.joinpath(*parts)
