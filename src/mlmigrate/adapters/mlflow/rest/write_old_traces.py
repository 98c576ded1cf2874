"""Traces written to a server of MLflow 2.14 to 2.22, which gives them ids of its own.

Each bears the tag mlmigrate.origin with the id that it had.  It is made, ended, its spans put into the file
traces.json as those versions read it, and stamped last.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

import msgspec

from mlmigrate.adapters.mlflow.objects import Tree, tree_of
from mlmigrate.adapters.mlflow.rest import trace_bodies as bodies
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.wire import Anything, Pair
from mlmigrate.errors import MigrateError, Unavailable
from mlmigrate.model import ORIGIN_TAG, STAMP_TAG, Artifact, Record

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.rest.objects import Frame

API = "api/2.0/mlflow/traces"
OWNER = "@trace/"
FILE = "traces.json"
LARGEST_FILE = 64 << 20  # bytes; spans are read whole to be written as those versions read them
PAGE = 500


class OldInfo(msgspec.Struct, frozen=True):
    """What a server of MLflow 2 says of a trace, as far as we ask."""

    request_id: str = ""
    tags: list[Pair] = []

    def tag(self, key: str) -> str:
        """A tag of it, "" for none."""
        return next((pair.value for pair in self.tags if pair.key == key), "")


class OldInfos(msgspec.Struct, frozen=True):
    """One page of traces."""

    traces: list[OldInfo] = []
    next_page_token: str = ""


class OneOldInfo(msgspec.Struct, frozen=True):
    """The trace that was made."""

    trace_info: OldInfo = OldInfo()


@dataclass(frozen=True, slots=True)
class There:
    """A trace of ours on the server."""

    id: str
    location: str
    stamp: str


def ours(client: Client, experiment: str) -> Iterator[tuple[str, There]]:
    """The traces of an experiment that came from elsewhere: (the id that each had there, what it is here)."""
    token = ""
    while True:
        params: dict[str, str | int | Sequence[str]] = {"experiment_ids": [experiment], "max_results": PAGE}
        params |= {"page_token": token} if token else {}
        page = client.get(API, OldInfos, params)
        for info in page.traces:
            if origin := info.tag(ORIGIN_TAG):
                yield origin, _there(info)
        token = page.next_page_token
        if not token:
            return


def _there(info: OldInfo) -> There:
    return There(info.request_id, info.tag(bodies.LOCATION), info.tag(STAMP_TAG))


class OldTraceWriter:
    """Writes the traces of one pack."""

    def __init__(self, frame: Frame) -> None:
        self._frame, self._client, self._uploads = frame, frame.client, frame.uploads
        self._known: dict[str, dict[str, There]] = {}  # experiment here -> the source's id -> trace
        self._waiting: dict[str, tuple[There, str]] = {}  # the source's id -> trace, and the stamp it shall have

    def keep(self, record: Record) -> None:
        """Takes a trace, with the ids of this server; writes it while the next one comes."""
        experiment = self._frame.home(record.owner)
        if experiment not in self._known:
            self._known[experiment] = dict(ours(self._client, experiment))
        self._frame.later(self._told, record, experiment)

    def _told(self, record: Record, experiment: str) -> None:
        try:
            self._write(record, experiment)
        except Unavailable:
            raise
        except MigrateError as error:
            self._lose(record, error.message)

    def _write(self, record: Record, experiment: str) -> None:
        stamp = hashlib.blake2b(record.body.encode(), digest_size=16).hexdigest()
        there = self._known[experiment].get(record.id)
        if there is not None and there.stamp == stamp:
            return
        tree = tree_of(record)
        if there is None:
            there = self._known[experiment][record.id] = self._make(record.id, tree, experiment)
        elif there.stamp:
            self._lose(record, "it changed since it was copied, and MLflow 2 changes no trace")
        self._frame.known.ids.setdefault("trace", {})[record.id] = there.id
        end = bodies.old_end(tree)
        if end is not None:
            self._client.patch(f"{API}/{quote(there.id, safe='')}", Anything, end)
        data = bodies.spans_file(tree)
        if data is not None:
            self._put(there, data)
        self._waiting[record.id] = there, stamp

    def _make(self, id_: str, tree: Tree, experiment: str) -> There:
        tags = bodies.tags_of(tree) | {ORIGIN_TAG: id_}
        body = bodies.old_trace_body(tree, experiment, tags)
        tries = count()

        def attempt() -> There:
            if next(tries) > 0 and (found := dict(ours(self._client, experiment)).get(id_)):
                return found
            return _there(self._client.once("POST", API, OneOldInfo, None, body).trace_info)

        return self._client.again.do(f"trace {id_}", attempt)

    def put(self, artifact: Artifact) -> None:
        """Sends a file of a trace, after all traces are there."""
        self._frame.settle()
        waiting = self._waiting.get(artifact.owner.removeprefix(OWNER))
        if waiting is None:  # it is whole
            return
        if artifact.path == FILE and (artifact.size or 0) <= LARGEST_FILE:
            with artifact.open() as stream:
                self._put(waiting[0], stream.read())
        else:
            self._send(waiting[0], artifact)

    def _put(self, there: There, data: bytes) -> None:
        with suppress(ValueError, RecursionError):  # what MLflow did not write is kept as it is
            data = bodies.old_file(data, there.id)
        self._send(there, _file(data))

    def _send(self, there: There, artifact: Artifact) -> None:
        owner = OWNER + there.id
        call = self._uploads.of(owner, there.location, replace(artifact, owner=owner))
        if call is not None:
            call()

    def commit(self) -> None:
        """Stamps all that were written."""
        self._frame.settle()
        for there, stamp in self._waiting.values():
            self._frame.later(self._close, there, stamp)
        self._frame.settle()

    def _close(self, there: There, stamp: str) -> None:
        self._uploads.check(OWNER + there.id)
        body = {"key": STAMP_TAG, "value": stamp}
        self._client.patch(f"{API}/{quote(there.id, safe='')}/tags", Anything, body)

    def _lose(self, record: Record, because: str) -> None:
        self._frame.lose(f"mlflow.trace {record.id!r}", because, record.owner)


def _file(data: bytes) -> Artifact:
    def opened() -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(data)

    return Artifact("", FILE, opened, len(data), hashlib.sha256(data).hexdigest())
