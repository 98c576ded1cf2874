"""Copying, again and again until nothing is left: what a ledger and the target say is there is not sent again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from mlmigrate.errors import MigrateError
from mlmigrate.relocate.ledger import Copied, Ledger, Owner
from mlmigrate.relocate.sources import Found, Sources
from mlmigrate.storage.moving import Failed, Moved, Mover, Task
from mlmigrate.storage.objects import PART, BadKey, Changed, Objects, Stored, digest_of, part_size, parts_in

MOST_GROUPS = 1000  # old places that are told of one by one
MOST_NAMED = 10_000  # owners that are named
AT_ONCE = 500  # files that the ledger is asked about at once


@dataclass
class Group:
    """Files below one old place."""

    owners: int = 0
    files: int = 0
    size: int = 0
    todo: int = 0
    todo_size: int = 0
    puts: int = 0
    large: int = 0
    last: str = ""

    def more(self, size: int) -> None:
        """One more file that is to be copied."""
        self.todo += 1
        self.todo_size += size
        self.large += size > PART
        self.puts += 1 if size <= PART else 2 + -(-size // part_size(size))


@dataclass
class Pass:
    """What one look at the old places brought. `wrote`: owners whose files came, and how many."""

    seen: int = 0
    size: int = 0
    todo: int = 0
    todo_size: int = 0
    copied: int = 0
    copied_size: int = 0
    sent: int = 0
    failed: int = 0
    changing: int = 0
    held: list[Owner] = field(default_factory=list)
    conflicts: list[tuple[Owner, str, str]] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    wrote: dict[str, tuple[Owner, int]] = field(default_factory=dict)
    at_last: tuple[str, Group] | None = None

    def group(self, one: Found) -> Group:
        """The old place that a file is counted with. Those of one owner mostly come together."""
        if self.at_last is not None and self.at_last[0] == one.owner.place:
            group = self.at_last[1]
            group.files += 1
            group.size += one.stored.size
            return group
        name = base_of(one.owner)
        group = self.groups.setdefault(name if len(self.groups) < MOST_GROUPS else "others", Group())
        group.files += 1
        group.size += one.stored.size
        if group.last != one.owner.place:
            group.last = one.owner.place
            group.owners += 1
        self.at_last = one.owner.place, group
        return group

    def add(self, other: Pass) -> None:
        """Both together; what was seen is what was seen last."""
        self.seen, self.size = other.seen, other.size
        self.copied += other.copied
        self.copied_size += other.copied_size
        self.sent += other.sent
        self.failed, self.changing, self.conflicts = other.failed, other.changing, other.conflicts
        self.held += other.held

    def with_wrote(self, before: Pass) -> None:
        """Two sweeps as one."""
        self.copied += before.copied
        self.copied_size += before.copied_size
        for place, (owner, number) in before.wrote.items():
            self.wrote[place] = (owner, number + self.wrote.get(place, (owner, 0))[1])


@dataclass
class Copier:
    """Brings files to the target, and their histories to the ledger.

    told     is told of bytes and files that arrived
    listed   whether the target was listed by this command
    """

    book: Ledger
    sources: Sources
    target: Objects
    mover: Mover
    part_size: int = 0
    listed: bool = False
    there: int = 0

    def look_at_target(self) -> None:
        """What the target holds, in one listing."""
        self.book.do("delete from there")
        self.book.many(
            "insert or replace into there values (?, ?, ?)",
            ((one.key, one.size, one.version) for one in self.target.list()),
        )
        self.there = self.book.count("select count(*) from there")
        self.listed = True

    def gather(self, found: Iterable[Found], *, after_switch: bool = False) -> Pass:
        """What there is to copy, put down in a list. After a switch, what others wrote at the new place stays."""
        done = Pass()
        self.book.do("delete from todo")
        with self.book.writing():
            self.book.many(
                "insert or replace into todo values (?, ?, ?, ?, ?, ?)", self._todo(found, done, after_switch)
            )
        self.book.flush()
        self._hold_odd(done)
        return done

    def _todo(self, found: Iterable[Found], done: Pass, after_switch: bool) -> Iterator[tuple[object, ...]]:
        known_of = self._knows(found)
        for one, known, there in known_of:
            group = done.group(one)
            done.seen += 1
            done.size += one.stored.size
            guarded = after_switch or one.owner.kind == "proxy"
            if known is not None and self._is_there(known, there, one, guarded=guarded):
                continue
            if (why := self._taken(one, known, there, guarded=guarded)) is not None:
                if why:
                    done.conflicts.append((one.owner, one.at, why))
                continue
            done.todo += 1
            done.todo_size += one.stored.size
            group.more(one.stored.size)
            yield one.at, one.to, one.key, one.stored.size, one.stored.version, one.owner.place

    def _knows(self, found: Iterable[Found]) -> Iterator[tuple[Found, Copied | None, tuple[int, str] | None]]:
        """Files with what is known of their copies and of what the target lists, some hundreds at a time."""
        files = iter(found)
        while some := list(islice(files, AT_ONCE)):
            known = {one.at: one for one in self.book.copies([one.at for one in some])}
            there = self.book.listed([one.to for one in some]) if self.listed else {}
            yield from ((one, known.get(one.at), there.get(one.to)) for one in some)

    def move(self, done: Pass) -> Pass:
        """Copies what was put down."""
        on_way: dict[tuple[int, str], Found] = {}
        if not done.todo:
            return done
        try:
            for end in self.mover.move(self._tasks(on_way)):
                one = on_way.pop((id(end.task.source), end.task.key))
                if isinstance(end, Moved):
                    self._moved(end, one, done)
                else:
                    self._failed(end, one, done)
        finally:
            self.book.flush()
        return done

    def _tasks(self, on_way: dict[tuple[int, str], Found]) -> Iterator[Task]:
        sql = "select at, dest, key, size, version, place from todo order by place, at"
        owner: Owner | None = None
        for at, dest, key, size, version, place in self.book.rows(sql):
            if owner is None or owner.place != place:
                owner = next(self.book.owners("place = ?", place))
                where = self.sources.place(owner.at)
            on_way[id(where), key] = Found(owner, where, key, at, dest, Stored(key, size, version))
            yield Task(where, key, size, version, dest)

    def _is_there(self, known: Copied, there: tuple[int, str] | None, one: Found, *, guarded: bool) -> bool:
        """Whether the file was copied as it is now, and the copy has not gone."""
        stored = one.stored
        if known.size != stored.size or known.version != stored.version or known.dest != one.to:
            return False
        if not self.listed:
            return True
        return there is not None and (guarded or there == (known.size, known.placed))

    def _taken(self, one: Found, known: Copied | None, listed: tuple[int, str] | None, *, guarded: bool) -> str | None:
        """Why the file cannot go where it should ("": it is there already); None when it can.

        Before a switch nobody uses the new place, and what is there was brought by us. After it (and behind a
        proxy, where nobody knows) what is not as we left it is another's, and never overwritten.
        """
        other = self.book.copied_to(one.to)
        if other is not None and other.at != one.at and not other.gone:
            return f"{other.at} was copied there"
        if (listed is None) if self.listed else not guarded:
            return None
        there = self.target.head(one.to)
        if there is None or (known is not None and there.version == known.placed) or not (guarded or _small(one)):
            return None  # whoever sends large files looks first
        if self._equal(one, there):
            self._note(one, one.stored, there, there.digest)
            return ""
        another = "both places changed" if known is not None else "the new place has another file of this name"
        return another if guarded else None

    def _equal(self, one: Found, there: Stored) -> bool:
        """Whether the target's file is this one, by its digest."""
        if there.size != one.stored.size:
            return False
        digest = there.digest
        try:
            if not digest.startswith("sha256:"):
                parts = part_size(there.size, self.part_size) if there.size > PART else 0
                with self.target.open(one.to) as stream:
                    digest = digest_of(stream, parts)[0]
            with one.place.open(one.key, version=one.stored.version) as stream:
                return digest_of(stream, parts_in(digest))[0] == digest
        except MigrateError:
            return False

    def _moved(self, end: Moved, one: Found, done: Pass) -> None:
        done.copied += 1
        done.copied_size += end.stored.size
        done.sent += end.sent
        if len(done.wrote) < MOST_NAMED or one.owner.place in done.wrote:
            done.wrote[one.owner.place] = (one.owner, done.wrote.get(one.owner.place, (one.owner, 0))[1] + 1)
        was = Stored(one.key, end.task.size, end.task.version)
        self._note(one, was, end.stored, end.digest or end.stored.digest)
        self.book.do("delete from failure where at = ?", one.at)

    def _note(self, one: Found, was: Stored, now: Stored, digest: str) -> None:
        self.book.note(Copied(one.at, one.to, was.size, was.version, digest, now.version, one.owner.place))

    def _failed(self, end: Failed, one: Found, done: Pass) -> None:
        """A file that cannot go holds its owner back; one that is still being written is left to the sweep."""
        error = end.error
        if self._gone(one):
            return
        if isinstance(error, Changed):
            done.changing += 1
        elif isinstance(error, BadKey):
            self._hold(one.owner, f"{one.at}: {error.message}", done)
        else:
            done.failed += 1
        self.book.do(
            "replace into failure values (?, ?, ?, ?, ?)",
            one.at,
            one.owner.place,
            one.owner.shown,
            type(error).__name__,
            error.message,
        )

    def _gone(self, one: Found) -> bool:
        """Whether its owner deleted the file meanwhile."""
        try:
            return one.place.head(one.key) is None
        except MigrateError:
            return False

    def _hold_odd(self, done: Pass) -> None:
        """An owner with something that cannot be copied (a link) stays where it is, whole."""
        for owner, what in self.sources.odd:
            self._hold(owner, what, done)
            self.book.do("replace into failure values (?, ?, ?, 'BadData', ?)", what, owner.place, owner.shown, what)

    def _hold(self, owner: Owner, why: str, done: Pass) -> None:
        held = "update owner set state = 'held', why = ? where place = ? and state = 'todo'"
        if self.book.do(held, why, owner.place):
            done.held.append(owner)


def _small(one: Found) -> bool:
    return one.stored.size <= PART


def base_of(owner: Owner) -> str:
    """The place that holds many owners: where the way below it begins that the new place has too."""
    at = (owner.at or owner.place).rstrip("/").split("/")
    for part in reversed(owner.dest.split("/") if owner.dest else []):
        if at[-1:] != [part]:
            break
        at.pop()
    return "/".join(at) or "/"
