"""A pack on its way: its points, files and bytes are told as they pass, none twice, and taken back when it fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from mlmigrate.events import Progress
from mlmigrate.model import Artifact
from mlmigrate.storage.throttle import UNLIMITED, Throttle
from mlmigrate.storage.told import Passage

HERE = "file"  # the store of spots on this machine


class Passing:
    """Tells `progress`; asks `throttle` for the bytes of files that lie here.

    What goes over a network is paid for where that happens (storage/throttle.py), so the throttle is UNLIMITED
    when source or target is elsewhere, and nothing is paid for a file whose spot is elsewhere.
    """

    def __init__(self, progress: Progress, throttle: Throttle = UNLIMITED) -> None:
        self._progress, self._throttle = progress, throttle
        self._lock = threading.Lock()
        self._points = self._artifacts = self._told = self._given = 0

    @contextmanager
    def going(self) -> Iterator[None]:
        """A block that carries the pack: what it told is taken back when it fails, for it is carried again."""
        try:
            yield
        except BaseException:
            with self._lock:
                points, artifacts, size = self._points, self._artifacts, self._told
                self._points = self._artifacts = self._told = self._given = 0
            self._progress.advance(-points, -artifacts, -size)
            raise
        self._tell(self._given - self._told)  # of files that nobody read: copied by a store, or left where they are

    def points(self, number: int) -> None:
        """So many more points are written."""
        self._points += number
        self._progress.advance(points=number)

    def artifact(self, artifact: Artifact) -> Artifact:
        """The same file; its bytes are told as they pass."""
        self._given += artifact.size or 0
        here = artifact.spot is None or artifact.spot.store == HERE
        passage = Passage(artifact.size, self._tell, self._throttle.payload if here else None)
        return replace(artifact, open=passage.opener(artifact.open), told=passage.passed)

    def put(self) -> None:
        """One more file was given to the target."""
        self._artifacts += 1
        self._progress.advance(artifacts=1)

    def seen(self, artifact: Artifact) -> None:
        """A file is counted, and no byte of it is read."""
        self._tell(artifact.size or 0)
        self._given += artifact.size or 0
        self.put()

    def _tell(self, size: int) -> None:
        if size > 0:
            with self._lock:
                self._told += size
            self._progress.advance(size=size)
