"""A run's artifacts as W&B keeps them: files of the run page, and versions of artifacts.

    model/MLmodel, model/...            an artifact of type model, what MLmodel says as its metadata
    wandb/files/<path>                  (of a run that was W&B's) a file of the run page again
    wandb/artifacts/<name>/<v>/<path>   (the same) that version of that artifact again
    all else                            one artifact of type mlflow-artifacts
    records within the run              one artifact of type mlmigrate-records

Bytes are read once, into a spool that is named by what is in it, and sent from there; a file of this machine is read
once and sent from where it lies.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import yaml

from mlmigrate.adapters.wandb import digests, index, names
from mlmigrate.adapters.wandb.limits import METADATA_KEYS
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.outgoing import Goods, Home, shown
from mlmigrate.adapters.wandb.provenance import (
    DATASET_TYPE,
    FILES,
    FILES_TYPE,
    FOLDER,
    KEY,
    MADE,
    MODEL_TYPE,
    RECORDS_JSONL,
    RECORDS_TYPE,
)
from mlmigrate.adapters.wandb.restored import number_of
from mlmigrate.adapters.wandb.shape import File, Version, WandbRun
from mlmigrate.globs import glob
from mlmigrate.model import Artifact, DatasetInput, Loss, Record, Run

MLMODEL = "MLmodel"
SMALL = 256_000  # bytes of an MLmodel that is read for metadata
MOST_VALUES = 10_000  # in it
# files that W&B writes itself, from what it is told otherwise: ours of these names lie among the artifacts
OWN_FILES = frozenset(
    ["config.yaml", "wandb-metadata.json", "wandb-summary.json", "wandb-history.jsonl", "wandb-events.jsonl"]
)
CONSOLE = "output.log"  # W&B may write it anew from what it is told: it lies in both places
OWN_REFS = ("wandb-artifact://", "wandb-client-artifact://")
REMOTE = ("s3://", "gs://", "https://", "http://", "abfs://", "abfss://", "wasbs://", "dbfs:/")
_CHUNK = 1 << 20
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Spool:
    """Bytes on their way, once each, in a folder. One thread's alone while it takes; then anybody opens."""

    folder: Path
    _held: dict[str, Path] = field(default_factory=dict)  # sha256 -> file

    def take(self, artifact: Artifact) -> File:
        """The artifact's bytes, ready to be opened again and again. Raises whatever reading it raises."""
        spot = artifact.spot
        if spot is not None and spot.store == "file":
            with artifact.open() as stream:
                size, md5, _ = _measured(stream, None)
            return File(artifact.path, partial(_open, Path(spot.url)), size, md5)
        with artifact.open() as stream:
            return self.put(artifact.path, stream)

    def put(self, path: str, stream: BinaryIO) -> File:
        """What the stream gives."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "part"
        with part.open("wb") as copy:
            size, md5, sha256 = _measured(stream, copy)
        held = self._held.get(sha256)
        if held is None:
            held = self._held[sha256] = part.rename(self.folder / sha256)
        else:
            part.unlink()
        return File(path, partial(_open, held), size, md5)


def _open(file: Path) -> BinaryIO:
    return file.open("rb")


def _measured(stream: BinaryIO, copy: BinaryIO | None) -> tuple[int, str, str]:
    """Size, md5 in base64 and sha256 in hex of what is read."""
    size, md5, sha256 = 0, hashlib.md5(usedforsecurity=False), hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        md5.update(chunk)
        if copy is not None:
            sha256.update(chunk)
            copy.write(chunk)
    return size, base64.b64encode(md5.digest()).decode(), sha256.hexdigest()


def digest_of(files: Iterable[File]) -> str:
    """The digest of a version that holds these files, as W&B's SDK makes it."""
    return digests.of_manifest((file.path, file.digest or file.ref if file.ref else file.md5) for file in files)


def goods(
    run: Run, home: Home, options: Options, files: Mapping[str, File], native: WandbRun | None
) -> tuple[Goods, list[Loss]]:
    """What a run logs, shows and has read. `files`: its artifacts by path, spooled."""
    sorting = _Sorting(run, home, dict(files))
    if native is not None:
        sorting.native(native)
    sorting.models()
    sorting.page(options.run_files)
    sorting.rest()
    sorting.records()
    used = _used(native, home) if native is not None else tuple(dataset(one, home) for one in run.inputs)
    found = Goods(
        tuple(sorting.logged), used, tuple(sorting.files), sorting.trees, tuple(sorting.paths), sorting.digests
    )
    return found, sorting.losses


class _Sorting:
    """Files find their places one kind after another; `left` are those that have none yet."""

    def __init__(self, run: Run, home: Home, left: dict[str, File]) -> None:
        self.run, self.home, self.left = run, home, left
        self.id = names.run_id(run.origin, run.id)
        self.logged: list[Version] = []
        self.files: list[File] = []
        self.trees: dict[str, str] = {}
        self.paths: list[str] = []
        self.digests: dict[tuple[str, str], str] = {}
        self._made: dict[str, int] = {}  # key of a tree of W&B's -> place of its version
        self.losses: list[Loss] = []

    def native(self, native: WandbRun) -> None:
        """What W&B had goes where it was."""
        told = index.of(native)
        for path, file in told.files:
            self._show(path, file.path)
        several = _repeated((*native.logged, *native.used))
        order = sorted(
            range(len(native.logged)), key=lambda n: (native.logged[n].name, number_of(native.logged[n].version))
        )
        folders = index.folders_of(native.logged)
        for n in order:
            self._again(native.logged[n], told.versions[n], folders[n], repeated=native.logged[n].name in several)

    def _show(self, path: str, on_page: str) -> None:
        """A file of the run page, where it can lie there under that name, and come back from there."""
        file = self.left.get(path)
        if file is None or on_page in OWN_FILES or path not in (on_page, FILES + on_page):
            return
        self.files.append(replace(file, path=on_page))
        if on_page != CONSOLE:
            self.paths.append(path)
            del self.left[path]

    def _again(self, had: Version, places: Sequence[index.Place], folder: str, *, repeated: bool) -> None:
        """A version of W&B's, logged again."""
        what = f"artifact {had.name}:{had.version or 'unnumbered'} of W&B"
        kind, name = names.artifact_type(had.type), names.artifact(had.name)
        if not kind:
            self._lose(what, f"W&B makes those of type {had.type!r} itself; its files are kept")
            return
        files = [_entry(place, self.left) for place in places]
        gone = [place.file.path for place, file in zip(places, files, strict=True) if file is None]
        there = tuple(file for file in files if file is not None)
        if any(place.path != f"{folder}/{place.file.path}" for place in places if not place.file.ref):
            self._lose(what, "it holds files whose names are no paths; its files are kept")
            return
        digest = digest_of(there)
        key = f"{name}:{digest}" if repeated else name
        empty = not files and had.digest in digests.empty()  # one of another digest had files that nobody told of
        if not (there or empty) or key in self.trees:
            same = key in self.trees
            if same:
                self._known_as(self._made[key], had)
            self._lose(what, "another version has the same files" if same else "the bytes of its files are not there")
            return
        if gone:
            first = repr(gone[0]) + (", .." if len(gone) > 1 else "")
            self._lose(what, f"made without {len(gone)} of its {len(files)} files, whose bytes are not there: {first}")
        if foreign := sum(file.ref.startswith(OWN_REFS) for file in there):
            self._lose(what, f"{foreign} of its references name artifacts by ids of the W&B server that they came from")
        self._made[key] = len(self.logged)
        self.logged.append(self._rehomed(had, name, kind, digest, there))
        self.trees[key] = folder
        if had.digest and had.digest != digest:
            self.digests[name, had.digest] = digest
        for place in places:
            self.left.pop(place.path, None)

    def _known_as(self, place: int, had: Version) -> None:
        """The version that is made already has these names, too."""
        one = self.logged[place]
        aliases = dict.fromkeys((*one.aliases, *names.aliases(had.aliases)))
        clients = dict.fromkeys((*one.clients, *had.clients))
        self.logged[place] = replace(one, aliases=tuple(aliases), clients=tuple(clients))

    def _rehomed(self, had: Version, name: str, kind: str, digest: str, files: tuple[File, ...]) -> Version:
        return replace(
            had,
            name=name,
            type=kind,
            entity=self.home.entity,
            project=self.home.project,
            digest=digest,
            metadata=dict(list(had.metadata.items())[:METADATA_KEYS]),
            aliases=names.aliases(had.aliases),
            created=None,
            run=self.id,
            state="COMMITTED",
            files=files,
        )

    def models(self) -> None:
        """Folders with an MLmodel file, but not one within another."""
        found = {
            path.rpartition("/")[0] for path in self.left if path.rpartition("/")[2] == MLMODEL and not _ours(path)
        }
        for folder in sorted(found, key=len):
            below = f"{folder}/" if folder else ""
            paths = [path for path in self.left if path.startswith(below) and not _ours(path)]
            if f"{below}{MLMODEL}" not in paths:
                continue
            metadata = described(self.left[below + MLMODEL])
            files = tuple(replace(self.left.pop(path), path=path.removeprefix(below)) for path in paths)
            self._log(names.model(self.id, folder), MODEL_TYPE, folder, files, metadata)

    def page(self, wanted: str) -> None:
        """Those that a person wants on the run page."""
        pattern = glob(wanted) if wanted else None
        for path in [path for path in self.left if pattern is not None and pattern.fullmatch(path)]:
            if not _ours(path):
                self._show(path, path)

    def rest(self) -> None:
        """All that has no place yet."""
        if self.left:
            self._log(names.tree(self.id), FILES_TYPE, "", tuple(self.left.values()), {})

    def records(self) -> None:
        """What was recorded within the run; it is no file of it."""
        if self.run.records:
            files = (_small(RECORDS_JSONL, b"".join(map(line_of, self.run.records))),)
            where = (self.home.entity, self.home.project, digest_of(files))
            self.logged.append(
                Version(names.records(self.id), RECORDS_TYPE, "", *where, aliases=("latest",), run=self.id, files=files)
            )

    def _log(self, name: str, kind: str, folder: str, files: tuple[File, ...], metadata: Mapping[str, Any]) -> None:
        where = (self.home.entity, self.home.project, digest_of(files))
        version = Version(name, kind, "", *where, metadata=metadata, aliases=("latest",), run=self.id, files=files)
        self.logged.append(version)
        self.trees[name] = folder

    def _lose(self, what: str, because: str) -> None:
        self.losses.append(Loss(self.run.id, what, because, self.run.experiment))


def dataset(given: DatasetInput, home: Home) -> Version:
    """What a run read, as an artifact that nobody logged: the same for all runs that read it."""
    told = {name: shown(value) for name, value in _dataset(given).items() if value is not None}
    uri = _uri(given.source)
    files = [_small("dataset.json", msgspec.json.format(msgspec.json.encode(told)))]
    files += [File("source", ref=uri, digest=uri)] if uri else []
    return Version(
        names.dataset(given.name),
        DATASET_TYPE,
        "",
        home.entity,
        home.project,
        digest_of(files),
        metadata={KEY: MADE, **{name: told[name] for name in ("name", "digest", "source_type") if told.get(name)}},
        aliases=("latest", *names.aliases([shown(given.digest)])) if given.digest else ("latest",),
        files=tuple(files),
    )


def line_of(record: Record) -> bytes:
    """A line of records.jsonl."""
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(msgspec.to_builtins(record)).encode() + b"\n"


def described(file: File) -> dict[str, Any]:
    """What an MLmodel file says, as metadata; {} where it is large, or nothing that JSON can hold."""
    if file.open is None or (file.size or 0) > SMALL:
        return {}
    try:
        with file.open() as stream:
            told = yaml.load(stream.read(SMALL + 1), Loader=_LOADER)  # noqa: S506  a safe loader
        plain = _plain(told, [MOST_VALUES])
    except (yaml.YAMLError, ValueError, RecursionError):  # anybody may have written it
        return {}
    return dict(list(plain.items())[:METADATA_KEYS]) if isinstance(plain, dict) else {}


def _plain(value: object, left: list[int]) -> Any:  # noqa: ANN401  any JSON
    """What JSON can hold of a value out of YAML, whose aliases make much of little. Raises ValueError for too much."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("too many values")
    if isinstance(value, dict):
        return {shown(str(name)): _plain(one, left) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one, left) for one in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return shown(str(value))


def _used(native: WandbRun, home: Home) -> tuple[Version, ...]:
    """What a native run had read; of its own project, and so in ours now."""
    return tuple(_at_home(version, native, home) for version in native.used)


def _at_home(version: Version, native: WandbRun, home: Home) -> Version:
    same = version.project in ("", native.project)
    project = home.project if same else names.project(version.project)
    name, kind = names.artifact(version.name), names.artifact_type(version.type) or version.type
    return replace(version, name=name, type=kind, entity=home.entity, project=project, files=())


def _entry(place: index.Place, left: Mapping[str, File]) -> File | None:
    """A file of a version as it is here; a reference as it was."""
    if place.file.ref:
        return replace(place.file, open=None)
    file = left.get(place.path)
    return replace(file, path=place.file.path) if file is not None else None


def _repeated(versions: Sequence[Version]) -> set[str]:
    """Names that several versions have."""
    return {name for name, n in Counter(one.name for one in versions).items() if n > 1}


def _ours(path: str) -> bool:
    """Whether it belongs to what was kept of a run of W&B's."""
    return path.startswith(f"{FOLDER}/")


def _dataset(given: DatasetInput) -> dict[str, str | None]:
    return {
        "name": given.name,
        "digest": given.digest,
        "source_type": given.source_type,
        "source": given.source,
        "schema": given.schema,
        "profile": given.profile,
    }


def _uri(source: str) -> str:
    """The place that MLflow's description of a source names, where W&B can refer to it."""
    try:
        told = msgspec.json.decode(source)
    except (msgspec.DecodeError, UnicodeEncodeError):  # a plain text
        told = source
    found = (told.get("uri") or told.get("url")) if isinstance(told, dict) else told
    return shown(found) if isinstance(found, str) and found.startswith(REMOTE) else ""


def _small(path: str, data: bytes) -> File:
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    return File(path, partial(_bytes, data), len(data), md5)


def _bytes(data: bytes) -> BinaryIO:
    return io.BytesIO(data)
