"""A .wandb log, written and read by hand: W&B's records in LevelDB's framing. Nothing here is ours but this file."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK = 32768


def write(file: Path, records: Iterable[Any]) -> Path:
    """The log of these records, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    out = bytearray(HEADER)
    for number, record in enumerate(records, 1):
        record.num = record.num or number
        _add(out, record.SerializeToString())
    file.write_bytes(out)
    return file


def _add(out: bytearray, data: bytes) -> None:
    at, first = 0, True
    while first or at < len(data):
        room = BLOCK - len(out) % BLOCK
        if room < 7:
            out += bytes(room)
            room = BLOCK
        piece = data[at : at + room - 7]
        at += len(piece)
        last = at == len(data)
        kind = 1 if first and last else 2 if first else 4 if last else 3
        crc = zlib.crc32(piece, zlib.crc32(bytes([kind])))
        out += struct.pack("<IHB", crc, len(piece), kind) + piece
        first = False


def read(file: Path) -> Iterator[Any]:
    """The records, as far as they are whole."""
    data = file.read_bytes()
    at, held = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(held)
            held = b""
            yield record


def of_kind(file: Path, kind: str) -> list[Any]:
    """The records of one kind."""
    return [getattr(one, kind) for one in read(file) if one.WhichOneof("record_type") == kind]


def rows(file: Path) -> list[dict[str, Any]]:
    """The lines of the history as plain dictionaries."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        for history in of_kind(file, "history")
    ]


def run(id_: str, project: str = "p", started: int = 1_600_000_000, **fields: Any) -> Any:
    record = pb.Record()
    record.run.run_id, record.run.project = id_, project
    record.run.start_time.seconds = started
    for name, value in fields.items():
        if name == "config":
            for key, one in value.items():
                item = record.run.config.update.add()
                item.key, item.value_json = key, json.dumps(one)
        elif name == "tags":
            record.run.tags.extend(value)
        else:
            setattr(record.run, name, value)
    return record


def header() -> Any:
    record = pb.Record()
    record.header.version_info.producer = "0.31.0"
    record.header.version_info.min_consumer = "0.70.0"
    return record


def row(step: int, time: float, **values: float) -> Any:
    record = pb.Record()
    for key, value in {**values, "_step": step, "_timestamp": time, "_runtime": float(step)}.items():
        item = record.history.item.add()
        item.nested_key.append(key)
        item.value_json = json.dumps(value)
    record.history.step.num = step
    return record


def summary(**values: Any) -> Any:
    record = pb.Record()
    for key, value in values.items():
        item = record.summary.update.add()
        item.nested_key.append(key)
        item.value_json = json.dumps(value)
    return record


def console(line: str) -> Any:
    record = pb.Record()
    record.output_raw.line = line
    return record


def exit_(code: int = 0, runtime: int = 5) -> Any:
    record = pb.Record()
    record.exit.exit_code, record.exit.runtime = code, runtime
    return record


def artifact(name: str, kind: str, entries: dict[str, tuple[str, int, str]], **fields: Any) -> Any:
    """`entries`: path -> (md5 in base64, size, local path)."""
    record = pb.Record()
    record.artifact.name, record.artifact.type, record.artifact.finalize = name, kind, True
    record.artifact.manifest.version, record.artifact.manifest.storage_policy = 1, "wandb-storage-policy-v1"
    for path, (md5, size, local) in entries.items():
        entry = record.artifact.manifest.contents.add()
        entry.path, entry.digest, entry.size, entry.local_path = path, md5, size, local
    for field, value in fields.items():
        if field in ("aliases", "tags"):
            getattr(record.artifact, field).extend(value)
        else:
            setattr(record.artifact, field, value)
    return record
