"""Bytes on their way to where a W&B server wants them: checked while they pass, never whole in memory."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.stream import Where
from mlmigrate.adapters.wandb.api.writes import CREATE_RUN_FILES
from mlmigrate.adapters.wandb.shape import File, Opener
from mlmigrate.errors import Damaged, MigrateError, NotFound, Unavailable

PIECE = 1 << 20
FILES_PER_CALL = 200


@dataclass(frozen=True, slots=True)
class Bytes:
    """What is to be sent: how to get it, how much it is, its md5 in base64."""

    path: str
    open: Opener
    size: int
    md5: str


def of_data(path: str, data: bytes) -> Bytes:
    """Bytes that are in memory."""
    return Bytes(
        path, lambda: io.BytesIO(data), len(data), base64_of(hashlib.md5(data, usedforsecurity=False).digest())
    )


def measured(file: File, whose: str) -> Bytes:
    """A file with its size and md5, read through once where they are not known. Raises Damaged when it is gone."""
    if file.open is None:
        raise Damaged(f"The bytes of {file.path!r} of {whose} are gone{': ' + file.gone if file.gone else '.'}")
    if file.size is not None and file.md5:
        return Bytes(file.path, file.open, file.size, file.md5)
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with file.open() as data:
        while piece := data.read(PIECE):
            digest.update(piece)
            size += len(piece)
    found = base64_of(digest.digest())
    if file.md5 not in ("", found):
        raise Damaged(f"{file.path!r} of {whose} has the md5 {found}, not {file.md5}.")
    return Bytes(file.path, file.open, size, found)


def send(client: Client, given: Bytes, url: str, headers: Sequence[str] | Mapping[str, str], whose: str) -> None:
    """Puts the bytes where the server wants them. Raises Damaged when other bytes passed than were meant."""
    seen: list[Passed] = []

    @contextmanager
    def opener() -> Iterator[BinaryIO]:
        with given.open() as data:
            seen.append(Passed(data))
            yield cast("BinaryIO", seen[-1])

    try:
        put(client, url, opener, given.size, headers, f"{given.path!r} of {whose}")
    except Unavailable:
        raise
    except MigrateError as error:
        if not seen or seen[-1].md5 == given.md5:
            raise
        raise _changed(given, whose) from error
    if given.size and seen[-1].md5 != given.md5:
        raise _changed(given, whose)


def _changed(given: Bytes, whose: str) -> Damaged:
    return Damaged(f"The bytes of {given.path!r} of {whose} are not those with the md5 {given.md5}.", "Read it again")


def put(
    client: Client,
    url: str,
    opener: Opener,
    size: int,
    headers: Sequence[str] | Mapping[str, str],
    what: str,
) -> Mapping[str, str]:
    """A PUT. One that is refused concerns this file alone, not our key."""
    try:
        return client.put(url, opener, size, headers)
    except (Unavailable, Damaged, NotFound):  # of the server, or of where the bytes come from
        raise
    except MigrateError as error:
        raise MigrateError(f"{what} was refused: {error.message}", "The same command again sends it") from error


class Passed(io.RawIOBase):
    """Bytes on their way; `md5` of those that passed."""

    def __init__(self, data: BinaryIO) -> None:
        self._data, self._digest = data, hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._data.read(-1 if size is None else size)
        self._digest.update(data)
        return data

    @property
    def md5(self) -> str:
        """In base64, as W&B has it."""
        return base64_of(self._digest.digest())


def part_of(given: Bytes, start: int, length: int) -> Opener:
    """A part of a file, as a file of its own."""

    @contextmanager
    def opener() -> Iterator[BinaryIO]:
        with given.open() as data:
            _skip(data, start)
            yield cast("BinaryIO", _Part(data, length))

    return opener


class _Part(io.RawIOBase):
    def __init__(self, data: BinaryIO, length: int) -> None:
        self._data, self._left = data, length

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        most = self._left if size is None or size < 0 else min(size, self._left)
        data = self._data.read(most) if most else b""
        self._left -= len(data)
        return data


def _skip(data: BinaryIO, start: int) -> None:
    if not start:
        return
    if data.seekable():
        data.seek(start)
        return
    while start and (piece := data.read(min(PIECE, start))):
        start -= len(piece)


def send_files(client: Client, where: Where, files: Sequence[Bytes]) -> None:
    """Puts these among the files of a run."""
    for first in range(0, len(files), FILES_PER_CALL):
        some = files[first : first + FILES_PER_CALL]
        names = [file.path for file in some]
        variables = {"entity": where.entity, "project": where.project, "run": where.id, "files": names}
        send_to(client, where, some, client.graphql(CREATE_RUN_FILES, variables).get("createRunFiles") or {})


def send_to(client: Client, where: Where, files: Sequence[Bytes], places: Mapping[str, Any]) -> None:
    """Puts these where the answer of CreateRunFiles says."""
    urls = {one["name"]: one["uploadUrl"] for one in places.get("files") or ()}
    for file in files:
        if not urls.get(file.path):
            raise MigrateError(f"W&B gives no URL for the file {file.path!r} of {where.shown}.")
        send(client, file, urls[file.path], places.get("uploadHeaders") or (), f"the run {where.shown}")


def config_yaml(config: Mapping[str, Any]) -> bytes:
    """The config as the SDK's file has it; JSON is YAML."""
    lines = [f"{json.dumps(key)}:\n    value: {json.dumps(one['value'])}\n" for key, one in config.items()]
    return "".join(lines).encode()


def base64_of(digest: bytes) -> str:
    """A digest as W&B has it."""
    return base64.b64encode(digest).decode()
