"""The protobuf classes that wandb ships; nothing else of the SDK is used, nor run."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from mlmigrate.errors import UsageError

Message = Any  # one of protobuf's making: it has no static type
Json = Any  # what json.loads gives
PRODUCER = "wandb"
MIN_CONSUMER = "0.70.0"  # the oldest W&B server that current SDKs write for

_CLASSES = "wandb.proto.wandb_internal_pb2"


def _classes() -> ModuleType:
    """The module of the classes. Importing `wandb` itself takes most of a second, and puts hooks into stdout.

    So while its modules are found, an empty package stands for it; afterwards all is as if nobody had imported it.
    """
    spec = None if "wandb" in sys.modules else find_spec("wandb")
    if spec is None or spec.submodule_search_locations is None:
        return import_module(_CLASSES)
    empty = ModuleType("wandb")
    empty.__path__ = list(spec.submodule_search_locations)
    sys.modules["wandb"] = empty
    try:
        return import_module(_CLASSES)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
            del sys.modules[name]


try:
    pb: Any = _classes()
    json_format: Any = import_module("google.protobuf.json_format")
    DecodeError: type[Exception] = import_module("google.protobuf.message").DecodeError
except ImportError as error:
    raise UsageError(
        "Offline runs of Weights & Biases are read and written with the package wandb, which is not installed.",
        "pip install 'mlmigrate[wandb]'",
    ) from error


def producer() -> str:
    """The version of the SDK whose classes these are."""
    return version(PRODUCER)


def has(message: Message, field: str) -> bool:
    """Whether this version of the SDK knows the field."""
    return field in message.DESCRIPTOR.fields_by_name


def utf8(text: str) -> str:
    """The text as protobuf can hold it: half of a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
