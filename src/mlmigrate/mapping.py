"""Rename, drop, redact; pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mapping:
    """Rules; an empty one changes nothing."""
