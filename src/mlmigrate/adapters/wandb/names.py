r"""What things are called in W&B. Pure: equal names stay equal, one that had to change ends in a hash of what it was.

a run's id           the source's own where W&B takes it, else a hash of its origin; "-2" for its second generation
a project            up to 128 characters, none of / \ # ? % :
an artifact          up to 128 of letters, digits, dash, underscore, dot
a label (W&B's tag)  1 to 64 characters
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

LONGEST_ID = 64
LONGEST = 128  # of projects, artifacts, types
LONGEST_LABEL = 64
ESTATE = "mlmigrate"  # the project of what belongs to no experiment
_PLAIN_ID = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_NOT_IN_PROJECTS = re.compile(r"[/\\#?%:\x00-\x1f\x7f\ud800-\udfff]")
_NOT_IN_ARTIFACTS = re.compile(r"[^\w.-]", re.ASCII)
_NOT_IN_ALIASES = re.compile(r"[/:\x00-\x1f\x7f\ud800-\udfff]")
_NUMBER = re.compile(r"v\d+")  # aliases that W&B gives itself
_OWN_TYPES = ("job",)  # artifacts of these types are the server's
_OWN_TYPE = "wandb-"


def run_id(origin: str, id: str, generation: int = 1) -> str:
    """The W&B id of a run; of another generation where the first one's is burnt."""
    plain = len(id) <= LONGEST_ID and _PLAIN_ID.fullmatch(id) is not None
    first = id if plain else hashed(origin or id, 16)
    return first if generation <= 1 else f"{first[: LONGEST_ID - 4]}-{generation}"


def parent_id(origin: str, id: str, parent: str) -> str:
    """The W&B id of the run that the run of this origin and id calls its parent."""
    where = origin.removesuffix(id) if id and origin.endswith(id) else ""
    return run_id(where + parent, parent)


def project(experiment: str) -> str:
    """The project of the experiment of this name."""
    clean = _NOT_IN_PROJECTS.sub("-", experiment).strip()
    return _marked(clean if clean.strip(".") else "experiment", experiment, LONGEST)  # "..": a way elsewhere in a URL


def artifact(name: str) -> str:
    """The collection of the artifact of this name."""
    clean = _NOT_IN_ARTIFACTS.sub("-", name)
    return _marked("artifact" if not clean.strip(".") else clean, name, LONGEST)


def tree(run: str) -> str:
    """The artifact that holds what lies plainly among a run's artifacts."""
    return artifact(f"mlflow-artifacts-{run}")


def records(run: str) -> str:
    """The artifact that holds what was recorded within a run, or instead of one."""
    return artifact(f"records-{run}")


def model(run: str, folder: str) -> str:
    """The artifact that holds the model in this folder of a run's artifacts."""
    name = f"{folder or 'model'}-{run}"
    return artifact(name) if name != tree(run) else artifact(f"{name}/model")


def dataset(name: str) -> str:
    """The collection of all that the dataset of this name was."""
    return artifact(f"dataset-{name}" if name else "dataset")


def artifact_type(type: str) -> str:
    """The type as W&B takes it; "" for one that is the server's own."""
    if type in _OWN_TYPES or type.startswith(_OWN_TYPE):
        return ""
    return _marked(_NOT_IN_ALIASES.sub("-", type) or "artifact", type, LONGEST)


def aliases(given: Iterable[str]) -> tuple[str, ...]:
    """The aliases that W&B takes, once each; it gives v0, v1.. itself."""
    clean = (_marked(_NOT_IN_ALIASES.sub("-", one), one, LONGEST) for one in given if not _NUMBER.fullmatch(one))
    return tuple(dict.fromkeys(one for one in clean if one.strip()))


def label(name: str, value: str) -> str | None:
    """The label of a tag; None where it does not fit."""
    text = f"{name}={value}" if value else name
    return text if 0 < len(text) <= LONGEST_LABEL and text.isprintable() and text.strip() else None


def _marked(clean: str, was: str, longest: int) -> str:
    if clean == was and len(clean) <= longest:
        return clean
    mark = "-" + hashed(was)
    return clean[: longest - len(mark)] + mark


def hashed(text: str, size: int = 4) -> str:
    """Two hex digits for each of `size` bytes, that tell this text from others."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()
