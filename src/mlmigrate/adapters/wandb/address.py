"""What stands behind `wandb:`: a folder of offline runs, or an entity and perhaps a project of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlmigrate.errors import UsageError

BASE_URL = "https://api.wandb.ai"
_HELP = "Write wandb:entity, wandb:entity/project, wandb:https://host/entity/project, or wandb:./folder"
_FOLDER = re.compile(r"^(\.{1,2}(/|$)|/|~|[A-Za-z]:\\)")
_URL = re.compile(r"^(https?://[^/]+)/?(.*)$")


@dataclass(frozen=True, slots=True)
class Spot:
    """Where on a server: `project` "" for all of the entity's, `entity` "" for the one that the key belongs to."""

    base_url: str
    entity: str
    project: str = ""


def is_folder(place: str) -> bool:
    """Whether this is a folder (or a lone .wandb file) on this machine: what looks like a path, or is one."""
    if _URL.match(place):
        return False
    return _FOLDER.match(place) is not None or place.endswith(".wandb") or (bool(place) and Path(place).exists())


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
