"""What a store's values mean for a move: whose files go where, and what is left alone and why.

Every run, model and trace owns the files below its place; so does a registered version whose files lie below
the place of an experiment though their run is gone.  All other values follow from where those go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlmigrate.adapters.estate import Cell, Edit
from mlmigrate.errors import BadData, Conflict
from mlmigrate.relocate import places
from mlmigrate.relocate.ledger import Ledger

OWNERS = ("run", "model", "trace")
PROXY_OWNER = "@server"
NOT_HERE = "its folder is not here"
_NEW = "kind in ('run', 'model', 'trace') and old not in (select place from owner where seen)"
_FIELDS = "place, dest, kind, owner, experiment, name, active, changed, at, root, state, why, seen, fresh"
_PUT = f"""
insert into owner ({_FIELDS}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 1)
on conflict (place) do update set active = excluded.active, changed = excluded.changed, name = excluded.name,
    seen = 1, fresh = 0, at = excluded.at, root = excluded.root,
    dest = case owner.state when 'switched' then owner.dest else excluded.dest end,
    state = case when excluded.state = 'held' or owner.state = 'held' then 'held' else 'todo' end,
    why = case when excluded.why <> '' then excluded.why else owner.why end
"""  # noqa: S608  names of ours


@dataclass
class Survey:
    """Looks at a store, and remembers in a ledger what there is to do.

    target    the new place as MLflow writes it
    folder    the folder here of a cell's files (Estate.folder)
    proxy_at  where the bytes behind mlflow-artifacts: lie; "" when nobody said
    allow     prefixes of addresses that a person allowed
    """

    book: Ledger
    target: str
    folder: Callable[[Cell], Path | None]
    proxy_at: str = ""
    allow: Sequence[str] = ()
    _experiments: dict[str, str] = field(default_factory=dict)
    _folders: dict[str, Path | None] = field(default_factory=dict)
    _last_roots: str = ""
    _alone: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.new_place = places.old_place(self.target)  # as old places are written

    def look(self, cells: Iterable[Cell]) -> None:
        """All of it anew. Raises Conflict when two owners' files would lie in one place."""
        self.book.look(cells)
        self._alone = []
        self.book.do("update owner set seen = 0, fresh = 0")
        self._roots()
        with self.book.writing():
            self._known()
            self.book.many(_PUT, (row for cell, old in self.book.cells(_NEW) for row in self._owner(cell, old)))
            self.book.many(
                _PUT, (row for cell, old in self.book.cells("kind = 'version'") for row in self._version(cell, old))
            )
            self._proxy()
            self.book.do("delete from owner where seen = 0 and state <> 'switched'")
            self.book.do("delete from alone")
            self.book.many("insert into alone values (?, ?, ?, ?, ?)", self._alone)
        self._collide()

    def _roots(self) -> None:
        found = [(old, cell) for cell, old in self.book.cells("kind = 'experiment'") if old]
        self._experiments = {cell.experiment: old for old, cell in found}
        rows = [(old, cell.experiment) for old, cell in found if not places.below(old, self.new_place)]
        self.book.many("insert or ignore into root values (?, ?)", rows)

    def _known(self) -> None:
        """Owners that are as they were at the last look need no other."""
        roots = json.dumps(sorted(self._experiments.items()))
        if roots == self._last_roots:
            self.book.do(
                "update owner set seen = 1 where state = 'todo' and place in (select o.place from cell c "
                "join owner o on o.place = c.old where (c.kind, c.owner, c.experiment, c.name, c.active) = "
                "(o.kind, o.owner, o.experiment, o.name, o.active) and c.changed is o.changed)"
            )
        self._last_roots = roots

    def _owner(self, cell: Cell, old: str) -> Iterator[tuple[object, ...]]:
        if places.proxied(old) or (old and places.below(old, self.new_place)):
            return
        why = "" if old else "is no address of a place"
        root = self._experiments.get(cell.experiment, "")
        own = cell.owner.rpartition("/")[2] if cell.owner.startswith("@") else cell.owner
        dest = places.key_of(cell.kind, cell.experiment, own, old, root)
        why = why or self._foreign(old) or ("" if dest else "its id cannot be part of a key")
        if why:
            self._leave(cell, why)
            return
        yield from self._row(cell, old, dest, root)

    def _row(self, cell: Cell, old: str, dest: str, root: str) -> Iterator[tuple[object, ...]]:
        listed = root if root and places.below(old, root) else old
        at, state, why = old, "todo", ""
        if places.local(old):
            at, why = self._folder_of(cell, old, root)
            state, listed = "held" if why else "todo", at
        yield (
            *(old, dest, cell.kind, cell.owner, cell.experiment, cell.name),
            *(cell.active, cell.changed, at, listed, state, why),
        )

    def _folder_of(self, cell: Cell, old: str, root: str) -> tuple[str, str]:
        """The folder of an owner's files, and why it cannot be moved ("": it can). Known ones are not asked for."""
        row = self.book.one("select at from owner where place = ? and state <> 'held' and at <> ''", old)
        if row:
            return str(row[0]), ""
        found = self.folder(cell)
        if found is not None and is_here(found):
            return str(found), ""
        base = self._root_folder(cell.experiment, root) if root and places.below(old, root) else None
        path = base / places.rest_of(old, root) if base is not None else Path(old[5:])
        if not path.is_absolute() or not is_here(path):
            return "", NOT_HERE
        if path.is_dir() and not self._allowed(path):
            return "", f"{path} is none that MLflow makes (to allow it: --allow-artifacts {path})"
        return str(path) if self._allowed(path) or _made_by_mlflow(cell, path) else "", ""

    def _root_folder(self, experiment: str, root: str) -> Path | None:
        """The folder here of an experiment's place; None for none."""
        if experiment not in self._folders:
            cell = next((one for one, _ in self.book.cells("kind = 'experiment' and experiment = ?", experiment)), None)
            found = None if cell is None else self.folder(cell)
            path = Path(root[5:])
            if found is None and path.is_absolute() and is_here(path):
                found = path
            self._folders[experiment] = found
        return self._folders[experiment]

    def _allowed(self, path: Path) -> bool:
        return any(places.below(f"file:{path}", places.old_place(one)) for one in self.allow if one)

    def _version(self, cell: Cell, old: str) -> Iterator[tuple[object, ...]]:
        if old.startswith(("models:", "runs:")) or places.proxied(old):
            return  # these name a model or a run, which goes its own way
        if old and places.below(old, self.new_place):
            return
        if not old or ":" not in old or self.book.owner_of(list(places.parents(old))) is not None:
            return
        found = self._root_of(old)
        if found is None or self._foreign(old):
            self._leave(cell, self._foreign(old) or "lies outside of every place that is moved")
            return
        folder = self.folder(cell) if places.local(old) else None
        if places.local(old) and (folder is None or not folder.is_dir()):
            self._leave(cell, NOT_HERE)
            return
        root, experiment = found
        rest = places.rest_of(old, root)
        if rest and places.plain(rest):
            yield from self._row(cell, old, f"{experiment}/{rest}", root)

    def _root_of(self, old: str) -> tuple[str, str] | None:
        """The experiment's place that holds `old`, the longest, and its id."""
        for parent in places.parents(old):
            row = self.book.one("select experiment from root where place = ? order by experiment limit 1", parent)
            if row:
                return parent, str(row[0])
        return None

    def _foreign(self, old: str) -> str:
        """Why a place is none that we reach; "" when it is one."""
        if places.local(old) or places.direct(old):
            return ""
        if old.startswith(places.HOSTS):
            if any(places.below(old, places.old_place(one)) for one in self.allow):
                return ""
            return f"names a host that nobody named (--allow-artifacts {old.split('/', 3)[2]})"
        return f"{old.partition(':')[0]}: is no place that is moved"

    def _leave(self, cell: Cell, why: str) -> None:
        self._alone.append((cell.kind, cell.owner, cell.name, cell.value, why))

    def _proxy(self) -> None:
        """All that a server keeps behind its proxy goes under the keys it has."""
        if not self.proxied:
            return
        if not self.proxy_at:
            return
        place = places.PROXY
        row = (place, "", "proxy", PROXY_OWNER, "", "", True, None, self.proxy_at, self.proxy_at, "todo", "")
        self.book.many(_PUT, [row])

    def _collide(self) -> None:
        row = self.book.one(
            "select dest, min(place), max(place) from owner where dest <> '' "
            "group by dest having count(distinct kind || owner) > 1"
        )
        if row:
            raise Conflict(
                f"The files of {row[1]} and of {row[2]} would both lie at {self.target}/{row[0]}.",
                "Move one of them to a place of its own first. Nothing was copied or switched.",
            )

    @property
    def proxied(self) -> int:
        """How many values lie behind a server's proxy."""
        return self.book.count("select count(*) from cell where old like 'mlflow-artifacts:%'")

    @property
    def done(self) -> int:
        """How many values name the new place."""
        sql = "select count(*) from cell where old = ? or (old > ? and old < ?)"
        return self.book.count(sql, self.new_place, self.new_place + "/", self.new_place + "0")

    def edits(self) -> Iterator[tuple[Edit, Cell]]:
        """What a switch has to change, as things stand at the last look. Raises BadData when something has no room."""
        for cell, old, dest, state in self.book.cells_of_owners():
            if dest is None:
                new = self.new_value(cell, old)
            else:
                new = "" if state == "held" else places.new_uri(self.target, dest)
            if new and new != cell.value:
                if cell.room is not None and len(new) > cell.room:
                    raise too_long(cell, new)
                yield Edit(cell.table, cell.key, cell.column, cell.value, new), cell

    def to_change(self) -> int:
        """How many values there are to change."""
        return sum(1 for _ in self.edits())

    def new_value(self, cell: Cell, old: str) -> str:
        """What a value shall be; "" when it stays."""
        if not old or places.proxied(old) or places.below(old, self.new_place):
            return ""
        if cell.kind == "workspace":
            return self.target if places.direct(old) or places.local(old) else ""
        if cell.kind == "experiment":
            return self._new_root(cell, old)
        owner = self.book.owner_of(list(places.parents(old)))
        if owner is None or owner.state == "held":
            return ""
        rest = places.rest_of(old, owner.place)
        if not places.nameable(rest):
            return ""
        return places.new_uri(self.target, f"{owner.dest}/{rest}" if rest else owner.dest)

    def _new_root(self, cell: Cell, old: str) -> str:
        if self._foreign(old) or not places.name_part(cell.experiment):
            return ""
        if places.local(old) and self._root_folder(cell.experiment, old) is None and not self._has_files(cell, old):
            return ""
        return places.new_uri(self.target, cell.experiment)

    def _has_files(self, cell: Cell, old: str) -> bool:
        """Whether files of this experiment are moved from below its place."""
        sql = "select count(*) from owner where experiment = ? and place > ? and place < ? and state <> 'held'"
        return bool(self.book.count(sql, cell.experiment, old + "/", old + "0"))


def too_long(cell: Cell, new: str) -> BadData:
    """An address would be longer than its column."""
    return BadData(
        f"{new!r} is longer than {cell.table}.{cell.column} can hold, which has room for {cell.room} characters.",
        "Choose a shorter place for --to. Nothing was switched.",
    )


def _made_by_mlflow(cell: Cell, path: Path) -> bool:
    """Whether MLflow itself calls the folder of such an owner so."""
    own = cell.owner.rpartition("/")[2]
    tail = (*([places.FOLDERS[cell.kind].rstrip("/")] if cell.kind in places.FOLDERS else []), own, "artifacts")
    return cell.kind in OWNERS and path.parts[-len(tail) :] == tail


def is_here(folder: Path) -> bool:
    """Whether the folder is there, or would be if it had anything in it: what lies above it is there and in use.

    MLflow makes a run's folder with its first artifact; but a disk that is not mounted has nothing at all.
    """
    if folder.is_dir():
        return True
    return any(one != one.parent and _used(one) for one in list(folder.parents)[:3])


def _used(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False
