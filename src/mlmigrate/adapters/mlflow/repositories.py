"""Artifact stores that a URI names: object stores, folders, and whatever else MLflow's repositories reach.

A URI that was read from a server or from somebody's database is hostile until a person allows it:

    s3:, gs:, az:, dbfs:      read with the credentials that are found here
    folders and all else      only below a prefix that --allow-artifacts names (so wasbs: and abfss:, which name hosts)

Object stores are read and written without MLflow (direct.py).  For what is left (dbfs:, hdfs:, ftp: ...) MLflow
is imported when a URI needs it; its repositories see the environment of the process, whichever side it is.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from mlmigrate.adapters.mlflow.direct import Stores, reachable
from mlmigrate.adapters.mlflow.sending import FILE
from mlmigrate.address import hide_secrets
from mlmigrate.errors import BadData, MigrateError, NotFound, Refused, Unavailable, UsageError
from mlmigrate.model import Artifact, Spot
from mlmigrate.storage.slices import version_of

DIRECT = ("s3", "s3a", "gs", "az", "dbfs")
CHUNK = 1 << 20
_DRIVE = re.compile(r"^[A-Za-z]:")


def strange_path(path: str) -> str | None:
    """Why `path` cannot be the relative path of a file; None when it can."""
    if not path:
        return "empty"
    if path.startswith("/") or _DRIVE.match(path):
        return "an absolute path"
    if "\\" in path:
        return "written with backslashes"
    if "\0" in path:
        return "holding a NUL"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "no clean path"
    return None


def local_path(uri: str) -> Path | None:
    """The folder of this machine that `uri` names, or None."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path)) if parts.netloc in ("", "localhost") else None
    return Path(uri) if not parts.scheme or _DRIVE.match(uri) else None


def direct(uri: str) -> bool:
    """Whether `uri` is of a store that may be read without being asked for by name."""
    return urlsplit(uri).scheme.lower() in DIRECT


def allowed(uri: str, allow: Sequence[str]) -> bool:
    """Whether `uri` lies below one of the prefixes that a person named."""
    place = _plain(uri)
    if ".." in unquote(place).split("/"):
        return False
    return any(place == prefix or place.startswith(prefix.rstrip("/") + "/") for prefix in map(_plain, allow) if prefix)


def _plain(uri: str) -> str:
    """Folders are compared as paths, whether written as file: or not."""
    local = local_path(uri)
    return uri if local is None else str(local)


def repository_artifacts(uri: str, owner: str, allow: Sequence[str], stores: Stores) -> Iterator[Artifact]:
    """All files below `uri`, those of object stores by way of `stores`.

    Raises UsageError when nobody allowed that place or when MLflow is missing, and what the store raises.
    """
    permit(uri, allow)
    local = local_path(uri)
    if local is not None:
        yield from _local_files(local, owner)
        return
    if reachable(uri):
        yield from stores.artifacts(uri, owner)
        return
    repository = _repository(uri)
    for path, size in _listed(repository, uri, ""):
        yield Artifact(owner, path, partial(_downloaded, repository, uri, path), size)


def repository_writer(uri: str, allow: Sequence[str], stores: Stores) -> Callable[[Artifact], None]:
    """What puts a file below `uri`. Raises as `repository_artifacts` does."""
    permit(uri, allow)
    local = local_path(uri)
    if local is not None:
        return partial(_write_local, local)
    if reachable(uri):
        return stores.folder(uri).send
    return partial(_upload, _repository(uri), uri)


def permit(uri: str, allow: Sequence[str]) -> None:
    """Raises UsageError for a place that may not be gone to unless a person names it."""
    if not (direct(uri) or allowed(uri, allow)):
        shown = hide_secrets(uri)
        raise UsageError(f"{shown} lies at a place that nobody named.", f"To allow it: --allow-artifacts {shown}")


def _local_files(folder: Path, owner: str) -> Iterator[Artifact]:
    """The files below a folder, links left alone: they may lead anywhere."""
    for here, folders, files in os.walk(folder, onerror=_gone, followlinks=False):
        folders.sort()
        for name in sorted(files):
            file = Path(here, name)
            told = file.lstat()
            if stat.S_ISREG(told.st_mode):
                path = file.relative_to(folder).as_posix()
                spot = Spot(FILE, str(file.absolute()), version_of(told))
                yield Artifact(owner, path, partial(_opened, file), told.st_size, spot=spot)


def _opened(file: Path) -> AbstractContextManager[BinaryIO]:
    return file.open("rb")


def _gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a run without artifacts has no folder
        raise NotFound(f"{error.filename} cannot be read ({error.strerror}).") from error


def _write_local(folder: Path, artifact: Artifact) -> None:
    """Whole or not at all."""
    _checked(artifact.path)
    file = folder / artifact.path
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    with artifact.open() as data, part.open("wb") as to:
        while chunk := data.read(CHUNK):
            to.write(chunk)
    part.replace(file)


def _checked(path: str) -> None:
    if why := strange_path(path):
        raise BadData(f"An artifact is named {path!r}, which is {why}.")


def _repository(uri: str) -> Any:  # noqa: ANN401  # MLflow's class, which may not be here
    try:
        registry = import_module("mlflow.store.artifact.artifact_repository_registry")
    except ImportError as error:
        raise UsageError(f"{hide_secrets(uri)} needs MLflow.", 'pip install "mlmigrate[mlflow]"') from error
    with _explained(uri):
        return registry.get_artifact_repository(uri)


def _listed(repository: Any, uri: str, folder: str) -> Iterator[tuple[str, int | None]]:  # noqa: ANN401
    with _explained(uri):
        found = repository.list_artifacts(folder or None)
    for info in found:
        _checked(info.path)
        if folder and not info.path.startswith(folder + "/"):
            raise BadData(f"{hide_secrets(uri)} lists {info.path!r} in folder {folder!r}.")
        if info.is_dir:
            yield from _listed(repository, uri, info.path)
        else:  # some say -1 of a size that they do not know
            yield info.path, info.file_size if info.file_size is None or info.file_size >= 0 else None


@contextmanager
def _downloaded(repository: Any, uri: str, path: str) -> Iterator[BinaryIO]:  # noqa: ANN401
    with tempfile.TemporaryDirectory(prefix="mlmigrate-") as folder:
        with _explained(uri):
            file = repository.download_artifacts(path, folder)
        with Path(file).open("rb") as data:
            yield data


def _upload(repository: Any, uri: str, artifact: Artifact) -> None:  # noqa: ANN401
    _checked(artifact.path)
    folder, _, name = artifact.path.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="mlmigrate-") as place:
        file = Path(place, name)
        with artifact.open() as data, file.open("wb") as to:
            while chunk := data.read(CHUNK):
                to.write(chunk)
        with _explained(uri):
            repository.log_artifact(str(file), folder or None)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        known = explain(error, hide_secrets(uri))
        if known is None:
            raise
        raise known from error


def explain(error: Exception, place: str) -> MigrateError | None:
    """Our error for one of MLflow's or of the libraries that its repositories stand on."""
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__]
    if isinstance(error, ImportError):
        return UsageError(f"{place} needs {error.name or 'a package'}, which is not installed.")
    if "botocore.exceptions.NoCredentialsError" in kinds or "google.auth.exceptions.DefaultCredentialsError" in kinds:
        return Refused(f"No credentials for {place} are found.")
    if any(kind.startswith(("botocore.exceptions.", "boto3.exceptions.")) for kind in kinds):
        return _explain_s3(error, place)
    if any(kind.startswith(("requests.exceptions.", "urllib3.exceptions.", "google.")) for kind in kinds):
        return Unavailable(f"{place} is away ({type(error).__name__}).")
    if "mlflow.exceptions.MlflowException" in kinds:
        return NotFound(f"{place} cannot be read: MLflow's repository refused ({type(error).__name__}).")
    return None


def _explain_s3(error: Exception, place: str) -> MigrateError:
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return Refused(f"{place} refused the credentials ({code}).")
    if code in ("NoSuchBucket", "NoSuchKey", "404"):
        return NotFound(f"{place} is not there ({code}).")
    return Unavailable(f"{place} is away ({code or type(error).__name__}).")
