"""The old files taken away: exactly those that were copied, are as they were then, and whose copies are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mlmigrate.relocate.copying import base_of
from mlmigrate.relocate.ledger import Copied, Ledger
from mlmigrate.relocate.sources import Found, Sources
from mlmigrate.storage.objects import Objects

AT_ONCE = 1000


@dataclass
class Deleter:
    """Deletes, and says what it left."""

    book: Ledger
    sources: Sources
    target: Objects
    left: list[str] = field(default_factory=list)

    def run(self) -> tuple[tuple[int, int], list[str]]:
        """How many files and bytes are gone, and what was left with the reason."""
        files = size = 0
        self.book.set(deleted="begun")
        found = self._fit()
        while batch := list(islice(found, AT_ONCE)):
            for place in {id(one.place): one.place for one in batch}.values():
                place.delete([one.key for one in batch if one.place is place])
            self.book.many("update file set gone = 1 where at = ?", [(one.at,) for one in batch])
            files += len(batch)
            size += sum(one.stored.size for one in batch)
        for owner in self.book.owners("state = 'switched' and at <> '' and at not like '%://%'"):
            _remove_empty(Path(owner.at), Path(base_of(owner)))
        return (files, size), self.left

    def _fit(self) -> Iterator[Found]:
        there: dict[str, bool] = {}
        for one in self.sources.files("switched"):
            known = self.book.copied(one.at)
            if known is None or known.gone:
                self.left.append(f"{one.at}: was not copied")
            elif (known.size, known.version) != (one.stored.size, one.stored.version):
                self.left.append(f"{one.at}: changed since it was copied")
            elif why := self._without_copy(known, there):
                self.left.append(f"{one.at}: {why}")
            else:
                yield one
        self.left += [what for _, what in self.sources.odd]

    def _without_copy(self, known: Copied, there: dict[str, bool]) -> str:
        """Why the copy is not the one that we made; "" when it is."""
        if not there:
            self.book.do("delete from there")
            rows = ((one.key, one.size, one.version) for one in self.target.list())
            self.book.many("insert or replace into there values (?, ?, ?)", rows)
            there["listed"] = True
        found = self.book.one("select size, version from there where dest = ?", known.dest)
        if found is None:
            return "its copy is not there any more"
        return "" if found == (known.size, known.placed) else "its copy was written since"


def _remove_empty(folder: Path, base: Path) -> None:
    """The folder and those below it that are empty, and those above it that became so, up to `base`.

    A folder `artifacts` beside a meta.yaml is a file store's own, and stays.
    """
    for below in sorted((one for one in folder.rglob("*") if one.is_dir() and not one.is_symlink()), reverse=True):
        with suppress(OSError):
            below.rmdir()
    at = folder
    while at != base and at.is_relative_to(base) and not (at.parent / "meta.yaml").exists():
        try:
            at.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        at = at.parent
