"""Who may write into an archive in an object store: one command at a time, `export` or `prune`.

writers/<n>.json   says who writes; made with a conditional put, written again as a sign of life, gone at the end

Nothing that was committed depends on it: commits of two writers never meet.  It keeps two commands from
doing the same work twice, and prune from taking away what an export is about to name.

    take     look who is there; make the next number; look again, and give way to another
    stale    no sign of life for STALE seconds, told by the store's own clock; or a process of this machine that is gone
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import msgspec

from mlmigrate.archive import layout
from mlmigrate.errors import LedgerInUse, MigrateError, NotFound
from mlmigrate.storage import Storage

STALE = 300.0  # seconds without a sign of life, and a writer is taken for dead
BEAT = 30.0  # seconds between signs of life
MOST = 1 << 16


class ArchiveInUse(LedgerInUse):
    """Another command writes into the archive."""


class Holder(msgspec.Struct, frozen=True):
    """Who writes. `machine` tells one process table from another: a pid means nothing elsewhere."""

    nonce: str
    host: str
    machine: str
    pid: int
    started: int
    since: str
    what: str

    @property
    def shown(self) -> str:
        """For messages."""
        return f"{self.what} on {self.host:.80} (pid {self.pid}), since {self.since:.40}"

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine and is no more."""
        return self.machine == machine() and started(self.pid) != self.started


class Lease:
    """The right to write. Used by several threads once it was taken."""

    def __init__(self, storage: Storage, what: str) -> None:
        pid = os.getpid()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._storage = storage
        self._mine = Holder(secrets.token_hex(8), socket.gethostname(), machine(), pid, started(pid), now, what)
        self._data = msgspec.json.encode(self._mine) + b"\n"
        self._name = ""
        self._alive = self._lost = False
        self._end = threading.Event()
        self._beating = threading.Lock()
        self._seen = time.monotonic()

    def take(self) -> None:
        """Raises ArchiveInUse when another writes. May be called again when the store was away."""
        if self._alive:
            return
        others = _numbers(self._storage)
        self._refuse(others)
        name = self._name or layout.writer_name(max(others.values(), default=0) + 1)
        if not self._storage.create(name, self._data):
            raise self._in_use(_holder(self._storage, name))
        self._name = name
        try:
            self._refuse(_numbers(self._storage))
        except ArchiveInUse:
            self.release()
            raise
        self._storage.delete_files(other for other in others if other != name)
        self._seen = time.monotonic()
        self._alive = True
        threading.Thread(target=self._live, name="lease", daemon=True).start()

    def check(self) -> None:
        """Raises ArchiveInUse when another took us for dead."""
        if time.monotonic() - self._seen > STALE:
            self._beat()
        if self._lost:
            raise self._in_use(None)

    def release(self) -> None:
        """Others may write."""
        self._end.set()
        with self._beating:  # a sign of life under way would write it anew
            if self._name and not self._lost:
                with suppress(MigrateError):  # the store is away: it grows stale by itself
                    self._storage.delete_files([self._name])
            self._name = ""

    def _refuse(self, names: dict[str, int]) -> None:
        """Raises ArchiveInUse when one of these but ours is alive."""
        silent: dict[str, float] = {}
        for name in names:
            holder = None if name == self._name else _holder(self._storage, name)
            if name == self._name or (holder and (holder.nonce == self._mine.nonce or holder.gone)):
                continue  # ours, by a try whose answer was lost; or nobody's
            silent = silent or _silence(self._storage)
            if silent.get(name, STALE) < STALE:
                raise self._in_use(holder)

    def _in_use(self, holder: Holder | None) -> ArchiveInUse:
        who = f"{holder.shown}" if holder else "another command"
        return ArchiveInUse(
            f"{self._storage.shown} is being written by {who}.",
            "Wait until that is done, then run the same command again. "
            f"Where it died, it is taken for dead {STALE / 60:.0f} minutes after its last sign of life.",
        )

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(MigrateError):  # the store is away: the next sign of life may come through
                self._beat()

    def _beat(self) -> None:
        with self._beating:
            if not self._name:  # it was given back meanwhile
                return
            holder = _holder(self._storage, self._name)
            if holder is None or holder.nonce != self._mine.nonce:
                self._lost = not self._end.is_set()
                return
            with self._storage.part() as part:
                part.write(self._data)
                part.become(self._name)
            self._seen = time.monotonic()


def _numbers(storage: Storage) -> dict[str, int]:
    names = (entry.name for entry in storage.walk(layout.WRITERS))
    return {name: number for name in names if (number := layout.writer_number(name)) is not None}


def _holder(storage: Storage, name: str) -> Holder | None:
    """Who made it; None when it is gone, or nobody can read it."""
    try:
        with storage.open(name) as file:
            return msgspec.json.decode(file.read(MOST), type=Holder)
    except (NotFound, msgspec.MsgspecError):
        return None


def _silence(storage: Storage) -> dict[str, float]:
    """How long ago each gave its last sign of life, by the clock of the store: ours may go wrong."""
    probe = f"{layout.WRITERS}/clock-{secrets.token_hex(4)}"
    storage.create(probe, b"now\n")
    try:
        times = {entry.name: entry.modified for entry in storage.walk(layout.WRITERS)}
    finally:
        storage.delete_files([probe])
    now = times.get(probe, time.time())
    return {name: now - modified for name, modified in times.items()}


@cache
def machine() -> str:
    """Names this process table: the same for two processes exactly when they can see each other's pids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return layout.sha256_of("\0".join(parts).encode("utf-8", "surrogateescape"))[:16]


def started(pid: int) -> int:
    """When the process of this pid began, in the system's own count; 0 when there is none, 1 where it is not told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        pass
    if Path("/proc/self/stat").exists() or pid <= 0:
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:  # it runs, under another user
        return 1
    return 1
