"""How values name a version of an artifact: by an id that the SDK made up before W&B knew the version.

    {"_type": "table-file", "artifact_path": "wandb-client-artifact://<client>/<path>",
     "_latest_artifact_path": "wandb-client-artifact://<sequence>:latest/<path>", ...}

A version has one such pair of ids for each time that it was logged; W&B shows a table by them.  So a version that is
made elsewhere is made with the ids that it had, where nobody has them yet.  W&B's own numbers of versions
(wandb-artifact://<hex>/<path>) cannot be kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlmigrate.adapters.wandb.shape import Version

_HINT = b"wandb-"
_URL = re.compile(r"wandb-(client-)?artifact://([0-9A-Za-z]{1,128})(:latest)?/")
_ID = re.compile(r"[0-9A-Za-z]{1,128}")  # the SDK makes them of 128 letters and digits
MOST = 10_000  # ids of one version; those beyond are strangers


@dataclass(slots=True)
class Named:
    """The versions that some values name.

    clients   the id by which they name a version -> that of its collection, "" where no value tells
    numbered  W&B's own ids
    """

    clients: dict[str, str] = field(default_factory=dict)
    numbered: set[str] = field(default_factory=set)

    def through(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Gives these lines of JSON on, and looks at each."""
        for line in lines:
            if _HINT in line:
                self.look(line)
            yield line

    def look(self, text: str | bytes) -> None:
        """Looks at a value's JSON; what is none names nothing."""
        try:
            self.take(json.loads(text))
        except (ValueError, RecursionError):
            return

    def take(self, value: Any) -> None:  # noqa: ANN401  any JSON
        """Looks at a value."""
        left = [value]
        while left:
            one = left.pop()
            if isinstance(one, Mapping):
                self._pair(one)
                left += one.values()
            elif isinstance(one, list | tuple):
                left += one
            elif isinstance(one, str):
                self._url(one)

    def strangers(self, versions: Iterable[Version]) -> int:
        """How many versions they name that are none of these."""
        known = {client for version in versions for client, _ in sound(version.clients)}
        return len(self.clients.keys() - known) + len(self.numbered)

    def _pair(self, value: Mapping[str, Any]) -> None:
        own, latest = (_parts(value.get(name)) for name in ("artifact_path", "_latest_artifact_path"))
        if own and latest and latest[1] and not own[1]:
            self.clients[own[0]] = latest[0]

    def _url(self, text: str) -> None:
        found = _URL.match(text)
        if found is None:
            return
        if not found[1]:
            self.numbered.add(found[2])
        elif not found[3]:
            self.clients.setdefault(found[2], "")


def sound(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that are ids indeed, once each, and no more than anybody logs."""
    found = dict.fromkeys(pair for pair in pairs if _ID.fullmatch(pair[0]) and _ID.fullmatch(pair[1] or "0"))
    return list(found)[:MOST]


def _parts(text: object) -> tuple[str, bool] | None:
    """Client id, and whether it is that of a collection."""
    found = _URL.match(text) if isinstance(text, str) else None
    return (found[2], bool(found[3])) if found is not None and found[1] else None
