"""What stands behind `wandb:`: a folder of offline runs, or an entity and perhaps a project of a server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlmigrate.errors import UsageError

BASE_URL = "https://api.wandb.ai"
_HELP = "Write wandb:entity, wandb:entity/project, wandb:https://host/entity/project, or wandb:./folder"
_FOLDER = re.compile(r"^(\.{1,2}(/|$)|/|~|[A-Za-z]:\\)")
RUN = re.compile(r"^(?:offline-|dry)?run-(\d{8}_\d{6})-(.+)$")  # what the SDK calls the folder of a run: time, id
_DEPTH, _LOOKS = 4, 1000  # how far the look for runs goes: levels, and folders
_URL = re.compile(r"^(https?://[^/]+)/?(.*)$")
_HOST = re.compile(r"https?://[^/@]+")  # one with a path in it is told by WANDB_BASE_URL alone


@dataclass(frozen=True, slots=True)
class Spot:
    """Where on a server: `project` "" for all of the entity's, `entity` "" for the one that the key belongs to."""

    base_url: str
    entity: str
    project: str = ""


def is_folder(place: str) -> bool:
    """Whether this is a folder (or a lone .wandb file) on this machine: what looks like a path, or holds runs.

    A folder that is only called like an entity is not meant.
    """
    if _URL.match(place):
        return False
    return _FOLDER.match(place) is not None or place.endswith(".wandb") or (bool(place) and _holds_runs(Path(place)))


def _holds_runs(folder: Path) -> bool:
    """Whether there are runs in a folder, as far as a short look tells."""
    waiting, looks = [(folder, 0)], 0
    while waiting and looks < _LOOKS:
        here, depth = waiting.pop(0)
        try:
            with os.scandir(here) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError:  # no folder, or one that may not be read: then it is the entity that is meant
            continue
        looks += 1
        if any(RUN.match(entry.name) or entry.name.endswith(".wandb") for entry in entries):
            return True
        if depth < _DEPTH:
            waiting += [(Path(one.path), depth + 1) for one in entries if one.is_dir(follow_symlinks=False)]
    return False


def on_server(place: str, env: Mapping[str, str]) -> str:
    """The place with the address of its server, where that is not W&B's own and can be part of it."""
    base = env.get("WANDB_BASE_URL", "").rstrip("/")
    named = _URL.match(place) is not None
    return place if named or base == BASE_URL or not _HOST.fullmatch(base) else f"{base}/{place}"


def spot(place: str, env: Mapping[str, str]) -> Spot:
    """The place on a server; its address from the place itself, WANDB_BASE_URL, or W&B's own.

    Raises UsageError for what is no entity/project.
    """
    found = _URL.match(place)
    base, rest = (found[1], found[2]) if found else (env.get("WANDB_BASE_URL") or BASE_URL, place)
    parts = [part for part in rest.strip("/").split("/") if part] or [env.get("WANDB_ENTITY", "")]
    if len(parts) > 2:  # noqa: PLR2004  entity and project
        raise UsageError(f"wandb:{place} names more than an entity and a project.", _HELP)
    return Spot(base.rstrip("/"), parts[0], parts[1] if len(parts) > 1 else "")
