"""Logs as the format's description says, by the SDK's own classes: nothing here is taken from what is tested."""

import json
import struct
from pathlib import Path
from zlib import crc32

import pytest
from wandb.proto import wandb_internal_pb2 as pb

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32768


class Plain:
    """Plain reading and writing of logs."""

    pb = pb
    header = HEADER

    @staticmethod
    def chunk(data, kind=1):
        return struct.pack("<IHB", crc32(data, crc32(bytes([kind]))), len(data), kind) + data

    def write(self, path, *records):
        """A log of records, or of their bytes."""
        out = bytearray(HEADER)
        for record in records:
            rest, first = record if isinstance(record, bytes) else record.SerializeToString(), True
            while first or rest:
                left = BLOCK - len(out) % BLOCK
                if left < 7:
                    out += bytes(left)
                    continue
                piece, rest = rest[: left - 7], rest[left - 7 :]
                out += self.chunk(piece, {(1, 0): 1, (1, 1): 2, (0, 1): 3, (0, 0): 4}[first, bool(rest)])
                first = False
        Path(path).write_bytes(out)
        return path

    @staticmethod
    def payloads(path):
        """The bytes of all records of a whole log."""
        data, at, parts = Path(path).read_bytes(), 7, []
        assert data[:7] == HEADER
        while at < len(data):
            left = BLOCK - at % BLOCK
            if left < 7:
                assert data[at : at + left] == bytes(left)
                at += left
                continue
            crc, length, kind = struct.unpack_from("<IHB", data, at)
            body = data[at + 7 : at + 7 + length]
            assert 7 + length <= left
            assert crc == crc32(body, crc32(bytes([kind])))
            assert (kind in (1, 2)) == (not parts)
            parts.append(body)
            if kind in (1, 4):
                yield b"".join(parts)
                parts = []
            at += 7 + length
        assert not parts

    def read(self, path, kind=None):
        """Parsed records, all or those of one kind."""
        records = [pb.Record.FromString(data) for data in self.payloads(path)]
        if kind is None:
            return records
        return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]

    def rows(self, path):
        """History: [(key, value)] of each row, in order."""
        return [
            [(".".join(item.nested_key) or item.key, json.loads(item.value_json)) for item in row.item]
            for row in self.read(path, "history")
        ]

    @staticmethod
    def history(step=None, **values):
        """A record of one row."""
        record = pb.Record()
        record.history.SetInParent()
        if step is not None:
            record.history.step.num = step
        for key, value in values.items():
            record.history.item.add(key=key, value_json=json.dumps(value))
        return record


@pytest.fixture(scope="session")
def plain():
    return Plain()
