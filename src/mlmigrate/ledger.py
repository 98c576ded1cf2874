"""What a copy has done so far, for people and for the next run of the same command: SQLite.

The truth of what arrived lies in the target; the ledger holds its history: the id map, failures and
losses.  A lost ledger makes no duplicates.  One process holds it at a time; anyone may read it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlmigrate.address import Address
from mlmigrate.errors import BadData, DiskFull, LedgerInUse, NotFound
from mlmigrate.events import Failure
from mlmigrate.model import Loss, Receipt, RunRef

SUFFIX = ".ledger.sqlite"
LEAST = 1 << 17  # bytes: a ledger with its log and its shared memory needs about so much
SCHEMA = """
create table if not exists copy (
    source text not null, target text not null, started real, ended real, pid integer not null,
    runs integer not null, already integer not null, points integer not null, size integer not null,
    artifacts integer not null default 0
);
create table if not exists run (
    origin text primary key, experiment text not null, id text not null, name text not null, kind text not null,
    state text not null, target_id text not null, error text not null, message text not null, at real not null
) without rowid;
create table if not exists loss (
    origin text not null, run text not null, experiment text not null, what text not null, because text not null
);
create index if not exists loss_origin on loss (origin);
create table if not exists oddity (
    run text not null, experiment text not null, what text not null, because text not null
);
"""


@dataclass(frozen=True, slots=True)
class State:
    """How far a copy is. Times in seconds since the epoch; `pid` is 0 when nothing runs."""

    source: str
    target: str
    started: float
    ended: float | None
    pid: int
    runs: int
    copied: int
    already: int
    failed: int
    losses: int
    points: int
    size: int
    artifacts: int = 0


class Ledger:
    """One copy's ledger, held by one process at a time."""

    def __init__(self, db: sqlite3.Connection, lock: IO[bytes]) -> None:
        self._db, self._lock = db, lock

    @classmethod
    def open(cls, file: Path, source: Address, target: Address, restart: bool = False) -> Ledger:
        """The ledger at `file`, made when it is not there yet.

        Raises LedgerInUse when another process holds it or it records another copy.
        """
        with explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = locked(file)
            try:
                if restart:
                    _forget(file)
                db = sqlite3.connect(file, isolation_level=None, timeout=30)
                _begin(db, file, source.shown, target.shown)
            except BaseException:
                lock.close()
                raise
        return cls(db, lock)

    def begin(self, todo: int, already: int) -> None:
        """A command begins: so many runs are to do, so many were there."""
        with self._writing():
            self._db.execute("delete from run where state = 'failed'")
            self._db.execute("delete from loss where origin = ''")
            self._db.execute(
                "update copy set started = ?, ended = null, pid = ?, runs = ?, already = ?, "
                "points = 0, size = 0, artifacts = 0",
                (time.time(), os.getpid(), todo + already, already),
            )

    def arrived(self, refs: Sequence[RunRef], receipt: Receipt) -> None:
        """A pack arrived; one transaction."""
        origins = {ref.id: ref.origin for ref in refs}
        with self._writing():
            self._db.executemany(
                "replace into run values (?, ?, ?, ?, ?, 'copied', ?, '', '', ?)",
                [
                    (
                        ref.origin,
                        ref.experiment,
                        ref.id,
                        clean(ref.name),
                        ref.kind,
                        receipt.ids.get(ref.origin, ""),
                        time.time(),
                    )
                    for ref in refs
                ],
            )
            self._db.executemany("delete from loss where origin = ?", [(ref.origin,) for ref in refs])
            for loss in receipt.losses:
                self._insert_losses(origins.get(loss.run, refs[0].origin if refs else ""), [loss])
            self._db.execute(
                "update copy set points = points + ?, size = size + ?, artifacts = artifacts + ?",
                (receipt.points, receipt.size, receipt.artifacts),
            )

    def failed(self, ref: RunRef, failure: Failure) -> None:
        """A run did not arrive."""
        with self._writing():
            self._db.execute(
                "replace into run values (?, ?, ?, ?, ?, 'failed', '', ?, ?, ?)",
                (
                    ref.origin,
                    clean(failure.experiment),
                    ref.id,
                    clean(ref.name),
                    ref.kind,
                    failure.error,
                    clean(failure.message),
                    time.time(),
                ),
            )

    def lost(self, losses: Sequence[Loss]) -> None:
        """Losses that belong to no run."""
        with self._writing():
            self._insert_losses("", losses)

    def end(self, oddities: Sequence[Loss] = ()) -> None:
        """The command is over; `oddities` is what was strange about the source."""
        with self._writing():
            self._db.execute("delete from oddity")
            self._db.executemany(
                "insert into oddity values (?, ?, ?, ?)",
                [(clean(one.run), clean(one.experiment), clean(one.what), clean(one.because)) for one in oddities],
            )
            self._db.execute("update copy set ended = ?, pid = 0", (time.time(),))

    def close(self) -> None:
        """Gives the ledger to others."""
        self._db.close()
        self._lock.close()

    def _insert_losses(self, origin: str, losses: Sequence[Loss]) -> None:
        self._db.executemany(
            "insert into loss values (?, ?, ?, ?, ?)",
            [(origin, clean(one.run), clean(one.experiment), clean(one.what), clean(one.because)) for one in losses],
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with explained(None), transaction(self._db):
            yield


def default_file(source: Address, target: Address) -> Path:
    """Beside a local archive, else under ~/.local/state/mlmigrate (or XDG_STATE_HOME)."""
    pair = hashlib.blake2b(f"{source.shown}\0{target.shown}".encode(), digest_size=4).hexdigest()
    for place in (target, source):
        if place.kind == "archive" and "://" not in place.place:
            folder = Path(place.place).absolute()
            return folder.with_name(f"{folder.name}.{pair}{SUFFIX}")
    names = "-".join(re.sub(r"[^\w.]+", "_", place.shown).strip("_")[:60] for place in (source, target))
    return state_folder() / f"{names}.{pair}{SUFFIX}"


def newest() -> Path | None:
    """The ledger written to last, here or in the state folder."""
    found = [*Path.cwd().glob("*" + SUFFIX), *state_folder().glob("*" + SUFFIX)]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def state(file: Path) -> State:
    """How far the copy is, also while it runs. Raises NotFound."""
    with _reading(file) as db:
        copy = db.execute("select * from copy").fetchone()
        if copy is None:
            raise _just_begun(str(file))
        source, target, started, ended, pid, runs, already, points, size, *later = copy
        counts = dict(
            db.execute("select state, count(*) from run where kind = 'run' and at >= ? group by 1", (started or 0,))
        )
        losses = db.execute("select count(*) from loss").fetchone()[0]
    pid = pid if _alive(pid) else 0
    return State(
        source,
        target,
        started or 0.0,
        ended,
        pid,
        runs,
        counts.get("copied", 0),
        already,
        counts.get("failed", 0),
        losses,
        points,
        size,
        later[0] if later else 0,  # ledgers of before have no such column
    )


def failures(file: Path) -> Sequence[Failure]:
    """The runs that did not arrive."""
    with _reading(file) as db:
        rows = db.execute("select experiment, id, name, error, message from run where state = 'failed' order by 1, 2")
        return [Failure(*row) for row in rows]


def losses(file: Path) -> Sequence[Loss]:
    """Everything that did not arrive as it was."""
    with _reading(file) as db:
        return [Loss(*row) for row in db.execute("select run, what, because, experiment from loss order by rowid")]


def oddities(file: Path) -> Sequence[Loss]:
    """What was strange about the source when it was read last."""
    with _reading(file) as db:
        return [Loss(*row) for row in db.execute("select run, what, because, experiment from oddity order by rowid")]


def ids(file: Path) -> Sequence[tuple[str, str]]:
    """(origin, id in the target) of each run that arrived."""
    with _reading(file) as db:
        return list(db.execute("select origin, target_id from run where state = 'copied' and kind = 'run' order by 1"))


def clean(text: str) -> str:
    """Text that SQLite can hold: lone surrogates (bytes that were no UTF-8) become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _begin(db: sqlite3.Connection, file: Path, source: str, target: str) -> None:
    db.execute("pragma journal_mode = wal")
    db.executescript(SCHEMA)
    if "artifacts" not in {row[1] for row in db.execute("pragma table_info(copy)")}:  # of an earlier version
        db.execute("alter table copy add column artifacts integer not null default 0")
    known = db.execute("select source, target from copy").fetchone()
    if known is None:
        db.execute("insert into copy values (?, ?, null, null, 0, 0, 0, 0, 0, 0)", (source, target))
    elif known != (source, target):
        what, old, new = ("from", known[0], source) if known[1] == target else ("to", known[1], target)
        raise LedgerInUse(
            f"this ledger records a copy {what} {old}, not {what} {new}: {file}",
            "Give another with --ledger, or begin anew with --restart.",
        )


def locked(file: Path) -> IO[bytes]:
    """Holds the ledger for this process until what is given is closed. Raises LedgerInUse."""
    # A file of its own: closing any descriptor of the database would drop SQLite's own locks.
    lock = file.with_name(file.name + ".lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise LedgerInUse(
            f"another mlmigrate is at work with the ledger {file}.",
            "Wait for it, or see how far it is: mlmigrate status",
        ) from None
    return lock


def _forget(file: Path) -> None:
    for name in (file.name, file.name + "-wal", file.name + "-shm"):
        file.with_name(name).unlink(missing_ok=True)


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    if not file.is_file():
        raise NotFound(f"There is no ledger at {file}.", "A copy makes one; mlmigrate status LEDGER reads any.")
    with explained(file):
        db = sqlite3.connect(file, timeout=30)
        try:
            db.execute("pragma query_only = on")
            yield db
        finally:
            db.close()


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written meanwhile, or nothing of it."""
    db.execute("begin immediate")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise
    db.execute("commit")


@contextmanager
def explained(file: Path | None) -> Iterator[None]:
    """Errors of SQLite and of the disk as ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        ours = explain(error, str(file or "the ledger"))
        if ours is None:
            raise
        raise ours from error


def explain(error: Exception, what: str) -> DiskFull | BadData | LedgerInUse | NotFound | None:
    """Errors of SQLite and of the disk as ours."""
    text = str(error)
    if "no such table" in text:
        return _just_begun(what)
    if "disk is full" in text or getattr(error, "errno", None) in (28, 122) or _full(error, Path(what)):
        return DiskFull(f"No space is left for {what}.", "Free some and run the same command again; it goes on.")
    if isinstance(error, sqlite3.DatabaseError) and ("not a database" in text or "malformed" in text):
        return BadData(
            f"{what} is not a ledger, or damaged ({text}).", "Begin anew with --restart: nothing is copied twice."
        )
    if isinstance(error, PermissionError):
        return LedgerInUse(f"The ledger {what} may not be written.", "Give another with --ledger.")
    return None


def _just_begun(what: str) -> NotFound:
    return NotFound(f"{what} records nothing yet.", "The copy was stopped as it began; the same command goes on.")


def _full(error: Exception, file: Path) -> bool:
    """SQLite says no more than "disk I/O error" when its shared memory finds no room."""
    if not isinstance(error, sqlite3.OperationalError) or not str(error).startswith(("disk I/O", "unable to open")):
        return False
    return file.parent.is_dir() and shutil.disk_usage(file.parent).free < LEAST


def state_folder() -> Path:
    """Where ledgers lie that have no better place."""
    root = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(root).expanduser() / "mlmigrate"


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, under another user
        return True
    return True
