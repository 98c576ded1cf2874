"""What lies beside runs is read from managed services as from a plain server, page by page."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from managed_server import AzureMl, Databricks, UnityCatalog

import servers
from mlmigrate.adapters.base import Context
from mlmigrate.adapters.mlflow import open_source
from mlmigrate.adapters.mlflow.rest.auth import Login
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.managed import AZURE_ML
from mlmigrate.adapters.mlflow.rest.server import probe
from mlmigrate.adapters.mlflow.rest.source import RestSource
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.steps import Steps
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer

pytestmark = pytest.mark.slow
FILL = Path(__file__).with_name("rest_fill.py")


@pytest.fixture(scope="module")
def filled(server_of, tmp_path_factory):
    """A server of its own with some of everything."""
    server = servers.start(servers.CURRENT, tmp_path_factory.mktemp("filled"))
    python = servers.environment(servers.CURRENT) / "python"
    subprocess.run([python, FILL, server.url], check=True, capture_output=True, cwd=server.folder, timeout=300)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def plain(filled):
    """All records as the server itself gives them."""
    return everything(open_source(parse(f"mlflow:{filled.url}"), Context("source")))


def everything(source) -> Counter:
    """(kind, id, body) of each record; the spans of traces are left out, which services keep elsewhere."""
    with source.read([ref for ref in source.refs() if ref.kind == "records"]) as reading:
        found = Counter((one.kind, one.id, without_spans(one.body)) for one in reading.records())
        losses = [loss for loss in reading.losses if not loss.what.startswith("spans of")]
    oddities = list(source.oddities())
    source.close()
    assert (losses, oddities) == ([], [])
    return found


def without_spans(body: str) -> str:
    kept = {table: rows for table, rows in json.loads(body).items() if table not in ("spans", "span_metrics")}
    return json.dumps(kept, sort_keys=True)


def of(found: Counter, *kinds: str) -> Counter:
    return Counter({one: n for one, n in found.items() if one[0] in kinds})


REGISTRY = ("mlflow.registered_model", "mlflow.prompt")


def test_databricks_gives_models_traces_and_the_registry_on_small_pages(filled, plain, monkeypatch):
    service = Databricks(filled.url, page=2)
    monkeypatch.setenv("DATABRICKS_HOST", service.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", service.token)
    service.busy = {"registered-models/search": 2, "traces/search": 1}
    found = everything(open_source(parse("mlflow:databricks"), Context("source", Steps(3))))
    service.stop()
    wanted = of(plain, *REGISTRY, "mlflow.logged_model", "mlflow.trace")
    assert len(wanted) > 8
    assert found == wanted
    assert set(service.refused) <= {"busy", "no such path"}


def test_unity_catalogs_registry_is_read_model_by_model(filled, plain, monkeypatch):
    service = UnityCatalog(filled.url, page=2)
    monkeypatch.setenv("DATABRICKS_HOST", service.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", service.token)
    found = everything(open_source(parse("mlflow:databricks-uc"), Context("source", Steps(3))))
    service.stop()
    wanted = of(plain, "mlflow.registered_model")
    assert wanted
    assert of(found, *REGISTRY) == wanted  # prompts are elsewhere in Unity Catalog
    assert service.refused["filter"] == 0


def test_azures_registry_is_read_with_its_nulls(filled, plain):
    service = AzureMl(filled.url, page=1)
    login = Login(service.url + service.workspace, {"Authorization": f"Bearer {service.token}"}, service=AZURE_ML)
    client = Client(login, Steps(3))
    found = everything(RestSource(client, probe(client), ()))
    service.stop()
    assert {one[:2] for one in of(found, *REGISTRY)} >= {one[:2] for one in of(plain, "mlflow.registered_model")}
    assert set(service.refused) <= {"newer"}


def test_the_registry_goes_to_databricks_and_the_rest_is_told(filled, current, monkeypatch, tmp_path):
    service = Databricks(current.url, page=2)
    monkeypatch.setenv("TARGET_DATABRICKS_HOST", service.url)
    monkeypatch.setenv("TARGET_DATABRICKS_TOKEN", service.token)
    source, target = parse(f"mlflow:{filled.url}"), parse("mlflow:databricks")
    with contextlib.closing(Ledger.open(tmp_path / "l", source, target)) as ledger:
        report = transfer(Job(source, target), ledger, Silent())
    service.stop()
    assert report.failed == ()
    versions = """select name, version, description from model_versions where current_stage != 'Deleted_Internal'
        and name in (select name from registered_models where name not in
        (select name from registered_model_tags where key = 'mlflow.prompt.is_prompt'))"""
    wanted = rows(filled, versions)
    assert wanted
    assert wanted <= rows(current, versions)
    told = {loss.because for loss in report.losses}
    assert "nothing is published of how Databricks takes it" in " ".join(told)
    assert set(service.refused) <= {"no such path"}


def rows(server, query: str) -> set:
    with contextlib.closing(sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)) as db:
        return set(db.execute(query))
