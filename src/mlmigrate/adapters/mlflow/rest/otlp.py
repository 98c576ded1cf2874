r"""Spans as OpenTelemetry's protocol carries them: MLflow's JSON of a span in, protobuf out. Pure.

    {"trace_id": "GKDz...", "span_id": "...", "attributes": {"k": "\"v\""}, ...}  ->  ExportTraceServiceRequest

Only this way do spans come to lie in a server's database.  The few messages are written by hand: each
is fields of (number, wire type, value), and a server of any version takes protobuf (JSON only some).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATH = "v1/traces"
EXPERIMENT = "x-mlflow-experiment-id"
CONTENT_TYPE = "application/x-protobuf"
REQUEST_ID = "mlflow.traceRequestId"  # an attribute of every span
CODES = {"STATUS_CODE_OK": 1, "OK": 1, "STATUS_CODE_ERROR": 2, "ERROR": 2}
WORDS = {0: "STATUS_CODE_UNSET", 1: "STATUS_CODE_OK", 2: "STATUS_CODE_ERROR"}
LARGEST = 1 << 63
_TRACE = re.compile(r"(?:tr-)?([0-9a-f]{32})")
_SPAN = re.compile(r"[0-9a-f]{16}")
_V2 = re.compile(r"0x([0-9a-f]{1,32})")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a span."""

    name: str
    time: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Link:
    """Another span, of this trace or another. `trace` is hexadecimal."""

    trace: str
    span: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """A span; ids in hexadecimal, times in ns, attributes as the JSON texts that MLflow keeps."""

    trace: str
    id: str
    parent: str
    name: str
    start: int
    end: int | None
    code: int
    message: str
    attributes: Mapping[str, Any]
    events: Sequence[Event] = ()
    links: Sequence[Link] = ()


def span_of(content: str) -> Span | None:
    """A span from MLflow's JSON, of any version; None where it has no ids that the protocol could carry."""
    try:
        body = json.loads(content)
        return _v2(body) if "context" in body else _v3(body)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error, RecursionError):
        return None


def _v3(body: Mapping[str, Any]) -> Span | None:
    status = body.get("status") or {}
    trace, span = _trace_id(body["trace_id"]), _span_id(body["span_id"])
    parent = _span_id(body["parent_span_id"]) if body.get("parent_span_id") else ""
    if trace is None or span is None or parent is None:
        return None
    start, end = int(body["start_time_unix_nano"]), _time(body.get("end_time_unix_nano"))
    return Span(
        trace, span, parent, str(body["name"]), start, end,
        CODES.get(status.get("code") or "", 0), status.get("message") or "", _texts(body.get("attributes") or {}),
        tuple(_event(event, "time_unix_nano") for event in body.get("events") or ()),
        tuple(filter(None, map(_link, body.get("links") or ()))),
    )  # fmt: skip


def _texts(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Attributes as JSON texts. A server of 3.5 kept the values themselves, and its own is no JSON then."""
    if str(attributes.get(REQUEST_ID, '"')).startswith('"'):
        return attributes
    return {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()}


def _v2(body: Mapping[str, Any]) -> Span | None:
    """As MLflow 2 wrote it, ids as "0x..."."""
    context = body["context"]
    trace, span = _padded(context["trace_id"], 32), _padded(context["span_id"], 16)
    parent = _padded(body["parent_id"], 16) if body.get("parent_id") else ""
    if trace is None or span is None or parent is None:
        return None
    return Span(
        trace, span, parent, str(body["name"]), int(body["start_time"]), _time(body.get("end_time")),
        CODES.get(body.get("status_code") or "", 0), body.get("status_message") or "", body.get("attributes") or {},
        tuple(_event(event, "timestamp") for event in body.get("events") or ()),
    )  # fmt: skip


def _trace_id(text: str) -> str | None:
    found = _TRACE.fullmatch(text)
    return found[1] if found else _hexadecimal(text, 16)


def _span_id(text: str) -> str | None:
    return text if _SPAN.fullmatch(text) else _hexadecimal(text, 8)


def _hexadecimal(text: str, length: int) -> str | None:
    data = base64.b64decode(text, validate=True)
    return data.hex() if len(data) == length else None


def _padded(text: str, length: int) -> str | None:
    found = _V2.fullmatch(text)
    return found[1].zfill(length) if found and len(found[1]) <= length else None


def _time(value: object) -> int | None:
    return int(value) if value else None  # type: ignore[call-overload]


def _event(body: Mapping[str, Any], time: str) -> Event:
    return Event(str(body["name"]), int(body[time]), body.get("attributes") or {})


def _link(body: Mapping[str, Any]) -> Link | None:
    found = _TRACE.fullmatch(str(body["trace_id"]))
    span = _SPAN.fullmatch(str(body["span_id"]))
    return Link(found[1], span[0], body.get("attributes") or {}) if found and span else None


def content_there(span: Span) -> str:
    """The JSON that a server keeps of this span."""
    attributes = {key: _kept(value) for key, value in span.attributes.items()}
    attributes[REQUEST_ID] = f'"tr-{span.trace}"'
    body = {
        "trace_id": _base64(span.trace),
        "span_id": _base64(span.id),
        "parent_span_id": _base64(span.parent) if span.parent else None,
        "name": span.name,
        "start_time_unix_nano": span.start,
        "end_time_unix_nano": span.end or 0,
        "events": [
            {"name": event.name, "time_unix_nano": event.time, "attributes": event.attributes} for event in span.events
        ],
        "status": {"code": WORDS[span.code], "message": span.message},
        "attributes": attributes,
        "links": [
            {"trace_id": f"tr-{link.trace}", "span_id": link.span, "attributes": link.attributes or None}
            for link in span.links
        ],
    }
    return json.dumps(body, ensure_ascii=False)


def _kept(value: object) -> str:
    """An attribute as the server writes it again after it was carried."""
    return json.dumps(_meant(value), ensure_ascii=False)


def _meant(value: object) -> object:
    """The value that an attribute's JSON text stands for; the text itself where it is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _base64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode("ascii")


def request(spans: Iterable[Span]) -> bytes:
    """An ExportTraceServiceRequest of these spans."""
    scope = b"".join(_message(2, encoded(span)) for span in spans)
    return _message(1, _message(2, scope))


def encoded(span: Span) -> bytes:
    """One span."""
    parts = [
        _message(1, bytes.fromhex(span.trace)),
        _message(2, bytes.fromhex(span.id)),
        _message(4, bytes.fromhex(span.parent)) if span.parent else b"",
        _message(5, _utf8(span.name)),
        _fixed(7, span.start),
        _fixed(8, span.end) if span.end else b"",
    ]
    values = {key: _meant(value) for key, value in span.attributes.items()}
    parts += _attributes(9, values)
    for event in span.events:
        parts.append(
            _message(11, _fixed(1, event.time) + _message(2, _utf8(event.name)) + _joined(3, event.attributes))
        )
    for link in span.links:
        ids = _message(1, bytes.fromhex(link.trace)) + _message(2, bytes.fromhex(link.span))
        parts.append(_message(13, ids + _joined(4, link.attributes)))
    parts.append(_message(15, _message(2, _utf8(span.message)) + _number(3, span.code)))
    return b"".join(parts)


def _joined(field: int, values: Mapping[str, Any]) -> bytes:
    return b"".join(_attributes(field, values))


def _attributes(field: int, values: Mapping[str, Any]) -> list[bytes]:
    return [_message(field, _message(1, _utf8(str(key))) + _message(2, _any(value))) for key, value in values.items()]


def _any(value: object) -> bytes:  # noqa: PLR0911  # one line for each type
    """An AnyValue. It is told apart by its field, so zeros and empty ones are written too."""
    if value is None:
        return b""
    if isinstance(value, bool):
        return _number(2, int(value))
    if isinstance(value, int) and -LARGEST <= value < LARGEST:
        return _number(3, value)
    if isinstance(value, float):
        return b"\x21" + struct.pack("<d", value)
    if isinstance(value, list | tuple):
        return _message(5, b"".join(_message(1, _any(one)) for one in value))
    if isinstance(value, dict):
        return _message(6, _joined(1, value))
    return _message(1, _utf8(str(value)))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _fixed(field: int, value: int) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<Q", value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:  # noqa: PLR2004  # seven bits a byte
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
