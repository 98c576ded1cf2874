"""Traces written to a server of MLflow 3: under their own ids, many at a time.

    look      which of them are there: an id that somebody else has elsewhere is left alone
    spans     of many traces in one request, by OpenTelemetry's protocol; this makes the traces (3.6 and later)
    links     to runs
    trace     times, state, metadata, tags, assessments: what the server guessed from spans is set right
    after     assessments that override others, spans that go into files, the tag mlmigrate.stamp

Every step may be made again.  A trace is whole when it bears the stamp of what it is now.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import msgspec

from mlmigrate.adapters.base import Change, Holding
from mlmigrate.adapters.mlflow.objects import Row, Tree, tree_of
from mlmigrate.adapters.mlflow.rest import otlp
from mlmigrate.adapters.mlflow.rest import trace_bodies as bodies
from mlmigrate.adapters.mlflow.rest.wire import Anything
from mlmigrate.adapters.mlflow.rest.write_old_traces import OldTraceWriter
from mlmigrate.errors import MigrateError, NotFound, Unavailable
from mlmigrate.model import STAMP_TAG, Artifact, Record

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.rest.objects import Frame

API = "api/3.0/mlflow/traces"
DELETE = "api/2.0/mlflow/traces/delete-traces"
LINK = "api/2.0/mlflow/traces/link-to-run"
LINK_PROMPTS = "api/2.0/mlflow/traces/link-prompts"
OWNER = "@trace/"
TRACES = 50  # in one batch
SPANS = 1000
BYTES = 4 << 20  # of spans in one request
FILE = "traces.json"
ELSEWHERE = "the server has a trace of this id in another experiment, and holds each id once"
KIND = "mlflow.trace"
ITS_OWN = "the server makes it again"
DERIVED = (
    Change("trace_info.db_payload_generation", "the server counts for itself", lost=False),
    Change("trace_metrics", ITS_OWN, lost=False),
    Change("span_metrics", ITS_OWN, lost=False),
    *(
        Change(f"spans.{column}", ITS_OWN, lost=False)
        for column in ("duration_ns", "input_cost", "output_cost", "total_cost", "model_name", "model_provider")
    ),
    *(
        Change(f"assessments.{column}", ITS_OWN, lost=False)
        for column in ("experiment_id", "trace_timestamp_ms", "aggregate_value", "is_numeric_value")
    ),
    Change("entity_associations.association_id", "links have new ids", lost=False),
    Change("entity_associations.created_time", "the server sets its own"),
)


def holdings(version: tuple[int, int]) -> tuple[Holding, ...]:
    """How a server of this version holds traces."""
    shown = ".".join(map(str, version))
    if version < (2, 14):
        return (Holding(KIND, "lost", f"MLflow {shown} knows no traces"),)
    changes = list(DERIVED)
    if version < (3, 3):
        changes.append(Change("entity_associations", f"MLflow {shown} links no traces to runs"))
    if version < (3, 2):
        changes.append(Change("assessments", f"MLflow {shown} keeps no assessments"))
    if version < (3, 0):
        because = f"MLflow {shown} has no place for it"
        columns = ("client_request_id", "request_preview", "response_preview")
        changes += [Change(f"trace_info.{column}", because) for column in columns]
    return (Holding(KIND, "mapped", changes=tuple(changes)),)


class Info(msgspec.Struct, frozen=True):
    """What a server says of a trace, as far as we ask."""

    trace_id: str = ""
    trace_location: dict[str, Any] = {}
    tags: dict[str, str] = {}
    assessments: list[dict[str, Any]] = []

    @property
    def experiment(self) -> str:
        return str(self.trace_location.get("mlflow_experiment", {}).get("experiment_id", ""))

    @property
    def assessed(self) -> set[str]:
        """The ids of its assessments."""
        return {str(one.get("assessment_id")) for one in self.assessments}


class Infos(msgspec.Struct, frozen=True):
    """Those that there are of the traces that were asked for."""

    trace_infos: list[Info] = []


class OneInfo(msgspec.Struct, frozen=True):
    """The trace of this answer."""

    trace_info: Info = Info()


class OneTrace(msgspec.Struct, frozen=True):
    """The answer to a question for one trace, and to its making."""

    trace: OneInfo = OneInfo()


@dataclass(slots=True)
class Draft:
    """A trace being written. `there` is what an earlier try left; `sent` says that its spans went into the database."""

    tree: Tree
    source_experiment: str
    experiment: str
    stamp: str
    spans: Sequence[otlp.Span] | None
    there: Info | None = None
    sent: bool = False

    @property
    def id(self) -> str:
        return str(bodies.root(self.tree)["request_id"])

    @property
    def size(self) -> int:
        return sum(len(row.get("content") or "") for row in self.tree.get("spans", ()))

    @property
    def runs(self) -> list[str]:
        """The runs that it is linked to."""
        return _linked(self.tree, "run")

    @property
    def whole(self) -> bool:
        """Whether an earlier copy left nothing to do. Deleting a run deletes assessments that it made."""
        wanted = {row["assessment_id"] for row in self.tree.get("assessments", ())}
        there = self.there
        return there is not None and there.tags.get(STAMP_TAG) == self.stamp and wanted <= there.assessed


@dataclass(slots=True)
class Waiting:
    """A trace whose files may still come: where they go, and the stamp that it bears once they are there."""

    location: str
    stamp: str


class TraceWriter:
    """Writes the traces of one pack, to a server of any version that knows them."""

    kinds = (KIND,)
    owner = OWNER
    raw = True

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        old = frame.server.version < (3, 0)
        self._writer: OldTraceWriter | NewTraceWriter = OldTraceWriter(frame) if old else NewTraceWriter(frame)

    def keep(self, record: Record) -> None:
        """Takes a trace; links to what was not carried are left out."""
        tree = tree_of(record)
        links = tree.pop("entity_associations", [])
        kept = [row for row in links if self._is_here(row)]
        for row in links:
            if row not in kept:
                what = f"{KIND} {record.id!r}: link to {row['destination_type']} {row['destination_id']}"
                self._frame.lose(what, "that was not carried", record.owner)
        linked: Tree = {**tree, "entity_associations": kept} if kept else tree
        here = replace(record, body=msgspec.json.encode(linked).decode())
        self._writer.keep(replace(self._frame.references.record(here), id=record.id))

    def _is_here(self, row: Row) -> bool:
        """Whether the other end of a link is known here; a prompt's version gets the name that it has here."""
        known = self._frame.known
        if row["destination_type"] != "prompt_version":
            return bool(row["destination_type"] == "run" and row["destination_id"] in known.ids["run"])
        name, _, version = row["destination_id"].rpartition("/")
        if version.isdigit():
            number = known.versions.get((name, int(version)), int(version))
            row["destination_id"] = f"{known.models.get(name, name)}/{number}"
        return bool(version.isdigit())

    def put(self, artifact: Artifact) -> None:
        """Sends a file of a trace, after all traces are there."""
        self._writer.put(artifact)

    def commit(self) -> None:
        """Everything is there when this comes back."""
        self._writer.commit()


class NewTraceWriter:
    """Writes the traces of one pack to a server of MLflow 3."""

    def __init__(self, frame: Frame) -> None:
        self._frame, self._client, self._uploads = frame, frame.client, frame.uploads
        self._batch: list[Draft] = []
        self._waiting: dict[str, Waiting] = {}
        self._locations: dict[str, str] = {}  # where the files of a trace go, of those that were written
        self._foreign: set[str] = set()  # ids that others have here
        self._lock = threading.Lock()
        self._together = True  # whether one request may hold spans of several traces
        self._listing = True  # whether the server knows the call that asks for many

    def keep(self, record: Record) -> None:
        """Takes a trace; it is written together with others."""
        tree = tree_of(record)
        experiment = self._frame.home(record.owner)
        stamp = hashlib.blake2b(record.body.encode(), digest_size=16).hexdigest()
        spans = bodies.spans_of(tree) if self._frame.server.version >= bodies.DATABASE_SPANS else None
        self._batch.append(Draft(tree, record.owner, experiment, stamp, spans))
        if len(self._batch) >= TRACES or self._full():
            self._flush()

    def _full(self) -> bool:
        spans = sum(len(draft.spans or ()) for draft in self._batch)
        return spans >= SPANS or sum(draft.size for draft in self._batch) >= BYTES

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._frame.later(self._write, batch)

    def _write(self, batch: Sequence[Draft]) -> None:
        there = self._there([draft.id for draft in batch])
        for draft in batch:
            draft.there = there.get(draft.id)
        todo = [draft for draft in batch if self._is_ours(draft) and not draft.whole]
        self._clear([draft for draft in todo if draft.there])
        for experiment in dict.fromkeys(draft.experiment for draft in todo):
            self._send([draft for draft in todo if draft.experiment == experiment and draft.spans], experiment)
        self._link([draft for draft in todo if draft.sent or draft.there])
        for draft in todo:
            self._told(draft, "it", self._start, draft)

    def _is_ours(self, draft: Draft) -> bool:
        there = draft.there
        if there is None or there.experiment in ("", draft.experiment):
            return True
        self._foreign.add(draft.id)
        self._lose(draft, "it", ELSEWHERE)
        return False

    def _there(self, ids: Sequence[str]) -> dict[str, Info]:
        """What the server has of these traces."""
        if self._listing:
            try:
                found = self._client.post(f"{API}/batchGetInfos", Infos, {"trace_ids": ids})
                return {info.trace_id: info for info in found.trace_infos}
            except Unavailable:
                raise
            except MigrateError:  # 404 or 405: older servers take the name of the call for a trace's id
                self._listing = False
        return {id_: info for id_ in ids if (info := self._info(id_)) is not None}

    def _info(self, id_: str) -> Info | None:
        try:
            return self._client.get(f"{API}/{quote(id_, safe='')}", OneTrace).trace.trace_info
        except NotFound:
            return None

    def _clear(self, drafts: Sequence[Draft]) -> None:
        """Older servers fail at a trace that has more tags or assessments than it is given: it is made anew."""
        if self._listing:
            return
        for draft in drafts:
            body = {"experiment_id": draft.experiment, "request_ids": [draft.id]}
            self._client.post(DELETE, Anything, body)
            draft.there = None

    def _send(self, drafts: Sequence[Draft], experiment: str) -> None:
        """The spans of traces in one experiment; of each alone, where the server refuses them together."""
        if not drafts:
            return
        together = [drafts] if self._together else [[draft] for draft in drafts]
        for some in together:
            try:
                self._post([span for draft in some for span in draft.spans or ()], experiment)
            except Unavailable:
                raise
            except MigrateError:
                if len(some) > 1:
                    self._together = False
                    self._send(some, experiment)
                continue  # the spans of one that is refused alone go into a file
            for draft in some:
                draft.sent = True

    def _post(self, spans: Sequence[otlp.Span], experiment: str) -> None:
        headers = {"Content-Type": otlp.CONTENT_TYPE, otlp.EXPERIMENT: experiment}
        self._client.again.do("spans", self._client.send, otlp.PATH, {}, otlp.request(spans), headers)

    def _link(self, drafts: Sequence[Draft]) -> None:
        """Links to runs, a call for all traces of a run (it takes 100, more than a batch has), and to prompts."""
        by_run: dict[str, list[Draft]] = {}
        for draft in drafts:
            for run in draft.runs:
                by_run.setdefault(run, []).append(draft)
        for run, some in by_run.items():
            body = {"run_id": run, "trace_ids": [draft.id for draft in some]}
            self._told(some[0], f"links to run {run}", self._client.post, LINK, Anything, body)
        for draft in drafts:
            prompts = [one.rpartition("/") for one in _linked(draft.tree, "prompt_version")]
            if prompts:
                versions = [{"name": name, "version": version} for name, _, version in prompts]
                said = {"trace_id": draft.id, "prompt_versions": versions}
                self._told(draft, "links to prompts", self._client.post, LINK_PROMPTS, Anything, said)

    def _start(self, draft: Draft) -> None:
        """The trace as it is; its stamp with it, where nothing is left to do then."""
        first, after = bodies.assessments_of(draft.tree)
        done = draft.sent and not after
        tags = bodies.tags_of(draft.tree) | ({bodies.SPANS_LOCATION: bodies.IN_DATABASE} if draft.sent else {})
        stamped = tags | ({STAMP_TAG: draft.stamp} if done else {})
        try:
            made = self._make(draft, bodies.trace_body(draft.tree, draft.experiment, stamped, first))
        except Unavailable:
            raise
        except MigrateError:
            if not first:
                raise
            # perhaps an assessment that this version does not take: each alone then
            done, after = False, [*first, *after]
            made = self._make(draft, bodies.trace_body(draft.tree, draft.experiment, tags, ()))
        if not (draft.sent or draft.there):
            self._link([draft])
        for row in after:
            self._told(draft, f"assessment {row['name']!r}", self._assess, draft, row)
        self._tell_lost(draft)
        location = self._locations[draft.id] = made.tags.get(bodies.LOCATION, "")
        if not done:
            self._finish(draft, location)

    def _make(self, draft: Draft, body: dict[str, Any]) -> Info:
        """Made or overwritten. Older servers do not take a trace twice: one that is there is left as it is."""
        tries = count()

        def attempt() -> Info:
            doubtful = next(tries) > 0 or draft.there is not None
            if doubtful and self._frame.server.version < bodies.DATABASE_SPANS and (there := self._info(draft.id)):
                return there
            return self._client.once("POST", API, OneTrace, None, body).trace.trace_info

        return self._client.again.do(f"trace {draft.id}", attempt)

    def _assess(self, draft: Draft, row: Row) -> None:
        """An assessment by a call of its own, which invalidates the one that it overrides.

        One that is there is deleted first: it did so before the trace was written again, which made all valid.
        """
        path = f"{API}/{quote(draft.id, safe='')}/assessments"
        tries = count()

        def attempt() -> None:
            if next(tries) > 0 or (draft.there and row["assessment_id"] in draft.there.assessed):
                with suppress(NotFound):
                    self._client.once("DELETE", f"{path}/{quote(row['assessment_id'], safe='')}", Anything)
            self._client.once("POST", path, Anything, None, {"assessment": bodies.assessment_body(row)})

        self._client.again.do(f"assessment {row['name']}", attempt)

    def _finish(self, draft: Draft, location: str) -> None:
        """Spans into a file, where they are not in the database; the stamp waits for files that may still come."""
        data = None if draft.sent else bodies.spans_file(draft.tree)
        if data is not None:
            self._put(draft.id, location, _file(draft.id, data))
        with self._lock:  # attachments may come, too, of one whose spans are in the database
            self._waiting[draft.id] = Waiting(location, draft.stamp)

    def _stamp(self, id_: str, stamp: str) -> None:
        body = {"key": STAMP_TAG, "value": stamp}
        self._client.patch(f"{API}/{quote(id_, safe='')}/tags", Anything, body)

    def put(self, artifact: Artifact) -> None:
        """Sends a file of a trace, after all traces are there."""
        self.settle()
        id_ = artifact.owner.removeprefix(OWNER)
        if id_ not in self._foreign:
            self._put(id_, self._location(id_), artifact)

    def _location(self, id_: str) -> str:
        """Where the files of a trace go; of one that was whole before, the server says it."""
        if id_ not in self._locations:
            info = self._info(id_)
            self._locations[id_] = info.tags.get(bodies.LOCATION, "") if info is not None else ""
        return self._locations[id_]

    def _put(self, id_: str, location: str, artifact: Artifact) -> None:
        call = self._uploads.of(OWNER + id_, location, artifact)
        if call is not None:
            call()

    def settle(self) -> None:
        """Writes all that was kept."""
        self._flush()
        self._frame.settle()

    def commit(self) -> None:
        """Stamps the traces that waited for files."""
        self.settle()
        for id_, waiting in self._waiting.items():
            self._frame.later(self._close, id_, waiting)
        self._frame.settle()

    def _close(self, id_: str, waiting: Waiting) -> None:
        self._uploads.check(OWNER + id_)
        self._stamp(id_, waiting.stamp)

    def _told(self, draft: Draft, what: str, call: Callable[..., object], *given: object) -> None:
        """Calls; what the server refuses is a loss of this trace, and no other."""
        try:
            call(*given)
        except Unavailable:
            raise
        except MigrateError as error:
            self._lose(draft, what, error.message)

    def _tell_lost(self, draft: Draft) -> None:
        for row in bodies.still_invalid(draft.tree):
            self._lose(
                draft, f"assessment {row['name']!r}", "it is not valid, and is valid again: nothing overrides it"
            )
        for row in bodies.changed_values(draft.tree):
            self._lose(draft, f"assessment {row['name']!r}", "numbers in its value became floats, NaN became text")

    def _lose(self, draft: Draft, what: str, because: str) -> None:
        self._frame.lose(f"mlflow.trace {draft.id!r}: {what}", because, draft.source_experiment)


def _linked(tree: Tree, kind: str) -> list[str]:
    rows = tree.get("entity_associations", ())
    return [str(row["destination_id"]) for row in rows if row.get("destination_type") == kind]


def _file(id_: str, data: bytes) -> Artifact:
    def opened() -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(data)

    return Artifact(OWNER + id_, FILE, opened, len(data), hashlib.sha256(data).hexdigest())
