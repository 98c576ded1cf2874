"""What the source's things are called in a backend database, and objects arranged for it.

    a tree --modern--> columns of today --arrange--> ids, places and names as they are here

The same is done when objects are written and when verify asks what was written.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mlmigrate.adapters.mlflow.modern import modern
from mlmigrate.adapters.mlflow.objects import BY_NAME, TEXTS, Kind, Named, Row, Tree, id_of, tree_of
from mlmigrate.adapters.mlflow.references import MLMODEL, References, rewritten
from mlmigrate.adapters.mlflow.sql import registry as registered
from mlmigrate.adapters.mlflow.sql.registry import Choice, Registry
from mlmigrate.model import ORIGIN_TAG, Artifact, Experiment, Record, Run

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.sql.connect import Session
    from mlmigrate.adapters.mlflow.sql.homes import Home
    from mlmigrate.adapters.mlflow.sql.schema import Shape

T = TypeVar("T")
AT_ONCE = 2000  # ids asked for in one statement
_OWN = ("name", "version")  # columns of a registered model's rows
_TAG, _ALIAS = {"name", "key", "value"}, {"name", "alias", "version"}
LOCATION = "mlflow.artifactLocation"  # a trace's tag
MODEL_OWNER, TRACE_OWNER = "@model/", "@trace/"  # of artifacts
PLACED = re.compile(r"/((?:m-|tr-)?[0-9a-f]{32})/artifacts")
_EXPERIMENT_ENDS = (("source_type", "source_id"), ("destination_type", "destination_id"))
_TEXTS = {
    table: [at.partition(".")[2] for at in sorted(TEXTS) if at.partition(".")[0] == table]
    for table in {at.partition(".")[0] for at in TEXTS}
}
Ask = Callable[[Sequence[str]], dict[str, str]]


class Places(Mapping[str, str]):
    """Where things keep their files here, by id: asked for when wanted, and remembered."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: dict[str, str | None] = {}

    def want(self, ids: Iterable[str]) -> None:
        """Asks for many at once."""
        new = [id_ for id_ in dict.fromkeys(ids) if id_ not in self._known]
        for at in range(0, len(new), AT_ONCE):
            part = new[at : at + AT_ONCE]
            found = self._ask(part)
            self._known |= {id_: found.get(id_) for id_ in part}

    def put(self, id: str, place: str) -> None:
        """Tells a place that is not in the database yet."""
        self._known[id] = place

    def forget(self) -> None:
        """Gives the memory back."""
        self._known = {}

    def __contains__(self, id: object) -> bool:
        if isinstance(id, str):
            self.want([id])
        return self._known.get(str(id)) is not None

    def __getitem__(self, id: str) -> str:
        self.want([id])
        place = self._known[id]
        if place is None:
            raise KeyError(id)
        return place

    def __iter__(self) -> Iterator[str]:
        return (id_ for id_, place in self._known.items() if place is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def places(session: Session) -> dict[Named, Mapping[str, str]]:
    """Where runs and logged models keep their files, asked for in this session."""

    def asking(table: str, id_column: str, column: str) -> Places:
        def ask(ids: Sequence[str]) -> dict[str, str]:
            sql = f"SELECT {session.text(id_column)} AS i, {session.text(column)} AS p FROM {table} "
            rows = session.rows(f"{sql} WHERE {session.among(id_column, ids)} AND {column} IS NOT NULL")
            return dict(rows)

        return Places(ask)

    return {
        "run": asking("runs", "run_uuid", "artifact_uri"),
        "logged_model": asking("logged_models", "model_id", "artifact_location"),
        "trace": {},
    }


def all_models(session: Session) -> dict[str, str]:
    """Where every logged model keeps its files."""
    sql = f"SELECT {session.text('model_id')} AS i, {session.text('artifact_location')} AS p FROM logged_models"
    return dict(session.rows(sql))


def renamed_runs(session: Session) -> dict[str, str]:
    """The source's id -> the id here, of the runs that have another one here."""
    rows = session.rows(
        f"SELECT {session.text('value')} AS o, {session.text('run_uuid')} AS i FROM tags "
        f"WHERE \"key\" = '{ORIGIN_TAG}' AND value <> 'mlflow:' || run_uuid"
    )
    return {origin.rpartition(":")[2]: id_ for origin, id_ in rows if not origin.endswith(f":{id_}")}


def renamed_models(session: Session, runs: Collection[str] = ()) -> References:
    """The registered models and versions that are called otherwise here.

    Models of several sources may have had one name: then that is meant which has versions of `runs`, our runs
    here, and where nobody can tell none is renamed.
    """
    models: dict[str, set[tuple[str, bool]]] = {}
    versions: dict[tuple[str, int], set[tuple[int, bool]]] = {}
    for origin, (_, name) in registered.registry(session).places.items():
        models.setdefault(origin.rpartition("@")[0], set()).add((name, False))
    for origin, here, number, run in session.rows(
        f"SELECT {session.text('t.value')} AS o, {session.text('t.name')} AS h, {session.integer('t.version')} AS n, "
        f"COALESCE({session.text('v.run_id')}, '') AS r FROM model_version_tags t JOIN model_versions v "
        "ON v.workspace = t.workspace AND v.name = t.name AND v.version = t.version "
        f"WHERE t.\"key\" = '{ORIGIN_TAG}'"
    ):
        name, _, old = origin.rpartition("@")[0].rpartition("/")
        if old.isdigit():
            versions.setdefault((name, int(old)), set()).add((number, run in runs))
            if run in runs:
                models.setdefault(name, set()).add((here, True))
    named = {name: _meant(found) for name, found in models.items()}
    numbered = {at: _meant(found) for at, found in versions.items()}
    return References(
        models={old: new for old, new in named.items() if new is not None and new != old},
        versions={at: new for at, new in numbered.items() if new is not None and new != at[1]},
    )


def _meant(found: Collection[tuple[T, bool]]) -> T | None:
    """The one that is meant: the only one, or the only one of our runs."""
    for some in ({one for one, _ in found}, {one for one, ours in found if ours}):
        if len(some) == 1:
            return next(iter(some))
    return None


@dataclass
class Arranger:
    """Makes objects as they are here.

    homes   the source's experiments that were carried, by their ids there
    keep    files stay where they are, and so does all that names their places
    """

    shape: Shape
    homes: Mapping[str, Home]
    references: References
    keep: bool
    unknown_experiments: int = 0

    def arrange(self, kind: Kind, tree: Tree) -> Tree | None:
        """The tree as it is here; None when it belongs to an experiment that was not carried."""
        modern(kind, tree)
        root = tree[kind.table][0]
        home = None
        if kind.experiment and root.get(kind.experiment) is not None:
            home = self.homes.get(str(root[kind.experiment]))
            if home is None:
                return None
        self._without_strangers(tree)
        self.place(kind, root, home)
        registered_names = kind.name in registered.KINDS  # those of the rows themselves are not ours to choose here
        for table, rows in tree.items():
            for row in rows:
                own: Row = {name: row[name] for name in _OWN if name in row} if registered_names else {}
                self.references.row(table, row)
                row.update(own)
                experiment = row.get("experiment_id")
                if isinstance(experiment, str) and experiment.isdigit():
                    row["experiment_id"] = int(experiment)
        if home is not None and not self.keep:
            _placed(kind, tree, home)
        return tree

    def place(self, kind: Kind, root: Row, home: Home | None) -> None:
        """Tells where the object itself will keep its files: texts of its own rows name that place."""
        if self.keep or home is None:
            return
        if kind.name == "logged_model":
            _put(self.references.places, "logged_model", root["model_id"], home.of_model(root["model_id"]))
        elif kind.name == "trace":
            _put(self.references.places, "trace", root["request_id"], home.of_trace(root["request_id"]))

    def _without_strangers(self, tree: Tree) -> None:
        """Leaves out what is said of experiments that were not carried: their ids are other people's here."""
        for table in list(tree):
            rows = [row for row in tree[table] if self._known(row)]
            self.unknown_experiments += len(tree[table]) - len(rows)
            if rows:
                tree[table] = rows
            else:
                del tree[table]

    def _known(self, row: Row) -> bool:
        if row.get("experiment_id") is not None and str(row["experiment_id"]) not in self.homes:
            return False
        if "association_id" not in row:
            return True
        ends = ((row.get(type_), row.get(id_)) for type_, id_ in _EXPERIMENT_ENDS)
        return all(str(type_).lower() != "experiment" or str(id_) in self.homes for type_, id_ in ends)


def placed_ids(tree: Tree) -> set[str]:
    """The ids whose places are named in the tree."""
    found: set[str] = set()
    for table, rows in tree.items():
        for column in _TEXTS.get(table, ()):
            for row in rows:
                value = row.get(column)
                if isinstance(value, str) and "/artifacts" in value:
                    found.update(PLACED.findall(value))
    return found


def _put(places_: Mapping[Any, Mapping[str, str]], named: str, id: str, place: str) -> None:
    known = places_.get(named)
    if isinstance(known, Places):
        known.put(id, place)
    elif isinstance(known, dict):
        known[id] = place


def _placed(kind: Kind, tree: Tree, home: Home) -> None:
    """The object's own place, whatever its id looks like."""
    root = tree[kind.table][0]
    if kind.name == "logged_model":
        root["artifact_location"] = home.of_model(root["model_id"])
    for row in tree.get("trace_tags", ()):
        if row["key"] == LOCATION:
            row["value"] = home.of_trace(root["request_id"])


@dataclass
class DatabaseNames:
    """What was written, read from the database: for verify."""

    arranger: Arranger
    registry: Registry
    numbers: Mapping[registered.Key, Mapping[int, str]]
    tag_length: int
    param_length: int
    rows_here: Callable[[str, Sequence[str], registered.Key], list[dict[str, Any]]]

    def experiment(self, experiment: Experiment) -> Experiment:
        """The experiment under the name that it has there."""
        home = self.arranger.homes.get(experiment.id)
        return experiment if home is None else replace(experiment, name=home.name)

    def run(self, run: Run) -> Run:
        """The run with the tags and params that it has there; what would be too long there stays as it was."""
        new = self.arranger.references.run(run)
        tags = {key: value if len(value) <= self.tag_length else run.tags[key] for key, value in new.tags.items()}
        params = {
            key: run.params[key] if isinstance(value, str) and len(value) > self.param_length else value
            for key, value in new.params.items()
        }
        return replace(new, tags=tags, params=params)

    def record(self, record: Record) -> Record:
        """The record as it is read from there."""
        if record.kind not in BY_NAME:
            return record
        kind, tree = BY_NAME[record.kind], tree_of(record)
        if kind.name in registered.KINDS:
            self._learn(tree)
        if self.arranger.arrange(kind, tree) is None:
            return record
        if kind.name in registered.KINDS:
            self._registered(tree, {table: {name for row in rows for name in row} for table, rows in tree.items()})
        root = tree[kind.table][0]
        owner = root.get(kind.experiment) if kind.experiment else None
        for table in [table for table in tree if not self.arranger.shape.has(table)]:
            del tree[table]
        for table, rows in tree.items():
            there = self.arranger.shape.tables[table]
            tree[table] = [{name: value for name, value in row.items() if name in there} for row in rows]
        return Record(
            record.kind, id_of(kind, root), "" if owner is None else str(owner), msgspec.json.encode(tree).decode()
        )

    def artifact(self, artifact: Artifact) -> Artifact:
        """The file as it is there."""
        if self.arranger.keep or artifact.path.rpartition("/")[2] != MLMODEL:
            return artifact
        named: Named = "logged_model" if artifact.owner.startswith(MODEL_OWNER) else "run"
        id_ = artifact.owner.removeprefix(MODEL_OWNER)
        references = self.arranger.references
        return relocated(artifact, id_, references.places.get(named, {}).get(references.id(named, id_)))

    def _learn(self, tree: Tree) -> None:
        """What exactly this model is called here."""
        root = tree["registered_models"][0]
        key = self.registry.places.get(registered.origin_of(root))
        if key is None:
            return
        chosen = registered.numbers(registered.versions_of(tree), self.numbers.get(key, {}))
        moved = {(root["name"], old): new for old, new in chosen.items()}
        learn(self.arranger.references, References(models={root["name"]: key[1]}, versions=moved))

    def _registered(self, tree: Tree, columns: Mapping[str, set[str]]) -> None:
        """A model under its name and numbers here, with what others have there."""
        root = tree["registered_models"][0]
        key = self.registry.places.get(registered.origin_of(root))
        if key is None:
            return
        there = self.numbers.get(key, {})
        made = self.registry.owners.get(key) == registered.origin_of(root)
        chosen = registered.numbers(registered.versions_of(tree), there)
        rename(tree, Choice(key, made), chosen)
        others = set(there) - set(chosen.values())
        if not made:
            tree["registered_models"] = self.rows_here("registered_models", sorted(columns["registered_models"]), key)
        if not made or others:
            tags = self.rows_here("registered_model_tags", sorted(columns.get("registered_model_tags", _TAG)), key)
            ours = {row["key"] for row in tree.get("registered_model_tags", ())} if made else set()
            _overlay(tree, "registered_model_tags", "key", [row for row in tags if row["key"] not in ours])
        if others:
            known = sorted(columns.get("registered_model_aliases", _ALIAS) | {"version"})
            aliases = self.rows_here("registered_model_aliases", known, key)
            _overlay(tree, "registered_model_aliases", "alias", [row for row in aliases if row["version"] in others])
        self._strangers(tree, columns, others, key)

    def _strangers(self, tree: Tree, columns: Mapping[str, set[str]], others: set[int], key: registered.Key) -> None:
        """Versions of somebody else."""
        for table in ("model_versions", "model_version_tags"):
            if others and table in columns:
                found = self.rows_here(table, sorted(columns[table] | {"version"}), key)
                tree[table] = tree.get(table, []) + [row for row in found if row["version"] in others]


def _overlay(tree: Tree, table: str, by: str, there: Iterable[Row]) -> None:
    """What was there stays."""
    rows = {row[by]: row for row in tree.get(table, ())} | {row[by]: row for row in there}
    if rows:
        tree[table] = list(rows.values())


def rename(tree: Tree, choice: Choice, chosen: Mapping[int, int]) -> None:
    """A registered model's rows under its name here, its versions under their numbers here."""
    for table in registered.TABLES:
        for row in tree.get(table, ()):
            row["name"] = choice.key[1]
            if "version" in row:
                row["version"] = chosen.get(row["version"], row["version"])


def learn(references: References, others: References) -> None:
    """Takes in what models and versions are called."""
    if isinstance(references.models, dict):
        references.models.update(others.models)
    if isinstance(references.versions, dict):
        references.versions.update(others.versions)


def relocated(artifact: Artifact, id: str, place: str | None) -> Artifact:
    """The file; in an MLmodel, the place of its owner `id` is the one here."""
    if place is None or artifact.path.rpartition("/")[2] != MLMODEL:
        return artifact
    return rewritten(artifact, References(places={"run": {id: place}}).text)
