"""Traces, datasets and the rest as they are read from a server once they were written: what verify compares with.

Ids that the server gave are looked up by what the thing holds, as the writers do; what a server makes itself of
what it is given, it makes here too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from mlmigrate.adapters.mlflow.objects import Row, Tree, tree_of
from mlmigrate.adapters.mlflow.rest import trace_bodies
from mlmigrate.adapters.mlflow.rest import write_others as others
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.here import ServerNames
from mlmigrate.adapters.mlflow.rest.holdings import holdings
from mlmigrate.adapters.mlflow.rest.objects import Known
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.rest.source import API
from mlmigrate.adapters.mlflow.rest.wire import OneExperiment
from mlmigrate.adapters.mlflow.rest.write_old_traces import ours
from mlmigrate.model import Artifact, Experiment, Record, Run

TRACE = "mlflow.trace"


def load(client: Client, server: Server, experiments: Sequence[str], known: Known) -> None:
    """Fills `known` with the traces of ours, where a server gave them ids of its own."""
    if (2, 14) <= server.version < (3, 0):
        ids = known.ids.setdefault("trace", {})
        for experiment in experiments:
            ids.update({origin: there.id for origin, there in ours(client, experiment)})


@dataclass
class There:
    """Gives records, with the names and ids that are known here, as the server shows them."""

    client: Client
    server: Server
    _roots: dict[str, str] = field(default_factory=dict)  # experiment -> where it keeps its artifacts
    _found: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # where -> key -> ids

    def record(self, record: Record) -> Record:
        """The record as it is read from there; one of another's kind as it is given."""
        tree = tree_of(record)
        find: Mapping[str, Callable[[Tree], str]] = {
            others.SCHEMA: lambda tree: self._named(
                tree["label_schemas"][0], "label-schemas", "label_schema", "schema_id"
            ),
            others.QUEUE: lambda tree: self._named(
                tree["review_queues"][0], "review-queues", "review_queue", "queue_id"
            ),
            others.ISSUE: self._issue,
            others.WEBHOOK: self._webhook,
        }
        if record.kind == TRACE:
            tree = trace_bodies.as_there(
                tree, self.server.version, self._root(str(tree["trace_info"][0]["experiment_id"]))
            )
        elif record.kind in find:
            record = replace(record, id=find[record.kind](tree) or record.id)
        else:
            return record
        self._leave_out(record.kind, tree)
        return replace(record, body=msgspec.json.encode(tree).decode())

    def _leave_out(self, kind: str, tree: Tree) -> None:
        """The parts that were given to the writer only to know the thing by."""
        for holding in holdings(self.server.version):
            for change in holding.changes if holding.kind == kind else ():
                table, _, column = change.part.partition(".")
                for row in tree.get(table, ()) if change.kept else ():
                    row.pop(column, None)

    def _root(self, experiment: str) -> str:
        if experiment not in self._roots:
            found = self.client.get(f"{API}/experiments/get", OneExperiment, {"experiment_id": experiment})
            self._roots[experiment] = found.experiment.artifact_location
        return self._roots[experiment]

    def _named(self, row: Row, path: str, word: str, key: str) -> str:
        found = others.named(self.client, path, word, str(row["experiment_id"]), row["name"])
        return "" if found is None else str(found[key])

    def _issue(self, tree: Tree) -> str:
        experiment = str(tree["issues"][0]["experiment_id"])
        key = others.issue_key(others.issue_body(tree, experiment))
        return self._next(experiment, key, others.issue_key, "issue_id", lambda: others.issues(self.client, experiment))

    def _webhook(self, tree: Tree) -> str:
        key = others.webhook_key(others.webhook_body(tree))
        return self._next("", key, others.webhook_key, "webhook_id", lambda: others.webhooks(self.client))

    def _next(
        self, at: str, key: str, key_of: Callable[[Any], str], id_field: str, listed: Callable[[], Iterator[Any]]
    ) -> str:
        """Of several that hold the same, each is given once."""
        if at not in self._found:
            self._found[at] = defaultdict(list)
            for one in listed():
                self._found[at][key_of(one)].append(str(one[id_field]))
        ids = self._found[at].get(key, [])
        return ids.pop(0) if ids else ""


@dataclass
class AllNames:
    """The names of a server's things, and how it shows those that it changes when they are written."""

    names: ServerNames
    there: There
    experiments: Mapping[str, str]  # the source's id -> the name here

    def experiment(self, experiment: Experiment) -> Experiment:
        """The experiment under the name that it has there."""
        return replace(experiment, name=self.experiments.get(experiment.id, experiment.name))

    def run(self, run: Run) -> Run:
        """The run as it is there."""
        return self.names.run(run)

    def artifact(self, artifact: Artifact) -> Artifact:
        """The file as it is there."""
        return self.names.artifact(artifact)

    def record(self, record: Record) -> Record:
        """The object as it is read from there."""
        return self.there.record(self.names.record(record))
