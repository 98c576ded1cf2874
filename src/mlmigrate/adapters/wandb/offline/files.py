"""The files of a run's page as they lie in its folder `files`.

`run.save` leaves links to a user's own files there: links to files are followed, links to folders never.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mlmigrate.adapters.wandb.shape import File
from mlmigrate.errors import NotFound
from mlmigrate.storage.slices import open_slice, version_of

CONFIG, SUMMARY, METADATA, CONSOLE = "config.yaml", "wandb-summary.json", "wandb-metadata.json", "output.log"


def run_files(folder: Path) -> tuple[list[File], list[tuple[str, str]]]:
    """The files below, in order of their names; and what was left out: path and why."""
    files: list[File] = []
    left: list[tuple[str, str]] = []
    for name, path in _entries(folder, left):
        if isinstance(seen := _seen(path), str):
            left.append((name, seen))
        elif not _is_text(name):
            left.append((ascii(name), "its name is no text"))
        else:
            real, size, version = seen
            files.append(File(name, open=opener(real, size, version), size=size))
    return sorted(files, key=lambda file: file.path), left


def opener(path: Path, size: int, version: str = "") -> partial[AbstractContextManager[BinaryIO]]:
    """What opens the file as it was when we looked."""
    return partial(open_slice, path, 0, size, version)


def signature(folder: Path) -> Iterator[tuple[str, int, int]]:
    """What changes when the files do: name, size and time of each. Cheap: nothing is opened."""
    for name, path in _entries(folder, []):
        try:
            found = path.stat()
        except OSError:
            yield name, -1, 0
        else:
            yield name, found.st_size, found.st_mtime_ns


def merged(folders: Sequence[tuple[list[File], list[tuple[str, str]]]]) -> tuple[list[File], list[tuple[str, str]]]:
    """The files of a run that was taken up again: of one name, the last one."""
    files = {file.path: file for some, _ in folders for file in some}
    left = {name: because for _, some in folders for name, because in some if name not in files}
    return [files[path] for path in sorted(files)], sorted(left.items())


def _entries(folder: Path, left: list[tuple[str, str]]) -> Iterator[tuple[str, Path]]:
    waiting = [(folder, "")]  # no recursion: folders may be nested deeper than calls
    while waiting:
        here, below = waiting.pop()
        try:
            with os.scandir(here) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            because = "may not" if isinstance(error, PermissionError) else "cannot"
            left.append((below or "files", f"a folder that {because} be read"))
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), f"{below}{entry.name}/"))
            else:
                yield f"{below}{entry.name}", Path(entry.path)


def _seen(path: Path) -> tuple[Path, int, str] | str:
    """Where the file really is, its size and version; or why it is none."""
    try:
        real = Path(os.path.realpath(path, strict=True))
        found = real.stat()
    except OSError:  # a link to nothing, or round in a circle
        return "a link to a file that is gone"
    if stat.S_ISDIR(found.st_mode):
        return "a link to a folder, which is not followed"
    if not stat.S_ISREG(found.st_mode):
        return "no file that can be read"
    if not os.access(real, os.R_OK):
        return "a file that may not be read"
    return real, found.st_size, version_of(found)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name and "\\" not in name


def read(files: Sequence[File], path: str, most: int) -> bytes | None:
    """The whole of a small file; None when there is none of this name, or it is larger than `most`."""
    file = next((one for one in files if one.path == path), None)
    if file is None or file.open is None or (file.size or 0) > most:
        return None
    try:
        with file.open() as stream:
            return stream.read()
    except NotFound:
        return None
