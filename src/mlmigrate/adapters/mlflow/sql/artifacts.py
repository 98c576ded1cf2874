"""Where the bytes of runs, logged models and traces lie, when the database may have come from another machine.

A URI that names a local folder is believed only when it ends as MLflow ends it, .../<run id>/artifacts,
.../models/<model id>/artifacts or .../traces/<trace id>/artifacts, or lies below a folder that was
allowed: a database from elsewhere names no file of this machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mlmigrate.adapters.mlflow.direct import Far, Stores, reachable
from mlmigrate.adapters.mlflow.local_artifacts import walk
from mlmigrate.adapters.mlflow.repositories import permit, repository_artifacts
from mlmigrate.address import hide_secrets
from mlmigrate.model import Artifact, Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlmigrate.adapters.base import Settings
    from mlmigrate.model import Run

PROXIED = "mlflow-artifacts"
_HISTORY = "mlflow.log-model.history"
_DRIVE = re.compile(r"^/*[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True)
class Kept:
    """Something whose files lie in a folder of its own.

    tail      how MLflow ends that folder: it is believed of a folder of this machine, and of no other
    expected  whether it has files for certain
    rare      without `expected`, it has hardly ever any: only folders of this machine are looked into
    told      what a person calls its files
    """

    owner: str
    experiment: str
    uri: str
    tail: tuple[str, ...]
    expected: bool
    told: str = "artifacts"
    rare: bool = False

    @classmethod
    def of_run(cls, run: Run) -> Kept:
        """What a run logged."""
        return cls(run.id, run.experiment, run.artifact_uri, (run.id, "artifacts"), _HISTORY in run.tags)

    @classmethod
    def of_model(cls, id_: str, experiment: str, uri: str, *, ready: bool) -> Kept:
        """The files of a logged model."""
        told = f"files of logged model {id_!r}"
        return cls(f"@model/{id_}", experiment, uri, ("models", id_, "artifacts"), ready, told)

    @classmethod
    def of_trace(cls, id_: str, experiment: str, uri: str, *, spans: bool) -> Kept:
        """The files of a trace; `spans`: its spans lie there, and not in the database."""
        told = f"{'spans' if spans else 'files'} of trace {id_!r}"
        return cls(f"@trace/{id_}", experiment, uri, ("traces", id_, "artifacts"), spans, told, rare=True)

    def is_folder(self, folder: Path) -> bool:
        """Whether MLflow would have made this folder for it."""
        return ".." not in folder.parts and folder.parts[-len(self.tail) :] == self.tail

    def lost(self, because: str) -> Loss:
        """That its files cannot be had."""
        run = "" if self.owner.startswith("@") else self.owner
        return Loss(run, self.told, because, "" if run else self.experiment)


@dataclass(frozen=True, slots=True)
class Finder:
    """Finds artifact folders. `beside` is the folder of the database, or the working directory."""

    beside: Path
    settings: Settings
    stores: Stores = field(default_factory=partial(Stores, {}), compare=False, repr=False)
    _holders: dict[tuple[str, str], list[Path]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def wanted(self) -> bool:
        """Whether artifacts are read at all."""
        return self.settings.artifacts_to != "keep"

    def artifacts(self, several: Iterable[Kept], losses: list[Loss]) -> Iterator[Artifact]:
        """The files of runs, models, traces, one after another; that they are on another machine is a loss.

        Places in object stores are listed, and small files there fetched, some way ahead.
        """
        return self.stores.in_turn(self._where(kept, losses) for kept in several if self.wanted and kept.uri)

    def _where(self, kept: Kept, losses: list[Loss]) -> Iterator[Artifact] | Far:
        if not reachable(kept.uri) or (kept.rare and not kept.expected):
            return self._of(kept, losses)
        permit(kept.uri, self.settings.allow_artifacts)

        def empty() -> None:
            if kept.expected:
                losses.append(kept.lost(f"nothing lies at {hide_secrets(kept.uri)}"))

        return Far(kept.uri, kept.owner, empty)

    def _of(self, kept: Kept, losses: list[Loss]) -> Iterator[Artifact]:
        if _scheme(kept.uri) not in ("", "file", PROXIED):
            yield from () if kept.rare and not kept.expected else self._remote(kept)
            return
        folder = self.folder(kept)
        if folder is not None:
            yield from walk(folder, kept.owner, losses)
        elif kept.expected or not (kept.rare or self._root_is_here(kept)):
            losses.append(kept.lost(f"{hide_secrets(kept.uri)} is not on this machine"))

    def folder(self, kept: Kept) -> Path | None:
        """The folder of this machine that holds the files; None where there is none, or they are elsewhere."""
        if not kept.uri or _scheme(kept.uri) not in ("", "file", PROXIED):
            return None
        return self._rare(kept) if kept.rare else next((one for one in self._candidates(kept) if one.is_dir()), None)

    def home(self, kept: Kept) -> Path | None:
        """As `folder`; of what has no files yet the folder that MLflow would make for them in a place that is here."""
        found = self.folder(kept)
        if found is not None or not kept.uri or _scheme(kept.uri) not in ("", "file", PROXIED):
            return found
        length = len(kept.tail)
        made = [one for one in self._candidates(kept) if len(one.parents) > length]
        here = (one for above in (length - 1, length) for one in made if one.parents[above].is_dir())
        return next(here, None)

    def of_experiment(self, uri: str, experiment: str) -> Path | None:
        """The folder of an experiment in the places that are looked into beside its own."""
        if _scheme(uri) not in ("", "file", PROXIED) or not _clean(experiment):
            return None
        return next((root / experiment for root in self._roots if (root / experiment).is_dir()), None)

    def named(self, uri: str) -> Path | None:
        """The path that a URI itself names on this machine, believed or not; None for one of another kind."""
        local = _local(uri, self.beside)
        return local if local is not None and ".." not in local.parts else None

    def allowed(self, folder: Path) -> bool:
        """Whether a person allowed a store to name this folder."""
        return self._allowed(folder)

    def _rare(self, kept: Kept) -> Path | None:
        """As for others, but the folders that hold those of all traces of an experiment are looked for once."""
        first, *rest = kept.tail
        base = kept.uri.removesuffix("/".join(rest))
        if base == kept.uri or not all(map(_clean, kept.tail)):
            return next((one for one in self._candidates(kept) if one.is_dir()), None)
        at = (base, kept.experiment)
        if at not in self._holders:
            holder = replace(kept, uri=base.rstrip("/"), tail=(first,))
            self._holders[at] = [one for one in self._candidates(holder) if one.is_dir()]
        folders = (holder.joinpath(*rest) for holder in self._holders[at])
        return next((one for one in folders if one.is_dir()), None)

    def _remote(self, kept: Kept) -> Iterator[Artifact]:
        return repository_artifacts(kept.uri, kept.owner, self.settings.allow_artifacts, self.stores)

    def _candidates(self, kept: Kept) -> Iterator[Path]:
        """Folders that may hold the files, the likeliest first."""
        parts = _parts(kept.uri)
        local = _local(kept.uri, self.beside)
        if local is not None and (kept.is_folder(local) or self._allowed(local)):
            yield local
        given = [Path(one) for one in self.settings.artifacts_at]
        if ".." in parts or not all(map(_clean, (*kept.tail, kept.experiment))):
            return
        if _scheme(kept.uri) == PROXIED:
            yield from (root.joinpath(*parts) for root in [*given, self.beside / "mlartifacts"])
        length = len(kept.tail)
        for root in self._roots:
            yield root.joinpath(kept.experiment, *kept.tail)
            if len(parts) > length and tuple(parts[-length:]) == kept.tail:  # <experiment>/<run id>/artifacts
                yield root.joinpath(*parts[-length - 1 :])

    @property
    def _roots(self) -> list[Path]:
        """Folders that may hold those of experiments."""
        given = map(Path, self.settings.artifacts_at)
        return [*given, *(self.beside / name for name in ("mlruns", "mlartifacts", "artifacts"))]

    def _allowed(self, folder: Path) -> bool:
        return any(folder.is_relative_to(prefix) for prefix in self.settings.allow_artifacts)

    def _root_is_here(self, kept: Kept) -> bool:
        """Whether the folder that its own would be made in exists: then it just has no files."""
        if _scheme(kept.uri) == PROXIED:
            roots = [*map(Path, self.settings.artifacts_at), self.beside / "mlartifacts"]
            return any(root.is_dir() for root in roots)
        local = _local(kept.uri, self.beside)
        return local is not None and kept.is_folder(local) and local.parents[len(kept.tail) - 1].is_dir()


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


def _clean(part: str) -> bool:
    return part not in ("", ".", "..") and not set(part) & set("/\\\0")
