"""What belongs to no run: the registry, logged models, traces, datasets that no run read.

    models/<name>/meta.yaml  tags/  aliases/  version-<n>/{meta.yaml,tags/}     "@registry"
    <experiment>/models/<id>/{meta.yaml,params/,tags/,metrics/,artifacts/}      "@models/<experiment>"
    <experiment>/traces/<id>/{trace_info.yaml,tags/,request_metadata/,...}      "@traces/<experiment>"
    <experiment>/datasets/<id>/meta.yaml                                        "@datasets/<experiment>"

Each becomes a Record whose body is {"meta": what the YAML says, "files": {path: text}, "bytes":
{path: base64}}: every file but the artifacts, so that nothing is lost.
"""

# paths stay text here: a Path for each of a million files would cost more than reading them
# ruff: noqa: PTH118, PTH119, PTH120

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from mlmigrate.adapters.mlflow.files import disk, meta
from mlmigrate.adapters.mlflow.files.artifacts import FOLDER, Whereabouts, artifacts
from mlmigrate.adapters.mlflow.files.runs import META, escaped
from mlmigrate.errors import BadData
from mlmigrate.model import Artifact, Loss, Record, RunRef

REGISTRY = "@registry"
TRACE_INFO = "trace_info.yaml"
MOST = 64 << 20  # bytes of one file in a record


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing that lies in a folder of an experiment."""

    folder: str
    record: str
    meta: str
    owner: str  # how the owner of its artifacts begins; "" when it has none


KINDS = {
    kind.folder: kind
    for kind in (
        Kind("models", "mlflow.file.logged_model", META, "@model/"),
        Kind("traces", "mlflow.file.trace", TRACE_INFO, "@trace/"),
        Kind("datasets", "mlflow.file.dataset", META, ""),
    )
}


def ref(id: str, experiment: str, folder: str, identity: str) -> RunRef:
    """The ref that stands for all things of one kind in a folder. `identity` tells stores apart."""
    tree = disk.walk(folder, stats=True, skip_noise=False)
    marks = "\n".join(f"{file.path}\0{file.size}\0{file.changed}" for file in tree.files)
    return RunRef(
        experiment=experiment,
        id=id,
        name=id,
        origin=f"mlflow:{id}:{identity}",
        stamp=digest(marks),
        size=tree.size,
        kind="records",
    )


def digest(text: str, size: int = 16) -> str:
    """A number that stands for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


def unread_datasets(experiment: str, runs: list[str]) -> list[str]:
    """The ids of the datasets that no run names as an input.

    An input's folder is called md5(dataset id + run id), so none need be opened.
    """
    left = [entry.name for entry in disk.folders(os.path.join(experiment, "datasets"))]
    for run in runs if left else ():
        inputs = {entry.name for entry in disk.folders(os.path.join(experiment, run, "inputs"))}
        left = [one for one in left if _input_name(one, run) not in inputs] if inputs else left
    return left


def _input_name(dataset: str, run: str) -> str:
    whole = (dataset + run).encode("utf-8", "surrogatepass")
    return hashlib.md5(whole, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Things:
    """The things behind one ref: `only` holds ids when not all that lie there are meant."""

    id: str
    experiment: str
    folder: str
    whereabouts: Whereabouts
    losses: list[Loss]
    only: tuple[str, ...] | None = None

    def records(self) -> Iterator[Record]:
        """Every thing, whole."""
        if self.id == REGISTRY:
            for model in self._folders(self.folder):
                yield from self._registered(model)
            return
        kind = self._kind
        for entry in self._folders(self.folder):
            if self.only is None or entry.name in self.only:
                _, body = self._body(entry.path, kind.meta, FOLDER)
                yield Record(kind.record, escaped(entry.name), self.experiment, body)

    def artifacts(self) -> Iterator[Artifact]:
        """The files of every thing."""
        if self.id == REGISTRY or not self._kind.owner:
            return
        for entry in disk.folders(self.folder):
            uri = self._uri(entry.path)
            parts = (self.experiment, self._kind.folder, entry.name)
            place = self.whereabouts.folder(entry.path, parts, uri)
            if place:
                yield from artifacts(place, self._kind.owner + escaped(entry.name), self.experiment, self.losses)
            else:
                because = f"its files are not here ({disk.shown(uri) or 'no URI'})"
                self._lose(f"{self._kind.folder[:-1]} {disk.shown(entry.name)}: artifacts", because)

    @property
    def _kind(self) -> Kind:
        return KINDS[self.id.removeprefix("@").partition("/")[0]]

    def _lose(self, what: str, because: str) -> None:
        self.losses.append(Loss(self.id, what, because, self.experiment))

    def _uri(self, folder: str) -> str:
        if self._kind.folder == "traces":
            try:
                return disk.text(disk.read(os.path.join(folder, "tags", "mlflow.artifactLocation"), MOST))
            except (OSError, BadData):
                return ""
        return meta.word(meta.load(os.path.join(folder, META)).meta.get("artifact_location"))

    def _folders(self, folder: str) -> Iterator[os.DirEntry[str]]:
        for entry in disk.entries(folder):
            if disk.is_folder(entry):
                yield entry
            elif not disk.noise(entry.name):
                because = disk.odd_kind(entry) if entry.is_symlink() else "belongs to nothing there"
                self._lose(f"{os.path.basename(folder)}/{disk.shown(entry.name)}", because)

    def _registered(self, model: os.DirEntry[str]) -> Iterator[Record]:
        versions = [entry for entry in disk.folders(model.path) if entry.name.startswith("version-")]
        said, body = self._body(model.path, META, *(entry.name for entry in versions))
        name = meta.word(said.get("name")) or escaped(model.name)
        yield Record("mlflow.file.registered_model", name, "", body)
        for entry in versions:
            _, body = self._body(entry.path, META)
            number = escaped(entry.name.removeprefix("version-"))
            yield Record("mlflow.file.model_version", f"{name}/{number}", "", body)

    def _body(self, folder: str, meta_name: str, *without: str) -> tuple[meta.Meta, str]:
        found = meta.load(os.path.join(folder, meta_name))
        what = f"{os.path.basename(os.path.dirname(folder))}/{disk.shown(os.path.basename(folder))}"
        if found.flaw:
            self._lose(f"{what}/{meta_name}", f"{found.flaw}: the files are kept as they are")
        texts: dict[str, str] = {}
        others: dict[str, str] = {}
        for file in self._files(folder, what, without):
            try:
                data = disk.read(file.place, MOST)
            except BadData:
                self._lose(f"{what}/{disk.shown(file.path)}", f"larger than {MOST >> 20} MiB")
                continue
            except OSError as error:
                self._lose(f"{what}/{disk.shown(file.path)}", disk.why(error))
                continue
            try:
                texts[escaped(file.path)] = data.decode("utf-8")
            except UnicodeDecodeError:
                others[escaped(file.path)] = base64.b64encode(data).decode("ascii")
        body = {"meta": found.meta, "files": texts} | ({"bytes": others} if others else {})
        return found.meta, json.dumps(body, default=str, sort_keys=True)

    def _files(self, folder: str, what: str, without: tuple[str, ...]) -> Iterator[disk.File]:
        for entry in disk.entries(folder):
            if entry.name in without:
                continue
            if disk.is_folder(entry):
                tree = disk.walk(entry.path)
                for path, because in tree.odd:
                    self._lose(f"{what}/{entry.name}/{disk.shown(path)}", because)
                yield from (disk.File(f"{entry.name}/{file.path}", file.place) for file in tree.files)
            elif entry.is_file(follow_symlinks=False):
                yield disk.File(entry.name, entry.path)
            else:
                self._lose(f"{what}/{disk.shown(entry.name)}", disk.odd_kind(entry))
