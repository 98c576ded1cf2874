"""What was written at the new place since the switch goes back to the old one, before the switch is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from mlmigrate.relocate import places
from mlmigrate.relocate.copying import Pass
from mlmigrate.relocate.ledger import Copied, Ledger, Owner
from mlmigrate.relocate.sources import Sources
from mlmigrate.storage.moving import Moved, Mover, Task
from mlmigrate.storage.objects import Objects, Stored


@dataclass
class Returner:
    """Brings files back. `mover` makes one into an old place."""

    book: Ledger
    sources: Sources
    target: Objects
    mover: Callable[[Objects], Mover]

    def run(self) -> Pass:
        """All of it. What changed at both places is not overwritten."""
        done = Pass()
        self.book.do("delete from todo")
        self.book.many("insert or replace into todo values (?, ?, ?, ?, ?, ?)", self._todo(done))
        rows = self.book.rows("select at, dest, key, size, version, place from todo order by place, at")
        for place, some in groupby(rows, key=lambda row: str(row[5])):
            owner = self.book.owner_at(place)
            if owner is not None:
                self._back(owner, list(some), done)
        self.book.flush()
        return done

    def _todo(self, done: Pass) -> Iterator[tuple[object, ...]]:
        for stored in self.target.list():
            known = self.book.copied_to(stored.key)
            if known is not None and known.placed == stored.version:
                continue
            owner = self.book.owner_to(list(places.parents(stored.key)))
            if owner is None or owner.state != "switched" or not owner.at:
                continue
            rest = stored.key[len(owner.dest) + 1 :]
            at = f"{owner.at}/{rest}"
            if self._changed_there(at, owner, known):
                done.conflicts.append((owner, at, "both places changed"))
                continue
            yield at, stored.key, rest, stored.size, stored.version, owner.place

    def _changed_there(self, at: str, owner: Owner, known: Copied | None) -> bool:
        place, key = self.sources.of_file(at, owner.at)
        there = place.head(key)
        return there is not None and (known is None or known.version != there.version)

    def _back(self, owner: Owner, rows: list[tuple[str, str, str, int, str, str]], done: Pass) -> None:
        old, at_of = None, dict[str, str]()
        tasks = []
        for at, dest, _, size, version, _ in rows:
            old, key = self.sources.of_file(at, owner.at)
            at_of[dest] = at
            tasks.append(Task(self.target, dest, size, version, key))
        if old is None:
            return
        for end in self.mover(old).move(tasks):
            at = at_of[end.task.key]
            if isinstance(end, Moved):
                was = Stored(end.task.key, end.task.size, end.task.version)
                done.copied += 1
                done.copied_size += was.size
                self.book.note(
                    Copied(at, was.key, was.size, end.stored.version, end.digest or "", was.version, owner.place)
                )
            else:
                done.failed += 1
                row = (at, owner.place, owner.shown, type(end.error).__name__, end.error.message)
                self.book.do("replace into failure values (?, ?, ?, ?, ?)", *row)
