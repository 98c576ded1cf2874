"""The files of owners, as their places list them: folders one by one, object stores many owners at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlmigrate.relocate import places
from mlmigrate.relocate.ledger import Ledger, Owner
from mlmigrate.storage.objects import Objects, Stored, open_objects
from mlmigrate.storage.throttle import UNLIMITED, Throttle

Which = Literal["todo", "switched"]
WHICH: dict[Which, str] = {
    "todo": "state = 'todo'",
    "switched": "(state = 'switched' or (kind = 'proxy' and state = 'todo'))",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A file of an owner.

    at      where it is: the path of a file here, or a URL
    key     what it is called in `place`
    to      the key that it shall have below the new place
    """

    owner: Owner
    place: Objects
    key: str
    at: str
    to: str
    stored: Stored


@dataclass
class Sources:
    """The old places, opened when they are needed."""

    book: Ledger
    env: Mapping[str, str]
    throttle: Throttle = field(default_factory=lambda: UNLIMITED)
    opener: Callable[[str, Mapping[str, str], Throttle], Objects] = open_objects
    odd: list[tuple[Owner, str]] = field(default_factory=list)
    lists: int = 0
    _opened: dict[str, Objects] = field(default_factory=dict)

    def files(self, which: Which = "todo", only: Iterable[Owner] | None = None) -> Iterator[Found]:
        """The files of these owners; or of those alone. What cannot be moved is put to `odd`.

        What a server keeps behind its proxy is always among them: nobody can tell when it was restarted.
        """
        self.odd = []
        if only is not None:
            for owner in only:
                yield from self._listed(owner.at, owner)
            return
        alone = "at <> '' and (kind = 'proxy' or at not like '%://%')"
        for owner in self.book.owners(f"{WHICH[which]} and {alone}"):
            yield from self._listed(owner.at, owner)
        for root in self._roots(which):
            yield from self._listed(root, None, which)

    def _roots(self, which: Which) -> list[str]:
        """The places in object stores that hold all those owners, none inside another."""
        rows = self.book.rows(
            f"select distinct root from owner where {WHICH[which]} and at like '%://%' and kind <> 'proxy' "  # noqa: S608  ours
            "order by 1"
        )
        roots: list[str] = []
        known: set[str] = set()
        for (root,) in rows:
            if not any(parent in known for parent in places.parents(root)):
                roots.append(root)
                known.add(root)
        return roots

    def _listed(self, at: str, owner: Owner | None, which: Which = "todo") -> Iterator[Found]:
        remote = "://" in at
        place = self.place(at)
        below = _prefix(at) if remote else ""
        match = _Match(self.book, which, owner, at)
        self.lists += 1
        for stored in place.list(below):
            if stored.key.endswith("/") and not stored.size:
                continue  # a folder's marker, as consoles leave them
            where = f"{place.url}/{stored.key}"
            found = match.of(where)
            if found is not None:
                whose, rest = found
                to = f"{whose.dest}/{rest}" if whose.dest else rest
                yield Found(whose, place, stored.key, where, to, stored)
        if owner is not None:
            self.odd += [(owner, one) for one in getattr(place, "odd", ())]

    def place(self, at: str) -> Objects:
        """The place that holds `at`: a folder, or the whole bucket."""
        if "://" not in at:
            return self.opener(at, self.env, self.throttle)
        bucket, _ = places.bucket_of(at)
        if bucket not in self._opened:
            self._opened[bucket] = self.opener(bucket, self.env, self.throttle)
        return self._opened[bucket]

    def of_file(self, at: str, owner_at: str) -> tuple[Objects, str]:
        """The place and the key of a file that was copied from `at`."""
        place = self.place(owner_at)
        return place, at[len(place.url) + 1 :]


def _prefix(at: str) -> str:
    _, key = places.bucket_of(at)
    return f"{key.rstrip('/')}/" if key else ""


@dataclass
class _Match:
    """Whose a listed file is. Those of one owner mostly come together."""

    book: Ledger
    which: Which
    sole: Owner | None
    base: str
    _last: Owner | None = None
    _simple: bool = False

    def of(self, where: str) -> tuple[Owner, str] | None:
        """The owner, and the way from its place; None for a file that is no owner's."""
        if self.sole is not None and not self._nested(self.sole):
            return self.sole, places.rest_of(where, self.base)
        place = where if self.sole is None else f"{self.sole.place}/{places.rest_of(where, self.base)}"
        if self._last is not None and self._simple and place.startswith(self._last.place + "/"):
            return self._last, places.rest_of(place, self._last.place)
        owner = self.book.owner_of(list(places.parents(place))[1:])
        if owner is None or not self._wanted(owner):
            return None
        self._last, self._simple = owner, not self._has_below(owner)
        return owner, places.rest_of(place, owner.place)

    def _wanted(self, owner: Owner) -> bool:
        if self.sole is not None:
            return owner.place == self.sole.place
        return owner.state == self.which

    def _nested(self, owner: Owner) -> bool:
        if self._last is None:
            self._last, self._simple = owner, not self._has_below(owner)
        return not self._simple

    def _has_below(self, owner: Owner) -> bool:
        return bool(
            self.book.count(
                "select 1 from owner where place > ? and place < ? limit 1", owner.place + "/", owner.place + "0"
            )
        )
