"""Objects of a SQLite database as rows, read by raw SQL; and writers to give them to, without a whole transfer."""

from __future__ import annotations

import json
import sqlite3
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mlmigrate.adapters.base import Limits, Settings
from mlmigrate.adapters.mlflow.objects import BY_NAME, record_of
from mlmigrate.adapters.mlflow.rest.auth import login
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.holdings import holdings
from mlmigrate.adapters.mlflow.rest.objects import Frame, Known, Writers
from mlmigrate.adapters.mlflow.rest.server import probe
from mlmigrate.adapters.mlflow.rest.uploads import Uploads
from mlmigrate.adapters.mlflow.rest.writing import Writing
from mlmigrate.fit import fit_record
from mlmigrate.steps import Steps

TRUTHS = frozenset(["valid", "is_numeric_value", "enable_comment", "is_default"])


def opened(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)
    db.row_factory = sqlite3.Row
    return db


def rows(db: sqlite3.Connection, table: str, where: str = "1", values=()) -> list[dict]:
    if not db.execute("select 1 from sqlite_master where name = ?", [table]).fetchone():
        return []
    found = db.execute(f"select * from {table} where {where} order by 1, 2", list(values))
    return [{name: bool(row[name]) if name in TRUTHS else row[name] for name in row.keys()} for row in found]  # noqa: SIM118


def tree(db: sqlite3.Connection, kind, root: dict) -> dict[str, list[dict]]:
    found = {kind.table: [root]}
    for child in kind.children:
        where = [f"{column} = ?" for column, _ in child.keys]
        values = [root[of] for _, of in child.keys]
        for column, allowed in child.where:
            where.append(f"{column} in ({', '.join('?' * len(allowed))})")
            values += allowed
        found.setdefault(child.table, []).extend(rows(db, child.table, " and ".join(where), values))
    for some in found.values():
        for row in some:
            row.pop("workspace", None)
    return {table: some for table, some in found.items() if some}


def records(file: Path, *kinds: str):
    """The objects of these kinds ("trace")."""
    with opened(file) as db:
        for name in kinds:
            kind = BY_NAME[f"mlflow.{name}"]
            for root in rows(db, kind.table):
                yield record_of(kind, tree(db, kind, root))


def call(url: str, path: str, body: dict | None = None, method: str = "POST") -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/api/{path}", data, {"Content-Type": "application/json"}, method=method)
    return json.load(urllib.request.urlopen(request))


class Lab:
    """A server, with experiments and runs made for those of a database. `losses` and `forseen` are what was told."""

    def __init__(self, url: str, source: Path, policy: str = "merge") -> None:
        self.url, self.source, self.policy = url, source, policy
        self.known = Known()
        self.losses, self.foreseen = [], {}
        with opened(source) as db:
            for row in rows(db, "experiments"):
                self.known.note("experiment", str(row["experiment_id"]), self._experiment(row))
            for row in rows(db, "runs"):
                body = {"experiment_id": self.known.ids["experiment"][str(row["experiment_id"])], "run_name": "r"}
                made = call(url, "2.0/mlflow/runs/create", body)["run"]["info"]["run_id"]
                self.known.note("run", row["run_uuid"], made)

    def _experiment(self, row: dict) -> str:
        if row["experiment_id"] == 0:
            return "0"
        name = f"{row['name']} {self.source.parent.name}"
        try:
            return call(self.url, "2.0/mlflow/experiments/create", {"name": name})["experiment_id"]
        except urllib.error.HTTPError:
            quoted = urllib.parse.quote(name)
            path = f"2.0/mlflow/experiments/get-by-name?experiment_name={quoted}"
            return call(self.url, path, None, "GET")["experiment"]["experiment_id"]

    def write(self, some, artifacts=(), url: str = "") -> None:
        """Gives records and files to their writers, as a pack does."""
        client = Client(login(url or self.url, {}), Steps(tries=8))
        with ThreadPoolExecutor(4) as pool:
            writers = Writers(self._frame(client, pool))
            limits = replace(Limits(), holdings=holdings(probe(client).version))
            for record in some:
                fitted = fit_record(record, limits)
                self.foreseen |= fitted.changed
                if fitted.record is not None:
                    writers.keep(fitted.record)
            for artifact in artifacts:
                writers.put(artifact)
            writers.commit()
        client.close()

    def _frame(self, client: Client, pool: ThreadPoolExecutor) -> Frame:
        futures: list = []

        def settle() -> None:
            some = futures[:]
            futures.clear()
            for future in some:
                future.result()

        return Frame(
            client,
            probe(client),
            Settings(on_conflict=self.policy),
            self.known,
            Writing(client),
            Uploads(client, (), self.losses),
            self.known.ids["experiment"].__getitem__,
            lambda *given: futures.append(pool.submit(*given)),
            settle,
            self.losses,
        )
