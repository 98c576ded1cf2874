"""Objects written into a backend database: trees of rows, some thousand rows at once, in the order of their keys.

    spooled trees --arrange--> new        inserted
                               ours       its child rows are made anew, its own row is brought up to date
                               unchanged  left alone
                               foreign    left as it is, and told

Which objects are ours: those that bear our stamp among their tags; of kinds without tags, those that have the
id of one of ours, once the pack's ref came before.
"""

# ruff: noqa: S608 - names come from MLflow's own schema, values only through Session.among, in hexadecimal

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mlmigrate.adapters.mlflow.objects import (
    BY_NAME,
    DEFAULT_WORKSPACE,
    MARKS,
    Child,
    Kind,
    Row,
    Tree,
    root_of,
    tree_of,
    version_origin,
)
from mlmigrate.adapters.mlflow.references import References
from mlmigrate.adapters.mlflow.sql import naming, registry
from mlmigrate.adapters.mlflow.sql.homes import joined
from mlmigrate.adapters.mlflow.sql.naming import Arranger, learn, placed_ids, rename
from mlmigrate.adapters.mlflow.sql.staging import Stage, quoted
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, Loss, Record

if TYPE_CHECKING:
    from mlmigrate.adapters.base import OnConflict
    from mlmigrate.adapters.mlflow.sql.connect import Session
    from mlmigrate.adapters.mlflow.sql.registry import Choice
    from mlmigrate.adapters.mlflow.sql.target import DatabaseTarget

AT_ONCE = 20_000  # rows
FOREIGN = "are in the target already and did not come from here; those stay as they are"
_SAME_NAME = "have the name of another in the target, which stays"
# What tells an object of a kind from its like in a database, where that is not the kind's key.
_IDENTITY: Mapping[str, tuple[str, ...]] = {"scorer": ("scorer_id",)}
# Names that are one of a kind, beside the identity.
_UNIQUE: Mapping[str, tuple[str, ...]] = {
    "scorer": ("experiment_id", "scorer_name"),
    "label_schema": ("experiment_id", "name"),
    "review_queue": ("experiment_id", "name_key"),
    "gateway_endpoint": ("workspace", "name"),
    "gateway_model": ("workspace", "name"),
}
_REFERRED = frozenset(["scorer_versions"])  # rows of other objects refer to these: brought up to date, never made anew
_SHARED = frozenset(["dataset"])  # one that is there under its key is the same
_RELINK = (
    "UPDATE logged_model_metrics SET dataset_uuid = (SELECT d.dataset_uuid FROM datasets d WHERE {same}) "
    "WHERE dataset_name IS NOT NULL AND {among} AND EXISTS (SELECT 1 FROM datasets d WHERE {same})"
)
_SAME = (
    "d.experiment_id = logged_model_metrics.experiment_id AND d.name = logged_model_metrics.dataset_name "
    "AND d.digest = logged_model_metrics.dataset_digest"
)
_NAMING = ("name", "workspace", "creation_time")
Id = tuple[str, ...]
Records = Callable[[], Iterable[Record]]  # as often as wanted


@dataclass(slots=True)
class _Coming:
    """An object on its way: the digest of what the source said, its tree as it is here."""

    id: Id
    stamp: str
    tree: Tree


class Objects:
    """Takes objects of one pack and writes them in the session's transaction."""

    def __init__(
        self, target: DatabaseTarget, session: Session, losses: list[Loss], *, known: bool, before: frozenset[str]
    ) -> None:
        self.target, self.session, self.losses = target, session, losses
        self.known, self.before = known, before
        self.stage = Stage(session, target.shape, losses)
        self.references = References(
            ids={
                "run": naming.renamed_runs(session),
                "experiment": {id_: str(home.id) for id_, home in target.homes.items()},
            },
            places={} if target.keep_uris else naming.places(session),
            models={},
            versions={},
        )
        self.arranger = Arranger(target.shape, target.homes, self.references, target.keep_uris)
        self.registry = _RegistryWriting(self)
        self._kind: Kind | None = None
        self._held: list[tuple[str, Tree]] = []
        self._rows = 0
        self._unique: dict[str, dict[Id, Id]] = {}
        learn(self.references, naming.renamed_models(session))
        learn(self.references, target.learned)

    def add(self, record: Record) -> None:
        """One more object."""
        kind = BY_NAME[record.kind]
        if self._kind is not None and (kind is not self._kind or self._rows >= AT_ONCE):
            self.flush()
        self._kind = kind
        tree = tree_of(record)
        self._held.append((stamp_of(record), tree))
        self._rows += sum(map(len, tree.values()))

    def close(self) -> None:
        """Writes what is held, and tells what was lost."""
        self.flush()
        self.stage.count("rows", "belong to experiments that were not carried", self.arranger.unknown_experiments)
        self.stage.tell()

    def flush(self) -> None:
        """Writes what is held."""
        kind, held = self._kind, self._held
        self._held, self._rows = [], 0
        if kind is None or not held:
            return
        self._want(tree for _, tree in held)
        coming = []
        for stamp, tree in held:
            arranged = self.arranger.arrange(kind, tree)
            if arranged is None:
                self.stage.count(f"{word(kind)}s", "belong to experiments that were not carried")
            else:
                coming.append(_Coming(identity(kind, tree[kind.table][0]), stamp, arranged))
        if kind.name in registry.KINDS:
            self.registry.write(kind, coming)
        else:
            self._write(kind, coming)
        trace_places = self.references.places.get("trace")
        if isinstance(trace_places, dict):
            trace_places.clear()

    def _want(self, trees: Iterable[Tree]) -> None:
        """Asks for all places that are named, at once."""
        if self.target.keep_uris:
            return
        ids = {id_ for tree in trees for id_ in placed_ids(tree)}
        for places in self.references.places.values():
            if isinstance(places, naming.Places):
                places.want(ids)

    def _write(self, kind: Kind, coming: list[_Coming]) -> None:
        there = stamps(self.session, kind, [one.id for one in coming])
        new, changed = [], []
        for one in coming:
            stamp = there.get(one.id)
            if kind.name == "workspace" and one.id == (DEFAULT_WORKSPACE,):
                continue  # each database has that one, and it is the same
            if stamp is None:
                if self._named(kind, one):
                    new.append(one)
            elif stamp == one.stamp:
                continue
            elif self._ours(kind, stamp):
                changed.append(one)
            elif kind.name not in _SHARED:
                self.stage.count(f"{word(kind)}s", FOREIGN)
        if changed:
            self._clear(kind, changed)
        self._insert(kind, new + changed)

    def _ours(self, kind: Kind, stamp: str) -> bool:
        if mark_of(kind) is not None:
            return bool(stamp) or f"@{kind.table}" in self.before
        return self.known or f"@{kind.table}" in self.before

    def _named(self, kind: Kind, one: _Coming) -> bool:
        """Whether the object's name is free."""
        columns = _UNIQUE.get(kind.name)
        if columns is None:
            return True
        if kind.name not in self._unique:
            self._unique[kind.name] = _names(self.session, kind, columns)
        name = tuple(_plain(one.tree[kind.table][0].get(column)) for column in columns)
        if self._unique[kind.name].setdefault(name, one.id) == one.id:
            return True
        self.stage.count(f"{word(kind)}s", _SAME_NAME)
        return False

    def _clear(self, kind: Kind, coming: Sequence[_Coming]) -> None:
        """Takes child rows of an earlier state away, those that refer to others first."""
        for child in reversed(kind.children):
            if child.table not in _REFERRED and self.target.shape.has(child.table):
                sql = f"DELETE FROM {quoted(child.table)} WHERE {_of(self.session, child, coming, kind)}"
                self.session.execute(sql)

    def _insert(self, kind: Kind, coming: Sequence[_Coming]) -> None:
        marking = mark_of(kind)
        for table in kind.tables:
            rows = [row for one in coming for row in one.tree.get(table, ())]
            if marking is not None and table == marking.table:
                rows += [_mark(marking, one, kind) for one in coming]
            whole = "" if table == kind.table else kind.table
            self.stage.insert(table, rows, whole=whole, upsert=table == kind.table or table in _REFERRED)
        if kind.name == "logged_model" and coming:
            among = self.session.among("model_id", [one.id[0] for one in coming])
            self.session.execute(_RELINK.format(same=_SAME, among=among))


@dataclass(slots=True)
class _There:
    """What is at a model's place already."""

    versions: dict[int, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    stamps: dict[str, str] = field(default_factory=dict)


class _RegistryWriting:
    """Registered models and prompts: they meet others by name, and their versions meet others by number."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.choices: dict[str, Choice] = {}
        self.numbers: dict[str, dict[int, int]] = {}

    def prepare(self, records: Records) -> None:
        """Looks at all that will come: under which names and numbers. Raises Conflict when that is to fail."""
        o = self.objects
        self.choices, self.numbers, losses = foresee(o.session, records, o.target.on_conflict)
        o.losses += losses
        names = {origin: origin.rpartition("@")[0] for origin in self.choices}
        known = References(
            models={names[origin]: choice.key[1] for origin, choice in self.choices.items()},
            versions={
                (names[origin], old): new for origin, found in self.numbers.items() for old, new in found.items()
            },
        )
        learn(o.references, known)
        learn(o.target.learned, known)

    def write(self, kind: Kind, coming: Sequence[_Coming]) -> None:
        """Writes models whose trees were arranged, but for their names and numbers."""
        o = self.objects
        origins = [registry.origin_of(one.tree[kind.table][0]) for one in coming]
        there = self._there([self.choices[origin].key for origin in origins])
        rows: dict[str, list[Row]] = {table: [] for table in registry.TABLES}
        for one, origin in zip(coming, origins, strict=True):
            choice, found = self.choices[origin], there[self.choices[origin].key]
            stamp_key = STAMP_TAG if choice.made else joined(origin).replace(ORIGIN_TAG, STAMP_TAG)
            if found.stamps.get(stamp_key) == one.stamp:
                continue
            self._one(one, origin, choice, found, rows)
            model = {"name": choice.key[1], "workspace": choice.key[0]}
            mark = ORIGIN_TAG if choice.made else joined(origin)
            rows["registered_model_tags"] += [
                {"key": mark, "value": origin, **model},
                {"key": stamp_key, "value": one.stamp, **model},
            ]
        for table in registry.TABLES:
            o.stage.insert(table, rows[table], upsert=True)

    def _one(self, one: _Coming, origin: str, choice: Choice, found: _There, rows: dict[str, list[Row]]) -> None:
        chosen = self.numbers.get(origin, {})
        marks = {row["version"]: version_origin(row) for row in registry.versions_of(one.tree)}
        rename(one.tree, choice, chosen)
        tree = one.tree
        for table in registry.TABLES:
            for row in tree.get(table, ()):
                row.setdefault("workspace", choice.key[0])
        self._clear(choice, found, set(marks.values()), tree)
        if choice.made:
            rows["registered_models"] += tree["registered_models"]
            rows["registered_model_tags"] += tree.get("registered_model_tags", [])
        else:
            rows["registered_model_tags"] += self._staying(
                tree, "registered_model_tags", "key", "value", found.tags, choice
            )
        mine = {number for number, origin in found.versions.items() if origin in marks.values()}
        aliases = {alias: number for alias, number in found.aliases.items() if number not in mine}
        rows["registered_model_aliases"] += self._staying(
            tree, "registered_model_aliases", "alias", "version", aliases, choice
        )
        rows["model_versions"] += tree.get("model_versions", [])
        rows["model_version_tags"] += tree.get("model_version_tags", [])
        rows["model_version_tags"] += [
            {
                "key": ORIGIN_TAG,
                "value": mark,
                "name": choice.key[1],
                "version": chosen.get(number, number),
                "workspace": choice.key[0],
            }
            for number, mark in marks.items()
        ]

    def _clear(self, choice: Choice, found: _There, origins: set[str], tree: Tree) -> None:
        """Takes what came of ours earlier away: tags of versions; of a model that we made, its tags and aliases."""
        session = self.objects.session
        workspace, name = choice.key
        model = f"{session.among('workspace', [workspace])} AND {session.among('name', [name])}"
        mine = sorted(number for number, origin in found.versions.items() if origin in origins)
        if mine:
            numbers = ", ".join(map(str, mine))
            session.execute(f"DELETE FROM model_version_tags WHERE {model} AND version IN ({numbers})")
        if not choice.made or not found.stamps:
            return
        if not any(key.startswith(f"{ORIGIN_TAG} ") for key in found.stamps):  # else some are another's
            session.execute(
                f"DELETE FROM registered_model_tags WHERE {model} AND substr(\"key\", 1, {len(OURS)}) <> '{OURS}'"
            )
        aliases = {row["alias"] for row in tree.get("registered_model_aliases", ())}
        gone = [alias for alias, number in found.aliases.items() if number in mine and alias not in aliases]
        if gone:
            session.execute(f"DELETE FROM registered_model_aliases WHERE {model} AND {session.among('alias', gone)}")

    def _staying(
        self, tree: Tree, table: str, key: str, value: str, there: Mapping[str, Any], choice: Choice
    ) -> list[Row]:
        """Our rows, without those whose key is taken; where they differ, that is told."""
        free = []
        for row in tree.get(table, ()):
            if row[key] not in there:
                free.append(row)
            elif there[row[key]] != row[value]:
                what = "alias" if key == "alias" else "tag"
                self.objects.stage.losses.append(
                    Loss("", f"{what} {row[key]!r} of {registry.shown(choice.key)!r}", "is another here, which stays")
                )
        return free

    def _there(self, keys: Sequence[registry.Key]) -> dict[registry.Key, _There]:
        session = self.objects.session
        found = {key: _There(versions=numbers) for key, numbers in registry.versions(session, keys).items()}
        among = session.among("name", sorted({name for _, name in found}))
        names = f"{session.text('workspace')} AS w, {session.text('name')} AS n"
        sql = f"SELECT {names}, \"key\" AS k, COALESCE(value, '') AS v FROM registered_model_tags WHERE {among}"
        for workspace, name, key, value in session.rows(sql):
            one = found.get((workspace, name))
            if one is not None:
                (one.stamps if key.startswith(OURS) else one.tags)[key] = value
        sql = (
            f"SELECT {names}, alias AS a, {session.integer('version')} AS i FROM registered_model_aliases WHERE {among}"
        )
        for workspace, name, alias, number in session.rows(sql):
            if (workspace, name) in found:
                found[workspace, name].aliases[alias] = number
        return found


def foresee(
    session: Session, records: Records, policy: OnConflict
) -> tuple[dict[str, Choice], dict[str, dict[int, int]], list[Loss]]:
    """Where registered models and prompts go: origin -> choice, origin -> numbers, and what is to be told of it."""
    here = registry.registry(session)
    roots: dict[str, list[Row]] = {name: [] for name in registry.KINDS}
    for record in records():
        root = root_of(record)
        roots[record.kind.partition(".")[2]].append({column: root.get(column) for column in _NAMING})
    choices: dict[str, Choice] = {}
    losses: list[Loss] = []
    for name, rows in roots.items():
        chosen, told = registry.choose(rows, here, policy, name.replace("_", " "))
        choices |= chosen
        losses += told
    there = registry.versions(session, [choice.key for choice in choices.values() if choice.key in here.owners])
    numbers: dict[str, dict[int, int]] = {}
    for record in records() if there else ():
        tree = tree_of(record)
        origin = registry.origin_of(tree["registered_models"][0])
        key = choices[origin].key
        if key in there:
            numbers[origin] = registry.numbers(registry.versions_of(tree), there[key])
            losses += registry.number_losses(key, numbers[origin])
    return choices, numbers, losses


def stamp_of(record: Record) -> str:
    """What tells whether an object changed since it was taken."""
    return blake2b(record.body.encode(), digest_size=8).hexdigest()


def word(kind: Kind) -> str:
    """A kind of object as it is told."""
    return kind.name.replace("_", " ")


def identity(kind: Kind, root: Row) -> Id:
    """What tells an object from its like in a database."""
    return tuple(_plain(root.get(column)) for column in identity_columns(kind))


def identity_columns(kind: Kind) -> tuple[str, ...]:
    """The columns of `identity`."""
    return _IDENTITY.get(kind.name, kind.key)


def _plain(value: object) -> str:
    return DEFAULT_WORKSPACE if value is None else str(value)


def mark_of(kind: Kind) -> Child | None:
    """The table of tags where objects of a kind bear our stamp."""
    return next((child for child in kind.children if child.table in MARKS), None)


def stamps(session: Session, kind: Kind, ids: Sequence[Id]) -> dict[Id, str]:
    """The objects of these ids that are here, with the stamp that we noted, "" for none."""
    columns = identity_columns(kind)
    chosen = ", ".join(f"{session.text(f'o.{column}')} AS i{n}" for n, column in enumerate(columns))
    marking = mark_of(kind)
    if marking is None:
        rows = session.rows(
            f"SELECT {chosen}, '' AS s FROM {quoted(kind.table)} o WHERE {_among(session, columns, ids, 'o.')}"
        )
    else:
        key = MARKS[marking.table]
        same = " AND ".join(f"m.{here} = o.{there}" for here, there in marking.keys)
        rows = session.rows(
            f"SELECT {chosen}, COALESCE({session.text(f'm.{_value(marking)}')}, '') AS s FROM {quoted(kind.table)} o "
            f"LEFT JOIN {quoted(marking.table)} m ON {same} AND m.{quoted(key)} = '{STAMP_TAG}' "
            f"WHERE {_among(session, columns, ids, 'o.')}"
        )
    return {tuple(row[:-1]): row[-1] for row in rows}


def _value(marking: Child) -> str:
    return "tag_value" if MARKS[marking.table] == "tag_key" else "value"


def _mark(marking: Child, one: _Coming, kind: Kind) -> Row:
    root = one.tree[kind.table][0]
    row: Row = {here: root[there] for here, there in marking.keys if there in root}
    if marking.table == "logged_model_tags":
        row["experiment_id"] = root["experiment_id"]
    return {MARKS[marking.table]: STAMP_TAG, _value(marking): one.stamp, **row}


def _of(session: Session, child: Child, coming: Sequence[_Coming], kind: Kind) -> str:
    """A condition: rows of a child's table that belong to these objects."""
    columns = tuple(here for here, _ in child.keys)
    parents = [tuple(_plain(one.tree[kind.table][0].get(there)) for _, there in child.keys) for one in coming]
    parts = [f"({_among(session, columns, parents)})"]
    parts += [session.among(column, list(values)) for column, values in child.where]
    return " AND ".join(parts)


def _among(session: Session, columns: Sequence[str], ids: Sequence[Id], prefix: str = "") -> str:
    """A condition: the columns are one of `ids`; of two and more columns, all but the last have few values."""
    if len(columns) == 1:
        return session.among(f"{prefix}{columns[0]}", [id_[0] for id_ in ids])
    groups: dict[str, list[Id]] = {}
    for id_ in ids:
        groups.setdefault(id_[0], []).append(id_[1:])
    head = session.text(f"{prefix}{columns[0]}")
    return " OR ".join(
        f"({session.among(head, [first])} AND ({_among(session, columns[1:], rest, prefix)}))"
        for first, rest in groups.items()
    )


def _names(session: Session, kind: Kind, columns: Sequence[str]) -> dict[Id, Id]:
    own = identity_columns(kind)
    chosen = ", ".join(f"{session.text(column)} AS c{n}" for n, column in enumerate((*columns, *own)))
    rows = session.rows(f"SELECT {chosen} FROM {quoted(kind.table)} WHERE 1 = 1")
    return {tuple(map(_plain, row[: len(columns)])): tuple(row[len(columns) :]) for row in rows}


def foreign(session: Session, kind: Kind, ids: Sequence[str], *, before: frozenset[str]) -> set[str]:
    """Those of these objects that are here and not ours."""
    if f"@{kind.table}" in before:
        return set()
    return {id_[0] for id_, stamp in stamps(session, kind, [(one,) for one in ids]).items() if not stamp}
