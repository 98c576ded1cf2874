"""What of a run speaks of things that were not there yet: named in one tag of it, and set right at the end.

A tag's value is written as it was, its key noted; an MLmodel file likewise by its path.  Of params, which
nobody can change, is told which ones keep a name of the source's.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from mlmigrate.adapters.mlflow.references import RUN_TAGS, rewritten
from mlmigrate.adapters.mlflow.rest.artifacts import Shelf
from mlmigrate.adapters.mlflow.rest.objects import Known
from mlmigrate.adapters.mlflow.rest.uploads import Uploads
from mlmigrate.adapters.mlflow.rest.wire import WireRun
from mlmigrate.adapters.mlflow.rest.writing import WAITS_TAG
from mlmigrate.model import ORIGIN_TAG, Artifact, Loss

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.rest.writing import Writing

LONGEST = 4900  # characters of a tag that every server takes


class Waits(msgspec.Struct):
    """The keys of tags and params, and the paths of files."""

    tags: list[str] = []
    params: list[str] = []
    files: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.tags or self.params or self.files)


def encoded(waits: Waits) -> str:
    """As one tag; so much of it as a tag can hold, params left out first."""
    for n in range(len(waits.params), -1, -1):
        text = msgspec.json.encode(Waits(waits.tags, waits.params[:n], waits.files)).decode()
        if len(text) <= LONGEST:
            return text
    most = max(len(waits.tags), len(waits.files)) // 2
    return encoded(Waits(waits.tags[:most], [], waits.files[:most]))


class Waiting:
    """Sets right what waited in runs, one run after another."""

    def __init__(self, writing: Writing, known: Known, allow: tuple[str, ...], sources: Mapping[str, str]) -> None:
        self._writing, self._known, self._allow = writing, known, allow
        self._sources = sources  # experiment here -> the source's
        self.losses: list[Loss] = []

    def settle(self, run: WireRun) -> None:
        """Writes what is known now. The run must be active."""
        waits = _decoded(run)
        if waits is None:
            return
        self._tags(run, waits)
        left = Waits(
            [key for key in waits.tags if self._waits(key, run.tags.get(key, ""))],
            [key for key in waits.params if self._still(run, key)],
            self._files(run, waits),
        )
        if not left:
            self._writing.delete_tag(run.id, WAITS_TAG)
        elif left != waits:
            self._writing.set_tag(run.id, WAITS_TAG, encoded(left))

    def wants(self, run: WireRun) -> bool:
        """Whether something that it waited for is known now."""
        waits = _decoded(run)
        if waits is None:
            return False
        self._tell(run, waits)
        tags = any(self._meant(key, run.tags[key]) != run.tags[key] for key in waits.tags if key in run.tags)
        over = not any(self._waits(key, run.tags.get(key, "")) for key in waits.tags)
        return tags or bool(waits.files) or (over and not any(self._still(run, key) for key in waits.params))

    def _meant(self, key: str, value: str) -> str:
        references = self._known.references
        return references.id("run", value) if key in RUN_TAGS else references.text(value)

    def _waits(self, key: str, value: str) -> bool:
        meant = self._meant(key, value)
        return self._known.waits(meant) or (key in RUN_TAGS and bool(meant) and meant not in self._known.here)

    def _still(self, run: WireRun, key: str) -> bool:
        value = next((pair.value for pair in run.data.params if pair.key == key), "")
        return self._known.waits(self._known.references.text(value))

    def _tags(self, run: WireRun, waits: Waits) -> None:
        for key in waits.tags:
            value = run.tags.get(key, "")
            meant = self._meant(key, value)
            if meant != value:
                self._writing.set_tag(run.id, key, meant)

    def _files(self, run: WireRun, waits: Waits) -> list[str]:
        """Gives those that still wait."""
        left: list[str] = []
        if not waits.files:
            return left
        uploads = Uploads(self._writing.client, self._allow, self.losses)
        with ThreadPoolExecutor(1) as pool:
            shelf = Shelf(self._writing.client, pool, self._allow)
            for artifact in shelf.of([(run.id, run.info.artifact_uri)]):
                if artifact.path in waits.files:
                    self._file(run, artifact, uploads, left)
        return left

    def _file(self, run: WireRun, artifact: Artifact, uploads: Uploads, left: list[str]) -> None:
        def text(before: str) -> str:
            after = self._known.references.text(before)
            if self._known.waits(after):
                left.append(artifact.path)
            return after

        meant = rewritten(artifact, text)
        call = uploads.of(run.id, run.info.artifact_uri, meant) if meant is not artifact else None
        if call is not None:
            call()

    def _tell(self, run: WireRun, waits: Waits) -> None:
        """Runs that are named and were not carried; params that keep a name."""
        named, experiment = _source_id(run), self._sources.get(run.info.experiment_id, "")
        for key in waits.tags:
            value = run.tags.get(key, "")
            if key in RUN_TAGS and self._waits(key, value):
                because = f"keeps naming a run that was not carried ({value})"
                self.losses.append(Loss(named, f"tag {key!r}", because, experiment))
        for pair in run.data.params:
            if pair.key in waits.params and self._known.references.text(pair.value) != pair.value:
                because = "names things as the source does: they came after it, and MLflow changes no param"
                self.losses.append(Loss(named, f"param {pair.key!r}", because, experiment))


def _source_id(run: WireRun) -> str:
    return run.tags.get(ORIGIN_TAG, "").rpartition(":")[2]


def _decoded(run: WireRun) -> Waits | None:
    try:
        return msgspec.json.decode(run.tags.get(WAITS_TAG, ""), type=Waits)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
