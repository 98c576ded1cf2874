"""What lies in a folder that others wrote: regular files only, and never by way of a symbolic link.

entries(folder)        one level, sorted by name
walk(folder)           every regular file below, and what is odd there
read(path, most)       all bytes of a small file
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH114

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import BinaryIO, NamedTuple

from mlmigrate.errors import BadData, MigrateError, NotFound, Unavailable

# O_NONBLOCK: what became a pipe since it was listed must not make us wait for ever
FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
AT_ONCE = 1 << 16
_AWAY = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.EAGAIN, errno.EMFILE}
_NOISE = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.git(keep|ignore|attributes)?|\.nfs[0-9a-f]+|\.~lock\..*"
    r"|\..*\.sw[a-p]|\.ipynb_checkpoints|\.fuse_hidden.*|\.AppleDouble|\.Spotlight-V100|\.dvc"
)
_NOISY = ".Td"  # what their names begin with


class File(NamedTuple):
    """A regular file: `path` below the folder that was walked, with "/", and where it is on disk."""

    path: str
    place: str
    size: int = 0
    changed: int = 0  # ns since the epoch


@dataclass(slots=True)
class Tree:
    """What a walk found. `odd` holds (path, why) of all that is no regular file or does not belong there."""

    files: list[File] = field(default_factory=list)
    odd: list[tuple[str, str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes in all files; 0 when they were not asked for."""
        return sum(file.size for file in self.files)


def noise(name: str) -> bool:
    """Whether a file of this name is left by a desktop, an editor or git, not by a tracker."""
    return name[:1] in _NOISY and _NOISE.fullmatch(name) is not None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder that is no link."""
    return entry.is_dir(follow_symlinks=False)


def entries(folder: str, *, in_order: bool = True) -> list[os.DirEntry[str]]:
    """What lies directly in a folder, sorted by name when `in_order`; nothing when it is not there."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=_name) if in_order else list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise away(error) from error


_name = attrgetter("name")


def folders(folder: str) -> list[os.DirEntry[str]]:
    """The folders directly in a folder."""
    return [entry for entry in entries(folder) if is_folder(entry)]


def walk(folder: str, *, stats: bool = False, skip_noise: bool = True) -> Tree:
    """All regular files below a folder (which is no link), sorted by path; with sizes and times when `stats`."""
    tree = Tree()
    waiting = [("", folder)]
    while waiting:
        prefix, place = waiting.pop()
        try:
            with os.scandir(place) as found:
                for entry in found:
                    _sort_in(entry, prefix, tree, waiting, stats, skip_noise)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            tree.odd.append((prefix, why(error)))
    tree.files.sort()  # by path, which comes first in a File
    return tree


def _sort_in(
    entry: os.DirEntry[str], prefix: str, tree: Tree, waiting: list[tuple[str, str]], stats: bool, skip_noise: bool
) -> None:
    path = prefix + entry.name
    if skip_noise and noise(entry.name):
        tree.odd.append((path, "left there by another program"))
    elif entry.is_file(follow_symlinks=False):
        if stats:
            told = entry.stat(follow_symlinks=False)
            tree.files.append(File(path, entry.path, told.st_size, told.st_mtime_ns))
        else:
            tree.files.append(File(path, entry.path))
    elif entry.is_dir(follow_symlinks=False):
        waiting.append((path + "/", entry.path))
    else:
        tree.odd.append((path, odd_kind(entry)))


def odd_kind(entry: os.DirEntry[str]) -> str:
    """Why an entry that is neither a regular file nor a folder is not read."""
    return "a symbolic link, not followed" if entry.is_symlink() else "no regular file"


def holds_file(folder: str) -> bool:
    """Whether anything but folders and noise lies below a folder."""
    if os.path.islink(folder):
        return True
    waiting = [folder]
    while waiting:
        for entry in entries(waiting.pop()):
            if is_folder(entry):
                waiting.append(entry.path)
            elif not noise(entry.name):
                return True
    return False


def read(path: str, most: int) -> bytes:
    """All bytes of a file. Raises BadData when there are more than `most`, OSError when it cannot be read."""
    handle = os.open(path, FLAGS)
    try:
        data = os.read(handle, AT_ONCE)
        if len(data) < AT_ONCE:
            return data
        return b"".join([data, *_rest(handle, path, most)])
    finally:
        os.close(handle)


def _rest(handle: int, path: str, most: int) -> Iterator[bytes]:
    got = AT_ONCE
    while data := os.read(handle, 1 << 20):
        got += len(data)
        if got > most:
            raise BadData(f"{shown(path)} is larger than {most} bytes")
        yield data


def open_file(path: str) -> AbstractContextManager[BinaryIO]:
    """The file from its start, refused when it has become a link. Raises NotFound when it is gone."""
    try:
        return open(path, "rb", opener=lambda name, _: os.open(name, FLAGS))
    except OSError as error:
        raise explain(error) or error from error


def text(data: bytes) -> str:
    """The text of a file, exactly; bytes that are no UTF-8 as lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def digest(text: str, size: int = 16) -> str:
    """A number that stands for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


def shown(name: str) -> str:
    """A name from outside for a message: printable ASCII, cut."""
    plain = ascii(name)[1:-1]
    return plain if len(plain) <= 200 else plain[:197] + "..."  # noqa: PLR2004


def away(error: OSError) -> Exception:
    """The error to raise when a folder cannot be listed."""
    return explain(error) or error


def why(error: OSError) -> str:
    """Why something could not be read, for a loss. Raises Unavailable when reading it later may work."""
    if error.errno in _AWAY:
        raise explain(error) or error from error
    if error.errno == errno.ELOOP:
        return "a symbolic link, not followed"
    if error.errno == errno.ENOENT:
        return "gone while it was read"
    return f"cannot be read: {error.strerror}"


def explain(error: Exception) -> MigrateError | None:
    """What a failed look at the disk means for a person."""
    if not isinstance(error, OSError):
        return None
    where = shown(str(error.filename or "a file"))
    if error.errno in _AWAY:
        return Unavailable(f"{where} cannot be read now: {error.strerror}", "Is its disk or share connected?")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return NotFound(f"{where} is not there any more", "Run the same command again.")
    return BadData(f"{where} cannot be read: {error.strerror}", "May this user read it?")
