"""What a W&B server says when it does not do what it was asked: our error for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mlmigrate.errors import Conflict, MigrateError, NotFound, Refused, Unavailable
from mlmigrate.storage.throttle import until

A_PAGE = "an HTML page"
SHOWN = 400  # letters of a reason
_AWAY = frozenset((408, 425, 429, 500, 502, 503, 504))
_BURNT = re.compile(r"previously created and deleted|already exists|duplicate", re.IGNORECASE)
_AGAIN = re.compile(r"rate.?limit|too many requests|try again|timed? ?out|temporar|overload|deadlock", re.IGNORECASE)
_DENIED = re.compile(
    r"permission|not authori[sz]ed|unauthori[sz]ed|unauthenticated|forbidden|not logged in|access denied|api.?key",
    re.IGNORECASE,
)
_MISSING = re.compile(r"not found|could not find|does not exist|no such|doesn't exist|unable to find", re.IGNORECASE)
_UNKNOWN = re.compile(r"cannot query field|unknown argument|unknown type|unknown field|is not defined", re.IGNORECASE)


class Unsupported(MigrateError):
    """The server's GraphQL has no such field or argument: it is older, or newer, than what we ask."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of whom, for messages; `told` is what to do when it refuses the key."""

    where: str
    name: str
    told: str = ""


def explained(asked: Asked, status: int, text: str, headers: Mapping[str, str]) -> MigrateError:  # noqa: PLR0911  # a table
    """Our error. GraphQL tells most of its errors with status 200, so the words count."""
    line = " ".join(text.split())
    to = f"{asked.where} ({asked.name})"
    because = f": {_short(line)}" if line else ""
    if status == 401:  # noqa: PLR2004
        return Refused(f"{asked.where} does not take the API key (401){because}", asked.told)
    if status < 500 and _UNKNOWN.search(line):  # noqa: PLR2004  # first, for it may show what was sent, in any words
        return Unsupported(f"{to} does not know what it is asked for{because}")
    if status == 409 or (status < 500 and _BURNT.search(line)):  # noqa: PLR2004
        return Conflict(f"{to} has it already, or had it{because}")
    if status in _AWAY or _AGAIN.search(line):
        return Unavailable(f"{to} answered {status}{because}", after=after(headers))
    if status == 404 or _MISSING.search(line):  # noqa: PLR2004
        return NotFound(f"{to} has no such thing{because}")
    if status == 403 or _DENIED.search(line):  # noqa: PLR2004
        return Refused(f"{to} does not permit this ({status}){because}", asked.told)
    if 300 <= status < 400:  # noqa: PLR2004  # HTTP's redirects
        return MigrateError(f"{to} answered {status}: it is elsewhere.", "Give the address where it is")
    return MigrateError(f"{to} refused a request ({status}){because}")


def _short(line: str) -> str:
    """Its beginning and its end: in between servers show what they were sent."""
    return line if len(line) <= SHOWN else f"{line[: SHOWN // 2]} ... {line[-SHOWN // 2 :]}"


def said(body: bytes | Mapping[str, Any]) -> str:
    """The reasons that an answer gives, in one line; "" for none that can be read."""
    if isinstance(body, bytes):
        try:
            body = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _plain(body) if isinstance(body, bytes) else ""
    if not isinstance(body, Mapping):
        return ""
    found = [_message(one) for one in _listed(body.get("errors"))] + [_message(body.get("error"))]
    found.append(_message(body.get("message")))
    return "; ".join(line for line in found if line)


def look(data: bytes) -> str:
    """What an answer looks like that is not the JSON that was asked for; never its contents."""
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return A_PAGE
    return f"{len(data)} bytes that are not the JSON that was asked for"


def after(headers: Mapping[str, str]) -> float | None:
    """How long to wait, in seconds: Retry-After (a number or a date), else RateLimit-Reset."""
    text = headers.get("Retry-After", "")
    wait = _number(text)
    if wait is not None:
        return wait
    date = until(text) if text else None
    return date if date is not None else _number(headers.get("RateLimit-Reset", ""))


def reset(headers: Mapping[str, str]) -> float | None:
    """How long nothing may be asked, when an answer says that nothing is left of what we may ask."""
    if _number(headers.get("RateLimit-Remaining", "")) != 0.0:
        return None
    return _number(headers.get("RateLimit-Reset", ""))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _message(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("message"), str):
        return str(value["message"])
    return ""


def _plain(body: bytes) -> str:
    """Short text that is no page: gateways say so why."""
    return "" if look(body) == A_PAGE else body[:200].decode("utf-8", "replace")
