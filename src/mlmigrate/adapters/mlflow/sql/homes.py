"""Where experiments live in a target: their ids there, and the folders their runs' artifacts go to.

An experiment that we made bears the tag mlmigrate.origin; one that was there and that ours joined bears
"mlmigrate.origin <hash>" for each that joined it.  So what came before is found again, whatever its name is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlmigrate.adapters.base import OnConflict
from mlmigrate.adapters.mlflow import conflicts
from mlmigrate.errors import UsageError
from mlmigrate.model import ORIGIN_TAG, Experiment, Loss

PROXY = "mlflow-artifacts:"
DEFAULT_ID = "0"  # of the experiment that every MLflow makes; it is the same everywhere


@dataclass(frozen=True, slots=True)
class Home:
    """An experiment in the target: `root` is its artifact location there. `ours`: runs of ours came into it."""

    id: int
    name: str
    root: str = ""
    deleted: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False

    @property
    def origins(self) -> frozenset[str]:
        """Of the experiments that live here."""
        return frozenset(value for key, value in self.tags.items() if is_mark(key) and value)

    def of_run(self, id: str) -> str:
        """Where a run keeps its artifacts."""
        return f"{self.root.rstrip('/')}/{id}/artifacts"

    def of_model(self, id: str) -> str:
        """Where a logged model keeps its files."""
        return f"{self.root.rstrip('/')}/models/{id}/artifacts"

    def of_trace(self, id: str) -> str:
        """Where a trace keeps its files."""
        return f"{self.root.rstrip('/')}/traces/{id}/artifacts"


@dataclass(slots=True)
class Moving:
    """How a target's experiments become home to a source's: `new` are to be made, `ids` is the map of all."""

    ids: dict[str, Home] = field(default_factory=dict)
    new: list[tuple[Experiment, Home]] = field(default_factory=list)
    new_tags: list[tuple[int, str, str]] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


def is_mark(key: str) -> bool:
    """Whether a tag says what came from where."""
    return key == ORIGIN_TAG or key.startswith(ORIGIN_TAG + " ")


def joined(origin: str) -> str:
    """The tag of something that was there already, and that the thing of this origin joined."""
    return f"{ORIGIN_TAG} {hashlib.blake2b(origin.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"


def move(
    experiments: Sequence[Experiment],
    there: Sequence[Home],
    most: int,
    *,
    keep_uris: bool,
    policy: OnConflict = "merge",
    root: str = PROXY,
) -> Moving:
    """Finds or makes a home for each; those that are made keep their ids where these are free, not above `most`.

    Below `root` they keep their artifacts, unless these stay where they are.

    Raises Conflict when a name is somebody else's and the policy is to fail.
    """
    moving = Moving()
    homes = {home.name: home for home in there}
    taken = {home.id for home in there}
    named = _named(experiments, moving.losses)
    for one, name in _settled(named, there, policy, moving.losses):
        if name in homes:
            _merge(one, homes[name], moving)
        else:
            id_ = _id(one, taken, most, moving.losses)
            taken.add(id_)
            place = one.artifact_root if keep_uris and one.artifact_root else f"{root}/{id_}"
            tags = {**one.tags, ORIGIN_TAG: one.origin} if one.origin else one.tags
            homes[name] = Home(id_, name, place, one.deleted, tags)
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


def _settled(
    named: Sequence[tuple[Experiment, str]], there: Sequence[Home], policy: OnConflict, losses: list[Loss]
) -> list[tuple[Experiment, str]]:
    """Each with the name that it has in the target."""
    homes = {home.name: home for home in there}
    known = [(one, name, _known(one, name, there, homes)) for one, name in named]
    wanted: dict[str, str] = {}
    for one, name, found in known:
        if not found and name not in wanted.values():
            wanted[one.origin] = name
    choices = conflicts.settle(list(wanted.items()), dict.fromkeys(homes, ""), policy, "experiment")
    losses += conflicts.losses(list(wanted.items()), choices, "experiment")
    return [(one, found or (choices[one.origin].name if one.origin in choices else name)) for one, name, found in known]


def _known(one: Experiment, name: str, there: Sequence[Home], homes: Mapping[str, Home]) -> str:
    """The name of the home that is this experiment's already, "" for none."""
    if not one.origin:
        return name
    own = [home.name for home in there if one.origin in home.origins]
    mine = [found for found in own if found == name or re.fullmatch(re.escape(name) + r"-\d+", found)]
    if mine:
        return name if name in mine else mine[0]
    home = homes.get(name)
    if home is None:
        return ""
    built_in = one.id == DEFAULT_ID and home.id == int(DEFAULT_ID)
    before_marks = home.ours and not home.origins  # a copy of ours that wrote no such tags yet
    return name if built_in or before_marks else ""


def _merge(one: Experiment, home: Home, moving: Moving) -> None:
    if one.deleted != home.deleted:
        here, there = ("deleted", "not") if one.deleted else ("not deleted", "deleted")
        moving.losses.append(Loss("", f"experiment {one.name!r}", f"is {here} in the source, {there} here", one.id))
    if one.origin and one.origin not in home.origins:
        moving.new_tags.append((home.id, joined(one.origin), one.origin))
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
        f"An experiment of the target keeps its artifacts at {root}, which mlmigrate cannot write to.",
        "Leave the bytes where they are (--artifacts-to keep), or give the experiment another name (-m).",
    )


def _below(store: Path, path: str, root: str) -> Path:
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise UsageError(f"The artifact location {root} leads out of its store.")
    return store.joinpath(*parts)
