"""Label schemas, review queues, issues and webhooks arrive at a server; then verify finds all equal."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import closing
from pathlib import Path

import pytest

import servers
from mlmigrate.adapters.base import Settings
from mlmigrate.adapters.mlflow.objects import BY_NAME, KINDS, record_of, tree_of
from mlmigrate.adapters.mlflow.rest.holdings import holdings
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify


def _load(file: Path):
    if file.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[file.stem])
    return sys.modules[file.stem]


lab = _load(Path(__file__).with_name("rest_trees.py"))
filled = _load(Path(__file__).parents[1] / "filled.py")
pytestmark = pytest.mark.slow
KINDS_HERE = ("label_schema", "review_queue", "issue", "webhook")
TIMES = ("created_time", "last_update_time", "creation_time_ms", "last_update_time_ms", "created_timestamp")
IDS = ("experiment_id", "schema_id", "queue_id", "issue_id", "webhook_id", "source_run_id")
MORE_TIMES = ("last_updated_timestamp", "creation_timestamp")
EXCEPTIONS = frozenset([*TIMES, *MORE_TIMES, *IDS, "secret", "status"])  # a webhook's status: it is never enabled
TABLES = (
    "label_schemas",
    "review_queues",
    "review_queue_users",
    "review_queue_items",
    "issues",
    "webhooks",
    "webhook_events",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("others") / "mlflow.db"
    filled.fill(f"sqlite:///{file}", webhooks=True)
    return file


def taking_webhooks(folder: Path) -> servers.Server:
    """A server that takes webhooks to this machine."""
    before = servers._env
    servers._env = lambda bin_: {**before(bin_), **filled.WEBHOOKS_ENV}
    try:
        return servers.start(servers.CURRENT, folder)
    finally:
        servers._env = before


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    server = taking_webhooks(tmp_path_factory.mktemp("mlflow-webhooks"))
    yield server
    server.stop()


def dump(file: Path) -> dict[str, list[str]]:
    with lab.opened(file) as db:
        found = {table: [row for row in lab.rows(db, table) if not row.get("is_default")] for table in TABLES}
    return {
        table: sorted(json.dumps({k: v for k, v in row.items() if k not in EXCEPTIONS}, sort_keys=True) for row in rows)
        for table, rows in found.items()
    }


def test_every_column_is_as_it_was_and_a_second_copy_changes_nothing(there, source):
    server = lab.Lab(there.url, source)
    server.write(lab.records(source, "trace"))
    for _ in range(2):
        server.write(lab.records(source, *KINDS_HERE))
        assert dump(there.database) == dump(source)
    assert server.losses == []
    with lab.opened(there.database) as db:
        assert {row["status"] for row in lab.rows(db, "webhooks")} == {"DISABLED"}
        named = {row["schema_id"]: row["name"] for row in lab.rows(db, "label_schemas")}
        assert {named[row["schema_id"]] for row in lab.rows(db, "review_queue_label_schemas")} == {"verdict", "wanted"}
        assert {row["source_run_id"] for row in lab.rows(db, "issues")} <= set(server.known.ids["run"].values())


def test_a_schema_of_others_is_left_or_ours_gets_another_name(there, source):
    (record,) = (one for one in lab.records(source, "label_schema") if "categorical" in one.body)
    tree = tree_of(record)
    tree["label_schemas"][0] |= {"name": "contested", "input_config": '{"options": ["a", "b"], "multi_select": true}'}
    ours = record_of(BY_NAME[record.kind], tree)
    server = lab.Lab(there.url, source)
    body = {"experiment_id": server.known.ids["experiment"]["1"], "name": "contested", "type": "FEEDBACK"}
    body["input"] = {"pass_fail": {"positive_label": "y", "negative_label": "n"}}
    made = lab.call(there.url, "3.0/mlflow/label-schemas/create", body)
    theirs = made["label_schema"]["schema_id"]
    server.write([ours])
    (loss,) = server.losses
    assert loss.because == "the target has one of this name already, and it is left as it is"
    assert server.known.ids["label_schema"][ours.id] == theirs
    server.policy = "rename"
    for _ in range(2):
        server.write([ours])
    with lab.opened(there.database) as db:
        names = [row["name"] for row in lab.rows(db, "label_schemas", "name like 'contested%'")]
    assert sorted(names) == ["contested", "contested-2"]


def test_a_webhook_that_the_server_refuses_is_told(current, source):
    server = lab.Lab(current.url, source)
    server.write(lab.records(source, "webhook"))
    (loss,) = server.losses
    assert "must not resolve to a non-public IP address" in loss.because


def test_a_copy_of_everything_is_verified_equal(tmp_path, source):
    """But for what others write here too: registered models and logged models."""
    target = taking_webhooks(tmp_path / "server")
    try:
        allowed = Settings(allow_artifacts=(str(source.parent),))
        job = Job(parse(f"mlflow:sqlite:///{source}"), parse(f"mlflow:{target.url}"), source_settings=allowed)
        with closing(Ledger.open(tmp_path / "ledger.sqlite", job.source, job.target)) as ledger:
            report = transfer(job, ledger, Silent())
        assert report.failed == ()
        verdict = verify(job, Silent())
    finally:
        target.stop()
    assert verdict.equal == verdict.runs == 3
    others = ("mlflow.registered_model", "mlflow.prompt", "mlflow.logged_model")
    assert [one for one in verdict.findings if not one.what.startswith(others)] == []


def test_each_kind_is_held_or_said_to_be_lost_with_a_reason():
    for version in ((2, 9), (2, 22), (3, 5), (3, 17)):
        declared = {one.kind: one for one in holdings(version)}
        assert declared.keys() >= {kind.record for kind in KINDS}
        assert all(one.because for one in declared.values() if one.how == "lost")
