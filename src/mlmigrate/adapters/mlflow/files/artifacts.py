"""Where the artifact bytes of a run, a model or a trace lie, whatever its URI says.

    <run>/artifacts                             beside the run: always first, for stores are moved
    the URI itself                              when it names a local folder inside an allowed place, or an object store
    <each folder of artifacts_at>/<the same>    where a person says that they are
    <store's folder>/../mlartifacts/<the same>  where `mlflow server` puts them

A URI stands in a file that others wrote: it opens nothing outside the store that was not allowed.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH100, PTH110, PTH112, PTH117, PTH118, PTH120

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from urllib.parse import unquote, urlsplit

from mlmigrate.adapters.base import Settings
from mlmigrate.adapters.mlflow.direct import Stores, reachable
from mlmigrate.adapters.mlflow.files import disk
from mlmigrate.adapters.mlflow.repositories import allowed, direct
from mlmigrate.address import hide_secrets
from mlmigrate.model import Artifact, Loss, Spot

FOLDER = "artifacts"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: "C:" is a disk


def local_path(uri: str) -> str | None:
    """The path that a URI names on this machine ("" for an empty one); None when it is of another kind."""
    found = _SCHEME.match(uri)
    if found is None:
        return uri
    if found[1].lower() != "file":
        return None
    rest = uri[len("file:") :]
    if rest.startswith("//"):
        rest = "/" + rest[2:].partition("/")[2]
    return unquote(rest) if "%" in rest and not os.path.exists(rest) else rest


class Whereabouts:
    """Finds artifact folders for one store."""

    def __init__(self, root: str, settings: Settings, stores: Stores | None = None) -> None:
        self.stores = stores or Stores({})
        beside = os.path.join(os.path.dirname(root), "mlartifacts")
        self.settings = settings
        self._places = tuple(place for place in (*settings.artifacts_at, beside) if os.path.isdir(place))
        self._allowed_in = tuple(os.path.realpath(place) for place in (root, *self._places))

    def folder(self, beside: str, parts: Sequence[str], uri: str) -> str:
        """The folder that holds the files of what is at `beside`; "" when there is none.

        `parts` is where it lies in a store: (experiment, run) or (experiment, "models", model).
        """
        place = os.path.join(beside, FOLDER)
        return place if disk.holds_file(place) else self.elsewhere(parts, uri)

    def elsewhere(self, parts: Sequence[str], uri: str) -> str:
        """As `folder`, when nothing lies beside."""
        return next((place for place in self._candidates(parts, uri) if disk.holds_file(place)), "")

    def _candidates(self, parts: Sequence[str], uri: str) -> Iterator[str]:
        path = local_path(uri)
        if path and os.path.isdir(path) and self._allowed(uri, path):
            yield path
        for place in self._places:
            yield os.path.join(place, *parts, FOLDER)
            proxied = _proxied(uri)
            if proxied:
                yield os.path.join(place, *proxied)

    def _allowed(self, uri: str, path: str) -> bool:
        if any(uri.startswith(prefix) for prefix in self.settings.allow_artifacts if prefix):
            return True
        real = os.path.realpath(path)
        return any(inside(real, place) for place in self._allowed_in)

    def far(self, uri: str) -> bool:
        """Whether a URI names a place in an object store that may be read."""
        return reachable(uri) and (direct(uri) or allowed(uri, self.settings.allow_artifacts))

    def named(self, uri: str) -> str:
        """The folder that a URI itself names, when it is one of this machine in an allowed place; "" otherwise."""
        path = local_path(uri)
        return path if path and os.path.isdir(path) and self._allowed(uri, path) else ""

    def absence(self, uri: str, logged_model: bool) -> str:
        """Why nothing was found here, when something may have been; "" when nothing tells of any, or it lies far."""
        if self.far(uri):
            return ""
        path = local_path(uri)
        shown = disk.shown(hide_secrets(uri)) or "no URI"
        if path is None:
            return f"{shown} is not here, nor are its files beside the store"
        if os.path.isabs(path) and os.path.isdir(path) and disk.holds_file(path):
            return f"{shown} lies outside the store: allow that folder to carry them"
        return f"a model was logged, and its files are not here ({shown})" if logged_model else ""

    def missing(self, beside: str, uri: str) -> str:
        """Why the files of a model or a trace were not found here; "" when it never had any, or they lie far."""
        if self.far(uri):
            return ""
        path = local_path(uri)
        if path and os.path.realpath(path) == os.path.realpath(os.path.join(beside, FOLDER)):
            return ""  # the store lies where it was written, and nothing was
        return f"its files are not here ({disk.shown(hide_secrets(uri)) or 'no URI'})"


def _proxied(uri: str) -> list[str]:
    """The parts of a path behind mlflow-artifacts:, when it is a clean one."""
    if not uri.startswith("mlflow-artifacts:"):
        return []
    parts = [part for part in unquote(urlsplit(uri).path).split("/") if part]
    clean = all(part not in (".", "..") and "\0" not in part and os.sep not in part for part in parts)
    return parts if clean else []


def inside(path: str, folder: str) -> bool:
    """Whether a real path is a real folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def artifacts(folder: str, owner: str, experiment: str, losses: list[Loss]) -> Iterator[Artifact]:
    """Every regular file of a folder; what is none is a loss."""
    tree = disk.walk(folder, stats=True, skip_noise=False)
    losses += [Loss(owner, f"artifact {disk.shown(path)}", because, experiment) for path, because in tree.odd]
    for file in tree.files:
        spot = Spot("file", os.path.abspath(file.place), f"{file.changed}-{file.size}")
        yield Artifact(owner, file.path, partial(disk.open_file, file.place), file.size, spot=spot)
