"""MLflow in its three shapes: a folder (`files`), a backend database (`sql`), a server (`rest`).

mlflow:./mlruns    mlflow:sqlite:///mlflow.db    mlflow:http://localhost:5000

Managed services are servers too: mlflow:databricks, mlflow:arn:aws:sagemaker:..., mlflow:azureml://...,
and whatever else an installed plugin of MLflow knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from mlmigrate.adapters.base import Context, Names, Source, Target
from mlmigrate.adapters.estate import Downloads, Estate
from mlmigrate.address import Address
from mlmigrate.errors import UsageError
from mlmigrate.model import Record

NAMED = ("mlflow.registered_model", "mlflow.prompt")
_DATABASE = re.compile(r"^(sqlite|postgresql|postgres|mysql|mariadb|mssql)(\+\w+)?://")
_SERVER = re.compile(r"^(https?://|databricks(-uc)?(://|$)|arn:)")
_OF_A_PLUGIN = re.compile(r"^(?!file:)([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # one letter is a drive


def whole(address: Address, env: Mapping[str, str]) -> Address:
    """`mlflow:` alone is the place that MLFLOW_TRACKING_URI names. Raises UsageError where it names none."""
    place = address.place or env.get("MLFLOW_TRACKING_URI", "")
    if not place:
        raise UsageError("mlflow: names no place and MLFLOW_TRACKING_URI is not set.", "For example mlflow:./mlruns")
    return replace(address, place=place)


def open_source(address: Address, context: Context) -> Source:
    """The folder, the database or the server that `address` names, for reading."""
    settled = whole(address, context.env)
    source: Source = shape(settled.place).open_source(settled, context)
    return source


def open_target(address: Address, context: Context) -> Target:
    """The database or the server that `address` names, for writing."""
    module = shape(address.place)
    if address.place.startswith("databricks-uc"):
        raise UsageError(
            "The registry of Unity Catalog cannot be written.", f"mlflow:{address.place.replace('-uc', '', 1)}"
        )
    if not hasattr(module, "open_target"):
        raise UsageError(
            f"{address.shown} is a folder, and MLflow is giving up folders as stores.",
            "Write into a database, for example mlflow:sqlite:///mlflow.db",
        )
    target: Target = module.open_target(address, context)
    return target


def open_estate(address: Address, context: Context) -> Estate:
    """The database or the folder that `address` names, for a move of its artifacts."""
    module = shape(address.place)
    if not hasattr(module, "open_estate"):
        raise UsageError(
            f"{address.shown} is a server, and no server lets its artifact addresses be changed.",
            "Give its database, for example mlflow:postgresql://user@host/mlflow",
        )
    estate: Estate = module.open_estate(address, context)
    return estate


def open_downloads(env: Mapping[str, str], server: str = "") -> Downloads:
    """MLflow's own client, in a process that sees `env`; through `server` where one is given."""
    downloads: Downloads = import_module(f"{__name__}.downloads").Downloads(env, server)
    return downloads


def places_under(folder: Path) -> list[Address]:
    """Every file store, then every SQLite backend database, under `folder`."""
    files = import_module(f"{__name__}.files")
    stores = [Address("mlflow", str(store)) for store in files.stores_under(folder)]
    return stores + [Address("mlflow", f"sqlite:///{file}") for file in files.databases_under(folder)]


def name_of(record: Record) -> str:
    """The name that registered models and prompts are found by; "" for all else."""
    objects = import_module(f"{__name__}.objects")
    return str(objects.root_of(record)["name"]) if record.kind in NAMED else ""


def renaming(experiments: Mapping[str, str], models: Mapping[str, str]) -> Names:
    """What things are called once experiments and registered models are called so."""
    names: Names = import_module(f"{__name__}.references").References(ids={"experiment": experiments}, models=models)
    return names


def shape(place: str) -> ModuleType:
    """The module for this tracking URI."""
    if not place:
        raise UsageError("mlflow: names no place and MLFLOW_TRACKING_URI is not set.", "For example mlflow:./mlruns")
    name = "sql" if _DATABASE.match(place) else "rest" if _is_server(place) else "files"
    return import_module(f"{__name__}.{name}")


def _is_server(place: str) -> bool:
    """Whether `place` is a server's, or of a scheme that is nobody's but may be a plugin's."""
    if _SERVER.match(place):
        return True
    found = _OF_A_PLUGIN.match(place)
    if found is None:
        return False
    known = {point.name for point in entry_points(group="mlflow.tracking_store")}
    return place.startswith(f"{found[1]}://") or found[1] in known
