"""LevelDB's log format, with W&B's own seven bytes in front.

    file    = header block*         header = ":W&B" 0xBEE1 version 0, part of the first block
    block   = 32768 bytes of chunks, and zeros where fewer than seven bytes are left
    chunk   = crc32(kind, bytes) length kind bytes        kind: whole, or first, middle, last piece of a record

What is damaged is skipped up to the next block, as LevelDB does, and told.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO
from zlib import crc32

Tell = Callable[[int, str], None]  # the byte where something is wrong, and what

HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK = 32 * 1024
READ = 32 * BLOCK
LARGEST = 64 << 20  # bytes of a record; nobody writes such, but a damaged or hostile log may claim any length
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
GAP = -1  # in place of a kind: something was lost here
_KINDS = {(True, True): WHOLE, (True, False): FIRST, (False, False): MIDDLE, (False, True): LAST}  # begins, ends
_CHUNK = struct.Struct("<IHB")
_KIND_CRC = [crc32(bytes([kind])) for kind in range(256)]


def records(stream: BinaryIO, size: int, tell: Tell) -> Iterator[tuple[int, bytes]]:
    """The records among the first `size` bytes of a log: where each begins, and its bytes."""
    pieces: list[bytes] = []
    begin, held, lost = 0, 0, False
    for offset, kind, data in chunks(stream, size, tell):
        if kind in (WHOLE, FIRST):
            if pieces:
                tell(begin, "a record has no end")
            pieces, begin, held, lost = [], offset, len(data), False
            if kind == WHOLE:
                yield offset, data
            else:
                pieces.append(data)
        elif kind in (MIDDLE, LAST) and pieces and held + len(data) > LARGEST:
            tell(begin, f"a record has more than {LARGEST >> 20} MiB; it is skipped")
            pieces, lost = [], True
        elif kind in (MIDDLE, LAST) and pieces:
            pieces.append(data)
            held += len(data)
            if kind == LAST:
                yield begin, b"".join(pieces)
                pieces = []
        elif kind != GAP and not lost:
            tell(offset, "a record has no beginning")
            lost = True
        elif kind == GAP:
            pieces, lost = [], True
    if pieces:
        tell(begin, "the last record is cut off")


def chunks(stream: BinaryIO, size: int, tell: Tell) -> Iterator[tuple[int, int, bytes]]:
    """The chunks: offset, kind, bytes. A GAP stands where some were lost."""
    start, at = 0, len(HEADER)
    while start < size and (data := stream.read(min(READ, size - start))):
        last = start + len(data) >= size or len(data) % BLOCK != 0
        for block in range(0, len(data), BLOCK):
            stop = min(block + BLOCK, len(data))
            yield from _block(data, max(at, block), stop, start, tell, final=last and stop == len(data))
            at = 0
        start += len(data)


def _block(data: bytes, at: int, stop: int, start: int, tell: Tell, *, final: bool) -> Iterator[tuple[int, int, bytes]]:
    """The chunks of one block; `start` is where `data` begins in the file."""
    unpack, header, crcs = _CHUNK.unpack_from, _CHUNK.size, _KIND_CRC
    while at + header <= stop:
        crc, length, kind = unpack(data, at)
        end = at + header + length
        body = data[at + header : end]
        if end <= stop and crc32(body, crcs[kind]) == crc:
            yield start + at, kind, body
            at = end
            continue
        if not data[at:stop].strip(b"\0"):
            return  # zeros: room that was made and never used
        if end > stop and final:
            tell(start + at, "the last record is cut off")
        else:
            tell(start + at, "a record is damaged; what follows in its block is skipped")
        yield start + at, GAP, b""
        return
    if final and data[at:stop].strip(b"\0"):
        tell(start + at, "the last record is cut off")
        yield start + at, GAP, b""


class Frames:
    """Writes records into a new file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._parts: list[bytes] = [HEADER]
        self._at = self._held = len(HEADER)  # in the file; of it, not handed on yet

    def add(self, record: bytes) -> None:
        """One more record, in as many chunks as its blocks need."""
        at, left, first = 0, BLOCK - self._at % BLOCK, True
        while True:
            if left < _CHUNK.size:
                self._put(b"\0" * left)
                left = BLOCK
            end = min(at + left - _CHUNK.size, len(record))
            self._chunk(_KINDS[first, end == len(record)], record[at:end])
            if end == len(record):
                return
            at, left, first = end, BLOCK, False

    def flush(self) -> None:
        """Hands on what is held."""
        self._stream.write(b"".join(self._parts))
        self._parts, self._held = [], 0

    def _chunk(self, kind: int, data: bytes) -> None:
        self._put(_CHUNK.pack(crc32(data, _KIND_CRC[kind]), len(data), kind))
        self._put(data)

    def _put(self, data: bytes) -> None:
        self._parts.append(data)
        self._at += len(data)
        self._held += len(data)
        if self._held >= READ:
            self.flush()
