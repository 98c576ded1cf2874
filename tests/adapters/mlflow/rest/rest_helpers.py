"""What the tests of servers share: small estates, and a server's database read without us."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from dataclasses import replace

from mlmigrate.adapters.memory import Held, Memory
from mlmigrate.model import Experiment
from mlmigrate.testing.samples import make

COLUMNS = "run_uuid, name, status, start_time, end_time, user_id, lifecycle_stage"


def estate(*held: Held, **fields) -> Memory:
    """One experiment with these runs, under a name of its own."""
    memory = Memory()
    memory.add(Experiment("7", f"estate {uuid.uuid4().hex[:8]}", {"team": "größe"}, **fields))
    for one in held:
        memory.held[one.run.origin] = one
    return memory


def fresh(name: str, **fields):
    """A run whose id nobody else has."""
    tags = {"mlflow.runName": name} | fields.pop("tags", {})
    run = replace(make(name + uuid.uuid4().hex, experiment="7"), name=name)
    return replace(run, **fields, tags={key: value for key, value in tags.items() if value is not None})


class Database:
    """The server's own database, read without us."""

    def __init__(self, server) -> None:
        self._db = sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)

    def run(self, run) -> tuple:
        ours = "select run_uuid from tags where key = 'mlmigrate.origin' and value = ?"
        (row,) = self._db.execute(f"select {COLUMNS} from runs where run_uuid in ({ours})", [run.origin]).fetchall()
        return row

    def tags(self, id_: str) -> dict[str, str]:
        return dict(self._db.execute("select key, value from tags where run_uuid = ?", [id_]))

    def params(self, id_: str) -> dict[str, str]:
        return dict(self._db.execute("select key, value from params where run_uuid = ?", [id_]))

    def points(self, id_: str) -> Counter:
        rows = self._db.execute("select key, step, timestamp, value, is_nan from metrics where run_uuid = ?", [id_])
        return Counter((*row[:3], "NaN" if row[4] else row[3]) for row in rows)

    def experiment(self, name: str) -> str:
        (row,) = self._db.execute("select lifecycle_stage from experiments where name = ?", [name]).fetchall()
        return row[0]

    def count(self, name: str) -> int:
        query = "select count(*) from runs r join experiments e on e.experiment_id = r.experiment_id where e.name = ?"
        return self._db.execute(query, [name]).fetchone()[0]


def ours(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith("mlmigrate.")}
