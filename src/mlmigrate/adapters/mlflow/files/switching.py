"""Many values of a file store changed as nearly at once as files allow.

Each new file is written aside and put on the disk first; then all are renamed, one after another.  A file
that somebody wrote meanwhile is never overwritten: its edit is made anew on what stands there, or told.
What a kill leaves half done is done by making the same edits again.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH105, PTH108, PTH110, PTH116, PTH118, PTH119, PTH120, PTH123

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO

from mlmigrate.adapters.estate import Cell, Edit
from mlmigrate.adapters.mlflow.files import disk, meta, scalars
from mlmigrate.adapters.mlflow.files.cells import COLUMNS, VALUE, Reader
from mlmigrate.errors import BadData, DiskFull, MigrateError, Refused, Unavailable

LOCK = ".mlmigrate-relocate.lock"
PART = ".mlmigrate-part"
AT_ONCE = 1_000  # files that wait to be put on the disk itself
FLUSHES = 16
_READ_FAULTS = (OSError, BadData)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileSwitching:
    """The edits of one switch: staged, then made."""

    def __init__(self, root: str, shown: str) -> None:
        self._root, self._shown = root, shown
        self._real_root = os.path.realpath(root)
        self._staged: set[int] = set()
        self._unflushed: list[str] = []
        self._edits: IO[str] = tempfile.TemporaryFile("w+", prefix="mlmigrate-", encoding="ascii")  # noqa: SIM115 - closed by close()

    def cells(self) -> Iterator[Cell]:
        """All values, as they are now; those of staged edits as they will be."""
        return Reader(self._root, self._now_at).cells()

    def edit(self, edits: Iterable[Edit]) -> list[Edit]:
        """Stages the edits; gives those that cannot be made, for another value stands there or none."""
        with explained(self._shown):
            missed = [edit for edit in edits if not self._stage(edit)]
            self._flush()
            return missed

    def commit(self) -> None:
        """Renames all that was staged. Raises Unavailable, and changes nothing, when files changed meanwhile."""
        with explained(self._shown):
            self._edits.flush()
            changed = [file for file, _, digest in self._taken() if digest and _digest(file) not in (digest, "")]
            if changed:
                raise self._busy(changed, "nothing was changed")
            late = {file for file, _, digest in self._taken() if digest and not _renamed(file, digest)}
            refused = [file for file, edit, _ in self._taken() if file in late and not self._at_once(file, edit)]
        if refused:
            raise self._busy(refused, "all others name the new place by now")

    def close(self) -> None:
        """Takes away what was staged and not made."""
        self._edits.flush()
        for file, _, _ in self._taken():
            with suppress(OSError):
                os.unlink(_part(file))
        self._edits.close()

    def _now_at(self, file: str) -> str:
        return _part(file) if hash(file) in self._staged and os.path.lexists(_part(file)) else file

    def _stage(self, edit: Edit) -> bool:
        file = self._file(edit)
        if file is None:
            return False
        known = hash(file)
        again = known in self._staged
        try:
            data = disk.read(_part(file) if again else file, meta.MOST)
        except _READ_FAULTS:
            return False
        made = _made(data, edit)
        if made is None:
            return False
        _write(_part(file), made, like=file)
        self._unflushed.append(_part(file))
        if len(self._unflushed) == AT_ONCE:
            self._flush()
        self._staged.add(known)
        digest = "" if again else hashlib.sha256(data).hexdigest()
        self._edits.write(json.dumps([file, [edit.table, edit.key, edit.column, edit.old, edit.new], digest]) + "\n")
        return True

    def _flush(self) -> None:
        """Puts what was staged on the disk itself; many at once, for a disk takes them together."""
        with ThreadPoolExecutor(FLUSHES) as pool:
            list(pool.map(_flush, self._unflushed))
        self._unflushed = []

    def _taken(self) -> Iterator[tuple[str, Edit, str]]:
        """What was staged: the file, the edit, and the digest of what was read; "" for a file's second edit."""
        self._edits.seek(0)
        for line in self._edits:
            file, (table, key, column, old, new), digest = json.loads(line)
            yield file, Edit(table, tuple(key), column, old, new), digest

    def _at_once(self, file: str, edit: Edit) -> bool:
        """Makes one edit on what stands there now."""
        try:
            made = _made(disk.read(file, meta.MOST), edit)
        except _READ_FAULTS:
            return False
        if made is None:
            return False
        _write(_part(file), made, like=file)
        _flush(_part(file))
        os.replace(_part(file), file)
        return True

    def _file(self, edit: Edit) -> str | None:
        """The file that holds the value; None for what is no part of a store, or reached by way of a link."""
        if len(edit.key) != 1 or "\0" in edit.key[0]:
            return None
        path = edit.key[0]
        parts = path.split("/")
        if (edit.table, edit.column, parts[-1]) not in COLUMNS or not all(one not in ("", ".", "..") for one in parts):
            return None
        folder = os.path.join(self._root, *parts[:-1])
        if os.path.realpath(folder) != os.path.join(self._real_root, *parts[:-1]):
            return None
        return os.path.join(folder, parts[-1])

    def _busy(self, files: list[str], outcome: str) -> Unavailable:
        first = disk.shown(os.path.relpath(files[0], self._root))
        return Unavailable(
            f"{self._shown}: {len(files):,} files were written by others during the switch, {first} first; {outcome}.",
            "Run the same command again.",
        )


def _made(data: bytes, edit: Edit) -> bytes | None:
    """The file's bytes after the edit; None when another value stands there."""
    if edit.column != VALUE:
        return scalars.replaced(data, edit.column, edit.old, edit.new)
    try:
        return edit.new.encode() if data == edit.old.encode() else None
    except UnicodeEncodeError:
        return None


def _part(file: str) -> str:
    """Where the new file waits. Not among a trace's tags: whatever lies there is one."""
    folder, name = os.path.split(file)
    above = folder if os.path.basename(folder) != "tags" else os.path.dirname(folder)
    return os.path.join(above, f".{name}{PART}")


def _write(part: str, data: bytes, *, like: str) -> None:
    """The bytes with the owner and the rights of the file that they are to replace."""
    told = os.stat(like, follow_symlinks=False)
    with suppress(FileNotFoundError):
        os.unlink(part)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            with suppress(PermissionError):
                os.fchown(handle, told.st_uid, told.st_gid)
            os.fchmod(handle, stat.S_IMODE(told.st_mode))
    except BaseException:
        os.unlink(part)
        raise


def _flush(part: str) -> None:
    handle = os.open(part, disk.FLAGS)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(file: str) -> str:
    """What tells a file's bytes; "" once its new ones have taken their place."""
    if not os.path.lexists(_part(file)):
        return ""
    try:
        return hashlib.sha256(disk.read(file, meta.MOST)).hexdigest()
    except _READ_FAULTS:
        return "gone"


def _renamed(file: str, digest: str) -> bool:
    """Puts the new file in its place, unless somebody wrote the old one since it was read."""
    now = _digest(file)
    if now == digest:
        os.replace(_part(file), file)
    return now in (digest, "")


@contextmanager
def held(root: str, shown: str) -> Iterator[None]:
    """Keeps other moves of the same store away. Raises Unavailable when there is one."""
    path = os.path.join(root, LOCK)
    with explained(shown):
        handle = _locked(path, shown)
    try:
        yield
    finally:
        os.unlink(path)  # still locked: whoever opened it meanwhile sees that it is gone, and makes another
        os.close(handle)


def _locked(path: str, shown: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise Unavailable(f"{shown}: another mlmigrate moves its artifacts now.", "Wait for it.") from error
        os.close(handle)


@contextmanager
def explained(shown: str) -> Iterator[None]:
    """Errors of the disk become ours, on the way out."""
    try:
        yield
    except MigrateError:
        raise
    except PermissionError as error:
        where = disk.shown(str(error.filename or "a file"))
        raise Refused(
            f"{shown}: {where} may not be written by this user.", "Run it as the user of the server."
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"{shown}: no space is left on its disk; nothing was changed.") from error
        raise disk.away(error) from error
