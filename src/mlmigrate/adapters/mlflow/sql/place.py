"""A pack on its way into a backend database."""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.mlflow import local_artifacts
from mlmigrate.adapters.mlflow.direct import reachable
from mlmigrate.adapters.mlflow.objects import BY_NAME
from mlmigrate.adapters.mlflow.references import NAMED_VERSIONS
from mlmigrate.adapters.mlflow.sending import Sending
from mlmigrate.adapters.mlflow.sql import incoming
from mlmigrate.adapters.mlflow.sql.arriving import foreign
from mlmigrate.adapters.mlflow.sql.connect import POSTGRESQL, Session
from mlmigrate.adapters.mlflow.sql.homes import folder_of
from mlmigrate.adapters.mlflow.sql.latest import Latest
from mlmigrate.adapters.mlflow.sql.naming import relocated
from mlmigrate.adapters.mlflow.sql.spool import Spool
from mlmigrate.errors import Conflict
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, Artifact, Loss, Record, Run, RunRef

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.sql.homes import Home
    from mlmigrate.adapters.mlflow.sql.target import DatabaseTarget

_RUN_ID = re.compile(r"^[A-Za-z0-9][\w\-]{0,31}$", re.ASCII)
_SOURCE_TYPES = ("NOTEBOOK", "JOB", "LOCAL", "UNKNOWN", "PROJECT")
_UNTOLD = {"source_type": "UNKNOWN", "source_name": "", "source_version": "", "entry_point_name": ""}
_DATASETS = uuid.UUID("5c7b3c5e-6a2f-5f0e-9a35-2d9a6f1f6b10")
_KEPT = 500  # records laid aside at once
OWNERS = {"mlflow.logged_model": "@model/", "mlflow.trace": "@trace/"}  # kinds that have files -> their owner
WAITS_TAG = OURS + "waits"  # on a run that is there, until what names models in it is set right
_FEW = 8  # files are put on the disk one after another when they are so few


class DatabasePlace:
    """Runs, points, artifacts and rows laid aside until `commit` writes them in one transaction."""

    def __init__(self, target: DatabaseTarget, refs: Sequence[RunRef], *, distinct: bool) -> None:
        self.losses: list[Loss] = []
        self._target, self._distinct = target, distinct
        self._stamps = {ref.origin: ref.stamp for ref in refs}
        self._tables = [ref for ref in refs if ref.kind == "records"]
        self._runs: Sequence[Run] = ()
        self._ids: dict[str, str] = {}
        self._folders: dict[str, Path | str | None] = {}
        self._owners: dict[str, str] = {}  # of files: "@model/<id>" -> the source's id of its experiment
        self._kept: list[tuple[str, str]] = []
        self._lost: dict[str, int] = {}
        self._points, self._latest = Spool(), Latest()
        self._rows = Spool()
        self._files: list[Path] = []
        self._sending = Sending(target.stores, self.losses)

    def begin(self, runs: Sequence[Run]) -> None:
        """Finds out under which ids the runs go. Raises Conflict when one of these is somebody else's."""
        self._runs = runs
        if not runs:
            return
        with self._target.reading() as session:
            self._ids = self._choose(session)
            self._check(session)

    def points(self, batch: pa.RecordBatch) -> None:
        """Lays points aside, in the shape of the table metrics."""
        rows = _metrics(batch, self._ids, boolean=self._target.database.kind == POSTGRESQL)
        self._latest.add(rows)
        self._points.add(rows)

    def put(self, artifact: Artifact) -> None:
        """Writes a file where the run will look for it."""
        if self._target.keep_uris:
            return
        folder = self._folder(artifact.owner)
        if folder is None:
            self._lost[artifact.owner] = self._lost.get(artifact.owner, 0) + 1
            return
        meant = relocated(artifact, *self._place(artifact.owner))
        if isinstance(folder, str):
            self._sending.put(folder, meant)
            return
        try:
            path, _, _ = local_artifacts.write(folder, meant)
        except (local_artifacts.BadName, local_artifacts.Taken) as error:  # an object store holds such names
            self.losses.append(Loss(artifact.owner, f"artifact {artifact.path!r}", error.message))
        else:
            self._files.append(path)

    def keep(self, record: Record) -> None:
        """Lays an object, or a row of some table, aside."""
        owner = OWNERS.get(record.kind)
        if owner is not None:
            self._owners[f"{owner}{record.id}"] = record.owner
        self._kept.append((record.kind, record.body))
        if len(self._kept) >= _KEPT:
            self._lay_aside()

    def commit(self, losses: Sequence[Loss] = ()) -> Mapping[str, str]:  # noqa: ARG002  there is no table for them
        """Writes everything at once; may be called again when it failed."""
        _flush(self._files)
        self._sending.settle()
        self._lay_aside()
        found: list[Loss] = []
        known = self._target.arrived() if self._tables else {}
        with self._target.transaction() as session:
            if self._runs:
                _Writing(self._target, session, self._runs, self._ids, found).write(self._stamps)
                self._write_points(session)
            if self._tables:
                incoming.write(self._target, session, self._rows.batches, self._tables, known, found)
        self.losses += found
        because = "belong to something that is not carried, or that the target has from elsewhere"
        self.losses += [Loss("", f"{n} artifacts of {owner}", because) for owner, n in self._lost.items()]
        self._lost = {}
        return {run.origin: self._ids[run.id] for run in self._runs} | {ref.origin: ref.id for ref in self._tables}

    def close(self) -> None:
        """Gives back what was laid aside."""
        self._sending.close()
        self._points.close()
        self._rows.close()

    def _choose(self, session: Session) -> dict[str, str]:
        """The source's id -> the id here: the one that the run has already, its own, or one made from its origin."""
        origins = [run.origin for run in self._runs]
        sql = f"SELECT run_uuid AS id, value AS origin FROM tags WHERE \"key\" = '{ORIGIN_TAG}'"
        here = {origin: id_ for id_, origin in session.rows(f"{sql} AND {session.among('value', origins)}")}
        return {run.id: here.get(run.origin) or _kept(run) for run in self._runs}

    def _check(self, session: Session) -> None:
        for id_, origin in _held(session, self._ids.values()).items():
            expected = {run.origin for run in self._runs if self._ids[run.id] == id_}
            if origin not in expected:
                raise Conflict(
                    f"Run {id_} is in {self._target.database.shown} already, and did not come from there.",
                    "Nothing was overwritten. Give another database, or delete that run for good first.",
                )

    def _lay_aside(self) -> None:
        if self._kept:
            kinds, bodies = zip(*self._kept, strict=True)
            self._rows.add(pa.RecordBatch.from_pydict({"kind": list(kinds), "body": list(bodies)}))
            self._kept = []

    def _folder(self, owner: str) -> Path | str | None:
        """Where the files of a run or an object go: a folder, the URI of an object store, None for what stays out."""
        if owner not in self._folders:
            _, place = self._place(owner)
            far = place is None or reachable(place)
            self._folders[owner] = place if place is None or far else folder_of(place, self._target.store)
        return self._folders[owner]

    def _place(self, owner: str) -> tuple[str, str | None]:
        """The source's id of an artifact's owner, and where it keeps its files here."""
        if not owner.startswith("@"):
            run = next(run for run in self._runs if run.id == owner)
            return owner, home_of(self._target, run).of_run(self._ids[owner])
        named, _, id_ = owner.partition("/")
        home = self._target.homes.get(self._owners.get(owner, ""))
        if home is None or owner in self._foreign:
            return id_, None
        return id_, home.of_model(id_) if named == "@model" else home.of_trace(id_)

    @cached_property
    def _foreign(self) -> frozenset[str]:
        """The owners of files that are here and not ours; known once all records are kept, which come first."""
        known = self._target.arrived()
        found: set[str] = set()
        if not self._target.shape.has("logged_models"):
            return frozenset()
        with self._target.reading() as session:
            for kind, prefix in OWNERS.items():
                ids = [owner.removeprefix(prefix) for owner in self._owners if owner.startswith(prefix)]
                ours = incoming.before(self._tables, known)
                found.update(prefix + id_ for id_ in foreign(session, BY_NAME[kind], ids, before=ours))
        return frozenset(found)

    def _write_points(self, session: Session) -> None:
        if not self._points.rows:
            return
        batches = self._points.batches()
        reader = _reader(batches, plain=session.kind == POSTGRESQL)
        if self._distinct:
            session.ingest("metrics", reader)
        else:
            session.ingest("mlmigrate_points", reader, temporary=True)
            columns = '"key", value, timestamp, run_uuid, step, is_nan'
            order = "ctid" if session.kind == POSTGRESQL else "rowid"
            session.execute(
                f"INSERT INTO metrics ({columns}) SELECT {columns} FROM mlmigrate_points WHERE 1 = 1 "
                f"ORDER BY {order} ON CONFLICT DO NOTHING"
            )
        latest = self._latest.table()
        if latest is not None:
            session.ingest("latest_metrics", _plain(latest) if session.kind == POSTGRESQL else latest)


class _Writing:
    """The rows of a pack's runs, all but their points."""

    def __init__(
        self, target: DatabaseTarget, session: Session, runs: Sequence[Run], ids: Mapping[str, str], losses: list[Loss]
    ) -> None:
        self.target, self.session, self.runs, self.ids, self.losses = target, session, runs, ids, losses

    def write(self, stamps: Mapping[str, str]) -> None:
        """Runs first: the other tables refer to them."""
        self._claim()
        self._write_runs()
        tags = [
            (run, name, value)
            for run in self.runs
            for name, value in (
                *run.tags.items(),
                (ORIGIN_TAG, run.origin),
                (STAMP_TAG, stamps.get(run.origin, run.stamp)),
                *([(WAITS_TAG, "models")] if _names_models(run) else []),
            )
        ]
        self._write_pairs("tags", tags)
        self._write_pairs(
            "params", [(run, name, str(value)) for run in self.runs for name, value in run.params.items()]
        )
        if any(run.inputs for run in self.runs):
            self._write_inputs()

    def _claim(self) -> None:
        """Takes the right to write, looks again at who holds the ids, and takes earlier states of our runs away."""
        self.session.execute("DELETE FROM tags WHERE 1 = 0")  # SQLite: from here on nobody else writes
        origins = {self.ids[run.id]: run.origin for run in self.runs}
        held = _held(self.session, self.ids.values())
        strange = [id_ for id_, origin in held.items() if origins[id_] != origin]
        if strange:
            raise Conflict(f"Run {strange[0]} came into {self.target.database.shown} meanwhile, from elsewhere.")
        if held:
            self._clear(list(held))

    def _clear(self, ids: list[str]) -> None:
        s = self.session
        reading = f"source_type = 'DATASET' AND destination_type = 'RUN' AND {s.among('destination_id', ids)}"
        s.execute(f"DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM inputs WHERE {reading})")
        s.execute(f"DELETE FROM inputs WHERE {reading}")
        for table in ("tags", "params", "metrics", "latest_metrics"):
            s.execute(f"DELETE FROM {table} WHERE {s.among('run_uuid', ids)}")

    def _write_runs(self) -> None:
        rows = [self._row(run) for run in self.runs]
        kinds = {"experiment_id": self.target.int_type} | dict.fromkeys(
            ("start_time", "end_time", "deleted_time"), pa.int64()
        )
        columns = {name: self._texts([row[name] for row in rows], kinds.get(name), rows) for name in rows[0]}
        self.session.ingest("mlmigrate_runs", pa.table(columns), temporary=True)
        names = ", ".join(columns)
        # an update, not a new row: rows of other tables refer to it and would go with the old one
        changed = ", ".join(f"{name} = excluded.{name}" for name in columns if name != "run_uuid")
        self.session.execute(
            f"INSERT INTO runs ({names}) SELECT {names} FROM mlmigrate_runs WHERE 1 = 1 "
            f"ON CONFLICT (run_uuid) DO UPDATE SET {changed}"
        )

    def _row(self, run: Run) -> dict[str, Any]:
        home, id_ = home_of(self.target, run), self.ids[run.id]
        uri = home.of_run(id_)
        system = {name: run.system.get(name) for name in _UNTOLD} if run.system else _UNTOLD
        if system["source_type"] not in (*_SOURCE_TYPES, None):
            self._lose(run, f"source type {system['source_type']!r}", "is none that MLflow knows; now UNKNOWN")
            system = {**system, "source_type": "UNKNOWN"}
        return {
            "run_uuid": id_,
            "name": run.name,
            **{name: self._cut(run, name, value) for name, value in system.items()},
            "user_id": run.user,
            "status": run.status,
            "start_time": run.start,
            "end_time": run.end,
            "lifecycle_stage": "deleted" if run.deleted else "active",
            "artifact_uri": run.artifact_uri if self.target.keep_uris and run.artifact_uri else uri,
            "experiment_id": home.id,
            "deleted_time": run.deleted_at,
        }

    def _cut(self, run: Run, column: str, value: str | None) -> str | None:
        length = self.target.shape.length("runs", column)
        if value is None or length is None or len(value) <= length:
            return value
        self._lose(run, f"{column} {value[:40]!r}...", f"cut from {len(value)} to {length} characters")
        return value[:length]

    def _write_pairs(self, table: str, rows: list[tuple[Run, str, str]]) -> None:
        if not rows:
            return
        runs, names, values = zip(*rows, strict=True)
        columns = {
            "key": self._texts(names, None, runs),
            "value": self._texts(values, None, runs),
            "run_uuid": pa.array([self.ids[run.id] for run in runs]),
        }
        self.session.ingest(table, pa.table(columns))

    def _write_inputs(self) -> None:
        rows = _inputs(self.runs, self.ids, self._home_id)
        first = [given for _, given, _ in rows]
        columns: dict[str, pa.Array] = {
            "experiment_id": pa.array([self._home_id(run) for run, _, _ in rows], self.target.int_type),
            "input_uuid": pa.array([uuid_ for _, _, uuid_ in rows]),
            "run_uuid": pa.array([self.ids[run.id] for run, _, _ in rows]),
            "dataset_uuid": pa.array(
                [dataset_id(self._home_id(run), given.name, given.digest) for run, given, _ in rows]
            ),
        }
        runs = [run for run, _, _ in rows]
        for name in ("name", "digest", "source_type", "source", "schema", "profile"):
            columns[name] = self._texts([getattr(given, name) for given in first], None, runs)
        self.session.ingest("mlmigrate_inputs", pa.table(columns), temporary=True)
        self._spread_inputs()
        tags = [(run, uuid_, *pair) for run, given, uuid_ in rows for pair in given.tags.items()]
        if tags:
            runs, uuids, names, values = map(list, zip(*tags, strict=True))
            table = {
                "input_uuid": uuids,
                "name": self._texts(names, None, runs),
                "value": self._texts(values, None, runs),
            }
            self.session.ingest("input_tags", pa.table(table))

    def _spread_inputs(self) -> None:
        """A dataset that is there already, under whatever id, is the one that is meant."""
        self.session.execute(
            "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type, dataset_source, "
            "dataset_schema, dataset_profile) SELECT DISTINCT min(dataset_uuid), experiment_id, name, digest, "
            "min(source_type), min(source), min(schema), min(profile) FROM mlmigrate_inputs WHERE 1 = 1 "
            "GROUP BY experiment_id, name, digest ON CONFLICT DO NOTHING"
        )
        self.session.execute(
            "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id, step) "
            "SELECT i.input_uuid, 'DATASET', d.dataset_uuid, 'RUN', i.run_uuid, 0 FROM mlmigrate_inputs i "
            "JOIN datasets d ON d.experiment_id = i.experiment_id AND d.name = i.name AND d.digest = i.digest"
        )

    def _home_id(self, run: Run) -> int:
        return home_of(self.target, run).id

    def _texts(self, values: Sequence[Any], kind: pa.DataType | None, owners: Sequence[Any]) -> pa.Array:
        """A column; of text, what the database cannot hold becomes a replacement character."""
        if kind is not None:
            return pa.array(values, kind)
        nul = self.session.kind == POSTGRESQL
        with suppress(UnicodeEncodeError):
            if not nul or not any(value is not None and "\0" in value for value in values):
                return pa.array(values, pa.utf8())
        cleaned = [value if value is None else clean(value, nul=nul) for value in values]
        for owner, before, after in zip(owners, values, cleaned, strict=True):
            if before != after:
                run = owner if isinstance(owner, Run) else None
                id_ = run.id if run is not None else owner["run_uuid"]
                why = "held characters that the database cannot hold"
                self.losses.append(Loss(id_, f"text {str(after)[:40]!r}", why))
        return pa.array(cleaned, pa.utf8())

    def _lose(self, run: Run, what: str, because: str) -> None:
        self.losses.append(Loss(run.id, what, because, run.experiment))


def home_of(target: DatabaseTarget, run: Run) -> Home:
    """The experiment that a run lives in here."""
    home = target.homes.get(run.experiment)
    if home is None:
        raise Conflict(f"Run {run.id} belongs to experiment {run.experiment!r}, which was not prepared.")
    return home


def dataset_id(experiment: int, name: str, digest: str) -> str:
    """The same for the same dataset of an experiment, whoever writes it."""
    return uuid.uuid5(_DATASETS, f"{experiment}\0{name}\0{digest}".encode("utf-8", "replace").decode()).hex


def clean(text: str, *, nul: bool) -> str:
    """`text` as UTF-8 can hold it, and without NUL where `nul`."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if nul else text


def _inputs(runs: Sequence[Run], ids: Mapping[str, str], home: Callable[[Run], int]) -> list[tuple[Run, Any, str]]:
    """Each run's readings of datasets with their ids; two readings of one dataset by one run are one."""
    rows: dict[str, tuple[Run, Any, str]] = {}
    for run in runs:
        for given in run.inputs:
            dataset = dataset_id(home(run), given.name, given.digest)
            id_ = uuid.uuid5(_DATASETS, f"{ids[run.id]}/{dataset}").hex
            rows.setdefault(id_, (run, given, id_))
    return list(rows.values())


def _names_models(run: Run) -> bool:
    """Whether tags or params may name registered models, which come later and may get other names and numbers."""
    values = (value for value in (*run.tags.values(), *run.params.values()) if isinstance(value, str))
    return any(key in run.tags for key in NAMED_VERSIONS) or any("models:/" in value for value in values)


def _kept(run: Run) -> str:
    return run.id if _RUN_ID.match(run.id) else hashlib.sha256(run.origin.encode("utf-8", "replace")).hexdigest()[:32]


def _held(session: Session, ids: Iterable[str]) -> dict[str, str | None]:
    """The runs of these ids that are here, with the origin that we noted, None for none."""
    rows = session.rows(
        f"SELECT {session.text('r.run_uuid')} AS id, COALESCE({session.text('t.value')}, '') AS origin FROM runs r "
        f"LEFT JOIN tags t ON t.run_uuid = r.run_uuid AND t.\"key\" = '{ORIGIN_TAG}' "
        f"WHERE {session.among('r.run_uuid', list(ids))}"
    )
    return {id_: origin or None for id_, origin in rows}


def _metrics(batch: pa.RecordBatch, ids: Mapping[str, str], *, boolean: bool) -> pa.RecordBatch:
    """Points as rows of metrics: NaN is a zero with a mark."""
    value = batch.column("value")
    nan = pc.is_nan(value)
    if pc.any(nan).as_py():
        value = pc.if_else(nan, 0.0, value)
    run = batch.column("run")
    here = pa.array([ids.get(one) for one in run.dictionary.to_pylist()], pa.utf8())
    columns = {
        "key": batch.column("key"),
        "value": value,
        "timestamp": pc.fill_null(batch.column("timestamp"), 0),
        "run_uuid": pa.DictionaryArray.from_arrays(run.indices, here),
        "step": pc.fill_null(batch.column("step"), 0),
        "is_nan": nan if boolean else nan.cast(pa.int64()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _reader(batches: Iterator[pa.RecordBatch], *, plain: bool) -> pa.RecordBatchReader:
    first = next(batches)
    schema = _plain(first).schema if plain else first.schema

    def all_of_them() -> Iterator[pa.RecordBatch]:
        yield _plain(first) if plain else first
        for batch in batches:
            yield _plain(batch) if plain else batch

    return pa.RecordBatchReader.from_batches(schema, all_of_them())


def _plain(rows: Any) -> Any:  # noqa: ANN401 - a batch or a table
    """Dictionaries written out: COPY knows none."""
    fields = [pa.field(f.name, pa.utf8() if pa.types.is_dictionary(f.type) else f.type) for f in rows.schema]
    return rows.cast(pa.schema(fields))


def _flush(files: list[Path]) -> None:
    """On the disk before the database says that they are there."""
    if len(files) <= _FEW:
        local_artifacts.flush(files)
        return
    with ThreadPoolExecutor(_FEW) as pool:
        list(pool.map(lambda file: local_artifacts.flush([file]), files))
