"""Whether it is good: values name the new place, and files download through the tracker's own client as they were."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mlmigrate.adapters.estate import Downloads
from mlmigrate.errors import MigrateError, NotFound, UsageError
from mlmigrate.model import Finding
from mlmigrate.relocate import places
from mlmigrate.relocate.ledger import Copied, Ledger, Owner
from mlmigrate.relocate.sources import Sources
from mlmigrate.storage.objects import CHUNK, Objects, Stored, digest_of, parts_in

AT_ONCE = 8
MD5 = 32  # characters of an etag that is the md5 of the file, where nothing is encrypted


@dataclass
class Checked:
    """What a check found."""

    files: int = 0
    of: int = 0
    size: int = 0
    directly: int = 0  # whose names MLflow's client corrupts: read without it
    lacking: bool = False  # whether MLflow's client lacks a package for the store, so that some were read without it
    changed: int = 0  # written at the new place since: their owners' business
    values: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass
class Checker:
    """Downloads what was copied, and compares digests.

    client   the tracker's own; None: files are read directly
    server   whether the client asks a server, which it must for what lies behind a proxy
    """

    book: Ledger
    sources: Sources
    target: Objects
    client: Downloads | None
    server: bool
    told: Callable[[int, int], object] = lambda _bytes, _files: None

    def files(self, number: int, seed: int) -> Checked:
        """So many files at random (0: all)."""
        done = Checked(of=self.book.count(f"select count(*) from file where {_SWITCHED}"))  # noqa: S608  ours
        chosen = self._chosen(number, done.of, seed)
        with tempfile.TemporaryDirectory(prefix="mlmigrate-check-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
            waiting: set[Future[Outcome]] = set()
            for place, one in enumerate(chosen):
                waiting.add(pool.submit(self._one, one, Path(folder, str(place))))
                if len(waiting) >= 4 * AT_ONCE:
                    waiting = self._take(waiting, done)
            while waiting:
                waiting = self._take(waiting, done)
        return done

    def _chosen(self, number: int, of: int, seed: int) -> Iterator[Copied]:
        """Evenly at random, in the order of the ledger."""
        left, want = of, number or of
        die = random.Random(seed)  # noqa: S311  a sample
        for one in self.book.files(_SWITCHED):
            if die.random() * left < want:
                want -= 1
                yield one
            left -= 1

    def _take(self, waiting: set[Future[Outcome]], done: Checked) -> set[Future[Outcome]]:
        ended, rest = wait(waiting, return_when=FIRST_COMPLETED)
        for future in ended:
            outcome = future.result()
            done.files += 1
            done.size += outcome.size
            done.directly += outcome.directly
            done.lacking |= outcome.lacking
            done.changed += outcome.changed
            if outcome.finding is not None:
                done.findings.append(outcome.finding)
            self.told(outcome.size, 1)
        return rest

    def _one(self, one: Copied, folder: Path) -> Outcome:
        owner = self.book.owner_at(one.place)
        if owner is None:
            return Outcome()
        rest = one.dest[len(owner.dest) + 1 :] if owner.dest else one.dest
        try:
            file, lacking = None, False
            try:
                file = self._downloaded(owner, rest, one, folder)
            except UsageError:  # a store that MLflow needs a package for, which is not here: we do not
                lacking = True
            try:
                size, equal = self._compared(one, owner, file)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except MigrateError as error:
            return self._unread(one, owner, rest, error)
        if equal:
            return Outcome(size, directly=int(file is None), lacking=lacking)
        there = self._there(one)
        if there is not None and there.version != one.placed:
            return Outcome(size, changed=1)
        return Outcome(size, finding=_finding(owner, rest, "*", one.digest, "other bytes"))

    def _downloaded(self, owner: Owner, rest: str, one: Copied, folder: Path) -> Path | None:
        """The file as MLflow's client gives it; None where it is to be read directly."""
        if self.client is None or not places.nameable(one.dest):
            return None
        if self.server and owner.kind == "proxy":
            found = _of_run(one.dest)
            return self.client.of_run(*found, folder) if found else None
        if self.server and owner.kind == "run":
            return self.client.of_run(owner.owner, rest, folder)
        if owner.kind == "proxy":
            return None
        return self.client.of_uri(places.new_uri(self.target.url, one.dest), folder)

    def _compared(self, one: Copied, owner: Owner, file: Path | None) -> tuple[int, bool]:
        """How large the file is, and whether it is the one that was copied."""
        if file is not None:
            if not file.is_file():  # of a folder, MLflow's client gives the path whatever lies there
                raise NotFound(f"MLflow's client gives no file for {one.dest}.")
            with file.open("rb") as stream:
                return self._equal(stream, one, owner)
        with self.target.open(one.dest) as stream:
            return self._equal(stream, one, owner)

    def _equal(self, stream: BinaryIO, one: Copied, owner: Owner) -> tuple[int, bool]:
        if one.digest.startswith("sha256:"):
            digest, size = digest_of(stream, parts_in(one.digest))
            return size, digest == one.digest
        sha, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
            md5.update(chunk)
            size += len(chunk)
        etag = one.digest.removeprefix("etag:").strip('"')
        if size != one.size:
            return size, False
        if len(etag) == MD5 and md5.hexdigest() == etag:
            return size, True
        place, key = self.sources.of_file(one.at, owner.at)
        with place.open(key, version=one.version) as source:
            return size, digest_of(source)[0] == f"sha256:{sha.hexdigest()}"

    def _unread(self, one: Copied, owner: Owner, rest: str, error: MigrateError) -> Outcome:
        there = self._there(one)
        if there is None:
            return Outcome(finding=_finding(owner, rest, "+", one.digest, "not there any more"))
        if there.version != one.placed:
            return Outcome(changed=1)
        return Outcome(finding=_finding(owner, rest, "!", "", error.message))

    def _there(self, one: Copied) -> Stored | None:
        """What the new place has now: another version is somebody's own, who wrote there since."""
        try:
            return self.target.head(one.dest)
        except NotFound:
            return None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file."""

    size: int = 0
    directly: int = 0
    lacking: bool = False
    changed: int = 0
    finding: Finding | None = None


_SWITCHED = "gone = 0 and place in (select place from owner where state = 'switched' or kind = 'proxy')"


def _of_run(dest: str) -> tuple[str, str] | None:
    """The run and the path of a file that a server keeps; None for another owner's."""
    parts = dest.split("/")
    if len(parts) > 3 and parts[2] == "artifacts" and parts[1] not in ("models", "traces"):  # noqa: PLR2004  as MLflow lays them
        return parts[1], "/".join(parts[3:])
    return None


def _finding(owner: Owner, path: str, mark: str, source: str, target: str) -> Finding:
    return Finding(mark, owner.experiment, owner.owner, f"artifact {path!r}", source, target)


def values(book: Ledger) -> tuple[int, list[Finding]]:
    """Each value that was switched says what the switch meant, or what its owner made of it since; at the last look."""
    sql = (
        'select e.old, e.new, e.kind, e.owner, c.value, c.experiment, e."table", e."column" from edit e '
        "join switch s on s.id = e.switch and s.undone is null and s.committed is not null "
        'join cell c on c."table" = e."table" and c."key" = e."key" and c."column" = e."column"'
    )
    number, findings = 0, list[Finding]()
    book.do('create index if not exists temp.cell_key on cell ("table", "key", "column")')
    for old, new, _kind, owner, value, experiment, table, column in book.rows(sql):
        number += 1
        if value == old:
            findings.append(Finding("*", experiment, owner, f"{table}.{column}", new, value))
    return number, findings


def a_seed() -> int:
    """A seed that is short enough to type."""
    return random.randrange(1_000_000)  # noqa: S311  a sample
