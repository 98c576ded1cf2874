"""A backend database as a target: SQLite and PostgreSQL, at the schema of MLflow 3.17 or 3.18.

A pack is laid aside while it is read, its artifacts on the disk, its points in a spool; `commit`
then writes all of it in one transaction.  So no lock is held while a source is slow, and a commit
that failed can be made again.  What arrived is told by two tags of each run.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlmigrate.adapters.base import Context, Limits, Names, Packing
from mlmigrate.adapters.mlflow.direct import Stores, reachable
from mlmigrate.adapters.mlflow.references import NAMED_VERSIONS, RUN_TAGS, References
from mlmigrate.adapters.mlflow.sql import arriving, incoming, naming, registry
from mlmigrate.adapters.mlflow.sql.connect import (
    OTHER,
    POSTGRESQL,
    SQLITE,
    Database,
    Session,
    database,
    explained,
    texts,
)
from mlmigrate.adapters.mlflow.sql.holdings import HOLDINGS, RECORDS, column_lengths
from mlmigrate.adapters.mlflow.sql.homes import PROXY, Home, Moving, is_mark, move
from mlmigrate.adapters.mlflow.sql.place import WAITS_TAG, DatabasePlace
from mlmigrate.adapters.mlflow.sql.schema import HEADS, NEWEST, Shape, head_statements, revisions, shape
from mlmigrate.address import Address
from mlmigrate.errors import NotFound, UsageError
from mlmigrate.model import ORIGIN_TAG, STAMP_TAG, Arrival, Experiment, Loss, Record, RunRef

_DEFAULT = Experiment("0", "Default")  # what a server makes in an empty database, and clients expect
_RUN_TAGS = f"({', '.join(repr(tag) for tag in RUN_TAGS)})"  # tags whose whole value is a run's id
_INT4 = 2**31 - 1
_INT8 = 2**63 - 1
_NEEDED = {
    "experiments": ("experiment_id", "name", "artifact_location", "creation_time", "workspace"),
    "runs": ("run_uuid", "experiment_id", "artifact_uri", "deleted_time"),
    "metrics": ("key", "value", "timestamp", "step", "is_nan", "run_uuid"),
    "inputs": ("input_uuid", "step"),
    "datasets": ("dataset_uuid",),
    "input_tags": ("input_uuid",),
    "latest_metrics": ("is_nan",),
    "params": ("value",),
    "tags": ("value",),
    "experiment_tags": ("value",),
}


def open_target(address: Address, context: Context) -> DatabaseTarget:
    """The database, which may be empty or not there yet. Raises UsageError when its schema is another."""
    place = database(address.place)
    if place.kind == OTHER:
        raise UsageError(
            f"mlmigrate cannot write into {address.shown} directly.",
            "Start an MLflow server on it and copy to mlflow:http://...",
        )
    return DatabaseTarget(place, context)


class DatabaseTarget:
    """An MLflow backend database, for writing."""

    packing = Packing()

    def __init__(self, place: Database, context: Context) -> None:
        self.database = place
        self.keep_uris = context.settings.artifacts_to == "keep"
        self.store = _store(place, context.settings.artifacts_to)
        self.root = _root(context.settings.artifacts_to)
        self.stores = Stores.of(context)
        self.homes: dict[str, Home] = {}
        self.learned = References(models={}, versions={})  # what models that came in this process are called here
        self.shape = Shape({})
        self.on_conflict = context.settings.on_conflict
        self.writing = threading.Lock()  # SQLite has one writer
        self._look()

    @property
    def limits(self) -> Limits:
        """What the columns are declared to hold."""
        return Limits(
            key_length=self._length("params", "key", 250),
            param_length=self._length("params", "value", 8000),
            tag_length=self._length("tags", "value", 8000),
            name_length=self._length("runs", "name", 250),
            user_length=self._length("runs", "user_id", 256),
            experiment_tag_length=self._length("experiment_tags", "value", 20_000),
            experiment_name_length=self._length("experiments", "name", 256),
            infinities=False,
            distinct_points=True,
            nulls=False,
            blank_starts=False,
            micros=False,
            point_links=False,
            types=False,
            records=RECORDS,
            holdings=HOLDINGS,
            column_lengths=column_lengths(self.database.kind),
            clean_files=self.root == PROXY and not self.keep_uris,  # they go to a disk
        )

    def arrived(self) -> Mapping[str, Arrival]:
        """The runs that are whole here, by the tags that came with them."""
        if not self.shape.has("runs"):
            return {}
        with self.reading() as session:
            runs = session.rows(
                f"SELECT {session.text('o.run_uuid')} AS id, COALESCE({session.text('o.value')}, '') AS origin, "
                f"COALESCE({session.text('s.value')}, '') AS stamp FROM tags o LEFT JOIN tags s "
                f"ON s.run_uuid = o.run_uuid AND s.\"key\" = '{STAMP_TAG}' WHERE o.\"key\" = '{ORIGIN_TAG}'"
            )
            marks = _marks(session)
        return {origin: Arrival(id_, stamp) for id_, origin, stamp in runs} | marks

    def prepare(self, experiments: Sequence[Experiment]) -> Sequence[Loss]:
        """Makes the schema where there is none, and the experiments that are not there yet."""
        if self.root != PROXY:
            self._check_root()
        made = not self.shape.has("experiments")
        if made:
            self._make()
        with self.reading() as session:
            there = _homes(session)
        moving = self._move(experiments, there)
        used = {home.id for home in there} | {home.id for _, home in moving.new}
        names = {home.name for home in (*there, *moving.ids.values())}
        if made and 0 not in used and _DEFAULT.name not in names:
            moving.new.append((_DEFAULT, Home(0, _DEFAULT.name, f"{self.root}/0")))
        if moving.new or moving.new_tags:
            self._insert(moving)
        self.homes = moving.ids
        return moving.losses

    @contextmanager
    def pack(self, id: str, refs: Sequence[RunRef], distinct: bool = False) -> Iterator[DatabasePlace]:  # noqa: ARG002
        """A pack; nothing of it is in the database before its commit."""
        place = DatabasePlace(self, refs, distinct=distinct)
        try:
            yield place
        finally:
            place.close()

    def finish(self, experiments: Sequence[Experiment], ids: Mapping[str, str]) -> Sequence[Loss]:  # noqa: ARG002
        """Tags and params of our runs name other runs, models and places as these are here."""
        renamed = {origin.rpartition(":")[2]: id_ for origin, id_ in ids.items() if not origin.endswith(f":{id_}")}
        renamed = {old: new for old, new in renamed.items() if not old.startswith("@")}
        if renamed:
            self._rename_parents(renamed)
        return self._rewrite_texts({id_ for origin, id_ in ids.items() if ":@" not in origin})

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:
        """What meets others of its name here, and what comes of it. Raises Conflict when that is to fail."""
        if not self.shape.has("experiments"):
            return ()
        with self.reading() as session:
            moving = self._move(experiments, _homes(session))
            models = [record for record in records if record.kind in incoming.NAMED]
            _, _, losses = arriving.foresee(session, lambda: models, self.on_conflict)
        return [*moving.losses, *losses]

    def names(self, ids: Mapping[str, str]) -> Names:
        """What the source's things are called here."""
        if not self.shape.has("runs"):
            return References({"run": ids})
        with self.reading() as session:
            homes = _sources(session, _homes(session), ids.values())
            models = naming.renamed_models(session, set(ids.values()))
            places = {} if self.keep_uris else naming.places(session)
            for one in places.values():
                if isinstance(one, naming.Places):
                    one.want(ids.values())
            if not self.keep_uris:
                places["logged_model"] = naming.all_models(session)
                places["run"] = dict(places["run"])
            here = registry.registry(session)
            numbers = registry.versions(session, here.owners)
        references = References(
            ids={
                "run": {id_: new for id_, new in ids.items() if id_ != new},
                "experiment": {id_: str(home.id) for id_, home in homes.items()},
            },
            places=places,
            models=models.models,
            versions=models.versions,
        )
        lengths = self._length("tags", "value", 8000), self._length("params", "value", 8000)
        arranger = naming.Arranger(self.shape, homes, references, self.keep_uris)
        return naming.DatabaseNames(arranger, here, numbers, *lengths, self._rows_here)

    def _rows_here(self, table: str, columns: Sequence[str], key: registry.Key) -> list[dict[str, Any]]:
        with self.reading() as session:
            rows = registry.rows_here(session, table, [*{*columns, "workspace"}], [key[1]])
        return [
            {name: value for name, value in row.items() if name in columns}
            for row in rows
            if row["workspace"] == key[0]
        ]

    def _check_root(self) -> None:
        """Raises UsageError for a place whose URIs would not fit, and what stands in the way of writing there."""
        longest = f"{self.root}/{_INT4}/{'0' * 32}/artifacts"
        room = self.shape.length("runs", "artifact_uri") or 200
        if self.database.kind == POSTGRESQL and len(longest) > room:
            raise UsageError(
                f"{self.root} is too long: MLflow's database holds {room} characters of a run's artifact URI.",
                f"Give a place of {room - len(longest) + len(self.root)} characters at most.",
            )
        self.stores.check(self.root)

    def _move(self, experiments: Sequence[Experiment], there: Sequence[Home]) -> Moving:
        most = _INT4 if self.database.kind == POSTGRESQL else _INT8
        return move(experiments, there, most, keep_uris=self.keep_uris, policy=self.on_conflict, root=self.root)

    def _rewrite_texts(self, ours: Collection[str]) -> list[Loss]:
        """In tags and params of these runs, what names a place or a model that is another here."""
        losses: list[Loss] = []
        changed: dict[str, list[tuple[str, str, str]]] = {}
        with self.reading() as session:
            models = naming.renamed_models(session, ours)
            waiting = {id_ for (id_,) in session.rows(f"SELECT run_uuid AS r FROM tags WHERE \"key\" = '{WAITS_TAG}'")}
            places = {} if self.keep_uris else naming.places(session)
            if not places and not waiting:
                return []
            placed = References(places=places)
            # once alone: a version's number may be that of another version before
            renamed = References(places=places, models=models.models, versions=models.versions)
            for table in ("tags", "params"):
                most = self._length(table, "value", 8000)
                for row in _texts(session, table, places):
                    references = renamed if row[0] in waiting else placed
                    text = references.tag(row[1], row[2]) if table == "tags" else references.text(row[2])
                    if row[0] not in ours or text == row[2]:
                        continue
                    if len(text) > most:
                        because = f"would have more than {most} characters with the names of the target, and stays"
                        losses.append(Loss("", f"{table[:-1]} {row[1]!r} of run {row[0]}", because))
                    else:
                        changed.setdefault(table, []).append((row[0], row[1], text))
        if changed or waiting:
            with self.transaction() as session:
                for table, rows in changed.items():
                    _change(session, table, rows)
                session.execute(f"DELETE FROM tags WHERE \"key\" = '{WAITS_TAG}'")
        return losses

    def close(self) -> None:
        """Lets the threads go that sent files; nothing else is held open."""
        self.stores.close()

    def _length(self, table: str, column: str, usual: int) -> int:
        return self.shape.length(table, column) or usual

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only transaction."""
        session = self.database.reading()
        try:
            with explained(self.database.shown):
                yield session
        finally:
            session.close()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """All of it or nothing."""
        lock = self.writing if self.database.kind == SQLITE else threading.Lock()
        with lock, explained(self.database.shown):
            session = self.database.writing()
            try:
                yield session
                session.commit()
            finally:
                session.close()

    def _look(self) -> None:
        """Finds out what schema there is. Nothing at all is well, another than ours is not."""
        file = self.database.file
        if file is not None and (not file.exists() or not file.stat().st_size):
            if not file.absolute().parent.is_dir():
                raise NotFound(f"There is no folder {file.absolute().parent} to make {file.name} in.")
            return
        self.database.settle()
        with self.reading() as session:
            found = shape(session)
            if found.tables:
                self._check(found, revisions(session, found))
        self.shape = found

    def _check(self, found: Shape, there: list[str]) -> None:
        if not found.has("experiments"):
            names = ", ".join(sorted(found.tables)[:8])
            raise UsageError(f"{self.database.shown} holds other tables than MLflow's: {names}.", "Give an empty one.")
        whole = all(found.has(table, column) for table, columns in _NEEDED.items() for column in columns)
        if set(there) & set(HEADS) and whole:
            return
        raise UsageError(
            f"{self.database.shown} has MLflow's schema {', '.join(there) or 'without a revision'}; "
            f"mlmigrate writes into that of 3.17 and {NEWEST}.",
            f"Bring it there with the current MLflow: mlflow db upgrade {self.database.shown}",
        )

    def _make(self) -> None:
        with self.transaction() as session:
            if not shape(session).tables:
                for statement in head_statements(self.database.kind):
                    session.execute(statement)
        self._look()

    def _insert(self, moving: Moving) -> None:
        new = moving.new
        rows = pa.table(
            {
                "experiment_id": pa.array([home.id for _, home in new], self.int_type),
                "name": pa.array([home.name for _, home in new], pa.utf8()),
                "artifact_location": pa.array([home.root for _, home in new], pa.utf8()),
                "lifecycle_stage": pa.array(["deleted" if one.deleted else "active" for one, _ in new], pa.utf8()),
                "creation_time": pa.array([one.created for one, _ in new], pa.int64()),
                "last_update_time": pa.array([one.updated for one, _ in new], pa.int64()),
            }
        )
        tags = [(home.id, key, value) for _, home in new for key, value in home.tags.items()] + moving.new_tags
        with self.transaction() as session:
            session.ingest("experiments", rows)
            if tags:
                session.ingest("experiment_tags", self.experiment_tags(tags))
            if session.kind == POSTGRESQL:
                session.table(
                    "SELECT setval('experiments_experiment_id_seq', "
                    "GREATEST((SELECT max(experiment_id) FROM experiments), "
                    "(SELECT last_value FROM experiments_experiment_id_seq), 1)::bigint)"
                )

    @property
    def int_type(self) -> pa.DataType:
        """The type of an INTEGER column."""
        return pa.int32() if self.database.kind == POSTGRESQL else pa.int64()

    def experiment_tags(self, tags: Sequence[tuple[int, str, str]]) -> pa.Table:
        """Rows of experiment_tags."""
        ids, keys, values = zip(*tags, strict=True)
        return pa.table({"key": list(keys), "value": list(values), "experiment_id": pa.array(ids, self.int_type)})

    def _rename_parents(self, renamed: Mapping[str, str]) -> None:
        rows = pa.table({"old": list(renamed), "new": list(renamed.values())})
        with self.transaction() as session:
            session.ingest("mlmigrate_renamed", rows, temporary=True)
            session.execute(
                "UPDATE tags SET value = (SELECT new FROM mlmigrate_renamed WHERE old = tags.value) "
                f'WHERE "key" IN {_RUN_TAGS} AND value IN (SELECT old FROM mlmigrate_renamed) '
                f"AND run_uuid IN (SELECT run_uuid FROM tags WHERE \"key\" = '{ORIGIN_TAG}')"
            )


def _texts(session: Session, table: str, places: Mapping[Any, Mapping[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(run, key, value) of all texts that may name a place or a model."""
    columns = [session.text(column) for column in ("run_uuid", '"key"', "value")]
    sql = (
        f"SELECT {columns[0]} AS r, {columns[1]} AS k, {columns[2]} AS v FROM {table} WHERE "
        f"(value LIKE '%/artifacts%' OR value LIKE '%models:/%' OR \"key\" IN {NAMED_VERSIONS}) "
        f'AND "key" NOT IN {_RUN_TAGS}'
    )
    for batch in session.batches(sql):
        rows = list(zip(*map(texts, batch.columns), strict=True))
        ids = {id_ for row in rows for id_ in naming.PLACED.findall(row[2])}
        for one in places.values():
            if isinstance(one, naming.Places):
                one.want(ids)
        yield from rows


def _change(session: Session, table: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """New values for tags or params."""
    runs, keys, values = zip(*rows, strict=True)
    session.ingest("mlmigrate_texts", pa.table({"r": list(runs), "k": list(keys), "v": list(values)}), temporary=True)
    same = f't.r = {table}.run_uuid AND t.k = {table}."key"'
    session.execute(
        f"UPDATE {table} SET value = (SELECT v FROM mlmigrate_texts t WHERE {same}) "
        f"WHERE EXISTS (SELECT 1 FROM mlmigrate_texts t WHERE {same})"
    )
    session.execute("DROP TABLE mlmigrate_texts")


def _sources(session: Session, there: Sequence[Home], ids: Iterable[str]) -> dict[str, Home]:
    """The source's id of an experiment -> where it lives here.

    Experiments of several sources may have one id: then that is meant which has runs of `ids`.
    """
    found: dict[str, list[Home]] = {}
    for home in sorted(there, key=lambda one: one.id):
        for origin in home.origins:
            found.setdefault(origin.partition("@")[0], []).append(home)
    several = {id_ for id_, homes in found.items() if len(homes) > 1}
    used = _experiments_of(session, list(ids)) if several else set()
    return {id_: next((one for one in homes if one.id in used), homes[-1]) for id_, homes in found.items()}


def _experiments_of(session: Session, ids: Sequence[str]) -> set[int]:
    found: set[int] = set()
    for at in range(0, len(ids), naming.AT_ONCE):
        among = session.among("run_uuid", ids[at : at + naming.AT_ONCE])
        rows = session.rows(f"SELECT DISTINCT {session.integer('experiment_id')} AS e FROM runs WHERE {among}")
        found |= {id_ for (id_,) in rows}
    return found


def _homes(session: Session) -> list[Home]:
    tags: dict[int, dict[str, str]] = {}
    for id_, key, value in session.rows(
        f"SELECT {session.integer('experiment_id')} AS id, \"key\" AS k, COALESCE(value, '') AS v FROM experiment_tags"
    ):
        tags.setdefault(id_, {})[key] = value
    rows = session.rows(
        f"SELECT {session.integer('experiment_id')} AS id, COALESCE({session.text('name')}, '') AS n, "
        f"COALESCE({session.text('artifact_location')}, '') AS a, COALESCE(lifecycle_stage, '') AS l, "
        "COALESCE(workspace, 'default') AS w FROM experiments"
    )
    unmarked = {str(id_) for id_, *_ in rows if not any(is_mark(key) for key in tags.get(id_, ()))}
    ours = _with_our_runs(session, unmarked)
    return [
        Home(
            id_,
            name if space == "default" else f"{space}/{name}",
            root,
            stage == "deleted",
            tags.get(id_, {}),
            id_ in ours,
        )
        for id_, name, root, stage, space in rows
    ]


def _with_our_runs(session: Session, ids: Collection[str]) -> set[int]:
    """Those of these experiments that runs of ours came into."""
    if not ids:
        return set()
    rows = session.rows(
        f"SELECT {session.integer('e.experiment_id')} AS e FROM experiments e WHERE "
        f"{session.among(session.text('e.experiment_id'), sorted(ids))} AND EXISTS (SELECT 1 FROM runs r "
        "JOIN tags t ON t.run_uuid = r.run_uuid WHERE r.experiment_id = e.experiment_id "
        f"AND t.\"key\" = '{ORIGIN_TAG}')"
    )
    return {id_ for (id_,) in rows}


def _marks(session: Session) -> dict[str, Arrival]:
    """The tables that arrived, told by tags of an experiment: rows of other tables have no room for marks."""
    prefix = f"{STAMP_TAG} "
    rows = session.rows(
        f"SELECT \"key\" AS k, COALESCE(value, '') AS v FROM experiment_tags "
        f"WHERE substr(\"key\", 1, {len(prefix)}) = '{prefix}'"
    )
    marks = ((key.removeprefix(prefix), value) for key, value in rows)
    return {origin: Arrival("@" + origin.split("@")[-1].split(":")[0], stamp) for origin, stamp in marks}


def _store(place: Database, artifacts_to: str) -> Path:
    if artifacts_to not in ("", "keep") and not reachable(artifacts_to):
        return Path(artifacts_to).absolute()
    beside = place.file.absolute().parent if place.file is not None else Path.cwd()
    return beside / "mlartifacts"


def _root(artifacts_to: str) -> str:
    """Where experiments that are made keep their artifacts: behind the server's proxy, or in an object store."""
    return artifacts_to.rstrip("/") if reachable(artifacts_to) else PROXY
