"""The protobuf classes that wandb ships; nothing else of the SDK is used."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from mlmigrate.errors import UsageError

Message = Any  # one of protobuf's making: it has no static type
Json = Any  # what json.loads gives
PRODUCER = "wandb"
MIN_CONSUMER = "0.70.0"  # the oldest W&B server that current SDKs write for

try:
    pb: Any = import_module("wandb.proto.wandb_internal_pb2")
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
