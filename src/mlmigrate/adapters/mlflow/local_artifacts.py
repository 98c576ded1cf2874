"""Artifact bytes on a local disk: a folder read as Artifact values, an artifact written into a folder.

Symbolic links are never followed, and a name from outside never leads out of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mlmigrate.errors import BadData, Conflict, Damaged, DiskFull, MigrateError, NotFound, Refused
from mlmigrate.model import Artifact, Loss, Spot
from mlmigrate.storage.slices import version_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

CHUNK = 1 << 20
PART = ".mlmigrate-part"
DEEPEST = 200  # folders below each other


class BadName(BadData):
    """The disk cannot hold a file of this name."""


class Taken(Conflict):
    """A file stands where a folder is needed, or a folder where a file is."""


def walk(folder: Path, owner: str, losses: list[Loss]) -> Iterator[Artifact]:
    """The files below `folder`, in the order of their names. What is not a plain file is a loss."""
    waiting = _entries(folder, "", owner, losses)
    while waiting:
        path, entry = waiting.pop()
        reason = _unfit(path, entry)
        if reason is not None:
            losses.append(Loss(owner, f"artifact {path!r}", reason))
        elif entry.is_dir(follow_symlinks=False):
            waiting += _entries(Path(entry.path), path + "/", owner, losses)
        elif not entry.name.endswith(PART):
            opener = partial(open_file, Path(entry.path))
            told = entry.stat(follow_symlinks=False)
            spot = Spot("file", str(Path(entry.path).absolute()), version_of(told))
            yield Artifact(owner, path, opener, size=told.st_size, spot=spot)


def _entries(folder: Path, prefix: str, owner: str, losses: list[Loss]) -> list[tuple[str, os.DirEntry[str]]]:
    """What lies in a folder, the last name first."""
    try:
        with os.scandir(folder) as found:
            return sorted(((prefix + one.name, one) for one in found), key=lambda pair: pair[0], reverse=True)
    except OSError as error:
        losses.append(Loss(owner, f"artifacts under {prefix or '/'!r}", f"cannot be listed: {error.strerror}"))
        return []


def _unfit(path: str, entry: os.DirEntry[str]) -> str | None:
    if entry.is_symlink():
        return "is a symbolic link, which is not followed"
    if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
        return "is neither a file nor a folder"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    return None


def open_file(path: Path) -> AbstractContextManager[BinaryIO]:
    """The bytes of a plain file. Raises NotFound when it is gone, BadData when it became something else."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise NotFound(f"{path} was there and is gone.") from error
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadData(f"{path} is no plain file any more.")
    return cast("BinaryIO", os.fdopen(descriptor, "rb"))


def place_of(root: Path, path: str) -> Path:
    """Where below `root` the artifact `path` lies. Raises BadData for a name that could lead out of it."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise BadName(f"An artifact has the name {path!r}, which is no clean relative path.")
    if len(parts) > DEEPEST:
        raise BadName(f"An artifact lies {len(parts)} folders deep: {path[:80]!r}...")
    if os.name == "nt" and any("\\" in part or ":" in part for part in parts):
        raise BadName(f"An artifact has the name {path!r}, which Windows cannot hold.")
    return root.joinpath(*parts)


def write(root: Path, artifact: Artifact, told: Callable[[int], None] | None = None) -> tuple[Path, int, str]:
    """Writes an artifact below `root`, whole or not at all. Gives its place, size and sha256.

    Raises Damaged when the bytes are not those that the artifact promised.
    """
    target = place_of(root, artifact.path)
    try:
        return (target, *_write(target, artifact, told))
    except OSError as error:
        ours = explain(error, target)
        if ours is None:
            raise
        raise ours from error


def explain(error: OSError, target: Path) -> MigrateError | None:
    """What the disk says, as one of our errors; None when nobody can act on it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"No space is left for {target}.")
    if error.errno == errno.ENAMETOOLONG:
        return BadName(f"The disk cannot hold a name as long as that of {target.name[:80]!r}...")
    if error.errno in (errno.EACCES, errno.EROFS):
        return Refused(f"{target.parent} may not be written by this user.")
    return None


def _write(target: Path, artifact: Artifact, told: Callable[[int], None] | None) -> tuple[int, str]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Taken(f"{target.parent} is a file, and {artifact.path!r} needs it to be a folder.") from error
    # always the same name: the same command again overwrites what a kill left half-written
    part = target.with_name(hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32] + PART)
    part.unlink(missing_ok=True)
    try:
        size, digest = _copy(artifact, part, told)
        _check(artifact, size, digest)
        _rename(part, target)
    finally:
        part.unlink(missing_ok=True)
    return size, digest


def _rename(part: Path, target: Path) -> None:
    try:
        part.replace(target)
    except (IsADirectoryError, PermissionError) as error:
        if not target.is_dir():
            raise
        raise Taken(f"{target} is a folder, and an artifact of that name is to be written.") from error


def _copy(artifact: Artifact, part: Path, told: Callable[[int], None] | None) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with artifact.open() as source, part.open("xb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if told is not None:
                told(len(chunk))
    return size, digest.hexdigest()


def _check(artifact: Artifact, size: int, digest: str) -> None:
    if artifact.sha256 is not None and artifact.sha256 != digest:
        raise Damaged(f"{artifact.path}: the bytes read are not the bytes written (sha256 differs).")
    if artifact.sha256 is None and artifact.size is not None and artifact.size != size:
        raise Damaged(f"{artifact.path}: {size} bytes were read, not the {artifact.size} that it was said to have.")


def flush(paths: list[Path]) -> None:
    """Puts files on the disk itself."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
