"""Patterns of names as a person writes them."""

from __future__ import annotations

import re

_WILDCARD = re.compile(r"\\(.)|(\*\*)|(\*)|([^*\\]+|\\)", re.DOTALL)


def glob(text: str) -> re.Pattern[str]:
    r"""The pattern of a name: `*` some text without "/", `**` some text, `\*` a star."""
    parts = []
    for escaped, anything, part, literal in _WILDCARD.findall(text):
        parts.append("(.+)" if anything else "([^/]+)" if part else re.escape(escaped or literal))
    return re.compile("".join(parts), re.DOTALL)
