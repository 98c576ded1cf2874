"""Times and steps as W&B's rows hold them, and exactly back: whole columns at once.

A time is float64 seconds there, and milliseconds with microseconds here; a step of ours may be a decimal number.
What a float64 cannot give back is told as text beside it: "<ms>" or "<ms>+<micro>", of steps the same; "none" where
something else had to stand in its place.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.signedinteger[Any]]
F64 = npt.NDArray[np.float64]
Bits = npt.NDArray[np.bool_]

NO_MICRO = -(2**31) + 1  # in columns of micros: there are none
NOTHING = -(2**31)  # in columns of micros: there is no time (or step) at all, the whole is WHOLE_OF_NOTHING
WHOLE_OF_NOTHING = -(2**63)
EARLIEST, LATEST = -62_135_596_800, 253_402_300_800  # seconds: from year 1 to 9999, as far as protobuf and ISO tell
_MICRO = 1_000_000
_HONEST = 2.0**33  # seconds: float64 tells two microseconds apart until then
_LARGEST = 2.0**63
_FOREVER = 1e12  # seconds
_NONE = "none"
_TEXT = re.compile(r"(-?\d{1,19})([+-]\d{1,10})?", re.ASCII)


def seconds(ms: Ints, micro: Ints) -> F64:
    """Milliseconds and microseconds (or NO_MICRO) as W&B's seconds; NaN for NOTHING."""
    honest = np.abs(ms.astype(np.float64)) < _HONEST * 1000
    exact = np.where(honest, ms, 0) * 1000 + np.where(micro > NO_MICRO, micro, 0)
    return np.where(micro == NOTHING, np.nan, np.where(honest, exact / 1e6, ms / 1000.0))


def moments(time: F64) -> tuple[Ints, Ints]:
    """Seconds as milliseconds and microseconds: NO_MICRO for none, NOTHING for what is no time."""
    known = np.isfinite(time) & (np.abs(time) < _LARGEST / 1000)
    honest = known & (np.abs(time) < _HONEST)
    whole = np.floor(np.where(known, time, 0.0))
    part = np.where(known, time, 0.0) - whole  # exact: a float64 less its whole
    small = whole.astype(np.int64)
    micros = np.where(honest, small, 0) * _MICRO + np.rint(part * 1e6).astype(np.int64)
    late = np.where(np.abs(small) < 2**63 // 1000 - 1, small, 0) * 1000 + np.rint(part * 1000).astype(np.int64)
    ms = np.where(honest, micros // 1000, late)
    micro = np.where(honest & (micros % 1000 != 0), micros % 1000, NO_MICRO)
    return _marked(ms, micro, known)


def whole_ms(time: float | None) -> int | None:
    """Seconds as milliseconds, as trackers that hold no more have them; None for what is no time."""
    (ms,), (micro,) = moments(np.array([np.nan if time is None else time]))
    return None if micro == NOTHING else int(ms)


def milliseconds(told: object) -> int | None:
    """A time as W&B and its SDK write it: ISO 8601, in UTC where no zone stands; None for what is none."""
    if not isinstance(told, str) or not told:
        return None
    try:
        when = datetime.fromisoformat(told)
    except ValueError:
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    seconds = when - datetime(1970, 1, 1, tzinfo=UTC)
    return (seconds.days * 86400 + seconds.seconds) * 1000 + seconds.microseconds // 1000


def lasted(told: object) -> float | None:
    """The seconds that a run took; None for what is no number, and for what nothing can take."""
    if isinstance(told, bool) or not isinstance(told, int | float):
        return None
    return float(told) if abs(told) < _FOREVER else None


def in_calendar(time: F64) -> Bits:
    """Which seconds a calendar has; NaN is not among them."""
    return (time >= EARLIEST) & (time < LATEST)


def numbers(step: Ints, micro: Ints) -> F64:
    """Steps and their millionths as one decimal number; NaN for NOTHING."""
    parts = step + np.where(micro > NO_MICRO, micro, 0) / 1e6
    return np.where(micro == NOTHING, np.nan, parts)


def steps(number: F64) -> tuple[Ints, Ints]:
    """Decimal numbers as steps and their millionths."""
    known = np.isfinite(number) & (np.abs(number) < _LARGEST)
    sane = np.where(known, number, 0.0)
    whole = np.floor(sane)
    micro = np.rint((sane - whole) * 1e6).astype(np.int64)
    step = whole.astype(np.int64) + micro // _MICRO
    micro %= _MICRO
    return _marked(step, np.where(micro != 0, micro, NO_MICRO), known)


def dated(ms: int | None) -> int | None:
    """The time, if it is in a calendar: trackers hold nanoseconds that somebody took for milliseconds."""
    return ms if ms is not None and EARLIEST * 1000 <= ms < LATEST * 1000 else None


def text(whole: int, micro: int) -> str:
    """What no float64 gives back, in full."""
    if micro == NOTHING:
        return _NONE
    return str(whole) if micro == NO_MICRO else f"{whole}{micro:+d}"


def parsed(text: str) -> tuple[int, int] | None:
    """The whole and the micro of such a text; None when it is something else."""
    if text == _NONE:
        return WHOLE_OF_NOTHING, NOTHING
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    whole, micro = int(found[1]), int(found[2]) if found[2] else NO_MICRO
    fits = -(2**63) <= whole < 2**63 and NOTHING < micro < 2**31
    return (whole, micro) if fits else None


def _marked(whole: Ints, micro: Ints, known: Bits) -> tuple[Ints, Ints]:
    return np.where(known, whole, WHOLE_OF_NOTHING), np.where(known, micro, NOTHING)
