"""What `mlflow demo` fills a server with, carried to a database and to another server: told by raw SQL."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import rawsql
import servers
from mlmigrate import survives
from mlmigrate.adapters.base import Settings
from mlmigrate.address import Address, parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import Report, transfer
from mlmigrate.verify import Verdict, verify

pytestmark = pytest.mark.slow

FILLED = ("trace_info", "spans", "assessments", "model_versions", "evaluation_dataset_records", "scorers", "issues")
# a dataset that a run read arrives with the run, and is given an id anew; so are the links to it
NEW_IDS = {"datasets": ["dataset_uuid"], "inputs": ["input_uuid", "source_id"]}
RUN = "(select r.name || ' ' || r.start_time from runs r where r.run_uuid = {})"
SAME_IDS = "'mlflow.artifactLocation', 'mlflow.sourceRun', 'mlflow.trace.sizeBytes', 'mlflow.trace.sizeStats'"
# What both sides say to a question that names no id that a server gives: (kind of record, SQL). "" for runs' own.
QUESTIONS = {
    "experiments": (
        "",
        (
            "select e.name, t.key, t.value from experiments e join experiment_tags t using (experiment_id) "
            "where t.key not like 'mlmigrate.%'"
        ),
    ),
    "runs": ("", "select name, status, start_time, end_time, user_id, lifecycle_stage from runs"),
    "points": ("", "select r.name, m.key, m.value, m.step, m.timestamp from metrics m join runs r using (run_uuid)"),
    "datasets of runs": (
        "",
        (
            "select r.name, d.name, d.digest, d.dataset_schema from inputs i join datasets d on d.dataset_uuid = "
            "i.source_id join runs r on r.run_uuid = i.destination_id where i.source_type = 'DATASET'"
        ),
    ),
    "prompts": ("mlflow.prompt", "select name, description from registered_models"),
    "versions of prompts": (
        "mlflow.prompt",
        (
            "select v.name, v.version, v.description, t.key, t.value from model_versions v "
            "join model_version_tags t using (name, version) where t.key not like 'mlmigrate.%'"
        ),
    ),
    "aliases": ("mlflow.prompt", "select name, alias, version from registered_model_aliases"),
    "traces": (
        "mlflow.trace",
        (
            "select request_id, timestamp_ms, status, client_request_id, request_preview, response_preview, "
            "trace_name, session_id, input_tokens, output_tokens, total_tokens, total_cost from trace_info"
        ),
    ),
    "tags of traces": (
        "mlflow.trace",
        f"select request_id, key, value from trace_tags where key not in ({SAME_IDS}) and key not like 'mlmigrate.%'",
    ),
    "metadata of traces": (
        "mlflow.trace",
        f"select request_id, key, value from trace_request_metadata where key not in ({SAME_IDS})",
    ),
    "spans": (
        "mlflow.trace",
        (
            "select trace_id, span_id, parent_span_id, name, type, status, start_time_unix_nano, end_time_unix_nano, "
            "model_name, model_provider, total_cost from spans"
        ),
    ),
    "what spans say": ("mlflow.trace", "select trace_id, span_id, json(content) from spans"),
    "assessments": (
        "mlflow.trace",
        (
            "select assessment_id, trace_id, name, value, error, created_timestamp, source_type, span_id, rationale, "
            f"valid, overrides, {RUN.format('assessments.run_id')} from assessments where assessment_type <> 'issue'"
        ),
    ),
    "issues that traces show": (
        "mlflow.issue",
        "select a.trace_id, i.name, a.value, a.rationale from assessments a join issues i on i.issue_id = a.name",
    ),
    "traces of runs": (
        "mlflow.trace",
        (
            f"select source_id, {RUN.format('destination_id')} from entity_associations "
            "where source_type = 'trace' and destination_type = 'run'"
        ),
    ),
    "prompts of traces": (
        "mlflow.trace",
        "select source_id, destination_id from entity_associations where destination_type = 'prompt_version'",
    ),
    "evaluation datasets": (
        "mlflow.evaluation_dataset",
        (
            "select d.name, t.key, t.value from evaluation_datasets d join evaluation_dataset_tags t "
            "using (dataset_id) where t.key not like 'mlmigrate.%'"
        ),
    ),
    "their records": (
        "mlflow.evaluation_dataset",
        (
            "select d.name, json(r.inputs), json(r.expectations), json(r.outputs), r.source_type, r.source_id, "
            "r.input_hash from evaluation_dataset_records r join evaluation_datasets d using (dataset_id)"
        ),
    ),
    "their experiments": (
        "mlflow.evaluation_dataset",
        (
            "select d.name, e.name from entity_associations a join evaluation_datasets d on d.dataset_id = a.source_id "
            "join experiments e on e.experiment_id = a.destination_id where a.destination_type = 'experiment'"
        ),
    ),
    "scorers": (
        "mlflow.scorer",
        (
            "select s.scorer_name, v.scorer_version, v.serialized_scorer from scorers s "
            "join scorer_versions v using (scorer_id)"
        ),
    ),
    "issues": (
        "mlflow.issue",
        (
            "select name, description, status, severity, root_causes, categories, created_by, "
            f"{RUN.format('issues.source_run_id')} from issues"
        ),
    ),
    "label schemas": (
        "mlflow.label_schema",
        "select name, type, instruction, enable_comment, input_type, input_config from label_schemas",
    ),
    "review queues": (
        "mlflow.review_queue",
        "select q.name, q.queue_type, u.user_id from review_queues q left join review_queue_users u using (queue_id)",
    ),
    "what is reviewed": (
        "mlflow.review_queue",
        (
            "select q.name, i.item_type, i.item_id, i.status from review_queues q join review_queue_items i "
            "using (queue_id)"
        ),
    ),
    "what is asked in a review": (
        "mlflow.review_queue",
        (
            "select q.name, s.name from review_queues q join review_queue_label_schemas using (queue_id) "
            "join label_schemas s using (schema_id)"
        ),
    ),
}


@dataclass(frozen=True)
class Move:
    """A copy to another server that has been made."""

    database: Path
    files: Path
    report: Report
    verdict: Verdict


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A server that MLflow filled itself, without the internet."""
    server = servers.start(servers.CURRENT, tmp_path_factory.mktemp("demo") / "server")
    try:
        command = [
            servers.environment(servers.CURRENT) / "mlflow",
            "demo",
            "--no-browser",
            "--tracking-uri",
            server.url,
        ]
        # a trace that is sent from a thread may come after the links to it, which the server then refuses
        env = {**os.environ, "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        filled = rawsql.counts(server.database)
        assert [table for table in FILLED if not filled.get(table)] == []
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def copy(demo: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a new database, read from the server's own."""
    folder = tmp_path_factory.mktemp("copy")
    settings = Settings(artifacts_at=(str(demo.files),))
    there = parse(f"mlflow:sqlite:///{folder}/mlflow.db")
    source = parse(f"mlflow:sqlite:///{demo.database}")
    report = carried(source, there, folder, settings)
    assert (report.failed, report.losses) == ((), ())
    assert verify(Job(source, there, source_settings=settings), Silent()).findings == ()
    return folder / "mlflow.db"


@pytest.fixture(scope="module")
def moved(demo: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Move:
    """The same on another server, by way of both servers alone."""
    folder = tmp_path_factory.mktemp("moved")
    server = servers.start(servers.CURRENT, folder / "server")
    try:
        source, target = parse(f"mlflow:{demo.url}"), parse(f"mlflow:{server.url}")
        report = carried(source, target, folder)
        return Move(server.database, server.files, report, verify(Job(source, target), Silent()))
    finally:
        server.stop()


def carried(source: Address, target: Address, folder: Path, settings: Settings | None = None) -> Report:
    job = Job(source, target, source_settings=settings or Settings())
    with closing(Ledger.open(folder / "ledger", source, target)) as ledger:
        return transfer(job, ledger, Silent())


def files(store: Path) -> dict[str, str]:
    """The files below an experiment's folder, with what they hold."""
    found = {file.relative_to(store).parts[1:]: file.read_bytes() for file in store.rglob("*") if file.is_file()}
    return {"/".join(parts): hashlib.sha256(data).hexdigest() for parts, data in found.items()}


class TestInADatabase:
    """Database to database."""

    def test_every_row_of_every_table_arrives_but_for_the_ids_of_datasets(
        self, demo: servers.Server, copy: Path
    ) -> None:
        assert rawsql.differences(demo.database, copy, NEW_IDS) == {}

    def test_every_file_arrives(self, demo: servers.Server, copy: Path) -> None:
        assert files(copy.parent / "mlartifacts") == files(demo.files) != {}


class TestOnAnotherServer:
    """Server to server: ids that a server gives are others, and all that names them follows."""

    @pytest.mark.parametrize("what", QUESTIONS)
    def test_both_say_the_same(self, what: str, demo: servers.Server, moved: Move) -> None:
        kind, sql = QUESTIONS[what]
        meant = sorted(map(repr, rawsql.ask(demo.database, sql)))
        current = next(place for place in survives.targets() if place.name == survives.CURRENT)
        holding = current.limits.holding(kind) if kind else None
        if holding is not None and holding.how in ("record", "lost"):
            assert any(loss.what.startswith(kind) for loss in moved.report.losses)
            pytest.skip(f"{kind}: {holding.because}")
        assert meant != []
        assert sorted(map(repr, rawsql.ask(moved.database, sql))) == meant

    def test_nothing_failed_and_all_is_found_again(self, moved: Move) -> None:
        assert (moved.report.failed, moved.verdict.findings) == ((), ())

    def test_every_attachment_of_a_trace_arrives(self, demo: servers.Server, moved: Move) -> None:
        """Spans lie in the database; their other copy, traces.json, is for nobody."""
        attached = {path: digest for path, digest in files(demo.files).items() if not path.endswith("/traces.json")}
        assert files(moved.files).items() >= attached.items() != set()
