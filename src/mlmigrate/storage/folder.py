"""A folder of this machine, used as object stores are: files by key, a key being a relative path.

    .mlmigrate-parts/<random>   files being written; renamed when they are whole, rubbish after a crash

What is there is given under the name it has, and links are not followed: `odd` names what `list` left out.
A file is on the disk, name and all, when `put` and `upload` return.  Their digest is of the bytes as they
were handed to the system, which told of no error when it wrote them down: reading them again would come
from memory and prove no more.  Only the network counts for the throttle: here it is asked by copies alone.
"""

# a path is a text here: the objects of pathlib would cost more than the listing of a large folder
# ruff: noqa: PTH102, PTH103, PTH105, PTH108, PTH119, PTH123, PTH208

from __future__ import annotations

import builtins
import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlmigrate.address import hide_secrets
from mlmigrate.errors import NotFound, Unavailable, UsageError
from mlmigrate.storage.local import link, sync_folders
from mlmigrate.storage.objects import (
    CHUNK,
    PART,
    BadKey,
    Body,
    Changed,
    Exists,
    Objects,
    Stored,
    composite,
    digest_of,
    digest_text,
    part_size,
)
from mlmigrate.storage.slices import Slice, explain_file, open_plain, version_of
from mlmigrate.storage.throttle import UNLIMITED, Throttle

PARTS = ".mlmigrate-parts"
_OLD = 86_400  # seconds after which nobody writes a part any more
_LONGEST = 255  # bytes of a name, on all file systems that we know
_CLONE = 0x40049409  # FICLONE of linux/fs.h: the copy shares the blocks of the file until one is written
_BAD = re.compile(r'[\\:*?"<>|\x00-\x1f]|[. ]$' if os.name == "nt" else r"\x00")
_TAKEN = (errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY)
_NO_NAME = (errno.ENAMETOOLONG, errno.EILSEQ)


class FolderObjects:
    """Files below `root`, which is made by the first write. Used by many threads at once."""

    store = "file"

    def __init__(self, root: Path, throttle: Throttle = UNLIMITED) -> None:
        self.root = root
        self.local: Path | None = root
        self.throttle = throttle
        self.url = self._base = str(root)
        self._odd: dict[str, str] = {}
        self._plain: set[str] = set()  # folders below the root that were no links when we looked
        self._lock = threading.Lock()
        self._one_case: bool | None = None  # whether names that differ only in case are one file; None: not asked yet

    @classmethod
    def of(cls, place: str, throttle: Throttle = UNLIMITED) -> FolderObjects:
        """The folder that a path or a file: URI names. Raises UsageError."""
        if place[:5].lower() == "file:":
            parts = urlsplit(place)
            if parts.netloc not in ("", "localhost"):
                raise UsageError(f"{hide_secrets(place)} names another machine.", "Name a folder of this one.")
            place = url2pathname(parts.path)
        if not place or "\0" in place or "://" in place:
            raise UsageError(f"{hide_secrets(place)!r} names no folder.", "Name a folder of this machine.")
        return cls(Path(place).expanduser().absolute(), throttle)

    @property
    def shown(self) -> str:
        """The folder."""
        return hide_secrets(self._base)

    @property
    def odd(self) -> builtins.list[str]:
        """What `list` left out so far: its name and why."""
        return [f"{name}: {why}" for name, why in self._odd.items()]

    def check(self, *, write: bool = False) -> None:
        """Asks whether we may list (and write)."""
        with self._explained(""):
            if write:
                self._begin()
                part = self._part_file()
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                os.unlink(part)
            with os.scandir(self._base):
                pass

    def list(self, below: str = "") -> Iterator[Stored]:
        """Every file below, in no order; what comes or goes meanwhile may be told or not."""
        if below and (not below.endswith("/") or self._leads_away(below)):
            return
        waiting = deque([below])
        while waiting:
            folder = waiting.pop()
            try:
                entries = os.scandir(f"{self._base}/{folder}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                if not folder:
                    raise explain_file(error, self.shown) or error from error
                self._odd[_printable(folder)] = "a folder that may not be read"
                continue
            with entries:
                yield from self._seen(entries, folder, waiting)

    def head(self, key: str) -> Stored | None:
        """The file; a folder keeps no digests."""
        path = self._path(key)
        with self._explained(key):
            try:
                found = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not stat.S_ISREG(found.st_mode) or self._leads_away(key):
                return None
            return _stored(key, found)

    def open(
        self, key: str, start: int = 0, length: int | None = None, version: str = ""
    ) -> AbstractContextManager[BinaryIO]:
        """Its bytes as a stream, seekable."""
        descriptor = self.descriptor(key)
        left = max(0, os.fstat(descriptor).st_size - start)
        asked = left if length is None else min(length, left)
        return cast("BinaryIO", Slice(descriptor, self._show(key), start, asked, version))

    def descriptor(self, key: str) -> int:
        """The file opened for reading, for those who read it without a stream. Raises NotFound."""
        path = self._path(key)
        if self._leads_away(key):
            raise NotFound(f"{self._show(key)} lies behind a symbolic link; links are not followed.")
        with self._explained(key):
            return open_plain(path)

    def put(self, key: str, data: bytes | memoryview, *, create: bool = False, sha256: str = "") -> Stored:
        """Writes a small file whole."""
        with self._written(key, create=create) as descriptor:
            _write(descriptor, data)
            found = _finished(descriptor)
        return _stored(key, found, digest_text(bytes.fromhex(sha256) if sha256 else hashlib.sha256(data).digest()))

    def upload(self, key: str, body: Body, *, part_size: int = 0, resume: str = "", threads: int = 4) -> Stored:  # noqa: ARG002  nothing is resumed here
        """Writes a file of any size, in parallel parts where it is larger than PART; whole or not at all."""
        with self._written(key) as descriptor:
            digest = _write_body(descriptor, body, part_size, threads)
            found = _finished(descriptor)
        if found.st_size != body.size:
            raise Changed(f"{self._show(key)}: its source gave {found.st_size} of {body.size} bytes.")
        return _stored(key, found, digest)

    def unfinished(self, below: str = "") -> Iterator[tuple[str, str, float]]:  # noqa: ARG002  as the protocol has it
        """Nothing: parts that a crash left have no name, and the next write takes them away after a day."""
        return iter(())

    def abort(self, key: str, upload: str) -> None:
        """Nothing, as there are none."""

    def copy(self, source: Objects, key: str, to: str, size: int, version: str = "") -> Stored:
        """Copies from another folder: the blocks are shared where the file system can, else the bytes written."""
        if not isinstance(source, FolderObjects):
            raise TypeError(f"a folder copies from folders, not from {source.shown}")
        self.throttle.payload(size)
        descriptor = source.descriptor(key)
        try:
            before = os.fstat(descriptor)
            with self._written(to) as out:
                digest = _cloned(descriptor, out) or _streamed(descriptor, out)
                found = _finished(out)
                after = os.fstat(descriptor)
                if version not in ("", version_of(before)) or version_of(before) != version_of(after):
                    raise Changed(f"{source._show(key)} was written meanwhile.", "Run the same command again.")  # noqa: SLF001  one of us
        finally:
            os.close(descriptor)
        return _stored(to, found, digest)

    def delete(self, keys: Iterable[str]) -> None:
        """Takes files away; their folders stay, for somebody may be about to write into them."""
        for key in keys:
            path = self._path(key)
            if not self._leads_away(key):
                with self._explained(key), suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(path)

    def _seen(self, entries: Iterator[os.DirEntry[str]], folder: str, waiting: deque[str]) -> Iterator[Stored]:
        """The files of one folder; its folders are put to those that wait, anything else among what is odd."""
        for entry in entries:
            key = folder + entry.name
            if entry.is_dir(follow_symlinks=False):
                if key != PARTS and not self._is_odd(entry, key):
                    waiting.append(key + "/")
            elif not self._is_odd(entry, key):
                with suppress(FileNotFoundError):  # it went away meanwhile
                    yield _stored(key, entry.stat(follow_symlinks=False))

    def _is_odd(self, entry: os.DirEntry[str], key: str) -> bool:
        why = ""
        if entry.is_symlink():
            why = "a symbolic link"
        elif not key.isascii() and _printable(key) != key:
            why = "a name that is no UTF-8"
        elif not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
            why = "neither file nor folder"
        if why:
            self._odd[_printable(key)] = why
        return bool(why)

    def _path(self, key: str) -> str:
        """Where the file of this key lies. Raises BadKey for what would be another's or lie elsewhere."""
        parts = key.split("/")
        if "" in parts or "." in parts or ".." in parts or parts[0] == PARTS or _BAD.search(key):
            raise BadKey(f"{self.shown} cannot hold a file named {key!r:.200}.")
        try:
            longest = len(key) if len(key) <= _LONGEST and key.isascii() else max(len(os.fsencode(p)) for p in parts)
        except UnicodeEncodeError:
            raise BadKey(f"{self.shown} cannot hold a file named {key!r:.200}.") from None
        if longest > _LONGEST:
            raise BadKey(f"{self.shown} cannot hold {key!r:.200}: a part of the name is longer than {_LONGEST} bytes.")
        return f"{self._base}/{key}"

    def _leads_away(self, key: str) -> bool:
        """Whether a folder on the way from the root to this file is a link, or no folder."""
        folder = key.rpartition("/")[0]
        if not folder or folder in self._plain:
            return False
        if self._leads_away(folder):
            return True
        try:
            plain = stat.S_ISDIR(os.lstat(f"{self._base}/{folder}").st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False  # there is nothing behind it at all
        if plain:
            self._plain.add(folder)
        return not plain

    @contextmanager
    def _written(self, key: str, *, create: bool = False) -> Iterator[int]:
        """A new file to write, which gets its name when all went well."""
        final = self._path(key)
        with self._explained(key, writing=True):
            self._begin()
            part = self._part_file()
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            try:
                try:
                    yield descriptor
                finally:
                    os.close(descriptor)
                self._named(part, final, key, create=create)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(part)
                raise

    def _named(self, part: str, final: str, key: str, *, create: bool) -> None:
        """The whole file is called so, and its folder knows that."""
        self._folder(key.rpartition("/")[0])
        self._check_case(key)
        try:
            self._renamed(part, final, key, create=create)
        except FileNotFoundError:  # another process took the folder away that we made
            with self._lock:
                self._plain.clear()
            self._folder(key.rpartition("/")[0])
            self._renamed(part, final, key, create=create)
        sync_folders([Path(final).parent])

    def _renamed(self, part: str, final: str, key: str, *, create: bool) -> None:
        if not create:
            os.replace(part, final)
        elif not link(Path(part), Path(final)):
            raise Exists(f"{self._show(key)} is there already.")
        else:
            with suppress(FileNotFoundError):  # where there are no links it was renamed
                os.unlink(part)

    def _folder(self, folder: str) -> None:
        """Makes the folder below the root, and those above it. Raises BadKey when something else is in the way."""
        if not folder or folder in self._plain:
            return
        above = folder.rpartition("/")[0]
        self._folder(above)
        path = f"{self._base}/{folder}"
        self._check_case(folder)
        try:
            os.mkdir(path)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise BadKey(f"{self._show(folder)} is no folder, so no file can lie in it.") from None
        else:
            sync_folders([Path(path).parent])
        self._plain.add(folder)

    def _check_case(self, key: str) -> None:
        """Raises Exists when the place has this name in other letters, which here is the same file."""
        if not self._one_case or not os.path.lexists(f"{self._base}/{key}"):
            return
        folder, _, name = key.rpartition("/")
        names = os.listdir(f"{self._base}/{folder}")
        if name not in names and (other := [one for one in names if one.casefold() == name.casefold()]):
            raise Exists(
                f"{self._show(key)} would replace {other[0]!r:.200}: the disk does not tell such names apart.",
                "Choose a disk that does.",
            )

    def _begin(self) -> None:
        """Before the first write: the root is made, old rubbish swept, and the disk asked how it takes names."""
        if self._one_case is not None:
            return
        with self._lock:
            if self._one_case is None:
                folder = f"{self._base}/{PARTS}"
                os.makedirs(folder, exist_ok=True)
                _sweep(folder, time.time() - _OLD)
                self._one_case = _takes_one_case(folder)

    def _part_file(self) -> str:
        return f"{self._base}/{PARTS}/{secrets.token_hex(8)}"

    def _show(self, key: str) -> str:
        return f"{self.shown}/{_printable(key)}".rstrip("/")

    @contextmanager
    def _explained(self, key: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shown = self._show(key)
            if error.errno in _NO_NAME:
                raise BadKey(f"{shown:.300}: {error.strerror}.") from error
            if writing and error.errno in _TAKEN:
                raise BadKey(f"{shown} cannot be written: file and folder of one name cannot both be.") from error
            ours = explain_file(error, shown)
            if ours is None:
                raise
            raise ours from error


def _stored(key: str, found: os.stat_result, digest: str = "") -> Stored:
    return Stored(key, found.st_size, version_of(found), found.st_mtime_ns / 1e9, digest)


def _printable(name: str) -> str:
    """The name with the bytes that are no UTF-8 written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _sweep(folder: str, before: float) -> None:
    """Takes files away that nobody has written since."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process has just finished it
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry.path)


def _takes_one_case(folder: str) -> bool:
    """Whether names that differ only in case are one file here."""
    name = f"{folder}/a{secrets.token_hex(8)}"
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        return os.path.lexists(f"{folder}/{os.path.basename(name).upper()}")
    finally:
        os.unlink(name)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _finished(descriptor: int) -> os.stat_result:
    """The file is on the disk; what it looks like there."""
    os.fsync(descriptor)
    return os.fstat(descriptor)


def _write_body(descriptor: int, body: Body, asked: int, threads: int) -> str:
    """Writes all of a body; gives its digest, in parts where it has more than PART bytes."""
    if body.size <= PART:
        return digest_text(_write_part(descriptor, body, 0, body.size))
    size = part_size(body.size, asked)
    os.truncate(descriptor, body.size)
    starts = range(0, body.size, size)
    with ThreadPoolExecutor(min(threads, len(starts))) as pool:
        digests = pool.map(lambda at: _write_part(descriptor, body, at, min(size, body.size - at)), starts)
        try:
            return composite(list(digests), size)
        finally:
            pool.shutdown(cancel_futures=True)


def _write_part(descriptor: int, body: Body, start: int, length: int) -> bytes:
    """Writes a part of a body where it belongs; gives its sha256."""
    digest, at = hashlib.sha256(), start
    with body.open(start, length) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                done = os.pwrite(descriptor, rest, at)
                at, rest = at + done, rest[done:]
    if at != start + length:
        raise Unavailable(f"A source gave {at - start} of {length} bytes.")
    return digest.digest()


def _cloned(source: int, out: int) -> str:
    """The copy shares the source's blocks; its digest. "" where that cannot be."""
    if not sys.platform.startswith("linux"):
        return ""
    import fcntl  # noqa: PLC0415  not on Windows

    try:
        fcntl.ioctl(out, _CLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return ""
    with open(os.dup(out), "rb", buffering=0) as stream:
        return digest_of(cast("BinaryIO", stream))[0]


def _streamed(source: int, out: int) -> str:
    """The bytes of the source written; their digest."""
    digest = hashlib.sha256()
    while chunk := os.read(source, CHUNK):
        digest.update(chunk)
        _write(out, chunk)
    return digest_text(digest.digest())
