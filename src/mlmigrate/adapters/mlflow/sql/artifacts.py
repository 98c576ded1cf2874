"""Where the bytes of a run's artifacts lie, when the database may have come from another machine.

A URI that names a local folder is believed only when it ends as MLflow ends it, .../<run id>/artifacts,
or lies below a folder that was allowed: a database from elsewhere names no file of this machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mlmigrate.adapters.mlflow.local_artifacts import walk
from mlmigrate.address import hide_secrets
from mlmigrate.model import Artifact, Loss, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlmigrate.adapters.base import Settings

PROXIED = "mlflow-artifacts"
_HISTORY = "mlflow.log-model.history"
_DRIVE = re.compile(r"^/*[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds artifact folders. `beside` is the folder of the database, or the working directory."""

    beside: Path
    settings: Settings

    @property
    def wanted(self) -> bool:
        """Whether artifacts are read at all."""
        return self.settings.artifacts_to != "keep"

    def artifacts(self, run: Run, losses: list[Loss]) -> Iterator[Artifact]:
        """The files of one run; that they are on another machine is a loss."""
        if not self.wanted or not run.artifact_uri:
            return
        if _scheme(run.artifact_uri) not in ("", "file", PROXIED):
            yield from self._remote(run, losses)
            return
        folder = next((one for one in self._candidates(run) if one.is_dir()), None)
        if folder is not None:
            yield from walk(folder, run.id, losses)
        elif _HISTORY in run.tags or not self._root_is_here(run):
            losses.append(Loss(run.id, "artifacts", f"{hide_secrets(run.artifact_uri)} is not on this machine"))

    def _remote(self, run: Run, losses: list[Loss]) -> Iterator[Artifact]:
        try:
            from mlmigrate.adapters.mlflow.repositories import repository_artifacts  # noqa: PLC0415 - imports mlflow
        except ImportError:
            losses.append(Loss(run.id, "artifacts", f"mlflow is needed to reach {hide_secrets(run.artifact_uri)}"))
            return
        yield from repository_artifacts(run.artifact_uri, run.id, self.settings.allow_artifacts)

    def _candidates(self, run: Run) -> Iterator[Path]:
        """Folders that may hold the artifacts, the likeliest first."""
        parts = _parts(run.artifact_uri)
        local = _local(run.artifact_uri, self.beside)
        if local is not None and (_of_run(local, run.id) or self._allowed(local)):
            yield local
        given = [Path(one) for one in self.settings.artifacts_at]
        if ".." in parts or not _clean(run.id) or not _clean(run.experiment):
            return
        if _scheme(run.artifact_uri) == PROXIED:
            yield from (root.joinpath(*parts) for root in [*given, self.beside / "mlartifacts"])
        for root in [*given, *(self.beside / name for name in ("mlruns", "mlartifacts", "artifacts"))]:
            yield root / run.experiment / run.id / "artifacts"
            if len(parts) > 2 and parts[-2] == run.id:  # noqa: PLR2004 - <experiment>/<run id>/artifacts
                yield root.joinpath(*parts[-3:])

    def _allowed(self, folder: Path) -> bool:
        return any(folder.is_relative_to(prefix) for prefix in self.settings.allow_artifacts)

    def _root_is_here(self, run: Run) -> bool:
        """Whether the folder that the run's own would be made in exists: then it just has no artifacts."""
        if _scheme(run.artifact_uri) == PROXIED:
            roots = [*map(Path, self.settings.artifacts_at), self.beside / "mlartifacts"]
            return any(root.is_dir() for root in roots)
        local = _local(run.artifact_uri, self.beside)
        return local is not None and _of_run(local, run.id) and local.parent.parent.is_dir()


def _scheme(uri: str) -> str:
    if _DRIVE.match(uri) or uri.startswith("/"):
        return ""
    found = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*):", uri)
    return found[1].lower() if found else ""


def _parts(uri: str) -> list[str]:
    """The path's parts, whatever the system it was written on."""
    path = uri if _scheme(uri) == "" else unquote(urlsplit(uri).path or uri.partition(":")[2])
    pure = PureWindowsPath(path.lstrip("/")) if _DRIVE.match(path) or "\\" in path else PurePosixPath(path)
    return [part for part in pure.parts if part not in ("/", pure.anchor)]


def _local(uri: str, beside: Path) -> Path | None:
    if _scheme(uri) not in ("", "file") or _DRIVE.match(uri.removeprefix("file:")):
        return None
    path = uri if _scheme(uri) == "" else unquote(urlsplit(uri).path)
    return None if "\0" in path else beside / path


def _of_run(folder: Path, run: str) -> bool:
    return ".." not in folder.parts and folder.name == "artifacts" and folder.parent.name == run


def _clean(part: str) -> bool:
    return part not in ("", ".", "..") and not set(part) & set("/\\\0")
