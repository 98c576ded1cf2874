"""Traces of a server: what is listed of them, their spans, and the files of those that keep their spans in files.

A server keeps spans in its database (from 3.3, where the tag mlflow.trace.spansLocation says so), in the file
traces.json of each trace, or, archived, in a file traces.pb.  The route that the server's own pages use gives spans
of its database as they are written there, a trace at a time.  Traces come oldest first, so that those that are made
meanwhile come last.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from mlmigrate.adapters.mlflow.objects import Row, Tree, pairs
from mlmigrate.adapters.mlflow.rest.ahead import ahead
from mlmigrate.adapters.mlflow.rest.assessments import assessment
from mlmigrate.adapters.mlflow.rest.client import Params
from mlmigrate.adapters.mlflow.rest.listing import Listing, Site
from mlmigrate.adapters.mlflow.rest.things import (
    WireOldTrace,
    WireTrace,
    duration,
    experiment,
    known,
    moment,
    tags,
    tree,
)
from mlmigrate.errors import BadData, MigrateError, NotFound, Unavailable
from mlmigrate.model import Loss

NEW = (3, 0)  # before it another search
IN_DATABASE_SINCE = (3, 3)
LINKS_SINCE = (3, 5)
MOST = 200
ORDER = ["timestamp_ms ASC"]
SPANS = "ajax-api/2.0/mlflow/get-trace-artifact"
SPANS_AT, IN_DATABASE, ARCHIVED = "mlflow.trace.spansLocation", "TRACKING_STORE", "ARCHIVE_REPO"
ATTACHED = "mlflow-attachment://"
FILES_AT, ARCHIVE_AT = "mlflow.artifactLocation", "mlflow.trace.archiveLocation"
SHORT = 250  # characters of a metadata value; a server cuts longer ones when it is asked
LINKED_RUNS = 5000  # of an experiment; each is a request
_SPAN_TYPE = "mlflow.spanType"
NAME, SESSION = "mlflow.traceName", "mlflow.trace.session"
TOKENS = (
    "input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    "cache_creation_input_tokens_above_1hr",
)  # fmt: skip
COUNTED = {
    "mlflow.trace.tokenUsage": TOKENS,
    "mlflow.trace.cost": ("input_cost", "output_cost", "total_cost"),
}
Keys = Sequence[tuple[str, str]]  # of runs or prompt versions: their type and id


@dataclass(slots=True)
class Cut:
    """How many values of each key of metadata may have been cut."""

    counts: dict[str, int] = field(default_factory=dict)

    def note(self, metadata: Mapping[str, str]) -> None:
        """Counts the values that are just as long as a server gives."""
        for key, value in metadata.items():
            if len(value) == SHORT:
                self.counts[key] = self.counts.get(key, 0) + 1

    def losses(self, of: str) -> list[Loss]:
        """What became of them, as far as that can be known."""
        because = f"a server cuts what is longer than {SHORT} characters; what has that length may have been longer"
        return [Loss("", f"{n} values of trace metadata {key!r}", because, of) for key, n in self.counts.items()]


@dataclass(slots=True)
class Traces:
    """The traces of a server.

    attached    the owners of files that spans in the database name
    with_rows   the owners of files whose spans are in the database: what lies in a file beside is a copy
    """

    site: Site
    attached: set[str] = field(default_factory=set)
    with_rows: set[str] = field(default_factory=set)

    @property
    def new(self) -> bool:
        """Whether the server knows traces as MLflow 3 does."""
        return self.site.server.version >= NEW

    def any_in(self, experiments: Sequence[str]) -> bool:
        """Whether one of the experiments has a trace."""
        return self.site.has(self._listing(experiments, 1))

    def heads(self, of: str) -> Iterator[Tree]:
        """The traces of an experiment, each once, without their spans."""
        seen = set()
        listing = self._listing([of], MOST)
        found = self.site.items(listing, WireTrace) if self.new else self.site.items(listing, WireOldTrace)
        for trace in found:
            name = trace.trace_id if isinstance(trace, WireTrace) else trace.request_id
            if name not in seen:
                seen.add(name)
                yield _new(trace) if isinstance(trace, WireTrace) else _old(trace)

    def trees(self, of: str, entities: Callable[[], Keys], losses: list[Loss], pool: Executor) -> Iterator[Tree]:
        """The traces of an experiment, whole. `entities` gives the runs and prompt versions that may be linked."""
        cut = Cut()
        linked = self._linked(of, entities, losses, pool)
        for found in ahead(pool, self.heads(of), lambda head: head | self._spans(head, losses)):
            trace = found["trace_info"][0]["request_id"]
            cut.note(pairs(found.get("trace_request_metadata", ())))
            yield found | tree(entity_associations=[_association(trace, *one) for one in linked.get(trace, ())])
        losses += cut.losses(of)

    def roots(self, of: str, in_use: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        """(owner, artifact URI) of those that have files.

        A trace whose spans lie in the database has files only when something is attached to it; `in_use` tells
        whether there is anything at a URI.
        """
        for found in self.heads(of):
            told = pairs(found.get("trace_tags", ()))
            owner = "@trace/" + found["trace_info"][0]["request_id"]
            if told.get(SPANS_AT) == IN_DATABASE:
                self.with_rows.add(owner)
            if told.get(FILES_AT) and (
                told.get(SPANS_AT) not in (IN_DATABASE, ARCHIVED) or owner in self.attached or in_use(told[FILES_AT])
            ):
                yield owner, told[FILES_AT]
            if told.get(ARCHIVE_AT) and told.get(SPANS_AT) == ARCHIVED:
                yield owner, told[ARCHIVE_AT]

    def _listing(self, experiments: Sequence[str], most: int, filter_text: str = "") -> Listing:
        ask: dict[str, object] = {"order_by": ORDER} | ({"filter": filter_text} if filter_text else {})
        if not self.new:
            return Listing("api/2.0/mlflow/traces", "traces", {**ask, "experiment_ids": list(experiments)}, most)
        places = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": one}} for one in experiments]
        return Listing("api/3.0/mlflow/traces/search", "traces", {**ask, "locations": places}, most, post=True)

    def _spans(self, head: Tree, losses: list[Loss]) -> Tree:
        """The spans of a trace, where they lie in the database."""
        if _spans_at(head) != IN_DATABASE:
            return {}
        row = head["trace_info"][0]
        trace, of = row["request_id"], row["experiment_id"]
        loss = Loss("", f"spans of trace {trace}", "", str(of))
        found = self.site.take(losses, loss, self._content, trace)
        if found is not None and any(ATTACHED in span["content"] for span in found):
            self.attached.add(f"@trace/{trace}")
        return tree(spans=[{"trace_id": trace, "experiment_id": of, **span} for span in found or ()])

    def _content(self, id: str) -> list[Row]:
        client, params = self.site.client, {"request_id": id}
        try:
            data = client.again.do("the spans of a trace", _read, self.site, params)
            return [_span(span) for span in json.loads(data)["spans"]]
        except NotFound as error:
            raise BadData("the server does not give them out") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadData("the server gave something that is none") from error

    def _linked(
        self, of: str, entities: Callable[[], Keys], losses: list[Loss], pool: Executor
    ) -> dict[str, list[tuple[str, str]]]:
        """What each trace is linked to, beside the run that it says it was made in."""
        linked: dict[str, list[tuple[str, str]]] = {}
        if self.site.server.version < LINKS_SINCE:
            return linked
        some = entities()
        if any(kind != "run" for kind, _ in some) and not self._knows_prompts(of):
            some = [one for one in some if one[0] == "run"]
        if len(some) > LINKED_RUNS:
            because = f"it has {len(some)} runs, and a server must be asked for the traces of each"
            losses.append(Loss("", "links of traces to runs", because, of))
            return linked
        for entity, traces in ahead(pool, some, lambda one: (one, self._traces_of(of, one, losses))):
            for trace in traces:
                linked.setdefault(trace, []).append(entity)
        return linked

    def _knows_prompts(self, of: str) -> bool:
        """Whether traces can be searched for by the prompts that they used."""
        try:
            self.site.has(self._listing([of], 1, "prompt = 'any/1'"))
        except Unavailable:
            raise
        except MigrateError:
            return False
        return True

    def _traces_of(self, of: str, entity: tuple[str, str], losses: list[Loss]) -> list[str]:
        kind, named = entity
        filter_text = f"attributes.run_id = '{named}'" if kind == "run" else f"prompt = '{named}'"
        if "'" in named:
            return []
        found: list[str] | None = self.site.take(
            losses,
            Loss("", f"traces of {kind.replace('_', ' ')} {named}", "", of),
            lambda: [
                trace.trace_id
                for trace in self.site.items(self._listing([of], MOST, filter_text), WireTrace)
                if kind != "run" or trace.trace_metadata.get("mlflow.sourceRun") != named
            ],
        )
        return found or []


def _read(site: Site, params: Params) -> bytes:
    with site.client.spool(SPANS, params) as data:
        return data.read()


def _spans_at(head: Tree) -> str:
    return pairs(head.get("trace_tags", ())).get(SPANS_AT, "")


def _association(trace: str, kind: str, id: str) -> Row:
    return {"source_type": "trace", "source_id": trace, "destination_type": kind, "destination_id": id}


def _new(trace: WireTrace) -> Tree:
    of = experiment(trace.trace_location.mlflow_experiment.experiment_id)
    row = known(
        request_id=trace.trace_id,
        experiment_id=of,
        timestamp_ms=moment(trace.request_time),
        execution_time_ms=duration(trace.execution_duration),
        status=trace.state,
        client_request_id=trace.client_request_id,
        request_preview=trace.request_preview,
        response_preview=trace.response_preview,
    )
    found = _promoted(row, dict(trace.tags), dict(trace.trace_metadata))
    return found | tree(assessments=[assessment(one, trace.trace_id) for one in trace.assessments])


def _old(trace: WireOldTrace) -> Tree:
    """A trace of before 3.0, where what is not over has taken no time."""
    row = known(
        request_id=trace.request_id,
        experiment_id=experiment(trace.experiment_id),
        timestamp_ms=trace.timestamp_ms,
        execution_time_ms=trace.execution_time_ms if trace.status != "IN_PROGRESS" else None,
        status=trace.status or None,
    )
    told = {pair.key: pair.value for pair in trace.tags}
    return _promoted(row, told, {pair.key: pair.value for pair in trace.request_metadata})


def _promoted(row: Row, told: dict[str, str], metadata: dict[str, str]) -> Tree:
    """The tables of a trace: what MLflow 3.17 keeps in columns, older servers keep in tags and metadata."""
    request = row["request_id"]
    row |= known(trace_name=told.pop(NAME, None), session_id=metadata.pop(SESSION, None))
    for key, columns in COUNTED.items():
        numbers = _numbers(metadata.get(key, ""), columns)
        if numbers:
            row |= numbers
            del metadata[key]
    return tree(
        trace_info=[row],
        trace_tags=tags(told, request_id=request),
        trace_request_metadata=tags(metadata, request_id=request),
    )


def _numbers(text: str, columns: Sequence[str]) -> Row:
    """The columns in a JSON object; none where it holds anything else."""
    try:
        given = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(given, dict) or not given.keys() <= set(columns):
        return {}
    plain = (isinstance(value, int | float) and not isinstance(value, bool) for value in given.values())
    return given if all(plain) else {}


def _span(span: dict[str, Any]) -> Row:
    """A row of `spans`, but for what names the trace."""
    content = json.dumps(span, ensure_ascii=False)
    if not _is_text(content):
        content = json.dumps(span)
    name = span["name"]
    return {
        **known(type=_span_type(span), end_time_unix_nano=span["end_time_unix_nano"]),
        "span_id": _hex(span["span_id"]),
        "parent_span_id": _hex(span["parent_span_id"]) if span.get("parent_span_id") else None,
        "name": name if isinstance(name, str) and _is_text(name) else str(name).encode("utf-8", "replace").decode(),
        "status": span["status"]["code"].removeprefix("STATUS_CODE_"),
        "start_time_unix_nano": span["start_time_unix_nano"],
        "content": content,
    }


def _span_type(span: Mapping[str, Any]) -> str | None:
    """Attributes are JSON in JSON."""
    given = (span.get("attributes") or {}).get(_SPAN_TYPE)
    found = json.loads(given) if isinstance(given, str) else given
    return found if isinstance(found, str) and _is_text(found) else None


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hex(id: str) -> str:
    """A span's id as MLflow writes it into its own column; in a span it is base64 of bytes."""
    try:
        raw = base64.b64decode(id, validate=True)
    except binascii.Error:
        return id.removeprefix("0x")
    return raw.hex() if len(raw) in (8, 16) else id.removeprefix("0x")
