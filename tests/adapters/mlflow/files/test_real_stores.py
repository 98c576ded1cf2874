"""Every real file store is read to the last value, as an independent reader counts it, and is left untouched."""

import collections
import hashlib
import importlib.util
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context
from mlmigrate.address import Address

SHARED = Path(__file__).resolve().parents[5] / "shared"
NAMES = sorted(path.name.removesuffix(".tar.gz") for path in (SHARED / "data").glob("fs-*.tar.gz"))
# tables of objects, and what the independent reader calls their rows
TABLES = {
    "outputs": "outputs",
    "model_versions": "model_versions",
    "logged_models": "logged_models",
    "logged_model_params": "logged_model_params",
    "logged_model_tags": "logged_model_tags",
    "logged_model_metrics": "logged_model_metric_points_distinct",
    "trace_info": "traces",
    "trace_tags": "trace_tags",
    "trace_request_metadata": "trace_metas",
}


@pytest.fixture(scope="module")
def counter():
    """The independent reader."""
    path = SHARED / "tools" / "count_store.py"
    if not path.is_file():
        pytest.skip(f"no independent reader at {path}")
    spec = importlib.util.spec_from_file_location("count_store", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["count_store"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(
    scope="module", params=NAMES or [pytest.param("", marks=pytest.mark.skip("no real stores at ../shared/data"))]
)
def unpacked(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with tarfile.open(SHARED / "data" / f"{request.param}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return request.param, root


@pytest.fixture(scope="module")
def seen(unpacked, tree_hash, look):
    _, root = unpacked
    before = tree_hash(root)
    found = look(registry.open_source(Address("mlflow", str(root)), Context("source")))
    return found, before == tree_hash(root)


def content(points, params, tags):
    """The independent reader's hash of a run's content, each point once."""
    rows = [["m", *x] for x in points] + [["p", *x] for x in params] + [["t", *x] for x in tags]
    digest = hashlib.sha256()
    for row in sorted(map(json.dumps, rows)):
        digest.update(row.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def test_every_count_is_the_independent_one(unpacked, seen):
    name, _ = unpacked
    found, _ = seen
    counts = collections.defaultdict(
        int, json.loads((SHARED / "data" / "counts" / f"{name}.json").read_text())["counts"]
    )
    own = [key for key in found.artifacts if not key[0].startswith("@")]
    kinds = collections.Counter(record.kind for record in found.records)
    tables = collections.Counter()
    for record in found.records:
        for table, rows in json.loads(record.body).items():
            tables[table] += len(rows)
            tables["outputs"] += sum(row.get("source_type") == "RUN_OUTPUT" for row in rows)
    without_meta = sum("meta.yaml is missing" in loss.because for loss in found.oddities)
    assert {
        "experiments": len(found.experiments) - without_meta,
        "runs": len(found.runs),
        "points": len(found.points),
        "params": sum(len(run.params) for run in found.runs.values()),
        "tags": sum(len(run.tags) for run in found.runs.values()),
        "artifacts": len(own),
        "bytes": sum(len(found.artifacts[key]) for key in own),
        "inputs": sum(len(run.inputs) for run in found.runs.values()),
        "registered_models": kinds["mlflow.registered_model"],
        "traces": kinds["mlflow.trace"],
        **{table: tables[table] for table in TABLES},
        "model_bytes": sum(len(data) for (owner, _), data in found.artifacts.items() if owner.startswith("@model/")),
        "bad lines": sum(", line " in loss.what for loss in found.losses),
    } == {
        "experiments": counts["experiments"],
        "runs": counts["runs"],
        "points": counts["metric_points_distinct"],
        "params": counts["params"],
        "tags": counts["tags"],
        "artifacts": counts["artifacts"],
        "bytes": counts["artifact_bytes"],
        "inputs": counts["inputs"],
        "registered_models": counts["registered_models"],
        "traces": counts["traces"],
        **{table: counts[counted] for table, counted in TABLES.items()},
        "model_bytes": counts["logged_model_artifact_bytes"],
        "bad lines": counts["metric_lines_bad"],
    }


def test_every_run_holds_what_the_independent_reader_finds(unpacked, seen, counter):
    _, root = unpacked
    found, _ = seen
    points = collections.defaultdict(list)
    for row in found.points:
        points[row["run"]].append((row["key"], row["timestamp"], repr(row["value"]), row["step"]))
    mine = {
        run.id: (run.experiment, content(points[run.id], run.params.items(), run.tags.items()))
        for run in found.runs.values()
    }
    theirs = {}
    for run in counter.file_store(str(root)).runs:
        folder = root / (".trash" if run["trash"] else "") / run["exp"] / run["run"]
        lines, params, tags = [], [], []
        counter.metric_dir(counter.Store(), str(folder / "metrics"), "", run["run"], lines)
        counter.kv_dir(counter.Store(), str(folder / "params"), "param", (), sink=params)
        counter.kv_dir(counter.Store(), str(folder / "tags"), "tag", (), sink=tags)
        if len(set(lines)) == len(lines):
            assert content(lines, params, tags) == run["sha256"]
        theirs[run["run"]] = (run["exp"], content(set(lines), params, tags))
    assert mine == theirs


def test_every_artifact_is_there_to_the_byte(unpacked, seen):
    _, root = unpacked
    found, _ = seen
    on_disk = {}
    for place, _, files in os.walk(root):
        parts = Path(place).relative_to(root).parts
        if "artifacts" in parts and parts[1:2] not in (("models",), ("traces",)):
            for name in files:
                path = Path(place, name)
                on_disk[parts[1], "/".join([*parts[3:], name])] = path.read_bytes()
    assert {key: data for key, data in found.artifacts.items() if not key[0].startswith("@")} == on_disk


def test_the_store_is_left_untouched(seen):
    assert seen[1]
