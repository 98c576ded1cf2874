"""Artifacts out of an archive, as an ordinary tree that is never left.

Names in an archive come from elsewhere, so what is no plain relative name on every system is refused,
and so is the second of two names that some system takes for one.  `tools.cat` gives any of them.
"""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from mlmigrate.archive.blobs import CHUNK
from mlmigrate.errors import Damaged
from mlmigrate.model import Artifact, Loss
from mlmigrate.storage.local import explain

_LONGEST = 255  # bytes of one part of a path on nearly every file system
_WINDOWS = '<>:"|?*'


class Tree:
    """A folder being filled."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def write(self, path: str, artifact: Artifact) -> str:
        """Writes the artifact to `path`; gives why not, or "" when it is there. Raises DiskFull, Refused."""
        reason = unsafe(path) or self._taken(path)
        if reason:
            return reason
        file = self._root.joinpath(*path.split("/"))
        for folder in reversed(file.relative_to(self._root).parents):
            if (self._root / folder).is_symlink() and folder != Path():
                return f"{str(folder)!r} is a symbolic link there"
        if file.is_dir() and not file.is_symlink():
            return "a folder of this name is there"
        try:
            _write(file, artifact)
        except Damaged as error:
            return error.message
        except OSError as error:
            raise explain(error, str(file)) or error from error
        return ""

    def _taken(self, path: str) -> str:
        """Why this name cannot stand beside those that were written."""
        parts = path.split("/")
        for n in range(1, len(parts)):
            folder = "/".join(parts[:n])
            if _folded(folder) in self._files:
                return f"{folder!r} is a file there"
            if self._folders.setdefault(_folded(folder), folder) != folder:
                return "its folder is another's but for upper and lower case"
        if _folded(path) in self._folders:
            return "a folder of this name is there"
        if _folded(path) in self._files:
            return "its name is another's, but perhaps for upper and lower case"
        self._files.add(_folded(path))
        return ""


def fill(folder: Path, artifacts: Iterable[tuple[str, Artifact]]) -> list[Loss]:
    """Writes each artifact to its path under `folder`; gives those that were refused, or damaged."""
    tree, losses = Tree(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, str(folder)) or error from error
    for path, artifact in artifacts:
        reason = tree.write(path, artifact)
        if reason:
            losses.append(Loss(artifact.owner, f"artifact {artifact.path!r}", f"not written: {reason}"))
    return losses


def unsafe(path: str) -> str:
    """Why `path` is no name to write to; "" when it is one."""
    parts = path.split("/")
    if "" in parts:
        return "its name begins or ends with '/', or holds an empty part"
    if "." in parts or ".." in parts:
        return "its name holds '.' or '..'"
    if "\0" in path or "\\" in path:
        return "its name holds a backslash or a zero byte"
    if os.name == "nt" and any(char in path for char in _WINDOWS):
        return "its name holds a character that Windows refuses"
    if any(len(os.fsencode(part)) > _LONGEST for part in parts if _encodable(part)):
        return "a part of its name is longer than 255 bytes"
    return "" if _encodable(path) else "its name cannot be written here"


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _write(file: Path, artifact: Artifact) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with artifact.open() as stream, open(part, "xb") as out:  # noqa: PTH123  exclusive
            while chunk := stream.read(CHUNK):
                out.write(chunk)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
