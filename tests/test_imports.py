"""Imports run one way, SDKs stay in adapters, and `mlmigrate --help` imports next to nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
# each room -> how high it lies; a module imports from its own height and below
ROOMS = {
    "": 0,  # mlmigrate/__init__.py: the version
    "model": 0,
    "errors": 0,
    "address": 0,
    "events": 0,
    "selection": 0,
    "fingerprint": 0,
    "messages": 0,
    "demo": 0,
    "adapters": 1,
    "archive": 1,
    "storage": 1,
    "engine": 2,
    "steps": 2,
    "ledger": 2,
    "mapping": 2,
    "fit": 2,
    "compare": 2,
    "pack": 2,
    "passing": 2,
    "weighing": 2,
    "survey": 2,
    "globs": 0,
    "costs": 3,
    "transfer": 3,
    "plan": 3,
    "verify": 3,
    "relocate": 3,
    "report": 3,
    "progress": 3,
    "testing": 4,
    "survives": 4,
    "cli": 4,
    "__main__": 5,
}
SDKS = {
    "adbc_driver_manager",
    "adbc_driver_postgresql",
    "adbc_driver_sqlite",
    "boto3",
    "botocore",
    "distributed",
    "mlflow",
    "obstore",
    "psycopg2",
    "pymysql",
    "sqlalchemy",
    "urllib3",
    "wandb",
}
ALLOWED = {("engine", "distributed")}  # the one that is no tracker's
# the rows that records are made of, and the files that tell of a run of W&B's, whoever carries them
VOCABULARY = {"mlmigrate.adapters.mlflow.objects", "mlmigrate.adapters.wandb.mapped"}


def modules():
    for file in sorted((SRC / "mlmigrate").rglob("*.py")):
        parts = file.relative_to(SRC).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


MODULES = dict(modules())


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def room(module):
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    height = ROOMS[room(name)]
    above = {one for one in imported(MODULES[name]) if one.startswith("mlmigrate") and ROOMS[room(one)] > height}
    assert above == set()


@pytest.mark.parametrize("name", MODULES)
def test_only_the_registry_names_adapters(name):
    if room(name) in ("testing", "survives"):
        return  # suites fill a Memory; a page is made of what all adapters declare
    own = ".".join(name.split(".")[:3])
    adapters = {one for one in imported(MODULES[name]) if one.startswith("mlmigrate.adapters.")}
    others = {one for one in adapters if one.split(".")[2] not in ("base", "estate", "registry")}
    assert {one for one in others if not one.startswith(own)} <= VOCABULARY


@pytest.mark.parametrize("name", MODULES)
def test_trackers_and_databases_are_spoken_to_by_adapters_alone(name):
    if room(name) in ("adapters", "storage"):
        return
    found = {(room(name), one.partition(".")[0]) for one in imported(MODULES[name])}
    assert {pair for pair in found if pair[1] in SDKS} <= ALLOWED


@pytest.mark.parametrize("arguments", [["--help"], ["copy", "--help"], ["verify", "-h"], ["--version"]])
def test_help_imports_no_sdk_and_no_columns(arguments):
    heavy = ["pyarrow", "mlflow", "rich", "tqdm", "sqlalchemy", "yaml", "msgspec", "adbc_driver_manager", "urllib3"]
    script = f"""
import sys, json
sys.argv = ["mlmigrate", *{arguments!r}]
from mlmigrate.cli import main
try:
    main()
finally:
    print(json.dumps([name for name in {heavy!r} if name in sys.modules]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == []
