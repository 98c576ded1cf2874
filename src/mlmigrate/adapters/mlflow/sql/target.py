"""A backend database as a target: SQLite and PostgreSQL, at the schema of MLflow 3.17 or 3.18.

A pack is laid aside while it is read, its artifacts on the disk, its points in a spool; `commit`
then writes all of it in one transaction.  So no lock is held while a source is slow, and a commit
that failed can be made again.  What arrived is told by two tags of each run.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from mlmigrate.adapters.base import Context, Limits, Names, Packing
from mlmigrate.adapters.mlflow.references import References
from mlmigrate.adapters.mlflow.sql.connect import OTHER, POSTGRESQL, SQLITE, Database, Session, database, explained
from mlmigrate.adapters.mlflow.sql.homes import PROXY, Home, Moving, move
from mlmigrate.adapters.mlflow.sql.place import DatabasePlace
from mlmigrate.adapters.mlflow.sql.records import KIND
from mlmigrate.adapters.mlflow.sql.schema import HEADS, NEWEST, Shape, head_statements, revisions, shape
from mlmigrate.address import Address
from mlmigrate.errors import NotFound, UsageError
from mlmigrate.model import ORIGIN_TAG, PARENT_TAG, STAMP_TAG, Arrival, Experiment, Loss, Record, RunRef

_DEFAULT = Experiment("0", "Default")  # what a server makes in an empty database, and clients expect
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
        self.homes: dict[str, Home] = {}
        self.shape = Shape({})
        self.writing = threading.Lock()  # SQLite has one writer
        self._losses: list[Loss] = []
        self._look()

    @property
    def limits(self) -> Limits:
        """What the columns are declared to hold."""
        return Limits(
            key_length=self._length("params", "key", 250),
            param_length=self._length("params", "value", 8000),
            tag_length=self._length("tags", "value", 8000),
            experiment_tag_length=self._length("experiment_tags", "value", 20_000),
            experiment_name_length=self._length("experiments", "name", 256),
            infinities=False,
            distinct_points=True,
            nulls=False,
            blank_starts=False,
            micros=False,
            point_links=False,
            types=False,
            records=(KIND,),
            owned_artifacts=False,
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
        made = not self.shape.has("experiments")
        if made:
            self._make()
        with self.reading() as session:
            there = _homes(session)
        most = _INT4 if self.database.kind == POSTGRESQL else _INT8
        moving = move(experiments, there, most, keep_uris=self.keep_uris)
        used = {home.id for home in there} | {home.id for _, home in moving.new}
        names = {home.name for home in (*there, *moving.ids.values())}
        if made and 0 not in used and _DEFAULT.name not in names:
            moving.new.append((_DEFAULT, Home(0, _DEFAULT.name, f"{PROXY}/0")))
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
        """Children of runs whose ids could not be kept get their parents' new ids."""
        renamed = {origin.partition(":")[2]: id_ for origin, id_ in ids.items() if not origin.endswith(f":{id_}")}
        renamed = {old: new for old, new in renamed.items() if not old.startswith("@")}
        if renamed:
            self._rename_parents(renamed)
        return ()

    def foresee(self, experiments: Sequence[Experiment], records: Sequence[Record]) -> Sequence[Loss]:  # noqa: ARG002
        """What meets others of its name here, and what comes of it. Raises Conflict when that is to fail."""
        return ()

    def names(self, ids: Mapping[str, str]) -> Names:
        """What the source's things are called here."""
        return References({"run": ids})

    def close(self) -> None:
        """Nothing is held open."""

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
        tags = [(home.id, key, value) for one, home in new for key, value in one.tags.items()] + moving.new_tags
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
                f"WHERE \"key\" = '{PARENT_TAG}' AND value IN (SELECT old FROM mlmigrate_renamed) "
                f"AND run_uuid IN (SELECT run_uuid FROM tags WHERE \"key\" = '{ORIGIN_TAG}')"
            )


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
    return [
        Home(id_, name if space == "default" else f"{space}/{name}", root, stage == "deleted", tags.get(id_, {}))
        for id_, name, root, stage, space in rows
    ]


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
    if artifacts_to not in ("", "keep"):
        return Path(artifacts_to).absolute()
    beside = place.file.absolute().parent if place.file is not None else Path.cwd()
    return beside / "mlartifacts"
