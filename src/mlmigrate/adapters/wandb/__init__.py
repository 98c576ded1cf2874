"""Weights & Biases in its two shapes: a server (`api`), and folders of offline runs (`offline`).

wandb:entity    wandb:entity/project    wandb:https://wandb.corp/entity/project    wandb:./wandb

    source  opens runs one by one (shape.Opened)     reading.py makes mlmigrate's values of them
    target  delivers runs one by one (shape.Sheet)   writing.py makes them of mlmigrate's values
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from mlmigrate.adapters.base import Context, Source, Target
from mlmigrate.adapters.wandb.address import is_folder, on_server
from mlmigrate.address import Address


def whole(address: Address, env: Mapping[str, str]) -> Address:
    """An entity of the server that WANDB_BASE_URL names is one of that server, whichever it will be tomorrow."""
    return address if is_folder(address.place) else replace(address, place=on_server(address.place, env))


def open_source(address: Address, context: Context) -> Source:
    """The folder or the server's project(s) that `address` names, for reading."""
    source: Source = _shape(address).open_source(address, context)
    return source


def open_target(address: Address, context: Context) -> Target:
    """The folder or the server's project(s) that `address` names, for writing."""
    target: Target = _shape(address, "target").open_target(address, context)
    return target


def _shape(address: Address, part: str = "source") -> ModuleType:
    shape = "offline" if is_folder(address.place) else "api"
    return import_module(f"{__name__}.{shape}.{part}")
