"""Traces: <experiment>/traces/<id>/{trace_info.yaml,tags/,request_metadata/,assessments/<id>.yaml,artifacts/}.

    2.x   request_id  timestamp_ms  execution_time_ms      status
    3.x   trace_id    request_time  execution_duration_ms  state    client_request_id  previews

Their spans are a file of their own, artifacts/traces.json.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH118

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from mlmigrate.adapters.mlflow.files import disk, meta
from mlmigrate.adapters.mlflow.files.artifacts import FOLDER, Whereabouts, artifacts
from mlmigrate.adapters.mlflow.files.assessments import assessment
from mlmigrate.adapters.mlflow.files.runs import escaped
from mlmigrate.adapters.mlflow.files.things import MOST, Thing, Told, experiment_key, folders
from mlmigrate.adapters.mlflow.objects import BY_NAME, Row, Tree, record_of, rows_of
from mlmigrate.errors import BadData
from mlmigrate.model import Artifact, Record

OWNER = "@trace/"
INFO = "trace_info.yaml"
LOCATION = "mlflow.artifactLocation"
KIND = BY_NAME["mlflow.trace"]
STATUSES = {"TRACE_STATUS_UNSPECIFIED": "STATE_UNSPECIFIED", "UNSPECIFIED": "STATE_UNSPECIFIED"}
NUMBERED = ("STATE_UNSPECIFIED", "OK", "ERROR", "IN_PROGRESS")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS = re.compile(r"(-?[0-9]{1,15}(?:\.[0-9]{1,9})?)s")
_TEXTS = ("client_request_id", "request_preview", "response_preview")
_PARTS = (INFO, "tags", "request_metadata", "assessments", FOLDER)
_REPEATED = frozenset(("tags", "request_metadata", "trace_metadata", "assessments", "trace_location"))
_KNOWN = _REPEATED | {
    *("request_id", "trace_id", "experiment_id"),
    *_TEXTS,
    *("timestamp_ms", "request_time", "execution_time_ms", "execution_duration_ms", "execution_duration"),
    *("status", "state"),
}


@dataclass(frozen=True, slots=True)
class Traces:
    """The traces in one folder of an experiment."""

    folder: str
    whereabouts: Whereabouts
    told: Told

    def records(self) -> Iterator[Record]:
        """Every trace with its assessments."""
        for entry in folders(self.folder, self.told):
            trace = Thing(entry.path, f"trace {disk.shown(entry.name)}", self.told)
            if trace.load(INFO, _KNOWN, ()) and self._timed(trace):
                yield record_of(KIND, self._tree(trace, escaped(entry.name)))

    def artifacts(self) -> Iterator[Artifact]:
        """The files of every trace that can be read: its spans."""
        for entry in disk.folders(self.folder):
            uri = _location(entry.path)
            place = self.whereabouts.folder(entry.path, (self.told.experiment, "traces", entry.name), uri)
            timed = _time(meta.load(os.path.join(entry.path, INFO)).meta) is not None
            if place and timed:
                yield from artifacts(place, OWNER + escaped(entry.name), self.told.experiment, self.told.losses)
            elif place:
                self.told.lose(f"trace {disk.shown(entry.name)}, artifacts", "left behind with it")
            elif timed and self.whereabouts.far(uri):
                yield from self.whereabouts.stores.artifacts(uri, OWNER + escaped(entry.name))
            elif because := self.whereabouts.missing(entry.path, uri):
                self.told.lose(f"trace {disk.shown(entry.name)}, artifacts", because)

    def _timed(self, trace: Thing) -> bool:
        if _time(trace.said) is not None:
            return True
        self.told.lose(trace.what, f"its {INFO} says no time that can be read")
        return False

    def _tree(self, trace: Thing, id: str) -> Tree:
        info: Row = {
            "request_id": id,
            "experiment_id": experiment_key(self.told.experiment),
            "timestamp_ms": _time(trace.said),
            "execution_time_ms": _duration(trace.said),
            "status": _status(trace),
            **{field: trace.text(field) for field in _TEXTS if field in trace.said},
        }
        self._check(trace, id)
        tree = {
            "trace_info": [info],
            "trace_tags": rows_of(trace.values("tags"), request_id=id),
            "trace_request_metadata": rows_of(trace.values("request_metadata"), request_id=id),
            "assessments": list(_assessments(trace, info)),
        }
        return {table: rows for table, rows in tree.items() if rows}

    def _check(self, trace: Thing, id: str) -> None:
        location = trace.said.get("trace_location")
        inside = location.get("mlflow_experiment") if isinstance(location, dict) else None
        elsewhere = inside.get("experiment_id") if isinstance(inside, dict) else trace.said.get("experiment_id")
        if meta.word(elsewhere) not in ("", self.told.experiment):
            because = f"its {INFO} says {disk.shown(str(elsewhere))!r}: kept where it lies"
            trace.note("experiment_id", because)
        told = trace.text("trace_id") or trace.text("request_id") or id
        if told != id:
            trace.note("id", f"its {INFO} says {disk.shown(told)!r}: kept under its folder's name")
        trace.strays(lambda one: one in _PARTS)


def _location(folder: str) -> str:
    try:
        return disk.text(disk.read(os.path.join(folder, "tags", LOCATION), MOST))
    except (OSError, BadData):
        return ""


def _status(trace: Thing) -> str:
    given = trace.text("status") or trace.text("state") or NUMBERED[0]
    if given.isascii() and given.isdecimal() and int(given) < len(NUMBERED):
        return NUMBERED[int(given)]
    return STATUSES.get(given, given)


def _time(said: meta.Meta) -> int | None:
    """When the trace began, in ms since the epoch; None when nobody can tell."""
    given = said.get("timestamp_ms")
    return moment(said.get("request_time") if given is None else given)


def ended(said: meta.Meta) -> int | None:
    """When it was over, in ms since the epoch; when it began, as long as it is not."""
    began = _time(said)
    return None if began is None else began + (_duration(said) or 0)


def _duration(said: meta.Meta) -> int | None:
    """How long it took, in ms: a number, or text like "1.5s"."""
    for field in ("execution_time_ms", "execution_duration_ms"):
        if said.get(field) is not None:
            return meta.time(said[field])
    found = _SECONDS.fullmatch(meta.word(said.get("execution_duration")))
    return None if found is None else round(float(found[1]) * 1000)


def moment(value: object) -> int | None:
    """Milliseconds since the epoch of a number or of a time as protobuf writes it in JSON; None for neither."""
    if isinstance(value, str) and not value.strip().lstrip("-").isdecimal():
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return (aware - _EPOCH) // timedelta(milliseconds=1)
    return None if isinstance(value, date) else meta.time(value)


def _assessments(trace: Thing, info: Row) -> Iterator[Row]:
    """One row for each assessment: the files, then those in the trace's own meta that have no file."""
    seen: set[str] = set()
    for path, data in trace.files("assessments"):
        name = path.removesuffix(".yaml")
        found = meta.parse(data)
        if found.flaw or not path.endswith(".yaml") or "/" in path:
            trace.lose(f"assessments/{disk.shown(path)}", found.flaw or "left behind: no assessment")
            continue
        row = assessment(trace, escaped(name), found.meta, info, moment)
        if row is not None:
            seen.add(row["assessment_id"])
            yield row
    inline = trace.said.get("assessments")
    for said in inline if isinstance(inline, list) else ():
        own = meta.word(said.get("assessment_id")) if isinstance(said, dict) else ""
        if own and own not in seen:
            row = assessment(trace, escaped(own), {str(key): value for key, value in said.items()}, info, moment)
            if row is not None:
                seen.add(own)
                yield row
