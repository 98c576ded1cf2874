"""Names of adapters -> the modules that hold them, as strings: nothing is imported before it is used.

Adapters from outside join through the entry point group "mlmigrate.adapters"; the entry point names
a module that has what adapters/base.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from mlmigrate.adapters.base import Context, Names, SameNames, Source, Target
from mlmigrate.adapters.estate import Downloads, Estate
from mlmigrate.address import Address
from mlmigrate.errors import UsageError
from mlmigrate.model import Record

BUILT_IN = {
    "archive": "mlmigrate.archive",
    "memory": "mlmigrate.adapters.memory",
    "merged": "mlmigrate.adapters.merged",
    "mlflow": "mlmigrate.adapters.mlflow",
    "wandb": "mlmigrate.adapters.wandb",
}
GROUP = "mlmigrate.adapters"


def names() -> dict[str, str]:
    """Every adapter's name -> its module."""
    return BUILT_IN | {point.name: point.value for point in entry_points(group=GROUP)}


def open_source(address: Address, context: Context) -> Source:
    """The place opened for reading.

    Raises UsageError when no adapter has that name or it cannot read, NotFound when nothing is there.
    """
    source: Source = _opener(address, "open_source", "read from")(address, context)
    return source


def open_target(address: Address, context: Context) -> Target:
    """The place opened for writing; nothing is written yet. Raises as `open_source` does."""
    target: Target = _opener(address, "open_target", "write to")(address, context)
    return target


def open_estate(address: Address, context: Context) -> Estate:
    """The store opened for a move of its artifacts; nothing is written yet. Raises as `open_source` does."""
    estate: Estate = _opener(address, "open_estate", "move the artifacts of")(address, context)
    return estate


def open_downloads(kind: str, env: Mapping[str, str], server: str = "") -> Downloads:
    """The tracker's own client for downloading files, to be closed. Raises UsageError when it is not installed."""
    downloads: Downloads = module_of(kind).open_downloads(env, server)
    return downloads


def whole(address: Address, env: Mapping[str, str]) -> Address:
    """The address with what it leaves to the environment, so that two of the same text are two places where they are.

    Raises UsageError where something is missing.
    """
    found = getattr(module_of(address.kind), "whole", None)
    settled: Address = address if found is None else found(address, env)
    return settled


def name_of(kind: str, record: Record) -> str:
    """The name that a record of such a place is found by; "" where it has none but its id."""
    found = getattr(module_of(kind), "name_of", None)
    return "" if found is None else str(found(record))


def renaming(kind: str, experiments: Mapping[str, str], models: Mapping[str, str]) -> Names:
    """What things of such a place are called once its experiments' ids and its models' names are these."""
    found = getattr(module_of(kind), "renaming", None)
    names: Names = SameNames() if found is None else found(experiments, models)
    return names


def places_under(folder: Path) -> list[Address]:
    """Every place under `folder` that a built-in adapter can read; those of one kind lie together."""
    finders = [getattr(module_of(kind), "places_under", None) for kind in BUILT_IN]
    return [place for find in finders if find is not None for place in find(folder)]


def module_of(kind: str) -> ModuleType:
    """The adapter's module, imported now."""
    known = names()
    if kind not in known:
        close = get_close_matches(kind, known, 1)
        raise UsageError(
            f'no adapter is called "{kind}".' + (f" Did you mean {close[0]}?" if close else ""),
            "mlmigrate adapters lists all of them",
        )
    try:
        return import_module(known[kind])
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "mlmigrate"):
            raise
        raise UsageError(f"{missing} is not installed.", f'pip install "mlmigrate[{kind}]"') from error


def _opener(address: Address, function: str, verb: str) -> Callable[[Address, Context], Any]:
    opener = getattr(module_of(address.kind), function, None)
    if opener is None:
        raise UsageError(f"mlmigrate cannot {verb} {address.kind}.", "mlmigrate adapters says what each can do")
    return cast("Callable[[Address, Context], Any]", opener)
