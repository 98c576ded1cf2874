"""The moment: every value that names an old place names the new one, all at once, and the way back.

The journal of what is changed is on the disk before the store's commit.  What a kill leaves open, the store
itself closes: a value that is new was switched, one that is old was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mlmigrate.adapters.estate import Cell, Edit, Estate
from mlmigrate.relocate.ledger import Ledger, Owner
from mlmigrate.relocate.places import below
from mlmigrate.relocate.survey import Survey

MARGIN = 60_000  # ms: clocks of training machines and ours may differ by so much
MOST_OWNERS = 200  # that are looked at once more while writers wait; the sweep finds what the others wrote


@dataclass(frozen=True, slots=True)
class Switched:
    """A switch that was made."""

    edits: int = 0
    not_made: tuple[Edit, ...] = ()
    seconds: float = 0.0
    active: tuple[Owner, ...] = ()

    def and_then(self, other: Switched) -> Switched:
        """Two switches, one soon after the other."""
        seconds = max(self.seconds, other.seconds)
        return Switched(self.edits + other.edits, self.not_made + other.not_made, seconds, self.active + other.active)


@dataclass(frozen=True, slots=True)
class Undone:
    """A switch that was taken back. `changed`: values that others had changed; `stay`: made since, at the new place."""

    edits: int = 0
    changed: tuple[Edit, ...] = ()
    stay: tuple[Cell, ...] = ()


@dataclass
class Switch:
    """Makes the switch of one estate, and takes it back."""

    estate: Estate
    book: Ledger
    survey: Survey

    def recover(self) -> None:
        """What a kill left open is closed, by what the store says."""
        for number in self.book.switches("committed is null"):
            new = [edit for edit, state in self._states(number) if state == "new"]
            if new:
                missed = [edit for edit, state in self._states(number) if state != "new"]
                self.book.close_switch(number, missed)
                self._mark_owners()
            else:
                self.book.drop_switch(number)

    def _states(self, number: int) -> Iterator[tuple[Edit, str]]:
        """Each edit of a switch and what stands there now: "new", "old", "other" or "gone"."""
        self.book.look(self.estate.cells())
        sql = 'select value from cell where "table" = ? and "key" = ? and "column" = ?'
        self.book.do('create index if not exists temp.cell_key on cell ("table", "key", "column")')
        for edit, *_ in self.book.edits(number):
            row = self.book.one(sql, edit.table, json.dumps(edit.key), edit.column)
            yield edit, _state(edit, None if row is None else str(row[0]))

    def make(self, since: float, last_look: Callable[[Iterable[Owner]], object]) -> Switched:
        """The switch. `last_look` copies what these owners wrote since `since` (s), while writers wait."""
        active_before = {owner.place for owner in self.book.owners("active and state = 'todo'")}
        begun = time.monotonic()
        with self.estate.switching() as store:
            self.survey.look(store.cells())
            last_look(self._lately(active_before, since))
            number = self.book.open_switch(self.survey.edits())
            not_made = store.edit(edit for edit, *_ in self.book.edits(number))
            store.commit()
        seconds = time.monotonic() - begun
        active = tuple(self.book.owners("active and state = 'todo' and kind <> 'proxy'"))
        self.book.close_switch(number, not_made)
        before = json.loads(self.book.get("active") or "[]")
        named = sorted({*before, *(owner.owner for owner in active)})
        self.book.set(active=json.dumps(named), checked="", switched=str(time.time()))
        self._mark_owners()
        edits = self.book.count("select count(*) from edit where switch = ?", number)
        if not edits:
            self.book.drop_switch(number)
        return Switched(edits, tuple(not_made), seconds, active)

    def _lately(self, before: set[str], since: float) -> list[Owner]:
        """Owners that may have written since the last pass."""
        lately = self.book.owners(
            "state = 'todo' and kind <> 'proxy' and at <> '' and (active or fresh or changed >= ?)",
            int(since * 1000) - MARGIN,
        )
        found = {owner.place: owner for owner in lately}
        for place in before - found.keys():
            owner = next(self.book.owners("place = ? and state = 'todo'", place), None)
            if owner is not None and owner.at:
                found[place] = owner
        return list(found.values())[:MOST_OWNERS]

    def _mark_owners(self) -> None:
        """Owners whose values name the new place are switched."""
        self.book.do("update owner set state = 'switched' where state = 'todo' and kind <> 'proxy'")

    def undo(self) -> Undone:
        """All switches taken back, the last first, in one transaction; where others wrote since, theirs stays."""
        numbers = self.book.switches("committed is not null and undone is null")
        made, changed = 0, list[Edit]()
        with self.estate.switching() as store:
            for number in numbers:
                self.book.look(store.cells())
                back, others = self._way_back(number)
                missed = store.edit(edit.undone for edit in back)
                made += len(back) - len(missed)
                changed += [*others, *(edit.undone for edit in missed)]
            self.book.look(store.cells())
            store.commit()
        for number in numbers:
            self.book.do("update switch set undone = ? where id = ?", time.time(), number)
        self.book.do("update owner set state = 'todo', why = '' where state = 'switched'")
        self.book.set(checked="")
        new = self.survey.new_place
        stay = tuple(cell for cell, old in self.book.cells("old <> ''") if below(old, new))
        return Undone(made, tuple(changed), stay)

    def _way_back(self, number: int) -> tuple[list[Edit], list[Edit]]:
        """The edits of a switch whose values still stand, and those that others changed."""
        sql = 'select value from cell where "table" = ? and "key" = ? and "column" = ?'
        self.book.do('create index if not exists temp.cell_key on cell ("table", "key", "column")')
        back, others = list[Edit](), list[Edit]()
        for edit, *_ in self.book.edits(number):
            row = self.book.one(sql, edit.table, json.dumps(edit.key), edit.column)
            state = _state(edit, None if row is None else str(row[0]))
            if state == "new":
                back.append(edit)
            elif state == "other":
                others.append(edit)
        return back, others


def _state(edit: Edit, value: str | None) -> str:
    if value is None:
        return "gone"
    return "new" if value == edit.new else "old" if value == edit.old else "other"
